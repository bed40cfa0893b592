//! Decides from the keys what to set. Pure: no system calls.

use std::collections::HashSet;

use cni::faults::{CNI_ARGS, Checks, Fault, Faults};
use cni::{AddResult, Version};
use netlink::{Link, Mac};
use wiring::mac;

use crate::conf::{Conf, Sysctls};

/// Stands for the name of the pod's interface in a key of `sysctl`.
const PLACEHOLDER: &str = "IFNAME";

/// A configuration without contradictions.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Settings of the pod's namespace, in the order of the configuration.
    pub sysctls: Vec<Sysctl>,
    /// The attributes that the pod's interface gets.
    pub link: Attributes,
}

/// One setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sysctl {
    /// The key as the configuration has it.
    pub name: String,
    /// The value to write.
    pub value: String,
}

/// Attributes of an interface; `None` for those that are left as they are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// The hardware address.
    pub mac: Option<Mac>,
    /// Promiscuous mode.
    pub promisc: Option<bool>,
    /// The largest packet, in bytes.
    pub mtu: Option<u32>,
    /// Reception of all multicast packets.
    pub allmulti: Option<bool>,
    /// How many packets may wait to be sent.
    pub tx_queue_len: Option<u32>,
}

impl Plan {
    /// Checks everything that can be checked without the kernel. `args_mac` is `MAC` of CNI_ARGS.
    ///
    /// # Errors
    /// Code 7, each fault with its key; 4 for CNI_ARGS.
    pub fn new(conf: &Conf, args_mac: Option<String>) -> Result<Self, Faults> {
        let args = &conf.args.cni;
        let mut checks = Checks::default();
        let own = checks.take(sysctls("sysctl", &conf.sysctl));
        let over = checks.take(sysctls("args.cni.sysctl", &args.sysctl));
        let mac = checks.take(requested_mac(conf, args_mac));
        let mtu = checks.take(match args.mtu {
            Some(mtu) => mtu_of("args.cni.mtu", mtu),
            None => mtu_of("mtu", conf.mtu),
        });
        let length = checks.take(match args.tx_q_len {
            Some(_) => length("args.cni.txQLen", args.tx_q_len),
            None => length("txQLen", conf.tx_q_len),
        });
        checks.finish(|| {
            Some(Self {
                sysctls: merge(own?, over?),
                link: Attributes {
                    mac: mac?,
                    promisc: Some(true).filter(|_| args.promisc.unwrap_or(conf.promisc)),
                    mtu: mtu?,
                    allmulti: args.allmulti.or(conf.allmulti),
                    tx_queue_len: length?,
                },
            })
        })
    }
}

impl Sysctl {
    /// The path below /proc/sys, with the name of the pod's interface in place of `IFNAME`.
    pub fn path(&self, ifname: &str) -> String {
        path_of(&self.name).replacen(PLACEHOLDER, ifname, 1)
    }

    /// Whether the kernel's text for the setting means the wanted value: it separates numbers by
    /// tabs.
    pub fn is(&self, current: &str) -> bool {
        self.value.split_whitespace().eq(current.split_whitespace())
    }
}

impl Attributes {
    /// Whether the interface is left as it is.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The values that `link` has for the attributes that `self` sets.
    pub fn of(&self, link: &Link) -> Self {
        Self {
            mac: self.mac.and(link.mac),
            promisc: self.promisc.and(Some(link.promisc)),
            mtu: self.mtu.and(Some(link.mtu)),
            allmulti: self.allmulti.and(Some(link.allmulti)),
            tx_queue_len: self.tx_queue_len.and(Some(link.tx_queue_len)),
        }
    }

    /// These attributes, and those of `others` that these do not set.
    pub fn or(self, others: Self) -> Self {
        Self {
            mac: self.mac.or(others.mac),
            promisc: self.promisc.or(others.promisc),
            mtu: self.mtu.or(others.mtu),
            allmulti: self.allmulti.or(others.allmulti),
            tx_queue_len: self.tx_queue_len.or(others.tx_queue_len),
        }
    }

    /// Compares the attributes with those of `link`.
    ///
    /// # Errors
    /// The first difference, in the words of the Go plugin: `Error: Tuning configured …`
    pub fn compare(&self, link: &Link) -> Result<(), String> {
        let name = &link.name;
        let configured = |what: &str| format!("configured {what} of {name}");
        let mac = link.mac.map(|mac| mac.to_string()).unwrap_or_default();
        compare(&configured("Ethernet"), self.mac, mac)?;
        let promisc = self.promisc.filter(|on| *on);
        let is = if link.promisc { "true" } else { "0" };
        compare(&format!("link {name} configured promisc"), promisc, is)?;
        compare(&configured("MTU"), self.mtu, link.mtu)?;
        compare(
            &configured("all-multicast mode"),
            self.allmulti,
            link.allmulti,
        )?;
        let length = self.tx_queue_len;
        compare(
            &configured("Transmit Queue Length"),
            length,
            link.tx_queue_len,
        )
    }

    /// `result` with the new MAC and MTU of the interface `ifname`; versions before 1.1.0 have no
    /// MTU.
    pub fn in_result(&self, mut result: AddResult, ifname: &str, version: Version) -> AddResult {
        for interface in result.interfaces.iter_mut().filter(|it| it.name == ifname) {
            if let Some(mac) = self.mac {
                interface.mac = mac.to_string();
            }
            let has_mtu = version >= Version::V1_1_0 || interface.mtu != 0;
            if let Some(mtu) = self.mtu.filter(|_| has_mtu) {
                interface.mtu = mtu;
            }
        }
        result
    }
}

/// Compares the attribute `what` with its current value, if the configuration sets it.
fn compare<T: ToString>(what: &str, wanted: Option<T>, is: impl ToString) -> Result<(), String> {
    let (wanted, is) = (wanted.map(|it| it.to_string()), is.to_string());
    match wanted {
        Some(wanted) if wanted != is => Err(format!(
            "Error: Tuning {what} is {wanted}, current value is {is}"
        )),
        _ => Ok(()),
    }
}

/// The path below /proc/sys. As with sysctl(8), if the first separator is a slash, dots are part of
/// the names between slashes, as in names of interfaces. Otherwise dots are separators, too.
fn path_of(name: &str) -> String {
    let separators = ['.', '/'];
    let by_slashes = name
        .find(separators)
        .is_some_and(|at| name[at..].starts_with('/'));
    let separators = &separators[usize::from(by_slashes)..];
    let parts = name.split(separators).filter(|part| !part.is_empty());
    parts.collect::<Vec<_>>().join("/")
}

fn sysctls(key: &str, settings: &Sysctls) -> Result<Vec<Sysctl>, Faults> {
    let mut checks = Checks::default();
    let mut seen = HashSet::new();
    let mut sysctls = Vec::new();
    for (name, value) in &settings.0 {
        if !seen.insert(name) {
            let msg = "duplicated sysctl keys are not allowed";
            checks.add(Fault::new(format!("{key}.{name}"), msg));
        }
        let path = path_of(name);
        let leads_out = path.split('/').any(|part| part == "." || part == "..");
        if !path.starts_with("net/") || leads_out {
            let written = name.replace('.', "/");
            let msg = format!("invalid net sysctl key: {written:?}");
            checks.add(Fault::new(format!("{key}.{name}"), msg));
        }
        sysctls.push(Sysctl {
            name: name.clone(),
            value: value.clone(),
        });
    }
    checks.finish(|| Some(sysctls))
}

/// `over` replaces settings of the same name in place, and adds the others at the end.
fn merge(mut own: Vec<Sysctl>, over: Vec<Sysctl>) -> Vec<Sysctl> {
    for sysctl in over {
        match own.iter_mut().find(|it| it.name == sysctl.name) {
            Some(replaced) => *replaced = sysctl,
            None => own.push(sysctl),
        }
    }
    own
}

/// As in the Go plugin, `args` has precedence over the runtime, even with an empty text.
fn requested_mac(conf: &Conf, args_mac: Option<String>) -> Result<Option<Mac>, Fault> {
    let action = |text: &str| format!("invalid args {text} for MAC addr");
    if let Some(text) = &conf.args.cni.mac {
        return mac::first(&[("args.cni.mac", text)], action);
    }
    let sources = [
        ("runtimeConfig.mac", conf.runtime_config.mac.as_str()),
        (CNI_ARGS, &args_mac.unwrap_or_default()),
        ("mac", &conf.mac),
    ];
    mac::first(&sources, action)
}

fn mtu_of(key: &str, mtu: i64) -> Result<Option<u32>, Fault> {
    if mtu == 0 {
        return Ok(None);
    }
    // The upper limit depends on the device. Below this one, the kernel disables IPv4 on the
    // interface.
    let least = u32::try_from(*wiring::mtu::RANGE.start()).unwrap_or_default();
    match u32::try_from(mtu) {
        Ok(mtu) if (least..=i32::MAX as u32).contains(&mtu) => Ok(Some(mtu)),
        _ => {
            let msg = format!("invalid MTU {mtu}: the least is {least}");
            Err(Fault::new(key, msg))
        }
    }
}

fn length(key: &str, length: Option<i64>) -> Result<Option<u32>, Fault> {
    let number = length.map(u32::try_from).transpose();
    number.map_err(|_| {
        let length = length.unwrap_or_default();
        let msg = format!("invalid txQLen {length}: must be 0 to 4294967295");
        Fault::new(key, msg)
    })
}

#[cfg(test)]
mod tests;
