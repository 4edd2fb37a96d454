//! Waiting for the end of a stage: by notice of its result, and by a look at it now and then.

use std::time::Duration;

use tokio::time::Instant;

use super::{Exit, Result};
use crate::agent::{
    file_watch::FileWatches,
    jobdir::{JobDir, RESULT},
};

/// How often it is looked whether a stage still goes on. Also how late its result is seen when nobody told of it.
const LOOK: Duration = Duration::from_millis(500);

/// Waits for the result of the stage of `dir`, or until `gone` says how it has ended without one.
pub(super) async fn end<Look>(dir: &JobDir, watches: &FileWatches, gone: impl Fn() -> Look) -> Result<Exit>
where
    Look: Future<Output = Result<Option<Exit>>>,
{
    let result = watches.watch(dir.path(), RESULT);
    loop {
        if dir.has_result() {
            return Ok(Exit::Result);
        }
        if let Some(exit) = gone().await? {
            // Its last act is the result: looked for once more, now that there is nobody left to write it.
            return Ok(if dir.has_result() { Exit::Result } else { exit });
        }
        let until = Instant::now() + LOOK;
        // A stage that makes and removes a result again and again does not get more looks at itself by that.
        while !dir.has_result() && Instant::now() < until {
            result.changed(until.duration_since(Instant::now())).await;
        }
    }
}
