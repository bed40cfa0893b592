//! The keys of static; the texts of faults are the plugin's own.

use anyhow::Result;
use cni::Cidr;
use cni::address::parse_ip;
use cni::version::Version;
use static_ipam::plan::{Address, Plan};
use std::collections::HashSet;
use std::net::IpAddr;

use super::findings::Findings;
use super::host_local::is_link_local;
use super::schema::{self, Key, Kind, Others};
use super::{Conf, Plugin, routes, specification};

/// What is known of it.
pub const PLUGIN: Plugin = Plugin {
    name: "static",
    keys: KEYS,
    check,
    read,
};

const KEYS: &[Key] = &[
    Key::new(
        "addresses",
        Kind::List(&Kind::Object(ADDRESS_KEYS, Others::AreMistakes)),
    ),
    Key::new(
        "routes",
        Kind::List(&Kind::Object(routes::KEYS, Others::AreMistakes)),
    ),
    Key::new(
        "dns",
        Kind::Object(specification::DNS_KEYS, Others::AreMistakes),
    ),
];

const ADDRESS_KEYS: &[Key] = &[
    Key::required("address", Kind::Parsed(cidr)),
    Key::new("gateway", Kind::ADDRESS),
    // "4" or "6" in old configurations; nobody looks at it.
    Key::new("version", Kind::Text),
];

fn cidr(text: &str) -> Result<(), String> {
    let parsed = text.parse::<Cidr>().map(drop);
    parsed.map_err(|_| {
        format!("the 'address' field is expected to be in CIDR notation, got: '{text}'")
    })
}

/// The pods' addresses and their gateways; none where the configuration has a fault.
pub fn addresses(conf: &Conf<'_>) -> Vec<(Cidr, Option<IpAddr>)> {
    let plan = plan(conf).ok();
    let addresses = plan.map(|plan| plan.addresses).unwrap_or_default();
    let pair = |it: Address| (it.cidr, it.gateway);
    addresses.into_iter().map(pair).collect()
}

fn read(conf: &Conf<'_>) -> Result<()> {
    plan(conf).map(drop)
}

fn plan(conf: &Conf<'_>) -> Result<Plan> {
    Ok(Plan::new(&conf.keys()?, conf.version, "")?)
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
    let items = schema::items(ipam.get("addresses"));
    if items.is_empty() && !conf.has_capability("ips") {
        let reason = "none: they have to come from IP in CNI_ARGS or args.cni.ips";
        findings.warning(&schema::join(&place, "addresses"), reason);
    }
    let mut of_family = [0, 0];
    let mut seen = HashSet::new();
    for (index, item) in items.iter().enumerate() {
        let place = schema::join(&place, &format!("addresses[{index}]"));
        let text = |key| schema::text(item.get(key)).unwrap_or_default();
        let Ok(address) = text("address").parse::<Cidr>() else {
            continue;
        };
        of_family[usize::from(address.ip().is_ipv4())] += 1;
        if !seen.insert(address) {
            let reason = format!("{address} is there twice: an interface cannot have it twice");
            findings.error(&schema::join(&place, "address"), reason);
        }
        let outside = |gateway: &std::net::IpAddr| {
            gateway.is_ipv4() != address.ip().is_ipv4()
                || !address.0.contains(*gateway) && !is_link_local(*gateway)
        };
        if let Some(gateway) = parse_ip(&text("gateway")).ok().filter(outside) {
            let reason =
                format!("{gateway} is not in {address}: containers cannot reach it directly");
            findings.warning(&schema::join(&place, "gateway"), reason);
        }
    }
    if conf.version < Version::V0_3_0 && of_family.into_iter().max() > Some(1) {
        let version = conf.version;
        let reason =
            format!("CNI version {version} does not support more than 1 address per family");
        findings.error(&schema::join(&place, "addresses"), reason);
    }
}

#[cfg(test)]
mod tests {
    use crate::validate::tests::{faults, faults_at};

    fn ipam(keys: &str) -> String {
        format!(r#""type": "bridge", "ipam": {{"type": "static", {keys}}}"#)
    }

    #[test]
    fn faults_have_the_plugins_words() {
        for (keys, expected) in [
            (
                r#""addresses": [{"address": "10.0.0.2"}]"#,
                "ipam.addresses[0].address: the 'address' field is expected to be in CIDR notation, got: '10.0.0.2'",
            ),
            (
                r#""addresses": [{"gateway": "10.0.0.1"}]"#,
                "ipam.addresses[0].address: missing",
            ),
            (
                r#""addresses": [{"address": "10.0.0.2/24", "gateway": "10.0.1.1"}]"#,
                "ipam.addresses[0].gateway: 10.0.1.1 is not in 10.0.0.2/24: containers cannot reach it directly",
            ),
            (
                r#""dns": {}"#,
                "ipam.addresses: none: they have to come from IP in CNI_ARGS or args.cni.ips",
            ),
        ] {
            assert_eq!(
                faults(&ipam(keys)),
                [format!("plugins[0].{expected}")],
                "{keys}"
            );
        }
        let two = r#""addresses": [{"address": "10.0.0.2/24"}, {"address": "10.0.1.2/24"}]"#;
        assert_eq!(
            faults_at("0.2.0", &ipam(two)),
            [
                "plugins[0].ipam.addresses: CNI version 0.2.0 does not support more than 1 address per family"
            ]
        );
    }

    #[test]
    fn what_the_plugin_takes_is_no_fault() {
        let keys = r#""addresses": [{"version": "4", "address": "10.0.0.2/24", "gateway": "10.0.0.1"},
                                    {"address": "fd00::2/64"}],
                      "routes": [{"dst": "0.0.0.0/0"}], "dns": {"nameservers": ["10.0.0.1"]}"#;
        assert!(faults(&ipam(keys)).is_empty());
        let from_the_runtime = r#""type": "bridge", "capabilities": {"ips": true},
                                  "ipam": {"type": "static"}"#;
        assert!(faults(from_the_runtime).is_empty());
    }
}
