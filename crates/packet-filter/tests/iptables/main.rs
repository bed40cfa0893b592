//! The iptables back end against the real kernel, in both variants, and against
//! the Go plugins: what they lay down and what we lay down are compared as text.
//!
//! Every test moves threads of its own, and nothing else, into private
//! namespaces: see [`host`].

#![allow(clippy::unwrap_used, reason = "a test fails where it cannot go on")]

mod failing;
mod firewall;
mod go;
mod host;
mod hostport;
mod masquerade;
mod traffic;

use cni::Attachment;
use cni::conf::ValidAttachment;
use cni::env::{ContainerId, IfName};
use packet_filter::{HostPorts, Mapping, Mark, Masquerade, Protocol, Snat};

/// A pod's interface on the network `mynet`.
fn owner(id: &str) -> Attachment {
    Attachment {
        network: "mynet".into(),
        container_id: ContainerId::parse(id).unwrap(),
        ifname: IfName::parse("eth0").unwrap(),
    }
}

fn valid(id: &str) -> ValidAttachment {
    ValidAttachment {
        container_id: id.into(),
        ifname: "eth0".into(),
    }
}

fn masquerade(id: &str, addresses: &[&str]) -> Masquerade {
    Masquerade {
        owner: owner(id),
        addresses: addresses.iter().map(|it| it.parse().unwrap()).collect(),
        random_fully: false,
        except: Vec::new(),
        not_through: None,
    }
}

fn tcp(host_port: u16, container_port: u16) -> Mapping {
    Mapping {
        host_ip: None,
        host_port,
        container_port,
        protocol: Protocol::Tcp,
    }
}

/// The ports of a pod that has 10.22.0.2 and fd00:22::2.
fn host_ports(id: &str, mappings: &[Mapping]) -> HostPorts {
    HostPorts {
        owner: owner(id),
        pod_v4: Some("10.22.0.2/24".parse().unwrap()),
        pod_v6: Some("fd00:22::2/64".parse().unwrap()),
        mappings: mappings.into(),
        snat: Snat::Hairpin,
        mark: Mark::Bit(13),
        conditions_v4: Vec::new(),
        conditions_v6: Vec::new(),
    }
}

/// How often `needle` is in `text`.
fn count(text: &str, needle: &str) -> usize {
    text.matches(needle).count()
}

/// Fails with the lines that are in only one of two texts, or out of place.
fn assert_same(found: &str, wanted: &str, what: &str) {
    let only = |a: &str, b: &str| {
        let lines = a.lines().filter(|line| !b.lines().any(|it| it == *line));
        lines.map(|line| format!("{line}\n")).collect::<String>()
    };
    let (more, less) = (only(found, wanted), only(wanted, found));
    assert!(
        found == wanted,
        "{what}: too much:\n{more}too little:\n{less}all:\n{found}"
    );
}
