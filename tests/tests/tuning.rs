//! tuning: kernel settings and link attributes of the pod, what the result says of them, and what
//! DEL gives back.

use std::ops::Deref;
use std::time::Duration;

use sandbox::{Cni, Netns, Sandbox, Suite, beyond_peer, conf, container_id, newest, supports};
use serde_json::{Value, json};

const OLD_MAC: &str = "02:00:00:00:00:01";
const NEW_MAC: &str = "c2:11:22:33:44:55";

/// A node with a pod that has an interface eth0.
struct Node {
    sandbox: Sandbox,
    pod: Netns,
}

impl Deref for Node {
    type Target = Sandbox;

    fn deref(&self) -> &Sandbox {
        &self.sandbox
    }
}

impl Node {
    fn new() -> Self {
        let sandbox = Sandbox::new();
        let pod = sandbox.pod("a");
        pod.sh(&format!(
            "ip link add eth0 address {OLD_MAC} type veth peer name peer0
             ip link set eth0 up
             ip link set peer0 up"
        ));
        Self { sandbox, pod }
    }

    fn tuning(&self) -> Cni {
        self.cni("tuning")
    }

    fn add(&self, conf: &Value) -> Value {
        self.tuning().add(conf, &self.pod, "eth0").result()
    }

    fn del(&self, conf: &Value) {
        self.tuning().del(conf, &self.pod, "eth0").silent();
    }

    fn file(&self, dir: &str) -> String {
        format!("{dir}/{}_eth0.json", container_id(&self.pod))
    }

    /// What is kept for DEL.
    fn kept(&self) -> Option<String> {
        self.read(self.file("/run/cni/tuning"))
    }

    fn eth0(&self) -> Eth0 {
        let link = self.pod.link("eth0").expect("eth0");
        let has = |flag: &str| {
            link["flags"]
                .as_array()
                .is_some_and(|it| it.contains(&json!(flag)))
        };
        Eth0 {
            mac: link["address"].as_str().expect("a MAC").to_owned(),
            promisc: has("PROMISC"),
            mtu: link["mtu"].as_u64().expect("an MTU"),
            allmulti: has("ALLMULTI"),
            // ip(8) leaves out a zero.
            tx_queue_len: link["txqlen"].as_u64().unwrap_or_default(),
        }
    }
}

#[derive(Debug, PartialEq)]
struct Eth0 {
    mac: String,
    promisc: bool,
    mtu: u64,
    allmulti: bool,
    tx_queue_len: u64,
}

fn original() -> Eth0 {
    Eth0 {
        mac: OLD_MAC.into(),
        promisc: false,
        mtu: 1500,
        allmulti: false,
        tx_queue_len: 1000,
    }
}

/// tuning with these keys, after a plugin that gave eth0 an address.
fn tuning(keys: Value) -> Value {
    let previous = json!({
        "cniVersion": "1.0.0",
        "interfaces": [
            {"name": "veth1", "mac": "02:00:00:00:00:09"},
            {"name": "eth0", "mac": OLD_MAC, "sandbox": "/run/netns/a"},
        ],
        "ips": [{"address": "10.1.0.2/24", "gateway": "10.1.0.1", "interface": 1}],
        "routes": [{"dst": "0.0.0.0/0"}],
    });
    let conf = conf::with(&conf::plugin("tuning"), keys);
    conf::with_prev(&conf, &previous)
}

fn everything() -> Value {
    json!({"mac": NEW_MAC, "promisc": true, "mtu": 1400, "allmulti": true})
}

// ---- attributes of the interface

#[test]
fn attributes_are_set_and_given_back() {
    let node = Node::new();
    let snapshot = node
        .snapshot()
        .allow("dir /run/cni")
        .allow("dir /run/podwire");
    let conf = tuning(everything());
    node.add(&conf);
    let expected = Eth0 {
        mac: NEW_MAC.into(),
        promisc: true,
        mtu: 1400,
        allmulti: true,
        ..original()
    };
    assert_eq!(node.eth0(), expected);
    let kept = format!(
        "{{\n \"mac\": \"{OLD_MAC}\",\n \"promisc\": false,\n \"mtu\": 1500,\n \"allmulti\": false\n}}"
    );
    assert_eq!(node.kept(), Some(kept));
    node.tuning().check(&conf, &node.pod, "eth0").silent();
    node.del(&conf);
    assert_eq!(node.eth0(), original());
    node.del(&conf);
    snapshot.assert_unchanged();
}

#[test]
fn each_attribute_alone_is_set_kept_and_given_back() {
    for (keys, kept) in [
        (
            json!({"mac": NEW_MAC}),
            format!("{{\n \"mac\": \"{OLD_MAC}\"\n}}"),
        ),
        (json!({"promisc": true}), "{\n \"promisc\": false\n}".into()),
        (json!({"mtu": 1400}), "{\n \"mtu\": 1500\n}".into()),
        (
            json!({"allmulti": true}),
            "{\n \"allmulti\": false\n}".into(),
        ),
        (
            json!({"allmulti": false}),
            "{\n \"allmulti\": false\n}".into(),
        ),
    ] {
        let node = Node::new();
        for conf in [tuning(keys.clone()), tuning(json!({"args": {"cni": keys}}))] {
            let before = node.eth0();
            node.add(&conf);
            assert_eq!(
                before != node.eth0(),
                keys != json!({"allmulti": false}),
                "{keys}"
            );
            assert_eq!(node.kept(), Some(kept.clone()), "{keys}");
            node.tuning().check(&conf, &node.pod, "eth0").silent();
            node.del(&conf);
            assert_eq!((node.eth0(), node.kept()), (original(), None), "{keys}");
        }
    }
}

#[test]
fn the_transmit_queue_is_set_and_given_back() {
    beyond_peer("plugins before v1.2 do not have the key", || {
        let node = Node::new();
        let conf = tuning(json!({"txQLen": 5}));
        node.add(&conf);
        assert_eq!(node.eth0().tx_queue_len, 5);
        assert_eq!(node.kept().as_deref(), Some("{\n \"txQLen\": 1000\n}"));
        node.tuning().check(&conf, &node.pod, "eth0").silent();
        node.pod.sh("ip link set eth0 txqueuelen 6");
        let error = node.tuning().check(&conf, &node.pod, "eth0").error();
        let text =
            "Error: Tuning configured Transmit Queue Length of eth0 is 5, current value is 6";
        assert_eq!(error.msg, text);
        node.del(&conf);
        assert_eq!(node.eth0(), original());
        // Zero is a length.
        node.add(&tuning(
            json!({"txQLen": 5, "args": {"cni": {"txQLen": 0}}}),
        ));
        assert_eq!(node.eth0().tx_queue_len, 0);
    });
}

#[test]
fn without_keys_nothing_is_touched() {
    let node = Node::new();
    let snapshot = node.snapshot();
    for keys in [
        json!({}),
        json!({"promisc": false, "mtu": 0, "mac": "", "sysctl": {}}),
        json!({"sysctl": null, "allmulti": null, "args": {"cni": {}}, "runtimeConfig": {}}),
    ] {
        let conf = tuning(keys);
        assert_eq!(node.add(&conf)["ips"], conf["prevResult"]["ips"]);
        node.tuning().check(&conf, &node.pod, "eth0").silent();
        node.del(&conf);
    }
    snapshot.assert_unchanged();
}

#[test]
fn the_mac_is_that_of_args_then_the_runtime_then_cni_args_then_the_key() {
    let node = Node::new();
    let mac = |keys: Value, env: &str| {
        let call = if env.is_empty() {
            node.tuning()
        } else {
            node.tuning().args(env)
        };
        let conf = tuning(keys);
        let result = call.add(&conf, &node.pod, "eth0").result();
        let mac = node.eth0().mac;
        assert_eq!(result["interfaces"][1]["mac"], mac);
        node.del(&conf);
        mac
    };
    let own = json!({"mac": "02:00:00:00:01:01"});
    let runtime = conf::with(&own, json!({"runtimeConfig": {"mac": "02:00:00:00:01:03"}}));
    let args = conf::with(
        &runtime,
        json!({"args": {"cni": {"mac": "02:00:00:00:01:04"}}}),
    );
    let env = "IgnoreUnknown=1;MAC=02:00:00:00:01:02";
    assert_eq!(mac(own.clone(), ""), "02:00:00:00:01:01");
    assert_eq!(mac(own, env), "02:00:00:00:01:02");
    assert_eq!(mac(runtime, env), "02:00:00:00:01:03");
    assert_eq!(mac(args, env), "02:00:00:00:01:04");
}

#[test]
fn the_result_has_the_new_mac_in_every_version() {
    let node = Node::new();
    for version in ["0.3.0", "0.3.1", "0.4.0", "1.0.0"] {
        let conf = tuning(json!({"mac": NEW_MAC, "cniVersion": version}));
        let conf = conf::with(&conf, json!({"prevResult": {"cniVersion": version}}));
        let result = node.add(&conf);
        assert_eq!(result["cniVersion"], version);
        assert_eq!(result["interfaces"][0]["mac"], "02:00:00:00:00:09");
        assert_eq!(result["interfaces"][1]["mac"], NEW_MAC);
        assert_eq!(result["ips"][0]["address"], "10.1.0.2/24");
        assert_eq!(result["routes"], conf["prevResult"]["routes"]);
        node.del(&conf);
    }
}

#[test]
fn the_result_has_the_new_mtu_since_1_1_0() {
    beyond_peer("it leaves the MTU of the result as it was", || {
        let node = Node::new();
        assert!(supports("1.1.0"));
        let conf = conf::at(&tuning(json!({"mtu": 1400})), "1.1.0");
        assert_eq!(node.add(&conf)["interfaces"][1]["mtu"], 1400);
        node.del(&conf);
        let conf = conf::at(&conf, "1.0.0");
        assert_eq!(node.add(&conf)["interfaces"][1]["mtu"], Value::Null);
    });
}

#[test]
fn a_mac_in_any_notation_is_reported_as_the_kernel_does() {
    beyond_peer("its CHECK compares the text of the configuration", || {
        let node = Node::new();
        for mac in ["C2:11:22:33:44:55", "c2-11-22-33-44-55", "c211.2233.4455"] {
            let conf = tuning(json!({"mac": mac}));
            assert_eq!(node.add(&conf)["interfaces"][1]["mac"], NEW_MAC, "{mac}");
            node.tuning().check(&conf, &node.pod, "eth0").silent();
            node.del(&conf);
        }
    });
}

#[test]
fn the_files_may_be_elsewhere() {
    let node = Node::new();
    let conf = tuning(json!({"mtu": 1400, "dataDir": "/run/elsewhere/deep"}));
    node.add(&conf);
    assert_eq!(node.kept(), None);
    let file = node.file("/run/elsewhere/deep");
    assert_eq!(node.read(&file).as_deref(), Some("{\n \"mtu\": 1500\n}"));
    node.del(&conf);
    assert_eq!((node.read(&file), node.eth0()), (None, original()));
}

#[test]
fn a_second_add_keeps_what_the_first_one_found() {
    beyond_peer("reference 8 #18: it keeps the tuned values", || {
        let node = Node::new();
        node.add(&tuning(json!({"mac": NEW_MAC, "mtu": 1400})));
        let second = tuning(json!({"mac": "c2:11:22:33:44:66", "mtu": 1300, "promisc": true}));
        node.add(&second);
        let kept =
            format!("{{\n \"mac\": \"{OLD_MAC}\",\n \"promisc\": false,\n \"mtu\": 1500\n}}");
        assert_eq!(node.kept(), Some(kept));
        node.del(&second);
        assert_eq!(node.eth0(), original());
    });
}

#[test]
fn a_failed_add_gives_everything_back() {
    beyond_peer("it leaves what it has done", || {
        let node = Node::new();
        let snapshot = node
            .snapshot()
            .allow("dir /run/cni")
            .allow("dir /run/podwire");
        // No veth has an MTU that large.
        let change = json!({"mtu": 70000, "sysctl": {"net.ipv4.conf.IFNAME.rp_filter": "2"}});
        let conf = tuning(conf::with(&everything(), change));
        let error = node.tuning().add(&conf, &node.pod, "eth0").error();
        let text = "set eth0 mtu 70000: invalid argument (22): mtu greater than device maximum";
        assert_eq!(error.msg, text);
        assert_eq!((node.eth0(), node.kept()), (original(), None));
        snapshot.assert_unchanged();
        // Nor does it take from a successful one before it.
        let good = tuning(json!({"mtu": 1400}));
        node.add(&good);
        node.tuning().add(&conf, &node.pod, "eth0").error();
        assert_eq!(node.eth0().mtu, 1400);
        node.del(&good);
        snapshot.assert_unchanged();
    });
}

#[test]
fn without_the_interface_add_fails() {
    let node = Node::new();
    let conf = tuning(json!({"mtu": 1400}));
    let error = node.tuning().add(&conf, &node.pod, "eth7").error();
    assert!(
        error.msg.contains("failed to get \"eth7\": Link not found"),
        "{}",
        error.msg
    );
    let error = node.tuning().check(&conf, &node.pod, "eth7").error();
    assert_eq!(error.msg, "Cannot find container link eth7");
    node.tuning().del(&conf, &node.pod, "eth7").silent();
}

// ---- settings of the namespace

const MARTIANS: &str = "net.ipv4.conf.all.log_martians";

#[test]
fn settings_are_those_of_the_pod_only() {
    let node = Node::new();
    let before = node.host().sysctl("net/ipv4/conf/all/log_martians");
    let conf = tuning(json!({"sysctl": {MARTIANS: "1", "net/ipv4/tcp_syncookies": "2"}}));
    node.add(&conf);
    assert_eq!(node.pod.sysctl("net/ipv4/conf/all/log_martians"), "1");
    assert_eq!(node.pod.sysctl("net/ipv4/tcp_syncookies"), "2");
    assert_eq!(node.host().sysctl("net/ipv4/conf/all/log_martians"), before);
    assert_eq!(node.kept(), None);
    node.tuning().check(&conf, &node.pod, "eth0").silent();
    node.pod.sh("sysctl -qw net.ipv4.tcp_syncookies=1");
    let error = node.tuning().check(&conf, &node.pod, "eth0").error();
    let text = "Error: Tuning configured value of /proc/sys/net/ipv4/tcp_syncookies is 2, current value is 1";
    assert_eq!(error.msg, text);
    node.del(&conf);
}

#[test]
fn a_setting_may_name_the_pods_interface() {
    beyond_peer("plugins before v1.2 do not know IFNAME in CHECK", || {
        let node = Node::new();
        node.pod
            .sh("ip link set eth0 down; ip link set eth0 name net1.5; ip link set net1.5 up");
        let by_name = "net/ipv4/conf/net1.5/arp_ignore";
        let conf =
            tuning(json!({"sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1", by_name: "1"}}));
        node.tuning().add(&conf, &node.pod, "net1.5").result();
        assert_eq!(node.pod.sysctl("net/ipv4/conf/net1.5/arp_filter"), "1");
        assert_eq!(node.pod.sysctl(by_name), "1");
        assert_eq!(node.pod.sysctl("net/ipv4/conf/peer0/arp_filter"), "0");
        node.tuning().check(&conf, &node.pod, "net1.5").silent();
        node.tuning().del(&conf, &node.pod, "net1.5").silent();
    });
}

#[test]
fn numbers_may_be_separated_as_they_are_written() {
    beyond_peer("its CHECK wants the kernel's tabs", || {
        let node = Node::new();
        let conf = tuning(json!({"sysctl": {"net.ipv4.ip_local_port_range": "20000 30000"}}));
        node.add(&conf);
        node.tuning().check(&conf, &node.pod, "eth0").silent();
    });
}

#[test]
fn a_setting_that_can_only_be_written_is_no_obstacle() {
    beyond_peer("its CHECK fails to read it", || {
        let node = Node::new();
        let conf = tuning(json!({"sysctl": {"net.ipv4.route.flush": "1"}}));
        node.add(&conf);
        node.tuning().check(&conf, &node.pod, "eth0").silent();
    });
}

#[test]
fn args_add_settings_where_there_are_none() {
    beyond_peer("reference 8 #6: it panics", || {
        let node = Node::new();
        let conf = tuning(json!({"args": {"cni": {"sysctl": {MARTIANS: "1"}}}}));
        node.add(&conf);
        assert_eq!(node.pod.sysctl("net/ipv4/conf/all/log_martians"), "1");
    });
}

#[test]
fn args_replace_settings() {
    let node = Node::new();
    let over = json!({"cni": {"sysctl": {MARTIANS: "1"}}});
    node.add(&tuning(json!({"sysctl": {MARTIANS: "0"}, "args": over})));
    assert_eq!(node.pod.sysctl("net/ipv4/conf/all/log_martians"), "1");
}

#[test]
fn settings_that_are_none_of_a_network_are_refused() {
    let node = Node::new();
    let snapshot = node.snapshot();
    for name in ["kernel.domainname", "net", "vm/swappiness", "netx.y"] {
        let conf = tuning(json!({"sysctl": {name: "1"}}));
        let error = node.tuning().add(&conf, &node.pod, "eth0").error();
        assert!(
            error.msg.starts_with("invalid net sysctl key: "),
            "{}",
            error.msg
        );
    }
    let conf = tuning(json!({"sysctl": {"net.ipv4.no_such_setting": "1"}}));
    let error = node.tuning().add(&conf, &node.pod, "eth0").error();
    assert!(
        error.msg.contains("no such file or directory"),
        "{}",
        error.msg
    );
    snapshot.assert_unchanged();
}

#[test]
fn a_setting_that_is_there_twice_is_refused() {
    beyond_peer("plugins before v1.2 take the last one", || {
        let node = Node::new();
        let text = tuning(json!({"sysctl": {MARTIANS: "1"}})).to_string();
        let one = format!("\"{MARTIANS}\":\"1\"");
        let twice = text.replace(&one, &format!("{one},\"{MARTIANS}\":\"0\""));
        assert_ne!(twice, text);
        let call = || node.tuning().stdin(twice.clone());
        for verb in ["ADD", "CHECK"] {
            let error = call()
                .attachment(verb, &json!({}), &node.pod, "eth0")
                .error();
            assert_eq!(
                error.msg, "duplicated sysctl keys are not allowed",
                "{verb}"
            );
        }
        call()
            .attachment("DEL", &json!({}), &node.pod, "eth0")
            .silent();
    });
}

/// Gives the node an /etc of its own with an allowlist.
fn allow(node: &Node, lines: &str) {
    node.host()
        .sh("mount -t tmpfs none /etc && mkdir -p /etc/cni/tuning");
    node.write("/etc/cni/tuning/allowlist.conf", lines);
}

#[test]
fn only_allowed_settings_are_set() {
    beyond_peer("plugins before v1.2 do not read the file", || {
        let node = Node::new();
        allow(
            &node,
            "^net\\.ipv4\\.conf\\.other\\.[a-z_]*$\n\n  tcp_syn  \n",
        );
        let snapshot = node.snapshot();
        let conf = tuning(json!({"sysctl": {MARTIANS: "1"}}));
        let error = node.tuning().add(&conf, &node.pod, "eth0").error();
        let text = format!(
            "Sysctl {MARTIANS} is not allowed. Only the following sysctls are allowed: \
             [^net\\.ipv4\\.conf\\.other\\.[a-z_]*$ tcp_syn]"
        );
        assert_eq!(error.msg, text);
        node.del(&conf);
        snapshot.assert_unchanged();
        node.add(&tuning(json!({"sysctl": {"net.ipv4.tcp_syncookies": "2"}})));
        node.add(&tuning(json!({"mtu": 1400})));
    });
}

#[test]
fn status_says_what_add_would_say_of_settings() {
    beyond_peer("it has no STATUS", || {
        let node = Node::new();
        let status = |keys| conf::at(&conf::with(&conf::plugin("tuning"), keys), "1.1.0");
        node.tuning()
            .status(&status(json!({"sysctl": {MARTIANS: "1"}})))
            .silent();
        let error = node
            .tuning()
            .status(&status(json!({"sysctl": {"a": "1"}})))
            .error();
        assert_eq!(
            (error.code, error.msg.as_str()),
            (7, "invalid net sysctl key: \"a\"")
        );
        allow(&node, "^$");
        let error = node
            .tuning()
            .status(&status(json!({"sysctl": {MARTIANS: "1"}})))
            .error();
        assert_eq!(error.code, 7);
        node.tuning().status(&status(json!({"mtu": 1400}))).silent();
    });
}

// ---- keys

#[test]
fn values_that_cannot_be_are_refused_before_anything_is_touched() {
    beyond_peer("it leaves some of them to the kernel", || {
        let node = Node::new();
        let snapshot = node.snapshot();
        for keys in [
            json!({"sysctl": []}),
            json!({"sysctl": {MARTIANS: 1}}),
            json!({"mac": 1}),
            json!({"mac": "x"}),
            json!({"mac": "01:00:5e:00:00:01"}),
            json!({"mac": "00:00:00:00:00:00"}),
            json!({"promisc": "yes"}),
            json!({"mtu": "1400"}),
            json!({"mtu": 1.5}),
            json!({"mtu": -1}),
            json!({"mtu": 67}),
            json!({"mtu": 4294967296_u64}),
            json!({"allmulti": 1}),
            json!({"txQLen": "5"}),
            json!({"txQLen": -1}),
            json!({"txQLen": 4294967296_u64}),
            json!({"dataDir": 1}),
            json!({"runtimeConfig": {"mac": "x"}}),
            json!({"args": {"cni": {"mac": "x"}}}),
            json!({"args": {"cni": {"mtu": -5}}}),
            json!({"args": {"cni": {"txQLen": -5}}}),
            json!({"args": []}),
        ] {
            let conf = tuning(conf::with(&json!({"allmulti": true}), keys.clone()));
            for verb in ["ADD", "CHECK"] {
                let error = node
                    .tuning()
                    .attachment(verb, &conf, &node.pod, "eth0")
                    .error();
                assert_eq!(error.code, 7, "{verb} {keys}: {}", error.msg);
            }
            node.del(&conf);
        }
        let call = node.tuning().args("MAC=x");
        let error = call.add(&tuning(json!({})), &node.pod, "eth0").error();
        let text = "invalid args x for MAC addr: address x: invalid MAC address";
        assert_eq!((error.code, error.msg.as_str()), (4, text));
        snapshot.assert_unchanged();
    });
}

#[test]
fn without_a_previous_result_add_and_check_fail() {
    let node = Node::new();
    let conf = conf::with(&tuning(everything()), json!({"prevResult": null}));
    for verb in ["ADD", "CHECK"] {
        let error = node
            .tuning()
            .attachment(verb, &conf, &node.pod, "eth0")
            .error();
        assert_eq!(error.msg, "Required prevResult missing");
    }
    assert_eq!(node.eth0(), original());
}

// ---- CHECK

#[test]
fn check_names_the_first_difference() {
    for (script, text) in [
        (
            "ip link set eth0 address 02:00:00:00:00:05",
            "Error: Tuning configured Ethernet of eth0 is c2:11:22:33:44:55, current value is 02:00:00:00:00:05",
        ),
        (
            "ip link set eth0 promisc off",
            "Error: Tuning link eth0 configured promisc is true, current value is 0",
        ),
        (
            "ip link set eth0 mtu 1300",
            "Error: Tuning configured MTU of eth0 is 1400, current value is 1300",
        ),
    ] {
        let node = Node::new();
        let conf = tuning(everything());
        node.add(&conf);
        node.pod.sh(script);
        let error = node.tuning().check(&conf, &node.pod, "eth0").error();
        assert_eq!(error.msg, text);
    }
}

#[test]
fn check_compares_only_what_is_configured() {
    beyond_peer("reference 8 #18: promiscuous mode must be off", || {
        let node = Node::new();
        let conf = tuning(json!({"mtu": 1400}));
        node.add(&conf);
        node.pod.sh(
            "ip link set eth0 promisc on allmulticast on txqueuelen 7 address 02:00:00:00:00:05",
        );
        node.tuning().check(&conf, &node.pod, "eth0").silent();
        node.pod.sh("ip link set eth0 allmulticast off");
        let conf = tuning(json!({"allmulti": true}));
        let error = node.tuning().check(&conf, &node.pod, "eth0").error();
        let text =
            "Error: Tuning configured all-multicast mode of eth0 is true, current value is false";
        assert_eq!(error.msg, text);
    });
}

#[test]
fn a_bridge_and_tuning_check_each_others_pod() {
    let sandbox = Sandbox::new();
    let pod = sandbox.pod("a");
    let bridge = conf::bridge(&["10.1.0.0/24"]);
    let snapshot = sandbox
        .snapshot()
        .allow_bridge_network()
        .allow("dir /run/cni")
        .allow("dir /run/podwire");
    let first = sandbox.cni("bridge").add(&bridge, &pod, "eth0").result();
    let keys = json!({"mac": NEW_MAC, "mtu": 1400});
    let tuning = conf::with(&conf::plugin("tuning"), keys);
    let chained = conf::with_prev(&tuning, &first);
    let last = sandbox.cni("tuning").add(&chained, &pod, "eth0").result();
    assert_eq!(last["ips"], first["ips"]);
    for (plugin, conf) in [("bridge", &bridge), ("tuning", &tuning)] {
        let conf = conf::with_prev(conf, &last);
        sandbox.cni(plugin).check(&conf, &pod, "eth0").silent();
    }
    // Neighbours learn of the new address.
    assert_eq!(sandbox.host().ping("10.1.0.2", 1), [true]);
    for (plugin, conf) in [("tuning", &tuning), ("bridge", &bridge)] {
        let conf = conf::with_prev(conf, &last);
        sandbox.cni(plugin).del(&conf, &pod, "eth0").silent();
    }
    snapshot.assert_unchanged();
}

// ---- DEL

#[test]
fn without_a_namespace_del_forgets_what_it_kept() {
    beyond_peer("reference 5.4: it leaves the file", || {
        let missing: [&dyn Fn(&Node) -> String; 3] = [
            &|node| {
                node.remove_pod(&node.pod);
                String::new()
            },
            &|node| {
                node.remove_pod(&node.pod);
                node.pod.path()
            },
            &|node| {
                node.pod.sh("ip link del eth0");
                node.pod.path()
            },
        ];
        for make in missing {
            let node = Node::new();
            let conf = tuning(everything());
            node.add(&conf);
            let netns = make(&node);
            for _ in 0..2 {
                let call = node.tuning().netns(&netns);
                call.del(&conf, &node.pod, "eth0").silent();
                assert_eq!(node.kept(), None);
            }
        }
    });
}

#[test]
fn del_survives_whatever_is_in_the_place_of_the_file() {
    let node = Node::new();
    let conf = tuning(everything());
    for make in [
        "echo '{' >FILE",
        "echo '[]' >FILE",
        "echo '{\"mtu\": \"x\", \"mac\": 5}' >FILE",
        "mkdir FILE",
        "ln -s /etc/passwd FILE",
        "mkfifo FILE",
    ] {
        let file = node.file("/run/cni/tuning");
        node.host().sh("mkdir -p /run/cni/tuning");
        node.host().sh(&make.replace("FILE", &file));
        let call = node.tuning().limit(Duration::from_secs(5));
        // The peer waits for a writer.
        if make.starts_with("mkfifo") && sandbox::testing_the_peer() {
            continue;
        }
        call.del(&conf, &node.pod, "eth0").silent();
        assert_eq!(node.eth0(), original());
        node.host().sh(&format!("rm -rf {file}"));
    }
    assert!(node.read("/etc/passwd").is_some());
}

#[test]
fn del_does_not_need_a_configuration_that_can_be_read() {
    beyond_peer("reference 8 #6", || {
        let node = Node::new();
        node.add(&tuning(everything()));
        node.del(&tuning(
            json!({"sysctl": [], "mac": "x", "mtu": -1, "args": 5}),
        ));
        assert_eq!((node.eth0(), node.kept()), (original(), None));
    });
}

#[test]
fn a_pod_cannot_hold_up_its_del() {
    let node = Node::new();
    let conf = tuning(everything());
    node.add(&conf);
    // A dummy for the interface that the kernel does not let be tuned back.
    node.pod
        .sh("ip link del eth0; ip link add eth0 type bridge; ip link set lo mtu 1000");
    node.del(&conf);
    assert!(node.pod.link("eth0").is_some());
}

#[test]
fn gc_removes_the_files_of_pods_that_are_forgotten_and_no_others() {
    beyond_peer("it has no GC", || {
        let node = Node::new();
        let conf = conf::at(&tuning(everything()), "1.1.0");
        node.add(&conf);
        let other = conf::with_valid(&conf::with(&conf, json!({"name": "other"})), &[]);
        node.tuning().gc(&other).silent();
        let id = container_id(&node.pod);
        let valid = conf::with_valid(&conf, &[(&id, "eth0")]);
        node.tuning().gc(&valid).silent();
        assert!(node.kept().is_some());
        node.del(&conf);
        assert_eq!(node.eth0(), original());
        // A pod that its runtime has forgotten.
        let elsewhere = conf::with(&conf, json!({"dataDir": "/run/elsewhere"}));
        node.add(&elsewhere);
        let file = node.file("/run/elsewhere");
        assert!(node.read(&file).is_some());
        node.tuning().gc(&conf::with_valid(&conf, &[])).silent();
        assert_eq!(node.read(&file), None);
        assert_eq!(node.list("/run/podwire"), [] as [&str; 0]);
    });
}

#[test]
fn a_long_container_id_is_no_obstacle() {
    beyond_peer("its file cannot have that name", || {
        let node = Node::new();
        let conf = tuning(everything());
        let id = "c".repeat(4000);
        let call = || node.tuning().id(&id);
        call().add(&conf, &node.pod, "eth0").result();
        assert_eq!(node.list("/run/cni/tuning").len(), 1);
        call().del(&conf, &node.pod, "eth0").silent();
        assert_eq!(node.list("/run/cni/tuning"), [] as [&str; 0]);
        assert_eq!(node.eth0(), original());
    });
}

// ---- together with the Go plugin

#[test]
fn each_suite_gives_back_what_the_other_has_set() {
    for (first, second) in [(Suite::Ours, Suite::Peer), (Suite::Peer, Suite::Ours)] {
        let node = Node::new();
        let conf = conf::at(&tuning(everything()), "1.0.0");
        let call = |suite| node.tuning().suite(suite);
        let result = call(first).add(&conf, &node.pod, "eth0").result();
        let conf = conf::with_prev(&conf, &result);
        call(second).check(&conf, &node.pod, "eth0").silent();
        call(second).del(&conf, &node.pod, "eth0").silent();
        assert_eq!((node.eth0(), node.kept()), (original(), None));
    }
    assert!(supports(newest()));
}
