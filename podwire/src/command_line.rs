//! The command line: its commands and common options. Completions and manual pages are made
//! from the same description.

use std::ffi::OsString;

use clap::{CommandFactory, FromArgMatches, Parser};

use crate::commands::Command;
use crate::output::Output;

/// The layout of a manual after the command's name.
const MANUAL: &str = " - {about}\n\n{usage-heading} {usage}\n\n{all-args}{after-help}";
/// The columns of a terminal.
const WIDTH: usize = 80;

/// Attach containers to networks by hand.
///
/// podwire COMMAND --help is the manual of a command. add, del, check, gc and status read what
/// cnitool reads and write what it writes.
#[derive(Debug, Parser)]
#[command(name = "podwire", version)]
pub struct CommandLine {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Print the result as JSON; an error too, as an object with code, msg and details, on
    /// standard output
    #[arg(long, global = true)]
    json: bool,
    /// Print text for people, also into a pipe or file
    #[arg(long, global = true)]
    text: bool,
}

impl CommandLine {
    /// The form of output that the options choose.
    pub fn output(&self) -> Output {
        Output::new(self.json, self.text)
    }
}

/// The description of the command line.
pub fn description() -> clap::Command {
    laid_out(CommandLine::command().args_override_self(true), "")
}

fn laid_out(command: clap::Command, parent: &str) -> clap::Command {
    let name = format!("{parent}{}", command.get_name());
    command
        .help_template(format!("{name}{MANUAL}"))
        .arg_required_else_help(false)
        .max_term_width(WIDTH)
        .mut_subcommands(|command| laid_out(command, &format!("{name} ")))
}

/// The arguments, the command first.
#[derive(Debug)]
pub struct Words {
    /// `podwire`, or with the command: `podwire peers set`.
    pub name: String,
    words: Vec<OsString>,
    description: clap::Command,
}

impl Words {
    /// Arguments without the name of the program. Options that precede the command are moved
    /// behind it: they may stand anywhere.
    pub fn new(line: impl IntoIterator<Item = OsString>) -> Self {
        let root = description();
        let (mut names, mut options) = (vec![OsString::from(root.get_name())], Vec::new());
        let mut command = &root;
        let mut line = line.into_iter().peekable();
        while command.has_subcommands()
            && let Some(word) = line.next_if(|it| is_option(it) || find(command, it).is_some())
        {
            if let Some(found) = find(command, &word) {
                command = found;
                names.push(word);
                continue;
            }
            let has_value = takes_value(&root, &word);
            options.push(word);
            options.extend(line.next_if(|_| has_value));
        }
        let name = names.join(" ".as_ref()).to_string_lossy().into_owned();
        let words = names.into_iter().chain(options).chain(line).collect();
        Self {
            name,
            words,
            description: root,
        }
    }

    /// Reads the arguments. An error is a wrong command line, or the manual, for `--help`.
    pub fn read(self) -> Result<CommandLine, clap::Error> {
        CommandLine::from_arg_matches(&self.description.try_get_matches_from(self.words)?)
    }
}

fn is_option(word: &OsString) -> bool {
    word.as_encoded_bytes().starts_with(b"-") && word != "--"
}

fn find<'a>(command: &'a clap::Command, word: &OsString) -> Option<&'a clap::Command> {
    command.find_subcommand(word)
}

/// Whether the word after the option `word` is its value, in any command. `-h` before the command asks
/// for help; only `podwire run -h` is Docker's short form of --hostname.
fn takes_value(command: &clap::Command, word: &OsString) -> bool {
    if word == "-h" {
        return false;
    }
    let is_word = |arg: &clap::Arg| {
        let long = arg.get_long().map(|long| format!("--{long}"));
        let short = arg.get_short().map(|short| format!("-{short}"));
        long.is_some_and(|it| *word == *it) || short.is_some_and(|it| *word == *it)
    };
    let mut own = command.get_arguments();
    own.any(|arg| arg.get_action().takes_values() && is_word(arg))
        || command.get_subcommands().any(|it| takes_value(it, word))
}

/// The error about a wrong command line in one line, with the suggestion.
pub fn misuse(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let text = text.strip_prefix("error: ").unwrap_or(&text);
    let paragraphs = text.split("\n\n").map(str::trim);
    let known =
        paragraphs.take_while(|it| !it.starts_with("Usage:") && !it.starts_with("For more"));
    let known = known.filter(|it| !it.starts_with("tip: to pass"));
    let lines = known.map(|it| it.split_whitespace().collect::<Vec<_>>().join(" "));
    lines.collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &[&str]) -> Result<CommandLine, clap::Error> {
        Words::new(line.iter().map(OsString::from)).read()
    }

    #[test]
    fn the_description_is_consistent() {
        description().debug_assert();
    }

    #[test]
    fn options_may_stand_before_the_command() {
        for line in [
            &["-i", "net1", "--json", "add", "n", "/x"][..],
            &["--ifname=net1", "add", "--json", "n", "/x"],
            &["add", "n", "--json", "/x", "-inet1"],
            &["-i", "net0", "add", "n", "-i", "net1", "/x", "--json"],
        ] {
            let read = read(line).unwrap();
            assert!(read.output().is_json(), "{line:?}");
            let read = format!("{read:?}");
            assert!(read.contains("net1") && !read.contains("net0"), "{read}");
        }
        let words = Words::new(["--conf-dir", "peers", "peers", "--json", "set"].map(Into::into));
        assert_eq!(words.name, "podwire peers set");
        assert_eq!(words.words[3..], ["--conf-dir", "peers", "--json"]);
        assert_eq!(Words::new(["-i".into()]).name, "podwire");
    }

    #[test]
    fn a_wrong_command_line_is_one_line() {
        for (line, expected) in [
            (
                &["chekc", "n"][..],
                "unrecognized subcommand 'chekc'; tip: a similar subcommand exists: 'check'",
            ),
            (
                &["add", "n"],
                "the following required arguments were not provided: <NETNS>",
            ),
            (
                &["add", "--keep-cached", "n", "x"],
                "unexpected argument '--keep-cached' found",
            ),
            (
                &["gc", "n", "--keep-cache"],
                "unexpected argument '--keep-cache' found; tip: a similar argument exists: '--keep-cached'",
            ),
        ] {
            assert_eq!(misuse(&read(line).unwrap_err()), expected, "{line:?}");
        }
    }

    #[test]
    fn every_manual_has_its_sections_and_fits_a_terminal() {
        let mut all = description();
        all.build();
        for command in all
            .get_subcommands_mut()
            .filter(|it| it.get_name() != "help")
        {
            let name = command.get_name().to_owned();
            let manual = command.render_long_help().to_string();
            for section in ["Usage: podwire ", "Examples:", "Exit status:"] {
                assert!(manual.contains(section), "{name}: {section}");
            }
            let long = manual.lines().find(|line| line.len() > WIDTH);
            assert_eq!(long, None, "{name}");
        }
    }

    /// The README has the usage of each command, and each option of `add` with its variable and
    /// its default in one row.
    #[test]
    fn the_readme_and_the_manuals_agree() {
        let readme = include_str!("../README.md");
        let mut all = description();
        all.build();
        let commands = all.get_subcommands().filter(|it| it.get_name() != "help");
        for command in commands.flat_map(|it| [vec![it], it.get_subcommands().collect()].concat()) {
            if command.has_subcommands() || command.get_name() == "help" {
                continue;
            }
            let usage = command.clone().render_usage().to_string();
            let usage = usage.replace("Usage: ", "`") + "`";
            assert!(readme.contains(&usage), "{usage}");
        }
        let root = description();
        let add = root.find_subcommand("add").unwrap();
        for arg in add.get_arguments().filter(|it| it.get_long().is_some()) {
            let mut facts = vec![format!("`--{}", arg.get_long().unwrap_or_default())];
            if arg.get_action().takes_values() {
                let defaults = arg.get_default_values().iter();
                let given = defaults.map(|it| it.as_os_str()).chain(arg.get_env());
                facts.extend(given.map(|it| format!("`{}`", it.display())));
            }
            let mut rows = readme.lines();
            let has_all = |row: &str| facts.iter().all(|it| row.contains(it));
            assert!(rows.any(has_all), "{facts:?}");
        }
    }
}
