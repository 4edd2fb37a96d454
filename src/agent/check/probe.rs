//! Finds the facts out. Every probe has a deadline, and they go on side by side.

use std::{
    io,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use reqwest::Url;
use secrecy::SecretString;
use tokio::{net::TcpStream, time::timeout};

use super::facts::{Answer, Cgroup, Data, Facts, NoConnection, Proxy, TlsTrouble};
use crate::{
    agent::{
        AgentConfig,
        engine::Engines,
        executor::{Choice, look},
    },
    api::job::{Engine, EngineKind},
    client::agent::{AgentClient, Error, Head},
    clock::Clock,
    http,
    telemetry::Chain,
};

/// Longest time for a name, and for a connection.
const STEP: Duration = Duration::from_secs(5);

/// Longest time for an answer from where engines are downloaded.
const ANSWER: Duration = Duration::from_secs(10);

/// What is looked at.
#[derive(Debug, Clone)]
pub struct Subject {
    /// As the agent would be started; its token is not used.
    pub config: AgentConfig,
    pub token: Option<SecretString>,
    pub token_file: Option<PathBuf>,
    /// Through which the environment says that the control plane is reached.
    pub proxy: Option<Proxy>,
}

/// Finds out what there is. Takes half a minute at most.
///
/// # Errors
/// When the CA file cannot be used.
pub async fn look(subject: &Subject) -> Result<Facts, http::Error> {
    let Subject { config, token, token_file, proxy } = subject;
    let url = &config.server;
    let client = http::probing_client(config.ca_file.as_deref())?;
    let client = AgentClient::new(client, url, SecretString::from(""));
    // Without a token the rest of the way is looked at all the same.
    let asked = token.clone().unwrap_or_else(|| SecretString::from("none"));
    let executor = &config.executor;
    let docker = async {
        match executor.choice {
            Choice::Auto | Choice::Docker => Some(look::look(executor.docker_host.as_deref()).await),
            Choice::Sidecar | Choice::Process => None,
        }
    };
    let image = async {
        match executor.choice {
            Choice::Auto | Choice::Docker => {
                let (host, name) = (executor.docker_host.as_deref(), executor.default_image.as_deref());
                look::look_for_image(host, name, &executor.isolation).await
            }
            Choice::Sidecar | Choice::Process => None,
        }
    };
    let files = async {
        let data = config.data.clone();
        tokio::task::spawn_blocking(move || data_dir(&data)).await
    };
    let ((addresses, connection), answer, docker, image, engines, sources, data) = tokio::join!(
        way(url, proxy.as_ref()),
        client.ask_for_pool(&asked),
        docker,
        image,
        engines(&executor.engines),
        executor.engines.sources(ANSWER),
        files
    );
    let now_ms = Clock::real().now_ms();
    let (head, answer) = match answer {
        Ok((head, Ok(pool))) => (head, Answer::Pool(pool)),
        Ok((head, Err(Error::Unauthorized { detail }))) => (head, Answer::Unauthorized(detail)),
        Ok((head, Err(Error::Upgrade { detail }))) => (head, Answer::Upgrade(detail)),
        Ok((head, Err(error))) => (head, Answer::Other(Chain(&error).to_string())),
        Err(error) => (Head::default(), no_answer(&error)),
    };
    let read = |path: &str| std::fs::read_to_string(path).ok();
    Ok(Facts {
        url: url.clone(),
        has_token: token.is_some(),
        token_file_mode: token_file.as_deref().and_then(|path| Some(path.metadata().ok()?.permissions().mode())),
        proxy: proxy.clone(),
        addresses,
        connection,
        certificate_ends: head.certificate.as_deref().and_then(certificate_end),
        clock_ahead: clock_ahead(now_ms, &head, &answer),
        answer,
        now: now_ms / 1000,
        data: data.unwrap_or_else(|error| Data {
            path: config.data.clone(),
            free: None,
            writable: Err(error.to_string()),
        }),
        executor: executor.choice,
        is_root: rustix::process::geteuid().is_root(),
        docker,
        image,
        engines,
        sources,
        cgroup: Cgroup::of(read("/sys/fs/cgroup/cgroup.controllers").as_deref(), read("/proc/cgroups").as_deref()),
    })
}

type Way = (Result<Vec<String>, String>, Option<Result<(), NoConnection>>);

/// Name and connection of whom the agent connects to.
async fn way(url: &Url, proxy: Option<&Proxy>) -> Way {
    let own = (url.host_str().unwrap_or_default().trim_matches(['[', ']']).to_owned(), url.port_or_known_default());
    let (host, port) = match proxy {
        Some(proxy) => (proxy.host.clone(), proxy.port),
        None => (own.0, own.1.unwrap_or(443)),
    };
    let found = match timeout(STEP, tokio::net::lookup_host((host.as_str(), port))).await {
        Ok(Ok(found)) => found.collect::<Vec<_>>(),
        Ok(Err(error)) => return (Err(error.to_string()), None),
        Err(_) => return (Err(format!("no answer in {} s", STEP.as_secs())), None),
    };
    if found.is_empty() {
        return (Err("none is known".to_owned()), None);
    }
    let connection = match timeout(STEP, TcpStream::connect(found.as_slice())).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(match error.kind() {
            io::ErrorKind::ConnectionRefused => NoConnection::Refused,
            io::ErrorKind::TimedOut => NoConnection::TimedOut,
            _ => NoConnection::Other(error.to_string()),
        }),
        Err(_) => Err(NoConnection::TimedOut),
    };
    let mut addresses: Vec<String> = found.iter().map(|address| address.ip().to_string()).collect();
    addresses.dedup();
    (Ok(addresses), Some(connection))
}

fn no_answer(error: &Error) -> Answer {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(trouble) = tls_trouble(error) {
            return Answer::Tls(trouble);
        }
        cause = error.source();
    }
    Answer::None(Chain(error).to_string())
}

fn tls_trouble(error: &(dyn std::error::Error + 'static)) -> Option<TlsTrouble> {
    use rustls::{CertificateError as C, Error as E};
    // An I/O error says what the source of its cause is, not its cause, and may wrap another I/O error.
    let mut inner = error;
    while let Some(wrapped) = inner.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
        inner = wrapped;
    }
    let tls = inner.downcast_ref::<E>()?;
    Some(match tls {
        E::InvalidCertificate(C::UnknownIssuer) => TlsTrouble::UnknownIssuer,
        E::InvalidCertificate(C::NotValidForName | C::NotValidForNameContext { .. }) => TlsTrouble::WrongName,
        E::InvalidCertificate(C::Expired | C::ExpiredContext { .. }) => TlsTrouble::Expired,
        E::InvalidCertificate(C::NotValidYet | C::NotValidYetContext { .. }) => TlsTrouble::NotYetValid,
        E::InvalidMessage(_) => TlsTrouble::NoTls,
        other => TlsTrouble::Other(other.to_string()),
    })
}

/// Seconds since 1970.
fn certificate_end(der: &[u8]) -> Option<i64> {
    let (_, certificate) = x509_parser::parse_x509_certificate(der).ok()?;
    Some(certificate.validity().not_after.timestamp())
}

/// In seconds. The time in the answer is exact, the one in its head has whole seconds.
fn clock_ahead(now_ms: i64, head: &Head, answer: &Answer) -> Option<i64> {
    if let Answer::Pool(pool) = answer {
        return Some((now_ms - pool.server_time_ms) / 1000);
    }
    let date = jiff::fmt::rfc2822::parse(head.date.as_deref()?).ok()?;
    Some(now_ms / 1000 - date.timestamp().as_second())
}

fn data_dir(path: &Path) -> Data {
    let existing = path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let disk = rustix::fs::statvfs(existing).ok();
    Data {
        path: path.to_owned(),
        free: disk.map(|disk| disk.f_bavail.saturating_mul(disk.f_frsize)),
        writable: try_to_write(existing).map_err(|error| format!("{}: {error}", existing.display())),
    }
}

fn try_to_write(dir: &Path) -> io::Result<()> {
    let probe = dir.join(format!(".terrapool-check-{}", std::process::id()));
    std::fs::DirBuilder::new().mode(0o700).create(&probe)?;
    std::fs::remove_dir(&probe)
}

async fn engines(engines: &Engines) -> Vec<String> {
    let mut found = Vec::new();
    for kind in [EngineKind::Terraform, EngineKind::OpenTofu] {
        let Some(path) = engines.find(&Engine { kind, version: None }).await else { continue };
        if let Some(version) = engines.version_at(&path, kind).await {
            found.push(format!("{} {version} at {}", kind.program(), path.display()));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_is_told_from_the_head_of_an_answer_that_is_no_pool() {
        let head = Head { date: Some("Sun, 06 Nov 1994 08:49:37 GMT".to_owned()), certificate: None };
        let answer = Answer::Unauthorized(String::new());
        assert_eq!(clock_ahead(784_111_777_000 + 42_000, &head, &answer), Some(42));
        assert_eq!(clock_ahead(0, &Head::default(), &answer), None);
    }

    #[test]
    fn the_end_of_a_certificate_is_read_from_it() {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap();
        params.not_after = rcgen::date_time_ymd(2030, 1, 2);
        let der = params.self_signed(&key).unwrap().der().to_vec();
        assert_eq!(certificate_end(&der), Some(1_893_542_400));
        assert_eq!(certificate_end(b"none"), None);
    }

    #[test]
    fn a_directory_that_is_not_there_yet_is_judged_by_where_it_would_be_made() {
        let dir = tempfile::tempdir().unwrap();
        let data = data_dir(&dir.path().join("a/b"));
        assert_eq!(data.writable, Ok(()));
        assert!(data.free.is_some());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        let no = data_dir(Path::new("/proc/terrapool"));
        assert!(no.writable.unwrap_err().starts_with("/proc: "));
    }
}
