//! Options about an agent's hooks.

use std::{path::PathBuf, time::Duration};

use anyhow::Context;

use crate::{agent::hooks, crd::common::Span};

#[derive(Debug, clap::Args)]
pub(super) struct HookArgs {
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

impl HookArgs {
    pub(super) fn hooks(self) -> anyhow::Result<hooks::Hooks> {
        let Self { hooks_dir, hook_timeouts } = self;
        let dir = hooks_dir.map(std::path::absolute).transpose().context("--hooks-dir is no path")?;
        Ok(hooks::Hooks { dir, limits: hook_timeouts.into_iter().collect() })
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Alone {
        #[command(flatten)]
        args: HookArgs,
    }

    fn parse(arguments: &[&str]) -> Result<hooks::Hooks, String> {
        let alone = Alone::try_parse_from([&["alone"], arguments].concat()).map_err(|error| error.to_string())?;
        alone.args.hooks().map_err(|error| error.to_string())
    }

    #[test]
    fn each_hook_may_have_a_limit_of_its_own() {
        let hooks =
            parse(&["--hooks-dir=/h", "--hook-timeout=pre-plan=5m,post-plan=90s", "--hook-timeout", "pre-init=1s"]);
        let hooks = hooks.unwrap();
        assert_eq!(hooks.dir, Some("/h".into()));
        let limits: Vec<_> = hooks.limits.iter().map(|(name, limit)| (name.as_str(), limit.as_secs())).collect();
        assert_eq!(limits, [("post-plan", 90), ("pre-init", 1), ("pre-plan", 300)]);
        assert!(parse(&[]).unwrap().dir.is_none());
    }

    #[test]
    fn a_limit_that_cannot_be_is_refused_with_the_reason() {
        for (limit, why) in [
            ("pre-plan=11m", "to 10m"),
            ("pre-plan=0s", "from 1s"),
            ("plan=1m", "no hook `plan`"),
            ("pre-plan", "KEY=VALUE"),
        ] {
            let error = parse(&["--hook-timeout", limit]).unwrap_err();
            assert!(error.contains(why), "{limit}: {error}");
        }
    }
}
