//! Rules that the Go plugins, or the back end that is not chosen now, may have left: at ADD another
//! suite may have run, or the configuration may have named another back end.

use std::fs;
use std::io::ErrorKind;
use std::net::IpAddr;

use anyhow::{Result, bail};
use cni::conf::ValidAttachment;
use cni::{Attachment, BestEffort};
use nftables::Family;

use crate::backend::{Backend, Families, Iptables, Kind, Nftables, open};
use crate::masquerade::{Masquerade, iptables as masquerade};
use crate::ports::{Connections, HostPorts, UdpPort, iptables as ports};
use crate::spoof_check::IsOfOther;

/// Whether the pod is masqueraded, by either back end.
///
/// # Errors
/// What is missing in the back end that is chosen now.
pub fn check_masquerade(wanted: &Masquerade, forced: Option<Kind>) -> Result<()> {
    let chain = masquerade::chain(&wanted.owner);
    check(forced, &[chain], |backend| backend.check_masquerade(wanted))
}

/// Whether the ports are published, by either back end.
///
/// # Errors
/// As [`check_masquerade`].
pub fn check_published(wanted: &HostPorts, forced: Option<Kind>) -> Result<()> {
    let chain = ports::chain(&wanted.owner);
    check(forced, &[chain], |backend| backend.check_published(wanted))
}

fn check(
    forced: Option<Kind>,
    chains: &[String],
    check: impl Fn(&dyn Backend) -> Result<()>,
) -> Result<()> {
    let chosen = open(forced)?;
    let Err(missing) = check(chosen.as_ref()) else {
        return Ok(());
    };
    let nftables = Nftables::find()?;
    let other = match chosen.kind() {
        Kind::Nftables => {
            let chains = IptablesChains::find(&nftables, chains)?;
            chains.may_exist().then(|| check(&Iptables::new()))
        }
        Kind::Iptables => nftables.map(|nftables| check(&nftables)),
    };
    match other {
        Some(Ok(())) => Ok(()),
        _ => Err(missing),
    }
}

/// Removes the rules of an owner from both back ends. Methods fail if a back end refuses.
pub struct Leftovers;

impl Leftovers {
    /// Removes the masquerade of one interface from both back ends.
    ///
    /// In iptables, interfaces of a container on one network share a chain, and only its address
    /// shows to which interface a jump belongs. `addresses` are those of this interface. They are
    /// empty if they are unknown and no other interface uses the chain, and `None` if they are
    /// unknown and another interface exists: then everything stays until its DEL, or GC.
    pub fn remove_masquerade(
        owner: &Attachment,
        addresses: impl FnOnce() -> Result<Option<Vec<IpAddr>>>,
    ) -> Result<()> {
        const STEP: &str = "remove masquerade";
        let chain = masquerade::chain(owner);
        let mut all = BestEffort::new();
        let nftables = find(&mut all);
        if let Some(nftables) = &nftables {
            all.step(STEP, || nftables.remove_masquerade(owner, &[]));
        }
        all.step(STEP, || {
            let chains = IptablesChains::find(&nftables, std::slice::from_ref(&chain))?;
            if chains.may_exist()
                && let Some(addresses) = addresses()?
            {
                chains.remove(&nftables, &chain, |iptables| {
                    iptables.remove_masquerade(owner, &addresses)
                })?;
            }
            Ok(())
        });
        all.finish()
    }

    /// Removes the published ports of one interface from both back ends, and the tracked UDP
    /// connections to them: a client that goes on sending would otherwise never reach the next pod.
    /// `known` are the ports that configuration and result name: with them it is quicker, and
    /// connections to ports that iptables mapped are deleted.
    pub fn unpublish(owner: &Attachment, known: Option<&HostPorts>) -> Result<()> {
        const STEP: &str = "remove published ports";
        let chains = [ports::chain(owner), ports::old_chain(owner)];
        let mut gone = known.map(UdpPort::all).unwrap_or_default();
        let mut all = BestEffort::new();
        let nftables = look(&mut all).map(Nftables::closed_by_child);
        if let Some(nftables) = &nftables {
            let removed = all.step(STEP, || nftables.remove_ports_of(owner, known));
            gone.extend(removed.into_iter().flatten());
        }
        all.step(STEP, || {
            let found = IptablesChains::find(&nftables, &chains)?;
            if !found.may_exist() {
                return Ok(());
            }
            found.remove(&nftables, &chains[0], |iptables| iptables.unpublish(owner))
        });
        if !gone.is_empty()
            && let Some(nfnetlink) = nftables.or_else(|| Nftables::open().ok())
        {
            nfnetlink.delete_connections(&gone, Connections::ToPod);
        }
        all.finish()
    }

    /// Removes the spoof check of one interface; without nf_tables there is none. Entries for the
    /// veth of another attachment stay.
    pub fn remove_spoof_check(owner: &Attachment, is_of_other: IsOfOther<'_>) -> Result<()> {
        let nftables = Nftables::find()?.map(Nftables::closed_later);
        nftables.map_or(Ok(()), |it| it.remove_spoof_check(owner, is_of_other))
    }

    /// Removes the masquerade of attachments to `network` that are not `valid`.
    pub fn collect_masquerade(network: &str, valid: &[ValidAttachment]) -> Result<()> {
        collect("collect masquerade", |backend| {
            backend.collect_masquerade(network, valid)
        })
    }

    /// Removes the published ports of attachments to `network` that are not `valid`.
    pub fn collect_published(network: &str, valid: &[ValidAttachment]) -> Result<()> {
        collect("collect published ports", |backend| {
            backend.collect_published(network, valid)
        })
    }
}

fn collect(what: &str, step: impl Fn(&dyn Backend) -> Result<()>) -> Result<()> {
    let mut all = BestEffort::new();
    if let Some(nftables) = find(&mut all) {
        all.step(what, || step(&nftables));
    }
    // If there is no nat table, the programs would create one only to find it empty.
    all.step(what, || match iptables_hint()? {
        Hint::Nothing => Ok(()),
        hint => step(&Iptables::new().guessed(hint == Hint::Unreadable)),
    });
    all.finish()
}

/// nf_tables, if the kernel has it. It is a failure if it cannot be queried, because it may have
/// rules.
fn look(all: &mut BestEffort) -> Option<Nftables> {
    all.step("look for nf_tables", Nftables::find).flatten()
}

/// The same for a caller that has a child anyway, or runs alone.
fn find(all: &mut BestEffort) -> Option<Nftables> {
    look(all).map(Nftables::closed_later)
}

/// What is known about an owner's chains in iptables without executing a program.
struct IptablesChains {
    /// The families in which nf_tables has such a chain, made by the nft variant.
    known: Families,
    /// Whether the legacy variant has any table: more cannot be known without a program.
    legacy: Hint,
}

impl IptablesChains {
    /// Looks for nat chains of these names.
    fn find(nftables: &Option<Nftables>, chains: &[String]) -> Result<Self> {
        let mut known = Families::default();
        for chain in chains {
            known.v4 |= has_chain(nftables, Family::Ip, chain)?;
            known.v6 |= has_chain(nftables, Family::Ip6, chain)?;
        }
        let legacy = if known.any() {
            Hint::Nothing
        } else {
            legacy_hint()
        };
        Ok(Self { known, legacy })
    }

    fn may_exist(&self) -> bool {
        self.known.any() || self.legacy != Hint::Nothing
    }

    /// Has the programs remove the rules that they see. They must see `chain` if it is known to
    /// exist: they may have been removed, or be of the other variant.
    fn remove(
        &self,
        nftables: &Option<Nftables>,
        chain: &str,
        remove: impl FnOnce(&Iptables) -> Result<()>,
    ) -> Result<()> {
        let iptables = Iptables::new()
            .needed_in(self.known)
            .guessed(self.legacy == Hint::Unreadable);
        remove(&iptables)?;
        for family in [Family::Ip, Family::Ip6] {
            // It may stay: another interface of the container needs it.
            if self.known.any()
                && has_chain(nftables, family, chain)?
                && !iptables.sees(family == Family::Ip, chain)?
            {
                bail!("chain {chain} stays in nf_tables ({family} nat): iptables does not see it");
            }
        }
        Ok(())
    }
}

fn has_chain(nftables: &Option<Nftables>, family: Family, chain: &str) -> Result<bool> {
    match nftables {
        Some(nftables) => nftables.has_chain(family, "nat", chain),
        None => Ok(false),
    }
}

/// What the kernel shows of iptables' nat tables without a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hint {
    /// There is no nat table, so nothing is in it.
    Nothing,
    /// We are not permitted to read it: only a program can.
    Unreadable,
    /// There is a nat table.
    Something,
}

/// Whether iptables, in either variant, may have anything in its nat tables.
///
/// # Errors
/// nf_tables cannot be read.
pub(crate) fn iptables_hint() -> Result<Hint> {
    if let Some(nftables) = Nftables::find()? {
        for family in [Family::Ip, Family::Ip6] {
            if nftables.has_table(family, "nat")? {
                return Ok(Hint::Something);
            }
        }
    }
    Ok(legacy_hint())
}

/// Whether the legacy variant may have anything. The kernel has these files with its module. They
/// belong to the root user of the network namespace. A namespace that was made before its user
/// namespace got a uid map has no root user, and then no program in it can read them
/// (`ip_tables_net_init` in net/ipv4/netfilter/ip_tables.c).
fn legacy_hint() -> Hint {
    let hint = |file| match fs::read_to_string(format!("/proc/thread-self/net/{file}")) {
        Ok(tables) if tables.lines().any(|table| table == "nat") => Hint::Something,
        Ok(_) => Hint::Nothing,
        Err(error) if error.kind() == ErrorKind::NotFound => Hint::Nothing,
        Err(_) => Hint::Unreadable,
    };
    let hints = ["ip_tables_names", "ip6_tables_names"].map(hint);
    let order = [Hint::Something, Hint::Unreadable];
    let strongest = order.into_iter().find(|it| hints.contains(it));
    strongest.unwrap_or(Hint::Nothing)
}
