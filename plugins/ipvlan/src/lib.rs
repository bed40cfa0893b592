//! ipvlan: gives a pod addresses on a network of the node, with the MAC of the node.
//!
//! It may be chained: the result of the plugin before it then names the parent and, without
//! `ipam`, has the addresses.

mod check;
pub mod conf;
pub mod plan;

use anyhow::{Context, Result};
use cni::delegate;
use cni::linked::Linked;
use cni::request::{Add, Check, Del, Gc, Status};
use cni::result::AddResult;
use cni::{Code, Plugin, Undo};
use netlink::{Dad, Netlink, Parent};
use wiring::parent::{self, Master};
use wiring::remains::Links;
use wiring::{Addressing, Gateway, pod, result};

pub use crate::conf::Conf;
pub use crate::plan::Plan;

/// The kind of its links, as `ip link add … type KIND`.
const KIND: &str = "ipvlan";

/// The plugin.
pub struct Ipvlan;

impl Plugin for Ipvlan {
    const NAME: &'static str = "ipvlan";
    const LINKED: &'static [Linked] = &[host_local::LINKED];
    type Conf = Conf;

    fn add(request: &Add<Conf>, undo: &mut Undo) -> Result<AddResult> {
        let (call, owner) = (&request.call, &request.attachment);
        let previous = call.prev_result()?;
        let mut plan = Plan::new(&request.conf)?;
        plan.chain(previous.as_ref())?;
        // The kernel delivers packets to an ipvlan by its addresses, so it needs some.
        let given = previous.filter(|it| !it.ips.is_empty());
        if !call.has_ipam() && given.is_none() {
            return Err(Code::InvalidConfig.err("no plugin name provided").into());
        }
        let netns = pod::open_netns(&request.netns)?;
        let socket = plan.parent.socket(&netns)?;
        let parent = find_parent(&plan, &socket)?;

        let added = socket.add_link(&plan.spec(owner, &parent), &netns, undo);
        added.map_err(|error| parent::create_refused(error, KIND, &parent, INVALID))?;
        let interface = netlink::Interface {
            dad: Dad::Off,
            notify: true,
            ..pod::marked(request)
        };
        let mut pod = netlink::enter(&netns, interface)?;
        // There is no bridge port that has to forward first, and no MAC to set.
        pod.announce_early();
        pod.mark()?;
        let lease = match delegate::ipam_add(call, undo)? {
            Some(lease) => lease,
            None => given.unwrap_or_default(),
        };
        let addressing = Addressing::new(lease, Gateway::None);
        let configured = pod::configure(pod, Some(&addressing))?;
        configured.await_addresses();

        Ok(result::of_pod(request, &configured.link, Some(addressing)))
    }

    fn del(request: &Del<Conf>) -> Result<()> {
        links(&request.conf).del(request)
    }

    fn check(request: &Check<Conf>) -> Result<()> {
        let plan = Plan::new(&request.conf)?;
        let netns = pod::open_netns(&request.netns)?;
        delegate::ipam_check(&request.call)?;
        check::attachment(request, &plan, &netns)
    }

    fn gc(request: &Gc<Conf>) -> Result<()> {
        links(&request.conf).gc(request)
    }

    fn status(request: &Status<Conf>) -> Result<()> {
        let plan = Plan::new(&request.conf)?;
        // Without both keys it is chained, and STATUS has no result that names the parent.
        if request.call.has_ipam() || plan.parent.master != Master::DefaultRoute {
            plan.parent.status(KIND, false)?;
        }
        delegate::ipam_status(&request.call)
    }
}

/// Why the kernel refuses an ipvlan as invalid on a parent that is fit for one.
const INVALID: &str = "the kernel refuses its mode or MTU";

fn find_parent(plan: &Plan, socket: &Netlink) -> Result<Parent> {
    let parent = plan.parent.find(socket, KIND);
    match &plan.parent.master {
        Master::Named(name) => parent.with_context(|| format!("failed to lookup master {name:?}")),
        _ => parent,
    }
}

fn links(conf: &Conf) -> Links {
    Links {
        kind: KIND,
        parent_in_pod: conf.link_in_container,
        vlan_id: None,
    }
}
