//! Which end of a link is where.
//!
//! A link names its other end by an index, and by a number that its own namespace has for the other
//! one. The kernel says which number a namespace has for which.

use std::collections::HashMap;
use std::path::Path;

use crate::namespaces::Found;
use crate::{OtherEnd, Place, Unread, entries};

/// Processes that are looked at for a namespace without a name.
const MOST: usize = 32_768;

/// The namespaces by the number that another one has for them.
type Numbers = HashMap<i32, usize>;

/// Finds the other end of each link. A namespace that is not known, but has the other end of one of
/// the node's links, is looked for among the processes' and added.
pub fn connect(found: &mut Found, unread: &mut Vec<Unread>) {
    let mut numbers = numbers(found, 0, 1);
    if !unknown(found, &numbers).is_empty() {
        let known = found.all.len();
        add_unnamed(found, &numbers, unread);
        let more = self::numbers(found, 0, known);
        numbers.extend(more);
    }
    resolve(found, 0, &numbers);
    for at in 1..found.all.len() {
        let numbers = of_pod(found, at);
        resolve(found, at, &numbers);
    }
}

/// The numbers that the namespace at `at` has for those from `first` on.
fn numbers(found: &Found, at: usize, first: usize) -> Numbers {
    let socket = &found.all[at].socket;
    let others = found.all.iter().enumerate().skip(first);
    let number = |(other, it): (usize, &crate::namespaces::Opened)| {
        Some((socket.id_of(&it.netns).ok()??, other))
    };
    others
        .filter(|(other, _)| *other != at)
        .filter_map(number)
        .collect()
}

/// The numbers of a pod: nearly always, it has one for the node alone.
fn of_pod(found: &Found, at: usize) -> Numbers {
    let opened = &found.all[at];
    let wanted = opened
        .namespace
        .interfaces
        .iter()
        .filter_map(|it| it.link.link_netnsid);
    let wanted: Vec<_> = wanted.collect();
    if wanted.is_empty() {
        return Numbers::new();
    }
    let node = opened.socket.id_of(&found.all[0].netns).ok().flatten();
    let numbers: Numbers = node.map(|it| (it, 0)).into_iter().collect();
    if wanted.iter().all(|it| numbers.contains_key(it)) {
        return numbers;
    }
    self::numbers(found, at, 0)
}

/// The numbers of the node's links for namespaces that are not known.
fn unknown(found: &Found, numbers: &Numbers) -> Vec<i32> {
    let links = found.all[0].namespace.interfaces.iter().map(|it| &it.link);
    let ids = links.filter_map(|it| it.link_netnsid);
    ids.filter(|id| !numbers.contains_key(id)).collect()
}

/// Adds the namespaces of processes to which a link of the node leads.
fn add_unnamed(found: &mut Found, numbers: &Numbers, unread: &mut Vec<Unread>) {
    let wanted = unknown(found, numbers);
    let processes = entries(Path::new("/proc")).unwrap_or_default();
    let is_process = |it: &&std::path::PathBuf| {
        let name = it.file_name().and_then(|it| it.to_str());
        name.is_some_and(|it| it.bytes().all(|byte| byte.is_ascii_digit()))
    };
    for process in processes.iter().filter(is_process).take(MOST) {
        let path = process.join("ns/net");
        if !found.is_new(&path) {
            continue;
        }
        let Ok(netns) = netns::NetNs::open(&path) else {
            continue;
        };
        let number = found.all[0].socket.id_of(&netns);
        if number.is_ok_and(|it| it.is_some_and(|it| wanted.contains(&it))) {
            found.add(&path, unread);
        }
    }
}

fn resolve(found: &mut Found, at: usize, numbers: &Numbers) {
    for interface in &mut found.all[at].namespace.interfaces {
        let link = &interface.link;
        let Some(index) = link.link.filter(|it| *it != 0) else {
            continue;
        };
        let namespace = match link.link_netnsid {
            None => Some(at),
            Some(id) => numbers.get(&id).copied(),
        };
        interface.other_end = Some(match namespace {
            Some(namespace) => OtherEnd::At(Place { namespace, index }),
            None => OtherEnd::Elsewhere(index),
        });
    }
}
