//! `terrapool completions` and `terrapool man`: made from the command tree, so that they are never stale.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context;
use clap::{Command, CommandFactory};
use clap_mangen::Man;

use super::Cli;

#[derive(Debug, clap::Args)]
pub(super) struct CompletionsArgs {
    shell: clap_complete::Shell,
}

#[derive(Debug, clap::Args)]
pub(super) struct ManArgs {
    /// Where the pages are put.
    dir: PathBuf,
}

pub(super) fn completions(args: &CompletionsArgs) -> anyhow::Result<ExitCode> {
    use std::io::Write;
    // Into memory first: a reader that goes away is no reason to panic.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "terrapool", &mut script);
    std::io::stdout().write_all(&script).context("could not write the completions")?;
    Ok(ExitCode::SUCCESS)
}

/// One page for the agent and one for each of its commands.
pub(super) fn man(args: &ManArgs) -> anyhow::Result<ExitCode> {
    let mut tree = Cli::command().mut_subcommand("agent", |agent| agent.disable_help_subcommand(true));
    tree.build();
    let agent = tree.find_subcommand("agent").context("there is no command `agent`")?;
    std::fs::create_dir_all(&args.dir).with_context(|| format!("could not create {}", args.dir.display()))?;
    page(&args.dir, agent, "terrapool-agent")?;
    for command in agent.get_subcommands().filter(|command| !command.is_hide_set()) {
        page(&args.dir, command, &format!("terrapool-agent-{}", command.get_name()))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn page(dir: &Path, command: &Command, name: &str) -> anyhow::Result<()> {
    let path = dir.join(format!("{name}.8"));
    let mut text = Vec::new();
    let command = command.clone().name(name.to_owned()).display_name(name.to_owned());
    // Dated by its version alone: the same program makes the same page.
    Man::new(command).section("8").date("").manual("Terrapool").render(&mut text)?;
    std::fs::write(&path, text).with_context(|| format!("could not write {}", path.display()))
}
