//! What an operator takes that has nothing to do.

use std::{fs, time::Duration};

use super::{
    apply::complain,
    manifests::{self, PATIENCE, apply_pool},
};
use crate::support::{
    apiserver::ApiServer,
    operator::Operator,
    report::{self, Samples},
    rig::{Rig, program},
};

const ROUNDS: usize = 5;

/// Seconds that are counted.
const WATCHED: u64 = 10;

pub async fn measure(api: &ApiServer) -> anyhow::Result<()> {
    report::heading(
        "idle",
        "an operator with leader election and no objects, 2 s after its start, and with one AgentPool (smaps_rollup; CPU over \
         10 s; another process each time)",
    );
    let mut nothing: [Samples; 3] = Default::default();
    let mut one: [Samples; 3] = Default::default();
    let [mut cpu, mut start] = [(); 2].map(|()| Samples::default());
    let server = Rig::start().await?;
    for round in 0..ROUNDS {
        let namespace = api.namespace("idle").await?;
        let mut operator = Operator::start(api, &server, &namespace, &[]).await?;
        operator.works().await?;
        start.push(operator.started.elapsed().as_secs_f64() * 1e3);
        tokio::time::sleep(Duration::from_secs(2)).await;
        let before = operator.cpu();
        tokio::time::sleep(Duration::from_secs(WATCHED)).await;
        cpu.push((operator.cpu() - before) / WATCHED as f64 * 100.0);
        push(&mut nothing, &operator);
        apply_pool(&api.client, &namespace, &manifests::pool(&format!("pool-{round}"), &manifests::external())).await?;
        operator.metric_reaches("objects_in_line", &[("agentpool", 1)], PATIENCE).await?;
        tokio::time::sleep(Duration::from_secs(2)).await;
        push(&mut one, &operator);
        complain(&operator);
    }
    for (what, [resident, proportional, anonymous]) in [("nothing to do", &nothing), ("one AgentPool", &one)] {
        report::samples(&format!("{what}: RSS (target ≤ 12 MiB)"), resident, "MiB");
        report::samples("  PSS (the program's file is also mapped by the server)", proportional, "MiB");
        report::samples("  not backed by the program's file", anonymous, "MiB");
    }
    report::samples("CPU with nothing to do (target ≤ 0.1 %)", &cpu, "% of a core");
    report::samples("start → controllers start (target ≤ 50 ms)", &start, "ms");
    let size = fs::metadata(program())?.len() as f64 / 1e6;
    report::row("size of the program", &format!("{size:.1} MB"));
    Ok(())
}

fn push([resident, proportional, anonymous]: &mut [Samples; 3], operator: &Operator) {
    let memory = operator.memory();
    resident.push(memory.resident);
    proportional.push(memory.proportional);
    anonymous.push(memory.anonymous);
}
