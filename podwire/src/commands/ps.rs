//! `podwire ps`: list the containers of `podwire run`.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Result;
use clap::Args;
use containers::{Published, Record, place};
use networks::Cache;
use serde_json::{Value, json};

use super::Verdict;
use crate::network::format::{self, Columns};
use crate::options::CacheDir;
use crate::output::{Output, print};
use crate::run::ports;

/// List the containers of podwire run.
///
/// The newest comes first. The fields of a TEMPLATE are .ID .Command .CreatedAt .RunningFor .Status
/// .State .Ports .Networks .Addresses and .Names; the language is that of podwire network ls. NETWORKS and ADDRESSES are those of all its interfaces, in their order.
#[derive(Debug, Args)]
#[command(after_long_help = OUTCOME)]
pub struct Ps {
    /// Print the ids only
    #[arg(short, long)]
    quiet: bool,
    /// Print whole ids and commands
    #[arg(long)]
    no_trunc: bool,
    /// table, json, raw, TEMPLATE or 'table TEMPLATE'
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    format: String,
    /// Accepted as in docker ps: a container that has ended is gone
    #[arg(short, long)]
    all: bool,
    #[command(flatten)]
    cache: CacheDir,
}

const OUTCOME: &str = "\
Exit status: 0 when listed, 1 when a record cannot be read, 2 for a wrong
command line.

Examples:
  podwire ps
  podwire ps -q --no-trunc
  podwire ps --format '{{.Names}} {{.Addresses}}'
";

impl Ps {
    pub fn run(&self, output: &Output) -> Result<Verdict> {
        super::sweep(&self.cache);
        let mut rows = Vec::new();
        for record in place::running()? {
            rows.push(self.row(&record)?);
        }
        if output.is_json() {
            output.print_json(&rows)?;
        } else if self.quiet {
            let ids = rows.iter().map(|it| text(&it["ID"]) + "\n");
            print(&ids.collect::<String>())?;
        } else {
            print(&format::rows(&self.format, &COLUMNS, &rows)?)?;
        }
        Ok(Verdict::Good)
    }

    fn row(&self, record: &Record) -> Result<Value> {
        let mut attachments = Cache::in_dir(&record.cache_dir).of_container(&record.id)?;
        attachments.sort_by_key(|it| containers::journal::natural(&it.ifname));
        let mut networks: Vec<_> = attachments
            .iter()
            .map(|it| it.network_name.clone())
            .collect();
        let results = attachments
            .iter()
            .filter_map(|it| it.add_result().ok().flatten());
        let ips = results.flat_map(|it| it.ips);
        let addresses: Vec<_> = ips.map(|it| it.address.ip().to_string()).collect();
        if networks.is_empty() {
            networks.push(record.mode.clone());
        }
        let age = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let age = ago(age.as_secs().saturating_sub(record.created));
        let published: Vec<_> = attachments.iter().flat_map(ports::of).collect();
        let exposed = record.exposed.iter().filter(|port| {
            let is_it = |it: &Published| format!("{}/{}", it.container_port, it.protocol) == **port;
            !published.iter().any(is_it)
        });
        let shown: Vec<_> = published
            .iter()
            .map(ports::shown)
            .chain(exposed.cloned())
            .collect();
        let command = record.command.join(" ");
        let (id, command) = match self.no_trunc {
            true => (record.id.as_str(), format!("\"{command}\"")),
            false => (record.short_id(), format!("\"{}\"", cut(&command))),
        };
        Ok(json!({
            "ID": id,
            "Command": command,
            "CreatedAt": record.created.to_string(),
            "RunningFor": format!("{age} ago"),
            "Status": format!("Up {age}"),
            "State": "running",
            "Ports": shown.join(", "),
            "Networks": networks.join(","),
            "Addresses": addresses.join(","),
            "Names": record.name,
        }))
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
    usual: "{{.ID}}\t{{.Command}}\t{{.RunningFor}}\t{{.Status}}\t{{.Ports}}\t{{.Networks}}\t{{.Addresses}}\t{{.Names}}",
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
    ],
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
