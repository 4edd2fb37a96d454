//! A pool's place in the control plane, its token, and the Secret that holds it.

use std::{sync::Arc, time::Duration};

use k8s_openapi::{api::core::v1::Secret, jiff::Timestamp};
use kube::{Resource, ResourceExt};
use secrecy::SecretString;
use serde_json::json;

use super::{
    Pass,
    secret::{self, Content, Ownership},
};
use crate::{
    crd::{AgentPool, agent_pool::TokenStatus, conditions::reason, names},
    ids::{PoolId, TokenId},
    operator::{Error, control_planes::Connection, events::News, facts::Fact, owned::is_orphan, workloads},
    sync::{self, Outcome, PoolInput, PoolReport, Waiting, pool::Change},
};

/// The pool as the control plane has it, and its Secret.
#[derive(Debug, Clone)]
pub(super) struct Known {
    pub(super) connection: Arc<Connection>,
    pub(super) pool_id: PoolId,
    pub(super) token_id: TokenId,
    pub(super) token_expires_at: Option<i64>,
    pub(super) secret_name: String,
    pub(super) linked_workspaces: i64,
}

/// A pool that has its place, and how soon its token needs another look.
#[derive(Debug)]
pub(super) struct Registered {
    pub(super) known: Known,
    pub(super) next_token: Duration,
}

/// Name of the pool's Secret.
pub(super) fn secret_name(pool: &AgentPool) -> String {
    pool.spec.token.secret_name.clone().unwrap_or_else(|| format!("{}-agent-token", pool.name_any()))
}

impl Pass<'_> {
    pub(super) fn known(&mut self, known: &Known) {
        self.facts.registered = Some(Fact::yes(reason::IN_SYNC, "the pool is in the control plane"));
        self.facts.token_ready = Some(Fact::yes(reason::IN_SYNC, "the Secret holds a valid pool token"));
        self.facts.pool_id = Some(known.pool_id.to_string());
        self.facts.linked_workspaces = Some(known.linked_workspaces);
        self.facts.token = Some(TokenStatus {
            id: known.token_id.to_string(),
            expires_at: known.token_expires_at.and_then(time_text),
            secret_name: known.secret_name.clone(),
        });
    }

    /// Pool and token in the control plane, and the Secret.
    pub(super) async fn register(&mut self) -> Result<Result<Registered, Waiting>, Error> {
        let spec = &self.pool.spec;
        let connection =
            match self.common.control_planes.resolve(&self.namespace, spec.control_plane.as_deref()).await? {
                Ok(connection) => connection,
                Err(waiting) => return Ok(Err(self.not_registered(waiting))),
            };
        let secret_name = secret_name(self.pool);
        let stored = self.common.cluster.get::<Secret>(&self.namespace, &secret_name).await?;
        let stored = match stored.as_ref().map(|secret| (secret, secret::ownership(secret, &self.uid, &self.name))) {
            Some((_, Ownership::Foreign)) => {
                let message = format!(
                    "the Secret `{secret_name}` is there and not this pool's: remove it, or set spec.token.secretName"
                );
                self.facts.token_ready = Some(Fact::no(reason::NAME_CONFLICT, message.clone()));
                return Ok(Err(Waiting::new(reason::NAME_CONFLICT, message)));
            }
            Some((leftover, Ownership::Leftover)) => {
                let uid = leftover.meta().uid.as_deref();
                self.common.cluster.delete::<Secret>(&self.namespace, &secret_name, uid, None).await?;
                None
            }
            Some((_, Ownership::Ours)) => stored,
            None => None,
        };
        let held = stored.as_ref().and_then(secret::held);
        let input = PoolInput { held: held.as_ref().map(|(id, _)| id), ..self.input() };
        let sync = self.common.sync(&connection.control_plane);
        let report = match sync::pool::reconcile(&sync, input).await? {
            Outcome::Done(report) => report,
            Outcome::Waiting(waiting) => return Ok(Err(self.not_registered(waiting))),
        };
        self.common.own_pools.saw(&self.uid, &report.pool);
        self.announce(&report, held.is_some(), stored.is_some()).await;
        self.keep_secret(&connection, &secret_name, stored.as_ref(), held, report).await.map(Ok)
    }

    fn not_registered(&mut self, waiting: Waiting) -> Waiting {
        self.facts.registered = Some(Fact::no(waiting.reason, waiting.message.clone()));
        waiting
    }

    /// Puts the token where the agents find it. A fresh one can never be read again: nothing comes before this.
    async fn keep_secret(
        &self,
        connection: &Arc<Connection>,
        name: &str,
        stored: Option<&Secret>,
        held: Option<(TokenId, SecretString)>,
        report: PoolReport,
    ) -> Result<Registered, Error> {
        let now = self.common.clock.now_ms();
        let next_token =
            report.token.next.map_or(Duration::MAX, |at| Duration::from_millis(u64::try_from(at - now).unwrap_or(0)));
        let token = report.token.fresh.map(|fresh| (fresh.id, fresh.secret)).or(held);
        let Some((token_id, token)) = token else { return Err(Error::NoToken) };
        let known = Known {
            connection: Arc::clone(connection),
            pool_id: report.pool.id,
            token_id,
            token_expires_at: report.token.expires_at,
            secret_name: name.to_owned(),
            linked_workspaces: i64::try_from(report.pool.workspaces.len()).unwrap_or(i64::MAX),
        };
        let content = Content {
            token_id: &known.token_id,
            token: &token,
            url: connection.address(),
            ca: connection.ca.as_deref(),
        };
        if !stored.is_some_and(|secret| secret::matches(secret, &content, &self.name)) {
            let mut meta = workloads::metadata(&self.view(&known), name);
            if let Some(stored) = stored {
                // Whoever stood still meanwhile must not put an old token in the place of a later one.
                meta["uid"] = json!(stored.meta().uid);
                meta["resourceVersion"] = json!(stored.meta().resource_version);
            }
            let (manifest, shown) = secret::manifest(meta, &content);
            self.common
                .cluster
                .apply_secret::<Secret>(&self.namespace, name, names::POOL_MANAGER, &manifest, shown)
                .await?;
        }
        self.remove_renamed_secret(name).await?;
        Ok(Registered { known, next_token })
    }

    /// The Secret under its last name, when `spec.token.secretName` has changed. The status is written last, so it
    /// names that one until it is gone.
    async fn remove_renamed_secret(&self, name: &str) -> Result<(), Error> {
        let token = self.pool.status.as_ref().and_then(|status| status.token.as_ref());
        let Some(last) = token.map(|token| token.secret_name.as_str()).filter(|last| *last != name) else {
            return Ok(());
        };
        self.remove_secret(last).await
    }

    /// Removes a Secret if it is this pool's.
    pub(super) async fn remove_secret(&self, name: &str) -> Result<(), Error> {
        let cluster = &self.common.cluster;
        if let Some(stored) = cluster.get::<Secret>(&self.namespace, name).await?
            && (secret::ownership(&stored, &self.uid, &self.name) == Ownership::Ours
                || (self.is_ending() && is_orphan(stored.meta(), &self.name)))
        {
            cluster.delete::<Secret>(&self.namespace, name, stored.meta().uid.as_deref(), None).await?;
        }
        Ok(())
    }

    async fn announce(&self, report: &PoolReport, held: bool, stored: bool) {
        let id = &report.pool.id;
        let news = match report.change {
            Change::Created => Some((false, reason::CREATED, format!("created the pool {id} in the control plane"))),
            Change::Adopted => Some((false, reason::IN_SYNC, format!("took over the pool {id} of the control plane"))),
            Change::Updated | Change::None if report.token.fresh.is_none() => None,
            Change::Updated | Change::None if held => {
                Some((false, "TokenRotated", "renewed the pool token".to_owned()))
            }
            Change::Updated | Change::None if stored => Some((
                true,
                "TokenReplaced",
                "the Secret was changed by hand, or its token revoked: it has a new token".to_owned(),
            )),
            Change::Updated | Change::None => {
                Some((true, "TokenReplaced", "the Secret was gone: it is made again, with a new token".to_owned()))
            }
        };
        if let Some((warning, reason, note)) = news {
            self.common.events.publish(self.pool, News { warning, reason, note }).await;
        }
    }
}

fn time_text(millis: i64) -> Option<String> {
    Timestamp::from_millisecond(millis).ok().map(|time| time.to_string())
}
