//! `podwire network ls`

use std::cmp::Ordering;

use anyhow::Result;
use clap::Args;
use networks::named::Network;
use serde_json::Value;

use super::catalogue;
use crate::commands::{Verdict, sweep};
use crate::network::filter::{Facts, Filter, LIST};
use crate::network::format::{self, Columns};
use crate::network::{Attached, created, row};
use crate::options::{CacheDir, ConfDir};
use crate::output::{Output, print};

/// List networks.
///
/// The keys of --filter are driver, id, label, name, scope, type (builtin or custom) and dangling
/// (true: no container is attached). id and name match a part or a regular expression.
///
/// The fields of a TEMPLATE are .ID .Name .Driver .Scope .IPv4 .IPv6 .Internal .Labels .CreatedAt
/// and .Label "KEY". The language is that of Go's text/template, with the functions json, join,
/// split, lower, upper, title, pad and truncate.
#[derive(Debug, Args)]
pub struct Ls {
    /// Print ids only
    #[arg(short, long)]
    quiet: bool,
    /// Do not cut ids
    #[arg(long)]
    no_trunc: bool,
    /// Only networks that meet the condition; several are possible
    #[arg(short, long, value_name = "KEY=VALUE")]
    filter: Vec<String>,
    /// table, json, raw, TEMPLATE or 'table TEMPLATE'
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    format: String,
    #[command(flatten)]
    conf: ConfDir,
    #[command(flatten)]
    cache: CacheDir,
}

const COLUMNS: Columns = Columns {
    usual: "{{.ID}}\t{{.Name}}\t{{.Driver}}\t{{.Scope}}",
    raw: "network_id: {{.ID}}\nname: {{.Name}}\ndriver: {{.Driver}}\nscope: {{.Scope}}\n",
    headings: &[
        ("ID", "NETWORK ID"),
        ("Name", "NAME"),
        ("Driver", "DRIVER"),
        ("Scope", "SCOPE"),
        ("IPv4", "IPV4"),
        ("IPv6", "IPV6"),
        ("Internal", "INTERNAL"),
        ("Labels", "LABELS"),
        ("CreatedAt", "CREATED AT"),
    ],
};

impl Ls {
    pub fn run(&self, output: &Output) -> Result<Verdict> {
        sweep(&self.cache);
        let filter = Filter::read(&self.filter, LIST)?;
        let mut networks = catalogue(&self.conf.conf_dir)?.networks;
        networks.sort_by(|one, other| natural(&one.name, &other.name));
        let mut rows = Vec::new();
        for network in &networks {
            if filter.accepts(self.facts(network, &filter)?) {
                rows.push(row(network, self.no_trunc));
            }
        }
        if output.is_json() {
            output.print_json(&Value::Array(rows))?;
            return Ok(Verdict::Good);
        }
        let format = match (self.quiet, self.format.as_str()) {
            (true, "table" | "") => "{{.ID}}",
            (true, "raw") => "network_id: {{.ID}}",
            (_, format) => format,
        };
        let text = format::rows(format, &COLUMNS, &rows)?;
        if !text.is_empty() {
            print(&text)?;
        }
        Ok(Verdict::Good)
    }

    fn facts<'a>(&self, network: &'a Network, filter: &Filter) -> Result<Facts<'a>> {
        let in_use = filter.needs_users() && {
            let attached = Attached::to(&network.name, &self.cache.open())?;
            !attached.users().is_empty()
        };
        Ok(Facts {
            network,
            created: created(network),
            in_use,
        })
    }
}

/// Numbers in names count as numbers: net2 comes before net10.
fn natural(one: &str, other: &str) -> Ordering {
    let (mut one_rest, mut other_rest) = (one, other);
    loop {
        let (one_part, other_part) = (part(&mut one_rest), part(&mut other_rest));
        let order = match (one_part, other_part) {
            ("", "") => return one.cmp(other),
            (a, b) => match (a.parse::<u128>(), b.parse::<u128>()) {
                (Ok(a), Ok(b)) => a.cmp(&b),
                _ => a.cmp(b),
            },
        };
        if order != Ordering::Equal {
            return order;
        }
    }
}

/// Takes the digits, or what is before the next digit, from the beginning of a text.
fn part<'a>(text: &mut &'a str) -> &'a str {
    let is_digit = text.starts_with(|it: char| it.is_ascii_digit());
    let end = text.find(|it: char| it.is_ascii_digit() != is_digit);
    let (part, rest) = text.split_at(end.unwrap_or(text.len()));
    *text = rest;
    part
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_names_are_compared_as_numbers() {
        let mut names = ["net10", "net2", "a", "net02", "10", "9x", "net"];
        names.sort_by(|one, other| natural(one, other));
        assert_eq!(names, ["9x", "10", "a", "net", "net02", "net2", "net10"]);
    }
}
