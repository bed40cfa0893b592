//! The sides that are measured, and how each does a job.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::job::{BRIDGE, CNI_VERSION, Job, Kind, PARENT, PORTS, Verb};
use crate::node::{Node, Pod};
use crate::process::{self, Call, Done};

/// A side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Side {
    /// The binaries under test.
    Podwire,
    /// The Go plugins of Debian.
    Go,
    /// Another build of the Go plugins, if one is named.
    Other,
    /// The floor: `src/bin/floor`.
    Floor,
    /// iproute2, with all commands in a file.
    Batch,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Side::Podwire => "podwire",
            Side::Go => "Go",
            Side::Other => "other Go",
            Side::Floor => "floor",
            Side::Batch => "`ip -batch`",
        })
    }
}

impl Side {
    /// Its name without marks of Markdown.
    pub fn plain(self) -> String {
        self.to_string().replace('`', "")
    }
}

/// Where the programs of the sides are.
#[derive(Clone, Debug)]
pub struct Programs {
    /// The directory of podwire's plugins.
    pub podwire: PathBuf,
    /// The directory of the Go plugins.
    pub go: PathBuf,
    /// The directory of another build of them.
    pub other: Option<PathBuf>,
    /// The floor's program.
    pub floor: PathBuf,
    /// The directory for the state of plugins.
    pub state: PathBuf,
}

impl Programs {
    /// The directory of plugins of a side that has one.
    pub fn plugins(&self, side: Side) -> Option<&Path> {
        match side {
            Side::Podwire => Some(&self.podwire),
            Side::Go => Some(&self.go),
            Side::Other => self.other.as_deref(),
            Side::Floor | Side::Batch => None,
        }
    }
}

/// A side with a node of its own, ready for a job.
pub struct Stage {
    /// The side.
    pub side: Side,
    /// Its node.
    pub node: Node,
    /// What it does.
    pub job: Job,
    programs: Programs,
    state: PathBuf,
    network: String,
    list: Vec<Value>,
}

/// A pod in a job: its id and number, and the result of ADD.
#[derive(Debug)]
pub struct Attachment {
    id: String,
    number: usize,
    pod: Pod,
    result: Option<Value>,
}

impl Stage {
    /// Prepares a node, or `None` when the side cannot do the job.
    ///
    /// # Errors
    /// When the node cannot be prepared.
    pub fn new(side: Side, job: Job, programs: &Programs) -> Result<Option<Self>> {
        if Self::missing(side, job, programs) {
            return Ok(None);
        }
        let state = programs.state.join(format!("{side:?}-{}", job.key));
        fs::create_dir_all(&state).with_context(|| format!("make {}", state.display()))?;
        let stage = Self {
            side,
            node: Node::new(&format!("{side:?}").to_lowercase())?,
            job,
            programs: programs.clone(),
            list: job.list(&state.display().to_string()),
            // Each job has its own: podwire remembers of a network whether other programs gave addresses in it.
            network: format!("measured-{}", job.key),
            state,
        };
        stage.prepare()?;
        Ok(Some(stage))
    }

    /// Whether the side cannot do the job: a plugin is missing, or has no counterpart.
    pub fn missing(side: Side, job: Job, programs: &Programs) -> bool {
        match side {
            // No Go suite has the overlay: ours is compared with our bridge.
            Side::Go | Side::Other if job.kind == Kind::Vxlan => true,
            Side::Podwire | Side::Go | Side::Other => {
                let dir = programs.plugins(side);
                let has = |plugin| dir.is_some_and(|dir| dir.join(plugin).exists());
                !job.plugins().into_iter().all(has)
            }
            Side::Floor => matches!(
                job.kind,
                Kind::Podman { ports: true }
                    | Kind::Alone(_)
                    | Kind::OnParent(_)
                    | Kind::Chained(_)
            ),
            Side::Batch => !matches!(job.kind, Kind::Bridge { ports: false, .. } | Kind::Macvlan),
        }
    }

    fn prepare(&self) -> Result<()> {
        self.rules(NODE_RULES)?;
        match self.job.kind {
            Kind::Macvlan | Kind::OnParent(_) => self.uplink(),
            Kind::Vxlan => {
                self.uplink()?;
                self.bridge()
            }
            Kind::Bridge { .. } => self.bridge(),
            Kind::Podman { .. } => {
                self.bridge()?;
                self.accepted()
            }
            Kind::Start(_)
            | Kind::Loopback
            | Kind::HostLocal
            | Kind::Alone(_)
            | Kind::Chained(_) => Ok(()),
        }
    }

    fn uplink(&self) -> Result<()> {
        self.node
            .ip(&format!("link add {PARENT} type veth peer name cable"))?;
        self.node.ip("link set cable up")?;
        self.node
            .ip(&format!("address add 192.0.2.1/24 dev {PARENT}"))?;
        self.node.ip(&format!("link set {PARENT} up"))
    }

    /// Plugins make their bridge; the floor finds one, as podwire makes it.
    fn bridge(&self) -> Result<()> {
        if self.programs.plugins(self.side).is_some() {
            return Ok(());
        }
        self.node
            .ip(&format!("link add {BRIDGE} type bridge mcast_snooping 0"))?;
        self.node
            .ip(&format!("address add 10.0.0.1/8 dev {BRIDGE}"))?;
        self.node.ip(&format!("link set {BRIDGE} up"))?;
        self.node
            .run(|| Ok(fs::write("/proc/sys/net/ipv4/ip_forward", "1")?))?;
        self.rules(FLOOR_RULES)
    }

    /// The firewall plugins make their chain; the floor finds one.
    fn accepted(&self) -> Result<()> {
        if self.programs.plugins(self.side).is_some() {
            return Ok(());
        }
        let chain = || process::output("/usr/sbin/iptables", &["-N", "CNI-FORWARD"]).map(drop);
        self.node.run(chain)
    }

    fn rules(&self, rules: &'static str) -> Result<()> {
        let load = || process::feed("/usr/sbin/nft", &["-f", "-"], rules.to_owned());
        self.node.run(load)
    }

    /// An empty pod with its number, which no other of this stage may have.
    ///
    /// # Errors
    /// When the kernel refuses a namespace.
    pub fn pod(&self, number: usize) -> Result<Attachment> {
        Ok(Attachment {
            id: format!("{number:064x}"),
            number,
            pod: self.node.pod(&number.to_string())?,
            result: None,
        })
    }

    /// How many programs the runtime runs for one verb; none when there is no such verb.
    pub fn steps(&self, verb: Verb) -> usize {
        match (self.side, verb) {
            (Side::Podwire | Side::Go | Side::Other, _) => self.list.len(),
            (Side::Floor, _) if matches!(self.job.kind, Kind::Podman { .. }) => self.list.len(),
            (Side::Batch, Verb::Add) => 2,
            (Side::Floor, _) | (Side::Batch, Verb::Del) => 1,
            (Side::Batch, Verb::Check | Verb::Version) => 0,
        }
    }

    /// Whether a failure is the peer's own: its CHECK has defects (portmap asks for
    /// IPv6 rules that its ADD did not make), which is no reason to measure nothing.
    pub fn may_refuse(&self, verb: Verb) -> bool {
        matches!(self.side, Side::Go | Side::Other) && verb == Verb::Check
    }

    /// Executes a verb for a pod as a runtime does, and returns the time of each program. `None`
    /// when this side has no such verb.
    ///
    /// # Errors
    /// When a program fails.
    pub fn perform(&self, verb: Verb, pod: &mut Attachment) -> Result<Option<Vec<Duration>>> {
        let done = self.drive(verb, pod, |call| self.node.run(move || process::run(call)))?;
        let times: Vec<Duration> = done.iter().map(|done| done.elapsed).collect();
        Ok((!times.is_empty()).then_some(times))
    }

    /// Runs the programs of a verb by `run`, each with the output of the one before it, and returns
    /// their outcomes, in the order of the list.
    ///
    /// # Errors
    /// As `run`; when a result is not JSON.
    pub fn drive(
        &self,
        verb: Verb,
        pod: &mut Attachment,
        mut run: impl FnMut(Call) -> Result<Done>,
    ) -> Result<Vec<Done>> {
        let mut steps: Vec<usize> = (0..self.steps(verb)).collect();
        if verb == Verb::Del {
            steps.reverse();
        }
        if verb == Verb::Add {
            pod.result = match self.job.kind {
                Kind::Chained(_) => Some(self.interface(pod)?),
                _ => None,
            };
        }
        let mut all = Vec::new();
        for step in steps {
            let done = run(self.call(verb, step, pod)?);
            let done = done.with_context(|| format!("{} of {}", verb.name(), self.side))?;
            self.keep_result(verb, pod, &done.stdout)?;
            all.push(done);
        }
        if verb == Verb::Del {
            all.reverse();
        }
        Ok(all)
    }

    /// Makes the interface of a pod anew, as a plugin before the one that is measured, and returns
    /// that plugin's result. Anew, because the Go plugins' DEL leaves qdiscs and routes to it.
    fn interface(&self, pod: &Attachment) -> Result<Value> {
        let (host, netns, address) = (pod.host_end(), pod.name(), pod.address());
        let _ = self.node.ip(&format!("link delete {host}"));
        for words in [
            format!("link add {host} type veth peer name eth0 netns {netns}"),
            format!("link set {host} up"),
            format!("-n {netns} link set eth0 up"),
            format!("-n {netns} address add {address}/8 dev eth0"),
            format!("-n {netns} route add 192.0.2.0/24 via 10.0.0.1"),
        ] {
            self.node.ip(&words)?;
        }
        // The kernel frees what was deleted after two or three jiffies.
        sleep(Duration::from_millis(20));
        Ok(json!({
            "cniVersion": CNI_VERSION,
            "interfaces": [{"name": host}, {"name": "eth0", "sandbox": pod.pod.path()}],
            "ips": [{"address": format!("{address}/8"), "gateway": "10.0.0.1", "interface": 1}],
            "routes": [],
        }))
    }

    /// Keeps the output of ADD: the next plugin of the list and the other verbs get it.
    ///
    /// # Errors
    /// When it is no JSON.
    pub fn keep_result(&self, verb: Verb, pod: &mut Attachment, stdout: &str) -> Result<()> {
        if verb == Verb::Add && self.programs.plugins(self.side).is_some() {
            pod.result = Some(serde_json::from_str(stdout).context("read a result")?);
        }
        Ok(())
    }

    /// The call of one program.
    ///
    /// # Errors
    /// When a file that the program reads cannot be written.
    pub fn call(&self, verb: Verb, step: usize, pod: &Attachment) -> Result<Call> {
        match self.side {
            Side::Podwire | Side::Go | Side::Other => self.plugin(verb, &self.list[step], pod),
            Side::Floor => Ok(self.floor_of(verb, step, pod)),
            Side::Batch => self.batch(verb, step, pod),
        }
    }

    /// The call of a plugin with this configuration for a pod.
    ///
    /// # Errors
    /// When the side has no plugins.
    pub fn plugin(&self, verb: Verb, conf: &Value, pod: &Attachment) -> Result<Call> {
        let dir = self
            .programs
            .plugins(self.side)
            .context("no plugins here")?;
        let mut conf = conf.clone();
        conf["name"] = json!(self.network);
        if let Some(result) = &pod.result {
            conf["prevResult"] = result.clone();
        }
        // host-local answers without having a plugin over it, but is not the `type` then.
        let name = conf["type"].as_str().unwrap_or_default();
        let mut call = Call::new(dir.join(name), &[]);
        let loopback = self.job.kind == Kind::Loopback;
        for (variable, value) in [
            ("CNI_COMMAND", verb.name()),
            ("CNI_CONTAINERID", &pod.id),
            ("CNI_NETNS", &pod.pod.path()),
            ("CNI_IFNAME", if loopback { "lo" } else { "eth0" }),
            ("CNI_PATH", &dir.display().to_string()),
        ] {
            call.env.push((variable.to_owned(), value.to_owned()));
        }
        call.stdin = conf.to_string();
        Ok(call)
    }

    /// Has the kernel of the node forget all connections that it tracks: `conntrack -F`.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn forget_connections(&self) -> Result<()> {
        let call = Call::new(&self.programs.floor, &["forget-connections"]);
        self.node.run(move || process::run(call).map(drop))
    }

    /// Gives the stage another job.
    pub fn turn_to(&mut self, job: Job) {
        self.job = job;
        self.list = job.list(&self.state.display().to_string());
    }

    /// The call of the floor's program for one plugin of the list.
    fn floor_of(&self, verb: Verb, step: usize, pod: &Attachment) -> Call {
        let address = pod.address();
        let args = match (self.job.kind, self.list[step]["type"].as_str()) {
            (Kind::Podman { .. }, Some("firewall")) => vec![verb.word(), "firewall", &address],
            // Without ports and settings, portmap and tuning have nothing to do.
            (Kind::Podman { .. }, Some("portmap" | "tuning")) => vec!["nothing"],
            _ => return self.floor(verb, pod),
        };
        Call::new(&self.programs.floor, &args)
    }

    /// The call of the floor's program.
    pub fn floor(&self, verb: Verb, pod: &Attachment) -> Call {
        let mut args = vec![verb.word().to_owned()];
        let file = self.reservation(pod);
        let (netns, address, host) = (pod.pod.path(), pod.address(), pod.host_end());
        let more = match self.job.kind {
            Kind::Start(_) | Kind::Alone(_) | Kind::OnParent(_) | Kind::Chained(_) => vec![],
            Kind::Podman { .. } => {
                let masquerade = "masquerade".into();
                vec!["bridge".into(), netns, address, file, host, masquerade]
            }
            Kind::Loopback => vec!["loopback".into(), netns],
            Kind::HostLocal => vec!["address".into(), file],
            Kind::Macvlan => vec!["macvlan".into(), netns, address, file, PARENT.into()],
            Kind::Vxlan => vec!["bridge".into(), netns, address, file, host],
            Kind::Bridge { masquerade, ports } => {
                let mut more = vec!["bridge".into(), netns, address, file, host];
                if masquerade {
                    more.push("masquerade".into());
                }
                if ports {
                    more.extend(PORTS.map(|port| port.to_string()));
                }
                more
            }
        };
        args.extend(more);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        Call::new(&self.programs.floor, &args)
    }

    /// The same as commands of iproute2. Parts that need another program (addresses on disk,
    /// masquerade) are left out.
    fn batch(&self, verb: Verb, step: usize, pod: &Attachment) -> Result<Call> {
        let (netns, host) = (pod.name(), pod.host_end());
        let address = format!(
            "address add {}/8 dev eth0\nlink set eth0 up\n",
            pod.address()
        );
        let macvlan = self.job.kind == Kind::Macvlan;
        let (inside, lines) = match (verb, step, macvlan) {
            (Verb::Add, 0, true) => {
                let kind = "type macvlan mode bridge";
                (
                    false,
                    format!("link add link {PARENT} name eth0 netns {netns} {kind}\n"),
                )
            }
            (Verb::Add, 0, false) => (
                false,
                format!(
                    "link add {host} type veth peer name eth0 netns {netns}\n\
                     link set {host} master {BRIDGE} up\n"
                ),
            ),
            (Verb::Add, _, true) => (true, address),
            (Verb::Add, _, false) => (true, address + "route add default via 10.0.0.1\n"),
            (_, _, true) => (true, "link delete eth0\n".to_owned()),
            (_, _, false) => (false, format!("link delete {host}\n")),
        };
        let file = self.state.join("batch");
        fs::write(&file, lines).with_context(|| format!("write {}", file.display()))?;
        let file = file.display().to_string();
        let args = if inside {
            vec!["-n", &netns, "-batch", &file]
        } else {
            vec!["-batch", &file]
        };
        Ok(Call::new("/usr/bin/ip", &args))
    }

    fn reservation(&self, pod: &Attachment) -> String {
        self.state.join(pod.address()).display().to_string()
    }

    /// The directory of host-local's reservations in this stage.
    pub fn reservations(&self) -> PathBuf {
        self.state.join(&self.network)
    }

    /// A result like that of bridge, of a pod that does not exist: for plugins that only read the
    /// addresses.
    pub fn pretend(&self, pod: &mut Attachment) {
        pod.result = Some(serde_json::json!({
            "cniVersion": CNI_VERSION,
            "interfaces": [{"name": "eth0", "sandbox": pod.pod.path()}],
            "ips": [{"address": format!("{}/8", pod.address()), "interface": 0}],
        }));
    }
}

impl Attachment {
    /// Another container in the same namespace: others need no namespace of their own.
    pub fn rename(&mut self, number: usize) {
        self.number = number;
        self.id = format!("{number:064x}");
    }

    /// Its container id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The path of its namespace.
    pub fn netns(&self) -> String {
        self.pod.path()
    }

    /// The address that the floor gives it: by its number, without an allocator.
    pub fn address(&self) -> String {
        let [_, b, c, d] = u32::try_from(self.number + 2).unwrap_or(2).to_be_bytes();
        format!("10.{b}.{c}.{d}")
    }

    /// The address that ADD reported.
    pub fn reported(&self) -> Option<String> {
        let address = self.result.as_ref()?["ips"][0]["address"].as_str()?;
        Some(address.split('/').next()?.to_owned())
    }

    fn host_end(&self) -> String {
        format!("floor{}", self.number)
    }

    fn name(&self) -> String {
        let path = self.pod.path();
        path.rsplit('/').next().unwrap_or_default().to_owned()
    }
}

/// The rules of each node. One uses connection tracking, as every service proxy and firewall does.
/// The others keep IGMP from being tracked, so that no connection exists. Without the first, the
/// first rule of masquerade makes the kernel begin to track. While there is a connection, the
/// kernel looks at its whole table of them (262,144 buckets, 0.7 ms) then (`nf_ct_netns_do_get`)
/// and when a link is deleted (`masq_device_event`). The IGMP report of a bridge would be a
/// connection, and comes at any time.
const NODE_RULES: &str = "table ip node {
    chain prerouting {
        type filter hook prerouting priority raw
        ip protocol igmp notrack
    }
    chain output {
        type filter hook output priority raw
        ip protocol igmp notrack
    }
}
table inet node {
    chain input {
        type filter hook input priority filter
        ct state established,related accept
    }
}
";

/// The rules that exist for the floor: one rule for all pods, one map for all ports.
const FLOOR_RULES: &str = "table ip floor {
    map ports {
        type inet_proto . inet_service : ipv4_addr . inet_service
    }
    chain prerouting {
        type nat hook prerouting priority dstnat
        fib daddr type local dnat ip to meta l4proto . th dport map @ports
    }
    chain postrouting {
        type nat hook postrouting priority srcnat
        ip saddr 10.0.0.0/8 ip daddr != 10.0.0.0/8 masquerade
    }
}
";
