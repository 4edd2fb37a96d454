//! A real API server without nodes: etcd and kube-apiserver. Nobody schedules Pods or collects garbage there.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, ensure};
use k8s_openapi::{
    api::core::v1::Namespace, apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, Client, ResourceExt,
    api::{Patch, PatchParams, PostParams},
    runtime::{conditions::is_crd_established, wait::await_condition},
};

use super::usage;

/// The variable that names a kubeconfig to use instead of an API server of the benchmark's own.
const GIVEN: &str = "TERRAPOOL_TEST_APISERVER";

/// Ends with the value, if it was started for it.
pub struct ApiServer {
    pub kubeconfig: PathBuf,
    pub client: Client,
    /// Where it lives, if it was started here.
    own: Option<PathBuf>,
}

/// Requests that change something, by `verb resource`.
pub type Writes = BTreeMap<String, u64>;

impl ApiServer {
    /// With our definitions.
    pub async fn start() -> anyhow::Result<Self> {
        let given = std::env::var_os(GIVEN).map(PathBuf::from);
        let own = given.is_none().then(|| {
            let name = format!("bench-apiserver-{}", std::process::id());
            Path::new(env!("CARGO_TARGET_TMPDIR")).join(name)
        });
        if let Some(dir) = &own {
            script("start", dir)?;
        }
        let kubeconfig = given.or_else(|| own.as_ref().map(|dir| dir.join("kubeconfig"))).unwrap_or_default();
        let client = terrapool::operator::cluster::connect(Some(&kubeconfig)).await?;
        let server = Self { kubeconfig, client, own };
        server.install_definitions().await?;
        Ok(server)
    }

    async fn install_definitions(&self) -> anyhow::Result<()> {
        let api: Api<CustomResourceDefinition> = Api::all(self.client.clone());
        for definition in terrapool::crd::all()? {
            let name = definition.name_any();
            api.patch(&name, &PatchParams::apply("bench").force(), &Patch::Apply(&definition)).await?;
            let established = await_condition(api.clone(), &name, is_crd_established());
            tokio::time::timeout(Duration::from_secs(30), established)
                .await
                .with_context(|| format!("the definition {name} is not established"))??;
        }
        Ok(())
    }

    /// A new namespace of that name and something unique.
    pub async fn namespace(&self, name: &str) -> anyhow::Result<String> {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
        let name = format!("{name}-{:x}", since.as_nanos() & 0xff_ffff_ffff);
        let namespace: Namespace = serde_json::from_value(serde_json::json!({"metadata": {"name": name}}))?;
        Api::all(self.client.clone()).create(&PostParams::default(), &namespace).await?;
        Ok(name)
    }

    /// Requests so far that change something, as the API server counts them.
    pub async fn writes(&self) -> anyhow::Result<Writes> {
        let request = http_request("/metrics")?;
        let text = self.client.request_text(request).await?;
        let mut writes = Writes::new();
        for line in text.lines().filter_map(|line| line.strip_prefix("apiserver_request_total{")) {
            let Some((labels, count)) = line.rsplit_once("} ") else { continue };
            let label = |name: &str| {
                let from = labels.find(&format!("{name}=\""))? + name.len() + 2;
                labels[from..].split('"').next()
            };
            let verb = label("verb").unwrap_or_default();
            if !matches!(verb, "POST" | "PUT" | "PATCH" | "APPLY" | "DELETE" | "DELETECOLLECTION") {
                continue;
            }
            let mut what = format!("{verb} {}", label("resource").unwrap_or_default());
            if let Some(part) = label("subresource").filter(|part| !part.is_empty()) {
                what = format!("{what}/{part}");
            }
            *writes.entry(what).or_default() += count.parse::<f64>().unwrap_or_default() as u64;
        }
        Ok(writes)
    }

    /// CPU seconds of kube-apiserver and of etcd so far, if they were started here.
    pub fn cpu(&self) -> Option<[f64; 2]> {
        let run = self.own.as_ref()?.join("run");
        let id = |name: &str| fs::read_to_string(run.join(name)).ok()?.split(' ').next()?.parse().ok();
        Some([usage::cpu(id("apiserver")?), usage::cpu(id("etcd")?)])
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        if let Some(dir) = &self.own {
            match script("stop", dir) {
                Ok(()) => drop(fs::remove_dir_all(dir)),
                Err(error) => eprintln!("{error:#}"),
            }
        }
    }
}

/// A GET of that path.
pub fn http_request(path: &str) -> anyhow::Result<axum::http::Request<Vec<u8>>> {
    Ok(axum::http::Request::get(path).body(Vec::new())?)
}

fn script(command: &str, dir: &Path) -> anyhow::Result<()> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cluster/control-plane");
    let output = Command::new(&path).arg(command).arg(dir).output().context("tests/cluster/control-plane")?;
    ensure!(
        output.status.success(),
        "tests/cluster/control-plane {command}: {}; or name a kubeconfig with {GIVEN}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// What was written between two counts, and not by the API server for itself or for the measure.
pub fn written(before: &Writes, after: &Writes) -> Writes {
    let own =
        ["leases", "subjectaccessreviews", "tokenreviews", "endpoints", "endpointslices", "apiservices", "namespaces"];
    let ours = |what: &str| !own.contains(&what.split(' ').nth(1).unwrap_or_default());
    let difference = |(what, count): (&String, &u64)| {
        let more = count - before.get(what).copied().unwrap_or(0);
        (more > 0 && ours(what)).then(|| (what.clone(), more))
    };
    after.iter().filter_map(difference).collect()
}

/// `3 PATCH pods, …`
pub fn writes_text(writes: &Writes) -> String {
    if writes.is_empty() {
        return "none".to_owned();
    }
    writes.iter().map(|(what, count)| format!("{count} {what}")).collect::<Vec<_>>().join(", ")
}
