//! Addresses, routes and DNS that a server grants.

use sandbox::{beyond_peer, conf};
use serde_json::json;

use crate::{STATE, WHY, Wire, address, bare, eventually, gateway, lan, release_of};

#[test]
fn an_address_is_leased_used_and_released() {
    beyond_peer(WHY, || {
        let wire = Wire::new();
        let server = wire.dnsmasq(&["--domain=example.org", "--dhcp-option=6,10.77.0.53"]);
        let daemon = wire.daemon(&[]);
        let (sandbox, pod) = (&wire.sandbox, wire.sandbox.pod("a"));
        let seen = wire.server.start(&[
            "tcpdump",
            "-l",
            "--immediate-mode",
            "-nvvv",
            "-i",
            "eth0",
            "udp port 67",
        ]);
        eventually(5, "tcpdump listens", || {
            seen.output().contains("listening on")
        });
        let snapshot = sandbox.snapshot().allow_link("lan");

        let result = wire.add(&pod);
        let ours = address(&result);
        assert!(
            ours.starts_with("10.77.") && ours.ends_with("/16"),
            "{ours}"
        );
        assert_eq!(pod.addresses("eth0")[..], std::slice::from_ref(&ours)[..]);
        assert_eq!(gateway(&pod), "10.77.0.1");
        assert_eq!(pod.ping("10.77.0.1", 1), [true]);
        let dns = json!({"nameservers": ["10.77.0.53"], "domain": "example.org"});
        assert_eq!(result["dns"], dns);
        let files = wire.host().sh(&format!("stat -c %a {STATE}/*"));
        assert_eq!(files.trim(), "600");

        wire.check(&pod, &result);
        wire.del(&pod);
        wire.del(&pod);
        Wire::await_log(&server, &release_of(&ours));
        assert!(
            !server.output().contains("unknown lease"),
            "{}",
            server.output()
        );
        snapshot.assert_unchanged();
        assert!(sandbox.list(STATE).is_empty());
        drop(daemon);

        // From the pod's address to the server's, with both in the message (RFC 2131, table 5).
        eventually(5, "the release is seen", || {
            seen.output().contains("Release")
        });
        let wire = seen.output();
        let release = &wire[..wire.find("Release").unwrap_or_default()];
        let release = &release[release
            .rfind("\n1")
            .or(release.rfind("IP ("))
            .unwrap_or_default()..];
        assert!(
            release.contains(&format!("{}.68 > 10.77.0.1.67", bare(&ours))),
            "{release}"
        );
        assert!(
            release.contains(&format!("Client-IP {}", bare(&ours))),
            "{release}"
        );
        assert!(
            wire.contains("Client-ID (61), length 20: ether") || wire.contains("id-a/testnet/eth0"),
            "{wire}"
        );
    });
}

#[test]
fn the_servers_options_reach_the_pod_and_provided_options_reach_the_server() {
    beyond_peer(WHY, || {
        let wire = Wire::new();
        let server = wire.dnsmasq(&[
            "--dhcp-option=121,0.0.0.0/0,10.77.0.1,10.9.0.0/16,10.77.0.2",
            "--dhcp-option=26,1400",
            "--dhcp-option=119,a.example,b.example",
        ]);
        let _daemon = wire.daemon(&[]);
        let pod = wire.sandbox.pod("a");
        let conf = conf::with(
            &lan(),
            json!({"ipam": {
                "priority": 77,
                "provide": [{"option": "host-name", "fromArg": "K8S_POD_NAME"},
                            {"option": "vendor-class-identifier", "value": "podwire"}],
            }}),
        );
        let args = "IgnoreUnknown=1;K8S_POD_NAME=web-0";
        let cni = wire.sandbox.cni("bridge").args(args);
        let result = cni.add(&conf, &pod, "eth0").result();
        let route =
            |dst: &str, gw: &str| json!({"dst": dst, "gw": gw, "mtu": 1400, "priority": 77});
        assert_eq!(
            result["routes"],
            json!([
                route("0.0.0.0/0", "10.77.0.1"),
                route("10.9.0.0/16", "10.77.0.2")
            ])
        );
        assert_eq!(result["dns"]["search"], json!(["a.example", "b.example"]));
        let route = &pod.routes_to("-4", "10.9.0.0/16")[0];
        assert_eq!(
            (&route["gateway"], &route["metric"]),
            (&json!("10.77.0.2"), &json!(77))
        );
        Wire::await_log(&server, "client provides name: web-0");
        Wire::await_log(&server, "vendor class: podwire");
    });
}

#[test]
fn a_lease_is_renewed_and_a_change_of_routes_reaches_the_pod() {
    beyond_peer(WHY, || {
        let wire = Wire::new();
        let pool = "10.77.0.10-10.77.0.99";
        let server = wire.kea([1, 10, 120], pool, json!({}));
        let daemon = wire.daemon(&[]);
        let pod = wire.sandbox.pod("a");
        let result = wire.add(&pod);
        assert_eq!(gateway(&pod), "10.77.0.1");
        Wire::await_log(&daemon, "lease renewed");
        drop(server);

        let routes = json!({"option-data": [{"name": "routers", "data": "10.77.0.2"}]});
        let server = wire.kea([1, 10, 120], pool, routes);
        eventually(20, "the new router", || gateway(&pod) == "10.77.0.2");
        assert_eq!(pod.routes_to("-4", "default").len(), 1);
        assert_eq!(pod.addresses("eth0"), [address(&result)]);
        wire.del(&pod);
        Wire::await_log(&server, "DHCP4_RELEASE");
    });
}

#[test]
fn the_configuration_leaves_out_the_router_and_has_its_own_routes_and_dns() {
    beyond_peer("the Go plugin has no such keys", || {
        let wire = Wire::new();
        let pool = "10.77.0.10-10.77.0.99";
        let domain = json!({"name": "domain-name", "data": "lan.example"});
        let options = |router: &str| {
            let servers = json!({"name": "domain-name-servers", "data": "10.77.0.53"});
            let router = json!({"name": "routers", "data": router});
            json!({"option-data": [router, servers, domain]})
        };
        let server = wire.kea([1, 10, 120], pool, options("10.77.0.1"));
        let daemon = wire.daemon(&[]);
        let (pod, other) = (wire.sandbox.pod("a"), wire.sandbox.pod("b"));
        let own = json!({"dst": "10.99.0.0/16", "gw": "10.77.0.9"});
        let conf = conf::with(
            &lan(),
            json!({"ipam": {
                "suppress": ["router"], "routes": [own],
                "dns": {"nameservers": ["9.9.9.9"], "options": ["ndots:2"]},
            }}),
        );
        let bridge = || wire.sandbox.cni("bridge");
        let result = bridge().add(&conf, &pod, "eth0").result();
        assert_eq!(result["ips"][0].get("gateway"), None);
        assert_eq!(result["routes"], json!([own]));
        assert_eq!(
            result["dns"],
            json!({"nameservers": ["9.9.9.9"], "domain": "lan.example", "options": ["ndots:2"]})
        );
        // A client that wants all of it, and a default route of its own.
        let default = json!({"dst": "0.0.0.0/0", "gw": "10.77.0.8"});
        let with_default = conf::with(&lan(), json!({"ipam": {"routes": [default]}}));
        bridge().add(&with_default, &other, "eth0").result();
        assert_eq!(gateway(&other), "10.77.0.8");
        bridge()
            .check(&conf::with_prev(&conf, &result), &pod, "eth0")
            .silent();
        // Neither a renewal nor a restart of the daemon, nor other routes, change that.
        drop((server, daemon));
        let _server = wire.kea([1, 10, 120], pool, options("10.77.0.2"));
        let daemon = wire.daemon(&[]);
        for id in ["id-a", "id-b"] {
            Wire::await_log(&daemon, &format!("{id}/testnet/eth0: lease renewed"));
        }
        assert!(pod.routes_to("-4", "default").is_empty());
        assert_eq!(pod.routes_to("-4", "10.99.0.0/16").len(), 1);
        assert_eq!(gateway(&other), "10.77.0.8");
        assert_eq!(other.routes_to("-4", "default").len(), 1);
        let bad = conf::with(&lan(), json!({"ipam": {"suppress": ["subnet-mask"]}}));
        let error = wire.sandbox.cni("dhcp").add(&bad, &pod, "eth1").error();
        assert_eq!(error.code, 7, "{}", error.msg);
    });
}

#[test]
fn option_249_gives_the_routes_where_option_121_is_missing() {
    beyond_peer(WHY, || {
        let wire = Wire::new();
        let windows = "--dhcp-option=249,10:0a:58:0a:4d:00:05";
        let server = wire.dnsmasq(&[windows]);
        let _daemon = wire.daemon(&[]);
        let (one, two) = (wire.sandbox.pod("a"), wire.sandbox.pod("b"));
        let route = |via: &str| json!({"dst": "10.88.0.0/16", "gw": via});
        assert_eq!(wire.add(&one)["routes"], json!([route("10.77.0.5")]));
        drop(server);
        let _server = wire.dnsmasq(&[windows, "--dhcp-option=121,10.88.0.0/16,10.77.0.6"]);
        assert_eq!(wire.add(&two)["routes"], json!([route("10.77.0.6")]));
    });
}

#[test]
fn a_recreated_pod_gets_the_same_address() {
    beyond_peer(WHY, || {
        let wire = Wire::new();
        let _server = wire.dnsmasq(&[]);
        let daemon = wire.daemon(&[]);
        let pod = wire.sandbox.pod("a");
        let first = wire.add(&pod);
        // The node goes down: namespaces and daemon are gone, the disk is not.
        drop(daemon);
        wire.sandbox.remove_pod(&pod);
        wire.host().sh("rm -rf /run/cni");
        let daemon = wire.daemon(&[]);
        Wire::await_log(&daemon, "the pod's interface is gone");
        let pod = wire.sandbox.pod("a");
        let second = wire.add(&pod);
        assert_eq!(address(&first), address(&second));
        assert_eq!(pod.addresses("eth0"), [address(&second)]);
    });
}

#[test]
fn a_server_does_not_make_the_bridge_the_gateway_of_the_nodes_own_segment() {
    beyond_peer("the bridge becomes the gateway of anything", || {
        let wire = Wire::new();
        wire.host().sh("ip link add up0 type veth peer name up1
             ip addr add 10.77.9.9/16 dev up0");
        let _server = wire.dnsmasq(&[]);
        let _daemon = wire.daemon(&[]);
        let pod = wire.sandbox.pod("a");
        let conf = conf::with(&lan(), json!({"isGateway": true}));
        let error = wire.sandbox.cni("bridge").add(&conf, &pod, "eth0").error();
        let why = "gateway of 10.77.0.0/16, where the node needs 10.77.9.9";
        assert!(error.msg.ends_with(why), "{}", error.msg);
        assert_eq!(error.code, 7);
        assert_eq!(wire.host().addresses("lan"), [""; 0]);
        assert!(wire.sandbox.list(STATE).is_empty());
    });
}
