//! The memory guard in run containers of a real Docker engine: the engine is interrupted before the kernel kills it, and
//! what it made is recorded.

use terrapool::{
    agent::{
        AgentConfig,
        engine::Engines,
        executor::{Choice, Exit},
        jobdir::Archive,
        providers::Providers,
    },
    api::{
        agent::{Outcome, reason},
        job::Stage,
        run_state::RunState,
    },
};

use crate::support::{
    agents::{Plane, RunningAgent, assert_clean, state},
    cli::Engine,
    docker::docker,
    jobs::{Host, apply_of, log, slug, spec},
    probe,
};

/// What a run of these tests may have.
const LIMIT: i64 = 96 << 20;

/// A shell that takes about one MiB every 30 ms, up to twice the limit; ends when it is interrupted, with a last state.
fn eats_slowly(first: &str, last: &str) -> String {
    format!(
        "printf '%s' '{first}' >terraform.tfstate
         trap 'echo eater: interrupted; printf \"%s\" \"$last\" >terraform.tfstate; exit 1' INT
         last='{last}'; part=$(head -c 1048576 /dev/zero | tr '\\0' x); n=0
         while [ $n -lt 192 ]; do n=$((n + 1)); eval \"kept$n=\\$part\"; sleep 0.03; done
         echo eater: full"
    )
}

fn agent(plane: &Plane) -> AgentConfig {
    let mut config = plane.config("a");
    config.executor.choice = Choice::Docker;
    config.executor.limits.memory_bytes = Some(LIMIT);
    config
}

#[tokio::test]
async fn an_apply_is_interrupted_before_its_memory_runs_out_and_its_state_is_recorded() {
    let plane = Plane::new().await;
    let agent = RunningAgent::start(agent(&plane)).await;
    let run = plane.run("", &eats_slowly(&state(1), &state(2))).await;
    let run = plane.until(&run, RunState::Errored).await;
    let log = plane.log(run.apply_id.as_str()).await;
    assert_eq!(run.error_code.as_deref(), Some(reason::OUT_OF_MEMORY), "{:?}\n{log}", run.error_message);
    let message = run.error_message.unwrap();
    assert!(message.contains("MiB of the 96.0 MiB") && message.contains("--run-memory"), "{message}");
    let said = log.lines().find(|line| line.contains("interrupted before the kernel kills it")).expect(&log);
    assert!(said.contains("96.0 MiB") && said.contains("`runs.resources`") && said.contains("-parallelism"), "{said}");
    assert!(log.contains("eater: interrupted") && !log.contains("eater: full"), "{log}");
    assert_eq!(plane.serial().await, Some(2), "{log}");
    agent.drain().await.unwrap();
    assert_clean(&plane.config("a").data);
}

#[tokio::test]
async fn a_cache_of_files_is_left_alone() {
    let plane = Plane::new().await;
    let agent = RunningAgent::start(agent(&plane)).await;
    // Read twice, the second half is what the kernel calls active.
    let script = format!(
        "head -c {} /dev/zero >big; for i in 1 2 3; do tail -c {} big >/dev/null; sleep 0.3; done
         cat /sys/fs/cgroup/memory/memory.usage_in_bytes /sys/fs/cgroup/memory.current 2>/dev/null | sed 's/^/usage: /'
         printf '%s' '{}' >terraform.tfstate",
        4 * LIMIT,
        LIMIT / 2,
        state(1)
    );
    let run = plane.run("", &script).await;
    let run = plane.ended(&run).await;
    let log = plane.log(run.apply_id.as_str()).await;
    assert_eq!(run.status, RunState::Applied, "{:?} {:?}\n{log}", run.error_code, run.error_message);
    // Otherwise the cache was nowhere near the limit, and nothing was tried.
    let usage = log.lines().find_map(|line| line.strip_prefix("usage: ")).expect(&log);
    assert!(usage.parse::<i64>().unwrap() > LIMIT / 20 * 19, "{log}");
    agent.drain().await.unwrap();
}

#[tokio::test]
async fn what_takes_memory_at_once_is_killed_by_the_kernel_and_ends_with_the_same_reason() {
    let plane = Plane::new().await;
    let agent = RunningAgent::start(agent(&plane)).await;
    let apply = format!(
        "printf '%s' '{}' >terraform.tfstate; tr '\\0' x </dev/zero | head -c 4294967296 | tail -c 2147483648 >/dev/null || exit 1",
        state(1)
    );
    let run = plane.run("", &apply).await;
    let run = plane.until(&run, RunState::Errored).await;
    let log = plane.log(run.apply_id.as_str()).await;
    assert_eq!(run.error_code.as_deref(), Some(reason::OUT_OF_MEMORY), "{:?}\n{log}", run.error_message);
    assert_eq!(plane.serial().await, Some(1), "{log}");
    agent.drain().await.unwrap();
}

#[tokio::test]
async fn terraform_with_a_hungry_provider_keeps_what_it_made_and_is_not_killed() {
    const LIMIT: i64 = 192 << 20;
    let mirror = probe::packed();
    let program = Engine::Terraform.program();
    let engines = vec![program.parent().unwrap().to_owned(), "/usr/bin".into(), "/bin".into()];
    let host = Host::with(Choice::Docker, |settings| {
        settings.engines = Engines::new(None, engines);
        settings.providers =
            Providers { mirror: Some(mirror.path().to_str().unwrap().parse().unwrap()), direct: false };
        settings.grace = std::time::Duration::from_secs(20);
    })
    .await;
    let mut planned = spec(Stage::Plan);
    planned.limits.memory_bytes = Some(LIMIT);
    let configuration = probe::configuration("eat = 512");
    let files = slug(&[("main.tf", &configuration)]);
    let (dir, finished) = host.run(&planned, &files).await;
    assert_eq!(finished.outcome, Outcome::Finished, "{finished:?}\n{}", log(&dir));
    let bundle = Archive::File(dir.pack_plan().await.unwrap().unwrap());
    let apply = apply_of(&planned);
    let dir = host.create(&apply, &files).await;
    dir.unpack_plan(bundle).await.unwrap();
    let prepared = host.start(&dir, &apply).await;
    assert_eq!(host.wait(&dir, &apply).await, Exit::Result, "{}", log(&dir));
    let name = format!("terrapool-{}-{}", apply.job_id, apply.epoch);
    assert_eq!(docker(&["inspect", "-f", "{{.State.OOMKilled}}", &name]), "false", "{}", log(&dir));
    let finished = host.finish(&dir, &apply, &prepared, false).await;
    let text = log(&dir);
    assert_eq!(finished.outcome, Outcome::Errored, "{finished:?}\n{text}");
    assert_eq!(finished.reason.as_deref(), Some(reason::OUT_OF_MEMORY), "{finished:?}\n{text}");
    assert!(text.contains("Interrupt received") && text.contains("it was told to end with"), "{text}");
    let state: serde_json::Value = serde_json::from_slice(&dir.state().await.unwrap().expect("a state")).unwrap();
    assert_eq!(state["resources"][0]["name"], "first", "{state}");
}
