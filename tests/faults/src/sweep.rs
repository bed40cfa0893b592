//! One accident at every point of a verb, and what is to be true afterwards.

use std::any::Any;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::scope;

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use serde_json::Value;
use testkit::{Cni, Outcome, conf};

use crate::calls;
use crate::node::{Chain, IFNAME, Node};
use crate::strike::{Call, Deed, Report, Strike, Struck};

/// A verb that has accidents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verb {
    /// ADD
    Add,
    /// DEL
    Del,
    /// CHECK
    Check,
    /// GC
    Gc,
}

/// All of them.
pub const VERBS: [Verb; 4] = [Verb::Add, Verb::Del, Verb::Check, Verb::Gc];

/// What the runtime does after the accident.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recovery {
    /// DEL as usual.
    Del,
    /// DEL when the pod's namespace is gone, with neither a result nor runtimeConfig.
    DelBare,
    /// DEL with an empty CNI_NETNS, while something keeps the namespace alive.
    DelElsewhere,
    /// The pod's namespace goes and the runtime forgets it: GC.
    Gc,
}

const RECOVERIES: [Recovery; 4] = [
    Recovery::Del,
    Recovery::DelBare,
    Recovery::DelElsewhere,
    Recovery::Gc,
];

/// A verb of a chain, and what is done to it.
#[derive(Clone)]
pub struct Sweep {
    /// The chain.
    pub chain: Chain,
    /// The verb.
    pub verb: Verb,
    /// The accident; the choice of [`Deed::Fail`] is gone through.
    pub deed: Deed,
    /// Not more than so many points, spread over all.
    pub at_most: Option<usize>,
}

/// What came of sweeps.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Accidents that happened.
    pub points: usize,
    /// Runs that ended before the accident could happen.
    pub missed: usize,
    /// Failed calls that the plugin could do without.
    pub harmless: usize,
    /// Plugins that ended without a word for want of memory, or before they began.
    pub aborted: usize,
    /// What should not be: one text each.
    pub findings: Vec<String>,
}

impl Tally {
    /// Adds another.
    pub fn add(&mut self, other: Self) {
        self.points += other.points;
        self.missed += other.missed;
        self.harmless += other.harmless;
        self.aborted += other.aborted;
        self.findings.extend(other.findings);
    }
}

/// One accident.
#[derive(Clone, Copy, Debug)]
struct Point {
    strike: Strike,
    recovery: Recovery,
}

impl Sweep {
    /// Has all accidents on `workers` nodes at once; `exe` is the program that traces.
    ///
    /// # Errors
    /// When the verb does not work without accidents.
    pub fn run(&self, exe: &str, workers: usize) -> Result<Tally> {
        let points = self.points(exe)?;
        let next = AtomicUsize::new(0);
        let total = Mutex::new(Tally::default());
        scope(|scope| {
            for _ in 0..workers {
                scope.spawn(|| {
                    let tally = self.work(exe, &points, &next);
                    total.lock().expect("a worker panicked").add(tally);
                });
            }
        });
        total.into_inner().context("a worker panicked")
    }

    /// Sees what calls the verb makes, and chooses among them.
    fn points(&self, exe: &str) -> Result<Vec<Point>> {
        let node = Node::new(&self.chain)?;
        let watch = Strike {
            deed: Deed::Watch,
            point: 0,
        };
        let scene = Scene {
            node: &node,
            exe,
            verb: self.verb,
            of_daemon: self.deed == Deed::KillDaemon,
        };
        let (report, outcome) = scene.accident(watch)?;
        ensure!(
            outcome.code() == 0,
            "{} fails without an accident: {outcome}",
            self.name()
        );
        let calls = report.calls.as_slice();
        let all = self.candidates(calls);
        let Some(limit) = self.at_most.filter(|limit| *limit < all.len()) else {
            return Ok(all);
        };
        // From the first to the last, as evenly as whole numbers allow; never one error or one way to recover alone.
        let step = all.len() as f64 / limit.max(1) as f64;
        let chosen = (0..limit).map(|at| all[(at as f64 * step) as usize]);
        Ok(chosen.collect())
    }

    /// Every point; where the state of the machine is another than at the point before, in every way.
    fn candidates(&self, calls: &[Call]) -> Vec<Point> {
        let recoveries = self.recoveries();
        let mut all = Vec::new();
        let mut delegates = 0;
        // Before it has its leases, a daemon has neither changed nor promised anything.
        let begin = match self.deed {
            Deed::KillDaemon => calls.iter().position(|call| call.name == "flock"),
            _ => None,
        };
        for (at, call) in calls.iter().enumerate().skip(begin.unwrap_or_default()) {
            delegates += usize::from(call.by_delegate);
            let point = match self.deed {
                Deed::KillDelegate | Deed::KillPlugin if !call.by_delegate => continue,
                Deed::KillDelegate => delegates,
                _ => at + 1,
            };
            let ways = match self.deed {
                Deed::Fail { .. } => calls::errors(&call.name).len(),
                _ => 1,
            };
            // What a program of the system makes of its own troubles is its affair; that it dies is among the kills.
            let helper = HELPERS.contains(&call.program.as_str());
            // Who is killed here finds what was there at the call before, unless that one changed something.
            let differs = at == 0 || calls::leaves_a_mark(&calls[at - 1].name);
            let fails = matches!(self.deed, Deed::Fail { .. });
            if fails && helper {
                continue;
            }
            if helper || !(differs || fails) {
                all.push(self.point(point, 0, recoveries[at % recoveries.len()]));
                continue;
            }
            for way in 0..ways {
                let points = recoveries.iter().map(|it| self.point(point, way, *it));
                all.extend(points);
            }
        }
        all
    }

    fn point(&self, point: usize, choice: usize, recovery: Recovery) -> Point {
        let deed = match self.deed {
            Deed::Fail { .. } => Deed::Fail { choice },
            deed => deed,
        };
        Point {
            strike: Strike { deed, point },
            recovery,
        }
    }

    /// After a call that failed the runtime may always come with all it knows.
    fn recoveries(&self) -> Vec<Recovery> {
        let all = match (self.deed, self.verb) {
            (Deed::Fail { .. } | Deed::KillDelegate, _) | (_, Verb::Check) => &RECOVERIES[..1],
            _ => &RECOVERIES,
        };
        let possible = |it: &&Recovery| !(self.chain.in_pod && **it == Recovery::DelElsewhere);
        all.iter().filter(possible).copied().collect()
    }

    fn name(&self) -> String {
        let deed = match self.deed {
            Deed::Watch => "watch",
            Deed::KillChain => "kill all",
            Deed::KillPlugin => "kill the plugin alone",
            Deed::KillDelegate => "kill the delegate alone",
            Deed::KillDaemon => "kill the daemon",
            Deed::Fail { .. } => "fail",
        };
        format!("{}, {:?}, {deed}", self.chain.name, self.verb)
    }

    fn work(&self, exe: &str, points: &[Point], next: &AtomicUsize) -> Tally {
        let mut tally = Tally::default();
        let mut node = None;
        while let Some(point) = points.get(next.fetch_add(1, Ordering::Relaxed)) {
            let ready = match node.take() {
                Some(node) => Ok(node),
                None => Node::new(&self.chain),
            };
            let ready = match ready {
                Ok(node) => node,
                Err(error) => {
                    tally
                        .findings
                        .push(format!("{}: make a node: {error:#}", self.name()));
                    continue;
                }
            };
            let mut at = None;
            let scene = Scene {
                node: &ready,
                exe,
                verb: self.verb,
                of_daemon: self.deed == Deed::KillDaemon,
            };
            let mut body = || scene.play(*point, &mut tally, &mut at);
            let done = catch_unwind(AssertUnwindSafe(&mut body))
                .unwrap_or_else(|panic| Err(anyhow::Error::msg(text(&*panic))));
            match done {
                Ok(()) => node = Some(ready),
                // What is left would be found again and again: the next one gets another node.
                Err(error) => tally.findings.push(format!(
                    "{}, point {}, {}, then {:?}: {error:#}",
                    self.name(),
                    point.strike.point,
                    at.map_or_else(String::new, |at| at.to_string()),
                    point.recovery
                )),
            }
        }
        tally
    }
}

impl std::fmt::Display for Struck {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} of {}", self.call, self.program)?;
        match self.errno {
            0 => Ok(()),
            errno => write!(f, " = {:?}", Errno::from_raw(errno)),
        }
    }
}

fn text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_default()
}

/// A node, and the verb that has its accident there.
struct Scene<'a> {
    node: &'a Node,
    exe: &'a str,
    verb: Verb,
    /// It is not the plugin's accident, but that of the daemon that it asks.
    of_daemon: bool,
}

impl Scene<'_> {
    /// The whole story of one point.
    fn play(&self, point: Point, tally: &mut Tally, at: &mut Option<Struck>) -> Result<()> {
        let (report, outcome) = self.accident(point.strike)?;
        *at = report.struck.clone();
        let no_memory = |struck: &Struck| calls::is_memory(&struck.call);
        let excused = outcome.code() == ABORTED && at.as_ref().is_some_and(no_memory);
        // The standard library's own opinion of a directory that cannot be closed, which no kernel says.
        let closedir = "unexpected error during closedir";
        let closedir = outcome.stderr().contains(closedir) || outcome.stdout().contains(closedir);
        let panicked = outcome.stderr().contains("panicked at");
        let excused = excused || closedir;
        if !excused && (panicked || outcome.stdout().contains("panic:")) {
            bail!("panic: {outcome}");
        }
        let Some(struck) = report.struck else {
            tally.missed += 1;
            self.revive()?;
            return self.after(&outcome, Recovery::Del);
        };
        tally.points += 1;
        let answered = match point.strike.deed {
            Deed::KillChain | Deed::KillPlugin | Deed::Watch => false,
            Deed::KillDelegate | Deed::KillDaemon => self.answered(&outcome, None, tally)?,
            Deed::Fail { .. } => self.answered(&outcome, Some((&struck, point.strike)), tally)?,
        };
        // DEL after a verb that failed finds no daemon, every other time.
        if outcome.code() == 0 || point.strike.point.is_multiple_of(2) {
            self.revive()?;
        }
        if answered && outcome.code() == 1 && self.verb == Verb::Add && !self.node.is_cold() {
            self.node.is_clean().context("rolled back, but")?;
        }
        if answered && outcome.code() == 0 {
            self.succeeded(&outcome)?;
        }
        self.after(&outcome, point.recovery)
    }

    /// Brings the node to where the verb is about to run, and runs it.
    fn accident(&self, strike: Strike) -> Result<(Report, Outcome)> {
        let node = self.node;
        if node.is_cold() {
            node.make_cold();
        }
        let conf = node.conf(&node.victim);
        let conf = match self.verb {
            Verb::Add => conf,
            _ => self.added(&conf),
        };
        let file = format!("{}/report", node.dir());
        let [deed, point] = strike.words();
        let tracer = [self.exe, "trace", &file, &deed, &point, "--"];
        let outcome = match (self.of_daemon, &node.dhcp) {
            (false, _) => self.call(|| node.cni().under(&tracer), &conf),
            (true, None) => bail!("{} has no daemon", self.exe),
            (true, Some(dhcp)) => {
                dhcp.restart_under(&tracer, Path::new(&file))?;
                let outcome = self.call(|| node.cni(), &conf);
                dhcp.end_traced(Path::new(&file))?;
                outcome
            }
        };
        let report =
            std::fs::read_to_string(&file).with_context(|| format!("no report: {outcome}"))?;
        std::fs::remove_file(&file)?;
        Ok((Report::parse(&report)?, outcome))
    }

    /// Runs the verb.
    fn call(&self, cni: impl Fn() -> Cni, conf: &Value) -> Outcome {
        let node = self.node;
        match self.verb {
            Verb::Add => cni().add(conf, &node.victim, IFNAME),
            Verb::Del => cni().del(conf, &node.victim, IFNAME),
            Verb::Check => cni().check(conf, &node.victim, IFNAME),
            Verb::Gc => node.without_pod(|| cni().gc(&node.gc_conf())),
        }
    }

    /// The service manager starts a daemon again that has had an accident.
    fn revive(&self) -> Result<()> {
        match &self.node.dhcp {
            Some(dhcp) if self.of_daemon && !dhcp.listens() => dhcp.restart(),
            _ => Ok(()),
        }
    }

    /// Attaches without an accident; the configuration as the runtime sends it from then on.
    fn added(&self, conf: &Value) -> Value {
        let added = self.node.cni().add(conf, &self.node.victim, IFNAME);
        conf::with_prev(conf, &added.result())
    }

    /// Whether the plugin lived to say how it went; what it says must be sound then.
    fn answered(
        &self,
        outcome: &Outcome,
        failed: Option<(&Struck, Strike)>,
        tally: &mut Tally,
    ) -> Result<bool> {
        match outcome.code() {
            0 => tally.harmless += 1,
            1 => {
                let error = outcome.error();
                // Told to try again, nobody needs to know why.
                if let (Some((struck, _)), true) = (failed, error.code != TRY_AGAIN) {
                    let said = format!("{} {}", error.msg, error.details).to_lowercase();
                    ensure!(names_cause(&said, struck), "the cause is lost: {outcome}");
                }
            }
            code => {
                let Some((struck, strike)) = failed else {
                    bail!("ended with {code}: {outcome}");
                };
                // Whoever has no memory, or not even a beginning, says nothing.
                let excused = calls::is_memory(&struck.call) || strike.point <= START;
                ensure!(excused, "ended with {code}: {outcome}");
                tally.aborted += 1;
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// What a verb that says it succeeded must have done.
    fn succeeded(&self, outcome: &Outcome) -> Result<()> {
        let node = self.node;
        let conf = node.conf(&node.victim);
        match self.verb {
            Verb::Add => {
                let after = conf::with_prev(&conf, &outcome.result());
                node.cni().check(&after, &node.victim, IFNAME).silent();
            }
            Verb::Check => _ = outcome.silent(),
            Verb::Del | Verb::Gc => {
                outcome.silent();
                // Nobody is left on a cold node: GC took what networks share, too.
                if node.is_cold() {
                    return Ok(());
                }
                node.is_clean().context("it says that it succeeded, but")?;
            }
        }
        Ok(())
    }

    /// The runtime cleans up; then nothing is left and the next one can come.
    fn after(&self, outcome: &Outcome, recovery: Recovery) -> Result<()> {
        let node = self.node;
        let conf = node.conf(&node.victim);
        let known = match (self.verb, outcome.code()) {
            (Verb::Add, 0) => conf::with_prev(&conf, &outcome.result()),
            _ => conf.clone(),
        };
        let bare = conf::with(
            &conf,
            serde_json::json!({"runtimeConfig": null, "prevResult": null}),
        );
        let delete = |conf: &Value| node.cni().del(conf, &node.victim, IFNAME);
        let elsewhere = || node.cni().netns("").del(&bare, &node.victim, IFNAME);
        match recovery {
            Recovery::Del => _ = delete(&known).silent(),
            Recovery::DelBare => node.without_pod(|| _ = elsewhere().silent()),
            Recovery::DelElsewhere => _ = elsewhere().silent(),
            Recovery::Gc => node.without_pod(|| _ = node.gc().silent()),
        }
        if !node.is_cold() {
            node.is_clean()?;
        }
        self.revive()?;
        node.next_one().context("the next one")?;
        if node.is_cold() {
            return node.is_clean();
        }
        node.check_valid();
        Ok(())
    }
}

/// The code of what may pass.
const TRY_AGAIN: u64 = 11;

/// How a shell tells of SIGABRT, which a Rust program without memory ends with.
const ABORTED: i32 = 128 + 6;

/// Programs that are executed, by the name that the kernel shows.
const HELPERS: [&str; 10] = [
    // The shell that stands before host-local (`Node`).
    "executed",
    "sh",
    "iptables",
    "ip6tables",
    "iptables-save",
    "ip6tables-save",
    "iptables-restor",
    "ip6tables-resto",
    "xtables-nft-mul",
    "modprobe",
];

/// Calls that are made before `main`: the C library's and the Rust runtime's.
const START: usize = 30;

/// Whether an error tells what the kernel told.
fn names_cause(said: &str, struck: &Struck) -> bool {
    if HELPERS.contains(&struck.program.as_str()) {
        // In its own words.
        return true;
    }
    let errno = Errno::from_raw(struck.errno);
    let libc = std::io::Error::from_raw_os_error(struck.errno).to_string();
    let mut texts = vec![
        libc.to_lowercase()
            .split(" (os error")
            .next()
            .unwrap_or_default()
            .to_owned(),
        // What cannot be looked at in one directory is looked for in the next.
        "failed to find plugin".to_owned(),
        errno.desc().to_lowercase(),
        format!("({})", struck.errno),
        format!("error {}", struck.errno),
    ];
    if calls::is_memory(&struck.call) {
        // Threads that get no stack, and delegates that got no memory.
        texts.extend(
            [
                "resource temporarily unavailable",
                "signal",
                "memory",
                "allocate",
            ]
            .map(str::to_owned),
        );
    }
    texts.iter().any(|text| said.contains(text))
}

/// How often each text is among `findings`, its numbers aside.
pub fn grouped(findings: &[String]) -> BTreeMap<String, usize> {
    let mut groups = BTreeMap::new();
    for finding in findings {
        let plain: String = finding.chars().filter(|c| !c.is_ascii_digit()).collect();
        *groups.entry(plain).or_insert(0) += 1;
    }
    groups
}
