//! From keys to what is to be done, without touching anything.

use std::net::IpAddr;

use anyhow::Result;
use cni::{Cidr, Code};
use ipnetwork::IpNetwork;
use netlink::{Dad, Mac};
use overlay::{Mode, Network};
use packet_filter::Separation;
use wiring::{Gateway, MasqueradeKeys, Masquerading, mac};

use crate::conf::Conf;

/// Index of the container's end in the interfaces of a result: bandwidth,
/// portmap and firewall look there, so the order is part of the contract.
pub const CONTAINER: i64 = 2;

/// A configuration in which nothing contradicts anything.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// What there is for all pods.
    pub network: Network,
    /// What the bridge is for the pods.
    pub gateway: Gateway,
    /// The MAC that somebody asked for.
    pub mac: Option<Mac>,
    /// Whether the port may send frames back where they came from.
    pub hairpin: bool,
    /// Whether duplicate IPv6 addresses are looked for.
    pub detect_duplicates: bool,
    /// Whether, and how, what leaves the network is masqueraded.
    pub masquerade: Option<Masquerading>,
    /// Whether frames with another MAC than the pod's are dropped.
    pub spoof_check: bool,
    /// Whether device and bridge go with the last pod.
    pub remove_when_empty: bool,
}

impl Plan {
    /// Checks everything that can be checked without the kernel. `has_ipam`
    /// tells whether the pod gets addresses, `args_mac` is `MAC` of CNI_ARGS.
    ///
    /// # Errors
    /// Code 7, with the key at fault; 4 for CNI_ARGS.
    pub fn new(conf: &Conf, name: &str, has_ipam: bool, args_mac: Option<String>) -> Result<Self> {
        let network = Network::new(conf, name)?;
        if network.mode == Mode::L3 && !has_ipam {
            return Err(invalid(
                "ipam: missing: mode l3 routes to the pods' addresses",
            ));
        }
        let masquerade = Masquerading::parse(&MasqueradeKeys {
            wanted: conf.ip_masq,
            backend: conf.ip_masq_backend.as_deref(),
            random_fully: conf.ip_masq_random_fully,
            except: &conf.ip_masq_except,
            families: conf.ip_masq_families.as_deref(),
        })?;
        Ok(Self {
            gateway: gateway(conf, network.mode)?,
            mac: mac::asked_for(
                &conf.runtime_config,
                &conf.args,
                args_mac,
                "failed to make veth pair",
            )?,
            hairpin: conf.hairpin_mode,
            detect_duplicates: conf.enabledad,
            masquerade: masquerade.map(|how| Masquerading {
                // Behind the device are members.
                not_through: (network.mode == Mode::L3).then(|| network.device()),
                ..how
            }),
            spoof_check: conf.macspoofchk,
            remove_when_empty: conf.remove_when_empty,
            network,
        })
    }

    /// What is done about duplicates of the pod's IPv6 addresses.
    pub fn dad(&self) -> Dad {
        match self.detect_duplicates {
            true => Dad::On,
            false => Dad::Off,
        }
    }

    /// Fails for subnets of this node, as IPAM has them, that contradict the peers.
    ///
    /// # Errors
    /// Code 7, with the key at fault.
    pub fn check_own_subnets(&self, own: &[IpNetwork], local: Option<IpAddr>) -> Result<()> {
        match self.gateway {
            // The node has no way to them.
            Gateway::None => Ok(()),
            Gateway::Gateway { .. } => Ok(self.network.check_own_subnets(own, local)?),
        }
    }

    /// What is kept apart from other networks, where the node forwards.
    pub fn apart(&self) -> Option<Separation> {
        let forwards = self.gateway != Gateway::None;
        forwards.then(|| Separation {
            network: self.network.name.clone(),
            devices: vec![self.network.bridge.to_string(), self.network.device()],
        })
    }

    /// Whether the bridge of one segment is the gateway of its own pods, as the bridges
    /// of all other hosts are of theirs.
    pub fn is_shared_gateway(&self) -> bool {
        self.network.mode == Mode::L2 && self.gateway != Gateway::None
    }
}

/// In mode `l3` the bridge is the gateway, and unless it is said otherwise the way to
/// everywhere: to the peers' subnets in any case.
fn gateway(conf: &Conf, mode: Mode) -> Result<Gateway> {
    if mode == Mode::L3 && conf.is_gateway == Some(false) {
        return Err(invalid(
            "isGateway: in mode l3 the bridge is the pods' gateway",
        ));
    }
    let default_route = conf.is_default_gateway.unwrap_or(mode == Mode::L3);
    let wanted = mode == Mode::L3 || default_route || conf.is_gateway == Some(true);
    Ok(match wanted {
        false => Gateway::None,
        true => Gateway::Gateway {
            default_route,
            force: conf.force_address,
        },
    })
}

/// The subnets of this node, as IPAM's answer has them.
pub fn own_subnets(addresses: impl Iterator<Item = Cidr>) -> Vec<IpNetwork> {
    let mut own: Vec<IpNetwork> = addresses
        .filter_map(|it| IpNetwork::new(it.0.network(), it.prefix()).ok())
        .collect();
    own.dedup();
    own
}

/// What the VXLAN device of mode `l3` has for an address: that which stands for this node,
/// the first of its subnet (where flannel has it), and no subnet to it.
pub fn device_address(subnet: IpNetwork) -> Option<IpNetwork> {
    let all_bits = match subnet.ip() {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    };
    IpNetwork::new(subnet.network(), all_bits).ok()
}

fn invalid(msg: &str) -> anyhow::Error {
    Code::InvalidConfig.err(msg).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use cni::Error;
    use cni::json::Json;

    fn plan(text: &str, has_ipam: bool) -> Result<Plan> {
        let conf: Conf = Json::parse(text.as_bytes()).unwrap().decode().unwrap();
        Plan::new(&conf, "mynet", has_ipam, None)
    }

    fn fault(text: &str, has_ipam: bool) -> (u32, String) {
        let error = Error::from_chain(&plan(text, has_ipam).unwrap_err());
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
        let of = |text: &str| device_address(text.parse().unwrap()).unwrap().to_string();
        assert_eq!(of("10.5.3.7/24"), "10.5.3.0/32");
        assert_eq!(of("fd00:5:3::9/64"), "fd00:5:3::/128");
    }
}
