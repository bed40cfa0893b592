//! What the Go plugins were seen to do in odd situations (reference 1.13): runtimes
//! match on some of these texts, so they are ours to the letter.

use sandbox::{Sandbox, beyond_peer, conf};
use serde_json::{Value, json};

fn bridge() -> Value {
    conf::bridge(&["10.33.0.0/24"])
}

#[test]
fn add_when_the_interface_exists() {
    let sandbox = Sandbox::new();
    let pod = sandbox.pod("a");
    sandbox.cni("bridge").add(&bridge(), &pod, "eth0").result();
    let snapshot = sandbox.snapshot();
    let error = sandbox
        .cni("bridge")
        .id("second")
        .add(&bridge(), &pod, "eth0")
        .error();
    assert_eq!(error.code, 999);
    beyond_peer("plugins before v1.2 leave the peer's name out", || {
        let (head, tail) = (
            "container veth name (\"eth0\") peer provided (\"veth",
            "\") already exists",
        );
        assert!(
            error.msg.starts_with(head) && error.msg.ends_with(tail),
            "{}",
            error.msg
        );
    });
    snapshot.assert_unchanged();
    assert_eq!(pod.ping("10.33.0.1", 1), [true]);
}

#[test]
fn add_when_the_interface_belongs_to_another_container() {
    let sandbox = Sandbox::new();
    let pod = sandbox.pod("a");
    pod.sh("ip link add eth0 type veth peer name other");
    let before = pod.link("eth0");
    let snapshot = sandbox.snapshot().allow_bridge_network();
    sandbox.cni("bridge").add(&bridge(), &pod, "eth0").error();
    assert_eq!(pod.link("eth0"), before);
    snapshot.assert_unchanged();
}

#[test]
fn add_when_the_netns_is_missing() {
    let sandbox = Sandbox::new();
    let pod = sandbox.pod("a");
    let error = sandbox
        .cni("bridge")
        .netns("/run/netns/nope")
        .add(&bridge(), &pod, "eth0")
        .error();
    let text = "failed to open netns \"/run/netns/nope\": failed to Statfs \"/run/netns/nope\": no such file or directory";
    assert!(error.msg.contains(text), "{}", error.msg);
    let error = sandbox
        .cni("loopback")
        .netns("/run/netns/nope")
        .add(&conf::loopback(), &pod, "lo")
        .error();
    let text = "failed to Statfs \"/run/netns/nope\": no such file or directory";
    assert!(error.msg.contains(text), "{}", error.msg);
}

#[test]
fn add_when_the_netns_is_a_plain_file() {
    let sandbox = Sandbox::new();
    let pod = sandbox.pod("a");
    sandbox.write("/run/netns/plain", "");
    for (plugin, conf) in [("bridge", bridge()), ("loopback", conf::loopback())] {
        let error = sandbox
            .cni(plugin)
            .netns("/run/netns/plain")
            .add(&conf, &pod, "eth0")
            .error();
        // 0x1021994 is tmpfs.
        let text = "unknown FS magic on \"/run/netns/plain\": 1021994";
        assert!(error.msg.contains(text), "{plugin}: {}", error.msg);
    }
}

#[test]
fn a_netns_that_cannot_be_opened_touches_nothing() {
    beyond_peer("reference 3.1: the bridge is made first and stays", || {
        let sandbox = Sandbox::new();
        let pod = sandbox.pod("a");
        let snapshot = sandbox.snapshot();
        sandbox
            .cni("bridge")
            .netns("/run/netns/nope")
            .add(&bridge(), &pod, "eth0")
            .error();
        snapshot.assert_unchanged();
    });
}

#[test]
fn add_when_the_ipam_binary_is_absent() {
    let sandbox = Sandbox::new();
    let pod = sandbox.pod("a");
    let error = sandbox
        .cni("bridge")
        .env("CNI_PATH", "/x")
        .add(&bridge(), &pod, "eth0")
        .error();
    assert_eq!(error.code, 999);
    let text = "failed to find plugin \"host-local\" in path [/x]";
    assert!(error.msg.contains(text), "{}", error.msg);
    beyond_peer("reference 1.13: the interface stays in the pod", || {
        assert_eq!(pod.links(), ["lo"]);
    });
}

/// CHECK after `harm` was done in the pod or on the node; returns the message.
fn check_after(harm: impl FnOnce(&Sandbox, &sandbox::Netns)) -> String {
    let sandbox = Sandbox::new();
    let pod = sandbox.pod("a");
    let result = sandbox.cni("bridge").add(&bridge(), &pod, "eth0").result();
    harm(&sandbox, &pod);
    let conf = conf::with_prev(&bridge(), &result);
    sandbox.cni("bridge").check(&conf, &pod, "eth0").error().msg
}

#[test]
fn check_when_the_address_was_removed() {
    let msg = check_after(|_, pod| drop(pod.sh("ip addr del 10.33.0.2/24 dev eth0")));
    assert!(
        msg.contains("Failed to match addr 10.33.0.2/24 on interface eth0"),
        "{msg}"
    );
}

#[test]
fn check_when_the_link_was_removed() {
    let msg = check_after(|_, pod| drop(pod.sh("ip link del eth0")));
    assert!(msg.contains("nterface name eth0 not found"), "{msg}");
}

#[test]
fn check_when_the_reservation_was_removed() {
    let msg = check_after(|sandbox, _| {
        drop(
            sandbox
                .host()
                .sh("rm /var/lib/cni/networks/testnet/10.33.0.2"),
        )
    });
    assert!(
        msg.contains("host-local: Failed to find address added by container id-a"),
        "{msg}"
    );
}

#[test]
fn check_without_a_previous_result() {
    let sandbox = Sandbox::new();
    let pod = sandbox.pod("a");
    sandbox.cni("bridge").add(&bridge(), &pod, "eth0").result();
    sandbox
        .cni("loopback")
        .add(&conf::loopback(), &pod, "lo")
        .result();
    let fixed = conf::static_ipam(&json!([{"address": "10.33.0.9/24"}]));
    for (plugin, conf) in [("bridge", bridge()), ("static", fixed)] {
        let error = sandbox.cni(plugin).check(&conf, &pod, "eth0").error();
        assert!(
            error.msg.contains("Required prevResult missing"),
            "{plugin}: {}",
            error.msg
        );
    }
    sandbox
        .cni("host-local")
        .check(&bridge(), &pod, "eth0")
        .silent();
    sandbox
        .cni("loopback")
        .check(&conf::loopback(), &pod, "lo")
        .silent();
}

#[test]
fn a_missing_reservation_hides_a_missing_previous_result() {
    let sandbox = Sandbox::new();
    let pod = sandbox.pod("a");
    let error = sandbox.cni("bridge").check(&bridge(), &pod, "eth0").error();
    let text = "host-local: Failed to find address added by container id-a";
    assert!(error.msg.contains(text), "{}", error.msg);
}

#[test]
fn status_and_gc_with_a_valid_configuration() {
    beyond_peer("the peer is older than CNI 1.1.0", || {
        let sandbox = Sandbox::new();
        let fixed = conf::static_ipam(&json!([{"address": "10.33.0.9/24"}]));
        for (plugin, conf) in [
            ("bridge", bridge()),
            ("loopback", conf::loopback()),
            ("host-local", bridge()),
            ("static", fixed),
        ] {
            let conf = conf::at(&conf, "1.1.0");
            sandbox.cni(plugin).status(&conf).silent();
            sandbox.cni(plugin).gc(&conf).silent();
        }
    });
}
