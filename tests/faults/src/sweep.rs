//! Injects one fault at every point of a verb, and checks what must be true afterwards.

use std::any::Any;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::scope;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use sandbox::{Cni, Outcome, conf};
use serde_json::{Value, json};

use crate::calls;
use crate::node::{Chain, IFNAME, Node};
use crate::strike::{Call, Deed, Report, Strike, Struck};

/// A verb into which faults are injected.
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

/// What the runtime does after the fault.
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

/// A chain, its verbs, and the faults for them.
#[derive(Clone)]
pub struct Sweep {
    /// The chain.
    pub chain: Chain,
    /// The verbs.
    pub verbs: Vec<Verb>,
    /// The kinds of fault; of [`Deed::Fail`], every error.
    pub deeds: Vec<Deed>,
    /// At most so many points of each fault and verb, spread over all.
    pub at_most: Option<usize>,
}

/// The processes that sweep.
pub struct Crew<'a> {
    /// This program, which also traces.
    pub exe: &'a str,
    /// The number of nodes at once.
    pub workers: usize,
    /// No point begins after this.
    pub until: Option<Instant>,
}

/// The results of sweeps.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Faults that were injected.
    pub points: usize,
    /// Runs that ended before the fault could be injected.
    pub missed: usize,
    /// Failed calls after which the verb succeeded.
    pub harmless: usize,
    /// Plugins that ended without an error message because memory was short, or before `main`.
    pub aborted: usize,
    /// Leak checks with independent tools: after a glance with a difference, or after a number of glances.
    pub full_looks: usize,
    /// Failures, one text each.
    pub findings: Vec<String>,
}

impl Tally {
    /// Adds another.
    pub fn add(&mut self, other: Self) {
        self.points += other.points;
        self.missed += other.missed;
        self.harmless += other.harmless;
        self.aborted += other.aborted;
        self.full_looks += other.full_looks;
        self.findings.extend(other.findings);
    }

    /// As JSON; [`Tally::parse`] reads it.
    pub fn encode(&self) -> Value {
        let counts = [
            self.points,
            self.missed,
            self.harmless,
            self.aborted,
            self.full_looks,
        ];
        json!([counts, self.findings])
    }

    /// Reads what [`Tally::encode`] wrote.
    pub fn parse(value: &Value) -> Self {
        let count = |at: usize| value[0][at].as_u64().unwrap_or_default() as usize;
        let findings = value[1].as_array().into_iter().flatten();
        Self {
            points: count(0),
            missed: count(1),
            harmless: count(2),
            aborted: count(3),
            full_looks: count(4),
            findings: findings
                .filter_map(|it| it.as_str().map(str::to_owned))
                .collect(),
        }
    }
}

/// One fault.
#[derive(Clone, Copy, Debug)]
pub struct Point {
    /// The verb.
    pub verb: Verb,
    /// The fault, and its point.
    pub strike: Strike,
    /// What the runtime does afterwards.
    pub recovery: Recovery,
}

impl Point {
    /// As JSON; [`Point::parse`] reads it.
    pub fn encode(self) -> Value {
        let [deed, point] = self.strike.words();
        let verb = VERBS.iter().position(|it| *it == self.verb);
        let recovery = RECOVERIES.iter().position(|it| *it == self.recovery);
        json!([verb, deed, point, recovery])
    }

    /// Reads what [`Point::encode`] wrote.
    ///
    /// # Errors
    /// When it did not.
    pub fn parse(value: &Value) -> Result<Self> {
        let number = |at: usize| value[at].as_u64().map(|it| it as usize);
        let word = |at: usize| value[at].as_str().unwrap_or_default();
        let verb = number(0).and_then(|at| VERBS.get(at));
        let recovery = number(3).and_then(|at| RECOVERIES.get(at));
        Ok(Self {
            verb: *verb.context("a verb")?,
            strike: Strike::parse(word(1), word(2))?,
            recovery: *recovery.context("a recovery")?,
        })
    }
}

impl Sweep {
    /// Runs all points.
    ///
    /// # Errors
    /// When a verb does not work without faults.
    pub fn run(&self, crew: &Crew) -> Result<Tally> {
        let points = self.points(crew.exe)?;
        let total = Mutex::new(Tally::default());
        self.play(crew, &points, |_, tally| {
            total.lock().expect("a worker panicked").add(tally);
        });
        total.into_inner().context("a worker panicked")
    }

    /// Runs these points; `done` gets each one's number among them and its result.
    pub fn play(&self, crew: &Crew, points: &[Point], done: impl Fn(usize, Tally) + Sync) {
        let next = AtomicUsize::new(0);
        scope(|scope| {
            for _ in 0..crew.workers.min(points.len()) {
                scope.spawn(|| self.work(crew, points, &next, &done));
            }
        });
    }

    /// Lists the calls of the verbs, and chooses points among them.
    ///
    /// # Errors
    /// When a verb does not work without faults.
    pub fn points(&self, exe: &str) -> Result<Vec<Point>> {
        caught(|| self.list(exe)).with_context(|| format!("{}, without a fault", self.chain.name))
    }

    fn list(&self, exe: &str) -> Result<Vec<Point>> {
        let node = Node::new(&self.chain)?;
        let watch = Strike {
            deed: Deed::Watch,
            point: 0,
            call: None,
        };
        let mut points = Vec::new();
        for verb in &self.verbs {
            for of_daemon in [false, true] {
                let possible =
                    |it: &&Deed| it.is_daemons() == of_daemon && (self.chain.dhcp || !of_daemon);
                let deeds: Vec<_> = self.deeds.iter().filter(possible).collect();
                if deeds.is_empty() {
                    continue;
                }
                let scene = Scene {
                    node: &node,
                    exe,
                    verb: *verb,
                    of_daemon,
                };
                let (report, outcome) = scene.accident(watch)?;
                ensure!(outcome.code() == 0, "{verb:?} fails: {outcome}");
                scene.revive()?;
                scene.after(&outcome, Recovery::Del)?;
                for deed in deeds {
                    let all = self.candidates(*verb, *deed, &report.calls);
                    points.extend(self.spread(&all));
                }
            }
        }
        Ok(points)
    }

    /// From the first to the last, evenly; always of several errors and ways to recover.
    fn spread(&self, all: &[Point]) -> Vec<Point> {
        let Some(limit) = self.at_most.filter(|limit| *limit < all.len()) else {
            return all.to_vec();
        };
        let step = all.len() as f64 / limit.max(1) as f64;
        let chosen = (0..limit).map(|at| all[(at as f64 * step) as usize]);
        chosen.collect()
    }

    /// Every point; where the previous call may have changed the machine, with every way to recover.
    fn candidates(&self, verb: Verb, deed: Deed, calls: &[Call]) -> Vec<Point> {
        let recoveries = self.recoveries(verb, deed);
        let mut all = Vec::new();
        let mut delegates = 0;
        // Before a daemon has loaded its leases, it has neither changed nor promised anything.
        let begin = if deed.is_daemons() {
            calls.iter().position(|call| call.name == "flock")
        } else {
            None
        };
        let fails = deed.choice().is_some();
        for (at, call) in calls.iter().enumerate().skip(begin.unwrap_or_default()) {
            delegates += usize::from(call.by_delegate);
            let mut name = None;
            let number = match deed {
                Deed::KillDelegate | Deed::KillPlugin if !call.by_delegate => continue,
                Deed::KillDelegate => delegates,
                _ if fails => {
                    name = calls::known(&call.name);
                    let same = calls[..=at].iter().filter(|it| it.name == call.name);
                    same.count()
                }
                _ => at + 1,
            };
            let point = |choice, recovery: &Recovery| Point {
                verb,
                strike: Strike {
                    deed: deed.with(choice),
                    point: number,
                    call: name,
                },
                recovery: *recovery,
            };
            let ways = if fails {
                calls::errors(&call.name).len()
            } else {
                1
            };
            // How a program of the system handles failed calls is not tested; that it is killed is.
            let helper = HELPERS.contains(&call.program.as_str());
            // A kill at this call equals one at the previous call, unless the previous call changed something.
            let differs = at == 0 || calls::leaves_a_mark(&calls[at - 1].name);
            if fails && helper {
                continue;
            }
            // A child resets each of its signals before it executes something: that counts once.
            let is_reset = |it: &Call| it.by_delegate && it.name == "rt_sigaction";
            if at > 0 && is_reset(call) && is_reset(&calls[at - 1]) {
                continue;
            }
            // Most of its hundreds of calls are those of any program that starts: a sample of these is tried, and all calls after one that may have changed something.
            let tells = at == 0 || calls::tells_others(&calls[at - 1].name);
            if helper && !tells && !at.is_multiple_of(SOME) {
                continue;
            }
            if helper || !(differs || fails) {
                all.push(point(0, &recoveries[all.len() % recoveries.len()]));
                continue;
            }
            for way in 0..ways {
                all.extend(recoveries.iter().map(|it| point(way, it)));
            }
        }
        all
    }

    /// How the runtime recovers: after a call that only failed, it still has all its data.
    fn recoveries(&self, verb: Verb, deed: Deed) -> Vec<Recovery> {
        let knows_all = deed.choice().is_some() || deed == Deed::KillDelegate;
        let all = if knows_all || verb == Verb::Check {
            &RECOVERIES[..1]
        } else {
            &RECOVERIES
        };
        let possible = |it: &&Recovery| !(self.chain.in_pod && **it == Recovery::DelElsewhere);
        all.iter().filter(possible).copied().collect()
    }

    fn work(
        &self,
        crew: &Crew,
        points: &[Point],
        next: &AtomicUsize,
        done: &(impl Fn(usize, Tally) + Sync),
    ) {
        let mut node = None;
        while crew.until.is_none_or(|until| Instant::now() < until) {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some(point) = points.get(number) else {
                return;
            };
            let mut tally = Tally::default();
            let ready = match node.take() {
                Some(node) => Ok(node),
                None => caught(|| Node::new(&self.chain)),
            };
            match ready {
                Ok(ready) => {
                    node = self.one(crew.exe, ready, *point, &mut tally);
                    for _ in 0..AGAIN {
                        let Some(ready) = node.take_if(|_| tally.missed == 1) else {
                            break;
                        };
                        tally = Tally::default();
                        node = self.one(crew.exe, ready, *point, &mut tally);
                    }
                }
                Err(error) => {
                    let name = self.chain.name;
                    tally
                        .findings
                        .push(format!("{name}: make a node: {error:#}"));
                }
            }
            done(number, tally);
        }
    }

    /// Runs one point. Returns the node if it is as before.
    fn one(&self, exe: &str, node: Node, point: Point, tally: &mut Tally) -> Option<Node> {
        let mut at = None;
        let before = node.looks();
        let scene = Scene {
            node: &node,
            exe,
            verb: point.verb,
            of_daemon: point.strike.deed.is_daemons(),
        };
        let done = caught(|| scene.play(point, tally, &mut at));
        tally.full_looks = node.looks().full() - before.full();
        let Err(error) = done else {
            return Some(node);
        };
        let [deed, number] = point.strike.words();
        tally.findings.push(format!(
            "{}, {:?}, {deed} at {number}, {}, then {:?}: {error:#}",
            self.chain.name,
            point.verb,
            at.map_or_else(String::new, |at| at.to_string()),
            point.recovery
        ));
        // What is left would be found again at the next point, which therefore gets another node.
        None
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

/// The failed checks of `body` are panics: as an error, with their text.
fn caught<T>(body: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(body))
        .unwrap_or_else(|panic| Err(anyhow::Error::msg(text(&*panic))))
}

fn text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_default()
}

/// A node, and the verb into which a fault is injected there.
struct Scene<'a> {
    node: &'a Node,
    exe: &'a str,
    verb: Verb,
    /// The fault is not the plugin's, but that of its daemon.
    of_daemon: bool,
}

impl Scene<'_> {
    /// Everything that happens at one point.
    fn play(&self, point: Point, tally: &mut Tally, at: &mut Option<Struck>) -> Result<()> {
        let (report, outcome) = self.accident(point.strike)?;
        *at = report.struck.clone();
        let no_memory = |struck: &Struck| calls::is_memory(&struck.call);
        let excused = outcome.code() == ABORTED && at.as_ref().is_some_and(no_memory);
        // The standard library panics when a directory cannot be closed; no kernel reports that.
        let closedir = "unexpected error during closedir";
        let closedir = outcome.stderr().contains(closedir) || outcome.stdout().contains(closedir);
        let panicked = outcome.stderr().contains("panicked at");
        let excused = excused || closedir;
        if !excused && (panicked || outcome.stdout().contains("panic:")) {
            bail!("panic: {outcome}");
        }
        // See `candidates`: now and then, a program of the system is met in the place of ours.
        let of_ours = |it: &Struck| it.errno == 0 || !HELPERS.contains(&it.program.as_str());
        let Some(struck) = report.struck.filter(of_ours) else {
            tally.missed += 1;
            self.revive()?;
            return self.after(&outcome, Recovery::Del);
        };
        tally.points += 1;
        let answered = match point.strike.deed {
            Deed::KillChain | Deed::KillPlugin | Deed::Watch => false,
            Deed::KillDelegate
            | Deed::KillDaemon
            | Deed::FailDaemon { .. }
            | Deed::Pause { .. } => self.answered(&outcome, None, tally)?,
            Deed::Fail { .. } => self.answered(&outcome, Some((&struck, point.strike)), tally)?,
        };
        // DEL after a verb that failed finds no daemon, every other time.
        if outcome.code() == 0 || point.strike.point.is_multiple_of(2) {
            self.revive()?;
        }
        let rolls_back = self.verb == Verb::Add && self.node.rolls_back_all();
        if answered && outcome.code() == 1 && rolls_back && !self.node.is_cold() {
            self.node.is_clean().context("rolled back, but")?;
        }
        let result = self.goes_on(&outcome);
        if answered && outcome.code() == 0 {
            self.succeeded(&outcome, result.as_ref())?;
        }
        self.recover(result.as_ref(), point.recovery)
    }

    /// Brings the node to where the verb is about to run, and runs it.
    fn accident(&self, strike: Strike) -> Result<(Report, Outcome)> {
        let node = self.node;
        if node.is_cold() {
            node.make_cold();
        }
        node.add_before(&node.victim);
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

    /// Runs the verb; of those with which the plugin is in a list, what a runtime runs before it.
    fn call(&self, cni: impl Fn() -> Cni, conf: &Value) -> Outcome {
        let node = self.node;
        match self.verb {
            Verb::Add => cni().add(conf, &node.victim, IFNAME),
            Verb::Del => {
                node.delete_behind(&node.victim, conf.get("prevResult"));
                cni().del(conf, &node.victim, IFNAME)
            }
            Verb::Check => cni().check(conf, &node.victim, IFNAME),
            Verb::Gc => node.without_pod(|| node.gc(|conf| cni().gc(conf))),
        }
    }

    /// The service manager restarts a daemon into which a fault was injected.
    fn revive(&self) -> Result<()> {
        match &self.node.dhcp {
            Some(dhcp) if self.of_daemon && !dhcp.listens() => dhcp.restart(),
            _ => Ok(()),
        }
    }

    /// Attaches without a fault. Returns the configuration as the runtime sends it from then on.
    fn added(&self, conf: &Value) -> Value {
        let node = self.node;
        let added = node.cni().add(conf, &node.victim, IFNAME);
        let result = node.add_behind(&node.victim, added.result());
        conf::with_prev(conf, &result)
    }

    /// Whether the plugin has answered; checks its answer.
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
                // An error that means "try again later" does not have to name the cause.
                if let (Some((struck, _)), true) = (failed, error.code != TRY_AGAIN) {
                    let message = format!("{} {}", error.msg, error.details).to_lowercase();
                    ensure!(
                        names_cause(&message, struck),
                        "the cause is lost: {outcome}"
                    );
                }
            }
            code => {
                let Some((struck, strike)) = failed else {
                    bail!("ended with {code}: {outcome}");
                };
                // A program that has no memory, or that cannot even start, cannot print an error.
                let excused = calls::is_memory(&struck.call) || begins(strike);
                ensure!(excused, "ended with {code}: {outcome}");
                tally.aborted += 1;
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Checks what a verb that has succeeded must have done.
    fn succeeded(&self, outcome: &Outcome, result: Option<&Value>) -> Result<()> {
        let node = self.node;
        match self.verb {
            Verb::Add => {
                let result = result.context("a result")?;
                node.check_all(&node.victim, result);
            }
            Verb::Check => _ = outcome.silent(),
            Verb::Del | Verb::Gc => {
                outcome.silent();
                // On a cold node no attachment is left: GC also removed what networks share.
                if node.is_cold() {
                    return Ok(());
                }
                node.is_clean().context("it says that it succeeded, but")?;
            }
        }
        Ok(())
    }

    /// The runtime continues with its list if the plugin has succeeded. Returns the result that it stores.
    fn goes_on(&self, outcome: &Outcome) -> Option<Value> {
        let node = self.node;
        match (self.verb, outcome.code()) {
            (Verb::Add, 0) => Some(node.add_behind(&node.victim, outcome.result())),
            (Verb::Del, 0) => {
                node.delete_before(&node.victim, None);
                None
            }
            _ => None,
        }
    }

    fn after(&self, outcome: &Outcome, recovery: Recovery) -> Result<()> {
        self.recover(self.goes_on(outcome).as_ref(), recovery)
    }

    /// The runtime cleans up. Then nothing must be left, and the next pod can be added.
    fn recover(&self, result: Option<&Value>, recovery: Recovery) -> Result<()> {
        let node = self.node;
        let conf = node.conf(&node.victim);
        let known = match result {
            Some(result) => conf::with_prev(&conf, result),
            None => conf,
        };
        match recovery {
            Recovery::Del => node.delete_all(&node.victim, &known, result),
            Recovery::DelBare => node.without_pod(|| node.delete_elsewhere(&node.victim)),
            Recovery::DelElsewhere => node.delete_elsewhere(&node.victim),
            Recovery::Gc => node.without_pod(|| {
                node.gc(|conf| node.cni().gc(conf)).silent();
            }),
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

/// The error code for temporary failures.
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

/// How often a point that was not reached is tried again: the order of two threads or processes varies.
const AGAIN: usize = 6;

/// Of the calls of a system program that have no effect outside of it, one in this many is tried.
const SOME: usize = 20;

/// Whether a call is made before `main`: the C library and the Rust runtime are the first to make most.
fn begins(strike: Strike) -> bool {
    strike.call.is_some() && strike.point == 1
}

/// Whether an error contains the kernel's error.
fn names_cause(message: &str, struck: &Struck) -> bool {
    if HELPERS.contains(&struck.program.as_str()) {
        // The texts that replace the kernel's.
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
        // If one directory cannot be searched, the next one is.
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
    texts.iter().any(|text| message.contains(text))
}

/// How often each text is among `findings`, without its numbers.
pub fn grouped(findings: &[String]) -> BTreeMap<String, usize> {
    let mut groups = BTreeMap::new();
    for finding in findings {
        let plain: String = finding.chars().filter(|c| !c.is_ascii_digit()).collect();
        *groups.entry(plain).or_insert(0) += 1;
    }
    groups
}
