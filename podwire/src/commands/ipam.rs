//! `podwire ipam`: the addresses of a cluster, as the agent of this node knows them.

mod import;

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, anyhow, bail};
use clap::{Args, Subcommand};
use names::Namespace;
use pools::{Agent, PoolLease, Release, Reply, Request};
use serde_json::{Value, json};

use super::Verdict;
use crate::output::{Output, print};

const PATIENCE: Duration = Duration::from_secs(10);

/// Addresses of a cluster: pools, blocks, owners, clashes, leaks.
///
/// The agent podwired of this node answers. Its role ipam has blocks of addresses, of which the plugin
/// cluster hands out each once in all nodes.
#[derive(Debug, Args)]
#[command(after_long_help = OUTCOME)]
pub struct Ipam {
    #[command(subcommand)]
    action: Action,
    /// The socket of the agent
    #[arg(long, value_name = "FILE", default_value = agent::PATH, global = true)]
    agent: PathBuf,
}

const OUTCOME: &str = "\
Exit status: 0 when done, and for check when nothing was found; 1 when not; 2 for
a wrong command line.

Examples:
  podwire ipam show
  podwire ipam check
  podwire ipam release --node node7
  podwire ipam release --network mynet 10.7.0.9
  podwire ipam import --network mynet --dry-run /var/lib/cni/networks/mynet
";

#[derive(Debug, Subcommand)]
enum Action {
    /// List pools, their blocks and which node has them
    Show,
    /// Look for clashes, and for addresses of pods that are gone
    ///
    /// A clash is an address of a pod of this node in a block that another node has taken over. A
    /// leak is an address whose pod has no network namespace any more: a GC of the runtime releases it.
    Check,
    /// Release the blocks of a node that is gone for good, or addresses of this node
    ///
    /// A node that lives is refused. Be certain that the pods of the node have ended: their addresses
    /// are handed out again.
    Release {
        /// The node that is gone
        #[arg(long, conflicts_with_all = ["network", "addresses"], required_unless_present = "network")]
        node: Option<String>,
        /// The network of the addresses
        #[arg(long, requires = "addresses")]
        network: Option<String>,
        /// Addresses of pods of this node that are gone
        #[arg(value_name = "ADDRESS")]
        addresses: Vec<IpAddr>,
    },
    /// Take over addresses that another plugin has handed out on this node
    ///
    /// SOURCE is the directory of a network of host-local, or a pool of whereabouts as JSON (kubectl
    /// get ippool -o json). Run it on every node before the network's plugin becomes cluster. Of a
    /// pool of whereabouts, only the containers with a result in the runtime's cache are taken.
    Import(import::Import),
}

impl Ipam {
    pub fn run(&self, output: &Output) -> Result<Verdict> {
        let agent = Agent::at(&self.agent);
        match &self.action {
            Action::Show => show(&state(&agent)?, output),
            Action::Check => check(&agent, output),
            Action::Release {
                node: Some(node), ..
            } => {
                let node = node.clone();
                let done = agent.ask(&Request::Forget { node }, PATIENCE)?;
                let Reply::State(done) = done else {
                    return Err(odd(&done));
                };
                output.say(&done, &format!("{} blocks released", done["blocks"]))
            }
            Action::Release {
                network, addresses, ..
            } => release(
                &agent,
                network.as_deref().unwrap_or_default(),
                addresses,
                output,
            ),
            Action::Import(import) => import.run(&agent, output),
        }
    }
}

fn state(agent: &Agent) -> Result<Value> {
    match agent.ask(&Request::Show {}, PATIENCE)? {
        Reply::State(state) => Ok(state),
        other => Err(odd(&other)),
    }
}

fn leases(agent: &Agent, network: &str) -> Result<Vec<PoolLease>> {
    match agent.ask(&Request::Network(network.to_owned()), PATIENCE)? {
        Reply::Leases(leases) => Ok(leases),
        other => Err(odd(&other)),
    }
}

fn show(state: &Value, output: &Output) -> Result<Verdict> {
    if output.is_json() {
        output.print_json(state)?;
        return Ok(Verdict::Good);
    }
    print(&format!(
        "node {}, may allocate for {:.0} s more; {} nodes live",
        text(&state["node"]),
        state["fenceSecondsLeft"].as_f64().unwrap_or_default(),
        state["nodes"].as_array().map_or(0, Vec::len),
    ))?;
    for (pool, blocks) in state["pools"].as_object().into_iter().flatten() {
        print(&format!("\npool {pool}"))?;
        for block in blocks.as_array().into_iter().flatten() {
            print(&block_line(block))?;
        }
    }
    for (network, used) in state["use"].as_object().into_iter().flatten() {
        print(&format!(
            "\nnetwork {network}: {used} addresses of pods here"
        ))?;
    }
    Ok(Verdict::Good)
}

fn block_line(block: &Value) -> String {
    let lent = block["lent"].as_array().map_or(0, Vec::len);
    let mut line = format!(
        "  {:22} {} used {}",
        text(&block["block"]),
        text(&block["node"]),
        block["used"]
    );
    if let Some(free) = block["free"].as_u64() {
        line += &format!(" free {free}");
    }
    if lent > 0 {
        line += &format!(" lent {lent}");
    }
    if block["lives"] == false {
        line += " (the node has no lease)";
    }
    line
}

fn check(agent: &Agent, output: &Output) -> Result<Verdict> {
    let state = state(agent)?;
    let mut findings = Vec::new();
    for clash in state["clashes"].as_array().into_iter().flatten() {
        findings.push(json!({"kind": "clash", "address": clash["address"], "owner": clash["owner"],
            "evidence": format!("block {} belongs to node {} now", text(&clash["block"]), text(&clash["blockOf"]))}));
    }
    for block in state["doubtful"].as_array().into_iter().flatten() {
        findings.push(
            json!({"kind": "doubtful", "block": block["block"], "pool": block["pool"],
            "evidence": "claimed by this node since it was started, and its journal is gone"}),
        );
    }
    for network in state["use"]
        .as_object()
        .into_iter()
        .flatten()
        .map(|it| it.0)
    {
        for it in leases(agent, network)? {
            if let Some(namespace) = it.lease.namespace.as_ref().filter(|it| !it.exists()) {
                findings.push(json!({"kind": "leak", "address": it.lease.ip, "owner": it.lease.owner.to_string(),
                    "evidence": format!("{} is no longer its namespace", namespace.path.display())}));
            }
        }
    }
    if output.is_json() {
        output.print_json(&findings)?;
    } else {
        for it in &findings {
            let what = if it["address"].is_null() {
                &it["block"]
            } else {
                &it["address"]
            };
            let owner = it["owner"]
                .as_str()
                .map_or(String::new(), |it| format!(" of {it}"));
            print(&format!(
                "{}: {}{owner}: {}",
                text(&it["kind"]),
                text(what),
                text(&it["evidence"])
            ))?;
        }
    }
    Ok(Verdict::good_if(findings.is_empty()))
}

fn release(agent: &Agent, network: &str, ips: &[IpAddr], output: &Output) -> Result<Verdict> {
    let leases = leases(agent, network)?;
    for ip in ips {
        let Some(found) = leases.iter().find(|it| it.lease.ip == *ip) else {
            bail!("{ip} is no address of a pod of this node in {network}");
        };
        if found
            .lease
            .namespace
            .as_ref()
            .is_some_and(Namespace::exists)
        {
            bail!(
                "{ip} is in use: the namespace of {} exists",
                found.lease.owner
            );
        }
        let release = Release {
            pool: found.pool.clone(),
            ip: *ip,
            sequence: found.lease.sequence,
        };
        agent.ask(&Request::Release(release), PATIENCE)?;
    }
    output.say(
        &json!({"released": ips}),
        &format!("{} addresses released", ips.len()),
    )
}

impl Output {
    fn say(&self, document: &Value, line: &str) -> Result<Verdict> {
        if self.is_json() {
            self.print_json(document)?
        } else {
            print(line)?
        }
        Ok(Verdict::Good)
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("?")
}

fn odd(reply: &Reply) -> anyhow::Error {
    anyhow!("the agent answered something else: {reply:?}")
}
