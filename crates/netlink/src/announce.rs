//! Telling the neighbours where an address is now.
//!
//! An address that was another pod's a moment ago is still in the neighbour
//! tables of the host and of its siblings, with the other's hardware address;
//! until those entries expire, for about ten seconds, packets are lost. What the
//! kernel sends when the link comes up (`arp_notify`, `ndisc_notify`) leaves
//! before the bridge forwards for the new port, and is lost too. So: have it
//! sent again when the port is up.

use crate::{Error, Link, Netlink};

impl Netlink {
    /// Has the kernel announce every address of `link`, by gratuitous ARP and
    /// unsolicited neighbour advertisement: `ip link set LINK address MAC`, with
    /// the address that it has.
    ///
    /// The kernel announces what it takes for a change, where the settings
    /// `arp_notify` and `ndisc_notify` of the link are on. A packet socket could
    /// send the same, but to close one waits for RCU: ten milliseconds, of which
    /// an ADD has about five (`packet_release`, net/packet/af_packet.c).
    ///
    /// # Errors
    /// When the kernel refuses, or the link is gone.
    pub fn announce(&self, link: &Link) -> Result<(), Error> {
        match link.mac {
            Some(mac) => self.set_mac(link.index, mac),
            // Without a hardware address it has no neighbours.
            None => Ok(()),
        }
    }
}
