//! `terrapool server`

use std::{net::SocketAddr, path::PathBuf, process::ExitCode, time::Duration};

use crate::{
    clock::Clock,
    server::{
        accept::Speaks,
        app::Policy,
        serve::{self, Config, Listener},
        tls,
    },
    shutdown::Shutdown,
};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Directory for database, blobs and key file.
    #[arg(long, env = "TERRAPOOL_DATA", default_value = "/var/lib/terrapool", value_name = "DIR")]
    data: PathBuf,
    /// Database address, as `sqlite:///path/file.db?mode=rwc`. Default: in the data directory.
    #[arg(long, env = "TERRAPOOL_DATABASE", value_name = "URL", hide_env_values = true)]
    database: Option<String>,
    /// Address to listen on; plain HTTP is served on loopback addresses only.
    #[arg(long, env = "TERRAPOOL_LISTEN", default_value = "127.0.0.1:8080", value_name = "ADDRESS")]
    listen: SocketAddr,
    /// Serve HTTPS with this certificate (PEM, with intermediates).
    #[arg(long, env = "TERRAPOOL_TLS_CERT", requires = "tls_key", value_name = "FILE")]
    tls_cert: Option<PathBuf>,
    /// Key of the certificate (PEM).
    #[arg(long, env = "TERRAPOOL_TLS_KEY", requires = "tls_cert", value_name = "FILE")]
    tls_key: Option<PathBuf>,
    /// Serve plain HTTP on other than loopback addresses: only behind a proxy that speaks HTTPS.
    #[arg(long, env = "TERRAPOOL_INSECURE_HTTP")]
    insecure_http: bool,
    /// Address under which clients reach the server, when a proxy stands before it.
    #[arg(long, env = "TERRAPOOL_PUBLIC_URL", value_name = "URL")]
    public_url: Option<String>,
    /// Token of the administrator: at least 20 random characters. Only as a variable, never as an argument.
    #[arg(skip = std::env::var("TERRAPOOL_ADMIN_TOKEN").ok())]
    admin_token: Option<String>,
    /// File with the token of the administrator; the variable TERRAPOOL_ADMIN_TOKEN does the same.
    #[arg(long, env = "TERRAPOOL_ADMIN_TOKEN_FILE", value_name = "FILE")]
    admin_token_file: Option<PathBuf>,
    #[command(flatten)]
    otlp: super::otlp::OtlpArgs,
}

pub(super) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    anyhow::ensure!(
        args.tls_cert.is_some() || args.listen.ip().is_loopback() || args.insecure_http,
        "refusing to serve plain HTTP on {}: give --tls-cert and --tls-key, or --insecure-http behind a proxy that speaks HTTPS",
        args.listen
    );
    let tls = match (args.tls_cert, args.tls_key) {
        (Some(certificate), Some(key)) => Some(tls::Files { certificate, key }.load().await?),
        _ => None,
    };
    let admin_token = super::secret("the administrator's token", args.admin_token, args.admin_token_file.as_ref())?;
    let scheme = if tls.is_some() { "https" } else { "http" };
    let listener = Listener::bind(args.listen, tls.map_or(Speaks::Plain, Speaks::Tls))?;
    let address = listener.address();
    let trace = args.otlp.start(None)?;
    let config = Config {
        data: args.data,
        database: args.database,
        public_url: args.public_url,
        admin_token,
        policy: Policy::default(),
        trace: trace.clone(),
    };
    let app = serve::open(config, Clock::real()).await?;
    let shutdown = Shutdown::new();
    shutdown.on_signals()?;
    tracing::info!("the control plane is ready at {scheme}://{address}");
    serve::serve(app, vec![listener], &shutdown).await?;
    shutdown.finished(Duration::from_secs(10)).await;
    trace.close().await;
    tracing::info!("stopped");
    Ok(ExitCode::SUCCESS)
}
