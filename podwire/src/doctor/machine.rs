//! What the machine has for all of its programs: watches of files, time for packets, a clock.

use std::fs;
use std::time::{Duration, SystemTime};

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use super::finding::{About, Check, Finding, Severity, quoted};
use super::{Examination, Node};

pub const WATCHES: Check = Check {
    id: "PW054",
    severity: Severity::Warning,
    title: "instances or watches of inotify are nearly used up",
    why: "containerd and CRI-O watch the directory of configurations, and podwired the records of names. \
          Without a watch they do not start (\"too many open files\", \"no space left on device\"), or do \
          not see a change.",
};
pub const BACKLOG: Check = Check {
    id: "PW055",
    severity: Severity::Warning,
    title: "a bridge has as many ports as the backlog of a CPU has room for packets",
    why: "A broadcast is copied to each port. Those copies that have no room in the backlog of the CPU are \
          dropped: some pods miss questions for their address (ARP).",
};
pub const CLOCK: Check = Check {
    id: "PW056",
    severity: Severity::Warning,
    title: "files of attachments are from the future: the clock is wrong, or was wrong",
    why: "While it is wrong, stores refuse certificates, or are refused. DHCP leases are renewed at a wrong \
          time after a restart of the daemon, and podwire ps shows no age.",
};

/// No more is tried: a program that opens hundreds at once is none of ours.
const SPARE: u64 = 32;
/// File systems and clocks of other machines differ a little.
const TOLERANCE: Duration = Duration::from_secs(60);

pub fn check(node: &Node<'_>, found: &mut Examination) {
    watches(found);
    backlog(node, found);
    clock(node, found);
}

/// The limits hold for each user, and the kernel does not say how much of them is in use. So it is tried.
fn watches(found: &mut Examination) {
    let (instances, watches) = (
        "fs.inotify.max_user_instances",
        "fs.inotify.max_user_watches",
    );
    let Some(limit) = setting(instances) else {
        return;
    };
    let wanted = (limit / 10).clamp(1, SPARE);
    let mut all = Vec::new();
    let refused = (0..wanted).find_map(|_| match Inotify::init(InitFlags::IN_CLOEXEC) {
        Ok(instance) => {
            all.push(instance);
            None
        }
        Err(errno) => Some(errno),
    });
    match refused {
        // Also where this process has too many files.
        Some(Errno::EMFILE) if fs::File::open("/").is_ok() => {
            let what = format!(
                "only {} of {limit} instances of inotify are left",
                all.len()
            );
            found.add(exhausted(instances, limit, what));
        }
        Some(errno) => found.unread("inotify", errno.desc()),
        None => {}
    }
    let Some(instance) = all.first() else {
        return;
    };
    let Err(Errno::ENOSPC) = instance.add_watch("/", AddWatchFlags::IN_DELETE_SELF) else {
        return;
    };
    let limit = setting(watches).unwrap_or_default();
    let what = format!("none of {limit} watches of inotify is left");
    found.add(exhausted(watches, limit, what));
}

fn exhausted(key: &str, limit: u64, what: String) -> Finding {
    let user = nix::unistd::geteuid();
    let finding = Finding::new(&WATCHES, About::Node, format!("{what} to user {user}"));
    let finding = finding.shown_by(
        format!("sysctl {key}; find /proc/[0-9]*/fd -lname anon_inode:inotify -user {user}"),
        limit.to_string(),
    );
    finding.command(format!("sysctl -w {key}={}", limit.saturating_mul(4)))
}

fn setting(key: &str) -> Option<u64> {
    let path = key.replace('.', "/");
    netlink::sysctl::read(&path).ok()?.parse().ok()
}

/// A bridge copies a broadcast to all of its ports at once, and each copy waits in the backlog of the same
/// CPU. Whether some are dropped at this moment says less: a pod that starts, or another program, does that.
fn backlog(node: &Node<'_>, found: &mut Examination) {
    let key = "net.core.netdev_max_backlog";
    // Only the first namespace has it.
    let Some(limit) = setting(key) else {
        return;
    };
    let survey = node.survey.node();
    for bridge in survey.interfaces.iter().map(|it| &it.link) {
        let ports = survey.ports(bridge.index).count() as u64;
        let is_ours = bridge.is_kind("bridge") && node.is_of_a_network(&bridge.name);
        if !is_ours || ports < limit {
            continue;
        }
        let name = &bridge.name;
        let what = format!("{name} has {ports} ports, and {key} is {limit}");
        let finding = Finding::new(&BACKLOG, About::Node, what);
        let command = format!("bridge link show master {name} | wc -l; sysctl {key}");
        let finding = finding.shown_by(command, format!("{ports}, {limit}"));
        found.add(finding.command(format!("sysctl -w {key}={}", ports.saturating_mul(4))));
    }
}

fn clock(node: &Node<'_>, found: &mut Examination) {
    let Some(latest) = SystemTime::now().checked_add(TOLERANCE) else {
        return;
    };
    let results = node.sources.cache_dir.join("results");
    let attachments = node.survey.attachments.iter();
    let files = attachments.filter_map(|it| Some((it.since?, it.cached.as_ref()?.file_name())));
    let late: Vec<_> = files.filter(|(since, _)| *since > latest).collect();
    let Some((_, file)) = late.iter().max_by_key(|(since, _)| *since) else {
        return;
    };
    let file = results.join(file).display().to_string();
    let what = format!(
        "{} files in {} are of a later time",
        late.len(),
        results.display()
    );
    let finding = Finding::new(&CLOCK, About::Node, what);
    let file = quoted(&file);
    let command = format!("date; ls -l --time-style=full-iso {file}");
    found.add(
        finding
            .shown_by(command, "a time after that of the node")
            .advice(format!(
                "set the clock, as with timedatectl set-ntp true; if it is right by now: touch {}",
                quoted(&results.display().to_string()) + "/*"
            )),
    );
}
