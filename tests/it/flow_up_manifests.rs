//! `terrapool up` over a directory whose manifests change, and the file that tells others how to reach it.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    time::{Duration, Instant},
};

use reqwest::{Method, StatusCode};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::{
    admin::{Admin, id},
    cli::{Access, Cli, Engine, Input, Running, cloud_block},
    poll::eventually,
    proc::processes_with,
    programs::terrapool,
};

/// An edit is followed after this long: the promise is 2 s, doubled for a busy machine.
const FOLLOWED: Duration = Duration::from_secs(4);

const LINK: &str = "apiVersion: terrapool.dev/v1alpha1
kind: WorkspaceLink
metadata:
  name: app
spec:
  poolRef:
    name: main
  workspace:
    environment: prod
    name: app
";

fn pool(name: &str, more: &str) -> String {
    format!(
        "apiVersion: terrapool.dev/v1alpha1\nkind: AgentPool\nmetadata:\n  name: {name}\nspec:\n  scope:\n    type: Account\n{more}"
    )
}

/// The variables of `connection.env`.
fn connection(file: &Path) -> BTreeMap<String, String> {
    let text = fs::read_to_string(file).unwrap();
    text.lines().map(|line| line.split_once('=').unwrap()).map(|(name, value)| (name.into(), value.into())).collect()
}

fn start_up(dir: &Path, data: &Path) -> Running {
    let mut command = terrapool();
    command.arg("up").arg(dir).arg("--data").arg(data).args(["--executor", "process"]);
    Running::program("terrapool up", command)
}

async fn pool_of(admin: &Admin, name: &str) -> Option<Value> {
    let pools = admin.get("/api/iacp/v3/agent-pools").await;
    pools["data"].as_array().unwrap().iter().find(|pool| pool["attributes"]["name"] == name).cloned()
}

/// Waits until the pool `main` gives its runs this variable; how long it took.
async fn has_variable(admin: &Admin, value: &str) -> Duration {
    let start = Instant::now();
    eventually("the edit is followed", Duration::from_secs(30), async || {
        let pool = pool_of(admin, "main").await.unwrap();
        if pool["attributes"]["run-settings"]["env"]["EDIT"] == value { Ok(()) } else { Err(pool) }
    })
    .await;
    start.elapsed()
}

/// The real CLI in the linked workspace, with nothing but the file's variables.
async fn linked_cli(up: &mut Running, env: &BTreeMap<String, String>, address: &str, ca: bool, main: &str) -> Cli {
    let access = Access {
        host: env[address].split_once("://").unwrap().1.to_owned(),
        token: env["TERRAPOOL_TOKEN"].clone(),
        ca: ca.then(|| env["TERRAPOOL_CA_FILE"].clone().into()),
    };
    let cli = Cli::new(Engine::Terraform, &access);
    cli.write("cloud.tf", &cloud_block(&access, &env["TERRAPOOL_ORGANIZATION"], "app"));
    cli.write("main.tf", main);
    cli.succeed(&["init"]).await;
    // The workspace is there now, so that it can be linked.
    up.until("workspace prod/app runs on pool main").await;
    cli
}

async fn cli_plans(up: &mut Running, env: &BTreeMap<String, String>, address: &str, ca: bool) {
    let cli = linked_cli(up, env, address, ca, "resource \"terraform_data\" \"one\" {}\n").await;
    cli.succeed(&["plan"]).await.says("Plan: 1 to add, 0 to change, 0 to destroy.");
}

#[tokio::test(flavor = "multi_thread")]
async fn up_follows_its_manifests() {
    let place = tempfile::tempdir().unwrap();
    let (dir, data) = (place.path().join("manifests"), place.path().join("data"));
    fs::create_dir(&dir).unwrap();
    let write = |name: &str, text: &str| fs::write(dir.join(name), text).unwrap();
    let variable =
        |value: &str| pool("main", &format!("  runs:\n    env:\n      - name: EDIT\n        value: {value}\n"));
    write("pool.yaml", &variable("first"));
    write("link.yaml", LINK);
    let mut up = start_up(&dir, &data);
    up.until("WorkspaceLink app waits: there is no workspace `prod/app` yet").await;
    up.until("agent of pool main ready (executor process)").await;

    let file = data.join("connection.env");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let env = connection(&file);
    let names: Vec<_> = env.keys().map(String::as_str).collect();
    let all = ["ADDRESS", "CA_FILE", "HTTP_ADDRESS", "ORGANIZATION", "TOKEN"].map(|name| format!("TERRAPOOL_{name}"));
    assert_eq!(names, all);
    assert_eq!(env["TERRAPOOL_ORGANIZATION"], "prod");
    cli_plans(&mut up, &env, "TERRAPOOL_ADDRESS", true).await;
    cli_plans(&mut up, &env, "TERRAPOOL_HTTP_ADDRESS", false).await;

    // An edit.
    let admin = Admin::new(env["TERRAPOOL_HTTP_ADDRESS"].clone(), env["TERRAPOOL_TOKEN"].clone());
    write("pool.yaml", &variable("second"));
    let took = has_variable(&admin, "second").await;
    println!("the edit was followed after {took:?}");
    assert!(took < FOLLOWED, "{took:?}");

    // A broken one is named with its place; what the file said goes on, and so do the others.
    write("link.yaml", &LINK.replace("    environment: prod", "    environment: [prod]"));
    up.until("link.yaml:9: spec.workspace.environment: ").await;
    write("pool.yaml", &variable("third"));
    has_variable(&admin, "third").await;
    write("pool.yaml", &variable("third").replace("type: Account", "type: Universe"));
    up.until("pool.yaml:7: spec.scope.type: ").await;
    write("link.yaml", LINK);
    let marker = pool("other", "  agents:\n    mode: External\n");
    write("other.yaml", &marker);
    up.until("pool other is in line").await;
    assert!(pool_of(&admin, "main").await.is_some(), "a broken manifest deletes nothing");
    assert!(!up.text().contains("is deleted"), "{}", up.text());
    write("pool.yaml", &variable("fourth"));
    has_variable(&admin, "fourth").await;

    // A name that somebody else has.
    let stranger = json!({"data": {"type": "agent-pools", "attributes": {"name": "taken"}}});
    let stranger_id = id(&admin.post("/api/iacp/v3/agent-pools", &stranger).await);
    let (status, answer) = admin.try_request(Method::POST, "/api/iacp/v3/agent-pools", &stranger).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{answer}");
    assert_eq!(answer["errors"][0]["source"]["pointer"], "/data/attributes/name", "{answer}");
    write("taken.yaml", &pool("taken", ""));
    up.until(&format!("the control plane has a pool `taken` ({stranger_id}) in this scope already")).await;
    fs::remove_file(dir.join("taken.yaml")).unwrap();
    up.until("AgentPool taken is deleted").await;
    assert!(pool_of(&admin, "taken").await.is_some(), "somebody else's pool is left alone");

    // A pool that is used stays until it is used no more.
    fs::remove_file(dir.join("pool.yaml")).unwrap();
    up.until("AgentPool main cannot be deleted yet: the pool `main` is used by workspace prod/app").await;
    assert!(pool_of(&admin, "main").await.is_some());
    fs::remove_file(dir.join("link.yaml")).unwrap();
    up.until("WorkspaceLink app is deleted").await;
    up.until("AgentPool main is deleted").await;
    assert!(pool_of(&admin, "main").await.is_none());

    up.signal(Signal::INT);
    up.end().await.expect(0);
    assert_eq!(processes_with(place.path().to_str().unwrap()), Vec::<i32>::new());
}

/// The pool's token is replaced at every look here; its agent is neither cut off nor started again.
#[tokio::test(flavor = "multi_thread")]
async fn the_agent_of_up_stays_while_its_token_is_replaced() {
    let place = tempfile::tempdir().unwrap();
    let (dir, data) = (place.path().join("manifests"), place.path().join("data"));
    fs::create_dir(&dir).unwrap();
    let token = "  token:\n    ttl: 1h\n    rotateBefore: 59m58s\n    overlap: 1s\n";
    fs::write(dir.join("pool.yaml"), pool("main", token)).unwrap();
    let mut up = start_up(&dir, &data);
    up.until("agent of pool main ready (executor process)").await;
    let env = connection(&data.join("connection.env"));
    let admin = Admin::new(env["TERRAPOOL_HTTP_ADDRESS"].clone(), env["TERRAPOOL_TOKEN"].clone());
    let agents = admin.get("/api/iacp/v3/agents").await;
    let (agent, pool) = (agents["data"][0]["id"].clone(), id(&json!({"data": pool_of(&admin, "main").await})));
    eventually("another token has taken the place of the first", Duration::from_secs(60), async || {
        let tokens = admin.get(&format!("/api/iacp/v3/agent-pools/{pool}/access-tokens")).await;
        let tokens = tokens["data"].as_array().unwrap().clone();
        let ordinal =
            |token: &Value| token["attributes"]["external-id"].as_str()?.rsplit('/').next()?.parse::<u32>().ok();
        if tokens.iter().all(|token| ordinal(token).is_some_and(|n| n >= 2)) { Ok(()) } else { Err(tokens) }
    })
    .await;
    let demand = admin.get(&format!("/api/iacp/v3/agent-pools/{pool}/demand")).await;
    assert_eq!((&demand["agents"][0]["id"], &demand["agents"][0]["status"]), (&agent, &json!("idle")), "{demand}");
    assert_eq!((&demand["registrations"], demand["agents"].as_array().unwrap().len()), (&json!(1), 1), "{demand}");
    let text = up.text();
    assert_eq!(text.matches("agent of pool main").count(), 1, "{text}");
    up.signal(Signal::INT);
    up.end().await.expect(0);
}

/// Agents end first: their last words need somebody who hears them.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_is_executed_when_up_is_told_to_end_is_recorded_to_its_end() {
    let place = tempfile::tempdir().unwrap();
    let [dir, data, begun, go] = ["manifests", "data", "begun", "go"].map(|name| place.path().join(name));
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("pool.yaml"), pool("main", "")).unwrap();
    fs::write(dir.join("link.yaml"), LINK).unwrap();
    let mut up = start_up(&dir, &data);
    up.until("agent of pool main ready (executor process)").await;
    let env = connection(&data.join("connection.env"));
    let command = format!("touch {}; while [ ! -e {} ]; do sleep 0.05; done", begun.display(), go.display());
    let main = format!(
        "resource \"terraform_data\" \"one\" {{\n  provisioner \"local-exec\" {{ command = \"{command}\" }}\n}}\n"
    );
    let cli = linked_cli(&mut up, &env, "TERRAPOOL_HTTP_ADDRESS", false, &main).await;
    let apply = cli.start(&["apply", "-auto-approve"], Input::None);
    eventually("the apply goes on", Duration::from_secs(60), async || begun.exists().then_some(()).ok_or(up.text()))
        .await;

    up.signal(Signal::INT);
    up.until("for agents that execute runs").await;
    fs::write(&go, "").unwrap();
    let ended = up.end().await;
    assert!(ended.status.success() && !ended.all.contains("sign off"), "{ended:?}");
    // Whether it has heard of the end is a matter of moments.
    apply.end().await;

    // On other ports, if others have taken them meanwhile.
    let mut up = start_up(&dir, &data);
    up.until("agent of pool main ready (executor process)").await;
    let env = connection(&data.join("connection.env"));
    let cli = linked_cli(&mut up, &env, "TERRAPOOL_HTTP_ADDRESS", false, &main).await;
    cli.succeed(&["state", "list"]).await.says("terraform_data.one");
    cli.succeed(&["plan"]).await.says("No changes.");
    up.signal(Signal::INT);
    up.end().await.expect(0);
}
