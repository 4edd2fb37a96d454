//! `terrapool agent sweep`

use std::process::ExitCode;

use secrecy::SecretString;

use super::host::Host;
use crate::agent;

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    #[command(flatten)]
    host: Host,
}

pub(super) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let (config, _) = args.host.arguments_of_host()?.config(SecretString::default())?;
    let swept = agent::sweep(&config).await?;
    for job in &swept {
        anstream::println!("ended job {job}");
    }
    if swept.is_empty() {
        anstream::println!("nothing was left running");
    }
    Ok(ExitCode::SUCCESS)
}
