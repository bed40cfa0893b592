//! Announces the addresses of a link to its neighbours.
//!
//! An address may have been another pod's a moment ago. Then the host and the other pods still
//! have it in their neighbour tables, with the other pod's hardware address, and lose packets
//! for about ten seconds, until those entries expire. The kernel announces addresses when a link
//! comes up (`arp_notify`, `ndisc_notify`), but the bridge does not yet forward for a new port
//! then. So the announcement is repeated when the port forwards.

use rtnetlink::packet_route::link::{AfSpecInet, AfSpecUnspec, InetDevConf, LinkAttribute};

use crate::{Error, Link, Netlink, link::up_with_alias};

impl Netlink {
    /// Brings a link up and switches `arp_notify` on, as [`Netlink::announce`] needs it:
    /// `ip link set NAME up; sysctl -w net.ipv4.conf.NAME.arp_notify=1`, in one request. In
    /// this order, nothing is announced at once. The kernel has no netlink attribute for other
    /// settings, such as `ndisc_notify`.
    ///
    /// # Errors
    /// When the kernel refuses; nothing has changed then.
    pub(crate) fn set_up_to_announce(&self, index: u32, alias: Option<&str>) -> Result<(), Error> {
        let mut settings = InetDevConf::default();
        settings.arp_notify = 1;
        let settings = AfSpecInet::DevConfRequest(settings);
        let settings = LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet(vec![settings])]);
        let message = up_with_alias(index, alias).append_extra_attribute(settings);
        self.set_link(message, || format!("set {} up", self.name_of(index)))
    }

    /// Makes the kernel announce every address of `link`, by gratuitous ARP and unsolicited
    /// neighbour advertisement: `ip link set LINK address MAC`, with the address that it has.
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
