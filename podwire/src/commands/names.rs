//! `podwire names`: the names of containers, and what the resolver answers.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use names::{Directory, Found, Name, Record, Reply, Request, Resolver};
use serde_json::{Value, json};

use super::Verdict;
use crate::output::{Output, print};

/// How long an answer of the resolver may take.
const PATIENCE: Duration = Duration::from_secs(3);

/// List the names of containers, or look one up.
///
/// The names are those that the plugin dnsname has recorded: each container's own name, its aliases,
/// its short id. In its network, a container is found by each of them alone, and with the name or the
/// domain of the network behind: web, web.mynet, web.podwire.internal.
///
/// With --resolve, the resolver of podwired answers, as it answers containers. The node is in all
/// networks.
#[derive(Debug, Args)]
#[command(after_long_help = OUTCOME)]
pub struct Names {
    /// Only those of this network
    network: Option<String>,
    /// Print the addresses of a name
    #[arg(long, value_name = "NAME")]
    resolve: Option<String>,
}

const OUTCOME: &str = "\
Exit status: 0 when done, 1 when not, or when the name has no address; 2 for a wrong command line.

Examples:
  podwire names
  podwire names mynet
  podwire names --resolve web.mynet
";

impl Names {
    pub fn run(&self, output: &Output) -> Result<Verdict> {
        match &self.resolve {
            Some(name) => self.resolve(name, output),
            None => self.list(output),
        }
    }

    fn resolve(&self, name: &str, output: &Output) -> Result<Verdict> {
        let parsed: Name = name
            .parse()
            .with_context(|| format!("invalid name {name:?}"))?;
        let mut found = match Resolver::default().ask(&Request::Resolve(parsed), PATIENCE)? {
            Reply::Found(found) => found,
            other => bail!("the resolver answered something else: {other}"),
        };
        found.retain(|it| self.wants(&it.network));
        if output.is_json() {
            output.print_json(&found)?;
        } else {
            print_found(&found)?;
        }
        if found.is_empty() {
            cni::log(format_args!("podwire: no container has the name {name}"));
        }
        Ok(Verdict::good_if(!found.is_empty()))
    }

    fn list(&self, output: &Output) -> Result<Verdict> {
        let (records, is_complete) = self.records()?;
        if output.is_json() {
            let documents: Vec<_> = records.iter().map(document).collect();
            output.print_json(&documents)?;
        } else {
            print_table(&records)?;
        }
        Ok(Verdict::good_if(is_complete))
    }

    fn wants(&self, network: &str) -> bool {
        self.network.as_deref().is_none_or(|it| it == network)
    }

    /// All records, and whether all could be read.
    fn records(&self) -> Result<(Vec<Record>, bool)> {
        let directory = Directory::default();
        let (mut records, mut is_complete) = (Vec::new(), true);
        for network in directory.networks()? {
            for entry in directory.entries(&network)? {
                match directory.read(&entry) {
                    Ok(found) => records.extend(found.filter(|it| self.wants(&it.network.name))),
                    Err(error) => {
                        cni::log(format_args!("podwire: {error:#}"));
                        is_complete = false;
                    }
                }
            }
        }
        Ok((records, is_complete))
    }
}

fn print_found(found: &[Found]) -> Result<()> {
    for Found { network, address } in found {
        print(&format!("{address}\t{network}"))?;
    }
    Ok(())
}

fn document(record: &Record) -> Value {
    json!({
        "network": record.network.name, "container": record.container, "ifname": record.ifname,
        "names": record.names, "addresses": record.addresses,
    })
}

/// One container a line, the names last, because they have no limit.
fn print_table(records: &[Record]) -> Result<()> {
    let mut rows = vec![["NETWORK", "ADDRESSES", "NAMES"].map(str::to_owned)];
    for record in records {
        let addresses: Vec<_> = record.addresses.iter().map(ToString::to_string).collect();
        let names: Vec<_> = record.names.iter().map(Name::as_str).collect();
        rows.push([
            record.network.name.clone(),
            addresses.join(","),
            names.join(","),
        ]);
    }
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let (network, addresses) = (width(0), width(1));
    for row in &rows {
        print(&format!(
            "{:network$}  {:addresses$}  {}",
            row[0], row[1], row[2]
        ))?;
    }
    Ok(())
}
