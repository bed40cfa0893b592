//! host-device: moves a device of the node into a pod. The device is the pod's alone, until DEL
//! returns it.

pub mod conf;
mod find;
pub mod plan;

use anyhow::{Context, Result, bail};
use cni::linked::Linked;
use cni::request::{Add, Check, Del, Gc, Status};
use cni::result::{AddResult, Interface};
use cni::{BestEffort, Call, Plugin, Undo, Version, delegate};
use netlink::{HardwareAddress, Netlink};
use wiring::{check, device, lease, pod, result};

pub use crate::conf::Conf;
pub use crate::plan::Plan;

/// The plugin.
pub struct HostDevice;

impl Plugin for HostDevice {
    const NAME: &'static str = "host-device";
    const LINKED: &'static [Linked] = &[host_local::LINKED];
    type Conf = Conf;

    fn add(request: &Add<Conf>, undo: &mut Undo) -> Result<AddResult> {
        let plan = Plan::new(&request.conf)?;
        let netns = pod::open_netns(&request.netns)?;
        let host = Netlink::open()?;
        let found = find::device(&host, &plan)?;
        let Some(device) = found.device else {
            // A program uses the device: only the result has the pod's addresses.
            let addressing = lease::addressing(request, &netns, false, undo)?;
            let interface = Interface {
                name: request.attachment.ifname.to_string(),
                pci_id: pci_id(&request.call, found.pci),
                ..Interface::default()
            };
            return Ok(result::of_interface(request, interface, addressing));
        };
        device::take(request, &host, &device, &netns, undo)?;
        let pod = pod::enter(request, &netns, false)?;
        let addressing = lease::addressing(request, &netns, false, undo)?;
        let configured = pod::configure(pod, addressing.as_ref())?;
        pod::announce(&configured);
        let interface = Interface {
            // Hardware addresses can have any length.
            mac: device.address.to_string(),
            pci_id: pci_id(&request.call, found.pci),
            ..result::interface(&configured.link)
        };
        Ok(result::of_interface(request, interface, addressing))
    }

    /// The addresses are released even if the device cannot be returned: they are removed from it
    /// then.
    fn del(request: &Del<Conf>) -> Result<()> {
        let mut all = BestEffort::new();
        pod::delete_and_release(&request.call, &mut all, |all| {
            all.step("return the device", || give_back(request));
            Some(())
        });
        all.finish()
    }

    fn check(request: &Check<Conf>) -> Result<()> {
        let plan = Plan::new(&request.conf)?;
        let netns = pod::open_netns(&request.netns)?;
        delegate::ipam_check(&request.call)?;
        let previous = request.prev_result()?;
        if find::is_left_to_a_program(&plan) {
            return Ok(());
        }
        let recorded = check::container(request, &previous)?;
        let pod = Netlink::open_in(&netns)?;
        check_device(&pod, recorded)?;
        check::layer_3(&pod, &recorded.name, &previous)
    }

    fn gc(request: &Gc<Conf>) -> Result<()> {
        let mut all = BestEffort::new();
        all.step("return devices", || device::collect(request));
        all.step("collect addresses", || delegate::ipam_gc(&request.call));
        all.finish()
    }

    /// Does not look for the device: a node is ready while a pod has it, and the runtime may select
    /// the device at ADD only.
    fn status(request: &Status<Conf>) -> Result<()> {
        match Plan::new(&request.conf) {
            Err(faults) if faults.first().error.msg != plan::NO_DEVICE => Err(faults.into()),
            _ => delegate::ipam_status(&request.call),
        }
    }
}

/// The address on the PCI bus, in results that can have it.
fn pci_id(call: &Call, pci: String) -> String {
    if call.version >= Version::V1_1_0 {
        pci
    } else {
        String::new()
    }
}

fn give_back(request: &Del<Conf>) -> Result<()> {
    let mut hint = request.conf.hint();
    // The device may have got another driver after ADD, so a note has precedence over this.
    let mut is_interface = true;
    if let Ok(plan) = Plan::new(&request.conf) {
        is_interface = !find::is_left_to_a_program(&plan);
        hint.present = find::present_name(&plan);
    }
    device::give_back(request, Some(&hint).filter(|_| is_interface))
}

fn check_device(pod: &Netlink, recorded: &Interface) -> Result<()> {
    let name = &recorded.name;
    let device = pod.find_device(name)?.filter(|it| it.link.name == *name);
    let missing = || format!("Container Interface name in prevResult: {name} not found");
    let device = device.with_context(missing)?;
    let wanted = &recorded.mac;
    let is = &device.address;
    if !wanted.is_empty() && wanted.parse::<HardwareAddress>().as_ref() != Ok(is) {
        bail!("Interface {name} Mac {wanted} doesn't match container Mac: {is}");
    }
    Ok(())
}
