//! Agents of one host share a network and its rules. Whoever starts a container holds both until it runs; whoever takes
//! them away must be alone.

use std::{
    fs::{File, TryLockError},
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::time::Instant;

use super::POLL;

/// Where only root writes, who alone makes rules. Others cannot take a network away while a container runs in it.
fn place(network: &str) -> PathBuf {
    PathBuf::from(format!("/run/terrapool-network-{network}.lock"))
}

/// Longest wait for whoever takes the network away.
const PATIENCE: Duration = Duration::from_secs(10);

/// Held as long as the value lives, by this process or not at all: an agent that is killed holds nothing.
#[derive(Debug)]
pub(super) struct Hold {
    _file: Option<File>,
}

impl Hold {
    /// Together with others who start containers. Where there is no such file, nobody takes anything away.
    pub(super) async fn shared(network: &str) -> Self {
        Self::shared_at(&place(network)).await
    }

    async fn shared_at(place: &Path) -> Self {
        let start = Instant::now();
        let Ok(file) = File::create(place) else { return Self { _file: None } };
        while matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)) && start.elapsed() < PATIENCE {
            tokio::time::sleep(POLL).await;
        }
        Self { _file: Some(file) }
    }

    /// With nobody else, or not at all.
    pub(super) fn alone(network: &str) -> Option<Self> {
        Self::alone_at(&place(network))
    }

    fn alone_at(place: &Path) -> Option<Self> {
        let file = File::create(place).ok()?;
        file.try_lock().ok()?;
        Some(Self { _file: Some(file) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn nobody_takes_away_what_somebody_uses_and_nobody_uses_what_is_taken_away() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("lock");
        let (one, other) = (Hold::shared_at(&place).await, Hold::shared_at(&place).await);
        assert!(Hold::alone_at(&place).is_none());
        drop(one);
        assert!(Hold::alone_at(&place).is_none());
        drop(other);
        let alone = Hold::alone_at(&place).unwrap();
        let waits = tokio::spawn({
            let place = place.clone();
            async move { Hold::shared_at(&place).await }
        });
        tokio::task::yield_now().await;
        assert!(!waits.is_finished());
        drop(alone);
        let shared = waits.await.unwrap();
        assert!(Hold::alone_at(&place).is_none());
        drop(shared);
    }

    #[tokio::test]
    async fn without_a_place_nothing_is_taken_away() {
        let nowhere = Path::new("/nowhere/lock");
        assert!(Hold::shared_at(nowhere).await._file.is_none());
        assert!(Hold::alone_at(nowhere).is_none());
    }
}
