//! host-local called as a function instead of executed. This happens only if the
//! executable in `CNI_PATH` has the same code; the only visible difference is the time.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use sandbox::{Netns, Outcome, Sandbox, Suite, conf};
use serde_json::{Value, json};

fn host_local() -> PathBuf {
    Suite::Ours.dir().join("host-local")
}

/// A directory of its own with `content` as the executable host-local.
fn install(sandbox: &Sandbox, name: &str, content: &[u8], mode: u32) -> PathBuf {
    let dir = sandbox.dir().join(name);
    fs::create_dir_all(&dir).expect("make a directory");
    let file = dir.join("host-local");
    fs::write(&file, content).expect("write host-local");
    fs::set_permissions(&file, fs::Permissions::from_mode(mode)).expect("set its mode");
    dir
}

/// What has host-local's headers and notes, and not one of its instructions:
/// it can be called, never executed.
fn beginning() -> Vec<u8> {
    let mut all = fs::read(host_local()).expect("read host-local");
    all.truncate(4096);
    all
}

fn add(sandbox: &Sandbox, pod: &Netns, path: &Path) -> Outcome {
    let conf = conf::bridge(&["10.1.0.0/24"]);
    let call = sandbox.cni("bridge").env("CNI_PATH", path);
    call.add(&conf, pod, "eth0")
}

#[test]
fn our_own_host_local_is_called() {
    let sandbox = Sandbox::new();
    let pod = sandbox.pod("a");
    let hollow = install(&sandbox, "hollow", &beginning(), 0o755);
    let result = add(&sandbox, &pod, &hollow).result();
    assert_eq!(result["ips"][0]["address"], "10.1.0.2/24");
    let conf = conf::bridge(&["10.1.0.0/24"]);
    let call = || sandbox.cni("bridge").env("CNI_PATH", &hollow);
    let checked = conf::with_prev(&conf, &result);
    call().check(&checked, &pod, "eth0").silent();
    call().status(&conf).silent();
    call().del(&conf, &pod, "eth0").silent();
    let left = sandbox.list(conf::STATE);
    assert!(!left.contains(&"10.1.0.2".to_owned()), "{left:?}");
    call().add(&conf, &pod, "eth0").result();
    let none_valid = conf::with_valid(&conf, &[]);
    call().gc(&none_valid).silent();
    let left = sandbox.list(conf::STATE);
    assert!(!left.contains(&"10.1.0.3".to_owned()), "{left:?}");
}

#[test]
fn another_build_of_ours_is_executed() {
    let sandbox = Sandbox::new();
    let pod = sandbox.pod("a");
    let mut other = beginning();
    let note = other.windows(8).position(|bytes| bytes == b"podwire\0");
    other[note.expect("a note") + 8] ^= 1;
    let hollow = install(&sandbox, "other", &other, 0o755);
    let error = add(&sandbox, &pod, &hollow).error();
    assert!(error.msg.contains("netplugin failed"), "{}", error.msg);
    // Whole, it does what it would have done here.
    let mut whole = fs::read(host_local()).expect("read host-local");
    whole[..4096].copy_from_slice(&other);
    let whole = install(&sandbox, "whole", &whole, 0o755);
    add(&sandbox, &pod, &whole).result();
}

#[test]
fn what_may_not_be_executed_is_not_called() {
    let sandbox = Sandbox::new();
    let pod = sandbox.pod("a");
    let dir = install(&sandbox, "plain", &beginning(), 0o644);
    let error = add(&sandbox, &pod, &dir).error();
    assert!(error.msg.contains("Permission denied"), "{}", error.msg);
}

#[test]
fn a_foreign_host_local_is_executed() {
    let sandbox = Sandbox::new();
    let pod = sandbox.pod("a");
    let lease = json!({"cniVersion": "1.0.0", "ips": [{"address": "10.9.9.9/24"}]});
    let theirs = sandbox.fake("host-local");
    theirs.answer("ADD", &lease);
    let conf = conf::bridge(&["10.1.0.0/24"]);
    let result = sandbox.cni("bridge").add(&conf, &pod, "eth0").result();
    assert_eq!(result["ips"][0]["address"], "10.9.9.9/24");
    sandbox.cni("bridge").del(&conf, &pod, "eth0").silent();
    assert_eq!(theirs.verbs(), ["ADD", "DEL"]);
}

#[test]
fn called_or_executed_it_answers_the_same() {
    let script = format!("#!/bin/sh\nexec {}\n", host_local().display());
    let (called, executed) = (Sandbox::new(), Sandbox::new());
    let wrapped = install(&executed, "wrapped", script.as_bytes(), 0o755);
    let one = story(&called, Suite::Ours.dir());
    let other = story(&executed, &wrapped);
    assert_eq!(one.len(), other.len());
    for (one, other) in one.into_iter().zip(other) {
        assert_eq!(one, other);
    }
}

/// Everything that host-local says yes and no to, through bridge.
fn story(sandbox: &Sandbox, path: &Path) -> Vec<String> {
    let (a, b) = (sandbox.pod("a"), sandbox.pod("b"));
    let call = |id: &str| sandbox.cni("bridge").id(id).env("CNI_PATH", path);
    // Two addresses in all, one of them the gateway's.
    let small = conf::bridge(&["10.1.0.0/30"]);
    let first = call("one").add(&small, &a, "eth0");
    let checked = conf::with_prev(&small, &first.result());
    let mut answers = vec![first];
    answers.push(call("one").check(&checked, &a, "eth0"));
    answers.push(call("two").add(&small, &b, "eth0"));
    answers.push(call("one").add(&small, &a, "eth1"));
    answers.push(call("x").status(&small));
    answers.push(call("one").del(&small, &a, "eth0"));
    answers.push(call("one").del(&small, &a, "eth0"));
    answers.push(call("one").check(&checked, &a, "eth0"));
    answers.push(call("x").status(&small));
    let ipam = |ipam: Value| conf::with(&small, json!({"ipam": ipam}));
    for wrong in [
        ipam(json!({"ranges": null})),
        ipam(json!({"ranges": [[{"subnet": "10.1.0.0/33"}]]})),
        ipam(json!({"ranges": [[{"subnet": "10.1.0.0/31"}]]})),
        ipam(json!({"ranges": "all"})),
        ipam(json!({"resolvConf": "/nonexistent"})),
        ipam(json!({"dataDir": "/proc/nonexistent"})),
        conf::with(&small, json!({"args": {"cni": {"ips": ["10.7.7.7"]}}})),
        conf::at(&small, "0.4.0"),
        conf::at(&small, "0.2.0"),
        conf::at(&small, "9.9.9"),
    ] {
        for verb in ["ADD", "CHECK", "STATUS", "GC", "DEL"] {
            answers.push(call("one").attachment(verb, &wrong, &a, "eth0"));
        }
    }
    let args = |text: &str| call("two").args(text).add(&small, &b, "eth0");
    answers.push(args("IP=10.1.0.1"));
    answers.push(args("IP=nonsense"));
    answers.push(args("IP=10.1.0.2"));
    answers.push(call("two").del(&small, &b, "eth0"));
    answers.iter().map(comparable).collect()
}

/// Without what is drawn at random, or is the sandbox's own.
fn comparable(outcome: &Outcome) -> String {
    let random = |line: &&str| !line.contains("\"mac\"") && !line.contains("\"sandbox\"");
    let lines: Vec<_> = outcome.stdout().lines().filter(random).collect();
    format!("exit {}\n{}", outcome.code(), lines.join("\n"))
}
