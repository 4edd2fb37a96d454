//! From `POST runs` until the engine's process is started: in a container of its own, and in one that waited.

use std::{
    fs,
    net::TcpListener,
    path::PathBuf,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};

use crate::support::{
    cli,
    events::{Events, Starts},
    report::{self, Samples},
    rig::{Rig, Workspace},
};

const ROUNDS: usize = 21;

/// Between two looks whether a container waits, and once more when one does: making it is over, and its runner sleeps.
const PAUSE: Duration = Duration::from_millis(100);

/// An agent, and a program that nobody starts but its runs.
struct Place {
    rig: Rig,
    workspace: Workspace,
    engine: PathBuf,
    starts: Starts,
    /// That its runs have.
    image: String,
    /// Where the agent serves its metrics.
    metrics: String,
}

impl Place {
    async fn new(version: &str, options: &[&str]) -> anyhow::Result<Self> {
        let mut rig = Rig::start().await?;
        let engines = rig.path().join("engines");
        fs::create_dir(&engines)?;
        let engine = engines.join("terraform");
        fs::copy(cli::terraform_path()?, &engine)?;
        let dir = engines.display().to_string();
        let metrics = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
        let common = ["--engine-dir", &dir, "--metrics-address", &metrics];
        rig.start_agent("docker", &[&common, options].concat()).await?;
        let workspace = rig.workspace("output \"x\" {\n  value = 1\n}\n", version).await?;
        let events = Events::of(&rig.agent_instance()?)?;
        // The first run makes the image and asks the engine for its version.
        let run = rig.plan(&workspace).await?;
        rig.ended(&run).await?;
        let (_, image) = events.next("create")?;
        let starts = Starts::of(&engine)?;
        Ok(Self { rig, workspace, engine, starts, image, metrics })
    }

    /// Until a container waits for a job.
    async fn one_waits(&self) -> anyhow::Result<()> {
        let end = Instant::now() + Duration::from_secs(30);
        loop {
            let metrics = reqwest::get(format!("http://{}/metrics", self.metrics)).await?.text().await?;
            tokio::time::sleep(PAUSE).await;
            if metrics.lines().any(|line| line == "terrapool_agent_warm 1") {
                return Ok(());
            }
            ensure!(Instant::now() < end, "no container waits for a job");
        }
    }

    /// Milliseconds from `POST runs` on.
    async fn run(&self) -> anyhow::Result<f64> {
        self.starts.forget();
        let start = Instant::now();
        let run = self.rig.plan(&self.workspace).await?;
        let took = self.starts.next()?.duration_since(start);
        self.rig.ended(&run).await?;
        Ok(took.as_secs_f64() * 1e3)
    }

    /// The same program in the same image by hand, in milliseconds.
    fn raw(&self) -> anyhow::Result<f64> {
        self.starts.forget();
        let start = Instant::now();
        let mut command = Command::new("docker");
        command.args(["run", "--rm", "--env", "CHECKPOINT_DISABLE=1", "--volume"]);
        command.arg(format!("{}:/engine:ro", self.engine.display())).args([&self.image, "/engine", "version"]);
        let mut child = command.stdout(Stdio::null()).spawn()?;
        let took = self.starts.next()?.duration_since(start);
        ensure!(child.wait()?.success(), "{command:?} failed");
        Ok(took.as_secs_f64() * 1e3)
    }
}

pub async fn measure(version: &str) -> anyhow::Result<()> {
    report::heading(
        "start",
        "POST runs until the process of terraform is started in its container (image at hand; the floor: `docker run` of the same \
         image and program, on the engine's own network)",
    );
    let [mut cold, mut warm, mut raw] = [(); 3].map(|()| Samples::default());
    // One after the other: what makes a container to wait would run beside the other agent's start.
    let place = Place::new(version, &[]).await?;
    for _ in 0..ROUNDS {
        raw.push(place.raw()?);
        cold.push(place.run().await?);
    }
    drop(place);
    let place = Place::new(version, &["--warm", "1"]).await?;
    for _ in 0..ROUNDS {
        place.one_waits().await.context("with --warm 1")?;
        warm.push(place.run().await?);
    }
    report::samples("floor: docker run → terraform started", &raw, "ms");
    report::beside("POST runs → terraform started", &cold, "ms", &raw);
    report::samples("  beyond the raw docker run (target ≤ 60 ms)", &cold.less(&raw, 0.0), "ms");
    report::beside("POST runs → terraform started, a container waits (≤ 30 ms)", &warm, "ms", &raw);
    Ok(())
}
