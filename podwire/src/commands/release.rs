//! `podwire release`: convert podwire's rules to those of the Go plugins.

use anyhow::Result;
use clap::Args;

use super::Verdict;
use super::node::{Options, Task};
use crate::firewalls;
use crate::output::Output;

/// Rewrite podwire's rules as those of the Go plugins.
///
/// The reverse of podwire adopt, to be run before the Go plugins replace podwire's: rewrites the
/// rules of podwire's plugins for the attachments in the cache, or for those to NETWORK, so that
/// the Go plugins' CHECK and DEL find them. The new rules are where the Go plugins would have made
/// them: in iptables, or in their own nftables table where a configuration names nftables or there
/// is no iptables.
///
/// New rules are added before old ones are removed, so no pod is without rules, and open
/// connections continue. With the last port, podwire's own tables are removed. They also protect
/// 127.0.0.0/8 of the node from its neighbours; the Go plugins have no such rule.
///
/// Ports of pods that are gone are removed: if podwire was replaced without this command, the Go
/// plugins' DEL has left them, and they lead to an unused address. Rules that may be of a running
/// pod that is not in the cache stay, and the command fails: run it again with the --cache-dir of
/// that pod's runtime.
///
/// Attachments whose network namespace is gone are ignored, and so are published ports with
/// conditions in nftables' language: the Go plugins would apply those of one pod to all. The plugin
/// firewall of the Go suite has no nftables: its rules are added to iptables or firewalld.
#[derive(Debug, Args)]
#[command(after_long_help = OUTCOME)]
pub struct Release {
    #[command(flatten)]
    options: Options,
}

const OUTCOME: &str = "\
Exit status: 0 when all rules but those reported are the Go plugins', 1 when
some could not be rewritten or an attachment's file is invalid (the rest is
done), 2 for a wrong command line.

Examples:
  podwire release --dry-run
  podwire release
";

impl Release {
    pub fn run(&self, output: &Output) -> Result<Verdict> {
        let task = Task {
            run: &|pods, dry| {
                let mut report = packet_filter::node::release(&pods.wanted, dry)?;
                let whole = self.options.is_of_all_networks();
                report.add(firewalls::release(&pods.attached, whole, dry)?);
                Ok(report)
            },
            done: "released",
            nothing: "there was nothing of podwire",
            ours: false,
        };
        self.options.run(&task, output)
    }
}
