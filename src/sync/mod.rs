//! The reconciling core, free of Kubernetes: a spec, an identity and a control plane come in; pool, access,
//! token and link are brought into line; what was seen and done goes out. `operator` wraps it with cluster
//! objects and status, `up` with a directory of manifests.
//!
//! Each pass is fetch → plan → apply. The plans ([`pool`], [`token`], [`link`]) are pure functions over plain
//! data. Every write passes the [`seam`]. A pass takes no reason and keeps nothing: whatever was cut off, the
//! next one finds its own objects by the external id that it gave them. Nothing to change means no write.

pub mod link;
pub mod pool;
pub mod seam;
pub mod token;

pub use link::{LinkInput, LinkReport};
pub use pool::{PoolInput, PoolReport};
pub use seam::{Fault, Seam, WriteKind};
pub use token::{NewToken, TokenReport};

use crate::{
    client::iacp::{self, ControlPlane, Environment},
    clock::Clock,
    crd::conditions::reason,
};

/// What every pass works with.
#[derive(Debug, Clone)]
pub struct Context {
    pub control_plane: ControlPlane,
    pub seam: Seam,
    pub clock: Clock,
    /// Environments that a spec names and that are not there are created. For one host; an operator waits.
    pub create_environments: bool,
}

/// A call that did not do its work. The next pass tries again; nothing has to be remembered.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("could not {action}")]
    Read { action: &'static str, source: Box<iacp::Error> },
    #[error("could not {kind}")]
    Write { kind: WriteKind, source: Box<iacp::Error> },
    /// A test's fault.
    #[error("could not {kind}: fault injected")]
    Injected { kind: WriteKind },
    #[error("could not {kind}: another operator leads now")]
    NotLeading { kind: WriteKind },
    /// Not an error of anybody: a dry run got to here.
    #[error("would {kind}")]
    Planned { kind: WriteKind },
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// What the control plane answered.
    #[must_use]
    pub fn cause(&self) -> Option<&iacp::Error> {
        match self {
            Self::Read { source, .. } | Self::Write { source, .. } => Some(source),
            Self::Injected { .. } | Self::NotLeading { .. } | Self::Planned { .. } => None,
        }
    }

    /// The condition reason that tells of this error.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self.cause() {
            Some(iacp::Error::Unauthorized { .. }) => reason::CREDENTIALS_INVALID,
            Some(iacp::Error::Invalid { .. }) => reason::INVALID_SPEC,
            _ => reason::CONTROL_PLANE_UNREACHABLE,
        }
    }
}

/// How a pass ended.
#[derive(Debug)]
pub enum Outcome<T> {
    Done(T),
    /// Somebody else has to do something first; then a pass goes on by itself.
    Waiting(Waiting),
}

/// What is waited for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// One of [`reason`].
    pub reason: &'static str,
    /// For people: what stands in the way and the mend.
    pub message: String,
}

impl Waiting {
    #[must_use]
    pub fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }
}

/// Unwraps what a step found, or ends the pass waiting.
macro_rules! found {
    ($result:expr) => {
        match $result {
            Ok(found) => found,
            Err(waiting) => return Ok($crate::sync::Outcome::Waiting(waiting)),
        }
    };
}
use found;

fn reading(action: &'static str) -> impl FnOnce(iacp::Error) -> Error {
    move |source| Error::Read { action, source: Box::new(source) }
}

impl Context {
    /// The environment of that name.
    async fn environment(&self, name: &str) -> Result<Result<Environment, Waiting>> {
        let found = self.control_plane.environment_by_name(name).await.map_err(reading("look for the environment"))?;
        if let Some(environment) = found {
            return Ok(Ok(environment));
        }
        if self.create_environments {
            let create = self.control_plane.create_environment(name);
            return self.seam.write(WriteKind::CreateEnvironment, create).await.map(Ok);
        }
        let message = format!("the control plane has no environment `{name}`: create it, or correct the name");
        Ok(Err(Waiting::new(reason::ENVIRONMENT_NOT_FOUND, message)))
    }
}
