//! `podwire adopt`: take over what the Go plugins laid down.

use anyhow::Result;

use super::node::{self, Task};
use super::{Command, Verdict};
use crate::arguments::Arguments;

pub const COMMAND: Command = Command {
    name: "adopt",
    summary: "rewrite the rules of the Go plugins as podwire's",
    about: ABOUT,
    options: node::OPTIONS,
    outcome: OUTCOME,
    run,
};

const ABOUT: &str = "\
Usage: podwire adopt [OPTION]... [NETWORK]

Rewrites what the Go plugins laid down for the attachments in the cache, or for
those to NETWORK: chains CNI-... of iptables become entries of podwire's
nftables maps and one rule for a network's subnet; so do the Go plugins' own
nftables rules. To be run once on a node, after podwire's plugins have taken
their place: there is no need to, because podwire's plugins check, delete and
collect both, but only podwire's layout costs the same with one pod and with
thousands.

What is new comes first, what is old goes last: no pod is without in between,
and connections that live go on. Where a configuration names iptables, or the
kernel has nothing else, podwire's layout is that of the Go plugins, and nothing
is done.

Attachments whose network namespace is gone are passed over, and so are chains
of containers that are not in the cache; DEL removes them in either layout.
";

const OUTCOME: &str = "\
Exit status: 0 when all is in podwire's layout, 1 when something could not be
rewritten or an attachment's file makes no sense (the rest is done all the
same), 2 for a command line that makes no sense.

Examples:
  podwire adopt --dry-run
  podwire adopt
";

fn run(arguments: &Arguments) -> Result<Verdict> {
    let task = Task {
        run: &|pods, dry| packet_filter::node::adopt(&pods.wanted, dry),
        done: "adopted",
        nothing: "there was nothing of the Go plugins",
        ours: true,
    };
    node::run(arguments, &task)
}
