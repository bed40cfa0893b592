//! `manual DIR DATE` writes the manual pages of podwire into DIR: `man1` has a page for podwire and each of its commands, from the
//! description that `podwire COMMAND --help` prints; `man5` (plugins, files) and `man8` (the agent) are made of the project's documents.

mod markdown;
mod page;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap_mangen::Man;

fn main() -> Result<()> {
    let mut words = std::env::args_os().skip(1);
    let dir = words.next().map(PathBuf::from);
    let date = words.next().and_then(|it| it.into_string().ok());
    let (dir, date) = dir.zip(date).context("usage: manual DIR YYYY-MM-DD")?;
    // It runs in the project that it was built in, or in a copy of it.
    write_all(Path::new("."), &dir, &date)
}

/// `date` is that of the sources, so the same sources make the same pages.
fn write_all(project: &Path, dir: &Path, date: &str) -> Result<()> {
    let mut command = podwire::description().disable_help_subcommand(true);
    command.build();
    commands(&command, "podwire", (dir, date))?;
    let pages = page::all(project)?;
    for page in &pages {
        let text = page.render(project, &pages, date)?;
        let section = format!("man{}", page.section);
        write(&dir.join(section), &page.file(), text.as_bytes())?;
    }
    Ok(())
}

/// Writes the page of a command, and those of its commands: `podwire-network-create.1`.
fn commands(command: &clap::Command, name: &str, (dir, date): (&Path, &str)) -> Result<()> {
    for command in command.get_subcommands().filter(|it| !it.is_hide_set()) {
        commands(
            command,
            &format!("{name}-{}", command.get_name()),
            (dir, date),
        )?;
    }
    let version = env!("CARGO_PKG_VERSION");
    let page = Man::new(command.clone())
        .title(name.to_uppercase())
        .section("1")
        .date(date)
        .source(format!("podwire {version}"))
        .manual("podwire");
    let mut text = Vec::new();
    page.render(&mut text)?;
    write(&dir.join("man1"), &format!("{name}.1"), &text)
}

fn write(dir: &Path, name: &str, text: &[u8]) -> Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
    let file = dir.join(name);
    fs::write(&file, text).with_context(|| format!("write {}", file.display()))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// mandoc has opinions on style as well; a warning is a fault.
    #[test]
    #[allow(clippy::disallowed_methods)] // mandoc is no plugin
    fn every_page_is_rendered_without_a_warning() {
        let project = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let dir = tempfile::tempdir().unwrap();
        write_all(&project, dir.path(), "2026-11-29").unwrap();
        for (section, least) in [("man1", 40), ("man5", 20), ("man8", 1)] {
            let pages: Vec<_> = fs::read_dir(dir.path().join(section))
                .unwrap()
                .map(|it| it.unwrap().path())
                .collect();
            assert!(pages.len() >= least, "{section}: {pages:?}");
            let mut lint = Command::new("mandoc");
            let done = lint.args(["-K", "utf-8", "-T", "lint", "-W", "warning"]);
            let done = done.args(pages).output().unwrap();
            let output = String::from_utf8_lossy(&done.stdout);
            // clap_mangen's line breaks beside vertical space: what is shown is right.
            let faults = output
                .lines()
                .filter(|it| !it.contains("skipping paragraph macro: br "));
            assert_eq!(faults.collect::<Vec<_>>(), [""; 0]);
            assert!(output.is_empty() || !done.status.success(), "{done:?}");
        }
    }
}
