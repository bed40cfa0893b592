//! What others keep in nf_tables, asked for by name: iptables' nft variant
//! keeps its tables there, so whether it holds a chain costs one question and
//! no process.

use nix::errno::Errno;
use nix::libc;

use super::error::Error;
use super::message::{Attributes, Head};
use super::socket::{Socket, nftables};
use super::transaction::Family;

/// Whether `table` of `family` has a chain called `chain`:
/// `nft list chain FAMILY TABLE CHAIN`.
pub fn has_chain(socket: &Socket, family: Family, table: &str, chain: &str) -> Result<bool, Error> {
    // NFTA_CHAIN_TABLE and NFTA_CHAIN_NAME (linux/netfilter/nf_tables.h).
    let which = Attributes::new().text(1, table).text(3, chain);
    let head = Head {
        kind: nftables(libc::NFT_MSG_GETCHAIN),
        flags: 0,
        family: family.number(),
        resource: 0,
    };
    match socket.request(head, &which) {
        Ok(_) => Ok(true),
        Err(Errno::ENOENT) => Ok(false),
        Err(errno) => {
            let op = format!("find chain {family} {table} {chain}");
            Err(Error::new(op, errno))
        }
    }
}
