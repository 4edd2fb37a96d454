//! Links of workspaces by the reconciling core, against the real control plane.

use std::sync::LazyLock;

use serde_json::{Value, json};
use terrapool::{
    api::iacp::AgentPoolAttributes,
    client::iacp::{ControlPlane, Pool, Workspace},
    crd::{AgentPoolSpec, WorkspaceLinkSpec, conditions::reason},
    http,
    sync::{
        Context, Fault, LinkInput, LinkReport, Outcome, PoolInput, Seam,
        link::{self, Deleted},
    },
};

use crate::support::{app::ADMIN_TOKEN, served::Served};

const UID: &str = "pool-uid";

fn context(served: &Served, seam: Seam) -> Context {
    let base = format!("http://{}", served.access.host).parse().unwrap();
    Context {
        control_plane: ControlPlane::new(base, ADMIN_TOKEN.into(), http::client(None).unwrap()),
        seam,
        clock: served.test.app.clock.clone(),
        create_environments: true,
    }
}

fn spec(more: &Value) -> WorkspaceLinkSpec {
    let mut spec = json!({"poolRef": {"name": "pool"}, "workspace": {"environment": "prod", "name": "app"}});
    for (key, value) in more.as_object().unwrap() {
        spec[key] = value.clone();
    }
    serde_json::from_value(spec).unwrap()
}

fn input(spec: &WorkspaceLinkSpec) -> LinkInput<'_> {
    static POOL: LazyLock<AgentPoolSpec> = LazyLock::new(|| pool_spec(&json!({})));
    LinkInput { spec, pool: Some(PoolInput { uid: UID, name: "pool", spec: &POOL, held: None }), seen: None }
}

fn pool_spec(spec: &Value) -> AgentPoolSpec {
    serde_json::from_value(spec.clone()).unwrap()
}

async fn pool(context: &Context, name: &str, external_id: Option<&str>) -> Pool {
    let attributes = AgentPoolAttributes {
        name: Some(name.to_owned()),
        external_id: external_id.map(str::to_owned),
        ..AgentPoolAttributes::default()
    };
    context.control_plane.create_pool(&attributes, None, &[]).await.unwrap()
}

async fn workspace(context: &Context) -> Workspace {
    let environment = context.control_plane.environment_by_name("prod").await.unwrap();
    let environment = match environment {
        Some(environment) => environment,
        None => context.control_plane.create_environment("prod").await.unwrap(),
    };
    context.control_plane.create_workspace(&environment.id, "app").await.unwrap()
}

async fn linked(context: &Context, spec: &WorkspaceLinkSpec) -> LinkReport {
    match link::reconcile(context, input(spec)).await.unwrap() {
        Outcome::Done(report) => report,
        Outcome::Waiting(waiting) => panic!("{waiting:?}"),
    }
}

async fn waits(context: &Context, input: LinkInput<'_>) -> &'static str {
    match link::reconcile(context, input).await.unwrap() {
        Outcome::Waiting(waiting) => waiting.reason,
        Outcome::Done(report) => panic!("{report:?}"),
    }
}

#[tokio::test]
async fn a_link_waits_for_workspace_and_pool_then_is_made_once() {
    let served = Served::new().await;
    let context = context(&served, Seam::default());
    let spec = spec(&json!({}));
    assert_eq!(waits(&context, input(&spec)).await, reason::WORKSPACE_NOT_FOUND);
    let workspace = workspace(&context).await;
    assert_eq!(waits(&context, LinkInput { pool: None, ..input(&spec) }).await, reason::POOL_NOT_FOUND);
    assert_eq!(waits(&context, input(&spec)).await, reason::POOL_NOT_FOUND);
    let pool = pool(&context, "pool", Some(UID)).await;
    let report = linked(&context, &spec).await;
    assert_eq!((report.changed, report.title.as_str()), (true, "prod/app"));
    let writes = context.seam.writes();
    assert_eq!(writes, 2, "the environment and the link");
    assert!(!linked(&context, &spec).await.changed);
    assert_eq!(context.seam.writes(), writes);
    let now = context.control_plane.workspace(&workspace.id).await.unwrap().unwrap();
    assert_eq!(now.pool, Some(pool.id));
    served.stop().await;
}

#[tokio::test]
async fn a_link_finds_the_pool_that_its_agentpool_joined() {
    let served = Served::new().await;
    let context = context(&served, Seam::default());
    let (spec, workspace) = (spec(&json!({})), workspace(&context).await);
    let joined = pool_spec(&json!({"name": "theirs", "adoptionPolicy": "Join"}));
    let input = LinkInput { pool: Some(PoolInput { spec: &joined, ..input(&spec).pool.unwrap() }), ..input(&spec) };
    assert_eq!(waits(&context, input).await, reason::POOL_NOT_FOUND);
    let theirs = pool(&context, "theirs", Some("owner")).await;
    let Outcome::Done(report) = link::reconcile(&context, input).await.unwrap() else { panic!("not linked") };
    assert_eq!((report.changed, report.pool.id), (true, theirs.id.clone()));
    let now = context.control_plane.workspace(&workspace.id).await.unwrap().unwrap();
    assert_eq!(now.pool, Some(theirs.id));
    assert_eq!(link::delete(&context, input).await.unwrap(), Deleted::Unlinked);
    served.stop().await;
}

#[tokio::test]
async fn another_pools_workspace_is_refused_or_replaced() {
    let served = Served::new().await;
    let context = context(&served, Seam::default());
    let workspace = workspace(&context).await;
    let pool_ours = pool(&context, "pool", Some(UID)).await;
    let other = pool(&context, "other", None).await;
    context.control_plane.link_workspace(&workspace.id, Some(&other.id)).await.unwrap();
    assert_eq!(waits(&context, input(&spec(&json!({})))).await, reason::ALREADY_LINKED_ELSEWHERE);
    // What is not ours is not unlinked.
    assert_eq!(link::delete(&context, input(&spec(&json!({})))).await.unwrap(), Deleted::Nothing);
    assert_eq!(context.seam.writes(), 0);
    let report = linked(&context, &spec(&json!({"onConflict": "Replace"}))).await;
    assert_eq!(report.workspace.pool, Some(pool_ours.id));
    served.stop().await;
}

#[tokio::test]
async fn deletion_unlinks_or_retains() {
    let served = Served::new().await;
    let context = context(&served, Seam::default());
    let workspace = workspace(&context).await;
    pool(&context, "pool", Some(UID)).await;
    linked(&context, &spec(&json!({}))).await;
    let retain = spec(&json!({"deletionPolicy": "Retain"}));
    assert_eq!(link::delete(&context, input(&retain)).await.unwrap(), Deleted::Retained);
    assert_eq!(link::delete(&context, input(&spec(&json!({})))).await.unwrap(), Deleted::Unlinked);
    assert_eq!(link::delete(&context, input(&spec(&json!({})))).await.unwrap(), Deleted::Nothing);
    assert_eq!(context.control_plane.workspace(&workspace.id).await.unwrap().unwrap().pool, None);
    served.stop().await;
}

#[tokio::test]
async fn a_pool_of_another_environment_is_denied() {
    let served = Served::new().await;
    let context = context(&served, Seam::default());
    workspace(&context).await;
    let elsewhere = context.control_plane.create_environment("staging").await.unwrap();
    let attributes = AgentPoolAttributes {
        name: Some("pool".to_owned()),
        external_id: Some(UID.to_owned()),
        ..AgentPoolAttributes::default()
    };
    context.control_plane.create_pool(&attributes, Some(&elsewhere.id), &[]).await.unwrap();
    assert_eq!(waits(&context, input(&spec(&json!({})))).await, reason::SCOPE_DENIED);
    assert_eq!(context.seam.writes(), 0);
    served.stop().await;
}

#[tokio::test]
async fn pools_are_found_by_name_and_by_id() {
    let served = Served::new().await;
    let context = context(&served, Seam::default());
    workspace(&context).await;
    let pool = pool(&context, "plain", None).await;
    for target in [json!({"name": "plain"}), json!({"id": pool.id.as_str()})] {
        let spec = serde_json::from_value(json!({"pool": target, "workspace": {"environment": "prod", "name": "app"}}));
        assert_eq!(linked(&context, &spec.unwrap()).await.pool.id, pool.id);
    }
    assert_eq!(context.seam.writes(), 1);
    served.stop().await;
}

#[tokio::test]
async fn a_failed_or_ambiguous_link_converges() {
    for fault in [Fault::Refuse, Fault::LoseAnswer] {
        let served = Served::new().await;
        let failing = Seam::with_hook(move |_, number| if number == 1 { fault } else { Fault::None });
        let context = context(&served, failing);
        let workspace = workspace(&context).await;
        let pool = pool(&context, "pool", Some(UID)).await;
        link::reconcile(&context, input(&spec(&json!({})))).await.unwrap_err();
        let report = linked(&context, &spec(&json!({}))).await;
        assert_eq!(report.changed, fault == Fault::Refuse, "{fault:?}");
        let now = context.control_plane.workspace(&workspace.id).await.unwrap().unwrap();
        assert_eq!(now.pool, Some(pool.id));
        served.stop().await;
    }
}
