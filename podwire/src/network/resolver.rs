//! The names of a network: what its configuration says about them, and the records of its
//! containers.

use std::time::Duration;

use anyhow::{Context, Result};
use names::{Directory, Entry, Request, Resolver, Server, Unreachable};
use serde_json::{Map, Value};

/// How long an answer of the resolver may take.
const PATIENCE: Duration = Duration::from_secs(3);

/// The plugin of a configuration that records names.
pub fn plugin(document: &mut Map<String, Value>) -> Option<&mut Map<String, Value>> {
    let plugins = document.get_mut("plugins")?.as_array_mut()?;
    let mut objects = plugins.iter_mut().filter_map(Value::as_object_mut);
    objects.find(|it| it.get("type").is_some_and(|kind| kind == "dnsname"))
}

/// The name servers that it has.
pub fn servers(plugin: &Map<String, Value>) -> Vec<String> {
    let list = plugin.get("servers").and_then(Value::as_array);
    let texts = list.into_iter().flatten().filter_map(Value::as_str);
    texts.map(str::to_owned).collect()
}

/// Changes the records of a network's containers as its configuration has changed: the name servers,
/// and whether they are asked.
///
/// # Errors
/// A record cannot be written; the resolver does not answer.
pub fn renew(network: &str, document: &mut Map<String, Value>) -> Result<()> {
    let Some(plugin) = plugin(document) else {
        return Ok(());
    };
    let internal = plugin.get("internal") == Some(&Value::Bool(true));
    let servers = servers(plugin);
    let servers = servers.iter().map(|it| it.parse());
    let servers: Vec<Server> = servers
        .collect::<Result<_, _>>()
        .map_err(anyhow::Error::msg)?;
    let directory = Directory::default();
    for entry in directory.entries(&cni::names::short(network))? {
        // A container that is detached meanwhile has none.
        let Some(mut record) = directory.read(&entry)? else {
            continue;
        };
        record.network.servers.clone_from(&servers);
        record.network.internal = internal;
        directory.write(&entry, &record)?;
        notify(&entry)?;
    }
    Ok(())
}

/// Removes all records of a network.
///
/// # Errors
/// As [`renew`].
pub fn forget(network: &str) -> Result<()> {
    for entry in Directory::default().retain(network, &[])? {
        notify(&entry)?;
    }
    Ok(())
}

/// Has the resolver read a record that was written or removed. Without a resolver, the next one reads
/// it.
fn notify(entry: &Entry) -> Result<()> {
    match Resolver::default().ask(&Request::Read(entry.clone()), PATIENCE) {
        Err(error) if error.is::<Unreachable>() => Ok(()),
        answer => answer
            .map(drop)
            .with_context(|| format!("names of {entry}")),
    }
}
