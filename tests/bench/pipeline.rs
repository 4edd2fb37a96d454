//! What the way of a run costs, from `POST runs` to the line that the CLI prints: the real, optimised programs on
//! loopback, each figure beside a floor that was measured in turns with it.
//!
//! `cargo bench` takes all measures, `cargo bench -- NAME…` those whose names contain one of the words. Needs `terraform`
//! on the `PATH` and a Docker engine; stops by itself, and leaves nothing.

#![expect(unreachable_pub, reason = "a program exports nothing; `pub` says that its other files use it")]

mod measures;
mod support;

use std::{pin::Pin, time::Instant};

use measures::{age, claim, first_line, host, ingest, redact, start, wall};

type Measure = fn(&str) -> Pin<Box<dyn Future<Output = anyhow::Result<()>> + '_>>;

const MEASURES: [(&str, Measure); 11] = [
    ("claim", |version| Box::pin(claim::measure(version))),
    ("first-line", |version| Box::pin(first_line::measure(version))),
    ("wall", |version| Box::pin(wall::measure(version))),
    ("age", |version| Box::pin(age::measure(version))),
    ("ingest", |version| Box::pin(ingest::ingest(version))),
    ("memory", |version| Box::pin(ingest::memory(version))),
    ("start", |version| Box::pin(start::measure(version))),
    ("agent-idle", |version| Box::pin(host::idle(version))),
    ("agent-jobs", |version| Box::pin(host::jobs(version))),
    ("agent-log", |version| Box::pin(host::talk(version))),
    ("redact", |_| Box::pin(async { redact::measure() })),
];

fn main() -> anyhow::Result<()> {
    let chosen = support::choice::chosen(&MEASURES)?;
    let start = Instant::now();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let version = support::cli::version()?;
    println!("{}; terraform {version}; medians [min–max]", support::report::machine());
    for measure in chosen {
        runtime.block_on(measure(&version))?;
    }
    println!("\ntook {} s", start.elapsed().as_secs());
    Ok(())
}
