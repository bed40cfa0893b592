//! `ls`: columns, filters, formats; which word names a network.

use sandbox::beyond_peer;

use crate::WHY;
use crate::node::{Node, bad, good};

#[test]
fn columns_are_dockers() {
    beyond_peer(WHY, || {
        let node = Node::new();
        let id = node.create(&["--label", "b=2", "--label", "a=1", "--internal", "net10"]);
        node.create(&["net2"]);
        let table = good(&node.network(&["ls"]));
        let lines: Vec<_> = table.lines().collect();
        assert_eq!(lines[0], "NETWORK ID     NAME      DRIVER    SCOPE");
        assert_eq!(
            lines[4],
            format!("{}   net10     bridge    local", &id[..12]),
            "{table}"
        );
        let names = good(&node.network(&["ls", "--format", "{{.Name}}"]));
        assert_eq!(
            names, "bridge\nhost\nnet2\nnet10\nnone\n",
            "numbers count as numbers"
        );
        assert_eq!(
            good(&node.network(&["ls", "-q", "-f", "name=net10"])),
            format!("{}\n", &id[..12])
        );
        assert_eq!(
            good(&node.network(&["list", "-q", "--no-trunc", "-f", "name=net10"])),
            format!("{id}\n")
        );
        let table = good(&node.network(&[
            "ls",
            "-f",
            "id=".to_owned().as_str(),
            "-f",
            "name=net10",
            "--format",
            "table {{.Name}}\\t{{.Internal}}\\t{{.Labels}}",
        ]));
        assert_eq!(
            table,
            "NAME      INTERNAL   LABELS\nnet10     true       a=1,b=2\n"
        );
        let json = good(&node.network(&["ls", "-f", "name=net10", "--format", "json"]));
        let row: serde_json::Value = serde_json::from_str(&json).expect("an object in a line");
        let keys: Vec<_> = row.as_object().expect("an object").keys().collect();
        assert_eq!(
            keys,
            [
                "CreatedAt",
                "Driver",
                "ID",
                "IPv4",
                "IPv6",
                "Internal",
                "Labels",
                "Name",
                "Scope"
            ]
        );
        assert_eq!(row["Internal"], "true");
        assert!(
            row["CreatedAt"]
                .as_str()
                .is_some_and(|it| it.ends_with(" +0000 UTC"))
        );
    });
}

#[test]
fn filters_are_dockers() {
    beyond_peer(WHY, || {
        let node = Node::new();
        node.create(&["--label", "team=blue", "--label", "x", "one"]);
        node.create(&["--label", "team=red", "two"]);
        for (filters, expected) in [
            (&["type=builtin"][..], "bridge host none"),
            (&["type=custom"], "one two"),
            (&["name=^one", "name=two"], "one two"),
            (&["name=^o"], "one"),
            (&["driver=null", "driver=host"], "host none"),
            (&["label=team"], "one two"),
            (&["label=team=blue"], "one"),
            (&["label=team", "label=x"], "one"),
            (&["label=x", "driver=macvlan"], ""),
            (&["dangling=true"], "one two"),
            (&["dangling=0", "type=custom"], ""),
            (&["scope=local", "type=custom"], "one two"),
            (&["scope=swarm"], ""),
        ] {
            let mut args = vec!["ls", "--format", "{{.Name}}"];
            args.extend(filters.iter().flat_map(|it| ["--filter", it]));
            let names = good(&node.network(&args));
            assert_eq!(
                names.split_whitespace().collect::<Vec<_>>().join(" "),
                expected,
                "{filters:?}"
            );
        }
    });
}

#[test]
fn a_network_is_named_by_id_name_or_beginning() {
    beyond_peer(WHY, || {
        let node = Node::new();
        let id = node.create(&["one"]);
        node.create(&[&id[..8]]);
        assert_eq!(node.template("{{.Name}}", &id), "one");
        assert_eq!(
            node.template("{{.Name}}", &id[..8]),
            id[..8],
            "a name wins over an id"
        );
        assert_eq!(node.template("{{.Name}}", &id[..9]), "one");
        let ids = good(&node.network(&["ls", "-q"]));
        let common = ids
            .lines()
            .find(|one| ids.lines().filter(|it| it[..1] == one[..1]).count() > 1);
        if let Some(common) = common {
            bad(&node.network(&["inspect", &common[..1]]), "is ambiguous (");
        }
        for (network, code) in [("one", 0), (&id, 0), ("nosuch", 1), ("", 1)] {
            let done = node.network(&["exists", network]);
            assert_eq!((done.code, done.stdout.as_str()), (code, ""), "{done:?}");
        }
        let done = node.network(&["inspect", "one", "nosuch", "host"]);
        bad(&done, "network nosuch not found");
        let found: serde_json::Value = serde_json::from_str(&done.stdout).expect("JSON");
        assert_eq!(found.as_array().expect("an array").len(), 2);
    });
}
