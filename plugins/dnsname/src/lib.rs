//! dnsname: pods of a network find each other by name.
//!
//! A chained plugin: it runs after the plugin that gave the pod its addresses. It writes a record
//! with the pod's names and addresses, has the resolver of `podwired` read it, and adds the
//! resolver to the `dns` of the result.

mod agent;
pub mod conf;
pub mod plan;
mod records;

use std::io;
use std::net::{IpAddr, UdpSocket};

use anyhow::{Context, Result, anyhow};
use cni::request::{Add, Check, Del, Gc, Status};
use cni::{AddResult, Attachment, Call, Plugin, Undo};
use names::{Directory, Entry, Name, Namespace};
use nix::errno::Errno;

use crate::agent::Unanswered;
pub use crate::conf::Conf;
pub use crate::plan::Plan;
use crate::plan::{addresses, gateways};

/// The plugin.
pub struct Dnsname;

impl Plugin for Dnsname {
    const NAME: &'static str = "dnsname";
    type Conf = Conf;

    fn add(request: &Add<Conf>, undo: &mut Undo) -> Result<AddResult> {
        let (call, owner) = (&request.call, &request.attachment);
        let plan = Plan::new(&request.conf, &owner.network)?;
        let names = names_of(&plan, call, owner)?;
        let result = call.required_prev_result("must be called as chained plugin")?;
        if addresses(&result).is_empty() {
            cni::log(format_args!("{owner}: no names: the pod has no address"));
            return Ok(result);
        }
        let entry = Entry::of(owner);
        let listen = listening(&plan, &result)?;
        let namespace = Namespace::at(request.netns.as_path());
        let mut record = plan.record(owner, names, &result, listen.clone(), namespace);
        let undone = entry.clone();
        undo.push("forget the names of the pod", move || forget(&undone));
        Directory::default().write(&entry, &record)?;
        let servers = answering(owner, &entry, &plan, listen);
        if servers.iter().any(|it| !record.network.listen.contains(it)) {
            let at: Vec<_> = servers.iter().map(IpAddr::to_string).collect();
            cni::log(format_args!(
                "{owner}: names are answered at {}, as another server of the node has port 53 of \
                 the gateway",
                at.join(", ")
            ));
            // The resolver has to answer there also after a restart.
            record.asks.clone_from(&servers);
            Directory::default().write(&entry, &record)?;
        }
        Ok(plan.answer(result, &servers))
    }

    /// Needs neither the namespace nor a result: the record's name is derived.
    fn del(request: &Del<Conf>) -> Result<()> {
        forget(&Entry::of(&request.attachment))
    }

    /// Whether the resolver answers is not checked: ADD succeeds without one, too, and CRI-O
    /// restarts pods whose CHECK fails.
    fn check(request: &Check<Conf>) -> Result<()> {
        let owner = &request.attachment;
        let plan = Plan::new(&request.conf, &owner.network)?;
        let names = names_of(&plan, &request.call, owner)?;
        let wanted = addresses(&request.prev_result()?);
        if wanted.is_empty() {
            return Ok(());
        }
        let entry = Entry::of(owner);
        let differs = |what: &str| anyhow!("names of {owner}: {what}");
        let Some(record) = Directory::default().read(&entry)? else {
            return Err(differs("they are not recorded"));
        };
        if record.addresses != wanted {
            return Err(differs("they are recorded with other addresses"));
        }
        match names.iter().find(|it| !record.names.contains(it)) {
            Some(name) => Err(differs(&format!("{name} is not recorded"))),
            None => Ok(()),
        }
    }

    fn gc(request: &Gc<Conf>) -> Result<()> {
        let network = &request.call.network;
        let valid = request.valid.iter().filter_map(|it| it.owner(network));
        let valid: Vec<_> = valid.collect();
        for entry in Directory::default().retain(network, &valid)? {
            tell_forgotten(&entry);
        }
        Ok(())
    }

    /// A node without a resolver is ready, as ADD succeeds. If STATUS failed, runtimes would start
    /// no pod on the node.
    fn status(request: &Status<Conf>) -> Result<()> {
        Plan::new(&request.conf, &request.call.network)?;
        Ok(())
    }
}

/// The names of the pod. podman and Kubernetes' runtimes pass its name in `CNI_ARGS`.
fn names_of(plan: &Plan, call: &Call, owner: &Attachment) -> Result<Vec<Name>> {
    let [pod] = call.args(["K8S_POD_NAME"])?;
    Ok(plan.names(pod.as_deref(), owner.container_id.as_str()))
}

/// The addresses of the node to which the pod can send queries.
fn listening(plan: &Plan, result: &AddResult) -> Result<Vec<IpAddr>> {
    if !plan.listen.is_empty() {
        return Ok(plan.listen.clone());
    }
    let mut own = Vec::new();
    for gateway in gateways(result) {
        if is_of_node(gateway).with_context(|| format!("bind a socket to {gateway}"))? {
            own.push(gateway);
        }
    }
    Ok(own)
}

/// Whether an address is the node's own: only then can a socket be bound to it. That is one system
/// call for any number of addresses of the node.
fn is_of_node(address: IpAddr) -> io::Result<bool> {
    match UdpSocket::bind((address, 0)) {
        Ok(_) => Ok(true),
        Err(error) => match error.raw_os_error().map(Errno::from_raw) {
            // A kernel without IPv6; an address that no interface can have.
            Some(Errno::EADDRNOTAVAIL | Errno::EAFNOSUPPORT | Errno::EINVAL) => Ok(false),
            _ => Err(error),
        },
    }
}

/// The addresses at which the resolver answers the pod. A resolver that does not answer now will
/// answer at the addresses of the network; without a resolver, the pod must not depend on one.
fn answering(owner: &Attachment, entry: &Entry, plan: &Plan, listen: Vec<IpAddr>) -> Vec<IpAddr> {
    let why = match agent::announce(entry, plan.starts_resolver) {
        Ok(servers) if !servers.is_empty() => return servers,
        Ok(_) if listen.is_empty() => {
            "the node has no address in the network: the key listen says where pods reach it, as \
             at the hostShim of macvlan"
                .to_owned()
        }
        Ok(_) => "the resolver has no port 53 in the network".to_owned(),
        Err(Unanswered::Now(error)) => {
            cni::log(format_args!(
                "{owner}: names are not answered yet: {error:#}"
            ));
            return listen;
        }
        Err(Unanswered::None(error)) => format!("{error:#}"),
    };
    cni::log(format_args!("{owner}: names are not answered: {why}"));
    Vec::new()
}

fn forget(entry: &Entry) -> Result<()> {
    if Directory::default().remove(entry)? {
        tell_forgotten(entry);
    }
    Ok(())
}

/// The resolver also looks at the files itself, so a DEL does not fail if the resolver hangs.
fn tell_forgotten(entry: &Entry) {
    if let Err(error) = agent::forget(entry) {
        cni::log(format_args!("{entry}: {error:#}"));
    }
}
