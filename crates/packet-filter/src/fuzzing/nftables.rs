//! Every operation of nf_tables, with the fuzzer's input as the kernel's answers.

use std::os::fd::AsRawFd;

use nix::libc;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, send, socketpair};

use nftables::{Family, Socket, listing};

use crate::backend::Nftables;
use crate::fuzzing;
use crate::masquerade::nftables as masquerade;
use crate::ports::{Connections, UdpPort, delete_connections, nftables as ports};
use crate::spoof_check::SpoofCheck;

/// Does the operation that the first byte of `input` selects, over a socket on which the rest waits
/// as answers: datagrams, each after two bytes of length.
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
    let nftables = Nftables {
        socket: answering(input),
    };
    let socket = &nftables.socket;
    match which % 16 {
        0 => drop(masquerade::add(socket, &masqueraded)),
        1 => drop(masquerade::remove(socket, &owner)),
        2 => drop(masquerade::collect(socket, "net", &valid)),
        3 => drop(masquerade::rules(socket).map(|it| masquerade::missing(&it, &masqueraded))),
        4 => drop(ports::publish(socket, &published)),
        5 => drop(ports::unpublish(socket, &owner, None)),
        6 => drop(ports::collect(socket, "net", &valid)),
        7 => drop(ports::check(socket, &published)),
        8 => drop(nftables.ensure_spoof_check(&checked, &|_| false)),
        9 => drop(nftables.remove_spoof_check(&owner, &|_| false)),
        10 => drop(nftables.collect_spoof_checks("net", &valid)),
        11 => drop(nftables.check_spoof_check(&checked)),
        12 => drop(listing::has_tables(socket, Family::Ip)),
        13 => drop(listing::has_chain(socket, Family::Ip6, "nat", "c")),
        14 => drop(socket.generation()),
        _ => delete_connections(socket, &UdpPort::all(&published), Connections::ToPod),
    }
}

/// A socket whose other end has sent all of `input` and is closed.
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
        // When its buffer is full, the rest is not sent.
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

/// Bytes of `struct nlmsghdr`.
const HEADER: usize = 16;

/// The messages with the number of the request that they answer, which the fuzzer could only guess.
/// After one that ends an answer, the next request's number counts.
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
