//! Owners of published ports, as the comments of their elements name them.

use std::collections::{BTreeSet, HashSet};
use std::net::IpAddr;

use anyhow::Result;
use cni::Attachment;

use super::layout::{is_of_network, owner};
use super::{Connections, Mapping, nftables};
use crate::backend::Nftables;

/// The owner of published ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortOwner {
    /// `network/container/interface`, or a hash of a long one.
    pub name: String,
    /// The addresses of its pod.
    pub pod: BTreeSet<IpAddr>,
}

/// A published port, as the kernel has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublishedPort {
    /// Its owner: `network/container/interface`, or a hash of a long one.
    pub owner: String,
    /// The port. An unspecified address is all addresses of one family.
    pub mapping: Mapping,
    /// The pod's address.
    pub pod: IpAddr,
}

impl PublishedPort {
    /// Whether it is a port of this attachment.
    pub fn is_of(&self, attachment: &Attachment) -> bool {
        self.owner == owner(attachment)
    }
}

impl PortOwner {
    /// The name that the ports of an attachment have.
    pub fn name_of(attachment: &Attachment) -> String {
        owner(attachment)
    }

    /// The attachment with this name; `None` where the name is a hash.
    pub fn attachment(&self) -> Option<Attachment> {
        let parts: Vec<_> = self.name.split('/').collect();
        let [network, id, ifname] = parts[..] else {
            return None;
        };
        let attachment = Attachment::parse(network, id, ifname)?;
        self.is(&attachment).then_some(attachment)
    }

    /// Whether it is this attachment.
    pub fn is(&self, attachment: &Attachment) -> bool {
        self.name == owner(attachment)
    }

    /// Whether it is an attachment to `network`.
    pub fn is_of(&self, network: &str) -> bool {
        is_of_network(&self.name, network)
    }
}

impl Nftables {
    /// The owners of published ports.
    pub fn port_owners(&self) -> Result<Vec<PortOwner>> {
        let owners = nftables::owners(&self.socket)?.into_iter();
        let owners = owners.map(|(name, pod)| PortOwner { name, pod });
        Ok(owners.collect())
    }

    /// The published ports that connections reach: of each port the newest.
    pub fn published_ports(&self) -> Result<Vec<PublishedPort>> {
        nftables::published(&self.socket)
    }

    /// Removes the ports of these owners, and the tracked UDP connections to them.
    pub fn remove_ports(&self, owners: &[PortOwner]) -> Result<()> {
        let names: HashSet<_> = owners.iter().map(|it| it.name.as_str()).collect();
        let gone = nftables::remove_all(&self.socket, &|name| names.contains(name))?;
        self.delete_connections(&gone, Connections::ToPod);
        Ok(())
    }
}
