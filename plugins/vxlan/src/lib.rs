//! vxlan: join a pod to a network that spans hosts. Each host has a bridge; VXLAN connects the
//! hosts, either as one segment (`l2`) or routed (`l3`).
//!
//! The keys are read in `crates/overlay`: `podwire peers` reads the same configuration.

mod check;
mod occupancy;
pub mod plan;

use anyhow::{Context, Result};
use cni::delegate;
use cni::linked::Linked;
use cni::request::{Add, Check, Del, Gc, Status};
use cni::result::AddResult;
use cni::{Attachment, BestEffort, Code, Plugin, Undo, WithLabel};
use ipnetwork::IpNetwork;
use netlink::{BridgeSpec, Family, Link, Netlink, PortSpec, sysctl};
use overlay::{Device, Mode, device, gateway_mac, guard, unreached};
use packet_filter::node::Pod;
use wiring::neighbours::{self, Neighbours};
use wiring::result::Interfaces;
use wiring::{Addressing, Gateway, gateway, lease, mac, pod, port, requested, rules};

pub use crate::plan::Plan;
pub use overlay::Conf;

/// The plugin.
pub struct Vxlan;

impl Plugin for Vxlan {
    const NAME: &'static str = "vxlan";
    const LINKED: &'static [Linked] = &[host_local::LINKED];
    type Conf = Conf;

    fn add(request: &Add<Conf>, undo: &mut Undo) -> Result<AddResult> {
        let (call, attachment) = (&request.call, &request.attachment);
        let [mac] = call.args(["MAC"])?;
        let plan = Plan::new(&request.conf, &call.network, call.has_ipam(), mac)?;
        let netns = pod::open_netns(&request.netns)?;
        let host = Netlink::open()?;
        let _lock = occupancy::lock_for_add(plan.remove_when_empty)?;
        let device = Device::find(&host, &plan.network)?;

        // Without a spoof check a pod can send with any MAC, so it would not help to refuse one.
        if let Some(mac) = plan.mac.filter(|_| plan.spoof_check) {
            requested::refuse_taken_mac(&host, plan.network.bridge.as_str(), mac, attachment)?;
        }
        // Before anything is created: IPAM's subnets may contradict the peers.
        let lease = lease::acquire(request, &netns, false, undo)?;
        let own = plan::own_subnets(lease.iter().flat_map(|it| &it.ips).map(|ip| ip.address));
        plan.check_own_subnets(&own, Some(device.local))?;
        let addressing = decide(request, &host, &plan, lease)?;

        let (bridge, mut neighbours) = ensure_bridge(&host, &plan, device.spec.mtu)?;
        if let Some(access) = plan.access() {
            rules::add_access(attachment, &access, None, undo)?;
        }
        let overlay = ensure_device(&host, &plan, &device, &bridge, &own)?;
        let ports = neighbours.look_at_ports(&host, &bridge);
        let _own_proc = pod::expect(ports.count);
        let mac = || mac::of_pod(call, addressing.as_ref()?);
        let properties = (plan.mac.or_else(mac), Some(device.spec.mtu));
        let pair = port::add_veth(&host, Some(&bridge), request, &netns, properties, undo)?;
        let port = PortSpec {
            bridge: bridge.index,
            hairpin: plan.hairpin,
            isolated: plan.reachability.isolates_pods,
            up: true,
            ..PortSpec::default()
        };
        port::attach(&host, &pair.host, port, attachment)?;
        if plan.spoof_check {
            rules::add_spoof_check(attachment, &pair, undo)?;
        }
        let pod = pod::enter(request, &netns, plan.enabledad)?;
        let (gateways, ips) = match &addressing {
            Some(addressing) => (&addressing.gateways[..], &addressing.ips[..]),
            None => Default::default(),
        };
        let announcement = neighbours.attach(call, &pair, ips);
        let configured = announcement.configure(pod, addressing.as_ref())?;
        let action = "failed to set bridge addr";
        gateway::ensure(call, (&host, &bridge), plan.gateway, gateways, action)?;
        // Before the pod can send through its gateway.
        rules::add(&plan.rules(attachment, ips), None, undo)?;
        let port = port::wait_until_forwarding(&host, &pair.host)?;
        announcement.finish(&configured);
        let interfaces = Interfaces::default()
            .host(&bridge)
            .host(&port)
            .pod(port::container_interface(&pair), &request.netns)
            .host(&overlay);
        Ok(interfaces.result(addressing, call))
    }

    fn del(request: &Del<Conf>) -> Result<()> {
        let mut all = BestEffort::new();
        port::delete(request, request.conf.rules(), &mut all);
        if request.conf.remove_when_empty {
            all.step("remove the empty network", || {
                occupancy::remove_if_empty(&request.conf, &request.call.network)
            });
        }
        all.finish()
    }

    fn check(request: &Check<Conf>) -> Result<()> {
        let call = &request.call;
        let plan = Plan::new(&request.conf, &call.network, call.has_ipam(), None)?;
        let netns = pod::open_netns(&request.netns)?;
        delegate::ipam_check(call)?;
        let previous = check::attachment(request, &plan, &netns)?;
        rules::check(&wanted(&plan, &request.attachment, &previous)?)?;
        guard::check(&Netlink::open()?, &plan.network)
    }

    fn gc(request: &Gc<Conf>) -> Result<()> {
        let mut all = BestEffort::new();
        port::collect(request, &mut all);
        if request.conf.remove_when_empty && request.valid.is_empty() {
            all.step("remove the empty network", || {
                occupancy::remove_if_empty(&request.conf, &request.call.network)
            });
        }
        all.finish()
    }

    fn status(request: &Status<Conf>) -> Result<()> {
        let call = &request.call;
        let plan = Plan::new(&request.conf, &call.network, call.has_ipam(), None)?;
        let host = Netlink::open()?;
        Device::find(&host, &plan.network).code(Code::NotAvailable)?;
        let bridge = plan.network.bridge.as_str();
        port::status(&host, bridge)?;
        if plan.gateway != Gateway::None {
            gateway::status(call, &host, Some(bridge))?;
        }
        let needs_nftables = plan.reachability.needs_nftables();
        rules::status(plan.masquerade.as_ref(), plan.spoof_check, needs_nftables)?;
        delegate::ipam_status(call)
    }
}

/// The packet filter rules of the attachment whose ADD returned `result`, except the network's
/// guard ([`guard::present`]).
///
/// # Errors
/// A result without the interfaces of the attachment.
pub fn wanted(plan: &Plan, owner: &Attachment, result: &AddResult) -> Result<Pod> {
    let spoof_check = plan.spoof_check.then(|| rules::spoof_check(owner, result));
    Ok(Pod {
        spoof_check: spoof_check.transpose()?,
        ..plan.rules(owner, &result.ips)
    })
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
    let (call, conf) = (&request.call, &request.conf);
    if let Some(wanted) = &addressing
        && requested::asks_for_addresses(call, &conf.runtime_config.requested(), &conf.args)
    {
        let interface = plan.network.bridge.as_str();
        requested::refuse_capture(call, host, interface, &wanted.gateways)?;
    }
    Ok(addressing)
}

fn ensure_bridge(host: &Netlink, plan: &Plan, mtu: u32) -> Result<(Link, Neighbours)> {
    let name = plan.network.bridge.as_str();
    let spec = BridgeSpec {
        name: name.to_owned(),
        mtu: Some(mtu),
        vlan_filtering: false,
        promisc: false,
    };
    let (mut bridge, neighbours) = neighbours::ensure_bridge(host, &spec)
        .with_context(|| format!("failed to create bridge {name:?}"))?;
    let mac = gateway_mac(plan.network.vni);
    if plan.is_shared_gateway() && bridge.mac != Some(mac) {
        // The bridges of all hosts have the same link-local address. Duplicate address detection
        // would leave them without one.
        let _ = sysctl::write(&sysctl::interface_key("ipv6", name, "accept_dad"), "0");
        host.set_mac(bridge.index, mac)?;
        bridge.mac = Some(mac);
    }
    Ok((bridge, neighbours))
}

/// Ensures the device and the configuration's peers. In mode `l3` the device has the address
/// that stands for this node in each of its subnets, `own`.
fn ensure_device(
    host: &Netlink,
    plan: &Plan,
    device: &Device,
    bridge: &Link,
    own: &[IpNetwork],
) -> Result<Link> {
    let network = &plan.network;
    let bridge = (network.mode == Mode::L2).then_some(bridge);
    let link = device.ensure(host, network, bridge)?;
    if let Some(bridge) = bridge.filter(|_| plan.reachability.isolates_pods) {
        // Otherwise the pods would reach those of other hosts.
        host.isolate_port(&link, bridge.index)?;
    }
    if network.mode == Mode::L3 {
        for address in own.iter().map(|it| plan::device_address(*it)) {
            let present = host.list_addresses(link.index, Some(Family::of(address.ip())))?;
            device::ensure_address(host, &link, &present, address)?;
        }
    }
    if let Some(done) = device.apply_peers(host, network, &link, bridge)? {
        let action = format!("configure the peers of {}", network.name);
        if let Some(error) = unreached(&network.entries(), &done.failed) {
            return Err(error.clone()).context(action);
        }
        // The pod reaches the other peers. CHECK reports the missing ones, too.
        for (_, error) in &done.failed {
            cni::log(format_args!("{action}: {error}"));
        }
    }
    Ok(link)
}
