//! The link in the pod, its addresses and routes, and the result.

use sandbox::{MACHINE, Netns, Sandbox, beyond_peer, conf, newest};
use serde_json::json;

use crate::{add, attached, del, dual, info, l2, macvlan};

/// It works as soon as ADD returns; kernels before 6.9 call it UP a little later.
fn is_up(netns: &Netns) -> bool {
    netns.link("eth0").expect("eth0")["operstate"] == "UP"
}

#[test]
fn add_puts_the_pod_on_the_wire_and_says_how() {
    let it = attached(&macvlan(json!({})));
    it.pod.wait_until("the kernel says so", is_up);
    let eth0 = it.pod.link("eth0").expect("eth0");
    assert_eq!(info(&it.pod)["mode"], "bridge");
    assert_eq!(it.result["cniVersion"], newest());
    let interfaces = it.result["interfaces"].as_array().expect("interfaces");
    assert_eq!(interfaces.len(), 1);
    assert_eq!(interfaces[0]["name"], "eth0");
    assert_eq!(interfaces[0]["mac"], eth0["address"]);
    assert_eq!(interfaces[0]["sandbox"], it.pod.path());
    let ips = json!([{"address": "10.1.0.2/24", "gateway": "10.1.0.1", "interface": 0}]);
    assert_eq!(it.result["ips"], ips);
    assert_eq!(it.pod.addresses("eth0"), ["10.1.0.2/24"]);
    assert_eq!(it.pod.links(), ["eth0", "lo"]);
    assert_eq!(it.sandbox.host().links(), ["eth1", "lo"]);
}

/// cni#598: providers route single addresses to a gateway of another subnet.
#[test]
fn the_gateway_of_a_single_address_is_on_the_link() {
    beyond_peer("the kernel refuses the default route", || {
        let addresses = json!([
            {"address": "203.0.113.5/32", "gateway": "198.51.100.1"},
            {"address": "2001:db8:5::5/128", "gateway": "2001:db8::1"},
        ]);
        let conf = l2(json!({"ipam": {
            "type": "static",
            "addresses": addresses,
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
        }}));
        let sandbox = Sandbox::new();
        let segment = sandbox.segment();
        segment.machine.sh(
            "ip addr add 198.51.100.1/32 dev eth1; ip route add 203.0.113.5 dev eth1
             ip addr add 2001:db8::1/128 dev eth1 nodad; ip route add 2001:db8:5::5 dev eth1",
        );
        let pod = sandbox.pod("a");
        let result = add(&sandbox, &conf, &pod);
        for (family, gateway) in [("-4", "198.51.100.1"), ("-6", "2001:db8::1")] {
            assert_eq!(pod.routes_to(family, "default")[0]["gateway"], gateway);
            assert!(pod.ping(gateway, 3).contains(&true), "{gateway}");
        }
        let checked = conf::with_prev(&conf, &result);
        sandbox
            .cni("macvlan")
            .check(&checked, &pod, "eth0")
            .silent();
    });
}

#[test]
fn the_result_has_the_mtu_where_the_version_has_a_place_for_it() {
    beyond_peer("reference 1.8: no plugin sets it", || {
        let it = attached(&macvlan(json!({"mtu": 1400})));
        assert_eq!(it.result["interfaces"][0]["mtu"], 1400);
    });
}

#[test]
fn routes_and_gateways_of_the_ipam_are_laid() {
    let routes =
        json!([{"dst": "0.0.0.0/0"}, {"dst": "::/0"}, {"dst": "10.9.0.0/16", "gw": "10.1.0.99"}]);
    let it = attached(&dual(json!({"ipam": {"routes": routes}})));
    assert_eq!(it.pod.routes_to("-4", "default")[0]["gateway"], "10.1.0.1");
    assert_eq!(it.pod.routes_to("-6", "default")[0]["gateway"], "fd01::1");
    let other = it.pod.routes_to("-4", "10.9.0.0/16");
    assert_eq!(other[0]["gateway"], "10.1.0.99");
    assert_eq!(it.result["routes"], routes);
}

#[test]
fn del_takes_everything_back() {
    let sandbox = Sandbox::new();
    let _segment = sandbox.segment();
    let pod = sandbox.pod("a");
    let snapshot = sandbox.snapshot().allow_host_local(conf::NETWORK);
    let conf = dual(json!({}));
    add(&sandbox, &conf, &pod);
    del(&sandbox, &conf, &pod);
    snapshot.assert_unchanged();
    del(&sandbox, &conf, &pod);
    snapshot.assert_unchanged();
}

#[test]
fn without_an_ipam_the_pod_gets_a_link_and_nothing_else() {
    for ipam in [json!(null), json!({})] {
        let it = attached(&l2(json!({"ipam": ipam})));
        it.pod.wait_until("the kernel says so", is_up);
        assert!(it.pod.addresses("eth0").is_empty());
        assert!(it.result.get("ips").is_none(), "{}", it.result);
        let checked = conf::with_prev(&l2(json!({"ipam": ipam})), &it.result);
        it.sandbox
            .cni("macvlan")
            .check(&checked, &it.pod, "eth0")
            .silent();
        del(&it.sandbox, &checked, &it.pod);
        assert_eq!(it.pod.links(), ["lo"]);
    }
}

#[test]
fn a_link_without_addresses_is_there_though_old_versions_cannot_report_it() {
    for version in ["0.1.0", "0.2.0"] {
        let sandbox = Sandbox::new();
        let _segment = sandbox.segment();
        let pod = sandbox.pod("a");
        let conf = conf::at(&l2(json!({})), version);
        let error = sandbox.cni("macvlan").add(&conf, &pod, "eth0").error();
        assert_eq!(error.msg, "cannot convert: no valid IP addresses");
        // As the Go plugin's suite wants it: DEL is what removes it.
        pod.wait_until("the kernel says so", is_up);
        del(&sandbox, &conf, &pod);
        assert_eq!(pod.links(), ["lo"]);
    }
}

#[test]
fn a_pod_may_be_on_a_wire_and_in_a_network() {
    let it = attached(&macvlan(json!({})));
    let bridge = conf::with(&conf::bridge(&["10.2.0.0/24"]), json!({"name": "other"}));
    it.sandbox
        .cni("bridge")
        .add(&bridge, &it.pod, "net1")
        .result();
    assert_eq!(it.pod.ping(MACHINE[0], 1), [true]);
    assert_eq!(it.pod.ping("10.2.0.1", 1), [true]);
    it.sandbox.cni("bridge").del(&bridge, &it.pod, "net1");
    assert_eq!(it.pod.links(), ["eth0", "lo"]);
}

#[test]
fn an_interface_that_the_host_has_too_may_have_the_parents_name() {
    let sandbox = Sandbox::new();
    let _segment = sandbox.segment();
    let pod = sandbox.pod("a");
    let conf = macvlan(json!({}));
    sandbox.cni("macvlan").add(&conf, &pod, "eth1").result();
    assert_eq!(pod.ping(MACHINE[0], 1), [true]);
    sandbox.cni("macvlan").del(&conf, &pod, "eth1").silent();
    assert_eq!(sandbox.host().links(), ["eth1", "lo"]);
}
