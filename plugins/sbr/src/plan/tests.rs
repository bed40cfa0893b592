use super::*;
use cni::Version;
use cni::json::{self, Json};

fn plan(text: &str) -> Result<Plan, Vec<String>> {
    let conf: Conf = json::read(text).unwrap();
    let faults = Plan::new(&conf);
    faults.map_err(|all| {
        all.into_iter()
            .map(|it| format!("{}: {}", it.key, it.error.msg))
            .collect()
    })
}

fn result(text: &str) -> AddResult {
    let document = Json::parse(text.as_bytes()).unwrap();
    AddResult::decode(&document, Version::V1_0_0).unwrap()
}

/// The address and its default route, for each source.
fn ways(plan: &Plan, previous: &str) -> Vec<(String, Option<String>)> {
    let sources = plan.sources(&result(previous), "net1").unwrap();
    let way = |it: &Source| {
        let gw = it.default.as_ref().and_then(|it| it.gw);
        (it.address.to_string(), gw.map(|gw| gw.to_string()))
    };
    sources.iter().map(way).collect()
}

#[test]
fn every_invalid_value_is_a_fault_with_its_key() {
    for (text, faults) in [
        (
            r#"{"table": 0}"#,
            &["table: invalid table 0: must be 1 to 4294967295"][..],
        ),
        (
            r#"{"table": -1}"#,
            &["table: invalid table -1: must be 1 to 4294967295"],
        ),
        (
            r#"{"table": 4294967296}"#,
            &["table: invalid table 4294967296: must be 1 to 4294967295"],
        ),
        (
            r#"{"gateways": ["x", ""]}"#,
            &[
                "gateways[0]: invalid static gateway IP address: x",
                "gateways[1]: invalid static gateway IP address: ",
            ],
        ),
        (
            r#"{"gateways": ["10.0.0.1", "10.0.0.2"]}"#,
            &["gateways[1]: gateways list contains multiple IPv4 addresses: 10.0.0.1 and 10.0.0.2"],
        ),
        (
            r#"{"gateways": ["fd00::1", "fd00::2"], "table": 0}"#,
            &[
                "table: invalid table 0: must be 1 to 4294967295",
                "gateways[1]: gateways list contains multiple IPv6 addresses: fd00::1 and fd00::2",
            ],
        ),
        (
            r#"{"gateways": ["10.0.0.1", "fd00::1", "fd00::2"]}"#,
            &["gateways: gateways list cannot contain more than 2 entries (one IPv4, one IPv6)"],
        ),
    ] {
        assert_eq!(plan(text).unwrap_err(), faults, "{text}");
    }
    assert_eq!(
        plan(r#"{"table": 4294967295}"#).unwrap().table,
        Some(u32::MAX)
    );
    assert_eq!(
        plan(r#"{"gateways": ["fd00::1", "10.0.0.1"]}"#)
            .unwrap()
            .gateways
            .len(),
        2
    );
}

#[test]
fn addresses_of_other_interfaces_are_left_out() {
    let previous = r#"{"interfaces": [{"name": "veth1"}, {"name": "net1", "sandbox": "x"}],
        "ips": [{"address": "10.0.0.1/24", "interface": 0}, {"address": "10.0.0.2/24", "interface": 1},
                {"address": "10.0.0.3/24", "interface": 7}, {"address": "fd00::4/64"}]}"#;
    let ways = ways(&plan("{}").unwrap(), previous);
    let addresses: Vec<_> = ways.iter().map(|it| it.0.as_str()).collect();
    assert_eq!(addresses, ["10.0.0.2/24", "10.0.0.3/24", "fd00::4/64"]);
    for none in [
        "{}",
        r#"{"interfaces": [{"name": "veth1"}], "ips": [{"address": "10.0.0.1/24", "interface": 0}]}"#,
    ] {
        let error = plan("{}")
            .unwrap()
            .sources(&result(none), "net1")
            .unwrap_err();
        assert_eq!(
            error,
            Code::InvalidConfig.err("No IP addresses supplied on interface: net1")
        );
    }
}

#[test]
fn the_gateway_is_the_configured_one_then_that_of_the_routes_then_that_of_the_address() {
    let previous = r#"{"ips": [{"address": "10.0.0.2/24", "gateway": "10.0.0.1"}, {"address": "10.1.0.2/24"},
            {"address": "fd00::2/64"}],
        "routes": [{"dst": "0.0.0.0/0", "gw": "10.1.0.9"}, {"dst": "::/0", "gw": "fe80::1"}]}"#;
    let pair = |address: &str, gw: &str| (address.to_owned(), Some(gw.to_owned()));
    let expected = [
        pair("10.0.0.2/24", "10.0.0.1"),
        pair("10.1.0.2/24", "10.1.0.9"),
        pair("fd00::2/64", "fe80::1"),
    ];
    assert_eq!(ways(&plan("{}").unwrap(), previous), expected);
    let own = plan(r#"{"gateways": ["10.0.0.254", "fd00::fe"]}"#).unwrap();
    let expected = [
        pair("10.0.0.2/24", "10.0.0.254"),
        pair("10.1.0.2/24", "10.0.0.254"),
        pair("fd00::2/64", "fd00::fe"),
    ];
    assert_eq!(ways(&own, previous), expected);
    let sources = own.sources(&result(previous), "net1").unwrap();
    assert!(sources.iter().all(|it| it.overrides && it.has_gateway));
    let none = r#"{"ips": [{"address": "10.0.0.2/24"}]}"#;
    assert_eq!(
        ways(&plan("{}").unwrap(), none),
        [("10.0.0.2/24".to_owned(), None)]
    );
}

#[test]
fn a_route_of_the_result_is_for_the_addresses_that_reach_its_next_hop() {
    let previous = r#"{"ips": [{"address": "10.0.0.2/24", "gateway": "10.0.0.1"}, {"address": "10.1.0.2/24"}],
        "routes": [{"dst": "10.7.0.0/16"}, {"dst": "10.8.0.0/16", "gw": "10.1.0.1", "mtu": 1300},
                   {"dst": "10.9.0.0/16", "gw": "192.0.2.1"}, {"dst": "10.6.0.0/16", "table": 7},
                   {"dst": "fd07::/64"}]}"#;
    let sources = plan("{}")
        .unwrap()
        .sources(&result(previous), "net1")
        .unwrap();
    let routes = |index: usize| {
        let routes = sources[index].routes.iter();
        routes
            .map(|it| (it.dst.to_string(), it.mtu))
            .collect::<Vec<_>>()
    };
    let route = |dst: &str, mtu| (dst.to_owned(), mtu);
    assert_eq!(
        routes(0),
        [route("10.7.0.0/16", None), route("10.9.0.0/16", None)]
    );
    assert_eq!(
        routes(1),
        [route("10.8.0.0/16", Some(1300)), route("10.9.0.0/16", None)]
    );
}
