//! The options of a driver: `-o KEY=VALUE`, in Docker's names and the short ones of podman and
//! nerdctl.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::ops::RangeInclusive;
use std::str::FromStr;

use anyhow::bail;

use serde_json::Value;

/// What attaches containers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    /// A bridge of the node.
    Bridge,
    /// Interfaces with MACs of their own on a segment of the node.
    Macvlan,
    /// The same with the MAC of the node's interface.
    Ipvlan,
    /// A network of several nodes.
    Vxlan,
}

impl Driver {
    /// The plugin's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bridge => "bridge",
            Self::Macvlan => "macvlan",
            Self::Ipvlan => "ipvlan",
            Self::Vxlan => "vxlan",
        }
    }

    /// Whether containers are on a segment of the node, with addresses of that segment.
    pub fn shares_segment(self) -> bool {
        matches!(self, Self::Macvlan | Self::Ipvlan)
    }
}

impl FromStr for Driver {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        match word {
            "bridge" | "" => Ok(Self::Bridge),
            "macvlan" => Ok(Self::Macvlan),
            "ipvlan" => Ok(Self::Ipvlan),
            "vxlan" => Ok(Self::Vxlan),
            "host" | "none" | "null" => {
                Err(format!("only one instance of {word:?} network is allowed"))
            }
            "overlay" => {
                Err("plugin \"overlay\" not found: the network of several nodes is -d vxlan".into())
            }
            _ => Err(format!(
                "plugin {word:?} not found: the drivers are bridge, macvlan, ipvlan and vxlan"
            )),
        }
    }
}

/// The meaning of the options.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// The bridge's name.
    pub bridge: Option<String>,
    /// Whether containers of the network reach each other.
    pub icc: Option<bool>,
    /// Whether packets that leave the network get the node's address.
    pub masquerade: Option<bool>,
    /// How the outside reaches containers, in IPv4.
    pub mode_ipv4: Option<String>,
    /// The same in IPv6.
    pub mode_ipv6: Option<String>,
    /// The MTU.
    pub mtu: Option<u32>,
    /// The parent of macvlan and ipvlan, the interface of vxlan.
    pub parent: Option<String>,
    /// How containers on one parent communicate.
    pub mode: Option<String>,
    /// The VLAN of the bridge's ports.
    pub vlan: Option<u32>,
    /// No default route.
    pub no_default_route: bool,
    /// The metric of the default route.
    pub metric: Option<u32>,
}

/// What an MTU can be: 68 is the least that IPv4 needs (RFC 791), 65,535 the most that a bridge takes.
pub const MTU: RangeInclusive<u32> = 68..=65_535;

const DOCKER: &str = "com.docker.network.";

/// The option with the node's address at which `podwire run` publishes ports.
pub const HOST_BINDING: &str = "com.docker.network.bridge.host_binding_ipv4";
const MODES: [&str; 4] = ["nat", "nat-unprotected", "routed", "isolated"];

impl Options {
    /// Reads the options. Values that cannot be are added to `faults`; unknown keys are kept by
    /// the caller and reported.
    pub fn read(options: &BTreeMap<String, String>, faults: &mut Vec<String>) -> Self {
        let mut known = Self::default();
        for (key, value) in options {
            if let Err(why) = known.set(key, value) {
                faults.push(format!("invalid value {value:?} for option {key}: {why}"));
            }
        }
        known
    }

    /// The names of the given ones that belong to `create`.
    pub fn fixed(&self) -> impl Iterator<Item = &'static str> {
        let given = [
            ("bridge.name", self.bridge.is_some()),
            ("parent", self.parent.is_some()),
            ("mode", self.mode.is_some()),
            ("vlan", self.vlan.is_some()),
            ("no_default_route", self.no_default_route),
            ("metric", self.metric.is_some()),
        ];
        given
            .into_iter()
            .filter_map(|(name, is_given)| is_given.then_some(name))
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
        let name = key.strip_prefix(DOCKER).unwrap_or(key);
        match name {
            "bridge.name" => self.bridge = Some(interface(value)?),
            "bridge.enable_icc" | "icc" => self.icc = Some(boolean(value)?),
            "bridge.enable_ip_masquerade" | "ip-masq" => self.masquerade = Some(boolean(value)?),
            "bridge.gateway_mode_ipv4" => self.mode_ipv4 = Some(mode(value)?),
            "bridge.gateway_mode_ipv6" => self.mode_ipv6 = Some(mode(value)?),
            "isolate" => {
                let open = value != "strict" && !boolean(value)?;
                let mode = if open { "nat-unprotected" } else { "nat" };
                self.mode_ipv4 = self.mode_ipv4.take().or(Some(mode.into()));
                self.mode_ipv6 = self.mode_ipv6.take().or(Some(mode.into()));
            }
            _ if key == HOST_BINDING => drop(address(value)?),
            "driver.mtu" | "mtu" => self.mtu = Some(number(value, MTU)?),
            "parent" => self.parent = Some(interface(value)?),
            "macvlan_mode" | "ipvlan_mode" | "mode" => self.mode = Some(value.to_owned()),
            "vlan" => self.vlan = Some(number(value, 1..=4094)?),
            "no_default_route" => self.no_default_route = boolean(value)?,
            "metric" => self.metric = Some(number(value, 0..=u32::MAX)?),
            _ => cni::log(format_args!(
                "podwire: warning: option {key} has no meaning here"
            )),
        }
        Ok(())
    }
}

/// One error for all faults, with Docker's beginning.
///
/// # Errors
/// There is a fault.
pub fn refuse(faults: &[String]) -> anyhow::Result<()> {
    match faults {
        [] => Ok(()),
        faults => bail!("invalid network config: {}", faults.join("; ")),
    }
}

/// Go's texts for a boolean.
pub fn boolean(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err("not true or false".into()),
    }
}

fn number(text: &str, range: RangeInclusive<u32>) -> Result<u32, String> {
    let number = text.parse().ok().filter(|it| range.contains(it));
    number.ok_or_else(|| format!("expected {} to {}", range.start(), range.end()))
}

fn address(text: &str) -> Result<Ipv4Addr, String> {
    text.parse().map_err(|_| "expected an IPv4 address".into())
}

fn interface(name: &str) -> Result<String, String> {
    let checked = cni::env::IfName::parse(name).map_err(|error| error.to_string());
    checked.map(|it| it.to_string())
}

fn mode(text: &str) -> Result<String, String> {
    if MODES.contains(&text) {
        return Ok(text.to_owned());
    }
    Err(format!("expected {}", MODES.join(", ")))
}

/// `KEY=VALUE` words; a key without a value has an empty one.
pub fn pairs(words: &[String], option: &str, faults: &mut Vec<String>) -> BTreeMap<String, String> {
    let mut pairs = BTreeMap::new();
    for word in words {
        let (key, value) = word.split_once('=').unwrap_or((word, ""));
        if key.trim().is_empty() {
            faults.push(format!("invalid {option} {word:?}: expected KEY=VALUE"));
        } else {
            pairs.insert(key.to_owned(), value.to_owned());
        }
    }
    pairs
}

/// `--route NET,GATEWAY[,METRIC]`, as host-local returns it.
pub fn route(word: &str) -> Result<Value, String> {
    let invalid = || format!("invalid route {word:?}: expected NETWORK,GATEWAY[,METRIC]");
    let parts: Vec<_> = word.split(',').collect();
    let (dst, gw, metric) = match parts[..] {
        [dst, gw] => (dst, gw, None),
        [dst, gw, metric] => (dst, gw, Some(metric.parse::<u32>().map_err(|_| invalid())?)),
        _ => return Err(invalid()),
    };
    let (dst, gw): (cni::Cidr, std::net::IpAddr) =
        (dst.parse()?, gw.parse().map_err(|_| invalid())?);
    if dst.ip().is_ipv4() != gw.is_ipv4() {
        return Err(format!(
            "invalid route {word:?}: network and gateway are of different families"
        ));
    }
    if dst.0.network() != dst.ip() {
        let (right, size) = (dst.0.network(), dst.prefix());
        return Err(format!(
            "invalid route {word:?}: it should be {right}/{size}"
        ));
    }
    let mut route = serde_json::json!({"dst": dst, "gw": gw});
    if let Some(metric) = metric {
        route["priority"] = metric.into();
    }
    Ok(route)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(words: &[&str]) -> (Options, Vec<String>) {
        let mut faults = Vec::new();
        let words: Vec<_> = words.iter().map(ToString::to_string).collect();
        let pairs = pairs(&words, "option", &mut faults);
        (Options::read(&pairs, &mut faults), faults)
    }

    #[test]
    fn dockers_names_and_the_short_ones_mean_the_same() {
        let (options, faults) = read(&[
            "com.docker.network.driver.mtu=1400",
            "com.docker.network.bridge.name=br7",
            "icc=false",
            "isolate=false",
            "x=y",
        ]);
        assert_eq!(faults, [""; 0]);
        assert_eq!(
            (options.mtu, options.bridge.as_deref(), options.icc),
            (Some(1400), Some("br7"), Some(false))
        );
        assert_eq!(options.mode_ipv4.as_deref(), Some("nat-unprotected"));
    }

    #[test]
    fn values_that_cannot_be_are_faults() {
        for word in [
            "mtu=67",
            "mtu=x",
            "icc=maybe",
            "isolate=maybe",
            "parent=",
            "vlan=4095",
            "metric=-1",
            "=x",
            "com.docker.network.bridge.name=a/b",
            "com.docker.network.bridge.gateway_mode_ipv4=x",
        ] {
            assert_eq!(read(&[word]).1.len(), 1, "{word}");
        }
        for word in [
            "10.0.0.0/8",
            "10.0.0.0/8,x",
            "10.0.0.1/8,10.1.0.1",
            "10.0.0.0/8,fd00::1",
            "10.0.0.0/8,10.1.0.1,x",
        ] {
            assert!(route(word).is_err(), "{word}");
        }
        assert_eq!(route("10.0.0.0/8,10.1.0.1,7").unwrap()["priority"], 7);
    }
}
