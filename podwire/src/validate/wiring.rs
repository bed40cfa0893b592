//! What the plugins that wire a pod (bridge, macvlan, vxlan) read alike.

use std::net::IpAddr;

use cni::json::Json;
use cni::result::IpConfig;
use cni::version::Version;
use cni::{AddResult, Cidr, Error};
use wiring::{Addressing, Gateway, MasqueradeKeys, Masquerading, gateway};

use super::findings::Findings;
use super::schema::{self, Key, Kind, Others};
use super::{Conf, host_local, r#static};

/// `runtimeConfig`, of which they read the MAC.
pub const RUNTIME_CONFIG: Key = Key::new("runtimeConfig", Kind::Object(MAC_KEY, Others::AreFine));

/// `args`, of which they read the MAC.
pub const ARGS: Key = Key::new("args", Kind::Object(ARGS_KEYS, Others::AreFine));

const MAC_KEY: &[Key] = &[Key::new("mac", Kind::MAC)];

const ARGS_KEYS: &[Key] = &[Key::new("cni", Kind::Object(MAC_KEY, Others::AreFine))];

/// An MTU in bytes, or `None` for `"auto"`, which is that of the way out.
pub fn mtu(value: &Json) -> Result<Option<i64>, String> {
    match (schema::integer(value), value) {
        (None, Json::String(text)) if text == "auto" => Ok(None),
        (None, _) => Err("expected an integer or \"auto\"".to_owned()),
        (bytes, _) => Ok(bytes),
    }
}

/// `ipMasqBackend`.
pub fn masquerade(conf: &Conf<'_>, findings: &mut Findings) {
    let backend = conf.text("ipMasqBackend");
    let keys = MasqueradeKeys {
        wanted: false,
        backend: backend.as_deref(),
        random_fully: false,
        except: &[],
        families: None,
    };
    if let Err(error) = Masquerading::parse(&keys) {
        let reason = Error::from_chain(&error).msg;
        findings.error(&conf.place_of("ipMasqBackend"), reason);
    }
}

/// What a pod without addresses cannot have: a result of before 0.3.0, and what
/// `keys` ask for.
pub fn without_ipam(conf: &Conf<'_>, keys: &[&str], findings: &mut Findings) {
    if conf.ipam().is_some() {
        return;
    }
    if conf.version < Version::V0_3_0 {
        // An older result is its addresses.
        let version = conf.version;
        let reason = format!("missing: a result of cniVersion {version} needs an address");
        findings.error(&conf.place_of("ipam"), reason);
    }
    for key in keys.iter().filter(|key| conf.flag(key)) {
        findings.warning(&conf.place_of(key), "has no effect without ipam");
    }
}

/// Tells gateways that the interface of the host cannot have beside each other. What an ADD
/// does with the addresses that IPAM answers is asked of the plugins' own code.
pub fn gateways(conf: &Conf<'_>, gateway: Gateway, findings: &mut Findings) {
    let Gateway::Gateway { force: false, .. } = gateway else {
        return;
    };
    let place = conf.place_of("ipam");
    if findings.has_error_at(&place) {
        return;
    }
    let sources = addresses(conf);
    for ranges in &sources {
        if let Some(clash) = clash(ranges, gateway) {
            let reason = format!("{WHEN_FULL}: {clash}");
            findings.warning(&place, reason);
        }
    }
    let first_of_each: Vec<_> = sources
        .iter()
        .filter_map(|it| it.first().copied())
        .collect();
    if let Some(clash) = clash(&first_of_each, gateway) {
        findings.error(&place, clash);
    }
}

/// What befalls an ADD that the first range of a set would not.
pub const WHEN_FULL: &str = "ADD will fail when a range is full";

/// An address of a pod in its subnet, and its gateway.
pub type Address = (Cidr, Option<IpAddr>);

/// For each address that IPAM gives to a pod, what it may be: one of each range of a set.
/// Nothing where that cannot be told from the configuration.
pub fn addresses(conf: &Conf<'_>) -> Vec<Vec<Address>> {
    match conf.ipam().as_deref() {
        Some("host-local") => host_local::subnets(conf),
        Some("static") => {
            let all = r#static::addresses(conf).into_iter();
            all.map(|it| vec![it]).collect()
        }
        _ => Vec::new(),
    }
}

/// Why one interface cannot be the gateway of all these addresses, each with its gateway.
fn clash(addresses: &[Address], gateway: Gateway) -> Option<String> {
    let ip = |(address, gateway): &Address| IpConfig {
        interface: None,
        address: *address,
        gateway: *gateway,
    };
    let lease = AddResult {
        ips: addresses.iter().map(ip).collect(),
        ..AddResult::default()
    };
    let gateways = Addressing::new(lease, gateway).gateways;
    let (one, other) = gateway::clash(&gateways)?;
    Some(format!(
        "an interface cannot be the gateway {other} and {one} at the same time"
    ))
}
