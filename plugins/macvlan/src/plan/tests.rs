use super::*;
use cni::json;
use wiring::parent::Master;

fn plan_with(text: &str, args_mac: Option<&str>) -> Result<Plan, String> {
    let conf: Conf = json::read(text).unwrap();
    Plan::new(&conf, args_mac.map(str::to_owned)).map_err(|faults| faults.first().error.msg.clone())
}

fn plan(text: &str) -> Result<Plan, String> {
    plan_with(text, None)
}

#[test]
fn the_default_is_bridge_on_the_default_route() {
    let plan = plan("{}").unwrap();
    assert_eq!(plan.mode, MacvlanMode::Bridge);
    assert_eq!(plan.parent.master, Master::DefaultRoute);
    assert_eq!((plan.mac, plan.bc_queue_len), (None, None));
    assert!(!plan.parent.in_container && !plan.detect_conflicts);
}

#[test]
fn a_mode_is_one_of_four_words() {
    assert_eq!(plan(r#"{"mode": "vepa"}"#).unwrap().mode, MacvlanMode::Vepa);
    for mode in ["Bridge", "source", "passthrough"] {
        let error = plan(&format!(r#"{{"mode": "{mode}"}}"#)).unwrap_err();
        assert_eq!(error, format!("unknown macvlan mode: {mode:?}"));
    }
}

#[test]
fn a_master_is_a_name_or_patterns() {
    let master = |text: &str| {
        plan(&format!(r#"{{"master": "{text}"}}"#))
            .unwrap()
            .parent
            .master
    };
    assert_eq!(master("eth0.5"), Master::Named("eth0.5".into()));
    assert!(matches!(master("bond0|en*"), Master::Matching(_)));
    assert_eq!(master("bond0|en*").to_string(), "bond0|en*");
}

#[test]
fn an_mtu_is_at_most_that_of_the_parent() {
    let mtu = |mtu: i64| {
        let plan = plan(&format!(r#"{{"mtu": {mtu}}}"#)).unwrap();
        parent::mtu_on(plan.mtu, 1500).map_err(|fault| fault.error.msg)
    };
    assert_eq!(mtu(0), Ok(None));
    assert_eq!(mtu(1500), Ok(Some(1500)));
    for wrong in [-1, 1501, i64::MAX] {
        let text = format!("invalid MTU {wrong}, must be [0, master MTU(1500)]");
        assert_eq!(mtu(wrong), Err(text));
    }
}

#[test]
fn the_runtime_knows_the_mac_best() {
    let conf = |runtime: &str, args: &str, own: &str| {
        format!(
            r#"{{"runtimeConfig": {{"mac": "{runtime}"}}, "args": {{"cni": {{"mac": "{args}"}}}}, "mac": "{own}"}}"#
        )
    };
    let mac = |text: &str, args_mac| {
        let mac = plan_with(text, args_mac).unwrap().mac;
        mac.map(|mac| mac.0[5])
    };
    let [one, two, three, four] = [1, 2, 3, 4].map(|last| format!("02:00:00:00:00:0{last}"));
    assert_eq!(mac(&conf(&one, &two, &four), Some(&three)), Some(1));
    assert_eq!(mac(&conf("", &two, &four), Some(&three)), Some(2));
    assert_eq!(mac(&conf("", "", &four), Some(&three)), Some(3));
    assert_eq!(mac(&conf("", "", &four), Some("")), Some(4));
    assert_eq!(mac(&conf("", "", ""), None), None);
}

#[test]
fn a_mac_that_is_none_is_refused_in_the_go_plugins_words() {
    let error = plan(r#"{"mac": "x"}"#).unwrap_err();
    assert_eq!(
        error,
        "invalid args x for MAC addr: address x: invalid MAC address"
    );
    for mac in ["01:00:00:00:00:01", "00:00:00:00:00:00"] {
        assert!(plan_with("{}", Some(mac)).is_err(), "{mac}");
    }
    let passthru = r#"{"mode": "passthru", "mac": "02:00:00:00:00:01"}"#;
    assert!(plan(passthru).unwrap_err().contains("passthru"));
}

#[test]
fn a_shim_is_on_the_node_and_bridges() {
    let with = |shim: &str, rest: &str| {
        plan(&format!(r#"{{"hostShim": {shim}{rest}}}"#)).map(|plan| plan.shim.unwrap().addresses)
    };
    let good = r#"{"name": "shim0", "address": ["10.1.0.250/32", "fd01::250/128"]}"#;
    assert_eq!(with(good, "").unwrap().len(), 2);
    for address in ["10.1.0.250/24", "10.1.0.0/31", "fd01::1/64", "fe80::1/64"] {
        let one = format!(r#"{{"name": "shim0", "address": "{address}"}}"#);
        assert_eq!(with(&one, "").unwrap(), [address.parse().unwrap()]);
    }
    for (rest, fault) in [
        (
            r#", "mode": "vepa""#,
            "hostShim: mode vepa keeps the node from its pods: it needs mode bridge",
        ),
        (
            r#", "linkInContainer": true"#,
            "hostShim: the parent is in the pod, not on the node",
        ),
        (
            r#", "master": "shim0""#,
            "hostShim.name: \"shim0\" is the master",
        ),
    ] {
        assert_eq!(with(good, rest).unwrap_err(), fault);
    }
    for address in [
        "10.1.0.0/24",
        "10.1.0.255/24",
        "127.0.0.1/32",
        "0.0.0.0/32",
        "fd01::/64",
        "ff02::1/128",
    ] {
        let shim = format!(r#"{{"name": "shim0", "address": "{address}"}}"#);
        let fault = format!("hostShim.address: {address} cannot be the address of a host");
        assert_eq!(with(&shim, "").unwrap_err(), fault);
    }
    let none = with(r#"{"name": "shim0"}"#, "").unwrap_err();
    assert_eq!(none, "hostShim.address: missing");
}

#[test]
fn every_fault_has_its_key() {
    let conf = r#"{"mode": "x", "mac": "x", "acceptRA": "x", "linkInContainer": true,
        "hostShim": {"address": ["10.1.0.0/24"]}}"#;
    let conf: Conf = json::read(conf).unwrap();
    let keys = Plan::new(&conf, None).unwrap_err().into_iter();
    let expected = [
        "mode",
        "mac",
        "acceptRA",
        "hostShim",
        "hostShim.name",
        "hostShim.address",
    ];
    assert_eq!(keys.map(|it| it.key).collect::<Vec<_>>(), expected);
}
