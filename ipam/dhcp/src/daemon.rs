//! The daemon: one thread that waits for plugins, servers, timers and signals.
//!
//! It decides nothing about leases, [`crate::lease`] does. What it waits for comes
//! by epoll(7); a lease costs it a few hundred bytes, and descriptors only while an
//! answer is awaited.

mod connection;
mod descriptors;
mod journal;
mod listener;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use cni::conf::valid_attachments;
use cni::json::Json;
use netlink::Mac;
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::time::{ClockId, clock_gettime};

use crate::client::NO_MORE_TRIES;
use crate::flags::Flags;
use crate::frame;
use crate::lease::{Held, Identity, Lease, Millis, Patience, Step};
use crate::message::Reply;
use crate::plan::Plan;
use crate::pod::{self, Interface};
use crate::rpc::{self, Arguments, Header, NO_METHOD};
use crate::socket::PacketSocket;
use crate::store::{Grant, Owner, Place, Record, Store, directory};
use crate::terms::Terms;

use connection::{Answer, Call, Connection};
use descriptors::{Budget, Spare};
use journal::{Cause, Journal};
use listener::{Listener, PidFile};

/// Packets of one lease before others get their turn.
const MOST_PACKETS: usize = 64;

/// How long to accept no plugin when not even that is possible.
const DEAF: Millis = 100;

/// Leases of before are asked for one after the other, so that a server is not
/// asked for all of them in one moment. In milliseconds.
const STAGGER: Millis = 5;

/// What an event is about: the kind in the upper half, a key in the lower.
#[derive(Clone, Copy)]
enum Token {
    Listener,
    Signal,
    Connection(u32),
    Lease(u32),
}

impl Token {
    fn to_data(self) -> u64 {
        let (kind, key) = match self {
            Self::Listener => (0, 0),
            Self::Signal => (1, 0),
            Self::Connection(key) => (2, key),
            Self::Lease(key) => (3, key),
        };
        kind << 32 | u64::from(key)
    }

    fn of_data(data: u64) -> Self {
        let key = data as u32;
        match data >> 32 {
            0 => Self::Listener,
            1 => Self::Signal,
            2 => Self::Connection(key),
            _ => Self::Lease(key),
        }
    }
}

/// A lease and the pod that it is for.
struct Entry {
    owner: Owner,
    place: Place,
    priority: u32,
    lease: Lease,
    server_mac: [u8; 6],
    /// What the pod has of it; the plugin that asked for the lease puts it there the
    /// first time, and we from then on.
    applied: Option<Terms>,
    delivered: bool,
    /// Open while an answer is awaited.
    socket: Option<PacketSocket>,
    heard: u32,
    waiting: Vec<(u32, Header)>,
}

impl Entry {
    fn log(&self, what: std::fmt::Arguments<'_>) {
        cni::log(format_args!("{}: {what}", self.owner.client_id()));
    }

    fn log_failure(&self, what: &str, result: Result<()>) {
        if let Err(error) = result {
            self.log(format_args!("failed to {what}: {error:#}"));
        }
    }
}

struct Daemon {
    patience: Patience,
    broadcast: bool,
    host_prefix: String,
    epoll: Epoll,
    listener: Listener,
    /// Open so that it can be waited for.
    _signals: SignalFd,
    store: Store,
    leases: HashMap<u32, Entry>,
    keys: HashMap<Owner, u32>,
    connections: HashMap<u32, Connection>,
    timers: BinaryHeap<Reverse<(Millis, u32)>>,
    last_key: u32,
    budget: Budget,
    /// Given up for a moment to turn a plugin away, when there is no other descriptor.
    spare: Spare,
    /// No plugin is accepted before.
    deaf_until: Option<Millis>,
    journal: Journal,
    /// Packet sockets, also those that are about to be closed.
    sockets: Arc<AtomicUsize>,
    /// Closing a packet socket waits for RCU, about ten milliseconds: long enough to
    /// hold up the packets of others, so another thread does it.
    closing: mpsc::Sender<OwnedFd>,
}

/// Runs until a signal ends it.
///
/// # Errors
/// When it cannot start.
pub fn run(flags: &Flags) -> Result<()> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    // Before any thread is made, which then has the same mask.
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
    let pidfile = match flags.pidfile.as_str() {
        "" => None,
        path => Some(PidFile::write(path)?),
    };
    let mut daemon = Daemon::new(flags, budget, listener, store, &signals)?;
    daemon.take_up()?;
    let served = daemon.serve();
    drop(pidfile);
    served
}

/// Milliseconds since the machine was started, its sleep included: a lease goes on
/// while a machine sleeps.
fn now() -> Millis {
    let time = clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from);
    time.unwrap_or_default().as_millis() as Millis
}

/// Seconds since 1970.
fn wall_clock() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.unwrap_or_default().as_secs()
}

/// What nobody on the segment knows; if the kernel has none, the time of our start.
fn seed() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::hash::RandomState::new().build_hasher().finish()
}

impl Daemon {
    fn new(
        flags: &Flags,
        budget: Budget,
        listener: Listener,
        store: Store,
        signals: &SigSet,
    ) -> Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let flags_of_signals = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        let signals = SignalFd::with_flags(signals, flags_of_signals)?;
        let watch = |fd: &dyn AsFd, token: Token| {
            let event = EpollEvent::new(EpollFlags::EPOLLIN, token.to_data());
            epoll.add(fd.as_fd(), event)
        };
        watch(&listener.socket, Token::Listener)?;
        watch(&signals, Token::Signal)?;
        let (closing, closed) = mpsc::channel::<OwnedFd>();
        let sockets = Arc::new(AtomicUsize::new(0));
        let open = Arc::clone(&sockets);
        let close = move |socket| {
            drop(socket);
            open.fetch_sub(1, Ordering::Relaxed);
        };
        std::thread::Builder::new()
            .name("close".into())
            .stack_size(64 * 1024)
            .spawn(move || closed.into_iter().for_each(close))
            .context("start a thread")?;
        let millis = |time: Duration| time.as_millis() as Millis;
        Ok(Self {
            patience: Patience {
                answer: millis(flags.timeout),
                pause: millis(flags.resend_max),
                whole: millis(flags.resend_timeout),
            },
            broadcast: flags.broadcast,
            host_prefix: flags.host_prefix.clone(),
            epoll,
            listener,
            _signals: signals,
            store,
            leases: HashMap::new(),
            keys: HashMap::new(),
            connections: HashMap::new(),
            timers: BinaryHeap::new(),
            last_key: 0,
            budget,
            spare: Spare::new()?,
            deaf_until: None,
            journal: Journal::default(),
            sockets,
            closing,
        })
    }

    /// Takes up what the daemon before us left.
    fn take_up(&mut self) -> Result<()> {
        let (start, today) = (now(), wall_clock());
        for (number, record) in self.store.load()?.into_iter().enumerate() {
            let due = start + STAGGER * number as Millis;
            let lease = self.new_lease(record.identity);
            let held = record.grant.as_ref().map(|grant| Held {
                terms: grant.terms.clone(),
                // A clock that was set back does not make a lease longer.
                since: start.saturating_sub(today.saturating_sub(grant.since) * 1000),
            });
            let server_mac = record.grant.as_ref().map(|grant| grant.server_mac);
            let entry = Entry {
                owner: record.owner,
                place: record.place,
                priority: record.priority,
                lease: lease.remembered(held, start, due),
                server_mac: server_mac.unwrap_or_default(),
                applied: record.grant.map(|grant| grant.terms),
                delivered: true,
                socket: None,
                heard: 0,
                waiting: Vec::new(),
            };
            self.insert(entry);
        }
        match self.leases.len() {
            0 => {}
            1 => cni::log(format_args!("1 lease from before")),
            count => cni::log(format_args!("{count} leases from before")),
        }
        Ok(())
    }

    fn insert(&mut self, entry: Entry) -> u32 {
        let key = self.new_key();
        self.keys.insert(entry.owner.clone(), key);
        self.leases.insert(key, entry);
        self.schedule(key);
        key
    }

    fn new_lease(&self, identity: Identity) -> Lease {
        let mut lease = Lease::new(identity, self.patience, seed(), now());
        lease.set_broadcast(self.broadcast);
        lease
    }

    fn new_key(&mut self) -> u32 {
        loop {
            self.last_key = self.last_key.wrapping_add(1);
            let key = &self.last_key;
            if !self.leases.contains_key(key) && !self.connections.contains_key(key) {
                return self.last_key;
            }
        }
    }

    fn schedule(&mut self, key: u32) {
        if let Some(entry) = self.leases.get(&key) {
            self.timers.push(Reverse((entry.lease.due(), key)));
        }
    }

    fn serve(&mut self) -> Result<()> {
        let mut events = [EpollEvent::empty(); 64];
        loop {
            let count = match self.epoll.wait(&mut events, self.until_next_timer()) {
                Ok(count) => count,
                Err(Errno::EINTR) => continue,
                Err(errno) => return Err(anyhow!("wait for events: {}", errno.desc())),
            };
            for event in &events[..count] {
                match Token::of_data(event.data()) {
                    Token::Signal => return Ok(()),
                    Token::Listener => self.accept(),
                    Token::Connection(key) => self.on_connection(key),
                    Token::Lease(key) => self.on_packets(key),
                }
            }
            self.on_timers();
        }
    }

    fn until_next_timer(&self) -> EpollTimeout {
        // The machine may sleep while we wait, and the kernel counts only the time
        // that it is awake: look at the clock now and then.
        const LONGEST: Millis = 60_000;
        let lease = self.timers.peek().map(|next| next.0.0);
        let due = [lease, self.deaf_until, self.journal.due()];
        let due = due.into_iter().flatten().min().unwrap_or(Millis::MAX);
        let wait = due.saturating_sub(now()).min(LONGEST) as u16;
        EpollTimeout::from(wait)
    }

    fn on_timers(&mut self) {
        let now = now();
        for line in self.journal.end_windows(now) {
            cni::log(format_args!("{line}"));
        }
        if self.deaf_until.is_some_and(|until| until <= now) {
            self.deaf_until = None;
            self.listen(true);
        }
        // A few at a time: plugins and answers do not wait until a thousand pods have
        // sent a broadcast to each other.
        for _ in 0..16 {
            let Some(Reverse((due, key))) = self.timers.peek().copied() else {
                return;
            };
            if due > now {
                return;
            }
            self.timers.pop();
            let Some(entry) = self.leases.get_mut(&key) else {
                continue;
            };
            // Else it has another by now.
            if entry.lease.due() == due {
                let steps = entry.lease.on_time(now);
                self.perform(key, steps, None);
            }
        }
    }

    // ---- plugins

    fn accept(&mut self) {
        loop {
            match self.listener.socket.accept() {
                Ok((stream, _)) if self.connections.len() < self.budget.connections => {
                    self.connect(stream);
                }
                // Closed at once: the plugin is told, rather than left waiting.
                Ok(_) => self.log(Cause::TurnedAway, "too many plugins at once"),
                Err(error) => match error.raw_os_error().map(Errno::from_raw) {
                    Some(Errno::EAGAIN) => return,
                    // That plugin is gone.
                    Some(Errno::ECONNABORTED | Errno::EINTR) => {}
                    // The socket stays readable: to ask again at once would burn a processor.
                    _ if !self.turn_away() => {
                        self.deaf_until = Some(now() + DEAF);
                        return self.listen(false);
                    }
                    _ => self.log(Cause::TurnedAway, "no descriptor is left"),
                },
            }
        }
    }

    /// Accepts one plugin and closes the connection, with the descriptor that is kept for it.
    fn turn_away(&mut self) -> bool {
        self.spare.lend(|| self.listener.socket.accept().is_ok())
    }

    /// Whether plugins that come wake us.
    fn listen(&mut self, wakes: bool) {
        let flags = match wakes {
            true => EpollFlags::EPOLLIN,
            false => EpollFlags::empty(),
        };
        let mut event = EpollEvent::new(flags, Token::Listener.to_data());
        // It is in there: nothing is allocated, and nothing can be missing.
        let _ = self.epoll.modify(&self.listener.socket, &mut event);
    }

    fn log(&mut self, cause: Cause, line: &str) {
        if self.journal.admits(cause, now()) {
            cni::log(format_args!("{line}"));
        }
    }

    fn connect(&mut self, stream: UnixStream) {
        let Ok(connection) = Connection::new(stream) else {
            return;
        };
        let key = self.new_key();
        // Edge-triggered: answers that could not be written are when they can be.
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLET;
        let event = EpollEvent::new(flags, Token::Connection(key).to_data());
        if self.epoll.add(&connection, event).is_ok() {
            self.connections.insert(key, connection);
        }
    }

    fn on_connection(&mut self, key: u32) {
        let Some(connection) = self.connections.get_mut(&key) else {
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

    /// Nobody waits any longer for what this connection has asked for. An address
    /// that is not granted yet is not for anybody then: the runtime has killed
    /// the plugin, and does not know of a lease.
    fn drop_connection(&mut self, key: u32) {
        let Some(connection) = self.connections.remove(&key) else {
            return;
        };
        let _ = self.epoll.delete(&connection);
        let Some(awaited) = connection.waits_for else {
            return;
        };
        if let Some(entry) = self.leases.get_mut(&awaited) {
            entry.waiting.retain(|(waiting, _)| *waiting != key);
            if entry.waiting.is_empty() && !entry.delivered {
                entry.log(format_args!("nobody waits for the lease any longer"));
                self.forget(awaited);
            }
        }
    }

    fn on_call(&mut self, connection: u32, call: Call) {
        let answer = match call.header.method.as_str() {
            rpc::ALLOCATE => match self.allocate(&call.arguments) {
                Ok(key) => return self.wait_for(key, connection, call.header),
                Err(error) => Answer::Error(format!("{error:#}")),
            },
            rpc::RELEASE => match owner(&call.arguments) {
                Ok((owner, _)) => match self.release(&owner) {
                    Ok(()) => Answer::Done,
                    Err(error) => Answer::Error(format!("{error:#}")),
                },
                Err(error) => Answer::Error(format!("{error:#}")),
            },
            rpc::CHECK => self.check(&call.arguments),
            rpc::GC => match self.collect(&call.arguments) {
                Ok(()) => Answer::Done,
                Err(error) => Answer::Error(format!("{error:#}")),
            },
            other => Answer::Error(format!("{NO_METHOD} {other}")),
        };
        self.answer(connection, &call.header, &answer);
    }

    fn answer(&mut self, connection: u32, header: &Header, answer: &Answer) {
        let Some(open) = self.connections.get_mut(&connection) else {
            return;
        };
        open.waits_for = None;
        if open.answer(header, answer).is_err() {
            self.drop_connection(connection);
        }
    }

    /// Has a lease sought, unless one is held or sought already; returns its key.
    fn allocate(&mut self, arguments: &Arguments) -> Result<u32> {
        let (owner, document) = owner(arguments)?;
        let plan = Plan::new(&cni::conf::load(&document)?, &arguments.args)?;
        let path = PathBuf::from(format!("{}{}", self.host_prefix, arguments.netns));
        let identity = plan.identity(&owner.client_id());
        if let Some(key) = self.keys.get(&owner).copied() {
            return self.allocate_again(key, path, identity, plan.priority);
        }
        let interface = pod::open(&path, &owner.ifname)?;
        let entry = Entry {
            owner,
            place: place(path, &interface)?,
            lease: self.new_lease(identity),
            priority: plan.priority,
            server_mac: [0; 6],
            applied: None,
            delivered: false,
            socket: None,
            heard: 0,
            waiting: Vec::new(),
        };
        entry.log(format_args!("acquiring lease"));
        Ok(self.insert(entry))
    }

    /// A runtime that asks for what it has gets what it has. One that has made the
    /// pod anew, under the same id, gets the same address if the server agrees.
    fn allocate_again(
        &mut self,
        key: u32,
        path: PathBuf,
        identity: Identity,
        priority: u32,
    ) -> Result<u32> {
        let Some(entry) = self.leases.get_mut(&key) else {
            return Ok(key);
        };
        let interface = pod::open(&path, &entry.owner.ifname)?;
        let place = place(path, &interface)?;
        let same_netns = entry.place.inode == place.inode && !entry.lease.is_dormant();
        let same_link = entry.place.mac == place.mac || entry.lease.held().is_none();
        entry.place = place;
        entry.priority = priority;
        if same_netns && same_link {
            if entry.lease.held().is_none() {
                entry.lease.await_grant(now());
            }
        } else {
            entry.log(format_args!("acquiring lease on another interface"));
            entry.lease.restart(identity, now());
            entry.applied = None;
            entry.delivered = false;
            self.close_socket(key);
        }
        self.schedule(key);
        Ok(key)
    }

    fn wait_for(&mut self, key: u32, connection: u32, header: Header) {
        if let Some(open) = self.connections.get_mut(&connection) {
            open.waits_for = Some(key);
        }
        if let Some(entry) = self.leases.get_mut(&key) {
            entry.waiting.push((connection, header));
        }
        self.answer_waiting(key);
        // At once, rather than after the other events.
        self.on_timers();
    }

    /// Tells who waits for a lease, once it is held and not in doubt.
    fn answer_waiting(&mut self, key: u32) {
        let Some(entry) = self.leases.get_mut(&key) else {
            return;
        };
        let Some(held) = entry.lease.held() else {
            return;
        };
        if entry.waiting.is_empty() || (!entry.delivered && entry.lease.is_asking()) {
            return;
        }
        let answer = Answer::Result(Box::new(held.terms.to_result(entry.priority)));
        entry.applied = Some(held.terms.clone());
        entry.delivered = true;
        for (connection, header) in std::mem::take(&mut entry.waiting) {
            self.answer(connection, &header, &answer);
        }
    }

    fn refuse_waiting(&mut self, key: u32, why: &str) {
        let Some(entry) = self.leases.get_mut(&key) else {
            return;
        };
        let answer = Answer::Error(why.to_owned());
        for (connection, header) in std::mem::take(&mut entry.waiting) {
            self.answer(connection, &header, &answer);
        }
    }

    fn check(&self, arguments: &Arguments) -> Answer {
        let owner = match owner(arguments) {
            Ok((owner, _)) => owner,
            Err(error) => return Answer::Error(format!("{error:#}")),
        };
        let key = self.keys.get(&owner);
        let entry = key.and_then(|key| self.leases.get(key));
        match entry.and_then(|entry| Some((entry, entry.lease.held()?))) {
            Some((entry, held)) if !entry.lease.is_dormant() => {
                Answer::Result(Box::new(held.terms.to_result(entry.priority)))
            }
            _ => Answer::Error(format!("no lease is held for {}", owner.client_id())),
        }
    }

    /// Gives a lease back. The answer to the plugin follows the packet: the link
    /// that it leaves by is deleted next.
    ///
    /// # Errors
    /// It stays on disk, where the next daemon would find it.
    fn release(&mut self, owner: &Owner) -> Result<()> {
        let Some(key) = self.keys.get(owner).copied() else {
            // It may be one that could not be read, or could not be removed a moment ago.
            return self.store.remove(owner);
        };
        self.refuse_waiting(key, "the lease is released");
        if let Some(entry) = self.leases.get_mut(&key) {
            entry.log(format_args!("releasing lease"));
            if let Some(step) = entry.lease.release(now()) {
                let sent = self.try_to_send(key, &step).map(drop);
                if let Some(entry) = self.leases.get(&key) {
                    entry.log_failure("release DHCP lease", sent);
                }
            }
        }
        self.drop_lease(key)
    }

    fn collect(&mut self, arguments: &Arguments) -> Result<()> {
        let (owner, document) = owner(arguments)?;
        let Some(valid) = valid_attachments(&document)? else {
            return Ok(());
        };
        let in_use = |it: &Owner| {
            valid
                .iter()
                .any(|valid| valid.container_id == it.container_id && valid.ifname == it.ifname)
        };
        let of_network = self.keys.keys().filter(|it| it.network == owner.network);
        let stale: Vec<_> = of_network.filter(|it| !in_use(it)).cloned().collect();
        let released = stale.iter().map(|owner| self.release(owner));
        // All of them, whatever became of the others.
        let released: Vec<_> = released.collect();
        released.into_iter().collect()
    }

    /// Drops all that is known of a lease.
    fn forget(&mut self, key: u32) {
        if let Err(error) = self.drop_lease(key) {
            cni::log(format_args!("failed to forget the lease: {error:#}"));
        }
    }

    fn drop_lease(&mut self, key: u32) -> Result<()> {
        self.close_socket(key);
        let Some(entry) = self.leases.remove(&key) else {
            return Ok(());
        };
        self.keys.remove(&entry.owner);
        self.store.remove(&entry.owner)
    }

    // ---- servers

    fn on_packets(&mut self, key: u32) {
        // The largest that an IPv4 packet can be is larger; none of DHCP's is.
        let mut buffer = [0; 4096];
        // What is left wakes us again: a flood on one lease does not hold up the others.
        for _ in 0..MOST_PACKETS {
            let Some(entry) = self.leases.get_mut(&key) else {
                return;
            };
            let Some(socket) = &entry.socket else { return };
            let (length, from) = match socket.receive(&mut buffer) {
                Ok(Some(received)) => received,
                Ok(None) => return,
                // The link is down or gone; the next message finds out.
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

    /// Does what a lease has decided. `from` is who the answer came from.
    fn perform(&mut self, key: u32, steps: Vec<Step>, from: Option<Mac>) {
        for step in steps {
            match step {
                Step::Send { .. } => self.send(key, &step),
                Step::Hold(terms) => self.hold(key, &terms, from),
                Step::Lose(why) => self.lose(key, why),
                Step::GiveUp => self.give_up(key),
                Step::Ignore(what) => {
                    if let Some(entry) = self.leases.get(&key)
                        && self.journal.admits(Cause::NotBelieved, now())
                    {
                        entry.log(format_args!("{what}"));
                    }
                }
            }
        }
        let Some(entry) = self.leases.get(&key) else {
            return;
        };
        if entry.lease.is_dormant() && entry.lease.held().is_none() {
            // The pod is gone and so is its lease.
            return self.forget(key);
        }
        if !entry.lease.is_asking() {
            self.close_socket(key);
        }
        self.answer_waiting(key);
        self.schedule(key);
    }

    fn send(&mut self, key: u32, step: &Step) {
        match self.try_to_send(key, step) {
            Ok(true) => {}
            Ok(false) => {
                let Some(entry) = self.leases.get_mut(&key) else {
                    return;
                };
                entry.log(format_args!("the pod's interface is gone"));
                entry.lease.rest();
                self.refuse_waiting(key, "the pod's interface is gone");
            }
            // The link may be down for now, or a queue full: as good as lost on the way.
            Err(error) => {
                self.close_socket(key);
                if let Some(entry) = self.leases.get(&key) {
                    entry.log(format_args!("{error:#}"));
                }
            }
        }
    }

    /// Sends on the pod's interface, opened if need be; false when it is gone.
    fn try_to_send(&mut self, key: u32, step: &Step) -> Result<bool> {
        let Some(entry) = self.leases.get_mut(&key) else {
            return Ok(true);
        };
        let server = Some(Mac(entry.server_mac)).filter(|mac| !mac.is_zero());
        if entry.socket.is_none() {
            let Some(interface) = pod::reopen(&entry.place, &entry.owner.ifname)? else {
                return Ok(false);
            };
            // Another plugin of the chain may have set it since ADD.
            entry.place.mac = interface.mac.0;
            entry.lease.set_mac(interface.mac);
            let index = interface.link.index;
            if self.sockets.load(Ordering::Relaxed) >= self.budget.sockets {
                bail!("too many leases are asked for at once");
            }
            let socket = PacketSocket::open(&interface.netns, index, entry.lease.xid())?;
            let token = Token::Lease(key).to_data();
            self.epoll
                .add(&socket, EpollEvent::new(EpollFlags::EPOLLIN, token))?;
            entry.heard = entry.lease.xid();
            entry.socket = Some(socket);
            self.sockets.fetch_add(1, Ordering::Relaxed);
        }
        if let Some(socket) = &entry.socket {
            if entry.heard != entry.lease.xid() {
                entry.heard = entry.lease.xid();
                socket.hear(entry.heard)?;
            }
            pod::send(socket, step, Mac(entry.place.mac), server)?;
        }
        Ok(true)
    }

    fn close_socket(&mut self, key: u32) {
        let socket = self.leases.get_mut(&key).and_then(|it| it.socket.take());
        if let Some(socket) = socket {
            let _ = self.epoll.delete(&socket);
            // It cannot fail: the thread ends after us.
            let _ = self.closing.send(socket.into());
        }
    }

    fn hold(&mut self, key: u32, terms: &Terms, from: Option<Mac>) {
        let Some(entry) = self.leases.get_mut(&key) else {
            return;
        };
        entry.server_mac = from.map_or(entry.server_mac, |mac| mac.0);
        let (address, server, lease) = (terms.address, terms.server, terms.lease);
        match &entry.applied {
            Some(old) if entry.delivered && is_the_same(old, terms) => {
                entry.log(format_args!(
                    "lease renewed: {address} of {server} for {lease} s"
                ));
            }
            _ => entry.log(format_args!(
                "lease acquired: {address} of {server} for {lease} s"
            )),
        }
        if entry.delivered {
            let applied = apply(entry, terms);
            entry.log_failure("apply the lease to the pod", applied);
            entry.applied = Some(terms.clone());
        }
        self.save(key);
    }

    fn lose(&mut self, key: u32, why: &str) {
        let Some(entry) = self.leases.get_mut(&key) else {
            return;
        };
        entry.log(format_args!("{why}; seeking another address"));
        if let Some(old) = entry.applied.take() {
            let interface = pod::reopen(&entry.place, &entry.owner.ifname);
            let withdrawn = interface.and_then(|interface| match interface {
                Some(interface) => interface.withdraw(&old, entry.priority),
                None => Ok(()),
            });
            entry.log_failure("take the address from the pod", withdrawn);
        }
        self.save(key);
    }

    fn give_up(&mut self, key: u32) {
        self.refuse_waiting(key, NO_MORE_TRIES);
        let Some(entry) = self.leases.get(&key) else {
            return;
        };
        entry.log(format_args!("{NO_MORE_TRIES}"));
        // A pod that had an address goes on seeking one.
        if !entry.delivered {
            self.forget(key);
        }
    }

    fn save(&mut self, key: u32) {
        let Some(entry) = self.leases.get(&key) else {
            return;
        };
        let age = |held: &Held| now().saturating_sub(held.since) / 1000;
        let record = Record {
            owner: entry.owner.clone(),
            place: entry.place.clone(),
            identity: entry.lease.identity().clone(),
            priority: entry.priority,
            grant: entry.lease.held().map(|held| Grant {
                terms: held.terms.clone(),
                since: wall_clock().saturating_sub(age(held)),
                server_mac: entry.server_mac,
            }),
        };
        entry.log_failure("remember the lease", self.store.save(&record));
    }
}

fn place(netns: PathBuf, interface: &Interface) -> Result<Place> {
    Ok(Place {
        inode: pod::inode(&netns)?,
        netns,
        mac: interface.mac.0,
    })
}

/// Whose lease a call is about, and the configuration.
fn owner(arguments: &Arguments) -> Result<(Owner, Json)> {
    let document =
        Json::parse(&arguments.stdin).map_err(|error| anyhow!("error parsing netconf: {error}"))?;
    let network = match document.get("name") {
        Some(Json::String(name)) => name,
        _ => String::new(),
    };
    let owner = Owner {
        container_id: arguments.container_id.clone(),
        network,
        ifname: arguments.ifname.clone(),
    };
    Ok((owner, document))
}

/// Whether a pod that has `old` has all of `new`.
fn is_the_same(old: &Terms, new: &Terms) -> bool {
    (old.address, &old.routes, old.mtu) == (new.address, &new.routes, new.mtu)
}

/// Makes the pod have what is granted now instead of what it has.
fn apply(entry: &Entry, new: &Terms) -> Result<()> {
    if entry
        .applied
        .as_ref()
        .is_some_and(|old| is_the_same(old, new))
    {
        return Ok(());
    }
    match pod::reopen(&entry.place, &entry.owner.ifname)? {
        Some(interface) => interface.replace(entry.applied.as_ref(), new, entry.priority),
        None => Ok(()),
    }
}
