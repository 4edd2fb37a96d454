//! News of pools: the held call wakes at each kind of change, and cursors that say nothing get everything.

use std::{collections::BTreeSet, time::Duration};

use axum::{body::Body, http::Method};
use serde_json::{Value, json};
use terrapool::{
    client::iacp::{ControlPlane, Error},
    http,
    ids::PoolId,
    server::domain::{agents, model::RunOptions, queue, runs},
};

use crate::support::{
    app::{ADMIN_TOKEN, Fixture, TestApp},
    served::Served,
    sim_agent::SimAgent,
};

const API: &str = "/api/iacp/v3";

/// Longer than anything takes, shorter than an answer without news is held.
const SOON: Duration = Duration::from_secs(18);
const HELD: Duration = Duration::from_secs(25);

fn control_plane(served: &Served) -> ControlPlane {
    let base = format!("http://{}", served.access.host).parse().unwrap();
    ControlPlane::new(base, ADMIN_TOKEN.into(), http::client(None).unwrap())
}

struct Watch {
    control_plane: ControlPlane,
    cursor: String,
}

impl Watch {
    async fn start(served: &Served) -> Self {
        let control_plane = control_plane(served);
        let first = control_plane.pool_changes(None, Duration::ZERO).await.unwrap();
        assert_eq!(first.pools, None, "without a cursor everything may have changed");
        Self { control_plane, cursor: first.cursor }
    }

    /// Reads until nothing is new.
    async fn catch_up(&mut self) {
        loop {
            let news = self.control_plane.pool_changes(Some(&self.cursor), Duration::ZERO).await.unwrap();
            self.cursor = news.cursor;
            if news.pools.unwrap().is_empty() {
                return;
            }
        }
    }

    /// Does something while a call is held: it must be answered then, with the pool.
    async fn expect<T>(&mut self, pool: &PoolId, what: &str, action: impl Future<Output = T>) -> T {
        self.catch_up().await;
        let (control_plane, cursor) = (self.control_plane.clone(), self.cursor.clone());
        let held = tokio::spawn(async move { control_plane.pool_changes(Some(&cursor), HELD).await });
        // Whether the call is held before or comes after: the cursor makes no difference between the two.
        tokio::time::sleep(Duration::from_millis(20)).await;
        let result = action.await;
        let news = tokio::time::timeout(SOON, held).await.unwrap_or_else(|_| panic!("not told at once: {what}"));
        let news = news.unwrap().unwrap();
        assert_eq!(news.pools.as_deref(), Some(std::slice::from_ref(pool)), "{what}");
        self.cursor = news.cursor;
        result
    }
}

async fn report(agent: &SimAgent<'_>, status: &str, draining: bool, error: Value) {
    let body = json!({"status": status, "error_message": error, "draining": draining, "jobs": [], "known": [],
        "wait_ms": 0});
    agent.call(Method::POST, "heartbeat", None, Body::from(body.to_string())).await.expect(200);
}

async fn send(test: &TestApp, method: Method, path: &str, body: Value) -> Value {
    let answer = test.request(method, &format!("{API}{path}"), &body).await;
    assert!(answer.status.is_success(), "{path}: {} {}", answer.status, String::from_utf8_lossy(&answer.body));
    answer.json()
}

#[tokio::test]
async fn the_held_call_wakes_at_every_kind_of_change() {
    let served = Served::new().await;
    let (test, fixture) = (&served.test, served.test.fixture().await);
    let Fixture { pool, workspace, configuration, pool_token, .. } = &fixture;
    let mut watch = Watch::start(&served).await;
    let new_run = || test.run(&workspace.id, configuration, RunOptions::default());

    let agent = watch.expect(&pool.id, "registered", SimAgent::register(test, pool_token, "a")).await;
    let run = watch.expect(&pool.id, "queued", new_run()).await;
    let job = watch.expect(&pool.id, "claimed", agent.claim()).await.unwrap();
    watch.expect(&pool.id, "busy", report(&agent, "busy", false, Value::Null)).await;
    watch.expect(&pool.id, "ended", agent.finish_plan(&job)).await;
    runs::discard(&test.app, &run.id).await.unwrap();
    watch.expect(&pool.id, "errored", report(&agent, "errored", false, json!("no disk"))).await;
    watch.expect(&pool.id, "another error", report(&agent, "errored", false, json!("no memory"))).await;
    watch.expect(&pool.id, "draining", report(&agent, "idle", true, Value::Null)).await;
    watch.expect(&pool.id, "not draining", report(&agent, "idle", false, Value::Null)).await;

    let run = new_run().await;
    agent.claim().await.unwrap();
    watch.expect(&pool.id, "silent", async { test.advance(31) }).await;
    watch.expect(&pool.id, "heard of again", report(&agent, "idle", false, Value::Null)).await;
    queue::expire(&test.app).await.unwrap();
    assert_eq!(test.reread(&run).await.status.as_str(), "plan_queued", "the lost plan is planned again");
    let id = &agent.registered.agent_id;
    let operator = control_plane(&served);
    watch.expect(&pool.id, "cordoned", operator.cordon(id)).await.unwrap();
    watch.expect(&pool.id, "uncordoned", operator.uncordon(id)).await.unwrap();
    watch.expect(&pool.id, "cancelled in the queue", runs::cancel(&test.app, &run.id)).await.unwrap();

    let path = format!("/agent-pools/{}", pool.id);
    let rename = json!({"data": {"type": "agent-pools", "attributes": {"name": "renamed"}}});
    watch.expect(&pool.id, "renamed", send(test, Method::PATCH, &path, rename)).await;
    let token = json!({"data": {"type": "access-tokens", "attributes": {}}});
    let tokens = format!("{path}/access-tokens");
    let made = watch.expect(&pool.id, "a token more", send(test, Method::POST, &tokens, token.clone())).await;
    let made = format!("/access-tokens/{}", made["data"]["id"].as_str().unwrap());
    watch.expect(&pool.id, "token renamed", send(test, Method::PATCH, &made, token)).await;
    watch.expect(&pool.id, "token revoked", send(test, Method::DELETE, &made, Value::Null)).await;
    let place = format!("/workspaces/{}", workspace.id);
    let link = |to: Value| json!({"data": {"type": "workspaces", "relationships": {"agent-pool": {"data": to}}}});
    watch.expect(&pool.id, "unlinked", send(test, Method::PATCH, &place, link(Value::Null))).await;
    let to = link(json!({"type": "agent-pools", "id": pool.id}));
    watch.expect(&pool.id, "linked", send(test, Method::PATCH, &place, to)).await;
    watch.expect(&pool.id, "workspace deleted", send(test, Method::DELETE, &place, Value::Null)).await;

    let leave = agent.call(Method::POST, "deregister", None, Body::empty());
    watch.expect(&pool.id, "deregistered", leave).await.expect(204);
    SimAgent::register(test, pool_token, "b").await;
    test.advance(5 * 3600);
    watch.expect(&pool.id, "silent before it is forgotten", async {}).await;
    watch.expect(&pool.id, "forgotten", agents::forget_gone(&test.app)).await.unwrap();
    watch.expect(&pool.id, "pool deleted", send(test, Method::DELETE, &path, Value::Null)).await;
    served.stop().await;
}

#[tokio::test]
async fn a_run_that_moves_to_another_pool_is_news_of_both() {
    let served = Served::new().await;
    let (test, fixture) = (&served.test, served.test.fixture().await);
    let control_plane = control_plane(&served);
    test.run(&fixture.workspace.id, &fixture.configuration, RunOptions::default()).await;
    let other = json!({"data": {"type": "agent-pools", "attributes": {"name": "other"}}});
    let other = send(test, Method::POST, "/agent-pools", other).await;
    let other: PoolId = other["data"]["id"].as_str().unwrap().parse().unwrap();
    let cursor = control_plane.pool_changes(None, Duration::ZERO).await.unwrap().cursor;
    control_plane.link_workspace(&fixture.workspace.id, Some(&other)).await.unwrap();
    let mut news = control_plane.pool_changes(Some(&cursor), Duration::ZERO).await.unwrap().pools.unwrap();
    news.sort();
    let mut both = vec![fixture.pool.id.clone(), other.clone()];
    both.sort();
    assert_eq!(news, both);
    let demand = control_plane.pool_demand(&other).await.unwrap();
    assert_eq!((demand.queued.len(), demand.linked_workspaces), (1, 1), "{demand:?}");
    assert_eq!(control_plane.pool_demand(&fixture.pool.id).await.unwrap().queued, []);
    served.stop().await;
}

#[tokio::test]
async fn workspaces_that_are_linked_one_after_the_other_are_told_of_together() {
    const LINKS: usize = 20;
    let served = Served::new().await;
    let (test, fixture) = (&served.test, served.test.fixture().await);
    let control_plane = control_plane(&served);
    let (mut pools, mut workspaces) = (BTreeSet::new(), Vec::new());
    for number in 0..LINKS {
        let pool = json!({"data": {"type": "agent-pools", "attributes": {"name": format!("pool-{number}")}}});
        let pool = send(test, Method::POST, "/agent-pools", pool).await;
        let pool: PoolId = pool["data"]["id"].as_str().unwrap().parse().unwrap();
        let workspace = test.workspace(&fixture.environment.id, &format!("workspace-{number}"), None).await;
        workspaces.push((workspace.id, pool.clone()));
        pools.insert(pool);
    }
    // That the pools are new is news as well, and told by now.
    let mut cursor = control_plane.pool_changes(None, Duration::ZERO).await.unwrap().cursor;
    while test.app.changes.due(&test.account).is_some() {
        cursor = control_plane.pool_changes(Some(&cursor), HELD).await.unwrap().cursor;
    }
    let watcher = {
        let control_plane = control_plane.clone();
        async move {
            let mut answers = 0;
            while !pools.is_empty() {
                let news = control_plane.pool_changes(Some(&cursor), HELD).await.unwrap();
                answers += 1;
                cursor = news.cursor;
                news.pools.unwrap().iter().for_each(|pool| drop(pools.take(pool)));
            }
            answers
        }
    };
    let links = async {
        for (workspace, pool) in &workspaces {
            control_plane.link_workspace(workspace, Some(pool)).await.unwrap();
        }
    };
    let (answers, ()) = tokio::join!(watcher, links);
    assert!(answers <= LINKS / 4, "{answers} answers about {LINKS} links");
    served.stop().await;
}

#[tokio::test]
async fn without_news_the_call_is_held_and_answers_with_none() {
    let served = Served::new().await;
    let fixture = served.test.fixture().await;
    let control_plane = control_plane(&served);
    let cursor = control_plane.pool_changes(None, HELD).await.unwrap().cursor;
    let quiet = control_plane.pool_changes(Some(&cursor), Duration::from_millis(50)).await.unwrap();
    assert_eq!((quiet.pools, &quiet.cursor), (Some(vec![]), &cursor));
    // A heartbeat that says nothing new is no news.
    let agent = SimAgent::register(&served.test, &fixture.pool_token, "a").await;
    let cursor = control_plane.pool_changes(Some(&cursor), HELD).await.unwrap().cursor;
    for _ in 0..3 {
        report(&agent, "idle", false, Value::Null).await;
    }
    let quiet = control_plane.pool_changes(Some(&cursor), Duration::ZERO).await.unwrap();
    assert_eq!(quiet.pools, Some(vec![]));
    served.stop().await;
}

#[tokio::test]
async fn a_cursor_of_an_earlier_life_of_the_server_gets_everything() {
    let mut test = TestApp::new().await;
    let ask = async |test: &TestApp, cursor: &str| {
        let path = format!("{API}/agent-pools/changes?wait-ms=20000&since={cursor}");
        test.get(&path).await.expect(200).json()
    };
    let first = ask(&test, "").await;
    let cursor = first["cursor"].as_str().unwrap().to_owned();
    test.reopen().await;
    for stale in [cursor.as_str(), "nonsense", ""] {
        let answer = ask(&test, stale).await;
        assert!(answer["pools"].is_null() && answer["cursor"] != cursor, "{stale}: {answer}");
    }
    test.get(&format!("{API}/agent-pools/changes?wait-ms=soon")).await.expect(400);
}

#[tokio::test]
async fn only_users_hear_of_changes_and_a_stopping_server_lets_go() {
    let served = Served::new().await;
    let fixture = served.test.fixture().await;
    let base = format!("http://{}", served.access.host).parse().unwrap();
    let pool_holder = ControlPlane::new(base, fixture.pool_token.clone().into(), http::client(None).unwrap());
    let refused = pool_holder.pool_changes(None, Duration::ZERO).await.unwrap_err();
    assert!(matches!(refused, Error::Unauthorized { .. }), "{refused:?}");
    let control_plane = control_plane(&served);
    let cursor = control_plane.pool_changes(None, Duration::ZERO).await.unwrap().cursor;
    let held = tokio::spawn({
        let control_plane = control_plane.clone();
        async move { control_plane.pool_changes(Some(&cursor), HELD).await }
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    tokio::time::timeout(SOON, served.stop()).await.expect("a held call keeps the server from stopping");
    drop(held.await);
}

#[tokio::test]
async fn news_of_thousands_of_pools_are_bounded_and_told_in_one_answer() {
    let test = TestApp::new().await;
    let pools = 20_000;
    let start = test.app.changes.since(&test.account, None).cursor;
    for number in 0..2_000 {
        test.app.changes.record(&test.account, &format!("apool-{number}").parse().unwrap());
    }
    let path = format!("{API}/agent-pools/changes?since={start}");
    assert_eq!(test.get(&path).await.expect(200).json()["pools"].as_array().unwrap().len(), 2_000);
    for number in 0..pools {
        test.app.changes.record(&test.account, &format!("apool-{number}").parse().unwrap());
    }
    // Too far behind: whoever asks looks at everything, instead of at a list of nearly everything.
    assert!(test.get(&path).await.expect(200).json()["pools"].is_null());
}
