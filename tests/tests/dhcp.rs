//! dhcp: leases of real servers (dnsmasq, kea) on a wire that the node's bridge is.
//!
//! dnsmasq grants nothing shorter than two minutes, so what has to be seen to be renewed or to
//! expire is granted by kea, which counts in seconds.

use std::time::{Duration, Instant};

use sandbox::{Failure, Netns, Running, Sandbox, Suite, beyond_peer, conf};
use serde_json::{Value, json};

const SOCKET: &str = "/run/cni/dhcp.sock";
const STATE: &str = "/var/lib/cni/dhcp/run-cni-dhcp.sock";
const WHY: &str = "the Go daemon forgets leases, and its plugin has no verdict on it";

/// A wire, `lan`, which is a bridge of the node, and a server's place on it.
struct Wire {
    sandbox: Sandbox,
    server: Netns,
}

impl Wire {
    fn new() -> Self {
        let sandbox = Sandbox::new();
        sandbox.host().sh("ip link add lan type bridge
             ip link set lan up");
        let server = station(&sandbox, "server", "10.77.0.1/16");
        Self { sandbox, server }
    }

    fn host(&self) -> Netns {
        self.sandbox.host()
    }

    /// Our daemon, with these flags.
    fn daemon(&self, flags: &[&str]) -> Running {
        self.daemon_of(Suite::Ours, flags)
    }

    fn daemon_of(&self, suite: Suite, flags: &[&str]) -> Running {
        self.sandbox.dhcp_daemon(suite, flags)
    }

    /// ADD of a pod to the bridge `lan`.
    #[track_caller]
    fn add(&self, pod: &Netns) -> Value {
        let cni = self.sandbox.cni("bridge");
        cni.add(&lan(), pod, "eth0").result()
    }

    /// The same, which fails.
    #[track_caller]
    fn refused(&self, pod: &Netns) -> Failure {
        let cni = self.sandbox.cni("bridge");
        cni.add(&lan(), pod, "eth0").error()
    }

    #[track_caller]
    fn check(&self, pod: &Netns, result: &Value) {
        let conf = conf::with_prev(&lan(), result);
        let cni = self.sandbox.cni("bridge");
        cni.check(&conf, pod, "eth0").silent();
    }

    #[track_caller]
    fn del(&self, pod: &Netns) {
        let cni = self.sandbox.cni("bridge");
        cni.del(&lan(), pod, "eth0").silent();
    }

    /// GC of a network of which these attachments are in use.
    #[track_caller]
    fn gc(&self, conf: &Value, valid: &[(&str, &str)]) {
        let cni = self.sandbox.cni("dhcp");
        cni.gc(&conf::with_valid(conf, valid)).silent();
    }

    /// A server whose program is perl, once it says that it serves.
    fn perl(at: &Netns, program: &str) -> Running {
        let server = at.start(&["perl", "-e", program]);
        eventually(5, "it serves", || server.output().contains("serves"));
        server
    }

    /// A pod whose `eth0` is on the wire without the plugin bridge: what is asked is dhcp alone.
    fn wired_by_hand(&self, name: &str) -> Netns {
        let pod = self.sandbox.pod(name);
        self.host().sh(&format!(
            "ip link add w-{name} type veth peer name eth0 netns {name}
             ip link set w-{name} master lan up"
        ));
        pod.sh("ip link set eth0 up");
        pod
    }

    fn dnsmasq(&self, options: &[&str]) -> Running {
        dnsmasq(
            &self.server,
            "10.77.0.10,10.77.3.250,255.255.0.0,2m",
            options,
        )
    }

    /// kea with leases of so many seconds, T1 and T2, from this pool.
    fn kea(&self, times: [u32; 3], pool: &str, more: Value) -> Running {
        let [renew, rebind, lease] = times;
        let mut subnet = json!({
            "subnet": "10.77.0.0/16",
            "pools": [{"pool": pool}],
            "option-data": [{"name": "routers", "data": "10.77.0.1"}],
        });
        for (key, value) in more.as_object().into_iter().flatten() {
            subnet[key] = value.clone();
        }
        let conf = json!({"Dhcp4": {
            "interfaces-config": {"interfaces": ["eth0"]},
            "lease-database": {"type": "memfile", "persist": true, "name": self.file("kea.leases")},
            "valid-lifetime": lease, "renew-timer": renew, "rebind-timer": rebind,
            "authoritative": true, "match-client-id": true,
            "loggers": [{"name": "kea-dhcp4", "severity": "INFO", "output_options": [{"output": "stdout"}]}],
            "subnet4": [subnet],
        }});
        let path = self.file("kea.json");
        self.sandbox.write(&path, conf.to_string());
        let command = format!(
            "mkdir -p /run/kea; rm -f /run/kea/*
             export KEA_LOCKFILE_DIR={dir} KEA_PIDFILE_DIR={dir} KEA_LOGGER_DESTINATION=stdout
             exec kea-dhcp4 -c {path}",
            dir = self.sandbox.dir().display()
        );
        let running = self.server.start(&["sh", "-c", &command]);
        eventually(10, "kea serves", || {
            running.output().contains("DHCP4_STARTED")
        });
        running
    }

    fn file(&self, name: &str) -> String {
        self.sandbox.dir().join(name).display().to_string()
    }

    /// Log of a server, or of a daemon, that contains `text` within ten seconds.
    #[track_caller]
    fn told(running: &Running, text: &str) {
        let told = || running.output().contains(text);
        if !within(10, told) {
            panic!("not told: {text}: {}", running.output());
        }
    }
}

/// A namespace on the wire.
fn station(sandbox: &Sandbox, name: &str, address: &str) -> Netns {
    let station = sandbox.pod(name);
    sandbox.host().sh(&format!(
        "ip link add w-{name} type veth peer name eth0 netns {name}
         ip link set w-{name} master lan up"
    ));
    station.sh(&format!(
        "ip link set lo up; ip addr add {address} dev eth0; ip link set eth0 up"
    ));
    // Snapshots are not to see what settles by itself.
    let end = format!("w-{name}");
    sandbox
        .host()
        .wait_until("the wire is up", |host| host.is_settled(&end));
    station.wait_until("the wire is up", |it| it.is_settled("eth0"));
    station
}

fn listens(host: &Netns, pid: u32) -> bool {
    host.sh("ss -Hlxp").contains(&format!("pid={pid},"))
}

fn dnsmasq(server: &Netns, range: &str, options: &[&str]) -> Running {
    let running = server.dnsmasq(range, &[&["--dhcp-lease-max=4000"], options].concat());
    eventually(5, "dnsmasq serves", || {
        running.output().contains("IP range")
    });
    running
}

fn within(seconds: u64, condition: impl Fn() -> bool) -> bool {
    let deadline = Instant::now() + Duration::from_secs(seconds);
    while !condition() {
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    true
}

#[track_caller]
fn eventually(seconds: u64, what: &str, condition: impl Fn() -> bool) {
    assert!(within(seconds, condition), "never came true: {what}");
}

/// bridge `lan` with dhcp.
fn lan() -> Value {
    let mut conf = conf::plugin("bridge");
    conf["bridge"] = "lan".into();
    conf["ipam"] = json!({"type": "dhcp"});
    conf
}

fn address(result: &Value) -> String {
    result["ips"][0]["address"]
        .as_str()
        .expect("an address")
        .to_owned()
}

fn bare(cidr: &str) -> &str {
    cidr.split('/').next().unwrap_or_default()
}

/// What dnsmasq says of a release; its hardware address comes after the blank, without
/// which 10.77.1.2 would be found in 10.77.1.23.
fn release_of(cidr: &str) -> String {
    format!("DHCPRELEASE(eth0) {} ", bare(cidr))
}

fn gateway(pod: &Netns) -> String {
    let routes = pod.routes_to("-4", "default");
    routes
        .first()
        .and_then(|route| route["gateway"].as_str())
        .unwrap_or_default()
        .to_owned()
}

#[test]
fn an_address_is_got_used_and_given_back() {
    beyond_peer(WHY, || {
        let wire = Wire::new();
        let server = wire.dnsmasq(&["--domain=example.org", "--dhcp-option=6,10.77.0.53"]);
        let daemon = wire.daemon(&[]);
        let (sandbox, pod) = (&wire.sandbox, wire.sandbox.pod("a"));
        let seen = wire.server.start(&[
            "tcpdump",
            "-l",
            "--immediate-mode",
            "-nvvv",
            "-i",
            "eth0",
            "udp port 67",
        ]);
        eventually(5, "tcpdump listens", || {
            seen.output().contains("listening on")
        });
        let snapshot = sandbox.snapshot().allow_link("lan");

        let result = wire.add(&pod);
        let ours = address(&result);
        assert!(
            ours.starts_with("10.77.") && ours.ends_with("/16"),
            "{ours}"
        );
        assert_eq!(pod.addresses("eth0")[..], std::slice::from_ref(&ours)[..]);
        assert_eq!(gateway(&pod), "10.77.0.1");
        assert_eq!(pod.ping("10.77.0.1", 1), [true]);
        let dns = json!({"nameservers": ["10.77.0.53"], "domain": "example.org"});
        assert_eq!(result["dns"], dns);
        let files = wire.host().sh(&format!("stat -c %a {STATE}/*"));
        assert_eq!(files.trim(), "600");

        wire.check(&pod, &result);
        wire.del(&pod);
        wire.del(&pod);
        Wire::told(&server, &release_of(&ours));
        assert!(
            !server.output().contains("unknown lease"),
            "{}",
            server.output()
        );
        snapshot.assert_unchanged();
        assert!(sandbox.list(STATE).is_empty());
        drop(daemon);

        // From the pod's address to the server's, with both in the message (RFC 2131, table 5).
        eventually(5, "the release is seen", || {
            seen.output().contains("Release")
        });
        let wire = seen.output();
        let release = &wire[..wire.find("Release").unwrap_or_default()];
        let release = &release[release
            .rfind("\n1")
            .or(release.rfind("IP ("))
            .unwrap_or_default()..];
        assert!(
            release.contains(&format!("{}.68 > 10.77.0.1.67", bare(&ours))),
            "{release}"
        );
        assert!(
            release.contains(&format!("Client-IP {}", bare(&ours))),
            "{release}"
        );
        assert!(
            wire.contains("Client-ID (61), length 20: ether") || wire.contains("id-a/testnet/eth0"),
            "{wire}"
        );
    });
}

#[test]
fn what_the_server_knows_reaches_the_pod_and_the_server_what_is_provided() {
    beyond_peer(WHY, || {
        let wire = Wire::new();
        let server = wire.dnsmasq(&[
            "--dhcp-option=121,0.0.0.0/0,10.77.0.1,10.9.0.0/16,10.77.0.2",
            "--dhcp-option=26,1400",
            "--dhcp-option=119,a.example,b.example",
        ]);
        let _daemon = wire.daemon(&[]);
        let pod = wire.sandbox.pod("a");
        let conf = conf::with(
            &lan(),
            json!({"ipam": {
                "priority": 77,
                "provide": [{"option": "host-name", "fromArg": "K8S_POD_NAME"},
                            {"option": "vendor-class-identifier", "value": "podwire"}],
            }}),
        );
        let args = "IgnoreUnknown=1;K8S_POD_NAME=web-0";
        let cni = wire.sandbox.cni("bridge").args(args);
        let result = cni.add(&conf, &pod, "eth0").result();
        let route =
            |dst: &str, gw: &str| json!({"dst": dst, "gw": gw, "mtu": 1400, "priority": 77});
        assert_eq!(
            result["routes"],
            json!([
                route("0.0.0.0/0", "10.77.0.1"),
                route("10.9.0.0/16", "10.77.0.2")
            ])
        );
        assert_eq!(result["dns"]["search"], json!(["a.example", "b.example"]));
        let route = &pod.routes_to("-4", "10.9.0.0/16")[0];
        assert_eq!(
            (&route["gateway"], &route["metric"]),
            (&json!("10.77.0.2"), &json!(77))
        );
        Wire::told(&server, "client provides name: web-0");
        Wire::told(&server, "vendor class: podwire");
    });
}

#[test]
fn a_lease_is_renewed_and_a_change_of_routes_reaches_the_pod() {
    beyond_peer(WHY, || {
        let wire = Wire::new();
        let pool = "10.77.0.10-10.77.0.99";
        let server = wire.kea([1, 10, 120], pool, json!({}));
        let daemon = wire.daemon(&[]);
        let pod = wire.sandbox.pod("a");
        let result = wire.add(&pod);
        assert_eq!(gateway(&pod), "10.77.0.1");
        Wire::told(&daemon, "lease renewed");
        drop(server);

        let routes = json!({"option-data": [{"name": "routers", "data": "10.77.0.2"}]});
        let server = wire.kea([1, 10, 120], pool, routes);
        eventually(20, "the new router", || gateway(&pod) == "10.77.0.2");
        assert_eq!(pod.routes_to("-4", "default").len(), 1);
        assert_eq!(pod.addresses("eth0"), [address(&result)]);
        wire.del(&pod);
        Wire::told(&server, "DHCP4_RELEASE");
    });
}

#[test]
fn the_configuration_leaves_out_the_router_and_has_its_own_routes_and_dns() {
    beyond_peer("the Go plugin has no such keys", || {
        let wire = Wire::new();
        let pool = "10.77.0.10-10.77.0.99";
        let domain = json!({"name": "domain-name", "data": "lan.example"});
        let options = |router: &str| {
            let servers = json!({"name": "domain-name-servers", "data": "10.77.0.53"});
            let router = json!({"name": "routers", "data": router});
            json!({"option-data": [router, servers, domain]})
        };
        let server = wire.kea([1, 10, 120], pool, options("10.77.0.1"));
        let daemon = wire.daemon(&[]);
        let (pod, other) = (wire.sandbox.pod("a"), wire.sandbox.pod("b"));
        let own = json!({"dst": "10.99.0.0/16", "gw": "10.77.0.9"});
        let conf = conf::with(
            &lan(),
            json!({"ipam": {
                "suppress": ["router"], "routes": [own],
                "dns": {"nameservers": ["9.9.9.9"], "options": ["ndots:2"]},
            }}),
        );
        let bridge = || wire.sandbox.cni("bridge");
        let result = bridge().add(&conf, &pod, "eth0").result();
        assert_eq!(result["ips"][0].get("gateway"), None);
        assert_eq!(result["routes"], json!([own]));
        assert_eq!(
            result["dns"],
            json!({"nameservers": ["9.9.9.9"], "domain": "lan.example", "options": ["ndots:2"]})
        );
        // One who wants all of it, and a default route of its own.
        let default = json!({"dst": "0.0.0.0/0", "gw": "10.77.0.8"});
        let with_default = conf::with(&lan(), json!({"ipam": {"routes": [default]}}));
        bridge().add(&with_default, &other, "eth0").result();
        assert_eq!(gateway(&other), "10.77.0.8");
        bridge()
            .check(&conf::with_prev(&conf, &result), &pod, "eth0")
            .silent();
        // Neither a renewal nor a restart of the daemon, nor other routes, change that.
        drop((server, daemon));
        let _server = wire.kea([1, 10, 120], pool, options("10.77.0.2"));
        let daemon = wire.daemon(&[]);
        for id in ["id-a", "id-b"] {
            Wire::told(&daemon, &format!("{id}/testnet/eth0: lease renewed"));
        }
        assert!(pod.routes_to("-4", "default").is_empty());
        assert_eq!(pod.routes_to("-4", "10.99.0.0/16").len(), 1);
        assert_eq!(gateway(&other), "10.77.0.8");
        assert_eq!(other.routes_to("-4", "default").len(), 1);
        let bad = conf::with(&lan(), json!({"ipam": {"suppress": ["subnet-mask"]}}));
        let error = wire.sandbox.cni("dhcp").add(&bad, &pod, "eth1").error();
        assert_eq!(error.code, 7, "{}", error.msg);
    });
}

#[test]
fn classless_routes_of_windows_are_taken_where_there_are_no_others() {
    beyond_peer(WHY, || {
        let wire = Wire::new();
        let windows = "--dhcp-option=249,10:0a:58:0a:4d:00:05";
        let server = wire.dnsmasq(&[windows]);
        let _daemon = wire.daemon(&[]);
        let (one, two) = (wire.sandbox.pod("a"), wire.sandbox.pod("b"));
        let route = |via: &str| json!({"dst": "10.88.0.0/16", "gw": via});
        assert_eq!(wire.add(&one)["routes"], json!([route("10.77.0.5")]));
        drop(server);
        let _server = wire.dnsmasq(&[windows, "--dhcp-option=121,10.88.0.0/16,10.77.0.6"]);
        assert_eq!(wire.add(&two)["routes"], json!([route("10.77.0.6")]));
    });
}

#[test]
fn a_server_that_refuses_a_renewal_moves_the_pod_to_another_address() {
    beyond_peer(WHY, || {
        let wire = Wire::new();
        let server = wire.kea([1, 4, 60], "10.77.0.10-10.77.0.19", json!({}));
        let daemon = wire.daemon(&[]);
        let pod = wire.sandbox.pod("a");
        wire.add(&pod);
        drop(server);
        let range = "10.77.9.10,10.77.9.19,255.255.128.0,2m";
        let server = dnsmasq(&wire.server, range, &["--dhcp-authoritative"]);
        let refused = || daemon.output().contains("the server refuses the address");
        assert!(within(20, refused), "{}", server.output());
        eventually(15, "the new address", || {
            let all = pod.addresses("eth0");
            all.len() == 1 && all[0].starts_with("10.77.9.") && all[0].ends_with("/17")
        });
        eventually(5, "the way out", || gateway(&pod) == "10.77.0.1");
        assert_eq!(pod.ping("10.77.0.1", 1), [true]);
    });
}

/// Grants 10.77.0.50, and whoever renews it is moved: to another address, mask and router.
const MOVING: &str = r#"
    use Socket;
    socket(my $s, AF_INET, SOCK_DGRAM, 17) or die; setsockopt($s, SOL_SOCKET, SO_BROADCAST, 1);
    bind($s, sockaddr_in(67, INADDR_ANY)) or die; $| = 1; print "serves\n";
    while (recv($s, my $m, 1500, 0)) {
        my $kind = unpack('C', substr($m, 242, 1));
        next unless $kind == 1 || $kind == 3;
        my $renews = substr($m, 12, 4) ne "\0\0\0\0";
        my @terms = $renews ? (10, 77, 0, 60, 128, 2) : (10, 77, 0, 50, 0, 1);
        my $r = pack('C4', 2, 1, 6, 0) . substr($m, 4, 4) . pack('x8') . pack('C4', @terms[0..3])
            . pack('x8') . substr($m, 28, 6) . pack('x202') . pack('C4', 99, 130, 83, 99)
            . pack('C*', 53, 1, $kind == 1 ? 2 : 5, 54, 4, 10, 77, 0, 1, 1, 4, 255, 255, $terms[4], 0,
                51, 4, 0, 0, 0, 99, 58, 4, 0, 0, 0, $renews ? 90 : 1, 3, 4, 10, 77, 0, $terms[5], 255);
        send($s, $r, 0, sockaddr_in(68, INADDR_BROADCAST));
    }"#;

#[test]
fn a_renewal_that_moves_the_pod_leaves_what_others_have_put_there() {
    beyond_peer(WHY, || {
        let wire = Wire::new();
        wire.server.sh("ip route add default dev eth0");
        let _server = Wire::perl(&wire.server, MOVING);
        let _daemon = wire.daemon(&[]);
        let pod = wire.sandbox.pod("a");
        let result = wire.add(&pod);
        assert_eq!(address(&result), "10.77.0.50/16");
        pod.sh("ip route add 10.123.0.0/16 via 10.77.0.7");
        eventually(10, "moved", || pod.addresses("eth0") == ["10.77.0.60/17"]);
        eventually(5, "its router", || gateway(&pod) == "10.77.0.2");
        assert_eq!(pod.routes_to("-4", "default").len(), 1);
        assert_eq!(pod.routes_to("-4", "10.123.0.0/16").len(), 1);
        assert_eq!(pod.ping("10.77.0.1", 1), [true]);
        // CHECK knows that the result of ADD is old.
        let checked = conf::with_prev(&lan(), &result);
        let error = wire
            .sandbox
            .cni("dhcp")
            .check(&checked, &pod, "eth0")
            .error();
        assert!(error.msg.contains("10.77.0.60/17 by now"), "{}", error.msg);
    });
}

#[test]
fn any_server_may_take_over_the_lease_of_one_that_is_gone() {
    beyond_peer(WHY, || {
        let wire = Wire::new();
        let first = wire.kea([2, 4, 60], "10.77.0.10-10.77.0.19", json!({}));
        let daemon = wire.daemon(&[]);
        let pod = wire.sandbox.pod("a");
        let result = wire.add(&pod);
        drop(first);
        let second = station(&wire.sandbox, "second", "10.77.0.2/16");
        let range = "10.77.0.10,10.77.0.19,255.255.0.0,2m";
        let second = dnsmasq(&second, range, &["--dhcp-authoritative"]);
        Wire::told(
            &second,
            &format!("DHCPACK(eth0) {}", bare(&address(&result))),
        );
        Wire::told(&daemon, "from 10.77.0.2 for 120 s");
        assert_eq!(pod.addresses("eth0"), [address(&result)]);
        eventually(5, "its router", || gateway(&pod) == "10.77.0.2");
        wire.del(&pod);
        Wire::told(&second, "DHCPRELEASE");
    });
}

#[test]
fn a_lease_that_expires_is_taken_from_the_pod_and_sought_again() {
    beyond_peer(WHY, || {
        let wire = Wire::new();
        let pool = "10.77.0.10-10.77.0.19";
        let server = wire.kea([1, 2, 4], pool, json!({}));
        let daemon = wire.daemon(&[]);
        let pod = wire.sandbox.pod("a");
        let result = wire.add(&pod);
        drop(server);
        eventually(10, "the address is gone", || {
            pod.addresses("eth0").is_empty()
        });
        assert!(daemon.output().contains("the lease has expired"));
        assert_eq!(pod.link("eth0").expect("the link")["operstate"], "UP");
        let failure =
            wire.sandbox
                .cni("dhcp")
                .check(&conf::with_prev(&lan(), &result), &pod, "eth0");
        assert!(failure.error().msg.contains("no lease is held"));
        let _server = wire.kea([1, 2, 4], pool, json!({}));
        eventually(20, "an address again", || {
            pod.addresses("eth0").len() == 1 && gateway(&pod) == "10.77.0.1"
        });
    });
}

#[test]
fn a_server_that_comes_back_in_time_is_as_if_it_had_not_been_gone() {
    let wire = Wire::new();
    let pool = "10.77.0.10-10.77.0.19";
    let server = wire.kea([1, 30, 60], pool, json!({}));
    let daemon = wire.daemon(&[]);
    let pod = wire.sandbox.pod("a");
    let result = wire.add(&pod);
    drop(server);
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(pod.addresses("eth0"), [address(&result)]);
    let before = daemon.output().matches("lease renewed").count();
    let _server = wire.kea([1, 30, 60], pool, json!({}));
    eventually(30, "renewed", || {
        daemon.output().matches("lease renewed").count() > before
    });
    assert_eq!(pod.addresses("eth0"), [address(&result)]);
}

#[test]
fn a_daemon_that_was_killed_goes_on_where_it_was() {
    beyond_peer(WHY, || {
        let wire = Wire::new();
        let server = wire.dnsmasq(&[]);
        let daemon = wire.daemon(&[]);
        let pods: Vec<_> = (0..5).map(|n| wire.sandbox.pod(&format!("p{n}"))).collect();
        let add = |pod| wire.add(pod);
        let results: Vec<_> = pods.iter().map(add).collect();
        // Kills it: the socket file stays, and is taken over.
        drop(daemon);
        assert_eq!(wire.sandbox.list("/run/cni"), ["dhcp.sock"]);
        let before = server.output().matches("DHCPACK").count();
        let daemon = wire.daemon(&[]);
        eventually(10, "asked for again", || {
            server.output().matches("DHCPACK").count() >= before + 5
        });
        assert!(daemon.output().contains("restored 5 leases"));
        for (pod, result) in pods.iter().zip(&results) {
            assert_eq!(pod.addresses("eth0"), [address(result)]);
            wire.check(pod, result);
            wire.del(pod);
            Wire::told(&server, &release_of(&address(result)));
        }
        assert!(wire.sandbox.list(STATE).is_empty());
    });
}

#[test]
fn a_pod_that_is_made_anew_gets_the_address_that_it_had() {
    beyond_peer(WHY, || {
        let wire = Wire::new();
        let _server = wire.dnsmasq(&[]);
        let daemon = wire.daemon(&[]);
        let pod = wire.sandbox.pod("a");
        let first = wire.add(&pod);
        // The node goes down: namespaces and daemon are gone, the disk is not.
        drop(daemon);
        wire.sandbox.remove_pod(&pod);
        wire.host().sh("rm -rf /run/cni");
        let daemon = wire.daemon(&[]);
        Wire::told(&daemon, "the pod's interface is gone");
        let pod = wire.sandbox.pod("a");
        let second = wire.add(&pod);
        assert_eq!(address(&first), address(&second));
        assert_eq!(pod.addresses("eth0"), [address(&second)]);
    });
}

#[test]
fn without_a_server_add_fails_in_time_and_leaves_nothing() {
    beyond_peer(WHY, || {
        let wire = Wire::new();
        let _daemon = wire.daemon(&["-resendtimeout", "3s"]);
        let pod = wire.sandbox.pod("a");
        let snapshot = wire.sandbox.snapshot().allow_link("lan");
        let outcome = wire.sandbox.cni("bridge").add(&lan(), &pod, "eth0");
        assert!(
            outcome.elapsed() < Duration::from_secs(6),
            "{:?}",
            outcome.elapsed()
        );
        let error = outcome.error();
        assert_eq!(
            (error.code, error.msg.as_str()),
            (11, "error calling DHCP.Allocate: no more tries")
        );
        snapshot.assert_unchanged();
    });
}

#[test]
fn without_a_daemon_add_says_so_del_succeeds_and_status_is_50() {
    beyond_peer(WHY, || {
        let wire = Wire::new();
        let pod = wire.sandbox.pod("a");
        let snapshot = wire.sandbox.snapshot().allow_link("lan");
        let text = format!(
            "error dialing DHCP daemon: dial unix {SOCKET}: connect: no such file or directory"
        );
        let error = wire.refused(&pod);
        assert_eq!((error.code, &error.msg), (11, &text));
        wire.del(&pod);
        wire.sandbox.cni("dhcp").del(&lan(), &pod, "eth0").silent();
        wire.sandbox
            .cni("dhcp")
            .netns("")
            .del(&lan(), &pod, "eth0")
            .silent();
        let error = wire.sandbox.cni("bridge").status(&lan()).error();
        assert_eq!((error.code, &error.msg), (50, &text));
        let error = wire.sandbox.cni("dhcp").check(&lan(), &pod, "eth0").error();
        assert_eq!(error.msg, text);
        wire.gc(&lan(), &[]);
        snapshot.assert_unchanged();
    });
}

#[test]
fn a_daemon_that_dies_while_an_address_is_sought_fails_the_add() {
    beyond_peer(WHY, || {
        let wire = Wire::new();
        let daemon = wire.daemon(&[]);
        let pod = wire.sandbox.pod("a");
        let snapshot = wire.sandbox.snapshot().allow_link("lan").allow("dhcp");
        let error = std::thread::scope(|scope| {
            scope.spawn(|| {
                Wire::told(&daemon, "acquiring lease");
                wire.host().sh(&format!("kill -9 {}", daemon.id()));
            });
            wire.refused(&pod)
        });
        assert_eq!(error.code, 11);
        assert!(error.msg.contains("unexpected EOF"), "{}", error.msg);
        snapshot.assert_unchanged();
    });
}

#[test]
fn del_without_a_daemon_gives_the_lease_back_itself() {
    beyond_peer(WHY, || {
        let wire = Wire::new();
        let server = wire.dnsmasq(&[]);
        let daemon = wire.daemon(&[]);
        let (one, two) = (wire.sandbox.pod("a"), wire.sandbox.pod("b"));
        let add = |pod| address(&wire.add(pod));
        let (first, second) = (add(&one), add(&two));
        drop(daemon);
        wire.del(&one);
        Wire::told(&server, &release_of(&first));
        assert_eq!(wire.sandbox.list(STATE).len(), 1);
        wire.gc(&lan(), &[]);
        Wire::told(&server, &release_of(&second));
        assert!(wire.sandbox.list("/var/lib/cni/dhcp").is_empty());
    });
}

#[test]
fn what_lies_in_the_place_of_a_lease_is_named_and_holds_up_nobody() {
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
            Wire::told(&daemon, &format!("lease {lease} is not restored: {what}"));
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
fn a_server_does_not_make_the_bridge_the_gateway_of_the_nodes_own_segment() {
    beyond_peer("the bridge becomes the gateway of anything", || {
        let wire = Wire::new();
        wire.host().sh("ip link add up0 type veth peer name up1
             ip addr add 10.77.9.9/16 dev up0");
        let _server = wire.dnsmasq(&[]);
        let _daemon = wire.daemon(&[]);
        let pod = wire.sandbox.pod("a");
        let conf = conf::with(&lan(), json!({"isGateway": true}));
        let error = wire.sandbox.cni("bridge").add(&conf, &pod, "eth0").error();
        let why = "gateway of 10.77.0.0/16, where the node needs 10.77.9.9";
        assert!(error.msg.ends_with(why), "{}", error.msg);
        assert_eq!(error.code, 7);
        assert_eq!(wire.host().addresses("lan"), [""; 0]);
        assert!(wire.sandbox.list(STATE).is_empty());
    });
}

#[test]
fn del_succeeds_whatever_the_pod_did_to_its_interface() {
    beyond_peer("it deletes what has the name", || {
        for script in [
            "ip link set eth0 down; ip link set eth0 name x
             ip link property add dev lo altname eth0",
            "ip link set eth0 down; ip link set eth0 name x; ip link add eth0 type bridge",
            "ip link set eth0 down; ip link set eth0 address 02:00:00:00:00:07",
        ] {
            for dies in [false, true] {
                let wire = Wire::new();
                let _server = wire.dnsmasq(&[]);
                let daemon = wire.daemon(&[]);
                let pod = wire.sandbox.pod("a");
                wire.add(&pod);
                pod.sh(script);
                if dies {
                    drop(daemon);
                }
                wire.del(&pod);
                assert!(wire.sandbox.list(STATE).is_empty(), "{script}");
                let host = wire.host().links();
                assert!(!host.iter().any(|it| it.starts_with("veth")), "{host:?}");
            }
        }
    });
}

#[test]
fn del_succeeds_whatever_became_of_the_namespace() {
    beyond_peer(WHY, || {
        let wire = Wire::new();
        let server = wire.dnsmasq(&[]);
        let _daemon = wire.daemon(&[]);
        let plain = wire.file("plain");
        wire.sandbox.write(&plain, "");
        let directory = wire.sandbox.dir().display().to_string();
        for (name, found) in [
            ("p0", ""),
            ("p1", "/run/netns/nope"),
            ("p2", plain.as_str()),
            ("p3", directory.as_str()),
        ] {
            let pod = wire.sandbox.pod(name);
            let cni = || wire.sandbox.cni("bridge").id(name);
            let ours = address(&cni().add(&lan(), &pod, "eth0").result());
            assert_eq!(wire.sandbox.list(STATE).len(), 1);
            // What runtimes say of a namespace that they have lost; the daemon knows better.
            cni().netns(found).del(&lan(), &pod, "eth0").silent();
            cni().netns(found).del(&lan(), &pod, "eth0").silent();
            Wire::told(&server, &release_of(&ours));
            assert!(wire.sandbox.list(STATE).is_empty());
        }
        // Gone with its interface: nothing can be sent, and nothing stays.
        let pod = wire.sandbox.pod("p4");
        wire.add(&pod);
        wire.sandbox.remove_pod(&pod);
        wire.del(&pod);
        assert!(wire.sandbox.list(STATE).is_empty());
    });
}

#[test]
fn gc_gives_back_what_is_not_in_use() {
    beyond_peer(WHY, || {
        let wire = Wire::new();
        let server = wire.dnsmasq(&[]);
        let _daemon = wire.daemon(&[]);
        let (one, two) = (wire.sandbox.pod("a"), wire.sandbox.pod("b"));
        let add = |pod| address(&wire.add(pod));
        let (first, second) = (add(&one), add(&two));
        let other = conf::with(&lan(), json!({"name": "other"}));
        wire.gc(&other, &[]);
        assert_eq!(wire.sandbox.list(STATE).len(), 2, "another network");
        let valid = conf::with_valid(&lan(), &[("id-b", "eth0")]);
        wire.sandbox.cni("dhcp").gc(&valid).silent();
        Wire::told(&server, &release_of(&first));
        assert!(!server.output().contains(&release_of(&second)));
        assert_eq!(wire.sandbox.list(STATE).len(), 1);
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
        eventually(5, "it ends", || wire.sandbox.list("/run/cni").is_empty());
        assert_eq!(wire.sandbox.read(&pidfile), None);
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
        $say->('10.77.66.7', pack('C*', 53, 1, 5) . $good . "\xff");    # not asked for
        $say->('0.0.0.0', pack('C*', 53, 1, 6, 54, 4, 10, 77, 0, 66, 255));
        send($s, substr($m, 0, 200), 0, $all);
        send($s, '', 0, $all);
    }"#;

#[test]
fn hostile_answers_are_not_believed() {
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
        for told in [
            "the options are truncated",
            "a host cannot have the address 127.0.0.1",
            "the lease time is zero",
            "DHCP option 121 is malformed",
        ] {
            assert!(
                daemon.output().contains(told),
                "{told}: {}",
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
fn a_bad_configuration_is_told_before_the_daemon_is_asked() {
    beyond_peer(WHY, || {
        let sandbox = Sandbox::new();
        let pod = sandbox.pod("a");
        for (ipam, msg) in [
            (
                json!({"provide": [{"option": "nope", "value": "x"}]}),
                "Can not parse option \"nope\": neither a known name nor a number from 0 to 255"
                    .to_owned(),
            ),
            (
                json!({"provide": [{"option": "12", "value": "x".repeat(256)}]}),
                format!("value too long for option \"12\": \"{}\"", "x".repeat(256)),
            ),
        ] {
            let conf = conf::with(&lan(), json!({"ipam": ipam}));
            let error = sandbox.cni("dhcp").add(&conf, &pod, "eth0").error();
            assert_eq!((error.code, error.msg), (7, msg));
            sandbox.cni("dhcp").del(&conf, &pod, "eth0").silent();
        }
        let conf = conf::plugin("bridge");
        let error = sandbox.cni("dhcp").add(&conf, &pod, "eth0").error();
        assert_eq!(error.msg, "IPAM config missing 'ipam' key");
        let nowhere = conf::with(&lan(), json!({"ipam": {"daemonSocketPath": "/run/x.sock"}}));
        let error = sandbox.cni("dhcp").add(&nowhere, &pod, "eth0").error();
        assert!(
            error
                .msg
                .contains("dial unix /run/x.sock: connect: no such file"),
            "{error:?}"
        );
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

/// A plugin and a daemon of two suites: the address, the check, and what the server hears of the end.
fn interchange(plugin: Suite, daemon: Suite) {
    let wire = Wire::new();
    let server = wire.dnsmasq(&[]);
    let _daemon = wire.daemon_of(daemon, &[]);
    let pod = wire.wired_by_hand("a");
    let mut conf = conf::at(&lan(), "1.0.0");
    conf["type"] = "ipvlan".into();
    let cni = || wire.sandbox.cni("dhcp").suite(plugin);
    let result = cni().add(&conf, &pod, "eth0").result();
    assert!(address(&result).starts_with("10.77."), "{result}");
    assert_eq!(result["ips"][0]["gateway"], "10.77.0.1");
    assert_eq!(
        result["routes"],
        json!([{"dst": "0.0.0.0/0", "gw": "10.77.0.1"}])
    );
    let checked = conf::with_prev(&conf, &result);
    cni().check(&checked, &pod, "eth0").silent();
    cni().del(&conf, &pod, "eth0").silent();
    cni().del(&conf, &pod, "eth0").silent();
    Wire::told(&server, "DHCPRELEASE");
}

#[test]
fn the_go_plugin_works_with_our_daemon() {
    interchange(Suite::Peer, Suite::Ours);
}

#[test]
fn our_plugin_works_with_the_go_daemon() {
    interchange(Suite::Ours, Suite::Peer);
}

#[test]
fn both_daemons_give_a_pod_the_same_address() {
    let wire = Wire::new();
    let _server = wire.dnsmasq(&[]);
    let pod = wire.wired_by_hand("a");
    let conf = conf::at(&lan(), "1.0.0");
    let add = |daemon: Suite| {
        let running = wire.daemon_of(daemon, &[]);
        let result = wire.sandbox.cni("dhcp").add(&conf, &pod, "eth0").result();
        drop(running);
        wire.host().sh(&format!("rm -f {SOCKET}"));
        address(&result)
    };
    let go = add(Suite::Peer);
    // Another hardware address: only the client identifier says who it is.
    pod.sh("ip link set eth0 address 02:00:00:00:77:77");
    assert_eq!(add(Suite::Ours), go);
}

#[test]
fn five_hundred_addresses_at_once() {
    beyond_peer(WHY, || {
        let wire = Wire::new();
        let server = wire.dnsmasq(&[]);
        let daemon = wire.daemon(&[]);
        // One namespace with many interfaces is as many leases, and less work for the machine.
        let pod = wire.sandbox.pod("a");
        let dir = wire.sandbox.dir().display().to_string();
        // Its ports take no broadcasts of others: that all of these reach all would be
        // a quarter of a million packets, and measure nothing but the machine.
        pod.sh("sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1");
        wire.host().sh(&format!(
            "for i in $(seq 500); do
                 echo link add w$i type veth peer name e$i netns a
                 echo link set w$i master lan
                 echo link set w$i type bridge_slave flood off mcast_flood off bcast_flood off
                 echo link set w$i up
             done >{dir}/batch
             ip -batch {dir}/batch"
        ));
        pod.sh(&format!(
            "for i in $(seq 500); do echo link set e$i up; done >{dir}/up; ip -batch {dir}/up"
        ));
        wire.sandbox.write(format!("{dir}/conf"), lan().to_string());
        let plugin = Suite::Ours.dir().join("dhcp").display().to_string();
        let done = wire.host().run_for(
            &[
                "sh",
                "-ec",
                &format!(
                    "export CNI_CONTAINERID=id CNI_NETNS=/run/netns/a CNI_PATH=/x CNI_ARGS=
                 for i in $(seq 500); do
                     CNI_IFNAME=e$i CNI_COMMAND=ADD {plugin} <{dir}/conf >{dir}/r$i 2>&1 &
                 done; wait
                 cat {dir}/r* | grep -o '10.77[^\"]*/16' | sort -u | wc -l"
                ),
            ],
            Duration::from_secs(120),
        );
        assert_eq!(done.stdout.trim(), "500", "{done:?}");
        assert_eq!(wire.sandbox.list(STATE).len(), 500);
        // All of it on one thread, beside the one that closes sockets.
        let threads = wire
            .host()
            .sh(&format!("ls /proc/{}/task | wc -l", daemon.id()));
        assert!(
            threads.trim().parse::<u32>().is_ok_and(|count| count <= 2),
            "{threads}"
        );
        // That one takes some 10 ms for each: the kernel waits for whoever still looks at it.
        let fds = || {
            wire.host()
                .sh(&format!("ls /proc/{}/fd | wc -l", daemon.id()))
        };
        eventually(30, "the sockets are closed", || {
            fds().trim().parse::<u32>().is_ok_and(|count| count < 30)
        });
        drop(server);
    });
}

#[test]
fn the_example_works() {
    beyond_peer(WHY, || {
        let sandbox = Sandbox::new();
        sandbox.host().sh("ip link add lan type bridge
             ip link set lan up");
        let server = station(&sandbox, "server", "10.77.0.1/16");
        let _server = dnsmasq(&server, "10.77.0.10,10.77.0.99,255.255.0.0,2m", &[]);
        // The example's bridge is made by the plugin; the server's wire is led into it.
        sandbox
            .host()
            .sh("ip link add uplink type veth peer name ex-up
             ip link set uplink master lan up
             ip link add ex-dhcp type bridge
             ip link set ex-dhcp up
             ip link set ex-up master ex-dhcp up");
        let wire = Wire { sandbox, server };
        let _daemon = wire.daemon(&[]);
        let pod = wire.sandbox.pod("blue");
        let bin = Suite::Ours.dir().display();
        let examples = concat!(env!("CARGO_MANIFEST_DIR"), "/../netconf-examples");
        let run = |verb: &str| {
            wire.host().sh(&format!(
                "export CNI_PATH={bin} NETCONFPATH={examples} CNI_ARGS='IgnoreUnknown=1;K8S_POD_NAME=web'
                 {bin}/podwire {verb} example-dhcp {}",
                pod.path()
            ))
        };
        for verb in ["status", "add", "check"] {
            run(verb);
        }
        assert!(pod.addresses("eth0")[0].starts_with("10.77.0."));
        assert_eq!(pod.ping("10.77.0.1", 1), [true]);
        run("del");
        assert!(wire.sandbox.list(STATE).is_empty());
    });
}

#[test]
fn the_help_is_a_page() {
    beyond_peer(WHY, || {
        let sandbox = Sandbox::new();
        let program = Suite::Ours.dir().join("dhcp").display().to_string();
        let help = sandbox.host().run(&[&program, "daemon", "--help"]);
        assert_eq!(help.code, 0);
        for part in [
            "USAGE",
            "FLAGS",
            "-resendtimeout",
            "FILES",
            "SIGNALS",
            "EXIT STATUS",
        ] {
            assert!(help.stdout.contains(part), "{part}");
        }
        let wrong = sandbox.host().run(&[&program, "daemon", "-nope"]);
        assert_eq!((wrong.code, wrong.stdout.as_str()), (2, ""));
        assert!(
            wrong.stderr.contains("unknown flag -nope"),
            "{}",
            wrong.stderr
        );
    });
}
