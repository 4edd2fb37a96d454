//! What the operator costs: the real, optimised `terrapool operator` and `terrapool server` as processes of their own,
//! against a real API server without nodes, each figure beside the same API server's own in the same run.
//!
//! `cargo bench --bench operator` takes all measures, `cargo bench --bench operator -- NAME…` those whose names contain
//! one of the words. Starts etcd and kube-apiserver by `tests/cluster/control-plane` unless TERRAPOOL_TEST_APISERVER names
//! a kubeconfig (whose cluster keeps what is made there); stops by itself. How long a run waits for terraform where an agent
//! waits needs nodes: `tests/run e2e_latency` tells it.

#![expect(unreachable_pub, reason = "a program exports nothing; `pub` says that its other files use it")]

mod operator_measures;
mod support;

use std::{pin::Pin, time::Instant};

use operator_measures::{apply, fleet, idle, pods, resync};
use support::apiserver::ApiServer;

type Measure = fn(&ApiServer) -> Pin<Box<dyn Future<Output = anyhow::Result<()>> + '_>>;

const MEASURES: [(&str, Measure); 5] = [
    ("apply", |api| Box::pin(apply::measure(api))),
    ("pods", |api| Box::pin(pods::measure(api))),
    ("idle", |api| Box::pin(idle::measure(api))),
    ("fleet", |api| Box::pin(fleet::measure(api))),
    ("resync", |api| Box::pin(resync::measure(api))),
];

fn main() -> anyhow::Result<()> {
    let chosen = support::choice::chosen(&MEASURES)?;
    let start = Instant::now();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    println!("{}; medians [min–max]", support::report::machine());
    println!("excluded: image pulls and kubelets (no nodes), disks of etcd (state in memory), kubectl's own start");
    let api = runtime.block_on(ApiServer::start())?;
    for measure in chosen {
        println!("\nload {}", support::report::load());
        runtime.block_on(measure(&api))?;
    }
    println!("\ntook {} s; load {} at the end", start.elapsed().as_secs(), support::report::load());
    Ok(())
}
