//! What a container sees as /etc/hosts, /etc/resolv.conf and /etc/hostname.

use std::net::IpAddr;

use anyhow::{Context, Result, bail};
use cni::result::{AddResult, Dns};
use containers::Resolver;

/// The names that every container has.
const LOCAL: &str = "\
127.0.0.1\tlocalhost
::1\tlocalhost ip6-localhost ip6-loopback
fe00::\tip6-localnet
ff00::\tip6-mcastprefix
ff02::1\tip6-allnodes
ff02::2\tip6-allrouters
";

/// An entry of `--add-host`: `NAME:ADDRESS` or `NAME=ADDRESS`.
///
/// # Errors
/// It is something else.
pub fn added_host(text: &str) -> Result<(String, Option<IpAddr>)> {
    let parts = text.split_once('=').or_else(|| text.split_once(':'));
    let Some((name, ip)) = parts.filter(|(name, _)| is_host_name(name)) else {
        bail!("bad format for add-host: {text:?}");
    };
    if ip == "host-gateway" {
        return Ok((name.to_owned(), None));
    }
    let ip = ip.trim_start_matches('[').trim_end_matches(']');
    let ip = ip.parse();
    let ip = ip.with_context(|| format!("invalid IP address in add-host: {text:?}"))?;
    Ok((name.to_owned(), Some(ip)))
}

/// Whether a word can stand in a line of /etc/hosts.
pub fn is_host_name(name: &str) -> bool {
    let allowed = |it: u8| it.is_ascii_alphanumeric() || b"-._".contains(&it);
    !name.is_empty() && name.len() <= 253 && name.bytes().all(allowed)
}

/// The host name as a name in the networks; `None` for one that no question can have, such as `a..b`.
pub fn name_of(hostname: &str) -> Option<String> {
    let name: Result<names::Name, _> = hostname.parse();
    name.ok().map(|it| it.to_string())
}

/// The line for an address and its names.
pub fn line(ip: IpAddr, names: &str) -> String {
    format!("{ip}\t{names}\n")
}

/// The line for an address of the container.
pub fn own_line(ip: IpAddr, hostname: &str) -> String {
    match hostname.split_once('.') {
        Some((short, _)) => line(ip, &format!("{hostname} {short}")),
        None => line(ip, hostname),
    }
}

/// /etc/hosts: `added` are the entries of `--add-host`, `own` the container's addresses.
pub fn hosts(added: &[(String, IpAddr)], own: &[IpAddr], hostname: &str) -> String {
    let added = added.iter().map(|(name, ip)| line(*ip, name));
    let own = own.iter().map(|ip| own_line(*ip, hostname));
    LOCAL.to_owned() + &added.chain(own).collect::<String>()
}

/// The container's addresses in the results of its networks.
pub fn addresses(results: &[AddResult]) -> Vec<IpAddr> {
    let ips = results.iter().flat_map(|it| &it.ips);
    ips.map(|it| it.address.ip()).collect()
}

/// /etc/resolv.conf: of what was asked for, of what the networks have returned, and of the node's
/// file, the first that has a value.
pub fn resolv_conf(requested: &Resolver, results: &[AddResult], node: &str) -> String {
    let of_networks = |values: fn(&Dns) -> &Vec<String>| -> Vec<String> {
        let all = results.iter().flat_map(|it| values(&it.dns));
        all.cloned().collect()
    };
    let of_node = |keyword: &str| -> Vec<String> {
        let values = node.lines().filter_map(|line| {
            let mut words = line.split_whitespace();
            (words.next() == Some(keyword)).then(|| words.map(str::to_owned))
        });
        values.flatten().collect()
    };
    let first = |requested: &[String], networks: Vec<String>, node: Vec<String>| -> Vec<String> {
        let all = [requested.to_vec(), networks, node];
        all.into_iter()
            .find(|it| !it.is_empty())
            .unwrap_or_default()
    };
    let mut reachable = of_node("nameserver");
    // The node's loopback is not the container's.
    reachable.retain(|it| it.parse::<IpAddr>().is_ok_and(|it| !it.is_loopback()));
    let servers = first(
        &requested.servers,
        of_networks(|it| &it.nameservers),
        reachable,
    );
    let mut domains = of_networks(|it| &it.search);
    if domains.is_empty() {
        let own = results.iter().map(|it| it.dns.domain.clone());
        domains = own.filter(|it| !it.is_empty()).collect();
    }
    let mut search = first(&requested.search, domains, of_node("search"));
    search.retain(|it| it != ".");
    let options = first(
        &requested.options,
        of_networks(|it| &it.options),
        of_node("options"),
    );
    let mut text: String = servers
        .iter()
        .map(|it| format!("nameserver {it}\n"))
        .collect();
    for (keyword, values) in [("search", search), ("options", options)] {
        if !values.is_empty() {
            text += &format!("{keyword} {}\n", values.join(" "));
        }
    }
    if servers.is_empty() {
        text +=
            "# The container reaches no name server of the node: podwire run --dns names one.\n";
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use cni::json::Json;
    use cni::version::Version;

    fn result(text: &str) -> AddResult {
        let document = Json::parse(text.as_bytes()).unwrap();
        AddResult::decode_any(&document, Version::V1_0_0).unwrap()
    }

    #[test]
    fn hosts_has_the_containers_addresses_with_its_name() {
        let own = ["10.1.0.2".parse().unwrap(), "fd00::2".parse().unwrap()];
        let added = [("db".to_owned(), "10.9.0.1".parse().unwrap())];
        let text = hosts(&added, &own, "web.example.com");
        assert!(text.starts_with("127.0.0.1\tlocalhost\n::1\tlocalhost "));
        assert!(
            text.ends_with(
                "10.9.0.1\tdb\n10.1.0.2\tweb.example.com web\nfd00::2\tweb.example.com web\n"
            ),
            "{text}"
        );
    }

    #[test]
    fn resolv_conf_is_what_was_asked_for_or_of_the_networks_or_of_the_node() {
        let node = "# x\nnameserver 127.0.0.53\nnameserver 192.0.2.53\nsearch a b\noptions edns0\n";
        let network = result(r#"{"dns": {"nameservers": ["10.1.0.1"], "domain": "n"}}"#);
        let none = Resolver::default();
        assert_eq!(
            resolv_conf(&none, &[], node),
            "nameserver 192.0.2.53\nsearch a b\noptions edns0\n"
        );
        assert_eq!(
            resolv_conf(&none, std::slice::from_ref(&network), node),
            "nameserver 10.1.0.1\nsearch n\noptions edns0\n"
        );
        let requested = Resolver {
            servers: vec!["1.2.3.4".into()],
            search: vec![".".into()],
            options: vec!["ndots:2".into()],
        };
        assert_eq!(
            resolv_conf(&requested, &[network], node),
            "nameserver 1.2.3.4\noptions ndots:2\n"
        );
        let alone = resolv_conf(&none, &[], "nameserver 127.0.0.1\nnameserver ::1\n");
        assert!(
            alone.starts_with("# The container reaches no name server"),
            "{alone}"
        );
    }

    #[test]
    fn added_hosts_have_a_name_and_an_address() {
        let ip = |text: &str| Some(text.parse().unwrap());
        for (text, expected) in [
            ("db:10.0.0.1", ("db", ip("10.0.0.1"))),
            ("db=::1", ("db", ip("::1"))),
            ("db:fd00::1", ("db", ip("fd00::1"))),
            ("db:[fd00::1]", ("db", ip("fd00::1"))),
            ("up:host-gateway", ("up", None)),
        ] {
            let (name, ip) = added_host(text).unwrap();
            assert_eq!((name.as_str(), ip), expected, "{text}");
        }
        for text in ["db", "db:x", ":1.2.3.4", "a b:1.2.3.4", "a\nb:1.2.3.4", ""] {
            assert!(added_host(text).is_err(), "{text:?}");
        }
    }
}
