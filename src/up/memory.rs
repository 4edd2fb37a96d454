//! What `up` must remember over restarts: the identity of every object, and the pool tokens that it holds. One
//! file, readable by its owner only, replaced in one step.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};

use super::manifests::{Key, Spec};
use crate::files::write_private;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("could not read {path}")]
    Read { path: String, source: io::Error },
    #[error("{path} is damaged; move it away to start anew: pools are found again by their names")]
    Parse { path: String, source: serde_json::Error },
    #[error("could not write {path}")]
    Write { path: String, source: io::Error },
}

/// One object that exists, or is being deleted.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Remembered {
    /// Identity in the control plane: an object that is removed and added again is another one.
    pub uid: String,
    /// What it was last to be.
    pub spec: Spec,
    /// The file that it stood in.
    pub file: PathBuf,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<StoredToken>,
}

/// The pool token that the local agent registers with.
#[derive(Clone, Serialize, Deserialize)]
pub struct StoredToken {
    pub id: String,
    secret: String,
    /// Milliseconds since 1970.
    pub expires_at: Option<i64>,
}

impl StoredToken {
    #[must_use]
    pub fn new(id: String, secret: &SecretString, expires_at: Option<i64>) -> Self {
        Self { id, secret: secret.expose_secret().to_owned(), expires_at }
    }

    #[must_use]
    pub fn secret(&self) -> SecretString {
        SecretString::from(self.secret.as_str())
    }
}

impl std::fmt::Debug for StoredToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "StoredToken({})", self.id)
    }
}

/// The file and what stands in it.
#[derive(Debug)]
pub struct Memory {
    path: PathBuf,
    pub objects: BTreeMap<Key, Remembered>,
}

#[derive(Serialize, Deserialize)]
struct Entry {
    key: Key,
    object: Remembered,
}

impl Memory {
    /// # Errors
    /// When the file is there but cannot be read.
    pub fn load(path: &Path) -> Result<Self, Error> {
        let name = || path.display().to_string();
        let objects = match fs::read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
            Err(source) => return Err(Error::Read { path: name(), source }),
            Ok(bytes) => serde_json::from_slice::<Vec<Entry>>(&bytes)
                .map_err(|source| Error::Parse { path: name(), source })?
                .into_iter()
                .map(|entry| (entry.key, entry.object))
                .collect(),
        };
        Ok(Self { path: path.to_owned(), objects })
    }

    /// Durable when it returns: a token must be kept before anything depends on it.
    ///
    /// # Errors
    /// When the file cannot be written; the old one stands then.
    pub fn save(&self) -> Result<(), Error> {
        let fail = |source| Error::Write { path: self.path.display().to_string(), source };
        let entries: Vec<_> =
            self.objects.iter().map(|(key, object)| Entry { key: key.clone(), object: object.clone() }).collect();
        let text = serde_json::to_vec_pretty(&entries).map_err(|error| fail(io::Error::other(error)))?;
        write_private(&self.path, &text).map_err(fail)
    }
}
