//! The subnets of a network, as the IPAM sections of its plugins have them. Whatever program
//! wrote the configuration, these are the addresses that its containers get.

use std::net::IpAddr;

use cni::Cidr;
use cni::json::Json;
use serde::Deserialize;
use serde_json::Value;

use crate::NetworkList;

/// A subnet from which containers get addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IpamSubnet {
    /// Without host bits.
    pub subnet: Cidr,
    /// The gateway, if the configuration names it.
    pub gateway: Option<IpAddr>,
    /// The ranges that addresses are chosen from, with a limit where the configuration has one.
    pub ranges: Vec<[Option<IpAddr>; 2]>,
}

/// The keys that hold addresses, of the IPAM plugins host-local, static and whereabouts.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Ipam {
    ranges: Vec<Vec<Range>>,
    addresses: Vec<Address>,
    ip_ranges: Vec<Range>,
}

#[derive(Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Range {
    subnet: Option<Cidr>,
    /// The same in whereabouts.
    range: Option<Cidr>,
    range_start: Option<IpAddr>,
    range_end: Option<IpAddr>,
    gateway: Option<IpAddr>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Address {
    address: Option<Cidr>,
    gateway: Option<IpAddr>,
}

/// The subnets of all plugins of `list`, each once, in the order of the configuration. What cannot
/// be read is left out: a plugin would refuse it, too.
pub fn subnets_of(list: &NetworkList) -> Vec<IpamSubnet> {
    let mut all = Vec::<IpamSubnet>::new();
    for plugin in &list.plugins {
        let document = Json::deserialize(&Value::Object(plugin.document.clone()));
        let Some(keys) = document.ok().and_then(|it| it.get("ipam")) else {
            continue;
        };
        let single = keys.decode::<Range>().unwrap_or_default();
        let ipam = keys.decode::<Ipam>().unwrap_or_default();
        let ranges = ipam.ranges.into_iter().flatten().chain(ipam.ip_ranges);
        for range in [single].into_iter().chain(ranges) {
            if let Some(cidr) = range.subnet.or(range.range) {
                let limits = [range.range_start, range.range_end];
                add(&mut all, cidr, range.gateway, Some(limits));
            }
        }
        for address in ipam.addresses {
            if let Some(cidr) = address.address {
                add(&mut all, cidr, address.gateway, None);
            }
        }
    }
    all
}

fn add(
    all: &mut Vec<IpamSubnet>,
    cidr: Cidr,
    gateway: Option<IpAddr>,
    limits: Option<[Option<IpAddr>; 2]>,
) {
    let subnet = cidr.network();
    match all.iter_mut().find(|it| it.subnet == subnet) {
        Some(known) => {
            known.gateway = known.gateway.or(gateway);
            known.ranges.extend(limits);
        }
        None => all.push(IpamSubnet {
            subnet,
            gateway,
            ranges: limits.into_iter().collect(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn subnets(ipam: &Value) -> Vec<String> {
        let list = json!({"name": "n", "plugins": [{"type": "x"}, {"type": "y", "ipam": ipam}]});
        let list = NetworkList::from_bytes(list.to_string().as_bytes()).unwrap();
        let all = subnets_of(&list);
        let text = |it: &IpamSubnet| {
            let gateway = it.gateway.map_or(String::new(), |it| format!(" via {it}"));
            format!("{}{gateway} {}", it.subnet, it.ranges.len())
        };
        all.iter().map(text).collect()
    }

    #[test]
    fn every_ipam_plugins_subnets_are_found() {
        for (ipam, expected) in [
            (
                json!({"type": "host-local", "ranges": [
                    [{"subnet": "10.1.0.0/24", "rangeEnd": "10.1.0.9", "gateway": "10.1.0.1"},
                     {"subnet": "10.1.0.0/24", "rangeStart": "10.1.0.11"}],
                    [{"subnet": "fd00::/64"}]]}),
                &["10.1.0.0/24 via 10.1.0.1 2", "fd00::/64 1"][..],
            ),
            (
                json!({"type": "host-local", "Subnet": "10.1.0.0/24"}),
                &["10.1.0.0/24 1"],
            ),
            (
                json!({"type": "static", "addresses": [{"address": "10.1.0.7/24"}]}),
                &["10.1.0.0/24 0"],
            ),
            (
                json!({"type": "whereabouts", "range": "10.1.0.0/16"}),
                &["10.1.0.0/16 1"],
            ),
            (json!({"type": "dhcp"}), &[]),
            (json!({"type": "host-local", "subnet": "nonsense"}), &[]),
        ] {
            assert_eq!(subnets(&ipam), expected, "{ipam}");
        }
    }
}
