//! What the plugins that wire a pod (bridge, macvlan, vxlan) read alike.

use cni::Error;
use cni::json::Json;
use cni::version::Version;
use wiring::Masquerading;

use super::Conf;
use super::findings::Findings;
use super::schema::{self, Key, Kind, Others};

/// `runtimeConfig`, of which they read the MAC.
pub const RUNTIME_CONFIG: Key = Key::new("runtimeConfig", Kind::Object(MAC_KEY, Others::AreFine));

/// `args`, of which they read the MAC.
pub const ARGS: Key = Key::new("args", Kind::Object(ARGS_KEYS, Others::AreFine));

const MAC_KEY: &[Key] = &[Key::new("mac", Kind::MAC)];

const ARGS_KEYS: &[Key] = &[Key::new("cni", Kind::Object(MAC_KEY, Others::AreFine))];

/// An MTU in bytes, or `None` for `"auto"`, which is that of the way out.
pub fn mtu(value: &Json) -> Result<Option<i64>, String> {
    match (schema::integer(value), value) {
        (None, Json::String(text)) if text == "auto" => Ok(None),
        (None, _) => Err("expected an integer or \"auto\"".to_owned()),
        (bytes, _) => Ok(bytes),
    }
}

/// `ipMasqBackend`.
pub fn masquerade(conf: &Conf<'_>, findings: &mut Findings) {
    let backend = conf.text("ipMasqBackend");
    if let Err(error) = Masquerading::parse(false, backend.as_deref(), false) {
        let reason = Error::from_chain(&error).msg;
        findings.error(&conf.place_of("ipMasqBackend"), reason);
    }
}

/// What a pod without addresses cannot have: a result of before 0.3.0, and what
/// `keys` ask for.
pub fn without_ipam(conf: &Conf<'_>, keys: &[&str], findings: &mut Findings) {
    if conf.ipam().is_some() {
        return;
    }
    if conf.version < Version::V0_3_0 {
        // An older result is its addresses.
        let version = conf.version;
        let reason = format!("missing: a result of cniVersion {version} needs an address");
        findings.error(&conf.place_of("ipam"), reason);
    }
    for key in keys.iter().filter(|key| conf.flag(key)) {
        findings.warning(&conf.place_of(key), "has no effect without ipam");
    }
}
