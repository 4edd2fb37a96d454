//! The operator with rights in one namespace only, installed as `deploy/README.md` says.

use super::{
    World,
    audit::{Call, calls},
    install::NAMESPACE,
};
use crate::support::{
    cluster::{Kubectl, cluster},
    programs::terrapool,
    sources::root,
};

const OPERATOR: &str = "deployment/terrapool-operator";

/// The operator works in the namespace of one test, until the value is dropped.
pub struct Narrowed {
    kubectl: Kubectl,
    /// Calls that had been recorded when it began.
    before: usize,
}

impl Narrowed {
    /// Others must not need the operator meanwhile.
    pub async fn to(world: &World) -> Self {
        let mut narrowed = Self { kubectl: Kubectl::new(cluster(), NAMESPACE), before: 0 };
        // While it is not there, nothing is asked for that is not granted in this moment.
        STOP.into_iter().for_each(|command| drop(narrowed.kubectl.run(command)));
        narrowed.before = calls().map_or(0, |calls| calls.len());
        narrowed.kubectl.run(&["delete", "clusterrole/terrapool-operator", "clusterrolebinding/terrapool-operator"]);
        let printed = terrapool().args(["rbac", "--namespace", world.name()]).output().await.unwrap();
        assert!(printed.status.success(), "{printed:?}");
        // Its objects are of two namespaces, and say of which.
        Kubectl::new(cluster(), "").apply(&String::from_utf8(printed.stdout).unwrap());
        let variable = format!("TERRAPOOL_NAMESPACES={}", world.name());
        start(&variable).into_iter().for_each(|command| drop(narrowed.kubectl.run(&command)));
        world.operators_become(1).await;
        narrowed
    }

    /// The calls since then; `None`: this cluster does not record them.
    pub fn calls(&self) -> Option<Vec<Call>> {
        calls().map(|calls| calls.into_iter().skip(self.before).map(|(call, _)| call).collect())
    }
}

const STOP: [&[&str]; 2] = [
    &["scale", OPERATOR, "--replicas=0"],
    &["wait", "--for=delete", "pods", "--selector=app.kubernetes.io/name=terrapool-operator", "--timeout=60s"],
];

/// With a variable set, or with `NAME-` unset.
fn start(variable: &str) -> [Vec<&str>; 2] {
    [vec!["set", "env", OPERATOR, variable], vec!["scale", OPERATOR, "--replicas=1"]]
}

impl Drop for Narrowed {
    fn drop(&mut self) {
        // A panic in a destructor would hide the test's own.
        let run = |command: &[&str]| self.kubectl.output(command, "").status.success();
        let rights = root().join("deploy/operator/rbac.yaml");
        let mut restored = STOP.into_iter().all(run);
        restored &= run(&["apply", "--filename", rights.to_str().unwrap()]);
        restored &= start("TERRAPOOL_NAMESPACES-").iter().all(|command| run(command));
        restored &= run(&["rollout", "status", OPERATOR, "--timeout=60s"]);
        assert!(restored || std::thread::panicking(), "the operator does not work in all namespaces again");
    }
}
