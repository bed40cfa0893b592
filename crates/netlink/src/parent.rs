//! Links as parents of others: of macvlans, for example.

use nix::libc;
use rtnetlink::LinkMessageBuilder;
use transport::{Message, Protocol, Route, find};

use crate::{Error, Link, Netlink, link::IFINFO};

/// A link with the properties that matter for a parent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parent {
    /// The link.
    pub link: Link,
    /// Whether it has a carrier. A network card has none while it is down or unplugged; a link
    /// without a wire (a dummy, a bridge) always has one. Its children have the same.
    pub carrier: bool,
    /// Whether its frames have hardware addresses. `lo` and tunnels for packets have none, so
    /// they cannot carry macvlans.
    pub ethernet: bool,
}

impl Parent {
    pub(crate) fn read(message: Message<'_>) -> Option<Self> {
        let (header, rest) = message.parts::<IFINFO>(libc::RTM_NEWLINK)?;
        let hardware = u16::from_ne_bytes(*header[2..].first_chunk()?);
        let flags = Route::u32(&header[8..12])?;
        Some(Self {
            carrier: find(rest, libc::IFLA_CARRIER) == Some(&[1]),
            ethernet: hardware == libc::ARPHRD_ETHER && flags & libc::IFF_LOOPBACK as u32 == 0,
            link: Link::read(message)?,
        })
    }
}

impl Netlink {
    /// The link called `name` as a possible parent: `ip link show dev NAME`.
    ///
    /// # Errors
    /// When the kernel cannot be queried; an absent link is no error.
    pub fn find_parent(&self, name: &str) -> Result<Option<Parent>, Error> {
        self.find_as(name, Parent::read)
    }

    /// Every link of the namespace as a possible parent: `ip link show`.
    ///
    /// # Errors
    /// When the kernel cannot be queried.
    pub fn list_parents(&self) -> Result<Vec<Parent>, Error> {
        self.list_as(LinkMessageBuilder::default(), Parent::read)
    }
}
