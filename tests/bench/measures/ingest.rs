//! How fast one log is taken, and what an idle server and agent cost.

use std::time::{Duration, Instant};

use bytes::Bytes;
use terrapool::api::agent::MAX_LOG_APPEND;

use crate::support::{
    floor::{Database, write_file},
    report::{self, Samples},
    rig::{Rig, reference},
    usage::Memory,
};

const ROUNDS: usize = 7;

/// Appends in a round.
const PIECES: usize = 64;

pub async fn ingest(version: &str) -> anyhow::Result<()> {
    report::heading(
        "ingest",
        "one log, appended through the agent protocol by pieces of 256 KiB, each on the disk before its answer (the floors: the \
         same pieces as rows of a plain SQLite database, and appended to a file with fdatasync)",
    );
    let rig = Rig::start().await?;
    let workspace = rig.workspace("output \"x\" {\n  value = 1\n}\n", version).await?;
    let agent = rig.idle_agent().await?;
    let mut database = Database::open(rig.path()).await?;
    let piece = Bytes::from(b"module.one.terraform_data.line (local-exec): a line of a log\n".repeat(8192));
    let piece = piece.slice(..MAX_LOG_APPEND);
    let [mut ours, mut plain, mut file] = [(); 3].map(|()| Samples::default());
    for round in 0..ROUNDS {
        let run = rig.plan(&workspace).await?;
        let spec = agent.claim(format!("claim-{round}")).await?;
        let job = reference(&spec);
        let start = Instant::now();
        let mut end = 0;
        for _ in 0..PIECES {
            end = agent.client.append_log(&job, end, piece.clone()).await?.end;
        }
        ours.push(rate(start.elapsed()));
        agent.finish(&spec, end, false).await?;
        rig.ended(&run).await?;

        let start = Instant::now();
        for _ in 0..PIECES {
            database.commit(&piece).await?;
        }
        plain.push(rate(start.elapsed()));
        let start = Instant::now();
        write_file(&rig.path().join("floor.log"), &piece, PIECES)?;
        file.push(rate(start.elapsed()));
    }
    report::samples("floor: plain SQLite", &plain, "MB/s");
    report::samples("floor: a file", &file, "MB/s");
    report::beside("through the agent protocol", &ours, "MB/s", &plain);
    Ok(())
}

fn rate(took: Duration) -> f64 {
    (PIECES * MAX_LOG_APPEND) as f64 / 1e6 / took.as_secs_f64()
}

pub async fn memory(version: &str) -> anyhow::Result<()> {
    report::heading(
        "memory",
        "resident memory of idle programs after one run, from smaps_rollup (another pair of processes each time)",
    );
    let [mut server, mut agent]: [[Samples; 3]; 2] = Default::default();
    for _ in 0..5 {
        let mut rig = Rig::start().await?;
        rig.start_agent("process", &[]).await?;
        let workspace = rig.workspace("output \"x\" {\n  value = 1\n}\n", version).await?;
        let run = rig.plan(&workspace).await?;
        rig.ended(&run).await?;
        tokio::time::sleep(Duration::from_secs(1)).await;
        for (id, samples) in [(rig.server.id(), &mut server), (rig.agent()?.id(), &mut agent)] {
            let Memory { resident, proportional, anonymous } = Memory::of(id);
            for (samples, value) in samples.iter_mut().zip([resident, proportional, anonymous]) {
                samples.push(value);
            }
        }
    }
    for (name, [resident, shared_out, anonymous]) in [("server", &server), ("agent", &agent)] {
        report::samples(&format!("{name}: resident"), resident, "MiB");
        report::samples("  pages of the program that both map counted by halves", shared_out, "MiB");
        report::samples("  not backed by the program's file", anonymous, "MiB");
    }
    Ok(())
}
