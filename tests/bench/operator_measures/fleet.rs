//! Many new pools and links until all are Ready, and an operator that starts over them.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::core::v1::{ConfigMap, Event, Secret};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use terrapool::crd::{AgentPool, WorkspaceLink};

use super::{
    apply::complain,
    manifests::{self, PATIENCE, apply_link, apply_pool, path},
};
use crate::support::{
    apiserver::{ApiServer, Writes, writes_text, written},
    operator::Operator,
    report::{self, Samples},
    rig::{ORGANIZATION, Rig},
    seen::Seen,
};

/// As many objects at a time as the operator looks at of both kinds together.
const AT_A_TIME: usize = 32;

/// How much: rounds, pools and links, by TERRAPOOL_BENCH_FLEET=rounds,pools,links.
fn size() -> anyhow::Result<[usize; 3]> {
    let text = std::env::var("TERRAPOOL_BENCH_FLEET").unwrap_or_else(|_| "5,1000,5000".to_owned());
    let numbers: Vec<usize> = text.split(',').map(str::parse).collect::<Result<_, _>>()?;
    numbers.try_into().ok().context("TERRAPOOL_BENCH_FLEET is rounds,pools,links")
}

#[derive(Default)]
struct Figures {
    ready: Samples,
    same: Samples,
    creates: Samples,
    to_same: Samples,
    to_creates: Samples,
    restart: Samples,
    resident: Samples,
    proportional: Samples,
    after_creation: Samples,
    cpu: [Samples; 4],
    restart_cpu: Samples,
}

pub async fn measure(api: &ApiServer) -> anyhow::Result<()> {
    let [rounds, pools, links] = size()?;
    report::heading(
        &format!("fleet, {pools} pools and {links} links"),
        "from the first apply of new objects, 32 at a time, until a watch shows the last of them Ready (workspaces were there; the \
         floors, after each: a bare loop, 32 at a time, that makes the same writes to the same kinds of objects under the same \
         watches, and one that creates as many ConfigMaps); then the operator is ended and started again over them",
    );
    let mut figures = Figures::default();
    for round in 0..rounds {
        one_round(api, pools, links, round == 0, &mut figures).await?;
    }
    let Figures { ready, same, creates, to_same, to_creates, restart, resident, proportional, .. } = &figures;
    report::samples("floor: the same writes, by a bare loop", same, "s");
    report::samples("floor: as many creates of ConfigMaps", creates, "s");
    report::beside("first apply → all Ready", ready, "s", same);
    report::samples("  ratio to the same writes (target ≤ 1.5)", to_same, "×");
    report::samples("  ratio to as many creates", to_creates, "×");
    for (who, cpu) in ["operator", "server", "kube-apiserver", "etcd"].iter().zip(&figures.cpu) {
        report::samples(&format!("  CPU of {who}"), cpu, "s");
    }
    report::samples("RSS after that", &figures.after_creation, "MiB");
    report::samples("start of the operator → all verified (target ≤ 5 s)", restart, "s");
    report::samples("  CPU of the operator", &figures.restart_cpu, "s");
    report::samples("  RSS (target ≤ 45 MiB)", resident, "MiB");
    report::samples("  PSS", proportional, "MiB");
    Ok(())
}

async fn one_round(
    api: &ApiServer,
    pools: usize,
    links: usize,
    tell: bool,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    let server = Rig::start().await?;
    workspaces(&server, links).await?;
    let namespace = api.namespace("fleet").await?;
    let mut operator = Operator::start(api, &server, &namespace, &[]).await?;
    operator.works().await?;
    let ready_pools = Seen::watch(&api.client, &path(&namespace, "agentpools"), |pool| pool.is_ready()).await?;
    let ready_links = Seen::watch(&api.client, &path(&namespace, "workspacelinks"), |link| link.is_ready()).await?;
    let before = api.writes().await?;
    let cpu = cpu(api, &server, &operator);
    let start = Instant::now();
    apply_all(&api.client, &namespace, pools, links).await?;
    let applied = start.elapsed();
    let last = ready_pools.all(pools, PATIENCE).await?.max(ready_links.all(links, PATIENCE).await?);
    let ready = (last - start).as_secs_f64();
    let spent = cpu_since(api, &server, &operator, &cpu);
    let writes = written(&before, &api.writes().await?);
    drop((ready_pools, ready_links));
    figures.ready.push(ready);
    for (samples, spent) in figures.cpu.iter_mut().zip(spent) {
        samples.push(spent);
    }
    let per = Per::of(&writes, pools, links);
    if tell {
        report::row("writes until all are Ready, with the applies", &writes_text(&writes));
        report::row("  the operator's per pool and per link", &per.text());
        report::row("all applied after", &format!("{:.1} s", applied.as_secs_f64()));
    }
    // The numbers of linked workspaces are written when they have been the same for 30 s.
    tokio::time::sleep(Duration::from_secs(40)).await;
    if tell {
        let later = written(&before, &api.writes().await?);
        report::row("  40 s later, with the numbers of linked workspaces", &Per::of(&later, pools, links).text());
    }
    figures.after_creation.push(operator.memory().resident);
    complain(&operator);
    drop(operator);
    restart(api, &server, &namespace, [pools, links], tell, figures).await?;
    drop(server);

    let total: u64 = writes.values().sum();
    let same = same_writes(api, pools, links, &per).await?;
    let creates = creates(api, usize::try_from(total)?).await?;
    figures.same.push(same);
    figures.creates.push(creates);
    figures.to_same.push(ready / same);
    figures.to_creates.push(ready / creates);
    Ok(())
}

fn cpu(api: &ApiServer, server: &Rig, operator: &Operator) -> [f64; 4] {
    let [apiserver, etcd] = api.cpu().unwrap_or([f64::NAN; 2]);
    [operator.cpu(), crate::support::usage::cpu(server.server.id()), apiserver, etcd]
}

fn cpu_since(api: &ApiServer, server: &Rig, operator: &Operator, before: &[f64; 4]) -> [f64; 4] {
    let mut now = cpu(api, server, operator);
    for (now, before) in now.iter_mut().zip(before) {
        *now -= before;
    }
    now
}

async fn workspaces(server: &Rig, count: usize) -> anyhow::Result<()> {
    let cp = server.control_plane()?;
    let environment = cp.environment_by_name(ORGANIZATION).await?.context("the environment is there")?.id;
    let all = stream::iter(0..count).map(|number| {
        let (cp, environment) = (&cp, &environment);
        async move { cp.create_workspace(environment, &format!("workspace-{number}")).await }
    });
    all.buffer_unordered(AT_A_TIME).try_for_each(|_| async { Ok(()) }).await?;
    Ok(())
}

/// Pools first, as a directory of manifests in order of names has them.
async fn apply_all(client: &Client, namespace: &str, pools: usize, links: usize) -> anyhow::Result<()> {
    let external = manifests::external();
    let all = stream::iter(0..pools + links).map(|number| {
        let external = &external;
        async move {
            match number.checked_sub(pools) {
                None => {
                    let pool = manifests::pool(&format!("pool-{number}"), external);
                    apply_pool(client, namespace, &pool).await.map(drop)
                }
                Some(link) => {
                    let pool = format!("pool-{}", link % pools);
                    let workspace = format!("workspace-{link}");
                    let link = manifests::link(&format!("link-{link}"), &pool, ORGANIZATION, &workspace);
                    apply_link(client, namespace, &link).await
                }
            }
        }
    });
    all.buffer_unordered(AT_A_TIME).try_for_each(|()| async { Ok(()) }).await
}

async fn restart(
    api: &ApiServer,
    server: &Rig,
    namespace: &str,
    [pools, links]: [usize; 2],
    tell: bool,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    let before = api.writes().await?;
    let operator = Operator::start(api, server, namespace, &[]).await?;
    let wanted = [("agentpool", u64::try_from(pools)?), ("workspacelink", u64::try_from(links)?)];
    let verified = operator.metric_reaches("objects_in_line", &wanted, PATIENCE).await?;
    figures.restart.push((verified - operator.started).as_secs_f64());
    figures.restart_cpu.push(operator.cpu());
    tokio::time::sleep(Duration::from_secs(2)).await;
    let memory = operator.memory();
    figures.resident.push(memory.resident);
    figures.proportional.push(memory.proportional);
    let writes = written(&before, &api.writes().await?);
    if tell || !writes.is_empty() {
        report::row("writes of a start over them (target: none)", &writes_text(&writes));
        report::row("  memory", &memory.to_string());
    }
    complain(&operator);
    Ok(())
}

/// Writes of the operator for one object of each kind.
struct Per {
    pool: [f64; 4],
    link: [f64; 2],
}

impl Per {
    fn of(writes: &Writes, pools: usize, links: usize) -> Self {
        let count = |what: &[&str], less: usize, of: usize| {
            let sum: u64 = what.iter().filter_map(|what| writes.get(*what)).sum();
            (sum as f64 - less as f64) / of as f64
        };
        Self {
            // The applies are counted as patches as well.
            pool: [
                count(&["PATCH agentpools", "APPLY agentpools"], pools, pools),
                count(&["POST events", "PATCH events"], 0, pools),
                count(&["PATCH secrets", "APPLY secrets"], 0, pools),
                count(&["PATCH agentpools/status", "APPLY agentpools/status"], 0, pools),
            ],
            link: [
                count(&["PATCH workspacelinks", "APPLY workspacelinks"], links, links),
                count(&["PATCH workspacelinks/status", "APPLY workspacelinks/status"], 0, links),
            ],
        }
    }

    fn text(&self) -> String {
        let ([finalizer, event, secret, status], [link_finalizer, link_status]) = (self.pool, self.link);
        format!(
            "pool {:.2} (finalizer {finalizer:.2}, event {event:.2}, Secret {secret:.2}, status {status:.2}), link {:.2} \
             (finalizer {link_finalizer:.2}, status {link_status:.2})",
            finalizer + event + secret + status,
            link_finalizer + link_status
        )
    }
}

/// As often as on average: the fraction is spread over the objects.
fn times(average: f64, number: usize) -> usize {
    let upto = |count: usize| (average * count as f64).round() as usize;
    upto(number + 1) - upto(number)
}

/// The same writes to the same kinds of objects, by a loop that does nothing else. Seconds.
async fn same_writes(api: &ApiServer, pools: usize, links: usize, per: &Per) -> anyhow::Result<f64> {
    let namespace = &api.namespace("floor").await?;
    // Somebody looks on here as well: to tell a watch costs the API server as much as it does there.
    let _watches = (
        Seen::watch(&api.client, &path(namespace, "agentpools"), |pool| pool.is_ready()).await?,
        Seen::watch(&api.client, &path(namespace, "workspacelinks"), |link| link.is_ready()).await?,
    );
    // What an operator writes, from an object that has it all.
    let start = Instant::now();
    let all = stream::iter(0..pools + links).map(|number| async move {
        match number.checked_sub(pools) {
            None => same_pool(&api.client, namespace, number, per).await,
            Some(link) => same_link(&api.client, namespace, link, link % pools, per).await,
        }
    });
    all.buffer_unordered(AT_A_TIME).try_for_each(|()| async { Ok(()) }).await?;
    Ok(start.elapsed().as_secs_f64())
}

async fn same_pool(client: &Client, namespace: &str, number: usize, per: &Per) -> anyhow::Result<()> {
    let name = format!("pool-{number}");
    let [finalizers, events, secrets, statuses] = per.pool.map(|average| times(average, number));
    let made = apply_pool(client, namespace, &manifests::pool(&name, &manifests::external())).await?;
    let pools: Api<AgentPool> = Api::namespaced(client.clone(), namespace);
    for _ in 0..finalizers {
        let patch = json!({"metadata": {"finalizers": [terrapool::crd::POOL_FINALIZER]}});
        pools.patch_metadata(&name, &PatchParams::default(), &Patch::Merge(&patch)).await?;
    }
    for event in 0..events {
        let about = json!({"apiVersion": "terrapool.dev/v1alpha1", "kind": "AgentPool", "name": name, "uid": made.metadata.uid,
            "namespace": namespace});
        let event: Event = serde_json::from_value(json!({
            "metadata": {"name": format!("{name}.{event}"), "namespace": namespace}, "involvedObject": about,
            "reason": "Created", "message": "created the pool apool-0123456789 in the control plane", "type": "Normal",
            "action": "Reconcile", "eventTime": "2030-01-01T00:00:00.000000Z", "reportingComponent": "floor",
            "reportingInstance": "floor",
        }))?;
        Api::namespaced(client.clone(), namespace).create(&PostParams::default(), &event).await?;
    }
    for _ in 0..secrets {
        let name = format!("{name}-agent-token");
        let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "labels": {"terrapool.dev/pool": "x",
            "app.kubernetes.io/name": "terrapool-agent", "app.kubernetes.io/instance": "x",
            "app.kubernetes.io/managed-by": "terrapool"}}, "stringData": {"token": "x".repeat(100), "url": "http://127.0.0.1:1"}});
        let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
        api.patch(&name, &PatchParams::apply("floor").force(), &Patch::Apply(&secret)).await?;
    }
    for time in 0..statuses {
        let patch = json!({"apiVersion": "terrapool.dev/v1alpha1", "kind": "AgentPool", "metadata": {"name": name},
            "status": status(&["Registered", "TokenReady", "AgentsAvailable", "ScalingLimited", "Ready"], time)});
        pools.patch_status(&name, &PatchParams::apply("floor-status").force(), &Patch::Apply(&patch)).await?;
    }
    Ok(())
}

async fn same_link(client: &Client, namespace: &str, number: usize, pool: usize, per: &Per) -> anyhow::Result<()> {
    let name = format!("link-{number}");
    let [finalizers, statuses] = per.link.map(|average| times(average, number));
    let manifest = manifests::link(&name, &format!("pool-{pool}"), ORGANIZATION, &format!("workspace-{number}"));
    apply_link(client, namespace, &manifest).await?;
    let links: Api<WorkspaceLink> = Api::namespaced(client.clone(), namespace);
    for _ in 0..finalizers {
        let patch = json!({"metadata": {"finalizers": [terrapool::crd::LINK_FINALIZER]}});
        links.patch_metadata(&name, &PatchParams::default(), &Patch::Merge(&patch)).await?;
    }
    for time in 0..statuses {
        let patch = json!({"apiVersion": "terrapool.dev/v1alpha1", "kind": "WorkspaceLink", "metadata": {"name": name},
            "status": status(&["Linked", "Ready"], time)});
        links.patch_status(&name, &PatchParams::apply("floor-status").force(), &Patch::Apply(&patch)).await?;
    }
    Ok(())
}

fn status(types: &[&str], time: usize) -> Value {
    let condition = |kind: &&str| {
        json!({"type": kind, "status": "True", "reason": "InSync", "message": format!("the pool is in line, {time}"),
            "lastTransitionTime": "2030-01-01T00:00:00Z", "observedGeneration": 1})
    };
    json!({"observedGeneration": 1, "conditions": types.iter().map(condition).collect::<Vec<_>>()})
}

/// As many creates of something small. Seconds.
async fn creates(api: &ApiServer, count: usize) -> anyhow::Result<f64> {
    let namespace = api.namespace("creates").await?;
    let maps: Api<ConfigMap> = Api::namespaced(api.client.clone(), &namespace);
    let start = Instant::now();
    let all = stream::iter(0..count).map(|number| {
        let maps = &maps;
        async move {
            let map: ConfigMap =
                serde_json::from_value(json!({"metadata": {"name": format!("map-{number}")}, "data": {"a": "b"}}))?;
            maps.create(&PostParams::default(), &map).await?;
            anyhow::Ok(())
        }
    });
    all.buffer_unordered(AT_A_TIME).try_for_each(|()| async { Ok(()) }).await?;
    ensure!(count > 0, "nothing was written");
    Ok(start.elapsed().as_secs_f64())
}
