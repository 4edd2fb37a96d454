//! The Kubernetes that `tests/run` gives to tests: an API alone, or a cluster whose nodes run Pods. Also `kubectl`,
//! so that nothing is believed because our own client says so.

use std::{
    env,
    fs::File,
    io::Write,
    path::PathBuf,
    process::{Command, Output, Stdio},
};

use tempfile::TempDir;

use super::{cli::cache, sources::root};

pub const KUBERNETES_VERSION: &str = "1.34.4";

/// The label of nodes that are CentOS hosts.
pub const CENTOS: (&str, &str) = ("feature.node.kubernetes.io/system-os_release.ID", "centos");

/// Kubeconfig of an administrator, for modules named `operator_*`: maybe of an API without nodes and controllers,
/// where Pods are only objects, nothing is garbage collected and namespaces do not go away.
pub fn apiserver() -> PathBuf {
    named("TERRAPOOL_TEST_APISERVER", "operator_")
}

/// Kubeconfig of an administrator of a cluster with nodes, one of them labelled as CentOS and one not, for modules
/// named `e2e_*`. The images `terrapool:test`, of the program under test, and `terraform:test`, with a shell, are there.
pub fn cluster() -> PathBuf {
    named("TERRAPOOL_TEST_CLUSTER", "e2e_")
}

/// Whether the node that is labelled as CentOS has the container engine of this host, at the usual place.
pub fn shares_our_engine() -> bool {
    env::var_os("TERRAPOOL_TEST_CLUSTER_DIR").is_some()
}

fn named(variable: &str, modules: &str) -> PathBuf {
    let path = env::var_os(variable).map(PathBuf::from).unwrap_or_else(|| {
        panic!(
            "{variable} names no kubeconfig: run `tests/run {modules}`, or start a cluster with \
             `tests/cluster/cluster start` and name it with `tests/run --kubeconfig`"
        )
    });
    assert!(path.is_file(), "{variable} names {}, which is no file", path.display());
    path
}

/// The program: the one that was built for the tests, else the machine's.
fn kubectl() -> PathBuf {
    let built = cache().join("kubernetes").join(KUBERNETES_VERSION).join("kubectl");
    if built.is_file() { built } else { "kubectl".into() }
}

/// An API server of a test's own, without nodes: for what concerns the whole cluster, and would disturb other tests.
pub struct OwnApiserver {
    folder: TempDir,
    /// As long as it is held, no other test run takes this for something that a killed one has left, and ends it.
    _lock: File,
}

impl OwnApiserver {
    /// Takes about three seconds.
    pub fn start() -> Self {
        let folder = tempfile::Builder::new().prefix("run.").tempdir_in(cache()).unwrap();
        let lock = File::create(folder.path().join("lock")).unwrap();
        lock.lock().unwrap();
        let server = Self { folder, _lock: lock };
        let output = server.script("start");
        let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
        assert!(output.status.success(), "tests/cluster/control-plane: {said}");
        server
    }

    fn script(&self, verb: &str) -> Output {
        let script = root().join("tests/cluster/control-plane");
        Command::new(script).arg(verb).arg(self.folder.path().join("apiserver")).output().unwrap()
    }

    /// Kubeconfig of an administrator.
    pub fn kubeconfig(&self) -> PathBuf {
        self.folder.path().join("apiserver/kubeconfig")
    }
}

impl Drop for OwnApiserver {
    fn drop(&mut self) {
        self.script("stop");
    }
}

/// `kubectl` as an administrator, to run beside a test.
pub fn kubectl_command() -> tokio::process::Command {
    let mut command = tokio::process::Command::new(kubectl());
    command.arg("--kubeconfig").arg(cluster());
    command
}

/// `kubectl` as an administrator.
#[derive(Debug, Clone)]
pub struct Kubectl {
    kubeconfig: PathBuf,
    namespace: String,
}

impl Kubectl {
    pub fn new(kubeconfig: PathBuf, namespace: &str) -> Self {
        Self { kubeconfig, namespace: namespace.to_owned() }
    }

    /// Runs it; its output.
    pub fn run(&self, arguments: &[&str]) -> String {
        let output = self.output(arguments, "");
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "kubectl {}: {complaint}", arguments.join(" "));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Our definitions, ready to be used. Any number of tests may ask for them at once.
    pub fn install_definitions(&self) {
        let crds = root().join("crds");
        let crds = ["--filename", crds.to_str().unwrap()];
        self.run(&[&["apply", "--server-side", "--force-conflicts"], &crds[..]].concat());
        self.run(&[&["wait", "--for=condition=Established", "--timeout=60s"], &crds[..]].concat());
    }

    /// `kubectl apply` of one manifest.
    pub fn apply(&self, manifest: &str) -> String {
        let output = self.output(&["apply", "--filename", "-"], manifest);
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "kubectl apply: {complaint}\n{manifest}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// A manifest of a file as JSON.
    pub fn get_file(&self, path: &str) -> serde_json::Value {
        let text = self.run(&["create", "--dry-run=client", "--output=json", "--filename", path]);
        serde_json::from_str(&text).unwrap()
    }

    /// An object as JSON.
    pub fn get(&self, arguments: &[&str]) -> serde_json::Value {
        serde_json::from_str(&self.run(&[&["get", "--output", "json"], arguments].concat())).unwrap()
    }

    pub fn output(&self, arguments: &[&str], input: &str) -> Output {
        let mut command = Command::new(kubectl());
        command.arg("--kubeconfig").arg(&self.kubeconfig).args(["--namespace", &self.namespace]).args(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("kubectl does not start: {error}"));
        let mut stdin = child.stdin.take().unwrap();
        // What kubectl does not read, it complains about itself.
        drop(stdin.write_all(input.as_bytes()));
        drop(stdin);
        child.wait_with_output().unwrap()
    }
}

/// A namespace that goes with the value, and `kubectl` in it.
pub struct Namespace {
    pub name: String,
    pub kubectl: Kubectl,
}

impl Namespace {
    /// One whose Pods must satisfy the *restricted* profile of Pod Security.
    pub fn restricted(kubeconfig: PathBuf) -> Self {
        Self::of_profile(kubeconfig, "restricted")
    }

    /// One whose Pods must satisfy this profile of Pod Security.
    pub fn of_profile(kubeconfig: PathBuf, profile: &str) -> Self {
        let unique = tempfile::Builder::new().prefix("").rand_bytes(8).make(|_| Ok(())).unwrap();
        let name = format!("test-{}", unique.path().file_name().unwrap().to_str().unwrap().to_lowercase());
        let kubectl = Kubectl { kubeconfig, namespace: name.clone() };
        kubectl.run(&["create", "namespace", &name]);
        kubectl.run(&["label", "namespace", &name, &format!("pod-security.kubernetes.io/enforce={profile}")]);
        Self { name, kubectl }
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // A panic in a destructor would hide the test's own; the namespace goes in its own time.
        drop(self.kubectl.output(&["delete", "namespace", &self.name, "--wait=false"], ""));
    }
}
