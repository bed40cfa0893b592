//! Network configurations of tests, as JSON values: built, never glued.

use serde_json::{Value, json};

use crate::suite::newest;

/// Network name in all configurations made here.
pub const NETWORK: &str = "testnet";

/// Where host-local keeps this network's reservations by default.
pub const STATE: &str = "/var/lib/cni/networks/testnet";

/// loopback at the newest version.
pub fn loopback() -> Value {
    plugin("loopback")
}

/// A plugin with nothing but what every configuration needs.
pub fn plugin(kind: &str) -> Value {
    json!({"cniVersion": newest(), "name": NETWORK, "type": kind})
}

/// bridge `cni0` as a gateway, host-local with one pool per given subnet.
pub fn bridge(subnets: &[&str]) -> Value {
    let mut conf = plugin("bridge");
    conf["bridge"] = "cni0".into();
    conf["isGateway"] = true.into();
    conf["ipam"] = host_local_ipam(subnets);
    conf
}

/// bridge `cni0` with no addresses at all.
pub fn bridge_l2() -> Value {
    let mut conf = plugin("bridge");
    conf["bridge"] = "cni0".into();
    conf
}

/// ptp, host-local with one pool per given subnet.
pub fn ptp(subnets: &[&str]) -> Value {
    let mut conf = plugin("ptp");
    conf["ipam"] = host_local_ipam(subnets);
    conf
}

/// macvlan on `eth1` (see [`crate::Sandbox::segment`]), host-local with one pool per given subnet.
pub fn macvlan(subnets: &[&str]) -> Value {
    let mut conf = macvlan_l2();
    conf["ipam"] = host_local_ipam(subnets);
    conf
}

/// macvlan on `eth1` with no addresses at all.
pub fn macvlan_l2() -> Value {
    let mut conf = plugin("macvlan");
    conf["master"] = "eth1".into();
    conf
}

/// vxlan 5 routed over `eth1`, host-local with one pool per given subnet.
pub fn vxlan(subnets: &[&str]) -> Value {
    let mut conf = plugin("vxlan");
    conf["vni"] = 5.into();
    conf["dev"] = "eth1".into();
    conf["ipam"] = host_local_ipam(subnets);
    conf
}

/// portmap after a plugin that gave `eth0` 10.1.0.2: `host_port` leads to port 80.
pub fn portmap(host_port: u16) -> Value {
    let mut conf = plugin("portmap");
    let mapping = json!({"hostPort": host_port, "containerPort": 80, "protocol": "tcp"});
    conf["runtimeConfig"] = json!({"portMappings": [mapping]});
    conf["prevResult"] = json!({
        "cniVersion": "1.0.0",
        "interfaces": [{"name": "eth0", "sandbox": "/run/netns/a"}],
        "ips": [{"address": "10.1.0.2/24", "interface": 0}],
    });
    conf
}

/// host-local called directly, with one pool per given subnet.
pub fn host_local(subnets: &[&str]) -> Value {
    let mut conf = plugin("bridge");
    conf["ipam"] = host_local_ipam(subnets);
    conf
}

/// The `ipam` object of host-local with one pool per given subnet.
pub fn host_local_ipam(subnets: &[&str]) -> Value {
    let ranges: Vec<Value> = subnets
        .iter()
        .map(|subnet| json!([{"subnet": subnet}]))
        .collect();
    json!({"type": "host-local", "ranges": ranges})
}

/// static called directly, with these `addresses` objects.
pub fn static_ipam(addresses: &Value) -> Value {
    let mut conf = plugin("bridge");
    conf["ipam"] = json!({"type": "static", "addresses": addresses});
    conf
}

/// `conf` with another `cniVersion`.
pub fn at(conf: &Value, version: &str) -> Value {
    with(conf, json!({"cniVersion": version}))
}

/// `conf` with `change` laid over it: objects merge, anything else replaces,
/// null removes (a JSON merge patch, RFC 7396).
pub fn with(conf: &Value, change: Value) -> Value {
    let mut changed = conf.clone();
    merge(&mut changed, change);
    changed
}

/// `conf` as libcni sends it after ADD: with the result it printed.
pub fn with_prev(conf: &Value, result: &Value) -> Value {
    let mut conf = conf.clone();
    conf["prevResult"] = result.clone();
    conf
}

/// `conf` as libcni sends it with GC: with the attachments that are still valid.
/// libcni sends the list twice, the second time under a name that an early draft
/// of the specification had.
pub fn with_valid(conf: &Value, attachments: &[(&str, &str)]) -> Value {
    let list: Vec<Value> = attachments
        .iter()
        .map(|(id, ifname)| json!({"containerID": id, "ifname": ifname}))
        .collect();
    let mut conf = conf.clone();
    conf["cni.dev/valid-attachments"] = list.clone().into();
    conf["cni.dev/attachments"] = list.into();
    conf
}

fn merge(target: &mut Value, change: Value) {
    let Value::Object(change) = change else {
        *target = change;
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    let Some(target) = target.as_object_mut() else {
        return;
    };
    for (key, value) in change {
        if value.is_null() {
            target.remove(&key);
        } else {
            merge(target.entry(key).or_insert(Value::Null), value);
        }
    }
}
