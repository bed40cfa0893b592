//! The keys of host-local, as they are written.

use std::net::IpAddr;
use std::path::PathBuf;

use cni::Cidr;
use cni::result::Route;
use serde::{Deserialize, Deserializer, de};

/// Where reservations are kept unless the configuration says otherwise.
const DATA_DIR: &str = "/var/lib/cni/networks";

/// The keys that host-local reads.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Conf {
    /// The configuration of host-local itself.
    pub ipam: Option<Ipam>,
    /// The requests of the runtime for this pod.
    pub runtime_config: RuntimeConfig,
    /// `args`, by convention keyed by reader.
    pub args: Args,
}

/// The object `ipam`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Ipam {
    /// One address is handed out from each of these sets.
    pub ranges: Vec<Vec<RangeKeys>>,
    /// This and the next three keys are a single range: old configurations have no `ranges`.
    pub subnet: Option<Cidr>,
    /// As in [`RangeKeys`].
    #[serde(deserialize_with = "cni::address::optional_ip")]
    pub range_start: Option<IpAddr>,
    /// As in [`RangeKeys`].
    #[serde(deserialize_with = "cni::address::optional_ip")]
    pub range_end: Option<IpAddr>,
    /// As in [`RangeKeys`].
    #[serde(deserialize_with = "cni::address::optional_ip")]
    pub gateway: Option<IpAddr>,
    /// Returned as they are.
    pub routes: Vec<Route>,
    /// Each network has a directory in it.
    pub data_dir: String,
    /// A file whose content becomes the `dns` of the result.
    pub resolv_conf: String,
    /// Whether a requested address may lie outside the ranges, in their subnets.
    pub request_outside_range: bool,
}

/// A range.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct RangeKeys {
    /// The network; its prefix is that of the addresses that are handed out.
    pub subnet: Option<Cidr>,
    /// The first address; by default the one after the network address.
    #[serde(deserialize_with = "cni::address::optional_ip")]
    pub range_start: Option<IpAddr>,
    /// The last address; by default the last one that is not the broadcast address.
    #[serde(deserialize_with = "cni::address::optional_ip")]
    pub range_end: Option<IpAddr>,
    /// The gateway, never handed out; by default the address after the network address.
    #[serde(deserialize_with = "cni::address::optional_ip")]
    pub gateway: Option<IpAddr>,
}

/// The object `runtimeConfig`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct RuntimeConfig {
    /// More range sets; they come first.
    #[serde(rename = "ipRanges")]
    pub ip_ranges: Vec<Vec<RangeKeys>>,
    /// Requested addresses.
    pub ips: Vec<Requested>,
}

/// The object `args`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Args {
    /// The part for CNI plugins.
    pub cni: CniArgs,
}

/// The object `args.cni`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct CniArgs {
    /// Requested addresses.
    pub ips: Vec<Requested>,
}

impl Conf {
    /// The directory that has one for each network.
    pub fn data_dir(&self) -> PathBuf {
        let configured = self.ipam.as_ref().map(|ipam| ipam.data_dir.as_str());
        match configured {
            None | Some("") => DATA_DIR.into(),
            Some(path) => path.into(),
        }
    }
}

impl Ipam {
    /// The range whose keys are those of `ipam` itself.
    pub fn single_range(&self) -> Option<RangeKeys> {
        self.subnet.map(|subnet| RangeKeys {
            subnet: Some(subnet),
            range_start: self.range_start,
            range_end: self.range_end,
            gateway: self.gateway,
        })
    }
}

/// A requested address. A prefix may follow it and is ignored: the subnet's prefix counts.
#[derive(Clone, Copy, Debug)]
pub struct Requested(pub IpAddr);

impl Requested {
    /// Reads an address.
    ///
    /// # Errors
    /// `invalid IP address x`
    pub fn parse(text: &str) -> Result<Self, String> {
        let ip = if text.contains('/') {
            text.parse().map(Cidr::ip)
        } else {
            cni::address::parse_ip(text)
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
