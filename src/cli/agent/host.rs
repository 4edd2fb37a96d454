//! Where an agent of this host has its settings, and what they come to.

use std::{
    ffi::OsString,
    io,
    path::{Path, PathBuf},
};

use anyhow::Context;
use clap::{ArgAction, Args as _, CommandFactory, FromArgMatches, Parser};

use super::{envfile::EnvFile, run};

/// Where the service has its settings.
pub(super) const DIR: &str = "/etc/terrapool";

/// Which settings are meant.
#[derive(Debug, clap::Args)]
pub(super) struct Host {
    /// Directory of the files that `configure` writes.
    #[arg(long, env = "TERRAPOOL_AGENT_CONFIG_DIR", default_value = DIR, value_name = "DIR")]
    pub(super) dir: PathBuf,
    /// Flags of `agent run` that count instead of what the files say.
    #[arg(last = true, value_name = "FLAGS")]
    pub(super) flags: Vec<OsString>,
}

/// The files in it.
pub(super) fn env_path(dir: &Path) -> PathBuf {
    dir.join("agent.env")
}

pub(super) fn token_path(dir: &Path) -> PathBuf {
    dir.join("agent.token")
}

/// The settings that are there; none: an empty file.
pub(super) fn read(dir: &Path) -> anyhow::Result<EnvFile> {
    let path = env_path(dir);
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(EnvFile::parse(&text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(EnvFile::default()),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            Err(error).with_context(|| format!("could not read {}: it is root's; use sudo", path.display()))
        }
        Err(error) => Err(error).with_context(|| format!("could not read {}", path.display())),
    }
}

#[derive(Debug, Parser)]
#[command(no_binary_name = true)]
struct Run {
    #[command(flatten)]
    args: run::Args,
}

impl Host {
    /// What `agent run` would be started with: its flags, then the environment, then the files.
    pub(super) fn arguments(&self) -> anyhow::Result<run::Args> {
        self.arguments_of(&read(&self.dir)?)
    }

    /// The same for what needs no control plane.
    pub(super) fn arguments_of_host(&self) -> anyhow::Result<run::Args> {
        let mut file = read(&self.dir)?;
        file.set("TERRAPOOL_URL", "https://localhost");
        self.arguments_of(&file)
    }

    fn arguments_of(&self, file: &EnvFile) -> anyhow::Result<run::Args> {
        let arguments = arguments(file, &self.flags, |key| std::env::var_os(key).is_some());
        arguments.with_context(|| {
            format!("no agent is configured in {}: use `terrapool agent configure`", self.dir.display())
        })
    }
}

fn arguments(file: &EnvFile, flags: &[OsString], is_set: impl Fn(&str) -> bool) -> Result<run::Args, clap::Error> {
    let command = Run::command().mut_args(|arg| {
        let key = arg.get_env().and_then(|key| key.to_str()).map(str::to_owned);
        match key.as_deref().filter(|key| !is_set(key)).and_then(|key| file.get(key)) {
            Some(value) => arg.required(false).default_value(value.to_owned()),
            None => arg,
        }
    });
    let mut matches = command.try_get_matches_from(flags)?;
    Ok(Run::from_arg_matches_mut(&mut matches)?.args)
}

/// The flags of `agent run` that make sense in a file of settings: each with its name in the environment.
pub(super) fn settings() -> Vec<(clap::Arg, String)> {
    /// Of agents in Pods, and the token, which has a file of its own.
    const NOT_HERE: [&str; 5] = ["token_file", "sidecar_dir", "run_image", "once", "idle_timeout"];
    let command = run::Args::augment_args(clap::Command::new("run"));
    let settings = command.get_arguments().filter(|arg| !NOT_HERE.contains(&arg.get_id().as_str()));
    settings.filter_map(|arg| Some((arg.clone(), arg.get_env()?.to_str()?.to_owned()))).collect()
}

/// The value of a setting as the environment has it, where it was given as an argument.
pub(super) fn given(matches: &clap::ArgMatches, arg: &clap::Arg) -> Option<String> {
    let id = arg.get_id().as_str();
    if matches.value_source(id) != Some(clap::parser::ValueSource::CommandLine) {
        return None;
    }
    if matches!(arg.get_action(), ArgAction::SetTrue) {
        return Some("true".to_owned());
    }
    let values = matches.get_raw(id)?.map(|value| value.to_string_lossy().into_owned());
    Some(values.collect::<Vec<_>>().join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "TERRAPOOL_URL=https://a.example\nTERRAPOOL_AGENT_LABELS=\"zone=a b,rack=1\"\n\
                        TERRAPOOL_AGENT_CONCURRENCY=2\nTERRAPOOL_AGENT_ONCE=true\n";

    #[test]
    fn flags_count_before_the_environment_and_the_file() {
        let file = EnvFile::parse(FILE);
        let of_file = arguments(&file, &[], |_| false).unwrap();
        assert_eq!(of_file.url.as_str(), "https://a.example/");
        assert_eq!((of_file.concurrency, of_file.once), (2, true));
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        assert_eq!(of_file.labels, [pair("zone", "a b"), pair("rack", "1")]);
        let flags = ["--concurrency", "7", "--label", "x=y"].map(OsString::from);
        let of_flags = arguments(&file, &flags, |_| false).unwrap();
        assert_eq!((of_flags.concurrency, of_flags.labels), (7, vec![pair("x", "y")]));
        // What the environment has is clap's affair; the file must not be in its way.
        let of_others = arguments(&file, &[], |key| key == "TERRAPOOL_AGENT_CONCURRENCY").unwrap();
        assert_ne!(of_others.concurrency, 2);
        arguments(&EnvFile::default(), &[], |_| false).unwrap_err();
    }

    #[test]
    fn every_setting_has_a_flag_and_a_name_in_the_environment() {
        let settings = settings();
        assert!(settings.iter().all(|(arg, key)| arg.get_long().is_some() && key.starts_with("TERRAPOOL_")));
        for id in ["url", "name", "concurrency", "labels", "ca_file", "data", "executor", "drain_timeout", "user"] {
            assert!(settings.iter().any(|(arg, _)| arg.get_id() == id), "{id}");
        }
    }
}
