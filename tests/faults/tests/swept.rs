//! A few of the points of every sweep: `make faults` tries them all.

use faults::chains;
use faults::strike::Deed;
use faults::sweep::{Sweep, Tally, VERBS, Verb};

/// Points of each verb of each chain.
const FEW: usize = 3;

/// One of every kind: the others differ in what is chosen underneath.
const CHAINS: [&str; 4] = ["bridge", "portmap", "macvlan", "vxlan"];

fn sweep(deeds: &[Deed], few: usize) {
    let mut total = Tally::default();
    for chain in CHAINS {
        let chain = chains::named(chain).expect("the chain");
        for verb in VERBS {
            for deed in deeds {
                let sweep = Sweep {
                    chain: chain.clone(),
                    verb,
                    deed: *deed,
                    at_most: Some(few),
                };
                let tally = sweep.run(env!("CARGO_BIN_EXE_faults"), 2);
                total.add(tally.expect("the chain works without accidents"));
            }
        }
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
fn a_call_that_fails_is_told_and_undone() {
    sweep(&[Deed::Fail { choice: 0 }], FEW);
}

#[test]
fn whoever_is_killed_alone_does_no_harm() {
    let executed = chains::named("bridge, IPAM executed").expect("the chain");
    for verb in VERBS {
        for deed in [Deed::KillPlugin, Deed::KillDelegate] {
            let sweep = Sweep {
                chain: executed.clone(),
                verb,
                deed,
                at_most: Some(FEW),
            };
            let tally = sweep.run(env!("CARGO_BIN_EXE_faults"), 2);
            let tally = tally.expect("the chain works without accidents");
            assert!(tally.findings.is_empty(), "{}", tally.findings.join("\n"));
        }
    }
}

#[test]
fn a_lease_outlives_its_daemon_and_not_its_pod() {
    for (verb, deed) in [
        (Verb::Add, Deed::KillChain),
        (Verb::Add, Deed::KillDaemon),
        (Verb::Del, Deed::KillDaemon),
    ] {
        let sweep = Sweep {
            chain: chains::named("macvlan, dhcp").expect("the chain"),
            verb,
            deed,
            at_most: Some(FEW),
        };
        let tally = sweep.run(env!("CARGO_BIN_EXE_faults"), 2);
        let tally = tally.expect("the chain works without accidents");
        assert!(tally.points > 0, "{verb:?}, {deed:?}: nothing happened");
        assert!(tally.findings.is_empty(), "{}", tally.findings.join("\n"));
    }
}
