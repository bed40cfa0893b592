//! The life of one lease: what is sent, when, and what an answer changes. No
//! system calls, no clock: times come in, and what is to be done goes out.
//! Source: RFC 2131, section 4.4 and figure 5.

use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;
use netlink::Mac;
use serde::{Deserialize, Serialize};

use crate::message::{Answer, Kind, Reply, Request, option};
use crate::terms::{FOREVER, Fault, Terms};

/// A moment, in milliseconds of a clock that never goes back.
pub type Millis = u64;

/// What a client says of itself in every message.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Options of every message: the client identifier, and what the
    /// configuration provides.
    pub options: Vec<(u8, Vec<u8>)>,
    /// The options that the server is asked for.
    pub requested: Vec<u8>,
    /// What it says and is not to be heard.
    #[serde(default)]
    pub unheard: Unheard,
}

/// What of a server's answer is left out, at ADD and whenever the lease is renewed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unheard {
    /// Options; without the router there is no default route, whichever option has it.
    pub options: Vec<u8>,
    /// Destinations that the configuration has a route of its own to.
    pub destinations: Vec<Ipv4Network>,
}

impl Unheard {
    /// Reads an answer.
    fn read(&self, reply: &Reply) -> Result<Terms, Fault> {
        let mut terms = Terms::read(&reply.without(&self.options))?;
        if self.options.contains(&option::ROUTER) {
            terms.leave_out_router();
        }
        terms
            .routes
            .retain(|hop| !self.destinations.contains(&hop.to));
        Ok(terms)
    }
}

/// How patient a client is; all in milliseconds.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// How long a server that has offered an address may take to grant it.
    pub answer: Millis,
    /// The longest pause between two messages.
    pub pause: Millis,
    /// How long an address is sought before who waits for it is told that there is none.
    pub whole: Millis,
}

/// Where to send a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// To every server on the segment.
    Everyone,
    /// To the server at this address.
    Server(Ipv4Addr),
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Send this message; from the pod's address if it has one.
    Send {
        /// To whom.
        to: Destination,
        /// The pod's address, or 0.0.0.0.
        from: Ipv4Addr,
        /// The message, but for the hardware address of the pod.
        message: Box<Request>,
    },
    /// The lease is held on these terms from now on. Those before, if the pod has
    /// them, are to be replaced.
    Hold(Box<Terms>),
    /// The address must not be used any longer.
    Lose(&'static str),
    /// Nobody has granted an address for as long as anybody would wait.
    GiveUp,
    /// The answer was not used, and why.
    Ignore(String),
}

/// Where in figure 5 of RFC 2131 a lease is.
#[derive(Clone, Debug, PartialEq)]
enum State {
    /// Asking who has an address: INIT, SELECTING.
    Selecting,
    /// Asking for the address that was offered.
    Requesting { offer: Box<Terms>, since: Millis },
    /// Asking whether the address that a pod had before it was made anew is still its: INIT-REBOOT.
    Rebooting { since: Millis },
    /// Having an address.
    Bound,
    /// Asking the server that granted it.
    Renewing,
    /// Asking any server.
    Rebinding,
    /// Not asking: the pod's interface is not there.
    Dormant,
}

/// A lease that is held.
#[derive(Clone, Debug, PartialEq)]
pub struct Held {
    /// On which terms.
    pub terms: Terms,
    /// Since when: the moment at which the message that was granted had been sent.
    pub since: Millis,
}

impl Held {
    fn after(&self, seconds: u32) -> Millis {
        match seconds {
            FOREVER => Millis::MAX,
            seconds => self.since + Millis::from(seconds) * 1000,
        }
    }

    /// When it ends.
    pub fn expires(&self) -> Millis {
        self.after(self.terms.lease)
    }

    fn renews(&self) -> Millis {
        match self.terms.lease {
            FOREVER => Millis::MAX,
            _ => self.after(self.terms.renew),
        }
    }

    fn rebinds(&self) -> Millis {
        match self.terms.lease {
            FOREVER => Millis::MAX,
            _ => self.after(self.terms.rebind),
        }
    }
}

/// One lease.
#[derive(Clone, Debug)]
pub struct Lease {
    identity: Identity,
    patience: Patience,
    mac: Mac,
    broadcast: bool,
    state: State,
    /// What was granted last, while it lasts.
    held: Option<Held>,
    /// The address to ask for first.
    wish: Option<Ipv4Addr>,
    xid: u32,
    /// When the exchange began, and the last message was sent.
    began: Millis,
    sent: Millis,
    tries: u32,
    give_up: Option<Millis>,
    due: Millis,
    dice: Dice,
}

/// Random numbers: what a neighbour could guess here is of no use to him beyond
/// what the segment gives him anyway (xorshift64*).
#[derive(Clone, Debug)]
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// From 0 to `below`, which is left out.
    fn below(&mut self, below: u64) -> u64 {
        self.roll().checked_rem(below).unwrap_or_default()
    }
}

impl Lease {
    /// A lease that is sought from now on, with somebody waiting for it.
    pub fn new(identity: Identity, patience: Patience, seed: u64, now: Millis) -> Self {
        let mut lease = Self {
            identity,
            patience,
            mac: Mac([0; 6]),
            broadcast: false,
            state: State::Selecting,
            held: None,
            wish: None,
            xid: 0,
            began: now,
            sent: now,
            tries: 0,
            give_up: None,
            due: now,
            dice: Dice(seed | 1),
        };
        lease.await_grant(now);
        lease.begin(State::Selecting, now);
        lease
    }

    /// A lease from before a restart, which may have ended by now. From `due` on
    /// its server is asked to renew it: without a broadcast, which every pod of the
    /// segment would have to look at. One that has ended is asked for by the address
    /// that it had.
    pub fn remembered(mut self, held: Option<Held>, now: Millis, due: Millis) -> Self {
        self.give_up = None;
        self.wish = held.as_ref().map(|held| held.terms.address.ip());
        self.held = held.filter(|held| held.expires() > now);
        match (&self.held, self.wish) {
            (Some(_), _) => self.begin(State::Renewing, due),
            (None, Some(_)) => self.begin(State::Rebooting { since: due }, due),
            (None, None) => self.begin(State::Selecting, due),
        }
        self
    }

    /// What the client says of itself.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The hardware address that messages are about.
    pub fn set_mac(&mut self, mac: Mac) {
        self.mac = mac;
    }

    /// Whether answers have to be broadcast.
    pub fn set_broadcast(&mut self, broadcast: bool) {
        self.broadcast = broadcast;
    }

    /// The number that answers have to repeat.
    pub fn xid(&self) -> u32 {
        self.xid
    }

    /// When [`Lease::on_time`] is to be called.
    pub fn due(&self) -> Millis {
        self.due
    }

    /// What is held now, and not to be doubted.
    pub fn held(&self) -> Option<&Held> {
        self.held.as_ref()
    }

    /// Whether answers are awaited.
    pub fn is_asking(&self) -> bool {
        !matches!(self.state, State::Bound | State::Dormant)
    }

    /// Whether nothing is done about it, because the pod's interface is gone.
    pub fn is_dormant(&self) -> bool {
        self.state == State::Dormant
    }

    /// Somebody waits from now on.
    pub fn await_grant(&mut self, now: Millis) {
        self.give_up = Some(now + self.patience.whole);
        self.due = self.due.min(now + self.patience.whole);
    }

    /// The pod's interface is gone: the lease is left to end by itself.
    pub fn rest(&mut self) {
        self.state = State::Dormant;
        self.due = self.held.as_ref().map_or(0, Held::expires);
    }

    /// The pod has another interface: the address is asked for again on it.
    pub fn restart(&mut self, identity: Identity, now: Millis) {
        self.identity = identity;
        self.wish = self.held.as_ref().map(|held| held.terms.address.ip());
        self.await_grant(now);
        match self.wish {
            Some(_) => self.begin(State::Rebooting { since: now }, now),
            None => self.begin(State::Selecting, now),
        }
    }

    fn begin(&mut self, state: State, now: Millis) {
        self.state = state;
        self.xid = self.dice.roll() as u32;
        self.began = now;
        self.tries = 0;
        self.due = now;
    }

    /// The time has come.
    pub fn on_time(&mut self, now: Millis) -> Vec<Step> {
        let mut steps = Vec::new();
        if self.held.as_ref().is_some_and(|held| now >= held.expires()) {
            self.held = None;
            if self.state != State::Dormant {
                steps.push(Step::Lose("the lease has expired"));
                self.begin(State::Selecting, now);
            }
        }
        if self.give_up.is_some_and(|end| now >= end) && self.held.is_none() {
            self.give_up = None;
            steps.push(Step::GiveUp);
            return steps;
        }
        self.change_state(now);
        steps.extend(self.ask(now));
        steps
    }

    /// What time alone changes.
    fn change_state(&mut self, now: Millis) {
        match &self.state {
            State::Requesting { since, .. } if now >= since + self.patience.answer => {
                self.begin(State::Selecting, now);
            }
            State::Rebooting { since } if now >= since + self.patience.answer => {
                // Nobody knows better: what was granted lasts (RFC 2131, section 3.2).
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

    /// The message of the state, and when the next is due.
    fn ask(&mut self, now: Millis) -> Option<Step> {
        if !self.is_asking() {
            return None;
        }
        self.due = now.saturating_add(self.pause(now));
        for end in [self.give_up, self.held.as_ref().map(Held::expires)] {
            self.due = self.due.min(end.unwrap_or(Millis::MAX));
        }
        self.tries = self.tries.saturating_add(1);
        self.sent = now;
        let own = self.held.as_ref().map(|held| held.terms.address.ip());
        let own = own.unwrap_or(Ipv4Addr::UNSPECIFIED);
        let nobody = Ipv4Addr::UNSPECIFIED;
        let address = |ip: Ipv4Addr| ip.octets().to_vec();
        Some(match &self.state {
            State::Selecting => {
                let wish = self.wish.map(|ip| (option::REQUESTED_ADDRESS, address(ip)));
                let message = self.message(Kind::Discover, nobody, wish.into_iter().collect(), now);
                send(Destination::Everyone, nobody, message)
            }
            State::Requesting { offer, .. } => {
                let options = vec![
                    (option::REQUESTED_ADDRESS, address(offer.address.ip())),
                    (option::SERVER_IDENTIFIER, address(offer.server)),
                ];
                let message = self.message(Kind::Request, nobody, options, now);
                send(Destination::Everyone, nobody, message)
            }
            State::Rebooting { .. } => {
                let wish = self.wish.unwrap_or(nobody);
                let options = vec![(option::REQUESTED_ADDRESS, address(wish))];
                let message = self.message(Kind::Request, nobody, options, now);
                send(Destination::Everyone, nobody, message)
            }
            State::Renewing => {
                let server = self.held.as_ref().map_or(nobody, |held| held.terms.server);
                let message = self.message(Kind::Request, own, Vec::new(), now);
                send(Destination::Server(server), own, message)
            }
            State::Rebinding | State::Bound | State::Dormant => {
                let message = self.message(Kind::Request, own, Vec::new(), now);
                send(Destination::Everyone, own, message)
            }
        })
    }

    /// How long to wait for an answer.
    fn pause(&mut self, now: Millis) -> Millis {
        let end = match (&self.state, &self.held) {
            (State::Renewing, Some(held)) => held.rebinds(),
            (State::Rebinding, Some(held)) => held.expires(),
            _ => return self.backoff(),
        };
        // RFC 2131, section 4.4.5: half of what is left. But a packet may just be lost,
        // as when a server is asked by all pods of a node at once: a few quick tries first.
        let rest = end.saturating_sub(now);
        let quick = match self.tries {
            tries @ 0..3 => (2000 << tries) + self.dice.below(1000),
            _ => Millis::MAX,
        };
        (rest / 2).max(4000).min(quick).min(rest.max(1))
    }

    /// The Go client's: a few quick tries, then twice as long each time; a second
    /// more or less, so that pods that were started together do not stay together.
    fn backoff(&mut self) -> Millis {
        let base = match self.tries {
            0 => return 500 + self.dice.below(1000),
            1..4 => 2000,
            tries => 4000_u64 << (tries - 4).min(20),
        };
        base.min(self.patience.pause) + self.dice.below(2000) - 1000_u64.min(base / 2)
    }

    /// A message of this exchange: `more` is what only this kind has.
    fn message(
        &self,
        kind: Kind,
        address: Ipv4Addr,
        more: Vec<(u8, Vec<u8>)>,
        now: Millis,
    ) -> Request {
        let mut options = more;
        options.extend(self.identity.options.iter().cloned());
        if kind != Kind::Release {
            // What fits into a packet of any Ethernet, without IP's header.
            options.push((
                option::MAXIMUM_MESSAGE_SIZE,
                1472_u16.to_be_bytes().to_vec(),
            ));
            let requested = &self.identity.requested;
            if !requested.is_empty() {
                options.push((option::PARAMETER_REQUEST_LIST, requested.clone()));
            }
        }
        Request {
            kind,
            xid: self.xid,
            seconds: ((now - self.began.min(now)) / 1000)
                .try_into()
                .unwrap_or(u16::MAX),
            address,
            mac: self.mac,
            broadcast: self.broadcast && address.is_unspecified(),
            options,
        }
    }

    /// The message that gives the lease back, if there is one to give back: to
    /// its server, from the pod's address.
    pub fn release(&mut self, now: Millis) -> Option<Step> {
        let terms = self.held.take()?.terms;
        self.xid = self.dice.roll() as u32;
        let (from, server) = (terms.address.ip(), terms.server);
        let options = vec![(option::SERVER_IDENTIFIER, server.octets().to_vec())];
        // Only the identifier, of what the client says of itself (RFC 2131, table 5).
        let all = std::mem::take(&mut self.identity.options);
        let mut identifier = all;
        identifier.retain(|(kind, _)| *kind == option::CLIENT_IDENTIFIER);
        self.identity.options = identifier;
        let message = self.message(Kind::Release, from, options, now);
        Some(send(Destination::Server(server), from, message))
    }

    /// A server has answered.
    pub fn on_reply(&mut self, reply: &Reply, now: Millis) -> Vec<Step> {
        if !self.is_asking() || reply.xid != self.xid || reply.mac != self.mac {
            return Vec::new();
        }
        let step = match (&self.state, reply.answer) {
            (State::Selecting, Answer::Offer) => return self.on_offer(reply, now),
            (State::Selecting, _) | (_, Answer::Offer) => return Vec::new(),
            (_, Answer::Ack) => self.on_ack(reply),
            (_, Answer::Nak) => return self.on_nak(reply, now),
        };
        match step {
            Ok(terms) => {
                self.held = Some(Held {
                    terms: terms.clone(),
                    since: self.sent,
                });
                self.give_up = None;
                self.wish = Some(terms.address.ip());
                self.state = State::Bound;
                self.change_state(now);
                vec![Step::Hold(Box::new(terms))]
            }
            Err(why) => vec![Step::Ignore(why)],
        }
    }

    fn on_offer(&mut self, reply: &Reply, now: Millis) -> Vec<Step> {
        match self.identity.unheard.read(reply) {
            Ok(offer) => {
                // The exchange goes on under its number.
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

    /// The terms of an acknowledgement, if it is one of what was asked for.
    fn on_ack(&self, reply: &Reply) -> Result<Terms, String> {
        let terms = self
            .identity
            .unheard
            .read(reply)
            .map_err(|fault| format!("grant of {}: {fault}", reply.address))?;
        let asked = match &self.state {
            State::Requesting { offer, .. } => Some((offer.address.ip(), Some(offer.server))),
            State::Rebooting { .. } => self.wish.map(|wish| (wish, None)),
            // A server may move the pod to another address when it renews.
            _ => None,
        };
        let other = asked.is_some_and(|(address, server)| {
            address != terms.address.ip() || server.is_some_and(|server| server != terms.server)
        });
        match other {
            true => Err(format!(
                "grant of {} by {}: not asked for",
                terms.address.ip(),
                terms.server
            )),
            false => Ok(terms),
        }
    }

    fn on_nak(&mut self, reply: &Reply, now: Millis) -> Vec<Step> {
        if let State::Requesting { offer, .. } = &self.state
            && reply.server() != Some(offer.server)
        {
            return Vec::new();
        }
        // Not at once: a server that offers what it then refuses would keep both busy.
        let requesting = matches!(self.state, State::Requesting { .. });
        let lost = self.held.take().is_some();
        self.wish = None;
        self.begin(State::Selecting, now);
        if requesting {
            self.due = now + 1000 + self.dice.below(1000);
        }
        match lost {
            true => vec![Step::Lose("the server refuses the address")],
            false => vec![Step::Ignore(format!("refused: {}", reply.reason()))],
        }
    }
}

fn send(to: Destination, from: Ipv4Addr, message: Request) -> Step {
    let message = Box::new(message);
    Step::Send { to, from, message }
}

#[cfg(test)]
mod tests;
