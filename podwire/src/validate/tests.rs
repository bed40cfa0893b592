use super::*;
use std::fs;
use tempfile::TempDir;

/// Faults of a network 1.1.0 with one plugin that has these members, as
/// `path: reason`.
pub fn faults(plugin: &str) -> Vec<String> {
    faults_at("1.1.0", plugin)
}

/// The same for another version.
pub fn faults_at(version: &str, plugin: &str) -> Vec<String> {
    of_list(&format!(
        r#"{{"cniVersion": "{version}", "name": "n", "plugins": [{{{plugin}}}]}}"#
    ))
}

/// The same for the last of several plugins of a network, if it alone has any.
pub fn faults_of_last(plugins: &[&str]) -> Vec<String> {
    let plugins: Vec<_> = plugins.iter().map(|it| format!("{{{it}}}")).collect();
    of_list(&format!(
        r#"{{"cniVersion": "1.1.0", "name": "n", "plugins": [{}]}}"#,
        plugins.join(", ")
    ))
}

/// Each of these members gives a plugin of this type the fault beside it, and no
/// other.
pub fn each_has_its_fault(plugin: &str, cases: &[(&str, &str)]) {
    for (keys, expected) in cases {
        let found = faults(&format!(r#""type": "{plugin}", {keys}"#));
        assert_eq!(found, [format!("plugins[0].{expected}")], "{keys}");
    }
}

/// A plugin of this type is right with any of these members.
pub fn none_has_a_fault(plugin: &str, cases: &[&str]) {
    for keys in cases {
        let none: [String; 0] = [];
        let found = faults(&format!(r#""type": "{plugin}", {keys}"#));
        assert_eq!(found, none, "{keys}");
    }
}

fn of_list(text: &str) -> Vec<String> {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("n.conflist");
    fs::write(&path, text).unwrap();
    lines(&file(&path, None))
}

fn lines(report: &Report) -> Vec<String> {
    let all = report.findings.all().iter();
    all.map(|it| format!("{}: {}", it.path, it.reason))
        .collect()
}

/// The README of a plugin, which documents its keys.
fn plugin_readme(folder: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("..")
        .join(folder)
        .join("README.md");
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The keys of the first table under "Keys", sorted.
fn documented_keys(readme: &str) -> Vec<String> {
    let section = readme.split("## Keys").nth(1).expect("a section Keys");
    let rows = section
        .lines()
        .skip_while(|line| !line.starts_with('|'))
        .take_while(|line| line.starts_with('|'));
    let first_cell = |row: &str| row.split('|').nth(1).unwrap_or_default().to_owned();
    let mut keys: Vec<_> = rows
        .map(first_cell)
        .flat_map(|cell| {
            cell.split('`')
                .skip(1)
                .step_by(2)
                .map(str::to_owned)
                .collect::<Vec<_>>()
        })
        .collect();
    keys.sort();
    keys
}

#[test]
fn the_tables_are_those_of_the_plugins_readmes() {
    let plugins = PLUGINS.iter().map(|plugin| ("plugins", plugin));
    let ipam = IPAM_PLUGINS.iter().map(|plugin| ("ipam", plugin));
    for (folder, plugin) in plugins.chain(ipam) {
        let mut known: Vec<_> = plugin.keys.iter().map(|key| key.name).collect();
        // No keys of an author's.
        known.retain(|key| *key != "args" && *key != "runtimeConfig");
        if DELEGATING.contains(&plugin.name) {
            // Of every plugin; a README of one that passes them on has them, too.
            known.extend(["ipam", "dns"]);
        }
        known.sort_unstable();
        let readme = plugin_readme(&format!("{folder}/{}", plugin.name));
        match known.is_empty() {
            true => assert!(!readme.contains("## Keys"), "{}", plugin.name),
            false => assert_eq!(documented_keys(&readme), known, "{}", plugin.name),
        }
    }
}

#[test]
fn a_syntax_error_has_line_and_column() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("n.conflist");
    fs::write(&path, "{\n  \"name\": \"n\"\n  \"plugins\": []\n}").unwrap();
    let report = file(&path, None);
    let [finding] = report.findings.all() else {
        panic!("{:?}", report.findings);
    };
    let position = finding.position.unwrap();
    assert_eq!((position.line, position.column), (3, 3));
    assert_eq!(finding.reason, "not JSON: expected `,` or `}`");
}

#[test]
fn all_faults_of_a_list_are_told() {
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
fn what_a_version_does_not_have_is_told() {
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
            "plugins[0].capabilities.ips: expected a boolean, got a string",
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
        lines(&file(&list, None)),
        ["plugins: missing, and none lie in the directory of the network's name"]
    );
    write("n/a.conf", r#"{"type": "bridge", "mtu": 1}"#);
    write("n/b.conf", "{");
    let found = lines(&file(&list, None)).join("\n");
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
        lines(&file(&path, None))
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
fn a_file_that_cannot_be_read_is_an_error() {
    let report = file(Path::new("/nonexistent/n.conflist"), None);
    assert!(lines(&report)[0].starts_with(": cannot be read: "));
}

#[test]
fn plugins_are_looked_up_where_the_user_says() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("n.conf");
    let text =
        r#"{"cniVersion": "1.1.0", "name": "n", "type": "bridge", "ipam": {"type": "../x"}}"#;
    fs::write(&path, text).unwrap();
    let dirs = [dir.path().to_owned()];
    let place = dir.path().display();
    assert_eq!(
        lines(&file(&path, Some(&dirs))),
        [
            format!("type: failed to find plugin \"bridge\" in path [{place}]"),
            "ipam.type: invalid plugin name: ../x".to_owned(),
        ]
    );
}
