//! The node's own name servers.

use std::fs::Metadata;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// What the node's programs read.
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// The servers behind systemd-resolved, whose own address may be all that [`RESOLV_CONF`] has.
const BEHIND_RESOLVED: &str = "/run/systemd/resolve/resolv.conf";
/// As many as the C library asks (resolv.conf(5)).
const AT_MOST: usize = 3;
const PORT: u16 = 53;

/// The state of a file: another one has other content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp(u64, u64, i64, i64, u64);

impl Stamp {
    fn of(path: &str) -> Option<Self> {
        let of = |it: Metadata| Self(it.dev(), it.ino(), it.mtime(), it.mtime_nsec(), it.size());
        std::fs::metadata(path).ok().map(of)
    }
}

/// The node's servers, read again when a file has changed. The files are looked at with each use:
/// beside what the use costs, that is nothing, and it works whatever replaces them.
#[derive(Debug, Default)]
pub struct NodeServers {
    stamps: Option<[Option<Stamp>; 2]>,
    servers: Vec<SocketAddr>,
}

impl NodeServers {
    /// The servers to ask, in order.
    pub fn get(&mut self) -> &[SocketAddr] {
        let stamps = [RESOLV_CONF, BEHIND_RESOLVED].map(Stamp::of);
        if self.stamps != Some(stamps) {
            self.servers = read(RESOLV_CONF);
            // 127.0.0.53 and .54 are its stubs (systemd-resolved.service(8)).
            let is_stub = |it: &SocketAddr| match it.ip() {
                IpAddr::V4(ip) => [[127, 0, 0, 53], [127, 0, 0, 54]].contains(&ip.octets()),
                IpAddr::V6(_) => false,
            };
            if self
                .servers
                .iter()
                .all(|it| is_stub(it) || it.ip().is_loopback())
            {
                let behind = read(BEHIND_RESOLVED);
                if !behind.is_empty() {
                    self.servers = behind;
                }
            }
            self.stamps = Some(stamps);
            let list: Vec<_> = self.servers.iter().map(ToString::to_string).collect();
            crate::log::info(format_args!("the node's name servers: {}", list.join(", ")));
        }
        &self.servers
    }
}

fn read(path: &str) -> Vec<SocketAddr> {
    let text = cni::file::read_chosen(Path::new(path), 64 * 1024).unwrap_or_default();
    parse(&String::from_utf8_lossy(&text))
}

fn parse(text: &str) -> Vec<SocketAddr> {
    let words = text.lines().map(|line| {
        let mut words = line.split_whitespace();
        (words.next(), words.next())
    });
    let servers = words.filter_map(|it| match it {
        (Some("nameserver"), Some(address)) => server(address),
        _ => None,
    });
    servers.take(AT_MOST).collect()
}

/// An address, of IPv6 perhaps with the interface that leads there: `fe80::1%eth0`.
fn server(text: &str) -> Option<SocketAddr> {
    let Some((address, scope)) = text.split_once('%') else {
        return Some(SocketAddr::new(text.parse().ok()?, PORT));
    };
    let index = match scope.parse() {
        Ok(index) => index,
        Err(_) => nix::net::if_::if_nametoindex(scope).ok()?,
    };
    Some(SocketAddrV6::new(address.parse().ok()?, PORT, 0, index).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_read_as_the_c_library_does() {
        let text = "# nameserver 1.1.1.1\nsearch a b\nnameserver 192.0.2.1\nnameserver\tfe80::1%lo\n\
                    nameserver nonsense\nnameserver ::1 x\nnameserver 192.0.2.4\n";
        let servers: Vec<_> = parse(text).iter().map(ToString::to_string).collect();
        assert_eq!(servers, ["192.0.2.1:53", "[fe80::1%1]:53", "[::1]:53"]);
    }
}
