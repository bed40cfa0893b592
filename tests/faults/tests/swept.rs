//! A few of the points of every sweep: `make faults` tries them all.

use faults::chains;
use faults::commands::{COMMANDS, DEEDS};
use faults::node::Chain;
use faults::strike::Deed;
use faults::sweep::{Crew, Sweep, Tally, VERBS, Verb};

/// Points of each verb of each chain.
const FEW: usize = 3;

/// One of every kind: the others differ in what is chosen underneath.
const CHAINS: [&str; 7] = [
    "bridge",
    "portmap",
    "portmap of bridge and portmap, iptables",
    "macvlan",
    "macvlan, hostShim",
    "vxlan",
    "cluster",
];

fn swept(chain: Chain, verbs: &[Verb], deeds: &[Deed], few: usize) -> Tally {
    let sweep = Sweep {
        chain,
        verbs: verbs.to_vec(),
        deeds: deeds.to_vec(),
        at_most: Some(few),
    };
    let crew = Crew {
        exe: env!("CARGO_BIN_EXE_faults"),
        workers: 2,
        until: None,
    };
    let tally = sweep.run(&crew);
    tally.expect("the chain works without accidents")
}

fn sweep(deeds: &[Deed], few: usize) {
    let mut total = Tally::default();
    for chain in CHAINS {
        let chain = chains::named(chain).expect("the chain");
        total.add(swept(chain, &VERBS, deeds, few));
    }
    assert!(total.points > 0);
    assert!(
        total.findings.is_empty(),
        "{} of {} accidents have consequences:\n{}",
        total.findings.len(),
        total.points,
        total.findings.join("\n")
    );
}

#[test]
fn a_chain_that_is_killed_leaves_nothing_for_good() {
    sweep(&[Deed::KillChain], FEW);
}

#[test]
fn a_call_that_fails_is_reported_and_undone() {
    sweep(&[Deed::Fail { choice: 0 }], FEW);
}

#[test]
fn a_plugin_that_is_killed_alone_does_no_harm() {
    let executed = chains::named("bridge, IPAM executed").expect("the chain");
    let deeds = [Deed::KillPlugin, Deed::KillDelegate];
    let tally = swept(executed, &VERBS, &deeds, FEW);
    assert!(tally.findings.is_empty(), "{}", tally.findings.join("\n"));
}

#[test]
fn a_command_that_is_killed_leaves_nothing_that_prune_does_not_remove() {
    let crew = Crew {
        exe: env!("CARGO_BIN_EXE_faults"),
        workers: 2,
        until: None,
    };
    let mut total = Tally::default();
    for (index, command) in COMMANDS.iter().enumerate() {
        let tally = command.sweep(&crew, DEEDS[index % DEEDS.len()], 2);
        total.add(tally.expect("the command works without accidents"));
    }
    assert!(total.points > 0);
    assert!(total.findings.is_empty(), "{}", total.findings.join("\n"));
}

#[test]
fn a_lease_outlives_its_daemon_and_not_its_pod() {
    for (verb, deed) in [
        (Verb::Add, Deed::KillChain),
        (Verb::Add, Deed::KillDaemon),
        (Verb::Del, Deed::KillDaemon),
        (Verb::Add, Deed::FailDaemon { choice: 0 }),
    ] {
        let chain = chains::named("macvlan, dhcp").expect("the chain");
        let tally = swept(chain, &[verb], &[deed], FEW);
        assert!(tally.points > 0, "{verb:?}, {deed:?}: nothing happened");
        assert!(tally.findings.is_empty(), "{}", tally.findings.join("\n"));
    }
}
