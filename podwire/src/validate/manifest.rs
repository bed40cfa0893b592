//! Configurations in Kubernetes manifests: `spec.config` of NetworkAttachmentDefinitions, as Multus
//! reads them. Objects of other kinds are passed over.

use cni::json::Json;
use yaml_rust2::parser::{Event, EventReceiver, Parser};
use yaml_rust2::{Yaml, YamlLoader};

use super::subject::text;

const KIND: &str = "NetworkAttachmentDefinition";

/// A NetworkAttachmentDefinition.
#[derive(Debug)]
pub struct Attachment {
    /// Its name, after its namespace if it has one.
    pub object: String,
    /// Its configuration.
    pub config: Config,
}

/// The configuration of a NetworkAttachmentDefinition.
#[derive(Debug)]
pub enum Config {
    /// Of one plugin or a list.
    Document(Json),
    /// There is none: Multus reads it from the node's directory.
    OnNode,
    /// The reason why there is none.
    Faulty(String),
}

/// The documents of a YAML file.
///
/// # Errors
/// It is not YAML, with line and column; it has an alias (`*name`), which a few lines can make
/// gigabytes of.
pub fn parse(file: &[u8]) -> Result<Vec<Json>, String> {
    let not_yaml = |error: &dyn std::fmt::Display| format!("not YAML: {error}");
    let file = std::str::from_utf8(file).map_err(|error| not_yaml(&error))?;
    let mut aliases = Aliases(false);
    let events = Parser::new_from_str(file).load(&mut aliases, true);
    events.map_err(|error| not_yaml(&error))?;
    if aliases.0 {
        return Err("has a YAML alias (*), which is not supported".to_owned());
    }
    let documents = YamlLoader::load_from_str(file).map_err(|error| not_yaml(&error))?;
    Ok(documents.iter().map(json).collect())
}

/// Whether there are aliases.
struct Aliases(bool);

impl EventReceiver for Aliases {
    fn on_event(&mut self, event: Event) {
        self.0 |= matches!(event, Event::Alias(_));
    }
}

/// A value of YAML. Keys of Kubernetes are strings; other keys become their text.
fn json(value: &Yaml) -> Json {
    match value {
        Yaml::Boolean(value) => Json::Bool(*value),
        Yaml::Integer(value) => Json::Number((*value).into()),
        Yaml::Real(text) => text.parse().map_or(Json::Null, Json::Number),
        Yaml::String(text) => Json::String(text.clone()),
        Yaml::Array(items) => Json::Array(items.iter().map(json).collect()),
        Yaml::Hash(members) => {
            let key = |key: &Yaml| match json(key) {
                Json::String(text) => text,
                Json::Number(number) => number.to_string(),
                _ => String::new(),
            };
            let members = members.iter().map(|(name, value)| (key(name), json(value)));
            Json::Object(members.collect())
        }
        Yaml::Null | Yaml::BadValue | Yaml::Alias(_) => Json::Null,
    }
}

/// Whether a document is an object of Kubernetes.
pub fn is_object(document: &Json) -> bool {
    exact(document, "apiVersion").is_some() && exact(document, "kind").is_some()
}

/// The NetworkAttachmentDefinitions of a manifest, those in a `List` (`kubectl get -o yaml`) too.
pub fn attachments(documents: &[Json]) -> impl Iterator<Item = Attachment> {
    let objects = documents.iter().flat_map(|document| {
        let is_list = text(exact(document, "kind")).is_some_and(|it| it.ends_with("List"));
        match exact(document, "items") {
            Some(Json::Array(items)) if is_list => items.as_slice(),
            _ => std::slice::from_ref(document),
        }
    });
    objects
        .filter(|it| text(exact(it, "kind")).as_deref() == Some(KIND))
        .map(attachment)
}

fn attachment(object: &Json) -> Attachment {
    let of_metadata = |key| text(exact(object, "metadata").and_then(|it| exact(it, key)));
    let name = of_metadata("name").unwrap_or_default();
    let config = match exact(object, "spec").and_then(|it| exact(it, "config")) {
        None | Some(Json::Null) => Config::OnNode,
        Some(Json::String(text)) if text.trim().is_empty() => Config::OnNode,
        Some(Json::String(text)) => match Json::parse(text.as_bytes()) {
            Ok(document) => Config::Document(named(document, &name)),
            Err(error) => Config::Faulty(format!("not JSON: {error}")),
        },
        Some(other) => Config::Faulty(format!("expected a string, got {}", other.kind())),
    };
    let object = match of_metadata("namespace") {
        Some(namespace) => format!("{namespace}/{name}"),
        None => name,
    };
    Attachment { object, config }
}

/// A configuration without a name gets that of its object, as by Multus.
fn named(mut document: Json, name: &str) -> Json {
    if let Json::Object(members) = &mut document {
        members.retain(|(key, value)| key != "name" || *value != Json::String(String::new()));
        if !members.iter().any(|(key, _)| key == "name") {
            members.push(("name".to_owned(), Json::String(name.to_owned())));
        }
    }
    document
}

/// A member. Keys of Kubernetes match to the letter.
fn exact<'a>(object: &'a Json, name: &str) -> Option<&'a Json> {
    let Json::Object(members) = object else {
        return None;
    };
    let found = members.iter().find(|(key, _)| key == name);
    found.map(|(_, value)| value)
}
