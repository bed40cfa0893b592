//! The command line, together with the environment and the defaults, which are cnitool's.

use std::ffi::OsString;
use std::fmt;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail};
use cni::env::{ContainerId, Environment, IfName};
use cni::names;
use serde_json::{Map, Value};

use crate::attach::Attachment;
use crate::cache::Cache;
use crate::output::Output;

/// A wrong command line: exit status 2.
#[derive(Debug)]
pub struct Misuse(pub String);

impl fmt::Display for Misuse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Misuse {}

/// An option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flag {
    /// `-h`, `--help`
    Help,
    /// `-V`, `--version`
    Version,
    /// `-i NAME`, `--ifname NAME`
    IfName,
    /// `--container-id ID`
    ContainerId,
    /// `--conf-dir DIR`
    ConfDir,
    /// `--plugin-dir DIR[:DIR…]`
    PluginDir,
    /// `--cache-dir DIR`
    CacheDir,
    /// `--json`
    Json,
    /// `--text`
    Text,
    /// `--no-rollback`
    NoRollback,
    /// `--keep-cached`
    KeepCached,
    /// `--dry-run`
    DryRun,
    /// `-v`, `--verbose`
    Verbose,
}

impl Flag {
    /// Each with its long name, and the name of its value, if it has one.
    const ALL: [(Self, &'static str, &'static str); 13] = [
        (Self::Help, "help", ""),
        (Self::Version, "version", ""),
        (Self::IfName, "ifname", "NAME"),
        (Self::ContainerId, "container-id", "ID"),
        (Self::ConfDir, "conf-dir", "DIR"),
        (Self::PluginDir, "plugin-dir", "DIRS"),
        (Self::CacheDir, "cache-dir", "DIR"),
        (Self::Json, "json", ""),
        (Self::Text, "text", ""),
        (Self::NoRollback, "no-rollback", ""),
        (Self::KeepCached, "keep-cached", ""),
        (Self::DryRun, "dry-run", ""),
        (Self::Verbose, "verbose", ""),
    ];

    /// Those with a short name.
    const SHORT: [(char, Self); 4] = [
        ('h', Self::Help),
        ('V', Self::Version),
        ('i', Self::IfName),
        ('v', Self::Verbose),
    ];

    /// The long name.
    pub fn long(self) -> &'static str {
        let found = Self::ALL.iter().find(|(flag, ..)| *flag == self);
        found.map_or("", |(_, long, _)| long)
    }

    /// The left column of a manual: `  -i, --ifname NAME`.
    pub fn usage(self) -> String {
        let letter = Self::SHORT.iter().find(|(_, flag)| *flag == self);
        let letter = letter.map_or("    ".to_owned(), |(letter, _)| format!("-{letter}, "));
        let value = Self::ALL.iter().find(|(flag, ..)| *flag == self);
        let value = value.map_or("", |(_, _, value)| value);
        format!("  {letter}--{} {value}", self.long())
    }
}

/// Options and words, in any order.
#[derive(Debug, Default)]
pub struct Arguments {
    given: Vec<(Flag, OsString)>,
    words: Vec<String>,
    environment: Environment,
}

impl Arguments {
    /// Reads a command line without the name of the program.
    pub fn parse(
        line: impl IntoIterator<Item = OsString>,
        environment: Environment,
    ) -> Result<Self, Misuse> {
        let mut arguments = Self {
            environment,
            ..Self::default()
        };
        let mut parser = lexopt::Parser::from_args(line);
        let misuse = |error: lexopt::Error| Misuse(error.to_string());
        while let Some(argument) = parser.next().map_err(misuse)? {
            let long = match &argument {
                lexopt::Arg::Value(word) => {
                    let word = word.to_str().ok_or_else(|| {
                        Misuse(format!("argument {} is not UTF-8", word.display()))
                    })?;
                    arguments.words.push(word.to_owned());
                    continue;
                }
                lexopt::Arg::Long(long) => long,
                lexopt::Arg::Short(letter) => {
                    let mut letters = Flag::SHORT.iter();
                    let flag = letters.find(|(known, _)| known == letter);
                    flag.map_or("", |(_, flag)| flag.long())
                }
            };
            let known = Flag::ALL.iter().find(|(_, name, _)| *name == long);
            let Some((flag, _, value)) = known.copied() else {
                return Err(misuse(argument.unexpected()));
            };
            let value = match value {
                "" => OsString::new(),
                _ => parser.value().map_err(misuse)?,
            };
            arguments.given.push((flag, value));
        }
        Ok(arguments)
    }

    /// Removes the first word and returns it.
    pub fn next_word(&mut self) -> Option<String> {
        (!self.words.is_empty()).then(|| self.words.remove(0))
    }

    /// Whether an option was given.
    pub fn has(&self, flag: Flag) -> bool {
        self.value(flag).is_some()
    }

    /// Refuses options that the command does not have.
    pub fn expect_only(&self, known: &[Flag]) -> Result<(), Misuse> {
        let foreign = self.given.iter().find(|(flag, _)| !known.contains(flag));
        match foreign {
            Some((flag, _)) => Err(Misuse(format!("invalid option '--{}'", flag.long()))),
            None => Ok(()),
        }
    }

    /// The words, checked against the usage: `NETWORK`, `[NETNS]` for an optional one,
    /// `FILE...` for one or more.
    pub fn words(&self, manual: &[&str]) -> Result<&[String], Misuse> {
        let count = self.words.len();
        let missing = manual.get(count).filter(|name| !name.starts_with('['));
        if let Some(name) = missing {
            let name = name.trim_end_matches("...");
            return Err(Misuse(format!("missing argument {name}")));
        }
        let repeats = manual.last().is_some_and(|name| name.contains("..."));
        match self.words.get(manual.len()) {
            Some(word) if !repeats => Err(Misuse(format!("unexpected argument {word:?}"))),
            _ => Ok(&self.words),
        }
    }

    /// The output that the options ask for.
    pub fn output(&self) -> Output {
        Output::new(self.has(Flag::Json), self.has(Flag::Text))
    }

    /// Where network configurations are: `--conf-dir`, `NETCONFPATH`, /etc/cni/net.d.
    pub fn conf_dir(&self) -> PathBuf {
        self.setting(Flag::ConfDir, "NETCONFPATH")
            .unwrap_or_else(|| "/etc/cni/net.d".into())
            .into()
    }

    /// Where plugins are, if given: `--plugin-dir`, `CNI_PATH`.
    pub fn given_plugin_dirs(&self) -> Option<Vec<PathBuf>> {
        let path = self.setting(Flag::PluginDir, "CNI_PATH")?;
        let dirs = std::env::split_paths(&path);
        Some(dirs.filter(|dir| !dir.as_os_str().is_empty()).collect())
    }

    /// Where plugins are: as given, or in the usual directory.
    pub fn plugin_dirs(&self) -> Vec<PathBuf> {
        self.given_plugin_dirs()
            .unwrap_or_else(|| vec!["/opt/cni/bin".into()])
    }

    /// The cache of attachments.
    pub fn cache(&self) -> Cache {
        let dir = self.value(Flag::CacheDir);
        Cache::in_dir(Path::new(&dir.unwrap_or_else(|| "/var/lib/cni".into())))
    }

    /// The attachment that the options and the environment describe. Without `netns`,
    /// `--container-id` is required.
    pub fn attachment(&self, netns: Option<&str>) -> Result<Attachment> {
        let netns = match netns {
            Some(netns) => absolute(netns, &std::env::current_dir()?),
            None => String::new(),
        };
        let container_id = match self.text(Flag::ContainerId, "")? {
            Some(id) => id,
            None if netns.is_empty() => {
                bail!(Misuse("no network namespace, and no --container-id".into()))
            }
            None => derived_id(&netns),
        };
        let ifname = self.text(Flag::IfName, "CNI_IFNAME")?;
        Ok(Attachment {
            container_id: ContainerId::parse(&container_id)?,
            netns,
            ifname: IfName::parse(ifname.as_deref().unwrap_or("eth0"))?,
            args: self.cni_args()?,
            capability_args: self.capability_args()?,
        })
    }

    fn cni_args(&self) -> Result<Option<Vec<(String, String)>>> {
        let Some(args) = self.variable("CNI_ARGS") else {
            return Ok(None);
        };
        let args = args.to_str().context("CNI_ARGS is not UTF-8")?;
        let pair = |pair: &str| match pair.split_once('=') {
            Some((key, value)) if !key.is_empty() && !value.is_empty() && !value.contains('=') => {
                Ok((key.to_owned(), value.to_owned()))
            }
            _ => bail!("invalid CNI_ARGS pair {pair:?}"),
        };
        args.split(';').map(pair).collect::<Result<_>>().map(Some)
    }

    fn capability_args(&self) -> Result<Option<Map<String, Value>>> {
        let Some(text) = self.variable("CAP_ARGS") else {
            return Ok(None);
        };
        let text = text.to_str().context("CAP_ARGS is not UTF-8")?;
        serde_json::from_str(text).context("parse CAP_ARGS: expected a JSON object")
    }

    /// An option's value, or the variable's; empty ones are ignored.
    fn setting(&self, flag: Flag, variable: &str) -> Option<OsString> {
        self.value(flag)
            .filter(|value| !value.is_empty())
            .or_else(|| self.variable(variable))
    }

    fn text(&self, flag: Flag, variable: &str) -> Result<Option<String>> {
        let text = self.setting(flag, variable).map(OsString::into_string);
        text.transpose()
            .ok()
            .with_context(|| format!("--{} is not UTF-8", flag.long()))
    }

    fn value(&self, wanted: Flag) -> Option<OsString> {
        let mut latest_first = self.given.iter().rev();
        latest_first
            .find(|(flag, _)| *flag == wanted)
            .map(|(_, value)| value.clone())
    }

    fn variable(&self, name: &str) -> Option<OsString> {
        let mut variables = self.environment.iter();
        variables
            .find(|(key, value)| *key == name && !value.is_empty())
            .map(|(_, value)| value.to_owned())
    }
}

/// The id that cnitool derives: `cnitool-` and the first ten bytes of the
/// SHA-512 of the namespace's path, in hex.
fn derived_id(netns: &str) -> String {
    const PREFIX: &str = "cnitool-";
    names::prefixed(PREFIX.len() + 20, PREFIX, netns)
}

/// The absolute path, cleaned without access to the disk as Go's `filepath.Abs` does: the
/// derived id depends on it, and the namespace may be gone.
fn absolute(path: &str, current_dir: &Path) -> String {
    let mut tidy = PathBuf::from("/");
    for component in current_dir.join(path).components() {
        match component {
            Component::Normal(name) => tidy.push(name),
            Component::ParentDir => {
                tidy.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    tidy.display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(line: &[&str], variables: &[(&str, &str)]) -> Result<Arguments, Misuse> {
        Arguments::parse(
            line.iter().map(OsString::from),
            Environment::from_pairs(variables.iter().copied()),
        )
    }

    fn attachment(line: &[&str], variables: &[(&str, &str)]) -> Result<Attachment> {
        arguments(line, variables)
            .unwrap()
            .attachment(Some("/run/netns/blue"))
    }

    #[test]
    fn the_container_id_is_that_of_cnitool() {
        // printf %s /run/netns/blue | sha512sum | cut -c1-20
        let attachment = attachment(&[], &[]).unwrap();
        assert_eq!(
            attachment.container_id.as_str(),
            "cnitool-df26705e2e4ffd095eb1"
        );
        assert_eq!(attachment.ifname.as_str(), "eth0");
    }

    #[test]
    fn paths_are_made_absolute_and_tidied_as_go_does() {
        let from = Path::new("/home/user");
        for (path, expected) in [
            ("/run//netns/./blue/", "/run/netns/blue"),
            ("/run/x/../netns/blue", "/run/netns/blue"),
            ("blue", "/home/user/blue"),
            ("../blue", "/home/blue"),
            ("/../..", "/"),
        ] {
            assert_eq!(absolute(path, from), expected);
        }
    }

    #[test]
    fn options_beat_the_environment_and_may_stand_anywhere() {
        let line = [
            "-i",
            "net1",
            "add",
            "--conf-dir=/c",
            "n",
            "--plugin-dir",
            "/a:/b",
        ];
        let variables = [
            ("CNI_IFNAME", "net0"),
            ("NETCONFPATH", "/d"),
            ("CNI_PATH", "/e"),
        ];
        let mut given = arguments(&line, &variables).unwrap();
        assert_eq!(given.next_word().as_deref(), Some("add"));
        assert_eq!(given.words(&["NETWORK"]).unwrap(), ["n"]);
        assert_eq!(given.conf_dir(), Path::new("/c"));
        assert_eq!(given.plugin_dirs(), [Path::new("/a"), Path::new("/b")]);
        assert_eq!(
            given.attachment(Some("/x")).unwrap().ifname.as_str(),
            "net1"
        );
        let environment = arguments(&[], &variables).unwrap();
        assert_eq!(environment.conf_dir(), Path::new("/d"));
        assert_eq!(environment.plugin_dirs(), [Path::new("/e")]);
        let none = arguments(&[], &[("CNI_IFNAME", "")]).unwrap();
        assert_eq!(none.conf_dir(), Path::new("/etc/cni/net.d"));
        assert_eq!(none.given_plugin_dirs(), None);
        assert_eq!(none.attachment(Some("/x")).unwrap().ifname.as_str(), "eth0");
    }

    #[test]
    fn what_a_command_does_not_have_is_refused() {
        assert!(arguments(&["--colour"], &[]).is_err());
        assert!(arguments(&["-x"], &[]).is_err());
        assert!(arguments(&["--ifname"], &[]).is_err());
        let given = arguments(&["--keep-cached"], &[]).unwrap();
        let error = given.expect_only(&[Flag::Json]).unwrap_err();
        assert_eq!(error.to_string(), "invalid option '--keep-cached'");
        let words = arguments(&["a", "b"], &[]).unwrap();
        let refused = |manual: &[&str]| words.words(manual).unwrap_err().to_string();
        assert_eq!(refused(&["A", "B", "C"]), "missing argument C");
        assert_eq!(refused(&["A"]), "unexpected argument \"b\"");
        assert!(words.words(&["A", "[B]", "[C]"]).is_ok());
        assert!(words.words(&["A..."]).is_ok());
        let none = arguments(&[], &[]).unwrap();
        assert!(none.words(&["A..."]).is_err() && none.words(&["[A...]"]).is_ok());
    }

    #[test]
    fn cni_args_are_pairs() {
        let args = |text| attachment(&[], &[("CNI_ARGS", text)]).map(|it| it.args);
        let pair = |k: &str, v: &str| (k.to_owned(), v.to_owned());
        assert_eq!(args("").unwrap(), None);
        assert_eq!(
            args("A=1;B=2").unwrap(),
            Some(vec![pair("A", "1"), pair("B", "2")])
        );
        for text in ["A", "A=", "=1", "A=1;", "A=1=2"] {
            let error = args(text).unwrap_err().to_string();
            assert!(error.starts_with("invalid CNI_ARGS pair "), "{error}");
        }
    }

    #[test]
    fn capability_args_are_an_object() {
        let args = |text| attachment(&[], &[("CAP_ARGS", text)]).map(|it| it.capability_args);
        assert_eq!(args("null").unwrap(), None);
        assert_eq!(args(r#"{"mac": "x"}"#).unwrap().unwrap()["mac"], "x");
        assert!(args("[]").is_err() && args("{").is_err());
    }

    #[test]
    fn without_a_namespace_the_container_must_be_named() {
        let error = arguments(&[], &[]).unwrap().attachment(None).unwrap_err();
        assert!(error.is::<Misuse>());
        let given = arguments(&["--container-id", "pod1"], &[]).unwrap();
        let attachment = given.attachment(None).unwrap();
        assert_eq!(attachment.container_id.as_str(), "pod1");
        assert_eq!(attachment.netns, "");
    }
}
