//! The measurement runs from end to end and writes its page. It checks no
//! speed: `make bench` measures that on a quiet machine.

// The program is what is tested.
#![allow(clippy::disallowed_methods)]

use std::fs;
use std::path::Path;
use std::process::Command;

/// Runs the program on a machine of its own: other programs of this one may make interfaces
/// and namespaces meanwhile. What it leaves there would be left on the real one.
const ALONE: &str = "
    mount -t tmpfs tmpfs /run
    mkdir /run/netns
    seen() { ip -o link show; ls /run/netns; }
    before=$(seen)
    \"$@\"
    [ \"$(seen)\" = \"$before\" ] || { seen >&2; exit 3; }";

use serde_json::Value;

#[test]
fn a_run_of_the_smallest_size_writes_page_figures_and_pictures() {
    let out = tempfile::tempdir().unwrap();
    let bin = concat!(env!("CARGO_MANIFEST_DIR"), "/../bin");
    let done = Command::new("unshare")
        .args(["--mount", "--net", "sh", "-ec", ALONE, "sh"])
        .args([env!("CARGO_BIN_EXE_measure"), "--smoke", "--out"])
        .arg(out.path())
        .env(
            "PODWIRE_BIN",
            std::env::var("PODWIRE_BIN").unwrap_or_else(|_| bin.into()),
        )
        .output()
        .unwrap();
    let output = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{output}");

    let page = fs::read_to_string(out.path().join("performance.md")).unwrap();
    for heading in [
        "What was promised",
        "Single calls",
        "Many pods at once",
        "Among many others",
        "What it takes",
        "Where podwire is not faster, and why",
        "Does a repetition agree?",
        "To repeat it",
    ] {
        assert!(
            page.contains(&format!("\n## {heading}\n")),
            "no {heading:?} in {page}"
        );
    }
    pictures_are_there(&page, out.path());
    assert!(page.contains("µs to create); where named so"), "{page}");
    let json = fs::read_to_string(out.path().join("performance.json")).unwrap();
    figures_are_whole(&serde_json::from_str(&json).unwrap());
}

fn pictures_are_there(page: &str, out: &Path) {
    let links: Vec<&str> = page
        .split("](")
        .skip(1)
        .filter_map(|rest| rest.split(')').next())
        .filter(|link| link.ends_with(".svg"))
        .collect();
    assert_eq!(links.len(), 11, "{page}");
    for link in links {
        let picture = fs::read_to_string(out.join(link)).expect("a picture is there");
        assert!(
            picture.starts_with("<svg") && picture.contains("<polyline"),
            "{link}: {picture}"
        );
    }
}

fn figures_are_whole(results: &Value) {
    let row = |job: &str, verb: &str| {
        let mut rows = results["verbs"].as_array().expect("a list").iter();
        rows.find(|row| row["job"] == job && row["verb"] == verb)
            .unwrap_or_else(|| panic!("no {verb} of {job}"))
            .clone()
    };
    for job in [
        "loopback",
        "host-local",
        "bridge",
        "bridge-masq",
        "bridge-masq-portmap",
        "host-local-aged",
        "bridge-masq-aged",
    ] {
        for verb in ["ADD", "DEL"] {
            let row = row(job, verb);
            for side in ["podwire", "go", "floor"] {
                let median = row["times"][side]["median"].as_f64();
                assert!(median.is_some_and(|time| time > 0.0), "{side} in {row}");
            }
            assert!(row["faster"]["median"].as_f64().is_some(), "{row}");
        }
    }
    for job in [
        "podman",
        "podman-ports",
        "ptp",
        "bandwidth",
        "tuning",
        "sbr",
    ] {
        for verb in ["ADD", "DEL"] {
            let row = row(job, verb);
            assert!(row["faster"]["median"].as_f64().is_some(), "{row}");
        }
    }
    for storm in results["storms"].as_array().expect("a list") {
        for side in ["podwire", "go", "floor"] {
            let seen = &storm["sides"][side];
            assert_eq!(seen["failed"], 0, "{storm}");
            // Two pods, and at least a program for each.
            assert!(seen["programs"].as_u64().is_some_and(|n| n >= 2), "{storm}");
        }
    }
    let calls = results["footprint"]["calls"].as_array().expect("a list");
    assert!(
        calls
            .iter()
            .all(|call| call["memory"]["podwire"].as_u64() > Some(100)),
        "{calls:?}"
    );
}
