//! One accident at every point of a verb, and what is to be true afterwards.

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

/// Verbs of a chain, and what is done to them.
#[derive(Clone)]
pub struct Sweep {
    /// The chain.
    pub chain: Chain,
    /// The verbs.
    pub verbs: Vec<Verb>,
    /// The accidents; the choices of [`Deed::Fail`] are gone through.
    pub deeds: Vec<Deed>,
    /// Not more than so many points of each accident of each verb, spread over all.
    pub at_most: Option<usize>,
}

/// Who does it.
pub struct Crew<'a> {
    /// The program that traces.
    pub exe: &'a str,
    /// On so many nodes at once.
    pub workers: usize,
    /// No accident begins after this.
    pub until: Option<Instant>,
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
    /// Leak checks by other people's tools: a glance had found a difference, or it was time.
    pub full_looks: usize,
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

/// One accident.
#[derive(Clone, Copy, Debug)]
pub struct Point {
    /// Of which verb.
    pub verb: Verb,
    /// What happens, and when.
    pub strike: Strike,
    /// What the runtime does then.
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
    /// Has all accidents.
    ///
    /// # Errors
    /// When a verb does not work without accidents.
    pub fn run(&self, crew: &Crew) -> Result<Tally> {
        let points = self.points(crew.exe)?;
        let total = Mutex::new(Tally::default());
        self.play(crew, &points, |_, tally| {
            total.lock().expect("a worker panicked").add(tally);
        });
        total.into_inner().context("a worker panicked")
    }

    /// Has these accidents; `done` gets each one's number among them and what came of it.
    pub fn play(&self, crew: &Crew, points: &[Point], done: impl Fn(usize, Tally) + Sync) {
        let next = AtomicUsize::new(0);
        scope(|scope| {
            for _ in 0..crew.workers.min(points.len()) {
                scope.spawn(|| self.work(crew, points, &next, &done));
            }
        });
    }

    /// Sees what calls the verbs make, and chooses among them.
    ///
    /// # Errors
    /// When a verb does not work without accidents.
    pub fn points(&self, exe: &str) -> Result<Vec<Point>> {
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
                ensure!(
                    outcome.code() == 0,
                    "{}, {verb:?} fails without an accident: {outcome}",
                    self.chain.name
                );
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

    /// From the first to the last, as evenly as whole numbers allow; never one error or one way to recover alone.
    fn spread(&self, all: &[Point]) -> Vec<Point> {
        let Some(limit) = self.at_most.filter(|limit| *limit < all.len()) else {
            return all.to_vec();
        };
        let step = all.len() as f64 / limit.max(1) as f64;
        let chosen = (0..limit).map(|at| all[(at as f64 * step) as usize]);
        chosen.collect()
    }

    /// Every point; where the state of the machine is another than at the point before, in every way.
    fn candidates(&self, verb: Verb, deed: Deed, calls: &[Call]) -> Vec<Point> {
        let recoveries = self.recoveries(verb, deed);
        let mut all = Vec::new();
        let mut delegates = 0;
        // Before it has its leases, a daemon has neither changed nor promised anything.
        let begin = match deed.is_daemons() {
            true => calls.iter().position(|call| call.name == "flock"),
            false => None,
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
            let ways = match fails {
                true => calls::errors(&call.name).len(),
                false => 1,
            };
            // What a program of the system makes of its own troubles is its affair; that it dies is among the kills.
            let helper = HELPERS.contains(&call.program.as_str());
            // Who is killed here finds what was there at the call before, unless that one changed something.
            let differs = at == 0 || calls::leaves_a_mark(&calls[at - 1].name);
            if fails && helper {
                continue;
            }
            // A child resets each of its signals before it executes something: that counts once.
            let is_reset = |it: &Call| it.by_delegate && it.name == "rt_sigaction";
            if at > 0 && is_reset(call) && is_reset(&calls[at - 1]) {
                continue;
            }
            // Of its hundreds of calls most are those of any program that starts: these are tried now and then, and all after which something may be another.
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
        let all = match knows_all || verb == Verb::Check {
            true => &RECOVERIES[..1],
            false => &RECOVERIES,
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
                None => Node::new(&self.chain),
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

    /// One point; the node if it is as good as before.
    fn one(&self, exe: &str, node: Node, point: Point, tally: &mut Tally) -> Option<Node> {
        let mut at = None;
        let before = node.looks();
        let scene = Scene {
            node: &node,
            exe,
            verb: point.verb,
            of_daemon: point.strike.deed.is_daemons(),
        };
        let mut body = || scene.play(point, tally, &mut at);
        let done = catch_unwind(AssertUnwindSafe(&mut body))
            .unwrap_or_else(|panic| Err(anyhow::Error::msg(text(&*panic))));
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
        // What is left would be found again and again: the next one gets another node.
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

    /// The service manager starts a daemon again that has had an accident.
    fn revive(&self) -> Result<()> {
        match &self.node.dhcp {
            Some(dhcp) if self.of_daemon && !dhcp.listens() => dhcp.restart(),
            _ => Ok(()),
        }
    }

    /// Attaches without an accident; the configuration as the runtime sends it from then on.
    fn added(&self, conf: &Value) -> Value {
        let node = self.node;
        let added = node.cni().add(conf, &node.victim, IFNAME);
        let result = node.add_behind(&node.victim, added.result());
        conf::with_prev(conf, &result)
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

    /// What a verb that says it succeeded must have done.
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

    /// The runtime goes on with its list if it may. Returns the result that it then remembers.
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

    /// The runtime cleans up; then nothing is left and the next one can come.
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

/// How often a point is tried again that was not met: of two threads or processes, now one and now the other comes first.
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
    texts.iter().any(|text| message.contains(text))
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
