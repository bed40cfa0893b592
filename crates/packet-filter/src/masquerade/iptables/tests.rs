use super::*;
use crate::example::masquerade as wanted;

fn rules(addresses: &[&str], family: Family) -> Rules {
    Rules::new(&wanted(addresses), family).unwrap().unwrap()
}

const V4: &str = r#"-A POSTROUTING -s 10.22.0.2/32 -m comment --comment "name: \"mynet\" id: \"aaaabbbbccccdddd\"" -j CNI-ac32b8ee4dcc1773aba08475
-A CNI-ac32b8ee4dcc1773aba08475 -d 10.22.0.0/24 -m comment --comment "name: \"mynet\" id: \"aaaabbbbccccdddd\"" -j ACCEPT
-A CNI-ac32b8ee4dcc1773aba08475 ! -d 224.0.0.0/4 -m comment --comment "name: \"mynet\" id: \"aaaabbbbccccdddd\"" -j MASQUERADE
"#;

#[test]
fn a_new_pod_gets_the_go_plugins_chain() {
    let text = rules(&["10.22.0.2/24"], Family::V4).create().to_string();
    assert_eq!(
        text,
        r#"*nat
-N CNI-ac32b8ee4dcc1773aba08475
-A CNI-ac32b8ee4dcc1773aba08475 -d 10.22.0.0/24 -m comment --comment "name: \"mynet\" id: \"aaaabbbbccccdddd\"" -j ACCEPT
-A CNI-ac32b8ee4dcc1773aba08475 ! -d 224.0.0.0/4 -m comment --comment "name: \"mynet\" id: \"aaaabbbbccccdddd\"" -j MASQUERADE
-A POSTROUTING -s 10.22.0.2/32 -m comment --comment "name: \"mynet\" id: \"aaaabbbbccccdddd\"" -j CNI-ac32b8ee4dcc1773aba08475
COMMIT
"#
    );
}

#[test]
fn each_family_has_its_own_addresses_and_multicast() {
    let addresses = ["10.22.0.2/24", "fd00:22::2/64"];
    let text = rules(&addresses, Family::V6).create().to_string();
    assert!(text.contains("-d fd00:22::/64 "), "{text}");
    assert!(text.contains(" ! -d ff00::/8 "), "{text}");
    assert!(text.contains("-A POSTROUTING -s fd00:22::2/128 "), "{text}");
    assert!(!text.contains("10.22"), "{text}");
    assert!(
        Rules::new(&wanted(&addresses[..1]), Family::V6)
            .unwrap()
            .is_none()
    );
}

#[test]
fn all_subnets_are_accepted_before_anything_is_masqueraded() {
    let text = rules(&["10.1.0.2/24", "10.2.0.2/24"], Family::V4)
        .create()
        .to_string();
    let second = text.find("-d 10.2.0.0/24").unwrap();
    assert!(second < text.find("MASQUERADE").unwrap(), "{text}");
    assert_eq!(text.matches("MASQUERADE").count(), 1);
}

#[test]
fn source_ports_are_random_when_asked() {
    let mut wanted = wanted(&["10.22.0.2/24"]);
    wanted.random_fully = true;
    let text = Rules::new(&wanted, Family::V4)
        .unwrap()
        .unwrap()
        .create()
        .to_string();
    assert!(text.contains("-j MASQUERADE --random-fully\n"), "{text}");
}

#[test]
fn another_interface_keeps_the_first_ones_subnet() {
    let listing = Listing::parse(V4);
    let text = rules(&["10.23.0.2/24"], Family::V4)
        .complete(&listing)
        .to_string();
    let order = ["-d 10.22.0.0/24", "-d 10.23.0.0/24", "-j MASQUERADE"];
    let found: Vec<_> = order.iter().map(|it| text.find(it).unwrap()).collect();
    assert!(found.is_sorted(), "{text}");
    assert!(text.contains("-A POSTROUTING -s 10.23.0.2/32"), "{text}");
}

#[test]
fn a_jump_from_the_whole_subnet_is_removed_too() {
    let listing = Listing::parse(&V4.replace("-s 10.22.0.2/32", "-s 10.22.0.0/24"));
    let removal = remove_found(
        &wanted(&[]).owner,
        &["10.22.0.2".parse().unwrap()],
        &listing,
    );
    let text = removal.to_string();
    assert!(text.contains("-D POSTROUTING -s 10.22.0.0/24"), "{text}");
}

#[test]
fn collection_finds_a_chain_that_nothing_leads_to() {
    let (_, orphan) = V4.split_once('\n').unwrap();
    let text = collect("mynet", &[], &Listing::parse(orphan)).to_string();
    assert_eq!(text.lines().count(), 4, "{text}");
    assert!(text.contains("-X CNI-ac32b8ee4dcc1773aba08475"), "{text}");
}

#[test]
fn what_leaves_by_the_overlays_device_keeps_its_source() {
    let mut wanted = wanted(&["10.22.0.2/24"]);
    let of = |wanted: &Masquerade| Rules::new(wanted, Family::V4).map(|it| it.unwrap());
    // The second is a name that the kernel takes.
    for (name, written) in [("vxlan0", "vxlan0"), ("a\"-j", r#""a\"-j""#)] {
        wanted.not_through = Some(name.into());
        let text = of(&wanted).unwrap().create().to_string();
        let found = text.contains(&format!("! -d 224.0.0.0/4 ! -o {written} -m comment "));
        assert!(found, "{text}");
    }
    wanted.not_through = Some("a\n-F".into());
    assert!(of(&wanted).is_err());
}
