//! Isolation of pods behind a bridge that is their gateway: drops packets between pods of the
//! network that the node would forward from the bridge back to it.
//!
//! The bridge itself lets no frame pass from one isolated port to another, but the node forwards a
//! packet that a pod sends to the MAC of its gateway. One rule for each subnet of a network drops
//! such packets. Packets to a published port pass: it is published to all. Frames that the bridge
//! forwards itself, between ports that may talk, pass these rules too where `br_netfilter` hands
//! them over: they were sent to the MAC of a pod, not to the gateway's.

use anyhow::Result;
use cni::address::network_of;
use ipnetwork::IpNetwork;
use nftables::listing::{self, in_chain};
use nftables::{
    Chain, Error, Family, Listed, Point, Rule, Side, Socket, Statement, Table, Transaction,
};

use crate::backend::{Nftables, complete, network_comment};
use crate::inventory::{Applied, Subject};

const TABLE: Table = Table::new(Family::Inet, "podwire_isolation");
const FORWARD: &str = "forward";

/// The isolation of a network's pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Isolation {
    /// The network's name.
    pub network: String,
    /// The pods' gateway: the bridge, or an interface on it.
    pub gateway: String,
    /// The gateway's MAC.
    pub mac: [u8; 6],
    /// The subnets of the pods.
    pub subnets: Vec<IpNetwork>,
}

/// Where a rule applies: the gateway, and the subnet behind it.
pub type Place = (String, IpNetwork);

impl Isolation {
    /// The places where its rules apply.
    pub fn places(&self) -> Vec<Place> {
        let place = |subnet: &IpNetwork| (self.gateway.clone(), *subnet);
        self.subnets.iter().map(place).collect()
    }

    fn rule(&self, place: &Place) -> Rule {
        let mut rule = conditions(place);
        rule.statements.push(Statement::EtherDestination(self.mac));
        rule.statements.push(Statement::Drop);
        rule.comment(network_comment(&self.network))
    }
}

impl Nftables {
    /// Drops packets between pods behind isolated ports that the node would forward. It can be
    /// repeated.
    pub fn ensure_isolation(&self, wanted: &Isolation) -> Result<()> {
        self.transact(|socket| Ok(additions(&listing::rules(socket, TABLE)?, &[wanted])))
    }

    /// Fails if a rule that isolates the network's pods is missing.
    pub fn check_isolation(&self, wanted: &Isolation) -> Result<()> {
        complete(missing(&listing::rules(&self.socket, TABLE)?, wanted))
    }

    /// Whether rules isolate pods of `network` elsewhere than at `kept`.
    pub fn has_stale_isolation(&self, network: &str, kept: &[Place]) -> Result<bool> {
        let found = listing::rules(&self.socket, TABLE)?;
        Ok(!stale(&found, network, kept).is_empty())
    }

    /// Removes the rules that isolate pods of `network` elsewhere than at `kept`.
    pub fn remove_stale_isolation(&self, network: &str, kept: &[Place]) -> Result<()> {
        self.transact(|socket| Ok(stale(&listing::rules(socket, TABLE)?, network, kept)))
    }

    /// Changes that isolate the pods of many networks.
    pub(crate) fn isolation_additions(&self, all: &[&Isolation]) -> Result<Transaction> {
        Ok(additions(&listing::rules(&self.socket, TABLE)?, all))
    }
}

/// The conditions that begin every rule for a place.
fn conditions((gateway, subnet): &Place) -> Rule {
    Rule::new([
        Statement::Interface(gateway.clone()),
        Statement::OutInterface(gateway.clone()),
        Statement::Address(Side::Source, *subnet),
        Statement::Address(Side::Destination, *subnet),
    ])
}

fn published() -> Rule {
    Rule::new([Statement::Redirected, Statement::Return])
}

/// Changes that add the rules of all of these; none if they exist.
fn additions(found: &[Listed], all: &[&Isolation]) -> Transaction {
    let mut changes = Transaction::new();
    if all.iter().all(|it| missing(found, it).is_none()) {
        return changes;
    }
    if !begins_with_published(found) {
        changes.add_table(TABLE);
        let chain = Chain::hooked(FORWARD, "filter", Point::Forward, 0);
        changes.add_chain(TABLE, chain);
        // Before the existing rules.
        changes.insert_rule(TABLE, FORWARD, published());
    }
    for wanted in all {
        for place in wanted.places() {
            let rule = wanted.rule(&place);
            // The gateway may have had another MAC.
            let old = of_network(found, &wanted.network).filter(|it| is_at(it, &place));
            let old: Vec<_> = old.collect();
            if !old.iter().any(|it| it.is(&rule)) {
                old.into_iter().for_each(|it| changes.delete_rule(it));
                changes.add_rule(TABLE, FORWARD, rule);
            }
        }
    }
    changes
}

/// Changes that remove the rules of `network` that apply elsewhere than at `kept`.
fn stale(found: &[Listed], network: &str, kept: &[Place]) -> Transaction {
    let mut changes = Transaction::new();
    for rule in of_network(found, network) {
        if !kept.iter().any(|place| is_at(rule, place)) {
            changes.delete_rule(rule);
        }
    }
    changes
}

/// What is missing, as a text; `None` if nothing is.
fn missing(found: &[Listed], wanted: &Isolation) -> Option<String> {
    if !begins_with_published(found) {
        return Some(format!(
            "chain {TABLE} {FORWARD} is not there, or not whole"
        ));
    }
    let is_missing = |place: &Place| {
        let rule = wanted.rule(place);
        !found.iter().any(|it| it.is(&rule))
    };
    let (gateway, subnet) = wanted.places().into_iter().find(is_missing)?;
    Some(format!(
        "no rule in chain {TABLE} {FORWARD} keeps pods of {subnet} behind {gateway} from each other"
    ))
}

/// Whether the rule for published ports comes before all our rules.
fn begins_with_published(found: &[Listed]) -> bool {
    let is_published = |it: &Listed| it.does(&published());
    let first =
        in_chain(found, FORWARD).find(|it| is_published(it) || it.comment.starts_with("net: "));
    first.is_some_and(is_published)
}

fn of_network<'a>(found: &'a [Listed], network: &str) -> impl Iterator<Item = &'a Listed> {
    let comment = network_comment(network);
    in_chain(found, FORWARD).filter(move |it| it.comment == comment)
}

fn is_at(rule: &Listed, place: &Place) -> bool {
    rule.begins(&conditions(place))
}

/// The effect of the rules, for people.
pub fn inventory(socket: &Socket, subnets: &[IpNetwork]) -> Result<Vec<Applied>, Error> {
    let found = listing::rules(socket, TABLE)?;
    let own = in_chain(&found, FORWARD).filter(|it| it.comment.starts_with("net: "));
    let applied = own.map(|rule| {
        let gateway = rule.interface();
        let is_here = |subnet: &&IpNetwork| {
            let place = gateway.clone().zip(Some(network_of(**subnet)));
            place.is_some_and(|place| is_at(rule, &place))
        };
        let mut applied = Applied::new(Subject::Isolation, TABLE, &rule.comment);
        applied.subnet = subnets.iter().find(is_here).copied();
        applied.devices.extend(gateway);
        applied
    });
    Ok(applied.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(mac: u8) -> Isolation {
        Isolation {
            network: "mynet".into(),
            gateway: "cni0".into(),
            mac: [2, 0, 0, 0, 0, mac],
            subnets: vec!["10.1.0.0/24".parse().unwrap()],
        }
    }

    /// The rules as they are listed after an ADD.
    fn found(wanted: &Isolation) -> Vec<Listed> {
        let places = wanted.places();
        let rules = places.iter().map(|it| wanted.rule(it));
        let rules = [published()].into_iter().chain(rules);
        let numbered = rules.zip(10..);
        numbered
            .map(|(rule, handle)| Listed::of(TABLE, FORWARD, handle, &rule))
            .collect()
    }

    #[test]
    fn one_rule_for_a_subnet_isolates_its_pods() {
        let expected = "\
add table inet podwire_isolation
add chain inet podwire_isolation forward { type filter hook forward priority 0 ; policy accept ; }
insert rule inet podwire_isolation forward ct status dnat return
add rule inet podwire_isolation forward iifname \"cni0\" oifname \"cni0\" ip saddr 10.1.0.0/24 ip daddr 10.1.0.0/24 ether daddr 02:00:00:00:00:01 drop comment \"net: mynet\"
";
        assert_eq!(additions(&[], &[&wanted(1)]).to_string(), expected);
        assert!(additions(&found(&wanted(1)), &[&wanted(1)]).is_empty());
    }

    #[test]
    fn another_mac_of_the_gateway_replaces_the_rule() {
        let changes = additions(&found(&wanted(1)), &[&wanted(2)]).to_string();
        assert!(
            changes.contains("delete rule inet podwire_isolation forward handle 11"),
            "{changes}"
        );
        assert!(
            changes.contains("ether daddr 02:00:00:00:00:02 drop"),
            "{changes}"
        );
    }
}
