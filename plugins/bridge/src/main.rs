//! bridge: join a pod to a Linux bridge by a veth pair, optionally with the
//! bridge as its gateway.

mod check;
mod conf;
mod gateway;
mod outside;
mod plan;
mod vlan;

use std::process::ExitCode;

use anyhow::{Context, Result, anyhow};
use cni::conf::ValidAttachment;
use cni::delegate;
use cni::env::{ContainerId, IfName, NetnsPath};
use cni::request::{Add, Check, Del, Gc, Status, alias_prefix};
use cni::result::{AddResult, Interface};
use cni::{Attachment, BestEffort, Code, Plugin, Undo};
use netlink::{
    BridgeSpec, Configured, Dad, Family, InterfaceAddress, Link, Mac, Netlink, PortSpec, VethPair,
    VethSpec,
};
use netns::NetNs;

use crate::conf::{Conf, Mtu};
use crate::plan::{Addressing, Gateway, Plan};

fn main() -> ExitCode {
    cni::run::<Bridge>()
}

struct Bridge;

impl Plugin for Bridge {
    const NAME: &'static str = "bridge";
    type Conf = Conf;

    fn add(request: &Add<Conf>, undo: &mut Undo) -> Result<AddResult> {
        let call = &request.call;
        let [mac] = call.args(["MAC"])?;
        let plan = Plan::new(&request.conf, call.has_ipam(), mac)?;
        let netns = open_netns(&request.netns)?;
        let host = Netlink::open()?;

        let mtu = mtu_bytes(plan.mtu, &host)?;
        let bridge = ensure_bridge(&host, &plan, mtu)?;
        let pair = add_veth(
            &host,
            &bridge,
            &Wiring {
                request,
                plan: &plan,
                mtu,
                netns: &netns,
            },
            undo,
        )?;
        attach(&host, &bridge, &pair.host, &plan, &request.attachment)?;
        if plan.spoof_check {
            outside::check_spoofing(&request.attachment, &pair, undo)?;
        }

        let mut addressing = None;
        if call.has_ipam() {
            let lease = delegate::ipam_add(call, undo)?;
            addressing = Some(Addressing::new(lease, plan.gateway));
        }
        let mut interfaces = vec![
            host_interface(&bridge),
            host_interface(&pair.host),
            container_interface(&pair, &request.netns),
        ];
        if plan.bring_up {
            let configured = configure(&netns, request, &plan, addressing.as_ref())?;
            interfaces.extend(ensure_gateway(&host, &bridge, &plan, addressing.as_ref())?);
            if let (Some(how), Some(addressing)) = (plan.masquerade, &addressing) {
                outside::masquerade(&request.attachment, addressing, how, undo)?;
            }
            let port = host.wait_for_port(pair.host.index)?;
            interfaces[1] = host_interface(&port);
            announce(&configured);
        }
        let result = plan::result(interfaces, addressing, &call.net.dns);
        Ok(result.for_version(call.version))
    }

    fn del(request: &Del<Conf>) -> Result<()> {
        let mut all = BestEffort::new();
        if request.conf.ip_masq && request.call.has_ipam() {
            // First: whose addresses they were is still to be seen.
            all.step("remove masquerade", || outside::remove_masquerade(request));
        }
        all.step("delete the interface", || delete_interface(request));
        all.step("delete the host veth", || {
            delete_host_veth(&request.attachment)
        });
        if request.conf.macspoofchk {
            outside::remove_spoof_check(&request.attachment);
        }
        if request.call.has_ipam() {
            // Last: nobody may get the address while something still answers to it.
            all.step("release the addresses", || {
                delegate::ipam_del(&request.call)
            });
        }
        all.finish()
    }

    fn check(request: &Check<Conf>) -> Result<()> {
        let plan = Plan::new(&request.conf, request.call.has_ipam(), None)?;
        let netns = open_netns(&request.netns)?;
        if request.call.has_ipam() {
            delegate::ipam_check(&request.call)?;
        }
        let previous = check::attachment(request, &netns)?;
        outside::check(request, &plan, &previous)
    }

    fn gc(request: &Gc<Conf>) -> Result<()> {
        let mut all = BestEffort::new();
        all.step("delete host veths", || delete_stale_veths(request));
        if request.conf.macspoofchk {
            all.step("collect spoof checks", || {
                outside::collect_spoof_checks(request)
            });
        }
        if request.conf.ip_masq {
            all.step("collect masquerade", || {
                nat::Leftovers::collect_masquerade(&request.call.network, &request.valid)
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

fn open_netns(path: &NetnsPath) -> Result<NetNs> {
    NetNs::open(path.as_path()).with_context(|| format!("failed to open netns {:?}", path.as_str()))
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

/// What the pair is made from.
struct Wiring<'a> {
    request: &'a Add<Conf>,
    plan: &'a Plan,
    mtu: Option<u32>,
    netns: &'a NetNs,
}

/// How many names are tried for the host end. Two attachments of a node share a
/// name once in four thousand million; ten of them never.
const NAMES: u32 = 10;

/// Makes the pair, its host end a port from birth.
fn add_veth(
    host: &Netlink,
    bridge: &Link,
    wiring: &Wiring<'_>,
    undo: &mut Undo,
) -> Result<VethPair> {
    let attachment = &wiring.request.attachment;
    let mut spec = VethSpec {
        host_name: attachment.host_veth(0),
        host_mac: Mac::random()?,
        container_name: attachment.ifname.to_string(),
        container_mac: wiring.plan.mac.map_or_else(Mac::random, Ok)?,
        mtu: wiring.mtu,
        master: Some(bridge.index),
    };
    for attempt in 1..NAMES {
        match host.add_veth(&spec, wiring.netns, undo) {
            Err(error) if is_name_taken(&error) => spec.host_name = attachment.host_veth(attempt),
            other => return other,
        }
    }
    host.add_veth(&spec, wiring.netns, undo)
}

fn is_name_taken(error: &anyhow::Error) -> bool {
    let kernel = error.downcast_ref::<netlink::Error>();
    kernel.is_some_and(netlink::Error::is_exists)
}

/// Sets up the host end as a port, and says whose it is.
fn attach(
    host: &Netlink,
    bridge: &Link,
    veth: &Link,
    plan: &Plan,
    attachment: &Attachment,
) -> Result<()> {
    // The host must not take its own addresses or routes from what a pod says.
    let accept_ra = netlink::sysctl::interface_key("ipv6", &veth.name, "accept_ra");
    let _ = netlink::sysctl::write(&accept_ra, "0");
    let vlans_first = plan.vlans.any();
    host.attach_port(
        veth,
        &PortSpec {
            bridge: bridge.index,
            hairpin: plan.hairpin,
            isolated: plan.isolated,
            up: !vlans_first,
            alias: Some(attachment.alias()),
        },
    )?;
    if vlans_first {
        // No frame passes in a VLAN that is not the pod's.
        vlan::configure_port(host, veth, &plan.vlans)?;
        host.set_up(veth.index)?;
    }
    Ok(())
}

/// Brings the pod's end up, with its addresses and routes if it has any.
fn configure(
    netns: &NetNs,
    request: &Add<Conf>,
    plan: &Plan,
    addressing: Option<&Addressing>,
) -> Result<Configured> {
    let mut interface = netlink::Interface {
        name: request.attachment.ifname.to_string(),
        addresses: Vec::new(),
        routes: Vec::new(),
        dad: Dad::Kernel,
        notify: false,
    };
    if let Some(addressing) = addressing {
        interface.dad = match plan.detect_duplicates {
            true => Dad::On,
            false => Dad::Off,
        };
        interface.notify = true;
        interface.addresses = addressing
            .ips
            .iter()
            .map(|ip| InterfaceAddress {
                address: ip.address.0,
                gateway: ip.gateway,
            })
            .collect();
        interface.routes = addressing.routes.iter().map(plan::route_spec).collect();
    }
    netlink::configure(netns, &interface)
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
    let gateway = vlan.as_ref().unwrap_or(bridge);
    for address in &addressing.gateways {
        gateway::ensure_address(host, gateway, *address, force).with_context(|| match vlan {
            Some(_) => "failed to set vlan interface for bridge with addr",
            None => "failed to set bridge addr",
        })?;
    }
    for family in [Family::V4, Family::V6] {
        if addressing
            .gateways
            .iter()
            .any(|a| Family::of(a.ip()) == family)
        {
            host.enable_forwarding(family)
                .context("failed to enable forwarding")?;
        }
    }
    Ok(vlan.as_ref().map(host_interface))
}

/// The pod works without: its neighbours then learn of it a little later.
fn announce(configured: &Configured) {
    if let Err(error) = configured.announce() {
        eprintln!("announce the pod's addresses: {error:#}");
    }
}

fn host_interface(link: &Link) -> Interface {
    Interface {
        name: link.name.clone(),
        mac: link.mac.map(|mac| mac.to_string()).unwrap_or_default(),
        mtu: link.mtu,
        ..Interface::default()
    }
}

fn container_interface(pair: &VethPair, netns: &NetnsPath) -> Interface {
    Interface {
        name: pair.container.name.clone(),
        mac: pair.container.mac.to_string(),
        mtu: pair.container.mtu,
        sandbox: netns.as_str().to_owned(),
        ..Interface::default()
    }
}

/// Deletes the pod's end, and the host's with it, wherever the runtime says the pod is.
fn delete_interface(request: &Del<Conf>) -> Result<()> {
    let Some(path) = &request.netns else {
        return Ok(());
    };
    match NetNs::open(path.as_path()) {
        // A plain file is what stays of a namespace whose mount was lost.
        Err(error) if error.is_gone() => Ok(()),
        Err(error) => Err(error.into()),
        Ok(netns) => {
            Netlink::open_in(&netns)?.delete_link(request.attachment.ifname.as_str())?;
            Ok(())
        }
    }
}

/// Deletes the host's end where the runtime no longer knows the namespace but
/// something still holds it: the name follows from the attachment, and the
/// alias says whether it is ours.
fn delete_host_veth(attachment: &Attachment) -> Result<()> {
    let host = Netlink::open()?;
    let alias = attachment.alias();
    for attempt in 0..NAMES {
        let Some(link) = host.find_link(&attachment.host_veth(attempt))? else {
            return Ok(());
        };
        if link.alias.as_deref() == Some(alias.as_str()) {
            host.delete_link(&link.name)?;
            return Ok(());
        }
    }
    Ok(())
}

/// Deletes every host veth of this network whose attachment is not in use.
fn delete_stale_veths(request: &Gc<Conf>) -> Result<()> {
    let network = &request.call.network;
    let prefix = alias_prefix(network);
    let used: Vec<_> = request
        .valid
        .iter()
        .filter_map(|valid| alias_of(network, valid))
        .collect();
    let host = Netlink::open()?;
    let mut all = BestEffort::new();
    for link in host.list_links()? {
        let Some(alias) = link.alias.filter(|alias| alias.starts_with(&prefix)) else {
            continue;
        };
        if link.kind.as_deref() == Some("veth") && !used.contains(&alias) {
            all.step(&alias, || Ok(host.delete_link(&link.name)?));
        }
    }
    all.finish()
}

fn alias_of(network: &str, valid: &ValidAttachment) -> Option<String> {
    let attachment = Attachment {
        network: network.to_owned(),
        container_id: ContainerId::parse(&valid.container_id).ok()?,
        ifname: IfName::parse(&valid.ifname).ok()?,
    };
    Some(attachment.alias())
}
