//! Decides from keys and the previous result which addresses are routed by source, and how their
//! packets leave. Pure: no system calls.

use std::net::IpAddr;

use cni::address::needs_onlink;
use cni::faults::{Checks, Fault, Faults};
use cni::result::IpConfig;
use cni::{AddResult, Code, Error};
use ipnetwork::IpNetwork;
use netlink::{Family, MAIN_TABLE, RouteSpec};
use wiring::pod::route_spec;

use crate::conf::Conf;

/// A configuration without contradictions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The table of the rules, if the configuration names it.
    pub table: Option<u32>,
    /// Whether the routes to the networks of the interface stay in the main table.
    pub source_hints: bool,
    gateways: Vec<IpAddr>,
}

/// An address whose packets get a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// The address with the prefix of its network.
    pub address: IpNetwork,
    /// The default route, if one is known.
    pub default: Option<RouteSpec>,
    /// Whether `default` has precedence over the default routes of the interface.
    pub overrides: bool,
    /// Whether the configuration or the address names a router.
    pub has_gateway: bool,
    /// The other routes of the result.
    pub routes: Vec<RouteSpec>,
}

impl Source {
    /// Its family.
    pub fn family(&self) -> Family {
        Family::of(self.address.ip())
    }
}

impl Plan {
    /// Checks everything that can be checked without the kernel.
    ///
    /// # Errors
    /// Code 7, each fault with its key, with the Go plugin's text if it has one.
    pub fn new(conf: &Conf) -> Result<Self, Faults> {
        let mut checks = Checks::default();
        let table = checks.take(conf.table.map(table).transpose());
        let gateways = checks.take(gateways(&conf.gateways));
        checks.finish(|| {
            Some(Self {
                table: table?,
                source_hints: conf.add_source_hints,
                gateways: gateways?,
            })
        })
    }

    /// The addresses of the interface `ifname` in `previous`. As in the Go plugin, an address that
    /// names no interface of the result belongs to it, too.
    ///
    /// # Errors
    /// Code 7: there is none.
    pub fn sources(&self, previous: &AddResult, ifname: &str) -> Result<Vec<Source>, Error> {
        let belongs = |ip: &&IpConfig| {
            let interface = previous.interface_of(ip);
            interface.is_none_or(|it| it.name == ifname)
        };
        let ips: Vec<_> = previous.ips.iter().filter(belongs).collect();
        if ips.is_empty() {
            let msg = format!("No IP addresses supplied on interface: {ifname}");
            return Err(Code::InvalidConfig.err(msg));
        }
        Ok(ips
            .iter()
            .map(|ip| self.source(ip, &ips, previous))
            .collect())
    }

    fn source(&self, ip: &IpConfig, all: &[&IpConfig], previous: &AddResult) -> Source {
        let address = ip.address.0;
        let of_family = |other: IpAddr| other.is_ipv4() == address.is_ipv4();
        let networks: Vec<_> = all.iter().map(|ip| ip.address.0).collect();
        // The main plugins give a route without next hop the first gateway of its family.
        let first = all.iter().filter_map(|ip| ip.gateway);
        let gateway = ip
            .gateway
            .or_else(|| first.into_iter().find(|gw| of_family(*gw)));
        let routes = previous.routes.iter().filter_map(|route| {
            let mut spec = route_spec(route);
            spec.gw = spec.gw.or(gateway);
            let is_main = spec.table() == MAIN_TABLE && of_family(spec.dst.ip());
            let fits = spec
                .gw
                .is_none_or(|gw| is_reached_from(gw, address, &networks));
            (is_main && fits).then_some(spec)
        });
        let (defaults, routes): (Vec<_>, Vec<_>) = routes.partition(RouteSpec::is_default);
        let own = self.gateways.iter().copied().find(|gw| of_family(*gw));
        let default = own
            .map(RouteSpec::default_via)
            .or_else(|| defaults.into_iter().next())
            .or_else(|| ip.gateway.map(RouteSpec::default_via));
        Source {
            address,
            default: default.map(|spec| RouteSpec {
                onlink: spec.gw == ip.gateway
                    && spec
                        .gw
                        .is_some_and(|gw| needs_onlink(gw, networks.iter().copied())),
                ..spec
            }),
            overrides: own.is_some(),
            has_gateway: own.or(ip.gateway).is_some(),
            routes,
        }
    }
}

/// Whether packets of `address` use the next hop `gw`: it is in the network of the address, or in
/// none of the interface's `networks`, as a link-local router.
pub fn is_reached_from(gw: IpAddr, address: IpNetwork, networks: &[IpNetwork]) -> bool {
    address.contains(gw) || !networks.iter().any(|network| network.contains(gw))
}

fn table(number: i64) -> Result<u32, Fault> {
    match u32::try_from(number) {
        Ok(number) if number > 0 => Ok(number),
        _ => {
            let msg = format!("invalid table {number}: must be 1 to {}", u32::MAX);
            Err(Fault::new("table", msg))
        }
    }
}

fn gateways(texts: &[String]) -> Result<Vec<IpAddr>, Faults> {
    let key = "gateways";
    if texts.len() > 2 {
        let msg = "gateways list cannot contain more than 2 entries (one IPv4, one IPv6)";
        return Err(Fault::new(key, msg).into());
    }
    let mut checks = Checks::default();
    let mut gateways: Vec<IpAddr> = Vec::new();
    for (index, text) in texts.iter().enumerate() {
        let key = format!("{key}[{index}]");
        let Ok(ip) = cni::address::parse_ip(text) else {
            let msg = format!("invalid static gateway IP address: {text}");
            checks.add(Fault::new(key, msg));
            continue;
        };
        if let Some(first) = gateways.iter().find(|it| it.is_ipv4() == ip.is_ipv4()) {
            let family = if ip.is_ipv4() { "IPv4" } else { "IPv6" };
            let msg =
                format!("gateways list contains multiple {family} addresses: {first} and {ip}");
            checks.add(Fault::new(key, msg));
        }
        gateways.push(ip);
    }
    checks.finish(|| Some(gateways))
}

#[cfg(test)]
mod tests;
