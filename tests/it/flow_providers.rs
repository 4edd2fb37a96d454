//! Providers from mirrors, with the real terraform and a provider that does what it is told: fails, talks, leaks,
//! writes where it must not.

use std::path::Path;

use axum::http::Method;
use serde_json::json;
use terrapool::{
    agent::{
        engine::Engines,
        executor::Choice,
        jobdir::{Archive, JobDir},
        providers::{Mirror, Providers},
    },
    api::{
        agent::{FinishRequest, Outcome, reason},
        job::{JobSpec, Stage},
        run_state::RunState,
    },
    server::domain::model::RunOptions,
};

use crate::support::{
    agents::{Plane, RunningAgent},
    cli::Engine,
    docker::docker,
    jobs::{Host, apply_of, log, slug, spec},
    probe::{self, NetworkMirror},
    publisher::sha256,
};

macro_rules! for_each_executor {
    ($($name:ident;)*) => {
        mod docker_engine { $( #[tokio::test] async fn $name() { super::$name(super::Choice::Docker).await; } )* }
        mod process { $( #[tokio::test] async fn $name() { super::$name(super::Choice::Process).await; } )* }
    };
}

for_each_executor! {
    a_run_has_its_provider_from_a_directory;
    a_run_has_its_provider_from_a_network_mirror;
    what_was_created_before_a_failure_is_in_the_state;
    a_lock_file_with_another_hash_is_obeyed;
}

/// Nothing but the mirror.
fn only(mirror: &str) -> Providers {
    Providers { mirror: Some(mirror.parse().unwrap()), direct: false }
}

fn of(path: &Path) -> Providers {
    Providers { mirror: Some(Mirror::Directory(path.to_owned())), direct: false }
}

async fn host(choice: Choice, providers: Providers) -> Host {
    let path: Vec<_> = Engine::Terraform.program().parent().map(Path::to_owned).into_iter().collect();
    Host::with(choice, |settings| {
        settings.engines = Engines::new(None, path.into_iter().chain(["/usr/bin".into(), "/bin".into()]).collect());
        settings.providers = providers;
        // The mirror that is reached over the network is on this host. Rules would hold for other tests' runs too.
        settings.isolation.network = "bridge".to_owned();
        (settings.isolation.block_metadata, settings.isolation.block_host) = (false, false);
    })
    .await
}

/// Plans and applies; the apply's directory and end.
async fn apply(host: &Host, planned: &JobSpec, files: &[(&str, &str)]) -> (JobDir, FinishRequest) {
    let (dir, finished) = host.run(planned, &slug(files)).await;
    assert_eq!(finished.outcome, Outcome::Finished, "{finished:?}\n{}", log(&dir));
    let bundle = Archive::File(dir.pack_plan().await.unwrap().unwrap());
    let spec = apply_of(planned);
    let dir = host.create(&spec, &slug(files)).await;
    dir.put_state(None).await.unwrap();
    dir.unpack_plan(bundle).await.unwrap();
    let prepared = host.start(&dir, &spec).await;
    let finished = host.finish(&dir, &spec, &prepared, false).await;
    (dir, finished)
}

async fn state(dir: &JobDir) -> serde_json::Value {
    serde_json::from_slice(&dir.state().await.unwrap().expect("a state")).unwrap()
}

/// The one instance of the resource of that name.
fn instance<'a>(state: &'a serde_json::Value, name: &str) -> &'a serde_json::Value {
    let resources = state["resources"].as_array().unwrap();
    &resources.iter().find(|resource| resource["name"] == name).unwrap_or_else(|| panic!("{state:#}"))["instances"][0]
}

async fn made_by_the_provider(host: &Host, planned: &JobSpec, files: &[(&str, &str)]) {
    let (dir, finished) = apply(host, planned, files).await;
    assert_eq!(finished.outcome, Outcome::Finished, "{finished:?}\n{}", log(&dir));
    assert_eq!(instance(&state(&dir).await, "a")["attributes"]["version"], probe::VERSION);
}

async fn a_run_has_its_provider_from_a_directory(choice: Choice) {
    let mirror = probe::packed();
    let host = host(choice, of(mirror.path())).await;
    made_by_the_provider(&host, &spec(Stage::Plan), &[("main.tf", &probe::configuration(r#"sleep = "100ms""#))]).await;
}

async fn a_run_has_its_provider_from_a_network_mirror(choice: Choice) {
    let address = match choice {
        Choice::Docker => docker(&["network", "inspect", "bridge", "-f", "{{(index .IPAM.Config 0).Gateway}}"]),
        _ => "127.0.0.1".to_owned(),
    };
    let mirror = NetworkMirror::open(&address).await;
    let host = host(choice, only(&mirror.url)).await;
    let mut planned = spec(Stage::Plan);
    let ca = std::fs::read_to_string(&mirror.ca).unwrap();
    let trusted = match choice {
        Choice::Docker => "/terrapool/job/config/ca.pem".to_owned(),
        _ => mirror.ca.display().to_string(),
    };
    planned.env.insert("SSL_CERT_FILE".to_owned(), trusted);
    made_by_the_provider(&host, &planned, &[("main.tf", &probe::configuration("")), ("ca.pem", &ca)]).await;
}

async fn what_was_created_before_a_failure_is_in_the_state(choice: Choice) {
    let mirror = probe::packed();
    let host = host(choice, of(mirror.path())).await;
    let main = probe::configuration("partial = true\n  fail = \"the disk is on fire\"");
    let (dir, finished) = apply(&host, &spec(Stage::Plan), &[("main.tf", &main)]).await;
    let text = log(&dir);
    assert_eq!(finished.outcome, Outcome::Errored, "{finished:?}\n{text}");
    assert_eq!(finished.reason.as_deref(), Some(reason::ENGINE_FAILED), "{finished:?}");
    assert!(text.contains("the disk is on fire"), "{text}");
    let state = state(&dir).await;
    assert_eq!(instance(&state, "first")["attributes"]["id"], "made");
    assert_eq!(instance(&state, "a")["status"], "tainted");
}

async fn a_lock_file_with_another_hash_is_obeyed(choice: Choice) {
    let mirror = probe::packed();
    let host = host(choice, of(mirror.path())).await;
    let lock = format!(
        "provider \"registry.terrapool.test/test/probe\" {{\n  version = \"{}\"\n  hashes = [\"zh:{}\"]\n}}\n",
        probe::VERSION,
        "0".repeat(64)
    );
    let files = [("main.tf", probe::configuration("")), (".terraform.lock.hcl", lock)];
    let files: Vec<_> = files.iter().map(|(name, text)| (*name, text.as_str())).collect();
    let (dir, finished) = host.run(&spec(Stage::Plan), &slug(&files)).await;
    let text = log(&dir).replace('\n', " ");
    assert_eq!(finished.outcome, Outcome::Errored, "{finished:?}\n{text}");
    assert!(text.contains("checksums") && text.contains("registry.terrapool.test/test/probe"), "{text}");
}

/// The files of the mirror are open to all, and the run is root: the mount alone is in the way.
#[tokio::test]
async fn a_run_cannot_change_the_mirror_of_the_next() {
    let mirror = probe::unpacked();
    let host = host(Choice::Docker, of(mirror.path())).await;
    let mut planned = spec(Stage::Plan);
    planned.run_as_root = true;
    let before = tree(mirror.path());
    let (dir, finished) = apply(&host, &planned, &[("main.tf", &probe::configuration(r#"write = "self""#))]).await;
    let text = log(&dir);
    assert_eq!(finished.outcome, Outcome::Errored, "{finished:?}\n{text}");
    assert!(text.contains("read-only file system") && text.contains("/terrapool/providers/"), "{text}");
    assert!(tree(mirror.path()) == before, "the mirror has changed");
}

/// Every file below the folder with its digest.
fn tree(folder: &Path) -> Vec<(String, String)> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                files.push((path.display().to_string(), sha256(&std::fs::read(&path).unwrap())));
            }
        }
    }
    files.sort();
    files
}

/// An agent with the real terraform and the provider, and a run of this resource.
async fn run(plane: &Plane, attributes: &str, log_limit: Option<u64>) -> (String, Option<String>) {
    let mirror = probe::packed();
    let mut config = plane.config("a");
    let terraform = Engine::Terraform.program().parent().unwrap().to_owned();
    config.executor.engines = Engines::new(None, vec![terraform, "/usr/bin".into(), "/bin".into()]);
    config.executor.providers = of(mirror.path());
    config.log_limit = log_limit.unwrap_or(config.log_limit);
    let agent = RunningAgent::start(config).await;
    let configuration = plane.configuration(&[("main.tf", &probe::configuration(attributes))]).await;
    let options = RunOptions { auto_apply: true, ..RunOptions::default() };
    let run = plane.test.run(&plane.fixture.workspace.id, &configuration, options).await;
    let ended = plane.ended(&run).await;
    let log = plane.log(run.plan_id.as_str()).await + &plane.log(run.apply_id.as_str()).await;
    agent.drain().await.unwrap();
    assert!(matches!(ended.status, RunState::Applied | RunState::Errored), "{:?}", ended.status);
    (log, ended.error_code)
}

#[tokio::test]
async fn a_secret_that_a_provider_tells_is_in_no_log() {
    let plane = Plane::new().await;
    let value = "s3cr3t-of-the-provider";
    let attributes = json!({"key": "secret", "value": value, "category": "terraform", "sensitive": true});
    let body = json!({"data": {"type": "vars", "attributes": attributes}});
    let path = format!("/api/v2/workspaces/{}/vars", plane.fixture.workspace.id);
    plane.test.request(Method::POST, &path, &body).await.expect(201);
    let attributes = "log = \"debug: ${var.secret}\"\n  fail = \"could not log in as admin:${var.secret}\"";
    let (log, reason) = run(&plane, attributes, None).await;
    assert_eq!(reason.as_deref(), Some(reason::ENGINE_FAILED), "{log}");
    assert!(log.contains("could not log in as admin:***"), "{log}");
    assert!(!log.contains(value), "{log}");
}

/// Lines of the provider, by their number.
fn lines(log: &str) -> Vec<u64> {
    let tail = format!(" {}", "x".repeat(53));
    log.lines()
        .filter_map(|line| line.trim_end().strip_suffix(tail.as_str()))
        .map(|line| line[line.len() - 9..].parse().unwrap())
        .collect()
}

const MANY: u64 = 50_000_000 / 64;

#[tokio::test]
async fn fifty_megabytes_of_a_providers_words_arrive_whole() {
    let plane = Plane::new().await;
    let (log, reason) = run(&plane, &format!("say_lines = {MANY}"), Some(256 << 20)).await;
    assert_eq!(reason, None);
    let lines = lines(&log);
    assert_eq!(lines.len() as u64, MANY);
    assert!(lines.iter().enumerate().all(|(at, line)| at as u64 == *line), "they are in order");
}

#[tokio::test]
async fn fifty_megabytes_beyond_the_limit_are_cut_and_say_so() {
    let plane = Plane::new().await;
    let (log, reason) = run(&plane, &format!("say_lines = {MANY}"), Some(1 << 20)).await;
    assert_eq!(reason, None);
    let lines = lines(&log);
    assert!(!lines.is_empty() && (lines.len() as u64) < MANY / 10, "{} lines", lines.len());
    assert!(log.contains("limit"), "{}", &log[log.len().saturating_sub(500)..]);
}
