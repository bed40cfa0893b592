//! Devices that move from one network namespace to another.
//!
//! A process in a pod with CAP_NET_ADMIN can change most properties of a device there: name,
//! alternative names, alias, addresses, index. It cannot change the kind of a link, the permanent
//! address and the bus of hardware, and the namespace of the other end or of the parent.

use std::os::fd::{AsFd, AsRawFd};

use netns::NetNs;
use nix::libc;
use rtnetlink::LinkMessageBuilder;
use transport::{Attributes, Message, Protocol, Request, Route, attributes, find};

use crate::{
    Error, HardwareAddress, Link, Netlink,
    link::{IFINFO, link},
    request::unless_absent,
};

/// linux/rtnetlink.h
const RTM_NEWLINKPROP: u16 = 108;
const RTM_DELLINKPROP: u16 = 109;

/// A link with the properties by which it is known in another namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Device {
    /// The link.
    pub link: Link,
    /// Its hardware address, of any length.
    pub address: HardwareAddress,
    /// The permanent address of the hardware; empty for links that are no hardware.
    pub permanent: HardwareAddress,
    /// The name of the device on its bus, such as `0000:00:1f.6`; empty for links that are no
    /// hardware, and before Linux 5.14.
    pub bus_id: String,
    /// Its alternative names.
    pub altnames: Vec<String>,
    /// Whether it is `lo`, under whatever name.
    pub loopback: bool,
}

impl Device {
    fn read(message: Message<'_>) -> Option<Self> {
        let (header, rest) = message.parts::<IFINFO>(libc::RTM_NEWLINK)?;
        let flags = Route::u32(&header[8..12])?;
        let bytes = |attribute| HardwareAddress(find(rest, attribute).unwrap_or_default().to_vec());
        let names = find(rest, libc::IFLA_PROP_LIST).unwrap_or_default();
        let names = attributes(names).filter(|(it, _)| *it == libc::IFLA_ALT_IFNAME);
        let text = |value| transport::text(value).unwrap_or_default().to_owned();
        Some(Self {
            address: bytes(libc::IFLA_ADDRESS),
            permanent: bytes(libc::IFLA_PERM_ADDRESS),
            bus_id: find(rest, libc::IFLA_PARENT_DEV_NAME).map_or_else(String::new, text),
            altnames: names.map(|(_, value)| text(value)).collect(),
            loopback: flags & libc::IFF_LOOPBACK as u32 != 0,
            link: Link::read(message)?,
        })
    }

    /// Whether it is hardware. When a namespace ends, the kernel moves its hardware to the first
    /// namespace, and deletes its other links.
    pub fn is_hardware(&self) -> bool {
        self.link.kind.is_none() && !self.loopback
    }
}

impl Netlink {
    /// The device called `name`, which may be an alternative name: `ip link show dev NAME`.
    ///
    /// # Errors
    /// When the kernel cannot be queried; an absent device is no error.
    pub fn find_device(&self, name: &str) -> Result<Option<Device>, Error> {
        self.find_as(name, Device::read)
    }

    /// Every link of the namespace: `ip -d link show`. Not for the hot path.
    ///
    /// # Errors
    /// When the kernel cannot be queried.
    pub fn list_devices(&self) -> Result<Vec<Device>, Error> {
        self.list_as(LinkMessageBuilder::default(), Device::read)
    }

    /// Moves a link to `netns`, where it gets `name` and `alias`: `ip link set OLD netns NETNS name
    /// NAME alias TEXT`, one request. It is down there, and has lost its addresses.
    ///
    /// # Errors
    /// `EEXIST`: the link is where it was if the target has a link with one of its alternative
    /// names, or two links with the old and the new name; if it has one with the new name only, the
    /// link has been moved under its old name. `EINVAL`: its kind cannot move.
    pub fn move_link(
        &self,
        index: u32,
        netns: &NetNs,
        name: &str,
        alias: &str,
    ) -> Result<(), Error> {
        let message = link(index)
            .setns_by_fd(netns.as_fd().as_raw_fd())
            .name(name)
            .alias(alias);
        self.set_link(message, || {
            format!("move {} to {:?}", self.name_of(index), netns.path())
        })
    }

    /// Adds an alternative name to a link: `ip link property add dev LINK altname NAME`.
    ///
    /// # Errors
    /// `EEXIST` when there is a link of that name.
    pub fn add_altname(&self, index: u32, name: &str) -> Result<(), Error> {
        let flags = libc::NLM_F_CREATE | libc::NLM_F_EXCL | libc::NLM_F_APPEND;
        self.change_altname(RTM_NEWLINKPROP, flags as u16, index, name)
            .map_err(|refusal| Error::refused(format!("add the altname {name}"), refusal))
    }

    /// Deletes an alternative name of a link: `ip link property del dev LINK altname NAME`. It may
    /// be absent.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn delete_altname(&self, index: u32, name: &str) -> Result<(), Error> {
        let deleted = self.change_altname(RTM_DELLINKPROP, 0, index, name);
        let op = || format!("delete the altname {name}");
        unless_absent(deleted.map_err(|refusal| Error::refused(op(), refusal)))
    }

    fn change_altname(
        &self,
        kind: u16,
        flags: u16,
        index: u32,
        name: &str,
    ) -> Result<(), transport::Refusal> {
        let mut body = vec![0; IFINFO];
        body[4..8].copy_from_slice(&index.to_ne_bytes());
        let names = Attributes::<Route>::new().text(libc::IFLA_ALT_IFNAME, name);
        let list = Attributes::new().nest(libc::IFLA_PROP_LIST, &names);
        body.extend(list.as_bytes());
        self.socket
            .request(&Request::new(kind, flags, body), |_| ())
    }
}
