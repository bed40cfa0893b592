//! The cost of a verb beside more and more others.

use std::collections::BTreeMap;
use std::thread::sleep;
use std::time::Duration;

use anyhow::Result;

use crate::connect;
use crate::crowd;
use crate::job::{ADDRESS, BRIDGED, Job, MASQUERADED, PUBLISHED, Verb};
use crate::results::{Curve, Line};
use crate::side::{Attachment, Programs, Side, Stage};
use crate::stats::{Ratio, Sample};
use crate::table::{millis, next_order, settle};

const SIDES: [Side; 4] = [Side::Podwire, Side::Go, Side::Other, Side::Floor];

/// The counts of others, and the number of repetitions.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Published ports of others.
    pub ports: Vec<usize>,
    /// Addresses of others.
    pub addresses: Vec<usize>,
    /// Pods of others.
    pub pods: Vec<usize>,
    /// Rounds at each count.
    pub rounds: usize,
    /// The same beside other pods, where a round takes less time and the times differ more.
    pub pod_rounds: usize,
    /// TCP connections at each count.
    pub connections: usize,
}

/// After this number of new pods, the run waits for [`SOLICITATIONS`].
const MANY: usize = 100;
/// A pod solicits routers when it is new, and about 4, 12, 28, 60 and 124 seconds later (RFC 7559); a
/// bridge copies the frames to all ports. The sides get their pods one after the other, in some 20
/// seconds: after this time the youngest pod is past its fifth, and the oldest is long before its sixth.
const SOLICITATIONS: Duration = Duration::from_secs(62);

/// A side with the pod that is measured, and others.
struct Among {
    stage: Stage,
    pod: Attachment,
    others: usize,
    crowd: Vec<Attachment>,
}

/// All times at a count, in milliseconds: by verb, side, and program of the list
/// (the last value is all of them together).
type Times = BTreeMap<(Verb, Side, usize), Vec<f64>>;

/// Verbs of portmap, and of the list that it ends, beside published ports of others; and
/// connections to published ports.
///
/// # Errors
/// When a plugin fails.
pub fn published(programs: &Programs, plan: &Plan) -> Result<Vec<Curve>> {
    let among = "other published ports";
    let mut all = among_others(PUBLISHED, programs)?;
    let mut times = Vec::new();
    let mut connections = Vec::new();
    let mut wires = Vec::new();
    for side in &all {
        if [Side::Podwire, Side::Go].contains(&side.stage.side) {
            wires.push((side.stage.side, connect::Wire::new(&side.stage)?));
        }
    }
    for count in &plan.ports {
        for side in &mut all {
            crowd::publish(&side.stage, side.others..*count)?;
            side.others = *count;
        }
        times.push((*count, rounds(&mut all, plan.rounds)?));
        // The rounds have turned their order.
        let stage = |of: Side| all.iter().map(|it| &it.stage).find(|it| it.side == of);
        let pairs = wires.iter_mut();
        let mut pairs: Vec<_> = pairs
            .filter_map(|(side, wire)| Some((stage(*side)?, wire)))
            .collect();
        connections.push((*count, connect::measure(&mut pairs, plan.connections)?));
        // When a link is deleted, the kernel looks at all connections that it tracks.
        for side in &all {
            side.stage.forget_connections()?;
        }
    }
    let portmap = |verb: Verb, key: &str| {
        let title = format!("portmap {} of two ports", verb.name());
        curve(key, title, among, (verb, 1), &times)
    };
    let chain = |verb: Verb, key: &str| {
        let title = format!("bridge + ipMasq + portmap, {}", verb.name());
        curve(key, title, among, (verb, ALL), &times)
    };
    Ok(vec![
        portmap(Verb::Add, "portmap-add"),
        portmap(Verb::Del, "portmap-del"),
        chain(Verb::Add, "chain-add"),
        chain(Verb::Del, "chain-del"),
        connect::curve(&connections),
    ])
}

/// Verbs of host-local beside addresses of others.
///
/// # Errors
/// When a plugin fails.
pub fn held(programs: &Programs, plan: &Plan) -> Result<Vec<Curve>> {
    let among = "addresses held";
    let mut all = among_others(ADDRESS, programs)?;
    let mut times = Vec::new();
    for count in &plan.addresses {
        for side in &mut all {
            crowd::hold(&side.stage, side.others..*count)?;
            side.others = *count;
        }
        times.push((*count, rounds(&mut all, plan.rounds)?));
    }
    let one = |verb: Verb, key: &str| {
        let title = format!("host-local {}", verb.name());
        curve(key, title, among, (verb, ALL), &times)
    };
    Ok(vec![
        one(Verb::Add, "host-local-add"),
        one(Verb::Del, "host-local-del"),
    ])
}

/// Verbs of bridge, without and with masquerade, beside pods of others.
///
/// # Errors
/// When a plugin fails.
pub fn wired(programs: &Programs, plan: &Plan) -> Result<Vec<Curve>> {
    const JOBS: [Job; 2] = [BRIDGED, MASQUERADED];
    // The others have masquerade; their rules do not matter to a pod without.
    let mut all = among_others(MASQUERADED, programs)?;
    let mut times = JOBS.map(|_| Vec::new());
    for count in &plan.pods {
        let before = all.iter().map(|it| it.crowd.len()).sum::<usize>();
        for side in &mut all {
            let more = crowd::wire(&mut side.stage, side.others..*count)?;
            side.crowd.extend(more);
            side.others = *count;
        }
        if all.iter().map(|it| it.crowd.len()).sum::<usize>() > before + MANY {
            sleep(SOLICITATIONS);
        }
        for (job, times) in JOBS.iter().zip(&mut times) {
            for side in &mut all {
                side.stage.turn_to(*job);
            }
            times.push((*count, rounds(&mut all, plan.pod_rounds)?));
        }
    }
    let one = |job: &Job, verb: Verb, times: &[_]| {
        let key = format!("pods-{}-{}", job.key, verb.word());
        let title = format!("{}, {}", job.title, verb.name());
        curve(&key, title, "pods on the node", (verb, ALL), times)
    };
    let both =
        |(job, times): (&Job, &Vec<_>)| [Verb::Add, Verb::Del].map(|verb| one(job, verb, times));
    Ok(JOBS.iter().zip(&times).flat_map(both).collect())
}

fn among_others(job: Job, programs: &Programs) -> Result<Vec<Among>> {
    let mut all = Vec::new();
    for side in SIDES {
        if let Some(stage) = Stage::new(side, job, programs)? {
            let pod = stage.pod(0)?;
            all.push(Among {
                stage,
                pod,
                others: 0,
                crowd: Vec::new(),
            });
        }
    }
    Ok(all)
}

/// All programs of a list together.
const ALL: usize = usize::MAX;

/// One round that is not counted (the first call after others came reads what
/// they left), then `rounds`.
fn rounds(all: &mut [Among], rounds: usize) -> Result<Times> {
    let mut times = Times::new();
    for round in 0..=rounds {
        for Among { stage, pod, .. } in &mut *all {
            for verb in [Verb::Add, Verb::Del] {
                let taken = stage.perform(verb, pod)?.unwrap_or_default();
                settle(verb)?;
                let mut keep = |step, time| {
                    times
                        .entry((verb, stage.side, step))
                        .or_default()
                        .push(time)
                };
                if round > 0 {
                    keep(ALL, taken.iter().copied().map(millis).sum());
                    for (step, taken) in taken.into_iter().enumerate() {
                        keep(step, millis(taken));
                    }
                }
            }
        }
        next_order(all, round);
    }
    Ok(times)
}

fn curve(
    key: &str,
    title: String,
    among: &str,
    (verb, step): (Verb, usize),
    times: &[(usize, Times)],
) -> Curve {
    let of = |times: &Times, side| times.get(&(verb, side, step)).cloned().unwrap_or_default();
    let ratios = |above, below| -> Vec<(usize, Ratio)> {
        let ratio = |times| Ratio::of(&of(times, above), &of(times, below));
        let all = times.iter();
        all.filter_map(|(count, times)| Some((*count, ratio(times)?)))
            .collect()
    };
    let line = |side| {
        let line = Line {
            side,
            what: String::new(),
            points: times
                .iter()
                .filter_map(|(count, times)| Some((*count, Sample::of(&of(times, side))?)))
                .collect(),
            faster: Vec::new(),
            than_other: Vec::new(),
            over_floor: Vec::new(),
        };
        if side != Side::Podwire {
            return line;
        }
        Line {
            faster: ratios(Side::Go, side),
            than_other: ratios(Side::Other, side),
            over_floor: ratios(side, Side::Floor),
            ..line
        }
    };
    Curve {
        key: key.to_owned(),
        title,
        among: among.to_owned(),
        unit: "ms".to_owned(),
        lines: SIDES
            .map(line)
            .into_iter()
            .filter(|line| !line.points.is_empty())
            .collect(),
    }
}
