//! Measures podwire against the Go plugins and against the kernel's floor, in
//! namespaces of its own, and writes `docs/performance.md`.
//!
//! ```text
//! measure [--full | --smoke] [--out DIRECTORY] [--go DIRECTORY] [--only PART]...
//! measure --job JOB... [--state DIRECTORY]
//! measure --add FILE [--out DIRECTORY]
//! ```
//!
//! `--full` measures the curves at more points and takes more rounds; `--smoke` takes so few rounds
//! that it only shows that the program runs. `$PODWIRE_BIN` (`bin`) and `$PODWIRE_PEER`
//! (`/usr/lib/cni`) are the directories of the two suites, `--go` that of another build of the Go
//! plugins. `--only` measures one of the parts `calls`, `aged`, `storms`, `footprint`, `ports`,
//! `addresses` and `pods`.
//!
//! `--job` measures only these jobs and prints their figures, with the state of plugins in `DIRECTORY`
//! instead of a file system of its own; `--add` adds figures that such a run has printed to the page.

mod apart;
mod compare;
mod connect;
mod crowd;
mod curves;
mod disk;
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

use anyhow::{Context, Error, Result, bail, ensure};

use crate::disk::Disk;
use crate::effort::Effort;
use crate::job::Job;
use crate::results::{Addition, Curve, Earlier, Footprint, Machine, Results, Row};
use crate::side::{Programs, Side, Stage};

fn main() -> Result<()> {
    let options = Options::parse()?;
    let earlier = read(&options.out.join("performance.json"))?;
    let programs = programs(&options)?;
    if let Some(file) = &options.add {
        let mut results = earlier.context("there is no page yet: make bench")?;
        apart::add(&mut results, apart::read(file)?, &programs)?;
        return write(&options.out, &results);
    }
    run(&options, programs, earlier.as_ref())
}

/// The programs of the sides. The directory for the state of plugins is set later.
fn programs(options: &Options) -> Result<Programs> {
    Ok(Programs {
        podwire: plugins("PODWIRE_BIN", "bin")?,
        go: plugins("PODWIRE_PEER", "/usr/lib/cni")?,
        other: options.other.clone(),
        floor: std::env::current_exe()?.with_file_name("floor"),
        state: PathBuf::new(),
    })
}

fn run(options: &Options, mut programs: Programs, earlier: Option<&Results>) -> Result<()> {
    // Outside of what is hidden: state of plugins belongs on a disk.
    let work = tempfile::tempdir().context("make a directory for the run")?;
    let mut machine = machine::describe(&programs)?;
    // Hides the machine's files from this program and all programs that it starts. No thread has
    // been started.
    sandbox::namespaces::enter().map_err(Error::msg)?;
    orphans::adopt()?;
    process::allow_many_files()?;
    let start = Instant::now();
    let fresh = match &options.state {
        Some(dir) => {
            programs.state.clone_from(dir);
            machine.state = dir.display().to_string();
            None
        }
        None => {
            let fresh = Disk::fresh(work.path())?;
            programs.state.clone_from(&fresh.dir);
            machine.state = fresh.describe();
            Some(fresh)
        }
    };
    let run = Run {
        programs,
        options,
        work: work.path(),
    };
    if !options.jobs.is_empty() {
        let verbs = run.calls(&apart::named(&options.jobs)?, &run.programs)?;
        return apart::print(&Addition { machine, verbs });
    }
    let mut results = run.measure(machine, earlier)?;
    results.comparison = earlier.and_then(|earlier| compare::compare(earlier, &results));
    drop(fresh);
    eprintln!("measured in {} s", start.elapsed().as_secs());
    write(&options.out, &results)
}

/// The options of the command line.
struct Options {
    effort: Effort,
    out: PathBuf,
    /// The directory of another build of the Go plugins.
    other: Option<PathBuf>,
    /// The parts to measure; all, if there are none.
    only: Vec<String>,
    /// The jobs to measure instead of the parts.
    jobs: Vec<String>,
    /// The directory for the state of plugins; a new file system, if there is none.
    state: Option<PathBuf>,
    /// A file with figures to add to the page, without measuring.
    add: Option<PathBuf>,
}

const USAGE: &str = "\
usage: measure [--full | --smoke] [--out DIRECTORY] [--go DIRECTORY] [--only PART]...
       measure --job JOB... [--state DIRECTORY]
       measure --add FILE [--out DIRECTORY]";

impl Options {
    fn parse() -> Result<Self> {
        use lexopt::prelude::*;
        let mut options = Self {
            effort: Effort::quick(),
            out: PathBuf::from("docs"),
            other: None,
            only: Vec::new(),
            jobs: Vec::new(),
            state: None,
            add: None,
        };
        let mut args = lexopt::Parser::from_env();
        while let Some(arg) = args.next()? {
            match arg {
                Long("full") => options.effort = Effort::full(),
                Long("smoke") => options.effort = Effort::smoke(),
                Long("out") => options.out = args.value()?.into(),
                Long("go") => {
                    let dir = PathBuf::from(args.value()?);
                    let found = dir.canonicalize();
                    options.other =
                        Some(found.with_context(|| format!("no plugins in {}", dir.display()))?);
                }
                Long("only") => {
                    let part = args.value()?.string()?;
                    ensure!(PARTS.contains(&part.as_str()), "no part is called {part}");
                    options.only.push(part);
                }
                Long("job") => options.jobs.push(args.value()?.string()?),
                Long("state") => options.state = Some(args.value()?.into()),
                Long("add") => options.add = Some(args.value()?.into()),
                _ => bail!(USAGE),
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

/// The parts of a run, in their order.
const PARTS: [&str; 7] = [
    "calls",
    "aged",
    "storms",
    "footprint",
    "ports",
    "addresses",
    "pods",
];

/// The settings of a run.
struct Run<'a> {
    programs: Programs,
    options: &'a Options,
    work: &'a Path,
}

impl Run<'_> {
    fn measure(&self, machine: Machine, earlier: Option<&Results>) -> Result<Results> {
        let effort = &self.options.effort;
        let earlier_page = earlier;
        let earlier = earlier
            .filter(|_| !effort.full)
            .and_then(last_full)
            .filter(|earlier| earlier.machine.is_like(&machine));
        let built = |job: &Job| !Stage::missing(Side::Podwire, *job, &self.programs);
        let (jobs, missing): (Vec<Job>, Vec<Job>) = job::TABLE.into_iter().partition(built);
        let mut results = Results {
            full: effort.full,
            missing: missing.iter().map(|job| job.title.to_owned()).collect(),
            verbs: Vec::new(),
            storms: Vec::new(),
            footprint: Footprint::default(),
            curves: Vec::new(),
            additions: earlier_page.map_or_else(Vec::new, |it| it.additions_elsewhere(&machine)),
            machine,
            earlier,
            comparison: None,
        };
        if self.has("calls") {
            results.verbs.extend(self.calls(&jobs, &self.programs)?);
        }
        if self.has("aged") {
            let aged = Disk::aged(self.work)?;
            let programs = Programs {
                state: aged.dir.clone(),
                ..self.programs.clone()
            };
            let text = format!("; where named so, {}", aged.describe());
            results.machine.state.push_str(&text);
            results.verbs.extend(self.calls(&job::AGED, &programs)?);
        }
        if self.has("storms") {
            for (job, pods, rounds) in &effort.storms {
                eprintln!("{}, {pods} pods at once", job.title);
                let storms = storm::measure(*job, &self.programs, *pods, *rounds)?;
                results.storms.extend(storms);
            }
        }
        if self.has("footprint") {
            eprintln!("what it takes");
            results.footprint = footprint::measure(&jobs, &self.programs)?;
        }
        for (part, measure) in CURVES {
            if self.has(part) {
                eprintln!("among many {part}");
                let curves = measure(&self.programs, &effort.curves)?;
                results.curves.extend(curves);
            }
        }
        Ok(results)
    }

    fn has(&self, part: &str) -> bool {
        let only = &self.options.only;
        only.is_empty() || only.iter().any(|it| it == part)
    }

    fn calls(&self, jobs: &[Job], programs: &Programs) -> Result<Vec<Row>> {
        let effort = &self.options.effort;
        let mut rows = Vec::new();
        for job in jobs {
            eprintln!("{}", job.title);
            rows.extend(table::measure(
                *job,
                programs,
                effort.warmup,
                effort.rounds,
            )?);
        }
        Ok(rows)
    }
}

type Measure = fn(&Programs, &curves::Plan) -> Result<Vec<Curve>>;

const CURVES: [(&str, Measure); 3] = [
    ("ports", curves::published),
    ("addresses", curves::held),
    ("pods", curves::wired),
];

fn last_full(results: &Results) -> Option<Earlier> {
    if results.full {
        Some(Earlier {
            machine: results.machine.clone(),
            curves: results.curves.clone(),
        })
    } else {
        results.earlier.clone()
    }
}

/// Results of an earlier run; `None` before the first one.
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

fn write(out: &Path, results: &Results) -> Result<()> {
    let pictures = out.join(page::PICTURES);
    fs::create_dir_all(&pictures).with_context(|| format!("make {}", pictures.display()))?;
    for curve in results.curves.iter().filter(|curve| curve.is_drawn()) {
        let file = pictures.join(format!("{}.svg", curve.key));
        plot::draw(curve, &results.machine, &file)?;
    }
    let page = page::write(results);
    fs::write(out.join("performance.md"), &page).context("write the page")?;
    let mut json = serde_json::to_string_pretty(results)?;
    json.push('\n');
    fs::write(out.join("performance.json"), json).context("write the figures")?;
    eprint!("{page}");
    Ok(())
}
