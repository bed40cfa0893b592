//! The keys of dhcp, and what is checked of them.

use cni::json::Json;
use cni::result::{Dns, Route};
use cni::{AddResult, Code, Error};
use ipnetwork::IpNetwork;
use serde::Deserialize;

use crate::lease::{Identity, Unheard};
use crate::message::option;

/// Where the daemon listens unless the configuration says otherwise.
pub const SOCKET: &str = "/run/cni/dhcp.sock";

/// What is asked for unless the configuration says otherwise: all that finds a
/// place in a result. Classless routes come before routers (RFC 3442).
const REQUESTED: [u8; 9] = [
    option::SUBNET_MASK,
    option::CLASSLESS_STATIC_ROUTE,
    option::ROUTER,
    option::STATIC_ROUTE,
    option::DOMAIN_NAME_SERVER,
    option::DOMAIN_NAME,
    option::DOMAIN_SEARCH,
    option::INTERFACE_MTU,
    option::MICROSOFT_CLASSLESS_STATIC_ROUTE,
];

/// The configuration of an attachment, as far as it matters here.
#[derive(Clone, Debug, PartialEq)]
pub struct Ipam {
    /// Where the daemon listens.
    pub socket: String,
    /// The metric of all routes, 0 for none.
    pub priority: u32,
    /// Options to send, without the client identifier unless it is configured.
    pub provided: Vec<(u8, Vec<u8>)>,
    /// Options to ask for.
    pub requested: Vec<u8>,
    /// Options that are not heard.
    pub suppressed: Vec<u8>,
    /// Returned with those of the server, in place of one to the same destination.
    pub routes: Vec<Route>,
    /// Each part that is not empty is returned in place of the server's.
    pub dns: Dns,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Keys {
    ipam: Option<IpamKeys>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct IpamKeys {
    daemon_socket_path: String,
    priority: u32,
    provide: Vec<Provide>,
    request: Vec<Ask>,
    suppress: Vec<String>,
    routes: Vec<Route>,
    dns: Dns,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Provide {
    option: String,
    value: String,
    from_arg: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Ask {
    skip_default: bool,
    option: String,
}

/// Where the daemon of `document` listens, whatever is wrong with its other keys.
pub fn socket(document: &Json) -> String {
    let configured = document
        .get("ipam")
        .and_then(|ipam| ipam.get("daemonSocketPath"));
    match configured {
        Some(Json::String(path)) if !path.is_empty() => path,
        _ => SOCKET.to_owned(),
    }
}

impl Ipam {
    /// Reads and checks `document`, and `args`, the `CNI_ARGS` of the call.
    ///
    /// # Errors
    /// Code 7, and which key it is.
    pub fn read(document: &Json, args: &str) -> Result<Self, Error> {
        let keys: Keys = document
            .decode()
            .map_err(|error| fault(format!("failed to load netconf: {error}")))?;
        let Some(ipam) = keys.ipam else {
            return Err(fault("IPAM config missing 'ipam' key".into()));
        };
        let suppressed = suppressed(&ipam.suppress)?;
        Ok(Self {
            socket: match ipam.daemon_socket_path.as_str() {
                "" => SOCKET.to_owned(),
                path => path.to_owned(),
            },
            priority: ipam.priority,
            provided: provided(&ipam.provide, args)?,
            requested: requested(&ipam.request, &suppressed)?,
            suppressed,
            routes: ipam.routes,
            dns: ipam.dns,
        })
    }

    /// Lays what the configuration has over the `result` of a daemon, which may be of
    /// another suite and have heard all that the server said.
    pub fn lay_over(&self, result: &mut AddResult) {
        if self.suppressed.contains(&option::ROUTER) {
            result.ips.iter_mut().for_each(|ip| ip.gateway = None);
            result.routes.retain(|route| route.dst.prefix() != 0);
        }
        let has_own = |dst| self.routes.iter().any(|own| own.dst == dst);
        result.routes.retain(|route| !has_own(route.dst));
        result.routes.extend(self.routes.iter().cloned());
        let (own, dns) = (&self.dns, &mut result.dns);
        for (own, theirs) in [
            (&own.nameservers, &mut dns.nameservers),
            (&own.search, &mut dns.search),
            (&own.options, &mut dns.options),
        ] {
            if !own.is_empty() {
                theirs.clone_from(own);
            }
        }
        if !own.domain.is_empty() {
            dns.domain.clone_from(&own.domain);
        }
    }

    fn unheard(&self) -> Unheard {
        let ipv4 = |route: &Route| match route.dst.0 {
            IpNetwork::V4(dst) => Some(dst),
            IpNetwork::V6(_) => None,
        };
        Unheard {
            options: self.suppressed.clone(),
            destinations: self.routes.iter().filter_map(ipv4).collect(),
        }
    }

    /// What the client says of itself in every message.
    pub fn identity(&self, client_id: &str) -> Identity {
        let mut options = self.provided.clone();
        if !options
            .iter()
            .any(|(kind, _)| *kind == option::CLIENT_IDENTIFIER)
        {
            // Type 0: no hardware address (RFC 2132, section 9.14).
            let identifier = [&[0], client_id.as_bytes()].concat();
            options.insert(0, (option::CLIENT_IDENTIFIER, identifier));
        }
        Identity {
            options,
            requested: self.requested.clone(),
            unheard: self.unheard(),
        }
    }
}

fn provided(keys: &[Provide], args: &str) -> Result<Vec<(u8, Vec<u8>)>, Error> {
    let mut options: Vec<(u8, Vec<u8>)> = Vec::new();
    for provide in keys {
        let kind = number(&provide.option)?;
        if is_ours(kind) {
            let option = &provide.option;
            return Err(fault(format!(
                "option {option:?} is set by the client itself"
            )));
        }
        let configured = Some(provide.value.as_str()).filter(|value| !value.is_empty());
        let from_args = argument(args, &provide.from_arg);
        let Some(value) = from_args.or(configured) else {
            continue;
        };
        if value.len() > 255 {
            let option = &provide.option;
            let from = match from_args {
                Some(_) => format!(" from CNI_ARGS {:?}", provide.from_arg),
                None => String::new(),
            };
            return Err(fault(format!(
                "value too long for option {option:?}{from}: {value:?}"
            )));
        }
        options.retain(|(other, _)| *other != kind);
        options.push((kind, value.as_bytes().to_vec()));
    }
    Ok(options)
}

fn requested(keys: &[Ask], suppressed: &[u8]) -> Result<Vec<u8>, Error> {
    let mut all = match keys.iter().any(|ask| ask.skip_default) {
        true => Vec::new(),
        false => REQUESTED.to_vec(),
    };
    for ask in keys {
        // The Go plugin wants an option beside `skipDefault`; alone it says enough.
        if ask.option.is_empty() && ask.skip_default {
            continue;
        }
        let kind = number(&ask.option)?;
        if !all.contains(&kind) {
            all.push(kind);
        }
    }
    all.retain(|kind| !suppressed.contains(kind));
    Ok(all)
}

fn suppressed(names: &[String]) -> Result<Vec<u8>, Error> {
    let mut all = Vec::new();
    for name in names {
        let kind = number(name)?;
        if is_ours(kind) || matches!(kind, option::SUBNET_MASK | option::LEASE_TIME) {
            return Err(fault(format!(
                "option {name:?} cannot be suppressed: there is no lease without it"
            )));
        }
        all.push(kind);
    }
    Ok(all)
}

/// The names that dhcp-options(5) and the Go plugin have, or a number.
fn number(name: &str) -> Result<u8, Error> {
    match name {
        "dhcp-client-identifier" => Ok(option::CLIENT_IDENTIFIER),
        "subnet-mask" => Ok(option::SUBNET_MASK),
        // The name of the option in RFC 2132, and that of dhcp-options(5).
        "router" | "routers" => Ok(option::ROUTER),
        "host-name" => Ok(option::HOST_NAME),
        "user-class" => Ok(option::USER_CLASS),
        "vendor-class-identifier" => Ok(option::VENDOR_CLASS),
        name => name.parse().map_err(|_| {
            fault(format!(
                "Can not parse option {name:?}: neither a known name nor a number from 0 to 255"
            ))
        }),
    }
}

/// What says what a message is, and whom it is about, is not for the configuration.
fn is_ours(kind: u8) -> bool {
    matches!(
        kind,
        option::PAD
            | option::REQUESTED_ADDRESS
            | option::OVERLOAD
            | option::MESSAGE_TYPE
            | option::SERVER_IDENTIFIER
            | option::PARAMETER_REQUEST_LIST
            | option::MAXIMUM_MESSAGE_SIZE
            | option::END
    )
}

/// The value of `key` in `CNI_ARGS`, which the Go plugin reads leniently here:
/// what is no pair is passed over, and the value may have more `=`.
fn argument<'a>(args: &'a str, key: &str) -> Option<&'a str> {
    let pairs = args.split(';').filter_map(|pair| pair.split_once('='));
    pairs
        .filter(|(name, _)| *name == key)
        .map(|(_, value)| value)
        .next_back()
}

fn fault(msg: String) -> Error {
    Code::InvalidConfig.err(msg)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(document: &str, args: &str) -> Result<Ipam, Error> {
        Ipam::read(&Json::parse(document.as_bytes()).unwrap(), args)
    }

    #[test]
    fn without_keys_all_that_has_a_place_is_asked_for() {
        let ipam = read(r#"{"ipam": {"type": "dhcp"}}"#, "").unwrap();
        assert_eq!(ipam.socket, SOCKET);
        assert_eq!(ipam.requested, REQUESTED);
        let identity = ipam.identity("a/lan/eth0");
        assert_eq!(identity.options, [(61, b"\0a/lan/eth0".to_vec())]);
    }

    #[test]
    fn arguments_overwrite_values() {
        let document = r#"{"ipam": {"Provide": [
            {"option": "host-name", "value": "a", "fromArg": "K8S_POD_NAME"},
            {"option": "60", "value": "vendor", "fromArg": "NONE"},
            {"option": "user-class", "fromArg": "NONE"},
            {"option": "dhcp-client-identifier", "value": "me"}
        ]}}"#;
        let args = "x;K8S_POD_NAME=web=1;K8S_POD_UID=2";
        let ipam = read(document, args).unwrap();
        assert_eq!(
            ipam.provided,
            [
                (12, b"web=1".to_vec()),
                (60, b"vendor".to_vec()),
                (61, b"me".to_vec())
            ]
        );
        assert_eq!(ipam.identity("other").options, ipam.provided);
    }

    #[test]
    fn requests_are_added_or_stand_alone() {
        let ipam = read(
            r#"{"ipam": {"request": [{"option": "42"}, {"option": "routers"}]}}"#,
            "",
        );
        assert_eq!(ipam.unwrap().requested, [&REQUESTED[..], &[42]].concat());
        let ipam = read(
            r#"{"ipam": {"request": [{"option": "subnet-mask", "skipDefault": true}]}}"#,
            "",
        );
        assert_eq!(ipam.unwrap().requested, [1]);
        let ipam = read(r#"{"ipam": {"request": [{"skipDefault": true}]}}"#, "");
        assert!(ipam.unwrap().requested.is_empty());
    }

    #[test]
    fn faults_are_told_with_the_option() {
        let long = "x".repeat(256);
        for (document, args, msg) in [
            ("{}", "", "IPAM config missing 'ipam' key".to_owned()),
            (
                r#"{"ipam": {"request": [{"option": "nope"}]}}"#,
                "",
                "Can not parse option \"nope\": neither a known name nor a number from 0 to 255"
                    .into(),
            ),
            (
                r#"{"ipam": {"provide": [{"option": "256"}]}}"#,
                "",
                "Can not parse option \"256\": neither a known name nor a number from 0 to 255"
                    .into(),
            ),
            (
                r#"{"ipam": {"provide": [{"option": "53", "value": "x"}]}}"#,
                "",
                "option \"53\" is set by the client itself".into(),
            ),
            (
                &format!(r#"{{"ipam": {{"provide": [{{"option": "12", "value": "{long}"}}]}}}}"#),
                "",
                format!("value too long for option \"12\": \"{long}\""),
            ),
            (
                r#"{"ipam": {"provide": [{"option": "12", "fromArg": "A"}]}}"#,
                &format!("A={long}"),
                format!("value too long for option \"12\" from CNI_ARGS \"A\": \"{long}\""),
            ),
        ] {
            let error = read(document, args).unwrap_err();
            assert_eq!((error.code, error.msg), (7, msg));
        }
        let error = read(r#"{"ipam": {"priority": -1}}"#, "").unwrap_err();
        assert!(
            error
                .msg
                .starts_with("failed to load netconf: ipam.priority: ")
        );
    }

    #[test]
    fn the_socket_is_found_whatever_else_is_wrong() {
        let find = |text: &str| socket(&Json::parse(text.as_bytes()).unwrap());
        assert_eq!(
            find(r#"{"ipam": {"daemonsocketpath": "/x", "priority": "y"}}"#),
            "/x"
        );
        assert_eq!(find(r#"{"ipam": []}"#), SOCKET);
        assert_eq!(find("{}"), SOCKET);
    }
}
