//! What the back end that is not chosen now, or the Go plugins, may have left.

use std::fs;
use std::io::ErrorKind;
use std::net::IpAddr;

use anyhow::{Result, bail};
use cni::conf::ValidAttachment;
use cni::{Attachment, BestEffort, names};
use nftables::Family;
use nftables::conntrack::Which;

use crate::backend::{Backend, Families, Iptables, Kind, Nftables, open};
use crate::masquerade::Masquerade;
use crate::ports::HostPorts;
use crate::ports::nftables::published as udp_ports;

/// Whether the pod is masqueraded, by whichever back end: the one that would be
/// chosen now need not be the one of its ADD, or of the suite that made it.
///
/// # Errors
/// What is missing in the back end that is chosen now.
pub fn check_masquerade(wanted: &Masquerade, forced: Option<Kind>) -> Result<()> {
    let chain = names::prefixed(28, "CNI-", &joined(&wanted.owner));
    checked(forced, &[chain], |backend| backend.check_masquerade(wanted))
}

/// Whether the ports are published, by whichever back end.
///
/// # Errors
/// As [`check_masquerade`].
pub fn check_published(wanted: &HostPorts, forced: Option<Kind>) -> Result<()> {
    let chain = names::prefixed(28, "CNI-DN-", &joined(&wanted.owner));
    checked(forced, &[chain], |backend| backend.check_published(wanted))
}

fn checked(
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
            let held = Held::find(&nftables, chains)?;
            held.may_be().then(|| check(&Iptables::new()))
        }
        Kind::Iptables => nftables.map(|nftables| check(&nftables)),
    };
    match other {
        Some(Ok(())) => Ok(()),
        _ => Err(missing),
    }
}

/// What an owner may have left with a back end, whichever the configuration
/// names now: it may have been another one at ADD, or another suite.
pub struct Leftovers;

impl Leftovers {
    /// Removes the masquerade of one interface from wherever it is.
    ///
    /// In iptables, interfaces of a container on one network share a chain, and
    /// only an address tells whose jump is whose. `addresses` are this one's; none,
    /// if nobody knows them and the chain is nobody else's; `None`, if nobody
    /// knows them and another interface lives: then all stays for its DEL, or GC.
    pub fn remove_masquerade(
        owner: &Attachment,
        addresses: impl FnOnce() -> Result<Option<Vec<IpAddr>>>,
    ) -> Result<()> {
        let chain = names::prefixed(28, "CNI-", &joined(owner));
        let remove = |backend: &dyn Backend, addresses: &[IpAddr]| {
            backend.remove_masquerade(owner, addresses)
        };
        let mut all = BestEffort::new();
        let nftables = find(&mut all);
        if let Some(nftables) = &nftables {
            all.step("remove masquerade", || remove(nftables, &[]));
        }
        all.step("remove masquerade", || {
            let held = Held::find(&nftables, std::slice::from_ref(&chain))?;
            if held.may_be()
                && let Some(addresses) = addresses()?
            {
                held.remove(&nftables, &chain, |iptables| remove(iptables, &addresses))?;
            }
            Ok(())
        });
        all.finish()
    }

    /// Removes the published ports of one interface from wherever they are, and forgets
    /// connections of UDP to them: a client that goes on sending would otherwise never
    /// reach the next pod. `known` are those that configuration and result tell of: it is
    /// quicker with them, and connections to those that iptables mapped are forgotten.
    pub fn unpublish(owner: &Attachment, known: Option<&HostPorts>) -> Result<()> {
        let chains =
            ["CNI-DN-", "CNI-SN-"].map(|prefix| names::prefixed(28, prefix, &joined(owner)));
        let mut gone = known.map(udp_ports).unwrap_or_default();
        let mut all = BestEffort::new();
        let nftables = find(&mut all);
        if let Some(nftables) = &nftables {
            let unmap = || nftables.unmap(owner, known);
            gone.extend(
                all.step("remove published ports", unmap)
                    .into_iter()
                    .flatten(),
            );
        }
        all.step("remove published ports", || {
            let held = Held::find(&nftables, &chains)?;
            match held.may_be() {
                true => held.remove(&nftables, &chains[0], |iptables| iptables.unpublish(owner)),
                false => Ok(()),
            }
        });
        if !gone.is_empty()
            && let Some(nfnetlink) = nftables.or_else(|| Nftables::open().ok())
        {
            nfnetlink.forget_connections(&gone, Which::To);
        }
        all.finish()
    }

    /// Removes the spoof check of one interface; there is none without nf_tables. What is there
    /// for a veth that is another attachment's stays.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub fn remove_spoof_check(
        owner: &Attachment,
        is_anothers: &dyn Fn(&str) -> bool,
    ) -> Result<()> {
        let nftables = Nftables::find()?.map(Nftables::closed_later);
        nftables.map_or(Ok(()), |nftables| {
            nftables.remove_spoof_check(owner, is_anothers)
        })
    }

    /// Removes every masquerade of `network` that is for nobody in `valid`.
    pub fn collect_masquerade(network: &str, valid: &[ValidAttachment]) -> Result<()> {
        Self::collect("collect masquerade", |backend| {
            backend.collect_masquerade(network, valid)
        })
    }

    /// Removes every published port of `network` that is of nobody in `valid`.
    pub fn collect_published(network: &str, valid: &[ValidAttachment]) -> Result<()> {
        Self::collect("collect published ports", |backend| {
            backend.collect_published(network, valid)
        })
    }

    fn collect(what: &str, step: impl Fn(&dyn Backend) -> Result<()>) -> Result<()> {
        let mut all = BestEffort::new();
        if let Some(nftables) = find(&mut all) {
            all.step(what, || step(&nftables));
        }
        // Where it has no table, programs would only make one to find it empty.
        all.step(what, || match iptables_hint()? {
            Hint::Nothing => Ok(()),
            hint => step(&Iptables::new().guessed(hint == Hint::Unreadable)),
        });
        all.finish()
    }
}

/// nf_tables, where the kernel has it: without, there is nothing in it. That it
/// cannot be asked is a failure: it may be full.
fn find(all: &mut BestEffort) -> Option<Nftables> {
    let found = all.step("look for nf_tables", Nftables::find).flatten();
    found.map(Nftables::closed_later)
}

/// Chain names are made of network and container, without anything in between.
fn joined(owner: &Attachment) -> String {
    format!("{}{}", owner.network, owner.container_id)
}

/// What is known of an owner's chains in iptables.
struct Held {
    /// In which families nf_tables has one: there the nft variant has made it, or an
    /// older suite with it.
    known: Families,
    /// Whether the legacy variant has anything at all: it is not to be asked for more
    /// without a program.
    legacy: Hint,
}

impl Held {
    /// Asks for nat chains of these names.
    fn find(nftables: &Option<Nftables>, chains: &[String]) -> Result<Self> {
        let mut known = Families::default();
        for chain in chains {
            known.v4 |= has_chain(nftables, Family::Ip, chain)?;
            known.v6 |= has_chain(nftables, Family::Ip6, chain)?;
        }
        let legacy = match known.any() {
            true => Hint::Nothing,
            false => legacy_hint(),
        };
        Ok(Self { known, legacy })
    }

    fn may_be(&self) -> bool {
        self.known.any() || self.legacy != Hint::Nothing
    }

    /// Has the programs remove what they see, which must include `chain` where it is
    /// known to be: they may be missing by now, or of the other variant.
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

/// What the kernel says of iptables' nat tables without a program being executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hint {
    /// There is no nat table, so nothing is in it.
    Nothing,
    /// The kernel does not let us read it: only a program can tell.
    Unreadable,
    /// There is a nat table.
    Something,
}

/// Whether iptables, in either variant, may have anything in its nat tables.
///
/// # Errors
/// nf_tables cannot be asked.
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

/// Whether the legacy variant may have anything. The kernel has these files with its
/// module. They belong to the root user of the network namespace. A namespace that was
/// made before its user namespace got a uid map has no root user, and then no program in it
/// can read them (`ip_tables_net_init` in net/ipv4/netfilter/ip_tables.c).
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
