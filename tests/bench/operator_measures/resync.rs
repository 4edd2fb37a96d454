//! Many pools that nothing happened to, looked at again.

use std::time::Duration;

use futures::{StreamExt, TryStreamExt, stream};

use super::{
    apply::complain,
    manifests::{self, PATIENCE, apply_pool},
};
use crate::support::{
    apiserver::{ApiServer, writes_text, written},
    operator::Operator,
    report::{self, Samples},
    rig::Rig,
};

/// Passes over all that are measured.
const ROUNDS: u64 = 5;

/// Between two looks at the same pool, in seconds; spread over its last quarter.
const RESYNC: u64 = 40;

pub async fn measure(api: &ApiServer) -> anyhow::Result<()> {
    let count: usize = std::env::var("TERRAPOOL_BENCH_RESYNC").map_or(Ok(10_000), |text| text.parse())?;
    report::heading(
        &format!("resync, {count} unchanged pools"),
        "an operator that starts over them and then looks at each of them again and again (mode External; what is counted is \
         one look at each, in about 10 s)",
    );
    let server = Rig::start().await?;
    let namespace = api.namespace("resync").await?;
    let pools = u64::try_from(count)?;
    let operator = Operator::start(api, &server, &namespace, &[]).await?;
    let external = &manifests::external();
    let all = stream::iter(0..count).map(|number| {
        let namespace = &namespace;
        async move {
            apply_pool(&api.client, namespace, &manifests::pool(&format!("pool-{number}"), external)).await.map(drop)
        }
    });
    all.buffer_unordered(32).try_for_each(|()| async { Ok(()) }).await?;
    operator.metric_reaches("objects_in_line", &[("agentpool", pools)], PATIENCE).await?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    report::row("after they were made", &operator.memory().to_string());
    drop(operator);

    let resync = RESYNC.to_string();
    let before = api.writes().await?;
    let operator = Operator::start(api, &server, &namespace, &["--resync", &resync]).await?;
    let verified = operator.metric_reaches("objects_in_line", &[("agentpool", pools)], PATIENCE).await?;
    let took = (verified - operator.started).as_secs_f64();
    report::row("a start over them", &format!("{took:.1} s, CPU {:.1} s; {}", operator.cpu(), operator.memory()));
    let mut cpu = Samples::default();
    let mut memory = Samples::default();
    let mut visits = operator.metric("reconcile_duration_seconds_count", "agentpool").await?;
    for _ in 0..ROUNDS {
        let begin = operator.cpu();
        let wanted = visits + pools;
        operator.metric_reaches("reconcile_duration_seconds_count", &[("agentpool", wanted)], PATIENCE).await?;
        visits = wanted;
        cpu.push(operator.cpu() - begin);
        memory.push(operator.memory().resident);
    }
    report::samples("CPU of the operator for one look at each (target ≤ 10 s)", &cpu, "s");
    report::samples("RSS after it (target ≤ 150 MiB)", &memory, "MiB");
    let writes = written(&before, &api.writes().await?);
    report::row("writes of the start and all looks (target: none)", &writes_text(&writes));
    complain(&operator);
    Ok(())
}
