//! host-device: how a device is selected, what the pod gets, and that the device comes back under its
//! own name, whatever happens to the pod.
//!
//! A veth stands for the device: no other link moves and comes without hardware. What the kernel does with
//! hardware when a namespace ends, the test does with the veth. SR-IOV and DPDK devices are directories
//! that the test makes in place of `/sys/bus`.

use std::sync::Barrier;

use sandbox::{
    Netns, Sandbox, Suite, beyond_peer, conf, container_id, newest, supports, testing_the_peer,
};
use serde_json::{Value, json};

const MAC: &str = "02:00:00:00:00:01";

/// A node with the device dev0, whose other end is far0.
fn node() -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.host().sh(&format!(
        "ip link add dev0 address {MAC} type veth peer name far0
         ip link set far0 up addrgenmode none"
    ));
    sandbox
}

fn selecting(keys: Value) -> Value {
    conf::with(&conf::plugin("host-device"), keys)
}

fn dev0() -> Value {
    selecting(json!({"device": "dev0"}))
}

/// With an address from a range.
fn addressed() -> Value {
    selecting(json!({"device": "dev0", "ipam": conf::host_local_ipam(&["10.1.0.0/24"])}))
}

fn add(sandbox: &Sandbox, conf: &Value, pod: &Netns) -> Value {
    sandbox.cni("host-device").add(conf, pod, "net1").result()
}

fn del(sandbox: &Sandbox, conf: &Value, pod: &Netns) {
    sandbox.cni("host-device").del(conf, pod, "net1").silent();
}

#[track_caller]
fn assert_at_home(sandbox: &Sandbox) {
    let link = sandbox.host().link("dev0").expect("dev0 on the node");
    assert_eq!(link["address"], MAC);
    // Early versions of the Go plugin leave it.
    if !testing_the_peer() {
        assert_eq!(link["ifalias"], Value::Null, "{link}");
    }
}

/// The notes about attachments.
fn notes(sandbox: &Sandbox) -> String {
    sandbox
        .host()
        .sh("find /run/podwire -path '*host-device*' -type f 2>/dev/null || :")
}

/// A directory in place of `/sys/bus`, made by the script in it.
fn with_buses(sandbox: &Sandbox, script: &str) {
    sandbox.host().sh(&format!(
        "mount -t tmpfs tmpfs /sys/bus
         mkdir -p /sys/bus/pci/devices /sys/bus/pci/drivers/vfio-pci /sys/bus/pci/drivers/ice
         mkdir -p /sys/bus/auxiliary/devices
         cd /sys/bus
         {script}"
    ));
}

/// The script for a device on the PCI bus with this driver.
fn pci_device(id: &str, driver: &str, more: &str) -> String {
    format!(
        "mkdir pci/devices/{id}
         ln -s ../../../../bus/pci/drivers/{driver} pci/devices/{id}/driver
         {more}"
    )
}

// ---- a life

#[test]
fn the_device_is_the_pods_and_comes_back() {
    let sandbox = node();
    let pod = sandbox.pod("a");
    // The other end has no carrier before or afterwards, for different reasons.
    let snapshot = sandbox.snapshot().allow("far0").allow("ifname dev0");
    let result = add(&sandbox, &dev0(), &pod);
    assert!(sandbox.host().link("dev0").is_none());
    let link = pod.link("net1").expect("net1");
    assert_eq!(link["address"], MAC);
    assert!(link["flags"].as_array().unwrap().contains(&json!("UP")));
    // Where the Go plugin looks for the name.
    assert_eq!(link["ifalias"], "dev0");
    let interface = &result["interfaces"][0];
    assert_eq!(interface["name"], "net1");
    assert_eq!(interface["mac"], MAC);
    assert_eq!(interface["sandbox"], pod.path());
    assert_eq!(result["interfaces"].as_array().unwrap().len(), 1);
    del(&sandbox, &dev0(), &pod);
    assert_at_home(&sandbox);
    snapshot.assert_unchanged();
}

#[test]
fn a_second_del_finds_nothing_to_do() {
    beyond_peer("reference 8 #3: Link not found", || {
        let sandbox = node();
        let pod = sandbox.pod("a");
        add(&sandbox, &addressed(), &pod);
        for _ in 0..2 {
            del(&sandbox, &addressed(), &pod);
        }
        assert_at_home(&sandbox);
        assert_eq!(sandbox.reserved(), [""; 0]);
        assert_eq!(notes(&sandbox), "");
    });
}

#[test]
fn the_pod_has_addresses_and_reaches_the_wire() {
    let sandbox = node();
    sandbox.host().sh("ip addr add 10.1.0.1/24 dev far0");
    let pod = sandbox.pod("a");
    let result = add(&sandbox, &addressed(), &pod);
    assert_eq!(pod.addresses("net1"), ["10.1.0.2/24"]);
    assert_eq!(result["ips"][0]["interface"], 0);
    // The other end sends once the kernel has noticed its carrier, within a second.
    pod.wait_until("the wire is reached", |pod| {
        pod.ping("10.1.0.1", 1) == [true]
    });
    let checked = conf::with_prev(&addressed(), &result);
    let check = |conf: &Value| sandbox.cni("host-device").check(conf, &pod, "net1");
    check(&checked).silent();
    pod.sh("ip addr del 10.1.0.2/24 dev net1");
    let error = check(&checked).error();
    assert!(
        error
            .msg
            .contains("Failed to match addr 10.1.0.2/24 on interface net1"),
        "{error:?}"
    );
    pod.sh("ip link set net1 down; ip link set net1 address 02:00:00:00:00:09");
    let error = check(&checked).error();
    let text = format!("Interface net1 Mac {MAC} doesn't match container Mac: 02:00:00:00:00:09");
    assert!(error.msg.contains(&text), "{error:?}");
    pod.sh("ip link set net1 name net7");
    let error = check(&checked).error();
    assert!(
        error
            .msg
            .contains("Container Interface name in prevResult: net1 not found"),
        "{error:?}"
    );
}

#[test]
fn the_result_of_each_version_has_what_that_version_knows() {
    for version in ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        if !supports(version) {
            continue;
        }
        let sandbox = node();
        let pod = sandbox.pod("a");
        let conf = conf::at(&addressed(), version);
        let result = add(&sandbox, &conf, &pod);
        assert_eq!(result["cniVersion"], version);
        let interface = &result["interfaces"][0];
        assert_eq!(interface["mac"], MAC, "{result}");
        let has_mtu = version == "1.1.0" && newest() == "1.1.0";
        let expected = if has_mtu { json!(1500) } else { Value::Null };
        beyond_peer_if(has_mtu, || assert_eq!(interface["mtu"], expected));
        del(&sandbox, &conf, &pod);
        assert_at_home(&sandbox);
    }
}

fn beyond_peer_if(beyond: bool, body: impl FnOnce()) {
    if beyond {
        beyond_peer("it reports no MTU", body)
    } else {
        body()
    }
}

#[test]
fn a_version_without_interfaces_needs_an_address() {
    let sandbox = node();
    let pod = sandbox.pod("a");
    let conf = conf::at(&addressed(), "0.2.0");
    let result = add(&sandbox, &conf, &pod);
    assert_eq!(result["ip4"]["ip"], "10.1.0.2/24");
    del(&sandbox, &conf, &pod);
    assert_at_home(&sandbox);
    beyond_peer("it leaves the device in the pod", || {
        let conf = conf::at(&dev0(), "0.2.0");
        sandbox.cni("host-device").add(&conf, &pod, "net1").error();
        assert_at_home(&sandbox);
    });
}

#[test]
fn an_add_that_fails_returns_the_device_as_it_was() {
    beyond_peer("it leaves the device in the pod", || {
        let sandbox = node();
        let host = sandbox.host();
        host.sh("ip link set dev0 up alias uplink; ip link property add dev dev0 altname lan-port");
        let pod = sandbox.pod("a");
        let snapshot = sandbox.snapshot();
        let fails = |change: Value| {
            let conf = conf::with(&addressed(), change);
            sandbox.cni("host-device").add(&conf, &pod, "net1").error()
        };
        fails(json!({"ipam": {"type": "not-there"}}));
        // Added after the address.
        fails(json!({"ipam": {"routes": [{"dst": "10.9.0.0/16", "gw": "192.0.2.1"}]}}));
        let link = host.link("dev0").expect("dev0");
        assert_eq!(link["ifalias"], "uplink");
        assert!(link["flags"].as_array().unwrap().contains(&json!("UP")));
        assert_eq!(link["altnames"], json!(["lan-port"]));
        assert_eq!(sandbox.reserved(), [""; 0]);
        snapshot.allow_host_local(conf::NETWORK).assert_unchanged();
    });
}

#[test]
fn alias_and_alternative_names_of_the_operator_come_back() {
    beyond_peer("it clears the alias", || {
        let sandbox = node();
        let host = sandbox.host();
        host.sh("ip link set dev0 alias uplink; ip link property add dev dev0 altname lan-port altname wan-port");
        let pod = sandbox.pod("a");
        // By an alternative name, too.
        let conf = selecting(json!({"device": "lan-port"}));
        add(&sandbox, &conf, &pod);
        pod.sh("ip link property del dev net1 altname lan-port
            ip link property add dev net1 altname far0 altname eth9");
        del(&sandbox, &conf, &pod);
        let link = host.link("dev0").expect("dev0");
        assert_eq!(link["ifalias"], "uplink");
        let mut names: Vec<String> = serde_json::from_value(link["altnames"].clone()).unwrap();
        names.sort();
        assert_eq!(names, ["lan-port", "wan-port"]);
    });
}

// ---- where the device is when DEL comes

#[test]
fn del_returns_a_device_that_the_pod_has_disguised() {
    beyond_peer("plugins#773: Link not found", || {
        for disguise in [
            "ip link set net1 name x",
            "ip link set net1 alias ''",
            "ip link set net1 alias far0",
            "ip link set net1 name x; ip link set x alias eth7 address 02:00:00:00:00:77",
            // Its name on the node is another link's now.
            "ip link add dev0 type veth peer name y",
            // Another link looks like it.
            "ip link set net1 name x; ip link set x alias ''
             ip link add net1 address 02:00:00:00:00:01 type veth peer name y; ip link set net1 alias dev0",
            "ip link add br0 type bridge; ip link set net1 master br0",
        ] {
            let sandbox = node();
            let pod = sandbox.pod("a");
            add(&sandbox, &addressed(), &pod);
            pod.sh(&format!("ip link set net1 down; {disguise}"));
            del(&sandbox, &addressed(), &pod);
            let link = sandbox.host().link("dev0").expect(disguise);
            assert_eq!(link["link"], "far0", "{disguise}: {link}");
            assert_eq!(link["ifalias"], Value::Null, "{disguise}");
            assert_eq!(sandbox.reserved(), [""; 0], "{disguise}");
        }
    });
}

#[test]
fn a_link_that_the_pod_made_does_not_come_to_the_node() {
    beyond_peer("it moves what has the name and an alias", || {
        // Also where there is no note.
        for forgets in [false, true] {
            let sandbox = node();
            let pod = sandbox.pod("a");
            add(&sandbox, &dev0(), &pod);
            if forgets {
                sandbox.host().sh("rm -r /run/podwire");
            }
            // The device is gone, and another link is in its place.
            pod.sh("ip link del net1
                ip link add net1 type veth peer name inside
                ip link set net1 alias dev0");
            del(&sandbox, &dev0(), &pod);
            assert_eq!(sandbox.host().links(), ["lo"]);
            assert!(pod.link("net1").is_some());
        }
    });
}

#[test]
fn without_a_note_the_alias_has_the_name() {
    let sandbox = node();
    for disguise in ["", "ip link set net1 down; ip link set net1 name x"] {
        let pod = sandbox.pod("a");
        add(&sandbox, &addressed(), &pod);
        sandbox.host().sh("rm -rf /run/podwire");
        pod.sh(disguise);
        match disguise {
            "" => del(&sandbox, &addressed(), &pod),
            _ => beyond_peer("plugins#773: Link not found", || {
                del(&sandbox, &addressed(), &pod)
            }),
        }
        beyond_peer_if(!disguise.is_empty(), || assert_at_home(&sandbox));
        sandbox.remove_pod(&pod);
    }
}

#[test]
fn a_taken_name_keeps_the_device_in_the_pod_until_it_is_free() {
    let sandbox = node();
    let host = sandbox.host();
    let pod = sandbox.pod("a");
    add(&sandbox, &addressed(), &pod);
    host.sh("ip link add dev0 type veth peer name other");
    let error = sandbox
        .cni("host-device")
        .del(&addressed(), &pod, "net1")
        .error();
    assert!(error.msg.contains("file exists"), "{error:?}");
    let link = pod.link("net1").expect("net1");
    assert!(link["flags"].as_array().unwrap().contains(&json!("UP")));
    // The address is another pod's from now on.
    assert_eq!(sandbox.reserved(), [""; 0]);
    beyond_peer("the released address is still in use", || {
        assert_eq!(pod.addresses("net1"), [""; 0]);
        assert_eq!(error.code, 11);
        assert!(error.details.contains("rename that one"), "{error:?}");
    });
    host.sh("ip link del dev0");
    del(&sandbox, &addressed(), &pod);
    assert_at_home(&sandbox);
}

#[test]
fn the_pods_name_for_it_may_be_taken_on_the_node() {
    let sandbox = node();
    sandbox
        .host()
        .sh("ip link add net1 type veth peer name other");
    let pod = sandbox.pod("a");
    add(&sandbox, &dev0(), &pod);
    del(&sandbox, &dev0(), &pod);
    assert_at_home(&sandbox);
}

#[test]
fn a_link_of_the_pod_may_have_the_name_that_the_device_has_on_the_node() {
    beyond_peer("early versions move it under its own name", || {
        let sandbox = node();
        let pod = sandbox.pod("a");
        pod.sh("ip link add dev0 type veth peer name x");
        add(&sandbox, &dev0(), &pod);
        assert_eq!(pod.link("net1").expect("net1")["ifalias"], "dev0");
        del(&sandbox, &dev0(), &pod);
        assert_at_home(&sandbox);
        assert_eq!(pod.links(), ["dev0", "lo", "x"]);
    });
}

/// What the kernel does with hardware when a namespace ends: it goes to the first namespace under the name that the pod
/// gave it. Other links are deleted, so the test moves the veth.
fn vanish(sandbox: &Sandbox, pod: &Netns, name: &str) {
    pod.sh("ip link set net1 down");
    if name != "net1" {
        pod.sh(&format!("ip link set net1 name {name}"));
    }
    let host = sandbox.host();
    host.sh(&format!(
        "ip netns attach node $$; ip -n {} link set {name} netns node; ip netns del node",
        pod.name()
    ));
    sandbox.remove_pod(pod);
}

#[test]
fn a_device_that_the_kernel_returned_gets_its_name_back() {
    beyond_peer("plugins#1196: no such file or directory", || {
        for (name, alias) in [("net1", "dev0"), ("net1", "far0"), ("dev7", "dev0")] {
            for netns in ["", "/run/netns/a"] {
                let sandbox = node();
                let pod = sandbox.pod("a");
                add(&sandbox, &addressed(), &pod);
                pod.sh(&format!("ip link set net1 alias {alias}"));
                vanish(&sandbox, &pod, name);
                let cni = sandbox.cni("host-device").netns(netns);
                cni.del(&addressed(), &pod, "net1").silent();
                let link = sandbox.host().link("dev0").expect("dev0");
                assert_eq!(link["link"], "far0");
                assert_eq!(link["ifalias"], Value::Null);
                assert_eq!(sandbox.reserved(), [""; 0]);
                assert_eq!(notes(&sandbox), "");
            }
        }
    });
}

#[test]
fn after_a_reboot_the_address_is_released() {
    beyond_peer("plugins#1196: it calls no IPAM plugin", || {
        let sandbox = node();
        let pod = sandbox.pod("a");
        add(&sandbox, &addressed(), &pod);
        sandbox.reboot();
        let cni = sandbox.cni("host-device").netns("");
        cni.del(&addressed(), &pod, "net1").silent();
        assert_eq!(sandbox.reserved(), [""; 0]);
    });
}

#[test]
fn gc_returns_the_devices_of_dead_pods_and_leaves_the_others() {
    beyond_peer("it has no GC", || {
        let sandbox = node();
        sandbox
            .host()
            .sh("ip link add dev1 type veth peer name far1");
        let dev1 = selecting(json!({"device": "dev1", "ipam": addressed()["ipam"]}));
        let (dead, live) = (sandbox.pod("dead"), sandbox.pod("live"));
        add(&sandbox, &addressed(), &dead);
        add(&sandbox, &dev1, &live);
        let id = container_id(&live);
        let valid = conf::with_valid(&conf::at(&addressed(), "1.1.0"), &[(&id, "net1")]);
        for _ in 0..2 {
            sandbox.cni("host-device").gc(&valid).silent();
        }
        assert_at_home(&sandbox);
        assert!(live.link("net1").is_some() && dead.links() == ["lo"]);
        assert_eq!(sandbox.reserved(), ["10.1.0.3"]);
        // GC knows the namespaces where devices are, and those that have ended.
        vanish(&sandbox, &live, "net1");
        let none = conf::with_valid(&conf::at(&dev1, "1.1.0"), &[]);
        sandbox.cni("host-device").gc(&none).silent();
        assert!(sandbox.host().link("dev1").is_some());
        assert_eq!(sandbox.reserved(), [""; 0]);
    });
}

#[test]
fn status_promises_nothing_about_the_device() {
    let sandbox = node();
    for keys in [
        json!({"device": "dev0"}),
        json!({"device": "not-there"}),
        json!({}),
    ] {
        let conf = conf::at(&selecting(keys), newest());
        if newest() == "1.1.0" {
            sandbox.cni("host-device").status(&conf).silent();
        }
    }
    beyond_peer("STATUS came later, and looks at nothing", || {
        let conf = conf::at(&selecting(json!({"hwaddr": "x"})), "1.1.0");
        let error = sandbox.cni("host-device").status(&conf).error();
        assert_eq!(error.code, 7);
    });
}

// ---- whose device it is

#[test]
fn an_interface_of_the_pod_keeps_its_name() {
    beyond_peer("early versions leave the device in the pod", || {
        let sandbox = node();
        let pod = sandbox.pod("a");
        pod.sh("ip link add net1 type veth peer name x");
        let snapshot = sandbox.snapshot();
        let error = sandbox
            .cni("host-device")
            .add(&dev0(), &pod, "net1")
            .error();
        assert!(error.msg.contains("failed to move link"), "{error:?}");
        assert!(error.msg.contains("file exists"), "{error:?}");
        assert_at_home(&sandbox);
        snapshot.assert_unchanged();
    });
}

#[test]
fn a_device_that_another_pod_has_is_not_found() {
    let sandbox = node();
    let (one, two) = (sandbox.pod("one"), sandbox.pod("two"));
    add(&sandbox, &dev0(), &one);
    let error = sandbox
        .cni("host-device")
        .add(&dev0(), &two, "net1")
        .error();
    assert!(
        error
            .msg
            .contains("failed to find host device: Link not found"),
        "{error:?}"
    );
    beyond_peer("Link not found", || {
        // The runtime calls DEL after an ADD that failed: it is no DEL of the other pod.
        del(&sandbox, &dev0(), &two);
        assert!(one.link("net1").is_some());
        // Nor is it while the first pod's name is a name of this network.
        let error = sandbox
            .cni("host-device")
            .add(&dev0(), &one, "net2")
            .error();
        assert!(error.msg.contains("Link not found"), "{error:?}");
    });
}

#[test]
fn the_end_of_another_pods_veth_is_not_taken() {
    beyond_peer("it takes any link", || {
        let sandbox = Sandbox::new();
        let (one, two) = (sandbox.pod("one"), sandbox.pod("two"));
        let bridge = conf::bridge(&["10.1.0.0/24"]);
        let result = sandbox.cni("bridge").add(&bridge, &one, "eth0").result();
        let veth = result["interfaces"][1]["name"].as_str().expect("a veth");
        let conf = selecting(json!({"device": veth}));
        let error = sandbox.cni("host-device").add(&conf, &two, "net1").error();
        assert!(error.msg.contains("it belongs to podwire:"), "{error:?}");
        assert!(sandbox.host().link(veth).is_some());
    });
}

#[test]
fn of_two_adds_at_once_one_gets_the_device() {
    for _ in 0..10 {
        let sandbox = node();
        let pods = [sandbox.pod("one"), sandbox.pod("two")];
        let barrier = Barrier::new(2);
        let codes: Vec<i32> = std::thread::scope(|scope| {
            let race = |pod: &Netns| {
                barrier.wait();
                sandbox
                    .cni("host-device")
                    .add(&addressed(), pod, "net1")
                    .code()
            };
            let threads = [&pods[0], &pods[1]].map(|pod| scope.spawn(move || race(pod)));
            threads.map(|it| it.join().expect("an ADD")).into()
        });
        let winners: Vec<_> = (0..2).filter(|it| codes[*it] == 0).collect();
        assert_eq!(winners.len(), 1, "{codes:?}");
        let (winner, loser) = (&pods[winners[0]], &pods[1 - winners[0]]);
        assert!(winner.link("net1").is_some() && loser.links() == ["lo"]);
        beyond_peer_if(true, || {
            assert_eq!(sandbox.reserved().len(), 1);
            del(&sandbox, &addressed(), loser);
            assert!(winner.link("net1").is_some());
            del(&sandbox, &addressed(), winner);
            assert_at_home(&sandbox);
        });
    }
}

#[test]
fn one_interface_has_one_device() {
    beyond_peer("it takes another", || {
        let sandbox = node();
        sandbox
            .host()
            .sh("ip link add dev1 type veth peer name far1");
        let pod = sandbox.pod("a");
        add(&sandbox, &dev0(), &pod);
        pod.sh("ip link set net1 down; ip link set net1 name x");
        let dev1 = selecting(json!({"device": "dev1"}));
        let error = sandbox.cni("host-device").add(&dev1, &pod, "net1").error();
        assert!(
            error
                .msg
                .contains(r#"has the device "dev0" already, as "x""#),
            "{error:?}"
        );
        del(&sandbox, &dev0(), &pod);
        assert_at_home(&sandbox);
        assert!(sandbox.host().link("dev1").is_some());
    });
}

// ---- how a device is selected

#[track_caller]
fn selects(sandbox: &Sandbox, keys: Value) {
    let pod = sandbox.pod("selected");
    let conf = selecting(keys);
    add(sandbox, &conf, &pod);
    assert_eq!(pod.link("net1").expect("net1")["ifalias"], "dev0", "{conf}");
    del(sandbox, &conf, &pod);
    assert_at_home(sandbox);
    sandbox.remove_pod(&pod);
}

#[track_caller]
fn selects_nothing(sandbox: &Sandbox, keys: Value, code: u64, text: &str) {
    let pod = sandbox.pod("refused");
    let conf = selecting(keys);
    let error = sandbox.cni("host-device").add(&conf, &pod, "net1").error();
    assert!(error.msg.contains(text), "{error:?}");
    beyond_peer_code(code, error.code);
    assert_eq!(pod.links(), ["lo"]);
    sandbox.remove_pod(&pod);
}

/// The Go plugin has one code for everything.
#[track_caller]
fn beyond_peer_code(ours: u64, is: u64) {
    match ours {
        999 => assert_eq!(is, 999),
        _ => beyond_peer("it has one code", || assert_eq!(is, ours)),
    }
}

#[test]
fn by_hardware_address() {
    let sandbox = node();
    selects(&sandbox, json!({"hwaddr": MAC}));
    selects(&sandbox, json!({"hwaddr": "02-00-00-00-00-01"}));
    selects(
        &sandbox,
        json!({"device": "dev0", "hwaddr": "02:00:00:00:00:99"}),
    );
    let absent = json!({"hwaddr": "02:00:00:00:00:99"});
    selects_nothing(&sandbox, absent, 999, "failed to find physical interface");
    let bad = json!({"hwaddr": "zz"});
    let text = r#"failed to parse MAC address "zz": address zz: invalid MAC address"#;
    selects_nothing(&sandbox, bad, 7, text);
}

#[test]
fn by_name() {
    let sandbox = node();
    let text = "failed to find host device: Link not found";
    selects_nothing(&sandbox, json!({"device": "nope"}), 999, text);
    let long = json!({"device": "a-name-that-is-longer-than-any"});
    selects_nothing(&sandbox, long, 999, "failed to find host device");
    let text = r#"specify either "device", "hwaddr", "kernelpath" or "pciBusID""#;
    for keys in [json!({}), json!({"device": ""}), json!({"DPDKMode": true})] {
        selects_nothing(&sandbox, keys, 7, text);
    }
}

#[test]
fn by_kernel_path() {
    let sandbox = node();
    selects_nothing(
        &sandbox,
        json!({"kernelpath": "/sys/class/net/dev0"}),
        7,
        "must be absolute and begin with /sys/devices/",
    );
    let virtual_devices = json!({"kernelpath": "/sys/devices/not-there"});
    // The directory of all links without hardware, of which the first is meant.
    sandbox.host().sh("mount -t tmpfs tmpfs /sys/devices; mkdir -p /sys/devices/card/net/dev0 /sys/devices/empty/net");
    selects(&sandbox, json!({"kernelpath": "/sys/devices/card"}));
    let empty = json!({"kernelpath": "/sys/devices/empty"});
    selects_nothing(
        &sandbox,
        empty,
        999,
        "failed to find network device in path /sys/devices/empty/net",
    );
    beyond_peer("early versions have other words", || {
        let text = "failed to read directory /sys/devices/not-there/net";
        selects_nothing(&sandbox, virtual_devices, 999, text);
    });
}

#[test]
fn by_address_on_the_pci_bus() {
    let sandbox = node();
    let devices = [
        pci_device(
            "0000:00:03.0",
            "ice",
            "mkdir -p pci/devices/0000:00:03.0/net/dev0",
        ),
        pci_device(
            "0000:00:04.0",
            "ice",
            "mkdir -p pci/devices/0000:00:04.0/virtio1/net/dev0",
        ),
        pci_device("0000:00:05.0", "ice", ""),
        "mkdir -p pci/devices/0000:00:06.0/net/dev0".into(),
    ];
    with_buses(&sandbox, &devices.join("\n"));
    selects(&sandbox, json!({"pciBusID": "0000:00:03.0"}));
    selects(&sandbox, json!({"pciBusID": "0000:00:04.0"}));
    selects(
        &sandbox,
        json!({"runtimeConfig": {"deviceID": "0000:00:03.0"}}),
    );
    // The runtime's counts, and it is not the first.
    let both = json!({"pciBusID": "0000:00:99.0", "runtimeConfig": {"deviceID": "0000:00:03.0"}});
    selects(&sandbox, both);
    selects(
        &sandbox,
        json!({"device": "dev0", "pciBusID": "0000:00:03.0"}),
    );
    let no_net = json!({"pciBusID": "0000:00:05.0"});
    selects_nothing(
        &sandbox,
        no_net,
        999,
        "no net directory under pci device 0000:00:05.0",
    );
    for id in ["0000:00:06.0", "0000:00:99.0"] {
        let text = "error with host device: lstat /sys/bus/pci/devices/";
        selects_nothing(&sandbox, json!({"pciBusID": id}), 999, text);
    }
    beyond_peer("it looks elsewhere", || {
        let outside = json!({"pciBusID": "../drivers"});
        selects_nothing(&sandbox, outside, 7, "no address of a device on a bus");
    });
}

#[test]
fn by_name_on_the_auxiliary_bus() {
    beyond_peer("early versions know one bus", || {
        let sandbox = node();
        with_buses(
            &sandbox,
            "mkdir -p auxiliary/devices/mlx5_core.sf.4/net/dev0",
        );
        selects(
            &sandbox,
            json!({"runtimeConfig": {"deviceID": "mlx5_core.sf.4"}}),
        );
        let absent = json!({"runtimeConfig": {"deviceID": "mlx5_core.sf.5"}});
        let text = "runtime config DeviceID mlx5_core.sf.5 not found or unsupported";
        selects_nothing(&sandbox, absent, 999, text);
    });
}

#[test]
fn the_result_names_the_device_on_the_pci_bus() {
    beyond_peer("it names none", || {
        let sandbox = node();
        let device = pci_device(
            "0000:00:03.0",
            "ice",
            "mkdir -p pci/devices/0000:00:03.0/net/dev0",
        );
        with_buses(&sandbox, &device);
        let pod = sandbox.pod("a");
        let keys = json!({"pciBusID": "0000:00:03.0"});
        let result = add(&sandbox, &conf::at(&selecting(keys), "1.1.0"), &pod);
        assert_eq!(result["interfaces"][0]["pciID"], "0000:00:03.0");
    });
}

// ---- devices that are left to a program

#[test]
fn a_device_of_a_program_has_addresses_and_no_interface() {
    beyond_peer("early versions return no interface", || {
        let sandbox = node();
        for (name, driver) in [
            ("1", "vfio-pci"),
            ("2", "uio_pci_generic"),
            ("3", "igb_uio"),
        ] {
            let id = format!("0000:00:0{name}.1");
            if name == "1" {
                with_buses(&sandbox, "");
            }
            sandbox.host().sh(&format!(
                "cd /sys/bus; mkdir -p pci/drivers/{driver}\n{}",
                pci_device(&id, driver, "")
            ));
            let keys = match name {
                "1" => json!({"runtimeConfig": {"deviceID": id}}),
                _ => json!({"pciBusID": id}),
            };
            let ipam = json!({"ipam": conf::host_local_ipam(&["10.1.0.0/24"])});
            let conf = conf::with(&conf::at(&selecting(keys), "1.0.0"), ipam);
            let pod = sandbox.pod(name);
            let result = add(&sandbox, &conf, &pod);
            let interface = json!({"name": "net1", "sandbox": pod.path()});
            assert_eq!(result["interfaces"], json!([interface]));
            assert_eq!(result["ips"][0]["interface"], 0);
            assert_eq!(pod.links(), ["lo"]);
            assert_eq!(sandbox.reserved().len(), 1);
            let checked = conf::with_prev(&conf, &result);
            sandbox
                .cni("host-device")
                .check(&checked, &pod, "net1")
                .silent();
            del(&sandbox, &conf, &pod);
            assert_eq!(sandbox.reserved(), [""; 0]);
            let alone = conf::with(&conf, json!({"ipam": null}));
            let result = add(&sandbox, &alone, &pod);
            assert_eq!(result["interfaces"], json!([interface]));
            del(&sandbox, &alone, &pod);
        }
        assert_at_home(&sandbox);
    });
}

#[test]
fn del_needs_no_device_on_the_bus() {
    beyond_peer("reference 8 #3: error with host device", || {
        let sandbox = node();
        let device = pci_device(
            "0000:77:03.0",
            "ice",
            "mkdir -p pci/devices/0000:77:03.0/net/dev0",
        );
        with_buses(&sandbox, &device);
        let pod = sandbox.pod("a");
        let keys =
            json!({"pciBusID": "0000:77:03.0", "ipam": conf::host_local_ipam(&["10.1.0.0/24"])});
        let conf = selecting(keys);
        add(&sandbox, &conf, &pod);
        sandbox.host().sh("umount /sys/bus");
        del(&sandbox, &conf, &pod);
        assert_at_home(&sandbox);
        assert_eq!(sandbox.reserved(), [""; 0]);
    });
}

#[test]
fn an_interface_that_the_key_leaves_to_a_program_stays() {
    beyond_peer("early versions return no interface", || {
        let sandbox = node();
        let pod = sandbox.pod("a");
        let conf = conf::at(
            &selecting(json!({"device": "dev0", "DPDKMode": true})),
            "1.0.0",
        );
        let result = add(&sandbox, &conf, &pod);
        assert_eq!(
            result["interfaces"],
            json!([{"name": "net1", "sandbox": pod.path()}])
        );
        del(&sandbox, &conf, &pod);
        assert_at_home(&sandbox);
    });
}

// ---- both suites

#[test]
fn a_device_of_one_suite_is_returned_by_the_other() {
    beyond_peer("it tests both", || {
        for (adds, deletes) in [(Suite::Ours, Suite::Peer), (Suite::Peer, Suite::Ours)] {
            let sandbox = node();
            let pod = sandbox.pod("a");
            let conf = conf::at(&addressed(), "1.0.0");
            let cni = |suite| sandbox.cni("host-device").suite(suite);
            let result = cni(adds).add(&conf, &pod, "net1").result();
            let checked = conf::with_prev(&conf, &result);
            cni(deletes).check(&checked, &pod, "net1").silent();
            cni(deletes).del(&conf, &pod, "net1").silent();
            match deletes {
                Suite::Ours => assert_at_home(&sandbox),
                // Old versions leave the alias.
                Suite::Peer => assert!(sandbox.host().link("dev0").is_some()),
            }
            assert_eq!(sandbox.reserved(), [""; 0]);
            // A note that the other suite leaves does no harm.
            let again = sandbox.pod("b");
            cni(adds).add(&conf, &again, "net1").result();
            cni(Suite::Ours).del(&conf, &pod, "net1").silent();
            assert!(again.link("net1").is_some());
        }
    });
}
