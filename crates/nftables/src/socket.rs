//! A netfilter socket: requests, dumps, batches. Synchronous, with a deadline.

use std::cell::Cell;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send,
    setsockopt, socket, sockopt,
};

use crate::error::Error;
use crate::message::{self, Attributes, Head, NETFILTER_HEADER, Received};

/// How long a request may take. A commit waits for those of others, each of
/// which may wait for RCU; Go's nft waits for ever.
const DEADLINE: Duration = Duration::from_secs(10);
/// How long to try again while others change what is being read, and how often
/// at least: the first attempt on a node may take seconds, with modules to load.
const PATIENCE: Duration = Duration::from_secs(5);
const ATTEMPTS: usize = 10;

const SUBSYSTEM: u16 = (libc::NFNL_SUBSYS_NFTABLES as u16) << 8;
const NFTA_GEN_ID: u16 = 1;
const NFNL_BATCH_GENID: u16 = 1;

/// The type of an nf_tables message.
pub const fn nftables(request: i32) -> u16 {
    SUBSYSTEM | request as u16
}

/// One message of a batch.
pub struct Request {
    /// Its header.
    pub head: Head,
    /// Its content.
    pub attributes: Attributes,
}

impl Request {
    fn deletes(&self) -> bool {
        const DELETIONS: [i32; 5] = [
            libc::NFT_MSG_DELTABLE,
            libc::NFT_MSG_DELCHAIN,
            libc::NFT_MSG_DELRULE,
            libc::NFT_MSG_DELSET,
            libc::NFT_MSG_DELSETELEM,
        ];
        DELETIONS
            .iter()
            .any(|kind| nftables(*kind) == self.head.kind)
    }
}

/// A batch that the kernel refused, as a whole.
#[derive(Debug)]
pub struct Refused {
    /// Which message it stumbled over first; none if it was the batch itself.
    pub message: Option<usize>,
    /// Why.
    pub errno: Errno,
    /// What the kernel says about it.
    pub told: Option<String>,
}

/// A socket into nfnetlink of the network namespace in which it was opened.
pub struct Socket {
    fd: OwnedFd,
    seq: Cell<u32>,
    /// What answers are read into.
    buffer: Cell<Vec<u8>>,
    /// Whether something was deleted over it.
    deleted: Cell<bool>,
    /// Whether something may have been deleted over another, a moment ago.
    lately: Cell<bool>,
}

impl Drop for Socket {
    fn drop(&mut self) {
        // Whoever closes any netfilter socket after a deletion waits some ten
        // milliseconds for RCU, holding the lock that every other commit and the end of
        // every interface wait for (`nft_rcv_nl_event`, net/netfilter/nf_tables_api.c);
        // whoever closes it when RCU is through does not.
        if self.deleted.get() {
            deferred::close(self.fd.as_fd());
        } else if self.lately.get()
            && let Ok(copy) = self.fd.try_clone()
        {
            deferred::close_with_next(copy);
        }
    }
}

impl Socket {
    /// Opens one; needs no privilege, but all requests do.
    pub fn open() -> Result<Self, Error> {
        let failed = |errno| Error::new("open a netfilter socket", errno);
        let fd = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkNetFilter,
        )
        .map_err(failed)?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0)).map_err(failed)?;
        hear_reasons(&fd);
        Ok(Self::over(fd))
    }

    /// Over a socket that is open already.
    pub fn over(fd: OwnedFd) -> Self {
        Self {
            fd,
            seq: Cell::new(1),
            buffer: Cell::default(),
            deleted: Cell::default(),
            lately: Cell::default(),
        }
    }

    /// Has it closed by a child, if there is one anyway: another plugin of the chain may
    /// have deleted something a moment ago.
    pub fn closed_later(self) -> Self {
        self.lately.set(true);
        self
    }

    /// The number of the rule set: each commit, of whomever, raises it.
    pub fn generation(&self) -> Result<u32, Error> {
        let head = Head {
            kind: nftables(libc::NFT_MSG_GETGEN),
            flags: 0,
            family: libc::AF_UNSPEC as u8,
            resource: 0,
        };
        let answers = self
            .request(head, &Attributes::new())
            .map_err(|errno| Error::new("read the generation of the rule set", errno))?;
        answers
            .first()
            .and_then(|answer| message::find(answer, NFTA_GEN_ID))
            .and_then(message::number)
            .ok_or_else(|| Error::new("read the generation of the rule set", Errno::EBADMSG))
    }

    /// One question; the attributes of each answer.
    pub fn request(&self, head: Head, attributes: &Attributes) -> Result<Vec<Vec<u8>>, Errno> {
        let flags = libc::NLM_F_REQUEST | libc::NLM_F_ACK;
        let mut answers = Vec::new();
        self.ask(head, flags, attributes, |it| answers.push(it.to_vec()))?;
        Ok(answers)
    }

    /// All that is there; the attributes of each answer. Once more when the
    /// kernel says that it changed meanwhile.
    pub fn dump(&self, head: Head, attributes: &Attributes) -> Result<Vec<Vec<u8>>, Errno> {
        self.search(head, attributes, |answer| [answer.to_vec()])
    }

    /// What `pick` finds in the attributes of each answer, as [`Socket::dump`]: much may be
    /// there and little be wanted, and memory to keep it all takes longer than to look.
    pub fn search<T, I: IntoIterator<Item = T>>(
        &self,
        head: Head,
        attributes: &Attributes,
        pick: impl Fn(&[u8]) -> I,
    ) -> Result<Vec<T>, Errno> {
        let flags = libc::NLM_F_REQUEST | libc::NLM_F_DUMP;
        retry(Errno::EINTR, || {
            let mut picked = Vec::new();
            self.ask(head, flags, attributes, |answer| {
                picked.extend(pick(answer));
            })?;
            Ok(picked)
        })
    }

    fn ask(
        &self,
        head: Head,
        flags: i32,
        attributes: &Attributes,
        mut hear: impl FnMut(&[u8]),
    ) -> Result<(), Errno> {
        let seq = self.next_seq();
        let mut buffer = Vec::new();
        let head = Head {
            flags: head.flags | flags as u16,
            ..head
        };
        message::append(&mut buffer, head, seq, attributes);
        self.send(&buffer)?;

        let (mut changed, mut failed) = (false, None);
        self.receive(|message| {
            if message.seq != seq {
                return false; // left over from a batch that was refused
            }
            changed |= message.flags & libc::NLM_F_DUMP_INTR as u16 != 0;
            match i32::from(message.kind) {
                libc::NLMSG_ERROR | libc::NLMSG_DONE => {
                    failed = errno(message);
                    true
                }
                _ => {
                    hear(message.body.get(NETFILTER_HEADER..).unwrap_or(&[]));
                    false
                }
            }
        })?;
        match failed {
            Some(errno) => Err(errno),
            None if changed => Err(Errno::EINTR),
            None => Ok(()),
        }
    }

    /// All of `requests` or none; none also if the rule set is not any more the
    /// one with number `generation` (`ERESTART`).
    pub fn commit(&self, requests: &[Request], generation: Option<u32>) -> Result<(), Refused> {
        let refused = |errno| Refused {
            message: None,
            errno,
            told: None,
        };
        let (buffer, first) = self.batch(requests, generation, true);
        self.send(&buffer).map_err(refused)?;
        let last = first.wrapping_add(requests.len() as u32);

        // The errors of all messages come, in order, then the acknowledgement
        // of the last; only an error of the batch itself comes alone. After the
        // kernel loaded a module it starts again, and then tells the batch's
        // error as that of the message which needed the module.
        let mut failed = None;
        self.receive(|message| {
            let at = message.seq.wrapping_sub(first);
            if i32::from(message.kind) != libc::NLMSG_ERROR || at > requests.len() as u32 {
                return false;
            }
            let errno = errno(message);
            if let Some(errno) = errno {
                failed.get_or_insert(Refused {
                    message: (at as usize).checked_sub(1),
                    errno,
                    told: told(message),
                });
            }
            message.seq == last || at == 0 || errno == Some(Errno::ERESTART)
        })
        .map_err(refused)?;
        if failed.is_none() && requests.iter().any(Request::deletes) {
            self.deleted.set(true);
        }
        failed.map_or(Ok(()), Err)
    }

    /// Whether the kernel would take `requests`: a batch without an end is
    /// looked at and dropped, as `nft --check` does.
    pub fn check(&self, requests: &[Request]) -> Result<(), Errno> {
        let (buffer, first) = self.batch(requests, None, false);
        self.send(&buffer)?;
        let last = first.wrapping_add(requests.len() as u32);
        let mut failed = None;
        self.receive(|message| {
            failed = failed.or(errno(message));
            message.seq == last || message.seq == first
        })?;
        failed.map_or(Ok(()), Err)
    }

    /// The bytes of a batch, and the number of its first message.
    fn batch(&self, requests: &[Request], generation: Option<u32>, ended: bool) -> (Vec<u8>, u32) {
        let edge = |kind: i32| Head {
            kind: kind as u16,
            flags: libc::NLM_F_REQUEST as u16,
            family: libc::AF_UNSPEC as u8,
            resource: libc::NFNL_SUBSYS_NFTABLES as u16,
        };
        let first = self.next_seq();
        let mut buffer = Vec::new();
        let begin = match generation {
            Some(number) => Attributes::new().u32(NFNL_BATCH_GENID, number),
            None => Attributes::new(),
        };
        message::append(&mut buffer, edge(libc::NFNL_MSG_BATCH_BEGIN), first, &begin);
        for (at, request) in requests.iter().enumerate() {
            // An acknowledgement for each would overflow the socket's buffer
            // with some 300 messages. Errors come unasked.
            let ack = if at + 1 == requests.len() {
                libc::NLM_F_ACK
            } else {
                0
            };
            let head = Head {
                flags: request.head.flags | (libc::NLM_F_REQUEST | ack) as u16,
                ..request.head
            };
            message::append(&mut buffer, head, self.next_seq(), &request.attributes);
        }
        if ended {
            let end = edge(libc::NFNL_MSG_BATCH_END);
            message::append(&mut buffer, end, self.next_seq(), &Attributes::new());
        }
        (buffer, first)
    }

    fn next_seq(&self) -> u32 {
        self.seq.replace(self.seq.get().wrapping_add(1))
    }

    fn send(&self, buffer: &[u8]) -> Result<(), Errno> {
        // A batch has to be one datagram, and that has to fit into the buffer,
        // the kernel's own overhead included.
        let wanted = buffer.len() * 2;
        if wanted > sockopt_bytes(&self.fd) {
            setsockopt(&self.fd, sockopt::SndBufForce, &wanted)
                .or_else(|_| setsockopt(&self.fd, sockopt::SndBuf, &wanted))?;
        }
        let sent = send(self.fd.as_raw_fd(), buffer, MsgFlags::empty())?;
        if sent != buffer.len() {
            return Err(Errno::EMSGSIZE);
        }
        Ok(())
    }

    /// Hands over messages until `last` says that one was the last.
    fn receive(&self, mut last: impl FnMut(Received<'_>) -> bool) -> Result<(), Errno> {
        let until = Instant::now() + DEADLINE;
        // The kernel fills what it is given, up to 32 KiB.
        let mut buffer = self.buffer.take();
        buffer.resize(64 * 1024, 0);
        loop {
            // Most answers are there before the question has returned.
            let length = match recv(self.fd.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
                Err(Errno::EAGAIN) => {
                    self.wait(until)?;
                    continue;
                }
                Err(Errno::EINTR) => continue,
                // Nothing more will come.
                Ok(0) => return Err(Errno::EBADMSG),
                other => other?,
            };
            let mut done = false;
            for message in message::received(&buffer[..length]) {
                done |= last(message);
            }
            if done {
                self.buffer.set(buffer);
                return Ok(());
            }
            // Much may come, and never the answer.
            if Instant::now() >= until {
                return Err(Errno::ETIMEDOUT);
            }
        }
    }

    fn wait(&self, until: Instant) -> Result<(), Errno> {
        let left = until.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let mut fds = [PollFd::new(self.fd.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, timeout) {
            Ok(0) => Err(Errno::ETIMEDOUT),
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(errno),
        }
    }
}

/// What the send buffer holds; 0 where that cannot be told.
fn sockopt_bytes(fd: &OwnedFd) -> usize {
    nix::sys::socket::getsockopt(fd, sockopt::SndBuf).unwrap_or(0)
}

/// The error in an acknowledgement or at the end of a dump; `None` for success.
fn errno(message: Received<'_>) -> Option<Errno> {
    let code = message.body.first_chunk().copied().map(i32::from_ne_bytes);
    match code {
        Some(0) => None,
        Some(code) => Some(Errno::from_raw(-code)),
        None => Some(Errno::EBADMSG),
    }
}

/// linux/netlink.h: the answer has not the whole request in it; it has attributes.
const NLM_F_CAPPED: u16 = 0x100;
const NLM_F_ACK_TLVS: u16 = 0x200;
const NLMSGERR_ATTR_MSG: u16 = 1;

/// What the kernel says about an error beside its errno. It follows the request, of which
/// there may be no more than the header.
fn told(message: Received<'_>) -> Option<String> {
    let request = message.body.get(4..)?;
    let length = match message.flags {
        flags if flags & NLM_F_ACK_TLVS == 0 => return None,
        flags if flags & NLM_F_CAPPED != 0 => message::HEADER,
        _ => u32::from_ne_bytes(*request.first_chunk()?) as usize,
    };
    let words = request.get(length.next_multiple_of(4)..)?;
    let words = message::find(words, NLMSGERR_ATTR_MSG)?;
    message::text(words).map(cni::as_cause)
}

/// Has the kernel say why it refuses a request, without the request; before 4.12 it does
/// not. That it cannot is no error.
#[allow(unsafe_code)]
fn hear_reasons(fd: &OwnedFd) {
    let on: libc::c_int = 1;
    let size = size_of_val(&on) as libc::socklen_t;
    for option in [libc::NETLINK_EXT_ACK, libc::NETLINK_CAP_ACK] {
        let value = (&raw const on).cast();
        // SAFETY: setsockopt(2) reads `size` bytes of `on`, which outlives the call.
        unsafe { libc::setsockopt(fd.as_raw_fd(), libc::SOL_NETLINK, option, value, size) };
    }
}

/// Tries again while the answer is `passing`, for as long as patience lasts.
pub fn retry<T, E: Failure>(
    passing: Errno,
    mut attempt: impl FnMut() -> Result<T, E>,
) -> Result<T, E> {
    let until = Instant::now() + PATIENCE;
    // Those who collided once should not collide in step for ever.
    let mut pause = Duration::from_micros(u64::from(std::process::id() % 64));
    let mut count = 0;
    loop {
        count += 1;
        match attempt() {
            Err(error)
                if error.errno() == Some(passing)
                    && (count < ATTEMPTS || Instant::now() < until) =>
            {
                sleep(pause);
                pause = (pause * 2 + Duration::from_micros(50)).min(Duration::from_millis(5));
            }
            result => return result,
        }
    }
}

/// An error that may have an errno.
pub trait Failure {
    /// It.
    fn errno(&self) -> Option<Errno>;
}

impl Failure for Errno {
    fn errno(&self) -> Option<Errno> {
        Some(*self)
    }
}

impl Failure for anyhow::Error {
    fn errno(&self) -> Option<Errno> {
        self.downcast_ref::<Error>().map(Error::errno)
    }
}
