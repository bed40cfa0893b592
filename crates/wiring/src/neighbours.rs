//! What the neighbours of a bridge's pods may remember: for each address, the MAC that had it last.
//!
//! A neighbour that remembers another MAC than the pod has loses packets for about ten seconds,
//! unless the pod is announced. But a bridge copies an announcement to all of its ports: 9 ms of an
//! ADD beside 900 pods. A pod's MAC is derived from its address ([`crate::mac::derived`]), so an
//! address that comes back usually has the MAC that it had. Then nothing is announced.
//!
//! The table of a bridge is a file in `/run/podwire/neighbours` with the name of the bridge. Only
//! the ADD that creates the bridge creates it, so no pod was there before. In every other case the
//! pod is announced: the bridge has no table (another program, an earlier release or a killed ADD
//! created it), the address had another MAC, another IPAM plugin or program may have given the
//! address to a pod, or a port is not a pod's: machines behind it may know the address from another
//! node.
//!
//! - Cost: this file and `crates/netlink/src/ports.rs`; 0.02 ms of an ADD.
//! - Entry points: [`Neighbours::look_at_ports`], then [`Neighbours::attach`]. To switch it off,
//!   remove the file of the bridge.

use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::Result;
use cni::lock::{self, Lock};
use cni::request::Del;
use cni::result::IpConfig;
use cni::{Call, file, linked, names};
use netlink::ports::MOST;
use netlink::{BridgeSpec, Configured, Link, Mac, Netlink, VethPair};
use nix::fcntl::OFlag;

use crate::requested::peer_mac;
use crate::{Addressing, mac, pod};

/// Where the tables are. The directory is empty after a boot.
const DIRECTORY: &str = "/run/podwire/neighbours";

/// The file begins with these bytes, the index and the MAC of the bridge.
const FORMAT: &[u8; 8] = b"podwire1";
const HEADER: usize = 8 + 4 + 6;

/// Then come the indexes of the ports that are known to belong to pods, by port number.
const PORTS: u64 = 4096;
const PORTS_BYTES: usize = MOST * 4;

/// Then the MACs, a slot for each address. Two addresses may share one: then both are announced.
const SLOTS: u64 = 8192;
const SLOT: usize = 8;
const COUNT: u64 = 1 << 16;

/// What the neighbours of one bridge may remember.
#[derive(Debug)]
pub struct Neighbours {
    path: PathBuf,
    table: Option<File>,
}

/// The ports of a bridge.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ports {
    /// Whether only pods of this node are behind them; false if that is unknown.
    pub only_pods: bool,
    /// How many there are; 0 if that is unknown.
    pub count: usize,
}

/// Whether a new pod is announced, and what is recorded when that is done.
#[derive(Debug)]
#[must_use]
pub struct Announcement<'a> {
    wanted: bool,
    neighbours: &'a Neighbours,
    /// The slots that get the pod's MAC once it is announced.
    pending: Vec<u64>,
    mac: Mac,
}

/// What is remembered of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Slot {
    /// No pod has had it.
    Unused,
    /// This MAC.
    Mac(Mac),
    /// One of several MACs.
    Unknown,
}

/// Ensures a bridge ([`Netlink::ensure_bridge`]). Returns it with what its neighbours may
/// remember.
///
/// # Errors
/// As [`Netlink::ensure_bridge`].
pub fn ensure_bridge(host: &Netlink, spec: &BridgeSpec) -> Result<(Link, Neighbours)> {
    let directory = Path::new(DIRECTORY);
    let mut found = host.find_bridge(&spec.name)?;
    // The ADD that creates a bridge writes its table before the bridge is up, so a bridge that is
    // up has its table, or never gets one.
    let is_up = |bridge: &Option<Link>| bridge.as_ref().is_some_and(|bridge| bridge.up);
    let mut lock = None;
    if !is_up(&found) {
        let locked = self::lock(directory);
        found = host.find_bridge(&spec.name)?;
        lock = locked.filter(|_| !is_up(&found));
    }
    let mut neighbours = Neighbours::of(directory, &spec.name);
    let create = |bridge: &Link| {
        if lock.is_some() {
            neighbours.create(bridge);
        }
    };
    let bridge = host.ensure_bridge_from(found, spec, create)?;
    neighbours.find(&bridge);
    Ok((bridge, neighbours))
}

/// Excludes other ADDs from creating a bridge; `None` if /run cannot be written to, and then there
/// are no tables.
fn lock(directory: &Path) -> Option<Lock> {
    file::make_private_dir(directory).ok()?;
    lock::exclusive(File::open(directory).ok()?, directory).ok()
}

impl Neighbours {
    fn of(directory: &Path, bridge: &str) -> Self {
        Self {
            path: directory.join(bridge),
            table: None,
        }
    }

    /// Creates the table of a bridge that has no port yet.
    fn create(&self, bridge: &Link) {
        let write = || -> io::Result<()> {
            file::replace(&self.path, &header(bridge))?;
            let (table, _) = file::open(&self.path, OFlag::O_WRONLY)?;
            table.set_len(SLOTS + COUNT * SLOT as u64)
        };
        if let Err(error) = write() {
            self.failed(&error);
        }
    }

    /// Opens the table of `bridge`, unless it is that of another bridge with this name.
    fn find(&mut self, bridge: &Link) {
        let open = || -> io::Result<Option<File>> {
            let (table, _) = file::open(&self.path, OFlag::O_RDWR)?;
            let mut found = [0; HEADER];
            table.read_exact_at(&mut found, 0)?;
            Ok((found == header(bridge)).then_some(table))
        };
        self.table = open().ok().flatten();
    }

    /// Looks at the ports of `bridge`. Unless there are only pods, all pods are announced from now
    /// on: other machines may give the addresses of pods to each other.
    pub fn look_at_ports(&mut self, host: &Netlink, bridge: &Link) -> Ports {
        let Some(table) = &self.table else {
            return Ports::default();
        };
        let ports = ports_of(host, table, bridge).unwrap_or_default();
        if !ports.only_pods {
            self.table = None;
            self.forget();
        }
        ports
    }

    /// Records that a pod is about to use `ips` with the end `pair` of a veth pair, and decides
    /// whether to announce it. Call it after [`Neighbours::look_at_ports`] and IPAM, before the pod
    /// is up.
    pub fn attach(&self, call: &Call, pair: &VethPair, ips: &[IpConfig]) -> Announcement<'_> {
        let mut announcement = Announcement {
            wanted: !is_only_ours(call),
            neighbours: self,
            pending: Vec::new(),
            mac: pair.container.mac,
        };
        let Some(table) = &self.table else {
            announcement.wanted = true;
            return announcement;
        };
        for ip in ips {
            if let Err(error) = announcement.record(table, ip.address.ip()) {
                self.failed(&error);
                announcement.wanted = true;
            }
        }
        announcement
    }

    /// Records that neighbours may remember any of `macs` for `ips`, or for any address.
    fn record(&self, ips: impl ExactSizeIterator<Item = IpAddr>, macs: &[Option<Mac>]) {
        if ips.len() == 0 {
            return self.forget();
        }
        match self.try_record(ips, macs) {
            Err(error) if !file::is_absent(&error) => self.failed(&error),
            _ => {}
        }
    }

    fn try_record(
        &self,
        ips: impl Iterator<Item = IpAddr>,
        macs: &[Option<Mac>],
    ) -> io::Result<()> {
        let (table, _) = file::open(&self.path, OFlag::O_RDWR)?;
        for at in ips.map(slot_of) {
            let slot = read(&table, at)?;
            if !macs
                .iter()
                .all(|mac| mac.is_some_and(|mac| slot == Slot::Mac(mac)))
            {
                write(&table, at, Slot::Unknown)?;
            }
        }
        Ok(())
    }

    /// Removes the table: nothing is known from now on.
    fn forget(&self) {
        if let Err(error) = file::remove(&self.path) {
            cni::log(format_args!("remove {}: {error}", self.path.display()));
        }
    }

    fn failed(&self, error: &io::Error) {
        cni::log(format_args!("write {}: {error}", self.path.display()));
        self.forget();
    }
}

impl Announcement<'_> {
    fn record(&mut self, table: &File, ip: IpAddr) -> io::Result<()> {
        let at = slot_of(ip);
        match read(table, at)? {
            Slot::Mac(mac) if mac == self.mac => Ok(()),
            Slot::Unused => write(table, at, Slot::Mac(self.mac)),
            // Neighbours learn the new MAC as soon as the pod sends, and all know it only after
            // the announcement. In between, this process may be killed.
            Slot::Mac(_) | Slot::Unknown => {
                self.wanted = true;
                self.pending.push(at);
                write(table, at, Slot::Unknown)
            }
        }
    }

    /// Configures the pod's interface, and has the kernel announce it only if necessary.
    ///
    /// # Errors
    /// As [`pod::configure`].
    pub fn configure(
        &self,
        mut pod: netlink::Pod,
        addressing: Option<&Addressing>,
    ) -> Result<Configured> {
        if !self.wanted {
            pod.set_silent();
        }
        pod::configure(pod, addressing)
    }

    /// Waits until the pod's addresses can be reached, and announces them if necessary. Call it
    /// when its port forwards.
    pub fn finish(self, configured: &Configured) {
        if !self.wanted {
            return configured.await_addresses();
        }
        if pod::announce(configured) {
            self.announced();
        }
    }

    /// Records that all neighbours know the pod's MAC.
    fn announced(self) {
        let Some(table) = &self.neighbours.table else {
            return;
        };
        for at in self.pending {
            if let Err(error) = write(table, at, Slot::Mac(self.mac)) {
                self.neighbours.failed(&error);
            }
        }
    }
}

/// DEL: records the addresses of a pod whose neighbours may remember another MAC than the derived
/// one: it was attached by another program, a plugin of the chain or the pod itself has changed it.
/// `port` is the host end of its veth pair, if it still exists.
pub fn detach<C>(host: &Netlink, request: &Del<C>, port: Option<&Link>) {
    let (call, ifname) = (&request.call, request.attachment.ifname.as_str());
    let previous = call.prev_result_hint();
    if !call.has_ipam() || previous.as_ref().is_some_and(|it| it.ips.is_empty()) {
        return;
    }
    // Runtimes pass no result before CNI 0.4.0.
    let previous = previous.unwrap_or_default();
    let ips = || previous.ips.iter().map(|ip| ip.address.ip());
    let recorded = previous.in_container().filter(|it| it.name == ifname);
    let mut macs: Vec<Option<Mac>> = recorded.map(|it| it.mac.parse().ok()).collect();
    macs.extend(port.map(|port| peer_mac(host, port)));
    let derived = mac::of_addresses(&call.network, ips());
    let is_derived = |mac: Mac| match derived {
        Some(derived) => mac == derived,
        None => mac::is_derived(&call.network, mac),
    };
    if macs.iter().all(|mac| mac.is_some_and(is_derived)) {
        return;
    }
    let mut bridges: Vec<String> = previous.on_host().map(|it| it.name.clone()).collect();
    bridges.extend(port.and_then(|port| bridge_of(host, port)));
    for bridge in bridges {
        Neighbours::of(Path::new(DIRECTORY), &bridge).record(ips(), &macs);
    }
}

/// GC: the same for a pod whose addresses are unknown.
pub fn collect(host: &Netlink, network: &str, port: &Link) {
    if !peer_mac(host, port).is_some_and(|mac| mac::is_derived(network, mac))
        && let Some(bridge) = bridge_of(host, port)
    {
        remove(&bridge);
    }
}

/// Removes what is known of a bridge, because it is deleted or because nothing is known any more.
pub fn remove(bridge: &str) {
    Neighbours::of(Path::new(DIRECTORY), bridge).forget();
}

fn bridge_of(host: &Netlink, port: &Link) -> Option<String> {
    Some(host.find_link_by_index(port.master?).ok()??.name)
}

/// Whether all addresses of the network come from this build's host-local, called by this build's
/// plugins: then this module knows each pod that had one.
fn is_only_ours(call: &Call) -> bool {
    linked::was_called() && !cni::foreign::is_noted(&call.network)
}

/// Looks at the ports of `bridge`, and notes those of pods in `table`.
fn ports_of(host: &Netlink, table: &File, bridge: &Link) -> Result<Ports> {
    let ports = host.port_indexes(bridge)?;
    let count = ports.iter().filter(|index| **index != 0).count();
    let mut known = [0; PORTS_BYTES];
    table.read_exact_at(&mut known, PORTS)?;
    let known = known.as_chunks::<4>().0;
    for (number, (index, known)) in ports.iter().zip(known).enumerate() {
        if *index == 0 || index.to_ne_bytes() == *known {
            continue;
        }
        // A port that was just deleted belonged to a pod.
        let name = host.find_name(*index)?;
        if name.is_some_and(|name| !is_pods(&name)) {
            return Ok(Ports {
                only_pods: false,
                count,
            });
        }
        let at = PORTS + 4 * u64::try_from(number)?;
        table.write_all_at(&index.to_ne_bytes(), at)?;
    }
    Ok(Ports {
        only_pods: true,
        count,
    })
}

/// Whether bridge plugins give such a name to the host end of a pod's veth pair. The kind of the link
/// is not compared: only netlink has it, and a query waits for the changes of all other links.
fn is_pods(name: &str) -> bool {
    let digits = name.strip_prefix("veth").unwrap_or_default();
    let hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    digits.len() == 8 && digits.bytes().all(hex)
}

fn header(bridge: &Link) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    header[..8].copy_from_slice(FORMAT);
    header[8..12].copy_from_slice(&bridge.index.to_ne_bytes());
    // A bridge in another namespace that shares /run may have the same name and index.
    header[12..].copy_from_slice(&bridge.mac.map_or([0; 6], |mac| mac.0));
    header
}

/// The place of an address in the file: in the first half for IPv4, in the second for IPv6.
/// Addresses that follow each other do so in the file, too: a subnet takes a few pages of memory.
fn slot_of(ip: IpAddr) -> u64 {
    let (family, bits) = match ip {
        IpAddr::V4(ip) => (0, u128::from(ip.to_bits())),
        IpAddr::V6(ip) => (1, ip.to_bits()),
    };
    let begin = names::prefixed(4, "", &format!("{:x}", bits >> 16));
    let begin = u64::from_str_radix(&begin, 16).unwrap_or_default();
    let half = COUNT / 2;
    SLOTS + (family * half + (begin + (bits & 0xffff) as u64) % half) * SLOT as u64
}

fn read(table: &File, at: u64) -> io::Result<Slot> {
    let mut bytes = [0; SLOT];
    table.read_exact_at(&mut bytes, at)?;
    let [state, _, mac @ ..] = bytes;
    Ok(match state {
        0 => Slot::Unused,
        1 => Slot::Mac(Mac(mac)),
        _ => Slot::Unknown,
    })
}

fn write(table: &File, at: u64, slot: Slot) -> io::Result<()> {
    let (state, mac) = match slot {
        Slot::Unused => (0, [0; 6]),
        Slot::Mac(mac) => (1, mac.0),
        Slot::Unknown => (2, [0; 6]),
    };
    let mut bytes = [0; SLOT];
    bytes[0] = state;
    bytes[2..].copy_from_slice(&mac);
    table.write_all_at(&bytes, at)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);
    const OTHER: Mac = Mac([2, 0, 0, 0, 0, 2]);

    fn bridge(index: u32) -> Link {
        Link {
            index,
            name: "cni0".into(),
            mac: Some(MAC),
            ..Link::default()
        }
    }

    fn table_of(directory: &Path) -> Neighbours {
        let mut neighbours = Neighbours::of(directory, "cni0");
        neighbours.create(&bridge(7));
        neighbours.find(&bridge(7));
        neighbours
    }

    /// What a pod with `mac` and `ips` must do, and whether it was recorded as announced.
    fn attach(neighbours: &Neighbours, mac: Mac, ips: &[&str], announced: bool) -> bool {
        let mut announcement = Announcement {
            wanted: false,
            neighbours,
            pending: Vec::new(),
            mac,
        };
        let table = neighbours.table.as_ref().unwrap();
        for ip in ips {
            announcement.record(table, ip.parse().unwrap()).unwrap();
        }
        let announce = announcement.wanted;
        if announced {
            announcement.announced();
        }
        announce
    }

    #[test]
    fn only_an_address_that_had_another_mac_is_announced() {
        let directory = tempfile::tempdir().unwrap();
        let neighbours = table_of(directory.path());
        for ips in [&["10.1.0.5"][..], &["fd00::5"], &["10.1.0.6", "fd00::6"]] {
            assert!(!attach(&neighbours, MAC, ips, true));
            assert!(!attach(&neighbours, MAC, ips, true));
            assert!(attach(&neighbours, OTHER, ips, true));
            assert!(!attach(&neighbours, OTHER, ips, true));
        }
        // One of two is enough.
        assert!(attach(&neighbours, MAC, &["10.1.0.7", "fd00::6"], true));
        assert!(!attach(&neighbours, MAC, &["10.1.0.7"], true));
    }

    #[test]
    fn an_announcement_that_was_not_made_is_made_up_for() {
        let directory = tempfile::tempdir().unwrap();
        let neighbours = table_of(directory.path());
        let ips = ["10.1.0.5", "fd00::5"];
        assert!(!attach(&neighbours, MAC, &ips, true));
        assert!(attach(&neighbours, OTHER, &ips, false));
        assert!(attach(&neighbours, MAC, &ips, false));
        assert!(attach(&neighbours, OTHER, &ips, true));
        assert!(!attach(&neighbours, OTHER, &ips, true));
    }

    #[test]
    fn del_records_another_mac() {
        let directory = tempfile::tempdir().unwrap();
        let neighbours = table_of(directory.path());
        let ip: IpAddr = "10.1.0.5".parse().unwrap();
        assert!(!attach(&neighbours, MAC, &["10.1.0.5"], true));
        neighbours.record([ip].into_iter(), &[Some(MAC), Some(MAC)]);
        assert!(!attach(&neighbours, MAC, &["10.1.0.5"], true));
        for macs in [[Some(MAC), Some(OTHER)], [Some(MAC), None]] {
            neighbours.record([ip].into_iter(), &macs);
            assert!(attach(&neighbours, MAC, &["10.1.0.5"], true));
        }
        // Which address had it is unknown.
        neighbours.record([].into_iter(), &[Some(OTHER)]);
        let mut later = Neighbours::of(directory.path(), "cni0");
        later.find(&bridge(7));
        assert!(later.table.is_none());
    }

    #[test]
    fn a_table_is_of_one_bridge() {
        let directory = tempfile::tempdir().unwrap();
        table_of(directory.path());
        let found = |bridge: Link| {
            let mut neighbours = Neighbours::of(directory.path(), "cni0");
            neighbours.find(&bridge);
            neighbours.table.is_some()
        };
        let mac = Some(OTHER);
        assert!(found(bridge(7)) && !found(bridge(8)));
        assert!(!found(Link { mac, ..bridge(7) }));
        std::fs::write(directory.path().join("cni0"), "podwire1").unwrap();
        assert!(!found(bridge(7)));
    }

    #[test]
    fn addresses_that_follow_each_other_are_side_by_side_within_the_file() {
        let at = |ip: &str| slot_of(ip.parse().unwrap());
        for [one, next] in [["10.1.0.5", "10.1.0.6"], ["fd00::5", "fd00::6"]] {
            assert_eq!(at(next), at(one) + SLOT as u64);
        }
        for ip in ["0.0.0.0", "255.255.255.255", "::", "ffff::ffff"] {
            assert!((SLOTS..SLOTS + COUNT * SLOT as u64).contains(&at(ip)));
        }
        let half = SLOTS + COUNT / 2 * SLOT as u64;
        assert!(at("10.1.255.255") < half && at("fd00::") >= half);
    }

    #[test]
    fn pods_ports_are_known_by_their_names() {
        assert!(is_pods("veth1a2b3c4d"));
        for name in ["veth1a2b3c4", "veth1a2b3c4g", "uplink", "vxlan.7"] {
            assert!(!is_pods(name), "{name}");
        }
    }
}
