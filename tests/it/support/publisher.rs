//! A publisher of engines: makes releases, signs them with a key of its own, and serves them on loopback.

use std::{
    collections::BTreeMap,
    io::Write,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Request, State},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use pgp::{
    composed::{ArmorOptions, DetachedSignature, KeyType, SecretKeyParamsBuilder, SignedPublicKey, SignedSecretKey},
    crypto::hash::HashAlgorithm,
    ser::Serialize,
    types::Password,
};
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use terrapool::agent::engine::{Engines, Releases, Settings};
use tokio::task::JoinHandle;

/// As the releases of this machine are called.
pub fn architecture() -> &'static str {
    if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }
}

pub fn archive_name(version: &str) -> String {
    format!("terraform_{version}_linux_{}.zip", architecture())
}

/// A terraform that says which version it is and does nothing else.
pub fn script(version: &str) -> String {
    format!("#!/bin/sh\necho 'Terraform v{version}'\n")
}

/// A zip of these files.
pub fn zip(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, content) in files {
        zip.start_file(*name, zip::write::SimpleFileOptions::default()).unwrap();
        zip.write_all(content).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Signs releases.
pub struct Signer(SignedSecretKey);

impl Signer {
    pub fn new() -> Self {
        let mut key = SecretKeyParamsBuilder::default();
        key.key_type(KeyType::Ed25519Legacy).can_certify(true).can_sign(true).primary_user_id("Test".into());
        Self(key.build().unwrap().generate(rand_08::thread_rng()).unwrap())
    }

    pub fn sign(&self, content: &[u8]) -> Vec<u8> {
        let key = &self.0.primary_key;
        let rng = rand_08::thread_rng();
        let signed =
            DetachedSignature::sign_binary_data(rng, key, &Password::empty(), HashAlgorithm::Sha256, content).unwrap();
        signed.to_bytes().unwrap()
    }

    /// The public key in armor.
    pub fn public(&self) -> String {
        SignedPublicKey::from(self.0.clone()).to_armored_string(ArmorOptions::default()).unwrap()
    }
}

#[derive(Default)]
struct Shop {
    files: BTreeMap<String, Bytes>,
    asked: Vec<String>,
    /// A file of which half is sent, and then nothing.
    stuck: Option<String>,
}

/// Releases of terraform below `http://127.0.0.1:…/terraform/<version>/`.
pub struct Publisher {
    pub url: String,
    pub key: PathBuf,
    pub signer: Signer,
    shop: Arc<Mutex<Shop>>,
    task: JoinHandle<()>,
    _dir: TempDir,
}

impl Publisher {
    pub async fn open() -> Self {
        let (signer, dir) = (Signer::new(), tempfile::tempdir().unwrap());
        let key = dir.path().join("key.asc");
        std::fs::write(&key, signer.public()).unwrap();
        let shop = Arc::<Mutex<Shop>>::default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = Router::new().fallback(serve).with_state(shop.clone());
        let task = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { url, key, signer, shop, task, _dir: dir }
    }

    /// A good release of this program.
    pub fn release(&self, version: &str, program: &str) {
        self.release_of(version, zip(&[("LICENSE.txt", b"free"), ("terraform", program.as_bytes())]));
    }

    /// A signed release of any archive.
    pub fn release_of(&self, version: &str, archive: Vec<u8>) {
        let sums = format!("{}  {}\n", sha256(&archive), archive_name(version));
        let name = format!("terraform_{version}_SHA256SUMS");
        self.put(version, &format!("{name}.sig"), self.signer.sign(sums.as_bytes()));
        self.put(version, &name, sums.into_bytes());
        self.put(version, &archive_name(version), archive);
    }

    pub fn put(&self, version: &str, file: &str, content: Vec<u8>) {
        self.shop.lock().unwrap().files.insert(format!("/terraform/{version}/{file}"), content.into());
    }

    pub fn remove(&self, version: &str, file: &str) {
        self.shop.lock().unwrap().files.remove(&format!("/terraform/{version}/{file}"));
    }

    /// From now on this file ends in the middle, and the connection does not.
    pub fn stick(&self, file: Option<String>) {
        self.shop.lock().unwrap().stuck = file;
    }

    /// How often a file was asked for.
    pub fn asked(&self, file: &str) -> usize {
        self.shop.lock().unwrap().asked.iter().filter(|path| path.ends_with(file)).count()
    }

    pub fn asked_at_all(&self) -> usize {
        self.shop.lock().unwrap().asked.len()
    }

    /// What an agent with a cache there is given.
    pub fn settings(&self, cache: &Path) -> Settings {
        let origin = self.url.parse().unwrap();
        Settings { origin, keys: vec![self.key.clone()], ..Settings::new(cache.to_owned()) }
    }

    /// Engines of an agent that has none but these.
    pub fn engines(&self, cache: &Path) -> Engines {
        engines(self.settings(cache))
    }
}

pub fn engines(settings: Settings) -> Engines {
    Engines::default().with_releases(Arc::new(Releases::new(settings).unwrap()))
}

impl Drop for Publisher {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(State(shop): State<Arc<Mutex<Shop>>>, request: Request) -> Response {
    let path = request.uri().path().to_owned();
    let (content, stuck) = {
        let mut shop = shop.lock().unwrap();
        shop.asked.push(path.clone());
        let stuck = shop.stuck.as_ref().is_some_and(|file| path.ends_with(file));
        (shop.files.get(&path).cloned(), stuck)
    };
    let Some(content) = content else { return StatusCode::NOT_FOUND.into_response() };
    if !stuck {
        return content.into_response();
    }
    let half = content.slice(..content.len() / 2);
    let first = futures::stream::iter([Ok::<_, std::io::Error>(half)]);
    let rest = futures::stream::once(async {
        tokio::time::sleep(Duration::from_secs(3600)).await;
        Ok(Bytes::new())
    });
    Body::from_stream(futures::StreamExt::chain(first, rest)).into_response()
}
