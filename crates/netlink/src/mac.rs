//! Hardware addresses of six bytes.

use std::{fmt, fs::File, io::Read, str::FromStr};

/// An Ethernet address. It displays as `02:00:5e:10:00:01`.
///
/// ```
/// use netlink::Mac;
///
/// let mac: Mac = "02-00-5E-10-00-01".parse().unwrap();
/// assert_eq!(mac.to_string(), "02:00:5e:10:00:01");
/// assert_eq!("0200.5e10.0001".parse(), Ok(mac));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// ff:ff:ff:ff:ff:ff, all hosts on the link.
    pub const BROADCAST: Self = Self([0xff; 6]);

    /// A random, locally administered unicast address.
    ///
    /// # Errors
    /// When /dev/urandom cannot be read.
    pub fn random() -> std::io::Result<Self> {
        let [one, _] = Self::random_pair()?;
        Ok(one)
    }

    /// Two of them, for the ends of a pair.
    ///
    /// # Errors
    /// As [`Mac::random`].
    pub fn random_pair() -> std::io::Result<[Self; 2]> {
        let mut octets = [[0; 6]; 2];
        File::open("/dev/urandom")?.read_exact(octets.as_flattened_mut())?;
        Ok(octets.map(Self::local))
    }

    /// `octets` made a locally administered unicast address (IEEE 802: bit 1 of
    /// the first octet set, bit 0 clear).
    pub fn local(mut octets: [u8; 6]) -> Self {
        octets[0] = (octets[0] | 0x02) & !0x01;
        Self(octets)
    }

    /// Whether this is 00:00:00:00:00:00, which no device can have; a bridge without ports shows it.
    pub fn is_zero(self) -> bool {
        self.0 == [0; 6]
    }

    /// Whether this is a group address, which no device can have.
    pub fn is_multicast(self) -> bool {
        self.0[0] & 1 == 1
    }

    pub(crate) fn from_slice(octets: &[u8]) -> Option<Self> {
        octets.try_into().ok().map(Self)
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// The text is not a hardware address of six bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidMac(String);

impl fmt::Display for InvalidMac {
    /// The text of Go's `net.ParseMAC`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "address {}: invalid MAC address", self.0)
    }
}

impl std::error::Error for InvalidMac {}

impl FromStr for Mac {
    type Err = InvalidMac;

    /// Reads six pairs of digits separated by `:` or `-`, or three groups of four separated by `.`.
    fn from_str(text: &str) -> Result<Self, InvalidMac> {
        let octets = octets(text).filter(|octets| octets.len() == 6);
        let mac = octets.and_then(|octets| Self::from_slice(&octets));
        mac.ok_or_else(|| InvalidMac(text.to_owned()))
    }
}

/// A hardware address of any kind of link: an Ethernet address, an EUI-64 (IEEE 802.15.4), or the 20
/// bytes of InfiniBand. It displays as pairs of digits separated by `:`.
///
/// ```
/// use netlink::HardwareAddress;
///
/// let address: HardwareAddress = "0200.5E10.0001.0203".parse().unwrap();
/// assert_eq!(address.to_string(), "02:00:5e:10:00:01:02:03");
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HardwareAddress(pub Vec<u8>);

impl fmt::Display for HardwareAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, octet) in self.0.iter().enumerate() {
            let separator = if at == 0 { "" } else { ":" };
            write!(f, "{separator}{octet:02x}")?;
        }
        Ok(())
    }
}

impl FromStr for HardwareAddress {
    type Err = InvalidMac;

    /// Reads 6, 8 or 20 bytes in the notations of a [`Mac`].
    fn from_str(text: &str) -> Result<Self, InvalidMac> {
        let octets = octets(text).filter(|octets| [6, 8, 20].contains(&octets.len()));
        octets.map(Self).ok_or_else(|| InvalidMac(text.to_owned()))
    }
}

/// The bytes of a text of pairs of digits separated by `:` or `-`, or of groups of four separated by
/// `.`.
fn octets(text: &str) -> Option<Vec<u8>> {
    let separator = match text.as_bytes().get(2) {
        Some(b':') => ':',
        Some(b'-') => '-',
        _ => '.',
    };
    let digits = if separator == '.' { 4 } else { 2 };
    let mut octets = Vec::new();
    for group in text.split(separator) {
        if group.len() != digits || !group.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return None;
        }
        let pairs = (0..digits).step_by(2);
        octets.extend(pairs.filter_map(|at| u8::from_str_radix(&group[at..at + 2], 16).ok()));
    }
    Some(octets)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_three_notations_are_read_and_one_is_written() {
        for text in ["02:0A:ff:00:01:fe", "02-0a-ff-00-01-fe", "020a.ff00.01fe"] {
            let mac: Mac = text.parse().unwrap();
            assert_eq!(mac, Mac([0x02, 0x0a, 0xff, 0x00, 0x01, 0xfe]));
            assert_eq!(mac.to_string(), "02:0a:ff:00:01:fe");
        }
    }

    #[test]
    fn anything_else_is_refused_with_the_text_in_the_message() {
        for text in [
            "",
            "x",
            "02:0a:ff:00:01",
            "02:0a:ff:00:01:fe:00",
            "02:0a-ff:00:01:fe",
            "2:0a:ff:00:01:fe",
            "+2:0a:ff:00:01:fe",
            "020aff0001fe",
            "02:0a:ff:00:01:fg",
            "0é:0a:ff:00:01:f",
        ] {
            let error = text.parse::<Mac>().unwrap_err();
            assert_eq!(
                error.to_string(),
                format!("address {text}: invalid MAC address")
            );
        }
    }

    #[test]
    fn longer_addresses_are_read_where_they_may_be() {
        let infiniband = ["00"; 20].join(":");
        for text in ["02:0a:ff:00:01:fe", "02-0a-ff-00-01-fe-00-01", &infiniband] {
            let address: HardwareAddress = text.parse().unwrap();
            assert_eq!(address.to_string(), text.replace('-', ":"));
        }
        for text in ["", "02:0a", "02:0a:ff:00:01:fe:00", "00:11:22:33:44:5é"] {
            assert!(text.parse::<HardwareAddress>().is_err(), "{text}");
        }
    }

    #[test]
    fn random_ones_are_local_unicast_and_differ() {
        let (one, [two, three]) = (Mac::random().unwrap(), Mac::random_pair().unwrap());
        assert!(one != two && two != three && one != three);
        for mac in [one, two, three, Mac::local([0xff; 6]), Mac::local([0; 6])] {
            assert_eq!(mac.0[0] & 0x03, 0x02, "{mac}");
        }
    }
}
