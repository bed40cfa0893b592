use super::*;
use cni::json;
use cni::result::Interface;

fn plan_with(text: &str, args_mac: Option<&str>) -> Result<Plan, Faults> {
    let conf: Conf = json::read(text).unwrap();
    Plan::new(&conf, args_mac.map(str::to_owned))
}

fn plan(text: &str) -> Plan {
    plan_with(text, None).unwrap()
}

fn fault(text: &str) -> (String, String) {
    let faults = plan_with(text, None).unwrap_err();
    let Fault { key, error } = faults.first().clone();
    assert_eq!(error.code, 7, "{text}");
    (key, error.msg)
}

#[test]
fn without_keys_nothing_is_set() {
    let plan = plan("{}");
    assert!(plan.sysctls.is_empty() && plan.link.is_empty());
    assert!(
        super::tests::plan(r#"{"promisc": false, "mtu": 0, "mac": ""}"#)
            .link
            .is_empty()
    );
}

#[test]
fn a_key_is_a_path_with_the_pods_interface() {
    let path = |name: &str| {
        let (name, value) = (name.to_owned(), String::new());
        Sysctl { name, value }.path("eth0.5")
    };
    assert_eq!(
        path("net.ipv4.conf.IFNAME.arp_filter"),
        "net/ipv4/conf/eth0.5/arp_filter"
    );
    assert_eq!(path("net/core/somaxconn"), "net/core/somaxconn");
    assert_eq!(path("net..core.somaxconn"), "net/core/somaxconn");
    assert_eq!(path("net.a.IFNAME.IFNAME"), "net/a/eth0.5/IFNAME");
    assert_eq!(path("net/a/IFNAME/net1.7/b"), "net/a/eth0.5/net1.7/b");
}

#[test]
fn settings_outside_net_are_refused() {
    let (key, msg) = fault(r#"{"sysctl": {"kernel.panic": "1"}}"#);
    assert_eq!(key, "sysctl.kernel.panic");
    assert_eq!(msg, r#"invalid net sysctl key: "kernel/panic""#);
    for name in [
        "net", "IFNAME.x", "", "netx.a", "x/net/a", "net/../a", "net/./a",
    ] {
        let text = format!(r#"{{"args": {{"cni": {{"sysctl": {{"{name}": "1"}}}}}}}}"#);
        assert!(
            fault(&text).1.starts_with("invalid net sysctl key: "),
            "{name}"
        );
    }
}

#[test]
fn a_repeated_setting_is_refused() {
    let (key, msg) = fault(r#"{"sysctl": {"net.a": "1", "net.a": "0"}}"#);
    assert_eq!(
        (key.as_str(), msg.as_str()),
        ("sysctl.net.a", "duplicated sysctl keys are not allowed")
    );
}

#[test]
fn args_replace_settings_in_place_and_add_others() {
    let text = r#"{"sysctl": {"net.a": "1", "net.b": "1"},
        "args": {"cni": {"sysctl": {"net.c": "2", "net.a": "2"}}}}"#;
    let sysctls = plan(text).sysctls;
    let all: Vec<_> = sysctls
        .iter()
        .map(|it| (it.name.as_str(), it.value.as_str()))
        .collect();
    assert_eq!(all, [("net.a", "2"), ("net.b", "1"), ("net.c", "2")]);
    // Where the Go plugin panics.
    assert_eq!(
        plan(r#"{"args": {"cni": {"sysctl": {"net.c": "2"}}}}"#)
            .sysctls
            .len(),
        1
    );
}

#[test]
fn args_replace_attributes() {
    let text = r#"{"promisc": true, "mtu": 1400, "allmulti": true, "txQLen": 5,
        "args": {"cni": {"promisc": false, "mtu": 1300, "allmulti": false, "txQLen": 0}}}"#;
    let expected = Attributes {
        mac: None,
        promisc: None,
        mtu: Some(1300),
        allmulti: Some(false),
        tx_queue_len: Some(0),
    };
    assert_eq!(plan(text).link, expected);
}

#[test]
fn the_mac_is_that_of_args_then_the_runtime_then_cni_args_then_the_key() {
    let mac = |text: &str, args_mac| plan_with(text, args_mac).unwrap().link.mac;
    let number = |last| Some(Mac([2, 0, 0, 0, 0, last]));
    let own = r#""mac": "02-00-00-00-00-01""#;
    let runtime = r#""runtimeConfig": {"mac": "02:00:00:00:00:03"}"#;
    let args = r#""args": {"cni": {"mac": "02:00:00:00:00:04"}}"#;
    assert_eq!(mac(&format!("{{{own}}}"), None), number(1));
    let env = Some("02:00:00:00:00:02");
    assert_eq!(mac(&format!("{{{own}}}"), env), number(2));
    assert_eq!(mac(&format!("{{{own}, {runtime}}}"), env), number(3));
    assert_eq!(
        mac(&format!("{{{own}, {runtime}, {args}}}"), env),
        number(4)
    );
    let none = r#""args": {"cni": {"mac": ""}}"#;
    assert_eq!(mac(&format!("{{{own}, {none}}}"), env), None);
}

#[test]
fn values_that_no_interface_has_are_refused() {
    for (text, key) in [
        (r#"{"mac": "x"}"#, "mac"),
        (r#"{"mac": "01:00:5e:00:00:01"}"#, "mac"),
        (
            r#"{"runtimeConfig": {"mac": "00:00:00:00:00:00"}}"#,
            "runtimeConfig.mac",
        ),
        (r#"{"mtu": -1}"#, "mtu"),
        (r#"{"mtu": 67}"#, "mtu"),
        (r#"{"mtu": 4294967296}"#, "mtu"),
        (r#"{"args": {"cni": {"mtu": 1}}}"#, "args.cni.mtu"),
        (r#"{"txQLen": -1}"#, "txQLen"),
        (
            r#"{"args": {"cni": {"txQLen": 4294967296}}}"#,
            "args.cni.txQLen",
        ),
    ] {
        assert_eq!(fault(text).0, key, "{text}");
    }
    let faults = plan_with("{}", Some("x")).unwrap_err();
    assert_eq!(faults.first().error.code, 4);
    assert_eq!(
        faults.first().error.msg,
        "invalid args x for MAC addr: address x: invalid MAC address"
    );
}

#[test]
fn numbers_of_a_setting_may_be_separated_by_spaces() {
    let sysctl = |value: &str| Sysctl {
        name: "net.ipv4.tcp_rmem".into(),
        value: value.into(),
    };
    assert!(sysctl("4096 16384 4194304").is("4096\t16384\t4194304"));
    assert!(sysctl(" 1\n").is("1"));
    assert!(!sysctl("4096 16384").is("4096\t16384\t4194304"));
}

fn link() -> Link {
    Link {
        name: "eth0".into(),
        mac: Some(Mac([2, 0, 0, 0, 0, 1])),
        mtu: 1500,
        promisc: true,
        tx_queue_len: 1000,
        ..Link::default()
    }
}

#[test]
fn only_what_is_wanted_is_compared() {
    let compare = |text: &str| plan(text).link.compare(&link());
    for same in [
        "{}",
        r#"{"mac": "02-00-00-00-00-01", "promisc": true, "mtu": 1500, "allmulti": false, "txQLen": 1000}"#,
    ] {
        assert_eq!(compare(same), Ok(()), "{same}");
    }
    for (text, expected) in [
        (
            r#"{"mac": "02:00:00:00:00:02"}"#,
            "Error: Tuning configured Ethernet of eth0 is 02:00:00:00:00:02, current value is 02:00:00:00:00:01",
        ),
        (
            r#"{"mtu": 1400}"#,
            "Error: Tuning configured MTU of eth0 is 1400, current value is 1500",
        ),
        (
            r#"{"allmulti": true}"#,
            "Error: Tuning configured all-multicast mode of eth0 is true, current value is false",
        ),
        (
            r#"{"txQLen": 5}"#,
            "Error: Tuning configured Transmit Queue Length of eth0 is 5, current value is 1000",
        ),
    ] {
        assert_eq!(compare(text), Err(expected.to_owned()));
    }
    let calm = Link {
        promisc: false,
        ..link()
    };
    assert_eq!(
        plan(r#"{"promisc": true}"#).link.compare(&calm),
        Err("Error: Tuning link eth0 configured promisc is true, current value is 0".to_owned())
    );
}

#[test]
fn the_first_backup_is_kept() {
    let wanted = plan(r#"{"mac": "02:00:00:00:00:02", "mtu": 1400}"#).link;
    let original = wanted.of(&link());
    let tuned = Link {
        mac: wanted.mac,
        mtu: 1400,
        ..link()
    };
    let second = plan(r#"{"mac": "02:00:00:00:00:03", "txQLen": 5}"#).link;
    let kept = original.clone().or(second.of(&tuned));
    assert_eq!((kept.mac, kept.mtu), (original.mac, Some(1500)));
    assert_eq!((kept.tx_queue_len, kept.promisc), (Some(1000), None));
}

#[test]
fn the_result_has_the_new_mac_and_since_1_1_0_the_new_mtu() {
    let interface = |name: &str| Interface {
        name: name.into(),
        mac: "02:00:00:00:00:01".into(),
        ..Interface::default()
    };
    let result = AddResult {
        interfaces: vec![interface("cni0"), interface("eth0")],
        ..AddResult::default()
    };
    let link = plan(r#"{"mac": "02-00-00-00-00-0A", "mtu": 1400}"#).link;
    for (version, mtu) in [(Version::V1_1_0, 1400), (Version::V1_0_0, 0)] {
        let changed = link.in_result(result.clone(), "eth0", version);
        assert_eq!(changed.interfaces[0], result.interfaces[0]);
        let eth0 = &changed.interfaces[1];
        assert_eq!((eth0.mac.as_str(), eth0.mtu), ("02:00:00:00:00:0a", mtu));
    }
}
