//! A pod with CAP_NET_ADMIN in its own namespace: it names, moves, replaces and hides what
//! is in there.

use sandbox::{Netns, Sandbox, beyond_peer, conf, conf_of};
use serde_json::{Value, json};

/// A pod's script that leaves the link alive under another name, and what makes DEL take
/// something else for it.
const FORGED_PEER: &str = "
    peer=$(ip -o link show eth0 | sed 's/.*@if\\([0-9]*\\):.*/\\1/')
    ip link set eth0 down
    ip link set eth0 name x
    ip link set x up
    ip link add p index $peer type veth peer name eth0";

/// Host veths: none is left when the pod has no way to the bridge any more.
fn ports(host: &Netns) -> Vec<String> {
    let mut links = host.links();
    links.retain(|link| link.starts_with("veth"));
    links
}

/// Links of the host have other indexes than those of a pod from now on.
fn use_up_indexes(sandbox: &Sandbox) {
    sandbox.host().sh("for i in 1 2 3 4 5 6 7 8 9; do
            ip link add used type bridge; ip link del used
        done");
}

/// A chain of one plugin that joins pods to a bridge, with its node.
fn each_bridge(test: impl Fn(&Sandbox, &Netns, &str, &Value)) {
    for plugin in ["bridge", "vxlan"] {
        let sandbox = Sandbox::new();
        sandbox.make_ready(plugin);
        use_up_indexes(&sandbox);
        let pod = sandbox.pod("a");
        let conf = conf_of(plugin);
        test(&sandbox, &pod, plugin, &conf);
    }
}

/// ADD, what the pod does, DEL: the pod is off the bridge, and its addresses are free.
fn is_cut_off(script: &str) {
    each_bridge(|sandbox, pod, plugin, conf| {
        let result = sandbox.cni(plugin).add(conf, pod, "eth0").result();
        assert_eq!(ports(&sandbox.host()).len(), 1);
        pod.sh(script);
        let conf = conf::with_prev(conf, &result);
        for _ in 0..2 {
            sandbox.cni(plugin).del(&conf, pod, "eth0").silent();
            assert_eq!(ports(&sandbox.host()), [""; 0], "{plugin}: {script}");
            assert_eq!(sandbox.reserved(), [""; 0], "{plugin}: {script}");
        }
    });
}

#[test]
fn a_renamed_interface_whose_peers_index_is_forged_is_cut_off() {
    beyond_peer("it deletes what has the name", || is_cut_off(FORGED_PEER));
}

#[test]
fn an_interface_under_another_name_is_cut_off() {
    beyond_peer("it deletes what has the name", || {
        is_cut_off("ip link set eth0 down; ip link set eth0 name x");
        is_cut_off("ip link set eth0 down; ip link set eth0 name x; ip link set lo name eth0");
        is_cut_off(
            "ip link set eth0 down; ip link set eth0 name x
             ip link add eth0 type bridge",
        );
        is_cut_off(
            "ip link set eth0 down; ip link set eth0 name x
             ip link property add dev lo altname eth0",
        );
    });
}

#[test]
fn an_interface_that_was_moved_to_a_namespace_in_the_pod_is_cut_off() {
    beyond_peer("it deletes what is in the pod", || {
        each_bridge(|sandbox, pod, plugin, conf| {
            sandbox.cni(plugin).add(conf, pod, "eth0").result();
            let child = sandbox.pod("child");
            pod.sh("ip link set eth0 netns child");
            assert!(child.link("eth0").is_some());
            sandbox.cni(plugin).del(conf, pod, "eth0").silent();
            assert_eq!(ports(&sandbox.host()), [""; 0]);
            assert!(child.link("eth0").is_none());
        });
    });
}

#[test]
fn del_takes_no_link_that_is_the_pods_own() {
    beyond_peer("it deletes what has the name", || {
        each_bridge(|sandbox, pod, plugin, conf| {
            sandbox.cni(plugin).add(conf, pod, "eth0").result();
            pod.sh("ip link del eth0; ip link add eth0 type bridge");
            sandbox.cni(plugin).del(conf, pod, "eth0").silent();
            assert!(pod.link("eth0").is_some());
            assert_eq!(sandbox.reserved(), [""; 0]);
        });
    });
}

#[test]
fn addresses_are_kept_while_the_pod_can_use_them() {
    beyond_peer("it releases them first", || {
        for plugin in ["bridge", "vxlan", "macvlan"] {
            let sandbox = Sandbox::new();
            sandbox.make_ready(plugin);
            let (pod, conf) = (sandbox.pod("a"), conf_of(plugin));
            sandbox.cni(plugin).add(&conf, &pod, "eth0").result();
            // The kernel refuses to delete the interface.
            let powerless = [
                "setpriv",
                "--bounding-set=-net_admin",
                "--inh-caps=-net_admin",
            ];
            let call = sandbox.cni(plugin).under(&powerless);
            call.del(&conf, &pod, "eth0").error();
            assert!(pod.link("eth0").is_some());
            assert_eq!(sandbox.reserved(), ["10.1.0.2", "fd01::2"], "{plugin}");
            sandbox.cni(plugin).del(&conf, &pod, "eth0").silent();
            assert_eq!(sandbox.reserved(), [""; 0]);
        }
    });
}

#[test]
fn names_by_the_hundred_do_not_hold_up_del() {
    // Each of 127 bytes, and as many as the kernel takes: 64 KiB.
    let names = "for i in $(seq 1 600); do
            printf 'link property add dev eth0 altname %0127d\\n' $i
        done | ip -force -batch - 2>/dev/null || :";
    is_cut_off(names);
    let sandbox = Sandbox::new();
    sandbox.make_ready("macvlan");
    let (pod, conf) = (sandbox.pod("a"), conf_of("macvlan"));
    sandbox.cni("macvlan").add(&conf, &pod, "eth0").result();
    pod.sh(names);
    sandbox.cni("macvlan").del(&conf, &pod, "eth0").silent();
    assert_eq!(pod.links(), ["lo"]);
    assert_eq!(sandbox.reserved(), [""; 0]);
}

#[test]
fn links_by_the_thousand_do_not_hold_up_del() {
    let links = "for i in $(seq 1 1000); do
            echo link add b$i type bridge
        done | ip -batch -";
    for plugin in ["bridge", "macvlan"] {
        let sandbox = Sandbox::new();
        sandbox.make_ready(plugin);
        let (pod, conf) = (sandbox.pod("a"), conf_of(plugin));
        sandbox.cni(plugin).add(&conf, &pod, "eth0").result();
        pod.sh(links);
        sandbox.cni(plugin).del(&conf, &pod, "eth0").silent();
        assert!(pod.link("eth0").is_none());
        assert_eq!(sandbox.reserved(), [""; 0]);
    }
}

#[test]
fn a_pair_that_the_go_plugins_made_is_cut_off_whatever_the_pod_calls_it() {
    beyond_peer("it deletes what has the name", || {
        for script in [
            FORGED_PEER,
            "ip link set eth0 down; ip link set eth0 name x",
        ] {
            let sandbox = Sandbox::new();
            use_up_indexes(&sandbox);
            let (pod, conf) = (sandbox.pod("a"), conf::at(&conf_of("bridge"), "1.0.0"));
            let result = sandbox
                .cni("bridge")
                .peer()
                .add(&conf, &pod, "eth0")
                .result();
            pod.sh(script);
            let conf = conf::with_prev(&conf, &result);
            sandbox.cni("bridge").del(&conf, &pod, "eth0").silent();
            assert_eq!(ports(&sandbox.host()), [""; 0], "{script}");
        }
    });
}

#[test]
fn the_pair_of_another_pod_is_not_taken_for_one_that_the_go_plugins_made() {
    // The pod's link has the index, and the peer's index, that another pod's has.
    let sandbox = Sandbox::new();
    use_up_indexes(&sandbox);
    let (victim, attacker) = (sandbox.pod("v"), sandbox.pod("a"));
    let conf = conf::at(&conf_of("bridge"), "1.0.0");
    let made = sandbox
        .cni("bridge")
        .peer()
        .add(&conf, &victim, "eth0")
        .result();
    let host_end = made["interfaces"][1]["name"].as_str().expect("a name");
    let peer = sandbox.host().link(host_end).expect("there")["ifindex"].clone();
    let own = victim.link("eth0").expect("there")["ifindex"].clone();
    attacker.sh(&format!(
        "ip link add eth0 index {own} type veth peer name p index {peer}"
    ));
    sandbox.cni("bridge").del(&conf, &attacker, "eth0").silent();
    assert_eq!(ports(&sandbox.host()), [host_end]);
    assert!(victim.link("eth0").is_some());
}

#[test]
fn check_is_not_deceived_by_indexes() {
    beyond_peer("it compares indexes of different namespaces", || {
        each_bridge(|sandbox, pod, plugin, conf| {
            let result = sandbox.cni(plugin).add(conf, pod, "eth0").result();
            let _child = sandbox.pod("child");
            let mac = result["interfaces"][2]["mac"].as_str().expect("a MAC");
            let script = format!(
                "own=$(ip -o link show eth0 | sed 's/:.*//')
                 peer=$(ip -o link show eth0 | sed 's/.*@if\\([0-9]*\\):.*/\\1/')
                 ip link set eth0 netns child
                 ip link add eth0 index $own address {mac} type veth peer name p index $peer
                 ip addr add 10.1.0.2/24 dev eth0
                 ip addr add fd01::2/64 dev eth0 nodad
                 ip link set eth0 up; ip link set p up"
            );
            pod.sh(&script);
            let checked = conf::with_prev(conf, &result);
            let error = sandbox.cni(plugin).check(&checked, pod, "eth0").error();
            assert!(error.msg.contains("veth created for bridge"), "{error:?}");
            sandbox.cni(plugin).del(&checked, pod, "eth0").silent();
            assert_eq!(ports(&sandbox.host()), [""; 0]);
        });
    });
}

#[test]
fn check_says_that_the_name_is_another_links() {
    beyond_peer("it says that lo is no veth", || {
        let sandbox = Sandbox::new();
        sandbox.wire();
        for plugin in ["bridge", "macvlan"] {
            let (pod, conf) = (sandbox.pod(plugin), conf_of(plugin));
            let result = sandbox.cni(plugin).add(&conf, &pod, "eth0").result();
            pod.sh("ip link set eth0 down; ip link set eth0 name x
                    ip link property add dev lo altname eth0");
            let checked = conf::with_prev(&conf, &result);
            let error = sandbox.cni(plugin).check(&checked, &pod, "eth0").error();
            assert!(error.msg.contains("eth0 not found"), "{error:?}");
            assert!(error.msg.ends_with("it is another name of lo"), "{error:?}");
        }
    });
}

#[test]
fn loopback_is_found_under_any_name() {
    beyond_peer("Link not found", || {
        let sandbox = Sandbox::new();
        let (pod, conf) = (sandbox.pod("a"), conf::loopback());
        let result = sandbox.cni("loopback").add(&conf, &pod, "lo").result();
        pod.sh(
            "ip link set lo down; ip link set lo name x; ip link set x up
                ip link add lo type bridge",
        );
        let checked = conf::with_prev(&conf, &result);
        sandbox.cni("loopback").check(&checked, &pod, "lo").silent();
        sandbox.cni("loopback").del(&conf, &pod, "lo").silent();
        assert_eq!(pod.link("x").expect("there")["flags"], json!(["LOOPBACK"]));
    });
}

/// The macvlans of a pod, and macvtaps.
fn macvlans(pod: &Netns) -> Vec<String> {
    let mut links = pod.links();
    links.retain(|link| link != "lo");
    links
}

#[test]
fn a_macvlan_is_known_whatever_the_pod_calls_it() {
    beyond_peer("it deletes what has the name", || {
        for script in [
            "ip link set eth0 name x",
            "ip link set eth0 name x; ip link set x address 02:00:00:00:00:07",
            "ip link set eth0 name x; ip link set x alias mine",
            "ip link set eth0 name x; ip link set x address 02:00:00:00:00:07; ip link set x alias mine",
            "ip link add y link eth0 type macvlan mode bridge",
            "ip link set eth0 name x; ip link add eth0 link x type macvlan mode bridge",
            "ip link set eth0 name x; ip link property add dev lo altname eth0",
        ] {
            let sandbox = Sandbox::new();
            sandbox.wire();
            let (pod, conf) = (sandbox.pod("a"), conf_of("macvlan"));
            let result = sandbox.cni("macvlan").add(&conf, &pod, "eth0").result();
            pod.sh(&format!("ip link set eth0 down; {script}"));
            let conf = conf::with_prev(&conf, &result);
            for _ in 0..2 {
                sandbox.cni("macvlan").del(&conf, &pod, "eth0").silent();
                assert_eq!(macvlans(&pod), [""; 0], "{script}");
                assert_eq!(sandbox.reserved(), [""; 0]);
            }
        }
    });
}

#[test]
fn a_macvlan_of_another_attachment_stays() {
    let sandbox = Sandbox::new();
    sandbox.wire();
    let (pod, conf) = (sandbox.pod("a"), conf_of("macvlan"));
    let result = sandbox.cni("macvlan").add(&conf, &pod, "eth0").result();
    sandbox.cni("macvlan").add(&conf, &pod, "net1").result();
    let conf = conf::with_prev(&conf, &result);
    for _ in 0..2 {
        sandbox.cni("macvlan").del(&conf, &pod, "eth0").silent();
        assert_eq!(macvlans(&pod), ["net1"]);
    }
}

#[test]
fn gc_finds_a_macvlan_in_a_pod_that_goes_on() {
    beyond_peer("it does not look", || {
        let sandbox = Sandbox::new();
        sandbox.wire();
        let (gone, stays) = (sandbox.pod("a"), sandbox.pod("b"));
        let conf = conf_of("macvlan");
        for pod in [&gone, &stays] {
            sandbox.cni("macvlan").add(&conf, pod, "eth0").result();
            pod.sh("ip link set eth0 down; ip link set eth0 name x");
        }
        let valid = conf::with_valid(&conf, &[(&sandbox::container_id(&stays), "eth0")]);
        sandbox.cni("macvlan").gc(&valid).silent();
        assert_eq!(macvlans(&gone), [""; 0]);
        assert_eq!(macvlans(&stays), ["x"]);
    });
}

#[test]
fn the_mode_of_a_macvlan_is_the_pods_to_change_and_check_tells() {
    let sandbox = Sandbox::new();
    sandbox.wire();
    let conf = conf::with(&conf_of("macvlan"), json!({"mode": "private"}));
    let pods = [sandbox.pod("a"), sandbox.pod("b")];
    let add = |pod: &Netns| sandbox.cni("macvlan").add(&conf, pod, "eth0").result();
    let results = pods.each_ref().map(add);
    assert_eq!(pods[0].ping("10.1.0.3", 1), [false]);
    for (pod, result) in pods.iter().zip(&results) {
        let check = || {
            let conf = conf::with_prev(&conf, result);
            sandbox.cni("macvlan").check(&conf, pod, "eth0")
        };
        check().silent();
        pod.sh("ip link set eth0 type macvlan mode bridge");
        let why = "container macvlan mode bridge does not match expected value: private";
        assert_eq!(check().error().msg, why);
    }
    pods[0].wait_until("the other pod answers", |pod| pod.ping("10.1.0.3", 1)[0]);
}
