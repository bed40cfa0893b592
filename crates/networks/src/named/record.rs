//! What a network has beyond CNI's keys: under one key at the top of its configuration.

use std::collections::BTreeMap;
use std::net::IpAddr;

use cni::Cidr;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The key's value.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Record {
    /// 64 hex digits.
    pub id: String,
    /// When it was created, in RFC 3339.
    pub created: String,
    /// The user's labels.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// The options (`-o`) as they were given.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub options: BTreeMap<String, String>,
    /// Containers have no way out, and cannot be reached from outside.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub internal: bool,
    /// Kept for `inspect`: the containers of every network may come and go.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub attachable: bool,
    /// The bridge was there before the network, and stays after it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub keeps_bridge: bool,
    /// What the options of `create` say about each subnet.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub subnets: Vec<SubnetRecord>,
}

/// What `ipam` of the plugin cannot express about a subnet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SubnetRecord {
    /// The subnet.
    pub subnet: Cidr,
    /// The range that addresses are chosen from, as it was given.
    #[serde(default, rename = "ipRange", skip_serializing_if = "Option::is_none")]
    pub range: Option<String>,
    /// Addresses that no container gets, and what they are for.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub auxiliary_addresses: BTreeMap<String, IpAddr>,
}

impl Record {
    /// The key at the top of a configuration.
    pub const KEY: &'static str = "podwire";

    /// What a reserved address is for; `None` if containers may have it.
    pub fn purpose_of(&self, ip: IpAddr) -> Option<&str> {
        let reserved = self.subnets.iter().flat_map(|it| &it.auxiliary_addresses);
        let mut found = reserved.filter(|(_, it)| **it == ip);
        found.next().map(|(purpose, _)| purpose.as_str())
    }

    /// Reads the record of a configuration; `None` without one, or if another program has written
    /// something else there.
    pub fn of(document: &Map<String, Value>) -> Option<Self> {
        let value = document.get(Self::KEY)?.clone();
        let record: Self = serde_json::from_value(value).ok()?;
        let is_id = record.id.len() == 64 && record.id.bytes().all(|it| it.is_ascii_hexdigit());
        is_id.then_some(record)
    }
}
