//! What every plugin owes a runtime whatever its type: verbs, environment,
//! versions, errors, delegation. Each test asks all plugins.

use sandbox::{Outcome, Sandbox, beyond_peer, conf, conf_of, each_plugin, newest, versions_of};
use serde_json::{Value, json};

const VERSIONS: [&str; 7] = [
    "0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0",
];

/// Asserts the error of an outcome: code and message to the letter.
#[track_caller]
fn says(outcome: &Outcome, code: u64, msg: &str) {
    let error = outcome.error();
    assert_eq!((error.code, error.msg.as_str()), (code, msg), "{outcome}");
}

// ---- without a verb, and VERSION

#[test]
fn without_a_command_it_introduces_itself_on_stderr() {
    each_plugin(|sandbox, _, plugin| {
        let outcome = sandbox.cni(plugin).bare();
        assert_eq!((outcome.code(), outcome.stdout()), (0, ""), "{outcome}");
        let lines: Vec<&str> = outcome.stderr().lines().collect();
        let versions = lines[1].strip_prefix("CNI protocol versions supported: ");
        let versions: Vec<&str> = versions.expect("no versions").split(", ").collect();
        assert_eq!(lines.len(), 2);
        assert!(lines[0].starts_with(&format!("CNI {plugin} plugin v")));
        let expected = versions_of(plugin);
        assert_eq!(versions[..expected.len()], expected);
    });
}

#[test]
fn programs_that_parse_the_banner_understand_it() {
    // nerdctl wants `CNI <name> plugin v<semver>`, at least 1.7.1 for some features.
    beyond_peer("Debian builds the Go plugins without a version", || {
        each_plugin(|sandbox, _, plugin| {
            let outcome = sandbox.cni(plugin).bare();
            let first = outcome.stderr().lines().next().unwrap_or_default();
            let version = first.strip_prefix(&format!("CNI {plugin} plugin v"));
            let numbers = version.map(|v| v.split('.').filter_map(|n| n.parse::<u32>().ok()));
            let numbers: Vec<u32> = numbers.expect("no version").collect();
            assert!(numbers.len() == 3 && numbers >= vec![1, 9, 1], "{first}");
        });
    });
}

#[test]
fn version_needs_no_environment_and_no_input() {
    each_plugin(|sandbox, _, plugin| {
        let bare = sandbox.cni(plugin).env("CNI_COMMAND", "VERSION").bare();
        let versions = &bare.result()["supportedVersions"];
        let expected = versions_of(plugin);
        assert_eq!(
            versions.as_array().expect("a list")[..expected.len()],
            expected.iter().map(|v| json!(v)).collect::<Vec<_>>()
        );
        assert!(
            bare.stdout().ends_with("}\n"),
            "one line with its end: {bare}"
        );
        assert_eq!(bare.stdout().lines().count(), 1);
    });
}

#[test]
fn version_ignores_what_is_on_stdin() {
    each_plugin(|sandbox, _, plugin| {
        for input in ["", "not json", "{\"cniVersion\": \"9.0.0\"}", "{}{}"] {
            let outcome = sandbox.cni(plugin).stdin(input).version();
            outcome.result();
        }
    });
}

#[test]
fn version_lists_all_versions_of_the_plugin() {
    beyond_peer("the peer is older than CNI 1.1.0", || {
        each_plugin(|sandbox, _, plugin| {
            let outcome = sandbox.cni(plugin).version();
            let versions: Vec<_> = versions_of(plugin)
                .iter()
                .map(|it| format!("{it:?},"))
                .collect();
            let versions = versions.concat();
            let line = format!(
                "{{\"cniVersion\":\"1.1.0\",\"supportedVersions\":[{versions}\"1.1.0\"]}}\n"
            );
            assert_eq!(outcome.stdout(), line);
        });
    });
}

#[test]
fn an_unknown_command_is_refused_after_the_configuration_was_read() {
    each_plugin(|sandbox, pod, plugin| {
        let call = || sandbox.cni(plugin);
        says(
            &call().attachment("FOO", &conf_of(plugin), pod, "eth0"),
            4,
            "unknown CNI_COMMAND: FOO",
        );
        says(
            &call().attachment("add", &conf_of(plugin), pod, "eth0"),
            4,
            "unknown CNI_COMMAND: add",
        );
        assert_eq!(
            call()
                .stdin("no json")
                .attachment("FOO", &json!({}), pod, "eth0")
                .error()
                .code,
            6
        );
        says(
            &call().attachment("FOO", &json!({"cniVersion": newest()}), pod, "eth0"),
            7,
            "missing network name",
        );
    });
}

// ---- environment

#[test]
fn missing_variables_are_named_together_and_in_order() {
    each_plugin(|sandbox, _, plugin| {
        let call = |verb: &str| {
            let cni = sandbox.cni(plugin).env("CNI_COMMAND", verb);
            cni.stdin(conf_of(plugin).to_string()).bare()
        };
        let all = "required env variables [CNI_CONTAINERID,CNI_NETNS,CNI_IFNAME,CNI_PATH] missing";
        says(&call("ADD"), 4, all);
        says(&call("CHECK"), 4, all);
        says(
            &call("DEL"),
            4,
            "required env variables [CNI_CONTAINERID,CNI_IFNAME,CNI_PATH] missing",
        );
    });
}

#[test]
fn an_empty_variable_is_a_missing_one() {
    each_plugin(|sandbox, pod, plugin| {
        for name in ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"] {
            let text = format!("required env variables [{name}] missing");
            let empty = sandbox
                .cni(plugin)
                .env(name, "")
                .add(&conf_of(plugin), pod, "eth0");
            says(&empty, 4, &text);
            let absent = sandbox
                .cni(plugin)
                .unset(name)
                .add(&conf_of(plugin), pod, "eth0");
            says(&absent, 4, &text);
        }
    });
}

#[test]
fn a_malformed_variable_is_reported_before_the_missing_ones() {
    beyond_peer("plugins before v1.2 name the missing ones first", || {
        each_plugin(|sandbox, pod, plugin| {
            let cni = sandbox
                .cni(plugin)
                .id("a/b")
                .unset("CNI_IFNAME")
                .unset("CNI_PATH");
            says(
                &cni.add(&conf_of(plugin), pod, "eth0"),
                4,
                "invalid characters in containerID",
            );
        });
    });
}

#[test]
fn container_ids_keep_to_the_letters_of_the_specification() {
    each_plugin(|sandbox, pod, plugin| {
        for id in [
            "../x", "a/b", "a b", "-a", ".a", "_a", "a\n", "ä", "a:b", "a\\b", "a;b",
        ] {
            let error = sandbox
                .cni(plugin)
                .id(id)
                .add(&conf_of(plugin), pod, "eth0")
                .error();
            assert_eq!(error.code, 4, "{id:?}");
            assert_eq!(error.msg, "invalid characters in containerID");
            assert_eq!(error.details, id);
        }
        for id in ["a", "0", "A-b_c.d", &"0123456789abcdef".repeat(4)] {
            sandbox
                .cni(plugin)
                .id(id)
                .del(&conf_of(plugin), pod, "eth0")
                .silent();
        }
    });
}

#[test]
fn interface_names_keep_to_the_kernel_s_rules() {
    each_plugin(|sandbox, pod, plugin| {
        let call = |ifname: &str| {
            sandbox
                .cni(plugin)
                .add(&conf_of(plugin), pod, ifname)
                .error()
        };
        let long = call("sixteen-letters!");
        assert_eq!(
            (long.code, long.msg.as_str()),
            (4, "interface name is too long")
        );
        assert_eq!(
            long.details,
            "interface name should be less than 16 characters"
        );
        for dots in [".", ".."] {
            assert_eq!(
                (call(dots).code, call(dots).msg.as_str()),
                (4, "interface name is . or ..")
            );
        }
        for name in ["a/b", "a:b", "a b", "a\tb", "a\nb", "a\u{a0}b"] {
            let text = "interface name contains / or : or whitespace characters";
            assert_eq!(
                (call(name).code, call(name).msg.as_str()),
                (4, text),
                "{name:?}"
            );
        }
    });
}

#[test]
fn a_name_of_fifteen_bytes_works_for_every_plugin() {
    let sandbox = Sandbox::new();
    let pod = sandbox.pod("a");
    let conf = conf::bridge(&["10.1.0.0/24"]);
    sandbox
        .cni("bridge")
        .add(&conf, &pod, "fifteen-letters")
        .result();
    assert!(pod.link("fifteen-letters").is_some());
}

#[test]
fn gc_and_status_need_only_the_path() {
    beyond_peer("the peer is older than CNI 1.1.0", || {
        each_plugin(|sandbox, _, plugin| {
            let conf = conf::with_valid(&conf::at(&conf_of(plugin), "1.1.0"), &[]);
            sandbox.cni(plugin).gc(&conf).silent();
            sandbox.cni(plugin).status(&conf).silent();
            let lost = sandbox.cni(plugin).unset("CNI_PATH").status(&conf);
            says(&lost, 4, "required env variables [CNI_PATH] missing");
        });
    });
}

#[test]
fn gc_and_status_take_the_empty_variables_that_libcni_sends() {
    beyond_peer("the peer is older than CNI 1.1.0", || {
        each_plugin(|sandbox, _, plugin| {
            let conf = conf::with_valid(&conf::at(&conf_of(plugin), "1.1.0"), &[]);
            let call = || {
                let cni = sandbox.cni(plugin).env("CNI_CONTAINERID", "");
                cni.env("CNI_NETNS", "").env("CNI_IFNAME", "")
            };
            call().gc(&conf).silent();
            call().status(&conf).silent();
        });
    });
}

// ---- standard input

#[test]
fn what_is_not_one_json_document_is_refused() {
    each_plugin(|sandbox, pod, plugin| {
        for input in ["", " ", "x", "{", "[]x", "{\"name\": \"x\"", "\u{0}"] {
            for verb in ["ADD", "DEL", "CHECK"] {
                let error = sandbox
                    .cni(plugin)
                    .stdin(input)
                    .attachment(verb, &json!({}), pod, "eth0")
                    .error();
                assert_eq!(error.code, 6, "{verb} {input:?}: {}", error.msg);
                let prefix = "error unmarshall network config: ";
                assert!(
                    error.msg.starts_with(prefix),
                    "{verb} {input:?}: {}",
                    error.msg
                );
            }
        }
    });
}

#[test]
fn bytes_after_the_document_are_refused() {
    each_plugin(|sandbox, pod, plugin| {
        let input = format!("{} {{}}", conf_of(plugin));
        assert_eq!(
            sandbox
                .cni(plugin)
                .stdin(input)
                .add(&json!({}), pod, "eth0")
                .error()
                .code,
            6
        );
    });
}

#[test]
fn a_network_needs_a_name_of_allowed_letters() {
    each_plugin(|sandbox, pod, plugin| {
        let call = |name: Value| {
            let conf = conf::with(&conf_of(plugin), json!({"name": name}));
            sandbox.cni(plugin).add(&conf, pod, "eth0").error()
        };
        for none in [json!(""), Value::Null] {
            assert_eq!(
                (call(none.clone()).code, call(none).msg.as_str()),
                (7, "missing network name")
            );
        }
        for bad in ["../etc", "a/b", "a b", ".", "-x", "a\u{0}b"] {
            let error = call(json!(bad));
            assert_eq!(
                (error.code, error.msg.as_str()),
                (7, "invalid characters found in network name")
            );
            assert_eq!(error.details, bad);
        }
    });
}

#[test]
fn keys_match_whatever_their_case() {
    let sandbox = Sandbox::new();
    let pod = sandbox.pod("a");
    let conf = json!({
        "CNIVersion": newest(), "NAME": "testnet", "Type": "bridge", "BRIDGE": "br7", "IsGateway": true,
        "IPAM": {"TYPE": "host-local", "Ranges": [[{"Subnet": "10.1.0.0/24", "RangeStart": "10.1.0.50"}]]},
    });
    let result = sandbox.cni("bridge").add(&conf, &pod, "eth0").result();
    assert_eq!(result["interfaces"][0]["name"], "br7");
    assert_eq!(pod.addresses("eth0"), ["10.1.0.50/24"]);
    assert_eq!(sandbox.host().addresses("br7"), ["10.1.0.1/24"]);
}

#[test]
fn unknown_keys_are_ignored_and_null_is_the_default() {
    let sandbox = Sandbox::new();
    let pod = sandbox.pod("a");
    let mut conf = conf::bridge(&["10.1.0.0/24"]);
    conf["someday"] = json!({"a": [1, 2, {"b": null}]});
    conf["mtu"] = Value::Null;
    conf["hairpinMode"] = Value::Null;
    conf["runtimeConfig"] = Value::Null;
    conf["capabilities"] = json!({"ips": null, "mac": true});
    sandbox.cni("bridge").add(&conf, &pod, "eth0").result();
    assert_eq!(pod.link("eth0").expect("eth0")["mtu"], 1500);
}

#[test]
fn of_duplicate_keys_the_last_wins() {
    let sandbox = Sandbox::new();
    let pod = sandbox.pod("a");
    let text = conf::bridge_l2().to_string().replace(
        "\"bridge\":\"cni0\"",
        "\"bridge\":\"first\",\"mtu\":1300,\"bridge\":\"last\",\"mtu\":1400",
    );
    sandbox
        .cni("bridge")
        .stdin(text)
        .add(&json!({}), &pod, "eth0")
        .result();
    assert_eq!(sandbox.host().links(), ["last", "lo", &host_veth(&sandbox)]);
    assert_eq!(pod.link("eth0").expect("eth0")["mtu"], 1400);
}

fn host_veth(sandbox: &Sandbox) -> String {
    let links = sandbox.host().links();
    links
        .into_iter()
        .find(|l| l.starts_with("veth"))
        .expect("no host veth")
}

// ---- versions

#[test]
fn a_version_that_is_not_text_cannot_be_decoded() {
    each_plugin(|sandbox, pod, plugin| {
        for version in [json!(1), json!({}), json!([]), json!(true)] {
            let conf = conf::with(&conf_of(plugin), json!({"cniVersion": version}));
            let error = sandbox.cni(plugin).add(&conf, pod, "eth0").error();
            assert_eq!(error.code, 6, "{}", error.msg);
            let prefix = "decoding version from network config: ";
            assert!(error.msg.starts_with(prefix), "{}", error.msg);
        }
    });
}

#[test]
fn a_version_must_be_one_of_the_list_to_the_letter() {
    each_plugin(|sandbox, pod, plugin| {
        for version in ["9.0.0", "1.0", "1.0.00", "v1.0.0", " 1.0.0"] {
            for verb in ["ADD", "DEL"] {
                let conf = conf::with(&conf_of(plugin), json!({"cniVersion": version}));
                let error = sandbox
                    .cni(plugin)
                    .attachment(verb, &conf, pod, "eth0")
                    .error();
                assert_eq!(
                    (error.code, error.msg.as_str()),
                    (1, "incompatible CNI versions")
                );
                let first = &versions_of(plugin)[..2];
                let details = format!(
                    "config is \"{version}\", plugin supports [{:?} {:?} ",
                    first[0], first[1]
                );
                assert!(error.details.starts_with(&details), "{}", error.details);
            }
        }
    });
}

#[test]
fn check_is_too_new_for_old_configurations() {
    each_plugin(|sandbox, pod, plugin| {
        for version in ["0.1.0", "0.2.0", "0.3.0", "0.3.1"] {
            let conf = conf::at(&conf_of(plugin), version);
            let outcome = sandbox.cni(plugin).check(&conf, pod, "eth0");
            says(&outcome, 1, "config version does not allow CHECK");
        }
    });
}

#[test]
fn gc_and_status_are_too_new_for_old_configurations() {
    beyond_peer("the peer is older than CNI 1.1.0", || {
        each_plugin(|sandbox, _, plugin| {
            for version in &VERSIONS[..6] {
                for verb in ["GC", "STATUS"] {
                    let conf = conf::at(&conf_of(plugin), version);
                    let outcome = sandbox.cni(plugin).network(verb, &conf);
                    says(
                        &outcome,
                        1,
                        &format!("config version does not allow {verb}"),
                    );
                }
            }
        });
    });
}

#[test]
fn a_version_that_is_no_version_cannot_be_compared() {
    each_plugin(|sandbox, pod, plugin| {
        let conf = conf::at(&conf_of(plugin), "x.y");
        assert_eq!(
            sandbox.cni(plugin).check(&conf, pod, "eth0").error().code,
            6
        );
    });
}

#[test]
fn gc_and_status_succeed_in_silence_at_1_1_0() {
    beyond_peer("the peer is older than CNI 1.1.0", || {
        each_plugin(|sandbox, _, plugin| {
            let conf = conf::at(&conf_of(plugin), "1.1.0");
            let snapshot = sandbox.snapshot();
            sandbox
                .cni(plugin)
                .gc(&conf::with_valid(&conf, &[]))
                .silent();
            sandbox.cni(plugin).status(&conf).silent();
            snapshot.allow_host_local(conf::NETWORK).assert_unchanged();
        });
    });
}

// ---- errors

#[test]
fn the_error_document_has_code_msg_and_details_and_nothing_escapes_it() {
    let sandbox = Sandbox::new();
    let pod = sandbox.pod("a");
    let error = sandbox
        .cni("bridge")
        .id("a\"<&>\\")
        .add(&conf::bridge_l2(), &pod, "eth0")
        .error();
    assert_eq!(error.details, "a\"<&>\\");
}

#[test]
fn a_wrong_type_in_the_configuration_is_an_invalid_configuration() {
    beyond_peer("reference 1.3: a type mismatch is 999", || {
        let sandbox = Sandbox::new();
        let pod = sandbox.pod("a");
        for change in [
            json!({"isGateway": "true"}),
            json!({"mtu": "large"}),
            json!({"mtu": 1.5}),
            json!({"bridge": 7}),
            json!({"ipam": []}),
            json!({"dns": {"nameservers": "10.0.0.1"}}),
            json!({"prevResult": []}),
            json!({"capabilities": {"mac": "yes"}}),
        ] {
            let conf = conf::with(&conf::bridge(&["10.1.0.0/24"]), change.clone());
            let error = sandbox.cni("bridge").add(&conf, &pod, "eth0").error();
            assert_eq!(error.code, 7, "{change}: {}", error.msg);
            assert!(
                error.msg.starts_with("failed to load netconf: "),
                "{}",
                error.msg
            );
            let key = change
                .as_object()
                .and_then(|o| o.keys().next())
                .expect("a key");
            assert!(
                error.msg.contains(key.as_str()),
                "{key} is not named: {}",
                error.msg
            );
        }
    });
}

#[test]
fn the_node_s_own_namespace_is_refused_before_anything_is_touched() {
    beyond_peer("reference 8 #14: checked when the damage is done", || {
        each_plugin(|sandbox, _, plugin| {
            let host = sandbox.host();
            let snapshot = sandbox.snapshot();
            for verb in ["ADD", "DEL"] {
                let outcome = sandbox
                    .cni(plugin)
                    .attachment(verb, &conf_of(plugin), &host, "eth0");
                let text = "plugin's netns and netns from CNI_NETNS should not be the same";
                says(&outcome, 8, text);
            }
            snapshot.assert_unchanged();
        });
    });
}

#[test]
fn the_override_allows_the_node_s_own_namespace() {
    for value in ["1", "true", "TRUE", "True"] {
        let sandbox = Sandbox::new();
        let host = sandbox.host();
        let call = || sandbox.cni("bridge").env("CNI_NETNS_OVERRIDE", value);
        call()
            .add(&conf::bridge(&["10.1.0.0/24"]), &host, "eth7")
            .result();
        assert_eq!(host.addresses("eth7"), ["10.1.0.2/24"]);
        call()
            .del(&conf::bridge(&["10.1.0.0/24"]), &host, "eth7")
            .silent();
        assert!(host.link("eth7").is_none());
    }
}

// ---- prevResult

#[test]
fn a_previous_result_must_be_of_the_same_family_of_versions() {
    let sandbox = Sandbox::new();
    let pod = sandbox.pod("a");
    let prev = json!({"cniVersion": "1.0.0", "ips": [{"address": "10.1.0.2/24"}]});
    let conf = conf::with_prev(&conf::at(&conf::loopback(), "0.4.0"), &prev);
    let error = sandbox.cni("loopback").add(&conf, &pod, "lo").error();
    assert!(
        error.msg.contains("could not parse prevResult: "),
        "{}",
        error.msg
    );
    assert!(error.msg.contains("\"1.0.0\""), "{}", error.msg);
}

#[test]
fn a_previous_result_without_a_version_has_the_configuration_s() {
    let sandbox = Sandbox::new();
    let pod = sandbox.pod("a");
    let prev = json!({"ips": [{"address": "10.1.0.2/24"}]});
    let conf = conf::with_prev(&conf::at(&conf::loopback(), "1.0.0"), &prev);
    let result = sandbox.cni("loopback").add(&conf, &pod, "lo").result();
    assert_eq!(result["cniVersion"], "1.0.0");
    assert_eq!(result["ips"], json!([{"address": "10.1.0.2/24"}]));
}

// ---- delegation

fn delegating(ipam: &str) -> Value {
    let mut conf = conf::bridge_l2();
    conf["ipam"] = json!({"type": ipam, "someKey": [1, 2.5, "ü"]});
    conf
}

fn one_address() -> Value {
    json!({"cniVersion": newest(), "ips": [{"address": "10.7.0.5/24", "gateway": "10.7.0.1"}]})
}

#[test]
fn the_delegate_gets_the_same_environment_and_the_same_bytes() {
    let sandbox = Sandbox::new();
    let pod = sandbox.pod("a");
    let ipam = sandbox.fake("fake-ipam");
    ipam.answer("ADD", &one_address());
    // Odd spacing and key order: the delegate must see the bytes, not a re-encoding.
    let text = format!(
        "\n{}  \n",
        delegating("fake-ipam").to_string().replace(':', " :\t")
    );
    let call = |verb: &str| {
        let cni = sandbox
            .cni("bridge")
            .args("IgnoreUnknown=1;K8S_POD_NAME=x")
            .env("TRACEPARENT", "00-1");
        cni.stdin(text.clone())
            .attachment(verb, &json!({}), &pod, "eth0")
    };
    call("ADD").result();
    call("DEL").silent();
    let calls = ipam.calls();
    let verbs: Vec<&str> = calls.iter().map(|call| call.command.as_str()).collect();
    assert_eq!(verbs, ["ADD", "DEL"]);
    for call in &calls {
        assert_eq!(call.stdin, text);
        assert_eq!(call.env["CNI_CONTAINERID"], sandbox::container_id(&pod));
        assert_eq!(call.env["CNI_NETNS"], pod.path());
        assert_eq!(call.env["CNI_IFNAME"], "eth0");
        assert_eq!(call.env["CNI_ARGS"], "IgnoreUnknown=1;K8S_POD_NAME=x");
        assert_eq!(call.env["TRACEPARENT"], "00-1");
        assert!(call.env["CNI_PATH"].contains(':'));
    }
}

#[test]
fn the_delegate_s_error_passes_through_unchanged() {
    let sandbox = Sandbox::new();
    let pod = sandbox.pod("a");
    let ipam = sandbox.fake("fake-ipam");
    for code in [11, 999, 123, 4] {
        ipam.fail("ADD", code, "the Pool is dry <&>");
        let error = sandbox
            .cni("bridge")
            .add(&delegating("fake-ipam"), &pod, "eth0")
            .error();
        assert_eq!(
            (error.code, error.msg.as_str()),
            (u64::from(code), "the Pool is dry <&>")
        );
        sandbox
            .cni("bridge")
            .del(&delegating("fake-ipam"), &pod, "eth0")
            .silent();
    }
    ipam.fail("DEL", 11, "later");
    let error = sandbox
        .cni("bridge")
        .del(&delegating("fake-ipam"), &pod, "eth0")
        .error();
    assert_eq!((error.code, error.msg.as_str()), (11, "later"));
}

#[test]
fn a_delegate_that_only_writes_to_stderr_is_quoted() {
    let sandbox = Sandbox::new();
    let pod = sandbox.pod("a");
    let ipam = sandbox.fake("fake-ipam");
    let failure = |status: i32, stdout: &str, stderr: &str| {
        ipam.set("ADD", status, stdout, stderr);
        let error = sandbox
            .cni("bridge")
            .add(&delegating("fake-ipam"), &pod, "eth0")
            .error();
        sandbox
            .cni("bridge")
            .del(&delegating("fake-ipam"), &pod, "eth0")
            .silent();
        error.msg
    };
    let quoted = failure(3, "", "out of cheese");
    assert!(
        quoted.contains("netplugin failed: \"out of cheese\""),
        "{quoted}"
    );
    let mute = failure(2, "", "");
    assert!(
        mute.contains("netplugin failed with no error message: exit status 2"),
        "{mute}"
    );
    let garbled = failure(1, "oops", "");
    let text = "netplugin failed but error parsing its diagnostic message \"oops\": ";
    assert!(garbled.contains(text), "{garbled}");
}

#[test]
fn the_delegate_s_log_is_kept_when_it_succeeds() {
    let sandbox = Sandbox::new();
    let pod = sandbox.pod("a");
    let ipam = sandbox.fake("fake-ipam");
    ipam.set(
        "ADD",
        0,
        &one_address().to_string(),
        "a word from the delegate",
    );
    let outcome = sandbox
        .cni("bridge")
        .add(&delegating("fake-ipam"), &pod, "eth0");
    outcome.result();
    assert!(
        outcome.stderr().contains("a word from the delegate"),
        "{outcome}"
    );
}

#[test]
fn a_delegate_is_looked_up_in_the_path_and_nowhere_else() {
    let sandbox = Sandbox::new();
    let call = |ipam: &str| {
        let pod = sandbox.pod(&format!("pod{}", sandbox.list("/run/netns").len()));
        let cni = sandbox.cni("bridge").env("CNI_PATH", "/nowhere:/usr/bin");
        cni.add(&delegating(ipam), &pod, "eth0").error().msg
    };
    let absent = call("host-local");
    assert!(
        absent.contains("failed to find plugin \"host-local\" in path [/nowhere /usr/bin]"),
        "{absent}"
    );
    for name in ["../usr/bin/true", "/usr/bin/true", "a/b"] {
        let refused = call(name);
        assert!(
            refused.contains(&format!("invalid plugin name: {name}")),
            "{refused}"
        );
    }
}

#[test]
fn del_without_the_ipam_executable_succeeds_where_no_add_can_have() {
    beyond_peer(
        "reference 1.13: a missing IPAM executable fails every DEL",
        || {
            for plugin in ["bridge", "macvlan", "vxlan"] {
                let sandbox = Sandbox::new();
                sandbox.make_ready(plugin);
                let pod = sandbox.pod("a");
                let good = conf_of(plugin);
                let snapshot = sandbox.snapshot();
                // Wrong: ADD fails, and the runtime calls DEL until it succeeds. The plugin's own
                // name would have it execute itself for ever.
                for name in ["host-locl", "../host-local", plugin] {
                    let bad = conf::with(&good, json!({"ipam": {"type": name}}));
                    sandbox.cni(plugin).add(&bad, &pod, "eth0").error();
                    let outcome = sandbox.cni(plugin).del(&bad, &pod, "eth0");
                    assert!(outcome.silent().stderr().contains(name), "{outcome}");
                    sandbox
                        .cni(plugin)
                        .netns("")
                        .del(&bad, &pod, "eth0")
                        .silent();
                }
                let allowed = snapshot
                    .allow_bridge_network()
                    .allow_link("vxlan.5")
                    .allow("fdb ");
                allowed.allow("podwire_networks").assert_unchanged();
                // Missing for a moment: what is held is not lost.
                let result = sandbox.cni(plugin).add(&good, &pod, "eth0").result();
                let known = conf::with_prev(&good, &result);
                let missing = || sandbox.cni(plugin).env("CNI_PATH", "/nowhere");
                let error = missing().del(&known, &pod, "eth0").error();
                let text = "failed to find plugin \"host-local\" in path [/nowhere]";
                assert!(error.msg.contains(text), "{}", error.msg);
                assert!(
                    error.details.contains("DEL is called again"),
                    "{}",
                    error.details
                );
                assert_eq!(pod.links(), ["lo"]);
                let held = || sandbox.list(conf::STATE).contains(&"10.1.0.2".to_owned());
                assert!(held());
                let old = conf::at(&good, "0.3.1");
                missing().del(&old, &pod, "eth0").error();
                sandbox.cni(plugin).del(&known, &pod, "eth0").silent();
                assert!(!held());
            }
        },
    );
}

#[test]
fn a_delegate_without_addresses_is_an_error_and_gets_a_del() {
    let sandbox = Sandbox::new();
    let pod = sandbox.pod("a");
    let ipam = sandbox.fake("fake-ipam");
    ipam.answer("ADD", &json!({"cniVersion": newest(), "ips": []}));
    let error = sandbox
        .cni("bridge")
        .add(&delegating("fake-ipam"), &pod, "eth0")
        .error();
    assert!(
        error.msg.contains("IPAM plugin returned missing IP config"),
        "{}",
        error.msg
    );
    assert_eq!(ipam.verbs(), ["ADD", "DEL"]);
}

#[test]
fn a_delegate_may_answer_in_an_older_version() {
    for (version, answer) in [
        (
            "0.2.0",
            json!({"ip4": {"ip": "10.7.0.5/24", "gateway": "10.7.0.1", "routes": [{"dst": "10.8.0.0/16"}]}}),
        ),
        (
            "0.3.1",
            json!({"ips": [{"version": "4", "address": "10.7.0.5/24", "gateway": "10.7.0.1"}],
                         "routes": [{"dst": "10.8.0.0/16"}]}),
        ),
        (
            "1.0.0",
            json!({"ips": [{"address": "10.7.0.5/24", "gateway": "10.7.0.1"}], "routes": [{"dst": "10.8.0.0/16"}]}),
        ),
    ] {
        let sandbox = Sandbox::new();
        let pod = sandbox.pod("a");
        let answer = conf::with(&answer, json!({"cniVersion": version}));
        sandbox.fake("fake-ipam").answer("ADD", &answer);
        let result = sandbox
            .cni("bridge")
            .add(&delegating("fake-ipam"), &pod, "eth0")
            .result();
        assert_eq!(result["ips"][0]["address"], "10.7.0.5/24", "{version}");
        assert_eq!(pod.addresses("eth0"), ["10.7.0.5/24"]);
        assert_eq!(pod.routes_to("-4", "10.8.0.0/16")[0]["gateway"], "10.7.0.1");
    }
}

#[test]
fn check_asks_the_delegate_first() {
    let sandbox = Sandbox::new();
    let pod = sandbox.pod("a");
    let ipam = sandbox.fake("fake-ipam");
    ipam.answer("ADD", &one_address());
    let conf = delegating("fake-ipam");
    let result = sandbox.cni("bridge").add(&conf, &pod, "eth0").result();
    let conf = conf::with_prev(&conf, &result);
    sandbox.cni("bridge").check(&conf, &pod, "eth0").silent();
    assert_eq!(ipam.verbs(), ["ADD", "CHECK"]);
    ipam.fail("CHECK", 999, "gone");
    assert_eq!(
        sandbox.cni("bridge").check(&conf, &pod, "eth0").error().msg,
        "gone"
    );
}

#[test]
fn bridge_forwards_gc_and_status_to_the_delegate() {
    beyond_peer(
        "reference 0.3: no GC anywhere, and the peer is older than CNI 1.1.0",
        || {
            let sandbox = Sandbox::new();
            let ipam = sandbox.fake("fake-ipam");
            let conf = conf::with_valid(
                &conf::at(&delegating("fake-ipam"), "1.1.0"),
                &[("x", "eth0")],
            );
            sandbox.cni("bridge").gc(&conf).silent();
            sandbox.cni("bridge").status(&conf).silent();
            assert_eq!(ipam.verbs(), ["GC", "STATUS"]);
            let sent = conf.to_string();
            assert!(ipam.calls().iter().all(|call| call.stdin == sent));
            ipam.fail("GC", 11, "not now");
            ipam.fail("STATUS", 50, "pool exhausted");
            assert_eq!(sandbox.cni("bridge").gc(&conf).error().code, 11);
            assert_eq!(sandbox.cni("bridge").status(&conf).error().code, 50);
        },
    );
}

/// What an attachment holds on the node: its address, its veth, its published port.
fn held(sandbox: &Sandbox) -> (usize, usize, bool) {
    let addresses = sandbox.list(conf::STATE);
    let addresses = addresses.iter().filter(|name| name.starts_with("10."));
    let links = sandbox.host().links();
    let veths = links.iter().filter(|name| name.starts_with("veth"));
    let ports = sandbox.host().sh("nft list ruleset");
    (addresses.count(), veths.count(), ports.contains("8080"))
}

/// A GC whose document begins with `list`, to the letter.
fn gc_with(sandbox: &Sandbox, plugin: &str, list: &str) -> Outcome {
    let conf = conf::at(&conf_of(plugin), "1.1.0").to_string();
    let document = format!("{{{list}{}", &conf[1..]);
    let conf = Value::Null;
    sandbox.cni(plugin).stdin(document).gc(&conf)
}

/// The plugins that keep something which GC takes.
const KEEPERS: [&str; 5] = ["bridge", "macvlan", "vxlan", "host-local", "portmap"];

fn each_keeper(test: impl Fn(&Sandbox, &str)) {
    each_plugin(|sandbox, pod, plugin| {
        if KEEPERS.contains(&plugin) {
            let conf = conf::at(&conf_of(plugin), "1.1.0");
            sandbox.cni(plugin).add(&conf, pod, "eth0").result();
            assert_ne!(held(sandbox), (0, 0, false), "{plugin}");
            test(sandbox, plugin);
        }
    });
}

#[test]
fn gc_takes_null_for_a_list_without_attachments() {
    beyond_peer("no GC there", || {
        // CRI-O marshals a nil slice on a node without pods.
        for list in [
            r#""cni.dev/valid-attachments": null, "cni.dev/attachments": null, "#,
            r#""cni.dev/valid-attachments": null, "#,
            r#""CNI.dev/Attachments": null, "#,
            r#""cni.dev/valid-attachments": [], "#,
        ] {
            each_keeper(|sandbox, plugin| {
                gc_with(sandbox, plugin, list).silent();
                assert_eq!(held(sandbox), (0, 0, false), "{plugin}: {list}");
            });
        }
    });
}

#[test]
fn gc_leaves_what_is_listed_anywhere_and_all_where_nothing_can_be_known() {
    beyond_peer("no GC there", || {
        let listed = r#""cni.dev/attachments": [{"containerID": "id-a", "ifname": "eth0"}], "#;
        let upper = listed.replace("cni.dev/a", "CNI.DEV/A");
        let null = r#""cni.dev/valid-attachments": null, "cni.dev/attachments": null, "#;
        each_keeper(|sandbox, plugin| {
            let before = held(sandbox);
            for list in [
                format!("{listed}{null}"),
                format!("{null}{listed}"),
                format!("{null}{upper}"),
                String::new(),
            ] {
                gc_with(sandbox, plugin, &list).silent();
                assert_eq!(held(sandbox), before, "{plugin}: {list}");
            }
            for unreadable in ["5", "[null]", r#"[{"containerID": "id-a"}]"#, "\"\""] {
                let list = format!(r#""cni.dev/valid-attachments": {unreadable}, {null}"#);
                let error = gc_with(sandbox, plugin, &list).error();
                assert_eq!(error.code, 7, "{plugin}: {list}");
                assert!(
                    error.msg.contains("cni.dev/valid-attachments"),
                    "{}",
                    error.msg
                );
                assert_eq!(held(sandbox), before, "{plugin}: {list}");
            }
        });
    });
}

#[test]
fn status_says_when_the_delegate_is_not_installed() {
    beyond_peer("the peer is older than CNI 1.1.0", || {
        let sandbox = Sandbox::new();
        let conf = conf::at(&delegating("no-such-ipam"), "1.1.0");
        let error = sandbox.cni("bridge").status(&conf).error();
        assert_eq!(error.code, 50, "{}", error.msg);
    });
}
