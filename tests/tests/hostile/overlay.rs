//! VXLAN packets from hosts that are not in the network: a pod of another network, a
//! neighbour of the node.

use sandbox::{Cni, Netns, Running, Suite, beyond_peer, conf};
use serde_json::{Value, json};

use crate::fleet::{BOTH, Fleet, Underlay, address, addresses};

const WHY: &str = "there is no vxlan among the Go plugins";

type Conf = fn(&Fleet, usize, u32, Underlay) -> Value;

const MODES: [(&str, Conf); 2] = [("l2", Fleet::segment), ("l3", Fleet::routed)];

/// The network that is attacked.
const VNI: u32 = 6;

/// A UDP packet to host `to` with a VXLAN header and, in it, an Ethernet frame to `mac` with a
/// UDP packet to 10.6.9.9:9000 whose text is `word`. With `source`, a raw socket sends it with
/// that address; `split` makes it two fragments, the first of which has a UDP header only.
const SEND: &str = r#"
use strict; use Socket qw(:all);
my ($to, $vni, $mac, $word, $source, $split) = @ARGV;
my $inner_udp = pack("nnnn", 999, 9000, 8 + length $word, 0) . $word;
my $inner = pack("CCnnnCCn", 0x45, 0, 20 + length $inner_udp, 1, 0, 64, 17, 0)
    . pack("C8", 10, 66, 6, 6, 10, 6, 9, 9);
my $sum = 0; $sum += $_ for unpack("n*", $inner);
$sum = ($sum & 0xffff) + ($sum >> 16) while $sum >> 16;
substr($inner, 10, 2) = pack("n", 0xffff & ~$sum);
my $frame = pack("H12H12n", $mac, "020000000666", 0x0800) . $inner . $inner_udp;
my $vxlan = pack("NN", 0x08000000, $vni << 8) . $frame;
my $v6 = $to =~ /:/; my $family = $v6 ? AF_INET6 : AF_INET;
my $address = inet_pton($family, $to);
my $name = $v6 ? pack_sockaddr_in6(4789, $address) : pack_sockaddr_in(4789, $address);
if (!$source) {
    socket(my $s, $family, SOCK_DGRAM, 0) or die $!;
    defined send($s, $vxlan, 0, $name) or die $!;
    exit;
}
my $from = inet_pton($family, $source);
my $udp = pack("nnnn", 999, 4789, 8 + length $vxlan, 0) . $vxlan;
if ($v6) {
    my $pseudo = $from . $address . pack("NN", length $udp, 17) . $udp;
    $pseudo .= "\0" if length($pseudo) % 2;
    my $sum = 0; $sum += $_ for unpack("n*", $pseudo);
    $sum = ($sum & 0xffff) + ($sum >> 16) while $sum >> 16;
    substr($udp, 6, 2) = pack("n", 0xffff & ~$sum);
}
socket(my $s, $family, SOCK_RAW, 255) or die $!;
my $to_send = $v6 ? pack_sockaddr_in6(0, $address) : pack_sockaddr_in(0, $address);
my @parts = $split ? ([0, substr $udp, 0, 8], [1, substr $udp, 8]) : ([0, $udp]);
for (@parts) {
    my ($offset, $part) = @$_;
    my $more = $split && $offset == 0;
    my $packet = $v6
        ? pack("NnCC", 0x60000000, length($part) + ($split ? 8 : 0), $split ? 44 : 17, 64)
            . $from . $address
            . ($split ? pack("CCnN", 17, 0, $offset << 3 | ($more ? 1 : 0), 7) : "") . $part
        : pack("CCnnnCCn", 0x45, 0, 20 + length $part, 7,
            ($more ? 0x2000 : 0) | $offset, 64, 17, 0) . $from . $address . $part;
    defined send($s, $packet, 0, $to_send) or die $!;
}
"#;

/// A sender.
struct Attack<'a> {
    from: &'a Netns,
    /// The destination of the packet.
    to: String,
    source: Option<String>,
    split: bool,
}

impl<'a> Attack<'a> {
    fn plain(from: &'a Netns, to: &str) -> Self {
        Self {
            from,
            to: to.to_owned(),
            source: None,
            split: false,
        }
    }

    fn spoofed(from: &'a Netns, to: &str, source: &str, split: bool) -> Self {
        Self {
            source: Some(source.to_owned()),
            split,
            ..Self::plain(from, to)
        }
    }

    /// Sends a frame to all MACs that has `word` in it.
    fn send(&self, word: &str) {
        let vni = VNI.to_string();
        let source = self.source.clone().unwrap_or_default();
        let split = if self.split { "1" } else { "" };
        let done = self.from.run(&[
            "perl",
            "-e",
            SEND,
            &self.to,
            &vni,
            "ffffffffffff",
            word,
            &source,
            split,
        ]);
        assert_eq!(done.code, 0, "{done:?}");
    }
}

/// Three hosts with a pod each in the network, host 4 which is in none, and on host 1 pods of
/// others.
struct Scene {
    fleet: Fleet,
    members: Vec<Netns>,
    confs: Vec<Value>,
    results: Vec<Value>,
    underlay: Underlay,
    /// On the device of host 1 and of host 2, what came out of VXLAN.
    watch: [Running; 2],
}

impl Scene {
    fn new(make: Conf, underlay: Underlay, change: &Value) -> Self {
        let fleet = Fleet::new(4);
        for host in &fleet.hosts {
            host.sh("for it in all default eth0; do
                       echo 0 >/proc/sys/net/ipv4/conf/$it/rp_filter
                     done");
        }
        let (mut members, mut confs, mut results) = (Vec::new(), Vec::new(), Vec::new());
        for host in 1..=3 {
            let mut conf = make(&fleet, host, VNI, underlay);
            let peers = conf["peers"].as_array_mut().expect("peers");
            // Host 4 is no peer.
            peers.retain(|it| it["vtep"] != address(4, underlay));
            let conf = conf::with(&conf, change.clone());
            let (pod, result) = fleet.attached(host, "m", &conf);
            members.push(pod);
            confs.push(conf);
            results.push(result);
        }
        let watch = [1, 2].map(|host| {
            let device = format!("vxlan.{VNI}");
            fleet.host(host).capture(&device, "udp port 9000")
        });
        Self {
            fleet,
            members,
            confs,
            results,
            underlay,
            watch,
        }
    }

    fn host_address(&self, host: usize) -> String {
        address(host, self.underlay)
    }

    /// A pod of the bridge plugin on host 1, with a gateway of both families and masquerade.
    fn bridged(&self) -> Netns {
        let mut network = conf::bridge(&["10.77.0.0/24", "fd00:77::/64"]);
        network["ipam"]["ranges"] =
            json!([[{"subnet": "10.77.0.0/24"}], [{"subnet": "fd00:77::/64"}]]);
        let change = json!({"isDefaultGateway": true, "ipMasq": true});
        let network = conf::with(&network, change);
        let pod = self.fleet.pod(1, "bridged");
        let host = self.fleet.host(1).name().to_owned();
        let under = ["ip", "netns", "exec", &host];
        let call: Cni = self.fleet.sandbox.cni("bridge").under(&under);
        call.add(&network, &pod, "eth0").result();
        pod
    }

    /// A pod that another suite wired: a veth pair with routes, as of ptp.
    fn routed(&self) -> Netns {
        let pod = self.fleet.pod(1, "routed");
        let (host, name) = (self.fleet.host(1), pod.name().to_owned());
        host.sh(&format!(
            "ip link add cali1 type veth peer name eth0 netns {name}
             echo 0 >/proc/sys/net/ipv6/conf/cali1/accept_dad
             ip address add 10.78.0.1/24 dev cali1
             ip address add fd00:78::1/64 dev cali1 nodad
             ip link set cali1 up
             echo 1 >/proc/sys/net/ipv4/ip_forward
             echo 1 >/proc/sys/net/ipv6/conf/all/forwarding"
        ));
        pod.sh("echo 0 >/proc/sys/net/ipv6/conf/eth0/accept_dad
                ip address add 10.78.0.2/24 dev eth0
                ip address add fd00:78::2/64 dev eth0 nodad
                ip link set eth0 up
                ip route add default via 10.78.0.1
                ip -6 route add default via fd00:78::1");
        pod
    }

    /// None of the attacks gets through, and the members' own packets do.
    #[track_caller]
    fn holds(&self, attacks: &[Attack<'_>]) {
        for (number, attack) in attacks.iter().enumerate() {
            attack.send(&format!("attack{number:03}"));
        }
        // A peer's packet comes after all that may have come.
        for (to, watch) in (1..=2).zip(&self.watch) {
            let peer = self.fleet.host(3);
            let address = self.host_address(to);
            peer.wait_until("a peer's packet comes through", |peer| {
                Attack::plain(peer, &address).send("friendly");
                watch.output().contains("UDP")
            });
        }
        let heard = self.words();
        assert!(heard.contains(&8), "{heard:?}");
        let attacks: Vec<_> = heard.iter().filter(|it| **it == 9).collect();
        assert!(attacks.is_empty(), "{} came through", attacks.len());
    }

    /// The lengths of what was heard: 8 is a friend's, 9 an attack.
    fn words(&self) -> Vec<usize> {
        let output = self.watch.iter().map(Running::output);
        let all: String = output.collect();
        let lengths = all.split("UDP, length ").skip(1);
        lengths
            .filter_map(|it| it.split_whitespace().next()?.parse().ok())
            .collect()
    }

    /// The attack does get through: it is one.
    fn breaks_without_the_guard(&self, attack: &Attack<'_>) {
        for host in &self.fleet.hosts[..3] {
            host.sh("nft delete table ip podwire_vxlan 2>/dev/null || :
                     nft delete table ip6 podwire_vxlan 2>/dev/null || :");
        }
        self.fleet.host(1).wait_until("it comes through", |_| {
            attack.send("attack999");
            self.words().contains(&9)
        });
    }

    /// Members reach each other with packets of any size.
    fn members_talk(&self) {
        for from in &self.members {
            for to in &self.members {
                for ip in addresses(to) {
                    from.wait_until("it answers", |from| from.ping(&ip, 1) == [true]);
                    let whole = self.mtu(from) - if ip.contains(':') { 48 } else { 28 };
                    let size = whole.to_string();
                    let done = from.run(&[
                        "ping", "-n", "-q", "-c", "2", "-i", "0.1", "-w", "10", "-M", "do", "-s",
                        &size, &ip,
                    ]);
                    assert_eq!(done.code, 0, "{done:?}");
                }
            }
        }
    }

    fn mtu(&self, pod: &Netns) -> u64 {
        pod.link("eth0").expect("eth0")["mtu"]
            .as_u64()
            .expect("a number")
    }

    fn check(&self) {
        for host in 1..=3 {
            let checked = conf::with_prev(&self.confs[host - 1], &self.results[host - 1]);
            let call = self.fleet.cni(host);
            call.check(&checked, &self.members[host - 1], "eth0")
                .silent();
        }
    }
}

/// What a pod on host 1 can try.
fn by_pod<'a>(scene: &Scene, pod: &'a Netns, gateway: &str) -> Vec<Attack<'a>> {
    let [first, second] = [1, 2].map(|host| scene.host_address(host));
    let mut all = Vec::new();
    for to in [&first, &second, gateway] {
        all.push(Attack::plain(pod, to));
        for split in [false, true] {
            // As itself; as a peer.
            let own = addresses(pod);
            let own = own
                .iter()
                .find(|it| it.contains(':') == to.contains(':'))
                .expect("an address of the family");
            all.push(Attack::spoofed(pod, to, own, split));
            all.push(Attack::spoofed(pod, to, &scene.host_address(3), split));
        }
    }
    all
}

#[test]
fn no_pod_of_a_node_is_in_a_vxlan_network_by_sending_its_packets() {
    beyond_peer(WHY, || {
        for (mode, make) in MODES {
            for underlay in BOTH {
                let scene = Scene::new(make, underlay, &json!({}));
                let (bridged, routed) = (scene.bridged(), scene.routed());
                let [one, other] = match underlay {
                    Underlay::V4 => ["10.77.0.1", "10.78.0.1"],
                    Underlay::V6 => ["fd00:77::1", "fd00:78::1"],
                };
                let mut attacks = by_pod(&scene, &bridged, one);
                attacks.extend(by_pod(&scene, &routed, other));
                scene.holds(&attacks);
                scene.members_talk();
                scene.check();
                scene.breaks_without_the_guard(&Attack::plain(&bridged, one));
                println!("{mode} over {underlay:?}: done");
            }
        }
    });
}

#[test]
fn no_host_but_the_peers_is_in_a_vxlan_network() {
    beyond_peer(WHY, || {
        for (mode, make) in MODES {
            for underlay in BOTH {
                let scene = Scene::new(make, underlay, &json!({}));
                let stranger = scene.fleet.host(4);
                let own = scene.host_address(4);
                let mut attacks = Vec::new();
                for to in [1, 2].map(|host| scene.host_address(host)) {
                    attacks.push(Attack::plain(stranger, &to));
                    for split in [false, true] {
                        attacks.push(Attack::spoofed(stranger, &to, &own, split));
                    }
                }
                scene.holds(&attacks);
                // As a peer it is heard, and no more when it is none.
                let to = scene.host_address(1);
                let word = match mode {
                    "l3" => format!("{own},10.6.4.0/24"),
                    _ => own.clone(),
                };
                let peers = |line: &[&str]| {
                    let done = scene.fleet.podwire(1, &scene.confs[0], line);
                    assert_eq!(done.code, 0, "{done:?}");
                };
                peers(&["peers", "add", "net6", &word]);
                stranger.wait_until("a new peer is heard", |it| {
                    Attack::plain(it, &to).send("a new peer");
                    scene.words().contains(&10)
                });
                peers(&["peers", "remove", "net6", &own]);
                scene.holds(&attacks);
                scene.check();
                scene.breaks_without_the_guard(&Attack::plain(stranger, &to));
            }
        }
    });
}

/// Which hosts are members is not known then: another program may write the device's entries.
#[test]
fn without_a_list_of_peers_pods_are_kept_out_and_hosts_are_heard() {
    beyond_peer(WHY, || {
        for ((_, make), underlay) in MODES.into_iter().zip(BOTH) {
            let scene = Scene::new(make, underlay, &json!({"peers": []}));
            let (pod, stranger) = (scene.bridged(), scene.fleet.host(4));
            let gateway = match underlay {
                Underlay::V4 => "10.77.0.1",
                Underlay::V6 => "fd00:77::1",
            };
            scene.holds(&by_pod(&scene, &pod, gateway));
            scene.check();
            let to = scene.host_address(1);
            stranger.wait_until("any host is heard", |it| {
                Attack::plain(it, &to).send("a new peer");
                scene.words().contains(&10)
            });
        }
    });
}

/// The container of a pod that podwire attached.
const ID: &str = "pod1";

/// The packet filter's rules of a host, as nft shows them.
fn rules(host: &Netns) -> String {
    host.sh("nft list ruleset")
}

#[test]
fn what_keeps_others_out_is_checked_put_back_and_goes_with_the_network() {
    beyond_peer(WHY, || {
        for (make, family, underlay) in [
            (Fleet::segment as Conf, "ip", Underlay::V4),
            (Fleet::routed, "ip6", Underlay::V6),
        ] {
            let fleet = Fleet::new(2);
            let host = fleet.host(1);
            let change = json!({"removeWhenEmpty": true});
            let conf = |vni| conf::with(&make(&fleet, 1, vni, underlay), change.clone());
            let (first, second) = (conf(6), conf(7));
            // By podwire, which keeps what resync reads.
            let (a, plugins) = (fleet.pod(1, "a"), Suite::Ours.dir().display().to_string());
            let podwire = |line: [&str; 2], more: &[&str]| {
                let line = [&line[..], more].concat();
                let done = fleet.podwire(1, &first, &line);
                assert_eq!(done.code, 0, "{done:?}");
                done.stdout
            };
            let added = podwire(
                ["add", "net6"],
                &["--plugin-dir", &plugins, "--container-id", ID, &a.path()],
            );
            let result: Value = serde_json::from_str(&added).expect("a result");
            let b = fleet.add(1, "b", &second);
            let table = format!("{family} podwire_vxlan");
            let checked = conf::with_prev(&first, &result);
            let check = || fleet.cni(1).id(ID).check(&checked, &a, "eth0");
            let whole = rules(host);
            for spoil in [
                format!("nft flush set {table} peers"),
                format!("nft flush set {table} uplinks"),
                format!("nft flush chain {table} input"),
                format!("nft delete table {table}"),
            ] {
                check().silent();
                host.sh(&spoil);
                let error = check().error();
                assert!(error.msg.contains("podwire_vxlan"), "{spoil}: {error:?}");
                let done = podwire(["resync", "net6"], &[]);
                assert!(done.contains("VXLAN guard of net6"), "{done}");
                check().silent();
            }
            // An ADD puts back what was flushed with everything else.
            host.sh("nft flush ruleset");
            for (name, conf) in [("c", &first), ("d", &second)] {
                let pod = fleet.add(1, name, conf);
                fleet.cni(1).del(conf, &pod, "eth0").silent();
            }
            assert_eq!(sorted(&rules(host)), sorted(&whole));
            // nft reads what it prints.
            host.sh(
                "nft list table TABLE >/run/saved && nft delete table TABLE && nft -f /run/saved"
                    .replace("TABLE", &table)
                    .as_str(),
            );
            check().silent();
            assert_eq!(sorted(&rules(host)), sorted(&whole));

            fleet.cni(1).id(ID).del(&first, &a, "eth0").silent();
            let rest = rules(host);
            assert!(
                rest.contains("net: net7") && !rest.contains("net: net6"),
                "{rest}"
            );
            assert!(rest.contains("elements = { 4789 }"), "{rest}");
            fleet.cni(1).del(&second, &b, "eth0").silent();
            assert!(!rules(host).contains("podwire_vxlan"));
        }
    });
}

fn sorted(text: &str) -> Vec<&str> {
    let mut words: Vec<&str> = text.split([' ', ',', '\n', '\t']).collect();
    words.retain(|it| !it.is_empty());
    words.sort_unstable();
    words
}
