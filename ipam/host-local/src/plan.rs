//! From keys to the ranges that addresses are taken from.

use std::net::IpAddr;
use std::path::PathBuf;

use cni::faults::{Checks, Fault, Faults};
use cni::result::Route;
use cni::{Code, Error, Version, ipam};

use crate::conf::{Conf, Ipam, RangeKeys, Requested};
use crate::range::RangeSet;

/// The text of the fault of a configuration without ranges. The runtime may pass some
/// (capability `ipRanges`).
pub const NO_RANGES: &str = "no IP ranges specified";

/// What an ADD hands out.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// One address from each, in this order.
    pub sets: Vec<RangeSet>,
    /// Addresses that must be among them.
    pub requested: Vec<IpAddr>,
    /// Whether these may lie outside the ranges, in their subnets.
    pub request_outside_range: bool,
    /// Returned as they are.
    pub routes: Vec<Route>,
    /// Each network has a directory in it.
    pub data_dir: PathBuf,
    /// Read into the `dns` of the result.
    pub resolv_conf: Option<PathBuf>,
}

impl Plan {
    /// Checks `conf`, and `args`, the `CNI_ARGS` of the call.
    ///
    /// # Errors
    /// Code 7, each fault with its key; 4 for CNI_ARGS.
    pub fn new(conf: &Conf, version: Version, args: &str) -> Result<Self, Faults> {
        let ipam = conf.ipam.as_ref();
        let ipam = ipam.ok_or_else(|| Fault::new("ipam", "IPAM config missing 'ipam' key"))?;
        let mut checks = Checks::default();
        let in_args = checks.take(requested_in_args(args)).flatten();
        let in_conf = conf.args.cni.ips.iter().chain(&conf.runtime_config.ips);
        let requested = without_duplicates(in_args.iter().chain(in_conf));
        let sets = range_sets(conf, ipam, version, &mut checks);
        ipam::check_routes(&ipam.routes, &mut checks);
        checks.finish(|| {
            Some(Self {
                sets,
                requested,
                request_outside_range: ipam.request_outside_range,
                routes: ipam.routes.clone(),
                data_dir: conf.data_dir(),
                resolv_conf: Some(&ipam.resolv_conf)
                    .filter(|path| !path.is_empty())
                    .map(PathBuf::from),
            })
        })
    }

    /// Removes the address from `wanted` that set number `number` has to hand out, if there is
    /// one.
    pub fn requested_of(&self, number: usize, wanted: &mut Vec<IpAddr>) -> Option<IpAddr> {
        let set = self.sets.get(number)?;
        let is_of_a_set = |ip| {
            let mut sets = self.sets.iter();
            sets.any(|set| set.contains(ip) || set.has_gateway(ip))
        };
        let inside = wanted.iter().position(|ip| set.contains(*ip));
        let outside = || {
            let is_outside = |ip: &IpAddr| set.outside(*ip).is_some() && !is_of_a_set(*ip);
            let mut wanted = wanted.iter();
            wanted.position(|ip| self.request_outside_range && is_outside(ip))
        };
        let at = inside.or_else(outside);
        at.map(|at| wanted.remove(at))
    }
}

/// The address in `CNI_ARGS`, where Kubernetes' runtimes put much else.
fn requested_in_args(args: &str) -> Result<Option<Requested>, Error> {
    // MAC is for the main plugin, which passes CNI_ARGS on unchanged.
    let [ip, _] = cni::env::parse_args(args, ["IP", "MAC"])?;
    let Some(text) = ip.filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    let requested = Requested::parse(&text);
    requested.map(Some).map_err(|why| {
        let pair = format!("IP={text}");
        Code::InvalidEnvironment.err(format!("ARGS: error parsing value of pair {pair:?}: {why}"))
    })
}

fn without_duplicates<'a>(requested: impl Iterator<Item = &'a Requested>) -> Vec<IpAddr> {
    let mut ips = Vec::new();
    for Requested(ip) in requested {
        if !ips.contains(ip) {
            ips.push(*ip);
        }
    }
    ips
}

/// Refuses a configuration whose addresses a result of `version` has no room for. One with
/// another fault passes.
///
/// # Errors
/// Code 7.
pub fn check_version(conf: &Conf, version: Version) -> Result<(), Error> {
    match Plan::new(conf, Version::LATEST, "") {
        Ok(plan) => one_of_each_family(&plan.sets, version),
        Err(_) => Ok(()),
    }
}

fn one_of_each_family(sets: &[RangeSet], version: Version) -> Result<(), Error> {
    let subnets = sets.iter().filter_map(|set| set.subnets().next());
    ipam::one_of_each_family(subnets.map(|(subnet, _)| subnet.ip()), version)
}

/// The sets that the runtime passes, the single range, then the list.
fn range_sets(conf: &Conf, ipam: &Ipam, version: Version, checks: &mut Checks) -> Vec<RangeSet> {
    let numbered = |key: &'static str, sets: &[Vec<RangeKeys>]| {
        let keys = (0..sets.len()).map(move |index| format!("{key}[{index}]"));
        keys.zip(sets.to_vec()).collect::<Vec<_>>()
    };
    let mut keys = numbered("runtimeConfig.ipRanges", &conf.runtime_config.ip_ranges);
    let single = ipam.single_range();
    keys.extend(single.map(|range| ("ipam".to_owned(), vec![range])));
    keys.extend(numbered("ipam.ranges", &ipam.ranges));
    if keys.is_empty() {
        checks.add(Fault::new("ipam", NO_RANGES));
    }
    let mut sets = Vec::new();
    for (number, (key, ranges)) in keys.iter().enumerate() {
        let set = RangeSet::new(ranges).map_err(|faults| {
            faults.map(|fault| {
                // The keys of the single range are in `ipam` itself.
                let at = match key.as_str() {
                    "ipam" => fault.key.trim_start_matches("[0]"),
                    _ => &fault.key,
                };
                let msg = format!("invalid range set {number}: {}", fault.error);
                Fault::new(format!("{key}{at}"), msg)
            })
        });
        sets.extend(checks.take(set));
    }
    let each_has_room = one_of_each_family(&sets, version);
    checks.take(each_has_room.map_err(|error| Fault::at("ipam.ranges", error)));
    if sets.len() == keys.len() {
        check_together(ipam, &keys, &sets, checks);
    }
    sets
}

/// What is wrong although each set is right.
fn check_together(
    ipam: &Ipam,
    keys: &[(String, Vec<RangeKeys>)],
    sets: &[RangeSet],
    checks: &mut Checks,
) {
    for (number, set) in sets.iter().enumerate() {
        for (other, _) in (sets.iter().enumerate())
            .skip(number + 1)
            .filter(|(_, other)| set.overlaps(other))
        {
            let msg = format!("range set {number} overlaps with {other}");
            checks.add(Fault::new(&keys[other].0, msg));
        }
        // A requested address may lie outside.
        if set.total() == 0 && !ipam.request_outside_range {
            let msg = format!("range set {number} has no address but the gateway");
            checks.add(Fault::new(&keys[number].0, msg));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use cni::json::{self, Json};

    fn read_at(version: Version, args: &str, document: &str) -> Result<Plan, Faults> {
        let conf = json::read(document).unwrap();
        Plan::new(&conf, version, args)
    }

    fn read_with(args: &str, document: &str) -> Result<Plan, Error> {
        Ok(read_at(Version::V0_2_0, args, document)?)
    }

    fn read(ipam: &str) -> Result<Plan, Error> {
        read_with("", &format!(r#"{{"ipam": {ipam}}}"#))
    }

    fn sets(ipam: &Plan) -> Vec<String> {
        ipam.sets.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn ranges_come_from_the_runtime_then_the_single_one_then_the_list() {
        let document = r#"{
            "runtimeConfig": {"IPRanges": [[{"Subnet": "10.3.0.0/24"}]]},
            "ipam": {
                "ranges": [[{"subnet": "10.1.0.0/24"}, {"subnet": "10.2.0.0/24", "rangeEnd": ""}]],
                "subnet": "10.0.0.0/24", "rangeStart": "10.0.0.5", "gateway": "10.0.0.254"
            }
        }"#;
        let ipam = read_at(Version::V1_1_0, "", document).unwrap();
        assert_eq!(
            sets(&ipam),
            [
                "10.3.0.1-10.3.0.254",
                "10.0.0.5-10.0.0.254",
                "10.1.0.1-10.1.0.254,10.2.0.1-10.2.0.254"
            ]
        );
        assert_eq!(ipam.data_dir, PathBuf::from("/var/lib/cni/networks"));
    }

    #[test]
    fn requested_addresses_come_from_three_places_once_each() {
        let document = r#"{
            "args": {"cni": {"ips": ["10.0.0.3/24", "10.0.0.2"]}},
            "runtimeConfig": {"ips": ["fd00::2/64", "::ffff:10.0.0.3"]},
            "ipam": {"subnet": "10.0.0.0/24", "resolvConf": "/r", "dataDir": "/d"}
        }"#;
        assert!(read_with("MAC=02:00:00:00:00:01", document).is_ok());
        assert!(read_with("FOO=1", document).is_err());
        let ipam = read_with("IgnoreUnknown=1;K8S_POD_NAME=x;IP=10.0.0.2", document).unwrap();
        let requested: Vec<_> = ipam.requested.iter().map(ToString::to_string).collect();
        assert_eq!(requested, ["10.0.0.2", "10.0.0.3", "fd00::2"]);
        assert_eq!(ipam.resolv_conf, Some("/r".into()));
        assert_eq!(ipam.data_dir, PathBuf::from("/d"));
    }

    #[test]
    fn faults_have_the_texts_of_the_go_plugin() {
        for (ipam, msg) in [
            ("null", "IPAM config missing 'ipam' key"),
            ("{}", "no IP ranges specified"),
            (r#"{"rangeStart": "10.0.0.1"}"#, "no IP ranges specified"),
            (
                r#"{"ranges": [[]]}"#,
                "invalid range set 0: empty range set",
            ),
            (
                r#"{"ranges": [[{"gateway": "10.0.0.1"}]]}"#,
                "invalid range set 0: range without a subnet",
            ),
            (
                r#"{"subnet": "10.0.0.0/31"}"#,
                "invalid range set 0: Network 10.0.0.0/31 too small to allocate from",
            ),
            (
                r#"{"subnet": "10.0.0.0/24", "ranges": [[{"subnet": "10.1.0.0/24"}]]}"#,
                "CNI version 0.2.0 does not support more than 1 address per family",
            ),
        ] {
            let error = read(ipam).unwrap_err();
            assert_eq!((error.code, error.msg.as_str()), (7, msg));
        }
        let overlap = r#"{"ipam": {"ranges": [
            [{"subnet": "10.0.0.0/24"}], [{"subnet": "fd00::/64"}], [{"subnet": "10.0.0.0/16"}]
        ]}}"#;
        let faults = read_at(Version::V1_1_0, "", overlap).unwrap_err();
        let first = faults.first();
        assert_eq!(first.error.msg, "range set 0 overlaps with 2");
        assert_eq!(first.key, "ipam.ranges[2]");
    }

    #[test]
    fn every_fault_has_its_key() {
        let document = r#"{"runtimeConfig": {"ipRanges": [[{"subnet": "10.0.0.0/31"}]]}, "ipam": {
            "subnet": "10.0.0.0/24", "rangeEnd": "10.1.0.0", "routes": [{"dst": "10.1.1.1/8"}],
            "ranges": [[], [{}, {"subnet": "ff02::/64"}, {"subnet": "10.1.0.0/24", "rangeStart": "10.0.0.0"}]]}}"#;
        let faults = read_at(Version::V1_1_0, "IP=x", document).unwrap_err();
        let keys: Vec<_> = faults.into_iter().map(|it| it.key).collect();
        let expected = [
            "",
            "runtimeConfig.ipRanges[0][0].subnet",
            "ipam.rangeEnd",
            "ipam.ranges[0]",
            "ipam.ranges[1][0].subnet",
            "ipam.ranges[1][1].subnet",
            "ipam.ranges[1][2].rangeStart",
            "ipam.routes[0].dst",
        ];
        assert_eq!(keys, expected);
    }

    #[test]
    fn a_range_needs_an_address_beside_the_gateway() {
        let range = r#""subnet": "10.0.0.0/24", "rangeEnd": "10.0.0.1""#;
        let error = read(&format!("{{{range}}}")).unwrap_err();
        assert_eq!(error.msg, "range set 0 has no address but the gateway");
        assert!(read(&format!(r#"{{{range}, "requestOutsideRange": true}}"#)).is_ok());
    }

    #[test]
    fn faults_in_the_variables_are_not_those_of_the_configuration() {
        let document = r#"{"ipam": {"subnet": "10.0.0.0/24"}}"#;
        let error = read_with("IP=10.0.0.x", document).unwrap_err();
        assert_eq!(error.code, 4);
        assert_eq!(
            error.msg,
            "ARGS: error parsing value of pair \"IP=10.0.0.x\": invalid IP address 10.0.0.x"
        );
        assert!(read_with("IP=", document).unwrap().requested.is_empty());
    }

    #[test]
    fn del_finds_the_data_directory_in_a_faulty_configuration() {
        let find = |text: &[u8]| {
            let reading = Json::parse(text).unwrap().decode_all::<Conf>();
            reading.value.unwrap().data_dir()
        };
        let broken = br#"{"ipam": {"DataDir": "/d", "subnet": 5, "ranges": "x"}}"#;
        assert_eq!(find(broken), PathBuf::from("/d"));
        for text in [
            &br#"{"ipam": []}"#[..],
            br#"{"ipam": {"dataDir": 1}}"#,
            b"{}",
        ] {
            assert_eq!(find(text), PathBuf::from("/var/lib/cni/networks"));
        }
    }
}
