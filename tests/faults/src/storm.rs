//! Hundreds of attachments over several networks, added, checked, deleted and collected at random by many at once, by
//! runtimes that lose patience and kill.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};
use std::thread::scope;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use sandbox::{Cni, Netns, Outcome, Sandbox, Snapshot, conf};
use serde_json::{Value, json};

/// How much, how long.
#[derive(Clone, Copy, Debug)]
pub struct Storm {
    /// Attachments that may be there at once, over all networks.
    pub attachments: usize,
    /// Runtimes that work at the same time.
    pub workers: usize,
    /// How long.
    pub time: Duration,
    /// The seed of the random choices.
    pub seed: u64,
}

/// The results.
#[derive(Debug, Default)]
pub struct Weather {
    /// Operations that ended on their own, by verb: how long each took.
    pub took: BTreeMap<&'static str, Vec<Duration>>,
    /// Operations that were killed.
    pub killed: usize,
    /// ADDs that failed with "try again later" (code 11).
    pub later: usize,
    /// Failures, one text each.
    pub findings: Vec<String>,
}

impl Weather {
    /// Operations, all together.
    pub fn operations(&self) -> usize {
        self.killed + self.took.values().map(Vec::len).sum::<usize>()
    }

    /// For each verb: how many, the median, the longest.
    pub fn times(&self) -> BTreeMap<&'static str, (usize, Duration, Duration)> {
        let row = |(verb, took): (&&'static str, &Vec<Duration>)| {
            let mut took = took.clone();
            took.sort();
            let longest = took.last().copied().unwrap_or_default();
            (*verb, (took.len(), took[took.len() / 2], longest))
        };
        self.took
            .iter()
            .filter(|(_, took)| !took.is_empty())
            .map(row)
            .collect()
    }
}

/// What a runtime knows of one attachment.
#[derive(Clone, Debug)]
enum Known {
    Nothing,
    /// It was there, as this result says.
    Attached(Value),
    /// A call was killed: anything may be there.
    Unknown,
    /// The runtime lost it, and its namespace is gone: GC is to find it.
    Forgotten,
}

struct Slot {
    pod: Netns,
    id: String,
    network: usize,
    known: Known,
}

struct Network {
    name: String,
    plugins: Vec<Value>,
    /// GC has it alone, as the specification wants: runtimes run no ADD and no DEL beside it.
    quiet: RwLock<()>,
    /// Which container holds which address, by the results of ADD.
    addresses: Mutex<BTreeMap<String, String>>,
}

struct Storming<'a> {
    sandbox: &'a Sandbox,
    networks: Vec<Network>,
    slots: Vec<Mutex<Slot>>,
    weather: Mutex<Weather>,
    until: Instant,
}

impl Storm {
    /// Runs the storm.
    ///
    /// # Errors
    /// When the networks do not work without load.
    pub fn run(&self) -> Result<Weather> {
        let sandbox = Sandbox::new();
        let host = sandbox.host();
        // Without addresses of its own making.
        host.sh("sysctl -qw net.ipv6.conf.default.disable_ipv6=1");
        host.sh("ip link add wire type veth peer name wire-far; ip link set wire up; ip link set wire-far up");
        host.sh("sysctl -qw net.ipv6.conf.default.disable_ipv6=0");
        let networks = networks();
        let mut slots = Vec::new();
        for number in 0..self.attachments {
            let pod = sandbox.pod(&format!("p{number}"));
            slots.push(Mutex::new(Slot {
                pod,
                id: format!("storm-{number}"),
                network: number % networks.len(),
                known: Known::Nothing,
            }));
        }
        let storming = Storming {
            sandbox: &sandbox,
            networks,
            slots,
            weather: Mutex::default(),
            until: Instant::now() + self.time,
        };
        let baseline = storming.warm_up()?;
        let storming = Storming {
            until: Instant::now() + self.time,
            ..storming
        };
        scope(|scope| {
            for worker in 0..self.workers {
                let storming = &storming;
                let chance = Chance::new(self.seed.wrapping_add(worker as u64));
                scope.spawn(move || storming.rage(chance));
            }
        });
        storming.calm(&baseline);
        Ok(storming
            .weather
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner))
    }
}

fn networks() -> Vec<Network> {
    let bridge = |number: usize, change: Value| {
        let subnet = format!("10.{}.0.0/26", 60 + number);
        let conf = conf::bridge(&[subnet.as_str()]);
        conf::with(
            &conf::with(&conf, json!({"bridge": format!("st{number}")})),
            change,
        )
    };
    let masqueraded = json!({"ipMasq": true, "ipMasqBackend": "nftables", "macspoofchk": true});
    let mut portmap = conf::plugin("portmap");
    portmap["backend"] = "nftables".into();
    let two = json!({"ipam": conf::host_local_ipam(&["10.61.0.0/26", "fd61::/120"])});
    let mut macvlan = conf::plugin("macvlan");
    macvlan["master"] = "wire".into();
    macvlan["ipam"] = conf::host_local_ipam(&["10.63.0.0/26"]);
    let chains = [
        vec![bridge(0, masqueraded)],
        vec![bridge(1, two), portmap],
        vec![bridge(2, json!({"hairpinMode": true}))],
        vec![macvlan],
    ];
    let network = |(number, plugins): (usize, Vec<Value>)| {
        let name = format!("storm{number}");
        let plugins = plugins
            .iter()
            .map(|plugin| conf::with(plugin, json!({"name": name})));
        Network {
            plugins: plugins.collect(),
            name,
            quiet: RwLock::default(),
            addresses: Mutex::default(),
        }
    };
    chains.into_iter().enumerate().map(network).collect()
}

impl Storming<'_> {
    /// One attachment of each network comes and goes, so that what stays for the next is there.
    fn warm_up(&self) -> Result<Snapshot> {
        for number in 0..self.networks.len() {
            let mut slot = lock(&self.slots[number]);
            self.add(&mut slot, None);
            ensure!(
                matches!(slot.known, Known::Attached(_)),
                "the first ADD: {:?}",
                lock(&self.weather).findings
            );
            self.del(&mut slot, true, None);
        }
        // Addresses that the kernel checks, groups that it joins.
        std::thread::sleep(Duration::from_secs(3));
        let snapshot = self.sandbox.snapshot();
        let snapshot = snapshot
            .allow("/last_reserved_ip.")
            .allow("/.podwire/")
            .allow("file /run/podwire/neighbours/");
        // Bridges take on and off groups and link-local addresses with their ports.
        Ok((0..3).fold(snapshot, |snapshot, number| {
            snapshot.allow_link(&format!("st{number}"))
        }))
    }

    fn rage(&self, mut chance: Chance) {
        while Instant::now() < self.until {
            if chance.one_in(40) {
                self.collect(chance.below(self.networks.len()));
                continue;
            }
            let Ok(mut slot) = self.slots[chance.below(self.slots.len())].try_lock() else {
                continue;
            };
            let network = &self.networks[slot.network];
            // Not waiting for it: the collector waits for this slot.
            let Ok(_busy) = network.quiet.try_read() else {
                continue;
            };
            let patience = chance
                .one_in(4)
                .then(|| Duration::from_micros(500 + chance.below(30_000) as u64));
            match slot.known.clone() {
                Known::Nothing if chance.one_in(10) => self.del(&mut slot, true, None),
                Known::Nothing => self.add(&mut slot, patience),
                Known::Attached(result) if chance.one_in(3) => self.check(&slot, &result),
                Known::Attached(_) if chance.one_in(5) => self.lose_pod(&mut slot, patience),
                Known::Attached(_) => self.del(&mut slot, true, patience),
                Known::Unknown if chance.one_in(4) => self.forget(&mut slot),
                Known::Unknown => self.del(&mut slot, true, patience),
                Known::Forgotten => {}
            }
        }
    }

    /// ADD of the whole chain.
    fn add(&self, slot: &mut Slot, patience: Option<Duration>) {
        let mut previous: Option<Value> = None;
        for plugin in &self.networks[slot.network].plugins {
            let conf = configured(plugin, slot, previous.as_ref());
            let outcome = self
                .cni(plugin, slot, patience)
                .add(&conf, &slot.pod, "eth0");
            if outcome.code() == KILLED {
                lock(&self.weather).killed += 1;
                slot.known = Known::Unknown;
                return;
            }
            self.took("ADD", &outcome);
            if outcome.code() != 0 {
                let error = outcome.error();
                match error.code {
                    11 => lock(&self.weather).later += 1,
                    _ => self.find(slot, format!("ADD failed: {outcome}")),
                }
                slot.known = Known::Unknown;
                return;
            }
            previous = Some(outcome.result());
        }
        let result = previous.unwrap_or_default();
        let mut addresses = lock(&self.networks[slot.network].addresses);
        for ip in result["ips"].as_array().into_iter().flatten() {
            let address = ip["address"].as_str().unwrap_or_default().to_owned();
            if let Some(other) = addresses.insert(address.clone(), slot.id.clone()) {
                self.find(slot, format!("{address} is {other}'s as well"));
            }
        }
        slot.known = Known::Attached(result);
    }

    fn check(&self, slot: &Slot, result: &Value) {
        for plugin in &self.networks[slot.network].plugins {
            let conf = configured(plugin, slot, Some(result));
            let outcome = self.cni(plugin, slot, None).check(&conf, &slot.pod, "eth0");
            self.took("CHECK", &outcome);
            if outcome.code() != 0 {
                self.find(slot, format!("CHECK failed: {outcome}"));
            }
        }
    }

    /// DEL of the whole chain, from its end; with or without the namespace.
    fn del(&self, slot: &mut Slot, netns: bool, patience: Option<Duration>) {
        let network = &self.networks[slot.network];
        let previous = match &slot.known {
            Known::Attached(result) => Some(result.clone()),
            _ => None,
        };
        // From now on another container may get the address.
        lock(&network.addresses).retain(|_, owner| *owner != slot.id);
        slot.known = Known::Unknown;
        for plugin in network.plugins.iter().rev() {
            let conf = configured(plugin, slot, previous.as_ref());
            let call = self.cni(plugin, slot, patience);
            let call = if netns { call } else { call.netns("") };
            let outcome = call.del(&conf, &slot.pod, "eth0");
            if outcome.code() == KILLED {
                lock(&self.weather).killed += 1;
                return;
            }
            self.took("DEL", &outcome);
            if outcome.code() != 0 || !outcome.stdout().is_empty() {
                self.find(slot, format!("DEL failed: {outcome}"));
                return;
            }
        }
        slot.known = Known::Nothing;
    }

    /// The namespace goes first, as when a sandbox container has died.
    fn lose_pod(&self, slot: &mut Slot, patience: Option<Duration>) {
        self.sandbox.remove_pod(&slot.pod);
        self.del(slot, false, patience);
        self.sandbox.pod(slot.pod.name());
    }

    fn forget(&self, slot: &mut Slot) {
        self.sandbox.remove_pod(&slot.pod);
        slot.known = Known::Forgotten;
    }

    /// GC of a network, which is quiet meanwhile; then what is on disk is what runtimes know.
    fn collect(&self, number: usize) {
        let network = &self.networks[number];
        let _alone = network
            .quiet
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let mut slots: Vec<_> = self
            .slots
            .iter()
            .map(lock)
            .filter(|slot| slot.network == number)
            .collect();
        let attached = |slot: &&MutexGuard<'_, Slot>| matches!(slot.known, Known::Attached(_));
        let valid: Vec<String> = slots
            .iter()
            .filter(attached)
            .map(|slot| slot.id.clone())
            .collect();
        let list: Vec<(&str, &str)> = valid.iter().map(|id| (id.as_str(), "eth0")).collect();
        for plugin in &network.plugins {
            let kind = plugin["type"].as_str().unwrap_or_default();
            let outcome = self.sandbox.cni(kind).gc(&conf::with_valid(plugin, &list));
            self.took("GC", &outcome);
            if outcome.code() != 0 {
                lock(&self.weather)
                    .findings
                    .push(format!("GC of {}: {outcome}", network.name));
            }
        }
        for slot in &mut slots {
            match slot.known {
                Known::Forgotten => {
                    self.sandbox.pod(slot.pod.name());
                    slot.known = Known::Nothing;
                }
                // Its namespace is there; what is in it goes by DEL.
                Known::Unknown | Known::Nothing | Known::Attached(_) => {}
            }
        }
        self.compare_reservations(network, &valid);
    }

    /// Exactly the attached containers have reservations.
    fn compare_reservations(&self, network: &Network, valid: &[String]) {
        let dir = format!("/var/lib/cni/networks/{}", network.name);
        let names = self.sandbox.list(&dir).into_iter();
        let addresses = names.filter(|name| name.parse::<std::net::IpAddr>().is_ok());
        let owners: BTreeSet<String> = addresses
            .filter_map(|name| self.sandbox.read(format!("{dir}/{name}")))
            .filter_map(|text| text.lines().next().map(str::to_owned))
            .collect();
        let valid: BTreeSet<String> = valid.iter().cloned().collect();
        if owners != valid {
            let lost: Vec<_> = valid.difference(&owners).collect();
            let left: Vec<_> = owners.difference(&valid).collect();
            let name = &network.name;
            lock(&self.weather)
                .findings
                .push(format!("{name}: reservations lost {lost:?}, left {left:?}"));
        }
    }

    /// Everything is deleted; nothing is left.
    fn calm(&self, baseline: &Snapshot) {
        for slot in &self.slots {
            let mut slot = lock(slot);
            match slot.known {
                Known::Forgotten => self.del(&mut slot, false, None),
                _ => self.del(&mut slot, true, None),
            }
        }
        if let Err(left) = baseline.compare(Duration::from_secs(5)) {
            lock(&self.weather)
                .findings
                .push(format!("left behind:\n{left}"));
        }
    }

    fn cni(&self, plugin: &Value, slot: &Slot, patience: Option<Duration>) -> Cni {
        let call = self
            .sandbox
            .cni(plugin["type"].as_str().unwrap_or_default())
            .id(&slot.id);
        match patience {
            None => call,
            // It kills the process group: the plugin and its delegates.
            Some(patience) => {
                call.under(&["timeout", "-s", "KILL", &patience.as_secs_f64().to_string()])
            }
        }
    }

    fn took(&self, verb: &'static str, outcome: &Outcome) {
        lock(&self.weather)
            .took
            .entry(verb)
            .or_default()
            .push(outcome.elapsed());
    }

    fn find(&self, slot: &Slot, what: String) {
        let name = &self.networks[slot.network].name;
        lock(&self.weather)
            .findings
            .push(format!("{} in {name}: {what}", slot.id));
    }
}

/// 128 and SIGKILL.
const KILLED: i32 = 137;

fn configured(plugin: &Value, slot: &Slot, previous: Option<&Value>) -> Value {
    let conf = match previous {
        Some(previous) => conf::with_prev(plugin, previous),
        None => plugin.clone(),
    };
    if plugin["type"] != "portmap" {
        return conf;
    }
    let number: u64 = slot
        .id
        .trim_start_matches("storm-")
        .parse()
        .unwrap_or_default();
    let tcp = json!({"hostPort": 20_000 + number, "containerPort": 80, "protocol": "tcp"});
    let udp = json!({"hostPort": 20_000 + number, "containerPort": 53, "protocol": "udp"});
    conf::with(
        &conf,
        json!({"runtimeConfig": {"portMappings": [tcp, udp]}}),
    )
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Xorshift, by George Marsaglia: the same seed, the same choices.
struct Chance(u64);

impl Chance {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}
