//! `faults`: see `faults` without arguments.

use std::io::Write;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use faults::cluster::{Model, Shared};
use faults::journal::Journal;
use faults::storm::Storm;
use faults::strike::{Deed, Strike};
use faults::sweep::{Crew, Sweep, Tally, VERBS};
use faults::{chains, clock, commands, tracer};

const USAGE: &str = "\
usage: faults kill [CHAIN]...     kill plugins at each of their system calls
       faults kill-daemon [CHAIN]...
                                  of these, only the daemon that plugins ask
       faults fail [CHAIN]...     let each of their system calls fail
       faults fail-daemon [CHAIN]...
                                  of these, only the daemon's
       faults commands [COMMAND]...
                                  kill commands of podwire at each of their system calls
       faults storm SECONDS       200 attachments of four networks, by many at once
       faults cluster OPERATIONS  addresses of five nodes with three members of etcd, and accidents
       faults chains              what CHAIN may be
       faults trace REPORT DEED POINT -- PROGRAM [ARGUMENT]...
       faults clock FILE -- PROGRAM [ARGUMENT]...
                                  the program's clock is wrong by the seconds in FILE
FAULTS_AT_MOST=N    tries N points of each fault of each verb
FAULTS_WORKERS=N    uses N nodes at once (2)
FAULTS_JOURNAL=DIR  keeps there what has been done, and goes on from there
FAULTS_SECONDS=N    begins no point after so long; exit status 2 if there are any left
FAULTS_SEED=N       the seed of random choices, for storm and cluster
FAULTS_STORE=kubernetes
                    cluster has its blocks in custom resources (make test-kubernetes builds the API server)
FAULTS_GLANCES=1    prints the differences that glances found
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("faults: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[String]) -> Result<ExitCode> {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["trace", report, deed, point, "--", ..] => {
            let seen = tracer::run(&arguments[5..], Strike::parse(deed, point)?)?;
            std::fs::write(report, seen.encode()).context("write the report")?;
            Ok(ExitCode::from(u8::try_from(seen.status)?))
        }
        ["kill", names @ ..] => sweep(
            "killed",
            &[
                Deed::KillChain,
                Deed::KillPlugin,
                Deed::KillDelegate,
                Deed::KillDaemon,
            ],
            names,
        ),
        ["kill-daemon", names @ ..] => sweep("killed", &[Deed::KillDaemon], names),
        ["fail", names @ ..] => {
            let deeds = [Deed::Fail { choice: 0 }, Deed::FailDaemon { choice: 0 }];
            sweep("failed", &deeds, names)
        }
        ["fail-daemon", names @ ..] => sweep("failed", &[Deed::FailDaemon { choice: 0 }], names),
        ["commands", names @ ..] => kill_commands(names),
        ["clock", file, "--", ..] => {
            let status = clock::run(file.as_ref(), &arguments[3..])?;
            Ok(ExitCode::from(u8::try_from(status)?))
        }
        ["cluster", operations] => cluster(operations.parse().context("operations")?),
        ["storm", seconds] => storm(seconds.parse().context("seconds")?),
        ["chains"] => {
            let names: Vec<_> = chains::all().iter().map(|chain| chain.name).collect();
            say(&names.join("\n"));
            Ok(ExitCode::SUCCESS)
        }
        _ => bail!("{USAGE}"),
    }
}

/// The processes that sweep, by the variables of the environment.
fn crew(exe: &str) -> Result<Crew<'_>> {
    // Findings are printed once, at the end.
    std::panic::set_hook(Box::new(|_| ()));
    let limit = number("FAULTS_SECONDS", 0)? as u64;
    Ok(Crew {
        exe,
        workers: number("FAULTS_WORKERS", 2)?,
        until: (limit > 0).then(|| Instant::now() + Duration::from_secs(limit)),
    })
}

fn sweep(what: &str, deeds: &[Deed], names: &[&str]) -> Result<ExitCode> {
    let exe = std::env::current_exe()?.display().to_string();
    let crew = crew(&exe)?;
    let chosen = match names {
        [] => chains::here(),
        names => names
            .iter()
            .map(|name| chains::named(name).with_context(|| format!("no chain {name:?}")))
            .collect::<Result<_>>()?,
    };
    let (mut total, mut left) = (Tally::default(), 0);
    for chain in chosen {
        let daemon = deeds.iter().all(|deed| deed.is_daemons());
        if daemon && !chain.dhcp {
            continue;
        }
        let sweep = Sweep {
            chain,
            verbs: VERBS.to_vec(),
            deeds: deeds.to_vec(),
            at_most: Some(number("FAULTS_AT_MOST", usize::MAX)?),
        };
        let name = if daemon {
            format!("daemon-{what}")
        } else {
            what.to_owned()
        };
        let mut journal = Journal::open(&format!("{name} {}", sweep.chain.name))?;
        if journal.points.is_empty() {
            journal.plan(sweep.points(&exe)?)?;
        }
        journal.go_on(&sweep, &crew)?;
        for line in journal.lines(sweep.chain.name) {
            say(&line);
        }
        left += journal.left();
        total.add(journal.total());
    }
    let summary = serde_json::json!({
        what: total.points,
        "missed": total.missed,
        "harmless": total.harmless,
        "aborted": total.aborted,
        "findings": total.findings.len(),
        "full_looks": total.full_looks,
        "left": left,
    });
    say(&summary.to_string());
    Ok(match (total.findings.is_empty(), left) {
        (true, 0) => ExitCode::SUCCESS,
        (true, _) => ExitCode::from(2),
        (false, _) => ExitCode::FAILURE,
    })
}

fn kill_commands(names: &[&str]) -> Result<ExitCode> {
    let exe = std::env::current_exe()?.display().to_string();
    let crew = crew(&exe)?;
    let chosen = match names {
        [] => commands::COMMANDS.to_vec(),
        names => names
            .iter()
            .map(|name| commands::named(name).with_context(|| format!("no command {name:?}")))
            .collect::<Result<_>>()?,
    };
    let at_most = number("FAULTS_AT_MOST", usize::MAX)?;
    let mut total = Tally::default();
    for command in chosen {
        for deed in commands::DEEDS {
            let tally = command.sweep(&crew, deed, at_most)?;
            let (points, missed) = (tally.points, tally.missed);
            let name = command.name;
            say(&format!(
                "{name}, {deed:?}: {points} killed, {missed} missed"
            ));
            tally.findings.iter().for_each(|it| say(&format!("  {it}")));
            total.add(tally);
        }
    }
    let summary = serde_json::json!({
        "killed": total.points,
        "missed": total.missed,
        "findings": total.findings.len(),
    });
    say(&summary.to_string());
    Ok(if total.findings.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn storm(seconds: u64) -> Result<ExitCode> {
    let storm = Storm {
        attachments: 200,
        workers: number("FAULTS_WORKERS", 16)?,
        time: Duration::from_secs(seconds),
        seed: number("FAULTS_SEED", std::process::id() as usize)? as u64,
    };
    say(&format!("{storm:?}"));
    let weather = storm.run()?;
    let mut findings = weather.findings.clone();
    for (verb, (count, median, longest)) in weather.times() {
        say(&format!(
            "{verb:5} {count} times, median {median:.1?}, longest {longest:.1?}"
        ));
        if longest > median * 100 {
            findings.push(format!("{verb} took {longest:?}, its median is {median:?}"));
        }
    }
    findings
        .iter()
        .for_each(|finding| say(&format!("  {finding}")));
    let summary = serde_json::json!({
        "operations": weather.operations(),
        "killed": weather.killed,
        "try_again": weather.later,
        "findings": findings.len(),
    });
    say(&summary.to_string());
    Ok(if findings.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn cluster(operations: usize) -> Result<ExitCode> {
    let model = Model {
        exe: std::env::current_exe()?.display().to_string(),
        shared: match std::env::var("FAULTS_STORE").as_deref() {
            Ok("kubernetes") => Shared::Kubernetes,
            Ok("etcd") | Err(_) => Shared::Etcd,
            Ok(other) => bail!("FAULTS_STORE={other}: neither etcd nor kubernetes"),
        },
        operations,
        seed: number("FAULTS_SEED", std::process::id() as usize)? as u64,
    };
    let begun = Instant::now();
    let outcome = model.run()?;
    say(&format!(
        "{outcome}{:.0} s, FAULTS_SEED={}",
        begun.elapsed().as_secs_f64(),
        model.seed
    ));
    Ok(if outcome.findings.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn number(name: &str, default: usize) -> Result<usize> {
    match std::env::var(name) {
        Ok(text) => text.parse().with_context(|| format!("{name}={text}")),
        Err(_) => Ok(default),
    }
}

fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}
