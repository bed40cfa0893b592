//! vlan: gives a pod one VLAN of an interface of the node.

mod check;
pub mod conf;
pub mod plan;

use anyhow::Result;
use cni::linked::Linked;
use cni::request::{Add, Check, Del, Gc, Status};
use cni::result::AddResult;
use cni::{Plugin, Undo, WithLabel, delegate};
use netlink::{Netlink, Parent};
use netns::NetNs;
use wiring::remains::Links;
use wiring::{lease, parent, pod, result};

pub use crate::conf::Conf;
pub use crate::plan::Plan;

/// The kind of its links, as `ip link add … type KIND`.
const KIND: &str = "vlan";

/// The plugin.
pub struct Vlan;

impl Plugin for Vlan {
    const NAME: &'static str = "vlan";
    const LINKED: &'static [Linked] = &[host_local::LINKED];
    type Conf = Conf;

    fn add(request: &Add<Conf>, undo: &mut Undo) -> Result<AddResult> {
        let plan = Plan::new(&request.conf, request.call.has_ipam())?;
        let netns = pod::open_netns(&request.netns).or_else(|error| {
            // The Go plugin checks the parent first, so this fault is reported first.
            find_on_node(&plan)?;
            Err(error)
        })?;
        let socket = plan.parent.socket(&netns)?;
        let parent = plan.parent.find(&socket, KIND)?;
        let spec = plan.spec(&request.attachment, &parent)?;
        let added = socket.add_link(&spec, &netns, undo);
        added.or_else(|error| explain(error, (&netns, &spec.name), &plan, &parent))?;
        let pod = netlink::enter(&netns, pod::marked(request))?;
        pod.mark()?;
        let addressing = lease::addressing(request, &netns, plan.detect_conflicts, undo)?;
        let configured = pod::configure(pod, addressing.as_ref())?;
        pod::announce(&configured);
        Ok(result::of_pod(request, &configured.link, addressing))
    }

    fn del(request: &Del<Conf>) -> Result<()> {
        links(&request.conf).del(request)
    }

    fn check(request: &Check<Conf>) -> Result<()> {
        let plan = Plan::new(&request.conf, request.call.has_ipam())?;
        let netns = pod::open_netns(&request.netns)?;
        delegate::ipam_check(&request.call)?;
        check::attachment(request, &plan, &netns)
    }

    fn gc(request: &Gc<Conf>) -> Result<()> {
        links(&request.conf).gc(request)
    }

    fn status(request: &Status<Conf>) -> Result<()> {
        let plan = Plan::new(&request.conf, request.call.has_ipam())?;
        if let Some(parent) = plan.parent.status(KIND, plan.detect_conflicts)? {
            parent::mtu_on(plan.mtu, parent.link.mtu)?;
        }
        delegate::ipam_status(&request.call)
    }
}

/// Adds to `error` why the kernel refuses the VLAN, unless the pod has an interface with the name: the
/// node, or another pod, has this VLAN of the parent.
fn explain(
    error: anyhow::Error,
    (netns, ifname): (&NetNs, &str),
    plan: &Plan,
    parent: &Parent,
) -> Result<()> {
    let refusal = error.downcast_ref::<netlink::Error>();
    let exists = refusal.is_some_and(netlink::Error::is_exists);
    if !exists || Netlink::open_in(netns)?.find_link(ifname)?.is_some() {
        return Err(error);
    }
    let (id, name) = (plan.id, &parent.link.name);
    Err(error).details(format!(
        "VLAN {id} of {name:?} is in use, by the node or another pod, and can be used once: for several \
         pods, make it on the node, and use it as master of macvlan or as a port of a bridge"
    ))
}

/// Fails if the node has no parent for the plan, or one with a smaller MTU. It does not look for a
/// parent in a container.
fn find_on_node(plan: &Plan) -> Result<()> {
    if let Some(parent) = plan.parent.on_node(KIND)? {
        parent::mtu_on(plan.mtu, parent.link.mtu)?;
    }
    Ok(())
}

/// Its link in a pod.
fn links(conf: &Conf) -> Links {
    Links {
        kind: KIND,
        parent_in_pod: conf.link_in_container,
        // DEL may have a configuration that ADD refused.
        vlan_id: conf.vlan_id.try_into().ok(),
    }
}
