//! What `inspect` and `ls` print of a network: Docker's document, key for key, and its row.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;

use anyhow::Result;
use cni::json::Json;
use netlink::Netlink;
use networks::named::{IpamSubnet, Kind, Listed, Moment, Network, SubnetRecord, subnets_of};
use networks::{CachedAttachment, request};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::attached::{self, Attached};
use super::span::Span;

/// A network is of one node.
pub const SCOPE: &str = "local";

/// Docker's document, with the members in Docker's order.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Document<'a> {
    name: &'a str,
    id: &'a str,
    created: String,
    scope: &'static str,
    driver: &'a str,
    #[serde(rename = "EnableIPv4")]
    enable_ipv4: bool,
    #[serde(rename = "EnableIPv6")]
    enable_ipv6: bool,
    #[serde(rename = "IPAM")]
    ipam: Ipam,
    internal: bool,
    attachable: bool,
    ingress: bool,
    config_from: ConfigFrom,
    config_only: bool,
    containers: BTreeMap<String, Container>,
    options: BTreeMap<String, String>,
    labels: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<Status>,
}

#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Ipam {
    driver: String,
    options: BTreeMap<String, String>,
    config: Vec<Config>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Config {
    subnet: String,
    #[serde(rename = "IPRange")]
    ip_range: String,
    gateway: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    auxiliary_addresses: BTreeMap<String, IpAddr>,
}

#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "PascalCase")]
struct ConfigFrom {
    network: String,
}

#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Container {
    name: String,
    #[serde(rename = "EndpointID")]
    endpoint_id: String,
    mac_address: String,
    #[serde(rename = "IPv4Address")]
    ipv4_address: String,
    #[serde(rename = "IPv6Address")]
    ipv6_address: String,
}

#[derive(Debug, Serialize)]
struct Status {
    #[serde(rename = "IPAM")]
    ipam: Subnets,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Subnets {
    subnets: BTreeMap<String, Use>,
}

/// How much of a subnet is in use, also by the gateway and by addresses that no host can have.
#[derive(Debug, Serialize)]
struct Use {
    #[serde(rename = "IPsInUse")]
    in_use: u64,
    #[serde(rename = "DynamicIPsAvailable")]
    available: u64,
}

/// What a template can ask for beside the document: Docker's templates also know the names of the
/// fields in Docker's Go code, which are other ones in two places.
pub fn with_go_names(mut document: Value) -> Value {
    if let Some(id) = document.get("Id").cloned() {
        document["ID"] = id;
    }
    let configs = document.pointer_mut("/IPAM/Config");
    for config in configs.and_then(Value::as_array_mut).into_iter().flatten() {
        let reserved = config.get("AuxiliaryAddresses").cloned();
        config["AuxAddress"] = reserved.unwrap_or_else(|| json!({}));
    }
    document
}

impl<'a> Document<'a> {
    /// The document of a network with these attachments.
    pub fn of(network: &'a Network, attached: &Attached) -> Self {
        let subnets = network
            .listed()
            .map_or_else(Vec::new, |it| subnets_of(&it.list));
        let record = network
            .listed()
            .map(|it| it.record.clone())
            .unwrap_or_default();
        let containers = attached.alive.iter().map(container);
        let [enable_ipv4, enable_ipv6] = families(network, &subnets);
        Self {
            name: &network.name,
            id: &network.id,
            created: created(network).map_or_else(|| NEVER.to_owned(), |it| it.to_string()),
            scope: SCOPE,
            driver: network.driver(),
            enable_ipv4,
            enable_ipv6,
            ipam: ipam(network, &subnets, &record.subnets),
            internal: is_internal(network),
            attachable: record.attachable,
            ingress: false,
            config_from: ConfigFrom::default(),
            config_only: false,
            containers: by_id(containers),
            options: record.options,
            labels: record.labels,
            status: network
                .listed()
                .and_then(|it| status(it, &network.name, &subnets, &record.subnets)),
        }
    }
}

/// Go's zero time.
const NEVER: &str = "0001-01-01T00:00:00Z";

/// When a network was created, as it says, or as its file does.
pub fn created(network: &Network) -> Option<Moment> {
    let listed = network.listed()?;
    let recorded = listed.record.created.parse().ok();
    recorded.or_else(|| Some(fs::metadata(&listed.file).ok()?.modified().ok()?.into()))
}

/// The row of `ls`: all values are texts. `LabelMap` is for `.Label`.
pub fn row(network: &Network, full_id: bool) -> Value {
    let subnets = network
        .listed()
        .map_or_else(Vec::new, |it| subnets_of(&it.list));
    let [ipv4, ipv6] = families(network, &subnets);
    let labels = network
        .listed()
        .map(|it| it.record.labels.clone())
        .unwrap_or_default();
    let pairs: Vec<_> = labels
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    let never = "0001-01-01 00:00:00 +0000 UTC".to_owned();
    json!({
        "ID": if full_id { &network.id } else { network.short_id() },
        "Name": network.name,
        "Driver": network.driver(),
        "Scope": SCOPE,
        "IPv4": ipv4.to_string(),
        "IPv6": ipv6.to_string(),
        "Internal": is_internal(network).to_string(),
        "Labels": pairs.join(","),
        "CreatedAt": created(network).map_or(never, Moment::in_go),
        "LabelMap": labels,
    })
}

fn is_internal(network: &Network) -> bool {
    let plugin = network.listed().and_then(|it| it.list.plugins.first());
    let key = plugin.and_then(|it| it.document.get("internal"));
    key.and_then(Value::as_bool).unwrap_or(false)
        || network.listed().is_some_and(|it| it.record.internal)
}

/// Which families have addresses: IPv4 unless subnets say otherwise.
fn families(network: &Network, subnets: &[IpamSubnet]) -> [bool; 2] {
    let has = |is_ipv4| subnets.iter().any(|it| it.subnet.ip().is_ipv4() == is_ipv4);
    match network.kind {
        Kind::None | Kind::Host => [true, false],
        Kind::Unmade | Kind::Listed(_) => [has(true) || !has(false), has(false)],
    }
}

fn ipam(network: &Network, subnets: &[IpamSubnet], records: &[SubnetRecord]) -> Ipam {
    let plugins = network
        .listed()
        .map(|it| &it.list.plugins[..])
        .unwrap_or_default();
    let kinds = plugins
        .iter()
        .filter_map(|it| it.document.get("ipam")?.get("type")?.as_str());
    let driver = match kinds.into_iter().next() {
        None | Some("host-local") => "default",
        Some(other) => other,
    };
    let config = subnets.iter().map(|subnet| {
        let record = record_of(subnet, records);
        let range = record.and_then(|it| it.range.clone());
        Config {
            subnet: subnet.subnet.to_string(),
            ip_range: range.or_else(|| derived_range(subnet)).unwrap_or_default(),
            gateway: gateway(subnet).map_or_else(String::new, |it| it.to_string()),
            auxiliary_addresses: record
                .map(|it| it.auxiliary_addresses.clone())
                .unwrap_or_default(),
        }
    });
    Ipam {
        driver: driver.to_owned(),
        options: BTreeMap::new(),
        config: config.collect(),
    }
}

fn record_of<'a>(subnet: &IpamSubnet, records: &'a [SubnetRecord]) -> Option<&'a SubnetRecord> {
    records.iter().find(|it| it.subnet == subnet.subnet)
}

/// The gateway that host-local returns.
fn gateway(subnet: &IpamSubnet) -> Option<IpAddr> {
    let usable = Span::usable(subnet.subnet.0);
    let first = || usable.ends()[0];
    subnet
        .gateway
        .or_else(|| (!subnet.ranges.is_empty()).then(first))
}

/// The limits of a configuration that podwire has not made: `FIRST-LAST`.
fn derived_range(subnet: &IpamSubnet) -> Option<String> {
    let limits = match subnet.ranges[..] {
        [limits] if limits != [None, None] => limits,
        _ => return None,
    };
    let [first, last] = Span::usable(subnet.subnet.0).ends();
    Some(format!(
        "{}-{}",
        limits[0].unwrap_or(first),
        limits[1].unwrap_or(last)
    ))
}

/// A container with several interfaces in one network is there several times.
fn by_id(
    containers: impl Iterator<Item = (String, String, Container)>,
) -> BTreeMap<String, Container> {
    let mut by_id = BTreeMap::new();
    for (id, ifname, container) in containers {
        let key = if by_id.contains_key(&id) {
            format!("{id}:{ifname}")
        } else {
            id
        };
        by_id.insert(key, container);
    }
    by_id
}

fn container(attachment: &CachedAttachment) -> (String, String, Container) {
    let (id, ifname) = (attachment.container_id.clone(), attachment.ifname.clone());
    let result = attachment.add_result().ok().flatten().unwrap_or_default();
    let address = |is_ipv4| {
        let mut of_family = result
            .ips
            .iter()
            .filter(|it| it.address.ip().is_ipv4() == is_ipv4);
        of_family
            .next()
            .map_or_else(String::new, |it| it.address.to_string())
    };
    let in_pod = result.in_container().next();
    let hash = Sha256::digest(attachment.label());
    let container = Container {
        name: attached::name(attachment),
        endpoint_id: hash.iter().map(|byte| format!("{byte:02x}")).collect(),
        mac_address: in_pod.map(|it| it.mac.clone()).unwrap_or_default(),
        ipv4_address: address(true),
        ipv6_address: address(false),
    };
    (id, ifname, container)
}

/// `None` if another IPAM plugin than host-local has the addresses.
fn status(
    listed: &Listed,
    network: &str,
    subnets: &[IpamSubnet],
    records: &[SubnetRecord],
) -> Option<Status> {
    let plugins = with_host_local(listed);
    if plugins.is_empty() {
        return None;
    }
    let reserved = plugins
        .iter()
        .flat_map(|it| host_local::reserved(it, network));
    let reserved: Vec<IpAddr> = reserved.flatten().collect();
    let used = |subnet: &IpamSubnet| {
        let (all, usable) = (Span::of(subnet.subnet.0), Span::usable(subnet.subnet.0));
        let gateway = gateway(subnet);
        let aux = record_of(subnet, records)
            .into_iter()
            .flat_map(|it| it.auxiliary_addresses.values());
        let mut fixed: Vec<IpAddr> = aux
            .copied()
            .chain(gateway)
            .filter(|it| usable.contains(*it))
            .collect();
        let held: Vec<IpAddr> = reserved
            .iter()
            .copied()
            .filter(|it| all.contains(*it))
            .collect();
        fixed.retain(|it| !held.contains(it));
        let unusable = all.count() - usable.count();
        let limits = subnet.ranges.iter().map(|[first, last]| {
            let [lowest, highest] = usable.ends();
            Span::between(first.unwrap_or(lowest), last.unwrap_or(highest))
        });
        let free = limits.map(|span| {
            let taken = held.iter().chain(&gateway).filter(|it| span.contains(**it));
            span.count() - taken.count() as u128
        });
        let in_use = unusable + (fixed.len() + held.len()) as u128;
        Use {
            in_use: u64::try_from(in_use).unwrap_or(u64::MAX),
            available: u64::try_from(free.fold(0, u128::saturating_add)).unwrap_or(u64::MAX),
        }
    };
    let subnets = subnets.iter().map(|it| (it.subnet.to_string(), used(it)));
    Some(Status {
        ipam: Subnets {
            subnets: subnets.collect(),
        },
    })
}

/// The plugins that get addresses from host-local, as they read their configuration.
pub fn with_host_local(listed: &Listed) -> Vec<Json> {
    let plugins = listed.list.plugins.iter();
    let documents = plugins.filter_map(|plugin| {
        let document = Value::Object(request::base(&listed.list, plugin));
        let ipam = document.get("ipam")?.get("type")?.as_str()?;
        if ipam == "host-local" {
            Json::deserialize(&document).ok()
        } else {
            None
        }
    });
    documents.collect()
}

/// What `inspect --native` prints: the configuration, and what the kernel has of the network.
///
/// # Errors
/// The kernel cannot be queried.
pub fn native(network: &Network, attached: &Attached) -> Result<Value> {
    let attachments = attached
        .alive
        .iter()
        .chain(&attached.gone)
        .map(CachedAttachment::label);
    let mut document = json!({
        "name": network.name,
        "id": network.id,
        "attachments": attachments.collect::<Vec<_>>(),
    });
    if let Some(listed) = network.listed() {
        document["file"] = listed.file.display().to_string().into();
        document["madeBy"] = format!("{:?}", listed.origin).to_lowercase().into();
        document["configuration"] = listed.document.clone().into();
        document["interfaces"] = interfaces(listed)?.into();
    }
    Ok(document)
}

/// The interfaces of the node that the configuration names.
fn interfaces(listed: &Listed) -> Result<Map<String, Value>> {
    let host = Netlink::open()?;
    let mut interfaces = Map::new();
    for plugin in &listed.list.plugins {
        let keys = ["bridge", "master", "dev"].iter();
        for name in keys.filter_map(|it| plugin.document.get(*it)?.as_str()) {
            let Some(link) = host.find_link(name)? else {
                interfaces.insert(name.to_owned(), Value::Null);
                continue;
            };
            let addresses = host.list_addresses(link.index, None)?;
            let addresses: Vec<_> = addresses.iter().map(|it| it.address.to_string()).collect();
            let ports = host.list_ports(link.index)?;
            let ports: Vec<_> = ports.into_iter().map(|it| it.name).collect();
            let state = json!({
                "index": link.index,
                "kind": link.kind,
                "mac": link.mac.map(|it| it.to_string()),
                "mtu": link.mtu,
                "up": link.up,
                "addresses": addresses,
                "ports": ports,
            });
            interfaces.insert(name.to_owned(), state);
        }
    }
    Ok(interfaces)
}
