//! What stands between the pods of this node and the outside: read from the
//! cache, where every ADD left its configuration, what the runtime asked for, and
//! the result.
//!
//! The cache is libcni's, so the attachments of every runtime that keeps it in the
//! same place are there. Nothing here changes anything.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use cni::AddResult;
use cni::conf::NetConf;
use cni::json::Json;
use cni::version::Version;
use netlink::Netlink;
use netns::NetNs;
use packet_filter::Kind;
use packet_filter::node::{Pod, Report, Wanted};
use packet_filter::{PortOwner, VxlanGuard};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use wiring::shared;

use crate::arguments::{Arguments, Flag};
use crate::cache::{CachedAttachment, Unclear};
use crate::commands::{Opt, Verdict};
use crate::network_list::{NetworkList, PluginConf};
use crate::request_config;
use crate::strangers::{self, Strangers};

/// The options of the three commands.
pub const OPTIONS: &[Opt] = &[
    Opt::new(Flag::DryRun, "change nothing; print the transactions"),
    Opt::new(
        Flag::ConfDir,
        "where configurations are, for networks whose plugins lie beside them (NETCONFPATH; /etc/cni/net.d)",
    ),
    Opt::CACHE_DIR,
    Opt::new(
        Flag::Json,
        "print a document: done, left, skipped, errors, removed, notes (and transactions), lists of texts",
    ),
    Opt::new(Flag::Text, "say so, too, when there was nothing to do"),
];

/// One of the three commands.
pub struct Task<'a> {
    /// What is done with the pods.
    pub run: &'a dyn Fn(&[Pod], bool) -> Result<Report>,
    /// What is said of a thing that was dealt with: `put back`.
    pub done: &'static str,
    /// What is said when there was none.
    pub nothing: &'static str,
    /// Whether the rules are podwire's afterwards, rather than the Go plugins'.
    pub ours: bool,
}

/// What the cache says of the pods.
#[derive(Debug, Default)]
struct Found {
    /// The oldest first.
    pods: Vec<Pod>,
    /// Those whose network namespace is gone.
    gone: Vec<cni::Attachment>,
    /// Who was passed over, and why.
    skipped: Vec<String>,
    /// What could not be read, or not be done.
    broken: Vec<String>,
    /// What was there of attachments that are gone.
    removed: Vec<String>,
}

impl Found {
    fn add_unclear(&mut self, file: &Unclear) {
        let name = file.file.display();
        match &file.fault {
            Some(fault) => self.broken.push(format!("{name}: {fault}")),
            None => self.skipped.push(format!(
                "{name}: a result of an old libcni, without a configuration"
            )),
        }
    }
}

/// Does a task for all attachments in the cache, or those to the network that is
/// named, and tells what was done.
pub fn run(arguments: &Arguments, task: &Task<'_>) -> Result<Verdict> {
    let network = arguments.words(&["[NETWORK]"])?.first().map(String::as_str);
    let mut found = find(arguments, network)?;
    let dry = arguments.has(Flag::DryRun);
    match task.ours {
        true if dry => {}
        true => note_users(&found.pods)?,
        false => {
            found.settle_strangers(arguments, network, dry)?;
            found.keep_what_others_use();
        }
    }
    let report = (task.run)(&found.pods, dry)?;
    if !task.ours && !dry {
        forget_users(&found.pods)?;
    }
    tell(arguments, task, &found, &report)?;
    Ok(match found.broken.is_empty() {
        true => Verdict::Good,
        false => Verdict::Bad,
    })
}

/// Before a subnet's rule is made for them: as long as they live, it stays.
fn note_users(pods: &[Pod]) -> Result<()> {
    for Wanted { rules, backend } in pods.iter().filter_map(|pod| pod.masquerade.as_ref()) {
        if *backend != Some(Kind::Iptables) {
            shared::use_subnets(rules)?;
        }
    }
    for pod in pods {
        if let Some(isolation) = &pod.isolation {
            shared::use_isolation(&pod.owner, isolation)?;
        }
    }
    Ok(())
}

/// What is podwire's alone goes, too: the Go plugins would never remove it.
fn forget_users(pods: &[Pod]) -> Result<()> {
    let mut networks = BTreeMap::<&str, Vec<&cni::Attachment>>::new();
    for pod in pods.iter().filter(|pod| is_given_away(pod)) {
        let owners = networks.entry(&pod.owner.network).or_default();
        owners.push(&pod.owner);
    }
    for (network, owners) in networks {
        shared::give_away(network, &owners)?;
    }
    Ok(())
}

fn is_given_away(pod: &Pod) -> bool {
    let masquerade = pod.masquerade.as_ref();
    masquerade.is_some_and(|it| it.rules.is_known_to_go()) || pod.isolation.is_some()
}

impl Found {
    /// The Go plugins do not look into podwire's tables: what is there of pods that are gone
    /// is removed, and what is there of others is told.
    fn settle_strangers(
        &mut self,
        arguments: &Arguments,
        network: Option<&str>,
        dry: bool,
    ) -> Result<()> {
        let contents = arguments.cache().oldest_first()?;
        let strangers = Strangers::find(&contents, network, |it| !is_gone(&it.netns))?;
        for (owner, why) in &strangers.alive {
            self.broken.push(format!(
                "ports of {} stay: {why}, but the cache has no such attachment; give the cache of \
                 its runtime (--cache-dir), or delete it with podwire's plugins",
                owner.name
            ));
        }
        let gone = strangers.gone.iter();
        self.removed
            .extend(gone.map(|it| format!("ports of {}, which is gone", it.name)));
        let gone = strangers.gone.iter().filter_map(PortOwner::attachment);
        self.gone.extend(gone);
        if dry {
            return Ok(());
        }
        strangers.remove_gone()?;
        let networks: BTreeSet<_> = self.pods.iter().map(|pod| &pod.owner.network).collect();
        for network in networks {
            // What attachments that are gone use of a network is used no more.
            let valid = contents.in_use(network).into_iter();
            let valid = valid.chain(strangers::with_veth(network)?);
            wiring::shared::collect(network, &valid.collect::<Vec<_>>())?;
        }
        Ok(())
    }

    /// A subnet's rule is not given away while there are pods that nothing is known of.
    fn keep_what_others_use(&mut self) {
        let pods = self.pods.iter().map(|pod| pod.owner.clone());
        let known: Vec<_> = pods.chain(self.gone.iter().cloned()).collect();
        let known: Vec<_> = known.iter().collect();
        let wanted = self.pods.iter().filter(|pod| is_given_away(pod));
        let networks: BTreeSet<_> = wanted.map(|pod| pod.owner.network.clone()).collect();
        for network in networks {
            if !shared::has_other_users(&network, &known) {
                continue;
            }
            let of_network = |pod: &&mut Pod| pod.owner.network == network;
            for pod in self.pods.iter_mut().filter(of_network) {
                pod.masquerade = None;
            }
            self.broken.push(format!(
                "masquerade of {network} stays: attachments that are not in the cache may use it; \
                 `podwire gc --keep-cached {network}` forgets those that are gone"
            ));
        }
    }
}

/// What `--json` prints.
#[derive(Serialize)]
struct Document<'a> {
    done: &'a [String],
    left: &'a [String],
    skipped: &'a [String],
    errors: &'a [String],
    removed: &'a [String],
    notes: &'a [String],
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    transactions: &'a [String],
}

fn tell(arguments: &Arguments, task: &Task<'_>, found: &Found, report: &Report) -> Result<()> {
    let output = arguments.output();
    if output.is_json() {
        return output.print_json(&Document {
            done: &report.done,
            left: &report.left,
            skipped: &found.skipped,
            errors: &found.broken,
            removed: &found.removed,
            notes: &report.notes,
            transactions: &report.transactions,
        });
    }
    for line in &found.broken {
        cni::log(format_args!("podwire: {line}"));
    }
    for line in found.skipped.iter().chain(&report.left) {
        cni::log(format_args!("podwire: left as it is: {line}"));
    }
    let would = match arguments.has(Flag::DryRun) {
        true => "would be ",
        false => "",
    };
    for line in &found.removed {
        output.print(&format!("{would}removed: {line}"))?;
    }
    for line in &report.done {
        output.print(&format!("{would}{}: {line}", task.done))?;
    }
    for line in &report.notes {
        cni::log(format_args!("podwire: note: {line}"));
    }
    for text in &report.transactions {
        output.print(text)?;
    }
    if report.done.is_empty() && found.removed.is_empty() {
        output.remark(task.nothing)?;
    }
    Ok(())
}

fn find(arguments: &Arguments, network: Option<&str>) -> Result<Found> {
    let mut found = Found::default();
    let contents = arguments.cache().oldest_first()?;
    for file in &contents.unclear {
        if network.is_none_or(|name| !file.owners(name).is_empty()) {
            found.add_unclear(file);
        }
    }
    // The last configuration of each counts.
    let mut networks = BTreeMap::new();
    for cached in contents.attachments {
        if network.is_some_and(|name| name != cached.network_name) {
            continue;
        }
        let whose = cached.whose();
        if is_gone(&cached.netns) {
            let netns = &cached.netns;
            found
                .skipped
                .push(format!("{whose}: its network namespace {netns} is gone"));
            found.gone.extend(cached.attachment().ok());
            continue;
        }
        let read = || -> Result<_> {
            let list = network_list(arguments, &cached)?;
            Ok((pod(&cached, &list)?, vxlan_network(&list)?))
        };
        match read() {
            Ok((pod, network)) => {
                found.pods.push(pod);
                networks.extend(network.map(|it| (it.name.clone(), it)));
            }
            Err(error) => found.broken.push(format!("{whose}: {error:#}")),
        }
    }
    for (name, network) in networks {
        match guard(&network) {
            Ok(guard) => {
                if let Some(pod) = found.pods.iter_mut().find(|it| it.owner.network == name) {
                    pod.vxlan_guard = guard;
                }
            }
            Err(error) => found.broken.push(format!("{name}: {error:#}")),
        }
    }
    Ok(found)
}

/// The VXLAN network of the list, if it is one.
fn vxlan_network(list: &NetworkList) -> Result<Option<overlay::Network>> {
    let Some(plugin) = list.plugins.iter().find(|it| it.plugin == "vxlan") else {
        return Ok(None);
    };
    let keys = Json::deserialize(&plugin.document)?.decode()?;
    Ok(Some(overlay::Network::new(&keys, &list.name)?))
}

/// Who may send the network's packets, as this node's kernel knows its peers.
fn guard(network: &overlay::Network) -> Result<Option<VxlanGuard>> {
    overlay::guard::present(&Netlink::open()?, network)
}

/// Older libcni does not say which namespace it was: then it may be there.
pub fn is_gone(netns: &str) -> bool {
    !netns.is_empty() && NetNs::open(netns.as_ref()).is_err_and(|error| netns::is_gone(&error))
}

/// The configuration of the ADD. That of a network whose plugins lie beside it has
/// none in it: then the network as it is now.
pub fn network_list(arguments: &Arguments, cached: &CachedAttachment) -> Result<NetworkList> {
    let list = NetworkList::from_bytes(&cached.config()?)?;
    match list.plugins.is_empty() {
        true => NetworkList::load(&arguments.conf_dir(), &list.name),
        false => Ok(list),
    }
}

/// What the plugins of `list` would be asked for, and have done, at this ADD.
fn pod(cached: &CachedAttachment, list: &NetworkList) -> Result<Pod> {
    let result = cached.result.as_ref().context("no result in the cache")?;
    let result = AddResult::decode_any(&Json::deserialize(result)?, Version::V0_1_0)
        .context("parse the cached result")?;
    let mut pod = Pod::new(cached.attachment()?);
    for plugin in &list.plugins {
        let document = document(cached, list, plugin)?;
        let has_ipam = !document.decode::<NetConf>()?.ipam.plugin.is_empty();
        match plugin.plugin.as_str() {
            // Go's ptp has the same keys, and does the same.
            "bridge" | "ptp" => {
                let plan = bridge::Plan::new(&document.decode()?, has_ipam, None)?;
                let ports = pod.ports;
                pod = bridge::wanted(&plan, &pod.owner, &result)?;
                pod.ports = ports;
            }
            "vxlan" => {
                let keys = document.decode()?;
                let plan = vxlan::Plan::new(&keys, &list.name, has_ipam, None)?;
                let ports = pod.ports;
                pod = vxlan::wanted(&plan, &pod.owner, &result)?;
                pod.ports = ports;
            }
            "portmap" => {
                let plan = portmap::Plan::new(&document.decode()?)?;
                pod.ports = plan.wanted(&pod.owner, &result);
            }
            _ => {}
        }
    }
    Ok(pod)
}

/// What the plugin read on standard input.
pub fn document(
    cached: &CachedAttachment,
    list: &NetworkList,
    plugin: &PluginConf,
) -> Result<Json> {
    let nothing = Map::new();
    let offered = cached.capability_args.as_ref().unwrap_or(&nothing);
    let document = request_config::of_attachment(list, plugin, None, offered);
    Ok(Json::deserialize(&Value::Object(document))?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::Key;
    use serde_json::json;

    fn cached(plugins: &Value) -> (CachedAttachment, NetworkList) {
        let list = json!({"name": "mynet", "cniVersion": "1.0.0", "plugins": plugins}).to_string();
        let key = Key {
            network: "mynet",
            container_id: "c1",
            ifname: "eth0",
        };
        let result = json!({
            "cniVersion": "1.0.0",
            "interfaces": [
                {"name": "cni0", "mac": "02:00:00:00:00:01"},
                {"name": "veth1", "mac": "02:00:00:00:00:02"},
                {"name": "eth0", "mac": "02:00:00:00:00:03", "sandbox": "/run/netns/a"}],
            "ips": [{"address": "10.22.0.2/24", "interface": 2}],
        });
        let mut cached = CachedAttachment::new(key, list.as_bytes(), result);
        let mapping = json!({"HostPort": 8080, "ContainerPort": 80, "Protocol": "tcp"});
        let offered = json!({"portMappings": [mapping]});
        cached.capability_args = offered.as_object().cloned();
        (cached, NetworkList::from_bytes(list.as_bytes()).unwrap())
    }

    fn pod_of(plugins: &Value) -> Result<Pod> {
        let (cached, list) = cached(plugins);
        pod(&cached, &list)
    }

    #[test]
    fn everything_follows_from_the_configuration_of_the_add_and_its_result() {
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
    fn members_of_an_overlay_are_not_masqueraded_and_others_kept_apart() {
        let conf = json!([{"type": "vxlan", "vni": 5, "ipMasq": true, "bridge": "vx0",
            "ipam": {"type": "host-local"}}]);
        let pod = pod_of(&conf).unwrap();
        let masquerade = pod.masquerade.unwrap().rules;
        assert_eq!(masquerade.not_through.as_deref(), Some("vxlan.5"));
        assert_eq!(pod.separation.unwrap().devices, ["vx0", "vxlan.5"]);
    }

    #[test]
    fn what_is_not_asked_for_is_not_wanted() {
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
    fn a_configuration_that_the_plugin_would_refuse_is_told() {
        let conf = json!([{"type": "bridge", "ipMasq": true, "ipMasqBackend": "foo"}]);
        let error = pod_of(&conf).unwrap_err();
        assert!(format!("{error:#}").contains("unknown ipmasq backend \"foo\""));
    }
}
