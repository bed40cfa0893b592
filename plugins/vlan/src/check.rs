//! CHECK: compares the pod's link with the result of ADD and with the configuration.

use anyhow::{Result, bail};
use cni::request::Check;
use netlink::Netlink;
use netns::NetNs;
use wiring::check::{self, Expected};
use wiring::parent;

use crate::{Conf, KIND, Plan};

/// # Errors
/// The first difference.
pub fn attachment(request: &Check<Conf>, plan: &Plan, netns: &NetNs) -> Result<()> {
    let missing = "vlan: Required prevResult missing";
    let previous = request.call.required_prev_result(missing)?;
    let recorded = check::container(request, &previous)?;
    let pod = Netlink::open_in(netns)?;
    let name = &recorded.name;
    let expected = Expected {
        prefix: "vlan: ",
        ..Expected::of(KIND)
    };
    let link = expected.find(&pod, recorded)?;
    if let Some(id) = link.vlan_id.filter(|id| *id != plan.id) {
        bail!("VLAN of {name} is {id}, not {}", plan.id);
    }
    let parent = plan.parent.check(&link, netns)?;
    parent::check_mtu(&link, plan.mtu, recorded, &parent)?;
    check::layer_3(&pod, name, &previous)
}
