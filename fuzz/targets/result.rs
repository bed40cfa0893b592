//! Results of every version: what a delegate answers, what a runtime passes as
//! prevResult. What was read is written in every version that can say it, and
//! reads back as it was written.

#![cfg_attr(fuzzing, no_main)]

use cni::json::Json;
use cni::{AddResult, Version};

fn result(input: &[u8]) {
    let Ok(document) = Json::parse(input) else {
        return;
    };
    for version in Version::ALL {
        let _ = AddResult::decode(&document, *version);
        if let Ok(result) = AddResult::decode_any(&document, *version) {
            Version::ALL.iter().for_each(|it| comes_back(&result, *it));
        }
    }
}

/// Written, read and written again, a result is the same text.
fn comes_back(result: &AddResult, version: Version) {
    let Ok(text) = result.encode(version) else {
        return;
    };
    let document = Json::parse(text.as_bytes()).expect("a document");
    let read = AddResult::decode(&document, version).expect("a result");
    assert_eq!(read.encode(version).expect("the same result"), text);
}

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|input: &[u8]| result(input));

#[cfg(not(fuzzing))]
fn main() -> std::process::ExitCode {
    fuzz::replay(result)
}
