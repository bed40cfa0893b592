//! The model: five nodes on wires of their own, three members of etcd, and a book of who owns which
//! address. Agents are stopped, killed, cut off and started anew; members of etcd are stopped; nodes
//! vanish and return. No address ever has two owners, none is lost, none leaks.
//!
//! `CLUSTER_OPERATIONS=100000` runs longer. `CLUSTER_UNFENCED=1` says that the agents were built with
//! the feature `unfenced`: then the model has to find two owners.
//!
//! The store takes a node that has no lease for `GRACE` to be gone with its pods. So does the model:
//! it ends the pods of a node that it stops for longer.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::sleep;
use std::time::{Duration, Instant};

use sandbox::{Netns, Running, Sandbox, Suite, beyond_peer};
use serde_json::{Value, json};

const NODES: usize = 5;
const WORKERS: usize = 6;
const LEASE: u64 = 5;
const GRACE: u64 = 8;
/// Shorter than any take-over: a lease that was renewed up to a third of its time ago, and the grace.
const SHORT: u64 = 6_000;
/// Longer than every take-over.
const LONG: u64 = 15_000;

/// Pools: name, first and last address, how many addresses the workers use at most.
const POOLS: [(&str, &str, &str, usize); 2] = [
    ("small", "10.8.0.2", "10.8.0.254", 235),
    ("big", "10.9.0.2", "10.9.3.254", 800),
];
const CAPACITY: [usize; 2] = [253, 1021];

#[test]
fn no_address_has_two_owners_whatever_happens() {
    beyond_peer("it has no such IPAM plugin", || {
        let operations = number("CLUSTER_OPERATIONS").unwrap_or(1_500);
        let fleet = Arc::new(Fleet::new());
        let left = Arc::new(AtomicUsize::new(operations));
        let is_over = Arc::new(AtomicBool::new(false));
        std::thread::scope(|scope| {
            for worker in 0..WORKERS {
                let (fleet, left) = (&fleet, &left);
                scope.spawn(move || {
                    let mut numbers = Numbers(worker as u64 * 7919 + 1);
                    while left.fetch_sub(1, Ordering::Relaxed) as isize > 0 {
                        fleet.operation(&mut numbers);
                    }
                });
            }
            let (fleet, over) = (&fleet, &is_over);
            let chaos = scope.spawn(move || {
                let mut numbers = Numbers(number("CLUSTER_SEED").unwrap_or(42) as u64);
                while !over.load(Ordering::Relaxed) {
                    fleet.accident(&mut numbers, scope);
                    sleep(Duration::from_millis(300 + numbers.below(700)));
                }
            });
            while (left.load(Ordering::Relaxed) as isize) > 0 {
                sleep(Duration::from_millis(50));
            }
            is_over.store(true, Ordering::Relaxed);
            chaos.join().expect("accidents");
        });
        let report = fleet.report();
        eprintln!("{report}");
        if number("CLUSTER_UNFENCED").is_some() {
            assert!(
                !fleet.book().violations.is_empty(),
                "the fault was not found: {report}"
            );
            return;
        }
        assert_eq!(fleet.book().violations, Vec::<String>::new());
        fleet.settle();
        assert_eq!(fleet.book().violations, Vec::<String>::new());
    });
}

fn number(variable: &str) -> Option<usize> {
    std::env::var(variable).ok()?.parse().ok()
}

struct Fleet {
    sandbox: Sandbox,
    nodes: Vec<Node>,
    members: Vec<Mutex<Running>>,
    book: Mutex<Book>,
    ids: AtomicU64,
    added: AtomicU64,
    refused: AtomicU64,
    accidents: Mutex<HashMap<&'static str, u64>>,
}

struct Node {
    name: String,
    netns: Netns,
    dir: PathBuf,
    agent: Mutex<Option<Running>>,
    /// Whether an accident is under way.
    is_hurt: AtomicBool,
}

/// Who owns what.
#[derive(Default)]
struct Book {
    owners: HashMap<(usize, String), String>,
    /// Attachments by node: pool, id, addresses. Without addresses: its ADD has failed.
    attachments: Vec<Vec<(usize, String, Vec<String>)>>,
    /// Incremented when the pods of a node end all at once.
    lives: Vec<u64>,
    violations: Vec<String>,
}

impl Fleet {
    fn new() -> Self {
        let sandbox = Sandbox::new();
        sandbox
            .host()
            .sh("for n in 1 2 3; do ip address add 172.20.0.$n/32 dev lo; done");
        let members = (1..=3).map(|n| Mutex::new(member(&sandbox, n))).collect();
        let nodes: Vec<Node> = (1..=NODES).map(|n| node(&sandbox, n)).collect();
        let book = Book {
            attachments: vec![Vec::new(); NODES],
            lives: vec![0; NODES],
            ..Book::default()
        };
        let fleet = Self {
            sandbox,
            nodes,
            members,
            book: Mutex::new(book),
            ids: AtomicU64::new(0),
            added: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            accidents: Mutex::default(),
        };
        for node in &fleet.nodes {
            fleet.boot(node);
            fleet.start(node);
        }
        fleet.await_all();
        fleet
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().expect("the book")
    }

    /// The node is started: what it has in its journal is of another boot.
    fn boot(&self, node: &Node) {
        let id = format!("boot-{}", self.ids.fetch_add(1, Ordering::Relaxed));
        std::fs::write(node.dir.join("boot_id"), id).expect("a boot id");
    }

    fn start(&self, node: &Node) {
        let program = Suite::Ours.dir().join("podwired").display().to_string();
        let dir = node.dir.display();
        let script = format!(
            "mount --bind {dir}/boot_id /proc/sys/kernel/random/boot_id && exec {program} --config {dir}/podwired.json"
        );
        let running = node.netns.start(&["unshare", "-m", "sh", "-ec", &script]);
        *node.agent.lock().expect("agent") = Some(running);
    }

    fn await_all(&self) {
        let deadline = Instant::now() + Duration::from_secs(60);
        for node in &self.nodes {
            while self
                .ask(node, &json!({"ready": {}}))
                .is_none_or(|it| it.get("done").is_none())
            {
                let log = node
                    .agent
                    .lock()
                    .expect("agent")
                    .as_ref()
                    .map(Running::output);
                assert!(Instant::now() < deadline, "{}: {log:?}", node.name);
                sleep(Duration::from_millis(100));
            }
        }
    }

    fn ask(&self, node: &Node, request: &Value) -> Option<Value> {
        let mut stream = UnixStream::connect(node.dir.join("agent.sock")).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(7))).ok()?;
        let line = format!("{}\n", json!({"ipam": request}));
        stream.write_all(line.as_bytes()).ok()?;
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer).ok()?;
        serde_json::from_str(&answer).ok()
    }

    /// An ADD or a DEL.
    fn operation(&self, numbers: &mut Numbers) {
        let index = numbers.below(NODES as u64) as usize;
        let pool = usize::from(numbers.below(4) > 0);
        let used = self.book().owners.keys().filter(|it| it.0 == pool).count();
        let limit = POOLS[pool].3 as u64;
        match numbers.below(limit) >= used as u64 / 2 + numbers.below(limit / 2) {
            true => self.add(index, pool),
            false => self.del(index, numbers),
        }
    }

    fn add(&self, index: usize, pool: usize) {
        let node = &self.nodes[index];
        let life = self.book().lives[index];
        let id = format!("c{}", self.ids.fetch_add(1, Ordering::Relaxed));
        let (name, first, last, _) = POOLS[pool];
        let request = json!({"add": {
            "pool": name, "owner": owner(name, &id), "coolDown": 0,
            "sets": [{"spans": [[first, last]]}],
        }});
        let answer = self.ask(node, &request).unwrap_or_default();
        let leased = &answer["leased"];
        let ip = leased["leases"][0]["ip"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        let mut book = self.book();
        // As the plugin: what is not printed before the fence is not printed.
        let until = leased["until"].as_u64().unwrap_or_default();
        let is_in_time = boottime() + 20_000_000 < until;
        if ip.is_empty() || !is_in_time || book.lives[index] != life {
            self.refused.fetch_add(1, Ordering::Relaxed);
            book.attachments[index].push((pool, id, Vec::new()));
            return;
        }
        self.added.fetch_add(1, Ordering::Relaxed);
        let whom = format!("{} {id}", node.name);
        if let Some(other) = book.owners.insert((pool, ip.clone()), whom.clone()) {
            book.violations
                .push(format!("{name} {ip}: {other} and {whom}"));
        }
        book.attachments[index].push((pool, id, vec![ip]));
    }

    fn del(&self, index: usize, numbers: &mut Numbers) {
        let taken = {
            let mut book = self.book();
            let count = book.attachments[index].len();
            if count == 0 {
                return;
            }
            let at = numbers.below(count as u64) as usize;
            let taken = book.attachments[index].swap_remove(at);
            for ip in &taken.2 {
                book.owners.remove(&(taken.0, ip.clone()));
            }
            taken
        };
        let request = json!({"del": owner(POOLS[taken.0].0, &taken.1)});
        let done = self.ask(&self.nodes[index], &request);
        if done.is_none_or(|it| it.get("done").is_none()) {
            // The runtime repeats it.
            self.book().attachments[index].push((taken.0, taken.1, Vec::new()));
        }
    }

    /// All pods of a node end.
    fn end_pods(&self, index: usize, is_reboot: bool) {
        let mut book = self.book();
        book.lives[index] += 1;
        let all = std::mem::take(&mut book.attachments[index]);
        for (pool, id, ips) in all {
            for ip in ips {
                book.owners.remove(&(pool, ip));
            }
            if !is_reboot {
                book.attachments[index].push((pool, id, Vec::new()));
            }
        }
    }

    fn accident<'a, 's: 'a>(
        &'s self,
        numbers: &mut Numbers,
        scope: &'a std::thread::Scope<'a, 's>,
    ) {
        let (kind, length) = (numbers.below(10), numbers.below(SHORT));
        if kind == 0 {
            let member = &self.members[numbers.below(3) as usize];
            self.note("member of etcd stopped");
            let pid = member.lock().expect("member").id();
            signal(pid, "STOP");
            scope.spawn(move || {
                sleep(Duration::from_millis(length / 2));
                signal(pid, "CONT");
            });
            return;
        }
        let index = numbers.below(NODES as u64) as usize;
        let node = &self.nodes[index];
        if node.is_hurt.swap(true, Ordering::SeqCst) {
            return;
        }
        scope.spawn(move || {
            match kind {
                1 | 2 => self.cut(index, length, "node cut off"),
                3 | 4 => self.stop(index, length, "agent stopped"),
                5 | 6 => {
                    self.note("agent killed");
                    *node.agent.lock().expect("agent") = None;
                    sleep(Duration::from_millis(length / 2));
                    self.start(node);
                }
                7 => {
                    self.note("node vanished, and was started anew");
                    *node.agent.lock().expect("agent") = None;
                    self.end_pods(index, true);
                    sleep(Duration::from_millis(length * 3));
                    self.boot(node);
                    self.start(node);
                }
                8 => self.cut(index, LONG + length, "node cut off for long"),
                _ => self.stop(index, LONG + length, "agent stopped for long"),
            }
            node.is_hurt.store(false, Ordering::SeqCst);
        });
    }

    fn cut(&self, index: usize, length: u64, what: &'static str) {
        self.note(what);
        let wire = format!("r{}", index + 1);
        self.sandbox.host().sh(&format!("ip link set {wire} down"));
        if length >= LONG {
            // Pods that were started before the fence end before a take-over, too.
            sleep(Duration::from_millis(SHORT));
            self.end_pods(index, false);
        }
        let slept = if length >= LONG { SHORT } else { 0 };
        sleep(Duration::from_millis(length - slept));
        self.sandbox.host().sh(&format!("ip link set {wire} up"));
    }

    fn stop(&self, index: usize, length: u64, what: &'static str) {
        self.note(what);
        let pid = self.nodes[index]
            .agent
            .lock()
            .expect("agent")
            .as_ref()
            .map(Running::id);
        let Some(pid) = pid else { return };
        signal(pid, "STOP");
        if length >= LONG {
            self.end_pods(index, false);
        }
        sleep(Duration::from_millis(length));
        signal(pid, "CONT");
    }

    fn note(&self, what: &'static str) {
        *self
            .accidents
            .lock()
            .expect("accidents")
            .entry(what)
            .or_default() += 1;
    }

    /// Everything is well again and all pods end: no address is left over, none is missing.
    fn settle(&self) {
        self.await_all();
        for (index, node) in self.nodes.iter().enumerate() {
            let all = self.book().attachments[index].clone();
            for (pool, id, _) in all {
                let done = self.ask(node, &json!({"del": owner(POOLS[pool].0, &id)}));
                assert!(
                    done.is_some_and(|it| it.get("done").is_some()),
                    "DEL of {id}"
                );
            }
            let state = self.ask(node, &json!({"show": {}})).expect("a state");
            assert_eq!(state["state"]["use"], json!({}), "{}", node.name);
            assert_eq!(state["state"]["clashes"], json!([]), "{}", node.name);
        }
        *self.book() = Book {
            attachments: vec![Vec::new(); NODES],
            lives: vec![0; NODES],
            ..Book::default()
        };
        for (pool, capacity) in CAPACITY.iter().enumerate() {
            let deadline = Instant::now() + Duration::from_secs(120);
            let count = || self.book().owners.keys().filter(|it| it.0 == pool).count();
            while count() < *capacity && Instant::now() < deadline {
                self.add(pool, pool);
            }
            assert_eq!(count(), *capacity, "addresses are lost");
            self.add(NODES - 1, pool);
            assert_eq!(count(), *capacity);
        }
    }

    fn report(&self) -> String {
        let count = |it: &AtomicU64| it.load(Ordering::Relaxed);
        let accidents = self.accidents.lock().expect("accidents");
        format!(
            "{} ADDs, {} refused; {accidents:?}; {:?}",
            count(&self.added),
            count(&self.refused),
            self.book().violations
        )
    }
}

fn owner(network: &str, id: &str) -> Value {
    json!({"network": network, "container": id, "ifname": "eth0"})
}

fn member(sandbox: &Sandbox, n: usize) -> Running {
    let url = |n: usize, port: usize| format!("http://172.20.0.{n}:{port}");
    let all: Vec<_> = (1..=3).map(|n| format!("m{n}={}", url(n, 2380))).collect();
    // In memory: the disk of a machine that runs tests is busy.
    let data = format!("/run/m{n}");
    let (client, peer, name) = (url(n, 2379), url(n, 2380), format!("m{n}"));
    sandbox.host().start(&[
        "etcd",
        "--data-dir",
        &data,
        "--log-level",
        "error",
        "--name",
        &name,
        "--listen-client-urls",
        &client,
        "--advertise-client-urls",
        &client,
        "--listen-peer-urls",
        &peer,
        "--initial-advertise-peer-urls",
        &peer,
        "--initial-cluster",
        &all.join(","),
    ])
}

fn node(sandbox: &Sandbox, n: usize) -> Node {
    let name = format!("node{n}");
    let netns = sandbox.pod(&name);
    sandbox.host().sh(&format!(
        "ip link add r{n} type veth peer name eth0 netns {name}
         ip address add 172.21.{n}.1/24 dev r{n}
         ip link set r{n} up"
    ));
    netns.sh(&format!(
        "ip link set lo up; ip address add 172.21.{n}.2/24 dev eth0; ip link set eth0 up
         ip route add default via 172.21.{n}.1"
    ));
    let dir = sandbox.dir().join(&name);
    std::fs::create_dir(&dir).expect("a directory");
    let endpoints: Vec<_> = (0..3)
        .map(|m| format!("http://172.20.0.{}:2379", (m + n) % 3 + 1))
        .collect();
    let document = json!({
        "socket": dir.join("agent.sock"),
        "ipam": {
            "etcd": {"endpoints": endpoints}, "node": name, "dataDir": dir.join("ipam"),
            "leaseSeconds": LEASE, "graceSeconds": GRACE,
        },
    });
    std::fs::write(dir.join("podwired.json"), document.to_string()).expect("a configuration");
    Node {
        name,
        netns,
        dir,
        agent: Mutex::new(None),
        is_hurt: AtomicBool::new(false),
    }
}

#[allow(clippy::disallowed_methods)] // a process of this test
fn signal(pid: u32, name: &str) {
    let done = std::process::Command::new("kill")
        .args([format!("-{name}"), pid.to_string()])
        .status();
    done.expect("kill");
}

/// CLOCK_BOOTTIME in nanoseconds, to a hundredth of a second.
fn boottime() -> u64 {
    let text = std::fs::read_to_string("/proc/uptime").expect("the uptime");
    let seconds: f64 = text
        .split(' ')
        .next()
        .and_then(|it| it.parse().ok())
        .expect("seconds");
    (seconds * 1e9) as u64
}

/// xorshift64.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit.max(1)
    }
}
