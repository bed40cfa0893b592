//! The VXLAN device of a network on this node: one per VNI, shared by all pods, with a name derived
//! from the VNI.
//!
//! Its alias names the network and the last list of peers that was applied from the
//! configuration. So an ADD need not look at thousands of entries, and does not revert later
//! changes by hand.

use std::net::IpAddr;

use anyhow::{Context, Result, bail};
use cni::names;
use ipnetwork::IpNetwork;
use netlink::{
    Address, AddressSpec, Entry, Family, Link, Netlink, Overlay, Peers, Reconciled, Route,
    RouteFilter, Vxlan, VxlanDevice, VxlanPort, VxlanSpec, is_port_taken, sysctl,
};

use crate::fault::fault;
use crate::guard;
use crate::mac::vtep_mac;
use crate::mode::Mode;
use crate::network::Network;
use crate::peer::Peer;
use crate::peer_checks::{Needed, check_captures};
use crate::underlay::{self, Underlay, Underlays, overhead};

/// The device of a network: what the kernel has, and what it must be.
#[derive(Clone, Debug, PartialEq)]
pub struct Device {
    /// What it must be.
    pub spec: VxlanSpec,
    /// Its address in the underlay.
    pub local: IpAddr,
    /// The interface that its packets leave by.
    pub uplink: Link,
    /// The link, if it exists.
    pub link: Option<Link>,
    /// Its properties, if it exists.
    found: Option<Vxlan>,
    /// Whether it exists and cannot be used: the node no longer has its address.
    obsolete: bool,
    /// Its alias after the configuration's peers were applied.
    applied: String,
}

impl Device {
    /// Looks for the device and decides what it must be. Changes nothing.
    ///
    /// A device that agrees with the configuration keeps its address, so that a default route that
    /// moves does not interrupt the network.
    ///
    /// # Errors
    /// Code 7: something that the configuration names does not exist, the VNI is used by another
    /// program or with other parameters, the MTU is too large, a peer is this node.
    pub fn find(host: &Netlink, network: &Network) -> Result<Self> {
        Self::find_on(host, network, &mut Underlays::default())
    }

    /// As [`Device::find`], with the underlays that are known from other networks.
    ///
    /// # Errors
    /// As [`Device::find`].
    pub fn find_on(host: &Netlink, network: &Network, underlays: &mut Underlays) -> Result<Self> {
        let (link, found) = match host.find_vxlan(&network.device())? {
            None => (None, None),
            Some((link, found)) => {
                let found = refuse_other(network, &link, found)?;
                (Some(link), Some(found))
            }
        };
        let kept = match &found {
            Some(found) => still_good(host, network, found)?,
            None => None,
        };
        let is_kept = kept.is_some();
        let underlay = match kept {
            Some(underlay) => underlay,
            None => underlays.find(host, network)?,
        };
        let spec = wanted(network, &underlay)?;
        // A device that is not obsolete stays as it is: pods use it.
        let mut obsolete = false;
        if let (Some(link), Some(found)) = (&link, &found) {
            if let Some(local) = found.local.filter(|_| !is_kept && owner(link).is_some()) {
                obsolete = underlay::owner(host, local)?.is_none();
            }
            if !obsolete {
                match compare(network, found, &spec.vxlan) {
                    Err(_) if network.kept_as.is_some() => obsolete = true,
                    compared => compared?,
                }
            }
        }
        // The kernel would refuse it, too, but only after a plugin has created a bridge.
        let starts = link.as_ref().is_none_or(|link| is_kept && !link.up);
        if starts
            && network.kept_as.is_none()
            && let Some(error) = taken(host, &spec)?
        {
            return Err(error);
        }
        let device = Self {
            spec,
            local: underlay.local,
            uplink: underlay.link,
            link,
            found,
            obsolete,
            applied: applied(network),
        };
        if !device.has_applied() {
            device.check_peers(host, network, &network.peers)?;
        }
        Ok(device)
    }

    /// Creates the device, or adjusts what can be changed (MTU, MAC, learning, hop limit), and
    /// brings it up. In mode `l2` it becomes a port of `bridge`.
    ///
    /// # Errors
    /// Code 7: a device with another name has the VNI; what the kernel refuses.
    pub fn ensure(&self, host: &Netlink, network: &Network, bridge: Option<&Link>) -> Result<Link> {
        let mut carried = Vec::new();
        if let Some(link) = self.link.as_ref().filter(|_| self.obsolete)
            && network.peers.is_empty()
        {
            // Peers that were added by hand are in no configuration.
            carried = guard::known_peers(network, link, bridge)?;
        }
        self.ensure_guard(host, network, bridge, &carried)?;
        let link = self.ensure_link(host, network, bridge)?;
        if !carried.is_empty() {
            let carried = network.entries_of(&carried);
            Peers::open()?.reconcile(overlay(network, &link, bridge), &carried)?;
        }
        Ok(link)
    }

    /// As [`Device::ensure`], if rules already drop the packets of other hosts.
    ///
    /// # Errors
    /// As [`Device::ensure`].
    pub fn ensure_link(
        &self,
        host: &Netlink,
        network: &Network,
        bridge: Option<&Link>,
    ) -> Result<Link> {
        let mut link = match &self.link {
            Some(link) if self.obsolete => {
                host.delete_link(&link.name)?;
                self.create(host)?
            }
            Some(link) => {
                self.adjust(host, link)?;
                link.clone()
            }
            None => self.create(host)?,
        };
        if owner(&link).is_none() {
            link.alias = Some(alias(&network.name, ""));
            host.set_alias(link.index, &alias(&network.name, ""))?;
        }
        if let Some(bridge) = bridge
            && link.master != Some(bridge.index)
        {
            host.attach_vxlan(&link, port(bridge, &network.peers))?;
            link.master = Some(bridge.index);
        }
        if !link.up {
            quieten(network.mode, &link.name);
            self.bring_up(host, &link)?;
            link.up = true;
        }
        Ok(link)
    }

    /// Makes the plugin leave the peers as they are: the configuration's list, which is empty, counts
    /// as applied.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub fn keep_from_plugin(&self, host: &Netlink, link: &Link) -> Result<()> {
        if link.alias.as_deref() != Some(&self.applied) {
            host.set_alias(link.index, &self.applied)?;
        }
        Ok(())
    }

    /// Whether [`Device::ensure_link`] makes a new device.
    pub fn is_to_be_made(&self) -> bool {
        self.link.is_none() || self.obsolete
    }

    /// Drops packets of other hosts, before the device is up.
    fn ensure_guard(
        &self,
        host: &Netlink,
        network: &Network,
        bridge: Option<&Link>,
        carried: &[Peer],
    ) -> Result<()> {
        match &self.link {
            Some(link) if !self.obsolete => {
                if guard::exists(network, self.local)? {
                    return Ok(());
                }
                let peers = guard::known_peers(network, link, bridge)?;
                guard::ensure(host, network, self, &peers)
            }
            _ if carried.is_empty() => guard::ensure(host, network, self, &network.peers),
            _ => guard::ensure(host, network, self, carried),
        }
    }

    /// Whether the configuration's list of peers was the last to be applied.
    fn has_applied(&self) -> bool {
        let alias = self.link.as_ref().and_then(|link| link.alias.as_deref());
        alias == Some(&self.applied) && !self.obsolete
    }

    /// Fails for `peers` that this node cannot have: itself, or a peer whose subnet contains an
    /// address that the node needs to reach others.
    ///
    /// # Errors
    /// Code 7, with the key at fault.
    pub fn check_peers(&self, host: &Netlink, network: &Network, peers: &[Peer]) -> Result<()> {
        network.check_not_ourselves(peers, self.local)?;
        if network.mode == Mode::L2 {
            return Ok(());
        }
        let local = Needed {
            ip: self.local,
            what: "which is this node",
        };
        let mut needed = vec![local];
        let families = peers.iter().flat_map(|it| &it.subnets);
        let has = |wanted| families.clone().any(|it| Family::of(it.ip()) == wanted);
        for family in [Family::V4, Family::V6] {
            // Reads the whole table, but only before a list is applied.
            if has(family) {
                needed.extend(self.routers(host, family)?);
            }
        }
        Ok(check_captures(peers, needed.into_iter())?)
    }

    /// The next hops of the node's default routes, and of all routes through the uplink.
    fn routers(&self, host: &Netlink, family: Family) -> Result<Vec<Needed>> {
        let routes = host.list_routes(RouteFilter::main(family))?;
        let leads_out = |it: &Route| it.dst.prefix() == 0 || it.oif == Some(self.uplink.index);
        let routers = routes.into_iter().filter(leads_out);
        let routers = routers.filter_map(|it| it.gw);
        let needed = routers.map(|ip| Needed {
            ip,
            what: "which is a router of this node",
        });
        Ok(needed.collect())
    }

    /// Applies the configuration's peers, unless this list was applied before: then `None`.
    ///
    /// # Errors
    /// The kernel's entries cannot be read. A refused peer is not an error of the whole list.
    pub fn apply_peers(
        &self,
        host: &Netlink,
        network: &Network,
        link: &Link,
        bridge: Option<&Link>,
    ) -> Result<Option<Reconciled>> {
        if link.alias.as_deref() == Some(&self.applied) {
            return Ok(None);
        }
        let done = self.set_peers(host, network, link, bridge, &network.peers)?;
        // Otherwise the next ADD tries again.
        if done.failed.is_empty() {
            host.set_alias(link.index, &self.applied)?;
        }
        Ok(Some(done))
    }

    /// Makes `peers` the only peers, and accepts packets of no other host.
    ///
    /// # Errors
    /// As [`Device::apply_peers`].
    pub fn set_peers(
        &self,
        host: &Netlink,
        network: &Network,
        link: &Link,
        bridge: Option<&Link>,
        peers: &[Peer],
    ) -> Result<Reconciled> {
        guard::ensure(host, network, self, peers)?;
        let overlay = overlay(network, link, bridge);
        let done = Peers::open()?.reconcile(overlay, &network.entries_of(peers))?;
        if let Some(bridge) = bridge {
            host.attach_vxlan(link, port(bridge, peers))?;
        }
        Ok(done)
    }

    fn create(&self, host: &Netlink) -> Result<Link> {
        match host.add_vxlan(&self.spec) {
            Ok(link) => Ok(link),
            Err(error) if error.is_exists() => match host.find_link(&self.spec.name)? {
                // A concurrent ADD created it.
                Some(link) => Ok(link),
                None => Err(taken(host, &self.spec)?.unwrap_or(error.into())),
            },
            Err(error) => Err(error.into()),
        }
    }

    /// A new device that cannot come up is deleted again.
    fn bring_up(&self, host: &Netlink, link: &Link) -> Result<()> {
        let Err(error) = host.set_up(link.index) else {
            return Ok(());
        };
        let why = taken(host, &self.spec)?;
        if self.link.is_none() || self.obsolete {
            host.delete_link(&link.name)?;
        }
        Err(why.unwrap_or(error.into()))
    }

    fn adjust(&self, host: &Netlink, link: &Link) -> Result<()> {
        let wanted = &self.spec;
        if link.mtu != wanted.mtu {
            host.set_mtu(link.index, wanted.mtu)?;
        }
        if link.mac != Some(wanted.mac) {
            host.set_mac(link.index, wanted.mac)?;
        }
        let differs = |found: &Vxlan| {
            (found.learning, found.ttl) != (wanted.vxlan.learning, wanted.vxlan.ttl)
        };
        if self.found.as_ref().is_some_and(differs) {
            host.change_vxlan(link.index, wanted.vxlan.learning, wanted.vxlan.ttl)?;
        }
        Ok(())
    }

    /// The reason why no packet leaves through the underlay although ADD succeeds, if there is one. It
    /// is not part of STATUS: runtimes take a node out of service for any error of STATUS.
    pub fn trouble(&self) -> Option<String> {
        underlay::trouble(&self.uplink)
    }

    /// CHECK: whether the device is as it must be.
    ///
    /// # Errors
    /// The first difference.
    pub fn check(&self, bridge: Option<&Link>) -> Result<()> {
        let name = &self.spec.name;
        let link = self
            .link
            .as_ref()
            .with_context(|| format!("device {name} not found"))?;
        if self.obsolete {
            bail!("device {name} sends from an address that has left the node");
        }
        if !link.up {
            bail!("device {name} is down");
        }
        if link.mtu != self.spec.mtu {
            bail!("device {name} has MTU {}, not {}", link.mtu, self.spec.mtu);
        }
        if link.mac != Some(self.spec.mac) {
            let mac = link.mac.map(|mac| mac.to_string()).unwrap_or_default();
            bail!("device {name} has MAC {mac}, not {}", self.spec.mac);
        }
        if let Some(found) = &self.found
            && found.learning != self.spec.vxlan.learning
        {
            let learning = found.learning;
            bail!("device {name} has learning {learning}, not {}", !learning);
        }
        if bridge.is_some_and(|bridge| link.master != Some(bridge.index)) {
            bail!("device {name} is not a port of the bridge");
        }
        Ok(())
    }
}

/// The links whose entries are reconciled.
pub fn overlay(network: &Network, device: &Link, bridge: Option<&Link>) -> Overlay {
    Overlay {
        device: device.index,
        neighbours_on: bridge.map_or(device.index, |bridge| bridge.index),
        learns_peers: network.group.is_some(),
        segment: None,
    }
}

/// Gives the device `address`, unless it is among those that are `present`:
/// `ip address add ADDRESS dev DEVICE`.
///
/// # Errors
/// What the kernel refuses.
pub fn ensure_address(
    host: &Netlink,
    link: &Link,
    present: &[Address],
    address: IpNetwork,
) -> Result<()> {
    if present.iter().any(|it| it.address == address) {
        return Ok(());
    }
    let spec = AddressSpec {
        // No other host is on this link.
        nodad: address.is_ipv6(),
        ..address.into()
    };
    match host.add_address_to(link, &spec) {
        Err(error) if error.is_exists() => Ok(()),
        other => Ok(other?),
    }
}

/// The device as a port of `bridge`. Neighbour suppression keeps the announcements of pods on their
/// host, so it is enabled only if neighbours are configured.
fn port(bridge: &Link, peers: &[Peer]) -> VxlanPort {
    VxlanPort {
        bridge: bridge.index,
        neigh_suppress: peers.iter().any(|it| !it.subnets.is_empty()),
    }
}

/// Whether podwire created `link` for `network`.
pub fn is_of(link: &Link, network: &Network) -> bool {
    owner(link) == Some(&fitting(&network.name))
}

/// The network in a device's alias; `None` if podwire did not create the device.
fn owner(link: &Link) -> Option<&str> {
    let text = link.alias.as_deref()?.strip_prefix(ALIAS)?;
    Some(text.rsplit_once('/').map_or(text, |(name, _)| name))
}

/// Prefix of the alias of a device.
const ALIAS: &str = "podwire-vxlan:";

fn alias(network: &str, mark: &str) -> String {
    format!("{ALIAS}{}/{mark}", fitting(network))
}

/// The alias of a device after the configuration's list of peers was applied.
fn applied(network: &Network) -> String {
    let mark = format!("{:016x}", network.fingerprint());
    alias(&network.name, &mark)
}

/// An alias has at most 255 bytes (IFALIASZ in linux/if.h).
fn fitting(network: &str) -> String {
    if network.len() > 200 {
        return names::prefixed(65, "#", network);
    }
    network.to_owned()
}

/// Fails for a link that is not the network's VXLAN device.
fn refuse_other(network: &Network, link: &Link, found: Option<Vxlan>) -> Result<Vxlan> {
    let Some(found) = found else {
        let kind = link.kind.as_deref().unwrap_or("device");
        let why = format!("{} is there already, as a {kind}", link.name);
        return Err(fault("vni", why).into());
    };
    if let Some(other) = owner(link).filter(|it| *it != fitting(&network.name)) {
        let why = format!("{} is in use by network {other:?}", network.vni);
        return Err(fault("vni", why).into());
    }
    Ok(found)
}

/// The underlay of an existing device, if the node still has it and the configuration names no
/// other.
fn still_good(host: &Netlink, network: &Network, found: &Vxlan) -> Result<Option<Underlay>> {
    let (Some(local), Some(index)) = (found.local, found.link) else {
        return Ok(None);
    };
    let Some(link) = host.find_link_by_index(index)? else {
        return Ok(None);
    };
    let dev = network.dev.as_ref();
    if dev.is_some_and(|dev| dev.as_str() != link.name)
        || network.local.is_some_and(|ip| ip != local)
        || network.family.is_some_and(|it| it != Family::of(local))
    {
        return Ok(None);
    }
    let addresses = host.list_addresses(index, Some(Family::of(local)))?;
    let has_address = addresses.iter().any(|it| it.address.ip() == local);
    let bound = true;
    Ok(has_address.then_some(Underlay { local, link, bound }))
}

fn wanted(network: &Network, underlay: &Underlay) -> Result<VxlanSpec> {
    let (link, local, room) = (&underlay.link, underlay.local, underlay.room());
    let mtu = network.mtu.unwrap_or(room);
    if mtu > room {
        let (name, all, less) = (&link.name, link.mtu, overhead(local));
        let why = format!(
            "{mtu} is more than {room}, which is what {all} of {name} less {less} for VXLAN leaves"
        );
        return Err(fault("mtu", why).into());
    }
    Ok(VxlanSpec {
        name: network.device(),
        vxlan: Vxlan {
            vni: network.vni,
            port: network.port,
            local: Some(local),
            link: underlay.bound.then_some(link.index),
            group: network.group,
            ttl: network.ttl,
            learning: network.learning,
            gbp: network.gbp,
            udp_checksum: network.udp_checksum,
        },
        mac: network.mac.unwrap_or_else(|| vtep_mac(network.vni, local)),
        mtu,
    })
}

/// Fails if a property differs that cannot be changed.
fn compare(network: &Network, found: &Vxlan, wanted: &Vxlan) -> Result<()> {
    let ip = |ip: Option<IpAddr>| ip.map_or("none".to_owned(), |ip| ip.to_string());
    let pairs = [
        ("port", found.port.to_string(), wanted.port.to_string()),
        ("vni", found.vni.to_string(), wanted.vni.to_string()),
        ("local", ip(found.local), ip(wanted.local)),
        ("group", ip(found.group), ip(wanted.group)),
        ("gbp", found.gbp.to_string(), wanted.gbp.to_string()),
        (
            "udpChecksum",
            found.udp_checksum.to_string(),
            wanted.udp_checksum.to_string(),
        ),
        (
            "dev",
            format!("link {}", found.link.unwrap_or_default()),
            format!("link {}", wanted.link.unwrap_or_default()),
        ),
    ];
    let Some((key, found, wanted)) = pairs.iter().find(|(_, found, wanted)| found != wanted) else {
        return Ok(());
    };
    let (vni, device) = (network.vni, network.device());
    let why =
        format!("{vni} is in use with other parameters: {device} has {key} {found}, not {wanted}");
    Err(fault("vni", why).into())
}

/// The reason why such a device could not be created or brought up, if there is one: another device has
/// the VNI on its port; a device that is up parses packets of the port differently; another program has
/// the port.
fn taken(host: &Netlink, wanted: &VxlanSpec) -> Result<Option<anyhow::Error>> {
    let (vni, port, family) = (wanted.vxlan.vni, wanted.vxlan.port, wanted.vxlan.family());
    let receiving = wanted.vxlan.receiving();
    let mut others = host.list_vxlans()?;
    others.retain(|it| it.vxlan.port == port && it.name != wanted.name);
    let is_same = |it: &&VxlanDevice| {
        let same = (it.vxlan.vni, it.vxlan.family(), it.receiving) == (vni, family, receiving);
        same && !it.receiving.external
    };
    if let Some(other) = others.iter().find(is_same) {
        let name = &other.name;
        let why = format!("{vni} is in use with other parameters: by {name}, on port {port}");
        return Ok(Some(fault("vni", why).into()));
    }
    let mut hearing = others.iter().filter(|it| it.hears(family)).peekable();
    if hearing.peek().is_none() {
        if !is_port_taken(family, port) {
            return Ok(None);
        }
        // A concurrent ADD may have brought the network's own device up since the list was read.
        let own = host.find_link(&wanted.name)?;
        if own.is_some_and(|it| it.up && it.is_kind("vxlan")) {
            return Ok(None);
        }
        let why = format!("{port} is in use by another program");
        return Ok(Some(fault("port", why).into()));
    }
    let other = hearing.find(|it| it.receiving != receiving);
    Ok(other.map(|VxlanDevice { name, receiving: theirs, .. }| {
        let why = format!(
            "{port} is in use with other parameters: by {name}, which has {theirs}, not {receiving}"
        );
        fault("port", why).into()
    }))
}

/// Keeps the device from sending packets of its own to the peers and from accepting router
/// advertisements.
fn quieten(mode: Mode, name: &str) {
    let key = |setting| sysctl::interface_key("ipv6", name, setting);
    let _ = sysctl::write(&key("accept_ra"), "0");
    if mode == Mode::L2 {
        // A port has no addresses.
        let _ = sysctl::write(&key("disable_ipv6"), "1");
    }
}

/// The entries of the configuration's peers that the kernel does not have; none if the device does
/// not exist yet.
///
/// # Errors
/// The kernel's entries cannot be read.
pub fn missing_entries(
    network: &Network,
    device: &Device,
    bridge: Option<&Link>,
) -> Result<Vec<Entry>> {
    let mut wanted = network.entries();
    let Some(link) = device.link.as_ref().filter(|_| !wanted.is_empty()) else {
        return Ok(Vec::new());
    };
    let present = Peers::open()?.present(overlay(network, link, bridge))?;
    wanted.retain(|entry| !present.written.contains(entry));
    Ok(wanted)
}
