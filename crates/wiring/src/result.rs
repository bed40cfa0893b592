//! Builds the result of an ADD.

use cni::env::NetnsPath;
use cni::request::Add;
use cni::result::{AddResult, Interface};
use cni::{Call, Undo, Version};
use netlink::Link;

use crate::Addressing;

/// The interfaces of a result, in the order in which they are added.
///
/// The order is part of the contract: bandwidth, portmap and firewall take the interface
/// before the pod's for its host end.
#[derive(Clone, Debug, Default)]
pub struct Interfaces {
    all: Vec<Interface>,
    pod: Option<i64>,
}

impl Interfaces {
    /// Adds an interface of the host.
    #[must_use]
    pub fn host(mut self, link: &Link) -> Self {
        self.all.push(interface(link));
        self
    }

    /// Adds the pod's interface: the one that the addresses belong to.
    #[must_use]
    pub fn pod(mut self, interface: Interface, netns: &NetnsPath) -> Self {
        self.pod = i64::try_from(self.all.len()).ok();
        self.all.push(Interface {
            sandbox: netns.as_str().to_owned(),
            ..interface
        });
        self
    }

    /// The result in the version of `call`. `dns` of the configuration replaces that of IPAM. A
    /// pod without addresses has `addressing` `None`.
    pub fn result(self, addressing: Option<Addressing>, call: &Call) -> AddResult {
        let mut result = AddResult {
            interfaces: self.all,
            ..AddResult::default()
        };
        if let Some(addressing) = addressing {
            result.ips = addressing.ips;
            result.routes = addressing.routes;
            result.dns = addressing.dns;
        }
        for ip in &mut result.ips {
            ip.interface = self.pod;
        }
        if call.net.dns.is_set() {
            result.dns = call.net.dns.to_dns();
        }
        result.for_version(call.version)
    }
}

/// The result of an attachment that is one interface, `link`, and nothing on the node.
pub fn of_pod<C>(request: &Add<C>, link: &Link, addressing: Option<Addressing>) -> AddResult {
    of_interface(request, interface(link), addressing)
}

/// The same, with the pod's interface as the result is to show it.
pub fn of_interface<C>(
    request: &Add<C>,
    interface: Interface,
    addressing: Option<Addressing>,
) -> AddResult {
    let interfaces = Interfaces::default().pod(interface, &request.netns);
    interfaces.result(addressing, &request.call)
}

/// Keeps the link of an ADD that is about to fail, because versions before 0.3.0 have no result
/// without an address. As with the Go plugins, whose test suite looks for it, the link works, and
/// stays until DEL.
pub fn leave_to_del<C>(request: &Add<C>, addressing: Option<&Addressing>, undo: &mut Undo) {
    if addressing.is_none() && request.call.version < Version::V0_3_0 {
        undo.forget();
    }
}

/// A link as a result shows it.
pub fn interface(link: &Link) -> Interface {
    Interface {
        name: link.name.clone(),
        mac: link.mac.map(|mac| mac.to_string()).unwrap_or_default(),
        mtu: link.mtu,
        ..Interface::default()
    }
}
