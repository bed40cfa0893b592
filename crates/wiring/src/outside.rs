//! What stands between the pod and the outside: masquerade and spoof check.

use std::net::IpAddr;

use anyhow::{Context, Result};
use cni::conf::ValidAttachment;
use cni::result::{AddResult, IpConfig};
use cni::{Attachment, Call, Code, Undo};
use ipnetwork::IpNetwork;
use netlink::{Link, Mac, Netlink, VethPair};
use packet_filter::{Isolation, Kind, Leftovers, Masquerade, Nftables, SpoofCheck};

use crate::{Addressing, shared};

/// How what leaves the pods' subnets is masqueraded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Masquerading {
    /// The back end that the configuration forces.
    pub backend: Option<packet_filter::Kind>,
    /// Whether source ports are drawn at random.
    pub random_fully: bool,
    /// What goes there is not masqueraded.
    pub except: Vec<IpNetwork>,
    /// Which families are masqueraded, IPv4 and IPv6.
    pub families: [bool; 2],
    /// The device behind which the network goes on, on other nodes.
    pub not_through: Option<String>,
}

impl Masquerading {
    /// Reads the keys that begin with `ipMasq`. `None` where nothing is to be masqueraded.
    ///
    /// # Errors
    /// Code 7: `unknown ipmasq backend "x"`, which the Go plugin says after
    /// everything else was set up; no network, or no family.
    pub fn parse(keys: &MasqueradeKeys<'_>) -> Result<Option<Self>> {
        let named = keys.backend.filter(|text| !text.is_empty());
        let backend = named
            .map(|text| {
                packet_filter::Kind::parse(text).ok_or_else(|| {
                    Code::InvalidConfig.err(format!("unknown ipmasq backend {text:?}"))
                })
            })
            .transpose()?;
        let except = keys.except.iter().map(|text| exception(text));
        let except = except.collect::<Result<_>>()?;
        let families = families(keys.families)?;
        Ok(keys.wanted.then_some(Self {
            backend,
            random_fully: keys.random_fully,
            except,
            families,
            not_through: None,
        }))
    }
}

/// The keys of a configuration, as they are written.
#[derive(Clone, Copy, Debug)]
pub struct MasqueradeKeys<'a> {
    /// `ipMasq`
    pub wanted: bool,
    /// `ipMasqBackend`
    pub backend: Option<&'a str>,
    /// `ipMasqRandomFully`
    pub random_fully: bool,
    /// `ipMasqExcept`
    pub except: &'a [String],
    /// `ipMasqFamilies`
    pub families: Option<&'a [String]>,
}

/// A network that is an exception, without bits beyond its prefix: iptables would print another.
fn exception(text: &str) -> Result<IpNetwork> {
    let network: IpNetwork = text.parse().map_err(|error| {
        Code::InvalidConfig.err(format!("ipMasqExcept: {text:?} is no network: {error}"))
    })?;
    let network = IpNetwork::new(network.network(), network.prefix())?;
    match network.prefix() {
        0 => Err(Code::InvalidConfig
            .err(format!(
                "ipMasqExcept: {text:?} is everything: use ipMasqFamilies"
            ))
            .into()),
        _ => Ok(network),
    }
}

/// Both, unless some are named.
fn families(named: Option<&[String]>) -> Result<[bool; 2]> {
    let Some(named) = named else {
        return Ok([true; 2]);
    };
    let mut families = [false; 2];
    for family in named {
        match family.as_str() {
            "ipv4" => families[0] = true,
            "ipv6" => families[1] = true,
            _ => {
                return Err(Code::InvalidConfig
                    .err(format!(
                        "ipMasqFamilies: {family:?} is neither \"ipv4\" nor \"ipv6\""
                    ))
                    .into());
            }
        }
    }
    Ok(families)
}

/// Masquerades what leaves the pod's subnets, if that is wanted. `bridge` is where pods of the Go
/// plugins may be that use the same rules.
///
/// # Errors
/// No back end works; what it refuses.
pub fn masquerade(
    owner: &Attachment,
    addressing: Option<&Addressing>,
    how: Option<Masquerading>,
    bridge: Option<&str>,
    undo: &mut Undo,
) -> Result<()> {
    let (Some(how), Some(addressing)) = (how, addressing) else {
        return without_masquerade(owner, bridge, undo);
    };
    let backend = packet_filter::open(how.backend)?;
    let wanted = wanted(owner, &addressing.ips, &how);
    undo_use(owner, bridge, undo);
    let is_first = match backend.kind() {
        Kind::Nftables => shared::use_subnets(&wanted)?,
        Kind::Iptables => {
            let owner = owner.clone();
            let addresses: Vec<_> = wanted.addresses.iter().map(|it| it.ip()).collect();
            undo.push("remove masquerade", move || {
                Leftovers::remove_masquerade(&owner, || Ok(Some(addresses)))
            });
            shared::use_own(&wanted)?;
            false
        }
    };
    let has_others = backend.masquerade(&wanted)?;
    if has_others && is_first {
        // The network has another subnet than before.
        shared::drop_unused(&owner.network, bridge)?;
    }
    Ok(())
}

/// The configuration may have said otherwise for the network's other pods.
fn without_masquerade(owner: &Attachment, bridge: Option<&str>, undo: &mut Undo) -> Result<()> {
    if !shared::may_have_rules(&owner.network) {
        return Ok(());
    }
    undo_use(owner, bridge, undo);
    if shared::use_nothing(owner)? {
        shared::drop_unused(&owner.network, bridge)?;
    }
    Ok(())
}

fn undo_use(owner: &Attachment, bridge: Option<&str>, undo: &mut Undo) {
    let (owner, bridge) = (owner.clone(), bridge.map(str::to_owned));
    undo.push("remove the network's rules", move || {
        shared::leave(&owner, bridge.as_deref(), true)
    });
}

/// What is masqueraded of an attachment with these addresses.
pub fn wanted(owner: &Attachment, ips: &[IpConfig], how: &Masquerading) -> Masquerade {
    let is_of_family = |it: &IpNetwork| how.families[usize::from(it.is_ipv6())];
    let addresses = ips.iter().map(|ip| ip.address.0);
    Masquerade {
        owner: owner.clone(),
        addresses: addresses.filter(is_of_family).collect(),
        random_fully: how.random_fully,
        except: how.except.clone(),
        not_through: how.not_through.clone(),
    }
}

/// DEL: removes what is there for this pod alone, in any back end and of either suite.
///
/// # Errors
/// What the kernel or iptables refuses.
pub(crate) fn remove_masquerade(owner: &Attachment, call: &Call) -> Result<()> {
    Leftovers::remove_masquerade(owner, || {
        // What the pod itself shows is not asked for: it may have given itself others.
        let told = in_the_result(call).or_else(|| shared::noted_addresses(owner));
        match told {
            None if !has_sibling(owner)? => Ok(Some(Vec::new())),
            told => Ok(told),
        }
    })
}

/// Whether another interface of the container on the network lives: its host veth
/// names it. Those of the Go plugins do not.
fn has_sibling(owner: &Attachment) -> Result<bool> {
    let (own, ifname) = (owner.alias(), owner.ifname.as_str());
    let Some(container) = own.strip_suffix(ifname) else {
        // Names so long that the alias is a hash: there may be one.
        return Ok(true);
    };
    let links = Netlink::open()?.list_links()?;
    Ok(links.iter().any(|link| {
        let alias = link.alias.as_deref().unwrap_or_default();
        alias.starts_with(container) && alias != own
    }))
}

/// Its addresses as ADD reported them.
fn in_the_result(call: &Call) -> Option<Vec<IpAddr>> {
    let previous = call.prev_result_hint()?;
    let addresses = previous.ips.iter().map(|ip| ip.address.ip()).collect();
    Some(addresses).filter(|all: &Vec<_>| !all.is_empty())
}

/// What keeps isolated pods from each other where the node forwards for them: their gateway is
/// `gateway`. `None` if they have no subnet there.
pub fn isolation(network: &str, gateway: &Link, ips: &[IpConfig]) -> Option<Isolation> {
    let mut subnets = Vec::new();
    for address in ips.iter().map(|ip| ip.address.0) {
        let subnet = IpNetwork::new(address.network(), address.prefix()).ok()?;
        if !subnets.contains(&subnet) {
            subnets.push(subnet);
        }
    }
    let isolation = Isolation {
        network: network.to_owned(),
        gateway: gateway.name.clone(),
        mac: gateway.mac?.0,
        subnets,
    };
    (!isolation.subnets.is_empty()).then_some(isolation)
}

/// Keeps an isolated pod from others that have the same gateway. `bridge` as in [`masquerade`].
///
/// # Errors
/// What the kernel refuses.
pub fn isolate(
    owner: &Attachment,
    wanted: &Isolation,
    bridge: Option<&str>,
    undo: &mut Undo,
) -> Result<()> {
    let Some(nftables) = Nftables::find()? else {
        eprintln!(
            "isolate the pods of {} behind their gateway: the kernel lacks nf_tables",
            wanted.network
        );
        return Ok(());
    };
    undo_use(owner, bridge, undo);
    shared::use_isolation(owner, wanted)?;
    nftables
        .isolate(wanted)
        .context("isolate the pod behind its gateway")
}

/// CHECK: whether isolated pods are kept from each other.
///
/// # Errors
/// What is missing.
pub fn check_isolation(wanted: &Isolation) -> Result<()> {
    Nftables::find()?.map_or(Ok(()), |nftables| nftables.check_isolation(wanted))
}

/// Drops what the pod sends with another MAC than its own.
///
/// # Errors
/// What the kernel refuses.
pub fn check_spoofing(owner: &Attachment, pair: &VethPair, undo: &mut Undo) -> Result<()> {
    let nftables = Nftables::open()?;
    let owner_to_undo = owner.clone();
    undo.push("remove spoof check", move || {
        let is_anothers = |veth: &str| is_anothers(&owner_to_undo, veth);
        Nftables::open()?.remove_spoof_check(&owner_to_undo, &is_anothers)
    });
    let wanted = SpoofCheck {
        owner: owner.clone(),
        host_veth: pair.host.name.clone(),
        mac: pair.container.mac.0,
    };
    nftables.ensure_spoof_check(&wanted, &|veth| is_anothers(owner, veth))
}

/// Whether a host veth is another attachment's: its alias says so. It is kept where it cannot
/// be asked.
fn is_anothers(owner: &Attachment, veth: &str) -> bool {
    let found = Netlink::open().and_then(|host| host.find_link(veth));
    match found {
        Ok(None) => false,
        Ok(Some(link)) => link
            .alias
            .is_some_and(|alias| alias.starts_with("podwire:") && alias != owner.alias()),
        Err(_) => true,
    }
}

/// DEL: removes the check of what the pod sends. One that is left would drop
/// nobody's packets, and would be left for good.
///
/// # Errors
/// What the kernel refuses.
pub(crate) fn remove_spoof_check(owner: &Attachment) -> Result<()> {
    Leftovers::remove_spoof_check(owner, &|veth| is_anothers(owner, veth))
}

/// GC: a port that went with its namespace has left its check.
///
/// # Errors
/// What the kernel refuses.
pub(crate) fn collect_spoof_checks(network: &str, valid: &[ValidAttachment]) -> Result<()> {
    match Nftables::find()? {
        Some(nftables) => nftables.collect_spoof_checks(network, valid),
        None => Ok(()),
    }
}

/// CHECK: whether what leaves the addresses of `previous` is masqueraded, in
/// whichever back end.
///
/// # Errors
/// What is missing.
pub fn check_masquerade(owner: &Attachment, how: Masquerading, previous: &AddResult) -> Result<()> {
    packet_filter::check_masquerade(&wanted(owner, &previous.ips, &how), how.backend)
}

/// CHECK: whether the spoof check of the veth whose ends are the interfaces
/// `container - 1` and `container` of `previous` is there.
///
/// # Errors
/// What is missing.
pub fn check_spoof_check(owner: &Attachment, previous: &AddResult, container: usize) -> Result<()> {
    let [host, container] = previous
        .interfaces
        .get(container - 1..=container)
        .and_then(|pair| pair.first_chunk())
        .context("interfaces missing in prevResult")?;
    let mac: Mac = container.mac.parse().context("MAC in prevResult")?;
    Nftables::open()?.check_spoof_check(&SpoofCheck {
        owner: owner.clone(),
        host_veth: host.name.clone(),
        mac: mac.0,
    })
}
