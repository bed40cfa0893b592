//! bridge: join a pod to a Linux bridge by a veth pair, optionally with the
//! bridge as its gateway.

mod check;
mod conf;
mod plan;
mod vlan;

use std::process::ExitCode;

use anyhow::{Context, Result, anyhow};
use cni::delegate;
use cni::linked::Linked;
use cni::request::{Add, Check, Del, Gc, Status};
use cni::result::{AddResult, Interface};
use cni::{Attachment, BestEffort, Code, Plugin, Undo};
use netlink::{BridgeSpec, Link, Netlink, PortSpec};
use wiring::port::Wiring;
use wiring::{Addressing, Gateway, gateway, lease, outside, pod, port};

use crate::conf::{Conf, Mtu};
use crate::plan::{CONTAINER, Plan};

fn main() -> ExitCode {
    cni::run::<Bridge>()
}

struct Bridge;

impl Plugin for Bridge {
    const NAME: &'static str = "bridge";
    const LINKED: &'static [Linked] = &[host_local::LINKED];
    type Conf = Conf;

    fn add(request: &Add<Conf>, undo: &mut Undo) -> Result<AddResult> {
        let call = &request.call;
        let [mac] = call.args(["MAC"])?;
        let plan = Plan::new(&request.conf, call.has_ipam(), mac)?;
        let netns = pod::open_netns(&request.netns)?;
        let host = Netlink::open()?;

        let mtu = mtu_bytes(plan.mtu, &host)?;
        let bridge = ensure_bridge(&host, &plan, mtu)?;
        let wiring = Wiring {
            attachment: &request.attachment,
            netns: &netns,
            mac: plan.mac,
            mtu,
        };
        let pair = port::add_veth(&host, &bridge, &wiring, undo)?;
        attach(&host, &bridge, &pair.host, &plan, &request.attachment)?;
        if plan.spoof_check {
            outside::check_spoofing(&request.attachment, &pair, undo)?;
        }

        let mut addressing = None;
        if call.has_ipam() {
            let ifname = &request.attachment.ifname;
            let lease = match plan.detect_conflicts {
                true => lease::without_conflict(call, &netns, ifname, undo)?,
                false => delegate::ipam_add(call, undo)?,
            };
            addressing = Some(Addressing::new(lease, plan.gateway, CONTAINER));
        }
        let mut interfaces = vec![
            pod::host_interface(&bridge),
            pod::host_interface(&pair.host),
            port::container_interface(&pair, &request.netns),
        ];
        if plan.bring_up {
            let ifname = &request.attachment.ifname;
            let configured = pod::configure(&netns, ifname, addressing.as_ref(), plan.dad())?;
            interfaces.extend(ensure_gateway(&host, &bridge, &plan, addressing.as_ref())?);
            if let (Some(how), Some(addressing)) = (plan.masquerade, &addressing) {
                outside::masquerade(&request.attachment, addressing, how, undo)?;
            }
            let port = host.wait_for_port(pair.host.index)?;
            interfaces[1] = pod::host_interface(&port);
            pod::announce(&configured);
        }
        let result = pod::result(interfaces, addressing, &call.net.dns);
        Ok(result.for_version(call.version))
    }

    fn del(request: &Del<Conf>) -> Result<()> {
        let (attachment, netns) = (&request.attachment, request.netns.as_ref());
        let mut all = BestEffort::new();
        if request.conf.ip_masq && request.call.has_ipam() {
            // First: whose addresses they were is still to be seen.
            all.step("remove masquerade", || {
                outside::remove_masquerade(attachment, netns, &request.call)
            });
        }
        let released_first = pod::releases_over_the_link(&request.call);
        if released_first {
            all.step("release the addresses", || {
                delegate::ipam_del(&request.call)
            });
        }
        port::delete_pair(attachment, netns, &mut all);
        if request.conf.macspoofchk {
            all.step("remove spoof check", || {
                outside::remove_spoof_check(attachment)
            });
        }
        if request.call.has_ipam() && !released_first {
            // Last: nobody may get the address while something still answers to it.
            all.step("release the addresses", || {
                delegate::ipam_del(&request.call)
            });
        }
        all.finish()
    }

    fn check(request: &Check<Conf>) -> Result<()> {
        let plan = Plan::new(&request.conf, request.call.has_ipam(), None)?;
        let netns = pod::open_netns(&request.netns)?;
        if request.call.has_ipam() {
            delegate::ipam_check(&request.call)?;
        }
        let previous = check::attachment(request, &netns)?;
        if let (Some(how), true) = (plan.masquerade, request.call.has_ipam()) {
            outside::check_masquerade(&request.attachment, how, &previous)?;
        }
        if plan.spoof_check {
            outside::check_spoof_check(&request.attachment, &previous, CONTAINER as usize)?;
        }
        Ok(())
    }

    fn gc(request: &Gc<Conf>) -> Result<()> {
        let (network, valid) = (&request.call.network, &request.valid);
        let mut all = BestEffort::new();
        all.step("delete host veths", || {
            port::delete_stale_veths(network, valid)
        });
        if request.conf.macspoofchk {
            all.step("collect spoof checks", || {
                outside::collect_spoof_checks(network, valid)
            });
        }
        if request.conf.ip_masq {
            all.step("collect masquerade", || {
                nat::Leftovers::collect_masquerade(network, valid)
            });
        }
        if request.call.has_ipam() {
            all.step("collect addresses", || delegate::ipam_gc(&request.call));
        }
        all.finish()
    }

    fn status(request: &Status<Conf>) -> Result<()> {
        let plan = Plan::new(&request.conf, request.call.has_ipam(), None)?;
        let name = plan.bridge.as_str();
        let in_the_way = Netlink::open()?.find_link(name)?;
        if in_the_way.is_some_and(|link| !link.is_kind("bridge")) {
            return Err(Code::NotAvailable
                .err(format!("{name:?} already exists but is not a bridge"))
                .into());
        }
        if let Some(how) = plan.masquerade {
            nat::open(how.backend)
                .map_err(|error| Code::NotAvailable.err(format!("ipMasq: {error:#}")))?;
        }
        if request.call.has_ipam() {
            delegate::ipam_status(&request.call)?;
        }
        Ok(())
    }
}

/// The MTU to set; `None` leaves it to the kernel.
fn mtu_bytes(mtu: Mtu, host: &Netlink) -> Result<Option<u32>> {
    match mtu {
        Mtu::Kernel => Ok(None),
        Mtu::Bytes(bytes) => Ok(Some(u32::try_from(bytes)?)),
        Mtu::Auto => {
            let mtu = host.default_route_mtu()?;
            mtu.map(Some).ok_or_else(|| {
                anyhow!("mtu \"auto\": no default route to take it from; set it to a number")
            })
        }
    }
}

fn ensure_bridge(host: &Netlink, plan: &Plan, mtu: Option<u32>) -> Result<Link> {
    let name = plan.bridge.as_str();
    host.ensure_bridge(&BridgeSpec {
        name: name.to_owned(),
        mtu,
        vlan_filtering: plan.vlans.filtering(),
        promisc: plan.promisc,
    })
    .with_context(|| format!("failed to create bridge {name:?}"))
}

/// Sets up the host end as a port, and says whose it is.
fn attach(
    host: &Netlink,
    bridge: &Link,
    veth: &Link,
    plan: &Plan,
    attachment: &Attachment,
) -> Result<()> {
    let vlans_first = plan.vlans.any();
    let port = PortSpec {
        bridge: bridge.index,
        hairpin: plan.hairpin,
        isolated: plan.isolated,
        up: !vlans_first,
        alias: None,
    };
    port::attach(host, veth, port, attachment)?;
    if vlans_first {
        // No frame passes in a VLAN that is not the pod's.
        vlan::configure_port(host, veth, &plan.vlans)?;
        host.set_up(veth.index)?;
    }
    Ok(())
}

/// Gives the bridge, or the gateway interface of the VLAN, its addresses, and
/// has the host forward. Returns the gateway interface if there is one.
fn ensure_gateway(
    host: &Netlink,
    bridge: &Link,
    plan: &Plan,
    addressing: Option<&Addressing>,
) -> Result<Option<Interface>> {
    let (Gateway::Gateway { force, .. }, Some(addressing)) = (plan.gateway, addressing) else {
        return Ok(None);
    };
    let vlan = plan
        .has_vlan_gateway()
        .then(|| vlan::ensure_gateway_interface(host, bridge, plan))
        .transpose()?;
    let what = match vlan {
        Some(_) => "failed to set vlan interface for bridge with addr",
        None => "failed to set bridge addr",
    };
    let interface = vlan.as_ref().unwrap_or(bridge);
    gateway::ensure_addresses(host, interface, &addressing.gateways, force, what)?;
    gateway::ensure_forwarding(host, &addressing.gateways)?;
    Ok(vlan.as_ref().map(pod::host_interface))
}
