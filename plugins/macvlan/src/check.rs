//! CHECK: whether an attachment is as its result says.

use anyhow::{Context, Result, bail};
use cni::request::Check;
use cni::result::Interface;
use netlink::{Link, Macvlan, Netlink};
use netns::NetNs;
use wiring::check;

use crate::conf::Conf;
use crate::parent;
use crate::plan::{Master, Plan};

/// Compares the kernel with `prevResult` and the configuration.
pub fn attachment(request: &Check<Conf>, plan: &Plan, netns: &NetNs) -> Result<()> {
    // With a small r, as in the Go plugin.
    let missing = "required prevResult missing";
    let previous = request.call.required_prev_result(missing)?;
    let recorded = check::container(request, &previous)?;
    let pod = Netlink::open_in(netns)?;
    let macvlan = find(&pod, recorded)?;
    check_mode(&macvlan, plan)?;
    check_mac(&macvlan.link, recorded)?;
    let parent = check_parent(&macvlan.link, plan, netns)?;
    check_mtu(&macvlan.link, plan, recorded, &parent)?;
    check_accept_ra(&macvlan.link, plan)?;
    check::layer_3(&pod, &macvlan.link.name, &previous)
}

fn find(pod: &Netlink, recorded: &Interface) -> Result<Macvlan> {
    let name = &recorded.name;
    check::refuse_other_name(pod, name)?;
    match pod.get_macvlan(name) {
        Ok(Some(macvlan)) => Ok(macvlan),
        Ok(None) => bail!("Error: Container interface {name} not of type macvlan"),
        Err(error) if error.is_not_found() => {
            bail!("container Interface name in prevResult: {name} not found")
        }
        Err(error) => Err(error.into()),
    }
}

fn check_mode(macvlan: &Macvlan, plan: &Plan) -> Result<()> {
    let (is, wanted) = (&macvlan.mode, plan.mode.to_string());
    if *is != wanted {
        bail!("container macvlan mode {is} does not match expected value: {wanted}");
    }
    Ok(())
}

fn check_mac(link: &Link, recorded: &Interface) -> Result<()> {
    let is = link.mac.map(|mac| mac.to_string()).unwrap_or_default();
    let (name, wanted) = (&recorded.name, &recorded.mac);
    if !wanted.is_empty() && !wanted.eq_ignore_ascii_case(&is) {
        bail!("Interface {name} Mac {wanted} doesn't match container Mac: {is}");
    }
    Ok(())
}

/// Whether the interface is on the parent that the configuration means. Where it
/// does not name one, the default route may have moved since ADD: the pod stays.
fn check_parent(link: &Link, plan: &Plan, netns: &NetNs) -> Result<Link> {
    let socket = parent::socket(plan, netns)?;
    let missing = || format!("parent of {} not found", link.name);
    let elsewhere = plan.link_in_container && link.link_netnsid.is_some();
    let index = link.link.filter(|_| !elsewhere).with_context(missing)?;
    let parent = socket.find_link_by_index(index)?.with_context(missing)?;
    let as_meant = match &plan.master {
        Master::DefaultRoute => true,
        // The name may be another of the same interface (altname).
        Master::Named(name) => socket
            .find_link(name)?
            .is_some_and(|meant| meant.index == parent.index),
        Master::Like(patterns) => patterns.match_name(&parent.name),
    };
    if !as_meant {
        let (name, is) = (&link.name, &parent.name);
        bail!(
            "parent of {name} is {is:?}, not {:?}",
            plan.master.to_string()
        );
    }
    Ok(parent)
}

fn check_accept_ra(link: &Link, plan: &Plan) -> Result<()> {
    let Some(wanted) = plan.accept_ra else {
        return Ok(());
    };
    match link.accept_ra {
        Some(is) if is != wanted.value() => {
            let (name, wanted) = (&link.name, wanted.value());
            bail!("accept_ra of {name} is {is}, not {wanted}")
        }
        _ => Ok(()),
    }
}

/// Without a number in the configuration it is what ADD reported, or the parent's
/// of now: a parent takes its macvlans along when it gets smaller.
fn check_mtu(link: &Link, plan: &Plan, recorded: &Interface, parent: &Link) -> Result<()> {
    let wanted = plan.mtu_on(parent.mtu)?.unwrap_or(recorded.mtu);
    let follows = plan.mtu == 0 && link.mtu == parent.mtu;
    if wanted != 0 && link.mtu != wanted && !follows {
        bail!("MTU of {} is {}, not {wanted}", link.name, link.mtu);
    }
    Ok(())
}
