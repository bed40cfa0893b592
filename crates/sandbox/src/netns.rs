//! One network namespace of a sandbox: the node or a pod.

#![allow(clippy::disallowed_methods)] // starts ip, sh and ping in the namespace

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::process::{Finished, Run, in_time};
use crate::sandbox::Inner;

/// The node's namespace or a pod's, with the tools to look at it.
#[derive(Clone)]
pub struct Netns {
    inner: Arc<Inner>,
    pod: Option<String>,
}

impl Netns {
    pub(crate) fn host(inner: Arc<Inner>) -> Self {
        Self { inner, pod: None }
    }

    pub(crate) fn pod(inner: Arc<Inner>, name: &str) -> Self {
        Self {
            inner,
            pod: Some(name.to_owned()),
        }
    }

    /// The pod's name, or `host`.
    pub fn name(&self) -> &str {
        self.pod.as_deref().unwrap_or("host")
    }

    /// What goes into `CNI_NETNS`: a path inside the sandbox.
    pub fn path(&self) -> String {
        match &self.pod {
            Some(name) => format!("/run/netns/{name}"),
            None => "/proc/self/ns/net".into(),
        }
    }

    /// Runs a program in the namespace, whatever its exit status.
    pub fn run(&self, argv: &[&str]) -> Finished {
        self.run_for(argv, crate::TIME_LIMIT)
    }

    /// As [`Netns::run`], with a time limit of its own.
    pub fn run_for(&self, argv: &[&str], limit: Duration) -> Finished {
        let run = Run {
            limit,
            ..Run::default()
        };
        self.inner.run(self.command(argv), run)
    }

    /// A command that will run in this namespace, for tests that keep it running.
    pub(crate) fn command(&self, argv: &[&str]) -> Command {
        // Not `ip netns exec`: it remounts /sys and so hides the cgroups.
        let mut command = match &self.pod {
            None => Command::new(argv[0]),
            Some(_) => {
                let mut command = Command::new("nsenter");
                command
                    .arg(format!("--net={}", self.path()))
                    .arg("--")
                    .arg(argv[0]);
                command
            }
        };
        command.args(&argv[1..]);
        command
    }

    /// Runs a shell script that must succeed, and returns what it printed.
    pub fn sh(&self, script: &str) -> String {
        let done = self.run(&["sh", "-ec", script]);
        assert!(
            done.code == 0,
            "in {}: `{script}` exited with {}: {}{}",
            self.name(),
            done.code,
            done.stdout,
            done.stderr
        );
        done.stdout
    }

    /// Runs `ip -j` with these arguments and returns its array; an empty one if ip
    /// failed because the object does not exist.
    pub fn ip_json<const N: usize>(&self, args: [&str; N]) -> Vec<Value> {
        let mut argv = vec!["ip", "-j", "-d"];
        argv.extend(args);
        let done = self.run(&argv);
        if done.code != 0 {
            let absent = ["does not exist", "Cannot find device", "No such device"];
            assert!(
                absent.iter().any(|text| done.stderr.contains(text)),
                "{argv:?}: {}",
                done.stderr
            );
            return Vec::new();
        }
        if done.stdout.trim().is_empty() {
            return Vec::new();
        }
        let all: Vec<Value> = serde_json::from_str(&done.stdout)
            .unwrap_or_else(|e| panic!("{argv:?} printed no JSON array: {e}: {}", done.stdout));
        // `ip -j addr show` prints `{}` for what its filters left out.
        all.into_iter()
            .filter(|v| v.as_object().is_some_and(|o| !o.is_empty()))
            .collect()
    }

    /// The link of this name as `ip -j -d link` shows it.
    pub fn link(&self, name: &str) -> Option<Value> {
        self.ip_json(["link", "show", "dev", name])
            .into_iter()
            .next()
    }

    /// Names of all links, sorted.
    pub fn links(&self) -> Vec<String> {
        let mut names: Vec<String> = self
            .ip_json(["link", "show"])
            .iter()
            .map(|link| text(&link["ifname"]))
            .collect();
        names.sort();
        names
    }

    /// Addresses of a link that are not link-local, as `address/prefix`, sorted.
    pub fn addresses(&self, link: &str) -> Vec<String> {
        let mut found = Vec::new();
        for entry in self.ip_json(["addr", "show", "dev", link]) {
            for address in entry["addr_info"].as_array().into_iter().flatten() {
                if address["scope"] != "link" {
                    found.push(format!(
                        "{}/{}",
                        text(&address["local"]),
                        address["prefixlen"]
                    ));
                }
            }
        }
        found.sort();
        found
    }

    /// Routes of the main table (`-4` or `-6`) as `ip -j route` shows them.
    pub fn routes(&self, family: &str) -> Vec<Value> {
        self.ip_json([family, "route", "show"])
    }

    /// The routes to `dst` (`default` for the default route) in the main table of a family.
    pub fn routes_to(&self, family: &str, dst: &str) -> Vec<Value> {
        self.ip_json([family, "route", "show", "exact", dst])
    }

    /// Value of a sysctl as a path under `/proc/sys`.
    pub fn sysctl(&self, path: &str) -> String {
        self.sh(&format!("cat /proc/sys/{path}")).trim().to_owned()
    }

    /// Pings `to` `count` times at once, and says packet by packet whether an answer
    /// came within a second. One that waited until a lost question for a neighbour was
    /// repeated came later.
    pub fn ping(&self, to: &str, count: usize) -> Vec<bool> {
        let done = self.run(&[
            "ping",
            "-n",
            // After the first answer ping waits no second for the last one, unless all are
            // sent before.
            "-l",
            &count.to_string(),
            "-W",
            "1",
            "-c",
            &count.to_string(),
            to,
        ]);
        assert!(
            done.code < 2,
            "ping {to} from {}: {}{}",
            self.name(),
            done.stdout,
            done.stderr
        );
        let mut answered = vec![false; count];
        let limit = in_time(Duration::from_secs(1)).as_secs_f64() * 1e3;
        for line in done
            .stdout
            .lines()
            .filter(|line| line.contains("bytes from"))
        {
            let field = |key| line.split(key).nth(1)?.split(' ').next();
            let seq: Option<usize> = field("icmp_seq=").and_then(|seq| seq.parse().ok());
            let took: Option<f64> = field("time=").and_then(|took| took.parse().ok());
            let slot = seq.and_then(|seq| answered.get_mut(seq.checked_sub(1)?));
            if let (Some(slot), Some(took)) = (slot, took) {
                *slot = took < limit;
            }
        }
        answered
    }

    /// Waits until `condition` holds; panics with `what` after five seconds.
    pub fn wait_until(&self, what: &str, condition: impl Fn(&Netns) -> bool) {
        let deadline = Instant::now() + in_time(Duration::from_secs(5));
        while !condition(self) {
            assert!(
                Instant::now() < deadline,
                "in {}: never came true: {what}",
                self.name()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Starts a program that runs until the returned guard is dropped; the guard
    /// then kills it by its id.
    pub fn start(&self, argv: &[&str]) -> Running {
        let mut command = self.command(argv);
        let log = self.inner.dir().join(format!("started-{}", unique()));
        let out = std::fs::File::create(&log).expect("make a log file");
        let err = out.try_clone().expect("duplicate a log file");
        command
            .stdin(std::process::Stdio::null())
            .stdout(out)
            .stderr(err);
        let child = self
            .inner
            .spawn(command)
            .unwrap_or_else(|e| panic!("start {argv:?}: {e}"));
        Running { child, log }
    }

    /// Starts tcpdump with a filter and returns when it listens.
    pub fn capture(&self, link: &str, filter: &str) -> Running {
        // -l: a line at a time; -U and --immediate-mode: no packet waits in a buffer.
        let running = self.start(&[
            "tcpdump",
            "-l",
            "--immediate-mode",
            "-n",
            "-e",
            "-i",
            link,
            filter,
        ]);
        let deadline = Instant::now() + in_time(Duration::from_secs(5));
        while !running.output().contains("listening on") {
            assert!(
                Instant::now() < deadline,
                "tcpdump does not listen: {}",
                running.output()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
        running
    }
}

/// A program that runs beside the test and ends with this guard.
pub struct Running {
    child: std::process::Child,
    log: PathBuf,
}

impl Running {
    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Everything it has printed so far, both streams.
    pub fn output(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn unique() -> usize {
    use std::sync::atomic::{AtomicUsize, Ordering};
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
