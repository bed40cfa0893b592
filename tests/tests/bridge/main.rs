//! bridge: what each key does to the kernel, what CHECK notices, what a failure
//! leaves behind (nothing). Masquerade, spoof check and VLANs have files of their own.

mod check;
mod failures;
mod gateway;
mod mtu;
mod node;
mod pod;
mod port;
mod wiring;

use sandbox::{Netns, Sandbox, conf};
use serde_json::{Value, json};

const V4: &str = "10.1.0.0/24";
const V6: &str = "fd01::/64";

fn bridge(change: Value) -> Value {
    conf::with(&conf::bridge(&[V4]), change)
}

fn dual(change: Value) -> Value {
    conf::with(&conf::bridge(&[V4, V6]), change)
}

fn l2(change: Value) -> Value {
    conf::with(&conf::bridge_l2(), change)
}

fn add(sandbox: &Sandbox, conf: &Value, pod: &Netns) -> Value {
    sandbox.cni("bridge").add(conf, pod, "eth0").result()
}

fn del(sandbox: &Sandbox, conf: &Value, pod: &Netns) {
    sandbox.cni("bridge").del(conf, pod, "eth0").silent();
}

/// A fresh sandbox with one pod attached: (sandbox, pod, result).
fn attached(conf: &Value) -> (Sandbox, Netns, Value) {
    let sandbox = Sandbox::new();
    let pod = sandbox.pod("a");
    let result = add(&sandbox, conf, &pod);
    (sandbox, pod, result)
}

/// ADD in a fresh sandbox that must fail; returns the error.
fn refused(conf: &Value) -> sandbox::Failure {
    let sandbox = Sandbox::new();
    let pod = sandbox.pod("a");
    sandbox.cni("bridge").add(conf, &pod, "eth0").error()
}

fn host_veth(sandbox: &Sandbox) -> Value {
    let links = sandbox.host().links();
    let name = links
        .iter()
        .find(|name| name.starts_with("veth"))
        .expect("no host veth");
    sandbox.host().link(name).expect("the host veth")
}

fn has_flag(link: &Value, flag: &str) -> bool {
    link["flags"]
        .as_array()
        .is_some_and(|flags| flags.contains(&json!(flag)))
}

fn mac(ns: &Netns, link: &str) -> String {
    let link = ns.link(link).unwrap_or_else(|| panic!("no link {link}"));
    link["address"].as_str().expect("an address").to_owned()
}

fn name(result: &Value, index: usize) -> String {
    result["interfaces"][index]["name"]
        .as_str()
        .expect("a name")
        .to_owned()
}
