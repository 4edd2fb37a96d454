//! What every executor does alike: plan, apply, cancel, time limit, coming back after a restart. Real terraform, and
//! for the Docker half a real engine.

use std::{os::unix::fs::PermissionsExt, time::Duration};

use terrapool::{
    agent::{
        executor::{Choice, Exit, Signal},
        jobdir::{Archive, JobDir},
    },
    api::{
        agent::{JobRef, Outcome, ResourceChanges, reason},
        job::{Category, Engine, EngineKind, JobSpec, RunVariable, Stage},
    },
};

use crate::support::{
    docker::docker,
    jobs::{self, Host, apply_of, log, log_has, slug, spec, variable},
};

const MAIN: &str = r#"
terraform {
  cloud {
    organization = "acme"
    workspaces { name = "demo" }
  }
}
variable "greeting" { default = "none" }
variable "list" { default = [] }
resource "terraform_data" "a" { input = var.greeting }
output "greeting" { value = terraform_data.a.output }
output "list" { value = var.list }
output "env" { value = "unset" }
"#;

/// Ends only when it is asked to.
const SLOW: &str = r#"
resource "terraform_data" "first" { input = 1 }
resource "terraform_data" "slow" {
  depends_on = [terraform_data.first]
  provisioner "local-exec" { command = "echo started; exec sleep 600.7" }
}
"#;

macro_rules! for_each_executor {
    ($($(#[$doc:meta])* $name:ident;)*) => {
        mod docker { $( #[tokio::test] async fn $name() { super::$name(super::Choice::Docker).await; } )* }
        mod process { $( #[tokio::test] async fn $name() { super::$name(super::Choice::Process).await; } )* }
    };
}

for_each_executor! {
    a_plan_and_its_apply_make_the_state;
    a_configuration_that_does_not_parse_shows_the_engines_message;
    a_plan_without_changes_says_so;
    cancel_interrupts_the_engine_and_keeps_the_state;
    a_stage_that_ignores_the_interruption_is_killed;
    force_cancel_kills_at_once;
    the_time_limit_ends_a_stage;
    a_killed_runner_leaves_nothing_running;
    a_stage_goes_on_over_a_restart_of_the_agent;
    an_engine_of_another_version_is_refused;
    a_started_stage_is_never_started_again;
    a_sweep_takes_what_is_nobodys;
    hooks_surround_the_real_engine;
}

async fn plan(host: &Host, spec: &JobSpec, files: &Archive) -> Archive {
    let (dir, finished) = host.run(spec, files).await;
    assert_eq!(finished.outcome, Outcome::Finished, "{finished:?}\n{}", log(&dir));
    assert!(finished.has_changes);
    let bundle = dir.pack_plan().await.unwrap().expect("a plan file");
    let bundle = Archive::Bytes(std::fs::read(bundle).unwrap().into());
    dir.remove().await.unwrap();
    bundle
}

/// Starts an apply of [`SLOW`] and waits until its program sleeps.
async fn slow_apply(host: &Host, change: impl FnOnce(&mut JobSpec)) -> (JobSpec, JobDir) {
    let planned = spec(Stage::Plan);
    let files = slug(&[("main.tf", SLOW)]);
    let bundle = plan(host, &planned, &files).await;
    let mut apply = apply_of(&planned);
    change(&mut apply);
    let dir = host.create(&apply, &files).await;
    dir.unpack_plan(bundle).await.unwrap();
    host.start(&dir, &apply).await;
    log_has(&dir, "(local-exec): started").await;
    (apply, dir)
}

async fn a_plan_and_its_apply_make_the_state(choice: Choice) {
    let host = Host::new(choice).await;
    let mut planned = spec(Stage::Plan);
    planned.engine = Engine { kind: EngineKind::Terraform, version: host_version().await };
    planned.variables = vec![
        variable("greeting", "from the workspace", Category::Terraform, false),
        variable("list", "[1, 2]", Category::Terraform, true),
        variable("TF_WORKSPACE", "elsewhere", Category::Env, false),
    ];
    planned.run.variables = vec![RunVariable { key: "greeting".into(), value: "\"hello\"".into() }];
    let files = slug(&[("main.tf", MAIN), ("terraform.tfstate", "not a state"), ("tfplan", "not a plan")]);
    let (dir, finished) = host.run(&planned, &files).await;
    let text = log(&dir);
    assert_eq!(finished.outcome, Outcome::Finished, "{finished:?}\n{text}");
    assert!(finished.has_changes);
    assert_eq!(finished.changes, ResourceChanges { additions: 1, ..ResourceChanges::default() });
    assert_eq!(finished.log_bytes, jobs::raw_log(&dir).len() as u64);
    let head: Vec<_> = text.lines().take(3).collect();
    assert!(head[0].starts_with("Terraform v"), "{text}");
    assert_eq!(head[1..], ["on linux_amd64", "Initializing plugins and modules..."]);
    assert!(text.contains("hello") && !text.contains("from the workspace"), "{text}");
    let bundle = Archive::File(dir.pack_plan().await.unwrap().unwrap());

    let apply = apply_of(&planned);
    let apply_dir = host.create(&apply, &files).await;
    apply_dir.put_state(None).await.unwrap();
    apply_dir.unpack_plan(bundle).await.unwrap();
    let prepared = host.start(&apply_dir, &apply).await;
    let finished = host.finish(&apply_dir, &apply, &prepared, false).await;
    let text = log(&apply_dir);
    assert_eq!((finished.outcome, finished.has_changes), (Outcome::Finished, false), "{finished:?}\n{text}");
    assert_eq!(finished.changes.additions, 1, "{text}");
    assert_eq!(text.lines().nth(2), Some("Initializing plugins and modules..."));
    let state = apply_dir.state().await.unwrap().expect("a state");
    let state: serde_json::Value = serde_json::from_slice(&state).unwrap();
    assert_eq!(state["outputs"]["greeting"]["value"], "hello");
    assert_eq!(state["outputs"]["list"]["value"], serde_json::json!([1, 2]));
    dir.remove().await.unwrap();
    apply_dir.remove().await.unwrap();
    assert!(!jobs::exists(apply_dir.path()));
}

async fn host_version() -> Option<String> {
    let any = Engine { kind: EngineKind::Terraform, version: None };
    let path = jobs::engines().require(&any).await.expect("these tests need terraform in PATH");
    jobs::engines().version_at(&path, EngineKind::Terraform).await
}

async fn a_configuration_that_does_not_parse_shows_the_engines_message(choice: Choice) {
    let host = Host::new(choice).await;
    let (dir, finished) = host.run(&spec(Stage::Plan), &slug(&[("main.tf", "resource \"x\" {\n")])).await;
    assert_eq!(finished.outcome, Outcome::Errored);
    assert_eq!(finished.reason.as_deref(), Some(reason::ENGINE_FAILED));
    let text = log(&dir);
    assert!(text.contains("on main.tf line 1"), "{text}");
    assert!(text.starts_with("Terraform v"), "{text}");
}

async fn a_plan_without_changes_says_so(choice: Choice) {
    let host = Host::new(choice).await;
    let mut spec = spec(Stage::Plan);
    spec.workspace.working_directory = "deep/er".into();
    let (dir, finished) = host.run(&spec, &slug(&[("deep/er/main.tf", "locals { a = 1 }")])).await;
    assert_eq!((finished.outcome, finished.has_changes), (Outcome::Finished, false), "{}", log(&dir));
    assert_eq!(finished.changes, ResourceChanges::default());
}

async fn cancel_interrupts_the_engine_and_keeps_the_state(choice: Choice) {
    let host = Host::new(choice).await;
    let (apply, dir) = slow_apply(&host, |_| {}).await;
    assert!(dir.state_stamp().is_some());
    host.executor.signal(&dir, &apply, Signal::Interrupt).await.unwrap();
    let finished = host.finish(&dir, &apply, &Default::default(), true).await;
    let text = log(&dir);
    assert_eq!(finished.outcome, Outcome::Canceled, "{finished:?}\n{text}");
    assert_eq!(finished.reason.as_deref(), Some(reason::CANCELED));
    assert!(text.contains("Interrupt received"), "{text}");
    let state = String::from_utf8(dir.state().await.unwrap().unwrap().to_vec()).unwrap();
    assert!(state.contains("\"first\""), "{state}");
}

async fn a_stage_that_ignores_the_interruption_is_killed(choice: Choice) {
    let host = Host::with(choice, |settings| settings.grace = Duration::from_millis(1)).await;
    // Grace is told in whole seconds: none.
    let (apply, dir) = slow_apply(&host, |_| {}).await;
    host.executor.signal(&dir, &apply, Signal::Interrupt).await.unwrap();
    let finished = host.finish(&dir, &apply, &Default::default(), true).await;
    assert_eq!(finished.outcome, Outcome::Canceled, "{finished:?}\n{}", log(&dir));
    nothing_runs(&dir).await;
}

async fn force_cancel_kills_at_once(choice: Choice) {
    let host = Host::new(choice).await;
    let (apply, dir) = slow_apply(&host, |_| {}).await;
    host.executor.signal(&dir, &apply, Signal::Kill).await.unwrap();
    let finished = host.finish(&dir, &apply, &Default::default(), true).await;
    assert_eq!(finished.outcome, Outcome::Canceled, "{finished:?}\n{}", log(&dir));
    assert!(!log(&dir).contains("Interrupt received"));
    nothing_runs(&dir).await;
}

async fn the_time_limit_ends_a_stage(choice: Choice) {
    let host = Host::new(choice).await;
    let (apply, dir) = slow_apply(&host, |spec| spec.timeout_seconds = 3).await;
    let finished = host.finish(&dir, &apply, &Default::default(), false).await;
    assert_eq!(finished.outcome, Outcome::Errored, "{finished:?}\n{}", log(&dir));
    assert_eq!(finished.reason.as_deref(), Some(reason::TIMED_OUT));
    assert!(finished.message.unwrap().contains("limit of 3 s"));
}

async fn a_killed_runner_leaves_nothing_running(choice: Choice) {
    let host = Host::new(choice).await;
    let (apply, dir) = slow_apply(&host, |_| {}).await;
    let runner = runner_of(&dir, &apply, choice);
    let killed = std::process::Command::new("kill").args(["-9", &runner.to_string()]).status().unwrap();
    assert!(killed.success());
    let exit = host.wait(&dir, &apply).await;
    assert!(matches!(exit, Exit::Gone { out_of_memory: false, .. }), "{exit:?}");
    let finished = host.finish(&dir, &apply, &Default::default(), false).await;
    assert_eq!(finished.reason.as_deref(), Some(reason::CONTAINER_LOST), "{finished:?}");
    assert!(dir.state().await.unwrap().is_some());
    engine_is_gone(&dir, &apply).await;
}

/// The runner's process as the host sees it.
fn runner_of(dir: &JobDir, spec: &JobSpec, choice: Choice) -> i32 {
    match choice {
        Choice::Docker => {
            let name = format!("terrapool-{}-{}", spec.job_id, spec.epoch);
            docker(&["inspect", "-f", "{{.State.Pid}}", &name]).parse().expect("a process id")
        }
        _ => jobs::processes(&dir.path().display().to_string())[0].0,
    }
}

async fn engine_is_gone(dir: &JobDir, spec: &JobSpec) {
    let marker = spec.run.id.to_string();
    let environ = || -> Vec<String> {
        let entries = std::fs::read_dir("/proc").unwrap().flatten();
        entries
            .filter(|entry| {
                let text = std::fs::read(entry.path().join("environ")).unwrap_or_default();
                let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
                String::from_utf8_lossy(&text).contains(&marker) && String::from_utf8_lossy(&line).contains("apply")
            })
            .map(|entry| entry.path().display().to_string())
            .collect()
    };
    jobs::until(|| environ().is_empty().then_some(()), || format!("the end of {:?}, {}", environ(), log(dir))).await;
}

async fn nothing_runs(dir: &JobDir) {
    let name = dir.path().file_name().unwrap().to_str().unwrap().to_owned();
    jobs::until(
        || jobs::processes(&name).is_empty().then_some(()),
        || format!("no process of {name}: {:?}", jobs::processes(&name)),
    )
    .await;
}

async fn a_stage_goes_on_over_a_restart_of_the_agent(choice: Choice) {
    let host = Host::new(choice).await;
    let (apply, dir) = slow_apply(&host, |_| {}).await;
    let data = host.data.path().to_owned();
    let host = host.restarted(choice).await;
    drop((apply, dir));
    let mut found = JobDir::scan(&data).await.unwrap();
    assert_eq!(found.len(), 1);
    let (apply, dir) = found.remove(0);
    assert!(dir.is_set_up() && dir.has_begun());
    assert!(host.executor.is_alive(&dir, &apply).await.unwrap());
    let prepared = host.start(&dir, &apply).await;
    assert_eq!(log(&dir).matches("(local-exec): started").count(), 1);
    host.executor.signal(&dir, &apply, Signal::Interrupt).await.unwrap();
    let finished = host.finish(&dir, &apply, &prepared, true).await;
    assert_eq!(finished.outcome, Outcome::Canceled, "{}", log(&dir));
    assert_eq!(log(&dir).matches("Initializing plugins").count(), 1);
    dir.remove().await.unwrap();
    assert!(JobDir::scan(&data).await.unwrap().is_empty());
}

async fn an_engine_of_another_version_is_refused(choice: Choice) {
    let host = Host::new(choice).await;
    let mut spec = spec(Stage::Plan);
    spec.engine.version = Some("0.0.1".into());
    match host.executor.prepare(&spec).await {
        Err(error) => {
            assert_eq!(error.reason(), reason::ENGINE_UNAVAILABLE);
            let text = error.to_string();
            assert!(text.contains("terraform 0.0.1 is needed") && text.contains(" at /"), "{text}");
        }
        Ok(_) => panic!("there is no such engine"),
    }
}

async fn a_started_stage_is_never_started_again(choice: Choice) {
    let host = Host::new(choice).await;
    let spec = spec(Stage::Plan);
    let dir = host.create(&spec, &slug(&[("main.tf", MAIN)])).await;
    let prepared = host.start(&dir, &spec).await;
    assert_eq!(host.wait(&dir, &spec).await, Exit::Result);
    host.start(&dir, &spec).await;
    host.executor.remove(&dir, &spec).await.unwrap();
    host.executor.remove(&dir, &spec).await.unwrap();
    host.start(&dir, &spec).await;
    assert_eq!(host.finish(&dir, &spec, &prepared, false).await.outcome, Outcome::Finished);
    assert_eq!(log(&dir).matches("Initializing plugins").count(), 1);
}

async fn a_sweep_takes_what_is_nobodys(choice: Choice) {
    let host = Host::new(choice).await;
    let (apply, dir) = slow_apply(&host, |_| {}).await;
    let kept = JobRef { job_id: apply.job_id.clone(), epoch: apply.epoch };
    assert!(host.executor.sweep(std::slice::from_ref(&kept)).await.unwrap().is_empty());
    assert!(host.executor.is_alive(&dir, &apply).await.unwrap());
    let stranger = Host::new(choice).await;
    assert!(stranger.executor.sweep(&[]).await.unwrap().is_empty());
    let newer = JobRef { epoch: 2, ..kept };
    let swept = host.executor.sweep(&[newer]).await.unwrap();
    assert!(swept.len() == 1 && swept[0] == apply.job_id, "{swept:?}");
    jobs::until(|| jobs::processes(apply.job_id.as_str()).is_empty().then_some(()), || "the end".into()).await;
    assert!(!host.executor.is_alive(&dir, &apply).await.unwrap());
}

async fn hooks_surround_the_real_engine(choice: Choice) {
    let place = tempfile::tempdir().unwrap();
    for (name, script) in [
        ("pre-init", "ls .terraform; echo TF_CLI_ARGS_plan=-parallelism=3 >$TERRAPOOL_ENV"),
        ("pre-plan", "ls -d .terraform; echo 'mask TF_VAR_greeting=canary-7e57' >$TERRAPOOL_ENV"),
        ("post-plan", "ls -l tfplan; echo \"exit code $SCALR_TERRAFORM_EXIT_CODE\""),
    ] {
        let path = place.path().join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let host = Host::with(choice, |settings| settings.hooks.dir = Some(place.path().to_owned())).await;
    let mut planned = spec(Stage::Plan);
    planned.run.variables = vec![RunVariable { key: "list".into(), value: "[1]".into() }];
    let (dir, finished) = host.run(&planned, &slug(&[("main.tf", MAIN)])).await;
    let text = log(&dir);
    assert_eq!((finished.outcome, finished.has_changes), (Outcome::Finished, true), "{finished:?}\n{text}");
    // What the runner writes is not redacted yet: that is the shipper's affair.
    let at = |word: &str| text.find(word).unwrap_or_else(|| panic!("no `{word}` in\n{text}"));
    let words =
        ["hook pre-init", "No such file", "hook pre-plan", "canary-7e57", "hook post-plan", "tfplan", "exit code 2"];
    assert!(words.windows(2).all(|pair| at(pair[0]) < at(pair[1])), "{text}");
    let masks = std::fs::read_to_string(dir.path().join("masks")).unwrap();
    assert!(masks.ends_with("=canary-7e57\n"), "{masks}");
    assert!(!jobs::exists(&dir.path().join("hook.env")));
    dir.remove().await.unwrap();
    assert!(!jobs::exists(dir.path()));
}
