//! A node with one network. Faults are injected into one attachment after the other.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};
use sandbox::{BackEnd, Cni, Netns, Outcome, Sandbox, Snapshot, Suite, conf, container_id};
use serde_json::{Value, json};

use crate::agent::Agent;
use crate::dhcp::Dhcp;
use crate::glance::{But, Glance};

/// An IPAM plugin that is host-local, executed.
pub const EXECUTED: &str = "executed";

/// How long a glance waits for objects that a child is still deleting.
const MOMENT: Duration = Duration::from_millis(250);

/// One in so many glances without a difference is confirmed by the leak check.
const REGULAR: usize = 25;

/// The interface of every attachment.
pub const IFNAME: &str = "eth0";

/// A plugin with what it needs before it.
#[derive(Clone, Debug)]
pub struct Chain {
    /// Its name in reports.
    pub name: &'static str,
    /// A script that prepares the node.
    pub setup: &'static str,
    /// Plugins that have done their ADD before, and are not touched, unless the chain is `whole`.
    pub prefix: Vec<Value>,
    /// The plugin into which faults are injected, with its delegate.
    pub victim: Value,
    /// Those after it in the list.
    pub suffix: Vec<Value>,
    /// As a runtime has it: all are added and deleted together, and what is before the victim comes and goes with it.
    pub whole: bool,
    /// Its binary, where that is not the `type`: an IPAM plugin gets the configuration of its caller.
    pub program: Option<&'static str>,
    /// Which programs are called iptables, where that matters.
    pub back_end: Option<BackEnd>,
    /// What the kernel does with the pod's devices when its namespace ends, as a script on the node.
    pub pod_ends: &'static str,
    /// What is made is in the pod alone, so that it goes with the pod or with a DEL that gets the pod's namespace.
    pub in_pod: bool,
    /// Before each accident the node forgets all that a network leaves: bridge, rules, files.
    pub cold: bool,
    /// Addresses come from a DHCP server, by way of a daemon.
    pub dhcp: bool,
    /// Addresses come from the agent, in which nothing may be left over.
    pub agent: bool,
    /// An ADD that fails leaves what it has done to the pod, on purpose.
    pub keeps: bool,
}

/// A node on which the chain works.
pub struct Node {
    sandbox: Sandbox,
    chain: Chain,
    /// The server and the daemon, where the chain has them.
    pub dhcp: Option<Dhcp>,
    /// The agent, where the chain has it.
    agent: Option<Agent>,
    /// Has the accidents.
    pub victim: Netns,
    /// Comes after each, and must not notice.
    pub next: Netns,
    /// Is attached all the time, and must not notice either.
    pub valid: Netns,
    valid_result: Value,
    /// The results of the plugins before the victim, by the name of the pod.
    prefix_results: RefCell<BTreeMap<String, Value>>,
    baseline: Snapshot,
    /// The same at a glance, and what may differ there.
    at_a_glance: Option<(Glance, But)>,
    looks: Cell<Looks>,
}

impl Looks {
    /// How often with the leak check.
    pub fn full(self) -> usize {
        self.after_glances + self.regular
    }
}

/// How often the node was looked at.
#[derive(Clone, Copy, Debug, Default)]
pub struct Looks {
    /// At a glance, and there was nothing to be seen.
    pub glances: usize,
    /// With the leak check, because of a glance.
    pub after_glances: usize,
    /// With the leak check, because it was time again.
    pub regular: usize,
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
        let dhcp = if chain.dhcp {
            Some(Dhcp::start(&sandbox)?)
        } else {
            None
        };
        let agent = if chain.agent {
            Some(Agent::start(&sandbox)?)
        } else {
            None
        };
        sandbox.host().sh(chain.setup);
        let [victim, next, valid] = ["victim", "next", "valid"].map(|name| sandbox.pod(name));
        for pod in [&victim, &next, &valid] {
            warm(pod, chain);
        }
        let baseline = sandbox.snapshot();
        let mut node = Self {
            sandbox,
            chain: chain.clone(),
            dhcp,
            agent,
            victim,
            next,
            valid,
            valid_result: Value::Null,
            prefix_results: RefCell::default(),
            baseline,
            at_a_glance: None,
            looks: Cell::default(),
        };
        node.install_executed();
        if !chain.whole {
            for pod in [&node.victim, &node.next, &node.valid] {
                node.attach_prefix(pod);
            }
        }
        for pod in [&node.victim, &node.next] {
            node.comes_and_goes(pod)?;
        }
        if !chain.cold {
            node.valid_result = node.add_all(&node.valid);
        }
        node.settle();
        let but = node.may_differ();
        node.baseline = node.allowing(&but);
        node.at_a_glance = Some((node.glance(&but)?, but));
        if let Some(agent) = &mut node.agent {
            agent.note();
        }
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
    fn may_differ(&self) -> But {
        let mut texts = vec![
            "/last_reserved_ip.".to_owned(),
            // A reading of all reservations leaves another index than the steps before it: either is right.
            "/.podwire/".into(),
            // A daemon that is started again has another id.
            "/dhcp daemon".into(),
            // Not there before it has begun to listen; what a killed one leaves is taken over.
            "other /run/cni/dhcp.sock".into(),
            // It may appear at any fault and stays; the leak check ignores it, too.
            "dir /run/podwire 4".into(),
        ];
        // What a daemon finds it has renewed: CHECK reports whether it still holds the lease. The leases
        // of other attachments are not among these.
        let leases = Dhcp::leases(&self.sandbox);
        assert!(
            leases.len() <= 1,
            "left on a node without accidents: {leases:?}"
        );
        texts.extend(leases);
        let links = if self.chain.cold {
            // A bridge that is made again has another MAC.
            vec!["cni0"]
        } else {
            Vec::new()
        };
        But { links, texts }
    }

    fn allowing(&self, but: &But) -> Snapshot {
        let snapshot = self.sandbox.snapshot();
        let snapshot = snapshot
            // Multicast groups that the kernel joins, when it pleases.
            .allow("fdb mac 33:33:")
            .allow("fdb mac 01:00:5e:")
            // What is not known for certain is forgotten: then pods are announced.
            .allow("file /run/podwire/neighbours/");
        let texts = but.texts.iter();
        let snapshot = texts.fold(snapshot, |it, text| it.allow(text));
        let links = but.links.iter();
        links.fold(snapshot, |it, link| it.allow_link(link))
    }

    fn glance(&self, but: &But) -> Result<Glance> {
        let pods = [&self.victim, &self.next, &self.valid].map(Netns::name);
        Glance::take(&self.sandbox, &pods, but)
    }

    /// Whether the node looks as before, at once or in a moment: a DEL leaves a child for some 15 ms.
    fn looks_clean(&self) -> Result<bool> {
        let Some((before, but)) = &self.at_a_glance else {
            return Ok(false);
        };
        let deadline = Instant::now() + MOMENT;
        loop {
            let now = self.glance(but)?;
            if now == *before {
                return Ok(true);
            }
            if Instant::now() > deadline {
                if std::env::var_os("FAULTS_GLANCES").is_some() {
                    eprintln!("{}", before.differences(&now).join("\n"));
                }
                return Ok(false);
            }
            sleep(Duration::from_millis(3));
        }
    }

    fn attach_prefix(&self, pod: &Netns) {
        let mut previous = None;
        for plugin in &self.chain.prefix {
            let conf = self.shaped(plugin, pod, previous.as_ref());
            let added = self.call(kind(plugin)).add(&conf, pod, IFNAME);
            previous = Some(added.result());
        }
        let results = &self.prefix_results;
        match previous {
            Some(result) => results.borrow_mut().insert(pod.name().to_owned(), result),
            None => None,
        };
    }

    /// What comes before the victim in the list is added with it.
    pub fn add_before(&self, pod: &Netns) {
        if self.chain.whole {
            self.attach_prefix(pod);
        }
    }

    /// Adds what comes after the victim, whose result this is; returns that of the list.
    pub fn add_behind(&self, pod: &Netns, result: Value) -> Value {
        let add = |previous: Value, plugin: &Value| {
            let conf = self.shaped(plugin, pod, Some(&previous));
            self.call(kind(plugin)).add(&conf, pod, IFNAME).result()
        };
        self.chain.suffix.iter().fold(result, add)
    }

    /// All that is added with the victim.
    fn add_all(&self, pod: &Netns) -> Value {
        self.add_before(pod);
        let added = self.cni().add(&self.conf(pod), pod, IFNAME);
        self.add_behind(pod, added.result())
    }

    /// Deletes what comes after the victim, as the runtime does first. `result` is that of the list, if there is one.
    pub fn delete_behind(&self, pod: &Netns, result: Option<&Value>) {
        let behind = self.chain.suffix.iter().rev();
        behind.for_each(|plugin| self.delete(plugin, pod, result));
    }

    /// Deletes what came before the victim, as the runtime does last.
    pub fn delete_before(&self, pod: &Netns, result: Option<&Value>) {
        if self.chain.whole {
            let before = self.chain.prefix.iter().rev();
            before.for_each(|plugin| self.delete(plugin, pod, result));
        }
    }

    fn delete(&self, plugin: &Value, pod: &Netns, result: Option<&Value>) {
        let conf = self.shaped(plugin, pod, result);
        let cni = self.call(kind(plugin));
        cni.del(&conf, pod, IFNAME).silent();
    }

    /// DEL of the list with what is known.
    pub fn delete_all(&self, pod: &Netns, conf: &Value, result: Option<&Value>) {
        self.delete_behind(pod, result);
        self.cni().del(conf, pod, IFNAME).silent();
        self.delete_before(pod, result);
    }

    /// DEL of the list with an empty CNI_NETNS, and nothing known.
    pub fn delete_elsewhere(&self, pod: &Netns) {
        let nothing = json!({"runtimeConfig": null, "prevResult": null});
        for plugin in self.together().rev() {
            let conf = conf::with(&self.shaped(plugin, pod, None), nothing.clone());
            let cni = self.call(self.program_of(plugin));
            cni.netns("").del(&conf, pod, IFNAME).silent();
        }
    }

    /// CHECK of the list, whose result this is.
    pub fn check_all(&self, pod: &Netns, result: &Value) {
        for plugin in self.together() {
            let conf = self.shaped(plugin, pod, Some(result));
            let cni = self.call(self.program_of(plugin));
            cni.check(&conf, pod, IFNAME).silent();
        }
    }

    /// The plugins that are added and deleted with the victim.
    fn together(&self) -> impl DoubleEndedIterator<Item = &Value> {
        let before = self.chain.prefix.iter().filter(|_| self.chain.whole);
        before.chain([&self.chain.victim]).chain(&self.chain.suffix)
    }

    fn program_of<'a>(&self, plugin: &'a Value) -> &'a str {
        self.chain.program.unwrap_or(kind(plugin))
    }

    /// The victim's configuration as ADD gets it for `pod`.
    pub fn conf(&self, pod: &Netns) -> Value {
        let results = self.prefix_results.borrow();
        self.shaped(&self.chain.victim, pod, results.get(pod.name()))
    }

    /// A plugin's configuration for `pod`.
    fn shaped(&self, plugin: &Value, pod: &Netns, previous: Option<&Value>) -> Value {
        let mut conf = chained(plugin, previous);
        if let Some(agent) = &self.agent {
            conf = agent.named_in(&conf);
        }
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

    /// A call of the plugin under test.
    pub fn cni(&self) -> Cni {
        self.call(self.program_of(&self.chain.victim))
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

    /// Whether each point gets a node that has just been set up.
    pub fn is_cold(&self) -> bool {
        self.chain.cold
    }

    /// Whether the pod may go: what came before the victim would go with it.
    pub fn pod_may_go(&self) -> bool {
        self.chain.prefix.is_empty() || self.chain.whole
    }

    /// Whether nothing is left when the victim has rolled back: all else that is added with it comes after it.
    pub fn rolls_back_all(&self) -> bool {
        (self.chain.prefix.is_empty() || !self.chain.whole) && !self.chain.keeps
    }

    /// Takes the pod's namespace away, and gives it another of the same name when `body` has run.
    pub fn without_pod<T>(&self, body: impl FnOnce() -> T) -> T {
        if !self.pod_may_go() {
            return body();
        }
        self.sandbox.host().sh(self.chain.pod_ends);
        self.sandbox.remove_pod(&self.victim);
        let done = body();
        self.sandbox.pod(self.victim.name());
        warm(&self.victim, &self.chain);
        done
    }

    /// GC of the list, when `valid` alone is in use; the victim's is called so.
    pub fn gc(&self, victim: impl Fn(&Value) -> Outcome) -> Outcome {
        let mut of_victim = None;
        for plugin in self.together() {
            let conf = self.gc_conf(plugin);
            if *plugin == self.chain.victim {
                of_victim = Some(victim(&conf));
            } else {
                self.call(kind(plugin)).gc(&conf).silent();
            }
        }
        of_victim.expect("the victim is in its list")
    }

    /// What GC gets: as the runtime sees the network, without a word about ports.
    fn gc_conf(&self, plugin: &Value) -> Value {
        let valid = container_id(&self.valid);
        let list = [(valid.as_str(), IFNAME)];
        let attached = !self.valid_result.is_null();
        let mut conf = conf::with(plugin, json!({"runtimeConfig": null}));
        if let Some(agent) = &self.agent {
            conf = agent.named_in(&conf);
        }
        conf::with_valid(&conf, if attached { &list } else { &[] })
    }

    /// Adds, checks and deletes another pod.
    ///
    /// # Errors
    /// When it cannot.
    pub fn next_one(&self) -> Result<()> {
        self.comes_and_goes(&self.next)
    }

    fn comes_and_goes(&self, pod: &Netns) -> Result<()> {
        let result = self.add_all(pod);
        self.check_all(pod, &result);
        let conf = conf::with_prev(&self.conf(pod), &result);
        self.delete_all(pod, &conf, Some(&result));
        if result["ips"].as_array().is_none_or(Vec::is_empty) {
            bail!("the next pod got no address: {result}");
        }
        Ok(())
    }

    /// The pods that existed all the time still pass CHECK.
    pub fn check_valid(&self) {
        if self.valid_result.is_null() {
            return;
        }
        self.check_all(&self.valid, &self.valid_result);
    }

    /// Compares the node with its state before the fault.
    ///
    /// # Errors
    /// The differences, one a line.
    pub fn is_clean(&self) -> Result<()> {
        if let Some(agent) = &self.agent {
            agent.is_as_before()?;
        }
        let mut looks = self.looks.get();
        let it_is_time = (looks.glances + 1).is_multiple_of(REGULAR);
        let same = self.looks_clean()?;
        match (same, it_is_time) {
            (true, false) => looks.glances += 1,
            (true, true) => {
                looks.glances += 1;
                looks.regular += 1;
            }
            (false, _) => looks.after_glances += 1,
        }
        self.looks.set(looks);
        if same && !it_is_time {
            return Ok(());
        }
        let grace = Duration::from_secs(2);
        self.baseline.compare(grace).map_err(|differences| {
            let missed = if same {
                "at a glance all was well, but "
            } else {
                ""
            };
            anyhow!("{missed}{differences}")
        })
    }

    /// How often [`Node::is_clean`] has looked how.
    pub fn looks(&self) -> Looks {
        self.looks.get()
    }
}

fn chained(plugin: &Value, previous: Option<&Value>) -> Value {
    match previous {
        Some(previous) => conf::with_prev(plugin, previous),
        None => plugin.clone(),
    }
}

/// lo has 127.0.0.1 from its first time on, even when it is down again. The first VRF of a namespace
/// adds a rule, which stays.
fn warm(pod: &Netns, chain: &Chain) {
    pod.sh("ip link set lo up; ip link set lo down");
    if kind(&chain.victim) == "vrf" {
        pod.sh("ip link add warm type vrf table 1; ip link del warm");
    }
}

fn kind(plugin: &Value) -> &str {
    plugin["type"].as_str().unwrap_or_default()
}
