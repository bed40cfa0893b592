//! `podwire adopt`: convert the Go plugins' rules to podwire's.

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

Rewrites the rules of the Go plugins for the attachments in the cache, or for
those to NETWORK: chains CNI-... of iptables become entries of podwire's
nftables maps and one rule for a network's subnet; so do the Go plugins' own
nftables rules. Run it once on a node, after podwire's plugins have replaced
them. It is optional, because podwire's plugins check, delete and collect both
kinds, but only podwire's rules cost the same with one pod and with thousands.

New rules are added before old ones are removed, so no pod is without rules, and
open connections continue. Where a configuration names iptables, or the kernel
has no nftables, podwire's rules are those of the Go plugins, and nothing is
done.

Attachments whose network namespace is gone are ignored, and so are chains of
containers that are not in the cache; DEL removes both kinds.
";

const OUTCOME: &str = "\
Exit status: 0 when all rules are podwire's, 1 when some could not be rewritten
or an attachment's file is invalid (the rest is done), 2 for a wrong command
line.

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
