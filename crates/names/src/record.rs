//! What is recorded about an attachment, and about its network.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use cni::{Attachment, Cidr};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::Name;

/// The names and addresses of one attachment. Unknown members of a document are ignored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// Its network.
    pub network: Network,
    /// The container's id.
    pub container: String,
    /// The interface in the container.
    pub ifname: String,
    /// The container's network namespace; `None` if it could not be examined.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<Namespace>,
    /// All names of the container in this network. The first one is the answer to a question for
    /// the name of an address.
    pub names: Vec<Name>,
    /// The container's addresses in this network.
    pub addresses: Vec<IpAddr>,
    /// The servers that are asked for unknown names of this container, in order. If there are none, the
    /// servers of the network are asked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub servers: Vec<Server>,
    /// The addresses that the container asks, if they are not [`Network::listen`]: another server of
    /// the node has the port there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub asks: Vec<IpAddr>,
}

impl Record {
    /// The attachment; `None` if the file has names that no attachment has.
    pub fn attachment(&self) -> Option<Attachment> {
        Attachment::parse(&self.network.name, &self.container, &self.ifname)
    }
}

/// What the resolver needs to know of a network.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Network {
    /// Its name. `<name>.<network>` is a name of the container, too.
    pub name: String,
    /// `<name>.<domain>` is a name of the container, too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub domain: Option<Name>,
    /// The addresses of the node that the containers ask: their gateways. Empty if the node has no
    /// address in the network.
    pub listen: Vec<IpAddr>,
    /// The interface of the node that has these addresses, usually a bridge; empty if unknown.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub bridge: String,
    /// The subnets of the containers' addresses.
    pub subnets: Vec<Cidr>,
    /// How long a client may keep an answer, in seconds.
    pub ttl: u32,
    /// The servers that are asked for unknown names, in order. If there are none, the servers of the node
    /// are asked.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub servers: Vec<Server>,
    /// Whether unknown names are not forwarded to other servers.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub internal: bool,
    /// Static names of the configuration, which belong to no container, and wildcards.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub records: Vec<Static>,
}

/// A name of the network's configuration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Static {
    /// The name, relative to the network: `<name>.<network>` and `<name>.<domain>` are answered, too.
    pub name: Name,
    /// The records of the name.
    #[serde(flatten)]
    pub data: StaticData,
}

/// What a configuration says about a name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum StaticData {
    /// A and AAAA.
    Addresses(Vec<IpAddr>),
    /// CNAME: the name is another one's alias.
    Cname(Name),
    /// SRV.
    Srv(Vec<Service>),
    /// TXT.
    Txt(Vec<String>),
}

/// Where a service is offered (RFC 2782).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// The priority: clients try the lowest first.
    #[serde(default)]
    pub priority: u16,
    /// The share among services of the same priority.
    #[serde(default)]
    pub weight: u16,
    /// The port.
    pub port: u16,
    /// The name of the host, relative to the network or complete.
    pub target: Name,
}

/// A name server: `9.9.9.9`, `9.9.9.9:5353`, `2620:fe::9` or `[2620:fe::9]:5353`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Server(pub SocketAddr);

impl Server {
    /// The port of name servers (RFC 1035, section 4.2).
    const PORT: u16 = 53;
}

impl FromStr for Server {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let with_usual_port = |address| SocketAddr::new(address, Self::PORT);
        let address = text.parse().map(with_usual_port);
        let address = address.or_else(|_| text.parse());
        let fault = |_| {
            format!("invalid name server {text:?}: expected an IP address, with or without a port")
        };
        address.map(Self).map_err(fault)
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.port() {
            Self::PORT => self.0.ip().fmt(f),
            _ => self.0.fmt(f),
        }
    }
}

impl Serialize for Server {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Server {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(de::Error::custom)
    }
}

/// A container's network namespace, by which the resolver sees that a container has ended without
/// DEL.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Namespace {
    /// `CNI_NETNS` of the ADD.
    pub path: PathBuf,
    /// Device and inode identify a namespace (namespaces(7)).
    pub device: u64,
    /// See `device`.
    pub inode: u64,
    /// The inode of the mount namespace where the path has this meaning.
    pub mount_namespace: u64,
}

impl Namespace {
    /// The namespace at `path`; `None` if it cannot be examined.
    pub fn at(path: &Path) -> Option<Self> {
        let found = std::fs::metadata(path).ok()?;
        Some(Self {
            path: path.to_owned(),
            device: found.dev(),
            inode: found.ino(),
            mount_namespace: mount_namespace()?,
        })
    }

    /// Whether this namespace is at its path for the calling process.
    pub fn exists(&self) -> bool {
        let found = std::fs::metadata(&self.path);
        found.is_ok_and(|it| (it.dev(), it.ino()) == (self.device, self.inode))
    }

    /// Whether the path leads to another object or to none. False if that cannot be determined: the
    /// calling process is in another mount namespace, or has no permission.
    pub fn is_gone(&self) -> bool {
        match std::fs::metadata(&self.path) {
            Ok(found) if (found.dev(), found.ino()) == (self.device, self.inode) => false,
            Err(error) if !cni::file::is_absent(&error) => false,
            _ => mount_namespace() == Some(self.mount_namespace),
        }
    }
}

fn mount_namespace() -> Option<u64> {
    let found = std::fs::metadata("/proc/thread-self/ns/mnt");
    found.ok().map(|it| it.ino())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_record_survives_its_file() {
        let document = json!({
            "network": {
                "name": "web", "domain": "dns.podman", "listen": ["10.89.0.1", "fd00::1"],
                "bridge": "cni-podman1", "subnets": ["10.89.0.0/24", "fd00::/64"], "ttl": 5,
                "servers": ["9.9.9.9", "[2620:fe::9]:5353"], "internal": true,
                "records": [
                    {"name": "*.apps", "addresses": ["10.89.0.9"]},
                    {"name": "www", "cname": "web"},
                    {"name": "_http._tcp", "srv": [{"priority": 0, "weight": 0, "port": 80, "target": "web"}]},
                ],
            },
            "container": "0123456789abcdef", "ifname": "eth0",
            "namespace": {"path": "/run/netns/a", "device": 4, "inode": 40265, "mountNamespace": 40266},
            "names": ["db", "postgres"], "addresses": ["10.89.0.2", "fd00::2"], "servers": ["::1"],
            "asks": ["10.89.0.0"],
        });
        let record: Record = serde_json::from_value(document.clone()).unwrap();
        assert_eq!(serde_json::to_value(&record).unwrap(), document);
        assert_eq!(
            record.attachment().unwrap().to_string(),
            "web/0123456789abcdef/eth0"
        );
    }

    #[test]
    fn a_record_may_have_members_of_later_versions_and_lack_optional_ones() {
        let record: Record = serde_json::from_value(json!({
            "network": {"name": "web", "later": 1}, "container": "a", "ifname": "eth0",
            "names": [], "addresses": [], "later": {},
        }))
        .unwrap();
        assert_eq!((record.network.ttl, record.namespace), (0, None));
    }

    #[test]
    fn a_server_may_have_a_port() {
        for (text, port) in [
            ("9.9.9.9", 53),
            ("9.9.9.9:5353", 5353),
            ("::1", 53),
            ("[::1]:54", 54),
        ] {
            let server: Server = text.parse().unwrap();
            assert_eq!((server.0.port(), server.to_string().as_str()), (port, text));
        }
        for text in ["", "dns.google", "9.9.9.9:", "1.2.3", "9.9.9.9#53"] {
            assert!(text.parse::<Server>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_namespace_is_gone_when_its_path_is_or_leads_elsewhere() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("netns");
        let other = dir.path().join("other");
        std::fs::write(&path, "").unwrap();
        std::fs::write(&other, "").unwrap();
        let namespace = Namespace::at(&path).unwrap();
        assert!(!namespace.is_gone());
        std::fs::rename(&other, &path).unwrap();
        assert!(namespace.is_gone());
        std::fs::remove_file(&path).unwrap();
        assert!(namespace.is_gone());
        let elsewhere = Namespace {
            mount_namespace: 1,
            ..namespace
        };
        assert!(!elsewhere.is_gone());
        assert_eq!(Namespace::at(&path), None);
    }
}
