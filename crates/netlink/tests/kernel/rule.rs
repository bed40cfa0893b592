use netlink::{Family, Netlink, RouteSpec, WholeRoute};
use sandbox::here::{enter, json, run};

fn setup() -> (Netlink, u32) {
    enter();
    run("ip link add a0 type veth peer name b0");
    // Else the kernel adds the route of a link-local address at some later
    // moment: when it has seen the carrier.
    run("ip link set a0 addrgenmode none");
    run("ip link set b0 up");
    run("ip link set a0 up");
    run("ip address add 10.1.0.2/24 dev a0");
    run("ip address add fd00:1::2/64 dev a0 nodad");
    let netlink = Netlink::open().unwrap();
    let index = netlink.get_link("a0").unwrap().index;
    (netlink, index)
}

#[test]
fn a_rule_for_an_address_is_listed_and_removed_but_not_one_that_selects_more() {
    let (netlink, _) = setup();
    for (family, ip) in [("-4", "10.1.0.2"), ("-6", "fd00:1::2")] {
        run(&format!(
            "ip {family} rule add from {ip} fwmark 1 lookup 700 pref 100"
        ));
        run(&format!(
            "ip {family} rule add not from {ip} lookup 701 pref 101"
        ));
        run(&format!(
            "ip {family} rule add from {ip} iif lo lookup 702 pref 102"
        ));
        let added = netlink.add_rule(ip.parse().unwrap(), 700).unwrap();
        assert_eq!((added.priority, added.from), (99, ip.parse().ok()));
        let again = netlink.add_rule(ip.parse().unwrap(), 100_000).unwrap();
        assert_eq!((again.priority, again.table), (98, 100_000));
        let rules = netlink.list_rules().unwrap();
        let of_address: Vec<_> = rules
            .iter()
            .filter(|it| it.from == ip.parse().ok())
            .collect();
        assert_eq!(of_address, [&again, &added]);
        assert!(rules.iter().any(|it| it.table == 702 && it.from.is_none()));
        netlink.delete_rule(&added).unwrap();
        netlink.delete_rule(&added).unwrap();
        let left = json(&format!("ip -j {family} rule show table 700"));
        assert_eq!(left.as_array().unwrap().len(), 1, "{left}");
        assert_eq!(left[0]["fwmark"], "0x1");
        netlink.delete_rule(&again).unwrap();
        assert_eq!(
            json(&format!("ip -j {family} rule show table 100000")),
            json("ip -j rule show table 99")
        );
    }
}

#[test]
fn a_route_is_copied_with_all_that_it_has() {
    let (netlink, index) = setup();
    run("ip route add 10.8.0.0/16 via 192.0.2.1 dev a0 onlink metric 7 mtu 1300 src 10.1.0.2");
    run("ip -6 route add fd00:8::/48 via fe80::1 dev a0 metric 7 expires 600 pref high");
    run("ip route add 10.9.0.0/16 nexthop via 10.1.0.3 nexthop via 10.1.0.4");
    for (family, flag) in [(Family::V4, "-4"), (Family::V6, "-6")] {
        let routes = netlink.list_whole_routes(family).unwrap();
        let main: Vec<_> = routes
            .iter()
            .filter(|it| it.table() == 254 && it.oif == Some(index))
            .collect();
        for route in &main {
            assert!(
                netlink.append_whole_route(&route.in_table(1000)).unwrap(),
                "{route:?}"
            );
            assert!(
                !netlink.append_whole_route(&route.in_table(1000)).unwrap(),
                "{route:?}"
            );
        }
        let show = |table: &str| {
            let mut routes = json(&format!("ip -j -d {flag} route show table {table} dev a0"));
            let routes = routes.as_array_mut().unwrap();
            // Several next hops belong to several links.
            routes.retain(|it| it["nexthops"].is_null());
            for route in routes.iter_mut() {
                // It counts down: what is left is less than the 600 s of
                // above, by seconds.
                if let Some(left) = route["expires"].as_u64() {
                    route["expires"] = (570..=600).contains(&left).into();
                }
            }
            routes.clone()
        };
        assert!(!show("main").is_empty());
        assert_eq!(show("1000"), show("main"));
        for route in &main {
            netlink.delete_whole_route(route).unwrap();
            netlink.delete_whole_route(route).unwrap();
        }
        assert!(show("main").is_empty());
        assert_eq!(
            netlink
                .list_whole_routes(family)
                .unwrap()
                .iter()
                .filter(|it| it.table() == 1000)
                .count(),
            main.len()
        );
    }
}

#[test]
fn next_hops_of_an_ipv6_route_are_listed_and_removed_alone() {
    let (netlink, index) = setup();
    run("ip -6 route add default via fd00:1::1 dev a0 proto static");
    run("ip link set b0 addrgenmode none");
    run("ip address add fd00:2::2/64 dev b0 nodad");
    run("ip -6 route append default via fd00:2::1 dev b0");
    run("ip -6 nexthop add id 7 via fd00:1::7 dev a0");
    run("ip -6 nexthop add id 8 via fd00:1::8 dev a0");
    run("ip nexthop add id 9 group 7/8");
    run("ip -6 route add fd00:9::/48 nhid 9");
    let joined = json("ip -j -6 route show default");
    assert_eq!(joined[0]["nexthops"].as_array().unwrap().len(), 2);
    let routes = netlink.list_whole_routes(Family::V6).unwrap();
    let defaults: Vec<_> = routes.iter().filter(|it| it.is_default()).collect();
    let gateways: Vec<_> = defaults.iter().map(|it| it.gw.unwrap()).collect();
    assert_eq!(
        gateways,
        ["fd00:1::1", "fd00:2::1"].map(|it| it.parse::<std::net::IpAddr>().unwrap())
    );
    assert_eq!(defaults[0].oif, Some(index));
    // Others may use the object.
    let by_object = |it: &&WholeRoute| it.dst == "fd00:9::/48".parse().unwrap();
    let by_object: Vec<_> = routes.iter().filter(by_object).collect();
    assert!(by_object.len() == 1 && by_object[0].oif.is_none());

    let other = defaults[1];
    netlink.append_whole_route(&other.in_table(300)).unwrap();
    netlink.delete_whole_route(other).unwrap();
    let show = |table| {
        let routes = json(&format!("ip -j -6 route show default table {table}"));
        (routes[0]["gateway"].clone(), routes[0]["nexthops"].clone())
    };
    let null = serde_json::Value::Null;
    assert_eq!(show("main"), ("fd00:1::1".into(), null.clone()));
    assert_eq!(show("300"), ("fd00:2::1".into(), null));
}

#[test]
fn a_route_of_ones_own_has_its_origin_and_its_source() {
    let (netlink, index) = setup();
    let spec = RouteSpec {
        gw: "10.1.0.1".parse().ok(),
        ..RouteSpec::to("0.0.0.0/0".parse().unwrap())
    };
    let route = WholeRoute::new(index, &spec, 115)
        .in_table(300)
        .with_src("10.1.0.2".parse().unwrap());
    netlink.append_whole_route(&route).unwrap();
    let seen = json("ip -j route show table 300");
    assert_eq!(
        (&seen[0]["protocol"], &seen[0]["prefsrc"]),
        (&"115".into(), &"10.1.0.2".into())
    );
    let read = netlink.list_whole_routes(Family::V4).unwrap();
    let read = read.iter().find(|it| it.table() == 300).unwrap();
    assert_eq!(
        (read.protocol(), read.src, read.is_default()),
        (115, route.src, true)
    );
}
