use std::{fs, net::Ipv6Addr};

use netlink::{AddressSpec, Family, Netlink};

use sandbox::here::{enter, json, run};

fn setup() -> (Netlink, u32) {
    enter();
    run("ip link add a0 type veth peer name b0");
    run("ip link set b0 up");
    run("ip link set a0 up");
    let netlink = Netlink::open().unwrap();
    let index = netlink.get_link("a0").unwrap().index;
    (netlink, index)
}

fn seen() -> Vec<serde_json::Value> {
    let link = json("ip -j address show dev a0");
    link[0]["addr_info"].as_array().unwrap().clone()
}

fn plain(address: &str) -> AddressSpec {
    AddressSpec::from(address.parse::<ipnetwork::IpNetwork>().unwrap())
}

#[test]
fn ipv4_gets_a_broadcast_address_where_there_is_room() {
    let (netlink, index) = setup();
    for address in ["10.1.2.3/24", "10.2.0.0/31", "10.3.0.1/32"] {
        netlink.add_address(index, &plain(address)).unwrap();
    }
    let find = |ip: &str| seen().into_iter().find(|it| it["local"] == ip).unwrap();
    let first = find("10.1.2.3");
    assert_eq!(first["prefixlen"], 24);
    assert_eq!(first["broadcast"], "10.1.2.255");
    assert_eq!(first["scope"], "global");
    assert!(find("10.2.0.0").get("broadcast").is_none());
    assert!(find("10.3.0.1").get("broadcast").is_none());
    let routes = run("ip route show dev a0");
    assert!(routes.contains("10.1.2.0/24"), "{routes}");
}

#[test]
fn nodad_makes_ipv6_usable_at_once() {
    let (netlink, index) = setup();
    let slow = plain("fd00:1::1/64");
    let fast = AddressSpec {
        nodad: true,
        no_prefix_route: true,
        ..plain("fd00:2::1/64")
    };
    netlink.add_address(index, &slow).unwrap();
    netlink.add_address(index, &fast).unwrap();
    let find = |ip: &str| seen().into_iter().find(|it| it["local"] == ip).unwrap();
    assert_eq!(find("fd00:1::1")["tentative"], true);
    assert!(find("fd00:2::1").get("tentative").is_none());
    let routes = run("ip -6 route show dev a0");
    assert!(
        routes.contains("fd00:1::/64") && !routes.contains("fd00:2::/64"),
        "{routes}"
    );

    let ours = netlink.list_addresses(index, Some(Family::V6)).unwrap();
    let find = |it: AddressSpec| ours.iter().find(|ours| ours.address == it.address).unwrap();
    assert!(find(slow).tentative && !find(slow).dad_failed);
    assert!(!find(fast).tentative && !find(fast).local_scope);
}

#[test]
fn only_the_links_own_addresses_are_listed() {
    let (netlink, index) = setup();
    run("ip address add 10.1.0.1/24 dev a0");
    run("ip address add 10.1.0.2/24 dev b0");
    run("ip address add fd00::1/64 dev a0 nodad");
    let all = netlink.list_addresses(index, None).unwrap();
    let global: Vec<String> = all
        .iter()
        .filter(|it| !it.local_scope)
        .map(|it| it.address.to_string())
        .collect();
    assert_eq!(global, ["10.1.0.1/24", "fd00::1/64"]);
    assert!(all.iter().all(|it| it.index == index));
    let v4 = netlink.list_addresses(index, Some(Family::V4)).unwrap();
    assert_eq!(v4.len(), 1);
    assert!(netlink.list_addresses(4711, None).unwrap().is_empty());
}

#[test]
fn adding_twice_fails_and_deleting_twice_does_not() {
    let (netlink, index) = setup();
    let spec = plain("10.1.2.3/24");
    netlink.add_address(index, &spec).unwrap();
    let error = netlink.add_address(index, &spec).unwrap_err();
    assert_eq!(
        error.to_string(),
        "add address 10.1.2.3/24 to a0: file exists (17): ipv4: Address already assigned"
    );
    netlink.delete_address(index, spec.address).unwrap();
    assert!(!seen().iter().any(|it| it["local"] == "10.1.2.3"));
    netlink.delete_address(index, spec.address).unwrap();
}

#[test]
fn after_the_wait_an_address_can_be_reached() {
    let (netlink, index) = setup();
    for number in 1..=50 {
        let ip: Ipv6Addr = format!("fd00:1::{number:x}").parse().unwrap();
        let spec = AddressSpec {
            nodad: true,
            ..plain(&format!("{ip}/64"))
        };
        netlink.add_address(index, &spec).unwrap();
        // Without this, the kernel's worker is usually slower than this test.
        netlink.await_local(ip.into());
        let groups = fs::read_to_string("/proc/thread-self/net/igmp6").unwrap();
        let group = format!("01ff0000{number:02x} ");
        assert!(groups.contains(&group), "{ip}: {groups}");
    }
}
