//! The agent `podwired`: its life, its socket and its endpoint; the role that answers for names.

mod forwarding;
mod life;
mod names;
mod names_node;
mod node;

use std::time::Duration;

use sandbox::beyond_peer;
use serde_json::json;

use node::{Node, SOCKET, is_running};

const WHY: &str = "the Go suite has no such agent";

#[test]
fn a_faulty_configuration_is_refused_with_every_key() {
    beyond_peer(WHY, || {
        let node = Node::new();
        let done = node.run(r#"{"resolver": {}, "endpoint": "0.0.0.0:1", "x": 1}"#, &[]);
        assert_eq!((done.code, done.stdout.as_str()), (1, ""));
        for text in [
            "endpoint: \"0.0.0.0:1\" is not an address of the loopback",
            "x: unknown key",
        ] {
            assert!(done.stderr.contains(text), "{text}: {}", done.stderr);
        }
        assert_eq!(node.run(r#"{"resolver": {}}"#, &["--check"]).code, 0);
        assert_eq!(node.run("{}", &["--nonsense"]).code, 2);
        assert!(node.run("{}", &["--help"]).stdout.contains("--on-demand"));
    });
}

#[test]
fn an_agent_serves_until_sigterm_and_there_is_one() {
    beyond_peer(WHY, || {
        let node = Node::new();
        let page = "/run/podwire/endpoint.sock";
        let conf = json!({"resolver": {}, "endpoint": format!("unix:{page}"), "logLevel": "debug"});
        let agent = node.start(&conf);
        let status = node.ask(r#"{"status":{}}"#).expect("an answer");
        assert_eq!(status["roles"]["resolver"]["ready"], true, "{status}");
        for request in ["nonsense", "{}", r#"{"overlay":{}}"#, r#"{"giveWay":{}}"#] {
            let answer = node.ask(request).expect("an answer");
            assert!(answer["error"].is_string(), "{request}: {answer}");
        }
        for path in ["/healthz", "/readyz"] {
            assert_eq!(node.page(page, path).1, "ok\n");
        }
        let (status, metrics) = node.page(page, "/metrics");
        assert_eq!(status, "HTTP/1.1 200 OK");
        assert!(
            metrics.contains("podwired_role_ready{role=\"resolver\"} 1\n"),
            "{metrics}"
        );
        assert_eq!(node.page(page, "/x").0, "HTTP/1.1 404 Not Found");
        let modes = node
            .host()
            .sh(&format!("stat -c %a {SOCKET} {page} /run/podwire"));
        assert_eq!(modes, "600\n600\n700\n");
        // Another one does not start beside it; on demand it is as good.
        let second = node.run(&conf.to_string(), &[]);
        assert!(
            second.stderr.contains("another agent runs"),
            "{}",
            second.stderr
        );
        assert_eq!(node.run(&conf.to_string(), &["--on-demand"]).code, 0);
        node.host().sh(&format!("kill {}", agent.id()));
        node.host()
            .wait_until("the agent ends", |_| !is_running(&agent));
        assert_eq!(
            node.sandbox.list("/run/podwire"),
            ["names", "podwired.lock"]
        );
    });
}

#[test]
fn on_demand_an_agent_detaches_gives_way_and_ends_without_work() {
    beyond_peer(WHY, || {
        let node = Node::new();
        let program = Node::program();
        // cat ends when the standard output is closed: then the socket answers.
        let start = format!("({program} --on-demand 2>/dev/null </dev/null &) | cat");
        let limit = Duration::from_secs(10);
        assert_eq!(node.host().run_for(&["sh", "-c", &start], limit).code, 0);
        assert!(node.ask(r#"{"status":{}}"#).is_some());
        node.host().wait_until("it ends", |_| {
            node.sandbox.list("/run/podwire") == ["names", "podwired.lock"]
        });
        assert_eq!(node.host().run_for(&["sh", "-c", &start], limit).code, 0);
        let unit = node.start(&json!({"resolver": {}}));
        node.host().wait_until("the unit has taken over", |_| {
            let status = node.ask(r#"{"status":{}}"#);
            status.is_some_and(|it| it["onDemand"] == false)
        });
        assert!(is_running(&unit));
    });
}
