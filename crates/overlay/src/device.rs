//! The VXLAN device of a network on this node: one for each VNI, shared by all
//! pods, with its name derived from the VNI.
//!
//! Its alias says whose it is, and which of the configuration's peer lists was the
//! last to be carried out: so an ADD need not look at thousands of entries, and does
//! not undo what somebody changed by hand since.

use std::net::IpAddr;

use anyhow::{Context, Result, bail};
use cni::names;
use netlink::{
    Entry, Family, Link, Netlink, Overlay, Peers, Reconciled, Route, RouteFilter, Vxlan,
    VxlanDevice, VxlanPort, VxlanSpec, is_port_taken, sysctl,
};

use crate::fault::fault;
use crate::guard;
use crate::mac::vtep_mac;
use crate::mode::Mode;
use crate::network::{Needed, Network, check_captures};
use crate::peer::Peer;
use crate::underlay::{self, Underlay, overhead, room};

/// The device as it is, or is to be.
#[derive(Clone, Debug, PartialEq)]
pub struct Device {
    /// What it is to be.
    pub spec: VxlanSpec,
    /// The address in the underlay that it has or gets.
    pub local: IpAddr,
    /// The interface that its packets leave by.
    pub uplink: Link,
    /// The link, if it is there.
    pub link: Option<Link>,
    /// What it is, if it is there.
    found: Option<Vxlan>,
    /// Whether it is there and useless: the address that it sends from has left the node.
    obsolete: bool,
    /// The alias that it has when the configuration's list of peers was carried out.
    carried_out: String,
}

impl Device {
    /// Looks what there is and decides what there has to be, and changes nothing.
    ///
    /// A device that is there as the configuration wants it keeps the address that it has,
    /// so that a default route that changes its way does not take the network along.
    ///
    /// # Errors
    /// Code 7: what the configuration names is not there, the VNI is in use by
    /// somebody else or with other parameters, the MTU is above what fits, a peer is
    /// this node.
    pub fn find(host: &Netlink, network: &Network) -> Result<Self> {
        let name = network.device();
        let mut device = match host.find_vxlan(&name)? {
            Some((link, found)) => Self::found(host, network, link, found)?,
            None => Self::missing(host, network)?,
        };
        device.carried_out = carried_out(network);
        if !device.has_carried_out() {
            device.check_peers(host, network, &network.peers)?;
        }
        Ok(device)
    }

    fn missing(host: &Netlink, network: &Network) -> Result<Self> {
        // The kernel would say so, too, but not before a bridge has been made.
        let underlay = Underlay::find(host, network)?;
        let spec = wanted(network, &underlay.link, underlay.local, underlay.bound)?;
        if let Some(error) = taken(host, &spec)? {
            return Err(error);
        }
        Ok(Self {
            spec,
            local: underlay.local,
            uplink: underlay.link,
            link: None,
            found: None,
            obsolete: false,
            carried_out: String::new(),
        })
    }

    fn found(host: &Netlink, network: &Network, link: Link, found: Option<Vxlan>) -> Result<Self> {
        let Some(found) = found else {
            let name = &link.name;
            let kind = link.kind.as_deref().unwrap_or("device");
            let why = format!("{name} is there already, as a {kind}");
            return Err(fault("vni", &why).into());
        };
        if let Some(other) = owner(&link).filter(|it| *it != fitting(&network.name)) {
            let why = format!("{} is in use by network {other:?}", network.vni);
            return Err(fault("vni", &why).into());
        }
        if let Some((local, parent)) = still_good(host, network, &found)? {
            let spec = wanted(network, &parent, local, found.link.is_some())?;
            compare(network, &found, &spec.vxlan)?;
            if let (false, Some(error)) = (link.up, taken(host, &spec)?) {
                return Err(error);
            }
            return Ok(Self {
                spec,
                local,
                uplink: parent,
                link: Some(link),
                found: Some(found),
                obsolete: false,
                carried_out: String::new(),
            });
        }
        let underlay = Underlay::find(host, network)?;
        let spec = wanted(network, &underlay.link, underlay.local, underlay.bound)?;
        // Where its address has left the node it is of no use to anybody. Else somebody
        // relies on it as it is.
        let gone = match found.local {
            Some(local) => crate::underlay::owner(host, local)?.is_none(),
            None => false,
        };
        let obsolete = gone && owner(&link).is_some();
        if !obsolete {
            compare(network, &found, &spec.vxlan)?;
        }
        Ok(Self {
            spec,
            local: underlay.local,
            uplink: underlay.link,
            link: Some(link),
            found: Some(found),
            obsolete,
            carried_out: String::new(),
        })
    }

    /// Makes the device, or adjusts what can be adjusted (MTU, MAC, learning, hop limit), and
    /// brings it up. In mode `l2` it becomes a port of `bridge`.
    ///
    /// # Errors
    /// Code 7 when a device of another name has the VNI; what the kernel refuses.
    pub fn ensure(&self, host: &Netlink, network: &Network, bridge: Option<&Link>) -> Result<Link> {
        let mut carried = Vec::new();
        if let Some(link) = self.link.as_ref().filter(|_| self.obsolete)
            && network.peers.is_empty()
        {
            // An administrator's own entries are in no configuration.
            carried = guard::known_peers(network, link, bridge)?;
        }
        self.close(host, network, bridge, &carried)?;
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
        if !carried.is_empty() {
            let carried = network.entries_of(&carried);
            Peers::open()?.reconcile(overlay(network, &link, bridge), &carried)?;
        }
        Ok(link)
    }

    /// Drops what others send, before the device hears it.
    fn close(
        &self,
        host: &Netlink,
        network: &Network,
        bridge: Option<&Link>,
        carried: &[Peer],
    ) -> Result<()> {
        match &self.link {
            Some(link) if !self.obsolete => {
                if guard::is_closed(network, self.local)? {
                    return Ok(());
                }
                let peers = guard::known_peers(network, link, bridge)?;
                guard::close(host, network, self, &peers)
            }
            _ if carried.is_empty() => guard::close(host, network, self, &network.peers),
            _ => guard::close(host, network, self, carried),
        }
    }

    /// Whether the kernel was told of the configuration's list of peers, and of no other since.
    fn has_carried_out(&self) -> bool {
        let alias = self.link.as_ref().and_then(|link| link.alias.as_deref());
        alias == Some(&self.carried_out) && !self.obsolete
    }

    /// Fails for `peers` that cannot be on this node: one that is this node; one whose subnet
    /// holds an address that the node needs to reach others.
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
            // The whole table: only before the list is carried out.
            if has(family) {
                needed.extend(self.routers(host, family)?);
            }
        }
        Ok(check_captures(peers, needed.into_iter())?)
    }

    /// The next hops of the node's default routes, and of all others by its uplink.
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

    /// Makes the kernel know the configuration's peers, unless it was told of this very list
    /// before. Returns what became of it, if anything was done.
    ///
    /// # Errors
    /// When the kernel cannot be asked. A peer that it refuses is no error of the whole.
    pub fn apply_peers(
        &self,
        host: &Netlink,
        network: &Network,
        link: &Link,
        bridge: Option<&Link>,
    ) -> Result<Option<Reconciled>> {
        if link.alias.as_deref() == Some(&self.carried_out) {
            return Ok(None);
        }
        let done = self.set_peers(host, network, link, bridge, &network.peers)?;
        // Else the next ADD tries again.
        if done.failed.is_empty() {
            host.set_alias(link.index, &self.carried_out)?;
        }
        Ok(Some(done))
    }

    /// Makes the kernel know `peers` and no others, and take packets of no others.
    ///
    /// # Errors
    /// When the kernel cannot be asked. A peer that it refuses is no error of the whole.
    pub fn set_peers(
        &self,
        host: &Netlink,
        network: &Network,
        link: &Link,
        bridge: Option<&Link>,
        peers: &[Peer],
    ) -> Result<Reconciled> {
        guard::close(host, network, self, peers)?;
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
                // Another ADD was quicker: its device is as good.
                Some(link) => Ok(link),
                None => Err(taken(host, &self.spec)?.unwrap_or(error.into())),
            },
            Err(error) => Err(error.into()),
        }
    }

    /// A device that we have just made and that cannot come up is of no use to anybody.
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

    /// Why nothing leaves by the underlay though an ADD succeeds, if so. It is for people: a
    /// runtime takes every error of STATUS for the end of its node.
    pub fn trouble(&self) -> Option<String> {
        underlay::trouble(&self.uplink)
    }

    /// CHECK: whether the device is there, as it has to be.
    ///
    /// # Errors
    /// What differs.
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
            bail!("device {name} is no port of the bridge");
        }
        Ok(())
    }
}

/// Whose entries are reconciled.
pub fn overlay(network: &Network, device: &Link, bridge: Option<&Link>) -> Overlay {
    Overlay {
        device: device.index,
        neighbours_on: bridge.map_or(device.index, |bridge| bridge.index),
        learns_peers: network.group.is_some(),
    }
}

/// Neighbours are answered for only where some are known: with suppression, the
/// announcements of pods stay on their host.
fn port(bridge: &Link, peers: &[Peer]) -> VxlanPort {
    VxlanPort {
        bridge: bridge.index,
        neigh_suppress: peers.iter().any(|it| !it.subnets.is_empty()),
    }
}

/// Whether we made `link` for `network`.
pub fn is_of(link: &Link, network: &Network) -> bool {
    owner(link) == Some(&fitting(&network.name))
}

/// The network that a device was made for, as its alias has it; `None` if we did not make it.
fn owner(link: &Link) -> Option<&str> {
    let text = link.alias.as_deref()?.strip_prefix(ALIAS)?;
    Some(text.rsplit_once('/').map_or(text, |(name, _)| name))
}

/// How the alias of a device begins.
const ALIAS: &str = "podwire-vxlan:";

fn alias(network: &str, mark: &str) -> String {
    format!("{ALIAS}{}/{mark}", fitting(network))
}

/// The alias of a device that knows the configuration's list of peers.
fn carried_out(network: &Network) -> String {
    let mark = format!("{:016x}", network.fingerprint());
    alias(&network.name, &mark)
}

/// The kernel keeps 255 bytes of an alias (IFALIASZ in linux/if.h).
fn fitting(network: &str) -> String {
    match network.len() {
        0..=200 => network.to_owned(),
        _ => names::prefixed(65, "#", network),
    }
}

/// The address of the device that is there, and the link that it is bound to, if they
/// are still the node's and what the configuration names.
fn still_good(host: &Netlink, network: &Network, found: &Vxlan) -> Result<Option<(IpAddr, Link)>> {
    let (Some(local), Some(index)) = (found.local, found.link) else {
        return Ok(None);
    };
    let Some(parent) = host.find_link_by_index(index)? else {
        return Ok(None);
    };
    let other_dev = network
        .dev
        .as_ref()
        .is_some_and(|dev| dev.as_str() != parent.name);
    let other_local = network.local.is_some_and(|ip| ip != local);
    let other_family = network
        .family
        .is_some_and(|family| family != Family::of(local));
    if other_dev || other_local || other_family {
        return Ok(None);
    }
    let addresses = host.list_addresses(index, Some(Family::of(local)))?;
    let there = addresses.iter().any(|it| it.address.ip() == local);
    Ok(there.then_some((local, parent)))
}

fn wanted(network: &Network, link: &Link, local: IpAddr, bound: bool) -> Result<VxlanSpec> {
    let room = room(link, local);
    let mtu = network.mtu.unwrap_or(room);
    if mtu > room {
        let (name, all, less) = (&link.name, link.mtu, overhead(local));
        let why = format!(
            "{mtu} is more than {room}, which is what {all} of {name} less {less} for VXLAN leaves"
        );
        return Err(fault("mtu", &why).into());
    }
    Ok(VxlanSpec {
        name: network.device(),
        vxlan: Vxlan {
            vni: network.vni,
            port: network.port,
            local: Some(local),
            link: bound.then_some(link.index),
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

/// Fails for what cannot be changed while the device is there.
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
    match pairs.iter().find(|(_, found, wanted)| found != wanted) {
        None => Ok(()),
        Some((key, found, wanted)) => {
            let (vni, device) = (network.vni, network.device());
            let why = format!(
                "{vni} is in use with other parameters: {device} has {key} {found}, not {wanted}"
            );
            Err(fault("vni", &why).into())
        }
    }
}

/// Why a device like this could not be made or come up, if so: another has the VNI on its
/// port; one that is up reads the packets of the port in another way; something else has
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
        return Ok(Some(fault("vni", &why).into()));
    }
    let mut hearing = others.iter().filter(|it| it.hears(family)).peekable();
    if hearing.peek().is_none() {
        let why = format!("{port} is in use by another program");
        return Ok(is_port_taken(family, port).then(|| fault("port", &why).into()));
    }
    let other = hearing.find(|it| it.receiving != receiving);
    Ok(other.map(|VxlanDevice { name, receiving: theirs, .. }| {
        let why = format!(
            "{port} is in use with other parameters: by {name}, which has {theirs}, not {receiving}"
        );
        fault("port", &why).into()
    }))
}

/// The device says nothing of its own to the peers, and hears no router among them.
fn quieten(mode: Mode, name: &str) {
    let key = |setting| sysctl::interface_key("ipv6", name, setting);
    let _ = sysctl::write(&key("accept_ra"), "0");
    if mode == Mode::L2 {
        // A port has no addresses.
        let _ = sysctl::write(&key("disable_ipv6"), "1");
    }
}

/// What the kernel lacks of the configuration's peers. A device that is not there yet will be
/// made with them.
///
/// # Errors
/// When the kernel cannot be asked.
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
