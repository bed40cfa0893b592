//! The packets of leases, and what follows from them: for the pod, the disk and the
//! plugins that wait. [`crate::lease`] decides.

use anyhow::Result;
use netlink::Mac;

use super::Daemon;
use super::clock::{now, wall_clock};
use super::journal::Cause;
use super::reactor::Token;
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
        // epoll reports the rest again: a flood on one lease does not delay the others.
        for _ in 0..MAX_PACKETS {
            let Some(entry) = self.table.get_mut(key) else {
                return;
            };
            let Some(socket) = &entry.socket else { return };
            let (length, from) = match socket.receive(&mut buffer) {
                Ok(Some(received)) => received,
                Ok(None) => return,
                // The link is down or gone; sending the next message will show which.
                Err(_) => return self.close_socket(key),
            };
            let Some(message) = buffer.get(..length).and_then(frame::read) else {
                continue;
            };
            match Reply::read(message) {
                Ok(reply) => {
                    let steps = entry.lease.on_reply(&reply, now());
                    self.perform(key, steps, Some(from));
                }
                Err(error) => {
                    if self.journal.admits(Cause::Malformed, now()) {
                        entry.log(format_args!("ignored an answer: {error}"));
                    }
                }
            }
        }
    }

    pub fn on_timers(&mut self) {
        let now = now();
        for line in self.journal.end_windows(now) {
            cni::log(format_args!("{line}"));
        }
        self.reactor.end_pause(now);
        // A few at a time, so that plugins and answers do not wait until a thousand pods
        // have sent a broadcast to each other.
        for _ in 0..16 {
            let Some(key) = self.table.take_due(now) else {
                return;
            };
            if let Some(entry) = self.table.get_mut(key) {
                let steps = entry.lease.on_time(now);
                self.perform(key, steps, None);
            }
        }
    }

    /// Performs what a lease has decided. `from` is the hardware address that the answer
    /// came from.
    fn perform(&mut self, key: u32, steps: Vec<Step>, from: Option<Mac>) {
        for step in steps {
            match step {
                Step::Send { .. } => self.send(key, &step),
                Step::Hold(terms) => self.hold(key, &terms, from),
                Step::Lose(why) => self.lose(key, why),
                Step::GiveUp => self.give_up(key),
                Step::Ignore(what) => {
                    if let Some(entry) = self.table.get(key)
                        && self.journal.admits(Cause::Unusable, now())
                    {
                        entry.log(format_args!("{what}"));
                    }
                }
            }
        }
        let Some(entry) = self.table.get(key) else {
            return;
        };
        if entry.lease.is_suspended() && entry.lease.held().is_none() {
            // The pod is gone, and its lease has ended.
            return self.forget(key);
        }
        if !entry.lease.is_asking() {
            self.close_socket(key);
        }
        self.answer_waiting(key);
        self.table.schedule(key);
    }

    fn send(&mut self, key: u32, step: &Step) {
        match self.try_to_send(key, step) {
            Ok(true) => {}
            Ok(false) => {
                let Some(entry) = self.table.get_mut(key) else {
                    return;
                };
                entry.log(format_args!("the pod's interface is gone"));
                entry.lease.suspend();
                self.refuse_waiting(key, "the pod's interface is gone");
            }
            // The link may be down for now, or a queue full. It counts as a lost packet.
            Err(error) => {
                self.close_socket(key);
                if let Some(entry) = self.table.get(key) {
                    entry.log(format_args!("{error:#}"));
                }
            }
        }
    }

    /// Sends on the pod's interface, opened if need be; false when it is gone.
    pub fn try_to_send(&mut self, key: u32, step: &Step) -> Result<bool> {
        let Some(entry) = self.table.get_mut(key) else {
            return Ok(true);
        };
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
                let index = interface.link.index;
                let socket = self.sockets.open(&interface.netns, index, xid)?;
                let socket = none.insert(socket);
                self.reactor.add(&*socket, Token::Lease(key))?;
                socket
            }
        };
        socket.set_xid(xid)?;
        let server = Some(Mac(entry.server_mac)).filter(|mac| !mac.is_zero());
        pod::send(socket, step, Mac(entry.place.mac), server)?;
        Ok(true)
    }

    pub fn close_socket(&mut self, key: u32) {
        let entry = self.table.get_mut(key);
        if let Some(socket) = entry.and_then(|entry| entry.socket.take()) {
            self.reactor.remove(&socket);
            self.sockets.close(socket);
        }
    }

    fn hold(&mut self, key: u32, terms: &Terms, from: Option<Mac>) {
        let Some(entry) = self.table.get_mut(key) else {
            return;
        };
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
        self.save(key);
    }

    fn lose(&mut self, key: u32, why: &str) {
        if let Some(entry) = self.table.get_mut(key) {
            entry.log(format_args!("{why}; acquiring another address"));
            entry.withdraw();
        }
        self.save(key);
    }

    fn give_up(&mut self, key: u32) {
        self.refuse_waiting(key, NO_MORE_TRIES);
        let Some(entry) = self.table.get(key) else {
            return;
        };
        entry.log(format_args!("{NO_MORE_TRIES}"));
        // For a pod that had an address, the daemon goes on trying.
        if !entry.delivered {
            self.forget(key);
        }
    }

    fn save(&mut self, key: u32) {
        let Some(entry) = self.table.get(key) else {
            return;
        };
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
        entry.log_failure("save the lease", self.store.save(&record));
    }
}
