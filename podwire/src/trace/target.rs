//! Where a packet begins, and where it goes.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, Result, bail};
use containers::Container;
use netns::NetNs;
use networks::Cache;
use packet_filter::Protocol;
use survey::{Attachment, Home, Survey};

use crate::graph::host::pod_name;
use crate::options::derived_id;

/// The word for the node itself, in place of a pod's name.
const NODE: &str = "node";

/// A network namespace in which a packet begins.
#[derive(Debug)]
pub struct Origin {
    /// The name of the pod.
    pub name: String,
    /// The namespace.
    pub netns: NetNs,
    /// Its position in the survey, if it is there; 0 is the node.
    pub at: Option<usize>,
    /// The source address of the packet; without one, that of the route.
    pub source: Option<IpAddr>,
}

/// The destination of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// Its address.
    pub ip: IpAddr,
    /// Its port; without one, the packet is an echo request.
    pub port: Option<(Protocol, u16)>,
}

impl Origin {
    /// The namespace of the pod called `word`: its name, the id of its container or the beginning of
    /// it, the name or path of its namespace; `node` is the node itself.
    ///
    /// # Errors
    /// There is none, or it is gone.
    pub fn find(word: &str, survey: &Survey, cache: &Cache) -> Result<Self> {
        if word == NODE {
            return Ok(Self {
                name: NODE.to_owned(),
                netns: NetNs::current()?,
                at: Some(0),
                source: None,
            });
        }
        let by_name = survey.path_named(word).map(|it| it.to_string_lossy());
        let container = match (Container::find(word, cache, derived_id), by_name) {
            (Err(_), Some(path)) => Container::find(&path, cache, derived_id)?,
            (found, _) => found?,
        };
        let path = Path::new(&container.netns);
        let netns = NetNs::open(path)?;
        let inode = std::fs::metadata(path)
            .with_context(|| format!("examine {}", path.display()))?
            .ino();
        let mut namespaces = survey.namespaces.iter();
        let name = match container.name.as_str() {
            "" => word.rsplit('/').next().unwrap_or(word),
            name => name,
        };
        Ok(Self {
            name: name.to_owned(),
            netns,
            at: namespaces.position(|it| it.inode == inode),
            source: None,
        })
    }
}

impl Target {
    /// Reads `ADDRESS`, `ADDRESS:PORT`, `[ADDRESS]:PORT`, each with `/udp` after a port; in place of an
    /// address, the name of a pod stands for its first one in a network that `origin` has, too, or for
    /// its first one.
    ///
    /// # Errors
    /// It is something else.
    pub fn parse(text: &str, survey: &Survey, origin: &Origin) -> Result<Self> {
        let (place, protocol) = match text.rsplit_once('/') {
            Some((place, word)) => match Protocol::parse(word) {
                Some(protocol) if protocol != Protocol::Sctp => (place, protocol),
                _ => bail!("unknown protocol {word:?} in {text:?}: tcp or udp"),
            },
            None => (text, Protocol::Tcp),
        };
        if let Ok(ip) = place.trim_matches(['[', ']']).parse() {
            if place != text {
                bail!("{text:?} has a protocol, but no port");
            }
            return Ok(Self { ip, port: None });
        }
        if let Ok(address) = place.parse::<SocketAddr>() {
            return Ok(Self {
                ip: address.ip(),
                port: Some((protocol, port(address.port(), text)?)),
            });
        }
        let (name, number) = place.rsplit_once(':').unwrap_or((place, ""));
        let port = match number {
            "" => None,
            number => {
                let number = number
                    .parse()
                    .with_context(|| format!("invalid port in {text:?}"))?;
                Some((protocol, port(number, text)?))
            }
        };
        let ip = address_of(name, survey, origin)?;
        Ok(Self { ip, port })
    }

    /// Its address with a port, for messages.
    pub fn port_number(&self) -> u16 {
        self.port.map(|it| it.1).unwrap_or_default()
    }
}

fn port(number: u16, text: &str) -> Result<u16> {
    match number {
        0 => bail!("invalid port 0 in {text:?}"),
        number => Ok(number),
    }
}

/// An address of the pod called `name`.
fn address_of(name: &str, survey: &Survey, origin: &Origin) -> Result<IpAddr> {
    let is_called = |it: &&Attachment| it.container_id == name || pod_name(survey, it) == name;
    let found: Vec<_> = survey.attachments.iter().filter(is_called).collect();
    let own = survey.attachments.iter();
    let own = own.filter(|it| matches!(it.home, Home::At(at) if Some(at) == origin.at));
    let own: Vec<_> = own.map(|it| &it.network).collect();
    let (near, far): (Vec<&Attachment>, Vec<&Attachment>) =
        found.iter().partition(|it| own.contains(&&it.network));
    let results = near.iter().chain(&far).filter_map(|it| it.result.as_ref());
    match results.flat_map(|it| &it.ips).next() {
        Some(ip) => Ok(ip.address.ip()),
        None if !found.is_empty() => bail!("pod {name} has no address"),
        None => bail!("{name:?} is neither an address nor the name of a pod"),
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some((_, port)) => SocketAddr::new(self.ip, port).fmt(f),
            None => self.ip.fmt(f),
        }
    }
}
