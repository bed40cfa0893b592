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

use crate::gob::id::{BYTES, INT, STRING, UINT};
use crate::gob::{self, Fields, Value, describe_slice, describe_struct};

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
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// `DHCP.Allocate` and the like.
    pub method: String,
    /// Repeated in the answer.
    pub sequence: u64,
}

impl Header {
    /// The header that was received.
    pub fn of(value: &Value) -> Self {
        Self {
            method: value.text("ServiceMethod"),
            sequence: value.number("Seq").unwrap_or_default(),
        }
    }
}

/// The answer to a call: a lease where the method has one.
pub type Answer = anyhow::Result<Option<AddResult>>;

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
    /// The arguments that were received.
    pub fn of(value: &Value) -> Self {
        Self {
            container_id: value.text("ContainerID"),
            netns: value.text("Netns"),
            ifname: value.text("IfName"),
            args: value.text("Args"),
            path: value.text("Path"),
            stdin: value.bytes("StdinData").to_vec(),
        }
    }
}

/// The types of our streams. The client uses the first two, the daemon the others.
mod id {
    use crate::gob::id::FREE;

    pub const REQUEST: i64 = FREE;
    pub const ARGUMENTS: i64 = FREE + 1;
    pub const RESPONSE: i64 = FREE;
    pub const NOTHING: i64 = FREE + 1;
    pub const RESULT: i64 = FREE + 2;
    pub const IP_CONFIGS: i64 = FREE + 3;
    pub const IP_CONFIG: i64 = FREE + 4;
    pub const IP_NET: i64 = FREE + 5;
    pub const ROUTES: i64 = FREE + 6;
    pub const ROUTE: i64 = FREE + 7;
    pub const DNS: i64 = FREE + 8;
    pub const TEXTS: i64 = FREE + 9;
}

/// Describes the types of the daemon's stream. The result is that of [`ALLOCATE`], without
/// `CNIVersion`: each client sets the version of its own library.
pub fn describe_answers(out: &mut Vec<u8>) {
    let response = [("ServiceMethod", STRING), ("Seq", UINT), ("Error", STRING)];
    describe_struct(out, id::RESPONSE, "Response", &response);
    describe_struct(out, id::NOTHING, "", &[]);
    let result = [
        ("IPs", id::IP_CONFIGS),
        ("Routes", id::ROUTES),
        ("DNS", id::DNS),
    ];
    describe_struct(out, id::RESULT, "Result", &result);
    describe_slice(out, id::IP_CONFIGS, "[]*IPConfig", id::IP_CONFIG);
    let ip_config = [("Address", id::IP_NET), ("Gateway", BYTES)];
    describe_struct(out, id::IP_CONFIG, "IPConfig", &ip_config);
    let ip_net = [("IP", BYTES), ("Mask", BYTES)];
    describe_struct(out, id::IP_NET, "IPNet", &ip_net);
    describe_slice(out, id::ROUTES, "[]*Route", id::ROUTE);
    let route = [
        ("Dst", id::IP_NET),
        ("GW", BYTES),
        ("MTU", INT),
        ("Priority", INT),
        ("Scope", INT),
    ];
    describe_struct(out, id::ROUTE, "Route", &route);
    let dns = [
        ("Nameservers", id::TEXTS),
        ("Domain", STRING),
        ("Search", id::TEXTS),
    ];
    describe_struct(out, id::DNS, "DNS", &dns);
    describe_slice(out, id::TEXTS, "[]string", STRING);
}

/// A call as the client's whole stream: it makes only one.
pub fn write_call(method: &str, arguments: &Arguments) -> Vec<u8> {
    let mut out = Vec::new();
    let request = [("ServiceMethod", STRING), ("Seq", UINT)];
    describe_struct(&mut out, id::REQUEST, "Request", &request);
    gob::write(&mut out, id::REQUEST, |request| {
        request.bytes(0, method);
    });
    let fields = [
        ("ContainerID", STRING),
        ("Netns", STRING),
        ("IfName", STRING),
        ("Args", STRING),
        ("Path", STRING),
        ("StdinData", BYTES),
    ];
    describe_struct(&mut out, id::ARGUMENTS, "CmdArgs", &fields);
    gob::write(&mut out, id::ARGUMENTS, |fields| {
        fields
            .bytes(0, &arguments.container_id)
            .bytes(1, &arguments.netns)
            .bytes(2, &arguments.ifname)
            .bytes(3, &arguments.args)
            .bytes(4, &arguments.path)
            .bytes(5, &arguments.stdin);
    });
    out
}

/// Appends the answer to a call: the header, then the result, or after an error nothing.
pub fn write_answer(out: &mut Vec<u8>, header: &Header, answer: &Answer) {
    let error = answer.as_ref().err();
    let error = error.map_or_else(String::new, |error| format!("{error:#}"));
    gob::write(out, id::RESPONSE, |response| {
        response
            .bytes(0, &header.method)
            .uint(1, header.sequence)
            .bytes(2, error);
    });
    match answer {
        Ok(Some(result)) => gob::write(out, id::RESULT, |fields| write_result(fields, result)),
        // After an error Go's client reads a body, too, and drops it.
        Ok(None) | Err(_) => gob::write(out, id::NOTHING, |_| {}),
    }
}

fn write_result(fields: &mut Fields<'_>, result: &AddResult) {
    fields.structures(0, &result.ips, |fields, ip| {
        fields
            .structure(0, |fields| write_net(fields, ip.address))
            .bytes(1, octets(ip.gateway));
    });
    fields.structures(1, &result.routes, |fields, route| {
        fields
            .structure(0, |fields| write_net(fields, route.dst))
            .bytes(1, octets(route.gw))
            .int(2, route.mtu.into())
            .int(3, route.priority.into())
            .int(4, route.scope.unwrap_or_default().into());
    });
    let dns = &result.dns;
    fields.structure(2, |fields| {
        fields
            .texts(0, &dns.nameservers)
            .bytes(1, &dns.domain)
            .texts(2, &dns.search);
    });
}

fn write_net(fields: &mut Fields<'_>, net: Cidr) {
    fields
        .bytes(0, octets(Some(net.ip())))
        .bytes(1, octets(Some(net.0.mask())));
}

fn octets(ip: Option<IpAddr>) -> Vec<u8> {
    match ip {
        Some(IpAddr::V4(ip)) => ip.octets().to_vec(),
        Some(IpAddr::V6(ip)) => ip.octets().to_vec(),
        None => Vec::new(),
    }
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
        domain: dns.text("Domain"),
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

fn texts_of(values: &[Value]) -> Vec<String> {
    let text = |value: &Value| match value {
        Value::Bytes(text) => Some(String::from_utf8_lossy(text).into_owned()),
        _ => None,
    };
    values.iter().filter_map(text).collect()
}

/// A `net.IP` has 4 or 16 bytes; an IPv4 address can have either.
fn ip_of(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(short) = <[u8; 4]>::try_from(bytes) {
        return Some(short.into());
    }
    let long = <[u8; 16]>::try_from(bytes).ok()?;
    Some(IpAddr::from(long).to_canonical())
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
    use crate::gob::Decoder;
    use cni::json::Json;

    fn result() -> AddResult {
        let document = br#"{"ips": [{"address": "10.0.0.5/24", "gateway": "10.0.0.1"}],
            "routes": [{"dst": "0.0.0.0/0", "gw": "10.0.0.1", "mtu": 1400}, {"dst": "fd00::/64", "scope": 253}],
            "dns": {"nameservers": ["10.0.0.53"], "domain": "x", "search": ["example.org", "y"]}}"#;
        Json::parse(document).unwrap().decode().unwrap()
    }

    /// The daemon's stream with a result, an error and the result again.
    fn answers() -> Vec<u8> {
        let mut out = Vec::new();
        describe_answers(&mut out);
        let busy = Err(anyhow::anyhow!("busy"));
        for (sequence, answer) in [(0, Ok(Some(result()))), (1, busy), (2, Ok(Some(result())))] {
            let method = ALLOCATE.to_owned();
            write_answer(&mut out, &Header { method, sequence }, &answer);
        }
        out
    }

    /// The values of a stream that comes in pieces of `size` bytes.
    fn values(stream: &[u8], size: usize) -> Vec<Value> {
        let (mut decoder, mut input, mut values) = (Decoder::default(), Vec::new(), Vec::new());
        for piece in stream.chunks(size) {
            input.extend(piece);
            while let Ok(Some(value)) = decoder.next(&mut input) {
                values.push(value);
            }
        }
        values
    }

    #[test]
    fn what_is_written_is_read_in_any_pieces() {
        let arguments = Arguments {
            netns: "/run/netns/a".into(),
            stdin: vec![b' '; 300],
            ..Arguments::default()
        };
        let call = values(&write_call(RELEASE, &arguments), 1);
        assert_eq!(Header::of(&call[0]).method, RELEASE);
        assert_eq!(Arguments::of(&call[1]), arguments);
        let answers = values(&answers(), 3);
        assert_eq!(answers.len(), 6);
        assert_eq!(result_of(&answers[1]), result());
        assert_eq!(answers[2].text("Error"), "busy");
        assert_eq!(Header::of(&answers[4]).sequence, 2);
        assert_eq!(result_of(&answers[5]), result());
    }

    #[test]
    fn a_broken_stream_is_an_error_and_never_a_panic() {
        let stream = answers();
        for (position, flip) in
            (0..stream.len()).flat_map(|it| [(it, 0x01), (it, 0x80), (it, 0xff)])
        {
            let mut broken = stream.clone();
            broken[position] ^= flip;
            values(&broken, 4096)
                .iter()
                .for_each(|value| drop(result_of(value)));
        }
    }

    #[test]
    fn addresses_have_both_of_gos_lengths() {
        let long = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 168, 1, 5];
        let mut mask = [0xff; 16];
        mask[15] = 0;
        let fields = [("IP", long), ("Mask", mask)];
        let fields = fields.map(|(name, bytes)| (name.to_owned(), Value::Bytes(bytes.to_vec())));
        assert_eq!(
            net_of(&Value::Struct(fields.to_vec())),
            "192.168.1.5/24".parse().ok()
        );
        assert_eq!(ip_of(&[]), None);
    }
}
