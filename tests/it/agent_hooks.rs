//! Hooks of an agent: when they run, what they see, and what becomes of a run whose hook fails.

use std::time::Duration;

use terrapool::{
    api::{agent::reason, run_state::RunState},
    server::domain::runs,
};

use crate::support::{
    agents::{Plane, RunningAgent, appears, assert_clean, eventually, state},
    pods::{Pod, SAME, Users},
};

const NAMES: [&str; 9] = [
    "pre-init",
    "pre-plan",
    "terraform-pre-plan",
    "post-plan",
    "terraform-post-plan",
    "pre-apply",
    "terraform-pre-apply",
    "post-apply",
    "terraform-post-apply",
];

/// The lines of a log that hooks and engine scripts of these tests wrote.
fn told(log: &str) -> Vec<&str> {
    log.lines().filter_map(|line| line.strip_prefix("told: ")).collect()
}

#[tokio::test]
async fn hooks_run_at_their_points_in_their_order() {
    let plane = Plane::new().await;
    for name in NAMES {
        plane.hook(name, &format!("echo \"told: {name} $SCALR_TERRAFORM_OPERATION $SCALR_TERRAFORM_EXIT_CODE\" >&2"));
    }
    plane.hook("pre-init", "ls ${SCALR_RUN_CONTENT_ROOT%/config}/init.log; echo \"told: pre-init in ${PWD##*/}\"");
    let agent = RunningAgent::start(plane.hooked("a")).await;
    let run = plane.run("echo 'told: planned'", "echo 'told: applied'").await;
    let run = plane.until(&run, RunState::Applied).await;
    let plan = plane.log(run.plan_id.as_str()).await;
    assert_eq!(
        told(&plan),
        [
            &format!("pre-init in {}", run.id),
            "pre-plan plan ",
            "terraform-pre-plan plan ",
            "planned",
            "post-plan plan 2",
            "terraform-post-plan plan 2"
        ]
    );
    assert!(plan.contains("init.log: No such file") || plan.contains("cannot access"), "{plan}");
    assert!(plan.contains("Running the hook pre-plan\ntold: pre-plan"), "{plan}");
    let apply = plane.log(run.apply_id.as_str()).await;
    assert_eq!(
        told(&apply),
        [
            &format!("pre-init in {}", run.id),
            "pre-apply apply ",
            "terraform-pre-apply apply ",
            "applied",
            "post-apply apply 0",
            "terraform-post-apply apply 0"
        ]
    );
    // The terraform CLI leaves the first three lines of an apply's log out.
    assert_eq!(apply.trim_start_matches('\u{2}').lines().nth(2), Some("Initializing plugins and modules..."));
    agent.drain().await.unwrap();
    assert_clean(&plane.config("a").data);
}

#[tokio::test]
async fn a_failed_hook_fails_the_run_and_what_comes_behind_it_does_not_run() {
    for (hook, behind, serial) in [
        ("pre-init", ["initialised", "planned"], None),
        ("terraform-pre-plan", ["planned", "applied"], None),
        ("post-plan", ["applied", "applied"], None),
        ("pre-apply", ["applied", "behind"], None),
        ("post-apply", ["behind", "behind"], Some(1)),
    ] {
        let plane = Plane::new().await;
        plane.hook(hook, "echo told: the reason; exit 3");
        plane.hook("terraform-post-apply", "echo behind");
        let agent = RunningAgent::start(plane.hooked("a")).await;
        let run =
            plane.run("echo planned", &format!("printf '%s' '{}' >terraform.tfstate\necho applied", state(1))).await;
        let run = plane.until(&run, RunState::Errored).await;
        assert_eq!(run.error_code.as_deref(), Some(reason::HOOK_FAILED), "{hook}");
        let message = run.error_message.clone().unwrap();
        assert!(message.contains(&format!("the hook `{hook}` ended with exit code 3")), "{message}");
        let log = plane.log(run.plan_id.as_str()).await + &plane.log(run.apply_id.as_str()).await;
        assert_eq!(told(&log), ["the reason"], "{hook}: {log}");
        assert!(log.contains(&message), "{log}");
        // A hook after the apply runs whatever became of it and of other hooks.
        let after = hook == "post-apply";
        assert!(after || behind.iter().all(|word| !log.contains(word)), "{hook}: {log}");
        assert_eq!(after, log.contains("behind"), "{log}");
        assert_eq!(plane.serial().await, serial, "{hook}");
        agent.drain().await.unwrap();
        assert_clean(&plane.config("a").data);
    }
}

#[tokio::test]
async fn a_hook_behind_a_command_runs_though_that_failed_and_sees_its_exit_code() {
    let plane = Plane::new().await;
    plane.hook("post-plan", "echo \"told: $SCALR_TERRAFORM_EXIT_CODE\"; exit 4");
    let agent = RunningAgent::start(plane.hooked("a")).await;
    let run = plane.run("exit 1", "").await;
    let run = plane.until(&run, RunState::Errored).await;
    // The first failure is the run's.
    assert_eq!(run.error_code.as_deref(), Some(reason::ENGINE_FAILED));
    assert_eq!(told(&plane.log(run.plan_id.as_str()).await), ["1"]);
    agent.drain().await.unwrap();
}

#[tokio::test]
async fn a_hook_that_takes_too_long_is_ended_with_all_that_it_started() {
    for script in ["sleep 600.1", "trap '' INT TERM; sh -c 'trap \"\" INT; while :; do sleep 0.05; done'"] {
        let plane = Plane::new().await;
        let pid = plane.signal("pid");
        plane.hook("pre-plan", &format!("sh -c 'echo $$ >{}; exec sleep 600.2' &\n{script}", pid.display()));
        let mut config = plane.hooked("a");
        config.executor.hooks.limits.insert("pre-plan".to_owned(), Duration::from_secs(1));
        config.executor.grace = Duration::from_secs(1);
        let agent = RunningAgent::start(config).await;
        let run = plane.run("echo planned", "").await;
        let run = plane.until(&run, RunState::Errored).await;
        assert_eq!(run.error_code.as_deref(), Some(reason::HOOK_FAILED));
        let message = run.error_message.unwrap();
        assert!(message.contains("the hook `pre-plan` took longer than its limit of 1 s"), "{message}");
        let log = plane.log(run.plan_id.as_str()).await;
        assert!(log.contains("The hook has reached its time limit") && !log.contains("planned"), "{log}");
        let pid = std::fs::read_to_string(&pid).unwrap();
        assert!(!std::path::Path::new(&format!("/proc/{}", pid.trim())).exists(), "{script}");
        agent.drain().await.unwrap();
        assert_clean(&plane.config("a").data);
    }
}

#[tokio::test]
async fn a_cancellation_reaches_a_hook() {
    let plane = Plane::new().await;
    let running = plane.signal("running");
    plane.hook("pre-apply", &format!("touch {}; sleep 600.3; echo slept", running.display()));
    plane.hook("post-apply", "echo behind");
    let agent = RunningAgent::start(plane.hooked("a")).await;
    let run = plane.run("", "echo applied").await;
    appears(&running).await;
    runs::cancel(&plane.test.app, &run.id).await.unwrap();
    let run = plane.until(&run, RunState::Canceled).await;
    let log = plane.log(run.apply_id.as_str()).await;
    assert!(["slept", "applied", "behind"].iter().all(|word| !log.contains(word)), "{log}");
    agent.drain().await.unwrap();
    assert_clean(&plane.config("a").data);
}

#[tokio::test]
async fn a_cancelled_apply_has_its_hook_behind_it_all_the_same() {
    let plane = Plane::new().await;
    let running = plane.signal("running");
    plane.hook("post-apply", "echo \"told: behind $SCALR_TERRAFORM_EXIT_CODE\"");
    let agent = RunningAgent::start(plane.hooked("a")).await;
    let script = format!("trap 'kill $!; exit 7' INT; touch {}; sleep 600.4 & wait $!\n", running.display());
    let run = plane.run("", &script).await;
    appears(&running).await;
    runs::cancel(&plane.test.app, &run.id).await.unwrap();
    let run = plane.until(&run, RunState::Canceled).await;
    assert_eq!(told(&plane.log(run.apply_id.as_str()).await), ["behind 7"]);
    agent.drain().await.unwrap();
}

#[tokio::test]
async fn what_a_hook_adds_to_the_environment_reaches_all_later_steps_of_the_stage() {
    let plane = Plane::new().await;
    plane.hook(
        "pre-init",
        "[ \"$TFC_AGENT_ENV\" = \"$SCALR_AGENT_ENV\" ] && [ \"$TFC_AGENT_ENV\" = \"$TERRAPOOL_ENV\" ] || exit 9
         printf 'ONE=1\\nTWO<<END\\na\\nb\\nEND\\nexport TF_VAR_x=y z\\n' >>$TFC_AGENT_ENV",
    );
    plane.hook("pre-plan", "echo \"told: hook $ONE $(cat $SCALR_AGENT_ENV)\"; echo ONE=2 >>$SCALR_AGENT_ENV");
    plane.hook("post-plan", "echo \"told: behind $ONE\"");
    let agent = RunningAgent::start(plane.hooked("a")).await;
    let says = "echo \"told: engine $ONE $(echo $TWO) $TF_VAR_x ${TFC_AGENT_ENV-unset}\"";
    let run = plane.run(says, says).await;
    let run = plane.until(&run, RunState::Applied).await;
    assert_eq!(told(&plane.log(run.plan_id.as_str()).await), ["hook 1 ", "engine 2 a b y z unset", "behind 2"]);
    // The apply is another stage, maybe on another host.
    assert_eq!(told(&plane.log(run.apply_id.as_str()).await), ["engine 1 a b y z unset"]);
    agent.drain().await.unwrap();
}

#[tokio::test]
async fn a_file_of_variables_that_cannot_be_used_names_the_line_and_shows_no_value() {
    for (script, complaint) in [
        ("printf 'A=1\\ncanary-7a11\\n' >$TFC_AGENT_ENV", "line 2 is not `NAME=VALUE`"),
        ("echo TF_WORKSPACE=canary-7a11 >$TFC_AGENT_ENV", "`TF_WORKSPACE` cannot be set to this by a hook"),
        ("rm $TFC_AGENT_ENV; mkfifo $TFC_AGENT_ENV; echo canary-7a11 >/dev/null", "not a regular file"),
    ] {
        let plane = Plane::new().await;
        plane.hook("pre-plan", script);
        let agent = RunningAgent::start(plane.hooked("a")).await;
        let run = plane.run("echo planned", "").await;
        let run = plane.until(&run, RunState::Errored).await;
        assert_eq!(run.error_code.as_deref(), Some(reason::HOOK_FAILED));
        let message = run.error_message.unwrap();
        assert!(message.contains("the hook `pre-plan`") && message.contains(complaint), "{message}");
        let log = plane.log(run.plan_id.as_str()).await;
        assert!(log.contains(complaint) && !log.contains("planned"), "{log}");
        assert!(!log.contains("canary") && !message.contains("canary"), "{log}");
        agent.drain().await.unwrap();
    }
}

#[tokio::test]
async fn a_hook_that_cannot_be_started_says_why() {
    let plane = Plane::new().await;
    plane.hook("pre-plan", "");
    let path = plane.signal("hooks/pre-plan");
    std::fs::write(&path, "#!/nowhere/interpreter\n").unwrap();
    let agent = RunningAgent::start(plane.hooked("a")).await;
    let run = plane.run("", "").await;
    let run = plane.until(&run, RunState::Errored).await;
    assert_eq!(run.error_code.as_deref(), Some(reason::HOOK_FAILED));
    assert!(run.error_message.unwrap().contains("the program that its first line names is not in the image"));
    agent.drain().await.unwrap();
}

#[tokio::test]
async fn a_hook_outlives_its_agent_and_runs_once() {
    let plane = Plane::new().await;
    let (running, go) = (plane.signal("running"), plane.signal("go"));
    plane.hook(
        "pre-apply",
        &format!(
            "echo once >>{0}; echo told: before; while [ ! -e {1} ]; do sleep 0.02; done; echo told: after; echo A=1 >$TFC_AGENT_ENV",
            running.display(),
            go.display()
        ),
    );
    let agent = RunningAgent::start(plane.hooked("a")).await;
    let run = plane.run("", "echo told: apply $A").await;
    appears(&running).await;
    let config = agent.crash().await;
    let again = RunningAgent::start(config).await;
    std::fs::write(&go, "").unwrap();
    let run = plane.until(&run, RunState::Applied).await;
    assert_eq!(told(&plane.log(run.apply_id.as_str()).await), ["before", "after", "apply 1"]);
    assert_eq!(std::fs::read_to_string(&running).unwrap(), "once\n");
    again.drain().await.unwrap();
    assert_clean(&plane.config("a").data);
}

#[tokio::test]
async fn what_a_hook_left_running_does_not_hold_the_stage_up_and_is_heard() {
    let plane = Plane::new().await;
    let (go, over) = (plane.signal("go"), plane.signal("over"));
    plane.hook(
        "pre-plan",
        &format!(
            "(while [ ! -e {} ]; do sleep 0.02; done; echo told: from behind; touch {}; exec sleep 600.5) &",
            go.display(),
            over.display()
        ),
    );
    let agent = RunningAgent::start(plane.hooked("a")).await;
    let script = format!("touch {}; while [ ! -e {} ]; do sleep 0.02; done", go.display(), over.display());
    let run = plane.run(&script, "").await;
    let run = plane.until(&run, RunState::Applied).await;
    assert_eq!(told(&plane.log(run.plan_id.as_str()).await), ["from behind"]);
    eventually("the end of what the hook left", async || crate::support::jobs::processes("sleep 600.5").is_empty())
        .await;
    agent.drain().await.unwrap();
}

#[tokio::test]
async fn a_large_output_of_a_hook_arrives_whole() {
    let plane = Plane::new().await;
    plane.hook("pre-plan", "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); echo \"told: line $i of a hook\"; done");
    let agent = RunningAgent::start(plane.hooked("a")).await;
    let run = plane.run("", "").await;
    let run = plane.until(&run, RunState::Applied).await;
    let log = plane.log(run.plan_id.as_str()).await;
    let expected: Vec<String> = (1..=20000).map(|i| format!("line {i} of a hook")).collect();
    assert!(told(&log) == expected, "{} lines", told(&log).len());
    agent.drain().await.unwrap();
}

#[tokio::test]
async fn a_hook_knows_the_run_and_no_token() {
    let plane = Plane::new().await;
    plane.hook("pre-plan", "env | sed 's/^/told: /'");
    let agent = RunningAgent::start(plane.hooked("a")).await;
    let run = plane.run("", "").await;
    let run = plane.until(&run, RunState::Applied).await;
    let log = plane.log(run.plan_id.as_str()).await;
    let env = told(&log);
    let url = &plane.url;
    for wanted in [
        format!("SCALR_HOSTNAME={}:{}", url.host_str().unwrap(), url.port().unwrap()),
        format!("SCALR_ACCOUNT_ID={}", plane.test.account),
        format!("TFC_RUN_ID={}", run.id),
        format!("SCALR_WORKSPACE_ID={}", plane.fixture.workspace.id),
        "SCALR_TERRAFORM_OPERATION=plan".to_owned(),
    ] {
        assert!(env.contains(&wanted.as_str()), "no {wanted} in {env:?}");
    }
    assert!(!env.iter().any(|line| line.contains("TOKEN") || line.contains(&plane.fixture.pool_token)), "{env:?}");
    agent.drain().await.unwrap();
}

#[tokio::test]
async fn hooks_run_in_pods_too_whoever_the_users_are() {
    for users in [SAME, Users { agent: 65_532, run: 1000 }, Users { agent: 0, run: 1000 }] {
        let plane = Plane::new().await;
        plane.hook(
            "pre-plan",
            "echo \"told: hook of $(id -u)\"; echo A=1 >$TFC_AGENT_ENV; echo x >>\"$0\" || echo told: kept",
        );
        let hooks = plane.signal("hooks").display().to_string();
        let run = plane.run("echo \"told: $A\"", "").await;
        let mut pod = Pod::start_with(&plane, "plan", users, &["--hooks-dir", &hooks]).await;
        plane.until(&run, RunState::ApplyQueued).await;
        let log = plane.log(run.plan_id.as_str()).await;
        let first = format!("hook of {}", pod.run_user());
        assert_eq!(told(&log)[0], first, "{log}");
        assert_eq!(told(&log).last(), Some(&"1"), "{log}");
        pod.succeeds(&plane).await;
    }
}

#[tokio::test]
async fn an_agent_without_its_hooks_directory_does_not_start() {
    let plane = Plane::new().await;
    let (agent, _ready) = RunningAgent::launch(plane.hooked("a"));
    let error = agent.end().await.unwrap_err();
    assert!(error.to_string().contains("hooks cannot be read"), "{error}");
}
