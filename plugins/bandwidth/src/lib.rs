//! bandwidth: limits how fast a pod receives and sends.
//!
//! A chained plugin: it runs after the plugin that made the pod's veth pair. What the pod receives
//! is limited where the host end sends it. What the pod sends is redirected from the host end to an
//! ifb, and limited there.

mod check;
pub mod conf;
mod ifb;
pub mod plan;

use anyhow::{Context, Result};
use cni::request::{Add, Check, Del, Gc, Status};
use cni::{AddResult, Attachment, BestEffort, Plugin, Undo, Version, WithLabel};
use netlink::{Link, Netlink, Side};
use wiring::{alias, pod, port, result};

pub use crate::conf::Conf;
use crate::plan::Limit;
pub use crate::plan::Plan;

/// The plugin.
pub struct Bandwidth;

impl Plugin for Bandwidth {
    const NAME: &'static str = "bandwidth";
    // Results before 0.3.0 have no interfaces.
    const VERSIONS: &'static [Version] = Version::V0_3_0.and_later();
    type Conf = Conf;

    fn add(request: &Add<Conf>, undo: &mut Undo) -> Result<AddResult> {
        let (call, owner) = (&request.call, &request.attachment);
        let plan = Plan::new(&request.conf)?;
        let mut result = call.required_prev_result("must be called as chained plugin")?;
        if plan.is_unlimited() {
            return Ok(result);
        }
        let netns = pod::open_netns(&request.netns)?;
        let host = Netlink::open()?;
        let veth = port::host_end(&host, owner.ifname.as_str(), &netns, &result)?;
        remove_limits(&host, &veth, owner).context("remove the limits of an earlier ADD")?;
        push_remove(&host, &veth, owner, undo);
        if let Some(limit) = &plan.to_pod {
            shape(&host, &veth, &plan, limit, Side::Source)?;
        }
        if let Some(limit) = &plan.from_pod {
            let ifb = ifb::add(&host, owner, veth.mtu)?;
            shape(&host, &ifb, &plan, limit, Side::Destination)?;
            redirect(&host, &veth, &ifb)?;
            result.interfaces.push(result::interface(&ifb));
        }
        Ok(result.for_version(call.version))
    }

    /// The limits on the host end end with that link.
    fn del(request: &Del<Conf>) -> Result<()> {
        let host = Netlink::open()?;
        match ifb::find(&host, &request.attachment)? {
            Some(link) => Ok(host.remove(&link)?),
            None => Ok(()),
        }
    }

    fn check(request: &Check<Conf>) -> Result<()> {
        check::attachment(request, &Plan::new(&request.conf)?)
    }

    fn gc(request: &Gc<Conf>) -> Result<()> {
        let network = &request.call.network;
        let is_stale = alias::stale(network, &request.valid);
        let host = Netlink::open()?;
        let mut all = BestEffort::new();
        for link in host.list_links()?.iter().filter(|it| it.is_kind("ifb")) {
            if ifb::is_unfinished(link, network) || is_stale(link) {
                all.step(&link.name, || Ok(host.remove(link)?));
            }
        }
        all.finish()
    }

    fn status(request: &Status<Conf>) -> Result<()> {
        Plan::new(&request.conf)?;
        Ok(())
    }
}

/// Limits what `link` sends. `remote` is the address of the packets that is not the pod's.
fn shape(host: &Netlink, link: &Link, plan: &Plan, limit: &Limit, remote: Side) -> Result<()> {
    let queue = plan.queue(limit, link.mtu);
    let on = || format!("limit {}", link.name);
    host.add_shaper(link.index, &limit.numbers(link.mtu), plan.shaped, queue)
        .with_context(on)?;
    let shaped = plan.shaped == netlink::Shaped::Only;
    for subnet in &plan.subnets {
        host.add_subnet_filter(link.index, *subnet, remote, shaped)
            .with_context(on)?;
    }
    Ok(())
}

/// Has `ifb` send what `veth` receives. The kernel runs no other filter on a packet that an ifb has
/// sent, so those of a program such as Calico with eBPF would be skipped.
fn redirect(host: &Netlink, veth: &Link, ifb: &Link) -> Result<()> {
    match host.redirect(veth.index, ifb.index) {
        Err(error) if error.is_exists() => Err(error).details(format!(
            "another program filters what the pod sends (tc qdisc show dev {} ingress): only what \
             it receives can be limited (ingressRate)",
            veth.name
        )),
        done => Ok(done?),
    }
}

/// Removes the limits of an attachment: another ADD replaces them. The qdiscs of other programs
/// stay.
fn remove_limits(host: &Netlink, veth: &Link, owner: &Attachment) -> Result<()> {
    host.remove_shaper(veth.index)?;
    if let Some(ifb) = ifb::find(host, owner)? {
        host.remove_redirect(veth.index, ifb.index)?;
        host.remove(&ifb)?;
    }
    Ok(())
}

fn push_remove(host: &Netlink, veth: &Link, owner: &Attachment, undo: &mut Undo) {
    let (host, veth, owner) = (host.clone(), veth.clone(), owner.clone());
    undo.push("remove the limits", move || {
        remove_limits(&host, &veth, &owner)
    });
}
