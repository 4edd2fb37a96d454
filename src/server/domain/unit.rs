//! A unit of work: one write transaction, and the wake-ups that are due when it has become durable.

use std::ops::{Deref, DerefMut};

use sqlx::AnyConnection;

use crate::server::{app::AppState, error::Result, store::WriteTx, wake::Topic};

/// Everything a rule needs to change things. Undone when dropped without [`Unit::commit`].
pub struct Unit<'a> {
    pub app: &'a AppState,
    /// Milliseconds since 1970: one moment for the whole unit.
    pub now: i64,
    tx: WriteTx,
    wakes: Vec<Topic>,
}

impl<'a> Unit<'a> {
    /// # Errors
    /// When the database is not reachable.
    pub async fn begin(app: &'a AppState) -> Result<Self> {
        let tx = app.store.begin().await?;
        Ok(Self { app, now: app.clock.now_ms(), tx, wakes: Vec::new() })
    }

    /// Wakes those who wait for `topic`, once the unit is committed.
    pub fn wake(&mut self, topic: Topic) {
        if !self.wakes.contains(&topic) {
            self.wakes.push(topic);
        }
    }

    /// Makes it durable, then wakes the waiters.
    ///
    /// # Errors
    /// When the database refuses; nothing was written then.
    pub async fn commit(self) -> Result<()> {
        self.tx.commit().await?;
        for topic in &self.wakes {
            self.app.wakes.wake(topic);
        }
        Ok(())
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
