//! CHECK: compares the pod's link with the result of ADD and with the configuration.

use anyhow::{Result, bail};
use cni::request::Check;
use netlink::Netlink;
use netns::NetNs;
use wiring::check::{self, Expected};

use crate::{Conf, KIND, Plan};

/// # Errors
/// The first difference.
pub fn attachment(request: &Check<Conf>, plan: &Plan, netns: &NetNs) -> Result<()> {
    let previous = request.prev_result()?;
    let recorded = check::container(request, &previous)?;
    let pod = Netlink::open_in(netns)?;
    let name = &recorded.name;
    let link = Expected::of(KIND).find(&pod, recorded)?;
    let wanted = plan.mode.to_string();
    match pod.ipvlan_mode(name)? {
        Some(is) if is != wanted => {
            bail!("Container IPVlan mode {is} does not match expected value: {wanted}")
        }
        _ => {}
    }
    // Without the key `master`, the parent is that of a previous plugin, which CHECK does not know.
    let parent = plan.parent.check(&link, netns)?;
    let wanted = plan.mtu.unwrap_or(recorded.mtu);
    // The kernel gives the links of a parent its MTU when that changes (ipvlan_device_event).
    if wanted != 0 && link.mtu != wanted && link.mtu != parent.mtu {
        bail!("MTU of {name} is {}, not {wanted}", link.mtu);
    }
    check::layer_3(&pod, name, &previous)
}
