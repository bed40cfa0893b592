//! What happens to nodes: reboots, disks, clocks, administrators. Each time the next call recovers, or says what to do.

use std::collections::BTreeSet;

use sandbox::{BackEnd, Failure, Netns, Sandbox, conf, container_id};
use serde_json::{Value, json};

const INDEX: &str = "/var/lib/cni/networks/.podwire/testnet";

/// A node with one network, and pods on it.
struct Node {
    sandbox: Sandbox,
    conf: Value,
}

impl Node {
    fn new(conf: Value) -> Self {
        let sandbox = Sandbox::new();
        Self { sandbox, conf }
    }

    fn bridge() -> Self {
        Self::new(conf::bridge(&["10.1.0.0/24"]))
    }

    fn add(&self, pod: &Netns) -> Value {
        self.sandbox
            .cni("bridge")
            .add(&self.conf, pod, "eth0")
            .result()
    }

    fn refused(&self, pod: &Netns) -> Failure {
        self.sandbox
            .cni("bridge")
            .add(&self.conf, pod, "eth0")
            .error()
    }

    fn del(&self, pod: &Netns) {
        self.sandbox
            .cni("bridge")
            .del(&self.conf, pod, "eth0")
            .silent();
    }

    /// GC, of which no attachment is valid.
    fn collect(&self) {
        let conf = conf::with_valid(&self.conf, &[]);
        self.sandbox.cni("bridge").gc(&conf).silent();
    }

    fn check(&self, pod: &Netns, result: &Value) -> Result<(), String> {
        let conf = conf::with_prev(&self.conf, result);
        let outcome = self.sandbox.cni("bridge").check(&conf, pod, "eth0");
        match outcome.code() {
            0 => Ok(()),
            _ => Err(outcome.error().msg),
        }
    }

    /// Which pod holds which address, as the files have it.
    fn reserved(&self) -> Vec<(String, String)> {
        let addresses = self.sandbox.reserved().into_iter();
        let owner = |name: &String| self.sandbox.read(format!("{}/{name}", conf::STATE));
        addresses
            .map(|name| (owner(&name).unwrap_or_default(), name))
            .collect()
    }

    fn sh(&self, script: &str) {
        self.sandbox.host().sh(script);
    }
}

fn address(result: &Value) -> String {
    result["ips"][0]["address"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

/// Boots of the full measure; CI has a tenth of it.
fn boots() -> usize {
    let wanted = std::env::var("FAULTS_BOOTS").ok();
    wanted.and_then(|text| text.parse().ok()).unwrap_or(10)
}

#[test]
fn a_node_that_reboots_again_and_again_never_runs_out_of_addresses() {
    // 200 pods, 253 addresses: after the first boot, pods need addresses that were reserved before it. No DEL and no GC
    // releases those: the runtime lost its own state with /run.
    let node = Node::new(conf::host_local(&["10.1.0.0/24"]));
    let pod = node.sandbox.pod("a");
    for boot in 0..boots() {
        node.sandbox.reboot();
        let mut addresses = BTreeSet::new();
        for number in 0..200 {
            let cni = node
                .sandbox
                .cni("host-local")
                .id(&format!("boot{boot}-pod{number}"));
            addresses.insert(address(&cni.add(&node.conf, &pod, "eth0").result()));
        }
        assert_eq!(addresses.len(), 200, "boot {boot}: one address twice");
        // What was before may be there still, but the pods of this boot all are.
        let mine = |(owner, _): &&(String, String)| owner.starts_with(&format!("boot{boot}-"));
        assert_eq!(
            node.reserved().iter().filter(mine).count(),
            200,
            "boot {boot}"
        );
    }
}

#[test]
fn after_a_reboot_everything_works_although_the_disk_speaks_of_another_life() {
    let change = json!({"ipMasq": true, "ipMasqBackend": "nftables", "macspoofchk": true});
    let node = Node::new(conf::with(&conf::bridge(&["10.1.0.0/28"]), change));
    for boot in 0..boots().min(20) {
        let pods: Vec<Netns> = (0..10)
            .map(|n| node.sandbox.pod(&format!("b{boot}p{n}")))
            .collect();
        let results: Vec<Value> = pods.iter().map(|pod| node.add(pod)).collect();
        for (pod, result) in pods.iter().zip(&results) {
            assert_eq!(node.check(pod, result), Ok(()), "boot {boot}");
        }
        // The kernel's state goes, the disk's stays.
        for pod in &pods {
            node.sandbox.remove_pod(pod);
        }
        node.sandbox.host().wait_until("the pods are gone", |host| {
            !host.links().iter().any(|link| link.starts_with("veth"))
        });
        node.sh("ip link del cni0; nft flush ruleset; sysctl -qw net.ipv4.ip_forward=0");
        node.sandbox.reboot();
    }
}

#[test]
fn a_full_disk_is_reported_and_leaves_no_half_pod() {
    let node = Node::bridge();
    let first = node.sandbox.pod("first");
    let second = node.sandbox.pod("second");
    node.sh("mkdir -p /var/lib/cni; mount -t tmpfs -o size=64k,nr_inodes=64 tmpfs /var/lib/cni");
    node.add(&first);
    let snapshot = node
        .sandbox
        .snapshot()
        .allow("/var/lib/cni/fill")
        .allow("/.podwire/");
    node.sh("i=0; while touch /var/lib/cni/fill$i 2>/dev/null; do i=$((i+1)); done; cat /dev/zero > /var/lib/cni/fill0 2>/dev/null || :");
    let error = node.refused(&second);
    assert!(
        error.msg.contains("no space left on device (28)") && error.msg.contains("/var/lib/cni"),
        "{}",
        error.msg
    );
    let status = node.sandbox.cni("bridge").status(&node.conf).error();
    assert!(
        status.code == 50 && status.msg.contains("no space left on device"),
        "{}",
        status.msg
    );
    snapshot.assert_unchanged();
    // What is there can still be deleted, and that makes the room that was missing.
    node.del(&first);
    assert_eq!(node.reserved(), []);
    node.sh("rm /var/lib/cni/fill*");
    node.add(&second);
    node.del(&second);
}

#[test]
fn a_disk_that_went_read_only_is_reported_and_deleted_from_later() {
    let node = Node::bridge();
    let [first, second] = ["first", "second"].map(|name| node.sandbox.pod(name));
    node.sh("mkdir -p /var/lib/cni; mount -t tmpfs tmpfs /var/lib/cni");
    node.add(&first);
    let snapshot = node.sandbox.snapshot();
    node.sh("mount -o remount,ro /var/lib/cni");
    let error = node.refused(&second);
    assert!(
        error.msg.contains("read-only file system (30)"),
        "{}",
        error.msg
    );
    assert_eq!(
        node.sandbox.cni("bridge").status(&node.conf).error().code,
        50
    );
    snapshot.assert_unchanged();
    // DEL says that it could not release the address, so the runtime comes again; the interface is gone by then.
    let error = node
        .sandbox
        .cni("bridge")
        .del(&node.conf, &first, "eth0")
        .error();
    assert!(
        error.msg.contains("read-only file system (30)"),
        "{}",
        error.msg
    );
    assert!(first.link("eth0").is_none());
    node.sh("mount -o remount,rw /var/lib/cni");
    node.del(&first);
    assert_eq!(node.reserved(), []);
}

#[test]
fn whatever_the_index_holds_reservations_are_what_counts() {
    for (what, damage) in [
        (
            "random bytes",
            "for f in $(find . -type f); do head -c 300 /dev/urandom > $f; done",
        ),
        (
            "half of it",
            "for f in $(find . -type f); do truncate -s $(($(stat -c %s $f) / 2)) $f; done",
        ),
        ("nothing", "for f in $(find . -type f); do : > $f; done"),
        (
            "a line of another owner",
            "for f in $(find . -type f); do echo '10.1.0.99 1.000000001 0' > $f; done",
        ),
        ("no files", "find . -type f -delete"),
        (
            "directories",
            "for f in $(find . -type f); do rm $f; mkdir $f; done",
        ),
    ] {
        let node = Node::new(conf::host_local(&["10.1.0.0/24"]));
        let pod = node.sandbox.pod("a");
        let cni = |id: &str| node.sandbox.cni("host-local").id(id);
        let add = |id: &str| address(&cni(id).add(&node.conf, &pod, "eth0").result());
        let del = |id: &str| _ = cni(id).del(&node.conf, &pod, "eth0").silent();
        let mut all: BTreeSet<String> = ["a", "b", "c"].map(add).into();
        node.sh(&format!("cd {INDEX}; {damage}"));
        // No address is given twice, no container gets a second one, and DEL releases all.
        all.insert(add("d"));
        assert_eq!(all.len(), 4, "{what}");
        let again = cni("b").add(&node.conf, &pod, "eth0").error();
        assert!(
            again.msg.contains("duplicate allocation is not allowed"),
            "{what}: {}",
            again.msg
        );
        ["a", "b", "c", "d"].iter().copied().for_each(del);
        assert_eq!(node.reserved(), [], "{what}");
    }
}

#[test]
fn damaged_reservations_cost_no_more_than_their_addresses() {
    let node = Node::bridge();
    let pods = ["a", "b", "c"].map(|name| node.sandbox.pod(name));
    let results = pods.each_ref().map(|pod| node.add(pod));
    // Of a, half of the owner; of b, bytes; of c, nothing.
    node.sh(&format!("cd {}; truncate -s 3 10.1.0.2; head -c 40 /dev/urandom > 10.1.0.3; : > 10.1.0.4; echo rubbish > last_reserved_ip.0", conf::STATE));
    let next = node.sandbox.pod("next");
    let given = address(&node.add(&next));
    assert!(
        !["10.1.0.2/24", "10.1.0.3/24"].contains(&given.as_str()),
        "{given}"
    );
    let message = node.check(&pods[0], &results[0]);
    assert_eq!(
        message,
        Err("host-local: Failed to find address added by container id-a".into())
    );
    pods.iter().for_each(|pod| node.del(pod));
    // None of these belongs to an attachment in use, so GC releases them.
    let gc = conf::with_valid(&node.conf, &[(container_id(&next).as_str(), "eth0")]);
    node.sandbox.cni("bridge").gc(&gc).silent();
    let left: Vec<_> = node
        .reserved()
        .into_iter()
        .map(|(owner, _)| owner)
        .collect();
    assert_eq!(left, ["id-next\r\neth0"]);
}

#[test]
fn what_others_put_beside_our_files_is_left_alone() {
    let node = Node::new(conf::host_local(&["10.1.0.0/29"]));
    let pod = node.sandbox.pod("a");
    let foreign = "ln -s /etc/passwd 10.1.0.2; mkdir 10.1.0.3; mkfifo 10.1.0.4; ln -s /nonexistent 10.1.0.99;
        mkdir -p notes; echo hello > notes/readme; echo x > 10.1.0.5.bak; echo y > ' 10.1.0.6'; ln -s / .podwire";
    node.sh(&format!("mkdir -p {0}; cd {0}; {foreign}", conf::STATE));
    let snapshot = node.sandbox.snapshot().allow_host_local(conf::NETWORK);
    let cni = |id: &str| node.sandbox.cni("host-local").id(id);
    let given = ["a", "b"].map(|id| address(&cni(id).add(&node.conf, &pod, "eth0").result()));
    assert_eq!(given, ["10.1.0.5/29", "10.1.0.6/29"]);
    assert_eq!(cni("c").add(&node.conf, &pod, "eth0").error().code, 11);
    for id in ["a", "b"] {
        cni(id).del(&node.conf, &pod, "eth0").silent();
    }
    cni("x").gc(&conf::with_valid(&node.conf, &[])).silent();
    snapshot.assert_unchanged();
}

#[test]
fn a_clock_that_jumps_changes_nothing() {
    // The index compares modification times: give both of its marks times of another clock, as they would be had the
    // node's clock been wrong until now.
    for then in ["1971-01-01", "2099-01-01"] {
        let node = Node::new(conf::host_local(&["10.1.0.0/24"]));
        let pod = node.sandbox.pod("a");
        let cni = |id: &str| node.sandbox.cni("host-local").id(id);
        let add = |id: &str| address(&cni(id).add(&node.conf, &pod, "eth0").result());
        let mut all: BTreeSet<String> = ["a", "b"].map(add).into();
        node.sh(&format!(
            "touch -d {then} {}/* {INDEX}/* {}",
            conf::STATE,
            conf::STATE
        ));
        // The Go plugin, say, takes one, and an operator frees one, after the clock was put right.
        let other = cni("go")
            .peer()
            .add(&conf::at(&node.conf, "1.0.0"), &pod, "eth0")
            .result();
        all.insert(address(&other));
        all.insert(add("c"));
        assert_eq!(all.len(), 4, "{then}: {all:?}");
        node.sandbox.reboot();
        node.sh(&format!("touch -d {then} {}", conf::STATE));
        all.insert(add("d"));
        assert_eq!(
            all.len(),
            5,
            "{then}: an address of before was given while there were others"
        );
        for id in ["a", "b", "go", "c", "d"] {
            cni(id).del(&node.conf, &pod, "eth0").silent();
        }
        assert_eq!(node.reserved(), [], "{then}");
    }
}

#[test]
fn a_flushed_ruleset_is_reported_by_check_and_blocks_no_call() {
    let back_ends = [BackEnd::Nftables, BackEnd::IptablesNft];
    for back_end in back_ends {
        let sandbox = Sandbox::new();
        let change = json!({"ipMasq": true, "ipMasqBackend": back_end.name()});
        let bridge = conf::with(&conf::bridge(&["10.1.0.0/24"]), change);
        let mut portmap = conf::plugin("portmap");
        portmap["backend"] = back_end.name().into();
        let port = |number: u16| {
            let mapping = json!({"hostPort": number, "containerPort": 80, "protocol": "tcp"});
            conf::with(
                &portmap,
                json!({"runtimeConfig": {"portMappings": [mapping]}}),
            )
        };
        let cni = |kind: &str| sandbox.cni_with(back_end, kind);
        let [first, second] = ["first", "second"].map(|name| sandbox.pod(name));
        let result = cni("bridge").add(&bridge, &first, "eth0").result();
        cni("portmap")
            .add(&conf::with_prev(&port(8080), &result), &first, "eth0")
            .result();
        sandbox.host().sh("nft flush ruleset");
        for (kind, conf) in [("bridge", bridge.clone()), ("portmap", port(8080))] {
            let message = cni(kind)
                .check(&conf::with_prev(&conf, &result), &first, "eth0")
                .error();
            assert!(!message.msg.contains("panic"), "{}", message.msg);
        }
        // The next pod has everything it needs.
        let next = cni("bridge").add(&bridge, &second, "eth0").result();
        cni("portmap")
            .add(&conf::with_prev(&port(8081), &next), &second, "eth0")
            .result();
        for (kind, conf) in [("bridge", bridge.clone()), ("portmap", port(8081))] {
            cni(kind)
                .check(&conf::with_prev(&conf, &next), &second, "eth0")
                .silent();
        }
        sandbox.host().sh("nft flush ruleset");
        for (pod, number) in [(&first, 8080), (&second, 8081)] {
            cni("portmap").del(&port(number), pod, "eth0").silent();
            cni("bridge").del(&bridge, pod, "eth0").silent();
        }
    }
}

#[test]
fn a_bridge_deleted_by_hand_is_reported_by_check_and_made_again() {
    let node = Node::bridge();
    let [first, second] = ["first", "second"].map(|name| node.sandbox.pod(name));
    let result = node.add(&first);
    node.sh("ip link del cni0");
    let message = node.check(&first, &result).expect_err("the bridge is gone");
    assert!(message.contains("cni0"), "{message}");
    let next = node.add(&second);
    assert_eq!(node.check(&second, &next), Ok(()));
    assert_eq!(second.ping("10.1.0.1", 1), [true]);
    node.del(&first);
    node.del(&second);
    assert_eq!(node.sandbox.host().links(), ["cni0", "lo"]);
}

#[test]
fn an_interface_renamed_in_the_pod_goes_with_del_and_with_gc() {
    let node = Node::bridge();
    let snapshot = node.sandbox.snapshot().allow_bridge_network();
    for gc in [false, true] {
        let pod = node.sandbox.pod("renamed");
        let result = node.add(&pod);
        pod.sh("ip link set eth0 down; ip link set eth0 name lan0");
        let message = node.check(&pod, &result).expect_err("eth0 is gone");
        assert!(message.contains("eth0"), "{message}");
        if gc {
            node.collect();
        } else {
            node.del(&pod);
        }
        assert_eq!(pod.links(), ["lo"], "gc {gc}");
        assert_eq!(node.reserved(), []);
        node.sandbox.remove_pod(&pod);
    }
    snapshot.assert_unchanged();
}

#[test]
fn deleting_the_namespace_first_leaves_only_what_del_or_gc_remove() {
    let change = json!({"ipMasq": true, "ipMasqBackend": "nftables", "macspoofchk": true});
    let node = Node::new(conf::with(&conf::bridge(&["10.1.0.0/24"]), change));
    let first = node.sandbox.pod("warm");
    node.add(&first);
    node.del(&first);
    let snapshot = node
        .sandbox
        .snapshot()
        .allow_bridge_network()
        .allow("/.podwire/")
        // The network's rule goes with the last of its pods, when GC sees it.
        .allow("masq_checks");
    for gc in [false, true] {
        let pod = node.sandbox.pod("gone");
        node.add(&pod);
        node.sandbox.remove_pod(&pod);
        if gc {
            node.collect();
        } else {
            let cni = node.sandbox.cni("bridge").netns("");
            cni.del(&node.conf, &pod, "eth0").silent();
        }
        snapshot.assert_unchanged();
    }
}
