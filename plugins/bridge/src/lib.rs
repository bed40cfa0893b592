//! bridge: join a pod to a Linux bridge by a veth pair, optionally with the bridge as its gateway.

mod check;
pub mod conf;
pub mod plan;
pub mod vlan;

use anyhow::{Context, Result};
use cni::delegate;
use cni::linked::Linked;
use cni::request::{Add, Check, Del, Gc, Status};
use cni::result::AddResult;
use cni::{Attachment, BestEffort, Call, Code, Plugin, Undo, WithLabel};
use netlink::{BridgeSpec, Link, Netlink, PortSpec};
use packet_filter::node::Pod;
use wiring::neighbours::{self, Neighbours};
use wiring::result::Interfaces;
use wiring::{Addressing, Gateway, gateway, lease, mac, pod, port, requested, rules};

pub use crate::conf::Conf;
pub use crate::plan::Plan;

/// The plugin.
pub struct Bridge;

impl Plugin for Bridge {
    const NAME: &'static str = "bridge";
    const LINKED: &'static [Linked] = &[host_local::LINKED];
    type Conf = Conf;

    fn add(request: &Add<Conf>, undo: &mut Undo) -> Result<AddResult> {
        let (call, attachment) = (&request.call, &request.attachment);
        let [mac] = call.args(["MAC"])?;
        let plan = Plan::new(&request.conf, call.has_ipam(), mac)?;
        let netns = pod::open_netns(&request.netns)?;
        let host = Netlink::open()?;

        // Without a spoof check a pod can send with any MAC, so it would not help to refuse one.
        if let Some(mac) = plan.mac.filter(|_| plan.spoof_check) {
            requested::refuse_taken_mac(&host, plan.bridge.as_str(), mac, attachment)?;
        }
        let mut addressing = None;
        let needs_interface = plan.detect_conflicts || delegate::ipam_needs_interface(call);
        if (asks_for_addresses(request) || plan.spoof_check) && !needs_interface {
            // Before anything is created: the request may be for the node's own addresses, and the
            // spoof check needs the MAC before the pod can send.
            let lease = lease::acquire(request, &netns, false, undo)?;
            addressing = decide(request, &host, &plan, lease)?;
        }

        let mtu = plan.mtu.bytes(&host)?;
        let (bridge, mut neighbours) = ensure_bridge(&host, &plan, mtu)?;
        if let Some(access) = plan.access(&attachment.network) {
            rules::add_access(attachment, &access, Some(plan.bridge.as_str()), undo)?;
        }
        let ports = neighbours.look_at_ports(&host, &bridge);
        let _own_proc = pod::expect(ports.count);
        // With a querier, the bridge forwards neighbour solicitations to the pod only after it has
        // seen the pod's first multicast report.
        let joins_last =
            plan.may_join_last() && !needs_interface && !bridge.querier && ports.only_pods;
        let properties = (mac_of(request, &plan, addressing.as_ref()), mtu);
        let master = (!joins_last).then_some(&bridge);
        let mut pair = port::add_veth(&host, master, request, &netns, properties, undo)?;
        if joins_last {
            port::prepare(&host, &pair.host, attachment)?;
        } else {
            attach(&host, &bridge, &pair.host, &plan, attachment)?;
        }
        if plan.spoof_check {
            rules::add_spoof_check(attachment, &pair, undo)?;
        }

        let enter = || pod::enter(request, &netns, plan.enabledad);
        let pod = plan.bring_up.then(enter).transpose()?;
        if addressing.is_none() {
            let lease = lease::acquire(request, &netns, plan.detect_conflicts, undo)?;
            addressing = decide(request, &host, &plan, lease)?;
        }
        let (mut port, mut vlan_gateway) = (pair.host.clone(), None);
        if let Some(mut pod) = pod {
            let mac = mac_of(request, &plan, addressing.as_ref());
            port::set_mac(&mut pod, &mut pair, mac);
            let ips = addressing.as_ref().map_or(&[][..], |it| &it.ips);
            let announcement = neighbours.attach(call, &pair, ips);
            let configured = announcement.configure(pod, addressing.as_ref())?;
            if joins_last {
                port::join(&host, &pair.host, &bridge, plan.hairpin)?;
            }
            let gateway = ensure_gateway(call, (&host, &bridge), &plan, addressing.as_ref())?;
            let wanted = plan.rules(attachment, ips, gateway.as_ref());
            rules::add(&wanted, Some(plan.bridge.as_str()), undo)?;
            vlan_gateway = gateway.filter(|_| plan.vlan_gateway.is_some());
            port = port::wait_until_forwarding(&host, &pair.host)?;
            announcement.finish(&configured);
        }
        let mut interfaces = Interfaces::default()
            .host(&bridge)
            .host(&port)
            .pod(port::container_interface(&pair), &request.netns);
        if let Some(gateway) = &vlan_gateway {
            interfaces = interfaces.host(gateway);
        }
        Ok(interfaces.result(addressing, call))
    }

    fn del(request: &Del<Conf>) -> Result<()> {
        let mut all = BestEffort::new();
        port::delete(request, request.conf.rules(), &mut all);
        all.finish()
    }

    fn check(request: &Check<Conf>) -> Result<()> {
        let plan = Plan::new(&request.conf, request.call.has_ipam(), None)?;
        let netns = pod::open_netns(&request.netns)?;
        delegate::ipam_check(&request.call)?;
        let previous = check::attachment(request, &plan, &netns)?;
        rules::check(&wanted(&plan, &request.attachment, &previous)?)
    }

    fn gc(request: &Gc<Conf>) -> Result<()> {
        let mut all = BestEffort::new();
        port::collect(request, &mut all);
        all.finish()
    }

    fn status(request: &Status<Conf>) -> Result<()> {
        let plan = Plan::new(&request.conf, request.call.has_ipam(), None)?;
        let host = Netlink::open()?;
        port::status(&host, plan.bridge.as_str())?;
        if plan.gateway != Gateway::None {
            gateway::status(
                &request.call,
                &host,
                Some(plan.gateway_interface().as_str()),
            )?;
        }
        plan.mtu.bytes(&host).code(Code::NotAvailable)?;
        let needs_nftables = plan.reachability.needs_nftables();
        rules::status(plan.masquerade.as_ref(), plan.spoof_check, needs_nftables)?;
        delegate::ipam_status(&request.call)
    }
}

/// The packet filter rules of the attachment whose ADD returned `result`. Queries the kernel for
/// the gateway of an isolated pod.
///
/// # Errors
/// What the kernel refuses; a result without the interfaces of the attachment.
pub fn wanted(plan: &Plan, owner: &Attachment, result: &AddResult) -> Result<Pod> {
    let gateway = if plan.isolated && plan.gateway != Gateway::None {
        Netlink::open()?.find_link(plan.gateway_interface().as_str())?
    } else {
        None
    };
    let spoof_check = plan.spoof_check.then(|| rules::spoof_check(owner, result));
    Ok(Pod {
        spoof_check: spoof_check.transpose()?,
        ..plan.rules(owner, &result.ips, gateway.as_ref())
    })
}

/// Whether the pod's user or a DHCP server, rather than the operator, may choose the subnet.
fn asks_for_addresses(request: &Add<Conf>) -> bool {
    let (call, conf) = (&request.call, &request.conf);
    requested::asks_for_addresses(call, &conf.runtime_config.requested(), &conf.args)
}

/// Decides the pod's addresses and routes. Refuses a requested subnet if the bridge, as its
/// gateway, would take traffic from the node.
fn decide(
    request: &Add<Conf>,
    host: &Netlink,
    plan: &Plan,
    lease: Option<AddResult>,
) -> Result<Option<Addressing>> {
    let addressing = lease.map(|lease| plan.addressing(lease));
    if let Some(wanted) = &addressing
        && asks_for_addresses(request)
    {
        let interface = plan.gateway_interface().as_str();
        requested::refuse_capture(&request.call, host, interface, &wanted.gateways)?;
    }
    Ok(addressing)
}

/// The MAC of the pod: the requested one, else the one that is derived from its address. `None`
/// leaves a random one, and so does an interface that was up before the address was known.
fn mac_of(
    request: &Add<Conf>,
    plan: &Plan,
    addressing: Option<&Addressing>,
) -> Option<netlink::Mac> {
    let addressing = addressing.filter(|_| !plan.detect_conflicts);
    plan.mac.or_else(|| mac::of_pod(&request.call, addressing?))
}

fn ensure_bridge(host: &Netlink, plan: &Plan, mtu: Option<u32>) -> Result<(Link, Neighbours)> {
    let name = plan.bridge.as_str();
    let vlan_filtering = plan.vlans.filtering();
    let spec = BridgeSpec {
        name: name.to_owned(),
        mtu,
        vlan_filtering,
        promisc: plan.promisc,
    };
    let made = neighbours::ensure_bridge(host, &spec)
        .with_context(|| format!("failed to create bridge {name:?}"));
    let unsupported = |error: &anyhow::Error| {
        let refused = error.downcast_ref::<netlink::Error>();
        vlan_filtering && refused.is_some_and(netlink::Error::is_unsupported)
    };
    if made.as_ref().is_err_and(unsupported) {
        return made.details("vlan and vlanTrunk need a kernel with CONFIG_BRIDGE_VLAN_FILTERING");
    }
    made
}

/// Configures the host end as a port, with its VLANs before it is up, so that no frame passes in
/// another VLAN.
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
        ..PortSpec::default()
    };
    port::attach(host, veth, port, attachment)?;
    if vlans_first {
        vlan::configure_port(host, veth, &plan.vlans)?;
        host.set_up(veth.index)?;
    }
    Ok(())
}

/// Makes the bridge, or the gateway interface of the VLAN, the pods' gateway. Returns it; `None`
/// if the pods have no gateway.
fn ensure_gateway(
    call: &Call,
    (host, bridge): (&Netlink, &Link),
    plan: &Plan,
    addressing: Option<&Addressing>,
) -> Result<Option<Link>> {
    let Some(addressing) = addressing.filter(|_| plan.gateway != Gateway::None) else {
        return Ok(None);
    };
    let (link, action) = match &plan.vlan_gateway {
        Some(name) => (
            vlan::ensure_gateway_interface(host, bridge, name, &plan.vlans)?,
            "failed to set vlan interface for bridge with addr",
        ),
        None => (bridge.clone(), "failed to set bridge addr"),
    };
    gateway::ensure(
        call,
        (host, &link),
        plan.gateway,
        &addressing.gateways,
        action,
    )?;
    Ok(Some(link))
}
