//! Text that iptables prints, and text that it reads.

use crate::fuzzing;
use crate::iptables::table::{FAMILIES, Listing, Transaction, option, word, words};
use crate::masquerade::iptables as masquerade;
use crate::ports::HostPorts;
use crate::ports::iptables as ports;

/// Makes the transactions of a firewall, as they are on a node without rules.
///
/// # Panics
/// When one has more than one command in a line.
pub fn firewall_as_text(wanted: &crate::Firewall) {
    crate::firewall::iptables::transactions(wanted, &Listing::default())
        .iter()
        .for_each(assert_one_command_a_line);
}

/// Makes every decision that depends on the output of `iptables-save`.
///
/// # Panics
/// When a transaction has more than one command in a line.
pub fn listed(printed: &[u8]) {
    let printed = String::from_utf8_lossy(printed);
    let listing = Listing::parse(&printed);
    let (owner, valid) = (fuzzing::owner(), fuzzing::valid());
    let (masqueraded, published) = (fuzzing::masquerade(), fuzzing::host_ports());
    let address = masqueraded.addresses[0].ip();
    let mut decided = vec![
        masquerade::remove_found(&owner, &[], &listing),
        masquerade::remove_found(&owner, &[address], &listing),
        masquerade::collect("net", &valid, &listing),
        ports::collect("net", &valid, &listing),
    ];
    for family in FAMILIES {
        if let Ok(Some(rules)) = masquerade::Rules::new(&masqueraded, family) {
            decided.push(rules.complete(&listing));
        }
        if let Ok(Some(rules)) = ports::Rules::new(&published, family) {
            decided.push(rules.publish(ports::Known::Table(&listing)));
            let required = rules.check();
            let find = |(chain, rule)| ports::find(&listing, chain, rule);
            required.required().map(find).for_each(drop);
        }
        for conflict in ports::conflicts(&published, family, &listing) {
            let _ = conflict.lost(&published, family, &listing);
        }
    }
    decided.iter().for_each(assert_one_command_a_line);
    for line in printed.lines() {
        let _ = option(line, "--comment");
        // A quoted word is read back as the same word.
        if let Ok(quoted) = word(line) {
            assert_eq!(words(&quoted), [line]);
        }
    }
}

/// The rules that publish `wanted`.
///
/// # Panics
/// When they are more than one command in a line.
pub fn publish_as_text(wanted: &HostPorts) {
    for family in FAMILIES {
        if let Ok(Some(rules)) = ports::Rules::new(wanted, family) {
            let nothing = Listing::default();
            assert_one_command_a_line(&rules.publish(ports::Known::Table(&nothing)));
            assert_one_command_a_line(&rules.publish(ports::Known::Entries(&nothing)));
            assert_one_command_a_line(&rules.check());
        }
    }
}

fn assert_one_command_a_line(transaction: &Transaction) {
    let text = transaction.to_string();
    let commands = text
        .lines()
        .filter(|it| !it.starts_with('*') && *it != "COMMIT");
    let mut count = 0;
    for command in commands {
        let known = ["-A ", "-I ", "-D ", "-C ", "-N ", "-F ", "-X ", ":"];
        assert!(
            known.iter().any(|it| command.starts_with(it)),
            "{command:?} in {text:?}"
        );
        count += 1;
    }
    let changes = (2..).take_while(|line| transaction.line(*line).is_some());
    assert_eq!(count, changes.count(), "{text:?}");
}
