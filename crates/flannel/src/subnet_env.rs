//! `subnet.env`: what the node's plugins, and the next flanneld or podwired of the node, read.

use std::fmt::Write;

use ipnetwork::{Ipv4Network, Ipv6Network};

use crate::{Config, Subnet};

/// What the file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubnetEnv {
    /// The subnets of this node.
    pub subnet: Subnet,
    /// The largest packet of a pod.
    pub mtu: u32,
    /// Whether podwire masquerades what leaves the network.
    pub ip_masq: bool,
}

/// The file's text, as flanneld writes it: the gateway of a subnet is its first address plus one.
pub fn subnet_env(config: &Config, node: &SubnetEnv) -> String {
    let mut text = format!("FLANNEL_NETWORK={}\n", config.v4.network);
    let v4 = node.subnet.v4;
    if let Some(gateway) = v4.nth(1) {
        let _ = writeln!(text, "FLANNEL_SUBNET={gateway}/{}", v4.prefix());
    }
    if let (Some(pool), Some(v6)) = (&config.v6, node.subnet.v6) {
        let gateway = std::net::Ipv6Addr::from(u128::from(v6.network()) + 1);
        let _ = writeln!(text, "FLANNEL_IPV6_NETWORK={}", pool.network);
        let _ = writeln!(text, "FLANNEL_IPV6_SUBNET={gateway}/{}", v6.prefix());
    }
    let _ = writeln!(text, "FLANNEL_MTU={}", node.mtu);
    let _ = writeln!(text, "FLANNEL_IPMASQ={}", node.ip_masq);
    text
}

/// The subnets in a file that was written by this or by flanneld; `None` if there are none of the
/// configuration's networks.
pub fn own_subnet(config: &Config, text: &str) -> Option<Subnet> {
    let value = |key: &str| {
        let mut lines = text.lines();
        lines.find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
    };
    let v4: Ipv4Network = value("FLANNEL_SUBNET")?.trim().parse().ok()?;
    let v4 = Ipv4Network::new(v4.network(), v4.prefix()).ok()?;
    let v6 = match &config.v6 {
        None => None,
        Some(_) => {
            let v6: Ipv6Network = value("FLANNEL_IPV6_SUBNET")?.trim().parse().ok()?;
            Some(Ipv6Network::new(v6.network(), v6.prefix()).ok()?)
        }
    };
    let subnet = Subnet { v4, v6 };
    config.allows(&subnet).then_some(subnet)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_flannels_and_is_read_back() {
        let text = r#"{"Network": "10.5.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:5::/48", "Backend": {"Type": "vxlan"}}"#;
        let config = Config::parse(text.as_bytes()).unwrap();
        let subnet: Subnet = "10.5.3.0-24&fd00:5:0:3::-64".parse().unwrap();
        let (mtu, ip_masq) = (1430, true);
        let node = SubnetEnv {
            subnet,
            mtu,
            ip_masq,
        };
        let text = subnet_env(&config, &node);
        assert_eq!(
            text,
            "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.3.1/24\n\
             FLANNEL_IPV6_NETWORK=fd00:5::/48\nFLANNEL_IPV6_SUBNET=fd00:5:0:3::1/64\n\
             FLANNEL_MTU=1430\nFLANNEL_IPMASQ=true\n"
        );
        assert_eq!(own_subnet(&config, &text), Some(subnet));
        assert_eq!(own_subnet(&config, &text.replace("10.5.3", "10.6.3")), None);
        assert_eq!(own_subnet(&config, "FLANNEL_SUBNET=10.5.3.1/25\n"), None);
        assert_eq!(own_subnet(&config, ""), None);
    }
}
