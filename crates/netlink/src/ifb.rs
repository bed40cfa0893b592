//! ifbs: links that send what other links have received, so that it can be shaped.

use rtnetlink::packet_route::{
    RouteNetlinkMessage,
    link::{InfoKind, LinkAttribute},
};

use crate::{Error, Link, Mac, Netlink, creation::new_link};

impl Netlink {
    /// Creates an ifb and returns it: `ip link add NAME address MAC mtu MTU txqueuelen 0 type ifb`.
    /// It is down.
    ///
    /// # Errors
    /// `EEXIST` when there is a link of that name; what the kernel refuses.
    pub fn add_ifb(&self, name: &str, mac: Mac, mtu: u32) -> Result<Link, Error> {
        let message = new_link(Some(InfoKind::Ifb), name, Some(mac), Some(mtu))
            // Its shaper has the queue.
            .append_extra_attribute(LinkAttribute::TxQueueLen(0));
        let request = RouteNetlinkMessage::NewLink(message.build());
        let created = self.create(request, Link::read, || "adding link".into())?;
        match created {
            Some(link) => Ok(link),
            None => self.get_link(name),
        }
    }
}
