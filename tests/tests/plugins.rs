//! The table of plugins (`plugins.json`) and the tree: what a new plugin must have is there.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use sandbox::{Plugin, Sandbox, Suite, beyond_peer, conf_of, table};
use serde_json::{Value, json};

fn project(path: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/..")).join(path)
}

fn read(path: &str) -> String {
    let text = fs::read_to_string(project(path));
    text.unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn path(plugin: &Plugin) -> String {
    format!("{}/{}", plugin.folder, plugin.name)
}

#[test]
fn every_folder_has_a_row_and_every_row_a_folder() {
    let rows: BTreeSet<String> = table().iter().map(path).collect();
    let mut folders = BTreeSet::new();
    for parent in ["plugins", "ipam"] {
        for entry in fs::read_dir(project(parent)).expect("a folder of plugins") {
            let name = entry.expect("an entry").file_name();
            folders.insert(format!("{parent}/{}", name.to_string_lossy()));
        }
    }
    assert_eq!(rows, folders);
}

#[test]
fn every_plugin_is_a_package_with_a_page_and_a_place_in_the_documents() {
    let workspace = read("Cargo.toml");
    let readme = read("README.md");
    for plugin in table() {
        let (name, path) = (&plugin.name, path(plugin));
        assert!(workspace.contains(&format!("    \"{path}\",\n")), "{path}");
        let manifest = read(&format!("{path}/Cargo.toml"));
        assert!(manifest.contains(&format!("name = \"{name}\"\n")), "{path}");
        assert!(project(&format!("{path}/src/main.rs")).exists(), "{path}");
        let page = read(&format!("{path}/README.md"));
        assert_eq!(page.contains("## Keys"), plugin.has_keys(), "{path}");
        assert!(readme.contains(&path), "{path} in README.md");
    }
}

#[test]
fn every_plugin_is_in_an_example() {
    let mut used = BTreeSet::new();
    for entry in fs::read_dir(project("netconf-examples")).expect("the examples") {
        let file = entry.expect("an entry").path();
        if file.extension().is_some_and(|it| it != "md") {
            let text = fs::read_to_string(&file).expect("an example");
            collect_types(&serde_json::from_str(&text).expect("JSON"), &mut used);
        }
    }
    for plugin in table() {
        assert!(used.contains(&plugin.name), "{}", plugin.name);
    }
}

/// All values of `type`, at any depth.
fn collect_types(value: &Value, types: &mut BTreeSet<String>) {
    match value {
        Value::Array(all) => all.iter().for_each(|it| collect_types(it, types)),
        Value::Object(all) => {
            types.extend(all.get("type").and_then(Value::as_str).map(str::to_owned));
            all.values().for_each(|it| collect_types(it, types));
        }
        _ => {}
    }
}

#[test]
fn every_plugin_with_keys_is_fuzzed() {
    for plugin in table().iter().filter(|it| it.has_keys()) {
        let corpus = project(&format!("fuzz/corpus/{}", plugin.name));
        assert!(corpus.exists(), "{}", corpus.display());
    }
}

#[test]
fn validate_knows_every_plugin() {
    beyond_peer("it has no such command", || {
        let sandbox = Sandbox::new();
        for plugin in table() {
            // Validate reports unknown keys of plugins that it knows, and of no others.
            let mut conf = conf_of(&plugin.name);
            let keys = if plugin.folder == "ipam" {
                &mut conf["ipam"]
            } else {
                &mut conf
            };
            keys["unknownKey"] = true.into();
            conf["prevResult"] = Value::Null;
            let plugins = json!([{"type": "other"}, conf]);
            let list = json!({"cniVersion": "1.0.0", "name": "testnet", "plugins": plugins});
            let file = sandbox.dir().join(format!("{}.conflist", plugin.name));
            sandbox.write(&file, list.to_string());
            let podwire = Suite::Ours.dir().join("podwire");
            let argv =
                [podwire.to_str(), Some("validate"), file.to_str()].map(Option::unwrap_or_default);
            let done = sandbox.host().run(&argv);
            assert!(done.stdout.contains("unknownKey"), "{list}: {done:?}");
        }
    });
}
