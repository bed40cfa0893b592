//! Decides from the keys what the network is. Pure: no system calls.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;

use cni::env::IfName;
use cni::faults::{Checks, Fault, Faults};
use cni::names;
use ipnetwork::IpNetwork;
use netlink::{Entry, Family, MAX_VNI, Mac};
use wiring::mtu::{self, Mtu};

use crate::conf::Conf;
use crate::fault::fault;
use crate::mode::Mode;
use crate::peer::{self, Peer};
use crate::peer_checks::{Needed, check_captures, check_together, overlap};

/// A network without contradictions.
#[derive(Clone, Debug, PartialEq)]
pub struct Network {
    /// Its name.
    pub name: String,
    /// How the pods of two hosts are connected.
    pub mode: Mode,
    /// The VXLAN network identifier.
    pub vni: u32,
    /// The UDP port.
    pub port: u16,
    /// The interface of the underlay, if the configuration names one.
    pub dev: Option<IfName>,
    /// The address in the underlay, if the configuration names one.
    pub local: Option<IpAddr>,
    /// The family of the underlay, if any key determines it.
    pub family: Option<Family>,
    /// The multicast group that all hosts are in.
    pub group: Option<IpAddr>,
    /// The hop limit in the underlay.
    pub ttl: u8,
    /// Whether the device learns.
    pub learning: bool,
    /// The largest packet of a pod; `None` for the largest that fits.
    pub mtu: Option<u32>,
    /// Whether packets have the group policy extension.
    pub gbp: bool,
    /// Whether packets in the underlay have UDP checksums.
    pub udp_checksum: bool,
    /// The MAC of this host's device, if the configuration names one.
    pub mac: Option<Mac>,
    /// The bridge with the pods' ports.
    pub bridge: IfName,
    /// The peers that the configuration lists.
    pub peers: Vec<Peer>,
    /// The name of the device, where the agent keeps it. Its peers come from a store then, and it is
    /// replaced where a plugin would refuse one that differs.
    pub kept_as: Option<IfName>,
}

impl Network {
    /// Checks all keys; compares them with each other only if each is valid. `name` is the name of the
    /// network.
    ///
    /// # Errors
    /// Code 7, each fault with its key.
    pub fn new(conf: &Conf, name: &str) -> Result<Self, Faults> {
        let mut checks = Checks::default();
        let mode = checks.take(Mode::parse(&conf.mode));
        let vni = checks.take(vni(conf.vni));
        let port = checks.take(in_range("port", conf.port, 1, 65535));
        let dev = checks.take(interface("dev", &conf.dev));
        let family = checks.take(family(&conf.underlay));
        let ttl = checks.take(in_range("ttl", conf.ttl, 0, 255));
        let mtu = checks.take(mtu(conf.mtu));
        let mac = checks.take(peer::mac(&conf.mac).map_err(|why| fault("mac", why)));
        let bridge = checks.take(bridge(&conf.bridge, name));
        checks.take(check_group(conf.group, mode));
        let peers = mode.map(|mode| {
            let read = |key: &str, keys: &_| Peer::new(keys, mode, key);
            checks.each("peers", &conf.peers, read)
        });
        let mut network = checks.finish(|| {
            Some(Self {
                name: name.to_owned(),
                mode: mode?,
                vni: vni?,
                port: port? as u16,
                dev: dev?,
                local: conf.local,
                family: family?,
                group: conf.group,
                ttl: ttl? as u8,
                learning: conf.learning.unwrap_or(mode? == Mode::L2),
                mtu: mtu?,
                gbp: conf.gbp,
                udp_checksum: conf.udp_checksum,
                mac: mac?,
                bridge: bridge?,
                peers: peers?,
                kept_as: None,
            })
        })?;
        let mut checks = Checks::default();
        check_together(network.mode, network.vni, &network.peers, &mut checks);
        let family = network.one_family(&mut checks);
        network.check_local(&mut checks);
        network.family = family;
        checks.finish(|| Some(network))
    }

    /// The name of the VXLAN device; the longest has 14 bytes.
    pub fn device(&self) -> String {
        match &self.kept_as {
            Some(name) => name.as_str().to_owned(),
            None => format!("vxlan.{}", self.vni),
        }
    }

    /// The kernel's entries for the configuration's peers.
    pub fn entries(&self) -> Vec<Entry> {
        self.entries_of(&self.peers)
    }

    /// The kernel's entries for `peers`.
    pub fn entries_of(&self, peers: &[Peer]) -> Vec<Entry> {
        peer::entries(self.mode, self.vni, peers, self.group.is_none())
    }

    /// Checks `peers` from another source like those of the configuration.
    ///
    /// # Errors
    /// Code 7, with the key at fault.
    pub fn check_peers(&self, peers: &[Peer]) -> Result<(), Faults> {
        let mut checks = Checks::default();
        check_together(self.mode, self.vni, peers, &mut checks);
        let other = Self {
            peers: peers.to_vec(),
            ..self.clone()
        };
        other.one_family(&mut checks);
        checks.finish(|| Some(()))
    }

    /// The key and the reason why this network and another cannot be on the same node, if there is one.
    pub fn clash(&self, other: &Self) -> Option<(&'static str, String)> {
        let name = &other.name;
        if self.vni == other.vni {
            let why = format!("{} is that of network {name:?}, too", self.vni);
            return Some(("vni", why));
        }
        let family = |it: &Self| it.family.unwrap_or(Family::V4);
        if self.port != other.port || family(self) != family(other) {
            return None;
        }
        let settings = [
            ("gbp", true, self.gbp, other.gbp),
            // Packets over IPv4 without a checksum are never dropped.
            (
                "udpChecksum",
                family(self) == Family::V6,
                self.udp_checksum,
                other.udp_checksum,
            ),
        ];
        let differs =
            |(_, matters, ours, theirs): &(_, bool, bool, bool)| *matters && ours != theirs;
        let (key, _, ours, theirs) = settings.into_iter().find(differs)?;
        let text = |on: bool| if on { "with" } else { "without" };
        let (port, ours, theirs) = (self.port, text(ours), text(theirs));
        let why = format!("{ours}, and network {name:?} {theirs}, both on port {port}");
        Some((key, why))
    }

    /// A hash of the configuration's entries.
    pub fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.entries().hash(&mut hasher);
        hasher.finish()
    }

    /// Fails for a peer that is this host, with the address `local`.
    ///
    /// # Errors
    /// Code 7, with the key at fault.
    pub fn check_not_ourselves(&self, peers: &[Peer], local: IpAddr) -> Result<(), Fault> {
        match peers.iter().position(|peer| peer.vtep == local) {
            None => Ok(()),
            Some(index) => {
                let key = format!("peers[{index}].vtep");
                Err(fault(&key, format!("{local} is this node")))
            }
        }
    }

    /// Fails if one of `own`, the subnets of this host's pods, overlaps a peer's subnet, or contains
    /// the address of a peer or of this host (`local`).
    ///
    /// # Errors
    /// Code 7, with the key at fault.
    pub fn check_own_subnets(
        &self,
        own: &[IpNetwork],
        local: Option<IpAddr>,
    ) -> Result<(), Faults> {
        let mut checks = Checks::default();
        let vteps = self.peers.iter().map(|it| it.vtep);
        for ip in vteps.chain(local) {
            if let Some(ours) = own.iter().find(|it| it.contains(ip)) {
                let why = format!("{ours} is the pods' and holds {ip}, which the tunnel needs");
                checks.add(fault("ipam", why));
            }
        }
        let peers = self.peers.iter().enumerate();
        for (index, peer) in peers.filter(|_| self.mode == Mode::L3) {
            for theirs in &peer.subnets {
                if let Some(ours) = own.iter().find(|ours| overlap(**ours, *theirs)) {
                    let why = format!("{theirs} overlaps {ours}, the subnet of this node");
                    checks.add(fault(&format!("peers[{index}].subnet"), why));
                }
            }
        }
        checks.finish(|| Some(()))
    }

    /// Checks that `local` is an address of a host, and that no peer's subnet contains it.
    fn check_local(&self, checks: &mut Checks) {
        if let Some(local) = self.local.filter(|it| !peer::is_of_host(*it)) {
            let why = format!("{local} cannot be the address of a host");
            checks.add(fault("local", why));
        }
        let local = self.local.filter(|_| self.mode == Mode::L3);
        let needed = local.map(|ip| Needed {
            ip,
            what: "which is local",
        });
        checks.take(check_captures(&self.peers, needed.into_iter()));
    }

    /// The family of the first address. The others must have the same.
    fn one_family(&self, checks: &mut Checks) -> Option<Family> {
        let own = [("local", self.local), ("group", self.group)];
        let own = own
            .into_iter()
            .filter_map(|(key, ip)| Some((key.to_owned(), ip?)));
        let peers = self.peers.iter().enumerate();
        let peers = peers.map(|(index, peer)| (format!("peers[{index}].vtep"), peer.vtep));
        let mut family = self.family;
        for (key, ip) in own.chain(peers) {
            let known = *family.get_or_insert(Family::of(ip));
            if known != Family::of(ip) {
                let why = format!("{ip} is not {}, as the underlay is", text(known));
                checks.add(fault(&key, why));
            }
        }
        family
    }
}

pub(crate) fn text(family: Family) -> &'static str {
    match family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    }
}

fn vni(value: Option<i64>) -> Result<u32, Fault> {
    let value = value.ok_or_else(|| fault("vni", "missing"))?;
    Ok(in_range("vni", value, 0, MAX_VNI.into())? as u32)
}

fn in_range(key: &str, value: i64, least: i64, most: i64) -> Result<i64, Fault> {
    if !(least..=most).contains(&value) {
        let why = format!("{value} is not between {least} and {most}");
        return Err(fault(key, why));
    }
    Ok(value)
}

fn interface(key: &str, name: &str) -> Result<Option<IfName>, Fault> {
    if name.is_empty() {
        return Ok(None);
    }
    let parsed = IfName::parse_new(name).map(Some);
    parsed.map_err(|error| fault(key, format!("{name:?}: {error}")))
}

/// The network's bridge: `vxbr` and 8 hex digits, unless it is named.
fn bridge(named: &str, network: &str) -> Result<IfName, Fault> {
    let derived = || IfName::parse(&names::prefixed(12, "vxbr", network));
    match interface("bridge", named)? {
        Some(name) => Ok(name),
        None => derived().map_err(|error| Fault::at("bridge", error)),
    }
}

fn family(text: &str) -> Result<Option<Family>, Fault> {
    match text.to_ascii_lowercase().as_str() {
        "" => Ok(None),
        "ipv4" | "4" | "inet" => Ok(Some(Family::V4)),
        "ipv6" | "6" | "inet6" => Ok(Some(Family::V6)),
        _ => {
            let why = format!("{text:?} is neither ipv4 nor ipv6");
            Err(fault("underlay", why))
        }
    }
}

/// Whether it fits into the underlay is checked later.
fn mtu(mtu: Mtu) -> Result<Option<u32>, Fault> {
    let Mtu::Bytes(bytes) = mtu else {
        return Ok(None);
    };
    let (least, most) = mtu::RANGE.into_inner();
    in_range("mtu", bytes, least, most).map(|bytes| Some(bytes as u32))
}

fn check_group(group: Option<IpAddr>, mode: Option<Mode>) -> Result<(), Fault> {
    match group {
        Some(group) if !group.is_multicast() => {
            Err(fault("group", format!("{group} is not multicast")))
        }
        Some(_) if mode == Some(Mode::L3) => {
            Err(fault("group", "mode l3 sends nothing to a group"))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cni::Error;
    use cni::json;

    fn network(text: &str) -> Result<Network, Faults> {
        let conf: Conf = json::read(text).unwrap();
        Network::new(&conf, "mynet")
    }

    fn fault(text: &str) -> (u32, String) {
        let error = Error::from(network(text).unwrap_err());
        (error.code, error.msg)
    }

    /// Each line is a configuration, and the fault that it has.
    const FAULTS: &str = r#"
{} => vni: missing
{"vni": 16777216} => vni: 16777216 is not between 0 and 16777215
{"vni": -1} => vni: -1 is not between 0 and 16777215
{"vni": 1, "port": 0} => port: 0 is not between 1 and 65535
{"vni": 1, "port": 65536} => port: 65536 is not between 1 and 65535
{"vni": 1, "ttl": 256} => ttl: 256 is not between 0 and 255
{"vni": 1, "mode": "l4"} => mode: "l4" is neither l2 nor l3
{"vni": 1, "underlay": "ipx"} => underlay: "ipx" is neither ipv4 nor ipv6
{"vni": 1, "mode": "l2", "group": "192.0.2.1"} => group: 192.0.2.1 is not multicast
{"vni": 1, "group": "239.0.0.1"} => group: mode l3 sends nothing to a group
{"vni": 1, "mtu": 67} => mtu: 67 is not between 68 and 65535
{"vni": 1, "mac": "01:00:00:00:00:00"} => mac: address 01:00:00:00:00:00: an interface cannot have this MAC address
{"vni": 1, "dev": "much-too-long-for-one"} => dev: "much-too-long-for-one": interface name is too long; interface name should be less than 16 characters
{"vni": 1, "dev": "all"} => dev: "all": no interface can have that name
{"vni": 1, "bridge": "br%d"} => bridge: "br%d": no interface can have that name
{"vni": 1, "local": "127.0.0.1"} => local: 127.0.0.1 cannot be the address of a host
{"vni": 1, "peers": [{"vtep": "192.0.2.2", "subnet": "255.255.255.255/32"}]} => peers[0].subnet: 255.255.255.255/32: nothing is routed to 255.255.255.255
{"vni": 1, "underlay": "ipv6", "local": "192.0.2.1"} => local: 192.0.2.1 is not IPv6, as the underlay is
{"vni": 1, "mode": "l2", "peers": [{"vtep": "192.0.2.2"}, {"vtep": "2001:db8::2"}]} => peers[1].vtep: 2001:db8::2 is not IPv4, as the underlay is
{"vni": 1, "mode": "l2", "peers": [{"vtep": "192.0.2.2"}, {"vtep": "192.0.2.2"}]} => peers[1].vtep: 192.0.2.2 is that of peers[0], too
{"vni": 1, "peers": [{"vtep": "192.0.2.2", "subnet": "10.5.2.0/24"}, {"vtep": "192.0.2.3", "subnet": "10.5.2.0/24"}]} => peers[1].subnet: 10.5.2.0/24 overlaps 10.5.2.0/24 of peers[0]
{"vni": 1, "peers": [{"vtep": "192.0.2.2", "subnet": "10.5.2.128/25"}, {"vtep": "192.0.2.3", "subnet": "10.5.0.0/16"}]} => peers[1].subnet: 10.5.0.0/16 overlaps 10.5.2.128/25 of peers[0]
{"vni": 1, "peers": [{"vtep": "192.0.2.12", "subnet": "192.0.2.8/29"}]} => peers[0].subnet: 192.0.2.8/29 holds 192.0.2.12, which is the vtep of a peer
{"vni": 1, "peers": [{"vtep": "2001:db8::2", "subnet": ["10.5.2.0/24", "fd00:2::/64"]}, {"vtep": "2001:db8::3", "subnet": "2001:db8::/64"}]} => peers[1].subnet: 2001:db8::/64 holds 2001:db8::2, which is the vtep of a peer
{"vni": 1, "peers": [{"vtep": "192.0.2.2", "subnet": "0.0.0.0/0"}]} => peers[0].subnet: 0.0.0.0/0: nothing is routed to 0.0.0.0
{"vni": 1, "peers": [{"vtep": "192.0.2.2", "subnet": "127.0.0.0/8"}]} => peers[0].subnet: 127.0.0.0/8: nothing is routed to 127.0.0.0
{"vni": 1, "peers": [{"vtep": "192.0.2.2", "subnet": "224.0.0.0/4"}]} => peers[0].subnet: 224.0.0.0/4: nothing is routed to 224.0.0.0
{"vni": 1, "peers": [{"vtep": "192.0.2.2", "subnet": "fe80::/10"}]} => peers[0].subnet: fe80::/10: nothing is routed to fe80::
{"vni": 1, "peers": [{"vtep": "192.0.2.2", "subnet": "ff00::/8"}]} => peers[0].subnet: ff00::/8: nothing is routed to ff00::
{"vni": 1, "peers": [{"vtep": "192.0.2.2", "subnet": "::1/128"}]} => peers[0].subnet: ::1/128: nothing is routed to ::1
{"vni": 1, "local": "198.51.100.7", "peers": [{"vtep": "192.0.2.2", "subnet": "198.51.100.0/24"}]} => peers[0].subnet: 198.51.100.0/24 holds 198.51.100.7, which is local
{"vni": 1, "peers": [{"vtep": "192.0.2.2", "subnet": "10.5.2.0/24", "mac": "02:00:00:00:00:01"}, {"vtep": "192.0.2.3", "subnet": "10.5.3.0/24", "mac": "02:00:00:00:00:01"}]} => peers[1].mac: 02:00:00:00:00:01 is that of peers[0], too
{"vni": 1, "peers": [{"vtep": "192.0.2.2", "subnet": "10.5.2.0/24"}, {"vtep": "192.0.2.2", "mac": "02:00:00:00:00:01", "subnet": "10.5.3.0/24"}]} => peers[1].vtep: 192.0.2.2 is that of peers[0], too
"#;

    #[test]
    fn faults_name_the_key() {
        for line in FAULTS.trim().lines() {
            let (text, msg) = line.split_once(" => ").unwrap();
            assert_eq!(fault(text), (7, msg.to_owned()), "{text}");
        }
    }

    #[test]
    fn every_fault_is_found() {
        let keys = |text: &str| {
            let faults = network(text).unwrap_err().into_iter();
            faults.map(|it| it.key).collect::<Vec<_>>()
        };
        let text = r#"{"port": 0, "mac": "x", "peers": [{"vtep": "192.0.2.2"}, {"mac": "x"}]}"#;
        let of_peers = [
            "peers[0].subnet",
            "peers[1].vtep",
            "peers[1].mac",
            "peers[1].subnet",
        ];
        assert_eq!(
            keys(text),
            [&["vni", "port", "mac"][..], &of_peers].concat()
        );
        let text = r#"{"vni": 1, "mode": "l2", "local": "::1", "peers": [{"vtep": "192.0.2.2"}, {"vtep": "192.0.2.2"}]}"#;
        let expected = ["peers[1].vtep", "peers[0].vtep", "peers[1].vtep", "local"];
        assert_eq!(keys(text), expected);
    }

    #[test]
    fn networks_of_one_port_agree_in_how_packets_are_read() {
        let clash = |one: &str, other: &str| {
            let [one, other] = [one, other].map(|text| network(text).unwrap());
            one.clash(&other).map(|(key, why)| format!("{key}: {why}"))
        };
        let plain = r#"{"vni": 1, "mode": "l2"}"#;
        let gbp = r#"{"vni": 2, "mode": "l2", "gbp": true}"#;
        let text = "gbp: without, and network \"mynet\" with, both on port 4789";
        assert_eq!(clash(plain, gbp).as_deref(), Some(text));
        let elsewhere = r#"{"vni": 2, "mode": "l2", "gbp": true, "port": 4790}"#;
        assert_eq!(clash(plain, elsewhere), None);
        let v6 = r#"{"vni": 2, "mode": "l2", "gbp": true, "underlay": "ipv6"}"#;
        assert_eq!(clash(plain, v6), None);
        let unchecked =
            r#"{"vni": 3, "mode": "l2", "gbp": true, "underlay": "ipv6", "udpChecksum": false}"#;
        assert!(
            clash(v6, unchecked)
                .unwrap()
                .starts_with("udpChecksum: with, ")
        );
        let again = clash(plain, plain);
        assert_eq!(
            again.as_deref(),
            Some("vni: 1 is that of network \"mynet\", too")
        );
        let unchecked = r#"{"vni": 3, "mode": "l2", "udpChecksum": false}"#;
        assert_eq!(clash(plain, unchecked), None);
    }

    #[test]
    fn everything_follows_from_a_vni() {
        let network = network(r#"{"vni": 16777215}"#).unwrap();
        assert_eq!(network.device(), "vxlan.16777215");
        assert_eq!(network.bridge.as_str(), "vxbrd23676b4");
        assert_eq!((network.mode, network.port), (Mode::L3, 4789));
        assert!(!network.learning && network.udp_checksum);
        let segment = super::tests::network(r#"{"vni": 0, "mode": "L2"}"#).unwrap();
        assert!(segment.learning && segment.family.is_none());
    }

    #[test]
    fn the_family_follows_from_the_addresses() {
        let family = |text: &str| network(text).unwrap().family;
        assert_eq!(
            family(r#"{"vni": 1, "mode": "l2", "peers": [{"vtep": "2001:db8::2"}]}"#),
            Some(Family::V6)
        );
        assert_eq!(
            family(r#"{"vni": 1, "mode": "l2", "group": "239.1.1.1"}"#),
            Some(Family::V4)
        );
        assert_eq!(family(r#"{"vni": 1, "underlay": 6}"#), Some(Family::V6));
    }

    #[test]
    fn a_peer_is_another_host_with_another_subnet() {
        let network =
            network(r#"{"vni": 1, "peers": [{"vtep": "192.0.2.2", "subnet": "10.5.2.0/24"}]}"#)
                .unwrap();
        let check = |ip: &str| network.check_not_ourselves(&network.peers, ip.parse().unwrap());
        assert!(check("192.0.2.1").is_ok());
        assert_eq!(
            check("192.0.2.2").unwrap_err().error.msg,
            "peers[0].vtep: 192.0.2.2 is this node"
        );
        let local = "192.0.2.1".parse().ok();
        let own = |text: &str| network.check_own_subnets(&[text.parse().unwrap()], local);
        assert!(own("10.5.1.0/24").is_ok());
        assert_eq!(
            own("10.5.0.0/16").unwrap_err().first().error.msg,
            "peers[0].subnet: 10.5.2.0/24 overlaps 10.5.0.0/16, the subnet of this node"
        );
        for (subnet, ip) in [("192.0.2.2/31", "192.0.2.2"), ("192.0.2.0/31", "192.0.2.1")] {
            assert_eq!(
                own(subnet).unwrap_err().first().error.msg,
                format!("ipam: {subnet} is the pods' and holds {ip}, which the tunnel needs")
            );
        }
    }

    #[test]
    fn the_fingerprint_is_of_the_entries() {
        let print = |text: &str| network(text).unwrap().fingerprint();
        let one = r#"{"vni": 1, "peers": [{"vtep": "192.0.2.2", "subnet": "10.5.2.0/24"}]}"#;
        let other = r#"{"vni": 1, "peers": [{"vtep": "192.0.2.2", "subnet": "10.5.3.0/24"}]}"#;
        assert_eq!(print(one), print(one));
        assert_ne!(print(one), print(other));
    }
}
