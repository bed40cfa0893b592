//! dhcp: an IPAM plugin that gets an address for each pod from the segment's own DHCP
//! server; and `dhcp daemon`, which holds the leases.
//!
//! A plugin runs for a moment, but a lease has to be renewed for as long as the pod
//! lives: that is the daemon's part. [`client`] and [`daemon`] are the two ends of its
//! socket, [`rpc`] and [`gob`] their protocol. [`lease`] decides, without a clock or a
//! socket. [`message`] and [`terms`] read the answers of servers, and trust none of
//! them; [`frame`], the packet socket and the pod's interface carry them.

pub mod client;
pub mod conf;
mod daemon;
pub mod flags;
pub mod frame;
pub mod gob;
pub mod lease;
pub mod message;
mod offline;
pub mod plan;
mod pod;
pub mod rpc;
mod socket;
pub mod store;
pub mod terms;

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Result, bail};
use cni::env::NetnsPath;
use cni::result::IpConfig;
use cni::{Add, AddResult, Attachment, Call, Check, Code, Del, Error, Gc, Plugin, Status, Undo};

use client::{Client, Failure};
use conf::Conf;
use plan::Plan;
use rpc::{ALLOCATE, Arguments, CHECK, GC, NO_METHOD, RELEASE};
use store::Owner;

/// The plugin, or with the argument `daemon` the daemon.
pub fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    match arguments.next().as_deref() {
        Some("daemon") => daemon::main(&arguments.collect::<Vec<_>>()),
        _ => cni::run::<Dhcp>(),
    }
}

/// The plugin.
pub struct Dhcp;

impl Plugin for Dhcp {
    const NAME: &'static str = "dhcp";
    type Conf = Conf;

    fn add(request: &Add<Conf>, undo: &mut Undo) -> Result<AddResult> {
        let plan = Plan::new(&request.conf, &request.call.args)?;
        let arguments = arguments(&request.call, &request.attachment, Some(&request.netns))?;
        let mut result = call(&plan.socket, ALLOCATE, &arguments)?;
        plan.apply(&mut result);
        let socket = plan.socket;
        undo.push("release the lease", move || {
            Ok(call(&socket, RELEASE, &arguments).map(drop)?)
        });
        Ok(result)
    }

    /// Without a daemon, the lease is released here, so that the next daemon does not restore
    /// it.
    fn del(request: &Del<Conf>) -> Result<()> {
        let socket = request.conf.socket();
        let arguments = arguments(&request.call, &request.attachment, request.netns.as_ref())?;
        let released = Client::dial(&socket).and_then(|it| it.call(RELEASE, &arguments));
        match released {
            Ok(_) => Ok(()),
            Err(Failure::Unreachable(_)) => {
                let netns = request.netns.as_ref().map(NetnsPath::as_path);
                offline::release(&socket, &owner(&request.attachment), netns)
            }
            Err(failure) => Err(failure.into_error(RELEASE).into()),
        }
    }

    /// Asks the daemon which address it holds. The Go daemon has no method for it; there, as
    /// with the Go plugin, CHECK allocates a lease if none is held.
    fn check(request: &Check<Conf>) -> Result<()> {
        let plan = Plan::new(&request.conf, &request.call.args)?;
        let arguments = arguments(&request.call, &request.attachment, Some(&request.netns))?;
        let held = match Client::dial(&plan.socket).and_then(|it| it.call(CHECK, &arguments)) {
            Err(Failure::Refused(why)) if why.starts_with(NO_METHOD) => {
                call(&plan.socket, ALLOCATE, &arguments)?
            }
            Err(failure) => return Err(failure.into_error(CHECK).into()),
            Ok(held) => held,
        };
        let previous = request.call.prev_result()?;
        match previous.and_then(|previous| stray(&held.ips, &previous.ips).cloned()) {
            Some(ip) => bail!(
                "dhcp: the lease is for {} by now, which is not in prevResult",
                ip.address
            ),
            None => Ok(()),
        }
    }

    /// The daemon releases the leases that are not in use; the Go daemon cannot.
    fn gc(request: &Gc<Conf>) -> Result<()> {
        let socket = request.conf.socket();
        let arguments = Arguments {
            stdin: request.call.stdin().to_vec(),
            ..Arguments::default()
        };
        match Client::dial(&socket).and_then(|it| it.call(GC, &arguments)) {
            Ok(_) => Ok(()),
            Err(Failure::Refused(why)) if why.starts_with(NO_METHOD) => Ok(()),
            Err(Failure::Unreachable(_)) => {
                offline::collect(&socket, &request.call.network, |owner| {
                    request.valid.iter().any(|valid| {
                        valid.container_id == owner.container_id && valid.ifname == owner.ifname
                    })
                })
            }
            Err(failure) => Err(failure.into_error(GC).into()),
        }
    }

    /// Only whether the daemon answers: a server can only be asked from a pod's interface.
    fn status(request: &Status<Conf>) -> Result<()> {
        let plan = Plan::new(&request.conf, &request.call.args)?;
        match Client::dial(&plan.socket) {
            Ok(_) => Ok(()),
            Err(Failure::Unreachable(why)) => {
                Err(Code::NotAvailable.err(why).details(client::HELP).into())
            }
            Err(Failure::Broken(why) | Failure::Refused(why)) => {
                Err(Code::NotAvailable.err(why).into())
            }
        }
    }
}

fn call(socket: &str, method: &str, arguments: &Arguments) -> Result<AddResult, Error> {
    Client::dial(socket)
        .and_then(|client| client.call(method, arguments))
        .map_err(|failure| failure.into_error(method))
}

fn owner(attachment: &Attachment) -> Owner {
    Owner {
        container_id: attachment.container_id.to_string(),
        network: attachment.network.clone(),
        ifname: attachment.ifname.to_string(),
    }
}

/// The arguments of a call of the daemon: those of the runtime's call, with an absolute
/// path of the namespace, as the daemon has another working directory.
fn arguments(call: &Call, attachment: &Attachment, netns: Option<&NetnsPath>) -> Result<Arguments> {
    let netns = match netns {
        Some(netns) => std::path::absolute(netns.as_path())?,
        None => Path::new("").to_owned(),
    };
    let path = std::env::join_paths(&call.path)?;
    Ok(Arguments {
        container_id: attachment.container_id.to_string(),
        netns: netns.to_string_lossy().into_owned(),
        ifname: attachment.ifname.to_string(),
        args: call.args.clone(),
        path: path.to_string_lossy().into_owned(),
        stdin: call.stdin().to_vec(),
    })
}

/// The first address that is held and not in the result of ADD.
fn stray<'a>(held: &'a [IpConfig], previous: &[IpConfig]) -> Option<&'a IpConfig> {
    held.iter()
        .find(|ip| previous.iter().all(|other| other.address != ip.address))
}
