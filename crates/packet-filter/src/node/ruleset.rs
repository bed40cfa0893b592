//! The nf_tables rules of all pods of a node: the present ones, and one transaction with all
//! changes. Methods fail if the kernel refuses; those that add, also if a condition is not valid.

use std::collections::HashSet;
use std::fmt;

use anyhow::Result;
use cni::Attachment;
use nftables::{Family, Listed, Transaction};

use super::Rules;
use crate::access::{self, Access, Links, OpenPorts};
use crate::backend::{Backend, Nftables};
use crate::masquerade::{Masquerade, nftables as masquerade};
use crate::ports::{GoRules, HostPorts, Notice, conditional, layout, nftables as ports};
use crate::separation::{self, Separation};
use crate::vxlan_guard::{self, VxlanGuard};

/// The present rules, and the changes to make.
pub struct Ruleset {
    pub nftables: Nftables,
    generation: u32,
    masquerade: Vec<Listed>,
    go: GoRules,
    /// The owners of published ports.
    owners: HashSet<String>,
    /// The script that nft has to execute first.
    script: String,
    changes: Transaction,
}

impl Ruleset {
    /// Reads the present rules.
    pub fn read(nftables: Nftables) -> Result<Self> {
        let socket = &nftables.socket;
        Ok(Self {
            generation: socket.generation()?,
            masquerade: masquerade::rules(socket)?,
            go: GoRules::read(socket)?,
            owners: ports::owners(socket)?.into_keys().collect(),
            script: String::new(),
            changes: Transaction::new(),
            nftables,
        })
    }

    /// Whether nothing of a masquerade is missing, whatever suite wrote it.
    pub fn has_masquerade(&self, wanted: &Masquerade) -> bool {
        masquerade::missing(&self.masquerade, wanted).is_none()
    }

    /// Whether nothing of published ports is missing, whatever suite wrote them.
    pub fn has_ports(&self, wanted: &HostPorts) -> bool {
        self.nftables.check_published(wanted).is_ok()
    }

    /// Adds what is missing of `wanted`. Ports that another owner has stay, and are returned; so are
    /// the owners of `wanted` whose ports do not change.
    pub fn add(&mut self, wanted: &Rules<'_>) -> Result<(Vec<Attachment>, Vec<Notice>)> {
        let socket = &self.nftables.socket;
        if !wanted.masquerades.is_empty() {
            let additions = masquerade::additions(&self.masquerade, &wanted.masquerades);
            self.changes.extend(additions);
        }
        let mut added = ports::additions(socket, &wanted.ports)?;
        self.changes.extend(added.changes);
        for ports in &wanted.ports {
            for family in layout::families(ports) {
                if conditional::check(socket, family, ports).is_err() {
                    let script = conditional::script(socket, family, ports)?;
                    self.script.extend(script);
                    added.owners.insert(layout::owner(&ports.owner));
                }
            }
        }
        let is_unchanged = |it: &&Attachment| !added.owners.contains(&layout::owner(it));
        let owners = wanted.ports.iter().map(|it| &it.owner);
        let unchanged = owners.filter(is_unchanged).cloned().collect();
        Ok((unchanged, added.notices))
    }

    /// Completes the tables of these ports. Returns whether they were incomplete.
    pub fn complete_tables(&mut self, all: &[&HostPorts]) -> Result<bool> {
        let changes = ports::completion(&self.nftables.socket, all)?;
        Ok(self.extend(changes))
    }

    /// Adds separations of networks.
    pub fn add_separations(&mut self, all: &[&Separation]) -> Result<()> {
        for wanted in all {
            let changes = separation::add(&self.nftables.socket, wanted)?;
            self.changes.extend(changes);
        }
        Ok(())
    }

    /// Adds a VXLAN guard. Returns whether anything of it was missing.
    pub fn add_vxlan_guard(&mut self, wanted: &VxlanGuard) -> Result<bool> {
        let changes = vxlan_guard::add(&self.nftables.socket, std::slice::from_ref(wanted))?;
        Ok(self.extend(changes))
    }

    /// Restores the access to a network. Returns whether anything of it was missing.
    pub fn add_access(&mut self, wanted: &Access) -> Result<bool> {
        let changes = access::add(&self.nftables.socket, wanted)?;
        Ok(self.extend(changes))
    }

    /// Opens ports. Returns whether any was closed.
    pub fn open_ports(&mut self, wanted: &OpenPorts) -> Result<bool> {
        let changes = access::open(&self.nftables.socket, wanted)?;
        Ok(self.extend(changes))
    }

    /// Links pods. Returns whether any link was missing.
    pub fn link(&mut self, wanted: &Links) -> Result<bool> {
        let changes = access::link(&self.nftables.socket, wanted)?;
        Ok(self.extend(changes))
    }

    /// Closes 127.0.0.0/8 of the node to packets from outside.
    pub fn close_localhost(&mut self) -> Result<()> {
        let changes = ports::close_localhost(&self.nftables.socket)?;
        self.changes.extend(changes);
        Ok(())
    }

    /// Makes these changes after the others. Returns whether there are any.
    pub fn extend(&mut self, changes: Transaction) -> bool {
        let has_changes = !changes.is_empty();
        self.changes.extend(changes);
        has_changes
    }

    /// Whether the Go plugins wrote rules for this pod alone.
    pub fn has_masquerade_of_go(&self, wanted: &Masquerade) -> bool {
        !masquerade::of_go(&self.masquerade, wanted).is_empty()
    }

    /// Whether the Go plugins published some of these ports.
    pub fn has_ports_of_go(&self, wanted: &HostPorts) -> bool {
        self.go.has(wanted)
    }

    /// The containers of other owners whose ports the Go plugins published.
    pub fn other_containers(&self, owners: &[&Attachment]) -> impl Iterator<Item = String> {
        let is_other = |id: &String| !owners.iter().any(|it| it.container_id.as_str() == id);
        self.go.containers().into_iter().filter(is_other)
    }

    /// Removes the rules of the Go plugins for these.
    pub fn remove_of_go(&mut self, gone: &Rules<'_>) {
        let masquerades = gone.masquerades.iter();
        let rules = masquerades.flat_map(|it| masquerade::of_go(&self.masquerade, it));
        self.changes.extend(masquerade::removal(rules));
        self.changes.extend(self.go.removal(&gone.ports));
    }

    /// Adds the rules that the Go plugins would have for these.
    pub fn add_of_go(&mut self, wanted: &Rules<'_>) {
        let additions = masquerade::go_additions(&self.masquerade, &wanted.masquerades);
        self.changes.extend(additions);
        self.changes.extend(self.go.additions(&wanted.ports));
    }

    /// Whether a rule masquerades the subnets of this pod for its whole network.
    pub fn has_masquerade_of_network(&self, wanted: &Masquerade) -> bool {
        !masquerade::of_network(&self.masquerade, wanted).is_empty()
    }

    /// Whether ports of this pod are in our maps.
    pub fn has_own_ports(&self, wanted: &HostPorts) -> bool {
        self.owners.contains(&layout::owner(&wanted.owner))
    }

    /// Removes the rules for the subnets of these pods, and their ports; with the last port, the
    /// tables.
    pub fn remove(&mut self, gone: &Rules<'_>) -> Result<()> {
        let masquerades = gone.masquerades.iter();
        let rules = masquerades.flat_map(|it| masquerade::of_network(&self.masquerade, it));
        self.changes.extend(masquerade::removal(rules));
        let owners = gone.ports.iter().map(|it| layout::owner(&it.owner));
        let owners: HashSet<_> = owners.collect();
        let removal = ports::removal(&self.nftables.socket, &|owner| owners.contains(owner))?;
        self.changes.extend(removal);
        Ok(())
    }

    /// Whether nothing is to be changed.
    pub fn is_unchanged(&self) -> bool {
        self.script.is_empty() && self.changes.is_empty()
    }

    /// Makes all changes.
    pub fn commit(&self) -> Result<()> {
        if !self.script.is_empty() {
            conditional::nft(&self.script)?;
        }
        let generation = Some(self.generation);
        Ok(self.changes.commit(&self.nftables.socket, generation)?)
    }

    /// Whether the table that closes 127.0.0.0/8 is deleted.
    pub fn opens_localhost(&self) -> bool {
        self.changes.deletes_table(layout::table(Family::Ip))
    }
}

impl fmt::Display for Ruleset {
    /// What `nft -f -` would read.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "# nft -f -\n{}{}", self.script, self.changes)
    }
}
