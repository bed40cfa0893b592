//! What a caller hands down or withholds: ignored and blocked signals, standard streams that
//! are closed or full, delegates that hang or never end.

use std::time::Duration;

use sandbox::{Netns, Outcome, Sandbox, beyond_peer, conf, conf_of, each_plugin};
use serde_json::{Value, json};

/// A bridge whose addresses another program gives, and whose rules iptables makes.
struct Node {
    sandbox: Sandbox,
    pod: Netns,
    conf: Value,
}

impl Node {
    fn new() -> Self {
        let sandbox = Sandbox::new();
        let pod = sandbox.pod("a");
        let address = json!({"address": "10.1.0.2/24", "gateway": "10.1.0.1"});
        sandbox
            .fake("fake-ipam")
            .answer("ADD", &json!({"cniVersion": "1.0.0", "ips": [address]}));
        let keys = json!({
            "ipam": {"type": "fake-ipam", "ranges": null},
            "ipMasq": true, "ipMasqBackend": "iptables",
        });
        let conf = conf::with(&conf::bridge(&[]), keys);
        Self { sandbox, pod, conf }
    }

    fn call(&self, under: &[&str], verb: &str, conf: &Value) -> Outcome {
        self.sandbox
            .cni("bridge")
            .under(under)
            .attachment(verb, conf, &self.pod, "eth0")
    }
}

#[test]
fn signals_that_a_caller_ignores_or_blocks_do_not_matter() {
    beyond_peer("the Go plugins' IPAM is not waited for either", || {
        let node = Node::new();
        let fake = node.sandbox.fake("fake-ipam");
        let seen = node.sandbox.dir().join("signals").display().to_string();
        fake.before(
            "ADD",
            &format!("grep -E '^Sig(Blk|Ign)' /proc/self/status > {seen}"),
        );
        for signal in ["CHLD", "PIPE", "ALRM", "TERM", "HUP", "INT", "USR1", "URG"] {
            for how in ["ignore", "block"] {
                let option = format!("--{how}-signal={signal}");
                let under = ["env", &option];
                let result = node.call(&under, "ADD", &node.conf).result();
                let checked = conf::with_prev(&node.conf, &result);
                node.call(&under, "CHECK", &checked).silent();
                node.call(&under, "DEL", &checked).silent();
                let gc = conf::with_valid(&node.conf, &[]);
                for (verb, conf) in [("STATUS", &node.conf), ("GC", &gc)] {
                    node.call(&under, verb, conf).silent();
                }
                let seen = node.sandbox.read(&seen).unwrap_or_default();
                let set = |what: &str| {
                    let line = seen.lines().find_map(|line| line.strip_prefix(what));
                    let digits = line.map(str::trim).unwrap_or_default();
                    u64::from_str_radix(digits, 16).expect("a set of signals")
                };
                assert_eq!(set("SigBlk:"), 0, "{how} {signal}");
                if ["CHLD", "ALRM", "TERM", "PIPE"].contains(&signal) {
                    let needed = 1 << (17 - 1) | 1 << (14 - 1) | 1 << (15 - 1) | 1 << (13 - 1);
                    assert_eq!(set("SigIgn:") & needed, 0, "{how} {signal}");
                }
            }
        }
    });
}

#[test]
fn podwire_and_the_daemon_work_with_them_too() {
    let sandbox = Sandbox::new();
    let pod = sandbox.pod("a");
    let list = json!({
        "cniVersion": "1.0.0", "name": conf::NETWORK,
        "plugins": [conf::bridge(&["10.1.0.0/24"])],
    });
    sandbox.write("/var/lib/net.d/10.conflist", list.to_string());
    let bin = sandbox::Suite::Ours.dir();
    for option in [
        "--ignore-signal=CHLD",
        "--block-signal=CHLD",
        "--ignore-signal=ALRM",
    ] {
        for verb in ["add", "check", "del"] {
            sandbox.host().sh(&format!(
                "CNI_PATH={bin} NETCONFPATH=/var/lib/net.d env {option} {bin}/podwire {verb} {} {}",
                conf::NETWORK,
                pod.path(),
                bin = bin.display(),
            ));
        }
    }
    for option in ["--ignore-signal=TERM", "--block-signal=TERM"] {
        let daemon = format!("exec env {option} {}/dhcp daemon", bin.display());
        let daemon = sandbox.host().start(&["sh", "-c", &daemon]);
        let socket = |host: &Netns| host.sh("ss -Hlx").contains("/run/cni/dhcp.sock");
        sandbox.host().wait_until("the daemon listens", socket);
        sandbox.host().sh(&format!("kill -TERM {}", daemon.id()));
        sandbox
            .host()
            .wait_until("the daemon has ended", |host| !socket(host));
    }
}

#[test]
fn podwire_with_a_full_standard_error_does_its_work() {
    let sandbox = Sandbox::new();
    let pod = sandbox.pod("a");
    let list = json!({
        "cniVersion": "1.0.0", "name": conf::NETWORK,
        "plugins": [conf::bridge(&["10.1.0.0/24"])],
    });
    sandbox.write("/var/lib/net.d/10.conflist", list.to_string());
    let bin = sandbox::Suite::Ours.dir().display();
    let podwire = |verb: &str, redirections: &str| {
        let netns = pod.path();
        let command = format!(
            "CNI_PATH={bin} NETCONFPATH=/var/lib/net.d {bin}/podwire {verb} {} {netns} {redirections}",
            conf::NETWORK
        );
        sandbox.host().run(&["sh", "-c", &command]).code
    };
    assert_eq!(podwire("add", "2>/dev/full"), 0);
    // The configuration that it deletes with is the one that it remembers, which it says.
    sandbox.host().sh("rm /var/lib/net.d/10.conflist");
    assert_eq!(podwire("del", "2>/dev/full"), 0);
    assert_eq!(pod.links(), ["lo"]);
    // A result that cannot be written counts as a failed ADD.
    sandbox.write("/var/lib/net.d/10.conflist", list.to_string());
    for redirections in [">&-", ">/dev/full", "1</dev/null"] {
        assert_eq!(podwire("add", redirections), 1, "{redirections}");
        assert_eq!(podwire("del", redirections), 0, "{redirections}");
    }
}

/// Runs a plugin with these redirections of a shell.
fn under(redirections: &str) -> [String; 4] {
    let script = format!("exec \"$@\" {redirections}");
    ["sh".into(), "-c".into(), script, "sh".into()]
}

#[test]
fn an_add_whose_result_cannot_be_written_is_undone() {
    beyond_peer(
        "the Go plugins treat a closed stream like one without a reader",
        || {
            each_plugin(|sandbox, pod, plugin| {
                if plugin == "dhcp" {
                    return;
                }
                // What the network's pods share is there.
                let (conf, first) = (conf_of(plugin), sandbox.pod("b"));
                sandbox.cni(plugin).add(&conf, &first, "eth0").result();
                sandbox.cni(plugin).del(&conf, &first, "eth0").silent();
                let snapshot = sandbox.snapshot().allow_host_local(conf::NETWORK);
                // A bridge loses its carrier a moment after its last port, a wire gets groups.
                let snapshot = snapshot
                    .allow("link ifname cni0 ")
                    .allow("link ifname vxbr")
                    // loopback's `lo` is every plugin's, and stays up.
                    .allow_link("lo")
                    .allow("fdb mac 33:33:");
                for redirections in [
                    ">&-",
                    ">&- 2>&-",
                    ">/dev/full",
                    ">/dev/full 2>/dev/full",
                    "1</dev/null",
                ] {
                    let under = under(redirections);
                    let under: Vec<_> = under.iter().map(String::as_str).collect();
                    let call = || sandbox.cni(plugin).under(&under);
                    let outcome = call().add(&conf, pod, "eth0");
                    let what = format!("{plugin} {redirections}: {outcome}");
                    assert_eq!((outcome.code(), outcome.stdout()), (1, ""), "{what}");
                    snapshot.assert_unchanged();
                    // What has no answer needs no stream.
                    call().del(&conf, pod, "eth0").silent();
                    call().status(&conf).silent();
                }
            });
        },
    );
}

#[test]
fn a_closed_or_full_standard_error_changes_nothing() {
    beyond_peer("the Go plugins do not have to do this", || {
        for redirections in ["2>&-", "2>/dev/full", "2</dev/null"] {
            each_plugin(|sandbox, pod, plugin| {
                if plugin == "dhcp" {
                    return;
                }
                let under = under(redirections);
                let under: Vec<_> = under.iter().map(String::as_str).collect();
                let call = || sandbox.cni(plugin).under(&under);
                let conf = conf_of(plugin);
                call().add(&conf, pod, "eth0").result();
                // Each of these has something to say in the log.
                call().gc(&conf).silent();
                if plugin == "host-local" {
                    let file = format!("{}/10.1.0.9", conf::STATE);
                    sandbox.host().sh(&format!("mkfifo {file}"));
                }
                call().del(&conf, pod, "eth0").silent();
            });
        }
    });
}

#[test]
fn no_socket_gets_the_number_of_a_standard_stream() {
    beyond_peer("the Go plugins do not have to do this", || {
        // With all three closed the first socket would be 0, and a message be sent to the kernel.
        let node = Node::new();
        let closed = under("<&- >&- 2>&-");
        let closed: Vec<_> = closed.iter().map(String::as_str).collect();
        let snapshot = node.sandbox.snapshot();
        for verb in ["ADD", "DEL", "CHECK", "GC", "STATUS"] {
            let outcome = node.call(&closed, verb, &node.conf);
            // There is no configuration to read.
            assert_eq!(outcome.code(), 1, "{verb}: {outcome}");
        }
        snapshot.assert_unchanged();
        let numbers = node.sandbox.dir().join("fds").display().to_string();
        let fake = node.sandbox.fake("fake-ipam");
        fake.before(
            "ADD",
            &format!("for fd in 0 1 2; do readlink /proc/$PPID/fd/$fd; done > {numbers}"),
        );
        let closed = under(">&- 2>&-");
        let closed: Vec<_> = closed.iter().map(String::as_str).collect();
        node.call(&closed, "ADD", &node.conf);
        let numbers = node.sandbox.read(&numbers).unwrap_or_default();
        let numbers: Vec<_> = numbers.lines().skip(1).collect();
        assert_eq!(numbers, ["/dev/null", "/dev/null"]);
        // Empty tables of iptables stay.
        let snapshot = snapshot.allow_bridge_network().allow("iptables ");
        snapshot.allow("nft ").assert_unchanged();
    });
}

#[test]
fn a_delegate_that_prints_without_end_is_killed() {
    beyond_peer("the Go plugins hear it out", || {
        let node = Node::new();
        let fake = node.sandbox.fake("fake-ipam");
        let snapshot = node.sandbox.snapshot().allow_bridge_network();
        for stream in ["", ">&2"] {
            fake.before("ADD", &format!("yes {stream}"));
            let outcome = node
                .sandbox
                .cni("bridge")
                .under(&["prlimit", "--as=400000000"])
                .limit(Duration::from_secs(60))
                .add(&node.conf, &node.pod, "eth0");
            let error = outcome.error();
            let text = "fake-ipam: killed: it printed more than 16777216 bytes";
            assert!(error.msg.ends_with(text), "{}", error.msg);
            snapshot.assert_unchanged();
        }
    });
}
