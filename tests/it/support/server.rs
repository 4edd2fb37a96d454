//! The real control plane on loopback: plain HTTP and HTTPS side by side, on free ports, with the real clock.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use secrecy::SecretString;
use serde_json::Value;
use tempfile::TempDir;
use terrapool::{
    clock::Clock,
    server::{
        accept::Speaks,
        app::Policy,
        serve::{self, Config, Error, Listener},
        tls::own_ca,
    },
    shutdown::Shutdown,
};
use tokio::task::JoinHandle;

use super::{admin::Admin, app::ADMIN_TOKEN, cli::Access};

/// A server in this process. Its data outlive [`Server::restart`].
pub struct Server {
    http: SocketAddr,
    https: SocketAddr,
    ca: PathBuf,
    pub data: TempDir,
    shutdown: Shutdown,
    task: JoinHandle<Result<(), Error>>,
    admin: Admin,
}

/// How clients reach the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    Http,
    Https,
}

/// An environment with a pool whose runs its workspaces get.
#[derive(Debug, Clone)]
pub struct Place {
    /// The environment's name: the CLI's organization.
    pub organization: String,
    pub pool: String,
    pub pool_token: String,
}

impl Server {
    pub async fn start() -> Self {
        let data = tempfile::tempdir().unwrap();
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let (http, https, ca, shutdown, task) = open(&data, any, any).await;
        let admin = Admin::new(format!("http://localhost:{}", http.port()), ADMIN_TOKEN.to_owned());
        Self { http, https, ca, data, shutdown, task, admin }
    }

    /// Stops in good order and starts again on the same data and ports.
    pub async fn restart(&mut self) {
        self.stop().await;
        let (_, _, _, shutdown, task) = open(&self.data, self.http, self.https).await;
        (self.shutdown, self.task) = (shutdown, task);
    }

    /// Stops in good order; nothing listens any more.
    pub async fn stop(&mut self) {
        self.shutdown.drain.cancel();
        (&mut self.task).await.unwrap().unwrap();
        assert!(self.shutdown.finished(Duration::from_secs(10)).await, "the server's tasks did not end");
    }

    pub fn address(&self) -> String {
        format!("http://localhost:{}", self.http.port())
    }

    /// What the CLI of an administrator needs.
    pub fn access(&self, transport: Transport) -> Access {
        let (address, ca) = match transport {
            Transport::Http => (self.http, None),
            Transport::Https => (self.https, Some(self.ca.clone())),
        };
        Access { host: format!("localhost:{}", address.port()), token: ADMIN_TOKEN.to_owned(), ca }
    }

    pub async fn get(&self, path: &str) -> Value {
        self.admin.get(path).await
    }

    /// An environment of this name, with a pool that is the default of the account.
    pub async fn place(&self, organization: &str) -> Place {
        self.admin.place(organization).await
    }
}

type Opened = (SocketAddr, SocketAddr, PathBuf, Shutdown, JoinHandle<Result<(), Error>>);

async fn open(data: &TempDir, http: SocketAddr, https: SocketAddr) -> Opened {
    let own = own_ca(&data.path().join("tls"), &["localhost".to_owned()]).unwrap();
    let tls = own.server.load().await.unwrap();
    let config = Config {
        data: data.path().join("server"),
        database: None,
        public_url: None,
        admin_token: Some(SecretString::from(ADMIN_TOKEN)),
        policy: Policy::default(),
        trace: Default::default(),
    };
    let app = serve::open(config, Clock::real()).await.unwrap();
    let listeners =
        vec![Listener::bind(http, Speaks::Plain).unwrap(), Listener::bind(https, Speaks::Tls(tls)).unwrap()];
    let (http, https) = (listeners[0].address(), listeners[1].address());
    let shutdown = Shutdown::new();
    let task = {
        let shutdown = shutdown.clone();
        tokio::spawn(async move { serve::serve(app, listeners, &shutdown).await })
    };
    (http, https, own.ca, shutdown, task)
}
