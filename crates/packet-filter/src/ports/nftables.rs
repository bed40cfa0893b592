//! Published ports in nf_tables: elements of maps, so that a packet costs one lookup each however
//! many ports there are. The tables are in [`layout`](super::layout).
//!
//! An element is added so that the kernel refuses it where the key is taken: no program has to read
//! the others.

use std::collections::btree_map::{BTreeMap, Entry};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context, Result, bail};
use cni::Attachment;
use cni::conf::ValidAttachment;
use nftables::{Element, Error, Family, Listed, Part, Set, Socket, Transaction, listing, retry};
use nix::errno::Errno;

use super::displaced::{self, Displaced, is_port};
use super::layout::{
    DISPLACED, FAMILIES, HOSTIP_PORTS, MARTIANS, MASQUERADED, PORTS, PUBLISHED, SETS, SEVERAL,
    add_neighbour_rule, all_elements, base, elements, families, is_complete, is_of_container,
    is_of_network, localhost_guard, neighbour_element, neighbour_rule, owner, owner_comment,
    record, record_key, table,
};
use super::udp::{Connections, UdpPort, delete_connections};
use super::{conditional, go};
use crate::ports::{HostPorts, Mapping, Notice, PublishedPort};

/// Publishes; the newest mapping of a port wins, and the one that it displaces is kept in the
/// kernel. What the owner published before and does not want any more stays until it unpublishes:
/// to find it, all ports would have to be read.
pub fn publish(socket: &Socket, wanted: &HostPorts) -> Result<Vec<Notice>> {
    if families(wanted).next().is_none() {
        return Ok(Vec::new());
    }
    let notices = retry(|| {
        let generation = socket.generation()?;
        let plan = Plan::new(socket, &[wanted], Conflict::Displace)?;
        plan.commit(socket, generation)?;
        Ok(plan.notices)
    })?;
    for family in families(wanted) {
        conditional::publish(socket, family, wanted)?;
    }
    delete_connections(socket, &UdpPort::all(wanted), Connections::Elsewhere);
    Ok(notices)
}

/// Changes that close 127.0.0.0/8 of the node to packets from outside; none where it is closed.
pub fn close_localhost(socket: &Socket) -> Result<Transaction, Error> {
    let found = listing::chain_rules(socket, table(Family::Ip), MARTIANS)?;
    Ok(localhost_guard(&found))
}

/// What happens to another owner's mapping of the same port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Conflict {
    /// It is displaced: this is the newest ADD.
    Displace,
    /// It stays: no ADD is new, rules were lost.
    Keep,
}

/// The result of [`additions`].
pub struct Additions {
    /// The changes after which all ports are published.
    pub changes: Transaction,
    /// Ports that another owner has.
    pub notices: Vec<Notice>,
    /// Owners with a change.
    pub owners: HashSet<String>,
}

/// Changes after which the ports of all pods are published, unless another owner has them. Of two
/// pods, the later in the list wins, and the other is kept as displaced.
pub fn additions(socket: &Socket, all: &[&HostPorts]) -> Result<Additions, Error> {
    let mut plan = Plan::new(socket, all, Conflict::Keep)?;
    if plan.has_rules {
        let owners = all.iter().map(|it| owner(&it.owner));
        plan.owners.extend(owners);
    }
    Ok(Additions {
        changes: plan.changes,
        notices: plan.notices,
        owners: plan.owners,
    })
}

/// Changes that complete the tables of these ports, which an older version may have made; none if
/// they are complete.
pub fn completion(socket: &Socket, all: &[&HostPorts]) -> Result<Transaction, Error> {
    let mut changes = Transaction::new();
    for family in FAMILIES {
        if all.iter().any(|it| families(it).any(|it| it == family)) {
            let found = listing::rules(socket, table(family))?;
            changes.extend(base(family, &found));
        }
    }
    Ok(changes)
}

/// The changes that publish ports.
#[derive(Default)]
struct Plan {
    changes: Transaction,
    notices: Vec<Notice>,
    /// Owners with a new element.
    owners: HashSet<String>,
    /// Rules are added, which all pods need.
    has_rules: bool,
    /// `changes` are wrong if another program changed anything: two that both fill a chain fill it
    /// twice.
    needs_generation: bool,
}

/// An element that a pod wants.
struct Claim<'a> {
    family: Family,
    element: Element,
    pod: &'a Attachment,
}

impl Claim<'_> {
    /// Makes the record of an attachment say [`SEVERAL`] if it published something else before.
    /// `former` is its record so far, `had_some` are the owners of which there was any element.
    fn amend(&mut self, former: Option<&Element>, had_some: &HashSet<String>) {
        let record = &mut self.element;
        let own = former.filter(|it| it.comment == record.comment);
        let is_same = match own {
            Some(own) => own.value == record.value,
            // An older version published, without a record: more of it may be anywhere.
            None => !had_some.contains(&record.comment),
        };
        if !is_same {
            record.value = vec![SEVERAL];
        }
    }
}

impl Plan {
    fn new(socket: &Socket, all: &[&HostPorts], conflict: Conflict) -> Result<Self, Error> {
        let mut plan = Self::default();
        for family in FAMILIES {
            let is_published = |it: &&&HostPorts| families(it).any(|it| it == family);
            let all: Vec<_> = all.iter().rev().filter(is_published).collect();
            if all.is_empty() {
                continue;
            }
            let found = listing::rules(socket, table(family))?;
            plan.changes.extend(base(family, &found));
            let mut rules = Vec::new();
            for wanted in all {
                let rule = neighbour_rule(wanted, family, &found);
                rules.extend(rule.filter(|it| !rules.contains(it)));
            }
            for rule in rules {
                add_neighbour_rule(&mut plan.changes, family, rule);
            }
        }
        plan.has_rules = !plan.changes.is_empty();
        plan.needs_generation = plan.has_rules;
        let claims = all.iter().rev().flat_map(|wanted| {
            // The record comes last: see `Claim::amend`.
            let elements = all_elements(wanted).into_iter().chain(record(wanted));
            elements.map(|(family, element)| Claim {
                family,
                element,
                pod: &wanted.owner,
            })
        });
        plan.settle(socket, claims.collect(), conflict)?;
        Ok(plan)
    }

    /// Puts each element in its place; the first claim to a place counts. Of one pod, the record is
    /// the last.
    fn settle(
        &mut self,
        socket: &Socket,
        claims: Vec<Claim<'_>>,
        conflict: Conflict,
    ) -> Result<(), Error> {
        // The claims to a place that came second, for each place.
        let mut losers = Vec::<(Family, Vec<Element>)>::new();
        let mut claimed = HashMap::<_, usize>::new();
        let mut displaced = BTreeMap::<Family, Displaced>::new();
        let mut had_some = HashSet::new();
        for mut claim in claims {
            let (family, element) = (claim.family, &claim.element);
            let place = (family, element.set.name, element.key.clone());
            if let Some(at) = claimed.get(&place) {
                losers[*at].1.extend(Some(claim.element).filter(is_port));
                continue;
            }
            claimed.insert(place, losers.len());
            losers.push((family, Vec::new()));
            let former = listing::element_at(socket, table(family), element.set, &element.key)?;
            let anothers = former.as_ref().filter(|it| it.comment != element.comment);
            if let Some(former) = anothers {
                if conflict == Conflict::Keep {
                    self.notices.extend(notice(former, claim.pod));
                    if let Some((_, losers)) = losers.last_mut() {
                        losers.extend(Some(claim.element).filter(is_port));
                    }
                    continue;
                }
                if is_port(element) {
                    let displaced = read_once(&mut displaced, socket, family)?;
                    let kept = displaced.displace(former.clone(), &element.comment);
                    self.changes.extend(kept);
                    // The former holder may be another by now.
                    self.needs_generation = true;
                }
            } else if former.is_some() {
                had_some.insert(element.comment.clone());
            }
            if claim.element.set == PUBLISHED {
                claim.amend(former.as_ref(), &had_some);
            }
            self.put(claim, former);
        }
        for (family, losers) in losers.iter().filter(|(_, losers)| !losers.is_empty()) {
            let displaced = read_once(&mut displaced, socket, *family)?;
            let changes = displaced.add_below(losers);
            if !changes.is_empty() {
                self.needs_generation = true;
                self.owners
                    .extend(losers.iter().map(|it| it.comment.clone()));
            }
            self.changes.extend(changes);
        }
        Ok(())
    }

    /// Puts the element of a claim in the place of `former`.
    fn put(&mut self, claim: Claim<'_>, former: Option<Element>) {
        let (table, element) = (table(claim.family), claim.element);
        if let Some(former) = former {
            if former == element {
                return;
            }
            let notice = notice(&former, claim.pod).filter(|it| !self.notices.contains(it));
            self.notices.extend(notice);
            self.changes.delete_element(table, former);
        }
        if element.set == PUBLISHED {
            // A node whose tables an older version made has no such map.
            self.changes.add_set(table, PUBLISHED);
        }
        self.owners.insert(element.comment.clone());
        self.changes.create_element(table, element);
    }

    /// Elements alone need no generation, so commits of other programs do not delay them: the kernel
    /// refuses to create one whose key is taken, and to delete one that is gone. To have lost that
    /// race is the same as to have the wrong generation.
    fn commit(&self, socket: &Socket, generation: u32) -> Result<(), Error> {
        if self.needs_generation {
            return self.changes.commit(socket, Some(generation));
        }
        let lost_race = |error: Error| match error.errno() {
            Errno::EEXIST | Errno::EBUSY | Errno::ENOENT => Error::new(error.op(), Errno::ERESTART),
            _ => error,
        };
        self.changes.commit(socket, None).map_err(lost_race)
    }
}

/// The displaced holders of a family, read when the first is needed: most nodes have none.
fn read_once<'a>(
    all: &'a mut BTreeMap<Family, Displaced>,
    socket: &Socket,
    family: Family,
) -> Result<&'a mut Displaced, Error> {
    Ok(match all.entry(family) {
        Entry::Occupied(found) => found.into_mut(),
        Entry::Vacant(place) => place.insert(Displaced::read(socket, family)?),
    })
}

/// Whether frames between ports of a bridge do not pass the rules of `family`
/// (`bridge-nf-call-iptables` is 0, or there is no module br_netfilter). Then pods of one bridge
/// reach each other's host ports only if they are masqueraded.
fn bridged_frames_bypass(family: Family) -> bool {
    let name = match family {
        Family::Ip6 => "bridge-nf-call-ip6tables",
        _ => "bridge-nf-call-iptables",
    };
    match std::fs::read(format!("/proc/sys/net/bridge/{name}")) {
        Ok(value) => !value.starts_with(b"1"),
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
    }
}

/// Removes the ports of `gone`, and what the Go plugins wrote for its container. Returns the UDP
/// ports that were there.
///
/// `known` are the ports that its configuration and result name. If they are what it published, its
/// elements are looked up by their keys. Otherwise the elements of all pods are listed.
pub fn unpublish(
    socket: &Socket,
    gone: &Attachment,
    known: Option<&HostPorts>,
) -> Result<Vec<UdpPort>> {
    let name = owner(gone);
    let container = gone.container_id.as_str();
    let is_gone = |comment: &str| comment == name;
    let mut found = match known {
        Some(known) => all_if_recorded(socket, known)?,
        None => Vec::new(),
    };
    if found.is_empty() {
        found = list_all(socket, &is_gone)?;
    }
    remove(socket, &found, &is_gone, &|comment| comment == container)
}

/// An element that is there, or may be.
type Found = (Family, Element);

/// All elements that the owner of `known` can have, if its record says that they are these; else
/// none.
///
/// The record is enough: it was written in one transaction with the elements that it is about, so a
/// killed ADD left both or neither. An ADD with other ports, another address or other keys (`snat`,
/// `hostIP`, conditions) changed it to [`SEVERAL`]. There is none for what an older version or the Go
/// plugins published. Where the record of the other family exists as well, an ADD had other
/// families. What is not among these elements is listed at each DEL: displaced ports, chains with
/// conditions, rules of the Go plugins.
fn all_if_recorded(socket: &Socket, known: &HostPorts) -> Result<Vec<Found>, Error> {
    let Some(expected) = record(known) else {
        return Ok(Vec::new());
    };
    let mut records = Vec::new();
    for family in FAMILIES {
        let key = record_key(&known.owner);
        let found = listing::element_at(socket, table(family), PUBLISHED, &key)?;
        let own = found.filter(|it| it.comment == expected.1.comment);
        records.extend(own.map(|it| (family, it)));
    }
    if records != [expected] {
        return Ok(Vec::new());
    }
    Ok(all_elements(known).into_iter().chain(records).collect())
}

fn list_all(socket: &Socket, wanted: &dyn Fn(&str) -> bool) -> Result<Vec<Found>> {
    let mut found = Vec::new();
    for family in FAMILIES {
        found.extend(list(socket, family, &SETS, wanted)?);
    }
    Ok(found)
}

fn list(
    socket: &Socket,
    family: Family,
    sets: &[Set],
    wanted: &dyn Fn(&str) -> bool,
) -> Result<Vec<Found>> {
    let found = listing::elements(socket, table(family), sets, wanted)?;
    Ok(found.into_iter().map(|element| (family, element)).collect())
}

/// Removes the ports of attachments to `network` that are not `valid`. Returns the UDP ports that
/// were there.
///
/// What the Go plugins wrote stays: it names a container, which may be alive in another network,
/// whose attachments a runtime does not list here.
pub fn collect(socket: &Socket, network: &str, valid: &[ValidAttachment]) -> Result<Vec<UdpPort>> {
    let alive: HashSet<_> = valid
        .iter()
        .map(|it| owner_comment(network, &it.container_id, &it.ifname))
        .collect();
    remove_all(socket, &|comment| {
        is_of_network(comment, network) && !alive.contains(comment)
    })
}

/// Removes the ports of all owners that are `gone`. Returns the UDP ports that were there.
pub fn remove_all(socket: &Socket, gone: &dyn Fn(&str) -> bool) -> Result<Vec<UdpPort>> {
    let found = list_all(socket, gone)?;
    remove(socket, &found, gone, &|_| false)
}

/// Removes what of `found` belongs to owners that are `gone`, their conditions and their displaced
/// ports, and the rules of the Go plugins for containers that are gone. A port goes back to the
/// owner that was displaced last.
fn remove(
    socket: &Socket,
    found: &[Found],
    gone: &dyn Fn(&str) -> bool,
    gone_container: &dyn Fn(&str) -> bool,
) -> Result<Vec<UdpPort>> {
    retry(|| {
        let generation = socket.generation()?;
        let mut changes = Transaction::new();
        for family in FAMILIES {
            for rule in listing::rules(socket, go::table(family))? {
                if gone_container(&rule.comment) {
                    changes.delete_rule(&rule);
                }
            }
            changes.extend(conditional::removal(socket, family, gone)?);
            let mut displaced = Displaced::read(socket, family)?;
            changes.extend(displaced.delete(|it| gone(&it.port.comment)));
            for (_, element) in found.iter().filter(|(of, _)| *of == family) {
                // Another owner may have the port by now.
                let now = listing::element_at(socket, table(family), element.set, &element.key)?;
                if now.is_some_and(|now| gone(&now.comment)) {
                    give_back(&mut changes, family, &mut displaced, element.clone());
                }
            }
        }
        Ok(changes.commit(socket, Some(generation))?)
    })?;
    Ok(found.iter().filter_map(|(_, it)| UdpPort::of(it)).collect())
}

/// Deletes `gone`, and gives its port back where it held one.
fn give_back(changes: &mut Transaction, family: Family, displaced: &mut Displaced, gone: Element) {
    let restored = displaced.restore(&gone);
    changes.delete_element(table(family), gone);
    changes.extend(restored);
}

/// Changes that remove everything of owners that are `gone`; with the last element, the tables.
pub fn removal(socket: &Socket, gone: &dyn Fn(&str) -> bool) -> Result<Transaction> {
    let mut changes = Transaction::new();
    for family in FAMILIES {
        let mut displaced = Displaced::read(socket, family)?;
        let mut own = displaced.delete(|it| gone(&it.port.comment));
        let mut has_others = !displaced.is_empty();
        for (_, element) in list(socket, family, &SETS, &|_| true)? {
            if gone(&element.comment) {
                give_back(&mut own, family, &mut displaced, element);
            } else {
                has_others = true;
            }
        }
        let (table, conditional) = (table(family), conditional::table(family));
        let rules = listing::rules(socket, conditional)?;
        let has_conditional = rules.iter().any(|it| !gone(&it.comment));
        if !has_conditional && listing::has_table(socket, family, conditional.name)? {
            changes.delete_table(conditional);
        } else {
            own.extend(conditional::removal(socket, family, gone)?);
        }
        let is_last = !has_others && !has_conditional;
        if is_last && listing::has_table(socket, family, table.name)? {
            changes.delete_table(table);
        } else {
            changes.extend(own);
        }
    }
    Ok(changes)
}

/// The owners of published ports, each with the addresses of its pod.
pub fn owners(socket: &Socket) -> Result<BTreeMap<String, BTreeSet<IpAddr>>> {
    let mut owners = BTreeMap::<String, BTreeSet<IpAddr>>::new();
    for family in FAMILIES {
        let mut elements = list(socket, family, &SETS, &|_| true)?;
        elements.extend(list(socket, family, &[DISPLACED], &|_| true)?);
        for (_, element) in elements {
            let pod = pod_of(&element);
            owners.entry(element.comment).or_default().extend(pod);
        }
        for rule in listing::rules(socket, conditional::table(family))? {
            owners.entry(rule.comment).or_default();
        }
    }
    Ok(owners)
}

/// The published ports that connections reach. A port of all addresses of one family has the
/// unspecified address of it.
pub fn published(socket: &Socket) -> Result<Vec<PublishedPort>> {
    let mut all = Vec::new();
    for family in FAMILIES {
        for (_, element) in list(socket, family, &[HOSTIP_PORTS, PORTS], &|_| true)? {
            let (Some(mut mapping), Some(pod)) = (mapping(&element), pod_of(&element)) else {
                continue;
            };
            mapping.host_ip.get_or_insert(match pod {
                IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
                IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
            });
            all.push(PublishedPort {
                owner: element.comment,
                mapping,
                pod,
            });
        }
    }
    Ok(all)
}

/// The address of the pod that an element is about.
fn pod_of(element: &Element) -> Option<IpAddr> {
    let part = if element.set == MASQUERADED {
        element.key.get(1)
    } else if element.set == DISPLACED {
        element.key.get(3)
    } else if element.set.value.is_empty() {
        element.key.first()
    } else {
        element.value.first()
    };
    match part {
        Some(Part::Address(ip)) => Some(*ip),
        _ => None,
    }
}

/// Fails with what is missing; the rules of the Go plugins count as well.
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
    let found = listing::rules(socket, table)?;
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
    let key = format!("{} of {table} {name}", element.key_text());
    let Some(found) = listing::element_at(socket, table, element.set, &element.key)? else {
        bail!("published port is missing: no {key}")
    };
    if found.comment != element.comment {
        // Attachments of one container do not take ports from each other: the newest is
        // reached, and the others are displaced.
        let container = wanted.owner.container_id.as_str();
        if is_of_container(&found.comment, container)
            && displaced::is_remembered(socket, family, element)?
        {
            return Ok(());
        }
        bail!(
            "published port is taken: {key} belongs to {}",
            found.comment
        )
    }
    if found.value != element.value {
        bail!("published port leads elsewhere: {key} in {name}")
    }
    Ok(())
}

/// What pods of the same bridge need to reach the ports is always written, and reported as missing
/// only where it is needed now: versions before 2.0 left it out where it was not needed at ADD.
fn check_neighbours(
    socket: &Socket,
    family: Family,
    wanted: &HostPorts,
    found: &[Listed],
) -> Result<()> {
    let element = neighbour_element(wanted, family);
    let Some(element) = element.filter(|_| bridged_frames_bypass(family)) else {
        return Ok(());
    };
    if let Some(rule) = neighbour_rule(wanted, family, found) {
        let mut missing = Transaction::new();
        add_neighbour_rule(&mut missing, family, rule);
        let missing = missing.to_string();
        bail!(
            "pods of its bridge do not reach the published ports: not done: {}",
            missing.trim_end()
        );
    }
    check_element(socket, family, wanted, &element)
}

/// What `former` published, where a mapping of `pod` takes its place, or would; `None` for an element
/// that maps no port, or belongs to the same container.
fn notice(former: &Element, pod: &Attachment) -> Option<Notice> {
    let (owner, container) = (owner(pod), pod.container_id.as_str());
    let mapping = mapping(former)?;
    let from = former.comment.clone();
    (from != owner && !is_of_container(&from, container)).then_some(Notice { mapping, from })
}

/// The mapping that an element is.
pub fn mapping(element: &Element) -> Option<Mapping> {
    let (host_ip, protocol, host_port) = match element.key[..] {
        [
            Part::Address(ip),
            Part::Protocol(protocol),
            Part::Port(port),
        ] => (Some(ip), protocol, port),
        [Part::Protocol(protocol), Part::Port(port)] => (None, protocol, port),
        _ => return None,
    };
    let [Part::Address(_), Part::Port(container_port)] = element.value[..] else {
        return None;
    };
    Some(Mapping {
        host_ip,
        host_port,
        container_port,
        protocol,
    })
}
