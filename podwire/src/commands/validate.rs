//! `podwire validate`: say all that is wrong with configurations.

use std::path::PathBuf;

use anyhow::Result;
use serde::Serialize;

use super::{Command, Opt, Verdict};
use crate::arguments::{Arguments, Flag};
use crate::output::counted;
use crate::validate::{self, Finding, Hint, Report, Severity};

pub const COMMAND: Command = Command {
    name: "validate",
    summary: "say all that is wrong with configurations",
    about: ABOUT,
    options: &[
        Opt::new(
            Flag::PluginDir,
            "where the plugins are, separated by colons (CNI_PATH; they are not looked for)",
        ),
        Opt::new(
            Flag::Json,
            "print an object: errors, warnings, and files with file, network, findings with severity, path, reason, and line and column where the file stops being JSON, and hints with path and text",
        ),
        Opt::new(Flag::Text, "print lines, which is the default"),
    ],
    outcome: OUTCOME,
    run,
};

const ABOUT: &str = "\
Usage: podwire validate [OPTION]... FILE...

Looks at every key of network configurations, and at all *.conflist, *.conf and
*.json files of a FILE that is a directory. Each fault is a line with the file,
the keys that lead to it and the reason. Nothing is changed.

An error is what a runtime or a plugin will refuse; a warning is what works but
was hardly meant so, such as a key that nobody reads; a hint is right, and good
to know, such as which runtimes do not know the version.

The keys of podwire's plugins are known. Of other plugins only the keys are
looked at that all plugins have. With --plugin-dir or CNI_PATH it is also an
error when a plugin is missing or does not speak the network's version; the
plugins are asked with the verb VERSION.
";

const OUTCOME: &str = "\
Exit status: 0 without errors, 1 with any, 2 for a command line that makes no
sense.

Examples:
  podwire validate /etc/cni/net.d
  podwire validate --plugin-dir /opt/cni/bin 10-mynet.conflist
  podwire validate --json . | jq -r '.files[].findings[].reason'
";

#[derive(Serialize)]
struct Answer<'a> {
    errors: usize,
    warnings: usize,
    files: Vec<File<'a>>,
}

#[derive(Serialize)]
struct File<'a> {
    file: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    network: Option<&'a str>,
    findings: &'a [Finding],
    #[serde(skip_serializing_if = "<[Hint]>::is_empty")]
    hints: &'a [Hint],
}

fn run(arguments: &Arguments) -> Result<Verdict> {
    let words = arguments.words(&["FILE..."])?;
    let places: Vec<_> = words.iter().map(PathBuf::from).collect();
    let plugin_dirs = arguments.given_plugin_dirs();
    let reports = validate::all(&places, plugin_dirs.as_deref());
    let count = |severity| reports.iter().map(|it| it.findings.count(severity)).sum();
    let answer = Answer {
        errors: count(Severity::Error),
        warnings: count(Severity::Warning),
        files: reports.iter().map(File::of).collect(),
    };
    let output = arguments.output();
    match output.is_json() {
        true => output.print_json(&answer)?,
        false => {
            output.print(&lines(&answer))?;
            tell_hints(&answer);
        }
    }
    Ok(match answer.errors {
        0 => Verdict::Good,
        _ => Verdict::Bad,
    })
}

impl<'a> File<'a> {
    fn of(report: &'a Report) -> Self {
        Self {
            file: report.file.display().to_string(),
            network: report.network.as_deref(),
            findings: report.findings.all(),
            hints: report.findings.hints(),
        }
    }
}

fn lines(answer: &Answer<'_>) -> String {
    let mut text = String::new();
    for file in &answer.files {
        for finding in file.findings {
            text += &line(&file.file, finding);
        }
    }
    text + &format!(
        "{}: {}, {}\n",
        counted(answer.files.len(), "file"),
        counted(answer.errors, "error"),
        counted(answer.warnings, "warning"),
    )
}

/// Hints are not what was asked for: scripts read faults from standard output.
fn tell_hints(answer: &Answer<'_>) {
    for file in &answer.files {
        for Hint { path, text } in file.hints {
            cni::log(format_args!("{}: hint: {path}: {text}", file.file));
        }
    }
}

fn line(file: &str, finding: &Finding) -> String {
    let severity = match finding.severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
    };
    let place = match finding.position {
        Some(position) => format!("{file}:{}:{}", position.line, position.column),
        None => file.to_owned(),
    };
    let path = match finding.path.as_str() {
        "" => String::new(),
        path => format!(" {path}:"),
    };
    format!("{place}: {severity}:{path} {}\n", finding.reason)
}
