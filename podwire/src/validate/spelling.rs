//! Names and keys with a slip of the fingers.

/// Plugins that other names may be a slip of.
pub const COMMON_NAMES: &[&str] = &[
    "bandwidth",
    "bridge",
    "calico",
    "cilium-cni",
    "dhcp",
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
    let near = known
        .iter()
        .map(|name| (distance(&word, &name.to_lowercase()), *name));
    let (away, name) = near.min()?;
    (1..=most).contains(&away).then_some(name)
}

/// How many letters must be added, dropped, replaced or swapped with the next one to turn
/// `other` into `one` (Damerau-Levenshtein).
fn distance(one: &str, other: &str) -> usize {
    let (one, other): (Vec<char>, Vec<char>) = (one.chars().collect(), other.chars().collect());
    let mut before: Vec<usize> = Vec::new();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for i in 0..one.len() {
        let mut next = vec![i + 1];
        for j in 0..other.len() {
            let replaced = row[j] + usize::from(one[i] != other[j]);
            let mut least = replaced.min(row[j + 1] + 1).min(next[j] + 1);
            if i > 0 && j > 0 && one[i] == other[j - 1] && one[i - 1] == other[j] {
                least = least.min(before[j - 1] + 1);
            }
            next.push(least);
        }
        before = std::mem::replace(&mut row, next);
    }
    row[other.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn misspellings_are_counted() {
        for (one, other, expected) in [
            ("", "", 0),
            ("abc", "", 3),
            ("brigde", "bridge", 1),
            ("isgatway", "isgateway", 1),
            ("kitten", "sitting", 3),
        ] {
            assert_eq!(distance(one, other), expected, "{one} {other}");
            assert_eq!(distance(other, one), expected, "{other} {one}");
        }
    }

    #[test]
    fn the_nearest_name_is_suggested() {
        let known = ["isGateway", "isDefaultGateway", "mtu", "ipam"];
        assert_eq!(slip("isGatway", &known), Some("isGateway"));
        assert_eq!(slip("gateway", &known), Some("isGateway"));
        assert_eq!(slip("mtus", &known), Some("mtu"));
        assert_eq!(slip("isgateway", &known), None);
        assert_eq!(slip("x", &known), None);
        assert_eq!(slip("colour", &known), None);
    }
}
