//! The resources that the suites use: disk, memory, system calls, programs.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::job::{Job, Verb};
use crate::process::{self, Call, Done};
use crate::results::{Cost, Footprint};
use crate::side::{Attachment, Programs, Side, Stage};
use crate::{orphans, trace};

const SIDES: [Side; 3] = [Side::Podwire, Side::Go, Side::Floor];

/// Looks at the installed programs, and at single calls of these jobs.
///
/// # Errors
/// When a plugin fails.
pub fn measure(jobs: &[Job], programs: &Programs) -> Result<Footprint> {
    let mut calls = Vec::new();
    for job in jobs {
        let of_job = costs(*job, programs);
        calls.extend(of_job.with_context(|| format!("what {} takes", job.title))?);
    }
    Ok(Footprint {
        sizes: sizes(programs)?,
        calls,
    })
}

fn sizes(programs: &Programs) -> Result<Vec<(String, u64, Option<u64>)>> {
    let mut sizes = Vec::new();
    let dir = fs::read_dir(&programs.podwire).context("list the installed programs")?;
    for entry in dir {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let peer = size(&programs.go.join(&name));
        sizes.push((name, entry.metadata()?.len(), peer));
    }
    sizes.sort();
    Ok(sizes)
}

fn size(file: &Path) -> Option<u64> {
    fs::metadata(file).ok().map(|file| file.len())
}

fn costs(job: Job, programs: &Programs) -> Result<Vec<Cost>> {
    let mut costs: Vec<Cost> = job
        .verbs()
        .iter()
        .map(|verb| Cost::none(job, *verb))
        .collect();
    for side in SIDES {
        let Some(stage) = Stage::new(side, job, programs)? else {
            continue;
        };
        let mut pod = stage.pod(0)?;
        for look in [Look::Warm, Look::Trace, Look::Memory] {
            for cost in &mut costs {
                match look.at(&stage, &mut pod, cost, programs) {
                    Err(_) if stage.may_refuse(cost.verb) => {}
                    result => result?,
                }
            }
        }
    }
    Ok(costs)
}

/// What is recorded in a round of verbs.
#[derive(Clone, Copy)]
enum Look {
    /// Nothing: the extra cost of the first pod of a node is not measured.
    Warm,
    /// System calls and programs.
    Trace,
    /// The most memory.
    Memory,
}

impl Look {
    fn at(
        self,
        stage: &Stage,
        pod: &mut Attachment,
        cost: &mut Cost,
        programs: &Programs,
    ) -> Result<()> {
        match self {
            Look::Warm => drop(stage.perform(cost.verb, pod)?),
            Look::Trace => {
                let seen = traced(stage, cost.verb, pod)?;
                cost.system_calls.insert(stage.side, seen.system_calls);
                cost.programs.insert(stage.side, seen.programs);
            }
            Look::Memory => {
                let peak = peak(stage, cost.verb, pod, programs)?;
                cost.memory.insert(stage.side, peak);
            }
        }
        Ok(())
    }
}

impl Cost {
    fn none(job: Job, verb: Verb) -> Self {
        Self {
            title: job.title.to_owned(),
            verb,
            memory: BTreeMap::new(),
            system_calls: BTreeMap::new(),
            programs: BTreeMap::new(),
        }
    }
}

/// All programs of a verb together.
fn traced(stage: &Stage, verb: Verb, pod: &mut Attachment) -> Result<trace::Trace> {
    let mut all = trace::Trace::default();
    stage.drive(verb, pod, |call| {
        let file = trace::file()?;
        let done = in_the_end(stage, trace::of_everything(&call, file.path()));
        all += trace::read(file.path())?;
        done
    })?;
    Ok(all)
}

/// The most that one program of a verb held, KiB.
fn peak(stage: &Stage, verb: Verb, pod: &mut Attachment, programs: &Programs) -> Result<u64> {
    let mut most = 0;
    stage.drive(verb, pod, |call| {
        let done = in_the_end(stage, call.by(&programs.floor, &["peak"]))?;
        let (_, peak) = done
            .stderr
            .rsplit_once("peak ")
            .context("no peak was printed")?;
        most = most.max(peak.trim().parse()?);
        Ok(done)
    })?;
    Ok(most)
}

fn in_the_end(stage: &Stage, call: Call) -> Result<Done> {
    stage.node.run(move || {
        let done = process::run(call);
        orphans::wait()?;
        done
    })
}
