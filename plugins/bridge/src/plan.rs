//! From keys to what is to be done, without touching anything.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use cni::Code;
use cni::env::IfName;
use cni::result::IpConfig;
use netlink::{Dad, Link, Mac};
use packet_filter::Isolation;
use wiring::mtu::{self, Mtu};
use wiring::{Gateway, MasqueradeKeys, Masquerading, mac, outside};

use crate::conf::{Conf, TrunkItem};

/// Index of the container's end in the interfaces of a result: bandwidth,
/// portmap and firewall look there, so the order is part of the contract.
pub const CONTAINER: i64 = 2;

/// The largest VLAN id; 4095 is reserved by IEEE 802.1Q.
const VLAN_MAX: i64 = 4094;

/// A configuration in which nothing contradicts anything.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The bridge on the host.
    pub bridge: IfName,
    /// MTU of the pair, and of a bridge that is created.
    pub mtu: Mtu,
    /// Whether the bridge is to be promiscuous.
    pub promisc: bool,
    /// Whether the port may send frames back where they came from.
    pub hairpin: bool,
    /// Whether the port talks to ports that are not isolated only.
    pub isolated: bool,
    /// Whether duplicate IPv6 addresses are looked for.
    pub detect_duplicates: bool,
    /// Whether the segment is asked for the pod's addresses before they are used.
    pub detect_conflicts: bool,
    /// Whether the container's end is brought up.
    pub bring_up: bool,
    /// The MAC that somebody asked for.
    pub mac: Option<Mac>,
    /// The VLANs of the port.
    pub vlans: Vlans,
    /// What the bridge is for the pods.
    pub gateway: Gateway,
    /// Whether, and how, what leaves the pods' subnets is masqueraded.
    pub masquerade: Option<Masquerading>,
    /// Whether frames with another MAC than the pod's are dropped.
    pub spoof_check: bool,
}

/// The VLANs of a port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Vlans {
    /// Untagged frames belong to it.
    pub access: Option<u16>,
    /// Carried tagged, in ascending order; `None` without the key.
    pub trunk: Option<Vec<u16>>,
    /// Whether the port stays in the bridge's default VLAN.
    pub keep_default: bool,
}

impl Vlans {
    /// Whether the bridge has to tell VLANs apart.
    pub fn filtering(&self) -> bool {
        self.access.is_some() || self.trunk.is_some()
    }

    /// Whether the port is given VLANs of its own.
    pub fn any(&self) -> bool {
        self.access.is_some() || self.trunk.as_ref().is_some_and(|trunk| !trunk.is_empty())
    }
}

impl Plan {
    /// Checks everything that can be checked without the kernel. `has_ipam`
    /// tells whether the pod gets addresses, `args_mac` is `MAC` of CNI_ARGS.
    pub fn new(conf: &Conf, has_ipam: bool, args_mac: Option<String>) -> Result<Self> {
        if conf.hairpin_mode && conf.promisc_mode {
            return Err(invalid(
                "cannot set hairpin mode and promiscuous mode at the same time",
            ));
        }
        if conf.disable_container_interface && has_ipam {
            return Err(invalid(
                "cannot use IPAM when DisableContainerInterface flag is set",
            ));
        }
        let gateway = match conf.is_gateway || conf.is_default_gateway {
            false => Gateway::None,
            true => Gateway::Gateway {
                default_route: conf.is_default_gateway,
                force: conf.force_address,
            },
        };
        let plan = Self {
            bridge: bridge_name(&conf.bridge)?,
            mtu: mtu(conf.mtu)?,
            promisc: conf.promisc_mode,
            hairpin: conf.hairpin_mode,
            isolated: conf.port_isolation,
            detect_duplicates: conf.enabledad,
            detect_conflicts: conf.detect_conflicts,
            bring_up: !conf.disable_container_interface,
            mac: mac::asked_for(
                &conf.runtime_config,
                &conf.args,
                args_mac,
                "failed to make veth pair",
            )?,
            vlans: vlans(conf)?,
            gateway,
            masquerade: Masquerading::parse(&MasqueradeKeys {
                wanted: conf.ip_masq,
                backend: conf.ip_masq_backend.as_deref(),
                random_fully: conf.ip_masq_random_fully,
                except: &conf.ip_masq_except,
                families: conf.ip_masq_families.as_deref(),
            })?,
            spoof_check: conf.macspoofchk,
        };
        if plan.has_vlan_gateway() && has_ipam {
            plan.vlan_gateway_name()?;
        }
        Ok(plan)
    }

    /// What is done about duplicates of the pod's IPv6 addresses.
    pub fn dad(&self) -> Dad {
        match self.detect_duplicates {
            true => Dad::On,
            false => Dad::Off,
        }
    }

    /// The interface that carries the gateway of an access VLAN: the bridge
    /// itself is in no VLAN but its own.
    pub fn vlan_gateway_name(&self) -> Result<IfName> {
        let vlan = self.vlans.access.unwrap_or_default();
        let name = format!("{}.{vlan}", self.bridge);
        IfName::parse(&name).map_err(|error| {
            invalid(&format!(
                "name of the VLAN's gateway interface {name:?}: {error}"
            ))
        })
    }

    /// What keeps isolated pods from each other where the node forwards for them.
    pub fn isolation(
        &self,
        network: &str,
        gateway: Option<&Link>,
        ips: &[IpConfig],
    ) -> Option<Isolation> {
        let gateway = gateway.filter(|_| self.isolated)?;
        outside::isolation(network, gateway, ips)
    }

    /// The interface that is the gateway of isolated pods, if there are such.
    ///
    /// # Errors
    /// As [`Plan::vlan_gateway_name`].
    pub fn isolated_gateway(&self) -> Result<Option<IfName>> {
        if !self.isolated || self.gateway == Gateway::None {
            return Ok(None);
        }
        Ok(Some(match self.has_vlan_gateway() {
            true => self.vlan_gateway_name()?,
            false => self.bridge.clone(),
        }))
    }

    /// Whether the gateway of the pods is in an access VLAN.
    pub fn has_vlan_gateway(&self) -> bool {
        self.gateway != Gateway::None && self.vlans.access.is_some()
    }
}

fn invalid(msg: &str) -> anyhow::Error {
    Code::InvalidConfig.err(msg).into()
}

fn bridge_name(name: &str) -> Result<IfName> {
    if name.is_empty() {
        return Err(invalid(
            "failed to create bridge \"\": could not add \"\": LinkAttrs.Name cannot be empty",
        ));
    }
    IfName::parse_new(name).map_err(|error| invalid(&format!("bridge {name:?}: {error}")))
}

fn mtu(mtu: Mtu) -> Result<Mtu> {
    match mtu {
        Mtu::Bytes(bytes) if !mtu::RANGE.contains(&bytes) => Err(invalid(&format!(
            "invalid MTU {bytes}, must be [68, 65535]"
        ))),
        mtu => Ok(mtu),
    }
}

fn vlans(conf: &Conf) -> Result<Vlans> {
    if !(0..=VLAN_MAX).contains(&conf.vlan) {
        return Err(invalid(&format!(
            "invalid VLAN ID {} (must be between 0 and {VLAN_MAX})",
            conf.vlan
        )));
    }
    let trunk = conf.vlan_trunk.as_deref().map(trunk_ids).transpose()?;
    Ok(Vlans {
        access: u16::try_from(conf.vlan).ok().filter(|vlan| *vlan != 0),
        trunk,
        keep_default: conf.preserve_default_vlan,
    })
}

/// The union of all entries.
fn trunk_ids(items: &[TrunkItem]) -> Result<Vec<u16>> {
    let mut ids = BTreeSet::new();
    for item in items {
        match (item.min_id, item.max_id) {
            (None, None) => {}
            (Some(min), Some(max)) => {
                let min = trunk_id(min, "incorrect trunk minID parameter")?;
                let max = trunk_id(max, "incorrect trunk maxID parameter")?;
                if min > max {
                    return Err(invalid("minID is greater than maxID in trunk parameter"));
                }
                ids.extend(min..=max);
            }
            (min, _) => {
                let absent = if min.is_none() { "minID" } else { "maxID" };
                return Err(invalid(&format!(
                    "minID and maxID should be configured simultaneously, {absent} is missing"
                )));
            }
        }
        if let Some(id) = item.id {
            ids.insert(trunk_id(id, "incorrect trunk id parameter")?);
        }
    }
    Ok(ids.into_iter().collect())
}

fn trunk_id(id: i64, fault: &str) -> Result<u16> {
    u16::try_from(id)
        .ok()
        .filter(|id| (1..=VLAN_MAX).contains(&i64::from(*id)))
        .with_context(|| fault.to_owned())
        .map_err(|_| invalid(fault))
}

#[cfg(test)]
mod tests;
