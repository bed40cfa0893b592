//! From keys to the options that are sent and requested.

use cni::AddResult;
use cni::faults::{Checks, Fault, Faults};
use cni::ipam::check_routes;
use cni::result::{Dns, Route};
use ipnetwork::IpNetwork;

use crate::conf::{Conf, Provide, Request};
use crate::lease::{Identity, Suppressed};
use crate::message::option;

/// What is requested unless the configuration says otherwise: every option that has a
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

/// What an attachment wants of a DHCP server.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Where the daemon listens.
    pub socket: String,
    /// The metric of all routes, 0 for none.
    pub priority: u32,
    /// Options to send, without the client identifier unless it is configured.
    pub provided: Vec<(u8, Vec<u8>)>,
    /// Options to request.
    pub requested: Vec<u8>,
    /// Options of the server to ignore.
    pub suppressed: Vec<u8>,
    /// Returned with the server's routes, in place of one to the same destination.
    pub routes: Vec<Route>,
    /// Each part that is not empty is returned in place of the server's.
    pub dns: Dns,
}

impl Plan {
    /// Checks `conf`, and `args`, the `CNI_ARGS` of the call.
    ///
    /// # Errors
    /// Code 7, each fault with its key.
    pub fn new(conf: &Conf, args: &str) -> Result<Self, Faults> {
        let ipam = conf.ipam.as_ref();
        let ipam = ipam.ok_or_else(|| Fault::new("ipam", "IPAM config missing 'ipam' key"))?;
        let mut checks = Checks::default();
        let suppressed = suppressed(&ipam.suppress, &mut checks);
        let provided = provided(&ipam.provide, args, &mut checks);
        let requested = requested(&ipam.request, &suppressed, &mut checks);
        check_routes(&ipam.routes, &mut checks);
        checks.finish(|| {
            Some(Self {
                socket: conf.socket(),
                priority: ipam.priority,
                provided,
                requested,
                suppressed,
                routes: ipam.routes.clone(),
                dns: ipam.dns.clone(),
            })
        })
    }

    /// Applies `suppress`, `routes` and `dns` to the daemon's `result`: the Go daemon knows
    /// none of them.
    pub fn apply(&self, result: &mut AddResult) {
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

    fn suppressed(&self) -> Suppressed {
        let ipv4 = |route: &Route| match route.dst.0 {
            IpNetwork::V4(dst) => Some(dst),
            IpNetwork::V6(_) => None,
        };
        Suppressed {
            options: self.suppressed.clone(),
            destinations: self.routes.iter().filter_map(ipv4).collect(),
        }
    }

    /// The options of the client's messages, and those of the server's that it ignores.
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
            suppressed: self.suppressed(),
        }
    }
}

fn provided(keys: &[Provide], args: &str, checks: &mut Checks) -> Vec<(u8, Vec<u8>)> {
    let mut options: Vec<(u8, Vec<u8>)> = Vec::new();
    for (index, provide) in keys.iter().enumerate() {
        let key = |name| format!("ipam.provide[{index}].{name}");
        let option = &provide.option;
        let Some(kind) = checks.take(number(key("option"), option)) else {
            continue;
        };
        if is_ours(kind) {
            let msg = format!("option {option:?} is set by the client itself");
            checks.add(Fault::new(key("option"), msg));
            continue;
        }
        let configured = Some(provide.value.as_str()).filter(|value| !value.is_empty());
        let from_args = argument(args, &provide.from_arg);
        let Some(value) = from_args.or(configured) else {
            continue;
        };
        if value.len() > 255 {
            let from = from_args.map(|_| format!(" from CNI_ARGS {:?}", provide.from_arg));
            let from = from.unwrap_or_default();
            let msg = format!("value too long for option {option:?}{from}: {value:?}");
            checks.add(Fault::new(key("value"), msg));
            continue;
        }
        options.retain(|(other, _)| *other != kind);
        options.push((kind, value.as_bytes().to_vec()));
    }
    options
}

fn requested(keys: &[Request], suppressed: &[u8], checks: &mut Checks) -> Vec<u8> {
    let mut all = if keys.iter().any(|request| request.skip_default) {
        Vec::new()
    } else {
        REQUESTED.to_vec()
    };
    for (index, request) in keys.iter().enumerate() {
        // The Go plugin wants an option beside `skipDefault`; alone it says enough.
        if request.option.is_empty() && request.skip_default {
            continue;
        }
        let kind = number(format!("ipam.request[{index}].option"), &request.option);
        let kind = checks.take(kind);
        all.extend(kind.filter(|kind| !all.contains(kind)));
    }
    all.retain(|kind| !suppressed.contains(kind));
    all
}

fn suppressed(names: &[String], checks: &mut Checks) -> Vec<u8> {
    checks.each("ipam.suppress", names, |key, name| {
        let kind = number(key, name)?;
        if is_ours(kind) || matches!(kind, option::SUBNET_MASK | option::LEASE_TIME) {
            let msg = format!("option {name:?} cannot be suppressed: there is no lease without it");
            return Err(Fault::new(key, msg));
        }
        Ok(kind)
    })
}

/// The names that dhcp-options(5) and the Go plugin have, or a number.
fn number(key: impl Into<String>, name: &str) -> Result<u8, Fault> {
    match name {
        "dhcp-client-identifier" => Ok(option::CLIENT_IDENTIFIER),
        "subnet-mask" => Ok(option::SUBNET_MASK),
        // The name of the option in RFC 2132, and that of dhcp-options(5).
        "router" | "routers" => Ok(option::ROUTER),
        "host-name" => Ok(option::HOST_NAME),
        "user-class" => Ok(option::USER_CLASS),
        "vendor-class-identifier" => Ok(option::VENDOR_CLASS),
        name => name.parse().map_err(|_| {
            let why = "neither a known name nor a number from 0 to 255";
            Fault::new(key, format!("Can not parse option {name:?}: {why}"))
        }),
    }
}

/// Whether the protocol itself sets the option, so that a configuration cannot.
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

/// The value of `key` in `CNI_ARGS`. As in the Go plugin, entries without `=` are ignored,
/// and the value may contain `=`.
fn argument<'a>(args: &'a str, key: &str) -> Option<&'a str> {
    let pairs = args.split(';').filter_map(|pair| pair.split_once('='));
    pairs
        .filter(|(name, _)| *name == key)
        .map(|(_, value)| value)
        .next_back()
}

#[cfg(test)]
mod tests {
    use super::*;

    use cni::Error;
    use cni::json::{self, Json};

    use crate::conf::SOCKET;

    fn read(document: &str, args: &str) -> Result<Plan, Faults> {
        let conf = json::read(document).unwrap();
        Plan::new(&conf, args)
    }

    #[test]
    fn without_keys_the_default_options_are_requested() {
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
    fn faults_name_the_option() {
        let long = "x".repeat(256);
        for (option, msg) in [
            (
                r#""option": "256""#,
                "Can not parse option \"256\": neither a known name nor a number from 0 to 255"
                    .into(),
            ),
            (
                r#""option": "53", "value": "x""#,
                "option \"53\" is set by the client itself".into(),
            ),
            (
                r#""option": "12", "fromArg": "A""#,
                format!("value too long for option \"12\" from CNI_ARGS \"A\": \"{long}\""),
            ),
        ] {
            let document = format!(r#"{{"ipam": {{"provide": [{{{option}}}]}}}}"#);
            let error = Error::from(read(&document, &format!("A={long}")).unwrap_err());
            assert_eq!((error.code, error.msg), (7, msg));
        }
    }

    #[test]
    fn every_fault_has_its_key() {
        let document = r#"{"ipam": {"provide": [{"option": "x"}, {"option": "53", "value": "x"}],
            "request": [{"option": "y"}], "suppress": ["router", "51", "z"], "routes": [{"dst": "10.1.1.1/8"}]}}"#;
        let keys = read(document, "").unwrap_err().into_iter().map(|it| it.key);
        let expected = [
            "ipam.suppress[1]",
            "ipam.suppress[2]",
            "ipam.provide[0].option",
            "ipam.provide[1].option",
            "ipam.request[0].option",
            "ipam.routes[0].dst",
        ];
        assert_eq!(keys.collect::<Vec<_>>(), expected);
    }

    #[test]
    fn the_socket_is_found_whatever_else_is_wrong() {
        let find = |text: &str| {
            let reading = Json::parse(text.as_bytes()).unwrap().decode_all::<Conf>();
            reading.value.unwrap().socket()
        };
        assert_eq!(
            find(r#"{"ipam": {"daemonsocketpath": "/x", "priority": "y"}}"#),
            "/x"
        );
        assert_eq!(find(r#"{"ipam": []}"#), SOCKET);
        assert_eq!(find("{}"), SOCKET);
    }
}
