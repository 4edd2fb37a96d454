//! Ending in good order: signals become cancellation, spawned tasks are tracked and waited for.

use std::{io, time::Duration};

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Two steps of stopping: the first signal asks everything to finish, the second to stop now.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    /// Take nothing new, finish what runs.
    pub drain: CancellationToken,
    /// Stop.
    pub stop: CancellationToken,
    tasks: TaskTracker,
}

impl Shutdown {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// For a part that may also end by itself: what ends the whole ends it, but not the other way round. Tasks are
    /// tracked together.
    #[must_use]
    pub fn into_child(self) -> Self {
        Self { drain: self.drain.child_token(), stop: self.stop.child_token(), tasks: self.tasks }
    }

    /// Runs `future` until it ends; [`Self::finished`] waits for it.
    pub fn spawn<F>(&self, future: F) -> tokio::task::JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.tasks.spawn(future)
    }

    /// SIGINT and SIGTERM: the first cancels [`Self::drain`], the second [`Self::stop`].
    ///
    /// # Errors
    /// When the handlers cannot be installed.
    pub fn on_signals(&self) -> io::Result<()> {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let (drain, stop) = (self.drain.clone(), self.stop.clone());
        tokio::spawn(async move {
            for token in [drain, stop] {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
                token.cancel();
            }
        });
        Ok(())
    }

    /// Waits until every spawned task has ended, or `limit` is over; says whether all have ended.
    pub async fn finished(&self, limit: Duration) -> bool {
        self.tasks.close();
        tokio::time::timeout(limit, self.tasks.wait()).await.is_ok()
    }
}
