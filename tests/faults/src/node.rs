//! A node with one network, on which one attachment after the other has an accident.

use std::os::unix::fs::PermissionsExt;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Result, bail};
use serde_json::{Value, json};
use testkit::{BackEnd, Cni, Netns, Outcome, Sandbox, Snapshot, Suite, conf, container_id};

use crate::dhcp::Dhcp;

/// An IPAM plugin that is host-local, executed.
pub const EXECUTED: &str = "executed";

/// The interface of every attachment.
pub const IFNAME: &str = "eth0";

/// A plugin with what it needs before it.
#[derive(Clone, Debug)]
pub struct Chain {
    /// What reports call it.
    pub name: &'static str,
    /// What the node has before any of it, as a script.
    pub setup: &'static str,
    /// Plugins that have done their ADD before, and are not touched.
    pub prefix: Vec<Value>,
    /// The plugin that has the accidents, with its delegate.
    pub victim: Value,
    /// Its binary, where that is not the `type`: an IPAM plugin gets the configuration of who calls it.
    pub program: Option<&'static str>,
    /// Which programs are called iptables, where that matters.
    pub back_end: Option<BackEnd>,
    /// What is made is in the pod alone, so that it goes with the pod or with a DEL that is told of it.
    pub in_pod: bool,
    /// Before each accident the node forgets all that a network leaves: bridge, rules, files.
    pub cold: bool,
    /// Addresses come from a DHCP server, by way of a daemon.
    pub dhcp: bool,
}

/// A node on which the chain works.
pub struct Node {
    sandbox: Sandbox,
    chain: Chain,
    /// The server and the daemon, where the chain has them.
    pub dhcp: Option<Dhcp>,
    /// Has the accidents.
    pub victim: Netns,
    /// Comes after each, and must not notice.
    pub next: Netns,
    /// Is attached all the time, and must not notice either.
    pub valid: Netns,
    valid_result: Value,
    baseline: Snapshot,
}

impl Node {
    /// Makes the node, warm: one attachment has come and gone.
    ///
    /// # Errors
    /// When the chain does not work without accidents.
    pub fn new(chain: &Chain) -> Result<Self> {
        let sandbox = Sandbox::new();
        // Links of the node get no address of the kernel's making: it comes and goes when it pleases.
        sandbox
            .host()
            .sh("sysctl -qw net.ipv6.conf.default.addr_gen_mode=1");
        let dhcp = match chain.dhcp {
            true => Some(Dhcp::start(&sandbox)?),
            false => None,
        };
        sandbox.host().sh(chain.setup);
        let [victim, next, valid] = ["victim", "next", "valid"].map(|name| sandbox.pod(name));
        [&victim, &next, &valid].into_iter().for_each(warm);
        let baseline = sandbox.snapshot();
        let mut node = Self {
            sandbox,
            chain: chain.clone(),
            dhcp,
            victim,
            next,
            valid,
            valid_result: Value::Null,
            baseline,
        };
        node.install_executed();
        for pod in [&node.victim, &node.next, &node.valid] {
            node.attach_prefix(pod)?;
        }
        for pod in [&node.victim, &node.next] {
            node.comes_and_goes(pod)?;
        }
        if !chain.cold {
            let conf = node.conf(&node.valid);
            let added = node.cni().add(&conf, &node.valid, IFNAME);
            node.valid_result = added.result();
        }
        node.settle();
        node.baseline = node.allowing();
        Ok(node)
    }

    /// Puts host-local under another name: one that a plugin does not have in itself, but executes.
    fn install_executed(&self) {
        let dir = self.sandbox.dir().join("fakes");
        let script = dir.join(EXECUTED);
        let host_local = Suite::Ours.dir().join("host-local");
        std::fs::create_dir_all(&dir).expect("make a directory of plugins");
        let text = format!("#!/bin/sh\nexec {}\n", host_local.display());
        std::fs::write(&script, text).expect("write a plugin");
        let mode = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(&script, mode).expect("make a plugin executable");
    }

    /// Waits until the kernel has nothing more to do on its own: addresses that it checks, groups that it joins.
    fn settle(&self) {
        let quiet = || {
            let before = self.sandbox.snapshot();
            sleep(Duration::from_millis(300));
            before.compare(Duration::ZERO).is_ok() && !before.text().contains("tentative")
        };
        for _ in 0..20 {
            if quiet() {
                return;
            }
        }
    }

    /// What a network keeps for its next pod may change.
    fn allowing(&self) -> Snapshot {
        let snapshot = self.sandbox.snapshot();
        let snapshot = snapshot
            // Multicast groups that the kernel joins, when it pleases.
            .allow("fdb mac 33:33:")
            .allow("fdb mac 01:00:5e:")
            .allow("/last_reserved_ip.")
            // A reading of all reservations leaves another index than the steps before it: either is right.
            .allow("/.podwire/");
        // A daemon that is started again has another id, and has what it finds renewed: whether it still holds the
        // lease is for CHECK to tell. Nobody else's lease is among these.
        let leases = Dhcp::leases(&self.sandbox);
        assert!(
            leases.len() <= 1,
            "left on a node without accidents: {leases:?}"
        );
        let snapshot = leases
            .iter()
            .fold(snapshot, |it, lease| it.allow(lease))
            .allow("/dhcp daemon")
            // Not there before it has begun to listen; what a killed one leaves is taken over.
            .allow("other /run/cni/dhcp.sock");
        match self.chain.cold {
            // A bridge that is made again has another MAC.
            true => snapshot.allow_link("cni0"),
            false => snapshot,
        }
    }

    fn attach_prefix(&self, pod: &Netns) -> Result<()> {
        let mut previous = None;
        for plugin in &self.chain.prefix {
            let conf = chained(plugin, previous.as_ref());
            let added = self.call(kind(plugin)).add(&conf, pod, IFNAME);
            previous = Some(added.result());
        }
        let Some(previous) = previous else {
            return Ok(());
        };
        self.sandbox.write(result_file(pod), previous.to_string());
        Ok(())
    }

    /// The victim's configuration as ADD gets it for `pod`.
    pub fn conf(&self, pod: &Netns) -> Value {
        let previous = self.sandbox.read(result_file(pod));
        let previous = previous.and_then(|text| serde_json::from_str(&text).ok());
        let mut conf = chained(&self.chain.victim, previous.as_ref());
        // Every pod wants a port of its own.
        let number = ["victim", "next", "valid"]
            .iter()
            .position(|it| *it == pod.name());
        let mappings = conf.pointer_mut("/runtimeConfig/portMappings");
        for mapping in mappings.and_then(Value::as_array_mut).into_iter().flatten() {
            let port = mapping["hostPort"].as_u64().unwrap_or_default();
            mapping["hostPort"] = (port + number.unwrap_or_default() as u64).into();
        }
        conf
    }

    /// A call of the plugin that has the accidents.
    pub fn cni(&self) -> Cni {
        let kind = self.chain.program.unwrap_or(kind(&self.chain.victim));
        self.call(kind)
    }

    fn call(&self, kind: &str) -> Cni {
        match self.chain.back_end {
            Some(back_end) => self.sandbox.cni_with(back_end, kind),
            None => self.sandbox.cni(kind),
        }
    }

    /// The directory that both sides may write to.
    pub fn dir(&self) -> String {
        self.sandbox.dir().display().to_string()
    }

    /// Forgets what a network leaves, as a node that has just been set up.
    pub fn make_cold(&self) {
        self.sandbox.host().sh("ip link del cni0 2>/dev/null || :
             nft flush ruleset
             rm -rf /var/lib/cni /run/cni");
    }

    /// Whether accidents happen to a node that has just been set up.
    pub fn is_cold(&self) -> bool {
        self.chain.cold
    }

    /// Whether the pod may go: what came before the victim would go with it.
    pub fn pod_may_go(&self) -> bool {
        self.chain.prefix.is_empty()
    }

    /// Takes the pod's namespace away, and gives it another of the same name when `body` has run.
    pub fn without_pod<T>(&self, body: impl FnOnce() -> T) -> T {
        if !self.pod_may_go() {
            return body();
        }
        self.sandbox.remove_pod(&self.victim);
        let done = body();
        self.sandbox.pod(self.victim.name());
        warm(&self.victim);
        done
    }

    /// GC, when `valid` alone is in use.
    pub fn gc(&self) -> Outcome {
        self.cni().gc(&self.gc_conf())
    }

    /// What GC gets: as the runtime sees the network, without a word about ports.
    pub fn gc_conf(&self) -> Value {
        let valid = container_id(&self.valid);
        let list = [(valid.as_str(), IFNAME)];
        let attached = !self.valid_result.is_null();
        let conf = conf::with(&self.chain.victim, json!({"runtimeConfig": null}));
        conf::with_valid(&conf, if attached { &list } else { &[] })
    }

    /// Another pod comes, is as it should be, and goes.
    ///
    /// # Errors
    /// When it cannot.
    pub fn next_one(&self) -> Result<()> {
        self.comes_and_goes(&self.next)
    }

    fn comes_and_goes(&self, pod: &Netns) -> Result<()> {
        let conf = self.conf(pod);
        let result = self.cni().add(&conf, pod, IFNAME).result();
        let after = conf::with_prev(&conf, &result);
        self.cni().check(&after, pod, IFNAME).silent();
        self.cni().del(&after, pod, IFNAME).silent();
        if result["ips"].as_array().is_none_or(Vec::is_empty) {
            bail!("the next pod got no address: {result}");
        }
        Ok(())
    }

    /// Who was there before is still as it was.
    pub fn check_valid(&self) {
        if self.valid_result.is_null() {
            return;
        }
        let conf = conf::with_prev(&self.conf(&self.valid), &self.valid_result);
        self.cni().check(&conf, &self.valid, IFNAME).silent();
    }

    /// Whether all is as before the accident.
    ///
    /// # Errors
    /// With what is not, one a line.
    pub fn is_clean(&self) -> Result<()> {
        let grace = Duration::from_secs(2);
        self.baseline.compare(grace).map_err(anyhow::Error::msg)
    }
}

fn chained(plugin: &Value, previous: Option<&Value>) -> Value {
    match previous {
        Some(previous) => conf::with_prev(plugin, previous),
        None => plugin.clone(),
    }
}

/// lo has 127.0.0.1 from its first time on, even when it is down again.
fn warm(pod: &Netns) {
    pod.sh("ip link set lo up; ip link set lo down");
}

fn kind(plugin: &Value) -> &str {
    plugin["type"].as_str().unwrap_or_default()
}

fn result_file(pod: &Netns) -> String {
    // Not below what the leak check reads, and gone with the sandbox.
    format!("/run/netns/.{}", pod.name())
}
