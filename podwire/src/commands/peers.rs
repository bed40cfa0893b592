//! `podwire peers`: show and change the hosts that a VXLAN network spans.

use std::io::{self, Read};
use std::net::IpAddr;

use anyhow::{Context, Result};
use clap::error::ErrorKind;
use clap::{Args, CommandFactory, Subcommand};
use cni::file::LONGEST;
use cni::json::Json;
use cni::{Cidr, Code};
use netlink::{BridgeSpec, Entry, Link, Netlink, Reconciled};
use networks::NetworkList;
use overlay::{Conf, Device, Mode, Network, Peer, PeerKeys, device, peers};
use serde::Deserialize;
use serde_json::{Value, json};

use super::Verdict;
use crate::command_line::CommandLine;
use crate::options::ConfDir;
use crate::output::{Output, print};

/// Show and change the hosts that a VXLAN network spans.
///
/// The peers of NETWORK, a network of the plugin vxlan, in the kernel of this node. The device is
/// created if no pod has been attached yet. The peers of the configuration are applied when the
/// device is created, and again by the first ADD after they have changed there. Changes by this
/// command last until then, or until a reboot.
#[derive(Debug, Args)]
#[command(after_long_help = OUTCOME)]
pub struct Peers {
    #[command(subcommand)]
    action: Action,
}

const OUTCOME: &str = "\
A PEER is an address, a MAC and networks, separated by commas, in any order:
  192.0.2.2,10.5.2.0/24                     mode l3: a host and its pods' subnet
  192.0.2.2                                 mode l2: a host
  192.0.2.2,02:00:00:00:00:07,10.5.0.7/32   mode l2: a pod on that host
For remove, the address is enough.

A FILE has the same in JSON, in the form of list --json and of the key peers of
the configuration: {\"peers\": [{\"vtep\": \"192.0.2.2\", \"mac\": \"…\", \"subnet\":
\"10.5.2.0/24\"}]}; or it is the configuration of a network of the plugin vxlan,
whose peers are taken. - is standard input.

Exit status: 0 when all was done, 1 when a part failed (the rest is done), 2 for
a wrong command line.

Examples:
  podwire peers list mynet
  podwire peers set mynet hosts.json
  podwire peers add mynet 192.0.2.2,10.5.2.0/24 192.0.2.3,10.5.3.0/24
  podwire peers remove mynet 192.0.2.3
  podwire peers list --json mynet | ssh other podwire peers set mynet -
";

#[derive(Debug, Subcommand)]
enum Action {
    /// Print the peers, and report those of the configuration that the kernel lacks.
    List(Target),
    /// Make the peers exactly the given ones; correct ones are not touched.
    Set {
        #[command(flatten)]
        target: Target,
        /// One FILE, or PEERs; none removes all
        #[arg(value_name = "PEER")]
        peers: Vec<String>,
    },
    /// Add the given peers, and leave the others.
    Add(Change),
    /// Remove the given peers, and leave the others.
    Remove(Change),
}

#[derive(Debug, Args)]
struct Target {
    /// Name of the network
    network: String,
    #[command(flatten)]
    conf: ConfDir,
}

#[derive(Debug, Args)]
struct Change {
    #[command(flatten)]
    target: Target,
    /// One FILE, or PEERs
    #[arg(value_name = "PEER", required = true)]
    peers: Vec<String>,
}

impl Peers {
    pub fn run(&self, output: &Output) -> Result<Verdict> {
        let (edit, target, words) = match &self.action {
            Action::List(target) => {
                let node = target.node()?;
                return list(output, &node.peers()?, &node.missing()?);
            }
            Action::Set { target, peers } => (Edit::Set, target, peers),
            Action::Add(Change { target, peers }) => (Edit::Add, target, peers),
            Action::Remove(Change { target, peers }) => (Edit::Remove, target, peers),
        };
        let given = given(words)?;
        let node = target.node()?;
        // To remove a peer, its address is enough.
        let mode = (edit != Edit::Remove).then_some(node.network.mode);
        let given = given.iter().enumerate();
        let given = given.map(|(index, keys)| checked(keys, mode, index));
        print_done(output, &node.change(edit, given.collect::<Result<_>>()?)?)
    }
}

/// How the given peers change the present ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Edit {
    Set,
    Add,
    Remove,
}

impl Edit {
    fn apply(self, present: Vec<Peer>, given: Vec<Peer>, mode: Mode) -> Vec<Peer> {
        let mut wanted = present;
        match self {
            Self::Set => wanted = given,
            Self::Add => {
                // In mode l3 a host has one entry, even if its MAC has changed.
                let same = |one: &Peer, other: &Peer| {
                    one.vtep == other.vtep && (mode == Mode::L3 || one.mac == other.mac)
                };
                wanted.retain(|one| !given.iter().any(|other| same(one, other)));
                wanted.extend(given);
            }
            Self::Remove => wanted.retain(|one| !given.iter().any(|other| one.is_meant_by(other))),
        }
        wanted
    }
}

/// A network of the plugin vxlan on this node.
pub struct Node {
    network: Network,
    device: Device,
    host: Netlink,
}

impl Node {
    /// The network.
    pub fn find(network: Network) -> Result<Self> {
        let host = Netlink::open()?;
        Ok(Self {
            device: Device::find(&host, &network)?,
            host,
            network,
        })
    }

    /// The network `name` with this configuration of the plugin.
    pub fn of(document: &Json, name: &str) -> Result<Self> {
        let conf: Conf = document
            .decode()
            .map_err(|error| Code::InvalidConfig.err(format!("failed to load netconf: {error}")))?;
        Self::find(Network::new(&conf, name)?)
    }

    /// The number of peers in the configuration, and those of them that the kernel lacks;
    /// `None` without a device, which will be created with all of them.
    pub fn unknown_peers(&self) -> Result<Option<(usize, Vec<&Peer>)>> {
        if self.device.link.is_none() {
            return Ok(None);
        }
        let (network, missing) = (&self.network, self.missing()?);
        let is_unknown = |peer: &&Peer| {
            let entries = network.entries_of(std::slice::from_ref(*peer));
            entries.iter().any(|entry| missing.contains(entry))
        };
        let unknown = network.peers.iter().filter(is_unknown).collect();
        Ok(Some((network.peers.len(), unknown)))
    }

    /// Why the network's packets do not leave the node although an ADD succeeds, if that is so.
    pub fn underlay_trouble(&self) -> Option<String> {
        self.device.trouble()
    }

    fn peers(&self) -> Result<Vec<Peer>> {
        let Some(link) = &self.device.link else {
            return Ok(Vec::new());
        };
        self.peers_of(link, self.bridge_if_there()?.as_ref())
    }

    /// The configuration's entries that the kernel lacks.
    fn missing(&self) -> Result<Vec<Entry>> {
        let bridge = self.bridge_if_there()?;
        device::missing_entries(&self.network, &self.device, bridge.as_ref())
    }

    fn peers_of(&self, link: &Link, bridge: Option<&Link>) -> Result<Vec<Peer>> {
        let overlay = device::overlay(&self.network, link, bridge);
        let present = netlink::Peers::open()?.present(overlay)?;
        Ok(peers(self.network.mode, &present))
    }

    fn change(&self, edit: Edit, given: Vec<Peer>) -> Result<Reconciled> {
        let (host, network) = (&self.host, &self.network);
        // Before anything is created: the given peers may be invalid.
        network.check_not_ourselves(&given, self.device.local)?;
        let wanted = edit.apply(self.peers()?, given.clone(), network.mode);
        network.check_peers(&wanted)?;
        self.device.check_peers(host, network, &wanted)?;
        let bridge = self.bridge()?;
        let link = self.device.ensure(host, network, bridge.as_ref())?;
        // First the configuration's peers, so that the next ADD does not apply them again.
        self.device
            .apply_peers(host, network, &link, bridge.as_ref())?;
        let present = self.peers_of(&link, bridge.as_ref())?;
        let wanted = edit.apply(present, given, network.mode);
        network.check_peers(&wanted)?;
        self.device
            .set_peers(host, network, &link, bridge.as_ref(), &wanted)
    }

    /// The bridge that the device is a port of, in mode l2.
    fn bridge(&self) -> Result<Option<Link>> {
        if self.network.mode == Mode::L3 {
            return Ok(None);
        }
        let spec = BridgeSpec {
            name: self.network.bridge.to_string(),
            mtu: Some(self.device.spec.mtu),
            vlan_filtering: false,
            promisc: false,
        };
        let bridge = self.host.ensure_bridge(&spec).map(Some);
        bridge.with_context(|| format!("failed to create bridge {:?}", spec.name))
    }

    fn bridge_if_there(&self) -> Result<Option<Link>> {
        match self.network.mode {
            Mode::L3 => Ok(None),
            Mode::L2 => Ok(self.host.find_link(self.network.bridge.as_str())?),
        }
    }
}

impl Target {
    fn node(&self) -> Result<Node> {
        let name = &self.network;
        let list = NetworkList::load(&self.conf.conf_dir, name)?;
        let plugin = list.plugins.iter().find(|it| it.plugin == "vxlan");
        let plugin = plugin.with_context(|| format!("network {name:?} has no plugin vxlan"))?;
        let document = Json::parse(&serde_json::to_vec(&plugin.document)?)?;
        Node::of(&document, &list.name)
    }
}

/// Peers in a file, or as arguments.
fn given(words: &[String]) -> Result<Vec<PeerKeys>> {
    match words {
        [] => Ok(Vec::new()),
        [file] if parse(file).is_none() => from_file(file),
        words => words
            .iter()
            .map(|word| parse(word).ok_or_else(|| not_a_peer(word).into()))
            .collect(),
    }
}

fn not_a_peer(word: &str) -> clap::Error {
    let text = format!("{word:?} is not a peer");
    CommandLine::command().error(ErrorKind::ValueValidation, text)
}

fn from_file(file: &str) -> Result<Vec<PeerKeys>> {
    let text = match file {
        "-" => {
            let mut text = Vec::new();
            let mut bounded = io::stdin().take(LONGEST);
            bounded
                .read_to_end(&mut text)
                .context("read standard input")?;
            text
        }
        path => cni::file::read_chosen(path.as_ref(), LONGEST)
            .with_context(|| format!("read {path}"))?,
    };
    let document = Json::parse(&text).with_context(|| format!("parse {file}"))?;
    let list = peers_in(&document).with_context(|| {
        format!(
            "{file}: no peers in it: a list, {{\"peers\": [...]}}, or the configuration of a network whose plugin vxlan has peers"
        )
    })?;
    let document = Json::Object(vec![("peers".to_owned(), list)]);
    #[derive(Deserialize)]
    struct File {
        peers: Vec<PeerKeys>,
    }
    let parsed: Result<File, _> = document.decode();
    Ok(parsed.with_context(|| file.to_owned())?.peers)
}

/// The list of peers in a file: the document itself, its key `peers`, or that of the plugin
/// vxlan in a network's configuration.
fn peers_in(document: &Json) -> Option<Json> {
    match document {
        Json::Array(_) => Some(document.clone()),
        _ => document.get("peers").or_else(|| {
            let Some(Json::Array(plugins)) = document.get("plugins") else {
                return None;
            };
            let is_vxlan = |plugin: &&Json| {
                matches!(plugin.get("type"), Some(Json::String(name)) if name == "vxlan")
            };
            plugins.iter().find(is_vxlan)?.get("peers")
        }),
    }
}

/// `192.0.2.2,02:00:00:00:00:07,10.5.2.0/24`
fn parse(word: &str) -> Option<PeerKeys> {
    let mut peer = PeerKeys::default();
    for part in word.split(',') {
        if let Ok(subnet) = part.parse::<Cidr>() {
            peer.subnet.0.push(subnet);
        } else if let Ok(vtep) = part.parse::<IpAddr>() {
            peer.vtep = Some(vtep);
        } else if part.parse::<netlink::Mac>().is_ok() {
            peer.mac = part.to_owned();
        } else {
            return None;
        }
    }
    Some(peer)
}

/// Checks a peer; without a mode, it need not be complete.
fn checked(keys: &PeerKeys, mode: Option<Mode>, index: usize) -> Result<Peer> {
    let place = format!("peers[{index}]");
    if let Some(mode) = mode {
        return Ok(Peer::new(keys, mode, &place)?);
    }
    let bare = PeerKeys {
        subnet: Default::default(),
        ..keys.clone()
    };
    let subnets = keys.subnet.0.iter().map(|it| it.0).collect();
    let peer = Peer::new(&bare, Mode::L2, &place)?;
    Ok(Peer { subnets, ..peer })
}

fn list(output: &Output, peers: &[Peer], missing: &[Entry]) -> Result<Verdict> {
    if output.is_json() {
        let all: Vec<Value> = peers.iter().map(document).collect();
        let mut answer = json!({ "peers": all });
        if !missing.is_empty() {
            answer["missing"] = missing.iter().map(ToString::to_string).collect();
        }
        output.print_json(&answer)?;
        return Ok(Verdict::Good);
    }
    for entry in missing {
        cni::log(format_args!(
            "podwire: of the configuration's peers, the kernel has no {entry}"
        ));
    }
    for peer in peers {
        print(&peer.to_string())?;
    }
    Ok(Verdict::Good)
}

fn document(peer: &Peer) -> Value {
    let mut it = json!({"vtep": peer.vtep.to_string()});
    if let Some(mac) = peer.mac {
        it["mac"] = mac.to_string().into();
    }
    let subnets: Vec<String> = peer.subnets.iter().map(ToString::to_string).collect();
    match &subnets[..] {
        [] => {}
        [one] => it["subnet"] = one.clone().into(),
        more => it["subnet"] = more.into(),
    }
    it
}

fn print_done(output: &Output, done: &Reconciled) -> Result<Verdict> {
    let (added, kept, removed) = (done.added, done.kept, done.removed);
    if output.is_json() {
        let failed: Vec<String> = done.failed.iter().map(|it| it.1.to_string()).collect();
        output.print_json(
            &json!({"added": added, "kept": kept, "removed": removed, "failed": failed}),
        )?;
    } else {
        for (_, error) in &done.failed {
            cni::log(format_args!("podwire: {error}"));
        }
        output.remark(&format!(
            "entries: {added} added, {kept} kept, {removed} removed"
        ))?;
    }
    Ok(Verdict::good_if(done.failed.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(word: &str) -> Peer {
        checked(&parse(word).unwrap(), None, 0).unwrap()
    }

    #[test]
    fn a_peer_is_written_in_any_order() {
        let one = parse("10.5.2.0/24,192.0.2.2,02:00:00:00:00:07,fd00:5:2::/64").unwrap();
        assert_eq!(one.vtep, Some("192.0.2.2".parse().unwrap()));
        assert_eq!(
            (one.mac.as_str(), one.subnet.0.len()),
            ("02:00:00:00:00:07", 2)
        );
        assert_eq!(parse("hosts.json"), None);
        assert_eq!(parse("-"), None);
    }

    #[test]
    fn peers_are_found_in_a_configuration_too() {
        let find = |text: &str| peers_in(&Json::parse(text.as_bytes()).unwrap());
        let list = Some(Json::Array(Vec::new()));
        for text in [
            "[]",
            r#"{"peers": []}"#,
            r#"{"name": "n", "type": "vxlan", "Peers": []}"#,
            r#"{"name": "n", "plugins": [{"type": "portmap"}, {"type": "vxlan", "peers": []}]}"#,
        ] {
            assert_eq!(find(text), list, "{text}");
        }
        for text in [
            "{}",
            "1",
            r#"{"plugins": [{"type": "vxlan"}]}"#,
            r#"{"peers": null}"#,
        ] {
            assert_eq!(find(text), None, "{text}");
        }
    }

    #[test]
    fn adding_replaces_the_host_and_removing_needs_but_its_address() {
        let before = vec![
            peer("192.0.2.2,02:00:00:00:00:02,10.5.2.0/24"),
            peer("192.0.2.3,02:00:00:00:00:03,10.5.3.0/24"),
        ];
        let back = peer("192.0.2.2,02:00:00:00:00:09,10.5.2.0/24");
        let added = Edit::Add.apply(before.clone(), vec![back.clone()], Mode::L3);
        assert_eq!(added, [before[1].clone(), back]);
        let removed = Edit::Remove.apply(before.clone(), vec![peer("192.0.2.2")], Mode::L3);
        assert_eq!(removed, before[1..]);
        let other = vec![peer("192.0.2.2,10.9.0.0/16")];
        assert_eq!(Edit::Remove.apply(before.clone(), other, Mode::L3), before);
        assert!(Edit::Set.apply(before, Vec::new(), Mode::L3).is_empty());
    }
}
