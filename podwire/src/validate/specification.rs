//! The keys that the specification gives every plugin: its section "Plugin
//! configuration objects".

use super::schema::{Key, Kind, Others};

/// Keys that any plugin may have.
pub const KEYS: &[Key] = &[
    Key::new("cniVersion", Kind::Text),
    Key::new("name", Kind::Text),
    Key::required("type", Kind::Text),
    Key::new("capabilities", Kind::BoolMap),
    Key::new("ipam", Kind::Object(IPAM_KEYS, Others::AreFine)),
    Key::new("dns", Kind::Object(DNS_KEYS, Others::AreMistakes)),
    // Of any type for a plugin that does not read them.
    Key::new("args", Kind::Custom(|_| Ok(()))),
    Key::new("runtimeConfig", Kind::Custom(|_| Ok(()))),
    Key::new("prevResult", Kind::Object(&[], Others::AreFine)),
];

/// The one key of `ipam` that is not the IPAM plugin's own.
pub const IPAM_KEYS: &[Key] = &[Key::new("type", Kind::Text)];

/// The keys of `dns`.
pub const DNS_KEYS: &[Key] = &[
    Key::new("nameservers", Kind::List(&Kind::Text)),
    Key::new("domain", Kind::Text),
    Key::new("search", Kind::List(&Kind::Text)),
    Key::new("options", Kind::List(&Kind::Text)),
];
