//! The kernel's reports of changes to links, to addresses, and to the entries of an overlay's
//! device.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use nix::errno::Errno;
use nix::libc::{self, sock_filter};
use transport::{Message, Route, Socket, find, wait_readable};

use crate::Error;

/// A change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// The link with this index is new, gone, or has another property.
    Link(u32),
    /// An address of the link with this index came or went.
    Address(u32),
    /// A neighbour or a forwarding entry of the link with this index is gone.
    EntryGone(u32),
    /// A route through the link with this index is gone.
    RouteGone(u32),
    /// The kernel has dropped reports: look at everything.
    Overrun,
}

/// Receives changes of the namespace where it was opened.
#[derive(Debug)]
pub struct Monitor {
    socket: Socket<Route>,
    /// A hash of the properties of each link as they were last reported, by index and family of the
    /// message.
    links: HashMap<(u32, u8), u64>,
}

/// linux/rtnetlink.h: links, neighbours, addresses and routes.
const GROUPS: [u32; 6] = [1, 3, 5, 7, 9, 11];

/// New neighbours and routes are not received: a reconciliation adds thousands of them, and would
/// wake its own program for each.
const HEARD: [u16; 6] = [
    libc::RTM_NEWLINK,
    libc::RTM_DELLINK,
    libc::RTM_NEWADDR,
    libc::RTM_DELADDR,
    libc::RTM_DELROUTE,
    libc::RTM_DELNEIGH,
];

impl Monitor {
    /// Opens a socket in the calling thread's network namespace.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn open() -> Result<Self, Error> {
        let socket = Socket::open()?;
        let failed = |errno| Error::new("listen for changes of the network", errno);
        socket.set_filter(&mut filter()).map_err(failed)?;
        for group in GROUPS {
            socket.set_membership(group, true).map_err(failed)?;
        }
        Ok(Self {
            socket,
            links: HashMap::new(),
        })
    }

    /// Waits for the next change, until `until`, or until `other` can be read.
    pub fn wait(&self, other: BorrowedFd<'_>, until: Instant) {
        // A failure is found when the socket is read.
        let _ = wait_readable([self.socket.as_fd(), other], until);
    }

    /// Passes the changes that have been reported to `hear`. Does not wait.
    pub fn read(&mut self, mut hear: impl FnMut(Event)) {
        let links = &mut self.links;
        loop {
            match self.socket.try_receive(|message| {
                if let Some(event) = event(message)
                    && is_change(links, message)
                {
                    hear(event);
                }
            }) {
                Ok(true) => {}
                Ok(false) => return,
                Err(Errno::ENOBUFS) => hear(Event::Overrun),
                Err(_) => return hear(Event::Overrun),
            }
        }
    }
}

/// The index is at the same place in ifinfomsg, ifaddrmsg and ndmsg.
const INDEX: usize = 4;
/// Up to its field with the flags, and as a whole.
const FLAGS: usize = 12;
const IFINFOMSG: usize = 16;
const RTMSG: usize = 12;
/// The properties of a link that are compared: others, such as its counters, differ in every
/// report.
const PROPERTIES: [u16; 8] = [
    libc::IFLA_ADDRESS,
    libc::IFLA_IFNAME,
    libc::IFLA_MTU,
    libc::IFLA_LINK,
    libc::IFLA_MASTER,
    libc::IFLA_OPERSTATE,
    libc::IFLA_LINKINFO,
    libc::IFLA_IFALIAS,
];

/// Whether a report is not the repetition of an earlier one. The kernel repeats itself: for each VXLAN
/// device that is made on an interface, it reports the interface.
fn is_change(links: &mut HashMap<(u32, u8), u64>, message: Message<'_>) -> bool {
    if ![libc::RTM_NEWLINK, libc::RTM_DELLINK].contains(&message.kind) {
        return true;
    }
    let (Some(index), Some(family)) = (number(message.body.get(INDEX..)), message.body.first())
    else {
        return true;
    };
    let place = (index, *family);
    if message.kind == libc::RTM_DELLINK {
        links.remove(&place);
        return true;
    }
    let mut hasher = DefaultHasher::new();
    message.body.get(..FLAGS).hash(&mut hasher);
    let attributes = message.body.get(IFINFOMSG..).unwrap_or_default();
    for property in PROPERTIES {
        find(attributes, property).hash(&mut hasher);
    }
    let now = hasher.finish();
    links.insert(place, now) != Some(now)
}

fn number(bytes: Option<&[u8]>) -> Option<u32> {
    let bytes = bytes?.first_chunk::<4>()?;
    Some(u32::from_ne_bytes(*bytes))
}

fn event(message: Message<'_>) -> Option<Event> {
    let index = || number(message.body.get(INDEX..));
    Some(match message.kind {
        libc::RTM_NEWLINK | libc::RTM_DELLINK => Event::Link(index()?),
        libc::RTM_NEWADDR | libc::RTM_DELADDR => Event::Address(index()?),
        libc::RTM_DELNEIGH => Event::EntryGone(index()?),
        libc::RTM_DELROUTE => {
            let attributes = message.body.get(RTMSG..)?;
            Event::RouteGone(number(find(attributes, libc::RTA_OIF))?)
        }
        _ => return None,
    })
}

/// Accepts messages of the types in [`HEARD`].
fn filter() -> Vec<sock_filter> {
    let statement = |code: u32, k: u32, jt: usize, jf: usize| sock_filter {
        code: code as u16,
        jt: jt as u8,
        jf: jf as u8,
        k,
    };
    // The type in the header. It loads numbers as big-endian on every machine.
    let mut program = vec![statement(
        libc::BPF_LD | libc::BPF_H | libc::BPF_ABS,
        4,
        0,
        0,
    )];
    for (index, kind) in HEARD.into_iter().enumerate() {
        let kind = u32::from(u16::from_be(kind));
        let equal = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
        program.push(statement(equal, kind, HEARD.len() - index, 0));
    }
    program.push(statement(libc::BPF_RET | libc::BPF_K, 0, 0, 0));
    program.push(statement(libc::BPF_RET | libc::BPF_K, u32::MAX, 0, 0));
    program
}
