//! The node's own macvlan on the pods' parent (`hostShim`): the kernel passes no frames between
//! a parent and its macvlans, but between macvlans it does. Each pod's address has a host route
//! through it. It comes with the network's first attachment and goes with the last.
//!
//! Which attachments there are, and their addresses, is in [`Users`], so that DEL knows them
//! without a namespace or a result. The Go plugin's DEL does not know that file: it, and the
//! route, stay until GC.

use std::net::IpAddr;

use anyhow::{Context, Result, bail};
use cni::names;
use cni::request::{Add, Check, Del, Gc};
use cni::{Attachment, Code, Undo};
use ipnetwork::IpNetwork;
use netlink::{
    AddressSpec, Family, Link, LinkKind, LinkSpec, MAIN_TABLE, Mac, MacvlanMode, Netlink,
    RouteFilter, RouteSpec, sysctl,
};
use wiring::users::{Left, Users};
use wiring::{Addressing, gateway, port, requested, shared};

use crate::conf::Conf;
use crate::plan::{self, Plan};

/// The use of a shim begins so; its name follows.
const USE: &str = "shim-";

/// Scope of a route without a next hop: this link (RT_SCOPE_LINK in linux/rtnetlink.h).
const LINK_SCOPE: u8 = 253;

/// Who made a route: `boot`, as all routes of `ip route` (RTPROT_BOOT).
const BOOT: u8 = 3;

/// Refuses a shim that cannot be made on `parent`, before anything is touched.
///
/// # Errors
/// Code 7: an interface of that name is another's, or is on another parent.
pub fn refuse(plan: &Plan, network: &str, parent: &Link) -> Result<()> {
    let Some(shim) = &plan.shim else {
        return Ok(());
    };
    find(&Netlink::open()?, shim.name.as_str(), network, parent)?;
    Ok(())
}

/// The shim of an attachment.
pub struct Shim {
    host: Netlink,
    link: Link,
    /// Its own addresses, and those of its parent.
    subnets: Vec<IpNetwork>,
}

/// ADD: notes the attachment, and makes the shim if it is the first. To take both back is
/// pushed on `undo`.
///
/// # Errors
/// As [`refuse`]; nothing can be noted; what the kernel refuses.
pub fn join(
    request: &Add<Conf>,
    plan: &Plan,
    parent: &Link,
    undo: &mut Undo,
) -> Result<Option<Shim>> {
    let Some(shim) = &plan.shim else {
        return Ok(None);
    };
    let owner = &request.attachment;
    push_leave(request, &[], undo);
    let name = shim.name.as_str();
    // The lock is held for the note alone: a call that removes the shim looks at the notes first.
    let users = Users::join(&owner.network)?;
    users.note(&use_of(name), owner, "")?;
    let host = Netlink::open()?;
    let found = find(&host, name, &owner.network, parent)?;
    // With a shim that another program deleted or set down, the routes of all pods are gone.
    let lost = match found.as_ref().is_some_and(|it| it.up) {
        true => Vec::new(),
        false => {
            let [_, all] = noted(&users, name, &[])?;
            all.ips
        }
    };
    drop(users);
    let link = match found {
        Some(link) => link,
        None => make(&host, shim, &owner.network, parent)
            .with_context(|| format!("make the shim {name}"))?,
    };
    set_up(&host, &link, shim)?;
    add_routes(&host, &link, &lost)?;
    let mut subnets = shim.addresses.clone();
    let of_parent = host.list_addresses(parent.index, None)?;
    subnets.extend(of_parent.into_iter().map(|it| it.address));
    Ok(Some(Shim {
        host,
        link,
        subnets,
    }))
}

impl Shim {
    /// ADD: has the node route the pod's addresses through the shim. Removing the routes is
    /// pushed on `undo`, to be done before the addresses are given back.
    ///
    /// # Errors
    /// Code 7: an address that the node needs itself; what the kernel refuses.
    pub fn lay_routes(
        &self,
        request: &Add<Conf>,
        addressing: &Addressing,
        undo: &mut Undo,
    ) -> Result<()> {
        let ips: Vec<_> = addressing.ips.iter().map(|it| it.address.ip()).collect();
        self.refuse_addresses(request, &ips)?;
        push_leave(request, &ips, undo);
        let owner = &request.attachment;
        let users = Users::join(&owner.network)?;
        users.note(&use_of(&self.link.name), owner, &written(&ips))?;
        drop(users);
        add_routes(&self.host, &self.link, &ips)
    }

    fn refuse_addresses(&self, request: &Add<Conf>, ips: &[IpAddr]) -> Result<()> {
        let (call, conf) = (&request.call, &request.conf);
        if requested::asks_for_addresses(call, &conf.runtime_config, &conf.args) {
            requested::refuse_host_routes(call, &self.host, &self.subnets, ips)?;
        }
        for ip in ips {
            if self.host.is_local(*ip)? {
                let why = format!("the node has the pod's address {ip} itself");
                return Err(Code::InvalidConfig.err(why).into());
            }
        }
        Ok(())
    }
}

/// DEL: removes the attachment's routes, and the shim with the last attachment.
///
/// # Errors
/// What the kernel refuses.
pub fn del(request: &Del<Conf>) -> Result<()> {
    let configured = configured(&request.conf);
    let previous = request.call.prev_result_hint();
    let ifname = request.attachment.ifname.as_str();
    let ips = previous.iter().flat_map(|it| it.ips_of(ifname));
    let ips: Vec<_> = ips.map(|it| it.address.0.ip()).collect();
    leave(&request.attachment, configured, &ips)
}

fn push_leave(request: &Add<Conf>, ips: &[IpAddr], undo: &mut Undo) {
    let owner = request.attachment.clone();
    let name = configured(&request.conf).map(str::to_owned);
    let ips = ips.to_vec();
    undo.push("leave the shim", move || {
        leave(&owner, name.as_deref(), &ips)
    });
}

/// `reported` counts where the attachment is noted without addresses, and where none is noted at
/// all. Else it was detached before, and another may have the addresses by now.
fn leave(owner: &Attachment, configured: Option<&str>, reported: &[IpAddr]) -> Result<()> {
    let network = &owner.network;
    let names = match Users::find(network) {
        Ok(None) if configured.is_none() => return Ok(()),
        Ok(Some(users)) => {
            let names = shims(&users, configured)?;
            for name in &names {
                let noted = users.content(&use_of(name), owner).unwrap_or_default();
                let mut ips = read(&noted).unwrap_or_default();
                if ips.is_empty() && users.knows(&owner.alias()) {
                    ips.extend(reported);
                }
                delete_routes(network, name, &ips)?;
            }
            if users.forget(owner)? == Left::Users {
                return Ok(());
            }
            names
        }
        found => {
            if let Err(error) = found {
                shared::tolerate_no_place(error)?;
            }
            let names: Vec<_> = configured.into_iter().map(str::to_owned).collect();
            for name in &names {
                delete_routes(network, name, reported)?;
            }
            names
        }
    };
    if names.is_empty() {
        return Ok(());
    }
    // Without the lock, an ADD may be counting on the shim that is there now.
    match Users::alone(network) {
        Ok(users) => remove_unused(users, network, &names, true),
        Err(error) => {
            shared::tolerate_no_place(error)?;
            // No ADD succeeds where it cannot be noted.
            let host = Netlink::open()?;
            names
                .iter()
                .try_for_each(|name| remove(&host, network, name, true))
        }
    }
}

/// GC: removes the routes of attachments that are not valid, and the shim when none is left.
///
/// # Errors
/// What the kernel refuses.
pub fn gc(request: &Gc<Conf>) -> Result<()> {
    let network = &request.call.network;
    let configured = configured(&request.conf);
    if configured.is_none() && matches!(Users::find(network), Ok(None)) {
        return Ok(());
    }
    let users = match Users::alone(network) {
        Ok(users) => users,
        Err(error) => return shared::tolerate_no_place(error),
    };
    let names = shims(&users, configured)?;
    let valid = request.valid.iter();
    let aliases: Vec<_> = valid.filter_map(|it| port::alias_of(network, it)).collect();
    // Of an attachment that is not noted, the addresses are not known.
    let has_unknown = aliases.iter().any(|alias| !users.knows(alias));
    let host = Netlink::open()?;
    for name in &names {
        let Some(link) = find_ours(&host, name, network)? else {
            continue;
        };
        let [used, others] = noted(&users, name, &aliases)?;
        let all_known = !has_unknown && used.is_whole;
        for ip in routed(&host, &link)? {
            if !used.ips.contains(&ip) && (all_known || others.ips.contains(&ip)) {
                host.delete_route(link.index, &route_to(ip))?;
            }
        }
    }
    // Last: what is forgotten, no DEL can find.
    users.retain(&aliases)?;
    remove_unused(users, network, &names, has_unknown)
}

/// CHECK: whether the shim is as the configuration says, and has the attachment's routes.
///
/// # Errors
/// The first that differs.
pub fn check(request: &Check<Conf>, plan: &Plan) -> Result<()> {
    let Some(shim) = &plan.shim else {
        return Ok(());
    };
    let (host, name) = (Netlink::open()?, shim.name.as_str());
    let Some(link) = find_ours(&host, name, &request.attachment.network)? else {
        bail!("the shim {name} is missing: the next ADD of a pod makes it");
    };
    if let Some(mode) = host.get_macvlan(name)?.map(|it| it.mode)
        && mode != MacvlanMode::Bridge.to_string()
    {
        bail!("the shim {name} is of mode {mode}, not bridge");
    }
    let missing = gateway::missing(&host, &link, &shim.addresses)?;
    if missing.down {
        bail!("the shim {name} is down");
    }
    if let Some(address) = missing.addresses.first() {
        bail!("the shim {name} has no address {address}");
    }
    let Some(previous) = request.call.prev_result()? else {
        return Ok(());
    };
    let routed = routed(&host, &link)?;
    for ip in previous.ips_of(request.attachment.ifname.as_str()) {
        let ip = ip.address.0.ip();
        if !routed.contains(&ip) {
            bail!("the node has no route to {ip} through the shim {name}");
        }
    }
    Ok(())
}

fn configured(conf: &Conf) -> Option<&str> {
    conf.host_shim.as_ref().map(|keys| keys.name.as_str())
}

/// What is written on a shim. No attachment's alias is like it: that has a slash.
fn alias(network: &str) -> String {
    format!("podwire:{}", names::short(network))
}

fn find_ours(host: &Netlink, name: &str, network: &str) -> Result<Option<Link>> {
    let alias = alias(network);
    let found = host.find_link(name)?;
    Ok(found.filter(|it| it.is_kind("macvlan") && it.alias.as_ref() == Some(&alias)))
}

/// The shim, if it is there.
fn find(host: &Netlink, name: &str, network: &str, parent: &Link) -> Result<Option<Link>> {
    let refused = |why: String| Code::InvalidConfig.err(format!("hostShim.name: {why}"));
    if host.find_link(name)?.is_none() {
        return Ok(None);
    }
    let Some(link) = find_ours(host, name, network)? else {
        let why = format!("interface {name:?} is there, and not made for this network");
        return Err(refused(why).into());
    };
    if link.link != Some(parent.index) || link.link_netnsid.is_some() {
        let why = format!(
            "{name:?} is on another parent than {:?}, and stays while pods use it",
            parent.name
        );
        return Err(refused(why).into());
    }
    Ok(Some(link))
}

fn make(host: &Netlink, shim: &plan::Shim, network: &str, parent: &Link) -> Result<Link> {
    // ADDs of several pods make it one after the other.
    let _alone = Users::alone(network)?;
    let name = shim.name.as_str();
    if let Some(link) = find(host, name, network, parent)? {
        return Ok(link);
    }
    let spec = LinkSpec {
        name: name.to_owned(),
        temporary: plan::temporary_shim_name(network, name),
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

/// Brings the shim up with its addresses, and with no others.
fn set_up(host: &Netlink, link: &Link, shim: &plan::Shim) -> Result<()> {
    if !link.up {
        let key = |setting| sysctl::interface_key("ipv6", &link.name, setting);
        // The node has the parent to learn routes and addresses from.
        let _ = sysctl::write(&key("accept_ra"), "0");
        if shim.addresses.iter().any(IpNetwork::is_ipv6) {
            let _ = sysctl::write(&key("disable_ipv6"), "0");
        }
        host.set_up(link.index)?;
    }
    let present = host.list_addresses(link.index, None)?;
    for address in &shim.addresses {
        if present.iter().any(|it| it.address == *address) {
            continue;
        }
        let spec = AddressSpec {
            address: *address,
            // It is ours by configuration.
            nodad: address.is_ipv6(),
            // The rest of the segment is reached by the parent.
            no_prefix_route: true,
        };
        match host.add_address_to(link, &spec) {
            // The ADD of another pod was quicker.
            Err(error) if error.is_exists() => {}
            other => other?,
        }
        if address.is_ipv6() {
            host.await_local(address.ip());
        }
    }
    let is_stale = |it: &IpNetwork| !shim.addresses.contains(it);
    let global = present.iter().filter(|it| !it.local_scope);
    for address in global.map(|it| it.address).filter(is_stale) {
        host.delete_address(link.index, address)?;
    }
    Ok(())
}

/// Removes those of the shims `names` that no attachment is noted with.
fn remove_unused(users: Users, network: &str, names: &[String], has_unknown: bool) -> Result<()> {
    let used = users.used()?;
    let host = Netlink::open()?;
    for name in names.iter().filter(|name| !used.contains(&use_of(name))) {
        remove(&host, network, name, has_unknown)?;
    }
    users.tidy();
    Ok(())
}

/// Removes a shim. Where there may be attachments that are not noted, one that has routes stays.
fn remove(host: &Netlink, network: &str, name: &str, has_unknown: bool) -> Result<()> {
    if let Some(link) = find_ours(host, name, network)? {
        if has_unknown && !routed(host, &link)?.is_empty() {
            return Ok(());
        }
        host.remove(&link)?;
    }
    // Of an ADD that was killed.
    host.delete_link_of_kind(&plan::temporary_shim_name(network, name), "macvlan")?;
    Ok(())
}

/// The shims that attachments use, and the one that the configuration has now.
fn shims(users: &Users, configured: Option<&str>) -> Result<Vec<String>> {
    let used = users.used()?;
    let mut names: Vec<_> = used
        .iter()
        .filter_map(|it| it.strip_prefix(USE))
        .chain(configured)
        .map(str::to_owned)
        .collect();
    names.sort();
    names.dedup();
    Ok(names)
}

fn use_of(name: &str) -> String {
    format!("{USE}{name}")
}

/// Addresses of attachments that use a shim.
struct Noted {
    ips: Vec<IpAddr>,
    /// Whether each attachment's can be read. A file may have been emptied, so one without
    /// addresses does not count.
    is_whole: bool,
}

/// The addresses of the attachments with these aliases, and those of all others.
fn noted(users: &Users, name: &str, aliases: &[String]) -> Result<[Noted; 2]> {
    let contents = users.contents(&use_of(name), aliases)?;
    Ok(contents.map(|part| {
        let read: Vec<_> = part.iter().map(|it| it.as_deref().and_then(read)).collect();
        Noted {
            is_whole: read
                .iter()
                .all(|it| it.as_ref().is_some_and(|ips| !ips.is_empty())),
            ips: read.into_iter().flatten().flatten().collect(),
        }
    }))
}

/// Addresses as they are noted: one a line.
fn written(ips: &[IpAddr]) -> String {
    ips.iter().map(|ip| format!("{ip}\n")).collect()
}

/// `None` if another program has written it.
fn read(noted: &str) -> Option<Vec<IpAddr>> {
    noted.lines().map(|line| line.parse().ok()).collect()
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

/// The single addresses that have a route through the shim which is not the kernel's own.
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
