//! The subnets of a new network: `--subnet`, `--ip-range`, `--gateway`, `--aux-address`. All
//! faults are collected; their texts are close to Docker's.

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::Result;
use cni::Cidr;
use ipnetwork::IpNetwork;
use networks::named::SubnetRecord;
use serde_json::{Value, json};

use super::pools::Pools;
use super::span::Span;
use super::taken::{Holder, Taken};

/// The options, as they were given.
#[derive(Clone, Debug, Default)]
pub struct Words<'a> {
    /// `--subnet`
    pub subnets: &'a [String],
    /// `--ip-range`
    pub ranges: &'a [String],
    /// `--gateway`
    pub gateways: &'a [String],
    /// `--aux-address`
    pub aux: &'a [String],
    /// `--ipv4`, `--ipv6`
    pub ipv4: Option<bool>,
    /// `--ipv6`
    pub ipv6: Option<bool>,
}

/// A subnet of the new network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subnet {
    /// The addresses.
    pub network: IpNetwork,
    /// The gateway.
    pub gateway: IpAddr,
    range: Option<Range>,
    aux: BTreeMap<String, IpAddr>,
}

/// A part of a subnet.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Range {
    word: String,
    span: Span,
}

/// A subnet before its addresses are known.
#[derive(Clone, Debug)]
struct Request {
    wanted: Wanted,
    range: Option<Range>,
    gateway: Option<IpAddr>,
    aux: BTreeMap<String, IpAddr>,
}

#[derive(Clone, Copy, Debug)]
enum Wanted {
    Given(IpNetwork),
    /// One of the pools' subnets, of this size if it has one.
    FromPools {
        is_ipv4: bool,
        size: Option<u8>,
    },
}

impl Request {
    fn new(wanted: Wanted) -> Self {
        Self {
            wanted,
            range: None,
            gateway: None,
            aux: BTreeMap::new(),
        }
    }

    /// Keeps the addresses of others from containers: on a segment of the node, nothing else does.
    fn reserve(&mut self, network: IpNetwork, others: &[(&'static str, IpAddr)]) {
        let gateway = self.gateway_in(network);
        for (what, ip) in others {
            let known = gateway == *ip || self.aux.values().any(|it| it == ip);
            if known || !network.contains(*ip) {
                continue;
            }
            // The first address stays the gateway.
            self.gateway = Some(gateway);
            let numbered = (2..).map(|number: u32| format!("{what}{number}"));
            let mut names = std::iter::once((*what).to_owned()).chain(numbered);
            if let Some(name) = names.find(|it| !self.aux.contains_key(it)) {
                self.aux.insert(name, *ip);
            }
        }
    }

    /// The gateway: unless it was given, the first address that is not reserved.
    fn gateway_in(&self, network: IpNetwork) -> IpAddr {
        self.gateway.unwrap_or_else(|| {
            let free = Span::usable(network).without(self.aux.values().copied());
            free.first().map_or(network.network(), |it| it.ends()[0])
        })
    }

    fn is_ipv4(&self) -> bool {
        match self.wanted {
            Wanted::Given(network) => network.is_ipv4(),
            Wanted::FromPools { is_ipv4, .. } => is_ipv4,
        }
    }

    fn given(&self) -> Option<IpNetwork> {
        match self.wanted {
            Wanted::Given(network) => Some(network),
            Wanted::FromPools { .. } => None,
        }
    }
}

/// The subnets that the options describe, each with all of its faults.
#[derive(Debug)]
pub struct Requests {
    all: Vec<Request>,
}

impl Requests {
    /// Reads the options. Faults are added to `faults`.
    pub fn read(words: &Words<'_>, faults: &mut Vec<String>) -> Self {
        let mut requests = Self::only(words, faults);
        requests.add_families(words, faults);
        requests
    }

    /// The same without subnets of families that are not mentioned.
    pub fn only(words: &Words<'_>, faults: &mut Vec<String>) -> Self {
        let mut requests = Self { all: Vec::new() };
        for word in words.subnets {
            match subnet(word) {
                Ok(wanted) => requests.all.push(Request::new(wanted)),
                Err(fault) => faults.push(fault),
            }
        }
        if words.subnets.is_empty() && !(words.ranges.is_empty() && words.gateways.is_empty()) {
            faults.push("every ip-range or gateway must have a corresponding subnet".to_owned());
        }
        if faults.is_empty() {
            requests.check_overlaps(faults);
            requests.add_ranges(words.ranges, faults);
            requests.add_gateways(words.gateways, faults);
            requests.add_aux(words.aux, faults);
        }
        requests
    }

    fn check_overlaps(&self, faults: &mut Vec<String>) {
        let given: Vec<_> = self.all.iter().filter_map(Request::given).collect();
        for (index, one) in given.iter().enumerate() {
            let others = given[..index].iter();
            for other in others.filter(|it| Span::of(**it).overlaps(Span::of(*one))) {
                faults.push(format!(
                    "multiple overlapping subnet configuration is not supported: {other} and {one}"
                ));
            }
        }
    }

    fn containing(&mut self, span: Span) -> Option<&mut Request> {
        self.all.iter_mut().find(|it| {
            it.given().is_some_and(|network| {
                let all = Span::of(network);
                all.overlaps(span) && all.first <= span.first && span.last <= all.last
            })
        })
    }

    fn add_ranges(&mut self, words: &[String], faults: &mut Vec<String>) {
        for word in words {
            let span = match range(word) {
                Ok(span) => span,
                Err(fault) => {
                    faults.push(fault);
                    continue;
                }
            };
            match self.containing(span) {
                None => faults.push(format!("no matching subnet for range {word}")),
                Some(Request {
                    range: Some(first),
                    wanted,
                    ..
                }) => {
                    let (first, wanted) = (&first.word, wanted.text());
                    faults.push(format!(
                        "cannot configure multiple ranges ({word}, {first}) on the same subnet ({wanted})"
                    ));
                }
                Some(request) => {
                    request.range = Some(Range {
                        word: word.clone(),
                        span,
                    })
                }
            }
        }
    }

    fn add_gateways(&mut self, words: &[String], faults: &mut Vec<String>) {
        for word in words {
            let Ok(ip) = word.parse::<IpAddr>() else {
                faults.push(format!("invalid gateway address {word:?}"));
                continue;
            };
            match self.containing(Span::between(ip, ip)) {
                None => faults.push(format!("no matching subnet for gateway {word}")),
                Some(Request {
                    gateway: Some(first),
                    wanted,
                    ..
                }) => {
                    let wanted = wanted.text();
                    faults.push(format!(
                        "cannot configure multiple gateways ({word}, {first}) for the same subnet ({wanted})"
                    ));
                }
                Some(request) => {
                    let usable = request.given().map(Span::usable);
                    if usable.is_some_and(|it| !it.contains(ip)) {
                        let wanted = request.wanted.text();
                        faults.push(format!(
                            "invalid gateway {ip}: no host of {wanted} can have it"
                        ));
                    }
                    request.gateway = Some(ip);
                }
            }
        }
    }

    fn add_aux(&mut self, words: &[String], faults: &mut Vec<String>) {
        for word in words {
            let pair = word.split_once('=').filter(|(name, _)| !name.is_empty());
            let pair = pair.and_then(|(name, ip)| Some((name, ip.parse::<IpAddr>().ok()?)));
            let Some((name, ip)) = pair else {
                faults.push(format!(
                    "invalid auxiliary address {word:?}: expected NAME=ADDRESS"
                ));
                continue;
            };
            if self.all.iter().any(|it| it.aux.contains_key(name)) {
                faults.push(format!("auxiliary address {name} is given twice"));
            } else if self
                .all
                .iter()
                .any(|it| it.aux.values().any(|it| *it == ip) || it.gateway == Some(ip))
            {
                faults.push(format!("auxiliary address {word}: Address already in use"));
            } else {
                match self.containing(Span::between(ip, ip)) {
                    None => faults.push(format!("no matching subnet for aux-address {ip}")),
                    Some(request) => drop(request.aux.insert(name.to_owned(), ip)),
                }
            }
        }
    }

    /// Adds a subnet from the pools for each family that is wanted and has none.
    fn add_families(&mut self, words: &Words<'_>, faults: &mut Vec<String>) {
        let has = |requests: &Self, is_ipv4| requests.all.iter().any(|it| it.is_ipv4() == is_ipv4);
        for (is_ipv4, wanted, option) in [(true, words.ipv4, "ipv4"), (false, words.ipv6, "ipv6")] {
            if wanted == Some(false) && has(self, is_ipv4) {
                faults.push(format!(
                    "--{option}=false, but a subnet of that family is given"
                ));
            }
        }
        // As with Docker, a network has IPv4 also if only an IPv6 subnet is given, unless an option
        // disables IPv4.
        for (is_ipv4, wanted) in [
            (true, words.ipv4 != Some(false)),
            (false, words.ipv6 == Some(true)),
        ] {
            if wanted && !has(self, is_ipv4) && faults.is_empty() {
                self.all.push(Request::new(Wanted::FromPools {
                    is_ipv4,
                    size: None,
                }));
            }
        }
        if self.all.is_empty() && faults.is_empty() {
            faults.push("IPv4 or IPv6 must be enabled".to_owned());
        }
    }

    /// Chooses the subnets that were not given, and checks the others. `shares_segment`: the
    /// network is on a segment of the node, so its subnet may be the node's, too. `own`: the
    /// interface that will be the network's, whose routes do not count.
    ///
    /// # Errors
    /// The pools are used up.
    pub fn settle(
        &self,
        pools: &Pools,
        taken: &[Taken],
        node: Node<'_>,
        faults: &mut Vec<String>,
    ) -> Result<Vec<Subnet>> {
        let mut taken = taken.to_vec();
        let mut subnets = Vec::new();
        for request in &self.all {
            let network = match request.wanted {
                Wanted::Given(network) => {
                    check_overlap(network, &taken, node, faults);
                    network
                }
                Wanted::FromPools { is_ipv4, size } => pools.choose(is_ipv4, size, &taken)?,
            };
            taken.push(Taken {
                network,
                holder: Holder::Network {
                    name: node.name.to_owned(),
                    file: node.name.into(),
                },
            });
            let mut request = request.clone();
            request.reserve(network, node.others);
            subnets.push(Subnet::new(network, &request, faults));
        }
        Ok(subnets)
    }
}

/// What the new network is to the node.
#[derive(Clone, Copy, Debug)]
pub struct Node<'a> {
    /// Its name.
    pub name: &'a str,
    /// It is on a segment of the node, so its subnet may be the node's, too.
    pub shares_segment: bool,
    /// The interface that will be the network's, whose routes do not count.
    pub interface: &'a str,
    /// What has addresses of the segment, with its address.
    pub others: &'a [(&'static str, IpAddr)],
}

/// Networks cannot have the same addresses. Neither can a network and a link of the node; a
/// longer way is a matter of taste, and Docker takes it.
fn check_overlap(network: IpNetwork, taken: &[Taken], node: Node<'_>, faults: &mut Vec<String>) {
    let span = Span::of(network);
    for obstacle in taken
        .iter()
        .filter(|it| Span::of(it.network).overlaps(span))
    {
        let is_fault = match &obstacle.holder {
            Holder::Network { .. } => true,
            Holder::Route { interface, .. } if interface == node.interface => continue,
            Holder::Route { .. } | Holder::NameServer(_) if node.shares_segment => continue,
            Holder::Route { connected, .. } => *connected,
            Holder::NameServer(_) => false,
        };
        if is_fault {
            return faults.push(format!(
                "Pool overlaps with other one on this address space: {network} overlaps with {obstacle}"
            ));
        }
        cni::log(format_args!(
            "podwire: warning: {network} overlaps with {obstacle}"
        ));
    }
}

impl Wanted {
    fn text(self) -> String {
        match self {
            Self::Given(network) => network.to_string(),
            Self::FromPools { is_ipv4, size } => {
                let any = if is_ipv4 { "0.0.0.0" } else { "::" };
                format!("{any}/{}", size.unwrap_or_default())
            }
        }
    }
}

impl Subnet {
    fn new(network: IpNetwork, request: &Request, faults: &mut Vec<String>) -> Self {
        let subnet = Self {
            network,
            gateway: request.gateway_in(network),
            range: request.range.clone(),
            aux: request.aux.clone(),
        };
        if subnet.spans().is_empty() {
            faults.push(format!("no address of {network} is left for containers"));
        }
        subnet
    }

    /// The addresses that containers get.
    fn spans(&self) -> Vec<Span> {
        let usable = Span::usable(self.network);
        let within = match &self.range {
            Some(range) => range.span.within(usable),
            None => Some(usable),
        };
        let reserved = || self.aux.values().copied();
        let spans: Vec<_> = within.map(|it| it.without(reserved())).unwrap_or_default();
        // The gateway may stay inside: host-local hands it out to no one.
        let is_gateway = |it: &Span| it.count() == 1 && it.contains(self.gateway);
        spans.into_iter().filter(|it| !is_gateway(it)).collect()
    }

    /// The ranges for host-local. Reserved addresses lie between them.
    pub fn ranges(&self) -> Vec<Value> {
        let usable = Span::usable(self.network);
        let range = |span: Span| {
            let mut range = json!({"subnet": self.network.to_string(), "gateway": self.gateway});
            let [first, last] = span.ends();
            if span.first != usable.first {
                range["rangeStart"] = first.to_string().into();
            }
            if span.last != usable.last {
                range["rangeEnd"] = last.to_string().into();
            }
            range
        };
        self.spans().into_iter().map(range).collect()
    }

    /// Whether containers may ask for addresses that they would not get otherwise.
    pub fn has_range(&self) -> bool {
        self.range.is_some()
    }

    /// What host-local's keys cannot express.
    pub fn record(&self) -> SubnetRecord {
        SubnetRecord {
            subnet: Cidr(self.network),
            range: self.range.as_ref().map(|it| it.word.clone()),
            auxiliary_addresses: self.aux.clone(),
        }
    }
}

fn subnet(word: &str) -> Result<Wanted, String> {
    let network: Cidr = word.parse()?;
    let network = network.0;
    let (is_ipv4, size) = (network.is_ipv4(), network.prefix());
    let longest = if is_ipv4 { 30 } else { 126 };
    if size > longest {
        return Err(format!(
            "invalid subnet {word}: it has no room for a gateway and a container"
        ));
    }
    if network.ip().is_unspecified() {
        if size == 0 {
            return Err(format!("invalid subnet {word}: all addresses"));
        }
        return Ok(Wanted::FromPools {
            is_ipv4,
            size: Some(size),
        });
    }
    let right = network.network();
    if right != network.ip() {
        return Err(format!(
            "invalid subnet {word}: it should be {right}/{size}"
        ));
    }
    let reserved = [
        "127.0.0.0/8",
        "224.0.0.0/3",
        "0.0.0.0/8",
        "fe80::/10",
        "ff00::/8",
        "::/127",
    ];
    for reserved in reserved.iter().filter_map(|it| it.parse().ok()) {
        if Span::of(network).overlaps(Span::of(reserved)) {
            return Err(format!(
                "invalid subnet {word}: no network can have addresses of {reserved}"
            ));
        }
    }
    Ok(Wanted::Given(network))
}

/// `10.1.0.0/25`, or podman's `10.1.0.10-10.1.0.99`.
fn range(word: &str) -> Result<Span, String> {
    let invalid = || format!("invalid ip-range {word:?}: expected a CIDR or FIRST-LAST");
    if let Some((first, last)) = word.split_once('-') {
        let (first, last) = (
            first.trim().parse::<IpAddr>(),
            last.trim().parse::<IpAddr>(),
        );
        let (first, last) = first.ok().zip(last.ok()).ok_or_else(invalid)?;
        if first.is_ipv4() != last.is_ipv4() || first > last {
            return Err(invalid());
        }
        return Ok(Span::between(first, last));
    }
    let network = word.parse::<Cidr>().map_err(|_| invalid())?.0;
    let right = network.network();
    if right != network.ip() {
        let size = network.prefix();
        return Err(format!(
            "invalid ip-range {word}: it should be {right}/{size}"
        ));
    }
    Ok(Span::of(network))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(ToString::to_string).collect()
    }

    /// Subnets, ranges, gateways and auxiliary addresses, separated by spaces.
    fn settled(options: [&str; 4], ipv6: Option<bool>) -> Result<Vec<Subnet>, Vec<String>> {
        let lists = options.map(|it| words(&it.split_whitespace().collect::<Vec<_>>()));
        let [subnets, ranges, gateways, aux] = &lists;
        let options = Words {
            subnets,
            ranges,
            gateways,
            aux,
            ipv4: None,
            ipv6,
        };
        let mut faults = Vec::new();
        let requests = Requests::read(&options, &mut faults);
        let holder = Holder::Network {
            name: "other".into(),
            file: "/x".into(),
        };
        let taken = [Taken {
            network: "10.5.0.0/16".parse().unwrap(),
            holder,
        }];
        let node = Node {
            name: "n",
            shares_segment: false,
            interface: "br",
            others: &[],
        };
        let pools = Pools::read("/nonexistent/pools.json".as_ref()).unwrap();
        let subnets = requests.settle(&pools, &taken, node, &mut faults).unwrap();
        if faults.is_empty() {
            Ok(subnets)
        } else {
            Err(faults)
        }
    }

    #[test]
    fn ranges_leave_out_what_is_reserved() {
        for (options, expected) in [
            (
                ["10.1.0.0/24", "", "", ""],
                json!([{"subnet": "10.1.0.0/24", "gateway": "10.1.0.1"}]),
            ),
            (
                ["10.1.0.0/16", "10.1.5.0/24", "10.1.5.254", "dns=10.1.5.7"],
                json!([
                    {"subnet": "10.1.0.0/16", "gateway": "10.1.5.254", "rangeStart": "10.1.5.0", "rangeEnd": "10.1.5.6"},
                    {"subnet": "10.1.0.0/16", "gateway": "10.1.5.254", "rangeStart": "10.1.5.8", "rangeEnd": "10.1.5.255"}]),
            ),
            (
                ["10.1.0.0/24", "10.1.0.10-10.1.0.20", "", "first=10.1.0.1"],
                json!([{"subnet": "10.1.0.0/24", "gateway": "10.1.0.2", "rangeStart": "10.1.0.10", "rangeEnd": "10.1.0.20"}]),
            ),
            (
                ["0.0.0.0/26", "", "", ""],
                json!([{"subnet": "10.208.0.0/26", "gateway": "10.208.0.1"}]),
            ),
        ] {
            let subnets = settled(options, None).unwrap();
            assert_eq!(Value::from(subnets[0].ranges()), expected, "{options:?}");
            assert_eq!(subnets.len(), 1);
        }
    }

    #[test]
    fn what_is_on_the_segment_keeps_its_address() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let mut request = Request::new(subnet("192.0.2.0/24").unwrap());
        request.aux.insert("node".into(), ip("192.0.2.7"));
        let others = [
            "192.0.2.1",
            "192.0.2.9",
            "198.51.100.1",
            "192.0.2.10",
            "192.0.2.9",
        ];
        let others = others.map(|it| ("node", ip(it)));
        request.reserve("192.0.2.0/24".parse().unwrap(), &others);
        assert_eq!(request.gateway, Some(ip("192.0.2.1")));
        let reserved: Vec<_> = request
            .aux
            .iter()
            .map(|(name, ip)| format!("{name}={ip}"))
            .collect();
        assert_eq!(
            reserved,
            ["node=192.0.2.7", "node2=192.0.2.9", "node3=192.0.2.10"]
        );
    }

    #[test]
    fn both_families_come_from_pools() {
        let subnets = settled(["", "", "", ""], Some(true)).unwrap();
        assert_eq!(subnets[0].network.to_string(), "10.208.0.0/24");
        assert_eq!(subnets[1].network.prefix(), 64);
        assert!(subnets[1].gateway.to_string().ends_with("::1"));
        let subnets = settled(["fd00:1::/64", "", "", ""], None).unwrap();
        assert_eq!(subnets.len(), 2, "an IPv6 subnet does not replace IPv4");
    }

    #[test]
    fn every_fault_is_reported() {
        for (options, expected) in [
            (
                ["10.1.0.5/24", "", "", ""],
                "invalid subnet 10.1.0.5/24: it should be 10.1.0.0/24",
            ),
            (["10.1.0.0", "", "", ""], "invalid CIDR address: 10.1.0.0"),
            (["10.1.0.0/31", "", "", ""], "no room"),
            (["127.1.0.0/16", "", "", ""], "127.0.0.0/8"),
            (["0.0.0.0/0", "", "", ""], "all addresses"),
            (["224.1.0.0/16", "", "", ""], "224.0.0.0/3"),
            (
                ["10.1.0.0/24 10.1.0.0/25", "", "", ""],
                "multiple overlapping subnet configuration",
            ),
            (
                ["10.1.0.0/24", "10.2.0.0/25", "", ""],
                "no matching subnet for range 10.2.0.0/25",
            ),
            (
                ["10.1.0.0/24", "10.1.0.0/16", "", ""],
                "no matching subnet for range",
            ),
            (
                ["10.1.0.0/24", "10.1.0.0/25 10.1.0.128/25", "", ""],
                "cannot configure multiple ranges",
            ),
            (
                ["10.1.0.0/24", "10.1.0.9-10.1.0.1", "", ""],
                "invalid ip-range",
            ),
            (
                ["10.1.0.0/24", "10.1.0.1/25", "", ""],
                "it should be 10.1.0.0/25",
            ),
            (
                ["10.1.0.0/24", "", "10.2.0.1", ""],
                "no matching subnet for gateway 10.2.0.1",
            ),
            (
                ["10.1.0.0/24", "", "10.1.0.0", ""],
                "invalid gateway 10.1.0.0",
            ),
            (
                ["10.1.0.0/24", "", "10.1.0.1 10.1.0.2", ""],
                "cannot configure multiple gateways",
            ),
            (
                ["10.1.0.0/24", "", "x", ""],
                "invalid gateway address \"x\"",
            ),
            (["10.1.0.0/24", "", "", "10.1.0.5"], "expected NAME=ADDRESS"),
            (
                ["10.1.0.0/24", "", "", "a=10.2.0.5"],
                "no matching subnet for aux-address",
            ),
            (
                ["10.1.0.0/24", "", "10.1.0.5", "a=10.1.0.5"],
                "Address already in use",
            ),
            (["10.1.0.0/24", "", "", "a=10.1.0.5 a=10.1.0.6"], "twice"),
            (
                ["10.1.0.0/30", "", "", "a=10.1.0.2"],
                "no address of 10.1.0.0/30",
            ),
            (
                ["10.5.7.0/24", "", "", ""],
                "10.5.7.0/24 overlaps with 10.5.0.0/16 of network other (/x)",
            ),
            (
                ["10.4.0.0/15", "10.5.0.0/24", "", ""],
                "Pool overlaps with other one",
            ),
        ] {
            let faults = settled(options, None).unwrap_err().join("; ");
            assert!(faults.contains(expected), "{options:?}: {faults}");
        }
        let faults = settled(["10.1.0.0/24", "10.2.0.0/25", "x", "y"], None).unwrap_err();
        assert_eq!(faults.len(), 3, "{faults:?}");
    }
}
