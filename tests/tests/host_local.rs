//! host-local: ranges, round robin, requested addresses, the files on disk.

use sandbox::{Failure, Netns, Sandbox, beyond_peer, conf, newest};
use serde_json::{Value, json};

const STATE: &str = conf::STATE;

/// A sandbox that calls host-local for any number of containers.
struct Node {
    sandbox: Sandbox,
    pod: Netns,
    conf: Value,
}

impl Node {
    fn new(conf: Value) -> Self {
        let sandbox = Sandbox::new();
        let pod = sandbox.pod("a");
        Self { sandbox, pod, conf }
    }

    fn pool(subnet: &str) -> Self {
        Self::new(conf::host_local(&[subnet]))
    }

    fn ipam(ipam: Value) -> Self {
        Self::new(conf::with(&conf::plugin("bridge"), json!({"ipam": ipam}))).typed()
    }

    fn typed(mut self) -> Self {
        self.conf["ipam"]["type"] = "host-local".into();
        self
    }

    fn add(&self, id: &str) -> Vec<String> {
        let result = self
            .sandbox
            .cni("host-local")
            .id(id)
            .add(&self.conf, &self.pod, "eth0")
            .result();
        addresses(&result)
    }

    fn refused(&self, id: &str) -> Failure {
        self.sandbox
            .cni("host-local")
            .id(id)
            .add(&self.conf, &self.pod, "eth0")
            .error()
    }

    fn del(&self, id: &str) {
        self.sandbox
            .cni("host-local")
            .id(id)
            .del(&self.conf, &self.pod, "eth0")
            .silent();
    }

    /// Addresses with a reservation file, sorted.
    fn reserved(&self) -> Vec<String> {
        self.sandbox.reserved()
    }

    fn file(&self, name: &str) -> Option<String> {
        self.sandbox.read(format!("{STATE}/{name}"))
    }

    fn mode(&self, name: &str) -> String {
        self.sandbox
            .host()
            .sh(&format!("stat -c %a {STATE}/{name}"))
            .trim()
            .to_owned()
    }
}

fn addresses(result: &Value) -> Vec<String> {
    let ips = result["ips"].as_array().cloned().unwrap_or_default();
    ips.iter()
        .map(|ip| ip["address"].as_str().expect("an address").to_owned())
        .collect()
}

// ---- allocation

#[test]
fn the_first_address_is_the_one_after_the_gateway() {
    let node = Node::pool("10.1.0.0/24");
    let result = node
        .sandbox
        .cni("host-local")
        .add(&node.conf, &node.pod, "eth0")
        .result();
    assert_eq!(result["cniVersion"], newest());
    assert_eq!(
        result["ips"],
        json!([{"address": "10.1.0.2/24", "gateway": "10.1.0.1"}])
    );
    assert!(
        result.get("interfaces").is_none() && result.get("routes").is_none(),
        "{result}"
    );
}

#[test]
fn addresses_go_round_even_when_earlier_ones_are_free() {
    let node = Node::pool("10.1.0.0/29");
    assert_eq!(node.add("a"), ["10.1.0.2/29"]);
    node.del("a");
    for expected in [
        "10.1.0.3/29",
        "10.1.0.4/29",
        "10.1.0.5/29",
        "10.1.0.6/29",
        "10.1.0.2/29",
        "10.1.0.3/29",
    ] {
        assert_eq!(node.add("a"), [expected]);
        node.del("a");
    }
}

#[test]
fn the_round_goes_on_after_the_last_address_on_disk() {
    let node = Node::pool("10.1.0.0/24");
    node.sandbox
        .write(format!("{STATE}/last_reserved_ip.0"), "10.1.0.77");
    assert_eq!(node.add("a"), ["10.1.0.78/24"]);
}

#[test]
fn a_last_address_that_is_unusable_starts_at_the_beginning() {
    for content in ["", "10.99.0.1", "nonsense", "fd00::1"] {
        let node = Node::pool("10.1.0.0/24");
        node.sandbox
            .write(format!("{STATE}/last_reserved_ip.0"), content);
        assert_eq!(node.add("a"), ["10.1.0.2/24"], "{content:?}");
    }
}

#[test]
fn start_end_and_gateway_bound_the_range() {
    let range = json!({"subnet": "10.1.0.0/24", "rangeStart": "10.1.0.10", "rangeEnd": "10.1.0.12", "gateway": "10.1.0.11"});
    let node = Node::ipam(json!({"ranges": [[range]]}));
    assert_eq!(node.add("a"), ["10.1.0.10/24"]);
    assert_eq!(node.add("b"), ["10.1.0.12/24"]);
    let error = node.refused("c");
    let text = "failed to allocate for range 0: no IP addresses available in range set: 10.1.0.10-10.1.0.12";
    assert!(error.msg.contains(text), "{}", error.msg);
}

#[test]
fn the_smallest_networks_are_used_to_the_last_address() {
    let node = Node::pool("10.1.0.0/30");
    assert_eq!(node.add("a"), ["10.1.0.2/30"]);
    node.refused("b");
    let node = Node::pool("fd00::/126");
    assert_eq!(node.add("a"), ["fd00::2/126"]);
    assert_eq!(node.add("b"), ["fd00::3/126"]);
    node.refused("c");
}

#[test]
fn a_set_goes_through_its_ranges_in_order() {
    let node =
        Node::ipam(json!({"ranges": [[{"subnet": "10.1.0.0/30"}, {"subnet": "10.2.0.0/30"}]]}));
    assert_eq!(node.add("a"), ["10.1.0.2/30"]);
    let result = node
        .sandbox
        .cni("host-local")
        .id("b")
        .add(&node.conf, &node.pod, "eth0")
        .result();
    assert_eq!(
        result["ips"],
        json!([{"address": "10.2.0.2/30", "gateway": "10.2.0.1"}])
    );
    let text = "no IP addresses available in range set: 10.1.0.1-10.1.0.2,10.2.0.1-10.2.0.2";
    assert!(node.refused("c").msg.contains(text));
    node.del("a");
    assert_eq!(node.add("c"), ["10.1.0.2/30"]);
}

#[test]
fn every_set_gives_an_address() {
    let node = Node::pool("10.1.0.0/24");
    let conf = conf::host_local(&["10.1.0.0/24", "fd00::/64", "10.2.0.0/24"]);
    let result = node
        .sandbox
        .cni("host-local")
        .add(&conf, &node.pod, "eth0")
        .result();
    assert_eq!(
        addresses(&result),
        ["10.1.0.2/24", "fd00::2/64", "10.2.0.2/24"]
    );
    assert_eq!(node.reserved(), ["10.1.0.2", "10.2.0.2", "fd00::2"]);
    assert_eq!(node.file("last_reserved_ip.1").as_deref(), Some("fd00::2"));
    assert_eq!(node.file("last_reserved_ip.2").as_deref(), Some("10.2.0.2"));
}

#[test]
fn the_legacy_subnet_comes_before_the_ranges_and_after_the_capability() {
    let ipam = json!({
        "subnet": "10.2.0.0/24", "rangeStart": "10.2.0.20", "rangeEnd": "10.2.0.30", "gateway": "10.2.0.254",
        "ranges": [[{"subnet": "10.3.0.0/24"}]],
    });
    let mut node = Node::ipam(ipam);
    node.conf["runtimeConfig"] = json!({"ipRanges": [[{"subnet": "10.1.0.0/24"}]]});
    let result = node
        .sandbox
        .cni("host-local")
        .add(&node.conf, &node.pod, "eth0")
        .result();
    assert_eq!(
        addresses(&result),
        ["10.1.0.2/24", "10.2.0.20/24", "10.3.0.2/24"]
    );
    assert_eq!(result["ips"][1]["gateway"], "10.2.0.254");
}

#[test]
fn routes_are_passed_on() {
    let routes = json!([{"dst": "0.0.0.0/0"}, {"dst": "10.9.0.0/16", "gw": "10.1.0.9"}]);
    let node = Node::ipam(json!({"ranges": [[{"subnet": "10.1.0.0/24"}]], "routes": routes}));
    let result = node
        .sandbox
        .cni("host-local")
        .add(&node.conf, &node.pod, "eth0")
        .result();
    assert_eq!(result["routes"], routes);
}

#[test]
fn an_exhausted_later_set_releases_the_earlier_ones() {
    let node = Node::new(conf::host_local(&["10.1.0.0/24", "10.2.0.0/30"]));
    node.add("a");
    let error = node.refused("b");
    assert!(
        error.msg.contains("failed to allocate for range 1: "),
        "{}",
        error.msg
    );
    assert_eq!(node.reserved(), ["10.1.0.2", "10.2.0.2"]);
}

#[test]
fn the_same_attachment_does_not_get_a_second_address() {
    let node = Node::pool("10.1.0.0/24");
    node.add("a");
    let error = node.refused("a");
    let text = "10.1.0.2 has been allocated to a, duplicate allocation is not allowed";
    assert!(error.msg.contains(text), "{}", error.msg);
}

#[test]
fn two_interfaces_of_one_container_have_addresses_of_their_own() {
    let node = Node::pool("10.1.0.0/24");
    let call = |ifname: &str| {
        node.sandbox
            .cni("host-local")
            .id("a")
            .add(&node.conf, &node.pod, ifname)
    };
    assert_eq!(addresses(&call("eth0").result()), ["10.1.0.2/24"]);
    assert_eq!(addresses(&call("net1").result()), ["10.1.0.3/24"]);
    node.del("a");
    assert_eq!(node.file("10.1.0.3").as_deref(), Some("a\r\nnet1"));
    assert_eq!(node.reserved(), ["10.1.0.3"]);
}

// ---- requested addresses

#[test]
fn an_address_may_be_requested_in_three_ways() {
    let ask = |change: Value, args: &str| {
        let node = Node::pool("10.1.0.0/24");
        let conf = conf::with(&node.conf, change);
        let cni = node.sandbox.cni("host-local").args(args);
        addresses(&cni.add(&conf, &node.pod, "eth0").result())
    };
    assert_eq!(ask(json!({}), "IP=10.1.0.50"), ["10.1.0.50/24"]);
    assert_eq!(ask(json!({}), "IP=10.1.0.51/32"), ["10.1.0.51/24"]);
    assert_eq!(
        ask(json!({"args": {"cni": {"ips": ["10.1.0.52"]}}}), ""),
        ["10.1.0.52/24"]
    );
    assert_eq!(
        ask(json!({"runtimeConfig": {"ips": ["10.1.0.53/24"]}}), ""),
        ["10.1.0.53/24"]
    );
}

#[test]
fn requested_addresses_find_their_sets() {
    let node = Node::new(conf::host_local(&[
        "10.1.0.0/24",
        "fd00::/64",
        "10.2.0.0/24",
    ]));
    let conf = conf::with(
        &node.conf,
        json!({"runtimeConfig": {"ips": ["10.2.0.9", "fd00::9"]}}),
    );
    let result = node
        .sandbox
        .cni("host-local")
        .add(&conf, &node.pod, "eth0")
        .result();
    assert_eq!(
        addresses(&result),
        ["10.1.0.2/24", "fd00::9/64", "10.2.0.9/24"]
    );
}

#[test]
fn an_address_that_cannot_be_given_is_named_and_nothing_is_reserved() {
    let node = Node::pool("10.1.0.0/24");
    node.sandbox
        .write(format!("{STATE}/10.1.0.60"), "other\r\neth0");
    for (ips, text) in [
        (
            json!(["10.1.0.1"]),
            "requested ip 10.1.0.1 is subnet's gateway",
        ),
        (
            json!(["10.1.0.60"]),
            "requested IP address 10.1.0.60 is not available in range set 10.1.0.1-10.1.0.254",
        ),
        (
            json!(["10.9.0.1"]),
            "failed to allocate all requested IPs: 10.9.0.1",
        ),
        (
            json!(["10.1.0.61", "10.1.0.62"]),
            "failed to allocate all requested IPs: ",
        ),
    ] {
        let conf = conf::with(&node.conf, json!({"runtimeConfig": {"ips": ips}}));
        let error = node
            .sandbox
            .cni("host-local")
            .id("a")
            .add(&conf, &node.pod, "eth0")
            .error();
        assert!(error.msg.contains(text), "{ips}: {}", error.msg);
        assert_eq!(node.reserved(), ["10.1.0.60"], "{ips}");
    }
}

// ---- files

#[test]
fn a_reservation_is_a_file_with_its_owner() {
    let node = Node::new(conf::host_local(&["10.1.0.0/24", "fd00:0:0:0:0::/64"]));
    node.add("container-1");
    assert_eq!(
        node.file("10.1.0.2").as_deref(),
        Some("container-1\r\neth0")
    );
    assert_eq!(node.file("fd00::2").as_deref(), Some("container-1\r\neth0"));
    assert_eq!(node.file("last_reserved_ip.0").as_deref(), Some("10.1.0.2"));
    assert_eq!(node.file("lock").as_deref(), Some(""));
    beyond_peer("the Go plugins let others look", || {
        assert_eq!(node.mode("."), "700");
        for name in ["10.1.0.2", "fd00::2", "last_reserved_ip.0", "lock"] {
            assert_eq!(node.mode(name), "600", "{name}");
        }
    });
}

#[test]
fn the_state_directory_may_be_elsewhere() {
    let mut node = Node::pool("10.1.0.0/24");
    let dir = node.sandbox.dir().join("state/deep");
    node.conf["ipam"]["dataDir"] = dir.display().to_string().into();
    node.add("a");
    let names = node.sandbox.list(dir.join("testnet"));
    assert_eq!(names, ["10.1.0.2", "last_reserved_ip.0", "lock"]);
    assert!(node.sandbox.list("/var/lib").is_empty());
}

#[test]
fn networks_do_not_share_their_addresses() {
    let node = Node::pool("10.1.0.0/24");
    node.add("a");
    let other = conf::with(&node.conf, json!({"name": "other"}));
    let result = node
        .sandbox
        .cni("host-local")
        .id("a")
        .add(&other, &node.pod, "eth0")
        .result();
    assert_eq!(addresses(&result), ["10.1.0.2/24"]);
}

#[test]
fn files_that_are_not_reservations_do_no_harm() {
    let node = Node::pool("10.1.0.0/24");
    node.sandbox.write(format!("{STATE}/README"), "hands off");
    node.sandbox.write(format!("{STATE}/10.1.0.2~"), "x");
    node.sandbox.write(format!("{STATE}/sub/dir"), "x");
    assert_eq!(node.add("a"), ["10.1.0.2/24"]);
    node.del("a");
    assert_eq!(node.file("README").as_deref(), Some("hands off"));
    assert_eq!(node.file("sub/dir").as_deref(), Some("x"));
}

#[test]
fn an_empty_reservation_is_a_free_address() {
    beyond_peer(
        "reference 8 #16: what a crash between open and write left is lost for ever",
        || {
            let node = Node::pool("10.1.0.0/29");
            for last in 2..=6 {
                node.sandbox.write(format!("{STATE}/10.1.0.{last}"), "");
            }
            let mut all: Vec<String> = (0..5).flat_map(|n| node.add(&format!("c{n}"))).collect();
            all.sort();
            assert_eq!(
                all,
                [
                    "10.1.0.2/29",
                    "10.1.0.3/29",
                    "10.1.0.4/29",
                    "10.1.0.5/29",
                    "10.1.0.6/29"
                ]
            );
            node.refused("c9");
            let conf = conf::with(&node.conf, json!({"runtimeConfig": {"ips": ["10.1.0.4"]}}));
            node.sandbox.write(format!("{STATE}/10.1.0.4"), "");
            let result = node
                .sandbox
                .cni("host-local")
                .id("asks")
                .add(&conf, &node.pod, "eth0")
                .result();
            assert_eq!(addresses(&result), ["10.1.0.4/29"]);
        },
    );
}

#[test]
fn reservations_of_an_earlier_boot_are_taken_when_the_pool_runs_dry() {
    beyond_peer("pains.md 1: they stay for ever", || {
        let node = Node::pool("10.1.0.0/29");
        for n in 0..5 {
            node.add(&format!("old{n}"));
        }
        node.refused("new");
        node.sandbox.reboot();
        // No container has survived: each of the five is as good as free.
        let mut all: Vec<String> = (0..5).flat_map(|n| node.add(&format!("new{n}"))).collect();
        all.sort();
        assert_eq!(
            all,
            [
                "10.1.0.2/29",
                "10.1.0.3/29",
                "10.1.0.4/29",
                "10.1.0.5/29",
                "10.1.0.6/29"
            ]
        );
        node.refused("one-too-many");
    });
}

#[test]
fn the_runtime_may_still_delete_what_an_earlier_boot_had() {
    let node = Node::pool("10.1.0.0/29");
    node.add("old");
    node.sandbox.reboot();
    node.del("old");
    assert!(node.reserved().is_empty());
}

#[test]
fn an_address_taken_from_an_earlier_boot_is_not_released_by_its_old_owner() {
    beyond_peer("pains.md 1: they stay for ever", || {
        let node = Node::pool("10.1.0.0/30");
        node.add("old");
        node.sandbox.reboot();
        assert_eq!(node.add("new"), ["10.1.0.2/30"]);
        // Runtimes clean up after a reboot, late.
        node.del("old");
        assert_eq!(node.file("10.1.0.2").as_deref(), Some("new\r\neth0"));
    });
}

#[test]
fn reservations_of_this_boot_are_never_taken() {
    let node = Node::pool("10.1.0.0/29");
    for n in 0..5 {
        node.add(&format!("c{n}"));
    }
    node.refused("new");
    assert_eq!(node.reserved().len(), 5);
}

#[test]
fn an_earlier_boot_s_reservations_are_kept_while_there_is_room() {
    let node = Node::pool("10.1.0.0/29");
    node.add("old");
    node.sandbox.reboot();
    assert_eq!(node.add("new"), ["10.1.0.3/29"]);
    assert_eq!(node.file("10.1.0.2").as_deref(), Some("old\r\neth0"));
}

// ---- DEL and CHECK

#[test]
fn del_releases_by_owner_and_may_be_repeated() {
    let node = Node::pool("10.1.0.0/24");
    node.add("a");
    node.add("b");
    node.del("a");
    node.del("a");
    assert_eq!(node.reserved(), ["10.1.0.3"]);
    node.del("never-seen");
}

#[test]
fn del_knows_the_files_of_old_that_have_no_interface() {
    for content in ["a", "a\n", " a "] {
        let node = Node::pool("10.1.0.0/24");
        node.sandbox.write(format!("{STATE}/10.1.0.9"), content);
        node.del("a");
        assert_eq!(node.reserved(), [] as [&str; 0], "{content:?}");
    }
}

#[test]
fn del_prefers_the_file_with_the_interface() {
    let node = Node::pool("10.1.0.0/24");
    node.sandbox.write(format!("{STATE}/10.1.0.9"), "a");
    node.sandbox.write(format!("{STATE}/10.1.0.8"), "a\r\neth0");
    node.del("a");
    assert_eq!(node.reserved(), ["10.1.0.9"]);
    node.del("a");
    assert!(node.reserved().is_empty());
}

#[test]
fn del_needs_neither_a_netns_nor_the_directory() {
    let node = Node::pool("10.1.0.0/24");
    let del = || {
        node.sandbox
            .cni("host-local")
            .netns("")
            .del(&node.conf, &node.pod, "eth0")
    };
    del().silent();
    node.sandbox
        .cni("host-local")
        .add(&node.conf, &node.pod, "eth0")
        .result();
    del().silent();
    assert!(node.reserved().is_empty());
}

#[test]
fn del_releases_addresses_outside_of_the_ranges_of_today() {
    let node = Node::pool("10.1.0.0/24");
    node.add("a");
    let moved = conf::with(
        &node.conf,
        json!({"ipam": {"ranges": [[{"subnet": "10.7.0.0/24"}]]}}),
    );
    node.sandbox
        .cni("host-local")
        .id("a")
        .del(&moved, &node.pod, "eth0")
        .silent();
    assert!(node.reserved().is_empty());
}

#[test]
fn del_forgives_ranges_that_add_refuses() {
    beyond_peer(
        "reference 4.1: the configuration must still have valid ranges",
        || {
            for ipam in [
                json!({"ranges": null}),
                json!({"ranges": [[{"subnet": "10.1.0.7/24"}]]}),
                json!({"ranges": "x"}),
            ] {
                let node = Node::pool("10.1.0.0/24");
                node.add("a");
                let conf = conf::with(&node.conf, json!({"ipam": ipam}));
                node.sandbox
                    .cni("host-local")
                    .id("a")
                    .del(&conf, &node.pod, "eth0")
                    .silent();
                assert!(node.reserved().is_empty(), "{ipam}");
            }
        },
    );
}

#[test]
fn check_looks_for_a_reservation_of_the_attachment() {
    let node = Node::pool("10.1.0.0/24");
    let check = |id: &str| {
        node.sandbox
            .cni("host-local")
            .id(id)
            .check(&node.conf, &node.pod, "eth0")
    };
    node.add("a");
    check("a").silent();
    let text = "host-local: Failed to find address added by container b";
    assert!(check("b").error().msg.contains(text));
}

// ---- GC and STATUS

#[test]
fn gc_releases_whatever_is_not_in_the_list() {
    beyond_peer("reference 8 #16: no GC", || {
        let node = Node::new(conf::at(
            &conf::host_local(&["10.1.0.0/24", "fd00::/64"]),
            "1.1.0",
        ));
        for id in ["a", "b", "c"] {
            node.add(id);
        }
        node.sandbox.write(format!("{STATE}/10.1.0.99"), "");
        node.sandbox.write(format!("{STATE}/10.1.0.98"), "legacy");
        node.sandbox
            .write(format!("{STATE}/10.1.0.97"), "legacy-alive");
        let valid = conf::with_valid(
            &node.conf,
            &[("b", "eth0"), ("c", "net1"), ("legacy-alive", "eth0")],
        );
        node.sandbox.cni("host-local").gc(&valid).silent();
        assert_eq!(node.reserved(), ["10.1.0.3", "10.1.0.97", "fd00::3"]);
        node.sandbox
            .cni("host-local")
            .gc(&conf::with_valid(&node.conf, &[]))
            .silent();
        assert!(node.reserved().is_empty());
    });
}

#[test]
fn gc_without_a_list_releases_nothing() {
    beyond_peer("reference 8 #16: no GC", || {
        // cnitool's gc sends no list: it has called DEL for all it knew.
        let node = Node::new(conf::at(&conf::host_local(&["10.1.0.0/24"]), "1.1.0"));
        node.add("a");
        node.sandbox.cni("host-local").gc(&node.conf).silent();
        assert_eq!(node.reserved(), ["10.1.0.2"]);
    });
}

#[test]
fn a_requested_address_may_lie_outside_the_range_where_the_operator_allows_it() {
    beyond_peer("the Go plugin has no such key", || {
        let ranges = json!([
            [{"subnet": "10.1.0.0/24", "rangeStart": "10.1.0.100", "rangeEnd": "10.1.0.110"}],
            [{"subnet": "10.1.0.0/24", "rangeStart": "10.1.0.200", "gateway": "10.1.0.3"}],
            [{"subnet": "fd00:1::/64", "rangeStart": "fd00:1::100"}],
        ]);
        let mut node = Node::ipam(json!({"ranges": ranges, "requestOutsideRange": true}));
        let ask = |node: &Node, id: &str, ips: Value| {
            let conf = conf::with(&node.conf, json!({"runtimeConfig": {"ips": ips}}));
            node.sandbox
                .cni("host-local")
                .id(id)
                .add(&conf, &node.pod, "eth0")
        };
        let all = json!(["10.1.0.7", "10.1.0.201", "fd00:1::7"]);
        let held = ["10.1.0.7/24", "10.1.0.201/24", "fd00:1::7/64"];
        assert_eq!(addresses(&ask(&node, "a", all.clone()).result()), held);
        // No container gets it a second time, and the round of addresses continues where it was.
        assert!(
            ask(&node, "b", json!(["10.1.0.7"]))
                .error()
                .msg
                .contains("10.1.0.7")
        );
        assert_eq!(
            node.add("c"),
            ["10.1.0.100/24", "10.1.0.202/24", "fd00:1::100/64"]
        );
        for unusable in [
            "10.1.0.0",
            "10.1.0.255",
            "10.1.0.1",
            "10.1.0.3",
            "10.2.0.7",
            "fd00:2::7",
        ] {
            let error = ask(&node, "d", json!([unusable])).error();
            assert!(error.msg.contains(unusable), "{}", error.msg);
        }
        let mut reserved = node.reserved();
        reserved.sort();
        assert_eq!(
            reserved,
            [
                "10.1.0.100",
                "10.1.0.201",
                "10.1.0.202",
                "10.1.0.7",
                "fd00:1::100",
                "fd00:1::7"
            ]
        );
        node.del("a");
        node.conf["ipam"]["requestOutsideRange"] = false.into();
        let error = ask(&node, "a", all).error();
        assert_eq!(
            error.msg,
            "failed to allocate all requested IPs: 10.1.0.7 fd00:1::7"
        );
        assert!(
            error.details.contains("10.1.0.100-10.1.0.110"),
            "{}",
            error.details
        );
    });
}

#[test]
fn status_succeeds_with_an_exhausted_pool() {
    // Runtimes report a node whose STATUS fails as not ready, and its pods are evicted.
    beyond_peer("reference 8 #16: no STATUS", || {
        let ranges = ["10.1.0.0/24", "10.2.0.0/30", "fd00:2::/126"];
        let mut node = Node::new(conf::at(&conf::host_local(&ranges), "1.1.0"));
        node.add("a");
        for kind in ["host-local", "bridge"] {
            node.sandbox.cni(kind).status(&node.conf).silent();
        }
        assert_eq!(node.refused("c").code, 11);
        // STATUS reports what makes every ADD fail.
        node.sandbox.write("/var/lib/file", "");
        node.conf["ipam"]["dataDir"] = "/var/lib/file/below".into();
        let error = node.sandbox.cni("host-local").status(&node.conf).error();
        assert_eq!(error.code, 50);
    });
}

#[test]
fn status_does_not_wait_for_a_lock() {
    beyond_peer("reference 8 #16: no STATUS", || {
        let node = Node::new(conf::at(&conf::host_local(&["10.1.0.0/24"]), "1.1.0"));
        node.add("a");
        let lock = format!("{STATE}/lock");
        let _holder = node.sandbox.host().start(&["flock", &lock, "sleep", "60"]);
        let held = |host: &Netns| host.run(&["flock", "-n", &lock, "true"]).code != 0;
        node.sandbox.host().wait_until("the lock is held", held);
        node.sandbox.cni("host-local").status(&node.conf).silent();
    });
}

#[test]
fn an_exhausted_pool_may_have_room_later() {
    beyond_peer("every error is 999", || {
        let node = Node::pool("10.1.0.0/30");
        node.add("a");
        assert_eq!(node.refused("b").code, 11);
    });
}

// ---- resolvConf

#[test]
fn resolv_conf_becomes_dns() {
    let mut node = Node::pool("10.1.0.0/24");
    let file = node.sandbox.dir().join("resolv.conf");
    let text = "# comment\n; another\nnameserver 10.0.0.1 ignored\nnameserver fd00::1\ndomain first\ndomain second\n\
                search a.example b.example\nsearch c.example\noptions ndots:2 edns0\nnameserver\n\n  options   rotate\n";
    node.sandbox.write(&file, text);
    node.conf["ipam"]["resolvConf"] = file.display().to_string().into();
    let result = node
        .sandbox
        .cni("host-local")
        .add(&node.conf, &node.pod, "eth0")
        .result();
    let expected = json!({
        "nameservers": ["10.0.0.1", "fd00::1"], "domain": "second",
        "search": ["a.example", "b.example", "c.example"], "options": ["ndots:2", "edns0", "rotate"],
    });
    assert_eq!(result["dns"], expected);
}

#[test]
fn a_resolv_conf_that_is_not_there_is_an_error_that_reserves_nothing() {
    let mut node = Node::pool("10.1.0.0/24");
    node.conf["ipam"]["resolvConf"] = "/nowhere/resolv.conf".into();
    assert!(node.refused("a").msg.contains("/nowhere/resolv.conf"));
    assert!(node.reserved().is_empty());
}

#[test]
fn dns_of_the_configuration_is_left_to_the_main_plugin() {
    let mut node = Node::pool("10.1.0.0/24");
    node.conf["ipam"]["dns"] = json!({"nameservers": ["10.0.0.1"]});
    let result = node
        .sandbox
        .cni("host-local")
        .add(&node.conf, &node.pod, "eth0")
        .result();
    assert!(
        result.get("dns").is_none_or(|dns| dns == &json!({})),
        "{result}"
    );
}

// ---- errors of the configuration

#[test]
fn impossible_ranges_are_named() {
    for (ipam, text) in [
        (json!({}), "no IP ranges specified"),
        (json!({"ranges": []}), "no IP ranges specified"),
        (json!({"ranges": [[]]}), "empty range set"),
        (
            json!({"subnet": "10.0.0.0/31"}),
            "Network 10.0.0.0/31 too small to allocate from",
        ),
        (
            json!({"subnet": "10.0.0.0/32"}),
            "Network 10.0.0.0/32 too small to allocate from",
        ),
        (
            json!({"subnet": "fd00::/127"}),
            "Network fd00::/127 too small to allocate from",
        ),
        (
            json!({"subnet": "10.0.0.9/24"}),
            "Network has host bits set. For a subnet mask of length 24 the network address is 10.0.0.0",
        ),
        (
            json!({"ranges": [[{"subnet": "10.0.0.0/24", "rangeStart": "10.1.0.1"}]]}),
            "RangeStart 10.1.0.1 not in network 10.0.0.0/24",
        ),
        (
            json!({"ranges": [[{"subnet": "10.0.0.0/24", "rangeEnd": "10.1.0.1"}]]}),
            "RangeEnd 10.1.0.1 not in network 10.0.0.0/24",
        ),
        (
            json!({"ranges": [[{"subnet": "10.0.0.0/24", "rangeStart": "10.0.0.9", "rangeEnd": "10.0.0.3"}]]}),
            "not in network 10.0.0.0/24",
        ),
        (
            json!({"ranges": [[{"subnet": "10.0.0.0/24"}, {"subnet": "fd00::/64"}]]}),
            "mixed address families",
        ),
        (
            json!({"ranges": [[{"subnet": "10.0.0.0/24"}, {"subnet": "10.0.0.0/16"}]]}),
            "overlap",
        ),
        (
            json!({"ranges": [[{"subnet": "10.0.0.0/24"}], [{"subnet": "10.0.0.0/16"}]]}),
            "range set 0 overlaps with 1",
        ),
    ] {
        let node = Node::ipam(ipam.clone());
        let error = node.refused("a");
        assert!(error.msg.contains(text), "{ipam}: {}", error.msg);
        assert!(
            node.sandbox.list(STATE).is_empty(),
            "{ipam}: something was written"
        );
    }
}

#[test]
fn faults_have_the_code_of_where_they_are() {
    beyond_peer("every fault is 999", || {
        for ipam in [
            json!({}),
            json!({"subnet": "10.0.0.9/24"}),
            json!({"subnet": "10.0.0.0/31"}),
            json!({"subnet": "nonsense"}),
            json!({"ranges": [[]]}),
            json!({"ranges": "x"}),
            json!({"subnet": "10.0.0.0/24", "gateway": "x"}),
        ] {
            let error = Node::ipam(ipam.clone()).refused("a");
            assert_eq!(error.code, 7, "{ipam}: {}", error.msg);
        }
        let node = Node::pool("10.1.0.0/24");
        for args in ["IP=nonsense", "FOO=1", "IP=10.1.0.5;"] {
            let cni = node.sandbox.cni("host-local").args(args);
            assert_eq!(
                cni.add(&node.conf, &node.pod, "eth0").error().code,
                4,
                "{args}"
            );
        }
    });
}

#[test]
fn a_missing_ipam_object_is_an_error() {
    let node = Node::new(conf::plugin("bridge"));
    assert!(
        node.refused("a")
            .msg
            .contains("IPAM config missing 'ipam' key")
    );
}

#[test]
fn two_sets_of_one_family_are_too_many_before_0_3_0() {
    let node = Node::new(conf::at(
        &conf::host_local(&["10.1.0.0/24", "10.2.0.0/24"]),
        "0.2.0",
    ));
    let text = "CNI version 0.2.0 does not support more than 1 address per family";
    assert!(node.refused("a").msg.contains(text));
}

#[test]
fn the_old_forms_of_the_result_are_right() {
    let node = Node::new(conf::host_local(&["10.1.0.0/24", "fd00::/64"]));
    let add = |version: &str| {
        let conf = conf::at(&node.conf, version);
        let result = node
            .sandbox
            .cni("host-local")
            .id("a")
            .add(&conf, &node.pod, "eth0")
            .result();
        node.del("a");
        result
    };
    let old = add("0.2.0");
    assert_eq!(
        old["ip4"],
        json!({"ip": "10.1.0.2/24", "gateway": "10.1.0.1"})
    );
    assert_eq!(
        old["ip6"],
        json!({"ip": "fd00::2/64", "gateway": "fd00::1"})
    );
    let middle = add("0.3.1");
    assert_eq!(
        middle["ips"][0],
        json!({"version": "4", "address": "10.1.0.3/24", "gateway": "10.1.0.1"})
    );
    assert_eq!(middle["dns"], json!({}));
}
