//! Secrets that hooks declare: hidden from there on, whatever becomes of the agent.

use std::os::unix::fs::PermissionsExt;

use axum::http::Method;
use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::json;
use terrapool::api::{agent::reason, run_state::RunState};

use crate::support::agents::{Plane, RunningAgent, appears, assert_clean, eventually};

#[tokio::test]
async fn a_declared_secret_is_hidden_in_all_later_output_also_of_an_agent_that_starts_again() {
    let plane = Plane::new().await;
    // The line is written in pieces.
    plane.hook(
        "pre-plan",
        "printf '::add-'; printf 'mask::canary-'; echo b0b0; echo \"told: canary-b0b0\"
         printf 'mask LATER=canary-c1c1\\n' >$TFC_AGENT_ENV",
    );
    plane.hook("post-plan", "echo \"told: behind canary-b0b0 $LATER\" >&2; echo ::add-mask::abc; echo abc");
    let agent = RunningAgent::start(plane.hooked("a")).await;
    let (half, go) = (plane.signal("half"), plane.signal("go"));
    let encoded = STANDARD.encode("canary-b0b0");
    let script = format!(
        "echo \"told: canary-b0b0 $LATER {encoded}\"; printf 'told: canary-'; touch {}
         while [ ! -e {} ]; do sleep 0.02; done; echo \"b0b0 canary-b0b0 $LATER\"",
        half.display(),
        go.display()
    );
    let run = plane.run(&script, "echo \"told: ${LATER-unset}\"").await;
    appears(&half).await;
    eventually("what came before is shipped", async || {
        plane.log(run.plan_id.as_str()).await.contains("told: *** *** ***\n")
    })
    .await;
    let config = agent.crash().await;
    std::fs::write(&go, "").unwrap();
    let again = RunningAgent::start(config).await;
    let run = plane.until(&run, RunState::Applied).await;
    let log = plane.log(run.plan_id.as_str()).await;
    let shown = &log[log.find("Running the hook pre-plan").unwrap()..];
    let expected = "Running the hook pre-plan\ntold: ***\ntold: *** *** ***\ntold: *** *** ***\nRunning the hook post-plan\n\
                    told: behind *** ***\nA secret of fewer than 4 bytes cannot be hidden.\nabc\n\u{3}";
    assert_eq!(shown, expected);
    again.drain().await.unwrap();
    assert_clean(&plane.config("a").data);
}

#[tokio::test]
async fn a_declared_secret_is_hidden_in_what_the_run_says_of_its_failure() {
    let plane = Plane::new().await;
    plane.hook("pre-init", "echo ::add-mask::canary-d2d2; rm -r \"$PWD/canary-d2d2\"");
    let agent = RunningAgent::start(plane.hooked("a")).await;
    // The engine is not what it says: its words are quoted.
    let body = json!({"data": {"type": "vars", "attributes": {"key": "LEAK", "value": "canary-e3e3", "category": "env", "sensitive": true}}});
    let path = format!("/api/v2/workspaces/{}/vars", plane.fixture.workspace.id);
    plane.test.request(Method::POST, &path, &body).await.expect(201);
    let engine = plane.signal("engines/terraform");
    std::fs::write(
        &engine,
        "#!/bin/sh\nif [ -z \"$LEAK\" ]; then echo Terraform v1.11.4; else echo \"no: $LEAK\"; fi\n",
    )
    .unwrap();
    std::fs::set_permissions(&engine, std::fs::Permissions::from_mode(0o755)).unwrap();
    let run = plane.run("", "").await;
    let run = plane.until(&run, RunState::Errored).await;
    assert_eq!(run.error_code.as_deref(), Some(reason::ENGINE_UNAVAILABLE));
    let message = run.error_message.unwrap();
    assert!(message.contains("no: ***") && !message.contains("canary"), "{message}");
    agent.drain().await.unwrap();
}

#[tokio::test]
async fn a_hook_that_declares_what_cannot_be_hidden_fails_and_shows_nothing_more() {
    for script in [
        "i=0; while [ $i -le 200 ]; do i=$((i+1)); echo ::add-mask::canary-$i; done; echo canary-201",
        "printf '::add-mask::canary-\\377\\n'; echo canary-255",
        "mkdir \"${SCALR_RUN_CONTENT_ROOT%/config}/masks\"; echo ::add-mask::canary-1; echo canary-1",
    ] {
        let plane = Plane::new().await;
        plane.hook("pre-plan", script);
        let agent = RunningAgent::start(plane.hooked("a")).await;
        let run = plane.run("echo planned", "").await;
        let run = plane.until(&run, RunState::Errored).await;
        let log = plane.log(run.plan_id.as_str()).await;
        assert!(!log.contains("canary") && !log.contains("planned"), "{script}: {log}");
        let message = run.error_message.unwrap();
        assert!(!message.contains("canary"), "{message}");
        agent.drain().await.unwrap();
        assert_clean(&plane.config("a").data);
    }
}
