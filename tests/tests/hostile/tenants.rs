//! A user of the cluster: what the runtime passes on was chosen by one.

use sandbox::{Netns, Sandbox, beyond_peer, conf};
use serde_json::{Value, json};

/// A bridge that is the gateway of whatever static hands out.
fn with_static(plugin: &str, addresses: &Value) -> Value {
    let ipam = json!({"type": "static", "addresses": addresses});
    let more = json!({"ipam": ipam, "isGateway": true});
    match plugin {
        "vxlan" => conf::with(&conf::vxlan(&[]), json!({"ipam": ipam})),
        _ => conf::with(&conf::bridge(&[]), more),
    }
}

/// A node on a segment, with a default route, in both families.
fn node() -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.wire();
    sandbox
        .host()
        .sh("echo 0 >/proc/sys/net/ipv6/conf/eth1/disable_ipv6
         ip addr add 192.0.2.1/24 dev eth1
         ip addr add 2001:db8:5::1/64 dev eth1 nodad
         ip route add default via 192.0.2.254
         ip route add 198.18.0.0/15 via 192.0.2.253
         ip route add default via 2001:db8:5::fe");
    sandbox
}

/// Asks for `ip` in the way that `channel` is.
fn ask(conf: &Value, channel: &str, ip: &str) -> (Value, String) {
    match channel {
        "runtimeConfig" => (
            conf::with(conf, json!({"runtimeConfig": {"ips": [ip]}})),
            String::new(),
        ),
        "args" => (
            conf::with(conf, json!({"args": {"cni": {"ips": [ip]}}})),
            String::new(),
        ),
        _ => (conf.clone(), format!("IP={ip}")),
    }
}

const CHANNELS: [&str; 3] = ["runtimeConfig", "args", "CNI_ARGS"];

#[test]
fn a_requested_subnet_takes_nothing_from_the_node() {
    beyond_peer("the bridge becomes the gateway of anything", || {
        for plugin in ["bridge", "vxlan"] {
            let sandbox = node();
            let pod = sandbox.pod("a");
            let before = sandbox.snapshot();
            for (ip, why) in [
                (
                    "200.1.1.1/1",
                    "gateway of 128.0.0.0/1: at least /8 is allowed",
                ),
                ("2a00::7/3", "gateway of 2000::/3: at least /32 is allowed"),
                (
                    "192.0.2.77/24",
                    "gateway of 192.0.2.0/24, where the node needs 192.0.2.1",
                ),
                (
                    "192.0.2.250/29",
                    "gateway of 192.0.2.248/29, where the node needs 192.0.2.25",
                ),
                ("2001:db8:5::fd/126", "where the node needs 2001:db8:5::fe"),
                ("127.0.0.9/8", "where the node needs 127.0.0.1"),
                // Other machines of its segments, and the cloud's metadata server.
                ("192.0.2.77/30", "a part of the node's 192.0.2.0/24"),
                ("2001:db8:5::a5/126", "a part of the node's 2001:db8:5::/64"),
                ("127.9.0.9/16", "a part of the node's 127.0.0.0/8"),
                ("169.254.169.5/24", "a part of the node's 169.254.0.0/16"),
            ] {
                for channel in CHANNELS {
                    let (conf, args) = ask(&with_static(plugin, &json!([])), channel, ip);
                    let call = sandbox.cni(plugin).args(&args);
                    let error = call.add(&conf, &pod, "eth0").error();
                    assert_eq!(error.code, 7, "{plugin}: {}", error.msg);
                    // Its own check of what the tunnel needs may come first.
                    let tunnel = plugin == "vxlan" && error.msg.ends_with("which the tunnel needs");
                    assert!(error.msg.contains(why) || tunnel, "{plugin}: {}", error.msg);
                    before.assert_unchanged();
                }
            }
        }
    });
}

#[test]
fn a_requested_gateway_takes_nothing_from_the_node() {
    beyond_peer("the bridge gets the address of the router", || {
        let sandbox = node();
        let pod = sandbox.pod("a");
        let before = sandbox.snapshot();
        let call = sandbox
            .cni("bridge")
            .args("IP=192.0.2.253/30;GATEWAY=192.0.2.254");
        let conf = with_static("bridge", &json!([]));
        let error = call.add(&conf, &pod, "eth0").error();
        assert_eq!(error.code, 7, "{}", error.msg);
        before.assert_unchanged();
    });
}

#[test]
fn a_requested_prefix_is_no_larger_than_what_the_operator_wrote() {
    beyond_peer("the bridge becomes the gateway of anything", || {
        let sandbox = node();
        let pod = sandbox.pod("a");
        let conf = with_static("bridge", &json!([{"address": "10.1.0.5/24"}]));
        let (wide, _) = ask(&conf, "runtimeConfig", "10.7.0.9/16");
        let error = sandbox.cni("bridge").add(&wide, &pod, "eth0").error();
        assert_eq!(error.code, 7);
        assert!(
            error.msg.ends_with("at least /24 is allowed"),
            "{}",
            error.msg
        );
    });
}

#[test]
fn a_requested_subnet_does_not_replace_that_of_other_pods() {
    beyond_peer("forceAddress does", || {
        let sandbox = node();
        let (first, thief) = (sandbox.pod("a"), sandbox.pod("b"));
        let conf = with_static("bridge", &json!([{"address": "10.1.0.5/24"}]));
        let conf = conf::with(&conf, json!({"forceAddress": true}));
        sandbox.cni("bridge").add(&conf, &first, "eth0").result();
        let (asks, _) = ask(&conf, "runtimeConfig", "10.7.0.9/24");
        let error = sandbox.cni("bridge").add(&asks, &thief, "eth0").error();
        assert_eq!(error.code, 7);
        let known = "\"cni0\" already has an IP address different from 10.7.0.1/24";
        assert_eq!(error.msg, known);
        assert_eq!(sandbox.host().addresses("cni0"), ["10.1.0.1/24"]);
    });
}

#[test]
fn requests_within_the_operators_subnets_are_granted() {
    for (ipam, ip) in [
        (
            json!({"type": "static", "addresses": [{"address": "192.0.2.130/25"}]}),
            "192.0.2.140/25",
        ),
        (json!({"type": "static", "addresses": []}), "10.7.0.9/24"),
        (conf::host_local_ipam(&["192.0.2.128/25"]), "192.0.2.140"),
    ] {
        // The first and the last are on the node's own segment: the operator wrote so.
        let sandbox = node();
        let conf = conf::with(&conf::bridge(&[]), json!({"ipam": ipam}));
        for pod in ["a", "b"] {
            let pod = sandbox.pod(pod);
            let (conf, _) = ask(&conf, "runtimeConfig", ip);
            sandbox.cni("bridge").add(&conf, &pod, "eth0").result();
            assert!(pod.addresses("eth0")[0].starts_with(ip));
            sandbox.cni("bridge").del(&conf, &pod, "eth0").silent();
        }
    }
}

/// ADD that asks for a MAC.
fn asks_for_mac(conf: &Value, mac: &str) -> Value {
    conf::with(conf, json!({"runtimeConfig": {"mac": mac}}))
}

fn forget(host: &Netns) {
    host.sh("for bridge in $(ls /sys/class/net); do
            ip link set $bridge type bridge fdb_flush 2>/dev/null || :
        done");
}

#[test]
fn the_mac_of_another_port_is_not_given() {
    beyond_peer("the thief gets its frames", || {
        for (plugin, mode) in [
            ("bridge", json!({})),
            ("vxlan", json!({"mode": "l2"})),
            ("vxlan", json!({"mode": "l3"})),
        ] {
            let sandbox = Sandbox::new();
            sandbox.make_ready(plugin);
            let conf = conf::with(&sandbox::conf_of(plugin), mode);
            let conf = conf::with(&conf, json!({"macspoofchk": true}));
            let (victim, thief) = (sandbox.pod("v"), sandbox.pod("t"));
            let result = sandbox.cni(plugin).add(&conf, &victim, "eth0").result();
            let name = |at: usize| result["interfaces"][at]["name"].clone();
            let mac = |at: usize| result["interfaces"][at]["mac"].as_str().expect("a MAC");
            let before = sandbox.snapshot();
            for (of, holder) in [
                (2, format!("port {} of {}", name(1), name(0))),
                (1, format!("port {} of {}", name(1), name(0))),
                (0, format!("bridge {}", name(0))),
            ] {
                for flush in [false, true] {
                    if flush {
                        // The bridge forgets a pod that is silent.
                        forget(&sandbox.host());
                    }
                    let conf = asks_for_mac(&conf, mac(of));
                    let error = sandbox.cni(plugin).add(&conf, &thief, "eth0").error();
                    let known = format!("the requested MAC {} is that of {holder}", mac(of));
                    assert_eq!((error.code, error.msg), (7, known));
                }
            }
            before.assert_unchanged();
            // Its own is given to it again, as to a pod that moved.
            let again = asks_for_mac(&conf, mac(2));
            sandbox.cni(plugin).del(&conf, &victim, "eth0").silent();
            sandbox.cni(plugin).add(&again, &victim, "eth0").result();
        }
    });
}

/// As the Go plugins do: a pod that is replaced may come before its predecessor has gone.
#[test]
fn without_macspoofchk_any_mac_is_given() {
    for plugin in ["bridge", "vxlan"] {
        let sandbox = Sandbox::new();
        sandbox.make_ready(plugin);
        let conf = sandbox::conf_of(plugin);
        let (old, new) = (sandbox.pod("o"), sandbox.pod("n"));
        let conf = asks_for_mac(&conf, "02:00:00:00:00:0b");
        for pod in [&old, &new] {
            let result = sandbox.cni(plugin).add(&conf, pod, "eth0").result();
            assert_eq!(result["interfaces"][2]["mac"], "02:00:00:00:00:0b");
        }
        sandbox.cni(plugin).del(&conf, &old, "eth0").silent();
        assert_eq!(new.links(), ["eth0", "lo"]);
    }
}

#[test]
fn the_mac_of_another_macvlan_is_not_given() {
    let sandbox = Sandbox::new();
    sandbox.wire();
    let (victim, thief) = (sandbox.pod("v"), sandbox.pod("t"));
    let conf = sandbox::conf_of("macvlan");
    let result = sandbox.cni("macvlan").add(&conf, &victim, "eth0").result();
    let mac = result["interfaces"][0]["mac"].as_str().expect("a MAC");
    let call = sandbox.cni("macvlan");
    call.add(&asks_for_mac(&conf, mac), &thief, "eth0").error();
    assert_eq!(thief.links(), ["lo"]);
}
