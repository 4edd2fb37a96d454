//! The cache of providers of agents, as it lies on the disk.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use tempfile::TempDir;
use terrapool::agent::provider_cache::ProviderCache;

use super::publisher::architecture;

/// A directory for caches of several agents.
pub struct CacheDir(TempDir);

/// A package in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// `HOST/NAMESPACE/TYPE/VERSION/PLATFORM`
    pub name: String,
    /// As in lock files.
    pub h1: String,
    /// Its files.
    pub dir: PathBuf,
}

impl CacheDir {
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// The cache of one agent.
    pub fn open(&self) -> Arc<ProviderCache> {
        cache_at(self.path())
    }

    pub fn packages(&self) -> Vec<Stored> {
        packages(self.path())
    }
}

pub fn cache_at(dir: &Path) -> Arc<ProviderCache> {
    Arc::new(ProviderCache::new(dir, 1 << 30))
}

/// All that runs can be given.
pub fn packages(cache: &Path) -> Vec<Stored> {
    let root = cache.join("providers");
    let mut found = Vec::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            let hex = name.len() == 64 && name.chars().all(|c| c.is_ascii_hexdigit());
            if hex {
                let bytes: Vec<u8> =
                    (0..32).map(|at| u8::from_str_radix(&name[2 * at..2 * at + 2], 16).unwrap()).collect();
                let place = folder.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
                let h1 = format!("h1:{}", STANDARD.encode(bytes));
                found.push(Stored { name: place, h1, dir: path.join("package") });
            } else if path.is_dir() && !name.starts_with('.') {
                folders.push(path);
            }
        }
    }
    found
}

/// What is being made or removed, or was when its agent was killed.
pub fn unfinished(cache: &Path) -> usize {
    let names = fs::read_dir(cache.join("providers")).into_iter().flatten().map(|entry| entry.unwrap().file_name());
    names.filter(|name| name.to_string_lossy().starts_with('.')).count()
}

/// A lock file of one provider.
pub fn lock_file(address: &str, version: &str, hashes: &[&str]) -> String {
    let hashes: String = hashes.iter().map(|hash| format!("    \"{hash}\",\n")).collect();
    format!("provider \"{address}\" {{\n  version = \"{version}\"\n  hashes = [\n{hashes}  ]\n}}\n")
}

/// A run's own plugin cache directory, for a shell of any of its steps.
pub const OWN: &str = "${HOME%/home}/provider-cache";

/// Where an engine puts that package, for a shell.
pub fn place(address: &str, version: &str) -> String {
    format!("{OWN}/{address}/{version}/linux_{}", architecture())
}

/// Notes which plugin cache directory `init` is given, and which the plan.
pub const NOTE: [(&str, &str); 2] = [
    ("init.sh", "echo \"${TF_PLUGIN_CACHE_DIR:-none}\" >cache.txt\n"),
    ("plan.sh", "echo \"init: $(cat cache.txt), plan: ${TF_PLUGIN_CACHE_DIR:-none}\"\n"),
];
