//! ptp: connects a pod to the node by a veth pair of its own. There is no bridge: the node routes
//! each pod's addresses to its pair, and the pod everything to the node.

mod check;
pub mod conf;
pub mod plan;

use anyhow::{Context, Result};
use cni::delegate;
use cni::linked::Linked;
use cni::request::{Add, Check, Del, Gc, Status};
use cni::result::AddResult;
use cni::{BestEffort, Code, Plugin, Undo, WithLabel};
use netlink::{AddressSpec, Family, Link, Netlink};
use wiring::result::Interfaces;
use wiring::{gateway, lease, pod, port, requested, rules};

pub use crate::conf::Conf;
pub use crate::plan::{Ends, Plan};

/// The plugin.
pub struct Ptp;

impl Plugin for Ptp {
    const NAME: &'static str = "ptp";
    const LINKED: &'static [Linked] = &[host_local::LINKED];
    type Conf = Conf;

    fn add(request: &Add<Conf>, undo: &mut Undo) -> Result<AddResult> {
        let (call, conf, owner) = (&request.call, &request.conf, &request.attachment);
        let plan = Plan::new(conf, call.has_ipam())?;
        let netns = pod::open_netns(&request.netns)?;
        let host = Netlink::open()?;
        let mtu = plan.mtu.bytes(&host)?;
        let pair = port::add_veth(&host, None, request, &netns, (plan.mac, mtu), undo)?;
        let interface = netlink::Interface {
            // Only the node is on the link, and it learns the pod's MAC with a new link.
            notify: false,
            ..pod::interface(request, false)
        };
        let pod = netlink::enter(&netns, interface)?;

        let addressing = lease::addressing(request, &netns, false, undo)?.unwrap_or_default();
        let ends = Ends::new(&addressing.ips)?;
        if requested::asks_for_addresses(call, &conf.runtime_config, &conf.args) {
            requested::refuse_point_to_point(call, &host, &addressing.ips)?;
        }
        let ipv6 = ends.gateways.iter().any(|it| it.is_ipv6());
        port::set_up(&host, &pair.host, owner, ipv6)?;
        let wanted = ends.without_own_routes(addressing.clone());
        let configured = pod::configure_with(pod, Some(&wanted), Some(ends.pod_routes.clone()))?;
        set_up_host(&host, &pair.host, &ends)?;
        rules::add(&plan.rules(owner, &addressing.ips), None, undo)?;
        pod::announce(&configured);
        let container = port::container_interface(&pair);
        let interfaces = Interfaces::default().host(&pair.host);
        let interfaces = interfaces.pod(container, &request.netns);
        Ok(interfaces.result(Some(addressing), call))
    }

    fn del(request: &Del<Conf>) -> Result<()> {
        let mut all = BestEffort::new();
        port::delete(request, request.conf.rules(), &mut all);
        all.finish()
    }

    fn check(request: &Check<Conf>) -> Result<()> {
        let plan = Plan::new(&request.conf, request.call.has_ipam())?;
        let netns = pod::open_netns(&request.netns)?;
        delegate::ipam_check(&request.call)?;
        let previous = check::attachment(request, &netns)?;
        rules::check(&plan.rules(&request.attachment, &previous.ips))
    }

    fn gc(request: &Gc<Conf>) -> Result<()> {
        let mut all = BestEffort::new();
        port::collect(request, &mut all);
        all.finish()
    }

    fn status(request: &Status<Conf>) -> Result<()> {
        let plan = Plan::new(&request.conf, request.call.has_ipam())?;
        let host = Netlink::open()?;
        gateway::status(&request.call, &host, None)?;
        plan.mtu.bytes(&host).code(Code::NotAvailable)?;
        rules::status(plan.masquerade.as_ref(), false, false)?;
        delegate::ipam_status(&request.call)
    }
}

/// Makes the host end the pod's gateway, and routes the pod's addresses to it. The kernel removes
/// both with the link.
fn set_up_host(host: &Netlink, veth: &Link, ends: &Ends) -> Result<()> {
    for gateway in &ends.gateways {
        let spec = AddressSpec {
            // Only the pod is on the link, and it could not reach its gateway during duplicate
            // address detection.
            nodad: gateway.is_ipv6(),
            ..(*gateway).into()
        };
        host.add_address_to(veth, &spec)
            .with_context(|| format!("failed to add IP addr ({gateway}) to veth"))?;
    }
    for route in &ends.host_routes {
        // The pair of a pod that had the address before may still exist.
        host.replace_route(veth.index, route)
            .context("failed to add route on host")?;
        host.enable_forwarding(Family::of(route.dst.ip()))
            .context("Could not enable IP forwarding")?;
    }
    host.await_carrier(veth.index)?;
    for gateway in ends.gateways.iter().filter(|it| it.is_ipv6()) {
        host.await_local_on(gateway.ip(), veth.index);
    }
    Ok(())
}
