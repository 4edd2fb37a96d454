//! A pool's demand, cordoned agents, and jobs that can never run.

use std::time::Duration;

use axum::{body::Body, http::Method};
use serde_json::{Value, json};
use terrapool::{
    api::{
        agent::AgentStatus,
        iacp::{
            AgentPoolAttributes,
            demand::{DemandAgent, PoolDemand},
        },
        run_state::RunState,
    },
    client::iacp::{ControlPlane, Error},
    http,
    ids::{AgentId, PoolId, WorkspaceId},
    server::domain::{logs, model::RunOptions},
};

use crate::support::{
    app::{ADMIN_TOKEN, TestApp},
    poll::eventually,
    served::Served,
    sim_agent::{SimAgent, call},
};

const API: &str = "/api/iacp/v3";
const PATIENCE: Duration = Duration::from_secs(20);

fn control_plane(served: &Served) -> ControlPlane {
    let base = format!("http://{}", served.access.host).parse().unwrap();
    ControlPlane::new(base, ADMIN_TOKEN.into(), http::client(None).unwrap())
}

async fn demand(test: &TestApp, pool: &PoolId) -> PoolDemand {
    let answer = test.get(&format!("{API}/agent-pools/{pool}/demand")).await.expect(200);
    serde_json::from_slice(&answer.body).unwrap()
}

async fn act(test: &TestApp, agent: &AgentId, action: &str) -> DemandAgent {
    let path = format!("{API}/agents/{agent}/actions/{action}");
    let answer = test.request(Method::POST, &path, &Value::Null).await.expect(200);
    serde_json::from_slice(&answer.body).unwrap()
}

async fn patch(test: &TestApp, kind: &str, id: &str, attributes: Value) {
    let body = json!({"data": {"type": kind, "id": id, "attributes": attributes}});
    test.request(Method::PATCH, &format!("{API}/{kind}/{id}"), &body).await.expect(200);
}

async fn log(test: &TestApp, stage: &str) -> String {
    let bytes = logs::read(&test.app, stage, 0, 1 << 20, Duration::ZERO).await.unwrap();
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[tokio::test]
async fn the_demand_tells_what_waits_and_who_is_there() {
    let test = TestApp::new().await;
    let fixture = test.fixture().await;
    let pool = &fixture.pool.id;
    let empty = demand(&test, pool).await;
    assert_eq!((empty.queued.len(), empty.agents.len(), empty.registrations, empty.linked_workspaces), (0, 0, 0, 1));

    let second = test.workspace(&fixture.environment.id, "second", Some(pool)).await;
    let configuration = test.configuration(&second.id, false).await;
    test.run(&fixture.workspace.id, &fixture.configuration, RunOptions::default()).await;
    test.advance(7);
    test.run(&second.id, &configuration, RunOptions::default()).await;
    let waiting = demand(&test, pool).await;
    let [group] = waiting.queued.as_slice() else { panic!("{waiting:?}") };
    assert_eq!((group.image.as_deref(), group.run_as_root, group.jobs, group.oldest_seconds), (None, false, 2, 7));
    patch(&test, "agent-pools", pool.as_str(), json!({"run-settings": {"image": "r/x:1", "run-as-root": true}})).await;
    let waiting = demand(&test, pool).await;
    assert_eq!((waiting.queued[0].image.as_deref(), waiting.queued[0].run_as_root), (Some("r/x:1"), true));

    let agent = SimAgent::register(&test, &fixture.pool_token, "a").await;
    SimAgent::register(&test, &fixture.pool_token, "b").await;
    agent.claim().await.unwrap();
    test.advance(3);
    agent.heartbeat(&[]).await;
    let busy = demand(&test, pool).await;
    assert_eq!((busy.queued[0].jobs, busy.registrations, busy.linked_workspaces), (1, 2, 2));
    let [a, b] = busy.agents.as_slice() else { panic!("{busy:?}") };
    assert_eq!(
        (a.name.as_str(), a.jobs, a.slots, a.seen_seconds_ago, a.cordoned, a.draining),
        ("a", 1, 5, 0, false, false)
    );
    assert_eq!((b.name.as_str(), b.jobs, b.seen_seconds_ago, b.status), ("b", 0, 3, AgentStatus::Idle));
    test.advance(30);
    let silent = demand(&test, pool).await;
    assert!(silent.agents.iter().all(|agent| agent.status == AgentStatus::Offline), "{silent:?}");
}

#[tokio::test]
async fn registrations_count_new_agents_and_never_go_back() {
    let test = TestApp::new().await;
    let fixture = test.fixture().await;
    let registrations = async || demand(&test, &fixture.pool.id).await.registrations;
    SimAgent::register(&test, &fixture.pool_token, "a").await;
    assert_eq!(registrations().await, 1);
    // The same instance comes back.
    let agent = SimAgent::register(&test, &fixture.pool_token, "a").await;
    assert_eq!(registrations().await, 1);
    agent.call(Method::POST, "deregister", None, Body::empty()).await.expect(204);
    assert_eq!(registrations().await, 1);
    SimAgent::register(&test, &fixture.pool_token, "a").await;
    assert_eq!(registrations().await, 2);
    // Another instance takes the name of one that is gone.
    test.advance(60);
    let mut other = crate::support::sim_agent::registration("a");
    other.instance = "another-instance".to_owned();
    let body = Body::from(serde_json::to_vec(&other).unwrap());
    call(&test, &fixture.pool_token, Method::POST, "register", None, body).await.expect(200);
    assert_eq!(registrations().await, 3);
}

#[tokio::test]
async fn a_cordoned_agent_gets_nothing_until_it_is_uncordoned_and_hears_of_both_at_once() {
    let served = Served::new().await;
    let (test, fixture) = (&served.test, served.test.fixture().await);
    let agent = SimAgent::register(test, &fixture.pool_token, "a").await;
    let id = &agent.registered.agent_id;
    let held = |cordoned: bool| {
        let body = json!({"status": "idle", "draining": false, "cordoned": cordoned, "jobs": [], "known": [],
            "wait_ms": 25000});
        agent.call(Method::POST, "heartbeat", None, Body::from(body.to_string()))
    };
    let cordon = async {
        tokio::task::yield_now().await;
        control_plane(&served).cordon(id).await.unwrap()
    };
    let (told, cordoned) = tokio::time::timeout(PATIENCE, async { tokio::join!(held(false), cordon) }).await.unwrap();
    assert_eq!(told.expect(200).json()["drain"], true);
    assert_eq!((cordoned.cordoned, cordoned.jobs, cordoned.status), (true, 0, AgentStatus::Idle));
    assert!(control_plane(&served).cordon(id).await.unwrap().cordoned, "the same again is fine");

    test.run(&fixture.workspace.id, &fixture.configuration, RunOptions::default()).await;
    assert!(agent.claim().await.is_none());
    // Registering again is no way out of it.
    let again = SimAgent::register(test, &fixture.pool_token, "a").await;
    assert_eq!(again.registered.agent_id, *id);
    assert!(again.claim().await.is_none());
    assert!(again.heartbeat(&[]).await.drain);

    // A claim that is held gets the job as soon as it may.
    let claim = json!({"claim_id": "held", "stages": ["plan"], "wait_ms": 25000}).to_string();
    let uncordon = async {
        tokio::task::yield_now().await;
        control_plane(&served).uncordon(id).await.unwrap()
    };
    let body = json!({"status": "idle", "draining": false, "cordoned": true, "jobs": [], "known": [],
        "wait_ms": 25000});
    let (claimed, told, free) = tokio::time::timeout(PATIENCE, async {
        tokio::join!(
            again.call(Method::POST, "claim", None, Body::from(claim)),
            again.call(Method::POST, "heartbeat", None, Body::from(body.to_string())),
            uncordon
        )
    })
    .await
    .unwrap();
    claimed.expect(200);
    assert_eq!(told.expect(200).json()["drain"], false);
    assert!(!free.cordoned);
    let unknown = control_plane(&served).cordon(&"agent-none".parse().unwrap()).await.unwrap_err();
    assert!(matches!(unknown, Error::NotFound { .. }), "{unknown:?}");
    served.stop().await;
}

/// As an operator asks that looks at all its objects: what is asked together comes in a few answers, and each to its own.
#[tokio::test]
async fn whoever_asks_about_many_things_at_once_hears_of_each_what_is_its_own() {
    let served = Served::new().await;
    let fixture = served.test.fixture().await;
    let cp = control_plane(&served);
    let environment = &fixture.workspace.environment_id;
    let names: Vec<String> = (0..120).map(|number| format!("w-{number}")).collect();
    let cp = &cp;
    let made = names.iter().map(|name| async move {
        let attributes = AgentPoolAttributes {
            name: Some(format!("p, {name}")),
            external_id: Some(format!("uid-{name}")),
            ..AgentPoolAttributes::default()
        };
        let pool = cp.create_pool(&attributes, None, &[]).await.unwrap();
        let workspace = cp.create_workspace(environment, name).await.unwrap();
        cp.link_workspace(&workspace.id, Some(&pool.id)).await.unwrap();
        (pool.id, workspace.id)
    });
    let made = futures::future::join_all(made).await;

    let asked = names.iter().zip(&made).map(|(name, (pool, workspace))| async move {
        let (external_id, no_environment) = (format!("uid-{name}"), format!("no, {name}"));
        let (found_pool, found_workspace, demand, named) = tokio::join!(
            cp.pool_by_external_id(&external_id),
            cp.workspace_by_name(environment, name),
            cp.pool_demand(pool),
            cp.environment_by_name(&no_environment),
        );
        assert_eq!(&found_pool.unwrap().unwrap().id, pool, "{name}");
        assert_eq!(&found_workspace.unwrap().unwrap().id, workspace, "{name}");
        assert_eq!(demand.unwrap().linked_workspaces, 1, "{name}");
        assert_eq!(named.unwrap(), None, "{name}");
    });
    futures::future::join_all(asked).await;

    let (nothing, no_pool, no_demand) =
        tokio::join!(cp.workspace_by_name(environment, "a,b"), cp.pool_by_external_id("uid-none"), async {
            cp.pool_demand(&"apool-none".parse().unwrap()).await
        },);
    assert_eq!((nothing.unwrap(), no_pool.unwrap()), (None, None));
    assert!(matches!(no_demand, Err(Error::NotFound { .. })), "{no_demand:?}");
    served.stop().await;
}

/// The agent's claim and its cordon at the same time, again and again: the cordon's answer is the truth for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_cordon_and_a_claim_never_both_win() {
    let test = TestApp::new().await;
    let fixture = test.fixture().await;
    let agent = SimAgent::register(&test, &fixture.pool_token, "a").await;
    let id = &agent.registered.agent_id;
    let (mut empty, mut busy) = (0, 0);
    for round in 0..120_u32 {
        let claim = json!({"claim_id": format!("claim-{round}"), "stages": ["plan"], "wait_ms": 60}).to_string();
        let claim = agent.call(Method::POST, "claim", None, Body::from(claim));
        let run = async {
            for _ in 0..round % 7 {
                tokio::task::yield_now().await;
            }
            test.run(&fixture.workspace.id, &fixture.configuration, RunOptions::default()).await
        };
        let cordon = async {
            tokio::time::sleep(Duration::from_micros(u64::from(round % 12) * 300)).await;
            act(&test, id, "cordon").await
        };
        let (claimed, run, cordoned) = tokio::join!(claim, run, cordon);
        assert!(cordoned.cordoned);
        let claimed = claimed.status.as_u16() == 200;
        if cordoned.jobs == 0 {
            empty += 1;
            assert!(!claimed, "round {round}: a job for an agent that was cordoned without one");
            assert_eq!(test.reread(&run).await.status, RunState::PlanQueued, "round {round}");
            assert!(agent.claim().await.is_none(), "round {round}");
        } else {
            busy += 1;
            assert!(claimed, "round {round}: cordoned with a job that it did not get");
        }
        act(&test, id, "uncordon").await;
        let again = agent.claim_as(&format!("claim-{round}")).await.unwrap();
        agent
            .finish(&again, &crate::support::sim_agent::result(terrapool::api::agent::Outcome::Finished))
            .await
            .expect(204);
    }
    assert_eq!(empty + busy, 120);
    assert!(empty > 0 && busy > 0, "only one order was tried: {empty} empty, {busy} busy");
}

#[tokio::test]
async fn a_draining_agent_gets_nothing_whatever_it_asked_before() {
    let test = TestApp::new().await;
    let fixture = test.fixture().await;
    let agent = SimAgent::register(&test, &fixture.pool_token, "a").await;
    let claim = |stages: Value, wait: u64| json!({"claim_id": "one", "stages": stages, "wait_ms": wait}).to_string();
    // A call that is held for an agent that has gone on: its last question was answered with "nothing".
    let old = tokio::spawn({
        let (router, token) = (test.router.clone(), agent.registered.agent_token.clone());
        let body = claim(json!(["plan", "apply"]), 25_000);
        async move {
            let request = axum::http::Request::post("/api/agent/v1/claim")
                .header("terrapool-agent-protocol", "1")
                .header("authorization", format!("Bearer {token}"))
                .header("content-type", "application/json");
            tower::ServiceExt::oneshot(router, request.body(Body::from(body)).unwrap()).await.unwrap().status()
        }
    });
    eventually("the claim is held", PATIENCE, async || if test.app.held.count() == 1 { Ok(()) } else { Err(()) }).await;
    agent.call(Method::POST, "claim", None, Body::from(claim(json!([]), 0))).await.expect(204);
    let run = test.run(&fixture.workspace.id, &fixture.configuration, RunOptions::default()).await;
    let status = tokio::time::timeout(PATIENCE, old).await.expect("the old call is held on").unwrap();
    assert_eq!(status.as_u16(), 204);
    assert_eq!(test.reread(&run).await.status, RunState::PlanQueued);

    let drains = json!({"status": "idle", "draining": true, "jobs": [], "known": [], "wait_ms": 0}).to_string();
    agent.call(Method::POST, "heartbeat", None, Body::from(drains)).await.expect(200);
    assert!(agent.claim().await.is_none(), "it said that it takes no more");
    agent.heartbeat(&[]).await;
    assert!(agent.claim().await.is_some(), "and that it does again");
}

#[tokio::test]
async fn an_agent_that_hung_up_gets_no_job() {
    let served = Served::new().await;
    let (test, fixture) = (&served.test, served.test.fixture().await);
    let gone = SimAgent::register(test, &fixture.pool_token, "gone").await;
    let url = format!("http://{}/api/agent/v1/claim", served.access.host);
    let call = http::client(None)
        .unwrap()
        .post(url)
        .bearer_auth(&gone.registered.agent_token)
        .header("terrapool-agent-protocol", "1")
        .json(&json!({"claim_id": "x", "stages": ["plan", "apply"], "wait_ms": 25000}))
        .send();
    let call = tokio::spawn(call);
    let held = async |wanted: usize| match test.app.held.count() {
        count if count == wanted => Ok(()),
        other => Err(other),
    };
    eventually("the claim is held", PATIENCE, || held(1)).await;
    call.abort();
    eventually("the claim ends with its caller", PATIENCE, || held(0)).await;
    let run = test.run(&fixture.workspace.id, &fixture.configuration, RunOptions::default()).await;
    let there = SimAgent::register(test, &fixture.pool_token, "there").await;
    assert_eq!(there.claim().await.map(|job| job.run.id), Some(run.id));
    served.stop().await;
}

/// Three workspaces: one that asks for nothing, one for an allowed image, one for one that is not.
async fn image_runs(test: &TestApp) -> (crate::support::app::Fixture, [terrapool::server::domain::model::Run; 3]) {
    let fixture = test.fixture().await;
    let settings = json!({"run-settings": {"image": "r/own:1", "allowed-images": ["r/team/*"]}});
    patch(test, "agent-pools", fixture.pool.id.as_str(), settings).await;
    let plain = test.run(&fixture.workspace.id, &fixture.configuration, RunOptions::default()).await;
    let other = async |name: &str, image: &str| {
        let workspace = test.workspace(&fixture.environment.id, name, Some(&fixture.pool.id)).await;
        ask_for(test, &workspace.id, json!(image)).await;
        let configuration = test.configuration(&workspace.id, false).await;
        test.run(&workspace.id, &configuration, RunOptions::default()).await
    };
    let team = other("team", "r/team/x:1").await;
    let stranger = other("stranger", "elsewhere/x:1").await;
    (fixture, [plain, team, stranger])
}

async fn ask_for(test: &TestApp, workspace: &WorkspaceId, image: Value) {
    patch(test, "workspaces", workspace.as_str(), json!({"run-image": image})).await;
}

#[tokio::test]
async fn a_workspace_may_ask_for_an_image_that_its_pool_allows() {
    let test = TestApp::new().await;
    let (fixture, [plain, team, stranger]) = image_runs(&test).await;
    let images = demand(&test, &fixture.pool.id).await.queued;
    let images: Vec<_> = images.iter().map(|group| (group.image.as_deref(), group.jobs)).collect();
    assert_eq!(images, [(Some("r/own:1"), 2), (Some("r/team/x:1"), 1)], "what is not allowed is nobody's to pull");

    let agent = SimAgent::register(&test, &fixture.pool_token, "a").await;
    let claim = async |id: &str, images: Value| {
        let body = json!({"claim_id": id, "stages": ["plan"], "wait_ms": 0, "images": images});
        let answer = agent.call(Method::POST, "claim", None, Body::from(body.to_string())).await;
        (answer.status.as_u16() == 200).then(|| answer.json())
    };
    assert_eq!(claim("1", json!([])).await, None);
    assert_eq!(claim("2", json!([null])).await, None, "every job here needs an image by name");
    assert_eq!(claim("3", json!(["r/none:1"])).await, None);
    let job = claim("4", json!([null, "r/team/x:1"])).await.unwrap();
    assert_eq!((job["run"]["id"].as_str(), job["image"].as_str()), (Some(team.id.as_str()), Some("r/team/x:1")));
    let job = claim("5", json!(["r/own:1"])).await.unwrap();
    assert_eq!((job["run"]["id"].as_str(), job["image"].as_str()), (Some(plain.id.as_str()), Some("r/own:1")));
    assert_eq!(claim("6", json!(["r/own:1"])).await, None);
    let ended = test.reread(&stranger).await;
    assert_eq!((ended.status, ended.error_code.as_deref()), (RunState::Errored, Some("image_not_allowed")));
    let text = log(&test, ended.plan_id.as_str()).await;
    assert!(text.contains("elsewhere/x:1") && text.contains("allowed images"), "{text}");

    let refused = json!({"data": {"type": "workspaces", "attributes": {"run-image": "not an image"}}});
    let path = format!("{API}/workspaces/{}", fixture.workspace.id);
    let refused = test.request(Method::PATCH, &path, &refused).await.expect(422).json();
    assert_eq!(refused["errors"][0]["source"]["pointer"], "/data/attributes/run-image");
    ask_for(&test, &fixture.workspace.id, json!("r/team/y:2")).await;
    assert_eq!(test.get(&path).await.expect(200).json()["data"]["attributes"]["run-image"], "r/team/y:2");
    ask_for(&test, &fixture.workspace.id, Value::Null).await;
    assert!(test.get(&path).await.expect(200).json()["data"]["attributes"]["run-image"].is_null());
}

#[tokio::test]
async fn queued_jobs_whose_image_cannot_be_pulled_fail_with_that_reason_and_no_others_do() {
    let served = Served::new().await;
    let test = &served.test;
    let (fixture, [plain, team, stranger]) = image_runs(test).await;
    let control_plane = control_plane(&served);
    let pool = &fixture.pool.id;
    let message = "the image r/team/x:1 cannot be pulled: manifest unknown. Push it, or choose another one.";
    let fail = async |image: Option<&str>| control_plane.fail_queued(pool, image, "image_unavailable", message).await;
    assert_eq!(fail(None).await.unwrap(), 0, "every job here needs an image by name");
    assert_eq!(fail(Some("r/team/x:1")).await.unwrap(), 1);
    let ended = test.reread(&team).await;
    assert_eq!((ended.status, ended.error_code.as_deref()), (RunState::Errored, Some("image_unavailable")));
    assert_eq!(ended.error_message.as_deref(), Some(message));
    let text = log(test, ended.plan_id.as_str()).await;
    assert!(text.contains("manifest unknown") && text.ends_with('\u{3}'), "{text}");
    let workspace = test.reread_workspace_of(&ended).await;
    assert_eq!(workspace.lock, terrapool::server::domain::model::Lock::Unlocked);
    for run in [&plain, &stranger] {
        assert_eq!(test.reread(run).await.status, RunState::PlanQueued);
    }
    assert_eq!(fail(Some("r/team/x:1")).await.unwrap(), 0);

    // A job that an agent has is not touched, and neither is another pool's.
    let agent = SimAgent::register(test, &fixture.pool_token, "a").await;
    let job = agent.claim().await.unwrap();
    assert_eq!(job.run.id, plain.id);
    assert_eq!(fail(Some("r/own:1")).await.unwrap(), 1, "the one that is not allowed needs nothing else");
    assert_eq!(test.reread(&plain).await.status, RunState::Planning);
    for (code, text) in [("agent_lost", "x"), ("image_unavailable", " "), ("image_unavailable", "a\u{1b}[1m")] {
        let refused = control_plane.fail_queued(pool, None, code, text).await.unwrap_err();
        assert!(matches!(refused, Error::Invalid { .. }), "{code}: {refused:?}");
    }
    let unknown = control_plane.fail_queued(&"apool-none".parse().unwrap(), None, "image_unavailable", "x").await;
    assert!(matches!(unknown, Err(Error::NotFound { .. })), "{unknown:?}");
    served.stop().await;
}
