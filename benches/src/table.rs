//! The table of verbs: every side in turn, pair by pair.

use std::collections::BTreeMap;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::job::{Job, Verb};
use crate::orphans;
use crate::results::Row;
use crate::side::{Attachment, Programs, Side, Stage};
use crate::stats::{Ratio, Sample};

const SIDES: [Side; 5] = [
    Side::Podwire,
    Side::Go,
    Side::Other,
    Side::Floor,
    Side::Batch,
];

/// The measurements of the rounds.
#[derive(Default)]
struct Seen {
    /// Milliseconds by verb and side, one for each round.
    times: BTreeMap<(Verb, Side), Vec<f64>>,
    /// The verbs that the peer refused, with its errors.
    refused: BTreeMap<Verb, String>,
}

/// Measures a job: `warmup` rounds that are not counted, then `rounds`.
///
/// # Errors
/// When a plugin fails.
pub fn measure(job: Job, programs: &Programs, warmup: usize, rounds: usize) -> Result<Vec<Row>> {
    let mut stages = Vec::new();
    for side in SIDES {
        if let Some(stage) = Stage::new(side, job, programs)? {
            let pod = stage.pod(0)?;
            stages.push((stage, pod));
        }
    }
    let mut seen = Seen::default();
    for round in 0..warmup + rounds {
        if round == warmup {
            seen = Seen::default();
        }
        one_round(job, &mut stages, &mut seen).with_context(|| format!("measure {}", job.title))?;
        next_order(&mut stages, round);
    }
    Ok(job
        .verbs()
        .iter()
        .map(|verb| row(job, *verb, &seen))
        .collect())
}

/// The order of the sides after `round`: none always comes after the same other one, whose work the
/// machine may not have finished.
pub fn next_order<T>(sides: &mut [T], round: usize) {
    sides.rotate_left(1);
    if !round.is_multiple_of(2) {
        sides.reverse();
    }
}

fn one_round(job: Job, stages: &mut [(Stage, Attachment)], seen: &mut Seen) -> Result<()> {
    for (stage, pod) in stages {
        for verb in job.verbs() {
            let taken = match stage.perform(*verb, pod) {
                Err(why) if stage.may_refuse(*verb) => {
                    if stage.side == Side::Go {
                        seen.refused.insert(*verb, why.root_cause().to_string());
                    }
                    None
                }
                taken => taken?,
            };
            settle(*verb)?;
            if let Some(taken) = taken {
                let times = seen.times.entry((*verb, stage.side)).or_default();
                times.push(millis(taken.iter().sum()));
            }
        }
    }
    Ok(())
}

/// Waits for the end of the work that a call has left to other processes, so that it does not slow
/// the next call. (Storms do not wait.)
///
/// # Errors
/// When the orphans cannot be waited for.
pub fn settle(verb: Verb) -> Result<()> {
    orphans::wait()?;
    if verb == Verb::Del {
        // The kernel frees what was deleted after two or three jiffies.
        sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn row(job: Job, verb: Verb, seen: &Seen) -> Row {
    let of = |side| {
        seen.times
            .get(&(verb, side))
            .map_or(&[] as &[f64], Vec::as_slice)
    };
    let sampled = |side| Some((side, Sample::of(of(side))?));
    Row {
        job: job.key.to_owned(),
        title: job.title.to_owned(),
        verb,
        refused: seen.refused.get(&verb).cloned(),
        times: SIDES.into_iter().filter_map(sampled).collect(),
        faster: Ratio::of(of(Side::Go), of(Side::Podwire)),
        than_other: Ratio::of(of(Side::Other), of(Side::Podwire)),
        over_floor: Ratio::of(of(Side::Podwire), of(Side::Floor)),
    }
}

/// As the page has it.
pub fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
