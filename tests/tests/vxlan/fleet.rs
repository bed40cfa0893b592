//! Hosts with an IP network between them ([`underlay`]), and the plugin on each.

use std::path::Path;

use sandbox::{Cni, Finished, Netns, Outcome, Running, Sandbox, Suite, conf, underlay};
use serde_json::{Value, json};

/// Which family the hosts talk to each other in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Underlay {
    V4,
    V6,
}

pub const BOTH: [Underlay; 2] = [Underlay::V4, Underlay::V6];

/// The hosts, numbered from 1. The sandbox's own namespace is the router.
pub struct Fleet {
    pub sandbox: Sandbox,
    pub hosts: Vec<Netns>,
}

/// One host's configuration of a network, to be completed.
pub fn network(vni: u32) -> Value {
    let mut conf = conf::plugin("vxlan");
    conf["name"] = format!("net{vni}").into();
    conf["vni"] = vni.into();
    conf
}

impl Fleet {
    pub fn new(count: usize) -> Self {
        let sandbox = Sandbox::new();
        underlay::router(&sandbox);
        let host = |n| underlay::host(&sandbox, &format!("host{n}"), n);
        let hosts = (1..=count).map(host).collect();
        Self { sandbox, hosts }
    }

    pub fn host(&self, number: usize) -> &Netns {
        &self.hosts[number - 1]
    }

    /// A pod's namespace on a host.
    pub fn pod(&self, host: usize, name: &str) -> Netns {
        let pod = self.sandbox.pod(&format!("h{host}{name}"));
        pod.sh("ip link set lo up");
        pod
    }

    /// A call of the plugin on a host.
    pub fn cni(&self, host: usize) -> Cni {
        // ip(8) shows the plugin a /sys of the host's namespace, as it is on a real one.
        let name = self.host(host).name().to_owned();
        self.sandbox
            .cni("vxlan")
            .under(&["ip", "netns", "exec", &name])
    }

    /// A pod that is attached, and what ADD answered.
    pub fn attached(&self, host: usize, name: &str, conf: &Value) -> (Netns, Value) {
        let pod = self.pod(host, name);
        let result = self.cni(host).add(conf, &pod, "eth0").result();
        (pod, result)
    }

    pub fn add(&self, host: usize, name: &str, conf: &Value) -> Netns {
        self.attached(host, name, conf).0
    }

    pub fn status(&self, host: usize, conf: &Value) -> Outcome {
        self.cni(host).status(conf)
    }

    /// `podwire` on a host, with one network's configuration.
    pub fn podwire(&self, host: usize, conf: &Value, arguments: &[&str]) -> Finished {
        let dir = self.sandbox.dir().join(format!("net.d-h{host}"));
        let file = format!("{}.conf", conf["name"].as_str().expect("a name"));
        self.sandbox.write(dir.join(file), conf.to_string());
        let program = Suite::Ours.dir().join("podwire").display().to_string();
        let dir = dir.display().to_string();
        let mut argv = vec![program.as_str()];
        argv.extend(&arguments[..2]);
        argv.extend(["--conf-dir", &dir]);
        argv.extend(&arguments[2..]);
        self.host(host).run(&argv)
    }

    /// podwired with addresses of the cluster whose store is the file `store`.
    pub fn agent(&self, host: usize, dir: &Path, store: &Path) -> Running {
        let (file, socket) = (dir.join("podwired.json"), dir.join("agent.sock"));
        let ipam = json!({"file": store, "node": format!("h{host}"), "dataDir": dir.join("ipam")});
        let document = json!({"socket": socket, "ipam": ipam});
        self.sandbox.write(&file, document.to_string());
        let program = Suite::Ours.dir().join("podwired").display().to_string();
        let file = file.display().to_string();
        let agent = self.host(host).start(&[&program, "--config", &file]);
        self.host(host)
            .wait_until("the agent listens", |_| socket.exists());
        agent
    }

    /// Where the state of a host's IPAM is.
    pub fn ipam(&self, host: usize, subnets: &[String]) -> Value {
        let mut ipam = conf::host_local_ipam(&[]);
        let ranges: Vec<Value> = subnets
            .iter()
            .map(|subnet| json!([{"subnet": subnet}]))
            .collect();
        ipam["ranges"] = ranges.into();
        ipam["dataDir"] = format!("/run/ipam-h{host}").into();
        ipam
    }

    /// The configuration of a network of one segment on a host, with all others as peers. The
    /// addresses of host N are .N1 to .N9 of 10.V.0.0/16, and ::N1 to ::N9.
    pub fn segment(&self, host: usize, vni: u32, underlay: Underlay) -> Value {
        let mut conf = network(vni);
        conf["mode"] = "l2".into();
        conf["underlay"] = family(underlay).into();
        conf["peers"] = self.others(host, underlay, |_| json!({}));
        let v4 = json!([{"subnet": format!("10.{vni}.0.0/16"),
            "rangeStart": format!("10.{vni}.0.{host}0"), "rangeEnd": format!("10.{vni}.0.{host}9")}]);
        let v6 = json!([{"subnet": format!("fd00:{vni}::/64"),
            "rangeStart": format!("fd00:{vni}::{host}0"), "rangeEnd": format!("fd00:{vni}::{host}9")}]);
        conf["ipam"] = self.ipam(host, &[]);
        conf["ipam"]["ranges"] = json!([v4, v6]);
        conf
    }

    /// The configuration of a routed network on a host, with all others as peers. The subnets of
    /// host N are 10.V.N.0/24 and fd00:V:N::/64.
    pub fn routed(&self, host: usize, vni: u32, underlay: Underlay) -> Value {
        let mut conf = network(vni);
        conf["mode"] = "l3".into();
        conf["underlay"] = family(underlay).into();
        conf["peers"] = self.others(host, underlay, |n| json!({"subnet": subnets(vni, n)}));
        conf["ipam"] = self.ipam(host, &subnets(vni, host));
        conf
    }

    fn others(&self, host: usize, underlay: Underlay, more: impl Fn(usize) -> Value) -> Value {
        let others = (1..=self.hosts.len()).filter(|n| *n != host);
        let all = others.map(|n| {
            let mut peer = more(n);
            peer["vtep"] = address(n, underlay).into();
            peer
        });
        all.collect::<Vec<_>>().into()
    }
}

pub fn subnets(vni: u32, host: usize) -> Vec<String> {
    vec![
        format!("10.{vni}.{host}.0/24"),
        format!("fd00:{vni}:{host}::/64"),
    ]
}

pub fn family(underlay: Underlay) -> &'static str {
    match underlay {
        Underlay::V4 => "ipv4",
        Underlay::V6 => "ipv6",
    }
}

/// A host's address in the underlay.
pub fn address(host: usize, underlay: Underlay) -> String {
    match underlay {
        Underlay::V4 => format!("172.20.{host}.2"),
        Underlay::V6 => format!("2001:db8:{host}::2"),
    }
}

/// The pod's addresses of both families, without prefix.
pub fn addresses(pod: &Netns) -> Vec<String> {
    let all = pod.addresses("eth0");
    let bare = all
        .iter()
        .map(|it| it.split('/').next().unwrap_or_default());
    bare.map(str::to_owned).collect()
}
