//! Entry points for `fuzz/`: each function does with hostile input what the back ends do with the
//! output of the kernel or of iptables, and panics where the result could do harm.

pub(crate) mod iptables;
pub(crate) mod nftables;

use cni::Attachment;
use cni::conf::ValidAttachment;

use crate::masquerade::Masquerade;
use crate::ports::{HostPorts, Mapping, Mark, Protocol, Snat};

pub use self::iptables::{listed as listed_by_iptables, publish_as_text};
pub use self::nftables::answered as answered_by_nfnetlink;

/// The owner of the rules.
pub(crate) fn owner() -> Attachment {
    Attachment::parse("net", "pod", "eth0").unwrap_or_else(|| unreachable!())
}

/// Attachments that GC spares.
pub(crate) fn valid() -> Vec<ValidAttachment> {
    let valid = |container_id: &str| ValidAttachment {
        container_id: container_id.into(),
        ifname: "eth0".into(),
    };
    vec![valid("pod"), valid("other")]
}

/// A masquerade.
pub(crate) fn masquerade() -> Masquerade {
    let address = |text: &str| text.parse().unwrap_or_else(|_| unreachable!());
    Masquerade {
        owner: owner(),
        addresses: vec![address("10.1.0.2/24"), address("fd00::2/64")],
        random_fully: false,
        except: Vec::new(),
        not_through: None,
    }
}

/// Published ports.
pub(crate) fn host_ports() -> HostPorts {
    let mapping = |host_port, protocol| Mapping {
        host_ip: None,
        host_port,
        container_port: 80,
        protocol,
    };
    HostPorts {
        owner: owner(),
        pod_v4: "10.1.0.2/24".parse().ok(),
        pod_v6: "fd00::2/64".parse().ok(),
        mappings: vec![mapping(8080, Protocol::Tcp), mapping(53, Protocol::Udp)],
        snat: Snat::Hairpin,
        mark: Mark::Bit(13),
        conditions_v4: Vec::new(),
        conditions_v6: Vec::new(),
    }
}
