//! What `podwire network` refuses, and that it leaves nothing then.

use sandbox::beyond_peer;

use crate::WHY;
use crate::node::{Node, bad, good};

/// Arguments of `create`, and a part of the error.
const REFUSED: &[(&str, &str)] = &[
    ("a/b", "invalid network name \"a/b\""),
    (".hidden", "invalid network name"),
    (
        "host",
        "operation is not permitted on predefined host network",
    ),
    (
        "bridge",
        "operation is not permitted on predefined bridge network",
    ),
    ("default", "predefined default network"),
    ("-d nosuch n", "plugin \"nosuch\" not found"),
    ("-d overlay n", "-d vxlan"),
    (
        "-d host n",
        "only one instance of \"host\" network is allowed",
    ),
    ("-d vxlan n", "-d vxlan needs --vni"),
    ("-d vxlan --vni 16777216 n", "invalid VNI"),
    ("--vni 5 n", "--vni is only for -d vxlan"),
    (
        "-d macvlan --parent nosuch n",
        "parent interface nosuch does not exist",
    ),
    ("-d macvlan --icc=false n", "--icc is for bridges"),
    ("--ipam-driver nosuch n", "ipam driver \"nosuch\" not found"),
    ("--ipam-driver dhcp n", "--ipam-driver dhcp needs a segment"),
    (
        "--ipam-driver none --subnet 10.1.0.0/24 n",
        "takes no subnets",
    ),
    (
        "--subnet 10.1.0.9/24 n",
        "invalid subnet 10.1.0.9/24: it should be 10.1.0.0/24",
    ),
    ("--subnet 10.1.0.0 n", "invalid CIDR address: 10.1.0.0"),
    ("--subnet 10.1.0.0/32 n", "has no room"),
    ("--subnet 127.0.0.0/16 n", "127.0.0.0/8"),
    (
        "--subnet 0.0.0.0/4 n",
        "all predefined address pools have been fully subnetted",
    ),
    (
        "--subnet 10.1.0.0/24 --subnet 10.1.0.0/25 n",
        "multiple overlapping subnet configuration is not supported",
    ),
    (
        "--ip-range 10.1.0.0/25 n",
        "every ip-range or gateway must have a corresponding subnet",
    ),
    (
        "--gateway 10.1.0.1 n",
        "every ip-range or gateway must have a corresponding subnet",
    ),
    (
        "--subnet 10.1.0.0/24 --gateway 10.1.0.255 n",
        "invalid gateway 10.1.0.255",
    ),
    (
        "--aux-address a=10.1.0.1 n",
        "no matching subnet for aux-address 10.1.0.1",
    ),
    (
        "--subnet 10.1.0.0/24 --gateway 10.1.0.1 --aux-address a=10.1.0.1 n",
        "Address already in use",
    ),
    ("--ipv4=false n", "IPv4 or IPv6 must be enabled"),
    ("--ipv4=false --subnet 10.1.0.0/24 n", "--ipv4=false"),
    (
        "--mtu 67 n",
        "invalid value \"67\" for option com.docker.network.driver.mtu",
    ),
    ("--mtu 1279 --ipv6 n", "IPv6 needs an MTU of at least 1280"),
    (
        "-o com.docker.network.bridge.enable_icc=maybe n",
        "not true or false",
    ),
    (
        "-o com.docker.network.bridge.name=sixteen-letters- n",
        "invalid value",
    ),
    (
        "-o com.docker.network.bridge.gateway_mode_ipv4=nosuch n",
        "expected nat, nat-unprotected, routed, isolated",
    ),
    ("-o =x n", "invalid option \"=x\""),
    ("--label = n", "invalid label \"=\""),
    ("--route 10.0.0.0/8 n", "invalid route"),
    (
        "--route 10.0.0.0/8,192.0.2.1 n",
        "is in no subnet of the network",
    ),
    (
        "-o com.docker.network.bridge.name=lo n",
        "already exists but is not a bridge",
    ),
    ("--pools /dev/full n", "read the pools in /dev/full"),
];

#[test]
fn wrong_options_are_refused_and_nothing_is_left() {
    beyond_peer(WHY, || {
        let node = Node::new();
        let snapshot = node.sandbox.snapshot();
        for (words, text) in REFUSED {
            let words: Vec<_> = words.split(' ').collect();
            bad(&node.network(&[&["create"], &words[..]].concat()), text);
        }
        let long = "n".repeat(200);
        bad(
            &node.network(&["create", &long]),
            "longer than 174 characters",
        );
        bad(
            &node.network(&["create", ""]),
            "network name cannot be empty",
        );
        assert_eq!(node.files(), [""; 0]);
        snapshot.assert_unchanged();
    });
}

#[test]
fn all_faults_are_reported_at_once() {
    beyond_peer(WHY, || {
        let node = Node::new();
        let words = [
            "create",
            "--subnet",
            "10.1.0.1/24",
            "--mtu",
            "1",
            "-d",
            "x",
            "--label",
            "=",
            "-o",
            "icc=x",
            "a/b",
        ];
        let done = node.network(&words);
        for text in [
            "a/b",
            "10.1.0.0/24",
            "mtu",
            "\"x\" not found",
            "label",
            "icc",
        ] {
            bad(&done, text);
        }
        assert_eq!(done.stderr.lines().count(), 1, "{done:?}");
        let done = node.network(&[&["--json"], &words[..]].concat());
        assert!(
            done.stdout.contains("\"msg\": \"invalid network config: "),
            "{done:?}"
        );
    });
}

#[test]
fn hostile_labels_and_names_stay_data() {
    beyond_peer(WHY, || {
        let node = Node::new();
        let label = "k\"};{{.Name}}\n$(id)=v='\u{1b}[31m";
        node.create(&["--label", label, "n"]);
        let labels = &node.inspect("n")["Labels"];
        let (key, value) = label.split_once('=').expect("a pair");
        assert_eq!(labels[key], value);
        for word in ["../n", "n/../n", "", "*", "{{.}}", "-n"] {
            bad(&node.network(&["inspect", "--", word]), "not found");
            bad(&node.network(&["rm", "--", word]), "not found");
        }
        let template = node.network(&["ls", "--format", "{{.Nosuch}}"]);
        bad(&template, "Nosuch");
        bad(
            &node.network(&["ls", "--format", "{{"]),
            "template parsing error",
        );
        bad(
            &node.network(&["ls", "--filter", "color=red"]),
            "invalid filter 'color'",
        );
        bad(&node.network(&["ls", "--filter", "name"]), "invalid filter");
        bad(
            &node.network(&["prune", "-f", "--filter", "until=soon"]),
            "invalid filter 'until=soon'",
        );
        good(&node.network(&["inspect", "n"]));
    });
}

#[test]
fn other_things_in_the_directory_are_named() {
    beyond_peer(WHY, || {
        let node = Node::new();
        node.sh("mkfifo net.d/10-pipe.conflist; : >net.d/20-empty.conflist; echo '{' >net.d/30-half.conf; ln -s nowhere net.d/40-link.json");
        let done = node.network(&["create", "n"]);
        assert_eq!(done.code, 0, "{done:?}");
        for file in [
            "10-pipe.conflist",
            "20-empty.conflist",
            "30-half.conf",
            "40-link.json",
        ] {
            assert!(done.stderr.contains(file), "{file}: {done:?}");
        }
        let listed = node.network(&["ls", "-q", "--filter", "name=^n$"]);
        assert_eq!(
            (listed.code, listed.stdout.lines().count()),
            (0, 1),
            "{listed:?}"
        );
        assert_eq!(node.network(&["rm", "n"]).code, 0);
        node.sh("rm -rf net.d; echo x >net.d");
        bad(&node.network(&["create", "n"]), "net.d");
        bad(&node.network(&["ls"]), "net.d");
    });
}
