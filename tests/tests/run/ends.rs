//! However a container ends, nothing is left.

use std::time::{Duration, Instant};

use sandbox::beyond_peer;

use crate::{Node, WHY, fails};

#[test]
fn the_exit_status_is_the_commands() {
    beyond_peer(WHY, || {
        let node = Node::new();
        let run = |script: &str| {
            node.podwire(&["run", "--network", "n", "sh", "-c", script])
                .code
        };
        assert_eq!(run("exit 0"), 0);
        assert_eq!(run("exit 7"), 7);
        assert_eq!(run("kill -9 $$"), 137);
        assert_eq!(run("kill -TERM $$"), 143);
        fails(
            &node.podwire(&["run", "--network", "n", "nope"]),
            127,
            "\"nope\": executable file not found in $PATH",
        );
        fails(
            &node.podwire(&["run", "--network", "n", "/nope"]),
            127,
            "no such file or directory",
        );
        fails(
            &node.podwire(&["run", "--network", "n", "/etc/passwd"]),
            126,
            "permission denied",
        );
        fails(
            &node.podwire(&["run", "-d", "--network", "n", "nope"]),
            127,
            "executable file not found",
        );
        node.assert_clean();
    });
}

/// The processes of a container called web: the front (the test has started it), the supervisor, and
/// the first process.
fn processes(node: &Node) -> [String; 2] {
    node.host().wait_until("the container runs", |it| {
        it.run(&["test", "-s", "/run/podwire/run/web/pid"]).code == 0
    });
    let init = node.host().sh("cat /run/podwire/run/web/pid");
    let init = init.trim().to_owned();
    let supervisor = node
        .host()
        .sh(&format!("awk '/^PPid/ {{print $2}}' /proc/{init}/status"));
    node.host().wait_until("the command runs", |_| {
        node.podwire(&["exec", "web", "true"]).code == 0
    });
    [supervisor.trim().to_owned(), init]
}

#[test]
fn a_signal_is_passed_on_and_a_killed_front_takes_the_container_with_it() {
    beyond_peer(WHY, || {
        let node = Node::new();
        for signal in ["TERM", "KILL"] {
            let script = "trap 'exit 5' TERM; sleep 1000 & wait";
            let front = node.start(&[
                "run",
                "--name",
                "web",
                "--network",
                "n",
                "-p",
                "80:80",
                "sh",
                "-c",
                script,
            ]);
            processes(&node);
            node.host().sh(&format!("kill -{signal} {}", front.id()));
            node.await_clean();
        }
    });
}

#[test]
fn a_killed_command_ends_its_container() {
    beyond_peer(WHY, || {
        let node = Node::new();
        for which in ["init", "command"] {
            node.must(&[
                "run",
                "-d",
                "--name",
                "web",
                "--network",
                "n",
                "sleep",
                "1000",
            ]);
            let [_, init] = processes(&node);
            match which {
                "init" => node.host().sh(&format!("kill -9 {init}")),
                _ => node.host().sh(&format!("pkill -9 -P {init}")),
            };
            node.await_clean();
        }
    });
}

#[test]
fn a_killed_supervisor_takes_the_container_with_it_and_the_next_podwire_sweeps() {
    beyond_peer(WHY, || {
        let node = Node::new();
        node.must(&[
            "run",
            "-d",
            "--name",
            "web",
            "--network",
            "n",
            "-p",
            "80:80",
            "sleep",
            "1000",
        ]);
        let [supervisor, init] = processes(&node);
        node.host().sh(&format!("kill -9 {supervisor}"));
        node.host().wait_until("the command is gone", |it| {
            it.run(&[
                "sh",
                "-c",
                &format!("grep -q 'State:.[RSD]' /proc/{init}/status"),
            ])
            .code
                != 0
        });
        assert!(!node.left().is_empty());
        assert!(node.ps().is_empty());
        node.assert_clean();
        // The front of a killed supervisor removes the rest itself.
        let front = node.start(&["run", "--name", "web", "--network", "n", "sleep", "1000"]);
        let [supervisor, _] = processes(&node);
        node.host().sh(&format!("kill -9 {supervisor}"));
        node.await_clean();
        drop(front);
    });
}

#[test]
fn everything_killed_at_any_moment_is_swept() {
    beyond_peer(WHY, || {
        let node = Node::new();
        for delay in (0..24).map(|it| it * 4) {
            let name = ["run", "--name", "swept", "--network", "n", "-p", "80:80"];
            let argv = node
                .argv(&[&name[..], &["sleep", "1000"]].concat())
                .join(" ");
            let script = format!(
                "setsid {argv} & pid=$!; sleep 0.{delay:03}; children=$(pgrep -P $pid || :)
                 kill -9 $pid $children 2>/dev/null || :; kill -9 -- -$pid 2>/dev/null || :; wait $pid 2>/dev/null || :"
            );
            node.host().sh(&script);
            node.must(&["ps"]);
            let deadline = Instant::now() + Duration::from_secs(10);
            while !node.left().is_empty() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(50));
                node.must(&["ps"]);
            }
            node.assert_clean();
        }
    });
}

#[test]
fn stop_kills_what_ignores_sigterm() {
    beyond_peer(WHY, || {
        let node = Node::new();
        node.must(&[
            "run",
            "-d",
            "--name",
            "web",
            "--network",
            "n",
            "sh",
            "-c",
            "trap '' TERM; sleep 1000",
        ]);
        processes(&node);
        let started = Instant::now();
        node.must(&["stop", "-t", "1", "web"]);
        assert!(started.elapsed() >= Duration::from_secs(1));
        node.assert_clean();
    });
}

#[test]
fn after_a_reboot_the_addresses_are_released() {
    beyond_peer(WHY, || {
        let node = Node::new();
        node.must(&[
            "run",
            "-d",
            "--name",
            "web",
            "--network",
            "n",
            "sleep",
            "1000",
        ]);
        let [supervisor, _] = processes(&node);
        node.host().sh(&format!("kill -9 {supervisor}; while [ -e /proc/{supervisor} ]; do sleep 0.1; done; rm -rf /run/podwire; ip link del br-n"));
        node.sandbox.reboot();
        assert!(
            node.left().iter().any(|it| it == "10.1.0.2"),
            "{:?}",
            node.left()
        );
        node.must(&["ps"]);
        node.assert_clean();
        let again = node.must(&["run", "--name", "web", "--network", "n", "hostname", "-I"]);
        assert!(again.starts_with("10.1.0."), "{again}");
    });
}

#[test]
fn a_hundred_at_once_get_a_hundred_addresses() {
    beyond_peer(WHY, || {
        let node = Node::new();
        let argv = node
            .argv(&["run", "--network", "n", "hostname", "-I"])
            .join(" ");
        let script = format!("for i in $(seq 100); do {argv} & done; wait");
        let done = node
            .host()
            .run_for(&["sh", "-c", &script], Duration::from_secs(100));
        let mut addresses: Vec<_> = done.stdout.lines().collect();
        assert_eq!(addresses.len(), 100, "{done:?}");
        addresses.retain(|it| it.starts_with("10.1.0."));
        assert_eq!(addresses.len(), 100, "{done:?}");
        node.await_clean();
    });
}
