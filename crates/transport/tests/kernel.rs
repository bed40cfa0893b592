//! The transport against the kernel, in namespaces of the test's own thread.

#![allow(missing_docs)]

use nix::errno::Errno;
use nix::libc;
use sandbox::here::enter;
use transport::{Attributes, Netfilter, Request, Route, Socket, find, text};

/// Bytes of `struct ifinfomsg`.
const IFINFO: usize = 16;

/// A request about the link with `index`, or the one that `attributes` name.
fn link(kind: u16, flags: i32, index: i32, attributes: &Attributes<Route>) -> Request<Route> {
    let mut body = vec![0; IFINFO];
    body[4..8].copy_from_slice(&index.to_ne_bytes());
    body.extend(attributes.as_bytes());
    Request::new(kind, flags as u16, body)
}

fn add_bridge(name: &str) -> Request<Route> {
    let info = Attributes::new().text(libc::IFLA_INFO_KIND, "bridge");
    let attributes = Attributes::new()
        .text(libc::IFLA_IFNAME, name)
        .nest(libc::IFLA_LINKINFO, &info);
    let flags = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
    link(libc::RTM_NEWLINK, flags, 0, &attributes)
}

fn name(message: transport::Message<'_>) -> Option<String> {
    let (_, rest) = message.parts::<IFINFO>(libc::RTM_NEWLINK)?;
    find(rest, libc::IFLA_IFNAME).and_then(text).map(Into::into)
}

#[test]
fn requests_are_answered_and_refused() {
    enter();
    let socket = Socket::<Route>::open().unwrap();
    let get = |index| socket.get(&link(libc::RTM_GETLINK, 0, index, &Attributes::new()), name);
    assert_eq!(get(1), Ok(Some("lo".into())));
    assert_eq!(get(99).unwrap_err().errno, Errno::ENODEV);
    socket.request(&add_bridge("br0"), |_| ()).unwrap();
    let taken = socket.request(&add_bridge("br0"), |_| ()).unwrap_err();
    assert_eq!(taken.errno, Errno::EEXIST);
    let all = link(libc::RTM_GETLINK, 0, 0, &Attributes::new());
    let dump = socket.dump(&all, name).unwrap();
    assert_eq!(dump.entries, ["lo", "br0"]);
    assert!(!dump.interrupted);
}

#[test]
fn the_kernel_explains_a_refusal() {
    enter();
    let socket = Socket::<Route>::open().unwrap();
    // An MTU above the device's maximum.
    let mtu = Attributes::new().u32(libc::IFLA_MTU, 70_000);
    let bridge = [add_bridge("br0"), link(libc::RTM_NEWLINK, 0, 2, &mtu)];
    let refused = socket.batch(&bridge, 1, |_, _| false).unwrap();
    let refused: Vec<_> = refused.iter().map(|(at, it)| (*at, it.errno)).collect();
    assert_eq!(refused, [(1, Errno::EINVAL)]);
    let alone = socket.request(&bridge[1], |_| ()).unwrap_err();
    assert_eq!(
        alone.text.as_deref(),
        Some("mtu greater than device maximum")
    );
}

#[test]
fn a_batch_is_carried_out_in_order_and_only_errors_come_back() {
    enter();
    let socket = Socket::<Route>::open().unwrap();
    let names = ["a", "b", "a", "c", "b", "d"];
    let requests = names.map(add_bridge);
    let refused = socket
        .batch(&requests, names.len() - 1, |_, _| false)
        .unwrap();
    let refused: Vec<_> = refused.iter().map(|(at, it)| (*at, it.errno)).collect();
    assert_eq!(refused, [(2, Errno::EEXIST), (4, Errno::EEXIST)]);
    // A datagram larger than the send buffer.
    let alias = Attributes::new().text(libc::IFLA_IFALIAS, &"x".repeat(250));
    let many: Vec<_> = (0..2000)
        .map(|_| link(libc::RTM_NEWLINK, 0, 1, &alias))
        .collect();
    assert_eq!(
        socket.batch(&many, many.len() - 1, |_, _| false),
        Ok(Vec::new())
    );
}

#[test]
fn events_come_to_members_and_pass_the_filter() {
    enter();
    let socket = Socket::<Route>::open().unwrap();
    let heard = || {
        let mut kinds = Vec::new();
        while socket.try_receive(|it| kinds.push(it.kind)).unwrap() {}
        kinds
    };
    let other = Socket::<Route>::open().unwrap();
    const RTNLGRP_LINK: u32 = 1;
    socket.set_membership(RTNLGRP_LINK, true).unwrap();
    other.request(&add_bridge("a"), |_| ()).unwrap();
    assert!(heard().contains(&libc::RTM_NEWLINK));
    let mut nothing = [libc::sock_filter {
        code: (libc::BPF_RET | libc::BPF_K) as u16,
        jt: 0,
        jf: 0,
        k: 0,
    }];
    socket.set_filter(&mut nothing).unwrap();
    other.request(&add_bridge("b"), |_| ()).unwrap();
    assert!(heard().is_empty());
    socket.set_filter(&mut []).unwrap();
    other.request(&add_bridge("c"), |_| ()).unwrap();
    assert!(heard().contains(&libc::RTM_NEWLINK));
    socket.set_membership(RTNLGRP_LINK, false).unwrap();
    other.request(&add_bridge("d"), |_| ()).unwrap();
    assert!(heard().is_empty());
}

#[test]
fn a_socket_belongs_to_the_namespace_in_which_it_was_opened() {
    enter();
    let first = netns::NetNs::current().unwrap();
    enter();
    let inside = Socket::<Route>::open_in(&first).unwrap();
    inside.request(&add_bridge("br0"), |_| ()).unwrap();
    let all = link(libc::RTM_GETLINK, 0, 0, &Attributes::new());
    assert_eq!(inside.dump(&all, name).unwrap().entries.len(), 2);
    let here = Socket::<Route>::open().unwrap();
    assert_eq!(here.dump(&all, name).unwrap().entries, ["lo"]);
}

#[test]
fn nfnetlink_answers_too() {
    enter();
    const NFTA_GEN_ID: u16 = 1;
    let socket = Socket::<Netfilter>::open().unwrap();
    let kind = (libc::NFNL_SUBSYS_NFTABLES as u16) << 8 | libc::NFT_MSG_GETGEN as u16;
    let request = Request::netfilter(kind, 0, [0, 0], &Attributes::new());
    let mut generations = Vec::new();
    let hear = |it: transport::Message<'_>| {
        use transport::Protocol;
        let number = find(it.netfilter_attributes(), NFTA_GEN_ID);
        generations.push(number.and_then(Netfilter::u32));
    };
    socket.request(&request, hear).unwrap();
    assert!(matches!(generations[..], [Some(1..)]));
}
