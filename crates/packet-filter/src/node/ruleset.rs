//! The rule set of a node and all its pods at once: what is there of each, and
//! one transaction that adds, or takes away, all that is decided on.

use std::collections::HashSet;
use std::fmt;

use anyhow::Result;
use cni::Attachment;

use crate::backend::{Backend, Nftables};
use crate::isolation::{self, Isolation};
use crate::masquerade::Masquerade;
use crate::masquerade::nftables as masquerade;
use crate::ports::{HostPorts, Notice, conditional, go, layout, nftables as hostport};
use crate::separation::{self, Separation};
use crate::spoof_check::{self, SpoofCheck};
use crate::vxlan_guard::{self, VxlanGuard};
use nftables::listing::Listed;
use nftables::{Family, Transaction};

/// What is there, and what is to be changed.
pub struct Ruleset {
    nftables: Nftables,
    generation: u32,
    masquerade: Vec<Listed>,
    go: go::Rules,
    /// Whose ports are there.
    owners: HashSet<String>,
    /// What nft has to read first.
    script: String,
    changes: Transaction,
}

impl Ruleset {
    /// Reads what is there.
    pub fn read(nftables: Nftables) -> Result<Self> {
        let socket = &nftables.socket;
        Ok(Self {
            generation: socket.generation()?,
            masquerade: masquerade::rules(socket)?,
            go: go::Rules::read(socket)?,
            owners: hostport::owners(socket)?.into_keys().collect(),
            script: String::new(),
            changes: Transaction::new(),
            nftables,
        })
    }

    /// Whether nothing of it is missing, whoever laid it down.
    pub fn masquerades(&self, wanted: &Masquerade) -> bool {
        masquerade::missing_in(&self.masquerade, wanted).is_none()
    }

    /// Whether nothing of them is missing, whoever laid them down.
    pub fn publishes(&self, wanted: &HostPorts) -> bool {
        self.nftables.check_published(wanted).is_ok()
    }

    /// Whether nothing of it is missing.
    pub fn checks(&self, wanted: &SpoofCheck) -> bool {
        self.nftables.check_spoof_check(wanted).is_ok()
    }

    /// Adds what is missing of these; of ports that another owner has, only tells. Whose ports
    /// stay as they are, and which are another's.
    ///
    /// # Errors
    /// The kernel cannot be asked; a condition is more than one.
    pub fn add(
        &mut self,
        masquerades: &[&Masquerade],
        ports: &[&HostPorts],
    ) -> Result<(Vec<Attachment>, Vec<Notice>)> {
        let socket = &self.nftables.socket;
        if !masquerades.is_empty() {
            let additions = masquerade::additions(&self.masquerade, masquerades);
            self.changes.extend(additions);
        }
        let mut added = hostport::additions(socket, ports)?;
        self.changes.extend(added.changes);
        for wanted in ports {
            for family in layout::families(wanted) {
                if conditional::check(socket, family, wanted).is_err() {
                    let script = conditional::script(socket, family, wanted)?;
                    self.script.extend(script);
                    added.owners.insert(layout::owner(&wanted.owner));
                }
            }
        }
        let unchanged = ports
            .iter()
            .filter(|it| !added.owners.contains(&layout::owner(&it.owner)))
            .map(|it| it.owner.clone());
        Ok((unchanged.collect(), added.notices))
    }

    /// Brings the tables of these ports to what they should be. Whether they were not.
    ///
    /// # Errors
    /// The kernel cannot be asked.
    pub fn complete(&mut self, ports: &[&HostPorts]) -> Result<bool> {
        let changes = hostport::completion(&self.nftables.socket, ports)?;
        let was_incomplete = !changes.is_empty();
        self.changes.extend(changes);
        Ok(was_incomplete)
    }

    /// Adds spoof checks.
    ///
    /// # Errors
    /// The kernel cannot be asked.
    pub fn add_spoof_checks(&mut self, all: &[&SpoofCheck]) -> Result<()> {
        let additions = spoof_check::add_all(&self.nftables.socket, all)?;
        self.changes.extend(additions);
        Ok(())
    }

    /// Whether nothing is missing of what keeps a network apart.
    pub fn is_separated(&self, wanted: &Separation) -> bool {
        self.nftables.check_separation(wanted).is_ok()
    }

    /// Keeps networks apart.
    ///
    /// # Errors
    /// The kernel cannot be asked.
    pub fn ensure_separation(&mut self, all: &[&Separation]) -> Result<()> {
        for wanted in all {
            let changes = separation::add(&self.nftables.socket, wanted)?;
            self.changes.extend(changes);
        }
        Ok(())
    }

    /// Drops VXLAN packets that are not from where `wanted` says, and tells whether anything of
    /// that was missing.
    ///
    /// # Errors
    /// The kernel cannot be asked.
    pub fn guard_vxlan(&mut self, wanted: &VxlanGuard) -> Result<bool> {
        let changes = vxlan_guard::add(&self.nftables.socket, wanted)?;
        let missing = !changes.is_empty();
        self.changes.extend(changes);
        Ok(missing)
    }

    /// Whether nothing is missing of what isolates a network's pods.
    pub fn isolates(&self, wanted: &Isolation) -> bool {
        self.nftables.check_isolation(wanted).is_ok()
    }

    /// Isolates the pods of networks.
    ///
    /// # Errors
    /// The kernel cannot be asked.
    pub fn isolate(&mut self, all: &[&Isolation]) -> Result<()> {
        let changes = isolation::add(&self.nftables.socket, all)?;
        self.changes.extend(changes);
        Ok(())
    }

    /// Keeps others from 127.0.0.0/8 of the node.
    ///
    /// # Errors
    /// The kernel cannot be asked.
    pub fn close_localhost(&mut self) -> Result<()> {
        let changes = hostport::close_localhost(&self.nftables.socket)?;
        self.changes.extend(changes);
        Ok(())
    }

    /// Whether the Go plugins laid down something for this pod alone.
    pub fn go_masquerades(&self, wanted: &Masquerade) -> bool {
        !masquerade::of_go(&self.masquerade, wanted).is_empty()
    }

    /// Whether the Go plugins laid down some of these ports.
    pub fn go_publishes(&self, wanted: &HostPorts) -> bool {
        self.go.has(wanted)
    }

    /// The containers of others whose ports the Go plugins published.
    pub fn other_containers(&self, owners: &[&Attachment]) -> Vec<String> {
        let mut all = self.go.containers();
        all.retain(|id| !owners.iter().any(|it| it.container_id.as_str() == id));
        all
    }

    /// Takes away what the Go plugins laid down for these.
    pub fn remove_go(&mut self, masquerades: &[&Masquerade], ports: &[&HostPorts]) {
        let rules = masquerades
            .iter()
            .flat_map(|it| masquerade::of_go(&self.masquerade, it));
        let rules: Vec<_> = rules.collect();
        self.changes.extend(masquerade::removal(&rules));
        self.changes.extend(self.go.removal(ports));
    }

    /// Lays down what the Go plugins would for these.
    pub fn add_go(&mut self, masquerades: &[&Masquerade], ports: &[&HostPorts]) {
        let additions = masquerade::go_additions(&self.masquerade, masquerades);
        self.changes.extend(additions);
        self.changes.extend(self.go.additions(ports));
    }

    /// Whether a rule masquerades the subnets of this pod for its whole network.
    pub fn masquerades_network(&self, wanted: &Masquerade) -> bool {
        !masquerade::of_network(&self.masquerade, wanted).is_empty()
    }

    /// Whether ports of this pod are in the maps.
    pub fn has_ports(&self, wanted: &HostPorts) -> bool {
        self.owners.contains(&layout::owner(&wanted.owner))
    }

    /// Takes away the rules for the subnets of these pods, and these ports; with
    /// the last port, the tables.
    ///
    /// # Errors
    /// The kernel cannot be asked.
    pub fn remove_ours(&mut self, masquerades: &[&Masquerade], ports: &[&HostPorts]) -> Result<()> {
        let rules = masquerades
            .iter()
            .flat_map(|it| masquerade::of_network(&self.masquerade, it));
        let rules: Vec<_> = rules.collect();
        self.changes.extend(masquerade::removal(&rules));
        let doomed: HashSet<_> = ports.iter().map(|it| layout::owner(&it.owner)).collect();
        let removal = hostport::removal(&self.nftables.socket, &|owner| doomed.contains(owner))?;
        self.changes.extend(removal);
        Ok(())
    }

    /// Whether nothing is to be changed.
    pub fn is_unchanged(&self) -> bool {
        self.script.is_empty() && self.changes.is_empty()
    }

    /// Makes all changes.
    ///
    /// # Errors
    /// Somebody changed something since it was read; what the kernel refuses.
    pub fn carry(&self) -> Result<()> {
        if !self.script.is_empty() {
            conditional::nft(&self.script)?;
        }
        let generation = Some(self.generation);
        Ok(self.changes.commit(&self.nftables.socket, generation)?)
    }

    /// Whether the table that keeps others from 127.0.0.0/8 goes.
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
