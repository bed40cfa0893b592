//! The command line of `dhcp daemon`: that of the Go daemon, with one dash or two.

use std::time::Duration;

use crate::conf::SOCKET;

/// What the daemon was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flags {
    /// `-pidfile`: where to write the process id.
    pub pidfile: String,
    /// `-hostprefix`: what to put before the paths of the host.
    pub host_prefix: String,
    /// `-socketpath`: where to listen.
    pub socket: String,
    /// `-broadcast`: have servers broadcast their answers.
    pub broadcast: bool,
    /// `-timeout`: how long a server may take to grant what it has offered.
    pub timeout: Duration,
    /// `-resendmax`: the longest pause between two messages.
    pub resend_max: Duration,
    /// `-resendtimeout`: how long an ADD waits for an address.
    pub resend_timeout: Duration,
}

/// What a command line asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Run with these.
    Run(Flags),
    /// Print [`HELP`].
    Help,
}

const RESEND_MAX: Duration = Duration::from_secs(62);
const RESEND_TIMEOUT: Duration = Duration::from_secs(208);

/// What `dhcp daemon --help` prints.
pub const HELP: &str = "\
dhcp daemon - hold the DHCP leases of this node's pods

USAGE
    dhcp daemon [FLAG]...

DESCRIPTION
    The CNI plugin `dhcp` runs only while a pod is made or removed, but an
    address that a DHCP server grants has to be renewed for as long as the pod
    lives. This daemon does that. The plugin asks it over a unix socket for a
    lease and gives it back there; in between, the daemon speaks DHCP on the
    pod's own interface, inside the pod's network namespace.

    It renews a lease at the server's T1, asks any server at T2, and when a
    lease expires or is refused it takes the address from the pod and seeks
    another. A renewal that brings another address, mask, or other routes is
    applied to the pod at once.

    Leases are kept on disk. A daemon that starts again, after whatever, has
    them renewed and goes on. Stopping it (SIGTERM,
    SIGINT) releases nothing: pods keep their addresses, and another daemon
    should be running before half the lease time is over.

    One thread serves all leases.

FLAGS
    One dash or two; a value follows after a space or `=`. DURATION is as Go
    writes it: 300ms, 10s, 1m30s, 2h.

    -broadcast
        Ask servers to broadcast their answers. For segments that do not carry a
        frame to a hardware address which nobody has been heard from.

    -hostprefix DIR
        Where the root of the host is, for a daemon in a container: DIR is put
        before the paths of the socket, of the leases, and of pods' namespaces.

    -pidfile FILE
        Write the process id to FILE, an absolute path; removed at the end.

    -resendmax DURATION         (62s)
        The longest pause between two messages. The pauses are about 1, 2, 2, 2, 4,
        8, 16 … seconds.

    -resendtimeout DURATION     (208s, less with a shorter -resendmax)
        How long an ADD waits for an address. It then fails with `no more tries`,
        error code 11: try again later.

    -socketpath FILE            (/run/cni/dhcp.sock)
        Where to listen. The same path goes into `ipam.daemonSocketPath` of the
        network's configuration. A socket that nobody listens at any more is
        replaced. Daemons with different sockets know nothing of each other.

    -timeout DURATION           (10s)
        How long a server may take to grant the address that it has offered, and to
        confirm one from before a restart.

    -h, -help
        Print this.

SYSTEMD
    cni-dhcp.socket and cni-dhcp.service, which `make install` puts in place, start
    the daemon when the first pod needs it:

        systemctl enable --now cni-dhcp.socket

    A socket that systemd passes (LISTEN_FDS) is used instead of -socketpath. Have
    -socketpath name the same path nevertheless: leases are kept under its name.

FILES
    /run/cni/dhcp.sock
        The socket. Whoever may write to it may have leases on any network
        namespace of the node: it and its directory are root's.

    /var/lib/cni/dhcp/run-cni-dhcp.sock/*.json
        The leases, one file for each, mode 0600. The directory is named after the
        socket and locked (flock) by the daemon that runs.

SIGNALS
    SIGTERM, SIGINT
        Remove the socket and the pidfile, and end. No lease is released.

EXIT STATUS
    0 after a signal; 1 when it cannot start; 2 for a wrong flag.

SEE ALSO
    README of the plugin for the keys of a configuration; RFC 2131; RFC 2132.
";

impl Flags {
    /// Reads what follows `daemon`.
    ///
    /// # Errors
    /// Which argument is wrong, and how.
    pub fn parse(arguments: &[String]) -> Result<Command, String> {
        let mut flags = Self {
            pidfile: String::new(),
            host_prefix: String::new(),
            socket: SOCKET.to_owned(),
            broadcast: false,
            timeout: Duration::from_secs(10),
            resend_max: RESEND_MAX,
            resend_timeout: Duration::ZERO,
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
            match name {
                "h" | "help" => return Ok(Command::Help),
                "broadcast" => {
                    flags.broadcast = boolean(value.as_deref().unwrap_or("true"))
                        .ok_or_else(|| format!("flag -{name}: not a boolean"))?;
                    continue;
                }
                _ => {}
            }
            if !NAMES.contains(&name) {
                return Err(format!("unknown flag -{name}"));
            }
            let value = value.or_else(|| arguments.next().cloned());
            let value = value.ok_or_else(|| format!("flag -{name} needs a value"))?;
            flags.set(name, value)?;
        }
        if flags.resend_timeout.is_zero() {
            flags.resend_timeout = flags.whole();
        }
        Ok(Command::Run(flags))
    }

    fn set(&mut self, name: &str, value: String) -> Result<(), String> {
        let time = |value: &str| {
            duration(value)
                .filter(|time| !time.is_zero())
                .ok_or_else(|| {
                    format!("flag -{name}: {value:?} is no duration such as 10s or 1m30s")
                })
        };
        match name {
            "pidfile" => self.pidfile = value,
            "hostprefix" => self.host_prefix = value,
            "socketpath" if value.is_empty() => {}
            "socketpath" => self.socket = value,
            "timeout" => self.timeout = time(&value)?,
            "resendmax" => self.resend_max = time(&value)?,
            _ => self.resend_timeout = time(&value)?,
        }
        Ok(())
    }

    /// The pauses up to the longest, that once, and the quick tries before: who
    /// makes the longest pause shorter wants an answer sooner.
    fn whole(&self) -> Duration {
        let mut pause = Duration::from_secs(4);
        let mut whole = Duration::from_secs(8);
        while pause < self.resend_max {
            whole += pause;
            pause *= 2;
        }
        (whole + self.resend_max)
            .min(RESEND_TIMEOUT)
            .max(match self.resend_max {
                RESEND_MAX => RESEND_TIMEOUT,
                _ => Duration::ZERO,
            })
    }
}

const NAMES: [&str; 6] = [
    "pidfile",
    "hostprefix",
    "socketpath",
    "timeout",
    "resendmax",
    "resendtimeout",
];

/// What Go's flag package takes for a boolean.
fn boolean(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// What Go's `time.ParseDuration` takes, without signs: numbers with units in a row.
fn duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at(digits);
        let end = after.find(|c: char| c.is_ascii_digit() || c == '.');
        let (unit, after) = after.split_at(end.unwrap_or(after.len()));
        let unit = match unit {
            "ns" => 1e-9,
            "us" | "µs" | "μs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        seconds += number.parse::<f64>().ok()? * unit;
        rest = after;
    }
    // A year is longer than any of this has to be.
    (0.0..=31_536_000.0)
        .contains(&seconds)
        .then(|| Duration::from_secs_f64(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Flags, String> {
        let arguments: Vec<_> = line.split_whitespace().map(str::to_owned).collect();
        match Flags::parse(&arguments)? {
            Command::Run(flags) => Ok(flags),
            Command::Help => Err("help".into()),
        }
    }

    #[test]
    fn the_defaults_are_those_of_the_go_daemon() {
        let flags = parse("").unwrap();
        assert_eq!(flags.socket, "/run/cni/dhcp.sock");
        assert_eq!(flags.timeout, Duration::from_secs(10));
        assert_eq!(flags.resend_max, Duration::from_secs(62));
        assert_eq!(flags.resend_timeout, Duration::from_secs(208));
        assert!(!flags.broadcast);
    }

    #[test]
    fn one_dash_or_two_a_space_or_an_equals_sign() {
        for line in [
            "-socketpath /s -timeout 2s -broadcast -resendtimeout=1m30s",
            "--socketpath=/s --timeout=2s --broadcast=true --resendtimeout 90s",
        ] {
            let flags = parse(line).unwrap();
            assert_eq!(flags.socket, "/s");
            assert_eq!(flags.timeout, Duration::from_secs(2));
            assert_eq!(flags.resend_timeout, Duration::from_secs(90));
            assert!(flags.broadcast);
        }
        assert_eq!(parse("-h").unwrap_err(), "help");
        assert_eq!(parse("-socketpath x --help").unwrap_err(), "help");
    }

    #[test]
    fn who_resends_less_waits_less() {
        let whole = parse("-timeout 2s -resendmax 8s").unwrap().resend_timeout;
        assert_eq!(whole, Duration::from_secs(20));
    }

    #[test]
    fn what_is_wrong_is_named() {
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
        assert_eq!(
            duration("1h1m1s500ms"),
            Some(Duration::from_millis(3_661_500))
        );
    }

    #[test]
    fn the_help_names_every_flag() {
        for name in NAMES.iter().chain(&["broadcast", "help"]) {
            assert!(HELP.contains(&format!("-{name}")), "{name}");
        }
        assert!(HELP.lines().all(|line| line.chars().count() <= 86));
    }
}
