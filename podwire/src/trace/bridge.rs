//! Where a bridge of the node forwards the packet to, and what is behind its ports.

use std::net::IpAddr;

use netlink::Mac;
use survey::{Interface, OtherEnd, Place};

use super::hop::Hop;
use super::walk::{NODE, Walk};
use crate::graph::host::pod_name;

impl Walk<'_> {
    /// Where a bridge forwards the frame to; returns whether that is the node itself.
    pub fn bridged(&mut self, port: &Interface, bridge: &Interface, mac: Option<Mac>) -> bool {
        let names = format!("{}, port {}", bridge.link.name, port.link.name);
        let entry = mac.and_then(|mac| {
            let is_own = bridge.link.mac == Some(mac);
            let found = self
                .node
                .find_fdb_entry(bridge.link.index, mac)
                .ok()
                .flatten();
            match found {
                _ if is_own => Some(bridge.link.index),
                found => found.map(|it| it.port),
            }
        });
        let to = match entry {
            Some(index) if index == bridge.link.index => {
                self.hops.push(Hop::on(
                    NODE,
                    "bridge",
                    format!("{names} → the node itself"),
                ));
                return true;
            }
            Some(index) => self.survey.node().at(index),
            // The neighbour did not answer: where it is, if it is a pod of this node.
            None => self.outside_of(self.target.ip),
        };
        let Some(to) = to.filter(|it| it.link.master == Some(bridge.link.index)) else {
            let text = format!("{names} → every port");
            self.hops.push(Hop::on(NODE, "bridge", text));
            return false;
        };
        let text = format!("{names} → port {}{}", to.link.name, self.behind(to, mac));
        let isolated = |it: &Interface| it.link.port.is_some_and(|it| it.isolated);
        let vlan = port.vlans.iter().find(|it| it.pvid).map(|it| it.vid);
        let hop = if isolated(port) && isolated(to) {
            let text = format!("{text}: both ports are isolated (portIsolation)");
            Hop::dropped(NODE, "bridge", text)
        } else if bridge.link.vlan_filtering == Some(true)
            && vlan.is_none_or(|vlan| !to.vlans.iter().any(|it| it.vid == vlan))
        {
            let vlan = vlan
                .map(|it| format!("VLAN {it} of the first"))
                .unwrap_or("a VLAN".into());
            Hop::dropped(
                NODE,
                "bridge",
                format!("{text}: that port does not have {vlan}"),
            )
        } else {
            Hop::on(NODE, "bridge", text)
        };
        self.hops.push(hop);
        false
    }

    /// What is behind a port: a pod, or a node of an overlay.
    pub fn behind(&self, port: &Interface, mac: Option<Mac>) -> String {
        if let Some(vtep) = port.vteps.iter().find(|it| Some(it.mac) == mac) {
            return format!(", to node {}", vtep.address);
        }
        let place = Place {
            namespace: 0,
            index: port.link.index,
        };
        let mut attachments = self.survey.attachments.iter();
        let found = attachments.find(|it| it.outside == Some(place));
        found
            .map(|it| format!(" of {}", pod_name(self.survey, it)))
            .unwrap_or_default()
    }

    /// The node's interface of the pod with this address.
    pub fn outside_of(&self, ip: IpAddr) -> Option<&Interface> {
        let has = |it: &&survey::Attachment| {
            let ips = it.result.iter().flat_map(|it| &it.ips);
            ips.map(|it| it.address.ip()).any(|it| it == ip)
        };
        let found = self.survey.attachments.iter().find(has);
        if let Some(outside) = found.and_then(|it| it.outside) {
            return self.survey.interface(outside);
        }
        // One of a runtime whose cache is elsewhere.
        let pods = self.survey.namespaces.iter().skip(1);
        let mut all = pods.flat_map(|it| &it.interfaces);
        let found = all.find(|it| it.addresses.iter().any(|it| it.address.ip() == ip))?;
        match found.other_end {
            Some(OtherEnd::At(place)) if place.namespace == 0 => self.survey.interface(place),
            _ => None,
        }
    }
}
