//! Traffic: a machine outside, servers that report the source address they see, and clients.
//!
//! Servers and clients are perl, which Debian always has: one server for TCP and
//! UDP, IPv4 and IPv6, and clients that give up after four seconds.

use std::time::{Duration, Instant};

use crate::netns::{Netns, Running};
use crate::process::in_time;
use crate::sandbox::Sandbox;

/// The node's addresses on the wire to [`Sandbox::outside`].
pub const NODE: [&str; 2] = ["192.0.2.1", "2001:db8::1"];

/// The addresses of [`Sandbox::outside`].
pub const OUTSIDE: [&str; 2] = ["192.0.2.9", "2001:db8::9"];

/// What [`Netns::ask`] returns when there was no answer.
pub const NO_ANSWER: &str = "no answer";

/// Answers each line and each datagram with its name and the sender's address.
const SERVE: &str = r#"
    use strict; use IO::Socket::IP; use IO::Select;
    use Socket qw(getnameinfo NI_NUMERICHOST NI_NUMERICSERV);
    my ($name, $port) = @ARGV;
    my @at = (LocalHost => '::', LocalPort => $port, V6Only => 0, ReuseAddr => 1);
    my $tcp = IO::Socket::IP->new(@at, Proto => 'tcp', Listen => 64) or die "tcp: $@";
    my $udp = IO::Socket::IP->new(@at, Proto => 'udp') or die "udp: $@";
    my $all = IO::Select->new($tcp, $udp);
    sub sees {
        my (undef, $host) = getnameinfo($_[0], NI_NUMERICHOST | NI_NUMERICSERV);
        $host =~ s/^::ffff://;
        return "$name sees $host\n";
    }
    $SIG{PIPE} = 'IGNORE'; $| = 1; print "ready\n";
    while (my @ready = $all->can_read) {
        for my $it (@ready) {
            if ($it == $tcp) { my $client = $tcp->accept; $all->add($client) if $client; }
            elsif ($it == $udp) {
                my $from = recv($udp, my $line, 1500, 0);
                send($udp, sees($from), 0, $from) if $from;
            }
            elsif (sysread($it, my $line, 1500)) { syswrite($it, sees(getpeername($it))); }
            else { $all->remove($it); close $it; }
        }
    }"#;

/// Sends a line, a datagram more than once, and prints the answer to it. An IPv6 gateway that
/// was born this moment does not answer for a second, and TCP asks again after one and three.
const ASK: &str = r#"
    use strict; use IO::Socket::IP; use IO::Select;
    my ($protocol, $to, $port) = @ARGV;
    my $it = IO::Socket::IP->new(PeerHost => $to, PeerPort => $port, Proto => $protocol, Timeout => 3.5);
    print("no answer"), exit unless $it;
    my $answers = IO::Select->new($it);
    for (1 .. 12) {
        syswrite($it, "hello\n") if $_ == 1 || $protocol eq 'udp';
        next unless $answers->can_read(0.3);
        my $heard = sysread($it, my $line, 1500);
        print($line), exit if $heard;
        select(undef, undef, undef, 0.3) if $protocol eq 'udp';
    }
    print "no answer";"#;

/// Sends a line every 20 ms on one socket and prints what comes back.
const CONVERSE: &str = r#"
    use strict; use IO::Socket::IP; use IO::Select;
    my ($protocol, $to, $port) = @ARGV;
    my $it = IO::Socket::IP->new(PeerHost => $to, PeerPort => $port, Proto => $protocol, Timeout => 1.5) or die "connect: $@";
    $SIG{PIPE} = 'IGNORE'; $| = 1;
    my $answers = IO::Select->new($it);
    while (1) {
        syswrite($it, "hello\n");
        next unless $answers->can_read(0.02);
        my $heard = sysread($it, my $line, 1500);
        print $line if $heard;
        print("closed\n"), exit if defined $heard && $heard == 0 && $protocol eq 'tcp';
        select(undef, undef, undef, 0.02);
    }"#;

impl Sandbox {
    /// A namespace on a wire to the node, which has the addresses [`NODE`] there and
    /// [`OUTSIDE`] at the other end. It knows the way to pods (10.0.0.0/8, fd00::/8),
    /// so that what is not masqueraded is answered, too.
    pub fn outside(&self) -> Netns {
        let outside = self.pod("outside");
        let ([node, node6], [there, there6]) = (NODE, OUTSIDE);
        self.host().sh(&format!(
            "ip link add uplink type veth peer name eth0 netns outside
             ip addr add {node}/24 dev uplink
             ip addr add {node6}/64 dev uplink nodad
             echo 0 >/proc/sys/net/ipv6/conf/uplink/accept_dad
             ip link set uplink up"
        ));
        outside.sh(&format!(
            "ip link set lo up
             ip addr add {there}/24 dev eth0
             ip addr add {there6}/64 dev eth0 nodad
             echo 0 >/proc/sys/net/ipv6/conf/eth0/accept_dad
             ip link set eth0 up
             ip route add 10.0.0.0/8 via {node}
             ip route add fd00::/8 via {node6}"
        ));
        // Snapshots are to see nothing of a wire that settles.
        for (end, link) in [(&self.host(), "uplink"), (&outside, "eth0")] {
            let up = |end: &Netns| {
                let state = end.link(link).expect("the wire")["operstate"] == "UP";
                state
                    && end
                        .sh(&format!("ip -6 addr show dev {link}"))
                        .contains("fe80::")
            };
            end.wait_until("the wire is up", up);
        }
        outside
    }
}

impl Netns {
    /// Serves `port` on all addresses, by TCP and UDP, until the guard is dropped:
    /// answers `NAME sees ADDRESS`.
    pub fn serve(&self, port: u16) -> Running {
        let port = port.to_string();
        let server = self.start(&["perl", "-e", SERVE, self.name(), &port]);
        let deadline = Instant::now() + in_time(Duration::from_secs(5));
        while !server.output().contains("ready") {
            let output = server.output();
            assert!(Instant::now() < deadline, "no server on {port}: {output}");
            std::thread::sleep(Duration::from_millis(5));
        }
        server
    }

    /// What the server at an address and a port answers by `tcp` or `udp`; [`NO_ANSWER`]
    /// if none does within a few seconds.
    pub fn ask(&self, protocol: &str, to: &str, port: u16) -> String {
        let done = self.run(&["perl", "-e", ASK, protocol, to, &port.to_string()]);
        assert_eq!(done.code, 0, "ask {to}: {}", done.stderr);
        done.stdout.trim().to_owned()
    }

    /// A client that goes on talking on one socket until the guard is dropped; what it
    /// prints are the answers, a line each, and `closed` at the end of a connection.
    pub fn converse(&self, protocol: &str, to: &str, port: u16) -> Running {
        self.start(&["perl", "-e", CONVERSE, protocol, to, &port.to_string()])
    }
}
