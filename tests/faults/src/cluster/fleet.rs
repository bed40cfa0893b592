//! Five nodes, three members of etcd, with or without an API server of Kubernetes before them, and the wires
//! between them.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use sandbox::{Cni, Netns, Running, Sandbox, Suite, conf, etcd, kubernetes, underlay};
use serde_json::{Value, json};

use super::{PATIENCE, Pool};
use crate::strike::{Report, Strike};

/// Nodes.
pub(super) const NODES: usize = 5;
/// Members of etcd.
pub(super) const MEMBERS: usize = 3;
/// Their numbers among the machines begin after this.
const MEMBERS_AFTER: usize = 10;
/// The number of the machine with the API server.
const API: usize = 20;

const MANIFEST: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../deploy/kubernetes/ipam.yaml"
);

/// How long the store believes in a node, in seconds.
const LEASE: u64 = 5;
/// How long after that its pods count as running, in seconds.
pub(super) const GRACE: u64 = 20;
/// Of accidents that a node survives, in milliseconds: several in a row are shorter than lease and
/// grace.
pub(super) const SHORT: u64 = 6_000;
/// A node that is not ready for so long may be lost soon.
pub(super) const AWAY: Duration = Duration::from_secs(LEASE + GRACE - 7);
/// Of accidents that are longer than lease and grace, so that other nodes take over.
pub(super) const LONG: u64 = 45_000;

/// What the nodes have their blocks in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shared {
    /// In the members of etcd.
    Etcd,
    /// In custom resources of an API server, which has its objects in these members. No node is a Node of
    /// that cluster: it is lost when its lease and the grace are over, as with etcd.
    Kubernetes,
}

/// A node.
pub(super) struct Node {
    pub name: String,
    netns: Netns,
    dir: PathBuf,
    /// `None` while the node is off.
    agent: Mutex<Option<Running>>,
    /// The agent runs with a clock of its own, under a tracer that sees few of its calls.
    has_clock: AtomicBool,
    /// An accident is under way.
    pub is_hurt: AtomicBool,
}

/// How an agent is started.
#[derive(Clone, Copy, Debug)]
pub(super) enum Start {
    /// As it is.
    Plain,
    /// With the clock of its machine.
    WithClock,
    /// Under the tracer that strikes.
    Struck(Strike),
}

/// All machines.
pub(super) struct Fleet {
    exe: String,
    sandbox: Sandbox,
    pub nodes: Vec<Node>,
    members: Vec<Running>,
    /// What the nodes have their blocks in.
    pub shared: Shared,
    _api: Option<Running>,
    /// The namespace of all pods.
    pub pods: Netns,
    ids: AtomicU64,
    accidents: Mutex<BTreeMap<&'static str, usize>>,
    /// Accidents of the network or of members that are under way.
    pub store_is_hurt: AtomicBool,
    /// No other accident begins: a long one is under way. A node takes over after a grace that it has
    /// watched without a gap, and every accident of its own is a gap.
    pub is_calm: AtomicBool,
    /// Accidents that are under way, all together.
    pub under_way: AtomicUsize,
}

impl Node {
    pub fn is_hurt(&self) -> bool {
        self.is_hurt.load(Ordering::SeqCst)
    }

    /// Asks the agent.
    pub fn ask(&self, request: &Value) -> Option<Value> {
        let mut stream = UnixStream::connect(self.dir.join("agent.sock")).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).ok()?;
        let line = format!("{}\n", json!({"ipam": request}));
        stream.write_all(line.as_bytes()).ok()?;
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer).ok()?;
        serde_json::from_str(&answer).ok()
    }

    /// Whether an ADD could succeed now.
    pub fn is_ready(&self) -> bool {
        let answer = self.ask(&json!({"ready": {}}));
        answer.is_some_and(|it| it.get("done").is_some())
    }

    /// What is to be stopped so that its agent stops: the agent, or a tracer that sees all its calls.
    pub fn process(&self) -> Option<u32> {
        if self.has_clock.load(Ordering::SeqCst) {
            return None;
        }
        let agent = self.agent.lock().expect("the agent");
        agent.as_ref().map(Running::id)
    }

    /// Kills the agent.
    pub fn kill(&self) {
        *self.agent.lock().expect("the agent") = None;
    }

    fn report(&self) -> String {
        self.dir.join("report").display().to_string()
    }
}

impl Fleet {
    /// Starts everything, and waits until all nodes are ready.
    ///
    /// # Errors
    /// When one does not become ready.
    pub fn new(exe: &str, shared: Shared) -> Result<Self> {
        let sandbox = Sandbox::new();
        underlay::router(&sandbox);
        let pods = sandbox.pod("pods");
        let mut fleet = Self {
            exe: exe.to_owned(),
            nodes: (1..=NODES).map(|n| node(&sandbox, n, shared)).collect(),
            members: Vec::new(),
            shared,
            _api: None,
            pods,
            sandbox,
            ids: AtomicU64::new(0),
            accidents: Mutex::default(),
            store_is_hurt: AtomicBool::new(false),
            is_calm: AtomicBool::new(false),
            under_way: AtomicUsize::new(0),
        };
        fleet.members = (1..=MEMBERS).map(|n| fleet.start_member(n)).collect();
        if shared == Shared::Kubernetes {
            fleet._api = Some(fleet.start_api()?);
        }
        for node in &fleet.nodes {
            fleet.boot(node);
            fleet.start(node, Start::Plain);
        }
        for node in &fleet.nodes {
            fleet.await_ready(node)?;
        }
        Ok(fleet)
    }

    /// Another id of a container.
    pub fn next_id(&self) -> String {
        format!("c{}", self.ids.fetch_add(1, Ordering::Relaxed))
    }

    /// The file with what is added to the clock of a machine.
    pub fn clock(&self, machine: usize) -> String {
        let path = self.sandbox.dir().join(format!("clock{machine}"));
        path.display().to_string()
    }

    fn start_member(&self, n: usize) -> Running {
        let number = MEMBERS_AFTER + n;
        let netns = underlay::host(&self.sandbox, &format!("member{n}"), number);
        let addresses = [1, 2, 3].map(|n| address(MEMBERS_AFTER + n));
        let addresses = addresses.each_ref().map(String::as_str);
        // In memory: the disk of a machine that runs tests is busy.
        let data = format!("/run/m{n}");
        let clock = self.clock(number);
        let under = [self.exe.as_str(), "clock", &clock, "--"];
        etcd::member(&netns, &data, n, addresses, &[], &under)
    }

    /// Starts the API server, and has it know the resource.
    fn start_api(&self) -> Result<Running> {
        let (netns, ip) = (underlay::host(&self.sandbox, "api", API), address(API));
        let dir = self.sandbox.dir().join("pki");
        std::fs::create_dir(&dir)?;
        let dir = dir.display();
        netns.sh(&format!("cd {dir}; ip={ip}; {}", kubernetes::CERTIFICATES));
        let members: Vec<_> = (1..=MEMBERS).map(endpoint).collect();
        let program = kubernetes::program("kube-apiserver");
        let arguments = kubernetes::arguments(&dir.to_string(), &ip, &members.join(","));
        let rest = arguments.iter().map(String::as_str);
        let argv: Vec<&str> = std::iter::once(program.as_str()).chain(rest).collect();
        let running = netns.start(&argv);
        let config = self.sandbox.dir().join("kubeconfig");
        let (token, server) = (kubernetes::ADMIN, server());
        let text = kubernetes::kubeconfig(&server, "pki/ca.pem", &format!("token: {token}"));
        std::fs::write(&config, text)?;
        let ca = format!("--certificate-authority={dir}/ca.pem");
        let common = [
            "kubectl",
            "--server",
            &server,
            "--token",
            token,
            &ca,
            "--cache-dir=/run/kubectl",
        ];
        let resource = "crd/ipamrecords.podwire.dev";
        for words in [
            &["get", "--raw", "/readyz"][..],
            &["create", "namespace", "podwire"],
            &["apply", "-f", MANIFEST],
            &["wait", "--for=condition=established", resource],
        ] {
            let argv = [&common[..], words].concat();
            let deadline = Instant::now() + Duration::from_secs(120);
            loop {
                let done = netns.run(&argv);
                if done.code == 0 {
                    break;
                }
                let (why, log) = (done.stderr, running.output());
                ensure!(Instant::now() < deadline, "{words:?}: {why}{log}");
                sleep(Duration::from_millis(200));
            }
        }
        Ok(running)
    }

    /// The process of the tracer of a member.
    pub fn member(&self, n: usize) -> u32 {
        self.members[n].id()
    }

    /// The node is started: what it has in its journal is of another boot.
    pub fn boot(&self, node: &Node) {
        let id = format!("boot-{}", self.ids.fetch_add(1, Ordering::Relaxed));
        std::fs::write(node.dir.join("boot_id"), id).expect("write a boot id");
    }

    /// Starts the agent of a node.
    pub fn start(&self, node: &Node, how: Start) {
        let mut agent = node.agent.lock().expect("the agent");
        // Two agents of one node would not share its journal.
        *agent = None;
        *agent = Some(self.launch(node, how));
    }

    fn launch(&self, node: &Node, how: Start) -> Running {
        let program = Suite::Ours.dir().join("podwired").display().to_string();
        let file = node.dir.join("podwired.json").display().to_string();
        let number = self.nodes.iter().position(|it| it.name == node.name);
        let clock = self.clock(number.unwrap_or_default() + 1);
        let report = node.report();
        let _ = std::fs::remove_file(&report);
        let words = match how {
            Start::Struck(strike) => strike.words(),
            _ => Default::default(),
        };
        let exe = self.exe.as_str();
        let mut argv = match how {
            Start::Plain => vec![],
            Start::WithClock => vec![exe, "clock", &clock, "--"],
            Start::Struck(_) => vec![exe, "trace", &report, &words[0], &words[1], "--"],
        };
        let has_clock = matches!(how, Start::WithClock);
        node.has_clock.store(has_clock, Ordering::SeqCst);
        argv.extend([program.as_str(), "--config", &file]);
        let mut whole = on_node(&node.dir);
        whole.extend(argv.iter().map(|it| (*it).to_owned()));
        let whole: Vec<&str> = whole.iter().map(String::as_str).collect();
        node.netns.start(&whole)
    }

    /// As a service manager: agents that have ended are started again.
    pub fn manage_services(&self, is_over: &AtomicBool) {
        while !is_over.load(Ordering::Relaxed) {
            for node in &self.nodes {
                let mut agent = node.agent.lock().expect("the agent");
                if !agent.as_ref().is_some_and(has_ended) {
                    continue;
                }
                let report = std::fs::read_to_string(node.report()).unwrap_or_default();
                if Report::parse(&report).is_ok_and(|it| it.struck.is_some()) {
                    self.note("agent killed at a system call");
                }
                *agent = Some(self.launch(node, Start::Plain));
            }
            sleep(Duration::from_millis(50));
        }
    }

    /// Waits until an ADD may succeed on a node.
    ///
    /// # Errors
    /// What its agent says meanwhile.
    pub fn await_ready(&self, node: &Node) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(120);
        while !node.is_ready() {
            let agent = node.agent.lock().expect("the agent");
            let log = agent.as_ref().map(Running::output).unwrap_or_default();
            drop(agent);
            ensure!(
                Instant::now() < deadline,
                "{} is not ready: {log}",
                node.name
            );
            sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    /// Waits for the end of all accidents.
    pub fn await_peace(&self) {
        while self.under_way.load(Ordering::SeqCst) > 0 {
            sleep(Duration::from_millis(50));
        }
    }

    /// Cuts the wire of a node, or mends it.
    pub fn set_wire(&self, index: usize, state: &str) {
        let host = self.sandbox.host();
        host.sh(&format!("ip link set r{} {state}", index + 1));
    }

    /// Whatever is on one side does not reach the other side any more. `number` is for
    /// [`Fleet::join`].
    pub fn part(&self, number: u64, [nodes, others]: [&[usize]; 2], members: [&[usize]; 2]) {
        let machines = |nodes: &[usize], members: &[usize]| {
            let nodes = nodes.iter().map(|it| it + 1);
            let members = members.iter().map(|it| it + 1 + MEMBERS_AFTER);
            nodes.chain(members).map(address).collect::<Vec<_>>()
        };
        let mut script = String::new();
        let mut here = machines(nodes, members[0]);
        if self.shared == Shared::Kubernetes {
            here.push(address(API));
        }
        for a in &here {
            for b in &machines(others, members[1]) {
                for (from, to) in [(a, b), (b, a)] {
                    script += &format!("ip rule add pref {number} from {from} to {to} blackhole\n");
                }
            }
        }
        self.sandbox.host().sh(&script);
    }

    /// Undoes a [`Fleet::part`].
    pub fn join(&self, number: u64) {
        let host = self.sandbox.host();
        host.sh(&format!(
            "while ip rule del pref {number} 2>/dev/null; do :; done"
        ));
    }

    /// The namespaces of all pods end.
    pub fn end_namespaces(&self) {
        self.sandbox.remove_pod(&self.pods);
    }

    /// The configuration of a network with the addresses of a pool.
    pub fn conf(&self, node: &Node, pool: &Pool) -> Value {
        let own = json!({"name": pool.name, "ipam": {
            "type": "cluster", "subnet": pool.subnet, "coolDownSeconds": 0,
            "agent": node.dir.join("agent.sock"), "dataDir": node.dir.join("ipam"),
        }});
        conf::with(&conf::plugin("bridge"), own)
    }

    /// A call of the plugin on a node, under the tracer, and the tracer's report.
    pub fn plugin(&self, node: &Node, id: &str, strike: Strike) -> (Cni, String) {
        let report = self.sandbox.dir().join(format!("report-{id}"));
        let report = report.display().to_string();
        let [deed, point] = strike.words();
        let mut under = on_node(&node.dir);
        let tracer = [self.exe.as_str(), "trace", &report, &deed, &point, "--"];
        under.extend(tracer.map(str::to_owned));
        let under: Vec<&str> = under.iter().map(String::as_str).collect();
        let cni = self.sandbox.cni("cluster").id(id).under(&under);
        (cni.limit(Duration::from_secs(60)), report)
    }

    pub fn note(&self, what: &'static str) {
        let mut accidents = self.accidents.lock().expect("accidents");
        *accidents.entry(what).or_default() += 1;
    }

    /// The lines about an address that agents have printed.
    pub fn log_of(&self, ip: &str) -> Vec<String> {
        let outputs = std::fs::read_dir(self.sandbox.dir()).into_iter().flatten();
        let texts = outputs
            .flatten()
            .filter(|it| it.file_name().to_string_lossy().starts_with("started-"))
            .filter_map(|it| std::fs::read_to_string(it.path()).ok());
        let is_about = |line: &&str| line.split([' ', '/']).any(|it| it == ip);
        texts
            .flat_map(|it| {
                it.lines()
                    .filter(is_about)
                    .map(str::to_owned)
                    .collect::<Vec<_>>()
            })
            .collect()
    }

    /// How often each accident has happened.
    pub fn accidents(&self) -> BTreeMap<&'static str, usize> {
        self.accidents.lock().expect("accidents").clone()
    }
}

/// What makes the words after it run with the boot id of a node.
fn on_node(dir: &Path) -> Vec<String> {
    let script = format!(
        "mount --bind {}/boot_id /proc/sys/kernel/random/boot_id; exec \"$@\"",
        dir.display()
    );
    ["unshare", "-m", "sh", "-ec", &script, "sh"]
        .map(str::to_owned)
        .to_vec()
}

fn has_ended(running: &Running) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", running.id()));
    stat.is_ok_and(|it| it.contains(") Z "))
}

fn address(machine: usize) -> String {
    format!("172.20.{machine}.2")
}

fn endpoint(member: usize) -> String {
    format!("http://{}:2379", address(member + MEMBERS_AFTER))
}

fn server() -> String {
    format!("https://{}:6443", address(API))
}

fn node(sandbox: &Sandbox, n: usize, shared: Shared) -> Node {
    let name = format!("node{n}");
    let netns = underlay::host(sandbox, &name, n);
    let dir = sandbox.dir().join(&name);
    std::fs::create_dir(&dir).expect("make a directory");
    let mut ipam = json!({
        "dataDir": dir.join("ipam"), "leaseSeconds": LEASE, "graceSeconds": GRACE,
    });
    match shared {
        Shared::Etcd => {
            let endpoints: Vec<_> = (0..MEMBERS)
                .map(|m| endpoint((m + n) % MEMBERS + 1))
                .collect();
            ipam["etcd"] = json!({"endpoints": endpoints});
            ipam["node"] = name.as_str().into();
        }
        Shared::Kubernetes => {
            let kubeconfig = sandbox.dir().join("kubeconfig");
            ipam["kubernetes"] = json!({"kubeconfig": kubeconfig, "nodeName": name});
        }
    }
    let document = json!({"socket": dir.join("agent.sock"), "ipam": ipam});
    std::fs::write(dir.join("podwired.json"), document.to_string()).expect("write a configuration");
    Node {
        name,
        netns,
        dir,
        agent: Mutex::new(None),
        has_clock: AtomicBool::new(false),
        is_hurt: AtomicBool::new(false),
    }
}
