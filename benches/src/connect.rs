//! How long a TCP connection takes from a neighbour of the node to a published
//! port, through the first and through the last of all mappings.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use netns::NetNs;

use crate::job::{Verb, portmap};
use crate::node::Pod;
use crate::process;
use crate::results::{Curve, Line};
use crate::side::{Attachment, Side, Stage};
use crate::stats::{Ratio, Sample, median};

/// How many connections go through one mapping before the next one is measured.
const TURN: usize = 50;
/// The port that is published before all others.
const FIRST: u16 = 18_080;
/// The port that is published after all others.
const LAST: u16 = 18_081;
const NODE: &str = "198.51.100.1";
const NEIGHBOUR: &str = "198.51.100.2";
/// Numbers of the two containers that publish.
const SERVER: usize = 900_001;
const LATECOMER: usize = 900_002;

/// A neighbour of a node, and a pod that serves.
pub struct Wire {
    neighbour: NetNs,
    server: TcpListener,
    pod_address: SocketAddr,
    pod: Attachment,
    _namespace: Pod,
}

/// Microseconds of connections, in turns.
pub type Times = BTreeMap<(Side, &'static str), Vec<Vec<f64>>>;

impl Wire {
    /// Attaches a pod with a server, publishes it before all others, and connects a neighbour to
    /// the node.
    ///
    /// # Errors
    /// When a plugin or `ip` fails.
    pub fn new(stage: &Stage) -> Result<Self> {
        let mut pod = stage.pod(SERVER)?;
        let add = stage.call(Verb::Add, 0, &pod)?;
        let done = stage.node.run(move || process::run(add))?;
        stage.keep_result(Verb::Add, &mut pod, &done.stdout)?;
        let publish = stage.plugin(Verb::Add, &portmap(&[FIRST]), &pod)?;
        stage.node.run(move || process::run(publish))?;
        let address = pod.reported().context("the pod has no address")?;
        let pod_address: SocketAddr = format!("{address}:80").parse()?;
        let inside = NetNs::open(Path::new(&pod.netns()))?;
        let server = inside.enter(|| TcpListener::bind(pod_address))?;
        let namespace = stage.node.pod("neighbour")?;
        cable(stage, &namespace)?;
        Ok(Self {
            neighbour: NetNs::open(Path::new(&namespace.path()))?,
            server: server.context("serve in the pod")?,
            pod_address,
            pod,
            _namespace: namespace,
        })
    }

    /// A turn of connections, microseconds each.
    fn connect(&self, to: SocketAddr, count: usize) -> Result<Vec<f64>> {
        self.neighbour.enter(|| {
            // One that is not timed: it may be the first to this pod, and it has a limit.
            drop(TcpStream::connect_timeout(&to, Duration::from_secs(2))?);
            self.server.accept()?;
            let mut times = Vec::new();
            for _ in 0..count {
                let start = Instant::now();
                let client = TcpStream::connect(to)?;
                times.push(start.elapsed().as_secs_f64() * 1e6);
                drop((self.server.accept()?, client));
            }
            Ok(times)
        })?
    }
}

fn cable(stage: &Stage, neighbour: &Pod) -> Result<()> {
    let path = neighbour.path();
    let name = path.rsplit('/').next().unwrap_or_default();
    stage.node.ip(&format!(
        "link add cable0 type veth peer name eth0 netns {name}"
    ))?;
    stage
        .node
        .ip(&format!("address add {NODE}/24 dev cable0"))?;
    stage.node.ip("link set cable0 up")?;
    stage
        .node
        .ip(&format!("-n {name} address add {NEIGHBOUR}/24 dev eth0"))?;
    stage.node.ip(&format!("-n {name} link set eth0 up"))?;
    stage
        .node
        .ip(&format!("-n {name} route add default via {NODE}"))
}

/// Connects through all mappings in turn, `connections` times each.
///
/// # Errors
/// When a plugin or a connection fails.
pub fn measure(sides: &mut [(&Stage, &mut Wire)], connections: usize) -> Result<Times> {
    for (stage, wire) in &mut *sides {
        latecomer(stage, wire, Verb::Add)?;
    }
    let mut times = Times::new();
    for _ in 0..connections.div_ceil(TURN) {
        for (stage, wire) in &mut *sides {
            for (what, to) in targets(stage.side, wire)? {
                let taken = wire.connect(to, TURN.min(connections));
                let taken = taken.with_context(|| format!("connect to {to} on {}", stage.side))?;
                times
                    .entry((side_of(stage.side, what), what))
                    .or_default()
                    .push(taken);
            }
        }
    }
    for (stage, wire) in &mut *sides {
        latecomer(stage, wire, Verb::Del)?;
    }
    Ok(times)
}

/// Without a mapping, only the kernel takes part.
fn side_of(side: Side, what: &str) -> Side {
    match what {
        NO_MAPPING => Side::Floor,
        _ => side,
    }
}

const NO_MAPPING: &str = ", to the pod itself";
const FIRST_MAPPING: &str = ", first mapping";
const LAST_MAPPING: &str = ", last mapping";

fn targets(side: Side, wire: &Wire) -> Result<Vec<(&'static str, SocketAddr)>> {
    let mut targets = vec![
        (FIRST_MAPPING, format!("{NODE}:{FIRST}").parse()?),
        (LAST_MAPPING, format!("{NODE}:{LAST}").parse()?),
    ];
    if side == Side::Podwire {
        targets.push((NO_MAPPING, wire.pod_address));
    }
    Ok(targets)
}

/// Publishes a port behind all existing ones, or removes it.
fn latecomer(stage: &Stage, wire: &mut Wire, verb: Verb) -> Result<()> {
    wire.pod.rename(LATECOMER);
    let call = stage.plugin(verb, &portmap(&[LAST]), &wire.pod)?;
    wire.pod.rename(SERVER);
    stage.node.run(move || process::run(call))?;
    crate::table::settle(verb)
}

/// All counts as one curve.
pub fn curve(counts: &[(usize, Times)]) -> Curve {
    let mut lines = Vec::new();
    for (side, what) in [
        (Side::Podwire, FIRST_MAPPING),
        (Side::Podwire, LAST_MAPPING),
        (Side::Go, FIRST_MAPPING),
        (Side::Go, LAST_MAPPING),
        (Side::Floor, NO_MAPPING),
    ] {
        lines.push(line(side, what, counts));
    }
    lines.retain(|line| !line.points.is_empty());
    Curve {
        key: "connect".to_owned(),
        title: "TCP connection to a published port".to_owned(),
        among: "other published ports".to_owned(),
        unit: "µs".to_owned(),
        lines,
    }
}

fn line(side: Side, what: &'static str, counts: &[(usize, Times)]) -> Line {
    let turns = |times: &Times, side| times.get(&(side, what)).cloned().unwrap_or_default();
    let middles = |times: &Times, side| -> Vec<f64> {
        turns(times, side)
            .iter()
            .filter_map(|turn| median(turn))
            .collect()
    };
    let points = counts
        .iter()
        .filter_map(|(count, times)| Some((*count, Sample::of(&turns(times, side).concat())?)));
    let faster = counts.iter().filter_map(|(count, times)| {
        let ratio = Ratio::of(&middles(times, Side::Go), &middles(times, side));
        Some((*count, ratio.filter(|_| side == Side::Podwire)?))
    });
    Line {
        side,
        what: what.to_owned(),
        points: points.collect(),
        faster: faster.collect(),
        than_other: Vec::new(),
        over_floor: Vec::new(),
    }
}
