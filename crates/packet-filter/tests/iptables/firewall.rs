//! firewall's rules of an address, which are written without the program where the nft variant has
//! those that lead to them.

use std::net::IpAddr;
use std::os::unix::fs::symlink;

use nftables::listing::chain_rules;
use nftables::{Family, Listed, Socket, Table};
use packet_filter::{Firewall, Iptables};

use crate::host::{Host, on_both};

fn wanted(number: u8) -> Firewall {
    Firewall {
        addresses: vec![
            IpAddr::from([10, 0, 0, number]),
            format!("fd00::{number}").parse().unwrap(),
        ],
        zone: "trusted".into(),
        admin_chain: "CNI-ADMIN".into(),
        ingress: None,
    }
}

/// The counted programs (`Host::counted`), behind links to a name like that of the nft variant.
fn counted(host: &Host) -> Iptables {
    let _ = host.counted();
    if host.variant == "nft" {
        for name in ["iptables-restore", "ip6tables-restore"] {
            let (file, link) = (
                format!("/run/counted/nft-{name}"),
                format!("/run/counted/{name}"),
            );
            host.run(&format!("mv {link} {file}"));
            symlink(file, link).unwrap();
        }
    }
    Iptables::in_path(["/run/counted".into()])
}

/// The rules in CNI-FORWARD as the kernel has them, without their numbers.
fn raw() -> Vec<String> {
    let socket = Socket::open().unwrap();
    let rules = [Family::Ip, Family::Ip6].map(|family| {
        let table = Table::new(family, "filter");
        chain_rules(&socket, table, "CNI-FORWARD").unwrap()
    });
    let unnumbered = |mut it: Listed| {
        it.handle = 0;
        format!("{it:?}")
    };
    rules.into_iter().flatten().map(unnumbered).collect()
}

#[test]
fn the_second_pod_needs_no_program_where_the_first_has_made_the_chains() {
    on_both(|host| {
        let iptables = counted(host);
        iptables.add_firewall(&wanted(1), false).unwrap();
        assert!(!host.started().is_empty());
        iptables.add_firewall(&wanted(2), false).unwrap();
        assert_eq!(host.started().is_empty(), host.variant == "nft");
        iptables.check_firewall(&wanted(2)).unwrap();
    });
}

#[test]
fn the_kernel_has_the_same_as_by_the_program() {
    let host = Host::new("nft");
    let iptables = counted(&host);
    iptables.add_firewall(&wanted(1), false).unwrap();
    host.started();
    iptables.add_firewall(&wanted(2), false).unwrap();
    assert_eq!(host.started(), [""; 0]);
    let ours = raw();
    assert_eq!(
        ours.len(),
        2 + 2 * 4,
        "a rule that leads to others, four of each pod, per family"
    );

    iptables.remove_firewall(&wanted(2).addresses).unwrap();
    iptables.add_firewall(&wanted(2), true).unwrap();
    assert!(host.started().contains(&"iptables-restore".to_owned()));
    assert_eq!(raw(), ours);
}

/// Changes the table of both families.
fn change(host: &Host, lines: &str) {
    let text = format!("*filter\n{lines}\nCOMMIT\n");
    for program in ["iptables-restore", "ip6tables-restore"] {
        host.feed(&format!("{program} --noflush"), &text);
    }
}

#[test]
fn a_rule_that_leads_to_others_and_is_gone_comes_back() {
    let host = Host::new("nft");
    for gone in [
        r#"FORWARD -m comment --comment "CNI firewall plugin rules" -j CNI-FORWARD"#,
        r#"CNI-FORWARD -m comment --comment "CNI firewall plugin admin overrides" -j CNI-ADMIN"#,
    ] {
        let iptables = host.iptables();
        iptables.add_firewall(&wanted(1), true).unwrap();
        // One with a condition does not count.
        let conditional = gone.replacen(' ', " -i eth7 ", 1);
        change(&host, &format!("-D {gone}\n-I {conditional}"));
        let pod = wanted(2);
        iptables.add_firewall(&pod, false).unwrap();
        iptables.check_firewall(&pod).unwrap();
        iptables.remove_firewall(&pod.addresses).unwrap();
        change(&host, &format!("-C {gone}\n-D {conditional}"));
    }
}
