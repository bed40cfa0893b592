//! `podwire resync`: put back what other programs took away.

use anyhow::Result;

use super::node::{self, Task};
use super::{Command, Verdict};
use crate::arguments::Arguments;
use crate::gateways;

pub const COMMAND: Command = Command {
    name: "resync",
    summary: "put back what other programs took away",
    about: ABOUT,
    options: node::OPTIONS,
    outcome: OUTCOME,
    run,
};

const ABOUT: &str = "\
Usage: podwire resync [OPTION]... [NETWORK]

After `iptables -F`, `nft flush ruleset` or a reload of firewalld: puts back
what is missing of masquerade, published ports, spoof checks and isolation, for
every attachment in the cache or those to NETWORK. What is wanted follows from
what the cache has of the ADD: the configuration, the runtime's port mappings,
the result. Also puts back the gateway's addresses of bridges and sets the
bridges up, where NetworkManager or another program has changed them.

What is there stays as it is, whoever made it. What is missing comes back in one
transaction of nf_tables and one of each family's iptables. Connections that
live go on; connections of UDP that went astray meanwhile are forgotten. A port
that somebody else has by now stays theirs.

Attachments whose network namespace is gone are passed over.
";

const OUTCOME: &str = "\
Exit status: 0 when nothing is missing any more, 1 when something could not be
put back or an attachment's file makes no sense (the rest is done all the same),
2 for a command line that makes no sense.

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
