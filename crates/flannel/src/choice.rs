//! Which subnets a node may take.

use cni::address::{number, numbered, width};
use ipnetwork::IpNetwork;

use crate::{Config, Pool, Subnet};

/// At most `most` subnets of the network that no lease in `taken` overlaps, the lowest first. The
/// caller takes one of them by chance, as flanneld does: nodes that start together then seldom
/// want the same.
pub fn free_subnets(config: &Config, taken: &[Subnet], most: usize) -> Vec<Subnet> {
    let mut v4_taken: Vec<_> = taken.iter().map(|it| IpNetwork::V4(it.v4)).collect();
    let mut v6_taken: Vec<_> = taken
        .iter()
        .filter_map(|it| it.v6.map(IpNetwork::V6))
        .collect();
    let v4 = free(&config.v4, &mut v4_taken, most).into_iter();
    let v4 = v4.filter_map(|it| match it {
        IpNetwork::V4(v4) => Some(v4),
        IpNetwork::V6(_) => None,
    });
    let Some(pool) = &config.v6 else {
        return v4.map(|v4| Subnet { v4, v6: None }).collect();
    };
    let v6 = free(pool, &mut v6_taken, most).into_iter();
    let v6 = v6.filter_map(|it| match it {
        IpNetwork::V6(v6) => Some(v6),
        IpNetwork::V4(_) => None,
    });
    v4.zip(v6)
        .map(|(v4, v6)| Subnet { v4, v6: Some(v6) })
        .collect()
}

/// Goes once through the sorted leases and the pool together.
fn free(pool: &Pool, taken: &mut [IpNetwork], most: usize) -> Vec<IpNetwork> {
    taken.sort_unstable();
    let step = 1u128 << (width(pool.network.ip()) - u32::from(pool.length));
    let last = number(pool.max.network());
    let mut at = number(pool.min.network());
    let mut found = Vec::new();
    let mut next = taken.iter().peekable();
    while at <= last && found.len() < most {
        // Those that end before this candidate.
        while next.next_if(|it| end(it) < at).is_some() {}
        match next.peek() {
            Some(it) if number(it.network()) < at + step => at = (end(it) | (step - 1)) + 1,
            _ => {
                found.extend(subnet(pool, at));
                let Some(following) = at.checked_add(step) else {
                    break;
                };
                at = following;
            }
        }
    }
    found
}

/// The last address.
fn end(network: &IpNetwork) -> u128 {
    number(network.broadcast())
}

fn subnet(pool: &Pool, at: u128) -> Option<IpNetwork> {
    IpNetwork::new(numbered(at, pool.network.ip()), pool.length).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Config {
        let text = format!(r#"{{{text}, "Backend": {{"Type": "vxlan"}}}}"#);
        Config::parse(text.as_bytes()).unwrap()
    }

    fn free(config: &Config, taken: &[&str]) -> Vec<String> {
        let taken: Vec<Subnet> = taken.iter().map(|it| it.parse().unwrap()).collect();
        let found = free_subnets(config, &taken, 3);
        found.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_lowest_that_no_lease_overlaps() {
        let config = config(r#""Network": "10.5.0.0/16""#);
        assert_eq!(
            free(&config, &[]),
            ["10.5.1.0-24", "10.5.2.0-24", "10.5.3.0-24"]
        );
        assert_eq!(
            free(
                &config,
                &["10.5.4.0-22", "10.5.1.0-24", "10.5.3.128-25", "10.9.0.0-24"]
            ),
            ["10.5.2.0-24", "10.5.8.0-24", "10.5.9.0-24"]
        );
    }

    #[test]
    fn a_full_network_has_none() {
        let config = config(r#""Network": "10.5.0.0/24", "SubnetLen": 26"#);
        assert_eq!(
            free(&config, &["10.5.0.64-26", "10.5.0.128-26"]),
            ["10.5.0.192-26"]
        );
        assert_eq!(free(&config, &["10.5.0.0-24"]), [""; 0]);
    }

    #[test]
    fn subnets_of_both_families_are_free() {
        let config =
            config(r#""Network": "10.5.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:5::/56""#);
        assert_eq!(
            free(&config, &["10.5.1.0-24&fd00:5:0:2::-64"]),
            [
                "10.5.2.0-24&fd00:5:0:1::-64",
                "10.5.3.0-24&fd00:5:0:3::-64",
                "10.5.4.0-24&fd00:5:0:4::-64"
            ]
        );
    }
}
