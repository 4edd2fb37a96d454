//! A cloud's metadata service on this host: a network namespace in which something listens at 169.254.169.254, and at
//! an ordinary address too, so that a test that reaches neither can be told from one that is blocked.

use std::{
    net::TcpStream,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use tempfile::TempDir;
use terrapool::ids::JobId;

use super::docker::{Image, quietly};

const BUSYBOX: &str = "/bin/busybox";

/// An engine that runs what the configuration brings; for run containers, which have a busybox.
pub const ENGINE: &str = r#"#!/bin/sh
case "$1" in
version) echo "Terraform v1.11.4" ;;
init) if [ -f init.sh ]; then . ./init.sh; fi ;;
plan)
    . ./plan.sh
    for argument; do case "$argument" in -out=*) echo "the plan" >"${argument#-out=}" ;; esac; done
    exit 2
    ;;
show) echo '{"format_version":"1.2"}' ;;
esac
"#;

/// Namespace, addresses and the network of the run containers; removed with the value.
pub struct Cloud {
    pub metadata: &'static str,
    pub ordinary: &'static str,
    pub port: u16,
    /// Docker network for run containers of this test alone.
    pub network: String,
    namespace: Option<Namespace>,
    place: TempDir,
}

struct Namespace {
    name: String,
    link: String,
    listener: Child,
}

/// Runs `ip`.
pub fn ip(arguments: &str) {
    let words: Vec<&str> = arguments.split(' ').collect();
    let output = Command::new("ip").args(&words).output().expect("the command `ip`, of iproute2");
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Of nobody else, and so short that the interface has it in its name.
pub fn network_name() -> String {
    let id = JobId::random().to_string().to_ascii_lowercase();
    format!("tpt-{}", &id[id.len() - 8..])
}

/// An image with a shell.
pub fn busybox_image() -> Image {
    let busybox = std::fs::read(BUSYBOX).expect("a static busybox, as tests/run installs it");
    let name = format!("terrapool-test/{}:1", network_name());
    Image::of(&name, &[("bin/sh", &busybox), ("bin/nc", &busybox)])
}

impl Cloud {
    pub fn open() -> Self {
        let mut cloud = Self::without_metadata();
        let (name, link) = (cloud.network.clone(), format!("{}-h", cloud.network));
        // What an earlier process of this test left when it was killed.
        drop(Command::new("ip").args(["route", "del", "169.254.169.254/32"]).output());
        ip(&format!("netns add {name}"));
        ip(&format!("link add {link} type veth peer name eth0 netns {name}"));
        ip(&format!("addr add 198.18.77.1/30 dev {link}"));
        ip(&format!("link set {link} up"));
        for inside in ["link set lo up", "link set eth0 up", "addr add 198.18.77.2/30 dev eth0"] {
            ip(&format!("-n {name} {inside}"));
        }
        for address in [cloud.metadata, cloud.ordinary] {
            ip(&format!("-n {name} addr add {address}/32 dev lo"));
            ip(&format!("route add {address}/32 via 198.18.77.2"));
        }
        ip(&format!("-n {name} route add default via 198.18.77.1"));
        let port = cloud.port.to_string();
        // What it serves does not matter: nobody asks.
        let serve = ["netns", "exec", &name, BUSYBOX, "httpd", "-f", "-p", &port, "-h", "/"];
        let mut command = Command::new("ip");
        command.args(serve).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let listener = command.spawn().unwrap();
        cloud.namespace = Some(Namespace { name, link, listener });
        let patience = Instant::now() + Duration::from_secs(20);
        let address = (cloud.ordinary, cloud.port);
        while TcpStream::connect(address).is_err() {
            assert!(Instant::now() < patience, "nothing listens at {address:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
        cloud
    }

    /// Network and engine only.
    pub fn without_metadata() -> Self {
        let place = tempfile::tempdir().unwrap();
        let engine = place.path().join("terraform");
        std::fs::write(&engine, ENGINE).unwrap();
        std::fs::set_permissions(&engine, std::fs::Permissions::from_mode(0o755)).unwrap();
        Self {
            metadata: "169.254.169.254",
            ordinary: "198.18.77.9",
            port: 80,
            network: network_name(),
            namespace: None,
            place,
        }
    }

    /// A directory with the engine.
    pub fn engines(&self) -> PathBuf {
        self.place.path().to_owned()
    }

    /// The network's interface on this host.
    pub fn bridge(&self) -> String {
        format!("br-{}", self.network)
    }

    /// Says `<what> is open` or `<what> is shut`.
    pub fn attempt(&self, what: &str, address: &str, port: u16) -> String {
        format!(
            "if nc -w 5 {address} {port} </dev/null >/dev/null 2>&1; then echo '{what} is open'; else echo '{what} is shut'; fi"
        )
    }

    /// Tries both addresses.
    pub fn script(&self) -> String {
        let tries = [("metadata", self.metadata), ("ordinary", self.ordinary)];
        tries.map(|(what, address)| self.attempt(what, address, self.port)).join("\n") + "\n"
    }
}

impl Drop for Cloud {
    fn drop(&mut self) {
        // Nothing here may panic: it would hide the test's own words.
        let run = |program: &str, arguments: &[&str]| drop(Command::new(program).args(arguments).output());
        if let Some(Namespace { name, link, listener }) = &mut self.namespace {
            drop(listener.kill());
            drop(listener.wait());
            run("ip", &["link", "del", link]);
            run("ip", &["netns", "del", name]);
        }
        quietly(&["network", "rm", &self.network]);
        let bridge = self.bridge();
        for (parent, chain) in
            [("DOCKER-USER", format!("TERRAPOOL-{bridge}")), ("INPUT", format!("TERRAPOOL-H-{bridge}"))]
        {
            run("iptables", &["-w", "-D", parent, "-i", &bridge, "-j", &chain]);
            run("iptables", &["-w", "-F", &chain]);
            run("iptables", &["-w", "-X", &chain]);
        }
    }
}
