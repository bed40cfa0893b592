//! What a plugin does with the addresses that its IPAM plugin hands out, as far as the
//! configuration determines them.

use std::net::IpAddr;

use cni::Cidr;
use cni::faults::Fault;
use cni::result::IpConfig;
use cni::{AddResult, version::Version};
use vxlan::plan::{Plan, own_subnets};
use wiring::{Addressing, Gateway, gateway};

use super::subject::Subject;

/// The beginning of a warning about a range that is used only when another is full.
const WHEN_FULL: &str = "ADD will fail when a range is full";

/// An address of a pod in its subnet, and its gateway.
pub type Address = (Cidr, Option<IpAddr>);

/// Reports what a pod without addresses cannot have: a result before 0.3.0, and `keys`, of
/// which those count that are set.
pub fn without_ipam(subject: &mut Subject<'_>, keys: &[(&str, bool)]) {
    if subject.has_ipam() {
        return;
    }
    if subject.version < Version::V0_3_0 {
        let version = subject.version;
        let reason = format!("missing: a result of cniVersion {version} needs an address");
        subject.error("ipam", reason);
    }
    for (key, _) in keys.iter().filter(|(_, is_set)| *is_set) {
        subject.warning(key, "has no effect without ipam");
    }
}

/// Reports gateways that one interface of the host cannot have at the same time.
pub fn check_gateways(subject: &mut Subject<'_>, gateway: Gateway) {
    if !matches!(gateway, Gateway::Gateway { force: false, .. }) {
        return;
    }
    let clash = |addresses: &[Address]| {
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
    };
    for clash in subject.addresses.clone().iter().filter_map(|it| clash(it)) {
        subject.warning("ipam", format!("{WHEN_FULL}: {clash}"));
    }
    let firsts: Vec<_> = subject
        .addresses
        .iter()
        .filter_map(|it| it.first().copied())
        .collect();
    if let Some(clash) = clash(&firsts) {
        subject.error("ipam", clash);
    }
}

/// Reports subnets of a VXLAN network's pods on this node that contradict its peers.
pub fn check_own_subnets(subject: &mut Subject<'_>, plan: &Plan) {
    let check = |addresses: &mut dyn Iterator<Item = &Address>| {
        let own = own_subnets(addresses.map(|(it, _)| *it));
        plan.check_own_subnets(&own, plan.network.local)
    };
    let firsts = check(&mut subject.addresses.iter().filter_map(|it| it.first()));
    let all = check(&mut subject.addresses.iter().flatten());
    if subject.take(firsts).is_none() {
        return;
    }
    for Fault { key, error } in all.err().into_iter().flatten() {
        let why = error.msg.split_once(": ").map_or("", |(_, why)| why);
        subject.warning(&key, format!("{WHEN_FULL}: {why}"));
    }
}
