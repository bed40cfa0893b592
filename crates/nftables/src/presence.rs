//! What others keep in nf_tables, asked for by name: iptables' nft variant
//! keeps its tables there, so whether it holds a chain costs one question and
//! no process.

use nix::errno::Errno;
use nix::libc;

use crate::error::Error;
use crate::family::Family;
use crate::message::{Attributes, Head};
use crate::socket::{Socket, nftables};

/// Whether there is a table called `table`: `nft list table FAMILY TABLE`.
pub fn has_table(socket: &Socket, family: Family, table: &str) -> Result<bool, Error> {
    // NFTA_TABLE_NAME
    let which = Attributes::new().text(1, table);
    let op = || format!("find table {family} {table}");
    has(socket, family, libc::NFT_MSG_GETTABLE, &which).map_err(|errno| Error::new(op(), errno))
}

/// Whether `table` of `family` has a chain called `chain`:
/// `nft list chain FAMILY TABLE CHAIN`.
pub fn has_chain(socket: &Socket, family: Family, table: &str, chain: &str) -> Result<bool, Error> {
    // NFTA_CHAIN_TABLE and NFTA_CHAIN_NAME (linux/netfilter/nf_tables.h).
    let which = Attributes::new().text(1, table).text(3, chain);
    let op = || format!("find chain {family} {table} {chain}");
    has(socket, family, libc::NFT_MSG_GETCHAIN, &which).map_err(|errno| Error::new(op(), errno))
}

fn has(socket: &Socket, family: Family, kind: i32, which: &Attributes) -> Result<bool, Errno> {
    let head = Head {
        kind: nftables(kind),
        flags: 0,
        family: family.number(),
        resource: 0,
    };
    match socket.request(head, which) {
        Ok(_) => Ok(true),
        Err(Errno::ENOENT) => Ok(false),
        Err(errno) => Err(errno),
    }
}
