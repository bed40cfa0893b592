//! loopback: bring up `lo` in a pod. It has no keys and ignores `CNI_IFNAME`.

use anyhow::{Context, Result, bail};
use cni::request::{Add, Check, Del, Gc, Status};
use cni::result::{AddResult, Interface, IpConfig};
use cni::{Cidr, Plugin, Undo};
use netlink::{Family, Link, Netlink};
use netns::NetNs;
use serde::Deserialize;

/// The name of the interface, unless the pod renamed it.
const LO: &str = "lo";

/// Its index in every namespace (`LOOPBACK_IFINDEX`, net/core/dev.h). No pod can change it.
const LO_INDEX: u32 = 1;

/// The plugin.
pub struct Loopback;

/// The plugin has no keys.
#[derive(Clone, Debug, Deserialize)]
pub struct Conf {}

impl Plugin for Loopback {
    const NAME: &'static str = "loopback";
    type Conf = Conf;

    fn add(request: &Add<Conf>, _undo: &mut Undo) -> Result<AddResult> {
        // Nothing is undone: another ADD may rely on `lo` being up.
        let previous = request.call.prev_result()?;
        let pod = Netlink::open_in(&NetNs::open(request.netns.as_path())?)?;
        let lo = find(&pod)?;
        pod.set_up(lo.index)?;
        let ips = loopback_addresses(&pod, lo.index)?;
        if let Some(previous) = previous {
            return Ok(previous);
        }
        let result = AddResult {
            interfaces: vec![Interface {
                name: LO.to_owned(),
                mac: "00:00:00:00:00:00".to_owned(),
                mtu: lo.mtu,
                sandbox: request.netns.as_str().to_owned(),
                ..Interface::default()
            }],
            ips,
            ..AddResult::default()
        };
        Ok(result.for_version(request.call.version))
    }

    fn del(request: &Del<Conf>) -> Result<()> {
        let Some(path) = &request.netns else {
            return Ok(());
        };
        match NetNs::open(path.as_path()) {
            Err(error) if netns::is_gone(&error) => Ok(()),
            // ip link set lo down
            netns => Ok(Netlink::open_in(&netns?)?.set_down(LO_INDEX)?),
        }
    }

    fn check(request: &Check<Conf>) -> Result<()> {
        let pod = Netlink::open_in(&NetNs::open(request.netns.as_path())?)?;
        if !find(&pod)?.up {
            bail!("loopback interface is down");
        }
        Ok(())
    }

    /// The kernel deletes `lo` with its namespace: nothing can remain.
    fn gc(_request: &Gc<Conf>) -> Result<()> {
        Ok(())
    }

    /// Every namespace has `lo`: an ADD needs nothing from the node.
    fn status(_request: &Status<Conf>) -> Result<()> {
        Ok(())
    }
}

fn find(pod: &Netlink) -> Result<Link> {
    let missing = || format!("find link {LO}: Link not found");
    pod.find_link_by_index(LO_INDEX)?.with_context(missing)
}

/// The first address of each family on `lo`, which the kernel adds when it comes up.
fn loopback_addresses(pod: &Netlink, lo: u32) -> Result<Vec<IpConfig>> {
    let addresses = pod.list_addresses(lo, None)?;
    if let Some(other) = addresses.iter().find(|a| !a.address.ip().is_loopback()) {
        bail!(
            "loopback interface found with non-loopback address {:?}",
            other.address.to_string()
        );
    }
    let first = |family| {
        let mut addresses = addresses.iter().map(|it| it.address);
        addresses.find(|address| Family::of(address.ip()) == family)
    };
    let config = |address| IpConfig {
        interface: Some(0),
        address: Cidr(address),
        gateway: None,
    };
    let found = [first(Family::V4), first(Family::V6)];
    Ok(found.into_iter().flatten().map(config).collect())
}
