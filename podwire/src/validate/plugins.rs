//! The plugins of this suite: how each reads its configuration, and what is legal there but
//! probably a mistake.

use std::net::IpAddr;

use cni::Cidr;
use cni::address::is_link_local_v6;
use cni::env::IfName;
use cni::faults::{Fault, Faults};
use host_device::plan::NO_DEVICE;
use host_local::plan::NO_RANGES;
use overlay::Mode;
use packet_filter::FirewallBackend;
use wiring::{AccessKeys, Gateway, Reachability, parent};

use super::addresses::{check_gateways, check_own_subnets, without_ipam};
use super::subject::Subject;

/// A plugin of this suite.
pub struct Plugin {
    /// Its `type`.
    pub name: &'static str,
    /// Reads its keys, and reports faults and probable mistakes.
    pub check: fn(&mut Subject<'_>),
}

const fn plugin(name: &'static str, check: fn(&mut Subject<'_>)) -> Plugin {
    Plugin { name, check }
}

/// The plugins that attach a pod or change its attachment.
pub const PLUGINS: &[Plugin] = &[
    plugin("bandwidth", bandwidth),
    plugin("bridge", bridge),
    plugin("dnsname", dnsname),
    plugin("dummy", dummy),
    plugin("firewall", firewall),
    plugin("host-device", host_device),
    plugin("ipvlan", ipvlan),
    // It has no keys of its own.
    plugin("loopback", |_| {}),
    plugin("macvlan", macvlan),
    plugin("portmap", portmap),
    plugin("ptp", ptp),
    plugin("sbr", sbr),
    plugin("tap", tap),
    plugin("tuning", tuning),
    plugin("vlan", vlan),
    plugin("vrf", vrf),
    plugin("vxlan", vxlan),
];

/// The IPAM plugins.
pub const IPAM_PLUGINS: &[Plugin] = &[
    plugin("cluster", cluster),
    plugin("dhcp", dhcp),
    plugin("host-local", host_local),
    plugin("static", fixed),
];

/// The plugins that pass `ipam` on unchanged, other suites' included.
pub const DELEGATING: &[&str] = &[
    "bridge",
    "dummy",
    "host-device",
    "ipvlan",
    "macvlan",
    "ptp",
    "tap",
    "vlan",
    "vxlan",
];

fn bridge(subject: &mut Subject<'_>) {
    let Some(keys) = subject.keys::<bridge::Conf>() else {
        return;
    };
    without_ipam(
        subject,
        &[
            ("isGateway", keys.is_gateway),
            ("isDefaultGateway", keys.is_default_gateway),
            ("ipMasq", keys.ip_masq),
            ("detectConflicts", keys.detect_conflicts),
        ],
    );
    if keys.preserve_default_vlan && keys.vlan == 0 && keys.vlan_trunk.is_none() {
        subject.warning(
            "preserveDefaultVlan",
            "has no effect without vlan or vlanTrunk",
        );
    }
    if keys.force_address && !keys.is_gateway && !keys.is_default_gateway {
        subject.warning("forceAddress", "has no effect without isGateway");
    }
    let plan = bridge::Plan::new(&keys, subject.has_ipam(), None);
    if let Some(plan) = subject.take(plan) {
        check_gateways(subject, plan.gateway);
        access(subject, &keys.access(), &plan.reachability, keys.ip_masq);
        if plan.gateway == Gateway::None {
            without_gateway(subject, &keys.access());
        }
    }
}

/// Reports keys of access that have no effect, or take it from others.
fn access(
    subject: &mut Subject<'_>,
    keys: &AccessKeys<'_>,
    reachability: &Reachability,
    masquerade: bool,
) {
    if masquerade && reachability.masqueraded() == [false; 2] {
        let reason = "has no effect: the modes of both families do without it";
        subject.warning("ipMasq", reason);
    }
    // Runtimes pass mappings to the plugins that declare the capability.
    let has_ports = !keys.port_mappings.is_empty() || subject.has_capability("portMappings");
    if reachability.is_routed() && !has_ports {
        let reason = "portMappings is missing: runtimes pass no ports to be opened";
        subject.warning("capabilities", reason);
    }
}

/// Where the node is no gateway, it forwards nothing.
fn without_gateway(subject: &mut Subject<'_>, keys: &AccessKeys<'_>) {
    for (key, mode) in [("gatewayModeIPv4", 0), ("gatewayModeIPv6", 1)] {
        if matches!(keys.modes[mode], Some("nat" | "nat-unprotected" | "routed")) {
            subject.warning(key, "has no effect without isGateway");
        }
    }
}

fn macvlan(subject: &mut Subject<'_>) {
    let Some(keys) = subject.keys::<macvlan::Conf>() else {
        return;
    };
    without_ipam(subject, &[("detectConflicts", keys.detect_conflicts)]);
    shared_mac(subject, &keys.mac, "parent");
    check_master(subject, &keys.master);
    subject.take(macvlan::Plan::new(&keys, None));
    check_mtu_of_parent(subject, keys.mtu);
}

/// Reports a MAC of the configuration, which is that of every pod.
fn shared_mac(subject: &mut Subject<'_>, mac: &str, place: &str) {
    if !mac.is_empty() {
        let reason = format!("is that of every pod: two on one {place} cannot have the same");
        subject.warning("mac", reason);
    }
}

/// Reports a chained plugin that no other plugin comes before, with the text of its ADD.
fn needs_result(subject: &mut Subject<'_>, reason: &str) {
    if subject.is_first() {
        subject.error("", reason);
    }
}

fn vlan(subject: &mut Subject<'_>) {
    let Some(keys) = subject.keys::<vlan::Conf>() else {
        return;
    };
    if subject.document.get("vlanId").is_none() {
        subject.warning("vlanId", "missing: 0 is no VLAN, only a priority");
    }
    check_master(subject, &keys.master);
    subject.take(vlan::Plan::new(&keys, subject.has_ipam()));
    check_mtu_of_parent(subject, keys.mtu);
}

fn dnsname(subject: &mut Subject<'_>) {
    let Some(keys) = subject.keys::<dnsname::Conf>() else {
        return;
    };
    if !subject.has_capability("aliases") {
        let reason = "aliases is missing: runtimes pass no further names of pods";
        subject.warning("capabilities", reason);
    }
    if keys.internal && !keys.servers.is_empty() {
        subject.warning(
            "servers",
            "has no effect: internal asks for unknown names nowhere",
        );
    }
    let network = subject.network;
    subject.take(dnsname::Plan::new(&keys, network));
}

fn dummy(subject: &mut Subject<'_>) {
    if subject.keys::<dummy::Conf>().is_some() {
        subject.take(dummy::require_ipam(subject.has_ipam()));
    }
}

/// Reports names in `master` that no interface can have.
fn check_master(subject: &mut Subject<'_>, master: &str) {
    // What a star stands for may be nothing.
    let names = master.split('|').filter(|_| !master.is_empty());
    for pattern in names.filter(|it| !it.starts_with('*')) {
        let name = IfName::parse(&pattern.replace('*', ""));
        subject.take(name.map_err(|error| Fault::at("master", error)));
    }
}

/// Reports an MTU that is larger than that of any parent (ETH_MAX_MTU in if_ether.h).
fn check_mtu_of_parent(subject: &mut Subject<'_>, mtu: i64) {
    subject.take(parent::mtu_on(mtu, 65535));
}

fn host_device(subject: &mut Subject<'_>) {
    let Some(keys) = subject.keys::<host_device::Conf>() else {
        return;
    };
    let selectors = [
        ("device", &keys.device),
        ("hwaddr", &keys.hwaddr),
        ("kernelpath", &keys.kernelpath),
    ];
    let mut set = selectors.iter().filter(|(_, value)| !value.is_empty());
    if let Some((first, _)) = set.next() {
        let reason = format!("has no effect beside {first}");
        let mut ignored: Vec<_> = set.map(|(key, _)| *key).collect();
        if subject.has_capability("deviceID") {
            ignored.push("capabilities.deviceID");
        }
        for key in ignored {
            subject.warning(key, reason.clone());
        }
    }
    let mut plan = host_device::Plan::new(&keys);
    // The runtime may choose the device.
    if let Err(faults) = &plan
        && subject.has_capability("deviceID")
        && faults.first().error.msg == NO_DEVICE
    {
        plan = Ok(host_device::Plan::default());
    }
    subject.take(plan);
}

fn ipvlan(subject: &mut Subject<'_>) {
    let Some(keys) = subject.keys::<ipvlan::Conf>() else {
        return;
    };
    if subject.is_first() && !subject.has_ipam() {
        subject.error("ipam", "no plugin name provided");
    }
    check_master(subject, &keys.master);
    subject.take(ipvlan::Plan::new(&keys));
}

fn vrf(subject: &mut Subject<'_>) {
    let Some(keys) = subject.keys::<vrf::Conf>() else {
        return;
    };
    needs_result(subject, "missing prevResult from earlier plugin");
    if (253..=255).contains(&keys.table) {
        let reason = "a table of every namespace: default (253), main (254) or local (255)";
        subject.warning("table", reason);
    }
    subject.take(vrf::Plan::new(&keys));
}

fn tap(subject: &mut Subject<'_>) {
    let Some(keys) = subject.keys::<tap::Conf>() else {
        return;
    };
    shared_mac(subject, &keys.mac, "segment");
    subject.take(tap::Plan::new(&keys, None));
}

fn vxlan(subject: &mut Subject<'_>) {
    let Some(keys) = subject.keys::<vxlan::Conf>() else {
        return;
    };
    let plan = vxlan::Plan::new(&keys, subject.network, subject.has_ipam(), None);
    let Some(plan) = subject.take(plan) else {
        return;
    };
    if plan.network.mode == Mode::L2 {
        without_ipam(
            subject,
            &[
                ("isGateway", keys.is_gateway == Some(true)),
                ("isDefaultGateway", keys.is_default_gateway == Some(true)),
                ("ipMasq", keys.ip_masq),
            ],
        );
    }
    check_gateways(subject, plan.gateway);
    access(subject, &keys.access(), &plan.reachability, keys.ip_masq);
    if plan.gateway == Gateway::None {
        without_gateway(subject, &keys.access());
    }
    check_own_subnets(subject, &plan);
    subject.keep_overlay(plan.network);
}

fn portmap(subject: &mut Subject<'_>) {
    let Some(keys) = subject.keys::<portmap::Conf>() else {
        return;
    };
    needs_result(subject, "must be called as chained plugin");
    if keys.masq_all && keys.snat == Some(false) {
        subject.warning("masqAll", "has no effect when snat is false");
    }
    if keys.mark_masq_bit.is_some() && keys.backend.as_deref() == Some("nftables") {
        let reason = "has no effect with nftables, which needs no mark";
        subject.warning("markMasqBit", reason);
    }
    // Runtimes pass mappings to the plugins that declare the capability.
    let has_mappings = !keys.runtime_config.port_mappings.is_empty();
    if !has_mappings && !subject.has_capability("portMappings") {
        let reason = "portMappings is missing: runtimes pass no ports to be published";
        subject.warning("capabilities", reason);
    }
    if let Some(plan) = subject.take(portmap::Plan::new(&keys)) {
        subject.take(plan.admit(&keys.reserved_ports));
    }
}

fn firewall(subject: &mut Subject<'_>) {
    let Some(keys) = subject.keys::<firewall::Conf>() else {
        return;
    };
    needs_result(subject, "missing prevResult from earlier plugin");
    if !keys.backend.is_empty() && FirewallBackend::named(&keys.backend).is_none() {
        let reason = format!("{:?} is none: the plugin chooses", keys.backend);
        subject.warning("backend", reason);
    }
    if keys.isolate_published_ports && matches!(keys.ingress_policy.as_str(), "" | "open") {
        let reason = "has no effect without ingressPolicy";
        subject.warning("isolatePublishedPorts", reason);
    }
    subject.take(firewall::Plan::new(&keys));
}

fn tuning(subject: &mut Subject<'_>) {
    let Some(keys) = subject.keys::<tuning::Conf>() else {
        return;
    };
    let reason = "Required prevResult missing: it must come after another plugin";
    needs_result(subject, reason);
    shared_mac(subject, &keys.mac, "segment");
    relative_path(subject, "dataDir", &keys.data_dir);
    subject.take(tuning::Plan::new(&keys, None));
}

fn sbr(subject: &mut Subject<'_>) {
    let Some(keys) = subject.keys::<sbr::Conf>() else {
        return;
    };
    needs_result(subject, "This plugin must be called as chained plugin");
    if keys.table.is_some() {
        for (key, is_set) in [
            ("gateways", !keys.gateways.is_empty()),
            ("addSourceHints", keys.add_source_hints),
        ] {
            if is_set {
                subject.warning(key, "has no effect with table: only rules are added");
            }
        }
    }
    subject.take(sbr::Plan::new(&keys));
}

fn bandwidth(subject: &mut Subject<'_>) {
    let Some(keys) = subject.keys::<bandwidth::Conf>() else {
        return;
    };
    needs_result(subject, "must be called as chained plugin");
    // Runtimes pass limits to the plugins that declare the capability.
    let has_limits = keys.own_limits().is_some() || keys.runtime_config.bandwidth.is_some();
    if !has_limits && !subject.has_capability("bandwidth") {
        let reason = "bandwidth is missing: runtimes pass no limits";
        subject.warning("capabilities", reason);
    }
    if keys.own_limits().is_some() && subject.has_capability("bandwidth") {
        let reason = "has no effect beside limits of the configuration";
        subject.warning("capabilities.bandwidth", reason);
    }
    subject.take(bandwidth::Plan::new(&keys));
}

fn ptp(subject: &mut Subject<'_>) {
    let Some(keys) = subject.keys::<ptp::Conf>() else {
        return;
    };
    subject.take(ptp::Plan::new(&keys, subject.has_ipam()));
}

fn dhcp(subject: &mut Subject<'_>) {
    let Some(conf) = subject.keys::<dhcp::conf::Conf>() else {
        return;
    };
    let keys = conf.ipam.clone().unwrap_or_default();
    for (index, provide) in keys.provide.iter().enumerate() {
        if provide.value.is_empty() && provide.from_arg.is_empty() {
            let key = format!("ipam.provide[{index}]");
            subject.warning(&key, "neither value nor fromArg: nothing is sent");
        }
    }
    relative_path(subject, "ipam.daemonSocketPath", &keys.daemon_socket_path);
    subject.take(dhcp::plan::Plan::new(&conf, ""));
    for key in ["isGateway", "isDefaultGateway"] {
        if subject.document.get(key) == Some(cni::json::Json::Bool(true)) {
            let reason = "the node becomes the gateway that the DHCP server names, on the server's own segment";
            subject.warning(key, reason);
        }
    }
}

fn host_local(subject: &mut Subject<'_>) {
    let Some(conf) = subject.keys::<host_local::conf::Conf>() else {
        return;
    };
    let keys = conf.ipam.clone().unwrap_or_default();
    relative_path(subject, "ipam.dataDir", &keys.data_dir);
    let plan = host_local::plan::Plan::new(&conf, subject.version, "");
    ranges(subject, &keys, plan);
}

/// The ranges of host-local and cluster.
fn ranges(
    subject: &mut Subject<'_>,
    keys: &host_local::conf::Ipam,
    mut plan: Result<host_local::plan::Plan, Faults>,
) {
    relative_path(subject, "ipam.resolvConf", &keys.resolv_conf);
    for (key, value) in [
        ("ipam.rangeStart", keys.range_start),
        ("ipam.rangeEnd", keys.range_end),
        ("ipam.gateway", keys.gateway),
    ] {
        if keys.subnet.is_none() && value.is_some() {
            subject.warning(key, "has no effect without subnet beside it");
        }
    }
    let single = keys.single_range().map(|range| ("ipam".to_owned(), range));
    let listed = keys.ranges.iter().enumerate().flat_map(|(set, ranges)| {
        let key = move |index| format!("ipam.ranges[{set}][{index}]");
        let ranges = ranges.iter().enumerate();
        ranges.map(move |(index, range)| (key(index), range.clone()))
    });
    // The runtime may pass ranges.
    if let Err(faults) = &plan
        && subject.has_capability("ipRanges")
        && faults.first().error.msg == NO_RANGES
    {
        plan = Ok(host_local::plan::Plan::default());
    }
    if let Some(plan) = subject.take(plan) {
        let pair = |(subnet, gateway)| (subnet, Some(gateway));
        let of_set = |set: &host_local::range::RangeSet| set.subnets().map(pair).collect();
        subject.addresses = plan.sets.iter().map(of_set).collect();
    }
    for (key, range) in single.into_iter().chain(listed) {
        check_range(subject, &key, &range);
    }
}

/// Reports addresses of a range that no container can use.
fn check_range(subject: &mut Subject<'_>, key: &str, range: &host_local::conf::RangeKeys) {
    let Some(subnet) = range.subnet.filter(|_| !subject.has_error_at(key)) else {
        return;
    };
    let unusable = |ip: IpAddr| match ip {
        ip if ip == subnet.0.network() && ip.is_ipv4() => Some("the network's own address"),
        // RFC 4291, section 2.6.1.
        ip if ip == subnet.0.network() => Some("the address of all routers of the subnet"),
        ip if ip.is_ipv4() && ip == subnet.0.broadcast() => Some("the broadcast address"),
        _ => None,
    };
    for (name, ip) in [
        ("rangeStart", range.range_start),
        ("rangeEnd", range.range_end),
    ] {
        if let Some((ip, what)) = ip.and_then(|ip| Some((ip, unusable(ip)?))) {
            let reason = format!("{ip} is {what}: the container that gets it cannot be reached");
            subject.warning(&format!("{key}.{name}"), reason);
        }
    }
    far_gateway(subject, key, subnet, range.gateway);
}

fn cluster(subject: &mut Subject<'_>) {
    let Some(conf) = subject.keys::<cluster::Conf>() else {
        return;
    };
    let plan = cluster::Plan::new(&conf, subject.network, subject.version, "");
    let keys = conf.as_local().ipam.unwrap_or_default();
    ranges(subject, &keys, plan.map(|it| it.local));
}

fn fixed(subject: &mut Subject<'_>) {
    let Some(conf) = subject.keys::<static_ipam::conf::Conf>() else {
        return;
    };
    let keys = conf.ipam.clone().unwrap_or_default();
    if keys.addresses.is_empty() && !subject.has_capability("ips") {
        let reason = "none: they have to come from IP in CNI_ARGS or args.cni.ips";
        subject.warning("ipam.addresses", reason);
    }
    for (index, keys) in keys.addresses.iter().enumerate() {
        let key = format!("ipam.addresses[{index}]");
        if let Ok(address) = keys.text().parse() {
            far_gateway(subject, &key, address, keys.gateway);
        }
    }
    let plan = static_ipam::plan::Plan::new(&conf, subject.version, "");
    if let Some(plan) = subject.take(plan) {
        let candidates = |it: &static_ipam::plan::Address| vec![(it.cidr, it.gateway)];
        subject.addresses = plan.addresses.iter().map(candidates).collect();
    }
}

/// Reports a gateway outside the subnet of its address; a link-local one is on every link.
fn far_gateway(subject: &mut Subject<'_>, key: &str, subnet: Cidr, gateway: Option<IpAddr>) {
    let Some(gateway) = gateway else { return };
    let same_family = gateway.is_ipv4() == subnet.ip().is_ipv4();
    if !same_family || !subnet.0.contains(gateway) && !is_link_local_v6(gateway) {
        let reason = format!("{gateway} is not in {subnet}: containers cannot reach it directly");
        subject.warning(&format!("{key}.gateway"), reason);
    }
}

fn relative_path(subject: &mut Subject<'_>, key: &str, path: &str) {
    if !path.is_empty() && !path.starts_with('/') {
        let reason = "not an absolute path: it depends on the runtime's working directory";
        subject.warning(key, reason);
    }
}
