//! Jobs that are measured separately: on Debian's kernel in the virtual machine (`benches/vm`), or
//! again after a change.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::job::{self, Job};
use crate::machine;
use crate::results::{Addition, Machine, Results};
use crate::side::Programs;

/// The prefix of the line with the figures. On a console, the output has other lines, too.
const MARK: &str = "figures: ";

/// The jobs with these keys.
///
/// # Errors
/// No job has a key.
pub fn named(keys: &[String]) -> Result<Vec<Job>> {
    let all = || job::TABLE.into_iter().chain(job::LINKS);
    let find = |key: &String| all().find(|job| job.key == key);
    let find = |key| find(key).with_context(|| format!("no job is called {key}"));
    keys.iter().map(find).collect()
}

/// Prints figures as [`read`] finds them again.
///
/// # Errors
/// They cannot be encoded.
#[allow(clippy::print_stdout)]
pub fn print(addition: &Addition) -> Result<()> {
    println!("{MARK}{}", serde_json::to_string(addition)?);
    Ok(())
}

/// The figures in a file with the output of a run.
///
/// # Errors
/// It has no figures, or figures of another version.
pub fn read(file: &Path) -> Result<Addition> {
    let text = fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
    let mut lines = text.lines();
    let figures = lines.find_map(|line| line.strip_prefix(MARK));
    let figures = figures.with_context(|| format!("no figures in {}", file.display()))?;
    Ok(serde_json::from_str(figures)?)
}

/// Adds what was measured to the results. A guest does not know the commit and the packages of its
/// programs: they are those of this machine.
///
/// # Errors
/// A program that describes this machine cannot be executed.
pub fn add(results: &mut Results, mut addition: Addition, programs: &Programs) -> Result<()> {
    ensure!(!addition.verbs.is_empty(), "there are no figures");
    let here = machine::describe(programs)?;
    if !addition.machine.is_like(&here) {
        addition.machine = Machine {
            kernel: addition.machine.kernel,
            cpus: addition.machine.cpus,
            cpu: addition.machine.cpu,
            state: addition.machine.state,
            ..here
        };
    }
    results.add(addition);
    Ok(())
}
