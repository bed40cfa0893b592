//! The configuration of a network, in `<prefix>/config`.

use cni::json::Json;
use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use serde::Deserialize;

use crate::Subnet;

/// A network without contradictions.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The IPv4 network, and how nodes share it.
    pub v4: Pool,
    /// The IPv6 network.
    pub v6: Option<Pool>,
    /// How packets travel.
    pub backend: Backend,
    /// Whether something else assigns the subnets of nodes: they may have any size then.
    pub assigned: bool,
}

/// A network that is divided into the subnets of nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    /// All addresses.
    pub network: IpNetwork,
    /// The prefix length of each subnet.
    pub length: u8,
    /// The first subnet that is used.
    pub min: IpNetwork,
    /// The last one.
    pub max: IpNetwork,
}

/// What carries packets from node to node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackendType {
    /// VXLAN.
    Vxlan,
    /// Routes: all nodes are on one segment.
    HostGw,
    /// VXLAN as one segment of all pods. flannel has no such network, and refuses the name.
    Segment,
}

impl BackendType {
    /// The name in the configuration and in leases.
    pub fn name(self) -> &'static str {
        match self {
            Self::Vxlan => "vxlan",
            Self::HostGw => "host-gw",
            Self::Segment => "vxlan-l2",
        }
    }

    /// Whether each node has a subnet of its own.
    pub fn has_subnets(self) -> bool {
        self != Self::Segment
    }
}

/// Between the nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// What it is. The other keys are of VXLAN.
    pub kind: BackendType,
    /// The VXLAN network identifier.
    pub vni: u32,
    /// The UDP port.
    pub port: u16,
    /// The MTU of the underlay, if the configuration names one: of the packets outside.
    pub mtu: Option<u32>,
    /// Whether packets have the group policy extension.
    pub gbp: bool,
    /// Whether a peer on the same segment is reached without VXLAN.
    pub direct_routing: bool,
}

/// The keys as they are written. Go reads them in any case, and ignores others.
#[derive(Debug, Deserialize)]
#[serde(default)]
struct Keys {
    #[serde(rename = "EnableIPv4")]
    enable_ipv4: bool,
    #[serde(rename = "EnableIPv6")]
    enable_ipv6: bool,
    #[serde(rename = "Network")]
    network: String,
    #[serde(rename = "IPv6Network")]
    ipv6_network: String,
    #[serde(rename = "SubnetLen")]
    subnet_len: u8,
    #[serde(rename = "IPv6SubnetLen")]
    ipv6_subnet_len: u8,
    #[serde(rename = "SubnetMin")]
    subnet_min: String,
    #[serde(rename = "SubnetMax")]
    subnet_max: String,
    #[serde(rename = "IPv6SubnetMin")]
    ipv6_subnet_min: String,
    #[serde(rename = "IPv6SubnetMax")]
    ipv6_subnet_max: String,
    #[serde(rename = "Backend")]
    backend: BackendKeys,
}

impl Default for Keys {
    fn default() -> Self {
        Self {
            enable_ipv4: true,
            enable_ipv6: false,
            network: String::new(),
            ipv6_network: String::new(),
            subnet_len: 0,
            ipv6_subnet_len: 0,
            subnet_min: String::new(),
            subnet_max: String::new(),
            ipv6_subnet_min: String::new(),
            ipv6_subnet_max: String::new(),
            backend: BackendKeys::default(),
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct BackendKeys {
    #[serde(rename = "Type")]
    kind: String,
    #[serde(rename = "VNI")]
    vni: Option<u32>,
    #[serde(rename = "Port")]
    port: u16,
    #[serde(rename = "MTU")]
    mtu: u32,
    #[serde(rename = "GBP")]
    gbp: bool,
    #[serde(rename = "DirectRouting")]
    direct_routing: bool,
}

/// The kernel's port for VXLAN, older than the assigned 4789.
const PORT: u16 = 8472;
const MAX_VNI: u32 = (1 << 24) - 1;

impl Config {
    /// Reads the document. Values that flanneld refuses are refused.
    ///
    /// # Errors
    /// The first fault, with its key.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        let keys = Keys::parse(text)?;
        let backend = backend(&keys.backend)?;
        if !backend.kind.has_subnets() {
            return keys.undivided(backend);
        }
        let v6 = keys.enable_ipv6.then(|| v6_pool(&keys)).transpose()?;
        Ok(Self {
            v4: v4_pool(&keys)?,
            v6,
            backend,
            assigned: false,
        })
    }

    /// Reads the document of a network whose nodes get their subnets from Kubernetes, where flanneld
    /// looks at none of the keys about them.
    ///
    /// # Errors
    /// The first fault, with its key.
    pub fn parse_assigned(text: &[u8]) -> Result<Self, String> {
        let keys = Keys::parse(text)?;
        let backend = backend(&keys.backend)?;
        if !backend.kind.has_subnets() {
            let kind = backend.kind.name();
            return Err(format!(
                "Backend.Type: {kind:?}; a cluster assigns a subnet to each node"
            ));
        }
        let config = keys.undivided(backend)?;
        Ok(Self {
            assigned: true,
            ..config
        })
    }

    /// Whether a node of the network can have these subnets.
    pub fn allows(&self, subnet: &Subnet) -> bool {
        let pools = std::iter::once(&self.v4).chain(&self.v6);
        let fits = |(own, pool): (IpNetwork, &Pool)| {
            if self.assigned {
                pool.network.contains(own.ip()) && own.prefix() >= pool.network.prefix()
            } else {
                own.prefix() == pool.length && (pool.min..=pool.max).contains(&own)
            }
        };
        if !self.backend.kind.has_subnets() {
            return *subnet == Subnet::host(subnet.v4.ip());
        }
        subnet.v6.is_some() == self.v6.is_some() && subnet.all().zip(pools).all(fits)
    }

    /// The network of each family.
    pub fn networks(&self) -> impl Iterator<Item = IpNetwork> {
        let v6 = self.v6.as_ref().map(|it| it.network);
        std::iter::once(self.v4.network).chain(v6)
    }
}

impl Keys {
    fn parse(text: &[u8]) -> Result<Self, String> {
        let json = Json::parse(text).map_err(|error| error.to_string())?;
        let keys: Keys = json.decode().map_err(|error| error.to_string())?;
        if !keys.enable_ipv4 {
            return Err("EnableIPv4: false; podwired needs an IPv4 subnet of each node".into());
        }
        Ok(keys)
    }

    /// The networks as a whole, whatever the document says of their parts.
    fn undivided(&self, backend: Backend) -> Result<Config, String> {
        let whole = |network: IpNetwork| Pool {
            network,
            length: network.prefix(),
            min: network,
            max: network,
        };
        let v6 = if self.enable_ipv6 {
            Some(whole(IpNetwork::V6(parsed(
                "IPv6Network",
                &self.ipv6_network,
            )?)))
        } else {
            None
        };
        Ok(Config {
            v4: whole(IpNetwork::V4(parsed("Network", &self.network)?)),
            v6,
            backend,
            assigned: false,
        })
    }
}

fn backend(keys: &BackendKeys) -> Result<Backend, String> {
    let all = [
        BackendType::Vxlan,
        BackendType::HostGw,
        BackendType::Segment,
    ];
    let kind = match all.into_iter().find(|it| it.name() == keys.kind) {
        Some(kind) => kind,
        // flanneld takes its oldest backend then, which its documents advise against.
        None if keys.kind.is_empty() => {
            return Err("Backend.Type: missing; podwired has vxlan, vxlan-l2 and host-gw".into());
        }
        None => {
            let other = &keys.kind;
            return Err(format!(
                "Backend.Type: {other:?}; podwired has vxlan, vxlan-l2 and host-gw"
            ));
        }
    };
    if keys.direct_routing && !kind.has_subnets() {
        let kind = kind.name();
        return Err(format!("Backend.DirectRouting: {kind} routes nothing"));
    }
    let vni = keys.vni.unwrap_or(1);
    if vni > MAX_VNI {
        return Err(format!("Backend.VNI: {vni} is not between 0 and {MAX_VNI}"));
    }
    Ok(Backend {
        kind,
        vni,
        port: if keys.port == 0 { PORT } else { keys.port },
        mtu: (keys.mtu != 0).then_some(keys.mtu),
        gbp: keys.gbp,
        direct_routing: keys.direct_routing,
    })
}

fn v4_pool(keys: &Keys) -> Result<Pool, String> {
    let network: Ipv4Network = parsed("Network", &keys.network)?;
    let bits = network.prefix();
    if bits > 28 {
        return Err(format!(
            "Network: {network} is too small to divide: at most /28"
        ));
    }
    let default = if bits <= 22 { 24 } else { bits + 2 };
    let length = length("SubnetLen", keys.subnet_len, default, bits, 30)?;
    let step = 1u32 << (32 - length);
    let base = u32::from(network.network());
    let last = u32::from(network.broadcast()) & !(step - 1);
    let bound = |key: &str, text: &str, default: u32| -> Result<IpNetwork, String> {
        let ip = match text {
            "" => default,
            text => u32::from(parsed::<std::net::Ipv4Addr>(key, text)?),
        };
        if ip & (step - 1) != 0 || !network.contains(ip.into()) {
            let ip = std::net::Ipv4Addr::from(ip);
            return Err(format!(
                "{key}: {ip} is not the first address of a /{length} in {network}"
            ));
        }
        IpNetwork::new(std::net::Ipv4Addr::from(ip).into(), length).map_err(|it| it.to_string())
    };
    let pool = Pool {
        network: IpNetwork::V4(network),
        length,
        // The first one's first address is that of the network itself.
        min: bound("SubnetMin", &keys.subnet_min, base + step)?,
        max: bound("SubnetMax", &keys.subnet_max, last)?,
    };
    ordered("SubnetMax", pool)
}

fn v6_pool(keys: &Keys) -> Result<Pool, String> {
    let network: Ipv6Network = parsed("IPv6Network", &keys.ipv6_network)?;
    let bits = network.prefix();
    if bits > 124 {
        return Err(format!(
            "IPv6Network: {network} is too small to divide: at most /124"
        ));
    }
    let default = if bits <= 62 { 64 } else { bits + 2 };
    let length = length("IPv6SubnetLen", keys.ipv6_subnet_len, default, bits, 126)?;
    let step = 1u128 << (128 - length);
    let base = u128::from(network.network());
    let all = if bits == 0 {
        u128::MAX
    } else {
        (1u128 << (128 - bits)) - 1
    };
    let last = (base | all) & !(step - 1);
    let bound = |key: &str, text: &str, default: u128| -> Result<IpNetwork, String> {
        let ip = match text {
            "" => default,
            text => u128::from(parsed::<std::net::Ipv6Addr>(key, text)?),
        };
        if ip & (step - 1) != 0 || !network.contains(ip.into()) {
            let ip = std::net::Ipv6Addr::from(ip);
            return Err(format!(
                "{key}: {ip} is not the first address of a /{length} in {network}"
            ));
        }
        IpNetwork::new(std::net::Ipv6Addr::from(ip).into(), length).map_err(|it| it.to_string())
    };
    let pool = Pool {
        network: IpNetwork::V6(network),
        length,
        min: bound("IPv6SubnetMin", &keys.ipv6_subnet_min, base + step)?,
        max: bound("IPv6SubnetMax", &keys.ipv6_subnet_max, last)?,
    };
    ordered("IPv6SubnetMax", pool)
}

fn ordered(key: &str, pool: Pool) -> Result<Pool, String> {
    if pool.min.network() > pool.max.network() {
        let (min, max) = (pool.min, pool.max);
        return Err(format!("{key}: {max} is before the first, {min}"));
    }
    Ok(pool)
}

/// The prefix length of the subnets: it divides the network in four at least.
fn length(key: &str, value: u8, default: u8, bits: u8, most: u8) -> Result<u8, String> {
    let value = if value == 0 { default } else { value };
    if value < bits + 2 || value > most {
        let least = bits + 2;
        return Err(format!("{key}: {value} is not between {least} and {most}"));
    }
    Ok(value)
}

fn parsed<T: std::str::FromStr>(key: &str, text: &str) -> Result<T, String>
where
    T::Err: std::fmt::Display,
{
    if text.is_empty() {
        return Err(format!("{key}: missing"));
    }
    text.parse()
        .map_err(|error| format!("{key}: {text:?}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Result<Config, String> {
        Config::parse(text.as_bytes())
    }

    #[test]
    fn an_assigned_subnet_may_be_the_first_and_of_any_size() {
        let text =
            br#"{"Network": "10.244.0.0/16", "SubnetLen": 99, "Backend": {"Type": "vxlan"}}"#;
        let config = Config::parse_assigned(text).unwrap();
        let allows = |subnet: &str| config.allows(&subnet.parse().unwrap());
        assert!(allows("10.244.0.0-24") && allows("10.244.3.64-26"));
        assert!(!allows("10.245.0.0-24") && !allows("10.0.0.0-8"));
    }

    #[test]
    fn defaults_are_flannels() {
        let text = r#"{"network": "10.5.0.0/16", "BACKEND": {"type": "vxlan"}, "Else": 1}"#;
        let config = config(text).unwrap();
        let pool = &config.v4;
        assert_eq!(pool.min.to_string(), "10.5.1.0/24");
        assert_eq!(pool.max.to_string(), "10.5.255.0/24");
        let backend = &config.backend;
        assert_eq!((backend.vni, backend.port, backend.mtu), (1, 8472, None));
        assert_eq!(config.v6, None);
    }

    #[test]
    fn a_small_network_is_divided_in_four() {
        let text = r#"{"Network": "10.5.0.0/24", "Backend": {"Type": "vxlan"}}"#;
        let pool = config(text).unwrap().v4;
        assert_eq!(
            (pool.min.to_string(), pool.max.to_string()),
            ("10.5.0.64/26".into(), "10.5.0.192/26".into())
        );
    }

    #[test]
    fn both_families() {
        let text = r#"{"Network": "10.5.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:5::/48", "Backend": {"Type": "vxlan", "VNI": 7, "Port": 4789}}"#;
        let config = config(text).unwrap();
        let pool = config.v6.unwrap();
        assert_eq!(pool.min.to_string(), "fd00:5:0:1::/64");
        assert_eq!(pool.max.to_string(), "fd00:5:0:ffff::/64");
        assert_eq!((config.backend.vni, config.backend.port), (7, 4789));
    }

    #[test]
    fn a_segment_is_not_divided() {
        let text = r#"{"Network": "10.5.0.0/29", "Backend": {"Type": "vxlan-l2", "VNI": 7}}"#;
        let config = config(text).unwrap();
        assert_eq!(config.v4.network.to_string(), "10.5.0.0/29");
        assert!(config.allows(&Subnet::host([192, 0, 2, 1].into())));
        assert!(!config.allows(&"10.5.0.0-29".parse().unwrap()));
        assert!(Config::parse_assigned(text.as_bytes()).is_err());
    }

    #[test]
    fn faults_name_the_key() {
        let backend = r#""Backend": {"Type": "vxlan"}"#;
        for (keys, fault) in [
            (r#""Network": "10.5.0.0/16""#, "Backend.Type: missing"),
            (&format!(r#""Network": "", {backend}"#), "Network: missing"),
            (
                &format!(r#""Network": "10.5.0.0/29", {backend}"#),
                "Network: 10.5.0.0/29 is too small",
            ),
            (
                &format!(r#""Network": "10.5.0.0/16", "SubnetLen": 17, {backend}"#),
                "SubnetLen: 17",
            ),
            (
                &format!(r#""Network": "10.5.0.0/16", "SubnetMin": "10.5.1.1", {backend}"#),
                "SubnetMin: 10.5.1.1",
            ),
            (
                &format!(r#""Network": "10.5.0.0/16", "SubnetMin": "10.6.1.0", {backend}"#),
                "SubnetMin: 10.6.1.0",
            ),
            (
                &format!(
                    r#""Network": "10.5.0.0/16", "SubnetMin": "10.5.9.0", "SubnetMax": "10.5.8.0", {backend}"#
                ),
                "SubnetMax: ",
            ),
            (
                &format!(r#""EnableIPv4": false, {backend}"#),
                "EnableIPv4: ",
            ),
            (
                &format!(r#""Network": "10.5.0.0/16", "EnableIPv6": true, {backend}"#),
                "IPv6Network: missing",
            ),
        ] {
            let found = config(&format!("{{{keys}}}")).unwrap_err();
            assert!(found.starts_with(fault), "{found}");
        }
    }
}
