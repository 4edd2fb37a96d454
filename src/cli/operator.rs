//! `terrapool operator`

use std::{net::SocketAddr, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::Context;
use rand::RngExt;
use url::Url;

use crate::{
    operator::{Config, DefaultControlPlane, Operator, cluster, dry_run, leader},
    shutdown::Shutdown,
};

/// How long what has begun may take after the signal to end.
const FINISH: Duration = Duration::from_secs(20);

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Namespaces to work in; without it all. May be given several times.
    #[arg(long = "namespace", env = "TERRAPOOL_NAMESPACES", value_name = "NAMESPACE", value_delimiter = ',')]
    namespaces: Vec<String>,
    /// Address of the control plane of objects that name none.
    #[arg(long, env = "TERRAPOOL_CONTROL_PLANE_URL", value_name = "URL")]
    control_plane_url: Option<Url>,
    /// Token for it. Only as a variable, never as an argument.
    #[arg(skip = std::env::var("TERRAPOOL_CONTROL_PLANE_TOKEN").ok())]
    control_plane_token: Option<String>,
    /// File with the token for it; the variable TERRAPOOL_CONTROL_PLANE_TOKEN does the same.
    #[arg(long, env = "TERRAPOOL_CONTROL_PLANE_TOKEN_FILE", value_name = "FILE")]
    control_plane_token_file: Option<PathBuf>,
    /// Certificates to trust beside the system's when talking to it (PEM); agents get them too.
    #[arg(long, env = "TERRAPOOL_CA_FILE", value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// Image of the agents of pools that name none: the image that this program runs from.
    #[arg(long, env = "TERRAPOOL_AGENT_IMAGE", default_value = concat!("terrapool:", env!("CARGO_PKG_VERSION")), value_name = "IMAGE")]
    agent_image: String,
    /// Seconds after which everything is looked at again though nothing was heard.
    #[arg(long, env = "TERRAPOOL_RESYNC_SECONDS", default_value_t = 300, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    resync: u64,
    /// Objects of each kind that are worked on at a time.
    #[arg(long, env = "TERRAPOOL_CONCURRENCY", default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..))]
    concurrency: u16,
    /// Let several operators run, of which one works: the one that holds the Lease terrapool-operator.
    #[arg(long, env = "TERRAPOOL_LEADER_ELECTION", default_value_t = true, action = clap::ArgAction::Set)]
    leader_election: bool,
    /// Namespace of the Lease. Default: the one that this program runs in.
    #[arg(long, env = "POD_NAMESPACE", value_name = "NAMESPACE")]
    leader_namespace: Option<String>,
    /// Who this is among several operators. Default: the Pod's name, or this host's, with something random.
    #[arg(long, env = "POD_NAME")]
    identity: Option<String>,
    /// Where /healthz, /readyz and /metrics are served.
    #[arg(long, env = "TERRAPOOL_HEALTH_ADDRESS", default_value = "0.0.0.0:8080", value_name = "ADDRESS")]
    health_address: SocketAddr,
    /// Accept control planes over plain HTTP beyond this host: tokens can then be read on the way.
    #[arg(long, env = "TERRAPOOL_ALLOW_PLAIN_HTTP")]
    allow_plain_http: bool,
    /// The cluster's configuration file. Default: KUBECONFIG, ~/.kube/config, or the cluster that this runs in.
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Print what would be written for every object, and write nothing.
    #[arg(long)]
    dry_run: bool,
    /// With --dry-run: as JSON.
    #[arg(long, requires = "dry_run")]
    json: bool,
}

pub(super) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let client = cluster::connect(args.kubeconfig.as_deref()).await?;
    let identity = args.identity.unwrap_or_else(|| {
        let random: u32 = rand::rng().random();
        format!("{}-{random:08x}", super::agent::host_name())
    });
    let control_plane = match args.control_plane_url {
        None => None,
        Some(url) => {
            let file = args.control_plane_token_file.as_ref();
            let token = super::secret("the control plane's token", args.control_plane_token, file)?.context(
                "no token for the control plane: set TERRAPOOL_CONTROL_PLANE_TOKEN or --control-plane-token-file",
            )?;
            let read = |path: &PathBuf| {
                std::fs::read_to_string(path).with_context(|| format!("could not read {}", path.display()))
            };
            Some(DefaultControlPlane { url, token, ca: args.ca_file.as_ref().map(read).transpose()? })
        }
    };
    let mut config = Config::new(identity.clone(), args.agent_image);
    config.namespaces = (!args.namespaces.is_empty()).then_some(args.namespaces);
    config.control_plane = control_plane;
    config.resync = Duration::from_secs(args.resync);
    config.concurrency = args.concurrency;
    config.allow_plain_http = args.allow_plain_http;
    if args.dry_run {
        return print(&Box::pin(dry_run::run(config, client)).await?, args.json);
    }
    config.health = Some(args.health_address);
    if args.leader_election {
        let namespace = args.leader_namespace.unwrap_or_else(|| client.default_namespace().to_owned());
        config.leader_election = Some(leader::Settings::new(namespace, identity));
    }
    let shutdown = Shutdown::new();
    shutdown.on_signals()?;
    let ended = Operator::new(config, client, shutdown.clone()).run().await;
    shutdown.drain.cancel();
    shutdown.finished(FINISH).await;
    ended?;
    Ok(ExitCode::SUCCESS)
}

/// 0: nothing would be written; 2: something would.
fn print(plans: &[dry_run::Plan], json: bool) -> anyhow::Result<ExitCode> {
    if json {
        anstream::println!("{}", serde_json::to_string_pretty(plans)?);
    } else {
        for plan in plans {
            anstream::println!("\x1b[1m{} {}\x1b[0m", plan.kind, plan.object);
            if plan.steps.is_empty() {
                anstream::println!("  in line");
            }
            for step in &plan.steps {
                anstream::println!("  {step}");
            }
        }
        let changes = plans.iter().filter(|plan| !plan.steps.is_empty()).count();
        anstream::println!("{} objects, {changes} to change; nothing was written", plans.len());
    }
    let changes = plans.iter().any(|plan| !plan.steps.is_empty());
    Ok(ExitCode::from(if changes { 2 } else { 0 }))
}
