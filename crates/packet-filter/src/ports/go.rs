//! Published ports as the nftables back end of the Go plugins writes them: a rule for each mapping,
//! whose comment is the container's id.
//!
//! Source: `plugins/meta/portmap/portmap_nftables.go`.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use ipnetwork::IpNetwork;
use nftables::listing::{self, in_chain};
use nftables::{
    Chain, Error, Family, Listed, Point, Rule, Side, Socket, Statement, Table, Transaction,
};

use super::layout::{FAMILIES, HOSTPORTS, mappings, pod};
use crate::ports::{HostPorts, Snat};

const MASQUERADING: &str = "masquerading";
/// Where older versions had the mappings of a single address.
const OLD_HOSTPORTS: &str = "hostip_hostports";
const ALL: &str = "hostports_all";

/// The table of `family`.
pub fn table(family: Family) -> Table {
    Table::commented(family, "cni_hostport", "CNI portmap plugin")
}

/// Whether the Go plugins published all this. As they do, it counts the rules.
pub fn published(socket: &Socket, wanted: &HostPorts, family: Family) -> Result<bool, Error> {
    let rules = listing::rules(socket, table(family))?;
    let id = wanted.owner.container_id.as_str();
    let count = |chain| {
        in_chain(&rules, chain)
            .filter(|it| it.comment == id)
            .count()
    };
    let masquerading = match (wanted.snat, family) {
        (Snat::Off, _) => 0,
        (Snat::Hairpin, Family::Ip) => 2,
        (Snat::Hairpin | Snat::All, _) => 1,
    };
    let mappings = mappings(wanted, family).count();
    Ok(count(HOSTPORTS) >= mappings && count(MASQUERADING) >= masquerading)
}

/// The rules of both families.
pub struct Rules(Vec<(Family, Vec<Listed>)>);

impl Rules {
    /// Reads them.
    pub fn read(socket: &Socket) -> Result<Self, Error> {
        let read = |family| Ok((family, listing::rules(socket, table(family))?));
        let families = FAMILIES.into_iter().map(read);
        families.collect::<Result<_, _>>().map(Self)
    }

    /// The rules of `wanted`. Others of the same container belong to its attachments to other
    /// networks, or to mappings that it once had.
    fn of<'a>(&'a self, wanted: &HostPorts) -> Vec<(Family, &'a Listed)> {
        let id = wanted.owner.container_id.as_str();
        let mut of = Vec::new();
        for (family, found) in &self.0 {
            let rules = rules(wanted, *family);
            let is_own =
                |it: &&Listed| it.comment == id && rules.iter().any(|(_, rule)| it.does(rule));
            of.extend(found.iter().filter(is_own).map(|it| (*family, it)));
        }
        of
    }

    /// The containers that have rules, sorted.
    pub fn containers(&self) -> BTreeSet<String> {
        let rules = self.0.iter().flat_map(|(_, found)| found);
        let commented = rules.filter(|it| !it.comment.is_empty());
        commented.map(|it| it.comment.clone()).collect()
    }

    /// Whether there is any rule of `wanted`.
    pub fn has(&self, wanted: &HostPorts) -> bool {
        !self.of(wanted).is_empty()
    }

    /// Changes that remove the rules of all of these; with the last rule of any container, the
    /// table.
    pub fn removal(&self, all: &[&HostPorts]) -> Transaction {
        let mut changes = Transaction::new();
        for (family, found) in &self.0 {
            let rules = all.iter().flat_map(|wanted| self.of(wanted));
            let own: Vec<_> = rules.filter(|(of, _)| of == family).collect();
            let is_of_other = |it: &Listed| {
                let mut own = own.iter();
                !it.comment.is_empty() && !own.any(|(_, own)| own.handle == it.handle)
            };
            if !own.is_empty() && !found.iter().any(is_of_other) {
                changes.delete_table(table(*family));
            } else {
                own.into_iter().for_each(|(_, it)| changes.delete_rule(it));
            }
        }
        changes
    }

    /// Changes that add the missing rules of all of these, the oldest pod first. The newer of two
    /// pods gets a port that both want, and in these chains the first rule wins.
    pub fn additions(&self, all: &[&HostPorts]) -> Transaction {
        let mut changes = Transaction::new();
        for (family, found) in &self.0 {
            let mut missing = Transaction::new();
            for wanted in all.iter().rev() {
                let id = wanted.owner.container_id.as_str();
                for (chain, rule) in rules(wanted, *family) {
                    let rule = rule.comment(id);
                    if !in_chain(found, chain).any(|it| it.is(&rule)) {
                        missing.add_rule(table(*family), chain, rule);
                    }
                }
            }
            if !missing.is_empty() {
                changes.extend(base(*family));
                changes.extend(missing);
            }
        }
        changes
    }
}

/// The rules of a pod, each with its chain.
fn rules(wanted: &HostPorts, family: Family) -> Vec<(&'static str, Rule)> {
    let Some(ip) = pod(wanted, family) else {
        return Vec::new();
    };
    let mut rules = Vec::new();
    for mapping in mappings(wanted, family) {
        let mut statements = Vec::new();
        if let Some(host) = mapping.specific_host_ip() {
            statements.push(Statement::Address(Side::Destination, host.into()));
        }
        statements.push(Statement::Port(mapping.protocol, mapping.host_port));
        let to = SocketAddr::new(ip, mapping.container_port);
        statements.push(Statement::RedirectTo(to));
        rules.push((HOSTPORTS, Rule::new(statements)));
    }
    if rules.is_empty() || wanted.snat == Snat::Off {
        return rules;
    }
    let mut sources = vec![IpNetwork::from(ip)];
    if family == Family::Ip {
        sources.push(IpNetwork::from(IpAddr::V4(Ipv4Addr::LOCALHOST)));
    }
    if wanted.snat == Snat::All {
        // Version 1.9.1 ignores masqAll and counts the others; later ones have this alone.
        sources.insert(0, IpNetwork::new(ip, 0).unwrap_or(ip.into()));
    }
    rules.extend(sources.into_iter().map(|source| {
        let masquerade = Rule::new([
            Statement::Address(Side::Source, source),
            Statement::Address(Side::Destination, ip.into()),
            Statement::Masquerade {
                fully_random: false,
            },
        ]);
        (MASQUERADING, masquerade)
    }));
    rules
}

/// The table and its chains. Those that lead to the mappings are filled anew, as the Go plugins do
/// at each ADD.
fn base(family: Family) -> Transaction {
    let table = table(family);
    let mut base = Transaction::new();
    base.add_table(table);
    let nat = |name, point, priority| Chain::hooked(name, "nat", point, priority);
    for chain in [
        Chain::new(HOSTPORTS),
        Chain::new(OLD_HOSTPORTS),
        Chain::new(ALL),
        nat("prerouting", Point::Prerouting, -100),
        nat("output", Point::Output, -100),
        nat(MASQUERADING, Point::Postrouting, 100),
    ] {
        base.add_chain(table, chain);
    }
    let jump = |chain: &str| Statement::Jump(chain.to_owned());
    let enter = || Rule::new([Statement::LocalDestination, jump(ALL)]);
    let all = [OLD_HOSTPORTS, HOSTPORTS].map(|it| Rule::new([jump(it)]));
    base.refill_chain(table, ALL, all);
    base.refill_chain(table, "prerouting", [enter()]);
    base.refill_chain(table, "output", [enter()]);
    base
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::example;

    fn wanted(id: &str) -> HostPorts {
        example::host_ports(id, &["tcp 8080 80", "tcp 192.0.2.7 8443 443"])
    }

    fn text(wanted: &HostPorts, family: Family) -> String {
        let rules = rules(wanted, family).into_iter();
        rules
            .map(|(chain, rule)| format!("{chain}: {}\n", rule.text(family)))
            .collect()
    }

    /// As they are listed after `additions`.
    fn laid(all: &[HostPorts]) -> Rules {
        Rules(FAMILIES.map(|family| (family, listed(all, family))).into())
    }

    fn listed(all: &[HostPorts], family: Family) -> Vec<Listed> {
        let owned = all.iter().flat_map(|it| {
            let id = it.owner.container_id.as_str();
            let rules = rules(it, family).into_iter();
            rules.map(move |(chain, rule)| (chain, rule.comment(id)))
        });
        let shared = Rule::new([Statement::Jump(HOSTPORTS.into())]);
        std::iter::once((ALL, shared))
            .chain(owned)
            .zip(1..)
            .map(|((chain, rule), handle)| Listed::of(table(family), chain, handle, &rule))
            .collect()
    }

    #[test]
    fn rules_are_those_of_the_go_plugins() {
        assert_eq!(
            text(&wanted("c"), Family::Ip),
            "hostports: tcp dport 8080 dnat to 10.22.0.2:80\n\
             hostports: ip daddr 192.0.2.7 tcp dport 8443 dnat to 10.22.0.2:443\n\
             masquerading: ip saddr 10.22.0.2 ip daddr 10.22.0.2 masquerade\n\
             masquerading: ip saddr 127.0.0.1 ip daddr 10.22.0.2 masquerade\n"
        );
        assert_eq!(
            text(&wanted("c"), Family::Ip6),
            "hostports: tcp dport 8080 dnat to [fd00:22::2]:80\n\
             masquerading: ip6 saddr fd00:22::2 ip6 daddr fd00:22::2 masquerade\n"
        );
    }

    #[test]
    fn what_is_there_is_not_laid_down_again() {
        let all = [wanted("a"), wanted("b")];
        assert!(laid(&all).additions(&[&all[0], &all[1]]).is_empty());
        let more = laid(&all[..1]).additions(&[&all[0], &all[1]]).to_string();
        assert!(!more.contains("comment \"a\""), "{more}");
        assert_eq!(more.matches("comment \"b\"").count(), 6, "{more}");
    }

    #[test]
    fn removal_spares_others_and_takes_the_table_with_the_last() {
        let all = [wanted("a"), wanted("b")];
        let some = laid(&all).removal(&[&all[0]]).to_string();
        assert_eq!(some.matches("delete rule").count(), 6, "{some}");
        assert_eq!(
            laid(&all).removal(&[&all[0], &all[1]]).to_string(),
            "delete table ip cni_hostport\ndelete table ip6 cni_hostport\n"
        );
        assert!(laid(&[]).removal(&[&all[0]]).is_empty());
        let mut elsewhere = wanted("a");
        elsewhere.pod_v4 = Some("10.23.0.2/24".parse().unwrap());
        elsewhere.pod_v6 = None;
        assert!(!laid(&all).has(&elsewhere));
    }
}
