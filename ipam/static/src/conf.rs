//! The keys of static, and what is checked of them.

use std::net::IpAddr;

use cni::address::parse_ip;
use cni::json::Json;
use cni::result::{Dns, Route};
use cni::{Cidr, Code, Error, Version};
use serde::Deserialize;

/// What an ADD hands out.
#[derive(Clone, Debug)]
pub struct Ipam {
    /// In the order in which they are returned.
    pub addresses: Vec<Address>,
    /// Returned as they are.
    pub routes: Vec<Route>,
    /// Returned as it is.
    pub dns: Dns,
}

/// An address, and the gateway of its subnet if there is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// With its host part.
    pub cidr: Cidr,
    /// As it is given: it need not lie in the subnet.
    pub gateway: Option<IpAddr>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Keys {
    ipam: Option<IpamKeys>,
    runtime_config: Ips,
    args: Args,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct IpamKeys {
    addresses: Vec<AddressKeys>,
    routes: Vec<Route>,
    dns: Dns,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct AddressKeys {
    address: String,
    #[serde(deserialize_with = "cni::address::optional_ip")]
    gateway: Option<IpAddr>,
    /// Of old configurations; the address says it as well.
    #[serde(rename = "version")]
    _version: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Args {
    cni: Ips,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Ips {
    ips: Vec<String>,
}

impl Ipam {
    /// Reads and checks `document`, and `args`, the `CNI_ARGS` of the call.
    pub fn read(document: &Json, version: Version, args: &str) -> Result<Self, Error> {
        let keys: Keys = document
            .decode()
            .map_err(|error| fault(format!("failed to load netconf: {error}")))?;
        let Some(ipam) = keys.ipam else {
            return Err(fault("IPAM config missing 'ipam' key"));
        };
        let from_args = addresses_in_args(args)?;
        // The most particular source wins, and what it overrides is not even looked at.
        let addresses = if !keys.runtime_config.ips.is_empty() {
            overriding(&keys.runtime_config.ips)?
        } else if !keys.args.cni.ips.is_empty() {
            overriding(&keys.args.cni.ips)?
        } else {
            let mut addresses = configured(&ipam.addresses)?;
            addresses.extend(from_args);
            addresses
        };
        refuse_many(&addresses, version)?;
        Ok(Self {
            addresses,
            routes: ipam.routes,
            dns: ipam.dns,
        })
    }
}

fn configured(keys: &[AddressKeys]) -> Result<Vec<Address>, Error> {
    let address = |keys: &AddressKeys| {
        let cidr = keys.address.parse().map_err(|_| {
            fault(format!(
                "the 'address' field is expected to be in CIDR notation, got: '{}'",
                keys.address
            ))
        })?;
        let gateway = keys.gateway;
        Ok(Address { cidr, gateway })
    };
    keys.iter().map(address).collect()
}

/// What the runtime asks for in place of the configured addresses; it cannot name gateways.
fn overriding(ips: &[String]) -> Result<Vec<Address>, Error> {
    let address = |text: &String| {
        let cidr = text.parse().map_err(|_| {
            fault(format!(
                "an entry in the 'ips' field is NOT in CIDR notation, got: '{text}'"
            ))
        })?;
        Ok(Address {
            cidr,
            gateway: None,
        })
    };
    ips.iter().map(address).collect()
}

/// `IP` and `GATEWAY` of `CNI_ARGS`: a gateway is that of every address in whose subnet it lies.
fn addresses_in_args(args: &str) -> Result<Vec<Address>, Error> {
    // MAC is for the plugin that asks us; it passes its arguments on to the letter.
    let [ips, gateways, _] = cni::env::parse_args(args, ["IP", "GATEWAY", "MAC"])?;
    let mut addresses = Vec::new();
    for text in list(&ips) {
        let cidr = text.parse().map_err(|_| {
            Code::InvalidEnvironment.err(format!(
                "the 'ip' field is expected to be in CIDR notation, got: '{text}'"
            ))
        })?;
        addresses.push(Address {
            cidr,
            gateway: None,
        });
    }
    for text in list(&gateways) {
        let gateway = parse_ip(text).map_err(|_| {
            Code::InvalidEnvironment.err(format!("invalid gateway address: {text}"))
        })?;
        for address in &mut addresses {
            if address.cidr.0.contains(gateway) {
                address.gateway = Some(gateway);
            }
        }
    }
    Ok(addresses)
}

fn list(value: &Option<String>) -> impl Iterator<Item = &str> {
    let value = value.as_deref().filter(|text| !text.is_empty());
    value
        .into_iter()
        .flat_map(|text| text.split(','))
        .map(str::trim)
}

/// Results had room for one address of each family before 0.3.0.
fn refuse_many(addresses: &[Address], version: Version) -> Result<(), Error> {
    let is_ipv4 = |address: &&Address| address.cidr.ip().is_ipv4();
    let ipv4 = addresses.iter().filter(is_ipv4).count();
    if version < Version::V0_3_0 && ipv4.max(addresses.len() - ipv4) > 1 {
        return Err(fault(format!(
            "CNI version {version} does not support more than 1 address per family"
        )));
    }
    Ok(())
}

fn fault(msg: impl Into<String>) -> Error {
    Code::InvalidConfig.err(msg)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(document: &str, args: &str) -> Result<Ipam, Error> {
        let document = Json::parse(document.as_bytes()).unwrap();
        Ipam::read(&document, Version::V0_2_0, args)
    }

    fn addresses(document: &str, args: &str) -> Vec<String> {
        let text = |address: &Address| match address.gateway {
            Some(gateway) => format!("{} via {gateway}", address.cidr),
            None => address.cidr.to_string(),
        };
        let ipam = read(document, args).unwrap();
        ipam.addresses.iter().map(text).collect()
    }

    const CONFIGURED: &str = r#""ipam": {"Addresses": [
        {"address": "10.0.0.2/24", "gateway": "10.0.0.1", "version": "4"},
        {"address": "3ffe:ffff:0:01ff::1/64"}
    ]}"#;

    #[test]
    fn the_most_particular_source_wins() {
        let args = "IP=10.9.0.2/24, 10.8.0.2/24;GATEWAY=10.9.0.1";
        let plain = format!("{{{CONFIGURED}}}");
        assert_eq!(
            addresses(&plain, ""),
            ["10.0.0.2/24 via 10.0.0.1", "3ffe:ffff:0:1ff::1/64"]
        );
        let document =
            format!(r#"{{{CONFIGURED}, "args": {{"cni": {{"ips": ["10.1.0.2/24"]}}}}}}"#);
        assert_eq!(addresses(&document, args), ["10.1.0.2/24"]);
        let document = format!(
            r#"{{{CONFIGURED}, "args": {{"cni": {{"ips": ["10.1.0.2"]}}}},
                "RuntimeConfig": {{"ips": ["fd00::2/64"]}}}}"#
        );
        assert_eq!(addresses(&document, args), ["fd00::2/64"]);
    }

    #[test]
    fn arguments_are_added_and_find_their_gateways() {
        let args = "IP=10.9.0.2/24,fd00::2/64;GATEWAY=10.9.0.1";
        assert_eq!(
            addresses(r#"{"ipam": {"type": "static"}}"#, args),
            ["10.9.0.2/24 via 10.9.0.1", "fd00::2/64"]
        );
        assert!(addresses(r#"{"ipam": {}}"#, "").is_empty());
    }

    #[test]
    fn faults_are_told_in_the_words_of_the_go_plugin() {
        for (document, args, code, msg) in [
            ("{}", "IP=x", 7, "IPAM config missing 'ipam' key"),
            (
                r#"{"ipam": {"addresses": [{"address": "10.0.0.2"}]}}"#,
                "",
                7,
                "the 'address' field is expected to be in CIDR notation, got: '10.0.0.2'",
            ),
            (
                r#"{"ipam": {}}"#,
                "IP=10.0.0.2",
                4,
                "the 'ip' field is expected to be in CIDR notation, got: '10.0.0.2'",
            ),
            (
                r#"{"ipam": {}}"#,
                "IP=10.0.0.2/24;GATEWAY=x",
                4,
                "invalid gateway address: x",
            ),
            (
                r#"{"ipam": {}, "runtimeConfig": {"ips": ["10.0.0.2"]}}"#,
                "",
                7,
                "an entry in the 'ips' field is NOT in CIDR notation, got: '10.0.0.2'",
            ),
            (
                r#"{"ipam": {}, "args": {"cni": {"ips": ["10.0.0.2/24", "10.0.0.3/24"]}}}"#,
                "",
                7,
                "CNI version 0.2.0 does not support more than 1 address per family",
            ),
        ] {
            let error = read(document, args).unwrap_err();
            assert_eq!(
                (error.code, error.msg.as_str()),
                (code, msg),
                "{document} {args}"
            );
        }
    }

    #[test]
    fn a_version_that_is_no_text_is_a_fault() {
        let document = r#"{"ipam": {"addresses": [{"address": "10.0.0.2/24", "version": 4}]}}"#;
        let error = read(document, "").unwrap_err();
        assert!(
            error
                .msg
                .starts_with("failed to load netconf: ipam.addresses[0].version: ")
        );
    }
}
