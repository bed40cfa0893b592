//! The chains of plugins that the sweeps run.

use sandbox::{BackEnd, conf};
use serde_json::{Value, json};

use crate::dhcp;
use crate::node::{Chain, EXECUTED};

/// Every chain there is.
pub fn all() -> Vec<Chain> {
    let all = [veth_pairs(), links_in_pods(), chained(), addresses()];
    all.into_iter().flatten().collect()
}

/// Plugins that make a veth pair.
fn veth_pairs() -> Vec<Chain> {
    vec![
        alone("bridge", bridge()),
        alone("bridge, IPAM executed", executed(bridge())),
        Chain {
            cold: true,
            ..alone("bridge, first pod of the node", bridge())
        },
        with(
            BackEnd::IptablesNft,
            alone("bridge, iptables", masqueraded("iptables")),
        ),
        with(
            BackEnd::IptablesNft,
            Chain {
                setup: "iptables -P FORWARD DROP",
                ..alone("bridge, gateway mode", restricted())
            },
        ),
        alone("ptp", ptp("nftables")),
        with(
            BackEnd::IptablesNft,
            alone("ptp, iptables", ptp("iptables")),
        ),
        wired(alone("vxlan", vxlan())),
    ]
}

/// Plugins whose link has no end on the node.
fn links_in_pods() -> Vec<Chain> {
    vec![
        Chain {
            in_pod: true,
            ..wired(alone("macvlan", macvlan()))
        },
        Chain {
            in_pod: true,
            ..wired(alone("macvlan, hostShim", shimmed()))
        },
        Chain {
            in_pod: true,
            // There is one device, so no second pod can be attached at the same time.
            cold: true,
            setup: "ip link add dev0 type veth peer name far0",
            // A veth would be deleted. It stands for hardware, which goes to the node under its name in the
            // pod: DEL renames it there first.
            pod_ends: "ip netns attach node $$
                for name in eth0 dev0; do
                    if ip -n victim link set $name down 2>/dev/null; then
                        ip -n victim link set $name netns node
                    fi
                done
                ip netns del node",
            ..alone("host-device", host_device())
        },
        Chain {
            in_pod: true,
            ..wired(alone("ipvlan", ipvlan()))
        },
        Chain {
            in_pod: true,
            ..alone("tap", tap())
        },
        Chain {
            in_pod: true,
            // A VLAN of an interface is for one pod at a time.
            cold: true,
            ..wired(alone("vlan", vlan()))
        },
        Chain {
            in_pod: true,
            ..alone("dummy", dummy())
        },
        Chain {
            in_pod: true,
            // A `lo` that is up: others may rely on it by now.
            keeps: true,
            ..alone("loopback", conf::loopback())
        },
    ]
}

/// Plugins that run after another one.
fn chained() -> Vec<Chain> {
    vec![
        published("portmap", BackEnd::Nftables),
        published("portmap, iptables", BackEnd::IptablesNft),
        whole("bridge of bridge and portmap, iptables", 0),
        whole("portmap of bridge and portmap, iptables", 1),
        walled("firewall", BackEnd::Nftables),
        walled("firewall, iptables", BackEnd::IptablesNft),
        Chain {
            prefix: vec![conf::bridge(&["10.1.0.0/24", "fd01::/64"])],
            // The interface that it changes comes and goes with it.
            whole: true,
            ..alone("tuning", tuning())
        },
        Chain {
            prefix: vec![routed_ptp()],
            in_pod: true,
            // The interface that has the addresses comes and goes with it.
            whole: true,
            ..alone("sbr", conf::plugin("sbr"))
        },
        Chain {
            prefix: vec![routed_ptp()],
            in_pod: true,
            // As for sbr.
            whole: true,
            ..alone("vrf", vrf())
        },
        Chain {
            prefix: vec![conf::ptp(&["10.1.0.0/24", "fd01::/64"])],
            ..alone("bandwidth", bandwidth())
        },
        Chain {
            prefix: vec![conf::bridge(&["10.1.0.0/24", "fd01::/64"])],
            ..alone("dnsname", dnsname())
        },
    ]
}

/// IPAM plugins, alone and under another plugin.
fn addresses() -> Vec<Chain> {
    vec![
        Chain {
            program: Some("host-local"),
            ..alone(
                "host-local",
                conf::host_local(&["10.1.0.0/24", "fd01::/64"]),
            )
        },
        Chain {
            agent: true,
            program: Some("cluster"),
            ..alone("cluster", clustered())
        },
        Chain {
            agent: true,
            ..alone("bridge, cluster", clustered())
        },
        Chain {
            // A MAC of its own: the kernel's choice changes with the bridge's ports.
            setup: "ip link add lan address 02:00:00:00:00:01 type bridge
                ip link set lan up
                ip link set uplink master lan",
            ..leased(alone("bridge, dhcp", leasing("bridge", "bridge", "lan")))
        },
        Chain {
            in_pod: true,
            ..leased(alone(
                "macvlan, dhcp",
                leasing("macvlan", "master", dhcp::UPLINK),
            ))
        },
    ]
}

/// Those whose kinds of links this kernel has. The others run in the virtual machine: `tests/vm/run
/// target/…/faults -- kill vlan`.
pub fn here() -> Vec<Chain> {
    let runs_here = |chain: &Chain| {
        let plugin = chain.victim["type"].as_str().unwrap_or_default();
        let mut table = sandbox::table().iter();
        table.all(|row| row.name != plugin || row.runs_here())
    };
    all().into_iter().filter(runs_here).collect()
}

/// The chain of that name.
pub fn named(name: &str) -> Option<Chain> {
    all().into_iter().find(|chain| chain.name == name)
}

/// The same with an IPAM plugin that is a process of its own.
fn executed(conf: Value) -> Value {
    conf::with(&conf, json!({"ipam": {"type": EXECUTED}}))
}

/// All that a bridge network may have.
fn bridge() -> Value {
    let change = json!({"macspoofchk": true});
    conf::with(&masqueraded("nftables"), change)
}

/// A network that others reach only as its modes say.
fn restricted() -> Value {
    let mapping = json!({"hostPort": 8080, "containerPort": 80, "protocol": "tcp"});
    let change = json!({"gatewayModeIPv4": "nat", "gatewayModeIPv6": "routed", "icc": false,
        "runtimeConfig": {"portMappings": [mapping]}});
    conf::with(&masqueraded("nftables"), change)
}

fn dnsname() -> Value {
    let mut conf = conf::plugin("dnsname");
    conf["domainName"] = "pods.internal".into();
    // A resolver would be a process that outlives the call.
    conf["resolver"] = "service".into();
    conf["runtimeConfig"] = json!({"aliases": {"testnet": ["web"]}});
    conf
}

fn bandwidth() -> Value {
    let mut conf = conf::plugin("bandwidth");
    let limits = json!({"ingressRate": 8_000_000, "ingressBurst": u32::MAX,
        "egressRate": 8_000_000, "egressBurst": u32::MAX,
        "unshapedSubnets": ["192.0.2.0/24", "fd02::/64"]});
    conf["runtimeConfig"] = json!({"bandwidth": limits});
    conf
}

fn ptp(back_end: &str) -> Value {
    let change = json!({"ipMasq": true, "ipMasqBackend": back_end});
    conf::with(&conf::ptp(&["10.1.0.0/24", "fd01::/64"]), change)
}

fn routed_ptp() -> Value {
    let routes = json!([{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]);
    let conf = conf::ptp(&["10.1.0.0/24", "fd01::/64"]);
    conf::with(&conf, json!({"ipam": {"routes": routes}}))
}

fn macvlan() -> Value {
    let mut conf = conf::plugin("macvlan");
    conf["master"] = "wire".into();
    conf["ipam"] = conf::host_local_ipam(&["192.0.2.0/24"]);
    conf
}

fn ipvlan() -> Value {
    let mut conf = conf::plugin("ipvlan");
    conf["master"] = "wire".into();
    conf["ipam"] = conf::host_local_ipam(&["192.0.2.0/24"]);
    conf
}

fn vrf() -> Value {
    let mut conf = conf::plugin("vrf");
    conf["vrfname"] = "blue".into();
    conf
}

fn vlan() -> Value {
    let mut conf = conf::plugin("vlan");
    conf["master"] = "wire".into();
    conf["vlanId"] = 5.into();
    conf["ipam"] = conf::host_local_ipam(&["10.1.0.0/24", "fd01::/64"]);
    conf
}

fn dummy() -> Value {
    let mut conf = conf::plugin("dummy");
    conf["ipam"] = conf::host_local_ipam(&["10.1.0.0/24", "fd01::/64"]);
    conf
}

fn shimmed() -> Value {
    // No address of the pool, all of which a long sweep hands out.
    let shim = json!({"name": "shim0", "address": "198.51.100.1/32"});
    conf::with(&macvlan(), json!({"hostShim": shim}))
}

fn host_device() -> Value {
    let mut conf = conf::plugin("host-device");
    conf["device"] = "dev0".into();
    conf["ipam"] = conf::host_local_ipam(&["10.1.0.0/24", "fd01::/64"]);
    conf
}

fn tap() -> Value {
    let mut conf = conf::plugin("tap");
    conf["owner"] = 0.into();
    conf["group"] = 0.into();
    conf["mtu"] = 1400.into();
    conf["mac"] = "02:00:00:00:00:07".into();
    conf["ipam"] = conf::host_local_ipam(&["10.1.0.0/24", "fd01::/64"]);
    conf
}

fn vxlan() -> Value {
    let mut conf = conf::plugin("vxlan");
    conf["vni"] = 5.into();
    conf["ipMasq"] = true.into();
    conf["macspoofchk"] = true.into();
    conf["peers"] = json!([{"vtep": "192.0.2.2", "subnet": "10.5.2.0/24"}, {"vtep": "192.0.2.3", "subnet": "10.5.3.0/24"}]);
    conf["ipam"] = conf::host_local_ipam(&["10.5.1.0/24"]);
    conf
}

/// A network whose addresses are unique in a cluster.
fn clustered() -> Value {
    let ranges = json!([[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd01::/64"}]]);
    let ipam = json!({"type": "cluster", "ranges": ranges, "coolDownSeconds": 0});
    conf::with(&conf::bridge(&[]), json!({"ipam": ipam}))
}

/// A network whose addresses are those of the segment that `key` names the node's end of.
fn leasing(kind: &str, key: &str, link: &str) -> Value {
    let mut conf = conf::plugin(kind);
    conf[key] = link.into();
    conf["ipam"] = json!({"type": "dhcp"});
    conf
}

fn leased(chain: Chain) -> Chain {
    Chain {
        dhcp: true,
        ..chain
    }
}

/// On a node whose interface has a carrier and no other traffic.
fn wired(chain: Chain) -> Chain {
    let setup = "sysctl -qw net.ipv6.conf.default.disable_ipv6=1
        ip link add wire type veth peer name far
        sysctl -qw net.ipv6.conf.default.disable_ipv6=0
        ip link set wire up
        ip link set far up
        ip addr add 192.0.2.1/24 dev wire
        ip route add default via 192.0.2.254";
    Chain { setup, ..chain }
}

fn masqueraded(back_end: &str) -> Value {
    let change = json!({"ipMasq": true, "ipMasqBackend": back_end});
    conf::with(&conf::bridge(&["10.1.0.0/24", "fd01::/64"]), change)
}

fn alone(name: &'static str, victim: Value) -> Chain {
    Chain {
        name,
        setup: "",
        prefix: Vec::new(),
        victim,
        suffix: Vec::new(),
        whole: false,
        program: None,
        back_end: None,
        pod_ends: "",
        in_pod: false,
        cold: false,
        dhcp: false,
        agent: false,
        keeps: false,
    }
}

fn with(back_end: BackEnd, chain: Chain) -> Chain {
    Chain {
        back_end: Some(back_end),
        ..chain
    }
}

fn published(name: &'static str, back_end: BackEnd) -> Chain {
    Chain {
        prefix: vec![conf::bridge(&["10.1.0.0/24", "fd01::/64"])],
        ..with(back_end, alone(name, portmap(back_end)))
    }
}

/// The usual list on nodes without nf_tables; faults are injected into one of its plugins.
fn whole(name: &'static str, victim: usize) -> Chain {
    let back_end = BackEnd::IptablesNft;
    let list = [masqueraded(back_end.name()), portmap(back_end)];
    Chain {
        prefix: list[..victim].to_vec(),
        suffix: list[victim + 1..].to_vec(),
        whole: true,
        ..with(back_end, alone(name, list[victim].clone()))
    }
}

fn walled(name: &'static str, back_end: BackEnd) -> Chain {
    let mut firewall = conf::plugin("firewall");
    firewall["backend"] = back_end.name().into();
    firewall["ingressPolicy"] = "isolated".into();
    Chain {
        prefix: vec![conf::bridge(&["10.1.0.0/24", "fd01::/64"])],
        ..with(back_end, alone(name, firewall))
    }
}

fn tuning() -> Value {
    let keys = json!({
        "sysctl": {"net.core.somaxconn": "500"},
        "mac": "02:00:00:00:00:07",
        "mtu": 1400,
        "promisc": true,
        "allmulti": true,
        "txQLen": 500,
    });
    conf::with(&conf::plugin("tuning"), keys)
}

fn portmap(back_end: BackEnd) -> Value {
    let mut portmap = conf::plugin("portmap");
    portmap["backend"] = back_end.name().into();
    let tcp = json!({"hostPort": 8080, "containerPort": 80, "protocol": "tcp"});
    let udp = json!({"hostPort": 9090, "containerPort": 53, "protocol": "udp"});
    portmap["runtimeConfig"] = json!({"portMappings": [tcp, udp]});
    portmap
}
