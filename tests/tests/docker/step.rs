//! A step of the script, and how its outcomes are compared.

use sandbox::Finished;
use serde_json::Value;

use crate::node::Engine;

/// What the outcomes must have in common.
#[derive(Clone, Copy, Debug)]
pub enum Same {
    /// Exit status 0, and the output but for ids and the width of columns.
    Output,
    /// The same, with the lines in any order.
    Lines,
    /// Exit status 0, and each line is the same JSON.
    Json,
    /// The exit status.
    Status,
    /// The exit status, not 0, and a text in both errors, in upper or lower case.
    Error(&'static str),
    /// Nothing: Docker's and podwire's outcome, each an exit status and a text, differ as a row of
    /// docs/networks.md says.
    Differs {
        row: &'static str,
        docker: (i32, &'static str),
        podwire: (i32, &'static str),
    },
}

/// A command, or a script of the node after the word `node`.
pub type Step = (&'static str, Same);

/// Does a step.
pub fn outcome(engine: &impl Engine, line: &str) -> Finished {
    match line.strip_prefix("node ") {
        Some(script) => engine.host().run(&["sh", "-c", script]),
        None => {
            let words = words(line);
            engine.run(&words.iter().map(String::as_str).collect::<Vec<_>>())
        }
    }
}

/// Splits a line at spaces that are not between single quotes.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    for (index, part) in line.split('\'').enumerate() {
        match index % 2 {
            0 => words.extend(part.split_whitespace().map(str::to_owned)),
            _ => words.push(part.to_owned()),
        }
    }
    words
}

/// The complaint about two outcomes that are not the same.
pub fn compare(same: Same, docker: &Finished, podwire: &Finished) -> Result<(), String> {
    let good = match same {
        Same::Output => succeeds(docker, podwire) && lines(docker) == lines(podwire),
        Same::Lines => {
            let sorted = |it| {
                let mut lines = lines(it);
                lines.sort();
                lines
            };
            succeeds(docker, podwire) && sorted(docker) == sorted(podwire)
        }
        Same::Json => succeeds(docker, podwire) && documents(docker) == documents(podwire),
        Same::Status => docker.code == podwire.code,
        Same::Error(text) => {
            let says = |it: &Finished| it.stderr.to_lowercase().contains(&text.to_lowercase());
            docker.code == podwire.code && docker.code != 0 && says(docker) && says(podwire)
        }
        Same::Differs {
            docker: expected,
            podwire: ours,
            ..
        } => is(docker, expected) && is(podwire, ours),
    };
    if good {
        return Ok(());
    }
    Err(format!("docker: {docker:?}\n    podwire: {podwire:?}"))
}

fn succeeds(docker: &Finished, podwire: &Finished) -> bool {
    docker.code == 0 && podwire.code == 0
}

fn is(outcome: &Finished, (code, text): (i32, &str)) -> bool {
    let both = format!("{}{}", outcome.stdout, outcome.stderr);
    outcome.code == code && both.contains(text)
}

/// The lines of an output, with `ID` in place of ids and one space in place of many.
fn lines(outcome: &Finished) -> Vec<String> {
    let word = |it: &str| match it.len() {
        12 | 64 if it.bytes().all(|it| it.is_ascii_hexdigit()) => "ID".to_owned(),
        _ => it.to_owned(),
    };
    let line = |it: &str| {
        it.split_whitespace()
            .map(word)
            .collect::<Vec<_>>()
            .join(" ")
    };
    outcome.stdout.lines().map(line).collect()
}

fn documents(outcome: &Finished) -> Vec<Value> {
    let lines = outcome.stdout.lines();
    let document = |it| serde_json::from_str(it).unwrap_or_else(|_| Value::from(it));
    lines.map(document).collect()
}
