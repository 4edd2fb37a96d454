//! The only place that builds HTTP clients: one TLS provider, time-outs, user agent.

use std::{path::Path, sync::Once, time::Duration};

use url::{Host, Url};

/// Time to establish a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Deadline of a request that sets none of its own.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

const USER_AGENT: &str = concat!("terrapool/", env!("CARGO_PKG_VERSION"));

/// Whether tokens could be read on the way to `url`: it is not https, and leads out of this machine.
#[must_use]
pub fn is_readable_on_the_way(url: &Url) -> bool {
    let loopback = match url.host() {
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        Some(Host::Domain(name)) => name == "localhost",
        None => false,
    };
    url.scheme() != "https" && !loopback
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("could not read the CA certificates in {path}")]
    ReadCa { path: String, source: std::io::Error },
    #[error("{path} holds no usable PEM certificate")]
    ParseCa { path: String, source: reqwest::Error },
    #[error("could not set up the HTTP client")]
    Build { source: reqwest::Error },
}

/// Installs the process-wide TLS provider; harmless when called again.
pub fn install_tls_provider() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // Err: somebody installed one before us, which is as good.
        drop(rustls::crypto::ring::default_provider().install_default());
    });
}

/// A client that trusts the system's certificates, and those in the PEM file `extra_ca`.
///
/// # Errors
/// When the file cannot be read or holds no certificates.
pub fn client(extra_ca: Option<&Path>) -> Result<reqwest::Client, Error> {
    let pem = extra_ca.map(read_ca).transpose()?;
    client_with_ca(pem.as_ref().map(|(name, pem)| (name.as_str(), pem.as_slice())))
}

/// As [`client`], with the certificate of who answers beside each answer, and without following redirects.
///
/// # Errors
/// As [`client`].
pub fn probing_client(extra_ca: Option<&Path>) -> Result<reqwest::Client, Error> {
    install_tls_provider();
    let builder = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).tls_info(true);
    let pem = extra_ca.map(read_ca).transpose()?;
    finish(builder, pem.as_ref().map(|(name, pem)| (name.as_str(), pem.as_slice())))
}

/// What the file is called, and its content.
fn read_ca(path: &Path) -> Result<(String, Vec<u8>), Error> {
    let name = path.display().to_string();
    match std::fs::read(path) {
        Ok(pem) => Ok((name, pem)),
        Err(source) => Err(Error::ReadCa { path: name, source }),
    }
}

/// A client for plain HTTP: it reads no certificates, of which a system has many, and speaks to nobody over TLS.
///
/// # Errors
/// When the client cannot be set up.
pub fn plain_client() -> Result<reqwest::Client, Error> {
    install_tls_provider();
    let builder =
        reqwest::Client::builder().connect_timeout(CONNECT_TIMEOUT).timeout(REQUEST_TIMEOUT).user_agent(USER_AGENT);
    builder.tls_certs_only([]).build().map_err(|source| Error::Build { source })
}

/// A client that trusts the system's certificates, and those of `extra_ca`: what they are called, and their PEM text.
///
/// # Errors
/// When the text holds no certificates.
pub fn client_with_ca(extra_ca: Option<(&str, &[u8])>) -> Result<reqwest::Client, Error> {
    install_tls_provider();
    finish(reqwest::Client::builder(), extra_ca)
}

fn finish(builder: reqwest::ClientBuilder, extra_ca: Option<(&str, &[u8])>) -> Result<reqwest::Client, Error> {
    let mut builder = builder.connect_timeout(CONNECT_TIMEOUT).timeout(REQUEST_TIMEOUT).user_agent(USER_AGENT);
    if let Some((name, pem)) = extra_ca {
        let certificates = reqwest::Certificate::from_pem_bundle(pem)
            .map_err(|source| Error::ParseCa { path: name.to_owned(), source })?;
        builder = builder.tls_certs_merge(certificates);
    }
    builder.build().map_err(|source| Error::Build { source })
}
