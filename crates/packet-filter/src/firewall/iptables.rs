//! The chains of the Go plugin in iptables' table filter, to the letter: `CNI-FORWARD` with the
//! rules of each address, and `CNI-ISOLATION-STAGE-1` and `-2` with the rules of each bridge.

mod without_program;

use std::net::IpAddr;

use anyhow::{Context, Result, anyhow};
use ipnetwork::IpNetwork;

use super::{Firewall, Ingress};
use crate::backend::Iptables;
use crate::backend::iptables::{committed, delete_rules, settle};
use crate::iptables::table::{FAMILIES, FILTER, Family, Listing, Transaction, option, words};

const FORWARD: &str = "FORWARD";
const ACCEPTED: &str = "CNI-FORWARD";
const STAGE_1: &str = "CNI-ISOLATION-STAGE-1";
const STAGE_2: &str = "CNI-ISOLATION-STAGE-2";

/// The comment of rules that all bridges share.
const POLICIES: &str = "CNI firewall plugin rules (ingressPolicy: same-bridge|isolated)";

/// The same before v1.7 of the Go plugins.
const POLICIES_BEFORE: &str = "CNI firewall plugin rules (ingressPolicy: same-bridge)";

/// Not the Go plugin's: packets to published ports pass, in both directions.
const PUBLISHED: &str =
    "-m conntrack --ctstate DNAT -m comment --comment \"podwire: published ports\" -j RETURN";

/// A rule, as iptables prints it, and its chain.
type Rule = (&'static str, String);

impl Iptables {
    /// Whether the programs of IPv4 are installed.
    ///
    /// # Errors
    /// A directory cannot be searched.
    pub fn is_installed(&self) -> Result<bool> {
        Ok(self.programs.installed(Family::V4)?.is_some())
    }

    /// Fails unless the table filter can be used.
    ///
    /// # Errors
    /// The reason why it cannot be used.
    pub fn try_out_filter(&self) -> Result<()> {
        self.programs.of(Family::V4)?.try_out(FILTER)
    }

    /// Adds the rules of an attachment: no process or one for each family, unless a rule that all
    /// pods share is missing, or the rules may exist (`perhaps`).
    ///
    /// # Errors
    /// What iptables refuses.
    pub fn add_firewall(&self, wanted: &Firewall, perhaps: bool) -> Result<()> {
        for family in FAMILIES {
            let addresses = of(family, &wanted.addresses);
            if addresses.is_empty() {
                continue;
            }
            let program = self.programs.of(family)?;
            let shared = [accepting(wanted), policy(wanted)].concat();
            if !perhaps
                && (without_program::add(&program, family, &shared, &addresses)
                    || program.is_exact() && committed(&program, &quick(&shared, &addresses))?)
            {
                continue;
            }
            let _lock = program.lock()?;
            settle(&program, || {
                let found = program.table(FILTER)?;
                Ok(complete(&shared, &addresses, &found))
            })?;
        }
        Ok(())
    }

    /// Adds the rules of the ingress policy alone, for another back end.
    ///
    /// # Errors
    /// What iptables refuses.
    pub fn add_ingress(&self, wanted: &Firewall) -> Result<()> {
        let shared = policy(wanted);
        for family in FAMILIES {
            if of(family, &wanted.addresses).is_empty() {
                continue;
            }
            let program = self.programs.of(family)?;
            if program.is_exact() && committed(&program, &quick(&shared, &[]))? {
                continue;
            }
            let _lock = program.lock()?;
            settle(&program, || {
                let found = program.table(FILTER)?;
                Ok(complete(&shared, &[], &found))
            })?;
        }
        Ok(())
    }

    /// The table filter.
    pub(crate) fn filter(&self, family: Family) -> Result<Listing> {
        self.programs.of(family)?.table(FILTER)
    }

    /// Adds the missing rules of many attachments.
    pub(crate) fn add_many(&self, rules: &Many, family: Family) -> Result<()> {
        let program = self.programs.of(family)?;
        let _lock = program.lock()?;
        settle(&program, || Ok(rules.missing(&program.table(FILTER)?)))
    }

    /// Removes the exception for published ports, which the Go plugin does not have.
    ///
    /// # Errors
    /// What iptables refuses.
    pub fn isolate_published_ports(&self) -> Result<()> {
        self.clean("remove the exception for published ports", |program, _| {
            delete_rules(program, STAGE_1, |it| it == PUBLISHED)
        })
    }

    /// Removes the rules of these addresses: one process for each family if they exist.
    ///
    /// # Errors
    /// What iptables refuses.
    pub fn remove_firewall(&self, addresses: &[IpAddr]) -> Result<()> {
        self.clean("remove the firewall rules of a pod", |program, family| {
            let addresses = of(family, addresses);
            let rules: Vec<_> = addresses.iter().flat_map(|ip| of_address(*ip)).collect();
            let mut quick = Transaction::new(FILTER);
            rules.iter().for_each(|rule| quick.delete(ACCEPTED, rule));
            if addresses.is_empty() || committed(program, &quick)? {
                return Ok(());
            }
            delete_rules(program, ACCEPTED, |it| rules.contains(it))
        })
    }

    /// Removes the rules of a bridge, and with the last bridge the chains.
    ///
    /// # Errors
    /// What iptables refuses.
    pub fn remove_ingress(&self, bridge: &str) -> Result<()> {
        self.clean("remove the ingress policy of a bridge", |program, _| {
            settle(program, || {
                Ok(without_bridge(bridge, &program.table(FILTER)?))
            })
        })
    }

    /// Fails unless the rules of an attachment exist.
    ///
    /// # Errors
    /// `expected rule […] not found`
    pub fn check_firewall(&self, wanted: &Firewall) -> Result<()> {
        let shared = [accepting(wanted), policy(wanted)].concat();
        let own = |ip: &IpAddr| of_address(*ip).map(|rule| (ACCEPTED, rule)).to_vec();
        self.check_rules(wanted, &shared, own)
    }

    /// Fails unless the rules of the ingress policy exist.
    ///
    /// # Errors
    /// `expected … rule […] not found`
    pub fn check_ingress(&self, wanted: &Firewall) -> Result<()> {
        self.check_rules(wanted, &policy(wanted), |_| Vec::new())
    }

    fn check_rules(
        &self,
        wanted: &Firewall,
        shared: &[Rule],
        own: impl Fn(&IpAddr) -> Vec<Rule>,
    ) -> Result<()> {
        for family in FAMILIES {
            let addresses = of(family, &wanted.addresses);
            if addresses.is_empty() {
                continue;
            }
            let program = self.programs.of(family)?;
            let found = program.table(FILTER)?;
            let missing = |(chain, rule): &&Rule| !has(&found, chain, rule);
            let mut shared = shared.iter().filter(|(_, rule)| rule != PUBLISHED);
            if let Some((chain, rule)) = shared.find(missing) {
                return Err(anyhow!("expected {chain} rule {} not found", list(rule)));
            }
            let own: Vec<_> = addresses.iter().flat_map(&own).collect();
            if let Some((_, rule)) = own.iter().find(missing) {
                return Err(anyhow!("expected rule {} not found", list(rule)));
            }
        }
        Ok(())
    }
}

/// The rules of many attachments in one family.
#[derive(Default)]
pub(crate) struct Many {
    shared: Vec<Rule>,
    addresses: Vec<IpAddr>,
}

impl Many {
    /// The rules of `all`: for each its policy and, if its flag is true, the rules that accept its
    /// packets.
    pub(crate) fn of(all: &[(&Firewall, bool)], family: Family) -> Self {
        let mut many = Self::default();
        for (wanted, accepts) in all {
            let addresses = of(family, &wanted.addresses);
            if addresses.is_empty() {
                continue;
            }
            let accepting = if *accepts {
                accepting(wanted)
            } else {
                Vec::new()
            };
            for rule in accepting.into_iter().chain(policy(wanted)) {
                if !many.shared.contains(&rule) {
                    many.shared.push(rule);
                }
            }
            for ip in addresses.into_iter().filter(|_| *accepts) {
                if !many.addresses.contains(&ip) {
                    many.addresses.push(ip);
                }
            }
        }
        many
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.shared.is_empty()
    }

    /// Adds the rules that are not in the table.
    pub(crate) fn missing(&self, found: &Listing) -> Transaction {
        complete(&self.shared, &self.addresses, found)
    }
}

/// Whether the rule exists, perhaps with the comment of earlier Go plugins.
fn has(found: &Listing, chain: &str, rule: &str) -> bool {
    found.rules(chain).iter().any(|it| is(it, rule))
}

fn is(found: &str, rule: &str) -> bool {
    found == rule || found == rule.replace(POLICIES, POLICIES_BEFORE)
}

/// A rule as Go prints a list of words.
fn list(rule: &str) -> String {
    format!("[{}]", words(rule).join(" "))
}

fn of(family: Family, addresses: &[IpAddr]) -> Vec<IpAddr> {
    let own = addresses.iter().copied();
    own.filter(|ip| family.has(*ip)).collect()
}

fn of_address(ip: IpAddr) -> [String; 2] {
    let ip = IpNetwork::from(ip);
    [
        format!("-d {ip} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"),
        format!("-s {ip} -j ACCEPT"),
    ]
}

fn commented(conditions: &str, comment: &str, target: &str) -> String {
    format!("{conditions}-m comment --comment \"{comment}\" -j {target}")
}

/// The rules of a bridge.
fn of_bridge(
    Ingress {
        bridge, isolated, ..
    }: &Ingress,
) -> Vec<Rule> {
    let policy = if *isolated { "isolated" } else { "same-bridge" };
    let comment = format!("CNI firewall plugin rules (ingressPolicy: {policy})");
    let to_others = format!("-i {bridge} ! -o {bridge} ");
    let mut rules = vec![(STAGE_1, commented(&to_others, &comment, STAGE_2))];
    if *isolated {
        let within = format!("-i {bridge} -o {bridge} ");
        rules.push((STAGE_1, commented(&within, &comment, "DROP")));
    }
    let from_others = format!("-o {bridge} ");
    rules.push((STAGE_2, commented(&from_others, POLICIES, "DROP")));
    rules
}

/// The rules that lead to those of each address.
fn accepting(wanted: &Firewall) -> Vec<Rule> {
    let admin = &wanted.admin_chain;
    let overrides = commented("", "CNI firewall plugin admin overrides", admin);
    vec![
        (
            FORWARD,
            commented("", "CNI firewall plugin rules", ACCEPTED),
        ),
        (ACCEPTED, overrides),
    ]
}

/// The rules of the ingress policy, which all pods behind the bridge share.
fn policy(wanted: &Firewall) -> Vec<Rule> {
    let Some(ingress) = &wanted.ingress else {
        return Vec::new();
    };
    let mut rules = vec![(FORWARD, to_stage_1())];
    rules.extend(of_bridge(ingress));
    rules.extend([STAGE_1, STAGE_2].map(|chain| (chain, end())));
    if ingress.published {
        rules.push((STAGE_1, PUBLISHED.to_owned()));
    }
    rules
}

fn to_stage_1() -> String {
    commented("", POLICIES, STAGE_1)
}

fn end() -> String {
    commented("", POLICIES, "RETURN")
}

/// For a node that has all shared rules; the transaction fails otherwise.
fn quick(shared: &[Rule], addresses: &[IpAddr]) -> Transaction {
    let mut transaction = Transaction::new(FILTER);
    shared
        .iter()
        .for_each(|(chain, rule)| transaction.require(chain, rule));
    for rule in addresses.iter().flat_map(|ip| of_address(*ip)) {
        transaction.append(ACCEPTED, &rule);
    }
    transaction
}

/// Adds everything that the whole table lacks, chains included.
fn complete(shared: &[Rule], addresses: &[IpAddr], found: &Listing) -> Transaction {
    let mut transaction = Transaction::new(FILTER);
    let targets = shared.iter().filter_map(|(_, rule)| option(rule, "-j"));
    let mut chains: Vec<String> = Vec::new();
    for chain in targets.filter(|it| !["DROP", "RETURN"].contains(&it.as_str())) {
        if found.chain(&chain).is_none() && !chains.contains(&chain) {
            transaction.create_empty(&chain);
            chains.push(chain);
        }
    }
    let missing = |chain: &str, rule: &str| !has(found, chain, rule);
    let mut inserted = false;
    for (chain, rule) in shared {
        if rule == PUBLISHED || !missing(chain, rule) {
            continue;
        }
        // A chain ends with the rule that returns; everything else is inserted before it.
        if *rule == end() {
            transaction.append(chain, rule);
        } else {
            transaction.insert(chain, rule);
            inserted |= *chain == STAGE_1;
        }
    }
    // Before the rules of all bridges.
    let is_published = |rule: &String| rule == PUBLISHED;
    let has_published = found.rules(STAGE_1).iter().any(is_published);
    let wants_published = shared.iter().any(|(_, rule)| rule == PUBLISHED);
    if wants_published && !has_published || has_published && inserted {
        if has_published {
            transaction.delete(STAGE_1, PUBLISHED);
        }
        transaction.insert(STAGE_1, PUBLISHED);
    }
    for rule in addresses.iter().flat_map(|ip| of_address(*ip)) {
        if missing(ACCEPTED, &rule) {
            transaction.append(ACCEPTED, &rule);
        }
    }
    transaction
}

/// Removes the rules of `bridge`, whatever its policy was, and the chains if no bridge is left.
fn without_bridge(bridge: &str, found: &Listing) -> Transaction {
    let mut transaction = Transaction::new(FILTER);
    let of = |isolated| {
        let bridge = bridge.to_owned();
        of_bridge(&Ingress {
            bridge,
            isolated,
            published: false,
        })
    };
    let own: Vec<_> = of(true).into_iter().chain(of(false)).collect();
    let is_own = |chain: &str, rule: &String| own.iter().any(|it| it.0 == chain && is(rule, &it.1));
    let mut others = false;
    for chain in [STAGE_1, STAGE_2] {
        for rule in found.rules(chain) {
            if is_own(chain, rule) {
                transaction.delete(chain, rule);
            } else if rule != PUBLISHED && !is(rule, &end()) {
                others = true;
            }
        }
    }
    if others {
        return transaction;
    }
    let mut transaction = Transaction::new(FILTER);
    let jump = to_stage_1();
    let jumps = found.rules(FORWARD).iter().filter(|rule| is(rule, &jump));
    jumps.for_each(|rule| transaction.delete(FORWARD, rule));
    for chain in [STAGE_1, STAGE_2] {
        if found.chain(chain).is_some() {
            transaction.delete_chain(chain);
        }
    }
    transaction
}

/// The transactions of ADD and of the last DEL for a table like `found`.
#[cfg(feature = "fuzzing")]
pub(crate) fn transactions(wanted: &Firewall, found: &Listing) -> [Transaction; 3] {
    let shared = [accepting(wanted), policy(wanted)].concat();
    let bridge = wanted.ingress.as_ref().map_or("cni0", |it| &it.bridge);
    [
        quick(&shared, &wanted.addresses),
        complete(&shared, &wanted.addresses, found),
        without_bridge(bridge, found),
    ]
}

/// Checks the name of a chain in a configuration.
///
/// # Errors
/// iptables allows no such name: it is too long, or has other characters.
pub fn chain_name(text: &str) -> Result<&str> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.:+".contains(c);
    let fits = (1..=28).contains(&text.len()) && text.chars().all(plain) && !text.starts_with('-');
    fits.then_some(text)
        .with_context(|| format!("{text:?} is no name of an iptables chain"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn firewall(ingress: Option<bool>) -> Firewall {
        Firewall {
            addresses: vec!["10.22.0.2".parse().unwrap()],
            zone: "trusted".into(),
            admin_chain: "CNI-ADMIN".into(),
            ingress: ingress.map(|isolated| Ingress {
                bridge: "cni0".into(),
                isolated,
                published: true,
            }),
        }
    }

    fn add(wanted: &Firewall, found: &Listing) -> Transaction {
        let shared = [accepting(wanted), policy(wanted)].concat();
        complete(&shared, &wanted.addresses, found)
    }

    #[test]
    fn the_chains_are_those_of_the_go_plugin() {
        let wanted = firewall(Some(true));
        let expected = r#"*filter
:CNI-FORWARD - [0:0]
:CNI-ADMIN - [0:0]
:CNI-ISOLATION-STAGE-1 - [0:0]
:CNI-ISOLATION-STAGE-2 - [0:0]
-I FORWARD -m comment --comment "CNI firewall plugin rules" -j CNI-FORWARD
-I CNI-FORWARD -m comment --comment "CNI firewall plugin admin overrides" -j CNI-ADMIN
-I FORWARD -m comment --comment "CNI firewall plugin rules (ingressPolicy: same-bridge|isolated)" -j CNI-ISOLATION-STAGE-1
-I CNI-ISOLATION-STAGE-1 -i cni0 ! -o cni0 -m comment --comment "CNI firewall plugin rules (ingressPolicy: isolated)" -j CNI-ISOLATION-STAGE-2
-I CNI-ISOLATION-STAGE-1 -i cni0 -o cni0 -m comment --comment "CNI firewall plugin rules (ingressPolicy: isolated)" -j DROP
-I CNI-ISOLATION-STAGE-2 -o cni0 -m comment --comment "CNI firewall plugin rules (ingressPolicy: same-bridge|isolated)" -j DROP
-A CNI-ISOLATION-STAGE-1 -m comment --comment "CNI firewall plugin rules (ingressPolicy: same-bridge|isolated)" -j RETURN
-A CNI-ISOLATION-STAGE-2 -m comment --comment "CNI firewall plugin rules (ingressPolicy: same-bridge|isolated)" -j RETURN
-I CNI-ISOLATION-STAGE-1 -m conntrack --ctstate DNAT -m comment --comment "podwire: published ports" -j RETURN
-A CNI-FORWARD -d 10.22.0.2/32 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A CNI-FORWARD -s 10.22.0.2/32 -j ACCEPT
COMMIT
"#;
        let added = add(&wanted, &Listing::default());
        assert_eq!(added.to_string(), expected);
    }

    /// The table after the rules of `wanted` were added to an empty one.
    fn table(wanted: &Firewall) -> Listing {
        let added = add(wanted, &Listing::default()).to_string();
        Listing::parse(&added.replace("-I ", "-A "))
    }

    #[test]
    fn to_repeat_it_changes_nothing() {
        for ingress in [None, Some(false), Some(true)] {
            let wanted = firewall(ingress);
            assert!(add(&wanted, &table(&wanted)).is_empty());
        }
    }

    #[test]
    fn published_ports_stay_first_when_a_bridge_is_added() {
        let mut other = firewall(Some(false));
        other.ingress = Some(Ingress {
            bridge: "cni1".into(),
            isolated: false,
            published: false,
        });
        let added = add(&other, &table(&firewall(Some(false)))).to_string();
        let lines: Vec<_> = added.lines().collect();
        let at = |begin: &str| {
            lines
                .iter()
                .position(|line| line.starts_with(begin))
                .unwrap()
        };
        assert!(at("-I CNI-ISOLATION-STAGE-1 -i cni1") < at("-D CNI-ISOLATION-STAGE-1"));
        assert!(at("-D CNI-ISOLATION-STAGE-1") < at("-I CNI-ISOLATION-STAGE-1 -m conntrack"));
    }

    #[test]
    fn the_chains_go_with_the_last_bridge() {
        let found = table(&firewall(Some(true)));
        let removed = without_bridge("cni0", &found).to_string();
        let expected = "*filter\n-D FORWARD -m comment --comment \"CNI firewall plugin rules \
                        (ingressPolicy: same-bridge|isolated)\" -j CNI-ISOLATION-STAGE-1\n\
                        -F CNI-ISOLATION-STAGE-1\n-X CNI-ISOLATION-STAGE-1\n\
                        -F CNI-ISOLATION-STAGE-2\n-X CNI-ISOLATION-STAGE-2\nCOMMIT\n";
        assert_eq!(removed, expected);
        // Rules of another bridge keep them.
        assert!(without_bridge("cni1", &found).is_empty());
        assert!(without_bridge("cni1", &Listing::default()).is_empty());
    }

    #[test]
    fn a_rule_is_listed_as_go_does() {
        let wanted = firewall(None);
        let (_, rule) = &accepting(&wanted)[0];
        assert_eq!(
            list(rule),
            "[-m comment --comment CNI firewall plugin rules -j CNI-FORWARD]"
        );
    }
}
