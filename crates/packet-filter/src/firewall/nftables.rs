//! The ingress policies in nftables: two sets and one rule, for any number of pods and bridges.

use anyhow::Result;
use nftables::listing::{self, has_in_order};
use nftables::{
    Chain, Element, Error, Family, Field, Part, Point, Rule, Set, Socket, Statement, Table,
    Transaction, Type,
};

use super::Ingress;
use crate::backend::{Nftables, complete};

const TABLE: Table = Table::new(Family::Inet, "podwire_firewall");
const FORWARD: &str = "forward";
/// The bridges with a policy.
const MEMBERS: Set = Set::new("members", &[Type::Interface]);
/// The comment of every element: without one, it is not listed.
const COMMENT: &str = "bridge";
/// Pairs of a bridge with itself, for each bridge whose pods may reach each other.
const WITHIN: Set = Set::new("within", &[Type::Interface, Type::Interface]);

impl Nftables {
    /// Applies the policy. It can be repeated.
    pub fn ensure_ingress(&self, wanted: &Ingress) -> Result<()> {
        self.transact(|socket| add(socket, wanted))
    }

    /// The changes of [`Nftables::ensure_ingress`].
    pub(crate) fn ingress_additions(&self, wanted: &Ingress) -> Result<Transaction> {
        Ok(add(&self.socket, wanted)?)
    }

    /// Fails unless the policy is applied.
    pub fn check_ingress(&self, wanted: &Ingress) -> Result<()> {
        let changes = add(&self.socket, wanted)?;
        let first = changes.changes().first();
        complete(first.map(|change| format!("not done: {}", change.describe())))
    }

    /// Removes the policy of a bridge, and with the last bridge the table.
    pub fn drop_ingress(&self, bridge: &str) -> Result<()> {
        self.transact(|socket| {
            let mut changes = Transaction::new();
            if !listing::has_table(socket, TABLE.family, TABLE.name)? {
                return Ok(changes);
            }
            let all = listing::elements(socket, TABLE, &[MEMBERS, WITHIN], |_| true)?;
            let is_own = |it: &Element| it.key.contains(&Part::interface(bridge));
            if all.iter().all(is_own) {
                changes.delete_table(TABLE);
                return Ok(changes);
            }
            for element in all.into_iter().filter(is_own) {
                changes.delete_element(TABLE, element);
            }
            Ok(changes)
        })
    }
}

fn rule() -> Rule {
    let (from, to) = (Field::Interface, Field::OutInterface);
    Rule::new([
        Statement::In(vec![from], MEMBERS.name),
        Statement::In(vec![to], MEMBERS.name),
        Statement::NotIn(vec![from, to], WITHIN.name),
        Statement::Drop,
    ])
}

fn published() -> Rule {
    Rule::new([Statement::Redirected, Statement::Return])
}

fn member(bridge: &str) -> Element {
    MEMBERS.element([Part::interface(bridge)], [], COMMENT)
}

fn within(bridge: &str) -> Element {
    let part = || Part::interface(bridge);
    WITHIN.element([part(), part()], [], COMMENT)
}

fn add(socket: &Socket, wanted: &Ingress) -> Result<Transaction, Error> {
    let found = listing::rules(socket, TABLE)?;
    let is_open = has_in_order(&found, FORWARD, &[published(), rule()]);
    let is_installed = is_open || has_in_order(&found, FORWARD, &[rule()]);
    let has = |element: &Element| {
        let there =
            is_installed.then(|| listing::element_at(socket, TABLE, element.set, &element.key));
        Ok::<_, Error>(there.transpose()?.flatten().is_some())
    };
    let mut changes = Transaction::new();
    if !is_installed || wanted.published && !is_open {
        changes.extend(installation(wanted.published));
    }
    let (member, within) = (member(&wanted.bridge), within(&wanted.bridge));
    if !has(&member)? {
        changes.create_element(TABLE, member);
    }
    match (has(&within)?, wanted.isolated) {
        (false, false) => changes.create_element(TABLE, within),
        (true, true) => changes.delete_element(TABLE, within),
        _ => {}
    }
    Ok(changes)
}

fn installation(is_open: bool) -> Transaction {
    let mut changes = Transaction::new();
    changes.add_table(TABLE);
    changes.add_set(TABLE, MEMBERS);
    changes.add_set(TABLE, WITHIN);
    let chain = Chain::hooked(FORWARD, "filter", Point::Forward, 0);
    let rules = [is_open.then(published), Some(rule())];
    changes.fill_chain(TABLE, chain, rules.into_iter().flatten());
    changes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_sets_and_one_rule_are_all_policies() {
        let expected = "\
add table inet podwire_firewall
add set inet podwire_firewall members { type ifname ; }
add set inet podwire_firewall within { type ifname . ifname ; }
add chain inet podwire_firewall forward { type filter hook forward priority 0 ; policy accept ; }
flush chain inet podwire_firewall forward
add rule inet podwire_firewall forward ct status dnat return
add rule inet podwire_firewall forward iifname @members oifname @members iifname . oifname != @within drop
";
        assert_eq!(installation(true).to_string(), expected);
        assert!(!installation(false).to_string().contains("dnat"));
    }
}
