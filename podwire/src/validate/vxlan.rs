//! The keys of vxlan; what contradicts what is decided by the plugin's own code.

use cni::Cidr;
use cni::Error;
use cni::json::Json;
use cni::version::Version;
use overlay::{Mode, Network};

use super::findings::Findings;
use super::schema::{self, Key, Kind, Others};
use super::{Conf, Plugin};

/// What is known of it.
pub const PLUGIN: Plugin = Plugin {
    name: "vxlan",
    keys: KEYS,
    check,
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
    Key::new("mtu", Kind::Custom(mtu)),
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
    Key::new("hairpinMode", Kind::Bool),
    Key::new("macspoofchk", Kind::Bool),
    Key::new("enabledad", Kind::Bool),
    Key::new("removeWhenEmpty", Kind::Bool),
    Key::new("runtimeConfig", Kind::Object(MAC_KEY, Others::AreFine)),
    Key::new("args", Kind::Object(ARGS_KEYS, Others::AreFine)),
];

const PEER_KEYS: &[Key] = &[
    Key::new("vtep", Kind::ADDRESS),
    Key::new("mac", Kind::Text),
    Key::new("subnet", Kind::Custom(subnet)),
];

const MAC_KEY: &[Key] = &[Key::new("mac", Kind::MAC)];

const ARGS_KEYS: &[Key] = &[Key::new("cni", Kind::Object(MAC_KEY, Others::AreFine))];

fn check(conf: &Conf<'_>, findings: &mut Findings) {
    // What does not decode has been told by the table of keys.
    let Ok(keys) = conf.document.decode::<overlay::Conf>() else {
        return;
    };
    if let Some(backend) = conf.text("ipMasqBackend")
        && !["", "nftables", "iptables"].contains(&backend.as_str())
    {
        let reason = format!("unknown ipmasq backend {backend:?}");
        findings.error(&conf.place_of("ipMasqBackend"), reason);
    }
    // A VNI that is missing is told as any key that is.
    if keys.vni.is_none() {
        return;
    }
    match Network::new(&keys, "x") {
        Err(error) => {
            let msg = Error::from_chain(&error).msg;
            let (key, why) = msg.split_once(": ").unwrap_or(("", &msg));
            findings.error(&conf.place_of(key), why);
        }
        Ok(network) => together(conf, &keys, network.mode, findings),
    }
}

fn together(conf: &Conf<'_>, keys: &overlay::Conf, mode: Mode, findings: &mut Findings) {
    let has_ipam = conf.ipam().is_some();
    if mode == Mode::L3 {
        if !has_ipam {
            let reason = "missing: mode l3 routes to the pods' addresses";
            findings.error(&conf.place_of("ipam"), reason);
        }
        if keys.is_gateway == Some(false) {
            let reason = "in mode l3 the bridge is the pods' gateway";
            findings.error(&conf.place_of("isGateway"), reason);
        }
        return;
    }
    if has_ipam {
        return;
    }
    if conf.version < Version::V0_3_0 {
        // An older result is its addresses.
        let version = conf.version;
        let reason = format!("missing: a result of cniVersion {version} needs an address");
        findings.error(&conf.place_of("ipam"), reason);
    }
    for key in ["isGateway", "isDefaultGateway", "ipMasq"] {
        if conf.flag(key) {
            findings.warning(&conf.place_of(key), "has no effect without ipam");
        }
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

fn mtu(value: &Json) -> Result<(), String> {
    match (schema::integer(value), value) {
        (Some(_), _) => Ok(()),
        (None, Json::String(text)) if text == "auto" => Ok(()),
        (None, _) => Err("expected an integer or \"auto\"".to_owned()),
    }
}

fn subnet(value: &Json) -> Result<(), String> {
    match value {
        Json::String(text) if text.is_empty() => Ok(()),
        Json::String(text) => text.parse::<Cidr>().map(drop),
        Json::Array(items) => items.iter().try_for_each(subnet),
        other => Err(format!(
            "expected a network or a list of networks, got {}",
            schema::kind_of(other)
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validate::tests::{documented_keys, faults, plugin_readme};

    #[test]
    fn the_table_is_that_of_the_plugins_readme() {
        let readme = plugin_readme("plugins/vxlan");
        let mut known: Vec<_> = KEYS.iter().map(|key| key.name.to_owned()).collect();
        // Common keys, which the README repeats; and two that are no keys of an author's.
        known.extend(["ipam".to_owned(), "dns".to_owned()]);
        known.retain(|key| key != "args" && key != "runtimeConfig");
        known.sort();
        let mut documented = documented_keys(&readme);
        documented.dedup();
        assert_eq!(known, documented);
    }

    #[test]
    fn faults_have_the_plugins_words() {
        for (keys, expected) in [
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
        ] {
            let expected = format!("plugins[0].{expected}");
            assert_eq!(
                faults(&format!(r#""type": "vxlan", {keys}"#)),
                [expected],
                "{keys}"
            );
        }
    }

    #[test]
    fn what_the_plugin_takes_is_no_fault() {
        for keys in [
            r#""mode": "L2", "vni": 0, "underlay": 6, "mtu": "auto", "learning": null"#,
            r#""VNI": 5, "ipam": {"type": "x"}, "peers": [{"vtep": "192.0.2.2", "subnet": ["10.5.2.0/24", "fd00:5:2::/64"]}]"#,
        ] {
            let none: [String; 0] = [];
            let found = faults(&format!(r#""type": "vxlan", {keys}"#));
            assert_eq!(found, none, "{keys}");
        }
    }
}
