//! What is wanted of masquerading.

pub mod iptables;
pub mod nftables;

use cni::Attachment;
use ipnetwork::IpNetwork;

/// What leaves the subnets of a pod gets the node's address; multicast, and
/// what stays inside a subnet, does not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Masquerade {
    /// Whose pod it is.
    pub owner: Attachment,
    /// The pod's addresses, each with the prefix of its subnet.
    pub addresses: Vec<IpNetwork>,
    /// Whether source ports are drawn at random: two connections that are made
    /// at once then do not get the same one (`--random-fully`).
    pub random_fully: bool,
    /// What goes there is not masqueraded.
    pub except: Vec<IpNetwork>,
    /// What leaves by this device is not masqueraded either: an overlay's own,
    /// behind which the network's pods on other nodes are.
    pub not_through: Option<String>,
}

impl Masquerade {
    /// Whether the Go plugins can have it so: they know neither overlays nor exceptions.
    pub fn is_known_to_go(&self) -> bool {
        self.not_through.is_none() && self.except.is_empty()
    }

    /// The subnets of the pod, each once. An address that is none is left out: it is nobody
    /// else's.
    pub fn subnets(&self) -> Vec<IpNetwork> {
        let mut subnets = Vec::new();
        for address in self.addresses.iter().filter(|it| !is_single(it)) {
            // The prefix is one of a network already.
            let subnet = IpNetwork::new(address.network(), address.prefix());
            subnets.extend(subnet.ok().filter(|it| !subnets.contains(it)));
        }
        subnets
    }
}

/// Whether an address is all that is in its network.
pub(crate) fn is_single(address: &IpNetwork) -> bool {
    address.prefix() == if address.is_ipv4() { 32 } else { 128 }
}
