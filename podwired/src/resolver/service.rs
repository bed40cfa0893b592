//! The resolver at work: the sockets of each address, and what they answer.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::{Duration, Instant};

use names::Entry;
use nix::errno::Errno;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::mpsc::UnboundedSender;
use tokio::task::{JoinHandle, spawn_local, yield_now};
use tokio::time::timeout;

use super::answer::{Answerer, Forward, Transport, Verdict};
use super::branch::Branch;
use super::counters::Counters;
use super::datagrams::Datagrams;
use super::firewall::Firewall;
use super::forward::{ask, failure, fit};
use super::gate::{Gate, Pass};
use super::index::{Index, Spare};
use super::readable::{Source, watched};
use super::sockets::{PORT, Sockets};
use super::upstream::NodeServers;
use crate::log;

/// Questions that other servers are asked at once: in all, and for one client.
const FORWARDS: (usize, usize) = (1024, 256);
/// Connections at once: in all, and of one client.
const CONNECTIONS: (usize, usize) = (512, 64);
/// How long a connection may be idle (RFC 7766, section 6.2.3).
const IDLE: Duration = Duration::from_secs(10);
/// How many times datagrams are taken before other tasks have their turn.
const TURNS: usize = 8;

const SERVFAIL: u8 = 2;

/// What all sockets share.
pub struct Service {
    /// The records.
    pub index: RefCell<Index>,
    /// What was done.
    pub counters: RefCell<Counters>,
    /// Questions that other servers are asked.
    pub forwards: Rc<Gate>,
    connections: Rc<Gate>,
    answerer: RefCell<Answerer>,
    node: RefCell<NodeServers>,
    open: RefCell<Open>,
    firewall: RefCell<Option<Firewall>>,
    /// By the directories of networks that span nodes: what sends records to the others.
    pub shared: RefCell<HashMap<String, UnboundedSender<String>>>,
}

/// The addresses that are answered at.
#[derive(Default)]
struct Open {
    version: u64,
    tasks: HashMap<IpAddr, Tasks>,
    failed: HashMap<IpAddr, String>,
    /// By the gateways in whose place they are, or were: containers keep the address until they end.
    spares: HashMap<IpAddr, OpenSpare>,
}

/// One for UDP, one for TCP.
type Tasks = [JoinHandle<()>; 2];

/// A spare address that is answered at.
struct OpenSpare {
    address: IpAddr,
    branch: Branch,
    tasks: Tasks,
}

fn has_ended(tasks: &Tasks) -> bool {
    tasks.iter().any(JoinHandle::is_finished)
}

impl Service {
    /// Without records.
    pub fn new() -> Rc<Self> {
        Rc::new(Self {
            index: RefCell::default(),
            counters: RefCell::default(),
            forwards: Gate::new(FORWARDS.0, FORWARDS.1),
            connections: Gate::new(CONNECTIONS.0, CONNECTIONS.1),
            answerer: RefCell::default(),
            node: RefCell::default(),
            open: RefCell::default(),
            firewall: RefCell::new(Some(Firewall::new())),
            shared: RefCell::default(),
        })
    }

    /// A record was written or removed: other nodes may have to know.
    pub fn tell_others(&self, entry: &Entry) {
        if let Some(sharing) = self.shared.borrow().get(entry.network()) {
            let _ = sharing.send(entry.file().to_owned());
        }
    }

    /// Waits until the node's firewall is as it should be: nothing follows.
    pub async fn settle(&self) {
        let firewall = self.firewall.borrow_mut().take();
        if let Some(firewall) = firewall {
            firewall.settle().await;
        }
    }

    /// Opens the sockets of addresses that have come, and closes those of addresses that have gone.
    /// `again` also tries those where it failed before.
    pub fn listen(self: &Rc<Self>, again: bool) {
        let (index, mut open) = (self.index.borrow(), self.open.borrow_mut());
        // A task that has panicked leaves its address to the next attempt.
        open.tasks.retain(|_, tasks| !has_ended(tasks));
        if open.version == index.version && !again {
            return;
        }
        open.version = index.version;
        if let Some(firewall) = &mut *self.firewall.borrow_mut() {
            firewall.admit(index.bridges());
        }
        let wanted: Vec<IpAddr> = index.listening().collect();
        open.failed.retain(|it, _| wanted.contains(it));
        open.tasks.retain(|address, tasks| {
            let stays = wanted.contains(address);
            if !stays {
                tasks.iter().for_each(JoinHandle::abort);
                log::info(format_args!("no longer answering at {address}"));
            }
            stays
        });
        let spares: HashMap<IpAddr, Spare> =
            index.spares().map(|spare| (spare.gateway, spare)).collect();
        open.close_spares(&spares);
        for address in wanted {
            let spare = spares.get(&address);
            if let Some(spare) = spare.filter(|it| it.is_used) {
                // It was the only one at an earlier time. What fails now is tried again.
                let _ = self.serve_spare(&mut open, spare);
            }
            if open.tasks.contains_key(&address) {
                continue;
            }
            match self.serve(address) {
                Ok(tasks) => {
                    log::info(format_args!("answering at {address}"));
                    open.failed.remove(&address);
                    open.tasks.insert(address, tasks);
                }
                Err(error) => {
                    let mut why = format!("{error:#}");
                    if let Some(spare) = spare
                        && let Err(error) = self.serve_spare(&mut open, spare)
                    {
                        why.push_str(&format!("; nor at {}: {error:#}", spare.address.ip()));
                    }
                    if open.failed.insert(address, why.clone()).as_ref() != Some(&why) {
                        log::error(format_args!("cannot answer at {address}: {why}"));
                    }
                }
            }
        }
    }

    fn serve(self: &Rc<Self>, address: IpAddr) -> anyhow::Result<Tasks> {
        self.serve_on(Sockets::open(address)?, address)
    }

    /// Answers at a spare address as at the gateway.
    fn serve_spare(self: &Rc<Self>, open: &mut Open, spare: &Spare) -> anyhow::Result<()> {
        if open.spares.contains_key(&spare.gateway) {
            return Ok(());
        }
        let (branch, address) = (Branch::open(spare)?, spare.address.ip());
        let tasks = self.serve_on(branch.sockets(address)?, spare.gateway)?;
        let gateway = spare.gateway;
        log::warn(format_args!(
            "answering at {address}: another server has, or had, port 53 of {gateway}"
        ));
        let opened = OpenSpare {
            address,
            branch,
            tasks,
        };
        open.spares.insert(gateway, opened);
        Ok(())
    }

    /// Answers on these sockets the queries to `address`.
    fn serve_on(self: &Rc<Self>, sockets: Sockets, address: IpAddr) -> anyhow::Result<Tasks> {
        let Sockets { udp, tcp } = sockets;
        let udp = watched(udp)?;
        let tcp = TcpListener::from_std(tcp)?;
        Ok([
            spawn_local(Rc::clone(self).datagrams(address, udp)),
            spawn_local(Rc::clone(self).connections(address, tcp)),
        ])
    }

    /// The addresses of the network with this directory where the resolver answers.
    pub fn servers(&self, directory: &str) -> Vec<IpAddr> {
        let (index, open) = (self.index.borrow(), self.open.borrow());
        let wanted = index.network(directory).map(|it| &*it.about.listen);
        let wanted = wanted.unwrap_or_default().iter();
        wanted.filter_map(|it| open.address_for(it)).collect()
    }

    /// Where it cannot answer, and why.
    pub fn failed(&self) -> Vec<String> {
        let open = self.open.borrow();
        let without_spare = |(it, _): &(&IpAddr, _)| !open.spares.contains_key(it);
        let failed = open.failed.iter().filter(without_spare);
        let mut failed: Vec<_> = failed.map(|(_, why)| why.clone()).collect();
        failed.sort();
        failed
    }

    /// The servers that are asked for names which are not of containers: those of the networks, and for
    /// networks without any those of the node.
    pub fn upstreams(&self) -> BTreeSet<SocketAddr> {
        let (index, open) = (self.index.borrow(), self.open.borrow());
        let mut all = BTreeSet::new();
        for network in index.networks().map(|it| &it.about) {
            if network.internal {
                continue;
            }
            if network.servers.is_empty() {
                all.extend(self.node.borrow_mut().get());
            } else {
                all.extend(network.servers.iter().map(|it| it.0));
            }
        }
        all.retain(|it| !(it.port() == PORT && open.has(it.ip())));
        all
    }

    async fn datagrams(
        self: Rc<Self>,
        address: IpAddr,
        socket: AsyncFd<Source<std::net::UdpSocket>>,
    ) {
        // Answers of other servers are sent by the same port, later.
        let Source(udp) = socket.get_ref();
        let later = udp.try_clone().map(UdpSocket::from_std);
        let Ok(Ok(later)) = later else { return };
        let later = Rc::new(later);
        let mut datagrams = Datagrams::new();
        loop {
            let Ok(mut ready) = socket.readable().await else {
                return;
            };
            for _ in 0..TURNS {
                let received = datagrams.receive(udp);
                let start = Instant::now();
                match received {
                    Ok(number) => {
                        datagrams.answer(udp, |packet, from, out| {
                            self.datagram(&later, address, (packet, from), out)
                        });
                        let micros = start.elapsed().as_micros() as u64;
                        let mut counters = self.counters.borrow_mut();
                        counters.own_time.add(micros, number as u64);
                    }
                    Err(Errno::EAGAIN) => {
                        ready.clear_ready();
                        break;
                    }
                    // An ICMP message about an answer: the client has gone.
                    Err(_) => {}
                }
            }
            drop(ready);
            yield_now().await;
        }
    }

    /// Answers one datagram at once, or later. Whether `out` is to be sent.
    fn datagram(
        self: &Rc<Self>,
        later: &Rc<UdpSocket>,
        local: IpAddr,
        (packet, from): (&[u8], SocketAddr),
        out: &mut Vec<u8>,
    ) -> bool {
        // A server's port: two servers would answer each other's refusals.
        if from.port() == PORT || from.port() == 0 {
            return false;
        }
        match self.decide(local, from, packet, Transport::Udp, out) {
            Decision::Send => true,
            Decision::Nothing => false,
            Decision::Ask(forward, pass) => {
                let (service, socket) = (Rc::clone(self), Rc::clone(later));
                let packet = packet.to_vec();
                spawn_local(async move {
                    let _pass = pass;
                    let answer = service.forward(&forward, &packet, Transport::Udp).await;
                    let _ = socket.send_to(&fit(answer, forward.limit), from).await;
                });
                false
            }
        }
    }

    fn decide(
        &self,
        local: IpAddr,
        from: SocketAddr,
        packet: &[u8],
        transport: Transport,
        out: &mut Vec<u8>,
    ) -> Decision {
        let source = from.ip().to_canonical();
        let verdict = {
            let index = self.index.borrow();
            let mut answerer = self.answerer.borrow_mut();
            answerer.answer(&index, (local, source), packet, transport, out)
        };
        match verdict {
            Verdict::Reply(kind) => {
                self.counters.borrow_mut().count(kind);
                Decision::Send
            }
            Verdict::Silence => Decision::Nothing,
            Verdict::Forward(mut forward) => {
                if forward.servers.is_empty() {
                    let mut node = self.node.borrow_mut();
                    forward.servers = node.get().to_vec();
                }
                // A question must not come back.
                let open = self.open.borrow();
                let is_own = |it: &SocketAddr| it.port() == PORT && open.has(it.ip());
                forward.servers.retain(|it| !is_own(it));
                match self.forwards.enter(source) {
                    Some(pass) => Decision::Ask(forward, pass),
                    None => {
                        self.counters.borrow_mut().overloaded += 1;
                        *out = failure(packet, SERVFAIL);
                        Decision::Send
                    }
                }
            }
        }
    }

    async fn forward(&self, forward: &Forward, packet: &[u8], transport: Transport) -> Vec<u8> {
        let start = Instant::now();
        let answer = ask(&forward.servers, packet, transport).await;
        let mut counters = self.counters.borrow_mut();
        if answer.get(3).is_some_and(|it| it & 15 == SERVFAIL) {
            counters.failed += 1
        } else {
            counters.forwarded += 1
        }
        let micros = start.elapsed().as_micros() as u64;
        counters.forward_time.add(micros, 1);
        answer
    }

    async fn connections(self: Rc<Self>, address: IpAddr, listener: TcpListener) {
        loop {
            match listener.accept().await {
                Ok((stream, from)) => {
                    if let Some(pass) = self.connections.enter(from.ip()) {
                        let service = Rc::clone(&self);
                        spawn_local(async move {
                            let _pass = pass;
                            let _ = service.connection(address, from, stream).await;
                        });
                    }
                }
                // No descriptor is left: connections end.
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }

    /// Answers the questions of a connection, one after the other (RFC 7766).
    async fn connection(
        self: &Rc<Self>,
        local: IpAddr,
        from: SocketAddr,
        mut stream: TcpStream,
    ) -> std::io::Result<()> {
        let (mut packet, mut out) = (Vec::new(), Vec::new());
        loop {
            let length = timeout(IDLE, stream.read_u16()).await??;
            packet.resize(usize::from(length), 0);
            timeout(IDLE, stream.read_exact(&mut packet)).await??;
            let start = Instant::now();
            match self.decide(local, from, &packet, Transport::Tcp, &mut out) {
                Decision::Send => {}
                Decision::Nothing => return Ok(()),
                Decision::Ask(forward, _pass) => {
                    out = self.forward(&forward, &packet, Transport::Tcp).await;
                }
            }
            let length = (out.len() as u16).to_be_bytes();
            let answer = [&length[..], &out].concat();
            timeout(IDLE, stream.write_all(&answer)).await??;
            let micros = start.elapsed().as_micros() as u64;
            self.counters.borrow_mut().own_time.add(micros, 1);
        }
    }
}

impl Open {
    /// Closes the spare addresses of gateways that have gone, and those whose bridge has been deleted.
    fn close_spares(&mut self, spares: &HashMap<IpAddr, Spare>) {
        self.spares.retain(|gateway, open| {
            let wanted = spares.get(gateway);
            let stays =
                wanted.is_some_and(|it| !has_ended(&open.tasks) && open.branch.is_at(&it.bridge));
            if !stays {
                open.tasks.iter().for_each(JoinHandle::abort);
            }
            stays
        });
    }

    /// Where the containers with this gateway ask.
    fn address_for(&self, gateway: &IpAddr) -> Option<IpAddr> {
        if self.tasks.contains_key(gateway) {
            return Some(*gateway);
        }
        self.spares.get(gateway).map(|it| it.address)
    }

    /// Whether it is answered at this address.
    fn has(&self, address: IpAddr) -> bool {
        self.tasks.contains_key(&address) || self.spares.values().any(|it| it.address == address)
    }
}

enum Decision {
    Send,
    Nothing,
    Ask(Forward, Pass),
}
