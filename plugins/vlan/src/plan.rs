//! Decides from the keys what to do. Pure: no system calls.

use anyhow::Result;
use cni::Attachment;
use cni::faults::{Checks, Fault, Faults};
use netlink::{LinkKind, LinkSpec, Parent};
use wiring::parent::{self, ParentSpec};
use wiring::remains;

use crate::conf::Conf;

/// The largest VLAN id; the next one is reserved (IEEE 802.1Q, table 9-2).
const MAX_ID: u16 = 4094;

/// A configuration without contradictions.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Which interface is the parent.
    pub parent: ParentSpec,
    /// The VLAN id.
    pub id: u16,
    /// The key `mtu`, whose limit depends on the parent: see [`parent::mtu_on`].
    pub mtu: i64,
    /// Whether the VLAN is probed for an address before it is used.
    pub detect_conflicts: bool,
}

impl Plan {
    /// Checks everything that can be checked without the kernel. `has_ipam`: whether the pod gets
    /// addresses.
    ///
    /// # Errors
    /// Code 7, each fault with its key.
    pub fn new(conf: &Conf, has_ipam: bool) -> Result<Self, Faults> {
        let mut checks = Checks::default();
        if conf.master.is_empty() {
            let msg = "\"master\" field is required. It specifies the host interface name to create the VLAN for";
            checks.add(Fault::new("master", msg));
        }
        let id = checks.take(id(conf.vlan_id));
        if !has_ipam {
            checks.add(Fault::new("ipam", "no plugin name provided"));
        }
        checks.finish(|| {
            Some(Self {
                parent: ParentSpec::new(&conf.master, conf.link_in_container),
                id: id?,
                mtu: conf.mtu,
                detect_conflicts: conf.detect_conflicts,
            })
        })
    }

    /// The link to create for `attachment` on `parent`. It has the MAC of its parent.
    ///
    /// # Errors
    /// Code 7: the MTU is not possible on `parent`.
    pub fn spec(&self, attachment: &Attachment, parent: &Parent) -> Result<LinkSpec> {
        Ok(LinkSpec {
            name: attachment.ifname.to_string(),
            temporary: remains::temporary_name(attachment),
            parent: Some(parent.link.index),
            mac: None,
            mtu: parent::mtu_on(self.mtu, parent.link.mtu)?,
            kind: LinkKind::Vlan { id: self.id },
        })
    }
}

/// The VLAN id. 0 is possible: such frames have a priority and no VLAN.
fn id(wanted: i64) -> Result<u16, Fault> {
    let id = u16::try_from(wanted).ok().filter(|id| *id <= MAX_ID);
    id.ok_or_else(|| {
        // The text of the Go plugin; 4095 is refused, too.
        let msg = format!("invalid VLAN ID {wanted} (must be between 0 and 4095 inclusive)");
        Fault::new("vlanId", msg)
    })
}

#[cfg(test)]
mod tests;
