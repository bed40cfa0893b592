//! The keys of bridge; the texts of faults are the plugin's own.

use ::bridge::plan::Plan;
use anyhow::Result;
use cni::env::IfName;
use cni::json::Json;

use super::findings::Findings;
use super::schema::{self, Key, Kind, Others};
use super::{Conf, Plugin, wiring};

/// What is known of it.
pub const PLUGIN: Plugin = Plugin {
    name: "bridge",
    keys: KEYS,
    check,
    read,
};

/// The largest VLAN id; 4095 is reserved by IEEE 802.1Q.
const VLAN_MAX: i64 = 4094;

const KEYS: &[Key] = &[
    Key::new("bridge", Kind::INTERFACE),
    Key::new("isGateway", Kind::Bool),
    Key::new("isDefaultGateway", Kind::Bool),
    Key::new("forceAddress", Kind::Bool),
    Key::new("ipMasq", Kind::Bool),
    Key::new("ipMasqBackend", Kind::Text),
    Key::new("ipMasqRandomFully", Kind::Bool),
    Key::new("ipMasqExcept", Kind::List(&Kind::Text)),
    Key::new("ipMasqFamilies", Kind::List(&Kind::Text)),
    Key::new("mtu", Kind::Custom(mtu)),
    Key::new("hairpinMode", Kind::Bool),
    Key::new("promiscMode", Kind::Bool),
    Key::new("vlan", Kind::Custom(vlan)),
    Key::new(
        "vlanTrunk",
        Kind::List(&Kind::Object(TRUNK_KEYS, Others::AreMistakes)),
    ),
    Key::new("preserveDefaultVlan", Kind::Bool),
    Key::new("macspoofchk", Kind::Bool),
    Key::new("detectConflicts", Kind::Bool),
    Key::new("enabledad", Kind::Bool),
    Key::new("disableContainerInterface", Kind::Bool),
    Key::new("portIsolation", Kind::Bool),
    wiring::RUNTIME_CONFIG,
    wiring::ARGS,
];

/// What is done with addresses.
const NEED_IPAM: &[&str] = &["isGateway", "isDefaultGateway", "ipMasq", "detectConflicts"];

const TRUNK_KEYS: &[Key] = &[
    Key::new("minID", Kind::Integer(i64::MIN, i64::MAX)),
    Key::new("maxID", Kind::Integer(i64::MIN, i64::MAX)),
    Key::new("id", Kind::Integer(i64::MIN, i64::MAX)),
];

fn read(conf: &Conf<'_>) -> Result<()> {
    plan(conf).map(drop)
}

fn plan(conf: &Conf<'_>) -> Result<Plan> {
    Plan::new(&conf.keys()?, conf.ipam().is_some(), None)
}

fn check(conf: &Conf<'_>, findings: &mut Findings) {
    if let Ok(plan) = plan(conf) {
        wiring::gateways(conf, plan.gateway, findings);
    }
    wiring::masquerade(conf, findings);
    wiring::without_ipam(conf, NEED_IPAM, findings);
    if conf.flag("hairpinMode") && conf.flag("promiscMode") {
        findings.error(
            &conf.place_of("promiscMode"),
            "cannot set hairpin mode and promiscuous mode at the same time",
        );
    }
    let has_ipam = conf.ipam().is_some();
    if conf.flag("disableContainerInterface") && has_ipam {
        findings.error(
            &conf.place_of("disableContainerInterface"),
            "cannot use IPAM when DisableContainerInterface flag is set",
        );
    }
    for (index, item) in schema::items(conf.document.get("vlanTrunk"))
        .iter()
        .enumerate()
    {
        let place = conf.place_of(&format!("vlanTrunk[{index}]"));
        trunk_item(item, &place, findings);
    }
    gateway(conf, has_ipam, findings);
    let in_vlan = conf.integer("vlan").unwrap_or_default() != 0;
    if conf.flag("preserveDefaultVlan") && !in_vlan && conf.document.get("vlanTrunk").is_none() {
        let reason = "has no effect without vlan or vlanTrunk";
        findings.warning(&conf.place_of("preserveDefaultVlan"), reason);
    }
}

fn gateway(conf: &Conf<'_>, has_ipam: bool, findings: &mut Findings) {
    let asked = conf.flag("isGateway") || conf.flag("isDefaultGateway");
    if !asked && conf.flag("forceAddress") {
        let reason = "has no effect without isGateway";
        findings.warning(&conf.place_of("forceAddress"), reason);
    }
    let vlan = conf.integer("vlan").unwrap_or_default();
    if !asked || !has_ipam || !(1..=VLAN_MAX).contains(&vlan) {
        return;
    }
    let bridge = conf.text("bridge").unwrap_or_else(|| "cni0".to_owned());
    let name = format!("{bridge}.{vlan}");
    if let (Ok(_), Err(error)) = (IfName::parse(&bridge), IfName::parse(&name)) {
        findings.error(
            &conf.place_of("vlan"),
            format!("name of the VLAN's gateway interface {name:?}: {error}"),
        );
    }
}

fn trunk_item(item: &Json, place: &str, findings: &mut Findings) {
    let id = |key: &str| item.get(key).and_then(|value| schema::integer(&value));
    let mut in_range = |key: &str, reason: &str| {
        let outside = id(key).is_some_and(|id| !(1..=VLAN_MAX).contains(&id));
        if outside {
            findings.error(&schema::join(place, key), reason);
        }
    };
    in_range("minID", "incorrect trunk minID parameter");
    in_range("maxID", "incorrect trunk maxID parameter");
    in_range("id", "incorrect trunk id parameter");
    let reason = match (id("minID"), id("maxID")) {
        (Some(min), Some(max)) if min > max => "minID is greater than maxID in trunk parameter",
        (Some(_), None) => "minID and maxID should be configured simultaneously, maxID is missing",
        (None, Some(_)) => "minID and maxID should be configured simultaneously, minID is missing",
        _ => return,
    };
    findings.error(place, reason);
}

fn mtu(value: &Json) -> Result<(), String> {
    match wiring::mtu(value)? {
        Some(bytes) if bytes != 0 && !(68..=65535).contains(&bytes) => {
            Err(format!("invalid MTU {bytes}, must be [68, 65535]"))
        }
        _ => Ok(()),
    }
}

fn vlan(value: &Json) -> Result<(), String> {
    match schema::integer(value) {
        Some(id) if (0..=VLAN_MAX).contains(&id) => Ok(()),
        Some(id) => Err(format!(
            "invalid VLAN ID {id} (must be between 0 and {VLAN_MAX})"
        )),
        None => Err(format!(
            "expected an integer, got {}",
            schema::kind_of(value)
        )),
    }
}

#[cfg(test)]
mod tests {
    use crate::validate::tests::{each_has_its_fault, none_has_a_fault};

    #[test]
    fn faults_have_the_plugins_words() {
        each_has_its_fault(
            "bridge",
            &[
                (r#""bridge": """#, "bridge: interface name is empty"),
                (r#""mtu": 9"#, "mtu: invalid MTU 9, must be [68, 65535]"),
                (r#""mtu": "big""#, "mtu: expected an integer or \"auto\""),
                (
                    r#""vlan": 4095"#,
                    "vlan: invalid VLAN ID 4095 (must be between 0 and 4094)",
                ),
                (
                    r#""vlanTrunk": [{}, {"minID": 5, "maxID": 4}]"#,
                    "vlanTrunk[1]: minID is greater than maxID in trunk parameter",
                ),
                (
                    r#""vlanTrunk": [{"minID": 5}]"#,
                    "vlanTrunk[0]: minID and maxID should be configured simultaneously, maxID is missing",
                ),
                (
                    r#""vlanTrunk": [{"id": 0}]"#,
                    "vlanTrunk[0].id: incorrect trunk id parameter",
                ),
                (
                    r#""hairpinMode": true, "promiscMode": true"#,
                    "promiscMode: cannot set hairpin mode and promiscuous mode at the same time",
                ),
                (
                    r#""disableContainerInterface": true, "ipam": {"type": "x"}"#,
                    "disableContainerInterface: cannot use IPAM when DisableContainerInterface flag is set",
                ),
                (r#""ipMasq": true"#, "ipMasq: has no effect without ipam"),
                (
                    r#""ipMasqBackend": "ipchains""#,
                    "ipMasqBackend: unknown ipmasq backend \"ipchains\"",
                ),
                (
                    r#""isGateway": true, "bridge": "br-10-bytes", "vlan": 4000, "ipam": {"type": "x"}"#,
                    "vlan: name of the VLAN's gateway interface \"br-10-bytes.4000\": interface name is too long; interface name should be less than 16 characters",
                ),
                (
                    r#""isGateway": true"#,
                    "isGateway: has no effect without ipam",
                ),
                (
                    r#""detectConflicts": true"#,
                    "detectConflicts: has no effect without ipam",
                ),
                (
                    r#""runtimeConfig": {"mac": "x"}"#,
                    "runtimeConfig.mac: address x: invalid MAC address",
                ),
                (
                    r#""isGatway": true"#,
                    "isGatway: unknown key; did you mean isGateway?",
                ),
            ],
        );
    }

    #[test]
    fn what_the_plugin_takes_is_no_fault() {
        none_has_a_fault(
            "bridge",
            &[
                r#""mtu": "auto", "vlan": 0, "ipMasq": false, "macspoofchk": false, "bridge": null"#,
                r#""BRIDGE": "br0", "vlanTrunk": [{"minID": 1, "maxID": 4094, "id": 7}]"#,
                r#""args": {"cni": {"mac": "02:00:00:00:00:01"}, "other": 1}"#,
            ],
        );
    }
}
