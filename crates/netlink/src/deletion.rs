//! Deletes a link without waiting until the kernel has freed its memory.
//!
//! A link is gone, with its name and its routes, a fraction of a millisecond after the request.
//! The request returns some 15 ms later, because the kernel waits for RCU (`rcu_barrier` in
//! `netdev_run_todo`, net/core/dev.c) before it frees the memory. Only the requesting process
//! waits: the routing lock is released by then. So a child process sends the request and waits
//! (see [`deferred`]); we go on when the kernel reports that the link is gone (`RTM_DELLINK` to the
//! group of links), or why it refused.
//!
//! The kernel reports the end of a bridge late: it waits for RCU before, and keeps the routing lock
//! (`br_multicast_dev_del`, net/bridge/br_multicast.c). By then the name is free, and addresses and
//! routes are gone. So for a bridge, we go on when its settings for IPv4 are gone
//! (`RTM_DELNETCONF`), 15 ms earlier. Other changes of links wait for the lock during that time.
//!
//! The child shares our socket, so the answer to its request comes to us. If the child is killed
//! before it has sent the request, we send it.
//!
//! On a node where many pods end at once, each of these sockets would receive the end of every
//! link. A filter passes only the messages that are waited for.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use nix::errno::Errno;
use nix::libc::{self, AF_INET, AF_UNSPEC, NLMSG_ERROR, RTM_DELLINK, sock_filter};
use rtnetlink::packet_route::RouteNetlinkMessage;
use transport::{DEADLINE, HEADER, Message, Refusal, Request, Route, wait_readable};

use crate::link::{IFINFO, link};
use crate::request::unless_absent;
use crate::{Error, Link, Netlink};

/// How the kernel reports the end of a link (linux/rtnetlink.h).
#[derive(Clone, Copy)]
struct Report {
    /// The multicast group of the report.
    group: u32,
    /// Its message type.
    kind: u16,
    /// The address family, the first byte of its body. A bridge reports the loss of a port, which
    /// still exists, with the family of bridges.
    family: u8,
    /// The offset of the link's index in its body.
    index: usize,
}

/// `struct ifinfomsg`.
const END_OF_LINK: Report = Report {
    group: 1,
    kind: RTM_DELLINK,
    family: AF_UNSPEC as u8,
    index: 4,
};

/// `struct netconfmsg`, padded, and as the first attribute `NETCONFA_IFINDEX` (linux/netconf.h).
const END_OF_SETTINGS: Report = Report {
    group: 24,
    kind: 81,
    family: AF_INET as u8,
    index: 4 + 4,
};

impl Netlink {
    /// Deletes `link`, by its index, and returns as soon as it is gone:
    /// `ip link delete NAME`. It may be gone already. Of a veth pair, both ends
    /// are deleted, whatever namespace the other one is in.
    ///
    /// # Errors
    /// When the kernel refuses, or does not answer in time.
    pub fn remove(&self, link: &Link) -> Result<(), Error> {
        let op = || format!("delete link {}", link.name);
        let removed = match self.delete_in_child(link) {
            Ok(true) => Ok(()),
            Ok(false) => {
                let request = RouteNetlinkMessage::DelLink(self::link(link.index).build());
                self.change(request, 0, op)
            }
            Err(refusal) => Err(Error::refused(op(), refusal)),
        };
        unless_absent(removed)
    }

    /// Returns false if there was no child, or if it was killed before it sent the request.
    fn delete_in_child(&self, link: &Link) -> Result<bool, Refusal> {
        let until = Instant::now() + DEADLINE;
        let deletion = Deletion {
            index: link.index,
            sequence: self.socket.next_sequence(),
            report: if link.is_kind("bridge") {
                END_OF_SETTINGS
            } else {
                END_OF_LINK
            },
        };
        let group = deletion.report.group;
        // Without the filter there are only more messages to read.
        let _ = self.socket.set_filter(&mut deletion.filter());
        let child = self
            .socket
            .set_membership(group, true)
            .ok()
            .and_then(|()| deferred::send(self.socket.as_fd(), deletion.request()));
        let deleted = match child {
            Some(child) => self.await_end(child.ended(), deletion, until),
            None => Ok(false),
        };
        // Other users of this socket want no events.
        let _ = self.socket.set_membership(group, false);
        let _ = self.socket.set_filter(&mut []);
        deleted
    }

    fn await_end(
        &self,
        child: BorrowedFd<'_>,
        deletion: Deletion,
        until: Instant,
    ) -> Result<bool, Refusal> {
        loop {
            let [_, child_ended] = wait_readable([self.socket.as_fd(), child], until)?;
            let (mut outcome, mut lost) = (None, false);
            loop {
                let hear =
                    |message: Message<'_>| outcome = outcome.take().or(deletion.read(message));
                match self.socket.try_receive(hear) {
                    Ok(false) => break,
                    Ok(true) => {}
                    Err(Errno::ENOBUFS) => lost = true,
                    Err(errno) => return Err(errno.into()),
                }
                if let Some(outcome) = outcome {
                    return outcome.map(|()| true);
                }
            }
            if lost {
                // The kernel dropped events until the queue was drained
                // (`NETLINK_S_CONGESTED`). It is drained now, so query the link.
                let _ = self.socket.set_filter(&mut []);
                if self
                    .find_link_by_index(deletion.index)
                    .is_ok_and(|it| it.is_none())
                {
                    return Ok(true);
                }
            }
            if child_ended {
                // The answer to the child's request would have arrived before the child ended.
                return Ok(false);
            }
        }
    }
}

/// The deletion that is waited for.
#[derive(Clone, Copy)]
struct Deletion {
    /// The index of the link.
    index: u32,
    /// The number of the request.
    sequence: u32,
    /// How the kernel reports its end.
    report: Report,
}

impl Deletion {
    /// `ip link delete dev …`, by index: the name may soon be another link's.
    fn request(self) -> [u8; deferred::REQUEST] {
        let mut body = [0; IFINFO];
        body[4..8].copy_from_slice(&self.index.to_ne_bytes());
        let request = Request::<Route>::new(RTM_DELLINK, libc::NLM_F_ACK as u16, body.to_vec());
        let mut bytes = [0; deferred::REQUEST];
        bytes.copy_from_slice(&request.to_bytes(libc::NLM_F_REQUEST, self.sequence));
        bytes
    }

    /// A program that accepts the end of the link and the answers to requests.
    fn filter(self) -> [sock_filter; 9] {
        const ACCEPT: u32 = u32::MAX;
        const DROP: u32 = 0;
        // A filter loads numbers as big-endian on every machine.
        let half = |value: u16| u32::from(u16::from_be(value));
        let load = |size: u32, at: u32| statement(libc::BPF_LD | size | libc::BPF_ABS, at, 0, 0);
        let equal =
            |value, yes, no| statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, value, yes, no);
        let end = |verdict| statement(libc::BPF_RET | libc::BPF_K, verdict, 0, 0);
        [
            load(libc::BPF_H, 4),
            equal(half(NLMSG_ERROR as u16), 6, 0),
            equal(half(self.report.kind), 0, 4),
            load(libc::BPF_B, HEADER as u32),
            equal(self.report.family.into(), 0, 2),
            load(libc::BPF_W, (HEADER + self.report.index) as u32),
            equal(u32::from_be(self.index), 1, 0),
            end(DROP),
            end(ACCEPT),
        ]
    }

    /// The outcome of the deletion, if the message reports it: done or refused.
    fn read(self, message: Message<'_>) -> Option<Result<(), Refusal>> {
        if let Some(outcome) = message.outcome() {
            return (message.sequence == self.sequence).then_some(outcome);
        }
        let report = self.report;
        let index = message.body.get(report.index..)?.first_chunk()?;
        let gone = message.kind == report.kind
            && message.body[0] == report.family
            && *index == self.index.to_ne_bytes();
        gone.then_some(Ok(()))
    }
}

/// `code` with its operand; for a comparison, how many statements to skip.
fn statement(code: u32, operand: u32, yes: u8, no: u8) -> sock_filter {
    sock_filter {
        code: code as u16,
        jt: yes,
        jf: no,
        k: operand,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::fcntl::OFlag;
    use nix::unistd::pipe2;

    const DELETION: Deletion = Deletion {
        index: 7,
        sequence: 1000,
        report: END_OF_LINK,
    };

    fn read(kind: u16, sequence: u32, body: &[u8]) -> Option<Result<(), Refusal>> {
        let flags = 0;
        DELETION.read(Message {
            kind,
            flags,
            sequence,
            body,
        })
    }

    fn gone(family: u8, index: u32) -> Option<Result<(), Refusal>> {
        let mut body = [0; IFINFO];
        body[0] = family;
        body[4..8].copy_from_slice(&index.to_ne_bytes());
        read(RTM_DELLINK, 0, &body)
    }

    #[test]
    fn only_the_end_of_this_link_counts() {
        const AF_BRIDGE: u8 = 7;
        assert_eq!(gone(0, 7), Some(Ok(())));
        assert_eq!(gone(0, 8), None);
        assert_eq!(gone(AF_BRIDGE, 7), None);
    }

    #[test]
    fn a_bridge_is_gone_when_its_settings_are() {
        let deletion = Deletion {
            report: END_OF_SETTINGS,
            ..DELETION
        };
        let read = |kind, index: u32| {
            let mut body = [0; 12];
            body[0] = AF_INET as u8;
            body[8..].copy_from_slice(&index.to_ne_bytes());
            let (flags, sequence) = (0, 0);
            let body = &body;
            deletion.read(Message {
                kind,
                flags,
                sequence,
                body,
            })
        };
        assert_eq!(read(END_OF_SETTINGS.kind, 7), Some(Ok(())));
        assert_eq!(read(END_OF_SETTINGS.kind, 8), None);
        assert_eq!(read(END_OF_SETTINGS.kind - 1, 7), None);
    }

    #[test]
    fn only_the_answer_to_this_request_counts() {
        let answer = |sequence, code: i32| {
            read(
                NLMSG_ERROR as u16,
                sequence,
                &[code.to_ne_bytes(), [0; 4]].concat(),
            )
        };
        assert_eq!(answer(1000, 0), Some(Ok(())));
        assert_eq!(answer(1000, -1), Some(Err(Errno::EPERM.into())));
        assert_eq!(answer(999, 0), None);
    }

    #[test]
    fn a_child_that_ended_without_an_answer_has_deleted_nothing() {
        let netlink = Netlink::open().unwrap();
        let (ended, alive) = pipe2(OFlag::O_CLOEXEC).unwrap();
        drop(alive);
        let until = Instant::now() + DEADLINE;
        assert_eq!(netlink.await_end(ended.as_fd(), DELETION, until), Ok(false));
    }
}
