//! Deleting a link without waiting for the end of it.
//!
//! A link is gone, with its name and its routes, a fraction of a millisecond
//! after the request; the request returns some 15 ms later, because the kernel
//! waits for RCU (`rcu_barrier` in `netdev_run_todo`, net/core/dev.c) before it
//! frees the memory. What waits is whoever asked, and nobody else: the routing
//! lock is released by then. So a child asks, and lives as long as that takes;
//! we go on when the kernel tells that the link is gone (`RTM_DELLINK` to the
//! group of links), or why not.
//!
//! The child shares our socket, so the kernel's answer to its request comes to us.
//! If it is killed before it asked, we ask.
//!
//! On a node where many pods end at once, every one of these sockets would be sent the
//! end of every link. A filter lets only the messages through that are waited for.

// SAFETY of the two `unsafe`: each is one system call that nix has no call for, with a
// structure of libc that lives beyond it and its true size.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use errand::REQUEST;
use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::sys::Socket;

use crate::executor::DEADLINE;
use crate::link::link_message;
use crate::refusal::Refusal;
use crate::{Error, Link, Netlink};

/// linux/rtnetlink.h
const RTNLGRP_LINK: u32 = 1;
const RTM_DELLINK: u16 = 17;
/// linux/netlink.h
const NLMSG_ERROR: u16 = 2;

/// The number of the next request: not one that rtnetlink gives to a request of
/// its own, nor one of ours before, whose answer may still be to come.
static SEQUENCE: AtomicU32 = AtomicU32::new(0x7f00_0000);

/// What is heard of a deletion.
#[derive(Clone, Debug, PartialEq, Eq)]
enum News {
    /// The link is gone.
    Gone,
    /// The kernel answered the request.
    Answer(Result<(), Refusal>),
    /// Messages were lost.
    Lost,
}

impl Netlink {
    /// Deletes `link`, by its index, and returns as soon as it is gone:
    /// `ip link delete NAME`. That it is gone already is fine. Of a veth pair, both ends
    /// go, whatever namespace the other one is in.
    ///
    /// # Errors
    /// When the kernel refuses, or does not answer in time.
    pub fn remove(&self, link: &Link) -> Result<(), Error> {
        let op = || format!("delete link {}", link.name);
        let removed = match self.remove_by_child(link.index) {
            Ok(Some(answer)) => answer.map_err(|refusal| Error::refused(op(), refusal)),
            // No child, or one that was killed: the long way.
            Ok(None) => {
                let request = RouteNetlinkMessage::DelLink(link_message(link.index));
                self.change(request, 0, op)
            }
            Err(errno) => Err(Error::new(op(), errno)),
        };
        match removed {
            Err(error) if error.is_not_found() => Ok(()),
            other => other,
        }
    }

    /// `None` when no child did it.
    fn remove_by_child(&self, index: u32) -> Result<Option<Result<(), Refusal>>, Errno> {
        let until = Instant::now() + DEADLINE;
        let sought = Sought {
            index,
            sequence: SEQUENCE.fetch_add(1, Ordering::Relaxed),
        };
        let request = sought.request();
        let child = self.with_socket(|socket| {
            // Without a filter there is only more to read.
            let _ = sought.filter(socket);
            let joined = socket.add_membership(RTNLGRP_LINK);
            joined
                .ok()
                .and_then(|()| errand::send(socket.as_fd(), request))
        });
        let stop = |socket: &mut Socket| {
            // Nothing else that uses this socket wants to hear of links.
            let _ = socket.drop_membership(RTNLGRP_LINK);
            let _ = no_filter(socket);
        };
        let answer = match child {
            Some(child) => self.await_news(child.ended(), sought, until),
            None => Ok(None),
        };
        self.with_socket(stop);
        answer
    }

    fn await_news(
        &self,
        child_ended: BorrowedFd<'_>,
        sought: Sought,
        until: Instant,
    ) -> Result<Option<Result<(), Refusal>>, Errno> {
        loop {
            let ended = self.with_socket(|socket| wait(socket, child_ended, until))?;
            let mut lost = false;
            while let Some(news) = self.with_socket(|socket| receive(socket, sought)) {
                match news? {
                    Some(News::Gone) => return Ok(Some(Ok(()))),
                    Some(News::Answer(answer)) => return Ok(Some(answer)),
                    Some(News::Lost) => lost = true,
                    None => {}
                }
            }
            // More is lost, untold, until all was read (`NETLINK_S_CONGESTED`): from now
            // on nothing is, and what was is asked for.
            if lost {
                let _ = self.with_socket(|socket| no_filter(socket));
            }
            if lost
                && self
                    .find_link_by_index(sought.index)
                    .is_ok_and(|it| it.is_none())
            {
                return Ok(Some(Ok(())));
            }
            if ended {
                // Whatever it was told would have been here before its end.
                return Ok(None);
            }
        }
    }
}

/// What we want to hear of.
#[derive(Clone, Copy)]
struct Sought {
    /// The link that is to go.
    index: u32,
    /// The number of the request.
    sequence: u32,
}

impl Sought {
    /// `ip link delete dev …`, by index: the name may be another link's soon.
    fn request(self) -> [u8; REQUEST] {
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | NLM_F_ACK;
        header.sequence_number = self.sequence;
        let message = RouteNetlinkMessage::DelLink(link_message(self.index));
        let mut message = NetlinkMessage::new(header, message.into());
        message.finalize();
        let mut bytes = [0; REQUEST];
        message.serialize(&mut bytes);
        bytes
    }

    /// Has `socket` drop every message but the answers to requests and the end of the
    /// link: a classic BPF program (socket(7), `SO_ATTACH_FILTER`).
    fn filter(self, socket: &Socket) -> io::Result<()> {
        const ACCEPT: u32 = u32::MAX;
        const DROP: u32 = 0;
        // It loads numbers as big-endian, whatever the machine is.
        let half = |value: u16| u32::from(u16::from_be(value));
        let load = |size: u32, at: u32| statement(libc::BPF_LD | size | libc::BPF_ABS, at, 0, 0);
        let equal =
            |value, yes, no| statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, value, yes, no);
        let end = |verdict| statement(libc::BPF_RET | libc::BPF_K, verdict, 0, 0);
        let mut program = [
            load(libc::BPF_H, 4),
            equal(half(NLMSG_ERROR), 6, 0),
            equal(half(RTM_DELLINK), 0, 4),
            load(libc::BPF_B, 16),
            equal(0, 0, 2),
            load(libc::BPF_W, 20),
            equal(u32::from_be(self.index), 1, 0),
            end(DROP),
            end(ACCEPT),
        ];
        let program = libc::sock_fprog {
            len: program.len() as u16,
            filter: program.as_mut_ptr(),
        };
        let size = size_of_val(&program) as libc::socklen_t;
        let (socket, value) = (socket.as_raw_fd(), &raw const program);
        let (level, option) = (libc::SOL_SOCKET, libc::SO_ATTACH_FILTER);
        // SAFETY: see the top; setsockopt(2) reads `size` bytes of `program`, and the
        // statements that it points to, which live until the call returns.
        let attached = unsafe { libc::setsockopt(socket, level, option, value.cast(), size) };
        succeeded(attached)
    }
}

/// `code` with its operand; where it compares, how many statements are passed over.
fn statement(code: u32, operand: u32, yes: u8, no: u8) -> libc::sock_filter {
    libc::sock_filter {
        code: code as u16,
        jt: yes,
        jf: no,
        k: operand,
    }
}

fn no_filter(socket: &Socket) -> io::Result<()> {
    let unused: libc::c_int = 0;
    let size = size_of_val(&unused) as libc::socklen_t;
    let (socket, value) = (socket.as_raw_fd(), &raw const unused);
    let (level, option) = (libc::SOL_SOCKET, libc::SO_DETACH_FILTER);
    // SAFETY: see the top; setsockopt(2) reads `size` bytes of `unused`.
    let detached = unsafe { libc::setsockopt(socket, level, option, value.cast(), size) };
    succeeded(detached)
}

fn succeeded(returned: libc::c_int) -> io::Result<()> {
    match returned {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Waits for news, or for the child's end, which is returned.
fn wait(socket: &Socket, ended: BorrowedFd<'_>, until: Instant) -> Result<bool, Errno> {
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left.as_millis() + 1).unwrap_or(PollTimeout::MAX);
        let mut fds = [
            PollFd::new(socket.as_fd(), PollFlags::POLLIN),
            PollFd::new(ended, PollFlags::POLLIN),
        ];
        match poll(&mut fds, timeout) {
            Ok(0) => return Err(Errno::ETIMEDOUT),
            Ok(_) => return Ok(fds[1].any().unwrap_or(true)),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

/// Reads a datagram: `None` when there is none, and `Some(Ok(None))` for one
/// that is about something else.
fn receive(socket: &Socket, sought: Sought) -> Option<Result<Option<News>, Errno>> {
    let mut datagram = Vec::with_capacity(16 * 1024);
    match socket.recv(&mut datagram, libc::MSG_DONTWAIT) {
        Ok(_) => Some(Ok(news(&datagram, sought))),
        Err(error) => match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::EAGAIN) => None,
            Some(Errno::EINTR) => Some(Ok(None)),
            Some(Errno::ENOBUFS) => Some(Ok(Some(News::Lost))),
            errno => Some(Err(errno.unwrap_or(Errno::EIO))),
        },
    }
}

/// What the messages of a datagram say of the deletion.
fn news(mut datagram: &[u8], sought: Sought) -> Option<News> {
    while let Some(length) = word(datagram, 0) {
        // One that was cut (a link may have thousands of other names) says enough.
        let message = datagram.get(..length as usize).unwrap_or(datagram);
        let kind = u16::from_ne_bytes(*message.get(4..)?.first_chunk()?);
        match kind {
            NLMSG_ERROR if word(message, 8)? == sought.sequence => {
                let flags = u16::from_ne_bytes(*message.get(6..)?.first_chunk()?);
                let code = word(message, 16)? as i32;
                let rest = message.get(20..).unwrap_or_default();
                let refusal = Refusal::read(flags, code, rest);
                return Some(News::Answer(refusal.map_or(Ok(()), Err)));
            }
            // A bridge tells with its own family that it lost a port, which is
            // still there then.
            RTM_DELLINK if message.get(16)? == &0 && word(message, 20)? == sought.index => {
                return Some(News::Gone);
            }
            _ => {}
        }
        datagram = datagram.get((length as usize).checked_next_multiple_of(4)?..)?;
    }
    None
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::fcntl::OFlag;
    use nix::unistd::pipe2;

    const SOUGHT: Sought = Sought {
        index: 7,
        sequence: 1000,
    };

    fn message(kind: u16, sequence: u32, body: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend((16 + body.len() as u32).to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend([0, 0]);
        bytes.extend(sequence.to_ne_bytes());
        bytes.extend([0; 4]);
        bytes.extend(body);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn gone(family: u8, index: u32) -> Vec<u8> {
        let mut body = vec![family, 0, 0, 0];
        body.extend(index.to_ne_bytes());
        body.extend([0; 8]);
        message(RTM_DELLINK, 0, &body)
    }

    fn answer(sequence: u32, code: i32) -> Vec<u8> {
        message(
            NLMSG_ERROR,
            sequence,
            &[code.to_ne_bytes(), [0; 4]].concat(),
        )
    }

    #[test]
    fn the_end_of_another_link_is_no_news() {
        assert_eq!(news(&gone(0, 7), SOUGHT), Some(News::Gone));
        assert_eq!(news(&gone(0, 8), SOUGHT), None);
        let both = [gone(0, 8), gone(0, 7)].concat();
        assert_eq!(news(&both, SOUGHT), Some(News::Gone));
    }

    #[test]
    fn a_port_that_left_its_bridge_is_not_gone() {
        const AF_BRIDGE: u8 = 7;
        assert_eq!(news(&gone(AF_BRIDGE, 7), SOUGHT), None);
    }

    #[test]
    fn of_a_child_that_ended_unheard_nothing_is_expected() {
        let netlink = Netlink::open().unwrap();
        let (ended, alive) = pipe2(OFlag::O_CLOEXEC).unwrap();
        drop(alive);
        let until = Instant::now() + DEADLINE;
        assert_eq!(netlink.await_news(ended.as_fd(), SOUGHT, until), Ok(None));
    }

    #[test]
    fn an_answer_is_that_to_our_request() {
        let ours = |code| news(&answer(SOUGHT.sequence, code), SOUGHT);
        assert_eq!(ours(0), Some(News::Answer(Ok(()))));
        assert_eq!(ours(-1), Some(News::Answer(Err(Errno::EPERM.into()))));
        assert_eq!(news(&answer(999, 0), SOUGHT), None);
    }

    #[test]
    fn what_is_cut_or_senseless_is_no_news() {
        let whole = gone(0, 7);
        for length in 0..whole.len() - 8 {
            assert_eq!(news(&whole[..length], SOUGHT), None, "{length}");
        }
        for length in [0, 1, 15, u32::MAX] {
            assert_eq!(
                news(&[length.to_ne_bytes(), [17; 4]].concat(), SOUGHT),
                None
            );
        }
    }
}
