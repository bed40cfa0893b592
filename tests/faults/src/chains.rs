//! What has accidents.

use serde_json::{Value, json};
use testkit::{BackEnd, conf};

use crate::node::{Chain, EXECUTED};

/// Every chain there is.
pub fn all() -> Vec<Chain> {
    vec![
        alone("bridge", bridge()),
        alone("bridge, IPAM executed", executed(bridge())),
        Chain {
            cold: true,
            ..alone("bridge, first pod of the node", bridge())
        },
        with(
            BackEnd::IptablesNft,
            alone("bridge, iptables", masqueraded("iptables")),
        ),
        published("portmap", BackEnd::Nftables),
        published("portmap, iptables", BackEnd::IptablesNft),
        Chain {
            program: Some("host-local"),
            ..alone(
                "host-local",
                conf::host_local(&["10.1.0.0/24", "fd01::/64"]),
            )
        },
        Chain {
            in_pod: true,
            ..alone("loopback", conf::loopback())
        },
    ]
}

/// The chain of that name.
pub fn named(name: &str) -> Option<Chain> {
    all().into_iter().find(|chain| chain.name == name)
}

/// The same with an IPAM plugin that is a process of its own.
fn executed(conf: Value) -> Value {
    conf::with(&conf, json!({"ipam": {"type": EXECUTED}}))
}

/// All that a bridge network may have.
fn bridge() -> Value {
    let change = json!({"macspoofchk": true});
    conf::with(&masqueraded("nftables"), change)
}

fn masqueraded(back_end: &str) -> Value {
    let change = json!({"ipMasq": true, "ipMasqBackend": back_end});
    conf::with(&conf::bridge(&["10.1.0.0/24", "fd01::/64"]), change)
}

fn alone(name: &'static str, victim: Value) -> Chain {
    Chain {
        name,
        prefix: Vec::new(),
        victim,
        program: None,
        back_end: None,
        in_pod: false,
        cold: false,
    }
}

fn with(back_end: BackEnd, chain: Chain) -> Chain {
    Chain {
        back_end: Some(back_end),
        ..chain
    }
}

fn published(name: &'static str, back_end: BackEnd) -> Chain {
    let mut portmap = conf::plugin("portmap");
    portmap["backend"] = back_end.name().into();
    let tcp = json!({"hostPort": 8080, "containerPort": 80, "protocol": "tcp"});
    let udp = json!({"hostPort": 9090, "containerPort": 53, "protocol": "udp"});
    portmap["runtimeConfig"] = json!({"portMappings": [tcp, udp]});
    Chain {
        prefix: vec![conf::bridge(&["10.1.0.0/24", "fd01::/64"])],
        ..with(back_end, alone(name, portmap))
    }
}
