//! A node that runs containers: a sandbox with a process namespace and a cgroup of its own.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::conf::NETWORK;
use crate::{Finished, Running, Sandbox, Snapshot, Suite};

/// How long a daemon may take to start, and a runtime to finish in the background what it ends.
const PATIENCE: Duration = Duration::from_secs(10);

/// Runs as the first process of the node. `/proc/self` still belongs to the machine's process namespace when it is read.
/// podman keeps its locks in `/dev/shm`, and makes `/run/netns` a shared mount point unless it is one. The loop reaps the
/// orphans that runtimes leave by design.
const INIT: &str = "
    read -r pid rest </proc/self/stat
    mount -t proc proc /proc
    mount -t tmpfs tmpfs /dev/shm
    mkdir -p /run/netns
    mount --bind /run/netns /run/netns
    mount --make-shared /run/netns
    echo pid $pid
    while sleep 0.1; do :; done";

/// A private node for runtimes. `/run`, `/var/lib` and `/dev/shm` are its own, [`RuntimeNode::dir`] can be written to as well, all else
/// is read-only.
///
/// Containers leave the sandbox's mount namespace, so it takes a process namespace to promise that none outlives the test: when
/// its first process ends, the kernel ends all others.
pub struct RuntimeNode {
    sandbox: Sandbox,
    cgroup: String,
    /// The first process's id, as the machine counts.
    pid: String,
    /// The program that made the process namespace; it ends when the first process does.
    _unshare: Running,
    /// Where daemons write what they have to say.
    logs: Vec<String>,
}

/// What a node held, to compare with later.
pub struct Before {
    snapshot: Snapshot,
    processes: BTreeSet<String>,
    mounts: BTreeSet<String>,
    /// Namespaces with a name, such as that of the machine outside.
    namespaces: BTreeSet<String>,
}

impl RuntimeNode {
    /// Makes a node without daemons.
    #[allow(clippy::new_without_default)] // as for a sandbox
    pub fn new() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let sandbox = Sandbox::new();
        let unshare = sandbox.host().start(&[
            "unshare",
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            "sh",
            "-ec",
            INIT,
        ]);
        let mut pid = String::new();
        eventually("the node's first process", || {
            let output = unshare.output();
            pid = output
                .trim()
                .strip_prefix("pid ")
                .unwrap_or_default()
                .to_owned();
            if pid.is_empty() { Err(output) } else { Ok(()) }
        });
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        Self {
            sandbox,
            cgroup: format!("podwire-test-{}-{number}", std::process::id()),
            pid,
            _unshare: unshare,
            logs: Vec::new(),
        }
    }

    /// The sandbox around the node: its host namespace is the node's.
    pub fn sandbox(&self) -> &Sandbox {
        &self.sandbox
    }

    /// The directory in /proc, as the machine sees it, of a process of the node, as the node counts.
    pub fn process_dir(&self, process: &str) -> String {
        format!("/proc/{}/root/proc/{process}", self.pid)
    }

    /// The directory for everything that a runtime writes.
    pub fn dir(&self) -> &Path {
        self.sandbox.dir()
    }

    /// A path in [`RuntimeNode::dir`] as text.
    pub fn path(&self, name: &str) -> String {
        self.dir().join(name).display().to_string()
    }

    /// The cgroup that the containers' own are to be below.
    pub fn cgroup(&self) -> String {
        format!("/{}", self.cgroup)
    }

    /// Writes a file into [`RuntimeNode::dir`], with the directories on the way, and returns its path.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> String {
        let path = self.path(name);
        self.sandbox.write(&path, content);
        path
    }

    /// Writes the one network list that runtimes find, into the directory `net.d`.
    pub fn install(&self, network: &Value) {
        self.write("net.d/10-network.conflist", network.to_string());
    }

    /// The plugins under test.
    pub fn plugins(&self) -> String {
        Suite::Ours.dir().display().to_string()
    }

    /// Runs a program on the node, whatever its exit status.
    pub fn run(&self, argv: &[&str]) -> Finished {
        self.sandbox.host().run(&self.inside(argv))
    }

    /// As [`RuntimeNode::run`], with a time limit of its own.
    pub fn run_for(&self, argv: &[&str], limit: Duration) -> Finished {
        self.sandbox.host().run_for(&self.inside(argv), limit)
    }

    /// Runs a program on the node that must succeed, and returns what it printed.
    #[track_caller]
    pub fn must(&self, argv: &[&str]) -> String {
        let done = self.run(argv);
        assert!(
            done.code == 0,
            "{argv:?} exited with {}: {}{}{}",
            done.code,
            done.stdout,
            done.stderr,
            self.logs()
        );
        done.stdout
    }

    /// Starts a daemon that lives as long as the node, and waits until `ready` succeeds.
    pub fn start(&mut self, argv: &[&str], ready: &[&str]) {
        let name = Path::new(argv[0]).file_name().unwrap_or_default();
        let log = self.path(&format!("{}.log", name.display()));
        // An orphan from the start, the daemon belongs to the node's first process, which reaps it.
        let background = ["sh", "-c", "\"$@\" >\"$0\" 2>&1 &", &log];
        self.must(&[&background[..], argv].concat());
        self.logs.push(log);
        eventually(&format!("{} is ready", argv[0]), || match self.run(ready) {
            done if done.code == 0 => Ok(()),
            done => Err(format!("{}{}", done.stderr, self.logs())),
        });
    }

    /// Shows a directory in place of another, which must exist.
    pub fn bind(&self, from: &str, to: &str) {
        self.must(&["mount", "--bind", from, to]);
    }

    /// What is there now. Allowed to change: what a network of a bridge with host-local leaves for its next pod, and directories
    /// that libcni, runc and containerd's shim keep once they have made them, but not what is in them.
    pub fn before(&self) -> Before {
        self.before_on("cni0", NETWORK)
    }

    /// [`RuntimeNode::before`], for a network with another name and another bridge.
    pub fn before_on(&self, bridge: &str, network: &str) -> Before {
        let snapshot = self.sandbox.snapshot().allow_link(bridge);
        let snapshot = snapshot.allow_forwarding().allow_host_local(network);
        let kept = [
            "/var/lib/cni/results",
            "/run/runc",
            "/run/containerd",
            "/run/containerd/s",
            "/run/containerd/fifo",
        ];
        Before {
            snapshot: kept.iter().fold(snapshot, |snapshot, dir| {
                snapshot.allow(&format!("dir {dir} "))
            }),
            processes: self.processes(),
            mounts: self.mounts(),
            namespaces: self.namespaces(),
        }
    }

    /// Panics if a link, a reservation, a cached result, a process, a mount, a network namespace or a cgroup of a pod is left.
    #[track_caller]
    pub fn assert_left_nothing(&self, before: &Before) {
        before.snapshot.assert_unchanged();
        eventually("the node is as before", || self.compare(before));
    }

    /// The differences that a snapshot of the sandbox does not see, at this moment.
    fn compare(&self, before: &Before) -> Result<(), String> {
        same("processes", &before.processes, &self.processes())?;
        same("mounts", &before.mounts, &self.mounts())?;
        same("named namespaces", &before.namespaces, &self.namespaces())?;
        same("cgroups", &BTreeSet::new(), &self.container_cgroups())
    }

    fn inside<'a>(&'a self, argv: &[&'a str]) -> Vec<&'a str> {
        let mut all = vec!["nsenter", "--target", &self.pid, "--pid", "--mount", "--"];
        all.extend(argv);
        all
    }

    /// The last lines of each daemon, for the story of a failure.
    fn logs(&self) -> String {
        let tail = |path: &String| {
            let log = fs::read_to_string(path).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            format!(
                "\nend of {path}:\n{}",
                lines[lines.len().saturating_sub(20)..].join("\n")
            )
        };
        self.logs.iter().map(tail).collect()
    }

    /// Ends the first process, whereupon the kernel ends all others.
    fn halt(&self) {
        let deadline = Instant::now() + PATIENCE;
        let process = format!("/proc/{}", self.pid);
        self.sandbox
            .host()
            .run(&["sh", "-c", "kill -KILL \"$0\"", &self.pid]);
        // unshare is its parent: until it has been waited for, the number cannot mean another process.
        while Path::new(&process).exists() && Instant::now() < deadline {
            sleep(Duration::from_millis(5));
        }
    }

    /// Command lines of the node's processes, but for the first one's naps, which have its command line until they are under
    /// way. A process that has ended has none.
    fn processes(&self) -> BTreeSet<String> {
        // The node's own /proc, reached through its first process: it counts all that live in the node, and nothing else.
        let proc = format!("/proc/{}/root/proc", self.pid);
        let entries = fs::read_dir(&proc).unwrap_or_else(|e| panic!("read {proc}: {e}"));
        let entries = entries.flatten().map(|entry| entry.path());
        let command_line = |process: &Path| {
            let line = fs::read(process.join("cmdline")).ok()?;
            Some(String::from_utf8_lossy(&line).replace('\0', " "))
        };
        let first = command_line(&Path::new(&proc).join("1"));
        let command_lines = entries.filter_map(|process| {
            let number: u32 = process.file_name()?.to_str()?.parse().ok()?;
            let line = command_line(&process)?;
            let naps = line == "sleep 0.1 " || number != 1 && Some(&line) == first.as_ref();
            let counts = !line.is_empty() && !naps;
            counts.then(|| format!("{number} {line}"))
        });
        command_lines.collect()
    }

    fn namespaces(&self) -> BTreeSet<String> {
        self.sandbox.list("/run/netns").into_iter().collect()
    }

    fn mounts(&self) -> BTreeSet<String> {
        let path = format!("/proc/{}/mounts", self.pid);
        let mounts = fs::read_to_string(&path).unwrap_or_else(|e| panic!("read {path}: {e}"));
        mounts.lines().map(str::to_owned).collect()
    }

    /// Cgroups of containers: those below the node's, without the one that podman keeps for all its monitors.
    fn container_cgroups(&self) -> BTreeSet<String> {
        let nodes = cgroups(&self.cgroup);
        let below = nodes.iter().flat_map(|dir| directories(dir));
        let paths = below.map(|dir| dir.display().to_string());
        paths.filter(|path| !path.ends_with("/conmon")).collect()
    }
}

impl Drop for RuntimeNode {
    fn drop(&mut self) {
        self.halt();
        let deadline = Instant::now() + PATIENCE;
        while !cgroups(&self.cgroup).is_empty() && Instant::now() < deadline {
            for dir in cgroups(&self.cgroup) {
                remove_cgroup(&dir);
            }
            sleep(Duration::from_millis(20));
        }
        let left = cgroups(&self.cgroup);
        assert!(
            left.is_empty() || std::thread::panicking(),
            "cgroups left behind: {left:?}"
        );
    }
}

/// Calls `check` until it is content; panics with its complaint when that takes too long.
#[track_caller]
pub fn eventually(what: &str, mut check: impl FnMut() -> Result<(), String>) {
    let deadline = Instant::now() + PATIENCE;
    while let Err(complaint) = check() {
        assert!(
            Instant::now() < deadline,
            "{what}: never came true: {complaint}"
        );
        sleep(Duration::from_millis(20));
    }
}

fn same(what: &str, before: &BTreeSet<String>, now: &BTreeSet<String>) -> Result<(), String> {
    let came = now.difference(before).map(|line| format!("+ {line}"));
    let went = before.difference(now).map(|line| format!("- {line}"));
    let differences: Vec<String> = came.chain(went).collect();
    if differences.is_empty() {
        return Ok(());
    }
    Err(format!("{what}:\n{}", differences.join("\n")))
}

/// The directories of a cgroup, one for each hierarchy that has it: cgroup v1 mounts a hierarchy for each controller.
fn cgroups(name: &str) -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    let hierarchies = directories(root).into_iter().chain([root.to_owned()]);
    let mut found: Vec<PathBuf> = hierarchies.map(|dir| dir.join(name)).collect();
    found.retain(|dir| dir.is_dir());
    found
}

/// A cgroup goes once all below it have gone; one with a process in it stays, to be tried again.
fn remove_cgroup(dir: &Path) {
    directories(dir)
        .iter()
        .for_each(|below| remove_cgroup(below));
    let _ = fs::remove_dir(dir);
}

fn directories(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.path())
        .filter(|path| path.is_dir())
        .collect()
}

#[test]
fn the_leak_check_sees_what_containers_leave() {
    for (leak, seen) in [
        ("sleep 1000 >/dev/null 2>&1 &", "sleep 1000"),
        ("mount -t tmpfs leak /run/netns", "leak /run/netns"),
        ("touch /run/netns/leak", "leak"),
        (
            "mkdir -p /sys/fs/cgroup/pids/$0/leak /sys/fs/cgroup/$0/leak 2>/dev/null || :",
            "/leak",
        ),
    ] {
        let node = RuntimeNode::new();
        let before = node.before();
        assert_eq!(node.compare(&before), Ok(()));
        node.must(&["sh", "-c", leak, &node.cgroup]);
        let complaint = node.compare(&before).expect_err(leak);
        assert!(
            complaint.contains(seen),
            "no word about {seen:?} in:\n{complaint}"
        );
    }
}
