//! Decides from the keys which kernel objects a pod gets. Pure: no system calls.

use std::net::IpAddr;

use cni::faults::{Checks, Fault, Faults};
use cni::result::{AddResult, IpConfig};
use cni::{Attachment, Cidr};
use ipnetwork::IpNetwork;
use netlink::Mac;
use overlay::{Conf, Mode, Network};
use packet_filter::node::Pod;
use packet_filter::{Access, Separation};
use wiring::{Addressing, Gateway, MasqueradeKeys, Masquerading, Reachability, mac};

/// A configuration without contradictions.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// What all pods share.
    pub network: Network,
    /// The role of the bridge for the pods.
    pub gateway: Gateway,
    /// The requested MAC.
    pub mac: Option<Mac>,
    /// Whether the port may send frames back to where they came from.
    pub hairpin: bool,
    /// Access to and from the pods.
    pub reachability: Reachability,
    /// Whether the kernel detects duplicates of the pod's IPv6 addresses.
    pub enabledad: bool,
    /// How packets that leave the network are masqueraded.
    pub masquerade: Option<Masquerading>,
    /// Whether frames with another MAC than the pod's are dropped.
    pub spoof_check: bool,
    /// Whether the last pod's DEL removes device and bridge.
    pub remove_when_empty: bool,
}

impl Plan {
    /// Checks all keys. `has_ipam`: whether the pod gets addresses. `args_mac`: `MAC` of CNI_ARGS.
    ///
    /// # Errors
    /// Code 7, each fault with its key; 4 for CNI_ARGS.
    pub fn new(
        conf: &Conf,
        name: &str,
        has_ipam: bool,
        args_mac: Option<String>,
    ) -> Result<Self, Faults> {
        let mut checks = Checks::default();
        let network = checks.take(Network::new(conf, name));
        let mode = network.as_ref().map(|network| network.mode);
        if mode == Some(Mode::L3) && !has_ipam {
            let msg = "ipam: missing: mode l3 routes to the pods' addresses";
            checks.add(Fault::new("ipam", msg));
        }
        let masquerade = checks.take(Masquerading::parse(&MasqueradeKeys {
            wanted: conf.ip_masq,
            backend: conf.ip_masq_backend.as_deref(),
            random_fully: conf.ip_masq_random_fully,
            except: &conf.ip_masq_except,
            families: conf.ip_masq_families.as_deref(),
        }));
        if mode == Some(Mode::L3) && conf.is_gateway == Some(false) {
            let msg = "isGateway: in mode l3 the bridge is the pods' gateway";
            checks.add(Fault::new("isGateway", msg));
        }
        let reachability = checks.take(Reachability::parse(&conf.access()));
        if let Some(reachability) = &reachability
            && mode == Some(Mode::L3)
        {
            check_gateway(reachability, &mut checks);
        }
        if let (Some(reachability), Some(mode)) = (&reachability, mode) {
            checks.take(reachability.check_links(gateway(conf, mode, reachability)));
        }
        let action = |_: &str| "failed to make veth pair".to_owned();
        let requested = conf.runtime_config.requested();
        let mac = mac::requested(&requested, &conf.args, args_mac, "", action);
        let mac = checks.take(mac);
        checks.finish(|| {
            let (network, reachability) = (network?, reachability?);
            let masquerade = masquerade?.filter(|_| has_ipam);
            let masquerade = masquerade.and_then(|it| it.only(reachability.masqueraded()));
            Some(Self {
                gateway: gateway(conf, network.mode, &reachability),
                mac: mac?,
                hairpin: conf.hairpin_mode,
                enabledad: conf.enabledad,
                masquerade: masquerade.map(|how| Masquerading {
                    // The network's pods on other nodes are behind the device.
                    not_through: (network.mode == Mode::L3).then(|| network.device()),
                    ..how
                }),
                spoof_check: conf.macspoofchk,
                remove_when_empty: conf.remove_when_empty,
                reachability,
                network,
            })
        })
    }

    /// Checks that the subnets of this node, as IPAM returned them, do not contradict the peers.
    ///
    /// # Errors
    /// Code 7, each fault with its key.
    pub fn check_own_subnets(
        &self,
        own: &[IpNetwork],
        local: Option<IpAddr>,
    ) -> Result<(), Faults> {
        match self.gateway {
            // The node has no route to them.
            Gateway::None => Ok(()),
            Gateway::Gateway { .. } => self.network.check_own_subnets(own, local),
        }
    }

    /// The addresses and routes of a pod.
    pub fn addressing(&self, lease: AddResult) -> Addressing {
        let addressing = Addressing::new(lease, self.gateway);
        addressing.without_default_routes(self.reachability.closed())
    }

    /// The names of the network's devices on this node.
    fn devices(&self) -> Vec<String> {
        vec![self.network.bridge.to_string(), self.network.device()]
    }

    /// The access to the network; `None` if nothing restricts it.
    pub fn access(&self) -> Option<Access> {
        let (name, isolates_pods) = (&self.network.name, self.reachability.isolates_pods);
        self.reachability
            .access(name, self.devices(), isolates_pods)
    }

    /// The packet filter rules of an attachment with the addresses `ips`, except its spoof check.
    pub fn rules(&self, owner: &Attachment, ips: &[IpConfig]) -> Pod {
        // Where the node forwards, networks would reach each other through it.
        let forwards = self.gateway != Gateway::None;
        let separation = || Separation {
            network: self.network.name.clone(),
            devices: self.devices(),
        };
        Pod {
            masquerade: self.masquerade.as_ref().map(|how| how.of(owner, ips)),
            separation: forwards.then(separation),
            access: self.access(),
            open_ports: self.reachability.open_ports(owner, ips),
            links: self.reachability.links(owner, ips),
            ..Pod::new(owner.clone())
        }
    }

    /// Whether each host's bridge of one segment is the gateway of its own pods.
    pub fn is_shared_gateway(&self) -> bool {
        self.network.mode == Mode::L2 && self.gateway != Gateway::None
    }
}

/// In mode `l3` the bridge is always the pods' gateway, for the peers' subnets, and by default
/// their default route, unless the network has no way out.
fn gateway(conf: &Conf, mode: Mode, reachability: &Reachability) -> Gateway {
    let default_route = conf.is_default_gateway.unwrap_or(mode == Mode::L3);
    if mode == Mode::L3 || default_route || conf.is_gateway == Some(true) {
        Gateway::Gateway {
            default_route,
            force: conf.force_address,
            families: reachability.has_gateway(),
        }
    } else {
        Gateway::None
    }
}

/// In mode `l3` the bridge has an address in each family.
fn check_gateway(reachability: &Reachability, checks: &mut Checks) {
    let keys = ["gatewayModeIPv4", "gatewayModeIPv6"];
    for (key, has_gateway) in keys.iter().zip(reachability.has_gateway()) {
        if !has_gateway {
            let msg = format!("{key}: isolated: in mode l3 the bridge is the pods' gateway");
            checks.add(Fault::new(*key, msg));
        }
    }
}

/// The subnets of this node, as IPAM returned them.
pub fn own_subnets(addresses: impl Iterator<Item = Cidr>) -> Vec<IpNetwork> {
    let mut own: Vec<IpNetwork> = addresses.map(|it| it.network().0).collect();
    own.dedup();
    own
}

/// The address of the VXLAN device in mode `l3`, which stands for this node: the first of its
/// subnet, as flannel has it, with the prefix of a single address.
pub fn device_address(subnet: IpNetwork) -> IpNetwork {
    subnet.network().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use cni::Error;
    use cni::json;

    fn plan(text: &str, has_ipam: bool) -> Result<Plan, Faults> {
        let conf: Conf = json::read(text).unwrap();
        Plan::new(&conf, "mynet", has_ipam, None)
    }

    fn fault(text: &str, has_ipam: bool) -> (u32, String) {
        let error = Error::from(plan(text, has_ipam).unwrap_err());
        (error.code, error.msg)
    }

    #[test]
    fn what_mode_l3_cannot_do_without_is_told() {
        assert_eq!(
            fault(r#"{"vni": 1}"#, false),
            (
                7,
                "ipam: missing: mode l3 routes to the pods' addresses".to_owned()
            )
        );
        assert_eq!(
            fault(r#"{"vni": 1, "isGateway": false}"#, true),
            (
                7,
                "isGateway: in mode l3 the bridge is the pods' gateway".to_owned()
            )
        );
        assert!(plan(r#"{"vni": 1, "mode": "l2"}"#, false).is_ok());
    }

    #[test]
    fn a_router_is_the_default_gateway_unless_it_is_told_not_to_be() {
        let gateway = |text: &str| plan(text, true).unwrap().gateway;
        let is = |default_route| Gateway::Gateway {
            default_route,
            force: false,
            families: [true; 2],
        };
        assert_eq!(gateway(r#"{"vni": 1}"#), is(true));
        assert_eq!(
            gateway(r#"{"vni": 1, "isDefaultGateway": false}"#),
            is(false)
        );
        assert_eq!(gateway(r#"{"vni": 1, "mode": "l2"}"#), Gateway::None);
        assert_eq!(
            gateway(r#"{"vni": 1, "mode": "l2", "isGateway": true}"#),
            is(false)
        );
        assert_eq!(
            gateway(r#"{"vni": 1, "mode": "l2", "isDefaultGateway": true}"#),
            is(true)
        );
    }

    #[test]
    fn a_router_cannot_be_without_an_address() {
        let faults = plan(r#"{"vni": 1, "gatewayModeIPv6": "isolated"}"#, true).unwrap_err();
        assert_eq!(faults.first().key, "gatewayModeIPv6");
        let segment = r#"{"vni": 1, "mode": "l2", "gatewayModeIPv6": "isolated"}"#;
        assert!(plan(segment, true).is_ok());
    }

    #[test]
    fn the_device_to_other_hosts_is_part_of_the_network() {
        let plan = plan(r#"{"vni": 5, "bridge": "vx0", "icc": false}"#, true).unwrap();
        let access = plan.access().unwrap();
        assert_eq!(access.devices, ["vx0", "vxlan.5"]);
        assert!(access.isolates_pods);
    }

    #[test]
    fn members_are_not_masqueraded() {
        let through = |text: &str| plan(text, true).unwrap().masquerade.unwrap().not_through;
        assert_eq!(
            through(r#"{"vni": 5, "ipMasq": true}"#).as_deref(),
            Some("vxlan.5")
        );
        // One segment is one subnet, whose inside is never masqueraded.
        assert_eq!(through(r#"{"vni": 5, "mode": "l2", "ipMasq": true}"#), None);
    }

    #[test]
    fn the_device_has_the_first_address_of_the_subnet() {
        let of = |text: &str| device_address(text.parse().unwrap()).to_string();
        assert_eq!(of("10.5.3.7/24"), "10.5.3.0/32");
        assert_eq!(of("fd00:5:3::9/64"), "fd00:5:3::/128");
    }
}
