//! What a command line of `podwire run` asks for, without contradictions. No system calls.

use std::ffi::{CString, OsStr, OsString};
use std::net::IpAddr;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use anyhow::{Context, Result, bail};
use cni::env::ContainerId;
use containers::Resolver;

use super::files;
use super::links::Link;
use super::mode::Mode;
use super::ports::{self, Publication};

/// The longest name: part of a file's name.
const LONGEST_NAME: usize = 128;
/// The longest host name (sethostname(2)).
const LONGEST_HOSTNAME: usize = 64;

/// The options, as they were written.
#[derive(Clone, Debug, Default)]
pub struct RunOptions<'a> {
    /// Where the network comes from.
    pub mode: Option<Mode>,
    /// `--name`.
    pub name: Option<&'a str>,
    /// `--hostname`.
    pub hostname: Option<&'a str>,
    /// `--publish`.
    pub publish: &'a [String],
    /// `--publish-all`.
    pub publish_all: bool,
    /// `--expose`.
    pub expose: &'a [String],
    /// `--dns`, `--dns-search`, `--dns-option`.
    pub dns: Resolver,
    /// `--add-host`.
    pub hosts: &'a [String],
    /// `--link`.
    pub links: &'a [String],
    /// `--env`.
    pub environment: &'a [OsString],
    /// The command.
    pub command: &'a [OsString],
}

/// What is to be run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Where the network comes from.
    pub mode: Mode,
    /// The name, if one was chosen.
    pub name: Option<String>,
    /// The host name, if one was chosen.
    pub hostname: Option<String>,
    /// The ports to publish.
    pub publish: Vec<Publication>,
    /// The exposed ports.
    pub expose: Vec<String>,
    /// What the resolver is to use.
    pub dns: Resolver,
    /// Further lines of /etc/hosts; without an address, that of the node.
    pub hosts: Vec<(String, Option<IpAddr>)>,
    /// Other containers with a further name.
    pub links: Vec<Link>,
    /// What the environment of the command has beside the caller's.
    pub environment: Vec<(OsString, OsString)>,
    /// The command.
    pub command: Vec<CString>,
    /// What is ignored.
    pub warnings: Vec<String>,
}

impl Plan {
    /// Checks the options.
    ///
    /// # Errors
    /// One is wrong, or has no meaning in this mode.
    pub fn new(options: RunOptions<'_>) -> Result<Self> {
        let mode = options.mode.clone().context("no mode")?;
        if let Mode::Container(_) = mode {
            check_shared(&options)?;
        }
        if !options.links.is_empty() && !matches!(mode, Mode::Networks(_)) {
            bail!("links are only supported for user-defined networks");
        }
        let mut publish = Vec::new();
        for text in options.publish {
            publish.extend(Publication::parse(text)?);
        }
        let mut expose = Vec::new();
        for text in options.expose {
            expose.extend(ports::exposed(text)?);
        }
        if options.publish_all {
            for port in &expose {
                publish.extend(Publication::parse(port)?);
            }
        }
        let mut warnings = Vec::new();
        if !publish.is_empty() && !matches!(mode, Mode::Networks(_)) {
            publish.clear();
            let name = if mode == Mode::Host { "host" } else { "none" };
            warnings.push(format!(
                "WARNING: Published ports are discarded when using {name} network mode"
            ));
        }
        let hosts = options.hosts.iter().map(|it| files::added_host(it));
        let hosts = hosts.collect::<Result<_>>()?;
        let links = options.links.iter().map(|it| Link::parse(it));
        let links = links.collect::<Result<_>>()?;
        for server in &options.dns.servers {
            let ip: Result<IpAddr, _> = server.parse();
            ip.with_context(|| format!("invalid IP address for --dns: {server:?}"))?;
        }
        let mut words = options.dns.search.iter().chain(&options.dns.options);
        if let Some(word) = words.find(|it| it.is_empty() || it.contains(char::is_whitespace)) {
            bail!("invalid --dns-search or --dns-option: {word:?}");
        }
        Ok(Self {
            name: options.name.map(name).transpose()?,
            hostname: options.hostname.map(hostname).transpose()?,
            mode,
            publish,
            expose,
            dns: options.dns,
            hosts,
            links,
            environment: environment(options.environment)?,
            command: command(options.command)?,
            warnings,
        })
    }
}

/// Fails for what belongs to the other container.
fn check_shared(options: &RunOptions<'_>) -> Result<()> {
    let conflicts = [
        (options.hostname.is_some(), "hostname and the network mode"),
        (
            options.dns != Resolver::default(),
            "dns and the network mode",
        ),
        (
            !options.hosts.is_empty(),
            "custom host-to-IP mapping and the network mode",
        ),
        (
            !options.publish.is_empty() || options.publish_all,
            "port publishing and the container type network mode",
        ),
        (
            !options.expose.is_empty(),
            "port exposing and the container type network mode",
        ),
        (
            !options.links.is_empty(),
            "container type network can't be used with links. This would result in undefined \
             behavior",
        ),
    ];
    match conflicts.iter().find(|(there, _)| *there) {
        Some((_, what)) => bail!("conflicting options: {what}"),
        None => Ok(()),
    }
}

fn name(text: &str) -> Result<String> {
    if ContainerId::parse(text).is_err() || text.len() > LONGEST_NAME {
        bail!(
            "Invalid container name ({text}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed, at most \
             {LONGEST_NAME}"
        );
    }
    Ok(text.to_owned())
}

fn hostname(text: &str) -> Result<String> {
    if !files::is_host_name(text) || text.len() > LONGEST_HOSTNAME {
        bail!("invalid hostname {text:?}");
    }
    Ok(text.to_owned())
}

/// Reads `NAME=VALUE`. A name alone is the caller's variable, which the command has anyway.
///
/// # Errors
/// A name is empty.
pub fn environment(words: &[OsString]) -> Result<Vec<(OsString, OsString)>> {
    let mut all = Vec::new();
    for word in words {
        let bytes = word.as_bytes();
        let end = bytes.iter().position(|it| *it == b'=');
        let (name, value) = bytes.split_at(end.unwrap_or(bytes.len()));
        if name.is_empty() {
            bail!("invalid environment variable: {word:?}");
        }
        if let Some(value) = value.strip_prefix(b"=") {
            all.push((
                OsStr::from_bytes(name).into(),
                OsStr::from_bytes(value).into(),
            ));
        }
    }
    Ok(all)
}

fn command(words: &[OsString]) -> Result<Vec<CString>> {
    let word = |it: &OsString| CString::new(it.clone().into_vec()).context("a NUL in the command");
    let command = words.iter().map(word).collect::<Result<Vec<_>>>()?;
    match command.first() {
        Some(program) if !program.is_empty() => Ok(command),
        _ => bail!("no command specified"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options<'a>(mode: Mode, command: &'a [OsString]) -> RunOptions<'a> {
        RunOptions {
            mode: Some(mode),
            command,
            ..RunOptions::default()
        }
    }

    #[test]
    fn what_belongs_to_the_other_container_is_refused() {
        let words = ["true".into()];
        let one = ["80".to_owned()];
        let host = ["a:1.2.3.4".to_owned()];
        let shared = || options(Mode::Container("web".into()), &words);
        let with_dns = Resolver {
            servers: vec!["1.2.3.4".into()],
            ..Resolver::default()
        };
        for (options, expected) in [
            (
                RunOptions {
                    hostname: Some("x"),
                    ..shared()
                },
                "hostname and the network mode",
            ),
            (
                RunOptions {
                    dns: with_dns,
                    ..shared()
                },
                "dns and the network mode",
            ),
            (
                RunOptions {
                    hosts: &host,
                    ..shared()
                },
                "custom host-to-IP mapping and the network mode",
            ),
            (
                RunOptions {
                    publish: &one,
                    ..shared()
                },
                "port publishing and the container type network mode",
            ),
            (
                RunOptions {
                    expose: &one,
                    ..shared()
                },
                "port exposing and the container type network mode",
            ),
        ] {
            let error = Plan::new(options).unwrap_err().to_string();
            assert_eq!(error, format!("conflicting options: {expected}"));
        }
    }

    #[test]
    fn ports_without_a_network_are_ignored_with_a_warning() {
        let (words, ports) = (["true".into()], ["80:80".to_owned()]);
        for (mode, name) in [(Mode::Host, "host"), (Mode::None, "none")] {
            let plan = Plan::new(RunOptions {
                publish: &ports,
                ..options(mode, &words)
            });
            let plan = plan.unwrap();
            let warning = "Published ports are discarded when using";
            assert_eq!(
                plan.warnings,
                [format!("WARNING: {warning} {name} network mode")]
            );
            assert!(plan.publish.is_empty());
        }
    }

    #[test]
    fn names_and_commands_are_checked() {
        let words = ["true".into()];
        let named = |name| {
            Plan::new(RunOptions {
                name: Some(name),
                ..options(Mode::None, &words)
            })
        };
        assert_eq!(named("a.b-c_1").unwrap().name.as_deref(), Some("a.b-c_1"));
        let long = "x".repeat(LONGEST_NAME + 1);
        for name in ["", "-a", "a b", "../x", "a/b", "ä", &long] {
            let error = named(name).unwrap_err().to_string();
            assert!(error.starts_with("Invalid container name"), "{error}");
        }
        for hostname in ["", "a b", "a\nb", &"x".repeat(65)] {
            let plan = Plan::new(RunOptions {
                hostname: Some(hostname),
                ..options(Mode::None, &words)
            });
            assert!(plan.is_err(), "{hostname:?}");
        }
        assert!(Plan::new(options(Mode::None, &[])).is_err());
        assert!(Plan::new(options(Mode::None, &["".into()])).is_err());
        assert!(Plan::new(options(Mode::None, &["a\0b".into()])).is_err());
    }

    #[test]
    fn variables_have_names() {
        let read = |words: &[&str]| {
            let words: Vec<_> = words.iter().map(OsString::from).collect();
            environment(&words)
        };
        let pair = |name: &str, value: &str| (name.into(), value.into());
        let read_well = read(&["A=b=c", "D=", "HOME"]).unwrap();
        assert_eq!(read_well, [pair("A", "b=c"), pair("D", "")]);
        assert!(read(&["=x"]).is_err() && read(&[""]).is_err());
    }

    #[test]
    fn exposed_ports_are_published_if_all_are() {
        let (words, expose) = (["true".into()], ["80-81/udp".to_owned()]);
        let plan = Plan::new(RunOptions {
            expose: &expose,
            publish_all: true,
            ..options(Mode::Networks(Vec::new()), &words)
        });
        assert_eq!(plan.unwrap().publish.len(), 2);
    }
}
