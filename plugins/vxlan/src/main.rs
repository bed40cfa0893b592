//! vxlan: join a pod to a network that spans hosts: a bridge on each of them, and
//! between the hosts VXLAN, either as one segment (`l2`) or routed (`l3`).

mod check;
mod occupancy;

use std::process::ExitCode;

use anyhow::{Context, Result};
use cni::delegate;
use cni::linked::Linked;
use cni::request::{Add, Check, Del, Gc, Status};
use cni::result::AddResult;
use cni::{BestEffort, Code, Plugin, Undo};
use ipnetwork::IpNetwork;
use netlink::{AddressSpec, BridgeSpec, Family, Link, Netlink, PortSpec, sysctl};
use overlay::{Device, Mode, gateway_mac, guard, unreached};
use packet_filter::{Nftables, Separation};
use wiring::port::Wiring;
use wiring::{Addressing, Gateway, gateway, outside, pod, port, requested};

use vxlan::{conf, plan};

use crate::conf::Conf;
use crate::plan::{CONTAINER, Plan};

fn main() -> ExitCode {
    cni::run::<Vxlan>()
}

struct Vxlan;

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
        let _stays = occupancy::join(plan.remove_when_empty)?;
        let device = Device::find(&host, &plan.network)?;

        let bridge_name = plan.network.bridge.as_str();
        // As in bridge.
        if let Some(mac) = plan.mac.filter(|_| plan.spoof_check) {
            requested::refuse_taken_mac(&host, bridge_name, mac, attachment)?;
        }

        // Before anything is made: what IPAM says may contradict the peers.
        let mut addressing = None;
        let mut own = Vec::new();
        if let Some(lease) = delegate::ipam_add(call, undo)? {
            own = plan::own_subnets(lease.ips.iter().map(|ip| ip.address));
            plan.check_own_subnets(&own, Some(device.local))?;
            let wanted = Addressing::new(lease, plan.gateway, CONTAINER);
            let conf = &request.conf;
            if requested::asks_for_addresses(call, &conf.runtime_config, &conf.args) {
                requested::refuse_capture(call, &host, bridge_name, &wanted.gateways)?;
            }
            addressing = Some(wanted);
        }
        let bridge = ensure_bridge(&host, &plan, device.spec.mtu)?;
        let overlay = ensure_device(&host, &plan, &device, &bridge, &own)?;

        let wiring = Wiring {
            attachment,
            netns: &netns,
            mac: plan.mac,
            mtu: Some(device.spec.mtu),
        };
        let pair = port::add_veth(&host, &bridge, &wiring, undo)?;
        let port = PortSpec {
            bridge: bridge.index,
            hairpin: plan.hairpin,
            isolated: false,
            up: true,
            alias: None,
        };
        port::attach(&host, &pair.host, port, attachment)?;
        if plan.spoof_check {
            outside::check_spoofing(attachment, &pair, undo)?;
        }
        let pod = pod::enter(&netns, &attachment.ifname, plan.dad(), call.has_ipam())?;
        let configured = pod::configure(pod, addressing.as_ref())?;
        ensure_gateway(&host, &bridge, &plan, addressing.as_ref())?;
        if let Some(apart) = plan.apart() {
            // Before the pod can send through its gateway.
            ensure_separation(&apart)?;
        }
        let how = plan.masquerade.clone();
        outside::masquerade(attachment, addressing.as_ref(), how, None, undo)?;
        let port = host.wait_for_port(pair.host.index)?;
        pod::announce(&configured);
        let interfaces = vec![
            pod::host_interface(&bridge),
            pod::host_interface(&port),
            port::container_interface(&pair, &request.netns),
            pod::host_interface(&overlay),
        ];
        let result = pod::result(interfaces, addressing, &call.net.dns);
        Ok(result.for_version(call.version))
    }

    fn del(request: &Del<Conf>) -> Result<()> {
        let netns = request.netns.as_ref();
        let extras = request.conf.extras();
        let mut all = BestEffort::new();
        port::detach(&request.call, &request.attachment, netns, extras, &mut all);
        if request.conf.remove_when_empty {
            all.step("remove what is empty", || {
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
        if let (Some(how), true) = (plan.masquerade.clone(), call.has_ipam()) {
            outside::check_masquerade(&request.attachment, how, &previous)?;
        }
        if let Some(apart) = plan.apart() {
            check::apart(&apart)?;
        }
        guard::check(&Netlink::open()?, &plan.network)?;
        if plan.spoof_check {
            outside::check_spoof_check(&request.attachment, &previous, CONTAINER as usize)?;
        }
        Ok(())
    }

    fn gc(request: &Gc<Conf>) -> Result<()> {
        let valid = &request.valid;
        let mut all = BestEffort::new();
        port::collect(&request.call, valid, &mut all);
        if request.conf.remove_when_empty && valid.is_empty() {
            all.step("remove what is empty", || {
                occupancy::remove_if_empty(&request.conf, &request.call.network)
            });
        }
        all.finish()
    }

    fn status(request: &Status<Conf>) -> Result<()> {
        let call = &request.call;
        let plan = Plan::new(&request.conf, &call.network, call.has_ipam(), None)?;
        let host = Netlink::open()?;
        let unavailable = |why: String| Code::NotAvailable.err(why);
        Device::find(&host, &plan.network).map_err(|error| unavailable(format!("{error:#}")))?;
        let name = plan.network.bridge.as_str();
        let bridge = host.find_link(name)?;
        if bridge.as_ref().is_some_and(|link| !link.is_kind("bridge")) {
            let why = format!("{name:?} already exists but is not a bridge");
            return Err(unavailable(why).into());
        }
        if let Some(bridge) = &bridge {
            port::refuse_full(&host, bridge)?;
        }
        if plan.gateway != Gateway::None {
            gateway::status(call, &host, name)?;
        }
        if let Some(how) = &plan.masquerade {
            packet_filter::open(how.backend)
                .map_err(|error| unavailable(format!("ipMasq: {error:#}")))?;
        }
        delegate::ipam_status(call)
    }
}

fn ensure_bridge(host: &Netlink, plan: &Plan, mtu: u32) -> Result<Link> {
    let name = plan.network.bridge.as_str();
    let mut bridge = host
        .ensure_bridge(&BridgeSpec {
            name: name.to_owned(),
            mtu: Some(mtu),
            vlan_filtering: false,
            promisc: false,
        })
        .with_context(|| format!("failed to create bridge {name:?}"))?;
    if !plan.is_shared_gateway() {
        return Ok(bridge);
    }
    let mac = gateway_mac(plan.network.vni);
    if bridge.mac != Some(mac) {
        // All hosts' bridges have the same link-local address: to find that out would
        // leave them without one.
        let _ = sysctl::write(&sysctl::interface_key("ipv6", name, "accept_dad"), "0");
        host.set_mac(bridge.index, mac)?;
        bridge.mac = Some(mac);
    }
    Ok(bridge)
}

/// Makes sure that the device is there and knows the configuration's peers. In mode `l3` it
/// has the address that stands for this node in each of its subnets, `own`.
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
    if network.mode == Mode::L3 {
        for address in own.iter().filter_map(|it| plan::device_address(*it)) {
            let present = host.list_addresses(link.index, Some(Family::of(address.ip())))?;
            if present.iter().any(|other| other.address == address) {
                continue;
            }
            let spec = AddressSpec {
                // Nobody else is on this wire.
                nodad: address.is_ipv6(),
                ..address.into()
            };
            match host.add_address_to(&link, &spec) {
                Err(error) if error.is_exists() => {}
                other => other?,
            }
        }
    }
    if let Some(done) = device.apply_peers(host, network, &link, bridge)? {
        let doing = format!("make the peers of {} known", network.name);
        if let Some(error) = unreached(&network.entries(), &done.failed) {
            return Err(error.clone()).context(doing);
        }
        // The pod reaches the others; CHECK tells as well.
        for (_, error) in &done.failed {
            cni::log(format_args!("{doing}: {error}"));
        }
    }
    Ok(link)
}

/// Where the node forwards, networks would reach each other through it.
fn ensure_separation(apart: &Separation) -> Result<()> {
    let Some(nftables) = Nftables::find()? else {
        // As with the bridges of any other plugin.
        cni::log(format_args!(
            "keep {} apart from other networks: the kernel lacks nf_tables",
            apart.network
        ));
        return Ok(());
    };
    nftables
        .ensure_separation(apart)
        .context("keep the network apart from others")
}

/// Gives the bridge its addresses, and has the host forward.
fn ensure_gateway(
    host: &Netlink,
    bridge: &Link,
    plan: &Plan,
    addressing: Option<&Addressing>,
) -> Result<()> {
    let (Gateway::Gateway { force, .. }, Some(addressing)) = (plan.gateway, addressing) else {
        return Ok(());
    };
    let what = "failed to set bridge addr";
    gateway::ensure_addresses(host, bridge, &addressing.gateways, force, what)?;
    gateway::ensure_forwarding(host, &addressing.gateways)
}
