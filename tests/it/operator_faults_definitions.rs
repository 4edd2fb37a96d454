//! F11 of the fault suite where it concerns the whole cluster: our definitions are deleted while there are objects of
//! them, and come back.

use std::{path::Path, sync::Arc, time::Duration};

use axum::http::Method;
use serde_json::Value;

use crate::support::{
    cluster::OwnApiserver,
    operator::{
        cluster::{Cluster, JSON, Kind, code},
        observe::observe,
        oracles,
        recorder::Recorder,
        runner::hub,
        scenario::{Goal, Scenario, Step, idle, link, pool},
        stage::Stage,
    },
    poll::eventually,
};

const DEFINITIONS: [&str; 2] = ["agentpools.terrapool.dev", "workspacelinks.terrapool.dev"];

fn definition(name: &str) -> String {
    format!("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}")
}

#[test]
fn operator_faults_f11_definitions_deleted_while_there_are_objects() {
    let server = OwnApiserver::start();
    hub().block_on(Box::pin(definitions_go_and_come_back(&server.kubeconfig())));
}

/// Their objects go first, the usual way; then the operator says what is missing, and goes on when it is back.
async fn definitions_go_and_come_back(kubeconfig: &Path) {
    let steps = vec![
        Step::Apply(pool("alpha", &idle(1))),
        Step::Apply(link("app", "alpha", "app")),
        Step::Wait(Goal::Ready(Kind::AgentPool, "alpha")),
        Step::Wait(Goal::Ready(Kind::WorkspaceLink, "app")),
        Step::Wait(Goal::Agents(1)),
    ];
    let scenario = Scenario { name: "F11".to_owned(), steps, operators: 1 };
    let (cluster, recorder) = (Cluster::connect_to(kubeconfig).await, Arc::new(Recorder::new(&[], 0)));
    let stage = Stage::open(&cluster, hub().plane().await, &hub().namespace(), &scenario, recorder).await;
    stage.play(&[Step::Workspace("app")]).await.unwrap();
    stage.play(&scenario.steps).await.unwrap();
    let pending = async |wanted: &str| {
        let lines = stage.log.pending();
        if lines.join("\n") == wanted { Ok(()) } else { Err(lines) }
    };
    for _ in 0..2 {
        for name in DEFINITIONS {
            cluster.call(Method::DELETE, &definition(name), JSON, &Value::Null).await.unwrap();
        }
        for name in DEFINITIONS {
            eventually(&format!("{name} is gone"), Duration::from_secs(40), async || {
                match cluster.call(Method::GET, &definition(name), JSON, &Value::Null).await {
                    Err(error) if code(&error) == 404 => Ok(()),
                    other => Err(other.map(|seen| seen["status"].clone())),
                }
            })
            .await;
        }
        assert!(stage.remote_pools().await.is_empty(), "objects go with their finalizers, and those with the pools");
        let mend = "the CustomResourceDefinitions are missing: terrapool crds | kubectl apply -f -";
        let missing = format!("definition of agentpools: {mend}\ndefinition of workspacelinks: {mend}");
        eventually("readiness names what is missing", Duration::from_secs(40), async || pending(&missing).await).await;
        assert!(stage.log.text().contains(&missing[..missing.find('\n').unwrap()]), "{}", stage.log.text());
        cluster.install().await;
        let result = stage.play(&scenario.steps).await;
        result.unwrap_or_else(|stuck| panic!("{}\n{}", stuck.0, stage.log.text()));
        eventually("readiness has nothing to say", Duration::from_secs(40), async || pending("").await).await;
    }
    stage.settle(1).await.unwrap_or_else(|stuck| panic!("{}\n{}", stuck.0, stage.log.text()));
    let mut seen = observe(&stage).await;
    // The API server ended watches of its own accord.
    seen.follows = None;
    let found = oracles::check(&seen, oracles::Budget::ENDLESS);
    assert!(found.is_empty(), "{found:?}\n{}", stage.log.text());
    stage.close().await;
}
