//! Descriptors are few: who may have how many, so that none who ask for an address take
//! what the daemon needs to answer the others.

use std::fs::File;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Plugins at once, however many descriptors there are; a node that starts all of its pods
/// has fewer.
const MOST_CONNECTIONS: usize = 4096;

/// For the daemon itself (streams, epoll, signals, listener, store) and for a pod's
/// interface while it is looked at.
const OWN: usize = 24;

/// How many descriptors may be used for what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Connections of plugins.
    pub connections: usize,
    /// Packet sockets: a lease needs one while an answer is awaited.
    pub sockets: usize,
}

impl Budget {
    /// That of a process that may have as many as it is allowed to take for itself.
    pub fn of_process() -> Self {
        let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else {
            return Self::of(1024);
        };
        let raised = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
        let limit = raised.map_or(soft, |()| hard);
        Self::of(usize::try_from(limit).unwrap_or(usize::MAX))
    }

    fn of(limit: usize) -> Self {
        let rest = limit.saturating_sub(OWN);
        let connections = (rest / 2).clamp(1, MOST_CONNECTIONS);
        Self {
            connections,
            sockets: rest.saturating_sub(connections).max(1),
        }
    }
}

/// A descriptor that is kept for a moment without any other.
#[derive(Debug)]
pub struct Spare(Option<File>);

impl Spare {
    /// Takes one.
    ///
    /// # Errors
    /// When there is none.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self(Some(File::open("/dev/null")?)))
    }

    /// Does something with the descriptor free, and takes it back; false when there is none,
    /// or it does not succeed.
    pub fn lend(&mut self, use_it: impl FnOnce() -> bool) -> bool {
        let done = self.0.take().is_some() && use_it();
        self.0 = File::open("/dev/null").ok();
        done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neither_connections_nor_sockets_take_all() {
        for (limit, connections, sockets) in [
            (0, 1, 1),
            (40, 8, 8),
            (1024, 500, 500),
            (1_048_576, 4096, 1_048_576 - OWN - 4096),
        ] {
            let budget = Budget {
                connections,
                sockets,
            };
            assert_eq!(Budget::of(limit), budget, "{limit}");
        }
    }

    #[test]
    fn a_spare_descriptor_is_there_again() {
        let mut spare = Spare::new().unwrap();
        assert!(spare.lend(|| true) && !spare.lend(|| false));
        assert!(spare.lend(|| true));
    }
}
