//! `terrapool agent`: one file per command.

use std::{path::PathBuf, process::ExitCode};

use clap::Subcommand;

use crate::agent::executor::place_runner;

mod check;
mod configure;
mod engines;
mod envfile;
mod hooks;
mod host;
mod isolation;
mod run;
mod size;
mod sweep;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Register in a pool and execute its runs, until told to stop: the first signal drains, the second stops.
    Run(Box<run::Args>),
    /// Write the settings of this host's agent, or change some of them: what is not given stays.
    Configure(Box<configure::Args>),
    /// Look whether an agent would work here: control plane, token, clock, disk, Docker. The status is 1 when it would not.
    Check(check::Args),
    /// Interrupt what an agent that does not run any more has left running, and remove its containers.
    Sweep(sweep::Args),
    /// Prepare a volume that an agent and a run container are to share: puts the runner there.
    PlaceRunner {
        /// The volume, as both containers mount it.
        volume: PathBuf,
    },
}

impl Command {
    /// It goes on until it is told to end, and its log is all that is seen of it.
    pub(super) fn is_service(&self) -> bool {
        match self {
            Self::Run(_) | Self::PlaceRunner { .. } => true,
            Self::Configure(_) | Self::Check(_) | Self::Sweep(_) => false,
        }
    }
}

pub(super) async fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Run(args) => run::run(*args).await,
        Command::Configure(args) => configure::run(*args).await,
        Command::Check(args) => check::run(args).await,
        Command::Sweep(args) => sweep::run(args).await,
        Command::PlaceRunner { volume } => {
            place_runner(&volume)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

pub(super) fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim();
    if name.is_empty() { "agent".to_owned() } else { name.to_owned() }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use clap::Parser;

    use super::{super::Cli, *};
    use crate::{agent::executor::Choice, api::sidecar};

    #[test]
    fn a_pods_containers_are_started_with_arguments_that_this_program_has() {
        let parse = |args: Vec<String>| Cli::try_parse_from(std::iter::once("terrapool".to_owned()).chain(args));
        parse(sidecar::place_arguments()).unwrap();
        let arguments = sidecar::AgentArguments {
            url: "https://terrapool.example.com".to_owned(),
            name: "pool-x7k2p".to_owned(),
            run_image: Some("docker.io/hashicorp/terraform:1.11.4".to_owned()),
            root: true,
            idle_timeout: Some(Duration::from_secs(600)),
            drain_timeout: Some(Duration::from_secs(900)),
            ca_file: Some(sidecar::CA_FILE.to_owned()),
            engine_dir: Some("/engines".to_owned()),
            labels: vec![("node".to_owned(), "one".to_owned())],
        };
        let parsed = parse(arguments.to_vec()).unwrap();
        let super::super::Command::Agent(Command::Run(args)) = parsed.command else { panic!("{parsed:?}") };
        assert_eq!(args.executor, Choice::Sidecar);
        assert_eq!(args.idle_timeout.unwrap().as_duration(), Duration::from_secs(600));
        assert_eq!(args.drain_timeout.unwrap().as_duration(), Duration::from_secs(900));
        assert_eq!((args.data.to_str(), args.user.as_str()), (Some(sidecar::AGENT_DATA), "root"));
        assert_eq!(args.labels, arguments.labels);
        parse(sidecar::AgentArguments { url: arguments.url, name: arguments.name, ..Default::default() }.to_vec())
            .unwrap();
    }
}
