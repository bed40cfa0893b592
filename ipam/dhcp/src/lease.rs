//! The state machine of one lease: which message is sent when, and what an answer
//! changes. It has no clock and makes no system calls: times and answers go in, steps
//! come out. Source: RFC 2131, section 4.4 and figure 5.

use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;
use netlink::Mac;
use serde::{Deserialize, Serialize};

use crate::message::{DhcpMessageType, Reply, Request, option};
use crate::terms::{FOREVER, Fault, Terms};

/// A point in time, in milliseconds of a monotonic clock.
pub type Millis = u64;

/// The options of a client's messages, and those of a server's that it ignores.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Options of every message: the client identifier, and those of the configuration.
    pub options: Vec<(u8, Vec<u8>)>,
    /// The options that the server is asked for.
    pub requested: Vec<u8>,
    /// What is ignored in answers. In the files of leases it has been `unheard` ever since.
    #[serde(default, rename = "unheard")]
    pub suppressed: Suppressed,
}

/// What is ignored in a server's answers, at ADD and at each renewal.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Suppressed {
    /// Options. Without the router there is no default route, whichever option has it.
    pub options: Vec<u8>,
    /// Destinations that the configuration has its own route to.
    pub destinations: Vec<Ipv4Network>,
}

impl Suppressed {
    /// The terms of an answer, without what is suppressed.
    fn read(&self, reply: &Reply) -> Result<Terms, Fault> {
        let mut terms = Terms::read(&reply.without(&self.options))?;
        if self.options.contains(&option::ROUTER) {
            terms.remove_router();
        }
        terms
            .routes
            .retain(|hop| !self.destinations.contains(&hop.to));
        Ok(terms)
    }
}

/// A client's timeouts, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// How long a server that has offered an address may take to grant it.
    pub grant: Millis,
    /// The longest pause between two messages.
    pub resend: Millis,
    /// How long an ADD waits for an address.
    pub acquire: Millis,
}

/// What the daemon has to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Send a message from its `address`.
    Send {
        /// The server; `None` for a broadcast.
        to: Option<Ipv4Addr>,
        /// The message, in which the sender sets the pod's hardware address.
        message: Box<Request>,
    },
    /// The lease is held on these terms from now on. Replace what the pod has of earlier
    /// ones.
    Hold(Box<Terms>),
    /// The address must not be used any longer, for this reason.
    Lose(&'static str),
    /// No server has granted an address in time: fail the ADDs that wait.
    GiveUp,
    /// An answer was ignored, for this reason.
    Ignore(String),
}

/// The states of RFC 2131, figure 5.
#[derive(Clone, Debug, PartialEq)]
enum State {
    /// Sends DHCPDISCOVER: INIT, SELECTING.
    Selecting,
    /// Requests the address that was offered.
    Requesting { offer: Box<Terms>, since: Millis },
    /// Requests the address that the pod had before: INIT-REBOOT, REBOOTING.
    Rebooting { since: Millis },
    /// Has an address.
    Bound,
    /// Asks the server that granted the lease to renew it.
    Renewing,
    /// Asks any server to renew it.
    Rebinding,
    /// Ours: sends nothing, because the pod's interface is gone.
    Suspended,
}

/// A lease that is held.
#[derive(Clone, Debug, PartialEq)]
pub struct Held {
    /// What was granted.
    pub terms: Terms,
    /// When the message that was granted had been sent: lease times count from there.
    pub since: Millis,
}

impl Held {
    fn after(&self, seconds: u32) -> Millis {
        match self.terms.lease {
            FOREVER => Millis::MAX,
            _ => self.since + Millis::from(seconds) * 1000,
        }
    }

    /// When it ends.
    pub fn expires(&self) -> Millis {
        self.after(self.terms.lease)
    }

    fn renews(&self) -> Millis {
        self.after(self.terms.renew)
    }

    fn rebinds(&self) -> Millis {
        self.after(self.terms.rebind)
    }
}

/// One lease.
#[derive(Clone, Debug)]
pub struct Lease {
    identity: Identity,
    timeouts: Timeouts,
    mac: Mac,
    broadcast: bool,
    state: State,
    /// The last grant, until it expires.
    held: Option<Held>,
    /// The address to ask for in INIT and INIT-REBOOT.
    preferred: Option<Ipv4Addr>,
    xid: u32,
    /// When the exchange began, and the last message was sent.
    began: Millis,
    sent: Millis,
    tries: u32,
    /// When the ADDs that wait fail.
    deadline: Option<Millis>,
    due: Millis,
    random: Random,
}

/// Random numbers (xorshift64*). They need not be secure: a neighbour that guesses one
/// gains nothing that it does not see on the segment anyway.
#[derive(Clone, Debug)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// At least 0 and less than `below`.
    fn below(&mut self, below: u64) -> u64 {
        self.next().checked_rem(below).unwrap_or_default()
    }
}

impl Lease {
    /// Acquires a lease from now on, for an ADD that waits.
    pub fn new(identity: Identity, timeouts: Timeouts, seed: u64, now: Millis) -> Self {
        let mut lease = Self {
            identity,
            timeouts,
            mac: Mac([0; 6]),
            broadcast: false,
            state: State::Selecting,
            held: None,
            preferred: None,
            xid: 0,
            began: now,
            sent: now,
            tries: 0,
            deadline: None,
            due: now,
            random: Random(seed | 1),
        };
        lease.start_deadline(now);
        lease.begin(State::Selecting, now);
        lease
    }

    /// Goes on with a lease from before a restart. From `due` on it asks the lease's server
    /// for a renewal, without a broadcast that every pod of the segment would receive. If
    /// the lease has expired, it requests the same address.
    pub fn restored(mut self, held: Option<Held>, now: Millis, due: Millis) -> Self {
        self.deadline = None;
        self.preferred = held.as_ref().map(|held| held.terms.address.ip());
        self.held = held.filter(|held| held.expires() > now);
        match (&self.held, self.preferred) {
            (Some(_), _) => self.begin(State::Renewing, due),
            (None, Some(_)) => self.begin(State::Rebooting { since: due }, due),
            (None, None) => self.begin(State::Selecting, due),
        }
        self
    }

    /// The client's options.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Sets the hardware address that answers must have.
    pub fn set_mac(&mut self, mac: Mac) {
        self.mac = mac;
    }

    /// Sets whether servers shall broadcast their answers.
    pub fn set_broadcast(&mut self, broadcast: bool) {
        self.broadcast = broadcast;
    }

    /// The transaction ID that answers must have.
    pub fn xid(&self) -> u32 {
        self.xid
    }

    /// When to call [`Lease::on_time`].
    pub fn due(&self) -> Millis {
        self.due
    }

    /// The grant, unless it has expired.
    pub fn held(&self) -> Option<&Held> {
        self.held.as_ref()
    }

    /// Whether an answer is expected.
    pub fn is_asking(&self) -> bool {
        !matches!(self.state, State::Bound | State::Suspended)
    }

    /// Whether it sends nothing, because the pod's interface is gone.
    pub fn is_suspended(&self) -> bool {
        self.state == State::Suspended
    }

    /// Limits how long the ADDs that wait from now on may take.
    pub fn start_deadline(&mut self, now: Millis) {
        let deadline = now + self.timeouts.acquire;
        self.deadline = Some(deadline);
        self.due = self.due.min(deadline);
    }

    /// Lets the lease expire, because the pod's interface is gone.
    pub fn suspend(&mut self) {
        self.state = State::Suspended;
        self.due = self.held.as_ref().map_or(0, Held::expires);
    }

    /// Requests the address again, because the pod has another interface.
    pub fn restart(&mut self, identity: Identity, now: Millis) {
        self.identity = identity;
        self.preferred = self.held.as_ref().map(|held| held.terms.address.ip());
        self.start_deadline(now);
        match self.preferred {
            Some(_) => self.begin(State::Rebooting { since: now }, now),
            None => self.begin(State::Selecting, now),
        }
    }

    fn begin(&mut self, state: State, now: Millis) {
        self.state = state;
        self.xid = self.random.next() as u32;
        self.began = now;
        self.tries = 0;
        self.due = now;
    }

    /// Acts on the passing of time; to be called at [`Lease::due`].
    pub fn on_time(&mut self, now: Millis) -> Vec<Step> {
        let mut steps = Vec::new();
        if self.held.as_ref().is_some_and(|held| now >= held.expires()) {
            self.held = None;
            if self.state != State::Suspended {
                steps.push(Step::Lose("the lease has expired"));
                self.begin(State::Selecting, now);
            }
        }
        if self.deadline.is_some_and(|end| now >= end) && self.held.is_none() {
            self.deadline = None;
            steps.push(Step::GiveUp);
            return steps;
        }
        self.change_state(now);
        steps.extend(self.ask(now));
        steps
    }

    /// The transitions that need no answer.
    fn change_state(&mut self, now: Millis) {
        match &self.state {
            State::Requesting { since, .. } if now >= since + self.timeouts.grant => {
                self.begin(State::Selecting, now);
            }
            State::Rebooting { since } if now >= since + self.timeouts.grant => {
                // Without an answer the old grant stays valid (RFC 2131, section 3.2).
                match self.held {
                    Some(_) => self.state = State::Bound,
                    None => self.begin(State::Selecting, now),
                }
            }
            _ => {}
        }
        let Some(held) = &self.held else { return };
        let (renews, rebinds) = (held.renews(), held.rebinds());
        match self.state {
            State::Bound | State::Renewing if now >= rebinds => {
                self.begin(State::Rebinding, now);
            }
            State::Bound if now >= renews => self.begin(State::Renewing, now),
            State::Bound => self.due = renews,
            _ => {}
        }
    }

    /// The message of the current state; sets when the next is due.
    fn ask(&mut self, now: Millis) -> Option<Step> {
        if !self.is_asking() {
            return None;
        }
        self.due = now.saturating_add(self.pause(now));
        for end in [self.deadline, self.held.as_ref().map(Held::expires)] {
            self.due = self.due.min(end.unwrap_or(Millis::MAX));
        }
        self.tries = self.tries.saturating_add(1);
        self.sent = now;
        // RFC 2131, tables 4 and 5: the address is in `ciaddr` or in option 50.
        let requested = |ip: Ipv4Addr| (option::REQUESTED_ADDRESS, ip.octets().to_vec());
        let mut kind = DhcpMessageType::Request;
        let (mut to, mut address) = (None, Ipv4Addr::UNSPECIFIED);
        let mut options = Vec::new();
        match &self.state {
            State::Selecting => {
                kind = DhcpMessageType::Discover;
                options.extend(self.preferred.map(requested));
            }
            State::Requesting { offer, .. } => {
                options.push(requested(offer.address.ip()));
                let server = offer.server.octets().to_vec();
                options.push((option::SERVER_IDENTIFIER, server));
            }
            State::Rebooting { .. } => options.extend(self.preferred.map(requested)),
            State::Renewing | State::Rebinding | State::Bound | State::Suspended => {
                let held = self.held.as_ref()?;
                address = held.terms.address.ip();
                if self.state == State::Renewing {
                    to = Some(held.terms.server);
                }
            }
        }
        let seconds = now.saturating_sub(self.began) / 1000;
        options.extend(self.identity.options.iter().cloned());
        // The payload of an Ethernet frame without the IP header.
        let max_size = 1472_u16.to_be_bytes().to_vec();
        options.push((option::MAXIMUM_MESSAGE_SIZE, max_size));
        let requested = &self.identity.requested;
        if !requested.is_empty() {
            options.push((option::PARAMETER_REQUEST_LIST, requested.clone()));
        }
        let message = Box::new(Request {
            kind,
            xid: self.xid,
            seconds: seconds.try_into().unwrap_or(u16::MAX),
            address,
            mac: self.mac,
            broadcast: self.broadcast && address.is_unspecified(),
            options,
        });
        Some(Step::Send { to, message })
    }

    /// How long to wait for an answer.
    fn pause(&mut self, now: Millis) -> Millis {
        let end = match (&self.state, &self.held) {
            (State::Renewing, Some(held)) => held.rebinds(),
            (State::Rebinding, Some(held)) => held.expires(),
            _ => return self.backoff(),
        };
        // RFC 2131, section 4.4.5: half of the remaining time. But a packet may just be lost,
        // as when all pods of a node ask a server at once, so a few quick tries come first.
        let rest = end.saturating_sub(now);
        let quick = match self.tries {
            tries @ 0..3 => (2000 << tries) + self.random.below(1000),
            _ => Millis::MAX,
        };
        (rest / 2).max(4000).min(quick).min(rest.max(1))
    }

    /// As the Go client: a few quick tries, then twice as long each time; a second more or
    /// less, so that pods that were started together do not ask together.
    fn backoff(&mut self) -> Millis {
        let base = match self.tries {
            0 => return 500 + self.random.below(1000),
            1..4 => 2000,
            tries => 4000_u64 << (tries - 4).min(20),
        };
        base.min(self.timeouts.resend) + self.random.below(2000) - 1000_u64.min(base / 2)
    }

    /// The message that gives the lease back, if one is held. The lease ends with it.
    pub fn release(&mut self) -> Option<Step> {
        let terms = self.held.take()?.terms;
        self.xid = self.random.next() as u32;
        Some(release(&self.identity, &terms, self.xid))
    }

    /// Acts on an answer of a server.
    pub fn on_reply(&mut self, reply: &Reply, now: Millis) -> Vec<Step> {
        if !self.is_asking() || reply.xid != self.xid || reply.mac != self.mac {
            return Vec::new();
        }
        let step = match (&self.state, reply.kind) {
            (State::Selecting, DhcpMessageType::Offer) => return self.on_offer(reply, now),
            (State::Selecting, _) | (_, DhcpMessageType::Offer) => return Vec::new(),
            (_, DhcpMessageType::Ack) => self.on_ack(reply),
            _ => return self.on_nak(reply, now),
        };
        match step {
            Ok(terms) => {
                self.held = Some(Held {
                    terms: terms.clone(),
                    since: self.sent,
                });
                self.deadline = None;
                self.preferred = Some(terms.address.ip());
                self.state = State::Bound;
                self.change_state(now);
                vec![Step::Hold(Box::new(terms))]
            }
            Err(why) => vec![Step::Ignore(why)],
        }
    }

    fn on_offer(&mut self, reply: &Reply, now: Millis) -> Vec<Step> {
        match self.identity.suppressed.read(reply) {
            Ok(offer) => {
                // The exchange keeps its transaction ID.
                self.state = State::Requesting {
                    offer: Box::new(offer),
                    since: now,
                };
                self.tries = 0;
                self.ask(now).into_iter().collect()
            }
            Err(fault) => vec![Step::Ignore(format!("offer of {}: {fault}", reply.address))],
        }
    }

    /// The terms of an acknowledgement, if it grants what was requested.
    fn on_ack(&self, reply: &Reply) -> Result<Terms, String> {
        let terms = self
            .identity
            .suppressed
            .read(reply)
            .map_err(|fault| format!("grant of {}: {fault}", reply.address))?;
        let requested = match &self.state {
            State::Requesting { offer, .. } => Some((offer.address.ip(), Some(offer.server))),
            State::Rebooting { .. } => self.preferred.map(|address| (address, None)),
            // A server may move the pod to another address when it renews.
            _ => None,
        };
        let other = requested.is_some_and(|(address, server)| {
            address != terms.address.ip() || server.is_some_and(|server| server != terms.server)
        });
        if other {
            let (address, server) = (terms.address.ip(), terms.server);
            return Err(format!("grant of {address} by {server}: not requested"));
        }
        Ok(terms)
    }

    fn on_nak(&mut self, reply: &Reply, now: Millis) -> Vec<Step> {
        if let State::Requesting { offer, .. } = &self.state
            && reply.server() != Some(offer.server)
        {
            return Vec::new();
        }
        // After a pause: a server that offers what it then refuses would keep both busy.
        let requesting = matches!(self.state, State::Requesting { .. });
        let lost = self.held.take().is_some();
        self.preferred = None;
        self.begin(State::Selecting, now);
        if requesting {
            self.due = now + 1000 + self.random.below(1000);
        }
        vec![if lost {
            Step::Lose("the server refuses the address")
        } else {
            Step::Ignore(format!("refused: {}", reply.reason()))
        }]
    }
}

/// The message that gives a lease back to its server, from the pod's address.
pub fn release(identity: &Identity, terms: &Terms, xid: u32) -> Step {
    let server = terms.server.octets().to_vec();
    let mut options = vec![(option::SERVER_IDENTIFIER, server)];
    // Of the client's own options, only the identifier is allowed (RFC 2131, table 5).
    let own = identity.options.iter();
    options.extend(
        own.filter(|(kind, _)| *kind == option::CLIENT_IDENTIFIER)
            .cloned(),
    );
    let message = Box::new(Request {
        kind: DhcpMessageType::Release,
        xid,
        seconds: 0,
        address: terms.address.ip(),
        mac: Mac([0; 6]),
        broadcast: false,
        options,
    });
    Step::Send {
        to: Some(terms.server),
        message,
    }
}

#[cfg(test)]
mod tests;
