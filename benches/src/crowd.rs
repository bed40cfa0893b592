//! Others on the node: published ports, addresses and pods that are there already.

use std::fs;
use std::ops::Range;

use anyhow::{Context, Result, ensure};

use crate::job::{Verb, portmap};
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
        Side::Go => {
            each(stage, others.start..others.start + 1, one_port)?;
            let rules = stage
                .node
                .run(|| process::output("/usr/sbin/iptables-save", &["-t", "nat"]))?;
            let copies = copies(&rules, others)?;
            let restore = || process::feed("/usr/sbin/iptables-restore", &["--noflush"], copies);
            stage.node.run(restore)
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

/// The rules that the Go plugin made for the first of them, for all the others.
fn copies(rules: &str, others: Range<usize>) -> Result<String> {
    let (port, id) = (
        PORT + others.start,
        format!("{:064x}", FIRST + others.start),
    );
    let entry = rules
        .lines()
        .find(|line| line.contains(&id) && line.contains(" -j CNI-DN-"));
    let entry = entry.context("portmap of the Go plugins made no rule")?;
    let (_, chain) = entry.rsplit_once(' ').context("a rule has a target")?;
    let own: Vec<&str> = rules.lines().filter(|line| line.contains(chain)).collect();
    ensure!(
        own.len() > 2,
        "the Go plugin's rules are not what they were: {own:?}"
    );
    let mut text = String::from("*nat\n");
    for other in others.skip(1) {
        let (to_port, to_id) = (PORT + other, format!("{:064x}", FIRST + other));
        for line in &own {
            let line = line
                .replace(&id, &to_id)
                .replace(chain, &format!("CNI-DN-{other:020}"))
                .replace(&format!("dport {port} "), &format!("dport {to_port} "))
                .replace(&format!("dports {port} "), &format!("dports {to_port} "));
            text.push_str(&line);
            text.push('\n');
        }
    }
    text.push_str("COMMIT\n");
    Ok(text)
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

/// Wires others in the range, and returns them.
///
/// # Errors
/// When a plugin fails.
pub fn wire(stage: &Stage, others: Range<usize>) -> Result<Vec<Attachment>> {
    let mut crowd = Vec::new();
    for other in others {
        let mut pod = stage.pod(FIRST + other)?;
        stage.perform(Verb::Add, &mut pod)?;
        crowd.push(pod);
    }
    settle(Verb::Del)?;
    Ok(crowd)
}
