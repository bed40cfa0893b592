//! From keys to what is to be done, without touching anything.

use std::fmt;
use std::net::IpAddr;

use anyhow::Result;
use cni::env::IfName;
use cni::{Attachment, Code, names};
use ipnetwork::IpNetwork;
use netlink::{AcceptRa, LinkKind, LinkSpec, Mac, MacvlanMode, Parent};

use crate::conf::{Conf, HostShim};
use crate::pattern::Patterns;

/// A configuration in which nothing contradicts anything.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Which interface is the parent.
    pub master: Master,
    /// Whether the parent is in the pod.
    pub link_in_container: bool,
    /// What the parent's macvlans are to each other.
    pub mode: MacvlanMode,
    /// The MAC that somebody asked for.
    pub mac: Option<Mac>,
    /// MTU as it is written: what is too much depends on the parent.
    pub mtu: i64,
    /// How many broadcasts may wait.
    pub bc_queue_len: Option<u32>,
    /// Whether the segment is asked for an address before it is used.
    pub detect_conflicts: bool,
    /// What the pod does with router advertisements; `None` leaves it to the kernel.
    pub accept_ra: Option<AcceptRa>,
    /// The node's own interface on the parent.
    pub shim: Option<Shim>,
}

/// The node's own macvlan on the parent (`hostShim`).
#[derive(Clone, Debug, PartialEq)]
pub struct Shim {
    /// Its name.
    pub name: IfName,
    /// Its addresses.
    pub addresses: Vec<IpNetwork>,
}

/// How the parent is chosen.
#[derive(Clone, Debug, PartialEq)]
pub enum Master {
    /// The interface with the default route.
    DefaultRoute,
    /// This one.
    Named(String),
    /// One whose name matches.
    Like(Patterns),
}

impl Master {
    fn new(text: &str) -> Self {
        match (text, Patterns::parse(text)) {
            ("", _) => Self::DefaultRoute,
            (_, Some(patterns)) => Self::Like(patterns),
            (name, None) => Self::Named(name.to_owned()),
        }
    }
}

impl fmt::Display for Master {
    /// As it is written.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DefaultRoute => Ok(()),
            Self::Named(name) => f.write_str(name),
            Self::Like(patterns) => patterns.fmt(f),
        }
    }
}

impl Plan {
    /// Checks everything that can be checked without the kernel. `args_mac` is
    /// `MAC` of CNI_ARGS.
    pub fn new(conf: &Conf, args_mac: Option<String>) -> Result<Self> {
        let mode = match conf.mode.as_str() {
            "" => MacvlanMode::Bridge,
            text => text.parse().map_err(|error: String| invalid(&error))?,
        };
        let mac = mac(conf, args_mac)?;
        if mac.is_some() && mode == MacvlanMode::Passthru {
            // The kernel would ignore it, and ADD promise a MAC that the pod has not.
            return Err(invalid(
                "mode passthru has the MAC of the parent: no other can be asked for",
            ));
        }
        Ok(Self {
            master: Master::new(&conf.master),
            link_in_container: conf.link_in_container,
            mode,
            mac,
            mtu: conf.mtu,
            bc_queue_len: Some(conf.bcqueuelen).filter(|length| *length != 0),
            detect_conflicts: conf.detect_conflicts,
            accept_ra: accept_ra(&conf.accept_ra).map_err(|fault| invalid(&fault))?,
            shim: conf
                .host_shim
                .as_ref()
                .map(|keys| shim(keys, conf, mode))
                .transpose()?,
        })
    }

    /// What is to be made for `attachment` on `parent`.
    pub fn spec(&self, attachment: &Attachment, parent: &Parent) -> Result<LinkSpec> {
        let mac = match self.mode {
            MacvlanMode::Passthru => None,
            _ => Some(self.mac.map_or_else(Mac::random, Ok)?),
        };
        Ok(LinkSpec {
            name: attachment.ifname.to_string(),
            temporary: temporary_name(attachment),
            parent: Some(parent.link.index),
            mtu: self.mtu_on(parent.link.mtu)?,
            mac,
            kind: LinkKind::Macvlan {
                mode: self.mode,
                bc_queue_len: self.bc_queue_len,
            },
        })
    }

    /// The MTU to set on a parent with `parent_mtu`; `None` leaves it to the kernel.
    pub fn mtu_on(&self, parent_mtu: u32) -> Result<Option<u32>> {
        let mtu = u32::try_from(self.mtu).ok();
        match mtu.filter(|mtu| *mtu <= parent_mtu) {
            Some(mtu) => Ok(Some(mtu).filter(|mtu| *mtu != 0)),
            None => Err(invalid(&format!(
                "invalid MTU {}, must be [0, master MTU({parent_mtu})]",
                self.mtu
            ))),
        }
    }
}

/// The words of `acceptRA`.
///
/// # Errors
/// `acceptRA: "x" is none of off, on, forwarding`
pub fn accept_ra(text: &str) -> Result<Option<AcceptRa>, String> {
    match text {
        "" => Ok(None),
        "off" => Ok(Some(AcceptRa::Off)),
        "on" => Ok(Some(AcceptRa::On)),
        "forwarding" => Ok(Some(AcceptRa::Forwarding)),
        other => Err(format!(
            "acceptRA: {other:?} is none of off, on, forwarding"
        )),
    }
}

fn shim(keys: &HostShim, conf: &Conf, mode: MacvlanMode) -> Result<Shim> {
    let fault = |place: &str, why: &str| invalid(&format!("hostShim{place}: {why}"));
    if conf.link_in_container {
        return Err(fault("", "the parent is in the pod, not on the node"));
    }
    if mode != MacvlanMode::Bridge {
        let why = format!("mode {mode} keeps the node from its pods: it needs mode bridge");
        return Err(fault("", &why));
    }
    let name = IfName::parse(&keys.name).map_err(|error| fault(".name", &error.to_string()))?;
    if keys.name == conf.master {
        return Err(fault(".name", &format!("{:?} is the master", keys.name)));
    }
    let addresses: Vec<_> = keys.address.0.iter().map(|it| it.0).collect();
    if addresses.is_empty() {
        return Err(fault(".address", "missing"));
    }
    match addresses.iter().find(|it| !is_of_a_host(**it)) {
        Some(address) => {
            let why = format!("{address} cannot be the address of a host");
            Err(fault(".address", &why))
        }
        None => Ok(Shim { name, addresses }),
    }
}

fn is_of_a_host(address: IpNetwork) -> bool {
    let ip = address.ip();
    let is_special = ip.is_unspecified() || ip.is_loopback() || ip.is_multicast();
    let (has_ends, last) = match address {
        IpNetwork::V4(v4) => (v4.prefix() < 31, IpAddr::from(v4.broadcast())),
        IpNetwork::V6(v6) => (v6.prefix() < 127, IpAddr::from(v6.network())),
    };
    !is_special && !(has_ends && (ip == address.network() || ip == last))
}

/// What the shim of `network` called `name` is called until it is known for ours.
pub fn temporary_shim_name(network: &str, name: &str) -> String {
    names::prefixed(12, "shim", &format!("{network}/{name}"))
}

/// What the link is called while it cannot have its name yet: DEL looks for it.
pub fn temporary_name(attachment: &Attachment) -> String {
    attachment.host_veth(0)
}

fn invalid(msg: &str) -> anyhow::Error {
    Code::InvalidConfig.err(msg).into()
}

/// The runtime knows best, then the arguments, then the configuration itself.
fn mac(conf: &Conf, args_mac: Option<String>) -> Result<Option<Mac>> {
    let args_mac = args_mac.unwrap_or_default();
    let channels = [
        (&conf.runtime_config.mac, Code::InvalidConfig),
        (&conf.args.cni.mac, Code::InvalidConfig),
        (&args_mac, Code::InvalidEnvironment),
        (&conf.mac, Code::InvalidConfig),
    ];
    let Some((text, code)) = channels.into_iter().find(|(text, _)| !text.is_empty()) else {
        return Ok(None);
    };
    let fault = |why: &str| code.err(format!("invalid args {text} for MAC addr: {why}"));
    let mac: Mac = text
        .parse()
        .map_err(|error: netlink::InvalidMac| fault(&error.to_string()))?;
    if mac.is_multicast() || mac.is_zero() {
        return Err(fault("an interface cannot have this MAC address").into());
    }
    Ok(Some(mac))
}

#[cfg(test)]
mod tests;
