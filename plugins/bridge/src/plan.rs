//! Decides from the keys what is to be done. Pure: no system calls.

use std::collections::BTreeSet;

use cni::Attachment;
use cni::env::IfName;
use cni::faults::{Checks, Fault, Faults};
use cni::result::{AddResult, IpConfig};
use netlink::{Link, Mac};
use packet_filter::Access;
use packet_filter::node::Pod;
use wiring::mtu::Mtu;
use wiring::{Addressing, Gateway, MasqueradeKeys, Masquerading, Reachability, mac, rules};

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
    /// Access to and from the pods.
    pub reachability: Reachability,
    /// Whether pods that do not reach each other may be linked. Then the nf_tables table that has
    /// the links separates them.
    pub linkable: bool,
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
    /// The role of the bridge for the pods.
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
    /// Code 7, each fault with its key; 4 for CNI_ARGS.
    pub fn new(conf: &Conf, has_ipam: bool, args_mac: Option<String>) -> Result<Self, Faults> {
        let mut checks = Checks::default();
        if conf.hairpin_mode && conf.promisc_mode {
            let msg = "cannot set hairpin mode and promiscuous mode at the same time";
            checks.add(Fault::new("promiscMode", msg));
        }
        if conf.disable_container_interface && has_ipam {
            let msg = "cannot use IPAM when DisableContainerInterface flag is set";
            checks.add(Fault::new("disableContainerInterface", msg));
        }
        let reachability = checks.take(Reachability::parse(&conf.access()));
        let families = reachability
            .as_ref()
            .map_or([true; 2], |it| it.has_gateway());
        let gateway = gateway(conf, families);
        let bridge = checks.take(bridge_name(&conf.bridge));
        let mtu = checks.take(conf.mtu.checked());
        let action = |_: &str| "failed to make veth pair".to_owned();
        let requested = conf.runtime_config.requested();
        let mac = mac::requested(&requested, &conf.args, args_mac, "", action);
        let mac = checks.take(mac);
        let vlans = vlans(conf, &mut checks);
        let masquerade = checks.take(Masquerading::parse(&MasqueradeKeys {
            wanted: conf.ip_masq,
            backend: conf.ip_masq_backend.as_deref(),
            random_fully: conf.ip_masq_random_fully,
            except: &conf.ip_masq_except,
            families: conf.ip_masq_families.as_deref(),
        }));
        let vlan = vlans
            .access
            .filter(|_| gateway != Gateway::None && has_ipam);
        let vlan_gateway = bridge.as_ref().zip(vlan);
        let vlan_gateway = vlan_gateway.map(|(bridge, vlan)| vlan_gateway_name(bridge, vlan));
        let vlan_gateway = checks.take(vlan_gateway.transpose());
        if let Some(reachability) = &reachability {
            checks.take(reachability.check_links(gateway));
            if reachability.has_links() && conf.links.is_none() {
                let key = "runtimeConfig.links";
                let msg = format!("{key}: the configuration of the network needs the key links");
                checks.add(Fault::new(key, msg));
            }
        }
        checks.finish(|| {
            let reachability = reachability?;
            let masquerade = masquerade?.filter(|_| has_ipam);
            let linkable = reachability.isolates_pods && conf.links.is_some();
            Some(Self {
                linkable,
                bridge: bridge?,
                mtu: mtu?,
                promisc: conf.promisc_mode,
                hairpin: conf.hairpin_mode,
                isolated: conf.port_isolation || reachability.isolates_pods,
                enabledad: conf.enabledad,
                detect_conflicts: conf.detect_conflicts,
                bring_up: !conf.disable_container_interface,
                mac: mac?,
                vlans,
                gateway,
                vlan_gateway: vlan_gateway?,
                masquerade: masquerade.and_then(|it| it.only(reachability.masqueraded())),
                spoof_check: conf.macspoofchk,
                reachability,
            })
        })
    }

    /// Whether the port may join the bridge after the pod's end is up, so that the first frames of
    /// the pod's kernel reach no other pod ([`wiring::port::prepare`]). Until then the node receives
    /// what the pod sends, so there must be no rule for it; and no probe of a duplicate address may
    /// be missed.
    pub fn may_join_last(&self) -> bool {
        let filtered = self.isolated || self.spoof_check || self.vlans.any();
        let filtered = filtered || self.access("").is_some();
        self.bring_up && !filtered && !self.enabledad && !self.detect_conflicts
    }

    /// The interface that is the pods' gateway, if they have one.
    pub fn gateway_interface(&self) -> &IfName {
        self.vlan_gateway.as_ref().unwrap_or(&self.bridge)
    }

    /// The addresses and routes of a pod.
    pub fn addressing(&self, lease: AddResult) -> Addressing {
        let addressing = Addressing::new(lease, self.gateway);
        addressing.without_default_routes(self.reachability.closed())
    }

    /// The access to the network `name`; `None` if nothing restricts it.
    pub fn access(&self, name: &str) -> Option<Access> {
        let devices = vec![self.gateway_interface().to_string()];
        self.reachability.access(name, devices, self.linkable)
    }

    /// The packet filter rules of an attachment with the addresses `ips`, except its spoof check.
    /// `gateway` is the link that is the pods' gateway.
    pub fn rules(&self, owner: &Attachment, ips: &[IpConfig], gateway: Option<&Link>) -> Pod {
        let gateway = gateway.filter(|_| self.isolated && !self.linkable);
        Pod {
            masquerade: self.masquerade.as_ref().map(|how| how.of(owner, ips)),
            isolation: gateway.and_then(|it| rules::isolation(&owner.network, it, ips)),
            access: self.access(&owner.network),
            open_ports: self.reachability.open_ports(owner, ips),
            links: self.reachability.links(owner, ips),
            ..Pod::new(owner.clone())
        }
    }
}

fn gateway(conf: &Conf, families: [bool; 2]) -> Gateway {
    if conf.is_gateway || conf.is_default_gateway {
        Gateway::Gateway {
            default_route: conf.is_default_gateway,
            force: conf.force_address,
            families,
        }
    } else {
        Gateway::None
    }
}

fn vlan_gateway_name(bridge: &IfName, vlan: u16) -> Result<IfName, Fault> {
    let name = format!("{bridge}.{vlan}");
    IfName::parse(&name).map_err(|error| {
        let msg = format!("name of the VLAN's gateway interface {name:?}: {error}");
        Fault::new("vlan", msg)
    })
}

fn bridge_name(name: &str) -> Result<IfName, Fault> {
    if name.is_empty() {
        let msg =
            "failed to create bridge \"\": could not add \"\": LinkAttrs.Name cannot be empty";
        return Err(Fault::new("bridge", msg));
    }
    let fault = |error| Fault::new("bridge", format!("bridge {name:?}: {error}"));
    IfName::parse_new(name).map_err(fault)
}

fn vlans(conf: &Conf, checks: &mut Checks) -> Vlans {
    let vlan = conf.vlan;
    if !(0..=VLAN_MAX).contains(&vlan) {
        let msg = format!("invalid VLAN ID {vlan} (must be between 0 and {VLAN_MAX})");
        checks.add(Fault::new("vlan", msg));
    }
    let trunk = conf.vlan_trunk.as_deref();
    Vlans {
        access: u16::try_from(vlan).ok().filter(|vlan| *vlan != 0),
        trunk: trunk.map(|items| trunk_ids(items, checks)),
        keep_default: conf.preserve_default_vlan,
    }
}

/// The union of all entries.
fn trunk_ids(items: &[TrunkItem], checks: &mut Checks) -> Vec<u16> {
    let mut ids = BTreeSet::new();
    for (index, item) in items.iter().enumerate() {
        let place = format!("vlanTrunk[{index}]");
        let id = |key: &str, id: i64| {
            let known = u16::try_from(id).ok();
            let known = known.filter(|id| (1..=VLAN_MAX).contains(&i64::from(*id)));
            let msg = format!("incorrect trunk {key} parameter");
            known.ok_or_else(|| Fault::new(format!("{place}.{key}"), msg))
        };
        match (item.min_id, item.max_id) {
            (None, None) => {}
            (Some(min), Some(max)) => {
                let (min, max) = (checks.take(id("minID", min)), checks.take(id("maxID", max)));
                if let (Some(min), Some(max)) = (min, max) {
                    ids.extend(min..=max);
                    if min > max {
                        let msg = "minID is greater than maxID in trunk parameter";
                        checks.add(Fault::new(place.as_str(), msg));
                    }
                }
            }
            (min, _) => {
                let absent = if min.is_none() { "minID" } else { "maxID" };
                let msg = "minID and maxID should be configured simultaneously";
                let msg = format!("{msg}, {absent} is missing");
                checks.add(Fault::new(place.as_str(), msg));
            }
        }
        let single = item.id.map(|single| id("id", single));
        ids.extend(checks.take(single.transpose()).flatten());
    }
    ids.into_iter().collect()
}

#[cfg(test)]
mod tests;
