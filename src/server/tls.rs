//! HTTPS: certificates from files, or from a CA of our own that is made in the data directory.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
};

use axum_server::tls_rustls::RustlsConfig;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};

use crate::{files::write_private, http};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("could not read the certificate {certificate} with the key {key}")]
    Load { certificate: String, key: String, source: io::Error },
    #[error("could not write {path}")]
    Write { path: String, source: io::Error },
    #[error("could not make a certificate")]
    Make { source: rcgen::Error },
}

/// A server certificate and its key, in files.
#[derive(Debug, Clone)]
pub struct Files {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl Files {
    /// What a listener needs.
    ///
    /// # Errors
    /// When a file cannot be read, or the two do not fit.
    pub async fn load(&self) -> Result<RustlsConfig, Error> {
        http::install_tls_provider();
        RustlsConfig::from_pem_file(&self.certificate, &self.key).await.map_err(|source| Error::Load {
            certificate: self.certificate.display().to_string(),
            key: self.key.display().to_string(),
            source,
        })
    }
}

/// A CA made by us, and a certificate of it for this host.
#[derive(Debug, Clone)]
pub struct OwnCa {
    /// What clients must trust.
    pub ca: PathBuf,
    pub server: Files,
}

/// The CA in `dir`, made at the first call, with a fresh server certificate for `names` (host names and
/// addresses) and this host. The CA's key is readable by its owner only.
///
/// # Errors
/// When files cannot be written, or certificates not be made.
pub fn own_ca(dir: &Path, names: &[String]) -> Result<OwnCa, Error> {
    let make = |source| Error::Make { source };
    let write = |path: &Path, source| Error::Write { path: path.display().to_string(), source };
    fs::create_dir_all(dir).map_err(|source| write(dir, source))?;
    let (ca, ca_key) = (dir.join("ca.pem"), dir.join("ca-key.pem"));
    let files = Files { certificate: dir.join("server.pem"), key: dir.join("server-key.pem") };

    let issuer = match fs::read_to_string(&ca_key) {
        Ok(key) if ca.exists() => Issuer::new(ca_params(), KeyPair::from_pem(&key).map_err(make)?),
        _ => {
            let key = KeyPair::generate().map_err(make)?;
            let certificate = ca_params().self_signed(&key).map_err(make)?;
            write_private(&ca_key, key.serialize_pem().as_bytes()).map_err(|source| write(&ca_key, source))?;
            fs::write(&ca, certificate.pem()).map_err(|source| write(&ca, source))?;
            Issuer::new(ca_params(), key)
        }
    };

    let mut params = CertificateParams::new(names.to_vec()).map_err(make)?;
    for address in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
        params.subject_alt_names.push(SanType::IpAddress(address));
    }
    params.subject_alt_names.push(SanType::DnsName("localhost".try_into().map_err(make)?));
    params.distinguished_name.push(DnType::CommonName, "terrapool");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let key = KeyPair::generate().map_err(make)?;
    let certificate = params.signed_by(&key, &issuer).map_err(make)?;
    write_private(&files.key, key.serialize_pem().as_bytes()).map_err(|source| write(&files.key, source))?;
    fs::write(&files.certificate, certificate.pem()).map_err(|source| write(&files.certificate, source))?;
    Ok(OwnCa { ca, server: files })
}

/// Always the same, so that the CA's key alone is enough to issue under its certificate again.
fn ca_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "Terrapool local CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}
