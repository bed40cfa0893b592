//! Requests of nf_tables over a netfilter socket, and how that socket is closed.

use std::cell::Cell;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{setsockopt, sockopt};
use transport::{Backoff, Error, Netfilter, Protocol, Refusal, find};

use crate::nfta::{NFNL_BATCH_GENID, NFTA_GEN_ID};
use crate::{Attributes, Family, Request};

/// How long a request is repeated while other programs change what it reads, and how often at least:
/// the first attempt on a node may take seconds, because the kernel loads modules.
const PATIENCE: Duration = Duration::from_secs(5);
const ATTEMPTS: usize = 10;

/// A request of nf_tables: `message` is `NFT_MSG_*`.
pub fn request(message: i32, flags: i32, family: Family, attributes: &Attributes) -> Request {
    let kind = (libc::NFNL_SUBSYS_NFTABLES as u16) << 8 | message as u16;
    Request::netfilter(kind, flags as u16, [family.number(), 0], attributes)
}

/// A batch that the kernel refused as a whole.
#[derive(Debug)]
pub struct Refused {
    /// The index of the first request that failed; `None` if the batch itself failed.
    pub request: Option<usize>,
    /// The kernel's error.
    pub refusal: Refusal,
}

/// A socket of nfnetlink, for the network namespace in which it was opened.
#[derive(Debug)]
pub struct Socket {
    inner: transport::Socket<Netfilter>,
    /// Something was deleted over this socket, or over another one a moment ago: a child process
    /// closes this socket.
    deleted: Cell<bool>,
    /// Something may have been deleted over another socket a moment ago: the next child process closes
    /// this socket.
    deleted_elsewhere: bool,
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inner.as_fd()
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // After a deletion, the close of any netfilter socket waits some ten milliseconds for RCU.
        // It holds the lock that every commit and every deletion of an interface need
        // (`nft_rcv_nl_event`, net/netfilter/nf_tables_api.c). After the grace period
        // of RCU, a close does not wait. So a child process closes the socket then.
        if self.deleted.get() {
            deferred::close(self.inner.as_fd());
        } else if self.deleted_elsewhere
            && let Ok(copy) = self.inner.as_fd().try_clone_to_owned()
        {
            deferred::close_with_next(copy);
        }
    }
}

impl Socket {
    /// Opens a socket. That needs no privilege, but all requests do.
    ///
    /// # Errors
    /// The kernel has no nfnetlink.
    pub fn open() -> Result<Self, Error> {
        transport::Socket::open().map(Self::new)
    }

    /// Uses a socket that is open already.
    pub fn over(fd: OwnedFd) -> Self {
        Self::new(transport::Socket::over(fd))
    }

    fn new(inner: transport::Socket<Netfilter>) -> Self {
        Self {
            inner,
            deleted: Cell::new(false),
            deleted_elsewhere: false,
        }
    }

    /// The same socket. A child process closes it if the program starts one anyway: for a program that
    /// runs a moment after another program may have deleted something.
    pub fn closed_later(self) -> Self {
        let mut socket = self;
        socket.deleted_elsewhere = true;
        socket
    }

    /// The same socket. A child process closes it: for a program that often runs right after another
    /// program that deleted something, and that starts no child process otherwise.
    pub fn closed_by_child(self) -> Self {
        self.deleted.set(true);
        self
    }

    /// The number of the rule set, which each commit of any program raises.
    ///
    /// # Errors
    /// The kernel has no nf_tables; no privilege.
    pub fn generation(&self) -> Result<u32, Error> {
        let attributes = Attributes::new();
        let kind = (libc::NFNL_SUBSYS_NFTABLES as u16) << 8 | libc::NFT_MSG_GETGEN as u16;
        let request = Request::netfilter(kind, 0, [libc::AF_UNSPEC as u8, 0], &attributes);
        let read = |answer: &[u8]| find(answer, NFTA_GEN_ID).and_then(Netfilter::u32);
        let found = self.get(&request, read);
        let found = found.and_then(|all| all.first().copied().ok_or(Errno::EBADMSG.into()));
        found.map_err(|refusal| Error::refused("read the generation of the rule set", refusal))
    }

    /// Receives the messages of a multicast group of nfnetlink (`NFNLGRP_*`) from now on.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn join(&self, group: u32) -> Result<(), Errno> {
        self.inner.set_membership(group, true)
    }

    /// Enlarges the receive buffer for the reports of a packet that passes thousands of rules.
    pub(crate) fn make_room(&self) {
        const BYTES: usize = 16 * 1024 * 1024;
        // Without the privilege, the buffer keeps its usual size.
        let _ = setsockopt(&self.inner, sockopt::RcvBufForce, &BYTES);
    }

    /// Passes family and attributes of each received message of nf_tables' type `message` to `hear`.
    /// Does not wait.
    ///
    /// # Errors
    /// `ENOBUFS` when the kernel has dropped messages; others when the socket fails.
    pub fn heard(&self, message: i32, hear: impl FnMut(u8, &[u8])) -> Result<(), Errno> {
        let kind = (libc::NFNL_SUBSYS_NFTABLES as u16) << 8 | message as u16;
        self.heard_of(kind, hear)
    }

    /// As [`Self::heard`], for messages of any subsystem of nfnetlink.
    ///
    /// # Errors
    /// As [`Self::heard`].
    pub(crate) fn heard_of(&self, kind: u16, mut hear: impl FnMut(u8, &[u8])) -> Result<(), Errno> {
        let mut hear = |it: transport::Message<'_>| {
            if it.kind == kind
                && let Some(family) = it.body.first()
            {
                hear(*family, it.netfilter_attributes());
            }
        };
        while self.inner.try_receive(&mut hear)? {}
        Ok(())
    }

    /// What `read` finds in the attributes of each answer to `request`.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn get<T>(
        &self,
        request: &Request,
        read: impl Fn(&[u8]) -> Option<T>,
    ) -> Result<Vec<T>, Refusal> {
        let mut all = Vec::new();
        self.inner
            .request(request, |it| all.extend(read(it.netfilter_attributes())))?;
        Ok(all)
    }

    /// What `read` finds in the attributes of each entry of a list. Entries that `read` does not want
    /// are not kept: there may be many.
    ///
    /// # Errors
    /// The kernel refuses; `EINTR` when others changed the list in each attempt.
    pub fn dump<T, I: IntoIterator<Item = T>>(
        &self,
        request: &Request,
        read: impl Fn(&[u8]) -> I,
    ) -> Result<Vec<T>, Refusal> {
        let read = |it: transport::Message<'_>| read(it.netfilter_attributes());
        let found = self.inner.dump(request, read)?;
        if found.interrupted {
            return Err(Errno::EINTR.into());
        }
        Ok(found.entries)
    }

    /// Sends the last request over this socket, for a list, and returns what `read` makes of the entries
    /// in its first datagram.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub fn begin_dump<T, I: IntoIterator<Item = T>>(
        &self,
        request: &Request,
        read: impl Fn(&[u8]) -> I,
    ) -> Result<Vec<T>, Refusal> {
        let read = |it: transport::Message<'_>| read(it.netfilter_attributes());
        self.inner.begin_dump(request, read)
    }

    /// Carries out all of `requests` or none. Carries out none (`ERESTART`) if the rule set no longer
    /// has the number `generation`. `deletes` says whether a request deletes anything.
    ///
    /// # Errors
    /// The first request that the kernel refuses.
    pub fn commit(
        &self,
        requests: Vec<Request>,
        generation: Option<u32>,
        deletes: bool,
    ) -> Result<(), Refused> {
        let last = requests.len();
        let mut batch = batch(requests, generation);
        batch.push(edge(libc::NFNL_MSG_BATCH_END, &Attributes::new()));
        self.send(&batch, last)?;
        if deletes {
            self.deleted.set(true);
        }
        Ok(())
    }

    /// Whether the kernel would carry out `requests`: a batch without an end is examined and
    /// dropped, as `nft --check` does.
    ///
    /// # Errors
    /// As [`Socket::commit`].
    pub fn check(&self, requests: Vec<Request>) -> Result<(), Refused> {
        let last = requests.len();
        self.send(&batch(requests, None), last)
    }

    fn send(&self, batch: &[Request], last: usize) -> Result<(), Refused> {
        // The errors of all requests come, in order; only an error of the batch itself comes
        // alone. After the kernel has loaded a module it starts again, and then reports the
        // batch's error as that of the request which needed the module.
        let is_final = |index, errno| index == 0 || errno == Errno::ERESTART;
        let refused = self
            .inner
            .batch(batch, last, is_final)
            .map_err(|errno| Refused {
                request: None,
                refusal: errno.into(),
            })?;
        match refused.into_iter().next() {
            None => Ok(()),
            Some((index, refusal)) => Err(Refused {
                request: index.checked_sub(1),
                refusal,
            }),
        }
    }
}

fn batch(requests: Vec<Request>, generation: Option<u32>) -> Vec<Request> {
    let mut begin = Attributes::new();
    if let Some(number) = generation {
        begin = begin.u32(NFNL_BATCH_GENID, number);
    }
    let mut batch = vec![edge(libc::NFNL_MSG_BATCH_BEGIN, &begin)];
    batch.extend(requests);
    batch
}

fn edge(kind: i32, attributes: &Attributes) -> Request {
    let header = [libc::AF_UNSPEC as u8, libc::NFNL_SUBSYS_NFTABLES as u8];
    Request::netfilter(kind as u16, 0, header, attributes)
}

/// Runs `attempt`, which reads, decides and writes. Repeats it if another program changed the rule set
/// in between (`ERESTART`).
///
/// # Errors
/// As `attempt`.
pub fn retry<T>(mut attempt: impl FnMut() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let mut backoff = Backoff::new(ATTEMPTS, PATIENCE);
    loop {
        let result = attempt();
        let errno = result
            .as_ref()
            .err()
            .and_then(|it| it.downcast_ref::<Error>());
        if errno.is_none_or(|it| it.errno() != Errno::ERESTART) || !backoff.again() {
            return result;
        }
    }
}

/// Whether the kernel lacks what was requested, as the error shows: it has no nfnetlink, no nf_tables,
/// or not this family.
pub fn is_absent(error: &Error) -> bool {
    matches!(
        error.errno(),
        Errno::EPROTONOSUPPORT
            | Errno::EAFNOSUPPORT
            | Errno::EPFNOSUPPORT
            | Errno::EOPNOTSUPP
            | Errno::ENOENT
            | Errno::EINVAL
    )
}
