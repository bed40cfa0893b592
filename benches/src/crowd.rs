//! Others on the node: published ports, addresses and pods that are there already.

use std::fs;
use std::ops::Range;

use anyhow::{Context, Result, ensure};

use crate::job::{BRIDGED, MASQUERADED, Verb, portmap};
use crate::process;
use crate::side::{Attachment, Side, Stage};
use crate::table::settle;

/// Where the numbers of others begin: no pod that is measured has one of them.
const FIRST: usize = 1_000_000;
/// Where their ports begin.
const PORT: usize = 20_000;

/// Publishes the ports of others in the range, a port for each. Whose portmap it
/// is, its own rules are what is there: podwire makes them itself, the Go plugin
/// makes one, of which copies are loaded (five thousand ADDs take it an hour).
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

/// Loads the rules that the Go plugin made for the first of some pods for all the others, with their
/// words in place of its own; the first word is the id. The chain of each begins with `prefix`.
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
    // The floor looks at no file but its own.
    if stage.side == Side::Floor {
        return Ok(());
    }
    let dir = stage.reservations();
    fs::create_dir_all(&dir)?;
    for other in others {
        // Above what is handed out meanwhile.
        let [_, b, c, d] = u32::try_from(other)?.to_be_bytes();
        let file = dir.join(format!("10.{}.{c}.{d}", 100 + b));
        fs::write(&file, format!("held-{other}\r\neth0"))
            .with_context(|| format!("write {}", file.display()))?;
    }
    Ok(())
}

/// Wires others in the range, and returns them: all with masquerade but the last one. In a network that
/// masquerades, the first pod without is a change of its configuration, for which podwire looks at all
/// rules of the network; that is not what is measured. Podwire and the floor do it themselves. For the Go
/// plugins, which would take minutes, the floor's program makes the links, and what else they leave
/// for each pod is copied: the file of its address, its rules of masquerade.
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
