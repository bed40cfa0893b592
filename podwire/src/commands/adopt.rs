//! `podwire adopt`: convert the Go plugins' rules to podwire's.

use anyhow::Result;
use clap::Args;

use super::Verdict;
use super::node::{Options, Task};
use crate::firewalls;
use crate::output::Output;

/// Rewrite the rules of the Go plugins as podwire's.
///
/// Rewrites the rules of the Go plugins for the attachments in the cache, or for those to NETWORK:
/// chains CNI-... of iptables become entries of podwire's nftables maps and one rule for a
/// network's subnet; so do the Go plugins' own nftables rules. Run it once on a node, after
/// podwire's plugins have replaced them. It is optional, because podwire's plugins check, delete
/// and collect both kinds, but only podwire's rules cost the same with one pod and with thousands.
///
/// New rules are added before old ones are removed, so no pod is without rules, and open
/// connections continue. Where a configuration names iptables, or the kernel has no nftables,
/// podwire's rules are those of the Go plugins, and nothing is done. The rules of the plugin firewall
/// are the same in both suites: its pods are noted, so that DEL finds their rules without a result.
///
/// Attachments whose network namespace is gone are ignored, and so are chains of containers that
/// are not in the cache; DEL removes both kinds.
#[derive(Debug, Args)]
#[command(after_long_help = OUTCOME)]
pub struct Adopt {
    #[command(flatten)]
    options: Options,
}

const OUTCOME: &str = "\
Exit status: 0 when all rules are podwire's, 1 when some could not be rewritten
or an attachment's file is invalid (the rest is done), 2 for a wrong command
line.

Examples:
  podwire adopt --dry-run
  podwire adopt
";

impl Adopt {
    pub fn run(&self, output: &Output) -> Result<Verdict> {
        let task = Task {
            run: &|pods, dry| {
                let mut report = packet_filter::node::adopt(&pods.wanted, dry)?;
                report.add(firewalls::adopt(&pods.attached, dry)?);
                Ok(report)
            },
            done: "adopted",
            nothing: "there was nothing of the Go plugins",
            ours: true,
        };
        self.options.run(&task, output)
    }
}
