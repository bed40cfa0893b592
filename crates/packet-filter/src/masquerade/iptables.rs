//! The rules that masquerade a pod: a chain of its container on its network,
//! and a jump to it from POSTROUTING for each address.

use std::collections::HashSet;
use std::net::IpAddr;

use anyhow::Result;
use cni::conf::ValidAttachment;
use cni::{Attachment, names};
use ipnetwork::IpNetwork;

use crate::iptables::table::{Family, Listing, Transaction, jumps_to, option, word};
use crate::masquerade::Masquerade;

/// What is wanted in one family.
#[derive(Debug)]
pub struct Rules {
    chain: String,
    jumps: Vec<(IpAddr, String)>,
    accepts: Vec<String>,
    masquerade: String,
    /// As it is in every rule, without quotes.
    comment: String,
}

impl Rules {
    /// `None` if the pod has no address of that family. Fails if a name cannot be
    /// part of a rule.
    pub fn new(wanted: &Masquerade, family: Family) -> Result<Option<Self>> {
        let all = wanted.addresses.iter().copied();
        let addresses: Vec<_> = all.filter(|it| family.has(it.ip())).collect();
        if addresses.is_empty() {
            return Ok(None);
        }
        let chain = chain(&wanted.owner);
        let comment = comment(&wanted.owner);
        let mut accepts = Vec::new();
        let except = wanted.except.iter().filter(|it| family.has(it.ip()));
        for address in addresses.iter().chain(except) {
            let accept = format!("{}{comment} -j ACCEPT", subnet("-d", *address));
            if !accepts.contains(&accept) {
                accepts.push(accept);
            }
        }
        let random = if wanted.random_fully {
            " --random-fully"
        } else {
            ""
        };
        let multicast = family.multicast();
        let device = match &wanted.not_through {
            Some(name) => format!("! -o {} ", word(name)?),
            None => String::new(),
        };
        Ok(Some(Self {
            jumps: addresses
                .iter()
                .map(|it| (it.ip(), jump(&wanted.owner, it.ip())))
                .collect(),
            masquerade: format!("! -d {multicast} {device}{comment} -j MASQUERADE{random}"),
            comment: comment_text(&wanted.owner),
            accepts,
            chain,
        }))
    }

    /// For a chain that does not exist yet, which is nearly always so: all
    /// fails if it does.
    pub fn create(&self) -> Transaction {
        let mut transaction = Transaction::new();
        transaction.create(&self.chain);
        self.fill(&mut transaction, &self.accepts);
        for (_, jump) in &self.jumps {
            transaction.append(POSTROUTING, jump);
        }
        transaction
    }

    /// For a chain that may exist, as `listing` has it: an ADD that is repeated,
    /// or another interface of the container on the network, whose subnets stay.
    pub fn complete(&self, listing: &Listing) -> Transaction {
        let mut accepts: Vec<_> = listing.rules(&self.chain).to_vec();
        accepts.retain(|rule| rule.ends_with("-j ACCEPT") && !self.accepts.contains(rule));
        accepts.extend_from_slice(&self.accepts);
        let mut transaction = Transaction::new();
        transaction.create_empty(&self.chain);
        self.fill(&mut transaction, &accepts);
        // Names of network and container that read the same one after the other share a chain.
        let others = listing.rules(&self.chain).iter();
        for rule in others.filter(|it| it.contains("-j MASQUERADE") && !self.is_own(it)) {
            transaction.append(&self.chain, rule);
        }
        for (ip, jump) in &self.jumps {
            let mut rules = listing.rules(POSTROUTING).iter();
            if !rules.any(|rule| jumps_to(rule, &self.chain) && is_from(rule, *ip)) {
                transaction.append(POSTROUTING, jump);
            }
        }
        transaction
    }

    fn is_own(&self, rule: &str) -> bool {
        option(rule, "--comment").as_ref() == Some(&self.comment)
    }

    /// The subnets of all addresses come before the masquerade: after it, as
    /// the Go plugins have a second one, they would never be reached.
    fn fill(&self, transaction: &mut Transaction, accepts: &[String]) {
        for accept in accepts {
            transaction.append(&self.chain, accept);
        }
        transaction.append(&self.chain, &self.masquerade);
    }

    /// Fails with the first rule that is missing.
    pub fn check(&self) -> Transaction {
        let mut transaction = Transaction::new();
        for (_, jump) in &self.jumps {
            transaction.require(POSTROUTING, jump);
        }
        for rule in self.accepts.iter().chain([&self.masquerade]) {
            transaction.require(&self.chain, rule);
        }
        transaction
    }
}

/// iptables keeps so much of a comment (XT_MAX_COMMENT_LEN, less its end).
pub const COMMENT: usize = 255;

/// The chain in which all jumps are.
pub const POSTROUTING: &str = "POSTROUTING";

/// The chain of a container on a network. The interface is not in its name.
pub fn chain(owner: &Attachment) -> String {
    chain_of(&owner.network, owner.container_id.as_str())
}

fn chain_of(network: &str, container_id: &str) -> String {
    names::prefixed(28, "CNI-", &format!("{network}{container_id}"))
}

/// Removes the jumps of known addresses and with them the chain, unless another
/// interface still needs it: then all fails.
pub fn remove(owner: &Attachment, addresses: &[IpAddr]) -> Transaction {
    let chain = chain(owner);
    let mut transaction = Transaction::new();
    for ip in addresses {
        transaction.delete(POSTROUTING, &jump(owner, *ip));
    }
    transaction.delete_chain(&chain);
    transaction
}

/// Removes what `listing` has (of the chain, and of POSTROUTING): the jumps of
/// `addresses`, or all of this owner if there are none; the chain with the last jump. Another
/// owner may have the same chain: see [`Rules::complete`].
pub fn remove_found(owner: &Attachment, addresses: &[IpAddr], listing: &Listing) -> Transaction {
    let (chain, comment) = (chain(owner), comment_text(owner));
    let mut transaction = Transaction::new();
    let mut others = false;
    for rule in listing.rules(POSTROUTING) {
        if !jumps_to(rule, &chain) {
            continue;
        }
        let is_own = option(rule, "--comment").is_none_or(|it| it == comment);
        let is_from = addresses.is_empty() || addresses.iter().any(|ip| is_from(rule, *ip));
        if is_own && is_from {
            transaction.delete(POSTROUTING, rule);
        } else {
            others = true;
        }
    }
    if !others && listing.chain(&chain).is_some() {
        transaction.delete_chain(&chain);
    }
    transaction
}

/// Whether a chain masquerades a pod: it says so in its own rules.
pub fn is_chain(chain: &str, rules: &[String]) -> bool {
    let begins = |rule: &String| {
        option(rule, "--comment").is_some_and(|comment| comment.starts_with("name: \""))
    };
    chain.starts_with("CNI-") && rules.iter().any(|rule| ends(rule) && begins(rule))
}

fn ends(rule: &str) -> bool {
    rule.contains(" -j ACCEPT") || rule.contains(" -j MASQUERADE")
}

/// Removes what the whole table has for pods of `network` that are not `valid`.
pub fn collect(network: &str, valid: &[ValidAttachment], listing: &Listing) -> Transaction {
    let begin = format!("name: {network:?} id: \"");
    let valid: Vec<_> = valid
        .iter()
        .map(|it| chain_of(network, &it.container_id))
        .collect();
    let is_of_network = |rule: &String| {
        option(rule, "--comment").is_some_and(|comment| comment.starts_with(&begin))
    };
    let is_stale = |chain: &str| chain.starts_with("CNI-") && !valid.iter().any(|it| it == chain);
    let mut transaction = Transaction::new();
    let mut needed = HashSet::new();
    for rule in listing.rules(POSTROUTING) {
        let target = option(rule, "-j");
        if is_of_network(rule) && target.as_deref().is_some_and(is_stale) {
            transaction.delete(POSTROUTING, rule);
        } else {
            needed.extend(target);
        }
    }
    // A chain that nothing leads to any more says in its own rules whose it was.
    for (chain, rules) in listing.chains() {
        let is_masquerade = |rule: &String| is_of_network(rule) && ends(rule);
        if is_stale(chain) && !needed.contains(chain) && rules.iter().any(is_masquerade) {
            transaction.delete_chain(chain);
        }
    }
    transaction
}

/// `-s ADDRESS … -j CHAIN`, as iptables prints it.
fn jump(owner: &Attachment, ip: IpAddr) -> String {
    let (chain, comment) = (chain(owner), comment(owner));
    format!("{}{comment} -j {chain}", subnet("-s", IpNetwork::from(ip)))
}

/// Whether a jump is of an address: of it alone, or, as plugins before 0.9
/// wrote it, of its subnet.
fn is_from(rule: &str, ip: IpAddr) -> bool {
    let source = option(rule, "-s").and_then(|text| text.parse::<IpNetwork>().ok());
    source.is_some_and(|source| source.contains(ip))
}

/// The network's name and the container's id have no letter to be escaped: the
/// Go plugins' `%q` and `{:?}` agree on them.
fn comment(owner: &Attachment) -> String {
    format!("-m comment --comment {:?}", comment_text(owner))
}

fn comment_text(owner: &Attachment) -> String {
    let mut comment = format!(
        "name: {:?} id: {:?}",
        owner.network,
        owner.container_id.as_str()
    );
    comment.truncate(COMMENT);
    comment
}

/// The option with a network, and a blank; nothing for all addresses, as
/// iptables itself prints it.
pub fn subnet(option: &str, network: IpNetwork) -> String {
    if network.prefix() == 0 {
        return String::new();
    }
    format!("{option} {}/{} ", network.network(), network.prefix())
}

#[cfg(test)]
mod tests;
