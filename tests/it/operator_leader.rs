//! Who leads, on the real API server.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::json;
use terrapool::operator::{
    cluster,
    leader::{Candidate, Settings},
};
use tokio_util::sync::CancellationToken;

use crate::support::cluster::{Namespace, apiserver};

/// Shortened, so that a test can wait for it.
fn settings(namespace: &str, identity: &str) -> Settings {
    Settings {
        duration: Duration::from_secs(3),
        renew_deadline: Duration::from_secs(2),
        retry: Duration::from_millis(100),
        ..Settings::new(namespace.to_owned(), identity.to_owned())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_who_see_an_expired_lease_one_leads() {
    let namespace = Namespace::restricted(apiserver());
    let client = cluster::connect(Some(&apiserver())).await.unwrap();
    for round in 0..5 {
        // A holder that is gone, as a crash leaves it.
        let leases: Api<Lease> = Api::namespaced(client.clone(), &namespace.name);
        let gone = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": {"name": "terrapool-operator"}, "spec": {"holderIdentity": format!("gone-{round}"), "leaseDurationSeconds": 3}});
        let params = PatchParams::apply("test").force();
        leases.patch("terrapool-operator", &params, &Patch::Apply(&gone)).await.unwrap();
        let stop = CancellationToken::new();
        let mut candidates = tokio::task::JoinSet::new();
        for number in 0..4 {
            let mut candidate = Candidate::new(client.clone(), settings(&namespace.name, &format!("c{number}")));
            let stop = stop.clone();
            candidates.spawn(async move {
                let leads = candidate.acquire(&stop).await;
                (leads, candidate.fence().holds())
            });
        }
        let first = candidates.join_next().await.unwrap().unwrap();
        assert_eq!(first, (true, true));
        // The others have tried many times by the time that the Lease may expire; the leader here does not renew.
        tokio::time::sleep(Duration::from_secs(1)).await;
        stop.cancel();
        while let Some(other) = candidates.join_next().await {
            assert_eq!(other.unwrap(), (false, false), "two lead in round {round}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_ends_gives_the_lease_back_and_one_that_is_cut_off_loses_the_right_to_write() {
    let namespace = Namespace::restricted(apiserver());
    let client = cluster::connect(Some(&apiserver())).await.unwrap();
    let mut first = Candidate::new(client.clone(), settings(&namespace.name, "first"));
    let mut second = Candidate::new(client.clone(), settings(&namespace.name, "second"));
    let never = CancellationToken::new();
    assert!(first.acquire(&never).await);
    let stop = CancellationToken::new();
    stop.cancel();
    assert!(!first.keep(&stop).await, "it was not lost");
    assert!(!first.fence().holds());
    assert!(second.acquire(&never).await);

    // Somebody takes it away: the next renewal finds out.
    let leases: Api<Lease> = Api::namespaced(client, &namespace.name);
    let taken = json!({"spec": {"holderIdentity": "third", "renewTime": null}});
    leases.patch("terrapool-operator", &PatchParams::default(), &Patch::Merge(&taken)).await.unwrap();
    assert!(second.keep(&never).await, "it was lost");
    assert!(!second.fence().holds());
}
