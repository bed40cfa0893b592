//! Limits of the kernel. Those that all of the machine shares are shown to the doctor as files of the
//! test: no test changes them for others.

use sandbox::{Netns, beyond_peer};
use serde_json::{Value, json};

use crate::{Node, WHY};

impl Node {
    /// Puts a file with this text in the place of one of the kernel's.
    fn replace(&self, path: &str, text: &str) {
        let file = self.sandbox.dir().join(path.replace('/', "-"));
        self.sandbox.write(&file, text);
        self.host()
            .sh(&format!("mount --bind {} {path}", file.display()));
    }
}

#[test]
fn connection_tracking_that_is_nearly_full() {
    beyond_peer(WHY, || {
        let node = Node::new();
        let dir = "/proc/sys/net/netfilter";
        node.replace(&format!("{dir}/nf_conntrack_count"), "95");
        node.replace(&format!("{dir}/nf_conntrack_max"), "100");
        node.is_found_and_cured("PW051");
    });
}

#[test]
fn open_files_that_are_nearly_all() {
    beyond_peer(WHY, || {
        let node = Node::new();
        node.replace("/proc/sys/fs/file-nr", "950\t0\t1000");
        let finding = node.finding("PW052");
        assert_eq!(finding["remedy"], "sysctl -w fs.file-max=4000");
        node.replace("/proc/sys/fs/file-nr", "950\t0\t4000");
        node.assert_healthy();
    });
}

#[test]
fn processes_that_are_nearly_all() {
    beyond_peer(WHY, || {
        let node = Node::new();
        node.replace("/proc/sys/kernel/pid_max", "4");
        node.is_found_and_cured("PW053");
    });
}

/// Only the first namespace has the kernel's files.
#[test]
fn a_table_of_neighbours_that_is_nearly_full() {
    beyond_peer(WHY, || {
        let node = Node::new();
        node.host().sh(
            "mount -t tmpfs none /proc/sys/net/ipv4/neigh; mkdir /proc/sys/net/ipv4/neigh/default
            echo 1024 > /proc/sys/net/ipv4/neigh/default/gc_thresh3",
        );
        let examine = || {
            let done = node.execute(
                &[
                    "sh",
                    "-ec",
                    "mount -t tmpfs none /proc/$$/net; mkdir /proc/$$/net/stat
                    printf 'entries\\n000003f0\\n' > /proc/$$/net/stat/arp_cache
                    exec podwire doctor --json",
                ],
                &Value::Null,
            );
            serde_json::from_str::<Value>(&done.stdout).unwrap_or_else(|e| panic!("{e}: {done:?}"))
        };
        let found = examine();
        assert_eq!(found["findings"][0]["id"], json!("PW050"), "{found:#}");
        assert_eq!(found["findings"].as_array().map(Vec::len), Some(1));
        let remedy = found["findings"][0]["remedy"].as_str().expect("a command");
        node.host().sh(remedy);
        assert_eq!(examine()["findings"], json!([]));
    });
}

/// The limit holds for each user: here for one that nothing else runs as.
#[test]
fn watches_that_are_used_up() {
    beyond_peer(WHY, || {
        let node = Node::new();
        let as_other = ["setpriv", "--reuid=64123", "--inh-caps", CAPABILITIES];
        let as_other = [&as_other[..], &["--ambient-caps", CAPABILITIES, "--"]].concat();
        let examine = || {
            let argv = [&as_other[..], &["podwire", "doctor", "--json"]].concat();
            let done = node.execute(&argv, &Value::Null);
            serde_json::from_str::<Value>(&done.stdout).unwrap_or_else(|e| panic!("{e}: {done:?}"))
        };
        assert_eq!(examine(), json!({"findings": [], "unread": []}));
        let script = format!("ulimit -n $(ulimit -Hn); exec perl -e '{WATCH}'");
        let user = node
            .host()
            .start(&[&as_other[..], &["sh", "-c", &script]].concat());
        node.host()
            .wait_until("it has all", |_| user.output().contains("no more"));
        let found = examine();
        assert_eq!(found["findings"][0]["id"], json!("PW054"), "{found:#}");
        assert_eq!(found["findings"].as_array().map(Vec::len), Some(1));
        let remedy = found["findings"][0]["remedy"].to_string();
        assert!(
            remedy.contains("sysctl -w fs.inotify.max_user_instances="),
            "{remedy}"
        );
        drop(user);
        let healthy = |_: &Netns| examine()["findings"] == json!([]);
        node.host().wait_until("they are free again", healthy);
    });
}

/// What reads a node.
const CAPABILITIES: &str =
    "+net_admin,+net_raw,+sys_admin,+sys_ptrace,+dac_override,+dac_read_search";

/// Takes all instances of inotify.
const WATCH: &str = r#"
    require "syscall.ph"; $| = 1;
    my $count = 0; $count++ while syscall(&SYS_inotify_init1, 0) >= 0;
    print "no more after $count: $!\n"; sleep;"#;

/// Only the first namespace has the setting.
#[test]
fn a_backlog_that_is_smaller_than_a_bridge() {
    beyond_peer(WHY, || {
        let node = Node::new();
        node.host().sh("mount -t tmpfs none /proc/sys/net/core
            echo 1 > /proc/sys/net/core/netdev_max_backlog");
        node.is_found_and_cured("PW055");
    });
}

#[test]
fn a_clock_that_was_set_back() {
    beyond_peer(WHY, || {
        let node = Node::new();
        let files = "/var/lib/cni/results/*";
        node.host().sh(&format!("touch -d '+1 hour' {files}"));
        let finding = node.finding("PW056");
        assert!(
            finding["remedy"]
                .to_string()
                .ends_with(&format!("touch {files}\""))
        );
        node.host().sh(&format!("touch {files}"));
        node.assert_healthy();
    });
}

#[test]
fn a_bridge_that_is_nearly_full() {
    beyond_peer(WHY, || {
        let node = Node::new();
        node.host().sh("for i in $(seq 485); do
            echo link add a$i group 7 type veth peer name b$i
            echo link set a$i master cni0
            echo link set b$i master cni0; done | ip -batch -");
        node.finding("PW017");
        node.host().sh("ip link delete group 7");
        node.assert_healthy();
    });
}
