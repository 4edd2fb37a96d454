//! The provider of these tests (tests/provider), and mirrors of it.

use std::{
    fs,
    io::Write,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use axum::{Json, Router, http::Method, routing::get};
use bytes::Bytes;
use serde_json::json;
use tempfile::TempDir;
use terrapool::server::tls::own_ca;

use super::{
    cli::cache,
    publisher::{architecture, sha256},
};

pub const VERSION: &str = "1.2.3";

/// Below a mirror's root, and below a plugin cache directory.
pub const FOLDER: &str = "registry.terrapool.test/test/probe";

/// The program, as `tests/run` built it: its folder is named after its source.
pub fn program() -> PathBuf {
    let source = &sha256(include_bytes!("../../provider/main.go"))[..12];
    let path = cache().join("provider").join(source).join(format!("terraform-provider-probe_v{VERSION}"));
    assert!(path.is_file(), "{} is missing: let tests/run build it", path.display());
    path
}

fn package_name() -> String {
    format!("terraform-provider-probe_{VERSION}_linux_{}.zip", architecture())
}

fn package() -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let options = zip::write::SimpleFileOptions::default()
        .compression_method(zip::CompressionMethod::Stored)
        .unix_permissions(0o755);
    zip.start_file(format!("terraform-provider-probe_v{VERSION}"), options).unwrap();
    zip.write_all(&fs::read(program()).unwrap()).unwrap();
    zip.finish().unwrap().into_inner()
}

/// The configuration that uses it: a resource with these attributes.
pub fn configuration(attributes: &str) -> String {
    format!(
        r#"terraform {{
  required_providers {{
    probe = {{ source = "registry.terrapool.test/test/probe" }}
  }}
}}
variable "secret" {{ default = "" }}
resource "probe_act" "first" {{}}
resource "probe_act" "a" {{
  depends_on = [probe_act.first]
  {attributes}
}}
"#
    )
}

/// A directory with the package as `terraform providers mirror` puts it there.
pub fn packed() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join(FOLDER);
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join(package_name()), package()).unwrap();
    open_to_all(dir.path());
    dir
}

/// A directory with the program itself, which engines use where it is; everybody may write it.
pub fn unpacked() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join(FOLDER).join(VERSION).join(format!("linux_{}", architecture()));
    fs::create_dir_all(&folder).unwrap();
    fs::copy(program(), folder.join(format!("terraform-provider-probe_v{VERSION}"))).unwrap();
    open_to_all(dir.path());
    dir
}

fn open_to_all(path: &Path) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o777)).unwrap();
    if path.is_dir() {
        fs::read_dir(path).unwrap().for_each(|entry| open_to_all(&entry.unwrap().path()));
    }
}

/// A network mirror on HTTPS, with a CA of its own.
pub struct NetworkMirror {
    pub url: String,
    pub ca: PathBuf,
    /// The hash of the archive, as in lock files.
    pub zh: String,
    /// How often the package itself was asked for.
    fetched: Arc<AtomicUsize>,
    handle: axum_server::Handle<std::net::SocketAddr>,
    _dir: TempDir,
}

impl NetworkMirror {
    /// Reached at this address of this machine.
    pub async fn open(host: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let own = own_ca(dir.path(), &[host.to_owned()]).unwrap();
        let tls = own.server.load().await.unwrap();
        let listener = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let url = format!("https://{host}:{}/", listener.local_addr().unwrap().port());
        let archive = Bytes::from(package());
        let fetched = Arc::<AtomicUsize>::default();
        let counted = fetched.clone();
        let versions = json!({"versions": {VERSION: {}}});
        let platform = format!("linux_{}", architecture());
        let hash = format!("zh:{}", sha256(&archive));
        let zh = hash.clone();
        let archives = json!({"archives": {platform: {"url": package_name(), "hashes": [hash]}}});
        let router = Router::new()
            .route(&format!("/{FOLDER}/index.json"), get(async move || Json(versions)))
            .route(&format!("/{FOLDER}/{VERSION}.json"), get(async move || Json(archives)))
            .route(
                &format!("/{FOLDER}/{}", package_name()),
                get(async move |method: Method| {
                    // terraform asks for the head first.
                    if method == Method::GET {
                        counted.fetch_add(1, Ordering::Relaxed);
                    }
                    archive
                }),
            );
        let handle = axum_server::Handle::new();
        let server = axum_server::from_tcp_rustls(listener, tls).unwrap().handle(handle.clone());
        tokio::spawn(server.serve(router.into_make_service()));
        Self { url, ca: own.ca, zh, fetched, handle, _dir: dir }
    }

    pub fn fetched(&self) -> usize {
        self.fetched.load(Ordering::Relaxed)
    }
}

impl Drop for NetworkMirror {
    fn drop(&mut self) {
        self.handle.shutdown();
    }
}
