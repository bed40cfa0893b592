//! From keys to what is to be done, without touching anything.

use std::fmt;
use std::net::IpAddr;

use anyhow::Result;
use cni::env::IfName;
use cni::faults::{CNI_ARGS, Checks, Fault, Faults};
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
    ///
    /// # Errors
    /// Code 7, each fault with its key; 4 for CNI_ARGS.
    pub fn new(conf: &Conf, args_mac: Option<String>) -> Result<Self, Faults> {
        let mut checks = Checks::default();
        let mode = checks.take(mode(&conf.mode));
        let mac = checks.take(mac(conf, args_mac));
        if matches!(mac, Some(Some(_))) && mode == Some(MacvlanMode::Passthru) {
            // The kernel would ignore it, and the result would have a MAC that the pod has not.
            let msg = "mode passthru has the MAC of the parent: no other can be asked for";
            checks.add(Fault::new("mode", msg));
        }
        let accept_ra = checks.take(accept_ra(&conf.accept_ra));
        let shim = conf.host_shim.as_ref().map(|keys| shim(keys, conf, mode));
        let shim = checks.take(shim.transpose());
        checks.finish(|| {
            Some(Self {
                master: Master::new(&conf.master),
                link_in_container: conf.link_in_container,
                mode: mode?,
                mac: mac?,
                mtu: conf.mtu,
                bc_queue_len: Some(conf.bcqueuelen).filter(|length| *length != 0),
                detect_conflicts: conf.detect_conflicts,
                accept_ra: accept_ra?,
                shim: shim?,
            })
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
    pub fn mtu_on(&self, parent_mtu: u32) -> Result<Option<u32>, Fault> {
        let mtu = u32::try_from(self.mtu).ok();
        match mtu.filter(|mtu| *mtu <= parent_mtu) {
            Some(mtu) => Ok(Some(mtu).filter(|mtu| *mtu != 0)),
            None => {
                let mtu = self.mtu;
                let msg = format!("invalid MTU {mtu}, must be [0, master MTU({parent_mtu})]");
                Err(Fault::new("mtu", msg))
            }
        }
    }
}

fn mode(text: &str) -> Result<MacvlanMode, Fault> {
    match text {
        "" => Ok(MacvlanMode::Bridge),
        text => text.parse().map_err(|msg: String| Fault::new("mode", msg)),
    }
}

fn accept_ra(text: &str) -> Result<Option<AcceptRa>, Fault> {
    match text {
        "" => Ok(None),
        "off" => Ok(Some(AcceptRa::Off)),
        "on" => Ok(Some(AcceptRa::On)),
        "forwarding" => Ok(Some(AcceptRa::Forwarding)),
        other => {
            let msg = format!("acceptRA: {other:?} is none of off, on, forwarding");
            Err(Fault::new("acceptRA", msg))
        }
    }
}

fn shim(keys: &HostShim, conf: &Conf, mode: Option<MacvlanMode>) -> Result<Shim, Faults> {
    let fault = |key: &str, why: &str| Fault::new(key, format!("{key}: {why}"));
    let mut checks = Checks::default();
    if conf.link_in_container {
        let why = "the parent is in the pod, not on the node";
        checks.add(fault("hostShim", why));
    }
    if let Some(mode) = mode.filter(|mode| *mode != MacvlanMode::Bridge) {
        let why = format!("mode {mode} keeps the node from its pods: it needs mode bridge");
        checks.add(fault("hostShim", &why));
    }
    let name = IfName::parse(&keys.name);
    let name = checks.take(name.map_err(|error| fault("hostShim.name", &error.to_string())));
    if name.is_some() && keys.name == conf.master {
        let why = format!("{:?} is the master", keys.name);
        checks.add(fault("hostShim.name", &why));
    }
    let addresses: Vec<_> = keys.address.0.iter().map(|it| it.0).collect();
    if addresses.is_empty() {
        checks.add(fault("hostShim.address", "missing"));
    }
    for address in addresses.iter().filter(|it| !is_of_a_host(**it)) {
        let why = format!("{address} cannot be the address of a host");
        checks.add(fault("hostShim.address", &why));
    }
    checks.finish(|| {
        let name = name?;
        Some(Shim { name, addresses })
    })
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

/// The runtime's MAC counts first, then that of the arguments, then that of the configuration.
fn mac(conf: &Conf, args_mac: Option<String>) -> Result<Option<Mac>, Fault> {
    let args_mac = args_mac.unwrap_or_default();
    let sources = [
        ("runtimeConfig.mac", &conf.runtime_config.mac),
        ("args.cni.mac", &conf.args.cni.mac),
        (CNI_ARGS, &args_mac),
        ("mac", &conf.mac),
    ];
    let Some((key, text)) = sources.into_iter().find(|(_, text)| !text.is_empty()) else {
        return Ok(None);
    };
    let code = if key == CNI_ARGS {
        Code::InvalidEnvironment
    } else {
        Code::InvalidConfig
    };
    let fault = |why: &str| {
        let error = code.err(format!("invalid args {text} for MAC addr: {why}"));
        Fault::at(key, error)
    };
    let mac: Mac = text
        .parse()
        .map_err(|error: netlink::InvalidMac| fault(&error.to_string()))?;
    if mac.is_multicast() || mac.is_zero() {
        return Err(fault("an interface cannot have this MAC address"));
    }
    Ok(Some(mac))
}

#[cfg(test)]
mod tests;
