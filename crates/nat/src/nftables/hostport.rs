//! Published ports: elements of maps, which cost a lookup each however many
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

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::{Context, Result, bail};
use cni::conf::ValidAttachment;
use cni::{Attachment, names};
use ipnetwork::IpNetwork;
use nix::errno::Errno;

use super::conditional;
use super::conntrack::{self, Published};
use super::error::Error;
use super::expression::{Side, Statement};
use super::listing::{self, Entry, Listed};
use super::socket::{Socket, retry};
use super::transaction::{
    COMMENT_LENGTH, Chain, Change, Element, Family, Hook, Part, Point, Rule, Set, Table,
    Transaction, Type,
};
use crate::hostport::{HostPorts, Mapping, Notice, Protocol, Snat};

const HOSTIP_PORTS: Set = Set {
    name: "hostip_ports",
    key: &[Type::Address, Type::Protocol, Type::Port],
    value: &[Type::Address, Type::Port],
};
const PORTS: Set = Set {
    name: "ports",
    key: &[Type::Protocol, Type::Port],
    value: &[Type::Address, Type::Port],
};
const MASQUERADED: Set = Set {
    name: "masqueraded",
    key: &[Type::Address, Type::Address],
    value: &[],
};
const MASQUERADED_PORTS: Set = Set {
    name: "masqueraded_ports",
    key: &[Type::Address, Type::Protocol, Type::Port],
    value: &[],
};
const SETS: [Set; 4] = [HOSTIP_PORTS, PORTS, MASQUERADED, MASQUERADED_PORTS];

/// nat in a table for both families needs Linux 5.2; in one of each, 4.18.
pub const FAMILIES: [Family; 2] = [Family::Ip, Family::Ip6];

const HOSTPORTS: &str = "hostports";

fn table(family: Family) -> Table {
    Table {
        family,
        name: "podwire_hostports",
        comment: "published ports of pods",
    }
}

/// The table of the Go plugins; its rules have the container as their comment.
fn go_table(family: Family) -> Table {
    Table {
        family,
        name: "cni_hostport",
        comment: "",
    }
}

/// Publishes; the newest mapping of a port wins.
pub fn publish(socket: &Socket, wanted: &HostPorts) -> Result<Vec<Notice>> {
    let families = families(wanted);
    if families.is_empty() {
        return Ok(Vec::new());
    }
    let notices = retry(Errno::ERESTART, || -> Result<_> {
        let generation = socket.generation()?;
        let mut changes = Transaction::new();
        let mut notices = Vec::new();
        for family in &families {
            let found = listing::rules(socket, table(*family), None)?;
            changes.extend(base(*family, &found));
        }
        // What only adds needs no generation: it is refused if it collides.
        let mut takes = !changes.is_empty();
        for family in &families {
            for element in elements(wanted, *family) {
                let there = listing::entry_at(socket, table(*family), element.set, &element.key)?;
                if let Some(entry) = there {
                    if entry.owner == element.owner && entry.value == element.value {
                        continue;
                    }
                    takes = true;
                    let notice = notice(&entry, &element);
                    notices.extend(notice.filter(|it| !notices.contains(it)));
                    changes.push(Change::DeleteElement(table(*family), element.clone()));
                }
                changes.push(Change::CreateElement(table(*family), element));
            }
        }
        commit(&changes, socket, takes.then_some(generation))?;
        Ok(notices)
    })?;
    for family in &families {
        conditional::publish(socket, *family, wanted)?;
    }
    flush(socket, &published(wanted), conntrack::Which::NotTo);
    Ok(notices)
}

/// What lost a race is tried again like what the generation refused: the key
/// was free and is taken, or the element was there and is gone.
fn commit(changes: &Transaction, socket: &Socket, generation: Option<u32>) -> Result<(), Error> {
    changes.commit(socket, generation).map_err(|error| {
        let raced = matches!(error.errno(), Errno::EEXIST | Errno::EBUSY | Errno::ENOENT);
        if raced {
            return Error::new(error.op(), Errno::ERESTART);
        }
        error
    })
}

/// Removes what is there for `owner`, ours and what the Go plugins wrote for
/// its container.
pub fn unpublish(socket: &Socket, owner: &Attachment) -> Result<()> {
    let name = owner_comment(
        &owner.network,
        owner.container_id.as_str(),
        owner.ifname.as_str(),
    );
    let mut rules = Transaction::new();
    for family in FAMILIES {
        for rule in listing::rules(socket, go_table(family), None)? {
            if rule.comment == owner.container_id.as_str() {
                rules.push(rule.deletion(go_table(family)));
            }
        }
    }
    remove(socket, rules, &|comment| comment == name)
}

/// Removes what is there for attachments to `network` that are not `valid`.
///
/// What the Go plugins wrote stays: it names a container, which may be alive in
/// another network, whose attachments a runtime does not tell here.
pub fn collect(socket: &Socket, network: &str, valid: &[ValidAttachment]) -> Result<()> {
    let prefix = network_prefix(network);
    let hashed = hashed_prefix(network);
    let alive: Vec<_> = valid
        .iter()
        .map(|it| owner_comment(network, &it.container_id, &it.ifname))
        .collect();
    remove(socket, Transaction::new(), &|comment| {
        (comment.starts_with(&prefix) || comment.starts_with(&hashed))
            && !alive.iter().any(|it| it == comment)
    })
}

fn remove(socket: &Socket, rules: Transaction, doomed: &dyn Fn(&str) -> bool) -> Result<()> {
    let mut found = Vec::new();
    let mut fixed = rules;
    for family in FAMILIES {
        for set in SETS {
            for entry in listing::entries(socket, table(family), set, doomed)? {
                found.push((family, set, entry));
            }
        }
        fixed.extend(conditional::removal(socket, family, doomed)?);
    }
    retry(Errno::ERESTART, || -> Result<_> {
        if found.is_empty() && fixed.is_empty() {
            return Ok(());
        }
        let generation = socket.generation()?;
        let mut changes = fixed.clone();
        for (family, set, entry) in &found {
            // Somebody may have taken the port since.
            let now = listing::entry_at(socket, table(*family), *set, &entry.key)?;
            if now.is_some_and(|now| doomed(&now.owner)) {
                changes.push(Change::DeleteElement(table(*family), element(*set, entry)));
            }
        }
        changes.commit(socket, Some(generation))?;
        Ok(())
    })?;
    let gone: Vec<_> = found
        .iter()
        .filter_map(|(_, _, entry)| published_entry(entry))
        .collect();
    flush(socket, &gone, conntrack::Which::To);
    Ok(())
}

/// Fails with what is missing; the rules of the Go plugins are as good as ours.
pub fn check(socket: &Socket, wanted: &HostPorts) -> Result<()> {
    for family in families(wanted) {
        if let Err(missing) = check_family(socket, wanted, family)
            && !go_published(socket, wanted, family)?
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

/// Whether the Go plugins published all this, judged as they do: by counting.
fn go_published(socket: &Socket, wanted: &HostPorts, family: Family) -> Result<bool, Error> {
    let rules = listing::rules(socket, go_table(family), None)?;
    let count = |chain: &str| {
        let ours =
            |it: &&Listed| it.chain == chain && it.comment == wanted.owner.container_id.as_str();
        rules.iter().filter(ours).count()
    };
    let masquerading = match (wanted.snat, family) {
        (Snat::Off, _) => 0,
        (Snat::Hairpin, Family::Ip) => 2,
        (Snat::Hairpin | Snat::All, _) => 1,
    };
    let mappings = mappings(wanted, family).count();
    Ok(count(HOSTPORTS) >= mappings && count("masquerading") >= masquerading)
}

/// The families in which something is published.
fn families(wanted: &HostPorts) -> Vec<Family> {
    FAMILIES
        .into_iter()
        .filter(|family| pod(wanted, *family).is_some())
        .filter(|family| mappings(wanted, *family).next().is_some())
        .collect()
}

/// The pod's address in `family`.
pub fn pod(wanted: &HostPorts, family: Family) -> Option<IpAddr> {
    match family {
        Family::Ip6 => wanted.pod_v6.map(|it| IpAddr::from(it.ip())),
        _ => wanted.pod_v4.map(|it| IpAddr::from(it.ip())),
    }
}

/// What applies in `family`.
pub fn mappings(wanted: &HostPorts, family: Family) -> impl Iterator<Item = &Mapping> {
    let applies = move |it: &&Mapping| it.applies_to(family == Family::Ip);
    wanted.mappings.iter().filter(applies)
}

/// Conditions in `family`.
pub fn conditions(wanted: &HostPorts, family: Family) -> &[String] {
    match family {
        Family::Ip6 => &wanted.conditions_v6,
        _ => &wanted.conditions_v4,
    }
}

/// The comment on what belongs to an attachment: `network/container/interface`,
/// hashed where that is longer than a comment may be, or has a quote in it, which
/// nft cannot print.
pub fn owner_comment(network: &str, container_id: &str, ifname: &str) -> String {
    let comment = format!("{}{container_id}/{ifname}", network_prefix(network));
    if comment.len() <= COMMENT_LENGTH && !comment.contains('"') {
        return comment;
    }
    let rest = names::prefixed(32, "", &format!("{container_id}/{ifname}"));
    format!("{}{rest}", hashed_prefix(network))
}

fn network_prefix(network: &str) -> String {
    format!("{network}/")
}

/// No network's name begins with `#`.
fn hashed_prefix(network: &str) -> String {
    names::prefixed(33, "#", network) + "/"
}

fn owner(wanted: &HostPorts) -> String {
    let owner = &wanted.owner;
    owner_comment(
        &owner.network,
        owner.container_id.as_str(),
        owner.ifname.as_str(),
    )
}

/// What is wanted in `family`, one element a key: the first mapping of a port
/// is the one that counts.
fn elements(wanted: &HostPorts, family: Family) -> Vec<Element> {
    let Some(pod) = pod(wanted, family) else {
        return Vec::new();
    };
    let owner = owner(wanted);
    let mut elements: Vec<Element> = Vec::new();
    let mut add = |set: Set, key: Vec<Part>, value: Vec<Part>| {
        let taken = |it: &Element| it.set == set && it.key == key;
        if !elements.iter().any(taken) {
            let owner = owner.clone();
            elements.push(Element {
                set,
                key,
                value,
                owner,
            });
        }
    };
    // Those with conditions have a chain instead.
    let conditional = !conditions(wanted, family).is_empty();
    for mapping in mappings(wanted, family).filter(|_| !conditional) {
        let (protocol, port) = (
            Part::Protocol(mapping.protocol),
            Part::Port(mapping.host_port),
        );
        let to = vec![Part::Address(pod), Part::Port(mapping.container_port)];
        match mapping.specific_host_ip() {
            Some(ip) => add(HOSTIP_PORTS, vec![Part::Address(ip), protocol, port], to),
            None => add(PORTS, vec![protocol, port], to),
        }
    }
    match wanted.snat {
        Snat::Off => {}
        Snat::Hairpin => {
            for source in std::iter::once(pod).chain(localhost(family)) {
                let key = vec![Part::Address(source), Part::Address(pod)];
                add(MASQUERADED, key, Vec::new());
            }
        }
        Snat::All => {
            for mapping in mappings(wanted, family) {
                let key = vec![
                    Part::Address(pod),
                    Part::Protocol(mapping.protocol),
                    Part::Port(mapping.container_port),
                ];
                add(MASQUERADED_PORTS, key, Vec::new());
            }
        }
    }
    elements
}

/// Where the node's own connections to itself come from. IPv6 has nothing like
/// `route_localnet`: what comes from ::1 does not get to a pod.
fn localhost(family: Family) -> Option<IpAddr> {
    (family == Family::Ip).then_some(IpAddr::V4(Ipv4Addr::LOCALHOST))
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

/// The UDP ports that are wanted.
pub fn published(wanted: &HostPorts) -> Vec<Published> {
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
        .map(|(mapping, to)| Published {
            host_ip: mapping.specific_host_ip(),
            port: mapping.host_port,
            to,
        })
        .collect()
}

/// The UDP port that an entry maps.
fn published_entry(entry: &Entry) -> Option<Published> {
    let mapping = mapping(entry).filter(|it| it.protocol == Protocol::Udp)?;
    let [Part::Address(pod), Part::Port(port)] = entry.value[..] else {
        return None;
    };
    Some(Published {
        host_ip: mapping.host_ip,
        port: mapping.host_port,
        to: SocketAddr::new(pod, port),
    })
}

/// A connection that the kernel knows goes on as it began: one to a pod that is
/// gone, into nothing. UDP has no end, so that may be for ever. What cannot be
/// flushed is told and no error: the ports are published.
/// Forgets connections of UDP; that it cannot is no reason to fail.
pub fn flush(socket: &Socket, published: &[Published], which: conntrack::Which) {
    if let Err(error) = conntrack::flush(socket, published, which) {
        eprintln!("{error:#}");
    }
}

/// The chains of a table and what is in them.
fn chains(family: Family) -> Vec<(Chain, Vec<Rule>)> {
    let hooked = |name: &'static str, kind, point, priority| Chain {
        name: name.into(),
        hook: Some(Hook {
            kind,
            point,
            priority,
        }),
        comment: "",
    };
    let hostports = Chain {
        name: HOSTPORTS.into(),
        hook: None,
        comment: "",
    };
    // An address of the mapping comes before all addresses.
    let redirect = vec![
        Rule::new([Statement::RedirectByTarget(HOSTIP_PORTS.name)]),
        Rule::new([Statement::RedirectByPort(PORTS.name)]),
    ];
    let enter = || {
        vec![Rule::new([
            Statement::LocalDestination,
            Statement::Jump(HOSTPORTS.into()),
        ])]
    };
    let masquerade = Statement::Masquerade {
        fully_random: false,
    };
    let source = vec![
        Rule::new([Statement::AddressesIn(MASQUERADED.name), masquerade.clone()]),
        Rule::new([
            Statement::Redirected,
            Statement::TargetIn(MASQUERADED_PORTS.name),
            masquerade,
        ]),
    ];
    let mut chains = vec![
        (hostports, redirect),
        (
            hooked("prerouting", "nat", Point::Prerouting, -100),
            enter(),
        ),
        (hooked("output", "nat", Point::Output, -100), enter()),
        (
            hooked("postrouting", "nat", Point::Postrouting, 100),
            source,
        ),
    ];
    if family == Family::Ip {
        let martians = hooked("martians", "filter", Point::Prerouting, -300);
        chains.push((martians, vec![martian_rule()]));
    }
    chains
}

/// Connections from 127.0.0.1 reach a pod only with `route_localnet`, which
/// opens 127/8 of the node to its neighbours (CVE-2020-8558): this closes it.
fn martian_rule() -> Rule {
    let loopback = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 0));
    let network = IpNetwork::new(loopback, 8).unwrap_or_else(|_| IpNetwork::from(loopback));
    Rule::new([
        Statement::InterfaceNot("lo".into()),
        Statement::Address(Side::Destination, network),
        Statement::Drop,
    ])
}

/// Changes that make the table what it should be; none if it is.
fn base(family: Family, found: &[Listed]) -> Transaction {
    let table = table(family);
    let mut changes = Transaction::new();
    let wrong: Vec<_> = chains(family)
        .into_iter()
        .filter(|(chain, rules)| !has(found, family, chain, rules))
        .collect();
    if wrong.is_empty() {
        return changes;
    }
    changes.push(Change::AddTable(table));
    for set in SETS {
        changes.push(Change::AddSet(table, set));
    }
    for (chain, rules) in wrong {
        let name = chain.name.clone();
        changes.push(Change::AddChain(table, chain));
        changes.push(Change::FlushChain(table, name.clone()));
        for rule in rules {
            changes.push(Change::AddRule(table, name.clone(), rule));
        }
    }
    changes
}

fn has(found: &[Listed], family: Family, chain: &Chain, rules: &[Rule]) -> bool {
    let mut found = found.iter().filter(|it| it.chain == chain.name);
    let all = rules
        .iter()
        .all(|rule| found.next().is_some_and(|it| it.is(family, rule)));
    all && found.next().is_none()
}
