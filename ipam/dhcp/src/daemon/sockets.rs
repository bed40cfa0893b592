//! The packet sockets of all leases: how many may be open, and how they are closed.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};

use anyhow::{Context, Result, bail};
use netlink::Link;
use netns::NetNs;

use crate::socket::Socket;

pub struct Sockets {
    limit: usize,
    /// Those that are open, including those that are being closed.
    open: Arc<AtomicUsize>,
    /// Closing a packet socket waits for RCU, about ten milliseconds. Another thread does
    /// it, so that the packets of other leases are not delayed.
    closing: mpsc::Sender<OwnedFd>,
}

impl Sockets {
    /// Starts the thread that closes sockets.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn new(limit: usize) -> Result<Self> {
        let (closing, closed) = mpsc::channel::<OwnedFd>();
        let open = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&open);
        let close = move |socket| {
            drop(socket);
            counter.fetch_sub(1, Ordering::Relaxed);
        };
        std::thread::Builder::new()
            .name("close".into())
            .stack_size(64 * 1024)
            .spawn(move || closed.into_iter().for_each(close))
            .context("start a thread")?;
        Ok(Self {
            limit,
            open,
            closing,
        })
    }

    /// Opens a socket as [`Socket::open`] does.
    ///
    /// # Errors
    /// When too many are open, and as there.
    pub fn open(&self, netns: &NetNs, link: &Link, xid: u32) -> Result<Socket> {
        if self.open.load(Ordering::Relaxed) >= self.limit {
            bail!("too many leases are being acquired or renewed at once");
        }
        let socket = Socket::open(netns, link, xid)?;
        self.open.fetch_add(1, Ordering::Relaxed);
        Ok(socket)
    }

    pub fn close(&self, socket: Socket) {
        // It cannot fail: the thread ends after this sender.
        let _ = self.closing.send(socket.into());
    }
}
