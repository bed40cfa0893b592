//! vrf: puts a pod's interface into a VRF, a routing table of its own.
//!
//! A chained plugin: it runs after the plugin that made the pod's interface, and returns that
//! plugin's result. Interfaces of one pod may share a VRF: the first one creates it, the last one
//! removes it.

pub mod conf;
pub mod plan;

use anyhow::{Context, Result, bail};
use cni::request::{Add, Check, Del, Gc, Status};
use cni::{AddResult, Plugin, Undo, Version};
use netlink::{Kept, Link, Netlink};
use wiring::pod;

pub use crate::conf::Conf;
pub use crate::plan::Plan;

/// The plugin.
pub struct Vrf;

const NO_RESULT: &str = "missing prevResult from earlier plugin";

impl Plugin for Vrf {
    const NAME: &'static str = "vrf";
    // As the Go plugin.
    const VERSIONS: &'static [Version] = Version::V0_3_1.and_later();
    type Conf = Conf;

    fn add(request: &Add<Conf>, undo: &mut Undo) -> Result<AddResult> {
        let call = &request.call;
        let plan = Plan::new(&request.conf)?;
        let result = call.required_prev_result(NO_RESULT)?;
        attach(request, &plan, undo).context("cmdAdd failed")?;
        Ok(result.for_version(call.version))
    }

    /// Another ADD or DEL in the same pod may change the same VRF. A process of the pod can hold
    /// the lock, too, so DEL goes on without the lock if it must.
    fn del(request: &Del<Conf>) -> Result<()> {
        let Some(netns) = pod::find_netns(request.netns.as_ref())? else {
            return Ok(());
        };
        let _lock = pod::lock(&netns).map_err(|error| cni::log(format_args!("{error:#}")));
        let pod = Netlink::open_in(&netns)?;
        let links = pod.list_links()?;
        // A link of another kind is not ours, and was the reason for ADD to fail.
        let is_vrf = |it: &&Link| it.name == request.conf.vrfname && it.vrf_table.is_some();
        let Some(vrf) = links.iter().find(is_vrf) else {
            return Ok(());
        };
        let ifname = request.attachment.ifname.as_str();
        let is_member = |it: &&Link| it.name == ifname && it.master == Some(vrf.index);
        if let Some(link) = links.iter().find(is_member) {
            pod.clear_master(link.index)?;
        }
        Ok(remove_unused(&pod, vrf)?)
    }

    fn check(request: &Check<Conf>) -> Result<()> {
        let plan = Plan::new(&request.conf)?;
        request.call.required_prev_result(NO_RESULT)?;
        let pod = Netlink::open_in(&pod::open_netns(&request.netns)?)?;
        let vrf = pod.get_link(plan.name.as_str())?;
        plan.accept(&vrf)?;
        if !vrf.up {
            bail!("VRF {} is down", plan.name);
        }
        let ifname = request.attachment.ifname.as_str();
        match pod.find_link(ifname)? {
            Some(link) if link.master == Some(vrf.index) => Ok(()),
            _ => bail!("failed to find {ifname} associated to vrf {}", plan.name),
        }
    }

    /// A VRF is in the pod's namespace, and ends with it.
    fn gc(_: &Gc<Conf>) -> Result<()> {
        Ok(())
    }

    fn status(request: &Status<Conf>) -> Result<()> {
        Plan::new(&request.conf)?;
        Ok(())
    }
}

/// Moves the pod's interface into the VRF, which is created if necessary.
fn attach(request: &Add<Conf>, plan: &Plan, undo: &mut Undo) -> Result<()> {
    let netns = pod::open_netns(&request.netns)?;
    // Held from the choice of a table until the VRF has a member.
    let _lock = pod::lock(&netns)?;
    let pod = Netlink::open_in(&netns)?;
    let links = pod.list_links()?;
    let ifname = request.attachment.ifname.as_str();
    let link = links.iter().find(|it| it.name == ifname);
    let link = link.with_context(|| format!("could not get link by name {ifname}"))?;
    if let Some(master) = link.master {
        let master = links.iter().find(|it| it.index == master);
        let master = master.map_or("unknown", |it| it.name.as_str());
        bail!("interface {ifname} has already a master set: {master}");
    }
    let vrf = ensure(&pod, &links, plan, undo)?;
    let kept = pod.keep(link.index)?;
    push_detach(&pod, link, &vrf, &kept, undo);
    let moved = pod.move_into_vrf(link, &vrf, &kept);
    moved.with_context(|| format!("could not set vrf {} as master of {ifname}", vrf.name))
}

/// The VRF of `plan` among `links`, or a new one, up.
fn ensure(pod: &Netlink, links: &[Link], plan: &Plan, undo: &mut Undo) -> Result<Link> {
    let name = plan.name.as_str();
    if let Some(vrf) = links.iter().find(|it| it.name == name) {
        plan.accept(vrf)?;
        if !vrf.up {
            pod.set_up(vrf.index)?;
        }
        return Ok(vrf.clone());
    }
    let table = match plan.table {
        Some(table) => table,
        None => pod.find_free_table(links)?,
    };
    let (netlink, own) = (pod.clone(), name.to_owned());
    undo.push("delete the vrf", move || match netlink.find_link(&own)? {
        Some(vrf) if vrf.vrf_table == Some(table) => Ok(remove_unused(&netlink, &vrf)?),
        _ => Ok(()),
    });
    let added = pod.add_vrf(name, table);
    added.with_context(|| format!("could not add VRF {name}"))
}

fn push_detach(pod: &Netlink, link: &Link, vrf: &Link, kept: &Kept, undo: &mut Undo) {
    let (pod, index, vrf, kept) = (pod.clone(), link.index, vrf.index, kept.clone());
    undo.push("take the interface out of the vrf", move || {
        match pod.find_link_by_index(index)? {
            Some(link) if link.master == Some(vrf) => Ok(pod.move_out_of_vrf(&link, &kept)?),
            _ => Ok(()),
        }
    });
}

/// Deletes a VRF that has no member.
fn remove_unused(pod: &Netlink, vrf: &Link) -> Result<(), netlink::Error> {
    if pod.list_ports(vrf.index)?.is_empty() {
        pod.remove(vrf)?;
    }
    Ok(())
}
