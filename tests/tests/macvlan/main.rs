//! macvlan: what each mode promises, proved with traffic on a segment of two machines;
//! what each key does, what CHECK notices, what a failure leaves behind (nothing).

mod conflicts;
mod failures;
mod first_moment;
mod modes;
mod mtu_and_mac;
mod parent;
mod verbs;
mod wiring;

use std::time::Duration;

use sandbox::{Netns, Sandbox, Segment, conf};
use serde_json::Value;

const V4: &str = "10.1.0.0/24";
const V6: &str = "fd01::/64";
const MAC: &str = "02:00:00:00:07:01";

fn macvlan(change: Value) -> Value {
    conf::with(&conf::macvlan(&[V4]), change)
}

fn dual(change: Value) -> Value {
    conf::with(&conf::macvlan(&[V4, V6]), change)
}

fn l2(change: Value) -> Value {
    conf::with(&conf::macvlan_l2(), change)
}

fn add(sandbox: &Sandbox, conf: &Value, pod: &Netns) -> Value {
    sandbox.cni("macvlan").add(conf, pod, "eth0").result()
}

fn del(sandbox: &Sandbox, conf: &Value, pod: &Netns) {
    sandbox.cni("macvlan").del(conf, pod, "eth0").silent();
}

/// A node on a segment, and a pod with `conf`.
struct Attached {
    sandbox: Sandbox,
    _segment: Segment,
    pod: Netns,
    result: Value,
}

fn attached(conf: &Value) -> Attached {
    let sandbox = Sandbox::new();
    let _segment = sandbox.segment();
    let pod = sandbox.pod("a");
    let result = add(&sandbox, conf, &pod);
    Attached {
        sandbox,
        _segment,
        pod,
        result,
    }
}

/// Two pods of one node, with the addresses .2 and .3.
fn siblings(conf: &Value) -> (Sandbox, Segment, [Netns; 2]) {
    let sandbox = Sandbox::new();
    let segment = sandbox.segment();
    let pods = [sandbox.pod("a"), sandbox.pod("b")];
    pods.iter().for_each(|pod| drop(add(&sandbox, conf, pod)));
    (sandbox, segment, pods)
}

/// ADD on a segment that must fail and leave nothing; returns the error.
#[track_caller]
fn refused(prepare: &str, conf: &Value) -> sandbox::Failure {
    let sandbox = Sandbox::new();
    let _segment = sandbox.segment();
    let pod = sandbox.pod("a");
    if !prepare.is_empty() {
        let host = sandbox.host();
        host.sh("sysctl -qw net.ipv6.conf.default.accept_dad=0");
        host.sh(prepare);
        await_rest(&sandbox);
    }
    let snapshot = sandbox.snapshot().allow_host_local(conf::NETWORK);
    let error = sandbox.cni("macvlan").add(conf, &pod, "eth0").error();
    snapshot.assert_unchanged();
    error
}

/// Waits until a second passes without a change: the kernel is in no hurry to tell the
/// other ends that a link has changed.
fn await_rest(sandbox: &Sandbox) {
    let rests = || {
        let snapshot = sandbox.snapshot();
        std::thread::sleep(Duration::from_millis(1200));
        snapshot.compare(Duration::ZERO).is_ok()
    };
    assert!((0..5).any(|_| rests()), "the segment does not come to rest");
}

fn info(netns: &Netns) -> Value {
    let link = netns.link("eth0").expect("eth0");
    assert_eq!(link["linkinfo"]["info_kind"], "macvlan");
    link["linkinfo"]["info_data"].clone()
}

fn mac(netns: &Netns, link: &str) -> String {
    let link = netns.link(link).unwrap_or_else(|| panic!("no link {link}"));
    link["address"].as_str().expect("an address").to_owned()
}

/// Whether a ping comes back, by IPv4 and IPv6 alike.
#[track_caller]
fn reaches(from: &Netns, to: [&str; 2]) -> bool {
    let answers = to.map(|to| from.ping(to, 2).contains(&true));
    assert_eq!(answers[0], answers[1], "IPv4 and IPv6 differ: {to:?}");
    answers[0]
}

const FIRST: [&str; 2] = ["10.1.0.2", "fd01::2"];
const SECOND: [&str; 2] = ["10.1.0.3", "fd01::3"];
