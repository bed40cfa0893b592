//! What the kernel answers, as it came.
//!
//! A link is described by some hundred attributes, of which we read a dozen. To have all of
//! them taken apart costs more than the rest of the request, and one that a newer kernel
//! writes otherwise would hide the whole link. So answers are kept as they are, and only what
//! is less common than links is decoded whole.

use std::convert::Infallible;

use rtnetlink::{
    packet_core::{
        NLA_HEADER_SIZE, NetlinkDeserializable, NetlinkHeader, NetlinkSerializable, NlasIterator,
    },
    packet_route::RouteNetlinkMessage,
};

/// What goes to the kernel, and what comes back.
#[derive(Clone, Debug)]
pub(crate) enum Message {
    /// To the kernel.
    Request(RouteNetlinkMessage),
    /// From the kernel, or to it where rtnetlink does not know the type.
    Answer(Answer),
}

/// A message as it is on the wire: its type (`RTM_NEWLINK`, …) and what follows the header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    kind: u16,
    body: Vec<u8>,
}

impl Answer {
    /// One of type `kind`.
    pub(crate) fn new(kind: u16, body: &[u8]) -> Self {
        let body = body.to_vec();
        Self { kind, body }
    }

    /// All of it; `None` where rtnetlink does not understand something.
    pub(crate) fn decode(&self) -> Option<RouteNetlinkMessage> {
        let mut header = NetlinkHeader::default();
        header.message_type = self.kind;
        RouteNetlinkMessage::deserialize(&header, &self.body).ok()
    }

    /// Its fixed part, which is `N` bytes long, and what follows; `None` where it is of
    /// another type than `kind`.
    pub(crate) fn parts<const N: usize>(&self, kind: u16) -> Option<(&[u8; N], &[u8])> {
        let parts = self.body.split_first_chunk::<N>();
        parts.filter(|_| self.kind == kind)
    }
}

/// Type and value of each attribute in `bytes`, up to the first that is cut off.
pub(crate) fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    NlasIterator::new(bytes).map_while(|attribute| {
        let attribute = attribute.ok()?;
        let (kind, end) = (attribute.kind(), usize::from(attribute.length()));
        let value = attribute.into_inner().get(NLA_HEADER_SIZE..end)?;
        Some((kind, value))
    })
}

impl NetlinkSerializable for Message {
    fn message_type(&self) -> u16 {
        match self {
            Self::Request(message) => message.message_type(),
            Self::Answer(answer) => answer.kind,
        }
    }

    fn buffer_len(&self) -> usize {
        match self {
            Self::Request(message) => NetlinkSerializable::buffer_len(message),
            Self::Answer(answer) => answer.body.len(),
        }
    }

    fn serialize(&self, buffer: &mut [u8]) {
        match self {
            Self::Request(message) => message.serialize(buffer),
            Self::Answer(answer) => buffer.copy_from_slice(&answer.body),
        }
    }
}

impl NetlinkDeserializable for Message {
    type Error = Infallible;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, Infallible> {
        Ok(Self::Answer(Answer::new(header.message_type, payload)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend((4 + value.len() as u16).to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    #[test]
    fn attributes_are_read_up_to_one_that_is_cut_off() {
        const NESTED: u16 = 0x8000;
        let bytes = [attribute(3, b"eth0\0"), attribute(18 | NESTED, &[7; 4])].concat();
        let read = |length| attributes(&bytes[..length]).collect::<Vec<_>>();
        let whole = [(3, &b"eth0\0"[..]), (18, &[7; 4][..])];
        assert_eq!(read(bytes.len()), whole);
        assert_eq!(read(bytes.len() - 1), whole[..1]);
        assert_eq!(read(8), []);
        assert_eq!(read(0), []);
    }

    #[test]
    fn an_answer_of_another_type_is_none() {
        let answer = Answer::new(16, &[1, 2, 3, 4, 5]);
        assert_eq!(answer.parts::<4>(16), Some((&[1, 2, 3, 4], &[5][..])));
        assert_eq!(answer.parts::<4>(17), None);
        assert_eq!(answer.parts::<6>(16), None);
        assert_eq!(answer.decode(), None);
    }
}
