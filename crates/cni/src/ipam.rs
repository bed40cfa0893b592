//! What all IPAM plugins check of the addresses and routes that they hand out.

use std::net::IpAddr;

use crate::address::Cidr;
use crate::error::{Code, Error};
use crate::faults::{Checks, Fault};
use crate::result::Route;
use crate::version::Version;

/// `RT_SCOPE_LINK` of rtnetlink(7): on this link, so through no gateway.
const LINK_SCOPE: u8 = 253;

/// Refuses addresses for which a result of `version` has no room: before 0.3.0 it has one
/// address of each family.
///
/// # Errors
/// Code 7.
pub fn one_of_each_family(
    addresses: impl Iterator<Item = IpAddr>,
    version: Version,
) -> Result<(), Error> {
    let (ipv4, ipv6): (Vec<_>, Vec<_>) = addresses.partition(IpAddr::is_ipv4);
    if version < Version::V0_3_0 && ipv4.len().max(ipv6.len()) > 1 {
        let msg = format!("CNI version {version} does not support more than 1 address per family");
        return Err(Code::InvalidConfig.err(msg));
    }
    Ok(())
}

/// Refuses routes (`ipam.routes`) that the kernel refuses on every interface.
pub fn check_routes(routes: &[Route], checks: &mut Checks) {
    for (index, route) in routes.iter().enumerate() {
        let mut fault = |key: &str, why: String| {
            let key = format!("ipam.routes[{index}].{key}");
            checks.add(Fault::new(key.as_str(), format!("{key}: {why}")));
        };
        let dst = route.dst;
        let network = dst.0.network();
        // fib_valid_key_len in net/ipv4/fib_trie.c; IPv6 masks them.
        if dst.ip().is_ipv4() && network != dst.ip() {
            let prefix = dst.prefix();
            fault(
                "dst",
                format!("host bits set: the network is {network}/{prefix}"),
            );
        }
        let Some(gw) = route.gw else { continue };
        if gw.is_ipv4() != dst.ip().is_ipv4() {
            fault(
                "gw",
                format!("of another family than the destination {dst}"),
            );
        }
        // fib_check_nh in net/ipv4/fib_semantics.c; IPv6 has no scopes.
        if let Some(scope) = route.scope
            && scope >= LINK_SCOPE
            && dst.ip().is_ipv4()
        {
            fault(
                "scope",
                format!("a route with scope {scope} has no gateway"),
            );
        }
    }
}

/// Refuses an address that the kernel gives to no interface of a container
/// (ipv6_add_addr in net/ipv6/addrconf.c).
///
/// # Errors
/// Code 7, at `key`.
pub fn check_address(key: String, address: Cidr) -> Result<(), Fault> {
    let IpAddr::V6(ip) = address.ip() else {
        return Ok(());
    };
    if ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() {
        let msg = format!("{key}: no interface can have {address}");
        return Err(Fault::new(key, msg));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json::Json;

    #[test]
    fn routes_that_the_kernel_refuses_are_faults() {
        let text =
            br#"[{"dst": "10.5.0.1/16", "gw": "fd00::1"}, {"dst": "fd00::1/64", "scope": 253},
            {"dst": "10.5.0.0/16", "gw": "10.0.0.1", "scope": 254}]"#;
        let routes: Vec<Route> = Json::parse(text).unwrap().decode().unwrap();
        let mut checks = Checks::default();
        check_routes(&routes, &mut checks);
        let faults = checks.finish(|| Some(())).unwrap_err();
        let msgs: Vec<_> = faults.into_iter().map(|it| it.error.msg).collect();
        assert_eq!(
            msgs,
            [
                "ipam.routes[0].dst: host bits set: the network is 10.5.0.0/16",
                "ipam.routes[0].gw: of another family than the destination 10.5.0.1/16",
                "ipam.routes[2].scope: a route with scope 254 has no gateway",
            ]
        );
    }

    #[test]
    fn an_address_that_no_interface_can_have_is_a_fault() {
        let is_fine = |text: &str| check_address(String::new(), text.parse().unwrap()).is_ok();
        assert!(is_fine("fd00::2/64") && is_fine("10.0.0.2/24"));
        assert!(!["ff02::1/64", "::1/128", "::/0"].into_iter().any(is_fine));
    }
}
