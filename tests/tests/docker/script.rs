//! The script.

use std::thread;

use sandbox::{Docker, beyond_peer};

use crate::WHY;
use crate::node::Podwire;
use crate::step::{Same, Step, compare, outcome};

const fn differs(
    row: &'static str,
    docker: (i32, &'static str),
    podwire: (i32, &'static str),
) -> Same {
    Same::Differs {
        row,
        docker,
        podwire,
    }
}

use Same::{Error, Json, Lines, Output, Status};

const CREATE: &[Step] = &[
    ("network ls", Output),
    (
        "network create --subnet 10.71.0.0/24 --label team=blue web",
        Output,
    ),
    (
        "network create --subnet 10.72.0.0/24 --ip-range 10.72.0.128/25 --gateway 10.72.0.254 \
      --aux-address dns=10.72.0.53 db",
        Output,
    ),
    (
        "network create --internal --subnet 10.73.0.0/24 lab",
        Output,
    ),
    (
        "network create --subnet 10.76.0.0/24 --subnet fd76::/64 --ipv6 dual",
        Output,
    ),
    ("network create auto", Output),
    (
        "network create --attachable --subnet 10.77.0.0/29 --ip-range 10.77.0.4/31 --gateway 10.77.0.1 tiny",
        Output,
    ),
    (
        "network create -o com.docker.network.bridge.host_binding_ipv4=127.0.0.1 --subnet 10.78.0.0/24 bound",
        Output,
    ),
    (
        "network create -o com.docker.network.bridge.host_binding_ipv4=x y",
        Error("x"),
    ),
    (
        "network create web",
        Error("network with name web already exists"),
    ),
    (
        "network create --subnet 10.71.0.0/25 x",
        Error("Pool overlaps with other one on this address space"),
    ),
    (
        "network create --subnet 10.74.0.0/24 --ip-range 10.75.0.0/25 x",
        Error("no matching subnet for range 10.75.0.0/25"),
    ),
    (
        "network create --subnet 10.74.0.0/24 --gateway 10.75.0.1 x",
        Error("no matching subnet for gateway 10.75.0.1"),
    ),
    (
        "network create --subnet 10.74.0.0/24 --aux-address a=10.75.0.1 x",
        Error("no matching subnet for aux-address 10.75.0.1"),
    ),
    (
        "network create --subnet 10.74.0.0/24 --subnet 10.74.0.0/25 x",
        Error("multiple overlapping subnet configuration is not supported"),
    ),
    (
        "network create --subnet 10.74.0.0/24 --subnet 10.75.0.0/24 x",
        Error("bridge driver doesn't support multiple subnets"),
    ),
    (
        "network create --gateway 10.74.0.1 x",
        Error("every ip-range or gateway must have a corresponding subnet"),
    ),
    (
        "network create --ip-range 10.74.0.0/25 x",
        Error("every ip-range or gateway must have a corresponding subnet"),
    ),
    (
        "network create --subnet nonsense x",
        Error("invalid CIDR address: nonsense"),
    ),
    (
        "network create -d nope x",
        Error("plugin \"nope\" not found"),
    ),
    ("network create --ipam-driver nope x", Error("nope")),
    (
        "network create -o com.docker.network.driver.mtu=x x",
        Error("com.docker.network.driver.mtu"),
    ),
    (
        "network create bridge",
        Error("operation is not permitted on predefined bridge network"),
    ),
    (
        "network create host",
        Error("operation is not permitted on predefined host network"),
    ),
];

const LOOK: &[Step] = &[
    (
        "network ls --format '{{.Name}} {{.Driver}} {{.Scope}} {{.IPv6}} {{.Internal}}'",
        Output,
    ),
    (
        "network ls --filter type=custom --format '{{.Name}}'",
        Output,
    ),
    (
        "network ls --filter driver=bridge --format '{{.Name}}'",
        Output,
    ),
    ("network ls --filter name=a --format '{{.Name}}'", Output),
    (
        "network ls --filter label=team=blue --format '{{.Name}} {{.Labels}} {{.Label \"team\"}}'",
        Output,
    ),
    (
        "network ls --filter dangling=true --format '{{.Name}}'",
        Output,
    ),
    ("network ls --filter nope=1", Error("Invalid filter 'nope'")),
    ("network ls --filter name=web -q", Output),
    ("network ls --filter name=web -q --no-trunc", Output),
    (
        "network ls --format 'table {{.Name}}\\t{{.Driver}}'",
        Output,
    ),
    ("network ls --format '{{.Nope}}'", Error("template")),
    (
        "network inspect -f '{{.Name}} {{.Driver}} {{.Scope}} {{.Internal}} {{.EnableIPv6}} {{.Attachable}}' web lab",
        Output,
    ),
    (
        "network inspect -f '{{range .IPAM.Config}}{{.Subnet}} {{.IPRange}} {{.AuxAddress}}{{end}}' \
      web db lab",
        Output,
    ),
    ("network inspect -f '{{.Attachable}}' tiny", Output),
    ("network inspect -f '{{.ID}}' web", Output),
    ("network inspect -f '{{.Id}}' web", Output),
    (
        "network inspect -f '{{len .Containers}} {{.Labels}} {{.Options}}' web",
        Output,
    ),
    ("network inspect -f '{{json .Labels}}' web", Json),
    ("network inspect -f '{{json .IPAM}}' db", Json),
    ("network inspect nope", Error("nope")),
    ("network inspect -f '{{.Name}}' web nope", Error("nope")),
    ("network inspect -f '{{.Nope}}' web", Error("nope")),
];

/// Containers, and what they see.
const RUN: &[Step] = &[
    (
        "run -d --rm --name aa --network web IMAGE sleep 1000",
        Output,
    ),
    (
        "run -d --rm --name bb --network web --network-alias other IMAGE sleep 1000",
        Output,
    ),
    (
        "run -d --rm --name cc --network db IMAGE sleep 1000",
        Output,
    ),
    (
        "run -d --rm --name aa IMAGE sleep 1000",
        Error("Conflict. The container name \"/aa\" is already in use"),
    ),
    (
        "exec aa sh -c 'ip -4 -o addr show eth0 | grep -o 10.71.0.[0-9]*/24'",
        Output,
    ),
    (
        "exec cc sh -c 'ip -4 -o addr show eth0 | grep -o 10.72.0.[0-9]*/24'",
        Output,
    ),
    ("exec aa sh -c 'ip route | grep default'", Output),
    ("exec aa sh -c 'grep -v :: /etc/hosts'", Output),
    ("exec aa hostname", Output),
    ("exec aa sh -c 'exit 7'", Status),
    ("exec nope true", Error("No such container: nope")),
    ("exec aa ping -c 1 -W 1 10.71.0.3", Status),
    ("exec aa ping -c 1 -W 1 10.71.0.1", Status),
    ("exec aa ping -c 1 -W 1 10.72.0.128", Status),
    ("run --rm --network web IMAGE sh -c 'exit 7'", Status),
    (
        "run --rm --network web IMAGE nope",
        Error("exec: \"nope\": executable file not found in $PATH"),
    ),
    (
        "run --rm --network web IMAGE /etc",
        Error("exec: \"/etc\": permission denied"),
    ),
    (
        "run --rm --network nope IMAGE true",
        Error("network nope not found"),
    ),
    ("run --rm --network none IMAGE ls /sys/class/net", Output),
    (
        "run --rm --network host IMAGE ls /sys/class/net/lo/address",
        Status,
    ),
    (
        "run --rm --network container:aa IMAGE sh -c 'ip -4 -o addr show eth0 | grep -o 10.71.0.[0-9]*/24; hostname'",
        Output,
    ),
    (
        "run --rm --network container:nope IMAGE true",
        Error("No such container: nope"),
    ),
    (
        "run --rm --network container: IMAGE true",
        Error("invalid network mode: invalid container format container:<name|id>"),
    ),
    (
        "run --rm --network web --ip 10.71.0.77 IMAGE sh -c 'ip -4 -o addr show eth0 | grep -o 10.71.0.[0-9]*/24'",
        Output,
    ),
    (
        "run --rm --network web --ip 10.79.0.77 IMAGE true",
        Error("10.79.0.77"),
    ),
    (
        "run --rm --network web --ip 10.71.0.2 IMAGE true",
        Error("Address already in use"),
    ),
    (
        "run --rm --network web --ip 10.71.0.1 IMAGE true",
        Error("Address already in use"),
    ),
    (
        "run --rm --network web --ip x IMAGE true",
        Error("invalid IP"),
    ),
    (
        "run --rm --network auto --ip 10.71.0.77 IMAGE true",
        Error("subnet"),
    ),
    (
        "run --rm --network db --ip 10.72.0.53 IMAGE true",
        Error("Address already in use"),
    ),
    (
        "run --rm --network db --ip 10.72.0.7 --mac-address 02:00:00:00:00:99 IMAGE cat /sys/class/net/eth0/address",
        Output,
    ),
    (
        "run --rm --network web --mac-address x IMAGE true",
        Error("mac address"),
    ),
    (
        "run --rm --network none --hostname here.example.com IMAGE hostname",
        Output,
    ),
    (
        "run --rm --network none --add-host db:10.9.0.1 IMAGE grep 10.9.0.1 /etc/hosts",
        Output,
    ),
    (
        "run --rm --network none --add-host x IMAGE true",
        Error("bad format for add-host: \"x\""),
    ),
    (
        "run --rm --network none --dns 192.0.2.53 --dns-search example.com --dns-option ndots:2 IMAGE \
      cat /etc/resolv.conf",
        Lines,
    ),
    (
        "run --rm --network container:aa --hostname x IMAGE true",
        Error("conflicting options: hostname and the network mode"),
    ),
    (
        "run --rm --network container:aa --dns 1.2.3.4 IMAGE true",
        Error("conflicting options: dns and the network mode"),
    ),
    (
        "run --rm --network container:aa --add-host a:1.2.3.4 IMAGE true",
        Error("conflicting options: custom host-to-IP mapping and the network mode"),
    ),
    (
        "run --rm --network container:aa -p 80:80 IMAGE true",
        Error("conflicting options: port publishing and the container type network mode"),
    ),
    (
        "run --rm --network container:aa --expose 80 IMAGE true",
        Error("conflicting options: port exposing and the container type network mode"),
    ),
    (
        "run --rm --network container:aa --mac-address 02:00:00:00:00:99 IMAGE true",
        Error("conflicting options: mac-address and the network mode"),
    ),
    ("run --rm --network host -p 80:80 IMAGE true", Status),
    ("run --rm --network none -p 80:80 IMAGE true", Status),
    (
        "run --rm --network web -p x IMAGE true",
        Error("Invalid containerPort: x"),
    ),
    (
        "run --rm --network web -p 99999:80 IMAGE true",
        Error("Invalid hostPort: 99999"),
    ),
    (
        "run -d --rm --name pp --network web -p 8080:80 IMAGE busybox httpd -f -p 80 -h /bin",
        Output,
    ),
    (
        "run --rm --network web -p 8080:80 IMAGE true",
        Error("Bind for 0.0.0.0:8080 failed: port is already allocated"),
    ),
    (
        "node nc -l 8099 </dev/null >/dev/null 2>&1 & until ss -Hltn 'sport = :8099' | grep -q LISTEN; do sleep 0.02; done",
        Status,
    ),
    (
        "run --rm --network web -p 8099:80 IMAGE true",
        Error("address already in use"),
    ),
    ("run --rm --network lab -p 8081:80 IMAGE true", Status),
    (
        "run --rm --network none -h there -e A=b IMAGE sh -c 'echo $A; hostname'",
        Output,
    ),
    ("exec -e A=b aa sh -c 'echo $A'", Output),
    (
        "run -d --rm --name tt --network tiny IMAGE sleep 1000",
        Output,
    ),
    (
        "run -d --rm --name uu --network tiny IMAGE sleep 1000",
        Output,
    ),
    (
        "run --rm --network tiny IMAGE true",
        Error("no available IPv4 addresses on this network's address pools: tiny"),
    ),
    ("stop -t 0 tt uu", Output),
    (
        "run -d --rm --name hh --network bound -p 8089:80 IMAGE busybox httpd -f -p 80 -h /bin",
        Output,
    ),
    (
        "node timeout 5 sh -c 'until nc -z 127.0.0.1 8089; do sleep 0.02; done'",
        Status,
    ),
    ("node nc -z -w 1 10.78.0.1 8089", Status),
    ("stop -t 0 hh", Output),
    ("network rm tiny bound", Output),
    (
        "node timeout 5 sh -c 'until nc -z 127.0.0.1 8080; do sleep 0.02; done'",
        Status,
    ),
    (
        "exec cc sh -c 'for i in 1 2 3 4 5; do nc -w 1 10.72.0.254 8080 </dev/null && exit 0; done; exit 1'",
        Status,
    ),
    ("ps --format '{{.Names}} {{.Networks}}'", Output),
];

/// Containers that change their networks, and the end.
const CONNECT: &[Step] = &[
    ("network connect db aa", Output),
    (
        "exec aa sh -c 'ip -4 -o addr show eth1 | grep -o 10.72.0.[0-9]*/24'",
        Output,
    ),
    ("exec aa ping -c 1 -W 1 10.72.0.128", Status),
    (
        "network connect db aa",
        Error("endpoint with name aa already exists in network db"),
    ),
    ("network connect --ip 10.73.0.9 lab aa", Output),
    (
        "exec aa sh -c 'ip -4 -o addr show eth2 | grep -o 10.73.0.[0-9]*/24'",
        Output,
    ),
    (
        "network connect --ip 10.79.0.9 auto aa",
        Error("configured subnet"),
    ),
    ("network connect nope aa", Error("network nope not found")),
    ("network connect db nope", Error("No such container: nope")),
    (
        "network connect host aa",
        Error("container cannot be disconnected from host network or connected to host network"),
    ),
    (
        "network connect none aa",
        Error(
            "container cannot be connected to multiple networks with one of the networks in \
      private (none) mode",
        ),
    ),
    (
        "network inspect -f '{{range .Containers}}{{println .Name}}{{end}}' web",
        Lines,
    ),
    ("network inspect -f '{{len .Containers}}' lab", Output),
    ("network disconnect db aa", Output),
    ("exec aa ping -c 1 -W 1 10.72.0.128", Status),
    ("network disconnect db aa", Error("is not connected to")),
    (
        "network disconnect nope aa",
        Error("network nope not found"),
    ),
    (
        "network disconnect web nope",
        Error("No such container: nope"),
    ),
    ("exec aa sh -c '[ -e /sys/class/net/eth1 ]'", Status),
    (
        "network rm web",
        Error("error while removing network: network web"),
    ),
    (
        "network rm bridge",
        Error("bridge is a pre-defined network and cannot be removed"),
    ),
    (
        "network rm none",
        Error("none is a pre-defined network and cannot be removed"),
    ),
    ("network rm nope", Error("nope")),
    ("network rm auto dual", Output),
    ("network rm nope auto", Error("nope")),
    (
        "network ls --filter dangling=true --format '{{.Name}}'",
        differs(
            "`ls --filter dangling=true`",
            (0, "db\nlab\nweb\n"),
            (0, ""),
        ),
    ),
    ("stop -t 0 aa bb", Output),
    ("stop -t 0 nope", Error("No such container: nope")),
    ("network prune -f", Lines),
    ("stop -t 0 cc pp", Lines),
    ("network prune -f", Lines),
    ("network ls --format '{{.Name}}'", Output),
];

/// What differs, as the table in docs/networks.md says.
const DIFFERENT: &[Step] = &[
    (
        "network create",
        differs(
            "`network create` without a name",
            (1, "requires exactly 1 argument"),
            (0, ""),
        ),
    ),
    (
        "network create --nope x",
        differs(
            "A wrong command line",
            (125, "unknown flag: --nope"),
            (2, "unexpected argument '--nope'"),
        ),
    ),
    (
        "network inspect",
        differs(
            "A wrong command line",
            (1, "requires at least 1 argument"),
            (2, "<NETWORK>"),
        ),
    ),
    (
        "network create --subnet 10.90.0.5/24 bits",
        differs(
            "A subnet with host bits",
            (0, ""),
            (1, "it should be 10.90.0.0/24"),
        ),
    ),
    (
        "network create 'a b'",
        differs("A space in a name", (0, ""), (1, "invalid network name")),
    ),
    ("network create --subnet 10.91.0.0/24 one", Output),
    (
        "network inspect -f '{{(index .IPAM.Config 0).Gateway}}' one",
        differs("`Gateway` of `inspect`", (0, "\n"), (0, "10.91.0.1")),
    ),
    (
        "network inspect -f '{{.IPAM.Config}}' one",
        differs(
            "A whole structure in a template",
            (0, "[{10.91.0.0/24"),
            (0, "[map[Gateway:10.91.0.1"),
        ),
    ),
    (
        "run --rm --ip 10.91.0.7 IMAGE true",
        differs(
            "`--ip` without a network of one's own",
            (0, ""),
            (125, "user-defined networks only"),
        ),
    ),
    (
        "run --rm --network-alias x IMAGE true",
        differs(
            "`--ip` without a network of one's own",
            (0, ""),
            (125, "user-defined networks"),
        ),
    ),
    (
        "run -d --rm --name dd --network one IMAGE sleep 1000",
        Output,
    ),
    (
        "exec dd nope",
        differs(
            "`exec` of a missing program",
            (126, "executable file not found"),
            (127, "executable file not found"),
        ),
    ),
    ("network create --subnet 10.92.0.0/24 another", Output),
    ("network connect another dd", Output),
    (
        "exec dd sh -c 'ip route get 192.0.2.1 | grep -o eth.'",
        differs(
            "The default route after `connect`",
            (0, "eth1"),
            (0, "eth0"),
        ),
    ),
    ("network disconnect -f another dd", Output),
    (
        "network disconnect -f another dd",
        differs(
            "`-f` of what is not there",
            (1, "is not connected"),
            (0, ""),
        ),
    ),
    (
        "network rm -f nope",
        differs(
            "`-f` of what is not there",
            (125, "unknown shorthand flag"),
            (0, ""),
        ),
    ),
    ("run --rm --network one IMAGE true", Output),
    (
        "run --rm --network one IMAGE sh -c 'ip -4 -o addr show eth0 | grep -o 10.91.0.[0-9]*'",
        differs("The next address", (0, "10.91.0.3"), (0, "10.91.0.4")),
    ),
    (
        "run --rm --network host --link dd:other IMAGE true",
        Error("links are only supported for user-defined networks"),
    ),
    (
        "run --rm --network one --link nobody:x IMAGE true",
        differs(
            "`--link`",
            (0, ""),
            (125, "could not get container for nobody"),
        ),
    ),
    ("stop -t 0 dd", Output),
];

/// The rows of the table in docs/networks.md: what stands first in each.
fn rows() -> Vec<String> {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/networks.md");
    let page = std::fs::read_to_string(page).unwrap_or_else(|error| panic!("{page}: {error}"));
    let (_, table) = page
        .split_once("## Differences from Docker")
        .expect("the heading");
    let table = table.split("\n## ").next().unwrap_or(table);
    let rows = table.lines().filter(|it| it.starts_with("| ")).skip(1);
    let first = |it: &str| it.split('|').nth(1).unwrap_or_default().trim().to_owned();
    rows.map(first).collect()
}

#[test]
fn every_difference_is_a_row_of_the_page() {
    let known = rows();
    assert!(known.len() > 5, "{known:?}");
    for (line, same) in [CONNECT, DIFFERENT].concat() {
        if let Same::Differs { row, .. } = same {
            assert!(
                known.iter().any(|it| it == row),
                "{line}: no row {row:?} in {known:?}"
            );
        }
    }
}

#[test]
fn the_same_commands_have_the_same_outcomes() {
    beyond_peer(WHY, || {
        let (docker, podwire) = (Docker::start(&[]), Podwire::new());
        let steps = [CREATE, LOOK, RUN, CONNECT, DIFFERENT].concat();
        let (theirs, ours) = thread::scope(|scope| {
            let theirs = scope.spawn(|| steps.iter().map(|(it, _)| outcome(&docker, it)).collect());
            let ours: Vec<_> = steps.iter().map(|(it, _)| outcome(&podwire, it)).collect();
            let theirs: Vec<_> = theirs.join().expect("Docker's part");
            (theirs, ours)
        });
        let mut complaints = String::new();
        for (((line, same), docker), podwire) in steps.iter().zip(&theirs).zip(&ours) {
            if let Err(why) = compare(*same, docker, podwire) {
                complaints += &format!("\n{line}\n    {same:?}\n    {why}\n");
            }
        }
        assert!(complaints.is_empty(), "{complaints}");
    });
}
