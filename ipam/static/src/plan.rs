//! From keys to the addresses that are handed out.

use std::collections::HashSet;
use std::net::IpAddr;

use cni::address::parse_ip;
use cni::faults::{Checks, Fault, Faults};
use cni::ipam::{check_address, check_routes, one_of_each_family};
use cni::result::{Dns, Route};
use cni::{Cidr, Code, Error, Version};

use crate::conf::{self, Conf};

/// What an ADD hands out.
#[derive(Clone, Debug)]
pub struct Plan {
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

impl Plan {
    /// Checks `conf`, and `args`, the `CNI_ARGS` of the call. The most particular source of
    /// addresses wins; what it overrides is not checked.
    ///
    /// # Errors
    /// Code 7, each fault with its key; 4 for CNI_ARGS.
    pub fn new(conf: &Conf, version: Version, args: &str) -> Result<Self, Faults> {
        let ipam = conf.ipam.as_ref();
        let ipam = ipam.ok_or_else(|| Fault::new("ipam", "IPAM config missing 'ipam' key"))?;
        let mut checks = Checks::default();
        let from_args = checks.take(addresses_in_args(args));
        let (runtime, author) = (&conf.runtime_config.ips, &conf.args.cni.ips);
        let addresses = if !runtime.is_empty() {
            overriding("runtimeConfig.ips", runtime, &mut checks)
        } else if !author.is_empty() {
            overriding("args.cni.ips", author, &mut checks)
        } else {
            let mut addresses = configured(&ipam.addresses, &mut checks);
            addresses.extend(from_args.unwrap_or_default());
            addresses
        };
        let ips = addresses.iter().map(|it| it.cidr.ip());
        let each_has_room = one_of_each_family(ips, version);
        checks.take(each_has_room.map_err(|error| Fault::at("ipam.addresses", error)));
        check_routes(&ipam.routes, &mut checks);
        checks.finish(|| {
            Some(Self {
                addresses,
                routes: ipam.routes.clone(),
                dns: ipam.dns.clone(),
            })
        })
    }
}

fn configured(keys: &[conf::Address], checks: &mut Checks) -> Vec<Address> {
    let mut all = Vec::new();
    let mut seen = HashSet::new();
    for (index, keys) in keys.iter().enumerate() {
        let key = format!("ipam.addresses[{index}].address");
        let Ok(cidr) = keys.text().parse::<Cidr>() else {
            let why = "the 'address' field is expected to be in CIDR notation, got";
            checks.add(Fault::new(key, format!("{why}: '{}'", keys.text())));
            continue;
        };
        if !seen.insert(cidr) {
            let msg = format!("{key}: an interface cannot have {cidr} twice");
            checks.add(Fault::new(key, msg));
            continue;
        }
        checks.take(check_address(key, cidr));
        let gateway = keys.gateway;
        all.push(Address { cidr, gateway });
    }
    all
}

/// What is requested in place of the configured addresses; a request cannot name gateways.
fn overriding(key: &str, ips: &[String], checks: &mut Checks) -> Vec<Address> {
    checks.each(key, ips, |key, text| {
        let cidr = text.parse().map_err(|_| {
            let msg = format!("an entry in the 'ips' field is NOT in CIDR notation, got: '{text}'");
            Fault::new(key, msg)
        })?;
        let gateway = None;
        Ok::<_, Fault>(Address { cidr, gateway })
    })
}

/// `IP` and `GATEWAY` of `CNI_ARGS`: a gateway is that of every address in whose subnet it lies.
fn addresses_in_args(args: &str) -> Result<Vec<Address>, Error> {
    // MAC is for the main plugin, which passes CNI_ARGS on unchanged.
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

#[cfg(test)]
mod tests {
    use super::*;

    use cni::json;

    fn plan(document: &str, args: &str) -> Result<Plan, Faults> {
        let conf = json::read(document).unwrap();
        Plan::new(&conf, Version::V0_2_0, args)
    }

    fn addresses(document: &str, args: &str) -> Vec<String> {
        let text = |address: &Address| match address.gateway {
            Some(gateway) => format!("{} via {gateway}", address.cidr),
            None => address.cidr.to_string(),
        };
        let plan = plan(document, args).unwrap();
        plan.addresses.iter().map(text).collect()
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
    fn an_address_may_have_its_parts_beside_it() {
        // As the Go plugin's own type is written.
        let parts = r#""Address": {"IP": "10.0.0.2", "Mask": "////AA=="}, "Version": "4""#;
        let document =
            format!(r#"{{"ipam": {{"addresses": [{{"address": "10.0.0.2/24", {parts}}}]}}}}"#);
        assert_eq!(addresses(&document, ""), ["10.0.0.2/24"]);
        let document = r#"{"ipam": {"addresses": [{"Address": "10.0.0.2/24"}]}}"#;
        assert_eq!(addresses(document, ""), ["10.0.0.2/24"]);
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
    fn faults_have_the_texts_of_the_go_plugin() {
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
            let error = Error::from(plan(document, args).unwrap_err());
            assert_eq!(
                (error.code, error.msg.as_str()),
                (code, msg),
                "{document} {args}"
            );
        }
    }

    #[test]
    fn every_fault_has_its_key() {
        let document = r#"{"ipam": {"addresses": [{"address": "10.0.0.2/24"}, {"address": "x"},
            {"address": "10.0.0.2/24"}, {"address": "ff02::1/64"}], "routes": [{"dst": "10.1.1.1/8"}]}}"#;
        let keys = plan(document, "IP=x").unwrap_err().into_iter();
        let addresses = [1, 2, 3].map(|index| format!("ipam.addresses[{index}].address"));
        let [one, two, three] = addresses.each_ref().map(String::as_str);
        assert_eq!(
            keys.map(|it| it.key).collect::<Vec<_>>(),
            ["", one, two, three, "ipam.routes[0].dst"]
        );
    }
}
