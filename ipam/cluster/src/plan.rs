//! From keys to the request to the agent.

use std::net::IpAddr;
use std::path::PathBuf;

use cni::faults::{Checks, Fault, Faults};
use cni::result::IpConfig;
use cni::{Call, Cidr, Version};
use host_local::plan as local;
use host_local::range::RangeSet;
use pools::{Set, Span};

use crate::conf::{Conf, Ipam};

/// Addresses are announced when they change owner, but a neighbour may miss that.
const COOL_DOWN: u64 = 30;

/// The largest block: the agent has a list of its addresses.
const LARGEST_BITS: u8 = 10;

/// What an ADD hands out.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The range sets, requests, routes and DNS, as host-local has them.
    pub local: local::Plan,
    /// For the agent: one address from each.
    pub sets: Vec<Set>,
    /// The pool.
    pub pool: String,
    /// How long an address rests, in seconds.
    pub cool_down: u64,
    /// Whether addresses follow the pod's name.
    pub sticky: bool,
}

impl Plan {
    /// Checks `conf`, and `args`, the `CNI_ARGS` of the call.
    ///
    /// # Errors
    /// Code 7, each fault with its key; 4 for CNI_ARGS.
    pub fn new(conf: &Conf, network: &str, version: Version, args: &str) -> Result<Self, Faults> {
        let local = local::Plan::new(&conf.as_local(), version, args);
        let mut checks = Checks::default();
        let local = checks.take(local);
        let usual = Ipam::default();
        let keys = conf.ipam.as_ref().unwrap_or(&usual);
        let excluded = spans("exclude", &keys.exclude, &mut checks);
        let reserved = spans("reserved", &keys.reserved, &mut checks);
        let blocks = [
            block("blockSize", keys.block_size, 32, &mut checks),
            block("blockSizeIPv6", keys.block_size_ipv6, 128, &mut checks),
        ];
        let pool = match keys.pool.as_str() {
            "" => network,
            pool => pool,
        };
        if !is_name(pool) {
            let msg =
                format!("ipam.pool: {pool:?} has other characters than letters, digits, _ . -");
            checks.add(Fault::new("ipam.pool", msg));
        }
        for (key, path) in [("agent", conf.agent()), ("dataDir", conf.data_dir())] {
            if !path.is_absolute() {
                let msg = format!("ipam.{key}: {:?} is not an absolute path", path.display());
                checks.add(Fault::new(format!("ipam.{key}"), msg));
            }
        }
        let sets = match &local {
            Some(local) => sets(local, blocks, [&excluded, &reserved], &mut checks),
            None => Vec::new(),
        };
        checks.finish(|| {
            Some(Self {
                local: local?,
                sets,
                pool: pool.to_owned(),
                cool_down: keys.cool_down_seconds.unwrap_or(COOL_DOWN),
                sticky: keys.sticky,
            })
        })
    }

    /// The name that the addresses follow, where the runtime says one.
    ///
    /// # Errors
    /// Code 4: CNI_ARGS.
    pub fn name(&self, call: &Call) -> Result<Option<String>, cni::Error> {
        if !self.sticky {
            return Ok(None);
        }
        let [namespace, pod] = call.args(["K8S_POD_NAMESPACE", "K8S_POD_NAME"])?;
        let pod = pod.filter(|it| !it.is_empty());
        Ok(pod.map(|pod| format!("{}/{pod}", namespace.unwrap_or_default())))
    }

    /// An address of the agent as the result has it.
    pub fn ip_config(&self, ip: IpAddr) -> Option<IpConfig> {
        let range = self.local.sets.iter().find_map(|it| it.range_of(ip))?;
        Some(IpConfig {
            interface: None,
            address: range.cidr(ip).ok()?,
            gateway: Some(range.gateway()),
        })
    }
}

/// What the agent may hand out of each range set.
fn sets(
    local: &local::Plan,
    blocks: [Option<u8>; 2],
    [excluded, reserved]: [&[Span]; 2],
    checks: &mut Checks,
) -> Vec<Set> {
    let mut wanted = local.requested.clone();
    let mut sets = Vec::new();
    for (number, set) in local.sets.iter().enumerate() {
        let requested = local.requested_of(number, &mut wanted);
        if let Some(ip) = requested.filter(|ip| excluded.iter().any(|it| it.contains(*ip))) {
            let msg = format!("requested IP address {ip} is not available: ipam.exclude has it");
            checks.add(Fault::new("ipam.exclude", msg));
        }
        if let Some(ip) = requested.filter(|ip| set.has_gateway(*ip)) {
            let msg = format!("requested ip {ip} is subnet's gateway");
            checks.add(Fault::new("", msg));
        }
        let spans = left(set, [excluded, reserved]);
        if spans.is_empty() && requested.is_none() {
            let msg = format!(
                "range set {number} has no address that is neither the gateway, nor excluded, nor reserved"
            );
            checks.add(Fault::new("ipam.exclude", msg));
        }
        sets.push(Set {
            block: blocks[usize::from(!set.is_ipv4())],
            spans,
            requested,
        });
    }
    if !wanted.is_empty() {
        let list: Vec<_> = wanted.iter().map(ToString::to_string).collect();
        let msg = format!("failed to allocate all requested IPs: {}", list.join(" "));
        checks.add(Fault::new("", msg));
    }
    sets
}

/// The addresses of a set without gateways and without `holes`.
fn left(set: &RangeSet, holes: [&[Span]; 2]) -> Vec<Span> {
    let gateways: Vec<Span> = set.subnets().map(|(_, it)| Span(it, it)).collect();
    let mut spans: Vec<Span> = set.bounds().map(|(start, end)| Span(start, end)).collect();
    for hole in gateways.iter().chain(holes.concat().iter()) {
        spans = spans.into_iter().flat_map(|it| it.without(hole)).collect();
    }
    spans
}

fn spans(key: &str, texts: &[String], checks: &mut Checks) -> Vec<Span> {
    checks.each(&format!("ipam.{key}"), texts, |key, text| {
        let why = "is neither an address, nor a subnet, nor a range a-b";
        span(text).ok_or_else(|| Fault::new(key, format!("{key}: {text:?} {why}")))
    })
}

/// `10.1.0.9`, `10.1.0.0/28` or `10.1.0.5-10.1.0.9`.
fn span(text: &str) -> Option<Span> {
    if let Some((first, last)) = text.split_once('-') {
        let (first, last): (IpAddr, IpAddr) =
            (first.trim().parse().ok()?, last.trim().parse().ok()?);
        let is_span = first.is_ipv4() == last.is_ipv4() && first <= last;
        return is_span.then_some(Span(first, last));
    }
    if let Ok(Cidr(network)) = text.parse::<Cidr>() {
        return Some(Span(network.network(), network.broadcast()));
    }
    let ip = text.parse().ok()?;
    Some(Span(ip, ip))
}

fn block(key: &str, size: Option<u8>, width: u8, checks: &mut Checks) -> Option<u8> {
    let size = size?;
    let least = width - LARGEST_BITS;
    if !(least..=width).contains(&size) {
        let key = format!("ipam.{key}");
        let msg = format!("{key}: {size} is not between {least} and {width}");
        checks.add(Fault::new(key.as_str(), msg));
    }
    Some(size)
}

/// A pool is a part of a key in the store.
fn is_name(text: &str) -> bool {
    let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    !text.is_empty() && text.len() <= 200 && text.chars().all(is_part)
}

/// The file of `ipam.resolvConf`.
pub fn resolv_conf(plan: &Plan) -> Option<&PathBuf> {
    plan.local.resolv_conf.as_ref()
}

#[cfg(test)]
mod tests {
    use super::*;
    use cni::json;

    fn plan(ipam: &str, args: &str) -> Result<Plan, Vec<String>> {
        let document = format!(r#"{{"ipam": {ipam}}}"#);
        let conf = json::read(document).unwrap();
        let plan = Plan::new(&conf, "net", Version::V1_1_0, args);
        plan.map_err(|it| it.into_iter().map(|it| it.error.msg).collect())
    }

    fn texts(plan: &Plan) -> Vec<String> {
        let spans = |it: &Set| it.spans.iter().map(ToString::to_string).collect::<Vec<_>>();
        plan.sets.iter().map(|it| spans(it).join(",")).collect()
    }

    #[test]
    fn the_agent_gets_what_pods_may_have() {
        let text = r#"{"ranges": [[{"subnet": "10.1.0.0/24", "rangeEnd": "10.1.0.40"}], [{"subnet": "fd00::/64"}]],
            "exclude": ["10.1.0.5-10.1.0.9", "10.1.0.16/28"], "reserved": ["10.1.0.40", "fd00::/120"]}"#;
        let found = plan(text, "").unwrap();
        assert_eq!(
            texts(&found),
            [
                "10.1.0.2-10.1.0.4,10.1.0.10-10.1.0.15,10.1.0.32-10.1.0.39",
                "fd00::100-fd00::ffff:ffff:ffff:ffff"
            ]
        );
        assert_eq!((found.pool.as_str(), found.cool_down), ("net", 30));
        let ip = found.ip_config("10.1.0.3".parse().unwrap()).unwrap();
        assert_eq!(ip.address.to_string(), "10.1.0.3/24");
        let found = plan(text, "IP=10.1.0.40").unwrap();
        assert_eq!(found.sets[0].requested, "10.1.0.40".parse().ok());
        let faults = plan(text, "IP=10.1.0.6").unwrap_err();
        assert!(faults[0].contains("ipam.exclude has it"), "{faults:?}");
        assert!(plan(text, "IP=10.1.0.1").unwrap_err()[0].contains("gateway"));
        assert!(plan(text, "IP=10.2.0.1").unwrap_err()[0].contains("failed to allocate all"));
    }

    #[test]
    fn faults_name_their_keys() {
        let text = r#"{"subnet": "10.1.0.0/24", "exclude": ["x", "10.0.0.9-10.0.0.1"],
            "reserved": ["10.0.0.0/33"], "pool": "a/b", "blockSize": 8, "blockSizeIPv6": 129,
            "agent": "sock", "dataDir": "d"}"#;
        let faults = plan(text, "").unwrap_err();
        let keys: Vec<_> = faults
            .iter()
            .map(|it| it.split(": ").next().unwrap())
            .collect();
        let expected = [
            "exclude[0]",
            "exclude[1]",
            "reserved[0]",
            "blockSize",
            "blockSizeIPv6",
            "pool",
            "agent",
            "dataDir",
        ];
        assert_eq!(keys, expected.map(|it| format!("ipam.{it}")));
        let nothing = plan(
            r#"{"subnet": "10.1.0.0/24", "exclude": ["10.1.0.0/24"]}"#,
            "",
        );
        assert!(nothing.unwrap_err()[0].contains("no address that is neither"));
    }
}
