//! Masquerading, alone.

use packet_filter::Backend;

use crate::{count, host::on_both, masquerade, owner, valid};

const CHAIN: &str = "CNI-ac32b8ee4dcc1773aba08475";
const ID: &str = "aaaabbbbccccdddd";

#[test]
fn once_more_changes_nothing() {
    on_both(|host| {
        let iptables = host.iptables();
        let mut wanted = masquerade(ID, &["10.22.0.2/24", "10.23.0.2/24", "fd00:22::2/64"]);
        for random_fully in [false, true] {
            wanted.random_fully = random_fully;
            iptables.masquerade(&wanted).unwrap();
            let first = host.tables();
            iptables.masquerade(&wanted).unwrap();
            assert_eq!(host.tables(), first);
            iptables.check_masquerade(&wanted).unwrap();
            let random = count(&first, "-j MASQUERADE --random-fully");
            assert_eq!(random, if random_fully { 2 } else { 0 }, "{first}");
        }
    });
}

#[test]
fn removal_with_and_without_addresses_leaves_nothing() {
    on_both(|host| {
        let iptables = host.iptables();
        let before = host.tables();
        let wanted = masquerade(ID, &["10.22.0.2/24", "10.23.0.2/24", "fd00:22::2/64"]);
        let ips: Vec<_> = wanted.addresses.iter().map(|it| it.ip()).collect();
        for ips in [&ips[..], &[]] {
            iptables.masquerade(&wanted).unwrap();
            assert_ne!(host.tables(), before);
            iptables.remove_masquerade(&wanted.owner, ips).unwrap();
            assert_eq!(host.tables(), before);
            iptables.remove_masquerade(&wanted.owner, ips).unwrap();
        }
    });
}

#[test]
fn the_chain_goes_with_the_last_of_two_interfaces() {
    on_both(|host| {
        let iptables = host.iptables();
        let before = host.tables();
        for address in ["10.22.0.2/24", "10.23.0.3/24"] {
            iptables.masquerade(&masquerade(ID, &[address])).unwrap();
        }
        let both = host.tables();
        assert_eq!(count(&both, &format!("-A {CHAIN} ")), 3, "{both}");
        let remove = |ip: &str| iptables.remove_masquerade(&owner(ID), &[ip.parse().unwrap()]);
        remove("10.22.0.2").unwrap();
        iptables
            .check_masquerade(&masquerade(ID, &["10.23.0.3/24"]))
            .unwrap();
        assert_eq!(count(&host.tables(), "-A POSTROUTING"), 1);
        remove("10.23.0.3").unwrap();
        assert_eq!(host.tables(), before);
    });
}

#[test]
fn check_names_what_is_missing() {
    on_both(|host| {
        let iptables = host.iptables();
        let wanted = masquerade(ID, &["10.22.0.2/24"]);
        let says = || format!("{:#}", iptables.check_masquerade(&wanted).unwrap_err());
        assert_eq!(
            says(),
            format!("chain {CHAIN} not found in iptables table nat")
        );
        iptables.masquerade(&wanted).unwrap();
        host.run("iptables -t nat -F POSTROUTING");
        host.run(&format!("iptables -t nat -D {CHAIN} 1"));
        let comment = r#"-m comment --comment "name: \"mynet\" id: \"aaaabbbbccccdddd\"""#;
        assert_eq!(
            says(),
            format!(
                "missing in iptables table nat: -A POSTROUTING -s 10.22.0.2/32 {comment} -j {CHAIN}; -A {CHAIN} -d 10.22.0.0/24 {comment} -j ACCEPT"
            )
        );
        iptables.masquerade(&wanted).unwrap();
        iptables.check_masquerade(&wanted).unwrap();
    });
}

#[test]
fn collection_spares_the_valid_and_other_networks() {
    on_both(|host| {
        let iptables = host.iptables();
        iptables
            .masquerade(&masquerade("live", &["10.22.0.2/24", "fd00:22::2/64"]))
            .unwrap();
        let mut other = masquerade("dead", &["10.9.0.2/24"]);
        other.owner.network = "mynet2".into();
        iptables.masquerade(&other).unwrap();
        host.run("iptables -t nat -A POSTROUTING -s 10.99.0.0/16 -j MASQUERADE");
        let kept = host.tables();
        iptables
            .masquerade(&masquerade("dead", &["10.22.0.3/24", "fd00:22::3/64"]))
            .unwrap();
        iptables
            .collect_masquerade("mynet", &[valid("live")])
            .unwrap();
        assert_eq!(host.tables(), kept);
    });
}

#[test]
fn a_new_pod_costs_one_process_and_so_does_an_old_one() {
    on_both(|host| {
        let iptables = host.counted();
        let wanted = masquerade(ID, &["10.22.0.2/24"]);
        iptables.masquerade(&wanted).unwrap();
        assert_eq!(host.started(), ["iptables-restore"]);
        let ips = [wanted.addresses[0].ip()];
        iptables.remove_masquerade(&wanted.owner, &ips).unwrap();
        assert_eq!(host.started(), ["iptables-restore"]);
        iptables.remove_masquerade(&wanted.owner, &[]).unwrap();
        assert_eq!(host.started(), ["iptables", "ip6tables"]);
    });
}
