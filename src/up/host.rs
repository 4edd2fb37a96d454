//! The control plane of `up`: one process on one host, plain HTTP on loopback and HTTPS with a CA of its
//! own, everything in one data directory. A second start goes on where the first stopped.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};

use crate::{
    clock::Clock,
    files::write_private,
    server::{
        accept::Speaks,
        app::{App, Policy},
        domain::{access, model::TokenKind},
        serve::{self, Config, Listener},
        tls,
    },
    shutdown::Shutdown,
    trace::Tracer,
};

/// Ports of the first start, when they are free.
const HTTP_PORT: u16 = 8780;
const HTTPS_PORT: u16 = 8743;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("could not write {path}")]
    Write { path: String, source: io::Error },
    #[error("could not read {path}")]
    Read { path: String, source: io::Error },
    #[error(transparent)]
    Serve(#[from] serve::Error),
    #[error("could not set up HTTPS")]
    Tls(#[from] tls::Error),
}

/// Where the host listens; kept, because users' configurations name the ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Ports {
    http: u16,
    https: u16,
}

/// How the host is started.
#[derive(Debug, Clone)]
pub struct Options {
    pub data: PathBuf,
    /// Absent: those of the last start, else the usual ones, else free ones.
    pub http_port: Option<u16>,
    pub https_port: Option<u16>,
    pub policy: Policy,
    /// Where spans of runs go, of control plane and agents.
    pub trace: Tracer,
}

/// A control plane that serves, and how to reach it.
pub struct Host {
    pub app: App,
    /// `http://localhost:PORT`
    pub http_address: String,
    /// `https://localhost:PORT`
    pub address: String,
    pub ca_file: PathBuf,
    pub token: SecretString,
    pub data: PathBuf,
    serving: tokio::task::JoinHandle<Result<(), serve::Error>>,
    /// The server's own end, which comes after that of all who talk to it.
    end: Shutdown,
}

impl Host {
    /// Opens the control plane in `options.data` and serves it in the background until [`Self::end`]. When it fails
    /// before, `shutdown` is drained.
    ///
    /// # Errors
    /// When the directory or the ports cannot be used.
    pub async fn start(options: Options, shutdown: &Shutdown) -> Result<Self, Error> {
        let Options { data, http_port, https_port, policy, trace } = options;
        let server_dir = data.join("server");
        fs::create_dir_all(&data).map_err(|source| Error::Write { path: data.display().to_string(), source })?;
        let token = admin_token(&data.join("admin.token"))?;
        let config = Config {
            data: server_dir,
            database: None,
            public_url: None,
            admin_token: Some(token.clone()),
            policy,
            trace,
        };
        let app = serve::open(config, Clock::real()).await?;
        let ca = tls::own_ca(&data.join("tls"), &[])?;

        let ports_file = data.join("ports.json");
        let last = read_ports(&ports_file);
        let certificate = ca.server.load().await?;
        let http = bind(http_port, last.map(|ports| ports.http), HTTP_PORT, Speaks::Either(certificate.clone()))?;
        let https = bind(https_port, last.map(|ports| ports.https), HTTPS_PORT, Speaks::Tls(certificate))?;
        let ports = Ports { http: http.address().port(), https: https.address().port() };
        write(&ports_file, &serde_json::to_string(&ports).unwrap_or_default())?;

        let end = Shutdown::new();
        let serving = tokio::spawn({
            let (app, end, drain) = (app.clone(), end.clone(), shutdown.drain.clone());
            async move {
                let served = serve::serve(app, vec![http, https], &end).await;
                drain.cancel();
                served
            }
        });
        Ok(Self {
            app,
            http_address: format!("http://localhost:{}", ports.http),
            address: format!("https://localhost:{}", ports.https),
            ca_file: ca.ca,
            token,
            data,
            serving,
            end,
        })
    }

    /// `localhost:PORT` of the plain HTTP listener: the host name that a `cloud` block needs.
    #[must_use]
    pub fn http_host(&self) -> &str {
        self.http_address.trim_start_matches("http://")
    }

    /// The same for HTTPS.
    #[must_use]
    pub fn https_host(&self) -> &str {
        self.address.trim_start_matches("https://")
    }

    /// Writes `connection.env` (for scripts) and `terraform.rc` (for the terraform CLI); says where they are.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn write_connection_files(&self, organization: &str) -> Result<ConnectionFiles, Error> {
        let files = ConnectionFiles { env: self.data.join("connection.env"), cli: self.data.join("terraform.rc") };
        let token = self.token.expose_secret();
        let env = format!(
            "TERRAPOOL_ADDRESS={}\nTERRAPOOL_HTTP_ADDRESS={}\nTERRAPOOL_TOKEN={token}\nTERRAPOOL_CA_FILE={}\n\
             TERRAPOOL_ORGANIZATION={organization}\n",
            self.address,
            self.http_address,
            self.ca_file.display()
        );
        write(&files.env, &env)?;
        let (http, https) = (self.http_host(), self.https_host());
        let cli = format!(
            "# For the terraform and tofu programs: export TF_CLI_CONFIG_FILE={}\n\
             # Plain HTTP on this host needs the services spelled out.\n\
             host \"{http}\" {{\n  services = {{\n    \"tfe.v2\"   = \"http://{http}/api/v2/\"\n    \"tfe.v2.1\" = \"http://{http}/api/v2/\"\n    \"tfe.v2.2\" = \"http://{http}/api/v2/\"\n    \
             \"state.v2\" = \"http://{http}/api/v2/\"\n  }}\n}}\n\
             credentials \"{http}\" {{\n  token = \"{token}\"\n}}\n\
             credentials \"{https}\" {{\n  token = \"{token}\"\n}}\n",
            files.cli.display()
        );
        write(&files.cli, &cli)?;
        Ok(files)
    }

    /// Ends the server. What it does beside answering has `limit` to come to its end.
    ///
    /// # Errors
    /// When it had ended before, because a listener failed.
    pub async fn end(self, limit: Duration) -> Result<(), Error> {
        self.end.drain.cancel();
        let served = self.serving.await;
        self.end.finished(limit).await;
        match served {
            Ok(result) => Ok(result?),
            Err(panic) => Err(Error::Serve(serve::Error::Serve { source: io::Error::other(panic) })),
        }
    }
}

/// Files that tell others how to reach the host; both hold the administrator's token.
#[derive(Debug, Clone)]
pub struct ConnectionFiles {
    pub env: PathBuf,
    pub cli: PathBuf,
}

/// The wanted port, which must be free; else the last one or the usual one, or any free one.
fn bind(wanted: Option<u16>, last: Option<u16>, usual: u16, speaks: Speaks) -> Result<Listener, Error> {
    let loopback = |port| SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port);
    if let Some(port) = wanted {
        return Ok(Listener::bind(loopback(port), speaks)?);
    }
    for port in [last.unwrap_or(usual), usual] {
        if let Ok(listener) = Listener::bind(loopback(port), speaks.clone()) {
            return Ok(listener);
        }
    }
    Ok(Listener::bind(loopback(0), speaks)?)
}

fn read_ports(path: &Path) -> Option<Ports> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

/// The token in `path`, made at the first start.
fn admin_token(path: &Path) -> Result<SecretString, Error> {
    match fs::read_to_string(path) {
        Ok(text) if !text.trim().is_empty() => return Ok(SecretString::from(text.trim())),
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            return Err(Error::Read { path: path.display().to_string(), source });
        }
        _ => {}
    }
    let token = access::new_secret(TokenKind::User);
    write(path, token.expose_secret())?;
    Ok(token)
}

fn write(path: &Path, text: &str) -> Result<(), Error> {
    write_private(path, text.as_bytes()).map_err(|source| Error::Write { path: path.display().to_string(), source })
}
