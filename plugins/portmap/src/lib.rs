//! portmap: publishes ports of a pod on ports of the node.
//!
//! A chained plugin: it runs after the plugin that gave the pod its addresses, and returns that
//! plugin's result unchanged.

pub mod conf;
pub mod plan;

use anyhow::{Context, Result};
use cni::request::{Add, Check, Del, Gc, Status};
use cni::{AddResult, Code, Plugin, Undo, WithLabel};
use packet_filter::{Leftovers, Notice};
use wiring::localhost;

pub use crate::conf::Conf;
pub use crate::plan::Plan;

/// The plugin.
pub struct Portmap;

impl Plugin for Portmap {
    const NAME: &'static str = "portmap";
    type Conf = Conf;

    fn add(request: &Add<Conf>, undo: &mut Undo) -> Result<AddResult> {
        let plan = Plan::new(&request.conf).map_err(anyhow::Error::from);
        // The Go plugin's words, on ADD only.
        let plan = plan.context("failed to parse config")?;
        plan.admit(&request.conf.reserved_ports)?;
        let (call, owner) = (&request.call, &request.attachment);
        let previous = call.required_prev_result("must be called as chained plugin")?;
        let Some(wanted) = plan.wanted(owner, &previous) else {
            return Ok(previous);
        };
        let attachment = owner.clone();
        undo.push("remove published ports", move || {
            Leftovers::unpublish(&attachment, None)
        });
        let published = packet_filter::publish(&wanted.rules, wanted.backend)?;
        for Notice { mapping, from } in published.taken {
            let port = mapping.published_port();
            cni::log(format_args!(
                "host port {port}: taken over from {from} by {owner}"
            ));
        }
        localhost::let_through(&wanted.rules, published.by)?;
        Ok(previous)
    }

    /// Removes what belongs to the owner: the runtime may have lost the mappings, or call DEL with
    /// others. If they are those of ADD, it is quicker.
    fn del(request: &Del<Conf>) -> Result<()> {
        let owner = &request.attachment;
        let plan = Plan::new(&request.conf).ok();
        let known = plan.zip(request.call.prev_result_hint());
        let known = known.map(|(plan, previous)| plan.host_ports(owner, &previous));
        Leftovers::unpublish(owner, known.as_ref())
    }

    fn check(request: &Check<Conf>) -> Result<()> {
        let plan = Plan::new(&request.conf)?;
        let wanted = plan.wanted(&request.attachment, &request.prev_result()?);
        wanted.map_or(Ok(()), |it| {
            packet_filter::check_published(&it.rules, it.backend)
        })
    }

    fn gc(request: &Gc<Conf>) -> Result<()> {
        Leftovers::collect_published(&request.call.network, &request.valid)
    }

    fn status(request: &Status<Conf>) -> Result<()> {
        let plan = Plan::new(&request.conf)?;
        let opened = packet_filter::open(plan.backend).context("publish ports");
        opened.code(Code::NotAvailable).map(drop)
    }
}
