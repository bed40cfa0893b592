//! DEL and GC give leases back, whatever the pod did.

use sandbox::{beyond_peer, conf};
use serde_json::json;

use crate::{STATE, WHY, Wire, address, lan, release_of};

#[test]
fn del_succeeds_whatever_the_pod_did_to_its_interface() {
    beyond_peer("it deletes what has the name", || {
        for script in [
            "ip link set eth0 down; ip link set eth0 name x
             ip link property add dev lo altname eth0",
            "ip link set eth0 down; ip link set eth0 name x; ip link add eth0 type bridge",
            "ip link set eth0 down; ip link set eth0 address 02:00:00:00:00:07",
        ] {
            for dies in [false, true] {
                let wire = Wire::new();
                let _server = wire.dnsmasq(&[]);
                let daemon = wire.daemon(&[]);
                let pod = wire.sandbox.pod("a");
                wire.add(&pod);
                pod.sh(script);
                if dies {
                    drop(daemon);
                }
                wire.del(&pod);
                assert!(wire.sandbox.list(STATE).is_empty(), "{script}");
                let host = wire.host().links();
                assert!(!host.iter().any(|it| it.starts_with("veth")), "{host:?}");
            }
        }
    });
}

#[test]
fn del_succeeds_whatever_became_of_the_namespace() {
    beyond_peer(WHY, || {
        let wire = Wire::new();
        let server = wire.dnsmasq(&[]);
        let _daemon = wire.daemon(&[]);
        let plain = wire.file("plain");
        wire.sandbox.write(&plain, "");
        let directory = wire.sandbox.dir().display().to_string();
        for (name, found) in [
            ("p0", ""),
            ("p1", "/run/netns/nope"),
            ("p2", plain.as_str()),
            ("p3", directory.as_str()),
        ] {
            let pod = wire.sandbox.pod(name);
            let cni = || wire.sandbox.cni("bridge").id(name);
            let ours = address(&cni().add(&lan(), &pod, "eth0").result());
            assert_eq!(wire.sandbox.list(STATE).len(), 1);
            // What runtimes say of a namespace that they have lost; the daemon knows better.
            cni().netns(found).del(&lan(), &pod, "eth0").silent();
            cni().netns(found).del(&lan(), &pod, "eth0").silent();
            Wire::await_log(&server, &release_of(&ours));
            assert!(wire.sandbox.list(STATE).is_empty());
        }
        // Gone with its interface: nothing can be sent, and nothing stays.
        let pod = wire.sandbox.pod("p4");
        wire.add(&pod);
        wire.sandbox.remove_pod(&pod);
        wire.del(&pod);
        assert!(wire.sandbox.list(STATE).is_empty());
    });
}

#[test]
fn gc_gives_back_what_is_not_in_use() {
    beyond_peer(WHY, || {
        let wire = Wire::new();
        let server = wire.dnsmasq(&[]);
        let _daemon = wire.daemon(&[]);
        let (one, two) = (wire.sandbox.pod("a"), wire.sandbox.pod("b"));
        let add = |pod| address(&wire.add(pod));
        let (first, second) = (add(&one), add(&two));
        let other = conf::with(&lan(), json!({"name": "other"}));
        wire.gc(&other, &[]);
        assert_eq!(wire.sandbox.list(STATE).len(), 2, "another network");
        let valid = conf::with_valid(&lan(), &[("id-b", "eth0")]);
        wire.sandbox.cni("dhcp").gc(&valid).silent();
        Wire::await_log(&server, &release_of(&first));
        assert!(!server.output().contains(&release_of(&second)));
        assert_eq!(wire.sandbox.list(STATE).len(), 1);
    });
}
