//! Telling the neighbours where an address is now.
//!
//! An address that was another pod's a moment ago is still in the neighbour
//! tables of the host and of its siblings, with the other's hardware address;
//! until those entries expire, for about ten seconds, packets are lost. What the
//! kernel sends when the link comes up (`arp_notify`, `ndisc_notify`) leaves
//! before the bridge forwards for the new port, and is lost too. So: have it
//! sent again when the port is up.

use rtnetlink::packet_route::link::{AfSpecInet, AfSpecUnspec, InetDevConf, LinkAttribute};

use crate::{Error, Link, Netlink, link::up_with_alias};

impl Netlink {
    /// Brings a link up and switches `arp_notify` on, which is to be on when
    /// [`Netlink::announce`] is called: `ip link set NAME up; sysctl -w
    /// net.ipv4.conf.NAME.arp_notify=1`, in one request. In this order nothing is
    /// announced before that. Other settings, `ndisc_notify` among them, the kernel
    /// takes from files only.
    ///
    /// # Errors
    /// When the kernel refuses; it has done nothing then.
    pub(crate) fn set_up_to_announce(&self, index: u32, alias: Option<&str>) -> Result<(), Error> {
        let mut settings = InetDevConf::default();
        settings.arp_notify = 1;
        let settings = AfSpecInet::DevConfRequest(settings);
        let mut message = up_with_alias(index, alias);
        message
            .attributes
            .push(LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet(vec![
                settings,
            ])]));
        self.set_link(message, || format!("set {} up", self.told(index)))
    }

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
