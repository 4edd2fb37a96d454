//! `terrapool up DIR`

use std::{io::IsTerminal, path::PathBuf, process::ExitCode, time::Duration};

use super::{label, progress::Progress};
use crate::{
    agent::executor::Choice,
    server::app::Policy,
    shutdown::Shutdown,
    up::{
        self, Up,
        follow::{Event, EventKind},
        host,
    },
};

/// Runs that are executed when the program is asked to stop have this long.
const RUNS: Duration = Duration::from_secs(20);

/// After that, what the control plane still does.
const REST: Duration = Duration::from_secs(5);

/// Whoever waits longer for the end is told what for.
const UNTOLD: Duration = Duration::from_secs(1);

/// What `up` and `demo` share.
#[derive(Debug, clap::Args)]
pub(super) struct Common {
    /// Directory for everything that is kept. Default: below ~/.local/share/terrapool.
    #[arg(long, env = "TERRAPOOL_DATA", value_name = "DIR")]
    data: Option<PathBuf>,
    /// How runs are executed: docker, process (no isolation), or auto: docker when it answers.
    #[arg(long, env = "TERRAPOOL_AGENT_EXECUTOR", default_value = "auto")]
    executor: Choice,
    /// Port for plain HTTP on loopback. Default: the last one, else 8780, else a free one.
    #[arg(long, value_name = "PORT")]
    http_port: Option<u16>,
    /// Port for HTTPS. Default: the last one, else 8743, else a free one.
    #[arg(long, value_name = "PORT")]
    https_port: Option<u16>,
    /// A label of this host, for pools with a nodeSelector; may be given several times.
    #[arg(long = "node-label", value_name = "KEY=VALUE", value_parser = label)]
    node_labels: Vec<(String, String)>,
    #[command(flatten)]
    otlp: super::otlp::OtlpArgs,
}

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Directory with manifests of AgentPools and WorkspaceLinks; edits are followed.
    dir: PathBuf,
    #[command(flatten)]
    common: Common,
}

impl Common {
    /// The data directory: given, or the user's own for `name`.
    pub(super) fn data(&self, name: &str) -> anyhow::Result<PathBuf> {
        let data = match &self.data {
            Some(data) => data.clone(),
            None => user_data()?.join(name),
        };
        std::fs::create_dir_all(&data).map_err(|error| {
            anyhow::anyhow!("could not create {}: {error}; choose another with --data", data.display())
        })?;
        Ok(data.canonicalize()?)
    }

    pub(super) fn options(&self, dir: PathBuf, data: PathBuf) -> anyhow::Result<up::Options> {
        Ok(up::Options {
            dir,
            host: host::Options {
                data,
                http_port: self.http_port,
                https_port: self.https_port,
                policy: Policy::default(),
                trace: self.otlp.start(None)?,
            },
            executor: self.executor,
            engines: super::engines(None),
            node_labels: self.node_labels.iter().cloned().collect(),
        })
    }
}

fn user_data() -> anyhow::Result<PathBuf> {
    let base = std::env::var_os("XDG_DATA_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/share"));
    let base = base
        .or_else(home)
        .ok_or_else(|| anyhow::anyhow!("there is no home directory: give a directory with --data"))?;
    Ok(base.join("terrapool"))
}

pub(super) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let progress = Progress::new();
    let data = args.common.data("up")?;
    let shutdown = Shutdown::new();
    shutdown.on_signals()?;
    let step = progress.step("control plane");
    let Up { host, files, organization: _, mut events } =
        up::start(args.common.options(args.dir.clone(), data)?, &shutdown).await?;
    step.done(&host.address);
    progress.line(&format!(
        "  web page     {}   (sign in with the token in {})",
        host.http_address,
        host.data.join("admin.token").display()
    ));
    progress.line(&format!("  for scripts  source {}", files.env.display()));
    progress.line(&format!("  for the CLI  export TF_CLI_CONFIG_FILE={}", files.cli.display()));
    progress.line(&format!("  manifests    {} (edits are followed; Ctrl-C ends)", args.dir.display()));
    loop {
        tokio::select! {
            event = events.recv() => match event {
                Some(event) => show(&event),
                None => break,
            },
            () = shutdown.drain.cancelled() => break,
        }
    }
    end(host, &shutdown).await
}

/// Ends everything in good order: the agents, who report their last words, before the control plane.
pub(super) async fn end(host: host::Host, shutdown: &Shutdown) -> anyhow::Result<ExitCode> {
    shutdown.drain.cancel();
    let data = host.data.clone();
    let trace = host.app.trace.clone();
    if !shutdown.finished(UNTOLD).await {
        let limit = RUNS.as_secs();
        anstream::println!("Waiting up to {limit} s for agents that execute runs. Ctrl-C interrupts the runs.");
        shutdown.finished(RUNS).await;
    }
    host.end(REST).await?;
    trace.close().await;
    if std::io::stdout().is_terminal() {
        anstream::println!("\nStopped. Everything is kept in {}; start again to go on.", data.display());
    }
    Ok(ExitCode::SUCCESS)
}

/// One line for an event.
pub(super) fn show(event: &Event) {
    let mark = match event.kind {
        EventKind::Ready | EventKind::AgentReady => "\x1b[32m✓\x1b[0m",
        EventKind::Waiting => "\x1b[36m…\x1b[0m",
        EventKind::Deleted => "\x1b[2m-\x1b[0m",
        EventKind::Warning => "\x1b[33m!\x1b[0m",
        EventKind::Defect | EventKind::Trouble => "\x1b[31m✗\x1b[0m",
    };
    anstream::println!("{mark} {}", event.text);
}
