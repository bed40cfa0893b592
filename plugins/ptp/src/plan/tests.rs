use super::*;
use cni::json;
use cni::result::AddResult;
use wiring::Gateway;

fn lease(text: &str) -> Addressing {
    let lease: AddResult = json::read(text).unwrap();
    Addressing::new(lease, Gateway::None)
}

fn conf(text: &str) -> Conf {
    json::read(text).unwrap()
}

fn shown(routes: &[RouteSpec]) -> Vec<String> {
    let show = |route: &RouteSpec| {
        let mut text = route.dst.to_string();
        for (word, ip) in [("via", route.gw), ("src", route.src)] {
            text.extend(ip.map(|ip| format!(" {word} {ip}")));
        }
        text
    };
    routes.iter().map(show).collect()
}

#[test]
fn each_end_has_a_route_to_the_other_and_the_pod_one_to_its_subnet() {
    let addressing = lease(
        r#"{"ips": [{"address": "10.44.0.2/24", "gateway": "10.44.0.1"},
                    {"address": "fd00:4::2/64", "gateway": "fd00:4::1"}]}"#,
    );
    let ends = Ends::new(&addressing.ips).unwrap();
    let gateways: Vec<_> = ends.gateways.iter().map(ToString::to_string).collect();
    assert_eq!(gateways, ["10.44.0.1/32", "fd00:4::1/128"]);
    assert_eq!(shown(&ends.host_routes), ["10.44.0.2/32", "fd00:4::2/128"]);
    assert_eq!(
        shown(&ends.pod_routes),
        [
            "10.44.0.1/32 src 10.44.0.2",
            "10.44.0.0/24 via 10.44.0.1 src 10.44.0.2",
            "fd00:4::1/128 src fd00:4::2",
            "fd00:4::/64 via fd00:4::1 src fd00:4::2",
        ]
    );
    assert_eq!(ends.pod_routes[0].scope, Some(253));
    assert_eq!(ends.host_routes[0].scope, Some(254));
}

#[test]
fn two_addresses_of_a_subnet_share_its_routes_and_a_single_one_has_no_subnet() {
    let addressing = lease(
        r#"{"ips": [{"address": "10.1.0.2/24", "gateway": "10.1.0.1"},
                    {"address": "10.1.0.3/24", "gateway": "10.1.0.1"},
                    {"address": "10.9.0.9/32", "gateway": "169.254.1.1"}]}"#,
    );
    let ends = Ends::new(&addressing.ips).unwrap();
    assert_eq!(ends.gateways.len(), 2);
    assert_eq!(ends.host_routes.len(), 3);
    assert_eq!(
        shown(&ends.pod_routes),
        [
            "10.1.0.1/32 src 10.1.0.2",
            "10.1.0.0/24 via 10.1.0.1 src 10.1.0.2",
            "169.254.1.1/32 src 10.9.0.9",
        ]
    );
}

#[test]
fn a_route_of_ipam_to_the_own_subnet_is_there_already() {
    let addressing = lease(
        r#"{"ips": [{"address": "10.1.0.2/24", "gateway": "10.1.0.1"}],
            "routes": [{"dst": "10.1.0.0/24"}, {"dst": "10.1.0.0/24", "gw": "10.1.0.1"},
                       {"dst": "10.1.0.0/24", "priority": 5}, {"dst": "10.1.0.0/24", "table": 9},
                       {"dst": "10.1.0.0/24", "gw": "10.1.0.7"}, {"dst": "0.0.0.0/0"}]}"#,
    );
    let ends = Ends::new(&addressing.ips).unwrap();
    let kept = ends.without_own_routes(addressing).routes;
    let kept: Vec<_> = kept
        .iter()
        .map(|it| (it.priority, it.table, it.gw))
        .collect();
    assert_eq!(kept.len(), 4);
    assert_eq!(kept[0], (5, None, None));
    assert_eq!(kept[1], (0, Some(9), None));
}

#[test]
fn an_address_without_a_gateway_is_refused() {
    let addressing = lease(r#"{"ips": [{"address": "10.1.0.2/24"}]}"#);
    let error = Ends::new(&addressing.ips).unwrap_err();
    let expected =
        "IPAM plugin returned no gateway for 10.1.0.2/24: it is the node's end of the link";
    assert_eq!(error.to_string(), expected);
}

#[test]
fn wrong_values_are_reported_with_their_keys() {
    let faults = |text: &str, has_ipam| {
        let faults = Plan::new(&conf(text), has_ipam).unwrap_err();
        let pairs = faults.into_iter().map(|it| (it.key, it.error.msg));
        pairs.collect::<Vec<_>>()
    };
    assert_eq!(
        faults(r#"{"mtu": 20, "ipMasqBackend": "foo"}"#, false),
        [
            ("ipam".to_owned(), "no plugin name provided".to_owned()),
            (
                "mtu".to_owned(),
                "invalid MTU 20, must be [68, 65535]".to_owned()
            ),
            (
                "ipMasqBackend".to_owned(),
                "unknown ipmasq backend \"foo\"".to_owned()
            ),
        ]
    );
    let mac = faults(r#"{"runtimeConfig": {"mac": "x"}}"#, true);
    assert_eq!(mac[0].0, "runtimeConfig.mac");
}

#[test]
fn without_keys_nothing_is_masqueraded_and_the_kernel_chooses_the_mtu() {
    let plan = Plan::new(&Conf::default(), true).unwrap();
    assert_eq!((plan.mtu, plan.mac), (Mtu::Unset, None));
    assert!(plan.masquerade.is_none());
    let plan = Plan::new(&conf(r#"{"ipMasq": true}"#), true).unwrap();
    assert!(plan.masquerade.is_some());
}
