//! What a node holds, as lines of text that can be compared: the leak check.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::hash::{DefaultHasher, Hasher};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::netns::Netns;
use crate::process::in_time;
use crate::sandbox::{Inner, Sandbox};

/// State of the node and of every pod that existed when it was taken: links,
/// addresses, routes and rules of all tables, permanent neighbours and FDB entries,
/// the packet filter, the sysctls that plugins touch, state files, processes.
/// Counters, timers and packet-filter handles are left out.
///
/// Comparing allows no difference but those that the test names.
pub struct Snapshot {
    sandbox: Arc<Inner>,
    before: State,
    allowed: Allowed,
}

#[derive(Default, Clone)]
struct Allowed {
    links: BTreeSet<String>,
    texts: Vec<String>,
}

/// Namespace or `node` → facts.
type State = BTreeMap<String, BTreeSet<Fact>>;

/// One object that exists.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Fact {
    /// The link it belongs to and vanishes with; empty if none.
    link: String,
    text: String,
}

/// How long a difference may take to go away: the kernel and a plugin's children
/// finish deletions after the plugin has ended, and podwired ends a second after the last name.
const GRACE: Duration = Duration::from_secs(5);

/// So many bytes of a file are shown.
const LONG: usize = 2048;

impl Snapshot {
    pub(crate) fn take(sandbox: &Arc<Inner>) -> Self {
        await_the_kernel(sandbox);
        Self {
            sandbox: Arc::clone(sandbox),
            before: state(sandbox),
            allowed: Allowed::default(),
        }
    }

    /// Allows a link of the node to have come, gone or changed, with everything on it, and for a
    /// bridge what its neighbours may remember.
    pub fn allow_link(mut self, name: &str) -> Self {
        self.allowed.links.insert(name.to_owned());
        self
    }

    /// Allows any difference whose line contains `text`.
    pub fn allow(mut self, text: &str) -> Self {
        self.allowed.texts.push(text.to_owned());
        self
    }

    /// Allows forwarding to have been switched on: a gateway leaves it on, as others
    /// may rely on it by now.
    pub fn allow_forwarding(self) -> Self {
        self.allow("sysctl ipv4/ip_forward ")
            .allow("/forwarding ")
            // The kernel sets these two along with IPv4 forwarding.
            .allow("/send_redirects ")
            .allow("/accept_redirects ")
    }

    /// Allows what host-local keeps of a network without reservations: its directory,
    /// the lock and the last address of each pool.
    pub fn allow_host_local(self, network: &str) -> Self {
        let dir = format!("/var/lib/cni/networks/{network}");
        self.allow("dir /var/lib/cni ")
            .allow("dir /var/lib/cni/networks ")
            .allow(&format!("dir {dir} "))
            .allow(&format!("file {dir}/lock "))
            .allow(&format!("file {dir}/last_reserved_ip."))
            // The index by container.
            .allow("dir /var/lib/cni/networks/.podwire ")
            .allow(&format!("dir /var/lib/cni/networks/.podwire/{network} "))
            .allow(&format!(
                "file /var/lib/cni/networks/.podwire/{network}/index "
            ))
    }

    /// Allows what any network of a bridge with host-local leaves for its next pod.
    pub fn allow_bridge_network(self) -> Self {
        self.allow_link("cni0")
            .allow_forwarding()
            .allow_host_local(crate::conf::NETWORK)
    }

    /// Panics with the differences if anything changed that is not allowed. What is
    /// still being deleted gets a moment to go.
    #[track_caller]
    pub fn assert_unchanged(&self) {
        if let Err(differences) = self.compare(GRACE) {
            panic!("left behind (+) or taken away (-):\n{differences}");
        }
    }

    /// The differences that are not allowed, one a line, if there still are any after
    /// `grace`.
    pub fn compare(&self, grace: Duration) -> Result<(), String> {
        let deadline = Instant::now() + in_time(grace);
        loop {
            // A look itself may take longer than all that is to be waited for.
            let is_last = Instant::now() > deadline;
            let differences = self.differences(&state(&self.sandbox));
            if differences.is_empty() {
                return Ok(());
            }
            if is_last {
                return Err(differences.join("\n"));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// The facts as text, one a line, those of allowed links left out: to compare two sandboxes.
    pub fn text(&self) -> String {
        let mut lines = String::new();
        for (place, facts) in &self.before {
            for fact in facts.iter().filter(|fact| !self.allows(fact)) {
                lines.push_str(&format!("{place}: {}\n", fact.text));
            }
        }
        lines
    }

    fn differences(&self, now: &State) -> Vec<String> {
        let mut found = Vec::new();
        for (place, before) in &self.before {
            // A pod that was deleted took its state along.
            let Some(after) = now.get(place) else {
                continue;
            };
            let missing = before.difference(after).map(|fact| ('-', fact));
            let added = after.difference(before).map(|fact| ('+', fact));
            for (sign, fact) in missing.chain(added).filter(|(_, fact)| !self.allows(fact)) {
                found.push(format!("{sign} {place}: {}", fact.text));
            }
        }
        found
    }

    fn allows(&self, fact: &Fact) -> bool {
        self.allowed.links.contains(&fact.link)
            || self
                .allowed
                .texts
                .iter()
                .any(|text| fact.text.contains(text))
    }
}

fn state(inner: &Arc<Inner>) -> State {
    let mut state = State::new();
    let mut node = files(inner);
    node.extend(processes(inner));
    state.insert("node".into(), node);
    state.insert("host".into(), namespace(&Netns::host(Arc::clone(inner))));
    let pods = inner.pods().clone();
    for pod in pods {
        let facts = namespace(&Netns::pod(Arc::clone(inner), &pod));
        state.insert(format!("pod {pod}"), facts);
    }
    state
}

/// Every answer on one line of its own, whatever the namespace lacks.
const PROBE: &str = r"
    one() { printf '\001%s\002' $1; shift; $* 2>/dev/null || :; }
    one link ip -j -d link show
    one addr ip -j addr show
    one route ip -j -4 route show table all
    one route ip -j -6 route show table all
    one rule ip -j -4 rule show
    one rule ip -j -6 rule show
    one neigh ip -j neigh show nud permanent
    one fdb bridge -j fdb show
    one nft nft -j list ruleset
    one save iptables-save
    one save ip6tables-save
    cd /proc/sys/net
    one sysctl grep -s . ipv4/ip_forward ipv4/conf/*/forwarding ipv4/conf/*/route_localnet \
        ipv4/conf/*/arp_notify ipv4/conf/*/rp_filter ipv4/conf/*/proxy_arp ipv4/conf/*/send_redirects \
        ipv4/conf/*/accept_redirects ipv4/conf/*/accept_local ipv6/conf/*/forwarding ipv6/conf/*/accept_ra \
        ipv6/conf/*/disable_ipv6 ipv6/conf/*/accept_dad ipv6/conf/*/keep_addr_on_down \
        ipv6/conf/*/accept_redirects ipv6/conf/*/ndisc_notify ipv6/conf/*/proxy_ndp
";

fn namespace(ns: &Netns) -> BTreeSet<Fact> {
    let mut facts = BTreeSet::new();
    let output = ns.sh(PROBE);
    for part in output.split('\u{1}').filter(|part| !part.is_empty()) {
        let (what, text) = part.split_once('\u{2}').unwrap_or((part, ""));
        match what {
            "sysctl" => facts.extend(text.lines().map(sysctl)),
            "save" => facts.extend(text.lines().filter_map(saved_rule)),
            _ => facts.extend(json(what, text)),
        }
    }
    facts
}

fn sysctl(line: &str) -> Fact {
    let (path, value) = line.split_once(':').unwrap_or((line, ""));
    let mut parts = path.split('/').skip(1);
    let link = match (parts.next(), parts.next()) {
        (Some("conf"), Some(link)) if !["all", "default"].contains(&link) => link,
        _ => "",
    };
    Fact {
        link: link.to_owned(),
        text: format!("sysctl {path} = {value}"),
    }
}

fn saved_rule(line: &str) -> Option<Fact> {
    if line.starts_with('#') || line.trim().is_empty() {
        return None;
    }
    // `:POSTROUTING ACCEPT [12:840]` ends with counters.
    let text = line.split(" [").next().unwrap_or(line);
    Some(Fact {
        link: String::new(),
        text: format!("iptables {text}"),
    })
}

fn json(what: &str, text: &str) -> Vec<Fact> {
    if text.trim().is_empty() {
        return Vec::new();
    }
    let parsed: Value = serde_json::from_str(text.trim())
        .unwrap_or_else(|e| panic!("{what} printed no JSON: {e}: {text}"));
    let entries = match what {
        "nft" => parsed["nftables"].as_array().cloned(),
        _ => parsed.as_array().cloned(),
    };
    entries
        .unwrap_or_default()
        .iter()
        .flat_map(|entry| facts_of(what, entry))
        .collect()
}

fn facts_of(what: &str, entry: &Value) -> Vec<Fact> {
    let on = |key: &str, kept: String| Fact {
        link: entry[key].as_str().unwrap_or_default().to_owned(),
        text: format!("{what} {kept}"),
    };
    match what {
        "link" => vec![on("ifname", link(entry))],
        "addr" => addresses(entry),
        "route" if comes_by_itself(entry) => Vec::new(),
        "route" => vec![on("dev", pick(entry, ROUTE))],
        "neigh" => vec![on("dev", pick(entry, &["dst", "dev", "lladdr"]))],
        "fdb" if is_group_of_an_address(entry) => Vec::new(),
        "fdb" if entry["state"] == "permanent" => {
            vec![on(
                "ifname",
                pick(entry, &["mac", "ifname", "dst", "vlan", "vni"]),
            )]
        }
        "rule" => vec![on("", pick(entry, RULE))],
        "nft" if entry.get("metainfo").is_none() => vec![on("", without_counters(entry))],
        _ => Vec::new(),
    }
}

/// Whether a route comes with a link-local address as soon as the kernel has found
/// no duplicate of it, which takes a second or two: the address itself is compared.
fn comes_by_itself(route: &Value) -> bool {
    let dst = route["dst"].as_str().unwrap_or_default();
    (route["type"] == "local" || route["type"] == "anycast") && dst.starts_with("fe80:")
}

/// Whether an entry is a group (RFC 4291, 2.7.1) that an interface joins for an IPv6 address
/// of its own, when the kernel comes to it: the address itself is compared.
fn is_group_of_an_address(entry: &Value) -> bool {
    let mac = entry["mac"].as_str().unwrap_or_default();
    mac.starts_with("33:33:ff:")
}

const ROUTE: &[&str] = &[
    "type", "dst", "gateway", "dev", "table", "protocol", "scope", "prefsrc", "metric", "nexthops",
    "mtu", "advmss",
];
const RULE: &[&str] = &[
    "priority", "src", "srclen", "dst", "dstlen", "fwmark", "iif", "oif", "table", "action",
];

fn pick(entry: &Value, keys: &[&str]) -> String {
    let kept = keys.iter().filter_map(|&key| {
        let value = entry.get(key)?;
        Some(match value.as_str() {
            Some(text) => format!("{key} {text}"),
            None => format!("{key} {value}"),
        })
    });
    kept.collect::<Vec<_>>().join(" ")
}

fn link(entry: &Value) -> String {
    let kept = pick(
        entry,
        &[
            "ifname",
            "flags",
            "mtu",
            "master",
            "operstate",
            "address",
            "promiscuity",
            "group",
            "ifalias",
            "altnames",
        ],
    );
    // Without a carrier, the kernel derives one from the other when it comes to it (link_watch.c).
    let kept = kept.replace("operstate LOWERLAYERDOWN", "operstate DOWN");
    let info = &entry["linkinfo"];
    let port = &info["info_slave_data"];
    let data = &info["info_data"];
    format!(
        "{kept} {} {} {}",
        pick(info, &["info_kind"]),
        pick(port, &["hairpin", "isolated", "guard", "learning", "flood"]),
        pick(
            data,
            &[
                "mode",
                "id",
                "local",
                "vlan_filtering",
                "vlan_default_pvid",
                "stp_state"
            ]
        ),
    )
}

fn addresses(entry: &Value) -> Vec<Fact> {
    let link = entry["ifname"].as_str().unwrap_or_default();
    let all = entry["addr_info"].as_array().cloned().unwrap_or_default();
    all.iter()
        .map(|address| {
            let mut keys = vec![
                "local",
                "prefixlen",
                "scope",
                "broadcast",
                "nodad",
                "dadfailed",
            ];
            // A link-local address is looked for duplicates at its leisure.
            if address["scope"] != "link" {
                keys.push("tentative");
            }
            let kept = pick(address, &keys);
            Fact {
                link: link.to_owned(),
                text: format!("addr on {link} {kept}"),
            }
        })
        .collect()
}

fn without_counters(entry: &Value) -> String {
    fn strip(value: &mut Value) {
        match value {
            Value::Object(all) => {
                all.remove("handle");
                for counter in ["packets", "bytes", "expires"] {
                    all.remove(counter);
                }
                all.values_mut().for_each(strip);
            }
            Value::Array(all) => all.iter_mut().for_each(strip),
            _ => {}
        }
    }
    let mut entry = entry.clone();
    strip(&mut entry);
    entry.to_string()
}

fn files(inner: &Arc<Inner>) -> BTreeSet<Fact> {
    let pods = inner.pods().clone();
    inner.inside(move || {
        let mut lines = Vec::new();
        // All else is read-only in a sandbox.
        for root in ["/run", "/var/lib"] {
            walk(Path::new(root), &mut lines);
        }
        let ours: Vec<String> = pods
            .iter()
            .map(|pod| format!(" /run/netns/{pod} "))
            .collect();
        lines.retain(|line| !ours.iter().any(|pod| line.contains(pod)));
        // The locks of iptables and podwired stay for the next caller.
        lines.retain(|line| {
            !line.contains(" /run/xtables.lock ") && !line.contains(" /run/podwire/podwired.lock ")
        });
        // That another program hands out addresses is noted until the boot ends.
        lines.retain(|line| {
            !line.contains(" /run/podwire/foreign") && line != "dir /run/podwire 700"
        });
        // The directories of the tables and of the names stay until then, too.
        lines.retain(|line| {
            line != "dir /run/podwire/neighbours 700" && line != "dir /run/podwire/names 700"
        });
        lines.into_iter().map(file).collect()
    })
}

/// A file is a fact of its own, but the table of a bridge belongs to that bridge, and its content is
/// of no interest.
fn file(line: String) -> Fact {
    let table = line.strip_prefix("file /run/podwire/neighbours/");
    match table.and_then(|rest| rest.split(' ').next()) {
        Some(bridge) => Fact {
            link: bridge.to_owned(),
            text: format!("file /run/podwire/neighbours/{bridge}"),
        },
        None => Fact {
            link: String::new(),
            text: line,
        },
    }
}

fn walk(dir: &Path, lines: &mut Vec<String>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        let Ok(meta) = fs::symlink_metadata(&path) else {
            continue;
        };
        let mode = meta.mode() & 0o7777;
        if meta.is_dir() {
            lines.push(format!("dir {} {mode:o}", path.display()));
            walk(&path, lines);
        } else if meta.is_file() {
            let content = fs::read(&path).unwrap_or_default();
            let content = if path.ends_with("podwire/ipam/journal") {
                leased(&content)
            } else {
                shown(&content)
            };
            lines.push(format!("file {} {mode:o} {content}", path.display()));
        } else {
            lines.push(format!("other {} {mode:o}", path.display()));
        }
    }
}

/// The content of a file; of a long one, the beginning and a digest. To escape and search all of
/// What a journal of addresses comes to: the leases that were not released.
fn leased(journal: &[u8]) -> String {
    let mut leases = BTreeMap::new();
    for line in journal.split(|byte| *byte == b'\n') {
        let change: Value = serde_json::from_slice(line).unwrap_or_default();
        let lease = &change["lease"]["lease"];
        if let Some(number) = lease["sequence"].as_u64() {
            leases.insert(number, format!("{} of {}", lease["ip"], lease["owner"]));
        } else if let Some(number) = change["release"]["sequence"].as_u64() {
            leases.remove(&number);
        }
    }
    format!("{leases:?}")
}

/// host-local's index (32 KiB, mostly zeros) took a third of the CPU time of many tests.
fn shown(content: &[u8]) -> String {
    let text = |bytes| format!("{:?}", String::from_utf8_lossy(bytes));
    match content.get(..LONG) {
        Some(start) => {
            let mut digest = DefaultHasher::new();
            digest.write(content);
            let (bytes, digest) = (content.len(), digest.finish());
            format!("{} … {bytes} bytes, digest {digest:x}", text(start))
        }
        None => text(content),
    }
}

/// Gives a moment to what is in the middle of a system call that nothing can interrupt,
/// or on its way there: a DEL leaves a child, which is gone in some 15 ms. It is an orphan,
/// and has no arguments, as no daemon of ours.
fn await_the_kernel(inner: &Arc<Inner>) {
    let is_waiting = |pid| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let mut fields = stat.rsplit(") ").next().unwrap_or_default().split(' ');
        let (state, parent) = (fields.next(), fields.next());
        let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let arguments = command.iter().filter(|byte| **byte == 0).count();
        state == Some("D") || (parent == Some("1") && arguments == 1)
    };
    let deadline = Instant::now() + GRACE;
    while inner.processes().into_iter().any(is_waiting) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn processes(inner: &Arc<Inner>) -> BTreeSet<Fact> {
    let pids = inner.processes();
    let facts = pids.into_iter().filter_map(|pid| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        // A process that has ended has no command line any more.
        (!line.is_empty()).then(|| Fact {
            link: String::new(),
            text: format!("process {pid} {line}"),
        })
    });
    facts.collect()
}

impl Sandbox {
    /// Panics with the lines that differ unless this node and its pods are in the same
    /// state as the other's, random names and MAC addresses aside. `known` rewrites
    /// each line or drops it, where a difference is known. What is still settling gets
    /// a moment.
    #[track_caller]
    pub fn assert_same_state(&self, other: &Sandbox, known: fn(String) -> Option<String>) {
        let deadline = Instant::now() + in_time(GRACE);
        loop {
            let is_last = Instant::now() > deadline;
            let (here, there) = (self.state_lines(known), other.state_lines(known));
            if here == there {
                return;
            }
            if is_last {
                let lines = lines_that_differ(here, there);
                panic!("states differ (< this, > the other):\n{lines}");
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn state_lines(&self, known: fn(String) -> Option<String>) -> Vec<String> {
        let text = crate::normal::Normaliser::plain().text(&self.snapshot().text());
        let lines = text.lines().map(str::to_owned);
        let mut lines: Vec<String> = lines.filter_map(known).collect();
        lines.sort();
        lines
    }
}

fn lines_that_differ(here: Vec<String>, mut there: Vec<String>) -> String {
    let mut differ = Vec::new();
    for line in here {
        match there.iter().position(|other| *other == line) {
            Some(same) => drop(there.remove(same)),
            None => differ.push(format!("< {line}")),
        }
    }
    differ.extend(there.into_iter().map(|line| format!("> {line}")));
    differ.join("\n")
}
