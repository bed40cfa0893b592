//! Masquerade in iptables: a chain of the container on its network, and a jump to it from POSTROUTING
//! for each address.

use std::collections::HashSet;
use std::net::IpAddr;

use anyhow::Result;
use cni::conf::ValidAttachment;
use cni::{Attachment, names};
use ipnetwork::IpNetwork;

use crate::iptables::table::{Family, Listing, NAT, Transaction, jumps_to, option, word};
use crate::masquerade::Masquerade;

/// The rules of a pod in one family.
#[derive(Debug)]
pub struct Rules {
    chain: String,
    jumps: Vec<(IpAddr, String)>,
    accepts: Vec<String>,
    masquerade: String,
    /// The comment in every rule, without quotes.
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

    /// For a chain that does not exist yet, which is nearly always so; otherwise the transaction
    /// fails.
    pub fn create(&self) -> Transaction {
        let mut transaction = Transaction::new(NAT);
        transaction.create(&self.chain);
        self.fill(&mut transaction, &self.accepts);
        for (_, jump) in &self.jumps {
            transaction.append(POSTROUTING, jump);
        }
        transaction
    }

    /// For a chain that may exist in `listing`: the ADD is repeated, or another interface of the
    /// container is on the network, whose subnets stay.
    pub fn complete(&self, listing: &Listing) -> Transaction {
        let mut accepts: Vec<_> = listing.rules(&self.chain).to_vec();
        accepts.retain(|rule| rule.ends_with("-j ACCEPT") && !self.accepts.contains(rule));
        accepts.extend_from_slice(&self.accepts);
        let mut transaction = Transaction::new(NAT);
        transaction.create_empty(&self.chain);
        self.fill(&mut transaction, &accepts);
        // Two pairs of network and container share a chain if their names, joined, are the same.
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

    /// The subnets of all addresses come before the masquerade. After it, where the Go plugins put
    /// those of a second interface, they would never be reached.
    fn fill(&self, transaction: &mut Transaction, accepts: &[String]) {
        for accept in accepts {
            transaction.append(&self.chain, accept);
        }
        transaction.append(&self.chain, &self.masquerade);
    }

    /// Fails at the first rule that is missing.
    pub fn check(&self) -> Transaction {
        let mut transaction = Transaction::new(NAT);
        for (_, jump) in &self.jumps {
            transaction.require(POSTROUTING, jump);
        }
        for rule in self.accepts.iter().chain([&self.masquerade]) {
            transaction.require(&self.chain, rule);
        }
        transaction
    }
}

/// Bytes of a comment that iptables keeps (XT_MAX_COMMENT_LEN without the zero byte).
pub const COMMENT: usize = 255;

/// The chain that has all jumps.
pub const POSTROUTING: &str = "POSTROUTING";

/// The chain of a container on a network. The interface is not in its name.
pub fn chain(owner: &Attachment) -> String {
    chain_of(&owner.network, owner.container_id.as_str())
}

fn chain_of(network: &str, container_id: &str) -> String {
    names::prefixed(28, "CNI-", &format!("{network}{container_id}"))
}

/// Removes the jumps of known addresses, and the chain. The transaction fails if another interface
/// still needs the chain.
pub fn remove(owner: &Attachment, addresses: &[IpAddr]) -> Transaction {
    let chain = chain(owner);
    let mut transaction = Transaction::new(NAT);
    for ip in addresses {
        transaction.delete(POSTROUTING, &jump(owner, *ip));
    }
    transaction.delete_chain(&chain);
    transaction
}

/// Removes what `listing` has of the chain and of POSTROUTING: the jumps of `addresses`, or all of
/// this owner if there are none, and the chain with the last jump. Another owner may have the same
/// chain: see [`Rules::complete`].
pub fn remove_found(owner: &Attachment, addresses: &[IpAddr], listing: &Listing) -> Transaction {
    let (chain, comment) = (chain(owner), comment_text(owner));
    let mut transaction = Transaction::new(NAT);
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

/// Whether a chain masquerades a pod, by the comments of its rules.
pub fn is_chain(chain: &str, rules: &[String]) -> bool {
    let begins = |rule: &String| {
        option(rule, "--comment").is_some_and(|comment| comment.starts_with("name: \""))
    };
    chain.starts_with("CNI-") && rules.iter().any(|rule| ends(rule) && begins(rule))
}

fn ends(rule: &str) -> bool {
    rule.contains(" -j ACCEPT") || rule.contains(" -j MASQUERADE")
}

/// Removes the rules of the whole table for pods of `network` that are not `valid`.
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
    let mut transaction = Transaction::new(NAT);
    let mut needed = HashSet::new();
    for rule in listing.rules(POSTROUTING) {
        let target = option(rule, "-j");
        if is_of_network(rule) && target.as_deref().is_some_and(is_stale) {
            transaction.delete(POSTROUTING, rule);
        } else {
            needed.extend(target);
        }
    }
    // The rules of a chain that nothing leads to any more name its owner.
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

/// Whether a jump is for an address: for it alone, or, as plugins before 0.9 wrote it, for its subnet.
fn is_from(rule: &str, ip: IpAddr) -> bool {
    let source = option(rule, "-s").and_then(|text| text.parse::<IpNetwork>().ok());
    source.is_some_and(|source| source.contains(ip))
}

/// The network's name and the container's id have no character that is escaped, so the Go plugins'
/// `%q` and `{:?}` print the same.
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

/// The option with a network, and a space; nothing for all addresses, as iptables itself prints it.
pub fn subnet(option: &str, network: IpNetwork) -> String {
    if network.prefix() == 0 {
        return String::new();
    }
    format!("{option} {}/{} ", network.network(), network.prefix())
}

#[cfg(test)]
mod tests;
