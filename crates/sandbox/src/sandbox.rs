//! A private node: a [`Worker`] in network and mount namespaces of its own.

// The sandbox is where children are started; plugins themselves may not.
#![allow(clippy::disallowed_methods)]

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, gettid};
use tempfile::TempDir;

use crate::cni::Cni;
use crate::conf;
use crate::fake::FakePlugin;
use crate::namespaces;
use crate::netns::Netns;
use crate::process::{self, Finished, Run};
use crate::snapshot::Snapshot;
use crate::worker::Worker;

/// A private node. Dropping it ends every process still in it and lets the
/// kernel take the namespaces down.
pub struct Sandbox {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    dir: TempDir,
    worker: Worker,
    tid: Pid,
    mount_ns: PathBuf,
    pods: Mutex<Vec<String>>,
    /// What each new pod executes first.
    pod_script: Mutex<String>,
}

impl Sandbox {
    /// Makes the namespaces. Panics, naming the setting that forbids them, if the
    /// machine does not allow it: a test that cannot run has failed.
    #[allow(clippy::new_without_default)] // an expensive thing should look expensive
    pub fn new() -> Self {
        let dir = tempfile::Builder::new()
            .prefix("podwire-test-")
            .tempdir()
            .expect("make the sandbox's directory");
        let home = dir.path().to_owned();
        let made = Worker::new(move || enter(&home).map(|()| (gettid(), own_mount_ns())));
        let (worker, (tid, mount_ns)) = made.unwrap_or_else(|why| panic!("{why}"));
        let inner = Arc::new(Inner {
            dir,
            worker,
            tid,
            mount_ns,
            pods: Mutex::default(),
            pod_script: Mutex::default(),
        });
        let sandbox = Self { inner };
        sandbox.host().sh("ip link set lo up");
        sandbox
    }

    /// The namespace that plays the node: what a plugin calls the host.
    pub fn host(&self) -> Netns {
        Netns::host(Arc::clone(&self.inner))
    }

    /// Makes an empty pod namespace, as a runtime does before ADD.
    pub fn pod(&self, name: &str) -> Netns {
        self.host().sh(&format!("ip netns add {name}"));
        self.inner.pods().push(name.to_owned());
        let pod = Netns::pod(Arc::clone(&self.inner), name);
        let script = self.pod_script().clone();
        if !script.is_empty() {
            pod.sh(&script);
        }
        pod
    }

    /// The pod whose namespace is at this path, that of a container. Each name has one.
    pub fn pod_at(&self, name: &str, namespace: &str) -> Netns {
        if !self.inner.pods().iter().any(|it| it == name) {
            self.host().sh(&format!(
                "touch /run/netns/{name} && mount --bind {namespace} /run/netns/{name}"
            ));
            self.inner.pods().push(name.to_owned());
        }
        Netns::pod(Arc::clone(&self.inner), name)
    }

    /// Has each new pod execute a script first.
    pub(crate) fn prepare_pods(&self, script: &str) {
        script.clone_into(&mut self.pod_script());
    }

    fn pod_script(&self) -> std::sync::MutexGuard<'_, String> {
        let script = self.inner.pod_script.lock();
        script.unwrap_or_else(PoisonError::into_inner)
    }

    /// Deletes a pod's namespace, as a runtime does when it does not wait for DEL.
    pub fn remove_pod(&self, pod: &Netns) {
        self.host().sh(&format!("ip netns del {}", pod.name()));
        self.inner.pods().retain(|name| name != pod.name());
    }

    /// Makes the node believe that it was booted again: the kernel shows another boot
    /// id. Files stay, as they do on a disk; namespaces stay too.
    pub fn reboot(&self) {
        self.host()
            .sh("id=$(mktemp); cat /proc/sys/kernel/random/uuid > $id
             mount --bind $id /proc/sys/kernel/random/boot_id");
    }

    /// A call of the plugin `kind` in this sandbox, to be completed and run.
    pub fn cni(&self, kind: &str) -> Cni {
        Cni::new(Arc::clone(&self.inner), kind)
    }

    /// Puts a plugin called `name` in front of all others, whose answers the test chooses.
    pub fn fake(&self, name: &str) -> FakePlugin {
        FakePlugin::install(&self.dir().join("fakes"), name)
    }

    /// State of the node and its pods, to compare with later.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot::take(&self.inner)
    }

    /// The sandbox's own directory: writable on both sides, deleted in the end.
    pub fn dir(&self) -> &Path {
        self.inner.dir.path()
    }

    /// Runs `f` on the thread that lives in the sandbox, so that file paths mean
    /// what they mean to a plugin (`/var/lib/cni` and `/run` are private).
    pub fn inside<T: Send + 'static>(&self, f: impl FnOnce() -> T + Send + 'static) -> T {
        self.inner.inside(f)
    }

    /// Content of a file as the sandbox sees it; `None` if it does not exist.
    pub fn read(&self, path: impl AsRef<Path>) -> Option<String> {
        let path = path.as_ref().to_owned();
        self.inside(move || match fs::read(&path) {
            Ok(bytes) => Some(String::from_utf8_lossy(&bytes).into_owned()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => panic!("read {}: {e}", path.display()),
        })
    }

    /// Writes a file as the sandbox sees it, with its parent directories.
    pub fn write(&self, path: impl AsRef<Path>, content: impl AsRef<[u8]>) {
        let (path, content) = (path.as_ref().to_owned(), content.as_ref().to_vec());
        self.inside(move || {
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent)
                    .unwrap_or_else(|e| panic!("make {}: {e}", parent.display()));
            }
            fs::write(&path, content).unwrap_or_else(|e| panic!("write {}: {e}", path.display()));
        });
    }

    /// Copies a file, or the files of a directory, into a directory of the sandbox's where
    /// every user can read and execute them: the original may be below root's home.
    pub fn copy_readable(&self, original: &Path, into: &str) -> PathBuf {
        let dir = self.dir().join(into);
        let (home, copy) = (self.dir().display(), dir.display());
        let files = if original.is_dir() {
            original.join("*")
        } else {
            original.to_owned()
        };
        self.host().sh(&format!(
            "mkdir -p {copy}; cp -L {} {copy}; chmod -R a+rX {home}",
            files.display()
        ));
        dir
    }

    /// Names in a directory as the sandbox sees it, sorted; empty if it does not exist.
    pub fn list(&self, dir: impl AsRef<Path>) -> Vec<String> {
        let dir = dir.as_ref().to_owned();
        self.inside(move || {
            let entries = fs::read_dir(&dir).into_iter().flatten().flatten();
            let mut names: Vec<String> = entries
                .map(|e| e.file_name().to_string_lossy().into_owned())
                .collect();
            names.sort();
            names
        })
    }

    /// Addresses that host-local has given out in the network of [`conf`], sorted as text.
    pub fn reserved(&self) -> Vec<String> {
        let mut names = self.list(conf::STATE);
        names.retain(|name| name.parse::<IpAddr>().is_ok());
        names
    }

    /// The line that puts a shell into the sandbox, while the test still runs.
    pub fn nsenter(&self) -> String {
        self.inner.nsenter()
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        if std::thread::panicking() {
            hold(&self.inner.nsenter());
        }
        for pid in self.inner.processes() {
            // In our mount namespace, which only this sandbox's children share.
            let _ = kill(pid, Signal::SIGKILL);
        }
        self.inner.worker.stop();
    }
}

fn hold(nsenter: &str) {
    let seconds = std::env::var("SANDBOX_HOLD")
        .ok()
        .and_then(|s| s.parse().ok());
    match seconds {
        None => eprintln!("sandbox of the failed test (SANDBOX_HOLD=600 keeps it): {nsenter}"),
        Some(seconds) => {
            eprintln!("sandbox kept for {seconds} s: {nsenter}");
            std::thread::sleep(Duration::from_secs(seconds));
        }
    }
}

impl Inner {
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn pods(&self) -> std::sync::MutexGuard<'_, Vec<String>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn nsenter(&self) -> String {
        let ns = format!("/proc/{}/task/{}/ns", std::process::id(), self.tid);
        format!("nsenter --mount={ns}/mnt --net={ns}/net")
    }

    pub(crate) fn inside<T: Send + 'static>(&self, f: impl FnOnce() -> T + Send + 'static) -> T {
        self.worker.inside(f)
    }

    /// Starts the command inside, then serves it from the calling thread: many
    /// callers may have children running at the same time.
    pub(crate) fn run(&self, mut command: Command, run: Run) -> Finished {
        let what = format!("{command:?}");
        process::prepare(&mut command, &run).unwrap_or_else(|e| panic!("prepare {what}: {e}"));
        let started = Instant::now();
        let child = self
            .spawn(command)
            .unwrap_or_else(|e| panic!("start {what}: {e}"));
        let mut finished =
            process::finish(child, run).unwrap_or_else(|why| panic!("{what}: {why}"));
        finished.elapsed = started.elapsed();
        finished
    }

    pub(crate) fn spawn(&self, mut command: Command) -> io::Result<Child> {
        command.env("TMPDIR", self.dir());
        process::die_with_the_sandbox(&mut command);
        self.inside(move || command.spawn())
    }

    /// Processes that live in this sandbox's mount namespace: its children and theirs.
    pub(crate) fn processes(&self) -> Vec<Pid> {
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        entries
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .filter(|pid: &i32| {
                fs::read_link(format!("/proc/{pid}/ns/mnt")).is_ok_and(|ns| ns == self.mount_ns)
            })
            .map(Pid::from_raw)
            .collect()
    }
}

fn own_mount_ns() -> PathBuf {
    fs::read_link("/proc/thread-self/ns/mnt").unwrap_or_default()
}

/// Puts the calling thread into namespaces of its own, with everything read-only but what is
/// private and `home`: a plugin that writes elsewhere is to fail, not to change the machine.
fn enter(home: &Path) -> Result<(), String> {
    namespaces::enter()?;
    namespaces::bind(home, home)?;
    namespaces::make_root_read_only()
}
