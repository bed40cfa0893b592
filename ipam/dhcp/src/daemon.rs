//! The daemon: one thread that serves plugins, servers, timers and signals.
//!
//! [`crate::lease`] decides about each lease. A lease costs the daemon a few hundred
//! bytes, and descriptors only while an answer is expected.

mod calls;
mod clock;
mod connection;
mod descriptors;
mod exchange;
mod journal;
mod listener;
mod reactor;
mod sockets;
mod table;

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Result, anyhow};
use nix::sys::signal::{SigSet, Signal};

use crate::flags::{Flags, HELP};
use crate::lease::{Held, Identity, Lease, Millis, Timeouts};
use crate::store::{Record, Store, directory};

use clock::{now, wall_clock};
use connection::Connection;
use descriptors::Budget;
use journal::{Journal, REJECTED};
use listener::{Listener, PidFile};
use reactor::{NoDescriptor, Reactor, Token};
use sockets::Sockets;
use table::{Entry, Table, unused_key};

/// Time between the renewals of two restored leases, in milliseconds: a server does not
/// get all of them in one moment.
const STAGGER: Millis = 5;

struct Daemon {
    timeouts: Timeouts,
    broadcast: bool,
    host_prefix: String,
    table: Table,
    last_connection: u32,
    max_connections: usize,
    io: Io,
}

/// What leases act on: plugins, packet sockets, the disk, the log.
struct Io {
    reactor: Reactor,
    connections: HashMap<u32, Connection>,
    sockets: Sockets,
    store: Store,
    journal: Journal,
}

/// `dhcp daemon`, with the arguments that follow.
pub fn main(arguments: &[String]) -> ExitCode {
    cni::process::start();
    let flags = match Flags::parse(arguments) {
        Ok(Some(flags)) => flags,
        Ok(None) => {
            // A pipe that is closed early is no failure.
            let _ = std::io::stdout().write_all(HELP.as_bytes());
            return ExitCode::SUCCESS;
        }
        Err(fault) => {
            cni::log(format_args!("dhcp daemon: {fault}; see dhcp daemon --help"));
            return ExitCode::from(2);
        }
    };
    match run(&flags) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            cni::log(format_args!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Runs until SIGINT or SIGTERM.
fn run(flags: &Flags) -> Result<()> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    // Before any thread is started: threads inherit the mask.
    signals.thread_block()?;
    let budget = Budget::of_process();
    let dir = directory(&flags.host_prefix, &flags.socket);
    let store = Store::open(&dir)?;
    let store = store.ok_or_else(|| {
        let dir = dir.display();
        anyhow!("Error getting listener: another daemon has the leases in {dir}")
    })?;
    let socket = format!("{}{}", flags.host_prefix, flags.socket);
    let listener = Listener::open(Path::new(&socket))?;
    let _pidfile = match flags.pidfile.as_str() {
        "" => None,
        path => Some(PidFile::write(path)?),
    };
    let mut daemon = Daemon {
        timeouts: flags.timeouts,
        broadcast: flags.broadcast,
        host_prefix: flags.host_prefix.clone(),
        table: Table::default(),
        last_connection: 0,
        max_connections: budget.connections,
        io: Io {
            reactor: Reactor::new(listener, &signals)?,
            connections: HashMap::new(),
            sockets: Sockets::new(budget.sockets)?,
            store,
            journal: Journal::default(),
        },
    };
    daemon.restore()?;
    daemon.serve()
}

impl Daemon {
    /// Goes on with the leases of the previous daemon.
    fn restore(&mut self) -> Result<()> {
        let (now, wall_clock) = (now(), wall_clock());
        let leases = self.io.store.load()?;
        for (path, error) in &leases.unread {
            let (path, why) = (path.display(), cni::reason(error));
            cni::log(format_args!("lease {path} is not restored: {why}"));
        }
        for (number, record) in leases.records.into_iter().enumerate() {
            let due = now + STAGGER * number as Millis;
            let Record { owner, place, .. } = record;
            let held = record.grant.as_ref().map(|grant| Held {
                terms: grant.terms.clone(),
                // A clock that was set back does not make a lease longer.
                since: now.saturating_sub(wall_clock.saturating_sub(grant.since) * 1000),
            });
            let lease = self.new_lease(record.identity).restored(held, now, due);
            let mut entry = Entry::new(owner, place, record.priority, lease);
            entry.delivered = true;
            if let Some(grant) = record.grant {
                entry.server_mac = grant.server_mac;
                entry.applied = Some(grant.terms);
            }
            self.table.insert(entry);
        }
        match self.table.len() {
            0 => {}
            1 => cni::log(format_args!("restored 1 lease")),
            count => cni::log(format_args!("restored {count} leases")),
        }
        Ok(())
    }

    fn new_lease(&self, identity: Identity) -> Lease {
        // A seed that other machines on the segment do not know.
        let seed = RandomState::new().build_hasher().finish();
        let mut lease = Lease::new(identity, self.timeouts, seed, now());
        lease.set_broadcast(self.broadcast);
        lease
    }

    fn serve(&mut self) -> Result<()> {
        loop {
            let due = [self.table.next_due(), self.io.journal.due()];
            for token in self.io.reactor.wait(due.into_iter().flatten().min())? {
                match token {
                    Token::Signal => return Ok(()),
                    Token::Listener => self.accept(),
                    Token::Connection(key) => self.on_connection(key),
                    Token::Lease(key) => self.on_packets(key),
                }
            }
            self.on_timers();
        }
    }

    fn accept(&mut self) {
        loop {
            match self.io.reactor.accept() {
                Ok(Some(stream)) if self.io.connections.len() < self.max_connections => {
                    self.connect(stream);
                }
                Ok(None) => return,
                // Closed at once: the plugin fails instead of waiting.
                Ok(Some(_)) => self.log_rejection("too many plugins at once"),
                Err(NoDescriptor) => self.log_rejection("no descriptor is left"),
            }
        }
    }

    fn log_rejection(&mut self, line: &str) {
        if self.io.journal.admits(REJECTED, now()) {
            cni::log(format_args!("{line}"));
        }
    }

    fn connect(&mut self, stream: UnixStream) {
        let Ok(connection) = Connection::new(stream) else {
            return;
        };
        let key = unused_key(&mut self.last_connection, &self.io.connections);
        // An answer that does not fit is written when the socket reports room.
        let added = self
            .io
            .reactor
            .add_edges(&connection, Token::Connection(key));
        if added.is_ok() {
            self.io.connections.insert(key, connection);
        }
    }

    fn on_connection(&mut self, key: u32) {
        let Some(connection) = self.io.connections.get_mut(&key) else {
            return;
        };
        let calls = connection.write().and_then(|()| connection.read());
        let Ok(calls) = calls else {
            return self.drop_connection(key);
        };
        for call in calls {
            self.on_call(key, call);
        }
    }

    /// The plugin is gone. If it waited for an address that is not granted yet, that is
    /// not acquired any more: the runtime has killed the plugin, and knows of no lease.
    fn drop_connection(&mut self, key: u32) {
        let closed = self.io.close_connection(key);
        let Some(awaited) = closed.and_then(|connection| connection.waits_for) else {
            return;
        };
        if let Some(entry) = self.table.get_mut(awaited) {
            entry.waiting.retain(|(waiting, _)| *waiting != key);
            if entry.waiting.is_empty() && !entry.delivered {
                entry.log(format_args!("no plugin waits for the lease any more"));
                self.forget(awaited);
            }
        }
    }
}

impl Io {
    fn close_connection(&mut self, key: u32) -> Option<Connection> {
        let connection = self.connections.remove(&key)?;
        self.reactor.remove(&connection);
        Some(connection)
    }
}
