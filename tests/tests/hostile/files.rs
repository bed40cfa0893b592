//! Something else in the place of a file of ours: no call waits for it, reads it whole,
//! follows it or hands out its address; it is named, and stays as it is.

use std::time::Duration;

use sandbox::{Netns, Outcome, Sandbox, beyond_peer, conf};
use serde_json::{Value, json};

const STATE: &str = conf::STATE;
const INDEX: &str = "/var/lib/cni/networks/.podwire/testnet";
const WHY: &str = "the Go plugin waits for pipes and follows links";

/// What is put there, and the shell that puts it at `$f`.
const KINDS: [(&str, &str); 7] = [
    ("a pipe", "mkfifo $f"),
    ("a directory", "mkdir $f"),
    ("a link", "ln -s /var/lib/victim $f"),
    ("a device", "mknod $f c 1 5"),
    (
        "a socket",
        "perl -MIO::Socket::UNIX -e 'IO::Socket::UNIX->new(Local => shift, Listen => 1)' $f",
    ),
    ("a sparse gigabyte", "truncate -s 1G $f"),
    ("unreadable", "echo 9 > $f; chmod 0 $f"),
];

/// A node whose pods hold addresses of 10.1.0.0/29, which has five.
struct Node {
    sandbox: Sandbox,
    pod: Netns,
    conf: Value,
}

impl Node {
    fn new() -> Self {
        let sandbox = Sandbox::new();
        let pod = sandbox.pod("a");
        let conf = conf::host_local(&["10.1.0.0/29"]);
        sandbox.write("/var/lib/victim", "precious");
        Self { sandbox, pod, conf }
    }

    /// A call with little memory and little time, by a root that may not read everything.
    fn call(&self, verb: &str, id: &str) -> Outcome {
        let conf = conf::with_valid(&self.conf, &[("a", "eth0")]);
        self.sandbox
            .cni("host-local")
            .id(id)
            .limit(Duration::from_secs(10))
            .under(&[
                "prlimit",
                "--as=268435456",
                "setpriv",
                "--bounding-set=-dac_override,-dac_read_search",
            ])
            .attachment(verb, &conf, &self.pod, "eth0")
    }

    /// Two pods hold 10.1.0.2 and 10.1.0.3; then the thing is put in the place of `file`.
    fn plant(&self, file: &str, shell: &str) {
        self.sandbox.host().sh("rm -rf /var/lib/cni");
        for id in ["a", "b"] {
            self.call("ADD", id).result();
        }
        self.sandbox.host().sh(&format!(
            "f={file}; mkdir -p $(dirname $f); rm -rf $f; {shell}"
        ));
    }

    /// The life of a node after that: no address is given twice, and DEL succeeds.
    fn live_on(&self, what: &str) -> String {
        let mut log = String::new();
        let mut silent = |verb: &str, id: &str| {
            let outcome = self.call(verb, id);
            assert_eq!(
                (outcome.code(), outcome.stdout()),
                (0, ""),
                "{what}: {verb}: {outcome}"
            );
            log += outcome.stderr();
        };
        silent("STATUS", "");
        for (id, address) in [
            ("c", "10.1.0.4/29"),
            ("d", "10.1.0.5/29"),
            ("e", "10.1.0.6/29"),
        ] {
            let outcome = self.call("ADD", id);
            assert_eq!(outcome.code(), 0, "{what}: {outcome}");
            assert_eq!(outcome.result()["ips"][0]["address"], address, "{what}");
        }
        assert_eq!(self.call("ADD", "f").error().code, 11, "{what}");
        silent("CHECK", "c");
        for id in ["b", "a", "d", "d"] {
            silent("DEL", id);
        }
        silent("GC", "");
        log + self.call("ADD", "g").stderr()
    }

    fn kind_of(&self, file: &str) -> String {
        let file = format!("stat -c '%F %s' {file} 2>&1 || true");
        self.sandbox.host().sh(&file)
    }
}

#[test]
fn what_is_in_the_place_of_a_file_is_passed_over() {
    beyond_peer(WHY, || {
        let node = Node::new();
        let reservation = format!("{STATE}/10.1.0.2");
        let last = format!("{STATE}/last_reserved_ip.0");
        let all: [(&str, bool); 6] = [
            (&reservation, true),
            (&last, true),
            (&format!("{STATE}/10.1.0.99"), false),
            (&format!("{INDEX}/index"), false),
            (&format!("{INDEX}/index.new"), false),
            (&format!("{INDEX}/stamp"), false),
        ];
        for (kind, shell) in KINDS {
            for (file, named) in all {
                let what = format!("{kind} in the place of {file}");
                node.plant(file, shell);
                let before = node.kind_of(file);
                let log = node.live_on(&what);
                // The length of what was last reserved means nothing.
                let readable = file == last && kind == "a sparse gigabyte";
                if named && !readable {
                    assert!(log.contains(file), "{what}: {log}");
                    assert_eq!(node.kind_of(file), before, "{what}");
                }
                let victim = node.sandbox.read("/var/lib/victim");
                assert_eq!(victim.as_deref(), Some("precious"), "{what}");
            }
        }
    });
}

#[test]
fn what_is_in_the_place_of_the_lock_is_an_error_that_names_it() {
    beyond_peer(WHY, || {
        let node = Node::new();
        let lock = format!("{STATE}/lock");
        for (kind, shell) in KINDS {
            node.plant(&lock, shell);
            if kind == "a sparse gigabyte" {
                // Nothing is read from it: a lock may have any length.
                node.live_on(kind);
                continue;
            }
            for verb in ["ADD", "CHECK", "DEL", "STATUS", "GC"] {
                let error = node.call(verb, "a").error();
                let text = format!("open lock {lock}: ");
                assert!(error.msg.contains(&text), "{kind}: {verb}: {}", error.msg);
            }
        }
    });
}

#[test]
fn what_is_in_the_place_of_resolv_conf_is_an_error_that_names_it() {
    beyond_peer(WHY, || {
        let mut node = Node::new();
        node.conf["ipam"]["resolvConf"] = json!("/var/lib/resolv");
        for (kind, shell) in KINDS {
            node.sandbox
                .host()
                .sh(&format!("f=/var/lib/resolv; rm -rf $f; {shell}"));
            if kind == "a link" {
                // The operator's own choice.
                node.call("ADD", "a").result();
            } else {
                let error = node.call("ADD", "a").error();
                let text = "read resolvConf /var/lib/resolv: ";
                assert!(error.msg.starts_with(text), "{kind}: {}", error.msg);
                assert_eq!(node.call("STATUS", "").error().code, 50, "{kind}");
            }
            node.call("DEL", "a").silent();
        }
        node.conf["ipam"]["resolvConf"] = json!("/dev/null");
        node.call("ADD", "a").result();
    });
}

#[test]
fn a_data_directory_that_leads_nowhere_is_named() {
    beyond_peer("the Go plugin makes what the link names", || {
        let node = Node::new();
        node.sandbox
            .host()
            .sh("mkdir -p /var/lib/cni; ln -s /var/lib/nothing /var/lib/cni/networks");
        for verb in ["ADD", "DEL", "STATUS", "GC"] {
            let outcome = node.call(verb, "a");
            let failed = outcome.code() != 0;
            let fails = matches!(verb, "ADD" | "STATUS");
            assert_eq!(failed, fails, "{verb}: {outcome}");
            assert_eq!(outcome.stdout().contains("/var/lib/cni/networks"), failed);
        }
    });
}

#[test]
fn a_file_in_the_place_of_a_directory_is_named() {
    beyond_peer(WHY, || {
        let node = Node::new();
        for (kind, shell) in KINDS.iter().filter(|(kind, _)| *kind != "a directory") {
            node.sandbox.host().sh(&format!(
                "rm -rf /var/lib/cni; mkdir -p /var/lib/cni/networks; f={STATE}; {shell}"
            ));
            for verb in ["ADD", "STATUS"] {
                let error = node.call(verb, "a").error();
                assert!(error.msg.contains(STATE), "{kind}: {verb}: {}", error.msg);
            }
        }
    });
}

#[test]
fn a_lock_that_is_held_too_long_is_named_with_its_holder() {
    beyond_peer("the Go plugin waits for ever", || {
        let node = Node::new();
        node.call("ADD", "a").result();
        let lock = format!("{STATE}/lock");
        let script = "open(F, '<', shift); flock(F, 2); $| = 1; print 'held'; sleep 300";
        let holder = node.sandbox.host().start(&["perl", "-e", script, &lock]);
        let held = |_: &Netns| holder.output().contains("held");
        node.sandbox.host().wait_until("the lock is held", held);
        let refused = |verb: &'static str| {
            let mut conf = conf::with_valid(&node.conf, &[]);
            let mut plugin = "host-local";
            if verb == "DEL" {
                // Through the plugin that calls it.
                conf = conf::with(&conf::bridge(&[]), json!({"ipam": conf["ipam"]}));
                plugin = "bridge";
            }
            let outcome = node
                .sandbox
                .cni(plugin)
                .id("a")
                .limit(Duration::from_secs(100));
            let error = outcome.attachment(verb, &conf, &node.pod, "eth0").error();
            let holder_text = format!("lock {lock}: process {} has held it", holder.id());
            assert!(error.msg.contains(&holder_text), "{verb}: {}", error.msg);
            assert_eq!(error.code, 11, "{verb}");
        };
        std::thread::scope(|scope| {
            for verb in ["ADD", "CHECK", "DEL", "GC"] {
                scope.spawn(move || refused(verb));
            }
        });
        node.sandbox.host().sh(&format!("kill {}", holder.id()));
        node.call("DEL", "a").silent();
    });
}

/// A rule that stays after its last user would masquerade the next network on that subnet.
#[test]
fn a_note_that_cannot_be_removed_has_del_and_gc_called_again() {
    beyond_peer("the Go plugin has a rule for each pod", || {
        let sandbox = Sandbox::new();
        let pod = sandbox.pod("a");
        let keys = json!({"isGateway": true, "ipMasq": true, "ipMasqBackend": "nftables"});
        let conf = conf::with(&conf::bridge(&["10.1.0.0/24", "fd01::/64"]), keys);
        let valid_none = conf::with_valid(&conf, &[]);
        let bridge = || sandbox.cni("bridge");
        let rules = || sandbox.host().sh("nft list ruleset | grep saddr || :");
        for gc in [false, true] {
            bridge().add(&conf, &pod, "eth0").result();
            // A file that another one is mounted on cannot be removed (EBUSY).
            let each = "for f in $(find /run/podwire -type f -path '*masquerade-*'); do";
            let host = sandbox.host();
            host.sh(&format!("{each} mount --bind /etc/hostname $f; done"));
            let call = || {
                if gc {
                    bridge().gc(&valid_none)
                } else {
                    bridge().del(&conf, &pod, "eth0")
                }
            };
            let error = call().error();
            let message = error.msg + &error.details;
            assert!(
                message.contains("remove a user from /run/podwire/"),
                "{message}"
            );
            assert!(gc || !rules().is_empty());
            sandbox.host().sh(&format!("{each} umount $f; done"));
            call().silent();
            assert_eq!(rules(), "");
            // What neighbours remember of a bridge stays with the bridge.
            let left = sandbox.host().sh("ls -A /run/podwire 2>/dev/null || :");
            assert_eq!(left, "neighbours\n");
        }
    });
}
