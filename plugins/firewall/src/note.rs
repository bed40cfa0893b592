//! What ADD notes about an attachment, for a DEL or GC without a result.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use anyhow::Result;
use packet_filter::{Firewall, FirewallBackend, Kind};

/// Where an attachment has rules, and for which addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Note {
    /// What has the rules; `None` if nothing is known.
    pub backend: Option<FirewallBackend>,
    /// The zone of firewalld.
    pub zone: String,
    /// The addresses.
    pub addresses: Vec<IpAddr>,
}

impl Note {
    /// Rules of `backend` for `addresses`.
    pub fn new(backend: FirewallBackend, zone: &str, addresses: &[IpAddr]) -> Self {
        Self {
            backend: Some(backend),
            zone: zone.to_owned(),
            addresses: addresses.to_vec(),
        }
    }

    /// Removes the rules.
    pub fn remove(&self) -> Result<()> {
        match self.backend {
            Some(backend) => backend.remove(&self.zone, &self.addresses),
            None => Ok(()),
        }
    }
}

/// What an attachment uses: the policy of a bridge, `iptables-cni0`, or nothing that others use.
pub fn what(wanted: &Firewall, backend: FirewallBackend) -> Result<String> {
    Ok(match &wanted.ingress {
        Some(ingress) => format!("{}-{}", backend.of_policies()?, ingress.bridge),
        None => "open".to_owned(),
    })
}

/// The bridge whose policy that is, and what has the policy.
pub fn policy_of(what: &str) -> Option<(Kind, &str)> {
    let (kind, bridge) = what.split_once('-')?;
    Some((Kind::of_key(Some(kind)).ok()??, bridge))
}

impl fmt::Display for Note {
    /// The back end, the zone and each address on a line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let backend = self.backend.map_or("", FirewallBackend::name);
        writeln!(f, "{backend}\n{}", self.zone)?;
        self.addresses.iter().try_for_each(|ip| writeln!(f, "{ip}"))
    }
}

impl FromStr for Note {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut lines = text.lines();
        let backend = lines.next().and_then(FirewallBackend::named);
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
        let note = Note::new(FirewallBackend::Firewalld, "a zone", &addresses);
        assert_eq!(note.to_string().parse(), Ok(note));
        for odd in ["", "x\ny\n", "iptables\n\nx\n"] {
            assert!(odd.parse::<Note>().is_err(), "{odd}");
        }
    }

    #[test]
    fn a_policy_is_known_by_its_use() {
        let bridge = Some((Kind::Nftables, "br-0"));
        assert_eq!(policy_of("nftables-br-0"), bridge);
        assert_eq!(policy_of("open"), None);
    }
}
