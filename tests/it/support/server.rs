//! The real control plane on loopback: plain HTTP and HTTPS side by side, on free ports, with the real clock.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use reqwest::{Client, Method};
use secrecy::SecretString;
use serde_json::{Value, json};
use tempfile::TempDir;
use terrapool::{
    clock::Clock,
    http,
    server::{
        accept::Speaks,
        app::Policy,
        serve::{self, Config, Error, Listener},
        tls::own_ca,
    },
    shutdown::Shutdown,
};
use tokio::task::JoinHandle;

use super::{app::ADMIN_TOKEN, cli::Access};

/// A server in this process. Its data outlive [`Server::restart`].
pub struct Server {
    http: SocketAddr,
    https: SocketAddr,
    ca: PathBuf,
    pub data: TempDir,
    shutdown: Shutdown,
    task: JoinHandle<Result<(), Error>>,
    client: Client,
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
    pub pool_token: String,
}

impl Server {
    pub async fn start() -> Self {
        let data = tempfile::tempdir().unwrap();
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let (http, https, ca, shutdown, task) = open(&data, any, any).await;
        Self { http, https, ca, data, shutdown, task, client: http::client(None).unwrap() }
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

    /// A request of the administrator, which must succeed; null when the answer has no body.
    pub async fn request(&self, method: Method, path: &str, body: &Value) -> Value {
        let request = self.client.request(method.clone(), format!("{}{path}", self.address())).bearer_auth(ADMIN_TOKEN);
        let request = request.header("content-type", "application/vnd.api+json");
        let request = if body.is_null() { request } else { request.body(body.to_string()) };
        let response = request.send().await.unwrap_or_else(|error| panic!("{method} {path}: {error:?}"));
        let status = response.status();
        let text = response.text().await.unwrap();
        assert!(status.is_success(), "{method} {path}: {status} {text}");
        if text.is_empty() { Value::Null } else { serde_json::from_str(&text).unwrap() }
    }

    pub async fn get(&self, path: &str) -> Value {
        self.request(Method::GET, path, &Value::Null).await
    }

    /// An environment of this name, with a pool that is the default of the account.
    pub async fn place(&self, organization: &str) -> Place {
        let environment = json!({"data": {"type": "environments", "attributes": {"name": organization}}});
        self.post("environments", &environment).await;
        let pool = json!({"data": {"type": "agent-pools", "attributes": {"name": "private", "default": true}}});
        let pool = id(&self.post("agent-pools", &pool).await);
        let token = json!({"data": {"type": "access-tokens", "attributes": {"description": "agents"}}});
        let token = self.post(&format!("agent-pools/{pool}/access-tokens"), &token).await;
        let pool_token = token["data"]["attributes"]["token"].as_str().unwrap().to_owned();
        Place { organization: organization.to_owned(), pool_token }
    }

    async fn post(&self, path: &str, body: &Value) -> Value {
        self.request(Method::POST, &format!("/api/iacp/v3/{path}"), body).await
    }
}

fn id(document: &Value) -> String {
    document["data"]["id"].as_str().unwrap_or_else(|| panic!("no id in {document}")).to_owned()
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
