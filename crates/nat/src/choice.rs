//! Which back end does the work: the kernel is asked, the configuration may
//! force one. And who else may have left something.

use std::fmt;
use std::fs;
use std::net::IpAddr;

use anyhow::{Context, Result, bail};
use cni::conf::ValidAttachment;
use cni::{Attachment, BestEffort, names};

use crate::backend::{Backend, Kind};
use crate::hostport::{HostPorts, Notice};
use crate::iptables::Iptables;
use crate::masquerade::Masquerade;
use crate::nftables::{self, Family, Nftables};

impl Kind {
    /// The back end that a configuration calls `text`.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "nftables" => Some(Self::Nftables),
            "iptables" => Some(Self::Iptables),
            _ => None,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nftables => "nftables",
            Self::Iptables => "iptables",
        })
    }
}

/// The back end to write with: the one that is `forced`, else nftables where
/// the kernel has it, else iptables.
///
/// # Errors
/// When the one that is forced, or both, cannot be used here.
pub fn open(forced: Option<Kind>) -> Result<Box<dyn Backend>> {
    if forced != Some(Kind::Iptables) {
        // Found usable and used over one socket.
        let found = Nftables::find_usable(Family::Ip).context("nftables is not usable")?;
        if let Some(nftables) = found {
            return Ok(Box::new(nftables));
        }
        if forced == Some(Kind::Nftables) {
            bail!("nftables is not usable: the kernel lacks nf_tables")
        }
    }
    let iptables = Iptables::new();
    if iptables.probe().any() {
        return Ok(Box::new(iptables));
    }
    match forced {
        Some(_) => {
            bail!("iptables is not usable: neither iptables nor ip6tables can read its nat table")
        }
        None => bail!("neither nftables nor iptables is usable: the kernel lacks both"),
    }
}

/// What publishing has done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    /// By which back end.
    pub by: Kind,
    /// What others had.
    pub taken: Vec<Notice>,
}

/// Publishes ports with the back end that is `forced` or found.
///
/// # Errors
/// As [`open`]; what the back end refuses.
pub fn publish(wanted: &HostPorts, forced: Option<Kind>) -> Result<Published> {
    let backend = open(forced)?;
    let (by, taken) = (backend.kind(), backend.publish(wanted)?);
    if by == Kind::Iptables {
        forget_connections(wanted, false);
    }
    Ok(Published { by, taken })
}

/// Drops what others send to 127.0.0.0/8 of the node, before `route_localnet`
/// opens it to them (CVE-2020-8558). nftables has that in the table of the
/// published ports already; where the ports are iptables' own, which are laid
/// out as the Go plugins do it, this stands beside them: in nf_tables where the
/// kernel has it, else in the table raw. It stays, as `route_localnet` does.
///
/// # Errors
/// What the kernel or iptables refuses: then the interface should stay closed.
pub fn close_localhost() -> Result<()> {
    if nftables::usable(Family::Ip)? {
        return Nftables::open()?.close_localhost();
    }
    Iptables::new().close_localhost()
}

/// Forgets connections of UDP to the published ports that lead to the pod
/// (`to_the_pod`) or elsewhere: a client that goes on sending would otherwise
/// never reach the next one.
pub fn forget_connections(published: &HostPorts, to_the_pod: bool) {
    // Connections are not kept in nf_tables, but asked for over the same socket.
    if let Ok(nfnetlink) = Nftables::open() {
        nfnetlink.forget_connections(published, to_the_pod);
    }
}

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
        Kind::Nftables => iptables_may_hold(&nftables, chains)?.then(|| check(&Iptables::new())),
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
        addresses: impl FnOnce() -> Option<Vec<IpAddr>>,
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
            let held = iptables_may_hold(&nftables, &[chain])?;
            match held.then(addresses).flatten() {
                Some(addresses) => remove(&Iptables::new(), &addresses),
                None => Ok(()),
            }
        });
        all.finish()
    }

    /// Removes the published ports of one interface from wherever they are.
    pub fn unpublish(owner: &Attachment) -> Result<()> {
        let chains =
            ["CNI-DN-", "CNI-SN-"].map(|prefix| names::prefixed(28, prefix, &joined(owner)));
        let mut all = BestEffort::new();
        let nftables = find(&mut all);
        if let Some(nftables) = &nftables {
            all.step("remove published ports", || nftables.unpublish(owner));
        }
        all.step("remove published ports", || {
            match iptables_may_hold(&nftables, &chains)? {
                true => Iptables::new().unpublish(owner),
                false => Ok(()),
            }
        });
        all.finish()
    }

    /// Removes the spoof check of one interface; there is none without nf_tables.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub fn remove_spoof_check(owner: &Attachment) -> Result<()> {
        let nftables = Nftables::find()?;
        nftables.map_or(Ok(()), |nftables| nftables.remove_spoof_check(owner))
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
        all.step(what, || match iptables_may_hold_any()? {
            true => step(&Iptables::new()),
            false => Ok(()),
        });
        all.finish()
    }
}

/// nf_tables, where the kernel has it: without, there is nothing in it. That it
/// cannot be asked is a failure: it may be full.
fn find(all: &mut BestEffort) -> Option<Nftables> {
    all.step("look for nf_tables", Nftables::find).flatten()
}

/// Chain names are made of network and container, without anything in between.
fn joined(owner: &Attachment) -> String {
    format!("{}{}", owner.network, owner.container_id)
}

/// Whether iptables may have a nat chain of one of these names: its nft variant
/// is asked, its legacy variant has a nat table or has none.
fn iptables_may_hold(nftables: &Option<Nftables>, chains: &[String]) -> Result<bool> {
    if let Some(nftables) = nftables {
        for chain in chains {
            for family in [Family::Ip, Family::Ip6] {
                if nftables.has_chain(family, "nat", chain)? {
                    return Ok(true);
                }
            }
        }
    }
    Ok(legacy_has_nat())
}

/// Whether iptables may have anything in its nat tables.
///
/// # Errors
/// The kernel cannot be asked.
pub(crate) fn iptables_may_hold_any() -> Result<bool> {
    if let Some(nftables) = Nftables::find()? {
        for family in [Family::Ip, Family::Ip6] {
            if nftables.has_table(family, "nat")? {
                return Ok(true);
            }
        }
    }
    Ok(legacy_has_nat())
}

fn legacy_has_nat() -> bool {
    ["ip_tables_names", "ip6_tables_names"].iter().any(|file| {
        fs::read_to_string(format!("/proc/thread-self/net/{file}"))
            .is_ok_and(|tables| tables.lines().any(|table| table == "nat"))
    })
}
