use super::*;
use crate::example::{attachment as owner, host_ports, mapping};

fn wanted(mappings: &[&str]) -> HostPorts {
    host_ports("aaaabbbbccccdddd", mappings)
}

const EXAMPLE: [&str; 3] = ["tcp 8080 80", "tcp 192.0.2.7 8443 443", "udp 5353 53"];

fn publish(wanted: &HostPorts, family: Family, known: Known) -> String {
    let rules = Rules::new(wanted, family).unwrap().unwrap();
    rules.publish(known).to_string()
}

/// On a node without a published port.
fn first(wanted: &HostPorts, family: Family) -> String {
    publish(wanted, family, Known::Table(&Listing::default()))
}

/// The lines that begin so.
fn lines<'a>(text: &'a str, begin: &str) -> Vec<&'a str> {
    text.lines().filter(|it| it.starts_with(begin)).collect()
}

#[test]
fn the_first_pod_of_a_node_makes_what_all_share() {
    let text = first(&wanted(&EXAMPLE), Family::V4);
    assert_eq!(
        text,
        r#"*nat
-N CNI-HOSTPORT-DNAT
-N CNI-HOSTPORT-SETMARK
-N CNI-HOSTPORT-MASQ
-A CNI-HOSTPORT-SETMARK -m comment --comment "CNI portfwd masquerade mark" -j MARK --set-xmark 0x2000/0x2000
-A CNI-HOSTPORT-MASQ -m mark --mark 0x2000/0x2000 -j MASQUERADE
-I POSTROUTING -m comment --comment "CNI portfwd requiring masquerade" -j CNI-HOSTPORT-MASQ
-A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
-A OUTPUT -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
:CNI-DN-ac32b8ee4dcc1773aba08 - [0:0]
-A CNI-DN-ac32b8ee4dcc1773aba08 -s 10.22.0.0/24 -p tcp -m tcp --dport 8080 -j CNI-HOSTPORT-SETMARK
-A CNI-DN-ac32b8ee4dcc1773aba08 -s 127.0.0.1/32 -p tcp -m tcp --dport 8080 -j CNI-HOSTPORT-SETMARK
-A CNI-DN-ac32b8ee4dcc1773aba08 -p tcp -m tcp --dport 8080 -j DNAT --to-destination 10.22.0.2:80
-A CNI-DN-ac32b8ee4dcc1773aba08 -s 10.22.0.0/24 -d 192.0.2.7/32 -p tcp -m tcp --dport 8443 -j CNI-HOSTPORT-SETMARK
-A CNI-DN-ac32b8ee4dcc1773aba08 -s 127.0.0.1/32 -d 192.0.2.7/32 -p tcp -m tcp --dport 8443 -j CNI-HOSTPORT-SETMARK
-A CNI-DN-ac32b8ee4dcc1773aba08 -d 192.0.2.7/32 -p tcp -m tcp --dport 8443 -j DNAT --to-destination 10.22.0.2:443
-A CNI-DN-ac32b8ee4dcc1773aba08 -s 10.22.0.0/24 -p udp -m udp --dport 5353 -j CNI-HOSTPORT-SETMARK
-A CNI-DN-ac32b8ee4dcc1773aba08 -s 127.0.0.1/32 -p udp -m udp --dport 5353 -j CNI-HOSTPORT-SETMARK
-A CNI-DN-ac32b8ee4dcc1773aba08 -p udp -m udp --dport 5353 -j DNAT --to-destination 10.22.0.2:53
-I CNI-HOSTPORT-DNAT -p udp -m comment --comment "dnat name: \"mynet\" id: \"aaaabbbbccccdddd\"" -m multiport --dports 5353 -j CNI-DN-ac32b8ee4dcc1773aba08
-I CNI-HOSTPORT-DNAT -p tcp -m comment --comment "dnat name: \"mynet\" id: \"aaaabbbbccccdddd\"" -m multiport --dports 8080,8443 -j CNI-DN-ac32b8ee4dcc1773aba08
COMMIT
"#
    );
}

#[test]
fn ipv6_has_the_port_of_an_ipv4_mapping_but_not_the_mapping() {
    let text = first(&wanted(&EXAMPLE), Family::V6);
    let chain = "-A CNI-DN-ac32b8ee4dcc1773aba08";
    assert_eq!(
        lines(&text, chain),
        [
            format!("{chain} -s fd00:22::/64 -p tcp -m tcp --dport 8080 -j CNI-HOSTPORT-SETMARK"),
            format!("{chain} -p tcp -m tcp --dport 8080 -j DNAT --to-destination [fd00:22::2]:80"),
            format!("{chain} -s fd00:22::/64 -p udp -m udp --dport 5353 -j CNI-HOSTPORT-SETMARK"),
            format!("{chain} -p udp -m udp --dport 5353 -j DNAT --to-destination [fd00:22::2]:53"),
        ]
    );
    assert!(text.contains("--dports 8080,8443 "), "{text}");
}

#[test]
fn an_unspecified_address_is_any_of_its_family() {
    let mappings = ["tcp 0.0.0.0 83 80", "tcp :: 84 80"];
    for (family, own, other) in [(Family::V4, 83, 84), (Family::V6, 84, 83)] {
        let text = first(&wanted(&mappings), family);
        assert!(text.contains(&format!("-p tcp -m tcp --dport {own} -j DNAT")));
        assert!(!text.contains(&format!("--dport {other} ")), "{text}");
        assert!(!text.contains(" -d "), "{text}");
    }
}

#[test]
fn entries_have_15_ports_and_their_protocols_are_sorted() {
    let ports: Vec<_> = (1..=16).map(|it| format!("udp {it} 80")).collect();
    let mut all: Vec<_> = ports.iter().map(String::as_str).collect();
    all.extend(["sctp 7 7", "tcp 9 9"]);
    let rules = Rules::new(&wanted(&all), Family::V4).unwrap().unwrap();
    let entries = rules.entries.iter();
    let entries: Vec<_> = entries
        .map(|it| {
            (
                it.split(' ').nth(1).unwrap(),
                option(it, "--dports").unwrap(),
            )
        })
        .collect();
    assert_eq!(
        entries,
        [
            ("sctp", "7".into()),
            ("tcp", "9".into()),
            ("udp", "1,2,3,4,5,6,7,8,9,10,11,12,13,14,15".into()),
            ("udp", "16".into()),
        ]
    );
}

#[test]
fn who_gets_the_nodes_address_follows_snat_and_the_mark() {
    let mut wanted = wanted(&["tcp 8080 80"]);
    wanted.snat = Snat::Off;
    let text = first(&wanted, Family::V4);
    assert!(
        !text.contains("SETMARK") && !text.contains("MASQ"),
        "{text}"
    );

    wanted.snat = Snat::All;
    wanted.mark = Mark::Bit(0);
    let text = first(&wanted, Family::V4);
    assert!(text.contains("--set-xmark 0x1/0x1\n"), "{text}");
    let marked =
        "-A CNI-DN-ac32b8ee4dcc1773aba08 -p tcp -m tcp --dport 8080 -j CNI-HOSTPORT-SETMARK";
    assert!(text.contains(marked), "{text}");
    assert!(!text.contains("127.0.0.1"), "{text}");

    wanted.mark = Mark::ExternalChain("KUBE-MARK-MASQ".into());
    let text = first(&wanted, Family::V4);
    assert!(text.contains("--dport 8080 -j KUBE-MARK-MASQ\n"), "{text}");
    assert!(!text.contains("CNI-HOSTPORT-SETMARK"), "{text}");
    assert!(!text.contains("CNI-HOSTPORT-MASQ"), "{text}");
}

#[test]
fn conditions_are_words_of_the_entry() {
    let mut wanted = wanted(&["tcp 8080 80"]);
    wanted.conditions_v4 = ["!", "-d", "192.0.2.0/24", "-m", "a b"]
        .map(Into::into)
        .into();
    let text = first(&wanted, Family::V4);
    let entry = r#"--dports 8080 ! -d 192.0.2.0/24 -m "a b" -j CNI-DN-"#;
    assert!(text.contains(entry), "{text}");

    wanted.conditions_v4 = vec!["-s 1.2.3.4\n-F OUTPUT".into()];
    assert!(Rules::new(&wanted, Family::V4).is_err());
    assert!(Rules::new(&wanted, Family::V6).is_ok());
}

#[test]
fn rules_are_found_as_text_and_entries_without_their_conditions() {
    let mut wanted = wanted(&EXAMPLE);
    wanted.conditions_v4 = ["--source", "10.0.0.0/8"].map(Into::into).into();
    let rules = Rules::new(&wanted, Family::V4).unwrap().unwrap();
    let made = first(&wanted, Family::V4);
    let printed = made.replace("\n-I ", "\n-A ").replace(
        "-m multiport --dports 8080,8443 --source 10.0.0.0/8",
        "-s 10.0.0.0/8 --dports 8080,8443",
    );
    let missing = |text: &str| {
        let listing = Listing::parse(text);
        let required = rules.check();
        let all = required
            .required()
            .map(|(chain, rule)| (chain.to_owned(), rule.to_owned()));
        let missing = all.filter(|(chain, rule)| find(&listing, chain, rule) == Found::Missing);
        missing.map(|(chain, _)| chain).collect::<Vec<_>>()
    };
    assert_eq!(missing(&printed), [""; 0]);
    assert_eq!(
        missing(&printed.replace("--dports 5353", "--dports 5354")),
        [ENTRIES]
    );
    assert_eq!(
        missing(&printed.replace("10.22.0.2:443", "10.22.0.2:444")),
        [rules.chain.as_str()]
    );
    assert_eq!(
        missing(&printed.replace("-A OUTPUT", "-A INPUT")),
        ["OUTPUT"]
    );
}

fn others() -> Listing {
    let mut others = wanted(&["tcp 8080 80", "tcp 192.0.2.7 8443 443"]);
    others.owner = owner("other");
    let text = first(&others, Family::V4);
    Listing::parse(&text.replace("-I CNI", "-A CNI"))
}

fn lost(ours: &[&str]) -> Vec<Mapping> {
    let (wanted, listing) = (wanted(ours), others());
    let conflicts = conflicts(&wanted, Family::V4, &listing);
    let lost = conflicts
        .iter()
        .flat_map(|it| it.lost(&wanted, Family::V4, &listing));
    lost.map(|notice| {
        assert_eq!(notice.from, r#"dnat name: "mynet" id: "other""#);
        notice.mapping
    })
    .collect()
}

#[test]
fn what_is_taken_from_others_is_noticed() {
    assert_eq!(lost(&["tcp 8080 8000"]), [mapping("tcp 8080 80")]);
    assert_eq!(lost(&["tcp 8443 1"]), [mapping("tcp 192.0.2.7 8443 443")]);
    assert_eq!(
        lost(&["tcp 192.0.2.7 8443 1"]),
        [mapping("tcp 192.0.2.7 8443 443")]
    );
    let untouched = ["udp 8080 1", "tcp 192.0.2.8 8443 1", "tcp 192.0.2.7 8080 1"];
    assert_eq!(lost(&untouched), []);
    assert_eq!(lost(&["tcp fd00::1 8080 1"]), []);
}

#[test]
fn a_condition_that_is_several_rules_is_there_when_all_of_them_are() {
    let rule = |to: &str| {
        format!("-d {to} -p tcp -m comment --comment x -m multiport --dports 80 -j CNI-DN-1")
    };
    let wanted = "-p tcp -m comment --comment x -m multiport --dports 80 -d 10.9.0.1/32,127.0.0.1/32 -j CNI-DN-1";
    let listing = |rules: &[&str]| {
        let lines = rules
            .iter()
            .map(|to| format!("-A {ENTRIES} {}\n", rule(to)));
        Listing::parse(&lines.collect::<String>())
    };
    let both = listing(&["10.9.0.1/32", "127.0.0.1/32"]);
    assert_eq!(find(&both, ENTRIES, wanted), Found::Similar);
    assert_eq!(
        find(&listing(&["10.9.0.1/32"]), ENTRIES, wanted),
        Found::Missing
    );
    assert_eq!(expansions("-s a,b,c -d d,e -p tcp --dports 1,2"), 6);
}
