//! Completion of command lines. The shell asks podwire itself for the words that may follow:
//! commands and options from their description, names of networks and containers from the node.

use std::ffi::{OsStr, OsString};
use std::path::Path;

use clap::ValueEnum;
use clap_complete::engine::{ArgValueCandidates, CompletionCandidate, complete};
use networks::named::Catalogue;

use crate::command_line::description;
use crate::output::print;

/// The hidden command with which the shell asks: `podwire __complete SHELL INDEX WORD…`, where
/// INDEX is that of the word at the cursor, and `podwire` the word 0.
const ASK: &str = "__complete";
/// Where ip-netns(8) and runtimes have namespaces.
const NAMESPACES: &str = "/run/netns";

/// A shell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Shell {
    /// GNU Bash
    Bash,
    /// The Z shell
    Zsh,
    /// fish
    Fish,
}

impl Shell {
    /// The script that the shell reads at its start.
    pub fn script(self) -> &'static str {
        match self {
            Self::Bash => include_str!("completion/podwire.bash"),
            Self::Zsh => include_str!("completion/podwire.zsh"),
            Self::Fish => include_str!("completion/podwire.fish"),
        }
    }
}

/// Whether the arguments, without the program's name, are a shell's question.
pub fn is_question(arguments: &[OsString]) -> bool {
    arguments.first().is_some_and(|it| it == ASK)
}

/// Prints a line for each word that may stand at the cursor: with a tab and its meaning, where
/// the shell shows that. A question that cannot be answered has no words.
pub fn answer(arguments: &[OsString]) {
    let [_, shell, index, words @ ..] = arguments else {
        return;
    };
    let shell = Shell::from_str(&shell.to_string_lossy(), false);
    let index = index.to_string_lossy().parse();
    if let (Ok(shell), Ok(index)) = (shell, index) {
        // A shell that has closed its pipe wants no answer.
        let _ = print(&lines(shell, index, words));
    }
}

fn lines(shell: Shell, index: usize, words: &[OsString]) -> String {
    let mut command = with_names(description(), Path::new(conf_dir(words)));
    let found = complete(&mut command, words.to_vec(), index, None).unwrap_or_default();
    let mut lines = String::new();
    for candidate in found.iter().filter(|it| !it.is_hide_set()) {
        let meaning = candidate.get_help().map(ToString::to_string);
        lines += &candidate.get_value().to_string_lossy();
        if let (Some(meaning), Shell::Zsh | Shell::Fish) = (meaning, shell) {
            lines += "\t";
            lines += meaning.lines().next().unwrap_or_default();
        }
        lines += "\n";
    }
    lines
}

/// The value of `--conf-dir`, as far as it is written.
fn conf_dir(words: &[OsString]) -> &OsStr {
    let mut pairs = words.windows(2).filter(|it| it[0] == "--conf-dir");
    pairs
        .next_back()
        .map_or(OsStr::new("/etc/cni/net.d"), |it| &it[1])
}

/// The description with what a node has for its arguments, by their names.
fn with_names(command: clap::Command, conf_dir: &Path) -> clap::Command {
    let command = command.mut_args(|arg| {
        let conf_dir = conf_dir.to_owned();
        match arg.get_id().as_str() {
            "network" | "networks" => arg.add(ArgValueCandidates::new(move || networks(&conf_dir))),
            "netns" => arg.add(ArgValueCandidates::new(namespaces)),
            "container" | "containers" => arg.add(ArgValueCandidates::new(containers)),
            "plugins" => arg.add(ArgValueCandidates::new(plugins)),
            _ => arg,
        }
    });
    command.mut_subcommands(|command| with_names(command, conf_dir))
}

fn networks(conf_dir: &Path) -> Vec<CompletionCandidate> {
    let all = Catalogue::read(conf_dir).map(|it| it.networks);
    let all = all.unwrap_or_default().into_iter();
    all.map(|it| CompletionCandidate::new(it.name)).collect()
}

fn namespaces() -> Vec<CompletionCandidate> {
    let all = std::fs::read_dir(NAMESPACES).into_iter().flatten();
    let paths = all.flatten().map(|it| it.path());
    paths.map(CompletionCandidate::new).collect()
}

fn containers() -> Vec<CompletionCandidate> {
    let all = containers::place::running().unwrap_or_default().into_iter();
    all.map(|it| CompletionCandidate::new(it.name)).collect()
}

fn plugins() -> Vec<CompletionCandidate> {
    let all = crate::validate::plugins().into_iter();
    all.map(CompletionCandidate::new).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(shell: Shell, line: &[&str]) -> Vec<String> {
        let words: Vec<OsString> = line.iter().map(Into::into).collect();
        let lines = lines(shell, words.len() - 1, &words);
        lines.lines().map(str::to_owned).collect()
    }

    #[test]
    fn commands_and_options_are_completed() {
        assert_eq!(ask(Shell::Bash, &["podwire", "netw"]), ["network"]);
        assert_eq!(
            ask(Shell::Bash, &["podwire", "network", "conn"]),
            ["connect"]
        );
        assert_eq!(
            ask(Shell::Bash, &["podwire", "install", "--lay"]),
            ["--layout"]
        );
        let layouts = ["one", "many"];
        assert_eq!(
            ask(Shell::Bash, &["podwire", "install", "--layout", ""]),
            layouts
        );
        let fish = ask(Shell::Fish, &["podwire", "uninst"]);
        assert!(fish[0].starts_with("uninstall\tTake back"), "{fish:?}");
        assert!(
            !ask(Shell::Bash, &["podwire", ""])
                .iter()
                .any(|it| it.contains("__"))
        );
    }

    #[test]
    fn networks_are_completed_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let conf = r#"{"cniVersion": "1.0.0", "name": "mynet", "plugins": [{"type": "bridge"}]}"#;
        std::fs::write(dir.path().join("10-x.conflist"), conf).unwrap();
        let dir = dir.path().to_str().unwrap();
        for line in [
            &["podwire", "add", "--conf-dir", dir, "my"][..],
            &["podwire", "network", "rm", "--conf-dir", dir, "my"],
            &["podwire", "run", "--conf-dir", dir, "--network", "my"],
        ] {
            assert_eq!(ask(Shell::Bash, line), ["mynet"], "{line:?}");
        }
    }

    #[test]
    fn a_question_that_makes_no_sense_has_no_answer() {
        for words in [
            &["__complete"][..],
            &["__complete", "csh", "1", "podwire", ""],
        ] {
            let words: Vec<OsString> = words.iter().map(Into::into).collect();
            assert!(is_question(&words));
            answer(&words);
        }
        assert_eq!(lines(Shell::Bash, 7, &["podwire".into()]), "");
    }
}
