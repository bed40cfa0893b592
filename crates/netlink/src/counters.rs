//! How many packets links have carried, and lost.

use nix::libc;
use rtnetlink::{LinkMessageBuilder, LinkUnspec, packet_route::RouteNetlinkMessage};
use transport::{Message, Protocol, Route, find};

use crate::{Error, Netlink, link::IFINFO};

/// What a link has counted since it was made (`struct rtnl_link_stats64`, linux/if_link.h).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// The index of the link.
    pub index: u32,
    /// Packets that came in, and their bytes.
    pub received: [u64; 2],
    /// Packets that were sent, and their bytes.
    pub sent: [u64; 2],
    /// Packets that came in and were lost: errors and drops.
    pub receive_lost: u64,
    /// Packets that were to be sent and were lost.
    pub send_lost: u64,
}

impl Counters {
    fn read(message: Message<'_>) -> Option<Self> {
        let (header, rest) = message.parts::<IFINFO>(libc::RTM_NEWLINK)?;
        let numbers = find(rest, libc::IFLA_STATS64)?
            .chunks_exact(8)
            .map(Route::u64);
        let numbers: Vec<_> = numbers.collect::<Option<_>>()?;
        let [
            received,
            sent,
            received_bytes,
            sent_bytes,
            errors,
            send_errors,
            dropped,
            send_dropped,
        ] = *numbers.first_chunk::<8>()?;
        Some(Self {
            index: Route::u32(&header[4..8])?,
            received: [received, received_bytes],
            sent: [sent, sent_bytes],
            receive_lost: errors + dropped,
            send_lost: send_errors + send_dropped,
        })
    }
}

impl Netlink {
    /// The counters of all links: `ip -s link show`. Not for the hot path.
    ///
    /// # Errors
    /// When the kernel cannot be queried.
    pub fn list_counters(&self) -> Result<Vec<Counters>, Error> {
        let message = LinkMessageBuilder::<LinkUnspec>::default().build();
        let request = RouteNetlinkMessage::GetLink(message);
        self.dump_undecoded(request, Counters::read, || "list counters of links".into())
    }
}
