//! `terrapool agent check`

use std::process::ExitCode;

use axum::http::Uri;
use hyper_util::client::proxy::matcher::Matcher;
use url::Url;

use super::{super::secret, host::Host};
use crate::agent::check::{Finding, Level, Proxy, Subject, judge, look};

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    #[command(flatten)]
    pub(super) host: Host,
    /// Print the findings as JSON.
    #[arg(long)]
    pub(super) json: bool,
}

pub(super) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let findings = findings(&args.host).await?;
    if args.json {
        anstream::println!("{}", serde_json::to_string_pretty(&findings)?);
    } else {
        print(&findings);
    }
    Ok(code(&findings))
}

pub(super) async fn findings(host: &Host) -> anyhow::Result<Vec<Finding>> {
    let mut args = host.arguments()?;
    let token_file = args.token_file.clone();
    let token = secret("the pool's token", args.token.take(), token_file.as_ref())?;
    let (config, _) = args.config(token.clone().unwrap_or_default())?;
    let proxy = proxy(&config.server);
    Ok(judge(&look(&Subject { config, token, token_file, proxy }).await?))
}

/// The proxy that the HTTP client takes for `url`: it goes by the same variables.
fn proxy(url: &Url) -> Option<Proxy> {
    let uri: Uri = url.as_str().parse().ok()?;
    let proxy = Matcher::from_env().intercept(&uri)?;
    let port = proxy.uri().port_u16().unwrap_or(if proxy.uri().scheme_str() == Some("https") { 443 } else { 80 });
    Some(Proxy { host: proxy.uri().host()?.to_owned(), port })
}

/// 1 when the agent would not work.
pub(super) fn code(findings: &[Finding]) -> ExitCode {
    let has_failed = findings.iter().any(|finding| finding.level == Level::Fail);
    if has_failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn print(findings: &[Finding]) {
    use anstream::println;
    for Finding { check, level, detail, mend } in findings {
        let colour = match level {
            Level::Ok => 32,
            Level::Warn => 33,
            Level::Fail => 31,
        };
        println!("\x1b[{colour}m{:<4}\x1b[0m  {check:<8}  {detail}", level.as_str());
        if let Some(mend) = mend {
            println!("                mend: {mend}");
        }
    }
}
