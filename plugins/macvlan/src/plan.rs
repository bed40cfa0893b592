//! Decides from the keys what to do. Pure: no system calls.

use anyhow::Result;
use cni::Attachment;
use cni::faults::{Checks, Fault, Faults};
use netlink::{AcceptRa, LinkKind, LinkSpec, Mac, MacvlanMode, Parent};
use wiring::parent::{self, ParentSpec};
use wiring::shim::Shim;
use wiring::{mac, remains};

use crate::conf::Conf;

/// A configuration without contradictions.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Which interface is the parent.
    pub parent: ParentSpec,
    /// How the macvlans of one parent communicate.
    pub mode: MacvlanMode,
    /// The MAC that was requested.
    pub mac: Option<Mac>,
    /// The key `mtu`, whose limit depends on the parent: see [`parent::mtu_on`].
    pub mtu: i64,
    /// How many broadcasts may wait; `None` leaves it to the kernel.
    pub bc_queue_len: Option<u32>,
    /// Whether the segment is probed for an address before it is used.
    pub detect_conflicts: bool,
    /// What the pod does with router advertisements; `None` leaves it to the kernel.
    pub accept_ra: Option<AcceptRa>,
    /// The node's own interface on the parent.
    pub shim: Option<Shim>,
}

impl Plan {
    /// Checks everything that can be checked without the kernel. `args_mac` is `MAC` of CNI_ARGS.
    ///
    /// # Errors
    /// Code 7, each fault with its key; 4 for CNI_ARGS.
    pub fn new(conf: &Conf, args_mac: Option<String>) -> Result<Self, Faults> {
        let mut checks = Checks::default();
        let mode = checks.take(mode(&conf.mode));
        let action = |text: &str| format!("invalid args {text} for MAC addr");
        let (runtime, args, own) = (&conf.runtime_config, &conf.args, &conf.mac);
        let mac = checks.take(mac::requested(runtime, args, args_mac, own, action));
        if matches!(mac, Some(Some(_))) && mode == Some(MacvlanMode::Passthru) {
            // The kernel would ignore it, and the result would have another MAC than the pod.
            let msg = "mode passthru has the MAC of the parent: no other can be requested";
            checks.add(Fault::new("mode", msg));
        }
        let accept_ra = checks.take(accept_ra(&conf.accept_ra));
        let shim = checks.take(shim(conf, mode));
        checks.finish(|| {
            Some(Self {
                parent: ParentSpec::new(&conf.master, conf.link_in_container),
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

    /// The link to create for `attachment` on `parent`.
    ///
    /// # Errors
    /// Code 7: the MTU is not possible on `parent`.
    pub fn spec(&self, attachment: &Attachment, parent: &Parent) -> Result<LinkSpec> {
        let mac = match self.mode {
            MacvlanMode::Passthru => None,
            _ => Some(self.mac.map_or_else(Mac::random, Ok)?),
        };
        Ok(LinkSpec {
            name: attachment.ifname.to_string(),
            temporary: remains::temporary_name(attachment),
            parent: Some(parent.link.index),
            mtu: parent::mtu_on(self.mtu, parent.link.mtu)?,
            mac,
            kind: LinkKind::Macvlan {
                mode: self.mode,
                bc_queue_len: self.bc_queue_len,
            },
        })
    }

    /// Why the kernel refuses the link as invalid.
    pub fn why_invalid(&self) -> &'static str {
        match self.mode {
            MacvlanMode::Passthru => "it has a macvlan already, and mode passthru needs it alone",
            _ => "a macvlan of mode passthru has it alone",
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

fn shim(conf: &Conf, mode: Option<MacvlanMode>) -> Result<Option<Shim>, Faults> {
    let Some(keys) = &conf.host_shim else {
        return Ok(None);
    };
    let fault = |why: &str| Fault::new("hostShim", format!("hostShim: {why}"));
    let mut checks = Checks::default();
    if conf.link_in_container {
        checks.add(fault("the parent is in the pod, not on the node"));
    }
    if let Some(mode) = mode.filter(|mode| *mode != MacvlanMode::Bridge) {
        checks.add(fault(&format!(
            "mode {mode} keeps the node from its pods: it needs mode bridge"
        )));
    }
    let shim = checks.take(Shim::new(keys, &conf.master));
    checks.finish(|| shim.map(Some))
}

#[cfg(test)]
mod tests;
