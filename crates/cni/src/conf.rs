//! The keys that every network configuration has, and how a plugin's own are read.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::error::{Code, Error};
use crate::json::{DecodeError, Json};
use crate::request::Attachment;
use crate::result::Dns;

/// The keys of the specification, section "Plugin configuration objects".
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct NetConf {
    /// The plugin's `type`.
    #[serde(rename = "type")]
    pub plugin: String,
    /// What the runtime may pass in `runtimeConfig`. libcni has already filtered by it.
    pub capabilities: BTreeMap<String, bool>,
    /// The IPAM plugin.
    pub ipam: IpamType,
    /// How the container resolves names.
    pub dns: DnsKeys,
    /// The result of the plugins before this one, or of the ADD.
    pub prev_result: Option<PrevResult>,
}

/// The one key of `ipam` that does not belong to the IPAM plugin.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct IpamType {
    /// The type of the IPAM plugin; empty for an attachment without addresses.
    #[serde(rename = "type")]
    pub plugin: String,
}

/// The key `dns`. An empty list differs from a missing one.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct DnsKeys {
    nameservers: Option<Vec<String>>,
    domain: String,
    search: Option<Vec<String>>,
    options: Option<Vec<String>>,
}

impl DnsKeys {
    /// Whether any member is present. Then the `dns` of the IPAM plugin is ignored.
    pub fn is_set(&self) -> bool {
        *self != Self::default()
    }

    /// For a result.
    pub fn to_dns(&self) -> Dns {
        Dns {
            nameservers: self.nameservers.clone().unwrap_or_default(),
            domain: self.domain.clone(),
            search: self.search.clone().unwrap_or_default(),
            options: self.options.clone().unwrap_or_default(),
        }
    }
}

/// The document of a result, not yet decoded.
#[derive(Clone, Debug)]
pub struct PrevResult(pub Json);

impl<'de> Deserialize<'de> for PrevResult {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Json::deserialize(deserializer)? {
            object @ Json::Object(_) => Ok(Self(object)),
            _ => Err(serde::de::Error::custom("expected an object")),
        }
    }
}

/// An attachment that a GC must keep.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize)]
pub struct ValidAttachment {
    /// `CNI_CONTAINERID` of its ADD.
    #[serde(rename = "containerID")]
    pub container_id: String,
    /// `CNI_IFNAME` of its ADD.
    pub ifname: String,
}

impl ValidAttachment {
    /// The attachment to `network`; `None` if its id or name is malformed.
    pub fn owner(&self, network: &str) -> Option<Attachment> {
        Attachment::parse(network, &self.container_id, &self.ifname)
    }
}

/// The key that is checked before the verb.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Head {
    pub name: String,
}

/// The names of the list of attachments in use: the specification's, and that of an early
/// draft, which libcni writes as well.
const VALID_ATTACHMENTS: [&str; 2] = ["cni.dev/valid-attachments", "cni.dev/attachments"];

/// The attachments that a GC must keep; `None` if the configuration has no list.
///
/// `null` is an empty list: Go encodes a nil slice so, and CRI-O passes one on a node without
/// pods. All lists count, under both names, in any case, and however often.
///
/// # Errors
/// Code 7 for a list that cannot be read: it does not show what is unused.
pub fn valid_attachments(document: &Json) -> Result<Option<Vec<ValidAttachment>>, Error> {
    let Json::Object(members) = document else {
        return Ok(None);
    };
    let is_list = |key: &str| {
        VALID_ATTACHMENTS
            .iter()
            .any(|name| name.eq_ignore_ascii_case(key))
    };
    let mut valid = None::<Vec<_>>;
    for (key, list) in members.iter().filter(|(key, _)| is_list(key)) {
        let listed: Option<Vec<ValidAttachment>> = list
            .decode()
            .map_err(|error| load_error(&error.under(key)))?;
        valid
            .get_or_insert_default()
            .extend(listed.unwrap_or_default());
    }
    Ok(valid)
}

/// How faults in a configuration are handled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reading {
    /// ADD, CHECK, STATUS: a fault is an error.
    Strict,
    /// DEL, GC: a key with a fault is left out and logged, because the runtime calls DEL with
    /// the same configuration with which ADD has failed.
    Lenient,
}

/// Reads a `T` from `document`.
///
/// # Errors
/// Code 7: the first fault, `failed to load netconf: mtu: invalid type …`.
pub fn load<T: DeserializeOwned>(document: &Json) -> Result<T, Error> {
    document.decode().map_err(|error| load_error(&error))
}

/// Reads a `T` from `document`.
pub(crate) fn read<T: DeserializeOwned>(document: &Json, reading: Reading) -> Result<T, Error> {
    let first = match load(document) {
        Err(fault) if reading == Reading::Lenient => fault,
        strict => return strict,
    };
    let read = document.decode_all();
    for fault in &read.faults {
        crate::process::log(format_args!("ignoring a key of the configuration: {fault}"));
    }
    read.value.ok_or(first)
}

fn load_error(error: &DecodeError) -> Error {
    Code::InvalidConfig.err(format!("failed to load netconf: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Default, Deserialize)]
    #[serde(default, rename_all = "camelCase")]
    struct Sample {
        is_gateway: bool,
        mtu: u32,
    }

    fn document() -> Json {
        Json::parse(br#"{"IsGateway": "yes", "mtu": 1400}"#).unwrap()
    }

    #[test]
    fn a_fault_is_an_error_with_its_path() {
        let error = read::<Sample>(&document(), Reading::Strict).unwrap_err();
        assert_eq!(error.code, 7);
        assert!(
            error
                .msg
                .starts_with("failed to load netconf: isGateway: invalid type")
        );
    }

    #[test]
    fn a_lenient_reading_leaves_the_faulty_key_out() {
        let sample = read::<Sample>(&document(), Reading::Lenient).unwrap();
        assert!(!sample.is_gateway);
        assert_eq!(sample.mtu, 1400);
    }

    #[test]
    fn an_empty_list_of_name_servers_is_set() {
        let read = |text: &str| -> DnsKeys {
            super::read(&Json::parse(text.as_bytes()).unwrap(), Reading::Strict).unwrap()
        };
        assert!(read(r#"{"nameservers": []}"#).is_set());
        assert!(!read(r#"{"domain": "", "search": null}"#).is_set());
        assert_eq!(read(r#"{"domain": "x"}"#).to_dns().domain, "x");
    }

    fn valid(text: &str) -> Result<Option<Vec<String>>, Error> {
        let valid = valid_attachments(&Json::parse(text.as_bytes()).unwrap())?;
        let ids = |list: Vec<ValidAttachment>| list.into_iter().map(|it| it.container_id).collect();
        Ok(valid.map(ids))
    }

    #[test]
    fn attachments_in_use_are_found_under_every_name() {
        let [a, b] =
            ["a", "b"].map(|id| format!(r#"[{{"containerID": "{id}", "ifname": "eth0"}}]"#));
        let both = Some(vec!["a".to_owned(), "b".to_owned()]);
        for text in [
            format!(r#"{{"cni.dev/valid-attachments": {a}, "cni.dev/attachments": {b}}}"#),
            format!(r#"{{"cni.dev/valid-attachments": {a}, "CNI.dev/Valid-Attachments": {b}}}"#),
            format!(
                r#"{{"cni.dev/attachments": {a}, "cni.dev/attachments": {b}, "cni.dev/attachments": null}}"#
            ),
        ] {
            assert_eq!(valid(&text).unwrap(), both, "{text}");
        }
    }

    #[test]
    fn null_is_an_empty_list_and_absence_is_unknown() {
        for key in [
            "cni.dev/valid-attachments",
            "cni.dev/attachments",
            "cni.dev/ATTACHMENTS",
        ] {
            for list in ["null", "[]"] {
                let text = format!(r#"{{"{key}": {list}}}"#);
                assert_eq!(valid(&text).unwrap(), Some(Vec::new()), "{text}");
            }
        }
        assert_eq!(valid("{}").unwrap(), None);
    }

    #[test]
    fn a_list_that_cannot_be_read_is_an_error_with_its_path() {
        for list in [
            "1",
            "{}",
            "[null]",
            r#"[{"containerID": 1}]"#,
            r#"[{"containerID": "a"}]"#,
        ] {
            let text =
                format!(r#"{{"cni.dev/valid-attachments": [], "cni.dev/attachments": {list}}}"#);
            let error = valid(&text).unwrap_err();
            assert_eq!(error.code, 7);
            let start = "failed to load netconf: cni.dev/attachments";
            assert!(error.msg.starts_with(start), "{error}");
        }
    }
}
