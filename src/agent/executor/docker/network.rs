//! The Docker network of the run containers: a bridge of our own on which they do not see each other.

use std::collections::HashMap;

use bollard::{
    Docker,
    models::{NetworkCreateRequest, NetworkInspect},
};

use super::{
    super::{Error, Result, runner::short_hash},
    failed, is_status,
};

/// Without any network.
pub(super) const NONE: &str = "none";

/// Label of networks that were made here.
const LABEL: &str = "terrapool.dev/network";

/// Names of interfaces have at most so many bytes.
const LONGEST_INTERFACE: usize = 15;

/// How often it is looked for a network that somebody else makes just now.
const LOOKS: u32 = 20;

/// A network that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Network {
    pub id: String,
    /// Its interface on the host; absent: it is no bridge.
    pub bridge: Option<String>,
    pub driver: String,
    pub ipv6: bool,
    /// Made here, not by somebody else.
    pub ours: bool,
    /// Containers run in it.
    pub used: bool,
}

/// Whether a run container may be given the network of that name.
///
/// # Errors
/// [`Error::Refused`]
pub(super) fn check_name(name: &str) -> Result<()> {
    let refused = |why: &str| Err(Error::Refused(format!("run containers cannot use the network `{name}`: {why}")));
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"_.-".contains(&b);
    if name.eq_ignore_ascii_case("host") || name.to_ascii_lowercase().starts_with("container:") {
        return refused("it is not their own");
    }
    if !name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric()) || !name.bytes().all(plain) || name.len() > 128 {
        return refused("that is no name of a network");
    }
    Ok(())
}

/// Interface of the bridge of a network that is made here. Two networks cannot have the same, so of two agents that make
/// one at a time, one fails and takes the other's.
fn interface(name: &str) -> String {
    let plain = format!("br-{name}");
    if plain.len() <= LONGEST_INTERFACE { plain } else { format!("br-{}", &short_hash(name.as_bytes())[..12]) }
}

fn request(name: &str) -> NetworkCreateRequest {
    let options = [
        ("com.docker.network.bridge.name", interface(name)),
        ("com.docker.network.bridge.enable_icc", "false".to_owned()),
    ];
    NetworkCreateRequest {
        name: name.to_owned(),
        driver: Some("bridge".to_owned()),
        enable_ipv6: Some(false),
        options: Some(options.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()),
        labels: Some(HashMap::from([(LABEL.to_owned(), "run".to_owned())])),
        ..NetworkCreateRequest::default()
    }
}

/// What matters of the engine's description. Pure.
fn read(found: NetworkInspect) -> Option<Network> {
    let id = found.id?;
    let driver = found.driver.unwrap_or_default();
    let mut options = found.options.unwrap_or_default();
    let named = options.remove("com.docker.network.bridge.name").filter(|name| !name.is_empty());
    let bridge = (driver == "bridge").then(|| named.unwrap_or_else(|| format!("br-{}", id.get(..12).unwrap_or(&id))));
    let used = found.containers.is_some_and(|containers| !containers.is_empty());
    let ours = found.labels.is_some_and(|labels| labels.contains_key(LABEL));
    Some(Network { id, bridge, driver, ipv6: found.enable_ipv6 == Some(true), ours, used })
}

/// The network of that name, if there is one.
///
/// # Errors
/// When the engine does not answer.
pub(super) async fn find(docker: &Docker, name: &str) -> Result<Option<Network>> {
    match docker.inspect_network(name, None).await {
        Ok(found) => Ok(read(found)),
        Err(error) if is_status(&error, 404) => Ok(None),
        Err(error) => Err(failed(format!("look for the network {name}"))(error)),
    }
}

/// The network of that name, which is made when there is none: somebody may have pruned it.
///
/// # Errors
/// When the engine neither has it nor makes it.
pub(super) async fn obtain(docker: &Docker, name: &str) -> Result<Network> {
    if let Some(found) = find(docker, name).await? {
        return Ok(found);
    }
    let made = docker.create_network(request(name)).await;
    let mut looks = if made.is_ok() { 1 } else { LOOKS };
    loop {
        looks -= 1;
        match find(docker, name).await? {
            Some(found) => {
                if made.is_ok() {
                    tracing::info!(network = name, "made a Docker network for run containers");
                }
                return Ok(found);
            }
            // Another agent's may be under way.
            None if looks > 0 => tokio::time::sleep(super::POLL).await,
            None => break,
        }
    }
    let doing = format!("make the network {name} (name one that is there with --network)");
    match made {
        Err(error) => Err(failed(doing)(error)),
        Ok(_) => Err(Error::Gone(format!("the network {name} was made, and yet is not there"))),
    }
}

/// Takes a network away that was made here; says whether it is gone. One that other agents' containers use stays.
///
/// # Errors
/// When the engine does not answer.
pub(super) async fn remove(docker: &Docker, network: &Network) -> Result<bool> {
    match docker.remove_network(&network.id).await {
        Ok(()) => Ok(true),
        Err(error) if is_status(&error, 404) => Ok(true),
        // It has containers; old engines say 403, newer ones 409.
        Err(error) if is_status(&error, 403) || is_status(&error, 409) => Ok(false),
        Err(error) => Err(failed("remove the network of the run containers")(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_that_is_not_the_runs_own_is_refused() {
        for name in [
            "host",
            "HOST",
            "Host",
            "container:abc",
            "Container:abc",
            "container:",
            "ns:/proc/1/ns/net",
            "slirp4netns:x",
            "",
            " ",
            "-x",
            ".x",
            "a b",
            "a/b",
            "../a",
            "a\nb",
            "a\0b",
            "a:b",
            "a;b",
            "$(id)",
        ] {
            assert!(matches!(check_name(name), Err(Error::Refused(_))), "{name:?}");
        }
        for name in ["terrapool", "bridge", "none", "my_net.1-a", "0a"] {
            check_name(name).unwrap();
        }
    }

    #[test]
    fn names_of_interfaces_fit_and_differ() {
        assert_eq!(interface("terrapool"), "br-terrapool");
        let (one, other) = (interface("a-network-with-a-long-name"), interface("a-network-with-a-longer-name"));
        assert!(one.len() == LONGEST_INTERFACE && other.len() == LONGEST_INTERFACE && one != other);
    }

    #[test]
    fn the_interface_is_read_from_the_engines_description() {
        let network = |driver: &str, options: &[(&str, &str)]| {
            let options = options.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
            let id = Some("0123456789abcdef".to_owned());
            read(NetworkInspect { id, driver: Some(driver.to_owned()), options: Some(options), ..Default::default() })
        };
        let bridge = |network: Option<Network>| network.unwrap().bridge;
        assert_eq!(bridge(network("bridge", &[])).as_deref(), Some("br-0123456789ab"));
        let named = [("com.docker.network.bridge.name", "docker0")];
        assert_eq!(bridge(network("bridge", &named)).as_deref(), Some("docker0"));
        assert_eq!(bridge(network("macvlan", &[])), None);
    }
}
