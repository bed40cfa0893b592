//! The rules of iptables-legacy on a packet's way. The kernel logs which ones it matches; what they do
//! with it, their text says.

use std::collections::HashMap;
use std::fs;

use packet_filter::packet_log::{Matched, PacketLog};

use super::hop::Hop;

/// The chains of a packet whose route is decided.
const ROUTED: [&str; 4] = ["FORWARD", "INPUT", "OUTPUT", "POSTROUTING"];

/// The log of the node, while a packet is followed.
#[derive(Debug)]
pub struct Legacy {
    log: PacketLog,
    program: &'static str,
    matched: Vec<Matched>,
    /// The rules of chains, by table and chain.
    rules: HashMap<(String, String), Vec<String>>,
}

impl Legacy {
    /// `None` where iptables-legacy has no table, and so no rule.
    ///
    /// # Errors
    /// Another program has the log.
    pub fn open(is_ipv4: bool) -> anyhow::Result<Option<Self>> {
        let (names, program) = if is_ipv4 {
            ("/proc/net/ip_tables_names", "iptables-legacy")
        } else {
            ("/proc/net/ip6_tables_names", "ip6tables-legacy")
        };
        if fs::read_to_string(names).unwrap_or_default().is_empty() {
            return Ok(None);
        }
        Ok(Some(Self {
            log: PacketLog::open(is_ipv4)?,
            program,
            matched: Vec::new(),
            rules: HashMap::new(),
        }))
    }

    /// Keeps what was logged of the packet from `port` since the last call.
    ///
    /// # Errors
    /// The log cannot be read.
    pub fn hear(&mut self, port: Option<u16>) -> anyhow::Result<()> {
        let is_ours = |it: &Matched| port.is_none() || it.ports.map(|it| it[0]) == port;
        let matched = self.log.matched()?;
        for it in matched.into_iter().filter(is_ours) {
            // A packet that is sent again matches again.
            if !self.matched.contains(&it) {
                self.matched.push(it);
            }
        }
        Ok(())
    }

    /// What the rules before the decision about the route did, and those after it.
    pub fn hops(&mut self, at: &str) -> [Vec<Hop>; 2] {
        let matched = std::mem::take(&mut self.matched);
        let routed = |it: &Matched| ROUTED.contains(&it.chain.as_str());
        let split = matched.iter().position(routed).unwrap_or(matched.len());
        let (before, after) = matched.split_at(split);
        [before, after].map(|part| part.iter().filter_map(|it| self.hop(at, it)).collect())
    }

    fn hop(&mut self, at: &str, matched: &Matched) -> Option<Hop> {
        let Matched { table, chain, .. } = matched;
        let program = self.program;
        let key = (table.clone(), chain.clone());
        let list = self.rules.entry(key);
        let list = list.or_insert_with(|| rules(program, table, chain));
        let text = match matched.rule {
            Some(number) => {
                let mut rules = list.iter().filter(|it| it.starts_with("-A "));
                rules.nth((number as usize).checked_sub(1)?)
            }
            None => list.iter().find(|it| it.starts_with("-P ")),
        };
        let text = text.map(String::as_str).unwrap_or("a rule");
        let drops = ["-j DROP", "-j REJECT"].iter().any(|it| text.contains(it));
        let drops = drops || (matched.rule.is_none() && text.ends_with(" DROP"));
        let text = format!("{program} -t {table}: {text}");
        match (drops, matched.rule) {
            (true, _) => Some(Hop::dropped(at, "rule", text)),
            (false, Some(_)) => Some(Hop::on(at, "rule", text)),
            // What a policy accepts is as if there were no rules.
            (false, None) => None,
        }
    }
}

fn rules(program: &'static str, table: &str, chain: &str) -> Vec<String> {
    let iptables = iptables::IPTables {
        cmd: program,
        has_check: true,
        has_wait: false,
        is_numeric: false,
    };
    iptables.list(table, chain).unwrap_or_default()
}
