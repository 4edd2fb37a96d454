//! `terrapool demo`: the whole system on the bundled example, and a real Terraform run through it.

use std::{
    path::{Path, PathBuf},
    process::{ExitCode, Stdio},
    time::Duration,
};

use anyhow::{Context, bail};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, BufReader},
    process::Command,
    sync::mpsc::UnboundedReceiver,
};

use super::{
    progress::Progress,
    up::{self as up_command, Common},
};
use crate::{
    shutdown::Shutdown,
    up::{
        self, Up,
        follow::{Event, EventKind},
        host::ConnectionFiles,
    },
};

/// Longest time that the local agent may take to become ready: pulling is not part of it.
const READY: Duration = Duration::from_secs(60);

/// The bundled example: file name → text.
const MANIFESTS: [(&str, &str); 2] = [
    ("agent-pool.yaml", include_str!("../../examples/demo/manifests/agent-pool.yaml")),
    ("workspace-link.yaml", include_str!("../../examples/demo/manifests/workspace-link.yaml")),
];
const CONFIGURATION: [(&str, &str); 1] = [("main.tf", include_str!("../../examples/demo/configuration/main.tf"))];

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// End after the apply, with status 0, instead of staying up.
    #[arg(long)]
    exit: bool,
    #[command(flatten)]
    common: Common,
}

pub(super) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let progress = Progress::new();
    let engine = find_engine()?;
    let data = args.common.data("demo")?;
    let manifests = write_files(&data.join("manifests"), &MANIFESTS)?;
    let configuration = write_files(&data.join("configuration"), &CONFIGURATION)?;

    let shutdown = Shutdown::new();
    shutdown.on_signals()?;
    let step = progress.step("control plane");
    let Up { host, files, organization, mut events } =
        up::start(args.common.options(manifests.clone(), data.clone())?, &shutdown).await?;
    step.done(&host.address);
    wait_for_agent(progress, &mut events).await?;
    // Later events (the link, once the workspace exists) belong between the lines of the run.
    let shown = tokio::spawn(async move {
        while let Some(event) = events.recv().await {
            up_command::show(&event);
        }
    });

    let cli = Cli { engine, configuration, files, host: host.http_host().to_owned(), organization };
    let worked = tokio::select! {
        worked = cli.init_and_apply(progress) => worked,
        () = shutdown.drain.cancelled() => Err(anyhow::anyhow!("stopped before the run was through")),
    };
    if let Err(error) = worked {
        shutdown.drain.cancel();
        up_command::end(host, &shutdown).await?;
        return Err(error);
    }
    epilogue(progress, &cli, &host.http_address, &data, args.exit);
    if !args.exit {
        shutdown.drain.cancelled().await;
    }
    let code = up_command::end(host, &shutdown).await?;
    shown.abort();
    Ok(code)
}

/// The engine of this host: terraform, else tofu.
fn find_engine() -> anyhow::Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    for name in ["terraform", "tofu"] {
        if let Some(found) = std::env::split_paths(&path).map(|dir| dir.join(name)).find(|path| path.is_file()) {
            return Ok(found);
        }
    }
    bail!(
        "neither terraform nor tofu is on the PATH. Install one of them: OpenTofu 1.6 or newer from \
         https://opentofu.org/docs/intro/install/, or Terraform 1.5 or newer from \
         https://developer.hashicorp.com/terraform/install"
    )
}

fn write_files(dir: &Path, files: &[(&str, &str)]) -> anyhow::Result<PathBuf> {
    std::fs::create_dir_all(dir).with_context(|| format!("could not create {}", dir.display()))?;
    for (name, text) in files {
        let path = dir.join(name);
        // The user may have changed it to try something: that is kept.
        if !path.exists() {
            std::fs::write(&path, text).with_context(|| format!("could not write {}", path.display()))?;
        }
    }
    Ok(dir.to_owned())
}

async fn wait_for_agent(progress: Progress, events: &mut UnboundedReceiver<Event>) -> anyhow::Result<()> {
    let step = progress.step("agent pool and agent");
    let mut said = Vec::new();
    let ready = async {
        while let Some(event) = events.recv().await {
            match event.kind {
                EventKind::AgentReady => return Ok(event.text),
                EventKind::Defect => bail!("{}", event.text),
                _ => said.push(event),
            }
        }
        bail!("the control plane ended")
    };
    match tokio::time::timeout(READY, ready).await {
        Ok(Ok(text)) => step.done(&text),
        Ok(Err(error)) => return Err(error),
        Err(_) => {
            let last = said.iter().rev().find(|event| event.kind == EventKind::Trouble);
            let last = last.map_or("it said nothing", |event| event.text.as_str());
            bail!("no agent became ready within {} s: {last}", READY.as_secs())
        }
    }
    said.iter().filter(|event| event.kind == EventKind::Warning).for_each(up_command::show);
    Ok(())
}

/// The user's own terraform, told to talk to the demo.
struct Cli {
    engine: PathBuf,
    configuration: PathBuf,
    files: ConnectionFiles,
    host: String,
    organization: String,
}

impl Cli {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.engine);
        command.args(arguments).current_dir(&self.configuration).stdin(Stdio::null()).kill_on_drop(true);
        // Settings of the user's own runs do not belong into this one.
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("TF_")) {
            command.env_remove(name);
        }
        command
            .env("TF_CLI_CONFIG_FILE", &self.files.cli)
            .env("TF_CLOUD_HOSTNAME", &self.host)
            .env("TF_CLOUD_ORGANIZATION", &self.organization)
            .env("CHECKPOINT_DISABLE", "1");
        command
    }

    fn name(&self) -> String {
        self.engine.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    async fn init_and_apply(&self, progress: Progress) -> anyhow::Result<()> {
        for arguments in [&["init", "-input=false"][..], &["apply", "-input=false", "-auto-approve"][..]] {
            let line = format!("{} {}", self.name(), arguments.join(" "));
            progress.line(&format!("\n\x1b[1m$ {line}\x1b[0m"));
            self.show(arguments).await.with_context(|| format!("`{line}` did not succeed"))?;
        }
        Ok(())
    }

    /// Runs the command, its output shown as it comes.
    async fn show(&self, arguments: &[&str]) -> anyhow::Result<()> {
        let mut child = self
            .command(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("could not start {}", self.engine.display()))?;
        let (out, err) = (child.stdout.take(), child.stderr.take());
        let (_, _, status) = tokio::join!(copy(out), copy(err), child.wait());
        let status = status?;
        anyhow::ensure!(status.success(), "it ended with {status}");
        Ok(())
    }
}

/// Shows every line, indented.
async fn copy<R: AsyncRead + Unpin>(from: Option<R>) {
    let Some(from) = from else { return };
    let mut lines = BufReader::new(from).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        anstream::println!("  {line}");
    }
}

fn epilogue(progress: Progress, cli: &Cli, address: &str, data: &Path, ends: bool) {
    let Cli { configuration, files, host, organization, .. } = cli;
    let engine = cli.name();
    progress.line("");
    progress.line(
        "\x1b[1;32mDone.\x1b[0m The run was executed by the pool's agent, and its state is in the control plane.",
    );
    if !ends {
        progress.line(&format!(
            "  web page   {address}   (sign in with the token in {})",
            data.join("admin.token").display()
        ));
    }
    progress.line(&format!("  manifests  {}", data.join("manifests").display()));
    progress.line(&format!("  example    {}", configuration.display()));
    progress.line(&format!("  all data   {}", data.display()));
    if ends {
        progress.line("Leave out --exit to keep it running. Then, to run your own configuration through it:");
    } else {
        progress.line("To run your own configuration through it, in its directory:");
    }
    progress.line(&format!("  export TF_CLI_CONFIG_FILE={}", files.cli.display()));
    progress.line(&format!(
        "  printf 'terraform {{\\n  cloud {{\\n    hostname = \"{host}\"\\n    organization = \"{organization}\"\\n    workspaces {{ name = \"mine\" }}\\n  }}\\n}}\\n' > cloud.tf"
    ));
    progress.line(&format!("  {engine} init && {engine} apply"));
    if !ends {
        progress.line("Ctrl-C ends it; everything is kept, and the next start goes on from there.");
    }
}
