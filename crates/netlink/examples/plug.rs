//! Plugs a network namespace into a bridge, the way a plugin does:
//!
//! ```text
//! ip netns add pod
//! cargo run -p netlink --example plug /run/netns/pod 10.1.0.2/24
//! ```
//!
//! It is also what the system calls of an ADD are counted with (`strace -f -c`).

use std::{env, path::Path};

use anyhow::Context;
use cni::Undo;
use netlink::{
    BridgeSpec, Dad, Interface, InterfaceAddress, Layer3, Mac, Netlink, PortSpec, RouteSpec,
    VethSpec,
};
use netns::NetNs;

fn main() -> anyhow::Result<()> {
    let mut args = env::args().skip(1);
    let path = args.next().context("usage: plug NETNS ADDRESS")?;
    let address = args.next().context("usage: plug NETNS ADDRESS")?.parse()?;

    let pod = NetNs::open(Path::new(&path))?;
    let host = Netlink::open()?;
    let mut undo = Undo::new();

    let bridge = host.ensure_bridge(&BridgeSpec {
        name: "example0".into(),
        mtu: None,
        vlan_filtering: false,
        promisc: false,
    })?;
    let veth = VethSpec {
        host_name: format!("veth{}", std::process::id()),
        host_mac: Mac::random()?,
        container_name: "eth0".into(),
        container_mac: Mac::random()?,
        mtu: None,
        master: Some(bridge.index),
    };
    let pair = host.add_veth(&veth, &pod, &mut undo)?;
    let port = PortSpec {
        bridge: bridge.index,
        hairpin: false,
        isolated: false,
        up: true,
        alias: Some("example".into()),
    };
    host.attach_port(&pair.host, &port)?;
    let interface = Interface {
        alias: None,
        accept_ra: None,
        name: veth.container_name,
        dad: Dad::Off,
        notify: true,
    };
    // A plugin asks IPAM while the namespace is entered.
    let entered = netlink::enter(&pod, interface)?;
    let layer3 = Layer3 {
        addresses: vec![InterfaceAddress {
            address,
            gateway: address.iter().nth(1),
        }],
        routes: vec![RouteSpec::to("0.0.0.0/0".parse()?)],
    };
    let configured = entered.configure(&layer3)?;
    host.wait_for_port(pair.host.index)?;
    configured.announce()?;
    undo.forget();
    Ok(())
}
