//! Connections while other pods come and go, and several pods that publish the same port.

use std::time::Duration;

use sandbox::{BackEnd, NO_ANSWER, NODE, OUTSIDE, beyond_peer, conf};

use crate::{HTTP, Node, Pod, bridge, each, port, publishing, tcp};

#[test]
fn a_connection_outlives_other_pods() {
    each(&BackEnd::ALL, |node| {
        let pod = node.published("a", &tcp());
        let _server = pod.netns.serve(80);
        let talk = node.outside.converse("tcp", NODE[0], HTTP);
        node.outside
            .wait_until("an answer", |_| talk.output().contains("a sees"));
        for name in ["b", "c"] {
            let other = node.published(name, &[port(9090, 80, "tcp"), port(9090, 80, "udp")]);
            node.unpublish(&other, &[port(9090, 80, "tcp"), port(9090, 80, "udp")]);
        }
        let so_far = talk.output().len();
        node.outside
            .wait_until("more answers", |_| talk.output().len() > so_far + 100);
        assert!(!talk.output().contains("closed"));
    });
}

#[test]
fn the_newest_add_of_a_port_wins_and_says_so() {
    beyond_peer("plugins#1267: the first one wins", || {
        each(&BackEnd::ALL, |node| {
            let a = node.published("a", &tcp());
            let b = node.pod("b");
            let (_a, _b) = (a.netns.serve(80), b.netns.serve(80));
            assert_eq!(node.outside.ask("tcp", NODE[0], HTTP), "a sees 192.0.2.9");
            let took = node.publish(&b, &tcp());
            took.result();
            assert!(
                took.stderr().contains("8080/tcp") && took.stderr().contains("id-a"),
                "{took}"
            );
            for to in NODE {
                assert!(node.outside.ask("tcp", to, HTTP).starts_with("b sees"));
            }
            assert_eq!(node.host().ask("tcp", "127.0.0.1", HTTP), "b sees 10.1.0.1");
            node.unpublish(&a, &tcp());
            for to in NODE {
                assert!(
                    node.outside.ask("tcp", to, HTTP).starts_with("b sees"),
                    "the loser's DEL took it"
                );
            }
            let checked = conf::with_prev(&publishing(&node.conf(), &tcp()), &b.result);
            node.portmap().check(&checked, &b.netns, "eth0").silent();
            node.unpublish(&b, &tcp());
            assert_eq!(node.outside.ask("tcp", NODE[0], HTTP), NO_ANSWER);
        });
    });
}

#[test]
fn a_client_of_udp_reaches_the_new_pod_at_once() {
    each(&BackEnd::ALL, |node| {
        let dns = [port(5353, 53, "udp")];
        let a = node.published("a", &dns);
        let server = a.netns.serve(53);
        let talk = node.outside.converse("udp", NODE[0], 5353);
        node.outside
            .wait_until("an answer", |_| talk.output().contains("a sees"));
        node.unpublish(&a, &dns);
        node.cni("bridge").del(&bridge(), &a.netns, "eth0").silent();
        drop(server);
        // Now the client talks to the node itself, and the kernel remembers that.
        std::thread::sleep(Duration::from_millis(200));
        let b = node.pod("b");
        let _server = b.netns.serve(53);
        node.publish(&b, &dns).result();
        // In seconds: what the kernel remembers by itself it forgets after thirty.
        node.outside.wait_until("the new pod's answer", |_| {
            talk.output().contains("b sees 192.0.2.9")
        });
    });
}

#[test]
fn a_pod_that_crashed_does_not_keep_its_clients_of_udp() {
    each(&BackEnd::ALL, |node| {
        let dns = [port(5353, 53, "udp")];
        let a = node.published("a", &dns);
        let _a = a.netns.serve(53);
        let talk = node.outside.converse("udp", NODE[0], 5353);
        node.outside
            .wait_until("an answer", |_| talk.output().contains("a sees"));
        // No DEL: the runtime starts the next one first, and deletes later.
        let b = node.pod("b");
        let _b = b.netns.serve(53);
        beyond_peer("the old mapping wins", || {
            node.publish(&b, &dns).result();
            node.outside.wait_until("the new pod's answer", |_| {
                talk.output().contains("b sees 192.0.2.9")
            });
            node.unpublish(&a, &dns);
            let so_far = talk.output().len();
            node.outside
                .wait_until("more answers", |_| talk.output().len() > so_far + 100);
            assert!(
                talk.output()[so_far..]
                    .lines()
                    .skip(1)
                    .all(|line| line.starts_with("b sees"))
            );
        });
    });
}

#[test]
fn del_forgets_connections_of_udp() {
    beyond_peer("plugins#1190: only ADD does", || {
        each(&BackEnd::ALL, |node| {
            let dns = [port(5353, 53, "udp")];
            let a = node.published("a", &dns);
            let _a = a.netns.serve(53);
            assert_eq!(node.outside.ask("udp", NODE[0], 5353), "a sees 192.0.2.9");
            // Not of the pod: the node itself sent to the same port elsewhere.
            node.host().ask("udp", OUTSIDE[0], 5353);
            let known = |to: &str| {
                let listed = node
                    .host()
                    .sh("conntrack -L -p udp --orig-port-dst 5353 2>/dev/null");
                listed.lines().any(|line| line.contains(to))
            };
            assert!(known(" src=10.1.0.2 ") && known(" src=192.0.2.1 dst=192.0.2.9 "));
            node.unpublish(&a, &dns);
            assert!(!known(" src=10.1.0.2 "), "{:?}", node.back_end);
            assert!(
                known(" src=192.0.2.1 dst=192.0.2.9 "),
                "{:?}",
                node.back_end
            );
        });
    });
}

#[test]
fn of_many_that_want_one_port_at_once_one_has_it() {
    let node = Node::new(BackEnd::Nftables);
    let before = node.rules_after_a_first_pod();
    let pods: Vec<Pod> = (0..10).map(|n| node.pod(&format!("p{n}"))).collect();
    let _servers: Vec<_> = pods.iter().map(|pod| pod.netns.serve(80)).collect();
    std::thread::scope(|scope| {
        for pod in &pods {
            scope.spawn(|| node.publish(pod, &tcp()).result());
        }
    });
    let answer = |to: &str| node.outside.ask("tcp", to, HTTP);
    let (v4, v6) = (answer(NODE[0]), answer(NODE[1]));
    let name = |answer: &str| answer.split(' ').next().unwrap_or_default().to_owned();
    assert!(
        v4.contains("sees 192.0.2.9") && v6.contains("sees 2001:db8::9"),
        "{v4}, {v6}"
    );
    assert_eq!(name(&v4), name(&v6), "one has it for both families");
    for pod in pods.iter().filter(|pod| pod.netns.name() != name(&v4)) {
        node.unpublish(pod, &tcp());
    }
    assert_eq!(answer(NODE[0]), v4);
    for pod in &pods {
        node.unpublish(pod, &tcp());
    }
    node.assert_rules(&before);
}
