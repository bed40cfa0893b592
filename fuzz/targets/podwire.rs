//! podwire: network lists, single configurations and cached attachments, from libcni or from
//! podwire, and `podwire validate`.

#![cfg_attr(fuzzing, no_main)]

use std::fs;
use std::path::Path;

use cni::json::Json;
use cni::{AddResult, Version};
use networks::{CachedAttachment, NetworkList, request};
use podwire::validate;
use tempfile::TempDir;

thread_local! {
    /// TMPDIR should be in memory.
    static DIR: TempDir = TempDir::new().expect("make a directory");
}

fn podwire(input: &[u8]) {
    if let Ok(list) = NetworkList::from_bytes(input) {
        requests(&list);
    }
    cached(input);
    DIR.with(|dir| {
        for name in ["network.conflist", "network.conf"] {
            let file = dir.path().join(name);
            fs::write(&file, input).expect("write the input");
            validate_file(&file);
            fs::remove_file(&file).expect("remove the input");
        }
    });
}

/// What the plugins of a list would read is a document in which they find its name.
fn requests(list: &NetworkList) {
    let _ = list.at_least(Version::V1_1_0);
    for plugin in &list.plugins {
        let result = serde_json::json!({"cniVersion": list.cni_version});
        let offered = plugin.document.clone();
        let documents = [
            request::of_attachment(list, plugin, Some(&result), Some(&offered)),
            request::of_gc(list, plugin, &[]),
        ];
        for document in documents {
            let text = serde_json::to_vec(&document).expect("a text");
            let read = Json::parse(&text).expect("a document");
            assert_eq!(read.get("name"), Some(Json::String(list.name.clone())));
        }
        let _ = plugin.clone().into_list();
    }
}

fn cached(input: &[u8]) {
    let Ok(attachment) = serde_json::from_slice::<CachedAttachment>(input) else {
        return;
    };
    let _ = attachment.config();
    for version in Version::ALL {
        let Ok(Some(result)) = attachment.result_as(version.as_str()) else {
            continue;
        };
        // It is what a plugin gets as its prevResult.
        let text = result.to_string();
        let document = Json::parse(text.as_bytes()).expect("a document");
        AddResult::decode_any(&document, *version).expect("a result");
    }
    let text = serde_json::to_vec(&attachment).expect("a file");
    let again: CachedAttachment = serde_json::from_slice(&text).expect("what was written");
    assert_eq!(again, attachment);
}

fn validate_file(file: &Path) {
    for report in validate::all(&[file.to_owned()], None) {
        let _ = format!("{report:?}");
    }
}

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|input: &[u8]| podwire(input));

#[cfg(not(fuzzing))]
fn main() -> std::process::ExitCode {
    fuzz::replay(podwire)
}
