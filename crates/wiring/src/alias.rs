//! The alias of a link names the attachment that the link belongs to, so that DEL and GC find it.

use cni::conf::ValidAttachment;
use cni::request::alias_prefix;
use netlink::Link;

/// The start of every alias that podwire sets.
const MARK: &str = "podwire:";

/// Whether podwire has set the alias of `link`.
pub(crate) fn has_mark(link: &Link) -> bool {
    has_prefix(link, MARK)
}

/// Whether `link` belongs to an attachment to `network`.
pub fn is_of_network(link: &Link, network: &str) -> bool {
    has_prefix(link, &alias_prefix(network))
}

/// The aliases of valid attachments, without those whose id or name is malformed.
pub fn of_valid(network: &str, valid: &[ValidAttachment]) -> Vec<String> {
    let owners = valid.iter().filter_map(|it| it.owner(network));
    owners.map(|it| it.alias()).collect()
}

/// GC: a test whether a link belongs to an attachment to `network` that is not `valid`.
pub fn stale(network: &str, valid: &[ValidAttachment]) -> impl Fn(&Link) -> bool + use<> {
    let (prefix, used) = (alias_prefix(network), of_valid(network, valid));
    move |link| {
        has_prefix(link, &prefix) && link.alias.as_ref().is_some_and(|it| !used.contains(it))
    }
}

fn has_prefix(link: &Link, prefix: &str) -> bool {
    let alias = link.alias.as_deref();
    alias.is_some_and(|it| it.starts_with(prefix))
}
