//! DEL is over when the interface is gone, not when the kernel has freed its memory:
//! what follows at once finds nothing in its way.

use sandbox::{Netns, Sandbox, Suite, beyond_peer, conf, container_id};

/// The number of addresses that host-local has reserved.
fn held(sandbox: &Sandbox) -> usize {
    let files = sandbox.list(conf::STATE);
    files.iter().filter(|name| name.starts_with("10.")).count()
}

fn host_veths(sandbox: &Sandbox) -> usize {
    let ports = sandbox.host().ip_json(["link", "show", "master", "cni0"]);
    ports.len()
}

#[test]
fn the_namespace_can_be_unmounted_at_once() {
    let sandbox = Sandbox::new();
    let conf = conf::bridge(&["10.1.0.0/24"]);
    for number in 0..10 {
        let pod = sandbox.pod(&format!("p{number}"));
        sandbox.cni("bridge").add(&conf, &pod, "eth0").result();
        sandbox.cni("bridge").del(&conf, &pod, "eth0").silent();
        // Not a lazy one: it is refused while a process has the file open.
        let path = pod.path();
        sandbox.host().sh(&format!("umount {path} && rm {path}"));
        sandbox.cni("bridge").del(&conf, &pod, "eth0").silent();
    }
    assert_eq!((host_veths(&sandbox), held(&sandbox)), (0, 0));
}

#[test]
fn the_same_pod_can_come_back_at_once() {
    let sandbox = Sandbox::new();
    let pod = sandbox.pod("a");
    let conf = conf::bridge(&["10.1.0.0/29"]);
    for _ in 0..30 {
        let result = sandbox.cni("bridge").add(&conf, &pod, "eth0").result();
        let checked = conf::with_prev(&conf, &result);
        sandbox.cni("bridge").check(&checked, &pod, "eth0").silent();
        assert_eq!(pod.links(), ["eth0", "lo"]);
        sandbox.cni("bridge").del(&conf, &pod, "eth0").silent();
        assert_eq!(pod.links(), ["lo"]);
        assert_eq!((host_veths(&sandbox), held(&sandbox)), (0, 0));
    }
}

#[test]
fn the_other_suite_takes_over_at_once() {
    let sandbox = Sandbox::new();
    let pod = sandbox.pod("a");
    let conf = conf::at(&conf::bridge(&["10.1.0.0/29"]), "1.0.0");
    for round in 0..10 {
        let (one, other) = match round % 2 {
            0 => (Suite::Ours, Suite::Peer),
            _ => (Suite::Peer, Suite::Ours),
        };
        let call = |suite| sandbox.cni("bridge").suite(suite);
        call(one).add(&conf, &pod, "eth0").result();
        call(other).del(&conf, &pod, "eth0").silent();
    }
    assert_eq!((host_veths(&sandbox), held(&sandbox)), (0, 0));
}

#[test]
fn without_a_child_del_waits_and_leaves_nothing() {
    let sandbox = Sandbox::new();
    let pod = sandbox.pod("a");
    let mut conf = conf::bridge(&["10.1.0.0/29"]);
    conf["ipMasq"] = true.into();
    let call = || sandbox.cni("bridge").env("PODWIRE_NO_DEFER", "1");
    for _ in 0..3 {
        call().add(&conf, &pod, "eth0").result();
        call().del(&conf, &pod, "eth0").silent();
        assert_eq!(pod.links(), ["lo"]);
        assert_eq!((host_veths(&sandbox), held(&sandbox)), (0, 0));
    }
}

#[test]
fn gc_in_the_place_of_del_removes_many_at_once() {
    beyond_peer("no GC there", || {
        let sandbox = Sandbox::new();
        let conf = conf::bridge(&["10.1.0.0/24"]);
        let pods: Vec<Netns> = (0..30).map(|n| sandbox.pod(&format!("p{n}"))).collect();
        for pod in &pods {
            sandbox.cni("bridge").add(&conf, pod, "eth0").result();
        }
        let alive = container_id(&pods[7]);
        let one = conf::with_valid(&conf, &[(&alive, "eth0")]);
        sandbox.cni("bridge").gc(&one).silent();
        assert_eq!((host_veths(&sandbox), held(&sandbox)), (1, 1));
        assert_eq!(pods[7].links(), ["eth0", "lo"]);
        assert_eq!(pods[8].links(), ["lo"]);
    });
}
