//! A private host with one of the two variants of iptables.

use std::{
    fs,
    io::{Read, Write},
    os::unix::fs::symlink,
    panic::resume_unwind,
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use packet_filter::Iptables;
use sandbox::here;
use serde_json::{Value, json};

/// Where Debian has the Go plugins.
const GO: &str = "/usr/lib/cni";

/// A host's namespaces: the calling thread's own, until it ends.
pub struct Host {
    /// `nft` or `legacy`.
    pub variant: &'static str,
}

/// Runs `test` on a private host with nft, then on one with legacy iptables.
pub fn on_both(test: impl Fn(&Host) + Sync) {
    for variant in ["nft", "legacy"] {
        let result = thread::scope(|scope| scope.spawn(|| test(&Host::new(variant))).join());
        if let Err(panic) = result {
            eprintln!("that was iptables-{variant}");
            resume_unwind(panic);
        }
    }
}

impl Host {
    /// Moves the calling thread into a new host (see [`here`]) with iptables-nft or
    /// iptables-legacy. The xtables lock is private too: it is below `/run`.
    pub fn new(variant: &'static str) -> Self {
        here::enter();
        fs::create_dir("/run/bin").unwrap();
        for family in ["iptables", "ip6tables"] {
            for suffix in ["", "-save", "-restore"] {
                let program = format!("/usr/sbin/xtables-{variant}-multi");
                symlink(program, format!("/run/bin/{family}{suffix}")).unwrap();
            }
        }
        Self { variant }
    }

    /// The code under test, on this variant.
    pub fn iptables(&self) -> Iptables {
        Iptables::in_path([PathBuf::from("/run/bin")])
    }

    /// The same, and every program that it starts is written to a log.
    pub fn counted(&self) -> Iptables {
        fs::create_dir("/run/counted").unwrap();
        for family in ["iptables", "ip6tables"] {
            for suffix in ["", "-save", "-restore"] {
                let name = format!("{family}{suffix}");
                let script =
                    format!("#!/bin/sh\necho {name} >> /run/log\nexec /run/bin/{name} \"$@\"\n");
                self.script(&format!("/run/counted/{name}"), &script);
            }
        }
        Iptables::in_path([PathBuf::from("/run/counted")])
    }

    /// The code under test, whose programs are scripts with this text; `NAME` is the
    /// real one.
    pub fn scripted(&self, text: &str) -> Iptables {
        let _ = fs::remove_dir_all("/run/scripts");
        fs::create_dir("/run/scripts").unwrap();
        for family in ["iptables", "ip6tables"] {
            for suffix in ["", "-save", "-restore"] {
                let name = format!("{family}{suffix}");
                let text = text.replace("NAME", &format!("/run/bin/{name}"));
                self.script(
                    &format!("/run/scripts/{name}"),
                    &format!("#!/bin/sh\n{text}\n"),
                );
            }
        }
        Iptables::in_path([PathBuf::from("/run/scripts")])
    }

    /// Makes an executable file. Written by a program that has ended: what is open for
    /// writing cannot be executed, and a child that another test is about to start may
    /// hold for a moment whatever is open here.
    pub fn script(&self, file: &str, text: &str) {
        fs::write("/run/script", text).unwrap();
        self.run(&format!("cp /run/script {file}"));
        self.run(&format!("chmod 755 {file}"));
    }

    /// What the counted programs were since the last call.
    pub fn started(&self) -> Vec<String> {
        let log = fs::read_to_string("/run/log").unwrap_or_default();
        fs::write("/run/log", "").unwrap();
        log.lines().map(str::to_owned).collect()
    }

    /// Runs `command`, which has to succeed, with this variant first in its `PATH`.
    pub fn run(&self, command: &str) -> String {
        here::run(&in_path(command))
    }

    /// Runs `command` in the same way and returns how it ended.
    pub fn attempt(&self, command: &str) -> Output {
        here::attempt(&in_path(command))
    }

    /// `command`, to be started in the same way.
    pub fn command(&self, command: &str) -> Command {
        here::command(&in_path(command))
    }

    /// Runs `command` in the same way with a text to read; it has to succeed.
    pub fn feed(&self, command: &str, text: &str) -> String {
        here::feed(&in_path(command), text)
    }

    /// Both nat tables, as `iptables-save` prints them, without the time and the
    /// packets that the kernel has counted.
    pub fn tables(&self) -> String {
        let save = |family| self.run(&format!("{family}-save -t nat"));
        let text = format!("{}{}", save("iptables"), save("ip6tables"));
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let uncounted = |line: &str| match line.split_once(" [") {
            Some((chain, _)) if line.starts_with(':') => format!("{chain}\n"),
            _ => format!("{line}\n"),
        };
        lines.map(uncounted).collect()
    }

    /// Empties both nat tables.
    pub fn flush(&self) {
        for family in ["iptables", "ip6tables"] {
            self.run(&format!("{family} -t nat -F"));
            self.run(&format!("{family} -t nat -X"));
        }
    }

    /// Runs a Go plugin; it has to succeed.
    pub fn go(&self, plugin: &str, verb: &str, owner: &cni::Attachment, conf: &Value) -> Value {
        self.go_with(plugin, verb, owner, conf, "")
    }

    /// The same, where the plugin finds no ip6tables.
    pub fn go_without_ip6tables(
        &self,
        plugin: &str,
        verb: &str,
        owner: &cni::Attachment,
        conf: &Value,
    ) {
        let _ = fs::create_dir("/run/v4");
        let _ = symlink("/run/bin/iptables", "/run/v4/iptables");
        self.go_with(plugin, verb, owner, conf, "PATH=/run/v4");
    }

    fn go_with(
        &self,
        plugin: &str,
        verb: &str,
        owner: &cni::Attachment,
        conf: &Value,
        path: &str,
    ) -> Value {
        let file = format!("/run/conf-{plugin}");
        fs::write(&file, conf.to_string()).unwrap();
        let mut command = self.command(&format!(
            "{path} CNI_COMMAND={verb} CNI_CONTAINERID={} CNI_IFNAME={} CNI_NETNS=/run/netns/pod CNI_PATH={GO} {GO}/{plugin}",
            owner.container_id, owner.ifname
        ));
        let out = command
            .stdin(fs::File::open(file).unwrap())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&out.stdout);
        assert!(out.status.success(), "{plugin} {verb}: {text} {out:?}");
        serde_json::from_str(&text).unwrap_or(json!(null))
    }

    /// Adds a pod, routed over a veth pair, with 10.22.0.2 and fd00:22::2, and a machine
    /// outside, 192.0.2.2, that has a route to the host and none to the pod.
    pub fn wire(&self) {
        for (name, host, other) in [
            ("pod", "10.22.0.1/24", "10.22.0.2/24"),
            ("outside", "192.0.2.1/24", "192.0.2.2/24"),
        ] {
            here::add_pod(name);
            self.run(&format!(
                "ip link add to-{name} type veth peer name eth0 netns {name}"
            ));
            self.run(&format!("ip addr add {host} dev to-{name}"));
            self.run(&format!("ip link set to-{name} up"));
            self.run(&format!("ip -n {name} addr add {other} dev eth0"));
            self.run(&format!("ip -n {name} link set eth0 up"));
        }
        self.run("ip -n pod route add default via 10.22.0.1");
        self.run("ip addr add fd00:22::1/64 dev to-pod nodad");
        self.run("sysctl -qw net.ipv4.ip_forward=1");
        self.run("sysctl -qw net.ipv4.conf.to-pod.route_localnet=1");
        // A question for a neighbour that is lost is repeated after a second.
        let deadline = Instant::now() + Duration::from_secs(5);
        for link in ["dev to-pod", "dev to-outside"] {
            while !self
                .run(&format!("ip link show {link}"))
                .contains("state UP")
            {
                assert!(Instant::now() < deadline, "{link} is not up");
            }
        }
    }

    /// Listens in a namespace for one connection, says `hello`, and returns
    /// what it saw of the peer once the connection has been made by `connect`.
    pub fn serve(&self, netns: &str, port: u16, connect: &str) -> Option<String> {
        let mut command = self.command(&format!("ip netns exec {netns} nc -v -n -l -N {port}"));
        let server = command.stdin(Stdio::piped()).stderr(Stdio::piped());
        let mut server = Server(server.spawn().unwrap());
        server.0.stdin.take().unwrap().write_all(b"hello").unwrap();
        let listens = format!("ip netns exec {netns} ss -Hltn sport = :{port}");
        let deadline = Instant::now() + Duration::from_secs(5);
        while self.run(&listens).is_empty() {
            assert!(Instant::now() < deadline, "no server on {port}");
            thread::sleep(Duration::from_millis(5));
        }
        let out = self.attempt(connect);
        if out.stdout != b"hello" {
            return None;
        }
        let mut seen = String::new();
        let mut pipe = server.0.stderr.take().unwrap();
        pipe.read_to_string(&mut seen).unwrap();
        Some(seen)
    }
}

fn in_path(command: &str) -> String {
    format!("env PATH=/run/bin:/usr/sbin:/usr/bin:/sbin:/bin {command}")
}

/// Ends with the test.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
