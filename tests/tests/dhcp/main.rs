//! dhcp: leases of real servers (dnsmasq, kea) on a wire that the node's bridge is.
//!
//! dnsmasq grants nothing shorter than two minutes, so what has to be seen to be renewed or to
//! expire is granted by kea, which counts in seconds.

mod churn;
mod configuration;
mod daemon;
mod hostile;
mod interchange;
mod lease;
mod outage;
mod release;
mod renewal;

use std::time::{Duration, Instant};

use sandbox::{Failure, Netns, Running, Sandbox, Suite, conf};
use serde_json::{Value, json};

const SOCKET: &str = "/run/cni/dhcp.sock";
const STATE: &str = "/var/lib/cni/dhcp/run-cni-dhcp.sock";
const WHY: &str = "the Go daemon forgets leases, and its plugin has no verdict on it";

/// A wire, `lan`, which is a bridge of the node, and a server's place on it.
struct Wire {
    sandbox: Sandbox,
    server: Netns,
}

impl Wire {
    fn new() -> Self {
        let sandbox = Sandbox::new();
        sandbox.host().sh("ip link add lan type bridge
             ip link set lan up");
        let server = station(&sandbox, "server", "10.77.0.1/16");
        Self { sandbox, server }
    }

    fn host(&self) -> Netns {
        self.sandbox.host()
    }

    /// Our daemon, with these flags.
    fn daemon(&self, flags: &[&str]) -> Running {
        self.daemon_of(Suite::Ours, flags)
    }

    fn daemon_of(&self, suite: Suite, flags: &[&str]) -> Running {
        self.sandbox.dhcp_daemon(suite, flags)
    }

    /// ADD of a pod to the bridge `lan`.
    #[track_caller]
    fn add(&self, pod: &Netns) -> Value {
        let cni = self.sandbox.cni("bridge");
        cni.add(&lan(), pod, "eth0").result()
    }

    /// The same, which fails.
    #[track_caller]
    fn refused(&self, pod: &Netns) -> Failure {
        let cni = self.sandbox.cni("bridge");
        cni.add(&lan(), pod, "eth0").error()
    }

    #[track_caller]
    fn check(&self, pod: &Netns, result: &Value) {
        let conf = conf::with_prev(&lan(), result);
        let cni = self.sandbox.cni("bridge");
        cni.check(&conf, pod, "eth0").silent();
    }

    #[track_caller]
    fn del(&self, pod: &Netns) {
        let cni = self.sandbox.cni("bridge");
        cni.del(&lan(), pod, "eth0").silent();
    }

    /// GC of a network of which these attachments are in use.
    #[track_caller]
    fn gc(&self, conf: &Value, valid: &[(&str, &str)]) {
        let cni = self.sandbox.cni("dhcp");
        cni.gc(&conf::with_valid(conf, valid)).silent();
    }

    /// A server whose program is perl, once it says that it serves.
    fn perl(at: &Netns, program: &str) -> Running {
        let server = at.start(&["perl", "-e", program]);
        eventually(5, "it serves", || server.output().contains("serves"));
        server
    }

    /// A pod whose `eth0` is on the wire without the plugin bridge, for tests that call only dhcp.
    fn wired_by_hand(&self, name: &str) -> Netns {
        let pod = self.sandbox.pod(name);
        self.host().sh(&format!(
            "ip link add w-{name} type veth peer name eth0 netns {name}
             ip link set w-{name} master lan up"
        ));
        pod.sh("ip link set eth0 up");
        pod
    }

    fn dnsmasq(&self, options: &[&str]) -> Running {
        dnsmasq(
            &self.server,
            "10.77.0.10,10.77.3.250,255.255.0.0,2m",
            options,
        )
    }

    /// kea with leases of so many seconds, T1 and T2, from this pool.
    fn kea(&self, times: [u32; 3], pool: &str, more: Value) -> Running {
        let [renew, rebind, lease] = times;
        let mut subnet = json!({
            "subnet": "10.77.0.0/16",
            "pools": [{"pool": pool}],
            "option-data": [{"name": "routers", "data": "10.77.0.1"}],
        });
        for (key, value) in more.as_object().into_iter().flatten() {
            subnet[key] = value.clone();
        }
        let conf = json!({"Dhcp4": {
            "interfaces-config": {"interfaces": ["eth0"]},
            "lease-database": {"type": "memfile", "persist": true, "name": self.file("kea.leases")},
            "valid-lifetime": lease, "renew-timer": renew, "rebind-timer": rebind,
            "authoritative": true, "match-client-id": true,
            "loggers": [{"name": "kea-dhcp4", "severity": "INFO", "output_options": [{"output": "stdout"}]}],
            "subnet4": [subnet],
        }});
        let path = self.file("kea.json");
        self.sandbox.write(&path, conf.to_string());
        let command = format!(
            "mkdir -p /run/kea; rm -f /run/kea/*
             export KEA_LOCKFILE_DIR={dir} KEA_PIDFILE_DIR={dir} KEA_LOGGER_DESTINATION=stdout
             exec kea-dhcp4 -c {path}",
            dir = self.sandbox.dir().display()
        );
        let running = self.server.start(&["sh", "-c", &command]);
        eventually(10, "kea serves", || {
            running.output().contains("DHCP4_STARTED")
        });
        running
    }

    fn file(&self, name: &str) -> String {
        self.sandbox.dir().join(name).display().to_string()
    }

    /// Log of a server, or of a daemon, that contains `text` within ten seconds.
    #[track_caller]
    fn await_log(running: &Running, text: &str) {
        let printed = || running.output().contains(text);
        if !within(10, printed) {
            panic!("not printed: {text}: {}", running.output());
        }
    }
}

/// A namespace on the wire.
fn station(sandbox: &Sandbox, name: &str, address: &str) -> Netns {
    let station = sandbox.pod(name);
    sandbox.host().sh(&format!(
        "ip link add w-{name} type veth peer name eth0 netns {name}
         ip link set w-{name} master lan up"
    ));
    station.sh(&format!(
        "ip link set lo up; ip addr add {address} dev eth0; ip link set eth0 up"
    ));
    // Snapshots are not to see what settles by itself.
    let end = format!("w-{name}");
    sandbox
        .host()
        .wait_until("the wire is up", |host| host.is_settled(&end));
    station.wait_until("the wire is up", |it| it.is_settled("eth0"));
    station
}

fn dnsmasq(server: &Netns, range: &str, options: &[&str]) -> Running {
    let running = server.dnsmasq(range, &[&["--dhcp-lease-max=4000"], options].concat());
    eventually(5, "dnsmasq serves", || {
        running.output().contains("IP range")
    });
    running
}

fn within(seconds: u64, condition: impl Fn() -> bool) -> bool {
    let deadline = Instant::now() + Duration::from_secs(seconds);
    while !condition() {
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    true
}

#[track_caller]
fn eventually(seconds: u64, what: &str, condition: impl Fn() -> bool) {
    assert!(within(seconds, condition), "never came true: {what}");
}

/// bridge `lan` with dhcp.
fn lan() -> Value {
    let mut conf = conf::plugin("bridge");
    conf["bridge"] = "lan".into();
    conf["ipam"] = json!({"type": "dhcp"});
    conf
}

fn address(result: &Value) -> String {
    result["ips"][0]["address"]
        .as_str()
        .expect("an address")
        .to_owned()
}

fn bare(cidr: &str) -> &str {
    cidr.split('/').next().unwrap_or_default()
}

/// What dnsmasq says of a release; its hardware address comes after the blank, without
/// which 10.77.1.2 would be found in 10.77.1.23.
fn release_of(cidr: &str) -> String {
    format!("DHCPRELEASE(eth0) {} ", bare(cidr))
}

fn gateway(pod: &Netns) -> String {
    let routes = pod.routes_to("-4", "default");
    routes
        .first()
        .and_then(|route| route["gateway"].as_str())
        .unwrap_or_default()
        .to_owned()
}
