use std::fs;

use netlink::{Family, Netlink};

use sandbox::here::{enter, run};

fn read(key: &str) -> String {
    fs::read_to_string(format!("/proc/sys/net/{key}")).unwrap()
}

/// Two uplinks, of which `up0` has a default route from a router advertisement.
fn two_uplinks() {
    enter();
    for (one, other) in [("up0", "peer0"), ("up1", "peer1")] {
        run(&format!("ip link add {one} type veth peer name {other}"));
        run(&format!("ip link set {one} up"));
        run(&format!("ip link set {other} up"));
    }
    run("ip -6 route add default via fe80::1 dev up0 proto ra metric 1024");
    run("ip -6 route add default via fe80::1 dev up1 proto static metric 2048");
    assert_eq!(read("ipv6/conf/up0/accept_ra"), "1\n");
}

#[test]
fn each_family_is_switched_on_alone() {
    two_uplinks();
    let netlink = Netlink::open().unwrap();
    fs::write("/proc/sys/net/ipv4/ip_forward", "0").unwrap();
    netlink.enable_forwarding(Family::V4).unwrap();
    assert_eq!(read("ipv4/ip_forward"), "1\n");
    assert_eq!(read("ipv6/conf/all/forwarding"), "0\n");
    netlink.enable_forwarding(Family::V6).unwrap();
    assert_eq!(read("ipv6/conf/all/forwarding"), "1\n");
    netlink.enable_forwarding(Family::V4).unwrap();
    netlink.enable_forwarding(Family::V6).unwrap();
}

#[test]
fn the_host_keeps_its_route_from_a_router_advertisement() {
    two_uplinks();
    Netlink::open()
        .unwrap()
        .enable_forwarding(Family::V6)
        .unwrap();
    assert_eq!(read("ipv6/conf/up0/accept_ra"), "2\n");
    assert_eq!(read("ipv6/conf/up1/accept_ra"), "1\n");
    assert!(run("ip -6 route show default dev up0").contains("proto ra"));
}

/// A router whose lifetime is 0 is not a default router, but announces prefixes.
#[test]
fn the_host_keeps_prefixes_and_routes_from_a_router() {
    for learned in [
        "route add 2001:db8:77::/48 via fe80::1 dev up1 proto ra",
        "route add 2001:db8:77::/64 dev up1 proto kernel expires 1000",
        "address add 2001:db8:77::5/64 dev up1 mngtmpaddr valid_lft 1000 preferred_lft 900",
    ] {
        two_uplinks();
        run(&format!("ip -6 {learned}"));
        let netlink = Netlink::open().unwrap();
        netlink.enable_forwarding(Family::V6).unwrap();
        assert_eq!(read("ipv6/conf/up1/accept_ra"), "2\n", "{learned}");
        assert_eq!(read("ipv6/conf/peer1/accept_ra"), "1\n", "{learned}");
    }
}

#[test]
fn a_host_that_forwards_is_not_changed() {
    two_uplinks();
    fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1").unwrap();
    run("ip -6 route replace default via fe80::1 dev up0 proto ra metric 1024");
    Netlink::open()
        .unwrap()
        .enable_forwarding(Family::V6)
        .unwrap();
    assert_eq!(read("ipv6/conf/up0/accept_ra"), "1\n");
}
