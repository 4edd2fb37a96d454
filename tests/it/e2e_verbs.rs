//! The operator's rights are what it uses: no call was refused, and nothing is granted that no test has needed. These
//! run when all others of these tests have ended; the module's name makes them the last ones to be started.

use std::collections::BTreeSet;

use serde_json::json;

use crate::support::{
    cluster::{Kubectl, cluster},
    e2e::{
        World,
        audit::{Call, calls, denied},
        install::{NAMESPACE, log},
        is_ready,
        narrow::Narrowed,
        scenery::control_plane,
        small,
    },
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

/// What a role grants, by its path below the API of roles.
async fn granted(world: &World, role: &str) -> BTreeSet<Right> {
    let role = world.read(&format!("/apis/rbac.authorization.k8s.io/v1/{role}")).await;
    let mut rights = BTreeSet::new();
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
    rights
}

async fn granted_to_lead(world: &World) -> BTreeSet<Right> {
    granted(world, &format!("namespaces/{NAMESPACE}/roles/terrapool-operator-leader")).await
}

fn is_listed(right: &Right) -> bool {
    let same = |group: &str, resource: &str, verb: &str| (group, resource, verb) == (&right.0, &right.1, &right.2);
    WITHOUT_A_CALL.iter().any(|it| same(it.0, it.1, it.2)) || AT_TIMES.iter().any(|it| same(it.0, it.1, it.2))
}

/// Nothing was used that is not granted; if `all` of the rights should have been needed, nothing else is granted.
fn compare<'a>(calls: impl Iterator<Item = &'a Call>, granted: &BTreeSet<Right>, all: bool) {
    let used: BTreeSet<Right> =
        calls.map(|call| (call.group.clone(), call.resource.clone(), call.verb.clone())).collect();
    let ungranted: Vec<_> = used.difference(granted).collect();
    assert!(ungranted.is_empty(), "used and not in the roles: {ungranted:?}");
    let unused: Vec<_> = granted.difference(&used).filter(|right| !is_listed(right)).collect();
    assert!(!all || unused.is_empty(), "granted and never used: {unused:?}");
}

/// Long enough for its agent to be seen with it.
const CONFIGURATION: &str = r#"
resource "terraform_data" "slow" {
  provisioner "local-exec" {
    command = "sleep 3"
  }
}
"#;

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_for_one_namespace_needs_a_role_there_and_nothing_of_the_cluster() {
    let world = World::restricted().await;
    let alone = world.alone().await;
    let narrowed = Narrowed::to(&world).await;

    // All that there is to do in a pool's life.
    world.apply_credentials();
    let nowhere = json!({"feature.node.kubernetes.io/system-os_release.ID": "nowhere"});
    for (agents, there) in [
        (
            json!({"mode": "Node", "nodeSelector": nowhere}),
            vec!["daemonsets/team-agents", "networkpolicies/team-agents"],
        ),
        (
            json!({"mode": "Deployment", "image": "terraform:test", "replicas": 0}),
            vec!["deployments/team-agents", "networkpolicies/team-agents"],
        ),
        (
            json!({"minIdle": 1, "resources": small()}),
            vec!["networkpolicies/team-agents", "poddisruptionbudgets/team-agents"],
        ),
    ] {
        world.apply_pool("team", &json!({"controlPlane": control_plane(), "agents": agents}));
        world.owned_become(&there).await;
    }
    world.pool_becomes("team", "Ready", "True").await;
    world.pods_become("team", "one is ready", |pods| pods.len() == 1 && is_ready(&pods[0])).await;
    let workspace = world.make_workspace("app").await;
    let link = json!({
        "apiVersion": "terrapool.dev/v1alpha1", "kind": "WorkspaceLink", "metadata": {"name": "app"},
        "spec": {"poolRef": {"name": "team"}, "workspace": {"environment": world.name(), "name": "app"}},
    });
    world.kubectl().apply(&link.to_string());
    let configuration = world.upload(&workspace, CONFIGURATION).await;
    world.link_becomes("app", "Ready", "True").await;
    let run = world.queue(&workspace, &configuration).await;
    world.run_becomes(&run, "applied").await;
    world.kubectl().run(&["delete", "agentpools,workspacelinks", "--all", "--wait=false"]);
    world.nothing_is_left().await;

    let said = log(&Kubectl::new(cluster(), NAMESPACE), "terrapool-operator", 10_000);
    assert!(!said.contains("forbidden"), "{said}");
    if let Some(calls) = narrowed.calls() {
        assert_eq!(denied(), BTreeSet::new(), "the operator was refused something");
        let (lead, work): (Vec<&Call>, Vec<&Call>) = calls.iter().partition(|call| call.resource == "leases");
        assert!(work.iter().all(|call| call.namespace == world.name()), "outside of its namespace: {work:?}");
        let role = format!("namespaces/{}/roles/terrapool-operator", world.name());
        compare(work.into_iter(), &granted(&world, &role).await, true);
        compare(lead.into_iter(), &granted_to_lead(&world).await, true);
    }
    drop(narrowed);
    drop(alone);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_operator_may_do_what_it_does_and_nothing_else() {
    let world = World::restricted().await;
    let _alone = world.alone().await;
    let Some(calls) = calls() else {
        eprintln!("this cluster records no calls: nothing to compare");
        return;
    };
    assert_eq!(denied(), BTreeSet::new(), "the operator was refused something");
    let mut granted = granted(&world, "clusterroles/terrapool-operator").await;
    granted.extend(granted_to_lead(&world).await);
    // Of a part of the tests no more can be said.
    compare(calls.iter().map(|(call, _)| call), &granted, World::made() >= 14);
}
