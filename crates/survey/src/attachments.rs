//! The attachments, from the cache and from the node's interfaces.

use std::collections::HashMap;
use std::fs;

use cni::request::alias_prefix;
use networks::{CachedAttachment, Contents};

use crate::namespaces::{AtPath, Found};
use crate::{Attachment, Home, Owned, Place, Sources, Survey};

/// Those in the cache, by network, container and interface.
pub fn cached(contents: &Contents, found: &Found, sources: &Sources) -> Vec<Attachment> {
    let results = sources.cache_dir.join("results");
    let read = |cached: &CachedAttachment| {
        let home = match cached.netns_path() {
            None => Home::Unknown,
            Some(path) => match found.at_path(&path) {
                AtPath::Gone => Home::Gone(path),
                AtPath::Unread => Home::Unread(path),
                AtPath::At(at) => Home::At(at),
            },
        };
        let file = fs::symlink_metadata(results.join(cached.file_name()));
        Attachment {
            network: cached.network_name.clone(),
            container_id: cached.container_id.clone(),
            ifname: cached.ifname.clone(),
            since: file.and_then(|it| it.modified()).ok(),
            result: cached.add_result().ok().flatten(),
            home,
            cached: Some(cached.clone()),
            ..Attachment::default()
        }
    };
    let mut all: Vec<_> = contents.attachments.iter().map(read).collect();
    sort(&mut all);
    all
}

fn sort(all: &mut [Attachment]) {
    all.sort_by(|a, b| key(a).cmp(&key(b)));
}

fn key(it: &Attachment) -> (&str, &str, &str) {
    (&it.network, &it.container_id, &it.ifname)
}

/// Assigns the node's interfaces to attachments, and adds those that only an interface shows.
pub fn assign_interfaces(survey: &mut Survey) {
    add_of_aliases(survey);
    let mut aliases = HashMap::new();
    for (at, attachment) in survey.attachments.iter().enumerate() {
        if let Some(owner) = attachment.owner() {
            aliases.insert(owner.alias(), at);
        }
    }
    let mut outside = vec![None; survey.attachments.len()];
    for interface in &mut survey.namespaces[0].interfaces {
        let alias = interface.link.alias.as_ref();
        if let Some(at) = alias.and_then(|it| aliases.get(it)) {
            interface.owned = Some(Owned {
                attachment: *at,
                by_podwire: true,
            });
            outside[*at] = Some(interface.link.index);
        }
    }
    assign_by_results(survey, &mut outside);
    for (attachment, index) in survey.attachments.iter_mut().zip(outside) {
        attachment.outside = index.map(|index| Place {
            namespace: 0,
            index,
        });
    }
    find_inside(survey);
}

/// Adds the attachments that an alias on the node names and the cache does not have.
fn add_of_aliases(survey: &mut Survey) {
    let known: HashMap<_, _> = survey
        .attachments
        .iter()
        .filter_map(|it| Some((it.owner()?.alias(), ())))
        .collect();
    let aliases = survey.namespaces[0]
        .interfaces
        .iter()
        .filter_map(|it| it.link.alias.clone());
    let mut added = Vec::new();
    for alias in aliases.filter(|it| !known.contains_key(it)) {
        if let Some(owner) = owner_in(&alias) {
            added.push(Attachment {
                network: owner.network,
                container_id: owner.container_id.to_string(),
                ifname: owner.ifname.to_string(),
                ..Attachment::default()
            });
        }
    }
    survey.attachments.extend(added);
    sort(&mut survey.attachments);
    survey.attachments.dedup_by(|a, b| key(a) == key(b));
}

/// The attachment that an alias names in full; `None` where long names are hashed.
fn owner_in(alias: &str) -> Option<cni::Attachment> {
    let (rest, ifname) = alias.rsplit_once('/')?;
    let (rest, id) = rest.rsplit_once('/')?;
    let network = rest.strip_prefix(alias_prefix("").trim_end_matches('/'))?;
    let owner = cni::Attachment::parse(network, id, ifname)?;
    (owner.alias() == alias).then_some(owner)
}

/// The interfaces that the Go plugins made have no alias: the result of the ADD names them. The name
/// may be another interface's by now, so the other end has to be in the container.
fn assign_by_results(survey: &mut Survey, outside: &mut [Option<u32>]) {
    let names: HashMap<_, _> = survey.namespaces[0]
        .interfaces
        .iter()
        .map(|it| (it.link.name.as_str(), it.link.index))
        .collect();
    let mut found = Vec::new();
    for (at, attachment) in survey.attachments.iter().enumerate() {
        let (None, Home::At(home), Some(result)) =
            (outside[at], &attachment.home, &attachment.result)
        else {
            continue;
        };
        let index = result.on_host().filter_map(|it| names.get(it.name.as_str())).find(|index| {
            let interface = survey.namespaces[0].at(**index);
            let end = interface.and_then(|it| it.other_end);
            matches!(end, Some(crate::OtherEnd::At(place)) if place.namespace == *home && *home != 0)
        });
        found.extend(index.map(|index| (at, *index)));
    }
    for (attachment, index) in found {
        outside[attachment] = Some(index);
        let mut all = survey.namespaces[0].interfaces.iter_mut();
        if let Some(interface) = all.find(|it| it.link.index == index) {
            interface.owned = Some(Owned {
                attachment,
                by_podwire: false,
            });
        }
    }
}

/// The interface in the container: the other end of that on the node, or the one of its name. The
/// other end also shows the container's namespace, if nothing else does.
fn find_inside(survey: &mut Survey) {
    for at in 0..survey.attachments.len() {
        let attachment = &survey.attachments[at];
        let end = attachment
            .outside
            .and_then(|it| survey.interface(it)?.other_end);
        let inside = match (end, &attachment.home) {
            (Some(crate::OtherEnd::At(place)), _) if place.namespace != 0 => Some(place),
            (None, Home::At(home)) => {
                let interface = survey.namespaces[*home].named(&attachment.ifname);
                interface.map(|it| Place {
                    namespace: *home,
                    index: it.link.index,
                })
            }
            _ => None,
        };
        let attachment = &mut survey.attachments[at];
        attachment.inside = inside;
        if let (Home::Unknown, Some(place)) = (&attachment.home, inside) {
            attachment.home = Home::At(place.namespace);
        }
    }
}
