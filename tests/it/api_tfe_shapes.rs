//! `/api/v2`: shapes and traps that the CLI cannot live with, one by one.

use axum::{
    body::Body,
    http::{Method, Request},
};
use serde_json::{Value, json};
use terrapool::server::domain::model::RunOptions;

use crate::support::app::{ADMIN_TOKEN, Answer, TestApp};

fn resource(kind: &str, attributes: &Value) -> Value {
    json!({"data": {"type": kind, "attributes": attributes}})
}

async fn create(test: &TestApp, attributes: &Value) -> Answer {
    test.request(Method::POST, "/api/v2/organizations/prod/workspaces", &resource("workspaces", attributes)).await
}

/// Every text in the document that looks like a time.
fn times(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                match value {
                    Value::String(text) if key.ends_with("-at") => found.push(text.clone()),
                    other => times(other, found),
                }
            }
        }
        Value::Array(list) => list.iter().for_each(|value| times(value, found)),
        _ => {}
    }
}

#[tokio::test]
async fn discovery_names_the_services_that_there_are() {
    let test = TestApp::new().await;
    let request = Request::builder().uri("/.well-known/terraform.json").body(Body::empty()).unwrap();
    let answer = test.send(request).await.expect(200);
    assert_eq!(answer.headers["content-type"], "application/json");
    let services = answer.json();
    for name in ["tfe.v2", "tfe.v2.1", "tfe.v2.2", "state.v2"] {
        assert_eq!(services[name], "/api/v2/", "{name}");
    }
    assert_eq!(services["iacp.v3"], "/api/iacp/v3/");
    for name in ["login.v1", "modules.v1", "versions.v1"] {
        assert!(services.get(name).is_none(), "{name}");
    }
}

#[tokio::test]
async fn every_answer_names_the_api_version() {
    let test = TestApp::new().await;
    test.fixture().await;
    for (path, status) in [
        ("ping", 204),
        ("organizations/prod/entitlement-set", 200),
        ("organizations/prod/workspaces/app", 200),
        ("organizations/prod/workspaces/none", 404),
        ("no/such/path", 404),
    ] {
        let answer = test.get(&format!("/api/v2/{path}")).await.expect(status);
        assert_eq!(answer.headers["tfp-api-version"], "2.6", "{path}");
        if status != 204 {
            assert_eq!(answer.headers["content-type"], "application/vnd.api+json", "{path}");
        }
    }
    let anonymous = Request::builder().uri("/api/v2/organizations/prod/workspaces/app").body(Body::empty()).unwrap();
    let answer = test.send(anonymous).await.expect(401);
    assert_eq!(answer.headers["tfp-api-version"], "2.6");
    assert_eq!(answer.json()["errors"][0]["status"], "401");
}

#[tokio::test]
async fn operations_are_entitled_or_the_cli_would_run_on_its_own() {
    let test = TestApp::new().await;
    test.fixture().await;
    let answer = test.get("/api/v2/organizations/prod/entitlement-set").await.expect(200).json();
    assert_eq!(answer["data"]["attributes"]["operations"], true);
    assert_eq!(answer["data"]["attributes"]["state-storage"], true);
    test.get("/api/v2/organizations/other/entitlement-set").await.expect(404);
}

#[tokio::test]
async fn times_end_in_z() {
    let test = TestApp::new().await;
    let fixture = test.fixture().await;
    let run = test.run(&fixture.workspace.id, &fixture.configuration, RunOptions::default()).await;
    for path in [
        "organizations/prod".to_owned(),
        "organizations/prod/workspaces/app".to_owned(),
        format!("configuration-versions/{}", fixture.configuration),
        format!("runs/{}", run.id),
        format!("plans/{}", run.plan_id),
        format!("workspaces/{}/runs", fixture.workspace.id),
    ] {
        let mut found = Vec::new();
        times(&test.get(&format!("/api/v2/{path}")).await.expect(200).json(), &mut found);
        assert!(!found.is_empty(), "{path}");
        for time in found {
            assert!(time.ends_with('Z') && time.len() == "2026-01-02T03:04:05.000Z".len(), "{path}: {time}");
        }
    }
}

#[tokio::test]
async fn what_the_cli_panics_without_is_always_there() {
    let test = TestApp::new().await;
    let fixture = test.fixture().await;
    let workspace = test.get("/api/v2/organizations/prod/workspaces/app").await.expect(200).json();
    let permissions = &workspace["data"]["attributes"]["permissions"];
    for name in ["can-queue-run", "can-update", "can-queue-apply", "can-lock", "can-unlock", "can-force-delete"] {
        assert_eq!(permissions[name], true, "{name}");
    }
    assert_eq!(workspace["data"]["relationships"]["organization"]["data"]["id"], "prod");
    assert_eq!(workspace["data"]["attributes"]["vcs-repo"], Value::Null);

    let configuration = test.configuration(&fixture.workspace.id, true).await;
    let run = test.run(&fixture.workspace.id, &configuration, RunOptions::default()).await;
    let run = test.get(&format!("/api/v2/runs/{}", run.id)).await.expect(200).json();
    let data = &run["data"];
    assert_eq!(data["attributes"]["plan-only"], true);
    assert_eq!(data["attributes"]["actions"]["is-cancelable"], true);
    assert_eq!(data["attributes"]["permissions"]["can-apply"], true);
    for (name, kind) in [("plan", "plans"), ("apply", "applies"), ("workspace", "workspaces")] {
        assert_eq!(data["relationships"][name]["data"]["type"], kind, "{name}: also of a plan that is never applied");
    }
    assert_eq!(data["relationships"]["cost-estimate"]["data"], Value::Null);
    assert_eq!(data["relationships"]["task-stages"]["data"], json!([]));
}

#[tokio::test]
async fn includes_and_filters_that_are_not_known_are_ignored() {
    let test = TestApp::new().await;
    let fixture = test.fixture().await;
    let run = test.run(&fixture.workspace.id, &fixture.configuration, RunOptions::default()).await;
    let junk = "include=task_stages,nothing.at.all&filter[x][y]=1&%3FTagBindings=%7B+env+prod%7D&page[size]=x&&=&%zz";
    for path in [
        format!("runs/{}", run.id),
        format!("workspaces/{}/runs", fixture.workspace.id),
        "organizations/prod/workspaces".to_owned(),
        "organizations/prod/workspaces/app".to_owned(),
        "organizations/prod/runs/queue".to_owned(),
    ] {
        test.get(&format!("/api/v2/{path}?{junk}")).await.expect(200);
    }
    let answer = test.get(&format!("/api/v2/runs/{}?include=workspace,plan", run.id)).await.expect(200).json();
    let included: Vec<_> = answer["included"].as_array().unwrap().iter().map(|one| one["type"].clone()).collect();
    assert_eq!(included, ["workspaces", "plans"]);
}

#[tokio::test]
async fn run_events_are_a_list_and_stages_have_their_log_from_the_start() {
    let test = TestApp::new().await;
    let fixture = test.fixture().await;
    let run = test.run(&fixture.workspace.id, &fixture.configuration, RunOptions::default()).await;
    let events = test.get(&format!("/api/v2/runs/{}/run-events", run.id)).await.expect(200).json();
    assert_eq!(events["data"], json!([]));
    for path in [format!("plans/{}", run.plan_id), format!("applies/{}", run.apply_id)] {
        let stage = test.get(&format!("/api/v2/{path}")).await.expect(200).json();
        let url = stage["data"]["attributes"]["log-read-url"].as_str().unwrap();
        assert!(url.starts_with("http://terrapool.test/_logs/") && !url.contains('?'), "{url}");
    }
    test.get(&format!("/api/v2/plans/{}/json-output", run.plan_id)).await.expect(204);
}

#[tokio::test]
async fn signatures_open_nothing_else() {
    let test = TestApp::new().await;
    let fixture = test.fixture().await;
    let run = test.run(&fixture.workspace.id, &fixture.configuration, RunOptions::default()).await;
    let plan = test.get(&format!("/api/v2/plans/{}", run.plan_id)).await.expect(200).json();
    let url = plan["data"]["attributes"]["log-read-url"].as_str().unwrap();
    let signature = url.rsplit('/').next().unwrap();
    for path in [
        format!("/_logs/{}/{signature}", run.apply_id),
        format!("/_logs/{}/x", run.plan_id),
        format!("/_upload/cv/{}/{signature}", fixture.configuration),
        format!("/_sv/{}/state/{signature}", run.plan_id),
    ] {
        let method = if path.starts_with("/_upload") { Method::PUT } else { Method::GET };
        let request =
            Request::builder().method(method).uri(&path).header("authorization", format!("Bearer {ADMIN_TOKEN}"));
        test.send(request.body(Body::empty()).unwrap()).await.expect(404);
    }
}

#[tokio::test]
async fn lists_are_paged_and_searched_and_know_no_tags() {
    let test = TestApp::new().await;
    test.fixture().await;
    for name in ["one", "two", "t_o"] {
        create(&test, &json!({"name": name})).await.expect(201);
    }
    let list = async |query: &str| {
        let answer = test.get(&format!("/api/v2/organizations/prod/workspaces?{query}")).await.expect(200).json();
        let names: Vec<_> =
            answer["data"].as_array().unwrap().iter().map(|one| one["attributes"]["name"].clone()).collect();
        (names, answer["meta"]["pagination"].clone())
    };
    let (names, pagination) = list("page[size]=2&page[number]=2").await;
    assert_eq!(names, ["t_o", "two"]);
    assert_eq!((&pagination["total-count"], &pagination["total-pages"]), (&json!(4), &json!(2)));
    assert_eq!(list("search[name]=o").await.0, ["one", "t_o", "two"]);
    assert_eq!(list("search[name]=t_").await.0, ["t_o"]);
    assert_eq!(list("search%5Btags%5D=app,net").await.0, json!([]).as_array().unwrap().clone());
    assert_eq!(list("filter[tagged][0][key]=env&filter[tagged][0][value]=prod").await.0, Vec::<Value>::new());
}

#[tokio::test]
async fn bodies_are_read_whatever_their_content_type_and_refused_with_reasons() {
    let test = TestApp::new().await;
    test.fixture().await;
    let send = async |content_type: &str, body: &str| {
        let request = Request::builder()
            .method(Method::POST)
            .uri("/api/v2/organizations/prod/workspaces")
            .header("authorization", format!("Bearer {ADMIN_TOKEN}"))
            .header("content-type", content_type);
        test.send(request.body(Body::from(body.to_owned())).unwrap()).await
    };
    for (index, content_type) in ["application/vnd.api+json", "application/json", "text/plain"].iter().enumerate() {
        let body = resource("workspaces", &json!({"name": format!("w{index}")})).to_string();
        send(content_type, &body).await.expect(201);
    }
    for (body, status) in [
        ("", 400),
        ("{", 400),
        ("[]", 400),
        ("{\"data\": []}", 400),
        ("{\"data\": {\"attributes\": 1}}", 422),
        ("{\"data\": {\"attributes\": {\"name\": 1}}}", 422),
        ("{\"data\": {\"attributes\": {\"name\": \"a b\"}}}", 422),
    ] {
        let answer = send("application/vnd.api+json", body).await.expect(status).json();
        assert!(answer["errors"][0]["detail"].as_str().is_some_and(|text| !text.is_empty()), "{body}: {answer}");
    }
}

#[tokio::test]
async fn workspace_settings_are_checked_and_kept() {
    let test = TestApp::new().await;
    let fixture = test.fixture().await;
    let answer = create(&test, &json!({"name": "app"})).await.expect(422).json();
    assert_eq!(answer["errors"][0]["source"]["pointer"], "/data/attributes/name");
    let answer = create(&test, &json!({"name": "x", "execution-mode": "agent"})).await.expect(422).json();
    assert!(answer["errors"][0]["detail"].as_str().unwrap().contains("agent pool"), "{answer}");
    create(&test, &json!({"name": "x", "agent-pool-id": "apool-0000000000000000"})).await.expect(404);

    let new = json!({"name": "x", "execution-mode": "agent", "agent-pool-id": fixture.pool.id, "terraform-version": "",
        "working-directory": "./live/", "global-remote-state": true, "setting-overwrites": {"execution-mode": true}});
    let workspace = create(&test, &new).await.expect(201).json();
    let (id, attributes) = (workspace["data"]["id"].as_str().unwrap(), &workspace["data"]["attributes"]);
    assert_eq!(attributes["execution-mode"], "agent");
    assert_eq!(attributes["terraform-version"], "latest");
    assert_eq!(attributes["working-directory"], "live");
    assert_eq!(attributes["iac-platform"], "terraform");
    assert_eq!(workspace["data"]["relationships"]["agent-pool"]["data"]["id"], fixture.pool.id.as_str());

    let path = format!("/api/v2/workspaces/{id}");
    let patch =
        async |attributes: Value| test.request(Method::PATCH, &path, &resource("workspaces", &attributes)).await;
    let changed = patch(json!({"terraform-version": "1.11.4", "auto-apply": true})).await.expect(200).json();
    assert_eq!(changed["data"]["attributes"]["terraform-version"], "1.11.4");
    assert_eq!(changed["data"]["attributes"]["auto-apply"], true);
    patch(json!({"terraform-version": "~> 1.11"})).await.expect(422);
    patch(json!({"working-directory": "../x"})).await.expect(422);
    let local = patch(json!({"execution-mode": "local", "agent-pool-id": null})).await.expect(200).json();
    assert_eq!(local["data"]["attributes"]["operations"], false);
    assert_eq!(local["data"]["relationships"]["agent-pool"]["data"], Value::Null);

    let tofu = Request::builder()
        .method(Method::POST)
        .uri("/api/v2/organizations/prod/workspaces")
        .header("authorization", format!("Bearer {ADMIN_TOKEN}"))
        .header("user-agent", "OpenTofu/1.12.6")
        .body(Body::from(resource("workspaces", &json!({"name": "tofu"})).to_string()));
    let workspace = test.send(tofu.unwrap()).await.expect(201).json();
    assert_eq!(workspace["data"]["attributes"]["iac-platform"], "opentofu", "its CLI says who it is");
}

#[tokio::test]
async fn locks_are_held_by_one_and_a_runs_lock_ends_with_the_run() {
    let test = TestApp::new().await;
    let fixture = test.fixture().await;
    let path = format!("/api/v2/workspaces/{}/actions", fixture.workspace.id);
    let act = async |action: &str, body: Value| test.request(Method::POST, &format!("{path}/{action}"), &body).await;
    // the CLI sends an empty type
    let locked = act("lock", json!({"data": {"type": "", "attributes": {"reason": "Locked by Terraform"}}})).await;
    assert_eq!(locked.expect(200).json()["data"]["attributes"]["locked"], true);
    act("lock", Value::Null).await.expect(409);
    let unlocked = act("unlock", Value::Null).await.expect(200).json();
    assert_eq!(unlocked["data"]["attributes"]["locked"], false);
    act("unlock", Value::Null).await.expect(409);
    act("lock", Value::Null).await.expect(200);
    act("force-unlock", json!({})).await.expect(200);

    let run = test.run(&fixture.workspace.id, &fixture.configuration, RunOptions::default()).await;
    for action in ["unlock", "force-unlock", "lock"] {
        let answer = act(action, Value::Null).await.expect(409).json();
        let detail = answer["errors"][0]["detail"].as_str().unwrap();
        assert!(detail.contains(&format!("is locked by Run {}", run.id)), "{detail}");
    }
    let path = format!("/api/v2/workspaces/{}", fixture.workspace.id);
    test.request(Method::DELETE, &path, &Value::Null).await.expect(409);
}

#[tokio::test]
async fn a_run_waits_for_the_users_lock_and_starts_when_it_is_given_back() {
    let test = TestApp::new().await;
    let fixture = test.fixture().await;
    let path = format!("/api/v2/workspaces/{}/actions", fixture.workspace.id);
    test.request(Method::POST, &format!("{path}/lock"), &Value::Null).await.expect(200);
    let run = test.run(&fixture.workspace.id, &fixture.configuration, RunOptions::default()).await;
    let shown = test.get(&format!("/api/v2/runs/{}", run.id)).await.expect(200).json();
    assert_eq!(shown["data"]["attributes"]["status"], "pending");
    assert!(shown["data"]["attributes"]["waiting-for"].as_str().unwrap().contains("locked"), "{shown}");
    test.request(Method::POST, &format!("{path}/unlock"), &Value::Null).await.expect(200);
    let shown = test.get(&format!("/api/v2/runs/{}", run.id)).await.expect(200).json();
    assert_eq!(shown["data"]["attributes"]["status"], "plan_queued");
}

#[tokio::test]
async fn an_empty_workspace_is_deleted_safely() {
    let test = TestApp::new().await;
    test.fixture().await;
    create(&test, &json!({"name": "empty"})).await.expect(201);
    let path = "/api/v2/organizations/prod/workspaces/empty";
    test.request(Method::POST, &format!("{path}/actions/safe-delete"), &Value::Null).await.expect(204);
    test.get(path).await.expect(404);
}
