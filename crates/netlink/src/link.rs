//! Links of any kind: look one up, change it, delete it.
//!
//! A link is looked up by its name or index, never by listing: with hundreds of
//! pods on a node a list is long, and it is interrupted whenever one comes or goes.

use std::{
    fmt,
    os::fd::{AsFd, AsRawFd},
};

use netns::NetNs;
use nix::{errno::Errno, libc};
use rtnetlink::packet_route::{
    RouteNetlinkMessage,
    link::{LinkAttribute, LinkExtentMask, LinkFlags, LinkMessage, State},
    nsid::{NsidAttribute, NsidMessage},
};

use transport::{Message, attributes, find, find_in};

use crate::{Error, Mac, Netlink, request::decode};

/// linux/if_link.h
const IFLA_BR_VLAN_FILTERING: u16 = 7;
const IFLA_BRPORT_MODE: u16 = 4;
const IFLA_BRPORT_ISOLATED: u16 = 33;
const IFLA_INET6_CONF: u16 = 2;
/// linux/ipv6.h
const DEVCONF_ACCEPT_RA: usize = 3;

/// A network device, as the kernel described it at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// The interface index, unique in its namespace.
    pub index: u32,
    /// The name, at most 15 bytes.
    pub name: String,
    /// The hardware address, if it has one of six bytes.
    pub mac: Option<Mac>,
    /// The largest packet it carries, in bytes.
    pub mtu: u32,
    /// What `ip link … type` says: "bridge", "veth"; absent for hardware and `lo`.
    pub kind: Option<String>,
    /// The index of the bridge, bond or vrf that it is a port of.
    pub master: Option<u32>,
    /// The index of its other half: a veth's peer, a vlan's or macvlan's parent.
    pub link: Option<u32>,
    /// The id (in this namespace) of the namespace where [`Link::link`] is, if another.
    pub link_netnsid: Option<i32>,
    /// Whether it was set up (`IFF_UP`); whether it carries packets is [`Link::operstate`].
    pub up: bool,
    /// The operational state of RFC 2863.
    pub operstate: OperState,
    /// Whether promiscuous mode was asked for (`IFF_PROMISC`).
    pub promisc: bool,
    /// The free text that `ip link set … alias` stores.
    pub alias: Option<String>,
    /// For a bridge, whether it tells VLANs apart.
    pub vlan_filtering: Option<bool>,
    /// For a port of a bridge, how it forwards.
    pub port: Option<Port>,
    /// Whether the kernel has had an answer to a router solicitation of its own here.
    pub heard_router: bool,
    /// Whether router advertisements are heeded (the setting `accept_ra`); absent
    /// where there is no IPv6.
    pub accept_ra: Option<u32>,
}

/// What a bridge does with one of its ports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Port {
    /// Frames may leave through the port they came in by.
    pub hairpin: bool,
    /// It talks to no other isolated port.
    pub isolated: bool,
}

/// The operational state of a link (RFC 2863, section 3.1.14).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OperState {
    /// The driver does not tell; usual for `lo` and tunnels, which do work.
    Unknown,
    /// Some part is missing.
    NotPresent,
    /// No carrier, or not set up.
    Down,
    /// The other half, or the parent, is down.
    LowerLayerDown,
    /// In a test mode.
    Testing,
    /// It waits for something, as 802.1X.
    Dormant,
    /// Packets pass.
    Up,
}

impl fmt::Display for OperState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unknown => "unknown",
            Self::NotPresent => "not-present",
            Self::Down => "down",
            Self::LowerLayerDown => "lower-layer-down",
            Self::Testing => "testing",
            Self::Dormant => "dormant",
            Self::Up => "up",
        })
    }
}

impl From<State> for OperState {
    fn from(state: State) -> Self {
        match state {
            State::NotPresent => Self::NotPresent,
            State::Down => Self::Down,
            State::LowerLayerDown => Self::LowerLayerDown,
            State::Testing => Self::Testing,
            State::Dormant => Self::Dormant,
            State::Up => Self::Up,
            _ => Self::Unknown,
        }
    }
}

impl Netlink {
    /// The link called `name`, if there is one: `ip link show dev NAME`.
    ///
    /// # Errors
    /// When the kernel cannot be asked; an absent link is no error.
    pub fn find_link(&self, name: &str) -> Result<Option<Link>, Error> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.into()));
        self.look_up(message, || format!("find link {name}"))
    }

    /// The link with `index`, if there is one.
    ///
    /// # Errors
    /// As [`Netlink::find_link`].
    pub fn find_link_by_index(&self, index: u32) -> Result<Option<Link>, Error> {
        let message = link_message(index);
        self.look_up(message, || format!("find link {index}"))
    }

    /// The other end of the veth `link`, if there is one, in whatever namespace it is:
    /// `ip link show netnsid ID` with the index.
    ///
    /// # Errors
    /// When the kernel cannot be asked; when its namespace may not be looked into (`EPERM`).
    pub fn find_peer(&self, link: &Link) -> Result<Option<Link>, Error> {
        let Some(index) = link.link.filter(|_| link.is_kind("veth")) else {
            return Ok(None);
        };
        let mut message = link_message(index);
        let netns = link.link_netnsid.map(LinkAttribute::IfNetnsId);
        message.attributes.extend(netns);
        self.look_up(message, || format!("find the peer of {}", link.name))
    }

    /// The link called `name`.
    ///
    /// # Errors
    /// `find link NAME: Link not found` when there is none; others as
    /// [`Netlink::find_link`].
    pub fn get_link(&self, name: &str) -> Result<Link, Error> {
        self.find_link(name)?
            .ok_or_else(|| Error::no_link(format!("find link {name}")))
    }

    /// Every link of the namespace: `ip link show`. Not for the hot path.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn list_links(&self) -> Result<Vec<Link>, Error> {
        self.list(LinkMessage::default())
    }

    /// Every port of a bridge or bond: `ip link show master BRIDGE`.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn list_ports(&self, master: u32) -> Result<Vec<Link>, Error> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::Controller(master));
        let mut ports = self.list(message)?;
        // Old kernels may not select.
        ports.retain(|link| link.master == Some(master));
        Ok(ports)
    }

    fn list(&self, mut message: LinkMessage) -> Result<Vec<Link>, Error> {
        message.attributes.push(without_statistics());
        let request = RouteNetlinkMessage::GetLink(message);
        self.dump_undecoded(request, Link::read, || "list links".into())
    }

    /// Brings a link up: `ip link set NAME up`.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_up(&self, index: u32) -> Result<(), Error> {
        let up = flag(index, LinkFlags::Up, true);
        self.set_link(up, || format!("set {} up", self.told(index)))
    }

    /// The same, with a text as of [`Netlink::set_alias`]: one request.
    pub(crate) fn set_up_with_alias(&self, index: u32, alias: Option<&str>) -> Result<(), Error> {
        self.set_link(up_with_alias(index, alias), || {
            format!("set {} up", self.told(index))
        })
    }

    /// Brings a link down: `ip link set NAME down`.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_down(&self, index: u32) -> Result<(), Error> {
        let down = flag(index, LinkFlags::Up, false);
        self.set_link(down, || format!("set {} down", self.told(index)))
    }

    /// Gives a link another name: `ip link set OLD name NEW`.
    ///
    /// # Errors
    /// When the name is taken (`EEXIST`) or too long (`ERANGE`).
    pub fn rename(&self, index: u32, name: &str) -> Result<(), Error> {
        let attribute = LinkAttribute::IfName(name.into());
        self.set_attribute(index, attribute, || {
            format!("rename {} {name}", self.told(index))
        })
    }

    /// Sets the largest packet, in bytes: `ip link set NAME mtu MTU`.
    ///
    /// # Errors
    /// When the device cannot do it (`EINVAL`).
    pub fn set_mtu(&self, index: u32, mtu: u32) -> Result<(), Error> {
        let attribute = LinkAttribute::Mtu(mtu);
        self.set_attribute(index, attribute, || {
            format!("set {} mtu {mtu}", self.told(index))
        })
    }

    /// Sets the hardware address: `ip link set NAME address MAC`.
    ///
    /// # Errors
    /// When the device cannot do it.
    pub fn set_mac(&self, index: u32, mac: Mac) -> Result<(), Error> {
        let attribute = LinkAttribute::Address(mac.0.to_vec());
        self.set_attribute(index, attribute, || {
            format!("set {} address {mac}", self.told(index))
        })
    }

    /// Makes a link a port of `master`: `ip link set NAME master BRIDGE`.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_master(&self, index: u32, master: u32) -> Result<(), Error> {
        let attribute = LinkAttribute::Controller(master);
        self.set_attribute(index, attribute, || {
            format!("set {} master {}", self.told(index), self.told(master))
        })
    }

    /// Stores a text of up to 255 bytes with a link: `ip link set NAME alias TEXT`.
    ///
    /// # Errors
    /// When it is too long.
    pub fn set_alias(&self, index: u32, alias: &str) -> Result<(), Error> {
        let attribute = LinkAttribute::IfAlias(alias.into());
        self.set_attribute(index, attribute, || {
            format!("set {} alias {alias}", self.told(index))
        })
    }

    /// Deletes the link called `name`: `ip link delete NAME`. That it is absent
    /// is fine. On return it is gone and its name is free; the kernel frees its
    /// memory a little later, while a child process waits in our place.
    ///
    /// # Errors
    /// When the kernel refuses, or does not answer in time.
    pub fn delete_link(&self, name: &str) -> Result<(), Error> {
        self.remove_link(name).map(drop)
    }

    /// The same; returns the link as it was.
    ///
    /// # Errors
    /// As [`Netlink::delete_link`].
    pub fn remove_link(&self, name: &str) -> Result<Option<Link>, Error> {
        let Some(link) = self.find_link(name)? else {
            return Ok(None);
        };
        self.remove(&link)?;
        Ok(Some(link))
    }

    /// The id by which this socket's namespace knows `netns`, as it stands in
    /// [`Link::link_netnsid`]: `ip netns list-id target-nsid`. `None` where it has none,
    /// because no link of the one is connected with the other.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn id_of(&self, netns: &NetNs) -> Result<Option<i32>, Error> {
        let mut message = NsidMessage::default();
        let fd = netns.as_fd().as_raw_fd();
        message.attributes.push(NsidAttribute::Fd(fd as u32));
        let op = || format!("find the id of {:?}", netns.path());
        let answer = self.get(RouteNetlinkMessage::GetNsId(message), decode, op)?;
        let Some(RouteNetlinkMessage::NewNsId(message)) = answer else {
            return Err(Error::new(op(), Errno::EBADMSG));
        };
        let id = message.attributes.iter().find_map(|it| match it {
            NsidAttribute::Id(id) => Some(*id),
            _ => None,
        });
        Ok(id.filter(|id| *id >= 0))
    }

    pub(crate) fn set_link(
        &self,
        message: LinkMessage,
        op: impl Fn() -> String,
    ) -> Result<(), Error> {
        self.change(RouteNetlinkMessage::SetLink(message), 0, op)
    }

    /// What a message calls the link with `index`: its name, if it still has one. Only
    /// what has failed is told, so the question costs nothing.
    pub(crate) fn told(&self, index: u32) -> String {
        match self.find_link_by_index(index) {
            Ok(Some(link)) => link.name,
            _ => format!("link {index}"),
        }
    }

    fn set_attribute(
        &self,
        index: u32,
        attribute: LinkAttribute,
        op: impl Fn() -> String,
    ) -> Result<(), Error> {
        let mut message = link_message(index);
        message.attributes.push(attribute);
        self.set_link(message, op)
    }

    fn look_up(
        &self,
        mut message: LinkMessage,
        op: impl Fn() -> String,
    ) -> Result<Option<Link>, Error> {
        message.attributes.push(without_statistics());
        match self.get(RouteNetlinkMessage::GetLink(message), Link::read, &op) {
            // ERANGE: no link has a name that long.
            Err(error) if error.is_not_found() || error.errno() == Errno::ERANGE => Ok(None),
            Ok(None) => Err(Error::new(op(), Errno::EBADMSG)),
            other => other,
        }
    }
}

/// The start of a request about the link with `index`.
pub(crate) fn link_message(index: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message
}

/// Sets one flag of a link and leaves the others alone.
pub(crate) fn flag(index: u32, flag: LinkFlags, on: bool) -> LinkMessage {
    let mut message = link_message(index);
    message.header.change_mask = flag;
    if on {
        message.header.flags = flag;
    }
    message
}

pub(crate) fn up_with_alias(index: u32, alias: Option<&str>) -> LinkMessage {
    let mut message = flag(index, LinkFlags::Up, true);
    let alias = alias.map(|alias| LinkAttribute::IfAlias(alias.into()));
    message.attributes.extend(alias);
    message
}

/// Counters are most of a link's description, and take time to collect.
pub(crate) fn without_statistics() -> LinkAttribute {
    LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats])
}

impl Link {
    /// The link that a message describes, if it does.
    pub(crate) fn read(message: Message<'_>) -> Option<Self> {
        let (header, rest) = message.parts::<IFINFO>(libc::RTM_NEWLINK)?;
        let flags = LinkFlags::from_bits_retain(u32_of(&header[8..])?);
        let mut link = Self {
            index: u32_of(&header[4..])?,
            name: String::new(),
            mac: None,
            mtu: 0,
            kind: None,
            master: None,
            link: None,
            link_netnsid: None,
            up: flags.contains(LinkFlags::Up),
            operstate: OperState::Unknown,
            promisc: flags.contains(LinkFlags::Promisc),
            alias: None,
            vlan_filtering: None,
            port: None,
            accept_ra: None,
            heard_router: false,
        };
        for (attribute, value) in attributes(rest) {
            match attribute {
                libc::IFLA_IFNAME => link.name = text(value),
                libc::IFLA_ADDRESS => link.mac = Mac::from_slice(value),
                libc::IFLA_MTU => link.mtu = u32_of(value)?,
                libc::IFLA_MASTER => link.master = u32_of(value),
                libc::IFLA_LINK => link.link = u32_of(value),
                libc::IFLA_LINK_NETNSID => link.link_netnsid = u32_of(value).map(|it| it as i32),
                libc::IFLA_OPERSTATE => link.operstate = State::from(*value.first()?).into(),
                libc::IFLA_IFALIAS => link.alias = Some(text(value)),
                libc::IFLA_LINKINFO => link.read_info(value),
                libc::IFLA_AF_SPEC => {
                    link.accept_ra = accept_ra(value);
                    link.heard_router = heard_router(value);
                }
                _ => {}
            }
        }
        Some(link)
    }

    /// What it is, and what it is as a port of something.
    fn read_info(&mut self, info: &[u8]) {
        let mut port_of = None;
        for (attribute, value) in attributes(info) {
            match attribute {
                libc::IFLA_INFO_KIND => self.kind = Some(text(value)),
                libc::IFLA_INFO_DATA if self.is_kind("bridge") => {
                    self.vlan_filtering = switch(value, IFLA_BR_VLAN_FILTERING);
                }
                libc::IFLA_INFO_SLAVE_KIND => port_of = Some(text(value)),
                libc::IFLA_INFO_SLAVE_DATA if port_of.as_deref() == Some("bridge") => {
                    self.port = Some(Port {
                        hairpin: switch(value, IFLA_BRPORT_MODE).unwrap_or_default(),
                        isolated: switch(value, IFLA_BRPORT_ISOLATED).unwrap_or_default(),
                    });
                }
                _ => {}
            }
        }
    }

    /// Whether `ip link` shows it as `type KIND`.
    pub fn is_kind(&self, kind: &str) -> bool {
        self.kind.as_deref() == Some(kind)
    }
}

/// Bytes of `struct ifinfomsg`: family, type (u16), index, flags, and which of them change.
pub(crate) const IFINFO: usize = 16;

/// The value of an attribute that is on or off.
fn switch(bytes: &[u8], wanted: u16) -> Option<bool> {
    Some(*find(bytes, wanted)?.first()? != 0)
}

/// The settings of IPv6 come as a list of numbers, in the order of linux/ipv6.h.
fn accept_ra(families: &[u8]) -> Option<u32> {
    let settings = find_in(families, &[libc::AF_INET6 as u16, IFLA_INET6_CONF])?;
    u32_of(settings.get(4 * DEVCONF_ACCEPT_RA..)?)
}

/// `IF_RA_RCVD` in the flags of IPv6 (include/net/if_inet6.h).
fn heard_router(families: &[u8]) -> bool {
    const IFLA_INET6_FLAGS: u16 = 1;
    const IF_RA_RCVD: u32 = 0x20;
    let flags = find_in(families, &[libc::AF_INET6 as u16, IFLA_INET6_FLAGS]);
    flags
        .and_then(u32_of)
        .is_some_and(|flags| flags & IF_RA_RCVD != 0)
}

fn u32_of(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.first_chunk()?))
}

/// The kernel ends a text with a zero.
fn text(bytes: &[u8]) -> String {
    let text = bytes.split(|byte| *byte == 0).next();
    String::from_utf8_lossy(text.unwrap_or_default()).into_owned()
}
