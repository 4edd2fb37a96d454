//! Gauges that are read from the database when somebody asks, so that they are never stale and vanish with
//! their pool.

use prometheus_client::{
    metrics::{family::Family, gauge::Gauge},
    registry::Registry,
};

use super::Labels;
use crate::server::{
    app::AppState,
    domain::pools::{self, Load},
    error::Result,
};

type Gauges<const N: usize> = Family<Labels<N>, Gauge>;

pub(super) async fn pools(app: &AppState) -> Result<Registry> {
    let now = app.clock.now_ms();
    let mut connection = app.store.read().await?;
    let loads = pools::loads(&mut connection, now, app.policy.offline_after).await?;
    drop(connection);
    let mut registry = Registry::with_prefix("terrapool_pool");
    let (depth, oldest) = (Gauges::<3>::default(), Gauges::<2>::default());
    let (ready, busy, idle) = (Gauges::<2>::default(), Gauges::<2>::default(), Gauges::<2>::default());
    registry.register("queue_depth", "Jobs that wait for an agent", depth.clone());
    registry.register("oldest_queued_seconds", "How long the oldest of them has waited; 0 when none", oldest.clone());
    registry.register("ready_agents", "Agents that work or could", ready.clone());
    registry.register("busy_agents", "Agents that work", busy.clone());
    registry.register("idle_agents", "Agents that wait for work", idle.clone());
    for Load { pool, name, queued, oldest_queued_at, agents } in loads {
        // names repeat in other scopes, ids do not
        let labels = || [("pool", name.clone()), ("pool_id", pool.to_string())];
        for (priority, count) in ["apply", "plan", "speculative"].into_iter().zip(queued) {
            let [pool, id] = labels();
            depth.get_or_create(&[pool, id, ("priority", priority.to_owned())]).set(count);
        }
        oldest.get_or_create(&labels()).set(oldest_queued_at.map_or(0, |at| (now - at).max(0) / 1000));
        ready.get_or_create(&labels()).set(agents.idle + agents.busy);
        busy.get_or_create(&labels()).set(agents.busy);
        idle.get_or_create(&labels()).set(agents.idle);
    }
    Ok(registry)
}
