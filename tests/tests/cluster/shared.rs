//! Several nodes with one etcd: a pool that is shared to its last address, nodes that are lost and
//! come back, agents that are stopped.

use sandbox::beyond_peer;
use serde_json::json;

use crate::node::{Cluster, distinct};

const WHY: &str = "it has no such IPAM plugin";

#[test]
fn ten_nodes_use_a_pool_to_its_last_address() {
    beyond_peer(WHY, || {
        let cluster = Cluster::with_etcd();
        let names: Vec<String> = (0..10).map(|n| format!("n{n}")).collect();
        let _agents: Vec<_> = names
            .iter()
            .map(|it| cluster.ready(it, json!({})))
            .collect();
        let conf = |turn: usize| cluster.conf(&names[turn % 10], json!({}));
        // 10.7.0.2 to 10.7.0.254, unequally: the first node alone gets half.
        let node = |turn: usize| if turn < 126 { 0 } else { turn };
        // All begin at once.
        let mut all: Vec<String> = std::thread::scope(|scope| {
            let (cluster, conf) = (&cluster, &conf);
            let add =
                |turn: usize| scope.spawn(move || cluster.add(&conf(turn), &format!("b{turn}")));
            let all: Vec<_> = (0..20).map(add).collect();
            let done = all.into_iter().flat_map(|it| it.join().expect("an ADD"));
            done.collect()
        });
        for turn in 0..233 {
            all.extend(cluster.add(&conf(node(turn)), &format!("c{turn}")));
        }
        assert_eq!(distinct(&all), 253);
        let full = cluster.try_add(&conf(3), "more").error();
        assert!(
            full.code == 11 && full.msg.contains("no IP addresses available"),
            "{}",
            full.msg
        );
        // What one node releases, another one gets.
        cluster.del(&conf(node(200)), "c200");
        assert_eq!(cluster.add(&conf(5), "more")[0], all[220]);
    });
}

#[test]
fn blocks_of_a_lost_node_are_taken_over_and_a_clash_is_named() {
    beyond_peer(WHY, || {
        let cluster = Cluster::with_etcd();
        let quick = json!({"leaseSeconds": 5, "graceSeconds": 1});
        let one = cluster.ready("one", quick.clone());
        let _two = cluster.ready("two", quick.clone());
        let keys = json!({"subnet": "10.7.0.0/28", "blockSize": 28});
        let (first, second) = (cluster.conf("one", keys.clone()), cluster.conf("two", keys));
        let lost = cluster.add(&first, "a");
        cluster
            .sandbox
            .host()
            .sh(&format!("kill -STOP {}", one.id()));
        // Its lease lives: nothing is taken.
        let early = cluster.try_add(&second, "b").error();
        assert_eq!(early.code, 11);
        cluster.wait("the block is taken over", || {
            cluster.try_add(&second, "b").code() == 0
        });
        let all: Vec<_> = (0..12)
            .flat_map(|n| cluster.add(&second, &format!("c{n}")))
            .collect();
        assert_eq!(distinct(&all), 12);
        cluster
            .sandbox
            .host()
            .sh(&format!("kill -CONT {}", one.id()));
        // It finds out before it hands out anything.
        let refused = cluster.try_add(&first, "d").error();
        assert_eq!(refused.code, 11, "{}", refused.msg);
        cluster.wait("the clash is named", || {
            let clashes = cluster.status("one")["clashes"].clone();
            let lost = lost[0].trim_end_matches("/28");
            clashes[0]["address"] == lost && clashes[0]["blockOf"] == "two"
        });
        cluster.del(&first, "a");
        assert_eq!(cluster.status("one")["clashes"], json!([]));
    });
}

#[test]
fn two_agents_are_never_one_node() {
    beyond_peer(WHY, || {
        let cluster = Cluster::with_etcd();
        let _one = cluster.ready("one", json!({}));
        let other = cluster.start("other", json!({"node": "one"}));
        cluster.wait("the second agent says why", || {
            other
                .output()
                .contains("another agent of this machine is node one already")
        });
        let error = cluster
            .try_add(&cluster.conf("other", json!({})), "a")
            .error();
        assert!(
            error.code == 11 && error.msg.contains("no lease"),
            "{}",
            error.msg
        );
    });
}

#[test]
fn idle_blocks_go_back() {
    beyond_peer(WHY, || {
        let cluster = Cluster::with_etcd();
        let _one = cluster.ready("one", json!({}));
        let conf = cluster.conf("one", json!({}));
        for n in 0..60 {
            cluster.add(&conf, &format!("c{n}"));
        }
        let blocks = || {
            cluster.status("one")["pools"]["testnet"]
                .as_array()
                .map_or(0, Vec::len)
        };
        assert!(blocks() >= 4, "{}", blocks());
        for n in 0..60 {
            cluster.del(&conf, &format!("c{n}"));
        }
        cluster.wait("one block stays", || blocks() == 1);
    });
}
