//! The page, `docs/performance.md`.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::compare::Comparison;
use crate::job::Verb;
use crate::plot::thousands;
use crate::results::{Addition, Curve, Footprint, Machine, Results, Row, Storm};
use crate::side::Side;
use crate::stats::{DRIFT, Ratio, Sample};
use crate::targets::{self, Target, megabytes};

/// The directory of pictures, relative to the page.
pub const PICTURES: &str = "performance";
/// From this ratio on, a verb counts as faster.
const FASTER: f64 = 1.1;

/// Writes the whole page.
pub fn write(results: &Results) -> String {
    let mut page = String::from(INTRODUCTION);
    page.push_str(&machine(&results.machine));
    page.push_str(&promises(&targets::judge(results)));
    page.push_str(&verbs(&results.verbs));
    for addition in &results.additions {
        page.push_str(&apart(addition));
    }
    page.push_str(&other(results));
    page.push_str(&missing(&results.missing));
    page.push_str(&storms(&results.storms));
    page.push_str(&curves(results));
    page.push_str(&footprint(&results.footprint));
    page.push_str(&not_faster(results));
    page.push_str(&agreement(results.comparison.as_ref()));
    page.push_str(&repeat());
    page
}

const INTRODUCTION: &str = "# Performance

podwire against the Go plugins of Debian, and against the floor: a program that tells the kernel the least that the job takes and
knows everything beforehand. This page is what `make bench` printed last; it is not edited.

Times are of a whole process, from its start to its end as a runtime sees it. **Times shift from machine to machine: trust the
ratios.** A ratio is the median over pairs of calls, one right after the other, and the range behind it is the spread: where a
repetition on the same machine is expected.

";

fn machine(machine: &Machine) -> String {
    let rows = [
        ("measured", machine.date.clone()),
        ("kernel", machine.kernel.clone()),
        ("CPUs", format!("{}, {}", machine.cpus, machine.cpu)),
        ("state of plugins on", machine.state.clone()),
        ("podwire", machine.podwire.clone()),
        ("Go plugins", machine.go.clone()),
        (
            "other Go plugins",
            machine.other.clone().unwrap_or_default(),
        ),
        ("programs", machine.programs.join("; ")),
    ];
    let mut text = String::from("| | |\n|---|---|\n");
    for (name, value) in rows.into_iter().filter(|(_, value)| !value.is_empty()) {
        line(&mut text, &[name.to_owned(), value]);
    }
    text
}

fn promises(targets: &[Target]) -> String {
    let mut text = String::from("\n## What was promised\n\n");
    text.push_str("| | promised | measured | |\n|---|---|---|---|\n");
    for target in targets {
        let found = target.found.clone();
        let verdict = match (&found, target.met) {
            (None, _) => "",
            (_, true) => "met",
            (_, false) => "**missed**",
        };
        let found = found.unwrap_or_else(|| "not measured".to_owned());
        line(
            &mut text,
            &[
                target.what.clone(),
                target.promised.clone(),
                found,
                verdict.to_owned(),
            ],
        );
    }
    text
}

fn verbs(rows: &[Row]) -> String {
    let mut text = String::from(
        "\n## Single calls\n\nMilliseconds: median / p90 / p99. The Go plugins as Debian configures them: masquerade and published ports by iptables.\n\n\
         | job | verb | podwire | Go | times faster | floor | podwire / floor | `ip -batch` |\n|---|---|---|---|---|---|---|---|\n",
    );
    for row in rows {
        let of = |side| row.times.get(&side).map_or_else(dash, three);
        let batch = row
            .times
            .get(&Side::Batch)
            .map_or_else(dash, |s| number(s.median));
        line(
            &mut text,
            &[
                row.title.clone(),
                row.verb.name().to_owned(),
                of(Side::Podwire),
                row.refused
                    .as_ref()
                    .map_or_else(|| of(Side::Go), |_| "fails".to_owned()),
                ratio(row.faster),
                row.times
                    .get(&Side::Floor)
                    .map_or_else(dash, |s| number(s.median)),
                row.over_floor
                    .map_or_else(dash, |ratio| number(ratio.median)),
                batch,
            ],
        );
    }
    text.push_str(BESIDE_VERBS);
    for row in rows {
        if let Some(why) = &row.refused {
            let why = why.split_whitespace().collect::<Vec<_>>().join(" ");
            let _ = writeln!(
                text,
                "\nThe Go plugins fail in {}, {}: `{why}`",
                row.title,
                row.verb.name()
            );
        }
    }
    text
}

const BESIDE_VERBS: &str = "
Each node has a rule that uses connection tracking, as nodes with a service proxy have, and no connection. While there is one, the kernel looks at its
whole table of connections (0.7 ms) whenever any program deletes a link, and when the first rule that uses connection tracking comes. The floor's DEL returns when the kernel reports the link gone and leaves the waits for RCU to a child, as podwire does;
`ip link delete` waits. `ip -batch` does the links, addresses and routes of the job, but no address on disk and no masquerade. vxlan has no
Go plugin; its floor is that of bridge, with the overlay there already. podman's list is that of its default network, with iptables for firewall. Its floor is that of bridge,
then two programs that do nothing and one that executes iptables once. bandwidth (both directions), tuning (a sysctl and the MTU), sbr (one address) and vrf are measured alone: the interface
that they change is made anew before each ADD, outside of the time. None of these has a floor.
";

/// Jobs that were measured separately.
fn apart(addition: &Addition) -> String {
    let Machine {
        date,
        kernel,
        cpus,
        cpu,
        state,
        podwire,
        go,
        ..
    } = &addition.machine;
    let is_guest = cpu.contains("QEMU");
    let (title, about) = if is_guest {
        ("In the virtual machine", GUEST)
    } else {
        ("Measured since", "")
    };
    let mut text = format!(
        "\n### {title}\n\n{kernel}, {cpus} CPUs, {cpu}; {date}; podwire {podwire}; Go plugins {go}; state of plugins on {state}.{about}\n\n\
         | job | verb | podwire | Go | times faster | floor | podwire / floor |\n|---|---|---|---|---|---|---|\n"
    );
    for row in &addition.verbs {
        let of = |side| row.times.get(&side).map_or_else(dash, three);
        let go = row.refused.as_ref().map(|_| "fails".to_owned());
        let floor = row.over_floor.map(|it| number(it.median));
        let cells = [
            row.title.clone(),
            row.verb.name().to_owned(),
            of(Side::Podwire),
            go.unwrap_or_else(|| of(Side::Go)),
            ratio(row.faster),
            of(Side::Floor),
            floor.unwrap_or_else(dash),
        ];
        line(&mut text, &cells);
    }
    text
}

const GUEST: &str = " The virtual machine of the tests (`benches/vm`) has Debian's kernel, with kinds of links that this one lacks. \
Every instruction is emulated, so milliseconds mean little and only ratios count; programs suffer more from that than the kernel's waits. \
Rounds are as above: both sides in turn, medians.";

/// Single calls of the other build of the Go plugins.
fn other(results: &Results) -> String {
    let Some(name) = &results.machine.other else {
        return String::new();
    };
    let mut text = format!(
        "\n### The other Go plugins\n\n{name}. Milliseconds: median / p90 / p99.\n\n\
         | job | verb | podwire | other Go | times faster |\n|---|---|---|---|---|\n"
    );
    for row in &results.verbs {
        let of = |side| row.times.get(&side).map_or_else(dash, three);
        let verb = row.verb.name().to_owned();
        let (ours, other) = (of(Side::Podwire), of(Side::Other));
        let cells = [row.title.clone(), verb, ours, other, ratio(row.than_other)];
        line(&mut text, &cells);
    }
    text
}

fn missing(jobs: &[String]) -> String {
    match jobs {
        [] => String::new(),
        jobs => format!("\nNot built, so not measured: {}.\n", jobs.join(", ")),
    }
}

fn storms(storms: &[Storm]) -> String {
    let mut text = String::from(
        "\n## Many pods at once\n\nAll processes are started one right after the other; milliseconds until the last has answered (median of the storms), until \
         nothing runs any more that outlives its answer, and of a single pod. CPU time is that of all processes. Of podwire and the floor there are three times as many storms. \
         In the row of podwire is how many times faster it was than Go, in that of another build of the Go plugins how many times faster than these.\n\n\
         | job | pods | verb | side | total | all done | pod: median / p90 / p99 | CPU time | programs | failed | times faster |\n|---|---|---|---|---|---|---|---|---|---|---|\n",
    );
    for storm in storms {
        for (side, weather) in &storm.sides {
            let faster = match side {
                Side::Podwire => storm.faster,
                Side::Other => storm.than_other,
                _ => None,
            };
            line(
                &mut text,
                &[
                    storm.title.clone(),
                    storm.pods.to_string(),
                    storm.verb.name().to_owned(),
                    side.to_string(),
                    number(weather.total.median),
                    number(weather.settled),
                    three(&weather.pod),
                    number(weather.cpu),
                    weather.programs.map_or_else(dash, |n| n.to_string()),
                    weather.failed.to_string(),
                    faster.map_or_else(String::new, |faster| ratio(Some(faster))),
                ],
            );
        }
    }
    text
}

fn curves(results: &Results) -> String {
    let mut text = String::from("\n## Among many others\n");
    for curve in &results.curves {
        text.push_str(&table_of(curve, curve.is_drawn()));
    }
    if let Some(earlier) = &results.earlier {
        let machine = &earlier.machine;
        let _ = write!(
            text,
            "\n### Curves of an earlier run\n\nThe last run was a quick one. These are of {}: {}, {} CPUs; podwire {}; Go plugins {}.\n",
            machine.date, machine.kernel, machine.cpus, machine.podwire, machine.go
        );
        for curve in earlier.curves.iter().filter(|curve| curve.is_drawn()) {
            text.push_str(&table_of(curve, true));
        }
    }
    text
}

fn table_of(curve: &Curve, drawn: bool) -> String {
    let mut text = format!("\n### {}\n\n", curve.title);
    if drawn {
        let _ = write!(text, "![{}]({PICTURES}/{}.svg)\n\n", curve.title, curve.key);
    }
    let mut counts: Vec<usize> = curve
        .lines
        .iter()
        .flat_map(|line| &line.points)
        .map(|(count, _)| *count)
        .collect();
    counts.sort_unstable();
    counts.dedup();
    let heads: Vec<String> = counts.iter().map(|count| thousands(*count)).collect();
    let _ = writeln!(
        text,
        "| {}, median at … {} | {} |",
        curve.unit,
        curve.among,
        heads.join(" | ")
    );
    let _ = writeln!(text, "|---|{}", "---|".repeat(counts.len()));
    for of in &curve.lines {
        let times: BTreeMap<usize, Sample> = of.points.iter().copied().collect();
        let mut cells = vec![format!("{}{}", of.side, of.what)];
        cells.extend(
            counts
                .iter()
                .map(|c| times.get(c).map_or_else(dash, |s| number(s.median))),
        );
        line(&mut text, &cells);
    }
    for of in &curve.lines {
        for (name, ratios) in [
            ("times faster", &of.faster),
            ("times faster than other Go", &of.than_other),
            ("times the floor", &of.over_floor),
        ] {
            let ratios: BTreeMap<usize, Ratio> = ratios.iter().copied().collect();
            if !ratios.is_empty() {
                let mut cells = vec![format!("{name}{}", of.what)];
                cells.extend(counts.iter().map(|count| ratio(ratios.get(count).copied())));
                line(&mut text, &cells);
            }
        }
    }
    text
}

fn footprint(footprint: &Footprint) -> String {
    let mut text = String::from(
        "\n## What it takes\n\nBytes on disk, in MB:\n\n| program | podwire | Go |\n|---|---|---|\n",
    );
    let mega = |bytes: u64| format!("{:.2}", megabytes(bytes));
    for (name, ours, go) in &footprint.sizes {
        line(
            &mut text,
            &[format!("`{name}`"), mega(*ours), go.map_or_else(dash, mega)],
        );
    }
    let total: u64 = footprint.sizes.iter().map(|(_, size, _)| size).sum();
    line(&mut text, &["all".to_owned(), mega(total), String::new()]);
    text.push_str(
        "\nOne call: most memory that one of its processes held (KiB, `wait4`), system calls of all its processes and threads, and programs executed \
         (`strace -f`).\n\n\
         | job | verb | memory: podwire | Go | system calls: podwire | Go | floor | programs: podwire | Go |\n|---|---|---|---|---|---|---|---|---|\n",
    );
    for cost in &footprint.calls {
        let memory = |side| cost.memory.get(&side).map_or_else(dash, u64::to_string);
        let calls = |side| {
            cost.system_calls
                .get(&side)
                .map_or_else(dash, usize::to_string)
        };
        let programs = |side| cost.programs.get(&side).map_or_else(dash, usize::to_string);
        line(
            &mut text,
            &[
                cost.title.clone(),
                cost.verb.name().to_owned(),
                memory(Side::Podwire),
                memory(Side::Go),
                calls(Side::Podwire),
                calls(Side::Go),
                calls(Side::Floor),
                programs(Side::Podwire),
                programs(Side::Go),
            ],
        );
    }
    text
}

fn not_faster(results: &Results) -> String {
    let mut text = String::from("\n## Where podwire is not faster, and why\n\n");
    let slow: Vec<_> = results
        .ratios()
        .into_iter()
        .filter(|n| n.ratio.median < FASTER)
        .collect();
    if slow.is_empty() {
        let _ = writeln!(
            text,
            "Nothing of what was measured is less than {FASTER} times faster than the Go plugins."
        );
    }
    for named in slow {
        let _ = writeln!(text, "- {}: {}", named.name, ratio(Some(named.ratio)));
    }
    text.push_str("\nWhere it gains least:\n\n");
    let mut least = results.ratios();
    least.sort_by(|a, b| a.ratio.median.total_cmp(&b.ratio.median));
    for named in least.into_iter().take(5) {
        let _ = writeln!(text, "- {}: {}", named.name, ratio(Some(named.ratio)));
    }
    text.push_str(&starts(results));
    text.push_str(&podman(results));
    text.push_str(&connections(results));
    text.push_str(&among_pods(results));
    text.push_str(&farthest(results));
    text
}

/// The cost that no plugin can avoid: to be a process.
fn starts(results: &Results) -> String {
    let median = |side| {
        let row = results.row("start-bridge", Verb::Version)?;
        row.times.get(&side).map(|sample| sample.median)
    };
    let (Some(ours), Some(floor), Some(loopback)) = (
        median(Side::Podwire),
        median(Side::Floor),
        results
            .row("loopback", Verb::Add)
            .and_then(|row| row.times.get(&Side::Podwire)),
    ) else {
        return String::new();
    };
    format!(
        "\nA plugin is a process, and starting one is the kernel's and the C library's: a program that does nothing takes {} ms here, bridge's VERSION {} ms. In \
         the whole of loopback's ADD ({} ms) little else is left to gain, and the same start is in every row of this page. What is the kernel's own in a job \
         (making links, above all) takes the same time for every suite.\n",
        number(floor),
        number(ours),
        number(loopback.median)
    )
}

/// How many times faster than Go a suite of as many programs can be.
fn podman(results: &Results) -> String {
    let apart = results.additions.iter().flat_map(|it| &it.verbs);
    let mut rows = results.verbs.iter().chain(apart);
    let with_floor = |row: &&Row| {
        (row.job.as_str(), row.verb) == ("podman", Verb::Add)
            && row.times.contains_key(&Side::Floor)
    };
    let row = rows.find(with_floor);
    let of = |side| row?.times.get(&side).map(|sample| sample.median);
    let (Some(ours), Some(go), Some(floor)) = (of(Side::Podwire), of(Side::Go), of(Side::Floor))
    else {
        return String::new();
    };
    format!(
        "\npodman's list is four programs, and one of them has to execute iptables, because its rules are in iptables' chains. The floor's four programs, of \
         which two do nothing, take {} ms for ADD: any suite of four programs is at most {} times faster than the Go plugins there. podwire takes {} times as long as \
         the floor. The floor of DEL is none: its iptables waits for RCU with the lock of nf_tables held, which podwire avoids.\n",
        number(floor),
        number(go / floor),
        number(ours / floor)
    )
}

/// The kernel's own time among few mappings.
fn connections(results: &Results) -> String {
    let of = |curves: &[Curve], side, what: &str| {
        let curve = curves.iter().find(|curve| curve.key == "connect")?;
        let line = curve
            .lines
            .iter()
            .find(|l| l.side == side && l.what.contains(what))?;
        let (first, last) = (line.points.first()?, line.points.last()?);
        Some((number(first.1.median), number(last.1.median), last.0))
    };
    let (Some(ours), Some(go), Some(none)) = (
        of(&results.curves, Side::Podwire, "last"),
        of(&results.curves, Side::Go, "last"),
        of(&results.curves, Side::Floor, ""),
    ) else {
        return String::new();
    };
    format!(
        "\nA TCP connection is the kernel's, and so are connection tracking and address translation: with no other port published it takes {} µs through podwire's \
         map, {} µs through the Go plugin's rules, and {} µs to the pod itself. What differs is the search: with {} others, {} and {} µs through the last mapping.\n",
        ours.0,
        go.0,
        none.0,
        thousands(ours.2),
        ours.1,
        go.1
    )
}

/// The cost that no plugin can avoid among many pods: the kernel's work for one more port, which
/// the floor has, too.
fn among_pods(results: &Results) -> String {
    let mut text = String::new();
    let keys = ["pods-bridge-add", "pods-bridge-masq-add"];
    for curve in results
        .curves
        .iter()
        .filter(|it| keys.contains(&it.key.as_str()))
    {
        let points = curve.lines.first().map_or(&[][..], |line| &line.points);
        for (count, _) in points.iter().filter(|(count, _)| *count > 0) {
            text.extend(ceiling(curve, *count));
        }
    }
    if text.is_empty() {
        return text;
    }
    let first = "No plugin can do better than the floor, which itself slows down among many pods:";
    format!("\n{first}\n\n{text}")
}

fn ceiling(curve: &Curve, count: usize) -> Option<String> {
    let floor = curve.median(Side::Floor, count)?;
    let go = curve.median(Side::Go, count)? / floor;
    let ours = curve.faster(count)?.median;
    Some(format!(
        "- {}, {} {}: the floor takes {} times as long as at none, and is {} times faster than Go, podwire {} times\n",
        curve.title,
        thousands(count),
        curve.among,
        number(curve.growth(Side::Floor, count)?),
        number(go),
        number(ours)
    ))
}

fn farthest(results: &Results) -> String {
    let mut rows: Vec<(&Row, Ratio)> = results
        .verbs
        .iter()
        .filter_map(|row| Some((row, row.over_floor?)))
        .collect();
    rows.sort_by(|a, b| b.1.median.total_cmp(&a.1.median));
    let mut text = String::from(
        "\nFarthest from the floor, which parses, checks, remembers and undoes nothing:\n\n",
    );
    for (row, over) in rows.into_iter().take(5) {
        let _ = writeln!(
            text,
            "- {}, {}: {} times the floor",
            row.title,
            row.verb.name(),
            number(over.median)
        );
    }
    text
}

fn agreement(comparison: Option<&Comparison>) -> String {
    let mut text = String::from("\n## Does a repetition agree?\n\n");
    let _ = writeln!(
        text,
        "A ratio's spread is the middle 80 % of its pairs, and never less than ± {} %. A run agrees with the one before when its ratios lie in the spreads \
         that the earlier one stated.\n",
        number(DRIFT * 100.0)
    );
    let Some(comparison) = comparison else {
        text.push_str("There was no earlier run on a machine like this.\n");
        return text;
    };
    let (agreed, others) = (comparison.agreed, comparison.others.len());
    let _ = writeln!(
        text,
        "Compared with the run of {} (podwire {}): {agreed} of {} ratios agree.",
        comparison.with.date,
        comparison.with.podwire,
        agreed + others
    );
    if others > 0 {
        text.push_str("\n| does not agree | before | now |\n|---|---|---|\n");
        for (name, before, now) in &comparison.others {
            line(
                &mut text,
                &[name.clone(), ratio(Some(*before)), ratio(Some(*now))],
            );
        }
    }
    text
}

fn repeat() -> String {
    String::from(
        "\n## To repeat it\n\n```\nmake bench           # some minutes, with few points of each curve\nmake bench FULL=1    # with all points of the curves, and more rounds\nmake bench GO=DIR    # beside another build of the Go plugins as well\n```\n\n\
         As root, on a Debian machine that has nothing else to do; it wires 3,000 pods and wants 8 GB of memory. Everything happens in network and mount namespaces of the run; the machine's own interfaces, \
         rules and files are not touched. Each side has a node of its own. A round is ADD, CHECK and DEL of one side, then of the next, and the order turns from \
         round to round; a few rounds before that are not counted. Pods keep their namespaces, so no figure includes making them. Between calls it is waited until \
         what a call left behind is done (processes that outlive it, 20 ms after a DEL), except in storms. Other pods and ports are there as the side itself wires \
         them; for the Go plugins, which would take hours, with links by the floor's program and with copies of the files and rules that they left for one pod. Programs are started by posix_spawn, read from memory and write to \
         memory. The figures are in `performance.json`; the program is `benches/`.\n",
    )
}

fn line(text: &mut String, cells: &[String]) {
    let _ = writeln!(text, "| {} |", cells.join(" | "));
}

fn dash() -> String {
    "–".to_owned()
}

fn three(sample: &Sample) -> String {
    format!(
        "{} / {} / {}",
        number(sample.median),
        number(sample.p90),
        number(sample.p99)
    )
}

fn ratio(ratio: Option<Ratio>) -> String {
    ratio.map_or_else(dash, |ratio| {
        let (median, low, high) = (number(ratio.median), number(ratio.low), number(ratio.high));
        format!("**{median}** ({low}–{high})")
    })
}

/// With as many digits as are significant.
fn number(value: f64) -> String {
    match value.abs() {
        large if large >= 99.5 => format!("{value:.0}"),
        middle if middle >= 9.95 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}
