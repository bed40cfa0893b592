//! Decides a pod's addresses and routes from the IPAM plugin's result. Pure: no system calls.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use cni::Cidr;
use cni::address::{number, numbered};
use cni::result::{AddResult, Dns, IpConfig, Route};
use ipnetwork::IpNetwork;

/// What an interface of the host is to the pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gateway {
    /// A switch only.
    None,
    /// Their gateway.
    Gateway {
        /// Whether it is also their default route.
        default_route: bool,
        /// Whether its address replaces a conflicting one on the interface.
        force: bool,
        /// The families, IPv4 and IPv6, in which it has addresses.
        families: [bool; 2],
    },
}

/// The addresses, routes and DNS settings of a pod, and the addresses of its gateway.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Addressing {
    /// The pod's addresses, with their gateways.
    pub ips: Vec<IpConfig>,
    /// The pod's routes.
    pub routes: Vec<Route>,
    /// The addresses that the gateway's interface must have.
    pub gateways: Vec<IpNetwork>,
    /// The DNS settings that IPAM returned.
    pub dns: Dns,
}

impl Addressing {
    /// Adds gateways and default routes to the result of an IPAM plugin.
    pub fn new(lease: AddResult, gateway: Gateway) -> Self {
        let mut addressing = Self {
            ips: lease.ips,
            routes: lease.routes,
            gateways: Vec::new(),
            dns: lease.dns,
        };
        if let Gateway::Gateway {
            default_route,
            families,
            ..
        } = gateway
        {
            addressing.ensure_gateways(families);
            if default_route {
                addressing.ensure_default_route(IpAddr::is_ipv4);
                addressing.ensure_default_route(IpAddr::is_ipv6);
            }
        }
        addressing
    }

    /// Without the default routes of the families, IPv4 and IPv6, that are `closed`: nothing is
    /// reached through them.
    pub fn without_default_routes(mut self, closed: [bool; 2]) -> Self {
        let is_kept =
            |it: &Route| !it.dst.is_default() || !closed[usize::from(it.dst.ip().is_ipv6())];
        self.routes.retain(is_kept);
        self
    }

    /// The addresses that the gateway's interface must have, for a pod whose ADD returned
    /// `result`.
    pub fn gateways_in(result: &AddResult, gateway: Gateway, ifname: &str) -> Vec<IpNetwork> {
        let lease = AddResult {
            ips: result.ips_of(ifname).cloned().collect(),
            ..AddResult::default()
        };
        Self::new(lease, gateway).gateways
    }

    fn ensure_gateways(&mut self, families: [bool; 2]) {
        for ip in &mut self.ips {
            if !families[usize::from(ip.address.ip().is_ipv6())] {
                ip.gateway = None;
                continue;
            }
            let gateway = *ip.gateway.get_or_insert_with(|| first_host(ip.address));
            if let Ok(network) = IpNetwork::new(gateway, ip.address.prefix()) {
                self.gateways.push(network);
            }
        }
    }

    /// Adds a default route through the family's first gateway, unless IPAM returned one.
    /// A default route without a next hop gets the same gateway when it is added, and adding
    /// it twice fails (reference 8 #8).
    fn ensure_default_route(&mut self, of_family: fn(&IpAddr) -> bool) {
        let mut ips = self.ips.iter();
        let first = ips.find(|ip| of_family(&ip.address.ip()));
        let Some((first, gateway)) = first.and_then(|ip| Some((ip, ip.gateway?))) else {
            return;
        };
        let given = |route: &Route| route.dst.is_default() && of_family(&route.dst.ip());
        if !self.routes.iter().any(given) {
            let dst = match first.address.ip() {
                IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
                IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
            };
            if let Ok(default) = IpNetwork::new(dst, 0) {
                self.routes.push(Route::via(Cidr(default), gateway));
            }
        }
    }
}

/// The first address of a subnet after the network address.
fn first_host(address: Cidr) -> IpAddr {
    let network = address.0.network();
    numbered(number(network).wrapping_add(1), network)
}

#[cfg(test)]
mod tests {
    use super::*;
    use cni::json;

    fn lease(text: &str) -> AddResult {
        json::read(text).unwrap()
    }

    fn gateway(default_route: bool) -> Gateway {
        Gateway::Gateway {
            default_route,
            force: false,
            families: [true; 2],
        }
    }

    const DUAL: &str =
        r#"{"ips": [{"address": "10.1.0.9/24"}, {"address": "fd00::9/64", "gateway": "fd00::1"}]}"#;

    #[test]
    fn without_a_gateway_nothing_is_added() {
        let addressing = Addressing::new(lease(DUAL), Gateway::None);
        assert_eq!(addressing.ips[0].gateway, None);
        assert!(addressing.gateways.is_empty() && addressing.routes.is_empty());
    }

    #[test]
    fn a_missing_gateway_is_the_first_address_of_the_subnet() {
        let addressing = Addressing::new(lease(DUAL), gateway(false));
        let texts: Vec<_> = addressing
            .gateways
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(texts, ["10.1.0.1/24", "fd00::1/64"]);
        assert!(addressing.routes.is_empty());
    }

    #[test]
    fn a_default_gateway_is_one_route_in_each_family() {
        let addressing = Addressing::new(lease(DUAL), gateway(true));
        let routes: Vec<_> = addressing
            .routes
            .iter()
            .map(|r| (r.dst.to_string(), r.gw.unwrap().to_string()))
            .collect();
        assert_eq!(
            routes,
            [
                ("0.0.0.0/0".to_owned(), "10.1.0.1".to_owned()),
                ("::/0".to_owned(), "fd00::1".to_owned())
            ]
        );
    }

    #[test]
    fn a_family_without_a_gateway_has_none_and_a_closed_one_no_default_route() {
        let gateway = Gateway::Gateway {
            default_route: true,
            force: false,
            families: [true, false],
        };
        let addressing = Addressing::new(lease(DUAL), gateway);
        assert_eq!(addressing.gateways, ["10.1.0.1/24".parse().unwrap()]);
        assert_eq!(addressing.ips[1].gateway, None);
        assert_eq!(addressing.routes.len(), 1);
        let closed = addressing.without_default_routes([true, false]);
        assert!(closed.routes.is_empty());
    }

    #[test]
    fn a_default_route_of_ipam_stays_the_only_one() {
        for route in [
            r#"{"dst": "0.0.0.0/0"}"#,
            r#"{"dst": "0.0.0.0/0", "gw": "10.1.0.7"}"#,
        ] {
            let text = format!(r#"{{"ips": [{{"address": "10.1.0.9/24"}}], "routes": [{route}]}}"#);
            let addressing = Addressing::new(lease(&text), gateway(true));
            assert_eq!(addressing.routes.len(), 1);
        }
    }
}
