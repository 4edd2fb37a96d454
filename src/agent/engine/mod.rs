//! terraform and tofu of an exact version: found on this host, else downloaded once for all.
//!
//! The order is that of trust and of cost: the folder of engines, the search path, the cache of releases, a download.
//! An image that has an engine of its own needs none of it.

mod cache;
mod download;
mod find;
mod release;
mod releases;
pub mod verify;

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

pub use download::Error as DownloadError;
pub use find::is_static;
pub(super) use release::architecture;
pub use release::{ExactVersion, InvalidMirror, Origin};
pub use releases::{Releases, SetUpError, Settings, Source};

use self::find::{Stamp, stamp};
use crate::api::job::{Engine, EngineKind};

/// Where engines are looked for.
#[derive(Debug, Clone, Default)]
pub struct Engines {
    /// Folder of engines, searched first: `terraform`, `terraform_1.11.4`, `terraform-1.11.4`, `1.11.4/terraform`.
    pub dir: Option<PathBuf>,
    /// Folders as in `PATH`, searched next.
    pub path: Vec<PathBuf>,
    /// Releases for what is not on this host; absent: what is not here is missing.
    pub releases: Option<Arc<Releases>>,
    /// What programs said of themselves.
    known: Arc<Mutex<HashMap<Stamp, Option<String>>>>,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The mend is in the text.
    #[error("{0}")]
    Missing(String),
    #[error(
        "`{}` is not an exact version of an engine: it must be like 1.11.4 or 1.12.0-rc1; set one in the workspace",
        version.escape_debug()
    )]
    Version { version: String },
    #[error("{release} is not on this host and could not be downloaded")]
    Download {
        release: String,
        #[source]
        source: Box<download::Error>,
    },
    #[error(
        "{release} is not on this host, and its download from {url} took longer than {} s; try again, name a mirror \
         (--engine-mirror), or give it more time (--engine-timeout)",
        limit.as_secs()
    )]
    Slow { release: String, url: String, limit: Duration },
    #[error("the cache of engines at {path} cannot be used; name another directory (--cache-dir)")]
    Cache { path: String, source: std::io::Error },
}

impl Engines {
    #[must_use]
    pub fn new(dir: Option<PathBuf>, path: Vec<PathBuf>) -> Self {
        Self { dir, path, ..Self::default() }
    }

    /// The same with releases for what is not on this host.
    #[must_use]
    pub fn with_releases(mut self, releases: Arc<Releases>) -> Self {
        self.releases = Some(releases);
        self
    }

    /// The engine on this host, or `None`: there is none of that version. Downloads nothing.
    pub async fn find(&self, wanted: &Engine) -> Option<PathBuf> {
        for path in self.candidates(wanted) {
            let Some(stamp) = stamp(&path) else { continue };
            if wanted.version.is_none() || self.version(stamp, wanted.kind).await == wanted.version {
                return Some(path);
            }
        }
        None
    }

    /// The places that are asked for what is not on this host, and whether they answer within `limit`.
    pub async fn sources(&self, limit: Duration) -> Vec<Source> {
        match &self.releases {
            Some(releases) => releases.sources(limit).await,
            None => Vec::new(),
        }
    }

    /// As [`Self::find`], for those who cannot do without.
    ///
    /// # Errors
    /// [`Error::Missing`] says what was found instead and what to install.
    pub async fn require(&self, wanted: &Engine) -> Result<PathBuf, Error> {
        match self.find(wanted).await {
            Some(path) => Ok(path),
            None => Err(Error::Missing(self.missing(wanted, "").await)),
        }
    }

    /// The engine on this host, or else its release, for a job that may take `lasting`: so long it is not removed.
    ///
    /// # Errors
    /// What was looked for where, and the mend.
    pub async fn obtain(&self, wanted: &Engine, lasting: Duration) -> Result<PathBuf, Error> {
        if let Some(path) = self.find(wanted).await {
            return Ok(path);
        }
        let (Some(releases), Some(version)) = (&self.releases, &wanted.version) else {
            return self.require(wanted).await;
        };
        let version: ExactVersion = version.parse()?;
        match releases.obtain(wanted.kind, &version, lasting).await? {
            Some(path) => Ok(path),
            None => {
                Err(Error::Missing(self.missing(wanted, ", or let the agent download it (--engine-download)").await))
            }
        }
    }

    /// As [`Self::obtain`], for an image that may have an engine of its own: a failure is told, and left at that.
    pub async fn try_obtain(&self, wanted: &Engine, lasting: Duration) -> Option<PathBuf> {
        if let Some(path) = self.find(wanted).await {
            return Some(path);
        }
        let version: ExactVersion = wanted.version.as_ref()?.parse().ok()?;
        self.releases.as_ref()?.try_obtain(wanted.kind, &version, lasting).await
    }

    async fn missing(&self, wanted: &Engine, also: &str) -> String {
        let mut found = Vec::new();
        for path in self.candidates(wanted) {
            if let Some(version) = self.version_at(&path, wanted.kind).await {
                found.push(format!("{version} at {}", path.display()));
            }
        }
        let program = wanted.kind.program();
        let version = wanted.version.as_deref();
        let wanted = format!("{program} {}", version.unwrap_or("(any version)"));
        let found = if found.is_empty() { format!("no {program} at all") } else { found.join(", ") };
        let mend = match (&self.dir, version) {
            (Some(dir), Some(version)) => {
                format!("put the program at {}/{program}_{version}", dir.display())
            }
            (Some(dir), None) => format!("put the program at {}/{program}", dir.display()),
            (None, _) => {
                "install it in a folder of the agent's PATH, or name a folder of engines to the agent".to_owned()
            }
        };
        format!("{wanted} is needed, and this host has {found}: {mend}{also}")
    }

    /// The version that the program at `path` says it has; `None`: it is no such engine.
    pub async fn version_at(&self, path: &Path, kind: EngineKind) -> Option<String> {
        self.version(stamp(path)?, kind).await
    }

    fn candidates(&self, wanted: &Engine) -> Vec<PathBuf> {
        find::candidates(self.dir.as_deref(), &self.path, wanted)
    }

    async fn version(&self, stamp: Stamp, kind: EngineKind) -> Option<String> {
        if let Some(known) = self.known.lock().unwrap_or_else(PoisonError::into_inner).get(&stamp) {
            return known.clone();
        }
        let version = find::ask(&stamp.path, kind).await;
        self.known.lock().unwrap_or_else(PoisonError::into_inner).insert(stamp, version.clone());
        version
    }
}
