//! The reconciling core against the real control plane: pools and their tokens, with every write failing,
//! losing its answer, or its secret before it is stored.

use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};
use terrapool::{
    api::iacp::AgentPoolAttributes,
    client::iacp::ControlPlane,
    crd::{AgentPoolSpec, conditions::reason},
    http,
    ids::{PoolId, TokenId},
    sync::{
        Context, Fault, Outcome, PoolInput, PoolReport, Seam, Waiting, WriteKind,
        pool::{self, Change, Deleted},
    },
};

use crate::support::{
    app::ADMIN_TOKEN,
    gate::{Fault as GateFault, Gate},
    served::Served,
    sim_agent::SimAgent,
};

const UID: &str = "11111111-2222-3333-4444-555555555555";

/// What the Secret would hold.
#[derive(Default)]
struct Keeper {
    held: Option<(TokenId, SecretString)>,
}

impl Keeper {
    fn id(&self) -> Option<&TokenId> {
        self.held.as_ref().map(|(id, _)| id)
    }
}

fn control_plane(served: &Served) -> ControlPlane {
    let base = format!("http://{}", served.access.host).parse().unwrap();
    ControlPlane::new(base, ADMIN_TOKEN.into(), http::client(None).unwrap())
}

fn context(served: &Served, seam: Seam) -> Context {
    Context {
        control_plane: control_plane(served),
        seam,
        clock: served.test.app.clock.clone(),
        create_environments: true,
    }
}

/// Fails write number `at` in that way, once.
fn failing(at: u64, fault: Fault) -> Seam {
    Seam::with_hook(move |_, number| if number == at { fault } else { Fault::None })
}

fn spec(value: Value) -> AgentPoolSpec {
    serde_json::from_value(value).unwrap()
}

/// The object as it is deleted.
fn gone(spec: &AgentPoolSpec) -> PoolInput<'_> {
    PoolInput { uid: UID, name: "pool", spec, held: None }
}

/// One pass; a fresh token is stored when `stores`.
async fn pass(
    context: &Context,
    uid: &str,
    spec: &AgentPoolSpec,
    keeper: &mut Keeper,
    stores: bool,
) -> Result<Outcome<PoolReport>, terrapool::sync::Error> {
    let input = PoolInput { uid, name: "pool", spec, held: keeper.id() };
    let mut outcome = pool::reconcile(context, input).await?;
    if let Outcome::Done(report) = &mut outcome
        && let Some(fresh) = report.token.fresh.take()
        && stores
    {
        keeper.held = Some((fresh.id, fresh.secret));
    }
    Ok(outcome)
}

async fn in_sync(context: &Context, uid: &str, spec: &AgentPoolSpec, keeper: &mut Keeper) -> PoolReport {
    match pass(context, uid, spec, keeper, true).await.unwrap() {
        Outcome::Done(report) => report,
        Outcome::Waiting(waiting) => panic!("{waiting:?}"),
    }
}

async fn waiting(context: &Context, uid: &str, spec: &AgentPoolSpec) -> Waiting {
    match pass(context, uid, spec, &mut Keeper::default(), true).await.unwrap() {
        Outcome::Waiting(waiting) => waiting,
        Outcome::Done(report) => panic!("{report:?}"),
    }
}

async fn token_ids(context: &Context, pool: &PoolId) -> Vec<TokenId> {
    context.control_plane.tokens(pool).await.unwrap().into_iter().map(|token| token.id).collect()
}

/// Pool and token are as they should be: exactly one token, which is the one that is held, and no write is left.
async fn assert_settled(served: &Served, spec: &AgentPoolSpec, keeper: &mut Keeper, case: &str) {
    let context = context(served, Seam::default());
    for _ in 0..3 {
        in_sync(&context, UID, spec, keeper).await;
    }
    let before = context.seam.writes();
    let report = in_sync(&context, UID, spec, keeper).await;
    assert_eq!(context.seam.writes(), before, "{case}: still writing");
    assert_eq!(token_ids(&context, &report.pool.id).await, [keeper.id().unwrap().clone()], "{case}");
    let secret = keeper.held.as_ref().unwrap().1.expose_secret();
    assert!(!secret.is_empty(), "{case}");
}

#[tokio::test]
async fn nothing_changed_is_zero_writes() {
    let served = Served::new().await;
    let spec = spec(json!({"allowedEnvironments": ["a", "b"], "runs": {"env": [{"name": "A", "value": "b"}],
        "resources": {"limits": {"memory": "512Mi", "cpu": "500m"}}}}));
    let mut keeper = Keeper::default();
    let context = context(&served, Seam::default());
    let first = in_sync(&context, UID, &spec, &mut keeper).await;
    assert_eq!(first.change, Change::Created);
    let writes = context.seam.writes();
    assert_eq!(writes, 4, "two environments, a pool, a token");
    for _ in 0..5 {
        assert_eq!(in_sync(&context, UID, &spec, &mut keeper).await.change, Change::None);
    }
    assert_eq!(context.seam.writes(), writes);
    let settings = first.pool.attributes.run_settings.unwrap();
    assert_eq!((settings.memory_bytes, settings.cpu_millis), (Some(512 << 20), Some(500)));
    served.stop().await;
}

#[tokio::test]
async fn p01_crash_after_remote_create_adopts_pool_by_external_id() {
    let served = Served::new().await;
    let spec = spec(json!({}));
    let mut keeper = Keeper::default();
    let cut = context(&served, failing(1, Fault::LoseAnswer));
    pass(&cut, UID, &spec, &mut keeper, true).await.unwrap_err();
    let again = context(&served, Seam::default());
    let report = in_sync(&again, UID, &spec, &mut keeper).await;
    assert_eq!((report.change, again.seam.writes()), (Change::None, 1), "only the token was missing");
    // The delete path needs nothing but the uid either.
    let deleted = pool::delete(&again, gone(&spec)).await.unwrap();
    assert!(matches!(deleted, Outcome::Done(Deleted::Gone)));
    assert!(again.control_plane.pool_by_external_id(UID).await.unwrap().is_none());
    assert!(matches!(pool::delete(&again, gone(&spec)).await.unwrap(), Outcome::Done(Deleted::Gone)));
    served.stop().await;
}

#[tokio::test]
async fn p02_failure_of_any_token_create_leaves_secret_complete() {
    for fault in [Fault::Refuse, Fault::LoseAnswer] {
        for attempts in 1..=3 {
            let served = Served::new().await;
            let spec = spec(json!({}));
            let mut keeper = Keeper::default();
            for _ in 0..attempts {
                let hook = move |kind, _| if kind == WriteKind::CreateToken { fault } else { Fault::None };
                pass(&context(&served, Seam::with_hook(hook)), UID, &spec, &mut keeper, true).await.unwrap_err();
            }
            assert_settled(&served, &spec, &mut keeper, &format!("{fault:?} {attempts} times")).await;
            served.stop().await;
        }
    }
}

#[tokio::test]
async fn p03_secret_write_conflict_is_retried_until_secret_matches() {
    let served = Served::new().await;
    let spec = spec(json!({}));
    let mut keeper = Keeper::default();
    let context = context(&served, Seam::default());
    for _ in 0..4 {
        pass(&context, UID, &spec, &mut keeper, false).await.unwrap();
        let pool = context.control_plane.pool_by_external_id(UID).await.unwrap().unwrap();
        assert_eq!(token_ids(&context, &pool.id).await.len(), 1, "tokens that nobody holds pile up");
    }
    assert_settled(&served, &spec, &mut keeper, "stored at last").await;
    served.stop().await;
}

#[tokio::test]
async fn p04_deleted_secret_or_key_gets_a_rotated_token_in_one_reconcile() {
    let served = Served::new().await;
    let spec = spec(json!({}));
    let mut keeper = Keeper::default();
    let context = context(&served, Seam::default());
    in_sync(&context, UID, &spec, &mut keeper).await;
    let (lost, _) = keeper.held.take().unwrap();
    in_sync(&context, UID, &spec, &mut keeper).await;
    assert_ne!(keeper.id(), Some(&lost));
    assert_settled(&served, &spec, &mut keeper, "after the Secret was deleted").await;
    // Revoked in the control plane by somebody: replaced as well.
    context.control_plane.delete_token(keeper.id().unwrap()).await.unwrap();
    in_sync(&context, UID, &spec, &mut keeper).await;
    assert_settled(&served, &spec, &mut keeper, "after the token was revoked").await;
    served.stop().await;
}

/// Create, rename and restrict, rotate: every write of it fails once in every way, and every store is lost once.
#[tokio::test]
async fn any_failed_write_or_store_converges_without_leavings() {
    const HOURS: i64 = 3600;
    let first = spec(json!({"scope": {"type": "Account"}, "allowedEnvironments": ["a"]}));
    let second = spec(json!({"name": "renamed", "allowedEnvironments": ["a", "b"]}));
    for fault in [Fault::Refuse, Fault::LoseAnswer, Fault::Delay(std::time::Duration::from_millis(5))] {
        // Environment a, pool, token; environment b, pool; token, revocation.
        for at in 1..=8 {
            for lost_store in [None, Some(0), Some(1)] {
                let served = Served::new().await;
                let context = context(&served, failing(at, fault));
                let mut keeper = Keeper::default();
                let mut stores = 0;
                let case = format!("write {at} {fault:?}, store {lost_store:?} lost");
                for (step, spec) in [&first, &second, &second, &second].into_iter().enumerate() {
                    if step == 2 {
                        // 720 h of life, renewed 168 h before its end.
                        served.test.advance(553 * HOURS);
                    }
                    if step == 3 {
                        served.test.advance(2 * HOURS);
                    }
                    for attempt in 0..3 {
                        let before = keeper.id().cloned();
                        let lose = attempt == 0 && lost_store.is_some_and(|lost| lost * 2 == step);
                        drop(pass(&context, UID, spec, &mut keeper, !lose).await);
                        stores += u32::from(keeper.id().cloned() != before);
                    }
                }
                assert_settled(&served, &second, &mut keeper, &case).await;
                assert_eq!(stores, 2, "{case}: a first token and one renewal");
                let pools = served.test.get("/api/iacp/v3/agent-pools").await.expect(200).json();
                assert_eq!(pools["data"].as_array().unwrap().len(), 1, "{case}: {pools}");
                assert_eq!(pools["data"][0]["attributes"]["name"], "renamed", "{case}");
                served.stop().await;
            }
        }
    }
}

#[tokio::test]
async fn rotation_keeps_the_old_token_for_the_overlap() {
    let served = Served::new().await;
    let spec = spec(json!({"token": {"ttl": "24h", "rotateBefore": "4h", "overlap": "1h"}}));
    let mut keeper = Keeper::default();
    let context = context(&served, Seam::default());
    let pool = in_sync(&context, UID, &spec, &mut keeper).await.pool.id;
    let old = keeper.id().unwrap().clone();
    served.test.advance(20 * 3600);
    in_sync(&context, UID, &spec, &mut keeper).await;
    let new = keeper.id().unwrap().clone();
    assert_ne!(old, new);
    served.test.advance(3599);
    in_sync(&context, UID, &spec, &mut keeper).await;
    assert_eq!(token_ids(&context, &pool).await.len(), 2, "inside the overlap both are valid");
    served.test.advance(1);
    in_sync(&context, UID, &spec, &mut keeper).await;
    assert_eq!(token_ids(&context, &pool).await, [new]);
    served.stop().await;
}

/// An agent that registered with the first token goes on through renewals, the end of overlaps and of tokens, even
/// when no pass was made for longer than a token lives.
#[tokio::test]
async fn an_agent_outlives_every_rotation() {
    let served = Served::new().await;
    let spec = spec(json!({"token": {"ttl": "24h", "rotateBefore": "4h", "overlap": "1h"}}));
    let mut keeper = Keeper::default();
    let context = context(&served, Seam::default());
    let pool = in_sync(&context, UID, &spec, &mut keeper).await.pool.id;
    let agent = SimAgent::register(&served.test, keeper.held.as_ref().unwrap().1.expose_secret(), "a").await;
    for hours in [20, 1, 22, 1, 30, 1, 100, 2] {
        served.test.advance(hours * 3600);
        for _ in 0..3 {
            in_sync(&context, UID, &spec, &mut keeper).await;
            agent.heartbeat(&[]).await;
        }
    }
    assert_eq!(token_ids(&context, &pool).await, [keeper.id().unwrap().clone()], "four tokens later");
    served.stop().await;
}

/// A control plane without retiring, as scalr.io is: replaced tokens are revoked.
#[tokio::test]
async fn where_tokens_cannot_be_retired_they_are_revoked() {
    for refusal in [404, 405] {
        let served = Served::new().await;
        let (gate, base) = Gate::open(served.test.router.clone()).await;
        gate.fault("POST /actions/retire", GateFault::Refuse(refusal), usize::MAX);
        let spec = spec(json!({"token": {"ttl": "24h", "rotateBefore": "4h", "overlap": "1h"}}));
        let mut keeper = Keeper::default();
        let client = http::client(None).unwrap();
        let context = Context {
            control_plane: ControlPlane::new(base, ADMIN_TOKEN.into(), client),
            ..context(&served, Seam::default())
        };
        let pool = in_sync(&context, UID, &spec, &mut keeper).await.pool.id;
        // In use: otherwise it would be revoked anyway.
        SimAgent::register(&served.test, keeper.held.as_ref().unwrap().1.expose_secret(), "a").await;
        for hours in [20, 2] {
            served.test.advance(hours * 3600);
            in_sync(&context, UID, &spec, &mut keeper).await;
        }
        assert_eq!(token_ids(&context, &pool).await, [keeper.id().unwrap().clone()]);
        assert_eq!(gate.seen("POST /actions/retire").len(), 1);
        served.stop().await;
    }
}

#[tokio::test]
async fn a_foreign_pool_of_the_same_name_is_never_taken_over_unasked() {
    let served = Served::new().await;
    let context = context(&served, Seam::default());
    let named = AgentPoolAttributes { name: Some("pool".to_owned()), ..AgentPoolAttributes::default() };
    let foreign = context.control_plane.create_pool(&named, None, &[]).await.unwrap();
    let never = spec(json!({}));
    let refused = waiting(&context, UID, &never).await;
    assert_eq!(refused.reason, reason::NAME_CONFLICT);
    assert!(refused.message.contains(foreign.id.as_str()), "{}", refused.message);
    assert_eq!(context.seam.writes(), 0);

    let by_name = spec(json!({"adoptionPolicy": "ByName"}));
    let mut keeper = Keeper::default();
    let report = in_sync(&context, UID, &by_name, &mut keeper).await;
    assert_eq!((report.change, &report.pool.id), (Change::Adopted, &foreign.id));
    // Owned now: another object cannot have it, asked or not.
    assert_eq!(waiting(&context, "another", &by_name).await.reason, reason::NAME_CONFLICT);

    // Let go, it can be taken over again.
    let retain = spec(json!({"deletionPolicy": "Retain"}));
    assert!(matches!(pool::delete(&context, gone(&retain)).await.unwrap(), Outcome::Done(Deleted::Retained)));
    let report = in_sync(&context, "another", &by_name, &mut Keeper::default()).await;
    assert_eq!((report.change, &report.pool.id), (Change::Adopted, &foreign.id));
    served.stop().await;
}

#[tokio::test]
async fn p05_blocked_deletion_names_the_linked_workspaces() {
    let served = Served::new().await;
    let context = context(&served, Seam::default());
    let spec = spec(json!({}));
    let pool = in_sync(&context, UID, &spec, &mut Keeper::default()).await.pool;
    let environment = context.control_plane.create_environment("prod").await.unwrap();
    let mut workspaces = Vec::new();
    for number in 0..12 {
        let workspace = context.control_plane.create_workspace(&environment.id, &format!("app-{number:02}")).await;
        let workspace = workspace.unwrap();
        context.control_plane.link_workspace(&workspace.id, Some(&pool.id)).await.unwrap();
        workspaces.push(workspace.id);
    }
    let writes = context.seam.writes();
    let Outcome::Waiting(blocked) = pool::delete(&context, gone(&spec)).await.unwrap() else { panic!("deleted") };
    assert_eq!((blocked.reason, context.seam.writes()), (reason::LINKED_WORKSPACES, writes));
    assert!(blocked.message.contains("prod/app-") && blocked.message.contains("and 2 more"), "{}", blocked.message);
    for id in &workspaces {
        context.control_plane.link_workspace(id, None).await.unwrap();
    }
    assert!(matches!(pool::delete(&context, gone(&spec)).await.unwrap(), Outcome::Done(Deleted::Gone)));
    served.stop().await;
}

#[tokio::test]
async fn a_missing_environment_is_waited_for_by_an_operator() {
    let served = Served::new().await;
    let context = Context { create_environments: false, ..context(&served, Seam::default()) };
    let spec = spec(json!({"scope": {"type": "Environment", "environment": "prod"}}));
    assert_eq!(waiting(&context, UID, &spec).await.reason, reason::ENVIRONMENT_NOT_FOUND);
    let environment = context.control_plane.create_environment("prod").await.unwrap();
    let report = in_sync(&context, UID, &spec, &mut Keeper::default()).await;
    assert_eq!(report.pool.environment, Some(environment.id));
    served.stop().await;
}

#[tokio::test]
async fn a_joined_pool_gets_tokens_of_its_own_and_stays_its_owners() {
    let served = Served::new().await;
    let context = context(&served, Seam::default());
    let join = spec(json!({"adoptionPolicy": "Join", "default": true}));
    assert_eq!(waiting(&context, UID, &join).await.reason, reason::POOL_NOT_FOUND);

    let owner = in_sync(&context, "owner", &spec(json!({})), &mut Keeper::default()).await;
    let mut member = Keeper::default();
    let joined = in_sync(&context, UID, &join, &mut member).await;
    assert_eq!((joined.change, &joined.pool.id), (Change::None, &owner.pool.id));
    assert_eq!(joined.pool.attributes.default, Some(false), "how the pool is decides its owner");
    assert_eq!(context.control_plane.tokens(&owner.pool.id).await.unwrap().len(), 2);

    assert!(matches!(pool::delete(&context, gone(&join)).await.unwrap(), Outcome::Done(Deleted::Retained)));
    let left = context.control_plane.tokens(&owner.pool.id).await.unwrap();
    assert!(left.len() == 1 && Some(&left[0].id) != member.id(), "only the member's own token is revoked: {left:?}");
    served.stop().await;
}
