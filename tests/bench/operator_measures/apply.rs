//! From `apply` until the AgentPool is Ready, and until its token Secret is there.

use std::time::{Duration, Instant};

use kube::{Api, api::PostParams};
use serde_json::Value;
use terrapool::crd::AgentPool;

use super::manifests::{self, PATIENCE, apply_pool, path};
use crate::support::{
    apiserver::ApiServer,
    operator::Operator,
    report::{self, Samples},
    rig::Rig,
    seen::Seen,
};

const ROUNDS: usize = 120;

/// Not counted.
const WARM_UP: usize = 5;

pub async fn measure(api: &ApiServer) -> anyhow::Result<()> {
    for (mode, agents) in [("External", manifests::external()), ("Ephemeral, minIdle 0", manifests::from_zero(20))] {
        report::heading(
            &format!("apply, mode {mode}"),
            "server-side apply of a new AgentPool until a watch shows it Ready, and until it shows the token Secret, one after \
             the other (the floors, in turns: create, and server-side apply, of the same object where no operator works)",
        );
        one_mode(api, &agents).await?;
    }
    Ok(())
}

async fn one_mode(api: &ApiServer, agents: &Value) -> anyhow::Result<()> {
    let server = Rig::start().await?;
    let (namespace, beside) = (api.namespace("apply").await?, api.namespace("beside").await?);
    let mut operator = Operator::start(api, &server, &namespace, &[]).await?;
    operator.works().await?;
    let ready = Seen::watch(&api.client, &path(&namespace, "agentpools"), |pool| pool.is_ready()).await?;
    let secrets = Seen::watch(&api.client, &format!("/api/v1/namespaces/{namespace}/secrets"), |_| true).await?;
    let pools: Api<AgentPool> = Api::namespaced(api.client.clone(), &beside);
    let [mut to_ready, mut to_secret, mut created, mut applied] = [(); 4].map(|()| Samples::default());
    let (before, cpu) = (api.writes().await?, operator.cpu());
    for round in 0..WARM_UP + ROUNDS {
        let name = format!("pool-{round}");
        let manifest = manifests::pool(&name, agents);
        let start = Instant::now();
        apply_pool(&api.client, &namespace, &manifest).await?;
        let secret = secrets.at(&format!("{name}-agent-token"), PATIENCE).await?;
        let at = ready.at(&name, PATIENCE).await?;
        // Until what follows is done as well.
        tokio::time::sleep(Duration::from_millis(40)).await;
        let plain = Instant::now();
        pools.create(&PostParams::default(), &serde_json::from_value(manifest.clone())?).await?;
        let create = plain.elapsed();
        let plain = Instant::now();
        apply_pool(&api.client, &beside, &manifests::pool(&format!("applied-{round}"), agents)).await?;
        if round >= WARM_UP {
            to_ready.push(milliseconds(at - start));
            to_secret.push(milliseconds(secret - start));
            created.push(milliseconds(create));
            applied.push(milliseconds(plain.elapsed()));
        }
    }
    let cpu = (operator.cpu() - cpu) / (WARM_UP + ROUNDS) as f64 * 1e3;
    report::samples("floor: one create", &created, "ms");
    report::samples("floor: one server-side apply", &applied, "ms");
    report::beside("apply → token Secret", &to_secret, "ms", &applied);
    report::row("  target: p99 ≤ 250 ms", &format!("p50 {:.1} ms, p99 {:.1} ms", to_secret.median(), to_secret.p99()));
    report::beside("apply → Ready", &to_ready, "ms", &applied);
    report::row(
        "  target: p50 ≤ 100 ms, p99 ≤ 400 ms",
        &format!("p50 {:.1} ms, p99 {:.1} ms", to_ready.median(), to_ready.p99()),
    );
    let writes = crate::support::apiserver::written(&before, &api.writes().await?);
    let per_pool = writes.iter().map(|(what, count)| (what, *count as f64 / (WARM_UP + ROUNDS) as f64));
    let text = per_pool.map(|(what, each)| format!("{each:.2} {what}")).collect::<Vec<_>>().join(", ");
    report::row("writes per pool, with one apply here and two beside", &text);
    report::row("operator's CPU per pool", &format!("{cpu:.1} ms"));
    complain(&operator);
    Ok(())
}

pub fn complain(operator: &Operator) {
    let complaints = operator.complaints();
    if let Some(first) = complaints.first() {
        report::row("the operator complained", &format!("{} times, first: {first}", complaints.len()));
    }
}

pub fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
