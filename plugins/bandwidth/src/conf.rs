//! The keys of bandwidth, as they are written. `plan.rs` checks their values, because DEL ignores
//! wrong ones.

use serde::Deserialize;

/// The plugin's own keys. In the names, "ingress" is to the pod and "egress" from it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Conf {
    /// Bits per second to the pod.
    pub ingress_rate: Option<u64>,
    /// Bits that may be sent to the pod at once.
    pub ingress_burst: Option<u64>,
    /// Bits per second from the pod.
    pub egress_rate: Option<u64>,
    /// Bits that the pod may send at once.
    pub egress_burst: Option<u64>,
    /// Only traffic with these networks is limited.
    pub shaped_subnets: Vec<String>,
    /// Traffic with these networks is not limited.
    pub unshaped_subnets: Vec<String>,
    /// Whether a burst of the runtime that stands for "no limit" is limited.
    #[serde(default = "yes")]
    pub bound_burst: bool,
    /// Whether each flow has a queue of its own under the limit.
    #[serde(default = "yes")]
    pub fq_codel: bool,
    /// What the runtime requests for this pod.
    pub runtime_config: RuntimeConfig,
}

fn yes() -> bool {
    true
}

/// `runtimeConfig`, where libcni passes the declared capabilities.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct RuntimeConfig {
    /// Capability `bandwidth`.
    pub bandwidth: Option<Limits>,
}

/// The limits that a runtime requests. Absent is 0: no limit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Limits {
    /// As [`Conf::ingress_rate`].
    pub ingress_rate: u64,
    /// As [`Conf::ingress_burst`].
    pub ingress_burst: u64,
    /// As [`Conf::egress_rate`].
    pub egress_rate: u64,
    /// As [`Conf::egress_burst`].
    pub egress_burst: u64,
    /// As [`Conf::shaped_subnets`].
    pub shaped_subnets: Vec<String>,
    /// As [`Conf::unshaped_subnets`].
    pub unshaped_subnets: Vec<String>,
}

impl Conf {
    /// The requested limits: those of the configuration, otherwise those of the runtime.
    pub fn limits(&self) -> Limits {
        let runtime = || self.runtime_config.bandwidth.clone();
        self.own_limits().or_else(runtime).unwrap_or_default()
    }

    /// The limits of the configuration, if it has any. They replace all of the runtime's.
    pub fn own_limits(&self) -> Option<Limits> {
        let numbers = [
            self.ingress_rate,
            self.ingress_burst,
            self.egress_rate,
            self.egress_burst,
        ];
        let [ingress_rate, ingress_burst, egress_rate, egress_burst] =
            numbers.map(Option::unwrap_or_default);
        numbers.iter().any(Option::is_some).then(|| Limits {
            ingress_rate,
            ingress_burst,
            egress_rate,
            egress_burst,
            ..Limits::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cni::json::read;

    #[test]
    fn limits_are_read_as_containerd_sends_them() {
        let conf: Conf = read(
            r#"{"runtimeConfig": {"bandWidth": {"IngressRate": 8000, "IngressBurst": 4294967295,
                "EgressRate": 0, "EgressBurst": 0}}}"#,
        )
        .unwrap();
        let limits = conf.runtime_config.bandwidth.clone().unwrap();
        assert_eq!(
            (limits.ingress_rate, limits.ingress_burst),
            (8000, 4294967295)
        );
        assert_eq!(conf.own_limits(), None);
        assert!(conf.bound_burst && conf.fq_codel);
    }

    #[test]
    fn one_own_key_makes_the_limits_those_of_the_configuration() {
        let conf: Conf = read(r#"{"IngressRate": 0, "egressBurst": null}"#).unwrap();
        assert_eq!(conf.own_limits(), Some(Limits::default()));
    }

    #[test]
    fn a_value_of_another_type_is_refused() {
        for text in [
            r#"{"ingressRate": -1}"#,
            r#"{"ingressBurst": 1.5}"#,
            r#"{"egressRate": "1M"}"#,
            r#"{"egressBurst": 18446744073709551616}"#,
            r#"{"shapedSubnets": "10.0.0.0/8"}"#,
            r#"{"boundBurst": 1}"#,
            r#"{"fqCodel": "no"}"#,
            r#"{"runtimeConfig": {"bandwidth": []}}"#,
        ] {
            assert!(read::<Conf>(text).is_err(), "{text}");
        }
    }
}
