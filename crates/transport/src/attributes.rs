//! Netlink attributes: a length, a type and a value, padded to four bytes. A value may be a
//! list of attributes again.

use std::marker::PhantomData;

use crate::protocol::Protocol;

const NLA_HEADER: usize = 4;
/// Bytes to reserve at least: a list of numbers is seldom longer.
const USUAL: usize = 48;
const NLA_F_NESTED: u16 = 0x8000;
/// The two highest bits of a type are flags.
const NLA_TYPE_MASK: u16 = 0x3fff;

/// Attributes to send, with the numbers of `P`.
#[derive(Debug, PartialEq, Eq)]
pub struct Attributes<P> {
    bytes: Vec<u8>,
    protocol: PhantomData<P>,
}

impl<P> Default for Attributes<P> {
    fn default() -> Self {
        Self {
            bytes: Vec::new(),
            protocol: PhantomData,
        }
    }
}

impl<P> Clone for Attributes<P> {
    fn clone(&self) -> Self {
        Self {
            bytes: self.bytes.clone(),
            protocol: PhantomData,
        }
    }
}

impl<P: Protocol> Attributes<P> {
    /// An empty list.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends `value` as it is.
    pub fn bytes(self, kind: u16, value: &[u8]) -> Self {
        self.append(kind, value, 0)
    }

    /// Appends a text with the zero byte that ends it.
    pub fn text(self, kind: u16, value: &str) -> Self {
        self.append(kind, value.as_bytes(), 1)
    }

    /// Appends `value` and `zeros` zero bytes, which count as part of it.
    fn append(mut self, kind: u16, value: &[u8], zeros: usize) -> Self {
        let length = NLA_HEADER + value.len() + zeros;
        let end = self.bytes.len() + length.next_multiple_of(4);
        self.bytes.reserve(length.max(USUAL));
        let [l0, l1] = (length as u16).to_ne_bytes();
        let [k0, k1] = kind.to_ne_bytes();
        self.bytes.extend_from_slice(&[l0, l1, k0, k1]);
        self.bytes.extend_from_slice(value);
        self.bytes.resize(end, 0);
        self
    }

    /// Appends a number.
    pub fn u32(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &P::encode(value.to_ne_bytes()))
    }

    /// Appends a number.
    pub fn u64(self, kind: u16, value: u64) -> Self {
        self.bytes(kind, &P::encode(value.to_ne_bytes()))
    }

    /// Appends a nested list.
    pub fn nest(self, kind: u16, inner: &Self) -> Self {
        self.bytes(kind | NLA_F_NESTED, &inner.bytes)
    }

    /// The list as it is sent.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// Type and value of each attribute in `bytes`, up to the first that is cut off.
pub fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    flagged_attributes(bytes).map(|(kind, value)| (kind & NLA_TYPE_MASK, value))
}

/// The same, with the flags in the type.
pub fn flagged_attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let header = bytes.first_chunk::<NLA_HEADER>()?;
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let value = bytes.get(NLA_HEADER..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes([header[2], header[3]]), value))
    })
}

/// The value of the first attribute of type `kind`.
pub fn find(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes)
        .find(|(found, _)| *found == kind)
        .map(|(_, value)| value)
}

/// The value at the end of a path of nested attributes.
pub fn find_in<'a>(bytes: &'a [u8], path: &[u16]) -> Option<&'a [u8]> {
    path.iter()
        .try_fold(bytes, |bytes, kind| find(bytes, *kind))
}

/// A text without the zero byte that ends it; `None` if it is not UTF-8.
pub fn text(value: &[u8]) -> Option<&str> {
    let text = value.split(|byte| *byte == 0).next()?;
    std::str::from_utf8(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Netfilter, Route};

    #[test]
    fn attributes_are_padded_but_their_length_is_not() {
        let sent = Attributes::<Netfilter>::new()
            .text(1, "nat")
            .bytes(2, &[7])
            .u32(3, 5);
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
        let number = find(sent.as_bytes(), 3).and_then(Netfilter::u32);
        assert_eq!(number, Some(5));
        assert_eq!(find(sent.as_bytes(), 4), None);
    }

    #[test]
    fn nested_attributes_are_found_by_their_path() {
        let inner = Attributes::<Route>::new().u64(9, 1 << 40);
        let sent = Attributes::new().u32(1, 0).nest(4, &inner);
        let found = find_in(sent.as_bytes(), &[4, 9]).and_then(Route::u64);
        assert_eq!(found, Some(1 << 40));
    }

    #[test]
    fn attributes_are_read_up_to_one_that_is_cut_off() {
        let sent = Attributes::<Route>::new()
            .text(3, "eth0")
            .nest(18, &Attributes::new().u32(1, 7));
        let bytes = sent.as_bytes();
        let read = |length| {
            attributes(&bytes[..length])
                .map(|it| it.0)
                .collect::<Vec<_>>()
        };
        assert_eq!(read(bytes.len()), [3, 18]);
        assert_eq!(read(bytes.len() - 1), [3]);
        assert!(read(8).is_empty());
        assert!(read(0).is_empty());
        // A length shorter than its own header.
        assert_eq!(attributes(&[3, 0, 1, 0]).count(), 0);
    }
}
