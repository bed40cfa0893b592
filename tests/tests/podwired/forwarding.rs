//! Questions for other servers.

use sandbox::{Running, beyond_peer};
use serde_json::{Value, json};

use super::WHY;
use super::names_node::{Names, record};

/// A server in Perl that fails as its arguments say: it answers with a code, not at all, or first with
/// what is no answer to the question.
const FAILING: &str = r#"
use IO::Socket::INET;
my ($address, $mode) = @ARGV;
my $socket = IO::Socket::INET->new(Proto => "udp", LocalAddr => $address, LocalPort => 53) or die "$@";
$| = 1;
while (my $from = $socket->recv(my $query, 4096)) {
    print "asked\n";
    next if $mode eq "silent";
    my ($id, $rest) = unpack("n a*", substr($query, 0, 2) . substr($query, 12));
    my $answer = sub {
        my ($id, $code, $question, $records, $count) = @_;
        $socket->send(pack("n n n n n n", $id, 0x8180 | $code, 1, $count, 0, 0) . $question . $records);
    };
    my ($name) = $rest =~ /^((?:[\x01-\x3f].*?)*?\0)/s;
    my $end = 0;
    while (my $length = ord substr($rest, $end, 1)) { $end += $length + 1 }
    my $question = substr($rest, 0, $end + 5);
    my $record = "\xc0\x0c" . pack("n n N n C4", 1, 1, 60, 4, 203, 0, 113, 66);
    if ($mode eq "liar") {
        $answer->($id ^ 1, 0, $question, $record, 1);
        $answer->($id, 0, "\x04evil\0\0\x01\0\x01", $record, 1);
        my $other = IO::Socket::INET->new(Proto => "udp", LocalAddr => $address);
        $other->send(pack("n6", $id, 0x8180, 1, 1, 0, 0) . $question . $record, 0, $from);
        my $true = "\xc0\x0c" . pack("n n N n C4", 1, 1, 60, 4, 203, 0, 113, 5);
        $answer->($id, 0, $question, $true, 1);
    } else {
        $answer->($id, $mode, $question, "", 0);
    }
}
"#;

struct Outside {
    names: Names,
    network: Value,
}

impl Outside {
    fn new() -> Self {
        let names = Names::new();
        let host = names.node.host();
        names
            .node
            .sandbox
            .write(names.node.sandbox.dir().join("failing.pl"), FAILING);
        for number in 1..=5 {
            host.sh(&format!("ip address add 192.0.2.{number}/32 dev lo"));
        }
        let network = json!({"name": "web", "listen": ["10.1.0.1"], "subnets": ["10.1.0.0/24"]});
        names.bridge("br1", &["10.1.0.1/24"]);
        names.attach("a", "br1", &["10.1.0.2/24"]);
        names.write("web/a:eth0", &record(&network, "a", &["db"], &["10.1.0.2"]));
        Self { names, network }
    }

    /// A server that knows one name, and refuses others.
    fn good(&self, address: &str, name: &str, answer: &str) -> Running {
        let (listen, known) = (
            format!("--listen-address={address}"),
            format!("--address=/{name}/{answer}"),
        );
        let options = ["--bind-interfaces", "--log-queries", &listen, &known];
        let running = self.names.node.host().name_server(&options);
        // Another one may listen already.
        self.await_port(address);
        running
    }

    fn failing(&self, address: &str, mode: &str) -> Running {
        let script = self.names.node.sandbox.dir().join("failing.pl");
        let argv = ["perl", &script.display().to_string(), address, mode];
        let running = self.names.node.host().start(&argv);
        self.await_port(address);
        running
    }

    fn await_port(&self, address: &str) {
        let listening = format!("ss -Hlun src {address}:53 | grep -q .");
        self.names
            .node
            .host()
            .wait_until("the server listens", |host| {
                host.run(&["sh", "-c", &listening]).code == 0
            });
    }

    fn ask(&self, name: &str) -> String {
        self.names.dig("a", "10.1.0.1", &[name])
    }
}

#[track_caller]
fn assert_status(text: &str, status: &str) {
    assert!(text.contains(&format!("status: {status},")), "{text}");
}

#[test]
fn unknown_names_go_to_the_next_server_when_one_fails() {
    beyond_peer(WHY, || {
        let outside = Outside::new();
        let _good = outside.good("192.0.2.1", "www.example", "203.0.113.5");
        let _failing = [
            ("192.0.2.2", "2"),
            ("192.0.2.3", "5"),
            ("192.0.2.4", "silent"),
            ("192.0.2.5", "liar"),
        ]
        .map(|(address, mode)| outside.failing(address, mode));
        let _agent = outside.names.start();
        for servers in [
            &["2", "1"][..],
            &["3", "1"],
            &["4", "1"],
            &["2", "3", "1"],
            &["9", "1"],
            &["5"],
        ] {
            let lines = servers
                .iter()
                .map(|it| format!("nameserver 192.0.2.{it}\n"));
            outside.names.resolv_conf(&lines.collect::<String>());
            let text = outside.ask("www.example");
            assert!(
                text.contains("\tA\t203.0.113.5") && !text.contains("203.0.113.66"),
                "{servers:?}: {text}"
            );
        }
        // All fail: an answer nevertheless, and in time.
        for servers in [
            "nameserver 192.0.2.2\nnameserver 192.0.2.3\n",
            "nameserver 192.0.2.4\n",
            "",
        ] {
            outside.names.resolv_conf(servers);
            assert_status(&outside.ask("www.example"), "SERVFAIL");
        }
        // Over TCP as well.
        outside.names.resolv_conf("nameserver 192.0.2.1\n");
        let text = outside.names.dig("a", "10.1.0.1", &["www.example", "+tcp"]);
        assert!(text.contains("\tA\t203.0.113.5"), "{text}");
    });
}

#[test]
fn a_network_and_a_container_have_servers_of_their_own_and_some_names_stay() {
    beyond_peer(WHY, || {
        let outside = Outside::new();
        let node = outside.good("192.0.2.1", "www.example", "203.0.113.1");
        let _network = outside.good("192.0.2.2", "www.example", "203.0.113.2");
        let _container = outside.good("192.0.2.3", "www.example", "203.0.113.3");
        outside.names.resolv_conf("nameserver 192.0.2.1\n");
        let _agent = outside.names.start();
        let answer = || outside.names.short("a", "10.1.0.1", &["www.example"]);
        let write = |network: &Value, servers: &[&str]| {
            let mut record = record(network, "a", &["db"], &["10.1.0.2"]);
            record["servers"] = json!(servers);
            outside.names.write("web/a:eth0", &record);
            outside.names.read("web/a:eth0");
        };
        assert_eq!(answer(), "203.0.113.1");
        for name in ["nothing", "nothing.web", "77.0.1.10.in-addr.arpa"] {
            assert_status(&outside.ask(name), "NXDOMAIN");
            assert!(!node.output().contains(name), "{}", node.output());
        }
        // A network may be named as a top-level domain.
        let mut network = outside.network.clone();
        network["name"] = json!("example");
        network["internal"] = json!(true);
        write(&network, &[]);
        assert_eq!(
            outside.names.short("a", "10.1.0.1", &["db.example"]),
            "10.1.0.2"
        );
        assert_status(&outside.ask("www.test"), "NXDOMAIN");
        assert!(!node.output().contains("www.test"), "{}", node.output());
        let mut network = outside.network.clone();
        network["servers"] = json!(["192.0.2.2"]);
        write(&network, &[]);
        assert_eq!(answer(), "203.0.113.2");
        write(&network, &["192.0.2.3"]);
        assert_eq!(answer(), "203.0.113.3");
    });
}
