//! What rules do with the packet: the kernel reports it while the packet is on its way.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use packet_filter::trace::{Step, Trace, Verdict, Wanted};
use packet_filter::{Point, Socket, rule_texts};

use super::hop::Hop;
use super::legacy::Legacy;
use super::probe::{Answer, Probe};
use super::walk::{NODE, Walk};

/// What rules did with the packet: in the pod, and on the node.
#[derive(Default)]
pub struct Followed {
    pub pod: Vec<Step>,
    pub node: Vec<Step>,
    /// With the pod's questions for neighbours, on the node.
    pub questions: Vec<Step>,
    /// Of iptables-legacy on the node: before the decision about the route, and after it.
    pub legacy: [Vec<Hop>; 2],
}

impl Followed {
    /// Adds what rules of the node did. The first step shows whether it is a question of the pod.
    fn on_node(&mut self, heard: Vec<Step>, port: Option<u16>) {
        for step in heard {
            let is_followed = |it: &Step| it.packet == step.packet;
            if step.is_question || self.questions.iter().any(is_followed) {
                self.questions.push(step)
            } else {
                self.node.push(step)
            }
        }
        keep_one(&mut self.node, port);
    }
}

impl Walk<'_> {
    /// Sends the packet while the kernel reports what rules do with it.
    pub fn send(&mut self, wanted: &Wanted, patience: Duration) -> Result<(Followed, Answer)> {
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
        let (probe, mut answer) = Probe::send(self.origin, self.target)?;
        let until = Instant::now() + patience;
        let (mut followed, mut has_gaps) = (Followed::default(), false);
        loop {
            let mut heard = |trace: &Option<Trace>| match trace.as_ref().map(Trace::steps) {
                None => Ok(Vec::new()),
                // What comes after is still heard.
                Some(Err(Errno::ENOBUFS)) => {
                    has_gaps = true;
                    Ok(Vec::new())
                }
                Some(steps) => steps.context("hear what rules do with the packet"),
            };
            followed.on_node(heard(&on_node)?, probe.port);
            followed.pod.extend(heard(&in_pod)?);
            keep_one(&mut followed.pod, probe.port);
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
                if has_gaps {
                    let text = "some rules are missing here: the kernel reported too many at once";
                    self.hops.push(Hop::on(NODE, "rule", text));
                }
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

    /// What rules did, but for those after which nothing is different.
    pub fn rules(&mut self, at: &str, steps: &[Step]) {
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
            let Some(text) = self.step_text(step) else {
                continue;
            };
            let hop = match step.verdict {
                Verdict::Drop => Hop::dropped(at, "rule", text),
                _ => Hop::on(at, "rule", text),
            };
            self.hops.push(hop);
        }
    }

    /// The rule or policy of a step; `None` if nothing is different after it.
    pub fn step_text(&mut self, step: &Step) -> Option<String> {
        let verdict = match &step.verdict {
            Verdict::Drop => "drop".to_owned(),
            Verdict::Queue => "to a program (queue)".to_owned(),
            Verdict::Accept if step.rule.is_some() => "accept".to_owned(),
            Verdict::Enter(chain) => format!("on in {chain}"),
            _ => return None,
        };
        let chain = format!("{} {} {}", step.family, step.table, step.chain);
        Some(match step.rule {
            Some(handle) => match self.rule_text(step, handle) {
                Some(rule) => format!("{chain}: {rule}"),
                None => format!("{chain}: rule {handle}: {verdict}"),
            },
            None => format!("{chain}: policy {verdict}"),
        })
    }

    fn rule_text(&mut self, step: &Step, handle: u64) -> Option<String> {
        let key = [&step.family, &step.table, &step.chain].map(Clone::clone);
        let texts = self
            .texts
            .entry(key)
            .or_insert_with(|| rule_texts(&step.family, &step.table, &step.chain));
        texts.get(&handle).cloned()
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
