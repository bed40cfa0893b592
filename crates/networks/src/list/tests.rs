use super::*;
use tempfile::TempDir;

fn list(text: &str) -> Result<NetworkList> {
    NetworkList::from_bytes(text.as_bytes())
}

fn error(text: &str) -> String {
    format!("{:#}", list(text).unwrap_err())
}

fn directory(files: &[(&str, &str)]) -> TempDir {
    let dir = TempDir::new().unwrap();
    for (name, content) in files {
        let file = dir.path().join(name);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, content).unwrap();
    }
    dir
}

fn types(list: &NetworkList) -> Vec<&str> {
    list.plugins.iter().map(|p| p.plugin.as_str()).collect()
}

#[test]
fn the_texts_of_faults_are_those_of_libcni() {
    let prefix = "error parsing configuration list: ";
    for (text, expected) in [
        (r#"{}"#, "no name"),
        (r#"{"Name": "x"}"#, "no name"),
        (r#"{"name": 1}"#, "invalid name type float64"),
        (
            r#"{"name": "x", "cniVersion": []}"#,
            "invalid cniVersion type []interface {}",
        ),
        (r#"{"name": "x", "plugins": []}"#, "no plugins in list"),
        (
            r#"{"name": "x", "plugins": {}}"#,
            "invalid 'plugins' type map[string]interface {}",
        ),
        (
            r#"{"name": "x", "plugins": [{"type": "a"}, {}]}"#,
            "failed to parse plugin config 1: error parsing configuration: missing 'type'",
        ),
        (
            r#"{"name": "x", "loadOnlyInlinedPlugins": true}"#,
            "`loadOnlyInlinedPlugins` is true, and no 'plugins' key",
        ),
        (
            r#"{"name": "x", "disableCheck": "yes"}"#,
            "invalid value \"yes\" for disableCheck",
        ),
        (
            r#"{"name": "x", "disableGC": 1}"#,
            "invalid type float64 for disableGC",
        ),
        (
            r#"{"name": "x", "cniVersions": ["1.0.0", 2]}"#,
            "invalid type for cniVersions index 1: float64",
        ),
    ] {
        assert_eq!(error(text), format!("{prefix}{expected}"), "{text}");
    }
}

#[test]
fn the_highest_version_that_we_speak_is_taken() {
    let version = |keys: &str| {
        let text = format!(r#"{{"name": "x", {keys}}}"#);
        list(&text).unwrap().cni_version
    };
    assert_eq!(version(r#""cniVersion": "0.4.0""#), "0.4.0");
    assert_eq!(
        version(r#""cniVersion": "0.4.0", "cniVersions": ["1.0.0", "0.3.1", "9.0.0"]"#),
        "1.0.0"
    );
    assert_eq!(
        version(r#""cniVersion": "1.1.0", "cniVersions": ["0.3.1"]"#),
        "1.1.0"
    );
    // Taken as it is: a plugin that speaks it may exist.
    assert_eq!(version(r#""cniVersion": "9.0.0""#), "9.0.0");
    assert_eq!(version(r#""disableGC": true"#), "");
}

#[test]
fn booleans_may_be_text() {
    let list = list(r#"{"name": "x", "disableCheck": "True", "disableGC": "false"}"#).unwrap();
    assert!(list.disable_check && !list.disable_gc);
}

#[test]
fn plugins_beside_the_list_come_after_its_own() {
    let dir = directory(&[
        (
            "10-x.conflist",
            r#"{"name": "x", "plugins": [{"type": "a"}]}"#,
        ),
        ("x/20-c.conf", r#"{"type": "c"}"#),
        ("x/10-b.conf", r#"{"Type": "b"}"#),
        ("x/30-d.json", r#"{"type": "d"}"#),
    ]);
    let list = NetworkList::load(dir.path(), "x").unwrap();
    assert_eq!(types(&list), ["a", "b", "c"]);
}

#[test]
fn a_list_may_have_all_its_plugins_beside_it_or_refuse_them() {
    let dir = directory(&[
        ("10-x.conflist", r#"{"name": "x"}"#),
        ("x/a.conf", r#"{"type": "a"}"#),
        (
            "20-y.conflist",
            r#"{"name": "y", "loadOnlyInlinedPlugins": true, "plugins": [{"type": "a"}]}"#,
        ),
        ("y/b.conf", r#"{"type": "b"}"#),
        ("30-z.conflist", r#"{"name": "z"}"#),
    ]);
    assert_eq!(types(&NetworkList::load(dir.path(), "x").unwrap()), ["a"]);
    assert_eq!(types(&NetworkList::load(dir.path(), "y").unwrap()), ["a"]);
    let error = NetworkList::load(dir.path(), "z").unwrap_err();
    assert!(format!("{error:#}").ends_with("30-z.conflist: no plugin configs found"));
}

#[test]
fn lists_are_searched_before_single_configurations_in_order() {
    let dir = directory(&[
        (
            "00-x.conf",
            r#"{"name": "x", "cniVersion": "0.4.0", "type": "single"}"#,
        ),
        (
            "20-x.conflist",
            r#"{"name": "x", "plugins": [{"type": "second"}]}"#,
        ),
        (
            "10-x.conflist",
            r#"{"name": "x", "plugins": [{"type": "first"}]}"#,
        ),
        (
            "30-y.json",
            r#"{"name": "y", "cniVersion": "0.4.0", "type": "j"}"#,
        ),
        ("x.txt", "not a configuration"),
    ]);
    assert_eq!(
        types(&NetworkList::load(dir.path(), "x").unwrap()),
        ["first"]
    );
    let single = NetworkList::load(dir.path(), "y").unwrap();
    assert_eq!((types(&single), &*single.cni_version), (vec!["j"], "0.4.0"));
    let cached: Value = serde_json::from_slice(&single.bytes).unwrap();
    assert_eq!(cached["plugins"][0]["type"], "j");
    assert_eq!(cached["name"], "y");
}

#[test]
fn a_broken_file_ends_the_search_and_is_named() {
    let dir = directory(&[
        ("10-broken.conflist", "{"),
        (
            "20-x.conflist",
            r#"{"name": "x", "plugins": [{"type": "a"}]}"#,
        ),
    ]);
    let error = Error::from_chain(&NetworkList::load(dir.path(), "x").unwrap_err());
    assert_eq!(error.code, Code::Decode as u32);
    assert!(
        error
            .msg
            .contains("10-broken.conflist: error parsing configuration list: EOF"),
        "{error}"
    );
}

#[test]
fn a_name_that_is_no_file_name_is_refused() {
    let dir = directory(&[(
        "x.conflist",
        r#"{"name": "../x", "plugins": [{"type": "a"}]}"#,
    )]);
    let error = NetworkList::load(dir.path(), "../x").unwrap_err();
    assert_eq!(Error::from_chain(&error).code, 7);
}

#[test]
fn versions_compare_by_their_numbers() {
    let at_least = |text: &str| {
        let list = list(&format!(r#"{{"name": "x", "cniVersion": "{text}"}}"#)).unwrap();
        list.at_least(Version::V0_4_0)
    };
    assert!(!at_least("").unwrap());
    assert!(!at_least("0.3.1").unwrap());
    assert!(at_least("0.4.0").unwrap());
    assert!(at_least("0.10.0").unwrap());
    assert!(at_least("2").unwrap());
    assert!(at_least("latest").is_err());
}
