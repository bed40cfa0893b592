//! The resolver: a packet of a client of one network, of two, of the node or of a stranger.

#![cfg_attr(fuzzing, no_main)]

use std::net::IpAddr;

use podwired::resolver::answer::{Answerer, HEADER, Kind, Transport, Verdict};
use podwired::resolver::index::Index;
use serde_json::json;

/// Two networks; a container is in both.
fn index() -> Index {
    let mut index = Index::default();
    let web = json!({
        "name": "Web", "domain": "dns.podman", "listen": ["10.1.0.1"], "subnets": ["10.1.0.0/24"],
        "records": [
            {"name": "*.apps", "addresses": ["10.1.0.9", "fd01::9"]},
            {"name": "www", "cname": "db"}, {"name": "loop", "cname": "loop"},
            {"name": "_http._tcp", "srv": [{"port": 80, "target": "db"}]},
            {"name": "note", "txt": ["text"]},
        ],
    });
    let back = json!({
        "name": "back", "listen": ["10.2.0.1"], "subnets": ["10.2.0.0/24"], "internal": true,
    });
    for (file, network, names, address) in [
        ("Web/a:eth0", &web, ["db", "shared"], "10.1.0.2"),
        ("Web/b:eth0", &web, ["other", "shared"], "10.1.0.3"),
        ("back/b:eth1", &back, ["other", "b"], "10.2.0.3"),
    ] {
        let record = serde_json::from_value(json!({
            "network": network, "container": &file[file.len() - 6..file.len() - 5], "ifname": "eth0",
            "names": names, "addresses": [address, "fd01::2"],
        }));
        let entry = file.parse().expect("the name of a record");
        index.put(&entry, record.expect("a record"));
    }
    index
}

const SOURCES: [&str; 5] = ["10.1.0.2", "10.1.0.3", "10.2.0.77", "10.1.0.1", "192.0.2.1"];

thread_local! {
    static INDEX: Index = index();
}

fn packet(input: &[u8]) {
    let [choice, packet @ ..] = input else { return };
    let source = SOURCES[usize::from(choice & 7) % SOURCES.len()];
    let transport = match choice & 8 {
        0 => Transport::Udp,
        _ => Transport::Tcp,
    };
    let local = if choice & 16 == 0 {
        "10.1.0.1"
    } else {
        "10.2.0.1"
    };
    let [local, from]: [IpAddr; 2] = [local, source].map(|it| it.parse().expect("an address"));
    let mut out = Vec::new();
    let verdict = INDEX.with(|index| {
        Answerer::default().answer(index, (local, from), packet, transport, &mut out)
    });
    let is_served = !["192.0.2.1", "10.1.0.1"].contains(&source);
    match verdict {
        Verdict::Silence => assert!(packet.len() < HEADER || packet[2] & 0x80 != 0),
        Verdict::Forward(_) => assert!(is_served && packet.len() > HEADER),
        Verdict::Reply(kind) => {
            assert!(out.len() >= HEADER && out[..2] == packet[..2] && out[2] & 0x80 != 0);
            let limit = if transport == Transport::Udp {
                1232
            } else {
                65535
            };
            assert!(out.len() <= limit, "{} bytes", out.len());
            let has_options = packet.get(10..12) != Some(&[0, 0]);
            assert!(has_options || transport == Transport::Tcp || out.len() <= 512);
            let answers = u16::from_be_bytes([out[6], out[7]]);
            assert!(
                source != "192.0.2.1" || answers == 0,
                "an answer for a stranger"
            );
            assert!(answers == 0 || kind == Kind::Known);
        }
    }
}

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|input: &[u8]| packet(input));

#[cfg(not(fuzzing))]
fn main() -> std::process::ExitCode {
    fuzz::replay(packet)
}
