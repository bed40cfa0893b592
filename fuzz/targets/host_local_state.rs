//! The files in host-local's state directories, which any program may have written: lock,
//! reservations, last addresses, and the index.
//!
//! An input is a list of files, each a line `NAME LENGTH` and as many bytes.

#![cfg_attr(fuzzing, no_main)]

use std::fs;
use std::net::IpAddr;
use std::path::Path;

use cni::Attachment;
use cni::env::{ContainerId, IfName};
use host_local::boot::Boot;
use host_local::conf::RangeKeys;
use host_local::index::page;
use host_local::network::{Holder, Network, Place};
use host_local::owner::Owner;
use host_local::range::RangeSet;
use host_local::{allocator, resolv_conf};
use tempfile::TempDir;

thread_local! {
    /// TMPDIR should be in memory.
    static DIR: TempDir = TempDir::new().expect("make a directory");
}

fn state(input: &[u8]) {
    DIR.with(|dir| {
        let data_dir = dir.path().join("networks");
        let _ = fs::remove_dir_all(&data_dir);
        let (network, index) = (data_dir.join("net"), data_dir.join(".podwire/net"));
        for dir in [&network, &index] {
            fs::create_dir_all(dir).expect("make a state directory");
        }
        for (name, content) in files(input) {
            // A page of the index has the name `.podwire/NUMBER`, and gets a right checksum.
            match name
                .strip_prefix(".podwire/")
                .map(|name| (name, name.parse()))
            {
                Some((_, Ok(number))) => put_page(&index.join("index"), number, content),
                Some((name, Err(_))) => drop(fs::write(index.join(name), content)),
                None => drop(fs::write(network.join(name), content)),
            }
        }
        // Half of the time the index is believed if its header has the time 0.
        if input.len().is_multiple_of(2) {
            let times = fs::FileTimes::new().set_modified(std::time::SystemTime::UNIX_EPOCH);
            let dir = fs::File::open(&network).expect("open a state directory");
            dir.set_times(times).expect("set a time");
        }
        go_through(&Place::at_boot(&data_dir, "net", Boot::new("aaaa")));
    });
}

fn files(input: &[u8]) -> Vec<(String, &[u8])> {
    let mut rest = input;
    let mut files = Vec::new();
    while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
        let (line, tail) = (String::from_utf8_lossy(&rest[..end]), &rest[end + 1..]);
        let Some((name, length)) = line.split_once(' ') else {
            break;
        };
        let length = length.parse().unwrap_or(0).min(tail.len());
        let (content, tail) = tail.split_at(length);
        if !name.contains("..") && !name.contains('\0') && name != "lock" {
            files.push((name.to_owned(), content));
        }
        rest = tail;
    }
    files
}

fn put_page(index: &Path, number: u8, content: &[u8]) {
    let mut options = fs::OpenOptions::new();
    let opened = options.write(true).create(true).truncate(false).open(index);
    if let Ok(file) = opened {
        let _ = page::write(&file, number.into(), &String::from_utf8_lossy(content));
    }
}

/// ADD, CHECK, DEL, GC. Whatever the files contain, an address that was given is held, and
/// is not given to another owner.
fn go_through(place: &Place) {
    let set = RangeSet::new(&[RangeKeys {
        subnet: "10.0.0.0/29".parse().ok(),
        ..RangeKeys::default()
    }])
    .expect("a range");
    let (one, other) = (attachment("a"), attachment("b"));
    let first = give(place, &one, &set);
    let second = give(place, &other, &set);
    assert!(first.is_none() || first != second, "{first:?} given twice");
    // A directory can hold nothing that makes an address unfindable.
    if let (Some(ip), Ok(Some(mut network))) = (first, Network::find(place)) {
        let held = network.held_by("a").unwrap_or_default();
        let held = held.iter().find(|it| it.record.ip == ip);
        assert!(!network.is_free(ip).unwrap_or(false), "{ip} free");
        network
            .release(held.expect("a lost address"))
            .expect("a release");
        let held = network.held_by("a").unwrap_or_default();
        assert!(held.iter().all(|it| it.record.ip != ip), "{ip} still held");
    }
    if let Ok(Some(mut network)) = Network::find(place) {
        let keep = Owner::of(&other);
        if network.retain(|owner| *owner == keep).is_ok() {
            let held = network.held_by("b").unwrap_or_default();
            assert!(second.is_none_or(|ip| held.iter().any(|it| it.record.ip == ip)));
        }
    }
    let resolved = place.dir().join("10.0.0.2");
    let _ = resolv_conf::read(&resolved);
}

fn give(place: &Place, attachment: &Attachment, set: &RangeSet) -> Option<IpAddr> {
    let mut network = Network::create(place).ok()?;
    let mut holder = Holder::new(&mut network, attachment).ok()?;
    let lease = allocator::allocate(set, 0, None, &mut holder).ok()?;
    Some(lease.address.ip())
}

fn attachment(id: &str) -> Attachment {
    Attachment {
        network: "net".into(),
        container_id: ContainerId::parse(id).expect("an id"),
        ifname: IfName::parse("eth0").expect("a name"),
    }
}

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|input: &[u8]| state(input));

#[cfg(not(fuzzing))]
fn main() -> std::process::ExitCode {
    fuzz::replay(state)
}
