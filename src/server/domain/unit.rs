//! A unit of work: one write transaction, and the wake-ups that are due when it has become durable.

use std::ops::{Deref, DerefMut};

use sqlx::AnyConnection;

use super::model::Pool;
use crate::{
    ids::{AccountId, PoolId},
    server::{
        app::AppState,
        error::Result,
        store::{self, WriteTx},
        wake::Topic,
    },
    trace::Span,
};

/// Everything a rule needs to change things. Undone when dropped without [`Unit::commit`].
pub struct Unit<'a> {
    pub app: &'a AppState,
    /// Milliseconds since 1970: one moment for the whole unit.
    pub now: i64,
    tx: WriteTx,
    wakes: Vec<Topic>,
    changed: Vec<Changed>,
    spans: Vec<Span>,
}

/// A pool that is different by the unit.
struct Changed {
    pool: PoolId,
    /// `None`: found out at the end, while the pool is there.
    account: Option<AccountId>,
    hurry: bool,
}

impl<'a> Unit<'a> {
    /// # Errors
    /// When the database is not reachable.
    pub async fn begin(app: &'a AppState) -> Result<Self> {
        let tx = app.store.begin().await?;
        Ok(Self { app, now: app.clock.now_ms(), tx, wakes: Vec::new(), changed: Vec::new(), spans: Vec::new() })
    }

    /// Wakes those who wait for `topic`, once the unit is committed.
    pub fn wake(&mut self, topic: Topic) {
        if !self.wakes.contains(&topic) {
            self.wakes.push(topic);
        }
    }

    /// A span of the control plane for the run's trace, once the unit is committed; not asked for where none is sent.
    pub fn record(&mut self, span: impl FnOnce(i64) -> Span) {
        if self.app.trace.is_on() {
            self.spans.push(span(self.now));
        }
    }

    /// Tells those who watch pools, once the unit is committed, that something about this one is different: its
    /// queue, its agents, its tokens, its links, or it itself.
    pub fn changed(&mut self, pool: &PoolId) {
        if !self.changed.iter().any(|known| known.pool == *pool && known.hurry) {
            self.changed.push(Changed { pool: pool.clone(), account: None, hurry: true });
        }
    }

    /// Tells them a little later, as of what is only shown: many pools are made and workspaces linked at a time.
    pub fn changed_a_little(&mut self, pool: &Pool) {
        let account = Some(pool.account_id.clone());
        self.changed.push(Changed { pool: pool.id.clone(), account, hurry: false });
    }

    /// The same of a pool that may be gone by the end of the unit.
    pub fn deleted(&mut self, pool: &Pool) {
        let account = Some(pool.account_id.clone());
        self.changed.push(Changed { pool: pool.id.clone(), account, hurry: true });
    }

    /// Makes it durable, then wakes the waiters.
    ///
    /// # Errors
    /// When the database refuses; nothing was written then.
    pub async fn commit(mut self) -> Result<()> {
        let changed = self.changed_of_accounts().await?;
        let committed = self.tx.commit().await;
        // Also after an error: an answer that was lost may have been a yes, and news of nothing do no harm.
        for (account, pool, hurry) in changed {
            match hurry {
                true => self.app.changes.record(&account, &pool),
                false => self.app.changes.record_later(&account, &pool),
            }
            let topic = Topic::Pools(account);
            if !self.wakes.contains(&topic) {
                self.wakes.push(topic);
            }
        }
        for topic in &self.wakes {
            self.app.wakes.wake(topic);
        }
        committed?;
        for span in self.spans {
            self.app.trace.record(span);
        }
        Ok(())
    }

    async fn changed_of_accounts(&mut self) -> Result<Vec<(AccountId, PoolId, bool)>> {
        let mut found = Vec::with_capacity(self.changed.len());
        for Changed { pool, account, hurry } in std::mem::take(&mut self.changed) {
            let account = match account.or_else(|| self.app.changes.account_of(&pool)) {
                Some(account) => Some(account),
                None => store::pools::account_of(&mut self.tx, &pool).await?,
            };
            found.extend(account.map(|account| (account, pool, hurry)));
        }
        Ok(found)
    }
}

impl Deref for Unit<'_> {
    type Target = AnyConnection;

    fn deref(&self) -> &AnyConnection {
        &self.tx
    }
}

impl DerefMut for Unit<'_> {
    fn deref_mut(&mut self) -> &mut AnyConnection {
        &mut self.tx
    }
}
