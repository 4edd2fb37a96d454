//! Finds terraform and tofu of an exact version on this host.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::Read,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use tokio::process::Command;

use crate::api::job::{Engine, EngineKind};

/// Longest time for an engine to say its version; a cold disk may take seconds.
const ANSWER: Duration = Duration::from_secs(30);

/// Where engines are looked for.
#[derive(Debug, Clone, Default)]
pub struct Engines {
    /// Folder of engines, searched first: `terraform`, `terraform_1.11.4`, `terraform-1.11.4`, `1.11.4/terraform`.
    pub dir: Option<PathBuf>,
    /// Folders as in `PATH`, searched next.
    pub path: Vec<PathBuf>,
    /// What programs said of themselves.
    known: Arc<Mutex<HashMap<Stamp, Option<String>>>>,
}

/// A file as it was when it was asked for its version.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Stamp {
    path: PathBuf,
    modified: Option<SystemTime>,
    size: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The mend is in the text.
    #[error("{0}")]
    Missing(String),
}

impl Engines {
    #[must_use]
    pub fn new(dir: Option<PathBuf>, path: Vec<PathBuf>) -> Self {
        Self { dir, path, known: Arc::default() }
    }

    /// The engine on this host, or `None`: there is none of that version.
    pub async fn find(&self, wanted: &Engine) -> Option<PathBuf> {
        for path in self.candidates(wanted) {
            let Some(stamp) = stamp(&path) else { continue };
            if wanted.version.is_none() || self.version(stamp, wanted.kind).await == wanted.version {
                return Some(path);
            }
        }
        None
    }

    /// As [`Self::find`], for those who cannot do without.
    ///
    /// # Errors
    /// [`Error::Missing`] says what was found instead and what to install.
    pub async fn require(&self, wanted: &Engine) -> Result<PathBuf, Error> {
        if let Some(path) = self.find(wanted).await {
            return Ok(path);
        }
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
        Err(Error::Missing(format!("{wanted} is needed, and this host has {found}: {mend}")))
    }

    /// The version that the program at `path` says it has; `None`: it is no such engine.
    pub async fn version_at(&self, path: &Path, kind: EngineKind) -> Option<String> {
        self.version(stamp(path)?, kind).await
    }

    fn candidates(&self, wanted: &Engine) -> Vec<PathBuf> {
        let program = wanted.kind.program();
        let mut places = Vec::new();
        if let Some(dir) = &self.dir {
            if let Some(version) = &wanted.version {
                // A version is a name of a file here: it must not lead elsewhere.
                if !version.contains('/') {
                    places.push(dir.join(format!("{program}_{version}")));
                    places.push(dir.join(format!("{program}-{version}")));
                    places.push(dir.join(version).join(program));
                }
            }
            places.push(dir.join(program));
        }
        places.extend(self.path.iter().map(|dir| dir.join(program)));
        places
    }

    async fn version(&self, stamp: Stamp, kind: EngineKind) -> Option<String> {
        if let Some(known) = self.known.lock().unwrap_or_else(PoisonError::into_inner).get(&stamp) {
            return known.clone();
        }
        let version = ask(&stamp.path, kind).await;
        self.known.lock().unwrap_or_else(PoisonError::into_inner).insert(stamp, version.clone());
        version
    }
}

fn stamp(path: &Path) -> Option<Stamp> {
    let path = fs::canonicalize(path).ok()?;
    let meta = fs::metadata(&path).ok()?;
    let runs = meta.is_file() && meta.permissions().mode() & 0o111 != 0;
    runs.then(|| Stamp { modified: meta.modified().ok(), size: meta.len(), path })
}

/// Asks in a clean environment: the agent's own may hold settings that make an engine fail or call home.
async fn ask(path: &Path, kind: EngineKind) -> Option<String> {
    let mut command = Command::new(path);
    command.arg("version").env_clear().env("CHECKPOINT_DISABLE", "1").current_dir("/");
    command.stdin(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(ANSWER, command.output()).await.ok()?.ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let start = format!("{} v", kind.title());
    text.lines().find_map(|line| line.strip_prefix(&start)).map(|version| version.trim().to_owned())
}

/// The program needs no loader and no libraries: it runs in any image.
#[must_use]
pub fn is_static(path: &Path) -> bool {
    const PT_INTERP: u32 = 3;
    let mut head = Vec::new();
    let read = File::open(path).and_then(|file| file.take(4096).read_to_end(&mut head));
    // 64-bit little-endian ELF; the table of segments follows its header in all programs that linkers make.
    if read.is_err() || head.len() < 64 || &head[..6] != b"\x7fELF\x02\x01" {
        return false;
    }
    let number = |at: usize, bytes: usize| {
        head.get(at..at + bytes).map(|bytes| bytes.iter().rev().fold(0_usize, |n, b| n << 8 | usize::from(*b)))
    };
    let (Some(table), Some(size), Some(count)) = (number(32, 8), number(54, 2), number(56, 2)) else { return false };
    (0..count).all(|index| number(table + index * size, 4).is_some_and(|kind| kind != PT_INTERP as usize))
}
