//! The networks of a container: `--network`, and the options for the first one.

use std::net::IpAddr;

use anyhow::{Context, Result, bail};
use networks::named::{BRIDGE, HOST, NONE};

/// Where a container's network comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Nothing but `lo`.
    None,
    /// The node's.
    Host,
    /// That of another container.
    Container(String),
    /// Networks, in the order of the interfaces.
    Networks(Vec<Endpoint>),
}

/// An attachment to a network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Endpoint {
    /// The network's name or id.
    pub network: String,
    /// The addresses that it must have.
    pub ips: Vec<IpAddr>,
    /// The MAC that it must have.
    pub mac: Option<String>,
    /// The container's further names.
    pub aliases: Vec<String>,
    /// The interface's name.
    pub ifname: Option<String>,
    /// For the choice of the default route.
    pub gateway_priority: i64,
}

/// The options that are for the first network.
#[derive(Clone, Debug, Default)]
pub struct First<'a> {
    /// `--ip`.
    pub ip: Option<&'a str>,
    /// `--ip6`.
    pub ip6: Option<&'a str>,
    /// `--mac-address`.
    pub mac: Option<&'a str>,
    /// `--network-alias`.
    pub aliases: &'a [String],
}

impl Mode {
    /// Reads all `--network`; without one it is the predefined network `bridge`.
    ///
    /// # Errors
    /// One cannot be read; several that exclude each other.
    pub fn parse(words: &[String], first: &First<'_>) -> Result<Self> {
        let bridge = [BRIDGE.to_owned()];
        let words = if words.is_empty() { &bridge } else { words };
        let mut endpoints = Vec::<Endpoint>::new();
        let mut alone = None;
        for word in words {
            match word.split_once(':') {
                _ if word == NONE => alone = Some(Self::None),
                _ if word == HOST => alone = Some(Self::Host),
                Some(("container", "")) => {
                    bail!("Invalid network mode: invalid container format container:<name|id>")
                }
                Some(("container", name)) => alone = Some(Self::Container(name.to_owned())),
                Some(("ns", path)) if path.starts_with('/') => {
                    alone = Some(Self::Container(path.to_owned()));
                }
                _ => endpoints.push(Endpoint::parse(word)?),
            }
        }
        if let Some(mode) = alone {
            if words.len() > 1 {
                bail!(
                    "conflicting options: cannot attach both user-defined and non-user-defined \
                     network-modes"
                );
            }
            return mode.without(first);
        }
        for (index, endpoint) in endpoints.iter().enumerate() {
            let name = &endpoint.network;
            if endpoints[..index].iter().any(|it| it.network == *name) {
                bail!("network {name:?} is specified multiple times");
            }
        }
        if let Some(endpoint) = endpoints.first_mut() {
            endpoint.complete(first)?;
        }
        endpoints.iter().try_for_each(Endpoint::check)?;
        Ok(Self::Networks(endpoints))
    }

    /// Fails for options that the mode has no use for.
    fn without(self, first: &First<'_>) -> Result<Self> {
        if first.mac.is_some() && self != Self::None {
            bail!("conflicting options: mac-address and the network mode");
        }
        if first.ip.or(first.ip6).or(first.mac).is_some() {
            bail!("invalid config for network: {ONLY_USER_DEFINED}");
        }
        if !first.aliases.is_empty() {
            bail!("{NO_ALIASES}");
        }
        Ok(self)
    }
}

const ONLY_USER_DEFINED: &str =
    "user-specified IP address is supported on user-defined networks only";
const NO_ALIASES: &str = "network-scoped aliases are only supported for user-defined networks";

impl Endpoint {
    /// Reads `NAME`, Docker's `name=NAME,ip=…,alias=…` or podman's `NAME:ip=…,alias=…`.
    pub fn parse(text: &str) -> Result<Self> {
        let mut endpoint = Self::default();
        let options = match text.split_once(':') {
            Some((name, options)) if !name.contains('=') => {
                endpoint.network = name.to_owned();
                options
            }
            _ if text.contains('=') => text,
            _ => {
                endpoint.network = text.to_owned();
                ""
            }
        };
        for option in options.split(',').filter(|it| !it.is_empty()) {
            let Some((key, value)) = option.split_once('=') else {
                bail!("invalid network syntax {text:?}: {option:?} is no KEY=VALUE");
            };
            let set = endpoint.set(key.trim(), value.trim());
            set.with_context(|| format!("invalid network syntax {text:?}"))?;
        }
        if endpoint.network.is_empty() {
            bail!("network name/id is not specified: {text:?}");
        }
        Ok(endpoint)
    }

    /// Sets one option.
    ///
    /// # Errors
    /// There is no such option; the value is none of its values.
    pub fn set(&mut self, key: &str, value: &str) -> Result<()> {
        match key.to_lowercase().as_str() {
            "name" => self.network = value.to_owned(),
            "ip" | "ip6" => self.ips.push(address(key, value)?),
            "mac" | "mac-address" => self.mac = Some(mac(value)?),
            "alias" => self.aliases.push(value.to_owned()),
            "interface_name" | "ifname" => self.ifname = Some(value.to_owned()),
            "gw-priority" => {
                let number = value.parse();
                self.gateway_priority =
                    number.with_context(|| format!("invalid gw-priority: {value:?}"))?;
            }
            "driver-opt" => match value.strip_prefix("com.docker.network.endpoint.ifname=") {
                Some(name) => self.ifname = Some(name.to_owned()),
                None => bail!("driver-opt {value} is not supported"),
            },
            other => bail!("invalid field {other:?}"),
        }
        Ok(())
    }

    /// Adds the options that stand beside the network.
    ///
    /// # Errors
    /// One is wrong, or is there twice.
    pub fn complete(&mut self, first: &First<'_>) -> Result<()> {
        for (is_v6, option, value) in [(false, "--ip", first.ip), (true, "--ip6", first.ip6)] {
            let Some(value) = value else { continue };
            if self.ips.iter().any(|it| it.is_ipv6() == is_v6) {
                let family = if is_v6 { "IPv6" } else { "IPv4" };
                bail!(
                    "conflicting options: cannot specify both {option} and per-network {family} \
                     address"
                );
            }
            self.ips.push(address(option, value)?);
        }
        if let Some(value) = first.mac {
            if self.mac.is_some() {
                bail!("conflicting options: cannot specify both --mac-address and per-network MAC");
            }
            self.mac = Some(mac(value)?);
        }
        if !first.aliases.is_empty() {
            if !self.aliases.is_empty() {
                bail!(
                    "conflicting options: cannot specify both --network-alias and per-network alias"
                );
            }
            self.aliases = first.aliases.to_vec();
        }
        Ok(())
    }

    /// Fails for what the predefined network does not have, and for wrong names.
    pub fn check(&self) -> Result<()> {
        if [BRIDGE, "default"].contains(&self.network.as_str()) {
            if !self.ips.is_empty() {
                bail!("{ONLY_USER_DEFINED}");
            }
            if !self.aliases.is_empty() {
                bail!("{NO_ALIASES}");
            }
        }
        if let Some(name) = &self.ifname {
            cni::env::IfName::parse_new(name)?;
        }
        let wrong = self
            .aliases
            .iter()
            .find(|it| !super::files::is_host_name(it));
        wrong.map_or(Ok(()), |it| bail!("invalid alias {it:?}"))
    }
}

/// An address of the family that the option is for.
pub fn address(option: &str, text: &str) -> Result<IpAddr> {
    let ip: Result<IpAddr, _> = text.parse();
    let wants_v6 = option.ends_with('6');
    match ip {
        Ok(ip) if ip.is_unspecified() || ip.is_multicast() || ip.is_loopback() => {
            bail!("invalid {option}: {text} is no address of a container")
        }
        Ok(ip) if ip.is_ipv6() == wants_v6 => Ok(ip),
        Ok(_) => {
            let family = if wants_v6 { "IPv6" } else { "IPv4" };
            bail!("invalid {family} address: {text}")
        }
        Err(_) => bail!("invalid IP address: {text:?}"),
    }
}

/// A MAC, in lower case.
pub fn mac(text: &str) -> Result<String> {
    let parsed: Result<netlink::Mac, _> = text.parse();
    match parsed {
        Ok(_) => Ok(text.to_lowercase()),
        Err(_) => bail!("invalid mac address: {text:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<Mode> {
        let words: Vec<_> = words.iter().map(|it| (*it).to_owned()).collect();
        Mode::parse(&words, &First::default())
    }

    #[test]
    fn the_five_modes_are_read() {
        let network = |name: &str| {
            Mode::Networks(vec![Endpoint {
                network: name.into(),
                ..Endpoint::default()
            }])
        };
        for (words, expected) in [
            (&[][..], network("bridge")),
            (&["none"], Mode::None),
            (&["host"], Mode::Host),
            (&["mine"], network("mine")),
            (&["container:web"], Mode::Container("web".into())),
            (&["ns:/run/netns/a"], Mode::Container("/run/netns/a".into())),
        ] {
            assert_eq!(parse(words).unwrap(), expected, "{words:?}");
        }
    }

    #[test]
    fn a_network_has_its_options_in_either_form() {
        let expected = Mode::Networks(vec![
            Endpoint {
                network: "A".into(),
                ips: vec!["10.1.0.5".parse().unwrap(), "fd00::5".parse().unwrap()],
                mac: Some("02:00:00:00:00:aa".into()),
                aliases: vec!["x".into(), "y".into()],
                ifname: Some("net7".into()),
                gateway_priority: 3,
            },
            Endpoint {
                network: "b".into(),
                ..Endpoint::default()
            },
        ]);
        let options = "ip=10.1.0.5,ip6=fd00::5,alias=x,alias=y,gw-priority=3";
        let docker = format!(
            "name=A,{options},mac-address=02:00:00:00:00:AA,driver-opt=com.docker.network.endpoint.ifname=net7"
        );
        let podman = format!("A:{options},mac=02:00:00:00:00:AA,interface_name=net7");
        for first in [docker, podman] {
            assert_eq!(parse(&[&first, "b"]).unwrap(), expected, "{first}");
        }
    }

    #[test]
    fn conflicts_have_dockers_texts() {
        let both = "cannot attach both user-defined and non-user-defined network-modes";
        for (words, expected) in [
            (
                &["container:"][..],
                "invalid container format container:<name|id>",
            ),
            (&["none", "a"], both),
            (&["a", "host"], both),
            (
                &["a", "b", "a"],
                "network \"a\" is specified multiple times",
            ),
            (&["name=a,ip"], "is no KEY=VALUE"),
            (&["ip=10.0.0.1"], "network name/id is not specified"),
            (&["a:ip=x"], "invalid IP address: \"x\""),
            (&["a:ip=fd00::1"], "invalid IPv4 address: fd00::1"),
            (&["a:ip=127.0.0.1"], "is no address of a container"),
            (&["a:mac=x"], "invalid mac address: \"x\""),
            (&["a:colour=red"], "invalid field \"colour\""),
            (&["a:alias=x y"], "invalid alias \"x y\""),
            (&["bridge:ip=10.0.0.1"], ONLY_USER_DEFINED),
            (&["bridge:alias=x"], NO_ALIASES),
        ] {
            let error = format!("{:#}", parse(words).unwrap_err());
            assert!(error.contains(expected), "{words:?}: {error}");
        }
        let first = First {
            ip: Some("10.0.0.1"),
            ..First::default()
        };
        for (word, expected) in [
            ("a:ip=10.0.0.2", "both --ip and per-network IPv4 address"),
            ("none", ONLY_USER_DEFINED),
            ("bridge", ONLY_USER_DEFINED),
        ] {
            let error = Mode::parse(&[word.to_owned()], &first).unwrap_err();
            assert!(format!("{error:#}").contains(expected), "{word}: {error:#}");
        }
    }
}
