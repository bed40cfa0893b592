//! `podwire validate` and the plugins agree: what a plugin refuses of its configuration, validate
//! calls an error, and nothing else.

use sandbox::{Netns, Sandbox, Suite, beyond_peer, conf, conf_of};
use serde_json::{Value, json};

const WHY: &str = "validate is podwire's";

/// A configuration of one plugin, and what of it a case changes.
struct Subject {
    plugin: &'static str,
    /// Where the keys are: a JSON pointer to an object.
    place: &'static str,
    keys: &'static [&'static str],
}

const SUBJECTS: &[Subject] = &[
    Subject {
        plugin: "bridge",
        place: "",
        keys: &[
            "bridge",
            "isGateway",
            "isDefaultGateway",
            "forceAddress",
            "ipMasq",
            "ipMasqBackend",
            "ipMasqRandomFully",
            "ipMasqExcept",
            "ipMasqFamilies",
            "mtu",
            "hairpinMode",
            "promiscMode",
            "vlan",
            "vlanTrunk",
            "preserveDefaultVlan",
            "macspoofchk",
            "detectConflicts",
            "enabledad",
            "disableContainerInterface",
            "portIsolation",
            "gatewayModeIPv4",
            "gatewayModeIPv6",
            "internal",
            "icc",
            "links",
            "runtimeConfig",
            "args",
            "dns",
            "ipam",
            "capabilities",
        ],
    },
    Subject {
        plugin: "bridge",
        place: "/vlanTrunk/0",
        keys: &["minID", "maxID", "id"],
    },
    Subject {
        plugin: "bridge",
        place: "/runtimeConfig",
        keys: &["mac"],
    },
    Subject {
        plugin: "bridge",
        place: "/runtimeConfig/portMappings/0",
        keys: &["hostPort", "containerPort", "protocol", "hostIP"],
    },
    Subject {
        plugin: "bridge",
        place: "/args/cni",
        keys: &["mac"],
    },
    Subject {
        plugin: "bridge",
        place: "/dns",
        keys: &["nameservers", "domain", "search", "options"],
    },
    Subject {
        plugin: "bandwidth",
        place: "",
        keys: &[
            "ingressRate",
            "ingressBurst",
            "egressRate",
            "egressBurst",
            "shapedSubnets",
            "unshapedSubnets",
            "boundBurst",
            "fqCodel",
            "runtimeConfig",
        ],
    },
    Subject {
        plugin: "bandwidth",
        place: "/runtimeConfig/bandwidth",
        keys: &["shapedSubnets", "unshapedSubnets", "ingressRate"],
    },
    Subject {
        plugin: "ptp",
        place: "",
        keys: &[
            "ipMasq",
            "ipMasqBackend",
            "ipMasqRandomFully",
            "ipMasqExcept",
            "ipMasqFamilies",
            "mtu",
            "runtimeConfig",
            "args",
            "dns",
            "ipam",
        ],
    },
    Subject {
        plugin: "ptp",
        place: "/args/cni",
        keys: &["mac"],
    },
    Subject {
        plugin: "macvlan",
        place: "",
        keys: &[
            "dns",
            "ipam",
            "master",
            "mode",
            "mtu",
            "mac",
            "linkInContainer",
            "bcqueuelen",
            "detectConflicts",
            "acceptRA",
            "hostShim",
            "runtimeConfig",
            "args",
        ],
    },
    Subject {
        plugin: "macvlan",
        place: "/hostShim",
        keys: &["name", "address"],
    },
    Subject {
        plugin: "macvlan",
        place: "/args/cni",
        keys: &["mac"],
    },
    Subject {
        plugin: "host-device",
        place: "",
        keys: &[
            "device",
            "hwaddr",
            "kernelpath",
            "pciBusID",
            "DPDKMode",
            "runtimeConfig",
            "args",
            "dns",
            "ipam",
        ],
    },
    Subject {
        plugin: "host-device",
        place: "/runtimeConfig",
        keys: &["deviceID"],
    },
    Subject {
        plugin: "vlan",
        place: "",
        keys: &[
            "dns",
            "ipam",
            "master",
            "vlanId",
            "mtu",
            "linkInContainer",
            "detectConflicts",
        ],
    },
    Subject {
        plugin: "dummy",
        place: "",
        keys: &["dns", "ipam", "prevResult"],
    },
    Subject {
        plugin: "ipvlan",
        place: "",
        keys: &["dns", "ipam", "master", "mode", "mtu", "linkInContainer"],
    },
    Subject {
        plugin: "vrf",
        place: "",
        keys: &["vrfname", "table"],
    },
    Subject {
        plugin: "tap",
        place: "",
        keys: &[
            "multiQueue",
            "mtu",
            "mac",
            "owner",
            "group",
            "selinuxContext",
            "bridge",
            "runtimeConfig",
            "args",
            "dns",
            "ipam",
        ],
    },
    Subject {
        plugin: "tap",
        place: "/args/cni",
        keys: &["mac"],
    },
    Subject {
        plugin: "vxlan",
        place: "",
        keys: &[
            "dns",
            "ipam",
            "mode",
            "vni",
            "port",
            "dev",
            "local",
            "underlay",
            "peers",
            "group",
            "ttl",
            "learning",
            "mtu",
            "gbp",
            "udpChecksum",
            "mac",
            "bridge",
            "isGateway",
            "isDefaultGateway",
            "forceAddress",
            "ipMasq",
            "ipMasqBackend",
            "ipMasqRandomFully",
            "ipMasqExcept",
            "ipMasqFamilies",
            "hairpinMode",
            "macspoofchk",
            "enabledad",
            "removeWhenEmpty",
            "gatewayModeIPv4",
            "gatewayModeIPv6",
            "internal",
            "icc",
            "links",
            "runtimeConfig",
            "args",
        ],
    },
    Subject {
        plugin: "vxlan",
        place: "/peers/0",
        keys: &["vtep", "mac", "subnet"],
    },
    Subject {
        plugin: "portmap",
        place: "",
        keys: &[
            "backend",
            "snat",
            "masqAll",
            "markMasqBit",
            "externalSetMarkChain",
            "conditionsV4",
            "conditionsV6",
            "reservedPorts",
            "runtimeConfig",
        ],
    },
    Subject {
        plugin: "portmap",
        place: "/runtimeConfig/portMappings/0",
        keys: &["hostPort", "containerPort", "protocol", "hostIP"],
    },
    Subject {
        plugin: "firewall",
        place: "",
        keys: &[
            "backend",
            "iptablesAdminChainName",
            "firewalldZone",
            "ingressPolicy",
            "isolatePublishedPorts",
        ],
    },
    Subject {
        plugin: "dnsname",
        place: "",
        keys: &[
            "domainName",
            "ttl",
            "servers",
            "listen",
            "records",
            "internal",
            "resolver",
            "runtimeConfig",
        ],
    },
    Subject {
        plugin: "dnsname",
        place: "/records/0",
        keys: &["name", "addresses", "cname", "srv", "txt"],
    },
    Subject {
        plugin: "dnsname",
        place: "/runtimeConfig",
        keys: &["aliases", "dns"],
    },
    Subject {
        plugin: "tuning",
        place: "",
        keys: &[
            "sysctl",
            "mac",
            "promisc",
            "mtu",
            "allmulti",
            "txQLen",
            "dataDir",
            "runtimeConfig",
            "args",
        ],
    },
    Subject {
        plugin: "tuning",
        place: "/args/cni",
        keys: &["sysctl", "mac", "promisc", "mtu", "allmulti", "txQLen"],
    },
    Subject {
        plugin: "tuning",
        place: "/sysctl",
        keys: &["net.core.somaxconn", "kernel.panic", ""],
    },
    Subject {
        plugin: "sbr",
        place: "",
        keys: &["table", "gateways", "addSourceHints"],
    },
    Subject {
        plugin: "loopback",
        place: "",
        keys: &["dns", "ipam", "capabilities", "args"],
    },
    Subject {
        plugin: "host-local",
        place: "/ipam",
        keys: &[
            "ranges",
            "subnet",
            "rangeStart",
            "rangeEnd",
            "gateway",
            "routes",
            "dataDir",
            "requestOutsideRange",
        ],
    },
    Subject {
        plugin: "host-local",
        place: "/ipam/ranges/0/0",
        keys: &["subnet", "rangeStart", "rangeEnd", "gateway"],
    },
    Subject {
        plugin: "host-local",
        place: "/ipam/routes/0",
        keys: &["gw", "mtu", "advmss", "priority", "table", "scope"],
    },
    Subject {
        plugin: "dhcp",
        place: "/ipam",
        keys: &[
            "daemonSocketPath",
            "priority",
            "provide",
            "request",
            "suppress",
            "routes",
            "dns",
        ],
    },
    Subject {
        plugin: "dhcp",
        place: "/ipam/provide/0",
        keys: &["option", "value", "fromArg"],
    },
    Subject {
        plugin: "dhcp",
        place: "/ipam/request/0",
        keys: &["option", "skipDefault"],
    },
    Subject {
        plugin: "cluster",
        place: "/ipam",
        keys: &[
            "ranges",
            "subnet",
            "rangeStart",
            "rangeEnd",
            "gateway",
            "exclude",
            "reserved",
            "pool",
            "blockSize",
            "blockSizeIPv6",
            "coolDownSeconds",
            "sticky",
            "routes",
            "agent",
            "dataDir",
        ],
    },
    Subject {
        plugin: "static",
        place: "/ipam",
        keys: &["addresses", "routes", "dns"],
    },
    Subject {
        plugin: "static",
        place: "/ipam/addresses/0",
        keys: &["address", "gateway", "version"],
    },
    Subject {
        plugin: "static",
        place: "/ipam/dns",
        keys: &["nameservers", "domain"],
    },
];

/// Values of every kind. Those that no plugin takes are no less interesting.
fn values() -> Vec<Value> {
    let texts = [
        "",
        "x",
        "auto",
        "TCP",
        "l2",
        "passthru",
        "nftables",
        "a-name-that-is-too-long",
        "1500",
        "10.1.0.9",
        "10.1.0.255",
        "10.1.0.0/24",
        "10.1.0.9/24",
        "10.1.0.0/33",
        "fd00::1",
        "fd00::/64",
        "192.0.2.77",
        "239.1.1.1",
        "02-00-00-00-00-01",
        "01:00:5e:00:00:01",
        "00:00:00:00:00:00",
    ];
    let others = [
        "null",
        "true",
        "0",
        "1",
        "-1",
        "4095",
        "65536",
        "4294967296",
        "18446744073709551616",
        // What libcni makes an integer of, and a plugin does not.
        "1500.0",
        "1e3",
        "1.5",
        "[]",
        "{}",
        "[1]",
        "[\"x\"]",
        "[\"10.1.0.0/24\"]",
        "[\"-d\", \"10.9.0.0/16\"]",
        "[{}]",
        "[null]",
        "[[]]",
        "{\"x\": 1}",
        "{\"mac\": 1}",
        "{\"cni\": {\"mac\": \"x\"}}",
    ];
    let others = others.map(|text| serde_json::from_str(text).expect("JSON"));
    texts.map(Value::from).into_iter().chain(others).collect()
}

/// What a plugin says of the node with the code of a bad configuration: validate does not
/// look at the node.
const ABOUT_THE_NODE: [&str; 7] = [
    "default route to take it from",
    "there is no interface",
    "is no address of this node",
    "is in use with other parameters",
    "has no IPv6 address",
    "must be [0, master MTU(",
    "is what 1500 of eth1",
];

/// A configuration that its plugin takes, with everything in it that a case changes.
fn whole(plugin: &str) -> Value {
    let change = match plugin {
        "host-local" => json!({"ipam": {"routes": [{"dst": "0.0.0.0/0"}]}}),
        "static" => json!({"ipam": {"dns": {"domain": "x"}}}),
        "macvlan" => {
            json!({"hostShim": {"name": "shim0", "address": "192.0.2.250/32"}})
        }
        "vxlan" => json!({"mode": "l2", "removeWhenEmpty": true, "peers": [{"vtep": "192.0.2.7"}]}),
        _ => json!({}),
    };
    let conf = match plugin {
        "host-local" => conf::host_local(&["10.1.0.0/24"]),
        other => conf_of(other),
    };
    conf::at(&conf::with(&conf, change), "1.0.0")
}

/// Sets a member of the object at `place`, which is made when it is not there.
fn put(conf: &mut Value, place: &str, key: &str, value: Value) {
    let mut at = conf;
    for part in place.split('/').skip(1) {
        at = match part.parse::<usize>() {
            Ok(index) => {
                if !at.is_array() {
                    *at = json!([{}]);
                }
                &mut at[index]
            }
            Err(_) => &mut at[part],
        };
    }
    at[key] = value;
}

/// As the file of a network: some plugins come after another one.
fn file(conf: &Value) -> (Value, &'static str) {
    let chained = [
        "bandwidth",
        "portmap",
        "firewall",
        "tuning",
        "sbr",
        "vrf",
        "dnsname",
    ];
    if !chained.map(Value::from).contains(&conf["type"]) {
        return (conf.clone(), "conf");
    }
    let plugins = json!([{"type": "mine"}, conf::with(conf, json!({"prevResult": null}))]);
    let list = json!({"cniVersion": "1.0.0", "name": conf["name"], "plugins": plugins});
    (list, "conflist")
}

/// The errors of each configuration, as validate tells them.
fn errors(sandbox: &Sandbox, confs: &[Value]) -> Vec<Vec<String>> {
    let dir = sandbox.dir().join("validated");
    for (number, conf) in confs.iter().enumerate() {
        let (document, ending) = file(conf);
        let name = format!("{number:06}.{ending}");
        sandbox.write(dir.join(name), document.to_string());
    }
    let podwire = Suite::Ours.dir().join("podwire").display().to_string();
    let dir = dir.display().to_string();
    let done = sandbox.host().run(&[&podwire, "validate", "--json", &dir]);
    let report: Value =
        serde_json::from_str(&done.stdout).unwrap_or_else(|e| panic!("{e}: {done:?}"));
    let files = report["files"].as_array().expect("files");
    assert_eq!(files.len(), confs.len());
    let errors = |file: &Value| {
        let findings = file["findings"].as_array().expect("findings").iter();
        let errors = findings.filter(|it| it["severity"] == "error");
        errors
            .map(|it| format!("{}: {}", it["path"], it["reason"]))
            .collect()
    };
    files.iter().map(errors).collect()
}

/// What the plugin makes of a configuration at ADD.
#[derive(Debug, PartialEq)]
enum Made {
    /// A pod with a network.
    Good,
    /// The configuration is at fault.
    Refused,
    /// The node is, or the kernel.
    Failed,
}

/// Tries an ADD, and returns the plugin's error.
fn add(sandbox: &Sandbox, pod: &Netns, conf: &Value) -> (Made, String) {
    let plugin = conf["type"].as_str().expect("a type");
    let added = sandbox.cni(plugin).add(conf, pod, "eth0");
    let made = match added.code() {
        0 => (Made::Good, String::new()),
        _ => {
            let error = added.error();
            let msg = format!("{} {}", error.msg, error.details);
            let about_the_node = ABOUT_THE_NODE.iter().any(|text| msg.contains(text));
            if error.code == 7 && !about_the_node {
                (Made::Refused, msg)
            } else {
                (Made::Failed, msg)
            }
        }
    };
    sandbox.cni(plugin).del(conf, pod, "eth0");
    made
}

/// Asks both for every value of every key of these places of a plugin.
fn agree(plugin: &str, refused_at_least: usize) {
    beyond_peer(WHY, || {
        let mut differences = Vec::new();
        let (mut refused, mut good) = (0, 0);
        for subject in SUBJECTS.iter().filter(|it| it.plugin == plugin) {
            let sandbox = Sandbox::new();
            // Without their daemon, these fail where the configuration is good, rather than wait.
            let without_daemon = ["cluster", "dhcp"].contains(&plugin);
            let _daemon = (!without_daemon).then(|| sandbox.make_ready(plugin));
            let pod = sandbox.pod("a");
            let mut cases = vec![whole(plugin)];
            for key in subject.keys {
                for value in values() {
                    let mut conf = whole(plugin);
                    put(&mut conf, subject.place, key, value);
                    cases.push(conf);
                }
            }
            let reported = errors(&sandbox, &cases);
            assert_eq!(reported[0], [] as [&str; 0], "{}", cases[0]);
            for (conf, errors) in cases.iter().zip(reported) {
                let (made, message) = add(&sandbox, &pod, conf);
                let agreed = match made {
                    Made::Good => errors.is_empty(),
                    Made::Failed if without_daemon => errors.is_empty(),
                    Made::Refused => !errors.is_empty(),
                    // Validate may know that the kernel will refuse it.
                    Made::Failed => true,
                };
                refused += usize::from(made == Made::Refused);
                good += usize::from(made == Made::Good);
                if !agreed {
                    differences.push(format!(
                        "{conf}\n    {made:?}: {message}\n    validate: {errors:?}"
                    ));
                }
            }
        }
        let all = differences.join("\n");
        assert!(
            differences.is_empty(),
            "{} differences:\n{all}",
            differences.len()
        );
        // Where the kernel lacks the kind of link, no ADD succeeds: `tests/vm/run` has such a kernel.
        let may_succeed =
            !["cluster", "dhcp"].contains(&plugin) && sandbox::row(plugin).runs_here();
        assert!(
            refused >= refused_at_least && (good > 0 || !may_succeed),
            "{refused} refused, {good} good"
        );
    });
}

#[test]
fn validate_and_bridge_agree_on_every_value_of_every_key() {
    agree("bridge", 800);
}

#[test]
fn validate_and_bandwidth_agree_on_every_value_of_every_key() {
    agree("bandwidth", 200);
}

#[test]
fn validate_and_ptp_agree_on_every_value_of_every_key() {
    agree("ptp", 200);
}

#[test]
fn validate_and_macvlan_agree_on_every_value_of_every_key() {
    agree("macvlan", 250);
}

#[test]
fn validate_and_host_device_agree_on_every_value_of_every_key() {
    agree("host-device", 30);
}

#[test]
fn validate_and_vlan_agree_on_every_value_of_every_key() {
    agree("vlan", 100);
}

#[test]
fn validate_and_dummy_agree_on_every_value_of_every_key() {
    agree("dummy", 30);
}

#[test]
fn validate_and_tap_agree_on_every_value_of_every_key() {
    agree("tap", 100);
}

#[test]
fn validate_and_vxlan_agree_on_every_value_of_every_key() {
    agree("vxlan", 900);
}

#[test]
fn validate_and_portmap_agree_on_every_value_of_every_key() {
    agree("portmap", 300);
}

#[test]
fn validate_and_firewall_agree_on_every_value_of_every_key() {
    agree("firewall", 100);
}

#[test]
fn validate_and_dnsname_agree_on_every_value_of_every_key() {
    agree("dnsname", 200);
}

#[test]
fn validate_and_tuning_agree_on_every_value_of_every_key() {
    agree("tuning", 300);
}

#[test]
fn validate_and_ipvlan_agree_on_every_value_of_every_key() {
    agree("ipvlan", 100);
}

#[test]
fn validate_and_vrf_agree_on_every_value_of_every_key() {
    agree("vrf", 50);
}

#[test]
fn validate_and_sbr_agree_on_every_value_of_every_key() {
    agree("sbr", 100);
}

#[test]
fn validate_and_loopback_agree_on_every_value_of_every_key() {
    agree("loopback", 70);
}

#[test]
fn validate_and_host_local_agree_on_every_value_of_every_key() {
    agree("host-local", 500);
}

#[test]
fn validate_and_cluster_agree_on_every_value_of_every_key() {
    agree("cluster", 400);
}

#[test]
fn validate_and_static_agree_on_every_value_of_every_key() {
    agree("static", 200);
}

#[test]
fn validate_and_dhcp_agree_on_every_value_of_every_key() {
    agree("dhcp", 200);
}

/// Values that decide about the node's own files are not tried.
const NOT_TRIED: [&str; 1] = ["resolvConf"];

#[test]
fn every_documented_key_is_tried() {
    for row in sandbox::table().iter().filter(|it| it.has_keys()) {
        let (folder, plugin) = (&row.folder, &row.name);
        let page = format!(
            "{}/../{folder}/{plugin}/README.md",
            env!("CARGO_MANIFEST_DIR")
        );
        let page = std::fs::read_to_string(&page).expect("a page of the project");
        let keys = page.split("## Keys").nth(1).expect("a section of keys");
        let keys = keys.split("\n## ").next().unwrap_or_default();
        let first_table = keys.split("\n\n").find(|it| it.starts_with("| key "));
        let rows = first_table.expect("a table of keys").lines().skip(2);
        let cells = rows.filter_map(|row| row.split('|').nth(1));
        let is_tried = |key: &str| {
            let mut subjects = SUBJECTS.iter().filter(|it| it.plugin == plugin);
            subjects.any(|it| it.keys.contains(&key)) || NOT_TRIED.contains(&key)
        };
        let mut found = 0;
        for key in cells.flat_map(|cell| cell.split('`').skip(1).step_by(2)) {
            found += 1;
            assert!(is_tried(key), "{plugin}: {key}");
        }
        assert!(found > 1, "{plugin}: {found} keys");
    }
}

/// What only shows when keys are looked at together: whether ADD can succeed.
#[test]
fn validate_and_bridge_agree_on_gateways() {
    beyond_peer(WHY, || {
        let ranges = |sets: &[&[&str]]| -> Value {
            let set = |set: &&[&str]| -> Vec<Value> {
                set.iter().map(|subnet| json!({"subnet": subnet})).collect()
            };
            json!({"type": "host-local", "ranges": sets.iter().map(set).collect::<Vec<_>>()})
        };
        let addresses = |all: &[(&str, &str)]| -> Value {
            let address =
                |(address, gateway): &(&str, &str)| json!({"address": address, "gateway": gateway});
            json!({"type": "static", "addresses": all.iter().map(address).collect::<Vec<_>>()})
        };
        let (v4, other_v4, v6, other_v6) = ("10.1.0.0/24", "10.2.0.0/24", "fd01::/64", "fd02::/64");
        let router =
            json!({"type": "host-local", "ranges": [[{"subnet": v6, "gateway": "fe80::1"}]]});
        for (ipam, change, works) in [
            (ranges(&[&[v4], &[other_v4]]), json!({}), false),
            (
                ranges(&[&[v4], &[other_v4]]),
                json!({"isGateway": false}),
                true,
            ),
            (
                ranges(&[&[v4], &[other_v4]]),
                json!({"isGateway": false, "isDefaultGateway": true}),
                false,
            ),
            (
                ranges(&[&[v4], &[other_v4]]),
                json!({"forceAddress": true}),
                true,
            ),
            (ranges(&[&[v4], &[v6], &[other_v6]]), json!({}), true),
            (ranges(&[&[v4, other_v4], &[v6]]), json!({}), true),
            (
                ranges(&[&["fd01::/64"], &["fd01:0:0:1::/64"]]),
                json!({}),
                true,
            ),
            (
                addresses(&[("10.1.0.2/24", "10.1.0.1"), ("10.2.0.2/24", "10.2.0.1")]),
                json!({}),
                false,
            ),
            (
                addresses(&[("10.1.0.2/24", "10.1.0.1"), ("10.1.0.3/24", "10.1.0.1")]),
                json!({}),
                true,
            ),
            (
                addresses(&[("10.1.0.2/24", ""), ("10.1.0.3/24", "10.1.0.9")]),
                json!({}),
                false,
            ),
            (
                addresses(&[("fd01::2/64", "fd01::1"), ("fd01::3/48", "fd01::1")]),
                json!({}),
                false,
            ),
            (
                addresses(&[("10.1.0.2/24", "10.1.0.1"), ("10.1.0.2/24", "10.1.0.1")]),
                json!({}),
                false,
            ),
            (ranges(&[&[v4]]), json!({"bridge": "all"}), false),
            (ranges(&[&[v4]]), json!({"bridge": "br%d"}), false),
            (router.clone(), json!({}), true),
            (router, json!({"isDefaultGateway": true}), true),
        ] {
            let sandbox = Sandbox::new();
            let pod = sandbox.pod("a");
            let mut conf = conf::with(&conf::at(&conf::bridge(&[]), "1.0.0"), change);
            conf["ipam"] = ipam;
            let reported = errors(&sandbox, std::slice::from_ref(&conf)).remove(0);
            let (made, message) = add(&sandbox, &pod, &conf);
            assert_eq!(reported.is_empty(), works, "{conf}: {reported:?}");
            assert_eq!(made == Made::Good, works, "{conf}: {made:?}: {message}");
        }
    });
}

/// What only shows when the peers and the pods' own addresses are looked at together.
#[test]
fn validate_and_vxlan_agree_on_subnets() {
    beyond_peer(WHY, || {
        let ranges = |subnets: &[&str]| -> Value {
            let all: Vec<_> = subnets.iter().map(|it| json!({"subnet": it})).collect();
            json!({"type": "host-local", "ranges": [all]})
        };
        let at = |address: &str| json!({"type": "static", "addresses": [{"address": address}]});
        for (ipam, vtep, subnet, works) in [
            (ranges(&["10.5.1.0/24"]), "192.0.2.7", "10.5.2.0/24", true),
            (ranges(&["10.5.1.0/24"]), "192.0.2.7", "10.5.0.0/16", false),
            (at("10.5.1.2/16"), "192.0.2.7", "10.5.2.0/24", false),
            (ranges(&["10.5.1.0/24"]), "10.5.1.7", "10.5.2.0/24", false),
            (ranges(&["fd05:1::/64"]), "192.0.2.7", "fd05:1::/48", false),
            (ranges(&["fd05:1::/64"]), "192.0.2.7", "fd05:2::/64", true),
            // Until the first range is full.
            (
                ranges(&["10.5.1.0/24", "10.5.2.0/24"]),
                "192.0.2.7",
                "10.5.2.0/24",
                true,
            ),
            (ranges(&["10.5.1.0/24"]), "192.0.2.7", "127.0.0.0/8", false),
            (ranges(&["10.5.1.0/24"]), "192.0.2.7", "224.0.0.0/4", false),
            (ranges(&["10.5.1.0/24"]), "192.0.2.7", "fe80::/10", false),
            (ranges(&["10.5.1.0/24"]), "192.0.2.7", "::1/128", false),
        ] {
            let sandbox = Sandbox::new();
            let _ready = sandbox.make_ready("vxlan");
            let pod = sandbox.pod("a");
            let mut conf = whole("vxlan");
            conf["mode"] = json!("l3");
            conf["peers"] = json!([{"vtep": vtep, "subnet": subnet}]);
            conf["ipam"] = ipam;
            let reported = errors(&sandbox, std::slice::from_ref(&conf)).remove(0);
            let (made, message) = add(&sandbox, &pod, &conf);
            assert_eq!(reported.is_empty(), works, "{conf}: {reported:?}");
            let right = if works { Made::Good } else { Made::Refused };
            assert_eq!(made, right, "{conf}: {message}");
        }
    });
}

/// A plugin takes the last of several values that is not null; validate does not mind those
/// before it.
#[test]
fn validate_and_bridge_agree_on_keys_that_are_written_twice() {
    beyond_peer(WHY, || {
        let sandbox = Sandbox::new();
        let pod = sandbox.pod("a");
        let podwire = Suite::Ours.dir().join("podwire").display().to_string();
        for (keys, works) in [
            (r#""mtu": "x", "mtu": 1400"#, true),
            (r#""mtu": 1400, "MTU": "x""#, false),
            (r#""mtu": 1400, "mtu": null"#, true),
            (r#""mtu": "x", "mtu": null"#, false),
            (r#""isGateway": 1, "isgateway": true"#, true),
            (
                r#""args": {"cni": {"mac": "x"}}, "args": {"cni": {"mac": "02:00:00:00:00:01"}}"#,
                true,
            ),
            (
                r#""args": {"cni": {"mac": "x"}}, "args": {"cni": {}}"#,
                false,
            ),
            (r#""args": {"cni": {"mac": "x"}}, "args": 5"#, false),
            (
                r#""ipam": {"type": "host-local", "subnet": 5}, "ipam": {"subnet": "10.1.0.0/24"}"#,
                true,
            ),
        ] {
            let text = format!(
                r#"{{"cniVersion": "1.0.0", "name": "testnet", "type": "bridge", {keys}}}"#
            );
            let file = sandbox.dir().join("n.conf");
            sandbox.write(&file, &text);
            let file = file.display().to_string();
            let done = sandbox.host().run(&[&podwire, "validate", &file]);
            assert_eq!(done.code == 0, works, "{keys}: {done:?}");
            let conf = json!({"type": "bridge"});
            let made = sandbox
                .cni("bridge")
                .stdin(text.clone())
                .add(&conf, &pod, "eth0");
            assert_eq!(made.code() == 0, works, "{keys}: {made}");
            sandbox.cni("bridge").stdin(text).del(&conf, &pod, "eth0");
        }
    });
}

/// The text that validate prints for a network.
fn validated(document: &Value) -> String {
    let sandbox = Sandbox::new();
    let file = sandbox.dir().join("n.conflist");
    sandbox.write(&file, document.to_string());
    let podwire = Suite::Ours.dir().join("podwire").display().to_string();
    let done = sandbox
        .host()
        .run(&[&podwire, "validate", &file.display().to_string()]);
    assert_eq!(done.code, 0, "{done:?}");
    done.stdout
}

#[test]
fn a_warning_is_deserved() {
    beyond_peer(WHY, || {
        let list = |ipam: Value| {
            let plugin = json!({"type": "macvlan", "master": "eth1", "ipam": ipam});
            json!({"cniVersion": "1.0.0", "name": "n", "plugins": [plugin]})
        };
        let range = |keys: Value| {
            let range = conf::with(&json!({"subnet": "10.1.0.0/24"}), keys);
            validated(&list(json!({"type": "host-local", "ranges": [[range]]})))
        };
        let fine = "1 file: 0 errors, 0 warnings\n";
        assert_eq!(range(json!({})), fine);
        assert_eq!(
            range(json!({"rangeStart": "10.1.0.1", "rangeEnd": "10.1.0.254"})),
            fine
        );
        assert_eq!(
            range(json!({"subnet": "fd00::/64", "gateway": "fe80::1"})),
            fine
        );
        let outside = json!({"type": "static", "addresses": [{"address": "fd00::9/64", "gateway": "fe80::1"}]});
        assert_eq!(validated(&list(outside)), fine);
        for (keys, key) in [
            (
                json!({"rangeStart": "10.1.0.0"}),
                "rangeStart: 10.1.0.0 is the network's own",
            ),
            (
                json!({"rangeEnd": "10.1.0.255"}),
                "rangeEnd: 10.1.0.255 is the broadcast",
            ),
            (
                json!({"subnet": "fd00::/64", "rangeStart": "fd00::"}),
                "rangeStart: fd00:: is the address of all routers",
            ),
            (
                json!({"gateway": "10.2.0.1"}),
                "gateway: 10.2.0.1 is not in",
            ),
            (json!({"gateway": "fe80::1"}), "gateway: fe80::1 is not in"),
        ] {
            let text = range(keys);
            assert!(text.contains(key) && text.contains("warning"), "{text}");
        }
    });
}

#[test]
fn what_runtimes_write_into_their_networks_is_known() {
    beyond_peer(WHY, || {
        let plugin = json!({"type": "bridge", "ipam": conf::host_local_ipam(&["10.1.0.0/24"])});
        let text = validated(&json!({
            "cniVersion": "1.0.0", "name": "n", "plugins": [plugin],
            "nerdctlID": "17f29b073143d8cd97b5bbe492bdeffec1c5fee55cc1fe2112c8b9335f8b6121",
            "nerdctlLabels": {"nerdctl/default-network": "true"},
            "args": {"podman_labels": {"x": "y"}},
        }));
        assert_eq!(text, "1 file: 0 errors, 0 warnings\n");
    });
}
