//! The pools from which a network gets a subnet if none is given.
//!
//! A pool file has the form of Docker's `default-address-pools`:
//! `[{"base": "10.208.0.0/12", "size": 24}]`. A family that it does not mention has the default.

use std::net::Ipv6Addr;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use cni::file::{self, LONGEST};
use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::span::Span;
use super::taken::Taken;

/// Where the file is, unless an option says otherwise.
pub const FILE: &str = "/etc/podwire/pools.json";

/// Subnets of one size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pool {
    base: IpNetwork,
    /// The prefix of the subnets.
    size: u8,
}

/// The pools in the order in which they are used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pools(Vec<Pool>);

impl Pools {
    /// Reads a pool file; without the file, the default pools.
    ///
    /// # Errors
    /// The file cannot be read, or has an invalid pool.
    pub fn read(path: &Path) -> Result<Self> {
        let mut pools = match file::read_chosen(path, LONGEST) {
            Err(error) if file::is_absent(&error) => Vec::new(),
            text => {
                let what = || format!("read the pools in {}", path.display());
                let text = text.with_context(what)?;
                Self::parse(&text).with_context(what)?
            }
        };
        for default in [ipv4(), ipv6()] {
            if !pools
                .iter()
                .any(|it| it.base.is_ipv4() == default.base.is_ipv4())
            {
                pools.push(default);
            }
        }
        Ok(Self(pools))
    }

    fn parse(text: &[u8]) -> Result<Vec<Pool>> {
        let pools: Vec<Pool> = serde_json::from_slice(text)?;
        for Pool { base, size } in &pools {
            ensure!(base.ip() == base.network(), "base {base}: host bits set");
            ensure!(
                (base.prefix()..=longest(*base)).contains(size),
                "base {base}: the size must be {} to {}, not {size}",
                base.prefix(),
                longest(*base)
            );
        }
        Ok(pools)
    }

    /// The first free subnet of a family, of the pools' size or with the prefix `size`.
    ///
    /// # Errors
    /// There is none: what is in the way.
    pub fn choose(&self, is_ipv4: bool, size: Option<u8>, taken: &[Taken]) -> Result<IpNetwork> {
        let mut obstacle = None;
        for pool in self.0.iter().filter(|it| it.base.is_ipv4() == is_ipv4) {
            let size = size.unwrap_or(pool.size);
            if size < pool.base.prefix() {
                continue;
            }
            match free(pool.base, size, taken) {
                Ok(subnet) => return Ok(subnet),
                Err(last) => obstacle = obstacle.or(Some((pool.base, last))),
            }
        }
        // The text is Docker's.
        const FULL: &str = "all predefined address pools have been fully subnetted";
        match (obstacle, size) {
            (Some((base, last)), _) => bail!("{FULL}: {base} overlaps with {last}"),
            (None, Some(size)) => bail!("{FULL}: no pool is as large as a /{size}"),
            (None, None) => bail!("{FULL}: no pool of this family"),
        }
    }
}

/// The longest prefix of a subnet in which a gateway and a container have addresses.
fn longest(base: IpNetwork) -> u8 {
    if base.is_ipv4() { 30 } else { 126 }
}

/// The first free block of `base`. Otherwise what the last of its addresses belong to.
fn free(base: IpNetwork, size: u8, taken: &[Taken]) -> Result<IpNetwork, &Taken> {
    let all = Span::of(base);
    let bits = if all.is_ipv4 { 32 } else { 128 } - u32::from(size);
    // A pool of all addresses as one block has no number for its length.
    let length = 1_u128.checked_shl(bits).unwrap_or(0).wrapping_sub(1);
    let mut obstacles: Vec<_> = taken.iter().map(|it| (Span::of(it.network), it)).collect();
    obstacles.retain(|(span, _)| span.overlaps(all));
    obstacles.sort_by_key(|(span, _)| span.first);
    let mut first = all.first;
    for (span, obstacle) in obstacles {
        if span.first > (first | length) {
            break;
        }
        if span.last >= first {
            // The next block after the obstacle, which may be larger or smaller than a block.
            let next = (span.last | length).checked_add(1);
            first = next.filter(|next| *next <= all.last).ok_or(obstacle)?;
        }
    }
    Ok(IpNetwork::new(all.address(first), size).unwrap_or(base))
}

/// 4096 networks. No well-known default is in it: Docker's, podman's and nerdctl's first ones,
/// Kubernetes' pods and services.
fn ipv4() -> Pool {
    Pool {
        base: Ipv4Network::new([10, 208, 0, 0].into(), 12)
            .map_or_else(|_| unreachable!(), IpNetwork::V4),
        size: 24,
    }
}

/// 65,536 networks in a prefix of this machine (RFC 4193, section 3.2.2, with the machine's id in
/// place of time and MAC, so that it stays).
fn ipv6() -> Pool {
    let id = file::read_chosen(Path::new("/etc/machine-id"), LONGEST).unwrap_or_default();
    let hash = Sha256::digest([b"podwire".as_slice(), &id].concat());
    let mut prefix = [0_u8; 16];
    prefix[0] = 0xfd;
    prefix[1..6].copy_from_slice(&hash[..5]);
    Pool {
        base: Ipv6Network::new(Ipv6Addr::from(prefix), 48)
            .map_or_else(|_| unreachable!(), IpNetwork::V6),
        size: 64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::taken::Holder;

    fn pools(text: &str) -> Pools {
        Pools(Pools::parse(text.as_bytes()).unwrap())
    }

    fn taken(networks: &[&str]) -> Vec<Taken> {
        let holder = Holder::Network {
            name: "other".into(),
            file: "/x".into(),
        };
        let taken = |it: &&str| Taken {
            network: it.parse().unwrap(),
            holder: holder.clone(),
        };
        networks.iter().map(taken).collect()
    }

    #[test]
    fn the_first_free_subnet_is_chosen() {
        let pools =
            pools(r#"[{"base": "10.0.0.0/22", "size": 24}, {"base": "10.9.0.0/24", "size": 25}]"#);
        for (used, size, expected) in [
            (&[][..], None, "10.0.0.0/24"),
            (&["10.0.0.128/25", "10.0.1.7/32"], None, "10.0.2.0/24"),
            (&["10.0.0.0/8", "fd00::/8"], Some(26), ""),
            (&["10.0.0.0/22"], None, "10.9.0.0/25"),
            (&["10.0.0.0/26"], Some(26), "10.0.0.64/26"),
            (&[], Some(8), ""),
        ] {
            let chosen = pools.choose(true, size, &taken(used));
            assert_eq!(chosen.map_or(String::new(), |it| it.to_string()), expected);
        }
        let error = pools
            .choose(true, None, &taken(&["10.0.0.0/8"]))
            .unwrap_err()
            .to_string();
        assert_eq!(
            error,
            "all predefined address pools have been fully subnetted: \
            10.0.0.0/22 overlaps with 10.0.0.0/8 of network other (/x)"
        );
    }

    #[test]
    fn the_default_pools_have_thousands_of_subnets() {
        let pools = Pools::read(Path::new("/nonexistent/pools.json")).unwrap();
        let mut used = Vec::new();
        for count in 0..4097 {
            match pools.choose(true, None, &used) {
                Ok(subnet) => used.extend(taken(&[&subnet.to_string()])),
                Err(_) => assert_eq!(count, 4096),
            }
        }
        let subnet = pools.choose(false, None, &[]).unwrap();
        assert!(subnet.prefix() == 64 && subnet.to_string().starts_with("fd"));
    }

    #[test]
    fn whole_families_and_wrong_pools() {
        let all = pools(r#"[{"base": "::/0", "size": 0}]"#);
        assert_eq!(all.choose(false, None, &[]).unwrap().to_string(), "::/0");
        assert!(all.choose(false, None, &taken(&["fd00::/8"])).is_err());
        for text in [
            r#"[{"base": "10.0.0.1/8", "size": 24}]"#,
            r#"[{"base": "10.0.0.0/8", "size": 31}]"#,
            r#"[{"base": "10.0.0.0/8", "size": 7}]"#,
            r#"[{"base": "10.0.0.0", "size": "x"}]"#,
            r#"[{"base": "10.0.0.0/8", "size": 24, "x": 1}]"#,
            "{}",
        ] {
            assert!(Pools::parse(text.as_bytes()).is_err(), "{text}");
        }
    }
}
