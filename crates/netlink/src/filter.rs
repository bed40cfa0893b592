//! Filters of traffic control: which packets go where.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use nix::libc;
use transport::{Attributes, Message, Protocol, Request, Route, find_in};

use crate::qdisc::{INGRESS_HANDLE, SHAPED_CLASS, SHAPER, TCA_KIND, TCA_OPTIONS, TCMSG, tcmsg};
use crate::{Error, Netlink};

// linux/pkt_cls.h, linux/tc_act/tc_mirred.h
const TCA_U32_CLASSID: u16 = 1;
const TCA_U32_SEL: u16 = 5;
const TCA_U32_ACT: u16 = 7;
const TC_U32_TERMINAL: u8 = 1;
const TCA_ACT_KIND: u16 = 1;
const TCA_ACT_OPTIONS: u16 = 2;
const TCA_MIRRED_PARMS: u16 = 2;
const TC_ACT_STOLEN: u32 = 4;
const TCA_EGRESS_REDIR: u32 = 1;
/// The place of the first action in a list of them.
const FIRST: u16 = 1;
/// `1:1`, which the Go plugin's filter assigns.
const REDIRECTED: u32 = 0x1_0001;
/// linux/if_ether.h
const ETH_P_ALL: u16 = 0x0003;
const ETH_P_IP: u16 = 0x0800;
const ETH_P_IPV6: u16 = 0x86dd;

/// Which address of a packet a filter compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Where it comes from.
    Source,
    /// Where it goes.
    Destination,
}

impl Netlink {
    /// Redirects all packets that a link receives to another link, which sends them: `tc qdisc add
    /// dev LINK ingress; tc filter add dev LINK parent ffff: prio 1 protocol all u32 match u32 0 0
    /// flowid 1:1 action mirred egress redirect dev TO`. Replaces a redirect to a link that is gone,
    /// and uses an ingress qdisc without filters, which a killed call has left.
    ///
    /// # Errors
    /// `EEXIST` when the link has an ingress qdisc with other filters; what the kernel refuses.
    pub fn redirect(&self, link: u32, to: u32) -> Result<(), Error> {
        match self.add_ingress_qdisc(link) {
            Err(error) if error.is_exists() && self.leads_nowhere(link)? => {
                self.delete_ingress_qdisc(link)?;
                self.add_ingress_qdisc(link)?;
            }
            Err(error) if error.is_exists() && self.filters_nothing(link)? => {}
            added => added?,
        }
        self.add_redirect(link, to)
    }

    /// Whether packets that a link receives are redirected to a link that is gone.
    fn leads_nowhere(&self, link: u32) -> Result<bool, Error> {
        Ok(match self.find_redirect(link)? {
            None => false,
            // The kernel shows no index of a link that is gone.
            Some(0) => true,
            Some(index) => self.find_link_by_index(index)?.is_none(),
        })
    }

    /// Removes the redirect from a link to another, if there is one, with its qdisc: `tc qdisc del
    /// dev LINK ingress`.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub fn remove_redirect(&self, link: u32, to: u32) -> Result<(), Error> {
        if self.find_redirect(link)? == Some(to) {
            self.delete_ingress_qdisc(link)?;
        }
        Ok(())
    }

    fn add_redirect(&self, link: u32, to: u32) -> Result<(), Error> {
        let mirred = [0, 0, TC_ACT_STOLEN, 0, 0, TCA_EGRESS_REDIR, to];
        let mirred = mirred.map(u32::to_ne_bytes).concat();
        let parameters = Attributes::<Route>::new().bytes(TCA_MIRRED_PARMS, &mirred);
        let action = Attributes::new()
            .text(TCA_ACT_KIND, "mirred")
            .nest(TCA_ACT_OPTIONS, &parameters);
        let options = Attributes::new()
            .u32(TCA_U32_CLASSID, REDIRECTED)
            .bytes(TCA_U32_SEL, &selector(&[[0; 4]]))
            .nest(TCA_U32_ACT, &Attributes::new().nest(FIRST, &action));
        self.add_filter(link, INGRESS_HANDLE, (1, ETH_P_ALL), &options)
    }

    /// The link to which packets that a link receives are redirected ([`Netlink::redirect`]): `tc
    /// filter show dev LINK parent ffff:`.
    ///
    /// # Errors
    /// When the kernel cannot be queried.
    pub fn find_redirect(&self, link: u32) -> Result<Option<u32>, Error> {
        let redirects = self.list_ingress_filters(link, read_redirect)?;
        Ok(redirects.into_iter().next())
    }

    /// Whether a link has a qdisc of kind `ingress` (not `clsact`) without filters, which changes
    /// nothing: `tc qdisc show dev LINK ingress` and `tc filter show dev LINK parent ffff:`.
    fn filters_nothing(&self, link: u32) -> Result<bool, Error> {
        let qdisc = self.find_ingress_qdisc(link)?;
        if qdisc.is_none_or(|it| it.kind != "ingress") {
            return Ok(false);
        }
        Ok(self.list_ingress_filters(link, |_| Some(()))?.is_empty())
    }

    /// Requests the filters of received packets, and returns what `read` makes of each.
    fn list_ingress_filters<T>(
        &self,
        link: u32,
        read: impl Fn(Message<'_>) -> Option<T>,
    ) -> Result<Vec<T>, Error> {
        let message = tcmsg(link, 0, INGRESS_HANDLE, 0).to_vec();
        let request = Request::new(libc::RTM_GETTFILTER, 0, message);
        let filters = self.socket.dump(&request, read);
        let filters = filters.map_err(|it| Error::refused("list filters", it))?;
        Ok(filters.entries)
    }

    /// Makes an htb shaper shape the packets from or to `subnet`, or not shape them: `tc filter add
    /// dev LINK parent 1: prio P protocol ip u32 match ip dst SUBNET flowid 1:30`.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub fn add_subnet_filter(
        &self,
        link: u32,
        subnet: IpNetwork,
        side: Side,
        shaped: bool,
    ) -> Result<(), Error> {
        // The packets of a class that does not exist are not shaped. Each protocol needs a
        // priority of its own.
        let class = if shaped { SHAPED_CLASS } else { SHAPER };
        let order = match subnet {
            IpNetwork::V4(_) => (16, ETH_P_IP),
            IpNetwork::V6(_) => (15, ETH_P_IPV6),
        };
        let options = Attributes::new()
            .u32(TCA_U32_CLASSID, class)
            .bytes(TCA_U32_SEL, &selector(&keys(subnet, side)));
        self.add_filter(link, SHAPER, order, &options)
    }

    /// Adds a u32 filter with a priority, for a protocol.
    fn add_filter(
        &self,
        link: u32,
        parent: u32,
        (priority, protocol): (u32, u16),
        options: &Attributes<Route>,
    ) -> Result<(), Error> {
        let info = priority << 16 | u32::from(protocol.to_be());
        let message = tcmsg(link, 0, parent, info);
        let options = Some(options.as_bytes().to_vec());
        self.add_tc(libc::RTM_NEWTFILTER, message, "u32", options)
            .map_err(|errno| Error::new("add filter", errno))
    }
}

/// What a filter compares: mask, value, offset in the IP header, all as they are in
/// `struct tc_u32_key` but for the last, unused number.
type Key = [u32; 4];

/// `struct tc_u32_sel` with its keys.
fn selector(keys: &[Key]) -> Vec<u8> {
    let mut bytes = vec![0; 16];
    bytes[0] = TC_U32_TERMINAL;
    bytes[2] = keys.len() as u8;
    bytes.extend(keys.iter().flatten().flat_map(|it| it.to_ne_bytes()));
    bytes
}

/// One key for each four bytes of an address; at least one, which may compare nothing.
fn keys(subnet: IpNetwork, side: Side) -> Vec<Key> {
    // The offsets of the addresses in the headers (RFC 791, RFC 8200).
    let offset = match (subnet, side) {
        (IpNetwork::V4(_), Side::Source) => 12,
        (IpNetwork::V4(_), Side::Destination) => 16,
        (IpNetwork::V6(_), Side::Source) => 8,
        (IpNetwork::V6(_), Side::Destination) => 24,
    };
    let octets = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let (mask, value) = (octets(subnet.mask()), octets(subnet.network()));
    let words = mask.chunks_exact(4).zip(value.chunks_exact(4));
    let as_sent = |word: &[u8]| Route::u32(word).unwrap_or_default();
    let keys = words
        .zip(0u32..)
        .map(|((mask, value), index)| [as_sent(mask), as_sent(value), offset + 4 * index, 0]);
    let mut keys: Vec<_> = keys.collect();
    keys.retain(|it| it[0] != 0);
    if keys.is_empty() {
        keys.push([0; 4]);
    }
    keys
}

/// The link to which the filter in a message redirects, if it does.
pub(crate) fn read_redirect(message: Message<'_>) -> Option<u32> {
    let (_, rest) = message.parts::<TCMSG>(libc::RTM_NEWTFILTER)?;
    let path = [TCA_OPTIONS, TCA_U32_ACT, FIRST];
    let action = find_in(rest, &path)?;
    let kind = find_in(action, &[TCA_KIND]).and_then(transport::text);
    let mirred = find_in(action, &[TCA_ACT_OPTIONS, TCA_MIRRED_PARMS])?;
    let redirects = Route::u32(mirred.get(20..24)?) == Some(TCA_EGRESS_REDIR);
    Route::u32(mirred.get(24..28)?).filter(|_| redirects && kind == Some("mirred"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subnet_is_compared_word_by_word() {
        let of = |subnet: &str, side| {
            let keys = keys(subnet.parse().unwrap(), side);
            let shown = keys.iter().map(|[mask, value, offset, _]| {
                format!(
                    "{:08x}/{:08x} at {offset}",
                    value.swap_bytes(),
                    mask.swap_bytes()
                )
            });
            shown.collect::<Vec<_>>()
        };
        if cfg!(target_endian = "little") {
            assert_eq!(
                of("10.1.2.3/20", Side::Destination),
                ["0a010000/fffff000 at 16"]
            );
            assert_eq!(
                of("fd00:1::/40", Side::Source),
                ["fd000001/ffffffff at 8", "00000000/ff000000 at 12"]
            );
        }
        assert_eq!(keys("::/0".parse().unwrap(), Side::Source), [[0; 4]]);
    }
}
