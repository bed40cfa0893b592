//! Where the programs come from: one for each plugin, or one program that is all of them.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use super::directory::Item;

/// The program that is all plugins and podwire, as its name says (package `suite`).
pub const SUITE: &str = "suite";
/// The command.
pub const COMMAND: &str = "podwire";
/// The agent. It is a program of its own in both layouts.
pub const AGENT: &str = "podwired";

/// How many files the programs are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Layout {
    /// One file with a name for each program
    One,
    /// A file for each program
    Many,
}

/// A directory with the programs.
#[derive(Debug)]
pub struct Source {
    dir: PathBuf,
    layout: Layout,
}

impl Source {
    /// The programs in `dir`, among them `plugins`; without `layout`, as many files as there are.
    ///
    /// # Errors
    /// `dir` has no such programs.
    pub fn new(dir: &Path, layout: Option<Layout>, plugins: &[String]) -> Result<Self> {
        let has = |name: &str| dir.join(name).is_file();
        let missing = plugins.iter().find(|it| !has(it));
        let layout = match (layout, missing) {
            (Some(Layout::One), _) | (None, Some(_)) if has(SUITE) => Layout::One,
            (Some(Layout::One), _) => {
                bail!("no program of all plugins ({SUITE}) in {}", dir.display())
            }
            (_, Some(missing)) => bail!("no plugin {missing} in {}", dir.display()),
            _ => Layout::Many,
        };
        let dir = dir.to_owned();
        Ok(Self { dir, layout })
    }

    /// The directory of the running program.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn own_dir() -> Result<PathBuf> {
        let program = std::env::current_exe().context("find the running program")?;
        Ok(program.parent().unwrap_or(Path::new("/")).to_owned())
    }

    /// The command, the agent if it is there, and `plugins` beside them.
    ///
    /// # Errors
    /// One cannot be read.
    pub fn commands(&self, plugins: &[&str]) -> Result<Vec<Item>> {
        let mut items = self.plugins(&[plugins, &[COMMAND]].concat())?;
        let agent = self.dir.join(AGENT);
        if agent.is_file() {
            items.extend(Item::program(&agent, &[AGENT])?);
        }
        Ok(items)
    }

    /// The plugins `names`.
    ///
    /// # Errors
    /// One cannot be read.
    pub fn plugins(&self, names: &[&str]) -> Result<Vec<Item>> {
        if self.layout == Layout::One {
            return Item::program(&self.dir.join(SUITE), names);
        }
        let mut items = Vec::new();
        for name in names {
            items.extend(Item::program(&self.dir.join(name), &[name])?);
        }
        Ok(items)
    }
}
