//! What the daemon waits for, by epoll(7): plugins that connect, plugins that call,
//! answers of servers, signals and timers.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use anyhow::{Result, anyhow};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::signal::SigSet;
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::clock::now;
use super::descriptors::Spare;
use super::listener::Listener;
use crate::lease::Millis;

/// How long to accept no connection when no descriptor is left even to close one.
const PAUSE: Millis = 100;

/// What an event is about. Its data in epoll is the kind in the upper half, the key in
/// the lower.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Token {
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

    fn from_data(data: u64) -> Self {
        let key = data as u32;
        match data >> 32 {
            0 => Self::Listener,
            1 => Self::Signal,
            2 => Self::Connection(key),
            _ => Self::Lease(key),
        }
    }
}

/// No descriptor was left for a connection, which is closed.
pub struct NoDescriptor;

pub struct Reactor {
    epoll: Epoll,
    listener: Listener,
    /// Open so that epoll reports it.
    _signals: SignalFd,
    /// Kept to close connections with, when no other descriptor is left.
    spare: Spare,
    /// No connection is accepted before this time.
    paused_until: Option<Millis>,
}

impl Reactor {
    /// Waits for connections to `listener` and for `signals` from now on.
    ///
    /// # Errors
    /// When no descriptors are left.
    pub fn new(listener: Listener, signals: &SigSet) -> Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        let signals = SignalFd::with_flags(signals, flags)?;
        let reactor = Self {
            epoll,
            listener,
            _signals: signals,
            spare: Spare::new()?,
            paused_until: None,
        };
        reactor.add(&reactor.listener.socket, Token::Listener)?;
        reactor.add(&reactor._signals, Token::Signal)?;
        Ok(reactor)
    }

    /// Reports when `fd` can be read.
    ///
    /// # Errors
    /// When the kernel has no memory for it.
    pub fn add(&self, fd: impl AsFd, token: Token) -> Result<(), Errno> {
        self.add_with(fd, token, EpollFlags::EPOLLIN)
    }

    /// Reports once each time `fd` becomes readable, or writable after it was full.
    ///
    /// # Errors
    /// As [`Reactor::add`].
    pub fn add_edges(&self, fd: impl AsFd, token: Token) -> Result<(), Errno> {
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLET;
        self.add_with(fd, token, flags)
    }

    fn add_with(&self, fd: impl AsFd, token: Token, flags: EpollFlags) -> Result<(), Errno> {
        self.epoll.add(fd, EpollEvent::new(flags, token.to_data()))
    }

    /// Reports nothing about `fd` any more.
    pub fn remove(&self, fd: impl AsFd) {
        let _ = self.epoll.delete(fd);
    }

    /// Waits for events, until `due` at the latest.
    ///
    /// # Errors
    /// When epoll_wait(2) fails.
    pub fn wait(&self, due: Option<Millis>) -> Result<Vec<Token>> {
        // The kernel's timeout does not count time asleep: look at the clock now and then.
        const LONGEST: Millis = 60_000;
        let due = [due, self.paused_until].into_iter().flatten().min();
        let wait = due.unwrap_or(Millis::MAX).saturating_sub(now());
        let timeout = EpollTimeout::from(wait.min(LONGEST) as u16);
        let mut events = [EpollEvent::empty(); 64];
        let count = match self.epoll.wait(&mut events, timeout) {
            Ok(count) => count,
            Err(Errno::EINTR) => 0,
            Err(errno) => return Err(anyhow!("wait for events: {}", errno.desc())),
        };
        let tokens = events[..count].iter();
        Ok(tokens.map(|event| Token::from_data(event.data())).collect())
    }

    /// The next connection of a plugin, if there is one.
    ///
    /// # Errors
    /// When it had to be closed for want of a descriptor.
    pub fn accept(&mut self) -> Result<Option<UnixStream>, NoDescriptor> {
        loop {
            match self.listener.socket.accept() {
                Ok((stream, _)) => return Ok(Some(stream)),
                Err(error) => match error.raw_os_error().map(Errno::from_raw) {
                    Some(Errno::EAGAIN) => return Ok(None),
                    // The plugin has closed it.
                    Some(Errno::ECONNABORTED | Errno::EINTR) => {}
                    _ if self.close_one() => return Err(NoDescriptor),
                    // The socket stays readable: trying again at once would use all of a CPU.
                    _ => {
                        self.paused_until = Some(now() + PAUSE);
                        self.report_connections(false);
                        return Ok(None);
                    }
                },
            }
        }
    }

    /// Accepts one connection with the spare descriptor, and closes it: the plugin fails
    /// at once instead of waiting.
    fn close_one(&mut self) -> bool {
        self.spare.lend(|| self.listener.socket.accept().is_ok())
    }

    /// Accepts connections again after a pause that is over.
    pub fn end_pause(&mut self, now: Millis) {
        if self.paused_until.is_some_and(|until| until <= now) {
            self.paused_until = None;
            self.report_connections(true);
        }
    }

    fn report_connections(&self, wanted: bool) {
        let flags = if wanted {
            EpollFlags::EPOLLIN
        } else {
            EpollFlags::empty()
        };
        let mut event = EpollEvent::new(flags, Token::Listener.to_data());
        // It is registered, so nothing is allocated and nothing can fail.
        let _ = self.epoll.modify(&self.listener.socket, &mut event);
    }
}
