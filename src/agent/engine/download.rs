//! Fetches a release, and believes none of it before its signature and checksum are right.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    path::Path,
    time::{Duration, Instant},
};

use futures::StreamExt;
use reqwest::{Response, StatusCode, Url};
use sha2::{Digest, Sha256};

use super::{
    release::{Origin, Release, checksum_of},
    verify::{self, Keyring},
};
use crate::hash::hex;

/// Longest `SHA256SUMS` and signature.
const TEXT_LIMIT: u64 = 1 << 20;

/// Longest archive: the engines' have some 30 MB.
const ARCHIVE_LIMIT: u64 = 512 << 20;

/// Longest program in it.
const PROGRAM_LIMIT: u64 = 1 << 30;

/// Most files of an archive; a release has three.
const ENTRIES: usize = 1000;

/// A server that sends nothing for so long sends nothing any more.
const SILENCE: Duration = Duration::from_secs(30);

/// How often a download is told of that goes on.
const PROGRESS: Duration = Duration::from_secs(5);

/// Attempts at one file, when the server is away or busy.
const ATTEMPTS: u32 = 3;

/// Between attempts; the next one waits twice as long.
const PAUSE: Duration = Duration::from_millis(500);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "{url} cannot be reached; check the address, the proxy and the certificates, or name a mirror (--engine-mirror)"
    )]
    Unreachable { url: String, source: reqwest::Error },
    #[error("{url} does not exist (404): is there such a version? A mirror must have this very file")]
    NotFound { url: String },
    #[error("{url} answered {status}")]
    Status { url: String, status: StatusCode },
    #[error("{url} broke off; try again")]
    Broken { url: String, source: reqwest::Error },
    #[error("{url} sent nothing for {} s; try again, or name another mirror (--engine-mirror)", SILENCE.as_secs())]
    Silent { url: String },
    #[error("{url} has more than {limit} bytes")]
    TooLong { url: String, limit: u64 },
    #[error("{url} is not signed as it must be; a mirror that signs anew needs --engine-key")]
    Signature { url: String, source: verify::Error },
    #[error("{url} has no checksum of {file}: there is no release for this kind of machine")]
    NoChecksum { url: String, file: String },
    #[error(
        "{url} has the SHA-256 {found}, and the publisher signed {wanted}: it was changed or is incomplete; mend the mirror"
    )]
    Checksum { url: String, found: String, wanted: String },
    #[error("{url} is no archive of an engine: {why}")]
    Archive { url: String, why: String },
    #[error("{url} holds {found}, not the version it is named after; mend the mirror")]
    OtherVersion { url: String, found: String },
    #[error("could not write {path}")]
    Write { path: String, source: io::Error },
}

type Result<T, E = Error> = std::result::Result<T, E>;

/// The address without what may be secret in it.
pub(super) fn shown(url: &Url) -> String {
    let mut url = url.clone();
    // Err: an address that can have none.
    _ = url.set_username("");
    _ = url.set_password(None);
    url.set_query(None);
    url.into()
}

/// What a release is fetched with.
#[derive(Debug)]
pub(super) struct Fetcher<'a> {
    pub(super) client: &'a reqwest::Client,
    pub(super) origin: &'a Origin,
    pub(super) keys: &'a Keyring,
    /// Of one file. The caller's own deadline of the whole comes first.
    pub(super) deadline: Duration,
}

/// A program that is what its publisher signed.
#[derive(Debug)]
pub(super) struct Fetched {
    /// SHA-256 of the program, in hexadecimal.
    pub(super) sha256: String,
    /// Where it is from.
    pub(super) url: String,
}

impl Fetcher<'_> {
    /// Puts the release's program into the folder `to`, and nothing else.
    pub(super) async fn fetch(&self, release: &Release, to: &Path) -> Result<Fetched, super::Error> {
        let (checksums, signature, archive) = (release.checksums(), release.signature(), release.archive());
        let at = |file: &str| self.origin.url(release, file);
        let download = |source| super::Error::Download { release: release.to_string(), source: Box::new(source) };
        let (sums_url, archive_url) = (at(&checksums)?, at(&archive)?);
        let sums = self.text(&sums_url).await.map_err(download)?;
        let signature = self.text(&at(&signature)?).await.map_err(download)?;
        let signer = self
            .keys
            .verify(&signature, &sums)
            .map_err(|source| download(Error::Signature { url: shown(&sums_url), source }))?;
        let wanted = checksum_of(&String::from_utf8_lossy(&sums), &archive)
            .ok_or_else(|| download(Error::NoChecksum { url: shown(&sums_url), file: archive.clone() }))?;
        tracing::info!(engine = %release, url = shown(&archive_url), signer, "downloading");
        let url = shown(&archive_url);
        let zip = to.join("archive.zip");
        let found = self.file(&archive_url, &zip, release).await.map_err(download)?;
        if found != wanted {
            return Err(download(Error::Checksum { url, found, wanted }));
        }
        let program = release.kind.program();
        let (folder, from) = (to.to_owned(), url.clone());
        let unpacked = tokio::task::spawn_blocking(move || unpack(&zip, &folder, program, &from)).await;
        let unpacked = unpacked.unwrap_or_else(|panicked| Err(archive_error(&url, &panicked)));
        Ok(Fetched { sha256: unpacked.map_err(download)?, url })
    }

    async fn text(&self, url: &Url) -> Result<Vec<u8>> {
        let mut text = Vec::new();
        self.stream(url, TEXT_LIMIT, |part| {
            text.extend_from_slice(part);
            Ok(())
        })
        .await?;
        Ok(text)
    }

    /// Its SHA-256, in hexadecimal.
    async fn file(&self, url: &Url, to: &Path, release: &Release) -> Result<String> {
        let failed = |source| Error::Write { path: to.display().to_string(), source };
        let mut file = OpenOptions::new().write(true).create_new(true).open(to).map_err(failed)?;
        let (mut hasher, mut bytes, mut told) = (Sha256::new(), 0_u64, Instant::now());
        self.stream(url, ARCHIVE_LIMIT, |part| {
            hasher.update(part);
            bytes += part.len() as u64;
            if told.elapsed() >= PROGRESS {
                told = Instant::now();
                tracing::info!(engine = %release, bytes, "downloading");
            }
            file.write_all(part).map_err(failed)
        })
        .await?;
        Ok(hex(hasher.finalize()))
    }

    async fn stream(&self, url: &Url, limit: u64, mut take: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let response = self.open(url).await?;
        let name = || shown(url);
        if response.content_length().is_some_and(|length| length > limit) {
            return Err(Error::TooLong { url: name(), limit });
        }
        let (mut body, mut bytes) = (response.bytes_stream(), 0_u64);
        loop {
            let part = match tokio::time::timeout(SILENCE, body.next()).await {
                Err(_) => return Err(Error::Silent { url: name() }),
                Ok(None) => return Ok(()),
                Ok(Some(part)) => part.map_err(|source| Error::Broken { url: name(), source: source.without_url() })?,
            };
            bytes += part.len() as u64;
            if bytes > limit {
                return Err(Error::TooLong { url: name(), limit });
            }
            take(&part)?;
        }
    }

    async fn open(&self, url: &Url) -> Result<Response> {
        let mut pause = PAUSE;
        let mut attempt = 1;
        loop {
            let error = match self.client.get(url.clone()).timeout(self.deadline).send().await {
                Ok(response) if response.status().is_success() => return Ok(response),
                Ok(response) if response.status() == StatusCode::NOT_FOUND => {
                    return Err(Error::NotFound { url: shown(url) });
                }
                Ok(response) => {
                    let status = response.status();
                    let error = Error::Status { url: shown(url), status };
                    if !status.is_server_error() && status != StatusCode::TOO_MANY_REQUESTS {
                        return Err(error);
                    }
                    error
                }
                Err(source) => Error::Unreachable { url: shown(url), source: source.without_url() },
            };
            if attempt == ATTEMPTS {
                return Err(error);
            }
            attempt += 1;
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
    }
}

fn archive_error(url: &str, why: &dyn std::fmt::Display) -> Error {
    Error::Archive { url: url.to_owned(), why: why.to_string() }
}

/// Takes the program out of the archive, and removes the archive; the program's SHA-256.
fn unpack(zip: &Path, to: &Path, program: &str, url: &str) -> Result<String> {
    let bad = |why: &dyn std::fmt::Display| archive_error(url, why);
    let path = to.join(program);
    let failed = |source| Error::Write { path: path.display().to_string(), source };
    let file = File::open(zip).map_err(failed)?;
    let mut archive = zip::ZipArchive::new(io::BufReader::new(file)).map_err(|error| bad(&error))?;
    if archive.len() > ENTRIES {
        return Err(bad(&format!("it has {} files", archive.len())));
    }
    for index in 0..archive.len() {
        let entry = archive.by_index_raw(index).map_err(|error| bad(&error))?;
        if entry.enclosed_name().is_none() {
            let name = String::from_utf8_lossy(entry.name_raw()).into_owned();
            return Err(bad(&format!("its file `{}` leads out of it", name.escape_debug())));
        }
    }
    let entry = archive.by_name(program).map_err(|_| bad(&format!("it has no file `{program}`")))?;
    if !entry.is_file() || entry.is_symlink() {
        return Err(bad(&format!("its `{program}` is no file")));
    }
    if entry.size() > PROGRAM_LIMIT {
        return Err(bad(&format!("its `{program}` has more than {PROGRAM_LIMIT} bytes")));
    }
    let mut entry = entry.take(PROGRAM_LIMIT + 1);
    let mut out = OpenOptions::new().write(true).create_new(true).open(&path).map_err(failed)?;
    let (mut hasher, mut bytes) = (Sha256::new(), 0_u64);
    let mut buffer = vec![0; 256 * 1024];
    loop {
        let read = entry.read(&mut buffer).map_err(|error| bad(&error))?;
        if read == 0 {
            break;
        }
        bytes += read as u64;
        if bytes > PROGRAM_LIMIT {
            return Err(bad(&format!("its `{program}` has more than {PROGRAM_LIMIT} bytes")));
        }
        hasher.update(&buffer[..read]);
        out.write_all(&buffer[..read]).map_err(failed)?;
    }
    fs::remove_file(zip).map_err(failed)?;
    Ok(hex(hasher.finalize()))
}
