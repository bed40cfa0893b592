//! macvlan: gives a pod a MAC of its own on a network of the node.

mod check;
pub mod conf;
pub mod plan;

use anyhow::Result;
use cni::delegate;
use cni::linked::Linked;
use cni::request::{Add, Check, Del, Gc, Status};
use cni::result::AddResult;
use cni::{BestEffort, Plugin, Undo};
use wiring::{lease, parent, pod, remains, requested, result, shim};

pub use crate::conf::Conf;
pub use crate::plan::Plan;

/// The kind of its links, as `ip link add … type KIND`.
const KIND: &str = "macvlan";

/// The plugin.
pub struct Macvlan;

impl Plugin for Macvlan {
    const NAME: &'static str = "macvlan";
    const LINKED: &'static [Linked] = &[host_local::LINKED];
    type Conf = Conf;

    fn add(request: &Add<Conf>, undo: &mut Undo) -> Result<AddResult> {
        let (call, conf, owner) = (&request.call, &request.conf, &request.attachment);
        let [mac] = call.args(["MAC"])?;
        let plan = Plan::new(conf, mac)?;
        let netns = pod::open_netns(&request.netns)?;
        let socket = plan.parent.socket(&netns)?;
        let parent = plan.parent.find(&socket, KIND)?;
        if let Some(shim) = &plan.shim {
            shim.refuse_conflict(&owner.network, &parent.link)?;
        }

        let spec = plan.spec(owner, &parent)?;
        let added = socket.add_link(&spec, &netns, undo);
        added.map_err(|error| parent::create_refused(error, KIND, &parent, plan.why_invalid()))?;
        let interface = netlink::Interface {
            accept_ra: plan.accept_ra,
            ..pod::marked(request)
        };
        let pod = netlink::enter(&netns, interface)?;
        // Before IPAM is called: the detection of conflicts also finds addresses of the shim.
        let shim = plan.shim.as_ref();
        let shim = shim.map(|shim| shim.join(owner, &parent.link, undo));
        let shim = shim.transpose()?;
        let addressing = lease::addressing(request, &netns, plan.detect_conflicts, undo)?;
        if let (Some(shim), Some(addressing)) = (&shim, &addressing) {
            let requested = requested::asks_for_addresses(call, &conf.runtime_config, &conf.args);
            shim.add_routes(request, addressing, requested, undo)?;
        }
        let configured = pod::configure(pod, addressing.as_ref());
        let configured = configured.map_err(|error| parent::set_up_refused(error, &parent))?;
        pod::announce(&configured);
        result::leave_to_del(request, addressing.as_ref(), undo);
        Ok(result::of_pod(request, &configured.link, addressing))
    }

    fn del(request: &Del<Conf>) -> Result<()> {
        let conf = &request.conf;
        let mut all = BestEffort::new();
        pod::delete_and_release(&request.call, &mut all, |all| {
            // The addresses stay reserved while they are routed to this pod.
            let shim = conf.host_shim.as_ref();
            let left = all.step("leave the shim", || shim::del(request, shim));
            let deleted = all.step("delete the interface", || conf.links().delete(request));
            left.and(deleted)
        });
        all.finish()
    }

    fn check(request: &Check<Conf>) -> Result<()> {
        let [mac] = request.call.args(["MAC"])?;
        let plan = Plan::new(&request.conf, mac)?;
        let netns = pod::open_netns(&request.netns)?;
        delegate::ipam_check(&request.call)?;
        check::attachment(request, &plan, &netns)?;
        plan.shim.map_or(Ok(()), |shim| shim.check(request))
    }

    fn gc(request: &Gc<Conf>) -> Result<()> {
        let shim = request.conf.host_shim.as_ref();
        let mut all = BestEffort::new();
        all.step("delete macvlans", || remains::collect(request, KIND));
        all.step("collect the routes of the shim", || shim::gc(request, shim));
        all.step("collect addresses", || delegate::ipam_gc(&request.call));
        all.finish()
    }

    fn status(request: &Status<Conf>) -> Result<()> {
        let plan = Plan::new(&request.conf, None)?;
        if let Some(parent) = plan.parent.status(KIND, plan.detect_conflicts)? {
            parent::mtu_on(plan.mtu, parent.link.mtu)?;
            if let Some(shim) = &plan.shim {
                shim.refuse_conflict(&request.call.network, &parent.link)?;
            }
        }
        delegate::ipam_status(&request.call)
    }
}
