//! Records of the configuration, whose names belong to no pod: their keys and checks.

use cni::faults::Fault;
use names::{Service, Static, StaticData};
use serde::Deserialize;

use crate::plan::{fault, host_name};

/// A name that belongs to no pod, with exactly one of the members below it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct RecordKeys {
    /// The name; `*.apps` stands for all names that end with `.apps`.
    pub name: String,
    /// Its addresses.
    pub addresses: Option<Vec<String>>,
    /// The name that this one is an alias of.
    pub cname: Option<String>,
    /// Where a service is offered.
    pub srv: Option<Vec<ServiceKeys>>,
    /// Texts.
    pub txt: Option<Vec<String>>,
}

/// Where a service is offered (RFC 2782).
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ServiceKeys {
    /// The lowest is tried first.
    pub priority: u16,
    /// The share among services of the same priority.
    pub weight: u16,
    /// The port.
    pub port: u16,
    /// The name of the host.
    pub target: String,
}

/// Checks the record at `key`.
///
/// # Errors
/// The first fault, with its key.
pub fn read(key: &str, keys: &RecordKeys) -> Result<Static, Fault> {
    let name_key = format!("{key}.name");
    let invalid = |why| fault(&name_key, format!("invalid name {:?}: {why}", keys.name));
    let name = keys.name.parse().map_err(invalid)?;
    let data = match (&keys.addresses, &keys.cname, &keys.srv, &keys.txt) {
        (Some(texts), None, None, None) => {
            StaticData::Addresses(items(key, "addresses", texts, |key, text: &String| {
                text.parse()
                    .map_err(|_| fault(key, format!("{text:?} is no IP address")))
            })?)
        }
        (None, Some(text), None, None) => {
            StaticData::Cname(host_name(&format!("{key}.cname"), text)?)
        }
        (None, None, Some(list), None) => StaticData::Srv(items(key, "srv", list, service)?),
        (None, None, None, Some(texts)) => {
            StaticData::Txt(items(key, "txt", texts, |key, text: &String| {
                // One character-string (RFC 1035, section 3.3).
                let fits = text.len() <= 255;
                fits.then(|| text.clone())
                    .ok_or_else(|| fault(key, "a text has at most 255 bytes"))
            })?)
        }
        _ => return Err(fault(key, "expected one of addresses, cname, srv and txt")),
    };
    Ok(Static { name, data })
}

fn service(key: &str, keys: &ServiceKeys) -> Result<Service, Fault> {
    Ok(Service {
        priority: keys.priority,
        weight: keys.weight,
        port: keys.port,
        target: host_name(&format!("{key}.target"), &keys.target)?,
    })
}

/// Reads each item of the list `member` of the record at `key`. It must not be empty.
fn items<K, T>(
    key: &str,
    member: &str,
    list: &[K],
    read: impl Fn(&str, &K) -> Result<T, Fault>,
) -> Result<Vec<T>, Fault> {
    let key = format!("{key}.{member}");
    if list.is_empty() {
        return Err(fault(&key, "empty: the name would have no answer"));
    }
    let items = list.iter().enumerate();
    items
        .map(|(index, item)| read(&format!("{key}[{index}]"), item))
        .collect()
}
