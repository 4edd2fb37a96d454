//! From a queued run until its Pod is created, where no agent waits.

use std::time::{Duration, Instant};

use anyhow::Context;
use futures::future::try_join_all;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, api::PostParams};
use serde_json::json;

use super::{
    apply::{complain, milliseconds},
    manifests::{self, PATIENCE, apply_pool, path},
};
use crate::support::{
    apiserver::{ApiServer, writes_text, written},
    cli,
    operator::Operator,
    report::{self, Samples},
    rig::{Rig, Workspace},
    seen::Seen,
};

/// Pools, each with a workspace of its own.
const POOLS: usize = 110;

/// Runs at once.
const BURST: usize = 100;

const BURSTS: usize = 5;

const CONFIGURATION: &str = "output \"x\" {\n  value = 1\n}\n";

pub async fn measure(api: &ApiServer) -> anyhow::Result<()> {
    report::heading(
        "pods",
        "mode Ephemeral, minIdle 0: POST runs until a watch shows the Pod, one pool after the other; then 100 runs at once in one \
         pool until all Pods are there (the floor: one create of such a Pod; no kubelet: Pods are only made)",
    );
    let server = Rig::start().await?;
    let version = cli::version()?;
    one_by_one(api, &server, &version).await?;
    bursts(api, &server, &version).await
}

/// A workspace whose runs go to that pool.
async fn linked(
    api: &ApiServer,
    server: &Rig,
    version: &str,
    namespace: &str,
    pool: &str,
) -> anyhow::Result<Workspace> {
    let workspace = server.workspace(CONFIGURATION, version).await?;
    let pools: Api<terrapool::crd::AgentPool> = Api::namespaced(api.client.clone(), namespace);
    let id = pools.get(pool).await?.status.and_then(|status| status.pool_id).context("a Ready pool has an id")?;
    server.control_plane()?.link_workspace(&workspace.id.parse()?, Some(&id.parse()?)).await?;
    Ok(workspace)
}

async fn one_by_one(api: &ApiServer, server: &Rig, version: &str) -> anyhow::Result<()> {
    let (namespace, beside) = (api.namespace("pods").await?, api.namespace("beside").await?);
    let mut operator = Operator::start(api, server, &namespace, &[]).await?;
    operator.works().await?;
    let ready = Seen::watch(&api.client, &path(&namespace, "agentpools"), |pool| pool.is_ready()).await?;
    let mut workspaces = Vec::new();
    for number in 0..POOLS {
        let name = format!("pool-{number}");
        apply_pool(&api.client, &namespace, &manifests::pool(&name, &manifests::from_zero(20))).await?;
        ready.at(&name, PATIENCE).await?;
        workspaces.push(linked(api, server, version, &namespace, &name).await?);
    }
    // Until the pools' numbers of workspaces are told.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let [mut created, mut posted, mut floor] = [(); 3].map(|()| Samples::default());
    for (number, workspace) in workspaces.iter().enumerate() {
        let pods = Seen::watch(&api.client, &format!("/api/v1/namespaces/{namespace}/pods"), |_| true).await?;
        let start = Instant::now();
        server.plan(workspace).await?;
        posted.push(milliseconds(start.elapsed()));
        created.push(milliseconds(pods.all(1, PATIENCE).await? - start));
        floor.push(milliseconds(plain_pod(api, &namespace, &beside, number).await?));
    }
    report::samples("floor: one create of such a Pod", &floor, "ms");
    report::samples("POST runs → its own answer", &posted, "ms");
    report::beside("POST runs → Pod created", &created, "ms", &floor);
    report::row(
        "  target: p50 ≤ 50 ms, p99 ≤ 300 ms",
        &format!("p50 {:.1} ms, p99 {:.1} ms", created.median(), created.p99()),
    );
    complain(&operator);
    Ok(())
}

/// Creates a copy of a Pod of the operator's where nobody looks.
async fn plain_pod(api: &ApiServer, from: &str, to: &str, number: usize) -> anyhow::Result<Duration> {
    let pods: Api<Pod> = Api::namespaced(api.client.clone(), from);
    let first = pods.list(&kube::api::ListParams::default().limit(1)).await?.items.into_iter().next();
    let spec = first.context("a Pod is there")?.spec;
    let pod: Pod = serde_json::from_value(json!({"metadata": {"name": format!("plain-{number}")}, "spec": spec}))?;
    let pods: Api<Pod> = Api::namespaced(api.client.clone(), to);
    let start = Instant::now();
    pods.create(&PostParams::default(), &pod).await?;
    Ok(start.elapsed())
}

async fn bursts(api: &ApiServer, server: &Rig, version: &str) -> anyhow::Result<()> {
    let [mut all, mut posting, mut after, mut floor] = [(); 4].map(|()| Samples::default());
    for round in 0..BURSTS {
        let (namespace, beside) = (api.namespace("burst").await?, api.namespace("beside").await?);
        let mut operator = Operator::start(api, server, &namespace, &[]).await?;
        operator.works().await?;
        let ready = Seen::watch(&api.client, &path(&namespace, "agentpools"), |pool| pool.is_ready()).await?;
        let name = format!("burst-{round}");
        apply_pool(&api.client, &namespace, &manifests::pool(&name, &manifests::from_zero(200))).await?;
        ready.at(&name, PATIENCE).await?;
        let mut workspaces = Vec::new();
        for _ in 0..BURST {
            workspaces.push(linked(api, server, version, &namespace, &name).await?);
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        let pods = Seen::watch(&api.client, &format!("/api/v1/namespaces/{namespace}/pods"), |_| true).await?;
        let before = api.writes().await?;
        let start = Instant::now();
        try_join_all(workspaces.iter().map(|workspace| server.plan(workspace))).await?;
        let posted = Instant::now();
        let last = pods.all(BURST, PATIENCE).await?;
        all.push((last - start).as_secs_f64());
        posting.push((posted - start).as_secs_f64());
        after.push(last.saturating_duration_since(posted).as_secs_f64());
        if round == 0 {
            tokio::time::sleep(Duration::from_secs(2)).await;
            report::row("writes of one burst", &writes_text(&written(&before, &api.writes().await?)));
        }
        complain(&operator);
        drop(operator);
        let mut plain = 0.0;
        for number in 0..BURST {
            plain += plain_pod(api, &namespace, &beside, number).await?.as_secs_f64();
        }
        floor.push(plain);
    }
    report::samples("floor: 100 creates of such a Pod, one after the other", &floor, "s");
    report::beside("first POST runs → 100 Pods (target ≤ 1.0 s)", &all, "s", &floor);
    report::samples("  of which the POSTs of the runs", &posting, "s");
    report::samples("  last POST answered → 100 Pods", &after, "s");
    Ok(())
}
