//! Which of its networks has a container's default route.

use std::cmp::Reverse;
use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context, Result};
use cni::AddResult;
use netlink::{Family, Netlink, Route, RouteFilter, RouteSpec};
use netns::NetNs;
use networks::{Cache, CachedAttachment};

use crate::journal::{Journal, natural};

/// Gives each family's default route to the network with the highest number; of several, to the
/// first interface. Only networks whose ADD has returned a default route count.
///
/// # Errors
/// The namespace cannot be opened; the kernel refuses the route.
pub fn choose(netns: &str, container_id: &str, cache: &Cache, journal: &Journal) -> Result<()> {
    let entries = journal.of_container(container_id)?;
    let priority = |ifname: &str| {
        let mut entries = entries.iter();
        let entry = entries.find(|it| it.attachment.ifname == ifname);
        entry.map_or(0, |it| it.gateway_priority)
    };
    let mut attachments = cache.of_container(container_id)?;
    attachments.sort_by_key(|it| (Reverse(priority(&it.ifname)), natural(&it.ifname)));
    let netlink = Netlink::open_in(&NetNs::open(Path::new(netns))?)?;
    for family in [Family::V4, Family::V6] {
        let gateway = |it: &CachedAttachment| {
            let result = it.add_result().ok()??;
            Some((it.ifname.clone(), default_gateway(&result, family)?))
        };
        if let Some((ifname, gateway)) = attachments.iter().find_map(gateway) {
            let what = || format!("set the default route through {ifname}");
            prefer(&netlink, family, &ifname, gateway).with_context(what)?;
        }
    }
    Ok(())
}

/// The next hop of the result's default route; `None` without one.
fn default_gateway(result: &AddResult, family: Family) -> Option<Option<IpAddr>> {
    let of_family = |is_v4: bool| is_v4 == (family == Family::V4);
    let mut routes = result.routes.iter();
    let route = routes.find(|it| it.dst.is_default() && of_family(it.dst.0.is_ipv4()))?;
    let mut gateways = result.ips.iter().filter_map(|it| it.gateway);
    let gateway = route
        .gw
        .or_else(|| gateways.find(|it| of_family(it.is_ipv4())));
    Some(gateway)
}

/// `ip route prepend default via GATEWAY dev IFNAME`, unless it is the first one already. IPv4 keeps
/// the others behind it, for CHECK and for the time after a disconnect. IPv6 would share the packets
/// among them, so they are deleted.
fn prefer(netlink: &Netlink, family: Family, ifname: &str, gateway: Option<IpAddr>) -> Result<()> {
    let index = netlink.get_link(ifname)?.index;
    let mut routes = netlink.list_routes(RouteFilter::main(family))?;
    routes.retain(|it| it.dst.prefix() == 0);
    if routes.first().is_some_and(|it| it.oif == Some(index)) && family == Family::V4 {
        return Ok(());
    }
    let own = |it: &&Route| it.oif == Some(index);
    let mut there = routes.iter().any(|it| own(&it));
    for route in &routes {
        let is_own = own(&route);
        if is_own != (family == Family::V4) {
            continue;
        }
        let spec = RouteSpec {
            gw: route.gw,
            priority: route.priority,
            ..RouteSpec::to(route.dst)
        };
        netlink.delete_route(route.oif.unwrap_or_default(), &spec)?;
        there &= !is_own;
    }
    if there {
        return Ok(());
    }
    let everything = match family {
        Family::V4 => "0.0.0.0/0",
        Family::V6 => "::/0",
    };
    let spec = RouteSpec {
        gw: gateway,
        ..RouteSpec::to(everything.parse()?)
    };
    Ok(netlink.add_route(index, &spec)?)
}
