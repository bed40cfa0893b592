//! CHECK: compares the pod's link with the result of ADD and with the configuration.

use anyhow::{Result, bail};
use cni::request::Check;
use netlink::{Link, Netlink};
use netns::NetNs;
use wiring::check::{self, Expected};
use wiring::parent;

use crate::{Conf, KIND, Plan};

/// # Errors
/// The first difference.
pub fn attachment(request: &Check<Conf>, plan: &Plan, netns: &NetNs) -> Result<()> {
    // With a lower-case r, as the Go plugin.
    let missing = "required prevResult missing";
    let previous = request.call.required_prev_result(missing)?;
    let recorded = check::container(request, &previous)?;
    let pod = Netlink::open_in(netns)?;
    let name = &recorded.name;
    let expected = Expected {
        // With a lower-case c, as the Go plugin.
        missing: Some(format!(
            "container Interface name in prevResult: {name} not found"
        )),
        ..Expected::of(KIND)
    };
    let link = expected.find(&pod, recorded)?;
    check_mode(&pod, &link, plan)?;
    let parent = plan.parent.check(&link, netns)?;
    parent::check_mtu(&link, plan.mtu, recorded, &parent)?;
    check_accept_ra(&link, plan)?;
    check::layer_3(&pod, name, &previous)
}

fn check_mode(pod: &Netlink, link: &Link, plan: &Plan) -> Result<()> {
    let wanted = plan.mode.to_string();
    match pod.get_macvlan(&link.name)?.map(|it| it.mode) {
        Some(is) if is != wanted => {
            bail!("container macvlan mode {is} does not match expected value: {wanted}")
        }
        _ => Ok(()),
    }
}

fn check_accept_ra(link: &Link, plan: &Plan) -> Result<()> {
    match (link.accept_ra, plan.accept_ra.map(|it| it.value())) {
        (Some(is), Some(wanted)) if is != wanted => {
            bail!("accept_ra of {} is {is}, not {wanted}", link.name)
        }
        _ => Ok(()),
    }
}
