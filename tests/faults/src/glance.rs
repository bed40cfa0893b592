//! Compares the state of a node before and after a fault in two milliseconds: the kernel's dumps, as bytes, without
//! counters and timers.
//!
//! The leak check ([`sandbox::Snapshot`]) uses independent tools and takes fifty times as long. It decides
//! when a glance finds a difference; see [`crate::node::Node::is_clean`].

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, Result, bail};
use netns::NetNs;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
};
use sandbox::Sandbox;

use self::Part::{Drop, Inside, Whole};

/// Allowed differences.
#[derive(Clone, Debug, Default)]
pub struct But {
    /// Links of the node, with all that is on them.
    pub links: Vec<&'static str>,
    /// Parts of a file's or process's line.
    pub texts: Vec<String>,
}

/// The state of a node at one moment.
#[derive(Debug, PartialEq, Eq)]
pub struct Glance(Vec<Vec<u8>>);

impl Glance {
    /// Looks at the node and at these pods.
    ///
    /// # Errors
    /// What the kernel does not tell.
    pub fn take(sandbox: &Sandbox, pods: &[&str], but: &But) -> Result<Self> {
        let pods: Vec<String> = pods.iter().map(|&pod| pod.to_owned()).collect();
        let but = but.clone();
        sandbox.inside(move || {
            let mut facts = namespace("", &but)?;
            for pod in &pods {
                let netns = NetNs::open(Path::new(&format!("/run/netns/{pod}")))?;
                facts.extend(netns.enter(|| namespace(pod, &But::default()))??);
            }
            let mut lines = processes()?;
            for root in ["/run", "/var/lib"] {
                walk(Path::new(root), &pods, &mut lines)?;
            }
            lines.retain(|line| !but.texts.iter().any(|text| line.contains(text)));
            facts.extend(lines.into_iter().map(String::into_bytes));
            facts.sort();
            Ok(Self(facts))
        })
    }

    /// The differences between two states, to explain why a leak check was needed.
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let only = |sign, a: &Self, b: &Self| -> Vec<String> {
            let only = a.0.iter().filter(|fact| b.0.binary_search(fact).is_err());
            only.map(|fact| format!("{sign} {}", fact.escape_ascii()))
                .collect()
        };
        [only('-', self, other), only('+', other, self)].concat()
    }
}

/// Settings that are no link's own; a link brings its own along (`IFLA_AF_SPEC`).
const SETTINGS: &[&str] = &[
    "ipv4/ip_forward",
    "ipv4/conf/*/forwarding",
    "ipv4/conf/*/route_localnet",
    "ipv4/conf/*/arp_notify",
    "ipv4/conf/*/rp_filter",
    "ipv4/conf/*/proxy_arp",
    "ipv4/conf/*/send_redirects",
    "ipv4/conf/*/accept_redirects",
    "ipv4/conf/*/accept_local",
    "ipv6/conf/*/forwarding",
    "ipv6/conf/*/accept_ra",
    "ipv6/conf/*/disable_ipv6",
    "ipv6/conf/*/accept_dad",
    "ipv6/conf/*/keep_addr_on_down",
    "ipv6/conf/*/accept_redirects",
    "ipv6/conf/*/ndisc_notify",
    "ipv6/conf/*/proxy_ndp",
];

/// All that the calling thread's network namespace holds.
fn namespace(place: &str, but: &But) -> Result<Vec<Vec<u8>>> {
    let mut facts = Facts {
        place: place.as_bytes().to_vec(),
        all: Vec::new(),
    };
    routing(&mut facts, but).context("look at links and routes")?;
    filter(&mut facts).context("look at the packet filter")?;
    for setting in SETTINGS {
        for of in ["all", "default"] {
            let path = format!("/proc/sys/net/{}", setting.replace('*', of));
            facts.add(path.as_bytes(), &fs::read(&path).unwrap_or_default());
        }
    }
    for file in ["ip_tables_names", "ip6_tables_names"] {
        let names = fs::read(format!("/proc/thread-self/net/{file}"));
        facts.add(file.as_bytes(), &names.unwrap_or_default());
    }
    Ok(facts.all)
}

struct Facts {
    place: Vec<u8>,
    all: Vec<Vec<u8>>,
}

impl Facts {
    fn add(&mut self, what: &[u8], fact: &[u8]) {
        self.all.push([&self.place, what, b" ", fact].concat());
    }
}

/// Links, addresses, routes, rules, neighbours and forwarding entries (linux/rtnetlink.h).
fn routing(facts: &mut Facts, but: &But) -> Result<()> {
    let mut netlink = Netlink::open(SockProtocol::NetlinkRoute)?;
    let excluded = links(&mut netlink, facts, but)?;
    addresses(&mut netlink, facts, &excluded)?;
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        routes(&mut netlink, facts, &excluded, libc_family(family))?;
    }
    for family in [0, libc_family(AddressFamily::Bridge)] {
        neighbours(&mut netlink, facts, &excluded, family)?;
    }
    Ok(())
}

/// Returns the indexes of the links that `but` excludes.
fn links(netlink: &mut Netlink, facts: &mut Facts, but: &But) -> Result<Vec<u32>> {
    const LINK: u16 = 18;
    // struct ifinfomsg; IFLA_EXT_MASK: RTEXT_FILTER_SKIP_STATS.
    let mut request = vec![0; 16];
    attribute(29, &8_u32.to_ne_bytes(), &mut request);
    let mut excluded = Vec::new();
    for message in netlink.dump(LINK, &request)? {
        let (head, attributes) = split(&message, 16)?;
        let name = find(attributes, 3);
        if but
            .links
            .iter()
            .any(|it| name == [it.as_bytes(), b"\0"].concat())
        {
            excluded.push(number(head, 4));
            continue;
        }
        let mut kept = head[..12].to_vec();
        pick(attributes, link, &mut kept);
        facts.add(b"link", &kept);
    }
    Ok(excluded)
}

fn addresses(netlink: &mut Netlink, facts: &mut Facts, excluded: &[u32]) -> Result<()> {
    const ADDRESS: u16 = 22;
    for message in netlink.dump(ADDRESS, &[0; 8])? {
        // struct ifaddrmsg: family, prefixlen, flags, scope, index.
        let (head, attributes) = split(&message, 8)?;
        if excluded.contains(&number(head, 4)) {
            continue;
        }
        // The kernel ends duplicate address detection of a link-local address at any time.
        let by_itself = if head[3] == SCOPE_LINK {
            0x40 | 0x04
        } else {
            0
        };
        let mut kept = head.to_vec();
        kept[2] &= !by_itself;
        for (kind, value) in Attributes(attributes) {
            match kind {
                6 => {} // IFA_CACHEINFO
                8 if value.len() == 4 => kept.push(value[0] & !by_itself),
                _ => attribute(kind, value, &mut kept),
            }
        }
        facts.add(b"addr", &kept);
    }
    Ok(())
}

/// Routes and rules of a family.
fn routes(netlink: &mut Netlink, facts: &mut Facts, excluded: &[u32], family: u8) -> Result<()> {
    const ROUTE: u16 = 26;
    const RULE: u16 = 34;
    for message in netlink.dump(ROUTE, &of_family(family, 12))? {
        // struct rtmsg: type at 7; RTN_LOCAL, RTN_ANYCAST.
        let (head, attributes) = split(&message, 12)?;
        let to_us = head[7] == 2 || head[7] == 4;
        if to_us && find(attributes, 1).starts_with(&[0xfe, 0x80])
            || excluded
                .iter()
                .any(|it| find(attributes, 4) == it.to_ne_bytes())
        {
            continue;
        }
        let mut kept = head.to_vec();
        // RTA_CACHEINFO, RTA_EXPIRES
        let by_itself = |kind| {
            if [12, 23].contains(&kind) {
                Drop
            } else {
                Whole
            }
        };
        pick(attributes, by_itself, &mut kept);
        facts.add(b"route", &kept);
    }
    for message in netlink.dump(RULE, &of_family(family, 12))? {
        facts.add(b"rule", &message);
    }
    Ok(())
}

/// Neighbours; of the bridge family, forwarding entries.
fn neighbours(
    netlink: &mut Netlink,
    facts: &mut Facts,
    excluded: &[u32],
    family: u8,
) -> Result<()> {
    const NEIGHBOUR: u16 = 30;
    for message in netlink.dump(NEIGHBOUR, &of_family(family, 12))? {
        // struct ndmsg: family, index at 4, state at 8; NUD_PERMANENT.
        let (head, attributes) = split(&message, 12)?;
        let group = find(attributes, 2);
        let joined = group.starts_with(&[0x33, 0x33]) || group.starts_with(&[1, 0, 0x5e]);
        let is_bridge = head[0] == libc_family(AddressFamily::Bridge);
        if head[8] & 0x80 == 0 || is_bridge && joined || excluded.contains(&number(head, 4)) {
            continue;
        }
        let mut kept = head.to_vec();
        // NDA_CACHEINFO, NDA_PROBES
        let by_itself = |kind| if [3, 4].contains(&kind) { Drop } else { Whole };
        pick(attributes, by_itself, &mut kept);
        facts.add(b"neigh", &kept);
    }
    Ok(())
}

const SCOPE_LINK: u8 = 253;

fn libc_family(family: AddressFamily) -> u8 {
    // All of them are below 50.
    family as i32 as u8
}

fn of_family(family: u8, length: usize) -> Vec<u8> {
    let mut request = vec![0; length];
    request[0] = family;
    request
}

/// Attributes of RTM_NEWLINK (linux/if_link.h).
fn link(kind: u16) -> Part {
    match kind {
        // Statistics, and how often the carrier came and went.
        7 | 23 | 35 | 47 | 48 => Drop,
        // IFLA_PROTINFO: as below.
        12 => Drop,
        18 => Inside(info),
        26 => Inside(of_protocol),
        _ => Whole,
    }
}

/// IFLA_LINKINFO. What it holds depends on the kind, but a bridge alone has timers, under numbers that no other kind of
/// ours counts up to, except vxlan: there these are its second VTEP and flags, which `ip link` cannot change either.
fn info(kind: u16) -> Part {
    match kind {
        2 => Inside(|kind| match kind {
            // IFLA_BR_*_TIMER and IFLA_BR_FDB_N_LEARNED
            16..=19 | 47 => Drop,
            _ => Whole,
        }),
        // IFLA_INFO_XSTATS
        3 => Drop,
        5 => Inside(|kind| match kind {
            // IFLA_BRPORT_*_TIMER and their like, and counters.
            21..=23 | 37.. => Drop,
            _ => Whole,
        }),
        _ => Whole,
    }
}

/// IFLA_AF_SPEC: all sysctls of the link.
fn of_protocol(family: u16) -> Part {
    match family {
        2 => Whole,
        // IFLA_INET6_CONF, IFLA_INET6_ADDR_GEN_MODE; beside them are times.
        10 => Inside(|kind| if [2, 8].contains(&kind) { Whole } else { Drop }),
        _ => Drop,
    }
}

/// nf_tables, all families (linux/netfilter/nf_tables.h).
fn filter(facts: &mut Facts) -> Result<()> {
    const TABLE: u16 = 1;
    const CHAIN: u16 = 4;
    const RULE: u16 = 7;
    const SET: u16 = 10;
    const ELEMENT: u16 = 13;
    const OBJECT: u16 = 19;
    const FLOWTABLE: u16 = 23;
    let nftables = |kind: u16| (10 << 8) | kind;
    let mut netlink = Netlink::open(SockProtocol::NetlinkNetFilter)?;
    let mut sets = Vec::new();
    for (what, kind, handle) in [
        ("table", TABLE, 4),
        ("chain", CHAIN, 2),
        ("rule", RULE, 3),
        ("set", SET, 16),
        ("object", OBJECT, 6),
        ("flowtable", FLOWTABLE, 5),
    ] {
        for message in netlink.dump(nftables(kind), &[0; 4])? {
            // struct nfgenmsg: family, version, generation.
            let (head, attributes) = split(&message, 4)?;
            let mut kept = vec![head[0]];
            for (number, value) in Attributes(attributes) {
                let by_itself = match kind {
                    CHAIN => number == 8,  // NFTA_CHAIN_COUNTERS
                    RULE => number == 6,   // NFTA_RULE_POSITION
                    SET => number == 20,   // NFTA_SET_COUNT
                    OBJECT => number == 4, // NFTA_OBJ_DATA: counters
                    _ => false,
                };
                match number {
                    it if it == handle || by_itself => {}
                    4 if kind == RULE => expressions(value, &mut kept),
                    _ => attribute(number, value, &mut kept),
                }
            }
            facts.add(what.as_bytes(), &kept);
            if kind == SET {
                let named = |number| find(attributes, number).to_vec();
                sets.push((head[0], named(1), named(2)));
            }
        }
    }
    for (family, table, set) in sets {
        let mut request = of_family(family, 4);
        attribute(1, &table, &mut request);
        attribute(2, &set, &mut request);
        for message in netlink.dump(nftables(ELEMENT), &request)? {
            let (_, attributes) = split(&message, 4)?;
            // NFTA_SET_ELEM_LIST_ELEMENTS
            for (_, element) in Attributes(find(attributes, 3)) {
                let mut kept = [&[family], &table[..], &set[..]].concat();
                for (number, value) in Attributes(element) {
                    match number {
                        5 => {} // NFTA_SET_ELEM_EXPIRATION
                        7 => expression(value, &mut kept),
                        11 => expressions(value, &mut kept),
                        _ => attribute(number, value, &mut kept),
                    }
                }
                facts.add(b"element", &kept);
            }
        }
    }
    Ok(())
}

fn expressions(list: &[u8], kept: &mut Vec<u8>) {
    Attributes(list).for_each(|(_, one)| expression(one, kept));
}

/// NFTA_EXPR_NAME, and NFTA_EXPR_DATA unless it counts.
fn expression(value: &[u8], kept: &mut Vec<u8>) {
    let counts = [&b"counter\0"[..], b"last\0", b"quota\0"].contains(&find(value, 1));
    for (number, value) in Attributes(value) {
        if number == 1 || !counts {
            attribute(number, value, kept);
        }
    }
}

/// What is kept of an attribute.
enum Part {
    Drop,
    Whole,
    Inside(fn(u16) -> Part),
}

fn pick(attributes: &[u8], choose: impl Fn(u16) -> Part, kept: &mut Vec<u8>) {
    for (kind, value) in Attributes(attributes) {
        match choose(kind) {
            Drop => {}
            Whole => attribute(kind, value, kept),
            Inside(choose) => pick(value, choose, kept),
        }
    }
}

/// The attributes of a message, or of an attribute.
struct Attributes<'a>(&'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (length, kind) = (self.0.get(..2)?, self.0.get(2..4)?);
        let length = usize::from(u16::from_ne_bytes([length[0], length[1]]));
        // Without NLA_F_NESTED and NLA_F_NET_BYTEORDER.
        let kind = u16::from_ne_bytes([kind[0], kind[1]]) & 0x3fff;
        let value = self.0.get(4..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    }
}

fn find(attributes: &[u8], wanted: u16) -> &[u8] {
    let found = Attributes(attributes).find(|(kind, _)| *kind == wanted);
    found.map_or(&[], |(_, value)| value)
}

fn attribute(kind: u16, value: &[u8], to: &mut Vec<u8>) {
    // An attribute is at most 64 KiB long.
    to.extend((value.len() as u16 + 4).to_ne_bytes());
    to.extend(kind.to_ne_bytes());
    to.extend(value);
    to.resize(to.len().next_multiple_of(4), 0);
}

fn number(bytes: &[u8], at: usize) -> u32 {
    let mut number = [0; 4];
    number.copy_from_slice(&bytes[at..at + 4]);
    u32::from_ne_bytes(number)
}

fn split(message: &[u8], at: usize) -> Result<(&[u8], &[u8])> {
    message.split_at_checked(at).context("a short message")
}

struct Netlink {
    socket: OwnedFd,
    buffer: Vec<u8>,
}

impl Netlink {
    fn open(protocol: SockProtocol) -> Result<Self> {
        let (family, kind) = (AddressFamily::Netlink, SockType::Raw);
        Ok(Self {
            socket: socket(family, kind, SockFlag::SOCK_CLOEXEC, protocol)?,
            buffer: vec![0; 1 << 16],
        })
    }

    /// All that there is of a kind, without the messages' own heads.
    fn dump(&mut self, kind: u16, request: &[u8]) -> Result<Vec<Vec<u8>>> {
        const REQUEST_DUMP: u16 = 0x301;
        const ERROR: u16 = 2;
        const DONE: u16 = 3;
        let mut message = Vec::new();
        // struct nlmsghdr: length, type, flags, sequence, port.
        message.extend((request.len() as u32 + 16).to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend(REQUEST_DUMP.to_ne_bytes());
        message.extend([0; 8]);
        message.extend(request);
        let kernel = NetlinkAddr::new(0, 0);
        sendto(
            self.socket.as_raw_fd(),
            &message,
            &kernel,
            MsgFlags::empty(),
        )?;
        let mut answers = Vec::new();
        loop {
            let length = recv(self.socket.as_raw_fd(), &mut self.buffer, MsgFlags::empty())?;
            let mut rest = &self.buffer[..length];
            while rest.len() >= 16 {
                let length = number(rest, 0) as usize;
                let body = rest.get(16..length).context("a cut message")?;
                match u16::from_ne_bytes([rest[4], rest[5]]) {
                    DONE => return Ok(answers),
                    ERROR => bail!(
                        "dump {kind:#x}: {}",
                        Errno::from_raw(-(number(body, 0) as i32))
                    ),
                    _ => answers.push(body.to_vec()),
                }
                rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
            }
        }
    }
}

/// The processes in the mount namespace of the calling thread, without its own process.
fn processes() -> Result<Vec<String>> {
    let ours = fs::read_link("/proc/thread-self/ns/mnt")?;
    let mut lines = Vec::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().filter(|it| it.parse::<i32>().is_ok()) else {
            continue;
        };
        if fs::read_link(format!("/proc/{pid}/ns/mnt")).is_ok_and(|it| it == ours) {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            if line.is_empty() {
                // It has ended.
                continue;
            }
            lines.push(format!(
                "process {pid} {}",
                String::from_utf8_lossy(&line).replace('\0', " ")
            ));
        }
    }
    Ok(lines)
}

fn walk(dir: &Path, pods: &[String], lines: &mut Vec<String>) -> Result<()> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) => return Err(error).with_context(|| format!("read {}", dir.display())),
    };
    for entry in entries.flatten() {
        let path = entry.path();
        // A daemon that renews a lease has a file for a moment.
        let Ok(meta) = fs::symlink_metadata(&path) else {
            continue;
        };
        let mode = meta.mode();
        let is_pod = dir == Path::new("/run/netns") && pods.iter().any(|pod| path.ends_with(pod));
        // The leak check leaves these out, too: a lock for the next caller, and what stays until the boot ends.
        let stays = ["/run/xtables.lock", "/run/podwire/foreign"].map(Path::new);
        if is_pod || stays.contains(&path.as_path()) {
            continue;
        }
        let path_text = path.display();
        if meta.is_dir() {
            lines.push(format!("dir {path_text} {mode:o}"));
            walk(&path, pods, lines)?;
        } else if meta.is_file() {
            // A mounted namespace has no content that can be read.
            let content = fs::read(&path).unwrap_or_default();
            lines.push(format!(
                "file {path_text} {mode:o} {}",
                content.escape_ascii()
            ));
        } else {
            lines.push(format!("other {path_text} {mode:o}"));
        }
    }
    Ok(())
}
