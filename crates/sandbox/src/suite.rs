//! Which binaries are under test, and which they are compared with.

#![allow(clippy::disallowed_methods)] // asks a plugin for its versions

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// A directory of plugins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suite {
    /// The plugins under test: `$PODWIRE_BIN`, else `bin/` in the workspace.
    Ours,
    /// What they are compared with: `$PODWIRE_PEER`, else `/usr/lib/cni`.
    Peer,
}

impl Suite {
    /// The suite's directory, as an absolute path. Panics if it is not there.
    pub fn dir(self) -> &'static Path {
        static OURS: OnceLock<PathBuf> = OnceLock::new();
        static PEER: OnceLock<PathBuf> = OnceLock::new();
        let workspace = concat!(env!("CARGO_MANIFEST_DIR"), "/../../bin");
        match self {
            Suite::Ours => {
                OURS.get_or_init(|| find("PODWIRE_BIN", workspace, "build the workspace into bin/"))
            }
            Suite::Peer => PEER.get_or_init(|| {
                let install = "install the Go plugins (Debian: containernetworking-plugins)";
                find("PODWIRE_PEER", "/usr/lib/cni", install)
            }),
        }
    }
}

fn find(variable: &str, default: &str, remedy: &str) -> PathBuf {
    let dir = std::env::var_os(variable).map_or_else(|| PathBuf::from(default), PathBuf::from);
    dir.canonicalize().unwrap_or_else(|e| {
        panic!(
            "no plugins in {}: {e}: {remedy} or set {variable}",
            dir.display()
        )
    })
}

/// Whether the suite under test is the peer itself, as when the tests are proved.
pub fn testing_the_peer() -> bool {
    Suite::Ours.dir() == Suite::Peer.dir()
}

/// The newest CNI version that the suite under test speaks. Configurations use it
/// unless the version is what the test is about.
pub fn newest() -> &'static str {
    static NEWEST: OnceLock<String> = OnceLock::new();
    NEWEST.get_or_init(|| {
        versions()
            .last()
            .cloned()
            .expect("a plugin supports no version")
    })
}

/// Whether the suite under test speaks this CNI version.
pub fn supports(version: &str) -> bool {
    versions().iter().any(|v| v == version)
}

fn versions() -> &'static [String] {
    static VERSIONS: OnceLock<Vec<String>> = OnceLock::new();
    VERSIONS.get_or_init(|| {
        let loopback = Suite::Ours.dir().join("loopback");
        let output = Command::new(&loopback)
            .env_clear()
            .env("CNI_COMMAND", "VERSION")
            .stdin(Stdio::null())
            .output()
            .unwrap_or_else(|e| panic!("run {}: {e}", loopback.display()));
        let answer: serde_json::Value =
            serde_json::from_slice(&output.stdout).expect("VERSION of loopback printed no JSON");
        let list = answer["supportedVersions"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        list.iter()
            .filter_map(|v| v.as_str().map(str::to_owned))
            .collect()
    })
}

/// Asserts what the Go plugins do not do: `why` says which of their defects.
///
/// Against the suite under test the body simply runs. When that suite is the peer
/// itself, the body must fail: this is how we know that it can.
pub fn beyond_peer(why: &str, body: impl FnOnce()) {
    if !testing_the_peer() {
        return body();
    }
    let failed = catch_unwind(AssertUnwindSafe(body)).is_err();
    assert!(
        failed,
        "the peer does it too ({why}): call this test an ordinary one"
    );
}
