//! Example attachments and rules for unit tests and `fuzz/`.

#![allow(clippy::unwrap_used, reason = "a test fails where it cannot go on")]

use cni::Attachment;

use crate::masquerade::Masquerade;
use crate::ports::{HostPorts, Mapping, Mark, Protocol, Snat};

/// Interface eth0 of a container on network mynet.
pub fn attachment(container_id: &str) -> Attachment {
    Attachment::parse("mynet", container_id, "eth0").unwrap()
}

pub fn masquerade(addresses: &[&str]) -> Masquerade {
    Masquerade {
        owner: attachment("aaaabbbbccccdddd"),
        addresses: addresses.iter().map(|it| it.parse().unwrap()).collect(),
        random_fully: false,
        except: Vec::new(),
        not_through: None,
    }
}

/// `tcp 8080 80` or `tcp 192.0.2.7 8443 443`.
pub fn mapping(text: &str) -> Mapping {
    let words: Vec<_> = text.split(' ').collect();
    let port = |at: usize| words[words.len() - at].parse().unwrap();
    Mapping {
        protocol: Protocol::parse(words[0]).unwrap(),
        host_ip: (words.len() == 4).then(|| words[1].parse().unwrap()),
        host_port: port(2),
        container_port: port(1),
    }
}

/// Ports of a pod that has 10.22.0.2/24 and fd00:22::2/64.
pub fn host_ports(container_id: &str, mappings: &[&str]) -> HostPorts {
    HostPorts {
        owner: attachment(container_id),
        pod_v4: Some("10.22.0.2/24".parse().unwrap()),
        pod_v6: Some("fd00:22::2/64".parse().unwrap()),
        mappings: mappings.iter().map(|it| mapping(it)).collect(),
        snat: Snat::Hairpin,
        mark: Mark::Bit(13),
        conditions_v4: Vec::new(),
        conditions_v6: Vec::new(),
    }
}
