//! The Sidecar executor: an agent and a run container's runner as two processes that share a directory.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use terrapool::{
    api::run_state::RunState,
    server::domain::{model::RunOptions, runs},
};

use crate::support::{
    agents::{Plane, appears, eventually, state},
    cli::Engine,
    pods::{Pod, SAME, Users, agents, copy},
    store::NOTE,
};

#[tokio::test]
async fn a_real_plan_and_its_apply_run_in_pods_of_their_own() {
    let plane = Plane::new().await;
    let engines = plane.place.path().join("real");
    fs::create_dir(&engines).unwrap();
    // The cache of engines may be closed to other users.
    copy(&Engine::Terraform.program(), &engines.join("terraform"));
    let files = [(
        "main.tf",
        "resource \"terraform_data\" \"one\" {\n  input = \"hello\"\n}\noutput \"said\" {\n  value = terraform_data.one.output\n}\n",
    )];
    let configuration = plane.configuration(&files).await;
    let options = RunOptions { auto_apply: true, ..RunOptions::default() };
    let run = plane.test.run(&plane.fixture.workspace.id, &configuration, options).await;
    for (name, status) in [("plan", RunState::ApplyQueued), ("apply", RunState::Applied)] {
        let mut pod = Pod::new(&plane, name, SAME).await.with_engines(&engines);
        pod.start_runner();
        pod.start_agent(&plane, &[]);
        plane.until(&run, status).await;
        pod.succeeds(&plane).await;
        assert!(!pod.volume.join("job").exists(), "something of the job is left");
    }
    let run = plane.test.reread(&run).await;
    let log = plane.log(run.apply_id.as_str()).await;
    assert!(log.contains("Apply complete! Resources: 1 added"), "{log}");
    assert!(log.contains("said = \"hello\""), "{log}");
    assert!(plane.serial().await.is_some());
}

#[tokio::test]
async fn a_run_in_a_pod_has_no_cache_of_providers() {
    let plane = Plane::new().await;
    let files = [&NOTE[..], &[("main.tf", "# nothing\n")]].concat();
    let configuration = plane.configuration(&files).await;
    let run = plane.test.run(&plane.fixture.workspace.id, &configuration, RunOptions::default()).await;
    let mut pod = Pod::start(&plane, "plan").await;
    let run = plane.until(&run, RunState::Planned).await;
    pod.succeeds(&plane).await;
    let log = plane.log(run.plan_id.as_str()).await;
    assert!(log.contains("init: none, plan: none\n"), "{log}");
}

/// A plan and an apply with these users.
async fn users(users: Users) {
    let plane = Plane::new().await;
    let apply = format!("id -u; echo made >made; printf '%s' '{}' >terraform.tfstate\n", state(1));
    let run = plane.run("id -u; mkdir -p sub/sub; touch sub/sub/file", &apply).await;
    for (name, status) in [("plan", RunState::ApplyQueued), ("apply", RunState::Applied)] {
        let mut pod = Pod::start_with(&plane, name, users, &[]).await;
        plane.until(&run, status).await;
        pod.succeeds(&plane).await;
    }
    let run = plane.test.reread(&run).await;
    assert_eq!(plane.serial().await, Some(1));
    if rustix::process::geteuid().is_root() {
        for stage in [run.plan_id.as_str(), run.apply_id.as_str()] {
            let log = plane.log(stage).await;
            assert!(log.lines().any(|line| line == users.run.to_string()), "{users:?}: {log}");
        }
    }
}

#[tokio::test]
async fn the_run_container_may_have_another_user_than_its_agent() {
    users(Users { agent: 65_532, run: 1000 }).await;
}

#[tokio::test]
async fn an_agent_that_is_root_gives_its_files_away() {
    users(Users { agent: 0, run: 1000 }).await;
}

#[tokio::test]
async fn a_run_container_of_root_has_an_agent_that_is_not() {
    users(Users { agent: 65_532, run: 0 }).await;
}

#[tokio::test]
async fn an_agent_is_none_before_its_run_container_is_ready() {
    let plane = Plane::new().await;
    let run = plane.run("", "").await;
    let mut pod = Pod::new(&plane, "a", SAME).await;
    pod.start_agent(&plane, &[]);
    appears(&pod.volume.join("agent-here")).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(plane.gate.seen("POST /api/agent").is_empty());
    assert_eq!(plane.test.reread(&run).await.status, RunState::PlanQueued);
    pod.start_runner();
    plane.until(&run, RunState::ApplyQueued).await;
    pod.succeeds(&plane).await;
}

#[tokio::test]
async fn a_waiting_runner_sleeps() {
    let plane = Plane::new().await;
    let mut pod = Pod::start(&plane, "a").await;
    let status = format!("/proc/{}/status", pod.runner_pid());
    let wake_ups = || {
        let text = fs::read_to_string(&status).unwrap();
        let lines = text.lines().filter(|line| line.contains("ctxt_switches"));
        lines.map(|line| line.split_whitespace().last().unwrap().parse::<u64>().unwrap()).sum::<u64>()
    };
    let before = wake_ups();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(wake_ups(), before);
    pod.signal(rustix::process::Signal::TERM);
    pod.succeeds(&plane).await;
}

#[tokio::test]
async fn one_of_two_waiting_jobs_is_taken() {
    let plane = Plane::new().await;
    let other = plane.test.workspace(&plane.fixture.environment.id, "other", Some(&plane.fixture.pool.id)).await;
    let first = plane.run("", "").await;
    let configuration = plane.configuration_of(&other.id, &[("main.tf", "")]).await;
    let second =
        plane.test.run(&other.id, &configuration, RunOptions { auto_apply: true, ..RunOptions::default() }).await;
    let mut pod = Pod::start(&plane, "a").await;
    pod.succeeds(&plane).await;
    assert_eq!(plane.test.reread(&first).await.status, RunState::ApplyQueued);
    assert_eq!(plane.test.reread(&second).await.status, RunState::PlanQueued);
    assert_eq!(plane.gate.seen("POST /finish").len(), 1);
}

/// Every file below `dir` that this user can read.
fn contents(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let meta = fs::symlink_metadata(&path).unwrap();
        if meta.is_dir() {
            found.extend(contents(&path));
        } else if meta.is_file() {
            found.push((path.clone(), fs::read(&path).unwrap()));
        }
    }
    found
}

#[tokio::test]
async fn the_run_container_sees_no_token_and_no_job() {
    let plane = Plane::new().await;
    let (running, go) = (plane.signal("running"), plane.signal("go"));
    let script = format!("env; touch {}; while [ ! -e {} ]; do sleep 0.02; done", running.display(), go.display());
    let run = plane.run(&script, "").await;
    let mut pod = Pod::start(&plane, "a").await;
    appears(&running).await;
    let identity = fs::read_to_string(pod.data.join("agent.json")).unwrap();
    let identity: serde_json::Value = serde_json::from_str(&identity).unwrap();
    let agent_token = identity["registration"]["agent_token"].as_str().unwrap().to_owned();
    let instance = identity["instance"].as_str().unwrap().to_owned();
    let canaries = [plane.fixture.pool_token.clone(), agent_token, instance, "\"job_id\"".to_owned()];
    let files = contents(&pod.volume);
    assert!(files.iter().any(|(path, _)| path.ends_with("job/steps")), "{files:?}");
    for canary in &canaries {
        let has_it = |bytes: &[u8]| bytes.windows(canary.len()).any(|window| window == canary.as_bytes());
        // The same search finds it where it is.
        let kept = contents(&pod.data).iter().any(|(_, bytes)| has_it(bytes)) || *canary == canaries[0];
        assert!(kept, "{canary} is not even in the agent's own data");
        for (path, bytes) in &files {
            assert!(!has_it(bytes), "{canary} is in {}", path.display());
        }
        let environment = fs::read(format!("/proc/{}/environ", pod.runner_pid())).unwrap();
        assert!(!has_it(&environment));
    }
    assert_eq!(fs::metadata(&pod.data).unwrap().permissions().mode() & 0o077, 0);
    fs::write(&go, "").unwrap();
    plane.until(&run, RunState::ApplyQueued).await;
    let log = plane.log(run.plan_id.as_str()).await;
    assert!(canaries.iter().all(|canary| !log.contains(canary)), "{log}");
    pod.succeeds(&plane).await;
}

#[tokio::test]
async fn the_log_arrives_byte_for_byte() {
    let plane = Plane::new().await;
    let text: String = (0..20_000).map(|n| format!("line {n} \x1b[1m{}\x1b[0m é\r\n", n * 7919 % 10_007)).collect();
    let files = [("main.tf", ""), ("plan.sh", "cat text; printf 'the end'"), ("text", &text)];
    let configuration = plane.configuration(&files).await;
    let run = plane.test.run(&plane.fixture.workspace.id, &configuration, RunOptions::default()).await;
    let mut pod = Pod::start(&plane, "a").await;
    plane.until(&run, RunState::Planned).await;
    let log = plane.log(run.plan_id.as_str()).await;
    let wanted = format!("{text}the end");
    let at = log.find("line 0 ").unwrap_or_else(|| panic!("no text in {log:.2000}"));
    assert_eq!(log.as_bytes().get(at..at + wanted.len()), Some(wanted.as_bytes()));
    pod.succeeds(&plane).await;
}

#[tokio::test]
async fn a_cancellation_interrupts_in_the_other_container() {
    let plane = Plane::new().await;
    let running = plane.signal("running");
    let script =
        format!("trap 'echo interrupted; kill $!; exit 1' INT; touch {}; sleep 60 & wait $!\n", running.display());
    let run = plane.run(&script, "").await;
    let mut pod = Pod::start(&plane, "a").await;
    appears(&running).await;
    runs::cancel(&plane.test.app, &run.id).await.unwrap();
    let run = plane.until(&run, RunState::Canceled).await;
    assert!(plane.log(run.plan_id.as_str()).await.contains("interrupted"));
    pod.succeeds(&plane).await;
}

#[tokio::test]
async fn a_forced_cancellation_kills_the_whole_tree_in_the_other_container() {
    let plane = Plane::new().await;
    let (running, child) = (plane.signal("running"), plane.signal("child"));
    let script = format!(
        "trap '' INT TERM; setsid sh -c 'echo $$ >{}; touch {}; sleep 600' & while :; do sleep 600; done\n",
        child.display(),
        running.display()
    );
    let run = plane.run(&script, "").await;
    let mut pod = Pod::start(&plane, "a").await;
    appears(&running).await;
    runs::cancel(&plane.test.app, &run.id).await.unwrap();
    plane.test.advance(3600);
    runs::force_cancel(&plane.test.app, &run.id).await.unwrap();
    plane.until(&run, RunState::ForceCanceled).await;
    let child: i32 = fs::read_to_string(child).unwrap().trim().parse().unwrap();
    eventually("the end of a child that left its group", async || !Path::new(&format!("/proc/{child}")).exists()).await;
    let (agent, runner) = pod.end().await;
    agent.expect(0);
    runner.expect(0);
}

#[tokio::test]
async fn a_run_container_of_the_wrong_user_makes_no_agent() {
    let plane = Plane::new().await;
    let mut pod = Pod::new(&plane, "a", SAME).await;
    pod.start_runner();
    pod.start_agent(&plane, &["--user", "root"]);
    let (agent, runner) = pod.end().await;
    agent.expect(1).says("runAsUser: 0");
    runner.expect(0);
    assert_eq!(agents(&plane).await, Vec::<String>::new());
}
