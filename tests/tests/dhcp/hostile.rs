//! Answers of a hostile server.

use sandbox::beyond_peer;

use crate::{WHY, Wire, address, eventually, lan, station, within};

/// Answers every DISCOVER and REQUEST with one bad message after the other.
const HOSTILE: &str = r#"
    use Socket;
    socket(my $s, AF_INET, SOCK_DGRAM, 17) or die; setsockopt($s, SOL_SOCKET, SO_BROADCAST, 1);
    setsockopt($s, SOL_SOCKET, SO_REUSEADDR, 1);
    bind($s, sockaddr_in(67, INADDR_ANY)) or die; $| = 1; print "serves\n";
    my $all = sockaddr_in(68, INADDR_BROADCAST);
    while (recv($s, my $m, 1500, 0)) {
        next if length($m) < 240;
        my $say = sub { my ($ip, $options, $xid, $mac) = @_;
            my $r = pack('C4', 2, 1, 6, 0) . ($xid // substr($m, 4, 4)) . pack('x8') . inet_aton($ip)
                . pack('x8') . ($mac // substr($m, 28, 6)) . pack('x202') . pack('C4', 99, 130, 83, 99) . $options;
            send($s, $r, 0, $all); };
        my $good = pack('C*', 54, 4, 10, 77, 0, 66, 1, 4, 255, 255, 0, 0, 51, 4, 0, 0, 0, 99);
        my $offer = pack('C*', 53, 1, 2) . $good;
        $say->('10.77.66.1', $offer);                                   # no end
        $say->('10.77.66.2', $offer . pack('C*', 3, 200, 1, 255));      # overlong
        $say->('127.0.0.1', $offer . "\xff");
        $say->('0.0.0.0', $offer . "\xff");
        $say->('10.77.255.255', $offer . "\xff");
        $say->('10.77.66.3', pack('C*', 53, 1, 2, 54, 4, 10, 77, 0, 66, 1, 4, 255, 255, 0, 0, 51, 4, 0, 0, 0, 0, 255));
        $say->('10.77.66.4', $offer . "\xff", 'abcd');                  # another's
        $say->('10.77.66.5', $offer . "\xff", undef, "\2\2\2\2\2\2");
        $say->('10.77.66.6', $offer . pack('C*', 121, 3, 33, 1, 2, 255));
        $say->('10.77.66.7', pack('C*', 53, 1, 5) . $good . "\xff");    # not requested
        $say->('0.0.0.0', pack('C*', 53, 1, 6, 54, 4, 10, 77, 0, 66, 255));
        send($s, substr($m, 0, 200), 0, $all);
        send($s, '', 0, $all);
    }"#;

#[test]
fn invalid_answers_are_ignored() {
    beyond_peer(WHY, || {
        let wire = Wire::new();
        let evil = station(&wire.sandbox, "evil", "10.77.0.66/16");
        evil.sh("ip route add default dev eth0");
        let _evil = Wire::perl(&evil, HOSTILE);
        // Long enough for the second of two lost requests: the honest server is to answer, too.
        let daemon = wire.daemon(&["-resendtimeout", "8s"]);
        let pod = wire.sandbox.pod("a");
        let error = wire.refused(&pod);
        assert_eq!(error.msg, "error calling DHCP.Allocate: no more tries");
        for line in [
            "the options are truncated",
            "a host cannot have the address 127.0.0.1",
            "the lease time is zero",
            "DHCP option 121 is malformed",
        ] {
            assert!(
                daemon.output().contains(line),
                "{line}: {}",
                daemon.output()
            );
        }
        // Beside a server that is honest, it does no harm.
        let _server = wire.dnsmasq(&[]);
        let result = wire.add(&pod);
        assert_eq!(pod.addresses("eth0"), [address(&result)]);
        assert!(!address(&result).starts_with("10.77.66."));
    });
}

/// Answers the first DISCOVER with twenty thousand offers, of which none is well-formed, and
/// as many that are not believed.
const FLOOD: &str = r#"
    use Socket;
    socket(my $s, AF_INET, SOCK_DGRAM, 17) or die; setsockopt($s, SOL_SOCKET, SO_BROADCAST, 1);
    bind($s, sockaddr_in(67, INADDR_ANY)) or die; $| = 1; print "serves\n";
    my $all = sockaddr_in(68, INADDR_BROADCAST);
    recv($s, my $m, 1500, 0);
    for my $n (1 .. 20000) {
        my $r = pack('C4', 2, 1, 6, 0) . substr($m, 4, 4) . pack('x8') . inet_aton('10.77.66.1')
            . pack('x8') . substr($m, 28, 6) . pack('x202') . pack('C*', 99, 130, 83, 99, 53, 1, 2);
        send($s, $r, 0, $all);
        send($s, $r, 0, $all);
        send($s, $r . pack('C*', 54, 4, 10, 77, 0, 66, 255), 0, $all);
    }
    print "done\n"; sleep 300;
"#;

#[test]
fn a_flood_of_bad_offers_neither_fills_the_log_nor_holds_up_others() {
    beyond_peer(WHY, || {
        let wire = Wire::new();
        let daemon = wire.daemon(&["-resendtimeout", "20s"]);
        wire.server.sh("ip route add default dev eth0");
        let flood = Wire::perl(&wire.server, FLOOD);
        let (one, two) = (wire.sandbox.pod("a"), wire.sandbox.pod("b"));
        std::thread::scope(|scope| {
            let first = scope.spawn(|| wire.add(&one));
            eventually(30, "the flood", || flood.output().contains("done"));
            wire.sandbox.cni("dhcp").status(&lan()).silent();
            drop(flood);
            let _server = wire.dnsmasq(&[]);
            wire.add(&two);
            first.join().expect("an address after the flood");
        });
        let left_out = |cause: &str| {
            let log = daemon.output();
            log.lines()
                .any(|line| line.ends_with(&format!("{cause} were left out of this log")))
        };
        assert!(
            within(15, || left_out("malformed answers")),
            "{}",
            daemon.output()
        );
        assert!(
            within(15, || left_out("unusable answers")),
            "{}",
            daemon.output()
        );
        let lines = daemon.output().lines().count();
        assert!(lines < 200, "{lines} lines");
    });
}
