//! Rules of policy routing: which table routes which packets.

use std::net::IpAddr;

use nix::errno::Errno;
use rtnetlink::packet_route::{
    RouteNetlinkMessage,
    route::RouteHeader,
    rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage},
};
use transport::Message;

use crate::{
    Error, Family, Netlink,
    request::{decode, unless_absent},
};

/// A rule that names a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The table.
    pub table: u32,
    /// Rules with a lower number come first.
    pub priority: u32,
    /// The source address, if that is all that it selects packets by; otherwise `None`.
    pub from: Option<IpAddr>,
}

impl Netlink {
    /// Adds a rule for packets from one address, before all other rules but that of the local table:
    /// `ip rule add from IP lookup TABLE`. Returns it with the priority that the kernel chose.
    ///
    /// # Errors
    /// `EAFNOSUPPORT` or `EOPNOTSUPP` when the kernel has no policy routing.
    pub fn add_rule(&self, from: IpAddr, table: u32) -> Result<Rule, Error> {
        let message = rule_message(from, table);
        let request = RouteNetlinkMessage::NewRule(message);
        let read = |answer: Message<'_>| decode(answer).and_then(read_rule);
        let added = self.create(request, read, || format!("add rule for {from}"))?;
        Ok(added.unwrap_or(Rule {
            table,
            priority: 0,
            from: Some(from),
        }))
    }

    /// Removes a rule of [`Netlink::list_rules`] for packets from one address, which may be absent:
    /// `ip rule del from IP lookup TABLE priority PRIORITY`. Any other rule stays.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn delete_rule(&self, rule: &Rule) -> Result<(), Error> {
        let Some(from) = rule.from else {
            return Ok(());
        };
        let mut message = rule_message(from, rule.table);
        // Of several rules, the kernel removes the first that has all that the request has.
        let priority = Some(rule.priority).filter(|it| *it != 0);
        let attributes = &mut message.attributes;
        attributes.extend(priority.map(RuleAttribute::Priority));
        let request = RouteNetlinkMessage::DelRule(message);
        unless_absent(self.change(request, 0, || format!("delete rule for {from}")))
    }

    /// The rules of both families that name a table: `ip rule`, `ip -6 rule`.
    ///
    /// # Errors
    /// `EAFNOSUPPORT` or `EOPNOTSUPP` when the kernel has no policy routing. Without it for IPv6
    /// alone, there are no such rules.
    pub fn list_rules(&self) -> Result<Vec<Rule>, Error> {
        let mut rules = Vec::new();
        for family in [Family::V4, Family::V6] {
            let mut message = RuleMessage::default();
            message.header.family = family.code();
            let request = RouteNetlinkMessage::GetRule(message);
            match self.dump(request, read_rule, || "list rules".into()) {
                Err(error) if family == Family::V6 && error.errno() == Errno::EAFNOSUPPORT => {}
                listed => rules.extend(listed?),
            }
        }
        Ok(rules)
    }
}

fn rule_message(from: IpAddr, table: u32) -> RuleMessage {
    let mut message = RuleMessage::default();
    let header = &mut message.header;
    header.family = Family::of(from).code();
    header.src_len = host_prefix(from);
    header.action = RuleAction::ToTable;
    header.table = u8::try_from(table).unwrap_or(RouteHeader::RT_TABLE_UNSPEC);
    message.attributes = vec![RuleAttribute::Source(from), RuleAttribute::Table(table)];
    message
}

fn host_prefix(ip: IpAddr) -> u8 {
    match ip {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

pub(crate) fn read_rule(message: RouteNetlinkMessage) -> Option<Rule> {
    let RouteNetlinkMessage::NewRule(message) = message else {
        return None;
    };
    let header = &message.header;
    if header.action != RuleAction::ToTable {
        return None;
    }
    let (mut table, mut priority) = (u32::from(header.table), 0);
    let (mut from, mut others) = (None, false);
    for attribute in message.attributes {
        match attribute {
            RuleAttribute::Table(number) => table = number,
            RuleAttribute::Priority(number) => priority = number,
            RuleAttribute::Source(ip) => from = Some(ip),
            // The origin selects nothing; the maximum suppresses nothing.
            RuleAttribute::Protocol(_) | RuleAttribute::SuppressPrefixLen(u32::MAX) => {}
            _ => others = true,
        }
    }
    let selects_more = others
        || header.dst_len != 0
        || header.tos != 0
        || header.flags.contains(RuleFlags::Invert);
    Some(Rule {
        table,
        priority,
        from: from.filter(|ip| header.src_len == host_prefix(*ip) && !selects_more),
    })
}
