//! What the operator would write, for every object, without writing anything. Every pass is the real one: reads are
//! made, and where it would write it notes down what. What a write to the control plane would give back nobody
//! knows, so a pass ends at the first one that others depend on.

use std::sync::Arc;

use kube::{Client, ResourceExt, api::ListParams};
use serde::Serialize;
use tokio::sync::mpsc;

use super::{Common, Config, Error, cluster, cluster::Cluster, control_planes::ControlPlanes, owned::api};
use crate::{
    crd::{AgentPool, WorkspaceLink},
    shutdown::Shutdown,
    sync::{Fault, Seam},
};

/// What would be done for one object.
#[derive(Debug, Clone, Serialize)]
pub struct Plan {
    pub kind: &'static str,
    /// `namespace/name`
    pub object: String,
    /// In words, in order; empty: it is in line.
    pub steps: Vec<String>,
    /// Writes to the cluster, with what would be sent; secrets are left out.
    pub writes: Vec<cluster::Planned>,
}

/// Plans of all objects.
///
/// # Errors
/// When the cluster cannot be read.
pub async fn run(config: Config, client: Client) -> Result<Vec<Plan>, Error> {
    let namespaces = match &config.namespaces {
        None => vec![None],
        Some(names) => names.iter().cloned().map(Some).collect(),
    };
    let mut plans = Vec::new();
    for namespace in namespaces {
        plans.extend(Box::pin(of_namespace(&config, &client, namespace.as_deref())).await?);
    }
    Ok(plans)
}

async fn of_namespace(config: &Config, client: &Client, namespace: Option<&str>) -> Result<Vec<Plan>, Error> {
    let cluster = Cluster::dry(client.clone());
    let (changed, _) = mpsc::unbounded_channel();
    let control_planes = ControlPlanes::new(
        cluster.clone(),
        config.control_plane.clone(),
        config.allow_plain_http,
        changed,
        Shutdown::new(),
    );
    let common =
        Common::new(config, cluster, control_planes, Seam::with_hook(|_, _| Fault::Planned), client, namespace);
    let failed =
        |doing: &str, source| Error::Cluster(cluster::Error::Api { doing: doing.to_owned(), source: Box::new(source) });
    let all = ListParams::default();
    let pools = api::<AgentPool>(client, namespace).list(&all).await.map_err(|e| failed("list AgentPools", e))?;
    let links =
        api::<WorkspaceLink>(client, namespace).list(&all).await.map_err(|e| failed("list WorkspaceLinks", e))?;
    let mut plans = Vec::new();
    let pool_context = Arc::new(super::pool::Context::empty(common.clone()));
    for pool in pools.items {
        let object = format!("{}/{}", pool.namespace().unwrap_or_default(), pool.name_any());
        let result = Box::pin(super::pool::reconcile(Arc::new(pool), Arc::clone(&pool_context))).await;
        plans.push(plan("AgentPool", object, &common, result.err()));
    }
    let link_context = Arc::new(super::link::Context::empty(common.clone()));
    for link in links.items {
        let object = format!("{}/{}", link.namespace().unwrap_or_default(), link.name_any());
        let result = super::link::reconcile(Arc::new(link.into()), Arc::clone(&link_context)).await;
        plans.push(plan("WorkspaceLink", object, &common, result.err()));
    }
    Ok(plans)
}

fn plan(kind: &'static str, object: String, common: &Common, error: Option<Error>) -> Plan {
    let writes = common.cluster.take_planned();
    // The status of a pass that a dry run cut short is of no interest.
    let cut = error.as_ref().is_some_and(|error| error.planned().is_some());
    let writes: Vec<_> = writes.into_iter().filter(|write| !(cut && write.action == "write the status of")).collect();
    let mut steps: Vec<String> = writes.iter().map(|write| format!("{} {}", write.action, write.object)).collect();
    if let Some(error) = error {
        steps.push(match error.planned() {
            Some(kind) => format!("{kind} in the control plane, and what depends on it"),
            None => format!("cannot go on: {}", error.to_text()),
        });
    }
    Plan { kind, object, steps, writes }
}
