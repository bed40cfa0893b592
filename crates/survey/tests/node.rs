//! The survey of a real node, compared with what `ip` made.

#![allow(missing_docs)]

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use sandbox::here::{add_pod, enter, run};
use serde_json::json;
use survey::{Home, OtherEnd, Place, Sources, Survey};

fn take() -> Survey {
    let sources = Sources {
        conf_dir: "/run/net.d".into(),
        cache_dir: "/var/lib/cni".into(),
    };
    Survey::take(&sources).expect("a survey")
}

/// A pod on bridge `br0`, with the interface `veth-NAME` on the node.
fn attach(name: &str) {
    add_pod(name);
    run(&format!(
        "ip link add veth-{name} type veth peer name eth0 netns {name}"
    ));
    run(&format!("ip link set veth-{name} master br0 up"));
    run(&format!("ip -n {name} link set eth0 up"));
}

fn cache(id: &str, netns: &str) {
    let dir = Path::new("/var/lib/cni/results");
    fs::create_dir_all(dir).expect("a directory");
    let document = json!({
        "kind": "cniCacheV1", "containerId": id, "ifName": "eth0", "networkName": "net",
        "netns": netns, "cniArgs": [["K8S_POD_NAME", "web"]],
        "result": {"cniVersion": "1.0.0", "interfaces": [
            {"name": "br0"}, {"name": format!("veth-{id}")},
            {"name": "eth0", "sandbox": netns}],
            "ips": [{"address": "10.1.0.2/24", "interface": 2}]},
    });
    fs::write(dir.join(format!("net-{id}-eth0")), document.to_string()).expect("a file");
}

#[test]
fn both_ends_of_a_veth_are_found_and_its_attachment() {
    enter();
    run("ip link add br0 type bridge");
    attach("a");
    attach("b");
    run("ip link set veth-b alias podwire:net/b/eth0");
    run("ip -n b link set eth0 name hidden");
    run("ip -n a addr add 10.1.0.2/24 dev eth0");
    cache("a", "/run/netns/a");
    cache("gone", "/run/netns/gone");
    let survey = take();
    assert_eq!(survey.unread, []);
    assert_eq!(survey.namespaces.len(), 3);
    let [a, b, gone] = &survey.attachments[..] else {
        panic!("{:?}", survey.attachments);
    };
    assert_eq!(gone.home, Home::Gone("/run/netns/gone".into()));
    assert_eq!((a.pod_name(), b.pod_name()), (Some("web"), None));
    assert!(a.cached.is_some() && b.cached.is_none());
    // The Go plugins' interface is known by the result, podwire's by its alias, whatever the pod
    // calls its own.
    for (at, attachment, name) in [(0, a, "veth-a"), (1, b, "veth-b")] {
        let outside = survey
            .interface(attachment.outside.expect("an interface"))
            .expect("one");
        assert_eq!(outside.link.name, name);
        assert_eq!(outside.owned.as_ref().map(|it| it.attachment), Some(at));
        let inside = attachment.inside.expect("an interface in the pod");
        assert_eq!(outside.other_end, Some(OtherEnd::At(inside)));
        let end = survey.interface(inside).expect("one").other_end;
        let place = Place {
            namespace: 0,
            index: outside.link.index,
        };
        assert_eq!(end, Some(OtherEnd::At(place)));
        assert_eq!(attachment.home, Home::At(inside.namespace));
    }
    let inside = survey.interface(a.inside.expect("one")).expect("one");
    let addresses = inside.addresses.iter().map(|it| it.address.to_string());
    assert!(
        addresses
            .collect::<Vec<_>>()
            .contains(&"10.1.0.2/24".into())
    );
    let bridge = survey.node().named("br0").expect("a bridge");
    assert_eq!(survey.node().ports(bridge.link.index).count(), 2);
}

#[test]
fn a_namespace_without_a_name_is_found_by_its_process() {
    enter();
    run("ip link add br0 type bridge");
    attach("a");
    let mut held = sandbox::here::command("ip netns exec a sleep 60")
        .spawn()
        .expect("a process");
    let path = format!("/proc/{}/ns/net", held.id());
    let inode = |path: &str| fs::metadata(path).expect("a namespace").ino();
    while inode(&path) != inode("/run/netns/a") {
        std::thread::yield_now();
    }
    run("umount /run/netns/a");
    fs::write("/run/netns/plain", "").expect("a file");
    let found = take();
    assert_eq!(found.namespaces.len(), 2);
    assert_eq!(found.namespaces[1].paths, [Path::new(&path)]);
    let veth = found.node().named("veth-a").expect("a veth");
    assert!(matches!(veth.other_end, Some(OtherEnd::At(place)) if place.namespace == 1));
    assert!(found.vacant.contains(&"/run/netns/plain".into()));
    held.kill().expect("kill");
    held.wait().expect("wait");
}

#[test]
fn reservations_are_assigned_by_their_owner() {
    enter();
    cache("a", "/run/netns/a");
    let dir = Path::new("/var/lib/cni/networks/net");
    fs::create_dir_all(dir).expect("a directory");
    for (ip, content) in [
        ("10.1.0.2", "a\r\neth0"),
        ("10.1.0.3", "a\r\neth1"),
        ("10.1.0.4", "a"),
        ("10.1.0.5", "other\r\neth0"),
        ("last_reserved_ip.0", "10.1.0.5"),
    ] {
        fs::write(dir.join(ip), content).expect("a file");
    }
    let survey = take();
    let reserved: Vec<_> = survey.attachments[0]
        .reserved
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(reserved, ["10.1.0.2", "10.1.0.4"]);
    let left: Vec<_> = survey
        .reservations
        .iter()
        .map(|it| it.address.to_string())
        .collect();
    assert_eq!(left, ["10.1.0.3", "10.1.0.5"]);
}
