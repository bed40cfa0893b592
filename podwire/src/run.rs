//! `podwire run`: a command in namespaces of its own, attached to networks.
//!
//! Three processes have a part in it. The *front* is the program that the user started: it passes
//! signals on and returns the command's exit status ([`front`]). The *supervisor*, its child, makes
//! the container and removes it, whatever ends it, the front's death included ([`supervisor`]). The
//! container's *first process* starts the command ([`containers::Init`]). The kernel kills the latter
//! with the supervisor, and then the front, or the next podwire, removes the rest
//! ([`containers::sweep()`]).

pub mod files;
mod front;
pub mod links;
pub mod mode;
pub mod plan;
pub mod ports;
pub mod resolver;
mod supervisor;

use std::collections::BTreeMap;
use std::ffi::{CString, OsString};
use std::fs::File;
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use containers::{Attacher, Container, Published, Record};
use netns::NetNs;
use networks::{NetworkList, PluginConf};

use crate::network::HOST_BINDING;

use self::links::Linked;
use self::mode::{Endpoint, Mode};
use self::plan::Plan;
use self::ports::Taken;

pub use self::front::{pass_signals, run};

/// Where everything is.
#[derive(Clone, Debug)]
pub struct Dirs {
    /// The configurations.
    pub conf: PathBuf,
    /// The plugins.
    pub plugins: Vec<PathBuf>,
    /// The cache.
    pub cache: PathBuf,
}

/// A container that is to be started.
struct Job {
    record: Record,
    plan: Plan,
    networks: Vec<(Endpoint, NetworkList)>,
    /// The container whose network it shares.
    shared: Option<(NetNs, Option<Record>)>,
    /// The containers that `--link` names.
    linked: Vec<Linked>,
    attacher: Attacher,
    detached: bool,
}

impl Job {
    /// Looks everything up that can be wrong before something is done. `find` finds a network.
    fn new(
        mut plan: Plan,
        dirs: &Dirs,
        detached: bool,
        find: &dyn Fn(&str) -> Result<NetworkList>,
    ) -> Result<Self> {
        let attacher = Attacher::new(&dirs.cache, &dirs.conf, dirs.plugins.clone());
        let (mut networks, mut shared) = (Vec::new(), None);
        match &plan.mode {
            Mode::Networks(endpoints) => {
                for endpoint in endpoints {
                    networks.push((endpoint.clone(), find(&endpoint.network)?));
                }
                check_twice(&networks)?;
            }
            Mode::Container(word) => shared = Some(shared_with(word, &attacher)?),
            Mode::None | Mode::Host => {}
        }
        let lists: Vec<_> = networks.iter().map(|(_, it)| it).collect();
        let linked = plan.links.iter().map(|it| it.find(&lists, &attacher));
        let linked = linked.collect::<Result<_>>()?;
        let id = random_id()?;
        let name = plan.name.clone().unwrap_or_else(|| id[..12].to_owned());
        if !plan.publish.is_empty() && networks.iter().all(|(_, it)| has_no_ports(it)) {
            cni::log(format_args!(
                "WARNING: Published ports are discarded: an internal network, or one on a segment \
                 of the node, has none"
            ));
            plan.publish.clear();
        }
        if let Some(ip) = networks.iter().find_map(|(_, it)| host_binding(it)) {
            plan.publish.iter_mut().for_each(|it| it.bind_to(ip));
        }
        let ports = match published(&plan, &attacher) {
            // It may be that of a container whose podwire was killed.
            Err(_) if containers::sweep(&dirs.cache).is_ok() => published(&plan, &attacher)?,
            chosen => chosen?,
        };
        let other = shared.as_ref().and_then(|(_, record)| record.as_ref());
        let hostname = match (&plan.mode, other) {
            (_, Some(other)) => other.hostname.clone(),
            (Mode::Host | Mode::Container(_), None) => cni::host::name().unwrap_or_default(),
            _ => plan.hostname.clone().unwrap_or_else(|| id[..12].to_owned()),
        };
        let hostname = match (&plan.mode, &plan.hostname) {
            (Mode::Host, Some(requested)) => requested.clone(),
            _ => hostname,
        };
        let text = |it: &CString| it.to_string_lossy().into_owned();
        Ok(Self {
            record: Record {
                hostname,
                ports,
                exposed: plan.expose.clone(),
                dns: plan.dns.clone(),
                command: plan.command.iter().map(text).collect(),
                mode: match &plan.mode {
                    Mode::None => "none".into(),
                    Mode::Host => "host".into(),
                    Mode::Container(word) => {
                        let id = other.map_or(word.as_str(), |it| it.id.as_str());
                        format!("container:{id}")
                    }
                    Mode::Networks(_) => String::new(),
                },
                cache_dir: dirs.cache.clone(),
                ..Record::new(id, name)
            },
            plan,
            networks,
            shared,
            linked,
            attacher,
            detached,
        })
    }

    /// The lines of `--add-host`, the node's address in place of `host-gateway`, and of `--link`.
    fn added_hosts(&self, gateway: Option<IpAddr>) -> Vec<(String, IpAddr)> {
        let gateway = gateway.unwrap_or(Ipv4Addr::LOCALHOST.into());
        let hosts = self.plan.hosts.iter();
        hosts
            .map(|(name, ip)| (name.clone(), ip.unwrap_or(gateway)))
            .chain(self.linked.iter().flat_map(Linked::hosts))
            .collect()
    }
}

/// The environment of a command: the caller's, with the container's name, and what `--env` adds.
pub fn environment(hostname: &str, added: &[(OsString, OsString)]) -> Vec<CString> {
    let mut all: BTreeMap<_, _> = std::env::vars_os().collect();
    all.insert("HOSTNAME".into(), hostname.into());
    all.extend(added.iter().cloned());
    let pair = |(name, value): (OsString, OsString)| {
        let text = [name.into_vec(), value.into_vec()].join(&b'=');
        CString::new(text).ok()
    };
    all.into_iter().filter_map(pair).collect()
}

/// Whether no port of the node can lead to the network. As in Docker, publishing one is no error.
fn has_no_ports(list: &NetworkList) -> bool {
    let is_internal = |it: &PluginConf| it.document.get("internal") == Some(&true.into());
    let mut plugins = list.plugins.iter();
    plugins.any(|it| is_internal(it) || ["macvlan", "ipvlan"].contains(&it.plugin.as_str()))
}

/// The node's address at which ports of the network are published that name none.
fn host_binding(list: &NetworkList) -> Option<IpAddr> {
    let ip: IpAddr = list.record().options.get(HOST_BINDING)?.parse().ok()?;
    (!ip.is_unspecified()).then_some(ip)
}

/// Two words may be one network: its name and its id.
fn check_twice(networks: &[(Endpoint, NetworkList)]) -> Result<()> {
    for (index, (_, list)) in networks.iter().enumerate() {
        if networks[..index].iter().any(|(_, it)| it.name == list.name) {
            bail!("network {:?} is specified multiple times", list.name);
        }
    }
    Ok(())
}

/// The container that `--network container:WORD` names.
fn shared_with(word: &str, attacher: &Attacher) -> Result<(NetNs, Option<Record>)> {
    let found = Container::find(word, &attacher.cache, crate::options::derived_id)?;
    if let Some(record) = &found.record
        && record.mode == "host"
    {
        return Ok((NetNs::current()?, found.record));
    }
    let open = || -> Result<NetNs> {
        found.must_run()?;
        Ok(NetNs::open(found.netns.as_ref())?)
    };
    let netns = open().with_context(|| {
        format!("cannot join network namespace of a non running container: {word}")
    })?;
    Ok((netns, found.record))
}

/// Chooses the ports to publish, none that another container has.
fn published(plan: &Plan, attacher: &Attacher) -> Result<Vec<Published>> {
    if plan.publish.is_empty() {
        return Ok(Vec::new());
    }
    let mut taken = Taken::new(ports::listens);
    for attachment in attacher.cache.oldest_first()?.attachments {
        ports::of(&attachment).iter().for_each(|it| taken.add(it));
    }
    for record in containers::place::running()? {
        record.ports.iter().for_each(|it| taken.add(it));
    }
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range");
    let range = range.unwrap_or_default();
    let mut ends = range.split_whitespace().filter_map(|it| it.parse().ok());
    let dynamic = ends.next().unwrap_or(32768)..=ends.next().unwrap_or(60999);
    let [high, low] = random()?;
    let start = dynamic.start() + u16::from_be_bytes([high, low]) % (dynamic.len().max(1) as u16);
    let ports = plan.publish.iter();
    ports
        .map(|it| it.choose(&mut taken, &dynamic, start))
        .collect()
}

fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    let mut source = File::open("/dev/urandom").context("open /dev/urandom")?;
    source.read_exact(&mut bytes).context("read /dev/urandom")?;
    Ok(bytes)
}

fn random_id() -> Result<String> {
    let bytes: [u8; 32] = random()?;
    Ok(bytes.iter().map(|it| format!("{it:02x}")).collect())
}
