//! What the role says of its networks: in a status, and as metrics.

use std::collections::BTreeMap;

use flannel::Subnet;
use serde_json::{Value, json};

use super::kernel::{Id, State};
use crate::metrics::Page;
use netlink::Family;

/// How a network is.
#[derive(Debug, Default)]
pub struct Status {
    /// Its name.
    pub name: String,
    /// The prefix of its keys.
    pub prefix: String,
    /// What it waits for; `None` once it was complete.
    pub waits: Option<String>,
    /// Why the store does not answer, if it does not.
    pub store: Option<String>,
    /// This node's subnet; in a network without subnets, what stands for the node.
    pub subnet: Option<Subnet>,
    /// Whether nodes have subnets.
    pub is_segment: bool,
    /// The address that other nodes send to.
    pub public: Vec<String>,
    /// Why another program is to blame for this node's key, if so.
    pub contested: Option<String>,
    /// The number of other nodes.
    pub nodes: usize,
    /// The leases that this node cannot use, and why.
    pub refused: BTreeMap<String, String>,
    /// How each family is in the kernel.
    pub families: BTreeMap<Id, Result<State, String>>,
    /// How many entries were added or changed, removed, and refused, since the start.
    pub totals: [u64; 3],
    /// How often the kernel was compared or changed.
    pub passes: u64,
}

impl Status {
    /// Notes a report of the kernel.
    pub fn note(&mut self, id: Id, state: Result<State, String>) {
        self.passes += 1;
        if let Ok(state) = &state {
            self.totals[0] += state.changed.0 as u64;
            self.totals[1] += state.changed.1 as u64;
            self.totals[2] += state.failed.len() as u64;
        }
        self.families.insert(id, state);
    }

    /// What keeps the network from being ready.
    pub fn fault(&self) -> Option<String> {
        let why = self.waits.as_ref().or(self.contested.as_ref())?;
        Some(format!("network {}: {why}", self.name))
    }

    /// The peers that the kernel has, of all families.
    fn programmed(&self) -> usize {
        let states = self.families.values().filter_map(|it| it.as_ref().ok());
        let whole = states.map(|it| it.peers.saturating_sub(it.failed.len()));
        whole.min().unwrap_or_default()
    }

    /// As JSON.
    pub fn json(&self) -> Value {
        let families: Vec<Value> = self.families.iter().map(family).collect();
        json!({
            "name": self.name,
            "prefix": self.prefix,
            "ready": self.fault().is_none(),
            "waitsFor": self.waits,
            "store": {"answers": self.store.is_none(), "error": self.store},
            "subnet": self.subnet.filter(|_| !self.is_segment).map(|it| it.all().map(|it| it.to_string()).collect::<Vec<_>>()),
            "publicAddresses": self.public,
            "contested": self.contested,
            "peers": {"wanted": self.nodes, "programmed": self.programmed()},
            "refusedLeases": self.refused,
            "families": families,
        })
    }
}

fn family(family: (&Id, &Result<State, String>)) -> Value {
    let ((_, which), state) = family;
    let which = match which {
        Family::V4 => "ipv4",
        Family::V6 => "ipv6",
    };
    match state {
        Err(error) => json!({"family": which, "error": error}),
        Ok(state) => json!({
            "family": which,
            "local": state.local.to_string(),
            "mtu": state.mtu,
            "peers": state.peers,
            "failed": state.failed.iter().map(|(entry, error)| {
                json!({"entry": entry.to_string(), "error": error})
            }).collect::<Vec<_>>(),
            "lastPassMicroseconds": state.took.as_micros() as u64,
        }),
    }
}

/// The metrics of all networks.
pub fn metrics(all: &[&Status]) -> Page {
    type Value = fn(&Status) -> u64;
    let metrics: [(&str, &str, &str, Value); 8] = [
        (
            "podwired_overlay_ready",
            "gauge",
            "Whether the network was complete once and this node has its lease.",
            |it| it.fault().is_none().into(),
        ),
        (
            "podwired_overlay_store_up",
            "gauge",
            "Whether the store answers.",
            |it| it.store.is_none().into(),
        ),
        (
            "podwired_overlay_peers_wanted",
            "gauge",
            "Other nodes of the network.",
            |it| it.nodes as u64,
        ),
        (
            "podwired_overlay_peers_programmed",
            "gauge",
            "Other nodes whose entries the kernel has.",
            |it| it.programmed() as u64,
        ),
        (
            "podwired_overlay_entries_added_total",
            "counter",
            "Entries that were added or changed.",
            |it| it.totals[0],
        ),
        (
            "podwired_overlay_entries_removed_total",
            "counter",
            "Entries that were removed.",
            |it| it.totals[1],
        ),
        (
            "podwired_overlay_entries_refused_total",
            "counter",
            "Refusals of the kernel.",
            |it| it.totals[2],
        ),
        (
            "podwired_overlay_passes_total",
            "counter",
            "Comparisons with the kernel, and changes of it.",
            |it| it.passes,
        ),
    ];
    let mut page = Page::default();
    for (name, kind, help, value) in metrics {
        page.begin(name, kind, help);
        for status in all {
            page.sample(name, &[("network", &status.name)], value(status));
        }
    }
    page
}
