//! The packets of leases, and what follows from them: for the pod, the disk and the
//! plugins that wait. [`crate::lease`] decides.

use std::fmt;

use anyhow::Result;
use netlink::Mac;

use super::clock::{now, wall_clock};
use super::journal::{Cause, MALFORMED, UNUSABLE};
use super::reactor::Token;
use super::table::Entry;
use super::{Daemon, Io};
use crate::client::NO_MORE_TRIES;
use crate::frame;
use crate::lease::Step;
use crate::message::Reply;
use crate::pod;
use crate::store::{Grant, Record};
use crate::terms::Terms;

/// Packets of one lease that are read before others get their turn.
const MAX_PACKETS: usize = 64;

impl Daemon {
    pub fn on_packets(&mut self, key: u32) {
        // No DHCP message is longer, although an IPv4 packet may be.
        let mut buffer = [0; 4096];
        let Some(entry) = self.table.get_mut(key) else {
            return;
        };
        // epoll reports the rest again: a flood on one lease does not delay the others.
        for _ in 0..MAX_PACKETS {
            let Some(socket) = entry.socket.as_ref().filter(|_| entry.lease.is_asking()) else {
                break;
            };
            let (packet, from) = match socket.receive(&mut buffer) {
                Ok(Some(received)) => received,
                Ok(None) => break,
                // The link is down or gone; sending the next message will show which.
                Err(_) => {
                    self.io.close_socket(entry);
                    break;
                }
            };
            let Some(message) = frame::read(packet) else {
                continue;
            };
            match Reply::read(message) {
                Ok(reply) => {
                    let steps = entry.lease.on_reply(&reply, now());
                    self.io.perform(entry, steps, Some(from));
                }
                Err(why) => {
                    let line = format_args!("ignored an answer: {why}");
                    self.io.log_rarely(entry, MALFORMED, line);
                }
            }
        }
        self.settle(key);
    }

    pub fn on_timers(&mut self) {
        let now = now();
        for line in self.io.journal.end_windows(now) {
            cni::log(format_args!("{line}"));
        }
        self.io.reactor.end_pause(now);
        // A few at a time, so that plugins and answers do not wait until a thousand pods
        // have sent a broadcast to each other.
        for _ in 0..16 {
            let Some(key) = self.table.take_due(now) else {
                return;
            };
            if let Some(entry) = self.table.get_mut(key) {
                let steps = entry.lease.on_time(now);
                self.io.perform(entry, steps, None);
            }
            self.settle(key);
        }
    }

    /// Does what follows from the new state of a lease.
    pub fn settle(&mut self, key: u32) {
        let Some(entry) = self.table.get_mut(key) else {
            return;
        };
        if entry.is_over() {
            return self.forget(key);
        }
        if !entry.lease.is_asking() {
            self.io.close_socket(entry);
        }
        self.io.answer_waiting(entry);
        self.table.schedule(key);
    }
}

impl Io {
    /// Performs what a lease has decided. `from` is the hardware address that the answer
    /// came from.
    fn perform(&mut self, entry: &mut Entry, steps: Vec<Step>, from: Option<Mac>) {
        for step in steps {
            match step {
                Step::Send { .. } => self.send(entry, &step),
                Step::Hold(terms) => self.hold(entry, &terms, from),
                Step::Lose(why) => {
                    entry.log(format_args!("{why}; acquiring another address"));
                    entry.withdraw();
                    let saved = self.save(entry);
                    entry.log_failure("save the lease", saved);
                }
                Step::GiveUp => {
                    self.refuse_waiting(entry, NO_MORE_TRIES);
                    entry.log(format_args!("{NO_MORE_TRIES}"));
                    // For a pod that had an address, the daemon goes on trying.
                    entry.failed = !entry.delivered;
                }
                Step::Ignore(what) => {
                    self.log_rarely(entry, UNUSABLE, format_args!("{what}"));
                }
            }
        }
    }

    fn log_rarely(&mut self, entry: &Entry, cause: Cause, line: fmt::Arguments<'_>) {
        if self.journal.admits(cause, now()) {
            entry.log(line);
        }
    }

    fn send(&mut self, entry: &mut Entry, step: &Step) {
        match self.try_to_send(entry, step) {
            Ok(true) => {}
            Ok(false) => {
                entry.log(format_args!("the pod's interface is gone"));
                entry.lease.suspend();
                self.refuse_waiting(entry, "the pod's interface is gone");
            }
            // The link may be down for now, or a queue full. It counts as a lost packet.
            Err(error) => {
                self.close_socket(entry);
                entry.log(format_args!("{error:#}"));
            }
        }
    }

    /// Sends on the pod's interface, opened if need be; false when it is gone.
    pub fn try_to_send(&mut self, entry: &mut Entry, step: &Step) -> Result<bool> {
        let xid = entry.lease.xid();
        let socket = match &mut entry.socket {
            Some(socket) => socket,
            none => {
                let Some(interface) = pod::reopen(&entry.place, &entry.owner.ifname)? else {
                    return Ok(false);
                };
                // Another plugin of the chain may have changed it since ADD.
                entry.place.mac = interface.mac.0;
                entry.lease.set_mac(interface.mac);
                let socket = self.sockets.open(&interface.netns, &interface.link, xid)?;
                let socket = none.insert(socket);
                self.reactor.add(&*socket, Token::Lease(entry.key))?;
                socket
            }
        };
        socket.set_xid(xid)?;
        let server = Some(Mac(entry.server_mac)).filter(|mac| !mac.is_zero());
        pod::send(socket, step, Mac(entry.place.mac), server)?;
        Ok(true)
    }

    pub fn close_socket(&mut self, entry: &mut Entry) {
        if let Some(socket) = entry.socket.take() {
            self.reactor.remove(&socket);
            self.sockets.close(socket);
        }
    }

    fn hold(&mut self, entry: &mut Entry, terms: &Terms, from: Option<Mac>) {
        entry.server_mac = from.map_or(entry.server_mac, |mac| mac.0);
        let (address, server, lease) = (terms.address, terms.server, terms.lease);
        let renewed = entry.delivered && entry.has_applied(terms);
        let done = if renewed { "renewed" } else { "acquired" };
        entry.log(format_args!(
            "lease {done}: {address} from {server} for {lease} s"
        ));
        if entry.delivered {
            entry.apply(terms);
        }
        match self.save(entry) {
            Err(error) if !entry.delivered => self.refuse_unsaved(entry, error),
            saved => entry.log_failure("save the lease", saved),
        }
    }

    /// Lets ADD fail, and releases a lease that is not on disk: after a restart, the daemon would not know
    /// it, and would not renew it.
    fn refuse_unsaved(&mut self, entry: &mut Entry, error: anyhow::Error) {
        entry.log(format_args!("failed to save the lease: {error:#}"));
        self.answer_all(entry, &Err(error));
        self.give_back(entry);
        entry.failed = true;
    }

    /// Saves the lease as it is now.
    fn save(&mut self, entry: &Entry) -> Result<()> {
        let grant = entry.lease.held().map(|held| Grant {
            terms: held.terms.clone(),
            since: wall_clock().saturating_sub(now().saturating_sub(held.since) / 1000),
            server_mac: entry.server_mac,
        });
        let record = Record {
            owner: entry.owner.clone(),
            place: entry.place.clone(),
            identity: entry.lease.identity().clone(),
            priority: entry.priority,
            grant,
        };
        self.store.save(&record)
    }
}
