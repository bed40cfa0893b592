//! The effect of rules, for people: each rule, or element of a set, that belongs to a network or a
//! pod. The few rules that are the same on every node are left out. Ports that nf_tables publishes
//! are listed elsewhere (`Nftables::published_ports`).

mod iptables;

use anyhow::Result;
use ipnetwork::IpNetwork;
use nftables::{Element, Part, Socket};

use crate::backend::Nftables;
use crate::{access, isolation, masquerade, separation, spoof_check, vxlan_guard};

/// A rule, or an element of a set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// Its effect.
    pub subject: Subject,
    /// Its table: `inet podwire_isolation`, or of iptables `iptables nat`.
    pub table: String,
    /// The network that its comment names; a long name is hashed there.
    pub network: Option<String>,
    /// The names of its devices.
    pub devices: Vec<String>,
    /// Its subnet, or for a link the address that is reached.
    pub subnet: Option<IpNetwork>,
    /// Its comment as it is.
    pub comment: String,
    /// For an element, the set and the key: `nat_devices "cni0"`; for a rule of iptables, its chain, and
    /// its ports.
    pub element: String,
}

/// The effect of a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// Packets from a subnet get the node's address.
    Masquerade,
    /// Pods of a network do not reach each other through the node.
    Isolation,
    /// Access to and from a network.
    Access,
    /// A port of a pod that is opened.
    OpenPort,
    /// A port of a pod that another pod of its network reaches.
    Link,
    /// Networks do not reach each other.
    Separation,
    /// A pod sends with its own MAC only.
    SpoofCheck,
    /// Only known hosts send packets of a VXLAN network.
    VxlanGuard,
    /// A port of the node leads to a pod.
    PublishedPort,
    /// The plugin firewall lets packets of a pod through.
    Firewall,
    /// DNS queries are accepted.
    Names,
}

impl Subject {
    /// Its effect, in two or three words.
    pub fn words(self) -> &'static str {
        match self {
            Self::Masquerade => "masquerade",
            Self::Isolation => "isolation",
            Self::Access => "access",
            Self::OpenPort => "open port",
            Self::Link => "link",
            Self::Separation => "separation",
            Self::SpoofCheck => "MAC spoof check",
            Self::VxlanGuard => "VXLAN guard",
            Self::PublishedPort => "published port",
            Self::Firewall => "accept",
            Self::Names => "names",
        }
    }
}

impl Applied {
    /// An entry with this comment, without a device.
    pub(crate) fn new(subject: Subject, table: impl ToString, comment: &str) -> Self {
        Self {
            subject,
            table: table.to_string(),
            network: network_in(comment),
            devices: Vec::new(),
            subnet: None,
            comment: comment.to_owned(),
            element: String::new(),
        }
    }

    /// An element, with the devices of its key.
    pub(crate) fn element(subject: Subject, table: impl ToString, element: &Element) -> Self {
        let devices = element.key.iter().filter_map(|part| match part {
            Part::Interface(name) => {
                let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
                Some(String::from_utf8_lossy(name).into_owned())
            }
            _ => None,
        });
        Self {
            devices: devices.collect(),
            element: format!("{} {}", element.set.name, element.key_text()),
            ..Self::new(subject, table, &element.comment)
        }
    }
}

/// The network that a comment names: `net: mynet`, or `hash, net: mynet, if: eth0, id: …`.
fn network_in(comment: &str) -> Option<String> {
    let (_, rest) = comment.split_once("net: ")?;
    let name = rest.split(", if: ").next()?;
    Some(name.to_owned())
}

impl Nftables {
    /// The effect of podwire's rules. `subnets` are the subnets that may be masqueraded: a rule is
    /// compared with each, not decoded.
    ///
    /// # Errors
    /// The kernel refuses a listing.
    pub fn inventory(&self, subnets: &[IpNetwork]) -> Result<Vec<Applied>> {
        let socket: &Socket = &self.socket;
        let mut all = masquerade::nftables::inventory(socket, subnets)?;
        all.extend(isolation::inventory(socket, subnets)?);
        all.extend(access::inventory(socket)?);
        all.extend(separation::inventory(socket)?);
        all.extend(spoof_check::inventory(socket)?);
        all.extend(vxlan_guard::inventory(socket)?);
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comment_names_its_network() {
        let name = |it| network_in(it);
        assert_eq!(name("net: mynet").as_deref(), Some("mynet"));
        assert_eq!(name("d23676b4f2d9fe04, net: a, b").as_deref(), Some("a, b"));
        let pod = "d23676b4f2d9fe04-a64ba18ca6ffe108, net: mynet, if: eth0, id: c1";
        assert_eq!(name(pod).as_deref(), Some("mynet"));
        assert_eq!(name("mynet/c1/eth0"), None);
    }
}
