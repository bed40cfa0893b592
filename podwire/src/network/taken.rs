//! The addresses that a new network must not have: of other networks, and of what the node
//! reaches.

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::Result;
use cni::address::is_link_local_v6;
use ipnetwork::IpNetwork;
use netlink::{Family, Netlink, RouteFilter};
use networks::named::{Catalogue, subnets_of};

/// What has addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holder {
    /// A network in the directory of configurations.
    Network {
        /// Its name.
        name: String,
        /// Its configuration.
        file: PathBuf,
    },
    /// A route of the node.
    Route {
        /// The interface that it leads to.
        interface: String,
        /// Whether the addresses are on that link, so that the interface has one of them.
        connected: bool,
    },
    /// A name server in this file.
    NameServer(PathBuf),
}

/// Addresses that are in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taken {
    /// The addresses.
    pub network: IpNetwork,
    /// What uses them.
    pub holder: Holder,
}

impl fmt::Display for Taken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let network = self.network;
        match &self.holder {
            Holder::Network { name, file } => {
                write!(f, "{network} of network {name} ({})", file.display())
            }
            Holder::Route {
                interface,
                connected: true,
            } => {
                write!(
                    f,
                    "{network}, which is on this node's interface {interface}"
                )
            }
            Holder::Route { interface, .. } => {
                write!(
                    f,
                    "{network}, to which this node has a route through {interface}"
                )
            }
            Holder::NameServer(file) => {
                write!(f, "the name server {} in {}", network.ip(), file.display())
            }
        }
    }
}

/// Where the name servers of the node are.
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// The same where systemd-resolved is the one in [`RESOLV_CONF`].
const BEHIND_RESOLVED: &str = "/run/systemd/resolve/resolv.conf";

/// All of them: of the networks first, then of the routes, then of the name servers.
///
/// # Errors
/// The kernel cannot be queried for its routes.
pub fn taken(catalogue: &Catalogue) -> Result<Vec<Taken>> {
    let mut all = of_networks(catalogue);
    all.extend(of_routes(&Netlink::open()?)?);
    for file in [RESOLV_CONF, BEHIND_RESOLVED] {
        all.extend(of_name_servers(Path::new(file)));
    }
    Ok(all)
}

/// Addresses of a segment that the node knows as another's: its own, those of its routers and of its
/// name servers. Each with what it is.
///
/// # Errors
/// The kernel cannot be queried for them.
pub fn on_segment() -> Result<Vec<(&'static str, IpAddr)>> {
    let host = Netlink::open()?;
    let mut all = Vec::new();
    for family in [Family::V4, Family::V6] {
        let own = host.list_all_addresses(family)?.into_iter();
        all.extend(own.map(|(_, it)| ("node", it.ip())));
        let routes = host.list_routes(RouteFilter::main(family))?.into_iter();
        all.extend(routes.filter_map(|it| Some(("router", it.gw?))));
    }
    for file in [RESOLV_CONF, BEHIND_RESOLVED] {
        let servers = of_name_servers(Path::new(file)).into_iter();
        all.extend(servers.map(|it| ("nameserver", it.network.ip())));
    }
    Ok(all)
}

fn of_networks(catalogue: &Catalogue) -> Vec<Taken> {
    let mut all = Vec::new();
    for network in &catalogue.networks {
        let Some(listed) = network.listed() else {
            continue;
        };
        for subnet in subnets_of(&listed.list) {
            all.push(Taken {
                network: subnet.subnet.0,
                holder: Holder::Network {
                    name: network.name.clone(),
                    file: listed.file.clone(),
                },
            });
        }
    }
    all
}

fn of_routes(host: &Netlink) -> Result<Vec<Taken>> {
    let mut all = Vec::new();
    for family in [Family::V4, Family::V6] {
        let filter = RouteFilter {
            family,
            oif: None,
            table: None,
        };
        for route in host.list_routes(filter)? {
            let ip = route.dst.ip();
            if route.dst.prefix() == 0 || ip.is_multicast() || is_link_local_v6(ip) {
                continue;
            }
            let link = match route.oif {
                Some(index) => host.find_link_by_index(index)?,
                None => None,
            };
            all.push(Taken {
                network: route.dst,
                holder: Holder::Route {
                    interface: link.map_or_else(|| "a next hop".to_owned(), |it| it.name),
                    connected: route.gw.is_none() && route.protocol == KERNEL,
                },
            });
        }
    }
    Ok(all)
}

/// `RTPROT_KERNEL` (linux/rtnetlink.h): the kernel made the route for an address of the interface.
const KERNEL: u8 = 2;

/// None, if the file cannot be read.
fn of_name_servers(file: &Path) -> Vec<Taken> {
    let dns = host_local::resolv_conf::read(file).unwrap_or_default();
    let addresses = dns
        .nameservers
        .iter()
        .filter_map(|it| it.parse::<IpAddr>().ok());
    let remote = addresses.filter(|it| !it.is_loopback());
    let taken = remote.map(|ip| Taken {
        network: ip.into(),
        holder: Holder::NameServer(file.to_owned()),
    });
    taken.collect()
}
