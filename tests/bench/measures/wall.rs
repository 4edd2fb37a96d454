//! What a person waits for: `terraform plan` and `terraform apply -auto-approve`, beside the same with a local backend.

use crate::support::{
    cli::Cli,
    report::{self, Samples},
    rig::Rig,
};

const ROUNDS: usize = 5;

/// The CLI's own waiting when it works with a control plane, in seconds: it asks at fixed intervals.
const PLAN_WAITING: f64 = 1.5;
const APPLY_WAITING: f64 = 2.5;

const APPLY: [&str; 2] = ["apply", "-auto-approve"];

/// Each round changes something.
fn configuration(round: usize) -> String {
    format!("resource \"terraform_data\" \"x\" {{\n  input = \"round {round}\"\n}}\n")
}

pub async fn measure(_version: &str) -> anyhow::Result<()> {
    report::heading(
        "wall",
        "`terraform plan` and `apply -auto-approve` of one terraform_data, from start to end of the CLI (plain HTTP, image at \
         hand; the floors: a local backend, and an agent that ends every job at once, which leaves the CLI's own waiting)",
    );
    let idle = Rig::start().await?;
    let serving = tokio::spawn(idle.idle_agent().await?.serve());
    let mut process = Rig::start().await?;
    process.start_agent("process", &[]).await?;
    let mut docker = Rig::start().await?;
    docker.start_agent("docker", &[]).await?;
    let places = [
        Cli::local()?,
        Cli::remote(&idle, "idle")?,
        Cli::remote(&process, "process")?,
        Cli::remote(&docker, "docker")?,
    ];
    for cli in &places {
        cli.write("main.tf", &configuration(0))?;
        cli.run(&["init"])?;
        cli.run(&APPLY)?;
    }
    let mut plans: [Samples; 4] = Default::default();
    let mut applies: [Samples; 4] = Default::default();
    for round in 1..=ROUNDS {
        for (at, cli) in places.iter().enumerate() {
            cli.write("main.tf", &configuration(round))?;
            plans[at].push(cli.run(&["plan"])?.as_secs_f64());
            applies[at].push(cli.run(&APPLY)?.as_secs_f64());
        }
    }
    serving.abort();
    show("terraform plan", &plans, PLAN_WAITING);
    show("terraform apply -auto-approve", &applies, APPLY_WAITING);
    Ok(())
}

fn show(command: &str, [local, idle, process, docker]: &[Samples; 4], waiting: f64) {
    report::samples(&format!("floor: {command}, local backend"), local, "s");
    report::samples(&format!("floor: {command}, an agent that does nothing"), idle, "s");
    for (name, samples) in [("process", process), ("Docker", docker)] {
        report::beside(&format!("{command}, {name}"), samples, "s", local);
        report::samples(&format!("  beyond local + {waiting} s (target ≤ 0.1 s)"), &samples.less(local, waiting), "s");
    }
}
