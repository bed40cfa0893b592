//! Chains of nftables that drop what is forwarded, and are not those of iptables.

use std::collections::BTreeSet;

use super::Examination;
use super::finding::{About, Check, Finding, Severity, quoted};
use super::forwarding::Routed;

pub const DROPPING: Check = Check {
    id: "PW007",
    severity: Severity::Error,
    title: "a chain of nftables drops what is forwarded, and no rule of it accepts packets of a network",
    why: "Its policy is drop, as in many an /etc/nftables.conf. What other tables accept is dropped there \
          nevertheless, so the pods reach only each other.",
};

/// A table as nft prints it.
struct Table {
    /// The rules of each chain.
    chains: Vec<(String, Vec<String>)>,
}

pub fn check(routed: &Routed, found: &mut Examination) {
    let nftables = packet_filter::Nftables::find();
    let dropping = nftables.and_then(|it| match it {
        Some(it) => it.dropping_forwarded(),
        None => Ok(Vec::new()),
    });
    let dropping = match dropping {
        Ok(dropping) => dropping,
        Err(error) => return found.unread("chains of nftables", format!("{error:#}")),
    };
    for (family, table, chain) in dropping {
        let families = match family {
            packet_filter::Family::Ip => &routed[..1],
            packet_filter::Family::Ip6 => &routed[1..],
            _ => &routed[..],
        };
        // That of iptables is another check.
        let is_iptables = table == "filter" && chain == "FORWARD" && families.len() == 1;
        if is_iptables || families.iter().all(|it| it.is_empty()) {
            continue;
        }
        let place = format!("{family} {table} {chain}");
        let text = match packet_filter::table_text(&family.to_string(), &table) {
            Ok(text) => Table::parse(&text),
            Err(error) => {
                found.unread(&place, format!("{error:#}"));
                continue;
            }
        };
        let networks = families.iter().flatten();
        let pairs = networks.flat_map(|(name, all)| all.iter().map(move |it| (name, it)));
        for (network, interface) in pairs.collect::<BTreeSet<_>>() {
            if text.accepts(&chain, interface) {
                continue;
            }
            let what = format!("{place} drops what is forwarded from and to {interface}");
            let finding = Finding::new(&DROPPING, About::Network(network.clone()), what);
            let finding = finding.shown_by(format!("nft list chain {place}"), "policy drop");
            let accept = |field: &str| {
                let rule = format!("insert rule {place} {field} \"{interface}\" accept");
                format!("nft {}", quoted(&rule))
            };
            found.add(finding.command(format!("{} && {}", accept("iifname"), accept("oifname"))));
        }
    }
}

impl Table {
    fn parse(text: &str) -> Self {
        let mut chains = Vec::<(String, Vec<String>)>::new();
        let mut is_in_chain = false;
        for line in text.lines().map(str::trim) {
            match line
                .strip_prefix("chain ")
                .and_then(|it| it.strip_suffix(" {"))
            {
                Some(name) => {
                    chains.push((name.to_owned(), Vec::new()));
                    is_in_chain = true;
                }
                None if line == "}" => is_in_chain = false,
                None if is_in_chain => {
                    let chain = chains.last_mut();
                    chain.into_iter().for_each(|it| it.1.push(line.to_owned()));
                }
                None => {}
            }
        }
        Self { chains }
    }

    /// Whether a rule of the chain, or of one that it leads to, may accept packets from `interface`. Rules
    /// for addresses count, and so do maps: it is not certain that they fit.
    fn accepts(&self, chain: &str, interface: &str) -> bool {
        let (mut left, mut seen) = (vec![chain], BTreeSet::new());
        while let Some(chain) = left.pop() {
            if !seen.insert(chain) {
                continue;
            }
            let rules = self.chains.iter().filter(|(name, _)| name == chain);
            for rule in rules.flat_map(|(_, rules)| rules) {
                // A comment may say anything.
                let rule = rule.split(" comment \"").next().unwrap_or_default();
                if !concerns(rule, interface) {
                    continue;
                }
                let words: Vec<_> = rule.split_whitespace().collect();
                if rule.contains(" vmap @") || words.contains(&"accept") {
                    return true;
                }
                let leads = |it: &[&str]| matches!(it[0], "jump" | "goto");
                let targets = words.windows(2).filter(|it| leads(it)).map(|it| it[1]);
                left.extend(targets.map(|it| it.trim_end_matches(',')));
            }
        }
        false
    }
}

/// Whether new connections from `interface` may match a rule.
fn concerns(rule: &str, interface: &str) -> bool {
    let input = ["iifname ", "iif "].iter().find_map(|it| after(rule, it));
    let is_named = input.is_none_or(|it| names(it, interface));
    // Towards another network alone.
    let is_output = input.is_none() && (rule.contains("oifname ") || rule.contains("oif "));
    let is_new = after(rule, "ct state ").is_none_or(|it| match it.strip_prefix("vmap ") {
        Some(map) => map.contains("new : accept") || map.starts_with('@'),
        None => it
            .split_whitespace()
            .next()
            .is_some_and(|it| it.contains("new")),
    });
    is_named && !is_output && is_new
}

fn after<'a>(rule: &'a str, field: &str) -> Option<&'a str> {
    let (before, rest) = rule.split_once(field)?;
    (before.is_empty() || before.ends_with(' ')).then_some(rest)
}

/// Whether the right side of `iifname`, such as `"cni0"`, `"cni*"`, `{ "a", "b" }`, `!= "a"` or `@set`,
/// has an interface.
fn names(right: &str, interface: &str) -> bool {
    let (right, is_negated) = match right.strip_prefix("!= ") {
        Some(right) => (right, true),
        None => (right, false),
    };
    if right.starts_with('@') || right.starts_with("vmap @") || right.starts_with(". ") {
        return true;
    }
    let list = match right.split_once('{') {
        Some(("" | "vmap ", list)) => list.split('}').next().unwrap_or_default(),
        _ => right.split_whitespace().next().unwrap_or_default(),
    };
    let mut all = list.split('"').skip(1).step_by(2);
    let is_there = all.any(|it| match it.strip_suffix('*') {
        Some(prefix) => interface.starts_with(prefix),
        None => it == interface,
    });
    is_there != is_negated
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accepts(rules: &str) -> bool {
        let text = format!(
            "table inet filter {{\n set a {{\n type ipv4_addr\n }}\n chain forward {{\n{rules}\n }}\n \
             chain other {{\n accept\n }}\n}}\n"
        );
        Table::parse(&text).accepts("forward", "cni0")
    }

    #[test]
    fn rules_of_other_interfaces_and_old_connections_accept_nothing() {
        for rule in [
            "type filter hook forward priority filter; policy drop;",
            "ct state established,related accept",
            "ct state vmap { established : accept, related : accept, invalid : drop }",
            "iifname \"eth0\" accept",
            "iifname { \"eth0\", \"lan*\" } jump other",
            "iifname != \"cni0\" accept",
            "oifname \"docker0\" accept",
            "counter drop comment \"please accept\"",
        ] {
            assert!(!accepts(rule), "{rule}");
        }
    }

    #[test]
    fn what_may_accept_is_no_fault() {
        for rule in [
            "accept",
            "iifname \"cni0\" accept",
            "iifname \"cni*\" oifname \"eth0\" counter accept",
            "iifname { \"eth0\", \"cni0\" } jump other",
            "iifname != \"eth0\" accept",
            "ip saddr 10.0.0.0/8 accept",
            "iifname @ours accept",
            "iifname vmap { \"cni0\" : jump other, \"lo\" : accept }",
            "ct state new,established accept",
            "meta mark vmap @verdicts",
        ] {
            assert!(accepts(rule), "{rule}");
        }
    }
}
