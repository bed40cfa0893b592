//! Many pods, attached and detached at once.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use sandbox::{BackEnd, NODE, beyond_peer};

use crate::{Node, Pod, bridge, port, publishing};

/// Sixty pods in all, up to twenty at a time, half of which are forgotten before DEL.
fn churn(back_end: BackEnd) {
    let node = Node::new(back_end);
    let before = node.rules_after_a_first_pod();
    let begun = Instant::now();
    let mut alive: Vec<(u16, Pod)> = Vec::new();
    let mut taken = BTreeSet::new();
    for number in 0..60 {
        let name = format!("p{number}");
        let host = 9000 + number;
        alive.push((
            host,
            node.published(&name, &[port(host, 80, "tcp"), port(host, 80, "udp")]),
        ));
        taken.insert(host);
        if alive.len() == 20 || number == 59 {
            let (host, pod) = alive.last().expect("a pod");
            let _server = pod.netns.serve(80);
            assert!(
                node.outside
                    .ask("tcp", NODE[0], *host)
                    .contains("sees 192.0.2.9")
            );
            for (index, (host, pod)) in alive.drain(..).enumerate() {
                let conf = match index % 2 {
                    0 => node.conf(),
                    _ => publishing(
                        &node.conf(),
                        &[port(host, 80, "tcp"), port(host, 80, "udp")],
                    ),
                };
                node.portmap()
                    .netns("")
                    .del(&conf, &pod.netns, "eth0")
                    .silent();
                node.cni("bridge")
                    .del(&bridge(), &pod.netns, "eth0")
                    .silent();
            }
        }
    }
    assert_eq!(taken.len(), 60);
    node.assert_rules(&before);
    let took = begun.elapsed();
    eprintln!("{back_end:?}: 60 pods in {took:?}");
    let limit = sandbox::in_time(Duration::from_secs(120));
    assert!(took < limit, "{back_end:?}: {took:?}");
}

#[test]
fn sixty_pods_with_ports_leave_the_rules_as_they_were() {
    beyond_peer("DEL without portMappings cleans nothing", || {
        BackEnd::ALL.into_iter().for_each(churn);
    });
}
