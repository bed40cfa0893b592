//! The configurations that people copy.

mod node;

use std::fs;
use std::path::{Path, PathBuf};

use node::Node;
use serde_json::Value;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../netconf-examples")
}

/// Names and texts of all examples.
fn examples() -> Vec<(String, String)> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder()).expect("read the examples") {
        let path = entry.expect("read the examples").path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.ends_with(".conf") || name.ends_with(".conflist") {
            let text = fs::read_to_string(&path).expect("read an example");
            files.push((name.into_owned(), text));
        }
    }
    files.sort();
    assert!(files.len() >= 7, "{files:?}");
    files
}

#[test]
fn validate_finds_nothing() {
    let dir = folder().display().to_string();
    let done = Node::new().podwire_with(&[("CNI_PATH", "")], &["validate", &dir]);
    let count = examples().len();
    assert_eq!(
        done.succeeded().stdout,
        format!("{count} files: 0 errors, 0 warnings\n")
    );
}

/// What libcni before 1.2 (containerd 1.7, podman 4) reads, and what newer ones take.
#[test]
fn every_runtime_knows_the_version() {
    for (name, text) in examples() {
        let document: Value = serde_json::from_str(&text).unwrap();
        // As podman and nerdctl write them.
        let (version, is_of_other_program) = match name.as_str() {
            "87-podman.conflist" => ("0.4.0", true),
            "88-nerdctl.conflist" => ("1.0.0", true),
            _ => ("1.0.0", false),
        };
        assert_eq!(document["cniVersion"], version, "{name}");
        let several = serde_json::json!(["1.0.0", "1.1.0"]);
        let has_list = name.ends_with(".conflist") && !is_of_other_program;
        assert_eq!(document["cniVersions"] == several, has_list, "{name}");
    }
}

#[test]
fn every_line_is_explained() {
    let readme = fs::read_to_string(folder().join("README.md")).unwrap();
    for (name, text) in examples() {
        assert!(readme.contains(&format!("## {name}: ")), "{name}");
        let lines = text.lines().map(str::trim);
        for line in lines.filter(|line| line.contains('"')) {
            let bare = line.trim_end_matches(',');
            let explained = [line, bare].map(|line| format!("- `{line}`"));
            assert!(
                explained.iter().any(|line| readme.contains(line)),
                "{name}: {line}"
            );
        }
    }
}

#[test]
fn names_bridges_and_subnets_are_distinct() {
    let mut seen = Vec::new();
    for (name, text) in examples() {
        let document: Value = serde_json::from_str(&text).unwrap();
        let plugin = document.pointer("/plugins/0").unwrap_or(&document);
        let mut own = vec![document["name"].to_string(), plugin["bridge"].to_string()];
        for set in plugin["ipam"]["ranges"].as_array().into_iter().flatten() {
            own.push(set[0]["subnet"].to_string());
        }
        own.retain(|it| it != "null");
        for it in own {
            assert!(!seen.contains(&it), "{name}: {it}");
            seen.push(it);
        }
    }
}
