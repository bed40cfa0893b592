//! The way of one packet: asks the kernel, sends the packet, and puts in order what was decided.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::Result;
use netlink::{Decision, Mac, Netlink};
use netns::NetNs;
use nix::errno::Errno;
use packet_filter::Protocol;
use packet_filter::trace::{Step, Verdict, Wanted};
use survey::{Interface, OtherEnd, Place, Survey};

use super::follow::Followed;
use super::hop::{Hop, Passage, Traced};
use super::probe::{self, Answer};
use super::target::{Origin, Target};
use crate::graph::host::pod_name;

/// The table of the namespace's own addresses.
const LOCAL_TABLE: u32 = 255;
/// The place of hops on the node.
pub const NODE: &str = "node";

/// Follows a packet from `origin` to `target`. An answer is waited for no longer than `patience`.
///
/// # Errors
/// The kernel cannot be queried. That a packet does not arrive is a result.
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

pub struct Walk<'a> {
    pub survey: &'a Survey,
    pub origin: &'a Origin,
    pub target: Target,
    pod: Netlink,
    pub node: Netlink,
    source: Option<IpAddr>,
    pub hops: Vec<Hop>,
    /// Source and destination, as they were last reported.
    pub addresses: Option<[IpAddr; 2]>,
    /// The rules of chains by their handles, as nft prints them.
    pub texts: HashMap<[String; 3], HashMap<u64, String>>,
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
        let source = match self.origin.source.or(decision.source) {
            Some(source) => source,
            None => probe::source(&self.origin.netns, self.target.ip)?,
        };
        self.source = Some(source);
        let output = self.interface(self.origin.at, decision.output);
        let pair = output.filter(|it| it.link.is_kind("veth"));
        let port = pair.and_then(|it| host_end(self.survey, it));
        let port = port.filter(|it| it.link.master.is_some());
        let wanted = Wanted {
            source,
            destination: self.target.ip,
            port: self.target.port,
            bridge_port: port.map(|it| it.link.name.clone()),
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

    pub fn is_stopped(&self) -> bool {
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
        let host_end = host_end(self.survey, output);
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
        let is_pair = output.link.is_kind("veth");
        let text = if is_pair {
            format!("{pod_end} → {} on the node", host_end.link.name)
        } else {
            // The parent of a macvlan, for example.
            format!(
                "{pod_end} → out of {} on the node, beside its rules",
                host_end.link.name
            )
        };
        self.hops.push(Hop::on(&name, "link", text));
        if !host_end.link.up {
            let text = format!("{} is down", host_end.link.name);
            self.hops.push(Hop::dropped(NODE, "link", text));
            return;
        }
        if !is_pair {
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
                // The decision about IPv4 knows this.
                Ok(_) if to.is_ipv6() && !self.forwards_ipv6(input) => {
                    let text = format!("{to} is elsewhere, and the node does not forward");
                    let text = format!("{text} (net.ipv6.conf.all.forwarding)");
                    self.hops.push(Hop::dropped(NODE, "route", text));
                    return;
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
                    let why = match error.errno() {
                        Errno::EXDEV | Errno::EINVAL => self.refused_source(source, input),
                        errno => refusal(errno),
                    };
                    let text = format!("no way to {to}: {why}");
                    self.hops.push(Hop::dropped(NODE, "route", text));
                    return;
                }
            }
        }
        self.rules(NODE, after);
        self.legacy(late);
    }

    /// Why the node takes no packet from `source` that comes in by the interface with this index.
    fn refused_source(&self, source: IpAddr, input: u32) -> &'static str {
        let mut all = self.survey.node().interfaces.iter();
        if all.any(|it| it.addresses.iter().any(|it| it.address.ip() == source)) {
            return "the source is an address of the node";
        }
        let name = self.interface(Some(0), Some(input)).map(|it| &it.link.name);
        let filters = |name: &str| {
            let key = netlink::sysctl::interface_key("ipv4", name, "rp_filter");
            netlink::sysctl::read(&key).is_ok_and(|it| it != "0")
        };
        if filters("all") || name.is_some_and(|it| filters(it)) {
            "the source must not come in there (rp_filter)"
        } else {
            "the source is not one that a host has"
        }
    }

    /// Whether the node forwards IPv6 that comes in by the interface with this index: the setting of all
    /// or, since Linux 6.17, that of the interface.
    fn forwards_ipv6(&self, input: u32) -> bool {
        let on = |key: &str| netlink::sysctl::read(key).is_ok_and(|it| it == "1");
        let name = self.interface(Some(0), Some(input)).map(|it| &it.link.name);
        on("net/ipv6/conf/all/forwarding")
            || name.is_some_and(|it| {
                on(&netlink::sysctl::interface_key(
                    "ipv6",
                    it,
                    "force_forwarding",
                ))
            })
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
            let is_dropped = |it: &&Step| it.verdict == Verdict::Drop;
            let question = followed.questions.iter().find(is_dropped);
            let why = question.and_then(|it| self.step_text(it));
            match why {
                Some(why) => self.hops.insert(
                    at + 1,
                    Hop::dropped(NODE, "rule", format!("the pod's question for it: {why}")),
                ),
                None => self.hops[at].passage = Passage::Dropped,
            }
        }
    }
}

/// The other end of an interface, where it is the node's.
fn host_end<'a>(survey: &'a Survey, interface: &Interface) -> Option<&'a Interface> {
    match interface.other_end {
        Some(OtherEnd::At(place)) if place.namespace == 0 => survey.interface(place),
        _ => None,
    }
}

/// Why a node does not forward.
fn refusal(errno: Errno) -> &'static str {
    match errno {
        Errno::EHOSTUNREACH => "it has none, or does not forward (net.ipv4.ip_forward)",
        Errno::EACCES => "a route prohibits it",
        errno => errno.desc(),
    }
}
