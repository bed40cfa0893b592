//! VRFs: links that stand for a routing table. The links in one use only that table
//! (Documentation/networking/vrf.rst).

use nix::errno::Errno;
use rtnetlink::packet_route::{
    RouteNetlinkMessage,
    link::{InfoData, InfoKind, InfoVrf},
};

use crate::{Error, Family, Kept, Link, MAIN_TABLE, Netlink, RouteFilter, creation::new_link};

/// The tables that every namespace has: default, main and local (/etc/iproute2/rt_tables).
const EVERYWHERE: std::ops::RangeInclusive<u32> = 253..=255;

impl Netlink {
    /// Creates a VRF, and returns it: `ip link add NAME up type vrf table TABLE`.
    ///
    /// # Errors
    /// `EEXIST` when there is a link of that name; `EOPNOTSUPP` when the kernel has no VRFs.
    pub fn add_vrf(&self, name: &str, table: u32) -> Result<Link, Error> {
        let message = new_link(Some(InfoKind::Vrf), name, None, None)
            .set_info_data(InfoData::Vrf(vec![InfoVrf::TableId(table)]))
            .up();
        let request = RouteNetlinkMessage::NewLink(message.build());
        let created = self.create(request, Link::read, || format!("add vrf {name}"))?;
        match created {
            Some(link) => Ok(link),
            None => self.get_link(name),
        }
    }

    /// The lowest table of the namespace that has no route, no rule, and no VRF among `links`: `ip
    /// route show table all`, `ip rule`, for both families.
    ///
    /// # Errors
    /// When the kernel cannot be queried.
    pub fn find_free_table(&self, links: &[Link]) -> Result<u32, Error> {
        let mut used: Vec<u32> = links.iter().filter_map(|link| link.vrf_table).collect();
        for family in [Family::V4, Family::V6] {
            let routes = self.list_routes(RouteFilter {
                table: None,
                ..RouteFilter::main(family)
            })?;
            used.extend(routes.iter().map(|route| route.table));
        }
        match self.list_rules() {
            // A kernel without policy routing.
            Err(error) if matches!(error.errno(), Errno::EAFNOSUPPORT | Errno::EOPNOTSUPP) => {}
            rules => used.extend(rules?.iter().map(|rule| rule.table)),
        }
        let is_free = |table: &u32| !used.contains(table) && !EVERYWHERE.contains(table);
        // There are fewer routes than tables.
        Ok((1..u32::MAX).find(is_free).unwrap_or(u32::MAX))
    }

    /// Moves `link` into a VRF: `ip link set LINK master VRF`. It keeps the addresses and routes
    /// `kept`: its routes of the main table become routes of the VRF.
    ///
    /// # Errors
    /// When the kernel refuses; the link may be in the VRF then, without some of its routes.
    pub fn move_into_vrf(&self, link: &Link, vrf: &Link, kept: &Kept) -> Result<(), Error> {
        self.set_master(link.index, vrf.index)?;
        self.restore(link, kept, vrf.vrf_table.unwrap_or(MAIN_TABLE))
    }

    /// The reverse: `ip link set LINK nomaster`.
    ///
    /// # Errors
    /// As [`Netlink::move_into_vrf`].
    pub fn move_out_of_vrf(&self, link: &Link, kept: &Kept) -> Result<(), Error> {
        self.clear_master(link.index)?;
        self.restore(link, kept, MAIN_TABLE)
    }
}
