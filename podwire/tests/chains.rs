//! Chains of plugins: their order, the input of each, and roll-back.

mod node;

use std::fs;

use node::{NETNS, Node, container_id};
use serde_json::{Value, json};

#[test]
fn add_passes_each_result_to_the_next_and_prints_the_last() {
    let node = Node::new();
    node.working_plugin("a");
    node.working_plugin("b");
    node.network(&["a", "b"]);
    let done = node.podwire(&["add", "net", NETNS]).succeeded();
    assert_eq!(done.json()["interfaces"], json!([{"name": "b"}]));
    let calls = node.calls();
    assert_eq!(node.order(), ["a:ADD", "b:ADD"]);
    assert_eq!(
        calls[0].stdin,
        json!({"cniVersion": "1.1.0", "name": "net", "type": "a"})
    );
    assert_eq!(
        calls[1].stdin["prevResult"]["interfaces"],
        json!([{"name": "a"}])
    );
    assert_eq!(calls[1].env["CNI_NETNS"], NETNS);
    assert_eq!(calls[1].env["CNI_IFNAME"], "eth0");
    assert_eq!(calls[1].env["CNI_CONTAINERID"], container_id());
    assert_eq!(calls[1].env["CNI_ARGS"], "");
    assert_eq!(
        calls[1].env["CNI_PATH"],
        node.path("bin").display().to_string()
    );
}

#[test]
fn a_result_reaches_stdout_to_the_byte() {
    let node = Node::new();
    let text = r#"{ "ips": [ ],   "cniVersion":"1.1.0", "custom": {"b": 1, "a": 2} }"#;
    node.plugin("a", &format!("printf '%s' '{text}'"));
    node.network(&["a"]);
    let done = node.podwire(&["add", "--json", "net", NETNS]).succeeded();
    assert_eq!(done.stdout, format!("{text}\n"));
}

#[test]
fn text_is_a_table_and_a_pipe_gets_json() {
    let node = Node::new();
    node.working_plugin("a");
    node.network(&["a"]);
    let piped = node.podwire(&["add", "net", NETNS]).succeeded();
    assert!(piped.stdout.starts_with('{'), "{piped:?}");
    let shown = node.podwire(&["add", "--text", "net", NETNS]).succeeded();
    assert_eq!(shown.stdout, "on the host a\n");
    let silent = node.podwire(&["del", "net", NETNS]).succeeded();
    assert_eq!(silent.stdout, "");
}

#[test]
fn capabilities_and_args_reach_the_plugins_that_declare_them() {
    let node = Node::new();
    node.working_plugin("a");
    node.configure(
        "10-net.conflist",
        &json!({"cniVersion": "1.1.0", "name": "net", "plugins": [
            {"type": "a", "capabilities": {"ips": true, "mac": false}}]}),
    );
    let variables = [
        (
            "CAP_ARGS",
            r#"{"ips": ["10.0.0.2/24"], "mac": "02:00:00:00:00:01"}"#,
        ),
        ("CNI_ARGS", "K=V;L=W"),
        ("CNI_IFNAME", "net1"),
        ("OTHER", "inherited"),
    ];
    let add = ["add", "--container-id", "pod1", "net", NETNS];
    node.podwire_with(&variables, &add).succeeded();
    let call = &node.calls()[0];
    assert_eq!(call.stdin["runtimeConfig"], json!({"ips": ["10.0.0.2/24"]}));
    assert_eq!(call.env["CNI_ARGS"], "K=V;L=W");
    assert_eq!(call.env["OTHER"], "inherited");
    assert!(node.path("cache/results/net-pod1-net1").exists());

    // DEL gets the same without the variables.
    node.forget_calls();
    let del = ["del", "--container-id", "pod1", "-i", "net1", "net"];
    node.podwire(&del).succeeded();
    let call = &node.calls()[0];
    assert_eq!(call.stdin["runtimeConfig"], json!({"ips": ["10.0.0.2/24"]}));
    assert_eq!(call.env["CNI_ARGS"], "K=V;L=W");
    assert_eq!(call.env["CNI_NETNS"], NETNS);
}

#[test]
fn a_failed_add_is_rolled_back_in_reverse_with_what_is_known() {
    let node = Node::new();
    node.working_plugin("a");
    node.working_plugin("b");
    node.failing_plugin("c", "ADD", 11);
    node.working_plugin("d");
    node.network(&["a", "b", "c", "d"]);
    let stderr = node.podwire(&["add", "net", NETNS]).failed();
    assert_eq!(
        stderr,
        "podwire: plugin type=\"c\" failed (add): c is broken; why\n"
    );
    assert_eq!(
        node.order(),
        ["a:ADD", "b:ADD", "c:ADD", "c:DEL", "b:DEL", "a:DEL"]
    );
    let del = &node.calls()[3];
    assert_eq!(
        del.stdin["prevResult"]["interfaces"],
        json!([{"name": "b"}])
    );
    assert!(!node.cached().exists());
}

#[test]
fn a_failed_roll_back_is_reported_beside_the_cause() {
    let node = Node::new();
    node.failing_plugin("a", "DEL", 999);
    node.failing_plugin("b", "ADD", 11);
    node.network(&["a", "b"]);
    let done = node.podwire(&["add", "--json", "net", NETNS]);
    assert_eq!(done.status, 1);
    assert_eq!(
        done.json(),
        json!({
            "code": 11,
            "msg": "plugin type=\"b\" failed (add): b is broken",
            "details": "why; could not roll back: plugin type=\"a\" failed (delete): a is broken; why"
        })
    );
    assert_eq!(done.stderr, "");
}

#[test]
fn the_same_failure_is_reported_once() {
    let node = Node::new();
    node.plugin("a", r#"echo '{"code": 1, "msg": "too new"}'; exit 1"#);
    node.network(&["a"]);
    let stderr = node.podwire(&["add", "net", NETNS]).failed();
    assert_eq!(stderr, "podwire: plugin type=\"a\" failed (add): too new\n");
    assert_eq!(node.order(), ["a:ADD", "a:DEL"]);
}

#[test]
fn a_failed_add_can_be_left_as_it_is() {
    let node = Node::new();
    node.failing_plugin("a", "ADD", 11);
    node.network(&["a"]);
    node.podwire(&["add", "--no-rollback", "net", NETNS])
        .failed();
    assert_eq!(node.order(), ["a:ADD"]);
}

#[test]
fn a_second_add_that_fails_does_not_take_the_first() {
    let node = Node::new();
    node.working_plugin("a");
    node.network(&["a"]);
    node.podwire(&["add", "net", NETNS]).succeeded();
    node.failing_plugin("a", "ADD", 999);
    node.forget_calls();
    let stderr = node.podwire(&["add", "net", NETNS]).failed();
    assert!(
        stderr.contains("not rolled back: eth0 was there before"),
        "{stderr}"
    );
    assert_eq!(node.order(), ["a:ADD"]);
    assert!(node.cached().exists());
}

#[test]
fn an_interface_that_is_not_cached_is_not_rolled_back_either() {
    let node = Node::new();
    node.failing_plugin("a", "ADD", 999);
    node.network(&["a"]);
    // Our own namespace has a lo; the plugin touches nothing.
    let add = ["add", "-i", "lo", "net", "/proc/self/ns/net"];
    let stderr = node.podwire(&add).failed();
    assert!(
        stderr.contains("not rolled back: lo was there before"),
        "{stderr}"
    );
    assert_eq!(node.order(), ["a:ADD"]);
}

#[test]
fn a_missing_plugin_is_reported_before_any_has_run() {
    let node = Node::new();
    node.working_plugin("a");
    node.network(&["a", "nope"]);
    let stderr = node.podwire(&["add", "net", NETNS]).failed();
    assert!(
        stderr.contains(
            "plugin type=\"nope\" failed (add): failed to find plugin \"nope\" in path ["
        ),
        "{stderr}"
    );
    assert!(node.order().is_empty());
}

#[test]
fn a_result_that_is_none_is_an_error_and_rolled_back() {
    let node = Node::new();
    node.plugin("a", "echo nonsense");
    node.network(&["a"]);
    let stderr = node.podwire(&["add", "net", NETNS]).failed();
    assert!(
        stderr.contains("failed to unmarshal raw result"),
        "{stderr}"
    );
    assert_eq!(node.order(), ["a:ADD", "a:DEL"]);
}

#[test]
fn del_runs_every_plugin_in_reverse_whatever_fails() {
    let node = Node::new();
    node.working_plugin("a");
    node.failing_plugin("b", "DEL", 999);
    node.failing_plugin("c", "DEL", 11);
    node.network(&["a", "b", "c"]);
    node.podwire(&["add", "net", NETNS]).succeeded();
    node.forget_calls();
    let done = node.podwire(&["del", "--json", "net", NETNS]);
    assert_eq!(done.status, 1);
    let error = done.json();
    assert_eq!(error["code"], 11);
    assert_eq!(
        error["msg"],
        "plugin type=\"c\" failed (delete): c is broken"
    );
    let details = error["details"].as_str().unwrap();
    assert!(details.contains("b is broken"), "{details}");
    assert_eq!(node.order(), ["c:DEL", "b:DEL", "a:DEL"]);
    assert_eq!(
        node.calls()[2].stdin["prevResult"]["interfaces"],
        json!([{"name": "c"}])
    );
    // It can be repeated, and is then forgotten.
    assert!(node.cached().exists());
    node.working_plugin("b");
    node.working_plugin("c");
    node.podwire(&["del", "net", NETNS]).succeeded();
    assert!(!node.cached().exists());
}

#[test]
fn del_of_what_is_not_attached_succeeds_without_a_previous_result() {
    let node = Node::new();
    node.working_plugin("a");
    node.network(&["a"]);
    node.podwire(&["del", "net", NETNS]).succeeded();
    assert!(node.calls()[0].stdin.get("prevResult").is_none());
}

#[test]
fn del_goes_on_with_the_configuration_of_the_add_when_the_file_has_gone() {
    let node = Node::new();
    node.working_plugin("a");
    node.network(&["a"]);
    node.podwire(&["add", "net", NETNS]).succeeded();
    fs::remove_file(node.path("net.d/10-net.conflist")).unwrap();
    node.forget_calls();
    node.podwire(&["del", "net", NETNS]).succeeded();
    assert_eq!(node.order(), ["a:DEL"]);
    assert!(!node.cached().exists());
    let stderr = node.podwire(&["del", "net", NETNS]).failed();
    assert!(
        stderr.contains("no net configurations found in "),
        "{stderr}"
    );
}

#[test]
fn versions_before_040_have_no_previous_result_at_del_and_no_check() {
    let node = Node::new();
    node.plugin("a", "[ $CNI_COMMAND != ADD ] || echo '{\"ips\": []}'");
    node.configure(
        "10-net.conf",
        &json!({"cniVersion": "0.3.1", "name": "net", "type": "a"}),
    );
    node.podwire(&["add", "net", NETNS]).succeeded();
    let stderr = node.podwire(&["check", "net", NETNS]).failed();
    assert_eq!(
        stderr,
        "podwire: configuration version \"0.3.1\" does not support the CHECK command\n"
    );
    node.podwire(&["del", "net", NETNS]).succeeded();
    assert_eq!(node.order(), ["a:ADD", "a:DEL"]);
    assert!(node.calls()[1].stdin.get("prevResult").is_none());
    assert!(!node.cached().exists());
}

#[test]
fn check_goes_forward_with_the_result_of_the_add_and_stops_at_the_first_error() {
    let node = Node::new();
    node.working_plugin("a");
    node.failing_plugin("b", "CHECK", 100);
    node.working_plugin("c");
    node.network(&["a", "b", "c"]);
    node.podwire(&["add", "net", NETNS]).succeeded();
    node.forget_calls();
    let done = node.podwire(&["check", "--json", "net", NETNS]);
    assert_eq!((done.status, &done.json()["code"]), (1, &json!(100)));
    assert_eq!(node.order(), ["a:CHECK", "b:CHECK"]);
    assert_eq!(
        node.calls()[0].stdin["prevResult"]["interfaces"],
        json!([{"name": "c"}])
    );
}

#[test]
fn check_can_be_disabled() {
    let node = Node::new();
    node.configure(
        "10-net.conflist",
        &json!({"cniVersion": "1.0.0", "name": "net", "disableCheck": true,
                "plugins": [{"type": "nope"}]}),
    );
    let done = node.podwire(&["check", "--text", "net", NETNS]).succeeded();
    assert_eq!(done.stdout, "net has disableCheck: nothing was checked\n");
}

#[test]
fn status_goes_forward_without_an_attachment_and_keeps_the_code() {
    let node = Node::new();
    node.working_plugin("a");
    node.failing_plugin("b", "STATUS", 50);
    node.working_plugin("c");
    node.network(&["a", "b", "c"]);
    let variables = [("CNI_CONTAINERID", "stray"), ("CAP_ARGS", r#"{"mac": 1}"#)];
    let done = node.podwire_with(&variables, &["status", "--json", "net"]);
    assert_eq!((done.status, &done.json()["code"]), (1, &json!(50)));
    assert_eq!(node.order(), ["a:STATUS", "b:STATUS"]);
    let call = &node.calls()[0];
    for name in ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS"] {
        assert_eq!(call.env[name], "", "{name}");
    }
    assert_eq!(
        call.stdin,
        json!({"cniVersion": "1.1.0", "name": "net", "type": "a"})
    );
}

#[test]
fn one_thing_is_no_plural() {
    let node = Node::new();
    node.working_plugin("a");
    node.network(&["a"]);
    for (pods, line) in [
        (0, "0 attachments"),
        (1, "1 attachment "),
        (2, "2 attachments"),
    ] {
        for pod in 0..pods {
            let id = format!("id{pod}");
            node.podwire(&["add", "--container-id", &id, "net", NETNS])
                .succeeded();
        }
        let done = node.podwire(&["gc", "--text", "net"]).succeeded();
        assert!(done.stdout.contains(line), "{done:?}");
    }
}

#[test]
fn version_asks_the_plugins() {
    let node = Node::new();
    let answer = json!({"cniVersion": "1.1.0", "supportedVersions": ["1.0.0", "1.1.0"]});
    node.plugin("new", &format!("echo '{answer}'"));
    node.plugin(
        "old",
        r#"echo '{"code": 4, "msg": "unknown CNI_COMMAND: VERSION"}'; exit 1"#,
    );
    fs::write(node.path("bin/README"), "no plugin").unwrap();
    node.network(&["new"]);
    let all = node.podwire(&["version", "--json"]).succeeded().json();
    assert_eq!(all["version"], env!("CARGO_PKG_VERSION"));
    let plugins = all["plugins"].as_array().unwrap();
    let of = |index: usize| (&plugins[index]["name"], &plugins[index]["versions"]);
    assert_eq!(of(0), (&json!("new"), &json!(["1.0.0", "1.1.0"])));
    assert_eq!(of(1), (&json!("old"), &json!(["0.1.0"])));
    assert_eq!(plugins.len(), 2);
    let one = node.podwire(&["version", "net"]).succeeded().stdout;
    let expected = format!("podwire {}\nnew  1.0.0, 1.1.0\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(one, expected);
    node.plugin("broken", "exit 3");
    let done = node.podwire(&["version"]);
    assert_eq!(done.status, 1);
    assert!(done.stdout.contains("exit status 3"), "{done:?}");
}

#[test]
fn validate_asks_the_plugins_when_it_is_told_where_they_are() {
    let node = Node::new();
    let answer = json!({"cniVersion": "1.1.0", "supportedVersions": ["1.0.0"]});
    node.plugin("mine", &format!("echo '{answer}'"));
    node.network(&["mine"]);
    let file = node.path("net.d").display().to_string();
    let done = node.podwire(&["validate", "--json", &file]);
    assert_eq!(done.status, 1);
    let answer = done.json();
    assert_eq!(
        (&answer["errors"], &answer["warnings"]),
        (&json!(1), &json!(0))
    );
    assert_eq!(
        answer["files"][0]["findings"],
        json!([{"severity": "error", "path": "plugins[0].type",
                "reason": "plugin mine does not support config version \"1.1.0\""}])
    );
    let unasked = node.podwire_with(&[("CNI_PATH", "")], &["validate", &file]);
    assert_eq!(unasked.succeeded().stdout, "1 file: 0 errors, 0 warnings\n");
}

#[test]
fn validate_hints_at_runtimes_that_a_version_excludes() {
    let node = Node::new();
    let hint = |head: &str, file: &str| {
        let text = format!(r#"{{{head}, "name": "net", "type": "loopback"}}"#);
        let text = if file.ends_with("list") {
            format!(r#"{{{head}, "name": "net", "plugins": [{{"type": "loopback"}}]}}"#)
        } else {
            text
        };
        let file = node.path(file);
        std::fs::write(&file, text).unwrap();
        let file = file.display().to_string();
        let done = node.podwire_with(&[("CNI_PATH", "")], &["validate", &file]);
        let done = done.succeeded();
        assert_eq!(done.stdout, "1 file: 0 errors, 0 warnings\n");
        let done_json = node.podwire_with(&[("CNI_PATH", "")], &["validate", "--json", &file]);
        let hints = &done_json.succeeded().json()["files"][0]["hints"];
        assert_eq!(hints.is_array(), !done.stderr.is_empty());
        done.stderr.contains("containerd 1.6 and 1.7 and podman 4")
    };
    assert!(hint(r#""cniVersion": "1.1.0""#, "a.conflist"));
    assert!(hint(r#""cniVersion": "1.1.0""#, "a.conf"));
    let lower = r#""cniVersion": "1.1.0", "cniVersions": ["1.0.0", "1.1.0"]"#;
    assert!(hint(lower, "a.conflist"), "an old libcni reads cniVersion");
    let both = r#""cniVersion": "1.0.0", "cniVersions": ["1.0.0", "1.1.0"]"#;
    assert!(!hint(both, "a.conflist"));
    assert!(!hint(r#""cniVersion": "1.0.0""#, "a.conf"));
}

#[test]
fn validate_prints_a_line_for_every_fault() {
    let node = Node::new();
    let bad = node.path("net.d/a.conflist");
    fs::write(&bad, "{\n x").unwrap();
    node.configure(
        "b.conflist",
        &json!({"cniVersion": "1.1.0", "name": "b", "plugins": [
            {"type": "bridge", "isGatway": true, "vlan": 5000}]}),
    );
    let dir = node.path("net.d").display().to_string();
    let done = node.podwire_with(&[("CNI_PATH", "")], &["validate", &dir]);
    assert_eq!(done.status, 1);
    assert_eq!(
        done.stdout,
        format!(
            "{dir}/a.conflist:2:2: error: not JSON: key must be a string\n\
             {dir}/b.conflist: error: plugins[0].vlan: invalid VLAN ID 5000 (must be between 0 and 4094)\n\
             {dir}/b.conflist: warning: plugins[0].isGatway: unknown key; did you mean isGateway?\n\
             2 files: 2 errors, 1 warning\n"
        )
    );
}

#[test]
fn a_command_line_that_makes_no_sense_ends_with_2() {
    let node = Node::new();
    for line in [
        &[][..],
        &["frobnicate"],
        &["add", "net"],
        &["add", "net", NETNS, "more"],
        &["add", "--keep-cached", "net", NETNS],
        &["del", "net"],
        &["validate"],
        &["add", "--colour"],
    ] {
        let done = node.podwire(line);
        assert_eq!(done.status, 2, "{line:?} {done:?}");
        assert!(done.stderr.starts_with("podwire"), "{done:?}");
        assert_eq!(done.stdout, "");
    }
}

#[test]
fn every_command_has_a_manual() {
    let node = Node::new();
    let overview = node.podwire(&["--help"]).succeeded().stdout;
    for command in ["add", "del", "check", "gc", "status", "validate", "version"] {
        assert!(overview.contains(&format!("\n  {command} ")), "{command}");
        let by_option = node.podwire(&[command, "--help"]).succeeded().stdout;
        assert!(by_option.starts_with(&format!("podwire {command} - ")));
        let by_command = node.podwire(&["help", command]).succeeded().stdout;
        assert_eq!(by_option, by_command);
    }
    let version = node.podwire(&["--version"]).succeeded().stdout;
    assert_eq!(version, format!("podwire {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn errors_are_where_cnitool_has_them() {
    let node = Node::new();
    let done = node.podwire(&["add", "net", NETNS]);
    assert_eq!((done.status, done.stdout.as_str()), (1, ""));
    let place = node.path("net.d");
    let text = format!("no net configurations found in {}", place.display());
    assert_eq!(done.stderr, format!("podwire: {text}\n"));
    let done = node.podwire(&["add", "--json", "net", NETNS]);
    assert_eq!(done.json(), json!({"code": 999, "msg": text}));
    let args = [("CNI_ARGS", "K")];
    let stderr = node.podwire_with(&args, &["add", "net", NETNS]).failed();
    assert_eq!(stderr, "podwire: invalid CNI_ARGS pair \"K\"\n");
}

#[test]
fn nothing_is_null_in_what_plugins_read() {
    let node = Node::new();
    node.working_plugin("a");
    node.network(&["a"]);
    node.podwire_with(&[("CAP_ARGS", "null")], &["add", "net", NETNS])
        .succeeded();
    let stdin = node.calls()[0].stdin.clone();
    assert!(
        stdin
            .as_object()
            .unwrap()
            .values()
            .all(|it| *it != Value::Null)
    );
}
