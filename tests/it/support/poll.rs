//! Waiting for a state of affairs, with a deadline; never a blind sleep.

use std::{
    fmt::Debug,
    time::{Duration, Instant},
};

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(20);

/// Asks `probe` until it answers `Ok`; its `Err` is the state seen, shown when `deadline` is over.
pub async fn eventually<T, S, F>(what: &str, deadline: Duration, mut probe: impl FnMut() -> F) -> T
where
    S: Debug,
    F: Future<Output = Result<T, S>>,
{
    let start = Instant::now();
    loop {
        match probe().await {
            Ok(value) => return value,
            Err(seen) if start.elapsed() > deadline => panic!("{what}: not within {deadline:?}; seen last: {seen:#?}"),
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}
