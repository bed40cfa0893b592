//! Makes and removes attachments of containers: recorded, by the plugins of the network, with the
//! cache that all programs with libcni share.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use cni::env::{ContainerId, IfName};
use cni::result::AddResult;
use cni::{BestEffort, Error};
use netns::NetNs;
use networks::named::{IpamSubnet, subnets_of};
use networks::{
    Attachment, Cache, CachedAttachment, Chain, NOT_ROLLED_BACK, NetworkList, OnFailure,
};
use nix::net::if_::if_nametoindex;
use serde_json::{Map, Value, json};

use crate::journal::{Entry, Held, Journal};
use crate::place::Published;

/// The most interfaces of a container.
const MOST: u32 = 1000;

/// An attachment that a container is to get.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// The container's id.
    pub container_id: String,
    /// The container's name, for plugins that serve names.
    pub name: String,
    /// The path of its network namespace.
    pub netns: String,
    /// The interface in the container; the next free `eth` and number if `None`.
    pub ifname: Option<String>,
    /// The addresses that it must get.
    pub ips: Vec<IpAddr>,
    /// The MAC that it must get.
    pub mac: Option<String>,
    /// Its further names in the network.
    pub aliases: Vec<String>,
    /// Its host name, for plugins that serve names.
    pub hostname: Option<String>,
    /// The name servers for what the network does not know, for plugins that serve names.
    pub dns_servers: Vec<String>,
    /// The ports to publish.
    pub ports: Vec<Published>,
    /// The containers that it reaches although the network keeps containers apart: arguments of the
    /// capability `links`.
    pub links: Vec<Value>,
    /// The lines of its /etc/hosts for these containers.
    pub hosts: Vec<String>,
    /// Its number for the choice of the default route.
    pub gateway_priority: i64,
}

/// Makes and removes attachments.
#[derive(Clone, Debug)]
pub struct Attacher {
    /// The cache.
    pub cache: Cache,
    /// The records.
    pub journal: Journal,
    /// Where the configurations are.
    pub conf_dir: PathBuf,
    /// Where the plugins are.
    pub plugin_dirs: Vec<PathBuf>,
}

impl Attacher {
    /// With the cache in `cache_dir`, usually /var/lib/cni.
    pub fn new(cache_dir: &Path, conf_dir: &Path, plugin_dirs: Vec<PathBuf>) -> Self {
        Self {
            cache: Cache::in_dir(cache_dir),
            journal: Journal::in_dir(cache_dir),
            conf_dir: conf_dir.to_owned(),
            plugin_dirs,
        }
    }

    /// Attaches a container to `list`.
    ///
    /// # Errors
    /// The network cannot give what is wanted; a plugin fails; the container ends meanwhile. Then
    /// nothing is left, or the record is, so that the next sweep removes it.
    pub fn attach(&self, wanted: &Wanted, list: &NetworkList) -> Result<AddResult> {
        let netns = NetNs::open(Path::new(&wanted.netns))?;
        let (attachment, held) = self.begin(wanted, list, &netns)?;
        let ifname = attachment.owner.ifname.as_str();
        held.share_with_plugins()?;
        let chain = Chain::new(list, self.plugin_dirs.clone());
        let added = chain.add(&attachment, &self.cache, OnFailure::RollBack);
        let failed = match added {
            Err(cause) => wanted.in_dockers_words(Error::from_chain(&cause), &list.name),
            Ok(answer) => {
                let verdict = wanted
                    .compare(&answer.result, &list.name, ifname)
                    .and_then(|()| wanted.must_live(&netns));
                let Err(cause) = verdict else {
                    return Ok(answer.result);
                };
                let mut error = Error::from_chain(&cause);
                if let Err(left) = chain.del(&attachment, &self.cache) {
                    error.add_details(&format!("{NOT_ROLLED_BACK}: {left:#}"));
                }
                error
            }
        };
        if !failed.details.contains(NOT_ROLLED_BACK) {
            held.remove()?;
        }
        Err(failed.into())
    }

    /// Chooses the interface's name and records the attachment, so that no other process takes it.
    fn begin(
        &self,
        wanted: &Wanted,
        list: &NetworkList,
        netns: &NetNs,
    ) -> Result<(Attachment, Held)> {
        let _lock = self.journal.lock()?;
        let known = self.cache.of_container(&wanted.container_id)?;
        let recorded = self.journal.of_container(&wanted.container_id)?;
        let recorded = recorded.into_iter().map(|it| it.attachment);
        let mut taken: Vec<_> = known
            .into_iter()
            .chain(recorded)
            .map(|it| it.ifname)
            .collect();
        let ifname = netns.enter(|| {
            let mut is_free = |name: &String| {
                let exists = if_nametoindex(name.as_str()).is_ok();
                taken.extend(exists.then(|| name.clone()));
                !taken.contains(name)
            };
            match &wanted.ifname {
                Some(name) => is_free(name).then(|| name.clone()),
                None => (0..MOST).map(|it| format!("eth{it}")).find(is_free),
            }
        })?;
        let Some(ifname) = ifname else {
            let name = wanted.ifname.as_deref().unwrap_or("eth");
            bail!("the container has an interface {name} already");
        };
        let attachment = wanted.attachment(list, &ifname)?;
        let held = self.journal.begin(&Entry {
            attachment: CachedAttachment::planned(&attachment, &list.bytes),
            namespace: netns.enter(NetNs::current_name)??,
            plugin_dirs: self.plugin_dirs.clone(),
            conf_dir: self.conf_dir.clone(),
            gateway_priority: wanted.gateway_priority,
            aliases: wanted.aliases.clone(),
            hosts: wanted.hosts.clone(),
        })?;
        Ok((attachment, held))
    }

    /// Removes an attachment, of which any part may be gone, with the configuration of its ADD.
    ///
    /// # Errors
    /// A plugin fails; then the record stays.
    pub fn detach(&self, attachment: &CachedAttachment) -> Result<()> {
        let owner = attachment.attachment()?;
        // A file that cannot be read must not keep the container attached.
        let cached = self.cache.get(&owner).unwrap_or_default();
        let known = cached.filter(|it| it.config().is_ok_and(|it| !it.is_empty()));
        let known = known.as_ref().unwrap_or(attachment);
        let list = self.list(known)?;
        let mut attached = Attachment::from_cached(known)?;
        if attached.netns.is_empty() {
            let path = known.netns_path().or_else(|| attachment.netns_path());
            attached.netns = path.unwrap_or_default();
        }
        Chain::new(&list, self.plugin_dirs.clone()).del(&attached, &self.cache)?;
        self.journal.forget(attachment)
    }

    /// The list of an ADD. Plugins in files beside it are read from there.
    fn list(&self, attachment: &CachedAttachment) -> Result<NetworkList> {
        let name = &attachment.network_name;
        let of_the_add = NetworkList::from_bytes(&attachment.config()?);
        match of_the_add {
            Ok(list) if list.is_complete(&self.conf_dir) => Ok(list),
            _ => NetworkList::load(&self.conf_dir, name)
                .with_context(|| format!("the configuration of the attachment to {name} is lost")),
        }
    }

    /// Removes all attachments that podwire has made for a container, the last first.
    ///
    /// # Errors
    /// The first one, with the others as details.
    pub fn detach_all(&self, container_id: &str) -> Result<()> {
        let mut all = BestEffort::new();
        for entry in self.journal.of_container(container_id)?.iter().rev() {
            let what = format!("detach {}", entry.attachment.label());
            all.step(&what, || self.with_dirs_of(entry).detach(&entry.attachment));
        }
        all.finish()
    }

    /// The same with the directories of the ADD.
    pub(crate) fn with_dirs_of(&self, entry: &Entry) -> Self {
        Self {
            conf_dir: entry.conf_dir.clone(),
            plugin_dirs: entry.plugin_dirs.clone(),
            ..self.clone()
        }
    }
}

impl Wanted {
    /// What the plugins get. Addresses and MAC go as capabilities to the plugins that have them, and
    /// as `CNI_ARGS` otherwise.
    fn attachment(&self, list: &NetworkList, ifname: &str) -> Result<Attachment> {
        let mut args = vec![("IgnoreUnknown".to_owned(), "1".to_owned())];
        if !self.name.is_empty() {
            args.push(("K8S_POD_NAME".to_owned(), self.name.clone()));
        }
        let mut capabilities = Map::new();
        let ips = self.prefixed(list)?;
        if !ips.is_empty() {
            if list.has_capability("ips") {
                capabilities.insert("ips".into(), json!(ips));
            } else {
                args.push(("IP".to_owned(), ips.join(",")));
            }
        }
        if let Some(mac) = &self.mac {
            if list.has_capability("mac") {
                capabilities.insert("mac".into(), json!(mac));
            } else {
                args.push(("MAC".to_owned(), mac.clone()));
            }
        }
        if !self.ports.is_empty() {
            if !list.has_capability("portMappings") {
                bail!(
                    "network {} cannot publish ports: no plugin of it has the capability \
                     portMappings",
                    list.name
                );
            }
            capabilities.insert("portMappings".into(), json!(self.ports));
        }
        if !self.links.is_empty() {
            if !list.has_capability("links") {
                bail!(
                    "network {} cannot link containers: no plugin of it has the capability links",
                    list.name
                );
            }
            capabilities.insert("links".into(), json!(self.links));
        }
        let names: Vec<_> = self.aliases.iter().chain(&self.hostname).collect();
        if !names.is_empty() {
            capabilities.insert("aliases".into(), json!({ &list.name: names }));
        }
        if !self.dns_servers.is_empty() {
            capabilities.insert("dns".into(), json!({"servers": self.dns_servers}));
        }
        Ok(Attachment {
            owner: cni::Attachment {
                network: list.name.clone(),
                container_id: ContainerId::parse(&self.container_id)?,
                ifname: IfName::parse_new(ifname)?,
            },
            netns: self.netns.clone(),
            args: Some(args),
            capability_args: (!capabilities.is_empty()).then_some(capabilities),
        })
    }

    /// The addresses with the prefixes of the network's subnets.
    fn prefixed(&self, list: &NetworkList) -> Result<Vec<String>> {
        let record = list.record();
        let mut reserved = self.ips.iter();
        if let Some((ip, purpose)) = reserved.find_map(|it| Some((it, record.purpose_of(*it)?))) {
            bail!("Address already in use: {ip} is reserved as {purpose}");
        }
        let subnets = subnets_of(list);
        let has = |subnet: &IpamSubnet, ip| subnet.subnet.0.contains(ip);
        let prefixed = |ip: &IpAddr| match subnets.iter().find(|it| has(it, *ip)) {
            Some(subnet) => Ok(format!("{ip}/{}", subnet.subnet.prefix())),
            None if subnets.is_empty() => Ok(ip.to_string()),
            None => bail!(
                "invalid endpoint settings: no configured subnet contains IP address {ip}: \
                 network {} has {}",
                list.name,
                joined(&subnets)
            ),
        };
        self.ips.iter().map(prefixed).collect()
    }

    /// The error of an ADD. An address that host-local does not give, as another container or the
    /// gateway has it, is refused in Docker's words; so is one of a network without free addresses.
    fn in_dockers_words(&self, mut error: Error, network: &str) -> Error {
        if let Some((_, ranges)) = error
            .msg
            .split_once("no IP addresses available in range set: ")
        {
            let family = if ranges.contains("::") {
                "IPv6"
            } else {
                "IPv4"
            };
            error.msg = format!(
                "no available {family} addresses on this network's address pools: {network}: {}",
                error.msg
            );
        }
        let taken = ["is not available in range set", "is subnet's gateway"];
        if !self.ips.is_empty() && taken.iter().any(|it| error.msg.contains(it)) {
            error.msg = format!("Address already in use: {}", error.msg);
        }
        error
    }

    /// Fails if a plugin has not given what was wanted: some ignore it.
    fn compare(&self, result: &AddResult, network: &str, ifname: &str) -> Result<()> {
        let given: Vec<_> = result.ips.iter().map(|it| it.address.ip()).collect();
        if let Some(ip) = self.ips.iter().find(|it| !given.contains(it)) {
            bail!("network {network} gives no requested address: {ip} is not in the result");
        }
        let inside = result.in_container().find(|it| it.name == ifname);
        match (&self.mac, inside) {
            (Some(mac), Some(inside)) if !inside.mac.eq_ignore_ascii_case(mac) => {
                let other = &inside.mac;
                bail!("network {network} gives no requested MAC: it is {other}, not {mac}")
            }
            _ => Ok(()),
        }
    }

    /// Fails if the container has ended since `before` was opened: its runtime has not seen this
    /// attachment, and will not remove it.
    fn must_live(&self, before: &NetNs) -> Result<()> {
        match NetNs::open(Path::new(&self.netns)) {
            Ok(netns) if netns.same_as(before)? => Ok(()),
            _ => bail!("the container has ended meanwhile: {} is gone", self.netns),
        }
    }
}

fn joined(subnets: &[IpamSubnet]) -> String {
    let subnets: Vec<_> = subnets.iter().map(|it| it.subnet.to_string()).collect();
    subnets.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(plugin: &str) -> NetworkList {
        let text = format!(r#"{{"cniVersion": "1.0.0", "name": "n", "plugins": [{plugin}]}}"#);
        NetworkList::from_bytes(text.as_bytes()).unwrap()
    }

    fn wanted() -> Wanted {
        Wanted {
            container_id: "c".into(),
            name: "web".into(),
            ips: vec!["10.1.0.5".parse().unwrap()],
            mac: Some("02:00:00:00:00:07".into()),
            ..Wanted::default()
        }
    }

    const IPAM: &str = r#""ipam": {"type": "host-local", "subnet": "10.1.0.0/24",
        "ranges": [[{"subnet": "10.2.0.0/16"}], [{"subnet": "fd00::/64"}]]}"#;

    #[test]
    fn a_wish_is_a_capability_where_a_plugin_has_it_and_an_argument_elsewhere() {
        let with = format!(r#"{{"type": "bridge", "capabilities": {{"ips": true}}, {IPAM}}}"#);
        let made = wanted().attachment(&list(&with), "eth0").unwrap();
        let capabilities = made.capability_args.unwrap();
        assert_eq!(Value::Object(capabilities), json!({"ips": ["10.1.0.5/24"]}));
        let args = made.args.unwrap();
        let pairs: Vec<_> = args.iter().map(|(k, v)| format!("{k}={v}")).collect();
        assert_eq!(
            pairs,
            [
                "IgnoreUnknown=1",
                "K8S_POD_NAME=web",
                "MAC=02:00:00:00:00:07"
            ]
        );
        let without = wanted()
            .attachment(&list(r#"{"type": "bridge"}"#), "eth0")
            .unwrap();
        assert!(
            without
                .args
                .unwrap()
                .contains(&("IP".into(), "10.1.0.5".into()))
        );
        assert_eq!(without.capability_args, None);
    }

    #[test]
    fn wishes_that_the_network_cannot_fulfil_are_refused() {
        let outside = Wanted {
            ips: vec!["10.3.0.5".parse().unwrap()],
            ..wanted()
        };
        let network = list(&format!(r#"{{"type": "bridge", {IPAM}}}"#));
        let error = outside
            .attachment(&network, "eth0")
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("no configured subnet contains IP address 10.3.0.5"),
            "{error}"
        );
        let published = Wanted {
            ips: Vec::new(),
            ports: vec![Published::default()],
            ..wanted()
        };
        let error = published
            .attachment(&network, "eth0")
            .unwrap_err()
            .to_string();
        assert!(error.contains("cannot publish ports"), "{error}");
    }

    #[test]
    fn a_result_without_the_wish_is_an_error() {
        let result = |text: &str| {
            let document = cni::json::Json::parse(text.as_bytes()).unwrap();
            AddResult::decode_any(&document, cni::Version::V1_0_0).unwrap()
        };
        let good = r#"{"interfaces": [{"name": "eth0", "sandbox": "x", "mac": "02:00:00:00:00:07"}],
            "ips": [{"address": "10.1.0.5/24"}]}"#;
        assert!(wanted().compare(&result(good), "n", "eth0").is_ok());
        for bad in [good.replace("0.5/", "0.6/"), good.replace(":07", ":08")] {
            assert!(
                wanted().compare(&result(&bad), "n", "eth0").is_err(),
                "{bad}"
            );
        }
    }
}
