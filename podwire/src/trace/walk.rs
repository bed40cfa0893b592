//! The way of one packet: asks the kernel, sends the packet, and puts in order what was decided.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use netlink::{Decision, Mac, Netlink};
use netns::NetNs;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use packet_filter::trace::{Step, Trace, Verdict, Wanted};
use packet_filter::{Point, Protocol, Socket, rule_texts};
use survey::{Interface, OtherEnd, Place, Survey};

use super::hop::{Hop, Passage, Traced};
use super::legacy::Legacy;
use super::probe::{self, Answer, Probe};
use super::target::{Origin, Target};
use crate::graph::host::pod_name;

/// The table of the namespace's own addresses.
const LOCAL_TABLE: u32 = 255;
/// The place of hops on the node.
const NODE: &str = "node";

/// Follows a packet from `origin` to `target`. An answer is waited for no longer than `patience`.
///
/// # Errors
/// The kernel cannot be asked. That a packet does not arrive is a result.
pub fn trace(
    survey: &Survey,
    origin: &Origin,
    target: Target,
    patience: Duration,
) -> Result<Traced> {
    let mut walk = Walk {
        survey,
        origin,
        target,
        pod: Netlink::open_in(&origin.netns)?,
        node: Netlink::open()?,
        source: None,
        hops: Vec::new(),
        addresses: None,
        texts: HashMap::new(),
    };
    let answer = walk.go(patience)?;
    let dropped = walk.hops.iter().find(|it| it.passage == Passage::Dropped);
    let dropped = dropped.map(|it| format!("{}, {}: {}", it.at, it.step, it.text));
    Ok(Traced {
        from: origin.name.clone(),
        source: walk.source.map(|it| it.to_string()),
        destination: target.to_string(),
        protocol: match target.port {
            Some((Protocol::Udp, _)) => "udp",
            Some(_) => "tcp",
            None => "icmp",
        },
        answer: words(answer, target),
        arrived: dropped.is_none() && matches!(answer, Answer::Accepted | Answer::Refused),
        dropped,
        hops: walk.hops,
    })
}

/// An answer in words.
fn words(answer: Answer, target: Target) -> String {
    match (answer, target.port) {
        (Answer::Accepted, Some((Protocol::Tcp, _))) => "the connection was accepted".into(),
        (Answer::Accepted, _) => "answered".into(),
        (Answer::Refused, _) => "refused: the host was reached, nothing listens there".into(),
        (Answer::Failed(errno), _) => errno.desc().to_lowercase(),
        (Answer::Nothing, Some((Protocol::Udp, _))) => "none, as usual for UDP".into(),
        (Answer::Nothing, _) => "none".into(),
    }
}

struct Walk<'a> {
    survey: &'a Survey,
    origin: &'a Origin,
    target: Target,
    pod: Netlink,
    node: Netlink,
    source: Option<IpAddr>,
    hops: Vec<Hop>,
    /// Source and destination, as they were last reported.
    addresses: Option<[IpAddr; 2]>,
    /// The rules of chains by their handles, as nft prints them.
    texts: HashMap<[String; 3], HashMap<u64, String>>,
}

/// What rules did with the packet: in the pod, and on the node.
#[derive(Default)]
struct Followed {
    pod: Vec<Step>,
    node: Vec<Step>,
    /// Of iptables-legacy on the node: before the decision about the route, and after it.
    legacy: [Vec<Hop>; 2],
}

/// What rules of IP on the node did with a packet from `source`.
struct Routed<'a> {
    source: IpAddr,
    steps: &'a [Step],
    legacy: &'a [Vec<Hop>; 2],
}

impl Walk<'_> {
    fn go(&mut self, patience: Duration) -> Result<Answer> {
        let name = self.origin.name.clone();
        let decision = match self.pod.decide(self.target.ip, None) {
            Ok(decision) => decision,
            Err(error) => {
                let text = format!("no way to {}: {}", self.target.ip, error.errno().desc());
                self.hops.push(Hop::dropped(&name, "route", text));
                return Ok(Answer::Failed(error.errno()));
            }
        };
        let source = match decision.source {
            Some(source) => source,
            None => probe::source(&self.origin.netns, self.target.ip)?,
        };
        self.source = Some(source);
        let wanted = Wanted {
            source,
            destination: self.target.ip,
            port: self.target.port,
        };
        let (followed, answer) = self.send(&wanted, patience)?;
        let output = self.interface(self.origin.at, decision.output);
        let shown = self.route(&decision, output.map(|it| it.link.name.as_str()));
        self.hops.push(Hop::on(&name, "route", shown));
        self.rules(&name, &followed.pod);
        if !self.is_stopped() && !decision.local {
            self.leave(&decision, source, &followed);
        }
        self.explain(&answer, &followed);
        Ok(answer)
    }

    fn is_stopped(&self) -> bool {
        self.hops.iter().any(|it| it.passage == Passage::Dropped)
    }

    fn interface(&self, at: Option<usize>, index: Option<u32>) -> Option<&Interface> {
        self.survey.namespaces.get(at?)?.at(index?)
    }

    fn route(&self, decision: &Decision, output: Option<&str>) -> String {
        if decision.local {
            return format!("{} is an address of its own", self.target.ip);
        }
        let via = decision
            .gateway
            .map(|it| format!(" via {it}"))
            .unwrap_or_default();
        let on = output.map(|it| format!(" on {it}")).unwrap_or_default();
        let table = match decision.table {
            0 | LOCAL_TABLE | netlink::MAIN_TABLE => String::new(),
            table => format!(", table {table}"),
        };
        format!("{}{via}{on}{table}", self.target.ip)
    }

    /// Sends the packet while the kernel reports what rules do with it.
    fn send(&mut self, wanted: &Wanted, patience: Duration) -> Result<(Followed, Answer)> {
        let begin = if self.origin.at == Some(0) {
            Point::Output
        } else {
            Point::Prerouting
        };
        let on_node = self.follow(NODE, Socket::open().map_err(Into::into), begin, wanted);
        // The pod's own rules; for the node, they are the same.
        let in_pod = match begin {
            Point::Output => None,
            _ => {
                let socket = self.origin.netns.enter(Socket::open).and_then(|it| Ok(it?));
                let name = self.origin.name.clone();
                self.follow(&name, socket, Point::Output, wanted)
            }
        };
        let mut legacy = Legacy::open(self.target.ip.is_ipv4()).unwrap_or_else(|error| {
            let text = format!("rules of iptables-legacy cannot be followed: {error:#}");
            self.hops.push(Hop::on(NODE, "rule", text));
            None
        });
        let (probe, mut answer) = Probe::send(&self.origin.netns, self.target)?;
        let until = Instant::now() + patience;
        let mut followed = Followed::default();
        loop {
            for (trace, steps) in [(&on_node, &mut followed.node), (&in_pod, &mut followed.pod)] {
                if let Some(trace) = trace {
                    steps.extend(
                        trace
                            .steps()
                            .context("hear what rules do with the packet")?,
                    );
                    keep_one(steps, probe.port);
                }
            }
            if let Some(legacy) = &mut legacy {
                legacy.hear(probe.port)?;
            }
            if answer == Answer::Nothing {
                answer = probe.answer();
            }
            let dropped = |it: &Step| it.verdict == Verdict::Drop;
            let is_dropped = followed.node.iter().chain(&followed.pod).any(dropped);
            let left = until.saturating_duration_since(Instant::now());
            if answer != Answer::Nothing || is_dropped || left.is_zero() {
                followed.legacy = legacy.map(|mut it| it.hops(NODE)).unwrap_or_default();
                return Ok((followed, answer));
            }
            wait(&probe, [&on_node, &in_pod], left)?;
        }
    }

    /// A trace of rules; where there is none, the list of hops says so.
    fn follow(
        &mut self,
        at: &str,
        socket: Result<Socket>,
        point: Point,
        wanted: &Wanted,
    ) -> Option<Trace> {
        let started = socket.and_then(|it| Ok(Trace::start(it, point, wanted)?));
        match started {
            Ok(trace) => Some(trace),
            Err(error) => {
                let text = format!("rules cannot be followed here: {error:#}");
                self.hops.push(Hop::on(at, "rule", text));
                None
            }
        }
    }

    /// From the pod's interface to the node, and on from there.
    fn leave(&mut self, decision: &Decision, source: IpAddr, followed: &Followed) {
        let name = self.origin.name.clone();
        let next = decision.gateway.unwrap_or(self.target.ip);
        let mac = self.neighbour(&name, decision.output, next);
        let output = self.interface(self.origin.at, decision.output);
        let Some(output) = output else {
            return;
        };
        let pod_end = output.link.name.clone();
        let host_end = match output.other_end {
            Some(OtherEnd::At(place)) if place.namespace == 0 => self.survey.interface(place),
            _ => None,
        };
        let (bridged, rest): (Vec<_>, Vec<_>) = followed
            .node
            .iter()
            .cloned()
            .partition(|it| it.family == "bridge");
        let routed = Routed {
            source,
            steps: &rest,
            legacy: &followed.legacy,
        };
        let Some(host_end) = host_end.filter(|_| self.origin.at != Some(0)) else {
            // On the node itself, or behind an interface that is not the node's.
            self.rules(NODE, &bridged);
            self.routed(None, &routed);
            return;
        };
        let kind = host_end.link.kind.clone().unwrap_or_default();
        let text = match kind.as_str() {
            "veth" => format!("{pod_end} → {} on the node", host_end.link.name),
            _ => format!(
                "{pod_end} → out of {} on the node, beside its rules",
                host_end.link.name
            ),
        };
        self.hops.push(Hop::on(&name, "link", text));
        if !host_end.link.up {
            let text = format!("{} is down", host_end.link.name);
            self.hops.push(Hop::dropped(NODE, "link", text));
            return;
        }
        if kind != "veth" {
            return;
        }
        self.rules(NODE, &bridged);
        let master = host_end
            .link
            .master
            .and_then(|it| self.survey.node().at(it));
        let mut input = host_end.link.index;
        if let Some(bridge) = master.filter(|it| it.link.is_kind("bridge"))
            && !self.is_stopped()
        {
            if !self.bridged(host_end, bridge, mac) {
                // With br_netfilter, the rules of IP see bridged packets, too.
                self.rules_of_ip(&routed);
                return;
            }
            input = bridge.link.index;
        }
        self.routed(Some(input), &routed);
    }

    /// Where a bridge forwards the frame to; returns whether that is the node itself.
    fn bridged(&mut self, port: &Interface, bridge: &Interface, mac: Option<Mac>) -> bool {
        let names = format!("{}, port {}", bridge.link.name, port.link.name);
        let entry = mac.and_then(|mac| {
            let is_own = bridge.link.mac == Some(mac);
            let found = self
                .node
                .find_fdb_entry(bridge.link.index, mac)
                .ok()
                .flatten();
            match found {
                _ if is_own => Some(bridge.link.index),
                found => found.map(|it| it.port),
            }
        });
        let to = match entry {
            Some(index) if index == bridge.link.index => {
                self.hops.push(Hop::on(
                    NODE,
                    "bridge",
                    format!("{names} → the node itself"),
                ));
                return true;
            }
            Some(index) => self.survey.node().at(index),
            // The neighbour did not answer: where it is, if it is a pod of this node.
            None => self.outside_of(self.target.ip),
        };
        let Some(to) = to.filter(|it| it.link.master == Some(bridge.link.index)) else {
            let text = format!("{names} → every port");
            self.hops.push(Hop::on(NODE, "bridge", text));
            return false;
        };
        let text = format!("{names} → port {}{}", to.link.name, self.behind(to, mac));
        let isolated = |it: &Interface| it.link.port.is_some_and(|it| it.isolated);
        let vlan = port.vlans.iter().find(|it| it.pvid).map(|it| it.vid);
        let hop = if isolated(port) && isolated(to) {
            let text = format!("{text}: both ports are isolated (portIsolation)");
            Hop::dropped(NODE, "bridge", text)
        } else if bridge.link.vlan_filtering == Some(true)
            && vlan.is_none_or(|vlan| !to.vlans.iter().any(|it| it.vid == vlan))
        {
            let vlan = vlan
                .map(|it| format!("VLAN {it} of the first"))
                .unwrap_or("a VLAN".into());
            Hop::dropped(
                NODE,
                "bridge",
                format!("{text}: that port does not have {vlan}"),
            )
        } else {
            Hop::on(NODE, "bridge", text)
        };
        self.hops.push(hop);
        false
    }

    /// What is behind a port: a pod, or a node of an overlay.
    fn behind(&self, port: &Interface, mac: Option<Mac>) -> String {
        if let Some(vtep) = port.vteps.iter().find(|it| Some(it.mac) == mac) {
            return format!(", to node {}", vtep.address);
        }
        let place = Place {
            namespace: 0,
            index: port.link.index,
        };
        let mut attachments = self.survey.attachments.iter();
        let found = attachments.find(|it| it.outside == Some(place));
        found
            .map(|it| format!(" of {}", pod_name(self.survey, it)))
            .unwrap_or_default()
    }

    /// The node's interface of the pod with this address.
    fn outside_of(&self, ip: IpAddr) -> Option<&Interface> {
        let has = |it: &&survey::Attachment| {
            let ips = it.result.iter().flat_map(|it| &it.ips);
            ips.map(|it| it.address.ip()).any(|it| it == ip)
        };
        let found = self.survey.attachments.iter().find(has);
        if let Some(outside) = found.and_then(|it| it.outside) {
            return self.survey.interface(outside);
        }
        // One of a runtime whose cache is elsewhere.
        let pods = self.survey.namespaces.iter().skip(1);
        let mut all = pods.flat_map(|it| &it.interfaces);
        let found = all.find(|it| it.addresses.iter().any(|it| it.address.ip() == ip))?;
        match found.other_end {
            Some(OtherEnd::At(place)) if place.namespace == 0 => self.survey.interface(place),
            _ => None,
        }
    }

    /// What the rules of IP on the node did, where no route is decided.
    fn rules_of_ip(&mut self, Routed { steps, legacy, .. }: &Routed<'_>) {
        self.rules(NODE, steps);
        for part in *legacy {
            self.legacy(part);
        }
    }

    fn legacy(&mut self, hops: &[Hop]) {
        if !self.is_stopped() {
            self.hops.extend_from_slice(hops);
        }
    }

    /// Through the rules and routes of the node. Without `input`, the packet is its own.
    fn routed(&mut self, input: Option<u32>, routed: &Routed<'_>) {
        let Routed {
            source,
            steps,
            legacy: [early, late],
        } = *routed;
        let arrived = steps.iter().find_map(|it| it.input).or(input);
        // Those before the decision about the route have no outgoing interface.
        let split = steps
            .iter()
            .position(|it| it.output.is_some())
            .unwrap_or(steps.len());
        let is_own = self.origin.at == Some(0);
        let (before, after) = steps.split_at(if is_own { 0 } else { split });
        self.rules(NODE, before);
        self.legacy(early);
        if self.is_stopped() {
            return;
        }
        let last = steps.iter().rev().find_map(|it| it.addresses);
        let to = last.map_or(self.target.ip, |it| it[1]);
        if let Some(input) = arrived.filter(|_| !is_own) {
            match self.node.decide(to, Some((source, input))) {
                Ok(decision) if decision.local => {
                    let text = format!("{to} is an address of the node");
                    self.hops.push(Hop::on(NODE, "route", text));
                }
                Ok(decision) => {
                    let output = self.interface(Some(0), decision.output);
                    let output = output.map(|it| it.link.name.clone()).unwrap_or_default();
                    let via = decision
                        .gateway
                        .map(|it| format!(" via {it}"))
                        .unwrap_or_default();
                    self.hops
                        .push(Hop::on(NODE, "route", format!("{to}{via} on {output}")));
                    self.rules(NODE, after);
                    self.legacy(late);
                    if !self.is_stopped() {
                        self.arrive(&decision, to);
                    }
                    return;
                }
                Err(error) => {
                    let text = format!("no way to {to}: {}", refusal(error.errno()));
                    self.hops.push(Hop::dropped(NODE, "route", text));
                    return;
                }
            }
        }
        self.rules(NODE, after);
        self.legacy(late);
    }

    /// On the link that the destination, or the next hop, is on.
    fn arrive(&mut self, decision: &Decision, to: IpAddr) {
        let next = decision.gateway.unwrap_or(to);
        self.neighbour(NODE, decision.output, next);
        let Some(outside) = self.outside_of(to) else {
            return;
        };
        let text = format!("{}{}", outside.link.name, self.behind(outside, None));
        let inside = outside.other_end;
        self.hops.push(Hop::on(NODE, "link", text));
        if let Some(OtherEnd::At(inside)) = inside {
            self.back(inside, to);
        }
    }

    /// Where the pod at `inside` sends its answers: by another interface, they come from another address,
    /// or do not arrive.
    fn back(&mut self, inside: Place, own: IpAddr) {
        let Some(source) = self.source.filter(|it| it.is_ipv4() == own.is_ipv4()) else {
            return;
        };
        let path = self
            .survey
            .namespaces
            .get(inside.namespace)
            .and_then(|it| it.paths.first());
        let socket = path.and_then(|it| NetNs::open(it).ok());
        let socket = socket.and_then(|it| Netlink::open_in(&it).ok());
        let Some(Ok(decision)) = socket.map(|it| it.decide(source, None)) else {
            return;
        };
        if decision.output == Some(inside.index) || decision.local {
            return;
        }
        let output = self.interface(Some(inside.namespace), decision.output);
        let output = output.map(|it| it.link.name.clone()).unwrap_or_default();
        let name = crate::graph::host::pod_of(self.survey, inside.namespace).next();
        let name = name.map(|it| pod_name(self.survey, it)).unwrap_or_default();
        let text = format!(
            "answers to {source} leave by another interface, {output}, unless they are masqueraded"
        );
        self.hops.push(Hop::on(&name, "route", text));
    }

    /// What a namespace knows of a neighbour; its hardware address.
    fn neighbour(&mut self, at: &str, device: Option<u32>, ip: IpAddr) -> Option<Mac> {
        let socket = if at == NODE { &self.node } else { &self.pod };
        let found = socket.find_neighbour(device?, ip).ok().flatten()?;
        let hop = match found.mac {
            Some(mac) => Hop::on(at, "neighbour", format!("{ip} is {mac} ({})", found.state)),
            None => Hop::on(
                at,
                "neighbour",
                format!("{ip} does not answer ({})", found.state),
            ),
        };
        self.hops.push(hop);
        found.mac
    }

    /// What rules did, but for those after which nothing is different.
    fn rules(&mut self, at: &str, steps: &[Step]) {
        for step in steps {
            if let Some(now) = step.addresses {
                let before = self.addresses.replace(now).unwrap_or(now);
                for (side, number) in [("source", 0), ("destination", 1)] {
                    if before[number] != now[number] {
                        let text = format!("the {side} is now {}", now[number]);
                        self.hops.push(Hop::on(at, "translation", text));
                    }
                }
            }
            let verdict = match &step.verdict {
                Verdict::Drop => "drop".to_owned(),
                Verdict::Queue => "to a program (queue)".to_owned(),
                Verdict::Accept if step.rule.is_some() => "accept".to_owned(),
                Verdict::Enter(chain) => format!("on in {chain}"),
                _ => continue,
            };
            let chain = format!("{} {} {}", step.family, step.table, step.chain);
            let text = match step.rule {
                Some(handle) => match self.rule_text(step, handle) {
                    Some(rule) => format!("{chain}: {rule}"),
                    None => format!("{chain}: rule {handle}: {verdict}"),
                },
                None => format!("{chain}: policy {verdict}"),
            };
            let hop = match step.verdict {
                Verdict::Drop => Hop::dropped(at, "rule", text),
                _ => Hop::on(at, "rule", text),
            };
            self.hops.push(hop);
        }
    }

    fn rule_text(&mut self, step: &Step, handle: u64) -> Option<String> {
        let key = [&step.family, &step.table, &step.chain].map(Clone::clone);
        let texts = self
            .texts
            .entry(key)
            .or_insert_with(|| rule_texts(&step.family, &step.table, &step.chain));
        texts.get(&handle).cloned()
    }

    /// Where no rule dropped the packet, and nothing came back.
    fn explain(&mut self, answer: &Answer, followed: &Followed) {
        let unreachable = matches!(answer, Answer::Failed(Errno::EHOSTUNREACH));
        if self.is_stopped() || !(unreachable || *answer == Answer::Nothing) {
            return;
        }
        let silent = self.hops.iter().rposition(|it| it.step == "neighbour");
        if let Some(at) = silent
            && self.hops[at].text.contains("does not answer")
            && (self.hops[at].at == NODE || followed.node.is_empty())
        {
            self.hops[at].passage = Passage::Dropped;
        }
    }
}

/// Why a node does not forward.
fn refusal(errno: Errno) -> &'static str {
    match errno {
        Errno::EHOSTUNREACH => "it has none, or does not forward (net.ipv4.ip_forward)",
        Errno::EXDEV | Errno::EINVAL => {
            "the source must not come in there (rp_filter), or is its own"
        }
        Errno::EACCES => "a route prohibits it",
        errno => errno.desc(),
    }
}

/// Keeps the steps of our packet. The kernel's number for it changes when it is routed, so those of
/// other packets are left out: they come from another port. What comes twice was sent twice.
fn keep_one(steps: &mut Vec<Step>, port: Option<u16>) {
    let is_other =
        |it: &Step| matches!((port, it.ports), (Some(own), Some([from, _])) if own != from);
    let others: HashSet<_> = steps
        .iter()
        .filter(|it| is_other(it))
        .map(|it| it.packet)
        .collect();
    steps.retain(|it| !others.contains(&it.packet));
    let mut entered = HashSet::new();
    let again = steps.iter().position(|it| {
        it.addresses.is_some() && !entered.insert((&it.family, &it.table, &it.chain, it.output))
    });
    if let Some(again) = again {
        steps.truncate(again);
    }
}

/// Waits until something is to be read.
fn wait(probe: &Probe, traces: [&Option<Trace>; 2], left: Duration) -> Result<()> {
    use std::os::fd::AsFd;
    let ready = if probe.is_connection() {
        PollFlags::POLLOUT
    } else {
        PollFlags::POLLIN
    };
    let mut all = vec![PollFd::new(probe.as_fd(), ready)];
    let traces = traces.into_iter().flatten();
    all.extend(traces.map(|it| PollFd::new(it.as_fd(), PollFlags::POLLIN)));
    let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
    match poll(&mut all, timeout) {
        Err(Errno::EINTR) | Ok(_) => Ok(()),
        Err(errno) => Err(errno).context("wait for the packet"),
    }
}
