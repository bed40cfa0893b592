//! CHECK: compares the kernel's limits with the configuration.

use anyhow::{Context, Result, bail, ensure};
use cni::request::Check;
use netlink::{Link, Netlink, Rate, Shaped};
use wiring::{pod, port};

use crate::conf::Conf;
use crate::ifb;
use crate::plan::{Limit, Plan};

/// # Errors
/// The first difference, in the words of the Go plugin.
pub fn attachment(request: &Check<Conf>, plan: &Plan) -> Result<()> {
    let missing = "must be called as a chained plugin";
    let previous = request.call.required_prev_result(missing)?;
    let netns = pod::open_netns(&request.netns)?;
    let host = Netlink::open()?;
    let ifname = request.attachment.ifname.as_str();
    let veth = port::host_end(&host, ifname, &netns, &previous)?;
    let requested = request.conf.limits();
    if let Some(limit) = &plan.to_pod {
        let burst = requested.ingress_burst;
        shaper(&host, &veth, plan.shaped, &numbers(limit, veth.mtu, burst))?;
    }
    if let Some(limit) = &plan.from_pod {
        let ifb = ifb::find(&host, &request.attachment)?;
        let ifb = ifb.context("get ifb device: Link not found")?;
        let burst = requested.egress_burst;
        shaper(&host, &ifb, plan.shaped, &numbers(limit, veth.mtu, burst))?;
        ensure!(ifb.up, "Interface {} is down", ifb.name);
        let to = host.find_redirect(veth.index)?;
        ensure!(
            to == Some(ifb.index),
            "what the pod sends is not redirected from {} to {}",
            veth.name,
            ifb.name
        );
    }
    Ok(())
}

/// Our numbers, and those of the Go plugin, which may have attached the pod.
fn numbers(limit: &Limit, mtu: u32, requested_burst: u64) -> [Rate; 2] {
    [limit.numbers(mtu), limit.numbers_of_go(requested_burst)]
}

/// Whether the link has a shaper with one of `wanted`.
fn shaper(host: &Netlink, link: &Link, shaped: Shaped, wanted: &[Rate; 2]) -> Result<()> {
    let found = host.find_shaper(link.index, shaped)?;
    let found = found.context("Failed to find qdisc")?;
    let is = |same: fn(&Rate, &Rate) -> bool| wanted.iter().any(|it| same(it, &found));
    if !is(|it, found| it.bytes == found.bytes) {
        bail!("Rate doesn't match");
    }
    if shaped == Shaped::All && !is(|it, found| it.limit == found.limit) {
        bail!("Limit doesn't match");
    }
    if !is(|it, found| same_buffer(it.buffer, found.buffer)) {
        bail!("Buffer doesn't match");
    }
    Ok(())
}

/// Some kernels keep at most 2^32 ns, in ticks of 64 ns.
fn same_buffer(wanted: u32, found: u32) -> bool {
    const MOST: u32 = u32::MAX >> 6;
    wanted == found || found == MOST && wanted > MOST
}
