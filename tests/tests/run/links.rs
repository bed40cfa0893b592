//! `podwire run --link`: names, and ports of networks that keep containers apart.

use sandbox::{NO_ANSWER, Netns, beyond_peer};

use crate::{Node, WHY, fails};

/// The network namespace of a container.
fn container(node: &Node, name: &str) -> Netns {
    let process = node.sandbox.read(format!("/run/podwire/run/{name}/pid"));
    let process = process.unwrap_or_else(|| panic!("{name} does not run"));
    let path = format!("/proc/{}/ns/net", process.trim());
    node.sandbox.pod_at(name, &path)
}

fn run(node: &Node, name: &str, network: &str, options: &[&str]) -> Netns {
    let words = ["run", "-d", "--name", name, "--network", network];
    let command = ["--", "sleep", "1000"];
    node.must(&[&words[..], options, &command[..]].concat());
    container(node, name)
}

#[test]
fn a_link_opens_the_exposed_ports_of_one_container_to_another() {
    beyond_peer(WHY, || {
        let node = Node::new();
        let subnets = ["--subnet", "10.5.0.0/24", "--subnet", "fd05::/64"];
        let create = ["network", "create", "--icc=false", "--ipv6"];
        node.must(&[&create[..], &subnets[..], &["apart"]].concat());
        let db = run(&node, "db", "apart", &["--expose", "80"]);
        let _servers = [80, 81].map(|port| db.serve(port));
        let web = run(&node, "web", "apart", &["--link", "db:sql"]);
        let other = run(&node, "other", "apart", &[]);
        for ip in ["10.5.0.2", "fd05::2"] {
            assert!(web.ask("tcp", ip, 80).starts_with("db sees"), "{ip}");
            assert_eq!(web.ask("tcp", ip, 81), NO_ANSWER);
            assert_eq!(other.ask("tcp", ip, 80), NO_ANSWER);
        }
        let hosts = node.must(&["exec", "web", "cat", "/etc/hosts"]);
        assert!(hosts.contains("10.5.0.2\tsql "), "{hosts}");
        assert!(hosts.contains("fd05::2\tsql "), "{hosts}");
        let links = || node.host().sh("nft list set ip podwire_access links");
        assert!(links().contains("10.5.0.3 . 10.5.0.2 . tcp . 80"));
        node.must(&["stop", "-t", "0", "db"]);
        assert!(!links().contains("10.5.0.2"), "{}", links());
        node.must(&["stop", "-t", "0", "web", "other"]);
        node.must(&["network", "rm", "apart"]);
        node.assert_clean();
    });
}

#[test]
fn connect_links_a_running_container() {
    beyond_peer(WHY, || {
        let node = Node::new();
        let subnet = ["--subnet", "10.5.0.0/24", "apart"];
        node.must(&[&["network", "create", "--icc=false"], &subnet[..]].concat());
        let db = run(&node, "db", "apart", &["--expose", "80"]);
        let _server = db.serve(80);
        let web = run(&node, "web", "n", &[]);
        let link = ["network", "connect", "--link"];
        let done = node.podwire(&[&link[..], &["web:x", "apart", "db"]].concat());
        fails(&done, 1, "endpoint with name db already exists");
        node.must(&[&link[..], &["db:sql", "apart", "web"]].concat());
        assert!(web.ask("tcp", "10.5.0.2", 80).starts_with("db sees"));
        let hosts = || node.must(&["exec", "web", "cat", "/etc/hosts"]);
        assert!(hosts().contains("10.5.0.2\tsql "), "{}", hosts());
        node.must(&["network", "disconnect", "apart", "web"]);
        assert!(!hosts().contains("10.5.0."), "{}", hosts());
        let links = node.host().sh("nft list set ip podwire_access links");
        assert!(!links.contains("10.5.0.2"), "{links}");
        // A namespace has no /etc/hosts of podwire, and the network n isolates no pods.
        let pod = node.sandbox.pod("blue");
        let done = node.podwire(&[&link[..], &["web:x", "n", &pod.path()]].concat());
        fails(&done, 1, "a link without effect");
        node.must(&["stop", "-t", "0", "db", "web"]);
        node.must(&["network", "rm", "apart"]);
        node.assert_clean();
    });
}

#[test]
fn a_link_needs_a_container_that_runs_in_the_network() {
    beyond_peer(WHY, || {
        let node = Node::new();
        run(&node, "web", "n", &[]);
        for (network, link, text) in [
            ("n", "nobody", "could not get container for nobody"),
            ("n", "web:a b", "bad format for links: web:a b"),
            ("m", "web", "as it does not belong to the network m"),
            ("host", "web", "links are only supported for user-defined"),
            ("container:web", "web", "can't be used with links"),
        ] {
            let done = node.podwire(&["run", "--network", network, "--link", link, "true"]);
            fails(&done, 125, text);
        }
        let names = ["run", "--network", "n", "--link", "web:www", "--"];
        let getent = ["getent", "hosts", "www"];
        let found = node.must(&[&names[..], &getent[..]].concat());
        assert!(found.contains("www"), "{found}");
        node.must(&["stop", "-t", "0", "web"]);
        node.assert_clean();
    });
}
