//! The tools that the other tests trust: sandboxes are private, leak checks see
//! leaks, and answers are read strictly.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use sandbox::{Sandbox, Snapshot, conf};
use serde_json::json;

fn complains(snapshot: &Snapshot, about: &str) {
    let complaint = snapshot
        .compare(Duration::ZERO)
        .expect_err("the leak went unseen");
    assert!(
        complaint.contains(about),
        "no word about {about:?} in:\n{complaint}"
    );
}

fn panics(body: impl FnOnce()) -> bool {
    catch_unwind(AssertUnwindSafe(body)).is_err()
}

#[test]
fn a_sandbox_sees_no_link_but_its_own_loopback() {
    let sandbox = Sandbox::new();
    assert_eq!(sandbox.host().links(), ["lo"]);
    assert_eq!(sandbox.pod("a").links(), ["lo"]);
    assert_eq!(sandbox.list("/sys/class/net"), ["lo"]);
}

#[test]
fn two_sandboxes_do_not_see_each_other() {
    let (one, other) = (Sandbox::new(), Sandbox::new());
    one.host().sh("ip link add br9 type bridge");
    one.pod("a");
    one.write("/var/lib/cni/networks/x/10.0.0.1", "taken");
    assert_eq!(other.host().links(), ["lo"]);
    assert!(other.list("/run/netns").is_empty());
    assert!(other.list("/var/lib").is_empty());
}

#[test]
fn a_sandbox_cannot_write_to_the_machine() {
    let sandbox = Sandbox::new();
    for path in [
        "/etc/podwire-test",
        "/opt/podwire-test",
        "/root/podwire-test",
    ] {
        let done = sandbox.host().run(&["touch", path]);
        assert!(done.code != 0, "{path} could be written");
    }
    assert!(!std::path::Path::new("/run/netns/a").exists());
}

#[test]
fn pods_of_one_sandbox_reach_each_other_only_by_wires() {
    let sandbox = Sandbox::new();
    let (a, b) = (sandbox.pod("a"), sandbox.pod("b"));
    a.sh("ip link add eth0 type veth peer name eth0 netns b");
    for (pod, address) in [(&a, "10.0.0.1/24"), (&b, "10.0.0.2/24")] {
        pod.sh(&format!(
            "ip addr add {address} dev eth0; ip link set eth0 up"
        ));
    }
    a.wait_until("eth0 has a carrier", |pod| {
        pod.link("eth0").is_some_and(|l| l["operstate"] == "UP")
    });
    assert_eq!(a.ping("10.0.0.2", 2), [true, true]);
    assert_eq!(a.ping("10.0.0.3", 1), [false]);
}

#[test]
fn the_leak_check_is_content_when_nothing_changed() {
    let sandbox = Sandbox::new();
    sandbox.pod("a");
    sandbox.snapshot().assert_unchanged();
}

#[test]
fn the_leak_check_sees_every_kind_of_leak() {
    for (leak, seen) in [
        ("ip link add br9 type bridge", "ifname br9"),
        ("ip addr add 10.9.9.9/32 dev lo", "10.9.9.9"),
        ("ip route add blackhole 10.9.0.0/16 table 77", "blackhole"),
        ("ip rule add pref 99 table 77", "99"),
        ("ip -6 rule add pref 98 table 77", "98"),
        ("sysctl -qw net.ipv4.ip_forward=1", "ip_forward = 1"),
        ("nft add table inet leak", "leak"),
        ("iptables -t nat -N LEAK", "LEAK"),
        (
            "mkdir -p /var/lib/cni; echo x > /var/lib/cni/leak",
            "/var/lib/cni/leak",
        ),
        ("ip netns add leak", "/run/netns/leak"),
        ("sleep 60 >/dev/null 2>&1 & ", "sleep 60"),
    ] {
        let sandbox = Sandbox::new();
        let snapshot = sandbox.snapshot();
        sandbox.host().sh(leak);
        complains(&snapshot, seen);
    }
}

#[test]
fn the_leak_check_looks_into_pods() {
    let sandbox = Sandbox::new();
    let pod = sandbox.pod("a");
    let snapshot = sandbox.snapshot();
    pod.sh("ip addr add 10.9.9.9/32 dev lo");
    complains(&snapshot, "pod a: addr on lo ");
}

#[test]
fn the_leak_check_sees_what_was_taken_away() {
    let sandbox = Sandbox::new();
    sandbox.host().sh("ip link add br9 type bridge");
    let snapshot = sandbox.snapshot();
    sandbox.host().sh("ip link del br9");
    complains(&snapshot, "- host: link ifname br9");
}

#[test]
fn allowed_links_take_their_addresses_routes_and_sysctls_along() {
    let sandbox = Sandbox::new();
    let snapshot = sandbox.snapshot().allow_link("br9");
    sandbox.host().sh(
        "ip link add br9 type bridge; ip addr add 10.9.9.9/24 dev br9; ip link set br9 up
         ip route add 10.8.0.0/16 via 10.9.9.1",
    );
    snapshot.assert_unchanged();
}

#[test]
fn a_child_that_hangs_is_killed() {
    let sandbox = Sandbox::new();
    let fake = sandbox.fake("slow");
    fake.before("ADD", "sleep 60");
    let pod = sandbox.pod("a");
    let snapshot = sandbox.snapshot();
    let started = Instant::now();
    let hung = panics(|| {
        let cni = sandbox.cni("slow").limit(Duration::from_millis(300));
        cni.add(&conf::plugin("slow"), &pod, "eth0");
    });
    assert!(hung && started.elapsed() < Duration::from_secs(10));
    snapshot.assert_unchanged();
}

#[test]
fn answers_are_read_strictly() {
    let sandbox = Sandbox::new();
    let pod = sandbox.pod("a");
    let fake = sandbox.fake("odd");
    let call = || sandbox.cni("odd").add(&conf::plugin("odd"), &pod, "eth0");
    fake.set("ADD", 0, "{}{}", "");
    assert!(panics(|| drop(call().result())), "two documents");
    fake.set("ADD", 0, "", "");
    assert!(panics(|| drop(call().result())), "no document");
    fake.set("ADD", 0, "{} trailing", "");
    assert!(panics(|| drop(call().result())), "trailing text");
    fake.set("ADD", 1, "{\"code\": 7, \"msg\": \"x\"}", "");
    assert_eq!(call().error().code, 7);
    fake.set(
        "ADD",
        1,
        "{\"code\": 7, \"msg\": \"x\"}\n{\"code\": 8, \"msg\": \"y\"}",
        "",
    );
    assert!(panics(|| drop(call().error())), "two errors");
    fake.set("ADD", 2, "", "panic: runtime error");
    assert!(panics(|| drop(call().error())), "a crash");
    fake.set("ADD", 1, "{\"msg\": \"x\"}", "");
    assert!(panics(|| drop(call().error())), "no code");
}

#[test]
fn fakes_record_environment_and_input() {
    let sandbox = Sandbox::new();
    let pod = sandbox.pod("a");
    let fake = sandbox.fake("fake-ipam");
    fake.answer("ADD", &json!({"cniVersion": "1.0.0"}));
    let cni = sandbox.cni("fake-ipam").args("IgnoreUnknown=1");
    cni.add(&conf::plugin("fake-ipam"), &pod, "eth0").result();
    let calls = fake.calls();
    assert_eq!(calls.len(), 1);
    assert_eq!(calls[0].command, "ADD");
    assert_eq!(calls[0].env["CNI_IFNAME"], "eth0");
    assert_eq!(calls[0].env["CNI_ARGS"], "IgnoreUnknown=1");
    assert_eq!(calls[0].stdin, conf::plugin("fake-ipam").to_string());
}

#[test]
fn every_namespace_goes_with_its_sandbox() {
    let sandbox = Sandbox::new();
    let ns = sandbox.host().sh("readlink /proc/self/ns/mnt");
    let _running = sandbox.pod("a").start(&["sleep", "60"]);
    let inside = || -> Vec<_> {
        let entries = std::fs::read_dir("/proc").expect("read /proc").flatten();
        let is_inside = |path: &std::path::PathBuf| {
            let link = std::fs::read_link(path.join("ns/mnt"));
            link.is_ok_and(|link| link.to_string_lossy() == ns.trim())
        };
        entries
            .map(|entry| entry.path())
            .filter(is_inside)
            .collect()
    };
    let before = inside();
    assert!(!before.is_empty());
    drop(sandbox);
    // Some kernels give the number to the next namespace, which another test may have
    // made by now: only processes of that time count. A killed process exists until it has run.
    let left = || {
        let mut left = inside();
        left.retain(|it| before.contains(it));
        left
    };
    let deadline = Instant::now() + Duration::from_secs(2);
    while !left().is_empty() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(left().is_empty(), "{:?} is still in {ns}", left());
}

#[test]
fn children_die_with_a_test_program_that_is_killed() {
    const PLAY_DEAD: &str = "HARNESS_PLAY_DEAD";
    if let Some(pid_file) = std::env::var_os(PLAY_DEAD) {
        // This is the program that is killed: it starts a child, writes down its id, and waits.
        let sandbox = Sandbox::new();
        let running = sandbox.host().start(&["sleep", "60"]);
        std::fs::write(pid_file, running.id().to_string()).expect("write the id");
        std::thread::sleep(Duration::from_secs(60));
        return;
    }
    let sandbox = Sandbox::new();
    let pid_file = sandbox.dir().join("pid");
    let program = std::env::current_exe().expect("this program");
    let variable = format!("{PLAY_DEAD}={}", pid_file.display());
    let itself = "children_die_with_a_test_program_that_is_killed";
    let argv = [
        "env",
        &variable,
        &program.display().to_string(),
        "--exact",
        itself,
    ];
    let running = sandbox.host().start(&argv);
    let pid = || std::fs::read_to_string(&pid_file).unwrap_or_default();
    sandbox
        .host()
        .wait_until("the child runs", |_| !pid().is_empty());
    drop(running);
    let alive = |pid: &str| {
        std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| !line.is_empty())
    };
    sandbox
        .host()
        .wait_until("the child is dead", |_| !alive(&pid()));
}
