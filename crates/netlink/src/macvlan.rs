//! macvlan: another hardware address on a wire that is there, in the pod.

use std::{
    fmt,
    os::fd::{AsFd, AsRawFd},
    str::FromStr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use cni::Undo;
use netns::NetNs;
use nix::{errno::Errno, libc};
use rtnetlink::{
    packet_core::{NLM_F_CREATE, NLM_F_EXCL},
    packet_route::{
        RouteNetlinkMessage,
        link::{
            InfoData, InfoKind, InfoMacVlan, LinkAttribute, LinkInfo, LinkMessage, MacVlanMode,
        },
    },
};

use transport::{Message, find};

use crate::{
    Error, Link, Mac, Netlink,
    link::{IFINFO, without_statistics},
    request::decode,
};

/// What the macvlans of one parent are to each other (ip-link(8), "MACVLAN").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MacvlanMode {
    /// They reach each other, without a detour over the wire.
    Bridge,
    /// They do not reach each other, not even by way of the switch.
    Private,
    /// They reach each other if the switch sends frames back where they came from.
    Vepa,
    /// There is one, and the parent is its alone; it has the parent's hardware address.
    Passthru,
}

impl MacvlanMode {
    const ALL: [Self; 4] = [Self::Bridge, Self::Private, Self::Vepa, Self::Passthru];

    fn code(self) -> MacVlanMode {
        match self {
            Self::Bridge => MacVlanMode::Bridge,
            Self::Private => MacVlanMode::Private,
            Self::Vepa => MacVlanMode::Vepa,
            Self::Passthru => MacVlanMode::Passthrough,
        }
    }
}

impl fmt::Display for MacvlanMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bridge => "bridge",
            Self::Private => "private",
            Self::Vepa => "vepa",
            Self::Passthru => "passthru",
        })
    }
}

impl FromStr for MacvlanMode {
    type Err = String;

    /// The words of ip(8). The error is that of the Go plugins.
    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|mode| mode.to_string() == text)
            .ok_or_else(|| format!("unknown macvlan mode: {text:?}"))
    }
}

/// A macvlan to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MacvlanSpec {
    /// Its name in the pod, usually `CNI_IFNAME`.
    pub name: String,
    /// What it is called for a moment where the kernel cannot give it its name
    /// at once. It follows from the attachment, so that DEL finds it.
    pub temporary: String,
    /// The index of its parent, in the namespace of the socket.
    pub parent: u32,
    /// What it is to the parent's other macvlans.
    pub mode: MacvlanMode,
    /// The largest packet in bytes; `None` for the parent's.
    pub mtu: Option<u32>,
    /// Its hardware address. An address that the kernel drew itself is rewritten
    /// by udev (systemd's MACAddressPolicy), so `None` is for
    /// [`MacvlanMode::Passthru`] alone, which has the parent's.
    pub mac: Option<Mac>,
    /// How many broadcasts may wait to be copied to the parent's macvlans;
    /// `None` for the kernel's 1000.
    pub bc_queue_len: Option<u32>,
}

/// A macvlan that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Macvlan {
    /// The link. Its [`Link::link`] is the parent's index, in the namespace that
    /// [`Link::link_netnsid`] names.
    pub link: Link,
    /// The word for its mode, also for one that [`MacvlanMode`] does not have (`source`).
    pub mode: String,
}

/// A link, looked at as the parent of macvlans.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parent {
    /// The link.
    pub link: Link,
    /// Whether it has a carrier. A network card has none while it is down or
    /// unplugged; what has no wire (a dummy, a bridge) always does. Its macvlans
    /// have what it has.
    pub carrier: bool,
    /// Whether frames on it have hardware addresses that macvlans could share it by:
    /// `lo` and tunnels of packets have none.
    pub ethernet: bool,
}

impl Parent {
    pub(crate) fn read(message: Message<'_>) -> Option<Self> {
        let (header, rest) = message.parts::<IFINFO>(libc::RTM_NEWLINK)?;
        let kind = u16::from_ne_bytes(*header[2..].first_chunk()?);
        let flags = u32::from_ne_bytes(*header[8..].first_chunk()?);
        Some(Self {
            carrier: find(rest, libc::IFLA_CARRIER) == Some(&[1]),
            ethernet: kind == libc::ARPHRD_ETHER && flags & libc::IFF_LOOPBACK as u32 == 0,
            link: Link::read(message)?,
        })
    }
}

impl Netlink {
    /// The link called `name` as a possible parent: `ip link show dev NAME`.
    ///
    /// # Errors
    /// When the kernel cannot be asked; an absent link is no error.
    pub fn find_parent(&self, name: &str) -> Result<Option<Parent>, Error> {
        match self.look_at(name, Parent::read) {
            // ERANGE: no link has a name that long.
            Err(error) if error.is_not_found() || error.errno() == Errno::ERANGE => Ok(None),
            other => other,
        }
    }

    /// Every link of the namespace as a possible parent: `ip link show`.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn list_parents(&self) -> Result<Vec<Parent>, Error> {
        let mut message = LinkMessage::default();
        message.attributes.push(without_statistics());
        let request = RouteNetlinkMessage::GetLink(message);
        self.dump_undecoded(request, Parent::read, || "list links".into())
    }

    /// The macvlan called `name`: `ip -d link show dev NAME`. `None` when the
    /// link is of another kind.
    ///
    /// # Errors
    /// `find link NAME: Link not found` when there is no link of that name.
    pub fn get_macvlan(&self, name: &str) -> Result<Option<Macvlan>, Error> {
        self.look_at(name, |message| {
            let mode = mode_of(&decode(message)?)?;
            let link = Link::read(message)?;
            Some(Macvlan { link, mode })
        })
    }

    fn look_at<T>(&self, name: &str, read: impl Fn(Message<'_>) -> T) -> Result<T, Error> {
        let op = || format!("find link {name}");
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.into()));
        message.attributes.push(without_statistics());
        let found = self.get(RouteNetlinkMessage::GetLink(message), read, op);
        found.map_err(|error| match error.is_not_found() {
            true => Error::no_link(op()),
            false => error,
        })
    }

    /// Makes a macvlan that is born in `netns` under its final name:
    /// `ip link add link PARENT name NAME netns … address … mtu … type macvlan
    /// mode …`, one request. It is down. Deleting it is pushed on `undo`.
    ///
    /// Kernels before 6.15 look for the name among the links of this socket's
    /// namespace, where a node has an `eth0` of its own: there it is born under its
    /// temporary name, and renamed.
    ///
    /// # Errors
    /// `failed to rename macvlan to "eth0": file exists` when the pod has a link
    /// of that name; `failed to create macvlan: …` else: `EBUSY` when the parent
    /// is a port of something, `EINVAL` when it is another's passthru, or has
    /// macvlans and is asked for passthru.
    pub fn add_macvlan(
        &self,
        spec: &MacvlanSpec,
        netns: &NetNs,
        undo: &mut Undo,
    ) -> anyhow::Result<()> {
        // Before the request: its answer may get lost, and the link be there. That of an ADD
        // before this one has another MAC, if not the parent's as well.
        let is_ours = push_delete(undo, netns, &spec.name, spec.mac);
        if spec.mac.is_none() {
            let before = Self::open_in(netns)?.find_link(&spec.name)?;
            is_ours.store(before.is_none(), Ordering::Relaxed);
        }
        match self.create_macvlan(spec, &spec.name, Some(netns)) {
            Ok(()) => Ok(()),
            Err(error) if error.is_exists() => {
                let pod = Self::open_in(netns)?;
                if pod.find_link(&spec.name)?.is_some() {
                    is_ours.store(false, Ordering::Relaxed);
                    return Err(rename_failed(error, &spec.name).into());
                }
                self.add_and_rename(spec, netns, &pod, undo)
            }
            Err(error) => Err(error.into()),
        }
    }

    fn add_and_rename(
        &self,
        spec: &MacvlanSpec,
        netns: &NetNs,
        pod: &Self,
        undo: &mut Undo,
    ) -> anyhow::Result<()> {
        // What an ADD that was killed has left.
        pod.delete_macvlan(&spec.temporary)?;
        push_delete(undo, netns, &spec.temporary, None);
        self.create_macvlan(spec, &spec.temporary, Some(netns))?;
        let link = pod.get_link(&spec.temporary)?;
        pod.rename(link.index, &spec.name)
            .map_err(|error| rename_failed(error, &spec.name))?;
        Ok(())
    }

    /// Makes a macvlan beside its parent, in the namespace of this socket: `ip link add link
    /// PARENT name TEMPORARY type macvlan mode …`, then its `alias`, then its name. Whoever
    /// finds it by its name finds the alias, too, also after the caller was killed. It is down.
    ///
    /// # Errors
    /// `EEXIST` when there is a link of that name; as [`Netlink::add_macvlan`].
    pub fn add_macvlan_beside(&self, spec: &MacvlanSpec, alias: &str) -> Result<Link, Error> {
        // What a caller that was killed has left.
        self.delete_macvlan(&spec.temporary)?;
        self.create_macvlan(spec, &spec.temporary, None)?;
        let made = self.name_macvlan(spec, alias);
        if made.is_err() {
            self.delete_macvlan(&spec.temporary)?;
        }
        made
    }

    fn name_macvlan(&self, spec: &MacvlanSpec, alias: &str) -> Result<Link, Error> {
        let index = self.get_link(&spec.temporary)?.index;
        self.set_alias(index, alias)?;
        self.rename(index, &spec.name)?;
        self.get_link(&spec.name)
    }

    /// Without `netns` it is beside its parent.
    fn create_macvlan(
        &self,
        spec: &MacvlanSpec,
        name: &str,
        netns: Option<&NetNs>,
    ) -> Result<(), Error> {
        let mut data = vec![InfoMacVlan::Mode(spec.mode.code())];
        data.extend(spec.bc_queue_len.map(InfoMacVlan::BcQueueLen));
        let mut message = LinkMessage::default();
        let attributes = &mut message.attributes;
        attributes.push(LinkAttribute::IfName(name.into()));
        attributes.push(LinkAttribute::Link(spec.parent));
        attributes.extend(netns.map(|it| LinkAttribute::NetNsFd(it.as_fd().as_raw_fd())));
        attributes.extend(spec.mac.map(|mac| LinkAttribute::Address(mac.0.to_vec())));
        attributes.extend(spec.mtu.map(LinkAttribute::Mtu));
        attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::MacVlan),
            LinkInfo::Data(InfoData::MacVlan(data)),
        ]));
        let request = RouteNetlinkMessage::NewLink(message);
        self.change(request, NLM_F_CREATE | NLM_F_EXCL, || {
            format!("add macvlan {name}")
        })
        .map_err(|error| error.reword("failed to create macvlan"))
    }

    /// Deletes the macvlan called `name`: `ip link delete NAME type macvlan`.
    /// That there is none, or a link of another kind, is fine.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn delete_macvlan(&self, name: &str) -> Result<(), Error> {
        match self.find_link(name)? {
            Some(link) if link.is_kind("macvlan") => self.delete_link(name),
            _ => Ok(()),
        }
    }
}

fn rename_failed(error: Error, name: &str) -> Error {
    error.reword(format!("failed to rename macvlan to {name:?}"))
}

/// Of whatever MAC, if there is none to tell by; not at all if the result is set to
/// false, because the link was there before.
fn push_delete(undo: &mut Undo, netns: &NetNs, name: &str, mac: Option<Mac>) -> Arc<AtomicBool> {
    let is_ours = Arc::new(AtomicBool::new(true));
    let (netns, doomed, really) = (netns.clone(), name.to_owned(), Arc::clone(&is_ours));
    undo.push(format!("delete macvlan {name}"), move || {
        if !really.load(Ordering::Relaxed) {
            return Ok(());
        }
        let pod = Netlink::open_in(&netns)?;
        let named = pod.find_link(&doomed)?;
        if mac.is_none() || named.is_some_and(|link| link.mac == mac) {
            return Ok(pod.delete_macvlan(&doomed)?);
        }
        // A pod that runs already may have given it another name. What has an alias is of
        // an ADD that has succeeded.
        for link in pod.list_links()? {
            if link.is_kind("macvlan") && link.mac == mac && link.alias.is_none() {
                pod.remove(&link)?;
            }
        }
        Ok(())
    });
    is_ours
}

pub(crate) fn mode_of(message: &RouteNetlinkMessage) -> Option<String> {
    let RouteNetlinkMessage::NewLink(message) = message else {
        return None;
    };
    let infos = message.attributes.iter().find_map(|it| match it {
        LinkAttribute::LinkInfo(infos) => Some(infos),
        _ => None,
    })?;
    let data = infos.iter().find_map(|it| match it {
        LinkInfo::Data(InfoData::MacVlan(data)) => Some(data),
        _ => None,
    })?;
    data.iter().find_map(|it| match it {
        InfoMacVlan::Mode(mode) => Some(mode.to_string()),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_the_words_of_ip() {
        for mode in MacvlanMode::ALL {
            assert_eq!(mode.to_string().parse(), Ok(mode));
            assert_eq!(mode.code().to_string(), mode.to_string());
        }
        let unknown = "unknown macvlan mode: \"source\"".to_owned();
        assert_eq!("source".parse::<MacvlanMode>(), Err(unknown));
    }
}
