//! Which process waits for RCU after a deletion.

use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, thread};

use packet_filter::Nftables;
use packet_filter::{Backend, Protocol};

use crate::hostport::{mapping, ports};
use crate::node::Node;
use sandbox::here::run;

/// The processes that this thread made and that have not ended, as directories of /proc.
fn children() -> Vec<PathBuf> {
    let pids = fs::read_to_string("/proc/thread-self/children").unwrap();
    let pids = pids.split_whitespace();
    let alive = |dir: &PathBuf| {
        let status = fs::read_to_string(dir.join("status")).unwrap_or_default();
        !status.contains("State:\tZ")
    };
    pids.map(|pid| Path::new("/proc").join(pid))
        .filter(alive)
        .collect()
}

/// What a process has open; nothing if it has ended.
fn held(process: &Path) -> Vec<String> {
    let held = fs::read_dir(process.join("fd")).into_iter().flatten();
    let held = held.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    held.map(|it| it.to_string_lossy().into_owned()).collect()
}

/// True of one that has ended.
fn holds_a_socket_at_most(process: &Path) -> bool {
    let dir = fs::read_link(process.join("cwd")).ok();
    dir.is_none_or(|it| it == Path::new("/"))
        && held(process).iter().all(|it| it.starts_with("socket:"))
}

/// Whether all children end within some seconds.
fn all_end() -> bool {
    (0..100).any(|_| {
        thread::sleep(Duration::from_millis(50));
        children().is_empty()
    })
}

/// Publishes a port and takes it away, `count` times.
fn come_and_go(count: usize) {
    let wanted = ports(2, &[mapping(Protocol::Tcp, 8080, 80)]);
    for _ in 0..count {
        Nftables::open().unwrap().publish(&wanted).unwrap();
        let nat = Nftables::open().unwrap().closed_later();
        nat.unpublish(&wanted.owner).unwrap();
    }
}

#[test]
fn a_child_that_holds_the_socket_and_nothing_else() {
    Node::bare();
    let mut seen = 0;
    for _ in 0..10 {
        come_and_go(1);
        for child in children() {
            // It may just have been born.
            let closed = (0..20_000).any(|_| {
                thread::sleep(Duration::from_micros(100));
                holds_a_socket_at_most(&child)
            });
            assert!(closed, "{:?}", held(&child));
            seen += held(&child).len();
        }
    }
    assert!(seen > 0, "no child was seen alive");
    assert!(all_end(), "{:?}", children());
}

#[test]
fn no_child_where_nothing_was_deleted() {
    Node::bare();
    let wanted = ports(2, &[mapping(Protocol::Tcp, 8080, 80)]);
    Nftables::open().unwrap().publish(&wanted).unwrap();
    // The first of a node empties the chains that it fills.
    assert!(all_end(), "{:?}", children());
    let nat = Nftables::open().unwrap().closed_later();
    let other = ports(3, &[]);
    nat.unpublish(&other.owner).unwrap();
    drop(nat);
    assert_eq!(children(), Vec::<PathBuf>::new());
}

#[test]
fn the_port_is_free_and_the_table_can_go() {
    Node::bare();
    come_and_go(20);
    run("nft delete table ip podwire_hostports");
    run("nft delete table ip6 podwire_hostports");
    come_and_go(1);
}
