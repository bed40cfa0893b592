//! MACs that are derived, so that all hosts know them without an exchange.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use netlink::Mac;
use wiring::mac::hashed;

/// The MAC of a host's VXLAN device, unless the configuration names one.
pub(crate) fn vtep_mac(vni: u32, vtep: IpAddr) -> Mac {
    hashed(&format!("vtep {vni} {vtep}"))
}

/// The MAC of the device of a node that leases `subnet`: it stays when the node's address changes.
pub fn subnet_mac(vni: u32, subnet: IpNetwork) -> Mac {
    hashed(&format!("vtep {vni} {subnet}"))
}

/// The MAC of the gateway in mode `l2`, the same on all hosts: each host is the gateway of its
/// own pods, and ARP replies of other hosts do not change that.
pub fn gateway_mac(vni: u32) -> Mac {
    hashed(&format!("gateway {vni}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mac_is_derived_from_vni_and_address() {
        let of = |vni, ip: &str| vtep_mac(vni, ip.parse().unwrap());
        assert_eq!(of(1, "192.0.2.2"), of(1, "192.0.2.2"));
        assert_ne!(of(1, "192.0.2.2"), of(2, "192.0.2.2"));
        assert_ne!(of(1, "192.0.2.2"), of(1, "192.0.2.3"));
        assert_eq!(of(1, "192.0.2.2").0[0] & 3, 2);
        // Hosts with another release must agree.
        assert_eq!(of(1, "192.0.2.2").to_string(), "72:e3:a5:0d:fa:49");
    }
}
