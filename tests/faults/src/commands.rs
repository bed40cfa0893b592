//! Kills `podwire network` and `podwire run` at their system calls. Every other time the same command
//! runs again. Then the containers are stopped, and after `podwire network prune` the node must be as before.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use sandbox::{Finished, Sandbox, Suite};

use crate::calls;
use crate::glance::{But, Glance};
use crate::strike::{Deed, Report, Strike};
use crate::sweep::{Crew, Tally};

/// A command under test.
#[derive(Clone, Copy, Debug)]
pub struct Command {
    /// What it is called in findings.
    pub name: &'static str,
    /// The commands before it, which are not killed.
    before: &'static [&'static str],
    /// Its words.
    victim: &'static str,
    /// Errors that are allowed when the command runs again: the first run had already completed the work.
    done: &'static str,
}

/// A network with published ports, rules and a bridge, and a container in the background. Without names: the agent
/// that answers for them goes on its own time.
const NETWORK: &str = "network create --no-dns --subnet 10.5.0.0/24 --subnet fd05::/64 n";
const OTHER: &str = "network create --no-dns --subnet 10.6.0.0/24 m";
const CONTAINER: &str = "run -d --name c --network n -- sleep 1000";

/// All of them.
pub const COMMANDS: [Command; 7] = [
    Command {
        name: "network create",
        before: &[],
        victim: NETWORK,
        done: "network with name n already exists",
    },
    Command {
        name: "network rm",
        before: &[NETWORK, "run --network n -- true"],
        victim: "network rm n",
        done: "network n not found",
    },
    Command {
        name: "network connect",
        before: &[NETWORK, OTHER, "run -d --name c --network m -- sleep 1000"],
        victim: "network connect n c",
        done: "already exists in network n",
    },
    Command {
        name: "network disconnect",
        before: &[NETWORK, CONTAINER],
        victim: "network disconnect n c",
        done: "is not connected to the network n",
    },
    Command {
        name: "network update",
        before: &[NETWORK, CONTAINER],
        victim: "network update --mtu 1400 --icc=false --ip-masq=false --label a=b n",
        done: "",
    },
    Command {
        name: "run",
        before: &[NETWORK],
        victim: "run --name v --network n -p 8080:80 -- true",
        done: "",
    },
    Command {
        name: "run -d",
        before: &[NETWORK],
        victim: "run -d --name v --network n -p 8080:80 -- sleep 0.2",
        done: "is already in use by container",
    },
];

/// Which processes are killed: all at once, only the first one, or the one that makes the call.
pub const DEEDS: [Deed; 3] = [Deed::KillChain, Deed::KillPlugin, Deed::KillDelegate];

/// The command of that name.
pub fn named(name: &str) -> Option<Command> {
    COMMANDS.into_iter().find(|it| it.name == name)
}

/// How much of a remaining object is reported: of a file, its name.
const LONGEST: usize = 150;

/// How long processes of a killed container may take to end.
const MOMENT: Duration = Duration::from_secs(5);

/// A node on which a command is tried again and again.
struct Node {
    sandbox: Sandbox,
    clean: Option<Glance>,
    but: But,
}

impl Command {
    /// Kills it, with all processes that it has started, at not more than `at_most` of its system
    /// calls.
    ///
    /// # Errors
    /// When it does not work without accidents.
    pub fn sweep(&self, crew: &Crew, deed: Deed, at_most: usize) -> Result<Tally> {
        let points = self.points(crew, deed, at_most)?;
        let (next, total) = (AtomicUsize::new(0), Mutex::new(Tally::default()));
        scope(|scope| {
            for _ in 0..crew.workers {
                scope.spawn(|| {
                    let mut node = None;
                    while crew.until.is_none_or(|until| Instant::now() < until) {
                        let at = next.fetch_add(1, Ordering::Relaxed);
                        let Some(point) = points.get(at) else { return };
                        let tally = self.one(crew, &mut node, deed, *point, at % 2 == 1);
                        total.lock().expect("a worker panicked").add(tally);
                    }
                });
            }
        });
        total.into_inner().context("a worker panicked")
    }

    /// The points before which a call may have changed something.
    fn points(&self, crew: &Crew, deed: Deed, at_most: usize) -> Result<Vec<usize>> {
        let node = Node::new(self)?;
        let watch = Strike {
            deed: Deed::Watch,
            point: 0,
            call: None,
        };
        self.prepare(&node)?;
        let (report, outcome) = node.trace(crew.exe, watch, self.victim)?;
        ensure!(outcome.code == 0, "{}: {outcome:?}", self.name);
        let mut points = Vec::new();
        let mut delegates = 0;
        for (at, call) in report.calls.iter().enumerate() {
            delegates += usize::from(call.by_delegate);
            let differs = at == 0 || calls::leaves_a_mark(&report.calls[at - 1].name);
            let is_its_own = deed != Deed::KillDelegate || call.by_delegate;
            if differs && is_its_own {
                // The point counts the calls of these processes alone.
                points.push(if deed == Deed::KillDelegate {
                    delegates
                } else {
                    at + 1
                });
            }
        }
        let step = points.len().div_ceil(at_most.max(1)).max(1);
        Ok(points.into_iter().step_by(step).collect())
    }

    fn prepare(&self, node: &Node) -> Result<()> {
        for line in self.before {
            node.must(line)?;
        }
        Ok(())
    }

    fn one(
        &self,
        crew: &Crew,
        node: &mut Option<Node>,
        deed: Deed,
        point: usize,
        again: bool,
    ) -> Tally {
        let mut tally = Tally::default();
        let strike = Strike {
            deed,
            point,
            call: None,
        };
        let mut struck = String::new();
        let mut story = || -> Result<bool> {
            let ready = match node.take() {
                Some(node) => node,
                None => Node::new(self)?,
            };
            self.prepare(&ready)?;
            let (report, _) = ready.trace(crew.exe, strike, self.victim)?;
            struck = report
                .struck
                .as_ref()
                .map(ToString::to_string)
                .unwrap_or_default();
            if again {
                self.again(&ready)?;
            }
            ready.recover()?;
            *node = Some(ready);
            Ok(report.struck.is_some())
        };
        match story() {
            Ok(true) => tally.points = 1,
            Ok(false) => tally.missed = 1,
            Err(error) => {
                tally.points = 1;
                let then = if again { "then again" } else { "then prune" };
                let name = self.name;
                let finding = format!("{name}, killed at {point}, {struck}, {then}: {error:#}");
                tally.findings.push(finding);
            }
        }
        tally
    }

    /// The same command completes the work, or says that it is done.
    fn again(&self, node: &Node) -> Result<()> {
        let outcome = node.run(self.victim);
        let is_done = !self.done.is_empty() && outcome.stderr.contains(self.done);
        ensure!(outcome.code == 0 || is_done, "again: {outcome:?}");
        Ok(())
    }
}

impl Node {
    /// A node after one run of everything: what the first run of all leaves is there already.
    fn new(command: &Command) -> Result<Self> {
        let sandbox = Sandbox::new();
        let host = sandbox.host();
        // The kernel assigns no link-local addresses: it does so at any time.
        host.sh("sysctl -qw net.ipv6.conf.default.addr_gen_mode=1");
        let mut node = Self {
            sandbox,
            clean: None,
            but: But::default(),
        };
        command.prepare(&node)?;
        node.must(command.victim)?;
        node.recover()?;
        let but = But {
            links: Vec::new(),
            texts: ["/run/podwire/neighbours/", "last_reserved_ip"]
                .map(str::to_owned)
                .to_vec(),
        };
        node.settle(&but)?;
        node.clean = Some(Glance::take(&node.sandbox, &[], &but)?);
        node.but = but;
        Ok(node)
    }

    /// Waits for what the last command has left to children.
    fn settle(&self, but: &But) -> Result<()> {
        let deadline = Instant::now() + MOMENT;
        let mut before = Glance::take(&self.sandbox, &[], but)?;
        while Instant::now() < deadline {
            sleep(Duration::from_millis(100));
            let now = Glance::take(&self.sandbox, &[], but)?;
            if now == before {
                return Ok(());
            }
            before = now;
        }
        Ok(())
    }

    fn settings() -> [String; 2] {
        let bin = Suite::Ours.dir().display();
        // Where a glance sees it.
        [
            "NETCONFPATH=/var/lib/net.d".to_owned(),
            format!("CNI_PATH={bin}"),
        ]
    }

    fn run(&self, line: &str) -> Finished {
        self.podwire(&[], line)
    }

    fn must(&self, line: &str) -> Result<()> {
        let outcome = self.run(line);
        ensure!(outcome.code == 0, "{line}: {outcome:?}");
        Ok(())
    }

    fn podwire(&self, before: &[&str], line: &str) -> Finished {
        let program = format!("{}/podwire", Suite::Ours.dir().display());
        let settings = Self::settings();
        let mut argv = vec!["env", &settings[0], &settings[1]];
        argv.extend(before);
        argv.push(&program);
        argv.extend(line.split(' '));
        self.sandbox.host().run(&argv)
    }

    fn trace(&self, exe: &str, strike: Strike, line: &str) -> Result<(Report, Finished)> {
        let file = self.sandbox.dir().join("report").display().to_string();
        let [deed, point] = strike.words();
        let outcome = self.podwire(&[exe, "trace", &file, &deed, &point, "--"], line);
        let report = std::fs::read_to_string(&file);
        let report = report.with_context(|| format!("no report: {outcome:?}"))?;
        Ok((Report::parse(&report)?, outcome))
    }

    /// Containers are stopped, networks are removed; then the node is as it was.
    fn recover(&self) -> Result<()> {
        for container in ["c", "v"] {
            // Most of the time it is not there.
            self.run(&format!("stop -t 0 {container}"));
        }
        self.must("network prune --force")?;
        let Some(clean) = &self.clean else {
            return Ok(());
        };
        let deadline = Instant::now() + MOMENT;
        loop {
            let now = Glance::take(&self.sandbox, &[], &self.but)?;
            if now == *clean {
                return Ok(());
            }
            if Instant::now() >= deadline {
                let mut left = clean.differences(&now);
                left.iter_mut().for_each(|it| it.truncate(LONGEST));
                bail!("left: {}", left.join("\n"));
            }
            sleep(Duration::from_millis(5));
        }
    }
}
