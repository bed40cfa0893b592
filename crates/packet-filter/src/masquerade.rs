//! Masquerade: packets that leave the subnets of a pod get the node's address. Multicast, and
//! packets inside a subnet, do not.

pub(crate) mod iptables;
pub(crate) mod nftables;

use cni::Attachment;
use cni::address::{is_single, network_of};
use ipnetwork::IpNetwork;

/// The masquerade that an attachment wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Masquerade {
    /// The attachment.
    pub owner: Attachment,
    /// The pod's addresses, each with the prefix of its subnet.
    pub addresses: Vec<IpNetwork>,
    /// Source ports are drawn at random, so that two connections that begin at the same moment
    /// do not get the same one (`--random-fully`).
    pub random_fully: bool,
    /// Destinations that are not masqueraded.
    pub except: Vec<IpNetwork>,
    /// The device of an overlay. Packets that leave by it are not masqueraded, because the
    /// network's pods on other nodes are behind it.
    pub not_through: Option<String>,
}

impl Masquerade {
    /// Whether the Go plugins have rules for it: they know neither overlays nor exceptions.
    pub fn is_known_to_go(&self) -> bool {
        self.not_through.is_none() && self.except.is_empty()
    }

    /// The subnets of the pod, each once. An address without a subnet (/32, /128) has none.
    pub fn subnets(&self) -> Vec<IpNetwork> {
        let mut subnets = Vec::new();
        for address in self.addresses.iter().filter(|it| !is_single(**it)) {
            let subnet = network_of(*address);
            if !subnets.contains(&subnet) {
                subnets.push(subnet);
            }
        }
        subnets
    }
}
