//! `podwire release`: give back to the Go plugins.

use anyhow::Result;

use super::node::{self, Task};
use super::{Command, Verdict};
use crate::arguments::Arguments;

pub const COMMAND: Command = Command {
    name: "release",
    summary: "rewrite podwire's rules as those of the Go plugins",
    about: ABOUT,
    options: node::OPTIONS,
    outcome: OUTCOME,
    run,
};

const ABOUT: &str = "\
Usage: podwire release [OPTION]... [NETWORK]

The way back from `podwire adopt`, before the Go plugins take the place of
podwire's: rewrites what podwire's plugins laid down for the attachments in the
cache, or for those to NETWORK, so that the Go plugins' CHECK and DEL find it.
It goes where the Go plugins would have put it: to iptables, or to their own
nftables table where a configuration names nftables or there is no iptables.

What is new comes first, what is old goes last: no pod is without in between,
and connections that live go on. With the last port podwire's own tables go, and
with them what keeps neighbours from 127.0.0.0/8 of the node; the Go plugins
have nothing of the kind.

Ports of pods that are gone are removed: the Go plugins' DEL has left them where
podwire was replaced without this command, and they would lead to an address
that nothing has. What may be of a living pod that is not in the cache stays,
and the command fails: run it again with the --cache-dir of that pod's runtime.

Attachments whose network namespace is gone are passed over, and so are
published ports with conditions in nftables' language: the Go plugins would
apply those of one pod to all.
";

const OUTCOME: &str = "\
Exit status: 0 when all is in the Go plugins' layout but for what was told, 1
when something could not be rewritten or an attachment's file makes no sense
(the rest is done all the same), 2 for a command line that makes no sense.

Examples:
  podwire release --dry-run
  podwire release
";

fn run(arguments: &Arguments) -> Result<Verdict> {
    let task = Task {
        run: &|pods, dry| packet_filter::node::release(&pods.wanted, dry),
        done: "released",
        nothing: "there was nothing of podwire",
        ours: false,
    };
    node::run(arguments, &task)
}
