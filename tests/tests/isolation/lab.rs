//! A node with a network under test, another network, a machine outside, and probes between all of
//! them at once.

use std::ops::Deref;

use sandbox::{BackEnd, FilterNode, Netns, OUTSIDE, Running, conf};
use serde_json::{Value, json};

pub const WHY: &str = "the Go plugins have no such keys";

/// The addresses of the pods `a` and `b` of the network, and of `c` of the other one.
pub const A: [&str; 2] = ["10.1.0.2", "fd01::2"];
pub const B: [&str; 2] = ["10.1.0.3", "fd01::3"];
pub const C: [&str; 2] = ["10.2.0.2", "fd02::2"];
/// The network's gateway.
pub const GATEWAY: [&str; 2] = ["10.1.0.1", "fd01::1"];
/// What `a` publishes on the node, and the port behind it.
pub const PUBLISHED: u16 = 8080;
pub const OPEN: u16 = 80;
/// A port of `a` that is not published.
pub const PRIVATE: u16 = 81;
/// A port of the node, and of the machine outside.
pub const SERVICE: u16 = 70;

/// Tries everything at the same time. A probe is `tcp ADDRESS PORT`, `udp …` or `icmp ADDRESS`.
const PROBE: &str = r#"
    use strict; use IO::Socket::IP; use IO::Select;
    sub answer {
        my ($protocol, $to, $port) = @_;
        if ($protocol eq 'icmp') {
            system("ping -n -q -c 2 -i 0.5 -w 3 $to >/dev/null 2>&1");
            return $? == 0 ? "yes" : "no";
        }
        my $it = IO::Socket::IP->new(PeerHost => $to, PeerPort => $port, Proto => $protocol, Timeout => 3.5);
        return "no" unless $it;
        my $answers = IO::Select->new($it);
        for (1 .. 7) {
            syswrite($it, "hello\n") if $_ == 1 || $protocol eq 'udp';
            next unless $answers->can_read(0.5);
            my $heard = sysread($it, my $line, 1500);
            if ($heard) { chomp $line; return $line; }
            select(undef, undef, undef, 0.5) if $protocol eq 'udp';
        }
        return "no";
    }
    $| = 1;
    for my $probe (@ARGV) {
        next if fork;
        my $heard = answer(split ' ', $probe);
        print "$probe: $heard\n";
        exit;
    }
    1 while wait != -1;
    print "done\n";"#;

/// What one side expects: probes, and how the answer begins; `no` for none.
#[derive(Default)]
pub struct Expected(Vec<(String, String)>);

impl Expected {
    /// TCP and UDP, both families.
    pub fn port(&mut self, to: [&str; 2], port: u16, answers: [Option<&str>; 2]) {
        for (to, answer) in to.into_iter().zip(answers) {
            for protocol in ["tcp", "udp"] {
                let answer = answer.map_or("no".to_owned(), |it| format!("{it} sees "));
                self.0.push((format!("{protocol} {to} {port}"), answer));
            }
        }
    }

    /// Pings of both families.
    pub fn ping(&mut self, to: [&str; 2], answers: [bool; 2]) {
        for (to, answer) in to.into_iter().zip(answers) {
            let answer = if answer { "yes" } else { "no" };
            self.0.push((format!("icmp {to}"), answer.to_owned()));
        }
    }

    fn start(&self, from: &Netns) -> Running {
        let mut argv = vec!["perl", "-e", PROBE];
        argv.extend(self.0.iter().map(|(probe, _)| probe.as_str()));
        from.start(&argv)
    }

    /// The lines that differ.
    fn differences(&self, from: &Netns, output: &str) -> Vec<String> {
        let mut differences = Vec::new();
        for (probe, expected) in &self.0 {
            let prefix = format!("{probe}: ");
            let heard = output.lines().find_map(|it| it.strip_prefix(&prefix));
            let heard = heard.unwrap_or("nothing");
            if !heard.starts_with(expected.as_str()) {
                let name = from.name();
                differences.push(format!("{name}: {probe}: {heard}, not {expected}"));
            }
        }
        differences
    }
}

/// Runs the probes of all sides at once, and fails with everything that is not as expected.
#[track_caller]
pub fn assert_all(sides: &[(&Netns, Expected)]) {
    let running: Vec<_> = sides.iter().map(|(from, it)| it.start(from)).collect();
    let mut differences = Vec::new();
    for ((from, expected), running) in sides.iter().zip(&running) {
        // Each probe gives up by itself; a busy machine starts them late.
        for _ in 0..3 {
            if !running.output().contains("done\n") {
                std::thread::sleep(std::time::Duration::from_secs(2));
            }
        }
        from.wait_until("all probes ended", |_| running.output().contains("done\n"));
        differences.extend(expected.differences(from, &running.output()));
    }
    assert!(differences.is_empty(), "\n{}", differences.join("\n"));
}

/// The node, and what runs on it.
pub struct Lab {
    pub node: FilterNode,
    conf: Value,
    servers: Vec<Running>,
}

impl Deref for Lab {
    type Target = FilterNode;

    fn deref(&self) -> &FilterNode {
        &self.node
    }
}

/// The network under test, with these keys.
pub fn network(keys: Value) -> Value {
    let conf = conf::bridge(&["10.1.0.0/24", "fd01::/64"]);
    let conf = conf::with(&conf, json!({"ipMasq": true, "hairpinMode": true}));
    conf::with(&conf, keys)
}

/// Another network, without any of the keys.
pub fn other() -> Value {
    let conf = conf::bridge(&["10.2.0.0/24", "fd02::/64"]);
    let keys = json!({"name": "other", "bridge": "cni1", "isDefaultGateway": true});
    conf::with(&conf, keys)
}

impl Lab {
    /// A node whose network has these keys.
    pub fn new(keys: Value) -> Self {
        Self::with(BackEnd::Nftables, keys)
    }

    /// The same beside rules of this packet filter.
    pub fn with(back_end: BackEnd, keys: Value) -> Self {
        let node = FilterNode::new(back_end);
        let servers = vec![node.host().serve(SERVICE), node.outside.serve(SERVICE)];
        Self {
            node,
            conf: network(keys),
            servers,
        }
    }

    /// The configuration of the network.
    pub fn conf(&self) -> Value {
        self.conf.clone()
    }

    /// Has iptables drop what no rule accepts.
    pub fn drop_forwarded(&self) {
        let path = self.back_end.path(&self.node.sandbox);
        self.host().sh(&format!(
            "export PATH={path}; iptables -P FORWARD DROP; ip6tables -P FORWARD DROP"
        ));
    }

    /// Whether bridged packets pass the rules of IP.
    pub fn filter_bridged(&self, on: bool) {
        let value = i32::from(on);
        self.host().sh(&format!(
            "cd /proc/sys/net/bridge; for it in bridge-nf-call-ip*tables; do echo {value} >$it; done"
        ));
    }

    /// A pod of `conf` that serves both ports.
    pub fn serve(&mut self, conf: &Value, name: &str) -> (Netns, Value) {
        let pod = self.node.sandbox.pod(name);
        let result = self.node.cni("bridge").add(conf, &pod, "eth0").result();
        let servers = [OPEN, PRIVATE].map(|port| pod.serve(port));
        self.servers.extend(servers);
        (pod, result)
    }

    /// The pods `a`, which publishes its port with portmap if `mapped`, `b` and `c`.
    pub fn pods(&mut self, mapped: bool) -> [Netns; 3] {
        let conf = self.conf.clone();
        let (a, result) = self.serve(&conf, "a");
        if mapped {
            self.publish(&a, &result);
        }
        let (b, _) = self.serve(&conf, "b");
        let (c, _) = self.serve(&other(), "c");
        [a, b, c]
    }

    pub fn publish(&self, pod: &Netns, result: &Value) {
        let mapping = |protocol: &str| json!({"hostPort": PUBLISHED, "containerPort": OPEN, "protocol": protocol});
        let mut ports = conf::with_prev(&conf::portmap(PUBLISHED), result);
        ports["runtimeConfig"] = json!({"portMappings": [mapping("tcp"), mapping("udp")]});
        self.node.cni("portmap").add(&ports, pod, "eth0").result();
    }

    /// What the machine outside answers.
    pub fn outside_answers(&self, from: &Netns) -> String {
        from.ask("tcp", OUTSIDE[0], SERVICE)
    }
}
