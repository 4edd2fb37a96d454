//! Engines that are on this host already.

use std::{
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, SystemTime},
};

use tokio::process::Command;

use super::release::ExactVersion;
use crate::api::job::{Engine, EngineKind};

/// Longest time for an engine to say its version; a cold disk may take seconds.
const ANSWER: Duration = Duration::from_secs(30);

/// A program that was just written cannot be started while a child of another thread still has it open.
const BUSY: Duration = Duration::from_millis(20);
const BUSY_ATTEMPTS: u32 = 100;

/// A file as it was when it was asked for its version.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Stamp {
    pub(super) path: PathBuf,
    modified: Option<SystemTime>,
    size: u64,
}

/// Where an engine may lie, in the order of preference.
pub(super) fn candidates(dir: Option<&Path>, path: &[PathBuf], wanted: &Engine) -> Vec<PathBuf> {
    let program = wanted.kind.program();
    let mut places = Vec::new();
    if let Some(dir) = dir {
        // A version is a name of a file here: it must not lead elsewhere.
        if let Some(Ok(version)) = wanted.version.as_ref().map(|version| version.parse::<ExactVersion>()) {
            places.push(dir.join(format!("{program}_{version}")));
            places.push(dir.join(format!("{program}-{version}")));
            places.push(dir.join(version.to_string()).join(program));
        }
        places.push(dir.join(program));
    }
    places.extend(path.iter().map(|dir| dir.join(program)));
    places
}

pub(super) fn stamp(path: &Path) -> Option<Stamp> {
    let path = fs::canonicalize(path).ok()?;
    let meta = fs::metadata(&path).ok()?;
    let runs = meta.is_file() && meta.permissions().mode() & 0o111 != 0;
    runs.then(|| Stamp { modified: meta.modified().ok(), size: meta.len(), path })
}

/// Asks in a clean environment: the agent's own may hold settings that make an engine fail or call home.
pub(super) async fn ask(path: &Path, kind: EngineKind) -> Option<String> {
    let mut command = Command::new(path);
    command.arg("version").env_clear().env("CHECKPOINT_DISABLE", "1").current_dir("/");
    command.stdin(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    let mut attempt = 1;
    let output = loop {
        match tokio::time::timeout(ANSWER, command.output()).await.ok()? {
            Ok(output) => break output,
            Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy && attempt < BUSY_ATTEMPTS => {
                attempt += 1;
                tokio::time::sleep(BUSY).await;
            }
            Err(_) => return None,
        }
    };
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
