//! Follows one packet through the rules of iptables-legacy. These look at the same mark of a packet as
//! the rules of nf_tables (`meta nftrace`, which [`crate::trace`] sets), but the kernel logs what they do
//! (`-j TRACE`, nfnetlink_log) instead of reporting it.

use std::fs;
use std::path::PathBuf;

use nix::errno::Errno;
use nix::libc;
use transport::{Error, find, text};

use crate::trace::{addresses, ports};
use crate::{Attributes, Request, Socket};

// linux/netfilter/nfnetlink_log.h
const NFULNL_MSG_PACKET: u16 = 0;
const NFULNL_MSG_CONFIG: u16 = 1;
const NFULA_PAYLOAD: u16 = 9;
const NFULA_PREFIX: u16 = 10;
const NFULA_CFG_CMD: u16 = 1;
const NFULA_CFG_MODE: u16 = 2;
const NFULA_CFG_QTHRESH: u16 = 5;
const NFULNL_CFG_CMD_BIND: u8 = 1;
const NFULNL_COPY_PACKET: u8 = 2;

/// The headers of IPv6 and TCP, with room for options.
const COPIED: u32 = 128;

/// The program of the kernel that passes the log to a socket.
const LOGGER: &str = "nfnetlink_log";

/// The log of a namespace. Its drop restores the sysctl. If the process is killed,
/// `net.netfilter.nf_log.2` keeps the value `nfnetlink_log`: TRACE then logs nowhere, and LOG as before.
#[derive(Debug)]
pub struct PacketLog {
    socket: Socket,
    /// sysctl net.netfilter.nf_log.2
    setting: PathBuf,
    before: String,
}

/// A rule that a packet matched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Matched {
    /// The table.
    pub table: String,
    /// The chain.
    pub chain: String,
    /// The position of the rule in its chain, from 1; `None` for the policy.
    pub rule: Option<u32>,
    /// The source and destination of the packet at this moment.
    pub addresses: [std::net::IpAddr; 2],
    /// Source and destination port; of an echo request, its first four bytes.
    pub ports: Option<[u16; 2]>,
}

impl PacketLog {
    /// Opens the log of this thread's namespace for IPv4 or IPv6.
    ///
    /// # Errors
    /// `EBUSY` when another program, such as ulogd, has the log.
    pub fn open(is_ipv4: bool) -> Result<Self, Error> {
        let failed = |errno| Error::new("have the kernel log what iptables-legacy does", errno);
        let family = if is_ipv4 {
            libc::AF_INET
        } else {
            libc::AF_INET6
        };
        let setting = PathBuf::from(format!("/proc/sys/net/netfilter/nf_log/{family}"));
        let before = fs::read_to_string(&setting).unwrap_or_default();
        let log = Self {
            socket: Socket::open()?,
            setting,
            before: before.trim().to_owned(),
        };
        log.socket.make_room();
        // The group of TRACE is 0. The kernel frees it with the socket.
        log.configure(NFULA_CFG_CMD, &[NFULNL_CFG_CMD_BIND])
            .map_err(failed)?;
        let mode = [&COPIED.to_be_bytes()[..], &[NFULNL_COPY_PACKET, 0]].concat();
        log.configure(NFULA_CFG_MODE, &mode).map_err(failed)?;
        log.configure(NFULA_CFG_QTHRESH, &1u32.to_be_bytes())
            .map_err(failed)?;
        log.set(LOGGER).map_err(failed)?;
        Ok(log)
    }

    fn set(&self, logger: &str) -> Result<(), Errno> {
        if self.before == LOGGER {
            return Ok(());
        }
        let set = fs::write(&self.setting, logger);
        set.map_err(|error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw))
    }

    fn configure(&self, kind: u16, value: &[u8]) -> Result<(), Errno> {
        let message = (libc::NFNL_SUBSYS_ULOG as u16) << 8 | NFULNL_MSG_CONFIG;
        let attributes = Attributes::new().bytes(kind, value);
        let request = Request::netfilter(message, 0, [0, 0], &attributes);
        self.socket
            .get(&request, |_| None::<()>)
            .map(drop)
            .map_err(|refusal| refusal.errno)
    }

    /// What has been logged since the last call. Does not wait.
    ///
    /// # Errors
    /// The kernel has dropped some (`ENOBUFS`); the socket fails.
    pub fn matched(&self) -> Result<Vec<Matched>, Errno> {
        let mut all = Vec::new();
        let kind = (libc::NFNL_SUBSYS_ULOG as u16) << 8 | NFULNL_MSG_PACKET;
        self.socket.heard_of(kind, |_, attributes| {
            all.extend(Matched::read(attributes));
        })?;
        Ok(all)
    }
}

impl Drop for PacketLog {
    fn drop(&mut self) {
        let _ = self.set(&self.before);
    }
}

impl Matched {
    /// The prefix is `TRACE: TABLE:CHAIN:KIND:NUMBER `, with `rule`, `policy` or `return` as its kind.
    fn read(attributes: &[u8]) -> Option<Self> {
        let prefix = find(attributes, NFULA_PREFIX).and_then(text)?;
        let mut words = prefix.strip_prefix("TRACE: ")?.trim().splitn(2, ':');
        let (table, rest) = (words.next()?, words.next()?);
        // The name of a chain may contain a colon.
        let mut words = rest.rsplitn(3, ':');
        let (number, kind, chain) = (words.next()?, words.next()?, words.next()?);
        let rule = match kind {
            "rule" => Some(number.parse().ok()?),
            "policy" => None,
            _ => return None,
        };
        let packet = find(attributes, NFULA_PAYLOAD)?;
        let header = match packet.first()? >> 4 {
            4 => usize::from(packet.first()? & 0xf) * 4,
            _ => 40,
        };
        Some(Self {
            table: table.to_owned(),
            chain: chain.to_owned(),
            rule,
            addresses: addresses(packet)?,
            ports: packet.get(header..).and_then(ports),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_is_read_as_the_kernel_logs_it() {
        let mut packet = vec![0; 24];
        packet[0] = 0x45;
        packet[12..24].copy_from_slice(&[10, 1, 0, 2, 10, 1, 0, 3, 0x9c, 0x40, 0, 80]);
        let read = |prefix: &str| {
            let it = Attributes::new()
                .text(NFULA_PREFIX, prefix)
                .bytes(NFULA_PAYLOAD, &packet);
            Matched::read(it.as_bytes())
        };
        let it = read("TRACE: filter:a:b:rule:3 ").unwrap();
        assert_eq!(
            (it.table.as_str(), it.chain.as_str(), it.rule),
            ("filter", "a:b", Some(3))
        );
        assert_eq!(it.ports, Some([40000, 80]));
        assert_eq!(read("TRACE: filter:FORWARD:policy:1 ").unwrap().rule, None);
        assert_eq!(read("TRACE: filter:x:return:1 "), None);
        assert_eq!(read("dropped: "), None);
    }
}
