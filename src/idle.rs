//! A process that waits keeps no more of its program in memory than waiting takes.

use std::{convert::Infallible, time::Duration};

use program_pages::ProgramPages;

/// How long after its last words with others a process is as small as it can be.
const PACE: Duration = Duration::from_secs(2);

/// Goes on for ever; `idle` resolves when the process has nothing better to do.
pub async fn stay_small<F: Future<Output = ()>>(mut idle: impl FnMut() -> F) -> Infallible {
    let pages = match ProgramPages::find() {
        Ok(pages) => pages,
        Err(error) => {
            tracing::debug!(%error, "the whole program is kept in memory");
            return std::future::pending().await;
        }
    };
    loop {
        tokio::time::sleep(PACE).await;
        idle().await;
        pages.give_back();
    }
}
