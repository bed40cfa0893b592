//! The load on a node: published ports, addresses and pods that exist already ("others").

use std::fs;
use std::ops::Range;

use anyhow::{Context, Result, ensure};

use crate::job::{BRIDGED, MASQUERADED, Verb, portmap};
use crate::process;
use crate::side::{Attachment, Side, Stage};
use crate::table::settle;

/// The first number of others: the pods that are measured have lower ones.
const FIRST: usize = 1_000_000;
/// The first port of others.
const PORT: usize = 20_000;

/// Publishes a port for each of the others in the range, by the rules of the suite that is
/// measured: podwire adds them itself; the Go plugin adds one, of which copies are loaded, because
/// five thousand ADDs take it an hour.
///
/// # Errors
/// When a plugin or iptables-restore fails.
pub fn publish(stage: &Stage, others: Range<usize>) -> Result<()> {
    if others.is_empty() {
        return Ok(());
    }
    match stage.side {
        Side::Podwire => each(stage, others, one_port),
        Side::Go | Side::Other => {
            each(stage, others.start..others.start + 1, one_port)?;
            let words = |other: usize| {
                let port = PORT + other;
                let id = format!("{:064x}", FIRST + other);
                vec![id, format!("dport {port} "), format!("dports {port} ")]
            };
            copy_rules(stage, "CNI-DN-", others.map(words))
        }
        Side::Floor | Side::Batch => {
            let elements: Vec<String> = others
                .map(|other| format!("tcp . {} : 10.9.9.9 . 80", PORT + other))
                .collect();
            let command = format!("add element ip floor ports {{ {} }}\n", elements.join(", "));
            let nft = || process::feed("/usr/sbin/nft", &["-f", "-"], command);
            stage.node.run(nft)
        }
    }
}

fn each(
    stage: &Stage,
    others: Range<usize>,
    add: impl Fn(&Stage, &mut Attachment, usize) -> Result<()>,
) -> Result<()> {
    let mut pod = stage.pod(FIRST)?;
    for other in others {
        pod.rename(FIRST + other);
        add(stage, &mut pod, other)?;
    }
    Ok(())
}

fn one_port(stage: &Stage, pod: &mut Attachment, other: usize) -> Result<()> {
    let port = u16::try_from(PORT + other)?;
    stage.pretend(pod);
    let call = stage.plugin(Verb::Add, &portmap(&[port]), pod)?;
    stage.node.run(move || process::run(call))?;
    Ok(())
}

/// Loads the rules that the Go plugin made for the first of some pods for all the others, with
/// their values in place of its own; the first value is the id. The chain of each begins with
/// `prefix`.
fn copy_rules(
    stage: &Stage,
    prefix: &str,
    mut pods: impl Iterator<Item = Vec<String>>,
) -> Result<()> {
    let Some(first) = pods.next() else {
        return Ok(());
    };
    let rules = stage
        .node
        .run(|| process::output("/usr/sbin/iptables-save", &["-t", "nat"]))?;
    let jump = format!(" -j {prefix}");
    let entry = rules
        .lines()
        .find(|line| line.contains(&first[0]) && line.contains(&jump));
    let entry = entry.context("the Go plugin made no rule")?;
    let (_, chain) = entry.rsplit_once(' ').context("a rule has a target")?;
    let own: Vec<&str> = rules.lines().filter(|line| line.contains(chain)).collect();
    ensure!(
        own.len() > 2,
        "the Go plugin's rules are not what they were: {own:?}"
    );
    let mut text = String::from("*nat\n");
    for pod in pods {
        // As long as a hash, and another for each.
        let (copy, id) = (chain.len() - prefix.len(), &pod[0][pod[0].len() - 16..]);
        let copy = format!("{prefix}{id:0>copy$}");
        for line in &own {
            let line = line.replace(chain, &copy);
            let words = first.iter().zip(&pod);
            text += &words.fold(line, |line, (word, others)| line.replace(word, others));
            text.push('\n');
        }
    }
    text.push_str("COMMIT\n");
    let restore = || process::feed("/usr/sbin/iptables-restore", &["--noflush"], text);
    stage.node.run(restore)
}

/// Has others hold addresses, by the files that the Go plugin leaves: both suites
/// keep the same.
///
/// # Errors
/// When a file cannot be written.
pub fn hold(stage: &Stage, others: Range<usize>) -> Result<()> {
    // The floor reads no other file than its own.
    if stage.side == Side::Floor {
        return Ok(());
    }
    let dir = stage.reservations();
    fs::create_dir_all(&dir)?;
    for other in others {
        // Above the addresses that are allocated meanwhile.
        let [_, b, c, d] = u32::try_from(other)?.to_be_bytes();
        let file = dir.join(format!("10.{}.{c}.{d}", 100 + b));
        fs::write(&file, format!("held-{other}\r\neth0"))
            .with_context(|| format!("write {}", file.display()))?;
    }
    Ok(())
}

/// Attaches the others in the range, and returns them: all with masquerade except the last one. In
/// a network that masquerades, the first pod without masquerade is a change of the configuration,
/// for which podwire reads all rules of the network; this is not to be measured. Podwire and the
/// floor attach the pods themselves. The Go plugins would take minutes, so the floor's program
/// makes the links, and the other objects of each pod are copied: the file of its address, and its
/// masquerade rules.
///
/// # Errors
/// When a plugin fails.
pub fn wire(stage: &mut Stage, others: Range<usize>) -> Result<Vec<Attachment>> {
    let mut crowd = Vec::new();
    let is_go = matches!(stage.side, Side::Go | Side::Other);
    for other in others.clone() {
        let mut pod = stage.pod(FIRST + other)?;
        let is_last = other + 1 == others.end && other != others.start;
        stage.turn_to(if is_last { BRIDGED } else { MASQUERADED });
        if is_go && other != others.start {
            // Its rule is not on this node.
            stage.turn_to(BRIDGED);
            let call = stage.floor(Verb::Add, &pod);
            stage.node.run(move || process::run(call))?;
        } else {
            stage.perform(Verb::Add, &mut pod)?;
        }
        crowd.push(pod);
    }
    if is_go && !crowd.is_empty() {
        let words = |pod: &Attachment| {
            let address = pod.reported().unwrap_or_else(|| pod.address());
            vec![pod.id().to_owned(), format!("-s {address}/32 ")]
        };
        copy_rules(stage, "CNI-", crowd.iter().map(words))?;
        hold(stage, others)?;
    }
    settle(Verb::Del)?;
    Ok(crowd)
}
