use crate::add_pod;
use cni::Undo;
use netlink::{Mac, Netlink, VethSpec};

use sandbox::here::{attempt, enter, has_flag, link, pod_link, run};

const HOST_MAC: Mac = Mac([2, 0, 0, 0, 1, 1]);
const POD_MAC: Mac = Mac([2, 0, 0, 0, 1, 2]);

pub fn spec() -> VethSpec {
    VethSpec {
        host_name: "veth1a2b3c4d".into(),
        host_mac: HOST_MAC,
        container_name: "eth0".into(),
        container_mac: POD_MAC,
        mtu: None,
        master: None,
    }
}

fn add(spec: &VethSpec, undo: &mut Undo) -> anyhow::Result<netlink::VethPair> {
    let pod = add_pod("pod");
    Netlink::open().unwrap().add_veth(spec, &pod, undo)
}

#[test]
fn the_pods_end_is_created_in_the_pod() {
    enter();
    let mut undo = Undo::new();
    let spec = VethSpec {
        mtu: Some(9000),
        ..spec()
    };
    let pair = add(&spec, &mut undo).unwrap();
    let (host, pod) = (link("veth1a2b3c4d"), pod_link("pod", "eth0"));
    assert_eq!(host["address"], HOST_MAC.to_string());
    assert_eq!(pod["address"], POD_MAC.to_string());
    assert_eq!((&host["mtu"], &pod["mtu"]), (&9000.into(), &9000.into()));
    assert!(!has_flag(&host, "UP") && !has_flag(&pod, "UP"));
    assert_eq!(host["txqlen"], 1000);
    assert_eq!(pair.host.index, host["ifindex"]);
    assert_eq!(pair.container.index, pod["ifindex"]);
    assert_eq!(pair.container.mtu, 9000);
    undo.forget();
}

#[test]
fn udev_does_not_change_the_addresses() {
    enter();
    add(&spec(), &mut Undo::new()).unwrap();
    // NET_ADDR_SET: udev's MACAddressPolicy does not apply.
    let kind = "cat /sys/class/net";
    assert_eq!(run(&format!("{kind}/veth1a2b3c4d/addr_assign_type")), "3\n");
    let inside = format!("ip netns exec pod {kind}/eth0/addr_assign_type");
    assert_eq!(run(&inside), "3\n");
}

#[test]
fn undo_deletes_the_pair() {
    enter();
    let mut undo = Undo::new();
    add(&spec(), &mut undo).unwrap();
    assert_eq!(undo.roll_back(), Vec::<String>::new());
    assert!(!attempt("ip link show dev veth1a2b3c4d").status.success());
    assert!(!attempt("ip -n pod link show dev eth0").status.success());
}

#[test]
fn undo_succeeds_when_the_pair_is_gone() {
    enter();
    let mut undo = Undo::new();
    add(&spec(), &mut undo).unwrap();
    run("ip netns delete pod");
    run("ip link delete veth1a2b3c4d");
    assert_eq!(undo.roll_back(), Vec::<String>::new());
}

#[test]
fn it_can_be_created_as_a_port() {
    enter();
    run("ip link add cni0 type bridge");
    let bridge = Netlink::open().unwrap().get_link("cni0").unwrap();
    let spec = VethSpec {
        master: Some(bridge.index),
        ..spec()
    };
    let pair = add(&spec, &mut Undo::new()).unwrap();
    assert_eq!(link("veth1a2b3c4d")["master"], "cni0");
    assert_eq!(pair.host.master, Some(bridge.index));
}

#[test]
fn a_taken_name_in_the_pod_is_reported_as_in_go() {
    enter();
    let pod = add_pod("pod");
    run("ip -n pod link add eth0 type veth peer name other");
    let mut undo = Undo::new();
    let error = Netlink::open()
        .unwrap()
        .add_veth(&spec(), &pod, &mut undo)
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        r#"container veth name ("eth0") peer provided ("veth1a2b3c4d") already exists"#
    );
    assert!(!attempt("ip link show dev veth1a2b3c4d").status.success());
    // Nothing was created, so nothing may be undone: the pod's own link stays.
    assert!(undo.roll_back().is_empty());
    pod_link("pod", "eth0");
}

#[test]
fn a_taken_name_on_the_host_is_an_error_of_existence() {
    enter();
    run("ip link add veth1a2b3c4d type veth peer name other");
    let mut undo = Undo::new();
    let error = add(&spec(), &mut undo).unwrap_err();
    assert_eq!(error.to_string(), "add veth veth1a2b3c4d: file exists (17)");
    assert!(error.downcast_ref::<netlink::Error>().unwrap().is_exists());
    assert!(undo.roll_back().is_empty());
    link("veth1a2b3c4d");
    assert!(!attempt("ip -n pod link show dev eth0").status.success());
}

#[test]
fn the_kernel_refuses_a_bad_mtu() {
    enter();
    let spec = VethSpec {
        mtu: Some(70000),
        ..spec()
    };
    let error = add(&spec, &mut Undo::new()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "add veth veth1a2b3c4d: invalid argument (22)"
    );
}
