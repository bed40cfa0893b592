//! The differences between the two netlink protocols.

use std::time::Duration;

use nix::sys::socket::SockProtocol;

/// A netlink protocol.
pub trait Protocol {
    /// Its number for socket(2).
    const NUMBER: SockProtocol;
    /// Whether to ask the kernel to apply the filters of a dump request
    /// (`NETLINK_GET_STRICT_CHK`, Linux 4.20). Older kernels ignore most of them.
    const STRICT_DUMPS: bool;
    /// How many times a dump is requested at least, while changes interrupt it.
    const DUMP_ATTEMPTS: usize;
    /// How long it is requested again at least.
    const DUMP_PATIENCE: Duration;

    /// Numbers as attributes hold them.
    fn encode<const N: usize>(native: [u8; N]) -> [u8; N];

    /// The number in an attribute.
    fn u32(value: &[u8]) -> Option<u32> {
        Some(u32::from_ne_bytes(Self::encode(value.try_into().ok()?)))
    }

    /// The number in an attribute.
    fn u64(value: &[u8]) -> Option<u64> {
        Some(u64::from_ne_bytes(Self::encode(value.try_into().ok()?)))
    }
}

/// `NETLINK_ROUTE`: links, addresses, routes, neighbours. Numbers are in native byte order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {}

impl Protocol for Route {
    const NUMBER: SockProtocol = SockProtocol::NetlinkRoute;
    const STRICT_DUMPS: bool = true;
    const DUMP_ATTEMPTS: usize = 5;
    const DUMP_PATIENCE: Duration = Duration::ZERO;

    fn encode<const N: usize>(native: [u8; N]) -> [u8; N] {
        native
    }
}

/// `NETLINK_NETFILTER`: nf_tables, conntrack. Numbers are big-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Netfilter {}

impl Protocol for Netfilter {
    const NUMBER: SockProtocol = SockProtocol::NetlinkNetFilter;
    const STRICT_DUMPS: bool = false;
    // The first attempt on a node may take seconds, because the kernel loads modules.
    const DUMP_ATTEMPTS: usize = 10;
    const DUMP_PATIENCE: Duration = Duration::from_secs(5);

    fn encode<const N: usize>(mut native: [u8; N]) -> [u8; N] {
        if cfg!(target_endian = "little") {
            native.reverse();
        }
        native
    }
}
