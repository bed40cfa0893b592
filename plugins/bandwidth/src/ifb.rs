//! The ifb of an attachment: a link of the node that sends what the host end of the pod's veth pair
//! has received, so that it can be limited.
//!
//! Its name is that of the Go plugin, which does not contain the pod's interface. Its alias names
//! the attachment. If another interface of the container on the same network has an ifb of that
//! name, this one gets another derived name.

use anyhow::{Context, Result};
use cni::{Attachment, names};
use netlink::{Link, Mac, Netlink};

/// The names to try, in this order.
fn names(owner: &Attachment) -> [String; 2] {
    let (network, id) = (&owner.network, &owner.container_id);
    let name = |text: &str| names::prefixed(15, "bwp", text);
    [name(&format!("{network}{id}")), name(&owner.to_string())]
}

/// Finds the ifb of an attachment. One without an alias is the Go plugin's, or that of an ADD that
/// was killed.
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
    let mac = Mac::random()?;
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
}
