//! Many owners, in any order and at once.

use std::collections::HashMap;
use std::thread;

use netns::NetNs;
use packet_filter::Nftables;
use packet_filter::{Backend, Protocol};

use crate::hostport::{mapping, ports};
use crate::node::{Node, attachment, objects, ruleset};

/// A generator of numbers that are always the same (xorshift).
struct Numbers(u32);

impl Numbers {
    fn next(&mut self, below: u32) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 17;
        self.0 ^= self.0 << 5;
        self.0 % below
    }
}

#[test]
fn two_hundred_owners_come_and_go_and_leave_what_was_there() {
    Node::bare();
    let nat = Nftables::open().unwrap();
    nat.publish(&ports(250, &[mapping(Protocol::Tcp, 1, 1)]))
        .unwrap();
    let before = ruleset();

    let mut numbers = Numbers(1);
    let mut there: HashMap<u16, u16> = HashMap::new(); // owner to port
    for _ in 0..600 {
        let owner = numbers.next(200) as u16;
        let name = format!("x{owner}");
        match there.remove(&owner) {
            Some(_) => nat.unpublish(&attachment("mynet", &name)).unwrap(),
            None => {
                let mut wanted = ports(2, &[mapping(Protocol::Tcp, 10_000 + owner, 80)]);
                wanted.owner = attachment("mynet", &name);
                let pod = format!("10.23.0.{owner}/24");
                wanted.pod_v4 = Some(pod.parse().unwrap());
                wanted.pod_v6 = None;
                assert!(nat.publish(&wanted).unwrap().is_empty());
                there.insert(owner, 10_000 + owner);
            }
        }
    }
    assert!(!there.is_empty());
    let listed = objects("map");
    let ports = listed
        .iter()
        .find(|it| it["name"] == "ports" && it["family"] == "ip");
    let count = ports.unwrap()["elem"].as_array().unwrap().len();
    assert_eq!(count, there.len() + 1);
    for owner in there.keys() {
        nat.unpublish(&attachment("mynet", &format!("x{owner}")))
            .unwrap();
    }
    assert_eq!(ruleset(), before);
}

#[test]
fn fifty_at_once_all_succeed_and_all_go() {
    Node::bare();
    let here = NetNs::current().unwrap();
    let nat = Nftables::open().unwrap();
    nat.publish(&ports(250, &[mapping(Protocol::Tcp, 1, 1)]))
        .unwrap();
    let before = ruleset();
    let all = |act: &(dyn Fn(u8) + Sync)| {
        thread::scope(|scope| {
            for number in 2..52 {
                let here = &here;
                scope.spawn(move || here.enter(|| act(number)).unwrap());
            }
        });
    };
    let wanted = |number| {
        ports(
            number,
            &[mapping(Protocol::Udp, 1000 + u16::from(number), 53)],
        )
    };
    all(&|number| {
        let taken = Nftables::open().unwrap().publish(&wanted(number)).unwrap();
        assert!(taken.is_empty());
    });
    for number in 2..52 {
        nat.check_published(&wanted(number)).unwrap();
    }
    all(&|number| {
        let nat = Nftables::open().unwrap();
        nat.unpublish(&wanted(number).owner).unwrap();
    });
    assert_eq!(ruleset(), before);
}

#[test]
fn all_want_the_same_port_and_one_has_it() {
    Node::bare();
    let here = NetNs::current().unwrap();
    thread::scope(|scope| {
        for number in 2..34 {
            let here = &here;
            scope.spawn(move || {
                let wanted = ports(number, &[mapping(Protocol::Tcp, 80, 80)]);
                let add = || Nftables::open().unwrap().publish(&wanted).unwrap();
                here.enter(add).unwrap();
            });
        }
    });
    assert_eq!(
        ruleset().matches("tcp . 80 comment").count(),
        2,
        "one a family"
    );
}
