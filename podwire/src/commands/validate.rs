//! `podwire validate`: report every fault of configurations.

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use serde::Serialize;

use super::Verdict;
use crate::options::directories;
use crate::output::{Output, counted, print};
use crate::validate::{self, Finding, Hint, Report, Severity};

/// Report every fault of configurations.
///
/// Checks every key of network configurations. Each fault is a line with the file, the path of the
/// key and the reason. Nothing is changed.
///
/// An error is a fault for which a runtime or a plugin refuses the configuration. A warning is
/// legal but probably a mistake, such as an unknown key. A hint is no fault, for example which
/// runtimes do not support the version.
///
/// It knows the keys of podwire's plugins. Of other plugins it checks only the keys that all
/// plugins have. With --plugin-dir or CNI_PATH it is also an error if a plugin is missing or does
/// not support the network's version; podwire calls the plugins with the verb VERSION.
///
/// Of Kubernetes manifests, in YAML or JSON, it checks each NetworkAttachmentDefinition; its
/// name stands behind the file.
///
/// --json prints an object: errors, warnings, and files with file, object (of a manifest),
/// network, findings with severity, path, reason, and line and column where the file stops being
/// JSON, and hints with path and text.
#[derive(Debug, Args)]
#[command(after_long_help = OUTCOME)]
pub struct Validate {
    /// A configuration or manifest, or a directory, of which all *.conflist, *.conf, *.json, *.yaml
    /// and *.yml are checked
    #[arg(required = true)]
    file: Vec<PathBuf>,
    /// Where the plugins are, separated by colons; without it plugins are not looked for
    #[arg(long, value_name = "DIRS", env = "CNI_PATH", hide_env_values = true)]
    plugin_dir: Option<OsString>,
}

const OUTCOME: &str = "\
Exit status: 0 without errors, 1 with any, 2 for an invalid command line.

Examples:
  podwire validate /etc/cni/net.d
  podwire validate --plugin-dir /opt/cni/bin 10-mynet.conflist
  podwire validate network-attachments.yaml
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
    object: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    network: Option<&'a str>,
    findings: &'a [Finding],
    #[serde(skip_serializing_if = "<[Hint]>::is_empty")]
    hints: &'a [Hint],
}

impl Validate {
    pub fn run(&self, output: &Output) -> Result<Verdict> {
        let plugin_dirs = self.plugin_dir.as_deref().filter(|list| !list.is_empty());
        let plugin_dirs = plugin_dirs.map(directories);
        let reports = validate::all(&self.file, plugin_dirs.as_deref());
        let count = |severity| reports.iter().map(|it| it.findings.count(severity)).sum();
        let answer = Answer {
            errors: count(Severity::Error),
            warnings: count(Severity::Warning),
            files: reports.iter().map(File::of).collect(),
        };
        if output.is_json() {
            output.print_json(&answer)?;
        } else {
            print(&lines(&answer))?;
            log_hints(&answer);
        }
        Ok(Verdict::good_if(answer.errors == 0))
    }
}

impl<'a> File<'a> {
    fn of(report: &'a Report) -> Self {
        Self {
            file: report.file.display().to_string(),
            object: report.object.as_deref(),
            network: report.network.as_deref(),
            findings: report.findings.all(),
            hints: report.findings.hints(),
        }
    }

    fn place(&self) -> String {
        match self.object {
            Some(object) => format!("{} ({object})", self.file),
            None => self.file.clone(),
        }
    }
}

fn lines(answer: &Answer<'_>) -> String {
    let mut text = String::new();
    for file in &answer.files {
        for finding in file.findings {
            text += &line(file, finding);
        }
    }
    text + &format!(
        "{}: {}, {}\n",
        counted(answer.files.len(), "file"),
        counted(answer.errors, "error"),
        counted(answer.warnings, "warning"),
    )
}

/// Hints go to standard error: scripts read faults from standard output.
fn log_hints(answer: &Answer<'_>) {
    for file in &answer.files {
        for Hint { path, text } in file.hints {
            cni::log(format_args!("{}: hint: {path}: {text}", file.place()));
        }
    }
}

fn line(file: &File<'_>, finding: &Finding) -> String {
    let severity = match finding.severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
    };
    let mut place = file.place();
    if let Some(position) = finding.position {
        place += &format!(":{}:{}", position.line, position.column);
    }
    let path = match finding.path.as_str() {
        "" => String::new(),
        path => format!(" {path}:"),
    };
    format!("{place}: {severity}:{path} {}\n", finding.reason)
}
