//! `podwire names`: the names of containers, and what the resolver answers.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use names::{Directory, Elsewhere, Found, Name, Record, Reply, Request, Resolver, Unreachable};
use serde_json::{Value, json};

use super::Verdict;
use crate::output::{Output, print};

/// How long an answer of the resolver may take.
const PATIENCE: Duration = Duration::from_secs(3);

/// List the names of containers, or look one up.
///
/// The names are those that the plugin dnsname has recorded: each container's own name, its aliases,
/// its short id. In its network, a container is found by each of them alone, and with the name or the
/// domain of the network behind: web, web.mynet, web.podwire.internal. On a network that spans nodes,
/// the containers of other nodes are listed too, with their node: podwired knows them.
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
        let elsewhere = self.elsewhere();
        if output.is_json() {
            let documents = records.iter().map(document);
            let documents: Vec<_> = documents
                .chain(elsewhere.iter().map(|it| json!(it)))
                .collect();
            output.print_json(&documents)?;
        } else {
            print_table(&records, &elsewhere)?;
        }
        Ok(Verdict::good_if(is_complete))
    }

    /// The containers of other nodes. Without an agent, nothing is known of them.
    fn elsewhere(&self) -> Vec<Elsewhere> {
        match Resolver::default().ask(&Request::Elsewhere, PATIENCE) {
            Ok(Reply::Elsewhere(mut all)) => {
                all.retain(|it| self.wants(&it.network));
                return all;
            }
            Ok(other) => cni::log(format_args!("podwire: names of other nodes: {other}")),
            Err(error) if error.is::<Unreachable>() => {}
            Err(error) => cni::log(format_args!("podwire: names of other nodes: {error:#}")),
        }
        Vec::new()
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

/// One container a line, the names last, because they have no limit. The nodes are there only where there
/// are others.
fn print_table(records: &[Record], elsewhere: &[Elsewhere]) -> Result<()> {
    let mut rows = vec![["NETWORK", "NODE", "ADDRESSES", "NAMES"].map(str::to_owned)];
    for it in records {
        rows.push(row(&it.network.name, "-", &it.addresses, &it.names));
    }
    for it in elsewhere {
        rows.push(row(&it.network, &it.node, &it.addresses, &it.names));
    }
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let [network, node, addresses] = [0, 1, 2].map(width);
    for row in &rows {
        let node = match elsewhere {
            [] => String::new(),
            _ => format!("{:node$}  ", row[1]),
        };
        print(&format!(
            "{:network$}  {node}{:addresses$}  {}",
            row[0], row[2], row[3]
        ))?;
    }
    Ok(())
}

fn row(network: &str, node: &str, addresses: &[IpAddr], names: &[Name]) -> [String; 4] {
    let addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
    let names: Vec<_> = names.iter().map(Name::as_str).collect();
    let columns = [network, node, &addresses.join(","), &names.join(",")];
    columns.map(str::to_owned)
}
