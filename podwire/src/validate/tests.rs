use super::*;
use std::fs;
use tempfile::TempDir;

/// Faults of a network 1.1.0 with one plugin that has these members, as
/// `path: reason`.
fn faults(plugin: &str) -> Vec<String> {
    faults_at("1.1.0", plugin)
}

/// The same for another version.
fn faults_at(version: &str, plugin: &str) -> Vec<String> {
    of_list(&format!(
        r#"{{"cniVersion": "{version}", "name": "n", "plugins": [{{{plugin}}}]}}"#
    ))
}

/// The same for the last of several plugins of a network, if it alone has any.
fn faults_of_last(plugins: &[&str]) -> Vec<String> {
    let plugins: Vec<_> = plugins.iter().map(|it| format!("{{{it}}}")).collect();
    of_list(&format!(
        r#"{{"cniVersion": "1.1.0", "name": "n", "plugins": [{}]}}"#,
        plugins.join(", ")
    ))
}

fn of_list(text: &str) -> Vec<String> {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("n.conflist");
    fs::write(&path, text).unwrap();
    lines(&only(&path))
}

/// The result of a file with one configuration.
fn only(path: &Path) -> Report {
    let mut reports = file(path, None);
    assert_eq!(reports.len(), 1, "{reports:?}");
    reports.remove(0)
}

fn lines(report: &Report) -> Vec<String> {
    let all = report.findings.all().iter();
    all.map(|it| format!("{}: {}", it.path, it.reason))
        .collect()
}

/// The README of a plugin, which documents its keys.
fn plugin_readme(folder: &str) -> String {
    let path = format!("{}/../{folder}/README.md", env!("CARGO_MANIFEST_DIR"));
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The keys of the first table under "Keys", sorted.
fn documented_keys(readme: &str) -> Vec<String> {
    let section = readme.split("## Keys").nth(1).expect("a section Keys");
    let is_row = |line: &&str| line.starts_with('|');
    let rows = section.lines().skip_while(|line| !is_row(line));
    let first_cells = rows
        .take_while(is_row)
        .filter_map(|row| row.split('|').nth(1));
    let names = first_cells.flat_map(|cell| cell.split('`').skip(1).step_by(2));
    let mut keys: Vec<_> = names.map(str::to_owned).collect();
    keys.sort();
    keys
}

/// The keys that a plugin of ours reads of the object at `path`, sorted.
fn read_keys(known: &plugins::Plugin, path: &str) -> Vec<&'static str> {
    let text = format!(r#"{{"type": "{}", "{path}": {{}}}}"#, known.name);
    let document = Json::parse(text.as_bytes()).unwrap();
    let mut findings = Findings::default();
    let mut subject = Subject::new(
        &document,
        "n",
        String::new(),
        Version::LATEST,
        &mut findings,
    );
    (known.check)(&mut subject);
    subject.known.of(path).collect()
}

#[test]
fn the_keys_are_those_of_the_plugins_readmes() {
    let plugins = PLUGINS.iter().map(|plugin| ("plugins", "", plugin));
    let ipam = IPAM_PLUGINS.iter().map(|plugin| ("ipam", "ipam", plugin));
    for (folder, path, plugin) in plugins.chain(ipam) {
        let mut known = read_keys(plugin, path);
        // No keys of an author's.
        known.retain(|key| *key != "args" && *key != "runtimeConfig");
        if DELEGATING.contains(&plugin.name) {
            // Of every plugin; a README of one that passes them on has them, too.
            known.extend(["ipam", "dns"]);
        }
        known.sort_unstable();
        let readme = plugin_readme(&format!("{folder}/{}", plugin.name));
        if known.is_empty() {
            assert!(!readme.contains("## Keys"), "{}", plugin.name);
        } else {
            assert_eq!(documented_keys(&readme), known, "{}", plugin.name);
        }
    }
}

/// Each of these members gives the plugin the findings beside it, and no other.
#[test]
fn probable_mistakes_are_warnings() {
    let host_local = r#""type": "bridge", "ipam": {"type": "host-local""#;
    let fixed = r#""type": "bridge", "ipam": {"type": "static""#;
    let dhcp = r#""type": "bridge", "ipam": {"type": "dhcp""#;
    let far = "10.9.0.1 is not in 10.0.0.0/24: containers cannot reach it directly";
    for (keys, expected) in [
        (
            r#""type": "bridge", "isGateway": true, "detectConflicts": true"#.to_owned(),
            &[
                "isGateway: has no effect without ipam",
                "detectConflicts: has no effect without ipam",
            ][..],
        ),
        (
            r#""type": "bridge", "preserveDefaultVlan": true, "forceAddress": true"#.into(),
            &[
                "preserveDefaultVlan: has no effect without vlan or vlanTrunk",
                "forceAddress: has no effect without isGateway",
            ],
        ),
        (
            r#""type": "macvlan", "mac": "02:00:00:00:00:01""#.into(),
            &["mac: is that of every pod: two on one parent cannot have the same"],
        ),
        (
            r#""type": "vxlan", "mode": "l2", "vni": 1, "ipMasq": true"#.into(),
            &["ipMasq: has no effect without ipam"],
        ),
        (
            format!(r#"{dhcp}, "daemonSocketPath": "x", "provide": [{{"option": "12"}}]}}"#),
            &[
                "ipam.provide[0]: neither value nor fromArg: nothing is sent",
                "ipam.daemonSocketPath: not an absolute path: it depends on the runtime's working directory",
            ],
        ),
        (
            format!(r#"{dhcp}}}, "isGateway": true"#),
            &[
                "isGateway: the node becomes the gateway that the DHCP server names, on the server's own segment",
            ],
        ),
        (
            format!(r#"{host_local}, "subnet": "10.0.0.0/24", "gateway": "10.9.0.1"}}"#),
            &[&format!("ipam.gateway: {far}")],
        ),
        (
            format!(
                r#"{host_local}, "rangeStart": "10.0.0.1", "ranges": [[{{"subnet": "10.0.0.0/24"}}]]}}"#
            ),
            &["ipam.rangeStart: has no effect without subnet beside it"],
        ),
        (
            format!(
                r#"{fixed}, "addresses": [{{"address": "10.0.0.2/24", "gateway": "10.9.0.1"}}]}}"#
            ),
            &[
                "ipam.addresses[0].gateway: 10.9.0.1 is not in 10.0.0.2/24: containers cannot reach it directly",
            ],
        ),
        (
            format!("{fixed}}}"),
            &["ipam.addresses: none: they have to come from IP in CNI_ARGS or args.cni.ips"],
        ),
    ] {
        let expected: Vec<_> = expected
            .iter()
            .map(|it| format!("plugins[0].{it}"))
            .collect();
        assert_eq!(faults(&keys), expected, "{keys}");
    }
}

#[test]
fn a_plugin_and_its_ipam_plugin_report_every_fault() {
    let plugin = r#""type": "bridge", "mtu": "x", "vlan": 5000, "isGatway": true, "hairpinMode": true,
        "promiscMode": true, "ipam": {"type": "host-local", "rangs": [], "routes": [{"dst": 1}],
        "ranges": [[{"subnet": "10.0.0.0/24", "rangeEnd": "10.1.0.1"}], []]}"#;
    assert_eq!(
        faults(plugin),
        [
            "plugins[0].ipam.routes[0].dst: invalid type: integer `1`, expected a string",
            "plugins[0].ipam.ranges[0][0].rangeEnd: invalid range set 0: RangeEnd 10.1.0.1 not in network 10.0.0.0/24",
            "plugins[0].ipam.ranges[1]: invalid range set 1: empty range set",
            "plugins[0].mtu: invalid value: string \"x\", expected an integer or \"auto\"",
            "plugins[0].promiscMode: cannot set hairpin mode and promiscuous mode at the same time",
            "plugins[0].vlan: invalid VLAN ID 5000 (must be between 0 and 4094)",
            "plugins[0].isGatway: unknown key; did you mean isGateway?",
            "plugins[0].ipam.rangs: unknown key; did you mean ranges?",
        ]
    );
}

#[test]
fn a_runtime_may_pass_ranges() {
    let declared =
        r#""type": "bridge", "capabilities": {"ipRanges": true}, "ipam": {"type": "host-local"}"#;
    assert!(faults(declared).is_empty());
    let undeclared = r#""type": "bridge", "ipam": {"type": "host-local"}"#;
    assert_eq!(
        faults(undeclared),
        ["plugins[0].ipam: no IP ranges specified"]
    );
}

#[test]
fn a_mode_that_changes_nothing_is_a_warning() {
    let faults = |keys: &str| {
        let ipam = r#""ipam": {"type": "host-local", "subnet": "10.1.0.0/24"}"#;
        faults(&format!(r#""type": "bridge", {keys}, {ipam}"#))
    };
    assert_eq!(
        faults(r#""gatewayModeIPv4": "nat""#),
        ["plugins[0].gatewayModeIPv4: has no effect without isGateway"]
    );
    assert_eq!(
        faults(r#""isGateway": true, "internal": true, "ipMasq": true"#),
        ["plugins[0].ipMasq: has no effect: the modes of both families do without it"]
    );
    let routed = r#""isGateway": true, "gatewayModeIPv6": "routed""#;
    let missing =
        "plugins[0].capabilities: portMappings is missing: runtimes pass no ports to be opened";
    assert_eq!(faults(routed), [missing]);
    let declared = format!(r#"{routed}, "capabilities": {{"portMappings": true}}"#);
    assert!(faults(&declared).is_empty());
}

#[test]
fn portmap_is_chained_and_declares_its_capability() {
    let of_last = |portmap: &str| faults_of_last(&[r#""type": "loopback""#, portmap]);
    let undeclared =
        "plugins[1].capabilities: portMappings is missing: runtimes pass no ports to be published";
    assert_eq!(of_last(r#""type": "portmap""#), [undeclared]);
    let declared = r#""type": "portmap", "capabilities": {"portMappings": true}"#;
    assert!(of_last(declared).is_empty());
    let alone = faults_of_last(&[declared]);
    assert_eq!(alone, ["plugins[0]: must be called as chained plugin"]);
    let mappings = r#""runtimeConfig": {"mac": "x", "portMappings": [
        {"HostPort": 1, "containerPort": 1, "protocol": "tcp", "hostIP": "::1"}, {"hostPrt": 1}]}"#;
    assert_eq!(
        of_last(&format!("{declared}, {mappings}")),
        [
            "plugins[1].runtimeConfig.portMappings[1].containerPort: Invalid container port number: 0",
            "plugins[1].runtimeConfig.portMappings[1].hostPort: Invalid host port number: 0",
            "plugins[1].runtimeConfig.portMappings[1].protocol: invalid protocol \"\": must be tcp, udp or sctp",
            "plugins[1].runtimeConfig.portMappings[1].hostPrt: unknown key; did you mean hostPort?",
        ]
    );
}

#[test]
fn a_master_is_a_name_or_patterns_of_names() {
    let master = |text: &str| faults(&format!(r#""type": "macvlan", "master": "{text}""#));
    for fine in ["", "eth0", "bond0|enp*s?", "*", "*|eth0"] {
        assert!(master(fine).is_empty(), "{fine}");
    }
    assert_eq!(
        master("eth0||eth1"),
        ["plugins[0].master: interface name is empty"]
    );
    assert_eq!(master("a-name-of-16-bytes").len(), 1);
    let mtu = faults(r#""type": "macvlan", "mtu": -1"#);
    assert_eq!(
        mtu,
        ["plugins[0].mtu: invalid MTU -1, must be [0, master MTU(65535)]"]
    );
}

#[test]
fn all_faults_of_a_list_are_reported() {
    assert_eq!(
        of_list(
            r#"{"Name": "n", "cniVersion": "1.2", "disableGC": "no", "ipam": {}, "plugin": [],
                "plugins": [{"type": "bridge", "mtu": 1}, 5, {}]}"#
        ),
        [
            "Name: unknown key; keys of a list match to the letter: name",
            "disableGC: expected a boolean, got \"no\"",
            "ipam: unknown key; keys of a plugin belong into plugins[]",
            "plugin: unknown key; did you mean plugins?",
            "name: missing",
            "cniVersion: unknown version \"1.2\"; known are 0.1.0, 0.2.0, 0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0",
            "plugins[0].mtu: invalid MTU 1, must be [68, 65535]",
            "plugins[1]: expected an object, got a number",
            "plugins[2].type: missing",
        ]
    );
}

#[test]
fn keys_without_effect_in_a_version_are_reported() {
    assert_eq!(
        of_list(
            r#"{"name": "n", "disableCheck": true, "disableGC": "true", "plugins": [{"type": "x"}]}"#
        ),
        [
            "cniVersion: missing: 0.1.0 is assumed, without CHECK, GC and STATUS",
            "disableCheck: has no effect at cniVersion 0.1.0, before 0.4.0",
            "disableGC: has no effect at cniVersion 0.1.0, before 1.1.0",
        ]
    );
    assert_eq!(
        faults_at("0.2.0", r#""type": "bridge""#),
        ["plugins[0].ipam: missing: a result of cniVersion 0.2.0 needs an address"]
    );
    assert!(
        of_list(
            r#"{"name": "n", "cniVersions": ["0.2.0", "1.1.0"], "disableGC": true,
                "plugins": [{"type": "bridge"}]}"#
        )
        .is_empty()
    );
}

#[test]
fn the_highest_of_several_versions_must_be_one() {
    let found = |versions: &str| {
        of_list(&format!(
            r#"{{"name": "n", "cniVersion": "0.4.0", "cniVersions": {versions}, "plugins": [{{"type": "x"}}]}}"#
        ))
    };
    assert!(found(r#"["1.0.0", "7.0.0"]"#).is_empty());
    assert_eq!(
        found(r#"["1.0.0", "1.0.7"]"#),
        ["cniVersions: \"1.0.7\" is the highest, and no version of the specification"]
    );
}

#[test]
fn of_unknown_plugins_only_the_common_keys_are_looked_at() {
    assert!(
        faults(r#""type": "mine", "any": 1, "ipam": {"type": "host-local", "x": 1}"#).is_empty()
    );
    assert_eq!(
        faults(r#""type": "mine", "capabilities": {"ips": "yes"}, "ipam": []"#),
        [
            "plugins[0].capabilities.ips: invalid type: string \"yes\", expected a boolean",
            "plugins[0].ipam: expected an object, got a list",
        ]
    );
    assert_eq!(
        faults(r#""type": "brigde""#),
        ["plugins[0].type: unknown plugin brigde; did you mean bridge?"]
    );
}

#[test]
fn the_ranges_of_other_plugins_that_pass_ipam_on_are_checked() {
    assert_eq!(
        faults(r#""type": "macvlan", "master": "eth0", "ipam": {"type": "host-local"}"#),
        ["plugins[0].ipam: no IP ranges specified"]
    );
}

#[test]
fn loopback_has_no_keys_of_its_own() {
    assert!(faults(r#""type": "loopback""#).is_empty());
    assert_eq!(
        faults(r#""type": "loopback", "mtu": 1"#),
        ["plugins[0].mtu: unknown key, ignored"]
    );
}

#[test]
fn names_in_a_list_count_for_its_plugins() {
    assert_eq!(
        faults(r#""type": "x", "name": "other", "cniVersion": "1.1.0""#),
        ["plugins[0].name: that of the list counts"]
    );
}

#[test]
fn plugins_beside_a_list_are_checked_with_it() {
    let dir = TempDir::new().unwrap();
    let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
    fs::create_dir(dir.path().join("n")).unwrap();
    write("n.conflist", r#"{"cniVersion": "1.1.0", "name": "n"}"#);
    let list = dir.path().join("n.conflist");
    assert_eq!(
        lines(&only(&list)),
        ["plugins: missing, and none lie in the directory of the network's name"]
    );
    write("n/a.conf", r#"{"type": "bridge", "mtu": 1}"#);
    write("n/b.conf", "{");
    let found = lines(&only(&list)).join("\n");
    assert!(found.contains("plugins[0] ("), "{found}");
    assert!(found.contains("n/a.conf).mtu: invalid MTU 1"), "{found}");
    assert!(found.contains("n/b.conf): not JSON: "), "{found}");
}

#[test]
fn a_single_configuration_is_read_as_such() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("n.conf");
    let found = |text: &str| {
        fs::write(&path, text).unwrap();
        lines(&only(&path))
    };
    assert!(found(r#"{"cniVersion": "1.1.0", "name": "n", "type": "bridge"}"#).is_empty());
    assert_eq!(
        found(r#"{"cniVersion": "1.1.0", "name": "-n", "type": "bridge", "mtu": 1}"#),
        [
            "name: invalid characters found in network name",
            "mtu: invalid MTU 1, must be [68, 65535]",
        ]
    );
    assert_eq!(
        found(r#"{"cniVersion": "1.1.0", "name": "n", "plugins": [{"type": "bridge"}]}"#),
        ["plugins: a list of plugins is read from *.conflist files only"]
    );
}

#[test]
fn a_directory_is_all_its_configurations() {
    let dir = TempDir::new().unwrap();
    let check = || all(&[dir.path().to_owned()], None);
    assert_eq!(check()[0].findings.count(Severity::Error), 1);
    let conf = r#"{"cniVersion": "1.1.0", "name": "n", "type": "bridge"}"#;
    for name in ["b.conf", "a.json", "c.txt"] {
        fs::write(dir.path().join(name), conf).unwrap();
    }
    let reports = check();
    assert_eq!(reports.len(), 2);
    assert!(reports[0].findings.all().is_empty());
    let second = lines(&reports[1]).join("\n");
    assert!(
        second.contains("a.json describes a network of that name too"),
        "{second}"
    );
}

#[test]
fn plugins_are_looked_up_in_the_given_directories() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("n.conf");
    let text =
        r#"{"cniVersion": "1.1.0", "name": "n", "type": "bridge", "ipam": {"type": "../x"}}"#;
    fs::write(&path, text).unwrap();
    let dirs = [dir.path().to_owned()];
    let place = dir.path().display();
    assert_eq!(
        lines(&file(&path, Some(&dirs))[0]),
        [
            format!("type: failed to find plugin \"bridge\" in path [{place}]"),
            "ipam.type: invalid plugin name: ../x".to_owned(),
        ]
    );
}

fn of_manifest(ending: &str, text: &str) -> Vec<(String, Option<String>, Vec<String>)> {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join(format!("manifest.{ending}"));
    fs::write(&path, text).unwrap();
    let reports = file(&path, None).into_iter();
    let shown = reports.map(|it| {
        let faults = lines(&it);
        (it.object.unwrap_or_default(), it.network, faults)
    });
    shown.collect()
}

#[test]
fn network_attachment_definitions_are_checked_in_manifests() {
    let yaml = r#"
apiVersion: v1
kind: ConfigMap
metadata: {name: other}
data: {config: "not JSON"}
---
apiVersion: k8s.cni.cncf.io/v1
kind: NetworkAttachmentDefinition
metadata:
  name: lan
  namespace: apps
spec:
  config: |
    {"cniVersion": "1.0.0", "type": "macvlan", "master": "eth0", "mtuu": 9}
---
apiVersion: v1
kind: List
items:
  - apiVersion: k8s.cni.cncf.io/v1
    kind: NetworkAttachmentDefinition
    metadata: {name: two}
    spec:
      config: '{"cniVersion": "1.0.0", "name": "own", "plugins": [{"type": "bridge", "vlan": "x"}]}'
  - apiVersion: k8s.cni.cncf.io/v1
    kind: NetworkAttachmentDefinition
    metadata: {name: broken}
    spec: {config: "{"}
"#;
    let found = of_manifest("yaml", yaml);
    let faults: Vec<&str> = found.iter().map(|(.., it)| it[0].as_str()).collect();
    assert_eq!(found.len(), 3, "{found:?}");
    assert_eq!(
        (&*found[0].0, found[0].1.as_deref()),
        ("apps/lan", Some("lan"))
    );
    assert_eq!(faults[0], "mtuu: unknown key; did you mean mtu?");
    assert_eq!((&*found[1].0, found[1].1.as_deref()), ("two", Some("own")));
    assert!(faults[1].starts_with("plugins[0].vlan: "), "{found:?}");
    assert!(
        faults[2].starts_with("spec.config: not JSON: EOF"),
        "{found:?}"
    );
}

#[test]
fn a_manifest_may_be_json_and_refer_to_the_nodes_file() {
    let json = r#"{"apiVersion": "k8s.cni.cncf.io/v1", "kind": "NetworkAttachmentDefinition",
                   "metadata": {"name": "lan"}}"#;
    assert_eq!(
        of_manifest("json", json),
        [("lan".to_owned(), None, vec![])]
    );
}

#[test]
fn a_file_that_is_no_yaml_or_has_aliases_is_refused() {
    let not_yaml = of_manifest("yml", "a: [1\nb: }");
    assert!(not_yaml[0].2[0].starts_with(": not YAML: "), "{not_yaml:?}");
    let bomb = of_manifest("yml", "a: &a [x, x]\nb: [*a, *a]\n");
    assert_eq!(
        bomb[0].2,
        [": has a YAML alias (*), which is not supported"]
    );
}
