//! `manual DIR` writes a manual page (section 1) for podwire and each of its commands into DIR, from the
//! description that `podwire COMMAND --help` prints.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap_mangen::Man;

fn main() -> Result<()> {
    let dir = std::env::args_os().nth(1).map(PathBuf::from);
    let dir = dir.context("usage: manual DIR")?;
    fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
    let mut command = podwire::description().disable_help_subcommand(true);
    command.build();
    write(&command, "podwire", &dir)
}

/// Writes the page of a command, and those of its commands: `podwire-network-create.1`.
fn write(command: &clap::Command, name: &str, dir: &Path) -> Result<()> {
    for command in command.get_subcommands().filter(|it| !it.is_hide_set()) {
        write(command, &format!("{name}-{}", command.get_name()), dir)?;
    }
    let version = env!("CARGO_PKG_VERSION");
    let page = Man::new(command.clone())
        .title(name.to_uppercase())
        .section("1")
        // No date: the same sources make the same page.
        .date("")
        .source(format!("podwire {version}"))
        .manual("podwire");
    let mut text = Vec::new();
    page.render(&mut text)?;
    let file = dir.join(format!("{name}.1"));
    fs::write(&file, text).with_context(|| format!("write {}", file.display()))
}
