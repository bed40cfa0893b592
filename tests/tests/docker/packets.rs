//! Which container reaches which, with Docker and with podwire: the packets of a container, of its neighbours, of
//! the node and of a machine outside.

use std::fmt::{self, Display, Formatter};
use std::thread;

use sandbox::{Docker, NO_ANSWER, NODE, Netns, OUTSIDE, Running, beyond_peer};

use crate::WHY;
use crate::node::{Engine, Podwire};

/// The commands that make the networks and the containers.
const SETUP: [&str; 19] = [
    "network create --ipv6 --subnet 10.71.0.0/24 --subnet fd71::/64 web",
    "network create --ipv6 --subnet 10.72.0.0/24 --subnet fd72::/64 other",
    "network create --internal --subnet 10.73.0.0/24 lab",
    "network create -o com.docker.network.bridge.enable_icc=false --subnet 10.74.0.0/24 quiet",
    "network create -o com.docker.network.bridge.enable_ip_masquerade=false --subnet 10.75.0.0/24 plain",
    "network create -d macvlan -o parent=uplink --ipv6 --subnet 192.0.2.0/24 --ip-range 192.0.2.64/26 \
      --gateway 192.0.2.9 --subnet 2001:db8::/64 --gateway 2001:db8::9 lan",
    "network create -d macvlan --internal -o parent=spare --subnet 10.77.0.0/24 deep",
    "run -d --rm --name aa --network web -p 8080:80 -p 8080:80/udp IMAGE sleep 1000",
    "run -d --rm --name bb --network web IMAGE sleep 1000",
    "run -d --rm --name cc --network other IMAGE sleep 1000",
    "run -d --rm --name ll --network lab IMAGE sleep 1000",
    "run -d --rm --name mm --network lab IMAGE sleep 1000",
    "run -d --rm --name qq --network quiet -p 8081:80 IMAGE sleep 1000",
    "run -d --rm --name rr --network quiet IMAGE sleep 1000",
    "run -d --rm --name pp --network plain -p 8082:80 IMAGE sleep 1000",
    "run -d --rm --name vv --network lan --ip 192.0.2.70 --ip6 2001:db8::70 IMAGE sleep 1000",
    "run -d --rm --name ww --network lan --ip6 2001:db8::71 IMAGE sleep 1000",
    "run -d --rm --name xx --network deep --ip 10.77.0.7 IMAGE sleep 1000",
    "run -d --rm --name yy --network deep IMAGE sleep 1000",
];

/// Where the servers are: on the ports 80 and 81.
const SERVERS: [&str; 9] = ["aa", "cc", "ll", "qq", "pp", "vv", "xx", "host", "outside"];

const A: [&str; 2] = ["10.71.0.2", "fd71::2"];
const C: [&str; 2] = ["10.72.0.2", "fd72::2"];
const GATEWAY: [&str; 2] = ["10.71.0.1", "fd71::1"];
const V: [&str; 2] = ["192.0.2.70", "2001:db8::70"];

/// From where, to which address of each family, and of which port. 0 stands for a ping.
type Questions = [(
    &'static [&'static str],
    &'static [&'static str],
    &'static [u16],
)];

const QUESTIONS: &Questions = &[
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
    // Without masquerade.
    (&["pp"], &[OUTSIDE[0]], &[80]),
    (&["outside"], &["10.75.0.2"], &[80, 81]),
    (&["outside"], &[NODE[0]], &[8082]),
    // macvlan: the segment of the node, but not the node; and a segment without a way out.
    (&["outside", "ww", "aa", "host"], &V, &[80, 0]),
    (&["vv"], &OUTSIDE, &[80]),
    (&["vv"], &[NODE[0], A[0]], &[80]),
    (&["yy", "host", "outside"], &["10.77.0.7"], &[80, 0]),
    (&["yy"], &OUTSIDE, &[80]),
];

/// Those that are repeated while bridged packets do not pass the rules of IP.
const AGAIN: &Questions = &[
    (&["outside"], &A, &[80, 81]),
    (&["outside", "bb", "cc"], &NODE, &[8080]),
    (&["rr"], &["10.74.0.2"], &[80, 0]),
    (&["aa", "cc", "rr"], &[OUTSIDE[0]], &[80, 0]),
    (&["aa"], &[OUTSIDE[1]], &[80]),
    (&["aa"], &[C[0]], &[80]),
    (&["bb"], &A, &[81]),
    (&["mm"], &["10.73.0.2"], &[80]),
    (&["ll"], &[OUTSIDE[0]], &[80]),
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

/// A question.
#[derive(Clone, Copy)]
struct Question {
    from: &'static str,
    to: &'static str,
    port: u16,
    /// `tcp`, `udp` or `icmp`.
    protocol: &'static str,
}

/// As a line: `bb: tcp 10.71.0.2 80`.
impl Display for Question {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let (from, protocol, to, port) = (self.from, self.protocol, self.to, self.port);
        write!(f, "{from}: {protocol} {to} {port}")
    }
}

impl Question {
    /// The name of the one that answers; of the machine outside also the address that it sees.
    fn ask(self, from: &Netns) -> String {
        let (to, port) = (self.to, self.port);
        match self.protocol {
            "icmp" => {
                let done = from.run(&["ping", "-n", "-c", "1", "-W", "1", to]);
                if done.code == 0 { "yes" } else { "no" }.to_owned()
            }
            protocol => match from.ask(protocol, to, port) {
                it if it == NO_ANSWER => "no".to_owned(),
                it if OUTSIDE.contains(&to) => it,
                it => it.split(' ').next().unwrap_or_default().to_owned(),
            },
        }
    }
}

/// Each of the questions, with both protocols.
fn each(questions: &Questions) -> Vec<Question> {
    let mut all = Vec::new();
    for (askers, addresses, ports) in questions {
        for from in *askers {
            for to in *addresses {
                for port in *ports {
                    let protocols: &[&str] = if *port == 0 {
                        &["icmp"]
                    } else {
                        &["tcp", "udp"]
                    };
                    all.extend(protocols.iter().map(|protocol| Question {
                        from,
                        to,
                        port: *port,
                        protocol,
                    }));
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
        // Docker drops what no rule lets through, too.
        engine
            .host()
            .sh("iptables -P FORWARD DROP; ip6tables -P FORWARD DROP
             ip link add spare type veth peer name there
             ip link set spare up; ip link set there up");
        for line in SETUP {
            let done = engine.run(&line.split_whitespace().collect::<Vec<_>>());
            assert_eq!(done.code, 0, "{line}: {done:?}");
        }
        let names = [
            "aa", "bb", "cc", "ll", "mm", "qq", "rr", "pp", "vv", "ww", "xx", "yy",
        ];
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

    /// Answers to the questions, some at a time.
    fn ask(&self, questions: &Questions) -> Vec<String> {
        let mut answers = Vec::new();
        for some in each(questions).chunks(100) {
            thread::scope(|scope| {
                let ask = |it: &Question| {
                    let (question, from) = (*it, self.at(it.from));
                    scope.spawn(move || question.ask(&from))
                };
                let sent: Vec<_> = some.iter().map(ask).collect();
                let heard = sent.into_iter().map(|it| it.join().expect("an answer"));
                answers.extend(heard);
            });
        }
        answers
    }

    /// All answers.
    fn answers(&self) -> Vec<String> {
        let mut answers = self.ask(QUESTIONS);
        let bridged =
            "for it in /proc/sys/net/bridge/bridge-nf-call-ip*tables; do echo 0 >$it; done";
        self.engine.host().sh(bridged);
        answers.extend(self.ask(AGAIN));
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
        let questions = each(QUESTIONS).into_iter().map(|it| it.to_string());
        let again = each(AGAIN).into_iter().map(|it| format!("again {it}"));
        let mut found = Vec::new();
        for ((question, docker), podwire) in questions.chain(again).zip(&theirs).zip(&ours) {
            if docker != podwire {
                found.push(format!("{question}: docker {docker}, podwire {podwire}"));
            }
        }
        assert_eq!(found, different(), "{}", found.join("\n"));
    });
}
