//! Divides the process's descriptors among plugins and leases, so that many requests at
//! once leave enough to serve the others.

use std::fs::File;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Connections at once, however many descriptors there are: more than a node needs that
/// starts all of its pods.
const MOST_CONNECTIONS: usize = 4096;

/// Descriptors of the daemon itself (streams, epoll, signals, listener, store), and for a
/// pod's namespace and netlink socket.
const RESERVED: usize = 24;

/// Limits that derive from RLIMIT_NOFILE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Connections of plugins.
    pub connections: usize,
    /// Packet sockets: a lease has one while an answer is expected.
    pub sockets: usize,
}

impl Budget {
    /// Raises the soft limit to the hard limit, and divides it.
    pub fn of_process() -> Self {
        let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else {
            return Self::of(1024);
        };
        let raised = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
        let limit = raised.map_or(soft, |()| hard);
        Self::of(usize::try_from(limit).unwrap_or(usize::MAX))
    }

    fn of(limit: usize) -> Self {
        let rest = limit.saturating_sub(RESERVED);
        let connections = (rest / 2).clamp(1, MOST_CONNECTIONS);
        Self {
            connections,
            sockets: rest.saturating_sub(connections).max(1),
        }
    }
}

/// A descriptor to give up when no other is left.
#[derive(Debug)]
pub struct Spare(Option<File>);

impl Spare {
    /// # Errors
    /// When no descriptor is left.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self(Some(File::open("/dev/null")?)))
    }

    /// Closes the descriptor, calls `use_it`, and opens it again. False without a
    /// descriptor, and when `use_it` returns false.
    pub fn lend(&mut self, use_it: impl FnOnce() -> bool) -> bool {
        let done = self.0.take().is_some() && use_it();
        self.0 = File::open("/dev/null").ok();
        done
    }
}
