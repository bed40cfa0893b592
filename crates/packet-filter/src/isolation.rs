//! Isolated ports of a bridge that is their gateway: what the node would forward from the bridge
//! back to it, between pods of the network.
//!
//! The bridge itself lets no frame pass from one isolated port to another, but a pod that
//! sends to its gateway's MAC has the node forward the packet. One rule for each subnet of a network
//! drops it. What was sent to a published port passes: who publishes a port means everybody.
//! Frames that the bridge forwards itself, between ports that may talk, pass these rules too
//! where `br_netfilter` hands them over: they had the MAC of a pod, and not the gateway's.

use cni::names;
use ipnetwork::IpNetwork;

use nftables::Error;
use nftables::Socket;
use nftables::listing::{self, Listed};
use nftables::{Chain, Change, Family, Hook, Point, Rule, Table, Transaction};
use nftables::{Side, Statement};

const TABLE: Table = Table {
    family: Family::Inet,
    name: "podwire_isolation",
    comment: "",
};
const FORWARD: &str = "forward";

/// What is wanted of the isolation of a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Isolation {
    /// Its name.
    pub network: String,
    /// The pods' gateway: the bridge, or an interface on it.
    pub gateway: String,
    /// Its MAC.
    pub mac: [u8; 6],
    /// Where the pods are.
    pub subnets: Vec<IpNetwork>,
}

/// Where a rule applies: by which gateway, within which subnet.
pub type Place = (String, IpNetwork);

impl Isolation {
    /// Where its rules apply.
    pub fn places(&self) -> Vec<Place> {
        let place = |subnet: &IpNetwork| (self.gateway.clone(), *subnet);
        self.subnets.iter().map(place).collect()
    }

    fn rules(&self) -> Vec<Rule> {
        let rule = |place: &Place| {
            let mut statements = conditions(place);
            statements.push(Statement::EtherDestination(self.mac));
            statements.push(Statement::Drop);
            Rule::new(statements).comment(comment(&self.network))
        };
        self.places().iter().map(rule).collect()
    }
}

fn conditions((gateway, subnet): &Place) -> Vec<Statement> {
    vec![
        Statement::Interface(gateway.clone()),
        Statement::OutInterface(gateway.clone()),
        Statement::Address(Side::Source, *subnet),
        Statement::Address(Side::Destination, *subnet),
    ]
}

fn comment(network: &str) -> String {
    format!("net: {}", names::short(network))
}

fn published() -> Rule {
    Rule::new([Statement::Redirected, Statement::Return])
}

/// Changes that isolate as all of these want, none if that is so.
pub fn add(socket: &Socket, all: &[&Isolation]) -> Result<Transaction, Error> {
    Ok(additions(&listing::rules(socket, TABLE, None)?, all))
}

fn additions(found: &[Listed], all: &[&Isolation]) -> Transaction {
    let mut changes = Transaction::new();
    if all.iter().all(|it| missing_in(found, it).is_none()) {
        return changes;
    }
    if !begins(found) {
        changes.push(Change::AddTable(TABLE));
        let hook = Some(Hook {
            kind: "filter",
            point: Point::Forward,
            priority: 0,
        });
        changes.push(Change::AddChain(
            TABLE,
            Chain {
                name: FORWARD.into(),
                hook,
                comment: "",
            },
        ));
        // What is there comes after it again.
        changes.push(Change::InsertRule(TABLE, FORWARD.into(), published()));
    }
    let rules = all.iter().flat_map(|it| {
        let rules = it.places().into_iter().zip(it.rules());
        rules.map(|(place, rule)| (&it.network, place, rule))
    });
    for (network, place, rule) in rules {
        // The gateway may have had another MAC.
        let old = of_network(found, network).filter(|it| is_at(it, &place));
        let old: Vec<_> = old.collect();
        if old.iter().any(|it| it.is(Family::Inet, &rule)) {
            continue;
        }
        for other in old {
            changes.push(other.deletion(TABLE));
        }
        changes.push(Change::AddRule(TABLE, FORWARD.into(), rule));
    }
    changes
}

/// The rules of `network` that apply elsewhere than at `kept`.
pub fn others(socket: &Socket, network: &str, kept: &[Place]) -> Result<Transaction, Error> {
    let found = listing::rules(socket, TABLE, None)?;
    let mut changes = Transaction::new();
    for rule in of_network(&found, network) {
        if !kept.iter().any(|place| is_at(rule, place)) {
            changes.push(rule.deletion(TABLE));
        }
    }
    Ok(changes)
}

/// What is missing, in words; `None` if nothing is.
pub fn missing(socket: &Socket, wanted: &Isolation) -> Result<Option<String>, Error> {
    Ok(missing_in(&listing::rules(socket, TABLE, None)?, wanted))
}

fn missing_in(found: &[Listed], wanted: &Isolation) -> Option<String> {
    if !begins(found) {
        return Some(format!(
            "chain {TABLE} {FORWARD} is not there, or not whole"
        ));
    }
    let is_there = |rule: &Rule| found.iter().any(|it| it.is(Family::Inet, rule));
    let mut places = wanted.places().into_iter().zip(wanted.rules());
    places.find_map(|((gateway, subnet), rule)| {
        (!is_there(&rule)).then(|| {
            format!(
                "no rule in chain {TABLE} {FORWARD} keeps pods of {subnet} behind {gateway} from each other"
            )
        })
    })
}

/// Whether published ports come before everything of ours.
fn begins(found: &[Listed]) -> bool {
    let mut found = found.iter().filter(|it| it.chain == FORWARD);
    let first =
        found.find(|it| it.does(Family::Inet, &published()) || it.comment.starts_with("net: "));
    first.is_some_and(|it| it.does(Family::Inet, &published()))
}

fn of_network<'a>(found: &'a [Listed], network: &str) -> impl Iterator<Item = &'a Listed> {
    let comment = comment(network);
    found
        .iter()
        .filter(move |it| it.chain == FORWARD && it.comment == comment)
}

fn is_at(rule: &Listed, place: &Place) -> bool {
    rule.begins(Family::Inet, &Rule::new(conditions(place)))
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
        let rules = [published()].into_iter().chain(wanted.rules());
        let numbered = rules.zip(10..);
        numbered
            .map(|(rule, handle)| Listed::of(Family::Inet, FORWARD, handle, &rule))
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
