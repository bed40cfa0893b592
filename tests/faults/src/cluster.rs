//! Addresses of a whole cluster, in which everything happens: five nodes and three members of etcd, each
//! on a wire of its own, and a book outside of them of which pod owns which address.
//!
//! Nodes are cut off, stopped, killed at any system call, paused at one, started anew; the network falls
//! apart; members of etcd stop; clocks are set ([`accidents`]). Meanwhile runtimes add and delete at
//! random, by the socket of the agent and by the plugin, which is killed and paused, too. No address
//! ever has two owners, none is lost, none is left over.
//!
//! The store takes a node that has no lease for [`fleet::GRACE`] to be gone with its pods. So does this
//! model: it ends the pods of a node that it stops for longer, and of one that a busy machine keeps from
//! being ready for about as long.

mod accidents;
mod book;
mod fleet;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

use anyhow::Result;
use sandbox::{Cni, conf};
use serde_json::{Value, json};

use crate::strike::{Deed, Strike};
use book::{Attachment, Book};
pub use fleet::Shared;
use fleet::{Fleet, NODES, Node, Start};

/// Most of them wait for a node that is away.
const WORKERS: usize = 128;
/// As the plugin's.
const PATIENCE: Duration = Duration::from_secs(7);
/// A shorter run has no accidents that last longer than the grace.
const LONG_RUN: usize = 5_000;
/// A call of the plugin makes about so many system calls.
const CALLS_OF_PLUGIN: u64 = 160;

/// No call has this number.
const UNHARMED: Strike = Strike {
    deed: Deed::Watch,
    point: 0,
    call: None,
};

/// A pool that all nodes share.
struct Pool {
    name: &'static str,
    subnet: &'static str,
    first: &'static str,
    last: &'static str,
    /// How many addresses there are.
    capacity: usize,
    /// How many the workers use at once: the pool is nearly full, so that nodes borrow addresses and
    /// take over the blocks of lost nodes.
    used: usize,
}

const POOLS: [Pool; 2] = [
    Pool {
        name: "small",
        subnet: "10.8.0.0/25",
        first: "10.8.0.2",
        last: "10.8.0.126",
        capacity: 125,
        used: 115,
    },
    Pool {
        name: "big",
        subnet: "10.9.0.0/24",
        first: "10.9.0.2",
        last: "10.9.0.254",
        capacity: 253,
        used: 235,
    },
];

/// What is to be done.
#[derive(Clone, Debug)]
pub struct Model {
    /// The program `faults`, which traces.
    pub exe: String,
    /// What the nodes have their blocks in.
    pub shared: Shared,
    /// ADDs and DELs.
    pub operations: usize,
    /// Where chance begins.
    pub seed: u64,
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// ADDs that got an address.
    pub added: usize,
    /// ADDs that did not.
    pub refused: usize,
    /// DELs.
    pub deleted: usize,
    /// How often each accident happened.
    pub accidents: BTreeMap<&'static str, usize>,
    /// Addresses with two owners, addresses that are lost or left over.
    pub findings: Vec<String>,
    /// What agents have logged about these addresses.
    pub evidence: Vec<String>,
}

impl fmt::Display for Outcome {
    /// Lines.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (added, refused, deleted) = (self.added, self.refused, self.deleted);
        let all: usize = self.accidents.values().sum();
        writeln!(
            f,
            "{added} ADDs, {refused} refused, {deleted} DELs, {all} accidents"
        )?;
        for (what, count) in &self.accidents {
            writeln!(f, "  {count} times: {what}")?;
        }
        self.findings
            .iter()
            .try_for_each(|it| writeln!(f, "FOUND: {it}"))?;
        self.evidence
            .iter()
            .try_for_each(|it| writeln!(f, "  {it}"))
    }
}

impl Model {
    /// Runs it, and counts what is left in the end.
    ///
    /// # Errors
    /// When the nodes do not begin.
    pub fn run(&self) -> Result<Outcome> {
        let run = Run {
            fleet: Fleet::new(&self.exe, self.shared)?,
            book: Book::new(NODES),
            is_long: self.operations >= LONG_RUN,
        };
        let (left, is_over) = (AtomicUsize::new(self.operations), AtomicBool::new(false));
        scope(|scope| {
            let (run, left, is_over) = (&run, &left, &is_over);
            let workers: Vec<_> = (0..WORKERS as u64)
                .map(|worker| {
                    let mut numbers = Numbers::new(self.seed + worker * 7919);
                    scope.spawn(move || {
                        // It wraps where all of them see zero; nothing counts that far down.
                        while left.fetch_sub(1, Ordering::Relaxed).cast_signed() > 0 {
                            run.operation(&mut numbers);
                        }
                    })
                })
                .collect();
            scope.spawn(move || run.fleet.manage_services(is_over));
            for index in 0..NODES {
                scope.spawn(move || run.end_pods_of_slow_node(index, is_over));
            }
            let mut numbers = Numbers::new(self.seed + 42);
            let mut reported = Instant::now();
            while workers.iter().any(|it| !it.is_finished()) {
                run.accident(&mut numbers, scope);
                sleep(Duration::from_millis(200 + numbers.below(400)));
                if reported.elapsed() > Duration::from_secs(60) {
                    reported = Instant::now();
                    let left = left.load(Ordering::Relaxed).cast_signed();
                    eprintln!("{} operations left", left.max(0));
                }
            }
            run.fleet.await_peace();
            is_over.store(true, Ordering::Relaxed);
        });
        if run.book.findings().is_empty() {
            run.settle();
        }
        let outcome = run.book.outcome();
        let log = |ip: &String| run.fleet.log_of(ip);
        Ok(Outcome {
            accidents: run.fleet.accidents(),
            evidence: outcome.evidence.iter().flat_map(log).collect(),
            ..outcome
        })
    }
}

struct Run {
    fleet: Fleet,
    book: Book,
    is_long: bool,
}

impl Run {
    /// Of accidents that a node survives, in milliseconds.
    fn longest(&self) -> u64 {
        if self.is_long {
            fleet::SHORT
        } else {
            fleet::SHORT / 4
        }
    }

    /// Other nodes take the blocks of a node over that has not been ready for lease and grace.
    fn end_pods_of_slow_node(&self, index: usize, is_over: &AtomicBool) {
        let node = &self.fleet.nodes[index];
        let mut not_ready_since = None;
        while !is_over.load(Ordering::Relaxed) {
            let now = Instant::now();
            if node.is_ready() {
                not_ready_since = None;
            } else if not_ready_since.get_or_insert(now).elapsed() > fleet::AWAY {
                self.fleet
                    .note("pods of a node ended that was not ready for almost the grace");
                self.book.end_pods(index, false);
                not_ready_since = None;
            }
            sleep(Duration::from_millis(500));
        }
    }

    /// An ADD or a DEL.
    fn operation(&self, numbers: &mut Numbers) {
        let pool = usize::from(numbers.below(4) > 0);
        let index = self.choose_node(numbers);
        let is_full = self.book.used(pool) >= POOLS[pool].used;
        let adds = !is_full && numbers.below(4) > 0;
        match (adds, numbers.below(10)) {
            (true, 0) => self.add_by_plugin(index, pool, numbers),
            (true, _) => self.add(index, pool),
            (false, 0) => self.del_by_plugin(index, numbers),
            (false, _) => self.del(index, numbers),
        }
    }

    /// A node with an accident makes its callers wait, so half of them choose again. The others find
    /// out whether such a node hands out what is another node's by now.
    fn choose_node(&self, numbers: &mut Numbers) -> usize {
        let index = numbers.below(NODES as u64) as usize;
        if self.fleet.nodes[index].is_hurt() && numbers.below(2) == 0 {
            return numbers.below(NODES as u64) as usize;
        }
        index
    }

    /// An ADD as the plugin asks for it.
    fn add(&self, index: usize, pool: usize) {
        let node = &self.fleet.nodes[index];
        let life = self.book.life(index);
        let id = self.fleet.next_id();
        let Pool {
            name, first, last, ..
        } = POOLS[pool];
        let request = json!({"add": {
            "pool": name, "owner": owner(name, &id), "coolDown": 0,
            "sets": [{"spans": [[first, last]]}],
            "deadline": boottime() + PATIENCE.as_nanos() as u64,
        }});
        let begun = boottime();
        let answer = node.ask(&request).unwrap_or_default();
        let leased = &answer["leased"];
        let ip = leased["leases"][0]["ip"].as_str();
        // What the plugin does not print before the fence, it does not print at all.
        let until = leased["until"].as_u64().unwrap_or_default();
        let is_in_time = boottime() + 20_000_000 < until;
        let ip = ip.filter(|_| is_in_time);
        let attachment = Attachment::new(pool, id, ip, format!("by socket, {}", since(begun)));
        self.book.added(index, life, &node.name, attachment);
    }

    /// An ADD by the plugin, which may be killed or paused at one of its system calls.
    fn add_by_plugin(&self, index: usize, pool: usize, numbers: &mut Numbers) {
        let node = &self.fleet.nodes[index];
        let life = self.book.life(index);
        let id = self.fleet.next_id();
        let (cni, report) = self.plugin(node, &id, numbers);
        let begun = boottime();
        let outcome = cni.add(
            &self.fleet.conf(node, &POOLS[pool]),
            &self.fleet.pods,
            "eth0",
        );
        let _ = std::fs::remove_file(report);
        let result = (outcome.code() == 0).then(|| outcome.result());
        let ip = result
            .as_ref()
            .and_then(|it| it["ips"][0]["address"].as_str());
        let ip = ip.and_then(|it| it.split('/').next());
        let attachment = Attachment::new(pool, id, ip, format!("by plugin, {}", since(begun)));
        self.book.added(index, life, &node.name, attachment);
    }

    fn del(&self, index: usize, numbers: &mut Numbers) {
        let Some(taken) = self.book.take(index, numbers) else {
            return;
        };
        let request = json!({"del": owner(POOLS[taken.pool].name, &taken.id)});
        let done = self.fleet.nodes[index].ask(&request);
        let is_done = done.is_some_and(|it| it.get("done").is_some());
        self.book.deleted(index, taken, is_done);
    }

    /// A DEL by the plugin. It succeeds without an agent, too.
    fn del_by_plugin(&self, index: usize, numbers: &mut Numbers) {
        let Some(taken) = self.book.take(index, numbers) else {
            return;
        };
        let node = &self.fleet.nodes[index];
        let (cni, report) = self.plugin(node, &taken.id, numbers);
        let conf = self.fleet.conf(node, &POOLS[taken.pool]);
        let outcome = cni.del(&conf, &self.fleet.pods, "eth0");
        let _ = std::fs::remove_file(report);
        self.book.deleted(index, taken, outcome.code() == 0);
    }

    /// A call of the plugin on a node, and the tracer's report.
    fn plugin(&self, node: &Node, id: &str, numbers: &mut Numbers) -> (Cni, String) {
        let point = 1 + numbers.below(CALLS_OF_PLUGIN) as usize;
        let deed = match numbers.below(3) {
            0 => {
                self.fleet.note("plugin killed at a system call");
                Deed::KillChain
            }
            1 => {
                self.fleet.note("plugin paused at a system call");
                let milliseconds = numbers.below(2 * self.longest());
                Deed::Pause { milliseconds }
            }
            _ => return self.fleet.plugin(node, id, UNHARMED),
        };
        let strike = Strike {
            deed,
            point,
            call: None,
        };
        self.fleet.plugin(node, id, strike)
    }

    /// Everything is well again and all pods end: no address is left over, none is missing.
    fn settle(&self) {
        for node in &self.fleet.nodes {
            // One that is traced may have its accident still before it.
            self.fleet.start(node, Start::Plain);
        }
        for node in &self.fleet.nodes {
            if let Err(error) = self.fleet.await_ready(node) {
                self.book.find(error.to_string());
            }
        }
        // What GC finds has no namespace.
        self.fleet.end_namespaces();
        for index in 0..NODES {
            match index % 2 {
                0 => self.delete_all(index),
                _ => self.collect(index),
            }
            let node = &self.fleet.nodes[index];
            // Releases that DELs have left are done within a second.
            let deadline = Instant::now() + Duration::from_secs(5);
            let mut state = Value::Null;
            while Instant::now() < deadline {
                state = node.ask(&json!({"show": {}})).unwrap_or_default()["state"].clone();
                if state["use"] == json!({}) {
                    break;
                }
                sleep(Duration::from_millis(100));
            }
            let (left, clashes) = (&state["use"], &state["clashes"]);
            if *left != json!({}) || *clashes != json!([]) {
                let name = &node.name;
                self.book
                    .find(format!("{name}: left over {left}, clashes {clashes}"));
            }
        }
        self.book.forget_all();
        // The large pool takes half a minute.
        let filled = if self.is_long { 2 } else { 1 };
        for (pool, its) in POOLS.iter().enumerate().take(filled) {
            let deadline = Instant::now() + Duration::from_secs(120);
            let mut turn = 0;
            while self.book.used(pool) < its.capacity && Instant::now() < deadline {
                self.add(turn % NODES, pool);
                turn += 1;
            }
            // One more.
            self.add(turn % NODES, pool);
            let (used, name) = (self.book.used(pool), its.name);
            if used != its.capacity {
                let capacity = its.capacity;
                self.book.find(format!(
                    "pool {name}: {used} of {capacity} addresses in the end"
                ));
            }
        }
    }

    fn delete_all(&self, index: usize) {
        for it in self.book.attachments(index) {
            let request = json!({"del": owner(POOLS[it.pool].name, &it.id)});
            let done = self.fleet.nodes[index].ask(&request).unwrap_or_default();
            if done.get("done").is_none() {
                self.book.find(format!("DEL of {}: {done}", it.id));
            }
        }
    }

    /// The runtime has lost all that it knew.
    fn collect(&self, index: usize) {
        let node = &self.fleet.nodes[index];
        for pool in &POOLS {
            let conf = conf::with_valid(&self.fleet.conf(node, pool), &[]);
            let (cni, _) = self.fleet.plugin(node, "gc", UNHARMED);
            let outcome = cni.gc(&conf);
            if outcome.code() != 0 {
                self.book.find(format!("GC of {}: {outcome}", node.name));
            }
        }
    }
}

fn owner(network: &str, id: &str) -> Value {
    json!({"network": network, "container": id, "ifname": "eth0"})
}

/// From when to when an ADD lasted, in seconds.
fn since(begun: u64) -> String {
    let seconds = |at: u64| at as f64 / 1e9;
    format!("{:.2} to {:.2}", seconds(begun), seconds(boottime()))
}

/// CLOCK_BOOTTIME in nanoseconds, to a hundredth of a second.
fn boottime() -> u64 {
    let text = std::fs::read_to_string("/proc/uptime").unwrap_or_default();
    let seconds = text.split(' ').next().and_then(|it| it.parse().ok());
    let seconds: f64 = seconds.expect("the uptime");
    (seconds * 1e9) as u64
}

/// xorshift64.
struct Numbers(u64);

impl Numbers {
    fn new(seed: u64) -> Self {
        // Zero would stay zero, and small seeds begin alike.
        Self((seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit.max(1)
    }
}
