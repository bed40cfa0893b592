//! The keys of static, as they are written.

use std::net::IpAddr;

use cni::json::Json;
use cni::result::{Dns, Route};
use serde::Deserialize;

/// The keys that static reads.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Conf {
    /// The configuration of static itself.
    pub ipam: Option<Ipam>,
    /// `runtimeConfig`: the addresses that the runtime requests.
    pub runtime_config: Ips,
    /// `args`, by convention keyed by reader.
    pub args: Args,
}

/// The object `ipam`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Ipam {
    /// The addresses of the container.
    pub addresses: Vec<Address>,
    /// Returned as they are.
    pub routes: Vec<Route>,
    /// Returned as it is.
    pub dns: Dns,
}

/// An address and the gateway of its subnet.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Address {
    /// In CIDR notation, with the host part: see [`Address::text`].
    address: String,
    /// What a program adds that writes the Go plugin's own type: the same address as an object.
    #[serde(rename = "Address")]
    parsed: Option<Json>,
    /// It need not lie in the subnet.
    #[serde(deserialize_with = "cni::address::optional_ip")]
    pub gateway: Option<IpAddr>,
    /// Old configurations have it; the address says the same.
    #[serde(rename = "version")]
    _version: String,
}

impl Address {
    /// The address, in CIDR notation, with the host part.
    pub fn text(&self) -> &str {
        match &self.parsed {
            Some(Json::String(text)) if self.address.is_empty() => text,
            _ => &self.address,
        }
    }
}

/// The object `args`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Args {
    /// The part for CNI plugins.
    pub cni: Ips,
}

/// An object that may have requested addresses.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Ips {
    /// In CIDR notation.
    pub ips: Vec<String>,
}
