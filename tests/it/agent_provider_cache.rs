//! The cache of providers in an agent's life: filled when a run's result is delivered, by agents that may be killed, on
//! disks that may be full.

use std::{fs, path::Path, time::Duration};

use axum::http::Method;
use rustix::process::Signal;
use serde_json::json;
use terrapool::{
    agent::AgentConfig,
    api::run_state::RunState,
    server::domain::{
        model::{Run, RunOptions},
        runs,
    },
};

use crate::support::{
    agents::{Plane, RunningAgent, assert_clean, eventually},
    cli::Running,
    disk::SmallDisk,
    poll,
    programs::terrapool,
    store::{CacheDir, NOTE, lock_file, packages, place, unfinished},
};

const ADDRESS: &str = "registry.example.com/acme/thing";
const PROGRAM: &str = "terraform-provider-thing_v1.0.0";

fn config(plane: &Plane, cache: &CacheDir) -> AgentConfig {
    let mut config = plane.config("a");
    config.executor.provider_cache = Some(cache.open());
    config
}

/// Fetches a package of this content.
fn fetch(content: &str) -> String {
    let place = place(ADDRESS, "1.0.0");
    format!("mkdir -p {place}; echo {content} >{place}/{PROGRAM}\n")
}

/// Prints what it was given.
fn look() -> String {
    format!("echo \"given: $(cat {}/{PROGRAM} 2>/dev/null || echo nothing)\"\n", place(ADDRESS, "1.0.0"))
}

async fn run(plane: &Plane, lock: &str, plan: &str, apply: &str) -> Run {
    run_of(plane, &[("plan.sh", plan), ("apply.sh", apply), (".terraform.lock.hcl", lock)]).await
}

async fn run_of(plane: &Plane, files: &[(&str, &str)]) -> Run {
    let configuration = plane.configuration(&[&[("main.tf", "# nothing\n")], files].concat()).await;
    let options = RunOptions { auto_apply: true, ..RunOptions::default() };
    let run = plane.test.run(&plane.fixture.workspace.id, &configuration, options).await;
    plane.until(&run, RunState::Applied).await
}

#[tokio::test]
async fn what_a_plan_fetches_its_apply_and_later_runs_are_given_by_their_lock_files() {
    let (plane, cache) = (Plane::new().await, CacheDir::new());
    let config = config(&plane, &cache);
    let data = config.data.clone();
    let agent = RunningAgent::start(config).await;
    // A plan without a lock file, which makes none either.
    let first = run(&plane, "", &(look() + &fetch("right")), &look()).await;
    for stage in [first.plan_id.as_str(), first.apply_id.as_str()] {
        assert!(plane.log(stage).await.contains("given: nothing"));
    }
    let [stored] = &cache.packages()[..] else { panic!("{:?}", cache.packages()) };
    // One that makes it: its apply has it.
    let lock = lock_file(ADDRESS, "1.0.0", &[&stored.h1]);
    let make = format!("cat >.terraform.lock.hcl <<'END'\n{lock}END\n");
    let second = run(&plane, "", &make, &look()).await;
    assert!(plane.log(second.apply_id.as_str()).await.contains("given: right"));
    let third = run(&plane, &lock, &look(), &look()).await;
    for stage in [third.plan_id.as_str(), third.apply_id.as_str()] {
        assert!(plane.log(stage).await.contains("given: right"));
    }
    agent.drain().await.unwrap();
    assert_clean(&data);
    assert_eq!((cache.packages().len(), unfinished(cache.path())), (1, 0));
}

#[tokio::test]
async fn there_is_none_beside_a_directory_of_providers_and_none_for_a_workspace_with_its_own() {
    let (plane, cache, mirror) = (Plane::new().await, CacheDir::new(), tempfile::tempdir().unwrap());
    let said = async |wanted: &str| {
        let ended = run_of(&plane, &NOTE).await;
        let log = plane.log(ended.plan_id.as_str()).await;
        assert!(log.contains(wanted), "{log}");
    };
    let mut with_mirror = config(&plane, &cache);
    with_mirror.executor.providers.mirror = Some(mirror.path().to_str().unwrap().parse().unwrap());
    let agent = RunningAgent::start(with_mirror).await;
    said("init: none, plan: none\n").await;
    agent.drain().await.unwrap();
    let agent = RunningAgent::start(config(&plane, &cache)).await;
    said("/provider-cache, plan: none\n").await;
    let attributes = json!({"key": "TF_PLUGIN_CACHE_DIR", "value": "/own", "category": "env"});
    let path = format!("/api/v2/workspaces/{}/vars", plane.fixture.workspace.id);
    let body = json!({"data": {"type": "vars", "attributes": attributes}});
    plane.test.request(Method::POST, &path, &body).await.expect(201);
    said("init: /own, plan: /own\n").await;
    agent.drain().await.unwrap();
}

/// `agent run` as its own process, with a cache there.
fn launch(plane: &Plane, cache: &Path) -> Running {
    let mut command = terrapool();
    command.args(["agent", "run", "--url", plane.url.as_str(), "--name", "a", "--concurrency", "1"]);
    command.args(["--executor", "process", "--engine-download=false"]);
    command.arg("--engine-dir").arg(plane.signal("engines"));
    command.arg("--data").arg(plane.signal("agent")).arg("--cache-dir").arg(cache);
    command.env("TERRAPOOL_POOL_TOKEN", &plane.fixture.pool_token);
    Running::program("an agent with a cache of providers", command)
}

async fn end(running: Running) -> String {
    running.signal(Signal::TERM);
    let ended = running.end().await;
    assert!(ended.status.success(), "the agent ended with {}:\n{}", ended.status, ended.all);
    ended.all
}

/// An agent that is copying a large package just now, of a plan that is done.
async fn filling(plane: &Plane, cache: &CacheDir) -> (Running, Run) {
    let mut agent = launch(plane, cache.path());
    agent.until("the agent is ready").await;
    let place = place(ADDRESS, "1.0.0");
    let large = format!("mkdir -p {place}; truncate -s 768M {place}/{PROGRAM}\n");
    let files = [("main.tf", "# nothing\n"), ("plan.sh", large.as_str())];
    let configuration = plane.configuration(&files).await;
    let run = plane.test.run(&plane.fixture.workspace.id, &configuration, RunOptions::default()).await;
    poll::eventually("it is being filled", Duration::from_secs(60), async || match unfinished(cache.path()) {
        0 => Err(agent.text()),
        _ => Ok(()),
    })
    .await;
    assert_eq!(plane.test.reread(&run).await.status, RunState::Planned, "nobody waits for it");
    (agent, run)
}

#[tokio::test]
async fn an_agent_that_is_killed_while_it_fills_leaves_no_half_package_and_the_next_one_clears_up() {
    let (plane, cache) = (Plane::new().await, CacheDir::new());
    let (agent, first) = filling(&plane, &cache).await;
    agent.kill().await;
    assert_eq!((packages(cache.path()), unfinished(cache.path())), (vec![], 1));

    let mut agent = launch(&plane, cache.path());
    agent.until("the agent is ready").await;
    assert_eq!(unfinished(cache.path()), 0);
    // The job was reported: nobody asks for what it has fetched.
    let jobs = plane.signal("agent").join("jobs");
    eventually("the job is cleared away", async || jobs.read_dir().unwrap().count() == 0).await;
    runs::discard(&plane.test.app, &first.id).await.unwrap();
    run(&plane, "", &fetch("small"), "").await;
    eventually("the package is there", async || packages(cache.path()).len() == 1).await;
    end(agent).await;
    assert_eq!(unfinished(cache.path()), 0);
    assert_clean(&plane.signal("agent"));
}

#[tokio::test]
async fn an_agent_that_is_stopped_does_not_fill_to_the_end() {
    let (plane, cache) = (Plane::new().await, CacheDir::new());
    let (agent, _) = filling(&plane, &cache).await;
    agent.signal(Signal::TERM);
    poll::eventually("it drains", Duration::from_secs(60), async || {
        let said = agent.text();
        if said.contains("takes no new jobs") { Ok(()) } else { Err(said) }
    })
    .await;
    let said = end(agent).await;
    assert!(said.contains("there was no time"), "{said}");
    assert_eq!((packages(cache.path()), unfinished(cache.path())), (vec![], 0));
    assert_clean(&plane.signal("agent"));
}

#[tokio::test]
async fn a_full_disk_costs_a_warning_and_no_run() {
    let (plane, disk) = (Plane::new().await, SmallDisk::of(4 << 20));
    let mut agent = launch(&plane, disk.path());
    agent.until("the agent is ready").await;
    let place = place(ADDRESS, "1.0.0");
    let large = format!("mkdir -p {place}; head -c 8388608 /dev/zero >{place}/{PROGRAM}; echo fetched\n");
    let ended = run(&plane, "", &large, "").await;
    assert!(plane.log(ended.plan_id.as_str()).await.contains("fetched"));
    agent.until("a provider that a run has fetched is not kept for others").await;
    assert_eq!((packages(disk.path()), unfinished(disk.path())), (vec![], 0));
    // A small one has room, and runs are given it on a disk that is full to the last byte.
    run(&plane, "", &fetch("small"), "").await;
    eventually("the package is there", async || packages(disk.path()).len() == 1).await;
    let lock = lock_file(ADDRESS, "1.0.0", &[&packages(disk.path())[0].h1]);
    let filler = disk.fill();
    let ended = run(&plane, &lock, &look(), "").await;
    assert!(plane.log(ended.plan_id.as_str()).await.contains("given: "));
    fs::remove_file(filler).unwrap();
    let ended = run(&plane, &lock, &look(), "").await;
    assert!(plane.log(ended.plan_id.as_str()).await.contains("given: small"));
    let said = end(agent).await;
    assert!(said.contains("No space left on device"), "{said}");
}
