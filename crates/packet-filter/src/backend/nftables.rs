//! nf_tables, in-process over netlink: no program is executed, and each
//! operation is one batch that happens as a whole or not at all.

use std::cell::Cell;
use std::collections::{BTreeSet, HashSet};
use std::net::IpAddr;

use anyhow::{Result, bail};
use cni::Attachment;
use cni::conf::ValidAttachment;
use cni::env::{ContainerId, IfName};
use ipnetwork::IpNetwork;
use nix::errno::Errno;

use crate::backend::{Backend, Kind};
use crate::isolation::{self, Isolation, Place};
use crate::masquerade::Masquerade;
use crate::masquerade::nftables as masquerade;
use crate::ports::layout;
use crate::ports::{HostPorts, Notice, nftables as hostport};
use crate::separation::{self, Separation};
use crate::spoof_check::{self, SpoofCheck};
use crate::vxlan_guard::{self, VxlanGuard};
use nftables::conntrack::{UdpPort, Which};
use nftables::{
    Chain, Change, Error, Family, Hook, Point, Socket, Table, Transaction, listing, presence, retry,
};

/// Whether nf_tables can do nat in `family` here, with our privileges. Changes nothing.
pub fn probe(family: Family) -> bool {
    usable(family).unwrap_or(false)
}

/// Whether the kernel has nf_tables with nat in `family`. Changes nothing.
///
/// # Errors
/// It cannot be asked: without privilege, say.
pub fn usable(family: Family) -> Result<bool, Error> {
    match Socket::open().and_then(|socket| is_usable(&socket, family)) {
        Err(error) if error.is_absent() => Ok(false),
        other => other,
    }
}

fn is_usable(socket: &Socket, family: Family) -> Result<bool, Error> {
    // Whoever has a table of the family has shown it, and one of both families has
    // shown it for IP; a trial that is taken back waits for RCU.
    if listing::has_table(socket, family)?
        || family == Family::Ip && listing::has_table(socket, Family::Inet)?
    {
        return Ok(true);
    }
    let table = Table {
        family,
        name: "podwire_probe",
        comment: "",
    };
    let (kind, point) = match family {
        Family::Bridge => ("filter", Point::Prerouting),
        _ => ("nat", Point::Postrouting),
    };
    let hook = Some(Hook {
        kind,
        point,
        priority: 100,
    });
    let name = "probe".into();
    let mut trial = Transaction::new();
    trial.push(Change::AddTable(table));
    trial.push(Change::AddChain(
        table,
        Chain {
            name,
            hook,
            comment: "",
        },
    ));
    trial.check(socket)?;
    Ok(true)
}

/// The owner of published ports, as the kernel names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortOwner {
    /// `network/container/interface`, or a hash of that where it is long.
    pub name: String,
    /// The addresses of its pod.
    pub pod: BTreeSet<IpAddr>,
}

impl PortOwner {
    /// The attachment that it names; `None` where the name is a hash.
    pub fn attachment(&self) -> Option<Attachment> {
        let parts: Vec<_> = self.name.split('/').collect();
        let [network, id, ifname] = parts[..] else {
            return None;
        };
        let attachment = Attachment {
            network: network.to_owned(),
            container_id: ContainerId::parse(id).ok()?,
            ifname: IfName::parse(ifname).ok()?,
        };
        self.is(&attachment).then_some(attachment)
    }

    /// Whether it is this attachment.
    pub fn is(&self, attachment: &Attachment) -> bool {
        self.name == layout::owner(attachment)
    }

    /// Whether it is an attachment to `network`.
    pub fn is_of(&self, network: &str) -> bool {
        use layout::{hashed_prefix, network_prefix};
        let prefixes = [network_prefix(network), hashed_prefix(network)];
        prefixes.iter().any(|it| self.name.starts_with(it))
    }
}

/// The back end.
pub struct Nftables {
    pub(crate) socket: Socket,
}

impl Nftables {
    /// For the calling thread's network namespace.
    pub fn open() -> Result<Self> {
        let socket = Socket::open()?;
        Ok(Self { socket })
    }

    /// The same; `None` where the kernel has no nf_tables.
    ///
    /// # Errors
    /// It cannot be asked.
    pub fn find() -> Result<Option<Self>> {
        let found = Socket::open().and_then(|socket| socket.generation().map(|_| socket));
        match found {
            Ok(socket) => Ok(Some(Self { socket })),
            Err(error) if error.is_absent() => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The same; `None` where it cannot do nat in `family`, as [`usable`] tells.
    ///
    /// # Errors
    /// It cannot be asked.
    pub fn find_usable(family: Family) -> Result<Option<Self>, Error> {
        let socket = Socket::open();
        let usable = socket.and_then(|socket| Ok(is_usable(&socket, family)?.then_some(socket)));
        match usable {
            Ok(socket) => Ok(socket.map(|socket| Self { socket })),
            Err(error) if error.is_absent() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The same, closed by a child, if there is one anyway: for whoever looks for what is
    /// left, maybe a moment after another plugin deleted something.
    pub fn closed_later(self) -> Self {
        let socket = self.socket.closed_later();
        Self { socket }
    }

    /// Forgets the connections `which` of UDP to published ports. A failure goes to
    /// stderr.
    pub fn forget_connections(&self, published: &[UdpPort], which: Which) {
        hostport::flush(&self.socket, published, which);
    }

    /// Removes the mappings of this owner, and no other's; whose connections are to be
    /// forgotten when no back end maps them any more. It is quicker where they are `known`.
    pub fn unmap(&self, owner: &Attachment, known: Option<&HostPorts>) -> Result<Vec<UdpPort>> {
        hostport::unpublish(&self.socket, owner, known)
    }

    /// Whose ports are published.
    ///
    /// # Errors
    /// The kernel cannot be asked.
    pub fn port_owners(&self) -> Result<Vec<PortOwner>> {
        let owners = hostport::owners(&self.socket)?.into_iter();
        let owners = owners.map(|(name, pod)| PortOwner { name, pod });
        Ok(owners.collect())
    }

    /// Removes the ports of these owners, whose UDP clients are sent elsewhere.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub fn remove_ports(&self, owners: &[PortOwner]) -> Result<()> {
        let names: HashSet<_> = owners.iter().map(|it| it.name.as_str()).collect();
        let gone = hostport::remove_all(&self.socket, &|name| names.contains(name))?;
        self.forget_connections(&gone, Which::To);
        Ok(())
    }

    /// Drops what others send to 127.0.0.0/8 of the node; once more does no harm.
    pub fn close_localhost(&self) -> Result<()> {
        self.transact(hostport::close_localhost)
    }

    /// Whether the kernel has nf_tables at all.
    pub fn is_there(&self) -> bool {
        self.socket.generation().is_ok()
    }

    /// Whether there is a table of this name, whoever made it.
    ///
    /// # Errors
    /// The kernel cannot be asked.
    pub fn has_table(&self, family: Family, table: &str) -> Result<bool> {
        present(presence::has_table(&self.socket, family, table))
    }

    /// Whether a table that may be somebody else's has a chain of this name.
    ///
    /// # Errors
    /// The kernel cannot be asked.
    pub fn has_chain(&self, family: Family, table: &str, chain: &str) -> Result<bool> {
        present(presence::has_chain(&self.socket, family, table, chain))
    }

    /// Drops what `wanted`'s veth sends with another MAC than the pod's; once
    /// more does no harm. Entries of veths that are another attachment's stay.
    pub fn ensure_spoof_check(
        &self,
        wanted: &SpoofCheck,
        is_anothers: &dyn Fn(&str) -> bool,
    ) -> Result<()> {
        self.transact(|socket| spoof_check::add(socket, wanted, is_anothers))
    }

    /// Removes what is there for `owner`, found by its names; not what is there for a veth
    /// that is another attachment's.
    pub fn remove_spoof_check(
        &self,
        owner: &Attachment,
        is_anothers: &dyn Fn(&str) -> bool,
    ) -> Result<()> {
        self.transact(|socket| spoof_check::remove(socket, owner, is_anothers))
    }

    /// Removes what is there for ports of `network` that are of nobody `valid`,
    /// though the port itself is gone. Those of the Go plugin, whose host veths
    /// have names by chance, are not found.
    pub fn collect_spoof_checks(&self, network: &str, valid: &[ValidAttachment]) -> Result<()> {
        self.transact(|socket| spoof_check::collect(socket, network, valid))
    }

    /// Fails if something is missing.
    pub fn check_spoof_check(&self, wanted: &SpoofCheck) -> Result<()> {
        complete(spoof_check::missing(&self.socket, wanted)?)
    }

    /// Keeps what is forwarded of a network from the others that are kept apart; once
    /// more does no harm.
    pub fn ensure_separation(&self, wanted: &Separation) -> Result<()> {
        self.transact(|socket| separation::add(socket, wanted))
    }

    /// Forgets a network that was kept apart, and who may send its packets; its devices are
    /// gone.
    pub fn forget_network(&self, network: &str) -> Result<()> {
        self.transact(|socket| {
            let mut changes = separation::remove(socket, network)?;
            changes.extend(vxlan_guard::remove(socket, network)?);
            Ok(changes)
        })
    }

    /// Drops VXLAN packets that are not from where `wanted` says; once more does no harm.
    pub fn guard_vxlan(&self, wanted: &VxlanGuard) -> Result<()> {
        self.transact(|socket| vxlan_guard::add(socket, wanted))
    }

    /// Whether that was done before, as far as one question tells.
    pub fn knows_vxlan(&self, wanted: &VxlanGuard) -> Result<bool> {
        Ok(vxlan_guard::is_known(&self.socket, wanted)?)
    }

    /// Fails if something of it is missing, or more is there.
    pub fn check_vxlan_guard(&self, wanted: &VxlanGuard) -> Result<()> {
        complete(vxlan_guard::missing(&self.socket, wanted)?)
    }

    /// Fails if something of what keeps a network apart is missing.
    pub fn check_separation(&self, wanted: &Separation) -> Result<()> {
        complete(separation::missing(&self.socket, wanted)?)
    }

    /// Whether subnets of `network` that are not among `kept` are masqueraded.
    ///
    /// # Errors
    /// The kernel cannot be asked.
    pub fn masquerades_others(&self, network: &str, kept: &[IpNetwork]) -> Result<bool> {
        let found = masquerade::rules(&self.socket)?;
        Ok(!masquerade::of_others(&found, network, kept).is_empty())
    }

    /// Removes the rules for subnets of `network` that are not among `kept`.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub fn retain_masquerade(&self, network: &str, kept: &[IpNetwork]) -> Result<()> {
        self.transact(|socket| {
            let found = masquerade::rules(socket)?;
            let others = masquerade::of_others(&found, network, kept);
            Ok(masquerade::removal(&others))
        })
    }

    /// Keeps pods behind isolated ports from each other where the node forwards; once more does
    /// no harm.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub fn isolate(&self, wanted: &Isolation) -> Result<()> {
        self.transact(|socket| isolation::add(socket, &[wanted]))
    }

    /// Fails if something of what isolates a network's pods is missing.
    ///
    /// # Errors
    /// What is missing.
    pub fn check_isolation(&self, wanted: &Isolation) -> Result<()> {
        complete(isolation::missing(&self.socket, wanted)?)
    }

    /// Whether rules isolate pods of `network` elsewhere than at `kept`.
    ///
    /// # Errors
    /// The kernel cannot be asked.
    pub fn isolates_others(&self, network: &str, kept: &[Place]) -> Result<bool> {
        Ok(!isolation::others(&self.socket, network, kept)?.is_empty())
    }

    /// Removes the rules that isolate pods of `network` elsewhere than at `kept`.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub fn retain_isolation(&self, network: &str, kept: &[Place]) -> Result<()> {
        self.transact(|socket| isolation::others(socket, network, kept))
    }

    /// Reads, decides and writes; again where somebody else wrote in between.
    fn transact(&self, decide: impl Fn(&Socket) -> Result<Transaction, Error>) -> Result<()> {
        retry(Errno::ERESTART, || {
            let generation = self.socket.generation()?;
            let changes = decide(&self.socket)?;
            Ok(changes.commit(&self.socket, Some(generation))?)
        })
    }
}

/// A family that the kernel does not have holds nothing.
fn present(asked: Result<bool, Error>) -> Result<bool> {
    match asked {
        Err(error) if error.is_absent() => Ok(false),
        other => Ok(other?),
    }
}

fn complete(missing: Option<String>) -> Result<()> {
    match missing {
        Some(missing) => bail!(missing),
        None => Ok(()),
    }
}

impl Backend for Nftables {
    fn kind(&self) -> Kind {
        Kind::Nftables
    }

    fn masquerade(&self, wanted: &Masquerade) -> Result<bool> {
        let others = Cell::new(false);
        self.transact(|socket| {
            let (changes, has_others) = masquerade::add(socket, wanted)?;
            others.set(has_others);
            Ok(changes)
        })?;
        Ok(others.get())
    }

    /// Needs no addresses: the comments name the interface.
    fn remove_masquerade(&self, owner: &Attachment, _: &[IpAddr]) -> Result<()> {
        self.transact(|socket| masquerade::remove(socket, owner))
    }

    fn check_masquerade(&self, wanted: &Masquerade) -> Result<()> {
        complete(masquerade::missing(&self.socket, wanted)?)
    }

    fn collect_masquerade(&self, network: &str, valid: &[ValidAttachment]) -> Result<()> {
        self.transact(|socket| masquerade::collect(socket, network, valid))
    }

    fn publish(&self, wanted: &HostPorts) -> Result<Vec<Notice>> {
        hostport::publish(&self.socket, wanted)
    }

    fn unpublish(&self, owner: &Attachment) -> Result<()> {
        let gone = self.unmap(owner, None)?;
        self.forget_connections(&gone, Which::To);
        Ok(())
    }

    fn check_published(&self, wanted: &HostPorts) -> Result<()> {
        hostport::check(&self.socket, wanted)
    }

    fn collect_published(&self, network: &str, valid: &[ValidAttachment]) -> Result<()> {
        let gone = hostport::collect(&self.socket, network, valid)?;
        self.forget_connections(&gone, Which::To);
        Ok(())
    }
}
