//! Records of names, and the lines on the resolver's socket.

#![cfg_attr(fuzzing, no_main)]

use std::path::{Component, Path};

use names::{Record, Reply, Request};

fn read(input: &[u8]) {
    if let Ok(record) = serde_json::from_slice::<Record>(input) {
        let written = serde_json::to_vec(&record).expect("a record can be written");
        let again: Record = serde_json::from_slice(&written).expect("and read");
        assert_eq!(record, again);
        let _ = record.attachment();
    }
    let Ok(line) = std::str::from_utf8(input) else {
        return;
    };
    if let Ok(request) = line.parse::<Request>() {
        assert_eq!(
            request.to_string().parse::<Request>().ok(),
            Some(request.clone())
        );
        if let Request::Read(entry) = request {
            let path = entry.to_string();
            let parts: Vec<_> = Path::new(&path).components().collect();
            assert_eq!(parts.len(), 2, "{path}");
            assert!(
                parts.iter().all(|it| matches!(it, Component::Normal(_))),
                "{path}"
            );
        }
    }
    if let Ok(reply) = line.parse::<Reply>() {
        assert_eq!(reply.to_string().parse::<Reply>().ok(), Some(reply));
    }
}

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|input: &[u8]| read(input));

#[cfg(not(fuzzing))]
fn main() -> std::process::ExitCode {
    fuzz::replay(read)
}
