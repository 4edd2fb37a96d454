//! The real `terrapool operator` as a process of its own, with what it says of itself.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::bail;

use super::{
    apiserver::ApiServer,
    program::Program,
    rig::{Rig, TOKEN, terrapool},
    usage::{self, Memory},
};

/// Works in one namespace; ends with the value.
pub struct Operator {
    program: Program,
    metrics: String,
    http: reqwest::Client,
    /// When it was started.
    pub started: Instant,
}

impl Operator {
    /// Returns when the process has its health port.
    pub async fn start(api: &ApiServer, server: &Rig, namespace: &str, more: &[&str]) -> anyhow::Result<Self> {
        let started = Instant::now();
        let mut command = terrapool(&["operator", "--health-address", "127.0.0.1:0", "--namespace", namespace]);
        command.args(["--leader-namespace", namespace, "--control-plane-url", &server.address, "--kubeconfig"]);
        command.arg(&api.kubeconfig).args(more).env("TERRAPOOL_CONTROL_PLANE_TOKEN", TOKEN);
        // As deploy/operator has it.
        command.env("MALLOC_ARENA_MAX", "1");
        let log = log_of(server.path());
        let mut program = Program::start("the operator", command, log)?;
        let address = program.until("health, readiness and metrics are served address=").await?;
        let metrics = format!("http://{address}/metrics");
        Ok(Self { program, metrics, http: reqwest::Client::new(), started })
    }

    /// Waits until it works.
    pub async fn works(&mut self) -> anyhow::Result<()> {
        self.program.until("controllers start").await.map(drop)
    }

    pub fn cpu(&self) -> f64 {
        usage::cpu(self.program.id())
    }

    pub fn memory(&self) -> Memory {
        Memory::of(self.program.id())
    }

    /// What it complained of.
    pub fn complaints(&self) -> Vec<String> {
        let said = self.program.said();
        said.lines().filter(|line| line.contains(" WARN ") || line.contains(" ERROR ")).map(str::to_owned).collect()
    }

    /// The sum of a metric over the label `kind`; 0 while there is none.
    pub async fn metric(&self, name: &str, kind: &str) -> anyhow::Result<u64> {
        let text = self.http.get(&self.metrics).send().await?.text().await?;
        let wanted = format!("terrapool_{name}{{");
        let of_kind = format!("kind=\"{kind}\"");
        let lines = text.lines().filter(|line| line.starts_with(&wanted) && line.contains(&of_kind));
        let values = lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok());
        Ok(values.sum::<f64>() as u64)
    }

    /// When the metric has come up to `least` for each kind.
    pub async fn metric_reaches(
        &self,
        name: &str,
        least: &[(&str, u64)],
        patience: Duration,
    ) -> anyhow::Result<Instant> {
        let end = Instant::now() + patience;
        loop {
            let mut missing = Vec::new();
            for (kind, least) in least {
                let value = self.metric(name, kind).await?;
                if value < *least {
                    missing.push(format!("{value} of {least} {kind}"));
                }
            }
            if missing.is_empty() {
                return Ok(Instant::now());
            }
            if Instant::now() > end {
                bail!("{name}: {}; {:?}", missing.join(", "), self.complaints().iter().take(5).collect::<Vec<_>>());
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
    }
}

/// One that is not there yet: a measure starts several.
fn log_of(dir: &Path) -> std::path::PathBuf {
    let free = |number: &u32| !dir.join(format!("operator-{number}.log")).exists();
    dir.join(format!("operator-{}.log", (0..).find(free).unwrap_or_default()))
}
