use crate::add_pod;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use cni::Undo;
use netlink::{LinkKind, LinkSpec, Mac, MacvlanMode, Netlink, find_conflict};
use netns::NetNs;

use sandbox::here::{attempt, enter, has_flag, pod_link, run};

const MAC: Mac = Mac([2, 0, 0, 0, 7, 1]);

/// A segment: `up0` of the host, and the namespace `far` at its other end.
fn wire() {
    add_pod("far");
    run("ip link add up0 type veth peer name eth0 netns far");
    run("ip link set up0 up");
    run("ip -n far link set eth0 up");
}

fn spec() -> LinkSpec {
    LinkSpec {
        name: "net1".into(),
        temporary: "veth1a2b3c4d".into(),
        parent: Some(Netlink::open().unwrap().get_link("up0").unwrap().index),
        mtu: Some(1400),
        mac: Some(MAC),
        kind: LinkKind::Macvlan {
            mode: MacvlanMode::Bridge,
            bc_queue_len: Some(77),
        },
    }
}

fn add(pod: &NetNs, spec: &LinkSpec, undo: &mut Undo) -> anyhow::Result<()> {
    Netlink::open().unwrap().add_link(spec, pod, undo)
}

#[test]
fn it_is_created_in_the_pod_with_all_settings() {
    enter();
    wire();
    let pod = add_pod("pod");
    let mut undo = Undo::new();
    add(&pod, &spec(), &mut undo).unwrap();
    undo.forget();
    let link = pod_link("pod", "net1");
    assert_eq!(link["address"], MAC.to_string());
    assert_eq!(link["mtu"], 1400);
    assert!(!has_flag(&link, "UP"));
    assert_eq!(link["linkinfo"]["info_kind"], "macvlan");
    let data = &link["linkinfo"]["info_data"];
    assert_eq!(
        (&data["mode"], &data["bcqueuelen"]),
        (&"bridge".into(), &77.into())
    );
    // NET_ADDR_SET: udev does not change it.
    let kind = "ip netns exec pod cat /sys/class/net/net1/addr_assign_type";
    assert_eq!(run(kind), "3\n");

    let read = Netlink::open_in(&pod).unwrap().get_macvlan("net1").unwrap();
    let read = read.unwrap();
    assert_eq!((read.mode.as_str(), read.link.mac), ("bridge", Some(MAC)));
    assert_eq!(read.link.link, spec().parent);
    assert!(read.link.link_netnsid.is_some());
}

#[test]
fn a_name_that_the_host_has_too_is_free_in_the_pod() {
    enter();
    wire();
    let pod = add_pod("pod");
    let spec = LinkSpec {
        name: "up0".into(),
        ..spec()
    };
    add(&pod, &spec, &mut Undo::new()).unwrap();
    assert_eq!(pod_link("pod", "up0")["linkinfo"]["info_kind"], "macvlan");
}

#[test]
fn a_name_that_the_pod_has_is_taken() {
    enter();
    wire();
    let pod = add_pod("pod");
    run("ip -n pod link add net1 type bridge");
    let error = add(&pod, &spec(), &mut Undo::new()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "failed to rename macvlan to \"net1\": file exists"
    );
    assert_eq!(pod_link("pod", "net1")["linkinfo"]["info_kind"], "bridge");
    assert!(!run("ip -n pod link").contains("veth"));
}

#[test]
fn undo_deletes_it() {
    enter();
    wire();
    let pod = add_pod("pod");
    let mut undo = Undo::new();
    add(&pod, &spec(), &mut undo).unwrap();
    assert!(undo.roll_back().is_empty());
    assert!(!attempt("ip -n pod link show net1").status.success());
}

#[test]
fn undo_spares_a_link_that_had_the_name_before() {
    enter();
    wire();
    let pod = add_pod("pod");
    let passthru = LinkSpec {
        mac: None,
        kind: LinkKind::Macvlan {
            mode: MacvlanMode::Passthru,
            bc_queue_len: None,
        },
        ..spec()
    };
    add(&pod, &passthru, &mut Undo::new()).unwrap();
    // The kernel checks the parent before the name.
    for again in [passthru, spec()] {
        let mut undo = Undo::new();
        add(&pod, &again, &mut undo).unwrap_err();
        assert!(undo.roll_back().is_empty());
        run("ip -n pod link show net1");
    }
}

#[test]
fn only_a_macvlan_is_deleted_as_one() {
    enter();
    let pod = add_pod("pod");
    run("ip -n pod link add net1 type bridge");
    let netlink = Netlink::open_in(&pod).unwrap();
    netlink.delete_link_of_kind("net1", "macvlan").unwrap();
    netlink.delete_link_of_kind("nope", "macvlan").unwrap();
    run("ip -n pod link show net1");
    assert_eq!(netlink.get_macvlan("net1").unwrap(), None);
    assert!(netlink.get_macvlan("nope").unwrap_err().is_not_found());
}

#[test]
fn a_parent_has_a_carrier_and_a_hardware_type() {
    enter();
    wire();
    let netlink = Netlink::open().unwrap();
    let parent = |name: &str| netlink.find_parent(name).unwrap().unwrap();
    assert!(parent("up0").carrier && parent("up0").ethernet);
    assert!(!parent("lo").ethernet);
    run("ip -n far link set eth0 down");
    assert!(parent("up0").link.up && !parent("up0").carrier);
    run("ip link add br0 type bridge");
    assert!(!parent("br0").link.up && parent("br0").carrier);
    assert_eq!(netlink.find_parent("nope").unwrap(), None);
    assert_eq!(
        netlink.find_parent("a-name-too-long-for-a-link").unwrap(),
        None
    );
    assert_eq!(netlink.list_parents().unwrap().len(), 3);
}

/// A pod on the wire, whose far end has 10.1.0.7 and fd00:1::7.
fn probing_pod() -> NetNs {
    enter();
    wire();
    run("ip -n far addr add 10.1.0.7/24 dev eth0");
    run("ip -n far addr add fd00:1::7/64 dev eth0 nodad");
    let pod = add_pod("pod");
    add(&pod, &spec(), &mut Undo::new()).unwrap();
    pod
}

fn conflict(pod: &NetNs, addresses: &[&str]) -> Option<String> {
    let addresses: Vec<IpAddr> = addresses.iter().map(|it| it.parse().unwrap()).collect();
    let found = find_conflict(pod, "net1", &addresses).unwrap();
    found.map(|conflict| conflict.to_string())
}

fn far_mac() -> String {
    let mac = pod_link("far", "eth0")["address"].clone();
    mac.as_str().unwrap().to_owned()
}

#[test]
fn a_conflict_is_found_at_once() {
    let pod = probing_pod();
    for taken in ["10.1.0.7", "fd00:1::7"] {
        let start = Instant::now();
        let found = conflict(&pod, &["10.1.0.8", "fd00:1::8", taken]);
        assert_eq!(found, Some(format!("{taken} is used by {}", far_mac())));
        // Before all three probes are sent; the first may be lost on a link that does not forward yet.
        assert!(start.elapsed() < Duration::from_millis(600));
    }
}

#[test]
fn free_addresses_are_reported_after_600_ms() {
    let pod = probing_pod();
    let start = Instant::now();
    assert_eq!(conflict(&pod, &["10.1.0.8", "fd00:1::8"]), None);
    assert!(start.elapsed() >= Duration::from_millis(600));
    assert!(start.elapsed() < Duration::from_secs(5));
    // No neighbour table has changed.
    assert!(!run("ip -n far neighbour").contains("10.1.0.8"));
}

#[test]
fn of_two_that_probe_at_once_one_gets_it_at_most() {
    let pod = probing_pod();
    let other = add_pod("other");
    let twin = LinkSpec {
        mac: Some(Mac([2, 0, 0, 0, 7, 2])),
        ..spec()
    };
    add(&other, &twin, &mut Undo::new()).unwrap();
    let other_probe = std::thread::spawn(move || conflict(&other, &["fd00:1::9", "10.1.0.9"]));
    let found = conflict(&pod, &["fd00:1::9", "10.1.0.9"]);
    assert!(found.is_some() || other_probe.join().unwrap().is_some());
}

#[test]
fn a_link_without_a_carrier_cannot_be_probed() {
    enter();
    wire();
    run("ip -n far link set eth0 down");
    let pod = add_pod("pod");
    add(&pod, &spec(), &mut Undo::new()).unwrap();
    let error = find_conflict(&pod, "net1", &["10.1.0.8".parse().unwrap()]).unwrap_err();
    assert!(error.to_string().contains("has no carrier"), "{error}");
}
