//! UdpPort ports: elements of maps, which cost a lookup each however many
//! there are.
//!
//! | set or map | key | value |
//! |---|---|---|
//! | `hostip_ports` | address of the node, protocol, port | pod's address, port |
//! | `ports` | protocol, port | pod's address, port |
//! | `masqueraded` | source, pod's address | |
//! | `masqueraded_ports` | pod's address, protocol, port | |
//! | `displaced` | host port, pod's address and port | order |
//!
//! Each element has its owner as its comment, so that DEL, CHECK and GC know
//! what is whose with nothing else at hand. An element is added so that the
//! kernel refuses it where the key is taken: nobody has to look at the others.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, bail};
use cni::Attachment;
use cni::conf::ValidAttachment;
use nix::errno::Errno;

use super::conditional;
use super::displaced::{self, Displaced, is_port};
use super::go;
use super::layout::{
    DISPLACED, FAMILIES, MARTIANS, MASQUERADED, OF_MAPPINGS, SETS, base, closed_localhost,
    elements, families, hashed_prefix, is_complete, is_of_container, mappings, masqueraded,
    neighbour_element, neighbour_rule, network_prefix, owner, owner_comment, pod, table,
};
use crate::ports::{HostPorts, Mapping, Notice, Protocol};
use nftables::Error;
use nftables::conntrack::{self, UdpPort, Which};
use nftables::listing::{self, Entry, Listed};
use nftables::presence;
use nftables::{Change, Element, Family, Part, Set, Transaction};
use nftables::{Socket, retry};

/// Publishes; the newest mapping of a port wins, and the one that it displaces is remembered.
/// What the owner published before and does not want any more stays until it unpublishes:
/// to find that would mean to look at all ports there are.
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

/// What becomes of another owner's mapping of the same port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rival {
    /// It is displaced: this is the newest ADD.
    Loses,
    /// It stays: nothing is new, something was lost.
    Stays,
}

/// What [`additions`] are.
pub struct Additions {
    /// After them, all is there.
    pub changes: Transaction,
    /// Which ports another owner has.
    pub notices: Vec<Notice>,
    /// For whom something changes.
    pub owners: HashSet<String>,
}

/// Changes after which the ports of all pods are published, as far as no other owner
/// has them. Of two pods, the later in the list wins, and the other is remembered as
/// displaced.
pub fn additions(socket: &Socket, all: &[&HostPorts]) -> Result<Additions, Error> {
    let mut plan = Plan::new(socket, all, Rival::Stays)?;
    if plan.makes_rules {
        let owners = all.iter().map(|it| owner(&it.owner));
        plan.owners.extend(owners);
    }
    Ok(Additions {
        changes: plan.changes,
        notices: plan.notices,
        owners: plan.owners,
    })
}

/// Changes that bring the tables in which these ports are to what they should be: an older
/// version may have made them. None if they are that.
pub fn completion(socket: &Socket, all: &[&HostPorts]) -> Result<Transaction, Error> {
    let mut changes = Transaction::new();
    for family in FAMILIES {
        if all.iter().any(|it| families(it).contains(&family)) {
            let found = listing::rules(socket, table(family), None)?;
            changes.extend(base(family, &found));
        }
    }
    Ok(changes)
}

/// What publishing means, as things are.
#[derive(Default)]
struct Plan {
    changes: Transaction,
    notices: Vec<Notice>,
    /// For whom an element is made.
    owners: HashSet<String>,
    /// Whether rules are made, which all pods need.
    makes_rules: bool,
    /// Whether `changes` are wrong if another program changed anything: two who
    /// both fill a chain fill it twice.
    depends: bool,
}

/// An element that a pod wants.
struct Claim<'a> {
    family: Family,
    element: Element,
    pod: &'a Attachment,
}

impl Plan {
    fn new(socket: &Socket, all: &[&HostPorts], rival: Rival) -> Result<Self, Error> {
        let mut plan = Self::default();
        let mut claims = Vec::new();
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
            let mut rules = Vec::new();
            for wanted in all {
                let rule = neighbour_rule(wanted, family, &found);
                rules.extend(rule.filter(|it| !rules.contains(it)));
                let its = elements(wanted, family).into_iter();
                let its = its.chain(neighbour_element(wanted, family));
                claims.extend(its.map(|element| Claim {
                    family,
                    element,
                    pod: &wanted.owner,
                }));
            }
            rules.into_iter().for_each(|it| plan.changes.push(it));
        }
        plan.makes_rules = !plan.changes.is_empty();
        plan.depends = plan.makes_rules;
        plan.settle(socket, claims, rival)?;
        Ok(plan)
    }

    /// Puts each element in its place; the first claim to a place counts.
    fn settle(
        &mut self,
        socket: &Socket,
        claims: Vec<Claim<'_>>,
        rival: Rival,
    ) -> Result<(), Error> {
        let mut claimed = HashMap::<_, usize>::new();
        let mut losers = Vec::<(Family, Vec<Element>)>::new();
        let mut displaced = BTreeMap::<Family, Displaced>::new();
        for claim in claims {
            let Claim {
                family, element, ..
            } = &claim;
            let place = (*family, element.set.name, element.key.clone());
            if let Some(at) = claimed.get(&place) {
                losers[*at].1.extend(Some(claim.element).filter(is_port));
                continue;
            }
            claimed.insert(place, losers.len());
            losers.push((*family, Vec::new()));
            let there = listing::entry_at(socket, table(*family), element.set, &element.key)?;
            let former = there.map(|it| self::element(element.set, &it));
            let displaces = former.as_ref().is_some_and(|it| it.owner != element.owner);
            if displaces && rival == Rival::Stays {
                self.notices
                    .extend(former.and_then(|it| notice(it, claim.pod)));
                if let Some((_, losers)) = losers.last_mut() {
                    losers.extend(Some(claim.element).filter(is_port));
                }
                continue;
            }
            if displaces
                && is_port(element)
                && let Some(former) = former.clone()
            {
                let displaced = read_once(&mut displaced, socket, *family)?;
                let remembered = displaced.remember(former, &element.owner);
                self.changes.extend(remembered);
                // The former holder may be another by now.
                self.depends = true;
            }
            self.put(claim, former);
        }
        for (family, losers) in losers.iter().filter(|(_, losers)| !losers.is_empty()) {
            let displaced = read_once(&mut displaced, socket, *family)?;
            let changes = displaced.remember_below(losers);
            if !changes.is_empty() {
                self.depends = true;
                self.owners.extend(losers.iter().map(|it| it.owner.clone()));
            }
            self.changes.extend(changes);
        }
        Ok(())
    }

    /// Puts what is claimed in the place of `former`.
    fn put(&mut self, claim: Claim<'_>, former: Option<Element>) {
        let (table, element) = (table(claim.family), claim.element);
        if let Some(former) = former {
            if former == element {
                return;
            }
            let notice = notice(former, claim.pod).filter(|it| !self.notices.contains(it));
            self.notices.extend(notice);
            self.changes
                .push(Change::DeleteElement(table, element.clone()));
        }
        self.owners.insert(element.owner.clone());
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

/// The displaced holders of a family, which are looked up when the first is needed: on most
/// nodes there never is one.
fn read_once<'a>(
    all: &'a mut BTreeMap<Family, Displaced>,
    socket: &Socket,
    family: Family,
) -> Result<&'a mut Displaced, Error> {
    use std::collections::btree_map::Entry::{Occupied, Vacant};
    Ok(match all.entry(family) {
        Occupied(found) => found.into_mut(),
        Vacant(place) => place.insert(Displaced::read(socket, family)?),
    })
}

/// Whether frames between ports of a bridge do not pass the rules of `family`
/// (`bridge-nf-call-iptables` is 0, or there is no module br_netfilter). Then pods of one
/// bridge reach each other's host ports only if they are masqueraded.
fn bridges_pass_by(family: Family) -> bool {
    let name = match family {
        Family::Ip6 => "bridge-nf-call-ip6tables",
        _ => "bridge-nf-call-iptables",
    };
    match std::fs::read(format!("/proc/sys/net/bridge/{name}")) {
        Ok(value) => !value.starts_with(b"1"),
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
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
    remove_all(socket, &|comment| {
        let ours = prefixes.iter().any(|prefix| comment.starts_with(prefix));
        ours && !alive.contains(comment)
    })
}

/// Removes what is there for all owners that are `doomed`. The UDP ports that were there.
pub fn remove_all(socket: &Socket, doomed: &dyn Fn(&str) -> bool) -> Result<Vec<UdpPort>> {
    let mut found = Vec::new();
    for family in FAMILIES {
        found.extend(list(socket, family, &SETS, doomed)?);
    }
    remove(socket, &found, doomed, &|_| false)
}

/// Removes what of `found` belongs to owners that are `doomed`, their conditions, and what is
/// remembered of them; and rules of the Go plugins for containers that are. A port goes back
/// to the owner that was displaced last.
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
            let mut displaced = Displaced::read(socket, family)?;
            changes.extend(displaced.forget(|it| doomed(&it.port.owner)));
            for (_, set, entry) in found.iter().filter(|(of, ..)| *of == family) {
                // Another owner may have the port by now.
                let now = listing::entry_at(socket, table(family), *set, &entry.key)?;
                if now.is_some_and(|now| doomed(&now.owner)) {
                    changes.extend(give_back(family, &mut displaced, element(*set, entry)));
                }
            }
        }
        Ok(changes.commit(socket, Some(generation))?)
    })?;
    let gone = found.iter();
    Ok(gone
        .filter_map(|(_, _, entry)| published_entry(entry))
        .collect())
}

/// Changes that take `gone` away, and give its port back where it held one.
fn give_back(family: Family, displaced: &mut Displaced, gone: Element) -> Transaction {
    let restored = displaced.restore(&gone);
    let mut changes = Transaction::new();
    changes.push(Change::DeleteElement(table(family), gone));
    changes.extend(restored);
    changes
}

/// Changes that take away everything of owners that are `doomed`; with the last
/// element, the tables.
pub fn removal(socket: &Socket, doomed: &dyn Fn(&str) -> bool) -> Result<Transaction> {
    let mut changes = Transaction::new();
    for family in FAMILIES {
        let mut displaced = Displaced::read(socket, family)?;
        let mut its = displaced.forget(|it| doomed(&it.port.owner));
        let mut others = !displaced.is_empty();
        for set in SETS {
            for entry in listing::entries(socket, table(family), set, |_| true)? {
                match doomed(&entry.owner) {
                    true => its.extend(give_back(family, &mut displaced, element(set, &entry))),
                    false => others = true,
                }
            }
        }
        let conditional = conditional::table(family);
        let rules = listing::rules(socket, conditional, None)?;
        let conditional_others = rules.iter().any(|it| !doomed(&it.comment));
        if !conditional_others && presence::has_table(socket, family, conditional.name)? {
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

/// Whose ports are there, each with the addresses of its pod.
pub fn owners(socket: &Socket) -> Result<BTreeMap<String, BTreeSet<IpAddr>>, Error> {
    let mut owners = BTreeMap::<String, BTreeSet<IpAddr>>::new();
    for family in FAMILIES {
        for set in SETS.into_iter().chain([DISPLACED]) {
            for entry in listing::entries(socket, table(family), set, |_| true)? {
                let pod = pod_of(set, &entry);
                owners.entry(entry.owner).or_default().extend(pod);
            }
        }
        for rule in listing::rules(socket, conditional::table(family), None)? {
            owners.entry(rule.comment).or_default();
        }
    }
    Ok(owners)
}

/// The address of the pod that an element is about.
fn pod_of(set: Set, entry: &Entry) -> Option<IpAddr> {
    let part = match set.name {
        name if name == MASQUERADED.name => entry.key.get(1),
        name if name == DISPLACED.name => entry.key.get(3),
        _ if set.value.is_empty() => entry.key.first(),
        _ => entry.value.first(),
    };
    match part {
        Some(Part::Address(ip)) => Some(*ip),
        _ => None,
    }
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
        check_element(socket, family, wanted, &element)?;
    }
    let found = listing::rules(socket, table, None)?;
    if !is_complete(family, &found) {
        bail!("table {table} is not complete");
    }
    check_neighbours(socket, family, wanted, &found)?;
    conditional::check(socket, family, wanted).context("published ports with conditions")
}

fn check_element(
    socket: &Socket,
    family: Family,
    wanted: &HostPorts,
    element: &Element,
) -> Result<()> {
    let (table, name) = (table(family), element.set.name);
    let key = Change::DeleteElement(table, element.clone()).describe();
    let key = key.trim_start_matches("delete ");
    let Some(entry) = listing::entry_at(socket, table, element.set, &element.key)? else {
        bail!("published port is missing: no {key}")
    };
    if entry.owner != element.owner {
        // Attachments of one container do not take ports from each other: the newest is
        // reached, and the others wait.
        let container = wanted.owner.container_id.as_str();
        if is_of_container(&entry.owner, container)
            && displaced::is_remembered(socket, family, element)?
        {
            return Ok(());
        }
        bail!("published port is taken: {key} belongs to {}", entry.owner)
    }
    if entry.value != element.value {
        bail!("published port leads elsewhere: {key} in {name}")
    }
    Ok(())
}

/// What pods of the same bridge need to reach the ports is always written, and missed only
/// where it is needed now: versions before 2.0 left it out where it was not needed at ADD.
fn check_neighbours(
    socket: &Socket,
    family: Family,
    wanted: &HostPorts,
    found: &[Listed],
) -> Result<()> {
    let Some(element) = neighbour_element(wanted, family).filter(|_| bridges_pass_by(family))
    else {
        return Ok(());
    };
    if let Some(missing) = neighbour_rule(wanted, family, found) {
        bail!("pods of its bridge do not reach the published ports: not done: {missing}");
    }
    check_element(socket, family, wanted, &element)
}

fn element(set: Set, entry: &Entry) -> Element {
    Element {
        set,
        key: entry.key.clone(),
        value: entry.value.clone(),
        owner: entry.owner.clone(),
    }
}

/// What `former` was, where a mapping of `pod` takes its place, or would; nothing for an element
/// that maps no port, or that is of the same container.
fn notice(former: Element, pod: &Attachment) -> Option<Notice> {
    let (owner, container) = (owner(pod), pod.container_id.as_str());
    let entry = Entry {
        key: former.key,
        value: former.value,
        owner: former.owner,
    };
    let lost = mapping(&entry)?;
    let is_anothers = entry.owner != owner && !is_of_container(&entry.owner, container);
    is_anothers.then_some(Notice {
        mapping: lost,
        from: entry.owner,
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
