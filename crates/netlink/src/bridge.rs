//! Linux bridges and their ports.

use std::{net::Ipv6Addr, path::Path, thread, time::Duration};

use anyhow::bail;
use nix::errno::Errno;
use rtnetlink::{
    LinkMessageBuilder, LinkUnspec,
    packet_core::{NLM_F_CREATE, NLM_F_EXCL},
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        link::{
            AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoBridge, InfoBridgePort, InfoData,
            InfoKind, InfoPortData, InfoPortKind, LinkAttribute, State,
        },
        route::{RouteAttribute, RouteMessage, RouteType},
    },
};

use crate::{
    Error, Link, Mac, Netlink, OperState,
    creation::new_link,
    link::{link, up_with_alias},
    request::unless_absent,
    route::LOCAL_TABLE,
    sysctl,
};

/// A bridge that pods share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BridgeSpec {
    /// Its name, at most 15 bytes.
    pub name: String,
    /// The largest packet in bytes, set only when the bridge is created; `None` for the
    /// kernel's 1500.
    pub mtu: Option<u32>,
    /// Whether it has to filter by VLAN. If so, an existing bridge is converted; `false` changes
    /// nothing.
    pub vlan_filtering: bool,
    /// Whether to switch promiscuous mode on; it is never switched off.
    pub promisc: bool,
}

/// The settings of a host veth as a port of a bridge.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortSpec {
    /// The index of the bridge.
    pub bridge: u32,
    /// Frames may leave through the port they came in by.
    pub hairpin: bool,
    /// The bridge forwards nothing between it and other isolated ports.
    pub isolated: bool,
    /// Whether to bring it up. If VLANs have to be set first, call [`Netlink::set_up`] later.
    pub up: bool,
    /// A text that identifies the device, at most 255 bytes.
    pub alias: Option<String>,
}

/// Pauses in milliseconds before each look at a port that is not up yet. Kernels since 6.9
/// report the current state at once, older ones after a work queue has run.
const PORT_PAUSES: [u64; 10] = [0, 1, 2, 4, 8, 16, 32, 64, 500, 2000];

impl Netlink {
    /// Creates such a bridge unless it exists, brings it up and returns it:
    /// `ip link add NAME type bridge mcast_snooping 0; ip link set NAME up; ip link set NAME address MAC`.
    ///
    /// Its hardware address is pinned. A bridge without an address of its own takes that of
    /// its lowest port, and changes it as pods come and go, while the pods remember the old one
    /// as that of their gateway. IPv6 router advertisements are not accepted on it, as pods
    /// could send them.
    ///
    /// Settings under /proc/sys are made in the calling thread's namespace, which must be the
    /// one of this socket.
    ///
    /// # Errors
    /// `"x" already exists but is not a bridge`; `could not add "x": …` with the
    /// kernel's reason.
    pub fn ensure_bridge(&self, spec: &BridgeSpec) -> anyhow::Result<Link> {
        let found = self.find_bridge(&spec.name)?;
        self.ensure_bridge_from(found, spec, |_| ())
    }

    /// The same with the result of [`Netlink::find_bridge`], `found`. If this call creates the
    /// bridge, it passes it to `created` before it is up; not so if another program creates it at
    /// the same time.
    ///
    /// # Errors
    /// As [`Netlink::ensure_bridge`].
    pub fn ensure_bridge_from(
        &self,
        found: Option<Link>,
        spec: &BridgeSpec,
        created: impl FnOnce(&Link),
    ) -> anyhow::Result<Link> {
        let name = &spec.name;
        let found = match found {
            Some(link) => link,
            None => expect_bridge(self.create_bridge(spec, created)?)?,
        };
        // Before it is up, so that no advertisement arrives earlier. Without IPv6 the setting does
        // not exist and is not needed.
        if found.accept_ra.is_some_and(|accepted| accepted != 0) {
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
        // After it is up: a bridge whose address is set loses its carrier until it has a port,
        // and without a carrier it gets no link-local address. Before it has a port of ours, so
        // that it still has the address of its creation.
        // If it is unknown whether the address is pinned (/sys is another namespace's), it is
        // pinned only while no port runs: the kernel takes it for a change and forgets the
        // bridge's neighbours, of which there are none then.
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

    /// The bridge `name`; `None` if there is no such interface: `ip link show NAME`.
    ///
    /// # Errors
    /// `"x" already exists but is not a bridge`.
    pub fn find_bridge(&self, name: &str) -> anyhow::Result<Option<Link>> {
        self.find_link(name)?.map(expect_bridge).transpose()
    }

    fn create_bridge(
        &self,
        spec: &BridgeSpec,
        created: impl FnOnce(&Link),
    ) -> anyhow::Result<Link> {
        let name = &spec.name;
        // Without a querier, multicast goes to all ports with snooping, too. But the kernel then starts
        // a timer for every port whenever one comes or goes (`br_port_state_selection`).
        let mut settings = vec![InfoBridge::MulticastSnooping(false)];
        if spec.vlan_filtering {
            settings.push(InfoBridge::VlanFiltering(true));
        }
        let message = new_link(Some(InfoKind::Bridge), name, None, spec.mtu)
            .set_info_data(InfoData::Bridge(settings));
        let request = RouteNetlinkMessage::NewLink(message.build());
        let added = self.change(request, NLM_F_CREATE | NLM_F_EXCL, || {
            format!("add bridge {name}")
        });
        match added {
            Ok(()) => {
                // No duplicate address detection: no other host can have the addresses of a new
                // bridge, and while detection runs, the host cannot resolve those of its pods.
                let accept_dad = sysctl::interface_key("ipv6", name, "accept_dad");
                let _ = sysctl::write(&accept_dad, "0");
                let bridge = self.get_link(name)?;
                created(&bridge);
                Ok(bridge)
            }
            // A concurrent ADD has created it.
            Err(error) if error.is_exists() => Ok(self.get_link(name)?),
            Err(error) => Err(error.reword(format!("could not add {name:?}")).into()),
        }
    }

    /// Sets the present address of the bridge, so that it stays; a random one if it has none, as
    /// after its last port left. A failure does not fail an ADD.
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
        // A new bridge has a carrier, so its first port changes nothing and the kernel would
        // go on to report its state as unknown.
        let state = LinkAttribute::OperState(State::Up);
        let mut message = link(index).up().append_extra_attribute(state);
        if spec.promisc {
            message = message.promiscuous(true);
        }
        self.set_link(message, || format!("set bridge {} up", spec.name))
    }

    /// Switches whether a bridge filters by VLAN:
    /// `ip link set NAME type bridge vlan_filtering 1`.
    ///
    /// # Errors
    /// `EOPNOTSUPP` when the kernel was built without it.
    pub fn set_vlan_filtering(&self, bridge: u32, on: bool) -> Result<(), Error> {
        let message = LinkMessageBuilder::<LinkUnspec>::new_with_info_kind(InfoKind::Bridge)
            .index(bridge)
            .set_info_data(InfoData::Bridge(vec![InfoBridge::VlanFiltering(on)]))
            .build();
        // Settings of a kind of link are changed by RTM_NEWLINK.
        self.change(RouteNetlinkMessage::NewLink(message), 0, || {
            format!("set bridge {bridge} vlan_filtering {on}")
        })
    }

    /// Makes `link` a port of a bridge: `ip link set LINK master BRIDGE`, then
    /// `ip link set LINK alias … up addrgenmode none type bridge_slave hairpin … isolated …`.
    /// The first is not needed if the link was created as a port.
    ///
    /// The port gets no link-local address, if it has none yet: it would not be used, and each
    /// change of a link's state walks over the routes of all of them.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn attach_port(&self, link: &Link, spec: &PortSpec) -> Result<(), Error> {
        // In a request of its own: the kernel looks up the settings of a port before it carries
        // out the rest of a request.
        if link.master != Some(spec.bridge) {
            self.set_master(link.index, spec.bridge)?;
        }
        without_link_local_address(|ipv6| self.set_port_up(link, spec, ipv6))
    }

    /// Brings up a link that becomes a port later, and sets its alias:
    /// `ip link set LINK alias TEXT up addrgenmode none`.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn prepare_port(&self, link: &Link, alias: &str) -> Result<(), Error> {
        without_link_local_address(|ipv6| {
            let mut message = up_with_alias(link.index, Some(alias));
            if let Some(ipv6) = ipv6 {
                message = message.append_extra_attribute(ipv6);
            }
            self.set_link(message, || format!("set {} up", link.name))
        })
    }

    /// Makes a prepared link ([`Netlink::prepare_port`]) a port of a bridge:
    /// `ip link set LINK master BRIDGE`, and if wanted
    /// `ip link set LINK type bridge_slave hairpin on`.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn join_bridge(&self, link: &Link, bridge: u32, hairpin: bool) -> Result<(), Error> {
        self.set_master(link.index, bridge)?;
        if !hairpin {
            return Ok(());
        }
        let settings = vec![InfoBridgePort::HairpinMode(true)];
        self.set_port(link, bridge, self::link(link.index), settings)
    }

    fn set_port_up(
        &self,
        link: &Link,
        spec: &PortSpec,
        ipv6: Option<LinkAttribute>,
    ) -> Result<(), Error> {
        let mut message = self::link(link.index);
        if spec.up {
            message = message.up();
        }
        if let Some(alias) = &spec.alias {
            message = message.alias(alias);
        }
        if let Some(ipv6) = ipv6 {
            message = message.append_extra_attribute(ipv6);
        }
        let settings = vec![
            InfoBridgePort::HairpinMode(spec.hairpin),
            InfoBridgePort::Isolated(spec.isolated),
        ];
        self.set_port(link, spec.bridge, message, settings)
    }

    /// Lets a port exchange frames only with ports that are not isolated:
    /// `bridge link set dev PORT isolated on`.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn isolate_port(&self, port: &Link, bridge: u32) -> Result<(), Error> {
        let isolated = vec![InfoBridgePort::Isolated(true)];
        self.set_port(port, bridge, self::link(port.index), isolated)
    }

    /// Changes the settings of a port of a bridge, with what else is in `message`.
    pub(crate) fn set_port(
        &self,
        port: &Link,
        bridge: u32,
        message: LinkMessageBuilder<LinkUnspec>,
        settings: Vec<InfoBridgePort>,
    ) -> Result<(), Error> {
        let message = message
            .set_port_kind(InfoPortKind::Bridge)
            .set_port_data(InfoPortData::BridgePort(settings))
            .build();
        self.change(RouteNetlinkMessage::NewLink(message), 0, || {
            format!(
                "set up port {} of bridge {}",
                port.name,
                self.name_of(bridge)
            )
        })
    }

    /// Waits until a bridge forwards for a port: the port's operational state is up. Returns the
    /// port as it is then.
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

    /// Deletes the route to IPv6 multicast groups that each link has, if a port still has it:
    /// `ip -6 route del multicast ff00::/8 dev PORT table local`.
    ///
    /// The kernel adds it when the link gets its carrier. A port does not use it. At each change of
    /// a link the kernel walks over all routes of the node, while it holds the routing lock: 900
    /// such routes take 0.3 ms of an ADD.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn delete_multicast_route(&self, port: &Link) -> Result<(), Error> {
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet6;
        message.header.destination_prefix_length = 8;
        message.header.kind = RouteType::Multicast;
        let groups = Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0);
        message.attributes = vec![
            RouteAttribute::Destination(groups.into()),
            RouteAttribute::Oif(port.index),
            RouteAttribute::Table(LOCAL_TABLE),
        ];
        let request = RouteNetlinkMessage::DelRoute(message);
        let op = || format!("delete the multicast route of {}", port.name);
        unless_absent(self.change(request, 0, op))
    }
}

/// Calls `set` with the attribute that keeps a port from having a link-local address, and without
/// it where the kernel has no IPv6 for the link.
fn without_link_local_address(
    set: impl Fn(Option<LinkAttribute>) -> Result<(), Error>,
) -> Result<(), Error> {
    match set(Some(no_link_local_address())) {
        // IPv6 is off, or the MTU is below its minimum of 1280 bytes.
        Err(error) if error.errno() == Errno::EAFNOSUPPORT => set(None),
        done => done,
    }
}

/// `addrgenmode none`. The kernel reads it only in a request about an existing link.
fn no_link_local_address() -> LinkAttribute {
    let mode = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
    LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![mode])])
}

fn expect_bridge(link: Link) -> anyhow::Result<Link> {
    if !link.is_kind("bridge") {
        bail!("{:?} already exists but is not a bridge", link.name);
    }
    Ok(link)
}

impl Link {
    /// Whether a program has set the hardware address, so that it stays: `NET_ADDR_SET`
    /// (linux/netdevice.h). Only /sys reports it; `None` where /sys is missing, or is that of
    /// another namespace.
    pub fn pinned(&self) -> Option<bool> {
        let class = Path::new("/sys/class/net").join(&self.name);
        let read = |file| sysctl::read_value(&class.join(file)).ok();
        let how = read("addr_assign_type")?;
        // The namespace of /sys may have another link of that name.
        let is_this = read("ifindex")? == self.index.to_string();
        is_this.then(|| how == "3")
    }
}
