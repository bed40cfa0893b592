//! Private nodes and pods: network namespaces of this run, nothing of the machine.
//!
//! Each contender gets a node of its own, so that what one leaves behind (five
//! thousand iptables chains, say) does not slow the other.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Sender, channel};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result, anyhow};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

use crate::process;

/// Where namespaces are shown, as runtimes do it.
const NETNS: &str = "/run/netns";

/// Hides the machine from this program and all it starts: own network and mount
/// namespaces, empty `/run` and `/var/lib/cni`. To be called once, before any thread.
///
/// # Errors
/// When the machine does not allow it (root is needed).
pub fn hide_the_machine() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET)
        .context("make private namespaces (root is needed)")?;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>).context("make mounts private")?;
    for dir in ["/run", "/var/lib/cni"] {
        if Path::new(dir).is_dir() {
            let (tmpfs, none) = (Some("tmpfs"), None::<&str>);
            mount(tmpfs, dir, tmpfs, MsFlags::empty(), none)
                .with_context(|| format!("hide {dir}"))?;
        }
    }
    fs::create_dir(NETNS).context("make /run/netns")
}

type Job = Box<dyn FnOnce() + Send>;

/// A network namespace that plays a node: a thread that lives in it. Whatever it
/// starts is born inside.
pub struct Node {
    name: String,
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Node {
    /// Makes one, with its loopback up.
    ///
    /// # Errors
    /// When no namespace can be made.
    pub fn new(name: &str) -> Result<Self> {
        let (jobs, orders) = channel::<Job>();
        let (born, birth) = channel();
        let thread = thread::spawn(move || {
            let made = unshare(CloneFlags::CLONE_NEWNET);
            let alive = made.is_ok();
            let _ = born.send(made);
            if alive {
                orders.into_iter().for_each(|job| job());
            }
        });
        birth.recv()?.context("make the namespace of a node")?;
        let node = Self {
            name: name.to_owned(),
            jobs: Some(jobs),
            thread: Some(thread),
        };
        node.ip("link set lo up")?;
        Ok(node)
    }

    /// Runs `f` in the node, and returns what it returned.
    ///
    /// # Errors
    /// What `f` says; or when it panicked.
    pub fn run<T: Send + 'static>(
        &self,
        f: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (answer, answered) = channel();
        let job: Job = Box::new(move || {
            let _ = answer.send(f());
        });
        let jobs = self.jobs.as_ref().context("the node is gone")?;
        jobs.send(job)
            .map_err(|_| anyhow!("the node's thread is gone"))?;
        answered.recv().context("no answer from the node")?
    }

    /// Runs `ip` with these words in the node.
    ///
    /// # Errors
    /// When it fails.
    pub fn ip(&self, words: &str) -> Result<()> {
        let words = words.to_owned();
        self.run(move || {
            let args: Vec<&str> = words.split(' ').collect();
            process::output("/usr/sbin/ip", &args).map(drop)
        })
        .with_context(|| format!("on node {}", self.name))
    }

    /// Makes an empty namespace for a pod, as a runtime does before ADD.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn pod(&self, name: &str) -> Result<Pod> {
        let path = Path::new(NETNS).join(format!("{}-{name}", self.name));
        let at = path.clone();
        let made = thread::spawn(move || -> Result<()> {
            unshare(CloneFlags::CLONE_NEWNET)?;
            File::create(&at)?;
            let (own, none) = (Some("/proc/thread-self/ns/net"), None::<&str>);
            Ok(mount(own, &at, none, MsFlags::MS_BIND, none)?)
        });
        let made = made.join().map_err(|_| anyhow!("a thread panicked"))?;
        made.with_context(|| format!("make {}", path.display()))?;
        Ok(Pod { path })
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.jobs.take();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A pod's network namespace; it goes when this does.
#[derive(Debug)]
pub struct Pod {
    path: PathBuf,
}

impl Pod {
    /// What a runtime passes as `CNI_NETNS`.
    pub fn path(&self) -> String {
        self.path.display().to_string()
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        let _ = umount2(&self.path, MntFlags::MNT_DETACH);
        let _ = fs::remove_file(&self.path);
    }
}
