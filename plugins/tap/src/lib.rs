//! tap: gives a pod a tap device, which a program in the pod opens, such as a virtual machine.

pub mod conf;
mod label;
pub mod plan;

use anyhow::{Context, Result, bail};
use cni::linked::Linked;
use cni::request::{Add, Check, Del, Gc, Status};
use cni::result::AddResult;
use cni::{Attachment, Code, Plugin, SystemError, Undo, WithLabel, delegate};
use netlink::{Link, Netlink};
use netns::NetNs;
use wiring::check::{self, Expected};
use wiring::remains::Links;
use wiring::{lease, pod, result};

pub use crate::conf::Conf;
pub use crate::plan::Plan;

/// Its devices, as `ip link` shows them.
const LINKS: Links = Links {
    kind: "tun",
    parent_in_pod: true,
    vlan_id: None,
};

/// The plugin.
pub struct Tap;

impl Plugin for Tap {
    const NAME: &'static str = "tap";
    const LINKED: &'static [Linked] = &[host_local::LINKED];
    type Conf = Conf;

    fn add(request: &Add<Conf>, undo: &mut Undo) -> Result<AddResult> {
        let (call, owner) = (&request.call, &request.attachment);
        let [mac] = call.args(["MAC"])?;
        let plan = Plan::new(&request.conf, mac)?;
        let netns = pod::open_netns(&request.netns)?;
        let tap = create(&plan, owner, &netns, undo)?;
        let pod = netlink::enter(&netns, pod::marked(request))?;
        pod.mark()?;
        prepare(&plan, owner.ifname.as_str(), &netns)?;
        let addressing = lease::addressing(request, &netns, false, undo)?;
        let configured = pod::configure(pod, addressing.as_ref())?;
        pod::announce(&configured);
        if let Some(tap) = tap {
            // The last step, so that an ADD that is killed before leaves nothing.
            push_delete(owner, &netns, undo);
            tap.keep()?;
        }
        result::leave_to_del(request, addressing.as_ref(), undo);
        Ok(result::of_pod(request, &configured.link, addressing))
    }

    fn del(request: &Del<Conf>) -> Result<()> {
        LINKS.del(request)
    }

    fn check(request: &Check<Conf>) -> Result<()> {
        let [mac] = request.call.args(["MAC"])?;
        let plan = Plan::new(&request.conf, mac)?;
        let netns = pod::open_netns(&request.netns)?;
        delegate::ipam_check(&request.call)?;
        let previous = request.prev_result()?;
        let recorded = check::container(request, &previous)?;
        let pod = Netlink::open_in(&netns)?;
        let expected = Expected {
            shown_kind: "tap",
            missing: Some(format!("Cannot find container link {}", recorded.name)),
            ..Expected::of(LINKS.kind)
        };
        let link = expected.find(&pod, recorded)?;
        check_keys(&plan, &pod, &link)?;
        check::layer_3(&pod, &link.name, &previous)
    }

    fn gc(request: &Gc<Conf>) -> Result<()> {
        LINKS.gc(request)
    }

    fn status(request: &Status<Conf>) -> Result<()> {
        let plan = Plan::new(&request.conf, None)?;
        netlink::may_create_taps().code(Code::NotAvailable)?;
        if plan.label.is_some() {
            label::available().code(Code::NotAvailable)?;
        }
        delegate::ipam_status(&request.call)
    }
}

/// Creates the device. The kernel deletes it with the returned value, unless that is kept. With a
/// label it stays from the start.
fn create(
    plan: &Plan,
    owner: &Attachment,
    netns: &NetNs,
    undo: &mut Undo,
) -> Result<Option<netlink::Tap>> {
    let ifname = owner.ifname.as_str();
    let spec = plan.spec(ifname);
    let Some(label) = &plan.label else {
        let tap = netlink::Tap::create(&spec, netns);
        return Ok(Some(tap.map_err(|error| create_refused(error, ifname))?));
    };
    if Netlink::open_in(netns)?.find_link(ifname)?.is_some() {
        bail!("failed to rename tap to {ifname:?}: file exists");
    }
    push_delete(owner, netns, undo);
    label::create(&spec, label, netns)?;
    Ok(None)
}

/// The words of the Go plugin, which renames the device.
fn create_refused(error: anyhow::Error, ifname: &str) -> anyhow::Error {
    match error.downcast::<SystemError>() {
        Ok(error) if error.is_exists() => error
            .reword(format!("failed to rename tap to {ifname:?}"))
            .into(),
        Ok(error) => anyhow::Error::from(error).context("failed to create tap"),
        Err(error) => error,
    }
}

/// Pushes the deletion of the device by its name: no other link had the name before, so the device
/// is ours.
fn push_delete(owner: &Attachment, netns: &NetNs, undo: &mut Undo) {
    let (name, netns) = (owner.ifname.to_string(), netns.clone());
    undo.push(format!("delete tap {name}"), move || {
        Ok(Netlink::open_in(&netns)?.delete_link_of_kind(&name, LINKS.kind)?)
    });
}

/// Sets what the keys request: `ip link set NAME mtu MTU address MAC master BRIDGE`.
fn prepare(plan: &Plan, ifname: &str, netns: &NetNs) -> Result<()> {
    let pod = Netlink::open_in(netns)?;
    let index = pod.get_link(ifname)?.index;
    if let Some(mtu) = plan.mtu {
        pod.set_mtu(index, mtu)?;
    }
    if let Some(mac) = plan.mac {
        pod.set_mac(index, mac)?;
    }
    if let Some(bridge) = &plan.bridge {
        let found = pod.find_link(bridge)?;
        let found =
            found.with_context(|| format!("failed to get bridge {bridge}: Link not found"))?;
        pod.set_master(index, found.index).map_err(|error| {
            error.reword(format!(
                "failed to set tap {ifname} as a port of bridge {bridge}"
            ))
        })?;
    }
    Ok(())
}

fn check_keys(plan: &Plan, pod: &Netlink, link: &Link) -> Result<()> {
    let name = &link.name;
    if let Some(mtu) = plan.mtu.filter(|mtu| *mtu != link.mtu) {
        bail!("MTU of {name} is {}, not {mtu}", link.mtu);
    }
    if let Some(bridge) = &plan.bridge {
        let found = pod.find_link(bridge)?.map(|it| it.index);
        if found.is_none() || found != link.master {
            bail!("{name} is no port of bridge {bridge}");
        }
    }
    Ok(())
}
