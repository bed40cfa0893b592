//! `podwire trace` names what drops a packet.

use sandbox::{BackEnd, NODE, Netns, OUTSIDE, Suite, beyond_peer};
use serde_json::{Value, json};

use crate::lab::{A, B, GATEWAY, Lab, OPEN, PRIVATE, PUBLISHED, SERVICE, WHY};

/// What podwire prints of a packet from the namespace at `from`.
fn trace(lab: &Lab, from: &str, to: &str) -> Value {
    trace_with(lab, &[from, to])
}

/// The same with further options.
pub fn trace_with(lab: &Lab, args: &[&str]) -> Value {
    let podwire = Suite::Ours.dir().join("podwire").display().to_string();
    let argv = [&[podwire.as_str(), "trace", "--json"], args].concat();
    let done = lab.host().run(&argv);
    let traced: Value =
        serde_json::from_str(&done.stdout).unwrap_or_else(|error| panic!("{error}: {done:?}"));
    assert_eq!(done.code == 0, traced["arrived"] == true, "{done:?}");
    // Nothing stays behind.
    let tables = lab.host().sh("nft list tables");
    assert!(!tables.contains("podwire_trace"), "{tables}");
    traced
}

/// What drops it: the hop in words.
fn dropped(lab: &Lab, from: &Netns, to: &str) -> String {
    let traced = trace(lab, &from.path(), to);
    traced["dropped"]
        .as_str()
        .unwrap_or_else(|| panic!("{traced:#}"))
        .to_owned()
}

fn arrives(lab: &Lab, from: &str, to: &str) -> Value {
    let traced = trace(lab, from, to);
    assert!(
        traced["arrived"] == true && traced["dropped"].is_null(),
        "{traced:#}"
    );
    traced
}

fn at([v4, v6]: [&str; 2], port: u16) -> [String; 2] {
    [format!("{v4}:{port}"), format!("[{v6}]:{port}")]
}

pub fn modes(mode: &str) -> Value {
    json!({"isDefaultGateway": true, "gatewayModeIPv4": mode, "gatewayModeIPv6": mode})
}

#[test]
fn trace_names_the_rule_of_a_gateway_mode() {
    beyond_peer(WHY, || {
        let mut lab = Lab::new(modes("nat"));
        let [a, b, c] = lab.pods(true);
        for to in at(A, OPEN)
            .iter()
            .chain(&at(A, PRIVATE))
            .chain(&A.map(str::to_owned))
        {
            let why = dropped(&lab, &c, to);
            assert!(
                why.contains("podwire_access to_published: drop"),
                "{to}: {why}"
            );
        }
        for to in at(A, PRIVATE)
            .iter()
            .chain(&at(OUTSIDE, SERVICE))
            .chain(&at(GATEWAY, SERVICE))
        {
            arrives(&lab, &b.path(), to);
        }
        // A published port is translated; the node's own packets pass other chains.
        let traced = arrives(&lab, &c.path(), &at(NODE, PUBLISHED)[0]);
        let hops = traced["hops"].to_string();
        assert!(hops.contains("the destination is now 10.1.0.2"), "{hops}");
        arrives(&lab, "node", &format!("{}:{OPEN}", A[0]));
        drop(a);
    });
}

#[test]
fn trace_names_what_keeps_an_internal_network_inside() {
    beyond_peer(WHY, || {
        let mut lab = Lab::new(json!({"isGateway": true, "internal": true}));
        let [a, b, c] = lab.pods(false);
        let outside = &at(OUTSIDE, SERVICE)[0];
        let why = dropped(&lab, &a, outside);
        assert!(why.contains("route: no way to"), "{why}");
        a.sh("ip route add default via 10.1.0.1");
        let why = dropped(&lab, &a, outside);
        let rule = "ip podwire_access forward: iifname @internal_devices drop";
        assert!(why.contains(rule), "{why}");
        let why = dropped(&lab, &c, &at(A, OPEN)[0]);
        let rule = "ip podwire_access forward: oifname @internal_devices drop";
        assert!(why.contains(rule), "{why}");
        arrives(&lab, &b.path(), &at(A, OPEN)[0]);
    });
}

/// The gateway of an isolated network has no address.
#[test]
fn trace_names_a_neighbour_that_does_not_answer() {
    beyond_peer(WHY, || {
        let keys = json!({"isGateway": true, "internal": true, "gatewayModeIPv4": "isolated",
            "gatewayModeIPv6": "isolated"});
        let mut lab = Lab::new(keys);
        let [a, _b, _c] = lab.pods(false);
        let why = dropped(&lab, &a, &at(GATEWAY, SERVICE)[0]);
        assert!(why.contains("neighbour: 10.1.0.1 does not answer"), "{why}");
    });
}

#[test]
fn trace_names_isolated_ports_and_the_rule_behind_them() {
    beyond_peer(WHY, || {
        let keys = json!({"isDefaultGateway": true, "portIsolation": true});
        let mut lab = Lab::new(keys);
        let [a, _b, _c] = lab.pods(false);
        let why = dropped(&lab, &a, &at(B, OPEN)[0]);
        assert!(why.contains("both ports are isolated"), "{why}");
        // By the gateway's MAC, the node would forward it.
        a.sh("ip route add 10.1.0.3 via 10.1.0.1");
        let why = dropped(&lab, &a, &at(B, OPEN)[0]);
        assert!(
            why.contains("inet podwire_isolation forward: ") && why.contains("drop"),
            "{why}"
        );
    });
}

#[test]
fn trace_names_rules_of_others_and_checks_of_macs() {
    beyond_peer(WHY, || {
        let mut lab = Lab::new(json!({"isDefaultGateway": true, "macspoofchk": true}));
        let [a, b, c] = lab.pods(false);
        lab.host().sh(
            "nft add table inet foreign
             nft 'add chain inet foreign forward { type filter hook forward priority 10; policy drop; }'",
        );
        let why = dropped(&lab, &c, &at(OUTSIDE, SERVICE)[0]);
        assert!(why.contains("inet foreign forward: policy drop"), "{why}");
        lab.host()
            .sh("nft delete table inet foreign; iptables-nft -A FORWARD -s 10.1.0.3 -j DROP");
        let why = dropped(&lab, &b, &at(OUTSIDE, SERVICE)[0]);
        assert!(
            why.contains("ip filter FORWARD: ip saddr 10.1.0.3"),
            "{why}"
        );
        arrives(&lab, &a.path(), &at(OUTSIDE, SERVICE)[0]);
        a.sh("ip link set eth0 address 02:00:00:00:00:77; ip neighbour replace 10.1.0.1 lladdr 02:00:00:00:00:01 dev eth0");
        let why = dropped(&lab, &a, &at(OUTSIDE, SERVICE)[0]);
        assert!(why.contains("bridge nat ") && why.contains("drop"), "{why}");
        // No way at all.
        a.sh("ip route flush default");
        let why = dropped(&lab, &a, &at(OUTSIDE, SERVICE)[0]);
        assert!(why.contains("route: no way to"), "{why}");
    });
}

/// Where iptables is in use, in either variant: its rules, its policy, and those of the plugin firewall.
#[test]
fn trace_names_rules_of_iptables() {
    beyond_peer(WHY, || {
        for back_end in BackEnd::IPTABLES {
            let mut lab = Lab::with(back_end, json!({"isDefaultGateway": true}));
            let [_a, b, c] = lab.pods(false);
            let programs = back_end.path(&lab.sandbox);
            let log = || lab.host().sh("cat /proc/sys/net/netfilter/nf_log/2");
            let before = log();
            let iptables = |rule: &str| {
                lab.host()
                    .sh(&format!("export PATH={programs}; iptables {rule}"));
            };
            let out = &at(OUTSIDE, SERVICE)[0];
            arrives(&lab, &b.path(), out);
            iptables("-A FORWARD -s 10.1.0.3 -j REJECT");
            let why = dropped(&lab, &b, out);
            assert!(why.contains("FORWARD") && why.contains("10.1.0.3"), "{why}");
            iptables("-P FORWARD DROP");
            let why = dropped(&lab, &c, out);
            let policies = [
                "ip filter FORWARD: policy drop",
                "iptables-legacy -t filter: -P FORWARD DROP",
            ];
            assert!(policies.iter().any(|it| why.contains(it)), "{why}");
            iptables("-t raw -A PREROUTING -s 10.2.0.0/24 -j DROP");
            let why = dropped(&lab, &c, out);
            assert!(why.contains("raw") && why.contains("10.2.0.0/24"), "{why}");
            assert_eq!(log(), before);
        }
    });
}

/// A trace that is killed leaves nothing.
#[test]
fn a_killed_trace_leaves_no_table() {
    beyond_peer(WHY, || {
        let mut lab = Lab::new(modes("nat"));
        let [a, _b, _c] = lab.pods(false);
        let podwire = Suite::Ours.dir().join("podwire").display().to_string();
        let path = a.path();
        let running =
            lab.host()
                .start(&[&podwire, "trace", "--wait", "60", &path, "10.1.0.99:9/udp"]);
        lab.host().wait_until("it follows packets", |it| {
            it.sh("nft list tables").contains("podwire_trace")
        });
        lab.host().sh(&format!("kill -9 {}", running.id()));
        lab.host().wait_until("the table is gone", |it| {
            !it.sh("nft list tables").contains("podwire_trace")
        });
    });
}
