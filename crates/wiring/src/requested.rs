//! Requests of a pod's user, through the runtime, for an address or a MAC. They are refused if they
//! would take traffic from the node or from another pod.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::Result;
use cni::address::network_of;
use cni::delegate::ipam_needs_interface;
use cni::json::Json;
use cni::result::IpConfig;
use cni::{Attachment, Call, Code};
use ipnetwork::IpNetwork;
use netlink::{Family, Link, Mac, Netlink, RouteFilter};

use crate::alias;
use crate::gateway::conflicts;
use crate::mac::{Args, Requested};

/// Keys of `ipam` with the operator's subnets, in host-local, static and similar plugins. Those in
/// `routes` do not count: a default route would allow any address.
const SUBNETS: [&str; 3] = ["subnet", "address", "range"];

/// The shortest prefix of a requested subnet if the operator configured none: the largest private
/// networks (RFC 1918), and the smallest allocation of a registry (RFC 6177).
const SHORTEST_V4: u8 = 8;
const SHORTEST_V6: u8 = 32;

/// Whether the pod's user (`runtimeConfig.ips`, `args.cni.ips`, `IP` of CNI_ARGS) or a DHCP server,
/// rather than the operator, may choose the pod's subnet.
pub fn asks_for_addresses(call: &Call, runtime: &Requested, args: &Args) -> bool {
    // Another key of CNI_ARGS that ends in `IP` only causes an unnecessary check.
    let is_requested = runtime.ips.is_some() || args.cni.ips.is_some() || call.args.contains("IP=");
    call.has_ipam() && (is_requested || ipam_needs_interface(call))
}

/// Refuses `gateways`, the addresses to add to `interface` of the host, if a requested address led
/// to them: in a subnet that the operator did not configure, an address would divert the node's own
/// traffic to the interface.
///
/// # Errors
/// Code 7: a subnet that is too large, that contains an address of the node or a next hop, or that
/// is part of a segment of the node, of 127.0.0.0/8 or of 169.254.0.0/16; a conflicting address on
/// the interface.
pub fn refuse_capture(
    call: &Call,
    host: &Netlink,
    interface: &str,
    gateways: &[IpNetwork],
) -> Result<()> {
    if gateways.is_empty() {
        return Ok(());
    }
    let written = written_subnets(call);
    let index = host.find_link(interface)?.map(|link| link.index);
    for gateway in gateways {
        if written.iter().any(|subnet| covers(*subnet, *gateway)) {
            continue;
        }
        let node = Node::new(host, Family::of(gateway.ip()), |it| Some(it) == index)?;
        if node.own.contains(gateway) {
            continue;
        }
        if node.own.iter().any(|other| conflicts(*other, *gateway)) {
            let text = format!("{interface:?} already has an IP address different from {gateway}");
            return Err(refused(text));
        }
        let subnet = network_of(*gateway);
        let begin = format!("its address makes {interface:?} the pod's gateway of {subnet}");
        if let Some(shortest) = too_short(*gateway, &written) {
            return Err(refused(format!("{begin}: at least /{shortest} is allowed")));
        }
        if let Some(ip) = node.needs.iter().find(|ip| subnet.contains(**ip)) {
            return Err(refused(format!("{begin}, where the node needs {ip}")));
        }
        let network = subnet.network();
        if let Some(segment) = node.segments.iter().find(|it| it.contains(network)) {
            return Err(refused(format!("{begin}, a part of the node's {segment}")));
        }
    }
    Ok(())
}

/// Refuses `ips`, a pod's addresses, if a host route of the node to each of them would divert other
/// traffic to the pod. Addresses must be in the operator's subnets: those of `ipam`, and `known`. A
/// DHCP server may assign any.
///
/// # Errors
/// Code 7: an address outside of these subnets, or one of the node or of a next hop.
pub fn refuse_host_routes(
    call: &Call,
    host: &Netlink,
    known: &[IpNetwork],
    ips: &[IpAddr],
) -> Result<()> {
    let mut subnets = written_subnets(call);
    subnets.extend(known);
    for ip in ips {
        let begin = format!("its address has the node route {ip} to the pod");
        if !ipam_needs_interface(call) && !subnets.iter().any(|subnet| subnet.contains(*ip)) {
            let why = "which is in no subnet of its parent";
            return Err(refused(format!("{begin}, {why}")));
        }
        let node = Node::new(host, Family::of(*ip), |_| false)?;
        if node.needs.contains(ip) {
            return Err(refused(format!("{begin}, which the node needs")));
        }
    }
    Ok(())
}

/// Refuses the addresses of a pod behind a point-to-point link if they would divert other traffic:
/// the node routes each of `ips` to the pod, and has its gateway itself, on the host end of each
/// pod of the network. In the operator's subnets, only an address that the node needs is refused.
///
/// # Errors
/// Code 7, with the address.
pub fn refuse_point_to_point(call: &Call, host: &Netlink, ips: &[IpConfig]) -> Result<()> {
    let written = written_subnets(call);
    let mut links = host.list_links()?;
    links.retain(|it| alias::is_of_network(it, &call.network));
    for ip in ips {
        let address = ip.address.ip();
        let is_network = |index| links.iter().any(|it| it.index == index);
        let node = Node::new(host, Family::of(address), is_network)?;
        let its = format!("its address has the node route {address} to the pod");
        let gateway = ip
            .gateway
            .map(|it| (it, format!("the node becomes its gateway {it}")));
        for (ip, begin) in [Some((address, its)), gateway].into_iter().flatten() {
            if node.needs.contains(&ip) {
                return Err(refused(format!("{begin}, which the node needs")));
            }
            let segment = node.segments.iter().find(|it| it.contains(ip));
            if let Some(segment) = segment.filter(|_| !written.iter().any(|it| it.contains(ip))) {
                return Err(refused(format!("{begin}, a part of the node's {segment}")));
            }
        }
    }
    Ok(())
}

fn refused(text: String) -> anyhow::Error {
    Code::InvalidConfig.err(text).into()
}

/// The addresses of one family that the node uses. Link-local ones do not count.
struct Node {
    /// Addresses of the interface itself.
    own: Vec<IpNetwork>,
    /// Addresses of other interfaces, next hops, and localhost.
    needs: Vec<IpAddr>,
    /// Subnets that the node reaches without a router: a part of one would lead to the pod.
    segments: Vec<IpNetwork>,
}

/// Loopback, and the addresses of a cloud's metadata server, which may be behind any route.
const SEGMENTS: [(Ipv4Addr, u8); 2] = [
    (Ipv4Addr::new(127, 0, 0, 0), 8),
    (Ipv4Addr::new(169, 254, 0, 0), 16),
];

impl Node {
    /// `is_own`: whether the link with that index is the interface.
    fn new(host: &Netlink, family: Family, is_own: impl Fn(u32) -> bool) -> Result<Self> {
        let mut node = Self {
            own: Vec::new(),
            needs: vec![match family {
                Family::V4 => Ipv4Addr::LOCALHOST.into(),
                Family::V6 => Ipv6Addr::LOCALHOST.into(),
            }],
            segments: Vec::new(),
        };
        for (index, address) in host.list_all_addresses(family)? {
            if is_own(index) {
                node.own.push(address);
            } else if !is_link_local(address.ip()) {
                node.needs.push(address.ip());
                node.segments.push(network_of(address));
            }
        }
        let routes = host.list_routes(RouteFilter {
            family,
            oif: None,
            table: None,
        })?;
        let hops = routes.into_iter().filter_map(|route| route.gw);
        node.needs.extend(hops.filter(|ip| !is_link_local(*ip)));
        let segments = SEGMENTS.map(|(ip, prefix)| IpNetwork::new(ip.into(), prefix));
        node.segments.extend(segments.into_iter().flatten());
        Ok(node)
    }
}

fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

fn covers(written: IpNetwork, address: IpNetwork) -> bool {
    written.is_ipv4() == address.is_ipv4()
        && written.prefix() <= address.prefix()
        && written.contains(address.ip())
}

/// The shortest prefix that is allowed, if that of `address` is shorter.
fn too_short(address: IpNetwork, written: &[IpNetwork]) -> Option<u8> {
    let same_family = written
        .iter()
        .filter(|it| it.is_ipv4() == address.is_ipv4());
    let least = match address {
        IpNetwork::V4(_) => SHORTEST_V4,
        IpNetwork::V6(_) => SHORTEST_V6,
    };
    let shortest = same_family.map(|it| it.prefix()).min().unwrap_or(least);
    Some(shortest).filter(|shortest| address.prefix() < *shortest)
}

/// The subnets in `ipam`, as far as it can be read.
pub(crate) fn written_subnets(call: &Call) -> Vec<IpNetwork> {
    let mut found = Vec::new();
    if let Ok(Json::Object(members)) = Json::parse(call.stdin()) {
        for (_, ipam) in members
            .iter()
            .filter(|(key, _)| key.eq_ignore_ascii_case("ipam"))
        {
            collect_subnets(ipam, &mut found);
        }
    }
    found
}

fn collect_subnets(value: &Json, found: &mut Vec<IpNetwork>) {
    match value {
        Json::Array(items) => items.iter().for_each(|item| collect_subnets(item, found)),
        Json::Object(members) => {
            for (key, value) in members {
                match value {
                    Json::String(text) if SUBNETS.iter().any(|it| it.eq_ignore_ascii_case(key)) => {
                        found.extend(text.parse::<IpNetwork>());
                    }
                    value if !key.eq_ignore_ascii_case("routes") => collect_subnets(value, found),
                    _ => {}
                }
            }
        }
        _ => {}
    }
}

/// Refuses a requested `mac` that the bridge `bridge` or another of its ports has: frames to that
/// port would come to this pod.
///
/// A bridge forgets learned MACs, so the other ends of its ports are looked at, too: one request
/// per port, only for pods that request a MAC.
///
/// # Errors
/// Code 7, with the port; what the kernel refuses.
pub fn refuse_taken_mac(
    host: &Netlink,
    bridge: &str,
    mac: Mac,
    attachment: &Attachment,
) -> Result<()> {
    let Some(bridge) = host.find_link(bridge)? else {
        return Ok(());
    };
    let taken = |by: &str| refused(format!("the requested MAC {mac} is that of {by}"));
    if bridge.mac == Some(mac) {
        return Err(taken(&format!("bridge {:?}", bridge.name)));
    }
    let alias = attachment.alias();
    let mut ports = host.list_ports(bridge.index)?;
    ports.retain(|port| port.alias.as_ref() != Some(&alias));
    let known = host.find_fdb_entry(bridge.index, mac)?;
    for port in &ports {
        let in_table = known.filter(|it| it.port == port.index);
        // A MAC that was learned on an uplink may have moved here.
        let in_table = in_table.is_some_and(|it| it.fixed || leads_to_pod(port));
        if in_table || port.mac == Some(mac) || peer_mac(host, port) == Some(mac) {
            return Err(taken(&format!("port {:?} of {:?}", port.name, bridge.name)));
        }
    }
    Ok(())
}

/// Whether a pod or a virtual machine is behind the port.
fn leads_to_pod(port: &Link) -> bool {
    port.is_kind("veth") || port.is_kind("tun")
}

/// The MAC of the port's other end; `None` if the kernel does not show it.
pub(crate) fn peer_mac(host: &Netlink, port: &Link) -> Option<Mac> {
    host.find_peer(port).ok()??.mac
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNetwork {
        text.parse().unwrap()
    }

    fn subnets(text: &str) -> Vec<String> {
        let mut found = Vec::new();
        collect_subnets(&Json::parse(text.as_bytes()).unwrap(), &mut found);
        found.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn subnets_are_found_anywhere_in_ipam_but_in_routes() {
        let text = r#"{"ranges": [[{"subnet": "10.1.0.0/24", "rangeStart": "10.1.0.9"}]],
            "addresses": [{"Address": "fd00::9/64", "gateway": "fd00::1"}],
            "range": "10.2.0.0/16", "routes": [{"dst": "0.0.0.0/0", "address": "0.0.0.0/0"}]}"#;
        assert_eq!(subnets(text), ["10.1.0.0/24", "fd00::9/64", "10.2.0.0/16"]);
    }

    #[test]
    fn a_prefix_is_at_least_that_of_the_largest_subnet() {
        let written = [net("10.1.0.0/24"), net("10.0.0.0/12"), net("fd00::/48")];
        assert_eq!(too_short(net("172.16.0.1/11"), &written), Some(12));
        assert_eq!(too_short(net("172.16.0.1/12"), &written), None);
        assert_eq!(too_short(net("fd01::1/47"), &written), Some(48));
        assert_eq!(too_short(net("128.0.0.1/1"), &[]), Some(8));
        assert_eq!(too_short(net("2000::1/3"), &written[..2]), Some(32));
        assert_eq!(too_short(net("10.0.0.1/8"), &[]), None);
    }

    #[test]
    fn an_address_in_a_part_of_a_subnet_is_covered() {
        assert!(covers(net("10.1.0.9/16"), net("10.1.5.1/24")));
        assert!(!covers(net("10.1.0.0/24"), net("10.1.0.1/16")));
        assert!(!covers(net("10.1.0.0/24"), net("10.2.0.1/24")));
        assert!(!covers(net("::/0"), net("10.2.0.1/24")));
    }
}
