//! Whether the engine can be relied on for another run. One that is away or hangs would make every run that waits in the
//! pool fail here, one after the other.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bollard::query_parameters::EventsOptionsBuilder;
use futures::StreamExt;
use tokio_util::task::AbortOnDropHandle;

use super::{ANSWER, Cause, Docker, Error, Result};

/// How long an engine is doubted that has not started a run in time, unless it starts one after all or starts anew.
const DOUBT: Duration = Duration::from_secs(300);

#[derive(Debug, Default)]
pub(super) struct Health {
    doubted: Arc<AtomicBool>,
    /// What ends the doubt.
    end: Mutex<Option<AbortOnDropHandle<()>>>,
}

impl Health {
    /// Learns from what became of the start of a container.
    pub(super) fn note(&self, engine: &bollard::Docker, started: &Result<()>) {
        let end = match started {
            Ok(()) => {
                self.doubted.store(false, Ordering::Relaxed);
                None
            }
            Err(Error::Away { source, .. }) if matches!(source.downcast_ref(), Some(Cause::RequestTimeoutError)) => {
                self.doubted.store(true, Ordering::Relaxed);
                let (engine, doubted) = (engine.clone(), self.doubted.clone());
                Some(AbortOnDropHandle::new(tokio::spawn(async move {
                    // Gone, or long enough: it has another chance.
                    drop(tokio::time::timeout(DOUBT, until_away(&engine)).await);
                    doubted.store(false, Ordering::Relaxed);
                })))
            }
            Err(_) => return,
        };
        *self.end.lock().unwrap_or_else(PoisonError::into_inner) = end;
    }

    fn is_doubted(&self) -> bool {
        self.doubted.load(Ordering::Relaxed)
    }
}

impl Docker {
    pub(in crate::agent::executor) async fn answers(&self) -> Result<()> {
        if self.health.is_doubted() {
            return Err(Error::Refused(format!(
                "Docker answers, but has not started a run in {} s; if it starts none by hand either, restart it: \
                 `systemctl restart docker`",
                self.settings.call_timeout.as_secs()
            )));
        }
        let asked = tokio::time::timeout(ANSWER, self.engine.ping()).await;
        match asked.unwrap_or(Err(Cause::RequestTimeoutError)) {
            Ok(_) => Ok(()),
            Err(source) => {
                Err(Error::NoDocker { host: self.settings.docker_host().to_owned(), source: Box::new(source) })
            }
        }
    }

    pub(in crate::agent::executor) async fn until_away(&self) {
        until_away(&self.engine).await;
    }
}

/// Resolves when the engine goes away. It is not asked again and again: what it tells of itself ends with it.
async fn until_away(engine: &bollard::Docker) {
    let rare = HashMap::from([("type", vec!["daemon"])]);
    let mut events = engine.events(Some(EventsOptionsBuilder::new().filters(&rare).build()));
    while let Some(event) = events.next().await {
        match event {
            Ok(_) => {}
            // It is there, and tells nothing of itself: to nobody, or not yet.
            Err(Cause::DockerResponseServerError { .. } | Cause::RequestTimeoutError) => {
                return std::future::pending().await;
            }
            Err(_) => return,
        }
    }
}
