//! The configuration of a new network, as runtimes read it.

use std::net::IpAddr;

use cni::Version;
use networks::named::Record;
use serde_json::{Map, Value, json};

use super::addressing::Subnet;
use super::options::{Driver, Options};

/// As in Docker. With podman a container has an address of each, with CNI of the first one that is
/// not full.
pub const ONE_IPV4_SUBNET: &str = "bridge driver doesn't support multiple subnets of IPv4; \
     podwire network update --subnet adds one for further containers";

/// What containers search for short names. `internal` is reserved for private use and will be no
/// domain of the Internet (ICANN's resolution of 29 July 2024).
const DOMAIN: &str = "podwire.internal";

/// A network without contradictions.
#[derive(Debug)]
pub struct Design {
    /// Its name.
    pub name: String,
    /// What attaches containers.
    pub driver: Driver,
    /// The driver's options.
    pub options: Options,
    /// The addresses; none with another IPAM plugin than host-local.
    pub subnets: Vec<Subnet>,
    /// The IPAM plugin: `host-local`, `dhcp`, or none.
    pub ipam: Ipam,
    /// Further routes of the containers.
    pub routes: Vec<Value>,
    /// Where containers find each other by name: the name servers for other names.
    pub names: Option<Vec<String>>,
    /// The VXLAN network identifier.
    pub vni: Option<u32>,
    /// What CNI has no key for.
    pub record: Record,
}

/// The gateway mode in which published ports are opened.
pub const ROUTED: &str = "routed";

/// The keys that restrict access to and from the containers.
#[derive(Clone, Debug)]
pub struct Access {
    /// Containers have no way out, and none leads to them.
    pub internal: bool,
    /// The node is the containers' gateway.
    pub has_gateway: bool,
    /// Packets that leave the network get the node's address, where its mode has that.
    pub masquerade: bool,
    /// Whether containers have IPv4 addresses, and IPv6 addresses.
    pub families: [bool; 2],
    /// The gateway mode of each; `nat` where it is usual if `None`.
    pub modes: [Option<String>; 2],
}

impl Access {
    /// The keys of the gateway modes.
    pub const MODES: [&str; 2] = ["gatewayModeIPv4", "gatewayModeIPv6"];

    /// Writes the keys into the configuration of a plugin, in place of those that it had.
    pub fn write(&self, plugin: &mut Map<String, Value>) {
        let opens = self.has_gateway && !self.internal;
        plugin.insert("ipMasq".into(), (opens && self.masquerade).into());
        plugin.remove("internal");
        if self.internal {
            plugin.insert("internal".into(), true.into());
        }
        for ((key, mode), has_family) in Self::MODES.into_iter().zip(&self.modes).zip(self.families)
        {
            let mode = mode.as_deref().or(opens.then_some("nat"));
            match mode.filter(|_| has_family) {
                Some(mode) => plugin.insert(key.into(), mode.into()),
                None => plugin.remove(key),
            };
        }
        let capabilities = plugin
            .get_mut("capabilities")
            .and_then(Value::as_object_mut);
        if let Some(capabilities) = capabilities {
            if self.is_routed() {
                capabilities.insert("portMappings".into(), true.into())
            } else {
                capabilities.remove("portMappings")
            };
        }
    }

    /// Whether published ports are opened, and not redirected, in some family.
    pub fn is_routed(&self) -> bool {
        self.modes.iter().any(|it| it.as_deref() == Some(ROUTED))
    }
}

/// Where the addresses come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ipam {
    /// The network's own subnets.
    HostLocal,
    /// A DHCP server on the segment.
    Dhcp,
    /// Nowhere: containers have none.
    None,
}

impl Design {
    /// The configuration. It names the oldest version that all runtimes of today read, and the
    /// newest one for those that choose.
    pub fn document(&self) -> serde_json::Result<Map<String, Value>> {
        let (v1_0, v1_1) = (Version::V1_0_0.as_str(), Version::V1_1_0.as_str());
        let mut document = Map::new();
        document.insert("cniVersion".into(), v1_0.into());
        document.insert("cniVersions".into(), json!([v1_0, v1_1]));
        document.insert("name".into(), self.name.as_str().into());
        document.insert("plugins".into(), self.plugins().into());
        document.insert(Record::KEY.into(), serde_json::to_value(&self.record)?);
        Ok(document)
    }

    fn plugins(&self) -> Vec<Value> {
        let mut first = json!({
            "type": self.driver.name(),
            "capabilities": {"ips": true, "mac": true},
        });
        match self.driver {
            Driver::Bridge => self.add_bridge(&mut first),
            Driver::Vxlan => self.add_vxlan(&mut first),
            Driver::Macvlan | Driver::Ipvlan => self.add_parent(&mut first),
        }
        if let Some(mtu) = self.options.mtu {
            first["mtu"] = mtu.into();
        }
        if let Some(ipam) = self.ipam() {
            first["ipam"] = ipam;
        }
        let mut plugins = vec![first];
        if self.publishes() {
            plugins.push(json!({"type": "portmap", "capabilities": {"portMappings": true}}));
        }
        plugins.extend(self.resolver());
        plugins
    }

    /// Containers ask at their gateway, which is the node where it has a bridge of the network. An
    /// internal network has names, too, but a question for another name would be a way out.
    fn resolver(&self) -> Option<Value> {
        let servers = self.names.as_ref()?;
        if self.driver.shares_segment() || !self.has_gateway() || self.ipam == Ipam::None {
            return None;
        }
        let mut plugin = json!({
            "type": "dnsname",
            "capabilities": {"aliases": true, "dns": true},
            "domainName": DOMAIN,
        });
        if !servers.is_empty() {
            plugin["servers"] = servers.as_slice().into();
        }
        if self.record.internal {
            plugin["internal"] = true.into();
        }
        Some(plugin)
    }

    fn add_bridge(&self, bridge: &mut Value) {
        bridge["bridge"] = self.bridge().into();
        bridge["isGateway"] = true.into();
        bridge["hairpinMode"] = true.into();
        if let Some(vlan) = self.options.vlan {
            bridge["vlan"] = vlan.into();
        }
        self.add_access(bridge);
    }

    fn add_vxlan(&self, vxlan: &mut Value) {
        vxlan["vni"] = self.vni.into();
        for (key, value) in [("mode", &self.options.mode), ("dev", &self.options.parent)] {
            if let Some(value) = value {
                vxlan[key] = value.as_str().into();
            }
        }
        if let Some(bridge) = &self.options.bridge {
            vxlan["bridge"] = bridge.as_str().into();
        }
        self.add_access(vxlan);
    }

    fn add_parent(&self, interface: &mut Value) {
        for (key, value) in [
            ("mode", &self.options.mode),
            ("master", &self.options.parent),
        ] {
            if let Some(value) = value {
                interface[key] = value.as_str().into();
            }
        }
    }

    /// Access to and from the containers.
    fn add_access(&self, plugin: &mut Value) {
        plugin["capabilities"]["links"] = true.into();
        plugin["links"] = json!([]);
        if self.options.icc == Some(false) {
            plugin["icc"] = false.into();
        }
        let has = |is_ipv4| {
            self.subnets
                .iter()
                .any(|it| it.network.is_ipv4() == is_ipv4)
        };
        let access = Access {
            internal: self.record.internal,
            has_gateway: self.has_gateway(),
            masquerade: self.options.masquerade != Some(false),
            families: [has(true), has(false)],
            modes: [&self.options.mode_ipv4, &self.options.mode_ipv6].map(Clone::clone),
        };
        if let Some(keys) = plugin.as_object_mut() {
            access.write(keys);
        }
    }

    /// Whether the node is the containers' gateway. Of a segment that spans nodes, none is.
    fn has_gateway(&self) -> bool {
        self.driver != Driver::Vxlan || self.options.mode.as_deref() != Some("l2")
    }

    /// Whether published ports are opened, and not redirected, in some family.
    fn is_routed(&self) -> bool {
        let modes = [&self.options.mode_ipv4, &self.options.mode_ipv6];
        modes.iter().any(|it| it.as_deref() == Some(ROUTED))
    }

    /// Whether ports of the node lead to containers.
    fn publishes(&self) -> bool {
        !self.record.internal && !self.driver.shares_segment() && !self.is_routed()
    }

    /// The name of the bridge: that of the option, or Docker's.
    pub fn bridge(&self) -> String {
        let chosen = self.options.bridge.clone();
        chosen.unwrap_or_else(|| format!("br-{}", self.record.id.get(..12).unwrap_or_default()))
    }

    fn ipam(&self) -> Option<Value> {
        match self.ipam {
            Ipam::None => None,
            Ipam::Dhcp => Some(json!({"type": "dhcp"})),
            Ipam::HostLocal => {
                let families = [true, false].map(|is_ipv4| {
                    let subnets = self.subnets.iter();
                    let of_family = subnets.filter(|it| it.network.is_ipv4() == is_ipv4);
                    of_family.flat_map(Subnet::ranges).collect::<Vec<_>>()
                });
                let ranges: Vec<_> = families.into_iter().filter(|it| !it.is_empty()).collect();
                let mut ipam = json!({"type": "host-local", "ranges": ranges});
                let routes = self.routes();
                if !routes.is_empty() {
                    ipam["routes"] = routes.into();
                }
                if self.subnets.iter().any(Subnet::has_range) {
                    ipam["requestOutsideRange"] = true.into();
                }
                Some(ipam)
            }
        }
    }

    fn routes(&self) -> Vec<Value> {
        let mut routes = Vec::new();
        if self.has_gateway() && !self.record.internal && !self.options.no_default_route {
            for (is_ipv4, dst) in [(true, "0.0.0.0/0"), (false, "::/0")] {
                if self
                    .subnets
                    .iter()
                    .any(|it| it.network.is_ipv4() == is_ipv4)
                {
                    let mut route = json!({"dst": dst});
                    if let Some(metric) = self.options.metric {
                        route["priority"] = metric.into();
                    }
                    routes.push(route);
                }
            }
        }
        routes.extend(self.routes.iter().cloned());
        routes
    }

    /// What cannot be together.
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let mut fault = |wrong: bool, text: &str| {
            if wrong {
                faults.push(text.to_owned());
            }
        };
        let options = &self.options;
        let (is_vxlan, on_segment) = (self.driver == Driver::Vxlan, self.driver.shares_segment());
        fault(
            is_vxlan && self.vni.is_none(),
            "-d vxlan needs --vni, the same on all nodes",
        );
        fault(
            !is_vxlan && self.vni.is_some(),
            "--vni is only for -d vxlan",
        );
        fault(
            on_segment && options.icc.is_some(),
            "--icc is for bridges: for macvlan there is -o mode=private",
        );
        fault(
            on_segment && options.bridge.is_some(),
            "the option bridge.name is for bridges",
        );
        fault(
            self.driver == Driver::Bridge && options.parent.is_some(),
            "a bridge has no parent: see -d macvlan",
        );
        fault(
            self.driver == Driver::Bridge && options.mode.is_some(),
            "a bridge has no mode",
        );
        fault(
            self.driver != Driver::Bridge && options.vlan.is_some(),
            "the option vlan is for -d bridge",
        );
        fault(
            self.ipam == Ipam::Dhcp && !on_segment,
            "--ipam-driver dhcp needs a segment with a server: -d macvlan or ipvlan",
        );
        let has_ipv6 = self.subnets.iter().any(|it| it.network.is_ipv6());
        fault(
            has_ipv6 && options.mtu.is_some_and(|it| it < 1280),
            "IPv6 needs an MTU of at least 1280",
        );
        let ipv4 = self.subnets.iter().filter(|it| it.network.is_ipv4());
        fault(!on_segment && ipv4.count() > 1, ONE_IPV4_SUBNET);
        let isolated = |mode: &Option<String>| mode.as_deref() == Some("isolated");
        let other_mode = [&options.mode_ipv4, &options.mode_ipv6];
        let other_mode = other_mode.iter().any(|it| it.is_some() && !isolated(it));
        fault(
            self.record.internal && other_mode,
            "an internal network has no gateway mode but isolated",
        );
        let routed =
            [&options.mode_ipv4, &options.mode_ipv6].map(|it| it.as_deref() == Some("routed"));
        fault(
            has_ipv6 && routed[0] != routed[1] && routed.contains(&true),
            "the gateway mode routed is for both families or for none",
        );
        for route in &self.routes {
            let gateway = route["gw"]
                .as_str()
                .and_then(|it| it.parse::<IpAddr>().ok());
            let on_link = |it: &Subnet| gateway.is_some_and(|gateway| it.network.contains(gateway));
            if !self.subnets.iter().any(on_link) {
                let gateway = gateway.map_or_else(String::new, |it| it.to_string());
                faults.push(format!(
                    "the gateway {gateway} of a route is in no subnet of the network"
                ));
            }
        }
        faults
    }
}
