//! The keys of dhcp, as they are written.

use cni::result::{Dns, Route};
use serde::Deserialize;

/// Where the daemon listens unless the configuration says otherwise.
pub const SOCKET: &str = "/run/cni/dhcp.sock";

/// The keys that dhcp reads.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Conf {
    /// The configuration of dhcp itself.
    pub ipam: Option<Ipam>,
}

/// The object `ipam`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Ipam {
    /// Where the daemon listens.
    pub daemon_socket_path: String,
    /// The metric of all routes, 0 for none.
    pub priority: u32,
    /// Options to send to the server.
    pub provide: Vec<Provide>,
    /// Options to request from the server.
    pub request: Vec<Request>,
    /// Options of the server to ignore.
    pub suppress: Vec<String>,
    /// Returned with the server's routes, in place of one to the same destination.
    pub routes: Vec<Route>,
    /// Each part that is not empty is returned in place of the server's.
    pub dns: Dns,
}

/// An option to send.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Provide {
    /// Its name or number.
    pub option: String,
    /// Its value, unless `CNI_ARGS` has one.
    pub value: String,
    /// The key of `CNI_ARGS` that has its value.
    pub from_arg: String,
}

/// An option to request.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Request {
    /// Whether the options that are requested by default are left out.
    pub skip_default: bool,
    /// Its name or number.
    pub option: String,
}

impl Conf {
    /// Where the daemon listens.
    pub fn socket(&self) -> String {
        let configured = self.ipam.as_ref().map(|ipam| &ipam.daemon_socket_path);
        configured
            .filter(|path| !path.is_empty())
            .map_or_else(|| SOCKET.to_owned(), String::clone)
    }
}
