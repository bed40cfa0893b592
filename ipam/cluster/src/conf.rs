//! The keys of cluster, as they are written.

use std::net::IpAddr;
use std::path::PathBuf;

use cni::Cidr;
use cni::result::Route;
use host_local::conf as local;
use serde::Deserialize;

/// The keys that cluster reads.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Conf {
    /// The configuration of cluster itself.
    pub ipam: Option<Ipam>,
    /// The requests of the runtime for this pod.
    pub runtime_config: local::RuntimeConfig,
    /// `args`, by convention keyed by reader.
    pub args: local::Args,
}

/// The object `ipam`. What host-local has, too, means the same, and is checked there
/// ([`Conf::as_local`]). These keys are declared again, because keys match regardless of case, and
/// serde compares those of a flattened struct as they are written.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Ipam {
    /// One address is handed out from each of these sets.
    pub ranges: Vec<Vec<local::RangeKeys>>,
    /// This and the next three keys are a single range.
    pub subnet: Option<Cidr>,
    /// The first address.
    #[serde(deserialize_with = "cni::address::optional_ip")]
    pub range_start: Option<IpAddr>,
    /// The last address.
    #[serde(deserialize_with = "cni::address::optional_ip")]
    pub range_end: Option<IpAddr>,
    /// The gateway, never handed out.
    #[serde(deserialize_with = "cni::address::optional_ip")]
    pub gateway: Option<IpAddr>,
    /// Returned as they are.
    pub routes: Vec<Route>,
    /// A file whose content becomes the `dns` of the result.
    pub resolv_conf: String,
    /// Addresses that no pod gets: `10.1.0.9`, `10.1.0.0/28` or `10.1.0.5-10.1.0.9`.
    pub exclude: Vec<String>,
    /// Addresses that a pod gets only on request.
    pub reserved: Vec<String>,
    /// Networks with the same pool share its addresses; by default the network's name.
    pub pool: String,
    /// The length of the prefix of IPv4 blocks.
    pub block_size: Option<u8>,
    /// The same for IPv6.
    #[serde(rename = "blockSizeIPv6")]
    pub block_size_ipv6: Option<u8>,
    /// How long an address rests after its release.
    pub cool_down_seconds: Option<u64>,
    /// Whether a pod gets the addresses that a pod of the same name had.
    pub sticky: bool,
    /// The socket of the agent.
    pub agent: String,
    /// Where the agent has its journal.
    pub data_dir: String,
}

impl Conf {
    /// The keys that host-local has, too: they are checked there.
    pub fn as_local(&self) -> local::Conf {
        let ipam = self.ipam.as_ref().map(|ipam| local::Ipam {
            ranges: ipam.ranges.clone(),
            subnet: ipam.subnet,
            range_start: ipam.range_start,
            range_end: ipam.range_end,
            gateway: ipam.gateway,
            routes: ipam.routes.clone(),
            data_dir: String::new(),
            resolv_conf: ipam.resolv_conf.clone(),
            request_outside_range: false,
        });
        local::Conf {
            ipam,
            runtime_config: self.runtime_config.clone(),
            args: self.args.clone(),
        }
    }

    /// The socket of the agent.
    pub fn agent(&self) -> PathBuf {
        self.path(|it| &it.agent, agent::PATH)
    }

    /// The directory of the agent's journal.
    pub fn data_dir(&self) -> PathBuf {
        self.path(|it| &it.data_dir, pools::DATA_DIR)
    }

    fn path(&self, key: impl Fn(&Ipam) -> &str, usual: &str) -> PathBuf {
        let written = self.ipam.as_ref().map(key);
        written.filter(|it| !it.is_empty()).unwrap_or(usual).into()
    }
}
