//! The keys of macvlan; the texts of faults are the plugin's own.

use ::macvlan::plan::Plan;
use anyhow::Result;
use cni::env::IfName;

use super::findings::Findings;
use super::schema::{Key, Kind, Others};
use super::{Conf, Plugin, wiring};

/// What is known of it.
pub const PLUGIN: Plugin = Plugin {
    name: "macvlan",
    keys: KEYS,
    check,
    read,
};

const MODES: [&str; 5] = ["", "bridge", "private", "vepa", "passthru"];

const KEYS: &[Key] = &[
    Key::new("master", Kind::Parsed(master)),
    Key::new("mode", Kind::Parsed(mode)),
    Key::new("mtu", Kind::Integer(0, MTU_MAX)),
    Key::new("mac", Kind::MAC),
    Key::new("linkInContainer", Kind::Bool),
    Key::new("bcqueuelen", Kind::UNSIGNED),
    Key::new("detectConflicts", Kind::Bool),
    Key::new("acceptRA", Kind::Text),
    Key::new("hostShim", Kind::Object(HOST_SHIM, Others::AreMistakes)),
    wiring::RUNTIME_CONFIG,
    wiring::ARGS,
];

const HOST_SHIM: &[Key] = &[
    Key::new("name", Kind::INTERFACE),
    Key::new("address", Kind::CIDRS),
];

/// No parent has a larger one (ETH_MAX_MTU in if_ether.h).
const MTU_MAX: i64 = 65535;

fn read(conf: &Conf<'_>) -> Result<()> {
    Plan::new(&conf.keys()?, None)?;
    Ok(())
}

fn check(conf: &Conf<'_>, findings: &mut Findings) {
    wiring::without_ipam(conf, &["detectConflicts"], findings);
    let has_mac = conf.text("mac").is_some_and(|mac| !mac.is_empty());
    if has_mac && conf.text("mode").as_deref() == Some("passthru") {
        let reason = "mode passthru has the MAC of the parent: no other can be asked for";
        findings.error(&conf.place_of("mac"), reason);
    }
    if has_mac {
        let reason = "is that of every pod: two on one parent cannot have the same";
        findings.warning(&conf.place_of("mac"), reason);
    }
}

fn mode(text: &str) -> Result<(), String> {
    match MODES.contains(&text) {
        true => Ok(()),
        false => Err(format!("unknown macvlan mode: {text:?}")),
    }
}

/// A name, or patterns of names.
fn master(text: &str) -> Result<(), String> {
    if text.is_empty() {
        return Ok(());
    }
    for pattern in text.split('|') {
        // What a star stands for may be nothing.
        let shortest = pattern.replace('*', "");
        if pattern.contains('*') && shortest.is_empty() {
            continue;
        }
        IfName::parse(&shortest).map_err(|error| error.to_string())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::validate::tests::{each_has_its_fault, faults, faults_at, none_has_a_fault};

    #[test]
    fn faults_have_the_plugins_words() {
        each_has_its_fault(
            "macvlan",
            &[
                (
                    r#""mode": "source""#,
                    "mode: unknown macvlan mode: \"source\"",
                ),
                (r#""mtu": -1"#, "mtu: -1 is not between 0 and 65535"),
                (
                    r#""bcqueuelen": -1"#,
                    "bcqueuelen: -1 is not between 0 and 4294967295",
                ),
                (
                    r#""master": "a-name-of-16-bytes""#,
                    "master: interface name is too long; interface name should be less than 16 characters",
                ),
                (
                    r#""master": "eth0||eth1""#,
                    "master: interface name is empty",
                ),
                (
                    r#""runtimeConfig": {"mac": "x"}"#,
                    "runtimeConfig.mac: address x: invalid MAC address",
                ),
                (
                    r#""detectConflicts": true"#,
                    "detectConflicts: has no effect without ipam",
                ),
                (
                    r#""mac": "02:00:00:00:00:01""#,
                    "mac: is that of every pod: two on one parent cannot have the same",
                ),
                (
                    r#""linkInContaner": true"#,
                    "linkInContaner: unknown key; did you mean linkInContainer?",
                ),
            ],
        );
        let both = faults(r#""type": "macvlan", "mode": "passthru", "mac": "02:00:00:00:00:01""#);
        assert!(both[0].contains("mode passthru has the MAC of the parent"));
        for (keys, fault) in [
            (
                r#""hostShim": {"name": "shim0"}"#,
                "hostShim.address: missing",
            ),
            (
                r#""mode": "private", "hostShim": {"name": "shim0", "address": "10.1.0.9/32"}"#,
                "hostShim: mode private keeps the node from its pods: it needs mode bridge",
            ),
        ] {
            let found = faults(&format!(r#""type": "macvlan", {keys}"#));
            assert_eq!(found, [format!("plugins[0]: {fault}")]);
        }
        assert_eq!(
            faults_at("0.2.0", r#""type": "macvlan""#),
            ["plugins[0].ipam: missing: a result of cniVersion 0.2.0 needs an address"]
        );
    }

    #[test]
    fn what_the_plugin_takes_is_no_fault() {
        none_has_a_fault(
            "macvlan",
            &[
                r#""master": "", "mode": "", "mtu": 0, "mac": "", "bcqueuelen": 0"#,
                r#""Master": "bond0|enp*s?", "mode": "vepa", "mtu": 9000, "linkInContainer": true"#,
                r#""hostShim": {"name": "shim0", "address": ["10.1.0.9/32", "fd01::9/128"]}"#,
                r#""master": "*", "detectConflicts": true, "ipam": {"type": "x"}"#,
                r#""args": {"cni": {"mac": "02:00:00:00:00:01"}, "other": 1}"#,
            ],
        );
    }
}
