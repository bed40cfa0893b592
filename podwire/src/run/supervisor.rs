//! The supervisor of a container: makes it, waits for its end, and removes it.

use std::fs::{self, File};
use std::io::{PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use anyhow::{Context, Result};
use cni::AddResult;
use containers::processes::Child;
use containers::{Init, Isolation, Place, Record, Resolver, Started, Wanted};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::{Pid, dup2_stderr, dup2_stdin, dup2_stdout, setpgid, setsid};
use serde::{Deserialize, Serialize};

use super::mode::Mode;
use super::{Job, files, resolver};
use crate::RUN_FAILED;

/// The files that a container sees as its own.
const FILES: [(&str, &str); 3] = [
    ("hosts", "/etc/hosts"),
    ("resolv.conf", "/etc/resolv.conf"),
    ("hostname", "/etc/hostname"),
];

/// What the supervisor tells the front, a line each.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Report {
    /// The command runs.
    Started,
    /// It does not.
    Failed {
        /// The exit status.
        status: u8,
        /// Why.
        text: String,
    },
    /// It has ended, and everything is removed.
    Ended {
        /// Its exit status.
        status: u8,
    },
}

impl Report {
    fn send(&self, to: &mut PipeWriter) {
        let line = serde_json::to_string(self).unwrap_or_default() + "\n";
        // Without a front, nothing reads it.
        let _ = to.write_all(line.as_bytes());
    }
}

/// A container that was made.
struct Made {
    init: Init,
    /// Keeps the namespace: its path is that of this descriptor.
    _netns: Option<File>,
}

/// The life of the supervisor; its exit status says nothing.
pub fn supervise(job: &Job, place: &Place, mut report: PipeWriter, control: PipeReader) -> u8 {
    let outcome = life(job, place, &mut report, control);
    let last = match outcome {
        Ok(status) => Report::Ended { status },
        Err(failed) => Report::Failed {
            status: failed.status,
            text: failed.text,
        },
    };
    last.send(&mut report);
    0
}

struct Failed {
    status: u8,
    text: String,
}

impl From<anyhow::Error> for Failed {
    fn from(error: anyhow::Error) -> Self {
        Self {
            status: RUN_FAILED,
            text: cni::Error::from_chain(&error).to_string(),
        }
    }
}

fn life(
    job: &Job,
    place: &Place,
    report: &mut PipeWriter,
    control: PipeReader,
) -> Result<u8, Failed> {
    if job.detached {
        detach()?;
    }
    let made = make(job, place);
    let (status, failed) = match made {
        Ok((made, Started::Well)) => {
            Report::Started.send(report);
            watch(&made.init.child, (!job.detached).then_some(control));
            place.forget_pid();
            let status = made.init.child.wait();
            (status.context("wait for the container")?, None)
        }
        Ok((made, Started::Not(status, text))) => {
            place.forget_pid();
            let _ = made.init.child.wait();
            (0, Some(Failed { status, text }))
        }
        Err(error) => (0, Some(error.into())),
    };
    if let Err(left) = remove(job, place) {
        cni::log(format_args!(
            "podwire: {left:#}; the next podwire tries it again"
        ));
    }
    failed.map_or(Ok(status), Err)
}

/// Leaves the session and the streams of the front.
fn detach() -> Result<()> {
    setsid().context("setsid")?;
    let null = File::options().read(true).write(true).open("/dev/null");
    let null = null.context("open /dev/null")?;
    dup2_stdin(&null)
        .and_then(|()| dup2_stdout(&null))
        .and_then(|()| dup2_stderr(&null))?;
    Ok(())
}

/// Makes the namespaces, attaches them, and starts the command.
fn make(job: &Job, place: &Place) -> Result<(Made, Started)> {
    let isolation = isolation(job, place)?;
    let init = Init::start(&isolation)?;
    let mut made = Made { init, _netns: None };
    let made_further = (|| {
        if !job.detached {
            // A terminal's signals are for the command.
            let _ = setpgid(Pid::this(), Pid::from_raw(0));
        }
        let record = identify(job, &mut made)?;
        place.write(&record)?;
        place.write_pid(made.init.child.pid)?;
        let results = attach(job, &record)?;
        write_files(job, place, &results)?;
        made.init.go()
    })();
    match made_further {
        Ok(started) => Ok((made, started)),
        Err(error) => {
            place.forget_pid();
            let _ = made.init.child.handle.signal(Signal::SIGKILL as i32);
            let _ = made.init.child.wait();
            Err(error)
        }
    }
}

/// What the container has of its own. Its files are empty as yet: they are mounted while the plugins
/// run.
fn isolation(job: &Job, place: &Place) -> Result<Isolation> {
    let other = job.shared.as_ref().and_then(|(_, record)| record.as_ref());
    let source = |name: &str| -> Result<Option<PathBuf>> {
        let own = place.file(name);
        if job.shared.is_some() {
            // Those of the other container, if podwire has made it.
            return Ok(other.map(|it| it.dir().join(name)).filter(|it| it.exists()));
        }
        // Readable by every user in the container; the directory hides it from those of the node.
        let readable = fs::Permissions::from_mode(0o644);
        let written = fs::write(&own, "").and_then(|()| fs::set_permissions(&own, readable));
        written.with_context(|| format!("write {}", own.display()))?;
        Ok(Some(own))
    };
    let mut files = Vec::new();
    for (name, target) in FILES {
        if let Some(source) = source(name)? {
            files.push((source, target));
        }
    }
    Ok(Isolation {
        own_network: matches!(job.plan.mode, Mode::None | Mode::Networks(_)),
        network: job.shared.as_ref().map(|(netns, _)| netns.clone()),
        hostname: job.record.hostname.clone(),
        files,
        command: job.plan.command.clone(),
        environment: super::environment(&job.record.hostname, &job.plan.environment),
    })
}

/// Completes the record with the path of the namespace: a descriptor of this process. It needs no
/// mount point, which would outlive a killed process and be copied into other mount namespaces.
fn identify(job: &Job, made: &mut Made) -> Result<Record> {
    let mut record = job.record.clone();
    if let Some((netns, _)) = &job.shared {
        record.netns = netns.path().display().to_string();
    }
    if matches!(job.plan.mode, Mode::None | Mode::Networks(_)) {
        let path = format!("/proc/{}/ns/net", made.init.child.pid);
        let netns = File::open(&path).with_context(|| format!("open {path}"))?;
        // The id as /proc shows it, which may belong to another process namespace.
        let own = fs::read_link("/proc/self").context("read /proc/self")?;
        record.netns = format!("/proc/{}/fd/{}", own.display(), netns.as_raw_fd());
        made._netns = Some(netns);
    }
    Ok(record)
}

/// Attaches the container to its networks, in their order.
fn attach(job: &Job, record: &Record) -> Result<Vec<AddResult>> {
    let mut publishes = true;
    let mut results = Vec::new();
    for (index, (endpoint, list)) in job.networks.iter().enumerate() {
        // A port can be published once.
        let ports = publishes && list.has_capability("portMappings");
        let last = index + 1 == job.networks.len();
        let ports = ports || (publishes && last);
        publishes &= !ports;
        let wanted = Wanted {
            container_id: record.id.clone(),
            name: record.name.clone(),
            netns: record.netns.clone(),
            ifname: Some(
                endpoint
                    .ifname
                    .clone()
                    .unwrap_or_else(|| format!("eth{index}")),
            ),
            ips: endpoint.ips.clone(),
            mac: endpoint.mac.clone(),
            aliases: endpoint.aliases.clone(),
            hostname: files::name_of(&record.hostname),
            dns_servers: record.dns.servers.clone(),
            ports: if ports {
                record.ports.clone()
            } else {
                Vec::new()
            },
            links: job
                .linked
                .iter()
                .filter_map(|it| it.argument(list))
                .collect(),
            hosts: job.linked.iter().flat_map(|it| it.lines(list)).collect(),
            gateway_priority: endpoint.gateway_priority,
        };
        let what = || format!("connect to network {}", list.name);
        results.push(job.attacher.attach(&wanted, list).with_context(what)?);
    }
    if job.networks.len() > 1 {
        let attacher = &job.attacher;
        containers::choose_gateway(
            &record.netns,
            &record.id,
            &attacher.cache,
            &attacher.journal,
        )?;
    }
    Ok(results)
}

/// Fills the container's files.
fn write_files(job: &Job, place: &Place, results: &[AddResult]) -> Result<()> {
    if job.shared.is_some() {
        return Ok(());
    }
    let gateway = results
        .iter()
        .flat_map(|it| &it.ips)
        .find_map(|it| it.gateway);
    let added = job.added_hosts(gateway);
    let own = files::addresses(results);
    let hostname = &job.record.hostname;
    let is_host = job.plan.mode == Mode::Host;
    let node = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let hosts = if is_host {
        let lines = added.iter().map(|(name, ip)| format!("{ip}\t{name}\n"));
        node("/etc/hosts") + &lines.collect::<String>()
    } else {
        files::hosts(&added, &own, hostname)
    };
    let networks: Vec<_> = job.networks.iter().map(|(_, it)| it).collect();
    let dns = &job.record.dns;
    let resolver = if is_host && *dns == Resolver::default() {
        node("/etc/resolv.conf")
    } else {
        resolver::text(dns, &networks, results)
    };
    for (name, text) in [
        ("hosts", hosts),
        ("resolv.conf", resolver),
        ("hostname", format!("{hostname}\n")),
    ] {
        let file = place.file(name);
        // In place: it is mounted already.
        fs::write(&file, text).with_context(|| format!("write {}", file.display()))?;
    }
    Ok(())
}

/// Waits for the end of the container; kills it when the front is gone, and passes signals on.
fn watch(child: &Child, control: Option<PipeReader>) {
    let mut control = control;
    let terminate: SigSet = [Signal::SIGTERM].into_iter().collect();
    let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
    let signals = SignalFd::with_flags(&terminate, flags).ok();
    loop {
        let mut fds = vec![PollFd::new(child.handle.as_fd(), PollFlags::POLLIN)];
        fds.extend(
            signals
                .as_ref()
                .map(|it| PollFd::new(it.as_fd(), PollFlags::POLLIN)),
        );
        fds.extend(
            control
                .as_ref()
                .map(|it| PollFd::new(it.as_fd(), PollFlags::POLLIN)),
        );
        match poll(&mut fds, PollTimeout::NONE) {
            Err(Errno::EINTR) => continue,
            Err(_) => return,
            Ok(_) => {}
        }
        let ready: Vec<_> = fds.iter().map(|it| it.any().unwrap_or(true)).collect();
        if ready[0] {
            return;
        }
        if let Some(signals) = &signals {
            while let Ok(Some(signal)) = signals.read_signal() {
                let _ = child.handle.signal(signal.ssi_signo as i32);
            }
        }
        if ready.last() == Some(&true)
            && let Some(passed) = &mut control
        {
            let mut numbers = [0; 64];
            match passed.read(&mut numbers) {
                Ok(length) if length > 0 => {
                    for number in &numbers[..length] {
                        let _ = child.handle.signal(i32::from(*number));
                    }
                }
                _ => {
                    let _ = child.handle.signal(Signal::SIGKILL as i32);
                    control = None;
                }
            }
        }
    }
}

/// Removes the attachments and the directory.
fn remove(job: &Job, place: &Place) -> Result<()> {
    job.attacher.detach_all(&job.record.id)?;
    place.remove()
}
