//! The results of a run, as `docs/performance.json` has them: the page is written from it, and the
//! next run compares itself with it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::compare::Comparison;
use crate::job::Verb;
use crate::side::Side;
use crate::stats::{Ratio, Sample};

/// All results.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Results {
    /// Where and of what.
    pub machine: Machine,
    /// Whether it was a full run.
    pub full: bool,
    /// Jobs that were left out, because podwire has no such plugin yet.
    pub missing: Vec<String>,
    /// The table of verbs.
    pub verbs: Vec<Row>,
    /// Many pods at once.
    pub storms: Vec<Storm>,
    /// Sizes, memory, system calls.
    pub footprint: Footprint,
    /// Verbs among many others; a quick run has their ends only.
    pub curves: Vec<Curve>,
    /// The curves of the last full run, if this one was quick and on the same machine.
    pub earlier: Option<Earlier>,
    /// Jobs measured separately: on another kernel, or later.
    #[serde(default)]
    pub additions: Vec<Addition>,
    /// The comparison with the run before it, on the same machine.
    #[serde(default)]
    pub comparison: Option<Comparison>,
}

/// Jobs that were measured separately from the rest of the page.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Addition {
    /// Where and of what.
    pub machine: Machine,
    /// Their verbs.
    pub verbs: Vec<Row>,
}

/// Curves of another run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Earlier {
    /// Where and of what.
    pub machine: Machine,
    /// The curves.
    pub curves: Vec<Curve>,
}

/// The machine and the programs that were measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// The day.
    pub date: String,
    /// `uname -srm`.
    pub kernel: String,
    /// How many CPUs.
    pub cpus: usize,
    /// Which CPUs, as the kernel names them.
    pub cpu: String,
    /// The file systems that plugins kept their state on.
    pub state: String,
    /// podwire's version, the commit it was built from, and its C library.
    pub podwire: String,
    /// The version of the peer.
    pub go: String,
    /// The version of the other build of the peer.
    #[serde(default)]
    pub other: Option<String>,
    /// The programs that the peer executes, and iproute2.
    pub programs: Vec<String>,
}

impl Machine {
    /// Whether two runs can be compared: the same kernel on as many of the same CPUs.
    pub fn is_like(&self, other: &Self) -> bool {
        (&self.kernel, self.cpus, &self.cpu) == (&other.kernel, other.cpus, &other.cpu)
    }
}

/// A verb of a job.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Row {
    /// The job's key.
    pub job: String,
    /// Its name.
    pub title: String,
    /// What was asked.
    pub verb: Verb,
    /// How long each side took.
    pub times: BTreeMap<Side, Sample>,
    /// The error of Go.
    pub refused: Option<String>,
    /// How many times faster than Go.
    pub faster: Option<Ratio>,
    /// How many times faster than the other build of Go.
    #[serde(default)]
    pub than_other: Option<Ratio>,
    /// How many times the floor.
    pub over_floor: Option<Ratio>,
}

/// Many pods at once.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Storm {
    /// The job's key.
    pub job: String,
    /// Its name.
    pub title: String,
    /// How many pods.
    pub pods: usize,
    /// What was asked.
    pub verb: Verb,
    /// What it was for each side.
    pub sides: BTreeMap<Side, Weather>,
    /// How many times faster than Go, for all pods together.
    pub faster: Option<Ratio>,
    /// How many times faster than the other build of Go.
    #[serde(default)]
    pub than_other: Option<Ratio>,
}

/// A storm on one side.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Weather {
    /// From the first start to the last end, milliseconds.
    pub total: Sample,
    /// The same until the end of the processes that outlive the answers, milliseconds, median.
    pub settled: f64,
    /// Of single pods, milliseconds.
    pub pod: Sample,
    /// CPU time of all processes, milliseconds, median.
    pub cpu: f64,
    /// Programs executed.
    pub programs: Option<usize>,
    /// Pods for which it failed, of all storms.
    pub failed: usize,
}

/// The resources that the suites use.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Footprint {
    /// Bytes of each installed program of podwire, and of the peer's of the same name.
    pub sizes: Vec<(String, u64, Option<u64>)>,
    /// What one call takes.
    pub calls: Vec<Cost>,
}

/// What one call takes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Cost {
    /// The job's name.
    pub title: String,
    /// What was asked.
    pub verb: Verb,
    /// Most memory of any of its processes, KiB.
    pub memory: BTreeMap<Side, u64>,
    /// System calls of all its processes.
    pub system_calls: BTreeMap<Side, usize>,
    /// Programs executed.
    pub programs: BTreeMap<Side, usize>,
}

/// The time of a job beside more and more others.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Curve {
    /// Its name, which is that of its picture.
    pub key: String,
    /// Its title.
    pub title: String,
    /// What is counted.
    pub among: String,
    /// `ms` or `µs`.
    pub unit: String,
    /// The lines.
    pub lines: Vec<Line>,
}

/// A line of a curve.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Line {
    /// Whose.
    pub side: Side,
    /// What, where a side has more than one line.
    pub what: String,
    /// The number of others, and the time beside them.
    pub points: Vec<(usize, Sample)>,
    /// How many times faster podwire was in the same, at the same points.
    pub faster: Vec<(usize, Ratio)>,
    /// How many times faster than the other build of Go.
    #[serde(default)]
    pub than_other: Vec<(usize, Ratio)>,
    /// How many times the floor.
    #[serde(default)]
    pub over_floor: Vec<(usize, Ratio)>,
}

impl Curve {
    /// Podwire's ratio to Go at a point.
    pub fn faster(&self, at: usize) -> Option<Ratio> {
        let mut all = self.lines.iter().flat_map(|line| &line.faster);
        all.find(|(count, _)| *count == at).map(|(_, ratio)| *ratio)
    }

    /// How many times the floor podwire is at a point.
    pub fn over_floor(&self, at: usize) -> Option<Ratio> {
        let mut all = self.lines.iter().flat_map(|line| &line.over_floor);
        all.find(|(count, _)| *count == at).map(|(_, ratio)| *ratio)
    }

    /// How many times as long a side takes at a point as at none.
    pub fn growth(&self, side: Side, at: usize) -> Option<f64> {
        Some(self.median(side, at)? / self.median(side, 0)?)
    }

    /// How long a side takes at a point.
    pub fn median(&self, side: Side, at: usize) -> Option<f64> {
        let line = self.lines.iter().find(|line| line.side == side)?;
        let point = line.points.iter().find(|(count, _)| *count == at)?;
        Some(point.1.median)
    }

    /// Whether there is something to draw.
    pub fn is_drawn(&self) -> bool {
        self.lines.iter().any(|line| line.points.len() > 2)
    }
}

/// A ratio with its name, to compare and to judge.
#[derive(Clone, Debug)]
pub struct Named {
    /// What was compared.
    pub name: String,
    /// How.
    pub ratio: Ratio,
}

impl Results {
    /// All ratios to the Go plugins.
    pub fn ratios(&self) -> Vec<Named> {
        let mut all = Vec::new();
        let mut name = |name: String, ratio: Option<Ratio>| {
            all.extend(ratio.map(|ratio| Named { name, ratio }));
        };
        for row in &self.verbs {
            name(format!("{}, {}", row.title, row.verb.name()), row.faster);
        }
        for storm in &self.storms {
            let (pods, verb) = (storm.pods, storm.verb.name());
            name(
                format!("{}, {pods} at once, {verb}", storm.title),
                storm.faster,
            );
        }
        for curve in &self.curves {
            for line in &curve.lines {
                for (count, ratio) in &line.faster {
                    let what = &line.what;
                    let among = &curve.among;
                    let what = format!("{}{what}, {count} {among}", curve.title);
                    name(what, Some(*ratio));
                }
            }
        }
        all
    }

    /// A row of the table, or of a separate measurement.
    pub fn row(&self, job: &str, verb: Verb) -> Option<&Row> {
        let apart = self.additions.iter().flat_map(|it| &it.verbs);
        let mut rows = self.verbs.iter().chain(apart);
        rows.find(|row| row.job == job && row.verb == verb)
    }

    /// Replaces the addition of a machine like that of `new`.
    pub fn add(&mut self, new: Addition) {
        self.additions
            .retain(|it| !it.machine.is_like(&new.machine));
        self.additions.push(new);
    }

    /// The additions of other kernels: a run on this one has not measured their jobs.
    pub fn additions_elsewhere(&self, machine: &Machine) -> Vec<Addition> {
        let elsewhere = self
            .additions
            .iter()
            .filter(|it| !it.machine.is_like(machine));
        elsewhere.cloned().collect()
    }
}
