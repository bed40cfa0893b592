//! `podwire resync`: restore what other programs removed.

use anyhow::Result;
use clap::Args;

use super::Verdict;
use super::node::{Options, Task};
use crate::output::Output;
use crate::{firewalls, gateways};

/// Restore what other programs removed.
///
/// After iptables -F, nft flush ruleset or a reload of firewalld: restores missing rules for
/// masquerade, published ports, spoof checks, isolation and the plugin firewall, for every attachment in the cache or
/// for those to NETWORK. The cache has what is needed of each ADD: the configuration, the runtime's
/// port mappings, the result. Also restores the gateway's addresses of bridges and sets the bridges
/// up, where NetworkManager or another program has changed them.
///
/// Existing rules stay, no matter which program made them. Missing ones are restored in one
/// transaction of nf_tables and one of each family's iptables. Open connections continue; UDP
/// connections that were misdirected meanwhile are deleted from conntrack. A port that another pod
/// has by now is left to it.
///
/// Attachments whose network namespace is gone are ignored.
#[derive(Debug, Args)]
#[command(after_long_help = OUTCOME)]
pub struct Resync {
    #[command(flatten)]
    options: Options,
}

const OUTCOME: &str = "\
Exit status: 0 when nothing is missing any more, 1 when something could not be
restored or an attachment's file is invalid (the rest is done), 2 for a wrong
command line.

Examples:
  podwire resync
  podwire resync --dry-run mynet
";

impl Resync {
    pub fn run(&self, output: &Output) -> Result<Verdict> {
        let task = Task {
            run: &|pods, dry| {
                // Before the packet filter, whose rules are about the bridges' traffic.
                let restored = gateways::resync(&pods.attached, dry)?;
                let mut report = packet_filter::node::resync(&pods.wanted, dry)?;
                restored.add_to(&mut report, dry);
                report.add(firewalls::resync(&pods.attached, dry)?);
                Ok(report)
            },
            done: "put back",
            nothing: "nothing was missing",
            ours: true,
        };
        self.options.run(&task, output)
    }
}
