//! Who reaches whom, with Docker and with podwire: the packets of a container, of its neighbours, of
//! the node and of a machine outside.

use std::fmt::Write;
use std::thread;

use sandbox::{Docker, NO_ANSWER, NODE, Netns, OUTSIDE, Running, beyond_peer};

use crate::WHY;
use crate::node::{Engine, Podwire};

/// The commands that make the networks and the containers.
const SETUP: [&str; 11] = [
    "network create --ipv6 --subnet 10.71.0.0/24 --subnet fd71::/64 web",
    "network create --ipv6 --subnet 10.72.0.0/24 --subnet fd72::/64 other",
    "network create --internal --subnet 10.73.0.0/24 lab",
    "network create -o com.docker.network.bridge.enable_icc=false --subnet 10.74.0.0/24 quiet",
    "run -d --rm --name aa --network web -p 8080:80 -p 8080:80/udp IMAGE sleep 1000",
    "run -d --rm --name bb --network web IMAGE sleep 1000",
    "run -d --rm --name cc --network other IMAGE sleep 1000",
    "run -d --rm --name ll --network lab IMAGE sleep 1000",
    "run -d --rm --name mm --network lab IMAGE sleep 1000",
    "run -d --rm --name qq --network quiet -p 8081:80 IMAGE sleep 1000",
    "run -d --rm --name rr --network quiet IMAGE sleep 1000",
];

/// Where the servers are: on the ports 80 and 81.
const SERVERS: [&str; 6] = ["aa", "cc", "ll", "qq", "host", "outside"];

const A: [&str; 2] = ["10.71.0.2", "fd71::2"];
const C: [&str; 2] = ["10.72.0.2", "fd72::2"];
const GATEWAY: [&str; 2] = ["10.71.0.1", "fd71::1"];

/// Questions: by whom, of which address of each family, and of which port. 0 stands for a ping.
const QUESTIONS: &[(&[&str], &[&str], &[u16])] = &[
    // The published port, another one, and a ping, by the container's own address and by the node's.
    (&["outside", "bb", "cc", "host"], &A, &[80, 81, 0]),
    (&["outside", "aa", "bb", "cc", "host"], &NODE, &[8080]),
    (&["outside", "qq", "rr"], &["10.74.0.2"], &[80, 81, 0]),
    (&["outside", "rr", "host"], &[NODE[0]], &[8081]),
    // Internal networks.
    (&["outside", "aa", "mm", "host"], &["10.73.0.2"], &[80, 0]),
    (&["ll"], &[OUTSIDE[0], A[0]], &[80, 0]),
    (&["ll"], &["10.73.0.1"], &[80, 0]),
    // The way out.
    (&["aa", "cc", "rr"], &[OUTSIDE[0]], &[80, 0]),
    (&["aa", "cc"], &[OUTSIDE[1]], &[80]),
    (&["aa"], &C, &[80, 0]),
    (&["aa", "bb"], &GATEWAY, &[80, 0]),
];

/// What differs from Docker 20.10: a question, its answer and podwire's in each line.
fn different() -> Vec<String> {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/docker/packets.txt");
    let text = std::fs::read_to_string(file).unwrap_or_else(|error| panic!("{file}: {error}"));
    let lines = text
        .lines()
        .filter(|it| !it.starts_with('#') && !it.is_empty());
    lines.map(str::to_owned).collect()
}

/// A question, as a line: `bb: tcp 10.71.0.2 80`.
fn questions() -> Vec<(String, &'static str, &'static str, u16, &'static str)> {
    let mut all = Vec::new();
    for (from, to, ports) in QUESTIONS {
        for from in *from {
            for to in *to {
                for port in *ports {
                    let protocols: &[&str] = if *port == 0 {
                        &["icmp"]
                    } else {
                        &["tcp", "udp"]
                    };
                    for protocol in protocols {
                        let line = format!("{from}: {protocol} {to} {port}");
                        all.push((line, *from, *to, *port, *protocol));
                    }
                }
            }
        }
    }
    all
}

/// The node with its containers, and a machine outside.
struct Lab<E: Engine> {
    engine: E,
    outside: Netns,
    containers: Vec<(&'static str, Netns)>,
    servers: Vec<Running>,
}

impl<E: Engine> Lab<E> {
    fn new(engine: E) -> Self {
        let outside = engine.sandbox().outside();
        for line in SETUP {
            let done = engine.run(&line.split_whitespace().collect::<Vec<_>>());
            assert_eq!(done.code, 0, "{line}: {done:?}");
        }
        let names = ["aa", "bb", "cc", "ll", "mm", "qq", "rr"];
        let containers = names.map(|it| (it, engine.container(it))).to_vec();
        let mut lab = Self {
            engine,
            outside,
            containers,
            servers: Vec::new(),
        };
        for name in SERVERS {
            let at = lab.at(name);
            // Docker switches it off where the network has none; the servers listen on both.
            at.sh("echo 0 >/proc/sys/net/ipv6/conf/all/disable_ipv6");
            lab.servers.extend([80, 81].map(|port| at.serve(port)));
        }
        lab
    }

    fn at(&self, name: &str) -> Netns {
        match name {
            "host" => self.engine.host(),
            "outside" => self.outside.clone(),
            name => {
                let mut all = self.containers.iter();
                let found = all.find(|(known, _)| *known == name);
                found.map_or_else(|| panic!("no container {name}"), |(_, it)| it.clone())
            }
        }
    }

    /// Asks everything, some at a time; the names of those that answer.
    fn answers(&self) -> Vec<String> {
        let questions = questions();
        let mut answers = Vec::new();
        for some in questions.chunks(45) {
            thread::scope(|scope| {
                let ask = |(_, from, to, port, protocol): &(
                    String,
                    &str,
                    &'static str,
                    u16,
                    &'static str,
                )| {
                    let (from, to, port, protocol) = (self.at(from), *to, *port, *protocol);
                    scope.spawn(move || match protocol {
                        "icmp" => {
                            let done = from.run(&["ping", "-n", "-c", "1", "-W", "1", to]);
                            if done.code == 0 { "yes" } else { "no" }.to_owned()
                        }
                        _ => match from.ask(protocol, to, port) {
                            it if it == NO_ANSWER => "no".to_owned(),
                            it => it.split(' ').next().unwrap_or_default().to_owned(),
                        },
                    })
                };
                let asked: Vec<_> = some.iter().map(ask).collect();
                let heard = asked.into_iter().map(|it| it.join().expect("an answer"));
                answers.extend(heard);
            });
        }
        answers
    }
}

#[test]
fn the_same_packets_pass() {
    beyond_peer(WHY, || {
        let docker = Docker::start(&["--experimental", "--ip6tables"]);
        let (theirs, ours) = thread::scope(|scope| {
            let theirs = scope.spawn(|| Lab::new(docker).answers());
            let ours = Lab::new(Podwire::new()).answers();
            (theirs.join().expect("Docker's part"), ours)
        });
        let mut found = String::new();
        for ((question, docker), podwire) in questions().iter().zip(&theirs).zip(&ours) {
            if docker != podwire {
                let _ = writeln!(found, "{}: docker {docker}, podwire {podwire}", question.0);
            }
        }
        let found: Vec<_> = found.lines().collect();
        assert_eq!(found, different(), "{}", found.join("\n"));
    });
}
