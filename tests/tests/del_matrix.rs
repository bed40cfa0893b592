//! DEL whatever has happened before: the matrix of reference 1.12. Every cell must
//! succeed, and give the address back where there is one.

use sandbox::{
    BackEnd, Netns, Plugin, Sandbox, beyond_peer, conf, conf_of, container_id, each_plugin, plugins,
};
use serde_json::json;

/// What a runtime may find when it comes to delete.
#[derive(Clone, Copy, Debug)]
enum Found {
    /// `CNI_NETNS` is empty: the pod is gone.
    Empty,
    /// The path does not exist.
    Missing,
    /// A plain file, as after a reboot or an unmount without rm.
    PlainFile,
    /// A directory, for whatever reason.
    Directory,
    /// There, but the interface is not.
    WithoutInterface,
    /// There, but the pod has given the interface another name, and its name to `lo`.
    Renamed,
}

use Found::{Directory, Empty, Missing, PlainFile, Renamed, WithoutInterface};

/// Brings the namespace into the state of the column, and returns `CNI_NETNS`.
fn arrange(sandbox: &Sandbox, pod: &Netns, column: Found) -> String {
    let path = pod.path();
    match column {
        Empty => {
            sandbox.remove_pod(pod);
            String::new()
        }
        Missing => {
            sandbox.remove_pod(pod);
            path
        }
        PlainFile => {
            sandbox.remove_pod(pod);
            sandbox.write(&path, "");
            path
        }
        Directory => {
            sandbox.remove_pod(pod);
            sandbox.host().sh(&format!("mkdir {path}"));
            path
        }
        WithoutInterface => {
            pod.sh("ip link del eth0 2>/dev/null || :");
            path
        }
        Renamed => {
            pod.sh(
                "ip link set eth0 down 2>/dev/null && ip link set eth0 name x || :
                    ip link set lo down; ip link set lo name eth0",
            );
            path
        }
    }
}

/// One cell: with or without an ADD before, DEL twice.
fn cell(plugin: &str, column: Found, added: bool) {
    let sandbox = Sandbox::new();
    let _daemon = sandbox.make_ready(plugin);
    let pod = sandbox.pod("a");
    let conf = conf_of(plugin);
    if added {
        sandbox.cni(plugin).add(&conf, &pod, "eth0").result();
    }
    let netns = arrange(&sandbox, &pod, column);
    for _ in 0..2 {
        sandbox
            .cni(plugin)
            .netns(&netns)
            .del(&conf, &pod, "eth0")
            .silent();
    }
    assert_eq!(sandbox.reserved(), [] as [&str; 0], "{plugin}, {column:?}");
    let rules = sandbox.host().rules();
    assert!(
        !rules.contains(&container_id(&pod)),
        "{plugin}, {column:?}: {rules}"
    );
    // The kernel takes a namespace down in its own time, and the veths with it.
    let gone = |host: &Netns| !host.links().iter().any(|link| link.starts_with("veth"));
    sandbox.host().wait_until("no host veth is left", gone);
    if let Renamed = column
        && !sandbox::row(plugin).is_given_interface()
    {
        assert!(pod.link("x").is_none(), "{plugin}");
    }
}

/// Cells of one row. Without a server, dhcp has no lease to delete: `dhcp/release.rs` has some.
fn row(plugin: &Plugin, columns: &[Found]) {
    for column in columns {
        cell(&plugin.name, *column, false);
        if !plugin.needs_server() {
            cell(&plugin.name, *column, true);
        }
    }
}

/// The rows of these plugins, at the same time.
fn rows(chosen: impl Fn(&Plugin) -> bool, columns: &[Found]) {
    std::thread::scope(|scope| {
        for plugin in plugins().filter(|it| chosen(it)) {
            scope.spawn(|| row(plugin, columns));
        }
    });
}

#[test]
fn every_plugin_deletes_in_every_state_of_the_netns() {
    rows(|_| true, &[Empty, Missing, WithoutInterface]);
}

#[test]
fn a_plugin_that_opens_no_netns_needs_none() {
    rows(|it| !it.opens_netns, &[PlainFile, Directory]);
}

#[test]
fn a_plain_file_where_the_netns_was_is_a_netns_that_has_gone() {
    beyond_peer("reference 8 #20: unknown FS magic", || {
        rows(|it| it.opens_netns, &[PlainFile, Directory]);
    });
}

#[test]
fn what_the_pod_renamed_is_deleted() {
    beyond_peer("it deletes what has the name", || {
        rows(|it| it.folder == "plugins", &[Renamed]);
    });
}

/// One cell of what stands between a pod and the outside: DEL knows the state of the
/// netns and nothing else, and no rule names the pod afterwards.
fn outside_cell(back_end: BackEnd, column: Found) {
    let sandbox = Sandbox::new();
    sandbox.wire();
    let pod = sandbox.pod("a");
    let masquerade = json!({"ipMasq": true, "macspoofchk": true, "ipMasqBackend": back_end.name()});
    let bridge = conf::with(&conf_of("bridge"), masquerade);
    let portmap = conf::with(&conf::portmap(8080), json!({"backend": back_end.name()}));
    let cni = |plugin| sandbox.cni_with(back_end, plugin);
    cni("bridge").add(&bridge, &pod, "eth0").result();
    cni("portmap").add(&portmap, &pod, "eth0").result();
    let netns = arrange(&sandbox, &pod, column);
    for _ in 0..2 {
        // The runtime's cache is gone: no prevResult, no mappings.
        for (plugin, conf) in [
            ("portmap", conf::plugin("portmap")),
            ("bridge", bridge.clone()),
        ] {
            cni(plugin).netns(&netns).del(&conf, &pod, "eth0").silent();
        }
    }
    let rules = sandbox.host().rules();
    let id = container_id(&pod);
    let left: Vec<&str> = rules.lines().filter(|line| line.contains(&id)).collect();
    assert_eq!(left, [""; 0], "{back_end:?}, {column:?}");
}

#[test]
fn no_rule_outlives_its_pod_in_any_state_of_the_netns() {
    beyond_peer("plugins#810: masquerade stays without a netns", || {
        for back_end in BackEnd::ALL {
            for column in [
                Empty,
                Missing,
                PlainFile,
                Directory,
                WithoutInterface,
                Renamed,
            ] {
                outside_cell(back_end, column);
            }
        }
    });
}

#[test]
fn a_plain_file_in_place_of_the_netns_is_left_alone() {
    beyond_peer("reference 8 #20: unknown FS magic", || {
        let sandbox = Sandbox::new();
        let pod = sandbox.pod("a");
        let netns = arrange(&sandbox, &pod, PlainFile);
        sandbox
            .cni("bridge")
            .netns(&netns)
            .del(&conf_of("bridge"), &pod, "eth0")
            .silent();
        assert_eq!(sandbox.read(netns).as_deref(), Some(""));
    });
}

#[test]
fn nothing_is_created_by_a_del_that_finds_nothing() {
    for column in [Empty, Missing, WithoutInterface] {
        each_plugin(|sandbox, pod, plugin| {
            let netns = arrange(sandbox, pod, column);
            let snapshot = sandbox.snapshot().allow_host_local(conf::NETWORK);
            sandbox
                .cni(plugin)
                .netns(&netns)
                .del(&conf_of(plugin), pod, "eth0")
                .silent();
            match plugin {
                "portmap" => beyond_peer("iptables creates its tables when it lists them", || {
                    snapshot.assert_unchanged();
                }),
                _ => snapshot.assert_unchanged(),
            }
        });
    }
}

#[test]
fn the_delegate_is_called_in_every_state_of_the_netns() {
    let assert_called = |column: Found| {
        let sandbox = Sandbox::new();
        let pod = sandbox.pod("a");
        let ipam = sandbox.fake("fake-ipam");
        let conf = conf::with(&conf::bridge_l2(), json!({"ipam": {"type": "fake-ipam"}}));
        let netns = arrange(&sandbox, &pod, column);
        sandbox
            .cni("bridge")
            .netns(&netns)
            .del(&conf, &pod, "eth0")
            .silent();
        assert_eq!(ipam.verbs(), ["DEL"], "{column:?}");
    };
    [Empty, Missing, WithoutInterface]
        .into_iter()
        .for_each(assert_called);
    beyond_peer("reference 8 #20: unknown FS magic", || {
        [PlainFile, Directory].into_iter().for_each(assert_called);
    });
}

#[test]
fn del_needs_no_previous_result_and_ignores_a_foreign_one() {
    for prev in [
        None,
        Some(json!({"cniVersion": sandbox::newest(), "interfaces": [], "ips": []})),
    ] {
        let sandbox = Sandbox::new();
        let pod = sandbox.pod("a");
        let conf = conf_of("bridge");
        sandbox.cni("bridge").add(&conf, &pod, "eth0").result();
        let conf = prev.map_or(conf.clone(), |prev| conf::with_prev(&conf, &prev));
        sandbox.cni("bridge").del(&conf, &pod, "eth0").silent();
        assert!(pod.link("eth0").is_none());
        assert!(sandbox.reserved().is_empty());
    }
}

#[test]
fn del_succeeds_when_the_bridge_is_gone() {
    let sandbox = Sandbox::new();
    let pod = sandbox.pod("a");
    sandbox
        .cni("bridge")
        .add(&conf_of("bridge"), &pod, "eth0")
        .result();
    sandbox.host().sh("ip link del cni0");
    sandbox
        .cni("bridge")
        .del(&conf_of("bridge"), &pod, "eth0")
        .silent();
    assert!(pod.link("eth0").is_none() && sandbox.reserved().is_empty());
}

#[test]
fn del_of_one_interface_leaves_the_others() {
    let sandbox = Sandbox::new();
    let pod = sandbox.pod("a");
    let conf = conf::bridge(&["10.1.0.0/24"]);
    for ifname in ["eth0", "net1"] {
        sandbox.cni("bridge").add(&conf, &pod, ifname).result();
    }
    sandbox.cni("bridge").del(&conf, &pod, "eth0").silent();
    assert_eq!(pod.links(), ["lo", "net1"]);
    assert_eq!(sandbox.reserved(), ["10.1.0.3"]);
}

#[test]
fn a_netns_that_vanished_with_its_pod_leaves_nothing_on_the_node() {
    // The kernel takes the veth along with the namespace; DEL does the rest.
    let sandbox = Sandbox::new();
    let snapshot = sandbox.snapshot().allow_bridge_network();
    let pod = sandbox.pod("a");
    sandbox
        .cni("bridge")
        .add(&conf_of("bridge"), &pod, "eth0")
        .result();
    sandbox.remove_pod(&pod);
    sandbox
        .cni("bridge")
        .netns("")
        .del(&conf_of("bridge"), &pod, "eth0")
        .silent();
    snapshot.assert_unchanged();
}

#[test]
fn del_after_a_failed_add_leaves_nothing() {
    let sandbox = Sandbox::new();
    let pod = sandbox.pod("a");
    let snapshot = sandbox.snapshot().allow_bridge_network();
    let conf = conf::with(
        &conf_of("bridge"),
        json!({"ipam": {"routes": [{"dst": "10.8.0.0/16", "gw": "192.0.2.1"}]}}),
    );
    sandbox.cni("bridge").add(&conf, &pod, "eth0").error();
    sandbox.cni("bridge").del(&conf, &pod, "eth0").silent();
    snapshot.assert_unchanged();
}

#[test]
fn the_interface_goes_even_when_the_delegate_fails() {
    let sandbox = Sandbox::new();
    let pod = sandbox.pod("a");
    let ipam = sandbox.fake("fake-ipam");
    ipam.answer(
        "ADD",
        &json!({"cniVersion": sandbox::newest(), "ips": [{"address": "10.7.0.5/24"}]}),
    );
    ipam.fail("DEL", 11, "later");
    let conf = conf::with(&conf::bridge_l2(), json!({"ipam": {"type": "fake-ipam"}}));
    sandbox.cni("bridge").add(&conf, &pod, "eth0").result();
    let error = sandbox.cni("bridge").del(&conf, &pod, "eth0").error();
    assert_eq!((error.code, error.msg.as_str()), (11, "later"));
    assert!(pod.link("eth0").is_none());
}
