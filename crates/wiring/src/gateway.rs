//! The pods' gateway: addresses on an interface of the host, and forwarding.

use anyhow::{Context, Result, bail};
use cni::{Call, Code, WithLabel};
use ipnetwork::IpNetwork;
use netlink::{AddressSpec, Family, Link, Netlink, sysctl};

use crate::{Gateway, requested};

/// ADD: makes `link` the gateway with `addresses`, and enables forwarding in their families. All
/// pods of the network share the addresses, so they stay when the pods go; so do the addresses that
/// are the gateways of other subnets of the configuration. `action` begins the error about an address.
///
/// # Errors
/// `"cni0" already has an IP address different from 10.1.0.1/24`; what the kernel refuses;
/// `failed to enable forwarding`, with the sysctl.
pub fn ensure(
    call: &Call,
    (host, link): (&Netlink, &Link),
    gateway: Gateway,
    addresses: &[IpNetwork],
    action: &'static str,
) -> Result<()> {
    let Gateway::Gateway { force, .. } = gateway else {
        return Ok(());
    };
    // A pod with two gateways of one family on one bridge is an error, as in Go.
    let of_one_pod = clash(addresses).is_some();
    let others = || {
        if of_one_pod {
            Vec::new()
        } else {
            requested::written_subnets(call)
        }
    };
    for address in addresses {
        ensure_address(host, link, *address, force, others).context(action)?;
    }
    for family in [Family::V4, Family::V6] {
        if addresses.iter().any(|it| Family::of(it.ip()) == family) {
            host.enable_forwarding(family)
                .context("failed to enable forwarding")?;
        }
    }
    Ok(())
}

/// What an interface lacks to be the pods' gateway. Programs that configure a node's network, such
/// as NetworkManager, remove addresses from interfaces that they do not know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Missing {
    /// Whether the interface is down.
    pub down: bool,
    /// The addresses that are missing.
    pub addresses: Vec<IpNetwork>,
}

/// Whether `link` is down, and which of `addresses` it does not have.
///
/// # Errors
/// What the kernel refuses.
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

/// The address of `link` that conflicts with `address`, and is not one of `wanted`, the gateways of
/// other subnets.
///
/// # Errors
/// What the kernel refuses.
pub fn obstacle(
    host: &Netlink,
    link: &Link,
    address: IpNetwork,
    wanted: &[IpNetwork],
) -> Result<Option<IpNetwork>> {
    let present = host.list_addresses(link.index, Some(Family::of(address.ip())))?;
    let mut present = present.into_iter().map(|it| it.address);
    Ok(
        present
            .find(|other| conflicts(*other, address) && !are_neighbours(*other, address, wanted)),
    )
}

/// CHECK: whether `link` is up and has all of `addresses`.
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

/// STATUS: whether `interface` of the host, which need not exist yet, can be the gateway of the
/// subnets in `ipam`. `None` stands for an interface that each ADD creates.
///
/// # Errors
/// Code 50: `failed to enable forwarding: …`, `net.ipv6.conf.cni0.disable_ipv6 is 1`.
pub fn status(call: &Call, host: &Netlink, interface: Option<&str>) -> Result<()> {
    let subnets = requested::written_subnets(call);
    for family in [Family::V4, Family::V6] {
        if !subnets.iter().any(|it| Family::of(it.ip()) == family) {
            continue;
        }
        host.may_enable_forwarding(family)
            .context("failed to enable forwarding")
            .code(Code::NotAvailable)?;
        if family == Family::V6 && ipv6_is_disabled(host, interface)? {
            let name = interface.unwrap_or("default");
            let why = format!("net.ipv6.conf.{name}.disable_ipv6 is 1");
            return Err(Code::NotAvailable.err(why).into());
        }
    }
    Ok(())
}

/// An interface that does not exist yet gets the default when it is created.
fn ipv6_is_disabled(host: &Netlink, interface: Option<&str>) -> Result<bool> {
    let link = interface.map(|name| host.find_link(name)).transpose()?;
    let name = link
        .flatten()
        .map_or_else(|| "default".to_owned(), |it| it.name);
    let key = sysctl::interface_key("ipv6", &name, "disable_ipv6");
    Ok(sysctl::read(&key).is_ok_and(|value| value == "1"))
}

/// Makes sure that `link` has `address`. With `force`, it replaces a conflicting address; without
/// it, a conflict is an error. An address in another one of `subnets` is no conflict; `subnets` is
/// called only if necessary.
///
/// # Errors
/// `"cni0" already has an IP address different from 10.1.0.1/24`; what the kernel refuses.
pub fn ensure_address(
    host: &Netlink,
    link: &Link,
    address: IpNetwork,
    force: bool,
    subnets: impl Fn() -> Vec<IpNetwork>,
) -> Result<()> {
    let present = host.list_addresses(link.index, Some(Family::of(address.ip())))?;
    if present.iter().any(|other| other.address == address) {
        return Ok(());
    }
    let name = &link.name;
    let present = present.iter().map(|other| other.address);
    for other in present.filter(|other| conflicts(*other, address)) {
        if are_neighbours(other, address, &subnets()) {
            continue;
        }
        if !force {
            bail!("{name:?} already has an IP address different from {address}");
        }
        host.delete_address(link.index, other)
            .with_context(|| format!("could not remove IP address from {name:?}"))?;
    }
    let spec = AddressSpec {
        // Pods could not reach their gateway during duplicate address detection.
        nodad: address.is_ipv6(),
        ..address.into()
    };
    match host.add_address_to(link, &spec) {
        // A concurrent ADD added it.
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

/// Whether two addresses are in different subnets of a network: pods get addresses of the second
/// one when the first one is full.
fn are_neighbours(other: IpNetwork, address: IpNetwork, subnets: &[IpNetwork]) -> bool {
    let of = |address: IpNetwork| {
        let is_its = |it: &&IpNetwork| it.prefix() == address.prefix() && it.contains(address.ip());
        subnets.iter().find(is_its)
    };
    matches!((of(other), of(address)), (Some(one), Some(two)) if one != two)
}

/// The first two of `addresses` that cannot be on one interface: ADD fails when it adds the second.
pub fn clash(addresses: &[IpNetwork]) -> Option<(IpNetwork, IpNetwork)> {
    let pairs = addresses.iter().enumerate().flat_map(|(index, address)| {
        let before = addresses[..index].iter();
        before.map(move |other| (*other, *address))
    });
    pairs
        .filter(|(other, address)| other != address && other.is_ipv4() == address.is_ipv4())
        .find(|(other, address)| conflicts(*other, *address))
}

/// An interface is the gateway of one IPv4 subnet, and of any number of IPv6 subnets that do not
/// overlap.
pub(crate) fn conflicts(other: IpNetwork, address: IpNetwork) -> bool {
    match address {
        IpNetwork::V4(_) => true,
        // Every interface has a link-local address already, and may have more.
        IpNetwork::V6(address) if address.ip().is_unicast_link_local() => false,
        IpNetwork::V6(_) => other.contains(address.ip()) || address.contains(other.ip()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_other_ipv4_address_and_overlapping_ipv6_subnets_are_conflicts() {
        let clash = |a: &str, b: &str| conflicts(a.parse().unwrap(), b.parse().unwrap());
        assert!(clash("10.0.0.1/8", "192.168.0.1/24"));
        assert!(clash("2001:db8:1::1/48", "2001:db8:1:2::1/64"));
        assert!(clash("2001:db8:1:2::1/64", "2001:db8:1::1/48"));
        assert!(!clash("fe80::1/64", "2001:db8:1::1/48"));
        assert!(!clash("fe80::a8bb:ccff:fedd:eeff/64", "fe80::1/64"));
    }

    #[test]
    fn gateways_of_two_subnets_of_a_network_are_neighbours() {
        let are = |a: &str, b: &str| {
            let subnets = ["10.1.0.0/24", "10.2.0.0/16"].map(|it| it.parse().unwrap());
            are_neighbours(a.parse().unwrap(), b.parse().unwrap(), &subnets)
        };
        assert!(are("10.1.0.1/24", "10.2.0.1/16"));
        assert!(!are("10.1.0.1/24", "10.1.0.2/24"));
        assert!(!are("10.1.0.1/16", "10.2.0.1/16"));
        assert!(!are("192.0.2.1/24", "10.2.0.1/16"));
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
