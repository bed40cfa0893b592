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
        let separator = match text.as_bytes().get(2) {
            Some(b':') => ':',
            Some(b'-') => '-',
            _ => '.',
        };
        let digits = if separator == '.' { 4 } else { 2 };
        let groups: Vec<&str> = text.split(separator).collect();
        let well_formed = groups.len() * digits == 12
            && groups.iter().all(|group| {
                group.len() == digits && group.bytes().all(|digit| digit.is_ascii_hexdigit())
            });
        let number = u64::from_str_radix(&groups.concat(), 16).ok();
        match number {
            Some(number) if well_formed => {
                let [_, _, octets @ ..] = number.to_be_bytes();
                Ok(Self(octets))
            }
            _ => Err(InvalidMac(text.to_owned())),
        }
    }
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
    fn random_ones_are_local_unicast_and_differ() {
        let (one, [two, three]) = (Mac::random().unwrap(), Mac::random_pair().unwrap());
        assert!(one != two && two != three && one != three);
        for mac in [one, two, three, Mac::local([0xff; 6]), Mac::local([0; 6])] {
            assert_eq!(mac.0[0] & 0x03, 0x02, "{mac}");
        }
    }
}
