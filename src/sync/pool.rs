//! A pool in the control plane: found by its external id (the object's uid), else created or, where that is
//! allowed, taken over by name; then changed member by member. Never touches a stranger's pool, and never the
//! pool's workspaces.

use std::collections::BTreeMap;

use super::{Context, Error, Outcome, Result, TokenReport, Waiting, WriteKind, found, reading, token};
use crate::{
    api::iacp::{AgentPoolAttributes, RunSettings},
    client::iacp::{self, Pool},
    crd::{
        agent_pool::{AdoptionPolicy, AgentPoolSpec, PoolDeletion, RunUser, Runs, ScopeType},
        conditions::reason,
        pods::Resources,
        quantity,
    },
    ids::{EnvironmentId, TokenId},
};

/// Prefix of the external id of a pool that its AgentPool let go: another one may take it over.
const RELEASED: &str = "released:";

/// Workspaces that a message names.
const NAMED: usize = 10;

/// What a pass works on.
#[derive(Debug, Clone, Copy)]
pub struct PoolInput<'a> {
    /// The object's uid: identity of everything made for it.
    pub uid: &'a str,
    /// The object's name, where the spec gives the pool none.
    pub name: &'a str,
    pub spec: &'a AgentPoolSpec,
    /// The token whose secret the keeper holds intact, read afresh: a stale answer revokes a good token.
    pub held: Option<&'a TokenId>,
}

impl PoolInput<'_> {
    /// Name of the pool in the control plane.
    fn pool_name(&self) -> &str {
        self.spec.name.as_deref().unwrap_or(self.name)
    }
}

/// What a pass did to the pool itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    None,
    Created,
    Adopted,
    Updated,
}

/// What was seen and done.
#[derive(Debug)]
pub struct PoolReport {
    pub pool: Pool,
    pub change: Change,
    pub token: TokenReport,
}

/// How the pool is to be.
#[derive(Debug, Clone, PartialEq)]
pub struct Wanted {
    pub uid: String,
    pub name: String,
    /// Scope; `None`: the account.
    pub environment: Option<EnvironmentId>,
    /// Which environments may use a pool of the account; `None`: all.
    pub allowed: Option<Vec<EnvironmentId>>,
    pub default: bool,
    pub run_settings: RunSettings,
    pub adoption: AdoptionPolicy,
}

/// What to do about the pool.
#[derive(Debug, Clone, PartialEq)]
pub enum Plan {
    Nothing,
    Create {
        attributes: AgentPoolAttributes,
        environments: Vec<EnvironmentId>,
    },
    /// With only what differs.
    Update {
        adopt: bool,
        attributes: AgentPoolAttributes,
        environments: Option<Vec<EnvironmentId>>,
    },
}

/// Decides from the pool with our external id and the pool that has the wanted name in the wanted scope.
///
/// # Errors
/// What stands in the way.
pub fn plan(wanted: &Wanted, own: Option<&Pool>, same_name: Option<&Pool>) -> Result<Plan, Waiting> {
    if own.is_none() && wanted.adoption == AdoptionPolicy::Join {
        return match same_name {
            // Whose it is decides how it is; here only agents and a token are added.
            Some(_) => Ok(Plan::Nothing),
            None => {
                let message = format!(
                    "the control plane has no pool `{}` to join yet: it is joined as soon as its owner makes it",
                    wanted.name
                );
                Err(Waiting::new(reason::POOL_NOT_FOUND, message))
            }
        };
    }
    let Some(pool) = own.or(same_name) else {
        let attributes = AgentPoolAttributes {
            name: Some(wanted.name.clone()),
            external_id: Some(wanted.uid.clone()),
            is_shared: wanted.environment.is_none().then_some(wanted.allowed.is_none()),
            default: wanted.default.then_some(true),
            run_settings: Some(wanted.run_settings.clone()),
            ..AgentPoolAttributes::default()
        };
        return Ok(Plan::Create { attributes, environments: wanted.allowed.clone().unwrap_or_default() });
    };
    if let (Some(other), true) = (same_name, own.is_none_or(|own| same_name.is_some_and(|other| other.id != own.id))) {
        check_adoption(wanted, own, other)?;
    }
    if pool.environment != wanted.environment {
        return Err(Waiting::new(
            reason::INVALID_SPEC,
            format!(
                "the pool {} has another scope, which never moves: delete this AgentPool and create another",
                pool.id
            ),
        ));
    }
    Ok(difference(wanted, pool, own.is_none()))
}

fn check_adoption(wanted: &Wanted, own: Option<&Pool>, other: &Pool) -> Result<(), Waiting> {
    let conflict = |what: &str| {
        let message =
            format!("the control plane has a pool `{}` ({}) in this scope already: {what}", wanted.name, other.id);
        Err(Waiting::new(reason::NAME_CONFLICT, message))
    };
    let owner = other.attributes.external_id.as_deref().filter(|id| !id.is_empty() && !id.starts_with(RELEASED));
    match (own, owner, wanted.adoption) {
        (Some(_), _, _) => conflict("choose another name"),
        (None, Some(_), _) => {
            conflict("it belongs to another AgentPool; choose another name, or join it with adoptionPolicy: Join")
        }
        (None, None, AdoptionPolicy::Never) => {
            conflict("choose another name, or take it over with adoptionPolicy: ByName")
        }
        (None, None, AdoptionPolicy::ByName | AdoptionPolicy::Join) => Ok(()),
    }
}

fn difference(wanted: &Wanted, pool: &Pool, adopt: bool) -> Plan {
    let seen = &pool.attributes;
    let differs = |wanted: bool, seen: Option<bool>| (wanted != seen.unwrap_or(false)).then_some(wanted);
    let mut attributes = AgentPoolAttributes {
        name: (seen.name.as_ref() != Some(&wanted.name)).then(|| wanted.name.clone()),
        external_id: adopt.then(|| wanted.uid.clone()),
        default: differs(wanted.default, seen.default),
        run_settings: (seen.run_settings.clone().unwrap_or_default() != wanted.run_settings)
            .then(|| wanted.run_settings.clone()),
        ..AgentPoolAttributes::default()
    };
    let mut environments = None;
    if wanted.environment.is_none() {
        attributes.is_shared = differs(wanted.allowed.is_none(), seen.is_shared);
        if let Some(allowed) = &wanted.allowed {
            let mut listed = pool.environments.clone();
            listed.sort();
            environments = (listed != *allowed).then(|| allowed.clone());
        }
    }
    if attributes == AgentPoolAttributes::default() && environments.is_none() {
        return Plan::Nothing;
    }
    Plan::Update { adopt, attributes, environments }
}

/// Brings the pool and its token into line.
///
/// # Errors
/// When a call failed; the next pass tries again.
pub async fn reconcile(context: &Context, input: PoolInput<'_>) -> Result<Outcome<PoolReport>> {
    let wanted = found!(resolve(context, &input).await?);
    let cp = &context.control_plane;
    let own = cp.pool_by_external_id(&wanted.uid).await.map_err(reading("look for the pool"))?;
    let named = own.as_ref().is_some_and(|own| own.attributes.name.as_ref() == Some(&wanted.name));
    let same_name = if named {
        None
    } else {
        let by_name = cp.pool_by_name(&wanted.name, wanted.environment.as_ref()).await;
        by_name.map_err(reading("look for a pool of that name"))?
    };
    let plan = found!(plan(&wanted, own.as_ref(), same_name.as_ref()));
    let (pool, change) = match apply(context, &wanted, plan, own.or(same_name)).await {
        Ok(applied) => applied,
        Err(error) => return refused(error).map(Outcome::Waiting),
    };
    let token = token::reconcile(context, &wanted.uid, &input.spec.token, &pool.id, input.held).await?;
    Ok(Outcome::Done(PoolReport { pool, change, token }))
}

async fn apply(context: &Context, wanted: &Wanted, plan: Plan, seen: Option<Pool>) -> Result<(Pool, Change)> {
    let cp = &context.control_plane;
    match (plan, seen) {
        (Plan::Nothing, Some(pool)) => Ok((pool, Change::None)),
        (Plan::Update { adopt, attributes, environments }, Some(pool)) => {
            let update = cp.update_pool(&pool.id, &attributes, environments.as_deref());
            let pool = context.seam.write(WriteKind::UpdatePool, update).await?;
            Ok((pool, if adopt { Change::Adopted } else { Change::Updated }))
        }
        (Plan::Create { attributes, environments }, _) => {
            let create = cp.create_pool(&attributes, wanted.environment.as_ref(), &environments);
            Ok((context.seam.write(WriteKind::CreatePool, create).await?, Change::Created))
        }
        // A plan is made from what was seen: there is no change of nothing.
        (Plan::Nothing | Plan::Update { .. }, None) => Err(Error::Read {
            action: "find the pool again",
            source: Box::new(iacp::Error::NotFound { title: wanted.name.clone() }),
        }),
    }
}

/// Refusals that somebody can mend are waited for; others are errors.
fn refused(error: Error) -> Result<Waiting> {
    match error.cause() {
        Some(iacp::Error::Invalid { pointer, detail }) => {
            let reason = match pointer.as_deref() {
                Some("/data/attributes/name") => reason::NAME_CONFLICT,
                _ => reason::INVALID_SPEC,
            };
            Ok(Waiting::new(reason, detail.clone()))
        }
        // Access is not taken from environments that use the pool.
        Some(iacp::Error::Conflict { detail }) => Ok(Waiting::new(reason::SCOPE_DENIED, detail.clone())),
        _ => Err(error),
    }
}

async fn resolve(context: &Context, input: &PoolInput<'_>) -> Result<Result<Wanted, Waiting>> {
    let spec = input.spec;
    let run_settings = match run_settings(&spec.runs) {
        Ok(settings) => settings,
        Err(waiting) => return Ok(Err(waiting)),
    };
    let environment = match (&spec.scope.type_, &spec.scope.environment) {
        (ScopeType::Environment, Some(name)) => match context.environment(name).await? {
            Ok(environment) => Some(environment.id),
            Err(waiting) => return Ok(Err(waiting)),
        },
        _ => None,
    };
    let mut allowed = None;
    if let Some(names) = &spec.allowed_environments
        && !names.iter().any(|name| name.0 == "*")
    {
        let mut ids = Vec::with_capacity(names.len());
        for name in names {
            match context.environment(&name.0).await? {
                Ok(environment) => ids.push(environment.id),
                Err(waiting) => return Ok(Err(waiting)),
            }
        }
        ids.sort();
        ids.dedup();
        allowed = Some(ids);
    }
    Ok(Ok(Wanted {
        uid: input.uid.to_owned(),
        name: input.pool_name().to_owned(),
        environment,
        allowed,
        default: spec.default,
        run_settings,
        adoption: spec.adoption_policy,
    }))
}

/// What the control plane needs to know of `spec.runs`.
fn run_settings(runs: &Runs) -> Result<RunSettings, Waiting> {
    // `network` is enforced where the runs are; the control plane has no part in it.
    let Runs { image, allowed_images, user, acknowledge_root: _, resources, env, timeouts, network: _ } = runs;
    let limit = |name: &str, unit: i64| -> Result<Option<i64>, Waiting> {
        let Some(text) = resources.as_ref().and_then(|Resources { limits, .. }| limits.get(name)) else {
            return Ok(None);
        };
        match quantity::thousandths(&text.0) {
            Some(amount) => Ok(Some(amount / unit)),
            None => {
                let message =
                    format!("spec.runs.resources.limits.{name}: `{}` is not an amount, as 512Mi or 500m", text.0);
                Err(Waiting::new(reason::INVALID_SPEC, message))
            }
        }
    };
    Ok(RunSettings {
        image: image.as_ref().map(|image| image.as_str().to_owned()),
        allowed_images: allowed_images.iter().map(|pattern| pattern.0.clone()).collect(),
        run_as_root: *user == RunUser::Root,
        env: env.iter().map(|variable| (variable.name.clone(), variable.value.clone())).collect::<BTreeMap<_, _>>(),
        memory_bytes: limit("memory", 1000)?,
        cpu_millis: limit("cpu", 1)?,
        plan_timeout_seconds: Some(timeouts.plan.seconds()),
        apply_timeout_seconds: Some(timeouts.apply.seconds()),
    })
}

/// What became of the pool of a deleted object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deleted {
    /// It is gone, with its tokens.
    Gone,
    /// It stays, as `deletionPolicy: Retain` asks.
    Retained,
}

/// The pool of an object: by its external id, or the one that it joined.
///
/// # Errors
/// When a call failed.
pub async fn find(context: &Context, input: PoolInput<'_>) -> Result<Option<Pool>> {
    let cp = &context.control_plane;
    let own = cp.pool_by_external_id(input.uid).await.map_err(reading("look for the pool"))?;
    if own.is_some() || input.spec.adoption_policy != AdoptionPolicy::Join {
        return Ok(own);
    }
    let environment = match &input.spec.scope.environment {
        None => None,
        Some(name) => {
            let found = cp.environment_by_name(name).await.map_err(reading("look for the environment"))?;
            let Some(environment) = found else { return Ok(None) };
            Some(environment.id)
        }
    };
    cp.pool_by_name(input.pool_name(), environment.as_ref()).await.map_err(reading("look for the pool to join"))
}

/// What stands in the way of deleting the pool of a deleted object, as far as can be seen; reads only.
///
/// # Errors
/// When a call failed; the next pass tries again.
pub async fn blocked(context: &Context, input: PoolInput<'_>) -> Result<Option<Waiting>> {
    let pool = find(context, input).await?.filter(|pool| is_own(pool, input.uid));
    match pool.filter(|pool| input.spec.deletion_policy == PoolDeletion::Delete && !pool.workspaces.is_empty()) {
        Some(pool) => in_use(context, &pool).await.map(Some),
        None => Ok(None),
    }
}

fn is_own(pool: &Pool, uid: &str) -> bool {
    pool.attributes.external_id.as_deref() == Some(uid)
}

/// Removes what was made for an object. Needs nothing but its uid, name and spec.
///
/// # Errors
/// When a call failed; the next pass tries again.
pub async fn delete(context: &Context, input: PoolInput<'_>) -> Result<Outcome<Deleted>> {
    let cp = &context.control_plane;
    let PoolInput { uid, spec, .. } = input;
    let Some(pool) = find(context, input).await? else {
        return Ok(Outcome::Done(Deleted::Gone));
    };
    if !is_own(&pool, uid) {
        token::revoke_own(context, uid, &pool.id).await?;
        return Ok(Outcome::Done(Deleted::Retained));
    }
    if spec.deletion_policy == PoolDeletion::Retain {
        // Nobody keeps them any more.
        token::revoke_own(context, uid, &pool.id).await?;
        let released =
            AgentPoolAttributes { external_id: Some(format!("{RELEASED}{uid}")), ..AgentPoolAttributes::default() };
        context.seam.write(WriteKind::UpdatePool, cp.update_pool(&pool.id, &released, None)).await?;
        return Ok(Outcome::Done(Deleted::Retained));
    }
    if !pool.workspaces.is_empty() {
        return Ok(Outcome::Waiting(in_use(context, &pool).await?));
    }
    match context.seam.write(WriteKind::DeletePool, cp.delete_pool(&pool.id)).await {
        Ok(()) => Ok(Outcome::Done(Deleted::Gone)),
        Err(error) => match error.cause() {
            // Linked since we looked, an environment's default, or still at work.
            Some(iacp::Error::Conflict { detail }) => {
                Ok(Outcome::Waiting(Waiting::new(reason::LINKED_WORKSPACES, detail.clone())))
            }
            _ => Err(error),
        },
    }
}

async fn in_use(context: &Context, pool: &Pool) -> Result<Waiting> {
    let cp = &context.control_plane;
    let mut names = Vec::new();
    for id in pool.workspaces.iter().take(NAMED) {
        let workspace = cp.workspace(id).await.map_err(reading("look up a linked workspace"))?;
        if let Some(workspace) = workspace {
            let environment = cp.environment(&workspace.environment).await;
            let environment = environment.map_err(reading("look up the environment of a linked workspace"))?;
            let environment = environment.map_or_else(String::new, |environment| environment.name + "/");
            names.push(format!("{environment}{}", workspace.name));
        }
    }
    let more = match pool.workspaces.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let noun = if pool.workspaces.len() == 1 { "workspace" } else { "workspaces" };
    let name = pool.attributes.name.as_deref().unwrap_or_default();
    let message = format!(
        "the pool `{name}` is used by {noun} {}{more}: it is deleted when nothing uses it any more",
        names.join(", ")
    );
    Ok(Waiting::new(reason::LINKED_WORKSPACES, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted() -> Wanted {
        Wanted {
            uid: "uid-1".to_owned(),
            name: "p".to_owned(),
            environment: None,
            allowed: None,
            default: false,
            run_settings: RunSettings::default(),
            adoption: AdoptionPolicy::Never,
        }
    }

    /// The pool that [`wanted`] asks for.
    fn pool(id: &str, external_id: Option<&str>) -> Pool {
        Pool {
            id: format!("apool-{id}").parse().unwrap(),
            attributes: AgentPoolAttributes {
                name: Some("p".to_owned()),
                is_shared: Some(true),
                default: Some(false),
                external_id: external_id.map(str::to_owned),
                run_settings: Some(RunSettings::default()),
                ..AgentPoolAttributes::default()
            },
            environment: None,
            environments: Vec::new(),
            workspaces: Vec::new(),
        }
    }

    fn conflict(result: Result<Plan, Waiting>) -> String {
        let waiting = result.unwrap_err();
        assert_eq!(waiting.reason, reason::NAME_CONFLICT);
        waiting.message
    }

    #[test]
    fn nothing_differs_nothing_is_done() {
        let own = pool("own", Some("uid-1"));
        assert_eq!(plan(&wanted(), Some(&own), None), Ok(Plan::Nothing));
    }

    #[test]
    fn only_what_differs_is_sent() {
        let own = pool("own", Some("uid-1"));
        let environment: EnvironmentId = "env-a".parse().unwrap();
        let wanted = Wanted { name: "q".to_owned(), allowed: Some(vec![environment.clone()]), ..wanted() };
        let Ok(Plan::Update { adopt: false, attributes, environments }) = plan(&wanted, Some(&own), None) else {
            panic!("no update");
        };
        let only = AgentPoolAttributes {
            name: Some("q".to_owned()),
            is_shared: Some(false),
            ..AgentPoolAttributes::default()
        };
        assert_eq!((attributes, environments), (only, Some(vec![environment])));
    }

    #[test]
    fn a_stranger_of_the_same_name_is_left_alone() {
        let stranger = pool("other", None);
        assert!(conflict(plan(&wanted(), None, Some(&stranger))).contains("adoptionPolicy: ByName"));
        let own = pool("own", Some("uid-1"));
        assert!(conflict(plan(&wanted(), Some(&own), Some(&stranger))).contains("choose another name"));
        let by_name = Wanted { adoption: AdoptionPolicy::ByName, ..wanted() };
        let owned = pool("other", Some("uid-2"));
        assert!(conflict(plan(&by_name, None, Some(&owned))).contains("another AgentPool"));
    }

    #[test]
    fn adoption_by_name_takes_what_nobody_owns() {
        let by_name = Wanted { adoption: AdoptionPolicy::ByName, ..wanted() };
        for external_id in [None, Some("released:uid-0")] {
            let other = pool("other", external_id);
            let Ok(Plan::Update { adopt: true, attributes, environments: None }) = plan(&by_name, None, Some(&other))
            else {
                panic!("not adopted: {external_id:?}");
            };
            let only = AgentPoolAttributes { external_id: Some("uid-1".to_owned()), ..AgentPoolAttributes::default() };
            assert_eq!(attributes, only);
        }
    }

    #[test]
    fn a_pool_is_joined_as_it_is_and_only_when_it_is_there() {
        let join = Wanted { adoption: AdoptionPolicy::Join, default: true, ..wanted() };
        let owned = pool("other", Some("uid-2"));
        assert_eq!(plan(&join, None, Some(&owned)), Ok(Plan::Nothing));
        assert_eq!(plan(&join, None, None).unwrap_err().reason, reason::POOL_NOT_FOUND);
    }

    #[test]
    fn a_pool_of_another_scope_is_not_touched() {
        let own = Pool { environment: Some("env-x".parse().unwrap()), ..pool("own", Some("uid-1")) };
        assert_eq!(plan(&wanted(), Some(&own), None).unwrap_err().reason, reason::INVALID_SPEC);
    }
}
