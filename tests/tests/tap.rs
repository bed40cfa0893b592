//! tap: what each key does, which users may open the device, that no interface is taken over, and what stays after DEL, GC and a
//! failure (nothing).

use std::time::Duration;

use sandbox::{Netns, Sandbox, beyond_peer, conf, container_id, in_time};
use serde_json::{Value, json};

/// Why the peer cannot pass.
const ABSENT: &str = "Debian's suite has no tap";

const MAC: &str = "02:00:00:00:00:01";

fn with(keys: Value) -> Value {
    conf::with(&conf::plugin("tap"), keys)
}

fn addressed(keys: Value) -> Value {
    let ipam = json!({"ipam": conf::host_local_ipam(&["10.1.0.0/24"])});
    conf::with(&with(ipam), keys)
}

fn add(sandbox: &Sandbox, conf: &Value, pod: &Netns) -> Value {
    sandbox.cni("tap").add(conf, pod, "tap0").result()
}

fn del(sandbox: &Sandbox, conf: &Value, pod: &Netns) {
    sandbox.cni("tap").del(conf, pod, "tap0").silent();
}

/// The device in the pod, and what makes it one.
fn tap0(pod: &Netns) -> (Value, Value) {
    let link = pod.link("tap0").expect("tap0");
    let info = link["linkinfo"].clone();
    assert_eq!(info["info_kind"], "tun");
    assert_eq!(info["info_data"]["type"], "tap");
    (link, info["info_data"].clone())
}

/// Opens the device of the pod as a user, and prints its name; an error if that is not permitted.
fn open_as(pod: &Netns, user: u32, queues: usize) -> bool {
    // TUNSETIFF with IFF_TAP | IFF_NO_PI, and IFF_MULTI_QUEUE for several.
    let script = r#"
        my ($queues, @files) = @ARGV;
        for my $number (1 .. $queues) {
            open(my $file, '+<', $ENV{NODE}) or die "open: $!";
            my $flags = 0x1002 | ($queues > 1 ? 0x0100 : 0);
            my $request = pack('a16 S x22', 'tap0', $flags);
            ioctl($file, 0x400454ca, $request) or die "TUNSETIFF: $!";
            push @files, $file;
        }
        print "opened";"#;
    let node = "/run/tun";
    let queues = queues.to_string();
    let (user, node_variable) = (user.to_string(), format!("NODE={node}"));
    let done = pod.run(&[
        "setpriv",
        "--reuid",
        &user,
        "--regid",
        &user,
        "--clear-groups",
        "--bounding-set",
        "-all",
        "--inh-caps",
        "-all",
        "env",
        &node_variable,
        "perl",
        "-e",
        script,
        &queues,
    ]);
    assert!(
        done.code == 0 || done.stderr.contains("TUNSETIFF"),
        "{done:?}"
    );
    done.code == 0
}

/// A device node that every user may open, as udev makes it.
fn with_node(sandbox: &Sandbox) {
    sandbox
        .host()
        .sh("mknod /run/tun c 10 200; chmod 666 /run/tun");
}

// ---- a life

#[test]
fn the_pod_has_a_device_until_del() {
    beyond_peer(ABSENT, || {
        let sandbox = Sandbox::new();
        let pod = sandbox.pod("a");
        let snapshot = sandbox.snapshot();
        let conf = with(json!({}));
        let result = add(&sandbox, &conf, &pod);
        let (link, data) = tap0(&pod);
        let interface = &result["interfaces"][0];
        assert_eq!(interface["name"], "tap0");
        assert_eq!(interface["mac"], link["address"]);
        assert_eq!(interface["sandbox"], pod.path());
        assert_eq!(result["interfaces"].as_array().unwrap().len(), 1);
        assert!(link["flags"].as_array().unwrap().contains(&json!("UP")));
        assert_eq!(data["persist"], true);
        for _ in 0..2 {
            del(&sandbox, &conf, &pod);
        }
        assert_eq!(pod.links(), ["lo"]);
        snapshot.assert_unchanged();
    });
}

#[test]
fn every_version_has_its_result() {
    beyond_peer(ABSENT, || {
        for version in [
            "0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0",
        ] {
            let sandbox = Sandbox::new();
            let pod = sandbox.pod("a");
            let conf = conf::at(&addressed(json!({"owner": 0, "group": 0})), version);
            let result = add(&sandbox, &conf, &pod);
            assert_eq!(result["cniVersion"], version);
            if version < "0.3.0" {
                assert_eq!(result["ip4"]["ip"], "10.1.0.2/24")
            } else {
                assert_eq!(result["ips"][0]["address"], "10.1.0.2/24");
                assert_eq!(result["ips"][0]["interface"], 0);
                assert_eq!(result["interfaces"][0]["mac"], tap0(&pod).0["address"]);
            }
            assert_eq!(pod.addresses("tap0"), ["10.1.0.2/24"]);
            del(&sandbox, &conf, &pod);
            assert_eq!(pod.links(), ["lo"]);
            assert_eq!(sandbox.reserved(), [""; 0]);
        }
    });
}

#[test]
fn ipv6_needs_no_wait() {
    beyond_peer("it waits five seconds for a carrier", || {
        let sandbox = Sandbox::new();
        let pod = sandbox.pod("a");
        let ipam = json!({"ipam": conf::host_local_ipam(&["10.1.0.0/24", "fd01::/64"])});
        let added = sandbox.cni("tap").add(&with(ipam), &pod, "tap0");
        added.result();
        assert_eq!(pod.addresses("tap0"), ["10.1.0.2/24", "fd01::2/64"]);
        let limit = in_time(Duration::from_secs(1));
        assert!(added.elapsed() < limit, "{:?}", added.elapsed());
    });
}

#[test]
fn del_in_any_state() {
    beyond_peer(ABSENT, || {
        let sandbox = Sandbox::new();
        let conf = addressed(json!({}));
        let pod = sandbox.pod("a");
        add(&sandbox, &conf, &pod);
        sandbox.remove_pod(&pod);
        sandbox
            .cni("tap")
            .netns("")
            .del(&conf, &pod, "tap0")
            .silent();
        assert_eq!(sandbox.reserved(), [""; 0]);
        beyond_peer("it deletes what has the name", || {
            let pod = sandbox.pod("b");
            add(&sandbox, &conf, &pod);
            pod.sh(
                "ip link set tap0 down; ip link set tap0 name x; ip tuntap add mode tap name mine",
            );
            del(&sandbox, &conf, &pod);
            assert_eq!(pod.links(), ["lo", "mine"]);
        });
    });
}

#[test]
fn gc_deletes_devices_of_dead_pods() {
    beyond_peer("it has no GC", || {
        let sandbox = Sandbox::new();
        let (dead, live) = (sandbox.pod("dead"), sandbox.pod("live"));
        let conf = conf::at(&addressed(json!({})), "1.1.0");
        for pod in [&dead, &live] {
            add(&sandbox, &conf, pod);
        }
        let id = container_id(&live);
        let valid = conf::with_valid(&conf, &[(&id, "tap0")]);
        sandbox.cni("tap").gc(&valid).silent();
        assert_eq!(dead.links(), ["lo"]);
        assert_eq!(live.links(), ["lo", "tap0"]);
        assert_eq!(sandbox.reserved(), ["10.1.0.3"]);
    });
}

#[test]
fn a_failed_add_leaves_nothing() {
    beyond_peer("it leaves the device", || {
        let sandbox = Sandbox::new();
        let pod = sandbox.pod("a");
        let snapshot = sandbox.snapshot();
        for (change, text) in [
            (
                json!({"ipam": {"type": "not-there"}}),
                "failed to find plugin",
            ),
            (
                json!({"bridge": "br9"}),
                "failed to get bridge br9: Link not found",
            ),
            (
                json!({"bridge": "lo"}),
                "failed to set tap tap0 as a port of bridge lo",
            ),
            (
                json!({"ipam": {"routes": [{"dst": "10.9.0.0/16", "gw": "192.0.2.1"}]}}),
                "failed to add route",
            ),
        ] {
            let conf = conf::with(&addressed(json!({})), change);
            let error = sandbox.cni("tap").add(&conf, &pod, "tap0").error();
            assert!(error.msg.contains(text), "{error:?}");
            assert_eq!(pod.links(), ["lo"], "{text}");
            assert_eq!(sandbox.reserved(), [""; 0], "{text}");
        }
        snapshot.allow_host_local(conf::NETWORK).assert_unchanged();
    });
}

#[test]
fn an_interface_that_exists_is_not_taken_over() {
    beyond_peer("reference 8 #22: it succeeds", || {
        for existing in [
            "ip tuntap add mode tap name tap0",
            "ip tuntap add mode tun name tap0",
            "ip link add tap0 type veth peer name x",
            "ip link add x type veth peer name y; ip link property add dev x altname tap0",
        ] {
            let sandbox = Sandbox::new();
            let pod = sandbox.pod("a");
            pod.sh(existing);
            let snapshot = sandbox.snapshot();
            for keys in [
                json!({}),
                json!({"owner": 0, "group": 0}),
                json!({"multiQueue": true}),
            ] {
                let error = sandbox
                    .cni("tap")
                    .add(&addressed(keys), &pod, "tap0")
                    .error();
                let text = r#"failed to rename tap to "tap0": file exists"#;
                assert!(error.msg.contains(text), "{existing}: {error:?}");
            }
            snapshot.allow_host_local(conf::NETWORK).assert_unchanged();
        }
    });
}

#[test]
fn status_tells_whether_devices_can_be_created() {
    beyond_peer("STATUS came later", || {
        let sandbox = Sandbox::new();
        let conf = conf::at(&with(json!({})), "1.1.0");
        sandbox.cni("tap").status(&conf).silent();
        sandbox.host().sh("mount -t tmpfs tmpfs /dev/net");
        let error = sandbox.cni("tap").status(&conf).error();
        assert_eq!(error.code, 50);
        assert!(
            error
                .msg
                .contains("open /dev/net/tun: no such file or directory"),
            "{error:?}"
        );
        let pod = sandbox.pod("a");
        let error = sandbox.cni("tap").add(&conf, &pod, "tap0").error();
        assert!(error.msg.contains("open /dev/net/tun"), "{error:?}");
    });
}

// ---- keys

#[test]
fn owner_and_group_may_open_it_and_others_may_not() {
    beyond_peer(ABSENT, || {
        for (keys, user, group) in [
            (json!({}), Value::Null, Value::Null),
            (json!({"owner": 54321}), json!(54321), Value::Null),
            (json!({"group": 54321}), Value::Null, json!(54321)),
            (
                json!({"owner": 54321, "group": 54321}),
                json!(54321),
                json!(54321),
            ),
        ] {
            let sandbox = Sandbox::new();
            with_node(&sandbox);
            let pod = sandbox.pod("a");
            add(&sandbox, &with(keys.clone()), &pod);
            let (_, data) = tap0(&pod);
            assert_eq!(
                (&data["user"], &data["group"]),
                (&user, &group),
                "{keys}: {data}"
            );
            let is_open_to_all = keys == json!({});
            assert_eq!(open_as(&pod, 54322, 1), is_open_to_all, "{keys}");
            assert!(open_as(&pod, 54321, 1), "{keys}");
        }
    });
}

#[test]
fn several_queues_are_for_several_threads() {
    beyond_peer(ABSENT, || {
        for keys in [
            json!({"multiQueue": true}),
            json!({"multiQueue": true, "owner": 54321, "group": 54321}),
        ] {
            let sandbox = Sandbox::new();
            with_node(&sandbox);
            let pod = sandbox.pod("a");
            add(&sandbox, &with(keys), &pod);
            assert_eq!(tap0(&pod).1["multi_queue"], true);
            assert!(open_as(&pod, 54321, 3));
        }
        let sandbox = Sandbox::new();
        with_node(&sandbox);
        let pod = sandbox.pod("a");
        add(&sandbox, &with(json!({})), &pod);
        assert_ne!(tap0(&pod).1["multi_queue"], true);
        assert!(!open_as(&pod, 54321, 3));
    });
}

#[test]
fn mac_and_mtu_are_set_with_and_without_an_owner() {
    beyond_peer(ABSENT, || {
        for owner in [json!({}), json!({"owner": 0, "group": 0})] {
            let is_owned = owner != json!({});
            let body = || {
                let sandbox = Sandbox::new();
                let pod = sandbox.pod("a");
                let conf = conf::with(&with(json!({"mac": MAC, "mtu": 1400})), owner.clone());
                let result = add(&sandbox, &conf, &pod);
                let (link, _) = tap0(&pod);
                assert_eq!(
                    (&link["address"], &link["mtu"]),
                    (&json!(MAC), &json!(1400))
                );
                assert_eq!(result["interfaces"][0]["mac"], MAC);
            };
            if is_owned {
                beyond_peer("reference 8 #22: it ignores the MAC", body)
            } else {
                body()
            }
        }
    });
}

#[test]
fn the_runtimes_mac_counts_before_the_arguments_and_the_key() {
    beyond_peer(ABSENT, || {
        let [second, third] = ["02:00:00:00:00:02", "02:00:00:00:00:03"];
        for (runtime, args, expected) in
            [("", "", MAC), ("", second, second), (third, second, third)]
        {
            let sandbox = Sandbox::new();
            let pod = sandbox.pod("a");
            let conf = with(json!({"mac": MAC, "runtimeConfig": {"mac": runtime}}));
            let args = match args {
                "" => "IgnoreUnknown=1".to_owned(),
                mac => format!("IgnoreUnknown=1;MAC={mac}"),
            };
            let cni = sandbox.cni("tap").args(&args);
            cni.add(&conf, &pod, "tap0").result();
            assert_eq!(tap0(&pod).0["address"], expected);
        }
    });
}

#[test]
fn a_bridge_in_the_pod_gets_a_port() {
    beyond_peer(ABSENT, || {
        let sandbox = Sandbox::new();
        let pod = sandbox.pod("a");
        pod.sh("ip link add br1 type bridge; ip link set br1 up");
        // The node's bridge of that name is another one.
        sandbox.host().sh("ip link add br1 type bridge");
        let conf = addressed(json!({"bridge": "br1", "cniVersion": "1.0.0"}));
        let result = add(&sandbox, &conf, &pod);
        assert_eq!(tap0(&pod).0["master"], "br1");
        let checked = conf::with_prev(&conf, &result);
        sandbox.cni("tap").check(&checked, &pod, "tap0").silent();
        beyond_peer("it does not look at the bridge", || {
            pod.sh("ip link set tap0 nomaster");
            let error = sandbox.cni("tap").check(&checked, &pod, "tap0").error();
            assert!(
                error.msg.contains("tap0 is no port of bridge br1"),
                "{error:?}"
            );
        });
        del(&sandbox, &conf, &pod);
        assert_eq!(pod.links(), ["br1", "lo"]);
    });
}

#[test]
fn bad_values_are_refused_before_anything_is_made() {
    beyond_peer("it has one code", || {
        let sandbox = Sandbox::new();
        let pod = sandbox.pod("a");
        for (keys, text) in [
            (json!({"mtu": 67}), "invalid MTU 67, must be [68, 65521]"),
            (json!({"mtu": -1}), "invalid MTU -1"),
            (json!({"mtu": 65522}), "invalid MTU 65522"),
            (
                json!({"mac": "x"}),
                "invalid args x for MAC addr: address x: invalid MAC address",
            ),
            (
                json!({"mac": "01:00:00:00:00:01"}),
                "an interface cannot have this MAC address",
            ),
            (json!({"owner": -1}), "owner"),
            (json!({"group": 4_294_967_296_u64}), "group"),
            (json!({"multiQueue": "yes"}), "multiQueue"),
            (json!({"bridge": 1}), "bridge"),
            (
                json!({"selinuxContext": "svirt_t"}),
                "is no SELinux context",
            ),
        ] {
            let error = sandbox
                .cni("tap")
                .add(&addressed(keys), &pod, "tap0")
                .error();
            assert_eq!(error.code, 7, "{error:?}");
            assert!(error.msg.contains(text), "{error:?}");
        }
        assert_eq!(pod.links(), ["lo"]);
        assert_eq!(sandbox.reserved(), [""; 0]);
    });
}

/// This kernel has no SELinux: what a label does is not tested.
#[test]
fn a_label_on_a_node_without_selinux_is_an_error() {
    beyond_peer(ABSENT, || {
        let sandbox = Sandbox::new();
        let pod = sandbox.pod("a");
        let conf = with(json!({"selinuxContext": "system_u:object_r:svirt_t:s0"}));
        beyond_peer("it has other words", || {
            let error = sandbox.cni("tap").add(&conf, &pod, "tap0").error();
            assert!(
                error
                    .msg
                    .contains("failed set socket label: SELinux is off on this node"),
                "{error:?}"
            );
            let conf = conf::at(&conf, "1.1.0");
            assert_eq!(sandbox.cni("tap").status(&conf).error().code, 50);
        });
        assert_eq!(pod.links(), ["lo"]);
    });
}

// ---- CHECK, and both suites

#[test]
fn check_compares_what_was_asked_for() {
    beyond_peer(ABSENT, || {
        let sandbox = Sandbox::new();
        let pod = sandbox.pod("a");
        let conf = conf::at(&addressed(json!({"mtu": 1400})), "1.1.0");
        let result = add(&sandbox, &conf, &pod);
        let checked = conf::with_prev(&conf, &result);
        let check = || sandbox.cni("tap").check(&checked, &pod, "tap0");
        check().silent();
        for (tamper, text, repair) in [
            ("mtu 1300", "MTU of tap0 is 1300, not 1400", "mtu 1400"),
            ("name x", "Cannot find container link tap0", "down"),
        ] {
            let name = if repair == "down" { "tap0" } else { "dev tap0" };
            pod.sh(&format!(
                "ip link set tap0 down; ip link set {name} {tamper}"
            ));
            let error = check().error();
            assert!(error.msg.contains(text), "{error:?}");
            match repair {
                "down" => pod.sh("ip link set x name tap0"),
                repair => pod.sh(&format!("ip link set tap0 {repair} up")),
            };
        }
        pod.sh("ip link set tap0 address 02:00:00:00:00:77");
        let error = check().error();
        assert!(
            error
                .msg
                .contains("doesn't match container Mac: 02:00:00:00:00:77"),
            "{error:?}"
        );
    });
}
