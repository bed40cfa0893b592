//! Nodes that lack what a configuration needs: STATUS, and errors before anything is changed.

use sandbox::{Cni, Netns, Sandbox, beyond_peer, conf, conf_of};
use serde_json::json;

use crate::{add, bridge, del};

#[test]
fn status_says_when_the_bridge_s_name_is_taken() {
    beyond_peer("no STATUS there", || {
        let sandbox = Sandbox::new();
        let conf = bridge(json!({"cniVersion": "1.1.0"}));
        sandbox.cni("bridge").status(&conf).silent();
        sandbox
            .host()
            .sh("ip link add cni0 type veth peer name other");
        assert_eq!(sandbox.cni("bridge").status(&conf).error().code, 50);
    });
}

/// Makes a bridge with all ports that it can have.
fn fill(host: &Netns, bridge: &str) {
    host.sh(&format!(
        "ip link add {bridge} type bridge
         for i in $(seq 1 512); do
            echo link add name a$i master {bridge} type veth peer name b$i
            [ $i = 512 ] || echo link set b$i master {bridge}
         done | ip -batch -"
    ));
}

#[test]
fn a_bridge_without_room_for_a_port_is_reported() {
    beyond_peer("exchange full", || {
        for plugin in ["bridge", "vxlan"] {
            let sandbox = Sandbox::new();
            sandbox.make_ready(plugin);
            let pod = sandbox.pod("a");
            let conf = conf::with(&conf_of(plugin), json!({"bridge": "cni0"}));
            fill(&sandbox.host(), "cni0");
            let full = "bridge \"cni0\" is full: a Linux bridge takes 1023 ports";
            let error = sandbox.cni(plugin).status(&conf).error();
            assert_eq!((error.code, error.msg.as_str()), (50, full));
            let error = sandbox.cni(plugin).add(&conf, &pod, "eth0").error();
            assert_eq!((error.code, error.msg.as_str()), (11, full));
            sandbox.host().sh("ip link del a1");
            sandbox.cni(plugin).status(&conf).silent();
            sandbox.cni(plugin).add(&conf, &pod, "eth0").result();
        }
    });
}

#[test]
fn ipv6_that_is_disabled_on_the_node_is_named() {
    beyond_peer("permission denied", || {
        for (plugin, device) in [("bridge", "cni0"), ("vxlan", "vxlan.5")] {
            let sandbox = Sandbox::new();
            sandbox.make_ready(plugin);
            let pod = sandbox.pod("a");
            sandbox
                .host()
                .sh("echo 1 >/proc/sys/net/ipv6/conf/default/disable_ipv6");
            let status = sandbox.cni(plugin).status(&conf_of(plugin)).error();
            assert_eq!(status.code, 50);
            assert!(status.msg.ends_with(".disable_ipv6 is 1"), "{status:?}");
            let error = sandbox
                .cni(plugin)
                .add(&conf_of(plugin), &pod, "eth0")
                .error();
            let why = format!(
                "to \"{device}\", where net.ipv6.conf.{device}.disable_ipv6 is 1: permission denied (13)"
            );
            assert!(error.msg.contains(&why), "{}", error.msg);
        }
    });
}

#[test]
fn a_pod_without_ipv6_gets_it_with_its_address() {
    for plugin in ["bridge", "macvlan"] {
        let sandbox = Sandbox::new();
        sandbox.make_ready(plugin);
        let pod = sandbox.pod("a");
        pod.sh("for of in all default; do
                echo 1 >/proc/sys/net/ipv6/conf/$of/disable_ipv6
            done");
        let result = sandbox.cni(plugin).add(&conf_of(plugin), &pod, "eth0");
        result.result();
        assert_eq!(pod.addresses("eth0"), ["10.1.0.2/24", "fd01::2/64"]);
    }
}

/// A call where /proc/sys is read-only, as in rootless runtimes.
fn without_sysctls(call: Cni) -> Cni {
    let read_only = r#"mount --bind /proc/sys /proc/sys
        mount -o remount,bind,ro /proc/sys
        exec "$@""#;
    call.under(&["unshare", "--mount", "sh", "-ec", read_only, "sh"])
}

#[test]
fn a_read_only_proc_sys_costs_no_add_what_it_can_do_without() {
    beyond_peer("keep_addr_on_down", || {
        for plugin in ["bridge", "vxlan", "macvlan"] {
            let sandbox = Sandbox::new();
            sandbox.make_ready(plugin);
            let (pod, conf) = (sandbox.pod("a"), conf_of(plugin));
            sandbox.host().sh("echo 1 >/proc/sys/net/ipv4/ip_forward
                 echo 1 >/proc/sys/net/ipv6/conf/all/forwarding");
            let call = || without_sysctls(sandbox.cni(plugin));
            call().status(&conf).silent();
            let result = call().add(&conf, &pod, "eth0").result();
            assert_eq!(pod.addresses("eth0"), ["10.1.0.2/24", "fd01::2/64"]);
            let checked = conf::with_prev(&conf, &result);
            call().check(&checked, &pod, "eth0").silent();
            call().del(&checked, &pod, "eth0").silent();
        }
    });
}

#[test]
fn status_and_add_report_what_a_read_only_proc_sys_forbids() {
    beyond_peer("no STATUS there", || {
        for plugin in ["bridge", "vxlan"] {
            for family in ["4", "6"] {
                let sandbox = Sandbox::new();
                sandbox.make_ready(plugin);
                let (pod, conf) = (sandbox.pod("a"), conf_of(plugin));
                if family == "6" {
                    let host = sandbox.host();
                    host.sh("echo 1 >/proc/sys/net/ipv4/ip_forward");
                }
                let call = || without_sysctls(sandbox.cni(plugin));
                let status = call().status(&conf).error();
                assert_eq!(status.code, 50, "{}", status.msg);
                let error = call().add(&conf, &pod, "eth0").error();
                for msg in [status.msg, error.msg] {
                    let forbidden = msg.starts_with("failed to enable forwarding")
                        && msg.contains("read-only file system (30)");
                    assert!(forbidden, "{plugin} {family}: {msg}");
                }
            }
        }
    });
}

#[test]
fn a_namespace_of_another_kind_is_reported_at_once() {
    beyond_peer("reference 8: invalid argument", || {
        let sandbox = Sandbox::new();
        let snapshot = sandbox.snapshot();
        let pod = sandbox.pod("a");
        for plugin in ["bridge", "macvlan", "loopback"] {
            let call = || sandbox.cni(plugin).netns("/proc/self/ns/uts");
            let error = call().add(&conf_of(plugin), &pod, "eth0").error();
            assert!(
                error.msg.contains("it is not a network namespace"),
                "{error:?}"
            );
            call().del(&conf_of(plugin), &pod, "eth0").silent();
        }
        snapshot.allow("netns a").assert_unchanged();
    });
}

#[test]
fn an_impossible_configuration_touches_nothing() {
    beyond_peer("values are checked by the kernel, half way through", || {
        let sandbox = Sandbox::new();
        let pod = sandbox.pod("a");
        let snapshot = sandbox.snapshot();
        for change in [
            json!({"mtu": -1}),
            json!({"mtu": 70000}),
            json!({"mtu": "automatic"}),
            json!({"bridge": ""}),
            json!({"bridge": "a-name-of-sixteen"}),
            json!({"bridge": "a/b"}),
            json!({"bridge": ".."}),
            json!({"hairpinMode": true, "promiscMode": true}),
            json!({"runtimeConfig": {"mac": "nonsense"}}),
            json!({"runtimeConfig": {"mac": "01:00:00:00:00:01"}}),
        ] {
            let error = sandbox
                .cni("bridge")
                .add(&bridge(change.clone()), &pod, "eth0")
                .error();
            assert_eq!(error.code, 7, "{change}: {}", error.msg);
        }
        let cni = sandbox.cni("bridge").args("MAC=nonsense");
        assert_eq!(cni.add(&bridge(json!({})), &pod, "eth0").error().code, 4);
        snapshot.assert_unchanged();
    });
}

#[test]
fn del_forgives_what_add_refuses() {
    beyond_peer("reference 8 #6: validation errors fail DEL", || {
        let sandbox = Sandbox::new();
        let pod = sandbox.pod("a");
        add(&sandbox, &bridge(json!({})), &pod);
        let odd = bridge(
            json!({"mtu": "automatic", "hairpinMode": true, "promiscMode": true, "isGateway": "yes"}),
        );
        del(&sandbox, &odd, &pod);
        assert!(pod.link("eth0").is_none());
        assert_eq!(sandbox.read(format!("{}/10.1.0.2", conf::STATE)), None);
    });
}
