//! `hairpinMode`, `promiscMode`, `portIsolation`.

use sandbox::{Sandbox, beyond_peer};
use serde_json::json;

use crate::{add, attached, bridge, has_flag, host_veth, refused};

#[test]
fn hairpin_mode_is_written_on_and_off() {
    for on in [true, false] {
        let (sandbox, pod, _) = attached(&bridge(json!({"hairpinMode": on})));
        assert_eq!(
            host_veth(&sandbox)["linkinfo"]["info_slave_data"]["hairpin"],
            on
        );
        assert_eq!(pod.ping("10.1.0.1", 1), [true]);
    }
}

#[test]
fn promisc_mode_is_switched_on_and_never_off() {
    let sandbox = Sandbox::new();
    let (a, b) = (sandbox.pod("a"), sandbox.pod("b"));
    let promisc = || has_flag(&sandbox.host().link("cni0").expect("cni0"), "PROMISC");
    add(&sandbox, &bridge(json!({"promiscMode": true})), &a);
    assert!(promisc());
    add(&sandbox, &bridge(json!({})), &b);
    assert!(promisc());
}

#[test]
fn hairpin_and_promisc_exclude_each_other() {
    let error = refused(&bridge(json!({"hairpinMode": true, "promiscMode": true})));
    let text = "cannot set hairpin mode and promiscuous mode at the same time";
    assert!(error.msg.contains(text), "{}", error.msg);
}

#[test]
fn isolated_ports_reach_the_gateway_but_not_each_other() {
    beyond_peer("portIsolation came with plugins v1.6", || {
        let sandbox = Sandbox::new();
        let (a, b) = (sandbox.pod("a"), sandbox.pod("b"));
        let conf = bridge(json!({"portIsolation": true}));
        add(&sandbox, &conf, &a);
        add(&sandbox, &conf, &b);
        assert_eq!(
            host_veth(&sandbox)["linkinfo"]["info_slave_data"]["isolated"],
            true
        );
        assert_eq!(a.ping("10.1.0.1", 1), [true]);
        assert_eq!(a.ping("10.1.0.3", 1), [false]);
    });
}

#[test]
fn ports_are_not_isolated_without_the_key() {
    let (sandbox, _, _) = attached(&bridge(json!({})));
    assert_eq!(
        host_veth(&sandbox)["linkinfo"]["info_slave_data"]["isolated"],
        false
    );
}
