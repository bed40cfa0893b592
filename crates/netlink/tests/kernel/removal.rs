use std::{fs, path::Path, thread::sleep, time::Duration};

use crate::add_pod;
use netlink::Netlink;

use sandbox::here::{attempt, enter, run};

fn is_there(name: &str) -> bool {
    attempt(&format!("ip link show dev {name}"))
        .status
        .success()
}

/// The children of this thread that are not reaped yet.
fn children() -> Vec<String> {
    let pids = fs::read_to_string("/proc/thread-self/children").unwrap();
    pids.split_whitespace().map(str::to_owned).collect()
}

#[test]
fn it_is_gone_on_return_and_its_name_is_free() {
    enter();
    let pod = add_pod("pod");
    let (host, inside) = (Netlink::open().unwrap(), Netlink::open_in(&pod).unwrap());
    for round in 0..40 {
        run("ip link add veth1 type veth peer name eth0 netns pod");
        run("ip link set veth1 up");
        run("ip -n pod link set eth0 up");
        match round % 2 {
            0 => host.delete_link("veth1").unwrap(),
            _ => inside.delete_link("eth0").unwrap(),
        }
        assert!(!is_there("veth1"), "{round}");
        assert!(!attempt("ip -n pod link show dev eth0").status.success());
    }
}

#[test]
fn a_port_has_left_its_bridge_and_the_node() {
    enter();
    run("ip link add cni0 type bridge");
    let host = Netlink::open().unwrap();
    for round in 0..20 {
        run("ip link add veth1 master cni0 type veth peer name veth2");
        run("ip link set veth1 up");
        host.delete_link("veth1").unwrap();
        assert!(!is_there("veth1"), "{round}");
        assert_eq!(run("ip link show master cni0"), "");
    }
}

#[test]
fn a_bridge_is_gone_on_return_with_its_addresses_and_routes() {
    enter();
    let host = Netlink::open().unwrap();
    for round in 0..10 {
        run("ip link add cni0 type bridge");
        run("ip link set cni0 up");
        run("ip addr add 10.1.0.1/24 dev cni0");
        run("ip addr add fd01::1/64 dev cni0 nodad");
        host.delete_link("cni0").unwrap();
        for shown in ["addr", "-4 route show table all", "-6 route show table all"] {
            let left = run(&format!("ip {shown}"));
            assert!(!left.contains("cni0"), "{round}: {left}");
        }
        assert!(!is_there("cni0"), "{round}");
    }
}

#[test]
fn the_kernels_refusal_is_reported() {
    enter();
    let error = Netlink::open().unwrap().delete_link("lo").unwrap_err();
    let text = "delete link lo: operation not supported (95)";
    assert_eq!(error.to_string(), text);
    assert!(is_there("lo"));
}

#[test]
fn the_socket_can_be_used_afterwards() {
    enter();
    let host = Netlink::open().unwrap();
    for number in 0..10 {
        run("ip link add veth1 type veth peer name veth2");
        host.delete_link("veth1").unwrap();
        assert_eq!(host.find_link("veth2").unwrap(), None);
        run(&format!(
            "ip link add veth3 mtu 14{number}0 type veth peer name veth4"
        ));
        // Events that arrived meanwhile are not taken for this answer.
        sleep(Duration::from_millis(number * 4));
        assert_eq!(
            host.get_link("veth3").unwrap().mtu,
            1400 + 10 * number as u32
        );
        assert_eq!(host.list_links().unwrap().len(), 3);
        host.delete_link("veth4").unwrap();
    }
}

#[test]
fn the_child_holds_nothing_that_others_wait_for() {
    enter();
    let mut seen = 0;
    for number in 0..20 {
        let name = format!("pod{number}");
        let pod = add_pod(&name);
        let inside = Netlink::open_in(&pod).unwrap();
        run(&format!(
            "ip link add veth1 type veth peer name eth0 netns {name}"
        ));
        inside.delete_link("eth0").unwrap();
        drop((pod, inside));
        for child in children() {
            let process = Path::new("/proc").join(&child);
            // It may end meanwhile.
            let held = fs::read_dir(process.join("fd"))
                .into_iter()
                .flatten()
                .flatten();
            for held in held.filter_map(|entry| fs::read_link(entry.path()).ok()) {
                let held = held.to_string_lossy().into_owned();
                let harmless = held.starts_with("socket:") || held.starts_with("pipe:");
                assert!(harmless, "{held}");
                seen += 1;
            }
            if let Ok(dir) = fs::read_link(process.join("cwd")) {
                assert_eq!(dir, Path::new("/"));
            }
        }
        run(&format!("ip netns delete {name}"));
    }
    assert!(seen > 0, "no child was seen alive");
}

#[test]
fn two_hundred_links_are_gone_and_their_children_are_reaped() {
    enter();
    let links: String = (0..200)
        .map(|n| format!("link add a{n} type veth peer name b{n}\n"))
        .collect();
    fs::write("/run/links", links).unwrap();
    run("ip -batch /run/links");
    let host = Netlink::open().unwrap();
    for number in 0..200 {
        host.delete_link(&format!("a{number}")).unwrap();
    }
    assert_eq!(host.list_links().unwrap().len(), 1);
    let buried = (0..100).any(|_| {
        sleep(Duration::from_millis(50));
        run("ip link add last type veth peer name tsal");
        host.delete_link("last").unwrap();
        children().len() <= 1
    });
    assert!(buried, "{:?}", children());
}
