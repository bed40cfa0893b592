//! What `fuzz/` may call: rtnetlink's answers, from bytes to our types.

use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::LinkAttribute;

use crate::answer::Message;
use crate::{Link, Parent, address, bridge_vlan, fdb, macvlan, neighbour, route, vxlan};

/// Reads a datagram as the executor does, and each message as everybody who
/// could have asked for it.
pub fn answered(mut datagram: &[u8]) {
    while datagram.len() >= 16 {
        let length = u32::from_ne_bytes([datagram[0], datagram[1], datagram[2], datagram[3]]);
        let length = (length as usize).clamp(16, datagram.len());
        let parsed = NetlinkMessage::<Message>::deserialize(&datagram[..length]);
        if let Ok(NetlinkMessage {
            payload: NetlinkPayload::InnerMessage(Message::Answer(answer)),
            ..
        }) = parsed
        {
            let _ = (Link::read(&answer), Parent::read(&answer));
            let _ = answer.decode().as_ref().map(read);
        }
        datagram = datagram
            .get(length.next_multiple_of(4)..)
            .unwrap_or_default();
    }
}

fn read(message: &RouteNetlinkMessage) {
    let _ = address::read_address(message.clone());
    let _ = route::read_route(message.clone());
    let _ = fdb::read(message.clone(), 1);
    let _ = neighbour::read(message.clone(), 1);
    let _ = vxlan::read(message.clone());
    let _ = vxlan::read_address(message.clone());
    let _ = macvlan::mode_of(message);
    if let RouteNetlinkMessage::NewLink(link) = message {
        for attribute in &link.attributes {
            if let LinkAttribute::AfSpecBridge(spec) = attribute {
                let _ = bridge_vlan::expand(spec);
            }
        }
    }
}
