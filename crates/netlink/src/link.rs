//! Links of any kind: look one up, change it, delete it.
//!
//! A link is looked up by its name or index, never by listing: with hundreds of
//! pods on a node a list is long, and it is interrupted whenever one comes or goes.

use std::fmt;

use nix::errno::Errno;
use rtnetlink::packet_route::{
    RouteNetlinkMessage,
    link::{
        InfoBridge, InfoBridgePort, InfoData, InfoPortData, LinkAttribute, LinkExtentMask,
        LinkFlags, LinkInfo, LinkMessage, State,
    },
};

use crate::{Error, Mac, Netlink};

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
        let mut message = LinkMessage::default();
        message.attributes.push(without_statistics());
        let links = self.dump(RouteNetlinkMessage::GetLink(message), || {
            "list links".into()
        })?;
        Ok(links.into_iter().filter_map(read_link).collect())
    }

    /// Brings a link up: `ip link set NAME up`.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_up(&self, index: u32) -> Result<(), Error> {
        let up = flag(index, LinkFlags::Up, true);
        self.set_link(up, || format!("set link {index} up"))
    }

    /// Brings a link down: `ip link set NAME down`.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_down(&self, index: u32) -> Result<(), Error> {
        let down = flag(index, LinkFlags::Up, false);
        self.set_link(down, || format!("set link {index} down"))
    }

    /// Switches promiscuous mode: `ip link set NAME promisc on`.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_promisc(&self, index: u32, on: bool) -> Result<(), Error> {
        let promisc = flag(index, LinkFlags::Promisc, on);
        self.set_link(promisc, || format!("set link {index} promisc {on}"))
    }

    /// Gives a link another name: `ip link set OLD name NEW`.
    ///
    /// # Errors
    /// When the name is taken (`EEXIST`) or too long (`ERANGE`).
    pub fn rename(&self, index: u32, name: &str) -> Result<(), Error> {
        let attribute = LinkAttribute::IfName(name.into());
        self.set_attribute(index, attribute, || format!("rename link {index} {name}"))
    }

    /// Sets the largest packet, in bytes: `ip link set NAME mtu MTU`.
    ///
    /// # Errors
    /// When the device cannot do it (`EINVAL`).
    pub fn set_mtu(&self, index: u32, mtu: u32) -> Result<(), Error> {
        let attribute = LinkAttribute::Mtu(mtu);
        self.set_attribute(index, attribute, || format!("set link {index} mtu {mtu}"))
    }

    /// Sets the hardware address: `ip link set NAME address MAC`.
    ///
    /// # Errors
    /// When the device cannot do it.
    pub fn set_mac(&self, index: u32, mac: Mac) -> Result<(), Error> {
        let attribute = LinkAttribute::Address(mac.0.to_vec());
        self.set_attribute(index, attribute, || {
            format!("set link {index} address {mac}")
        })
    }

    /// Makes a link a port of `master`: `ip link set NAME master BRIDGE`.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_master(&self, index: u32, master: u32) -> Result<(), Error> {
        let attribute = LinkAttribute::Controller(master);
        self.set_attribute(index, attribute, || {
            format!("set link {index} master {master}")
        })
    }

    /// Takes a link out of its bridge: `ip link set NAME nomaster`.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_no_master(&self, index: u32) -> Result<(), Error> {
        let attribute = LinkAttribute::Controller(0);
        self.set_attribute(index, attribute, || format!("set link {index} nomaster"))
    }

    /// Stores a text of up to 255 bytes with a link: `ip link set NAME alias TEXT`.
    ///
    /// # Errors
    /// When it is too long.
    pub fn set_alias(&self, index: u32, alias: &str) -> Result<(), Error> {
        let attribute = LinkAttribute::IfAlias(alias.into());
        self.set_attribute(index, attribute, || {
            format!("set link {index} alias {alias}")
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
        match self.remove(&link) {
            // Somebody else was quicker.
            Err(error) if error.is_not_found() => Ok(None),
            other => other.map(|()| Some(link)),
        }
    }

    pub(crate) fn set_link(
        &self,
        message: LinkMessage,
        op: impl Fn() -> String,
    ) -> Result<(), Error> {
        self.change(RouteNetlinkMessage::SetLink(message), 0, op)
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
        match self.get(RouteNetlinkMessage::GetLink(message), &op) {
            // ERANGE: no link has a name that long.
            Err(error) if error.is_not_found() || error.errno() == Errno::ERANGE => Ok(None),
            Err(error) => Err(error),
            Ok(reply) => read_link(reply)
                .map(Some)
                .ok_or_else(|| Error::new(op(), Errno::EBADMSG)),
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

/// Counters are most of a link's description, and take time to collect.
pub(crate) fn without_statistics() -> LinkAttribute {
    LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats])
}

pub(crate) fn read_link(message: RouteNetlinkMessage) -> Option<Link> {
    let RouteNetlinkMessage::NewLink(message) = message else {
        return None;
    };
    let flags = message.header.flags;
    let mut link = Link {
        index: message.header.index,
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
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Address(octets) => link.mac = Mac::from_slice(&octets),
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::Controller(index) => link.master = Some(index),
            LinkAttribute::Link(index) => link.link = Some(index),
            LinkAttribute::LinkNetNsId(id) => link.link_netnsid = Some(id),
            LinkAttribute::OperState(state) => link.operstate = state.into(),
            LinkAttribute::IfAlias(alias) => link.alias = Some(alias),
            LinkAttribute::LinkInfo(infos) => infos.into_iter().for_each(|info| link.read(info)),
            _ => {}
        }
    }
    Some(link)
}

impl Link {
    fn read(&mut self, info: LinkInfo) {
        match info {
            LinkInfo::Kind(kind) => self.kind = Some(kind.to_string()),
            LinkInfo::Data(InfoData::Bridge(data)) => {
                self.vlan_filtering = data.into_iter().find_map(|attribute| match attribute {
                    InfoBridge::VlanFiltering(on) => Some(on),
                    _ => None,
                });
            }
            LinkInfo::PortData(InfoPortData::BridgePort(data)) => {
                let mut port = Port::default();
                for attribute in data {
                    match attribute {
                        InfoBridgePort::HairpinMode(on) => port.hairpin = on,
                        InfoBridgePort::Isolated(on) => port.isolated = on,
                        _ => {}
                    }
                }
                self.port = Some(port);
            }
            _ => {}
        }
    }

    /// Whether `ip link` shows it as `type KIND`.
    pub fn is_kind(&self, kind: &str) -> bool {
        self.kind.as_deref() == Some(kind)
    }
}
