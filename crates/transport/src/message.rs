//! Netlink messages: a header, then what the protocol defines.

use std::marker::PhantomData;

use crate::{Attributes, Netfilter};

/// Bytes of `struct nlmsghdr`.
pub const HEADER: usize = 16;
/// Bytes of `struct nfgenmsg`, which begins each message of nfnetlink.
const NETFILTER_HEADER: usize = 4;

/// A request of protocol `P`.
#[derive(Debug)]
pub struct Request<P> {
    /// Its type: `RTM_*`, or subsystem and message of nfnetlink.
    pub kind: u16,
    /// `NLM_F_*`; the socket adds those that belong to the kind of exchange.
    pub flags: u16,
    /// What follows the header.
    pub body: Vec<u8>,
    protocol: PhantomData<P>,
}

impl<P> Request<P> {
    /// A request with `body` after the header.
    pub fn new(kind: u16, flags: u16, body: Vec<u8>) -> Self {
        Self {
            kind,
            flags,
            body,
            protocol: PhantomData,
        }
    }

    /// The request with number `sequence`, for a socket that is used by other means.
    pub fn to_bytes(&self, flags: i32, sequence: u32) -> Vec<u8> {
        let mut datagram = Vec::new();
        self.append(&mut datagram, flags, sequence);
        datagram
    }

    /// Appends it to a datagram, padded.
    pub(crate) fn append(&self, datagram: &mut Vec<u8>, flags: i32, sequence: u32) {
        let length = (HEADER + self.body.len()) as u32;
        datagram.extend(length.to_ne_bytes());
        datagram.extend(self.kind.to_ne_bytes());
        datagram.extend((self.flags | flags as u16).to_ne_bytes());
        datagram.extend(sequence.to_ne_bytes());
        datagram.extend([0; 4]);
        datagram.extend(&self.body);
        datagram.resize(datagram.len().next_multiple_of(4), 0);
    }
}

impl Request<Netfilter> {
    /// A request with the header of nfnetlink: `family` is `NFPROTO_*`; `resource` is 0, or
    /// the subsystem of a batch.
    pub fn netfilter(
        kind: u16,
        flags: u16,
        [family, resource]: [u8; 2],
        attributes: &Attributes<Netfilter>,
    ) -> Self {
        let header = [family, 0, 0, resource];
        Self::new(kind, flags, [&header, attributes.as_bytes()].concat())
    }
}

/// A message from the kernel.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    /// Its type: `NLMSG_*`, or one of the protocol.
    pub kind: u16,
    /// `NLM_F_*`.
    pub flags: u16,
    /// The number of the request that it answers.
    pub sequence: u32,
    /// What follows the header.
    pub body: &'a [u8],
}

impl<'a> Message<'a> {
    /// The fixed part of the body, which is `N` bytes long, and what follows; `None` where
    /// the message is of another type than `kind`.
    pub fn parts<const N: usize>(self, kind: u16) -> Option<(&'a [u8; N], &'a [u8])> {
        let parts = self.body.split_first_chunk::<N>();
        parts.filter(|_| self.kind == kind)
    }

    /// The attributes of an nfnetlink message.
    pub fn netfilter_attributes(self) -> &'a [u8] {
        self.body.get(NETFILTER_HEADER..).unwrap_or_default()
    }
}

/// The messages of a datagram, up to the first that is cut off.
pub fn messages(mut datagram: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let header = datagram.first_chunk::<HEADER>()?;
        let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let body = datagram.get(HEADER..length)?;
        datagram = datagram
            .get(length.next_multiple_of(4)..)
            .unwrap_or_default();
        Some(Message {
            kind: u16::from_ne_bytes([header[4], header[5]]),
            flags: u16::from_ne_bytes([header[6], header[7]]),
            sequence: u32::from_ne_bytes([header[8], header[9], header[10], header[11]]),
            body,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::find;

    #[test]
    fn messages_come_back_as_they_were_sent() {
        let attributes = Attributes::new().bytes(1, &[1]);
        let one = Request::netfilter(0x0a06, 4, [2, 10], &attributes);
        let two = Request::<Netfilter>::new(0x0a07, 0, vec![9]);
        let mut datagram = Vec::new();
        one.append(&mut datagram, 1, 7);
        two.append(&mut datagram, 1, 8);
        let back: Vec<_> = messages(&datagram).collect();
        let header = |it: &Message<'_>| (it.kind, it.flags, it.sequence);
        assert_eq!(header(&back[0]), (0x0a06, 5, 7));
        assert_eq!(back[0].body[..4], [2, 0, 0, 10]);
        assert_eq!(find(back[0].netfilter_attributes(), 1), Some(&[1][..]));
        assert_eq!((header(&back[1]), back[1].body), ((0x0a07, 1, 8), &[9][..]));
        assert_eq!(messages(&datagram[..datagram.len() - 4]).count(), 1);
        assert_eq!(messages(&[20, 0, 0]).count(), 0);
    }

    #[test]
    fn a_message_of_another_type_has_no_parts() {
        let message = Message {
            kind: 16,
            flags: 0,
            sequence: 1,
            body: &[1, 2, 3, 4, 5],
        };
        assert_eq!(message.parts::<4>(16), Some((&[1, 2, 3, 4], &[5][..])));
        assert_eq!(message.parts::<4>(17), None);
        assert_eq!(message.parts::<6>(16), None);
    }
}
