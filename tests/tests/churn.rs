//! Many pods, many times, many at once: no address twice, nothing left.

use std::collections::BTreeSet;
use std::thread::scope;

use sandbox::{Netns, Sandbox, conf};

#[test]
fn a_thousand_pods_come_and_go_and_leave_nothing() {
    let sandbox = Sandbox::new();
    let pod = sandbox.pod("a");
    let conf = conf::bridge(&["10.1.0.0/16"]);
    let cycle = |number: usize| {
        let id = format!("c{number}");
        let cni = || sandbox.cni("bridge").id(&id);
        let result = cni().add(&conf, &pod, "eth0").result();
        let address = result["ips"][0]["address"].as_str().map(str::to_owned);
        cni().del(&conf, &pod, "eth0").silent();
        address.expect("an address")
    };
    cycle(0);
    let snapshot = sandbox
        .snapshot()
        .allow_link("cni0")
        .allow_host_local(conf::NETWORK);
    let addresses: BTreeSet<String> = (1..=1000).map(cycle).collect();
    assert_eq!(addresses.len(), 1000, "round robin: none comes back soon");
    snapshot.assert_unchanged();
}

#[test]
fn fifty_pods_at_once_get_fifty_addresses_and_leave_nothing() {
    let sandbox = Sandbox::new();
    let snapshot = sandbox.snapshot().allow_bridge_network();
    let pods: Vec<Netns> = (0..50).map(|n| sandbox.pod(&format!("p{n}"))).collect();
    let conf = conf::bridge(&["10.1.0.0/24", "fd01::/64"]);
    // The bridge does not exist yet: all fifty race to create it.
    let addresses: Vec<[String; 2]> = scope(|scope| {
        let adds: Vec<_> = pods
            .iter()
            .map(|pod| {
                scope.spawn(|| {
                    let result = sandbox.cni("bridge").add(&conf, pod, "eth0").result();
                    [0, 1].map(|n: usize| result["ips"][n]["address"].to_string())
                })
            })
            .collect();
        adds.into_iter()
            .map(|add| add.join().expect("an ADD"))
            .collect()
    });
    let all: BTreeSet<&String> = addresses.iter().flatten().collect();
    assert_eq!(all.len(), 100);
    let ports = sandbox.host().ip_json(["link", "show", "master", "cni0"]);
    assert_eq!(ports.len(), 50);
    assert!(ports.iter().all(|port| port["operstate"] == "UP"));
    assert_eq!(pods[0].ping("10.1.0.1", 1), [true]);
    scope(|scope| {
        for pod in &pods {
            scope.spawn(|| {
                sandbox
                    .cni("bridge")
                    .del(&conf, pod, "eth0")
                    .silent()
                    .code()
            });
        }
    });
    for pod in &pods {
        assert_eq!(pod.links(), ["lo"]);
    }
    snapshot.assert_unchanged();
}

#[test]
fn add_and_del_at_once_do_not_disturb_each_other() {
    let sandbox = Sandbox::new();
    let conf = conf::bridge(&["10.1.0.0/24"]);
    let pods: Vec<Netns> = (0..20).map(|n| sandbox.pod(&format!("p{n}"))).collect();
    let snapshot = sandbox.snapshot().allow_bridge_network();
    scope(|scope| {
        for pod in &pods {
            scope.spawn(|| {
                for _ in 0..3 {
                    sandbox.cni("bridge").add(&conf, pod, "eth0").result();
                    sandbox.cni("bridge").del(&conf, pod, "eth0").silent();
                }
            });
        }
    });
    snapshot.assert_unchanged();
}

#[test]
fn a_pool_of_253_is_used_to_the_last_address_and_all_come_back() {
    let sandbox = Sandbox::new();
    let pod = sandbox.pod("a");
    let conf = conf::host_local(&["10.1.0.0/24"]);
    let snapshot = sandbox.snapshot().allow_host_local(conf::NETWORK);
    let call = |number: usize| sandbox.cni("host-local").id(&format!("c{number}"));
    let addresses: BTreeSet<String> = (0..253)
        .map(|n| call(n).add(&conf, &pod, "eth0").result()["ips"][0]["address"].to_string())
        .collect();
    assert_eq!(addresses.len(), 253);
    assert!(!addresses.contains("\"10.1.0.1/24\"") && !addresses.contains("\"10.1.0.255/24\""));
    let error = call(999).add(&conf, &pod, "eth0").error();
    assert!(
        error
            .msg
            .contains("no IP addresses available in range set: 10.1.0.1-10.1.0.254"),
        "{}",
        error.msg
    );
    call(77).del(&conf, &pod, "eth0").silent();
    call(999).add(&conf, &pod, "eth0").result();
    for number in (0..253).chain([999]) {
        call(number).del(&conf, &pod, "eth0").silent();
    }
    snapshot.assert_unchanged();
}

#[test]
fn two_hundred_pods_live_on_one_bridge() {
    let sandbox = Sandbox::new();
    let pods: Vec<Netns> = (0..200).map(|n| sandbox.pod(&format!("p{n}"))).collect();
    let conf = conf::bridge(&["10.1.0.0/24"]);
    let mut addresses = BTreeSet::new();
    for pod in &pods {
        let result = sandbox.cni("bridge").add(&conf, pod, "eth0").result();
        addresses.insert(result["ips"][0]["address"].to_string());
    }
    assert_eq!(addresses.len(), 200);
    let (first, last) = (&pods[0], &pods[199]);
    assert_eq!(first.ping("10.1.0.201", 1), [true]);
    assert_eq!(last.ping("10.1.0.1", 1), [true]);
    for pod in &pods {
        sandbox.cni("bridge").del(&conf, pod, "eth0").silent();
    }
    assert_eq!(sandbox.host().links(), ["cni0", "lo"]);
}
