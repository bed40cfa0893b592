//! For `fuzz/`: the kernel's answers, from bytes to our types.

use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::LinkAttribute;
use transport::messages;

use crate::request::decode;
use crate::{
    Link, Parent, address, bridge_vlan, fdb, filter, ipvlan, kept, macvlan, neighbour, qdisc,
    route, rule, vxlan, whole_route::WholeRoute,
};

/// Reads each message of a datagram in every way in which this crate reads answers.
pub fn answered(datagram: &[u8]) {
    for message in messages(datagram) {
        let _ = (
            message.outcome(),
            Link::read(message),
            Parent::read(message),
            qdisc::Qdisc::read(message),
            qdisc::read_class(message),
            filter::read_redirect(message),
        );
        let _ = decode(message).as_ref().map(read);
    }
}

fn read(message: &RouteNetlinkMessage) {
    let _ = address::read_address(message.clone());
    let _ = route::read_route(message.clone());
    let _ = kept::address_of(message.clone(), 1);
    let _ = WholeRoute::read(message.clone());
    let _ = rule::read_rule(message.clone());
    let _ = fdb::read(message.clone(), 1);
    let _ = neighbour::read(message.clone(), 1);
    let _ = vxlan::read(message.clone());
    let _ = macvlan::mode_of(message);
    let _ = ipvlan::mode_of(message);
    if let RouteNetlinkMessage::NewLink(link) = message {
        for attribute in &link.attributes {
            if let LinkAttribute::AfSpecBridge(spec) = attribute {
                let _ = bridge_vlan::expand(spec);
            }
        }
    }
}
