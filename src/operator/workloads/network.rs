//! What agent Pods may reach, as a NetworkPolicy. It is about Pods: in mode Node the run containers are not in the
//! agents' Pods, and what they may reach is decided by the node's own rules.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde_json::{Value, json};
use url::{Host, Url};

use super::{
    Invalid, Owned, OwnedKind, PoolView,
    parts::{metadata, object_name, selector},
};

/// Where clouds hand out credentials and configuration: link-local addresses (169.254.169.254 and 169.254.170.2 among
/// them), Azure's wire server, the IPv6 forms.
const METADATA: [Network; 4] = [
    Network::v4([169, 254, 0, 0], 16),
    Network::v4([168, 63, 129, 16], 32),
    Network::v6([0xfd00, 0x0ec2, 0, 0, 0, 0, 0, 0x0254], 128),
    Network::v6([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10),
];
const EVERYTHING: [Network; 2] = [Network::v4([0; 4], 0), Network::v6([0; 8], 0)];
/// The resolver of nodes that cache for their Pods.
const NODE_RESOLVER: &str = "169.254.20.10/32";
/// DNS, and where OpenShift's resolvers listen.
const DNS_PORTS: [u16; 2] = [53, 5353];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Network {
    address: IpAddr,
    prefix: u32,
}

impl Network {
    const fn v4(octets: [u8; 4], prefix: u32) -> Self {
        let [a, b, c, d] = octets;
        Self { address: IpAddr::V4(Ipv4Addr::new(a, b, c, d)), prefix }
    }

    const fn v6(parts: [u16; 8], prefix: u32) -> Self {
        let [a, b, c, d, e, f, g, h] = parts;
        Self { address: IpAddr::V6(Ipv6Addr::new(a, b, c, d, e, f, g, h)), prefix }
    }

    fn of(address: IpAddr) -> Self {
        Self { address, prefix: if address.is_ipv4() { 32 } else { 128 } }
    }

    fn parse(text: &str) -> Option<Self> {
        let (address, prefix) = text.split_once('/')?;
        let network = Self { address: address.parse().ok()?, prefix: prefix.parse().ok()? };
        (network.prefix <= Self::of(network.address).prefix).then_some(network)
    }

    /// Every address of `other` is in this network.
    fn contains(self, other: Self) -> bool {
        let bits = |address: IpAddr| match address {
            IpAddr::V4(address) => (u128::from(u32::from(address)) << 96, 32),
            IpAddr::V6(address) => (u128::from(address), 128),
        };
        let ((own, size), (others, other_size)) = (bits(self.address), bits(other.address));
        let same = |n: u32| n == 0 || (own ^ others) >> (128 - n) == 0;
        size == other_size && self.prefix <= other.prefix && same(self.prefix)
    }

    fn text(self) -> String {
        format!("{}/{}", self.address, self.prefix)
    }

    /// As a peer, without the metadata addresses if so wished.
    fn peer(self, block_metadata: bool) -> Value {
        let except: Vec<String> =
            METADATA.into_iter().filter(|network| block_metadata && self.contains(*network)).map(Self::text).collect();
        if except.is_empty() {
            json!({"ipBlock": {"cidr": self.text()}})
        } else {
            json!({"ipBlock": {"cidr": self.text(), "except": except}})
        }
    }
}

/// Nothing comes in; out go names, the control plane, and what the pool's runs may reach.
pub(super) fn policy(pool: &PoolView<'_>) -> Result<Owned, Invalid> {
    let network = &pool.spec.runs.network;
    let ports = |port: u16| ["UDP", "TCP"].map(|protocol| json!({"protocol": protocol, "port": port}));
    let mut egress = vec![
        json!({
            "to": [{"namespaceSelector": {}}, {"ipBlock": {"cidr": NODE_RESOLVER}}],
            "ports": DNS_PORTS.into_iter().flat_map(ports).collect::<Vec<_>>(),
        }),
        control_plane(pool)?,
    ];
    match &network.egress {
        // Not a network: Pods of the cluster are among what may be reached, whatever the CNI takes for an address.
        None if !network.block_metadata => egress = vec![json!({})],
        None => egress.push(json!({"to": peers(&EVERYTHING, true)})),
        Some(networks) => {
            let mut peers = Vec::new();
            for (index, cidr) in networks.iter().enumerate() {
                let path = format!("spec.runs.network.egress[{index}]");
                let Some(parsed) = Network::parse(&cidr.0) else {
                    return Err(Invalid::new(path, format!("`{}` is not a network, as 10.0.0.0/8", cidr.0)));
                };
                if network.block_metadata && METADATA.iter().any(|metadata| metadata.contains(parsed)) {
                    let message = format!("{} is a metadata address: set blockMetadata: false to allow it", cidr.0);
                    return Err(Invalid::new(path, message));
                }
                peers.push(parsed.peer(network.block_metadata));
            }
            if !peers.is_empty() {
                egress.push(json!({ "to": peers }));
            }
        }
    }
    let name = object_name(pool.name);
    let manifest = json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata(pool, &name),
        "spec": {"podSelector": selector(pool), "policyTypes": ["Ingress", "Egress"], "egress": egress},
    });
    Ok(Owned { kind: OwnedKind::NetworkPolicy, name, manifest })
}

fn peers(networks: &[Network], block_metadata: bool) -> Vec<Value> {
    networks.iter().map(|network| network.peer(block_metadata)).collect()
}

/// The way to the control plane. A policy knows no names: a Service of the cluster stands for its namespace (what
/// port its Pods listen on is not in the address), any other name for its port everywhere.
fn control_plane(pool: &PoolView<'_>) -> Result<Value, Invalid> {
    let invalid = || Invalid::new("spec.controlPlane.url", format!("`{}` is not an address", pool.url));
    let url = Url::parse(pool.url).map_err(|_| invalid())?;
    let port = url.port_or_known_default().ok_or_else(invalid)?;
    let ports = json!([{"protocol": "TCP", "port": port}]);
    let namespace = |name: &str| json!({"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}}});
    Ok(match url.host().ok_or_else(invalid)? {
        Host::Ipv4(address) => json!({"to": [Network::of(address.into()).peer(false)], "ports": ports}),
        Host::Ipv6(address) => json!({"to": [Network::of(address.into()).peer(false)], "ports": ports}),
        Host::Domain(name) => match name.split('.').collect::<Vec<_>>().as_slice() {
            [_] => json!({"to": [namespace(pool.namespace)]}),
            [_, space, "svc", ..] => json!({"to": [namespace(space)]}),
            _ => json!({"to": peers(&EVERYTHING, true), "ports": ports}),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_know_what_is_in_them() {
        let table = [
            ("0.0.0.0/0", "169.254.0.0/16", true),
            ("169.254.0.0/16", "169.254.169.254/32", true),
            ("169.254.0.0/16", "169.253.0.0/16", false),
            ("10.0.0.0/8", "169.254.0.0/16", false),
            ("169.254.169.254/32", "169.254.0.0/16", false),
            ("::/0", "fe80::/10", true),
            ("::/0", "10.0.0.0/8", false),
            ("0.0.0.0/0", "fe80::/10", false),
            ("fd00::/8", "fd00:ec2::254/128", true),
        ];
        for (outer, inner, wanted) in table {
            let (outer, inner) = (Network::parse(outer).unwrap(), Network::parse(inner).unwrap());
            assert_eq!(outer.contains(inner), wanted, "{outer:?} {inner:?}");
        }
        for text in ["", "10.0.0.0", "10.0.0.0/33", "::/129", "10.0.0/8", "a/8", "10.0.0.0/-1"] {
            assert_eq!(Network::parse(text), None, "{text}");
        }
    }
}
