//! Finds terraform and tofu of an exact version on this host.

use std::path::PathBuf;

use crate::api::job::Engine;

/// Where engines are looked for.
#[derive(Debug, Clone, Default)]
pub struct Engines {
    /// Folder of engines, searched first: `terraform`, `terraform_1.11.4`, `1.11.4/terraform`.
    pub dir: Option<PathBuf>,
    /// Folders as in `PATH`, searched next.
    pub path: Vec<PathBuf>,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0}")]
    Missing(String),
}

impl Engines {
    /// The engine on this host, or `None`: there is none of that version.
    pub async fn find(&self, _wanted: &Engine) -> Option<PathBuf> {
        None
    }
}
