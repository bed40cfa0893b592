//! Failed calls leave nothing behind.

use sandbox::{MACHINE, Sandbox, Stdout, beyond_peer, conf};
use serde_json::json;

use crate::{V4, attached, dual, l2, macvlan, refused};

#[test]
fn a_failure_after_the_link_was_made_leaves_nothing() {
    beyond_peer("reference 8 #7: the link stays", || {
        for ipam in [
            json!({"type": "nope"}),
            json!({"type": "host-local", "ranges": [[{"subnet": V4}]], "routes": [{"dst": "10.8.0.0/16", "gw": "192.0.2.1"}]}),
            json!({"type": "host-local", "ranges": [[]]}),
        ] {
            refused("", &l2(json!({"ipam": ipam})));
        }
    });
}

#[test]
fn a_result_without_a_reader_leaves_nothing() {
    beyond_peer("reference 8 #7: the link stays", || {
        for stdout in [Stdout::NoReader, Stdout::Full] {
            let sandbox = Sandbox::new();
            let _segment = sandbox.segment();
            let pod = sandbox.pod("a");
            let snapshot = sandbox.snapshot().allow_host_local(conf::NETWORK);
            let cni = sandbox.cni("macvlan").stdout(stdout);
            assert_eq!(cni.add(&dual(json!({})), &pod, "eth0").code(), 1);
            snapshot.assert_unchanged();
        }
    });
}

#[test]
fn an_interface_that_the_pod_has_is_left_alone() {
    let sandbox = Sandbox::new();
    let _segment = sandbox.segment();
    let pod = sandbox.pod("a");
    pod.sh("ip link add eth0 type bridge");
    let snapshot = sandbox.snapshot().allow_host_local(conf::NETWORK);
    let conf = macvlan(json!({}));
    let error = sandbox.cni("macvlan").add(&conf, &pod, "eth0").error();
    assert_eq!(
        error.msg,
        "failed to rename macvlan to \"eth0\": file exists"
    );
    snapshot.assert_unchanged();
}

#[test]
fn a_second_add_is_refused_and_the_first_stays() {
    let it = attached(&macvlan(json!({})));
    let conf = macvlan(json!({}));
    let cni = it.sandbox.cni("macvlan");
    let error = cni.add(&conf, &it.pod, "eth0").error();
    assert_eq!(
        error.msg,
        "failed to rename macvlan to \"eth0\": file exists"
    );
    assert_eq!(it.pod.addresses("eth0"), ["10.1.0.2/24"]);
    assert_eq!(it.pod.ping(MACHINE[0], 1), [true]);
}

#[test]
fn a_namespace_that_is_not_there_is_named() {
    let sandbox = Sandbox::new();
    let _segment = sandbox.segment();
    let pod = sandbox.pod("a");
    let cni = sandbox.cni("macvlan").netns("/run/netns/nope");
    let error = cni.add(&macvlan(json!({})), &pod, "eth0").error();
    beyond_peer("reference 1.13: %!q(<nil>)", || {
        let expected = "failed to open netns \"/run/netns/nope\": failed to Statfs \"/run/netns/nope\": no such file or directory";
        assert_eq!(error.msg, expected);
    });
}
