//! What is found out about a host and its way to the control plane. Plain data.

use std::path::PathBuf;

use reqwest::Url;

use crate::{
    agent::{
        engine::Source,
        executor::{
            Choice,
            look::{DefaultImage, Sight},
        },
    },
    api::agent::PoolResponse,
};

/// Everything that [`super::judge`] goes by.
#[derive(Debug, Clone)]
pub struct Facts {
    /// Address of the control plane.
    pub url: Url,
    /// A token was given.
    pub has_token: bool,
    /// Permission bits of the token's file.
    pub token_file_mode: Option<u32>,
    /// Through which the control plane is reached.
    pub proxy: Option<Proxy>,
    /// Addresses of the control plane's host, or the proxy's; `Err`: why there are none.
    pub addresses: Result<Vec<String>, String>,
    /// To the control plane, or the proxy; absent: there was no address to try.
    pub connection: Option<Result<(), NoConnection>>,
    pub answer: Answer,
    /// When the control plane's certificate ends, in seconds since 1970.
    pub certificate_ends: Option<i64>,
    /// How far this host's clock is ahead of the control plane's, in seconds.
    pub clock_ahead: Option<i64>,
    /// This host's clock, in seconds since 1970.
    pub now: i64,
    pub data: Data,
    pub executor: Choice,
    /// This process is root's.
    pub is_root: bool,
    /// Absent where the executor needs no Docker.
    pub docker: Option<Sight>,
    /// Absent where runs have no image, or the engine could not be asked.
    pub image: Option<DefaultImage>,
    /// As `terraform 1.11.4 at /usr/bin/terraform`.
    pub engines: Vec<String>,
    /// What engines are downloaded from; empty: nothing is.
    pub sources: Vec<Source>,
    pub cgroup: Cgroup,
}

/// An HTTP proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proxy {
    pub host: String,
    pub port: u16,
}

/// Why no TCP connection was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NoConnection {
    Refused,
    TimedOut,
    Other(String),
}

/// What came of the question which pool the token is of.
#[derive(Debug, Clone)]
pub enum Answer {
    Pool(PoolResponse),
    /// The token is not accepted.
    Unauthorized(String),
    /// The control plane wants another version of the agent.
    Upgrade(String),
    /// Something answered that is no control plane, or an older one.
    Other(String),
    Tls(TlsTrouble),
    /// Nothing answered.
    None(String),
}

/// Why there was no TLS connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TlsTrouble {
    UnknownIssuer,
    WrongName,
    Expired,
    NotYetValid,
    /// The other side does not speak TLS.
    NoTls,
    Other(String),
}

/// The agent's data directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Data {
    pub path: PathBuf,
    /// Free bytes; absent: the file system does not say.
    pub free: Option<u64>,
    /// Files can be made in it, or it can be made; `Err`: why not.
    pub writable: Result<(), String>,
}

/// The host's control groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cgroup {
    /// 1 or 2; absent: there are none.
    pub version: Option<u8>,
    pub memory: bool,
    pub pids: bool,
}

impl Cgroup {
    /// From `/sys/fs/cgroup/cgroup.controllers` where version 2 is in use, else from `/proc/cgroups`.
    #[must_use]
    pub fn of(controllers: Option<&str>, proc_cgroups: Option<&str>) -> Self {
        if let Some(controllers) = controllers {
            let has = |name: &str| controllers.split_whitespace().any(|word| word == name);
            return Self { version: Some(2), memory: has("memory"), pids: has("pids") };
        }
        let Some(table) = proc_cgroups else { return Self { version: None, memory: false, pids: false } };
        // `name hierarchy groups enabled`
        let has = |name: &str| {
            table
                .lines()
                .map(|line| line.split_whitespace().collect::<Vec<_>>())
                .any(|fields| fields.first() == Some(&name) && fields.get(3) == Some(&"1"))
        };
        Self { version: Some(1), memory: has("memory"), pids: has("pids") }
    }
}
