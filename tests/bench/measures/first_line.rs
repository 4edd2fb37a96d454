//! From `POST runs` until the run container is asked for, and until terraform's first line can be read.

use std::{
    process::Command,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use crate::support::{
    cli::{self, terraform},
    events::Events,
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
    rig.start_agent(executor, &[]).await?;
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

        let engine = cli::terraform_path()?;
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
