//! The ifb of an attachment: a link of the node that sends what the host end of the pod's veth pair
//! has received, so that it can be limited.
//!
//! It has the name that the Go plugin gives it, which does not depend on the pod's interface. Its
//! alias names the attachment. The kernel cannot set an alias when it creates a link, but it can
//! set the MAC address, which is derived from the network and the attachment. If another interface
//! of the container on the same network has an ifb of that name, this one gets another derived
//! name.

use anyhow::{Context, Result};
use cni::{Attachment, names};
use netlink::{Link, Mac, Netlink};

/// The beginning of the names of all ifbs.
const PREFIX: &str = "bwp";

/// The names to try, in this order.
fn names(owner: &Attachment) -> [String; 2] {
    let (network, id) = (&owner.network, &owner.container_id);
    let name = |text: &str| names::prefixed(15, PREFIX, text);
    [name(&format!("{network}{id}")), name(&owner.to_string())]
}

/// The address of the ifb of an attachment: four octets of the network, two of the attachment.
fn mac(owner: &Attachment) -> Mac {
    let [a, b, c, d]: [u8; 4] = names::octets(&owner.network);
    let [e, f]: [u8; 2] = names::octets(&owner.to_string());
    Mac::local([a, b, c, d, e, f])
}

/// Whether `link` is an ifb of an ADD on `network` that was killed before the ifb got its alias.
pub fn is_unfinished(link: &Link, network: &str) -> bool {
    let [a, b, c, d]: [u8; 4] = names::octets(network);
    let has_network = |mac: Mac| mac.0[..4] == Mac::local([a, b, c, d, 0, 0]).0[..4];
    link.is_kind("ifb")
        && link.name.starts_with(PREFIX)
        && link.alias.is_none()
        && !link.up
        && link.mac.is_some_and(has_network)
}

/// Finds the ifb of an attachment. An ifb without an alias was made by the Go plugin, or by an ADD
/// that was killed.
///
/// # Errors
/// What the kernel refuses.
pub fn find(host: &Netlink, owner: &Attachment) -> Result<Option<Link>> {
    let alias = owner.alias();
    for name in names(owner) {
        if let Some(link) = host.find_link(&name)?
            && link.is_kind("ifb")
            && link.alias.as_ref().is_none_or(|of| *of == alias)
        {
            return Ok(Some(link));
        }
    }
    Ok(None)
}

/// Adds the ifb of an attachment, up, with the MTU of the host end.
///
/// # Errors
/// `adding link: file exists`: other links have its names; what the kernel refuses.
pub fn add(host: &Netlink, owner: &Attachment, mtu: u32) -> Result<Link> {
    let [name, other] = names(owner);
    let mac = mac(owner);
    let link = match host.add_ifb(&name, mac, mtu) {
        Err(error) if error.is_exists() => host.add_ifb(&other, mac, mtu)?,
        added => added?,
    };
    host.set_up_with_alias(link.index, Some(&owner.alias()))
        .with_context(|| format!("set up {}", link.name))?;
    Ok(link)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_name_is_that_of_the_go_plugin() {
        let owner = Attachment::parse("mynet", "aaaabbbbccccdddd", "eth0").unwrap();
        let [first, second] = names(&owner);
        assert_eq!(first, "bwpac32b8ee4dcc");
        assert!(second != first && second.len() == 15);
    }

    #[test]
    fn without_an_alias_the_address_tells_the_network() {
        let owner = Attachment::parse("mynet", "aaaabbbbccccdddd", "eth0").unwrap();
        let made = Link {
            name: names(&owner)[0].clone(),
            kind: Some("ifb".to_owned()),
            mac: Some(mac(&owner)),
            ..Link::default()
        };
        assert!(is_unfinished(&made, "mynet"));
        assert!(!is_unfinished(&made, "other"));
        let up = Link {
            up: true,
            ..made.clone()
        };
        assert!(!is_unfinished(&up, "mynet"));
        let named = Link {
            alias: Some(owner.alias()),
            ..made
        };
        assert!(!is_unfinished(&named, "mynet"));
    }
}
