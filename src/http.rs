//! The only place that builds HTTP clients: one TLS provider, time-outs, user agent.

use std::{path::Path, sync::Once, time::Duration};

/// Time to establish a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Deadline of a request that sets none of its own.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

const USER_AGENT: &str = concat!("terrapool/", env!("CARGO_PKG_VERSION"));

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
    let Some(path) = extra_ca else { return client_with_ca(None) };
    let name = || path.display().to_string();
    let pem = std::fs::read(path).map_err(|source| Error::ReadCa { path: name(), source })?;
    client_with_ca(Some((&name(), &pem)))
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
    let mut builder =
        reqwest::Client::builder().connect_timeout(CONNECT_TIMEOUT).timeout(REQUEST_TIMEOUT).user_agent(USER_AGENT);
    if let Some((name, pem)) = extra_ca {
        let certificates = reqwest::Certificate::from_pem_bundle(pem)
            .map_err(|source| Error::ParseCa { path: name.to_owned(), source })?;
        builder = builder.tls_certs_merge(certificates);
    }
    builder.build().map_err(|source| Error::Build { source })
}
