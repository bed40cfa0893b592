//! The keys of dhcp; the texts of faults are the plugin's own.

use super::findings::Findings;
use super::schema::{self, Key, Kind, Others};
use super::{Conf, Plugin, routes, specification};
use ::dhcp::plan::Plan;
use anyhow::Result;

/// What is known of it.
pub const PLUGIN: Plugin = Plugin {
    name: "dhcp",
    keys: KEYS,
    check,
    read,
};

const KEYS: &[Key] = &[
    Key::new("daemonSocketPath", Kind::Text),
    Key::new(
        "provide",
        Kind::List(&Kind::Object(PROVIDE_KEYS, Others::AreMistakes)),
    ),
    Key::new(
        "request",
        Kind::List(&Kind::Object(REQUEST_KEYS, Others::AreMistakes)),
    ),
    Key::new("priority", Kind::UNSIGNED),
    Key::new("suppress", Kind::List(&Kind::Parsed(suppressed))),
    Key::new(
        "routes",
        Kind::List(&Kind::Object(routes::KEYS, Others::AreMistakes)),
    ),
    Key::new(
        "dns",
        Kind::Object(specification::DNS_KEYS, Others::AreMistakes),
    ),
];

const PROVIDE_KEYS: &[Key] = &[
    Key::required("option", Kind::Parsed(provided)),
    Key::new("value", Kind::Text),
    Key::new("fromArg", Kind::Text),
];

const REQUEST_KEYS: &[Key] = &[
    Key::new("option", Kind::Parsed(|name| number(name).map(drop))),
    Key::new("skipDefault", Kind::Bool),
];

/// The names that the plugin knows, or a number.
fn number(name: &str) -> Result<u8, String> {
    match name {
        "subnet-mask" => Ok(1),
        "router" | "routers" => Ok(3),
        "host-name" => Ok(12),
        "vendor-class-identifier" => Ok(60),
        "dhcp-client-identifier" => Ok(61),
        "user-class" => Ok(77),
        name => name.parse().map_err(|_| {
            format!(
                "Can not parse option {name:?}: neither a known name nor a number from 0 to 255"
            )
        }),
    }
}

fn provided(name: &str) -> Result<(), String> {
    match number(name)? {
        0 | 50 | 52..=55 | 57 | 255 => Err(format!("option {name:?} is set by the client itself")),
        _ => Ok(()),
    }
}

fn suppressed(name: &str) -> Result<(), String> {
    match number(name)? {
        0 | 1 | 50..=55 | 57 | 255 => Err(format!(
            "option {name:?} cannot be suppressed: there is no lease without it"
        )),
        _ => Ok(()),
    }
}

fn read(conf: &Conf<'_>) -> Result<()> {
    Plan::new(&conf.keys()?, "")?;
    Ok(())
}

fn check(conf: &Conf<'_>, findings: &mut Findings) {
    let Some(ipam) = conf.document.get("ipam") else {
        return;
    };
    let place = conf.place_of("ipam");
    routes::check(
        ipam.get("routes"),
        &schema::join(&place, "routes"),
        findings,
    );
    for (index, item) in schema::items(ipam.get("provide")).iter().enumerate() {
        let text = |key| schema::text(item.get(key)).unwrap_or_default();
        let place = schema::join(&place, &format!("provide[{index}]"));
        let (option, value) = (text("option"), text("value"));
        if value.len() > 255 {
            let reason = format!("value too long for option {option:?}: {value:?}");
            findings.error(&schema::join(&place, "value"), reason);
        } else if value.is_empty() && text("fromArg").is_empty() {
            findings.warning(&place, "neither value nor fromArg: nothing is sent");
        }
    }
    let socket = schema::text(ipam.get("daemonSocketPath")).unwrap_or_default();
    if !socket.is_empty() && !socket.starts_with('/') {
        let reason = "not an absolute path: it depends on the runtime's working directory";
        findings.warning(&schema::join(&place, "daemonSocketPath"), reason);
    }
    if conf.flag("isGateway") || conf.flag("isDefaultGateway") {
        let reason =
            "the node becomes the gateway that the DHCP server names, on the server's own segment";
        findings.warning(&conf.place_of("isGateway"), reason);
    }
}

#[cfg(test)]
mod tests {
    use crate::validate::tests::faults;

    fn ipam(keys: &str) -> String {
        format!(r#""type": "bridge", "ipam": {{"type": "dhcp"{keys}}}"#)
    }

    #[test]
    fn faults_have_the_plugins_words() {
        let long = "x".repeat(256);
        for (keys, expected) in [
            (
                r#", "provide": [{"option": "nope", "value": "x"}]"#.to_owned(),
                "provide[0].option: Can not parse option \"nope\": neither a known name nor a number from 0 to 255".to_owned(),
            ),
            (
                r#", "provide": [{"option": "53", "value": "x"}]"#.into(),
                "provide[0].option: option \"53\" is set by the client itself".into(),
            ),
            (
                format!(r#", "provide": [{{"option": "12", "value": "{long}"}}]"#),
                format!("provide[0].value: value too long for option \"12\": \"{long}\""),
            ),
            (
                r#", "provide": [{"option": "12"}]"#.into(),
                "provide[0]: neither value nor fromArg: nothing is sent".into(),
            ),
            (
                r#", "request": [{"option": "256"}]"#.into(),
                "request[0].option: Can not parse option \"256\": neither a known name nor a number from 0 to 255".into(),
            ),
            (
                r#", "daemonSocketPath": "dhcp.sock""#.into(),
                "daemonSocketPath: not an absolute path: it depends on the runtime's working directory".into(),
            ),
        ] {
            assert_eq!(faults(&ipam(&keys)), [format!("plugins[0].ipam.{expected}")]);
        }
        let gateway = r#""type": "bridge", "isGateway": true, "ipam": {"type": "dhcp"}"#;
        assert_eq!(
            faults(gateway),
            [
                "plugins[0].isGateway: the node becomes the gateway that the DHCP server names, on the server's own segment"
            ]
        );
    }

    #[test]
    fn what_the_plugin_takes_is_no_fault() {
        let keys = r#", "daemonSocketPath": "/run/cni/dhcp.sock", "priority": 5,
            "provide": [{"option": "host-name", "fromArg": "K8S_POD_NAME"}, {"option": "60", "value": "x"}],
            "request": [{"option": "42"}, {"option": "routers", "skipDefault": true}]"#;
        assert!(faults(&ipam(keys)).is_empty());
        assert!(faults(&ipam("")).is_empty());
    }
}
