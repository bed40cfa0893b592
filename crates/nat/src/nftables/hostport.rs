//! UdpPort ports: elements of maps, which cost a lookup each however many
//! there are.
//!
//! | set or map | key | value |
//! |---|---|---|
//! | `hostip_ports` | address of the node, protocol, port | pod's address, port |
//! | `ports` | protocol, port | pod's address, port |
//! | `masqueraded` | source, pod's address | |
//! | `masqueraded_ports` | pod's address, protocol, port | |
//!
//! Each element has its owner as its comment, so that DEL, CHECK and GC know
//! what is whose with nothing else at hand. An element is added so that the
//! kernel refuses it where the key is taken: nobody has to look at the others.

pub mod layout;

use std::collections::HashSet;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, bail};
use cni::Attachment;
use cni::conf::ValidAttachment;
use nix::errno::Errno;

use super::conditional;
use super::conntrack::{self, UdpPort, Which};
use super::error::Error;
use super::go;
use super::listing::{self, Entry};
use super::presence;
use super::socket::{Socket, retry};
use super::transaction::{Change, Element, Family, Part, Set, Table, Transaction};
use crate::hostport::{HostPorts, Mapping, Notice, Protocol};
use layout::{
    FAMILIES, MARTIANS, MASQUERADED, OF_MAPPINGS, SETS, base, closed_localhost, elements, families,
    hashed_prefix, mappings, masqueraded, neighbour_element, neighbour_rule, network_prefix, owner,
    owner_comment, pod, table,
};

/// Publishes; the newest mapping of a port wins. What the owner published
/// before and does not want any more stays until it unpublishes: to find that
/// would mean to look at all ports there are.
pub fn publish(socket: &Socket, wanted: &HostPorts) -> Result<Vec<Notice>> {
    let families = families(wanted);
    if families.is_empty() {
        return Ok(Vec::new());
    }
    let notices = retry(Errno::ERESTART, || -> Result<_> {
        let generation = socket.generation()?;
        let plan = Plan::new(socket, &[wanted], Rival::Loses)?;
        plan.commit(socket, generation)?;
        Ok(plan.notices)
    })?;
    for family in families {
        conditional::publish(socket, family, wanted)?;
    }
    flush(socket, &published(wanted), Which::NotTo);
    Ok(notices)
}

/// Changes that keep others from 127.0.0.0/8 of the node; none where they are kept.
pub fn close_localhost(socket: &Socket) -> Result<Transaction, Error> {
    let found = listing::rules(socket, table(Family::Ip), Some(MARTIANS))?;
    Ok(closed_localhost(&found))
}

/// What becomes of somebody else's mapping of the same port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rival {
    /// It is replaced: this is the newest ADD.
    Loses,
    /// It stays: nothing is new, something was lost.
    Stays,
}

/// Changes after which the ports of all pods are published, as far as nobody
/// else has them, and who has them. Of two pods, the later in the list wins.
pub fn additions(socket: &Socket, all: &[&HostPorts]) -> Result<(Transaction, Vec<Notice>), Error> {
    let plan = Plan::new(socket, all, Rival::Stays)?;
    Ok((plan.changes, plan.notices))
}

/// What publishing means, as things are.
#[derive(Default)]
struct Plan {
    changes: Transaction,
    notices: Vec<Notice>,
    /// Whether `changes` are wrong if anybody else changed anything: two who
    /// both fill a chain fill it twice.
    depends: bool,
}

impl Plan {
    fn new(socket: &Socket, all: &[&HostPorts], rival: Rival) -> Result<Self, Error> {
        let mut plan = Self::default();
        let mut wanted_elements = Vec::new();
        for family in FAMILIES {
            let mut all = all
                .iter()
                .rev()
                .filter(|it| families(it).contains(&family))
                .peekable();
            if all.peek().is_none() {
                continue;
            }
            let found = listing::rules(socket, table(family), None)?;
            plan.changes.extend(base(family, &found));
            let neighbours = !bridges_are_filtered(family)?;
            let mut rules = Vec::new();
            for wanted in all {
                let mut its = elements(wanted, family);
                if neighbours && let Some(neighbour) = neighbour_element(wanted, family) {
                    its.push(neighbour);
                    let rule = neighbour_rule(wanted, family, &found);
                    rules.extend(rule.filter(|it| !rules.contains(it)));
                }
                wanted_elements.extend(its.into_iter().map(|it| (table(family), it)));
            }
            rules.into_iter().for_each(|it| plan.changes.push(it));
        }
        plan.depends = !plan.changes.is_empty();
        let mut claimed = HashSet::new();
        for (table, element) in wanted_elements {
            if claimed.insert((table.family, element.set.name, element.key.clone())) {
                let there = listing::entry_at(socket, table, element.set, &element.key)?;
                plan.put(table, element, there, rival);
            }
        }
        Ok(plan)
    }

    /// Puts `element` where `there` is now.
    fn put(&mut self, table: Table, element: Element, there: Option<Entry>, rival: Rival) {
        if let Some(entry) = there {
            if entry.owner == element.owner && entry.value == element.value {
                return;
            }
            let notice = notice(&entry, &element).filter(|it| !self.notices.contains(it));
            self.notices.extend(notice);
            if rival == Rival::Stays && entry.owner != element.owner {
                return;
            }
            self.changes
                .push(Change::DeleteElement(table, element.clone()));
        }
        self.changes.push(Change::CreateElement(table, element));
    }

    /// Elements alone need no generation, and are not held up by what others
    /// commit: the kernel refuses to add one whose key is taken, and to delete
    /// one that is gone. Having lost that race is the same as having the wrong
    /// generation.
    fn commit(&self, socket: &Socket, generation: u32) -> Result<(), Error> {
        if self.depends {
            return self.changes.commit(socket, Some(generation));
        }
        self.changes
            .commit(socket, None)
            .map_err(|error| match error.errno() {
                Errno::EEXIST | Errno::EBUSY | Errno::ENOENT => {
                    Error::new(error.op(), Errno::ERESTART)
                }
                _ => error,
            })
    }
}

/// Whether frames between ports of a bridge pass the rules of `family`: then
/// neighbours need not be masqueraded, and see each other.
fn bridges_are_filtered(family: Family) -> Result<bool, Error> {
    let name = match family {
        Family::Ip6 => "bridge-nf-call-ip6tables",
        _ => "bridge-nf-call-iptables",
    };
    match std::fs::read(format!("/proc/sys/net/bridge/{name}")) {
        Ok(value) => Ok(value.starts_with(b"1")),
        // Absent without the module br_netfilter.
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => {
            let errno = error.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
            Err(Error::new(format!("read sysctl net/bridge/{name}"), errno))
        }
    }
}

/// Removes what is there for `gone`, ours and what the Go plugins wrote for its
/// container. The UDP ports that were there.
///
/// `known` is what its configuration and result say, where they do: of three elements
/// that a pod has for its address, it tells the keys, and nobody has to look at all pods'.
pub fn unpublish(
    socket: &Socket,
    gone: &Attachment,
    known: Option<&HostPorts>,
) -> Result<Vec<UdpPort>> {
    let name = owner(gone);
    let container = gone.container_id.as_str();
    let doomed = |comment: &str| comment == name;
    let mut found = Vec::new();
    for family in FAMILIES {
        let mapped = list(socket, family, &OF_MAPPINGS, &doomed)?;
        match known.filter(|known| leads_to(&mapped, pod(known, family))) {
            Some(known) => found.extend(looked_up(known, family)),
            None => found.extend(list(socket, family, &[MASQUERADED], &doomed)?),
        }
        found.extend(mapped);
    }
    remove(socket, &found, &doomed, &|comment| comment == container)
}

/// An element that is there, or may be.
type Found = (Family, Set, Entry);

/// Whether all mappings lead to `pod`.
fn leads_to(mapped: &[Found], pod: Option<IpAddr>) -> bool {
    let address = pod.map(Part::Address);
    let elsewhere = |(_, _, entry): &Found| match mapping(entry) {
        Some(_) => entry.value.first() != address.as_ref(),
        None => entry.key.first() != address.as_ref(),
    };
    !mapped.iter().any(elsewhere)
}

/// What may be there for the address of `known`'s pod.
fn looked_up(known: &HostPorts, family: Family) -> impl Iterator<Item = Found> {
    masqueraded(known, family).into_iter().map(move |it| {
        let entry = Entry {
            key: it.key,
            value: it.value,
            owner: it.owner,
        };
        (family, it.set, entry)
    })
}

fn list(
    socket: &Socket,
    family: Family,
    sets: &[Set],
    wanted: &dyn Fn(&str) -> bool,
) -> Result<Vec<Found>> {
    let mut found = Vec::new();
    for set in sets {
        let entries = listing::entries(socket, table(family), *set, wanted)?;
        found.extend(entries.into_iter().map(|entry| (family, *set, entry)));
    }
    Ok(found)
}

/// Removes what is there for attachments to `network` that are not `valid`. The UDP
/// ports that were there.
///
/// What the Go plugins wrote stays: it names a container, which may be alive in
/// another network, whose attachments a runtime does not tell here.
pub fn collect(socket: &Socket, network: &str, valid: &[ValidAttachment]) -> Result<Vec<UdpPort>> {
    let prefixes = [network_prefix(network), hashed_prefix(network)];
    let alive: HashSet<_> = valid
        .iter()
        .map(|it| owner_comment(network, &it.container_id, &it.ifname))
        .collect();
    let doomed = |comment: &str| {
        let ours = prefixes.iter().any(|prefix| comment.starts_with(prefix));
        ours && !alive.contains(comment)
    };
    let mut found = Vec::new();
    for family in FAMILIES {
        found.extend(list(socket, family, &SETS, &doomed)?);
    }
    remove(socket, &found, &doomed, &|_| false)
}

/// Removes what of `found` belongs to owners that are `doomed`, and their conditions;
/// and rules of the Go plugins for containers that are.
fn remove(
    socket: &Socket,
    found: &[Found],
    doomed: &dyn Fn(&str) -> bool,
    doomed_container: &dyn Fn(&str) -> bool,
) -> Result<Vec<UdpPort>> {
    retry(Errno::ERESTART, || -> Result<_> {
        let generation = socket.generation()?;
        let mut changes = Transaction::new();
        for family in FAMILIES {
            for rule in listing::rules(socket, go::table(family), None)? {
                if doomed_container(&rule.comment) {
                    changes.push(rule.deletion(go::table(family)));
                }
            }
            changes.extend(conditional::removal(socket, family, doomed)?);
        }
        for (family, set, entry) in found {
            // Somebody may have taken the port since.
            let now = listing::entry_at(socket, table(*family), *set, &entry.key)?;
            if now.is_some_and(|now| doomed(&now.owner)) {
                changes.push(Change::DeleteElement(table(*family), element(*set, entry)));
            }
        }
        Ok(changes.commit(socket, Some(generation))?)
    })?;
    let gone = found.iter();
    Ok(gone
        .filter_map(|(_, _, entry)| published_entry(entry))
        .collect())
}

/// Changes that take away everything of owners that are `doomed`; with the last
/// element, the tables.
pub fn removal(socket: &Socket, doomed: &dyn Fn(&str) -> bool) -> Result<Transaction> {
    let mut changes = Transaction::new();
    for family in FAMILIES {
        let mut its = Transaction::new();
        let mut others = false;
        for set in SETS {
            for entry in listing::entries(socket, table(family), set, |_| true)? {
                match doomed(&entry.owner) {
                    true => its.push(Change::DeleteElement(table(family), element(set, &entry))),
                    false => others = true,
                }
            }
        }
        let conditional = conditional::table(family);
        let rules = listing::rules(socket, conditional, None)?;
        let conditional_others = rules.iter().any(|it| !doomed(&it.comment));
        if !rules.is_empty() && !conditional_others {
            changes.push(Change::DeleteTable(conditional));
        } else {
            its.extend(conditional::removal(socket, family, doomed)?);
        }
        if !others
            && !conditional_others
            && presence::has_table(socket, family, table(family).name)?
        {
            changes.push(Change::DeleteTable(table(family)));
        } else {
            changes.extend(its);
        }
    }
    Ok(changes)
}

/// Whose ports are there.
pub fn owners(socket: &Socket) -> Result<HashSet<String>, Error> {
    let mut owners = HashSet::new();
    for family in FAMILIES {
        for set in SETS {
            let entries = listing::entries(socket, table(family), set, |_| true)?;
            owners.extend(entries.into_iter().map(|it| it.owner));
        }
        let rules = listing::rules(socket, conditional::table(family), None)?;
        owners.extend(rules.into_iter().map(|it| it.comment));
    }
    Ok(owners)
}

/// Fails with what is missing; the rules of the Go plugins are as good as ours.
pub fn check(socket: &Socket, wanted: &HostPorts) -> Result<()> {
    for family in families(wanted) {
        if let Err(missing) = check_family(socket, wanted, family)
            && !go::published(socket, wanted, family)?
        {
            return Err(missing);
        }
    }
    Ok(())
}

fn check_family(socket: &Socket, wanted: &HostPorts, family: Family) -> Result<()> {
    let table = table(family);
    for element in elements(wanted, family) {
        let name = element.set.name;
        let key = Change::DeleteElement(table, element.clone()).describe();
        let key = key.trim_start_matches("delete ");
        match listing::entry_at(socket, table, element.set, &element.key)? {
            None => bail!("published port is missing: no {key}"),
            Some(entry) if entry.owner != element.owner => {
                bail!("published port is taken: {key} belongs to {}", entry.owner)
            }
            Some(entry) if entry.value != element.value => {
                bail!("published port leads elsewhere: {key} in {name}")
            }
            Some(_) => {}
        }
    }
    let found = listing::rules(socket, table, None)?;
    if !base(family, &found).is_empty() {
        bail!("table {table} is not complete");
    }
    conditional::check(socket, family, wanted).context("published ports with conditions")
}

fn element(set: Set, entry: &Entry) -> Element {
    Element {
        set,
        key: entry.key.clone(),
        value: entry.value.clone(),
        owner: entry.owner.clone(),
    }
}

/// What `entry` was, where `wanted` takes its place; nothing for an entry that
/// maps no port, or that its owner replaces itself.
fn notice(entry: &Entry, wanted: &Element) -> Option<Notice> {
    let lost = mapping(entry)?;
    (entry.owner != wanted.owner).then(|| Notice {
        mapping: lost,
        from: entry.owner.clone(),
    })
}

fn mapping(entry: &Entry) -> Option<Mapping> {
    let (host_ip, protocol, host_port) = match entry.key[..] {
        [
            Part::Address(ip),
            Part::Protocol(protocol),
            Part::Port(port),
        ] => (Some(ip), protocol, port),
        [Part::Protocol(protocol), Part::Port(port)] => (None, protocol, port),
        _ => return None,
    };
    let [Part::Address(_), Part::Port(container_port)] = entry.value[..] else {
        return None;
    };
    Some(Mapping {
        host_ip,
        host_port,
        container_port,
        protocol,
    })
}

/// The UDP ports of these.
pub fn published(wanted: &HostPorts) -> Vec<UdpPort> {
    let mut all = Vec::new();
    for family in FAMILIES {
        let Some(pod) = pod(wanted, family) else {
            continue;
        };
        for mapping in mappings(wanted, family) {
            all.push((mapping, SocketAddr::new(pod, mapping.container_port)));
        }
    }
    all.into_iter()
        .filter(|(mapping, _)| mapping.protocol == Protocol::Udp)
        .map(|(mapping, to)| UdpPort {
            host_ip: mapping.specific_host_ip(),
            port: mapping.host_port,
            to,
        })
        .collect()
}

/// The UDP port that an entry maps.
fn published_entry(entry: &Entry) -> Option<UdpPort> {
    let mapping = mapping(entry).filter(|it| it.protocol == Protocol::Udp)?;
    let [Part::Address(pod), Part::Port(port)] = entry.value[..] else {
        return None;
    };
    Some(UdpPort {
        host_ip: mapping.host_ip,
        port: mapping.host_port,
        to: SocketAddr::new(pod, port),
    })
}

/// A connection that the kernel knows goes on as it began: one to a pod that is
/// gone, into nothing. UDP has no end, so that may be for ever. What cannot be
/// flushed is told and no error: the ports are published, or are not any more.
pub fn flush(socket: &Socket, published: &[UdpPort], which: Which) {
    if let Err(error) = conntrack::flush(socket, published, which) {
        cni::log(format_args!("{error:#}"));
    }
}
