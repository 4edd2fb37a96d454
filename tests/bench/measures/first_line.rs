//! From `POST runs` until the run container is asked for, and until terraform's first line can be read.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::Context;

use crate::support::{
    cli::{self, terraform},
    report::{self, Samples},
    rig::Rig,
};

const ROUNDS: usize = 10;

const FIRST_LINE: &str = "Terraform v";

pub async fn measure(version: &str) -> anyhow::Result<()> {
    docker(version).await?;
    process(version).await
}

async fn rig(executor: &str, version: &str) -> anyhow::Result<(Rig, crate::support::rig::Workspace)> {
    let mut rig = Rig::start().await?;
    rig.start_agent(executor).await?;
    let workspace = rig.workspace("output \"x\" {\n  value = 1\n}\n", version).await?;
    // The first run makes the image and asks the engine for its version.
    let run = rig.plan(&workspace).await?;
    rig.ended(&run).await?;
    Ok((rig, workspace))
}

async fn docker(version: &str) -> anyhow::Result<()> {
    report::heading(
        "first-line, Docker executor",
        "POST runs until the engine has been asked for the container, and until `Terraform v…` can be read at the log's address \
         (image at hand, network: default bridge; the floor: `docker run` of the same image, printing `terraform version`)",
    );
    let mut events = None;
    let (rig, workspace) = rig("docker", version).await?;
    let events = events.insert(Events::of(&rig.agent_instance()?)?);
    let [mut asked, mut started, mut line, mut floor] = [(); 4].map(|()| Samples::default());
    for _ in 0..ROUNDS {
        let (clock, start) = (SystemTime::now().duration_since(UNIX_EPOCH)?, Instant::now());
        let run = rig.plan(&workspace).await?;
        rig.log_has(&run, FIRST_LINE).await?;
        line.push(start.elapsed().as_secs_f64() * 1e3);
        rig.ended(&run).await?;
        asked.push((events.next("create")?.0 - clock.as_secs_f64()) * 1e3);
        let (at, image) = events.next("start")?;
        started.push((at - clock.as_secs_f64()) * 1e3);

        let engine = terraform_path()?;
        let mut raw = Command::new("docker");
        raw.args(["run", "--rm", "--env", "CHECKPOINT_DISABLE=1", "--volume", &format!("{engine}:/engine:ro"), &image]);
        raw.args(["/engine", "version"]);
        floor.push(cli::first_line(raw)?.as_secs_f64() * 1e3);
    }
    report::samples("floor: docker run → first line", &floor, "ms");
    report::samples("POST runs → container created", &asked, "ms");
    report::samples("POST runs → container started", &started, "ms");
    report::beside("POST runs → first line readable", &line, "ms", &floor);
    report::samples("  beyond the raw docker run", &line.less(&floor, 0.0), "ms");
    Ok(())
}

async fn process(version: &str) -> anyhow::Result<()> {
    report::heading("first-line, process executor", "the same without containers (the floor: `terraform version`)");
    let (rig, workspace) = rig("process", version).await?;
    let [mut line, mut floor] = [(); 2].map(|()| Samples::default());
    for _ in 0..ROUNDS {
        let start = Instant::now();
        let run = rig.plan(&workspace).await?;
        rig.log_has(&run, FIRST_LINE).await?;
        line.push(start.elapsed().as_secs_f64() * 1e3);
        rig.ended(&run).await?;
        floor.push(cli::first_line(terraform(&["version"]))?.as_secs_f64() * 1e3);
    }
    report::samples("floor: terraform version → first line", &floor, "ms");
    report::beside("POST runs → first line readable", &line, "ms", &floor);
    report::samples("  beyond terraform alone", &line.less(&floor, 0.0), "ms");
    Ok(())
}

fn terraform_path() -> anyhow::Result<String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|dir| dir.join("terraform")).find(|file| file.is_file());
    let found = found.context("terraform is needed on the PATH")?.canonicalize()?;
    Ok(found.display().to_string())
}

/// What the Docker engine says it does, at the time when it does it.
struct Events {
    docker: Child,
    lines: Receiver<String>,
}

impl Events {
    /// Of the containers of one agent.
    fn of(instance: &str) -> anyhow::Result<Self> {
        let mut docker = Command::new("docker")
            .args(["events", "--filter", "type=container", "--format", "{{.TimeNano}} {{.Action}} {{.From}}"])
            .args(["--filter", &format!("label=terrapool.dev/agent={instance}")])
            .stdout(Stdio::piped())
            .spawn()
            .context("the docker command is needed")?;
        let stdout = BufReader::new(docker.stdout.take().context("no output")?);
        let (sender, lines) = channel();
        std::thread::spawn(move || stdout.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        // Until the engine listens: nothing tells when it does.
        std::thread::sleep(Duration::from_millis(300));
        Ok(Self { docker, lines })
    }

    /// When the next event of this kind came, in seconds of the epoch, and of which image the container is.
    fn next(&self, action: &str) -> anyhow::Result<(f64, String)> {
        loop {
            let line = self.lines.recv_timeout(Duration::from_secs(10)).context("no word of the Docker engine")?;
            let mut words = line.split(' ');
            let time: f64 = words.next().unwrap_or_default().parse()?;
            if words.next() == Some(action) {
                return Ok((time / 1e9, words.next().unwrap_or_default().to_owned()));
            }
        }
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        drop(self.docker.kill());
        drop(self.docker.wait());
    }
}
