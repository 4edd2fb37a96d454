//! `terrapool agent configure`: what the service is started with, in files that only root can read.

use std::{
    io::Read,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, bail, ensure};
use clap::builder::Resettable;
use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;
use url::Url;

use super::{
    check,
    envfile::EnvFile,
    host::{self, Host},
};
use crate::{files::write_private, http, server::domain::model::TokenKind};

const URL: &str = "TERRAPOOL_URL";
const TOKEN_FILE: &str = "TERRAPOOL_POOL_TOKEN_FILE";
const DATA: &str = "TERRAPOOL_AGENT_DATA";
const DRAIN: &str = "TERRAPOOL_AGENT_DRAIN_TIMEOUT";
const USER: &str = "TERRAPOOL_AGENT_USER";

/// Longest token that is read from standard input, in bytes.
const LONGEST_TOKEN: u64 = 4096;

#[derive(Debug, clap::Args)]
struct Own {
    /// Directory of the files.
    #[arg(long, env = "TERRAPOOL_AGENT_CONFIG_DIR", default_value = host::DIR, value_name = "DIR")]
    dir: PathBuf,
    /// Token of the pool; `-`: read it from standard input. The variable TERRAPOOL_POOL_TOKEN does the same.
    #[arg(long, value_name = "TOKEN", conflicts_with = "token_from")]
    token: Option<String>,
    /// File with the pool's token. It is copied.
    #[arg(id = "token_from", long = "token-file", value_name = "FILE")]
    token_from: Option<PathBuf>,
    /// Accept an address that is plain http and not of this machine: tokens can be read on the way.
    #[arg(long)]
    allow_plain_http: bool,
    /// Check at once whether an agent would work with it.
    #[arg(long)]
    check: bool,
    /// Tell what was done as JSON.
    #[arg(long)]
    json: bool,
}

/// Own arguments, and all of `agent run` that can be kept in a file: the same names, the same values, none required.
#[derive(Debug)]
pub(in crate::cli) struct Args {
    own: Own,
    /// Names in the environment, with what was given.
    given: Vec<(String, String)>,
}

impl clap::Args for Args {
    fn augment_args(command: clap::Command) -> clap::Command {
        let command = Own::augment_args(command);
        host::settings().into_iter().fold(command, |command, (arg, _)| {
            let arg = arg.required(false).env(Resettable::Reset).default_value(Resettable::Reset);
            command.arg(arg.help_heading("Settings of the agent"))
        })
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

impl clap::FromArgMatches for Args {
    fn from_arg_matches(matches: &clap::ArgMatches) -> Result<Self, clap::Error> {
        let settings = host::settings();
        let given = settings.into_iter().filter_map(|(arg, key)| Some((key, host::given(matches, &arg)?)));
        Ok(Self { given: given.collect(), own: Own::from_arg_matches(matches)? })
    }

    fn update_from_arg_matches(&mut self, matches: &clap::ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// What was done.
#[derive(Debug, Serialize)]
struct Report {
    /// The files.
    env_file: PathBuf,
    token_file: PathBuf,
    /// Names of the settings that have changed.
    changed: Vec<String>,
    token_changed: bool,
    /// What to know.
    warnings: Vec<String>,
    /// The next commands.
    next: Vec<String>,
}

pub(super) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let Args { own, given } = args;
    let dir = std::path::absolute(&own.dir)?;
    let mut warnings = Vec::new();
    let token = token(&own, &mut warnings)?;
    let mut file = host::read(&dir)?;
    let is_new = file.get(URL).is_none();
    let mut changed = merge(&mut file, &given)?;
    validate(&file, own.allow_plain_http)?;
    let token_path = host::token_path(&dir);
    ensure!(
        token.is_some() || token_path.exists(),
        "no pool token: give it in TERRAPOOL_POOL_TOKEN, by --token-file FILE or on standard input by --token - (a pool's page \
         shows how to get one)"
    );
    if file.set(TOKEN_FILE, &token_path.to_string_lossy()) {
        changed.push(TOKEN_FILE.to_owned());
    }
    let mut private = std::fs::DirBuilder::new();
    private.recursive(true).mode(0o700).create(&dir).with_context(|| format!("could not create {}", dir.display()))?;
    // The token first: a service that starts in between has one that fits nothing rather than none.
    let token_changed = match &token {
        Some(token) => write(&token_path, &format!("{}\n", token.expose_secret()))?,
        None => false,
    };
    write(&host::env_path(&dir), &file.to_string())?;
    warnings.extend(consequences(&file, &changed));
    let report = Report {
        env_file: host::env_path(&dir),
        token_file: token_path,
        next: next(&dir, is_new, token_changed || !changed.is_empty()),
        changed,
        token_changed,
        warnings,
    };
    if own.json && !own.check {
        anstream::println!("{}", serde_json::to_string_pretty(&report)?);
    } else if !own.json {
        print(&report);
    }
    if !own.check {
        return Ok(ExitCode::SUCCESS);
    }
    let host = Host { dir, flags: Vec::new() };
    if own.json {
        let findings = check::findings(&host).await?;
        anstream::println!(
            "{}",
            serde_json::to_string_pretty(&serde_json::json!({"configured": report, "check": findings}))?
        );
        return Ok(check::code(&findings));
    }
    anstream::println!();
    check::run(check::Args { host, json: false }).await
}

/// The token, wherever it was given; `None`: the old one stays.
fn token(own: &Own, warnings: &mut Vec<String>) -> anyhow::Result<Option<SecretString>> {
    const WHAT: &str = "the pool's token";
    let token = match own.token.as_deref() {
        Some("-") => {
            let mut text = String::new();
            let read = std::io::stdin().take(LONGEST_TOKEN).read_to_string(&mut text);
            read.context("could not read the pool's token from standard input")?;
            super::super::secret(WHAT, Some(text), None)?
        }
        Some(token) => {
            warnings.push(
                "the token stays in the history of your shell, and was seen by everybody who listed this host's processes: \
                 clear the one, or use `--token -`"
                    .to_owned(),
            );
            super::super::secret(WHAT, Some(token.to_owned()), None)?
        }
        None => {
            let variable = std::env::var("TERRAPOOL_POOL_TOKEN").ok().filter(|_| own.token_from.is_none());
            super::super::secret(WHAT, variable, own.token_from.as_ref())?
        }
    };
    if let Some(token) = &token {
        check_token(token.expose_secret())?;
    }
    Ok(token)
}

/// A token has a shape: what was copied half, or is another's, is told before it is tried.
fn check_token(token: &str) -> anyhow::Result<()> {
    let pool = TokenKind::Pool.prefix();
    for (kind, whose) in [(TokenKind::User, "a user's"), (TokenKind::Agent, "an agent's")] {
        ensure!(!token.starts_with(kind.prefix()), "this is {whose} token; the one of a pool begins with `{pool}`");
    }
    let Some(rest) = token.strip_prefix(pool) else {
        bail!("the token of a pool begins with `{pool}`; this one does not")
    };
    let is_random = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    ensure!(
        rest.len() == 43 && rest.bytes().all(is_random),
        "the token is not whole: `{pool}` is followed by 43 letters, digits, `-` and `_`, here by {}",
        rest.chars().count()
    );
    Ok(())
}

/// Puts what was given into the file; says what has changed.
fn merge(file: &mut EnvFile, given: &[(String, String)]) -> anyhow::Result<Vec<String>> {
    let mut changed = Vec::new();
    for (key, value) in given {
        ensure!(!value.chars().any(char::is_control), "{key} must not hold control characters");
        let is_path = key == "TERRAPOOL_CA_FILE" || key == DATA || key.ends_with("_DIR");
        let value = if is_path { std::path::absolute(value)?.to_string_lossy().into_owned() } else { value.clone() };
        if file.set(key, &value) {
            changed.push(key.clone());
        }
    }
    Ok(changed)
}

fn validate(file: &EnvFile, allow_plain_http: bool) -> anyhow::Result<()> {
    let url = file.get(URL).context("no address of the control plane: give --url https://…")?;
    let url: Url = url.parse().with_context(|| format!("{url} is no address"))?;
    ensure!(matches!(url.scheme(), "https" | "http") && url.host().is_some(), "{url} is no https address");
    ensure!(url.password().is_none() && url.query().is_none(), "{url} must be an address alone, as https://host");
    ensure!(
        allow_plain_http || !http::is_readable_on_the_way(&url),
        "{url} is not https: tokens could be read on the way. Give an https address, or --allow-plain-http"
    );
    if let Some(name) = file.get("TERRAPOOL_AGENT_NAME") {
        ensure!((1..=128).contains(&name.len()), "an agent's name has 1 to 128 characters");
    }
    if let Some(ca) = file.get("TERRAPOOL_CA_FILE") {
        http::client(Some(Path::new(ca)))?;
    }
    Ok(())
}

/// What changed settings mean, where it is not plain.
fn consequences(file: &EnvFile, changed: &[String]) -> Vec<String> {
    let has_changed = |key: &str| changed.iter().any(|name| name == key);
    let mut said = Vec::new();
    if has_changed(USER) && file.get(USER) == Some("root") {
        said.push(
            "runs are started as root of their containers: local-exec may install packages and certificates there. Who \
             breaks out of such a container is root here. The pool's page shows it; --user nonroot takes it back"
                .to_owned(),
        );
    }
    if has_changed(DATA) {
        let data = file.get(DATA).unwrap_or_default();
        said.push(format!(
            "the service may write to {data} only when its unit says so: `systemctl edit terrapool-agent`, [Service], \
             ReadWritePaths={data}"
        ));
    }
    if has_changed(DRAIN) {
        said.push(
            "systemd older than 236, as on CentOS 7, ends a service that stops after 20 minutes in any case: for more, \
             `systemctl edit terrapool-agent`, [Service], TimeoutStopSec="
                .to_owned(),
        );
    }
    said
}

fn next(dir: &Path, is_new: bool, changed: bool) -> Vec<String> {
    let is_own = dir == Path::new(host::DIR);
    let here = if is_own { String::new() } else { format!(" --dir {}", dir.display()) };
    let mut next = vec![format!("terrapool agent check{here}")];
    match (is_own, is_new) {
        (false, _) | (true, false) if !is_own || !changed => {}
        (_, true) => next.push("systemctl enable --now terrapool-agent".to_owned()),
        (_, false) => {
            next.extend(["systemctl daemon-reload", "systemctl restart terrapool-agent"].map(str::to_owned));
        }
    }
    next
}

/// Says whether that changed anything.
fn write(path: &Path, text: &str) -> anyhow::Result<bool> {
    let is_same = std::fs::read_to_string(path).is_ok_and(|old| old == text);
    // Written all the same: the mode may be another's.
    write_private(path, text.as_bytes()).with_context(|| format!("could not write {}", path.display()))?;
    Ok(!is_same)
}

fn print(report: &Report) {
    use anstream::println;
    let Report { env_file, token_file, changed, token_changed, warnings, next } = report;
    let settings = if changed.is_empty() { "nothing has changed".to_owned() } else { changed.join(", ") };
    println!("{}: {settings}", env_file.display());
    println!("{}: {}", token_file.display(), if *token_changed { "the pool's token" } else { "nothing has changed" });
    for warning in warnings {
        println!("\x1b[33mnote:\x1b[0m {warning}");
    }
    println!("next:");
    for command in next {
        println!("  {command}");
    }
    if next.iter().any(|command| command.contains("restart")) {
        println!("Runs go on over a restart.");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &str = "tpp_0123456789012345678901234567890123456789abc";

    #[test]
    fn a_token_that_is_half_or_anothers_is_told() {
        check_token(TOKEN).unwrap();
        for (token, words) in [
            ("tpu_0123456789012345678901234567890123456789abc", "a user's token"),
            ("tpa_x", "an agent's token"),
            ("hello", "begins with `tpp_`"),
            (&TOKEN[..20], "not whole"),
            ("tpp_01234567890123456789012345678901234567 9abc", "not whole"),
        ] {
            let error = check_token(token).unwrap_err().to_string();
            assert!(error.contains(words), "{token}: {error}");
        }
    }

    fn of(text: &str, plain: bool) -> Result<(), String> {
        validate(&EnvFile::parse(text), plain).map_err(|error| error.to_string())
    }

    #[test]
    fn addresses_are_https_or_of_this_machine() {
        of("TERRAPOOL_URL=https://a.example", false).unwrap();
        of("TERRAPOOL_URL=http://localhost:8780", false).unwrap();
        of("TERRAPOOL_URL=http://a.example", true).unwrap();
        for (text, words) in [
            ("", "--url"),
            ("TERRAPOOL_URL=http://a.example", "--allow-plain-http"),
            ("TERRAPOOL_URL=ftp://a.example", "no https address"),
            ("TERRAPOOL_URL=https://a.example?x=y", "address alone"),
            ("TERRAPOOL_URL=https://a.example\nTERRAPOOL_AGENT_NAME=\"\"", "name"),
            ("TERRAPOOL_URL=https://a.example\nTERRAPOOL_CA_FILE=/nowhere/ca", "/nowhere/ca"),
        ] {
            let error = of(text, false).unwrap_err();
            assert!(error.contains(words), "{text}: {error}");
        }
    }

    #[test]
    fn relative_paths_become_absolute_and_control_characters_are_refused() {
        let mut file = EnvFile::default();
        let given = [("TERRAPOOL_CA_FILE".to_owned(), "ca.pem".to_owned())];
        assert_eq!(merge(&mut file, &given).unwrap(), ["TERRAPOOL_CA_FILE"]);
        assert!(file.get("TERRAPOOL_CA_FILE").unwrap().starts_with('/'));
        merge(&mut file, &[("TERRAPOOL_AGENT_NAME".to_owned(), "a\nB=c".to_owned())]).unwrap_err();
    }

    #[test]
    fn the_next_commands_start_the_first_time_and_restart_later() {
        let dir = Path::new(host::DIR);
        assert_eq!(next(dir, true, true), ["terrapool agent check", "systemctl enable --now terrapool-agent"]);
        assert_eq!(next(dir, false, true)[2], "systemctl restart terrapool-agent");
        assert_eq!(next(dir, false, false), ["terrapool agent check"]);
        assert_eq!(next(Path::new("/x"), true, true), ["terrapool agent check --dir /x"]);
    }
}
