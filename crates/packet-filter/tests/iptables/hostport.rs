//! Published ports, alone.

use std::{fs::File, thread, time::Instant};

use nix::fcntl::{Flock, FlockArg};
use packet_filter::{Backend, HostPorts, Iptables, Mapping, Protocol, Snat};

use crate::{
    count,
    host::{Host, on_both},
    host_ports, owner, tcp, valid,
};

const ID: &str = "aaaabbbbccccdddd";
const CHAIN: &str = "CNI-DN-ac32b8ee4dcc1773aba08";

fn example(id: &str) -> HostPorts {
    let on_address = Mapping {
        host_ip: Some("192.0.2.7".parse().unwrap()),
        ..tcp(8443, 443)
    };
    let dns = Mapping {
        protocol: Protocol::Udp,
        ..tcp(5353, 53)
    };
    host_ports(id, &[tcp(8080, 80), on_address, dns])
}

#[test]
fn once_more_changes_nothing_and_removal_leaves_what_all_share() {
    on_both(|host| {
        let iptables = host.iptables();
        let wanted = example(ID);
        iptables.publish(&wanted).unwrap();
        let first = host.tables();
        assert_eq!(iptables.publish(&wanted).unwrap(), []);
        assert_eq!(host.tables(), first);
        iptables.check_published(&wanted).unwrap();

        iptables.unpublish(&wanted.owner).unwrap();
        let text = host.tables();
        assert_eq!(count(&text, "CNI-DN-"), 0, "{text}");
        let local = "-m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT";
        assert_eq!(count(&text, local), 4, "{text}");
        iptables.unpublish(&wanted.owner).unwrap();
        iptables.publish(&wanted).unwrap();
        assert_eq!(host.tables(), first);
    });
}

#[test]
fn fewer_ports_leave_none_of_the_old_ones() {
    on_both(|host| {
        let iptables = host.iptables();
        iptables.publish(&example(ID)).unwrap();
        iptables.publish(&host_ports(ID, &[tcp(1, 1)])).unwrap();
        let text = host.tables();
        assert_eq!(count(&text, "-A CNI-HOSTPORT-DNAT"), 2, "{text}");
        assert!(!text.contains("8080"), "{text}");
    });
}

#[test]
fn without_mappings_nothing_is_touched() {
    on_both(|host| {
        let iptables = host.counted();
        iptables.publish(&host_ports(ID, &[])).unwrap();
        iptables.check_published(&host_ports(ID, &[])).unwrap();
        assert!(host.started().is_empty());
    });
}

#[test]
fn conditions_are_found_again_however_iptables_prints_them() {
    on_both(|host| {
        let iptables = host.iptables();
        let mut wanted = host_ports(ID, &[tcp(8080, 80)]);
        wanted.pod_v6 = None;
        wanted.conditions_v4 = ["!", "--source", "10.9.8.7/24"].map(Into::into).into();
        iptables.publish(&wanted).unwrap();
        iptables.check_published(&wanted).unwrap();
        let first = host.tables();
        assert!(first.contains("! -s 10.9.8.0/24 "), "{first}");
        iptables.publish(&wanted).unwrap();
        assert_eq!(host.tables(), first);
        iptables.unpublish(&wanted.owner).unwrap();
        assert_eq!(count(&host.tables(), "CNI-DN-"), 0);
    });
}

#[test]
fn what_a_firewall_reload_took_away_is_put_back() {
    on_both(|host| {
        let iptables = host.iptables();
        iptables.publish(&example("first")).unwrap();
        iptables.publish(&example(ID)).unwrap();
        let whole = host.tables();
        for chain in [
            "PREROUTING",
            "OUTPUT",
            "POSTROUTING",
            "CNI-HOSTPORT-SETMARK",
            "CNI-HOSTPORT-MASQ",
        ] {
            host.run(&format!("iptables -t nat -F {chain}"));
            let error = iptables.check_published(&example(ID)).unwrap_err();
            assert!(format!("{error:#}").contains(chain), "{error:#}");
            iptables.publish(&example(ID)).unwrap();
            assert_eq!(host.tables(), whole, "{chain}");
        }
        host.flush();
        let error = iptables.check_published(&example(ID)).unwrap_err();
        assert_eq!(
            format!("{error:#}"),
            format!("chain {CHAIN} not found in iptables table nat")
        );
        iptables.unpublish(&owner(ID)).unwrap();
        iptables.publish(&example(ID)).unwrap();
        iptables.check_published(&example(ID)).unwrap();
    });
}

#[test]
fn check_names_every_rule_that_is_missing() {
    on_both(|host| {
        let iptables = host.iptables();
        let wanted = host_ports(ID, &[tcp(8080, 80)]);
        iptables.publish(&wanted).unwrap();
        host.run(&format!("iptables -t nat -D {CHAIN} 3"));
        host.run("iptables -t nat -F OUTPUT");
        let error = format!("{:#}", iptables.check_published(&wanted).unwrap_err());
        let rules = [
            format!("-A {CHAIN} -p tcp -m tcp --dport 8080 -j DNAT --to-destination 10.22.0.2:80"),
            "-A OUTPUT -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT".to_owned(),
        ];
        let expected = format!("missing in iptables table nat: {}", rules.join("; "));
        assert_eq!(error, expected);
    });
}

/// ip6tables-legacy 1.8.9 takes rules for the same that differ in their target or
/// in their last match.
#[test]
fn similar_ipv6_rules_are_distinguished() {
    on_both(|host| {
        let iptables = host.iptables();
        let ports: Vec<_> = (1..=3).map(|port| tcp(port, port)).collect();
        let mut wanted = host_ports(ID, &ports);
        wanted.pod_v4 = None;
        iptables.publish(&wanted).unwrap();
        let text = host.run(&format!("ip6tables -t nat -S {CHAIN}"));
        assert_eq!(count(&text, "-j DNAT"), 3, "{text}");

        host.run(&format!("ip6tables -t nat -D {CHAIN} 4"));
        let error = format!("{:#}", iptables.check_published(&wanted).unwrap_err());
        assert!(error.contains("--dport 2 -j DNAT"), "{error}");

        host.run("ip6tables -t nat -N DOCKER");
        host.run("ip6tables -t nat -F PREROUTING");
        host.run("ip6tables -t nat -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER");
        let error = format!("{:#}", iptables.check_published(&wanted).unwrap_err());
        assert!(error.contains("-A PREROUTING"), "{error}");
        iptables.publish(&wanted).unwrap();
        iptables.check_published(&wanted).unwrap();
        let text = host.run("ip6tables -t nat -S PREROUTING");
        assert_eq!(count(&text, "-j CNI-HOSTPORT-DNAT"), 1, "{text}");
    });
}

#[test]
fn the_newest_stands_first_and_says_what_it_took() {
    on_both(|host| {
        let iptables = host.iptables();
        iptables.publish(&example("old")).unwrap();
        let notices = iptables
            .publish(&host_ports("new", &[tcp(8080, 8000), tcp(9, 9)]))
            .unwrap();
        assert_eq!(notices.len(), 1, "{notices:?}");
        assert_eq!(notices[0].mapping, tcp(8080, 80));
        assert_eq!(notices[0].from, r#"dnat name: "mynet" id: "old""#);
        let text = host.run("iptables -t nat -S CNI-HOSTPORT-DNAT");
        let first = text.lines().nth(1).unwrap();
        assert!(first.contains("--dports 8080,9 "), "{text}");
    });
}

#[test]
fn the_first_pods_of_a_node_do_not_lose_each_others_ports() {
    on_both(|host| {
        let iptables = host.iptables();
        let publish = |port: u16| {
            let wanted = host_ports(&format!("pod{port}"), &[tcp(port, 80)]);
            iptables.publish(&wanted).unwrap();
        };
        thread::scope(|scope| {
            for port in 1..=6 {
                scope.spawn(move || publish(port));
            }
        });
        let text = host.run("iptables-save -t nat");
        assert_eq!(count(&text, "-A CNI-HOSTPORT-DNAT "), 6, "{text}");
        for chain in ["PREROUTING", "OUTPUT", "POSTROUTING"] {
            assert_eq!(count(&text, &format!("-A {chain} ")), 1, "{text}");
        }
    });
}

#[test]
fn services_come_before_published_ports_and_masquerading_first() {
    on_both(|host| {
        host.feed(
            "iptables-restore --noflush",
            "*nat\n:KUBE-SERVICES - [0:0]\n:KUBE-POSTROUTING - [0:0]\n-A PREROUTING -j KUBE-SERVICES\n-A OUTPUT -j KUBE-SERVICES\n-A POSTROUTING -j KUBE-POSTROUTING\nCOMMIT\n",
        );
        host.iptables().publish(&example(ID)).unwrap();
        let second =
            |chain: &str, rule: u8| host.run(&format!("iptables -t nat -S {chain} {rule}"));
        assert!(second("PREROUTING", 2).contains("CNI-HOSTPORT-DNAT"));
        assert!(second("OUTPUT", 2).contains("CNI-HOSTPORT-DNAT"));
        assert!(second("POSTROUTING", 1).contains("CNI-HOSTPORT-MASQ"));
    });
}

#[test]
fn the_chains_of_plugins_before_0_7_go_too() {
    on_both(|host| {
        let iptables = host.iptables();
        iptables.publish(&example(ID)).unwrap();
        iptables.publish(&example("other")).unwrap();
        iptables.unpublish(&owner(ID)).unwrap();
        let without = host.tables();
        let old = "CNI-SN-ac32b8ee4dcc1773aba08";
        let comment = r#"-m comment --comment "snat name: \"mynet\" id: \"aaaabbbbccccdddd\"""#;
        host.feed(
            "iptables-restore --noflush",
            &format!("*nat\n:CNI-HOSTPORT-SNAT - [0:0]\n:{CHAIN} - [0:0]\n:{old} - [0:0]\n-A CNI-HOSTPORT-SNAT {comment} -j {old}\n-A {old} -s 127.0.0.1 -j MASQUERADE\nCOMMIT\n"),
        );
        iptables.unpublish(&owner(ID)).unwrap();
        let with = host.tables().replace(":CNI-HOSTPORT-SNAT -\n", "");
        assert_eq!(with, without);
    });
}

#[test]
fn collection_spares_the_valid_and_other_networks() {
    on_both(|host| {
        let iptables = host.iptables();
        iptables.publish(&example("live")).unwrap();
        let mut other = example("dead");
        other.owner.network = "mynet2".into();
        iptables.publish(&other).unwrap();
        let kept = host.tables();
        iptables.publish(&example("dead")).unwrap();
        iptables
            .publish(&example(&"very-long-".repeat(30)))
            .unwrap();
        iptables
            .collect_published("mynet", &[valid("live")])
            .unwrap();
        assert_eq!(host.tables(), kept);
    });
}

#[test]
fn a_pod_costs_two_processes_and_nothing_costs_one() {
    on_both(|host| {
        let iptables = host.counted();
        let publish = |id: &str, port| {
            let mut wanted = host_ports(id, &[tcp(port, 1)]);
            wanted.pod_v6 = None;
            iptables.publish(&wanted).unwrap();
            host.started()
        };
        let first = publish("first", 1);
        assert_eq!(first, ["iptables", "iptables-save", "iptables-restore"]);
        assert_eq!(publish(ID, 2), ["iptables", "iptables-restore"]);
        iptables.unpublish(&owner("none")).unwrap();
        assert_eq!(host.started(), ["iptables", "ip6tables"]);
    });
}

#[test]
fn a_held_lock_is_waited_for_and_then_reported() {
    let result = thread::spawn(|| {
        let host = Host::new("legacy");
        let iptables = host.iptables();
        iptables.publish(&example(ID)).unwrap();
        let lock = File::options().write(true).open("/run/xtables.lock");
        let lock = Flock::lock(lock.unwrap(), FlockArg::LockExclusive).unwrap();
        let impatient = iptables.clone().lock_wait(1);
        for error in [
            impatient.publish(&example("new")).unwrap_err(),
            impatient.unpublish(&owner(ID)).unwrap_err(),
            impatient
                .masquerade(&crate::masquerade("new", &["10.22.0.3/24"]))
                .unwrap_err(),
        ] {
            let error = cni::Error::from_chain(&error);
            assert_eq!(error.code, 11, "{error}");
            assert!(error.msg.contains("has held the xtables lock for 1 s"));
        }

        let begun = Instant::now();
        let waiting = thread::scope(|scope| {
            let waiting = scope.spawn(|| iptables.publish(&example("new")).map(drop));
            thread::sleep(std::time::Duration::from_millis(300));
            drop(lock);
            waiting.join().unwrap()
        });
        waiting.unwrap();
        assert!(begun.elapsed().as_millis() >= 300);
    });
    result.join().unwrap();
}

#[test]
fn the_probe_finds_the_usable_families() {
    on_both(|host| {
        let both = host.iptables().probe();
        assert!(both.v4 && both.v6 && both.any());
        let none = Iptables::in_path(["/run/netns".into()]);
        assert!(!none.probe().any());
        host.run("rm /run/bin/ip6tables");
        let one = host.iptables().probe();
        assert!(one.v4 && !one.v6);

        // ADD needs what is missing; DEL has nothing to remove there.
        let mut wanted = example(ID);
        let error = host.iptables().publish(&wanted).unwrap_err();
        assert!(format!("{error:#}").contains("find ip6tables: not installed"));
        wanted.pod_v6 = None;
        wanted.snat = Snat::Off;
        host.iptables().publish(&wanted).unwrap();
        host.iptables().unpublish(&wanted.owner).unwrap();
        none.unpublish(&wanted.owner).unwrap();
    });
}
