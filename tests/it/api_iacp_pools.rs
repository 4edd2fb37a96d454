//! Agent pools, environments and links through the Scalr-compatible API: shapes, rules and exact error texts.

use axum::http::Method;
use serde_json::{Value, json};
use terrapool::{api::run_state::RunState, server::domain::model::RunOptions};

use crate::support::{
    app::{Answer, TestApp},
    sim_agent::SimAgent,
};

const API: &str = "/api/iacp/v3";

async fn call(test: &TestApp, method: Method, path: &str, body: Value) -> Answer {
    test.request(method, &format!("{API}{path}"), &body).await
}

async fn post(test: &TestApp, path: &str, body: Value) -> Answer {
    call(test, Method::POST, path, body).await
}

async fn patch(test: &TestApp, path: &str, body: Value) -> Answer {
    call(test, Method::PATCH, path, body).await
}

async fn get(test: &TestApp, path: &str) -> Value {
    test.get(&format!("{API}{path}")).await.expect(200).json()
}

#[expect(clippy::needless_pass_by_value, reason = "calls read like the document")]
fn pool(attributes: Value, relationships: Value) -> Value {
    json!({"data": {"type": "agent-pools", "attributes": attributes, "relationships": relationships}})
}

fn many(kind: &str, ids: &[&str]) -> Value {
    let data: Vec<Value> = ids.iter().map(|id| json!({"type": kind, "id": id})).collect();
    json!({ "data": data })
}

fn one(kind: &str, id: &str) -> Value {
    json!({"data": {"type": kind, "id": id}})
}

fn id(document: &Value) -> String {
    document["data"]["id"].as_str().unwrap().to_owned()
}

fn linked(document: &Value, relation: &str) -> Vec<String> {
    let data = document["data"]["relationships"][relation]["data"].as_array().unwrap().clone();
    data.iter().map(|linkage| linkage["id"].as_str().unwrap().to_owned()).collect()
}

async fn environment(test: &TestApp, name: &str) -> String {
    let body = json!({"data": {"type": "environments", "attributes": {"name": name},
        "relationships": {"account": one("accounts", test.account.as_str())}}});
    id(&post(test, "/environments", body).await.expect(201).json())
}

async fn workspace(test: &TestApp, environment: &str, name: &str) -> String {
    let body = json!({"data": {"type": "workspaces", "attributes": {"name": name},
        "relationships": {"environment": one("environments", environment)}}});
    id(&post(test, "/workspaces", body).await.expect(201).json())
}

async fn create(test: &TestApp, attributes: Value, relationships: Value) -> String {
    id(&post(test, "/agent-pools", pool(attributes, relationships)).await.expect(201).json())
}

fn link(pool: &Value) -> Value {
    json!({"data": {"type": "workspaces", "relationships": {"agent-pool": {"data": pool}}}})
}

#[track_caller]
fn refused(answer: Answer, status: u16, title: &str, pointer: &str) -> String {
    let document = answer.expect(status).json();
    let error = &document["errors"][0];
    assert_eq!(error["status"], status.to_string());
    assert_eq!((error["title"].as_str(), error["source"]["pointer"].as_str()), (Some(title), Some(pointer)), "{error}");
    error["detail"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_pool_is_created_read_changed_and_deleted() {
    let test = TestApp::new().await;
    let body = pool(json!({"name": "private", "external-id": "uid-1", "default": null}), json!({}));
    let answer = post(&test, "/agent-pools?include=agents", body).await.expect(201);
    assert!(answer.headers["content-type"].to_str().unwrap().starts_with("application/vnd.api+json"));
    let created = answer.json();
    let pool_id = id(&created);
    assert!(pool_id.starts_with("apool-"));
    let attributes = &created["data"]["attributes"];
    let wanted = [("is-shared", true), ("default", false), ("vcs-enabled", false), ("in-use", false)];
    for (name, value) in wanted {
        assert_eq!(attributes[name], value, "{name}");
    }
    assert_eq!(attributes["agent-counts"], json!({"idle": 0, "busy": 0, "errored": 0, "offline": 0}));
    assert_eq!(created["data"]["relationships"]["account"]["data"]["id"], test.account.as_str());
    assert_eq!(created["data"]["relationships"]["environment"]["data"], Value::Null);
    assert_eq!(created["data"]["links"]["self"], format!("{API}/agent-pools/{pool_id}"));

    let path = format!("/agent-pools/{pool_id}");
    let renamed = patch(&test, &path, pool(json!({"name": "renamed"}), json!({}))).await.expect(200).json();
    assert_eq!(renamed["data"]["attributes"]["name"], "renamed");
    assert_eq!(renamed["data"]["attributes"]["external-id"], "uid-1");
    assert_eq!(get(&test, &path).await, renamed);

    call(&test, Method::DELETE, &path, Value::Null).await.expect(204);
    let gone = test.get(&format!("{API}{path}")).await.expect(404).json();
    let title = format!("AgentPool with ID '{pool_id}' not found or user unauthorized.");
    assert_eq!(gone, json!({"errors": [{"status": "404", "title": title}]}));
}

#[tokio::test]
async fn what_cannot_be_is_refused_where_it_stands() {
    let test = TestApp::new().await;
    let prod = environment(&test, "prod").await;
    create(&test, json!({"name": "taken", "external-id": "uid-1"}), json!({})).await;
    let attribute = "Invalid Attribute";
    let relation = "Invalid Relationship";
    let env = || one("environments", &prod);
    let list = || many("environments", &[&prod]);
    let cases = [
        (json!({"name": ""}), json!({}), 422, attribute, "/data/attributes/name"),
        (json!({}), json!({}), 422, attribute, "/data/attributes/name"),
        (json!({"name": "taken"}), json!({}), 422, attribute, "/data/attributes/name"),
        (json!({"name": "x", "external-id": "uid-1"}), json!({}), 422, attribute, "/data/attributes/external-id"),
        (json!({"name": "x", "vcs-enabled": true}), json!({}), 422, attribute, "/data/attributes/vcs-enabled"),
        (
            json!({"name": "x", "run-settings": {"image": "A B"}}),
            json!({}),
            422,
            attribute,
            "/data/attributes/run-settings/image",
        ),
        (
            json!({"name": "x", "is-shared": true}),
            json!({"environments": list()}),
            422,
            attribute,
            "/data/attributes/is-shared",
        ),
        (
            json!({"name": "x", "is-shared": true}),
            json!({"environment": env()}),
            422,
            attribute,
            "/data/attributes/is-shared",
        ),
        (
            json!({"name": "x", "default": true}),
            json!({"environment": env()}),
            422,
            attribute,
            "/data/attributes/default",
        ),
        (
            json!({"name": "x", "default": true, "is-shared": false}),
            json!({}),
            422,
            attribute,
            "/data/attributes/default",
        ),
        (
            json!({"name": "x"}),
            json!({"environment": env(), "environments": list()}),
            422,
            relation,
            "/data/relationships/environments",
        ),
        (
            json!({"name": "x"}),
            json!({"environment": one("environments", "env-1234")}),
            404,
            relation,
            "/data/relationships/environment",
        ),
        (
            json!({"name": "x"}),
            json!({"environments": many("environments", &["env-9"])}),
            404,
            relation,
            "/data/relationships/environments",
        ),
        (
            json!({"name": "x"}),
            json!({"workspaces": many("workspaces", &["ws-323"])}),
            404,
            relation,
            "/data/relationships/workspaces",
        ),
    ];
    for (attributes, relationships, status, title, pointer) in cases {
        let shown = format!("{attributes} {relationships}");
        let answer = post(&test, "/agent-pools", pool(attributes, relationships)).await;
        assert_eq!(answer.status.as_u16(), status, "{shown}: {}", String::from_utf8_lossy(&answer.body));
        refused(answer, status, title, pointer);
    }
    let detail = refused(
        post(
            &test,
            "/agent-pools",
            pool(json!({"name": "x"}), json!({"environment": one("environments", "env-1234")})),
        )
        .await,
        404,
        relation,
        "/data/relationships/environment",
    );
    assert_eq!(detail, "Environment with ID 'env-1234' not found or user unauthorized.");
    // nothing of all that was kept, and the name is free in another scope
    assert_eq!(get(&test, "/agent-pools").await["meta"]["pagination"]["total-count"], 1);
    create(&test, json!({"name": "taken"}), json!({"environment": env()})).await;
}

/// Four pools, each tried for a workspace of both environments: linked, or refused at the relation.
#[tokio::test]
async fn a_link_is_made_only_to_a_pool_that_may_serve_the_environment() {
    let test = TestApp::new().await;
    let (prod, dev) = (environment(&test, "prod").await, environment(&test, "dev").await);
    let pools = [
        (create(&test, json!({"name": "shared"}), json!({})).await, true, true),
        (
            create(&test, json!({"name": "prods"}), json!({"environment": one("environments", &prod)})).await,
            true,
            false,
        ),
        (
            create(&test, json!({"name": "listed"}), json!({"environments": many("environments", &[&dev])})).await,
            false,
            true,
        ),
        (create(&test, json!({"name": "nobodys", "is-shared": false}), json!({})).await, false, false),
    ];
    let workspaces = [workspace(&test, &prod, "a").await, workspace(&test, &dev, "a").await];
    for (pool_id, in_prod, in_dev) in &pools {
        for (workspace, allowed) in workspaces.iter().zip([in_prod, in_dev]) {
            let path = format!("/workspaces/{workspace}");
            let answer = patch(&test, &path, link(&json!({"type": "agent-pools", "id": pool_id}))).await;
            if *allowed {
                let document = answer.expect(200).json();
                assert_eq!(document["data"]["relationships"]["agent-pool"]["data"]["id"], *pool_id);
            } else {
                refused(answer, 422, "Invalid Relationship", "/data/relationships/agent-pool");
            }
            // from the pool's side the rule is the same
            let bulk = pool(json!({}), json!({"workspaces": many("workspaces", &[workspace])}));
            let status = patch(&test, &format!("/agent-pools/{pool_id}"), bulk).await.status.as_u16();
            assert_eq!(status, if *allowed { 200 } else { 422 });
            let unlinked = patch(&test, &path, link(&Value::Null)).await.expect(200).json();
            assert_eq!(unlinked["data"]["relationships"]["agent-pool"]["data"], Value::Null);
        }
    }
    let unknown =
        patch(&test, &format!("/workspaces/{}", workspaces[0]), link(&one("agent-pools", "apool-9")["data"])).await;
    let detail = refused(unknown, 404, "Invalid Relationship", "/data/relationships/agent-pool");
    assert_eq!(detail, "AgentPool with ID 'apool-9' not found or user unauthorized.");
}

#[tokio::test]
async fn workspaces_in_a_change_replace_all_and_absent_ones_change_nothing() {
    let test = TestApp::new().await;
    let prod = environment(&test, "prod").await;
    let (a, b) = (workspace(&test, &prod, "a").await, workspace(&test, &prod, "b").await);
    let pool_id = create(&test, json!({"name": "p"}), json!({"workspaces": many("workspaces", &[&a])})).await;
    let path = format!("/agent-pools/{pool_id}");
    let renamed = patch(&test, &path, pool(json!({"name": "q"}), json!({}))).await.expect(200).json();
    assert_eq!((linked(&renamed, "workspaces"), &renamed["data"]["attributes"]["in-use"]), (vec![a], &json!(true)));
    let replaced = patch(&test, &path, pool(json!({}), json!({"workspaces": many("workspaces", &[&b])}))).await;
    assert_eq!(linked(&replaced.expect(200).json(), "workspaces"), [b]);
    let emptied = patch(&test, &path, pool(json!({}), json!({"workspaces": {"data": []}}))).await.expect(200).json();
    assert_eq!((linked(&emptied, "workspaces").len(), &emptied["data"]["attributes"]["in-use"]), (0, &json!(false)));
}

#[tokio::test]
async fn a_used_pool_is_not_deleted_and_the_refusal_names_ten_users() {
    let test = TestApp::new().await;
    let prod = environment(&test, "prod").await;
    let pool_id = create(&test, json!({"name": "p"}), json!({})).await;
    for number in 0..12 {
        let workspace = workspace(&test, &prod, &format!("w{number:02}")).await;
        patch(&test, &format!("/workspaces/{workspace}"), link(&one("agent-pools", &pool_id)["data"]))
            .await
            .expect(200);
    }
    let path = format!("/agent-pools/{pool_id}");
    let error = call(&test, Method::DELETE, &path, Value::Null).await.expect(409).json();
    let detail = error["errors"][0]["detail"].as_str().unwrap();
    assert!(detail.contains("workspaces prod/w00, prod/w01") && detail.contains("prod/w09 and 2 more"), "{detail}");
    assert!(!detail.contains("w10"), "{detail}");
    patch(&test, &path, pool(json!({}), json!({"workspaces": {"data": []}}))).await.expect(200);
    call(&test, Method::DELETE, &path, Value::Null).await.expect(204);
}

#[tokio::test]
async fn access_cannot_be_taken_from_an_environment_that_uses_the_pool() {
    let test = TestApp::new().await;
    let (prod, dev) = (environment(&test, "prod").await, environment(&test, "dev").await);
    let web = workspace(&test, &prod, "web").await;
    let pool_id = create(&test, json!({"name": "p"}), json!({"workspaces": many("workspaces", &[&web])})).await;
    let path = format!("/agent-pools/{pool_id}");
    let only_dev = || pool(json!({}), json!({"environments": many("environments", &[&dev])}));
    let error = patch(&test, &path, only_dev()).await.expect(409).json();
    assert!(error["errors"][0]["detail"].as_str().unwrap().contains("prod/web"), "{error}");
    assert_eq!(get(&test, &path).await["data"]["attributes"]["is-shared"], true);
    // taking away link and access at once is possible
    let both = json!({"environments": many("environments", &[&dev]), "workspaces": {"data": []}});
    let changed = patch(&test, &path, pool(json!({}), both)).await.expect(200).json();
    assert_eq!(
        (&changed["data"]["attributes"]["is-shared"], linked(&changed, "environments")),
        (&json!(false), vec![dev])
    );
    // and so is sharing again, which ends the list
    let shared = patch(&test, &path, pool(json!({"is-shared": true}), json!({}))).await.expect(200).json();
    assert!(linked(&shared, "environments").is_empty());
}

#[tokio::test]
async fn defaults_of_account_and_environment_are_kept_true() {
    let test = TestApp::new().await;
    let prod = environment(&test, "prod").await;
    let first = create(&test, json!({"name": "first", "default": true}), json!({})).await;
    let second = create(&test, json!({"name": "second", "default": true}), json!({})).await;
    let is_default = async |pool: &str| {
        get(&test, &format!("/agent-pools/{pool}")).await["data"]["attributes"]["default"].as_bool().unwrap()
    };
    assert_eq!((is_default(&first).await, is_default(&second).await), (false, true));
    let unshare = patch(&test, &format!("/agent-pools/{second}"), pool(json!({"is-shared": false}), json!({}))).await;
    refused(unshare, 422, "Invalid Attribute", "/data/attributes/is-shared");

    let environment_path = format!("/environments/{prod}");
    let set = |pool: Value| json!({"data": {"type": "environments", "relationships": {"default-workspace-agent-pool": {"data": pool}}}});
    let pointer = "/data/relationships/default-workspace-agent-pool";
    let dev = environment(&test, "dev").await;
    let devs = create(&test, json!({"name": "devs"}), json!({"environment": one("environments", &dev)})).await;
    let foreign = patch(&test, &environment_path, set(one("agent-pools", &devs)["data"].clone())).await;
    refused(foreign, 422, "Invalid Relationship", pointer);
    patch(&test, &environment_path, set(one("agent-pools", &first)["data"].clone())).await.expect(200);
    let path = format!("/agent-pools/{first}");
    let error = call(&test, Method::DELETE, &path, Value::Null).await.expect(409).json();
    assert!(error["errors"][0]["detail"].as_str().unwrap().contains("`prod`"), "{error}");
    patch(&test, &environment_path, set(Value::Null)).await.expect(200);
    call(&test, Method::DELETE, &path, Value::Null).await.expect(204);
    // being the account's default is the pool's own attribute, and ends with it
    call(&test, Method::DELETE, &format!("/agent-pools/{second}"), Value::Null).await.expect(204);
    // an environment takes its own unused pools with it, but not its workspaces
    let kept = workspace(&test, &dev, "kept").await;
    call(&test, Method::DELETE, &format!("/environments/{dev}"), Value::Null).await.expect(409);
    call(&test, Method::DELETE, &format!("/workspaces/{kept}"), Value::Null).await.expect(204);
    call(&test, Method::DELETE, &format!("/environments/{dev}"), Value::Null).await.expect(204);
    assert_eq!(get(&test, "/agent-pools").await["meta"]["pagination"]["total-count"], 0);
}

#[tokio::test]
async fn waiting_runs_follow_links_and_defaults() {
    let test = TestApp::new().await;
    let fixture = test.fixture().await;
    let (first, web) = (fixture.pool.id.as_str(), fixture.workspace.id.as_str());
    let workspace = format!("/workspaces/{web}");
    patch(&test, &workspace, link(&Value::Null)).await.expect(200);
    let run = test.run(&fixture.workspace.id, &fixture.configuration, RunOptions::default()).await;
    assert_eq!(run.status, RunState::Pending);
    assert!(run.waiting_for.unwrap().contains("no agent pool"));
    // a default pool is enough
    patch(&test, &format!("/agent-pools/{first}"), pool(json!({"default": true}), json!({}))).await.expect(200);
    let run = test.reread(&test.run(&fixture.workspace.id, &fixture.configuration, RunOptions::default()).await).await;
    assert!(run.waiting_for.unwrap().contains("holds the workspace"));
    // a queued job moves to the pool that is its now
    let second = create(&test, json!({"name": "second"}), json!({})).await;
    patch(&test, &workspace, link(&one("agent-pools", &second)["data"])).await.expect(200);
    let old = SimAgent::register(&test, &fixture.pool_token, "old").await;
    assert!(old.claim().await.is_none());
    let token =
        post(&test, &format!("/agent-pools/{second}/access-tokens"), json!({"data": {"type": "access-tokens"}})).await;
    let token = token.expect(201).json()["data"]["attributes"]["token"].as_str().unwrap().to_owned();
    let new = SimAgent::register(&test, &token, "new").await;
    assert!(new.claim().await.is_some());
    // a pool whose job runs is not deleted, linked or not
    patch(&test, &workspace, link(&Value::Null)).await.expect(200);
    let error = call(&test, Method::DELETE, &format!("/agent-pools/{second}"), Value::Null).await.expect(409).json();
    assert!(error["errors"][0]["detail"].as_str().unwrap().contains("wait or run"), "{error}");
}

#[tokio::test]
async fn lists_are_filtered_sorted_and_paged() {
    let test = TestApp::new().await;
    let prod = environment(&test, "prod").await;
    let mut ids = Vec::new();
    for name in ["alpha", "beta", "gamma 100%"] {
        ids.push(create(&test, json!({"name": name, "external-id": format!("uid-{name}")}), json!({})).await);
    }
    create(&test, json!({"name": "alpha"}), json!({"environment": one("environments", &prod)})).await;
    let cases = [
        ("", 4),
        ("filter[name]=alpha", 2),
        ("filter[agent-pool][name]=alpha", 2),
        ("filter[name]=in:alpha,beta", 3),
        ("filter[name]=like:ALP", 2),
        ("filter[name]=like:100%25", 1),
        ("filter[name]=like:%25", 1),
        ("filter[environment]=in:null", 3),
        (&format!("filter[environment]=in:null,{prod}"), 4),
        (&format!("filter[environment]={prod}"), 1),
        ("filter[environment]=! / nope", 0),
        (&format!("filter[agent-pool]={}", ids[1]), 1),
        ("filter[external-id]=uid-beta", 1),
        ("filter[vcs-enabled]=true", 0),
        ("filter[account]=acc-other", 0),
        ("query=gamma", 1),
        ("filter[unheard-of]=x&sort=unheard-of", 4),
        ("filter[name]=' OR '1'='1", 0),
    ];
    for (query, count) in cases {
        let query = query.replace(' ', "%20").replace('\'', "%27");
        let document = get(&test, &format!("/agent-pools?{query}")).await;
        assert_eq!(document["meta"]["pagination"]["total-count"], count, "{query}");
        assert_eq!(document["data"].as_array().unwrap().len(), count, "{query}");
    }
    let names = async |query: &str| -> Vec<String> {
        let document = get(&test, &format!("/agent-pools?{query}")).await;
        document["data"]
            .as_array()
            .unwrap()
            .iter()
            .map(|p| p["attributes"]["name"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(names("sort=-name&filter[environment]=in:null").await, ["gamma 100%", "beta", "alpha"]);
    assert_eq!(names("page[size]=2&page[number]=2&filter[environment]=in:null").await, ["gamma 100%"]);
    let far = get(&test, "/agent-pools?page[number]=999").await;
    assert_eq!(far["data"], json!([]));
    assert_eq!(far["meta"]["pagination"]["current-page"], 999);
    assert_eq!(far["meta"]["pagination"]["total-count"], 4);
    let with = get(&test, "/agent-pools?include=account,environment").await;
    assert_eq!(with["included"].as_array().unwrap().len(), 2, "{}", with["included"]);
}

#[tokio::test]
async fn bodies_that_are_no_documents_are_refused_and_odd_ones_are_taken() {
    let test = TestApp::new().await;
    for body in [json!([]), json!({"data": []}), json!({"data": {"type": "agents", "attributes": {"name": "x"}}})] {
        post(&test, "/agent-pools", body).await.expect(422);
    }
    let odd = json!({"data": {"attributes": {"name": "odd", "is-shared": null, "webhook-url": null, "unheard": [1]},
        "relationships": {"environment": {"data": null}, "environments": {"data": []}, "workspaces": {"data": []}}}});
    post(&test, "/agent-pools", odd).await.expect(201);
    test.get(&format!("{API}/ping")).await.expect(204);
    let account = get(&test, &format!("/accounts/{}", test.account)).await;
    assert_eq!(account["data"]["attributes"]["allowed-ips"], json!([]));
    test.get(&format!("{API}/accounts/acc-other")).await.expect(404);
}
