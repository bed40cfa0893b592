//! The attachments in the cache, and what they want of the node.
//!
//! For every ADD, libcni's cache has the configuration, the capability arguments and the
//! result. The plugins' own libraries read them. The cache is shared by all runtimes that
//! keep it in the same directory. Nothing here changes anything.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use cni::AddResult;
use cni::conf::NetConf;
use cni::json::Json;
use netlink::Netlink;
use netns::NetNs;
use networks::{CachedAttachment, Contents, NetworkList, PluginConf, request};
use packet_filter::node::Pod;
use serde::Deserialize;
use serde_json::Value;

use crate::progress::Progress;

/// The attachments in the cache, the oldest first.
#[derive(Debug, Default)]
pub struct Pods {
    /// Those that live.
    pub attached: Vec<Attached>,
    /// What they want of the packet filter.
    pub wanted: Vec<Pod>,
    /// Those whose network namespace is gone.
    pub gone: Vec<cni::Attachment>,
    /// Those that are ignored, and why.
    pub skipped: Vec<String>,
    /// Files and attachments that could not be read, and why.
    pub errors: Vec<String>,
}

/// An attachment, as its plugins' libraries read it.
#[derive(Debug)]
pub struct Attached {
    /// The attachment.
    pub owner: cni::Attachment,
    /// The result of its ADD.
    pub result: AddResult,
    /// The plugins that make something of the node.
    pub plugins: Vec<Planned>,
}

/// A plugin of an attachment.
#[derive(Debug)]
pub struct Planned {
    /// The plugin's plan.
    pub plan: Plan,
    /// Whether it has an IPAM plugin.
    pub has_ipam: bool,
}

/// The plan of a plugin.
#[derive(Debug)]
pub enum Plan {
    /// Of bridge.
    Bridge(bridge::Plan),
    /// Of ptp.
    Ptp(ptp::Plan),
    /// Of vxlan.
    Vxlan(vxlan::Plan),
    /// Of portmap.
    Portmap(portmap::Plan),
    /// Of firewall.
    Firewall(firewall::Plan),
}

impl Pods {
    /// The attachments to `network`, or to all networks. `conf_dir` has the configurations of
    /// networks whose plugins are in separate files.
    pub fn of(contents: &Contents, network: Option<&str>, conf_dir: &Path) -> Self {
        let mut pods = Self::default();
        for file in &contents.unidentified {
            if network.is_none_or(|name| !file.possible_owners(name).is_empty()) {
                let name = file.path.display();
                match &file.fault {
                    Some(fault) => pods.errors.push(format!("{name}: {fault}")),
                    None => pods.skipped.push(format!(
                        "{name}: a result of an old libcni, without a configuration"
                    )),
                }
            }
        }
        let progress = Progress::of("attachments", contents.attachments.len());
        for cached in &contents.attachments {
            progress.step();
            if network.is_none_or(|name| name == cached.network_name)
                && let Err(error) = pods.add(cached, conf_dir)
            {
                pods.errors.push(format!("{}: {error:#}", cached.label()));
            }
        }
        pods.add_vxlan_guards();
        pods
    }

    fn add(&mut self, cached: &CachedAttachment, conf_dir: &Path) -> Result<()> {
        if is_gone(&cached.netns) {
            let (label, netns) = (cached.label(), &cached.netns);
            let why = format!("{label}: its network namespace {netns} is gone");
            self.skipped.push(why);
            self.gone.extend(cached.attachment().ok());
            return Ok(());
        }
        let attached = Attached::read(cached, &network_list(cached, conf_dir)?)?;
        let wanted = attached.wanted();
        self.attached.push(attached);
        self.wanted.push(wanted?);
        Ok(())
    }

    /// Adds each VXLAN network's guard to one of its pods, by the newest configuration.
    fn add_vxlan_guards(&mut self) {
        let mut networks = BTreeMap::new();
        for plugin in self.attached.iter().flat_map(|it| &it.plugins) {
            if let Plan::Vxlan(plan) = &plugin.plan {
                networks.insert(&plan.network.name, &plan.network);
            }
        }
        for (name, network) in networks {
            let guard = || overlay::guard::present(&Netlink::open()?, network);
            match guard() {
                Ok(guard) => {
                    let mut pods = self.wanted.iter_mut();
                    if let Some(pod) = pods.find(|it| it.owner.network == *name) {
                        pod.vxlan_guard = guard;
                    }
                }
                Err(error) => self.errors.push(format!("{name}: {error:#}")),
            }
        }
    }
}

impl Attached {
    fn read(cached: &CachedAttachment, list: &NetworkList) -> Result<Self> {
        let result = cached.add_result()?.context("no result in the cache")?;
        let owner = cached.attachment()?;
        let mut plugins = Vec::new();
        for plugin in &list.plugins {
            plugins.extend(Planned::read(cached, list, plugin)?);
        }
        Ok(Self {
            owner,
            result,
            plugins,
        })
    }

    /// What the attachment wants of the packet filter, but for a VXLAN network's guard.
    fn wanted(&self) -> Result<Pod> {
        let (owner, result) = (&self.owner, &self.result);
        let mut pod = Pod::new(owner.clone());
        for plugin in &self.plugins {
            let ports = pod.ports.take();
            match &plugin.plan {
                Plan::Bridge(plan) => pod = bridge::wanted(plan, owner, result)?,
                Plan::Ptp(plan) => pod = plan.rules(owner, &result.ips),
                Plan::Vxlan(plan) => pod = vxlan::wanted(plan, owner, result)?,
                // Not part of one transaction with the others.
                Plan::Firewall(_) => {
                    pod.ports = ports;
                    continue;
                }
                Plan::Portmap(plan) => {
                    pod.ports = plan.wanted(owner, result);
                    continue;
                }
            }
            pod.ports = ports;
        }
        Ok(pod)
    }
}

impl Planned {
    /// The plan of `plugin`, if it makes something of the node.
    fn read(
        cached: &CachedAttachment,
        list: &NetworkList,
        plugin: &PluginConf,
    ) -> Result<Option<Self>> {
        let document = request(cached, list, plugin)?;
        let has_ipam = !document.decode::<NetConf>()?.ipam.plugin.is_empty();
        let plan = match plugin.plugin.as_str() {
            "bridge" => Plan::Bridge(bridge::Plan::new(&document.decode()?, has_ipam, None)?),
            "ptp" => Plan::Ptp(ptp::Plan::new(&document.decode()?, has_ipam)?),
            "vxlan" => {
                let conf = document.decode()?;
                Plan::Vxlan(vxlan::Plan::new(&conf, &list.name, has_ipam, None)?)
            }
            "portmap" => Plan::Portmap(portmap::Plan::new(&document.decode()?)?),
            "firewall" => Plan::Firewall(firewall::Plan::new(&document.decode()?)?),
            _ => return Ok(None),
        };
        Ok(Some(Self { plan, has_ipam }))
    }
}

/// Whether the namespace is gone. Older versions of libcni do not record its path: then it
/// may exist.
pub fn is_gone(netns: &str) -> bool {
    !netns.is_empty() && NetNs::open(netns.as_ref()).is_err_and(|error| netns::is_gone(&error))
}

/// The configuration of the ADD. If its plugins are in separate files, the cache has none of
/// them: then the configuration as it is now.
fn network_list(cached: &CachedAttachment, conf_dir: &Path) -> Result<NetworkList> {
    let list = NetworkList::from_bytes(&cached.config()?)?;
    if list.plugins.is_empty() {
        return NetworkList::load(conf_dir, &list.name);
    }
    Ok(list)
}

/// What the plugin read on standard input.
fn request(cached: &CachedAttachment, list: &NetworkList, plugin: &PluginConf) -> Result<Json> {
    let offered = cached.capability_args.as_ref();
    let document = request::of_attachment(list, plugin, None, offered);
    Ok(Json::deserialize(&Value::Object(document))?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use networks::Attachment;
    use packet_filter::Kind;
    use serde_json::json;

    fn cached(plugins: &Value) -> (CachedAttachment, NetworkList) {
        let list = json!({"name": "mynet", "cniVersion": "1.0.0", "plugins": plugins}).to_string();
        let result = json!({
            "cniVersion": "1.0.0",
            "interfaces": [
                {"name": "cni0", "mac": "02:00:00:00:00:01"},
                {"name": "veth1", "mac": "02:00:00:00:00:02"},
                {"name": "eth0", "mac": "02:00:00:00:00:03", "sandbox": "/run/netns/a"}],
            "ips": [{"address": "10.22.0.2/24", "interface": 2}],
        });
        let mapping = json!({"HostPort": 8080, "ContainerPort": 80, "Protocol": "tcp"});
        let attachment = Attachment {
            owner: cni::Attachment::parse("mynet", "c1", "eth0").unwrap(),
            netns: String::new(),
            args: None,
            capability_args: json!({"portMappings": [mapping]}).as_object().cloned(),
        };
        let cached = CachedAttachment::new(&attachment, list.as_bytes(), result);
        (cached, NetworkList::from_bytes(list.as_bytes()).unwrap())
    }

    fn pod_of(plugins: &Value) -> Result<Pod> {
        let (cached, list) = cached(plugins);
        Attached::read(&cached, &list)?.wanted()
    }

    #[test]
    fn the_configuration_and_the_result_determine_what_is_wanted() {
        let pod = pod_of(&json!([
            {"type": "bridge", "ipMasq": true, "ipMasqBackend": "iptables", "macspoofchk": true,
             "ipam": {"type": "host-local"}},
            {"type": "portmap", "capabilities": {"portMappings": true}}]))
        .unwrap();
        assert_eq!(pod.owner.to_string(), "mynet/c1/eth0");
        let masquerade = pod.masquerade.unwrap();
        assert_eq!(masquerade.backend, Some(Kind::Iptables));
        assert_eq!(masquerade.rules.addresses[0].to_string(), "10.22.0.2/24");
        let ports = pod.ports.unwrap();
        assert_eq!(ports.backend, None);
        assert_eq!(ports.rules.pod_v4.unwrap().to_string(), "10.22.0.2/24");
        assert_eq!(ports.rules.mappings[0].host_port, 8080);
        let check = pod.spoof_check.unwrap();
        assert_eq!((check.host_veth.as_str(), check.mac[5]), ("veth1", 3));
    }

    #[test]
    fn an_overlay_is_not_masqueraded_and_separated_from_other_networks() {
        let conf = json!([{"type": "vxlan", "vni": 5, "ipMasq": true, "bridge": "vx0",
            "ipam": {"type": "host-local"}}]);
        let pod = pod_of(&conf).unwrap();
        let masquerade = pod.masquerade.unwrap().rules;
        assert_eq!(masquerade.not_through.as_deref(), Some("vxlan.5"));
        assert_eq!(pod.separation.unwrap().devices, ["vx0", "vxlan.5"]);
    }

    #[test]
    fn without_keys_and_capabilities_nothing_is_wanted() {
        let pod = pod_of(&json!([
            {"type": "bridge", "ipMasq": true},
            {"type": "portmap"},
            {"type": "tuning", "ipMasq": true, "macspoofchk": true}]))
        .unwrap();
        assert!(pod.masquerade.is_none(), "without IPAM");
        assert!(pod.ports.is_none(), "without the capability");
        assert!(pod.spoof_check.is_none());
    }

    #[test]
    fn an_invalid_configuration_is_an_error() {
        let conf = json!([{"type": "bridge", "ipMasq": true, "ipMasqBackend": "foo"}]);
        let error = pod_of(&conf).unwrap_err();
        assert!(format!("{error:#}").contains("unknown ipmasq backend \"foo\""));
    }
}
