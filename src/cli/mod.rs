//! The command line: one file per command. The only place that prints to standard output.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context;
use clap::{Parser, Subcommand, ValueEnum};

use crate::{agent::engine::Engines, telemetry};

mod agent;
mod crds;
mod demo;
mod manual;
mod operator;
mod otlp;
mod progress;
mod rbac;
mod server;
mod up;

/// Self-hosted agent pools for Terraform and OpenTofu.
#[derive(Debug, Parser)]
#[command(name = "terrapool", version, about, propagate_version = true)]
struct Cli {
    #[command(flatten)]
    logging: Logging,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Args)]
struct Logging {
    /// What to log to standard error: a level, or directives as `info,terrapool::agent=debug`.
    #[arg(long, global = true, env = "TERRAPOOL_LOG", value_name = "FILTER")]
    log: Option<String>,
    /// How log lines look. Default: plain, and with priorities in systemd's journal.
    #[arg(long, global = true, env = "TERRAPOOL_LOG_FORMAT", value_enum)]
    log_format: Option<LogFormat>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum LogFormat {
    Plain,
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Try everything on this host: control plane, pool, agent, and a real run of the bundled example.
    Demo(demo::Args),
    /// Run everything on this host, for the manifests of a directory.
    Up(up::Args),
    /// Run the control plane.
    Server(server::Args),
    /// Run an agent.
    #[command(subcommand)]
    Agent(agent::Command),
    /// Run the Kubernetes operator: AgentPools and WorkspaceLinks of a cluster.
    Operator(Box<operator::Args>),
    /// Print the definitions of the custom resources, to apply them with kubectl.
    Crds,
    /// Print the rights that the operator needs in a cluster, to apply them with kubectl.
    Rbac(rbac::Args),
    /// Print what a shell needs to complete the commands.
    Completions(manual::CompletionsArgs),
    /// Write the manual pages of the agent.
    #[command(hide = true)]
    Man(manual::ManArgs),
}

/// Runs the program; the exit code is 0 for success, 1 for failure, 2 for wrong usage.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(code) => code,
        Err(error) => {
            print_error(&error);
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let format = match cli.logging.log_format {
        Some(LogFormat::Json) => telemetry::Format::Json,
        Some(LogFormat::Plain) => telemetry::Format::Plain,
        None if logs_to_journal() => telemetry::Format::Journal,
        None => telemetry::Format::Plain,
    };
    let filter = cli.logging.log.as_deref().unwrap_or(match &cli.command {
        Command::Agent(command) if !command.is_service() => "warn",
        Command::Server(_) | Command::Agent(_) | Command::Operator(_) => "info",
        Command::Demo(_)
        | Command::Up(_)
        | Command::Crds
        | Command::Rbac(_)
        | Command::Completions(_)
        | Command::Man(_) => "error",
    });
    telemetry::init(filter, format).context("--log is no filter")?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().context("could not start the runtime")?;
    runtime.block_on(async {
        match cli.command {
            Command::Demo(args) => demo::run(args).await,
            Command::Up(args) => up::run(args).await,
            Command::Server(args) => server::run(args).await,
            Command::Agent(command) => agent::run(command).await,
            Command::Operator(args) => Box::pin(operator::run(*args)).await,
            Command::Crds => crds::run(),
            Command::Rbac(args) => rbac::run(&args),
            Command::Completions(args) => manual::completions(&args),
            Command::Man(args) => manual::man(&args),
        }
    })
}

/// Standard error leads to systemd's journal.
fn logs_to_journal() -> bool {
    std::env::var("JOURNAL_STREAM").is_ok_and(|stream| telemetry::is_journal(&stream, std::io::stderr()))
}

/// The error with its causes, one a line.
fn print_error(error: &anyhow::Error) {
    let mut text = format!("\x1b[1;31merror:\x1b[0m {error}\n");
    let mut last = error.to_string();
    for cause in error.chain().skip(1) {
        let cause = cause.to_string();
        if cause != last {
            text.push_str(&format!("  because: {cause}\n"));
        }
        last = cause;
    }
    let text = if logs_to_journal() { telemetry::journal_error(&text) } else { text };
    anstream::eprint!("{text}");
}

/// A secret from a variable or a file; `what` names it in errors.
fn secret(what: &str, value: Option<String>, file: Option<&PathBuf>) -> anyhow::Result<Option<secrecy::SecretString>> {
    let text = match (value, file) {
        (Some(value), _) => value,
        (None, Some(file)) => {
            std::fs::read_to_string(file).with_context(|| format!("could not read {what} from {}", file.display()))?
        }
        (None, None) => return Ok(None),
    };
    let text = text.trim();
    anyhow::ensure!(!text.is_empty(), "{what} is empty");
    Ok(Some(text.into()))
}

/// `KEY=VALUE`
fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(format!("`{text}` is not KEY=VALUE")),
    }
}

/// The engines of this host: those of a directory first, then those on the PATH.
fn engines(dir: Option<PathBuf>) -> Engines {
    let path = std::env::var_os("PATH").unwrap_or_default();
    Engines::new(dir, std::env::split_paths(&path).collect())
}
