//! Many pods at once, as when a node comes up or is drained.

use std::collections::BTreeMap;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::job::{Job, Verb};
use crate::process::{self, Call};
use crate::results::{Storm, Weather};
use crate::side::{Attachment, Programs, Side, Stage};
use crate::stats::{Ratio, Sample, median};
use crate::table::{millis, next_order};
use crate::trace;

const SIDES: [Side; 4] = [Side::Podwire, Side::Go, Side::Other, Side::Floor];
const VERBS: [Verb; 2] = [Verb::Add, Verb::Del];

/// The measurements of a verb on one side.
#[derive(Default)]
struct Seen {
    totals: Vec<f64>,
    settled: Vec<f64>,
    pods: Vec<f64>,
    cpu: Vec<f64>,
    programs: Option<usize>,
    failed: usize,
}

/// Pods of the largest storm in which programs are counted: strace slows them all.
const COUNTED: usize = 50;

/// How many storms podwire and the floor have for each storm of the Go plugins, which takes a minute
/// with 500 pods.
const QUICK: usize = 3;

/// Measures storms of `pods` pods, `rounds` of the Go plugins and [`QUICK`] times as many of the other
/// sides, the first of them in pairs. If there are few pods, one more storm counts the programs.
///
/// # Errors
/// When a side cannot be prepared, or a program hangs.
pub fn measure(job: Job, programs: &Programs, pods: usize, rounds: usize) -> Result<Vec<Storm>> {
    let mut stages = Vec::new();
    for side in SIDES {
        if let Some(stage) = Stage::new(side, job, programs)? {
            ensure!(stage.steps(Verb::Add) == 1, "a storm is of one plugin");
            let pods: Result<Vec<_>> = (0..pods).map(|number| stage.pod(number)).collect();
            stages.push((stage, pods?));
        }
    }
    let mut seen: BTreeMap<(Verb, Side), Seen> = BTreeMap::new();
    for round in 0..QUICK * rounds {
        let is_quick = |side| matches!(side, Side::Podwire | Side::Floor);
        let present = |(stage, _): &&mut (Stage, _)| round < rounds || is_quick(stage.side);
        for (stage, pods) in stages.iter_mut().filter(present) {
            for verb in VERBS {
                let seen = seen.entry((verb, stage.side)).or_default();
                blow(stage, pods, verb, seen)?;
            }
        }
        next_order(&mut stages, round);
    }
    let counted = stages.iter_mut().filter(|_| pods <= COUNTED);
    for (stage, pods) in counted {
        for verb in VERBS {
            let seen = seen.entry((verb, stage.side)).or_default();
            seen.programs = Some(count(stage, pods, verb)?);
        }
    }
    drop(stages);
    // The kernel removes namespaces later, each of them for milliseconds.
    sleep(u32::try_from(pods)? * Duration::from_millis(10));
    Ok(VERBS.map(|verb| storm(job, pods, verb, &seen)).into())
}

fn blow(stage: &Stage, pods: &mut [Attachment], verb: Verb, seen: &mut Seen) -> Result<()> {
    let calls = calls(stage, pods, verb)?;
    let (done, total, settled, cpu) = stage.node.run(move || {
        let start = Instant::now();
        let (done, total) = process::storm(calls)?;
        let cpu: Duration = done.iter().map(|done| done.cpu).sum();
        let cpu = cpu + crate::orphans::wait()?;
        Ok((done, total, start.elapsed(), cpu))
    })?;
    seen.totals.push(millis(total));
    seen.settled.push(millis(settled));
    seen.cpu.push(millis(cpu));
    for (pod, done) in pods.iter_mut().zip(done) {
        seen.pods.push(millis(done.elapsed));
        if done.succeeded {
            stage.keep_result(verb, pod, &done.stdout)?
        } else {
            seen.failed += 1;
            eprintln!(
                "{} of {} failed: {}",
                verb.name(),
                stage.side,
                done.printed()
            );
        }
    }
    calm(pods.len());
    Ok(())
}

/// The same under strace, not timed: how many programs were executed.
fn count(stage: &Stage, pods: &mut [Attachment], verb: Verb) -> Result<usize> {
    let traces: Vec<_> = pods.iter().map(|_| trace::file()).collect::<Result<_>>()?;
    let calls: Vec<Call> = calls(stage, pods, verb)?
        .into_iter()
        .zip(&traces)
        .map(|(call, trace)| trace::of_programs(&call, trace.path()))
        .collect();
    let done = stage.node.run(move || {
        let done = process::storm(calls);
        crate::orphans::wait()?;
        done
    });
    for (pod, done) in pods.iter_mut().zip(done?.0) {
        if done.succeeded {
            stage.keep_result(verb, pod, &done.stdout)?;
        }
    }
    calm(pods.len());
    let programs = traces
        .iter()
        .map(|trace| Ok(trace::read(trace.path())?.programs));
    programs.sum::<Result<usize>>().context("count programs")
}

fn calls(stage: &Stage, pods: &[Attachment], verb: Verb) -> Result<Vec<Call>> {
    pods.iter().map(|pod| stage.call(verb, 0, pod)).collect()
}

/// The kernel takes a while to free hundreds of links, and new pods send frames to all others for
/// seconds.
fn calm(pods: usize) {
    sleep(Duration::from_millis(200 + 4 * pods as u64));
}

fn storm(job: Job, pods: usize, verb: Verb, seen: &BTreeMap<(Verb, Side), Seen>) -> Storm {
    let totals = |side| {
        let seen = seen.get(&(verb, side));
        seen.map_or(&[] as &[f64], |seen| &seen.totals)
    };
    let weather = |side| {
        let seen: &Seen = seen.get(&(verb, side))?;
        let weather = Weather {
            total: Sample::of(&seen.totals)?,
            settled: median(&seen.settled)?,
            pod: Sample::of(&seen.pods)?,
            cpu: median(&seen.cpu)?,
            programs: seen.programs,
            failed: seen.failed,
        };
        Some((side, weather))
    };
    Storm {
        job: job.key.to_owned(),
        title: job.title.to_owned(),
        pods,
        verb,
        sides: SIDES.into_iter().filter_map(weather).collect(),
        faster: Ratio::of(totals(Side::Go), totals(Side::Podwire)),
        than_other: Ratio::of(totals(Side::Other), totals(Side::Podwire)),
    }
}
