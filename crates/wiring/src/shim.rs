//! The node's own macvlan beside those of its pods (`hostShim`).
//!
//! The kernel forwards no frames between a parent and its macvlans, but between macvlans it does.
//! So the node gets a macvlan of its own, with a host route to each address of a pod. The first
//! attachment of the network creates it, the last one deletes it.
//!
//! [`Users`] records the attachments and their addresses, so that DEL needs no namespace and no
//! result. The Go plugin's DEL does not know that file: the file and the route stay until GC.

use std::net::IpAddr;

use anyhow::{Context, Result, bail};
use cni::address::Cidrs;
use cni::env::IfName;
use cni::faults::{Checks, Fault, Faults};
use cni::request::{Add, Check, Del, Gc};
use cni::{Attachment, Code, Undo, names};
use ipnetwork::IpNetwork;
use netlink::{
    AddressSpec, Family, Link, LinkKind, LinkSpec, MAIN_TABLE, Mac, MacvlanMode, Netlink,
    RouteFilter, RouteSpec, sysctl,
};
use serde::Deserialize;

use crate::users::Users;
use crate::{Addressing, alias, gateway, requested, shared};

/// The prefix of a use in [`Users`]; the name of the shim follows.
const USE: &str = "shim-";

/// Scope of a route without a next hop (RT_SCOPE_LINK in linux/rtnetlink.h).
const LINK_SCOPE: u8 = 253;

/// The protocol of routes that `ip route` adds (RTPROT_BOOT).
const BOOT: u8 = 3;

/// The key `hostShim`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct HostShim {
    /// Its name on the node.
    pub name: String,
    /// Its addresses.
    pub address: Cidrs,
}

/// A shim whose keys are checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Shim {
    /// Its name.
    pub name: IfName,
    /// Its addresses.
    pub addresses: Vec<IpNetwork>,
}

/// The shim of an attachment.
pub struct Joined {
    host: Netlink,
    link: Link,
    /// The subnets of its addresses, and of those of its parent.
    subnets: Vec<IpNetwork>,
}

impl Shim {
    /// Checks the keys of a shim on `master`.
    ///
    /// # Errors
    /// Code 7, each fault with its key.
    pub fn new(keys: &HostShim, master: &str) -> Result<Self, Faults> {
        let fault = |key: &str, why: String| Fault::new(key, format!("{key}: {why}"));
        let mut checks = Checks::default();
        let name = IfName::parse(&keys.name);
        let name = checks.take(name.map_err(|error| fault("hostShim.name", error.to_string())));
        if name.is_some() && keys.name == master {
            checks.add(fault("hostShim.name", format!("{master:?} is the master")));
        }
        let addresses: Vec<_> = keys.address.0.iter().map(|it| it.0).collect();
        if addresses.is_empty() {
            checks.add(fault("hostShim.address", "missing".to_owned()));
        }
        for address in addresses.iter().filter(|it| !is_of_a_host(**it)) {
            let why = format!("{address} cannot be the address of a host");
            checks.add(fault("hostShim.address", why));
        }
        checks.finish(|| {
            let name = name?;
            Some(Self { name, addresses })
        })
    }

    /// ADD and STATUS: whether the shim of `network` exists or can be created on `parent`.
    ///
    /// # Errors
    /// Code 7: the interface of that name belongs to another program or network, or is on another
    /// parent.
    pub fn refuse_conflict(&self, network: &str, parent: &Link) -> Result<()> {
        self.find(&Netlink::open()?, network, parent).map(drop)
    }

    /// ADD: records the attachment, and creates the shim if it is the first one. Leaving it is
    /// pushed on `undo`.
    ///
    /// # Errors
    /// As [`Self::refuse_conflict`]; the record cannot be written; what the kernel refuses.
    pub fn join(&self, owner: &Attachment, parent: &Link, undo: &mut Undo) -> Result<Joined> {
        let (network, name) = (&owner.network, self.name.as_str());
        push_leave(owner, name, &[], undo);
        // The lock is only held while recording: a call that deletes the shim reads the records
        // first.
        let users = Users::open_shared(network)?;
        users.note(&use_of(name), owner, "")?;
        let host = Netlink::open()?;
        let found = self.find(&host, network, parent)?;
        // If another program deleted the shim or set it down, the kernel deleted the routes of all
        // pods.
        let lost = if found.as_ref().is_some_and(|it| it.up) {
            Vec::new()
        } else {
            let [_, all] = recorded(&users, name, &[])?;
            all.ips
        };
        drop(users);
        let link = match found {
            Some(link) => link,
            None => self
                .create(&host, network, parent)
                .with_context(|| format!("make the shim {name}"))?,
        };
        self.set_up(&host, &link)?;
        add_routes(&host, &link, &lost)?;
        let of_parent = host.list_addresses(parent.index, None)?;
        let of_parent = of_parent.into_iter().map(|it| it.address);
        let subnets = self.addresses.iter().copied().chain(of_parent).collect();
        Ok(Joined {
            host,
            link,
            subnets,
        })
    }

    /// CHECK: whether the shim is as configured, and has the routes of the attachment.
    ///
    /// # Errors
    /// The first difference.
    pub fn check<C>(&self, request: &Check<C>) -> Result<()> {
        let (host, name) = (Netlink::open()?, self.name.as_str());
        let Some(link) = find_ours(&host, name, &request.attachment.network)? else {
            bail!("the shim {name} is missing: the next ADD of a pod makes it");
        };
        if let Some(mode) = host.get_macvlan(name)?.map(|it| it.mode)
            && mode != MacvlanMode::Bridge.to_string()
        {
            bail!("the shim {name} is of mode {mode}, not bridge");
        }
        let missing = gateway::missing(&host, &link, &self.addresses)?;
        if missing.down {
            bail!("the shim {name} is down");
        }
        if let Some(address) = missing.addresses.first() {
            bail!("the shim {name} has no address {address}");
        }
        let previous = request.call.prev_result()?.unwrap_or_default();
        let routed = routed(&host, &link)?;
        for ip in previous.ips_of(request.attachment.ifname.as_str()) {
            let ip = ip.address.0.ip();
            if !routed.contains(&ip) {
                bail!("the node has no route to {ip} through the shim {name}");
            }
        }
        Ok(())
    }

    fn find(&self, host: &Netlink, network: &str, parent: &Link) -> Result<Option<Link>> {
        let name = self.name.as_str();
        if host.find_link(name)?.is_none() {
            return Ok(None);
        }
        let why = match find_ours(host, name, network)? {
            None => format!("interface {name:?} is there, and not made for this network"),
            Some(link) if link.link == Some(parent.index) && link.link_netnsid.is_none() => {
                return Ok(Some(link));
            }
            Some(_) => format!(
                "{name:?} is on another parent than {:?}, and stays while pods use it",
                parent.name
            ),
        };
        let error = Code::InvalidConfig.err(format!("hostShim.name: {why}"));
        Err(error.into())
    }

    fn create(&self, host: &Netlink, network: &str, parent: &Link) -> Result<Link> {
        // Concurrent ADDs create it one after the other.
        let _lock = Users::open_exclusive(network)?;
        if let Some(link) = self.find(host, network, parent)? {
            return Ok(link);
        }
        let name = self.name.as_str();
        let spec = LinkSpec {
            name: name.to_owned(),
            temporary: temporary_name(network, name),
            parent: Some(parent.index),
            mtu: None,
            mac: Some(Mac::random()?),
            kind: LinkKind::Macvlan {
                mode: MacvlanMode::Bridge,
                bc_queue_len: None,
            },
        };
        Ok(host.add_link_beside(&spec, &alias(network))?)
    }

    /// Brings the shim up, with its addresses and no others.
    fn set_up(&self, host: &Netlink, link: &Link) -> Result<()> {
        if !link.up {
            let key = |setting| sysctl::interface_key("ipv6", &link.name, setting);
            // The node learns routes and addresses from the parent.
            let _ = sysctl::write(&key("accept_ra"), "0");
            if self.addresses.iter().any(IpNetwork::is_ipv6) {
                let _ = sysctl::write(&key("disable_ipv6"), "0");
            }
            host.set_up(link.index)?;
        }
        let present = host.list_addresses(link.index, None)?;
        let is_missing = |wanted: &&IpNetwork| !present.iter().any(|it| it.address == **wanted);
        for address in self.addresses.iter().filter(is_missing) {
            let spec = AddressSpec {
                address: *address,
                // No other host has a configured address.
                nodad: address.is_ipv6(),
                // The node reaches the rest of the segment through the parent.
                no_prefix_route: true,
            };
            match host.add_address_to(link, &spec) {
                // A concurrent ADD added it.
                Err(error) if error.is_exists() => {}
                other => other?,
            }
            if address.is_ipv6() {
                host.await_local(address.ip());
            }
        }
        for other in present.iter().filter(|it| !it.local_scope) {
            if !self.addresses.contains(&other.address) {
                host.delete_address(link.index, other.address)?;
            }
        }
        Ok(())
    }
}

impl Joined {
    /// ADD: routes the pod's addresses through the shim. Deleting the routes, before the addresses
    /// are released, is pushed on `undo`. `requested` says that the operator did not choose them.
    ///
    /// # Errors
    /// Code 7: an address that the node needs itself; what the kernel refuses.
    pub fn add_routes<C>(
        &self,
        request: &Add<C>,
        addressing: &Addressing,
        requested: bool,
        undo: &mut Undo,
    ) -> Result<()> {
        let ips: Vec<_> = addressing.ips.iter().map(|it| it.address.ip()).collect();
        if requested {
            requested::refuse_host_routes(&request.call, &self.host, &self.subnets, &ips)?;
        }
        for ip in &ips {
            if self.host.is_local(*ip)? {
                let why = format!("the node has the pod's address {ip} itself");
                return Err(Code::InvalidConfig.err(why).into());
            }
        }
        let (owner, name) = (&request.attachment, &self.link.name);
        push_leave(owner, name, &ips, undo);
        let users = Users::open_shared(&owner.network)?;
        let content: String = ips.iter().map(|ip| format!("{ip}\n")).collect();
        users.note(&use_of(name), owner, &content)?;
        drop(users);
        add_routes(&self.host, &self.link, &ips)
    }
}

/// DEL: deletes the attachment's routes, and the shim with the last attachment.
///
/// # Errors
/// What the kernel refuses.
pub fn del<C>(request: &Del<C>, configured: Option<&HostShim>) -> Result<()> {
    let previous = request.call.prev_result_hint().unwrap_or_default();
    let ips = previous.ips_of(request.attachment.ifname.as_str());
    let ips: Vec<_> = ips.map(|it| it.address.0.ip()).collect();
    let name = configured.map(|keys| keys.name.as_str());
    leave(&request.attachment, name, &ips)
}

fn push_leave(owner: &Attachment, name: &str, ips: &[IpAddr], undo: &mut Undo) {
    let (owner, name, ips) = (owner.clone(), name.to_owned(), ips.to_vec());
    undo.push("leave the shim", move || leave(&owner, Some(&name), &ips));
}

/// Uses the addresses that were `reported` if the attachment is recorded without addresses, or if
/// there are no records at all. Otherwise it was detached before, and another attachment may have
/// the addresses now.
fn leave(owner: &Attachment, configured: Option<&str>, reported: &[IpAddr]) -> Result<()> {
    let network = &owner.network;
    let users = match Users::find(network) {
        Ok(None) if configured.is_none() => return Ok(()),
        Ok(users) => users,
        Err(error) => {
            shared::ignore_unavailable(error)?;
            None
        }
    };
    let names = match &users {
        Some(users) => shims(users, configured)?,
        None => configured.into_iter().map(str::to_owned).collect(),
    };
    for name in &names {
        let ips = match &users {
            Some(users) => {
                let content = users.content(&use_of(name), owner).unwrap_or_default();
                let ips = parse(&content).unwrap_or_default();
                if ips.is_empty() && users.knows(&owner.alias()) {
                    reported.to_vec()
                } else {
                    ips
                }
            }
            None => reported.to_vec(),
        };
        delete_routes(network, name, &ips)?;
    }
    let in_use = users.map(|users| users.forget(owner)).transpose()?;
    if in_use == Some(true) || names.is_empty() {
        return Ok(());
    }
    // Without the lock, a concurrent ADD may rely on the shim that exists now.
    match Users::open_exclusive(network) {
        Ok(users) => remove_unused(users, network, &names, true),
        Err(error) => {
            shared::ignore_unavailable(error)?;
            // Where an attachment cannot be recorded, no ADD succeeds.
            let host = Netlink::open()?;
            let mut names = names.iter();
            names.try_for_each(|name| remove(&host, network, name, true))
        }
    }
}

/// GC: deletes the routes of attachments that are not valid, and shims that no attachment uses.
///
/// # Errors
/// What the kernel refuses.
pub fn gc<C>(request: &Gc<C>, configured: Option<&HostShim>) -> Result<()> {
    let network = &request.call.network;
    if configured.is_none() && matches!(Users::find(network), Ok(None)) {
        return Ok(());
    }
    let users = match Users::open_exclusive(network) {
        Ok(users) => users,
        Err(error) => return shared::ignore_unavailable(error),
    };
    let names = shims(&users, configured.map(|keys| keys.name.as_str()))?;
    let aliases = alias::of_valid(network, &request.valid);
    // The addresses of an attachment without a record are unknown.
    let has_unknown = aliases.iter().any(|alias| !users.knows(alias));
    let host = Netlink::open()?;
    for name in &names {
        let Some(link) = find_ours(&host, name, network)? else {
            continue;
        };
        let [used, others] = recorded(&users, name, &aliases)?;
        let all_known = !has_unknown && used.is_complete;
        for ip in routed(&host, &link)? {
            if !used.ips.contains(&ip) && (all_known || others.ips.contains(&ip)) {
                host.delete_route(link.index, &route_to(ip))?;
            }
        }
    }
    // Last, because DEL cannot find what is not recorded.
    users.retain(&aliases)?;
    remove_unused(users, network, &names, has_unknown)
}

/// The alias of a shim. It differs from that of any attachment, which contains a slash.
fn alias(network: &str) -> String {
    format!("podwire:{}", names::short(network))
}

/// The name of a new shim until it has its alias.
fn temporary_name(network: &str, name: &str) -> String {
    names::prefixed(12, "shim", &format!("{network}/{name}"))
}

fn use_of(name: &str) -> String {
    format!("{USE}{name}")
}

fn find_ours(host: &Netlink, name: &str, network: &str) -> Result<Option<Link>> {
    let alias = alias(network);
    let found = host.find_link(name)?;
    Ok(found.filter(|it| it.is_kind("macvlan") && it.alias.as_ref() == Some(&alias)))
}

/// Removes the shims among `names` that no recorded attachment uses.
fn remove_unused(users: Users, network: &str, names: &[String], has_unknown: bool) -> Result<()> {
    let used = users.used()?;
    let host = Netlink::open()?;
    for name in names.iter().filter(|name| !used.contains(&use_of(name))) {
        remove(&host, network, name, has_unknown)?;
    }
    users.tidy();
    Ok(())
}

/// Removes a shim. It stays if it has routes and there may be attachments without a record.
fn remove(host: &Netlink, network: &str, name: &str, has_unknown: bool) -> Result<()> {
    if let Some(link) = find_ours(host, name, network)? {
        if has_unknown && !routed(host, &link)?.is_empty() {
            return Ok(());
        }
        host.remove(&link)?;
    }
    // A killed ADD may have left it.
    host.delete_link_of_kind(&temporary_name(network, name), "macvlan")?;
    Ok(())
}

/// The names of the shims that attachments use, and of the one that is configured now.
fn shims(users: &Users, configured: Option<&str>) -> Result<Vec<String>> {
    let used = users.used()?;
    let used = used.iter().filter_map(|it| it.strip_prefix(USE));
    let mut names: Vec<_> = used.chain(configured).map(str::to_owned).collect();
    names.sort();
    names.dedup();
    Ok(names)
}

/// The recorded addresses of attachments that use a shim.
struct Recorded {
    ips: Vec<IpAddr>,
    /// Whether the record of each can be read and has addresses: a file may have been emptied.
    is_complete: bool,
}

/// The records of the attachments with these aliases, and of all others.
fn recorded(users: &Users, name: &str, aliases: &[String]) -> Result<[Recorded; 2]> {
    let contents = users.contents(&use_of(name), aliases)?;
    Ok(contents.map(|part| {
        let ips = part
            .iter()
            .map(|it| it.as_ref().ok().and_then(|it| parse(it)));
        let ips: Vec<_> = ips.map(Option::unwrap_or_default).collect();
        Recorded {
            is_complete: ips.iter().all(|ips| !ips.is_empty()),
            ips: ips.concat(),
        }
    }))
}

/// Parses addresses, one in each line; `None` if another program has written them.
fn parse(content: &str) -> Option<Vec<IpAddr>> {
    content.lines().map(|line| line.parse().ok()).collect()
}

fn add_routes(host: &Netlink, link: &Link, ips: &[IpAddr]) -> Result<()> {
    for ip in ips {
        match host.add_route(link.index, &route_to(*ip)) {
            Err(error) if error.is_exists() => {}
            other => other?,
        }
    }
    Ok(())
}

fn delete_routes(network: &str, name: &str, ips: &[IpAddr]) -> Result<()> {
    if ips.is_empty() {
        return Ok(());
    }
    let host = Netlink::open()?;
    if let Some(link) = find_ours(&host, name, network)? {
        for ip in ips {
            host.delete_route(link.index, &route_to(*ip))?;
        }
    }
    Ok(())
}

/// `ip route add IP dev SHIM`
fn route_to(ip: IpAddr) -> RouteSpec {
    RouteSpec {
        scope: ip.is_ipv4().then_some(LINK_SCOPE),
        ..RouteSpec::to(IpNetwork::from(ip))
    }
}

/// The single addresses with a route through the shim that the kernel did not add itself.
fn routed(host: &Netlink, link: &Link) -> Result<Vec<IpAddr>> {
    let mut ips = Vec::new();
    for family in [Family::V4, Family::V6] {
        let routes = host.list_routes(RouteFilter {
            family,
            oif: Some(link.index),
            table: Some(MAIN_TABLE),
        })?;
        let of_a_pod = routes.into_iter().filter(|it| {
            it.protocol == BOOT && it.gw.is_none() && it.dst == IpNetwork::from(it.dst.ip())
        });
        ips.extend(of_a_pod.map(|it| it.dst.ip()));
    }
    Ok(ips)
}

/// Whether it is neither a network or broadcast address, nor a special one.
fn is_of_a_host(address: IpNetwork) -> bool {
    let ip = address.ip();
    let is_special = ip.is_unspecified() || ip.is_loopback() || ip.is_multicast();
    let (has_ends, last) = match address {
        IpNetwork::V4(v4) => (v4.prefix() < 31, IpAddr::from(v4.broadcast())),
        IpNetwork::V6(v6) => (v6.prefix() < 127, IpAddr::from(v6.network())),
    };
    !is_special && !(has_ends && (ip == address.network() || ip == last))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn temporary_names_differ_by_network() {
        let name = temporary_name("lan", "shim0");
        assert_eq!(name.len(), 12);
        assert!(name.starts_with("shim") && name != temporary_name("wan", "shim0"));
    }
}
