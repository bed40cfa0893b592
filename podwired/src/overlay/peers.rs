//! What the leases of other nodes mean for this one.

use flannel::{BackendType, Lease, Subnet};
use ipnetwork::IpNetwork;
use netlink::Family;
use overlay::Peer;
use store::Entry;

/// The peer that a lease describes, for one family; `None` if the node has nothing of this family.
///
/// # Errors
/// Why this node cannot use it.
pub fn peer(
    kind: BackendType,
    subnet: &Subnet,
    lease: &Lease,
    family: Family,
) -> Result<Option<Peer>, String> {
    if lease.backend_type != kind.name() {
        let (theirs, ours) = (&lease.backend_type, kind.name());
        return Err(format!("its backend is {theirs:?}, not {ours}"));
    }
    let (vtep, backing, subnet) = match family {
        Family::V4 => (
            lease.public_ip.map(Into::into),
            lease.v4,
            Some(IpNetwork::V4(subnet.v4)),
        ),
        Family::V6 => (
            lease.public_ipv6.map(Into::into),
            lease.v6,
            subnet.v6.map(IpNetwork::V6),
        ),
    };
    let mac = backing.map(|it| it.mac);
    let is_whole = mac.is_some() || kind != BackendType::Vxlan;
    let (Some(vtep), true, Some(subnet)) = (vtep, is_whole, subnet) else {
        return match family {
            Family::V4 => Err("it has no PublicIP, or no VtepMAC".into()),
            Family::V6 => Ok(None),
        };
    };
    let vtep: std::net::IpAddr = vtep;
    if vtep.is_unspecified() || vtep.is_multicast() || vtep.is_loopback() {
        return Err(format!("{vtep} is no address of a node"));
    }
    if !kind.has_subnets() {
        // Which pods are there is learned from their packets.
        let (mac, subnets) = (None, Vec::new());
        return Ok(Some(Peer { vtep, mac, subnets }));
    }
    Ok(Some(Peer {
        vtep,
        mac,
        subnets: vec![subnet],
    }))
}

/// The lease in an entry of the store.
///
/// # Errors
/// What of it cannot be read.
pub fn lease(entry: &Entry) -> Result<Lease, String> {
    Lease::parse(&entry.value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str, family: Family) -> Result<Option<Peer>, String> {
        let subnet = "10.5.2.0-24&fd00:5:2::-64".parse().unwrap();
        let lease = Lease::parse(text.as_bytes()).unwrap();
        peer(BackendType::Vxlan, &subnet, &lease, family)
    }

    #[test]
    fn a_lease_is_a_peer_of_each_family_it_has() {
        let text = r#"{"PublicIP":"192.0.2.2","BackendType":"vxlan","BackendData":{"VNI":9,"VtepMAC":"02:00:00:00:00:02"}}"#;
        let peer = of(text, Family::V4).unwrap().unwrap();
        assert_eq!(peer.to_string(), "192.0.2.2 02:00:00:00:00:02 10.5.2.0/24");
        assert_eq!(of(text, Family::V6), Ok(None));
    }

    #[test]
    fn a_route_needs_no_mac() {
        let subnet = "10.5.2.0-24".parse().unwrap();
        let text = br#"{"PublicIP":"192.0.2.2","BackendType":"host-gw"}"#;
        let lease = Lease::parse(text).unwrap();
        let peer = peer(BackendType::HostGw, &subnet, &lease, Family::V4);
        assert_eq!(peer.unwrap().unwrap().to_string(), "192.0.2.2 10.5.2.0/24");
    }

    #[test]
    fn what_cannot_be_reached_says_why() {
        for (text, why) in [
            (
                r#"{"PublicIP":"192.0.2.2","BackendType":"host-gw"}"#,
                "its backend is",
            ),
            (
                r#"{"PublicIP":"192.0.2.2","BackendType":"vxlan"}"#,
                "it has no PublicIP",
            ),
            (
                r#"{"PublicIP":"0.0.0.0","BackendType":"vxlan","BackendData":{"VtepMAC":"02:00:00:00:00:02"}}"#,
                "0.0.0.0 is no address",
            ),
        ] {
            assert!(of(text, Family::V4).unwrap_err().starts_with(why));
        }
    }
}
