//! What happens to nodes: agents are killed, devices and entries are deleted, addresses change.

use sandbox::{Netns, Suite};

use sandbox::cluster::{Cluster, address, config, entries, has, is_gone, lease_key, programmed};

const MAC: &str = "be:9f:00:00:00:07";

/// How often a key was written.
fn version(cluster: &Cluster, key: &str) -> i64 {
    let shown = cluster.etcdctl(&["get", "-w", "json", key]);
    let shown: serde_json::Value = serde_json::from_str(&shown).expect("JSON");
    shown["kvs"][0]["version"].as_i64().expect("a version")
}

#[test]
fn killed_and_started_again_it_writes_nothing_and_removes_what_went_meanwhile() {
    let cluster = Cluster::new(2);
    let etcd = cluster.etcd(&config());
    cluster.put_lease("10.5.77.0-24", "172.20.7.2", MAC);
    let agents = [1, 2].map(|node| cluster.ready(node, &cluster.conf(node, &etcd.url)));
    let pods = [1, 2].map(|node| cluster.pod(node, "a"));
    let (key, _) = cluster.lease_of(&address(1)).expect("the lease");
    let device = |node: &Netns| node.link("flannel.1").expect("flannel.1")["ifindex"].clone();
    let before = (version(&cluster, &key), device(cluster.node(1)));
    let [first, _second] = agents;
    let pings = pods[1].start(&["ping", "-i", "0.05", &format!("{}.2", cluster.subnet(1))]);
    // SIGKILL.
    drop(first);
    cluster.delete(&lease_key("10.5.77.0-24"));
    cluster.put_lease("10.5.78.0-24", "172.20.7.3", "be:9f:00:00:00:08");
    let _first = cluster.ready(1, &cluster.conf(1, &etcd.url));
    assert_eq!((version(&cluster, &key), device(cluster.node(1))), before);
    assert!(is_gone(cluster.node(1), "10.5.77", MAC));
    let new = programmed("10.5.78", "172.20.7.3", "be:9f:00:00:00:08");
    assert!(has(&entries(cluster.node(1), "10.5.78"), &new));
    let lost = |text: &str| {
        let seqs: Vec<u32> = text
            .lines()
            .filter_map(|line| {
                line.split("icmp_seq=")
                    .nth(1)?
                    .split(' ')
                    .next()?
                    .parse()
                    .ok()
            })
            .collect();
        seqs.windows(2).any(|pair| pair[1] != pair[0] + 1)
    };
    let seen = pings.output().lines().count();
    cluster.wait("pings go on", || pings.output().lines().count() > seen + 3);
    assert!(!lost(&pings.output()), "{}", pings.output());
}

#[test]
fn what_is_deleted_or_changed_comes_back() {
    let cluster = Cluster::new(1);
    let etcd = cluster.etcd(&config());
    let node = cluster.node(1);
    cluster.put_lease("10.5.77.0-24", "172.20.7.2", MAC);
    let _agent = cluster.ready(1, &cluster.conf(1, &etcd.url));
    let whole = || {
        has(
            &entries(node, "10.5.77"),
            &programmed("10.5.77", "172.20.7.2", MAC),
        )
    };
    let own = node.link("flannel.1").expect("flannel.1")["address"].clone();
    for damage in [
        "ip route del 10.5.77.0/24",
        "ip neighbour del 10.5.77.0 dev flannel.1",
        "bridge fdb del be:9f:00:00:00:07 dev flannel.1 self",
        "ip neighbour flush dev flannel.1 nud permanent",
        "ip link set flannel.1 down",
        "ip link del flannel.1",
        "ip address flush dev flannel.1",
    ] {
        assert!(whole(), "before {damage}");
        node.sh(damage);
        cluster.wait(damage, whole);
        let subnet = cluster.subnet(1);
        cluster.wait("the device has its address", || {
            node.addresses("flannel.1")
                .contains(&format!("{subnet}.0/32"))
        });
    }
    node.sh("ip link set flannel.1 address 02:00:00:00:00:99");
    cluster.wait("the MAC is set again", || {
        node.link("flannel.1")
            .is_some_and(|it| it["address"] == own)
    });
    node.sh("ip link set eth0 mtu 1400");
    cluster.wait("the MTU follows", || {
        node.link("flannel.1").is_some_and(|it| it["mtu"] == 1350)
    });
    cluster.wait("subnet.env follows", || {
        let text = cluster.sandbox.read(cluster.path("n1/subnet.env"));
        text.is_some_and(|it| it.contains("FLANNEL_MTU=1350"))
    });
}

#[test]
fn an_interface_that_goes_down_and_comes_back_leaves_the_network_as_it_was() {
    let cluster = Cluster::new(2);
    let etcd = cluster.etcd(&config());
    let _agents = [1, 2].map(|node| cluster.ready(node, &cluster.conf(node, &etcd.url)));
    let pods = [1, 2].map(|node| cluster.pod(node, "a"));
    let (node, subnet) = (cluster.node(1), cluster.subnet(2));
    let ip = format!("{subnet}.2");
    pods[0].wait_until("the other pod answers", |pod| pod.ping(&ip, 1) == [true]);
    let device = || node.link("flannel.1").expect("flannel.1")["ifindex"].clone();
    let (before, index) = (entries(node, &subnet), device());
    let (key, _) = cluster.lease_of(&address(1)).expect("the lease");
    let written = version(&cluster, &key);
    let looks = || {
        let metrics = cluster.page(1, "metrics");
        let line = metrics
            .lines()
            .find(|it| it.starts_with("podwired_overlay_passes_total"));
        line.map(str::to_owned)
    };
    let first = looks();
    node.sh("ip link set eth0 down");
    cluster.wait("the agent has looked at it", || looks() != first);
    node.sh("ip link set eth0 up; ip route replace default via 172.20.1.1");
    pods[0].wait_until("traffic goes on", |pod| pod.ping(&ip, 1) == [true]);
    assert_eq!((entries(node, &subnet), device()), (before, index));
    assert_eq!(version(&cluster, &key), written);
}

#[test]
fn a_new_address_of_a_node_is_published_and_the_others_follow() {
    let cluster = Cluster::new(2);
    let etcd = cluster.etcd(&config());
    let _agents = [1, 2].map(|node| cluster.ready(node, &cluster.conf(node, &etcd.url)));
    let pods = [1, 2].map(|node| cluster.pod(node, "a"));
    let subnet = cluster.subnet(1);
    let (key, value) = cluster.lease_of(&address(1)).expect("the lease");
    let mac = value["BackendData"]["VtepMAC"]
        .as_str()
        .expect("a MAC")
        .to_owned();
    cluster.node(1).sh("ip address add 172.20.1.77/24 dev eth0
         ip address del 172.20.1.2/24 dev eth0
         ip address add 172.20.1.77/24 dev eth0 2>/dev/null || :
         ip route replace default via 172.20.1.1");
    cluster.wait("the new address is published", || {
        cluster
            .lease_of("172.20.1.77")
            .is_some_and(|it| it.0 == key)
    });
    let moved = programmed(&subnet, "172.20.1.77", &mac);
    cluster.wait("the other node follows", || {
        has(&entries(cluster.node(2), &subnet), &moved)
    });
    pods[1].wait_until("traffic goes on", |pod| {
        pod.ping(&format!("{subnet}.2"), 1) == [true]
    });
}

#[test]
fn a_lease_that_is_revoked_is_won_again() {
    let cluster = Cluster::new(1);
    let etcd = cluster.etcd(&config());
    let _agent = cluster.ready(1, &cluster.conf(1, &etcd.url));
    let (key, _) = cluster.lease_of(&address(1)).expect("the lease");
    let list = cluster.etcdctl(&["lease", "list"]);
    let id = list.lines().last().expect("a lease").to_owned();
    cluster.etcdctl(&["lease", "revoke", &id]);
    cluster.wait("the key is back", || {
        cluster.lease_of(&address(1)).is_some_and(|it| it.0 == key)
    });
    let list = cluster.etcdctl(&["lease", "list"]);
    assert_eq!(
        list.lines()
            .filter(|it| it.len() > 10 && !it.contains(' '))
            .count(),
        1,
        "{list}"
    );
}

#[test]
fn a_subnet_that_an_operator_reserves_stays_reserved() {
    let cluster = Cluster::new(1);
    let etcd = cluster.etcd(&config());
    cluster.put_lease("10.5.50.0-24", &address(1), MAC);
    let _agent = cluster.ready(1, &cluster.conf(1, &etcd.url));
    assert_eq!(cluster.subnet(1), "10.5.50");
    let shown = cluster.etcdctl(&["get", "-w", "json", &lease_key("10.5.50.0-24")]);
    assert!(!shown.contains("\"lease\""), "{shown}");
}

#[test]
fn the_configuration_is_followed() {
    let cluster = Cluster::new(1);
    let etcd = cluster.etcd(&config());
    let node = cluster.node(1);
    let _agent = cluster.ready(1, &cluster.conf(1, &etcd.url));
    let mut other = config();
    other["Backend"]["Port"] = 4789.into();
    cluster.put(
        &format!("{}/config", sandbox::cluster::PREFIX),
        &other.to_string(),
    );
    cluster.wait("the device has the new port", || {
        node.link("flannel.1")
            .is_some_and(|it| it["linkinfo"]["info_data"]["port"] == 4789)
    });
}

#[test]
fn killed_at_any_system_call_it_leaves_what_the_next_start_completes() {
    let cluster = Cluster::new(1);
    let etcd = cluster.etcd(&config());
    cluster.put_lease("10.5.77.0-24", "172.20.7.2", MAC);
    let conf = cluster.conf(1, &etcd.url);
    let node = cluster.node(1);
    let file = cluster.path("n1.json").display().to_string();
    cluster.sandbox.write(&file, conf.to_string());
    let program = Suite::Ours.dir().join("podwired").display().to_string();
    let conflist = cluster.path("n1/net.d/10.conflist");
    // What reaches the kernel, the store or the disk.
    for calls in [
        "sendmsg,sendto",
        "write,writev",
        "rename,renameat,renameat2",
        "fsync",
    ] {
        for point in 1.. {
            node.sh("ip link del flannel.1 2>/dev/null || :");
            let _ = std::fs::remove_file(&conflist);
            let (trace, inject) = (
                format!("trace={calls}"),
                format!("inject={calls}:signal=KILL:when={point}"),
            );
            let agent = node.start(&[
                "strace",
                "-f",
                "-qqq",
                "-o",
                "/dev/null",
                "-e",
                &trace,
                "-e",
                &inject,
                &program,
                "--config",
                &file,
            ]);
            let has_ended = || {
                let stat = std::fs::read_to_string(format!("/proc/{}/stat", agent.id()));
                stat.is_ok_and(|it| it.contains(") Z "))
            };
            cluster.wait("it is ready or killed", || {
                has_ended() || cluster.page(1, "readyz").starts_with("ok")
            });
            // Files are complete or absent, whenever it ends.
            if let Some(list) = cluster.sandbox.read(&conflist) {
                assert!(
                    serde_json::from_str::<serde_json::Value>(&list).is_ok(),
                    "{list}"
                );
            }
            let was_killed = has_ended();
            // A program whose tracer ends goes on.
            node.run(&["pkill", "-KILL", "-P", &agent.id().to_string()]);
            drop(agent);
            if !was_killed {
                assert!(point > 1, "{calls}: nothing was struck");
                break;
            }
        }
    }
    let _agent = cluster.ready(1, &conf);
    let whole = programmed("10.5.77", "172.20.7.2", MAC);
    assert!(has(&entries(node, "10.5.77"), &whole));
    let leases = cluster.etcdctl(&["get", "--prefix", "--keys-only", &lease_key("")]);
    assert_eq!(leases.split_whitespace().count(), 2, "{leases}");
}

#[test]
fn a_second_instance_by_mistake_changes_nothing() {
    let cluster = Cluster::new(1);
    let etcd = cluster.etcd(&config());
    let conf = cluster.conf(1, &etcd.url);
    let _first = cluster.ready(1, &conf);
    let (key, value) = cluster.lease_of(&address(1)).expect("the lease");
    let before = version(&cluster, &key);
    // The same socket is refused.
    let same = cluster.start(1, &conf);
    cluster.wait("it is refused", || same.output().contains("error"));
    let mut other = cluster.conf(2, &etcd.url);
    other["overlay"]["networks"][0]["bridge"] = "cni1".into();
    let second = cluster.start(1, &other);
    cluster.await_ready(2, &second);
    assert_eq!(cluster.subnet(2), cluster.subnet(1));
    assert_eq!(cluster.lease_of(&address(1)), Some((key.clone(), value)));
    assert_eq!(version(&cluster, &key), before);
    drop(second);
    cluster.put_lease("10.5.78.0-24", "172.20.7.3", MAC);
    let peer = programmed("10.5.78", "172.20.7.3", MAC);
    cluster.wait("the first goes on", || {
        has(&entries(cluster.node(1), "10.5.78"), &peer)
    });
}
