//! The command line of `dhcp daemon`: the Go daemon's, with one dash or two.

use std::time::Duration;

use crate::conf::SOCKET;

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
    /// `-timeout`: how long a server may take to grant what it has offered.
    pub timeout: Duration,
    /// `-resendmax`: the longest pause between two messages.
    pub resend_max: Duration,
    /// `-resendtimeout`: how long an ADD waits for an address.
    pub resend_timeout: Duration,
}

const RESEND_MAX: Duration = Duration::from_secs(62);
const RESEND_TIMEOUT: Duration = Duration::from_secs(208);

/// What `dhcp daemon --help` prints.
pub const HELP: &str = "\
dhcp daemon - hold the DHCP leases of this node's pods

USAGE
    dhcp daemon [FLAG]...

DESCRIPTION
    The CNI plugin `dhcp` runs only while a pod is created or deleted, but the
    lease of an address has to be renewed for as long as the pod lives. This
    daemon does that. The plugin requests and releases leases over a unix socket;
    the daemon speaks DHCP on the pod's own interface, inside the pod's network
    namespace.

    It renews a lease at the server's T1, and asks any server at T2. When a lease
    expires or is refused, it removes the address from the pod and acquires
    another one. If a renewal changes the address, mask or routes, it applies them
    to the pod at once.

    Leases are kept on disk. After a restart for any reason, the daemon renews
    them and goes on. Stopping it (SIGTERM, SIGINT) releases nothing: pods keep
    their addresses, and another daemon should be running before half the lease
    time is over.

    One thread serves all leases.

FLAGS
    One dash or two; a value follows after a space or `=`. DURATION is in Go's
    format: 300ms, 10s, 1m30s, 2h.

    -broadcast
        Ask servers to broadcast their answers. For segments that drop frames to a
        hardware address that has not sent anything yet.

    -hostprefix DIR
        The root directory of the host, for a daemon in a container: the prefix of
        the paths of the socket, of the leases and of pods' namespaces.

    -pidfile FILE
        Write the process id to FILE, an absolute path; removed at the end.

    -resendmax DURATION         (62s)
        The longest pause between two messages. The pauses are about 1, 2, 2, 2, 4,
        8, 16 … seconds.

    -resendtimeout DURATION     (208s, less with a shorter -resendmax)
        How long an ADD waits for an address before it fails with `no more tries`,
        error code 11 (try again later).

    -socketpath FILE            (/run/cni/dhcp.sock)
        Where to listen. The key `ipam.daemonSocketPath` of the network's
        configuration needs the same path. A socket without a listening process is
        replaced. Daemons with different sockets are independent.

    -timeout DURATION           (10s)
        How long a server may take to grant the address that it has offered, and to
        confirm one from before a restart.

    -h, -help
        Print this.

SYSTEMD
    cni-dhcp.socket and cni-dhcp.service, which `make install` puts in place, start
    the daemon when the first pod needs it:

        systemctl enable --now cni-dhcp.socket

    A socket from systemd (LISTEN_FDS) is used instead of -socketpath. Set
    -socketpath to the same path nevertheless: the directory of the leases is named
    after it.

FILES
    /run/cni/dhcp.sock
        The socket. A process that can write to it can get leases on any network
        namespace of the node, so it and its directory belong to root.

    /var/lib/cni/dhcp/run-cni-dhcp.sock/*.json
        The leases, a file for each, mode 0600. The directory is named after the
        socket, and the running daemon locks it (flock).

SIGNALS
    SIGTERM, SIGINT
        Remove the socket and the pidfile, and end. No lease is released.

EXIT STATUS
    0 after a signal; 1 when it cannot start; 2 for a wrong flag.

SEE ALSO
    The plugin's README for the keys of a configuration; RFC 2131; RFC 2132.
";

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
                "timeout" => flags.timeout = time(name, &text()?)?,
                "resendmax" => flags.resend_max = time(name, &text()?)?,
                "resendtimeout" => flags.resend_timeout = time(name, &text()?)?,
                _ => return Err(format!("unknown flag -{name}")),
            }
        }
        if flags.resend_timeout.is_zero() {
            flags.resend_timeout = default_resend_timeout(flags.resend_max);
        }
        Ok(Some(flags))
    }
}

/// The quick tries and the pauses up to the longest one: a shorter -resendmax makes ADD fail
/// sooner, too.
fn default_resend_timeout(resend_max: Duration) -> Duration {
    if resend_max == RESEND_MAX {
        return RESEND_TIMEOUT;
    }
    let mut pause = Duration::from_secs(4);
    let mut whole = Duration::from_secs(8);
    while pause < resend_max {
        whole += pause;
        pause *= 2;
    }
    (whole + resend_max).min(RESEND_TIMEOUT)
}

/// The duration that `value` gives for flag `name`.
fn time(name: &str, value: &str) -> Result<Duration, String> {
    let time = duration(value).filter(|time| !time.is_zero());
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

/// A duration, as Go's `time.ParseDuration` reads it, without a sign.
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
    // No more than a year.
    (0.0..=31_536_000.0)
        .contains(&seconds)
        .then(|| Duration::from_secs_f64(seconds))
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
            assert_eq!(flags.timeout, Duration::from_secs(2));
            assert_eq!(flags.resend_timeout, Duration::from_secs(90));
            assert!(flags.broadcast);
        }
        assert_eq!(parse("-h").unwrap_err(), "help");
        assert_eq!(parse("-socketpath x --help").unwrap_err(), "help");
    }

    #[test]
    fn a_shorter_resendmax_shortens_the_wait() {
        let whole = |line: &str| parse(line).unwrap().resend_timeout;
        assert_eq!(whole(""), Duration::from_secs(208), "as the Go daemon");
        assert_eq!(whole("-timeout 2s -resendmax 8s"), Duration::from_secs(20));
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
        assert_eq!(
            duration("1h1m1s500ms"),
            Some(Duration::from_millis(3_661_500))
        );
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
