//! `podwire status`: check whether a network can take attachments, or how the node's agent is.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use cni::Error;
use cni::json::Json;
use host_local::Usage;
use networks::{Chain, NetworkList, request};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::peers::Node;
use super::{Verdict, agent};
use crate::options::{ConfDir, PluginDirs, Unread};
use crate::output::{ErrorDocument, Output, counted, print};

/// Check whether a network can take attachments.
///
/// Runs the plugins of NETWORK in order with the verb STATUS, up to the first one that reports
/// that no ADD can succeed now; its error code is kept (50: not available). A NETWORK older than
/// cniVersion 1.1.0 has no STATUS: nothing is run, and the command succeeds.
///
/// Runtimes take a node out of service when STATUS fails. So STATUS does not report conditions
/// that do not affect running pods: a range without a free address, a vxlan peer that the kernel
/// does not have. --verbose does; the exit status stays that of STATUS.
///
/// With --verbose, --json prints an object with available, error, ranges, peers and problems.
///
/// Without NETWORK it shows how podwired is, the node's agent: its roles, and the networks across
/// hosts with their peers. --json prints podwired's own document.
#[derive(Debug, Args)]
#[command(after_long_help = OUTCOME)]
pub struct Status {
    /// Name of the network; without it, the agent's status
    network: Option<String>,
    /// Print also how much of each range of addresses is in use, and the peers that the kernel
    /// does not know
    #[arg(short, long)]
    verbose: bool,
    /// The agent's socket
    #[arg(
        long,
        value_name = "PATH",
        default_value = super::agent::SOCKET
    )]
    socket: PathBuf,
    #[command(flatten)]
    conf: ConfDir,
    #[command(flatten)]
    plugins: PluginDirs,
    #[command(flatten)]
    unread: Unread,
}

const OUTCOME: &str = "\
Exit status: 0 when it can, or when all roles of the agent are ready; 1 otherwise; 2 for a wrong
command line.

Examples:
  podwire status mynet
  podwire status --verbose mynet
  podwire status --json mynet | jq .code
  podwire status
";

impl Status {
    pub fn run(&self, output: &Output) -> Result<Verdict> {
        let Some(network) = &self.network else {
            return agent::status(&self.socket, output);
        };
        let list = NetworkList::load(&self.conf.conf_dir, network)?;
        let status = Chain::new(&list, self.plugins.all()).status();
        if self.verbose {
            return print_details(output, &Details::of(&list), &list, status);
        }
        output.remark(&remark(&list, status?))?;
        Ok(Verdict::Good)
    }
}

fn remark(list: &NetworkList, has_status: bool) -> String {
    let (network, version) = (&list.name, &list.cni_version);
    if has_status {
        format!("{network} can take attachments")
    } else {
        format!("{network} has cniVersion {version:?}, without STATUS")
    }
}

/// What STATUS does not report.
#[derive(Debug, Default, Serialize)]
struct Details {
    ranges: Vec<Usage>,
    #[serde(skip_serializing_if = "Option::is_none")]
    peers: Option<Known>,
    /// What could not be found out.
    problems: Vec<String>,
}

/// The peers of the configuration.
#[derive(Debug, Serialize)]
struct Known {
    configured: usize,
    missing: Vec<String>,
}

impl Details {
    fn of(list: &NetworkList) -> Self {
        let mut details = Self::default();
        for plugin in &list.plugins {
            let document = Value::Object(request::base(list, plugin));
            // It cannot fail: the document has been parsed before.
            let Ok(document) = Json::deserialize(&document) else {
                continue;
            };
            let ipam = document.get("ipam").and_then(|ipam| ipam.get("type"));
            if matches!(ipam, Some(Json::String(name)) if name == "host-local") {
                details.add_ranges(&document, &list.name);
            }
            if plugin.plugin == "vxlan" {
                details.add_peers(&document, &list.name);
            }
        }
        details
    }

    fn add_ranges(&mut self, document: &Json, network: &str) {
        match host_local::usage(document, network) {
            Ok(usages) => self.ranges.extend(usages),
            Err(error) => self.problems.push(format!("ranges: {error:#}")),
        }
    }

    fn add_peers(&mut self, document: &Json, network: &str) {
        let mut add = || -> Result<()> {
            let node = Node::of(document, network)?;
            let unknown = node.unknown_peers()?;
            self.peers = unknown.map(|(configured, missing)| Known {
                configured,
                missing: missing.iter().map(ToString::to_string).collect(),
            });
            self.problems.extend(node.underlay_trouble());
            Ok(())
        };
        if let Err(error) = add() {
            self.problems.push(format!("peers: {error:#}"));
        }
    }

    fn lines(&self) -> Vec<String> {
        let mut lines: Vec<_> = self.ranges.iter().map(ToString::to_string).collect();
        if let Some(Known {
            configured,
            missing,
        }) = &self.peers
        {
            let known = configured - missing.len();
            lines.push(format!(
                "the kernel knows {known} of {}",
                counted(*configured, "peer")
            ));
            lines.extend(missing.iter().map(|peer| format!("missing peer: {peer}")));
        }
        lines
    }
}

/// What `--verbose --json` prints.
#[derive(Serialize)]
struct Document<'a> {
    available: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<ErrorDocument<'a>>,
    #[serde(flatten)]
    details: &'a Details,
}

fn print_details(
    output: &Output,
    details: &Details,
    list: &NetworkList,
    status: Result<bool>,
) -> Result<Verdict> {
    if output.is_json() {
        let error = status.err().map(|error| Error::from_chain(&error));
        output.print_json(&Document {
            available: error.is_none(),
            error: error.as_ref().map(ErrorDocument::of),
            details,
        })?;
        return Ok(Verdict::good_if(error.is_none()));
    }
    for line in details.lines() {
        print(&line)?;
    }
    for problem in &details.problems {
        cni::log(format_args!("podwire: {problem}"));
    }
    print(&remark(list, status?))?;
    Ok(Verdict::Good)
}
