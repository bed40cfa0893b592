//! The keys of portmap; the texts of faults are the plugin's own.

use ::portmap::plan::Plan;
use anyhow::Result;
use cni::json::Json;
use packet_filter::{Protocol, ReservedPorts};

use super::findings::Findings;
use super::schema::{self, Key, Kind, Others};
use super::{Conf, Plugin};

/// What is known of it.
pub const PLUGIN: Plugin = Plugin {
    name: "portmap",
    keys: KEYS,
    check,
    read,
};

const KEYS: &[Key] = &[
    Key::new("backend", Kind::Text),
    Key::new("snat", Kind::Bool),
    Key::new("masqAll", Kind::Bool),
    Key::new("markMasqBit", Kind::Custom(mark_bit)),
    Key::new("externalSetMarkChain", Kind::Parsed(chain)),
    Key::new("conditionsV4", Kind::List(&Kind::Text)),
    Key::new("conditionsV6", Kind::List(&Kind::Text)),
    Key::new("reservedPorts", Kind::List(&Kind::Custom(reserved))),
    Key::new(
        "runtimeConfig",
        Kind::Object(RUNTIME_CONFIG, Others::AreFine),
    ),
];

const RUNTIME_CONFIG: &[Key] = &[Key::new(
    "portMappings",
    Kind::List(&Kind::Object(MAPPING_KEYS, Others::AreMistakes)),
)];

const MAPPING_KEYS: &[Key] = &[
    Key::required(
        "hostPort",
        Kind::Custom(|value| port("Invalid host port number", value)),
    ),
    Key::required(
        "containerPort",
        Kind::Custom(|value| port("Invalid container port number", value)),
    ),
    Key::required("protocol", Kind::Parsed(protocol)),
    Key::new("hostIP", Kind::ADDRESS),
];

fn read(conf: &Conf<'_>) -> Result<()> {
    Plan::new(&conf.keys()?)?;
    Ok(())
}

fn check(conf: &Conf<'_>, findings: &mut Findings) {
    if conf.is_first() {
        findings.error(&conf.place, "must be called as chained plugin");
    }
    back_end(conf, findings);
    if conf.value("externalSetMarkChain").is_some() && conf.value("markMasqBit").is_some() {
        findings.error(
            &conf.place_of("markMasqBit"),
            "Cannot specify externalSetMarkChain and markMasqBit",
        );
    }
    if conf.flag("masqAll") && conf.value("snat") == Some(Json::Bool(false)) {
        let reason = "has no effect when snat is false";
        findings.warning(&conf.place_of("masqAll"), reason);
    }
    mappings(conf, findings);
    // Mappings come from the runtime, which passes them to plugins that say so.
    let mappings = conf.value("runtimeConfig");
    let mappings = mappings.and_then(|runtime| runtime.get("portMappings"));
    if mappings.is_none() && !conf.has_capability("portMappings") {
        let reason = "portMappings is missing: runtimes pass no ports to be published";
        findings.warning(&conf.place_of("capabilities"), reason);
    }
}

/// Mappings in the file itself that an ADD refuses.
fn mappings(conf: &Conf<'_>, findings: &mut Findings) {
    let plan = conf.keys().and_then(|keys| Ok(Plan::new(&keys)?));
    let Ok(Err(faults)) = plan.map(|plan| plan.admit()) else {
        return;
    };
    for fault in faults {
        findings.error(&conf.place_of(&fault.key), fault.error.msg);
    }
}

fn reserved(value: &Json) -> Result<(), String> {
    let text = match value {
        Json::String(text) => text.clone(),
        other => match schema::integer(other) {
            Some(number) => number.to_string(),
            None => {
                return Err(format!(
                    "expected a port or a range of ports, got {}",
                    schema::kind_of(value)
                ));
            }
        },
    };
    ReservedPorts::parse(&text).map(drop)
}

/// The back end that is asked for, and the keys that only one understands.
fn back_end(conf: &Conf<'_>, findings: &mut Findings) {
    let (mut iptables, mut nftables) = (Vec::new(), Vec::new());
    if conf.value("externalSetMarkChain").is_some() {
        iptables.push("externalSetMarkChain");
    }
    for key in ["conditionsV4", "conditionsV6"] {
        let first = schema::items(conf.value(key)).into_iter().next();
        match schema::text(first) {
            Some(word) if word.starts_with(['-', '!']) => iptables.push(key),
            Some(_) => nftables.push(key),
            None => {}
        }
    }
    let asked = conf.text("backend").unwrap_or_default();
    let (other, foreign) = match asked.as_str() {
        "nftables" => ("iptables", &iptables),
        "iptables" => ("nftables", &nftables),
        "" if !iptables.is_empty() && !nftables.is_empty() => {
            let reason = format!(
                "configuration contains both iptables-specific options [{}] and nftables-specific options [{}]",
                iptables.join(" "),
                nftables.join(" ")
            );
            return findings.error(&conf.place, reason);
        }
        "" => return,
        unknown => {
            let reason = format!("unrecognized backend {unknown:?}");
            return findings.error(&conf.place_of("backend"), reason);
        }
    };
    if !foreign.is_empty() {
        let reason = format!(
            "{asked} backend was requested but configuration contains {other}-specific options [{}]",
            foreign.join(" ")
        );
        findings.error(&conf.place_of("backend"), reason);
    }
    if asked == "nftables" && conf.value("markMasqBit").is_some() {
        let reason = "has no effect with nftables, which needs no mark";
        findings.warning(&conf.place_of("markMasqBit"), reason);
    }
}

fn mark_bit(value: &Json) -> Result<(), String> {
    match schema::integer(value) {
        Some(0..=31) => Ok(()),
        Some(_) => Err("MasqMarkBit must be between 0 and 31".to_owned()),
        None => Err(not_an_integer(value)),
    }
}

fn port(invalid: &str, value: &Json) -> Result<(), String> {
    match schema::integer(value) {
        Some(1..=65535) => Ok(()),
        Some(number) => Err(format!("{invalid}: {number}")),
        None => Err(not_an_integer(value)),
    }
}

fn not_an_integer(value: &Json) -> String {
    format!("expected an integer, got {}", schema::kind_of(value))
}

fn protocol(text: &str) -> Result<(), String> {
    match Protocol::parse(text) {
        Some(_) => Ok(()),
        None => Err(format!(
            "invalid protocol {text:?}: must be tcp, udp or sctp"
        )),
    }
}

/// What can be one word of a rule, at most as long as iptables takes it.
fn chain(name: &str) -> Result<(), String> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let fits = (1..=28).contains(&name.len()) && !name.starts_with('-');
    match fits && name.bytes().all(plain) {
        true => Ok(()),
        false => Err(format!("{name:?} is no name of an iptables chain")),
    }
}

#[cfg(test)]
mod tests {
    use crate::validate::tests::faults_of_last;

    /// Faults of portmap after a plugin that gives the pod its addresses.
    fn faults(keys: &str) -> Vec<String> {
        let declared = r#""type": "portmap", "capabilities": {"portMappings": true}"#;
        let keys = match keys {
            "" => String::new(),
            keys => format!(", {keys}"),
        };
        chained(&format!("{declared}{keys}"))
    }

    fn chained(portmap: &str) -> Vec<String> {
        faults_of_last(&[r#""type": "loopback""#, portmap])
    }

    #[test]
    fn faults_have_the_plugins_words() {
        for (keys, expected) in [
            (
                r#""backend": "ipvs""#,
                "backend: unrecognized backend \"ipvs\"",
            ),
            (
                r#""backend": "nftables", "externalSetMarkChain": "X", "conditionsV4": ["-s", "a"]"#,
                "backend: nftables backend was requested but configuration contains iptables-specific options [externalSetMarkChain conditionsV4]",
            ),
            (
                r#""backend": "iptables", "conditionsV6": ["ip6", "saddr", "a"]"#,
                "backend: iptables backend was requested but configuration contains nftables-specific options [conditionsV6]",
            ),
            (
                r#""backend": "nftables", "markMasqBit": 5"#,
                "markMasqBit: has no effect with nftables, which needs no mark",
            ),
            (
                r#""externalSetMarkChain": "X", "markMasqBit": 5"#,
                "markMasqBit: Cannot specify externalSetMarkChain and markMasqBit",
            ),
            (
                r#""markMasqBit": 32"#,
                "markMasqBit: MasqMarkBit must be between 0 and 31",
            ),
            (
                r#""externalSetMarkChain": "X -j DROP""#,
                "externalSetMarkChain: \"X -j DROP\" is no name of an iptables chain",
            ),
            (
                r#""snat": false, "masqAll": true"#,
                "masqAll: has no effect when snat is false",
            ),
            (
                r#""masqall": 1"#,
                "masqall: expected a boolean, got a number",
            ),
            (
                r#""reservedPorts": ["ssh"]"#,
                "reservedPorts[0]: \"ssh\" is no port and no range of ports",
            ),
            (
                r#""reservedPorts": [0]"#,
                "reservedPorts[0]: \"0\" is no port and no range of ports",
            ),
            (
                r#""runtimeConfig": {"portMappings": [{"hostPort": 1, "containerPort": 1, "protocol": "tcp", "hostIP": "::1"}]}"#,
                "runtimeConfig.portMappings[0].hostIP: host port 1/tcp: hostIP ::1 leads to no pod: IPv6 has no route_localnet",
            ),
            (
                r#""snat": false, "runtimeConfig": {"portMappings": [{"hostPort": 1, "containerPort": 1, "protocol": "tcp", "hostIP": "127.0.0.1"}]}"#,
                "runtimeConfig.portMappings[0].hostIP: host port 1/tcp: hostIP 127.0.0.1 leads to no pod: snat is false",
            ),
            (
                r#""runtimeConfig": {"portMappings": [{"hostPort": 0, "containerPort": 1, "protocol": "tcp"}]}"#,
                "runtimeConfig.portMappings[0].hostPort: Invalid host port number: 0",
            ),
            (
                r#""runtimeConfig": {"portMappings": [{"hostPort": 1, "containerPort": 65536, "protocol": "tcp"}]}"#,
                "runtimeConfig.portMappings[0].containerPort: Invalid container port number: 65536",
            ),
            (
                r#""runtimeConfig": {"portMappings": [{"hostPort": 1, "containerPort": 1, "protocol": "icmp"}]}"#,
                "runtimeConfig.portMappings[0].protocol: invalid protocol \"icmp\": must be tcp, udp or sctp",
            ),
        ] {
            assert_eq!(faults(keys), [format!("plugins[1].{expected}")], "{keys}");
        }
        assert_eq!(
            faults(r#""externalSetMarkChain": "X", "conditionsV6": ["tcp"]"#),
            [
                "plugins[1]: configuration contains both iptables-specific options [externalSetMarkChain] and nftables-specific options [conditionsV6]"
            ]
        );
    }

    #[test]
    fn ports_reach_a_plugin_that_is_chained_and_declares_the_capability() {
        assert_eq!(
            chained(r#""type": "portmap""#),
            [
                "plugins[1].capabilities: portMappings is missing: runtimes pass no ports to be published"
            ]
        );
        let alone = r#""type": "portmap", "capabilities": {"portMappings": true}"#;
        assert_eq!(
            faults_of_last(&[alone]),
            ["plugins[0]: must be called as chained plugin"]
        );
    }

    #[test]
    fn what_the_plugin_takes_is_no_fault() {
        for keys in [
            "",
            r#""backend": "nftables", "conditionsV4": ["ip", "saddr", "192.0.2.0/24"], "conditionsV6": []"#,
            r#""reservedPorts": [22, "10248-10259", "53/udp"]"#,
            r#""BackEnd": "iptables", "conditionsV4": ["!", "-s", "192.0.2.0/24"], "markMasqBit": 0"#,
            r#""externalSetMarkChain": "KUBE-MARK-MASQ", "markMasqBit": null, "snat": true, "masqAll": true"#,
            r#""runtimeConfig": {"portMappings": [{"HostPort": 1, "ContainerPort": 1, "Protocol": "TCP", "HostIP": ""}], "mac": "x"}"#,
        ] {
            let none: [String; 0] = [];
            assert_eq!(faults(keys), none, "{keys}");
        }
    }
}
