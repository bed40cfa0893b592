//! The veth pair, the bridge, and how long they live.

use sandbox::{Netns, Sandbox, beyond_peer, conf, newest};
use serde_json::json;

use crate::{add, attached, bridge, del, dual, has_flag, host_veth, name};

#[test]
fn add_wires_the_pod_to_the_bridge_and_says_how() {
    let (sandbox, pod, result) = attached(&bridge(json!({})));
    let host = sandbox.host();
    let (cni0, veth) = (host.link("cni0").expect("cni0"), host_veth(&sandbox));
    let eth0 = pod.link("eth0").expect("eth0");
    assert_eq!(cni0["linkinfo"]["info_kind"], "bridge");
    assert_eq!(veth["master"], "cni0");
    for link in [&veth, &eth0] {
        assert_eq!(link["operstate"], "UP", "{link}");
    }
    // The kernel works out a bridge's operational state a little later.
    assert!(has_flag(&cni0, "UP"), "{cni0}");
    assert_eq!(result["cniVersion"], newest());
    let interfaces = result["interfaces"].as_array().expect("interfaces");
    assert_eq!(interfaces.len(), 3);
    for (interface, link) in interfaces.iter().zip([&cni0, &veth, &eth0]) {
        assert_eq!(interface["name"], link["ifname"]);
        assert_eq!(interface["mac"], link["address"]);
    }
    assert_eq!(interfaces[2]["sandbox"], pod.path());
    assert!(interfaces[0].get("sandbox").is_none() && interfaces[1].get("sandbox").is_none());
    let ips = json!([{"address": "10.1.0.2/24", "gateway": "10.1.0.1", "interface": 2}]);
    assert_eq!(result["ips"], ips);
    assert_eq!(pod.addresses("eth0"), ["10.1.0.2/24"]);
}

#[test]
fn the_host_veth_is_named_veth_and_eight_hex_digits() {
    let (sandbox, _, _) = attached(&bridge(json!({})));
    let name = host_veth(&sandbox)["ifname"]
        .as_str()
        .expect("a name")
        .to_owned();
    let digits = name.strip_prefix("veth").expect("veth");
    assert!(
        digits.len() == 8
            && digits
                .chars()
                .all(|c| c.is_ascii_digit() || ('a'..='f').contains(&c)),
        "{name}"
    );
}

#[test]
fn node_and_pods_reach_each_other_at_once() {
    let sandbox = Sandbox::new();
    let (a, b) = (sandbox.pod("a"), sandbox.pod("b"));
    let conf = dual(json!({}));
    add(&sandbox, &conf, &a);
    add(&sandbox, &conf, &b);
    assert_eq!(a.ping("10.1.0.1", 2), [true, true]);
    assert_eq!(a.ping("10.1.0.3", 2), [true, true]);
    assert_eq!(b.ping("fd01::2", 2), [true, true]);
    gateway_settled(&sandbox);
    assert_eq!(sandbox.host().ping("10.1.0.2", 2), [true, true]);
    assert_eq!(sandbox.host().ping("fd01::3", 2), [true, true]);
}

/// Waits until the kernel's duplicate address detection of the bridge's IPv6 address is over (a second).
fn gateway_settled(sandbox: &Sandbox) {
    let settled = |host: &Netns| {
        !host
            .sh("ip -6 addr show dev cni0 tentative")
            .contains("fd01::1")
    };
    sandbox
        .host()
        .wait_until("the gateway's address is not tentative", settled);
}

#[test]
fn the_bridge_is_called_cni0_unless_named() {
    let (sandbox, _, result) = attached(&bridge(json!({"bridge": null})));
    assert_eq!(result["interfaces"][0]["name"], "cni0");
    assert!(sandbox.host().link("cni0").is_some());
    let (sandbox, _, _) = attached(&bridge(json!({"bridge": "br-blue"})));
    assert!(sandbox.host().link("br-blue").is_some() && sandbox.host().link("cni0").is_none());
}

#[test]
fn an_existing_bridge_is_joined_and_keeps_its_settings() {
    let sandbox = Sandbox::new();
    let host = sandbox.host();
    host.sh("ip link add cni0 address 02:11:22:33:44:55 mtu 1450 type bridge ageing_time 12300");
    let pod = sandbox.pod("a");
    let result = add(&sandbox, &bridge(json!({})), &pod);
    assert_eq!(result["interfaces"][0]["mac"], "02:11:22:33:44:55");
    let cni0 = host.link("cni0").expect("cni0");
    assert_eq!(cni0["linkinfo"]["info_data"]["ageing_time"], 12300);
    assert!(has_flag(&cni0, "UP"));
    assert_eq!(host.ping("10.1.0.2", 1), [true]);
}

#[test]
fn a_link_that_is_no_bridge_is_not_taken_for_one() {
    let sandbox = Sandbox::new();
    sandbox
        .host()
        .sh("ip link add cni0 type veth peer name other");
    let pod = sandbox.pod("a");
    let snapshot = sandbox.snapshot();
    let error = sandbox
        .cni("bridge")
        .add(&bridge(json!({})), &pod, "eth0")
        .error();
    assert!(
        error
            .msg
            .contains("\"cni0\" already exists but is not a bridge"),
        "{}",
        error.msg
    );
    snapshot.assert_unchanged();
}

#[test]
fn the_bridge_outlives_its_pods() {
    let (sandbox, pod, _) = attached(&bridge(json!({})));
    del(&sandbox, &bridge(json!({})), &pod);
    assert_eq!(sandbox.host().links(), ["cni0", "lo"]);
    assert_eq!(sandbox.host().addresses("cni0"), ["10.1.0.1/24"]);
}

#[test]
fn two_interfaces_of_one_pod_are_two_attachments() {
    let sandbox = Sandbox::new();
    let pod = sandbox.pod("a");
    let (one, two) = (
        bridge(json!({})),
        bridge(
            json!({"name": "other", "bridge": "br1", "ipam": {"ranges": [[{"subnet": "10.2.0.0/24"}]]}}),
        ),
    );
    sandbox.cni("bridge").add(&one, &pod, "eth0").result();
    sandbox.cni("bridge").add(&two, &pod, "net1").result();
    sandbox.cni("bridge").del(&one, &pod, "eth0").silent();
    assert_eq!(pod.links(), ["lo", "net1"]);
    assert_eq!(pod.addresses("net1"), ["10.2.0.2/24"]);
    assert_eq!(pod.ping("10.2.0.1", 1), [true]);
}

#[test]
fn an_unlabelled_host_veth_is_deleted_unless_it_is_in_use() {
    let (sandbox, conf) = (Sandbox::new(), conf::bridge(&["10.1.0.0/24"]));
    let (host, pod) = (sandbox.host(), sandbox.pod("a"));
    sandbox.cni("bridge").add(&conf, &pod, "eth0").result();
    let name = host_veth(&sandbox)["ifname"].clone();
    let name = name.as_str().expect("a name");
    let gone_for_the_runtime = || {
        let del = sandbox.cni("bridge").netns("");
        del.del(&conf, &pod, "eth0").silent();
    };
    gone_for_the_runtime();
    // As an ADD leaves it that is killed before it says whose the link is.
    host.sh(&format!(
        "ip link add {name} master cni0 type veth peer name eth0 netns a"
    ));
    gone_for_the_runtime();
    assert_eq!(host.link(name), None);
    host.sh(&format!(
        "ip link add {name} up type veth peer name eth0 netns a"
    ));
    gone_for_the_runtime();
    assert!(host.link(name).is_some());
}

/// Makes as many ports of `cni0` as a node with many pods has.
fn make_ports(host: &Netns) {
    host.sh("for i in $(seq 64); do
            n=$(printf %08x $i)
            echo link add veth$n master cni0 type veth peer name p$n
         done | ip -batch -");
}

#[test]
fn among_many_pods_settings_are_written_in_an_instance_of_proc_that_is_adds_own() {
    beyond_peer("the instance of all, where a look-up takes 1 ms", || {
        let (sandbox, _first, _) = attached(&bridge(json!({})));
        make_ports(&sandbox.host());
        let trace = sandbox.dir().join("trace").display().to_string();
        let strace = ["strace", "-o", &trace, "-e"];
        let calls = "trace=fsmount,openat";
        // Rootless runtimes get no instance.
        for (id, calls) in [("own", calls), ("refused", "inject=fsopen:error=EPERM")] {
            let (pod, strace) = (sandbox.pod(id), [&strace[..], &[calls]].concat());
            let cni = sandbox.cni("bridge").id(id).under(&strace);
            let result = cni.add(&bridge(json!({})), &pod, "eth0").result();
            let accept_ra = format!("net/ipv6/conf/{}/accept_ra", name(&result, 1));
            assert_eq!(sandbox.host().sysctl(&accept_ra), "0", "{id}");
            let accept_dad = "net/ipv6/conf/eth0/accept_dad";
            assert_eq!(pod.sysctl(accept_dad), "0", "{id}");
            let text = std::fs::read_to_string(&trace).expect("the trace");
            let expected = match id {
                "own" => [("fsmount(", true), ("\"/proc/sys/net", false)],
                _ => [("INJECTED", true), ("fsmount(", false)],
            };
            for (call, made) in expected {
                assert_eq!(text.contains(call), made, "{call} in {text}");
            }
        }
    });
}

#[test]
fn add_looks_up_no_process_in_proc() {
    beyond_peer("its own, for each namespace: 0.2 ms", || {
        let conf = bridge(json!({"ipMasq": true}));
        let (sandbox, _first, _) = attached(&conf);
        let trace = sandbox.dir().join("trace").display().to_string();
        // Without CAP_DAC_READ_SEARCH the reservation gets its name by /proc.
        for (id, calls, expected) in [
            ("all", "trace=%file", false),
            ("less", "inject=linkat:error=ENOENT:when=1", true),
        ] {
            let strace = ["strace", "-f", "-o", &trace, "-e", calls];
            let (pod, cni) = (sandbox.pod(id), sandbox.cni("bridge").id(id));
            cni.under(&strace).add(&conf, &pod, "eth0").result();
            let text = std::fs::read_to_string(&trace).expect("the trace");
            assert!(text.contains("exited with 0"), "{text}");
            // glibc reads /proc/self/maps before main.
            let looks = ["self/ns", "self/fd", "thread-self"]
                .iter()
                .any(|it| text.contains(&format!("/proc/{it}")));
            assert_eq!(looks, expected, "{id}: {text}");
        }
    });
}

#[test]
fn router_advertisements_are_refused_on_bridge_and_host_veth() {
    let (sandbox, _, _) = attached(&bridge(json!({})));
    let veth = host_veth(&sandbox)["ifname"]
        .as_str()
        .expect("a name")
        .to_owned();
    for link in ["cni0", &veth] {
        assert_eq!(
            sandbox
                .host()
                .sysctl(&format!("net/ipv6/conf/{link}/accept_ra")),
            "0",
            "{link}"
        );
    }
}

#[test]
fn the_host_veth_has_no_link_local_address_and_the_pods_end_has_one() {
    let (sandbox, pod, _) = attached(&bridge(json!({})));
    let veth = host_veth(&sandbox)["ifname"].clone();
    let name = veth.as_str().expect("a name");
    pod.wait_until("eth0 has a link-local address", |pod| {
        pod.sh("ip -6 addr show dev eth0").contains("fe80::")
    });
    assert_eq!(
        sandbox.host().sh(&format!("ip -6 addr show dev {name}")),
        ""
    );
    let mode = |netns: &Netns, link| netns.link(link).expect(link)["inet6_addr_gen_mode"].clone();
    assert_eq!(mode(&sandbox.host(), name), "none");
    assert_eq!(mode(&pod, "eth0"), "eui64");
}

/// Sends a router advertisement from `eth0` to a hardware address that bridges do not forward.
const ADVERTISE_PAST_THE_BRIDGE: &str = r#"
    use Socket qw(:all);
    my ($source, $all) = map { inet_pton(AF_INET6, $_) } "fe80::bad", "ff02::1";
    # Type 134, code 0, hop limit 64, router lifetime 1800 s.
    my $message = sub { pack("CCnCCnNN", 134, 0, $_[0], 64, 0, 1800, 0, 0) };
    my $sum = unpack("%32n*", $source . $all . pack("NN", 16, 58) . $message->(0));
    $sum = ($sum & 0xffff) + ($sum >> 16) for 1, 2;
    my $packet = pack("NnCC", 6 << 28, 16, 58, 255) . $source . $all . $message->(~$sum & 0xffff);
    my $frame = pack("H12H12H4", "0180c2000003", "02000000000a", "86dd") . $packet;
    socket(my $s, 17, SOCK_RAW, 0) or die "socket: $!";
    send($s, $frame, 0, pack("SniSCCa8", 17, 0x86dd, $ARGV[0], 1, 0, 6, "")) or die "send: $!";
"#;

#[test]
fn a_pod_cannot_advertise_past_the_bridge_to_the_host_veth() {
    let (sandbox, pod, _) = attached(&bridge(json!({})));
    let (host, veth) = (sandbox.host(), host_veth(&sandbox));
    let veth = veth["ifname"].as_str().expect("a name");
    let index = pod.link("eth0").expect("eth0")["ifindex"].to_string();
    let advertise = || {
        let sent = pod.run(&["perl", "-e", ADVERTISE_PAST_THE_BRIDGE, &index]);
        assert_eq!(sent.code, 0, "{}", sent.stderr);
    };
    let routed = |host: &Netns| !host.routes_to("-6", "default").is_empty();
    for _ in 0..5 {
        advertise();
    }
    // Only this setting and the missing route to multicast groups keep the node from accepting it.
    let setting = format!("/proc/sys/net/ipv6/conf/{veth}/accept_ra");
    assert!(!routed(&host));
    host.sh(&format!(
        "ip -6 route add multicast ff00::/8 dev {veth} table local"
    ));
    for _ in 0..5 {
        advertise();
    }
    assert!(!routed(&host));
    host.sh(&format!("echo 1 >{setting}"));
    host.wait_until("the node accepts the advertisement", |host| {
        advertise();
        routed(host)
    });
    host.sh(&format!("echo 0 >{setting}; ip -6 route del default"));
}
