//! The seam that every write to the control plane passes. It counts them; a hook sees each write before it happens and
//! may withhold it (an operator that does not lead, a dry run), or in a test fail, delay or cut it there.

use std::{
    fmt,
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use super::{Error, Result};
use crate::client::iacp;

/// The kinds of writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WriteKind {
    CreateEnvironment,
    CreatePool,
    UpdatePool,
    DeletePool,
    CreateToken,
    DeleteToken,
    /// Ended because another one replaced it; its agents go on.
    RetireToken,
    LinkWorkspace,
    UnlinkWorkspace,
    CordonAgent,
    UncordonAgent,
    FailQueued,
}

impl fmt::Display for WriteKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::CreateEnvironment => "create the environment",
            Self::CreatePool => "create the pool",
            Self::UpdatePool => "change the pool",
            Self::DeletePool => "delete the pool",
            Self::CreateToken => "create a pool token",
            Self::DeleteToken => "revoke a pool token",
            Self::RetireToken => "retire a pool token",
            Self::LinkWorkspace => "link the workspace",
            Self::UnlinkWorkspace => "unlink the workspace",
            Self::CordonAgent => "cordon an agent",
            Self::UncordonAgent => "uncordon an agent",
            Self::FailQueued => "end what waits in the queue",
        })
    }
}

/// What happens to a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    None,
    /// It happens later.
    Delay(Duration),
    /// It does not happen, and fails.
    Refuse,
    /// It happens, and the answer is lost.
    LoseAnswer,
    /// It does not happen, and nothing goes on: the process died just before.
    CutBefore,
    /// It happens, and nothing goes on: the process died just after.
    CutAfter,
    /// It does not happen: this process may not write any more.
    Fenced,
    /// It does not happen: this is a dry run.
    Planned,
}

type Hook = dyn Fn(WriteKind, u64) -> Fault + Send + Sync;

/// Counts writes, and lets a hook decide on each.
#[derive(Clone, Default)]
pub struct Seam {
    writes: Arc<AtomicU64>,
    hook: Option<Arc<Hook>>,
}

impl fmt::Debug for Seam {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Seam({} writes)", self.writes())
    }
}

impl Seam {
    /// With a hook, which is given the kind and the number of each write, counted from 1.
    pub fn with_hook(hook: impl Fn(WriteKind, u64) -> Fault + Send + Sync + 'static) -> Self {
        Self { writes: Arc::default(), hook: Some(Arc::new(hook)) }
    }

    /// Writes begun so far.
    #[must_use]
    pub fn writes(&self) -> u64 {
        self.writes.load(Ordering::SeqCst)
    }

    /// Makes a write, unless the hook decides otherwise.
    ///
    /// # Errors
    /// What the call ended with, or what the hook wants.
    pub async fn write<T>(&self, kind: WriteKind, call: impl Future<Output = Result<T, iacp::Error>>) -> Result<T> {
        let number = self.writes.fetch_add(1, Ordering::SeqCst) + 1;
        let fault = self.hook.as_ref().map_or(Fault::None, |hook| hook(kind, number));
        match fault {
            Fault::None | Fault::LoseAnswer | Fault::CutAfter => {}
            Fault::Delay(time) => tokio::time::sleep(time).await,
            Fault::Refuse => return Err(Error::Injected { kind }),
            Fault::Fenced => return Err(Error::NotLeading { kind }),
            Fault::Planned => return Err(Error::Planned { kind }),
            Fault::CutBefore => pending().await,
        }
        let result = call.await.map_err(|source| Error::Write { kind, source: Box::new(source) });
        match fault {
            Fault::LoseAnswer => Err(Error::Injected { kind }),
            Fault::CutAfter => pending().await,
            _ => result,
        }
    }
}
