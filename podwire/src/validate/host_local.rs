//! The keys of host-local; the texts of faults are the plugin's own.

use ::host_local::plan::Plan;
use anyhow::Result;
use std::net::IpAddr;

use cni::Cidr;
use cni::address::parse_ip;
use cni::json::Json;
use cni::version::Version;

use super::findings::Findings;
use super::schema::{self, Key, Kind, Others};
use super::{Conf, Plugin, routes};

/// What is known of it.
pub const PLUGIN: Plugin = Plugin {
    name: "host-local",
    keys: KEYS,
    check,
    read,
};

const KEYS: &[Key] = &[
    Key::new(
        "ranges",
        Kind::List(&Kind::List(&Kind::Object(RANGE_KEYS, Others::AreMistakes))),
    ),
    Key::new("subnet", Kind::CIDR),
    Key::new("rangeStart", Kind::ADDRESS),
    Key::new("rangeEnd", Kind::ADDRESS),
    Key::new("gateway", Kind::ADDRESS),
    Key::new(
        "routes",
        Kind::List(&Kind::Object(routes::KEYS, Others::AreMistakes)),
    ),
    Key::new("dataDir", Kind::Text),
    Key::new("resolvConf", Kind::Text),
    Key::new("requestOutsideRange", Kind::Bool),
];

const RANGE_KEYS: &[Key] = &[
    Key::required("subnet", Kind::CIDR),
    Key::new("rangeStart", Kind::ADDRESS),
    Key::new("rangeEnd", Kind::ADDRESS),
    Key::new("gateway", Kind::ADDRESS),
];

/// A range in which nothing is wrong.
struct Range {
    start: IpAddr,
    end: IpAddr,
}

impl Range {
    fn overlaps(&self, other: &Self) -> bool {
        self.start.is_ipv4() == other.start.is_ipv4()
            && self.start <= other.end
            && other.start <= self.end
    }
}

/// A range set, and where it is.
struct Set {
    ranges: Vec<Range>,
    place: String,
}

/// The subnets of the pods' addresses and their gateways: for each address, those of the
/// ranges that it may come from. None where the configuration has a fault.
pub fn subnets(conf: &Conf<'_>) -> Vec<Vec<(Cidr, Option<IpAddr>)>> {
    let sets = plan(conf).map(|plan| plan.sets).unwrap_or_default();
    let pair = |(subnet, gateway)| (subnet, Some(gateway));
    sets.iter()
        .map(|set| set.subnets().map(pair).collect())
        .collect()
}

/// Ranges may come from the runtime.
fn read(conf: &Conf<'_>) -> Result<()> {
    if !conf.has_capability("ipRanges") {
        plan(conf)?;
    }
    Ok(())
}

fn plan(conf: &Conf<'_>) -> Result<Plan> {
    Ok(Plan::new(&conf.keys()?, conf.version, "")?)
}

fn check(conf: &Conf<'_>, findings: &mut Findings) {
    let Some(ipam) = conf.document.get("ipam") else {
        return;
    };
    let place = conf.place_of("ipam");
    routes::check(
        ipam.get("routes"),
        &schema::join(&place, "routes"),
        findings,
    );
    for key in ["dataDir", "resolvConf"] {
        let path = schema::text(ipam.get(key)).unwrap_or_default();
        if !path.is_empty() && !path.starts_with('/') {
            let reason = "not absolute: it depends on where the runtime was started";
            findings.warning(&schema::join(&place, key), reason);
        }
    }
    let sets = range_sets(&ipam, &place, findings);
    if sets.is_empty() && !conf.has_capability("ipRanges") {
        findings.error(&place, "no IP ranges specified");
    }
    let of_family = |ipv4: bool| {
        let first = |set: &&Set| {
            set.ranges
                .first()
                .is_some_and(|it| it.start.is_ipv4() == ipv4)
        };
        sets.iter().filter(first).count()
    };
    if conf.version < Version::V0_3_0 && of_family(true).max(of_family(false)) > 1 {
        let version = conf.version;
        let reason =
            format!("CNI version {version} does not support more than 1 address per family");
        findings.error(&schema::join(&place, "ranges"), reason);
    }
    for (number, set) in sets.iter().enumerate() {
        for (other, behind) in sets.iter().enumerate().skip(number + 1) {
            let with_behind = |range: &Range| behind.ranges.iter().any(|it| range.overlaps(it));
            if set.ranges.iter().any(with_behind) {
                let reason = format!("range set {number} overlaps with {other}");
                findings.error(&behind.place, reason);
            }
        }
    }
}

/// All sets in the plugin's order: the single range comes before the list.
fn range_sets(ipam: &Json, place: &str, findings: &mut Findings) -> Vec<Set> {
    let mut sets = Vec::new();
    let single = ipam.get("subnet").is_some();
    if single {
        sets.push(Set {
            ranges: range(ipam, place, findings).into_iter().collect(),
            place: place.to_owned(),
        });
    }
    for key in ["rangeStart", "rangeEnd", "gateway"] {
        if !single && ipam.get(key).is_some() {
            let reason = "has no effect without subnet beside it";
            findings.warning(&schema::join(place, key), reason);
        }
    }
    for (index, set) in schema::items(ipam.get("ranges")).into_iter().enumerate() {
        let place = schema::join(place, &format!("ranges[{index}]"));
        let ranges = range_set(schema::items(Some(set)), &place, findings);
        sets.push(Set { ranges, place });
    }
    sets
}

fn range_set(keys: Vec<Json>, place: &str, findings: &mut Findings) -> Vec<Range> {
    if keys.is_empty() {
        findings.error(place, "empty range set");
    }
    let mut ranges: Vec<Range> = Vec::new();
    for (index, keys) in keys.iter().enumerate() {
        let place = format!("{place}[{index}]");
        let Some(range) = range(keys, &place, findings) else {
            continue;
        };
        for other in &ranges {
            if other.start.is_ipv4() != range.start.is_ipv4() {
                findings.error(&place, "mixed address families");
            } else if other.overlaps(&range) {
                let reason = format!(
                    "subnets {}-{} and {}-{} overlap",
                    other.start, other.end, range.start, range.end
                );
                findings.error(&place, reason);
            }
        }
        ranges.push(range);
    }
    ranges
}

fn range(keys: &Json, place: &str, findings: &mut Findings) -> Option<Range> {
    let subnet: Cidr = schema::text(keys.get("subnet"))?.parse().ok()?;
    let mut fault = |key: &str, reason: String| {
        findings.error(&schema::join(place, key), reason);
        None
    };
    let bits: u8 = if subnet.ip().is_ipv4() { 32 } else { 128 };
    let (network, prefix) = (subnet.0.network(), subnet.prefix());
    if prefix > bits - 2 {
        let reason = format!("Network {subnet} too small to allocate from");
        return fault("subnet", reason);
    }
    if subnet.ip() != network {
        let reason = format!(
            "Network has host bits set. For a subnet mask of length {prefix} the network address is {network}"
        );
        return fault("subnet", reason);
    }
    let given = |key| parse_ip(&schema::text(keys.get(key)).unwrap_or_default()).ok();
    let inside = |ip: IpAddr| ip.is_ipv4() == network.is_ipv4() && subnet.0.contains(ip);
    let (first, last) = (next(network), last(subnet));
    let (start, end) = (given("rangeStart"), given("rangeEnd"));
    let (from, to) = (start.unwrap_or(first), end.unwrap_or(last));
    if start.is_some_and(|start| !inside(start)) || (start.is_some() && from > to) {
        let reason = format!("RangeStart {from} not in network {subnet}");
        return fault("rangeStart", reason);
    }
    if end.is_some_and(|end| !inside(end)) || from > to {
        let reason = format!("RangeEnd {to} not in network {subnet}");
        return fault("rangeEnd", reason);
    }
    for (key, ip) in [("rangeStart", from), ("rangeEnd", to)] {
        if let Some(what) = unusable(ip, subnet) {
            let reason = format!("{ip} is {what}: the container that gets it cannot be reached");
            findings.warning(&schema::join(place, key), reason);
        }
    }
    let reachable =
        |gateway: &IpAddr| inside(*gateway) || network.is_ipv6() && is_link_local(*gateway);
    if let Some(gateway) = given("gateway").filter(|gateway| !reachable(gateway)) {
        let reason = format!("{gateway} is not in {subnet}: containers cannot reach it directly");
        findings.warning(&schema::join(place, "gateway"), reason);
    }
    Some(Range {
        start: from,
        end: to,
    })
}

/// What an address of `subnet` is that no container can use.
fn unusable(ip: IpAddr, subnet: Cidr) -> Option<&'static str> {
    match ip {
        ip if ip == subnet.0.network() && ip.is_ipv4() => Some("the network's own address"),
        // RFC 4291, section 2.6.1.
        ip if ip == subnet.0.network() => Some("the address of all routers of the subnet"),
        ip if ip.is_ipv4() && ip == subnet.0.broadcast() => Some("the broadcast address"),
        _ => None,
    }
}

/// Whether a gateway is on every IPv6 link.
pub fn is_link_local(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local())
}

fn next(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(ip) => IpAddr::V4((ip.to_bits() + 1).into()),
        IpAddr::V6(ip) => IpAddr::V6((ip.to_bits() + 1).into()),
    }
}

/// IPv6 knows no broadcast address.
fn last(subnet: Cidr) -> IpAddr {
    match subnet.0.broadcast() {
        IpAddr::V4(ip) => IpAddr::V4((ip.to_bits() - 1).into()),
        ip => ip,
    }
}

#[cfg(test)]
mod tests {
    use crate::validate::tests::{faults, faults_at};

    fn ipam(keys: &str) -> String {
        format!(r#""type": "bridge", "ipam": {{"type": "host-local", {keys}}}"#)
    }

    #[test]
    fn faults_have_the_plugins_words() {
        for (keys, expected) in [
            (r#""ranges": []"#, vec!["ipam: no IP ranges specified"]),
            (r#""ranges": [[]]"#, vec!["ipam.ranges[0]: empty range set"]),
            (
                r#""ranges": [[{"gateway": "10.0.0.1"}]]"#,
                vec!["ipam.ranges[0][0].subnet: missing"],
            ),
            (
                r#""subnet": "10.0.0.0/31""#,
                vec!["ipam.subnet: Network 10.0.0.0/31 too small to allocate from"],
            ),
            (
                r#""subnet": "10.0.0.9/24""#,
                vec![
                    "ipam.subnet: Network has host bits set. For a subnet mask of length 24 the network address is 10.0.0.0",
                ],
            ),
            (
                r#""subnet": "10.0.0.0/24", "rangeStart": "10.1.0.0", "rangeEnd": "fd00::1""#,
                vec!["ipam.rangeStart: RangeStart 10.1.0.0 not in network 10.0.0.0/24"],
            ),
            (
                r#""subnet": "10.0.0.0/24", "rangeEnd": "10.0.1.0""#,
                vec!["ipam.rangeEnd: RangeEnd 10.0.1.0 not in network 10.0.0.0/24"],
            ),
            (
                r#""subnet": "10.0.0.0/24", "gateway": "10.9.0.1""#,
                vec![
                    "ipam.gateway: 10.9.0.1 is not in 10.0.0.0/24: containers cannot reach it directly",
                ],
            ),
            (
                r#""ranges": [[{"subnet": "10.0.0.0/24"}, {"subnet": "fd00::/64"}]]"#,
                vec!["ipam.ranges[0][1]: mixed address families"],
            ),
            (
                r#""ranges": [[{"subnet": "10.0.0.0/24", "rangeEnd": "10.0.0.9"}, {"subnet": "10.0.0.0/16"}]]"#,
                vec![
                    "ipam.ranges[0][1]: subnets 10.0.0.1-10.0.0.9 and 10.0.0.1-10.0.255.254 overlap",
                ],
            ),
            (
                r#""subnet": "10.0.0.0/24", "ranges": [[{"subnet": "10.0.0.0/16"}]]"#,
                vec!["ipam.ranges[0]: range set 0 overlaps with 1"],
            ),
            (
                r#""subnet": "10.0.0.0/24", "routes": [{"dst": "10.5.0.1/16", "gw": "fd00::1"}, {}]"#,
                vec![
                    "ipam.routes[1].dst: missing",
                    "ipam.routes[0].dst: host bits set: the network is 10.5.0.0/16",
                    "ipam.routes[0].gw: of another family than the destination 10.5.0.1/16",
                ],
            ),
            (
                r#""range": [[{"subnet": "10.0.0.0/24"}]]"#,
                vec![
                    "ipam.range: unknown key; did you mean ranges?",
                    "ipam: no IP ranges specified",
                ],
            ),
        ] {
            let expected: Vec<_> = expected
                .iter()
                .map(|it| format!("plugins[0].{it}"))
                .collect();
            assert_eq!(faults(&ipam(keys)), expected, "{keys}");
        }
    }

    #[test]
    fn several_addresses_of_a_family_need_a_newer_version() {
        let keys = ipam(r#""ranges": [[{"subnet": "10.0.0.0/24"}], [{"subnet": "10.1.0.0/24"}]]"#);
        assert_eq!(
            faults_at("0.2.0", &keys),
            [
                "plugins[0].ipam.ranges: CNI version 0.2.0 does not support more than 1 address per family"
            ]
        );
        assert!(faults_at("0.3.0", &keys).is_empty());
    }

    #[test]
    fn what_the_plugin_takes_is_no_fault() {
        for keys in [
            r#""ranges": [[{"subnet": "10.0.0.0/30"}], [{"subnet": "fd00::/126", "gateway": ""}]]"#,
            r#""ranges": [[{"subnet": "10.0.0.0/24", "rangeStart": "10.0.0.5", "rangeEnd": "10.0.0.5"},
                           {"subnet": "10.0.0.0/24", "rangeStart": "10.0.0.6"}]]"#,
            r#""subnet": "0.0.0.0/0", "routes": [{"dst": "::/0"}, {"dst": "0.0.0.0/0", "table": 0}]"#,
        ] {
            let none: [String; 0] = [];
            assert_eq!(faults(&ipam(keys)), none, "{keys}");
        }
        let from_the_runtime = r#""type": "bridge", "capabilities": {"ipRanges": true},
                                  "ipam": {"type": "host-local"}"#;
        assert!(faults(from_the_runtime).is_empty());
    }
}
