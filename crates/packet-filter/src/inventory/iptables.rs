//! The effect of iptables' rules, ours and those of the Go plugins, in the variant that PATH has.

use std::fs;

use anyhow::Result;
use ipnetwork::IpNetwork;

use super::{Applied, Subject};
use crate::backend::{Iptables, Nftables};
use crate::iptables::table::{FAMILIES, FILTER, Family, NAT, option};

impl Iptables {
    /// The rules of the tables nat and filter that belong to a network or a pod. A table that the
    /// kernel does not have is not read, because reading would create it.
    ///
    /// # Errors
    /// A program that is installed cannot list a table.
    pub fn inventory(&self) -> Result<Vec<Applied>> {
        let mut all = Vec::new();
        let nftables = Nftables::find()?;
        for family in FAMILIES {
            for table in [NAT, FILTER] {
                if !is_there(nftables.as_ref(), family, table)? {
                    continue;
                }
                let Some(program) = self.programs.installed(family)? else {
                    continue;
                };
                for (chain, rules) in program.table(table)?.chains() {
                    let rules = rules.iter().filter_map(|it| applied(chain, it));
                    let table = format!("{} {table}", family.program());
                    all.extend(rules.map(|it| Applied {
                        table: table.clone(),
                        ..it
                    }));
                }
            }
        }
        Ok(all)
    }
}

fn is_there(nftables: Option<&Nftables>, family: Family, table: &str) -> Result<bool> {
    let (names, number) = match family {
        Family::V4 => ("ip_tables_names", nftables::Family::Ip),
        Family::V6 => ("ip6_tables_names", nftables::Family::Ip6),
    };
    let names = fs::read_to_string(format!("/proc/net/{names}")).unwrap_or_default();
    let of_nft = nftables.map(|it| it.has_table(number, table)).transpose()?;
    Ok(names.lines().any(|it| it == table) || of_nft.unwrap_or(false))
}

/// A rule that belongs to a network or a pod. Rules in the chain of a single pod, to which such a
/// rule jumps, are left out.
fn applied(chain: &str, rule: &str) -> Option<Applied> {
    let comment = option(rule, "--comment").unwrap_or_default();
    let target = option(rule, "-j").unwrap_or_default();
    let subject = match chain {
        "POSTROUTING" | "CNI-MASQUERADE" if comment.starts_with("name: ") => Subject::Masquerade,
        "CNI-HOSTPORT-DNAT" => Subject::PublishedPort,
        "CNI-FORWARD" if target == "ACCEPT" => Subject::Firewall,
        "CNI-ISOLATION-STAGE-1" | "CNI-ISOLATION-STAGE-2" if target != "RETURN" => {
            Subject::Separation
        }
        _ if comment == "podwire: gateway mode" => Subject::Access,
        _ if comment == "podwire: names" => Subject::Names,
        _ => return None,
    };
    let address = ["-s", "-d"].iter().find_map(|it| option(rule, it));
    let devices = ["-i", "-o"].iter().filter_map(|it| option(rule, it));
    let port = option(rule, "--dports").or_else(|| option(rule, "--dport"));
    Some(Applied {
        network: quoted_after(&comment, "name: "),
        devices: devices.collect(),
        subnet: address.and_then(|it| it.parse::<IpNetwork>().ok()),
        element: [Some(chain.to_owned()), port]
            .map(Option::unwrap_or_default)
            .join(" "),
        ..Applied::new(subject, "", &comment)
    })
}

/// The name in `name: "mynet" id: "…"`.
fn quoted_after(comment: &str, key: &str) -> Option<String> {
    let (_, rest) = comment.split_once(key)?;
    let (name, _) = rest.strip_prefix('"')?.split_once('"')?;
    Some(name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_about_networks_and_devices() {
        let rule = r#"-s 10.1.0.2/32 -m comment --comment "name: \"web\" id: \"c1\"" -j CNI-1"#;
        let it = applied("POSTROUTING", rule).unwrap();
        assert_eq!(
            (it.subject, it.network.as_deref()),
            (Subject::Masquerade, Some("web"))
        );
        assert_eq!(it.subnet.unwrap().to_string(), "10.1.0.2/32");
        let rule = r#"-i cni0 -m comment --comment "podwire: gateway mode" -j ACCEPT"#;
        let it = applied("FORWARD", rule).unwrap();
        assert_eq!(
            (it.subject, it.devices),
            (Subject::Access, vec!["cni0".to_owned()])
        );
        assert_eq!(applied("FORWARD", "-i docker0 -j ACCEPT"), None);
    }
}
