//! The keys that request a MAC or addresses for one pod.

use cni::Code;
use cni::faults::{CNI_ARGS, Fault};
use cni::json::Json;
use netlink::Mac;
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
/// configuration's author, else by the key `MAC` of `CNI_ARGS` (`from_cni_args`). `action` begins
/// the error.
///
/// # Errors
/// Code 7, or 4 for CNI_ARGS: not a MAC, or not one that an interface can have.
pub fn asked_for(
    runtime: &Requested,
    args: &Args,
    from_cni_args: Option<String>,
    action: &str,
) -> Result<Option<Mac>, Fault> {
    let from_cni_args = from_cni_args.unwrap_or_default();
    let sources = [
        ("runtimeConfig.mac", &runtime.mac),
        ("args.cni.mac", &args.cni.mac),
        (CNI_ARGS, &from_cni_args),
    ];
    let Some((key, text)) = sources.into_iter().find(|(_, text)| !text.is_empty()) else {
        return Ok(None);
    };
    let code = if key == CNI_ARGS {
        Code::InvalidEnvironment
    } else {
        Code::InvalidConfig
    };
    let fault = |why: &str| Fault::at(key, code.err(format!("{action}: address {text}: {why}")));
    let mac: Mac = text.parse().map_err(|_| fault("invalid MAC address"))?;
    if mac.is_multicast() || mac.is_zero() {
        return Err(fault("an interface cannot have this MAC address"));
    }
    Ok(Some(mac))
}
