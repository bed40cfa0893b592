//! Links of any kind: look them up, change them, delete them.
//!
//! A link is looked up by its name or index, not in a list of all: on a node with hundreds of
//! pods the list is long, and reading it is interrupted whenever a link comes or goes.

use std::{
    fmt,
    os::fd::{AsFd, AsRawFd},
};

use netns::NetNs;
use nix::{errno::Errno, libc};
use rtnetlink::{
    LinkMessageBuilder, LinkUnspec,
    packet_route::{
        RouteNetlinkMessage,
        link::{InfoData, LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo, State},
        nsid::{NsidAttribute, NsidMessage},
    },
};
use transport::{Message, Protocol, Route, attributes, find};

use crate::{Error, Mac, Netlink, request::decode};

/// linux/if_link.h
const IFLA_BR_VLAN_FILTERING: u16 = 7;
const IFLA_VLAN_ID: u16 = 1;
const IFLA_BR_MCAST_QUERIER: u16 = 25;
const IFLA_BRPORT_MODE: u16 = 4;
const IFLA_VRF_TABLE: u16 = 1;
const IFLA_BRPORT_ISOLATED: u16 = 33;
const IFLA_INET6_FLAGS: u16 = 1;
const IFLA_INET6_CONF: u16 = 2;
/// linux/ipv6.h
const DEVCONF_ACCEPT_RA: usize = 3;
/// include/net/if_inet6.h
const IF_RA_RCVD: u32 = 0x20;

/// A network device, as the kernel described it at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// The interface index, unique in its namespace.
    pub index: u32,
    /// The name, at most 15 bytes.
    pub name: String,
    /// The hardware address, if it has one of six bytes.
    pub mac: Option<Mac>,
    /// The largest packet it carries, in bytes.
    pub mtu: u32,
    /// The word of `ip link … type`: "bridge", "veth"; absent for hardware and `lo`.
    pub kind: Option<String>,
    /// The index of the bridge, bond or vrf that it is a port of.
    pub master: Option<u32>,
    /// The index of a veth's peer, or of the parent of a vlan or macvlan.
    pub link: Option<u32>,
    /// The id (in this namespace) of the namespace of [`Link::link`], if that is another one.
    pub link_netnsid: Option<i32>,
    /// Whether it was set up (`IFF_UP`). [`Link::operstate`] shows whether it carries packets.
    pub up: bool,
    /// The operational state of RFC 2863.
    pub operstate: OperState,
    /// Whether promiscuous mode was requested (`IFF_PROMISC`).
    pub promisc: bool,
    /// Whether reception of all multicast packets was requested (`IFF_ALLMULTI`).
    pub allmulti: bool,
    /// How many packets may wait to be sent, where the queueing discipline uses it.
    pub tx_queue_len: u32,
    /// The text of `ip link set … alias`.
    pub alias: Option<String>,
    /// For a bridge, whether it filters by VLAN.
    pub vlan_filtering: Option<bool>,
    /// For a VRF, the table of its routes.
    pub vrf_table: Option<u32>,
    /// For a vlan, its VLAN id.
    pub vlan_id: Option<u16>,
    /// For a bridge, whether it sends multicast queries, and so learns which port wants which group.
    pub querier: bool,
    /// For a port of a bridge, how it forwards.
    pub port: Option<Port>,
    /// Whether the kernel has received a router advertisement after its own solicitation.
    pub heard_router: bool,
    /// Whether router advertisements are accepted (the setting `accept_ra`); absent without IPv6.
    pub accept_ra: Option<u32>,
}

/// The settings of a bridge port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Port {
    /// Frames may leave through the port they came in by.
    pub hairpin: bool,
    /// It forwards nothing to and from other isolated ports.
    pub isolated: bool,
}

/// The operational state of a link (RFC 2863, section 3.1.14).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OperState {
    /// The driver does not report it; usual for `lo` and tunnels, which do work.
    #[default]
    Unknown,
    /// Some part is missing.
    NotPresent,
    /// No carrier, or not set up.
    Down,
    /// The peer, or the parent, is down.
    LowerLayerDown,
    /// In a test mode.
    Testing,
    /// It waits for an event, for example 802.1X.
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
    /// When the kernel cannot be queried; an absent link is no error.
    pub fn find_link(&self, name: &str) -> Result<Option<Link>, Error> {
        self.find_as(name, Link::read)
    }

    /// The link with `index`, if there is one.
    ///
    /// # Errors
    /// As [`Netlink::find_link`].
    pub fn find_link_by_index(&self, index: u32) -> Result<Option<Link>, Error> {
        self.look_up(link(index), Link::read, || format!("find link {index}"))
    }

    /// The other end of the veth `end`, if there is one, in whatever namespace it is:
    /// `ip link show netnsid ID` with the index.
    ///
    /// # Errors
    /// When the kernel cannot be queried; `EPERM` when its namespace may not be queried.
    pub fn find_peer(&self, end: &Link) -> Result<Option<Link>, Error> {
        let Some(index) = end.link.filter(|_| end.is_kind("veth")) else {
            return Ok(None);
        };
        let mut message = link(index);
        if let Some(id) = end.link_netnsid {
            message = message.append_extra_attribute(LinkAttribute::IfNetnsId(id));
        }
        self.look_up(message, Link::read, || {
            format!("find the peer of {}", end.name)
        })
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
    /// When the kernel cannot be queried.
    pub fn list_links(&self) -> Result<Vec<Link>, Error> {
        self.list_as(LinkMessageBuilder::default(), Link::read)
    }

    /// Every port of a bridge or bond: `ip link show master BRIDGE`.
    ///
    /// # Errors
    /// When the kernel cannot be queried.
    pub fn list_ports(&self, master: u32) -> Result<Vec<Link>, Error> {
        let of_master = LinkMessageBuilder::default().controller(master);
        let mut ports = self.list_as(of_master, Link::read)?;
        // Old kernels may not filter.
        ports.retain(|link| link.master == Some(master));
        Ok(ports)
    }

    /// Brings a link up: `ip link set NAME up`.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_up(&self, index: u32) -> Result<(), Error> {
        self.set_up_with_alias(index, None)
    }

    /// Brings a link up and sets its alias in the same request: `ip link set NAME up alias TEXT`.
    ///
    /// # Errors
    /// When the kernel refuses, or the alias is longer than 255 bytes.
    pub fn set_up_with_alias(&self, index: u32, alias: Option<&str>) -> Result<(), Error> {
        self.set_link(up_with_alias(index, alias), || {
            format!("set {} up", self.name_of(index))
        })
    }

    /// Brings a link down: `ip link set NAME down`.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_down(&self, index: u32) -> Result<(), Error> {
        self.set_link(link(index).down(), || {
            format!("set {} down", self.name_of(index))
        })
    }

    /// Renames a link: `ip link set OLD name NEW`.
    ///
    /// # Errors
    /// When the name is taken (`EEXIST`) or too long (`ERANGE`).
    pub fn rename(&self, index: u32, name: &str) -> Result<(), Error> {
        self.set_link(link(index).name(name), || {
            format!("rename {} {name}", self.name_of(index))
        })
    }

    /// Sets the largest packet, in bytes: `ip link set NAME mtu MTU`.
    ///
    /// # Errors
    /// When the device does not support it (`EINVAL`).
    pub fn set_mtu(&self, index: u32, mtu: u32) -> Result<(), Error> {
        self.set_link(link(index).mtu(mtu), || {
            format!("set {} mtu {mtu}", self.name_of(index))
        })
    }

    /// Sets the hardware address: `ip link set NAME address MAC`.
    ///
    /// # Errors
    /// When the device does not support it.
    pub fn set_mac(&self, index: u32, mac: Mac) -> Result<(), Error> {
        self.set_link(link(index).address(mac.0.to_vec()), || {
            format!("set {} address {mac}", self.name_of(index))
        })
    }

    /// Switches promiscuous mode: `ip link set NAME promisc on|off`.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_promisc(&self, index: u32, on: bool) -> Result<(), Error> {
        self.set_link(link(index).promiscuous(on), || {
            format!("set {} promisc {}", self.name_of(index), on_off(on))
        })
    }

    /// Switches the reception of all multicast packets: `ip link set NAME allmulticast on|off`.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_allmulti(&self, index: u32, on: bool) -> Result<(), Error> {
        self.set_link(link(index).allmulticast(on), || {
            format!("set {} allmulticast {}", self.name_of(index), on_off(on))
        })
    }

    /// Sets how many packets may wait to be sent: `ip link set NAME txqueuelen LENGTH`.
    ///
    /// # Errors
    /// When the device does not support it.
    pub fn set_tx_queue_len(&self, index: u32, length: u32) -> Result<(), Error> {
        self.set_link(link(index).txqueuelen(length), || {
            format!("set {} txqueuelen {length}", self.name_of(index))
        })
    }

    /// Makes a link a port of `master`: `ip link set NAME master BRIDGE`.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_master(&self, index: u32, master: u32) -> Result<(), Error> {
        self.set_link(link(index).controller(master), || {
            format!(
                "set {} master {}",
                self.name_of(index),
                self.name_of(master)
            )
        })
    }

    /// Takes a link out of its bridge, bond or VRF: `ip link set NAME nomaster`.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn clear_master(&self, index: u32) -> Result<(), Error> {
        self.set_link(link(index).nocontroller(), || {
            format!("set {} nomaster", self.name_of(index))
        })
    }

    /// Stores a text of up to 255 bytes with a link: `ip link set NAME alias TEXT`.
    ///
    /// # Errors
    /// When it is too long.
    pub fn set_alias(&self, index: u32, alias: &str) -> Result<(), Error> {
        self.set_link(link(index).alias(alias), || {
            format!("set {} alias {alias}", self.name_of(index))
        })
    }

    /// Deletes the link called `name`: `ip link delete NAME`. It may be absent. On return it
    /// is gone and its name is free; the kernel frees its memory a little later, while a child
    /// process waits for that.
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
        let link = self.find_link(name)?;
        if let Some(link) = &link {
            self.remove(link)?;
        }
        Ok(link)
    }

    /// The id of `netns` in this socket's namespace, as in [`Link::link_netnsid`]: `ip netns
    /// list-id target-nsid`. `None` where it has none, because no link connects the two.
    ///
    /// # Errors
    /// When the kernel cannot be queried.
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
        message: LinkMessageBuilder<LinkUnspec>,
        op: impl Fn() -> String,
    ) -> Result<(), Error> {
        self.change(RouteNetlinkMessage::SetLink(message.build()), 0, op)
    }

    /// The name of a link for an error message. It is queried only when a request has failed.
    pub(crate) fn name_of(&self, index: u32) -> String {
        match self.find_link_by_index(index) {
            Ok(Some(link)) => link.name,
            _ => format!("link {index}"),
        }
    }

    /// Requests all links that match `message`, and returns what `read` makes of each description.
    pub(crate) fn list_as<T>(
        &self,
        message: LinkMessageBuilder<LinkUnspec>,
        read: impl Fn(Message<'_>) -> Option<T>,
    ) -> Result<Vec<T>, Error> {
        let request = RouteNetlinkMessage::GetLink(without_statistics(message).build());
        self.dump_undecoded(request, read, || "list links".into())
    }

    /// Requests the link called `name`, and returns what `read` makes of its description.
    pub(crate) fn find_as<T>(
        &self,
        name: &str,
        read: impl Fn(Message<'_>) -> Option<T>,
    ) -> Result<Option<T>, Error> {
        let message = LinkUnspec::new_with_name(name);
        self.look_up(message, read, || format!("find link {name}"))
    }

    /// Requests one link and returns what `read` makes of its description.
    pub(crate) fn look_up<T>(
        &self,
        message: LinkMessageBuilder<LinkUnspec>,
        read: impl Fn(Message<'_>) -> Option<T>,
        op: impl Fn() -> String,
    ) -> Result<Option<T>, Error> {
        let request = RouteNetlinkMessage::GetLink(without_statistics(message).build());
        match self.get(request, read, &op) {
            // ERANGE: no link has a name that long.
            Err(error) if error.is_not_found() || error.errno() == Errno::ERANGE => Ok(None),
            Ok(None) => Err(Error::new(op(), Errno::EBADMSG)),
            other => other,
        }
    }
}

/// The attributes of the kind of a link, if `of_kind` accepts the kind.
pub(crate) fn data<T>(
    message: &RouteNetlinkMessage,
    of_kind: impl Fn(&InfoData) -> Option<&T>,
) -> Option<&T> {
    let RouteNetlinkMessage::NewLink(message) = message else {
        return None;
    };
    let infos = message.attributes.iter().flat_map(|it| match it {
        LinkAttribute::LinkInfo(infos) => infos.as_slice(),
        _ => &[],
    });
    let mut data = infos.filter_map(|it| match it {
        LinkInfo::Data(data) => of_kind(data),
        _ => None,
    });
    data.next()
}

/// The start of a request about the link with `index`.
pub(crate) fn link(index: u32) -> LinkMessageBuilder<LinkUnspec> {
    LinkUnspec::new_with_index(index)
}

pub(crate) fn up_with_alias(index: u32, alias: Option<&str>) -> LinkMessageBuilder<LinkUnspec> {
    let message = link(index).up();
    match alias {
        Some(alias) => message.alias(alias),
        None => message,
    }
}

fn on_off(on: bool) -> &'static str {
    if on { "on" } else { "off" }
}

/// Counters are most of a link's description, and take time to collect.
pub(crate) fn without_statistics(
    message: LinkMessageBuilder<LinkUnspec>,
) -> LinkMessageBuilder<LinkUnspec> {
    message.append_extra_attribute(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]))
}

impl Link {
    /// The link that a message describes, if it does.
    pub(crate) fn read(message: Message<'_>) -> Option<Self> {
        let (header, rest) = message.parts::<IFINFO>(libc::RTM_NEWLINK)?;
        let flags = LinkFlags::from_bits_retain(Route::u32(&header[8..12])?);
        let mut link = Self {
            index: Route::u32(&header[4..8])?,
            up: flags.contains(LinkFlags::Up),
            promisc: flags.contains(LinkFlags::Promisc),
            allmulti: flags.contains(LinkFlags::Allmulti),
            ..Self::default()
        };
        for (attribute, value) in attributes(rest) {
            match attribute {
                libc::IFLA_IFNAME => link.name = text(value),
                libc::IFLA_ADDRESS => link.mac = Mac::from_slice(value),
                libc::IFLA_MTU => link.mtu = Route::u32(value)?,
                libc::IFLA_TXQLEN => link.tx_queue_len = Route::u32(value)?,
                libc::IFLA_MASTER => link.master = Route::u32(value),
                libc::IFLA_LINK => link.link = Route::u32(value),
                libc::IFLA_LINK_NETNSID => {
                    link.link_netnsid = Route::u32(value).map(|it| it as i32)
                }
                libc::IFLA_OPERSTATE => link.operstate = State::from(*value.first()?).into(),
                libc::IFLA_IFALIAS => link.alias = Some(text(value)),
                libc::IFLA_LINKINFO => link.read_info(value),
                libc::IFLA_AF_SPEC => link.read_ipv6(value),
                _ => {}
            }
        }
        Some(link)
    }

    /// Reads its kind, and its settings as a port.
    fn read_info(&mut self, info: &[u8]) {
        let mut port_of = None;
        for (attribute, value) in attributes(info) {
            match attribute {
                libc::IFLA_INFO_KIND => self.kind = Some(text(value)),
                libc::IFLA_INFO_DATA if self.is_kind("bridge") => {
                    self.vlan_filtering = switch(value, IFLA_BR_VLAN_FILTERING);
                    self.querier = switch(value, IFLA_BR_MCAST_QUERIER).unwrap_or_default();
                }
                libc::IFLA_INFO_DATA if self.is_kind("vrf") => {
                    self.vrf_table = find(value, IFLA_VRF_TABLE).and_then(Route::u32);
                }
                libc::IFLA_INFO_DATA if self.is_kind("vlan") => {
                    let id = find(value, IFLA_VLAN_ID).and_then(<[u8]>::first_chunk);
                    self.vlan_id = id.map(|id| u16::from_ne_bytes(*id));
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

    /// Reads the settings of IPv6, which are a list of numbers in the order of linux/ipv6.h.
    fn read_ipv6(&mut self, families: &[u8]) {
        let Some(ipv6) = find(families, libc::AF_INET6 as u16) else {
            return;
        };
        let settings = find(ipv6, IFLA_INET6_CONF).unwrap_or_default();
        let accept_ra = settings.chunks_exact(4).nth(DEVCONF_ACCEPT_RA);
        self.accept_ra = accept_ra.and_then(Route::u32);
        let flags = find(ipv6, IFLA_INET6_FLAGS).and_then(Route::u32);
        self.heard_router = flags.is_some_and(|flags| flags & IF_RA_RCVD != 0);
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

/// A text up to the zero byte that ends it.
fn text(bytes: &[u8]) -> String {
    let text = bytes.split(|byte| *byte == 0).next();
    String::from_utf8_lossy(text.unwrap_or_default()).into_owned()
}
