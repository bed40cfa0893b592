//! dummy: gives a pod an interface with addresses and without a wire.

use anyhow::{Result, bail};
use cni::delegate;
use cni::faults::Fault;
use cni::linked::Linked;
use cni::request::{Add, Check, Del, Gc, Status};
use cni::result::AddResult;
use cni::{Plugin, Undo};
use netlink::{LinkKind, LinkSpec, Mac, Netlink};
use serde::Deserialize;
use wiring::remains::Links;
use wiring::{check, lease, pod, result};

/// Its links in a pod: `ip link … type dummy`.
const LINKS: Links = Links {
    kind: "dummy",
    parent_in_pod: true,
    vlan_id: None,
};

/// The plugin.
pub struct Dummy;

/// The plugin has no keys of its own.
#[derive(Clone, Debug, Deserialize)]
pub struct Conf {}

impl Plugin for Dummy {
    const NAME: &'static str = "dummy";
    const LINKED: &'static [Linked] = &[host_local::LINKED];
    type Conf = Conf;

    fn add(request: &Add<Conf>, undo: &mut Undo) -> Result<AddResult> {
        require_ipam(request.call.has_ipam())?;
        let netns = pod::open_netns(&request.netns)?;
        let spec = LinkSpec {
            name: request.attachment.ifname.to_string(),
            temporary: String::new(),
            parent: None,
            mac: Some(Mac::random()?),
            mtu: None,
            kind: LinkKind::Dummy,
        };
        Netlink::open_in(&netns)?.add_link(&spec, &netns, undo)?;
        let interface = netlink::Interface {
            // There are no neighbours.
            notify: false,
            ..pod::marked(request)
        };
        let pod = netlink::enter(&netns, interface)?;
        pod.mark()?;
        let addressing = lease::addressing(request, &netns, false, undo)?;
        let configured = pod::configure(pod, addressing.as_ref())?;
        configured.await_addresses();
        Ok(result::of_pod(request, &configured.link, addressing))
    }

    fn del(request: &Del<Conf>) -> Result<()> {
        LINKS.del(request)
    }

    fn check(request: &Check<Conf>) -> Result<()> {
        require_ipam(request.call.has_ipam())?;
        let netns = pod::open_netns(&request.netns)?;
        delegate::ipam_check(&request.call)?;
        let missing = "dummy: Required prevResult missing";
        let previous = request.call.required_prev_result(missing)?;
        let recorded = check::container(request, &previous)?;
        let pod = Netlink::open_in(&netns)?;
        let name = &recorded.name;
        if !check::Expected::of(LINKS.kind).find(&pod, recorded)?.up {
            bail!("Interface {name} is down");
        }
        check::layer_3(&pod, name, &previous)
    }

    fn gc(request: &Gc<Conf>) -> Result<()> {
        LINKS.gc(request)
    }

    fn status(request: &Status<Conf>) -> Result<()> {
        require_ipam(request.call.has_ipam())?;
        delegate::ipam_status(&request.call)
    }
}

/// The configuration as a whole: an interface without a wire is of no use without addresses.
///
/// # Errors
/// Code 7: it has no `ipam`.
pub fn require_ipam(has_ipam: bool) -> Result<(), Fault> {
    let msg = "dummy interface requires an IPAM configuration";
    has_ipam
        .then_some(())
        .ok_or_else(|| Fault::new("ipam", msg))
}
