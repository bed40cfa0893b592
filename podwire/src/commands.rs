//! The commands of podwire: one file each, and the table that lists them.

mod add;
mod adopt;
mod check;
mod del;
mod gc;
mod manual;
mod node;
mod peers;
mod release;
mod resync;
mod status;
mod validate;
mod version;

use anyhow::Result;

pub use manual::Opt;

use crate::arguments::{Arguments, Flag, Misuse};
use crate::attach::Attachment;
use crate::cache::CachedAttachment;

/// The outcome of a command without an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Exit status 0.
    Good,
    /// It has reported what failed: exit status 1.
    Bad,
}

/// A command.
struct Command {
    name: &'static str,
    /// One line for the list of commands.
    summary: &'static str,
    /// Its usage and description.
    about: &'static str,
    options: &'static [Opt],
    /// Exit status and examples.
    outcome: &'static str,
    run: fn(&Arguments) -> Result<Verdict>,
}

const COMMANDS: &[Command] = &[
    add::COMMAND,
    del::COMMAND,
    check::COMMAND,
    gc::COMMAND,
    status::COMMAND,
    peers::COMMAND,
    resync::COMMAND,
    adopt::COMMAND,
    release::COMMAND,
    validate::COMMAND,
    version::COMMAND,
];

/// Runs the command called `word`, or prints its manual.
pub fn run(word: &str, arguments: &mut Arguments) -> Result<Verdict> {
    if word == "help" {
        return match arguments.next_word() {
            Some(topic) => print_help(&find(&topic)?.manual(), arguments),
            None => print_help(&overview(), arguments),
        };
    }
    let command = find(word)?;
    if arguments.has(Flag::Help) {
        return print_help(&command.manual(), arguments);
    }
    let known: Vec<_> = command.options.iter().map(|it| it.flag).collect();
    arguments.expect_only(&known)?;
    (command.run)(arguments)
}

/// `podwire`, `podwire --help`, `podwire --version`.
pub fn without_command(arguments: &Arguments) -> Result<Verdict> {
    if arguments.has(Flag::Help) {
        return print_help(&overview(), arguments);
    }
    if arguments.has(Flag::Version) {
        return print_help(&version::banner(), arguments);
    }
    Err(Misuse("no command".into()).into())
}

/// The name of a command, if `word` is one.
pub fn name(word: Option<&str>) -> &'static str {
    let command = word.and_then(|word| find(word).ok());
    command.map_or("", |command| command.name)
}

fn find(word: &str) -> Result<&'static Command, Misuse> {
    let mut all = COMMANDS.iter();
    all.find(|command| command.name == word)
        .ok_or_else(|| Misuse(format!("unknown command {word:?}")))
}

fn print_help(text: &str, arguments: &Arguments) -> Result<Verdict> {
    arguments.output().print(text)?;
    Ok(Verdict::Good)
}

fn overview() -> String {
    let mut text = String::from(
        "podwire - attach containers to networks by hand\n\
         \n\
         Usage: podwire COMMAND [OPTION]... [ARGUMENT]...\n\
         \n\
         Commands:\n",
    );
    for command in COMMANDS {
        text += &format!("  {:<10}{}\n", command.name, command.summary);
    }
    text + "\n\
     podwire COMMAND --help is the manual of a command.\n\
     add, del, check, gc and status read what cnitool reads and write what it writes.\n"
}

/// Takes what the user left out from the cache, so that the plugins get at CHECK and DEL
/// what they got at ADD.
fn complete(attachment: &mut Attachment, cached: Option<&CachedAttachment>) {
    let Some(cached) = cached else { return };
    if attachment.netns.is_empty() {
        attachment.netns = cached.netns.clone();
    }
    if attachment.args.is_none() {
        attachment.args = cached.cni_args.clone();
    }
    if attachment.capability_args.is_none() {
        attachment.capability_args = cached.capability_args.clone();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_manual_has_its_sections_and_fits_a_terminal() {
        for command in COMMANDS {
            let manual = command.manual();
            for section in ["Usage: podwire ", "Examples:", "Exit status:"] {
                assert!(manual.contains(section), "{}: {section}", command.name);
            }
            let long = manual.lines().find(|line| line.len() > 80);
            assert_eq!(long, None, "{}", command.name);
        }
    }

    #[test]
    fn the_overview_lists_every_command() {
        for command in COMMANDS {
            assert!(overview().contains(command.summary));
        }
    }
}
