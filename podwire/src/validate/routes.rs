//! Routes, which all IPAM plugins of ours have.

use cni::Cidr;
use cni::address::parse_ip;
use cni::json::Json;

use super::findings::Findings;
use super::schema::{self, Key, Kind};

/// The keys of a route, as `cni::result::Route` reads them.
pub const KEYS: &[Key] = &[
    Key::required("dst", Kind::CIDR),
    Key::new("gw", Kind::ADDRESS),
    Key::new("mtu", Kind::UNSIGNED),
    Key::new("advmss", Kind::UNSIGNED),
    Key::new("priority", Kind::UNSIGNED),
    Key::new("table", Kind::UNSIGNED),
    Key::new("scope", Kind::Integer(0, 255)),
];

/// Tells what the kernel will refuse.
pub fn check(routes: Option<Json>, place: &str, findings: &mut Findings) {
    for (index, route) in schema::items(routes).iter().enumerate() {
        let place = format!("{place}[{index}]");
        let text = |key| schema::text(route.get(key)).unwrap_or_default();
        let Ok(dst) = text("dst").parse::<Cidr>() else {
            continue;
        };
        // inet_rtm_getroute and friends: "invalid argument". IPv6 masks them.
        if dst.ip().is_ipv4() && dst.0.network() != dst.ip() {
            let network = dst.0.network();
            let reason = format!("host bits set: the network is {network}/{}", dst.prefix());
            findings.error(&schema::join(&place, "dst"), reason);
        }
        let gateway = parse_ip(&text("gw"));
        if gateway.is_ok_and(|gateway| gateway.is_ipv4() != dst.ip().is_ipv4()) {
            let reason = format!("of another family than the destination {dst}");
            findings.error(&schema::join(&place, "gw"), reason);
        }
    }
}
