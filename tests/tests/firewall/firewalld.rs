//! firewall with Debian's firewalld, on a bus of the sandbox's own. What firewalld has is asked of
//! `firewall-cmd`.

use std::ops::Deref;

use sandbox::{
    BackEnd, FilterNode, OUTSIDE, Running, Sandbox, Suite, beyond_peer, conf, container_id,
};
use serde_json::{Value, json};

use crate::{Node, Pod, bridge, firewall, notes};

const BUS: &str = r#"<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
    "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
    <type>system</type><listen>unix:path=SOCKET</listen><auth>EXTERNAL</auth>
    <policy context="default">
        <allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/><allow own="*"/>
    </policy>
</busconfig>"#;

/// Where the system's bus listens.
const SYSTEM_BUS: &str = "/run/dbus/system_bus_socket";

/// A node on which firewalld runs.
pub(crate) struct Firewalld {
    node: Node,
    bus: String,
    daemon: Option<Running>,
    _bus: Running,
}

impl Deref for Firewalld {
    type Target = Node;

    fn deref(&self) -> &Node {
        &self.node
    }
}

impl Firewalld {
    pub fn new() -> Self {
        Self::on(SYSTEM_BUS)
    }

    fn on(socket: &str) -> Self {
        let node = Node(FilterNode::new(BackEnd::IptablesNft));
        let bus = start_bus(&node.sandbox, socket);
        let mut this = Self {
            node,
            bus: format!("DBUS_SYSTEM_BUS_ADDRESS=unix:path={socket}"),
            daemon: None,
            _bus: bus,
        };
        this.start();
        this
    }

    fn start(&mut self) {
        let daemon = "/usr/sbin/firewalld --nofork --nopid --log-target console";
        let daemon = format!("exec env {} {daemon}", self.bus);
        self.daemon = Some(self.host().start(&["sh", "-c", &daemon]));
        self.host().wait_until("firewalld is on the bus", |_| {
            let argv = ["env", &self.bus, "firewall-cmd", "--state"];
            self.host().run(&argv).code == 0
        });
    }

    fn cmd(&self, options: &str) -> String {
        let bus = &self.bus;
        let printed = self.host().sh(&format!("{bus} firewall-cmd {options}"));
        printed.trim().to_owned()
    }

    /// The sources of a zone, sorted.
    fn sources(&self, zone: &str) -> Vec<String> {
        let printed = self.cmd(&format!("--zone={zone} --list-sources"));
        let mut sources: Vec<_> = printed.split_whitespace().map(str::to_owned).collect();
        sources.sort();
        sources
    }
}

fn start_bus(sandbox: &Sandbox, socket: &str) -> Running {
    sandbox.write("/run/bus.conf", BUS.replace("SOCKET", socket));
    sandbox.write("/run/dbus/made", "");
    let host = sandbox.host();
    let bus = host.start(&[
        "dbus-daemon",
        "--config-file=/run/bus.conf",
        "--nofork",
        "--nopidfile",
    ]);
    host.wait_until("the bus listens", |host| {
        host.run(&["test", "-S", socket]).code == 0
    });
    bus
}

/// firewall with these keys, and no back end.
pub(crate) fn automatic(keys: Value) -> Value {
    conf::with(&conf::plugin("firewall"), keys)
}

const BOTH: [&str; 2] = ["10.1.0.2/32", "fd01::2/128"];

#[test]
fn firewalld_is_chosen_where_it_runs_and_lets_the_pods_through() {
    let node = Firewalld::new();
    // A pod with bridge alone: firewalld rejects what it does not know.
    let bare = node.sandbox.pod("bare");
    node.cni("bridge").add(&bridge(1), &bare, "eth0").result();
    assert_eq!(bare.ping(OUTSIDE[0], 1), [false]);
    node.cni("bridge").del(&bridge(1), &bare, "eth0").silent();

    let pod = node.attach("a", 1, &automatic(json!({})));
    let sources = node.sources("trusted");
    assert_eq!(sources.len(), 2, "{sources:?}");
    assert!(!node.filter().concat().contains("CNI-FORWARD"));
    assert_eq!(pod.netns.ping(OUTSIDE[0], 1), [true]);
    // Again: they are sources already.
    node.firewall().add(&pod.conf, &pod.netns, "eth0").result();
    node.firewall()
        .check(&pod.conf, &pod.netns, "eth0")
        .silent();
    for _ in 0..2 {
        node.del(&pod);
        assert_eq!(node.sources("trusted"), [""; 0]);
    }
}

#[test]
fn del_and_gc_remove_the_sources_without_a_result() {
    beyond_peer("reference 8 #17: it needs prevResult", || {
        let node = Firewalld::new();
        let keys = json!({"firewalldZone": "internal", "cniVersion": "1.1.0"});
        let pods = ["a", "b", "c"].map(|name| node.attach(name, 1, &automatic(keys.clone())));
        assert_eq!(node.sources("internal").len(), 6);
        let nothing = json!({"prevResult": null, "firewalldZone": null});
        let conf = |pod: &Pod| conf::with(&pod.conf, nothing.clone());
        node.sandbox.remove_pod(&pods[0].netns);
        let call = node.firewall().netns("");
        call.del(&conf(&pods[0]), &pods[0].netns, "eth0").silent();
        assert_eq!(node.sources("internal").len(), 4);
        let kept = container_id(&pods[1].netns);
        let gc = conf::with_valid(&conf(&pods[2]), &[(&kept, "eth0")]);
        node.firewall().gc(&gc).silent();
        let ips = ["4", "6"].map(|family| pods[1].ip(family));
        let sources = node.sources("internal");
        assert!(
            sources.len() == 2 && ips.iter().all(|ip| sources.concat().contains(ip)),
            "{sources:?}"
        );
        node.firewall()
            .check(&pods[1].conf, &pods[1].netns, "eth0")
            .silent();
    });
}

#[test]
fn with_firewalld_iptables_has_the_ingress_policies() {
    beyond_peer("reference 8 #17: they stay", || {
        let node = Firewalld::new();
        let policy = automatic(json!({"ingressPolicy": "same-bridge"}));
        let a = node.attach("a", 1, &policy);
        let neighbour = node.attach("b", 1, &policy);
        let other = node.attach("c", 2, &policy);
        let open = node.attach("d", 3, &automatic(json!({})));
        assert!(a.reaches(&neighbour) && neighbour.reaches(&a));
        assert!(!a.reaches(&other) && !other.reaches(&a));
        assert!(a.reaches(&open) && open.reaches(&a));
        assert_eq!(a.netns.ping(OUTSIDE[0], 1), [true]);
        let rules = node.filter().concat();
        assert!(rules.contains("CNI-ISOLATION-STAGE-1 -i br1"), "{rules}");
        assert!(!rules.contains("CNI-FORWARD"), "{rules}");

        let check = || node.firewall().check(&a.conf, &a.netns, "eth0");
        check().silent();
        let path = node.back_end.path(&node.sandbox);
        let flush = format!("PATH={path} iptables -F CNI-ISOLATION-STAGE-1");
        node.host().sh(&flush);
        check().error();
        for pod in [&a, &neighbour, &other, &open] {
            node.del(pod);
        }
        assert!(!node.filter().concat().contains("CNI-ISOLATION"));
        assert_eq!(node.sources("trusted"), [""; 0]);
        assert_eq!(notes(&node), "");
    });
}

#[test]
fn what_firewalld_refuses_is_reported_and_nothing_is_left() {
    beyond_peer("its errors are those of Go's library", || {
        let mut node = Firewalld::new();
        let pod = node.attach("a", 1, &automatic(json!({})));
        let missing = json!({"firewalldZone": "nowhere"});
        let other = conf::with(&pod.conf, missing);
        let error = node.firewall().id("x").add(&other, &pod.netns, "eth0");
        let text = "failed to add the address 10.1.0.2/32 to nowhere zone: INVALID_ZONE: nowhere";
        let msg = error.error().msg;
        assert!(msg.contains(text), "{msg}");
        assert_eq!(node.sources("trusted").len(), 2);

        // A reload forgets the sources.
        node.cmd("--reload");
        let check = node.firewall().check(&pod.conf, &pod.netns, "eth0");
        let text = "failed to find the address 10.1.0.2/32 in trusted zone";
        assert_eq!(check.error().msg, text);

        // Without firewalld there is nothing to remove.
        node.daemon = None;
        let named = json!({"backend": "firewalld", "cniVersion": "1.1.0"});
        let status = node.firewall().status(&automatic(named.clone()));
        assert_eq!(status.error().code, 50);
        let named = conf::with(&pod.conf, named);
        let error = node.firewall().id("x").add(&named, &pod.netns, "eth0");
        let msg = error.error().msg;
        assert!(msg.contains("find firewalld on the bus"), "{msg}");
        node.del(&pod);
        assert_eq!(notes(&node), "");
        // Then iptables is chosen.
        node.attach("b", 1, &automatic(json!({})));
        assert!(node.filter()[0].contains("CNI-FORWARD"));
        node.start();
        let status = node
            .firewall()
            .status(&automatic(json!({"cniVersion": "1.1.0"})));
        status.silent();
    });
}

#[test]
fn the_environment_names_the_bus_and_each_suite_deletes_what_the_other_has_added() {
    let node = Firewalld::on("/run/dbus/other");
    for (first, second) in [(Suite::Ours, Suite::Peer), (Suite::Peer, Suite::Ours)] {
        let pod = node.sandbox.pod(&format!("{first:?}"));
        let subnet = json!({"cniVersion": "1.0.0"});
        let result = node
            .cni("bridge")
            .add(&conf::with(&bridge(1), subnet), &pod, "eth0");
        let keys = json!({"name": "net1", "cniVersion": "1.0.0"});
        let conf = conf::with_prev(&automatic(keys), &result.result());
        let call = |suite| {
            let address = "unix:path=/run/dbus/other";
            let call = node.firewall().suite(suite);
            call.env("DBUS_SYSTEM_BUS_ADDRESS", address)
        };
        call(first).add(&conf, &pod, "eth0").result();
        assert_eq!(node.sources("trusted").len(), 2, "{first:?}");
        call(second).check(&conf, &pod, "eth0").silent();
        call(second).del(&conf, &pod, "eth0").silent();
        assert_eq!(node.sources("trusted"), [""; 0], "{second:?}");
    }
}

#[test]
fn a_list_of_buses_is_tried_in_order() {
    let node = Firewalld::on("/run/dbus/other");
    let first = node.sandbox.pod("a");
    let result = node.cni("bridge").add(&bridge(1), &first, "eth0").result();
    let conf = conf::with_prev(&automatic(json!({"name": "net1"})), &result);
    let list = "unix:path=/run/nowhere;unix:path=/run/dbus/other";
    let call = || node.firewall().env("DBUS_SYSTEM_BUS_ADDRESS", list);
    call().add(&conf, &first, "eth0").result();
    assert_eq!(node.sources("trusted"), BOTH);
    call().del(&conf, &first, "eth0").silent();
    assert_eq!(node.sources("trusted"), [""; 0]);
}

#[test]
fn a_rootless_runtime_does_not_choose_the_firewalld_of_the_node() {
    beyond_peer("nerdctl#2818: firewalld refuses its user", || {
        let node = Firewalld::new();
        let pod = node.sandbox.pod("a");
        let result = json!({"cniVersion": "1.0.0", "ips": [{"address": "10.1.0.2/24"}]});
        let conf = conf::with_prev(&automatic(json!({})), &result);
        let rootless = ["unshare", "--user", "--map-root-user", "--net"];
        let call = node.firewall().under(&rootless);
        call.add(&conf, &pod, "eth0").result();
        assert_eq!(node.sources("trusted"), [""; 0]);
    });
}

#[test]
fn without_firewalld_on_the_bus_iptables_is_chosen() {
    let node = Node(FilterNode::new(BackEnd::IptablesNft));
    let _bus = start_bus(&node.sandbox, SYSTEM_BUS);
    node.attach("a", 1, &automatic(json!({})));
    assert!(node.filter()[0].contains("CNI-FORWARD"));
}

#[test]
fn without_a_bus_firewalld_cannot_be_used() {
    let sandbox = Sandbox::new();
    let pod = sandbox.pod("a");
    let conf = conf::with_prev(
        &firewall(BackEnd::IptablesNft, json!({"backend": "firewalld"})),
        &json!({"cniVersion": "1.0.0", "ips": [{"address": "10.1.0.2/24"}]}),
    );
    let error = sandbox.cni("firewall").add(&conf, &pod, "eth0").error();
    assert!(
        error.msg.contains("no such file or directory"),
        "{}",
        error.msg
    );
}

#[test]
fn after_a_reload_resync_makes_the_pods_sources_again() {
    beyond_peer("the peer has no such command", || {
        let node = Firewalld::new();
        let pod = node.sandbox.pod("a");
        let plugins = json!([
            bridge(1),
            automatic(json!({"ingressPolicy": "same-bridge"}))
        ]);
        let list = json!({"cniVersion": "1.0.0", "name": "net1", "plugins": plugins});
        node.sandbox
            .write("/run/net.d/10-net1.conflist", list.to_string());
        let dir = Suite::Ours.dir().display().to_string();
        let podwire = |args: &str| {
            let path = node.back_end.path(&node.sandbox);
            node.host().sh(&format!(
                "NETCONFPATH=/run/net.d CNI_PATH={dir} PATH={path} {dir}/podwire {args}"
            ))
        };
        podwire(&format!("add net1 {}", pod.path()));
        assert_eq!(node.sources("trusted"), BOTH);
        let policy = node.filter();
        assert_eq!(podwire("resync"), "");
        node.cmd("--reload");
        assert_eq!(node.sources("trusted"), [""; 0]);
        let done = podwire("resync");
        assert!(done.starts_with("put back: firewall of net1/"), "{done}");
        assert_eq!(node.sources("trusted"), BOTH);
        assert_eq!(node.filter(), policy);
        podwire(&format!("del net1 {}", pod.path()));
        assert_eq!(node.sources("trusted"), [""; 0]);
        assert!(!node.filter().concat().contains("ISOLATION"));
    });
}
