use super::*;
use cni::Error;
use cni::json;

fn conf(text: &str) -> Conf {
    json::read(text).unwrap()
}

fn plan(text: &str) -> Result<Plan, Faults> {
    Plan::new(&conf(text), true, None)
}

fn fault(text: &str) -> (u32, String) {
    let error = Error::from(plan(text).unwrap_err());
    (error.code, error.msg)
}

#[test]
fn every_fault_has_its_key() {
    let text = r#"{"hairpinMode": true, "promiscMode": true, "bridge": "", "mtu": 1, "vlan": 5000,
        "vlanTrunk": [{"minID": 0, "maxID": 5}, {"minID": 5, "maxID": 4, "id": 0}, {"maxID": 1}],
        "runtimeConfig": {"mac": "x"}, "ipMasqBackend": "x", "ipMasqExcept": ["10.0.0.0/8", "x"],
        "ipMasqFamilies": ["ipv5"]}"#;
    let keys = plan(text).unwrap_err().into_iter().map(|it| it.key);
    let expected = [
        "promiscMode",
        "bridge",
        "mtu",
        "runtimeConfig.mac",
        "vlan",
        "vlanTrunk[0].minID",
        "vlanTrunk[1]",
        "vlanTrunk[1].id",
        "vlanTrunk[2]",
        "ipMasqBackend",
        "ipMasqExcept[1]",
        "ipMasqFamilies[0]",
    ];
    assert_eq!(keys.collect::<Vec<_>>(), expected);
}

/// Each line is a configuration, and the fault that it has.
const FAULTS: &str = r#"
{"hairpinMode": true, "promiscMode": true} => cannot set hairpin mode and promiscuous mode at the same time
{"disableContainerInterface": true} => cannot use IPAM when DisableContainerInterface flag is set
{"vlan": 4095} => invalid VLAN ID 4095 (must be between 0 and 4094)
{"vlan": -1} => invalid VLAN ID -1 (must be between 0 and 4094)
{"vlanTrunk": [{"minID": 0, "maxID": 4}]} => incorrect trunk minID parameter
{"vlanTrunk": [{"minID": 1, "maxID": 4095}]} => incorrect trunk maxID parameter
{"vlanTrunk": [{"minID": 9, "maxID": 8}]} => minID is greater than maxID in trunk parameter
{"vlanTrunk": [{"minID": 9}]} => minID and maxID should be configured simultaneously, maxID is missing
{"vlanTrunk": [{"maxID": 9}]} => minID and maxID should be configured simultaneously, minID is missing
{"vlanTrunk": [{"id": 4095}]} => incorrect trunk id parameter
{"mtu": 67} => invalid MTU 67, must be [68, 65535]
{"runtimeConfig": {"mac": "01:00:00:00:00:01"}} => failed to make veth pair: address 01:00:00:00:00:01: an interface cannot have this MAC address
{"gatewayModeIPv4": "open"} => gatewayModeIPv4: "open" is none of "nat", "nat-unprotected", "routed", "isolated"
{"internal": true, "gatewayModeIPv6": "routed"} => gatewayModeIPv6: "routed" leads out of the network, which internal forbids
{"internal": true, "isDefaultGateway": true} => internal: an internal network has no default route, but isDefaultGateway is true
{"icc": true, "portIsolation": true} => icc: true contradicts portIsolation
{"isGateway": false, "icc": false, "links": [{"containerID": "a"}]} => links: they lead through the node, which is no gateway of the network
{"isGateway": true, "icc": false, "runtimeConfig": {"links": [{"containerID": "a"}]}} => runtimeConfig.links: the configuration of the network needs the key links
{"runtimeConfig": {"portMappings": [{"containerPort": 80}]}} => invalid protocol "": must be tcp, udp or sctp
{"runtimeConfig": {"mac": "x"}} => failed to make veth pair: address x: invalid MAC address
"#;

#[test]
fn contradictions_and_bad_values_are_named() {
    for line in FAULTS.trim().lines() {
        let (text, msg) = line.split_once(" => ").unwrap();
        assert_eq!(fault(text), (7, msg.to_owned()));
    }
}

#[test]
fn a_bridge_name_is_an_interface_name() {
    assert!(
        fault(r#"{"bridge": ""}"#)
            .1
            .ends_with("LinkAttrs.Name cannot be empty")
    );
    assert_eq!(fault(r#"{"bridge": "../../etc"}"#).0, 7);
    assert_eq!(fault(r#"{"bridge": "a-very-long-bridge-name"}"#).0, 7);
    assert!(
        fault(r#"{"bridge": "elevenbytes", "vlan": 1000, "isGateway": true}"#)
            .1
            .contains("elevenbytes.1000")
    );
    assert!(plan(r#"{"bridge": "elevenbytes", "vlan": 1000}"#).is_ok());
}

#[test]
fn a_back_end_is_one_that_there_is() {
    let masquerade = |text: &str| plan(text).unwrap().masquerade;
    assert_eq!(masquerade(r#"{"ipMasqBackend": "nftables"}"#), None);
    assert_eq!(masquerade(r#"{"ipMasq": true}"#).unwrap().backend, None);
    assert_eq!(
        masquerade(r#"{"ipMasq": true, "ipMasqBackend": "iptables"}"#)
            .unwrap()
            .backend,
        Some(packet_filter::Kind::Iptables)
    );
    assert_eq!(
        fault(r#"{"ipMasq": true, "ipMasqBackend": "foo"}"#),
        (7, "unknown ipmasq backend \"foo\"".to_owned())
    );
}

#[test]
fn trunks_are_a_sorted_union() {
    let text = r#"{"vlan": 7, "vlanTrunk": [{"id": 9}, {}, {"minID": 3, "maxID": 5, "id": 4}]}"#;
    let vlans = plan(text).unwrap().vlans;
    assert_eq!(vlans.trunk.as_deref(), Some(&[3, 4, 5, 9][..]));
    assert_eq!(vlans.access, Some(7));
    let empty = plan(r#"{"vlanTrunk": []}"#).unwrap().vlans;
    assert!(empty.filtering() && !empty.any());
}

#[test]
fn the_mac_of_the_runtime_precedes_all_others() {
    let mac = |text: &str, args: Option<&str>| {
        let plan = Plan::new(&conf(text), false, args.map(str::to_owned)).unwrap();
        plan.mac.map(|mac| mac.to_string())
    };
    let both = r#"{"runtimeConfig": {"mac": "02:00:00:00:00:01"}, "args": {"cni": {"mac": "02:00:00:00:00:02"}}}"#;
    let args = Some("02:00:00:00:00:03");
    assert_eq!(mac(both, args).unwrap(), "02:00:00:00:00:01");
    let author = r#"{"args": {"cni": {"mac": "02:00:00:00:00:02"}}}"#;
    assert_eq!(mac(author, args).unwrap(), "02:00:00:00:00:02");
    assert_eq!(mac("{}", args).unwrap(), "02:00:00:00:00:03");
    assert_eq!(mac("{}", None), None);
}

#[test]
fn a_family_that_is_routed_or_closed_is_not_masqueraded() {
    let families = |text: &str| {
        let text = format!(r#"{{"ipMasq": true, {text}}}"#);
        plan(&text).unwrap().masquerade.map(|it| it.families)
    };
    assert_eq!(families(r#""gatewayModeIPv4": "nat""#), Some([true; 2]));
    assert_eq!(
        families(r#""gatewayModeIPv6": "routed""#),
        Some([true, false])
    );
    assert_eq!(families(r#""internal": true"#), None);
}

#[test]
fn an_isolated_bridge_has_no_address_and_its_pods_have_no_default_route() {
    let text = r#"{"isGateway": true, "internal": true, "gatewayModeIPv6": "isolated"}"#;
    let lease = r#"{"ips": [{"address": "10.1.0.2/24"}, {"address": "fd00::2/64"}],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "10.2.0.0/24"}, {"dst": "::/0"}]}"#;
    let lease = json::read(lease).unwrap();
    let addressing = plan(text).unwrap().addressing(lease);
    let gateways: Vec<_> = addressing
        .gateways
        .iter()
        .map(|it| it.to_string())
        .collect();
    assert_eq!(gateways, ["10.1.0.1/24"]);
    let routes: Vec<_> = addressing
        .routes
        .iter()
        .map(|it| it.dst.to_string())
        .collect();
    assert_eq!(routes, ["10.2.0.0/24"]);
}

#[test]
fn icc_false_isolates_the_port() {
    assert!(plan(r#"{"icc": false}"#).unwrap().isolated);
    let open = plan(r#"{"icc": true}"#).unwrap();
    assert!(!open.isolated && !open.reachability.needs_nftables());
    // Where pods may be linked, the table that has the links keeps them apart.
    let linkable = plan(r#"{"icc": false, "links": []}"#).unwrap();
    assert!(linkable.isolated && linkable.access("n").unwrap().isolates_pods);
}
