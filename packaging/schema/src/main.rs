//! `schema`: prints the JSON Schema (draft 7) of configurations with plugins of podwire, for editors. The keys and
//! their types are those that the plugins read; the descriptions are those of their READMEs.
//!
//! It accepts what is legal: other keys, and other plugins. `podwire validate` knows more.
//! Keys of plugins match in any case; the schema has the documented one.

mod readme;
mod shape;

use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use cni::conf::NetConf;
use cni::version::Version;
use serde_json::{Map, Value, json};

use readme::descriptions;
use shape::{Kind, Shape};

/// A plugin: its folder, and its keys.
type Plugin = (&'static str, fn() -> Shape);

const PLUGINS: &[Plugin] = &[
    ("plugins/bandwidth", Shape::of::<bandwidth::Conf>),
    ("plugins/bridge", Shape::of::<bridge::Conf>),
    ("plugins/dnsname", Shape::of::<dnsname::Conf>),
    ("plugins/dummy", Shape::of::<dummy::Conf>),
    ("plugins/firewall", Shape::of::<firewall::Conf>),
    ("plugins/host-device", Shape::of::<host_device::Conf>),
    ("plugins/ipvlan", Shape::of::<ipvlan::Conf>),
    ("plugins/loopback", Shape::of::<loopback::Conf>),
    ("plugins/macvlan", Shape::of::<macvlan::Conf>),
    ("plugins/portmap", Shape::of::<portmap::Conf>),
    ("plugins/ptp", Shape::of::<ptp::Conf>),
    ("plugins/sbr", Shape::of::<sbr::Conf>),
    ("plugins/tap", Shape::of::<tap::Conf>),
    ("plugins/tuning", Shape::of::<tuning::Conf>),
    ("plugins/vlan", Shape::of::<vlan::Conf>),
    ("plugins/vrf", Shape::of::<vrf::Conf>),
    ("plugins/vxlan", Shape::of::<overlay::Conf>),
    ("ipam/cluster", Shape::of::<cluster::Conf>),
    ("ipam/dhcp", Shape::of::<dhcp::conf::Conf>),
    ("ipam/host-local", Shape::of::<host_local::conf::Conf>),
    ("ipam/static", Shape::of::<static_ipam::conf::Conf>),
];

fn main() -> Result<()> {
    let text = serde_json::to_string_pretty(&schema()?)?;
    let mut output = std::io::stdout();
    writeln!(output, "{text}").context("write to standard output")
}

/// The schema.
fn schema() -> Result<Value> {
    let mut definitions = Map::new();
    let (mut plugins, mut ipam) = (Vec::new(), Vec::new());
    for (folder, shape) in PLUGINS {
        let (kind, name) = folder.split_once('/').unwrap_or_default();
        let chosen = match kind {
            "ipam" => &mut ipam,
            _ => &mut plugins,
        };
        chosen.push(json!({
            "if": {"properties": {"type": {"const": name}}, "required": ["type"]},
            "then": {"$ref": format!("#/definitions/{name}")},
        }));
        definitions.insert(name.to_owned(), of_plugin(folder, &shape())?);
    }
    let mut of_every_plugin = object(&Shape::of::<NetConf>(), &["prevResult"]);
    of_every_plugin["properties"]["ipam"] = json!({
        "type": "object",
        "description": "The IPAM plugin (type) and its keys.",
        "properties": {"type": {"type": "string"}},
        "allOf": ipam,
    });
    of_every_plugin["required"] = json!(["type"]);
    of_every_plugin["allOf"] = plugins.into();
    definitions.insert("plugin".to_owned(), of_every_plugin);
    definitions.insert("list".to_owned(), list());
    Ok(json!({
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "CNI configuration with plugins of podwire",
        "if": {"required": ["plugins"]},
        "then": {"$ref": "#/definitions/list"},
        "else": {"allOf": [{"$ref": "#/definitions/plugin"}], "required": ["name"]},
        "definitions": definitions,
    }))
}

/// A list of plugins, whose keys libcni reads.
fn list() -> Value {
    let versions: Vec<_> = Version::ALL.iter().map(|it| it.as_str()).collect();
    json!({
        "type": "object",
        "required": ["name", "plugins"],
        "properties": {
            "$schema": {"type": "string"},
            "name": {"type": "string", "description": "The network's name, unique on a node."},
            "cniVersion": {
                "enum": versions,
                "description": "The version of the CNI specification. containerd 1.7 and podman 4 do not know 1.1.0.",
            },
            "cniVersions": {
                "type": "array",
                "items": {"type": "string"},
                "description": "Further versions; a runtime takes the highest that it knows.",
            },
            "disableCheck": {"type": ["boolean", "string"], "description": "CHECK succeeds without a call."},
            "disableGC": {"type": ["boolean", "string"], "description": "GC succeeds without a call."},
            "loadOnlyInlinedPlugins": {
                "type": ["boolean", "string"],
                "description": "Plugins in the directory of the network's name, beside the file, are not read.",
            },
            "plugins": {
                "type": "array",
                "minItems": 1,
                "items": {"$ref": "#/definitions/plugin"},
                "description": "The plugins, in the order in which ADD calls them.",
            },
        },
    })
}

/// The definition of a plugin: its own keys, or for IPAM the keys of `ipam`.
fn of_plugin(folder: &str, shape: &Shape) -> Result<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .join(folder);
    let path = path.join("README.md");
    let readme = std::fs::read_to_string(&path);
    let readme = readme.with_context(|| format!("read {}", path.display()))?;
    let keys = if folder.starts_with("ipam/") {
        shape
            .part("ipam")
            .context("the configuration has no ipam")?
    } else {
        shape
    };
    // Runtimes write runtimeConfig; `args` has other plugins' members, too.
    let mut definition = object(keys, &["runtimeConfig", "args"]);
    let described = descriptions(&readme);
    for (name, property) in definition["properties"]
        .as_object_mut()
        .into_iter()
        .flatten()
    {
        if let Some(text) = described.get(name) {
            property["description"] = text.as_str().into();
        }
    }
    Ok(definition)
}

/// The object with all members of `shape` but those of `without`.
fn object(shape: &Shape, without: &[&str]) -> Value {
    let members = shape.parts.iter();
    let members = members.filter(|(name, _)| !without.contains(&name.as_str()));
    let properties: Map<_, _> = members
        .map(|(name, part)| (name.clone(), value(part)))
        .collect();
    json!({"type": "object", "properties": properties})
}

/// The schema of a value. The plugins take `null` for a key that is not there.
fn value(shape: &Shape) -> Value {
    let part = || shape.part("").map(value);
    match shape.kind {
        Kind::Any => json!({}),
        Kind::Boolean => json!({"type": ["boolean", "null"]}),
        Kind::Integer => json!({"type": ["integer", "null"]}),
        Kind::Unsigned => json!({"type": ["integer", "null"], "minimum": 0}),
        Kind::Text => json!({"type": ["string", "null"]}),
        Kind::List => json!({"type": ["array", "null"], "items": part()}),
        Kind::Map => json!({"type": ["object", "null"], "additionalProperties": part()}),
        Kind::Object => {
            let mut object = object(shape, &[]);
            object["type"] = json!(["object", "null"]);
            object
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn definition(name: &str) -> Value {
        schema().unwrap()["definitions"][name].clone()
    }

    #[test]
    fn there_is_a_definition_of_each_plugin_and_a_description_of_each_key() {
        let schema = schema().unwrap();
        for plugin in podwire::validate::plugins() {
            let definition = &schema["definitions"][plugin];
            let properties = definition["properties"].as_object();
            let properties = properties.unwrap_or_else(|| panic!("{plugin} is missing"));
            for (key, property) in properties {
                assert!(property["description"].is_string(), "{plugin}: {key}");
            }
        }
        assert_eq!(PLUGINS.len(), podwire::validate::plugins().len());
    }

    #[test]
    fn types_are_those_that_the_plugin_reads() {
        let bridge = definition("bridge");
        let bridge = &bridge["properties"];
        assert_eq!(bridge["isGateway"]["type"], json!(["boolean", "null"]));
        assert_eq!(bridge["vlan"]["type"], json!(["integer", "null"]));
        let trunk = &bridge["vlanTrunk"]["items"]["properties"];
        assert_eq!(trunk["minID"]["type"], json!(["integer", "null"]));
        // "auto" or an integer.
        assert_eq!(bridge["mtu"].get("type"), None);
        // Behind a field that refuses the empty text.
        let range = definition("host-local")["properties"]["ranges"]["items"]["items"].clone();
        assert_eq!(
            range["properties"]["rangeEnd"]["type"],
            json!(["string", "null"])
        );
        let dnsname = definition("dnsname");
        let port = &dnsname["properties"]["records"]["items"]["properties"]["srv"]["items"]["properties"]
            ["port"];
        assert_eq!(*port, json!({"type": ["integer", "null"], "minimum": 0}));
    }
}
