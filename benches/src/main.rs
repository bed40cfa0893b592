//! Measures podwire against the Go plugins and against the kernel's floor, in
//! namespaces of its own, and writes `docs/performance.md`.
//!
//! ```text
//! measure [--full | --smoke] [--out DIRECTORY]
//! ```
//!
//! `--full` measures the curves and takes more rounds; `--smoke` takes so few that
//! it only shows that the program runs. `$PODWIRE_BIN` (`bin`) and `$PODWIRE_PEER`
//! (`/usr/lib/cni`) are the directories of the two suites.

mod compare;
mod connect;
mod crowd;
mod curves;
mod effort;
mod footprint;
mod job;
mod machine;
mod node;
mod orphans;
mod page;
mod plot;
mod process;
mod results;
mod side;
mod stats;
mod storm;
mod table;
mod targets;
mod trace;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Error, Result, bail};

use crate::effort::Effort;
use crate::job::Job;
use crate::results::{Earlier, Machine, Results};
use crate::side::{Programs, Side, Stage};

fn main() -> Result<()> {
    let options = Options::parse()?;
    let earlier = read(&options.out.join("performance.json"))?;
    // Outside of what is hidden: state of plugins belongs on a disk.
    let work = tempfile::tempdir().context("make a directory for the run")?;
    let programs = Programs {
        podwire: plugins("PODWIRE_BIN", "bin")?,
        go: plugins("PODWIRE_PEER", "/usr/lib/cni")?,
        floor: std::env::current_exe()?.with_file_name("floor"),
        work: work.path().to_owned(),
    };
    let machine = machine::describe(&programs)?;
    // Hides the machine from this program and all that it starts. No thread has been started.
    sandbox::namespaces::enter().map_err(Error::msg)?;
    orphans::adopt()?;
    let start = Instant::now();
    let results = measure(machine, &programs, &options.effort, earlier.as_ref())?;
    eprintln!("measured in {} s", start.elapsed().as_secs());
    write(&options.out, &results, earlier.as_ref())
}

/// What the command line says.
struct Options {
    effort: Effort,
    out: PathBuf,
}

impl Options {
    fn parse() -> Result<Self> {
        use lexopt::prelude::*;
        let mut options = Self {
            effort: Effort::quick(),
            out: PathBuf::from("docs"),
        };
        let mut args = lexopt::Parser::from_env();
        while let Some(arg) = args.next()? {
            match arg {
                Long("full") => options.effort = Effort::full(),
                Long("smoke") => options.effort = Effort::smoke(),
                Long("out") => options.out = args.value()?.into(),
                _ => bail!("usage: measure [--full | --smoke] [--out DIRECTORY]"),
            }
        }
        Ok(options)
    }
}

fn plugins(variable: &str, default: &str) -> Result<PathBuf> {
    let dir = std::env::var_os(variable).map_or_else(|| default.into(), PathBuf::from);
    dir.canonicalize()
        .with_context(|| format!("no plugins in {}: see {variable}", dir.display()))
}

fn measure(
    machine: Machine,
    programs: &Programs,
    effort: &Effort,
    earlier: Option<&Results>,
) -> Result<Results> {
    let built = |job: &Job| !Stage::missing(Side::Podwire, *job, programs);
    let (jobs, missing): (Vec<Job>, Vec<Job>) = job::TABLE.into_iter().partition(built);
    let mut verbs = Vec::new();
    for job in jobs.iter().copied() {
        eprintln!("{}", job.title);
        verbs.extend(table::measure(job, programs, effort.warmup, effort.rounds)?);
    }
    let mut storms = Vec::new();
    for (job, pods, rounds) in &effort.storms {
        eprintln!("{}, {pods} pods at once", job.title);
        storms.extend(storm::measure(*job, programs, *pods, *rounds)?);
    }
    eprintln!("what it takes");
    let footprint = footprint::measure(&jobs, programs)?;
    eprintln!("among many others");
    let curves = curves::measure(programs, &effort.curves)?;
    let earlier = earlier
        .filter(|_| !effort.full)
        .and_then(last_full)
        .filter(|earlier| earlier.machine.is_like(&machine));
    Ok(Results {
        machine,
        full: effort.full,
        missing: missing.iter().map(|job| job.title.to_owned()).collect(),
        verbs,
        storms,
        footprint,
        curves,
        earlier,
    })
}

fn last_full(results: &Results) -> Option<Earlier> {
    match results.full {
        true => Some(Earlier {
            machine: results.machine.clone(),
            curves: results.curves.clone(),
        }),
        false => results.earlier.clone(),
    }
}

/// Results of an earlier run; none are there before the first.
fn read(file: &Path) -> Result<Option<Results>> {
    if !file.exists() {
        return Ok(None);
    }
    let text = fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
    match serde_json::from_str(&text) {
        Ok(results) => Ok(Some(results)),
        Err(why) => {
            eprintln!("{} is of another version: {why}", file.display());
            Ok(None)
        }
    }
}

fn write(out: &Path, results: &Results, earlier: Option<&Results>) -> Result<()> {
    let pictures = out.join(page::PICTURES);
    fs::create_dir_all(&pictures).with_context(|| format!("make {}", pictures.display()))?;
    for curve in results.curves.iter().filter(|curve| curve.is_drawn()) {
        let file = pictures.join(format!("{}.svg", curve.key));
        plot::draw(curve, &results.machine, &file)?;
    }
    let comparison = earlier.and_then(|earlier| compare::compare(earlier, results));
    let page = page::write(results, comparison.as_ref());
    fs::write(out.join("performance.md"), &page).context("write the page")?;
    let mut json = serde_json::to_string_pretty(results)?;
    json.push('\n');
    fs::write(out.join("performance.json"), json).context("write the figures")?;
    eprint!("{page}");
    Ok(())
}
