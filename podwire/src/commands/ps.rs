//! `podwire ps`: list the containers that are attached to networks.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Result, bail};
use clap::Args;
use containers::{Published, Record};
use serde_json::{Value, json};
use survey::{Attachment, Home, Survey};

use super::Verdict;
use crate::network::format::{self, Columns};
use crate::options::SurveyDirs;
use crate::output::{Output, print};
use crate::run::ports as published;

/// List the containers that are attached to networks.
///
/// Those of podwire run, and those of every runtime that keeps its cache in the same directory; also
/// those that only the kernel shows. The newest comes first.
///
/// The fields of a TEMPLATE are .ID .Command .CreatedAt .RunningFor .Status .State .Ports .Networks
/// .Addresses .Names .Interfaces .MACs .Runtime and .Health; the language is that of podwire network ls.
/// Networks, addresses, interfaces and MACs are in the order of the interfaces.
///
/// Health is ok, or what one has and another has not: "cache only" (the namespace is gone), "no
/// interface", "not cached" (only the kernel shows it), "not read". podwire doctor says more.
#[derive(Debug, Args)]
#[command(after_long_help = OUTCOME)]
pub struct Ps {
    /// Print the ids only
    #[arg(short, long)]
    quiet: bool,
    /// Print whole ids and commands
    #[arg(long)]
    no_trunc: bool,
    /// table, wide, json, raw, TEMPLATE or 'table TEMPLATE'
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    format: String,
    /// Only containers in this network
    #[arg(long, value_name = "NETWORK")]
    network: Option<String>,
    /// Accepted as in docker ps: a container that has ended is gone
    #[arg(short, long)]
    all: bool,
    #[command(flatten)]
    dirs: SurveyDirs,
}

const OUTCOME: &str = "\
Exit status: 0 when listed, 1 when a part of the node could not be read, 2 for a
wrong command line.

Examples:
  podwire ps
  podwire ps --network mynet --format wide
  podwire ps -q --no-trunc
  podwire ps --format '{{.Names}} {{.Addresses}} {{.Health}}'
";

impl Ps {
    pub fn run(&self, output: &Output) -> Result<Verdict> {
        super::sweep(&self.dirs.cache);
        let survey = self.dirs.survey()?;
        let network = self.network(&survey)?;
        let rows = rows(&survey, network.as_deref(), self.no_trunc)?;
        if output.is_json() {
            output.print_json(&rows)?;
        } else if self.quiet {
            let ids = rows.iter().map(|it| text(&it["ID"]) + "\n");
            print(&ids.collect::<String>())?;
        } else {
            let (format, columns) = match self.format.trim() {
                "wide" => ("table", &WIDE),
                format => (format, &COLUMNS),
            };
            print(&format::rows(format, columns, &rows)?)?;
        }
        for unread in &survey.unread {
            cni::log(format_args!("podwire: not read: {unread}"));
        }
        Ok(Verdict::good_if(survey.unread.is_empty()))
    }

    /// The name of the network that is wanted.
    fn network(&self, survey: &Survey) -> Result<Option<String>> {
        let Some(word) = &self.network else {
            return Ok(None);
        };
        match survey.catalogue.find(word) {
            Ok(network) => Ok(Some(network.name.clone())),
            Err(_) if survey.attachments.iter().any(|it| it.network == *word) => {
                Ok(Some(word.clone()))
            }
            Err(error) => bail!(error),
        }
    }
}

/// The containers, those of one network or all, the newest first: an object with the fields of the
/// manual for each.
///
/// # Errors
/// The cache of a container cannot be read.
pub fn rows(survey: &Survey, network: Option<&str>, whole: bool) -> Result<Vec<Value>> {
    let mut rows = Vec::new();
    for one in containers(survey)? {
        let is_in = |name| one.attachments.iter().any(|it| it.network == name);
        if network.is_none_or(is_in) {
            rows.push((one.since(), row(survey, &one, whole)));
        }
    }
    rows.sort_by_key(|it| std::cmp::Reverse(it.0));
    Ok(rows.into_iter().map(|(_, row)| row).collect())
}

/// With `whole`, ids and commands are not cut.
fn row(survey: &Survey, one: &Container<'_>, whole: bool) -> Value {
    let all = &one.attachments;
    let mut networks: Vec<_> = all.iter().map(|it| it.network.clone()).collect();
    if let (true, Some(record)) = (networks.is_empty(), one.record) {
        networks.push(record.mode.clone());
    }
    let ips = all
        .iter()
        .filter_map(|it| it.result.as_ref())
        .flat_map(|it| &it.ips);
    let addresses: Vec<_> = ips.map(|it| it.address.ip().to_string()).collect();
    let inside = all
        .iter()
        .map(|it| it.inside.and_then(|it| survey.interface(it)));
    let mac =
        |it: Option<&survey::Interface>| it.and_then(|it| it.link.mac).map(|it| it.to_string());
    let macs: Vec<_> = inside.map(|it| mac(it).unwrap_or_default()).collect();
    let interfaces: Vec<_> = all.iter().map(|it| it.ifname.clone()).collect();
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let since = one.since();
    let age = ago(now.as_secs().saturating_sub(since));
    let known = since != 0;
    let command = one
        .record
        .map(|it| it.command.join(" "))
        .unwrap_or_default();
    let (id, command) = if whole {
        (one.id.as_str(), command)
    } else {
        (one.short_id(), cut(&command))
    };
    let is_gone = one.record.is_none() && all.iter().all(|it| matches!(it.home, Home::Gone(_)));
    json!({
        "ID": id,
        "Command": if one.record.is_some() { format!("\"{command}\"") } else { String::new() },
        "CreatedAt": if known { since.to_string() } else { String::new() },
        "RunningFor": if known { format!("{age} ago") } else { String::new() },
        "Status": match (is_gone, known) {
            (true, _) => "Gone".to_owned(),
            (false, true) => format!("Up {age}"),
            (false, false) => "Up".to_owned(),
        },
        "State": if is_gone { "gone" } else { "running" },
        "Ports": one.ports().join(", "),
        "Networks": networks.join(","),
        "Addresses": addresses.join(","),
        "Names": one.name(),
        "Interfaces": interfaces.join(","),
        "MACs": macs.join(","),
        "Runtime": runtime(survey, all),
        "Health": one.health(survey),
    })
}
/// A container with its attachments, in the order of the interfaces.
struct Container<'a> {
    id: String,
    record: Option<&'a Record>,
    attachments: Vec<&'a Attachment>,
}

/// All of them: those of `podwire run`, also without a network, and those of attachments.
///
/// # Errors
/// The cache of a container cannot be read.
fn containers(survey: &Survey) -> Result<Vec<Container<'_>>> {
    let mut all: Vec<Container<'_>> = Vec::new();
    let mut by_id = std::collections::HashMap::new();
    for record in &survey.containers {
        by_id.insert(record.id.as_str(), all.len());
        all.push(Container {
            id: record.id.clone(),
            record: Some(record),
            attachments: Vec::new(),
        });
    }
    for attachment in &survey.attachments {
        let at = *by_id
            .entry(attachment.container_id.as_str())
            .or_insert_with(|| {
                all.push(Container {
                    id: attachment.container_id.clone(),
                    record: None,
                    attachments: Vec::new(),
                });
                all.len() - 1
            });
        all[at].attachments.push(attachment);
    }
    for one in &mut all {
        one.attachments
            .sort_by_key(|it| containers::journal::natural(&it.ifname));
    }
    Ok(all)
}

impl Container<'_> {
    /// The name that its runtime knows, or none.
    fn name(&self) -> String {
        let name = self.record.map(|it| it.name.clone());
        let mut of_pods = self.attachments.iter().filter_map(|it| it.pod_name());
        name.or_else(|| of_pods.next().map(str::to_owned))
            .unwrap_or_default()
    }

    fn short_id(&self) -> &str {
        let is_hex = self.id.bytes().all(|it| it.is_ascii_hexdigit());
        self.id.get(..12).filter(|_| is_hex).unwrap_or(&self.id)
    }

    /// When it was started, or first attached, in seconds since 1970; 0 if nothing says it.
    fn since(&self) -> u64 {
        if let Some(record) = self.record {
            return record.created;
        }
        let times = self.attachments.iter().filter_map(|it| it.since);
        let since = times
            .min()
            .and_then(|it| it.duration_since(UNIX_EPOCH).ok());
        since.unwrap_or_default().as_secs()
    }

    fn ports(&self) -> Vec<String> {
        let cached = self.attachments.iter().filter_map(|it| it.cached.as_ref());
        let published: Vec<_> = cached.flat_map(published::of).collect();
        let exposed = self.record.map(|it| it.exposed.clone()).unwrap_or_default();
        let exposed = exposed.into_iter().filter(|port| {
            let is_it = |it: &Published| format!("{}/{}", it.container_port, it.protocol) == *port;
            !published.iter().any(is_it)
        });
        published
            .iter()
            .map(published::shown)
            .chain(exposed)
            .collect()
    }

    fn health(&self, survey: &Survey) -> String {
        let mut all: Vec<_> = self
            .attachments
            .iter()
            .map(|it| health(survey, it))
            .collect();
        all.retain(|it| *it != OK);
        all.dedup();
        if all.is_empty() {
            OK.to_owned()
        } else {
            all.join(",")
        }
    }
}

const OK: &str = "ok";

/// What one of cache, kernel and namespace has of an attachment, and another has not.
pub fn health(survey: &Survey, attachment: &Attachment) -> &'static str {
    let is_up = |place| survey.interface(place).is_some_and(|it| it.link.up);
    match (&attachment.home, &attachment.cached) {
        (_, None) => "not cached",
        (Home::Gone(_), _) => "cache only",
        (Home::Unread(_) | Home::Unknown, _) => "not read",
        (Home::At(_), _) => match attachment.inside {
            None => "no interface",
            Some(place) if !is_up(place) || attachment.outside.is_some_and(|it| !is_up(it)) => {
                "down"
            }
            Some(_) => OK,
        },
    }
}

/// Which of them have an attachment.
pub fn known_by(survey: &Survey, attachment: &Attachment) -> Value {
    let owner = attachment.owner();
    let owns =
        |it: &packet_filter::PublishedPort| owner.as_ref().is_some_and(|owner| it.is_of(owner));
    json!({
        "Cache": attachment.cached.is_some(),
        "Kernel": attachment.inside.is_some() || attachment.outside.is_some(),
        "HostLocal": !attachment.reserved.is_empty(),
        "PublishedPorts": survey.published.iter().any(owns),
    })
}

/// The ports that an attachment publishes.
pub fn ports(attachment: &Attachment) -> Vec<String> {
    let cached = attachment.cached.iter();
    cached
        .flat_map(published::of)
        .map(|it| published::shown(&it))
        .collect()
}

/// The program that has started a container, as far as its arguments and paths show it.
pub fn runtime(survey: &Survey, attachments: &[&Attachment]) -> &'static str {
    let Some(first) = attachments.first() else {
        return "podwire";
    };
    if survey
        .containers
        .iter()
        .any(|it| it.id == first.container_id)
    {
        return "podwire";
    }
    let path = first
        .cached
        .as_ref()
        .and_then(|it| it.netns_path())
        .unwrap_or_default();
    if first.argument("K8S_POD_INFRA_CONTAINER_ID").is_some() {
        return "kubernetes";
    }
    if first.container_id.starts_with("cnitool-") {
        return "cnitool";
    }
    match () {
        () if first.argument("NERDCTL_CNI_DHCP_HOSTNAME").is_some() => "nerdctl",
        () if first.argument("K8S_POD_NAME").is_some() => "podman",
        () if path.starts_with("/run/docker/") || path.starts_with("/var/run/docker/") => "docker",
        () if path.starts_with("/proc/") => "nerdctl",
        () => "",
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// At most 20 characters, as in docker ps.
fn cut(command: &str) -> String {
    match command.chars().count() {
        0..=20 => command.to_owned(),
        _ => command.chars().take(19).chain(['…']).collect(),
    }
}

/// A time as Docker words it.
fn ago(seconds: u64) -> String {
    let (count, unit) = match seconds {
        0 => return "Less than a second".into(),
        1 => return "1 second".into(),
        2..60 => (seconds, "seconds"),
        60..120 => return "About a minute".into(),
        120..3600 => (seconds / 60, "minutes"),
        3600..7200 => return "About an hour".into(),
        7200..172_800 => (seconds / 3600, "hours"),
        _ => (seconds / 86400, "days"),
    };
    format!("{count} {unit}")
}

const COLUMNS: Columns = Columns {
    usual: "{{.ID}}\t{{.Command}}\t{{.RunningFor}}\t{{.Status}}\t{{.Ports}}\t{{.Networks}}\t{{.Addresses}}\t{{.Names}}\t{{.Health}}",
    raw: "container_id: {{.ID}}\ncommand: {{.Command}}\nstatus: {{.Status}}\nnames: {{.Names}}\n",
    headings: &[
        ("ID", "CONTAINER ID"),
        ("Command", "COMMAND"),
        ("CreatedAt", "CREATED AT"),
        ("RunningFor", "CREATED"),
        ("Status", "STATUS"),
        ("State", "STATE"),
        ("Ports", "PORTS"),
        ("Networks", "NETWORKS"),
        ("Addresses", "ADDRESSES"),
        ("Names", "NAMES"),
        ("Interfaces", "INTERFACES"),
        ("MACs", "MAC ADDRESSES"),
        ("Runtime", "RUNTIME"),
        ("Health", "HEALTH"),
    ],
};

const WIDE: Columns = Columns {
    usual: "{{.ID}}\t{{.Names}}\t{{.Networks}}\t{{.Interfaces}}\t{{.Addresses}}\t{{.MACs}}\t{{.Ports}}\t{{.Runtime}}\t{{.Status}}\t{{.Health}}",
    ..COLUMNS
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_commands_are_worded_as_in_docker() {
        for (seconds, expected) in [
            (0, "Less than a second"),
            (1, "1 second"),
            (59, "59 seconds"),
            (61, "About a minute"),
            (150, "2 minutes"),
            (4000, "About an hour"),
            (90_000, "25 hours"),
            (200_000, "2 days"),
        ] {
            assert_eq!(ago(seconds), expected);
        }
        assert_eq!(cut("sleep 100"), "sleep 100");
        assert_eq!(cut("0123456789012345678901"), "0123456789012345678…");
    }
}
