//! The daemon's life: signals, socket activation, too few descriptors.

use std::time::Duration;

use sandbox::{Netns, Suite, beyond_peer};

use crate::{SOCKET, STATE, WHY, Wire, eventually, lan};

fn listens(host: &Netns, pid: u32) -> bool {
    host.sh("ss -Hlxp").contains(&format!("pid={pid},"))
}

#[test]
fn an_odd_file_in_the_place_of_a_lease_is_reported_and_blocks_no_call() {
    beyond_peer(WHY, || {
        let wire = Wire::new();
        let _server = wire.dnsmasq(&[]);
        let daemon = wire.daemon(&[]);
        let pod = wire.sandbox.pod("a");
        wire.add(&pod);
        drop(daemon);
        let lease = format!("{STATE}/{}", wire.sandbox.list(STATE)[0]);
        wire.sandbox.write("/var/lib/victim", "precious");
        for (what, shell) in [
            ("is a pipe", "mkfifo $f; mkfifo ${f%json}new"),
            ("is a directory", "mkdir $f"),
            ("is a symbolic link", "ln -s /var/lib/victim $f"),
            ("is a device", "mknod $f c 1 5"),
            ("is longer than", "truncate -s 1G $f"),
        ] {
            wire.host()
                .sh(&format!("f={lease}; mkdir -p {STATE}; rm -rf $f; {shell}"));
            let daemon = wire.daemon(&[]);
            Wire::await_log(&daemon, &format!("lease {lease} is not restored: {what}"));
            wire.sandbox.cni("dhcp").status(&lan()).silent();
            drop(daemon);
            wire.gc(&lan(), &[]);
            wire.sandbox.cni("dhcp").del(&lan(), &pod, "eth0").silent();
            let victim = wire.sandbox.read("/var/lib/victim");
            assert_eq!(victim.as_deref(), Some("precious"), "{what}");
        }
        // What is written before it takes its place: a link there leads nowhere either.
        wire.host().sh(&format!(
            "f={lease}; mkdir -p {STATE}; rm -rf $f; ln -s /var/lib/victim ${{f%json}}new"
        ));
        let _daemon = wire.daemon(&["-pidfile", "/run/pid"]);
        wire.del(&pod);
        wire.add(&pod);
        let victim = wire.sandbox.read("/var/lib/victim");
        assert_eq!(victim.as_deref(), Some("precious"));
    });
}

#[test]
fn an_add_fails_if_its_lease_cannot_be_saved_and_leaves_nothing() {
    beyond_peer(WHY, || {
        let wire = Wire::new();
        let server = wire.dnsmasq(&[]);
        let _daemon = wire.daemon(&[]);
        let pod = wire.sandbox.pod("a");
        wire.host().sh(&format!(
            "mount -t tmpfs -o size=4k full {STATE} && head -c 4096 /dev/zero > {STATE}/fill"
        ));
        let error = wire.sandbox.cni("bridge").add(&lan(), &pod, "eth0").error();
        assert!(error.msg.contains("write lease"), "{error:?}");
        assert!(error.msg.contains("no space left on device"), "{error:?}");
        Wire::await_log(&server, "DHCPRELEASE");
        assert_eq!(wire.sandbox.list(STATE), ["fill"]);
        wire.host().sh(&format!("umount {STATE}"));
        wire.add(&pod);
        wire.del(&pod);
    });
}

#[test]
fn a_signal_ends_it_and_releases_nothing() {
    beyond_peer(WHY, || {
        let wire = Wire::new();
        let server = wire.dnsmasq(&[]);
        let pidfile = wire.file("pid");
        let daemon = wire.daemon(&["--pidfile", &pidfile]);
        let pod = wire.sandbox.pod("a");
        wire.add(&pod);
        assert_eq!(wire.sandbox.read(&pidfile), Some(daemon.id().to_string()));
        let second = wire.host().run(&[
            &Suite::Ours.dir().join("dhcp").display().to_string(),
            "daemon",
        ]);
        assert_eq!(second.code, 1, "one daemon a socket: {second:?}");
        wire.host().sh(&format!("kill {}", daemon.id()));
        eventually(5, "it ends", || {
            wire.sandbox.list("/run/cni").is_empty() && wire.sandbox.read(&pidfile).is_none()
        });
        assert_eq!(wire.sandbox.list(STATE).len(), 1);
        assert!(!server.output().contains("DHCPRELEASE"));
    });
}

#[test]
fn systemd_may_pass_the_socket() {
    beyond_peer(WHY, || {
        let wire = Wire::new();
        let _server = wire.dnsmasq(&[]);
        // What systemd does with cni-dhcp.socket: listens at descriptor 3, then executes.
        let script = format!(
            "use Socket; $^F = 9; mkdir '/run/cni'; close STDIN; open STDIN, '<', '/dev/null';
             socket(my $s, AF_UNIX, SOCK_STREAM, 0) or die; bind($s, sockaddr_un('{SOCKET}')) or die; listen($s, 9);
             use POSIX; POSIX::dup2(fileno($s), 3);
             $ENV{{LISTEN_PID}} = $$; $ENV{{LISTEN_FDS}} = 1;
             exec '{}', 'daemon', '-socketpath', '{SOCKET}';",
            Suite::Ours.dir().join("dhcp").display()
        );
        let daemon = wire.host().start(&["perl", "-e", &script]);
        wire.host()
            .wait_until("it listens", |host| listens(host, daemon.id()));
        let pod = wire.sandbox.pod("a");
        wire.add(&pod);
        wire.sandbox.cni("bridge").status(&lan()).silent();
        wire.host().sh(&format!("kill {}", daemon.id()));
        eventually(5, "it ends", || !listens(&wire.host(), daemon.id()));
        assert_eq!(
            wire.sandbox.list("/run/cni"),
            ["dhcp.sock"],
            "the socket is systemd's"
        );
    });
}

#[test]
fn a_daemon_without_descriptors_answers_and_rests() {
    beyond_peer(WHY, || {
        // Of the few it has, plugins take all.
        for limit in ["9", "10", "12", "40"] {
            let wire = Wire::new();
            let dhcp = Suite::Ours.dir().join("dhcp").display().to_string();
            let limit = format!("--nofile={limit}:{limit}");
            let daemon = wire.host().start(&["prlimit", &limit, &dhcp, "daemon"]);
            wire.host()
                .wait_until("it listens", |host| listens(host, daemon.id()));
            let many = format!(
                "use IO::Socket::UNIX; my @all = map {{ IO::Socket::UNIX->new(Peer => '{SOCKET}') }} 1 .. 100;
                 $| = 1; print 'serves'; sleep 300"
            );
            let many = Wire::perl(&wire.host(), &many);
            let ticks = || -> u64 {
                let stat = std::fs::read_to_string(format!("/proc/{}/stat", daemon.id()));
                let stat = stat.expect("the daemon lives");
                let words: Vec<_> = stat.split(' ').collect();
                words[13..15]
                    .iter()
                    .map(|it| it.parse::<u64>().expect("ticks"))
                    .sum()
            };
            let before = ticks();
            let cni = || wire.sandbox.cni("dhcp").limit(Duration::from_secs(10));
            let error = cni().status(&lan()).error();
            assert_eq!(error.code, 50, "{}", error.msg);
            std::thread::sleep(Duration::from_secs(2));
            let spent = ticks() - before;
            assert!(spent < 60, "{limit}: {spent} of 200 ticks");
            assert!(daemon.output().lines().count() < 50, "{}", daemon.output());
            // When they have gone, it serves again.
            drop(many);
            if limit.starts_with("--nofile=40") {
                let _server = wire.dnsmasq(&[]);
                wire.add(&wire.sandbox.pod("a"));
            } else {
                eventually(5, "serves again", || cni().status(&lan()).code() == 0);
            }
        }
    });
}

#[test]
fn the_daemon_refuses_what_is_not_there() {
    let wire = Wire::new();
    let _daemon = wire.daemon(&[]);
    let pod = wire.sandbox.pod("a");
    let refused = |netns: &str, ifname: &str| {
        let cni = wire.sandbox.cni("dhcp").netns(netns);
        cni.add(&lan(), &pod, ifname).error().msg
    };
    assert_eq!(
        refused("/run/netns/nope", "eth0"),
        "error calling DHCP.Allocate: failed to Statfs \"/run/netns/nope\": no such file or directory"
    );
    assert_eq!(
        refused(&pod.path(), "eth9"),
        "error calling DHCP.Allocate: error looking up \"eth9\": Link not found"
    );
}

/// `e_type` of elf(5): `ET_EXEC` (2) has a fixed address, `ET_DYN` (3) none.
fn elf_type(name: &str) -> u16 {
    let program = std::fs::read(Suite::Ours.dir().join(name)).expect("a program");
    u16::from_le_bytes([program[16], program[17]])
}

#[test]
fn the_daemon_is_position_independent_and_plugins_have_a_fixed_address() {
    beyond_peer("the Go daemon has a fixed address", || {
        let cannot = cfg!(all(target_env = "musl", not(target_arch = "x86_64")));
        let found = ["dhcp", "bridge", "loopback"].map(elf_type);
        assert_eq!(found, [if cannot { 2 } else { 3 }, 2, 2]);
    });
}
