//! The keys that request a MAC or addresses for one pod.

use cni::Code;
use cni::faults::{CNI_ARGS, Fault};
use cni::json::Json;
use netlink::{InvalidMac, Mac};
use serde::Deserialize;

/// What is requested for a pod: `runtimeConfig`, where libcni passes the declared capabilities, or
/// `args.cni`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Requested {
    /// The MAC of the pod's interface.
    pub mac: String,
    /// The pod's addresses. The IPAM plugin reads them; a plugin only needs to know that the key
    /// is present.
    pub ips: Option<Json>,
}

/// `args`: by convention its keys name their readers.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Args {
    /// For CNI plugins.
    pub cni: Requested,
}

/// The MAC to give the pod's interface, if one is requested: by the runtime, else by the
/// configuration's author, else by the key `MAC` of `CNI_ARGS` (`from_cni_args`), else by `own`,
/// the plugin's key `mac`. `action`, made of the requested text, begins the error.
///
/// # Errors
/// Code 7, or 4 for CNI_ARGS: as [`parse`].
pub fn asked_for(
    runtime: &Requested,
    args: &Args,
    from_cni_args: Option<String>,
    own: &str,
    action: impl Fn(&str) -> String,
) -> Result<Option<Mac>, Fault> {
    let from_cni_args = from_cni_args.unwrap_or_default();
    let sources = [
        ("runtimeConfig.mac", runtime.mac.as_str()),
        ("args.cni.mac", &args.cni.mac),
        (CNI_ARGS, &from_cni_args),
        ("mac", own),
    ];
    let Some((key, text)) = sources.into_iter().find(|(_, text)| !text.is_empty()) else {
        return Ok(None);
    };
    let code = if key == CNI_ARGS {
        Code::InvalidEnvironment
    } else {
        Code::InvalidConfig
    };
    let fault = |why| Fault::at(key, code.err(format!("{}: {why}", action(text))));
    parse(text).map(Some).map_err(fault)
}

/// Reads a MAC that an interface can have.
///
/// # Errors
/// The reason: `address x: invalid MAC address`, or a multicast or zero address.
pub fn parse(text: &str) -> Result<Mac, String> {
    let mac: Mac = text
        .parse()
        .map_err(|error: InvalidMac| error.to_string())?;
    if mac.is_multicast() || mac.is_zero() {
        let why = "an interface cannot have this MAC address";
        return Err(format!("address {text}: {why}"));
    }
    Ok(mac)
}
