//! Decides from keys and the previous result what to let through. Pure: no system calls.

use std::net::IpAddr;

use cni::faults::{Checks, Fault, Faults};
use cni::{AddResult, Code, Error};
use packet_filter::{Firewall, FirewallBackend, Ingress, chain_name};

use crate::conf::Conf;

/// A configuration without contradictions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The back end that the configuration names.
    pub backend: Option<FirewallBackend>,
    /// The zone of firewalld.
    pub zone: String,
    admin_chain: String,
    policy: Policy,
    published: bool,
}

/// Which pods may reach the pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Policy {
    Open,
    SameBridge,
    Isolated,
}

impl Plan {
    /// Checks everything that can be checked without the kernel.
    ///
    /// # Errors
    /// Code 7, each fault with its key, with the Go plugin's text if it has one.
    pub fn new(conf: &Conf) -> Result<Self, Faults> {
        let or = |text: &str, default: &str| match text {
            "" => default.to_owned(),
            text => text.to_owned(),
        };
        let mut checks = Checks::default();
        let admin_chain = or(&conf.iptables_admin_chain_name, "CNI-ADMIN");
        let chain = chain_name(&admin_chain).map(drop).map_err(|error| {
            let key = "iptablesAdminChainName";
            Fault::new(key, format!("{key}: {error}"))
        });
        let chain = checks.take(chain);
        let zone = or(&conf.firewalld_zone, "trusted");
        if zone.chars().any(char::is_control) {
            let msg = format!("firewalldZone: {zone:?} is no name of a zone");
            checks.add(Fault::new("firewalldZone", msg));
        }
        let policy = checks.take(policy(&conf.ingress_policy));
        checks.finish(|| {
            chain?;
            Some(Self {
                backend: FirewallBackend::named(&conf.backend),
                zone,
                admin_chain,
                policy: policy?,
                published: !conf.isolate_published_ports,
            })
        })
    }

    /// What an attachment with `result` wants. All addresses count, as in the Go plugin.
    ///
    /// # Errors
    /// Code 7: a policy needs the bridge, which is the first interface of the result.
    pub fn wanted(&self, result: &AddResult) -> Result<Firewall, Error> {
        Ok(Firewall {
            addresses: addresses(result),
            zone: self.zone.clone(),
            admin_chain: self.admin_chain.clone(),
            ingress: self.ingress(result)?,
        })
    }

    fn ingress(&self, result: &AddResult) -> Result<Option<Ingress>, Error> {
        let policy = match self.policy {
            Policy::Open => return Ok(None),
            Policy::SameBridge => "same-bridge",
            Policy::Isolated => "isolated",
        };
        let fault = |msg: String| Code::InvalidConfig.err(msg);
        let Some(first) = result.interfaces.first() else {
            return Err(fault(format!(
                "interface needs to be set for ingress policy {policy:?}, make sure to chain \"firewall\" plugin with \"bridge\""
            )));
        };
        if first.name.is_empty() {
            return Err(fault("got empty bridge name".into()));
        }
        // iptables reads a plus sign at the end as a wildcard.
        let plain = |c: char| c.is_ascii_graphic() && !"\"'\\!+/".contains(c);
        if first.name.len() > 15 || !first.name.chars().all(plain) {
            let name = &first.name;
            return Err(fault(format!("{name:?} is no bridge that rules can name")));
        }
        Ok(Some(Ingress {
            bridge: first.name.clone(),
            isolated: self.policy == Policy::Isolated,
            published: self.published,
        }))
    }
}

/// All addresses of a result.
pub fn addresses(result: &AddResult) -> Vec<IpAddr> {
    let mut all = Vec::new();
    for ip in result.ips.iter().map(|it| it.address.ip()) {
        if !all.contains(&ip) {
            all.push(ip);
        }
    }
    all
}

fn policy(text: &str) -> Result<Policy, Fault> {
    match text {
        "" | "open" => Ok(Policy::Open),
        "same-bridge" => Ok(Policy::SameBridge),
        "isolated" => Ok(Policy::Isolated),
        other => {
            let msg = format!("unknown ingress policy: {other:?}");
            Err(Fault::new("ingressPolicy", msg))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cni::json::Json;
    use cni::version::Version;

    fn plan(text: &str) -> Result<Plan, Faults> {
        let conf: Conf = Json::parse(text.as_bytes()).unwrap().decode().unwrap();
        Plan::new(&conf)
    }

    fn result(text: &str) -> AddResult {
        let document = Json::parse(text.as_bytes()).unwrap();
        AddResult::decode(&document, Version::V1_0_0).unwrap()
    }

    #[test]
    fn values_that_cannot_be_are_refused() {
        for (text, key, msg) in [
            (
                r#"{"ingressPolicy": "x"}"#,
                "ingressPolicy",
                "unknown ingress policy: \"x\"",
            ),
            (
                r#"{"iptablesAdminChainName": "a b"}"#,
                "iptablesAdminChainName",
                "iptablesAdminChainName: \"a b\" is no name of an iptables chain",
            ),
            (
                r#"{"firewalldZone": "a\nb"}"#,
                "firewalldZone",
                "firewalldZone: \"a\\nb\" is no name of a zone",
            ),
        ] {
            let faults = plan(text).unwrap_err();
            let first = faults.first();
            assert_eq!((first.key.as_str(), first.error.msg.as_str()), (key, msg));
            assert_eq!(first.error.code, 7);
        }
    }

    #[test]
    fn an_unknown_back_end_leaves_the_choice_to_the_plugin() {
        assert_eq!(plan(r#"{"backend": "x"}"#).unwrap().backend, None);
        assert_eq!(
            plan(r#"{"backend": "firewalld"}"#).unwrap().backend,
            Some(FirewallBackend::Firewalld)
        );
    }

    #[test]
    fn every_address_counts_once_and_the_first_interface_is_the_bridge() {
        let result = result(
            r#"{"interfaces": [{"name": "cni0"}, {"name": "eth0", "sandbox": "/x"}],
                "ips": [{"address": "10.0.0.2/24", "interface": 0}, {"address": "fd00::2/64"}, {"address": "10.0.0.2/24"}]}"#,
        );
        let wanted = plan(r#"{"ingressPolicy": "isolated"}"#)
            .unwrap()
            .wanted(&result)
            .unwrap();
        assert_eq!(
            wanted.addresses,
            ["10.0.0.2", "fd00::2"].map(|ip| ip.parse::<IpAddr>().unwrap())
        );
        let ingress = wanted.ingress.unwrap();
        assert_eq!(ingress.bridge, "cni0");
        assert!(ingress.isolated && ingress.published);
        assert_eq!(plan("{}").unwrap().wanted(&result).unwrap().ingress, None);
    }

    #[test]
    fn a_policy_needs_a_bridge() {
        let plan = plan(r#"{"ingressPolicy": "same-bridge"}"#).unwrap();
        for (interfaces, msg) in [
            (
                "[]",
                "interface needs to be set for ingress policy \"same-bridge\", make sure to chain \"firewall\" plugin with \"bridge\"",
            ),
            (r#"[{"name": ""}]"#, "got empty bridge name"),
            (
                r#"[{"name": "a b"}]"#,
                "\"a b\" is no bridge that rules can name",
            ),
            (
                r#"[{"name": "veth+"}]"#,
                "\"veth+\" is no bridge that rules can name",
            ),
        ] {
            let error = plan
                .wanted(&result(&format!(r#"{{"interfaces": {interfaces}}}"#)))
                .unwrap_err();
            assert_eq!((error.code, error.msg.as_str()), (7, msg));
        }
    }
}
