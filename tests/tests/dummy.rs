//! dummy: an interface with addresses and without a wire; what DEL, CHECK, GC and STATUS make of accidents. Debian's Go
//! plugins (1.1.1) have none.
//!
//! It runs on a kernel with dummy interfaces, in a virtual machine (`tests/vm/run`); plain `cargo test` leaves it out.

use sandbox::{Netns, Sandbox, Suite, beyond_peer, conf, conf_of, container_id, row, versions_of};
use serde_json::{Value, json};

fn dummy(change: Value) -> Value {
    conf::with(&conf_of("dummy"), change)
}

fn add(sandbox: &Sandbox, conf: &Value, pod: &Netns) -> Value {
    sandbox.cni("dummy").add(conf, pod, "eth0").result()
}

fn del(sandbox: &Sandbox, conf: &Value, pod: &Netns) {
    sandbox.cni("dummy").del(conf, pod, "eth0").silent();
}

/// A pod with an interface.
fn attached() -> (Sandbox, Netns, Value) {
    let sandbox = Sandbox::new();
    let pod = sandbox.pod("a");
    let result = add(&sandbox, &dummy(json!({})), &pod);
    (sandbox, pod, result)
}

#[test]
fn a_pod_gets_addresses_and_del_takes_them_back() {
    let sandbox = Sandbox::new();
    let pod = sandbox.pod("a");
    // The node may have an interface of that name.
    sandbox.host().sh("ip link add eth0 type dummy");
    let snapshot = sandbox.snapshot().allow_host_local(conf::NETWORK);
    let conf = dummy(json!({"ipam": {"routes": [{"dst": "10.9.0.0/16"}]}}));
    let result = add(&sandbox, &conf, &pod);
    let link = pod.link("eth0").unwrap();
    assert_eq!(link["linkinfo"]["info_kind"], "dummy");
    assert_eq!(pod.addresses("eth0"), ["10.1.0.2/24", "fd01::2/64"]);
    assert_eq!(pod.routes_to("-4", "10.9.0.0/16")[0]["gateway"], "10.1.0.1");
    let interface = &result["interfaces"][0];
    assert_eq!(
        (&interface["name"], &interface["mac"]),
        (&"eth0".into(), &link["address"])
    );
    assert_eq!(interface["sandbox"], pod.path());
    assert_eq!(
        (&result["ips"][0]["address"], &result["ips"][1]["interface"]),
        (&"10.1.0.2/24".into(), &0.into())
    );
    let checked = conf::with_prev(&conf, &result);
    sandbox.cni("dummy").check(&checked, &pod, "eth0").silent();
    for _ in 0..2 {
        del(&sandbox, &checked, &pod);
    }
    snapshot.assert_unchanged();
}

#[test]
fn the_result_has_the_shape_of_its_version() {
    for version in versions_of("dummy").into_iter().chain(["1.1.0"]) {
        let sandbox = Sandbox::new();
        let pod = sandbox.pod("a");
        let conf = conf::at(&dummy(json!({})), version);
        let result = add(&sandbox, &conf, &pod);
        assert_eq!(result["cniVersion"], version);
        match version {
            "0.1.0" | "0.2.0" => {
                assert_eq!(result["ip4"]["ip"], "10.1.0.2/24");
                assert!(result.get("interfaces").is_none(), "{result}");
            }
            _ => {
                assert_eq!(result["interfaces"][0]["name"], "eth0");
                let mtu = (version == "1.1.0").then(|| 1500.into());
                assert_eq!(result["interfaces"][0].get("mtu"), mtu.as_ref());
            }
        }
        del(&sandbox, &conf, &pod);
        assert_eq!(pod.links(), ["lo"]);
    }
}

#[test]
fn without_addresses_there_is_no_interface() {
    let sandbox = Sandbox::new();
    let pod = sandbox.pod("a");
    let text = "dummy interface requires an IPAM configuration";
    let error = sandbox
        .cni("dummy")
        .add(&conf::plugin("dummy"), &pod, "eth0")
        .error();
    assert_eq!(error.msg, text);
    let error = sandbox
        .cni("dummy")
        .check(&conf::plugin("dummy"), &pod, "eth0")
        .error();
    assert_eq!(error.msg, text);
    assert_eq!(pod.links(), ["lo"]);
    beyond_peer(
        "its DEL asks for the plugin's name, and its STATUS does, too",
        || {
            let error = sandbox
                .cni("dummy")
                .status(&conf::at(&conf::plugin("dummy"), "1.1.0"))
                .error();
            assert_eq!((error.code, error.msg.as_str()), (7, text));
            del(&sandbox, &conf::plugin("dummy"), &pod);
        },
    );
}

#[test]
fn a_failed_add_leaves_nothing_and_takes_nothing() {
    let sandbox = Sandbox::new();
    let pod = sandbox.pod("a");
    let snapshot = sandbox.snapshot().allow_host_local(conf::NETWORK);
    let routes = json!({"ipam": {"routes": [{"dst": "10.8.0.0/16", "gw": "192.0.2.1"}]}});
    sandbox
        .cni("dummy")
        .add(&dummy(routes), &pod, "eth0")
        .error();
    snapshot.assert_unchanged();
    pod.sh("ip link add eth0 type dummy");
    let snapshot = sandbox.snapshot();
    let error = sandbox
        .cni("dummy")
        .add(&dummy(json!({})), &pod, "eth0")
        .error();
    assert!(
        error.msg.starts_with("failed to create dummy: file exists"),
        "{}",
        error.msg
    );
    snapshot.assert_unchanged();
}

#[test]
fn del_finds_the_interface_whatever_the_pod_has_changed_of_it() {
    beyond_peer("it knows the name alone", || {
        for (script, with_result) in [
            ("ip link set eth0 down; ip link set eth0 name x", false),
            (
                "ip link set eth0 down; ip link set eth0 name x; ip link set x alias ''",
                true,
            ),
            // What an ADD that was killed has left.
            ("ip link set eth0 alias ''", false),
        ] {
            let (sandbox, pod, result) = attached();
            pod.sh(&format!("{script}; ip link add own type dummy"));
            let conf = dummy(json!({}));
            let conf = if with_result {
                conf::with_prev(&conf, &result)
            } else {
                conf
            };
            del(&sandbox, &conf, &pod);
            assert_eq!(
                (pod.links(), sandbox.reserved()),
                (vec!["lo".to_owned(), "own".to_owned()], vec![]),
                "{script}"
            );
        }
    });
}

#[test]
fn gc_takes_what_is_not_claimed() {
    beyond_peer("it has no GC", || {
        let sandbox = Sandbox::new();
        let pods = ["a", "b"].map(|name| sandbox.pod(name));
        let conf = conf::at(&dummy(json!({})), "1.1.0");
        for pod in &pods {
            add(&sandbox, &conf, pod);
        }
        pods[0].sh("ip link set eth0 down; ip link set eth0 name x; ip link add own type dummy");
        let id = container_id(&pods[1]);
        sandbox
            .cni("dummy")
            .gc(&conf::with_valid(&conf, &[(&id, "eth0")]))
            .silent();
        assert_eq!(
            (pods[0].links().join(" "), pods[1].links().join(" ")),
            ("lo own".into(), "eth0 lo".into())
        );
        assert_eq!(sandbox.reserved(), ["10.1.0.3", "fd01::3"]);
    });
}

#[test]
fn check_notices_what_is_not_as_promised() {
    let (sandbox, pod, result) = attached();
    let conf = dummy(json!({}));
    let checked = conf::with_prev(&conf, &result);
    let check = || sandbox.cni("dummy").check(&checked, &pod, "eth0");
    check().silent();
    let error = sandbox.cni("dummy").check(&conf, &pod, "eth0").error();
    assert_eq!(error.msg, "dummy: Required prevResult missing");
    pod.sh("ip addr del 10.1.0.2/24 dev eth0");
    assert_eq!(
        check().error().msg,
        "Failed to match addr 10.1.0.2/24 on interface eth0"
    );
    pod.sh("ip link set eth0 down");
    assert_eq!(check().error().msg, "Interface eth0 is down");
    let mac = pod.link("eth0").unwrap()["address"]
        .as_str()
        .unwrap()
        .to_owned();
    pod.sh("ip link set eth0 address 02:00:00:00:00:09");
    let text = format!("Interface eth0 Mac {mac} doesn't match container Mac: 02:00:00:00:00:09");
    assert_eq!(check().error().msg, text);
    pod.sh("ip link del eth0");
    assert_eq!(
        check().error().msg,
        "Container Interface name in prevResult: eth0 not found"
    );
    pod.sh("ip link add eth0 type bridge");
    assert_eq!(
        check().error().msg,
        "Error: Container interface eth0 not of type dummy"
    );
}

#[test]
fn the_example_gives_a_pod_an_address() {
    beyond_peer(
        "podwire runs it, and it is not among the Go plugins",
        || {
            let sandbox = Sandbox::new();
            let pod = sandbox.pod("a");
            let dir = sandbox.dir().join("networks");
            let example = include_str!("../../netconf-examples/49-dummy.conflist");
            sandbox.write(dir.join("49.conflist"), example);
            let bin = Suite::Ours.dir().display();
            let run = |verb: &str| {
                let (dir, netns) = (dir.display(), pod.path());
                let command = format!(
                    "CNI_PATH={bin} NETCONFPATH={dir} {bin}/podwire {verb} example-dummy {netns}"
                );
                sandbox.host().sh(&command)
            };
            for verb in ["status", "add", "check"] {
                run(verb);
            }
            assert_eq!(pod.addresses("eth0"), ["10.210.49.2/24"]);
            run("del");
            assert_eq!(pod.links(), ["lo"]);
        },
    );
}

#[test]
fn the_table_knows_that_this_kernel_has_dummies() {
    assert!(row("dummy").runs_here());
}
