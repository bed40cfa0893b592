//! Tests against the real kernel. Every test first moves its own thread into private namespaces:
//! libtest runs each test on a new thread.

#![allow(clippy::unwrap_used, reason = "a test fails where it cannot go on")]

use std::{fs, os::fd::AsFd, path::Path};

use netns::{NetNs, is_gone};
use nix::mount::{MsFlags, mount};
use sandbox::here::{add_pod, enter, run};

#[test]
fn a_missing_path_is_gone() {
    enter();
    let error = NetNs::open(Path::new("/run/netns/nope")).unwrap_err();
    assert!(is_gone(&error));
    let text = r#"failed to Statfs "/run/netns/nope": no such file or directory"#;
    assert_eq!(error.to_string(), text);
}

#[test]
fn a_plain_file_is_gone_too() {
    enter();
    fs::write("/run/netns/left", "").unwrap();
    let error = NetNs::open(Path::new("/run/netns/left")).unwrap_err();
    assert!(is_gone(&error));
    assert_eq!(
        error.to_string(),
        r#"unknown FS magic on "/run/netns/left": 1021994"#
    );
}

#[test]
fn a_namespace_of_another_kind_is_refused() {
    enter();
    let error = NetNs::open(Path::new("/proc/thread-self/ns/uts")).unwrap_err();
    assert!(is_gone(&error));
    assert_eq!(
        error.to_string(),
        r#"open "/proc/thread-self/ns/uts": it is not a network namespace"#
    );
}

#[test]
fn a_namespace_is_identified_whatever_its_path() {
    enter();
    add_pod("one");
    add_pod("two");
    fs::write("/run/netns/again", "").unwrap();
    let none = None::<&str>;
    mount(
        Some("/run/netns/one"),
        "/run/netns/again",
        none,
        MsFlags::MS_BIND,
        none,
    )
    .unwrap();
    let open = |name: &str| NetNs::open(&Path::new("/run/netns").join(name)).unwrap();
    let (one, two, again) = (open("one"), open("two"), open("again"));
    assert!(one.same_as(&again).unwrap());
    assert!(one.same_as(&one.clone()).unwrap());
    assert!(!one.same_as(&two).unwrap());
    assert!(!one.same_as(&NetNs::current().unwrap()).unwrap());
    assert_eq!(again.path(), Path::new("/run/netns/again"));
}

#[test]
fn the_closure_is_inside_and_the_caller_stays_outside() {
    enter();
    let pod = NetNs::open(&add_pod("pod")).unwrap();
    run("ip -n pod link add inside0 type veth peer name inside1");
    let before = NetNs::current().unwrap();
    let links = pod.enter(|| run("ip -o link")).unwrap();
    assert!(links.contains("inside0"), "{links}");
    assert!(!run("ip -o link").contains("inside0"));
    assert!(before.same_as(&NetNs::current().unwrap()).unwrap());
}

#[test]
fn a_panic_inside_is_resumed_outside_in_the_callers_namespace() {
    enter();
    let pod = NetNs::open(&add_pod("pod")).unwrap();
    let before = NetNs::current().unwrap();
    let caught = std::panic::catch_unwind(|| {
        let _ = pod.enter(|| panic!("inside"));
    });
    let panic = caught.unwrap_err();
    assert_eq!(panic.downcast_ref::<&str>(), Some(&"inside"));
    assert!(before.same_as(&NetNs::current().unwrap()).unwrap());
}

#[test]
fn a_file_that_is_no_namespace_cannot_be_entered() {
    enter();
    let before = NetNs::current().unwrap();
    // Before Linux 3.19 a namespace was a file of procfs, so this may be one.
    let file = NetNs::open(Path::new("/proc/thread-self/status")).unwrap();
    let error = file.enter(|| unreachable!("entered")).unwrap_err();
    assert!(is_gone(error.downcast_ref().unwrap()));
    assert!(before.same_as(&NetNs::current().unwrap()).unwrap());
}

#[test]
fn it_outlives_its_path() {
    enter();
    let pod = NetNs::open(&add_pod("pod")).unwrap();
    run("ip -n pod link add inside0 type veth peer name inside1");
    run("ip netns delete pod");
    assert!(pod.enter(|| run("ip -o link")).unwrap().contains("inside0"));
    assert!(is_gone(&NetNs::open(pod.path()).unwrap_err()));
    nix::sys::stat::fstat(pod.as_fd()).unwrap();
}
