//! Announces the addresses of a link to its neighbours.
//!
//! An address may have been another pod's a moment ago. Then the host and the other pods still
//! have it in their neighbour tables, with the other pod's hardware address, and lose packets
//! for about ten seconds, until those entries expire. The kernel announces addresses when a link
//! comes up (`arp_notify`, `ndisc_notify`), but the bridge does not yet forward for a new port
//! then. So the announcement is repeated when the port forwards, unless the caller knows that
//! no neighbour has another address: a bridge copies it to all of its ports.

use rtnetlink::{
    LinkMessageBuilder, LinkUnspec,
    packet_route::link::{AfSpecInet, AfSpecUnspec, InetDevConf, LinkAttribute},
};

use crate::{Error, Link, Netlink};

impl Netlink {
    /// Makes the kernel announce every address of `link`, by gratuitous ARP and unsolicited
    /// neighbour advertisement: `ip link set LINK address MAC`, with its present address.
    ///
    /// The kernel takes this for a change, and announces it where the settings `arp_notify` and
    /// `ndisc_notify` of the link are on. A packet socket could send the same, but closing one
    /// waits for RCU: ten milliseconds, while an ADD takes about five (`packet_release`,
    /// net/packet/af_packet.c).
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

/// Adds to the request that brings a link up what [`Netlink::announce`] needs:
/// `sysctl -w net.ipv4.conf.NAME.arp_notify=1`. The kernel sets it after the link is up, so nothing
/// is announced at once. The kernel has no netlink attribute for other settings, such as
/// `ndisc_notify`.
pub(crate) fn with_notify(up: LinkMessageBuilder<LinkUnspec>) -> LinkMessageBuilder<LinkUnspec> {
    let mut settings = InetDevConf::default();
    settings.arp_notify = 1;
    let settings = AfSpecInet::DevConfRequest(settings);
    let settings = LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet(vec![settings])]);
    up.append_extra_attribute(settings)
}
