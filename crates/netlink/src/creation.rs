//! Creates links, in a pod and beside their parents, and undoes it.
//!
//! A kind of link that a plugin makes in a pod is a variant of [`LinkKind`], with the properties of
//! that kind. Name, temporary name, parent, MAC, MTU and undo are the same for all.

use std::{
    os::fd::{AsFd, AsRawFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use cni::Undo;
use netns::NetNs;
use nix::errno::Errno;
use rtnetlink::{
    LinkMessageBuilder, LinkUnspec,
    packet_core::{NLM_F_CREATE, NLM_F_EXCL},
    packet_route::{
        RouteNetlinkMessage,
        link::{InfoData, InfoIpVlan, InfoKind, InfoMacVlan, InfoVlan},
    },
};

use crate::{Error, IpvlanMode, Link, Mac, MacvlanMode, Netlink};

/// A link to create.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkSpec {
    /// Its name, at most 15 bytes; in a pod usually `CNI_IFNAME`.
    pub name: String,
    /// Its name for a moment, where the kernel cannot give it its final name at once. It is
    /// derived from the attachment, so that DEL finds the link. Unused without a parent.
    pub temporary: String,
    /// The index of its parent, in the namespace of the socket. A link without a parent is created
    /// by a socket in its own namespace.
    pub parent: Option<u32>,
    /// Its hardware address. udev (systemd's MACAddressPolicy) rewrites an address that the
    /// kernel made up, so `None` is for kinds that have the address of their parent.
    pub mac: Option<Mac>,
    /// The largest packet in bytes; `None` for the kernel's default: that of the parent, or 1500.
    pub mtu: Option<u32>,
    /// What kind of link it is.
    pub kind: LinkKind,
}

/// The kind of a link, with the properties that only this kind has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkKind {
    /// Another hardware address on its parent.
    Macvlan {
        /// How it communicates with the parent's other macvlans.
        mode: MacvlanMode,
        /// How many broadcasts may wait to be copied to the parent's macvlans; `None` for the
        /// kernel's 1000.
        bc_queue_len: Option<u32>,
    },
    /// The hardware address of its parent, with IP addresses of its own.
    Ipvlan {
        /// Where its packets are routed. The kernel gives the parent's other ipvlans the same mode.
        mode: IpvlanMode,
    },
    /// The frames of its parent with one VLAN id (802.1Q).
    Vlan {
        /// The VLAN id, 0 to 4094. With 0, frames have a priority and no VLAN.
        id: u16,
    },
    /// No wire: what is sent to it is dropped.
    Dummy,
}

impl LinkKind {
    /// The word of `ip link add … type KIND`.
    fn name(self) -> &'static str {
        match self {
            Self::Macvlan { .. } => "macvlan",
            Self::Ipvlan { .. } => "ipvlan",
            Self::Vlan { .. } => "vlan",
            Self::Dummy => "dummy",
        }
    }

    fn info(self) -> (InfoKind, Option<InfoData>) {
        match self {
            Self::Macvlan { mode, bc_queue_len } => {
                let mut data = vec![InfoMacVlan::Mode(mode.code())];
                data.extend(bc_queue_len.map(InfoMacVlan::BcQueueLen));
                (InfoKind::MacVlan, Some(InfoData::MacVlan(data)))
            }
            Self::Ipvlan { mode } => {
                let data = vec![InfoIpVlan::Mode(mode.code())];
                (InfoKind::IpVlan, Some(InfoData::IpVlan(data)))
            }
            Self::Vlan { id } => {
                let data = vec![InfoVlan::Id(id)];
                (InfoKind::Vlan, Some(InfoData::Vlan(data)))
            }
            Self::Dummy => (InfoKind::Dummy, None),
        }
    }
}

impl Netlink {
    /// Creates a link in `netns` under its final name: `ip link add link PARENT name NAME netns …
    /// address … mtu … type KIND …`, one request. It is down. Its deletion is pushed on `undo`.
    ///
    /// Kernels before 6.15 look for the name among the links of this socket's namespace, where
    /// a node has an `eth0` of its own. There the link is created under its temporary name,
    /// and renamed.
    ///
    /// # Errors
    /// `failed to rename KIND to "eth0": file exists` when the pod has a link of that name, which is
    /// on a parent; otherwise `failed to create KIND: …`. Of macvlans: `EBUSY` when the parent is a
    /// port of a bridge or bond, `EINVAL` when it has a passthru macvlan, or has macvlans and
    /// passthru is requested. Of vlans: `EEXIST` when the parent has one with that id.
    pub fn add_link(&self, spec: &LinkSpec, netns: &NetNs, undo: &mut Undo) -> anyhow::Result<()> {
        // Pushed before the request: its answer may be lost although the link was created. A link
        // of an earlier ADD has another MAC, unless it has that of the parent.
        let created = push_delete(undo, netns, spec.kind, &spec.name, spec.mac);
        if spec.mac.is_none() {
            let before = Self::open_in(netns)?.find_link(&spec.name)?;
            created.store(before.is_none(), Ordering::Relaxed);
        }
        match self.create_link(spec, &spec.name, Some(netns)) {
            Err(error) if error.is_exists() && spec.parent.is_some() => {
                let pod = Self::open_in(netns)?;
                if pod.find_link(&spec.name)?.is_some() {
                    created.store(false, Ordering::Relaxed);
                    return Err(rename_failed(error, spec).into());
                }
                self.add_and_rename(spec, netns, &pod, undo)
            }
            other => Ok(other?),
        }
    }

    fn add_and_rename(
        &self,
        spec: &LinkSpec,
        netns: &NetNs,
        pod: &Self,
        undo: &mut Undo,
    ) -> anyhow::Result<()> {
        // An ADD that was killed may have left it.
        pod.delete_link_of_kind(&spec.temporary, spec.kind.name())?;
        push_delete(undo, netns, spec.kind, &spec.temporary, None);
        self.create_link(spec, &spec.temporary, Some(netns))?;
        let link = pod.get_link(&spec.temporary)?;
        pod.rename(link.index, &spec.name)
            .map_err(|error| rename_failed(error, spec).into())
    }

    /// Creates a link in the namespace of this socket, beside its parent: `ip link add link PARENT
    /// name TEMPORARY type KIND …`, then sets its alias, then its name. So a link that is found
    /// by its name has its alias, even if the caller was killed. It is down.
    ///
    /// # Errors
    /// `EEXIST` when there is a link of that name; as [`Netlink::add_link`].
    pub fn add_link_beside(&self, spec: &LinkSpec, alias: &str) -> Result<Link, Error> {
        let delete = || self.delete_link_of_kind(&spec.temporary, spec.kind.name());
        // A caller that was killed may have left it.
        delete()?;
        self.create_link(spec, &spec.temporary, None)?;
        let named = self.get_link(&spec.temporary).and_then(|link| {
            self.set_alias(link.index, alias)?;
            self.rename(link.index, &spec.name)?;
            self.get_link(&spec.name)
        });
        if named.is_err() {
            delete()?;
        }
        named
    }

    fn create_link(&self, spec: &LinkSpec, name: &str, netns: Option<&NetNs>) -> Result<(), Error> {
        let (kind, data) = spec.kind.info();
        let mut message = new_link(Some(kind), name, spec.mac, spec.mtu);
        if let Some(data) = data {
            message = message.set_info_data(data);
        }
        if let Some(parent) = spec.parent {
            message = message.link(parent);
        }
        if let Some(netns) = netns {
            message = message.setns_by_fd(netns.as_fd().as_raw_fd());
        }
        let request = RouteNetlinkMessage::NewLink(message.build());
        let kind = spec.kind.name();
        self.change(request, NLM_F_CREATE | NLM_F_EXCL, || {
            format!("add {kind} {name}")
        })
        .map_err(|error| error.reword(format!("failed to create {kind}")))
    }

    /// Whether the kernel can make links of a kind, after it has looked for a module: `ip link add
    /// type KIND`. For a namespace that is deleted afterwards: some kinds need no further
    /// attributes, so that a link is made.
    ///
    /// # Errors
    /// `EPERM` without CAP_NET_ADMIN.
    pub fn knows_kind(&self, kind: &str) -> Result<bool, Error> {
        let kind = InfoKind::Other(kind.to_owned());
        let message = LinkMessageBuilder::<LinkUnspec>::new_with_info_kind(kind).build();
        let request = RouteNetlinkMessage::NewLink(message);
        let tried = self.change(request, NLM_F_CREATE | NLM_F_EXCL, || {
            "add a link".to_owned()
        });
        match tried {
            Err(error) if error.errno() == Errno::EOPNOTSUPP => Ok(false),
            Err(error) if error.errno() == Errno::EPERM => Err(error),
            // A parent, or another attribute, is missing.
            Ok(_) | Err(_) => Ok(true),
        }
    }

    /// Deletes the link called `name` if it is of `kind`: `ip link delete NAME type KIND`.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn delete_link_of_kind(&self, name: &str, kind: &str) -> Result<(), Error> {
        match self.find_link(name)? {
            Some(link) if link.is_kind(kind) => self.remove(&link),
            _ => Ok(()),
        }
    }
}

/// The start of a request for a new link.
pub(crate) fn new_link(
    kind: Option<InfoKind>,
    name: &str,
    mac: Option<Mac>,
    mtu: Option<u32>,
) -> LinkMessageBuilder<LinkUnspec> {
    let mut message = match kind {
        Some(kind) => LinkMessageBuilder::new_with_info_kind(kind),
        None => LinkMessageBuilder::default(),
    }
    .name(name);
    if let Some(mac) = mac {
        message = message.address(mac.0.to_vec());
    }
    if let Some(mtu) = mtu {
        message = message.mtu(mtu);
    }
    message
}

fn rename_failed(error: Error, spec: &LinkSpec) -> Error {
    error.reword(format!(
        "failed to rename {} to {:?}",
        spec.kind.name(),
        spec.name
    ))
}

/// Pushes the deletion of a link that is about to be created. Without `mac`, only name and kind
/// distinguish it from other links. Nothing is deleted if the returned flag is set to false.
fn push_delete(
    undo: &mut Undo,
    netns: &NetNs,
    kind: LinkKind,
    name: &str,
    mac: Option<Mac>,
) -> Arc<AtomicBool> {
    let created = Arc::new(AtomicBool::new(true));
    let (netns, name, flag) = (netns.clone(), name.to_owned(), Arc::clone(&created));
    let kind = kind.name();
    undo.push(format!("delete {kind} {name}"), move || {
        if !flag.load(Ordering::Relaxed) {
            return Ok(());
        }
        let pod = Netlink::open_in(&netns)?;
        if mac.is_none() || pod.find_link(&name)?.is_some_and(|link| link.mac == mac) {
            return Ok(pod.delete_link_of_kind(&name, kind)?);
        }
        // A pod that runs already may have renamed it. A link with an alias belongs to an ADD
        // that has succeeded.
        for link in pod.list_links()? {
            if link.is_kind(kind) && link.mac == mac && link.alias.is_none() {
                pod.remove(&link)?;
            }
        }
        Ok(())
    });
    created
}
