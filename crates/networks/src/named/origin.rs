//! Which program made a network, and what it keeps about it in the configuration.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::{Record, id_of};

/// The program that made a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// `podwire network create`.
    Podwire,
    /// podman, with its CNI back end.
    Podman,
    /// nerdctl.
    Nerdctl,
    /// Any other program, or an administrator.
    Other,
}

impl Origin {
    /// The program that made the network `name` with this configuration, and what the configuration
    /// shows of its record. nerdctl has keys at the top, podman in `args` of the first plugin.
    pub(super) fn read(name: &str, document: &Map<String, Value>) -> (Self, Record) {
        if let Some(record) = Record::of(document) {
            return (Self::Podwire, record);
        }
        let known = |id: Option<&Value>, labels: Option<&Value>, options: Option<&Value>| Record {
            id: match id.and_then(Value::as_str) {
                Some(id) if !id.is_empty() => id.to_owned(),
                _ => id_of(name),
            },
            labels: texts(labels),
            options: texts(options),
            ..Record::default()
        };
        let (id, labels) = (document.get("nerdctlID"), document.get("nerdctlLabels"));
        if id.is_some() || labels.is_some() {
            return (Self::Nerdctl, known(id, labels, None));
        }
        let args = document
            .get("plugins")
            .and_then(|it| it.get(0)?.get("args"));
        let of_podman = |key: &str| args.and_then(|it| it.get(key));
        let (labels, options) = (of_podman("podman_labels"), of_podman("podman_options"));
        if labels.is_some() || options.is_some() {
            return (Self::Podman, known(None, labels, options));
        }
        (Self::Other, known(None, None, None))
    }
}

/// The members of an object that are texts.
fn texts(object: Option<&Value>) -> BTreeMap<String, String> {
    let members = object.and_then(Value::as_object).into_iter().flatten();
    let texts = members.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())));
    texts.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(document: &Value) -> (Origin, Record) {
        Origin::read("n", document.as_object().expect("an object"))
    }

    #[test]
    fn each_programs_networks_are_known() {
        let id = "5d".repeat(32);
        let (origin, record) = read(&json!({"podwire": {"id": id, "labels": {"a": "b"}}}));
        assert_eq!(
            (origin, record.labels["a"].as_str()),
            (Origin::Podwire, "b")
        );
        let (origin, record) = read(&json!({"nerdctlID": id, "nerdctlLabels": {"a": "b"}}));
        assert_eq!((origin, &record.id), (Origin::Nerdctl, &id));
        let (origin, record) = read(&json!({"plugins": [{"args": {"podman_labels": {"x": "y"}}}]}));
        assert_eq!((origin, record.labels["x"].as_str()), (Origin::Podman, "y"));
        assert_eq!(record.id, id_of("n"));
    }

    #[test]
    fn a_key_of_another_shape_is_another_programs() {
        for other in [json!(1), json!({}), json!({"id": "x"}), json!({"id": 5})] {
            let (origin, record) = read(&json!({"podwire": other}));
            assert_eq!((origin, record.id), (Origin::Other, id_of("n")));
        }
    }
}
