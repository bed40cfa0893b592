//! The points of a sweep and their results, on disk if the sweep is to be continued later.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;
use std::sync::Mutex;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::strike::Deed;
use crate::sweep::{Crew, Point, Sweep, Tally, Verb};

/// The points of a sweep, and the results of those that have run.
pub struct Journal {
    file: Option<PathBuf>,
    /// All points.
    pub points: Vec<Point>,
    done: BTreeMap<usize, Tally>,
}

impl Journal {
    /// Reads what `FAULTS_JOURNAL` has of this sweep; an empty one if there is nothing.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn open(name: &str) -> Result<Self> {
        let mut journal = Self {
            file: None,
            points: Vec::new(),
            done: BTreeMap::new(),
        };
        let Some(dir) = std::env::var_os("FAULTS_JOURNAL").map(PathBuf::from) else {
            return Ok(journal);
        };
        fs::create_dir_all(&dir)?;
        let file = dir.join(format!("{}.jsonl", name.replace([' ', ','], "-")));
        let text = if file.exists() {
            fs::read_to_string(&file)?
        } else {
            String::new()
        };
        let mut lines = text.lines();
        if let Some(plan) = lines.next() {
            let plan: Vec<Value> = serde_json::from_str(plan).context("read the plan")?;
            journal.points = plan.iter().map(Point::parse).collect::<Result<_>>()?;
        }
        for line in lines {
            // The last one may have been cut off.
            if let Ok(done) = serde_json::from_str::<Value>(line)
                && let Some(number) = done[0].as_u64()
            {
                journal.done.insert(number as usize, Tally::parse(&done[1]));
            }
        }
        journal.file = Some(file);
        Ok(journal)
    }

    /// Sets the points, without results.
    ///
    /// # Errors
    /// When that cannot be written.
    pub fn plan(&mut self, points: Vec<Point>) -> Result<()> {
        let plan: Vec<_> = points.iter().map(|it| it.encode()).collect();
        self.points = points;
        match &self.file {
            Some(file) => fs::write(file, format!("{}\n", json!(plan))).context("write the plan"),
            None => Ok(()),
        }
    }

    /// Runs the points that have no result yet.
    ///
    /// # Errors
    /// When it cannot be written down.
    pub fn go_on(&mut self, sweep: &Sweep, crew: &Crew) -> Result<()> {
        let all = 0..self.points.len();
        let left: Vec<usize> = all.filter(|it| !self.done.contains_key(it)).collect();
        let points: Vec<Point> = left.iter().map(|&it| self.points[it]).collect();
        let mut file = match &self.file {
            Some(file) => Some(File::options().append(true).open(file)?),
            None => None,
        };
        // A line that was cut off ends here.
        if let Some(file) = &mut file {
            writeln!(file)?;
        }
        let written = Mutex::new((file, &mut self.done));
        sweep.play(crew, &points, |at, tally| {
            let mut written = written.lock().expect("a worker panicked");
            if let Some(file) = &mut written.0 {
                let line = json!([left[at], tally.encode()]);
                writeln!(file, "{line}").expect("write the journal");
            }
            written.1.insert(left[at], tally);
        });
        Ok(())
    }

    /// How many points have no result.
    pub fn left(&self) -> usize {
        self.points.len() - self.done.len()
    }

    /// The sum of all results.
    pub fn total(&self) -> Tally {
        let mut total = Tally::default();
        self.done.values().for_each(|it| total.add(it.clone()));
        total
    }

    /// For people: a line for each accident of each verb, with its findings.
    pub fn lines(&self, name: &str) -> Vec<String> {
        let kind = |point: &Point| (point.verb, point.strike.deed.with(0));
        let kinds: BTreeSet<(Verb, Deed)> = self.points.iter().map(kind).collect();
        let mut lines = Vec::new();
        for (verb, deed) in kinds {
            let mut tally = Tally::default();
            let (mut all, mut done) = (0, 0);
            for (at, point) in self.points.iter().enumerate() {
                if kind(point) == (verb, deed) {
                    all += 1;
                    if let Some(it) = self.done.get(&at) {
                        done += 1;
                        tally.add(it.clone());
                    }
                }
            }
            lines.push(format!(
                "{name:34} {verb:5?} {deed:?}: {done} of {all} points: {} accidents, {} missed, {} harmless, {} aborted, {} findings",
                tally.points,
                tally.missed,
                tally.harmless,
                tally.aborted,
                tally.findings.len(),
            ));
            lines.extend(tally.findings.iter().map(|it| format!("  {it}")));
        }
        lines
    }
}
