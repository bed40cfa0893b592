//! Published ports as the nftables back end of the Go plugins lays them out: a
//! rule for each mapping, with nothing but the container's id on it.
//!
//! Source: `plugins/meta/portmap/portmap_nftables.go`.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use ipnetwork::IpNetwork;

use super::layout::{FAMILIES, HOSTPORTS, mappings, pod};
use crate::ports::{HostPorts, Snat};
use nftables::Error;
use nftables::Socket;
use nftables::listing::{self, Listed};
use nftables::{Chain, Change, Family, Hook, Point, Rule, Table, Transaction};
use nftables::{Side, Statement};

const MASQUERADING: &str = "masquerading";
/// Where older versions had the mappings of a single address.
const OLD_HOSTPORTS: &str = "hostip_hostports";
const ALL: &str = "hostports_all";

/// The table of `family`.
pub fn table(family: Family) -> Table {
    Table {
        family,
        name: "cni_hostport",
        comment: "CNI portmap plugin",
    }
}

/// Whether the Go plugins published all this, judged as they do: by counting.
pub fn published(socket: &Socket, wanted: &HostPorts, family: Family) -> Result<bool, Error> {
    let rules = listing::rules(socket, table(family), None)?;
    let count = |chain: &str| {
        let ours =
            |it: &&Listed| it.chain == chain && it.comment == wanted.owner.container_id.as_str();
        rules.iter().filter(ours).count()
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
    /// Those that are there.
    pub fn read(socket: &Socket) -> Result<Self, Error> {
        let read = |family| Ok((family, listing::rules(socket, table(family), None)?));
        let families = FAMILIES.into_iter().map(read);
        families.collect::<Result<_, _>>().map(Self)
    }

    /// Those that were laid down for `wanted`. Others of the same container are of
    /// its attachments to other networks, or of mappings that it had once.
    fn of<'a>(&'a self, wanted: &HostPorts) -> Vec<(Family, &'a Listed)> {
        let mut of = Vec::new();
        for (family, found) in &self.0 {
            let rules = rules(wanted, *family);
            let its = found.iter().filter(|it| {
                it.comment == wanted.owner.container_id.as_str()
                    && rules.iter().any(|(_, rule)| it.does(*family, rule))
            });
            of.extend(its.map(|it| (*family, it)));
        }
        of
    }

    /// Whose ports are there, sorted.
    pub fn containers(&self) -> Vec<String> {
        let rules = self.0.iter().flat_map(|(_, found)| found);
        let commented = rules.filter(|it| !it.comment.is_empty());
        let ids: BTreeSet<_> = commented.map(|it| it.comment.clone()).collect();
        ids.into_iter().collect()
    }

    /// Whether something is there for `wanted`.
    pub fn has(&self, wanted: &HostPorts) -> bool {
        !self.of(wanted).is_empty()
    }

    /// Changes that take away what is there for all of these; the table, when
    /// nothing of anybody is left in it.
    pub fn removal(&self, all: &[&HostPorts]) -> Transaction {
        let mut changes = Transaction::new();
        for (family, found) in &self.0 {
            let its: Vec<_> = all
                .iter()
                .flat_map(|wanted| self.of(wanted))
                .filter(|(of, _)| of == family)
                .map(|(_, rule)| rule)
                .collect();
            let is_anothers = |it: &&Listed| {
                !it.comment.is_empty() && !its.iter().any(|own| own.handle == it.handle)
            };
            if !its.is_empty() && !found.iter().any(|it| is_anothers(&it)) {
                changes.push(Change::DeleteTable(table(*family)));
                continue;
            }
            for rule in its {
                changes.push(rule.deletion(table(*family)));
            }
        }
        changes
    }

    /// Changes that lay down what is missing for all of these, the oldest first. Of two that
    /// want one port the newer one has it, and in these chains the first rule wins.
    pub fn additions(&self, all: &[&HostPorts]) -> Transaction {
        let mut changes = Transaction::new();
        for (family, found) in &self.0 {
            let mut missing = Transaction::new();
            for wanted in all.iter().rev() {
                let id = wanted.owner.container_id.as_str();
                for (chain, rule) in rules(wanted, *family) {
                    let rule = rule.comment(id);
                    let there = |it: &&Listed| it.chain == chain && it.is(*family, &rule);
                    if !found.iter().any(|it| there(&it)) {
                        missing.push(Change::AddRule(table(*family), chain.into(), rule));
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

/// What there is for a pod, each rule with its chain.
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
        // v1.9.1 ignores masqAll and counts the others; later ones have this alone.
        sources.insert(0, everybody(ip));
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

/// All addresses of the family of `ip`.
fn everybody(ip: IpAddr) -> IpNetwork {
    IpNetwork::new(ip, 0).unwrap_or_else(|_| IpNetwork::from(ip))
}

/// The table and its chains; those from which the mappings are entered are
/// filled anew, as the Go plugins do at each ADD.
fn base(family: Family) -> Transaction {
    let table = table(family);
    let mut base = Transaction::new();
    base.push(Change::AddTable(table));
    let hook = |kind, point, priority| {
        Some(Hook {
            kind,
            point,
            priority,
        })
    };
    let chains = [
        (HOSTPORTS, None),
        (OLD_HOSTPORTS, None),
        (ALL, None),
        ("prerouting", hook("nat", Point::Prerouting, -100)),
        ("output", hook("nat", Point::Output, -100)),
        (MASQUERADING, hook("nat", Point::Postrouting, 100)),
    ];
    for (name, hook) in chains {
        let chain = Chain {
            name: name.into(),
            hook,
            comment: "",
        };
        base.push(Change::AddChain(table, chain));
    }
    let jump = |chain: &str| Statement::Jump(chain.to_owned());
    let enter = || Rule::new([Statement::LocalDestination, jump(ALL)]);
    let rules = [
        (
            ALL,
            vec![
                Rule::new([jump(OLD_HOSTPORTS)]),
                Rule::new([jump(HOSTPORTS)]),
            ],
        ),
        ("prerouting", vec![enter()]),
        ("output", vec![enter()]),
    ];
    for (chain, rules) in rules {
        base.push(Change::FlushChain(table, chain.into()));
        for rule in rules {
            base.push(Change::AddRule(table, chain.into(), rule));
        }
    }
    base
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ports::{Mapping, Mark, Protocol};
    use cni::Attachment;
    use cni::env::{ContainerId, IfName};

    fn wanted(id: &str) -> HostPorts {
        let mapping = |host_ip: Option<&str>, host_port, container_port| Mapping {
            host_ip: host_ip.map(|ip| ip.parse().unwrap()),
            host_port,
            container_port,
            protocol: Protocol::Tcp,
        };
        HostPorts {
            owner: Attachment {
                network: "mynet".into(),
                container_id: ContainerId::parse(id).unwrap(),
                ifname: IfName::parse("eth0").unwrap(),
            },
            pod_v4: Some("10.22.0.2/24".parse().unwrap()),
            pod_v6: Some("fd00:22::2/64".parse().unwrap()),
            mappings: vec![
                mapping(None, 8080, 80),
                mapping(Some("192.0.2.7"), 8443, 443),
            ],
            snat: Snat::Hairpin,
            mark: Mark::Bit(13),
            conditions_v4: Vec::new(),
            conditions_v6: Vec::new(),
        }
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
            .map(|((chain, rule), handle)| Listed::of(family, chain, handle, &rule))
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
