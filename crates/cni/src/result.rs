//! The result of ADD: kept in the form of 1.1.0, read and written in any version.
//!
//! Source: CNI specification, section "ADD Success", of 0.2.0, 0.4.0 and 1.1.0. The order of
//! keys and the rules for omitting them are those of the Go library, because users compare
//! results.

use std::net::IpAddr;

use anyhow::{Context, Result, anyhow, bail};
use serde::{Deserialize, Serialize};

use crate::address::{Cidr, optional_ip};
use crate::json::Json;
use crate::version::Version;

/// The result of an ADD or of an IPAM plugin, or a `prevResult`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct AddResult {
    /// Every interface that was created, including host ends.
    pub interfaces: Vec<Interface>,
    /// Every address of the container.
    pub ips: Vec<IpConfig>,
    /// Every route of the container.
    pub routes: Vec<Route>,
    /// How the container resolves names.
    pub dns: Dns,
}

/// An interface of a result.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Interface {
    /// Its name, in the namespace where it is.
    pub name: String,
    /// Lower-case colon-separated hex; empty if it has none.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub mac: String,
    /// In bytes; 0 if unknown. Since 1.1.0.
    #[serde(skip_serializing_if = "is_zero")]
    pub mtu: u32,
    /// `CNI_NETNS` to the letter; empty for the host.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub sandbox: String,
    /// Of a userspace interface. Since 1.1.0.
    #[serde(rename = "socketPath", skip_serializing_if = "String::is_empty")]
    pub socket_path: String,
    /// Of a device that was moved. Since 1.1.0.
    #[serde(rename = "pciID", skip_serializing_if = "String::is_empty")]
    pub pci_id: String,
}

impl Interface {
    /// Whether it is on the host, not in a container.
    pub fn is_on_host(&self) -> bool {
        self.sandbox.is_empty()
    }
}

/// An address of a result.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct IpConfig {
    /// Index into [`AddResult::interfaces`]; IPAM plugins leave it out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<i64>,
    /// The address with the prefix of its subnet.
    pub address: Cidr,
    /// The gateway of that subnet.
    #[serde(
        default,
        deserialize_with = "optional_ip",
        skip_serializing_if = "Option::is_none"
    )]
    pub gateway: Option<IpAddr>,
}

/// A route of a result, or of an IPAM configuration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Route {
    /// Destination.
    pub dst: Cidr,
    /// Next hop; without one, the gateway of the family is used.
    #[serde(
        default,
        deserialize_with = "optional_ip",
        skip_serializing_if = "Option::is_none"
    )]
    pub gw: Option<IpAddr>,
    /// In bytes; 0 if not set.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub mtu: u32,
    /// Advertised maximum segment size in bytes; 0 if not set.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub advmss: u32,
    /// The metric; 0 leaves it to the kernel.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub priority: u32,
    /// Routing table; unset is main, and 0 is not the same as unset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<u32>,
    /// Scope as `rtnetlink(7)` numbers it (0 global, 253 link); unset is global.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<u8>,
}

impl Route {
    /// A route to `dst` through `gw`.
    pub fn via(dst: Cidr, gw: IpAddr) -> Self {
        Self {
            dst,
            gw: Some(gw),
            mtu: 0,
            advmss: 0,
            priority: 0,
            table: None,
            scope: None,
        }
    }
}

/// How names are resolved.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Dns {
    /// Addresses of name servers, in order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub nameservers: Vec<String>,
    /// The local domain.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub domain: String,
    /// Domains to search, in order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<String>,
    /// Options of the resolver.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

impl Dns {
    /// Whether nothing is set.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

fn is_zero(value: &u32) -> bool {
    *value == 0
}

/// A result as 0.1.0 and 0.2.0 write it: one address of each family.
#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct Result020 {
    #[serde(rename = "cniVersion")]
    cni_version: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    ip4: Option<Ip020>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ip6: Option<Ip020>,
    dns: Dns,
}

#[derive(Serialize, Deserialize)]
struct Ip020 {
    ip: Cidr,
    #[serde(
        default,
        deserialize_with = "optional_ip",
        skip_serializing_if = "Option::is_none"
    )]
    gateway: Option<IpAddr>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    routes: Vec<Route>,
}

/// A result as 0.3.0 to 0.4.0 write it.
#[derive(Serialize)]
struct Result040<'a> {
    #[serde(rename = "cniVersion")]
    cni_version: &'a str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    interfaces: Vec<Interface>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ips: Vec<Ip040>,
    #[serde(skip_serializing_if = "<[Route]>::is_empty")]
    routes: &'a [Route],
    dns: &'a Dns,
}

#[derive(Serialize)]
struct Ip040 {
    version: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    interface: Option<i64>,
    address: Cidr,
    #[serde(skip_serializing_if = "Option::is_none")]
    gateway: Option<IpAddr>,
}

/// The version of a result, if it has one.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Stamp {
    #[serde(rename = "cniVersion")]
    cni_version: String,
}

impl AddResult {
    /// The interfaces on the host, in the order of the result.
    pub fn on_host(&self) -> impl DoubleEndedIterator<Item = &Interface> {
        self.interfaces.iter().filter(|it| it.is_on_host())
    }

    /// The interfaces in the container, in the order of the result.
    pub fn in_container(&self) -> impl DoubleEndedIterator<Item = &Interface> {
        self.interfaces.iter().filter(|it| !it.is_on_host())
    }

    /// The interface that has the address `ip`. As in the Go plugins, an index that no interface
    /// has counts as none.
    pub fn interface_of(&self, ip: &IpConfig) -> Option<&Interface> {
        let index = usize::try_from(ip.interface?).ok()?;
        self.interfaces.get(index)
    }

    /// The addresses of the container's interface `ifname`, and those without an interface.
    pub fn ips_of(&self, ifname: &str) -> impl Iterator<Item = &IpConfig> {
        self.ips.iter().filter(move |ip| {
            let interface = self.interface_of(ip);
            interface.is_none_or(|it| it.name == ifname && !it.is_on_host())
        })
    }

    /// Reads a `prevResult`. Its version is its own `cniVersion`, which must be of the family
    /// of `fallback`, or else `fallback`.
    pub fn decode(document: &Json, fallback: Version) -> Result<Self> {
        Self::decode_in_family(document, fallback).context("could not parse prevResult")
    }

    fn decode_in_family(document: &Json, fallback: Version) -> Result<Self> {
        let stamp: Stamp = document.decode()?;
        let version = match stamp.cni_version.as_str() {
            "" => fallback,
            text => Version::parse(text)
                .filter(|version| fallback.family().contains(version))
                .ok_or_else(|| foreign_version(text, fallback))?,
        };
        Self::decode_at(document, version)
    }

    /// Reads the result of a delegate, in any known version.
    pub fn decode_any(document: &Json, fallback: Version) -> Result<Self> {
        let stamp: Stamp = document.decode()?;
        let version = match stamp.cni_version.as_str() {
            "" => fallback,
            text => Version::parse(text)
                .ok_or_else(|| anyhow!("unsupported CNI result version {text:?}"))?,
        };
        Self::decode_at(document, version)
    }

    fn decode_at(document: &Json, version: Version) -> Result<Self> {
        if version <= Version::V0_2_0 {
            return Ok(Self::from_020(document.decode()?));
        }
        Ok(document.decode()?)
    }

    fn from_020(old: Result020) -> Self {
        let mut result = Self {
            dns: old.dns,
            ..Self::default()
        };
        for ip in [old.ip4, old.ip6].into_iter().flatten() {
            result.ips.push(IpConfig {
                interface: None,
                address: ip.ip,
                gateway: ip.gateway,
            });
            result.routes.extend(ip.routes);
        }
        result
    }

    /// The result without MTUs of interfaces before 1.1.0, which added them.
    pub fn for_version(mut self, version: Version) -> Self {
        if version < Version::V1_1_0 {
            for interface in &mut self.interfaces {
                interface.mtu = 0;
            }
        }
        self
    }

    /// The document for `version`: indented by four spaces, without a newline at its end.
    ///
    /// # Errors
    /// `cannot convert: …`: the version has no form for this result.
    pub fn encode(&self, version: Version) -> Result<String> {
        if version >= Version::V1_0_0 {
            // Maps of serde_json sort their keys, as Go's encoder does.
            return pretty(&self.to_1x(version)?);
        }
        if version >= Version::V0_3_0 {
            return pretty(&self.to_040(version));
        }
        pretty(&self.to_020(version)?)
    }

    /// The members of the 1.x document, without empty ones.
    fn to_1x(&self, version: Version) -> Result<serde_json::Map<String, serde_json::Value>> {
        let mut members = serde_json::Map::new();
        members.insert("cniVersion".into(), version.as_str().into());
        if !self.interfaces.is_empty() {
            members.insert("interfaces".into(), serde_json::to_value(&self.interfaces)?);
        }
        if !self.ips.is_empty() {
            members.insert("ips".into(), serde_json::to_value(&self.ips)?);
        }
        if !self.routes.is_empty() {
            members.insert("routes".into(), serde_json::to_value(&self.routes)?);
        }
        if !self.dns.is_empty() {
            members.insert("dns".into(), serde_json::to_value(&self.dns)?);
        }
        Ok(members)
    }

    /// Interfaces had only a name, a MAC and a sandbox before 1.0.0.
    fn interfaces_before_100(&self) -> Vec<Interface> {
        let strip = |interface: &Interface| Interface {
            name: interface.name.clone(),
            mac: interface.mac.clone(),
            sandbox: interface.sandbox.clone(),
            ..Interface::default()
        };
        self.interfaces.iter().map(strip).collect()
    }

    fn to_040<'a>(&'a self, version: Version) -> Result040<'a> {
        let old = |ip: &IpConfig| Ip040 {
            version: if ip.address.ip().is_ipv4() { "4" } else { "6" },
            interface: ip.interface,
            address: ip.address,
            gateway: ip.gateway,
        };
        Result040 {
            cni_version: version.as_str(),
            interfaces: self.interfaces_before_100(),
            ips: self.ips.iter().map(old).collect(),
            routes: &self.routes,
            dns: &self.dns,
        }
    }

    fn to_020(&self, version: Version) -> Result<Result020> {
        let (ip4, ip6) = (
            self.first_020(IpAddr::is_ipv4),
            self.first_020(IpAddr::is_ipv6),
        );
        if ip4.is_none() && ip6.is_none() {
            bail!("cannot convert: no valid IP addresses");
        }
        Ok(Result020 {
            cni_version: version.as_str().to_owned(),
            ip4,
            ip6,
            dns: self.dns.clone(),
        })
    }

    /// The first address of a family with all routes of that family.
    fn first_020(&self, of_family: fn(&IpAddr) -> bool) -> Option<Ip020> {
        let first = self.ips.iter().find(|ip| of_family(&ip.address.ip()))?;
        let routes = self.routes.iter();
        Some(Ip020 {
            ip: first.address,
            gateway: first.gateway,
            routes: routes
                .filter(|route| of_family(&route.dst.ip()))
                .cloned()
                .collect(),
        })
    }
}

fn foreign_version(text: &str, fallback: Version) -> anyhow::Error {
    let family: Vec<_> = fallback.family().iter().map(|v| v.as_str()).collect();
    anyhow!(
        "result type supports [{}] but unmarshalled CNIVersion is {text:?}",
        family.join(" ")
    )
}

/// JSON with an indentation of four spaces, with `<`, `>` and `&` escaped, as
/// Go's encoder prints it.
pub(crate) fn pretty(value: &impl Serialize) -> Result<String> {
    let mut out = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    value.serialize(&mut serde_json::Serializer::with_formatter(
        &mut out, formatter,
    ))?;
    // These characters occur only inside strings.
    Ok(String::from_utf8(out)?
        .replace('<', "\\u003c")
        .replace('>', "\\u003e")
        .replace('&', "\\u0026"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dual_stack() -> AddResult {
        AddResult {
            interfaces: vec![
                Interface {
                    name: "cni0".into(),
                    mac: "02:00:00:00:00:01".into(),
                    mtu: 1500,
                    ..Interface::default()
                },
                Interface {
                    name: "eth0".into(),
                    mac: "02:00:00:00:00:02".into(),
                    sandbox: "/run/netns/a".into(),
                    mtu: 1500,
                    ..Interface::default()
                },
            ],
            ips: vec![
                IpConfig {
                    interface: Some(1),
                    address: "10.1.0.2/24".parse().unwrap(),
                    gateway: Some("10.1.0.1".parse().unwrap()),
                },
                IpConfig {
                    interface: Some(1),
                    address: "fd00::2/64".parse().unwrap(),
                    gateway: None,
                },
            ],
            routes: vec![
                Route::via("0.0.0.0/0".parse().unwrap(), "10.1.0.1".parse().unwrap()),
                Route {
                    gw: None,
                    table: Some(0),
                    ..Route::via("::/0".parse().unwrap(), "::1".parse().unwrap())
                },
            ],
            dns: Dns::default(),
        }
    }

    fn squeezed(text: &str) -> String {
        text.split_whitespace().collect()
    }

    #[test]
    fn the_newest_form_sorts_its_keys_and_drops_what_is_empty() {
        let text = dual_stack().encode(Version::V1_1_0).unwrap();
        assert!(
            text.starts_with("{\n    \"cniVersion\": \"1.1.0\",\n"),
            "{text}"
        );
        assert_eq!(
            squeezed(&text),
            r#"{"cniVersion":"1.1.0","interfaces":[{"mac":"02:00:00:00:00:01","mtu":1500,"name":"cni0"},{"mac":"02:00:00:00:00:02","mtu":1500,"name":"eth0","sandbox":"/run/netns/a"}],"ips":[{"address":"10.1.0.2/24","gateway":"10.1.0.1","interface":1},{"address":"fd00::2/64","interface":1}],"routes":[{"dst":"0.0.0.0/0","gw":"10.1.0.1"},{"dst":"::/0","table":0}]}"#
        );
    }

    #[test]
    fn the_form_of_030_has_versions_and_always_dns() {
        let text = squeezed(&dual_stack().encode(Version::V0_3_1).unwrap());
        assert!(text.contains(
            r#"{"version":"4","interface":1,"address":"10.1.0.2/24","gateway":"10.1.0.1"}"#
        ));
        assert!(text.ends_with(r#""dns":{}}"#), "{text}");
    }

    #[test]
    fn a_previous_result_that_makes_no_sense_is_refused_by_its_name() {
        let refused = |document: &[u8], version: Version| {
            let document = Json::parse(document).unwrap();
            let error = AddResult::decode(&document, version).unwrap_err();
            format!("{error:#}")
        };
        assert_eq!(
            refused(br#"{"cniVersion":"1.0.0"}"#, Version::V0_3_1),
            "could not parse prevResult: result type supports [0.3.0 0.3.1 0.4.0] but unmarshalled CNIVersion is \"1.0.0\""
        );
        assert_eq!(
            refused(br#"{"ips": [{"address": "x"}]}"#, Version::V1_0_0),
            "could not parse prevResult: ips[0].address: invalid CIDR address: x"
        );
        let document = Json::parse(br#"{"cniVersion":"1.0.0"}"#).unwrap();
        assert!(AddResult::decode_any(&document, Version::V0_3_1).is_ok());
    }

    #[test]
    fn characters_of_markup_are_escaped() {
        assert_eq!(pretty(&"<a&b>").unwrap(), r#""\u003ca\u0026b\u003e""#);
    }
}
