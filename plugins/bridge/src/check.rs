//! CHECK: whether an attachment is as its result says.

use anyhow::{Context, Result, bail};
use cni::request::Check;
use cni::result::AddResult;
use netlink::{Link, Netlink};
use netns::NetNs;
use wiring::check;

use crate::conf::Conf;

/// Compares the kernel with `prevResult`, and returns it.
pub fn attachment(request: &Check<Conf>, netns: &NetNs) -> Result<AddResult> {
    let previous = request
        .call
        .prev_result()?
        .context("Required prevResult missing")?;
    let (host, pod) = (Netlink::open()?, Netlink::open_in(netns)?);
    let bridge = check_bridge(&host, &request.conf, &previous)?;
    let wanted = check::Container {
        pod: &pod,
        ifname: request.attachment.ifname.as_str(),
        netns: &request.netns,
        kind: "veth",
    };
    let container = check::container(wanted, &previous)?;
    check::host_veth(&host, &previous, &bridge, &container)?;
    check::layer_3(&pod, &container.name, &previous)?;
    Ok(previous)
}

/// A bridge's MAC that was never pinned may have changed with its ports; the
/// one of a bridge that we created has not.
fn check_bridge(host: &Netlink, conf: &Conf, previous: &AddResult) -> Result<Link> {
    let recorded = previous
        .interfaces
        .iter()
        .find(|interface| interface.name == conf.bridge && interface.sandbox.is_empty())
        .with_context(|| format!("CNI created bridge {} was not found", conf.bridge))?;
    let bridge = check::find(host, &recorded.name)?;
    if !bridge.is_kind("bridge") {
        bail!(
            "Interface {} does not have link type of bridge",
            bridge.name
        );
    }
    if bridge.pinned() == Some(true) {
        check::mac(recorded, &bridge)?;
    }
    if conf.promisc_mode && !bridge.promisc {
        bail!(
            "Bridge interface {} configured Promisc Mode true, current state false",
            bridge.name
        );
    }
    Ok(bridge)
}
