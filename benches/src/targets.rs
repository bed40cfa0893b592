//! What was promised, and whether it was met.

use crate::job::Verb;
use crate::results::Results;
use crate::side::Side;
use crate::stats::Ratio;

/// A promise and what was measured.
#[derive(Clone, Debug)]
pub struct Target {
    /// What was promised.
    pub what: String,
    /// The promise in figures.
    pub promised: String,
    /// What was found; `None` when it was not measured.
    pub found: Option<String>,
    /// Whether it holds.
    pub met: bool,
}

/// At least so many times faster than the Go plugins, by job and verb.
const VERBS: [(&str, Verb, f64); 6] = [
    ("bridge-masq", Verb::Add, 8.0),
    ("bridge-masq", Verb::Del, 25.0),
    ("bridge", Verb::Add, 3.5),
    ("bridge", Verb::Del, 5.0),
    ("bridge-masq-portmap", Verb::Add, 9.0),
    ("bridge-masq-portmap", Verb::Del, 6.0),
];

/// The same at 5,000 mappings, by curve.
const CURVES: [(&str, f64); 4] = [
    ("chain-add", 60.0),
    ("chain-del", 15.0),
    ("portmap-add", 60.0),
    ("portmap-del", 15.0),
];
const MAPPINGS: usize = 5_000;

/// The same for 50 pods at once.
const STORMS: [(&str, Verb, f64); 2] = [
    ("bridge-masq", Verb::Add, 8.0),
    ("bridge-masq", Verb::Del, 15.0),
];
const PODS: usize = 50;

/// Bytes that the installed suite may take.
const SIZE: u64 = 25_000_000;

/// Not promised but aimed at: so many times the floor.
const MOONSHOT: f64 = 1.5;

/// All promises.
pub fn judge(results: &Results) -> Vec<Target> {
    let mut targets = Vec::new();
    for (job, verb, least) in VERBS {
        let row = results.row(job, verb);
        let what = format!("{}, {}", row.map_or(job, |row| &row.title), verb.name());
        targets.push(times_faster(what, least, row.and_then(|row| row.faster)));
    }
    for (key, least) in CURVES {
        let curve = results.curves.iter().find(|curve| curve.key == key);
        let what = format!(
            "{}, {MAPPINGS} other ports",
            curve.map_or(key, |c| &c.title)
        );
        targets.push(times_faster(
            what,
            least,
            curve.and_then(|c| c.faster(MAPPINGS)),
        ));
    }
    for (job, verb, least) in STORMS {
        let mut storms = results.storms.iter();
        let storm = storms.find(|s| (s.job.as_str(), s.pods, s.verb) == (job, PODS, verb));
        let what = format!("{PODS} pods at once, ipMasq, all {}", verb.name());
        targets.push(times_faster(
            what,
            least,
            storm.and_then(|storm| storm.faster),
        ));
    }
    targets.push(size(results));
    targets.extend(moonshots(results));
    targets
}

fn times_faster(what: String, least: f64, found: Option<Ratio>) -> Target {
    Target {
        what,
        promised: format!("≥ {least} × faster"),
        met: found.is_some_and(|ratio| ratio.median >= least),
        found: found.map(|ratio| format!("{:.1} ×", ratio.median)),
    }
}

fn size(results: &Results) -> Target {
    let total: u64 = results
        .footprint
        .sizes
        .iter()
        .map(|(_, size, _)| size)
        .sum();
    Target {
        what: "the installed suite".to_owned(),
        promised: format!("< {} MB", SIZE / 1_000_000),
        met: total < SIZE,
        found: Some(format!("{:.1} MB", megabytes(total))),
    }
}

fn moonshots(results: &Results) -> Vec<Target> {
    let jobs = [
        ("bridge-masq", Verb::Add),
        ("bridge-masq", Verb::Del),
        ("bridge", Verb::Add),
        ("bridge", Verb::Del),
    ];
    let judged = jobs.into_iter().filter_map(|(job, verb)| {
        let row = results.row(job, verb)?;
        row.times.get(&Side::Floor)?;
        let ratio = row.over_floor?.median;
        Some(Target {
            what: format!("moonshot: {}, {}", row.title, verb.name()),
            promised: format!("≤ {MOONSHOT} × the floor"),
            met: ratio <= MOONSHOT,
            found: Some(format!("{ratio:.2} ×")),
        })
    });
    judged.collect()
}

/// Of bytes.
pub fn megabytes(bytes: u64) -> f64 {
    // Sizes of programs fit an f64 exactly.
    #[allow(clippy::cast_precision_loss)]
    let bytes = bytes as f64;
    bytes / 1e6
}
