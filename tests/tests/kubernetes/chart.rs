//! The Helm chart: what it renders is what the manifests have, and a real API server accepts it.

use std::collections::BTreeMap;
use std::process::Command;

use sandbox::kubernetes::program;
use serde_json::{Value, json};

use crate::api::Api;

const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/helm/podwire");
const MANIFESTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/kubernetes");

/// What the chart renders with these values.
#[expect(clippy::disallowed_methods, reason = "a program that only reads files")]
fn render(namespace: &str, values: &Value) -> String {
    let mut command = Command::new(program("helm-template"));
    command.args([CHART, namespace, &values.to_string()]);
    let output = command.output().expect("start helm-template");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    String::from_utf8(output.stdout).expect("text")
}

/// The objects of a file as the server would keep them, by kind and name.
fn accepted(api: &Api, file: &str) -> BTreeMap<String, Value> {
    let text = api.kubectl(&["apply", "--dry-run=server", "-o", "json", "-f", file]);
    let list: Value = serde_json::from_str(&text).expect("JSON");
    let objects = list["items"].as_array().expect("a list");
    objects
        .iter()
        .map(|object| {
            let name = object["metadata"]["name"].as_str().expect("a name");
            let kind = object["kind"].as_str().expect("a kind");
            (format!("{kind} {name}"), object.clone())
        })
        .collect()
}

/// Writes a rendered chart and returns the file.
fn written(api: &Api, text: &str) -> String {
    let file = api.cluster.path("chart.yaml");
    api.cluster.sandbox.write(&file, text);
    file.display().to_string()
}

#[test]
fn the_chart_s_defaults_are_the_manifests() {
    let api = Api::new(1);
    let file = written(
        &api,
        &render("podwire", &json!({"agent": {"enabled": true}})),
    );
    let mut chart = accepted(&api, &file);
    for name in ["podwire", "podwired"] {
        take_all(&api, &mut chart, name);
    }
    assert!(chart.is_empty(), "only in the chart: {:?}", chart.keys());
    let agent = json!({"enabled": true, "ipam": {"enabled": true}});
    let file = written(&api, &render("podwire", &json!({"agent": agent})));
    let mut chart = accepted(&api, &file);
    take_all(&api, &mut chart, "ipam");
    let map = chart["ConfigMap podwired"]["data"]["podwired.json"].as_str();
    let conf: Value = serde_json::from_str(map.expect("text")).expect("JSON");
    assert_eq!(conf["ipam"]["kubernetes"], json!({"namespace": "podwire"}));
}

/// Compares the objects of a manifest with those of the chart, and takes them out of these.
fn take_all(api: &Api, chart: &mut BTreeMap<String, Value>, name: &str) {
    let file = format!("{name}.yaml");
    let plain = accepted(api, &format!("{MANIFESTS}/{file}"));
    for (key, object) in &plain {
        if key.starts_with("Namespace ") {
            continue;
        }
        let mut rendered = chart
            .remove(key)
            .unwrap_or_else(|| panic!("{key}: not in the chart"));
        if key.starts_with("DaemonSet ") {
            let template = &mut rendered["spec"]["template"]["metadata"];
            template
                .as_object_mut()
                .expect("metadata")
                .remove("annotations");
        }
        for part in [
            "spec",
            "rules",
            "roleRef",
            "subjects",
            "automountServiceAccountToken",
        ] {
            assert_eq!(rendered[part], object[part], "{part} of {key}");
        }
        if key.starts_with("ConfigMap ") {
            let documents = |object: &Value| -> Vec<Value> {
                let data = object["data"].as_object().expect("data").values();
                data.map(|text| serde_json::from_str(text.as_str().expect("text")).expect("JSON"))
                    .collect()
            };
            assert_eq!(documents(&rendered), documents(object), "{name}");
        }
    }
}

#[test]
fn each_value_of_the_chart_arrives() {
    let api = Api::new(1);
    let conf = json!({"cniVersion": "1.0.0", "name": "mynet", "plugins": [{"type": "bridge"}]});
    let values = json!({
        "image": {"repository": "registry.test/podwire", "tag": "9", "pullPolicy": "Always"},
        "imagePullSecrets": [{"name": "registry"}],
        "binDir": "/usr/libexec/cni", "confDir": "/etc/kubernetes/cni", "sbinDir": "/opt/sbin",
        "plugins": ["bridge", "host-local"], "keepOthers": true,
        "conf": {"name": "10-mynet.conflist", "content": conf.to_string()},
        "nodeSelector": {"pool": "a"}, "tolerations": [{"key": "x", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
        "priorityClassName": "system-cluster-critical", "maxUnavailable": 1,
        "resources": {"limits": {"memory": "99Mi"}},
        "agent": {
            "enabled": true, "endpoint": "127.0.0.1:9999", "network": "net", "podCIDR": "",
            "podCIDRv6": "fd00::/48", "backend": {"Type": "host-gw"},
            "ipam": {"enabled": true, "graceSeconds": 77},
            "resources": {"limits": {"memory": "88Mi"}},
        },
    });
    let file = written(&api, &render("kube-system", &values));
    let all = accepted(&api, &file);
    let text = |key: &str| all[key].to_string();
    let (install, agent) = (text("DaemonSet podwire"), text("DaemonSet podwired"));
    for both in [&install, &agent] {
        for part in [
            "registry.test/podwire:9",
            "\"Always\"",
            "{\"name\":\"registry\"}",
            "/etc/kubernetes/cni",
            "\"pool\":\"a\"",
            "\"key\":\"x\"",
            "nodeAffinity",
            "system-cluster-critical",
            "\"maxUnavailable\":1",
        ] {
            assert!(both.contains(part), "{part} in {both}");
        }
    }
    for part in [
        "--bin-dir=/usr/libexec/cni",
        "--conf-dir=/etc/kubernetes/cni",
        "--sbin-dir=/opt/sbin",
        "--plugins=bridge,host-local",
        "--keep-others",
        "--conf=/conf/10-mynet.conflist",
        "99Mi",
        "/host/usr/libexec/cni",
    ] {
        assert!(install.contains(part), "{part} in {install}");
    }
    for part in ["\"port\":9999", "88Mi"] {
        assert!(agent.contains(part), "{part} in {agent}");
    }
    let data = |key: &str, file: &str| -> Value {
        let text = all[key]["data"][file].as_str().expect("text");
        serde_json::from_str(text).expect("JSON")
    };
    assert_eq!(data("ConfigMap podwire", "10-mynet.conflist"), conf);
    let network = json!({
        "EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fd00::/48",
        "Backend": {"Type": "host-gw"},
    });
    assert_eq!(data("ConfigMap podwired", "net-conf.json"), network);
    let agent = data("ConfigMap podwired", "podwired.json");
    assert_eq!(agent["endpoint"], "127.0.0.1:9999");
    let ipam = json!({"kubernetes": {"namespace": "kube-system"}, "graceSeconds": 77});
    assert_eq!(agent["ipam"], ipam);
    assert_eq!(
        all["Role podwired-ipam"]["metadata"]["namespace"],
        "kube-system"
    );
    assert_eq!(agent["overlay"]["networks"][0]["name"], "net");
}
