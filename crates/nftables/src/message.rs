//! Netlink messages as bytes: a header, nfnetlink's own header, attributes.
//!
//! An attribute is a length, a type and a value, padded to four bytes; a value
//! may be attributes again. nf_tables and conntrack write numbers big-endian.
//! Source: linux/netlink.h, linux/netfilter/nfnetlink.h.

/// Bytes of `struct nlmsghdr`.
pub const HEADER: usize = 16;
/// Bytes of `struct nfgenmsg`, which follows it.
pub const NETFILTER_HEADER: usize = 4;

const NLA_HEADER: usize = 4;
const NLA_F_NESTED: u16 = 0x8000;
/// The two highest bits of a type are flags.
const NLA_TYPE_MASK: u16 = 0x3fff;

/// What goes into a header, but for the sequence number.
#[derive(Clone, Copy, Debug)]
pub struct Head {
    /// Subsystem (high byte) and request (low byte).
    pub kind: u16,
    /// `NLM_F_*`.
    pub flags: u16,
    /// `NFPROTO_*`.
    pub family: u8,
    /// Only batch headers use it: the subsystem.
    pub resource: u16,
}

/// Appends a whole message to `buffer`.
pub fn append(buffer: &mut Vec<u8>, head: Head, seq: u32, attributes: &Attributes) {
    let length = HEADER + NETFILTER_HEADER + attributes.0.len();
    buffer.extend((length as u32).to_ne_bytes());
    buffer.extend(head.kind.to_ne_bytes());
    buffer.extend(head.flags.to_ne_bytes());
    buffer.extend(seq.to_ne_bytes());
    buffer.extend(0u32.to_ne_bytes());
    buffer.extend([head.family, 0]);
    buffer.extend(head.resource.to_be_bytes());
    buffer.extend(&attributes.0);
}

/// A message as it came in.
#[derive(Clone, Copy, Debug)]
pub struct Received<'a> {
    /// `NLMSG_*`, or subsystem and request.
    pub kind: u16,
    /// `NLM_F_*`.
    pub flags: u16,
    /// The number of the request that it answers.
    pub seq: u32,
    /// What follows `struct nlmsghdr`.
    pub body: &'a [u8],
}

/// The messages of a datagram; what is cut off at its end is left out.
pub fn received(mut datagram: &[u8]) -> impl Iterator<Item = Received<'_>> {
    std::iter::from_fn(move || {
        let header = datagram.first_chunk::<HEADER>()?;
        let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let body = datagram.get(HEADER..length)?;
        datagram = datagram.get(aligned(length)..).unwrap_or_default();
        Some(Received {
            kind: u16::from_ne_bytes([header[4], header[5]]),
            flags: u16::from_ne_bytes([header[6], header[7]]),
            seq: u32::from_ne_bytes([header[8], header[9], header[10], header[11]]),
            body,
        })
    })
}

/// Attributes to send.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes(Vec<u8>);

impl Attributes {
    /// None.
    pub fn new() -> Self {
        Self::default()
    }

    /// With `value` as it is.
    pub fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        self.0
            .extend(((NLA_HEADER + value.len()) as u16).to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(aligned(self.0.len()), 0);
        self
    }

    /// With a text; the kernel's ends with a zero byte.
    pub fn text(self, kind: u16, value: &str) -> Self {
        self.bytes(kind, &[value.as_bytes(), &[0]].concat())
    }

    /// With a number.
    pub fn u32(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// With a number.
    pub fn u64(self, kind: u16, value: u64) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// With attributes in an attribute.
    pub fn nest(self, kind: u16, inner: &Self) -> Self {
        self.bytes(kind | NLA_F_NESTED, &inner.0)
    }

    /// What goes over the wire.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// The attributes in `bytes`, as type and value.
pub fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    raw_attributes(bytes).map(|(kind, value)| (kind & NLA_TYPE_MASK, value))
}

/// The same with the flags in the type.
fn raw_attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let header = bytes.first_chunk::<NLA_HEADER>()?;
        let length = u16::from_ne_bytes([header[0], header[1]]) as usize;
        let value = bytes.get(NLA_HEADER..length)?;
        bytes = bytes.get(aligned(length)..).unwrap_or_default();
        Some((u16::from_ne_bytes([header[2], header[3]]), value))
    })
}

/// The first attribute of type `kind`.
pub fn find(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes)
        .find(|(found, _)| *found == kind)
        .map(|(_, value)| value)
}

/// The attribute at the end of a path of nested ones.
pub fn find_in<'a>(bytes: &'a [u8], path: &[u16]) -> Option<&'a [u8]> {
    path.iter()
        .try_fold(bytes, |bytes, kind| find(bytes, *kind))
}

/// Whether each attribute of `wanted` is in `found` with the same value; nested
/// ones may have more there.
pub fn covers(wanted: &Attributes, found: &[u8]) -> bool {
    all_in(&wanted.0, found)
}

fn all_in(wanted: &[u8], found: &[u8]) -> bool {
    raw_attributes(wanted).all(|(kind, wanted)| {
        let found = find(found, kind & NLA_TYPE_MASK);
        // The kernel does not flag all that it nests; we do.
        found.is_some_and(|found| match kind & NLA_F_NESTED {
            0 => wanted == found,
            _ => all_in(wanted, found),
        })
    })
}

/// A text without its zero byte; what is not UTF-8 is none that we wrote.
pub fn text(value: &[u8]) -> Option<&str> {
    std::str::from_utf8(value.strip_suffix(&[0]).unwrap_or(value)).ok()
}

/// A number.
pub fn number(value: &[u8]) -> Option<u32> {
    value.try_into().ok().map(u32::from_be_bytes)
}

/// A number.
pub fn long_number(value: &[u8]) -> Option<u64> {
    value.try_into().ok().map(u64::from_be_bytes)
}

fn aligned(length: usize) -> usize {
    length.next_multiple_of(4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_but_their_length_is_not() {
        let sent = Attributes::new().text(1, "nat").bytes(2, &[7]).u32(3, 5);
        let expected = [
            8, 0, 1, 0, b'n', b'a', b't', 0, // "nat" fills its four bytes
            5, 0, 2, 0, 7, 0, 0, 0, // one byte, three of padding
            8, 0, 3, 0, 0, 0, 0, 5, // big-endian
        ];
        if cfg!(target_endian = "little") {
            assert_eq!(sent.as_bytes(), expected);
        }
        assert_eq!(find(sent.as_bytes(), 1).and_then(text), Some("nat"));
        assert_eq!(find(sent.as_bytes(), 2), Some(&[7][..]));
        assert_eq!(find(sent.as_bytes(), 3).and_then(number), Some(5));
        assert_eq!(find(sent.as_bytes(), 4), None);
    }

    #[test]
    fn nested_attributes_are_found_by_their_path() {
        let inner = Attributes::new().u64(9, 1 << 40);
        let sent = Attributes::new().u32(1, 0).nest(4, &inner);
        let found = find_in(sent.as_bytes(), &[4, 9]).and_then(long_number);
        assert_eq!(found, Some(1 << 40));
    }

    #[test]
    fn what_the_kernel_adds_or_does_not_flag_makes_no_difference() {
        let wanted = Attributes::new().nest(2, &Attributes::new().u32(1, 5));
        let inner = Attributes::new().u32(1, 5).u32(7, 0);
        let found = Attributes::new().u32(1, 0).bytes(2, inner.as_bytes());
        assert!(covers(&wanted, found.as_bytes()));
        let other = Attributes::new().nest(2, &Attributes::new().u32(1, 6));
        assert!(!covers(&wanted, other.as_bytes()));
        assert!(!covers(&wanted, &[]));
    }

    #[test]
    fn messages_come_back_as_they_were_sent() {
        let head = Head {
            kind: 0x0a06,
            flags: 5,
            family: 2,
            resource: 10,
        };
        let mut buffer = Vec::new();
        append(&mut buffer, head, 7, &Attributes::new().bytes(1, &[1]));
        append(&mut buffer, head, 8, &Attributes::new());
        let back: Vec<_> = received(&buffer).collect();
        assert_eq!((back[0].kind, back[0].flags, back[0].seq), (0x0a06, 5, 7));
        assert_eq!(back[0].body[..4], [2, 0, 0, 10]);
        assert_eq!(find(&back[0].body[4..], 1), Some(&[1][..]));
        assert_eq!((back[1].seq, back[1].body.len()), (8, 4));
    }

    #[test]
    fn what_is_cut_off_is_not_read() {
        let mut bytes = Attributes::new().u32(1, 5).as_bytes().to_vec();
        bytes.truncate(6);
        assert_eq!(find(&bytes, 1), None);
        assert_eq!(received(&[20, 0, 0]).count(), 0);
        assert_eq!(attributes(&[3, 0, 1, 0]).count(), 0);
    }
}
