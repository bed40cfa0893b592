//! A lease and a simulated server, on a simulated clock.

use super::*;
use crate::message::tests::reply;

const MAC: Mac = crate::message::tests::MAC;
const SERVER: [u8; 4] = [10, 0, 0, 1];
const OTHER: [u8; 4] = [10, 0, 0, 2];
const POD: [u8; 4] = [10, 0, 0, 5];
const START: Millis = 1_000_000;

fn lease() -> Lease {
    let identity = Identity {
        options: vec![(61, b"\0a/lan/eth0".to_vec()), (12, b"web".to_vec())],
        requested: vec![1, 121, 3],
        ..Identity::default()
    };
    let timeouts = Timeouts {
        grant: 10_000,
        resend: 62_000,
        acquire: 208_000,
    };
    let mut lease = Lease::new(identity, timeouts, 7, START);
    lease.set_mac(MAC);
    lease
}

/// An answer to the current message of `lease`, with a lease of 100 seconds: T1 50, T2 85.
fn answer(lease: &Lease, kind: u8, address: [u8; 4], server: [u8; 4]) -> Reply {
    let options = [
        (54, &server[..]),
        (1, &[255, 255, 255, 0]),
        (51, &[0, 0, 0, 100]),
        (3, &server),
    ];
    let mut message = reply(kind, address, &options);
    message[4..8].copy_from_slice(&lease.xid().to_be_bytes());
    Reply::read(&message).unwrap()
}

fn offer(lease: &Lease) -> Reply {
    answer(lease, 2, POD, SERVER)
}

fn ack(lease: &Lease) -> Reply {
    answer(lease, 5, POD, SERVER)
}

fn nak(lease: &Lease) -> Reply {
    answer(lease, 6, [0; 4], SERVER)
}

/// The server of a unicast.
const TO_SERVER: Option<Ipv4Addr> = Some(Ipv4Addr::from_octets(SERVER));

/// The only message of `steps`, and its destination.
#[track_caller]
fn sent(steps: &[Step]) -> (&Request, Option<Ipv4Addr>) {
    match steps {
        [Step::Send { to, message }] => (message, *to),
        other => panic!("expected one message: {other:?}"),
    }
}

fn option_of(message: &Request, kind: u8) -> Option<&[u8]> {
    let found = message.options.iter().find(|(other, _)| *other == kind);
    found.map(|(_, data)| &data[..])
}

/// A lease that was requested at START + 1 s and granted a second later.
fn bound() -> Lease {
    let mut lease = lease();
    lease.on_time(START);
    lease.on_reply(&offer(&lease), START + 1000);
    let steps = lease.on_reply(&ack(&lease), START + 2000);
    assert!(matches!(&steps[..], [Step::Hold(_)]), "{steps:?}");
    lease
}

/// When the message that was granted had been sent.
const GRANTED: Millis = START + 1000;

#[test]
fn an_address_is_discovered_requested_and_held() {
    let mut lease = lease();
    let steps = lease.on_time(START);
    let (discover, to) = sent(&steps);
    assert_eq!(discover.kind, DhcpMessageType::Discover);
    assert_eq!((to, discover.address), (None, Ipv4Addr::UNSPECIFIED));
    assert_eq!(option_of(discover, 61), Some(&b"\0a/lan/eth0"[..]));
    assert_eq!(option_of(discover, 12), Some(&b"web"[..]));
    assert_eq!(option_of(discover, 55), Some(&[1, 121, 3][..]));
    assert_eq!(option_of(discover, 50), None);

    let xid = lease.xid();
    let steps = lease.on_reply(&offer(&lease), START + 1000);
    let (request, to) = sent(&steps);
    assert_eq!(request.kind, DhcpMessageType::Request);
    assert_eq!(to, None, "the servers that lost must hear it");
    assert_eq!(request.address, Ipv4Addr::UNSPECIFIED);
    assert_eq!(option_of(request, 50), Some(&POD[..]));
    assert_eq!(option_of(request, 54), Some(&SERVER[..]));
    assert_eq!(lease.xid(), xid);

    lease.on_reply(&ack(&lease), START + 2000);
    assert!(!lease.is_asking());
    let held = lease.held().unwrap();
    assert_eq!(
        held.since, GRANTED,
        "from when it was asked for, not granted"
    );
    assert_eq!(lease.due(), GRANTED + 50_000);
}

#[test]
fn it_asks_again_and_gives_up_in_time() {
    let mut lease = lease();
    let (mut now, mut messages) = (START, 0);
    loop {
        let steps = lease.on_time(now);
        if steps == [Step::GiveUp] {
            break;
        }
        sent(&steps);
        messages += 1;
        assert!(lease.due() > now && lease.due() <= now + 63_000);
        now = lease.due();
    }
    assert_eq!(now, START + 208_000);
    assert!((7..14).contains(&messages), "{messages}");
    // For a pod without an address it goes on.
    sent(&lease.on_time(now));
}

#[test]
fn answers_to_others_are_not_ours() {
    let mut lease = lease();
    lease.on_time(START);
    let right = offer(&lease);
    let mut wrong = right.clone();
    wrong.xid ^= 1;
    assert_eq!(lease.on_reply(&wrong, START), []);
    let mut wrong = right.clone();
    wrong.mac = Mac([2, 0, 0, 0, 0, 9]);
    assert_eq!(lease.on_reply(&wrong, START), []);
    assert_eq!(lease.on_reply(&ack(&lease), START), [], "not asked for yet");
    sent(&lease.on_reply(&right, START));
    assert_eq!(lease.on_reply(&right, START), [], "one offer is enough");
}

#[test]
fn a_grant_of_something_else_is_ignored() {
    let mut lease = lease();
    lease.on_time(START);
    lease.on_reply(&offer(&lease), START);
    for other in [
        answer(&lease, 5, [10, 0, 0, 6], SERVER),
        answer(&lease, 5, POD, OTHER),
        answer(&lease, 5, [127, 0, 0, 1], SERVER),
    ] {
        let steps = lease.on_reply(&other, START);
        assert!(matches!(&steps[..], [Step::Ignore(_)]), "{steps:?}");
    }
    assert!(lease.held().is_none());
    lease.on_reply(&ack(&lease), START);
    assert!(lease.held().is_some());
}

#[test]
fn an_offer_that_is_not_kept_is_forgotten() {
    let mut lease = lease();
    lease.on_time(START);
    lease.on_reply(&offer(&lease), START);
    let mut now = START;
    while now < START + 10_000 {
        now = lease.due();
        let steps = lease.on_time(now);
        let kind = sent(&steps).0.kind;
        let expected = if now < START + 10_000 {
            DhcpMessageType::Request
        } else {
            DhcpMessageType::Discover
        };
        assert_eq!(kind, expected);
    }
}

#[test]
fn a_refused_request_starts_over_but_not_at_once() {
    let mut lease = lease();
    lease.on_time(START);
    lease.on_reply(&offer(&lease), START);
    let foreign = answer(&lease, 6, [0; 4], OTHER);
    assert_eq!(lease.on_reply(&foreign, START), [], "from another server");
    let steps = lease.on_reply(&nak(&lease), START);
    assert!(matches!(&steps[..], [Step::Ignore(_)]));
    assert!(lease.due() >= START + 1000);
    let steps = lease.on_time(lease.due());
    assert_eq!(sent(&steps).0.kind, DhcpMessageType::Discover);
}

#[test]
fn it_renews_with_its_server_then_with_any_then_loses() {
    let mut lease = bound();
    let steps = lease.on_time(GRANTED + 50_000);
    let (request, to) = sent(&steps);
    assert_eq!((to, request.address), (TO_SERVER, POD.into()));
    assert_eq!(option_of(request, 50), None, "RFC 2131, table 5");
    assert_eq!(option_of(request, 54), None);

    let mut renewals = 1;
    while lease.due() < GRANTED + 85_000 {
        assert_eq!(sent(&lease.on_time(lease.due())).1, TO_SERVER);
        renewals += 1;
    }
    assert!((3..8).contains(&renewals), "{renewals}");
    assert_eq!(lease.due(), GRANTED + 85_000);
    let steps = lease.on_time(lease.due());
    let (request, to) = sent(&steps);
    assert_eq!((to, request.address), (None, POD.into()));

    while lease.due() < GRANTED + 100_000 {
        sent(&lease.on_time(lease.due()));
    }
    assert_eq!(lease.due(), GRANTED + 100_000);
    let steps = lease.on_time(lease.due());
    assert_eq!(steps[0], Step::Lose("the lease has expired"));
    let (discover, _) = sent(&steps[1..]);
    assert_eq!(discover.kind, DhcpMessageType::Discover);
    assert_eq!(
        option_of(discover, 50),
        Some(&POD[..]),
        "the same again, if possible"
    );
    assert!(lease.held().is_none());
}

#[test]
fn another_server_may_renew_and_move_it() {
    let mut lease = bound();
    lease.on_time(GRANTED + 85_000);
    let moved = answer(&lease, 5, [10, 0, 0, 77], OTHER);
    let steps = lease.on_reply(&moved, GRANTED + 86_000);
    let [Step::Hold(terms)] = &steps[..] else {
        panic!("{steps:?}");
    };
    assert_eq!(terms.address.to_string(), "10.0.0.77/24");
    assert_eq!(lease.due(), GRANTED + 85_000 + 50_000);
    let steps = lease.on_time(lease.due());
    assert_eq!(sent(&steps).1, Some(OTHER.into()));
}

#[test]
fn a_refused_renewal_loses_the_address_at_once() {
    let mut lease = bound();
    lease.on_time(GRANTED + 50_000);
    let steps = lease.on_reply(&nak(&lease), GRANTED + 51_000);
    assert_eq!(steps, [Step::Lose("the server refuses the address")]);
    let steps = lease.on_time(lease.due());
    assert_eq!(sent(&steps).0.kind, DhcpMessageType::Discover);
}

#[test]
fn after_a_restart_the_lease_is_renewed_at_once() {
    let held = bound().held().cloned();
    let now = GRANTED + 30_000;
    let mut restarted = lease().restored(held, now, now + 5);
    restarted.set_mac(MAC);
    assert_eq!(restarted.due(), now + 5);
    let steps = restarted.on_time(now + 5);
    let (request, to) = sent(&steps);
    assert_eq!(request.kind, DhcpMessageType::Request);
    assert_eq!((to, request.address), (TO_SERVER, POD.into()));
    assert!(restarted.held().is_some(), "what was granted lasts");
    let steps = restarted.on_reply(&ack(&restarted), now + 10);
    assert!(matches!(&steps[..], [Step::Hold(_)]));
    assert_eq!(restarted.due(), now + 5 + 50_000);
}

#[test]
fn after_a_restart_late_in_its_life_any_server_is_asked() {
    let now = GRANTED + 90_000;
    let mut restarted = lease().restored(bound().held().cloned(), now, now);
    let steps = restarted.on_time(now);
    assert_eq!(sent(&steps).1, None);
}

#[test]
fn a_pod_with_a_new_interface_requests_its_address() {
    let mut lease = bound();
    let now = GRANTED + 30_000;
    lease.restart(lease.identity().clone(), now);
    let steps = lease.on_time(now);
    let (request, to) = sent(&steps);
    // INIT-REBOOT of RFC 2131, table 4.
    assert_eq!(request.kind, DhcpMessageType::Request);
    assert_eq!((to, request.address), (None, Ipv4Addr::UNSPECIFIED));
    assert_eq!(option_of(request, 50), Some(&POD[..]));
    assert_eq!(option_of(request, 54), None);
    let steps = lease.on_reply(&ack(&lease), now + 10);
    assert!(matches!(&steps[..], [Step::Hold(_)]));
}

#[test]
fn a_server_that_is_silent_after_a_restart_does_not_end_the_lease() {
    let mut lease = bound();
    let now = GRANTED + 30_000;
    lease.restart(lease.identity().clone(), now);
    while lease.is_asking() {
        assert!(lease.on_time(lease.due()).len() <= 1);
    }
    assert_eq!(lease.due(), GRANTED + 50_000);
    assert!(lease.held().is_some());
}

#[test]
fn an_expired_address_is_requested_after_a_restart() {
    let now = GRANTED + 500_000;
    let mut restarted = lease().restored(bound().held().cloned(), now, now);
    assert!(restarted.held().is_none());
    let steps = restarted.on_time(now);
    assert_eq!(option_of(sent(&steps).0, 50), Some(&POD[..]));
    let refusal = nak(&restarted);
    let steps = restarted.on_reply(&refusal, now);
    assert!(matches!(&steps[..], [Step::Ignore(_)]));
    let steps = restarted.on_time(restarted.due());
    assert_eq!(sent(&steps).0.kind, DhcpMessageType::Discover);
}

#[test]
fn a_release_goes_to_the_server_from_the_pods_address() {
    let mut lease = bound();
    let step = lease.release().unwrap();
    let steps = [step];
    let (release, to) = sent(&steps);
    assert_eq!(release.kind, DhcpMessageType::Release);
    assert_eq!((to, release.address), (TO_SERVER, POD.into()));
    assert_eq!(option_of(release, 54), Some(&SERVER[..]));
    assert_eq!(option_of(release, 61), Some(&b"\0a/lan/eth0"[..]));
    for none in [12, 50, 55, 57] {
        assert_eq!(option_of(release, none), None, "RFC 2131, table 5: {none}");
    }
    assert_eq!(lease.release(), None, "once");
}

#[test]
fn an_infinite_lease_is_never_renewed() {
    let mut lease = lease();
    lease.on_time(START);
    lease.on_reply(&offer(&lease), START);
    let options = [(54, &SERVER[..]), (1, &[255; 4]), (51, &[255; 4])];
    let mut message = reply(5, POD, &options);
    message[4..8].copy_from_slice(&lease.xid().to_be_bytes());
    lease.on_reply(&Reply::read(&message).unwrap(), START);
    assert_eq!(lease.due(), Millis::MAX);
}

#[test]
fn a_lease_of_a_pod_that_is_gone_is_suspended_until_it_ends() {
    let mut lease = bound();
    lease.suspend();
    assert_eq!(lease.due(), GRANTED + 100_000);
    assert!(lease.held().is_some());
    assert_eq!(lease.on_time(lease.due()), []);
    assert!(lease.is_suspended() && lease.held().is_none());
}
