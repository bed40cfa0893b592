//! veth pairs: one end for the host, one for the pod.

use std::os::fd::{AsFd, AsRawFd};

use anyhow::anyhow;
use cni::Undo;
use netns::NetNs;
use rtnetlink::packet_route::{
    RouteNetlinkMessage,
    link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkMessage},
};

use crate::{Error, Link, Mac, Netlink, creation::new_link};

/// A pair to create.
///
/// Both hardware addresses are given: udev (systemd's MACAddressPolicy) rewrites one that the
/// kernel made up some time after ADD, and then CHECK finds another than the result says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VethSpec {
    /// The name of the host's end.
    pub host_name: String,
    /// Its hardware address.
    pub host_mac: Mac,
    /// The name of the pod's end, usually `CNI_IFNAME`.
    pub container_name: String,
    /// Its hardware address.
    pub container_mac: Mac,
    /// The largest packet of both ends, in bytes; `None` for the kernel's 1500.
    pub mtu: Option<u32>,
    /// The index of a bridge of which the host's end becomes a port in the same request.
    pub master: Option<u32>,
}

/// Both ends of a pair that was created.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VethPair {
    /// The host's end.
    pub host: Link,
    /// The pod's end.
    pub container: ContainerVeth,
}

/// The pod's end of a pair, as it was created: the pod is not queried for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerVeth {
    /// Its index in the pod's namespace.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its hardware address.
    pub mac: Mac,
    /// The largest packet that it sends, in bytes.
    pub mtu: u32,
}

impl Netlink {
    /// Creates a veth pair, the pod's end in `netns` under its final name: `ip link add HOST
    /// address … mtu … type veth peer name NAME address … mtu … netns …`, one request. Both ends
    /// are down. Its deletion is pushed on `undo`.
    ///
    /// # Errors
    /// When the pod has a link of that name already: `container veth name ("eth0") peer provided
    /// ("veth1a2b3c4d") already exists`. When the host has one, an [`Error`] for which
    /// [`Error::is_exists`] is true. Others as the kernel returns them.
    pub fn add_veth(
        &self,
        spec: &VethSpec,
        netns: &NetNs,
        undo: &mut Undo,
    ) -> anyhow::Result<VethPair> {
        let name = &spec.host_name;
        // Pushed before the request: its answer may be lost although the pair was created.
        self.push_delete(spec, undo);
        let request = RouteNetlinkMessage::NewLink(veth_message(spec, netns));
        let created = self
            .create(request, Link::read, || format!("add veth {name}"))
            .map_err(|error| self.which_name_is_taken(error, spec, netns))?;

        let host = match created {
            // The kernel describes it before it is a port.
            Some(link) => Link {
                master: spec.master,
                ..link
            },
            None => self.get_link(name)?,
        };
        let container = ContainerVeth {
            index: host.link.unwrap_or_default(),
            name: spec.container_name.clone(),
            mac: spec.container_mac,
            mtu: host.mtu,
        };
        Ok(VethPair { host, container })
    }

    /// The MAC distinguishes our pair from a link that had the name before.
    fn push_delete(&self, spec: &VethSpec, undo: &mut Undo) {
        let (netlink, name, mac) = (self.clone(), spec.host_name.clone(), spec.host_mac);
        undo.push(format!("delete veth {name}"), move || {
            match netlink.find_link(&name)? {
                Some(link) if link.mac == Some(mac) => Ok(netlink.remove(&link)?),
                _ => Ok(()),
            }
        });
    }

    /// `EEXIST` does not say which end it means.
    fn which_name_is_taken(&self, error: Error, spec: &VethSpec, netns: &NetNs) -> anyhow::Error {
        let in_pod = error.is_exists()
            && Self::open_in(netns)
                .and_then(|pod| Ok(pod.find_link(&spec.container_name)?))
                .is_ok_and(|link| link.is_some());
        if in_pod {
            let (container, host) = (&spec.container_name, &spec.host_name);
            return anyhow!(
                "container veth name ({container:?}) peer provided ({host:?}) already exists"
            );
        }
        error.into()
    }
}

fn veth_message(spec: &VethSpec, netns: &NetNs) -> LinkMessage {
    // The kernel gives each end its own MTU: one of them is not enough.
    let end = |kind, name, mac| {
        new_link(kind, name, Some(mac), spec.mtu)
            // Otherwise the kernel creates one queue for each CPU, and waits for RCU when it
            // closes those that are not used.
            .append_extra_attribute(LinkAttribute::NumTxQueues(1))
            .append_extra_attribute(LinkAttribute::NumRxQueues(1))
    };
    let peer = end(None, &spec.container_name, spec.container_mac)
        .setns_by_fd(netns.as_fd().as_raw_fd())
        .build();
    let mut host = end(Some(InfoKind::Veth), &spec.host_name, spec.host_mac)
        .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)));
    if let Some(master) = spec.master {
        host = host.controller(master);
    }
    host.build()
}
