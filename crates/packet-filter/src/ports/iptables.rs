//! Published ports in iptables: an entry in CNI-HOSTPORT-DNAT for each 15 ports of a protocol leads to
//! a chain of the container on its network, which has the rules of each mapping.

use std::net::SocketAddr;

use anyhow::Result;
use cni::conf::ValidAttachment;
use cni::{Attachment, names};
use ipnetwork::IpNetwork;

use crate::iptables::table::{Family, Listing, NAT, Transaction, jumps_to, option, word, words};
use crate::masquerade::iptables::{COMMENT, POSTROUTING, subnet};
use crate::ports::{HostPorts, Mapping, Mark, Notice, Protocol, Snat};

/// All entries are here.
pub const ENTRIES: &str = "CNI-HOSTPORT-DNAT";
/// Plugins before 0.7 had a second chain for each pod, entered from here.
pub const OLD_ENTRIES: &str = "CNI-HOSTPORT-SNAT";
/// Marks packets to masquerade.
const SET_MARK: &str = "CNI-HOSTPORT-SETMARK";
/// Masquerades marked packets.
const MASQUERADE: &str = "CNI-HOSTPORT-MASQ";
/// The ports of one `-m multiport` (XT_MULTI_PORTS).
const PORTS: usize = 15;

/// The rules of a pod in one family.
#[derive(Debug)]
pub struct Rules {
    chain: String,
    shared: Vec<Shared>,
    entries: Vec<String>,
    mappings: Vec<String>,
}

/// A rule that all pods use: added once, and never removed.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Shared {
    chain: &'static str,
    rule: String,
    /// Masquerading comes before everything else in POSTROUTING. The jumps to the entries come after
    /// other rules, so that kube-proxy's Services come first.
    first: bool,
}

/// How much of the table is known.
#[derive(Clone, Copy, Debug)]
pub enum Known<'a> {
    /// The entries. All shared rules are assumed to be there, and the transaction itself fails if
    /// one is not.
    Entries(&'a Listing),
    /// Everything.
    Table(&'a Listing),
}

impl Rules {
    /// `None` if the pod has no address of that family. Fails if a name or a
    /// condition cannot be part of a rule.
    pub fn new(wanted: &HostPorts, family: Family) -> Result<Option<Self>> {
        let (pod, conditions) = match family {
            Family::V4 => (wanted.pod_v4.map(IpNetwork::V4), &wanted.conditions_v4),
            Family::V6 => (wanted.pod_v6.map(IpNetwork::V6), &wanted.conditions_v6),
        };
        let Some(pod) = pod else { return Ok(None) };
        let chain = chain(&wanted.owner);
        let set_mark = set_mark(wanted)?;
        let applicable = wanted.mappings.iter();
        let applicable = applicable.filter(|it| it.applies_to(family == Family::V4));
        Ok(Some(Self {
            shared: shared(wanted),
            entries: entries(wanted, &chain, conditions)?,
            mappings: applicable
                .flat_map(|mapping| mapping_rules(mapping, pod, wanted.snat, &set_mark))
                .collect(),
            chain,
        }))
    }

    /// Adds everything. The own chain is refilled, and own entries are replaced by new ones before all
    /// others: the newest ADD wins.
    pub fn publish(&self, known: Known) -> Transaction {
        let mut transaction = Transaction::new(NAT);
        let listing = match known {
            Known::Entries(listing) => {
                for it in &self.shared {
                    transaction.require(it.chain, &it.rule);
                }
                listing
            }
            Known::Table(listing) => {
                create_shared(&mut transaction, &self.shared, listing);
                listing
            }
        };
        self.fill(&mut transaction, listing);
        transaction
    }

    /// The own chain and the entries to it.
    fn fill(&self, transaction: &mut Transaction, listing: &Listing) {
        transaction.create_empty(&self.chain);
        for rule in &self.mappings {
            transaction.append(&self.chain, rule);
        }
        delete_jumps(transaction, ENTRIES, &self.chain, listing);
        // Each insertion is before the one that it follows here.
        for rule in self.entries.iter().rev() {
            transaction.insert(ENTRIES, rule);
        }
    }

    /// Fails at the first rule that is missing.
    pub fn check(&self) -> Transaction {
        let mut transaction = Transaction::new(NAT);
        for rule in &self.mappings {
            transaction.require(&self.chain, rule);
        }
        for rule in &self.entries {
            transaction.require(ENTRIES, rule);
        }
        for it in &self.shared {
            transaction.require(it.chain, &it.rule);
        }
        transaction
    }
}

fn create_shared(transaction: &mut Transaction, shared: &[Shared], listing: &Listing) {
    // Created, not emptied: the transaction fails if another process was quicker, instead of removing
    // the entries of all pods.
    let mut needed = vec![ENTRIES];
    if shared.iter().any(|it| it.chain == SET_MARK) {
        needed.extend([SET_MARK, MASQUERADE]);
    }
    for chain in needed {
        if listing.chain(chain).is_none() {
            transaction.create(chain);
        }
    }
    for it in shared {
        if listing.rules(it.chain).contains(&it.rule) {
            continue;
        }
        if it.first {
            transaction.insert(it.chain, &it.rule);
        } else {
            transaction.append(it.chain, &it.rule);
        }
    }
}

/// Publishes the ports of many pods, the last of them before all others. A chain that two interfaces
/// of a container share has the rules of the later one, as after two ADDs.
pub fn publish_all(all: &[Rules], listing: &Listing) -> Transaction {
    let mut transaction = Transaction::new(NAT);
    if all.is_empty() {
        return transaction;
    }
    let mut shared = Vec::<Shared>::new();
    for rules in all {
        for it in &rules.shared {
            if !shared.contains(it) {
                shared.push(it.clone());
            }
        }
    }
    create_shared(&mut transaction, &shared, listing);
    for (at, rules) in all.iter().enumerate() {
        if all[at + 1..].iter().all(|later| later.chain != rules.chain) {
            rules.fill(&mut transaction, listing);
        }
    }
    transaction
}

/// Removes the rules of `listing` for the ports of these pods.
pub fn remove_all(all: &[&HostPorts], listing: &Listing) -> Transaction {
    let mut transaction = Transaction::new(NAT);
    let mut gone = Vec::new();
    for wanted in all {
        let chains = [
            (chain(&wanted.owner), ENTRIES),
            (old_chain(&wanted.owner), OLD_ENTRIES),
        ];
        for (chain, entries) in chains {
            if listing.chain(&chain).is_some() && !gone.contains(&chain) {
                remove(&mut transaction, entries, &chain, listing);
                gone.push(chain);
            }
        }
    }
    transaction
}

/// How a rule of [`Rules::check`] was found in a listing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// The same text.
    Same,
    /// The same text except for the conditions, which iptables prints in its own form: only the
    /// program can compare them.
    Similar,
    /// No such rule.
    Missing,
}

/// Compares as text.
pub fn find(listing: &Listing, chain: &str, rule: &str) -> Found {
    let rules = listing.rules(chain);
    if rules.iter().any(|found| found == rule) {
        return Found::Same;
    }
    let Some(target) = option(rule, "-j").filter(|_| chain == ENTRIES) else {
        return Found::Missing;
    };
    // Few of thousands of rules lead there: only these are split into words.
    let parts = |rule: &str| ["-p", "--dports"].map(|it| option(rule, it));
    let there = rules.iter().filter(|found| jumps_to(found, &target));
    let there = there.filter(|found| parts(found) == parts(rule));
    if there.count() < expansions(rule) {
        Found::Missing
    } else {
        Found::Similar
    }
}

/// How many rules iptables makes of one: one for each pair of the addresses in its lists.
fn expansions(rule: &str) -> usize {
    const LISTS: [&str; 6] = ["-s", "-d", "--source", "--src", "--destination", "--dst"];
    let words = words(rule);
    let values = words
        .iter()
        .zip(words.iter().skip(1))
        .filter(|(word, _)| LISTS.contains(&word.as_str()));
    values
        .map(|(_, list)| list.split(',').filter(|it| !it.is_empty()).count().max(1))
        .product()
}

/// The chain of a container on a network. The interface is not in its name.
pub fn chain(owner: &Attachment) -> String {
    chain_of(&owner.network, owner.container_id.as_str())
}

fn chain_of(network: &str, container_id: &str) -> String {
    names::prefixed(28, "CNI-DN-", &format!("{network}{container_id}"))
}

/// The second chain of a pod, which plugins before 0.7 made.
pub fn old_chain(owner: &Attachment) -> String {
    let owner = format!("{}{}", owner.network, owner.container_id);
    names::prefixed(28, "CNI-SN-", &owner)
}

/// Whether a pod's chain may be that of a plugin that made two: no rule of it marks packets.
pub fn may_be_old(rules: &[String]) -> bool {
    rules.iter().all(|rule| rule.contains("-j DNAT "))
}

/// Removes what `listing` has of a chain and of the jumps to it in `entries`.
pub fn remove(transaction: &mut Transaction, entries: &str, chain: &str, listing: &Listing) {
    delete_jumps(transaction, entries, chain, listing);
    transaction.delete_chain(chain);
}

fn delete_jumps(transaction: &mut Transaction, entries: &str, chain: &str, listing: &Listing) {
    let rules = listing.rules(entries).iter();
    for rule in rules.filter(|rule| jumps_to(rule, chain)) {
        transaction.delete(entries, rule);
    }
}

/// Removes the rules of the whole table for pods of `network` that are not `valid`.
pub fn collect(network: &str, valid: &[ValidAttachment], listing: &Listing) -> Transaction {
    let begin = format!("dnat name: {network:?} id: \"");
    let valid: Vec<_> = valid
        .iter()
        .map(|it| chain_of(network, &it.container_id))
        .collect();
    let mut transaction = Transaction::new(NAT);
    let mut stale = Vec::new();
    for rule in listing.rules(ENTRIES) {
        let comment = option(rule, "--comment").unwrap_or_default();
        let Some(chain) = option(rule, "-j").filter(|it| it.starts_with("CNI-DN-")) else {
            continue;
        };
        if !comment.starts_with(&begin) || valid.contains(&chain) {
            continue;
        }
        transaction.delete(ENTRIES, rule);
        if !stale.contains(&chain) {
            stale.push(chain);
        }
    }
    for chain in stale {
        transaction.delete_chain(&chain);
    }
    transaction
}

/// The entries of other containers with a port of ours: their chains have to be read to know whether
/// they have the same address. Attachments of one container do not take ports from each other.
pub fn conflicts(wanted: &HostPorts, family: Family, listing: &Listing) -> Vec<Conflict> {
    let own = chain(&wanted.owner);
    let same_container = format!("\" id: {:?}", wanted.owner.container_id.as_str());
    let ours: Vec<_> = wanted
        .mappings
        .iter()
        .filter(|it| it.applies_to(family == Family::V4))
        .collect();
    let mut conflicts = Vec::new();
    for rule in listing.rules(ENTRIES) {
        if jumps_to(rule, &own) {
            continue;
        }
        let ports = ports(rule);
        let same = |it: &&&Mapping| ports.contains(&(it.protocol, it.host_port));
        if ours.iter().any(|it| same(&it))
            && let Some(chain) = option(rule, "-j")
        {
            let from = option(rule, "--comment").unwrap_or_else(|| chain.clone());
            let conflict = Conflict { chain, from };
            if !conflict.from.ends_with(&same_container) && !conflicts.contains(&conflict) {
                conflicts.push(conflict);
            }
        }
    }
    conflicts
}

/// The chain of another container for a port that we publish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// Its name.
    pub chain: String,
    /// The comment on its entry.
    pub from: String,
}

impl Conflict {
    /// Its mappings in `listing` that ours take over.
    pub fn lost(&self, wanted: &HostPorts, family: Family, listing: &Listing) -> Vec<Notice> {
        let mappings = listing.rules(&self.chain).iter();
        let mappings = mappings.filter_map(|rule| mapping(rule));
        mappings
            .filter(|theirs| {
                let ours = wanted.mappings.iter();
                let mut ours = ours.filter(|it| it.applies_to(family == Family::V4));
                ours.any(|it| covers(it, theirs))
            })
            .map(|mapping| Notice {
                mapping,
                from: self.from.clone(),
            })
            .collect()
    }
}

/// Whether all packets for `theirs` go to `ours` if that comes first.
fn covers(ours: &Mapping, theirs: &Mapping) -> bool {
    let host_ip = ours.specific_host_ip();
    (ours.protocol, ours.host_port) == (theirs.protocol, theirs.host_port)
        && (host_ip.is_none() || host_ip == theirs.host_ip)
}

/// The ports of an entry.
fn ports(entry: &str) -> Vec<(Protocol, u16)> {
    let Some(protocol) = protocol(entry) else {
        return Vec::new();
    };
    let ports = option(entry, "--dports").unwrap_or_default();
    let ports = ports.split(',').filter_map(|port| port.parse().ok());
    ports.map(|port| (protocol, port)).collect()
}

/// The mapping of a rule that rewrites a destination.
fn mapping(rule: &str) -> Option<Mapping> {
    let to: SocketAddr = option(rule, "--to-destination")?.parse().ok()?;
    let host_ip = option(rule, "-d").and_then(|it| it.parse::<IpNetwork>().ok());
    Some(Mapping {
        host_ip: host_ip.map(|network| network.ip()),
        host_port: option(rule, "--dport")?.parse().ok()?,
        container_port: to.port(),
        protocol: protocol(rule)?,
    })
}

fn protocol(rule: &str) -> Option<Protocol> {
    Protocol::parse(&option(rule, "-p")?)
}

/// The chain that marks connections that get the node's address.
fn set_mark(wanted: &HostPorts) -> Result<String> {
    match &wanted.mark {
        Mark::Bit(_) => Ok(SET_MARK.to_owned()),
        Mark::ExternalChain(chain) => word(chain),
    }
}

/// Written as iptables prints them, to be compared as text.
fn shared(wanted: &HostPorts) -> Vec<Shared> {
    let rule = |chain, rule: String| Shared {
        chain,
        rule,
        first: false,
    };
    let mut shared = Vec::new();
    if let (Mark::Bit(bit), true) = (&wanted.mark, wanted.snat != Snat::Off) {
        let mark = format!("{0:#x}/{0:#x}", 1_u32 << bit);
        shared.push(rule(
            SET_MARK,
            format!(
                "-m comment --comment \"CNI portfwd masquerade mark\" -j MARK --set-xmark {mark}"
            ),
        ));
        shared.push(rule(
            MASQUERADE,
            format!("-m mark --mark {mark} -j MASQUERADE"),
        ));
        shared.push(Shared {
            chain: POSTROUTING,
            rule: format!(
                "-m comment --comment \"CNI portfwd requiring masquerade\" -j {MASQUERADE}"
            ),
            first: true,
        });
    }
    for chain in ["PREROUTING", "OUTPUT"] {
        let local = format!("-m addrtype --dst-type LOCAL -j {ENTRIES}");
        shared.push(rule(chain, local));
    }
    shared
}

/// The entries have the ports of all mappings, of the other family too: the Go plugins look for them
/// so.
fn entries(wanted: &HostPorts, chain: &str, conditions: &[String]) -> Result<Vec<String>> {
    let comment = word(&comment(&wanted.owner))?;
    let conditions = conditions.iter().map(|it| word(it));
    let conditions = conditions.collect::<Result<Vec<_>>>()?;
    let mut entries = Vec::new();
    for protocol in Protocol::ALL {
        let all = wanted.mappings.iter();
        let ports = all.filter(|it| it.protocol == protocol);
        let ports: Vec<_> = ports.map(|it| it.host_port.to_string()).collect();
        for ports in ports.chunks(PORTS) {
            let mut rule = vec![format!(
                "-p {protocol} -m comment --comment {comment} -m multiport --dports {}",
                ports.join(",")
            )];
            rule.extend(conditions.iter().cloned());
            rule.push(format!("-j {chain}"));
            entries.push(rule.join(" "));
        }
    }
    Ok(entries)
}

/// The Go plugins' comment. They cut a long one to 253 bytes and three dots, of which iptables keeps
/// two.
fn comment(owner: &Attachment) -> String {
    let id = owner.container_id.as_str();
    let mut comment = format!("dnat name: {:?} id: {id:?}", owner.network);
    if comment.len() > COMMENT {
        comment.truncate(COMMENT - 2);
        comment.push_str("..");
    }
    comment
}

fn mapping_rules(mapping: &Mapping, pod: IpNetwork, snat: Snat, set_mark: &str) -> Vec<String> {
    let host_ip = mapping.specific_host_ip();
    let to = host_ip.map_or_else(String::new, |ip| subnet("-d", IpNetwork::from(ip)));
    let protocol = mapping.protocol;
    let port = format!(
        "{to}-p {protocol} -m {protocol} --dport {}",
        mapping.host_port
    );
    let mut rules = Vec::new();
    match snat {
        Snat::Off => {}
        Snat::All => rules.push(format!("{port} -j {set_mark}")),
        Snat::Hairpin => {
            rules.push(format!("{}{port} -j {set_mark}", subnet("-s", pod)));
            // IPv6 has no route_localnet: nothing comes here from ::1.
            if pod.is_ipv4() {
                rules.push(format!("-s 127.0.0.1/32 {port} -j {set_mark}"));
            }
        }
    }
    let to = SocketAddr::new(pod.ip(), mapping.container_port);
    rules.push(format!("{port} -j DNAT --to-destination {to}"));
    rules
}

#[cfg(test)]
mod tests;
