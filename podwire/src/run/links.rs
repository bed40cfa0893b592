//! `--link NAME[:ALIAS]`: another container has a further name in this one. Where their network keeps
//! containers apart, this one reaches the ports that the other one exposes.

use std::net::IpAddr;

use anyhow::{Context, Result, bail};
use containers::{Attacher, Container};
use networks::{CachedAttachment, NetworkList};
use serde_json::{Value, json};

use super::files;
use super::ports;

/// A link as it is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// The other container's name or id.
    pub container: String,
    /// Its name in this one.
    pub alias: String,
}

/// A container that a link leads to.
#[derive(Clone, Debug)]
pub struct Linked {
    /// Its names: the alias, the host name, the name.
    names: String,
    /// Its attachments to networks of this container.
    attachments: Vec<CachedAttachment>,
    /// The ports that it exposes or publishes, such as `80/tcp`.
    ports: Vec<String>,
}

impl Link {
    /// Reads one `--link`.
    ///
    /// # Errors
    /// It is something else.
    pub fn parse(text: &str) -> Result<Self> {
        let (container, alias) = match text.split_once(':') {
            Some((container, alias)) => (container, alias),
            None => (text, text.trim_start_matches('/')),
        };
        if container.is_empty() || !files::is_host_name(alias) {
            bail!("bad format for links: {text}");
        }
        Ok(Self {
            container: container.trim_start_matches('/').to_owned(),
            alias: alias.to_owned(),
        })
    }

    /// Finds the container, which runs and is attached to one of the networks.
    ///
    /// # Errors
    /// It is not.
    pub fn find(&self, networks: &[&NetworkList], attacher: &Attacher) -> Result<Linked> {
        let word = &self.container;
        let derived_id = crate::options::derived_id;
        let mut found = Container::find(word, &attacher.cache, derived_id)
            .with_context(|| format!("could not get container for {word}"))?;
        found
            .must_run()
            .with_context(|| format!("Cannot link to a non running container: /{word}"))?;
        let mut exposed = found
            .record
            .as_ref()
            .map_or_else(Vec::new, |it| it.exposed.clone());
        for published in found.attachments.iter().flat_map(ports::of) {
            exposed.push(format!(
                "{}/{}",
                published.container_port, published.protocol
            ));
        }
        let is_shared = |it: &CachedAttachment| networks.iter().any(|n| n.name == it.network_name);
        found.attachments.retain(is_shared);
        if found.attachments.is_empty() {
            let names: Vec<_> = networks.iter().map(|it| it.name.as_str()).collect();
            bail!(
                "Cannot link to /{word}, as it does not belong to the network {}",
                names.join(", ")
            );
        }
        let hostname = found.record.as_ref().map(|it| it.hostname.as_str());
        let mut names = vec![self.alias.as_str()];
        for name in hostname.into_iter().chain([found.name.as_str()]) {
            if files::is_host_name(name) && !names.contains(&name) {
                names.push(name);
            }
        }
        Ok(Linked {
            names: names.join(" "),
            ports: exposed,
            attachments: found.attachments,
        })
    }
}

impl Linked {
    /// Its lines of /etc/hosts.
    pub fn hosts(&self) -> Vec<(String, IpAddr)> {
        let addresses = self.attachments.iter().flat_map(addresses);
        addresses.map(|ip| (self.names.clone(), ip)).collect()
    }

    /// The same, of one network.
    pub fn lines(&self, list: &NetworkList) -> Vec<String> {
        let attachments = self.attachments.iter();
        let shared = attachments.filter(|it| it.network_name == list.name);
        let addresses = shared.flat_map(addresses);
        addresses.map(|ip| files::line(ip, &self.names)).collect()
    }

    /// The argument of the capability `links`: its attachment to a network that keeps containers
    /// apart.
    pub fn argument(&self, list: &NetworkList) -> Option<Value> {
        let mut plugins = list.plugins.iter();
        let isolates_pods = plugins.any(|it| it.document.get("icc") == Some(&false.into()));
        let mut attachments = self.attachments.iter();
        let attachment = attachments.find(|it| it.network_name == list.name)?;
        (isolates_pods && !self.ports.is_empty()).then(|| {
            json!({
                "containerID": attachment.container_id,
                "ifName": attachment.ifname,
                "addresses": addresses(attachment),
                "ports": self.ports,
            })
        })
    }
}

fn addresses(attachment: &CachedAttachment) -> Vec<IpAddr> {
    let result = attachment.add_result().ok().flatten().unwrap_or_default();
    files::addresses(&[result])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_names_a_container_and_an_alias() {
        for (text, container, alias) in [
            ("db", "db", "db"),
            ("db:sql", "db", "sql"),
            ("/db:sql", "db", "sql"),
        ] {
            let link = Link::parse(text).unwrap();
            assert_eq!((&*link.container, &*link.alias), (container, alias));
        }
        for text in ["", ":", "db:", ":sql", "db:a b", "db:a:b"] {
            assert!(Link::parse(text).is_err(), "{text:?}");
        }
    }
}
