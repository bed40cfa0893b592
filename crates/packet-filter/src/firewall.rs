//! The firewall of pods: lets the node forward their packets although another program's policy is
//! to drop, and restricts which other pods of the node reach them.
//!
//! In iptables these are the chains of the Go plugin. In nftables only the second part exists: a
//! rule that accepts ends no chain of another table, so there is nothing to write for the first.

pub(crate) mod firewalld;
pub(crate) mod iptables;
pub(crate) mod nftables;

use std::net::IpAddr;

use ::nftables::Family;
use anyhow::{Context, Result, ensure};

use crate::backend::{Iptables, Kind, Nftables};

/// The program or packet filter that lets the packets of pods through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "programs")]
pub enum FirewallBackend {
    Iptables,
    Nftables,
    Firewalld,
}

/// The firewall rules that an attachment wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Firewall {
    /// All addresses of the result.
    pub addresses: Vec<IpAddr>,
    /// The zone of firewalld that gets them as sources.
    pub zone: String,
    /// The chain of iptables for the administrator's own rules, which come first.
    pub admin_chain: String,
    /// Which pods may reach it; `None` for all.
    pub ingress: Option<Ingress>,
}

/// The policy that pods behind a bridge cannot be reached from behind other such bridges.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ingress {
    /// The bridge.
    pub bridge: String,
    /// Whether pods behind the same bridge do not reach each other either, as far as the node
    /// forwards between them.
    pub isolated: bool,
    /// Whether published ports can be reached nevertheless: they are published to all.
    pub published: bool,
}

impl FirewallBackend {
    /// The back end with this name.
    pub fn named(text: &str) -> Option<Self> {
        let all = [Self::Iptables, Self::Nftables, Self::Firewalld];
        all.into_iter().find(|it| it.name() == text)
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Iptables => "iptables",
            Self::Nftables => "nftables",
            Self::Firewalld => "firewalld",
        }
    }

    /// The back end if the configuration names none. As in the Go plugin, firewalld if it runs,
    /// else iptables; nftables if iptables is not installed.
    ///
    /// # Errors
    /// A directory of `PATH` cannot be searched.
    pub fn choose() -> Result<Self> {
        if firewalld::is_running_here() {
            return Ok(Self::Firewalld);
        }
        Ok(match Self::Firewalld.of_policies()? {
            Kind::Iptables => Self::Iptables,
            Kind::Nftables => Self::Nftables,
        })
    }

    /// The packet filter that has the ingress policies. With firewalld it is iptables, as in the Go
    /// plugin, or nftables if iptables is not installed.
    ///
    /// # Errors
    /// A directory of `PATH` cannot be searched.
    pub fn of_policies(self) -> Result<Kind> {
        Ok(match self {
            Self::Iptables => Kind::Iptables,
            Self::Nftables => Kind::Nftables,
            Self::Firewalld if Iptables::new().is_installed()? => Kind::Iptables,
            Self::Firewalld => Kind::Nftables,
        })
    }

    /// Fails unless it can be used.
    ///
    /// # Errors
    /// The reason why it cannot be used.
    pub fn try_out(self) -> Result<()> {
        match self {
            Self::Iptables => Iptables::new().try_out_filter(),
            Self::Nftables => usable_nftables().map(drop),
            Self::Firewalld => {
                ensure!(
                    firewalld::is_running(),
                    "firewalld is not on the system bus"
                );
                Ok(())
            }
        }
    }

    /// Removes the rules of these addresses; `zone` is that of firewalld.
    ///
    /// # Errors
    /// What the back end refuses.
    pub fn remove(self, zone: &str, addresses: &[IpAddr]) -> Result<()> {
        match self {
            Self::Iptables => Iptables::new().remove_firewall(addresses),
            Self::Nftables => Ok(()),
            Self::Firewalld => firewalld::remove(zone, addresses),
        }
    }
}

impl Firewall {
    /// Adds the rules of an attachment. `perhaps`: some of them may exist.
    ///
    /// # Errors
    /// What the back end refuses.
    pub fn add(&self, backend: FirewallBackend, perhaps: bool) -> Result<()> {
        match backend {
            FirewallBackend::Iptables => return Iptables::new().add_firewall(self, perhaps),
            FirewallBackend::Nftables => {}
            FirewallBackend::Firewalld => firewalld::add(&self.zone, &self.addresses)?,
        }
        match (&self.ingress, backend.of_policies()?) {
            (None, _) => Ok(()),
            (Some(ingress), Kind::Nftables) => usable_nftables()?.ensure_ingress(ingress),
            (Some(_), Kind::Iptables) => Iptables::new().add_ingress(self),
        }
    }

    /// Fails unless the rules of an attachment exist.
    ///
    /// # Errors
    /// What is missing.
    pub fn check(&self, backend: FirewallBackend) -> Result<()> {
        match backend {
            FirewallBackend::Iptables => return Iptables::new().check_firewall(self),
            FirewallBackend::Nftables => {}
            FirewallBackend::Firewalld => firewalld::check(&self.zone, &self.addresses)?,
        }
        match (&self.ingress, backend.of_policies()?) {
            (None, _) => Ok(()),
            (Some(ingress), Kind::Nftables) => usable_nftables()?.check_ingress(ingress),
            (Some(_), Kind::Iptables) => Iptables::new().check_ingress(self),
        }
    }
}

/// Removes the ingress policy of a bridge that no pod uses any more.
///
/// # Errors
/// What the back end refuses.
pub fn drop_ingress(kind: Kind, bridge: &str) -> Result<()> {
    match kind {
        Kind::Iptables => Iptables::new().remove_ingress(bridge),
        Kind::Nftables => match Nftables::find()? {
            Some(nftables) => nftables.closed_later().drop_ingress(bridge),
            None => Ok(()),
        },
    }
}

pub(crate) fn usable_nftables() -> Result<Nftables> {
    let found = Nftables::find_usable(Family::Ip).context("nftables is not usable")?;
    found.context("nftables is not usable: the kernel lacks nf_tables")
}
