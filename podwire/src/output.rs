//! The output of podwire, for people or for programs.

use std::io::{IsTerminal, Write};

use anyhow::{Context, Result};
use cni::Error;
use serde::Serialize;

/// The form of output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Choice {
    /// Nothing but the errors on standard error.
    Silent,
    Json,
    Text,
    /// Text at a terminal; elsewhere what cnitool prints.
    Default,
}

/// Prints results and errors.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    choice: Choice,
    terminal: bool,
}

impl Output {
    /// Chooses the form by `--json` and `--text`; `--json` wins.
    pub fn new(json: bool, text: bool) -> Self {
        let choice = match (json, text) {
            (true, _) => Choice::Json,
            (false, true) => Choice::Text,
            (false, false) => Choice::Default,
        };
        Self {
            choice,
            terminal: std::io::stdout().is_terminal(),
        }
    }

    /// No output: for a command that another one runs.
    pub fn silent() -> Self {
        Self {
            choice: Choice::Silent,
            terminal: false,
        }
    }

    /// Whether nothing is to be printed.
    pub fn is_silent(&self) -> bool {
        self.choice == Choice::Silent
    }

    /// Whether to print text for people. Scripts for cnitool read the result from a pipe
    /// without `--json`.
    pub fn shows_results(&self) -> bool {
        match self.choice {
            Choice::Json | Choice::Silent => false,
            Choice::Text => true,
            Choice::Default => self.terminal,
        }
    }

    /// Whether `--json` was given.
    pub fn is_json(&self) -> bool {
        self.choice == Choice::Json
    }

    /// Prints a document, indented by four spaces as plugins do.
    pub fn print_json(&self, document: &impl Serialize) -> Result<()> {
        print(&pretty(document)?)
    }

    /// Prints a success for people; programs have the exit status.
    pub fn remark(&self, text: &str) -> Result<()> {
        if self.shows_results() {
            print(text)?;
        }
        Ok(())
    }

    /// Reports the error that ends the command: with `--json` on standard output, as a plugin
    /// does, otherwise on standard error.
    pub fn report(&self, error: &anyhow::Error) {
        let error = Error::from_chain(error);
        if self.is_json() && self.print_json(&ErrorDocument::of(&error)).is_ok() {
            return;
        }
        cni::log(format_args!("podwire: {error}"));
    }
}

/// The document of the specification, section "Error".
#[derive(Serialize)]
pub struct ErrorDocument<'a> {
    code: u32,
    msg: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    details: &'a str,
}

impl<'a> ErrorDocument<'a> {
    /// An error as a plugin prints it.
    pub fn of(error: &'a Error) -> Self {
        Self {
            code: error.code,
            msg: &error.msg,
            details: &error.details,
        }
    }
}

/// A number with its noun: `1 file`, `2 files`.
pub fn counted(count: usize, thing: &str) -> String {
    match count {
        1 => format!("1 {thing}"),
        count => format!("{count} {thing}s"),
    }
}

/// Prints text, with a newline at its end.
pub fn print(text: &str) -> Result<()> {
    let line_end = if text.ends_with('\n') { "" } else { "\n" };
    let text = format!("{text}{line_end}");
    let written = cni::process::Stdout.write_all(text.as_bytes());
    written.context("write to standard output")
}

fn pretty(document: &impl Serialize) -> Result<String> {
    let mut text = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    document.serialize(&mut serde_json::Serializer::with_formatter(
        &mut text, formatter,
    ))?;
    Ok(String::from_utf8(text)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use cni::Code;

    #[test]
    fn the_document_of_an_error_has_details_only_if_there_are_any() {
        let text = |error: &Error| {
            let text = pretty(&ErrorDocument::of(error)).unwrap();
            text.split_whitespace().collect::<String>()
        };
        let error = Code::TryAgain.err("busy");
        assert_eq!(text(&error), r#"{"code":11,"msg":"busy"}"#);
        assert_eq!(
            text(&error.details("x")),
            r#"{"code":11,"msg":"busy","details":"x"}"#
        );
    }

    #[test]
    fn json_beats_text_and_a_pipe_gets_the_result() {
        let piped = |json, text| Output {
            terminal: false,
            ..Output::new(json, text)
        };
        assert!(piped(true, true).is_json());
        assert!(piped(false, true).shows_results());
        assert!(!piped(false, false).shows_results() && !piped(false, false).is_json());
    }
}
