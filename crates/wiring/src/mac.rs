//! A pod's MAC: derived from its address, unless one is requested; the keys that request a MAC or
//! addresses for one pod.

use std::net::IpAddr;

use cni::delegate::ipam_needs_interface;
use cni::faults::{CNI_ARGS, Fault};
use cni::json::Json;
use cni::{Call, Code};
use netlink::{InvalidMac, Mac};
use serde::Deserialize;
use sha2::{Digest, Sha512};

use crate::Addressing;

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

/// `args`: by convention, each key names the programs that read its value.
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
pub fn requested(
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
    first(&sources, action)
}

/// The MAC of the first of `sources` that has a text: pairs of a key and its text. `action`, made of
/// that text, begins the error.
///
/// # Errors
/// As [`requested`].
pub fn first(
    sources: &[(&str, &str)],
    action: impl Fn(&str) -> String,
) -> Result<Option<Mac>, Fault> {
    let Some((key, text)) = sources.iter().find(|(_, text)| !text.is_empty()) else {
        return Ok(None);
    };
    let key = *key;
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

/// The MAC of a pod with these addresses, if none is requested: the same on every node and whenever
/// the address comes back, so that neighbours need not learn another one. `None` if IPAM uses the
/// interface before it knows the addresses.
pub fn of_pod(call: &Call, addressing: &Addressing) -> Option<Mac> {
    if ipam_needs_interface(call) {
        return None;
    }
    of_addresses(
        &call.network,
        addressing.ips.iter().map(|ip| ip.address.ip()),
    )
}

/// The MAC of a pod with the addresses `ips`: of the first IPv4 address, else of the first. `None`
/// without any.
pub fn of_addresses(network: &str, ips: impl Iterator<Item = IpAddr> + Clone) -> Option<Mac> {
    let first = ips.clone().next();
    let ip = ips.clone().find(IpAddr::is_ipv4).or(first)?;
    Some(derived(network, ip))
}

/// The MAC of `ip` in a network: locally administered, two octets of the network, then the IPv4
/// address. So no two addresses of a network have the same MAC, and a MAC shows its address. An
/// IPv6 address does not fit and is hashed with the network.
pub fn derived(network: &str, ip: IpAddr) -> Mac {
    match ip {
        IpAddr::V4(ip) => {
            let [one, two] = prefix(network);
            let [a, b, c, d] = ip.octets();
            Mac([one, two, a, b, c, d])
        }
        IpAddr::V6(ip) => hashed(&format!("pod {network} {ip}")),
    }
}

/// Whether `mac` is that of some IPv4 address in the network.
pub fn is_derived(network: &str, mac: Mac) -> bool {
    mac.0.starts_with(&prefix(network))
}

fn prefix(network: &str) -> [u8; 2] {
    let Mac([one, two, ..]) = hashed(&format!("pods {network}"));
    [one, two]
}

/// A locally administered MAC that is derived from a text.
pub fn hashed(text: &str) -> Mac {
    let digest = Sha512::digest(text.as_bytes());
    let mut octets = [0; 6];
    octets.copy_from_slice(&digest[..6]);
    Mac::local(octets)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mac_is_derived_from_network_and_address() {
        let of = |network, ip: &str| derived(network, ip.parse().unwrap());
        // Hosts with another release must agree.
        assert_eq!(of("net", "10.1.0.5").to_string(), "36:69:0a:01:00:05");
        assert_eq!(of("net", "fd00::5").to_string(), "be:01:12:cf:c5:91");
        assert_ne!(of("net", "10.1.0.5"), of("other", "10.1.0.5"));
        assert_ne!(of("net", "fd00::5"), of("net", "fd00::6"));
        assert!(is_derived("net", of("net", "10.1.0.5")));
        assert!(!is_derived("net", of("other", "10.1.0.5")));
        assert!(!is_derived("net", of("net", "fd00::5")));
    }
}
