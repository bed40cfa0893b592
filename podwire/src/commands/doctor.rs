//! `podwire doctor`: what is wrong with the networks of a node.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use clap::Args;
use containers::Container;
use survey::{Sources, Survey};

use super::Verdict;
use crate::command_line::Words;
use crate::doctor::path::{Hop, State};
use crate::doctor::{Examination, Finding, Remedy, Scope, Severity, report};
use crate::options::{CacheDir, Directories};
use crate::output::{Output, counted, print};

/// Report what is wrong with the networks of this node.
///
/// Compares the configurations, the cache of attachments and host-local's reservations with what the
/// kernel has: links, addresses, routes, rules, settings. Each finding has an id, the command of
/// another program that shows it, why it matters, and what to do. docs/doctor.md lists all ids.
///
/// Without SUBJECT, the whole node is examined. A pod is named as in podwire network connect, or by the
/// name or path of its network namespace; then the way from the pod to the outside is printed, too, with
/// each hop.
///
/// --fix carries out the remedies that begin with podwire: it restores rules and bridges, and removes
/// what is left of attachments that are gone. Nothing else is changed.
#[derive(Debug, Args)]
#[command(after_long_help = OUTCOME)]
pub struct Doctor {
    /// A network, a pod, or the name or path of a network namespace
    subject: Option<String>,
    /// Repair what is podwire's
    #[arg(long)]
    fix: bool,
    /// Write an archive (tar) for a bug report, without secrets
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    #[command(flatten)]
    dirs: Directories,
}

const OUTCOME: &str = "\
Exit status: 0 without findings, 1 with any that --fix has not repaired, 2 when
the node could not be examined as a whole, or for a wrong command line.

Examples:
  podwire doctor
  podwire doctor mynet
  podwire doctor --json web | jq -r '.findings[].id'
  podwire doctor --fix
  podwire doctor --report podwire.tar
";

/// Exit status when something could not be examined.
const BLIND: u8 = 2;

impl Doctor {
    pub fn run(&self, output: &Output) -> Result<Verdict> {
        match self.examine(output) {
            Ok(verdict) => Ok(verdict),
            Err(error) => {
                output.report(&error);
                Ok(Verdict::Status(BLIND))
            }
        }
    }

    fn examine(&self, output: &Output) -> Result<Verdict> {
        let sources = Sources {
            conf_dir: self.dirs.conf.conf_dir.clone(),
            cache_dir: self.dirs.cache.dir().to_owned(),
        };
        let dirs = self.dirs.plugins.all();
        let survey = Survey::take(&sources)?;
        let scope = self.scope(&survey)?;
        let (mut found, mut hops) = Examination::confirmed(&survey, &sources, &dirs, &scope)?;
        if self.fix && self.repair(&found)? {
            let (after, way) = Examination::of(&sources, &dirs, &scope)?;
            let fixed = found.findings.into_iter().filter(|it| is_gone(it, &after));
            let fixed = fixed.map(|it| Finding { fixed: true, ..it });
            let mut all: Vec<_> = fixed.collect();
            all.extend(after.findings);
            all.sort_by_key(|it| it.check.id);
            found = Examination {
                findings: all,
                unread: after.unread,
            };
            hops = way;
        }
        let document = found.document(&hops);
        if let Some(file) = &self.report {
            report::write(file, &document, &survey)?;
        }
        if output.is_json() {
            output.print_json(&document)?
        } else {
            print(&text(&found, &hops))?
        }
        let left = found.findings.iter().any(|it| !it.fixed);
        Ok(match (left, found.unread.is_empty()) {
            (true, _) => Verdict::Bad,
            (false, true) => Verdict::Good,
            (false, false) => Verdict::Status(BLIND),
        })
    }

    fn scope(&self, survey: &Survey) -> Result<Scope> {
        let Some(word) = &self.subject else {
            return Ok(Scope::Node);
        };
        if let Ok(network) = survey.catalogue.find(word) {
            return Ok(Scope::Network(network.name.clone()));
        }
        if survey.attachments.iter().any(|it| it.network == *word) {
            return Ok(Scope::Network(word.clone()));
        }
        let container = find_container(word, survey, &self.dirs.cache)?;
        Ok(Scope::Container(container))
    }

    /// Carries out each of our remedies once; whether there was any. A failure is logged: the finding
    /// stays.
    fn repair(&self, found: &Examination) -> Result<bool> {
        let mut remedies = Vec::new();
        for finding in &found.findings {
            if let Remedy::Ours(words) = &finding.remedy
                && !remedies.contains(words)
            {
                remedies.push(words.clone());
            }
        }
        for words in &remedies {
            let command = words.join(" ");
            if let Err(error) = self.carry_out(words) {
                cni::log(format_args!("podwire {command}: {error:#}"));
            }
        }
        Ok(!remedies.is_empty())
    }

    fn carry_out(&self, words: &[String]) -> Result<()> {
        let dirs = std::env::join_paths(self.dirs.plugins.all())?;
        let options = [
            ("--conf-dir", self.dirs.conf.conf_dir.as_os_str()),
            ("--cache-dir", self.dirs.cache.dir().as_os_str()),
            ("--plugin-dir", &dirs),
        ];
        // resync executes no plugin.
        let takes = |name: &str| name != "--plugin-dir" || words[0] != "resync";
        let options = options.iter().filter(|(name, _)| takes(name));
        let options = options.flat_map(|(name, value)| [(*name).into(), value.into()]);
        let line = words.iter().map(Into::into).chain(options);
        let line = Words::new(line).read()?;
        match line.command.run(&Output::silent())? {
            Verdict::Good => Ok(()),
            Verdict::Bad | Verdict::Status(_) => bail!("a part could not be done"),
        }
    }
}

/// The id of the container that a word names: in the cache, or only in the kernel.
pub fn find_container(word: &str, survey: &Survey, cache: &CacheDir) -> Result<String> {
    let known = |it: &&survey::Attachment| it.container_id == word;
    if let Some(attachment) = survey.attachments.iter().find(known) {
        return Ok(attachment.container_id.clone());
    }
    let derived = |path: &str| path.to_owned();
    let found = Container::find(word, &cache.open(), derived);
    let by_name = survey.path_named(word).filter(|_| found.is_err());
    if let Some(path) = by_name.or(word.starts_with('/').then_some(Path::new(word))) {
        let at = survey
            .namespaces
            .iter()
            .position(|it| it.paths.iter().any(|it| it == path));
        let home = at.map(survey::Home::At);
        let there = survey
            .attachments
            .iter()
            .find(|it| Some(&it.home) == home.as_ref());
        return match there {
            Some(attachment) => Ok(attachment.container_id.clone()),
            None => bail!("nothing is attached to {word}"),
        };
    }
    Ok(found?.id)
}

/// Whether a repair has removed a finding.
fn is_gone(finding: &Finding, after: &Examination) -> bool {
    let same = |it: &&Finding| it.check == finding.check && it.about == finding.about;
    !after.findings.iter().any(|it| same(&it))
}

fn text(found: &Examination, hops: &[Hop]) -> String {
    let mut text = String::new();
    for finding in &found.findings {
        text += &lines(finding);
    }
    for unread in &found.unread {
        text += &format!("not examined: {unread}\n");
    }
    if !hops.is_empty() {
        text += "\nThe way out of the pod:\n";
    }
    for hop in hops {
        let mark = match hop.state {
            State::Passes => "ok     ",
            State::Dropped => "DROPPED",
            State::Unknown => "-      ",
        };
        text += &format!(
            "  {mark} {:<5} {:<50}  {}\n",
            hop.place,
            printable(&hop.what),
            printable(&hop.command)
        );
    }
    let count = |severity| {
        let of_it = |it: &&Finding| it.check.severity == severity && !it.fixed;
        found.findings.iter().filter(of_it).count()
    };
    let fixed = found.findings.iter().filter(|it| it.fixed).count();
    let (errors, warnings) = (count(Severity::Error), count(Severity::Warning));
    if !text.is_empty() {
        text += "\n";
    }
    text += &format!(
        "{}, {}",
        counted(errors, "error"),
        counted(warnings, "warning")
    );
    match fixed {
        0 => text + "\n",
        fixed => format!("{text}, {fixed} repaired\n"),
    }
}

fn lines(finding: &Finding) -> String {
    let severity = match (finding.fixed, finding.check.severity) {
        (true, _) => "repaired",
        (false, Severity::Error) => "error",
        (false, Severity::Warning) => "warning",
    };
    let (id, about) = (finding.check.id, finding.about.text());
    let (remedy, _) = finding.remedy.parts();
    let evidence = &finding.evidence;
    let parts = [
        format!("{id} {severity:<8} {about}: {}", finding.what),
        format!("      title     {}", finding.check.title),
        format!("      evidence  {}: {}", evidence.command, evidence.shows),
        format!("      why       {}", finding.check.why),
        format!("      remedy    {remedy}"),
    ];
    parts.map(|it| printable(&it) + "\n").concat()
}

/// Pods choose names: control characters do not reach a terminal.
fn printable(text: &str) -> String {
    text.chars()
        .map(|it| if it.is_control() { '?' } else { it })
        .collect()
}
