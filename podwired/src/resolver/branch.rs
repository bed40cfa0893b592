//! Sockets of a network at an address that no server of the node has: in a network namespace of its
//! own, which is a port of the network's bridge.
//!
//! A server that listens on all addresses of the node (dnsmasq does) has port 53 of any address that is
//! added there. The namespace has no name, so it and its link go with this process, however it ends.

use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use cni::Undo;
use netlink::{AddressSpec, Family, Mac, Netlink, PortSpec, VethSpec};
use netns::NetNs;

use super::index::Spare;
use super::sockets::Sockets;

/// Since this release of the kernel the lowest address of a subnet is one as any other; before, it was
/// for broadcasts ("ip: Treat IPv4 segment's lowest address as unicast").
const LOWEST: (u32, u32) = (5, 14);

/// The interface in the namespace.
const INSIDE: &str = "eth0";

/// A namespace behind a bridge.
#[derive(Debug)]
pub struct Branch {
    namespace: NetNs,
    /// The port of the bridge.
    port: String,
}

impl Branch {
    /// Makes the namespace, with the spare address.
    ///
    /// # Errors
    /// There is no bridge that has the gateway's address, or the kernel refuses.
    pub fn open(spare: &Spare) -> Result<Self> {
        ensure!(
            kernel_release() >= LOWEST,
            "no other address can be used before Linux 5.14"
        );
        let host = Netlink::open()?;
        let bridge = host.find_bridge(&spare.bridge)?;
        let bridge = bridge.with_context(|| format!("there is no bridge {}", spare.bridge))?;
        let addresses = host.list_addresses(bridge.index, Some(Family::V4))?;
        // With VLANs, another interface may have it.
        ensure!(
            addresses.iter().any(|it| it.address.ip() == spare.gateway),
            "{} has no address {}",
            spare.bridge,
            spare.gateway
        );
        let branch = Self {
            namespace: NetNs::unnamed()?,
            port: cni::names::prefixed(15, "names", &spare.gateway.to_string()),
        };
        // A branch that has just ended, of this process or of a killed one, may still have the name.
        host.delete_link(&branch.port)?;
        let spec = VethSpec {
            host_name: branch.port.clone(),
            host_mac: Mac::random()?,
            container_name: INSIDE.to_owned(),
            container_mac: mac(spare.address.ip()),
            mtu: Some(bridge.mtu),
            master: Some(bridge.index),
        };
        // Nothing is to be undone: the pair goes with the namespace.
        let mut undo = Undo::new();
        let pair = host.add_veth(&spec, &branch.namespace, &mut undo)?;
        undo.forget();
        let inside = Netlink::open_in(&branch.namespace)?;
        let address = AddressSpec::from(spare.address.0);
        inside.add_address(pair.container.index, &address)?;
        inside.set_up(pair.container.index)?;
        let port = PortSpec {
            bridge: bridge.index,
            up: true,
            alias: Some(format!("podwired: names at {}", spare.address.ip())),
            ..PortSpec::default()
        };
        host.attach_port(&pair.host, &port)?;
        Ok(branch)
    }

    /// Opens the sockets of an address in the namespace.
    ///
    /// # Errors
    /// Those of [`Sockets::open`].
    pub fn sockets(&self, address: IpAddr) -> Result<Sockets> {
        self.namespace.enter(|| Sockets::open(address))?
    }

    /// Whether it is still a port of the bridge, which another program may have deleted.
    pub fn is_at(&self, bridge: &str) -> bool {
        let found = Netlink::open().and_then(|host| {
            let (port, bridge) = (host.find_link(&self.port)?, host.find_link(bridge)?);
            Ok(port.zip(bridge))
        });
        found.is_ok_and(|it| it.is_some_and(|(port, bridge)| port.master == Some(bridge.index)))
    }
}

/// The same one for an address each time: pods remember it over a restart of this process.
fn mac(address: IpAddr) -> Mac {
    let mut octets = [0; 6];
    if let IpAddr::V4(address) = address {
        octets[2..].copy_from_slice(&address.octets());
    }
    Mac::local(octets)
}

/// The first two numbers of the kernel's release.
fn kernel_release() -> (u32, u32) {
    let release = nix::sys::utsname::uname().ok();
    let release = release.and_then(|it| it.release().to_str().map(str::to_owned));
    let release = release.unwrap_or_default();
    let mut numbers = release
        .split(|it: char| !it.is_ascii_digit())
        .map(|it| it.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}
