//! Errors as the CNI specification defines them: a code, a message, details.
//!
//! Any error of a plugin is an [`anyhow::Error`]. One that must leave with a
//! code of its own carries an [`Error`] somewhere in its chain; all others are
//! [`Code::Internal`], with the whole chain as the message.

use std::fmt;

/// The error codes that podwire emits.
///
/// Source: CNI specification 1.1.0, section "Error"; 8 and 999 are libcni's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Code {
    /// The configuration asks for a version that the plugin does not speak.
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
    /// The network namespace is missing, is none, or is the plugin's own.
    InvalidNetns = 8,
    /// What failed may pass: the runtime should try again later.
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
        }
    }
}

/// An error that leaves the process with its own code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// One of [`Code`], or whatever a delegated plugin answered.
    pub code: u32,
    /// What was being done to what, then why it failed. Lower case, no full stop.
    pub msg: String,
    /// More for the reader; empty when there is nothing to add.
    pub details: String,
}

impl Error {
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

    /// The error that is printed for `error`: the [`Error`] in its chain
    /// unchanged, or else the chain in one line as [`Code::Internal`].
    pub fn from_chain(error: &anyhow::Error) -> Self {
        error
            .chain()
            .find_map(|cause| cause.downcast_ref::<Self>())
            .cloned()
            .unwrap_or_else(|| Code::Internal.err(format!("{error:#}")))
    }
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

/// The C library's text for an error with a small first letter and without the
/// number, as messages have it: "no such file or directory".
pub fn reason(error: &std::io::Error) -> String {
    let text = error.to_string();
    as_cause(text.split(" (os error").next().unwrap_or_default())
}

/// A sentence as messages have it: with a small first letter, unless the word is an
/// abbreviation, and without a full stop.
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

    #[test]
    fn a_coded_error_keeps_its_code_under_context() {
        let failed: anyhow::Result<()> = Err(Code::InvalidConfig.err("vlan 5000").into());
        let error = failed.context("load configuration").unwrap_err();
        assert_eq!(Error::from_chain(&error).code, 7);
        assert_eq!(Error::from_chain(&error).msg, "vlan 5000");
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
