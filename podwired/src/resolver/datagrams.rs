//! Many datagrams with one system call: recvmmsg(2).

use std::io::IoSliceMut;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrStorage, recvmmsg};

/// How many at once.
pub const AT_ONCE: usize = 32;
/// The longest question: that of a client which sends options of EDNS.
const LONGEST: usize = 4096;

/// Room for what is received, and for the answers.
pub struct Datagrams {
    headers: MultiHeaders<SockaddrStorage>,
    questions: Vec<[u8; LONGEST]>,
    received: Vec<(usize, SockaddrStorage)>,
    answers: Vec<Vec<u8>>,
    to: Vec<SocketAddr>,
}

impl Datagrams {
    /// Empty.
    pub fn new() -> Self {
        Self {
            headers: MultiHeaders::preallocate(AT_ONCE, None),
            questions: vec![[0; LONGEST]; AT_ONCE],
            received: Vec::with_capacity(AT_ONCE),
            answers: (0..AT_ONCE).map(|_| Vec::with_capacity(LONGEST)).collect(),
            to: Vec::with_capacity(AT_ONCE),
        }
    }

    /// Receives what has come. Returns how many.
    ///
    /// # Errors
    /// EAGAIN if there is nothing.
    pub fn receive(&mut self, socket: &UdpSocket) -> Result<usize, Errno> {
        self.received.clear();
        let questions = self.questions.iter_mut();
        let mut slices: Vec<_> = questions.map(|it| [IoSliceMut::new(it)]).collect();
        let flags = MsgFlags::MSG_DONTWAIT;
        let fd = socket.as_raw_fd();
        let results = recvmmsg(fd, &mut self.headers, slices.iter_mut(), flags, None)?;
        for message in results {
            let is_whole = !message.flags.contains(MsgFlags::MSG_TRUNC);
            if let Some(from) = message.address.filter(|_| is_whole) {
                self.received.push((message.bytes, from));
            } else {
                self.received.push((
                    0,
                    SockaddrStorage::from(SocketAddr::from(([0, 0, 0, 0], 0))),
                ));
            }
        }
        Ok(self.received.len())
    }

    /// Has each that was received answered: `answer` gets the datagram, its sender and a buffer, and
    /// returns whether that is to be sent. Then sends all.
    pub fn answer(
        &mut self,
        socket: &UdpSocket,
        mut answer: impl FnMut(&[u8], SocketAddr, &mut Vec<u8>) -> bool,
    ) {
        self.to.clear();
        for (question, (length, from)) in self.questions.iter().zip(&self.received) {
            let buffer = self.answers.get_mut(self.to.len());
            let (Some(buffer), Some(sender)) = (buffer, address(from)) else {
                continue;
            };
            if answer(&question[..*length], sender, buffer) {
                self.to.push(sender);
            }
        }
        for (answer, to) in self.answers.iter().zip(&self.to) {
            // A client that has gone gets none.
            let _ = socket.send_to(answer, to);
        }
    }
}

fn address(from: &SockaddrStorage) -> Option<SocketAddr> {
    if let Some(v4) = from.as_sockaddr_in() {
        return Some(SocketAddr::V4((*v4).into()));
    }
    from.as_sockaddr_in6()
        .map(|it| SocketAddr::V6((*it).into()))
}
