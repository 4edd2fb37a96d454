//! What run containers can reach over the network, with real rules of the host's packet filter. Needs a Docker engine,
//! root, iptables and network namespaces.

use std::{net::TcpListener, process::Command};

use terrapool::{
    agent::executor::{Choice, Executor, Isolation, Settings},
    api::{agent::Outcome, job::Stage},
};

use crate::support::{
    agents::RunningAgent,
    docker::docker,
    jobs::{Host, chain, log, slug, spec},
    metadata::{Cloud, busybox_image, ip, network_name},
};

/// Runs `script` in a run container and returns its output.
async fn said(host: &Host, script: &str) -> String {
    let (dir, finished) = host.run(&spec(Stage::Plan), &slug(&[("main.tf", ""), ("plan.sh", script)])).await;
    assert_eq!(finished.outcome, Outcome::Finished, "{finished:?}\n{}", log(&dir));
    log(&dir)
}

/// A host whose run containers have a network of their own and whose engine is a script.
async fn host(cloud: &Cloud, change: impl FnOnce(&mut Isolation)) -> Host {
    let engines = cloud.engines();
    Host::with(Choice::Docker, |settings| {
        settings.engines.dir = Some(engines);
        settings.isolation.network = cloud.network.clone();
        change(&mut settings.isolation);
    })
    .await
}

fn rules(arguments: &[&str]) -> Vec<String> {
    let output =
        Command::new("iptables").arg("-w").args(arguments).output().expect("iptables, as tests/run installs it");
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

/// One test, because there is only one 169.254.169.254.
#[tokio::test]
async fn a_run_cannot_reach_the_metadata_service_nor_the_host() {
    let cloud = Cloud::open();
    let listener = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    // It ends each connection at once; the thread ends with the tests.
    std::thread::spawn(move || listener.incoming().for_each(drop));
    let script = format!(
        "{}\ngateway=$(ip route | sed -n 's/^default via \\([^ ]*\\).*/\\1/p')\n{}\n",
        cloud.script(),
        cloud.attempt("host", "$gateway", port)
    );

    // It would be reachable: on the engine's own bridge, and on ours when nothing is blocked.
    let image = busybox_image();
    let attempt = cloud.attempt("metadata", cloud.metadata, cloud.port);
    let plain = docker(&["run", "--rm", "--network", "bridge", &image.name, "/bin/sh", "-c", &attempt]);
    assert_eq!(plain, "metadata is open");
    let open = host(&cloud, |isolation| (isolation.block_metadata, isolation.block_host) = (false, false)).await;
    let text = said(&open, &script).await;
    for wanted in ["metadata is open", "ordinary is open", "host is open"] {
        assert!(text.contains(wanted), "no `{wanted}`:\n{text}");
    }

    let blocked = host(&cloud, |isolation| isolation.require_block = true).await;
    let text = said(&blocked, &script).await;
    for wanted in ["metadata is shut", "ordinary is open", "host is shut"] {
        assert!(text.contains(wanted), "no `{wanted}`:\n{text}");
    }

    // Somebody flushes the rules, as a reload of a firewall does: the next container has them again.
    let chain = format!("TERRAPOOL-{}", cloud.bridge());
    rules(&["-F", &chain]);
    rules(&["-D", "DOCKER-USER", "-i", &cloud.bridge(), "-j", &chain]);
    assert_eq!(rules(&["-S", &chain]).len(), 1);
    let text = said(&blocked, &script).await;
    assert!(text.contains("metadata is shut") && text.contains("host is shut"), "{text}");
    let jumps = |parent: &str| rules(&["-S", parent]).iter().filter(|rule| rule.contains(&cloud.bridge())).count();
    assert_eq!((jumps("DOCKER-USER"), jumps("INPUT")), (1, 1), "the rules are there once, however often they are made");

    // Somebody prunes the network.
    docker(&["network", "rm", &cloud.network]);
    let text = said(&blocked, &script).await;
    assert!(text.contains("metadata is shut") && text.contains("ordinary is open"), "{text}");

    // Each without the other.
    let metadata_only = host(&cloud, |isolation| isolation.block_host = false).await;
    let text = said(&metadata_only, &script).await;
    assert!(text.contains("metadata is shut") && text.contains("host is open"), "{text}");
    let host_only = host(&cloud, |isolation| isolation.block_metadata = false).await;
    let text = said(&host_only, &script).await;
    assert!(text.contains("metadata is open") && text.contains("host is shut"), "{text}");

    network_and_rules_go_with_the_last_who_uses_them(&cloud, &blocked).await;
    the_same_through_an_agent(&cloud).await;
}

async fn network_and_rules_go_with_the_last_who_uses_them(cloud: &Cloud, host: &Host) {
    let ours = || rules(&["-S"]).into_iter().filter(|rule| rule.contains(&cloud.bridge())).count();
    let networks = || docker(&["network", "ls", "--quiet", "--filter", &format!("name=^{}$", cloud.network)]);
    let waits = format!("terrapool-test-{}", cloud.network);
    let image = busybox_image();
    docker(&[
        "run",
        "--detach",
        "--name",
        &waits,
        "--network",
        &cloud.network,
        &image.name,
        "/bin/sh",
        "-c",
        "sleep 600",
    ]);
    host.executor.clear().await.unwrap();
    let (rules, network) = (ours(), networks());
    docker(&["rm", "--force", &waits]);
    assert!(rules > 0 && !network.is_empty(), "they were taken from somebody who uses them");
    host.executor.clear().await.unwrap();
    assert_eq!((ours(), networks()), (0, String::new()));
    host.executor.clear().await.unwrap();
}

/// A whole run, planned and applied by an agent as it is by default.
async fn the_same_through_an_agent(cloud: &Cloud) {
    let plane = crate::support::agents::Plane::new().await;
    let mut config = plane.config("a");
    config.executor.choice = Choice::Docker;
    config.executor.isolation.network = cloud.network.clone();
    let agent = RunningAgent::start(config).await;
    let run = plane.run(&cloud.script(), &cloud.script()).await;
    let run = plane.until(&run, terrapool::api::run_state::RunState::Applied).await;
    for stage in [run.plan_id.as_str(), run.apply_id.as_str()] {
        let text = plane.log(stage).await;
        assert!(text.contains("metadata is shut") && text.contains("ordinary is open"), "{text}");
    }
    agent.drain().await.unwrap();
    let rules = rules(&["-S"]).into_iter().filter(|rule| rule.contains(&cloud.bridge())).count();
    assert_eq!(rules, 0, "a drained agent leaves rules");
}

#[tokio::test]
async fn runs_do_not_see_each_other() {
    let cloud = Cloud::without_metadata();
    let host = host(&cloud, |_| {}).await;
    let wait =
        "echo \"at $(hostname -i)\"; echo ready; nc -l -p 8080 & while [ ! -e stop ]; do sleep 0.1; done; kill $!\n";
    let first = spec(Stage::Plan);
    let dir = host.create(&first, &slug(&[("main.tf", ""), ("plan.sh", wait)])).await;
    let prepared = host.start(&dir, &first).await;
    crate::support::jobs::log_has(&dir, "ready").await;
    let text = log(&dir);
    let address = text.lines().find_map(|line| line.strip_prefix("at ")).unwrap().trim();
    let container = format!("terrapool-{}-1", first.job_id);
    // That it listens at all: from itself.
    let from_itself = cloud.attempt("neighbour", address, 8080);
    crate::support::jobs::until(
        || (docker(&["exec", &container, "/bin/sh", "-c", &from_itself]) == "neighbour is open").then_some(()),
        || "the listener of the first run".to_owned(),
    )
    .await;
    let text = said(&host, &cloud.attempt("neighbour", address, 8080)).await;
    assert!(text.contains("neighbour is shut"), "{text}");
    std::fs::write(dir.path().join("config/stop"), "").unwrap();
    host.finish(&dir, &first, &prepared, false).await;
}

#[tokio::test]
async fn what_cannot_be_blocked_is_a_warning_or_a_refusal() {
    // As it is for an agent that is elsewhere than its engine: the network has no interface here.
    let name = network_name();
    let interface = format!("br-{name}");
    let option = format!("com.docker.network.bridge.name={interface}");
    docker(&["network", "create", "--opt", &option, &name]);
    ip(&format!("link del {interface}"));
    let data = tempfile::tempdir().unwrap();
    let settings = |require: bool| {
        let mut settings = Settings::new(data.path().to_owned(), "i".to_owned());
        settings.choice = Choice::Docker;
        settings.isolation.network = name.clone();
        settings.isolation.require_block = require;
        settings
    };
    let warned = Executor::connect(settings(false)).await;
    let refused = Executor::connect(settings(true)).await;
    docker(&["network", "rm", &name]);
    let warning = warned.unwrap().warning.unwrap();
    assert!(warning.contains("metadata addresses") && warning.contains(&interface), "{warning}");
    let error = chain(&refused.unwrap_err());
    assert!(error.contains(&interface) && error.contains("--require-network-block"), "{error}");
    // No other executor can do it, so none takes its place.
    for choice in [Choice::Auto, Choice::Process] {
        let mut settings = Settings { choice, docker_host: Some("unix:///nowhere".to_owned()), ..settings(true) };
        settings.isolation.network = "none".to_owned();
        Executor::connect(settings).await.unwrap_err();
    }
}

#[tokio::test]
async fn a_run_without_a_network_has_none() {
    let cloud = Cloud::without_metadata();
    let host = host(&cloud, |isolation| isolation.network = "none".to_owned()).await;
    let text = said(&host, "ls /sys/class/net; echo end\n").await;
    assert!(text.contains("\nlo\nend\n"), "{text}");
}
