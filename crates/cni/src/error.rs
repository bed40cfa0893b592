//! Errors as the CNI specification defines them: a code, a message, details.
//!
//! Any error of a plugin is an [`anyhow::Error`]. Code and details are labels on its chain:
//! of an [`Error`], of [`WithLabel`], or of a [`SystemError`]. [`Error::from_chain`] makes
//! the printed document of it: the whole chain is the message. The document of a delegate
//! stays as it came.

use std::fmt;

use crate::privilege::{self, Capability, Denied};
use crate::system_error::SystemError;

/// The error codes of podwire.
///
/// Source: CNI specification 1.1.0, section "Error"; 8 and 999 are libcni's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Code {
    /// The plugin does not support the configuration's version.
    IncompatibleVersion = 1,
    /// A key is known but its value is not supported (the message has both).
    UnsupportedField = 2,
    /// A `CNI_*` variable is missing or malformed.
    InvalidEnvironment = 4,
    /// Standard input or output could not be used.
    Io = 5,
    /// The document on standard input is not JSON.
    Decode = 6,
    /// A value in the configuration is out of range, or contradicts another.
    InvalidConfig = 7,
    /// The network namespace is missing, is not one, or is the plugin's own.
    InvalidNetns = 8,
    /// The cause may pass: the runtime should try again later.
    TryAgain = 11,
    /// STATUS: the plugin cannot serve ADD now.
    NotAvailable = 50,
    /// STATUS: existing containers may have limited connectivity.
    LimitedConnectivity = 51,
    /// Everything else.
    Internal = 999,
}

impl Code {
    /// An error with this code and `msg`.
    pub fn err(self, msg: impl Into<String>) -> Error {
        Error {
            code: self as u32,
            msg: msg.into(),
            details: String::new(),
            is_document: false,
        }
    }
}

/// An error with a code of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// One of [`Code`], or the code of a delegate.
    pub code: u32,
    /// What was being done to what, then why it failed. Lower case, no full stop.
    pub msg: String,
    /// More for the reader; empty when there is nothing to add.
    pub details: String,
    /// Another plugin has reported it: code, message and details stay as they are.
    pub(crate) is_document: bool,
}

impl Error {
    /// The document in which another plugin has reported its error.
    pub fn document(code: u32, msg: impl Into<String>, details: impl Into<String>) -> Self {
        Self {
            code,
            msg: msg.into(),
            details: details.into(),
            is_document: true,
        }
    }

    /// The same error with `details`.
    pub fn details(mut self, details: impl Into<String>) -> Self {
        self.details = details.into();
        self
    }

    /// Adds `more` to the details, after what is there already.
    pub fn add_details(&mut self, more: &str) {
        if !self.details.is_empty() {
            self.details.push_str("; ");
        }
        self.details.push_str(more);
    }

    /// The error that is printed for `error`.
    ///
    /// Its message is the whole chain in one line, followed by the capabilities that this
    /// process lacks, if the kernel or a program refused an operation for that. Its code is
    /// the outermost in the chain, or else [`Code::Internal`]. The document of a delegate is
    /// taken unchanged: of what encloses it, only details are added.
    pub fn from_chain(error: &anyhow::Error) -> Self {
        let mut chain = Chain::default();
        chain.read(error);
        chain.into_error()
    }
}

/// What the chain of an error says.
#[derive(Default)]
struct Chain {
    code: Option<u32>,
    msg: Vec<String>,
    details: Vec<String>,
    document: Option<Error>,
    missing: Option<String>,
}

impl Chain {
    fn read(&mut self, error: &anyhow::Error) {
        for cause in error.chain() {
            if let Some(label) = cause.downcast_ref::<Label>() {
                self.set_code(label.code.map(|code| code as u32));
                self.read(&label.error);
                self.details.extend(label.details.clone());
                // The causes of a label are those of its error.
                return;
            }
            if let Some(coded) = cause.downcast_ref::<Error>() {
                if coded.is_document && self.code.is_none() {
                    self.document = Some(coded.clone());
                }
                self.set_code(Some(coded.code));
                self.msg.push(coded.msg.clone());
                self.details.extend(Some(coded.details.clone()));
                continue;
            }
            if let Some(failed) = cause.downcast_ref::<SystemError>() {
                self.set_code(failed.code().map(|code| code as u32));
                self.set_missing(failed.needed());
            } else if let Some(denied) = cause.downcast_ref::<Denied>() {
                self.set_missing(denied.needs);
            }
            self.msg.push(cause.to_string());
        }
    }

    fn set_code(&mut self, code: Option<u32>) {
        self.code = self.code.or(code);
    }

    fn set_missing(&mut self, needed: &[Capability]) {
        self.missing = self.missing.take().or_else(|| privilege::missing(needed));
    }

    fn into_error(self) -> Error {
        let mut error = self.document.unwrap_or_else(|| Error {
            code: self.code.unwrap_or(Code::Internal as u32),
            msg: {
                let mut parts = self.msg;
                parts.extend(self.missing);
                parts.join(": ")
            },
            details: String::new(),
            is_document: false,
        });
        error.details.clear();
        for more in self.details.iter().filter(|more| !more.is_empty()) {
            error.add_details(more);
        }
        error
    }
}

/// A code or details for an error of any kind.
#[derive(Debug)]
struct Label {
    code: Option<Code>,
    details: Option<String>,
    error: anyhow::Error,
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.error, f)
    }
}

impl std::error::Error for Label {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.error.source()
    }
}

/// Labels an error without a change of its text.
pub trait WithLabel<T> {
    /// With `code`, which takes precedence over a code further down the chain.
    fn code(self, code: Code) -> anyhow::Result<T>;

    /// With `details`, which follow the details further down the chain.
    fn details(self, details: impl Into<String>) -> anyhow::Result<T>;
}

impl<T, E: Into<anyhow::Error>> WithLabel<T> for Result<T, E> {
    fn code(self, code: Code) -> anyhow::Result<T> {
        self.map_err(|error| label(error.into(), Some(code), None))
    }

    fn details(self, details: impl Into<String>) -> anyhow::Result<T> {
        self.map_err(|error| label(error.into(), None, Some(details.into())))
    }
}

fn label(error: anyhow::Error, code: Option<Code>, details: Option<String>) -> anyhow::Error {
    anyhow::Error::new(Label {
        code,
        details,
        error,
    })
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.msg)?;
        if !self.details.is_empty() {
            write!(f, "; {}", self.details)?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

/// The C library's text for an error in the style of messages, without the number: "no such
/// file or directory".
pub fn reason(error: &std::io::Error) -> String {
    let text = error.to_string();
    as_cause(text.split(" (os error").next().unwrap_or_default())
}

/// A sentence in the style of messages: the first letter is small, unless the word is an
/// abbreviation, and there is no full stop.
pub fn as_cause(sentence: &str) -> String {
    let sentence = sentence.trim_end_matches(['.', '\n', ' ']);
    let mut letters = sentence.chars();
    let Some(first) = letters.next() else {
        return String::new();
    };
    match letters.clone().next() {
        Some(second) if second.is_uppercase() => sentence.to_owned(),
        _ => first.to_lowercase().chain(letters).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    fn printed(error: anyhow::Error) -> (u32, String, String) {
        let error = Error::from_chain(&error);
        (error.code, error.msg, error.details)
    }

    fn expected(code: u32, msg: &str, details: &str) -> (u32, String, String) {
        (code, msg.to_owned(), details.to_owned())
    }

    #[test]
    fn texts_are_those_of_glibc_with_every_c_library() {
        for (errno, text) in [
            (16, "device or resource busy"),
            (17, "file exists"),
            (101, "network is unreachable"),
        ] {
            assert_eq!(reason(&std::io::Error::from_raw_os_error(errno)), text);
        }
    }

    #[test]
    fn code_details_and_context_are_kept() {
        let failed: anyhow::Result<()> =
            Err(Code::InvalidConfig.err("vlan 5000").details("a").into());
        let failed = failed.context("read keys").details("b").context("load");
        let error = failed.unwrap_err();
        assert_eq!(format!("{error:#}"), "load: read keys: vlan 5000; a");
        assert_eq!(
            printed(error),
            expected(7, "load: read keys: vlan 5000", "a; b")
        );
    }

    #[test]
    fn the_outermost_code_counts() {
        let busy = || SystemError::new("set eth0 up", nix::errno::Errno::EBUSY);
        let failed = Err::<(), _>(busy()).context("wire the pod");
        let text = "wire the pod: set eth0 up: device or resource busy (16)";
        assert_eq!(printed(failed.unwrap_err()), expected(11, text, ""));
        let failed = Err::<(), _>(busy()).code(Code::NotAvailable).context("x");
        let text = "x: set eth0 up: device or resource busy (16)";
        assert_eq!(printed(failed.unwrap_err()), expected(50, text, ""));
    }

    #[test]
    fn the_document_of_a_delegate_stays_as_it_came() {
        let failed = Err::<(), _>(Error::document(0, "Busy.", "x")).context("request addresses");
        let failed = failed.details("also failed: y");
        assert_eq!(
            printed(failed.unwrap_err()),
            expected(0, "Busy.", "x; also failed: y")
        );
    }

    #[test]
    fn a_reason_is_the_c_librarys() {
        let error = std::io::Error::from_raw_os_error(17);
        assert_eq!(reason(&error), "file exists");
    }

    #[test]
    fn any_other_error_is_internal_with_its_whole_chain() {
        let failed: anyhow::Result<()> = Err(anyhow::anyhow!("file exists (17)"));
        let error = failed.context("add veth veth1").unwrap_err();
        let coded = Error::from_chain(&error);
        assert_eq!(coded.code, 999);
        assert_eq!(coded.msg, "add veth veth1: file exists (17)");
    }
}
