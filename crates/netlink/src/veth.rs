//! veth pairs: one end for the host, one for the pod.

use std::os::fd::{AsFd, AsRawFd};

use anyhow::anyhow;
use cni::Undo;
use netns::NetNs;
use rtnetlink::packet_route::{
    RouteNetlinkMessage,
    link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkInfo, LinkMessage},
};

use crate::{Error, Link, Mac, Netlink};

/// A pair to make.
///
/// Both hardware addresses are given: an address that the kernel drew itself
/// is rewritten by udev (systemd's MACAddressPolicy) some time after ADD, and
/// then CHECK finds another than the result says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VethSpec {
    /// The name of the end that stays with the host.
    pub host_name: String,
    /// Its hardware address.
    pub host_mac: Mac,
    /// The name of the end in the pod, usually `CNI_IFNAME`.
    pub container_name: String,
    /// Its hardware address.
    pub container_mac: Mac,
    /// The largest packet of both ends, in bytes; `None` for the kernel's 1500.
    pub mtu: Option<u32>,
    /// A bridge (its index) whose port the host end shall be from the start.
    pub master: Option<u32>,
}

/// Both ends of a pair that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VethPair {
    /// The host's end.
    pub host: Link,
    /// The pod's end.
    pub container: ContainerVeth,
}

/// The pod's end of a pair, known without a look into the pod.
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
    /// Makes a veth pair whose pod end is born in `netns` under its final name:
    /// `ip link add HOST address … mtu … type veth peer name NAME address … mtu
    /// … netns …`, one request. Both ends are down. Deleting it is pushed on `undo`.
    ///
    /// # Errors
    /// When the pod has a link of that name already: `container veth name
    /// ("eth0") peer provided ("veth1a2b3c4d") already exists`. When the host
    /// has, an [`Error`] that [is one of existence](Error::is_exists). Others as
    /// the kernel gives them.
    pub fn add_veth(
        &self,
        spec: &VethSpec,
        netns: &NetNs,
        undo: &mut Undo,
    ) -> anyhow::Result<VethPair> {
        let name = &spec.host_name;
        // Before the request: its answer may get lost, and the pair be there.
        self.push_delete(spec, undo);
        let request = RouteNetlinkMessage::NewLink(veth_message(spec, netns));
        let made = self
            .create(request, Link::read, || format!("add veth {name}"))
            .map_err(|error| self.whose_name_is_taken(error, spec, netns))?;

        let host = match made {
            // It is told before it is a port.
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

    /// By the MAC a pair that we made is told from what had the name before.
    fn push_delete(&self, spec: &VethSpec, undo: &mut Undo) {
        let (netlink, name, mac) = (self.clone(), spec.host_name.clone(), spec.host_mac);
        let delete = move |netlink: &Self| match netlink.find_link(&name)? {
            Some(link) if link.mac == Some(mac) => netlink.delete_link(&name),
            _ => Ok(()),
        };
        undo.push(format!("delete veth {}", spec.host_name), move || {
            // That the socket broke may be the reason why we are here: by another one then.
            delete(&netlink).or_else(|_| delete(&Self::open()?))?;
            Ok(())
        });
    }

    /// `EEXIST` does not say which end it means.
    fn whose_name_is_taken(&self, error: Error, spec: &VethSpec, netns: &NetNs) -> anyhow::Error {
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
    let mut peer = end(&spec.container_name, spec.container_mac, spec.mtu);
    let fd = netns.as_fd().as_raw_fd();
    peer.attributes.push(LinkAttribute::NetNsFd(fd));
    let mut host = end(&spec.host_name, spec.host_mac, spec.mtu);
    host.attributes
        .extend(spec.master.map(LinkAttribute::Controller));
    host.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Veth),
        LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
    ]));
    host
}

fn end(name: &str, mac: Mac, mtu: Option<u32>) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.into()));
    message
        .attributes
        .push(LinkAttribute::Address(mac.0.to_vec()));
    // The kernel gives each end its own MTU: one of them is not enough.
    message.attributes.extend(mtu.map(LinkAttribute::Mtu));
    // One queue in use is what the kernel gives anyway; unless told, it makes one for
    // each CPU first, and waits for RCU when it closes the others.
    message.attributes.push(LinkAttribute::NumTxQueues(1));
    message.attributes.push(LinkAttribute::NumRxQueues(1));
    message
}
