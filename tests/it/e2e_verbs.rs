//! The operator's rights are what it uses: no call was refused, and nothing is granted that no test has needed. Runs
//! when all others of these tests have ended; its name makes it the last one to be started.

use std::collections::BTreeSet;

use crate::support::e2e::{
    World,
    audit::{calls, denied},
    install::NAMESPACE,
};

type Right = (String, String, String);

/// Rights without a call of their own: (group, resource, verb), and why.
const WITHOUT_A_CALL: [(&str, &str, &str, &str); 6] = [
    ("", "secrets", "create", "server-side apply of a Secret that is not there"),
    ("apps", "daemonsets", "create", "server-side apply of one that is not there"),
    ("apps", "deployments", "create", "server-side apply of one that is not there"),
    ("networking.k8s.io", "networkpolicies", "create", "server-side apply of one that is not there"),
    ("policy", "poddisruptionbudgets", "create", "server-side apply of one that is not there"),
    ("terrapool.dev", "agentpools/finalizers", "update", "owner references that block, where admission looks at them"),
];

/// Rights for what happens only at times: used or not, both are fine.
const AT_TIMES: [(&str, &str, &str); 2] = [
    // The second event of the same kind is counted in the first.
    ("events.k8s.io", "events", "patch"),
    // Once in the life of a cluster.
    ("coordination.k8s.io", "leases", "create"),
];

async fn granted(world: &World) -> BTreeSet<Right> {
    let rbac = "/apis/rbac.authorization.k8s.io/v1";
    let mut rights = BTreeSet::new();
    for path in [
        format!("{rbac}/clusterroles/terrapool-operator"),
        format!("{rbac}/namespaces/{NAMESPACE}/roles/terrapool-operator-leader"),
    ] {
        let role = world.read(&path).await;
        for rule in role["rules"].as_array().unwrap() {
            let texts = |key: &str| -> Vec<String> {
                rule[key].as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned()).collect()
            };
            for group in texts("apiGroups") {
                for resource in texts("resources") {
                    for verb in texts("verbs") {
                        rights.insert((group.clone(), resource.clone(), verb));
                    }
                }
            }
        }
    }
    rights
}

fn is_listed(right: &Right) -> bool {
    let same = |group: &str, resource: &str, verb: &str| (group, resource, verb) == (&right.0, &right.1, &right.2);
    WITHOUT_A_CALL.iter().any(|it| same(it.0, it.1, it.2)) || AT_TIMES.iter().any(|it| same(it.0, it.1, it.2))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_operator_may_do_what_it_does_and_nothing_else() {
    let world = World::restricted().await;
    world.is_alone().await;
    let Some(calls) = calls() else {
        eprintln!("this cluster records no calls: nothing to compare");
        return;
    };
    assert_eq!(denied(), BTreeSet::new(), "the operator was refused something");
    let used: BTreeSet<Right> = calls.into_iter().map(|(call, _)| (call.group, call.resource, call.verb)).collect();
    let granted = granted(&world).await;
    let ungranted: Vec<_> = used.difference(&granted).collect();
    assert!(ungranted.is_empty(), "used and not in the roles: {ungranted:?}");
    // Of a part of the tests nothing more can be said.
    if World::made() >= 14 {
        let unused: Vec<_> = granted.difference(&used).filter(|right| !is_listed(right)).collect();
        assert!(unused.is_empty(), "granted and never used: {unused:?}");
    }
}
