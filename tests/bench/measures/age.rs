//! How old a line of a provisioner's output is when it leaves the CLI.

use anyhow::ensure;

use crate::support::{
    cli::Cli,
    report::{self, Samples},
    rig::Rig,
};

const ROUNDS: usize = 2;

const LINES: usize = 50;

fn configuration(round: usize) -> String {
    format!(
        "resource \"terraform_data\" \"x\" {{\n  triggers_replace = {round}\n  provisioner \"local-exec\" {{\n    \
         command = \"sleep 2; for i in $(seq {LINES}); do date +at=%s.%N; sleep 0.0$((3 + i % 7)); done\"\n  }}\n}}\n"
    )
}

pub async fn measure(_version: &str) -> anyhow::Result<()> {
    report::heading(
        "age",
        "age of a line at the CLI: a local-exec prints the time every 30–90 ms, the CLI's output is timed on arrival (it begins after 2 s, when the CLI reads the log; process \
         executor, whose shell knows the time to the nanosecond; the floor: the same with a local backend)",
    );
    let mut rig = Rig::start().await?;
    rig.start_agent("process", &[]).await?;
    let places = [Cli::local()?, Cli::remote(&rig, "age")?];
    let mut ages: [Samples; 2] = Default::default();
    for cli in &places {
        cli.write("main.tf", &configuration(0))?;
        cli.run(&["init"])?;
    }
    for round in 1..=ROUNDS {
        for (ages, cli) in ages.iter_mut().zip(&places) {
            cli.write("main.tf", &configuration(round))?;
            let lines = cli.lines(&["apply", "-auto-approve"])?;
            let said: Vec<f64> = lines.iter().filter_map(|(at, line)| Some((at - said_at(line)?) * 1e3)).collect();
            ensure!(said.len() == LINES, "{} of {LINES} lines arrived: {lines:?}", said.len());
            ages.extend(said);
        }
    }
    let [local, remote] = &ages;
    report::samples("floor: local backend", local, "ms");
    report::beside("through the control plane", remote, "ms", local);
    report::row("  target: p50 ≤ 50 ms", &format!("p50 {:.1} ms, p99 {:.1} ms", remote.median(), remote.p99()));
    Ok(())
}

/// When a line was said, as it says itself.
fn said_at(line: &str) -> Option<f64> {
    let (before, time) = line.split_once("at=")?;
    if !before.contains("(local-exec)") {
        return None;
    }
    time.trim_end_matches(|c: char| !c.is_ascii_digit()).split('\u{1b}').next()?.parse().ok()
}
