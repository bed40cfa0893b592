//! Decides which rules and routes change in the pod. Pure: no system calls.

use std::collections::HashSet;
use std::net::IpAddr;

use cni::address::{is_link_local_v6, network_of};
use ipnetwork::IpNetwork;
use netlink::{Family, MAIN_TABLE, RouteSpec, Rule, WholeRoute};

use crate::plan::{Plan, Source, is_reached_from};

/// The first table that is chosen, as in the Go plugin.
const FIRST_TABLE: u32 = 100;

/// The tables that every namespace has: default, main and local.
const KERNEL_TABLES: std::ops::RangeInclusive<u32> = 253..=255;

/// The origin of the routes that the interface did not have before (`ip route` shows it as `proto`).
/// DEL removes these, and gives the others back to the main table.
pub const ORIGIN: u8 = 115;

/// How many rules, and how many routes, DEL gives back: a pod may add any number.
const MOST: usize = 1000;

/// The rules and routes of the pod.
#[derive(Clone, Debug)]
pub struct Pod {
    /// The index of the interface.
    pub index: u32,
    /// The rules of both families.
    pub rules: Vec<Rule>,
    /// The routes of both families, of all tables.
    pub routes: Vec<WholeRoute>,
}

impl Pod {
    /// The routes of the interface.
    fn own(&self) -> impl Iterator<Item = &WholeRoute> {
        self.routes.iter().filter(|it| it.oif == Some(self.index))
    }

    /// The routes of the interface in `table`.
    fn own_in(&self, table: u32) -> impl Iterator<Item = &WholeRoute> {
        self.own().filter(move |it| it.table() == table)
    }

    /// The routes of the interface in the main table.
    fn main(&self, family: Family) -> impl Iterator<Item = &WholeRoute> {
        let own = self.own_in(MAIN_TABLE);
        own.filter(move |it| Family::of(it.dst.ip()) == family)
    }

    /// The rules for `table`, or all rules if it is `None`.
    fn rules_of(&self, table: Option<u32>) -> impl Iterator<Item = &Rule> {
        let names = move |it: &&Rule| table.is_none_or(|table| it.table == table);
        self.rules.iter().filter(names)
    }

    /// The table of an earlier ADD for `ip`.
    fn table_of(&self, ip: IpAddr) -> Option<u32> {
        let mut tables = self
            .rules
            .iter()
            .filter(|it| it.from == Some(ip))
            .map(|it| it.table);
        tables.find(|table| {
            let mut routes = self.routes.iter().filter(|it| it.table() == *table);
            *table >= FIRST_TABLE
                && !KERNEL_TABLES.contains(table)
                && routes.all(|it| it.oif == Some(self.index))
        })
    }
}

/// The table of an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// The address.
    pub from: IpAddr,
    /// The number of the table.
    pub number: u32,
    /// Whether the rule for the address exists.
    pub has_rule: bool,
    /// The routes of the table, in the order in which they are added.
    pub routes: Vec<WholeRoute>,
}

/// The tables if the configuration names one: they get rules and no routes.
pub fn rules_only(number: u32, sources: &[Source], rules: &[Rule]) -> Vec<Table> {
    let table = |source: &Source| {
        let from = source.address.ip();
        Table {
            from,
            number,
            has_rule: rules
                .iter()
                .any(|it| it.from == Some(from) && it.table == number),
            routes: Vec::new(),
        }
    };
    sources.iter().map(table).collect()
}

/// A table for each address: that of an earlier ADD, else the next that no rule and no route of the
/// pod uses.
pub fn tables(sources: &[Source], pod: &Pod) -> Vec<Table> {
    let rules = pod.rules.iter().map(|it| it.table);
    let routes = pod.routes.iter().map(WholeRoute::table);
    let mut used: HashSet<u32> = rules.chain(routes).collect();
    let mut free = FIRST_TABLE..;
    let table = |source: &Source| {
        let from = source.address.ip();
        let earlier = pod.table_of(from);
        let number = earlier.or_else(|| free.find(|it| used.insert(*it)));
        let number = number.unwrap_or(FIRST_TABLE);
        Table {
            from,
            number,
            has_rule: earlier.is_some(),
            routes: routes_of(source, sources, pod)
                .iter()
                .map(|it| it.in_table(number))
                .collect(),
        }
    };
    sources.iter().map(table).collect()
}

/// The routes that packets of `source` use, those on the link first: others go through them.
fn routes_of(source: &Source, sources: &[Source], pod: &Pod) -> Vec<WholeRoute> {
    let networks: Vec<_> = sources.iter().map(|it| it.address).collect();
    let own = pod.main(source.family());
    let own = own.filter(|it| is_for(it, source.address, &networks));
    let (on_link, mut through): (Vec<_>, Vec<_>) = own.cloned().partition(|it| it.gw.is_none());
    let made = |spec: &RouteSpec| WholeRoute::new(pod.index, spec, ORIGIN);
    let is_default = |it: &&WholeRoute| it.is_default();
    let defaults = on_link.iter().chain(&through).filter(is_default);
    let metric = defaults.map(|it| it.priority).min();
    let mut routes = on_link;
    let mut default = source.default.clone();
    if let (Some(spec), Some(metric)) = (&mut default, metric) {
        // Of equal metrics, IPv4 uses the first route, and IPv6 all of them in turn.
        if spec.dst.is_ipv6() {
            spec.priority = metric.map(|it| it.saturating_sub(1).max(1));
        }
    }
    match default.as_ref().map(made) {
        Some(default) if source.overrides => {
            routes.push(default);
            routes.append(&mut through);
        }
        default => {
            routes.append(&mut through);
            routes.extend(default.filter(|_| metric.is_none()));
        }
    }
    let has = |spec: &&RouteSpec| routes.iter().any(|it| it.dst == spec.dst);
    let missing = source.routes.iter().filter(|it| !has(it));
    let missing: Vec<_> = missing.map(made).collect();
    routes.extend(missing);
    routes
}

/// Whether packets of `address` use `route`. A route without a source address or next hop is for
/// all addresses.
fn is_for(route: &WholeRoute, address: IpNetwork, networks: &[IpNetwork]) -> bool {
    let named = route.src.or(route.gw);
    named.is_none_or(|ip| is_reached_from(ip, address, networks))
}

/// A route that leaves the main table, and the route that replaces it there.
pub type Left = (WholeRoute, Option<WholeRoute>);

/// The routes of the interface that leave the main table. Link-local destinations stay: programs
/// reach them by the interface, without a source address.
pub fn left(plan: &Plan, sources: &[Source], pod: &Pod) -> Vec<Left> {
    let mut left = Vec::new();
    for family in [Family::V4, Family::V6] {
        let sources: Vec<_> = sources.iter().filter(|it| it.family() == family).collect();
        if sources.is_empty() {
            continue;
        }
        for route in pod.main(family).filter(|it| !is_link_local_v6(it.dst.ip())) {
            if !plan.source_hints || route.gw.is_some() {
                left.push((route.clone(), None));
            } else if route.src.is_none() {
                let mut networks = sources.iter().map(|it| it.address);
                let hint = networks.find(|it| network_of(*it) == route.dst);
                left.extend(hint.map(|it| {
                    let hinted = route.with_src(it.ip()).with_protocol(ORIGIN);
                    (route.clone(), Some(hinted))
                }));
            }
        }
    }
    left
}

/// The changes that DEL makes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Restored {
    /// Routes of the main table that are in the way of those to add.
    pub hints: Vec<WholeRoute>,
    /// Routes to add to the main table, those on the link first.
    pub back: Vec<WholeRoute>,
    /// Routes of other tables to remove.
    pub removed: Vec<WholeRoute>,
    /// Rules to remove at last: if DEL is killed, another one finds the routes by them.
    pub rules: Vec<Rule>,
}

/// DEL removes the rules for `addresses`. If the configuration names a `table`, that is all, and
/// only for rules of that table. Otherwise it moves the routes of the interface from their tables
/// back to the main table.
pub fn restored(addresses: &[IpAddr], table: Option<u32>, pod: &Pod) -> Restored {
    let is_ours = |it: &&Rule| it.from.is_some_and(|ip| addresses.contains(&ip));
    let ours = pod.rules_of(table).filter(is_ours);
    let rules: Vec<_> = ours.take(MOST).cloned().collect();
    if table.is_some() || rules.is_empty() {
        return Restored {
            rules,
            ..Restored::default()
        };
    }
    let tables: HashSet<_> = rules.iter().map(|it| it.table).collect();
    let moved =
        |it: &&WholeRoute| tables.contains(&it.table()) && !KERNEL_TABLES.contains(&it.table());
    let is_made = |it: &&WholeRoute| it.protocol() == ORIGIN;
    let hints = pod.own_in(MAIN_TABLE).filter(is_made);
    let moved: Vec<_> = pod.own().filter(moved).take(MOST).collect();
    let mut back: Vec<_> = moved
        .iter()
        .filter(|it| !is_made(it) && !joins_another(it, pod))
        .map(|it| it.in_table(MAIN_TABLE))
        .collect();
    back.sort_by_key(|it| it.gw.is_some());
    Restored {
        hints: hints.cloned().collect(),
        back,
        removed: moved.into_iter().cloned().collect(),
        rules,
    }
}

/// Whether the kernel would make `route` and one of the main table a single route with two next
/// hops, as it does for IPv6.
fn joins_another(route: &WholeRoute, pod: &Pod) -> bool {
    route.dst.is_ipv6()
        && route.gw.is_some()
        && pod.routes.iter().any(|it| {
            let other = (it.oif, it.gw) != (route.oif, route.gw);
            it.table() == MAIN_TABLE
                && it.dst == route.dst
                && it.priority == route.priority
                && other
        })
}

/// Whether CHECK finds what ADD has made: a rule for each address, and a default route in its table
/// if the address has a gateway.
///
/// # Errors
/// What is missing.
pub fn check(plan: &Plan, sources: &[Source], pod: &Pod) -> Result<(), String> {
    for source in sources {
        let from = source.address.ip();
        let mut rules = pod.rules_of(plan.table);
        let Some(rule) = rules.find(|it| it.from == Some(from)) else {
            return Err(format!("rule for packets from {from} not found"));
        };
        let table = rule.table;
        let mut routes = pod.own_in(table);
        let is_default =
            |it: &WholeRoute| it.is_default() && Family::of(it.dst.ip()) == source.family();
        if plan.table.is_none() && source.has_gateway && !routes.any(is_default) {
            return Err(format!(
                "default route for packets from {from} not found in table {table}"
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
