//! CHECK: compares the kernel with the result of ADD.

use anyhow::{Context, Result};
use cni::request::Check;
use cni::result::AddResult;
use netlink::{Family, Link, Netlink, RouteFilter};
use netns::NetNs;
use wiring::{check, gateway};

use crate::conf::Conf;
use crate::plan::Ends;

/// Compares both ends of the link with `prevResult`, and returns that.
///
/// # Errors
/// The first difference.
pub fn attachment(request: &Check<Conf>, netns: &NetNs) -> Result<AddResult> {
    let missing = "ptp: Required prevResult missing";
    let previous = request.call.required_prev_result(missing)?;
    let recorded = check::container(request, &previous)?;
    let (host, pod) = (Netlink::open()?, Netlink::open_in(netns)?);
    let name = &recorded.name;
    let expected = check::Expected {
        shown_kind: "veth/p2p",
        prefix: "ptp: ",
        ..check::Expected::of("veth")
    };
    let container = expected.find(&pod, recorded)?;
    check::layer_3(&pod, name, &previous)?;
    let veth = check::host_end(request, &host, &previous, &container, netns)?;
    let ips: Vec<_> = previous.ips_of(name).cloned().collect();
    host_side(&host, &veth, &Ends::new(&ips)?)?;
    Ok(previous)
}

/// Whether the host end has its addresses, and the host its routes to the pod.
fn host_side(host: &Netlink, veth: &Link, ends: &Ends) -> Result<()> {
    gateway::check(host, veth, &ends.gateways)?;
    for route in &ends.host_routes {
        let present = host.list_routes(RouteFilter {
            oif: Some(veth.index),
            ..RouteFilter::main(Family::of(route.dst.ip()))
        })?;
        let dst = route.dst;
        let found = present.iter().any(|it| it.dst == dst);
        found
            .then_some(())
            .with_context(|| format!("the node has no route to {dst} through {}", veth.name))?;
    }
    Ok(())
}
