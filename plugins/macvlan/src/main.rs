//! macvlan: give a pod a MAC of its own on the node's wire.

mod check;
mod parent;
mod remains;
mod shim;

use std::process::ExitCode;

use anyhow::{Result, anyhow};
use cni::delegate;
use cni::linked::Linked;
use cni::request::{Add, Check, Del, Gc, Status};
use cni::result::AddResult;
use cni::{BestEffort, Plugin, Undo, Version};
use netlink::{MacvlanMode, Parent};
use nix::errno::Errno;
use wiring::result::{self, Interfaces};
use wiring::{Addressing, Gateway, lease, pod};

use macvlan::{conf, pattern, plan};

use crate::conf::Conf;
use crate::plan::Plan;

fn main() -> ExitCode {
    cni::run::<Macvlan>()
}

struct Macvlan;

impl Plugin for Macvlan {
    const NAME: &'static str = "macvlan";
    const LINKED: &'static [Linked] = &[host_local::LINKED];
    type Conf = Conf;

    fn add(request: &Add<Conf>, undo: &mut Undo) -> Result<AddResult> {
        let call = &request.call;
        let [mac] = call.args(["MAC"])?;
        let plan = Plan::new(&request.conf, mac)?;
        let netns = pod::open_netns(&request.netns)?;
        let socket = parent::socket(&plan, &netns)?;
        let parent = parent::find(&socket, &plan.master)?;

        shim::refuse(&plan, &request.attachment.network, &parent.link)?;
        let spec = plan.spec(&request.attachment, &parent)?;
        socket
            .add_link(&spec, &netns, undo)
            .map_err(|error| why_not(error, plan.mode, &parent))?;
        // `detectConflicts` finds duplicates of IPv4 and IPv6 addresses.
        let wanted = netlink::Interface {
            alias: Some(request.attachment.alias()),
            accept_ra: plan.accept_ra,
            ..pod::interface(request, false)
        };
        let pod = netlink::enter(&netns, wanted)?;
        // Before addresses are asked for: who looks for conflicts finds the shim's.
        let shim = shim::join(request, &plan, &parent.link, undo)?;
        let lease = lease::acquire(request, &netns, plan.detect_conflicts, undo)?;
        let addressing = lease.map(|lease| Addressing::new(lease, Gateway::None));
        if let (Some(shim), Some(addressing)) = (&shim, &addressing) {
            shim.lay_routes(request, addressing, undo)?;
        }
        let configured =
            pod::configure(pod, addressing.as_ref()).map_err(|error| why_not_up(error, &parent))?;
        pod::announce(&configured);

        if addressing.is_none() && call.version < Version::V0_3_0 {
            // A result without an address cannot be told in these versions, so ADD is about
            // to fail. The link stays until DEL all the same: the Go plugin leaves it, its
            // suite looks for it, and it is a working one.
            undo.forget();
        }
        let interface = result::interface(&configured.link);
        let interfaces = Interfaces::default().pod(interface, &request.netns);
        Ok(interfaces.result(addressing, call))
    }

    fn del(request: &Del<Conf>) -> Result<()> {
        let mut all = BestEffort::new();
        pod::delete_and_release(&request.call, &mut all, |all| {
            // While the addresses are routed to this pod, no other may get them.
            let left = all.step("leave the shim", || shim::del(request));
            let deleted = all.step("delete the interface", || remains::delete(request));
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
        shim::check(request, &plan)
    }

    /// A macvlan is in its pod, and goes with it. One whose pod goes on is looked for.
    fn gc(request: &Gc<Conf>) -> Result<()> {
        let mut all = BestEffort::new();
        all.step("delete macvlans", || {
            remains::collect(&request.call.network, &request.valid)
        });
        all.step("collect the routes of the shim", || shim::gc(request));
        all.step("collect addresses", || delegate::ipam_gc(&request.call));
        all.finish()
    }

    fn status(request: &Status<Conf>) -> Result<()> {
        let plan = Plan::new(&request.conf, None)?;
        let parent = parent::status(&plan)?;
        if let Some(parent) = parent {
            shim::refuse(&plan, &request.call.network, &parent.link)?;
        }
        delegate::ipam_status(&request.call)
    }
}

/// The kernel says "invalid argument" and "busy" to many things; here these are
/// the two that are left.
fn why_not(error: anyhow::Error, mode: MacvlanMode, parent: &Parent) -> anyhow::Error {
    let name = &parent.link.name;
    let why = match (errno(&error), mode) {
        (Some(Errno::EINVAL), MacvlanMode::Passthru) => {
            "it has a macvlan already, and mode passthru wants it for itself"
        }
        (Some(Errno::EINVAL), _) => "it belongs to a macvlan of mode passthru alone",
        (Some(Errno::EBUSY), _) => parent::IS_A_PORT,
        _ => return error,
    };
    anyhow!(parent::why_not(name, why))
}

/// Two macvlans of one parent cannot be up with the same MAC.
fn why_not_up(error: anyhow::Error, parent: &Parent) -> anyhow::Error {
    let name = &parent.link.name;
    match errno(&error) {
        Some(Errno::EADDRINUSE) => anyhow!("another interface on {name:?} has this MAC: {error:#}"),
        _ => error,
    }
}

fn errno(error: &anyhow::Error) -> Option<Errno> {
    let error = error.downcast_ref::<netlink::Error>();
    error.map(netlink::Error::errno)
}
