//! `podwire ipam`.

use sandbox::{Finished, Suite, beyond_peer};
use serde_json::{Value, json};

use crate::node::{Cluster, addresses};

fn podwire(cluster: &Cluster, arguments: &[&str]) -> Finished {
    let program = Suite::Ours.dir().join("podwire").display().to_string();
    let socket = cluster
        .sandbox
        .dir()
        .join("one/agent.sock")
        .display()
        .to_string();
    let common = [program.as_str(), "ipam", "--agent", &socket];
    cluster
        .sandbox
        .host()
        .run(&[&common[..], arguments].concat())
}

#[test]
fn leaks_are_found_and_released() {
    beyond_peer("it has no command podwire", || {
        let cluster = Cluster::new();
        let _agent = cluster.ready("one", json!({}));
        let conf = cluster.conf("one", json!({}));
        cluster.add(&conf, "lives");
        let gone = cluster.sandbox.pod("gone");
        let result = cluster.cni("leaks").add(&conf, &gone, "eth0").result();
        let leaked = addresses(&result)[0].trim_end_matches("/24").to_owned();
        let shown = podwire(&cluster, &["show", "--text"]);
        assert!(shown.stdout.contains("pool testnet"), "{}", shown.stdout);
        assert!(
            shown.stdout.contains("network testnet: 2 addresses"),
            "{}",
            shown.stdout
        );
        assert_eq!(podwire(&cluster, &["check"]).code, 0);
        let refused = podwire(&cluster, &["release", "--network", "testnet", &leaked]);
        assert!(
            refused.code == 1 && refused.stderr.contains("is in use"),
            "{}",
            refused.stderr
        );
        cluster.sandbox.remove_pod(&gone);
        let found = podwire(&cluster, &["check", "--json"]);
        let findings: Value = serde_json::from_str(&found.stdout).expect("JSON");
        assert_eq!(found.code, 1);
        assert_eq!(findings[0]["kind"], "leak");
        assert_eq!(findings[0]["address"], leaked);
        let released = podwire(&cluster, &["release", "--network", "testnet", &leaked]);
        assert_eq!(released.code, 0, "{}", released.stderr);
        assert_eq!(podwire(&cluster, &["check"]).code, 0);
        let own = podwire(&cluster, &["release", "--node", "one"]);
        assert!(
            own.code == 1 && own.stderr.contains("node one lives"),
            "{}",
            own.stderr
        );
    });
}

#[test]
fn addresses_of_other_plugins_are_taken_over() {
    beyond_peer("it has no command podwire", || {
        let cluster = Cluster::new();
        let _agent = cluster.ready("one", json!({}));
        let dir = cluster.sandbox.dir().join("host-local");
        cluster.sandbox.write(dir.join("10.7.0.9"), "old\r\neth0");
        cluster
            .sandbox
            .write(dir.join("last_reserved_ip.0"), "10.7.0.9");
        let pool = json!({"spec": {"range": "10.7.0.0/24", "allocations": {
            "20": {"id": "older", "podref": "x/y", "ifname": "net1"},
        }}});
        let file = cluster.sandbox.dir().join("pool.json");
        cluster.sandbox.write(&file, pool.to_string());
        let (dir, file) = (dir.display().to_string(), file.display().to_string());
        let network = ["import", "--network", "testnet", "--range", "10.7.0.0/24"];
        let import = |more: &[&str]| podwire(&cluster, &[&network[..], more].concat());
        let dry = import(&["--dry-run", "--all", &dir, &file, "--text"]);
        assert_eq!(dry.code, 0, "{}", dry.stderr);
        assert!(dry.stdout.contains("would take"), "{}", dry.stdout);
        assert_eq!(cluster.status("one")["use"], json!({}));
        // Only containers of this node.
        let done = import(&["--json", &dir, &file]);
        assert_eq!(done.code, 0, "{}", done.stderr);
        assert_eq!(cluster.status("one")["use"], json!({"testnet": 1}));
        let done = import(&["--json", "--all", &file]);
        assert_eq!(done.code, 0, "{}", done.stderr);
        let conf = cluster.conf(
            "one",
            json!({"rangeStart": "10.7.0.8", "rangeEnd": "10.7.0.21"}),
        );
        let all: Vec<_> = (0..12)
            .flat_map(|n| cluster.add(&conf, &format!("c{n}")))
            .collect();
        assert!(
            !all.contains(&"10.7.0.9/24".into()) && !all.contains(&"10.7.0.20/24".into()),
            "{all:?}"
        );
        // Their DEL finds them.
        cluster.del(&conf, "old");
        assert_eq!(cluster.add(&conf, "new"), ["10.7.0.9/24"]);
    });
}
