//! A picture of a node at one moment: network namespaces with their links, addresses and routes,
//! which end of a link is where, the attachments with what the cache, the kernel and the stores have
//! of each, and published ports.
//!
//! Everything is read, nothing is changed or printed. Each namespace is entered once. What cannot be
//! read is in [`Survey::unread`], and is never taken for absent. Names, addresses and indexes inside a
//! pod are the pod's own choice: whose an interface is, is decided on the node's side ([`Owned`]).

mod attachments;
mod ends;
mod namespaces;
mod reservations;

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::Result;
use cni::AddResult;
use containers::Record;
use netlink::{Address, Link, PortVlan, Route, Vtep, VxlanDevice};
use networks::named::Catalogue;
use networks::{Cache, CachedAttachment, Unidentified};
use packet_filter::{Nftables, PublishedPort};

/// A picture of a node.
#[derive(Debug)]
pub struct Survey {
    /// The network namespaces. The first is the node's own.
    pub namespaces: Vec<Namespace>,
    /// The attachments, by network, container and interface.
    pub attachments: Vec<Attachment>,
    /// The networks by name.
    pub catalogue: Catalogue,
    /// The containers of `podwire run`.
    pub containers: Vec<Record>,
    /// The files of the cache that are of no known attachment.
    pub unidentified: Vec<Unidentified>,
    /// The reserved addresses of attachments that neither the cache nor the kernel has.
    pub reservations: Vec<Reservation>,
    /// The published ports in nftables.
    pub published: Vec<PublishedPort>,
    /// Files where namespaces are named, without a namespace.
    pub vacant: Vec<PathBuf>,
    /// What could not be read.
    pub unread: Vec<Unread>,
}

/// A network namespace.
#[derive(Debug, Default)]
pub struct Namespace {
    /// The paths by which it was found; none for the node's own.
    pub paths: Vec<PathBuf>,
    /// Its inode, which `lsns` and `readlink /proc/PID/ns/net` show.
    pub inode: u64,
    /// Its links, by index.
    pub interfaces: Vec<Interface>,
    /// The unicast routes of all its tables, IPv4 first.
    pub routes: Vec<Route>,
}

/// A link, and where it leads.
#[derive(Debug, Default)]
pub struct Interface {
    /// The link.
    pub link: Link,
    /// Its addresses.
    pub addresses: Vec<Address>,
    /// The peer of a veth; the parent of a vlan, macvlan or ipvlan.
    pub other_end: Option<OtherEnd>,
    /// Its VLANs as a port of a bridge that filters by VLAN, or as such a bridge.
    pub vlans: Vec<PortVlan>,
    /// Its settings, if it is a VXLAN device.
    pub vxlan: Option<VxlanDevice>,
    /// Its peers, if it is a VXLAN device.
    pub vteps: Vec<Vtep>,
    /// What shows that it is an attachment's.
    pub owned: Option<Owned>,
}

/// The other end of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OtherEnd {
    /// There.
    At(Place),
    /// In a namespace that was not found, with this index.
    Elsewhere(u32),
}

/// Where an interface is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    /// The position of its namespace in [`Survey::namespaces`].
    pub namespace: usize,
    /// Its index in that namespace.
    pub index: u32,
}

/// The attachment whose an interface on the node is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owned {
    /// Its position in [`Survey::attachments`].
    pub attachment: usize,
    /// Whether podwire made the interface: its alias says so. Otherwise the result of the ADD names
    /// it.
    pub by_podwire: bool,
}

/// An attachment of a container to a network.
#[derive(Debug, Default)]
pub struct Attachment {
    /// The network's name.
    pub network: String,
    /// `CNI_CONTAINERID` of its ADD.
    pub container_id: String,
    /// `CNI_IFNAME` of its ADD.
    pub ifname: String,
    /// Its file in the cache, if there is one.
    pub cached: Option<CachedAttachment>,
    /// When its file was written.
    pub since: Option<SystemTime>,
    /// The result of its ADD; absent if the cache has none, or none that can be read.
    pub result: Option<AddResult>,
    /// The namespace of its container.
    pub home: Home,
    /// Its interface in the container.
    pub inside: Option<Place>,
    /// Its interface on the node; absent where it has none, as with macvlan.
    pub outside: Option<Place>,
    /// The addresses that host-local has reserved for it.
    pub reserved: Vec<IpAddr>,
}

/// The network namespace of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Home {
    /// Nothing names it.
    #[default]
    Unknown,
    /// There is none at the path any more.
    Gone(String),
    /// It exists, but could not be read: see [`Survey::unread`].
    Unread(String),
    /// Its position in [`Survey::namespaces`].
    At(usize),
}

/// An address that host-local has reserved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reservation {
    /// The network.
    pub network: String,
    /// The address.
    pub address: IpAddr,
    /// The file that reserves it.
    pub file: PathBuf,
    /// The container's id; empty if the file does not say.
    pub container_id: String,
    /// The container's interface; empty if the file does not say, as those of old plugins.
    pub ifname: String,
}

/// Something that could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unread {
    /// What: a path, a table.
    pub what: String,
    /// Why not.
    pub why: String,
}

/// Where a survey looks.
#[derive(Clone, Debug)]
pub struct Sources {
    /// The directory of the networks' configurations, usually /etc/cni/net.d.
    pub conf_dir: PathBuf,
    /// The directory of the cache of attachments, usually /var/lib/cni.
    pub cache_dir: PathBuf,
}

impl Survey {
    /// Looks at the node of the calling thread.
    ///
    /// # Errors
    /// The node's own links, the directory of configurations or that of the cache cannot be read. What
    /// else cannot be read is in the survey.
    pub fn take(sources: &Sources) -> Result<Self> {
        let catalogue = Catalogue::read(&sources.conf_dir)?;
        let mut contents = Cache::in_dir(&sources.cache_dir).oldest_first()?;
        let mut unread = Vec::new();
        let containers = read(
            &mut unread,
            "/run/podwire/run",
            containers::place::running(),
        );
        // podwire run may use another cache (--cache-dir).
        for record in containers
            .iter()
            .filter(|it| it.cache_dir != sources.cache_dir)
        {
            let cached = Cache::in_dir(&record.cache_dir).of_container(&record.id);
            let what = record.cache_dir.display().to_string();
            contents
                .attachments
                .extend(read(&mut unread, &what, cached));
        }
        let mut found = namespaces::read(&contents, &containers, &mut unread)?;
        ends::connect(&mut found, &mut unread);
        let mut survey = Self {
            attachments: attachments::cached(&contents, &found, sources),
            namespaces: found.into_namespaces(),
            catalogue,
            containers,
            unidentified: contents.unidentified,
            reservations: Vec::new(),
            published: Vec::new(),
            vacant: Vec::new(),
            unread,
        };
        survey.vacant = namespaces::vacant();
        attachments::assign_interfaces(&mut survey);
        reservations::assign(&mut survey, &sources.cache_dir);
        survey.attachments.shrink_to_fit();
        let published = Nftables::find().and_then(|found| match found {
            Some(nftables) => nftables.published_ports(),
            None => Ok(Vec::new()),
        });
        survey.published = read(&mut survey.unread, "published ports in nftables", published);
        Ok(survey)
    }

    /// The node's own namespace.
    pub fn node(&self) -> &Namespace {
        &self.namespaces[0]
    }

    /// The interface at a place.
    pub fn interface(&self, place: Place) -> Option<&Interface> {
        self.namespaces.get(place.namespace)?.at(place.index)
    }

    /// The path of the namespace that people call `name`: see [`Namespace::shown`].
    pub fn path_named(&self, name: &str) -> Option<&Path> {
        let mut pods = self.namespaces.iter().skip(1);
        let found = pods.find(|it| it.shown() == name)?;
        found.paths.first().map(PathBuf::as_path)
    }

    /// The attachments of a container.
    pub fn of_container<'a>(&'a self, id: &'a str) -> impl Iterator<Item = &'a Attachment> {
        self.attachments
            .iter()
            .filter(move |it| it.container_id == id)
    }
}

impl Namespace {
    /// The link with this index.
    pub fn at(&self, index: u32) -> Option<&Interface> {
        let found = self
            .interfaces
            .binary_search_by_key(&index, |it| it.link.index);
        self.interfaces.get(found.ok()?)
    }

    /// The link of this name.
    pub fn named(&self, name: &str) -> Option<&Interface> {
        self.interfaces.iter().find(|it| it.link.name == name)
    }

    /// The ports of the bridge, bond or VRF with this index.
    pub fn ports(&self, master: u32) -> impl Iterator<Item = &Interface> {
        self.interfaces
            .iter()
            .filter(move |it| it.link.master == Some(master))
    }

    /// How people name it: the file name of its path, or its inode.
    pub fn shown(&self) -> String {
        let name = self.paths.first().and_then(|it| it.file_name());
        match name.filter(|it| *it != "net") {
            Some(name) => name.to_string_lossy().into_owned(),
            None => format!("net:[{}]", self.inode),
        }
    }
}

impl Attachment {
    /// `network/container/interface`, for messages.
    pub fn label(&self) -> String {
        format!("{}/{}/{}", self.network, self.container_id, self.ifname)
    }

    /// The attachment with checked names; `None` if one of them is not valid.
    pub fn owner(&self) -> Option<cni::Attachment> {
        cni::Attachment::parse(&self.network, &self.container_id, &self.ifname)
    }

    /// The name of its pod, if its runtime passes it to the plugins.
    pub fn pod_name(&self) -> Option<&str> {
        self.argument("K8S_POD_NAME")
    }

    /// A value of `CNI_ARGS` of its ADD.
    pub fn argument(&self, name: &str) -> Option<&str> {
        let args = self.cached.as_ref()?.cni_args.as_ref()?;
        let found = args.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.as_str())
    }
}

impl fmt::Display for Unread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.why)
    }
}

impl Unread {
    fn new(what: impl Into<String>, why: impl fmt::Display) -> Self {
        let (what, why) = (what.into(), format!("{why:#}"));
        Self { what, why }
    }
}

/// What was read; nothing, and a note in `unread`, if it could not be.
fn read<T: Default>(unread: &mut Vec<Unread>, what: &str, result: Result<T>) -> T {
    result.unwrap_or_else(|why| {
        unread.push(Unread::new(what, why));
        T::default()
    })
}

/// The entries of a directory; none if it is missing.
fn entries(dir: &Path) -> std::io::Result<Vec<PathBuf>> {
    match std::fs::read_dir(dir) {
        Err(error) if cni::file::is_absent(&error) => Ok(Vec::new()),
        entries => {
            let mut paths: Vec<_> = entries?
                .map(|it| Ok(it?.path()))
                .collect::<std::io::Result<_>>()?;
            paths.sort();
            Ok(paths)
        }
    }
}
