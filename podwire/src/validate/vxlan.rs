//! The keys of vxlan; what contradicts what is decided by the plugin's own code.

use ::vxlan::plan::{self, Plan};
use anyhow::Result;
use cni::Error;
use cni::json::Json;
use overlay::{Mode, Network};

use super::findings::Findings;
use super::schema::{self, Key, Kind, Others};
use super::{Conf, Plugin, Report, wiring};

/// What is known of it.
pub const PLUGIN: Plugin = Plugin {
    name: "vxlan",
    keys: KEYS,
    check,
    read,
};

/// Whether a number is in range, Network::new says.
const NUMBER: Kind = Kind::Integer(i64::MIN, i64::MAX);

const KEYS: &[Key] = &[
    Key::new("mode", Kind::Text),
    Key::required("vni", NUMBER),
    Key::new("port", NUMBER),
    Key::new("dev", Kind::Text),
    Key::new("local", Kind::ADDRESS),
    Key::new("underlay", Kind::Custom(underlay)),
    Key::new(
        "peers",
        Kind::List(&Kind::Object(PEER_KEYS, Others::AreMistakes)),
    ),
    Key::new("group", Kind::ADDRESS),
    Key::new("ttl", NUMBER),
    Key::new("learning", Kind::Bool),
    Key::new("mtu", Kind::Custom(|value| wiring::mtu(value).map(drop))),
    Key::new("gbp", Kind::Bool),
    Key::new("udpChecksum", Kind::Bool),
    Key::new("mac", Kind::Text),
    Key::new("bridge", Kind::Text),
    Key::new("isGateway", Kind::Bool),
    Key::new("isDefaultGateway", Kind::Bool),
    Key::new("forceAddress", Kind::Bool),
    Key::new("ipMasq", Kind::Bool),
    Key::new("ipMasqBackend", Kind::Text),
    Key::new("ipMasqRandomFully", Kind::Bool),
    Key::new("ipMasqExcept", Kind::List(&Kind::Text)),
    Key::new("ipMasqFamilies", Kind::List(&Kind::Text)),
    Key::new("hairpinMode", Kind::Bool),
    Key::new("macspoofchk", Kind::Bool),
    Key::new("enabledad", Kind::Bool),
    Key::new("removeWhenEmpty", Kind::Bool),
    wiring::RUNTIME_CONFIG,
    wiring::ARGS,
];

/// What mode l2 does with addresses.
const NEED_IPAM: &[&str] = &["isGateway", "isDefaultGateway", "ipMasq"];

const PEER_KEYS: &[Key] = &[
    Key::new("vtep", Kind::ADDRESS),
    Key::new("mac", Kind::Text),
    Key::new("subnet", Kind::CIDRS),
];

fn read(conf: &Conf<'_>) -> Result<()> {
    plan(conf).map(drop)
}

fn plan(conf: &Conf<'_>) -> Result<Plan> {
    Plan::new(&conf.keys()?, conf.network, conf.ipam().is_some(), None)
}

fn check(conf: &Conf<'_>, findings: &mut Findings) {
    // What does not decode has been told by the table of keys.
    let Ok(keys) = conf.document.decode::<overlay::Conf>() else {
        return;
    };
    wiring::masquerade(conf, findings);
    // A VNI that is missing is told as any key that is.
    if keys.vni.is_none() {
        return;
    }
    match Network::new(&keys, conf.network) {
        Err(faults) => {
            for fault in faults {
                let msg = fault.error.msg;
                let why = msg.split_once(": ").map_or(msg.as_str(), |(_, why)| why);
                findings.error(&conf.place_of(&fault.key), why);
            }
        }
        Ok(network) => {
            together(conf, &keys, network.mode, findings);
            findings.keep_overlay(&conf.place, network);
        }
    }
}

/// Tells in `report` which of its networks cannot be on one node with one of `others`.
pub fn between(report: &mut Report, others: &[Report]) {
    let mut clashes = Vec::new();
    for (place, network) in report.findings.overlays() {
        let theirs = others.iter().flat_map(|other| {
            let all = other.findings.overlays().iter();
            all.map(|(_, network)| (other.file.display(), network))
        });
        // That a network is there twice has been told.
        for (file, other) in theirs.filter(|(_, other)| other.name != network.name) {
            if let Some((key, why)) = network.clash(other) {
                clashes.push((schema::join(place, key), format!("{why} ({file})")));
            }
        }
    }
    for (path, reason) in clashes {
        report.findings.error(&path, reason);
    }
}

fn together(conf: &Conf<'_>, keys: &overlay::Conf, mode: Mode, findings: &mut Findings) {
    if let Ok(plan) = plan(conf) {
        wiring::gateways(conf, plan.gateway, findings);
        own_subnets(conf, &plan, findings);
    }
    if mode == Mode::L2 {
        wiring::without_ipam(conf, NEED_IPAM, findings);
        return;
    }
    if conf.ipam().is_none() {
        let reason = "missing: mode l3 routes to the pods' addresses";
        findings.error(&conf.place_of("ipam"), reason);
    }
    if keys.is_gateway == Some(false) {
        let reason = "in mode l3 the bridge is the pods' gateway";
        findings.error(&conf.place_of("isGateway"), reason);
    }
}

/// Tells subnets of pods that contradict the peers. Of a range that is used when another is
/// full, only warns.
fn own_subnets(conf: &Conf<'_>, vxlan: &Plan, findings: &mut Findings) {
    let sources = wiring::addresses(conf);
    let fault = |addresses: &mut dyn Iterator<Item = &wiring::Address>| {
        let own = plan::own_subnets(addresses.map(|(it, _)| *it));
        let error = vxlan.check_own_subnets(&own, vxlan.network.local).err()?;
        let msg = Error::from_chain(&error).msg;
        let (key, why) = msg.split_once(": ")?;
        Some((conf.place_of(key), why.to_owned()))
    };
    if let Some((place, why)) = fault(&mut sources.iter().filter_map(|it| it.first())) {
        findings.error(&place, why);
    } else if let Some((place, why)) = fault(&mut sources.iter().flatten()) {
        findings.warning(&place, format!("{}: {why}", wiring::WHEN_FULL));
    }
}

fn underlay(value: &Json) -> Result<(), String> {
    match value {
        Json::String(_) | Json::Number(_) => Ok(()),
        other => Err(format!(
            "expected \"ipv4\" or \"ipv6\", got {}",
            schema::kind_of(other)
        )),
    }
}

#[cfg(test)]
mod tests {
    use crate::validate::tests::{each_has_its_fault, none_has_a_fault};

    #[test]
    fn faults_have_the_plugins_words() {
        each_has_its_fault(
            "vxlan",
            &[
                (r#""mode": "l2""#, "vni: missing"),
                (
                    r#""mode": "l2", "vni": 16777216"#,
                    "vni: 16777216 is not between 0 and 16777215",
                ),
                (
                    r#""mode": "l2", "vni": 1, "peers": [{"vtep": "x"}]"#,
                    "peers[0].vtep: invalid IP address: x",
                ),
                (
                    r#""vni": 1, "peers": [{"vtep": "192.0.2.2"}], "ipam": {"type": "x"}"#,
                    "peers[0].subnet: missing: in mode l3 a peer is where a subnet is",
                ),
                (
                    r#""mode": "l2", "vni": 1, "peers": [{"vtep": "192.0.2.2", "adress": "y"}]"#,
                    "peers[0].adress: unknown key, ignored",
                ),
                (
                    r#""mode": "l2", "vni": 1, "group": "192.0.2.1""#,
                    "group: 192.0.2.1 is not multicast",
                ),
                (
                    r#""vni": 1"#,
                    "ipam: missing: mode l3 routes to the pods' addresses",
                ),
                (
                    r#""vni": 1, "isGateway": false, "ipam": {"type": "x"}"#,
                    "isGateway: in mode l3 the bridge is the pods' gateway",
                ),
                (
                    r#""mode": "l2", "vni": 1, "ipMasq": true"#,
                    "ipMasq: has no effect without ipam",
                ),
                (
                    r#""mode": "l2", "vni": 1, "mtu": "big""#,
                    "mtu: expected an integer or \"auto\"",
                ),
                (
                    r#""mode": "l2", "vni": 1, "ipMasqBackend": "ipchains""#,
                    "ipMasqBackend: unknown ipmasq backend \"ipchains\"",
                ),
            ],
        );
    }

    #[test]
    fn what_the_plugin_takes_is_no_fault() {
        none_has_a_fault(
            "vxlan",
            &[
                r#""mode": "L2", "vni": 0, "underlay": 6, "mtu": "auto", "learning": null"#,
                r#""VNI": 5, "ipam": {"type": "x"}, "peers": [{"vtep": "192.0.2.2", "subnet": ["10.5.2.0/24", "fd00:5:2::/64"]}]"#,
            ],
        );
    }
}
