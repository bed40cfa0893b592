//! The keys of macvlan; the texts of faults are the plugin's own.

use cni::env::IfName;
use cni::version::Version;

use super::findings::Findings;
use super::schema::{Key, Kind, Others};
use super::{Conf, Plugin};

/// What is known of it.
pub const PLUGIN: Plugin = Plugin {
    name: "macvlan",
    keys: KEYS,
    check,
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
    Key::new("runtimeConfig", Kind::Object(MAC_KEY, Others::AreFine)),
    Key::new("args", Kind::Object(ARGS_KEYS, Others::AreFine)),
];

/// No parent has a larger one (ETH_MAX_MTU in if_ether.h).
const MTU_MAX: i64 = 65535;

const MAC_KEY: &[Key] = &[Key::new("mac", Kind::MAC)];

const ARGS_KEYS: &[Key] = &[Key::new("cni", Kind::Object(MAC_KEY, Others::AreFine))];

fn check(conf: &Conf<'_>, findings: &mut Findings) {
    let has_ipam = conf.ipam().is_some();
    if !has_ipam && conf.version < Version::V0_3_0 {
        // An older result is its addresses.
        let reason = format!(
            "missing: a result of cniVersion {} needs an address",
            conf.version
        );
        findings.error(&conf.place_of("ipam"), reason);
    }
    if conf.flag("detectConflicts") && !has_ipam {
        let reason = "has no effect without ipam";
        findings.warning(&conf.place_of("detectConflicts"), reason);
    }
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
    use super::*;
    use crate::validate::tests::{documented_keys, faults, faults_at, plugin_readme};

    #[test]
    fn the_table_is_that_of_the_plugins_readme() {
        let readme = plugin_readme("plugins/macvlan");
        let mut known: Vec<_> = KEYS.iter().map(|key| key.name.to_owned()).collect();
        // Common keys, which the README repeats; and two that are no keys of an author's.
        known.extend(["ipam".to_owned(), "dns".to_owned()]);
        known.retain(|key| key != "args" && key != "runtimeConfig");
        known.sort();
        assert_eq!(known, documented_keys(&readme));
    }

    #[test]
    fn faults_have_the_plugins_words() {
        for (keys, expected) in [
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
        ] {
            let expected = format!("plugins[0].{expected}");
            assert_eq!(
                faults(&format!(r#""type": "macvlan", {keys}"#)),
                [expected],
                "{keys}"
            );
        }
        let both = faults(r#""type": "macvlan", "mode": "passthru", "mac": "02:00:00:00:00:01""#);
        assert!(both[0].contains("mode passthru has the MAC of the parent"));
        assert_eq!(
            faults_at("0.2.0", r#""type": "macvlan""#),
            ["plugins[0].ipam: missing: a result of cniVersion 0.2.0 needs an address"]
        );
    }

    #[test]
    fn what_the_plugin_takes_is_no_fault() {
        for keys in [
            r#""master": "", "mode": "", "mtu": 0, "mac": "", "bcqueuelen": 0"#,
            r#""Master": "bond0|enp*s?", "mode": "vepa", "mtu": 9000, "linkInContainer": true"#,
            r#""master": "*", "detectConflicts": true, "ipam": {"type": "x"}"#,
            r#""args": {"cni": {"mac": "02:00:00:00:00:01"}, "other": 1}"#,
        ] {
            let none: [String; 0] = [];
            assert_eq!(
                faults(&format!(r#""type": "macvlan", {keys}"#)),
                none,
                "{keys}"
            );
        }
    }
}
