//! From `POST runs` until the engine's process is started in its container.

use std::{
    fs,
    path::PathBuf,
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::ensure;

use crate::support::{
    cli,
    events::{Events, Starts},
    report::{self, Samples},
    rig::{Rig, Workspace},
};

const ROUNDS: usize = 15;

/// An agent, and a program that nobody starts but its runs.
struct Place {
    rig: Rig,
    workspace: Workspace,
    engine: PathBuf,
    starts: Starts,
    /// That its runs have.
    image: String,
}

impl Place {
    async fn new(version: &str, options: &[&str]) -> anyhow::Result<Self> {
        let mut rig = Rig::start().await?;
        let engines = rig.path().join("engines");
        fs::create_dir(&engines)?;
        let engine = engines.join("terraform");
        fs::copy(cli::terraform_path()?, &engine)?;
        let dir = engines.display().to_string();
        rig.start_agent("docker", &[&["--engine-dir", &dir], options].concat()).await?;
        let workspace = rig.workspace("output \"x\" {\n  value = 1\n}\n", version).await?;
        let events = Events::of(&rig.agent_instance()?)?;
        // The first run makes the image and asks the engine for its version.
        let run = rig.plan(&workspace).await?;
        rig.ended(&run).await?;
        let (_, image) = events.next("create")?;
        let starts = Starts::of(&engine)?;
        Ok(Self { rig, workspace, engine, starts, image })
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
    let place = Place::new(version, &[]).await?;
    let [mut cold, mut raw] = [(); 2].map(|()| Samples::default());
    for _ in 0..ROUNDS {
        raw.push(place.raw()?);
        cold.push(place.run().await?);
    }
    report::samples("floor: docker run → terraform started", &raw, "ms");
    report::beside("POST runs → terraform started", &cold, "ms", &raw);
    report::samples("  beyond the raw docker run (target ≤ 60 ms)", &cold.less(&raw, 0.0), "ms");
    Ok(())
}
