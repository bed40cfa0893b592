//! The VLANs of a bridge port.

use rtnetlink::packet_route::{
    AddressFamily, RouteNetlinkMessage,
    link::{
        AfSpecBridge, BridgeFlag, BridgeVlanInfo, BridgeVlanInfoFlags, LinkAttribute,
        LinkExtentMask, LinkMessage,
    },
};

use crate::{Error, Netlink, link::link};

/// One VLAN on a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortVlan {
    /// The VLAN's id, 1 to 4094.
    pub vid: u16,
    /// Incoming frames without a tag belong to it.
    pub pvid: bool,
    /// Its outgoing frames have no tag.
    pub untagged: bool,
}

impl PortVlan {
    /// The VLAN `vid`, with tagged frames.
    pub fn tagged(vid: u16) -> Self {
        Self {
            vid,
            pvid: false,
            untagged: false,
        }
    }

    /// The VLAN `vid`, with untagged frames.
    pub fn native(vid: u16) -> Self {
        Self {
            vid,
            pvid: true,
            untagged: true,
        }
    }

    fn flags(self) -> BridgeVlanInfoFlags {
        let mut flags = BridgeVlanInfoFlags::empty();
        flags.set(BridgeVlanInfoFlags::Pvid, self.pvid);
        flags.set(BridgeVlanInfoFlags::Untagged, self.untagged);
        flags
    }
}

impl Netlink {
    /// Allows VLANs on a bridge port:
    /// `bridge vlan add dev PORT vid VID [pvid] [untagged] master`, all in one request.
    ///
    /// # Errors
    /// `EOPNOTSUPP` when the kernel was built without VLAN filtering.
    pub fn add_port_vlans(&self, port: u32, vlans: &[PortVlan]) -> Result<(), Error> {
        if vlans.is_empty() {
            return Ok(());
        }
        let request = RouteNetlinkMessage::SetLink(vlan_message(port, vlans));
        self.change(request, 0, || format!("add vlans to port {port}"))
    }

    /// Removes VLANs from a bridge port: `bridge vlan del dev PORT vid VID master`, all in one
    /// request.
    ///
    /// # Errors
    /// When one of them is not on the port, among others.
    pub fn delete_port_vlans(&self, port: u32, vids: &[u16]) -> Result<(), Error> {
        if vids.is_empty() {
            return Ok(());
        }
        // The flags do not matter to a deletion.
        let vlans: Vec<PortVlan> = vids.iter().copied().map(PortVlan::tagged).collect();
        let request = RouteNetlinkMessage::DelLink(vlan_message(port, &vlans));
        self.change(request, 0, || format!("delete vlans of port {port}"))
    }

    /// The VLANs of a bridge port, in ascending order:
    /// `bridge vlan show dev PORT`.
    ///
    /// # Errors
    /// When the kernel cannot be queried.
    pub fn list_port_vlans(&self, port: u32) -> Result<Vec<PortVlan>, Error> {
        let op = || format!("list vlans of port {port}");
        let all = self.vlans(|index| index == port, op)?;
        Ok(all.into_iter().flat_map(|(_, vlans)| vlans).collect())
    }

    /// The VLANs of all ports of bridges and of the bridges themselves, with their indexes:
    /// `bridge vlan show`.
    ///
    /// # Errors
    /// When the kernel cannot be queried.
    pub fn list_all_vlans(&self) -> Result<Vec<(u32, Vec<PortVlan>)>, Error> {
        self.vlans(|_| true, || "list vlans".into())
    }

    fn vlans(
        &self,
        wanted: impl Fn(u32) -> bool,
        op: impl Fn() -> String,
    ) -> Result<Vec<(u32, Vec<PortVlan>)>, Error> {
        let mut message = LinkMessage::default();
        message.header.interface_family = AddressFamily::Bridge;
        // One port may have four thousand, which uncompressed do not fit into one message.
        message.attributes.push(LinkAttribute::ExtMask(vec![
            LinkExtentMask::BrvlanCompressed,
        ]));
        let vlans = |message| match message {
            RouteNetlinkMessage::NewLink(link) if wanted(link.header.index) => {
                let vlans = link.attributes.iter().flat_map(vlans_in).collect();
                Some((link.header.index, vlans))
            }
            _ => None,
        };
        self.dump(RouteNetlinkMessage::GetLink(message), vlans, op)
    }
}

fn vlans_in(attribute: &LinkAttribute) -> Vec<PortVlan> {
    match attribute {
        LinkAttribute::AfSpecBridge(spec) => expand(spec),
        _ => Vec::new(),
    }
}

fn vlan_message(port: u32, vlans: &[PortVlan]) -> LinkMessage {
    // "master": the bridge changes its table for the port, not the port its own.
    let mut spec = vec![AfSpecBridge::Flags(BridgeFlag::Controller)];
    spec.extend(compress(vlans));
    link(port)
        .interface_family(AddressFamily::Bridge)
        .append_extra_attribute(LinkAttribute::AfSpecBridge(spec))
        .build()
}

/// Turns runs of tagged VLANs into ranges: a trunk of all ids is two attributes. A PVID cannot be
/// part of a range (net/bridge/br_netlink.c).
fn compress(vlans: &[PortVlan]) -> Vec<AfSpecBridge> {
    let joins = |a: &PortVlan, b: &PortVlan| {
        a.vid.checked_add(1) == Some(b.vid) && a.flags() == b.flags() && !a.pvid
    };
    vlans
        .chunk_by(joins)
        .flat_map(|run| match run {
            [] => vec![],
            [one] => vec![vlan_info(one.vid, one.flags())],
            [first, .., last] => vec![
                vlan_info(first.vid, first.flags() | BridgeVlanInfoFlags::RangeBegin),
                vlan_info(last.vid, last.flags() | BridgeVlanInfoFlags::RangeEnd),
            ],
        })
        .collect()
}

fn vlan_info(vid: u16, flags: BridgeVlanInfoFlags) -> AfSpecBridge {
    AfSpecBridge::VlanInfo(BridgeVlanInfo { flags, vid })
}

/// The inverse of [`compress`], for the kernel's answers.
pub(crate) fn expand(spec: &[AfSpecBridge]) -> Vec<PortVlan> {
    let mut vlans = Vec::new();
    let mut begin = None;
    for attribute in spec {
        let AfSpecBridge::VlanInfo(info) = attribute else {
            continue;
        };
        // An id has twelve bits (IEEE 802.1Q).
        if info.vid > 4095 {
            continue;
        }
        if info.flags.contains(BridgeVlanInfoFlags::RangeBegin) {
            begin = Some(info.vid);
            continue;
        }
        let first = begin.take().unwrap_or(info.vid);
        vlans.extend((first..=info.vid).map(|vid| PortVlan {
            vid,
            pvid: info.flags.contains(BridgeVlanInfoFlags::Pvid),
            untagged: info.flags.contains(BridgeVlanInfoFlags::Untagged),
        }));
    }
    vlans
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tagged(vids: impl IntoIterator<Item = u16>) -> Vec<PortVlan> {
        vids.into_iter().map(PortVlan::tagged).collect()
    }

    #[test]
    fn runs_become_ranges_and_come_back() {
        let mut vlans = tagged([2, 3, 4, 7, 9, 10]);
        vlans.insert(0, PortVlan::native(1));
        let spec = compress(&vlans);
        // 1 alone (it is the PVID), 2-4 and 9-10 as ranges, 7 alone.
        assert_eq!(spec.len(), 1 + 2 + 1 + 2);
        assert_eq!(expand(&spec), vlans);
    }

    #[test]
    fn all_ids_are_two_attributes() {
        let all = tagged(1..=4094);
        let spec = compress(&all);
        assert_eq!(spec.len(), 2);
        assert_eq!(expand(&spec), all);
    }

    #[test]
    fn a_pvid_is_never_in_a_range() {
        let vlans = [PortVlan::native(5), PortVlan::native(6)];
        assert_eq!(compress(&vlans).len(), 2);
        assert_eq!(expand(&compress(&vlans)), vlans);
    }
}
