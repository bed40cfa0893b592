//! Results between versions, there and back, whatever is in them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use cni::json::Json;
use cni::result::{Dns, Interface, IpConfig, Route};
use cni::{AddResult, Cidr, Version};
use ipnetwork::IpNetwork;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

fn ip() -> impl Strategy<Value = IpAddr> {
    // An IPv4 address in IPv6's clothes reads back undressed.
    let v6 = any::<Ipv6Addr>().prop_map(|ip| IpAddr::from(ip).to_canonical());
    prop_oneof![any::<Ipv4Addr>().prop_map(IpAddr::from), v6]
}

fn cidr() -> impl Strategy<Value = Cidr> {
    (ip(), 0..=128u8).prop_map(|(ip, prefix)| {
        let prefix = prefix.min(if ip.is_ipv4() { 32 } else { 128 });
        Cidr(IpNetwork::new(ip, prefix).expect("a prefix that fits"))
    })
}

/// Any text, with a preference for what must be escaped.
fn text() -> impl Strategy<Value = String> {
    prop_oneof![Just(String::new()), "[<>&\"\\\\/a-z]{0,6}", any::<String>()]
}

prop_compose! {
    fn interface()(name in text(), mac in text(), mtu in any::<u32>(), sandbox in text(),
                   socket_path in text(), pci_id in text()) -> Interface {
        Interface { name, mac, mtu, sandbox, socket_path, pci_id }
    }
}

prop_compose! {
    fn ip_config()(interface in option::of(any::<i64>()), address in cidr(),
                   gateway in option::of(ip())) -> IpConfig {
        IpConfig { interface, address, gateway }
    }
}

prop_compose! {
    fn route()(dst in cidr(), gw in option::of(ip()), mtu in any::<u32>(), advmss in any::<u32>(),
               priority in any::<u32>(), table in option::of(any::<u32>()),
               scope in option::of(any::<u8>())) -> Route {
        Route { dst, gw, mtu, advmss, priority, table, scope }
    }
}

prop_compose! {
    fn dns()(nameservers in vec(text(), 0..3), domain in text(), search in vec(text(), 0..3),
             options in vec(text(), 0..3)) -> Dns {
        Dns { nameservers, domain, search, options }
    }
}

prop_compose! {
    fn result()(interfaces in vec(interface(), 0..4), ips in vec(ip_config(), 0..5),
                routes in vec(route(), 0..5), dns in dns()) -> AddResult {
        AddResult { interfaces, ips, routes, dns }
    }
}

/// Written at `version` and read again.
fn through(result: &AddResult, version: Version) -> AddResult {
    let text = result.encode(version).expect("a version that can say it");
    let document = Json::parse(text.as_bytes()).expect("a document");
    AddResult::decode(&document, version).expect("a result")
}

/// What is left of a result at `version`; none where that version cannot express it.
fn expected(result: &AddResult, version: Version) -> Option<AddResult> {
    let mut result = result.clone();
    if version >= Version::V1_0_0 {
        return Some(result);
    }
    if version >= Version::V0_3_0 {
        for interface in &mut result.interfaces {
            interface.mtu = 0;
            interface.socket_path.clear();
            interface.pci_id.clear();
        }
        return Some(result);
    }
    // One address of each family, IPv4 first, each with the routes of its family.
    let (ips, routes) = (result.ips.clone(), result.routes.clone());
    (result.interfaces, result.ips, result.routes) = Default::default();
    for ipv4 in [true, false] {
        let of_family = |ip: IpAddr| ip.is_ipv4() == ipv4;
        if let Some(first) = ips.iter().find(|it| of_family(it.address.ip())) {
            result.ips.push(IpConfig {
                interface: None,
                ..first.clone()
            });
            let own = routes.iter().filter(|it| of_family(it.dst.ip()));
            result.routes.extend(own.cloned());
        }
    }
    (!result.ips.is_empty()).then_some(result)
}

fn version() -> impl Strategy<Value = Version> {
    prop::sample::select(Version::ALL)
}

proptest! {
    #[test]
    fn a_version_keeps_all_that_it_can_say(result in result(), version in version()) {
        match expected(&result, version) {
            Some(expected) => prop_assert_eq!(through(&result, version), expected),
            None => prop_assert!(result.encode(version).is_err()),
        }
    }

    #[test]
    fn there_and_back_nothing_more_is_lost(result in result(), one in version(), other in version()) {
        // Through the poorer of two versions, whichever comes first.
        let poorer = one.min(other);
        if result.encode(poorer).is_ok() {
            let once = through(&result, poorer);
            let again = through(&through(&result, one), other);
            prop_assert_eq!(through(&again, poorer), once.clone());
            prop_assert_eq!(through(&once, other), through(&once, poorer));
        }
    }

    #[test]
    fn what_is_written_says_its_version_and_has_no_markup(result in result(), version in version()) {
        if let Ok(text) = result.encode(version) {
            prop_assert!(!text.contains(['<', '>', '&']));
            let document = Json::parse(text.as_bytes()).expect("a document");
            prop_assert_eq!(document.get("cniVersion"), Some(Json::String(version.as_str().to_owned())));
            // A runtime that knows no version of it can still tell which it is.
            prop_assert!(AddResult::decode_any(&document, Version::V0_1_0).is_ok());
        }
    }
}
