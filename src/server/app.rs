//! What every handler and task gets: handles, no logic.

use std::{sync::Arc, time::Duration};

use super::{
    blobs::Blobs, changes::Changes, held::HeldClaims, metrics::Metrics, sign::Signer, store::Store, vault::Vault,
    wake::Wakes,
};
use crate::{clock::Clock, trace::Tracer};

/// Shared by all requests; cheap to clone.
pub type App = Arc<AppState>;

pub struct AppState {
    pub store: Store,
    pub blobs: Blobs,
    pub wakes: Wakes,
    /// Which pools changed lately.
    pub changes: Changes,
    /// Claims under way.
    pub held: HeldClaims,
    pub vault: Vault,
    pub signer: Signer,
    pub clock: Clock,
    pub policy: Policy,
    pub metrics: Metrics,
    /// Where spans of runs go.
    pub trace: Tracer,
    /// `https://terrapool.example.com`, when configured; otherwise what the request was sent to.
    pub public_url: Option<String>,
    /// Cancelled when the server stops: ends long polls.
    pub closing: tokio_util::sync::CancellationToken,
    /// When a heartbeat could not be recorded last, as on a full disk, in milliseconds since 1970; 0: never.
    pub unrecorded_heartbeat: std::sync::atomic::AtomicI64,
    /// Held while the server lives: keeps a second one out of the data directory.
    pub lock: std::fs::File,
}

/// Times and sizes that the server decides by.
#[derive(Debug, Clone)]
pub struct Policy {
    /// How long a claimed job stays an agent's without a heartbeat.
    pub lease: Duration,
    /// How often agents send heartbeats.
    pub heartbeat: Duration,
    /// An agent not heard of for this long is shown offline.
    pub offline_after: Duration,
    /// A plan whose agent is lost is planned this many times in all.
    pub plan_attempts: i64,
    /// Largest configuration slug in bytes, compressed.
    pub max_configuration_bytes: u64,
    /// Largest configuration in bytes, unpacked.
    pub max_unpacked_bytes: u64,
    /// Largest artifact or state in bytes.
    pub max_artifact_bytes: u64,
    pub plan_timeout: Duration,
    pub apply_timeout: Duration,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(30),
            heartbeat: Duration::from_secs(10),
            offline_after: Duration::from_secs(30),
            plan_attempts: 2,
            max_configuration_bytes: 512 << 20,
            max_unpacked_bytes: 2 << 30,
            max_artifact_bytes: 1 << 30,
            plan_timeout: Duration::from_secs(2 * 3600),
            apply_timeout: Duration::from_secs(24 * 3600),
        }
    }
}
