//! A node with one network. A fault is injected into one attachment after the other.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};
use sandbox::{BackEnd, Cni, Netns, Outcome, Sandbox, Snapshot, Suite, conf, container_id};
use serde_json::{Value, json};

use crate::dhcp::Dhcp;
use crate::glance::{But, Glance};

/// The name of a host-local that is executed, not linked in.
pub const EXECUTED: &str = "executed";

/// How long a glance waits for deletions that are under way.
const MOMENT: Duration = Duration::from_millis(250);

/// One of so many glances without a difference is verified by the full leak check.
const REGULAR: usize = 25;

/// The interface of every attachment.
pub const IFNAME: &str = "eth0";

/// A plugin with the plugins and settings that it needs.
#[derive(Clone, Debug)]
pub struct Chain {
    /// Its name in reports.
    pub name: &'static str,
    /// A script that prepares the node.
    pub setup: &'static str,
    /// Plugins whose ADD comes first. They are not deleted, unless the chain is `whole`.
    pub prefix: Vec<Value>,
    /// The plugin into which faults are injected, with its delegate.
    pub victim: Value,
    /// The plugins after it in the list.
    pub suffix: Vec<Value>,
    /// Whether the plugins before the victim are added and deleted together with it, as by a runtime.
    pub whole: bool,
    /// Its binary, if that is not the `type`: an IPAM plugin gets the configuration of its caller.
    pub program: Option<&'static str>,
    /// The variant of iptables, where that matters.
    pub back_end: Option<BackEnd>,
    /// Whether the plugin changes only the pod, so that its changes go with the pod or with a DEL that gets the pod's namespace.
    pub in_pod: bool,
    /// Whether the shared objects of the network (bridge, rules, files) are removed before each fault.
    pub cold: bool,
    /// Whether addresses come from a DHCP server, through the daemon.
    pub dhcp: bool,
    /// Whether a failed ADD deliberately leaves its changes in the pod.
    pub keeps: bool,
}

/// A node with a working chain.
pub struct Node {
    sandbox: Sandbox,
    chain: Chain,
    /// The server and the daemon, where the chain has them.
    pub dhcp: Option<Dhcp>,
    /// The pod into whose attachment faults are injected.
    pub victim: Netns,
    /// A pod that comes after each fault, and must work.
    pub next: Netns,
    /// A pod that is attached all the time, and must keep working.
    pub valid: Netns,
    valid_result: Value,
    /// The results of the plugins before the victim, by the name of the pod.
    prefix_results: RefCell<BTreeMap<String, Value>>,
    baseline: Snapshot,
    /// The same for a glance, with the differences that are allowed.
    at_a_glance: Option<(Glance, But)>,
    looks: Cell<Looks>,
}

impl Looks {
    /// How often the full leak check was made.
    pub fn full(self) -> usize {
        self.after_glances + self.regular
    }
}

/// How often the node was looked at.
#[derive(Clone, Copy, Debug, Default)]
pub struct Looks {
    /// Glances without a difference.
    pub glances: usize,
    /// Full leak checks after a glance with a difference.
    pub after_glances: usize,
    /// Full leak checks to verify a glance without a difference.
    pub regular: usize,
}

impl Node {
    /// Makes the node, and adds and deletes one attachment, so that shared objects exist.
    ///
    /// # Errors
    /// When the chain fails without a fault.
    pub fn new(chain: &Chain) -> Result<Self> {
        let sandbox = Sandbox::new();
        // No link-local addresses on the node: the kernel adds and removes them in the background.
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
        Ok(node)
    }

    /// Installs host-local under another name, so that plugins execute it instead of calling the linked one.
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

    /// Waits until the kernel has finished duplicate address detection and multicast joins.
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

    /// The differences that are allowed: state that a network keeps for its next pod.
    fn may_differ(&self) -> But {
        let mut texts = vec![
            "/last_reserved_ip.".to_owned(),
            // An index that was rebuilt from all reservations may differ from one that was updated; both are right.
            "/.podwire/".into(),
            // A restarted daemon has another process id.
            "/dhcp daemon".into(),
            // It does not exist before the daemon listens; the socket of a killed daemon is replaced.
            "other /run/cni/dhcp.sock".into(),
        ];
        // A restarted daemon renews the leases that it finds, which changes their files. CHECK verifies that it
        // holds them.
        let leases = Dhcp::leases(&self.sandbox);
        assert!(
            leases.len() <= 1,
            "left on a node without accidents: {leases:?}"
        );
        texts.extend(leases);
        let links = match self.chain.cold {
            // A recreated bridge has another MAC.
            true => vec!["cni0"],
            false => Vec::new(),
        };
        But { links, texts }
    }

    fn allowing(&self, but: &But) -> Snapshot {
        let snapshot = self.sandbox.snapshot();
        let snapshot = snapshot
            // Multicast groups that the kernel joins in the background.
            .allow("fdb mac 33:33:")
            .allow("fdb mac 01:00:5e:");
        let texts = but.texts.iter();
        let snapshot = texts.fold(snapshot, |it, text| it.allow(text));
        let links = but.links.iter();
        links.fold(snapshot, |it, link| it.allow_link(link))
    }

    fn glance(&self, but: &But) -> Result<Glance> {
        let pods = [&self.victim, &self.next, &self.valid].map(Netns::name);
        Glance::take(&self.sandbox, &pods, but)
    }

    /// Whether the node looks as before, perhaps after a moment: a child process of DEL lives for some 15 ms.
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

    /// Adds the plugins before the victim, if they are added together with it.
    pub fn add_before(&self, pod: &Netns) {
        if self.chain.whole {
            self.attach_prefix(pod);
        }
    }

    /// Adds the plugins after the victim, whose result is given; returns the result of the list.
    pub fn add_behind(&self, pod: &Netns, result: Value) -> Value {
        let add = |previous: Value, plugin: &Value| {
            let conf = self.shaped(plugin, pod, Some(&previous));
            self.call(kind(plugin)).add(&conf, pod, IFNAME).result()
        };
        self.chain.suffix.iter().fold(result, add)
    }

    /// Adds all plugins that are added with the victim.
    fn add_all(&self, pod: &Netns) -> Value {
        self.add_before(pod);
        let added = self.cni().add(&self.conf(pod), pod, IFNAME);
        self.add_behind(pod, added.result())
    }

    /// Deletes the plugins after the victim, which a runtime deletes first. `result` is that of the list, if known.
    pub fn delete_behind(&self, pod: &Netns, result: Option<&Value>) {
        let behind = self.chain.suffix.iter().rev();
        behind.for_each(|plugin| self.delete(plugin, pod, result));
    }

    /// Deletes the plugins before the victim, which a runtime deletes last.
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

    /// DEL of the list, with namespace and result.
    pub fn delete_all(&self, pod: &Netns, conf: &Value, result: Option<&Value>) {
        self.delete_behind(pod, result);
        self.cni().del(conf, pod, IFNAME).silent();
        self.delete_before(pod, result);
    }

    /// DEL of the list with an empty CNI_NETNS and without a result.
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
        // Each pod publishes another port.
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

    /// A call of the victim.
    pub fn cni(&self) -> Cni {
        self.call(self.program_of(&self.chain.victim))
    }

    fn call(&self, kind: &str) -> Cni {
        match self.chain.back_end {
            Some(back_end) => self.sandbox.cni_with(back_end, kind),
            None => self.sandbox.cni(kind),
        }
    }

    /// The directory that the sandbox shares with the test.
    pub fn dir(&self) -> String {
        self.sandbox.dir().display().to_string()
    }

    /// Removes the shared objects of the network, as on a new node.
    pub fn make_cold(&self) {
        self.sandbox.host().sh("ip link del cni0 2>/dev/null || :
             nft flush ruleset
             rm -rf /var/lib/cni /run/cni");
    }

    /// Whether faults are injected on a new node.
    pub fn is_cold(&self) -> bool {
        self.chain.cold
    }

    /// Whether the pod may be deleted: the plugins before the victim lose their state with it.
    pub fn pod_may_go(&self) -> bool {
        self.chain.prefix.is_empty() || self.chain.whole
    }

    /// Whether nothing is left after the victim's roll-back, because no plugin before it is added together with it.
    pub fn rolls_back_all(&self) -> bool {
        (self.chain.prefix.is_empty() || !self.chain.whole) && !self.chain.keeps
    }

    /// Deletes the pod's namespace, runs `body`, and creates another namespace with that name.
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

    /// GC of the list with `valid` as the only attachment in use; the victim is called like this.
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

    /// The configuration for GC: that of the network, without port mappings.
    fn gc_conf(&self, plugin: &Value) -> Value {
        let valid = container_id(&self.valid);
        let list = [(valid.as_str(), IFNAME)];
        let attached = !self.valid_result.is_null();
        let conf = conf::with(plugin, json!({"runtimeConfig": null}));
        conf::with_valid(&conf, if attached { &list } else { &[] })
    }

    /// Adds, checks and deletes another pod.
    ///
    /// # Errors
    /// When one of these fails.
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

    /// Checks that the pod that is always attached is unchanged.
    pub fn check_valid(&self) {
        if self.valid_result.is_null() {
            return;
        }
        self.check_all(&self.valid, &self.valid_result);
    }

    /// Whether the node is in the state before the fault.
    ///
    /// # Errors
    /// The differences, one per line.
    pub fn is_clean(&self) -> Result<()> {
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

    /// How often [`Node::is_clean`] used which check.
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

/// lo keeps 127.0.0.1 after it was up once, even when it is down again.
fn warm(pod: &Netns) {
    pod.sh("ip link set lo up; ip link set lo down");
}

fn kind(plugin: &Value) -> &str {
    plugin["type"].as_str().unwrap_or_default()
}
