//! `terrapool up`: the whole system on one host. The control plane on SQLite ([`host`]), every manifest of a
//! directory kept in line ([`manifests`], [`follow`]), and a local agent for each pool ([`agents`]).

pub mod agents;
pub mod follow;
pub mod host;
pub mod manifests;
pub mod memory;

use std::{collections::BTreeMap, path::PathBuf};

use tokio::sync::{mpsc, watch};
use url::Url;

use crate::{
    agent::{engine::Engines, executor::Choice},
    client::iacp::ControlPlane,
    clock::Clock,
    http,
    shutdown::Shutdown,
    sync::{Context, Seam},
};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("could not start the control plane")]
    Host(#[from] host::Error),
    #[error(transparent)]
    Memory(#[from] memory::Error),
    #[error("could not set up the connection to the control plane")]
    Http(#[from] http::Error),
    #[error("{path} is no directory that can be read")]
    Directory { path: String, source: std::io::Error },
    #[error("`{text}` is no address")]
    Address { text: String, source: url::ParseError },
}

/// How `up` is started.
#[derive(Debug, Clone)]
pub struct Options {
    /// The manifests.
    pub dir: PathBuf,
    pub host: host::Options,
    pub executor: Choice,
    /// Where terraform and tofu are looked for.
    pub engines: Engines,
    /// Labels of this host beside those of its operating system.
    pub node_labels: BTreeMap<String, String>,
}

/// Environment that exists when no manifest names one.
const DEFAULT_ENVIRONMENT: &str = "default";

/// A running system.
pub struct Up {
    pub host: host::Host,
    pub files: host::ConnectionFiles,
    /// The environment that `connection.env` names: the first one of the manifests.
    pub organization: String,
    pub events: mpsc::UnboundedReceiver<follow::Event>,
}

/// Starts the whole system. With `shutdown.drain` all of it ends but the control plane, which those who end still need.
///
/// # Errors
/// When the data directory, the ports or the manifests' directory cannot be used.
pub async fn start(options: Options, shutdown: &Shutdown) -> Result<Up, Error> {
    let Options { dir, host, executor, engines, node_labels } = options;
    let files =
        manifests::fingerprint(&dir).map_err(|source| Error::Directory { path: dir.display().to_string(), source })?;
    let organization = first_environment(&manifests::read(&files)).unwrap_or_else(|| DEFAULT_ENVIRONMENT.to_owned());
    let data = host.data.clone();
    let trace = host.trace.clone();
    let host = host::Host::start(host, shutdown).await?;
    let files = host.write_connection_files(&organization)?;

    let server: Url = host.address.parse().map_err(|source| Error::Address { text: host.address.clone(), source })?;
    let control_plane = ControlPlane::new(server.clone(), host.token.clone(), http::client(Some(&host.ca_file))?);
    let (events_in, events) = mpsc::unbounded_channel();
    let (agents_in, agents_out) = watch::channel(agents::Wanted::new());
    let os_release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let labels = agents::host_labels(&os_release, &node_labels);

    ensure_environment(&control_plane, &organization).await;
    let follower = follow::Follower {
        dir,
        sync: Context { control_plane, seam: Seam::default(), clock: Clock::real(), create_environments: true },
        memory: memory::Memory::load(&data.join("up.json"))?,
        labels: labels.clone(),
        events: events_in.clone(),
        agents: agents_in,
    };
    shutdown.spawn(follow::follow(follower, shutdown.clone()));
    let settings = agents::Settings {
        server,
        ca_file: Some(host.ca_file.clone()),
        data: data.join("agents"),
        executor,
        engines,
        labels,
        trace,
    };
    shutdown.spawn(agents::keep(settings, agents_out, events_in, shutdown.clone()));
    Ok(Up { host, files, organization, events })
}

/// The environment that `connection.env` names exists, whether or not a manifest needs it.
async fn ensure_environment(control_plane: &ControlPlane, name: &str) {
    let made = match control_plane.environment_by_name(name).await {
        Ok(None) => control_plane.create_environment(name).await.map(drop),
        found => found.map(drop),
    };
    if let Err(error) = made {
        tracing::warn!(error = %crate::telemetry::Chain(&error), name, "could not make the environment");
    }
}

/// The environment that the manifests speak of first: a link's, else a pool's scope.
fn first_environment(manifests: &manifests::Manifests) -> Option<String> {
    use manifests::Spec;
    let specs = || manifests.objects.values().map(|object| &object.spec);
    let of_link = specs().find_map(|spec| match spec {
        Spec::Link(link) => link.workspace.environment.clone(),
        Spec::Pool(_) => None,
    });
    of_link.or_else(|| {
        specs().find_map(|spec| match spec {
            Spec::Pool(pool) => pool.scope.environment.clone(),
            Spec::Link(_) => None,
        })
    })
}
