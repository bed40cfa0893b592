//! Finds the network namespaces of a node, and reads each.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::Result;
use containers::Record;
use netlink::{Family, Netlink, RouteFilter, VxlanDevice};
use netns::NetNs;
use networks::Contents;

use crate::{Interface, Namespace, Unread, entries};

/// Where runtimes name namespaces: containerd, CRI-O and podman; Docker.
const NAMED: [&str; 2] = ["/run/netns", "/run/docker/netns"];

/// More namespaces are not read: each has a socket that stays open until the survey is complete.
const MOST: usize = 4096;

/// Device and inode, which identify a namespace (namespaces(7)).
type Identity = (u64, u64);

/// The namespaces that were found, with what is needed to find more of them.
pub struct Found {
    /// The node's own first.
    pub all: Vec<Opened>,
    by_identity: HashMap<Identity, Option<usize>>,
    by_path: HashMap<PathBuf, Identity>,
}

/// A namespace that was read.
pub struct Opened {
    pub namespace: Namespace,
    pub netns: NetNs,
    pub socket: Netlink,
}

/// What is known about the namespace at a path.
pub enum AtPath {
    /// Nothing is there.
    Gone,
    /// It could not be read.
    Unread,
    /// Its position.
    At(usize),
}

/// Reads the node's namespace, the named ones, and those of the attachments and containers.
///
/// # Errors
/// The node's own namespace cannot be read.
pub fn read(contents: &Contents, records: &[Record], unread: &mut Vec<Unread>) -> Result<Found> {
    let netns = NetNs::current()?;
    let identity = identity(netns.path())?;
    let socket = Netlink::open()?;
    let mut namespace = describe(&socket)?;
    namespace.inode = identity.1;
    let node = Opened {
        namespace,
        netns,
        socket,
    };
    let mut found = Found {
        all: vec![node],
        by_identity: HashMap::from([(identity, Some(0))]),
        by_path: HashMap::new(),
    };
    for dir in NAMED.map(Path::new) {
        match entries(dir) {
            Ok(paths) => paths.iter().for_each(|path| found.add(path, unread)),
            Err(error) => unread.push(Unread::new(dir.display().to_string(), error)),
        }
    }
    let cached = contents.attachments.iter().filter_map(|it| it.netns_path());
    let recorded = records.iter().map(|it| it.netns.clone());
    for path in cached.chain(recorded).filter(|it| !it.is_empty()) {
        found.add(Path::new(&path), unread);
    }
    Ok(found)
}

/// The named files that are no namespaces: what `umount` has left, or a reboot.
pub fn vacant() -> Vec<PathBuf> {
    let all = NAMED
        .iter()
        .flat_map(|dir| entries(Path::new(dir)).unwrap_or_default());
    let is_vacant = |it: &PathBuf| NetNs::open(it).is_err_and(|error| netns::is_gone(&error));
    all.filter(is_vacant).collect()
}

impl Found {
    /// Reads the namespace at `path`, if there is one that is not known yet.
    pub fn add(&mut self, path: &Path, unread: &mut Vec<Unread>) {
        if self.by_path.contains_key(path) {
            return;
        }
        let netns = match NetNs::open(path) {
            Err(error) if netns::is_gone(&error) => return,
            Err(error) => return unread.push(Unread::new(path.display().to_string(), error)),
            Ok(netns) => netns,
        };
        let identity = match identity(path) {
            Ok(identity) => identity,
            Err(error) => return unread.push(Unread::new(path.display().to_string(), error)),
        };
        self.by_path.insert(path.to_owned(), identity);
        match self.by_identity.get(&identity) {
            // The node's own has no path: it is where the survey is made.
            Some(None | Some(0)) => {}
            Some(Some(at)) => self.all[*at].namespace.paths.push(path.to_owned()),
            None => {
                let opened = match self.all.len() {
                    MOST => Err(anyhow::anyhow!("only {MOST} network namespaces are read")),
                    _ => open(path, netns, identity),
                };
                let at = match opened {
                    Ok(opened) => {
                        self.all.push(opened);
                        Some(self.all.len() - 1)
                    }
                    Err(error) => {
                        unread.push(Unread::new(path.display().to_string(), error));
                        None
                    }
                };
                self.by_identity.insert(identity, at);
            }
        }
    }

    /// What is known about the namespace at `path`.
    pub fn at_path(&self, path: &str) -> AtPath {
        let Some(identity) = self.by_path.get(Path::new(path)) else {
            return match NetNs::open(Path::new(path)) {
                Err(error) if netns::is_gone(&error) => AtPath::Gone,
                _ => AtPath::Unread,
            };
        };
        match self.by_identity.get(identity) {
            Some(Some(at)) => AtPath::At(*at),
            _ => AtPath::Unread,
        }
    }

    /// Whether the namespace at `path` is not known yet.
    pub fn is_new(&self, path: &Path) -> bool {
        identity(path).is_ok_and(|it| !self.by_identity.contains_key(&it))
    }

    /// The namespaces alone.
    pub fn into_namespaces(self) -> Vec<Namespace> {
        self.all.into_iter().map(|it| it.namespace).collect()
    }
}

fn open(path: &Path, netns: NetNs, identity: Identity) -> Result<Opened> {
    let socket = Netlink::open_in(&netns)?;
    let mut namespace = describe(&socket)?;
    namespace.paths.push(path.to_owned());
    namespace.inode = identity.1;
    Ok(Opened {
        namespace,
        netns,
        socket,
    })
}

fn identity(path: &Path) -> std::io::Result<Identity> {
    let metadata = fs::metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

/// Links, addresses and routes, in a few dumps whatever their number.
fn describe(socket: &Netlink) -> Result<Namespace> {
    let mut links = socket.list_links()?;
    links.sort_by_key(|it| it.index);
    let filters = links.iter().any(|it| it.vlan_filtering == Some(true));
    let has_vxlan = links.iter().any(|it| it.is_kind("vxlan"));
    let mut addresses = HashMap::<u32, Vec<_>>::new();
    for address in socket.list_every_address()? {
        addresses.entry(address.index).or_default().push(address);
    }
    let mut vlans: HashMap<_, _> = if filters {
        socket.list_all_vlans()?.into_iter().collect()
    } else {
        HashMap::new()
    };
    let mut vxlans: HashMap<String, VxlanDevice> = HashMap::new();
    if has_vxlan {
        let devices = socket.list_vxlans()?.into_iter();
        vxlans.extend(devices.map(|it| (it.name.clone(), it)));
    }
    let mut routes = Vec::new();
    for family in [Family::V4, Family::V6] {
        routes.extend(socket.list_routes(RouteFilter {
            family,
            oif: None,
            table: None,
        })?);
    }
    let mut vteps = HashMap::new();
    for device in links.iter().filter(|it| it.is_kind("vxlan")) {
        vteps.insert(device.index, socket.list_vteps(device.index)?);
    }
    let interfaces = links.into_iter().map(|link| Interface {
        vteps: vteps.remove(&link.index).unwrap_or_default(),
        addresses: addresses.remove(&link.index).unwrap_or_default(),
        vlans: vlans.remove(&link.index).unwrap_or_default(),
        vxlan: vxlans.remove(&link.name),
        link,
        ..Interface::default()
    });
    Ok(Namespace {
        interfaces: interfaces.collect(),
        routes,
        ..Namespace::default()
    })
}
