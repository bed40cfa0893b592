//! Networks by name, as `docker network` has them. A network is a configuration that runtimes
//! read as it is; what CNI has no key for is in one key of ours at its top ([`Record`]), which
//! libcni ignores.

mod catalogue;
mod moment;
mod origin;
mod record;
mod store;
mod subnets;

use std::path::PathBuf;

use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::NetworkList;

pub use catalogue::{Catalogue, LookupError};
pub use moment::Moment;
pub use origin::Origin;
pub use record::{Record, SubnetRecord};
pub use store::Store;
pub use subnets::{IpamSubnet, subnets_of};

/// A container in this network has no network but `lo`.
pub const NONE: &str = "none";
/// A container in this network has the node's.
pub const HOST: &str = "host";
/// The network of a container for which none was chosen.
pub const BRIDGE: &str = "bridge";

/// The names that no network of a user can have; `default` is another word for `bridge`.
pub const PREDEFINED: [&str; 4] = [BRIDGE, HOST, NONE, "default"];

/// A network of the node.
#[derive(Clone, Debug)]
pub struct Network {
    /// 64 hex digits.
    pub id: String,
    /// Its name.
    pub name: String,
    /// What it is.
    pub kind: Kind,
}

/// What a network is.
#[derive(Clone, Debug)]
pub enum Kind {
    /// [`NONE`].
    None,
    /// [`HOST`].
    Host,
    /// [`BRIDGE`], as long as it has no configuration: the first container that needs it makes it.
    Unmade,
    /// A configuration in the directory.
    Listed(Box<Listed>),
}

/// A network's configuration.
#[derive(Clone, Debug)]
pub struct Listed {
    /// The file.
    pub file: PathBuf,
    /// The plugins.
    pub list: NetworkList,
    /// The file's content; for a single plugin, the list of it.
    pub document: Map<String, Value>,
    /// The program that made it.
    pub origin: Origin,
    /// What `podwire network create` records; for a network of another program, what its
    /// configuration shows of that.
    pub record: Record,
}

impl Network {
    /// The first digits of its id, which tables show.
    pub fn short_id(&self) -> &str {
        self.id.get(..12).unwrap_or(&self.id)
    }

    /// Whether it can be neither made nor removed.
    pub fn is_predefined(&self) -> bool {
        PREDEFINED.contains(&self.name.as_str())
    }

    /// The configuration, if it has one.
    pub fn listed(&self) -> Option<&Listed> {
        match &self.kind {
            Kind::Listed(listed) => Some(listed),
            Kind::None | Kind::Host | Kind::Unmade => None,
        }
    }

    /// Docker's word for what attaches containers: the first plugin's type.
    pub fn driver(&self) -> &str {
        match &self.kind {
            Kind::None => "null",
            Kind::Host => "host",
            Kind::Unmade => "bridge",
            Kind::Listed(listed) => match listed.list.plugins.first() {
                Some(plugin) => &plugin.plugin,
                None => "",
            },
        }
    }

    /// A network without a configuration.
    fn unlisted(name: &str, kind: Kind) -> Self {
        Self {
            id: id_of(name),
            name: name.to_owned(),
            kind,
        }
    }
}

/// The id of a network that has none in its configuration: SHA-256 of its name, as in podman.
fn id_of(name: &str) -> String {
    hex(&Sha256::digest(name.as_bytes()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
