//! nf_tables as a back end: whether the kernel has it, and how each change of the rule set is made.

use std::cell::Cell;
use std::net::IpAddr;

use anyhow::{Result, bail};
use cni::conf::ValidAttachment;
use cni::{Attachment, names};
use nftables::{
    Chain, Error, Family, Point, Socket, Table, Transaction, is_absent, listing, retry,
};

use crate::backend::{Backend, Kind};
use crate::masquerade::{Masquerade, nftables as masquerade};
use crate::ports::{
    Connections, HostPorts, Notice, UdpPort, delete_connections, nftables as ports,
};

/// The back end, for the network namespace in which it was opened. Each subject's methods are in
/// its own module. They fail if the kernel refuses; `check_*` also if something is missing.
#[derive(Debug)]
pub struct Nftables {
    pub(crate) socket: Socket,
}

impl Nftables {
    /// Opens it, whether the kernel has nf_tables or not.
    ///
    /// # Errors
    /// The kernel has no nfnetlink.
    pub fn open() -> Result<Self> {
        let socket = Socket::open()?;
        Ok(Self { socket })
    }

    /// Opens it; `None` where the kernel has no nf_tables.
    ///
    /// # Errors
    /// The kernel refuses: without privilege, for example.
    pub fn find() -> Result<Option<Self>> {
        let found = Socket::open().and_then(|socket| socket.generation().map(|_| socket));
        Ok(unless_absent(found)?.map(|socket| Self { socket }))
    }

    /// Opens it; `None` where it cannot do nat in `family`. Changes nothing.
    ///
    /// # Errors
    /// As [`Nftables::find`].
    pub fn find_usable(family: Family) -> Result<Option<Self>, Error> {
        let tried = Socket::open().and_then(|socket| try_out(&socket, family).map(|()| socket));
        Ok(unless_absent(tried)?.map(|socket| Self { socket }))
    }

    /// Has a child process close the socket, if there is one anyway: for a caller that looks for
    /// leftovers, perhaps a moment after another plugin deleted something.
    pub fn closed_later(self) -> Self {
        let socket = self.socket.closed_later();
        Self { socket }
    }

    /// Has a child process close the socket. In podman's list, firewall deletes its rules right before
    /// portmap is called: without a child, a portmap that has nothing to delete waits 8 ms at its end.
    pub fn closed_by_child(self) -> Self {
        let socket = self.socket.closed_by_child();
        Self { socket }
    }

    /// Whether any program has made a table of this name.
    pub fn has_table(&self, family: Family, table: &str) -> Result<bool> {
        let found = unless_absent(listing::has_table(&self.socket, family, table))?;
        Ok(found.unwrap_or(false))
    }

    /// Whether any program has made a chain of this name.
    pub fn has_chain(&self, family: Family, table: &str, chain: &str) -> Result<bool> {
        let found = unless_absent(listing::has_chain(&self.socket, family, table, chain))?;
        Ok(found.unwrap_or(false))
    }

    /// The chains of any program whose policy drops forwarded packets: the family, table and name
    /// of each.
    pub fn dropping_forwarded(&self) -> Result<Vec<(Family, String, String)>> {
        let found = unless_absent(listing::dropping_forwarded(&self.socket))?;
        Ok(found.unwrap_or_default())
    }

    /// Closes 127.0.0.0/8 of the node to packets from outside. It can be repeated.
    pub fn close_localhost(&self) -> Result<()> {
        self.transact(ports::close_localhost)
    }

    /// Removes the mappings of this owner, and no other's. Returns the UDP ports whose connections
    /// are to be deleted when no back end maps them any more. It is quicker where the ports are
    /// `known`.
    pub(crate) fn remove_ports_of(
        &self,
        owner: &Attachment,
        known: Option<&HostPorts>,
    ) -> Result<Vec<UdpPort>> {
        ports::unpublish(&self.socket, owner, known)
    }

    /// Deletes tracked connections to published UDP ports. A failure is logged.
    pub(crate) fn delete_connections(&self, published: &[UdpPort], connections: Connections) {
        delete_connections(&self.socket, published, connections);
    }

    /// Reads, decides and writes. Repeats that if another program has written in between.
    pub(crate) fn transact(
        &self,
        decide: impl Fn(&Socket) -> Result<Transaction, Error>,
    ) -> Result<()> {
        retry(|| {
            let generation = self.socket.generation()?;
            let changes = decide(&self.socket)?;
            Ok(changes.commit(&self.socket, Some(generation))?)
        })
    }
}

/// Fails with the error of a kernel that does not have nat in `family`.
fn try_out(socket: &Socket, family: Family) -> Result<(), Error> {
    // A table of the family shows that it can be used, and one of both families shows it for IPv4.
    // A trial that is dropped waits for RCU.
    if listing::has_tables(socket, family)?
        || family == Family::Ip && listing::has_tables(socket, Family::Inet)?
    {
        return Ok(());
    }
    let table = Table::new(family, "podwire_probe");
    let chain = match family {
        Family::Bridge => Chain::hooked("probe", "filter", Point::Prerouting, 100),
        _ => Chain::hooked("probe", "nat", Point::Postrouting, 100),
    };
    let mut trial = Transaction::new();
    trial.add_table(table);
    trial.add_chain(table, chain);
    trial.check(socket)
}

/// `None` if the kernel does not support the requested objects, and so has none.
fn unless_absent<T>(result: Result<T, Error>) -> Result<Option<T>, Error> {
    match result {
        Err(error) if is_absent(&error) => Ok(None),
        other => other.map(Some),
    }
}

/// The comment of a network's rules and elements. A long name is hashed, so that two networks never
/// have the same comment.
pub(crate) fn network_comment(network: &str) -> String {
    format!("net: {}", names::short(network))
}

/// Fails with the text `missing`, if there is one.
pub(crate) fn complete(missing: Option<String>) -> Result<()> {
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
        let found = masquerade::rules(&self.socket)?;
        complete(masquerade::missing(&found, wanted))
    }

    fn collect_masquerade(&self, network: &str, valid: &[ValidAttachment]) -> Result<()> {
        self.transact(|socket| masquerade::collect(socket, network, valid))
    }

    fn publish(&self, wanted: &HostPorts) -> Result<Vec<Notice>> {
        ports::publish(&self.socket, wanted)
    }

    fn unpublish(&self, owner: &Attachment) -> Result<()> {
        let gone = self.remove_ports_of(owner, None)?;
        self.delete_connections(&gone, Connections::ToPod);
        Ok(())
    }

    fn check_published(&self, wanted: &HostPorts) -> Result<()> {
        ports::check(&self.socket, wanted)
    }

    fn collect_published(&self, network: &str, valid: &[ValidAttachment]) -> Result<()> {
        let gone = ports::collect(&self.socket, network, valid)?;
        self.delete_connections(&gone, Connections::ToPod);
        Ok(())
    }
}
