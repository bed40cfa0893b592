//! VXLAN devices: Ethernet in UDP over an IP network (RFC 7348).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, setsockopt, socket, sockopt,
};
use rtnetlink::{
    LinkMessageBuilder, LinkUnspec,
    packet_core::{NLM_F_CREATE, NLM_F_EXCL},
    packet_route::{
        RouteNetlinkMessage,
        link::{InfoBridgePort, InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo},
    },
};

use transport::Message;

use crate::{
    Error, Family, Link, Mac, Netlink,
    creation::new_link,
    link::{link, without_statistics},
    request::decode,
};

/// The largest VNI: it has 24 bits.
pub const MAX_VNI: u32 = (1 << 24) - 1;

/// The settings of a VXLAN device. Most of them cannot be changed later.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Vxlan {
    /// The VXLAN network identifier.
    pub vni: u32,
    /// The UDP port of this and all other VTEPs.
    pub port: u16,
    /// The source address of packets in the underlay.
    pub local: Option<IpAddr>,
    /// The index of the outgoing link; without one, routes decide.
    pub link: Option<u32>,
    /// The destination of frames for which there is no entry: a multicast group in the underlay.
    pub group: Option<IpAddr>,
    /// The hop limit of packets in the underlay; 0 stands for the node's default, and for 1 with a
    /// multicast group.
    pub ttl: u8,
    /// Whether it learns from received packets which address is behind which VTEP.
    pub learning: bool,
    /// Whether packets carry the group policy extension (draft-smith-vxlan-group-policy).
    pub gbp: bool,
    /// Whether the UDP packets have checksums.
    pub udp_checksum: bool,
}

/// How packets to a UDP port are parsed. Devices that are up and have the same port and family
/// share a socket, so they must agree in this (`VXLAN_F_RCV_FLAGS`, include/net/vxlan.h).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Receiving {
    /// With the group policy extension.
    pub gbp: bool,
    /// Without checksums, over IPv6.
    pub zero_checksum6: bool,
    /// With the generic protocol extension.
    pub gpe: bool,
    /// For many VNIs at once.
    pub external: bool,
    /// For a set of VNIs.
    pub vni_filter: bool,
    /// With remote checksum offload, whole or not.
    pub remote_checksum: [bool; 2],
}

impl std::fmt::Display for Receiving {
    /// The options that are set: `gbp, gpe`, or `no option`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let all = [
            (self.gbp, "gbp"),
            (self.zero_checksum6, "udp6zerocsumrx"),
            (self.gpe, "gpe"),
            (self.external, "external"),
            (self.vni_filter, "vnifilter"),
            (self.remote_checksum != [false; 2], "remcsumrx"),
        ];
        let names: Vec<_> = all.iter().filter(|it| it.0).map(|it| it.1).collect();
        if names.is_empty() {
            return f.write_str("no option");
        }
        f.write_str(&names.join(", "))
    }
}

/// An existing VXLAN device, of any program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VxlanDevice {
    /// Its name.
    pub name: String,
    /// Whether it is up: only then does it have a socket.
    pub up: bool,
    /// Its settings.
    pub vxlan: Vxlan,
    /// How it parses packets.
    pub receiving: Receiving,
}

impl Vxlan {
    /// The family of the underlay; IPv4 if there is no address.
    pub fn family(&self) -> Family {
        self.local.or(self.group).map_or(Family::V4, Family::of)
    }

    /// How a device that we create parses packets.
    pub fn receiving(&self) -> Receiving {
        Receiving {
            gbp: self.gbp,
            zero_checksum6: self.family() == Family::V6 && !self.udp_checksum,
            ..Receiving::default()
        }
    }
}

impl VxlanDevice {
    /// Whether it receives packets of `family`.
    pub fn hears(&self, family: Family) -> bool {
        self.up && (self.receiving.external || self.vxlan.family() == family)
    }
}

/// A VXLAN device to create.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VxlanSpec {
    /// Its name, at most 15 bytes.
    pub name: String,
    /// Its settings.
    pub vxlan: Vxlan,
    /// Its hardware address, which peers know.
    pub mac: Mac,
    /// The largest packet inside, in bytes.
    pub mtu: u32,
}

/// The settings of a VXLAN device as a port of a bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VxlanPort {
    /// The index of the bridge.
    pub bridge: u32,
    /// Whether the bridge answers for neighbours that it knows, instead of flooding the request to
    /// all peers.
    pub neigh_suppress: bool,
}

impl Netlink {
    /// The link called `name`, with its settings if it is a VXLAN device; `None` if there is no
    /// such link: `ip -d link show dev NAME`, one request.
    ///
    /// # Errors
    /// When the kernel cannot be queried.
    pub fn find_vxlan(&self, name: &str) -> Result<Option<(Link, Option<Vxlan>)>, Error> {
        let found = |message: Message<'_>| {
            let vxlan = decode(message).and_then(read).map(|it| it.vxlan);
            Link::read(message).map(|link| (link, vxlan))
        };
        self.find_as(name, found)
    }

    /// Every VXLAN device of the namespace: `ip -d link show type vxlan`.
    ///
    /// # Errors
    /// When the kernel cannot be queried.
    pub fn list_vxlans(&self) -> Result<Vec<VxlanDevice>, Error> {
        let message = LinkMessageBuilder::new_with_info_kind(InfoKind::Vxlan);
        let request = RouteNetlinkMessage::GetLink(without_statistics(message).build());
        self.dump(request, read, || "list VXLAN devices".into())
    }

    /// Creates a VXLAN device, which is down: `ip link add NAME address MAC mtu MTU type vxlan
    /// id VNI dstport PORT local IP dev LINK group GROUP ttl TTL [no]learning …`.
    ///
    /// # Errors
    /// `EEXIST` when there is a link of that name, or a device of that VNI and port.
    pub fn add_vxlan(&self, spec: &VxlanSpec) -> Result<Link, Error> {
        let name = &spec.name;
        let (mac, mtu) = (Some(spec.mac), Some(spec.mtu));
        let message = new_link(Some(InfoKind::Vxlan), name, mac, mtu)
            .set_info_data(InfoData::Vxlan(data(&spec.vxlan)));
        let request = RouteNetlinkMessage::NewLink(message.build());
        self.change(request, NLM_F_CREATE | NLM_F_EXCL, || {
            format!("add vxlan device {name}")
        })?;
        self.get_link(name)
    }

    /// Sets whether a VXLAN device learns, and the hop limit of its packets:
    /// `ip link set NAME type vxlan learning|nolearning ttl TTL`.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn change_vxlan(&self, index: u32, learning: bool, ttl: u8) -> Result<(), Error> {
        let data = vec![InfoVxlan::Learning(learning), InfoVxlan::Ttl(ttl)];
        let message = LinkMessageBuilder::<LinkUnspec>::new_with_info_kind(InfoKind::Vxlan)
            .index(index)
            .set_info_data(InfoData::Vxlan(data))
            .build();
        self.change(RouteNetlinkMessage::NewLink(message), 0, || {
            format!("set {} learning {learning} ttl {ttl}", self.name_of(index))
        })
    }

    /// Makes a VXLAN device a port of a bridge: `ip link set LINK master BRIDGE`, then
    /// `bridge link set dev LINK neigh_suppress on|off`.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn attach_vxlan(&self, link: &Link, port: VxlanPort) -> Result<(), Error> {
        if link.master != Some(port.bridge) {
            self.set_master(link.index, port.bridge)?;
        }
        let settings = vec![InfoBridgePort::NeighSupress(port.neigh_suppress)];
        self.set_port(link, port.bridge, self::link(link.index), settings)
    }
}

/// Whether another socket has the UDP port, in this thread's namespace, so that a VXLAN device could
/// not come up: the kernel binds its socket like a program.
pub fn is_port_taken(family: Family, port: u16) -> bool {
    try_bind(family, port) == Err(Errno::EADDRINUSE)
}

fn try_bind(family: Family, port: u16) -> Result<(), Errno> {
    let (of, any) = match family {
        Family::V4 => (AddressFamily::Inet, IpAddr::from(Ipv4Addr::UNSPECIFIED)),
        Family::V6 => (AddressFamily::Inet6, IpAddr::from(Ipv6Addr::UNSPECIFIED)),
    };
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket(of, SockType::Datagram, flags, None)?;
    if family == Family::V6 {
        setsockopt(&socket, sockopt::Ipv6V6Only, &true)?;
    }
    let address = SockaddrStorage::from(SocketAddr::new(any, port));
    bind(socket.as_raw_fd(), &address)
}

fn data(vxlan: &Vxlan) -> Vec<InfoVxlan> {
    let mut data = vec![
        InfoVxlan::Id(vxlan.vni),
        InfoVxlan::Port(vxlan.port),
        InfoVxlan::Ttl(vxlan.ttl),
        InfoVxlan::Learning(vxlan.learning),
    ];
    data.extend(vxlan.link.map(InfoVxlan::Link));
    data.extend(vxlan.local.map(|ip| match ip {
        IpAddr::V4(ip) => InfoVxlan::Local(ip),
        IpAddr::V6(ip) => InfoVxlan::Local6(ip),
    }));
    data.extend(vxlan.group.map(|ip| match ip {
        IpAddr::V4(ip) => InfoVxlan::Group(ip),
        IpAddr::V6(ip) => InfoVxlan::Group6(ip),
    }));
    if vxlan.gbp {
        data.push(InfoVxlan::Gbp);
    }
    if vxlan.local.is_some_and(|ip| ip.is_ipv6()) {
        // Over IPv6, packets without a checksum are dropped unless allowed (RFC 6935).
        data.push(InfoVxlan::UDPZeroCsumTX(!vxlan.udp_checksum));
        data.push(InfoVxlan::UDPZeroCsumRX(!vxlan.udp_checksum));
    } else {
        data.push(InfoVxlan::UDPCsum(vxlan.udp_checksum));
    }
    data
}

/// The VXLAN device that a message describes, if it does.
pub(crate) fn read(message: RouteNetlinkMessage) -> Option<VxlanDevice> {
    let RouteNetlinkMessage::NewLink(message) = message else {
        return None;
    };
    let up = message.header.flags.contains(LinkFlags::Up);
    let (mut name, mut data) = (None, None);
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(text) => name = Some(text),
            LinkAttribute::LinkInfo(infos) => {
                data = infos.into_iter().find_map(|info| match info {
                    LinkInfo::Data(InfoData::Vxlan(data)) => Some(data),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    let (vxlan, receiving) = read_data(data?);
    Some(VxlanDevice {
        name: name?,
        up,
        vxlan,
        receiving,
    })
}

fn read_data(data: Vec<InfoVxlan>) -> (Vxlan, Receiving) {
    let (mut vxlan, mut receiving) = (Vxlan::default(), Receiving::default());
    let (mut checksum, mut no_checksum6) = (false, false);
    for attribute in data {
        match attribute {
            InfoVxlan::Id(vni) => vxlan.vni = vni,
            InfoVxlan::Port(port) => vxlan.port = port,
            InfoVxlan::Local(ip) => vxlan.local = specified(ip.into()),
            InfoVxlan::Local6(ip) => vxlan.local = specified(ip.into()),
            InfoVxlan::Group(ip) => vxlan.group = specified(ip.into()),
            InfoVxlan::Group6(ip) => vxlan.group = specified(ip.into()),
            InfoVxlan::Link(index) => vxlan.link = Some(index).filter(|index| *index != 0),
            InfoVxlan::Ttl(ttl) => vxlan.ttl = ttl,
            InfoVxlan::Learning(on) => vxlan.learning = on,
            InfoVxlan::Gbp => (vxlan.gbp, receiving.gbp) = (true, true),
            InfoVxlan::UDPCsum(on) => checksum = on,
            InfoVxlan::UDPZeroCsumTX(on) => no_checksum6 = on,
            InfoVxlan::Gpe => receiving.gpe = true,
            InfoVxlan::UDPZeroCsumRX(on) => receiving.zero_checksum6 = on,
            InfoVxlan::CollectMetadata(on) => receiving.external = on,
            InfoVxlan::Vnifilter(on) => receiving.vni_filter = on,
            InfoVxlan::RemCsumRX(on) => receiving.remote_checksum[0] = on,
            InfoVxlan::RemCsumNoPartial => receiving.remote_checksum[1] = true,
            _ => {}
        }
    }
    vxlan.udp_checksum = match vxlan.local {
        Some(IpAddr::V6(_)) => !no_checksum6,
        _ => checksum,
    };
    (vxlan, receiving)
}

/// The kernel may report "none" as an address of zeros.
fn specified(ip: IpAddr) -> Option<IpAddr> {
    Some(ip).filter(|ip| !ip.is_unspecified())
}
