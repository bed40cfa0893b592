//! The keys of host-local, and what is checked of them.

use std::net::IpAddr;
use std::path::PathBuf;

use anyhow::Result;
use cni::json::Json;
use cni::result::Route;
use cni::{Cidr, Code, Error, Version};
use serde::{Deserialize, Deserializer, de};

use crate::range::{RangeKeys, RangeSet};

/// Where reservations are kept unless the configuration says otherwise.
const DATA_DIR: &str = "/var/lib/cni/networks";

/// What an ADD is asked for.
#[derive(Clone, Debug)]
pub struct Ipam {
    /// One address from each, in this order.
    pub sets: Vec<RangeSet>,
    /// Addresses that must be among them.
    pub requested: Vec<IpAddr>,
    /// Whether these may lie outside the ranges, in their subnets.
    pub request_outside_range: bool,
    /// Returned as they are.
    pub routes: Vec<Route>,
    /// Under which each network has a directory.
    pub data_dir: PathBuf,
    /// Read into the `dns` of the result.
    pub resolv_conf: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Keys {
    ipam: Option<IpamKeys>,
    runtime_config: RuntimeConfig,
    args: Args,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct IpamKeys {
    ranges: Vec<Vec<RangeKeys>>,
    // The four keys of a single range, from before there were `ranges`.
    subnet: Option<Cidr>,
    #[serde(deserialize_with = "cni::address::optional_ip")]
    range_start: Option<IpAddr>,
    #[serde(deserialize_with = "cni::address::optional_ip")]
    range_end: Option<IpAddr>,
    #[serde(deserialize_with = "cni::address::optional_ip")]
    gateway: Option<IpAddr>,
    routes: Vec<Route>,
    data_dir: String,
    resolv_conf: String,
    request_outside_range: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RuntimeConfig {
    #[serde(rename = "ipRanges")]
    ip_ranges: Vec<Vec<RangeKeys>>,
    ips: Vec<Requested>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Args {
    cni: CniArgs,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct CniArgs {
    ips: Vec<Requested>,
}

/// An address that is asked for. A prefix may follow it and says nothing: that
/// of the subnet holds.
#[derive(Clone, Copy, Debug)]
struct Requested(IpAddr);

impl Requested {
    fn parse(text: &str) -> Result<Self, String> {
        let ip = match text.contains('/') {
            true => text.parse().map(Cidr::ip),
            false => cni::address::parse_ip(text),
        };
        ip.map(Self)
            .map_err(|_| format!("invalid IP address {text}"))
    }
}

impl<'de> Deserialize<'de> for Requested {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

impl Ipam {
    /// Reads and checks `document`, and `args`, the `CNI_ARGS` of the call.
    pub fn read(document: &Json, version: Version, args: &str) -> Result<Self, Error> {
        let keys: Keys = document
            .decode()
            .map_err(|error| fault(format!("failed to load netconf: {error}")))?;
        let Some(ipam) = keys.ipam else {
            return Err(fault("IPAM config missing 'ipam' key"));
        };
        let mut requested: Vec<_> = requested_in_args(args)?.into_iter().collect();
        requested.extend(keys.args.cni.ips);
        requested.extend(keys.runtime_config.ips);

        let mut ranges = keys.runtime_config.ip_ranges;
        ranges.extend(ipam.single_range().map(|range| vec![range]));
        ranges.extend(ipam.ranges);
        Ok(Self {
            sets: range_sets(&ranges, version)?,
            requested: without_duplicates(&requested),
            request_outside_range: ipam.request_outside_range,
            routes: ipam.routes,
            data_dir: data_dir_or_default(ipam.data_dir),
            resolv_conf: Some(ipam.resolv_conf)
                .filter(|path| !path.is_empty())
                .map(PathBuf::from),
        })
    }
}

impl Ipam {
    /// Takes the address out of `wanted` that set number `number` is to give, if one is.
    pub fn requested_of(&self, number: usize, wanted: &mut Vec<IpAddr>) -> Option<IpAddr> {
        let set = self.sets.get(number)?;
        let is_other = |set: &RangeSet, ip| set.contains(ip) || set.has_gateway(ip);
        let in_any = |ip: &IpAddr| self.sets.iter().any(|set| is_other(set, *ip));
        let inside = wanted.iter().position(|ip| set.contains(*ip));
        let outside = || {
            let may = |ip: &IpAddr| set.outside(*ip).is_some() && !in_any(ip);
            wanted.iter().position(may)
        };
        let at = match self.request_outside_range {
            true => inside.or_else(outside),
            false => inside,
        };
        at.map(|at| wanted.remove(at))
    }
}

impl IpamKeys {
    fn single_range(&self) -> Option<RangeKeys> {
        self.subnet.map(|subnet| RangeKeys {
            subnet: Some(subnet),
            range_start: self.range_start,
            range_end: self.range_end,
            gateway: self.gateway,
        })
    }
}

/// The one key that DEL and GC need. The runtime calls DEL with the very
/// configuration that made ADD fail, so nothing else is looked at.
pub fn data_dir(document: &Json) -> PathBuf {
    let ipam = document.get("ipam");
    match ipam.and_then(|ipam| ipam.get("dataDir")) {
        Some(Json::String(path)) => data_dir_or_default(path),
        _ => DATA_DIR.into(),
    }
}

fn data_dir_or_default(path: String) -> PathBuf {
    match path.as_str() {
        "" => DATA_DIR.into(),
        path => path.into(),
    }
}

/// The address in `CNI_ARGS`, where Kubernetes' runtimes put much else.
fn requested_in_args(args: &str) -> Result<Option<Requested>, Error> {
    // MAC is for the plugin that asks us; it passes its arguments on to the letter.
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

fn without_duplicates(requested: &[Requested]) -> Vec<IpAddr> {
    let mut ips = Vec::new();
    for Requested(ip) in requested {
        if !ips.contains(ip) {
            ips.push(*ip);
        }
    }
    ips
}

/// Whether results of `version` can tell the addresses that `document` asks
/// for. A document with another fault can.
pub fn can_be_told(document: &Json, version: Version) -> Result<(), Error> {
    match Ipam::read(document, Version::LATEST, "") {
        Ok(ipam) => one_of_each_family(&ipam.sets, version),
        Err(_) => Ok(()),
    }
}

/// Results had one address of each family before 0.3.0.
fn one_of_each_family(sets: &[RangeSet], version: Version) -> Result<(), Error> {
    let ipv4 = sets.iter().filter(|set| set.is_ipv4()).count();
    let most = ipv4.max(sets.len() - ipv4);
    if most > 1 && version < Version::V0_3_0 {
        return Err(fault(format!(
            "CNI version {version} does not support more than 1 address per family"
        )));
    }
    Ok(())
}

fn range_sets(ranges: &[Vec<RangeKeys>], version: Version) -> Result<Vec<RangeSet>, Error> {
    if ranges.is_empty() {
        return Err(fault("no IP ranges specified"));
    }
    let mut sets = Vec::new();
    for (number, keys) in ranges.iter().enumerate() {
        let set = RangeSet::new(keys)
            .map_err(|error| fault(format!("invalid range set {number}: {error}")))?;
        sets.push(set);
    }
    one_of_each_family(&sets, version)?;
    for (number, set) in sets.iter().enumerate() {
        let behind = sets.iter().enumerate().skip(number + 1);
        if let Some((other, _)) = behind.into_iter().find(|(_, other)| set.overlaps(other)) {
            return Err(fault(format!("range set {number} overlaps with {other}")));
        }
    }
    Ok(sets)
}

fn fault(msg: impl Into<String>) -> Error {
    Code::InvalidConfig.err(msg)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_with(args: &str, document: &str) -> Result<Ipam, Error> {
        let document = Json::parse(document.as_bytes()).unwrap();
        Ipam::read(&document, Version::V0_2_0, args)
    }

    fn read(ipam: &str) -> Result<Ipam, Error> {
        read_with("", &format!(r#"{{"ipam": {ipam}}}"#))
    }

    fn sets(ipam: &Ipam) -> Vec<String> {
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
        let document = Json::parse(document.as_bytes()).unwrap();
        let ipam = Ipam::read(&document, Version::V1_1_0, "").unwrap();
        assert_eq!(
            sets(&ipam),
            [
                "10.3.0.1-10.3.0.254",
                "10.0.0.5-10.0.0.254",
                "10.1.0.1-10.1.0.254,10.2.0.1-10.2.0.254"
            ]
        );
        assert_eq!(ipam.data_dir, PathBuf::from(DATA_DIR));
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
    fn faults_are_told_in_the_words_of_the_go_plugin() {
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
        let document = Json::parse(overlap.as_bytes()).unwrap();
        let error = Ipam::read(&document, Version::V1_1_0, "").unwrap_err();
        assert_eq!(error.msg, "range set 0 overlaps with 2");
    }

    #[test]
    fn a_fault_in_a_key_has_its_path() {
        let error = read(r#"{"ranges": [[{"subnet": "10.0.0.0"}]]}"#).unwrap_err();
        assert_eq!(
            error.msg,
            "failed to load netconf: ipam.ranges[0][0].subnet: invalid CIDR address: 10.0.0.0"
        );
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
    fn del_needs_only_the_data_directory() {
        let read = |text: &[u8]| data_dir(&Json::parse(text).unwrap());
        let broken = br#"{"ipam": {"DataDir": "/d", "subnet": 5, "ranges": "x"}}"#;
        assert_eq!(read(broken), PathBuf::from("/d"));
        for text in [
            &br#"{"ipam": []}"#[..],
            br#"{"ipam": {"dataDir": 1}}"#,
            b"{}",
        ] {
            assert_eq!(read(text), PathBuf::from(DATA_DIR));
        }
    }
}
