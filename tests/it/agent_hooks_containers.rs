//! Hooks in run containers of a real Docker engine.

use std::time::Duration;

use terrapool::{
    agent::{AgentConfig, executor::Choice},
    api::{agent::reason, run_state::RunState},
};

use crate::support::agents::{Plane, RunningAgent, assert_clean, eventually, state};

fn docker(plane: &Plane, name: &str) -> AgentConfig {
    let mut config = plane.hooked(name);
    config.executor.choice = Choice::Docker;
    config
}

fn told(log: &str) -> Vec<&str> {
    log.lines().filter_map(|line| line.strip_prefix("told: ")).collect()
}

#[tokio::test]
async fn hooks_run_inside_of_the_container_and_nothing_there_can_change_them() {
    let plane = Plane::new().await;
    plane.hook(
        "pre-plan",
        "echo told: $(id -u) $0; ls /var/run/docker.sock; env | grep -c TOKEN
         tr '\\0' '\\n' </proc/1/environ | grep -c TOKEN; echo A=1 >$TFC_AGENT_ENV",
    );
    plane.hook("post-plan", "echo \"told: behind $A $SCALR_TERRAFORM_EXIT_CODE\"");
    let agent = RunningAgent::start(docker(&plane, "a")).await;
    // The run tries all that it can.
    let script = "h=/terrapool/job/hooks; echo \"told: plan $A\"; ls -l $h
        for try in \"cp /dev/null $h/post-plan\" \"rm -f $h/post-plan\" \"mv $h $h.old\" \"chmod u+w $h/post-plan\" \"touch $h/pre-apply\"
        do $try && echo \"told: could $try\"; done; true";
    let run = plane.run(script, &format!("printf '%s' '{}' >terraform.tfstate", state(1))).await;
    let run = plane.until(&run, RunState::Applied).await;
    let log = plane.log(run.plan_id.as_str()).await;
    let user = if rustix::process::geteuid().is_root() { 65_532 } else { rustix::process::geteuid().as_raw() };
    let first = format!("{user} /terrapool/job/hooks/pre-plan");
    assert_eq!(told(&log), [first.as_str(), "plan 1", "behind 1 2"], "{log}");
    assert!(log.contains("Read-only file system") && log.contains("docker.sock: No such file"), "{log}");
    assert_eq!(log.lines().filter(|line| *line == "0").count(), 2, "a token is in the environment: {log}");
    assert_eq!(plane.serial().await, Some(1));
    agent.drain().await.unwrap();
    assert_clean(&plane.config("a").data);
}

#[tokio::test]
async fn a_secret_that_a_hook_declares_stays_hidden_over_a_restart_of_the_agent() {
    let plane = Plane::new().await;
    plane.hook("pre-apply", "echo ::add-mask::canary-f4f4; echo told: canary-f4f4; echo GO=$PWD/go >$TFC_AGENT_ENV");
    plane.hook("post-apply", "echo told: behind canary-f4f4; exit 5");
    let agent = RunningAgent::start(docker(&plane, "a")).await;
    let write = format!("printf '%s' '{}' >terraform.tfstate", state(1));
    let run = plane
        .run(
            "",
            &format!(
                "{write}; echo told: canary-f4f4; while [ ! -e $GO ]; do sleep 0.05; done; echo told: canary-f4f4"
            ),
        )
        .await;
    let apply = async || plane.log(plane.test.reread(&run).await.apply_id.as_str()).await;
    eventually("the first words of the apply", async || told(&apply().await).len() == 2).await;
    let config = agent.crash().await;
    let jobs = config.data.join("jobs");
    let again = RunningAgent::start(config).await;
    for job in std::fs::read_dir(jobs).unwrap().flatten().filter(|entry| entry.path().is_dir()) {
        std::fs::write(job.path().join("config/go"), "").unwrap();
    }
    let run = plane.until(&run, RunState::Errored).await;
    assert_eq!(run.error_code.as_deref(), Some(reason::HOOK_FAILED));
    let log = plane.log(run.apply_id.as_str()).await;
    assert_eq!(told(&log), ["***", "***", "***", "behind ***"], "{log}");
    // The apply is done, and is not forgotten for the hook's sake.
    assert_eq!(plane.serial().await, Some(1));
    again.drain().await.unwrap();
    assert_clean(&plane.config("a").data);
}

#[tokio::test]
async fn a_hook_that_takes_too_long_is_killed_in_the_container() {
    let plane = Plane::new().await;
    plane.hook("pre-init", "trap '' INT; while :; do sleep 0.1; done");
    let mut config = docker(&plane, "a");
    config.executor.hooks.limits.insert("pre-init".to_owned(), Duration::from_secs(1));
    config.executor.grace = Duration::from_secs(1);
    let agent = RunningAgent::start(config).await;
    let run = plane.run("", "").await;
    let run = plane.until(&run, RunState::Errored).await;
    assert_eq!(run.error_code.as_deref(), Some(reason::HOOK_FAILED));
    assert!(plane.log(run.plan_id.as_str()).await.contains("The hook is killed."));
    agent.drain().await.unwrap();
}
