//! The MAC spoof check of bridge ports: a frame that comes from a pod's host veth with another MAC
//! than the pod's is dropped.
//!
//! Table, chains and comments are those of the Go bridge plugin, so that each suite removes what
//! the other wrote. They join the names of container and interface by a dash, which both may
//! contain, and leave out the network. So where the joined name is ambiguous, ours is a hash. And
//! an entry belongs to a port by the veth that it names, not by its comment alone.

use std::collections::HashSet;

use anyhow::Result;
use cni::conf::ValidAttachment;
use cni::{Attachment, names};
use nftables::listing::{self, has_exactly, in_chain};
use nftables::{
    COMMENT_LENGTH, Chain, Error, Family, Listed, Point, Rule, Socket, Statement, Table,
    Transaction, fitting,
};

use crate::backend::{Nftables, complete};
use crate::inventory::{Applied, Subject};

const TABLE: Table = Table::new(Family::Bridge, "nat");
const PREROUTING: &str = "PREROUTING";

/// The spoof check that an attachment wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpoofCheck {
    /// The attachment.
    pub owner: Attachment,
    /// The host end of its veth pair: the bridge's port.
    pub host_veth: String,
    /// The MAC of the container end.
    pub mac: [u8; 6],
}

/// Whether a host veth, by its name, certainly belongs to another attachment.
pub type IsOfOther<'a> = &'a dyn Fn(&str) -> bool;

impl Nftables {
    /// Drops frames that the veth of `wanted` sends with another MAC. It can be repeated. Entries
    /// for veths of other attachments stay.
    pub fn ensure_spoof_check(
        &self,
        wanted: &SpoofCheck,
        is_of_other: IsOfOther<'_>,
    ) -> Result<()> {
        self.transact(|socket| {
            let found = listing::rules(socket, TABLE)?;
            Ok(additions(&found, wanted, is_of_other))
        })
    }

    /// Removes the check of `owner`, found by its names, except entries for the veth of another
    /// attachment.
    pub fn remove_spoof_check(&self, owner: &Attachment, is_of_other: IsOfOther<'_>) -> Result<()> {
        self.transact(|socket| {
            let found = listing::rules(socket, TABLE)?;
            Ok(removals(&found, owner, is_of_other))
        })
    }

    /// Removes the checks of ports of `network` that are not `valid`, though the port itself is
    /// gone. Checks of the Go plugin, whose host veths have random names, are not found.
    pub fn collect_spoof_checks(&self, network: &str, valid: &[ValidAttachment]) -> Result<()> {
        let alive: Vec<_> = valid.iter().filter_map(|it| it.owner(network)).collect();
        self.transact(|socket| {
            let found = listing::rules(socket, TABLE)?;
            Ok(collection(&found, network, &alive))
        })
    }

    /// Fails if something of a check is missing.
    pub fn check_spoof_check(&self, wanted: &SpoofCheck) -> Result<()> {
        complete(missing(&listing::rules(&self.socket, TABLE)?, wanted))
    }

    /// Changes that add many checks, each with a veth of its own.
    pub(crate) fn spoof_check_additions(&self, all: &[&SpoofCheck]) -> Result<Transaction> {
        let found = listing::rules(&self.socket, TABLE)?;
        let mut changes = Transaction::new();
        for wanted in all {
            changes.extend(additions(&found, wanted, &|_| true));
        }
        Ok(changes)
    }
}

/// Names that are derived from the attachment.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Names {
    interface: String,
    mac: String,
    comment: String,
}

const COMMENT: &str = "macspoofchk-";

impl Names {
    fn of(owner: &Attachment) -> Self {
        if is_unambiguous(owner) {
            Self::of_go(owner)
        } else {
            Self::hashed(owner)
        }
    }

    /// The names of the Go plugin, and of earlier releases of podwire.
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

/// The beginning of the ids of hashed names for all ports of a network. No joined name begins like
/// this, because it has a dash.
fn hashed_prefix(network: &str) -> String {
    format!("podwire_{}_", names::prefixed(16, "", network))
}

/// Whether the joined name can be read in one way only, and by nft: what follows the last dash is
/// the interface, and no other port has its chains. An interface called `mac` would have the
/// second chain of another, and only a part of a long comment is kept.
fn is_unambiguous(owner: &Attachment) -> bool {
    let ifname = owner.ifname.as_str();
    let plain = |it: char| it.is_ascii_alphanumeric() || it == '_' || it == '.';
    let length = COMMENT.len() + owner.container_id.as_str().len() + 1 + ifname.len();
    ifname.chars().all(plain) && ifname != "mac" && length <= COMMENT_LENGTH
}

/// Changes that remove the checks of ports of `network` that are not `alive`.
fn collection(found: &[Listed], network: &str, alive: &[Attachment]) -> Transaction {
    let mut changes = collect_hashed(found, network, alive);
    let mut dead = Vec::new();
    for owner in found.iter().filter_map(|it| port_of(network, it)) {
        if !alive.contains(&owner) && !dead.contains(&owner) {
            // It is identified by its veth.
            changes.extend(removals(found, &owner, &|_| true));
            dead.push(owner);
        }
    }
    changes
}

/// A hashed name contains its network, and can be compared with the name of a known attachment.
fn collect_hashed(found: &[Listed], network: &str, alive: &[Attachment]) -> Transaction {
    let begin = format!("{COMMENT}{}", hashed_prefix(network));
    let alive: HashSet<_> = alive.iter().map(|it| Names::hashed(it).comment).collect();
    let is_stale = |it: &&Listed| it.comment.starts_with(&begin) && !alive.contains(&it.comment);
    let (mut changes, mut ids) = (Transaction::new(), HashSet::new());
    for rule in in_chain(found, PREROUTING).filter(is_stale) {
        changes.delete_rule(rule);
        ids.extend(rule.comment.strip_prefix(COMMENT));
    }
    for id in ids {
        delete_chains(&mut changes, found, &Names::with_id(id));
    }
    changes
}

/// How many names a host veth may have had. It never had to take the tenth.
const HOST_VETHS: u32 = 10;

/// The port of `network` that enters its chain by `rule`, under the Go plugin's names. The comment
/// does not name the network, but the name of the host veth is derived from it.
fn port_of(network: &str, rule: &Listed) -> Option<Attachment> {
    let id = rule.comment.strip_prefix(COMMENT)?;
    // There may be more dashes on both sides.
    id.match_indices('-').find_map(|(dash, _)| {
        let owner = Attachment::parse(network, &id[..dash], &id[dash + 1..])?;
        (rule.chain == PREROUTING && has_veth_of(rule, &owner)).then_some(owner)
    })
}

/// Whether a rule names a veth whose name is derived from `owner`.
fn has_veth_of(rule: &Listed, owner: &Attachment) -> bool {
    rule.interface()
        .is_some_and(|veth| (0..HOST_VETHS).any(|it| owner.host_veth(it) == veth))
}

/// What `found` lacks of `wanted`, in words.
fn missing(found: &[Listed], wanted: &SpoofCheck) -> Option<String> {
    // An earlier release used the Go plugin's names for all.
    let mut names = [Names::of(&wanted.owner), Names::of_go(&wanted.owner)].into_iter();
    let port = &wanted.host_veth;
    (!names.any(|it| Layout::new(wanted, it).is_complete(found)))
        .then(|| format!("the MAC spoof check of {port} in table {TABLE} is not complete"))
}

/// The rule that enters the first of a port's two chains, and the chains.
struct Layout {
    enter: Rule,
    chains: [(String, Vec<Rule>); 2],
}

impl Layout {
    fn new(wanted: &SpoofCheck, names: Names) -> Self {
        let rule = |statements: &[Statement]| Rule::new(statements).comment(&names.comment);
        let enter = rule(&[
            Statement::Interface(wanted.host_veth.clone()),
            Statement::Jump(names.interface.clone()),
        ]);
        let interface = vec![rule(&[Statement::Jump(names.mac.clone())])];
        let mac = vec![
            rule(&[Statement::EtherSource(wanted.mac), Statement::Return]),
            rule(&[Statement::Drop]),
        ];
        let chains = [(names.interface, interface), (names.mac, mac)];
        Self { enter, chains }
    }

    fn is_complete(&self, found: &[Listed]) -> bool {
        let has = |(name, rules): &(String, Vec<Rule>)| has_exactly(found, name, rules);
        in_chain(found, PREROUTING).any(|it| it.is(&self.enter)) && self.chains.iter().all(has)
    }
}

/// Changes that make the kernel check as `wanted`; none if it does.
fn additions(found: &[Listed], wanted: &SpoofCheck, is_of_other: IsOfOther<'_>) -> Transaction {
    let names = Names::of(&wanted.owner);
    let comment = names.comment.clone();
    let layout = Layout::new(wanted, names);
    // Entries of an ADD that was repeated, perhaps with another veth. One for another attachment's
    // veth stays: if it leads to our chain, that drops the other's frames.
    let mut entered = false;
    let is_old = |it: &&Listed| {
        it.comment == fitting(&comment)
            && belongs_to(it, &wanted.owner, is_of_other)
            // The first correct entry stays.
            && (!it.is(&layout.enter) || std::mem::replace(&mut entered, true))
    };
    let old: Vec<_> = in_chain(found, PREROUTING).filter(is_old).collect();

    let mut changes = Transaction::new();
    if layout.is_complete(found) && old.is_empty() {
        return changes;
    }
    // If an existing chain is named again, the kernel takes that for an update, and closing the
    // socket waits some 10 ms for RCU.
    if in_chain(found, PREROUTING).next().is_none() {
        changes.add_table(TABLE);
        let chain = Chain::hooked(PREROUTING, "filter", Point::Prerouting, -300);
        changes.add_chain(TABLE, chain);
    }
    let is_there = |name: &str| in_chain(found, name).next().is_some();
    for (name, _) in layout.chains.iter().filter(|(name, _)| !is_there(name)) {
        changes.add_chain(TABLE, Chain::new(name.clone()));
    }
    for (name, rules) in layout.chains {
        if is_there(&name) {
            changes.refill_chain(TABLE, name, rules);
        } else {
            for rule in rules {
                changes.add_rule(TABLE, name.clone(), rule);
            }
        }
    }
    old.into_iter().for_each(|it| changes.delete_rule(it));
    if !entered {
        changes.add_rule(TABLE, PREROUTING, layout.enter);
    }
    changes
}

/// Whether an entry with the comment of `owner` belongs to it. The Go plugin's veths have random
/// names.
fn belongs_to(entry: &Listed, owner: &Attachment, is_of_other: IsOfOther<'_>) -> bool {
    has_veth_of(entry, owner) || !entry.interface().is_some_and(|veth| is_of_other(&veth))
}

fn removals(found: &[Listed], owner: &Attachment, is_of_other: IsOfOther<'_>) -> Transaction {
    let own = Names::of(owner);
    let mut changes = removals_of(found, owner, &own, is_of_other);
    let of_go = Names::of_go(owner);
    if of_go != own {
        // Of an earlier release; the name may be another attachment's by now.
        changes.extend(removals_of(found, owner, &of_go, &|_| true));
    }
    changes
}

fn removals_of(
    found: &[Listed],
    owner: &Attachment,
    names: &Names,
    is_of_other: IsOfOther<'_>,
) -> Transaction {
    let entries = in_chain(found, PREROUTING).filter(|it| it.comment == fitting(&names.comment));
    let (own, others): (Vec<_>, Vec<_>) =
        entries.partition(|it| belongs_to(it, owner, is_of_other));
    let mut changes = Transaction::new();
    own.iter().for_each(|it| changes.delete_rule(it));
    let is_own_name = *names == Names::of(owner);
    if others.is_empty() && (is_own_name || !own.is_empty()) {
        delete_chains(&mut changes, found, names);
    }
    changes
}

/// Deletes the port's chains with their rules: first the one that leads to the other.
fn delete_chains(changes: &mut Transaction, found: &[Listed], names: &Names) {
    for name in [&names.interface, &names.mac] {
        if in_chain(found, name).next().is_some() {
            changes.delete_chain(TABLE, name.clone());
        }
    }
}

/// The effect of the rules, for people: those that lead from a port to its check.
pub fn inventory(socket: &Socket) -> Result<Vec<Applied>, Error> {
    let found = listing::rules(socket, TABLE)?;
    let own = in_chain(&found, PREROUTING).filter(|it| it.comment.starts_with(COMMENT));
    let applied = own.map(|rule| Applied {
        devices: rule.interface().into_iter().collect(),
        ..Applied::new(Subject::SpoofCheck, TABLE, &rule.comment)
    });
    Ok(applied.collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::example;

    fn wanted(mac: [u8; 6]) -> SpoofCheck {
        SpoofCheck {
            owner: example::attachment("c1"),
            host_veth: "veth1".into(),
            mac,
        }
    }

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 0xab];

    /// The rules as they are listed after an ADD.
    fn found(wanted: &SpoofCheck) -> Vec<Listed> {
        let Layout { enter, chains } = Layout::new(wanted, Names::of(&wanted.owner));
        let mut rules = vec![(PREROUTING.to_owned(), enter)];
        for (name, its) in chains {
            rules.extend(its.into_iter().map(|it| (name.clone(), it)));
        }
        let numbered = rules.iter().zip(10..);
        numbered
            .map(|((chain, rule), handle)| Listed::of(TABLE, chain, handle, rule))
            .collect()
    }

    #[test]
    fn a_port_is_checked_in_chains_of_its_own() {
        let expected = "\
add table bridge nat
add chain bridge nat PREROUTING { type filter hook prerouting priority -300 ; policy accept ; }
add chain bridge nat cni-br-iface-c1-eth0
add chain bridge nat cni-br-iface-c1-eth0-mac
add rule bridge nat cni-br-iface-c1-eth0 jump cni-br-iface-c1-eth0-mac comment \"macspoofchk-c1-eth0\"
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
    fn a_port_is_known_by_its_network_though_no_rule_names_it() {
        let mut wanted = wanted(MAC);
        wanted.owner = example::attachment("a-b");
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
        wanted.owner = Attachment::parse("mynet", id, ifname).unwrap();
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
        let enter = Layout::new(&old, Names::of_go(&old.owner)).enter;
        rules.push(Listed::of(TABLE, PREROUTING, 99, &enter));
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
