//! VLANs of a port, and the interface that is the gateway of a VLAN.

use anyhow::{Context, Result};
use cni::env::IfName;
use cni::{Undo, names};
use netlink::{Link, Mac, Netlink, PortSpec, PortVlan, VethSpec};
use netns::NetNs;

use crate::plan::Vlans;

/// The VLAN of untagged frames on a trunk: the bridge's default.
const DEFAULT_VLAN: u16 = 1;

/// Gives a port its VLANs. A port without any stays in the bridge's default VLAN.
///
/// # Errors
/// What the kernel refuses.
pub fn configure_port(host: &Netlink, port: &Link, vlans: &Vlans) -> Result<()> {
    if !vlans.any() {
        return Ok(());
    }
    if !vlans.keep_default {
        let present = host.list_port_vlans(port.index)?;
        let present: Vec<_> = present.iter().map(|vlan| vlan.vid).collect();
        host.delete_port_vlans(port.index, &present)
            .with_context(|| {
                format!("failed to remove default vlan on interface {:?}", port.name)
            })?;
    }
    host.add_port_vlans(port.index, &port_vlans(vlans))
        .with_context(|| format!("failed to setup vlan tag on interface {:?}", port.name))
}

/// The VLANs of the port, in ascending order.
fn port_vlans(vlans: &Vlans) -> Vec<PortVlan> {
    let native = vlans.access.unwrap_or(DEFAULT_VLAN);
    let trunk = vlans.trunk.as_deref().unwrap_or_default();
    let tagged = trunk.iter().filter(|vid| **vid != native);
    let mut all: Vec<_> = tagged.map(|vid| PortVlan::tagged(*vid)).collect();
    all.push(PortVlan::native(native));
    all.sort_by_key(|vlan| vlan.vid);
    all
}

/// Ensures the interface `name` with the gateway's address of the pods' VLAN: one end of a veth
/// pair on the host whose other end is a port of `bridge` in that VLAN. All pods of the VLAN share
/// it, so it stays. If it cannot be completed, it is deleted.
///
/// # Errors
/// What the kernel refuses.
pub fn ensure_gateway_interface(
    host: &Netlink,
    bridge: &Link,
    name: &IfName,
    vlans: &Vlans,
) -> Result<Link> {
    if let Some(link) = host.find_link(name.as_str())? {
        return Ok(link);
    }
    let mut undo = Undo::new();
    match add_gateway_interface(host, bridge, name, vlans, &mut undo) {
        Ok(()) => undo.forget(),
        Err(error) => {
            undo.roll_back();
            // A concurrent ADD may have added it.
            if host.find_link(name.as_str())?.is_none() {
                return Err(error.context(format!("failed to create vlan interface {name}")));
            }
        }
    }
    Ok(host.get_link(name.as_str())?)
}

fn add_gateway_interface(
    host: &Netlink,
    bridge: &Link,
    name: &IfName,
    vlans: &Vlans,
    undo: &mut Undo,
) -> Result<()> {
    let spec = VethSpec {
        host_name: name.to_string(),
        host_mac: Mac::random()?,
        container_name: names::prefixed(12, "veth", &format!("{name} gateway")),
        container_mac: Mac::random()?,
        mtu: Some(bridge.mtu),
        master: None,
    };
    let pair = host.add_veth(&spec, &NetNs::current()?, undo)?;
    let port = host.get_link(&pair.container.name)?;
    let spec = PortSpec {
        bridge: bridge.index,
        ..PortSpec::default()
    };
    host.attach_port(&port, &spec)?;
    let access = Vlans {
        trunk: None,
        ..vlans.clone()
    };
    configure_port(host, &port, &access)?;
    host.set_up(port.index)?;
    host.set_up(pair.host.index)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trunk_without_an_access_vlan_keeps_untagged_frames_in_the_default_one() {
        let vlans = Vlans {
            access: None,
            trunk: Some(vec![1, 5, 6]),
            keep_default: false,
        };
        let tagged = [5, 6].map(PortVlan::tagged);
        assert_eq!(
            port_vlans(&vlans),
            [&[PortVlan::native(1)][..], &tagged].concat()
        );
    }

    #[test]
    fn an_access_vlan_is_untagged_also_when_the_trunk_has_it() {
        let vlans = Vlans {
            access: Some(7),
            trunk: Some(vec![5, 7]),
            keep_default: false,
        };
        assert_eq!(
            port_vlans(&vlans),
            [PortVlan::tagged(5), PortVlan::native(7)]
        );
    }
}
