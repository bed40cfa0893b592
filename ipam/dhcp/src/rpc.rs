//! The protocol of the plugin and the daemon: Go's `net/rpc` over HTTP, as the Go plugin
//! and its daemon use it, so that either can be replaced alone.
//!
//! The client sends an HTTP request, `CONNECT /_goRPC_`. After the response, each call
//! is two gob values, the header and the arguments; so is each answer. Source: Go's
//! package `net/rpc` (server.go, client.go); skel.CmdArgs and types/100 of the CNI
//! library for the names of fields.

use std::net::{IpAddr, Ipv4Addr};

use cni::result::{Dns, IpConfig, Route};
use cni::{AddResult, Cidr};
use ipnetwork::IpNetwork;

use crate::gob::{Schema, Value};

/// The client's HTTP request.
pub const CONNECT: &[u8] = b"CONNECT /_goRPC_ HTTP/1.0\n\n";
/// The server's response.
pub const CONNECTED: &[u8] = b"HTTP/1.0 200 Connected to Go RPC\n\n";

/// Acquires a lease, or returns the one that is held.
pub const ALLOCATE: &str = "DHCP.Allocate";
/// Releases a lease.
pub const RELEASE: &str = "DHCP.Release";
/// Returns the lease that is held. The Go daemon does not have this method.
pub const CHECK: &str = "DHCP.Check";
/// Releases the leases of attachments that are not valid any more. Neither this one.
pub const GC: &str = "DHCP.GC";

/// The beginning of Go's error for an unknown method.
pub const NO_METHOD: &str = "rpc: can't find method";

/// The header of a call.
pub static REQUEST: Schema = Schema::Struct(
    "Request",
    &[("ServiceMethod", Schema::String), ("Seq", Schema::Uint)],
);

/// The header of an answer.
pub static RESPONSE: Schema = Schema::Struct(
    "Response",
    &[
        ("ServiceMethod", Schema::String),
        ("Seq", Schema::Uint),
        ("Error", Schema::String),
    ],
);

/// The arguments of every call.
pub static ARGUMENTS: Schema = Schema::Struct(
    "CmdArgs",
    &[
        ("ContainerID", Schema::String),
        ("Netns", Schema::String),
        ("IfName", Schema::String),
        ("Args", Schema::String),
        ("Path", Schema::String),
        ("StdinData", Schema::Bytes),
    ],
);

/// An answer without a result.
pub static NOTHING: Schema = Schema::Struct("", &[]);

const IP_NET: Schema = Schema::Struct("IPNet", &[("IP", Schema::Bytes), ("Mask", Schema::Bytes)]);
static IP_CONFIG: Schema = Schema::Struct(
    "IPConfig",
    &[("Address", IP_NET), ("Gateway", Schema::Bytes)],
);
static ROUTE: Schema = Schema::Struct(
    "Route",
    &[
        ("Dst", IP_NET),
        ("GW", Schema::Bytes),
        ("MTU", Schema::Int),
        ("Priority", Schema::Int),
        ("Scope", Schema::Int),
    ],
);

/// The answer to [`ALLOCATE`], without `CNIVersion`: each client sets the version of its
/// own library.
pub static RESULT: Schema = Schema::Struct(
    "Result",
    &[
        ("IPs", Schema::List("[]*IPConfig", &IP_CONFIG)),
        ("Routes", Schema::List("[]*Route", &ROUTE)),
        (
            "DNS",
            Schema::Struct(
                "DNS",
                &[
                    ("Nameservers", Schema::List("[]string", &Schema::String)),
                    ("Domain", Schema::String),
                    ("Search", Schema::List("[]string", &Schema::String)),
                ],
            ),
        ),
    ],
);

/// The header of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// `DHCP.Allocate` and the like.
    pub method: String,
    /// Repeated in the answer.
    pub sequence: u64,
}

impl Header {
    /// The header as it is sent.
    pub fn to_value(&self) -> Value {
        response(self, "")
    }

    /// The header that was received.
    pub fn of(value: &Value) -> Self {
        Self {
            method: value.text("ServiceMethod").to_owned(),
            sequence: value.number("Seq").unwrap_or_default(),
        }
    }
}

/// The header of an answer; a refused call has an error instead of a body.
pub fn response(header: &Header, error: &str) -> Value {
    structure([
        ("ServiceMethod", text(&header.method)),
        ("Seq", Value::Uint(header.sequence)),
        ("Error", text(error)),
    ])
}

/// The arguments of a call: those that the runtime passed to the plugin.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Arguments {
    /// `CNI_CONTAINERID`
    pub container_id: String,
    /// `CNI_NETNS`, absolute.
    pub netns: String,
    /// `CNI_IFNAME`
    pub ifname: String,
    /// `CNI_ARGS`
    pub args: String,
    /// `CNI_PATH`
    pub path: String,
    /// Standard input.
    pub stdin: Vec<u8>,
}

impl Arguments {
    /// The arguments as they are sent.
    pub fn to_value(&self) -> Value {
        structure([
            ("ContainerID", text(&self.container_id)),
            ("Netns", text(&self.netns)),
            ("IfName", text(&self.ifname)),
            ("Args", text(&self.args)),
            ("Path", text(&self.path)),
            ("StdinData", Value::Bytes(self.stdin.clone())),
        ])
    }

    /// The arguments that were received.
    pub fn of(value: &Value) -> Self {
        let text = |name| value.text(name).to_owned();
        Self {
            container_id: text("ContainerID"),
            netns: text("Netns"),
            ifname: text("IfName"),
            args: text("Args"),
            path: text("Path"),
            stdin: value.bytes("StdinData").to_vec(),
        }
    }
}

/// A result in the form of [`RESULT`].
pub fn result_value(result: &AddResult) -> Value {
    let ips = result.ips.iter().map(|ip| {
        structure([
            ("Address", net_value(ip.address)),
            ("Gateway", ip_value(ip.gateway)),
        ])
    });
    let routes = result.routes.iter().map(|route| {
        let number = |number: u32| Value::Int(number.into());
        structure([
            ("Dst", net_value(route.dst)),
            ("GW", ip_value(route.gw)),
            ("MTU", number(route.mtu)),
            ("Priority", number(route.priority)),
            ("Scope", number(route.scope.unwrap_or_default().into())),
        ])
    });
    let dns = &result.dns;
    structure([
        ("IPs", Value::List(ips.collect())),
        ("Routes", Value::List(routes.collect())),
        (
            "DNS",
            structure([
                ("Nameservers", texts(&dns.nameservers)),
                ("Domain", text(&dns.domain)),
                ("Search", texts(&dns.search)),
            ]),
        ),
    ])
}

/// The result that was received, without values that are not addresses.
pub fn result_of(value: &Value) -> AddResult {
    let ips = value.list("IPs").iter().filter_map(|ip| {
        Some(IpConfig {
            interface: None,
            address: net_of(ip.field("Address")?)?,
            gateway: ip_of(ip.bytes("Gateway")),
        })
    });
    let routes = value.list("Routes").iter().filter_map(|route| {
        let number = |name| route.number(name).and_then(|number| number.try_into().ok());
        Some(Route {
            dst: net_of(route.field("Dst")?)?,
            gw: ip_of(route.bytes("GW")),
            mtu: number("MTU").unwrap_or_default(),
            advmss: number("AdvMSS").unwrap_or_default(),
            priority: number("Priority").unwrap_or_default(),
            table: number("Table"),
            scope: number("Scope").and_then(|scope: u32| scope.try_into().ok()),
        })
    });
    let dns = value.field("DNS").map(|dns| Dns {
        nameservers: texts_of(dns.list("Nameservers")),
        domain: dns.text("Domain").to_owned(),
        search: texts_of(dns.list("Search")),
        options: texts_of(dns.list("Options")),
    });
    AddResult {
        interfaces: Vec::new(),
        ips: ips.collect(),
        routes: routes.collect(),
        dns: dns.unwrap_or_default(),
    }
}

fn structure<const N: usize>(fields: [(&str, Value); N]) -> Value {
    let present = fields.into_iter().filter(|(_, value)| !value.is_zero());
    let owned = present.map(|(name, value)| (name.to_owned(), value));
    Value::Struct(owned.collect())
}

fn text(text: &str) -> Value {
    Value::String(text.to_owned())
}

fn texts(texts: &[String]) -> Value {
    Value::List(texts.iter().cloned().map(Value::String).collect())
}

fn texts_of(values: &[Value]) -> Vec<String> {
    let text = |value: &Value| match value {
        Value::String(text) => Some(text.clone()),
        _ => None,
    };
    values.iter().filter_map(text).collect()
}

fn ip_value(ip: Option<IpAddr>) -> Value {
    Value::Bytes(match ip {
        Some(IpAddr::V4(ip)) => ip.octets().to_vec(),
        Some(IpAddr::V6(ip)) => ip.octets().to_vec(),
        None => Vec::new(),
    })
}

/// A `net.IP` has 4 or 16 bytes; an IPv4 address can have either.
fn ip_of(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(short) = <[u8; 4]>::try_from(bytes) {
        return Some(short.into());
    }
    let long = <[u8; 16]>::try_from(bytes).ok()?;
    Some(IpAddr::from(long).to_canonical())
}

fn net_value(net: Cidr) -> Value {
    structure([
        ("IP", ip_value(Some(net.ip()))),
        ("Mask", ip_value(Some(net.0.mask()))),
    ])
}

fn net_of(value: &Value) -> Option<Cidr> {
    let ip = ip_of(value.bytes("IP"))?;
    let mask = value.bytes("Mask");
    // So can the mask of an IPv4 network.
    let mask = match (ip, mask.len()) {
        (IpAddr::V4(_), 16) => &mask[12..],
        _ => mask,
    };
    let prefix = match ip {
        IpAddr::V4(_) => {
            let mask = Ipv4Addr::from(<[u8; 4]>::try_from(mask).ok()?);
            ipnetwork::ipv4_mask_to_prefix(mask).ok()?
        }
        IpAddr::V6(_) => {
            let mask = <[u8; 16]>::try_from(mask).ok()?;
            ipnetwork::ipv6_mask_to_prefix(mask.into()).ok()?
        }
    };
    IpNetwork::new(ip, prefix).ok().map(Cidr)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_both_of_gos_lengths() {
        let long = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 168, 1, 5];
        assert_eq!(ip_of(&long), "192.168.1.5".parse().ok());
        let mut mask = [0xff; 16];
        mask[15] = 0;
        let value = structure([
            ("IP", Value::Bytes(long.to_vec())),
            ("Mask", Value::Bytes(mask.to_vec())),
        ]);
        assert_eq!(net_of(&value), "192.168.1.5/24".parse().ok());
        assert_eq!(ip_of(&[]), None);
    }
}
