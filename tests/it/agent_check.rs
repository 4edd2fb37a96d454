//! `terrapool agent check` finds out whether an agent would work on this host.

use std::{path::Path, time::Duration};

use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::TcpListener,
};

use crate::support::{
    host::{Told, agent, program},
    poll::eventually,
    server::{Place, Server, Transport},
};

/// A control plane, and a host that is configured for it.
struct Host {
    server: Server,
    place: Place,
    dir: TempDir,
}

impl Host {
    async fn new() -> Self {
        let server = Server::start().await;
        let place = server.place("acme").await;
        let host = Self { server, place, dir: tempfile::tempdir().unwrap() };
        let engine = host.dir.path().join("terraform");
        std::fs::write(&engine, "#!/bin/sh\necho 'Terraform v1.11.4'\n").unwrap();
        std::fs::set_permissions(&engine, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let url = host.server.address();
        let (engines, data) = (host.dir.path().to_str().unwrap(), host.dir.path().join("data"));
        let arguments = ["--url", &url, "--token", "-", "--executor", "process", "--engine-dir", engines, "--data"];
        let arguments = [&arguments[..], &[data.to_str().unwrap(), "--engine-download=false"]].concat();
        agent("configure", host.dir.path(), &arguments, &[], &host.place.pool_token).await.expect(0);
        host
    }

    async fn check(&self, flags: &[&str], environment: &[(&str, &str)]) -> Told {
        let flags = [&["--json", "--"], flags].concat();
        agent("check", self.dir.path(), &flags, environment, "").await
    }
}

fn finding<'a>(told: &'a Value, check: &str) -> &'a Value {
    told.as_array().unwrap().iter().find(|finding| finding["check"] == check).unwrap_or_else(|| panic!("{told:#}"))
}

#[track_caller]
fn assert_finding(told: &Told, check: &str, level: &str, words: &str) {
    let told = told.json();
    let finding = finding(&told, check);
    assert_eq!(finding["level"], level, "{told:#}");
    assert!(finding.to_string().contains(words), "{told:#}");
}

#[tokio::test]
async fn a_host_where_an_agent_would_work_is_told_so_and_nothing_is_registered() {
    let host = Host::new().await;
    let told = host.check(&[], &[]).await.expect(0);
    for (check, level, words) in [
        ("tcp", "ok", "accepts connections"),
        ("clock", "ok", "0 s"),
        ("token", "ok", "without end"),
        ("data", "ok", "can be written to"),
        ("executor", "warn", "without isolation"),
        ("engine", "ok", "terraform 1.11.4"),
    ] {
        assert_finding(&told, check, level, words);
    }
    let agents = host.server.get("/api/iacp/v3/agents").await;
    assert_eq!(agents["data"], serde_json::json!([]));
    assert!(!host.dir.path().join("data").exists());
    let text = agent("check", host.dir.path(), &[], &[], "").await.expect(0).stdout;
    assert!(text.contains("ok    token"), "{text}");
    assert!(!text.contains('\u{1b}'), "colour without a terminal: {text}");
}

#[tokio::test]
async fn a_token_that_nobody_knows_fails_and_so_does_a_missing_one() {
    let host = Host::new().await;
    let unknown = [("TERRAPOOL_POOL_TOKEN", "tpp_unknown")];
    let told = host.check(&[], &unknown).await.expect(1);
    assert_finding(&told, "token", "fail", "not accepted");
    let env = host.dir.path().join("agent.env");
    let text = std::fs::read_to_string(&env).unwrap();
    let without: String = text.lines().filter(|line| !line.contains("TOKEN")).map(|line| format!("{line}\n")).collect();
    std::fs::write(&env, without).unwrap();
    let told = host.check(&[], &[]).await.expect(1);
    assert_finding(&told, "token", "fail", "there is none");
    assert_finding(&told, "clock", "ok", "control plane's");
}

#[tokio::test]
async fn tls_is_looked_at_with_the_certificates_that_the_agent_trusts() {
    let host = Host::new().await;
    let access = host.server.access(Transport::Https);
    let url = format!("https://{}", access.host);
    let told = host.check(&["--url", &url], &[]).await.expect(1);
    assert_finding(&told, "tls", "fail", "--ca-file");
    let ca = access.ca.unwrap();
    let trusting = ["--url", &url, "--ca-file", ca.to_str().unwrap()];
    let told = host.check(&trusting, &[]).await.expect(0);
    assert_finding(&told, "tls", "ok", "holds for");
    let port = access.host.rsplit_once(':').unwrap().1;
    let wrong = format!("https://127.0.0.2:{port}");
    let told = host.check(&["--url", &wrong, "--ca-file", ca.to_str().unwrap()], &[]).await.expect(1);
    // Listens on one address of loopback only.
    assert_finding(&told, "tcp", "fail", "refuses");
    let plain = host.server.address().replace("http://", "https://");
    let told = host.check(&["--url", &plain], &[]).await.expect(1);
    assert_finding(&told, "tls", "fail", "does not speak TLS");
}

#[tokio::test]
async fn a_proxy_of_the_environment_is_used_and_told() {
    let host = Host::new().await;
    let proxy = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://user:secret@{}", proxy.local_addr().unwrap());
    let asked = tokio::spawn(async move {
        loop {
            let (stream, _) = proxy.accept().await.unwrap();
            let mut line = String::new();
            // The check of the connection alone says nothing.
            if BufReader::new(stream).read_line(&mut line).await.unwrap() > 0 {
                return line;
            }
        }
    });
    let told = host.check(&["--url", "https://terrapool.example.com"], &[("HTTPS_PROXY", &address)]).await.expect(1);
    assert_eq!(asked.await.unwrap(), "CONNECT terrapool.example.com:443 HTTP/1.1\r\n");
    assert_finding(&told, "proxy", "ok", "127.0.0.1:");
    assert_finding(&told, "tcp", "ok", "the proxy");
    assert!(!told.stdout.contains("secret"), "{}", told.stdout);
    let excepted = [("HTTPS_PROXY", address.as_str()), ("NO_PROXY", "localhost")];
    let url = host.server.address().replace("http://", "https://");
    let told = host.check(&["--url", &url], &excepted).await;
    assert_finding(&told, "proxy", "ok", "directly");
}

#[tokio::test]
async fn where_engines_are_downloaded_from_is_asked() {
    let host = Host::new().await;
    let mirror = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://user:secret@{}", mirror.local_addr().unwrap());
    tokio::spawn(async move {
        loop {
            let mut stream = BufReader::new(mirror.accept().await.unwrap().0);
            assert!(stream.read_line(&mut String::new()).await.unwrap() > 0);
            // Any answer is one.
            stream
                .write_all(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
                .await
                .unwrap();
        }
    });
    let nothing = tempfile::tempdir().unwrap();
    let none = ["--engine-dir", nothing.path().to_str().unwrap(), "--engine-download=true", "--engine-mirror"];
    // The search path is the host's own, and it may have an engine.
    let nowhere = [("PATH", nothing.path().to_str().unwrap())];
    let told = host.check(&[&none[..], &[&address]].concat(), &nowhere).await.expect(0);
    assert_finding(&told, "engine", "ok", "by an exact version");
    assert_finding(&told, "download", "ok", "terraform and tofu from http://127.0.0.1:");
    assert!(!told.stdout.contains("secret"), "{}", told.stdout);

    let dead = "http://127.0.0.1:9";
    let told = host.check(&[&none[..], &[dead]].concat(), &nowhere).await.expect(1);
    assert_finding(&told, "download", "fail", "--engine-mirror");
    let told = host.check(&["--engine-download=true", "--engine-mirror", dead], &nowhere).await.expect(0);
    assert_finding(&told, "download", "warn", "terraform and tofu from http://127.0.0.1:9");
}

#[tokio::test]
async fn a_host_that_is_not_configured_is_told_how_to_be() {
    let dir = tempfile::tempdir().unwrap();
    let told = agent("check", dir.path(), &[], &[], "").await.expect(1);
    assert!(told.stderr.contains("terrapool agent configure"), "{}", told.stderr);
}

#[tokio::test]
async fn manual_pages_and_completions_know_every_command() {
    let dir = tempfile::tempdir().unwrap();
    let status = program().arg("man").arg(dir.path()).status().await.unwrap();
    assert!(status.success());
    for command in ["run", "configure", "check", "sweep"] {
        let page = std::fs::read_to_string(dir.path().join(format!("terrapool-agent-{command}.8"))).unwrap();
        assert!(page.contains(".SH SYNOPSIS"), "{page}");
    }
    for shell in ["bash", "zsh", "fish"] {
        let output = program().args(["completions", shell]).output().await.unwrap();
        let script = String::from_utf8(output.stdout).unwrap();
        assert!(script.contains("drain-timeout") && script.contains("configure"), "{shell}");
        assert_parses(shell, dir.path(), &script).await;
    }
}

/// Where the shell is there, it says itself whether it can read the script.
async fn assert_parses(shell: &str, dir: &Path, script: &str) {
    let path = dir.join(shell);
    std::fs::write(&path, script).unwrap();
    if shell == "bash" {
        let status = tokio::process::Command::new("bash").arg("-n").arg(&path).status().await.unwrap();
        assert!(status.success());
    }
}

#[tokio::test]
async fn configure_may_check_at_once() {
    let host = Host::new().await;
    let told = agent("configure", host.dir.path(), &["--check", "--json"], &[], "").await.expect(0).json();
    assert_eq!(finding(&told["check"], "token")["level"], "ok");
    let dead = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let url = format!("http://{dead}");
    eventually("the port is free", Duration::from_secs(10), async || {
        match tokio::net::TcpStream::connect(dead).await {
            Ok(_) => Err("it is not"),
            Err(_) => Ok(()),
        }
    })
    .await;
    let told =
        agent("configure", host.dir.path(), &["--check", "--json", "--url", &url], &[], "").await.expect(1).json();
    assert_eq!(finding(&told["check"], "tcp")["level"], "fail");
    assert_eq!(told["configured"]["changed"], serde_json::json!(["TERRAPOOL_URL"]));
}
