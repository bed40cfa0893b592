//! The agent, and what the kernel can do.

use sandbox::{Netns, Suite, beyond_peer, conf};
use serde_json::{Value, json};

use crate::{Node, WHY, bridge, network};

const SOCKET: &str = "/run/podwire/podwired.sock";

/// Answers each question as an agent of another version does.
const OLD: &str = r#"
    my $all = IO::Socket::UNIX->new(Local => $ARGV[0], Listen => 5) or die;
    while (my $it = $all->accept) {
        <$it>; print $it qq({"version":"1.0.0","onDemand":false,"roles":{}}\n); close $it;
    }"#;

/// A node whose network has names.
fn with_names() -> Node {
    let node = Node::empty();
    let names = json!({"type": "dnsname", "domainName": "test", "capabilities": {"aliases": true}});
    node.configure("net", &network("net", &[bridge(), names]));
    node.must(&["add", "net", &node.blue.path()]);
    node
}

impl Node {
    fn agent(&self, conf: &Value) -> sandbox::Running {
        self.resolv_conf("");
        let file = self.sandbox.dir().join("podwired.json");
        self.sandbox.write(&file, conf.to_string());
        let program = Suite::Ours.dir().join("podwired").display().to_string();
        let host = self.host();
        let agent = host.start(&[&program, "--config", &file.display().to_string()]);
        host.wait_until("the agent answers", |it| {
            it.sh(&format!(
                "echo '{{\"status\":{{}}}}' | nc -NU {SOCKET} || true"
            ))
            .contains("\"onDemand\":false")
        });
        agent
    }
}

#[test]
fn names_without_an_agent_and_questions_that_are_lost() {
    beyond_peer(WHY, || {
        let node = with_names();
        let agent = node.agent(&json!({"resolver": {}}));
        node.assert_healthy();
        node.host()
            .sh("iptables -I INPUT -i cni0 -p udp --dport 53 -j DROP");
        let finding = node.finding("PW046");
        assert_eq!(finding["network"], "net");
        node.host()
            .sh("iptables -D INPUT -i cni0 -p udp --dport 53 -j DROP");
        node.assert_healthy();
        drop(agent);
        node.finding("PW043");
        let _agent = node.agent(&json!({"resolver": {}}));
        node.assert_healthy();
    });
}

#[test]
fn a_server_of_the_node_that_does_not_answer() {
    beyond_peer(WHY, || {
        let node = with_names();
        let _agent = node.agent(&json!({"resolver": {}}));
        node.resolv_conf("nameserver 192.0.2.1\n");
        let finding = node.finding("PW047");
        assert_eq!(finding["what"], "192.0.2.1:53 does not answer");
        let server = ["--listen-address=192.0.2.1", "--bind-interfaces"];
        let _server = node.host().name_server(&server);
        node.assert_healthy();
    });
}

/// The pod asks where the resolver was when it came; since then, another server has the port.
#[test]
fn a_server_that_has_taken_the_port() {
    beyond_peer(WHY, || {
        let node = with_names();
        let host = node.host();
        // The one that the plugin has started.
        host.sh(&format!("echo '{{\"giveWay\":{{}}}}' | nc -NU {SOCKET}"));
        let taken = |it: &Netns| it.sh("ss -Hlun sport = 53");
        host.wait_until("the port is free", |it| taken(it).is_empty());
        let other = host.name_server(&[]);
        let _agent = node.agent(&json!({"resolver": {}}));
        node.finding("PW046");
        drop(other);
        host.wait_until("the agent has the port", |it| {
            it.sh("ss -Hlun src 10.1.0.1:53").contains("10.1.0.1")
        });
        node.assert_healthy();
    });
}

#[test]
fn an_agent_that_cannot_do_what_it_is_for() {
    beyond_peer(WHY, || {
        let node = Node::new();
        let etcd = json!({"endpoints": ["http://127.0.0.1:9"]});
        let networks = json!([{"name": "pods", "dev": "uplink"}]);
        let agent = node.agent(&json!({"overlay": {"etcd": etcd, "networks": networks}}));
        let finding = node.finding("PW044");
        assert!(
            finding["what"].to_string().contains("overlay: "),
            "{finding}"
        );
        drop(agent);
        let _agent = node.agent(&json!({"resolver": {}}));
        node.assert_healthy();
    });
}

#[test]
fn an_agent_of_another_version() {
    beyond_peer(WHY, || {
        let node = Node::new();
        node.host().sh("mkdir -p /run/podwire");
        let old = node
            .host()
            .start(&["perl", "-MIO::Socket::UNIX", "-e", OLD, SOCKET]);
        node.host()
            .wait_until("it listens", |it| it.run(&["test", "-S", SOCKET]).code == 0);
        node.finding("PW045");
        drop(old);
        node.host().sh(&format!("rm {SOCKET}"));
        let _agent = node.agent(&json!({"resolver": {}}));
        node.assert_healthy();
    });
}

/// The suite runs on a kernel without dummy links; in the virtual machine, ifb is left out.
#[test]
fn a_kernel_without_the_links_of_a_network() {
    beyond_peer(WHY, || {
        let node = Node::empty();
        let dummy = json!({"type": "dummy", "ipam": conf::host_local_ipam(&["10.1.0.0/24"])});
        node.configure("net", &network("net", &[dummy]));
        let finding = node.finding("PW037");
        assert!(
            finding["what"].to_string().contains("kind dummy"),
            "{finding}"
        );
        node.configure("net", &network("net", &[bridge()]));
        node.assert_healthy();
    });
}
