//! The command line of `dhcp daemon`: the Go daemon's, with one dash or two.

use crate::conf::SOCKET;
use crate::lease::{Millis, Timeouts};

/// The settings of the daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flags {
    /// `-pidfile`: where to write the process id.
    pub pidfile: String,
    /// `-hostprefix`: the prefix of paths on the host.
    pub host_prefix: String,
    /// `-socketpath`: where to listen.
    pub socket: String,
    /// `-broadcast`: ask servers to broadcast their answers.
    pub broadcast: bool,
    /// `-timeout`, `-resendmax` and `-resendtimeout`.
    pub timeouts: Timeouts,
}

const RESEND_MAX: Millis = 62_000;
const RESEND_TIMEOUT: Millis = 208_000;

/// What `dhcp daemon --help` prints.
pub const HELP: &str = include_str!("help.txt");

impl Flags {
    /// Reads the arguments after `daemon`; `None` when they ask for [`HELP`].
    ///
    /// # Errors
    /// Which argument is wrong, and why.
    pub fn parse(arguments: &[String]) -> Result<Option<Self>, String> {
        let mut flags = Self {
            pidfile: String::new(),
            host_prefix: String::new(),
            socket: SOCKET.to_owned(),
            broadcast: false,
            timeouts: Timeouts {
                grant: 10_000,
                resend: RESEND_MAX,
                acquire: 0,
            },
        };
        let mut arguments = arguments.iter();
        while let Some(argument) = arguments.next() {
            let name = argument.strip_prefix("--").or(argument.strip_prefix('-'));
            let name = name.filter(|name| !name.is_empty());
            let name = name.ok_or_else(|| format!("unexpected argument {argument:?}"))?;
            let (name, value) = match name.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (name, None),
            };
            let mut text = || {
                let value = value.clone().or_else(|| arguments.next().cloned());
                value.ok_or_else(|| format!("flag -{name} needs a value"))
            };
            match name {
                "h" | "help" => return Ok(None),
                "broadcast" => {
                    flags.broadcast = boolean(value.as_deref().unwrap_or("true"))
                        .ok_or_else(|| format!("flag -{name}: not a boolean"))?;
                }
                "pidfile" => flags.pidfile = text()?,
                "hostprefix" => flags.host_prefix = text()?,
                "socketpath" => match text()?.as_str() {
                    "" => {}
                    path => flags.socket = path.to_owned(),
                },
                "timeout" => flags.timeouts.grant = time(name, &text()?)?,
                "resendmax" => flags.timeouts.resend = time(name, &text()?)?,
                "resendtimeout" => flags.timeouts.acquire = time(name, &text()?)?,
                _ => return Err(format!("unknown flag -{name}")),
            }
        }
        let timeouts = &mut flags.timeouts;
        if timeouts.acquire == 0 {
            timeouts.acquire = default_resend_timeout(timeouts.resend);
        }
        Ok(Some(flags))
    }
}

/// The quick tries and the pauses up to the longest one: a shorter -resendmax makes ADD fail
/// sooner, too.
fn default_resend_timeout(resend_max: Millis) -> Millis {
    if resend_max == RESEND_MAX {
        return RESEND_TIMEOUT;
    }
    let (mut pause, mut whole) = (4_000, 8_000);
    while pause < resend_max {
        whole += pause;
        pause *= 2;
    }
    (whole + resend_max).min(RESEND_TIMEOUT)
}

/// The duration that `value` gives for flag `name`.
fn time(name: &str, value: &str) -> Result<Millis, String> {
    let time = duration(value).filter(|time| *time > 0);
    time.ok_or_else(|| format!("flag -{name}: {value:?} is no duration such as 10s or 1m30s"))
}

/// A boolean, as Go's flag package reads it.
fn boolean(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// A duration, as Go's `time.ParseDuration` reads it, without a sign; at most a year.
fn duration(text: &str) -> Option<Millis> {
    let mut rest = text;
    let mut millis = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at(digits);
        let end = after.find(|c: char| c.is_ascii_digit() || c == '.');
        let (unit, after) = after.split_at(end.unwrap_or(after.len()));
        let unit = match unit {
            "ns" => 1e-6,
            "us" | "µs" | "μs" => 1e-3,
            "ms" => 1.0,
            "s" => 1e3,
            "m" => 60e3,
            "h" => 3600e3,
            _ => return None,
        };
        millis += number.parse::<f64>().ok()? * unit;
        rest = after;
    }
    (0.0..=31_536e6)
        .contains(&millis)
        .then_some(millis.round() as Millis)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Flags, String> {
        let arguments: Vec<_> = line.split_whitespace().map(str::to_owned).collect();
        Flags::parse(&arguments)?.ok_or_else(|| "help".into())
    }

    #[test]
    fn one_dash_or_two_a_space_or_an_equals_sign() {
        for line in [
            "-socketpath /s -timeout 2s -broadcast -resendtimeout=1m30s",
            "--socketpath=/s --timeout=2s --broadcast=true --resendtimeout 90s",
        ] {
            let flags = parse(line).unwrap();
            assert_eq!(flags.socket, "/s");
            assert_eq!(flags.timeouts.grant, 2_000);
            assert_eq!(flags.timeouts.acquire, 90_000);
            assert!(flags.broadcast);
        }
        assert_eq!(parse("-h").unwrap_err(), "help");
        assert_eq!(parse("-socketpath x --help").unwrap_err(), "help");
    }

    #[test]
    fn a_shorter_resendmax_shortens_the_wait() {
        let whole = |line: &str| parse(line).unwrap().timeouts.acquire;
        assert_eq!(whole(""), 208_000, "as the Go daemon");
        assert_eq!(whole("-timeout 2s -resendmax 8s"), 20_000);
    }

    #[test]
    fn errors_name_the_flag() {
        for (line, text) in [
            ("daemon", "unexpected argument \"daemon\""),
            ("-x", "unknown flag -x"),
            ("-timeout", "flag -timeout needs a value"),
            (
                "-timeout 5",
                "flag -timeout: \"5\" is no duration such as 10s or 1m30s",
            ),
            ("-broadcast=maybe", "flag -broadcast: not a boolean"),
        ] {
            assert_eq!(parse(line).unwrap_err(), text);
        }
        for text in [
            "", "s", "1", "1.2.3s", "1d", "-1s", "0s", "1e9h", "9999999h",
        ] {
            assert!(parse(&format!("-timeout={text}")).is_err(), "{text}");
        }
        assert_eq!(duration("1h1m1s500ms"), Some(3_661_500));
    }

    #[test]
    fn the_help_lists_flags_that_exist() {
        let lines = HELP.lines().filter_map(|line| line.strip_prefix("    -"));
        let names: Vec<_> = lines
            .filter_map(|line| line.split([' ', ',']).next())
            .collect();
        assert!(names.len() >= 8, "{names:?}");
        for name in names {
            let answer = parse(&format!("-{name}=1s")).err().unwrap_or_default();
            assert!(!answer.starts_with("unknown"), "{answer}");
        }
        assert!(HELP.lines().all(|line| line.chars().count() <= 86));
    }
}
