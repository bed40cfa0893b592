//! Stores that are away, restarted, compacted, in several members, or behind TLS.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::json;

use sandbox::cluster::{
    Cluster, PREFIX, address, config, entries, has, is_gone, lease_key, programmed,
};
use sandbox::etcd;

const MAC: &str = "be:9f:00:00:00:07";
const OTHER_MAC: &str = "be:9f:00:00:00:08";

#[test]
fn a_node_becomes_ready_last_and_says_what_it_waits_for() {
    let cluster = Cluster::new(1);
    let conf = cluster.conf(1, "http://172.20.0.1:2379");
    let conflist = cluster.path("n1/net.d/10.conflist");
    let agent = cluster.start(1, &conf);
    cluster.wait("it says that the store is away", || {
        cluster
            .page(1, "readyz")
            .contains("the store does not answer")
    });
    let etcd = cluster.start_etcd("etcd");
    cluster.wait("it says that there is no configuration", || {
        cluster
            .page(1, "readyz")
            .contains(&format!("{PREFIX}/config is missing"))
    });
    assert_eq!(cluster.sandbox.read(&conflist), None);
    cluster.put(&format!("{PREFIX}/config"), &config().to_string());
    cluster.await_ready(1, &agent);
    let list = cluster.sandbox.read(&conflist).expect("the conflist");
    // At the end both stay, and so does the network.
    drop(agent);
    assert_eq!(cluster.sandbox.read(&conflist), Some(list));
    assert!(cluster.node(1).link("flannel.1").is_some());
    drop(etcd);
}

#[test]
fn changes_that_were_compacted_while_the_store_was_away_are_not_missed() {
    let cluster = Cluster::new(1);
    let etcd = cluster.etcd(&config());
    let node = cluster.node(1);
    cluster.put_lease("10.5.70.0-24", "172.20.7.1", MAC);
    cluster.put_lease("10.5.71.0-24", "172.20.7.2", OTHER_MAC);
    let _agent = cluster.ready(1, &cluster.conf(1, &etcd.url));
    let (key, _) = cluster.lease_of(&address(1)).expect("the lease");
    // The member is away, and what happens meanwhile is compacted before the agent is back.
    node.sh("ip route add blackhole 172.20.0.1");
    cluster
        .sandbox
        .host()
        .sh("ip route add blackhole 172.20.1.2");
    cluster.delete(&lease_key("10.5.70.0-24"));
    cluster.put_lease("10.5.71.0-24", "172.20.7.9", OTHER_MAC);
    cluster.put_lease("10.5.72.0-24", "172.20.7.3", "be:9f:00:00:00:09");
    let shown = cluster.etcdctl(&["get", "-w", "json", &lease_key("10.5.72.0-24")]);
    let shown: serde_json::Value = serde_json::from_str(&shown).expect("JSON");
    let revision = shown["header"]["revision"].to_string();
    cluster.etcdctl(&["compact", &revision]);
    drop(etcd);
    let _etcd = cluster.start_etcd("etcd");
    node.sh("ip route del blackhole 172.20.0.1");
    cluster
        .sandbox
        .host()
        .sh("ip route del blackhole 172.20.1.2");
    cluster.wait("the node that went is gone", || {
        is_gone(node, "10.5.70", MAC)
    });
    let moved = programmed("10.5.71", "172.20.7.9", OTHER_MAC);
    cluster.wait("the node that moved is followed", || {
        has(&entries(node, "10.5.71"), &moved)
    });
    let new = programmed("10.5.72", "172.20.7.3", "be:9f:00:00:00:09");
    cluster.wait("the new node is there", || {
        has(&entries(node, "10.5.72"), &new)
    });
    assert_eq!(cluster.lease_of(&address(1)).expect("the lease").0, key);
}

#[test]
fn of_three_members_the_one_in_use_is_killed() {
    let cluster = Cluster::new(1);
    let host = cluster.sandbox.host();
    host.sh("ip address add 172.20.0.2/32 dev lo; ip address add 172.20.0.3/32 dev lo");
    let addresses = ["172.20.0.1", "172.20.0.2", "172.20.0.3"];
    let quick = [("heartbeat-interval", "50"), ("election-timeout", "250")];
    let mut members: Vec<_> = (1..=3)
        .map(|n| {
            let data = cluster.path(&format!("m{n}")).display().to_string();
            etcd::member(&host, &data, n, addresses, &quick, &[])
        })
        .collect();
    let put = |key: &str, value: &str| {
        host.run(&[
            "env",
            "ETCDCTL_API=3",
            "etcdctl",
            "--endpoints",
            "http://172.20.0.3:2379",
            "--command-timeout",
            "1s",
            "put",
            key,
            value,
        ])
        .code
            == 0
    };
    cluster.wait("the members have a leader", || {
        put(&format!("{PREFIX}/config"), &config().to_string())
    });
    let mut conf = cluster.conf(1, "");
    let endpoints: Vec<_> = (1..=3)
        .map(|n| format!("http://172.20.0.{n}:2379"))
        .collect();
    conf["overlay"]["etcd"]["endpoints"] = json!(endpoints);
    let _agent = cluster.ready(1, &conf);
    // The agent uses the first one.
    drop(members.remove(0));
    let lease = sandbox::cluster::flannels("172.20.7.2", MAC);
    cluster.wait("the others have a leader", || {
        put(&lease_key("10.5.70.0-24"), &lease)
    });
    let peer = programmed("10.5.70", "172.20.7.2", MAC);
    cluster.wait("the agent goes on with another one", || {
        has(&entries(cluster.node(1), "10.5.70"), &peer)
    });
}

/// A CA, a server's certificate and a client's, made by openssl.
const CERTIFICATES: &str = "
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout ca.key -out ca.pem -days 1 -subj /CN=ca 2>/dev/null
for name in server client; do
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout $name.key -out $name.csr -subj /CN=$name 2>/dev/null
    printf 'subjectAltName=IP:172.20.0.1\\nextendedKeyUsage=serverAuth,clientAuth\\n' >$name.ext
    openssl x509 -req -in $name.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out $name.pem -days 1 -extfile $name.ext 2>/dev/null
done";

#[test]
fn tls_with_certificates_of_both_sides() {
    let cluster = Cluster::new(1);
    let dir = cluster.path("tls");
    std::fs::create_dir_all(&dir).expect("make a directory");
    let file = |name: &str| dir.join(name).display().to_string();
    cluster
        .sandbox
        .host()
        .sh(&format!("cd {}; {CERTIFICATES}", dir.display()));
    let url = "https://172.20.0.1:2379";
    let _etcd = etcd::start(
        &cluster.sandbox.host(),
        &file("etcd"),
        &[
            ("listen-client-urls", url),
            ("advertise-client-urls", url),
            ("listen-peer-urls", "http://127.0.0.1:2380"),
            ("cert-file", &file("server.pem")),
            ("key-file", &file("server.key")),
            ("trusted-ca-file", &file("ca.pem")),
            ("client-cert-auth", "true"),
        ],
        &[],
    );
    let tls = [
        "--cacert",
        &file("ca.pem"),
        "--cert",
        &file("client.pem"),
        "--key",
        &file("client.key"),
    ];
    let key = format!("{PREFIX}/config");
    let config = config().to_string();
    cluster.wait("etcd serves", || {
        let mut argv = vec!["env", "ETCDCTL_API=3", "etcdctl", "--endpoints", url];
        argv.extend(tls);
        argv.extend(["put", &key, &config]);
        cluster.sandbox.host().run(&argv).code == 0
    });
    let mut conf = cluster.conf(1, url);
    conf["overlay"]["etcd"]["caFile"] = file("ca.pem").into();
    let agent = cluster.start(1, &conf);
    cluster.wait("without a certificate it is refused", || {
        cluster
            .page(1, "readyz")
            .contains("the store does not answer")
    });
    drop(agent);
    conf["overlay"]["etcd"]["certFile"] = file("client.pem").into();
    conf["overlay"]["etcd"]["keyFile"] = file("client.key").into();
    let _agent = cluster.ready(1, &conf);
}

/// A way to etcd on which each packet takes its time, and none arrives while it is stopped.
struct SlowWay {
    is_stopped: Arc<AtomicBool>,
}

impl SlowWay {
    const URL: &str = "http://172.20.0.1:2400";

    fn open(cluster: &Cluster, delay: Duration) -> Self {
        let is_stopped = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&is_stopped);
        // A thread is in the namespace of the one that starts it.
        cluster.sandbox.inside(move || {
            let listener = TcpListener::bind("172.20.0.1:2400").expect("listen");
            std::thread::spawn(move || {
                for near in listener.incoming().flatten() {
                    let Ok(far) = TcpStream::connect("172.20.0.1:2379") else {
                        continue;
                    };
                    for (from, to) in [(&near, &far), (&far, &near)] {
                        let (from, to) = (from.try_clone(), to.try_clone());
                        let (from, to) = (from.expect("a copy"), to.expect("a copy"));
                        let stopped = Arc::clone(&stopped);
                        std::thread::spawn(move || carry(from, to, delay, &stopped));
                    }
                }
            });
        });
        Self { is_stopped }
    }
}

fn carry(mut from: TcpStream, mut to: TcpStream, delay: Duration, stopped: &AtomicBool) {
    let mut buffer = vec![0; 1 << 16];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        std::thread::sleep(delay);
        while stopped.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(20));
        }
        if to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
}

#[test]
fn a_slow_store_is_waited_for_and_a_silent_one_loses_nothing() {
    let cluster = Cluster::new(1);
    let _etcd = cluster.etcd(&config());
    let way = SlowWay::open(&cluster, Duration::from_millis(25));
    let node = cluster.node(1);
    let _agent = cluster.ready(1, &cluster.conf(1, SlowWay::URL));
    cluster.put_lease("10.5.70.0-24", "172.20.7.1", MAC);
    let peer = programmed("10.5.70", "172.20.7.1", MAC);
    cluster.wait("a change arrives", || has(&entries(node, "10.5.70"), &peer));
    // Connections stay open, and nothing comes.
    way.is_stopped.store(true, Ordering::Relaxed);
    cluster.put_lease("10.5.71.0-24", "172.20.7.2", OTHER_MAC);
    assert!(has(&entries(node, "10.5.70"), &peer));
    way.is_stopped.store(false, Ordering::Relaxed);
    let missed = programmed("10.5.71", "172.20.7.2", OTHER_MAC);
    cluster.wait("what was missed arrives", || {
        has(&entries(node, "10.5.71"), &missed)
    });
}
