use std::thread;

use crate::add_pod;
use netlink::{Netlink, OperState};
use nix::errno::Errno;

use sandbox::here::{attempt, enter, has_flag, json, link, pod_link, run};

#[test]
fn a_link_is_read_as_ip_reads_it() {
    enter();
    add_pod("pod");
    run("ip link add host0 mtu 1400 type veth peer name eth0 netns pod");
    run("ip link set host0 up promisc on alias ours");
    run("ip -n pod link set eth0 up");
    let ours = Netlink::open().unwrap().get_link("host0").unwrap();
    let theirs = link("host0");
    assert_eq!(ours.index, theirs["ifindex"]);
    assert_eq!(ours.name, "host0");
    assert_eq!(ours.mac.unwrap().to_string(), theirs["address"]);
    assert_eq!(ours.mtu, 1400);
    assert!(ours.is_kind("veth"));
    assert_eq!(ours.link.unwrap(), pod_link("pod", "eth0")["ifindex"]);
    assert_eq!(ours.link_netnsid.unwrap(), theirs["link_netnsid"]);
    assert!(ours.up && ours.promisc);
    // Kernels before 6.9 report it a moment later.
    assert_eq!(ours.operstate, OperState::Up);
    assert_eq!(ours.alias.as_deref(), Some("ours"));
    assert_eq!(ours.master, None);
    assert_eq!(ours.port, None);
    let lo = Netlink::open().unwrap().get_link("lo").unwrap();
    assert_eq!((lo.kind, lo.operstate), (None, OperState::Unknown));
}

#[test]
fn an_absent_link_is_none_or_not_found() {
    enter();
    let netlink = Netlink::open().unwrap();
    assert_eq!(netlink.find_link("nope").unwrap(), None);
    assert_eq!(netlink.find_link("sixteen-letters-").unwrap(), None);
    assert_eq!(netlink.find_link_by_index(4711).unwrap(), None);
    let error = netlink.get_link("nope").unwrap_err();
    assert_eq!(error.to_string(), "find link nope: Link not found");
    assert!(error.is_not_found());
    netlink.delete_link("nope").unwrap();
    netlink.delete_link("sixteen-letters-").unwrap();
    let error = netlink.set_up(4711).unwrap_err();
    assert_eq!(error.to_string(), "set link 4711 up: no such device (19)");
}

#[test]
fn every_change_is_seen_by_ip() {
    enter();
    run("ip link add a0 type veth peer name b0");
    run("ip link add br0 type bridge");
    let netlink = Netlink::open().unwrap();
    let index = netlink.get_link("a0").unwrap().index;
    let bridge = netlink.get_link("br0").unwrap().index;

    netlink.set_up(index).unwrap();
    netlink.set_mtu(index, 9000).unwrap();
    netlink
        .set_mac(index, "02:00:00:00:00:07".parse().unwrap())
        .unwrap();
    netlink.set_alias(index, "owner/eth0").unwrap();
    netlink.set_promisc(index, true).unwrap();
    netlink.set_allmulti(index, true).unwrap();
    netlink.set_tx_queue_len(index, 7).unwrap();
    netlink.set_master(index, bridge).unwrap();
    let seen = link("a0");
    assert!(has_flag(&seen, "UP"));
    assert_eq!(seen["mtu"], 9000);
    assert_eq!(seen["address"], "02:00:00:00:00:07");
    assert_eq!(seen["ifalias"], "owner/eth0");
    assert_eq!(seen["master"], "br0");
    assert_eq!(seen["txqlen"], 7);
    assert!(has_flag(&seen, "PROMISC") && has_flag(&seen, "ALLMULTI"));
    let read = netlink.get_link("a0").unwrap();
    assert_eq!(
        (read.promisc, read.allmulti, read.tx_queue_len),
        (true, true, 7)
    );

    netlink.set_promisc(index, false).unwrap();
    netlink.set_allmulti(index, false).unwrap();
    let seen = link("a0");
    assert!(!has_flag(&seen, "PROMISC") && !has_flag(&seen, "ALLMULTI"));
    netlink.set_down(index).unwrap();
    netlink.rename(index, "eth0.5").unwrap();
    let seen = link("eth0.5");
    assert!(!has_flag(&seen, "UP"));

    netlink.delete_link("eth0.5").unwrap();
    assert!(!attempt("ip link show dev eth0.5").status.success());
    assert!(!attempt("ip link show dev b0").status.success());
}

#[test]
fn the_kernels_refusal_keeps_its_errno() {
    enter();
    run("ip link add a0 type veth peer name b0");
    let netlink = Netlink::open().unwrap();
    let index = netlink.get_link("a0").unwrap().index;
    let error = netlink.set_mtu(index, 70000).unwrap_err();
    assert_eq!(error.errno(), Errno::EINVAL);
    assert_eq!(
        error.to_string(),
        "set a0 mtu 70000: invalid argument (22): mtu greater than device maximum"
    );
    let error = netlink.rename(index, "b0").unwrap_err();
    assert!(error.is_exists());
    let error = netlink.rename(index, "sixteen-letters-").unwrap_err();
    assert_eq!(error.reason(), "numerical result out of range");
    // The socket still works.
    assert_eq!(netlink.get_link("a0").unwrap().index, index);
}

#[test]
fn a_socket_opened_inside_works_from_outside() {
    enter();
    let pod = add_pod("pod");
    run("ip -n pod link add only-here type veth peer name other");
    let (host, inside) = (Netlink::open().unwrap(), Netlink::open_in(&pod).unwrap());
    assert_eq!(host.find_link("only-here").unwrap(), None);
    let index = inside.get_link("only-here").unwrap().index;
    inside.clone().set_up(index).unwrap();
    assert!(has_flag(&pod_link("pod", "only-here"), "UP"));
}

/// Enough pairs for a list of many datagrams.
fn crowd(pairs: u32) {
    let batch: String = (0..pairs)
        .map(|n| format!("link add a{n} type veth peer name b{n}\n"))
        .collect();
    std::fs::write("/run/batch", batch).unwrap();
    run("ip -batch /run/batch");
}

#[test]
fn a_long_list_is_complete() {
    enter();
    crowd(200);
    let mut ours: Vec<String> = Netlink::open()
        .unwrap()
        .list_links()
        .unwrap()
        .into_iter()
        .map(|link| link.name)
        .collect();
    let seen = json("ip -j link show");
    let mut theirs: Vec<String> = seen
        .as_array()
        .unwrap()
        .iter()
        .map(|link| link["ifname"].as_str().unwrap().to_owned())
        .collect();
    ours.sort();
    theirs.sort();
    assert_eq!(ours.len(), 401);
    assert_eq!(ours, theirs);
}

#[test]
fn a_list_that_changes_during_the_dump_has_what_stays() {
    enter();
    crowd(100);
    thread::scope(|scope| {
        // A thread starts in the namespaces of its parent.
        let churn = scope.spawn(|| {
            for _ in 0..3 {
                run("ip link add x0 type veth peer name x1");
                run("ip link del x0");
            }
        });
        let netlink = Netlink::open().unwrap();
        while !churn.is_finished() {
            let mut names: Vec<String> = netlink
                .list_links()
                .unwrap()
                .into_iter()
                .map(|link| link.name)
                .filter(|name| name.starts_with('a') || name.starts_with('b'))
                .collect();
            names.sort();
            names.dedup();
            assert_eq!(names.len(), 200);
        }
    });
}
