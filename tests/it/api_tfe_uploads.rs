//! Uploads of configurations: what is good becomes usable inside the request, what is hostile leaves nothing.

use std::{
    io::{self, Read, Write},
    path::Path,
};

use axum::{
    body::{Body, Bytes},
    http::{Method, Request},
};
use flate2::{Compression, write::GzEncoder};
use serde_json::{Value, json};
use tar::{Builder, EntryType, Header};
use terrapool::server::app::Policy;

use crate::support::app::{Answer, Fixture, TestApp};

fn packed(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// An archive with one entry of any name, which the tar library would refuse to write.
fn archive(kind: EntryType, name: &str, rest: &str) -> Vec<u8> {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    let content = if matches!(kind, EntryType::Symlink | EntryType::Link) {
        header.as_old_mut().linkname[..rest.len()].copy_from_slice(rest.as_bytes());
        ""
    } else {
        rest
    };
    header.set_size(content.len() as u64);
    header.set_cksum();
    let mut builder = Builder::new(Vec::new());
    builder.append(&header, content.as_bytes()).unwrap();
    packed(&builder.into_inner().unwrap())
}

fn good() -> Vec<u8> {
    archive(EntryType::Regular, "main.tf", "# nothing")
}

/// A new configuration version: its id and the path of its upload.
async fn pending(test: &TestApp, fixture: &Fixture, attributes: &Value) -> (String, String) {
    let path = format!("/api/v2/workspaces/{}/configuration-versions", fixture.workspace.id);
    let body = json!({"data": {"type": "configuration-versions", "attributes": attributes}});
    let created = test.request(Method::POST, &path, &body).await.expect(201).json();
    let url = created["data"]["attributes"]["upload-url"].as_str().unwrap();
    let path = url.strip_prefix("http://terrapool.test").unwrap().to_owned();
    (created["data"]["id"].as_str().unwrap().to_owned(), path)
}

fn by_cli() -> Value {
    json!({"auto-queue-runs": false, "speculative": false, "provisional": false})
}

/// As the CLI does: no token.
async fn put(test: &TestApp, path: &str, body: impl Into<Body>) -> Answer {
    let request = Request::builder().method(Method::PUT).uri(path).header("host", "terrapool.test");
    test.send(request.header("content-type", "application/octet-stream").body(body.into()).unwrap()).await
}

async fn read(test: &TestApp, id: &str) -> Value {
    test.get(&format!("/api/v2/configuration-versions/{id}")).await.expect(200).json()["data"]["attributes"].clone()
}

/// Bytes of all files below a directory.
fn size_of(dir: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(dir) else { return 0 };
    entries
        .map(|entry| {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() { size_of(&entry.path()) } else { entry.metadata().unwrap().len() }
        })
        .sum()
}

#[tokio::test]
async fn a_good_upload_is_usable_inside_its_request() {
    let test = TestApp::new().await;
    let fixture = test.fixture().await;
    let (id, path) = pending(&test, &fixture, &by_cli()).await;
    assert_eq!(read(&test, &id).await["status"], "pending");
    put(&test, &path, good()).await.expect(200);
    let attributes = read(&test, &id).await;
    assert_eq!((&attributes["status"], &attributes["upload-url"]), (&json!("uploaded"), &Value::Null));
    let download = test.get(&format!("/api/v2/configuration-versions/{id}/download")).await.expect(200);
    assert_eq!(download.body, good());
    put(&test, &path, good()).await.expect(409);
}

#[tokio::test]
async fn hostile_archives_are_refused_in_the_upload_and_leave_nothing() {
    let test = TestApp::new().await;
    let fixture = test.fixture().await;
    let cut = &good()[..good().len() / 2];
    let cases: &[(&str, Vec<u8>)] = &[
        ("parent", archive(EntryType::Regular, "../main.tf", "x")),
        ("absolute", archive(EntryType::Regular, "/etc/cron.d/x", "x")),
        ("link out of the tree", archive(EntryType::Symlink, "l", "../../etc")),
        ("absolute link", archive(EntryType::Symlink, "l", "/etc/passwd")),
        ("hard link out of the tree", archive(EntryType::Link, "l", "/etc/passwd")),
        ("device", archive(EntryType::Char, "null", "")),
        ("pipe", archive(EntryType::Fifo, "pipe", "")),
        ("no archive", b"resource {}".to_vec()),
        ("no tar", packed(b"resource {}")),
        ("nothing", Vec::new()),
        ("cut off", cut.to_vec()),
        ("empty", packed(&Builder::new(Vec::new()).into_inner().unwrap())),
    ];
    for (name, bytes) in cases {
        let (id, path) = pending(&test, &fixture, &by_cli()).await;
        let answer = put(&test, &path, bytes.clone()).await;
        assert_eq!(answer.status.as_u16(), 422, "{name}: {answer:?}");
        assert_eq!(answer.headers["content-type"], "application/vnd.api+json", "{name}");
        let detail = answer.json()["errors"][0]["detail"].as_str().unwrap().to_owned();
        let attributes = read(&test, &id).await;
        assert_eq!(attributes["status"], "errored", "{name}");
        assert_eq!(attributes["error-message"], detail, "{name}");
        assert_eq!(size_of(&test.data.path().join("blobs")), 0, "{name}");
        put(&test, &path, good()).await.expect(409);
    }
}

#[tokio::test]
async fn of_two_uploads_at_once_the_first_to_end_counts() {
    let test = TestApp::new().await;
    let fixture = test.fixture().await;
    let (id, path) = pending(&test, &fixture, &by_cli()).await;
    // the slow one has begun, and ends when the quick one has been taken
    let (finish, wait) = tokio::sync::oneshot::channel();
    let other = archive(EntryType::Regular, "other.tf", "# another");
    let late = futures::stream::once(async move {
        wait.await.unwrap();
        Ok::<_, io::Error>(Bytes::from(other))
    });
    let quick = async {
        put(&test, &path, good()).await.expect(200);
        finish.send(()).unwrap();
    };
    let (slow, ()) = tokio::join!(put(&test, &path, Body::from_stream(late)), quick);
    slow.expect(409);
    let download = test.get(&format!("/api/v2/configuration-versions/{id}/download")).await.expect(200);
    assert_eq!(download.body, good());
    assert_eq!(size_of(&test.data.path().join("blobs/uploads")), 0);
}

#[tokio::test]
async fn a_bomb_of_10_gb_is_refused_by_its_header_and_never_written() {
    let test = TestApp::new().await;
    let fixture = test.fixture().await;
    // 10 GB of zeros as one file: what is sent is a few MB
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::Regular);
    header.set_size(10_000_000_000);
    header.as_old_mut().name[..4].copy_from_slice(b"bomb");
    header.set_cksum();
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(header.as_bytes()).unwrap();
    io::copy(&mut io::repeat(0).take(64 << 20), &mut encoder).unwrap();
    let bomb = encoder.finish().unwrap();

    let (id, path) = pending(&test, &fixture, &by_cli()).await;
    let answer = put(&test, &path, bomb).await.expect(413).json();
    assert!(answer["errors"][0]["detail"].as_str().unwrap().contains("unpacked"), "{answer}");
    assert_eq!(read(&test, &id).await["status"], "errored");
    assert_eq!(size_of(&test.data.path().join("blobs")), 0);
}

#[tokio::test]
async fn an_upload_that_is_too_large_is_cut_off() {
    let policy = Policy { max_configuration_bytes: 10_000, ..Policy::default() };
    let test = TestApp::with(policy).await;
    let fixture = test.fixture().await;
    let noise: Vec<u8> = (0..20_000u32).map(|number| (number.wrapping_mul(2_654_435_761) >> 13) as u8).collect();

    // announced, and found out on the way
    let (id, path) = pending(&test, &fixture, &by_cli()).await;
    let request = Request::builder().method(Method::PUT).uri(&path).header("content-length", "20000");
    test.send(request.body(Body::from(noise.clone())).unwrap()).await.expect(413);
    assert_eq!(read(&test, &id).await["status"], "errored");

    let (id, path) = pending(&test, &fixture, &by_cli()).await;
    let chunks: Vec<_> = noise.chunks(1000).map(|chunk| Ok::<_, io::Error>(Bytes::copy_from_slice(chunk))).collect();
    put(&test, &path, Body::from_stream(futures::stream::iter(chunks))).await.expect(413);
    assert_eq!(read(&test, &id).await["status"], "errored");
    assert_eq!(size_of(&test.data.path().join("blobs")), 0);
}

#[tokio::test]
async fn an_upload_that_breaks_off_may_be_tried_again() {
    let test = TestApp::new().await;
    let fixture = test.fixture().await;
    let (id, path) = pending(&test, &fixture, &by_cli()).await;
    let broken = [Ok(Bytes::from_static(b"\x1f\x8b")), Err(io::Error::other("the line is dead"))];
    put(&test, &path, Body::from_stream(futures::stream::iter(broken))).await.expect(400);
    assert_eq!(read(&test, &id).await["status"], "pending");
    put(&test, &path, good()).await.expect(200);
}

async fn run_of(test: &TestApp, fixture: &Fixture, configuration: &str) -> Value {
    let body = json!({"data": {"type": "runs", "attributes": {}, "relationships": {
        "workspace": {"data": {"type": "workspaces", "id": fixture.workspace.id}},
        "configuration-version": {"data": {"type": "configuration-versions", "id": configuration}},
    }}});
    test.request(Method::POST, "/api/v2/runs", &body).await.expect(201).json()["data"].clone()
}

async fn status_of(test: &TestApp, run: &Value) -> Value {
    let path = format!("/api/v2/runs/{}", run["id"].as_str().unwrap());
    test.get(&path).await.expect(200).json()["data"]["attributes"].clone()
}

#[tokio::test]
async fn a_run_waits_for_its_upload_and_ends_with_a_bad_one() {
    let test = TestApp::new().await;
    let fixture = test.fixture().await;
    let (id, path) = pending(&test, &fixture, &by_cli()).await;
    let run = run_of(&test, &fixture, &id).await;
    assert_eq!(run["attributes"]["status"], "pending");
    put(&test, &path, good()).await.expect(200);
    assert_eq!(status_of(&test, &run).await["status"], "plan_queued");

    let (id, path) = pending(&test, &fixture, &json!({"auto-queue-runs": false, "speculative": true})).await;
    let run = run_of(&test, &fixture, &id).await;
    put(&test, &path, archive(EntryType::Regular, "../x", "x")).await.expect(422);
    let attributes = status_of(&test, &run).await;
    assert_eq!((&attributes["status"], &attributes["error-code"]), (&json!("errored"), &json!("bad_configuration")));
}

#[tokio::test]
async fn an_upload_queues_a_run_when_it_was_asked_to() {
    let test = TestApp::new().await;
    let fixture = test.fixture().await;
    let runs = format!("/api/v2/workspaces/{}/runs", fixture.workspace.id);
    let (_, path) = pending(&test, &fixture, &by_cli()).await;
    put(&test, &path, good()).await.expect(200);
    assert_eq!(test.get(&runs).await.expect(200).json()["data"], json!([]));
    let (_, path) = pending(&test, &fixture, &json!({"speculative": true})).await;
    put(&test, &path, good()).await.expect(200);
    let runs = test.get(&runs).await.expect(200).json();
    assert_eq!(runs["data"][0]["attributes"]["plan-only"], true);
}
