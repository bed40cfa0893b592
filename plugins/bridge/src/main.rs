//! bridge: join a pod to a Linux bridge by a veth pair, optionally with the
//! bridge as its gateway.

mod check;

use std::process::ExitCode;

use anyhow::{Context, Result, anyhow};
use cni::delegate;
use cni::linked::Linked;
use cni::request::{Add, Check, Del, Gc, Status};
use cni::result::AddResult;
use cni::{Attachment, BestEffort, Code, Plugin, Undo};
use netlink::{BridgeSpec, Link, Netlink, PortSpec};
use packet_filter::Nftables;
use wiring::mtu::Mtu;
use wiring::port::Wiring;
use wiring::{Addressing, Gateway, gateway, lease, outside, pod, port, requested};

use bridge::{conf, plan, vlan};

use crate::conf::Conf;
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

        // Elsewhere any pod can send with any MAC: a refusal would keep nothing from it.
        if let Some(mac) = plan.mac.filter(|_| plan.spoof_check) {
            requested::refuse_taken_mac(&host, plan.bridge.as_str(), mac, &request.attachment)?;
        }
        let mut addressing = None;
        let needs_interface = plan.detect_conflicts || delegate::ipam_needs_interface(call);
        if asks_for_addresses(request) && !needs_interface {
            // Before anything is made: what it asks for may be the node's own.
            let lease = delegate::ipam_add(call, undo)?;
            addressing = decide(request, &host, &plan, lease)?;
        }

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

        let ifname = &request.attachment.ifname;
        let enter = || pod::enter(&netns, ifname, plan.dad(), call.has_ipam());
        let pod = plan.bring_up.then(enter).transpose()?;
        if addressing.is_none() {
            let lease = match plan.detect_conflicts {
                true => lease::without_conflict(call, &netns, ifname, undo)?,
                false => delegate::ipam_add(call, undo)?,
            };
            addressing = decide(request, &host, &plan, lease)?;
        }
        let mut interfaces = vec![
            pod::host_interface(&bridge),
            pod::host_interface(&pair.host),
            port::container_interface(&pair, &request.netns),
        ];
        if let Some(pod) = pod {
            let configured = pod::configure(pod, addressing.as_ref())?;
            let gateway = ensure_gateway(&host, &bridge, &plan, addressing.as_ref())?;
            if let (Some(gateway), true) = (&gateway, plan.has_vlan_gateway()) {
                interfaces.push(pod::host_interface(gateway));
            }
            let (attachment, bridge) = (&request.attachment, Some(plan.bridge.as_str()));
            let ips = addressing.as_ref().map_or(&[][..], |it| &it.ips);
            if let Some(isolation) = plan.isolation(&call.network, gateway.as_ref(), ips) {
                outside::isolate(attachment, &isolation, bridge, undo)?;
            }
            outside::masquerade(
                attachment,
                addressing.as_ref(),
                plan.masquerade,
                bridge,
                undo,
            )?;
            let port = host.wait_for_port(pair.host.index)?;
            interfaces[1] = pod::host_interface(&port);
            pod::announce(&configured);
        }
        let result = pod::result(interfaces, addressing, &call.net.dns);
        Ok(result.for_version(call.version))
    }

    fn del(request: &Del<Conf>) -> Result<()> {
        let extras = request.conf.extras();
        let mut all = BestEffort::new();
        let netns = request.netns.as_ref();
        port::detach(&request.call, &request.attachment, netns, extras, &mut all);
        all.finish()
    }

    fn check(request: &Check<Conf>) -> Result<()> {
        let plan = Plan::new(&request.conf, request.call.has_ipam(), None)?;
        let netns = pod::open_netns(&request.netns)?;
        delegate::ipam_check(&request.call)?;
        let previous = check::attachment(request, &plan, &netns)?;
        if let (Some(how), true) = (plan.masquerade.clone(), request.call.has_ipam()) {
            outside::check_masquerade(&request.attachment, how, &previous)?;
        }
        check::isolation(&plan, &request.call, &previous)?;
        if plan.spoof_check {
            outside::check_spoof_check(&request.attachment, &previous, CONTAINER as usize)?;
        }
        Ok(())
    }

    fn gc(request: &Gc<Conf>) -> Result<()> {
        let mut all = BestEffort::new();
        port::collect(&request.call, &request.valid, &mut all);
        all.finish()
    }

    fn status(request: &Status<Conf>) -> Result<()> {
        let plan = Plan::new(&request.conf, request.call.has_ipam(), None)?;
        let name = plan.bridge.as_str();
        let host = Netlink::open()?;
        let unavailable = |why: String| Code::NotAvailable.err(why);
        match host.find_link(name)? {
            Some(bridge) if bridge.is_kind("bridge") => port::refuse_full(&host, &bridge)?,
            Some(_) => {
                let why = format!("{name:?} already exists but is not a bridge");
                return Err(unavailable(why).into());
            }
            None => {}
        }
        if plan.gateway != Gateway::None {
            gateway::status(&request.call, &host, &gateway_name(&plan)?)?;
        }
        mtu_bytes(plan.mtu, &host).map_err(|error| unavailable(format!("{error:#}")))?;
        if plan.spoof_check && Nftables::find()?.is_none() {
            let why = "macspoofchk: the kernel lacks nf_tables".to_owned();
            return Err(unavailable(why).into());
        }
        if let Some(how) = plan.masquerade {
            packet_filter::open(how.backend)
                .map_err(|error| unavailable(format!("ipMasq: {error:#}")))?;
        }
        delegate::ipam_status(&request.call)
    }
}

/// Whether another than the operator may choose the pod's subnet.
fn asks_for_addresses(request: &Add<Conf>) -> bool {
    let (call, conf) = (&request.call, &request.conf);
    requested::asks_for_addresses(call, &conf.runtime_config, &conf.args)
}

/// Decides what the pod gets. Of a subnet that was asked for, the bridge may not be the gateway
/// where that takes something from the node.
fn decide(
    request: &Add<Conf>,
    host: &Netlink,
    plan: &Plan,
    lease: Option<AddResult>,
) -> Result<Option<Addressing>> {
    let Some(lease) = lease else {
        return Ok(None);
    };
    let addressing = Addressing::new(lease, plan.gateway, CONTAINER);
    if asks_for_addresses(request) && !addressing.gateways.is_empty() {
        let name = gateway_name(plan)?;
        requested::refuse_capture(&request.call, host, &name, &addressing.gateways)?;
    }
    Ok(Some(addressing))
}

/// The interface that is the pods' gateway.
fn gateway_name(plan: &Plan) -> Result<String> {
    let name = match plan.has_vlan_gateway() {
        true => plan.vlan_gateway_name()?,
        false => plan.bridge.clone(),
    };
    Ok(name.to_string())
}

/// The MTU to set; `None` leaves it to the kernel.
fn mtu_bytes(mtu: Mtu, host: &Netlink) -> Result<Option<u32>> {
    match mtu {
        Mtu::Unset => Ok(None),
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
    let vlan_filtering = plan.vlans.filtering();
    host.ensure_bridge(&BridgeSpec {
        name: name.to_owned(),
        mtu,
        vlan_filtering,
        promisc: plan.promisc,
    })
    .with_context(|| format!("failed to create bridge {name:?}"))
    .map_err(|error| match error.downcast_ref::<netlink::Error>() {
        Some(refused) if vlan_filtering && refused.is_unsupported() => {
            let needs = "vlan and vlanTrunk need a kernel with CONFIG_BRIDGE_VLAN_FILTERING";
            cni::Error::from_chain(&error).details(needs).into()
        }
        _ => error,
    })
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
/// has the host forward. Returns which of them is the gateway, if one is.
fn ensure_gateway(
    host: &Netlink,
    bridge: &Link,
    plan: &Plan,
    addressing: Option<&Addressing>,
) -> Result<Option<Link>> {
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
    let interface = vlan.unwrap_or_else(|| bridge.clone());
    gateway::ensure_addresses(host, &interface, &addressing.gateways, force, what)?;
    gateway::ensure_forwarding(host, &addressing.gateways)?;
    Ok(Some(interface))
}
