//! The MAC that somebody asked for, through one of three channels.

use anyhow::Result;
use cni::Code;
use cni::json::Json;
use netlink::Mac;
use serde::Deserialize;

/// `runtimeConfig`: what libcni passes of the capabilities that are declared.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct RuntimeConfig {
    /// The container's MAC.
    pub mac: String,
    /// The container's addresses. The IPAM plugin reads them: here it matters that there are.
    pub ips: Option<Json>,
}

/// `args`, by convention keyed by who they are for.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Args {
    /// Those for CNI plugins.
    pub cni: CniArgs,
}

/// `args.cni`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct CniArgs {
    /// The container's MAC.
    pub mac: String,
    /// The container's addresses. The IPAM plugin reads them: here it matters that there are.
    pub ips: Option<Json>,
}

/// The MAC to give the container's interface, if anybody asked for one: the
/// runtime knows best, then the author of the configuration, then `CNI_ARGS`
/// (`from_cni_args`, its key `MAC`). `action` begins the error.
///
/// # Errors
/// Code 7, or 4 if it is CNI_ARGS: not a MAC, or none that an interface can have.
pub fn asked_for(
    runtime: &RuntimeConfig,
    args: &Args,
    from_cni_args: Option<String>,
    action: &str,
) -> Result<Option<Mac>> {
    let in_conf = [&runtime.mac, &args.cni.mac]
        .into_iter()
        .find(|mac| !mac.is_empty());
    let (text, code) = match (in_conf, from_cni_args) {
        (Some(text), _) => (text.clone(), Code::InvalidConfig),
        (None, Some(text)) if !text.is_empty() => (text, Code::InvalidEnvironment),
        _ => return Ok(None),
    };
    let fault = |why: &str| code.err(format!("{action}: address {text}: {why}"));
    let mac: Mac = text.parse().map_err(|_| fault("invalid MAC address"))?;
    if mac.is_multicast() || mac.is_zero() {
        return Err(fault("an interface cannot have this MAC address").into());
    }
    Ok(Some(mac))
}
