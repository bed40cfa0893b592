//! The document for a plugin's standard input, as libcni makes it: the plugin's own keys,
//! sorted, and those that the runtime adds.

use cni::conf::ValidAttachment;
use serde_json::{Map, Number, Value, json};

use crate::{NetworkList, PluginConf};

/// For STATUS: a plugin's keys with the network's name and version.
pub fn base(list: &NetworkList, plugin: &PluginConf) -> Map<String, Value> {
    let mut document = plugin.document.clone();
    document.insert("name".into(), list.name.as_str().into());
    document.insert("cniVersion".into(), list.cni_version.as_str().into());
    let written_as_go = document
        .into_iter()
        .map(|(key, value)| (key, as_go_writes(value)));
    written_as_go.collect()
}

/// For ADD, DEL and CHECK: also `prevResult` if there is one, and `runtimeConfig` with the
/// capability arguments that the plugin declares.
pub fn of_attachment(
    list: &NetworkList,
    plugin: &PluginConf,
    prev_result: Option<&Value>,
    capability_args: Option<&Map<String, Value>>,
) -> Map<String, Value> {
    let mut document = base(list, plugin);
    if let Some(prev_result) = prev_result {
        document.insert("prevResult".into(), prev_result.clone());
    }
    let declared = |name: &String| plugin.capabilities.get(name) == Some(&true);
    let offered = capability_args.into_iter().flatten();
    let runtime_config: Map<_, _> = offered
        .filter(|(name, _)| declared(name))
        .map(|(name, value)| (name.clone(), as_go_writes(value.clone())))
        .collect();
    if !runtime_config.is_empty() {
        document.insert("runtimeConfig".into(), runtime_config.into());
    }
    document
}

/// For GC: also the attachments in use, under the key of the specification and that of an
/// earlier version of it.
pub fn of_gc(
    list: &NetworkList,
    plugin: &PluginConf,
    valid: &[ValidAttachment],
) -> Map<String, Value> {
    let valid: Vec<_> = valid
        .iter()
        .map(|it| json!({"containerID": it.container_id, "ifname": it.ifname}))
        .collect();
    let mut document = base(list, plugin);
    document.insert("cni.dev/valid-attachments".into(), valid.clone().into());
    document.insert("cni.dev/attachments".into(), valid.into());
    document
}

/// Go decodes every number as a float and writes integral ones without a fraction, so a
/// plugin gets `1500.0` as an integer.
fn as_go_writes(value: Value) -> Value {
    match value {
        Value::Number(number) => Value::Number(whole(number)),
        Value::Array(items) => items.into_iter().map(as_go_writes).collect(),
        Value::Object(members) => {
            let members = members.into_iter();
            Value::Object(members.map(|(k, v)| (k, as_go_writes(v))).collect())
        }
        other => other,
    }
}

fn whole(number: Number) -> Number {
    /// Up to here, a float holds every integer exactly.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    match number.as_f64() {
        Some(float) if number.is_f64() && float.fract() == 0.0 && float.abs() <= EXACT => {
            Number::from(float as i64)
        }
        _ => number,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network() -> NetworkList {
        NetworkList::from_bytes(
            br#"{"name": "n", "cniVersion": "1.0.0", "plugins": [
                {"type": "a", "mtu": 1500.0, "big": 9007199254740993, "part": 0.5, "name": "own",
                 "capabilities": {"ips": true, "mac": false, "dns": true}}]}"#,
        )
        .expect("a list")
    }

    fn members(text: &str) -> Map<String, Value> {
        serde_json::from_str(text).expect("an object")
    }

    #[test]
    fn keys_are_sorted_and_the_lists_name_and_version_win() {
        let list = network();
        let text = serde_json::to_string(&base(&list, &list.plugins[0])).unwrap();
        assert_eq!(
            text,
            r#"{"big":9007199254740993,"capabilities":{"dns":true,"ips":true,"mac":false},"cniVersion":"1.0.0","mtu":1500,"name":"n","part":0.5,"type":"a"}"#
        );
    }

    #[test]
    fn only_declared_capabilities_are_passed() {
        let list = network();
        let args = members(r#"{"ips": ["10.0.0.2"], "mac": "02::", "bandwidth": {}}"#);
        let document = of_attachment(&list, &list.plugins[0], None, Some(&args));
        assert_eq!(document["runtimeConfig"], json!({"ips": ["10.0.0.2"]}));
        assert!(!document.contains_key("prevResult"));
    }

    #[test]
    fn without_capabilities_there_is_no_runtime_config() {
        let list = network();
        let args = members(r#"{"mac": "02::"}"#);
        let result = json!({"cniVersion": "1.0.0"});
        let document = of_attachment(&list, &list.plugins[0], Some(&result), Some(&args));
        assert!(!document.contains_key("runtimeConfig"));
        assert_eq!(document["prevResult"], result);
    }

    #[test]
    fn gc_has_its_list_under_both_names_even_when_it_is_empty() {
        let list = network();
        let document = of_gc(&list, &list.plugins[0], &[]);
        assert_eq!(document["cni.dev/valid-attachments"], json!([]));
        assert_eq!(document["cni.dev/attachments"], json!([]));
    }
}
