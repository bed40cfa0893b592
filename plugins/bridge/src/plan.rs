//! Decides from the keys what is to be done. Pure: no system calls.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use cni::Attachment;
use cni::Code;
use cni::env::IfName;
use cni::result::IpConfig;
use netlink::{Link, Mac};
use packet_filter::node::Pod;
use wiring::mtu::{self, Mtu};
use wiring::{Gateway, MasqueradeKeys, Masquerading, mac, rules};

use crate::conf::{Conf, TrunkItem};

/// The largest VLAN id; 4095 is reserved by IEEE 802.1Q.
const VLAN_MAX: i64 = 4094;

/// A configuration without contradictions.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The bridge on the host.
    pub bridge: IfName,
    /// MTU of the pair, and of the bridge if it is created.
    pub mtu: Mtu,
    /// Whether the bridge is promiscuous.
    pub promisc: bool,
    /// Whether the port may send frames back to where they came from.
    pub hairpin: bool,
    /// Whether the port exchanges frames only with ports that are not isolated.
    pub isolated: bool,
    /// Whether the kernel detects duplicates of the pod's IPv6 addresses.
    pub enabledad: bool,
    /// Whether the segment is probed for the pod's addresses before they are used.
    pub detect_conflicts: bool,
    /// Whether the pod's end is brought up.
    pub bring_up: bool,
    /// The requested MAC.
    pub mac: Option<Mac>,
    /// The VLANs of the port.
    pub vlans: Vlans,
    /// What the bridge is to the pods.
    pub gateway: Gateway,
    /// The interface that is the gateway of an access VLAN, instead of the bridge: the bridge
    /// itself is only in its own VLAN. `None` without addresses.
    pub vlan_gateway: Option<IfName>,
    /// How packets that leave the pods' subnets are masqueraded.
    pub masquerade: Option<Masquerading>,
    /// Whether frames with another MAC than the pod's are dropped.
    pub spoof_check: bool,
}

/// The VLANs of a port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Vlans {
    /// The VLAN of untagged frames.
    pub access: Option<u16>,
    /// The tagged VLANs, in ascending order; `None` without the key.
    pub trunk: Option<Vec<u16>>,
    /// Whether the port stays in the bridge's default VLAN.
    pub keep_default: bool,
}

impl Vlans {
    /// Whether the bridge needs VLAN filtering.
    pub fn filtering(&self) -> bool {
        self.access.is_some() || self.trunk.is_some()
    }

    /// Whether the port is given VLANs of its own.
    pub fn any(&self) -> bool {
        self.access.is_some() || self.trunk.as_ref().is_some_and(|trunk| !trunk.is_empty())
    }
}

impl Plan {
    /// Checks all keys. `has_ipam`: whether the pod gets addresses. `args_mac`: `MAC` of CNI_ARGS.
    ///
    /// # Errors
    /// Code 7, or 4 for CNI_ARGS.
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
        let gateway = if conf.is_gateway || conf.is_default_gateway {
            Gateway::Gateway {
                default_route: conf.is_default_gateway,
                force: conf.force_address,
            }
        } else {
            Gateway::None
        };
        let mut plan = Self {
            bridge: bridge_name(&conf.bridge)?,
            mtu: mtu(conf.mtu)?,
            promisc: conf.promisc_mode,
            hairpin: conf.hairpin_mode,
            isolated: conf.port_isolation,
            enabledad: conf.enabledad,
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
            vlan_gateway: None,
            masquerade: Masquerading::parse(&MasqueradeKeys {
                wanted: conf.ip_masq,
                backend: conf.ip_masq_backend.as_deref(),
                random_fully: conf.ip_masq_random_fully,
                except: &conf.ip_masq_except,
                families: conf.ip_masq_families.as_deref(),
            })?,
            spoof_check: conf.macspoofchk,
        };
        plan.masquerade = plan.masquerade.filter(|_| has_ipam);
        if let Some(vlan) = plan.vlans.access
            && gateway != Gateway::None
            && has_ipam
        {
            plan.vlan_gateway = Some(vlan_gateway(&plan.bridge, vlan)?);
        }
        Ok(plan)
    }

    /// The interface that is the pods' gateway, if they have one.
    pub fn gateway_interface(&self) -> &IfName {
        self.vlan_gateway.as_ref().unwrap_or(&self.bridge)
    }

    /// The packet filter rules of an attachment with the addresses `ips`, but for its spoof
    /// check. `gateway` is the link that is the pods' gateway.
    pub fn rules(&self, owner: &Attachment, ips: &[IpConfig], gateway: Option<&Link>) -> Pod {
        let gateway = gateway.filter(|_| self.isolated);
        Pod {
            masquerade: self.masquerade.as_ref().map(|how| how.of(owner, ips)),
            isolation: gateway.and_then(|it| rules::isolation(&owner.network, it, ips)),
            ..Pod::new(owner.clone())
        }
    }
}

fn vlan_gateway(bridge: &IfName, vlan: u16) -> Result<IfName> {
    let name = format!("{bridge}.{vlan}");
    IfName::parse(&name).map_err(|error| {
        invalid(&format!(
            "name of the VLAN's gateway interface {name:?}: {error}"
        ))
    })
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
