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
    /// End at once, and leave what runs to the next process.
    pub leave: CancellationToken,
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
        let Self { drain, stop, leave, tasks } = self;
        Self { drain: drain.child_token(), stop: stop.child_token(), leave: leave.child_token(), tasks }
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

    /// SIGUSR1 cancels [`Self::leave`].
    ///
    /// # Errors
    /// When the handler cannot be installed.
    pub fn on_leave_signal(&self) -> io::Result<()> {
        let mut leave_signal = signal(SignalKind::user_defined1())?;
        let leave = self.leave.clone();
        tokio::spawn(async move {
            if leave_signal.recv().await.is_some() {
                leave.cancel();
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
