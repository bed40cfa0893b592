//! Packets and messages of a DHCP server, or of an attacker in its place, in the middle of a
//! lease.
//!
//! An input is a list of messages: two bytes of length, two of seconds until it arrives, then
//! as many bytes.

#![cfg_attr(fuzzing, no_main)]

use cni::Version;
use dhcp::frame;
use dhcp::lease::{Identity, Lease, Millis, Step, Timeouts};
use dhcp::message::Reply;
use dhcp::terms::Terms;

fn messages(mut input: &[u8]) -> impl Iterator<Item = (Millis, &[u8])> {
    std::iter::from_fn(move || {
        let (head, rest) = input.split_first_chunk::<4>()?;
        let length = usize::from(u16::from_le_bytes([head[0], head[1]])).min(rest.len());
        let wait = Millis::from(u16::from_le_bytes([head[2], head[3]])) * 1000;
        let (message, rest) = rest.split_at(length);
        input = rest;
        Some((wait, message))
    })
}

fn client(input: &[u8]) {
    let identity = Identity {
        options: vec![(61, b"\0pod/net/eth0".to_vec())],
        requested: vec![1, 3, 6, 15, 121],
        ..Identity::default()
    };
    let timeouts = Timeouts {
        grant: 4_000,
        resend: 62_000,
        acquire: 10_000,
    };
    let mut now = 1;
    let mut lease = Lease::new(identity, timeouts, 7, now);
    for (wait, message) in messages(input) {
        now += wait;
        let steps = lease.on_time(now);
        check_steps(&lease, &steps, now);
        // Read as a packet, then as the message in a packet.
        if let Some(message) = frame::read(message) {
            let _ = Reply::read(message);
        }
        let mut message = message.to_vec();
        // With the transaction id of the request, which the fuzzer cannot guess.
        if let Some(number) = message.get_mut(4..8) {
            number.copy_from_slice(&lease.xid().to_be_bytes());
        }
        let Ok(reply) = Reply::read(&message) else {
            continue;
        };
        let _ = reply.reason();
        if let Ok(terms) = Terms::read(&reply) {
            check_terms(&terms);
        }
        lease.set_mac(reply.mac);
        let steps = lease.on_reply(&reply, now);
        check_steps(&lease, &steps, now);
        assert!(lease.held().is_none_or(|held| held.expires() > 0));
    }
    let _ = lease.release();
}

/// Terms become a result that a plugin can print and a runtime can read.
fn check_terms(terms: &Terms) {
    let result = terms.to_result(100);
    assert!(
        terms.renew <= terms.lease && terms.rebind <= terms.lease,
        "{terms:?}"
    );
    for version in Version::ALL {
        let text = result.encode(*version).expect("a result");
        cni::json::Json::parse(text.as_bytes()).expect("a document");
    }
}

/// Messages fit a packet, and a lease does not send two of them at one moment.
fn check_steps(lease: &Lease, steps: &[Step], now: Millis) {
    assert!(steps.len() <= 2, "{steps:?}");
    for step in steps {
        if let Step::Send { message, .. } = step {
            let to = std::net::Ipv4Addr::BROADCAST;
            let packet = frame::write(message.address, to, &message.write());
            assert!(packet.len() < 1500, "{message:?}");
            assert!(lease.due() > now, "due {} at {now}", lease.due());
        }
    }
}

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|input: &[u8]| client(input));

#[cfg(not(fuzzing))]
fn main() -> std::process::ExitCode {
    fuzz::replay(client)
}
