//! `startup DIR OTHER [ROUNDS]`: what it takes to start a plugin, in two directories, such as both layouts of `podwire install`. Each plugin of DIR is
//! called with VERSION, in turn in one and the other: between exec and exit it does next to nothing. Prints the medians, their ratio (the median of
//! the pairs), and page faults.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use nix::sys::resource::{UsageWho, getrusage};

/// The cost of one call.
struct Taken {
    micros: f64,
    faults: i64,
}

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [dir, other, rounds @ ..] = &words[..] else {
        anyhow::bail!("usage: startup DIR OTHER [ROUNDS]");
    };
    let rounds: usize = rounds.first().map_or(Ok(1000), |it| it.parse())?;
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "{:12} {:>9} {:>9} {:>6} {:>14}",
        "plugin", "us", "other us", "ratio", "page faults"
    )?;
    for name in plugins(Path::new(dir))? {
        let pairs = pairs(&[dir, other].map(|it| Path::new(it).join(&name)), rounds)?;
        let micros = |side: usize| median(pairs.iter().map(|it| it[side].micros));
        let faults = |side: usize| median(pairs.iter().map(|it| it[side].faults as f64));
        let ratio = median(pairs.iter().map(|it| it[1].micros / it[0].micros));
        writeln!(
            out,
            "{name:12} {:9.0} {:9.0} {ratio:6.3} {:6.0} {:6.0}",
            micros(0),
            micros(1),
            faults(0),
            faults(1)
        )?;
    }
    Ok(())
}

/// The files of a directory that are CNI plugins.
fn plugins(dir: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let is_other = name.starts_with('.') || matches!(&*name, "podwire" | "podwired" | "suite");
        if path.is_file() && !is_other && call(&path).is_ok() {
            names.push(name.into_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// Calls both programs in turn; the first tenth is not counted.
fn pairs(programs: &[PathBuf; 2], rounds: usize) -> Result<Vec<[Taken; 2]>> {
    let mut pairs = Vec::new();
    for round in 0..rounds + rounds / 10 {
        let first = call(&programs[0])?;
        let second = call(&programs[1])?;
        if round >= rounds / 10 {
            pairs.push([first, second]);
        }
    }
    Ok(pairs)
}

/// From before the fork until the program is reaped.
#[allow(clippy::disallowed_methods)] // this measures programs
fn call(program: &Path) -> Result<Taken> {
    let faults = || getrusage(UsageWho::RUSAGE_CHILDREN).map(|it| it.minor_page_faults());
    let before = faults()?;
    let mut command = Command::new(program);
    command.env_clear().env("CNI_COMMAND", "VERSION");
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let start = Instant::now();
    let status = command
        .status()
        .with_context(|| format!("run {}", program.display()))?;
    let micros = start.elapsed().as_secs_f64() * 1e6;
    ensure!(status.success(), "{}: {status}", program.display());
    Ok(Taken {
        micros,
        faults: faults()? - before,
    })
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}
