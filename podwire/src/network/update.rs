//! `podwire network update`: changes of a network under running containers.
//!
//! The configuration changes first, then what the cache of attachments has of it, because CHECK,
//! DEL and `podwire resync` read that; then the kernel. Each step may be repeated: after an
//! interruption, the same command completes the work.

mod access;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context, Result, bail};
use containers::journal::Journal;
use netlink::{Link, Netlink, PortSpec};
use netns::NetNs;
use networks::named::{Kind, Listed, Network, Origin, Store};
use networks::{Cache, CachedAttachment, NetworkList};
use packet_filter::node;
use serde_json::{Map, Value, json};
use wiring::{alias, shared};

use super::addressing::{Node, Requests, Subnet, Words};
use super::options::{self, MTU, Options};
use super::pools::Pools;
use super::{resolver, taken};
use crate::commands::record_users;
use crate::pods::Pods;

/// What is to be changed. `None` and an empty list change nothing.
#[derive(Clone, Debug)]
pub struct Changes<'a> {
    /// Labels to add or to change.
    pub labels: &'a [String],
    /// Keys of labels to remove.
    pub remove_labels: &'a [String],
    /// Whether packets that leave the network get the node's address.
    pub masquerade: Option<bool>,
    /// Whether containers of the network reach each other.
    pub icc: Option<bool>,
    /// The largest packet in bytes.
    pub mtu: Option<u32>,
    /// Whether containers have no way out, and none leads to them.
    pub internal: Option<bool>,
    /// The gateway modes of IPv4 and IPv6.
    pub modes: [Option<String>; 2],
    /// `-o`: options of `create` for the same changes.
    pub options: &'a [String],
    /// Name servers to add, for names that no container has.
    pub servers: &'a [String],
    /// Name servers to remove.
    pub remove_servers: &'a [String],
    /// Further subnets.
    pub words: Words<'a>,
    /// The file with the pools.
    pub pools: &'a Path,
}

/// Where a change is made.
#[derive(Debug)]
pub struct Places<'a> {
    /// The configurations.
    pub store: &'a Store,
    /// Where they are.
    pub conf_dir: &'a Path,
    /// The attachments.
    pub cache: &'a Cache,
    /// Where they and the records of connected containers are.
    pub cache_dir: &'a Path,
}

impl Changes<'_> {
    /// The same with the options (`-o`) in their places.
    fn with_options(&self) -> Result<Self> {
        let mut faults = Vec::new();
        let given = options::pairs(self.options, "option", &mut faults);
        let known = Options::read(&given, &mut faults);
        faults.extend(known.fixed().map(|it| {
            format!("the option {it} belongs to create: containers have their interfaces and routes by it")
        }));
        options::refuse(&faults)?;
        let [ipv4, ipv6] = self.modes.clone();
        Ok(Self {
            masquerade: self.masquerade.or(known.masquerade),
            icc: self.icc.or(known.icc),
            mtu: self.mtu.or(known.mtu),
            modes: [ipv4.or(known.mode_ipv4), ipv6.or(known.mode_ipv6)],
            ..self.clone()
        })
    }

    /// Whether it changes which server gets which questions.
    fn touch_names(&self) -> bool {
        self.internal.is_some() || !self.servers.is_empty() || !self.remove_servers.is_empty()
    }

    /// Whether it changes the access to or from the containers.
    fn touch_access(&self) -> bool {
        self.internal.is_some() || self.modes.iter().any(Option::is_some)
    }
}

/// Changes `network`; `dry` changes nothing. Returns what was done, or would be, in words.
///
/// # Errors
/// All faults of the changes at once; what the kernel or the disk refuses.
pub fn update(
    network: &Network,
    changes: &Changes<'_>,
    places: &Places<'_>,
    dry: bool,
) -> Result<Vec<String>> {
    let listed = changeable(network)?;
    let changes = &changes.with_options()?;
    let mut edit = Edit::new(network, listed);
    let subnets = edit.new_subnets(changes, places)?;
    let host = Netlink::open()?;
    let attached = super::Attached::to(&network.name, places.cache)?;
    edit.apply(changes, &subnets, &attached.alive)?;
    let links = Links::of(&host, &network.name, listed)?;
    if let Some(mtu) = changes.mtu {
        edit.done.extend(links.mtu_steps(mtu, &attached.alive));
    }
    if dry {
        return Ok(edit.done);
    }
    let list = edit.write(listed, places)?;
    for attachment in &attached.alive {
        let mut changed = attachment.clone();
        changed.replace_config(&list.bytes);
        if let Some(mtu) = changes.mtu {
            changed.replace_mtu(mtu);
        }
        let gets_out = changes.internal == Some(false) && changed.add_default_routes()?;
        places.cache.put(&changed)?;
        if gets_out {
            let (netns, id) = (&attachment.netns, &attachment.container_id);
            containers::choose_gateway(
                netns,
                id,
                places.cache,
                &Journal::in_dir(places.cache_dir),
            )?;
        }
    }
    if let Some(mtu) = changes.mtu {
        links.set_mtu(&host, mtu, &attached.alive)?;
    }
    if let Some(icc) = changes.icc {
        links.set_isolated(&host, !icc)?;
    }
    set_rules(network, changes, places)?;
    if changes.touch_names() {
        resolver::renew(&network.name, &mut edit.document)?;
    }
    Ok(edit.done)
}

/// A network that podwire made and containers are attached to by a bridge.
fn changeable(network: &Network) -> Result<&Listed> {
    let name = &network.name;
    match &network.kind {
        Kind::Unmade => {
            bail!("network {name} is made with its first container; there is nothing to change yet")
        }
        Kind::None | Kind::Host => bail!("{name} is a pre-defined network and cannot be changed"),
        Kind::Listed(listed) if listed.origin != Origin::Podwire => {
            let file = listed.file.display();
            bail!(
                "network {name} is not changed: podwire has not made it; its configuration is {file}"
            )
        }
        Kind::Listed(listed) => Ok(listed),
    }
}

/// The configuration while it changes.
struct Edit<'a> {
    network: &'a Network,
    listed: &'a Listed,
    document: Map<String, Value>,
    done: Vec<String>,
}

impl<'a> Edit<'a> {
    fn new(network: &'a Network, listed: &'a Listed) -> Self {
        let document = listed.document.clone();
        Self {
            network,
            listed,
            document,
            done: Vec::new(),
        }
    }

    /// The subnets to add.
    fn new_subnets(&self, changes: &Changes<'_>, places: &Places<'_>) -> Result<Vec<Subnet>> {
        if changes.words.subnets.is_empty() {
            return Ok(Vec::new());
        }
        let mut faults = Vec::new();
        // A family is added by its subnet.
        let words = Words {
            ipv4: Some(true),
            ..changes.words.clone()
        };
        let requests = Requests::only(&words, &mut faults);
        let interface = self
            .plugin_key("bridge")
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned();
        let node = Node {
            name: &self.network.name,
            shares_segment: false,
            interface: &interface,
            others: &[],
        };
        let taken = taken::taken(&places.store.catalogue()?)?;
        let subnets = match faults[..] {
            [] => requests.settle(&Pools::read(changes.pools)?, &taken, node, &mut faults)?,
            _ => Vec::new(),
        };
        options::refuse(&faults)?;
        Ok(subnets)
    }

    /// Changes the document, after all faults of the changes are known.
    fn apply(
        &mut self,
        changes: &Changes<'_>,
        subnets: &[Subnet],
        attached: &[CachedAttachment],
    ) -> Result<()> {
        let mut faults = Vec::new();
        let labels = options::pairs(changes.labels, "label", &mut faults);
        let known = self.network.listed();
        let known = known.map(|it| networks::named::subnets_of(&it.list));
        let known: Vec<_> = known.unwrap_or_default();
        let known: Vec<IpAddr> = known.iter().map(|it| it.subnet.ip()).collect();
        faults.extend(self.faults(changes, subnets, &known));
        let has = |is_ipv4| {
            let added = subnets.iter().map(|it| it.network.ip());
            let mut ips = known.iter().copied().chain(added);
            ips.any(|it| it.is_ipv4() == is_ipv4)
        };
        self.set_access(changes, [has(true), has(false)], attached, &mut faults);
        faults.extend(self.change_servers(changes));
        if let (Some(internal), Some(plugin)) =
            (changes.internal, resolver::plugin(&mut self.document))
        {
            plugin.insert("internal".into(), internal.into());
        }
        options::refuse(&faults)?;
        self.set_record(changes, subnets, labels)?;
        self.set_keys(changes);
        for subnet in subnets {
            self.done.push(format!("subnet {}", subnet.network));
            self.add_ranges(subnet)?;
        }
        Ok(())
    }

    /// What of the changes the network's driver cannot have. `known` has an address of each subnet
    /// that the network has already.
    fn faults(&self, changes: &Changes<'_>, subnets: &[Subnet], known: &[IpAddr]) -> Vec<String> {
        let mut faults = Vec::new();
        let driver = self.network.driver();
        let needs_bridge = changes.icc.is_some()
            || changes.masquerade.is_some()
            || changes.mtu.is_some()
            || changes.touch_access();
        if needs_bridge && !["bridge", "vxlan"].contains(&driver) {
            faults.push(format!(
                "only networks of a bridge can be changed live, and {} is of {driver}",
                self.network.name
            ));
        }
        let ipv4 = known.iter().filter(|it| it.is_ipv4()).count();
        let more = subnets.iter().filter(|it| it.network.is_ipv4()).count();
        if driver == "vxlan" && more > 0 && ipv4 + more > 1 {
            faults.push("vxlan driver doesn't support multiple subnets of IPv4".to_owned());
        }
        let has_ipv6 = known.iter().any(IpAddr::is_ipv6);
        let (least, most) = (if has_ipv6 { 1280 } else { *MTU.start() }, *MTU.end());
        if let Some(mtu) = changes.mtu.filter(|it| !(least..=most).contains(it)) {
            faults.push(format!("invalid MTU {mtu}: expected {least} to {most}"));
        }
        faults
    }

    /// Changes what podwire keeps about the network in its configuration: labels, options, subnets.
    fn set_record(
        &mut self,
        changes: &Changes<'_>,
        subnets: &[Subnet],
        labels: BTreeMap<String, String>,
    ) -> Result<()> {
        let mut record = self.listed.record.clone();
        record.internal = changes.internal.unwrap_or(record.internal);
        // `with_options` has refused what is no pair.
        let options = options::pairs(changes.options, "option", &mut Vec::new());
        record.options.extend(options);
        for (key, value) in labels {
            self.done.push(format!("label {key}={value}"));
            record.labels.insert(key, value);
        }
        for key in changes.remove_labels {
            if record.labels.remove(key).is_some() {
                self.done.push(format!("label {key} removed"));
            }
        }
        let subnets = subnets.iter().map(Subnet::record);
        // Of the others, the keys of host-local have everything.
        let subnets = subnets.filter(|it| it.range.is_some() || !it.auxiliary_addresses.is_empty());
        record.subnets.extend(subnets);
        self.document.insert(
            networks::named::Record::KEY.into(),
            serde_json::to_value(&record)?,
        );
        Ok(())
    }

    /// Changes the keys of the network's first plugin.
    fn set_keys(&mut self, changes: &Changes<'_>) {
        let icc = changes.icc.map(Value::from);
        for (key, value, word) in [
            ("ipMasq", changes.masquerade.map(Value::from), "masquerade"),
            ("icc", icc, "containers reach each other"),
            ("mtu", changes.mtu.map(Value::from), "mtu"),
        ] {
            if let Some(value) = value {
                self.done.push(format!("{word}: {value}"));
                self.set(key, value);
            }
        }
    }

    /// Changes the name servers of the network. Returns faults.
    fn change_servers(&mut self, changes: &Changes<'_>) -> Vec<String> {
        let (added, removed) = (changes.servers, changes.remove_servers);
        if added.is_empty() && removed.is_empty() {
            return Vec::new();
        }
        let words = added.iter().chain(removed);
        let mut faults: Vec<_> = words
            .filter_map(|it| it.parse::<names::Server>().err())
            .collect();
        let (name, done) = (&self.network.name, &mut self.done);
        let Some(plugin) = resolver::plugin(&mut self.document) else {
            faults.push(format!(
                "network {name} has no names: it has no plugin dnsname"
            ));
            return faults;
        };
        let mut servers = resolver::servers(plugin);
        for server in removed {
            let before = servers.len();
            servers.retain(|it| it != server);
            if servers.len() == before {
                faults.push(format!("network {name} has no name server {server}"));
            }
            done.push(format!("name server {server} removed"));
        }
        for server in added.iter().filter(|it| !removed.contains(it)) {
            if !servers.contains(server) {
                done.push(format!("name server {server}"));
                servers.push(server.clone());
            }
        }
        plugin.insert("servers".into(), servers.into());
        faults
    }

    fn plugin(&mut self) -> Option<&mut Map<String, Value>> {
        self.document
            .get_mut("plugins")?
            .get_mut(0)?
            .as_object_mut()
    }

    fn plugin_key(&self, key: &str) -> Option<&Value> {
        self.document.get("plugins")?.get(0)?.get(key)
    }

    fn set(&mut self, key: &str, value: Value) {
        if let Some(plugin) = self.plugin() {
            plugin.insert(key.to_owned(), value);
        }
    }

    /// Adds a subnet to the set of its family: a container gets an address of one of them.
    fn add_ranges(&mut self, subnet: &Subnet) -> Result<()> {
        let is_ipv4 = subnet.network.is_ipv4();
        let ipam = self.plugin().and_then(|it| it.get_mut("ipam"));
        let ipam = ipam
            .and_then(Value::as_object_mut)
            .context("the network has no addresses")?;
        if ipam.get("type").and_then(Value::as_str) != Some("host-local") {
            bail!("only host-local has subnets, and the network has another IPAM plugin");
        }
        let sets = ipam.entry("ranges").or_insert_with(|| json!([]));
        let sets = sets.as_array_mut().context("ipam.ranges is no list")?;
        let is_of_family = |set: &Value| {
            let subnet = set.get(0).and_then(|it| it["subnet"].as_str());
            subnet.is_some_and(|it| it.contains(':') != is_ipv4)
        };
        match sets
            .iter_mut()
            .find(|it| is_of_family(it))
            .and_then(Value::as_array_mut)
        {
            Some(set) => set.extend(subnet.ranges()),
            None => {
                sets.push(subnet.ranges().into());
                let dst = if is_ipv4 { "0.0.0.0/0" } else { "::/0" };
                if let Some(routes) = ipam.get_mut("routes").and_then(Value::as_array_mut) {
                    routes.push(json!({"dst": dst}));
                }
            }
        }
        Ok(())
    }

    fn write(&self, listed: &Listed, places: &Places<'_>) -> Result<NetworkList> {
        places.store.replace(&listed.file, &self.document)?;
        NetworkList::load(places.conf_dir, &self.network.name)
    }
}

/// The interfaces of a network on the node.
struct Links {
    bridge: Option<Link>,
    ports: Vec<Link>,
}

impl Links {
    fn of(host: &Netlink, network: &str, listed: &Listed) -> Result<Self> {
        let plugin = listed.list.plugins.first();
        let name = plugin.and_then(|it| it.document.get("bridge")?.as_str());
        let bridge = match name {
            Some(name) => host.find_link(name)?,
            None => None,
        };
        let mut ports = match &bridge {
            Some(bridge) => host.list_ports(bridge.index)?,
            None => Vec::new(),
        };
        ports.retain(|it| alias::is_of_network(it, network));
        Ok(Self { bridge, ports })
    }

    fn mtu_steps(&self, mtu: u32, attached: &[CachedAttachment]) -> Vec<String> {
        let ends = attached
            .iter()
            .map(|it| format!("{} of {}", it.ifname, super::attached::name(it)));
        let links = self
            .ports
            .iter()
            .chain(&self.bridge)
            .map(|it| it.name.clone());
        ends.chain(links)
            .map(|it| format!("mtu {mtu}: {it}"))
            .collect()
    }

    /// First the containers' ends: a packet that one of them sends must not be too large for the
    /// next link. `ip -n CONTAINER link set IFNAME mtu MTU`, then the ports and the bridge.
    fn set_mtu(&self, host: &Netlink, mtu: u32, attached: &[CachedAttachment]) -> Result<()> {
        for attachment in attached {
            let netns = NetNs::open(attachment.netns.as_ref())?;
            let inside = Netlink::open_in(&netns)?;
            if let Some(link) = inside.find_link(&attachment.ifname)? {
                inside.set_mtu(link.index, mtu)?;
            }
        }
        for link in self.ports.iter().chain(&self.bridge) {
            host.set_mtu(link.index, mtu)?;
        }
        Ok(())
    }

    /// `ip link set PORT type bridge_slave isolated on|off`
    fn set_isolated(&self, host: &Netlink, isolated: bool) -> Result<()> {
        let Some(bridge) = &self.bridge else {
            return Ok(());
        };
        for port in &self.ports {
            let spec = PortSpec {
                bridge: bridge.index,
                hairpin: port.port.as_ref().is_some_and(|it| it.hairpin),
                isolated,
                ..PortSpec::default()
            };
            host.attach_port(port, &spec)?;
        }
        Ok(())
    }
}

/// Removes the rules that the network does not want any more, and adds those that it wants now.
fn set_rules(network: &Network, changes: &Changes<'_>, places: &Places<'_>) -> Result<()> {
    let name = &network.name;
    // A mode decides what is masqueraded.
    if changes.masquerade == Some(false) || changes.touch_access() {
        shared::end_masquerade(name)?;
    }
    if changes.icc == Some(true) {
        shared::end_isolation(name)?;
    }
    if changes.masquerade.is_some() || changes.icc.is_some() || changes.touch_access() {
        let contents = places.cache.of_network(name)?;
        let pods = Pods::of(&contents, Some(name), places.conf_dir);
        record_users(&pods.wanted)?;
        node::resync(&pods.wanted, false)?;
    }
    Ok(())
}
