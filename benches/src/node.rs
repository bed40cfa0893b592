//! Private nodes and pods: network namespaces of this run, without the machine's own interfaces.
//!
//! Each side has a node of its own, so that the rules of one (five thousand iptables chains, for
//! example) do not slow the other.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context, Error, Result, anyhow};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use sandbox::{Worker, namespaces};

use crate::process;

/// The directory of network namespaces, as of runtimes.
const NETNS: &str = "/run/netns";

/// A network namespace that plays a node: a thread that lives in it. All processes that it starts
/// run inside.
pub struct Node {
    name: String,
    worker: Worker,
}

impl Node {
    /// Makes one, with its loopback up.
    ///
    /// # Errors
    /// When no namespace can be made.
    pub fn new(name: &str) -> Result<Self> {
        let (worker, ()) = Worker::new(namespaces::enter_network).map_err(Error::msg)?;
        let node = Self {
            name: name.to_owned(),
            worker,
        };
        node.ip("link set lo up")?;
        Ok(node)
    }

    /// Runs `f` in the node, and returns what it returned.
    ///
    /// # Errors
    /// As `f`.
    pub fn run<T: Send + 'static>(
        &self,
        f: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.worker.inside(f)
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
            namespaces::enter_network().map_err(Error::msg)?;
            File::create(&at)?;
            let (own, none) = (Some("/proc/thread-self/ns/net"), None::<&str>);
            Ok(mount(own, &at, none, MsFlags::MS_BIND, none)?)
        });
        let made = made.join().map_err(|_| anyhow!("a thread panicked"))?;
        made.with_context(|| format!("make {}", path.display()))?;
        Ok(Pod { path })
    }
}

/// A pod's network namespace; it is deleted when this is dropped.
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
