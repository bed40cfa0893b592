//! Configures a pod's interface with addresses and routes, and checks that it still has them. All
//! main plugins do it this way, in this order.

use std::{
    net::IpAddr,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use cni::address::{is_single, needs_onlink};
use ipnetwork::IpNetwork;
use netns::NetNs;
use nix::{errno::Errno, net::if_::if_nametoindex};
use transport::{Route, Socket};

use crate::{
    AddressSpec, Error, Family, Link, MAIN_TABLE, Mac, Netlink, OperState, RouteFilter, RouteSpec,
    announce::with_notify,
    link::{link, up_with_alias},
    request::AddressMonitor,
    sysctl,
};

/// How long duplicate address detection may take; it needs one to two seconds.
const SETTLE: Duration = Duration::from_secs(5);
/// How long to wait for a link without a carrier, on which detection does not start.
const CARRIER: Duration = Duration::from_secs(1);

/// Pauses in milliseconds before each look at a link that was just brought up.
const CARRIER_PAUSES: [u64; 6] = [1, 2, 4, 8, 16, 32];

/// An interface in a pod, without its addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its name in the pod.
    pub name: String,
    /// Duplicate detection for its IPv6 addresses.
    pub dad: Dad,
    /// Whether the kernel announces the addresses when the link comes up or changes
    /// (`arp_notify`; for IPv6 addresses `ndisc_notify`).
    pub notify: bool,
    /// A text that identifies the interface, at most 255 bytes.
    pub alias: Option<String>,
    /// Whether to accept router advertisements; `None` leaves it to the kernel.
    pub accept_ra: Option<AcceptRa>,
}

/// The setting `accept_ra`: whether an interface gets addresses and routes from router
/// advertisements (Documentation/networking/ip-sysctl.rst).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AcceptRa {
    /// 0: no.
    Off,
    /// 1: unless the pod forwards.
    On,
    /// 2: also if the pod forwards.
    Forwarding,
}

impl AcceptRa {
    /// The value of the setting.
    pub fn value(self) -> u32 {
        match self {
            Self::Off => 0,
            Self::On => 1,
            Self::Forwarding => 2,
        }
    }
}

/// The addresses and routes that an interface in a pod gets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layer3 {
    /// Its addresses, in the order of the result.
    pub addresses: Vec<InterfaceAddress>,
    /// Its routes, in the order of the result. A route without a next hop gets the first gateway
    /// of its family, if any address has one.
    pub routes: Vec<RouteSpec>,
    /// Routes that are added first, as they are, instead of those to the networks of the
    /// addresses. `None` leaves the latter to the kernel.
    pub prefix_routes: Option<Vec<RouteSpec>>,
}

/// An address and the gateway of its network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InterfaceAddress {
    /// The address with the length of its prefix.
    pub address: IpNetwork,
    /// The gateway, if the network has one.
    pub gateway: Option<IpAddr>,
}

/// Duplicate address detection of IPv6 (RFC 4862, section 5.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dad {
    /// As the kernel is configured, usually on.
    Kernel,
    /// Off: addresses are usable at once (`accept_dad`=0, and the flag `nodad`).
    Off,
    /// On, and ignoring its own probes if a hairpin returns them (`enhanced_dad`).
    On,
}

/// A configured interface.
#[derive(Debug)]
pub struct Configured {
    /// The interface, as it was after it had been brought up.
    pub link: Link,
    pod: Netlink,
    announced: bool,
    /// IPv6 addresses that are usable, but perhaps cannot be reached yet.
    fresh: Vec<IpAddr>,
}

impl Configured {
    /// Waits until the addresses can be reached. Call it when the port on the other side forwards.
    pub fn await_addresses(&self) {
        // Without a carrier the kernel's worker does not start.
        if has_carrier(&self.link) {
            for ip in &self.fresh {
                self.pod.await_local(*ip);
            }
        }
    }

    /// Announces the addresses to the neighbours, if [`Interface::notify`] is on. Call it when the
    /// port on the other side forwards, not before.
    ///
    /// # Errors
    /// As [`Netlink::announce`]; pods work without, so a caller may only log it.
    pub fn announce(&self) -> anyhow::Result<()> {
        self.await_addresses();
        if self.announced {
            self.pod.announce(&self.link)?;
        }
        Ok(())
    }
}

/// A pod's namespace, entered for one interface: settings can be written only inside, and a socket
/// that was opened inside works from outside.
#[derive(Debug)]
pub struct Pod {
    netns: NetNs,
    interface: Interface,
    mac: Option<Mac>,
    silent: bool,
    early: bool,
    netlink: Netlink,
    index: Result<u32, Errno>,
}

/// Enters `netns` for an existing `interface`: writes its settings, and opens a socket.
///
/// # Errors
/// When the namespace cannot be entered, or a setting that is required cannot be written.
pub fn enter(netns: &NetNs, interface: Interface) -> anyhow::Result<Pod> {
    let inside = netns.enter(|| Inside::prepare(&interface))??;
    Ok(Pod {
        netns: netns.clone(),
        interface,
        mac: None,
        silent: false,
        early: false,
        netlink: Netlink::over(inside.socket),
        index: inside.index,
    })
}

impl Pod {
    /// Gives the interface this hardware address in the request that brings it up. It is down
    /// until then, so its IPv6 link-local address follows from this one.
    pub fn set_mac(&mut self, mac: Mac) {
        self.mac = Some(mac);
    }

    /// Keeps the kernel from announcing the IPv6 addresses when the interface comes up
    /// (`ndisc_notify`): the caller knows that no neighbour has another address.
    pub fn set_silent(&mut self) {
        self.silent = true;
    }

    /// Has the kernel announce the IPv4 addresses as soon as the interface is up. For a kind of link
    /// whose hardware address cannot be set, which [`Netlink::announce`] needs.
    pub fn announce_early(&mut self) {
        self.early = true;
    }

    /// Sets [`Interface::alias`] before [`Pod::configure`] does, so that GC finds the interface of a
    /// caller that is killed in between: `ip link set NAME alias TEXT`.
    ///
    /// # Errors
    /// The interface is gone; the kernel refuses.
    pub fn mark(&self) -> Result<(), Error> {
        match &self.interface.alias {
            Some(alias) => self.netlink.set_alias(self.index()?, alias),
            None => Ok(()),
        }
    }

    /// Configures the interface: settings, addresses, up, routes.
    ///
    /// # Errors
    /// `failed to add IP addr … to "eth0": …`, `failed to add route '…': …`, `link eth0 has
    /// address … in DADFAILED state`, and others.
    pub fn configure(self, layer3: &Layer3) -> anyhow::Result<Configured> {
        let index = self.index()?;
        let interface = &self.interface;
        let v6 = layer3.addresses.iter().any(|it| it.address.is_ipv6());
        let monitor = if v6 {
            self.netns
                .enter(|| prepare_ipv6(interface, layer3, self.silent))??
        } else {
            None
        };
        let configuration = Configuration {
            netlink: self.netlink,
            index,
            interface,
            mac: self.mac,
            early: self.early,
            layer3,
        };
        configuration.apply(monitor)
    }

    fn index(&self) -> Result<u32, Error> {
        match self.index {
            Ok(index) => Ok(index),
            // Its error is more precise.
            Err(_) => Ok(self.netlink.get_link(&self.interface.name)?.index),
        }
    }
}

/// The objects that were opened and read in the namespace.
#[derive(Debug)]
struct Inside {
    socket: Socket<Route>,
    /// The index of the interface.
    index: Result<u32, Errno>,
}

impl Inside {
    fn prepare(interface: &Interface) -> Result<Self, Error> {
        let name = &interface.name;
        // Also for a pod without an IPv6 address of ours: detection also checks the link-local one.
        let set = |setting, value| {
            let key = sysctl::interface_key("ipv6", name, setting);
            let _ = sysctl::write(&key, value);
        };
        if let Some(accept_ra) = interface.accept_ra {
            set_accept_ra(name, accept_ra)?;
        }
        match interface.dad {
            Dad::Kernel => {}
            Dad::Off => set("accept_dad", "0"),
            Dad::On => {
                set("enhanced_dad", "1");
                set("accept_dad", "1");
            }
        }
        Ok(Self {
            socket: Socket::open()?,
            index: if_nametoindex(name.as_str()),
        })
    }
}

/// Called before the interface is up, so that no advertisement comes earlier. A kernel without
/// IPv6 accepts none.
fn set_accept_ra(name: &str, accept_ra: AcceptRa) -> Result<(), Error> {
    if accept_ra != AcceptRa::Off {
        enable_ipv6(name)?;
    }
    let key = sysctl::interface_key("ipv6", name, "accept_ra");
    match sysctl::write_if_different(&key, &accept_ra.value().to_string()) {
        Err(error) if error.is_not_found() && accept_ra == AcceptRa::Off => Ok(()),
        other => other.map(drop),
    }
}

/// Enables IPv6. Returns what the caller needs to wait for duplicate detection, if it has to.
fn prepare_ipv6(
    interface: &Interface,
    layer3: &Layer3,
    silent: bool,
) -> anyhow::Result<Option<AddressMonitor>> {
    let name = &interface.name;
    let set = |setting| sysctl::write(&sysctl::interface_key("ipv6", name, setting), "1");
    // Optional settings do not fail an ADD where /proc/sys is read-only, as in rootless runtimes.
    match enable_ipv6("lo") {
        Err(error) if error.is_forbidden() => cni::log(format_args!("{error}")),
        other => other?,
    }
    enable_ipv6(name).context("enable IPv6")?;
    // Without this setting, a pod that sets its interface down and up loses its addresses.
    match set("keep_addr_on_down") {
        Err(error) if error.is_forbidden() => cni::log(format_args!("{error}")),
        Err(error) if error.is_not_found() => return Err(error).context(without_ipv6(name)),
        other => other?,
    }
    if interface.notify && !silent {
        let _ = set("ndisc_notify");
    }
    // Without a gateway, the pod can wait for its addresses itself.
    let mut v6 = layer3.addresses.iter().filter(|it| it.address.is_ipv6());
    let awaited = v6.any(|it| it.gateway.is_some()) && interface.dad != Dad::Off;
    // Opened before the addresses are added, so that it misses no event.
    Ok(awaited.then(AddressMonitor::open).transpose()?)
}

/// The configuration of the interface, from outside.
struct Configuration<'a> {
    netlink: Netlink,
    index: u32,
    interface: &'a Interface,
    mac: Option<Mac>,
    early: bool,
    layer3: &'a Layer3,
}

impl Configuration<'_> {
    fn apply(self, monitor: Option<AddressMonitor>) -> anyhow::Result<Configured> {
        self.add_addresses()?;
        self.bring_up()?;
        let link = self.netlink.await_carrier(self.index)?;
        if let Some(monitor) = monitor {
            self.settle(&monitor)?;
        }
        self.add_routes()?;
        Ok(Configured {
            announced: self.interface.notify && !self.layer3.addresses.is_empty(),
            fresh: self.fresh(),
            pod: self.netlink,
            link,
        })
    }

    fn fresh(&self) -> Vec<IpAddr> {
        let ips = self.layer3.addresses.iter().map(|it| it.address.ip());
        let without_dad = self.interface.dad == Dad::Off;
        ips.filter(|ip| without_dad && ip.is_ipv6()).collect()
    }

    /// `ip link set NAME address MAC alias TEXT up`, one request.
    fn bring_up(&self) -> Result<(), Error> {
        let (netlink, index) = (&self.netlink, self.index);
        let up = || {
            let up = up_with_alias(index, self.interface.alias.as_deref());
            match self.mac {
                Some(mac) => up.address(mac.0.to_vec()),
                None => up,
            }
        };
        let op = || format!("set {} up", netlink.name_of(index));
        if self.early {
            // Optional, too.
            let _ = netlink.set_link(with_notify(link(index)), op);
        }
        // The announcement is optional: a link without IPv4 has no such setting.
        if self.interface.notify && netlink.set_link(with_notify(up()), op).is_ok() {
            return Ok(());
        }
        netlink.set_link(up(), op)
    }

    fn add_addresses(&self) -> Result<(), Error> {
        for it in &self.layer3.addresses {
            let spec = AddressSpec {
                nodad: self.interface.dad == Dad::Off && it.address.is_ipv6(),
                no_prefix_route: self.layer3.prefix_routes.is_some(),
                ..it.address.into()
            };
            self.netlink
                .add_address(self.index, &spec)
                .map_err(|error| {
                    let name = &self.interface.name;
                    error.reword(format!("failed to add IP addr {} to {name:?}", it.address))
                })?;
        }
        Ok(())
    }

    /// Waits until no IPv6 address of the link is tentative.
    fn settle(&self, monitor: &AddressMonitor) -> anyhow::Result<()> {
        let name = &self.interface.name;
        let start = Instant::now();
        loop {
            let addresses = self.netlink.list_addresses(self.index, Some(Family::V6))?;
            if let Some(failed) = addresses.iter().find(|it| it.dad_failed) {
                let ip = failed.address.ip();
                bail!("link {name} has address {ip} in DADFAILED state");
            }
            if !addresses.iter().any(|it| it.tentative) {
                return Ok(());
            }
            let waited = start.elapsed();
            if waited >= CARRIER && !has_carrier(&self.netlink.get_link_by_index(self.index)?) {
                return Ok(());
            }
            if waited >= SETTLE {
                let limit = SETTLE.as_secs();
                bail!("link {name} still has tentative addresses after {limit} seconds");
            }
            // An event ends the pause; it is short in case one was missed.
            monitor.wait(Instant::now() + Duration::from_millis(500));
        }
    }

    fn add_routes(&self) -> Result<(), Error> {
        for route in self.layer3.prefix_routes.iter().flatten() {
            self.add_route(route)?;
        }
        let mut added: Vec<RouteSpec> = Vec::new();
        for route in &self.layer3.routes {
            let route = self.with_gateway(route);
            // The result may have it twice: listed so by IPAM, or as a default route that gets its
            // gateway here, and the plugin's own one.
            if added.iter().any(|other| is_same(other, &route)) {
                continue;
            }
            self.add_route(&route)?;
            added.push(route);
        }
        Ok(())
    }

    fn add_route(&self, route: &RouteSpec) -> Result<(), Error> {
        let added = self.netlink.add_route(self.index, route);
        added.map_err(|error| error.reword(self.add_route_failed(route)))
    }

    fn with_gateway(&self, route: &RouteSpec) -> RouteSpec {
        let gateways = self.layer3.addresses.iter().filter_map(|it| it.gateway);
        let gw = route.gw.or_else(|| first_of_family(gateways, route.dst));
        RouteSpec {
            gw,
            onlink: gw.is_some_and(|gw| self.needs_onlink(gw)),
            ..route.clone()
        }
    }

    /// Whether `gw` is the gateway of an address that the kernel does not reach by the prefixes.
    fn needs_onlink(&self, gw: IpAddr) -> bool {
        let addresses = &self.layer3.addresses;
        let has_own_routes = self.layer3.prefix_routes.is_some();
        !has_own_routes
            && addresses.iter().any(|it| it.gateway == Some(gw))
            && needs_onlink(gw, addresses.iter().map(|it| it.address))
    }

    /// The text of the Go plugins.
    fn add_route_failed(&self, route: &RouteSpec) -> String {
        let gw = go_address(route.gw);
        format!(
            "failed to add route '{} via {gw} dev {} metric {} (Scope: {}, Table: {})'",
            go_network(route.dst),
            self.interface.name,
            route.priority.unwrap_or_default(),
            go_scope(route.scope.unwrap_or_default()),
            route.table.unwrap_or_default(),
        )
    }
}

/// Kernels before 6.9 take up to a second to determine the state of a link that was created with a
/// carrier (a macvlan), and treat it as up until then (`netif_oper_up`, linux/netdevice.h).
pub(crate) fn has_carrier(link: &Link) -> bool {
    matches!(link.operstate, OperState::Up | OperState::Unknown)
}

/// Switches IPv6 on for an interface if it is off.
fn enable_ipv6(name: &str) -> Result<(), Error> {
    let key = sysctl::interface_key("ipv6", name, "disable_ipv6");
    match sysctl::read(&key) {
        // Without IPv6, the next setting says so.
        Err(error) if error.is_not_found() => {}
        Err(error) => cni::log(format_args!("{error}")),
        Ok(value) if value == "1" => sysctl::write(&key, "0")?,
        Ok(_) => {}
    }
    Ok(())
}

/// Why an interface has no IPv6 settings (addrconf_notify and ipv6_add_dev in
/// net/ipv6/addrconf.c).
fn without_ipv6(name: &str) -> String {
    match sysctl::read("net/ipv6/conf/all/disable_ipv6") {
        Err(_) => "the kernel has no IPv6 (ipv6.disable=1)".to_owned(),
        Ok(_) => format!("{name} has no IPv6: its MTU is below 1280"),
    }
}

fn first_of_family(mut gateways: impl Iterator<Item = IpAddr>, dst: IpNetwork) -> Option<IpAddr> {
    gateways.find(|gateway| gateway.is_ipv4() == dst.is_ipv4())
}

/// Whether two routes of one link are the same for the kernel.
fn is_same(one: &RouteSpec, other: &RouteSpec) -> bool {
    one.dst == other.dst
        && one.gw == other.gw
        && one.priority.unwrap_or_default() == other.priority.unwrap_or_default()
        && one.table() == other.table()
}

/// `10.0.0.1` or `<nil>`, as Go prints an address.
fn go_address(ip: Option<IpAddr>) -> String {
    ip.map_or_else(|| "<nil>".into(), |ip| ip.to_string())
}

/// `{10.0.0.0 ff000000}`, as Go prints a network.
fn go_network(network: IpNetwork) -> String {
    let mask = match network.mask() {
        IpAddr::V4(mask) => format!("{:08x}", mask.to_bits()),
        IpAddr::V6(mask) => format!("{:032x}", mask.to_bits()),
    };
    format!("{{{} {mask}}}", network.ip())
}

fn go_scope(scope: u8) -> &'static str {
    match scope {
        0 => "universe",
        200 => "site",
        253 => "link",
        254 => "host",
        255 => "nowhere",
        _ => "unknown",
    }
}

impl Netlink {
    /// Waits a moment until the link is operational, if its other side is, and returns it. A pod
    /// that finds its interface down, or without a link-local address, may fail, and the kernel
    /// drops what a link sends before. Kernels since 6.9 report the current state at the first
    /// look.
    ///
    /// # Errors
    /// The link is gone; the kernel cannot be queried.
    pub fn await_carrier(&self, index: u32) -> Result<Link, Error> {
        let mut link = self.get_link_by_index(index)?;
        for pause in CARRIER_PAUSES {
            if has_carrier(&link) {
                break;
            }
            thread::sleep(Duration::from_millis(pause));
            link = self.get_link_by_index(index)?;
        }
        Ok(link)
    }

    fn get_link_by_index(&self, index: u32) -> Result<Link, Error> {
        let link = self.find_link_by_index(index)?;
        link.ok_or_else(|| Error::new(format!("get link {index}"), Errno::ENODEV))
    }

    /// Checks that the interface called `name` still has `addresses`, each with the route to its
    /// network.
    ///
    /// # Errors
    /// `Failed to match addr 10.1.2.3/24 on interface eth0`, `Failed to find
    /// Gateway 10.1.2.1 for interface eth0`; when the interface is gone.
    pub fn check_addresses(
        &self,
        name: &str,
        addresses: &[InterfaceAddress],
    ) -> anyhow::Result<()> {
        let link = self.get_link(name)?;
        let present = self.list_addresses(link.index, None)?;
        for expected in addresses {
            let address = expected.address;
            if !present.iter().any(|it| it.address == address) {
                bail!("Failed to match addr {address} on interface {name}");
            }
            // The address of a single host comes without a route to its network.
            if !is_single(address) && !self.has_network_route(address)? {
                let gateway = go_address(expected.gateway);
                bail!("Failed to find Gateway {gateway} for interface {name}");
            }
        }
        Ok(())
    }

    /// The route may be on any link, as ptp routes the network through another one, and in any
    /// table, as the link may be in a VRF and sbr moves routes.
    fn has_network_route(&self, address: IpNetwork) -> Result<bool, Error> {
        let routes = self.list_routes(RouteFilter {
            table: None,
            ..RouteFilter::main(Family::of(address.ip()))
        })?;
        Ok(routes.iter().any(|route| {
            route.dst.ip() == address.network() && route.dst.prefix() == address.prefix()
        }))
    }

    /// Checks that `routes` still exist, by destination and next hop: each in its table, or, if it
    /// names none, in any: a chained plugin (vrf, sbr) may have moved it. The next hop of a default
    /// route is not compared: it may have been added by [`Pod::configure`].
    ///
    /// # Errors
    /// `Expected Route 10.0.0.0/8 via 10.1.2.1 not found in routing table`.
    pub fn check_routes(&self, routes: &[RouteSpec]) -> anyhow::Result<()> {
        for expected in routes {
            let present = self.list_routes(RouteFilter {
                family: Family::of(expected.dst.ip()),
                oif: None,
                table: expected.table,
            })?;
            let found = present.iter().any(|route| {
                route.dst == expected.dst
                    && (expected.is_default() || expected.gw.is_none() || route.gw == expected.gw)
            });
            if !found {
                let route = describe(expected);
                bail!("Expected Route {route} not found in routing table");
            }
        }
        Ok(())
    }
}

fn describe(route: &RouteSpec) -> String {
    let mut text = route.dst.to_string();
    if let Some(gw) = route.gw {
        text.push_str(&format!(" via {gw}"));
    }
    if route.table() != MAIN_TABLE {
        text.push_str(&format!(" table {}", route.table()));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_is_printed_as_in_go() {
        let printed = |text: &str| go_network(text.parse().unwrap());
        assert_eq!(printed("10.9.9.9/8"), "{10.9.9.9 ff000000}");
        assert_eq!(printed("0.0.0.0/0"), "{0.0.0.0 00000000}");
        assert_eq!(
            printed("fd00::/64"),
            "{fd00:: ffffffffffffffff0000000000000000}"
        );
    }

    #[test]
    fn a_route_gets_a_gateway_of_its_family() {
        let gateways: [IpAddr; 3] = [
            "fd00::1".parse().unwrap(),
            "10.0.0.1".parse().unwrap(),
            "10.0.0.2".parse().unwrap(),
        ];
        let of = |dst: &str| first_of_family(gateways.into_iter(), dst.parse().unwrap());
        assert_eq!(of("0.0.0.0/0"), Some(gateways[1]));
        assert_eq!(of("::/0"), Some(gateways[0]));
    }

    #[test]
    fn routes_that_differ_in_table_are_not_the_same() {
        let route = RouteSpec::to("0.0.0.0/0".parse().unwrap());
        let main = RouteSpec {
            table: Some(MAIN_TABLE),
            ..route.clone()
        };
        let other = RouteSpec {
            table: Some(100),
            ..route.clone()
        };
        assert!(is_same(&route, &main));
        assert!(!is_same(&route, &other));
        assert_eq!(describe(&other), "0.0.0.0/0 table 100");
    }
}
