//! What was promised, and whether it was met.

use crate::job::Verb;
use crate::plot::thousands;
use crate::results::{Curve, Results};
use crate::side::Side;
use crate::stats::Ratio;

/// A promise and what was measured.
#[derive(Clone, Debug)]
pub struct Target {
    /// What was promised.
    pub what: String,
    /// The promise in figures.
    pub promised: String,
    /// The figure that was measured; `None` if it was not measured.
    pub found: Option<String>,
    /// Whether it holds.
    pub met: bool,
}

/// At least so many times faster than the Go plugins, by job and verb.
const VERBS: [(&str, Verb, f64); 19] = [
    ("bridge-masq", Verb::Add, 8.0),
    ("bridge-masq-aged", Verb::Add, 8.0),
    ("bridge-masq", Verb::Del, 25.0),
    ("bridge", Verb::Add, 3.5),
    ("bridge", Verb::Del, 5.0),
    ("bridge-masq-portmap", Verb::Add, 9.0),
    ("bridge-masq-portmap", Verb::Del, 6.0),
    ("podman", Verb::Add, 10.0),
    ("podman", Verb::Del, 15.0),
    ("ptp", Verb::Add, 4.0),
    ("ptp", Verb::Del, 10.0),
    ("bandwidth", Verb::Add, 2.5),
    ("bandwidth", Verb::Del, 2.5),
    ("tuning", Verb::Add, 2.5),
    ("tuning", Verb::Del, 2.5),
    ("sbr", Verb::Add, 2.5),
    ("sbr", Verb::Del, 2.5),
    ("vlan", Verb::Add, 2.5),
    ("vlan", Verb::Del, 2.5),
];

/// The same beside many others, by curve.
const CURVES: [(&str, usize, f64); 8] = [
    ("chain-add", 5_000, 60.0),
    ("chain-del", 5_000, 15.0),
    ("portmap-add", 5_000, 60.0),
    ("portmap-del", 5_000, 15.0),
    ("pods-bridge-add", 250, 4.5),
    ("pods-bridge-masq-add", 250, 8.0),
    ("pods-bridge-add", 1_000, 6.0),
    ("pods-bridge-masq-add", 1_000, 12.0),
];

/// At most so many times as long as on an empty node, by curve.
const GROWTHS: [(&str, usize, f64); 4] = [
    ("portmap-del", 5_000, 1.3),
    ("chain-del", 5_000, 1.3),
    ("pods-bridge-add", 1_000, 2.2),
    ("pods-bridge-masq-add", 1_000, 2.2),
];

/// At most so many times the floor, by curve.
const NEAR_FLOOR: [(&str, usize, f64); 4] = [
    ("pods-bridge-add", 250, 1.4),
    ("pods-bridge-masq-add", 250, 1.4),
    ("pods-bridge-add", 1_000, 1.5),
    ("pods-bridge-masq-add", 1_000, 1.5),
];

/// At least so many times faster than the Go plugins, by pods at once.
const STORMS: [(usize, Verb, f64); 4] = [
    (50, Verb::Add, 8.0),
    (50, Verb::Del, 15.0),
    (500, Verb::Add, 9.0),
    (500, Verb::Del, 15.0),
];
/// The storm in which CPU time is compared with the floor's, and how many times that it may be.
const CPU: (usize, f64) = (500, 1.6);

/// The size that a program may have, in bytes, on average of the installed suite.
const SIZE: u64 = 2_800_000;

/// At most so many times the floor, on the aged file system.
const AGED: f64 = 1.15;

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
    let curve = |key: &str| results.curves.iter().find(|curve| curve.key == key);
    let beside = |key: &str, count| {
        let curve: Option<&Curve> = curve(key);
        let among = curve.map_or("others", |it| it.among.as_str());
        let title = curve.map_or(key, |it| it.title.as_str());
        format!("{title}, {} {among}", thousands(count))
    };
    for (key, count, least) in CURVES {
        let found = curve(key).and_then(|it| it.faster(count));
        targets.push(times_faster(beside(key, count), least, found));
    }
    for (key, count, most) in NEAR_FLOOR {
        let found = curve(key).and_then(|it| it.over_floor(count));
        let found = found.map(|it| it.median);
        targets.push(at_most(beside(key, count), most, "the floor", found));
    }
    for (key, count, most) in GROWTHS {
        let found = curve(key).and_then(|it| it.growth(Side::Podwire, count));
        targets.push(at_most(beside(key, count), most, "that at none", found));
    }
    let storm = |pods, verb| {
        let mut storms = results.storms.iter();
        storms.find(|it| (it.job.as_str(), it.pods, it.verb) == ("bridge-masq", pods, verb))
    };
    let at_once = |pods, verb: Verb| format!("{pods} pods at once, ipMasq, all {}", verb.name());
    for (pods, verb, least) in STORMS {
        let found = storm(pods, verb).and_then(|it| it.faster);
        targets.push(times_faster(at_once(pods, verb), least, found));
    }
    for verb in [Verb::Add, Verb::Del] {
        let (pods, most) = CPU;
        let cpu = |side| Some(storm(pods, verb)?.sides.get(&side)?.cpu);
        let found = cpu(Side::Podwire).zip(cpu(Side::Floor));
        let found = found.map(|(ours, floor)| ours / floor);
        let what = format!("{}: CPU time", at_once(pods, verb));
        targets.push(at_most(what, most, "the floor", found));
    }
    let aged = results.row("host-local-aged", Verb::Add);
    targets.push(at_most(
        "host-local, aged file system, ADD".to_owned(),
        AGED,
        "the floor",
        aged.and_then(|row| row.over_floor).map(|it| it.median),
    ));
    targets.push(size(results));
    targets.extend(moonshots(results));
    targets
}

fn at_most(what: String, most: f64, of: &str, found: Option<f64>) -> Target {
    Target {
        what,
        promised: format!("≤ {most} × {of}"),
        met: found.is_some_and(|ratio| ratio <= most),
        found: found.map(|ratio| format!("{ratio:.2} ×")),
    }
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
    let sizes = &results.footprint.sizes;
    let total: u64 = sizes.iter().map(|(_, size, _)| size).sum();
    let average = total / (sizes.len() as u64).max(1);
    Target {
        what: "a program of the installed suite, on average".to_owned(),
        promised: format!("< {:.1} MB", megabytes(SIZE)),
        met: average < SIZE,
        found: Some(format!("{:.1} MB", megabytes(average))),
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
        let what = format!("moonshot: {}, {}", row.title, verb.name());
        Some(at_most(what, MOONSHOT, "the floor", Some(ratio)))
    });
    judged.collect()
}

/// Converts bytes.
pub fn megabytes(bytes: u64) -> f64 {
    // Sizes of programs fit an f64 exactly.
    #[allow(clippy::cast_precision_loss)]
    let bytes = bytes as f64;
    bytes / 1e6
}
