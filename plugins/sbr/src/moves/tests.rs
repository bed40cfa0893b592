use super::*;
use crate::conf::Conf;
use cni::json::{self, Json};
use cni::{AddResult, Version};

const NET1: u32 = 3;
const ETH0: u32 = 2;

/// A route as `ip route` writes it: `DST [via GW] [src IP] [table N] [metric N]`.
fn route(oif: u32, text: &str) -> WholeRoute {
    let words: Vec<_> = text.split_whitespace().collect();
    let value = |key: &str| Some(words[words.iter().position(|it| *it == key)? + 1]);
    let spec = RouteSpec {
        gw: value("via").map(|it| it.parse().unwrap()),
        src: value("src").map(|it| it.parse().unwrap()),
        table: value("table").map(|it| it.parse().unwrap()),
        priority: value("metric").map(|it| it.parse().unwrap()),
        ..RouteSpec::to(words[0].parse().unwrap())
    };
    WholeRoute::new(oif, &spec, 3)
}

fn text(route: &WholeRoute) -> String {
    let mut text = route.dst.to_string();
    for (key, value) in [
        ("via", route.gw.map(|it| it.to_string())),
        ("src", route.src.map(|it| it.to_string())),
        ("metric", route.priority.map(|it| it.to_string())),
        (
            "proto",
            (route.protocol() == ORIGIN).then(|| "sbr".to_owned()),
        ),
    ] {
        if let Some(value) = value {
            text.push_str(&format!(" {key} {value}"));
        }
    }
    text
}

fn texts(routes: &[WholeRoute]) -> Vec<String> {
    routes.iter().map(text).collect()
}

fn pod(routes: &[&str]) -> Pod {
    let of_eth0 = [
        "0.0.0.0/0 via 10.9.0.1",
        "10.9.0.0/24 src 10.9.0.2",
        "::/0 via fe80::9 metric 1024",
    ];
    let of_eth0 = of_eth0.map(|it| route(ETH0, it));
    let mut all: Vec<_> = routes.iter().map(|it| route(NET1, it)).collect();
    all.extend(of_eth0);
    let rule = |priority, table| Rule {
        table,
        priority,
        from: None,
    };
    Pod {
        index: NET1,
        rules: vec![rule(0, 255), rule(32766, 254), rule(32767, 253)],
        routes: all,
    }
}

fn sources(keys: &str, previous: &str) -> (Plan, Vec<Source>) {
    let conf: Conf = json::read(keys).unwrap();
    let plan = Plan::new(&conf).unwrap();
    let document = Json::parse(previous.as_bytes()).unwrap();
    let previous = AddResult::decode(&document, Version::V1_0_0).unwrap();
    let sources = plan.sources(&previous, "net1").unwrap();
    (plan, sources)
}

fn rule(from: &str, table: u32) -> Rule {
    Rule {
        table,
        priority: 32765,
        from: from.parse().ok(),
    }
}

const ONE: &str = r#"{"ips": [{"address": "10.0.0.2/24", "gateway": "10.0.0.1"}]}"#;
const TWO: &str = r#"{"ips": [{"address": "10.0.0.2/24", "gateway": "10.0.0.1"}, {"address": "10.1.0.2/24"},
    {"address": "fd00::2/64", "gateway": "fd00::1"}]}"#;

#[test]
fn each_address_gets_the_routes_that_it_reaches_and_a_default_route() {
    let pod = pod(&[
        "10.8.0.0/16 via 10.1.0.1",
        "10.0.0.0/24 src 10.0.0.2",
        "10.1.0.0/24 src 10.1.0.2",
        "10.7.0.0/16",
        "10.6.0.0/16 via 192.0.2.1",
        "fe80::/64 metric 256",
        "fd00::/64 metric 256",
        "::/0 via fe80::1 metric 1024",
    ]);
    let (plan, sources) = sources("{}", TWO);
    let tables = tables(&sources, &pod);
    let numbers: Vec<_> = tables
        .iter()
        .map(|it| (it.from.to_string(), it.number))
        .collect();
    let expected = [("10.0.0.2", 100), ("10.1.0.2", 101), ("fd00::2", 102)];
    assert_eq!(numbers, expected.map(|(ip, table)| (ip.to_owned(), table)));
    assert_eq!(
        texts(&tables[0].routes),
        [
            "10.0.0.0/24 src 10.0.0.2",
            "10.7.0.0/16",
            "10.6.0.0/16 via 192.0.2.1",
            "0.0.0.0/0 via 10.0.0.1 proto sbr"
        ]
    );
    assert_eq!(
        texts(&tables[1].routes),
        [
            "10.1.0.0/24 src 10.1.0.2",
            "10.7.0.0/16",
            "10.8.0.0/16 via 10.1.0.1",
            "10.6.0.0/16 via 192.0.2.1"
        ]
    );
    assert_eq!(
        texts(&tables[2].routes),
        [
            "fe80::/64 metric 256",
            "fd00::/64 metric 256",
            "::/0 via fe80::1 metric 1024"
        ]
    );
    assert!(
        tables
            .iter()
            .all(|it| it.routes.iter().all(|route| route.table() == it.number))
    );
    let left: Vec<_> = left(&plan, &sources, &pod)
        .into_iter()
        .map(|it| it.0)
        .collect();
    assert_eq!(left.len(), 7, "all but fe80::/64: {:?}", texts(&left));
}

#[test]
fn routes_of_a_family_without_address_stay() {
    let pod = pod(&[
        "10.0.0.0/24 src 10.0.0.2",
        "fe80::/64 metric 256",
        "fd00::/64 metric 256",
    ]);
    let (plan, sources) = sources("{}", ONE);
    let left = left(&plan, &sources, &pod);
    assert_eq!(left.len(), 1);
    assert_eq!(text(&left[0].0), "10.0.0.0/24 src 10.0.0.2");
}

#[test]
fn a_table_of_a_rule_or_with_routes_is_not_chosen() {
    let mut pod = pod(&["10.0.0.0/24 src 10.0.0.2"]);
    pod.rules.push(rule("10.9.0.2", 100));
    pod.routes
        .push(route(ETH0, "0.0.0.0/0 via 10.9.0.1 table 101"));
    let (_, sources) = sources("{}", TWO);
    let numbers: Vec<_> = tables(&sources, &pod).iter().map(|it| it.number).collect();
    assert_eq!(numbers, [102, 103, 104]);
}

#[test]
fn a_second_add_uses_the_table_of_the_first() {
    let mut pod = pod(&[]);
    pod.rules.push(rule("10.0.0.2", 7));
    pod.rules.push(rule("10.0.0.2", 100));
    pod.routes
        .push(route(NET1, "10.0.0.0/24 src 10.0.0.2 table 100"));
    let (_, sources) = sources("{}", ONE);
    let of = |pod: &Pod| tables(&sources, pod)[0].clone();
    assert_eq!((of(&pod).number, of(&pod).has_rule), (100, true));
    // The table of another interface with the same address.
    pod.routes
        .push(route(ETH0, "10.0.0.0/24 src 10.0.0.2 table 100"));
    assert_eq!((of(&pod).number, of(&pod).has_rule), (101, false));
}

#[test]
fn a_configured_gateway_goes_before_the_default_route_of_the_interface() {
    let pod = pod(&[
        "0.0.0.0/0 via 10.0.0.1",
        "10.0.0.0/24 src 10.0.0.2",
        "::/0 via fd00::1 metric 1024",
    ]);
    let (_, sources) = sources(r#"{"gateways": ["10.0.0.9", "fd00::9"]}"#, TWO);
    let tables = tables(&sources, &pod);
    assert_eq!(
        texts(&tables[0].routes),
        [
            "10.0.0.0/24 src 10.0.0.2",
            "0.0.0.0/0 via 10.0.0.9 proto sbr",
            "0.0.0.0/0 via 10.0.0.1"
        ]
    );
    assert_eq!(
        texts(&tables[2].routes),
        [
            "::/0 via fd00::9 metric 1023 proto sbr",
            "::/0 via fd00::1 metric 1024"
        ]
    );
}

#[test]
fn routes_of_the_result_that_the_interface_has_not_are_made() {
    let pod = pod(&["10.0.0.0/24 src 10.0.0.2", "10.8.0.0/16 via 10.0.0.5"]);
    let previous = r#"{"ips": [{"address": "10.0.0.2/24"}], "routes": [{"dst": "10.8.0.0/16", "gw": "10.0.0.5"},
        {"dst": "10.7.0.0/16", "gw": "10.0.0.6"}, {"dst": "0.0.0.0/0", "gw": "10.0.0.7"}]}"#;
    let (_, sources) = sources("{}", previous);
    assert_eq!(
        texts(&tables(&sources, &pod)[0].routes),
        [
            "10.0.0.0/24 src 10.0.0.2",
            "10.8.0.0/16 via 10.0.0.5",
            "0.0.0.0/0 via 10.0.0.7 proto sbr",
            "10.7.0.0/16 via 10.0.0.6 proto sbr"
        ]
    );
}

#[test]
fn with_hints_routes_on_the_link_stay_and_name_their_source() {
    let pod = pod(&[
        "10.0.0.0/24 src 10.0.0.2",
        "0.0.0.0/0 via 10.0.0.1",
        "10.7.0.0/16",
        "fd00::/64 metric 256",
        "::/0 via fd00::1 metric 1024",
    ]);
    let (plan, sources) = sources(r#"{"addSourceHints": true}"#, TWO);
    let left = left(&plan, &sources, &pod);
    let left: Vec<_> = left
        .iter()
        .map(|(route, hint)| (text(route), hint.as_ref().map(text)))
        .collect();
    assert_eq!(
        left,
        [
            ("0.0.0.0/0 via 10.0.0.1".to_owned(), None),
            (
                "fd00::/64 metric 256".to_owned(),
                Some("fd00::/64 src fd00::2 metric 256 proto sbr".to_owned())
            ),
            ("::/0 via fd00::1 metric 1024".to_owned(), None),
        ]
    );
}

#[test]
fn del_gives_back_what_the_interface_had_and_removes_the_rest() {
    let (plan, sources) = sources(r#"{"addSourceHints": true}"#, TWO);
    let before = pod(&[
        "0.0.0.0/0 via 10.0.0.1",
        "10.0.0.0/24 src 10.0.0.2",
        "fe80::/64 metric 256",
        "fd00::/64 metric 256",
    ]);
    let mut after = before.clone();
    for table in tables(&sources, &before) {
        after.rules.push(Rule {
            table: table.number,
            priority: 1,
            from: Some(table.from),
        });
        after.routes.extend(table.routes);
    }
    for (route, hint) in left(&plan, &sources, &before) {
        after.routes.retain(|it| *it != route);
        after.routes.extend(hint);
    }
    let addresses: Vec<_> = sources.iter().map(|it| it.address.ip()).collect();
    let restored = restored(&addresses, None, &after);
    assert_eq!(
        texts(&restored.hints),
        ["fd00::/64 src fd00::2 metric 256 proto sbr"]
    );
    // Copies that another table has, too, are refused as existing.
    let mut back = texts(&restored.back);
    back.sort();
    back.dedup();
    assert_eq!(
        back,
        [
            "0.0.0.0/0 via 10.0.0.1",
            "10.0.0.0/24 src 10.0.0.2",
            "fd00::/64 metric 256",
            "fe80::/64 metric 256"
        ]
    );
    assert!(restored.back.iter().all(|it| it.table() == MAIN_TABLE));
    assert_eq!(restored.rules.len(), 3);
    let made = restored.removed.iter().filter(|it| it.protocol() == ORIGIN);
    assert_eq!(made.count(), 1, "fd00::1");
    assert_eq!(
        super::restored(&["10.5.0.1".parse().unwrap()], None, &after),
        Restored::default()
    );
}

#[test]
fn with_a_configured_table_only_its_rules_go() {
    let mut pod = pod(&["10.0.0.0/24 src 10.0.0.2 table 7"]);
    pod.rules.extend([
        rule("10.0.0.2", 7),
        rule("10.0.0.2", 8),
        rule("10.0.0.3", 7),
    ]);
    let (_, sources) = sources(r#"{"table": 7}"#, ONE);
    let tables = rules_only(7, &sources, &pod.rules);
    assert_eq!(
        (tables[0].number, tables[0].has_rule, tables[0].routes.len()),
        (7, true, 0)
    );
    assert!(!rules_only(9, &sources, &pod.rules)[0].has_rule);
    let restored = restored(&["10.0.0.2".parse().unwrap()], Some(7), &pod);
    assert_eq!(restored.rules, [rule("10.0.0.2", 7)]);
    assert_eq!((restored.back.len(), restored.removed.len()), (0, 0));
}

#[test]
fn a_route_that_would_join_another_ones_is_not_given_back() {
    let mut pod = pod(&[
        "::/0 via fe80::1 metric 1024 table 100",
        "fd00::/64 metric 256 table 100",
    ]);
    pod.rules.push(rule("fd00::2", 100));
    let restored = restored(&["fd00::2".parse().unwrap()], None, &pod);
    assert_eq!(texts(&restored.back), ["fd00::/64 metric 256"]);
    assert_eq!(restored.removed.len(), 2);
}

#[test]
fn check_wants_a_rule_and_a_default_route_in_its_table() {
    let (plan, sources) = sources("{}", ONE);
    let mut pod = pod(&[]);
    let missing = "rule for packets from 10.0.0.2 not found".to_owned();
    assert_eq!(check(&plan, &sources, &pod), Err(missing));
    pod.rules.push(rule("10.0.0.2", 100));
    let missing = "default route for packets from 10.0.0.2 not found in table 100".to_owned();
    assert_eq!(check(&plan, &sources, &pod), Err(missing));
    pod.routes
        .push(route(NET1, "0.0.0.0/0 via 10.0.0.1 table 100"));
    assert_eq!(check(&plan, &sources, &pod), Ok(()));
    let (other, _) = super::tests::sources(r#"{"table": 7}"#, ONE);
    assert!(check(&other, &sources, &pod).is_err());
    pod.rules.push(rule("10.0.0.2", 7));
    assert_eq!(check(&other, &sources, &pod), Ok(()));
}
