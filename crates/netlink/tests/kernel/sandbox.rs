//! A private host with pods, made and looked at with other people's tools.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use netns::NetNs;
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};
use serde_json::Value;

/// A host's namespaces: the calling thread's own, until it ends.
pub struct Sandbox;

impl Sandbox {
    /// Moves the calling thread into a new network namespace with nothing but
    /// `lo`, and hides /run/netns and /sys.
    pub fn new() -> Self {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)
            .expect("these tests make namespaces: run them as root, or under `unshare -rnm`");
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        for (kind, path) in [("tmpfs", "/run"), ("sysfs", "/sys")] {
            mount(Some(kind), path, Some(kind), MsFlags::empty(), none).unwrap();
        }
        fs::create_dir("/run/netns").unwrap();
        run("ip link set lo up");
        Self
    }

    /// Adds a pod's namespace.
    pub fn pod(&self, name: &str) -> NetNs {
        run(&format!("ip netns add {name}"));
        run(&format!("ip -n {name} link set lo up"));
        NetNs::open(&Path::new("/run/netns").join(name)).unwrap()
    }
}

/// Runs `command` in the calling thread's namespaces; it has to succeed.
pub fn run(command: &str) -> String {
    let out = attempt(command);
    assert!(out.status.success(), "{command}: {out:?}");
    String::from_utf8(out.stdout).unwrap()
}

/// Runs `command` and returns how it ended.
pub fn attempt(command: &str) -> Output {
    self::command(command).output().unwrap()
}

/// `command`, to be started.
#[expect(
    clippy::disallowed_methods,
    reason = "tests look with other people's tools"
)]
pub fn command(command: &str) -> Command {
    let mut words = command.split_whitespace();
    let mut process = Command::new(words.next().unwrap());
    process.args(words);
    process
}

/// What a command with JSON output printed.
pub fn json(command: &str) -> Value {
    let out = run(command);
    serde_json::from_str(&out).unwrap_or_else(|error| panic!("{command}: {error}: {out}"))
}

/// What `ip -j -d link show` says about one link of the host.
pub fn link(name: &str) -> Value {
    json(&format!("ip -j -d link show dev {name}"))[0].clone()
}

/// The same for a link of a pod.
pub fn pod_link(pod: &str, name: &str) -> Value {
    json(&format!("ip -n {pod} -j -d link show dev {name}"))[0].clone()
}

/// Whether a link's JSON has `flag`.
pub fn has_flag(link: &Value, flag: &str) -> bool {
    let flags = link["flags"].as_array().unwrap();
    flags.iter().any(|it| it == flag)
}

/// Whether any of `count` packets came back, sent from the pod at once.
pub fn ping(pod: &str, ip: &str, count: u32) -> bool {
    let command = format!("ip netns exec {pod} ping -n -q -c {count} -l {count} -W 1 {ip}");
    attempt(&command).status.success()
}
