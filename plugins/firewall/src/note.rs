//! What ADD notes about an attachment, for a DEL or GC without a result.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use crate::plan::Backend;

/// Where an attachment has rules, and for which addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Note {
    /// What has the rules; `None` if nothing is known.
    pub backend: Option<Backend>,
    /// The zone of firewalld.
    pub zone: String,
    /// The addresses.
    pub addresses: Vec<IpAddr>,
}

impl Note {
    /// Rules of `backend` for `addresses`.
    pub fn new(backend: Backend, zone: &str, addresses: &[IpAddr]) -> Self {
        Self {
            backend: Some(backend),
            zone: zone.to_owned(),
            addresses: addresses.to_vec(),
        }
    }
}

impl fmt::Display for Note {
    /// The back end, the zone and each address on a line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let backend = self.backend.map_or("", Backend::name);
        writeln!(f, "{backend}\n{}", self.zone)?;
        self.addresses.iter().try_for_each(|ip| writeln!(f, "{ip}"))
    }
}

impl FromStr for Note {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut lines = text.lines();
        let backend = lines.next().and_then(Backend::named);
        let zone = lines.next().unwrap_or_default().to_owned();
        let addresses = lines.map(|line| line.parse().map_err(|_| line.to_owned()));
        Ok(Self {
            backend: Some(backend.ok_or_else(|| text.to_owned())?),
            zone,
            addresses: addresses.collect::<Result<_, _>>()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_read_as_it_was_written() {
        let addresses = ["10.0.0.2", "fd00::2"].map(|ip| ip.parse().unwrap());
        let note = Note::new(Backend::Firewalld, "a zone", &addresses);
        assert_eq!(note.to_string().parse(), Ok(note));
        for odd in ["", "x\ny\n", "iptables\n\nx\n"] {
            assert!(odd.parse::<Note>().is_err(), "{odd}");
        }
    }
}
