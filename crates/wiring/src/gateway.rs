//! The pods' gateway: its addresses on an interface of the host, and forwarding.

use anyhow::{Context, Result, bail};
use cni::{Call, Code};
use ipnetwork::IpNetwork;
use netlink::{AddressSpec, Family, Link, Netlink, sysctl};

use crate::requested;

/// Makes sure that `link` has every one of `addresses`. All pods of the network
/// want the same ones, so they stay when the pods go. `what` begins the error;
/// an address in the way is replaced if `force` is set.
///
/// # Errors
/// `"cni0" already has an IP address different from 10.1.0.1/24`; what the
/// kernel refuses.
pub fn ensure_addresses(
    host: &Netlink,
    link: &Link,
    addresses: &[IpNetwork],
    force: bool,
    what: &'static str,
) -> Result<()> {
    for address in addresses {
        ensure_address(host, link, *address, force).context(what)?;
    }
    Ok(())
}

/// What an interface lacks to be the pods' gateway. Programs that configure a node's network
/// take it away when they do not know the interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Missing {
    /// Whether the interface is down.
    pub down: bool,
    /// Those of its addresses that it does not have.
    pub addresses: Vec<IpNetwork>,
}

/// What `link` lacks to be up and have every one of `addresses`.
///
/// # Errors
/// The kernel cannot be asked.
pub fn missing(host: &Netlink, link: &Link, addresses: &[IpNetwork]) -> Result<Missing> {
    let present = match addresses {
        [] => Vec::new(),
        _ => host.list_addresses(link.index, None)?,
    };
    let is_missing = |wanted: &&IpNetwork| !present.iter().any(|it| it.address == **wanted);
    Ok(Missing {
        down: !link.up,
        addresses: addresses.iter().filter(is_missing).copied().collect(),
    })
}

/// The address of `link` beside which it cannot have `address`.
///
/// # Errors
/// The kernel cannot be asked.
pub fn obstacle(host: &Netlink, link: &Link, address: IpNetwork) -> Result<Option<IpNetwork>> {
    let present = host.list_addresses(link.index, Some(Family::of(address.ip())))?;
    let mut present = present.into_iter().map(|it| it.address);
    Ok(present.find(|other| in_the_way(*other, address)))
}

/// CHECK: whether `link` is up and has every one of `addresses`.
///
/// # Errors
/// `Interface cni0 is down`, `Interface cni0 has no address 10.1.0.1/24`.
pub fn check(host: &Netlink, link: &Link, addresses: &[IpNetwork]) -> Result<()> {
    let missing = missing(host, link, addresses)?;
    let name = &link.name;
    if missing.down {
        bail!("Interface {name} is down: podwire resync sets it up");
    }
    match missing.addresses.first() {
        Some(address) => bail!(
            "Interface {name} has no address {address}, which is the pods' gateway: podwire resync \
             puts it back"
        ),
        None => Ok(()),
    }
}

/// Has the host forward in the families of `addresses`.
///
/// # Errors
/// `failed to enable forwarding`, with the sysctl that could not be written.
pub fn ensure_forwarding(host: &Netlink, addresses: &[IpNetwork]) -> Result<()> {
    for family in [Family::V4, Family::V6] {
        if addresses.iter().any(|it| Family::of(it.ip()) == family) {
            host.enable_forwarding(family)
                .context("failed to enable forwarding")?;
        }
    }
    Ok(())
}

/// STATUS: whether `interface` of the host, which need not be there yet, could be the gateway
/// of the subnets that `ipam` has.
///
/// # Errors
/// Code 50: `failed to enable forwarding: …`, `net.ipv6.conf.cni0.disable_ipv6 is 1`.
pub fn status(call: &Call, host: &Netlink, interface: &str) -> Result<()> {
    let unavailable = |why: String| Code::NotAvailable.err(why);
    let subnets = requested::written_subnets(call);
    for family in [Family::V4, Family::V6] {
        if !subnets.iter().any(|it| Family::of(it.ip()) == family) {
            continue;
        }
        host.may_enable_forwarding(family)
            .map_err(|error| unavailable(format!("failed to enable forwarding: {error}")))?;
        if family == Family::V6 && ipv6_is_disabled(host, interface)? {
            let why = format!("net.ipv6.conf.{interface}.disable_ipv6 is 1");
            return Err(unavailable(why).into());
        }
    }
    Ok(())
}

/// One that is not there yet is born with the default.
fn ipv6_is_disabled(host: &Netlink, interface: &str) -> Result<bool> {
    let name = match host.find_link(interface)? {
        Some(link) => link.name,
        None => "default".to_owned(),
    };
    let key = sysctl::interface_key("ipv6", &name, "disable_ipv6");
    Ok(sysctl::read(&key).is_ok_and(|value| value == "1"))
}

/// Makes sure that `link` has `address`.
///
/// An interface is the gateway of one IPv4 subnet, and of any number of IPv6
/// subnets that do not overlap; an address in the way is replaced if `force`
/// is set.
fn ensure_address(host: &Netlink, link: &Link, address: IpNetwork, force: bool) -> Result<()> {
    let present = host.list_addresses(link.index, Some(Family::of(address.ip())))?;
    if present.iter().any(|other| other.address == address) {
        return Ok(());
    }
    let name = &link.name;
    for other in present
        .iter()
        .filter(|other| in_the_way(other.address, address))
    {
        if !force {
            bail!("{name:?} already has an IP address different from {address}");
        }
        host.delete_address(link.index, other.address)
            .with_context(|| format!("could not remove IP address from {name:?}"))?;
    }
    let spec = AddressSpec {
        // It is ours by configuration. Until detection is over, pods could not
        // reach their gateway.
        nodad: address.is_ipv6(),
        ..address.into()
    };
    match host.add_address_to(link, &spec) {
        // The ADD of another pod was quicker.
        Err(error) if error.is_exists() => Ok(()),
        other => {
            other.with_context(|| format!("could not add IP address to {name:?}"))?;
            if address.is_ipv6() {
                host.await_local(address.ip());
            }
            Ok(())
        }
    }
}

/// The first two of `addresses` that cannot be on one interface: an ADD fails when it adds
/// the second.
pub fn clash(addresses: &[IpNetwork]) -> Option<(IpNetwork, IpNetwork)> {
    let pairs = addresses.iter().enumerate().flat_map(|(index, address)| {
        let before = addresses[..index].iter();
        before.map(move |other| (*other, *address))
    });
    pairs
        .filter(|(other, address)| other != address && other.is_ipv4() == address.is_ipv4())
        .find(|(other, address)| in_the_way(*other, *address))
}

pub(crate) fn in_the_way(other: IpNetwork, address: IpNetwork) -> bool {
    match address {
        IpNetwork::V4(_) => true,
        // Every interface has one of its own already, and may have more.
        IpNetwork::V6(address) if address.ip().is_unicast_link_local() => false,
        IpNetwork::V6(_) => other.contains(address.ip()) || address.contains(other.ip()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_other_ipv4_address_and_overlapping_ipv6_subnets_are_in_the_way() {
        let clash = |a: &str, b: &str| in_the_way(a.parse().unwrap(), b.parse().unwrap());
        assert!(clash("10.0.0.1/8", "192.168.0.1/24"));
        assert!(clash("2001:db8:1::1/48", "2001:db8:1:2::1/64"));
        assert!(clash("2001:db8:1:2::1/64", "2001:db8:1::1/48"));
        assert!(!clash("fe80::1/64", "2001:db8:1::1/48"));
        assert!(!clash("fe80::a8bb:ccff:fedd:eeff/64", "fe80::1/64"));
    }

    #[test]
    fn gateways_of_one_interface_are_compared_within_their_family() {
        let of = |texts: &[&str]| {
            let parsed: Vec<_> = texts.iter().map(|it| it.parse().unwrap()).collect();
            super::clash(&parsed).map(|(one, other)| format!("{one} {other}"))
        };
        assert_eq!(of(&["10.1.0.1/24", "fd00::1/64", "fd01::1/64"]), None);
        assert_eq!(of(&["10.1.0.1/24", "10.1.0.1/24"]), None);
        assert_eq!(
            of(&["fd00::1/64", "10.1.0.1/24", "10.2.0.1/24"]).as_deref(),
            Some("10.1.0.1/24 10.2.0.1/24")
        );
    }
}
