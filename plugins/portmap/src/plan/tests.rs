use super::*;
use cni::Error;
use cni::env::{ContainerId, IfName};
use cni::json::Json;

fn decode<T: serde::de::DeserializeOwned>(text: &str) -> T {
    Json::parse(text.as_bytes()).unwrap().decode().unwrap()
}

fn plan(text: &str) -> Result<Plan, Faults> {
    Plan::new(&decode(text))
}

fn mapped(mappings: &str) -> Result<Plan, Faults> {
    plan(&format!(
        r#"{{"runtimeConfig": {{"portMappings": {mappings}}}}}"#
    ))
}

fn fault(plan: Result<Plan, Faults>) -> String {
    let error = Error::from(plan.unwrap_err());
    assert_eq!(error.code, 7);
    error.to_string()
}

#[test]
fn every_fault_has_its_key() {
    let faults = plan(
        r#"{"backend": "ipvs", "markMasqBit": 32, "runtimeConfig": {"portMappings": [
            {"hostPort": 1, "containerPort": 1, "protocol": "tcp"}, {"hostIP": "x"},
            {"hostPort": 1, "containerPort": 2, "protocol": "tcp"}]}}"#,
    );
    let keys: Vec<_> = faults.unwrap_err().into_iter().map(|it| it.key).collect();
    let of = |index, member| format!("runtimeConfig.portMappings[{index}].{member}");
    let second = ["hostIP", "containerPort", "hostPort", "protocol"].map(|it| of(1, it));
    let others = [of(2, "hostPort"), "markMasqBit".to_owned()];
    let expected = [&["backend".to_owned()][..], &second, &others].concat();
    assert_eq!(keys, expected);
}

#[test]
fn mappings_are_checked() {
    for (entry, msg) in [
        (
            r#"{"hostPort": 0, "containerPort": 1, "protocol": "tcp"}"#,
            "Invalid host port number: 0",
        ),
        (
            r#"{"hostPort": 65536, "containerPort": 1, "protocol": "tcp"}"#,
            "Invalid host port number: 65536",
        ),
        (
            r#"{"hostPort": 1, "protocol": "tcp"}"#,
            "Invalid container port number: 0",
        ),
        (
            r#"{"hostPort": 1, "containerPort": 1}"#,
            "invalid protocol \"\": must be tcp, udp or sctp",
        ),
        (
            r#"{"hostPort": 1, "containerPort": 1, "protocol": "tcp", "hostIP": "here"}"#,
            "hostIP: invalid IP address: here",
        ),
    ] {
        assert_eq!(fault(mapped(&format!("[{entry}]"))), msg);
    }
}

#[test]
fn one_port_of_one_address_is_mapped_once() {
    let twice = |one: &str, other: &str| {
        let entry = |ip: &str, port: u16, protocol: &str| {
            format!(
                r#"{{"hostPort": 1, "containerPort": {port}, "protocol": "{protocol}", "hostIP": "{ip}"}}"#
            )
        };
        mapped(&format!(
            "[{}, {}]",
            entry(one, 1, "tcp"),
            entry(other, 2, "TCP")
        ))
    };
    let duplicate = |ip: &str| format!("duplicate mapping in portMappings: hostPort 1/tcp{ip}");
    assert_eq!(fault(twice("", "")), duplicate(""));
    for (one, other) in [
        ("", "0.0.0.0"),
        ("", "::"),
        ("::", "::"),
        ("192.0.2.1", "192.0.2.1"),
        ("192.0.2.1", "::ffff:192.0.2.1"),
    ] {
        let of = |ip: &str| duplicate(&format!(" of hostIP {ip}"));
        let ip = other.trim_start_matches("::ffff:");
        assert_eq!(fault(twice(one, other)), of(ip));
    }
    for (one, other) in [
        ("0.0.0.0", "::"),
        ("", "192.0.2.1"),
        ("192.0.2.1", "0.0.0.0"),
    ] {
        assert_eq!(
            twice(one, other).unwrap().mappings.len(),
            2,
            "{one} {other}"
        );
    }
}

#[test]
fn what_is_requested_twice_is_mapped_once() {
    let host_ips = |entries: &[&str]| {
        let entry = |ip: &&str| {
            format!(r#"{{"hostPort": 1, "containerPort": 2, "protocol": "tcp", "hostIP": "{ip}"}}"#)
        };
        let entries: Vec<_> = entries.iter().map(entry).collect();
        let plan = mapped(&format!("[{}]", entries.join(", "))).unwrap();
        let host_ips = plan.mappings.iter().map(|it| it.host_ip);
        host_ips
            .map(|ip| ip.map_or(String::new(), |it| it.to_string()))
            .collect::<Vec<_>>()
    };
    assert_eq!(host_ips(&["", ""]), [""]);
    assert_eq!(host_ips(&["", "0.0.0.0", "::"]), [""]);
    assert_eq!(host_ips(&["0.0.0.0", ""]), ["0.0.0.0", "::"]);
    assert_eq!(host_ips(&["192.0.2.1", "192.0.2.1"]), ["192.0.2.1"]);
}

#[test]
fn one_port_may_be_mapped_for_each_protocol_and_address() {
    let plan = mapped(
        r#"[{"hostPort": 53, "containerPort": 53, "protocol": "UDP"},
            {"hostPort": 53, "containerPort": 53, "protocol": "tcp"},
            {"hostPort": 53, "containerPort": 53, "protocol": "tcp", "hostIP": "192.0.2.1"}]"#,
    );
    assert_eq!(plan.unwrap().mappings.len(), 3);
}

#[test]
fn a_back_end_is_named_or_follows_from_what_only_it_understands() {
    let backend = |text: &str| plan(text).unwrap().backend;
    assert_eq!(backend("{}"), None);
    assert_eq!(backend(r#"{"backend": "nftables"}"#), Some(Kind::Nftables));
    assert_eq!(
        backend(r#"{"externalSetMarkChain": "KUBE-MARK-MASQ"}"#),
        Some(Kind::Iptables)
    );
    assert_eq!(
        backend(r#"{"conditionsV4": ["!", "-s", "192.0.2.0/24"]}"#),
        Some(Kind::Iptables)
    );
    assert_eq!(
        backend(r#"{"conditionsV6": ["ip6", "saddr", "fd00::/8"]}"#),
        Some(Kind::Nftables)
    );
    assert_eq!(backend(r#"{"conditionsV4": []}"#), None);
}

#[test]
fn options_of_the_other_back_end_are_named() {
    assert_eq!(
        fault(plan(r#"{"backend": "ipvs"}"#)),
        "unrecognized backend \"ipvs\""
    );
    assert_eq!(
        fault(plan(
            r#"{"backend": "nftables", "externalSetMarkChain": "X", "conditionsV4": ["-s", "a"]}"#
        )),
        "nftables backend was requested but configuration contains iptables-specific options [externalSetMarkChain conditionsV4]"
    );
    assert_eq!(
        fault(plan(
            r#"{"backend": "iptables", "conditionsV6": ["ip6", "saddr", "a"]}"#
        )),
        "iptables backend was requested but configuration contains nftables-specific options [conditionsV6]"
    );
}

#[test]
fn there_is_one_way_to_mark() {
    assert_eq!(
        fault(plan(r#"{"externalSetMarkChain": "X", "markMasqBit": 5}"#)),
        "Cannot specify externalSetMarkChain and markMasqBit; externalSetMarkChain is \"X\", markMasqBit is 5"
    );
    assert_eq!(
        fault(plan(r#"{"markMasqBit": 32}"#)),
        "MasqMarkBit must be between 0 and 31; markMasqBit is 32"
    );
    assert_eq!(plan("{}").unwrap().mark, Mark::Bit(13));
    assert_eq!(plan(r#"{"markMasqBit": 0}"#).unwrap().mark, Mark::Bit(0));
    assert!(plan(r#"{"externalSetMarkChain": "X -j ACCEPT"}"#).is_err());
}

#[test]
fn the_first_address_of_each_family_of_the_container_is_published() {
    let owner = Attachment {
        network: "n".into(),
        container_id: ContainerId::parse("c").unwrap(),
        ifname: IfName::parse("eth0").unwrap(),
    };
    let previous: AddResult = decode(
        r#"{"interfaces": [{"name": "eth0"}, {"name": "eth0", "sandbox": "/ns"}],
            "ips": [{"interface": 0, "address": "10.0.0.1/24"}, {"interface": 1, "address": "10.1.0.2/24"},
                    {"interface": 1, "address": "10.1.0.3/24"}, {"address": "fd00::2/64"}]}"#,
    );
    let ports = plan("{}").unwrap().host_ports(&owner, &previous);
    assert_eq!(ports.pod_v4.unwrap().to_string(), "10.1.0.2/24");
    assert_eq!(ports.pod_v6.unwrap().to_string(), "fd00::2/64");
    assert_eq!(ports.snat, Snat::Hairpin);
}
