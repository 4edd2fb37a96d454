//! Options about an agent's hooks.

use std::{path::PathBuf, time::Duration};

use anyhow::Context;

use crate::{agent::hooks, crd::common::Span};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Directory with hooks: programs named pre-init, pre-plan, post-plan, pre-apply and post-apply, or terraform-pre-plan
    /// and so on, that run in the run container before and after the engine's commands.
    #[arg(long, env = "TERRAPOOL_AGENT_HOOKS_DIR", value_name = "DIR")]
    hooks_dir: Option<PathBuf>,
    /// How long a hook may take, as pre-plan=5m; at most 10m. May be given several times. Default: 60 seconds each.
    #[arg(
        long = "hook-timeout",
        env = "TERRAPOOL_AGENT_HOOK_TIMEOUTS",
        value_name = "HOOK=DURATION",
        value_parser = timeout,
        value_delimiter = ','
    )]
    hook_timeouts: Vec<(String, Duration)>,
}

fn timeout(text: &str) -> Result<(String, Duration), String> {
    let (name, limit) = super::super::label(text)?;
    let limit = limit.parse::<Span>().map_err(|error| error.to_string())?.as_duration();
    hooks::check_limit(&name, limit)?;
    Ok((name, limit))
}

impl Args {
    pub(super) fn hooks(self) -> anyhow::Result<hooks::Hooks> {
        let Self { hooks_dir, hook_timeouts } = self;
        let dir = hooks_dir.map(std::path::absolute).transpose().context("--hooks-dir is no path")?;
        Ok(hooks::Hooks { dir, limits: hook_timeouts.into_iter().collect() })
    }
}
