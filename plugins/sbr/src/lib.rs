//! sbr: routes the packets of a pod's addresses by tables of their own, so that they leave by the
//! interface that has the address.
//!
//! A chained plugin: it runs after the plugin that made the pod's interface, and returns that
//! plugin's result unchanged.

pub mod conf;
pub mod moves;
pub mod plan;

use anyhow::{Context, Result};
use cni::request::{Add, Check, Del, Gc, Status};
use cni::{AddResult, Code, Plugin, Undo, WithLabel};
use netlink::{Family, Netlink, WholeRoute};
use netns::NetNs;

pub use crate::conf::Conf;
use crate::moves::{Left, Pod, Restored, Table};
pub use crate::plan::Plan;

/// The plugin.
pub struct Sbr;

impl Plugin for Sbr {
    const NAME: &'static str = "sbr";
    type Conf = Conf;

    fn add(request: &Add<Conf>, undo: &mut Undo) -> Result<AddResult> {
        let plan = Plan::new(&request.conf)?;
        let missing = "This plugin must be called as chained plugin";
        let previous = request.call.required_prev_result(missing)?;
        let ifname = request.attachment.ifname.as_str();
        let sources = plan.sources(&previous, ifname)?;
        let netns = NetNs::open(request.netns.as_path())?;
        // Two interfaces of a pod may be added at once: both would choose the same table.
        let _lock = wiring::pod::lock(&netns)?;
        let netlink = Netlink::open_in(&netns)?;
        if let Some(number) = plan.table {
            for table in moves::rules_only(number, &sources, &netlink.list_rules()?) {
                fill(&netlink, &table, undo)?;
            }
            return Ok(previous);
        }
        let link = netlink.get_link(ifname);
        let link =
            link.map_err(|error| error.reword(format!("Cannot find network interface {ifname}")))?;
        let pod = read(&netlink, link.index)?;
        for table in moves::tables(&sources, &pod) {
            fill(&netlink, &table, undo)?;
        }
        // Only when all tables have their routes, so that an error leaves the pod as it was.
        for left in moves::left(&plan, &sources, &pod) {
            leave(&netlink, left, undo)?;
        }
        Ok(previous)
    }

    /// Takes no lock, because the pod could hold it. It needs none, as it chooses no table.
    fn del(request: &Del<Conf>) -> Result<()> {
        wiring::pod::in_netns(request.netns.as_ref(), |netlink| {
            let ifname = request.attachment.ifname.as_str();
            let mut addresses = Vec::new();
            let plan = Plan::new(&request.conf).unwrap_or_default();
            if let Some(previous) = request.call.prev_result_hint() {
                let sources = plan.sources(&previous, ifname).unwrap_or_default();
                addresses.extend(sources.iter().map(|it| it.address.ip()));
            }
            let link = netlink.find_link(ifname)?;
            if let Some(link) = &link {
                let listed = netlink.list_addresses(link.index, None)?;
                addresses.extend(listed.iter().map(|it| it.address.ip()));
            }
            let pod = read(netlink, link.map_or(0, |it| it.index))?;
            restore(netlink, &moves::restored(&addresses, plan.table, &pod))
        })
    }

    fn check(request: &Check<Conf>) -> Result<()> {
        let plan = Plan::new(&request.conf)?;
        let ifname = request.attachment.ifname.as_str();
        // As with the Go plugin: without a result there is nothing to compare.
        let Some(previous) = request.call.prev_result()? else {
            return Ok(());
        };
        let sources = plan.sources(&previous, ifname)?;
        let netlink = Netlink::open_in(&wiring::pod::open_netns(&request.netns)?)?;
        let link = netlink.find_link(ifname)?;
        let link = link.with_context(|| format!("Interface name {ifname} not found"))?;
        let pod = read(&netlink, link.index)?;
        moves::check(&plan, &sources, &pod).map_err(anyhow::Error::msg)
    }

    /// Rules and routes end with their namespaces, which GC does not know.
    fn gc(_request: &Gc<Conf>) -> Result<()> {
        Ok(())
    }

    fn status(request: &Status<Conf>) -> Result<()> {
        Plan::new(&request.conf)?;
        let rules = Netlink::open()?.list_rules();
        rules.context("route by source").code(Code::NotAvailable)?;
        Ok(())
    }
}

/// Reads the rules and routes of the pod.
fn read(netlink: &Netlink, index: u32) -> Result<Pod> {
    let mut routes = netlink.list_whole_routes(Family::V4)?;
    routes.extend(netlink.list_whole_routes(Family::V6)?);
    let rules = netlink.list_rules()?;
    Ok(Pod {
        index,
        rules,
        routes,
    })
}

/// Adds the rule first: DEL finds the table of a killed ADD by it.
fn fill(netlink: &Netlink, table: &Table, undo: &mut Undo) -> Result<()> {
    let from = table.from;
    if !table.has_rule {
        let rule = netlink.add_rule(from, table.number)?;
        let netlink = netlink.clone();
        undo.push(format!("delete the rule for {from}"), move || {
            Ok(netlink.delete_rule(&rule)?)
        });
    }
    for route in &table.routes {
        add(netlink, route, undo)?;
    }
    Ok(())
}

fn add(netlink: &Netlink, route: &WholeRoute, undo: &mut Undo) -> Result<()> {
    if netlink.append_whole_route(route)? {
        let (netlink, route) = (netlink.clone(), route.clone());
        undo.push(format!("delete the route to {}", route.dst), move || {
            Ok(netlink.delete_whole_route(&route)?)
        });
    }
    Ok(())
}

/// Removes a route before another takes its place: the kernel adds no second one to the same next
/// hop.
fn leave(netlink: &Netlink, (route, hinted): Left, undo: &mut Undo) -> Result<()> {
    netlink.delete_whole_route(&route)?;
    let (back, again) = (netlink.clone(), route.clone());
    undo.push(format!("add the route to {} again", route.dst), move || {
        back.append_whole_route(&again)?;
        Ok(())
    });
    hinted.map_or(Ok(()), |hinted| add(netlink, &hinted, undo))
}

/// Gives the routes back first, and removes the rules last: if it is killed, another DEL finds the
/// rest. A route that the kernel refuses for good is only logged, because the pod can cause that.
fn restore(netlink: &Netlink, restored: &Restored) -> Result<()> {
    for route in &restored.hints {
        netlink.delete_whole_route(route)?;
    }
    for route in &restored.back {
        match netlink.append_whole_route(route) {
            Err(error) if error.is_for_good() => cni::log(format_args!("{error}")),
            added => drop(added?),
        }
    }
    for route in &restored.removed {
        netlink.delete_whole_route(route)?;
    }
    for rule in &restored.rules {
        netlink.delete_rule(rule)?;
    }
    Ok(())
}
