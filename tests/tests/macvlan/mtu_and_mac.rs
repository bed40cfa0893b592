//! `mtu`, `mac`, `bcqueuelen`, `acceptRA`.

use sandbox::{Sandbox, beyond_peer, conf};
use serde_json::json;

use crate::{MAC, add, attached, info, l2, mac, macvlan, refused, siblings};

#[test]
fn the_mtu_is_the_parents_unless_a_smaller_one_is_configured() {
    for (requested, mtu) in [
        (json!(null), 1450),
        (json!(0), 1450),
        (json!(1400), 1400),
        (json!(1450), 1450),
    ] {
        let sandbox = Sandbox::new();
        let _segment = sandbox.segment();
        sandbox.host().sh("ip link set eth1 mtu 1450");
        let pod = sandbox.pod("a");
        add(&sandbox, &macvlan(json!({"mtu": requested})), &pod);
        assert_eq!(pod.link("eth0").expect("eth0")["mtu"], mtu);
    }
}

#[test]
fn an_mtu_above_the_parents_is_refused() {
    for mtu in [json!(1501), json!(-1), json!(65536)] {
        let error = refused("", &macvlan(json!({"mtu": mtu})));
        let expected = format!("invalid MTU {mtu}, must be [0, master MTU(1500)]");
        assert_eq!(error.msg, expected);
        beyond_peer("reference 1.6: 999 for everything", || {
            assert_eq!(error.code, 7)
        });
    }
}

#[test]
fn the_mac_may_be_requested_in_each_channel() {
    for (change, args) in [
        (json!({"mac": MAC}), ""),
        (json!({}), "IgnoreUnknown=1;MAC=02:00:00:00:07:01"),
        (json!({"runtimeConfig": {"mac": MAC}}), ""),
        (json!({"RuntimeConfig": {"Mac": MAC}}), ""),
        (
            json!({"mac": "02:00:00:00:07:09"}),
            "IgnoreUnknown=1;MAC=02:00:00:00:07:01",
        ),
        (
            json!({"mac": "02:00:00:00:07:09", "runtimeConfig": {"mac": MAC}}),
            "IgnoreUnknown=1;MAC=02:00:00:00:07:08",
        ),
    ] {
        let sandbox = Sandbox::new();
        let _segment = sandbox.segment();
        let pod = sandbox.pod("a");
        let conf = l2(change.clone());
        let result = sandbox
            .cni("macvlan")
            .args(args)
            .add(&conf, &pod, "eth0")
            .result();
        assert_eq!(mac(&pod, "eth0"), MAC, "{change} {args}");
        assert_eq!(result["interfaces"][0]["mac"], MAC);
    }
    beyond_peer("bridge alone reads args.cni there", || {
        let it = attached(&l2(json!({"args": {"cni": {"mac": MAC}}})));
        assert_eq!(mac(&it.pod, "eth0"), MAC);
    });
}

#[test]
fn an_invalid_mac_is_refused() {
    let error = refused("", &macvlan(json!({"mac": "c2:11:22:33:44"})));
    let expected =
        "invalid args c2:11:22:33:44 for MAC addr: address c2:11:22:33:44: invalid MAC address";
    assert_eq!(error.msg, expected);
    for mac in ["01:00:5e:00:00:01", "00:00:00:00:00:00"] {
        refused("", &macvlan(json!({"mac": mac})));
    }
}

#[test]
fn pods_have_macs_of_their_own_that_udev_leaves_alone() {
    let (_sandbox, _segment, [a, b]) = siblings(&macvlan(json!({})));
    assert_ne!(mac(&a, "eth0"), mac(&b, "eth0"));
    for pod in [&a, &b] {
        // Locally administered, and no group's.
        let first = u8::from_str_radix(&mac(pod, "eth0")[..2], 16).expect("hex");
        assert_eq!(first & 3, 2);
        beyond_peer("its MAC is the kernel's own, which udev changes", || {
            let kind = "mount -t sysfs s /mnt && cat /mnt/class/net/eth0/addr_assign_type";
            let kind = pod.run(&["unshare", "-m", "sh", "-c", kind]);
            assert_eq!(kind.stdout, "3\n");
        });
    }
}

#[test]
fn the_mac_of_a_sibling_is_refused() {
    let it = attached(&macvlan(json!({"mac": MAC})));
    let second = it.sandbox.pod("b");
    let snapshot = it.sandbox.snapshot().allow_host_local(conf::NETWORK);
    let conf = macvlan(json!({"mac": MAC}));
    let error = it
        .sandbox
        .cni("macvlan")
        .add(&conf, &second, "eth0")
        .error();
    beyond_peer(
        "it says: address already in use, and leaves the link",
        || {
            assert!(error.msg.contains("has this MAC"), "{}", error.msg);
            snapshot.assert_unchanged();
        },
    );
}

#[test]
fn the_queue_of_broadcasts_may_be_longer() {
    beyond_peer("plugins before v1.2 do not know bcqueuelen", || {
        let it = attached(&l2(json!({"bcqueuelen": 4000})));
        assert_eq!(info(&it.pod)["bcqueuelen"], 4000);
    });
    let it = attached(&l2(json!({})));
    assert_eq!(info(&it.pod)["bcqueuelen"], 1000);
    beyond_peer("plugins before v1.2 do not know bcqueuelen", || {
        for wrong in [json!(-1), json!(4294967296_u64), json!("1000")] {
            assert_eq!(refused("", &l2(json!({"bcqueuelen": wrong}))).code, 7);
        }
    });
}

#[test]
fn router_advertisements_are_heeded_as_the_configuration_says() {
    beyond_peer("it leaves them to the kernel", || {
        for (word, value) in [("off", "0"), ("on", "1"), ("forwarding", "2")] {
            let sandbox = Sandbox::new();
            let _segment = sandbox.segment();
            let pod = sandbox.pod("a");
            pod.sh("echo 1 >/proc/sys/net/ipv6/conf/default/disable_ipv6");
            let conf = l2(json!({"acceptRA": word}));
            let result = sandbox.cni("macvlan").add(&conf, &pod, "eth0").result();
            assert_eq!(pod.sysctl("net/ipv6/conf/eth0/accept_ra"), value);
            let heeds = word != "off";
            let disabled = pod.sysctl("net/ipv6/conf/eth0/disable_ipv6");
            assert_eq!(disabled, if heeds { "0" } else { "1" });
            let conf = conf::with_prev(&conf, &result);
            let check = || sandbox.cni("macvlan").check(&conf, &pod, "eth0");
            check().silent();
            pod.sh("echo 7 >/proc/sys/net/ipv6/conf/eth0/accept_ra");
            let expected = format!("accept_ra of eth0 is 7, not {value}");
            assert_eq!(check().error().msg, expected);
        }
        let error = refused("", &l2(json!({"acceptRA": "always"})));
        let expected = "acceptRA: \"always\" is none of off, on, forwarding";
        assert_eq!((error.code, error.msg.as_str()), (7, expected));
    });
}
