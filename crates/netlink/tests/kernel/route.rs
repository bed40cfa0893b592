use std::net::IpAddr;

use netlink::{Family, Netlink, RouteFilter, RouteSpec};

use sandbox::here::{enter, json, run};

fn setup() -> (Netlink, u32) {
    enter();
    run("ip link add a0 type veth peer name b0");
    run("ip link set b0 up");
    run("ip link set a0 up mtu 1400");
    run("ip address add 10.1.0.2/24 dev a0");
    run("ip address add fd00:1::2/64 dev a0 nodad");
    let netlink = Netlink::open().unwrap();
    let index = netlink.get_link("a0").unwrap().index;
    (netlink, index)
}

fn route(dst: &str, gw: Option<&str>) -> RouteSpec {
    RouteSpec {
        gw: gw.map(|gw| gw.parse().unwrap()),
        ..RouteSpec::to(dst.parse().unwrap())
    }
}

fn only(command: &str) -> serde_json::Value {
    let routes = json(command);
    assert_eq!(routes.as_array().unwrap().len(), 1, "{command}: {routes}");
    routes[0].clone()
}

#[test]
fn every_option_of_a_route_reaches_the_kernel() {
    let (netlink, index) = setup();
    let full = RouteSpec {
        priority: Some(77),
        table: Some(1000),
        mtu: Some(1280),
        advmss: Some(1200),
        src: Some("10.1.0.2".parse().unwrap()),
        ..route("10.9.0.0/16", Some("10.1.0.1"))
    };
    netlink.add_route(index, &full).unwrap();
    let seen = only("ip -j -d route show table 1000");
    assert_eq!(seen["dst"], "10.9.0.0/16");
    assert_eq!(seen["gateway"], "10.1.0.1");
    assert_eq!(seen["dev"], "a0");
    assert_eq!(seen["metric"], 77);
    assert_eq!(seen["prefsrc"], "10.1.0.2");
    assert_eq!(seen["protocol"], "boot");
    assert_eq!(seen["metrics"][0]["mtu"], 1280);
    assert_eq!(seen["metrics"][0]["advmss"], 1200);

    let near = RouteSpec {
        scope: Some(253),
        ..route("10.8.0.0/16", None)
    };
    netlink.add_route(index, &near).unwrap();
    assert_eq!(only("ip -j route show 10.8.0.0/16")["scope"], "link");

    let beyond = RouteSpec {
        onlink: true,
        ..route("10.7.0.0/16", Some("192.0.2.1"))
    };
    netlink.add_route(index, &beyond).unwrap();
    assert_eq!(only("ip -j route show 10.7.0.0/16")["flags"][0], "onlink");

    let v6 = RouteSpec {
        mtu: Some(1300),
        ..route("fd00:9::/48", Some("fd00:1::1"))
    };
    netlink.add_route(index, &v6).unwrap();
    let seen = only("ip -6 -j route show fd00:9::/48");
    assert_eq!(seen["gateway"], "fd00:1::1");
    assert_eq!(seen["metrics"][0]["mtu"], 1300);
}

#[test]
fn default_routes_of_both_families_and_their_link() {
    let (netlink, index) = setup();
    assert_eq!(netlink.default_route_link().unwrap(), None);
    netlink
        .add_route(index, &route("::/0", Some("fd00:1::1")))
        .unwrap();
    assert_eq!(netlink.default_route_mtu().unwrap(), Some(1400));
    // IPv4 before IPv6, and of two routes the one with the lower metric.
    run("ip address add 10.2.0.2/24 dev b0");
    let far = RouteSpec {
        priority: Some(500),
        ..route("0.0.0.0/0", Some("10.1.0.1"))
    };
    netlink.add_route(index, &far).unwrap();
    run("ip route add default via 10.2.0.1 dev b0 metric 100");
    assert_eq!(netlink.default_route_link().unwrap().unwrap().name, "b0");
    // The MTU of the IPv6 route is smaller.
    assert_eq!(netlink.default_route_mtu().unwrap(), Some(1400));
    assert_eq!(only("ip -j -6 route show default")["gateway"], "fd00:1::1");
}

#[test]
fn several_may_share_a_destination_unless_they_are_equal() {
    let (netlink, index) = setup();
    let one = route("10.9.0.0/16", Some("10.1.0.1"));
    let two = route("10.9.0.0/16", Some("10.1.0.9"));
    netlink.add_route(index, &one).unwrap();
    netlink.add_route(index, &two).unwrap();
    let error = netlink.add_route(index, &one).unwrap_err();
    assert_eq!(
        error.to_string(),
        "add route to 10.9.0.0/16: file exists (17)"
    );
    assert_eq!(
        json("ip -j route show 10.9.0.0/16")
            .as_array()
            .unwrap()
            .len(),
        2
    );
}

#[test]
fn the_kernel_refuses_bits_outside_the_prefix() {
    let (netlink, index) = setup();
    let error = netlink
        .add_route(index, &route("10.9.9.9/8", None))
        .unwrap_err();
    assert_eq!(error.reason(), "invalid argument");
}

#[test]
fn a_list_is_filtered() {
    let (netlink, index) = setup();
    run("ip route add 10.9.0.0/16 via 10.1.0.1");
    run("ip route add 10.8.0.0/16 via 10.1.0.1 table 1000");
    run("ip route add 10.7.0.0/16 nexthop via 10.1.0.1 dev a0 nexthop via 10.1.0.9 dev a0");
    run("ip address add 10.2.0.2/24 dev b0");
    let list = |filter: RouteFilter| {
        let mut found: Vec<(String, Option<IpAddr>, u32)> = netlink
            .list_routes(filter)
            .unwrap()
            .into_iter()
            .map(|it| (it.dst.to_string(), it.gw, it.table))
            .collect();
        found.sort();
        found
    };
    let gw = |ip: &str| Some(ip.parse::<IpAddr>().unwrap());
    let on_a0 = RouteFilter {
        oif: Some(index),
        ..RouteFilter::main(Family::V4)
    };
    assert_eq!(
        list(on_a0),
        [
            ("10.1.0.0/24".to_owned(), None, 254),
            ("10.7.0.0/16".to_owned(), gw("10.1.0.1"), 254),
            ("10.7.0.0/16".to_owned(), gw("10.1.0.9"), 254),
            ("10.9.0.0/16".to_owned(), gw("10.1.0.1"), 254),
        ]
    );
    let table = |table| RouteFilter {
        table,
        ..RouteFilter::main(Family::V4)
    };
    assert_eq!(
        list(table(Some(1000))),
        [("10.8.0.0/16".to_owned(), gw("10.1.0.1"), 1000)]
    );
    assert_eq!(list(table(Some(2000))), []);
    // All tables, but unicast routes only: not the local table's own.
    assert_eq!(list(table(None)).len(), 6);
}

#[test]
fn deleting_twice_succeeds() {
    let (netlink, index) = setup();
    let spec = route("fd00:9::/48", Some("fd00:1::1"));
    netlink.add_route(index, &spec).unwrap();
    netlink.delete_route(index, &spec).unwrap();
    assert!(!run("ip -6 route show").contains("fd00:9::"));
    netlink.delete_route(index, &spec).unwrap();
}

#[test]
fn the_route_to_an_address_has_a_link() {
    enter();
    run("ip link add br7 type bridge");
    run("ip link set br7 up");
    run("ip address add 10.7.0.1/24 dev br7");
    let netlink = Netlink::open().unwrap();
    let way = |ip: &str| netlink.route_link(ip.parse().unwrap());
    assert_eq!(way("10.7.0.9").unwrap().name, "br7");
    assert_eq!(way("127.0.0.1").unwrap().name, "lo");
    assert!(way("192.0.2.1").is_err());
}
