//! The calling thread becomes the node: for tests that call the code under test directly.
//!
//! libtest runs each test on a fresh thread, so every test has its own node. Commands are
//! split at white space and run in the namespaces of the thread that calls these functions.

#![allow(clippy::disallowed_methods)] // starts ip, nft and ping

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use crate::namespaces;

/// Moves the calling thread into a new node, with nothing but `lo`, until the thread ends.
///
/// # Panics
/// When the machine forbids it, with the setting to change.
pub fn enter() {
    namespaces::enter().unwrap_or_else(|why| panic!("{why}"));
    run("ip link set lo up");
}

/// Adds a pod's namespace, with `lo` up; returns its path.
///
/// # Panics
/// When there is one of this name.
pub fn add_pod(name: &str) -> PathBuf {
    run(&format!("ip netns add {name}"));
    run(&format!("ip -n {name} link set lo up"));
    PathBuf::from("/run/netns").join(name)
}

/// `command`, to be started.
///
/// # Panics
/// When it has no word.
pub fn command(command: &str) -> Command {
    let mut words = command.split_whitespace();
    let mut process = Command::new(words.next().expect("a command has a first word"));
    process.args(words);
    process
}

/// Runs `command` and returns how it ended.
///
/// # Panics
/// When it cannot be started.
pub fn attempt(command: &str) -> Output {
    let output = self::command(command).output();
    output.unwrap_or_else(|e| panic!("{command}: {e}"))
}

/// Runs `command`, which has to succeed, and returns what it printed.
///
/// # Panics
/// When it fails.
#[track_caller]
pub fn run(command: &str) -> String {
    printed(command, &attempt(command))
}

/// The same for a command that reads `input`.
///
/// # Panics
/// When it fails.
#[track_caller]
pub fn feed(command: &str, input: &str) -> String {
    let mut process = self::command(command);
    process.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = process.spawn().unwrap_or_else(|e| panic!("{command}: {e}"));
    let mut stdin = child.stdin.take().expect("a pipe");
    stdin.write_all(input.as_bytes()).expect("write to a pipe");
    drop(stdin);
    let output = child.wait_with_output().expect("wait for a child");
    printed(&format!("{command} <<< {input}"), &output)
}

#[track_caller]
fn printed(command: &str, output: &Output) -> String {
    assert!(output.status.success(), "{command}: {output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What a command with JSON output printed.
///
/// # Panics
/// When it fails or prints no JSON.
#[track_caller]
pub fn json(command: &str) -> Value {
    let out = run(command);
    serde_json::from_str(&out).unwrap_or_else(|error| panic!("{command}: {error}: {out}"))
}

/// One link of the node, as `ip -j -d link show` prints it.
#[track_caller]
pub fn link(name: &str) -> Value {
    json(&format!("ip -j -d link show dev {name}"))[0].clone()
}

/// The same for a link of a pod.
#[track_caller]
pub fn pod_link(pod: &str, name: &str) -> Value {
    json(&format!("ip -n {pod} -j -d link show dev {name}"))[0].clone()
}

/// Whether a link's JSON has `flag`.
pub fn has_flag(link: &Value, flag: &str) -> bool {
    let flags = link["flags"].as_array();
    flags.is_some_and(|all| all.iter().any(|it| it == flag))
}

/// Whether any of `count` packets, sent from the pod at once, was answered.
pub fn ping(pod: &str, ip: &str, count: u32) -> bool {
    let command = format!("ip netns exec {pod} ping -n -q -c {count} -l {count} -W 1 {ip}");
    attempt(&command).status.success()
}
