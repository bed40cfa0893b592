//! Names and keys with a slip of the fingers.

use strsim::osa_distance;

/// Plugins that other names may be a slip of.
pub const COMMON_NAMES: &[&str] = &[
    "bandwidth",
    "bridge",
    "calico",
    "cilium-cni",
    "dhcp",
    "dnsname",
    "dummy",
    "firewall",
    "flannel",
    "host-device",
    "host-local",
    "ipvlan",
    "loopback",
    "macvlan",
    "multus",
    "portmap",
    "ptp",
    "sbr",
    "static",
    "tap",
    "tuning",
    "vlan",
    "vrf",
    "vxlan",
    "whereabouts",
];

/// The finding about a key without a reader.
pub fn unknown_key(name: &str, known: &[&str]) -> String {
    match slip(name, known) {
        Some(meant) => format!("unknown key; did you mean {meant}?"),
        None => "unknown key, ignored".to_owned(),
    }
}

/// The one of `known` that `word` is a misspelling of; `None` if `word` is one of them.
pub fn slip<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    let word = word.to_lowercase();
    // At most a third of a word may be wrong, or every short word resembles every other.
    let most = (word.len() / 3).min(3);
    let distance = |name: &str| osa_distance(&word, &name.to_lowercase());
    let (away, name) = known.iter().map(|name| (distance(name), *name)).min()?;
    (1..=most).contains(&away).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_suggested() {
        let known = ["isGateway", "isDefaultGateway", "mtu", "ipam"];
        assert_eq!(slip("isGatway", &known), Some("isGateway"));
        assert_eq!(slip("isGaetway", &known), Some("isGateway"));
        assert_eq!(slip("gateway", &known), Some("isGateway"));
        assert_eq!(slip("mtus", &known), Some("mtu"));
        assert_eq!(slip("isgateway", &known), None);
        assert_eq!(slip("x", &known), None);
        assert_eq!(slip("colour", &known), None);
    }
}
