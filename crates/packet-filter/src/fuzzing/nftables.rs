//! Every operation, with a kernel that answers what the fuzzer says.

use std::os::fd::AsRawFd;

use nix::libc;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, send, socketpair};

use nftables::Socket;
use nftables::message::HEADER;
use nftables::{Family, conntrack, listing, presence};

use crate::fuzzing;
use crate::masquerade::nftables as masquerade;
use crate::ports::nftables as hostport;
use crate::spoof_check::{self, SpoofCheck};

/// Does one operation after the other, each with a socket on which `input`'s
/// datagrams wait as answers: two bytes of length before each.
pub fn answered(input: &[u8]) {
    let (owner, valid) = (fuzzing::owner(), fuzzing::valid());
    let (masqueraded, published) = (fuzzing::masquerade(), fuzzing::host_ports());
    let checked = SpoofCheck {
        owner: owner.clone(),
        host_veth: "veth0".into(),
        mac: [2, 0, 0, 0, 0, 1],
    };
    let Some((which, input)) = input.split_first() else {
        return;
    };
    let socket = &answering(input);
    match which % 16 {
        0 => drop(masquerade::add(socket, &masqueraded)),
        1 => drop(masquerade::remove(socket, &owner)),
        2 => drop(masquerade::collect(socket, "net", &valid)),
        3 => drop(masquerade::missing(socket, &masqueraded)),
        4 => drop(hostport::publish(socket, &published)),
        5 => drop(hostport::unpublish(socket, &owner, None)),
        6 => drop(hostport::collect(socket, "net", &valid)),
        7 => drop(hostport::check(socket, &published)),
        8 => drop(spoof_check::add(socket, &checked, &|_| false)),
        9 => drop(spoof_check::remove(socket, &owner, &|_| false)),
        10 => drop(spoof_check::collect(socket, "net", &valid)),
        11 => drop(spoof_check::missing(socket, &checked)),
        12 => drop(listing::has_table(socket, Family::Ip)),
        13 => drop(presence::has_chain(socket, Family::Ip6, "nat", "c")),
        14 => drop(socket.generation()),
        _ => {
            let published = hostport::published(&published);
            drop(conntrack::flush(socket, &published, conntrack::Which::To));
        }
    }
}

/// A socket whose other end said all of `input` and is closed.
fn answering(input: &[u8]) -> Socket {
    let (ours, theirs) = socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_CLOEXEC,
    )
    .unwrap_or_else(|errno| panic!("make a pair of sockets: {errno}"));
    let mut seq = 1;
    for datagram in datagrams(input) {
        let datagram = numbered(datagram, &mut seq);
        // When its buffer is full, the rest is not said.
        if send(theirs.as_raw_fd(), &datagram, MsgFlags::MSG_DONTWAIT).is_err() {
            break;
        }
    }
    Socket::over(ours)
}

fn datagrams(mut input: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (length, rest) = input.split_first_chunk::<2>()?;
        let length = usize::from(u16::from_le_bytes(*length)).min(rest.len());
        let (datagram, rest) = rest.split_at(length);
        input = rest;
        Some(datagram)
    })
}

/// The messages with the number of the request that they answer, which the
/// fuzzer could only guess. One that ends an answer is followed by the next one's.
fn numbered(datagram: &[u8], seq: &mut u32) -> Vec<u8> {
    let mut datagram = datagram.to_vec();
    let mut at = 0;
    while let Some(header) = datagram.get_mut(at..at + HEADER) {
        let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        header[8..12].copy_from_slice(&seq.to_ne_bytes());
        let kind = i32::from(u16::from_ne_bytes([header[4], header[5]]));
        if matches!(kind, libc::NLMSG_ERROR | libc::NLMSG_DONE) {
            *seq += 1;
        }
        at += length.max(HEADER).next_multiple_of(4);
    }
    datagram
}
