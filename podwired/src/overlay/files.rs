//! What the node's runtime and plugins read: `subnet.env` and the list of plugins. Each is complete
//! or absent, and written only if it differs: a runtime reads its directory again after each change.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, Result};
use flannel::{Config, Subnet, SubnetEnv};
use serde_json::{Value, json};

use super::conf::Membership;

/// A file that is larger is not ours.
const LARGEST: u64 = 1 << 20;

/// Writes both files.
///
/// # Errors
/// Those of the file system.
pub fn write(network: &Membership, config: &Config, subnet: Subnet, mtu: u32) -> Result<()> {
    if config.backend.kind.has_subnets() {
        write_env(network, config, subnet, mtu)?;
    }
    let list = conflist(network, config, subnet, mtu);
    let list = format!("{list:#}\n");
    replace(&network.conflist, list.as_bytes())
}

fn write_env(network: &Membership, config: &Config, subnet: Subnet, mtu: u32) -> Result<()> {
    // The bridge masquerades, pod by pod.
    let ip_masq = false;
    let env = SubnetEnv {
        subnet,
        mtu,
        ip_masq,
    };
    let env = flannel::subnet_env(config, &env);
    replace(&network.subnet_file, env.as_bytes())
}

/// The subnet that this node had, in the file that this or flanneld has left.
pub fn own_subnet(network: &Membership, config: &Config) -> Option<Subnet> {
    let (text, _) = cni::file::read(&network.subnet_file, LARGEST).ok()?;
    flannel::own_subnet(config, &String::from_utf8_lossy(&text))
}

/// The list of plugins: a bridge that is the gateway of the node's pods, and published ports.
fn conflist(network: &Membership, config: &Config, subnet: Subnet, mtu: u32) -> Value {
    let networks: Vec<String> = config.networks().map(|it| it.to_string()).collect();
    let mut bridge = json!({
        "type": "bridge",
        "bridge": network.bridge.as_str(),
        "isGateway": true,
        "isDefaultGateway": true,
        "forceAddress": true,
        "hairpinMode": true,
        "mtu": mtu,
    });
    if config.backend.kind.has_subnets() {
        let ranges = subnet.all().map(|it| json!([{"subnet": it.to_string()}]));
        bridge["ipam"] = json!({"type": "host-local", "ranges": ranges.collect::<Vec<_>>()});
    } else {
        // It connects the bridge with the agent's device.
        bridge["type"] = json!("vxlan");
        bridge["mode"] = json!("l2");
        bridge["vni"] = json!(config.backend.vni);
        bridge["port"] = json!(config.backend.port);
        bridge["gbp"] = json!(config.backend.gbp);
        if let Some(dev) = &network.dev {
            bridge["dev"] = json!(dev.as_str());
        }
        bridge["ipam"] = addresses(network, &networks);
    }
    if network.ip_masq {
        bridge["ipMasq"] = json!(true);
        // From pod to pod, addresses stay.
        let nodes = network.ip_masq_except.iter().map(ToString::to_string);
        let except: Vec<String> = networks.iter().cloned().chain(nodes).collect();
        bridge["ipMasqExcept"] = json!(except);
    }
    let portmap = json!({"type": "portmap", "capabilities": {"portMappings": true}});
    let mut plugins = vec![bridge, portmap];
    if network.has_names {
        plugins.push(json!({
            "type": "dnsname",
            "domainName": "podwire.internal",
            // This agent has the resolver.
            "resolver": "service",
            "capabilities": {"aliases": true, "dns": true},
        }));
    }
    json!({"cniVersion": "1.0.0", "name": network.name, "plugins": plugins})
}

/// Where pods of a segment get their addresses: each is in use once in all of it.
fn addresses(network: &Membership, networks: &[String]) -> Value {
    let mut ipam = network.ipam.clone().unwrap_or_default();
    let has_ranges = ["ranges", "subnet"].iter().any(|it| ipam.get(it).is_some());
    if ipam["type"] == "cluster" && !has_ranges {
        let ranges = networks.iter().map(|it| json!([{"subnet": it}]));
        ipam["ranges"] = ranges.collect();
    }
    ipam
}

/// Replaces a file that all may read by a rename, unless it has the content.
fn replace(path: &Path, content: &[u8]) -> Result<()> {
    if cni::file::read(path, LARGEST).is_ok_and(|(present, _)| present == content) {
        return Ok(());
    }
    let write = || {
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir)?;
        }
        let mut draft = path.as_os_str().to_owned();
        // Runtimes read files that end in .conf, .conflist and .json.
        draft.push(".draft");
        cni::file::remove(Path::new(&draft))?;
        let mut options = std::fs::OpenOptions::new();
        let mut file = options
            .write(true)
            .create_new(true)
            .mode(0o644)
            .open(&draft)?;
        file.write_all(content)?;
        file.sync_all()?;
        std::fs::rename(&draft, path)
    };
    write().with_context(|| format!("write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::overlay::conf::{Conf, Settings};

    #[test]
    fn files_are_written_once_and_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join("new").join(name);
        let keys = json!({"file": "/x", "networks": [{"name": "pods",
            "subnetFile": path("subnet.env"), "conflist": path("10.conflist")}]});
        let conf: Conf = serde_json::from_value(keys).unwrap();
        let network = &Settings::new(&conf).unwrap().networks[0];
        let config = r#"{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"}}"#;
        let config = Config::parse(config.as_bytes()).unwrap();
        let subnet: Subnet = "10.5.3.0-24".parse().unwrap();
        assert_eq!(own_subnet(network, &config), None);
        write(network, &config, subnet, 1450).unwrap();
        assert_eq!(own_subnet(network, &config), Some(subnet));
        let list: Value =
            serde_json::from_slice(&std::fs::read(&network.conflist).unwrap()).unwrap();
        assert_eq!(list["plugins"][0]["ipMasqExcept"], json!(["10.5.0.0/16"]));
        assert_eq!(
            list["plugins"][0]["ipam"]["ranges"],
            json!([[{"subnet": "10.5.3.0/24"}]])
        );
        let inode =
            |path: &Path| std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(path).unwrap());
        let before = inode(&network.conflist);
        write(network, &config, subnet, 1450).unwrap();
        assert_eq!(inode(&network.conflist), before);
        write(network, &config, subnet, 1430).unwrap();
        assert_ne!(inode(&network.conflist), before);
    }
}
