//! Linux bridges and their ports.

use std::{path::Path, thread, time::Duration};

use anyhow::bail;
use rtnetlink::{
    packet_core::{NLM_F_CREATE, NLM_F_EXCL},
    packet_route::{
        RouteNetlinkMessage,
        link::{
            InfoBridge, InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind,
            LinkAttribute, LinkFlags, LinkInfo, LinkMessage, State,
        },
    },
};

use crate::{Error, Link, Mac, Netlink, OperState, link::link_message, sysctl};

/// The bridge that pods are to share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BridgeSpec {
    /// Its name, at most 15 bytes.
    pub name: String,
    /// The largest packet in bytes, applied only when the bridge is created;
    /// `None` for the kernel's 1500.
    pub mtu: Option<u32>,
    /// Whether it has to tell VLANs apart. An existing bridge is converted if it
    /// does not; `false` leaves one that does alone.
    pub vlan_filtering: bool,
    /// Whether promiscuous mode is switched on; it is never switched off.
    pub promisc: bool,
}

/// How a host veth shall be as a port of a bridge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortSpec {
    /// The index of the bridge.
    pub bridge: u32,
    /// Frames may leave through the port they came in by.
    pub hairpin: bool,
    /// It talks to no other isolated port.
    pub isolated: bool,
    /// Whether to bring it up; later, with [`Netlink::set_up`], if VLANs have to
    /// be in place first.
    pub up: bool,
    /// A text by which the device can be recognised, at most 255 bytes.
    pub alias: Option<String>,
}

/// Pauses before each look at a port that is not up yet. Kernels since 6.9 report the
/// state as it is and need none; older ones report it when a work queue has run.
const PORT_PAUSES: [u64; 10] = [0, 1, 2, 4, 8, 16, 32, 64, 500, 2000];

impl Netlink {
    /// Makes sure that there is such a bridge, up, and returns it:
    /// `ip link add NAME type bridge; ip link set NAME up; ip link set NAME address MAC`.
    ///
    /// Its hardware address is pinned: a bridge that was never given one takes
    /// that of the lowest port, and changes it as pods come and go, while the
    /// pods remember the old one as their gateway's. IPv6 router advertisements
    /// are not accepted on it, as pods could send them.
    ///
    /// Settings under /proc/sys are made in the calling thread's namespace: it
    /// must be the one that this socket is of.
    ///
    /// # Errors
    /// `"x" already exists but is not a bridge`; `could not add "x": …` with the
    /// kernel's reason.
    pub fn ensure_bridge(&self, spec: &BridgeSpec) -> anyhow::Result<Link> {
        let name = &spec.name;
        let found = match self.find_link(name)? {
            Some(link) => link,
            None => self.create_bridge(spec)?,
        };
        if !found.is_kind("bridge") {
            bail!("{name:?} already exists but is not a bridge");
        }
        // Before it is up, so that no advertisement is heard. Without IPv6 there
        // is no such setting, and no need for it.
        if found.accept_ra.is_some_and(|heeded| heeded != 0) {
            let accept_ra = sysctl::interface_key("ipv6", name, "accept_ra");
            let _ = sysctl::write(&accept_ra, "0");
        }

        let convert = spec.vlan_filtering && found.vlan_filtering != Some(true);
        if convert {
            self.set_vlan_filtering(found.index, true)?;
        }
        let start = !found.up || (spec.promisc && !found.promisc);
        if start {
            self.start_bridge(found.index, spec)?;
        }
        // After it is up: a bridge that is given an address loses its carrier
        // until it has a port, and without one it gets no link-local address.
        // Before it has a port of ours: so far it still has the address it was
        // born with.
        // Where nobody can tell whether it is pinned (/sys is another namespace's), it
        // is not done again for each pod: the kernel takes it for a change, and forgets
        // the bridge's neighbours. It has none as long as no port runs.
        let pin = match found.pinned() {
            Some(pinned) => !pinned,
            None => !found.up || found.operstate != OperState::Up,
        };
        if pin {
            self.pin_mac(&found);
        }
        if pin || convert || start {
            return Ok(self.get_link(name)?);
        }
        Ok(found)
    }

    fn create_bridge(&self, spec: &BridgeSpec) -> anyhow::Result<Link> {
        let name = &spec.name;
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.into()));
        message.attributes.extend(spec.mtu.map(LinkAttribute::Mtu));
        message
            .attributes
            .push(bridge_info(spec.vlan_filtering.then_some(true)));
        let request = RouteNetlinkMessage::NewLink(message);
        let created = self.change(request, NLM_F_CREATE | NLM_F_EXCL, || {
            format!("add bridge {name}")
        });
        match created {
            Ok(()) => {
                // Nobody else can have the address of a bridge that is a moment old,
                // and while detection runs, the host cannot ask for its pods'.
                let accept_dad = sysctl::interface_key("ipv6", name, "accept_dad");
                let _ = sysctl::write(&accept_dad, "0");
                Ok(self.get_link(name)?)
            }
            // Another ADD was quicker: its bridge is as good.
            Err(error) if error.is_exists() => Ok(self.get_link(name)?),
            Err(error) => Err(error.reword(format!("could not add {name:?}")).into()),
        }
    }

    /// Keeps the address that the bridge has from now on; gives it one if it
    /// has none, as after its last port left. That it cannot be kept is no
    /// reason to fail an ADD.
    fn pin_mac(&self, bridge: &Link) {
        let fresh = || Mac::random().ok();
        let mac = bridge.mac.filter(|mac| !mac.is_zero()).or_else(fresh);
        let Some(mac) = mac else { return };
        if let Err(error) = self.set_mac(bridge.index, mac) {
            cni::log(format_args!(
                "pin the address of bridge {}: {error}",
                bridge.name
            ));
        }
    }

    fn start_bridge(&self, index: u32, spec: &BridgeSpec) -> Result<(), Error> {
        let mut flags = LinkFlags::Up;
        flags.set(LinkFlags::Promisc, spec.promisc);
        let mut message = link_message(index);
        message.header.flags = flags;
        message.header.change_mask = flags;
        // A bridge is born with a carrier, so its first port changes nothing and
        // the kernel would go on calling its state unknown.
        let up = LinkAttribute::OperState(State::Up);
        message.attributes.push(up);
        self.set_link(message, || format!("set bridge {} up", spec.name))
    }

    /// Switches whether a bridge tells VLANs apart:
    /// `ip link set NAME type bridge vlan_filtering 1`.
    ///
    /// # Errors
    /// `EOPNOTSUPP` when the kernel was built without it.
    pub fn set_vlan_filtering(&self, bridge: u32, on: bool) -> Result<(), Error> {
        let mut message = link_message(bridge);
        message.attributes.push(bridge_info(Some(on)));
        // A change of type-specific data is a NEWLINK of what is there already.
        self.change(RouteNetlinkMessage::NewLink(message), 0, || {
            format!("set bridge {bridge} vlan_filtering {on}")
        })
    }

    /// Makes `link` a port of a bridge: `ip link set LINK master BRIDGE`, then
    /// `ip link set LINK alias … up type bridge_slave hairpin … isolated …`.
    /// The first is saved when the link was made a port at birth.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn attach_port(&self, link: &Link, spec: &PortSpec) -> Result<(), Error> {
        // The port's own settings exist only after it is one: the kernel looks
        // for the bridge before it carries out the rest of a request.
        if link.master != Some(spec.bridge) {
            self.set_master(link.index, spec.bridge)?;
        }
        let mut message = link_message(link.index);
        if spec.up {
            message.header.flags = LinkFlags::Up;
            message.header.change_mask = LinkFlags::Up;
        }
        let alias = spec.alias.clone().map(LinkAttribute::IfAlias);
        message.attributes.extend(alias);
        message
            .attributes
            .push(port_info(spec.hairpin, spec.isolated));
        self.change(RouteNetlinkMessage::NewLink(message), 0, || {
            format!(
                "set up port {} of bridge {}",
                link.name,
                self.told(spec.bridge)
            )
        })
    }

    /// Waits until the bridge forwards for a port: its operational state is up.
    /// Returns the port as it is then.
    ///
    /// # Errors
    /// `bridge port in error state: down` after two and a half seconds.
    pub fn wait_for_port(&self, index: u32) -> anyhow::Result<Link> {
        let mut state = OperState::NotPresent;
        for pause in PORT_PAUSES {
            if pause > 0 {
                thread::sleep(Duration::from_millis(pause));
            }
            let Some(port) = self.find_link_by_index(index)? else {
                break;
            };
            if port.operstate == OperState::Up {
                return Ok(port);
            }
            state = port.operstate;
        }
        bail!("bridge port in error state: {state}")
    }
}

impl Link {
    /// Whether the hardware address was set by somebody, so that it stays:
    /// `NET_ADDR_SET` (linux/netdevice.h). Netlink does not tell; `None` where
    /// /sys does not either, or is that of another namespace.
    pub fn pinned(&self) -> Option<bool> {
        let class = Path::new("/sys/class/net").join(&self.name);
        let read = |file| sysctl::read_value(&class.join(file)).ok();
        let how = read("addr_assign_type")?;
        // A link of the same name may be in the namespace that /sys is of.
        let is_this = read("ifindex")? == self.index.to_string();
        is_this.then(|| how == "3")
    }
}

fn bridge_info(vlan_filtering: Option<bool>) -> LinkAttribute {
    let mut info = vec![LinkInfo::Kind(InfoKind::Bridge)];
    if let Some(on) = vlan_filtering {
        let data = vec![InfoBridge::VlanFiltering(on)];
        info.push(LinkInfo::Data(InfoData::Bridge(data)));
    }
    LinkAttribute::LinkInfo(info)
}

fn port_info(hairpin: bool, isolated: bool) -> LinkAttribute {
    LinkAttribute::LinkInfo(vec![
        LinkInfo::PortKind(InfoPortKind::Bridge),
        LinkInfo::PortData(InfoPortData::BridgePort(vec![
            InfoBridgePort::HairpinMode(hairpin),
            InfoBridgePort::Isolated(isolated),
        ])),
    ])
}
