//! `podwire resync`: restore what other programs removed.

use anyhow::Result;

use super::node::{self, Task};
use super::{Command, Verdict};
use crate::arguments::Arguments;
use crate::gateways;

pub const COMMAND: Command = Command {
    name: "resync",
    summary: "restore what other programs removed",
    about: ABOUT,
    options: node::OPTIONS,
    outcome: OUTCOME,
    run,
};

const ABOUT: &str = "\
Usage: podwire resync [OPTION]... [NETWORK]

After `iptables -F`, `nft flush ruleset` or a reload of firewalld: restores
missing rules for masquerade, published ports, spoof checks and isolation, for
every attachment in the cache or for those to NETWORK. The cache has what is
needed of each ADD: the configuration, the runtime's port mappings, the result.
Also restores the gateway's addresses of bridges and sets the bridges up, where
NetworkManager or another program has changed them.

Existing rules stay, no matter which program made them. Missing ones are
restored in one transaction of nf_tables and one of each family's iptables. Open
connections continue; UDP connections that were misdirected meanwhile are
deleted from conntrack. A port that another pod has by now is left to it.

Attachments whose network namespace is gone are ignored.
";

const OUTCOME: &str = "\
Exit status: 0 when nothing is missing any more, 1 when something could not be
restored or an attachment's file is invalid (the rest is done), 2 for a wrong
command line.

Examples:
  podwire resync
  podwire resync --dry-run mynet
";

fn run(arguments: &Arguments) -> Result<Verdict> {
    let task = Task {
        run: &|pods, dry| {
            // Before the packet filter, whose rules are about the bridges' traffic.
            let restored = gateways::resync(&pods.attached, dry)?;
            let mut report = packet_filter::node::resync(&pods.wanted, dry)?;
            restored.add_to(&mut report, dry);
            Ok(report)
        },
        done: "put back",
        nothing: "nothing was missing",
        ours: true,
    };
    node::run(arguments, &task)
}
