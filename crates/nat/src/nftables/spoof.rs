//! The MAC spoof check of bridge ports: a frame from a pod's host veth has the
//! pod's MAC, or it is dropped.
//!
//! Table, chains and comments are those of the Go bridge plugin, so that either
//! suite removes what the other wrote.

use std::borrow::Cow;

use cni::Attachment;
use cni::conf::ValidAttachment;
use cni::env::{ContainerId, IfName};

use super::error::Error;
use super::expression::Statement;
use super::listing::{self, Listed};
use super::socket::Socket;
use super::transaction::{Chain, Change, Family, Hook, Point, Rule, Table, Transaction, fitting};

const TABLE: Table = Table {
    family: Family::Bridge,
    name: "nat",
    comment: "",
};
const PREROUTING: &str = "PREROUTING";

/// What is wanted of the spoof check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpoofCheck {
    /// Whose pod it is.
    pub owner: Attachment,
    /// The host end of its veth pair: the bridge's port.
    pub host_veth: String,
    /// The MAC of the container end.
    pub mac: [u8; 6],
}

/// Names that follow from the attachment.
struct Names {
    interface: String,
    mac: String,
    comment: String,
}

impl Names {
    fn of(owner: &Attachment) -> Self {
        let id = format!("{}-{}", owner.container_id, owner.ifname);
        Self {
            interface: format!("cni-br-iface-{id}"),
            mac: format!("cni-br-iface-{id}-mac"),
            comment: format!("macspoofchk-{id}"),
        }
    }
}

/// Changes that make the kernel check as `wanted`; none if it does.
pub fn add(socket: &Socket, wanted: &SpoofCheck) -> Result<Transaction, Error> {
    Ok(additions(&listing::rules(socket, TABLE, None)?, wanted))
}

/// The same for many ports.
pub fn add_all(socket: &Socket, all: &[&SpoofCheck]) -> Result<Transaction, Error> {
    let found = listing::rules(socket, TABLE, None)?;
    let mut changes = Transaction::new();
    for wanted in all {
        changes.extend(additions(&found, wanted));
    }
    Ok(changes)
}

/// Changes that take away what is there for `owner`.
pub fn remove(socket: &Socket, owner: &Attachment) -> Result<Transaction, Error> {
    Ok(removals(&listing::rules(socket, TABLE, None)?, owner))
}

/// Changes that take away what is there for ports of `network` that are of
/// nobody `valid`.
pub fn collect(
    socket: &Socket,
    network: &str,
    valid: &[ValidAttachment],
) -> Result<Transaction, Error> {
    let found = listing::rules(socket, TABLE, None)?;
    let mut changes = Transaction::new();
    for owner in found.iter().filter_map(|it| port_of(network, it)) {
        let is_alive = |it: &ValidAttachment| {
            it.container_id == owner.container_id.as_str() && it.ifname == owner.ifname.as_str()
        };
        if !valid.iter().any(is_alive) {
            changes.extend(removals(&found, &owner));
        }
    }
    Ok(changes)
}

/// How many names a host veth may have had: the first was taken ten times never.
const HOST_VETHS: u32 = 10;

/// Whose port of `network` enters its chain by `rule`. The comment does not name
/// the network, but the host veth follows from it.
fn port_of(network: &str, rule: &Listed) -> Option<Attachment> {
    let id = rule.comment.strip_prefix("macspoofchk-")?;
    // Both sides of the dash may have more of them.
    id.match_indices('-').find_map(|(dash, _)| {
        let owner = Attachment {
            network: network.to_owned(),
            container_id: ContainerId::parse(&id[..dash]).ok()?,
            ifname: IfName::parse(&id[dash + 1..]).ok()?,
        };
        let enters = |attempt| {
            let (enter, _) = chains(&SpoofCheck {
                owner: owner.clone(),
                host_veth: owner.host_veth(attempt),
                mac: [0; 6],
            });
            rule.chain == PREROUTING && rule.is(Family::Bridge, &enter)
        };
        (0..HOST_VETHS).any(enters).then_some(owner)
    })
}

/// What is missing for `wanted`, in words.
pub fn missing(socket: &Socket, wanted: &SpoofCheck) -> Result<Option<String>, Error> {
    let found = listing::rules(socket, TABLE, None)?;
    if additions(&found, wanted).is_empty() {
        return Ok(None);
    }
    let (port, table) = (&wanted.host_veth, TABLE);
    Ok(Some(format!(
        "the MAC spoof check of {port} in table {table} is not complete"
    )))
}

/// A chain and its rules.
type Wanted = (Cow<'static, str>, Vec<Rule>);

fn chains(wanted: &SpoofCheck) -> (Rule, [Wanted; 2]) {
    let names = Names::of(&wanted.owner);
    let rule = |statements: Vec<Statement>| Rule::new(statements).comment(names.comment.clone());
    let enter = rule(vec![
        Statement::Interface(wanted.host_veth.clone()),
        Statement::Jump(names.interface.clone()),
    ]);
    let interface = vec![rule(vec![Statement::Jump(names.mac.clone())])];
    let mac = vec![
        rule(vec![Statement::EtherSource(wanted.mac), Statement::Return]),
        rule(vec![Statement::Drop]),
    ];
    let chains = [
        (names.interface.clone().into(), interface),
        (names.mac.clone().into(), mac),
    ];
    (enter, chains)
}

fn additions(found: &[Listed], wanted: &SpoofCheck) -> Transaction {
    let (enter, chains) = chains(wanted);
    let comment = Names::of(&wanted.owner).comment;
    let mut entries = found
        .iter()
        .filter(|it| it.chain == PREROUTING && it.comment == fitting(&comment));
    let (first, more) = (entries.next(), entries.next());
    let entered = first.is_some_and(|it| it.is(Family::Bridge, &enter)) && more.is_none();
    let has = |(name, rules): &Wanted| {
        let mut found = found.iter().filter(|it| it.chain == *name);
        let all = rules
            .iter()
            .all(|rule| found.next().is_some_and(|it| it.is(Family::Bridge, rule)));
        all && found.next().is_none()
    };

    let mut changes = Transaction::new();
    if entered && chains.iter().all(has) {
        return changes;
    }
    changes.push(Change::AddTable(TABLE));
    changes.push(Change::AddChain(TABLE, prerouting()));
    for (name, _) in &chains {
        let (name, hook, comment) = (name.clone(), None, "");
        changes.push(Change::AddChain(
            TABLE,
            Chain {
                name,
                hook,
                comment,
            },
        ));
    }
    for (name, rules) in chains {
        changes.push(Change::FlushChain(TABLE, name.clone()));
        for rule in rules {
            changes.push(Change::AddRule(TABLE, name.clone(), rule));
        }
    }
    if !entered {
        // Of an ADD that was repeated, perhaps with another veth.
        for rule in found {
            if rule.chain == PREROUTING && rule.comment == fitting(&comment) {
                changes.push(rule.deletion(TABLE));
            }
        }
        changes.push(Change::AddRule(TABLE, PREROUTING.into(), enter));
    }
    changes
}

fn prerouting() -> Chain {
    Chain {
        name: PREROUTING.into(),
        hook: Some(Hook {
            kind: "filter",
            point: Point::Prerouting,
            priority: -300,
        }),
        comment: "",
    }
}

fn removals(found: &[Listed], owner: &Attachment) -> Transaction {
    let names = Names::of(owner);
    let mut changes = Transaction::new();
    for rule in found {
        if rule.chain == PREROUTING && rule.comment == fitting(&names.comment) {
            changes.push(rule.deletion(TABLE));
        }
    }
    // A chain that nobody jumps to any more goes with its rules; the one that
    // jumps has to go first.
    for name in [names.interface, names.mac] {
        if found.iter().any(|it| it.chain == name) {
            changes.push(Change::DeleteChain(TABLE, name));
        }
    }
    changes
}

#[cfg(test)]
mod tests {
    use super::*;
    use cni::env::{ContainerId, IfName};

    fn wanted(mac: [u8; 6]) -> SpoofCheck {
        SpoofCheck {
            owner: Attachment {
                network: "mynet".into(),
                container_id: ContainerId::parse("c1").unwrap(),
                ifname: IfName::parse("eth0").unwrap(),
            },
            host_veth: "veth1".into(),
            mac,
        }
    }

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 0xab];

    /// The rules as they are listed after an ADD.
    fn found(wanted: &SpoofCheck) -> Vec<Listed> {
        let (enter, chains) = chains(wanted);
        let mut rules = vec![(PREROUTING.to_owned(), enter)];
        for (name, its) in chains {
            rules.extend(its.into_iter().map(|it| (name.to_string(), it)));
        }
        let numbered = rules.iter().zip(10..);
        numbered
            .map(|((chain, rule), handle)| Listed::of(Family::Bridge, chain, handle, rule))
            .collect()
    }

    #[test]
    fn a_port_is_checked_in_chains_of_its_own() {
        let expected = "\
add table bridge nat
add chain bridge nat PREROUTING { type filter hook prerouting priority -300 ; policy accept ; }
add chain bridge nat cni-br-iface-c1-eth0
add chain bridge nat cni-br-iface-c1-eth0-mac
flush chain bridge nat cni-br-iface-c1-eth0
add rule bridge nat cni-br-iface-c1-eth0 jump cni-br-iface-c1-eth0-mac comment \"macspoofchk-c1-eth0\"
flush chain bridge nat cni-br-iface-c1-eth0-mac
add rule bridge nat cni-br-iface-c1-eth0-mac ether saddr 02:00:00:00:00:ab return comment \"macspoofchk-c1-eth0\"
add rule bridge nat cni-br-iface-c1-eth0-mac drop comment \"macspoofchk-c1-eth0\"
add rule bridge nat PREROUTING iifname \"veth1\" jump cni-br-iface-c1-eth0 comment \"macspoofchk-c1-eth0\"
";
        assert_eq!(additions(&[], &wanted(MAC)).to_string(), expected);
    }

    #[test]
    fn what_is_there_is_not_written_again() {
        let wanted = wanted(MAC);
        assert!(additions(&found(&wanted), &wanted).is_empty());
    }

    #[test]
    fn a_port_is_known_by_its_network_though_no_rule_names_it() {
        let mut wanted = wanted(MAC);
        wanted.owner.container_id = ContainerId::parse("a-b").unwrap();
        wanted.host_veth = wanted.owner.host_veth(1);
        let found = found(&wanted);
        let ports = |network| {
            found
                .iter()
                .filter_map(|it| port_of(network, it))
                .collect::<Vec<_>>()
        };
        assert_eq!(ports("mynet"), [wanted.owner.clone()]);
        assert_eq!(ports("other"), []);
    }

    #[test]
    fn removal_takes_what_jumps_before_what_is_jumped_to() {
        let wanted = wanted(MAC);
        let expected = "\
delete rule bridge nat PREROUTING handle 10
delete chain bridge nat cni-br-iface-c1-eth0
delete chain bridge nat cni-br-iface-c1-eth0-mac
";
        let changes = removals(&found(&wanted), &wanted.owner).to_string();
        assert_eq!(changes, expected);
        assert!(removals(&[], &wanted.owner).is_empty());
    }
}
