//! Every target over every input of its corpus, without a fuzzer: what once
//! crashed a parser never does so again.

#![allow(clippy::disallowed_methods)] // the targets are programs

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// For a whole corpus, on a machine that has much else to do.
const LIMIT: Duration = Duration::from_secs(60);

macro_rules! targets {
    ($($name:literal)*) => {
        [$(($name, env!(concat!("CARGO_BIN_EXE_fuzz-", $name)))),*]
    };
}

fn targets() -> Vec<(&'static str, &'static str)> {
    targets!(
        "bandwidth" "bridge" "cluster" "dhcp" "dhcp-rpc" "dnsname" "dummy" "firewall" "flannel" "host-device" "host-local" "host-local-state" "iptables" "ipvlan" "macvlan" "names" "netlink" "nftables" "podwire" "portmap" "ptp"
        "protocol" "resolver" "result" "sbr" "static" "tap" "tuning" "vlan" "vrf" "vxlan"
    )
    .into()
}

#[test]
fn no_input_of_a_corpus_crashes_its_target_or_holds_it_up() {
    let memory = tempfile::TempDir::new_in("/dev/shm").expect("make a directory in memory");
    let running: Vec<_> = targets()
        .into_iter()
        .map(|(name, program)| (name, start(name, program, memory.path())))
        .collect();
    let until = Instant::now() + LIMIT;
    for (name, child) in running {
        let ended = finish(child, until);
        let log = fs::read_to_string(memory.path().join(name)).unwrap_or_default();
        let last: Vec<_> = log.lines().rev().take(6).collect();
        assert_eq!(ended, Ok(()), "{name}, last line first: {last:#?}");
    }
}

#[test]
fn every_target_has_a_corpus_and_is_run() {
    let mut known: Vec<_> = targets().iter().map(|(name, _)| name.to_string()).collect();
    known.sort();
    assert_eq!(names("corpus"), known);
    assert_eq!(names("targets"), known);
}

fn start(name: &str, program: &str, memory: &Path) -> Child {
    let inputs = files(&folder("corpus").join(name));
    assert!(!inputs.is_empty(), "no corpus for {name}");
    Command::new(program)
        .args(inputs)
        .env("TMPDIR", memory)
        .stdout(Stdio::null())
        .stderr(Stdio::from(
            fs::File::create(memory.join(name)).expect("a log"),
        ))
        .spawn()
        .unwrap_or_else(|error| panic!("start {program}: {error}"))
}

/// How it ended, if not well.
fn finish(mut child: Child, until: Instant) -> Result<(), String> {
    loop {
        if let Some(status) = child.try_wait().expect("wait for a target") {
            return status.success().then_some(()).ok_or(status.to_string());
        }
        if Instant::now() > until {
            child.kill().expect("end a target");
            child.wait().expect("wait for a target");
            return Err(format!("still ran after {LIMIT:?}"));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{folder:?}: {error}"));
    entries.flatten().map(|entry| entry.path()).collect()
}

/// The targets that a folder knows, as they are called.
fn names(of: &str) -> Vec<String> {
    let mut names: Vec<_> = files(&folder(of))
        .iter()
        .filter_map(|path| {
            path.file_stem()?
                .to_str()
                .map(|name| name.replace('_', "-"))
        })
        .collect();
    names.sort();
    names
}
