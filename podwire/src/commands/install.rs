//! `podwire install`: place the suite on a node.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;
use serde::Serialize;

use super::Verdict;
use crate::install::{Changes, Layout, Places, Source, Wanted, watch};
use crate::output::{Output, counted};
use crate::validate;

/// Place the plugins, podwire and a configuration on a node.
///
/// Each file is replaced atomically: a runtime that executes a plugin meanwhile gets the old one
/// or the new one. The configuration of a network comes last. What is replaced is kept in the
/// directory .podwire beside it, for podwire uninstall. Files that are there already are not
/// written again. When it is killed, run it again.
///
/// A plugin with the name of a podwire plugin is replaced, of whatever suite it is, unless
/// --keep-others is given. Other files stay.
///
/// --json prints an object with placed, replaced (what of it was another program's), unchanged
/// and others (what --keep-others has left in place): lists of paths.
#[derive(Debug, Args)]
#[command(after_long_help = OUTCOME)]
pub struct Install {
    #[command(flatten)]
    places: Places,
    /// The configuration of a network, which must have no fault; its name stays
    #[arg(long, value_name = "FILE")]
    conf: Option<PathBuf>,
    /// Only these plugins, separated by commas
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    plugins: Vec<String>,
    /// Leave the plugins of other suites in place
    #[arg(long)]
    keep_others: bool,
    /// One file with a name for each plugin (about 10 MB), or a file for each plugin [default: as
    /// in --from]
    #[arg(long, value_enum)]
    layout: Option<Layout>,
    /// Where the programs come from [default: the directory of podwire]
    #[arg(long, value_name = "DIR")]
    from: Option<PathBuf>,
    /// Keep nothing for podwire uninstall, as for the contents of a package
    #[arg(long)]
    no_record: bool,
    /// Stay, and install again when another program removes or replaces a file, until SIGTERM
    #[arg(long)]
    watch: bool,
}

const OUTCOME: &str = "\
Exit status: 0 when everything is in place, 1 after a failure, 2 for a wrong
command line.

Examples:
  podwire install
  podwire install --layout one --conf 10-mynet.conflist --sbin-dir /usr/local/sbin
  podwire install --plugins bridge,host-local,loopback --keep-others
  podwire install --root /host --watch
";

#[derive(Serialize)]
struct Answer<'a> {
    placed: &'a [PathBuf],
    replaced: &'a [PathBuf],
    unchanged: &'a [PathBuf],
    others: &'a [PathBuf],
}

impl Install {
    pub fn run(&self, output: &Output) -> Result<Verdict> {
        let wanted = self.wanted()?;
        if !self.watch {
            report(&self.places.install(&wanted)?, output)?;
            return Ok(Verdict::Good);
        }
        let mut dirs = self.places.shared_dirs();
        // The first is that of the plugins.
        dirs.truncate(if self.conf.is_some() { 2 } else { 1 });
        watch(&dirs, || {
            let done = self.places.install(&wanted);
            let done = done.and_then(|changes| {
                if changes.placed.is_empty() {
                    Ok(())
                } else {
                    report(&changes, output)
                }
            });
            if let Err(error) = done {
                output.report(&error);
            }
        })?;
        Ok(Verdict::Good)
    }

    fn wanted(&self) -> Result<Wanted> {
        let all = validate::plugins();
        let mut plugins = self.plugins.clone();
        plugins.retain(|it| !it.is_empty());
        if let Some(unknown) = plugins.iter().find(|it| !all.contains(&it.as_str())) {
            bail!("no plugin {unknown}; there are {}", all.join(", "));
        }
        if plugins.is_empty() {
            plugins = all.into_iter().map(str::to_owned).collect();
        }
        let from = self.from.clone().map_or_else(Source::own_dir, Ok)?;
        Ok(Wanted {
            source: Source::new(&from, self.layout, &plugins)?,
            plugins,
            conf: self.conf.clone(),
            keep_others: self.keep_others,
            keeps_record: !self.no_record,
        })
    }
}

fn report(changes: &Changes, output: &Output) -> Result<()> {
    if output.is_json() {
        return output.print_json(&Answer {
            placed: &changes.placed,
            replaced: &changes.replaced,
            unchanged: &changes.unchanged,
            others: &changes.others,
        });
    }
    let placed = counted(changes.placed.len(), "file");
    let unchanged = changes.unchanged.len();
    let mut text = format!("placed {placed}, {unchanged} were there already");
    if !changes.replaced.is_empty() {
        let replaced = changes.replaced.len();
        text += &format!("; of another program: {replaced}, kept in .podwire beside each");
    }
    for other in &changes.others {
        text += &format!("\nleft in place: {}", other.display());
    }
    output.remark(&text)
}
