//! Names come and go: with records, containers, agents and other servers.

use std::time::Duration;

use sandbox::beyond_peer;
use serde_json::{Value, json};

use super::WHY;
use super::names_node::{Names, record};
use super::node::{Node, is_running};

fn network() -> Value {
    json!({"name": "web", "listen": ["10.1.0.1"], "subnets": ["10.1.0.0/24"]})
}

fn node() -> Names {
    let names = Names::new();
    names.bridge("br1", &["10.1.0.1/24"]);
    names.attach("a", "br1", &["10.1.0.2/24"]);
    names
}

#[test]
fn a_change_is_seen_once_it_is_acknowledged_and_without_that_soon() {
    beyond_peer(WHY, || {
        let names = node();
        let _agent = names.start();
        let ask = |name: &str| names.short("a", "10.1.0.1", &[name]);
        let write = |address: &str| {
            names.write("web/a:eth0", &record(&network(), "a", &["db"], &[address]));
        };
        for address in ["10.1.0.2", "10.1.0.3", "10.1.0.2"] {
            write(address);
            assert_eq!(names.read("web/a:eth0"), json!({"servers": ["10.1.0.1"]}));
            assert_eq!(ask("db"), address);
        }
        write("10.1.0.4");
        names
            .node
            .host()
            .wait_until("a written file is seen", |_| ask("db") == "10.1.0.4");
        names.write(
            "web/b:eth0",
            &record(&network(), "b", &["b"], &["10.1.0.9"]),
        );
        names.read("web/b:eth0");
        names.remove("web/b:eth0");
        names
            .node
            .host()
            .wait_until("a removed file is seen", |_| ask("b").is_empty());
        names
            .node
            .sandbox
            .write("/run/podwire/names/web/a:eth0", "{");
        let answer = names.read("web/a:eth0");
        assert!(
            answer["error"]
                .as_str()
                .is_some_and(|it| it.contains("web/a:eth0")),
            "{answer}"
        );
        names.node.host().sh("rm -r /run/podwire/names");
        names
            .node
            .host()
            .wait_until("the address is closed", |host| {
                host.run(&["sh", "-c", "ss -Hlun src 10.1.0.1:53 | grep -q ."])
                    .code
                    != 0
            });
        write("10.1.0.5");
        names
            .node
            .host()
            .wait_until("a new directory is seen", |_| ask("db") == "10.1.0.5");
    });
}

#[test]
fn the_record_of_a_container_that_ended_without_del_is_removed() {
    beyond_peer(WHY, || {
        let names = node();
        let _agent = names.start();
        let pod = names.attach("b", "br1", &["10.1.0.3/24"]);
        let host = names.node.host();
        let stat = |path: &str| host.sh(&format!("stat -L -c '%d %i' {path}"));
        let namespace = stat(&pod.path());
        let (device, inode) = namespace.trim().split_once(' ').expect("two numbers");
        let mount = stat("/proc/self/ns/mnt");
        let mount = mount.trim().split_once(' ').expect("two numbers").1;
        let number = |text: &str| text.parse::<u64>().expect("a number");
        let mut record = record(&network(), "b", &["b"], &["10.1.0.3"]);
        record["namespace"] = json!({
            "path": pod.path(), "device": number(device), "inode": number(inode), "mountNamespace": number(mount),
        });
        names.write("web/b:eth0", &record);
        names.read("web/b:eth0");
        assert_eq!(names.short("a", "10.1.0.1", &["b"]), "10.1.0.3");
        names.node.sandbox.remove_pod(&pod);
        host.wait_until("the record is removed", |_| {
            names.node.sandbox.list("/run/podwire/names").is_empty()
        });
    });
}

#[test]
fn an_agent_that_was_killed_has_all_names_when_it_is_back() {
    beyond_peer(WHY, || {
        let names = node();
        names.write(
            "web/a:eth0",
            &record(&network(), "a", &["db"], &["10.1.0.2"]),
        );
        let agent = names.start();
        drop(agent);
        assert!(!names.dig("a", "10.1.0.1", &["db"]).contains("10.1.0.2"));
        names.write(
            "web/b:eth0",
            &record(&network(), "b", &["b"], &["10.1.0.3"]),
        );
        let _agent = names.start();
        assert_eq!(names.short("a", "10.1.0.1", &["db"]), "10.1.0.2");
        assert_eq!(names.short("a", "10.1.0.1", &["b"]), "10.1.0.3");
    });
}

#[test]
fn a_port_that_another_server_has_is_reported_and_taken_over_later() {
    beyond_peer(WHY, || {
        let names = node();
        let host = names.node.host();
        let other = host.name_server(&[]);
        let agent = names.start();
        names.write(
            "web/a:eth0",
            &record(&network(), "a", &["db"], &["10.1.0.2"]),
        );
        assert_eq!(names.read("web/a:eth0"), json!({"servers": []}));
        let status = names.node.ask(r#"{"status":{}}"#).expect("an answer");
        let ready = status["roles"]["resolver"]["ready"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        assert!(
            ready.contains("port 53 of 10.1.0.1: address already in use"),
            "{status}"
        );
        assert!(
            agent.output().contains("cannot answer at 10.1.0.1"),
            "{}",
            agent.output()
        );
        drop(other);
        host.wait_until("the address is served", |_| {
            names.read("web/a:eth0") == json!({"servers": ["10.1.0.1"]})
        });
        assert_eq!(names.short("a", "10.1.0.1", &["db"]), "10.1.0.2");
    });
}

#[test]
fn questions_pass_the_nodes_firewall_where_its_policy_is_to_drop() {
    beyond_peer(WHY, || {
        let names = node();
        let host = names.node.host();
        host.sh("iptables -P INPUT DROP; iptables -A INPUT -i lo -j ACCEPT");
        let network = json!({
            "name": "web", "listen": ["10.1.0.1"], "subnets": ["10.1.0.0/24"], "bridge": "br1",
        });
        names.write("web/a:eth0", &record(&network, "a", &["db"], &["10.1.0.2"]));
        let _agent = names.start();
        host.wait_until("questions are accepted", |_| {
            let args = ["db", "+time=1"];
            names.short("a", "10.1.0.1", &args) == "10.1.0.2"
        });
        assert_eq!(names.short("a", "10.1.0.1", &["db", "+tcp"]), "10.1.0.2");
        let rules = || host.sh("iptables -S INPUT");
        assert_eq!(rules().matches("podwire: names").count(), 2, "{}", rules());
        names.remove("web/a:eth0");
        host.wait_until("the rules are removed", |_| !rules().contains("podwire"));
    });
}

#[test]
fn on_demand_the_agent_ends_with_the_last_name() {
    beyond_peer(WHY, || {
        let names = node();
        let (program, host) = (Node::program(), names.node.host());
        names.write(
            "web/a:eth0",
            &record(&network(), "a", &["db"], &["10.1.0.2"]),
        );
        // With a descriptor of the processes above, as the lock that podwire run shares with plugins.
        let start = format!(
            "exec 7</etc/passwd; ({program} --on-demand 2>/dev/null </dev/null & echo $! >&2) | cat"
        );
        let done = host.run_for(&["sh", "-c", &start], Duration::from_secs(10));
        let pid = done.stderr.trim().to_owned();
        assert_eq!(names.short("a", "10.1.0.1", &["db"]), "10.1.0.2");
        let open = host.run(&["ls", "-l", &format!("/proc/{pid}/fd")]).stdout;
        assert!(open.contains("podwired.lock"), "{open}");
        assert!(!open.contains("/etc/passwd"), "{open}");
        // Longer than it stays without names.
        std::thread::sleep(Duration::from_millis(1300));
        assert_eq!(names.short("a", "10.1.0.1", &["db"]), "10.1.0.2");
        names.remove("web/a:eth0");
        host.wait_until("it ends", |host| host.run(&["kill", "-0", &pid]).code != 0);
        assert_eq!(
            names.node.sandbox.list("/run/podwire"),
            ["names", "podwired.lock"]
        );
        let agent = names.start();
        assert!(is_running(&agent));
    });
}
