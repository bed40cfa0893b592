//! The environment variables of a call.
//!
//! Source: CNI specification 1.1.0, section "Parameters"; which variables each
//! verb needs, and the texts of the errors, are the Go library's.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::{Path, PathBuf};

use crate::error::{Code, Error};

/// A container id: letters, digits, `_`, `.` and `-`, not starting with the last three.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ContainerId(String);

impl ContainerId {
    /// Checks `text`; the error is what the runtime reads.
    pub fn parse(text: &str) -> Result<Self, Error> {
        if !is_identifier(text) {
            let error = Code::InvalidEnvironment.err("invalid characters in containerID");
            return Err(error.details(text));
        }
        Ok(Self(text.to_owned()))
    }

    /// As the runtime wrote it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whether a text is a valid container id or network name: `[a-zA-Z0-9][a-zA-Z0-9_.\-]*`.
pub(crate) fn is_identifier(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    match text.as_bytes() {
        [first, rest @ ..] => first.is_ascii_alphanumeric() && rest.iter().copied().all(inner),
        [] => false,
    }
}

/// The name of an interface, at most 15 bytes: the rules are the kernel's (`dev_valid_name`
/// in net/core/dev.c).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct IfName(String);

impl IfName {
    /// Checks `text`; the error is what the runtime reads.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let fault = |msg: &str| Err(Code::InvalidEnvironment.err(msg));
        if text.is_empty() {
            return fault("interface name is empty");
        }
        if text.len() > 15 {
            return Err(Code::InvalidEnvironment
                .err("interface name is too long")
                .details("interface name should be less than 16 characters"));
        }
        if matches!(text, "." | "..") {
            return fault("interface name is . or ..");
        }
        if text.contains(|c: char| matches!(c, '/' | ':') || c.is_whitespace()) {
            return fault("interface name contains / or : or whitespace characters");
        }
        Ok(Self(text.to_owned()))
    }

    /// The same for an interface that we create: the kernel refuses the names of its settings
    /// for all interfaces, and replaces `%d` by a number.
    pub fn parse_new(text: &str) -> Result<Self, Error> {
        if matches!(text, "all" | "default") || text.contains('%') {
            return Err(Code::InvalidEnvironment.err("no interface can have that name"));
        }
        Self::parse(text)
    }

    /// As the runtime wrote it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for IfName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The path of a network namespace, as the runtime wrote it. `netns` checks it when it opens
/// it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetnsPath(String);

impl NetnsPath {
    /// Any path that is not empty.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// As the runtime wrote it: results contain it to the letter.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// As a path.
    pub fn as_path(&self) -> &Path {
        Path::new(&self.0)
    }
}

/// The verb of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // the specification's names
pub enum Verb {
    Add,
    Del,
    Check,
    Gc,
    Status,
    Version,
}

impl Verb {
    /// As the specification writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Gc => "GC",
            Self::Status => "STATUS",
            Self::Version => "VERSION",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [
            Self::Add,
            Self::Del,
            Self::Check,
            Self::Gc,
            Self::Status,
            Self::Version,
        ]
        .into_iter()
        .find(|verb| verb.as_str() == text)
    }

    /// Whether the verb acts on one attachment.
    fn names_an_attachment(self) -> bool {
        matches!(self, Self::Add | Self::Del | Self::Check)
    }
}

/// The environment of a process; in tests, any list of variables.
#[derive(Clone, Debug, Default)]
pub struct Environment(Vec<(OsString, OsString)>);

impl Environment {
    /// The environment of this process.
    pub fn of_process() -> Self {
        Self::from_pairs(std::env::vars_os())
    }

    /// An environment with these variables. The first of duplicate variables counts, as in
    /// Go; delegates get only that one.
    pub fn from_pairs<K: Into<OsString>, V: Into<OsString>>(
        pairs: impl IntoIterator<Item = (K, V)>,
    ) -> Self {
        let mut own: Vec<(OsString, OsString)> = Vec::new();
        for (key, value) in pairs {
            let key = key.into();
            if own.iter().all(|(other, _)| *other != key) {
                own.push((key, value.into()));
            }
        }
        Self(own)
    }

    /// All variables, for a delegate.
    pub fn iter(&self) -> impl Iterator<Item = (&OsStr, &OsStr)> {
        self.0
            .iter()
            .map(|(key, value)| (key.as_os_str(), value.as_os_str()))
    }

    /// The same with `key` as `value`.
    pub(crate) fn with(&self, key: &str, value: &str) -> Self {
        let others = self.0.iter().filter(|(other, _)| other != key);
        let mut all: Vec<_> = others.cloned().collect();
        all.push((key.into(), value.into()));
        Self(all)
    }

    /// A variable; an empty one counts as missing.
    fn get(&self, name: &str) -> Option<&OsStr> {
        let (_, value) = self.0.iter().find(|(key, _)| key == name)?;
        Some(value.as_os_str()).filter(|value| !value.is_empty())
    }

    /// A variable as text.
    fn text(&self, name: &str) -> Result<Option<&str>, Error> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        let not_text = || Code::InvalidEnvironment.err(format!("{name} is not valid UTF-8"));
        value.to_str().map(Some).ok_or_else(not_text)
    }

    /// `CNI_COMMAND`, before it is known to be a verb.
    pub(crate) fn command(&self) -> Result<Option<&str>, Error> {
        self.text("CNI_COMMAND")
    }

    /// `CNI_NETNS_OVERRIDE`: the runtime deliberately passes the plugin's own namespace.
    pub(crate) fn netns_override(&self) -> bool {
        self.get("CNI_NETNS_OVERRIDE")
            .is_some_and(|value| value == "1" || value.eq_ignore_ascii_case("true"))
    }
}

/// The variables of one call, checked for its verb.
#[derive(Clone, Debug)]
pub struct Variables {
    /// `None` for an unknown verb, which is reported after the configuration is read.
    pub verb: Option<Verb>,
    /// `CNI_CONTAINERID`, if the verb acts on an attachment.
    pub container_id: Option<ContainerId>,
    /// `CNI_NETNS`; optional for DEL.
    pub netns: Option<NetnsPath>,
    /// `CNI_IFNAME`, if the verb acts on an attachment.
    pub ifname: Option<IfName>,
    /// `CNI_ARGS`, unparsed; empty if it is not set.
    pub args: String,
    /// `CNI_PATH`: the directories of delegates, in order.
    pub path: Vec<PathBuf>,
}

impl Variables {
    /// Reads and checks the variables that `command` needs. The first malformed value is
    /// reported; missing variables are reported together.
    pub(crate) fn read(env: &Environment, command: &str) -> Result<Self, Error> {
        let verb = Verb::parse(command);
        let attachment = verb.is_some_and(Verb::names_an_attachment);
        let mut missing = Vec::new();
        let mut required = |name: &'static str, needed: bool| -> Result<Option<&str>, Error> {
            let value = env.text(name)?;
            if value.is_none() && needed {
                missing.push(name);
            }
            Ok(value.filter(|_| attachment || name == "CNI_PATH"))
        };

        let container_id = required("CNI_CONTAINERID", attachment)?
            .map(ContainerId::parse)
            .transpose()?;
        let netns =
            required("CNI_NETNS", attachment && verb != Some(Verb::Del))?.map(NetnsPath::new);
        let ifname = required("CNI_IFNAME", attachment)?
            .map(IfName::parse)
            .transpose()?;
        let path = required("CNI_PATH", verb.is_some())?.unwrap_or_default();
        let path = std::env::split_paths(path)
            .filter(|dir| !dir.as_os_str().is_empty())
            .collect();
        if !missing.is_empty() {
            return Err(Code::InvalidEnvironment.err(format!(
                "required env variables [{}] missing",
                missing.join(",")
            )));
        }
        Ok(Self {
            verb,
            container_id,
            netns,
            ifname,
            args: env.text("CNI_ARGS")?.unwrap_or_default().to_owned(),
            path,
        })
    }
}

/// The keys that any plugin of the suite reads. A plugin and its IPAM plugin get the same
/// `CNI_ARGS`, so a key for one of them must not be an error in the other.
const SUITE_ARGS: [&str; 3] = ["MAC", "IP", "GATEWAY"];

/// Reads `CNI_ARGS` (`K=V;K=V`) and returns the value of each of `known`, in
/// that order; a key that no plugin of the suite reads is an error unless
/// `IgnoreUnknown` is set. The last of duplicate keys wins.
pub fn parse_args<const N: usize>(
    args: &str,
    known: [&str; N],
) -> Result<[Option<String>; N], Error> {
    let fault = |msg: String| Code::InvalidEnvironment.err(msg);
    let mut values = [const { None }; N];
    let mut unknown = Vec::new();
    let mut ignore_unknown = false;
    if args.is_empty() {
        return Ok(values);
    }
    for pair in args.split(';') {
        let (key, value) = pair
            .split_once('=')
            .filter(|(_, value)| !value.contains('='))
            .ok_or_else(|| fault(format!("ARGS: invalid pair {pair:?}")))?;
        if key == "IgnoreUnknown" {
            ignore_unknown = parse_bool(value).ok_or_else(|| {
                fault(format!(
                    "ARGS: error parsing value of pair {pair:?}: not a boolean"
                ))
            })?;
        } else if let Some(index) = known.iter().position(|name| *name == key) {
            values[index] = Some(value.to_owned());
        } else if !SUITE_ARGS.contains(&key) {
            unknown.push(format!("{pair:?}"));
        }
    }
    if !unknown.is_empty() && !ignore_unknown {
        return Err(fault(format!("ARGS: unknown args [{}]", unknown.join(" "))));
    }
    Ok(values)
}

fn parse_bool(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "1" | "true" => Some(true),
        "0" | "false" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_args_are_refused_without_ignore_unknown() {
        let [mac] = parse_args("MAC=x", ["MAC"]).unwrap();
        assert_eq!(mac.as_deref(), Some("x"));
        assert_eq!(
            parse_args("FOO=1", ["MAC"]).unwrap_err().msg,
            "ARGS: unknown args [\"FOO=1\"]"
        );
        assert_eq!(parse_args("IP=10.0.0.1", ["MAC"]).unwrap(), [None]);
        let [mac] = parse_args("FOO=1;IgnoreUnknown=True;MAC=y", ["MAC"]).unwrap();
        assert_eq!(mac.as_deref(), Some("y"));
        for text in ["MAC=1;", "MAC", "MAC=a=b", "IgnoreUnknown=maybe"] {
            assert!(parse_args(text, ["MAC"]).is_err(), "{text}");
        }
    }
}
