//! Programs that cannot do their work: what they cannot see is not gone.

use std::net::IpAddr;

use packet_filter::{Backend, Families, Iptables};

use crate::{
    host::{Host, on_both},
    host_ports, masquerade, owner, tcp,
};

const ID: &str = "aaaabbbbccccdddd";

/// Every way in which rules are removed.
fn removals(iptables: &Iptables) -> Vec<(&'static str, anyhow::Result<()>)> {
    let address: IpAddr = "10.22.0.2".parse().unwrap();
    vec![
        (
            "an address",
            iptables.remove_masquerade(&owner(ID), &[address]),
        ),
        ("all", iptables.remove_masquerade(&owner(ID), &[])),
        ("ports", iptables.unpublish(&owner(ID))),
        ("masquerades", iptables.collect_masquerade("mynet", &[])),
        ("published ports", iptables.collect_published("mynet", &[])),
    ]
}

/// Adds a pod's rules; returns all that there are then.
fn with_rules(host: &Host) -> String {
    let iptables = host.iptables();
    iptables
        .masquerade(&masquerade(ID, &["10.22.0.2/24", "fd00:22::2/64"]))
        .unwrap();
    iptables.publish(&host_ports(ID, &[tcp(8080, 80)])).unwrap();
    host.tables()
}

fn all_fail(iptables: &Iptables, why: &str) {
    for (what, removal) in removals(iptables) {
        let error = removal.expect_err(what);
        assert!(format!("{error:#}").contains(why), "{what}: {error:#}");
    }
}

#[test]
fn a_program_without_privilege_has_not_removed() {
    on_both(|host| {
        let rules = with_rules(host);
        let powerless =
            host.scripted("exec setpriv --bounding-set -net_admin,-net_raw NAME \"$@\"");
        all_fail(&powerless, "Permission denied (you must be root)");
        assert_eq!(host.tables(), rules);
        assert!(powerless.try_out().is_err());
    });
}

#[test]
fn a_program_that_fails_in_another_way_has_not_removed() {
    on_both(|host| {
        let rules = with_rules(host);
        for (script, why) in [
            ("echo xtables: malloc failed >&2; exit 1", "malloc failed"),
            ("exit 1", "exit status: 1"),
            ("echo NAME: Memory allocation problem >&2; exit 3", "Memory"),
            ("kill -9 $$", "signal: 9"),
        ] {
            all_fail(&host.scripted(script), why);
        }
        assert_eq!(host.tables(), rules);
    });
}

#[test]
fn half_a_table_is_an_error() {
    on_both(|host| {
        let rules = with_rules(host);
        let iptables = host.scripted("NAME \"$@\" | head -n 4");
        let error = iptables.collect_published("mynet", &[]).unwrap_err();
        let error = format!("{error:#}");
        assert!(error.contains("ended in the middle"), "{error}");
        assert_eq!(host.tables(), rules);
    });
}

#[test]
fn a_program_that_cannot_be_executed_has_not_removed() {
    on_both(|host| {
        let rules = with_rules(host);
        let iptables = host.scripted("exec NAME \"$@\"");
        host.run("chmod -R 644 /run/scripts");
        host.run("chmod 755 /run/scripts");
        all_fail(&iptables, "Permission denied (os error 13)");
        assert_eq!(host.tables(), rules);

        host.run("chmod -R 755 /run/scripts");
        for (what, removal) in removals(&iptables) {
            removal.unwrap_or_else(|error| panic!("{what}: {error:#}"));
        }
        // A shebang that leads nowhere is no missing program, either.
        with_rules(host);
        host.script("/run/scripts/iptables", "#!/nowhere\n");
        let error = iptables.unpublish(&owner(ID)).unwrap_err();
        assert!(format!("{error:#}").contains("No such file"), "{error:#}");
    });
}

#[test]
fn known_rules_need_their_programs() {
    on_both(|host| {
        let rules = with_rules(host);
        let none = Iptables::in_path(["/run/netns".into()]);
        for (what, removal) in removals(&none) {
            removal.unwrap_or_else(|error| panic!("{what}: {error:#}"));
        }
        let needed = none.needed_in(Families {
            v4: true,
            v6: false,
        });
        all_fail(&needed, "find iptables: not installed");
        assert_eq!(host.tables(), rules);
    });
}
