//! A process keeps no more of its program in memory than it has used lately.

use std::{convert::Infallible, time::Duration};

use program_pages::ProgramPages;

/// How long what was used stays.
const PACE: Duration = Duration::from_secs(2);

/// Goes on for ever. What is used again comes at the cost of some hundred minor faults, less than a millisecond.
pub async fn keep_small() -> Infallible {
    let pages = match ProgramPages::find() {
        Ok(pages) => pages,
        Err(error) => {
            tracing::debug!(%error, "the whole program is kept in memory");
            return std::future::pending().await;
        }
    };
    loop {
        tokio::time::sleep(PACE).await;
        pages.give_back();
    }
}
