//! Entry points for `fuzz/`: each function does with hostile input what the back ends do with the
//! output of the kernel or of iptables, and panics where the result could do harm.

pub(crate) mod iptables;
pub(crate) mod nftables;

use cni::Attachment;
use cni::conf::ValidAttachment;

use crate::example;
use crate::masquerade::Masquerade;
use crate::ports::HostPorts;

pub use self::iptables::{firewall_as_text, listed as listed_by_iptables, publish_as_text};
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
    Masquerade {
        owner: owner(),
        ..example::masquerade(&["10.1.0.2/24", "fd00::2/64"])
    }
}

/// Published ports.
pub(crate) fn host_ports() -> HostPorts {
    HostPorts {
        owner: owner(),
        pod_v4: "10.1.0.2/24".parse().ok(),
        pod_v6: "fd00::2/64".parse().ok(),
        ..example::host_ports("pod", &["tcp 8080 80", "udp 53 80"])
    }
}
