//! The MAC spoof check of bridge ports: a frame from a pod's host veth has the
//! pod's MAC, or it is dropped.
//!
//! Table, chains and comments are those of the Go bridge plugin, so that either
//! suite removes what the other wrote. They join the names of container and interface by a
//! dash, which both may contain, and leave out the network. So where the joined name could be
//! read otherwise, ours is a hash; and an entry is a port's own by the veth that it names,
//! not by its comment alone.

use std::borrow::Cow;
use std::collections::HashSet;

use cni::conf::ValidAttachment;
use cni::env::{ContainerId, IfName};
use cni::{Attachment, names};

use nftables::Error;
use nftables::Socket;
use nftables::Statement;
use nftables::listing::{self, Listed};
use nftables::{
    COMMENT_LENGTH, Chain, Change, Family, Hook, Point, Rule, Table, Transaction, fitting,
};

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
#[derive(Clone, Debug, PartialEq, Eq)]
struct Names {
    interface: String,
    mac: String,
    comment: String,
}

impl Names {
    fn of(owner: &Attachment) -> Self {
        match is_clear(owner) {
            true => Self::of_go(owner),
            false => Self::hashed(owner),
        }
    }

    /// Those of the Go plugin, and of earlier releases of podwire.
    fn of_go(owner: &Attachment) -> Self {
        Self::with_id(&format!("{}-{}", owner.container_id, owner.ifname))
    }

    fn hashed(owner: &Attachment) -> Self {
        let network = hashed_prefix(&owner.network);
        let hash = names::prefixed(32, "", &owner.alias());
        Self::with_id(&format!("{network}{hash}"))
    }

    fn with_id(id: &str) -> Self {
        Self {
            interface: format!("cni-br-iface-{id}"),
            mac: format!("cni-br-iface-{id}-mac"),
            comment: format!("{COMMENT}{id}"),
        }
    }
}

const COMMENT: &str = "macspoofchk-";

/// How the ids of hashed names begin for all ports of a network. No joined name is one of them:
/// it has a dash.
fn hashed_prefix(network: &str) -> String {
    format!("podwire_{}_", names::prefixed(16, "", network))
}

/// Whether the joined name can be read in one way only, and by nft: what follows the last dash is
/// the interface, and no other port has its chains. One called `mac` would have the second
/// chain of another, and of a long comment only a part is kept.
fn is_clear(owner: &Attachment) -> bool {
    let ifname = owner.ifname.as_str();
    let plain = |it: char| it.is_ascii_alphanumeric() || it == '_' || it == '.';
    let length = COMMENT.len() + owner.container_id.as_str().len() + 1 + ifname.len();
    ifname.chars().all(plain) && ifname != "mac" && length <= COMMENT_LENGTH
}

/// Whether a host veth, by its name, is certain to be another attachment's.
pub type IsAnothers<'a> = &'a dyn Fn(&str) -> bool;

/// Changes that make the kernel check as `wanted`; none if it does.
pub fn add(
    socket: &Socket,
    wanted: &SpoofCheck,
    is_anothers: IsAnothers<'_>,
) -> Result<Transaction, Error> {
    let found = listing::rules(socket, TABLE, None)?;
    Ok(additions(&found, wanted, is_anothers))
}

/// The same for many ports, of which each has its veth.
pub fn add_all(socket: &Socket, all: &[&SpoofCheck]) -> Result<Transaction, Error> {
    let found = listing::rules(socket, TABLE, None)?;
    let mut changes = Transaction::new();
    for wanted in all {
        changes.extend(additions(&found, wanted, &|_| true));
    }
    Ok(changes)
}

/// Changes that take away what is there for `owner`.
pub fn remove(
    socket: &Socket,
    owner: &Attachment,
    is_anothers: IsAnothers<'_>,
) -> Result<Transaction, Error> {
    let found = listing::rules(socket, TABLE, None)?;
    Ok(removals(&found, owner, is_anothers))
}

/// Changes that take away what is there for ports of `network` that are of
/// nobody `valid`.
pub fn collect(
    socket: &Socket,
    network: &str,
    valid: &[ValidAttachment],
) -> Result<Transaction, Error> {
    let found = listing::rules(socket, TABLE, None)?;
    let alive: Vec<_> = valid.iter().filter_map(|it| owner(network, it)).collect();
    let mut changes = collect_hashed(&found, network, &alive);
    let mut dead = Vec::new();
    for owner in found.iter().filter_map(|it| port_of(network, it)) {
        if !alive.contains(&owner) && !dead.contains(&owner) {
            // It is known by its veth.
            changes.extend(removals(&found, &owner, &|_| true));
            dead.push(owner);
        }
    }
    Ok(changes)
}

fn owner(network: &str, valid: &ValidAttachment) -> Option<Attachment> {
    Some(Attachment {
        network: network.to_owned(),
        container_id: ContainerId::parse(&valid.container_id).ok()?,
        ifname: IfName::parse(&valid.ifname).ok()?,
    })
}

/// Hashed names say which network they are of, and of no attachment more than whether it is one.
fn collect_hashed(found: &[Listed], network: &str, alive: &[Attachment]) -> Transaction {
    let begin = format!("{COMMENT}{}", hashed_prefix(network));
    let alive: HashSet<_> = alive.iter().map(|it| Names::hashed(it).comment).collect();
    let entries = found.iter().filter(|it| it.chain == PREROUTING);
    let stale = entries.filter(|it| it.comment.starts_with(&begin) && !alive.contains(&it.comment));
    let (mut changes, mut ids) = (Transaction::new(), HashSet::new());
    for rule in stale {
        changes.push(rule.deletion(TABLE));
        ids.extend(rule.comment.strip_prefix(COMMENT));
    }
    for id in ids {
        changes.extend(chain_deletions(found, &Names::with_id(id)));
    }
    changes
}

/// How many names a host veth may have had: the first was taken ten times never.
const HOST_VETHS: u32 = 10;

/// Whose port of `network` enters its chain by `rule`, under the Go plugin's names. The comment
/// does not name the network, but the host veth follows from it.
fn port_of(network: &str, rule: &Listed) -> Option<Attachment> {
    let id = rule.comment.strip_prefix(COMMENT)?;
    // Both sides of the dash may have more of them.
    id.match_indices('-').find_map(|(dash, _)| {
        let owner = Attachment {
            network: network.to_owned(),
            container_id: ContainerId::parse(&id[..dash]).ok()?,
            ifname: IfName::parse(&id[dash + 1..]).ok()?,
        };
        (rule.chain == PREROUTING && has_veth_of(rule, &owner)).then_some(owner)
    })
}

/// Whether a rule names a veth that follows from `owner`.
fn has_veth_of(rule: &Listed, owner: &Attachment) -> bool {
    rule.interface()
        .is_some_and(|veth| (0..HOST_VETHS).any(|it| owner.host_veth(it) == veth))
}

/// What is missing for `wanted`, in words.
pub fn missing(socket: &Socket, wanted: &SpoofCheck) -> Result<Option<String>, Error> {
    let found = listing::rules(socket, TABLE, None)?;
    let owner = &wanted.owner;
    // Of an earlier release.
    let complete = |names: Names| is_complete(&found, &chains(wanted, &names));
    if complete(Names::of(owner)) || complete(Names::of_go(owner)) {
        return Ok(None);
    }
    let (port, table) = (&wanted.host_veth, TABLE);
    Ok(Some(format!(
        "the MAC spoof check of {port} in table {table} is not complete"
    )))
}

/// A chain and its rules.
type Wanted = (Cow<'static, str>, Vec<Rule>);

/// The rule that enters the first of the two chains, and the chains.
type Check = (Rule, [Wanted; 2]);

fn chains(wanted: &SpoofCheck, names: &Names) -> Check {
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

fn is_complete(found: &[Listed], (enter, chains): &Check) -> bool {
    let mut entries = found.iter().filter(|it| it.chain == PREROUTING);
    let has = |(name, rules): &Wanted| {
        let mut found = found.iter().filter(|it| it.chain == *name);
        let all = rules
            .iter()
            .all(|rule| found.next().is_some_and(|it| it.is(Family::Bridge, rule)));
        all && found.next().is_none()
    };
    entries.any(|it| it.is(Family::Bridge, enter)) && chains.iter().all(has)
}

fn additions(found: &[Listed], wanted: &SpoofCheck, is_anothers: IsAnothers<'_>) -> Transaction {
    let names = Names::of(&wanted.owner);
    let check = chains(wanted, &names);
    let complete = is_complete(found, &check);
    let (enter, chains) = check;
    // Of an ADD that was repeated, perhaps with another veth. Another's stays: if it leads to our
    // chain, that drops its frames.
    let mut entered = false;
    let is_old = |it: &&Listed| {
        it.chain == PREROUTING
            && it.comment == fitting(&names.comment)
            && (has_veth_of(it, &wanted.owner) || !it.interface().is_some_and(|it| is_anothers(&it)))
            // The first of those that are as they should be stays.
            && (!it.is(Family::Bridge, &enter) || std::mem::replace(&mut entered, true))
    };
    let old: Vec<_> = found.iter().filter(is_old).collect();

    let mut changes = Transaction::new();
    if complete && old.is_empty() {
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
    for rule in old {
        changes.push(rule.deletion(TABLE));
    }
    if !entered {
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

fn removals(found: &[Listed], owner: &Attachment, is_anothers: IsAnothers<'_>) -> Transaction {
    let own = Names::of(owner);
    let mut changes = removals_of(found, owner, &own, is_anothers);
    let of_go = Names::of_go(owner);
    if of_go != own {
        // Of an earlier release; the name may be another's by now.
        changes.extend(removals_of(found, owner, &of_go, &|_| true));
    }
    changes
}

fn removals_of(
    found: &[Listed],
    owner: &Attachment,
    names: &Names,
    is_anothers: IsAnothers<'_>,
) -> Transaction {
    let entries = found
        .iter()
        .filter(|it| it.chain == PREROUTING && it.comment == fitting(&names.comment));
    // The Go plugin's veths have names by chance.
    let (doomed, others): (Vec<_>, Vec<_>) = entries.partition(|it| {
        has_veth_of(it, owner) || !it.interface().is_some_and(|veth| is_anothers(&veth))
    });
    let mut changes = Transaction::new();
    for rule in &doomed {
        changes.push(rule.deletion(TABLE));
    }
    let is_own_name = *names == Names::of(owner);
    if others.is_empty() && (is_own_name || !doomed.is_empty()) {
        changes.extend(chain_deletions(found, names));
    }
    changes
}

/// A chain that nobody jumps to any more goes with its rules; the one that
/// jumps has to go first.
fn chain_deletions(found: &[Listed], names: &Names) -> Transaction {
    let mut changes = Transaction::new();
    for name in [&names.interface, &names.mac] {
        if found.iter().any(|it| it.chain == *name) {
            changes.push(Change::DeleteChain(TABLE, name.clone()));
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
        let (enter, chains) = chains(wanted, &Names::of(&wanted.owner));
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
        assert_eq!(
            additions(&[], &wanted(MAC), &|_| true).to_string(),
            expected
        );
    }

    #[test]
    fn what_is_there_is_not_written_again() {
        let wanted = wanted(MAC);
        assert!(additions(&found(&wanted), &wanted, &|_| true).is_empty());
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
        let changes = removals(&found(&wanted), &wanted.owner, &|_| false).to_string();
        assert_eq!(changes, expected);
        assert!(removals(&[], &wanted.owner, &|_| true).is_empty());
    }

    /// One of a family of owners whose joined names are all the same.
    fn of(id: &str, ifname: &str) -> SpoofCheck {
        let mut wanted = wanted(MAC);
        wanted.owner.container_id = ContainerId::parse(id).unwrap();
        wanted.owner.ifname = IfName::parse(ifname).unwrap();
        wanted.host_veth = wanted.owner.host_veth(0);
        wanted
    }

    #[test]
    fn no_two_ports_have_a_chain_or_a_comment_in_common() {
        let long = "c".repeat(110);
        let all = [
            ("x", "a-eth0"),
            ("x-a", "eth0"),
            ("x-a-eth0", "mac"),
            ("x", "a-eth0-mac"),
            ("x-a", "eth0-mac"),
            (&*long, "eth0"),
            (&*format!("{long}c"), "eth0"),
        ];
        let names = all.map(|(id, ifname)| Names::of(&of(id, ifname).owner));
        let mut seen = HashSet::new();
        for Names {
            interface,
            mac,
            comment,
        } in names
        {
            assert!(comment.len() <= COMMENT_LENGTH, "{comment}");
            for name in [interface, mac, comment] {
                assert!(seen.insert(name.clone()), "{name}");
            }
        }
        assert_eq!(
            Names::of(&of("x-a", "eth0").owner),
            Names::of_go(&of("x-a", "eth0").owner)
        );
    }

    #[test]
    fn what_leads_a_neighbours_veth_to_a_shared_name_stays() {
        // As earlier releases wrote it for both.
        let (old, other) = (of("x", "a-eth0"), of("x-a", "eth0"));
        let mut rules = found(&other);
        let (enter, _) = chains(&old, &Names::of_go(&old.owner));
        rules.push(Listed::of(Family::Bridge, PREROUTING, 99, &enter));
        let removal = removals(&rules, &old.owner, &|_| true).to_string();
        assert_eq!(removal, "delete rule bridge nat PREROUTING handle 99\n");
        let anothers = |veth: &str| veth == old.host_veth;
        let added = additions(&rules, &of("x-a", "eth0"), &anothers);
        assert!(added.is_empty(), "{added}");
        // That of a veth that is no more goes.
        let added = additions(&rules, &of("x-a", "eth0"), &|_| false).to_string();
        assert!(added.contains("handle 99"), "{added}");
    }

    #[test]
    fn collection_finds_hashed_names_of_its_network_alone() {
        let (dead, alive) = (of("x", "a-eth0"), of("y", "a-eth0"));
        let rules: Vec<_> = [&dead, &alive].into_iter().flat_map(found).collect();
        let changes =
            collect_hashed(&rules, "mynet", std::slice::from_ref(&alive.owner)).to_string();
        let names = Names::of(&dead.owner);
        assert!(
            changes.contains(&format!("delete chain bridge nat {}\n", names.mac)),
            "{changes}"
        );
        assert!(
            !changes.contains(&Names::of(&alive.owner).interface),
            "{changes}"
        );
        assert!(collect_hashed(&rules, "other", &[]).is_empty());
    }
}
