//! cluster: hands out addresses that are unique in a whole cluster.
//!
//! The agent `podwired` has blocks of the cluster's pools and hands out their addresses (role `ipam`);
//! this plugin asks it. Why no address gets two owners is in `docs/cluster-addresses.md`.

pub mod conf;
pub mod plan;

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Result, anyhow, bail};
use cni::{Add, AddResult, Check, Code, Del, Gc, Plugin, Status, Undo, WithLabel};
use names::Namespace;
use pools::{Agent, Owner, PoolLease, Release, Reply, Request, Time};

pub use crate::conf::Conf;
pub use crate::plan::Plan;

/// Longer than the agent's own limit for an answer.
const PATIENCE: Duration = Duration::from_secs(7);

/// For what is only tried.
const MOMENT: Duration = Duration::from_secs(1);

/// The plugin.
#[derive(Debug)]
pub struct Cluster;

impl Plugin for Cluster {
    const NAME: &'static str = "cluster";
    type Conf = Conf;

    fn add(request: &Add<Conf>, undo: &mut Undo) -> Result<AddResult> {
        let call = &request.call;
        let plan = Plan::new(&request.conf, &call.network, call.version, &call.args)?;
        let dns = plan::resolv_conf(&plan).map(|it| host_local::resolv_conf::read(it));
        let dns = dns.transpose()?.unwrap_or_default();
        cni::foreign::note(&call.network);
        let wanted = Request::Add(pools::Add {
            pool: plan.pool.clone(),
            owner: Owner::from(&request.attachment),
            namespace: Namespace::at(request.netns.as_path()),
            name: plan.name(call)?,
            cool_down: plan.cool_down,
            sets: plan.sets.clone(),
            deadline: Some(Time::now().after(PATIENCE)),
        });
        let begun = Time::now();
        let (leases, until) = match ask(&request.conf, &wanted) {
            Ok(Reply::Leased { leases, until }) => (leases, until),
            Ok(other) => return Err(odd(&other)),
            Err(error) => {
                take_back(&request.conf, &request.attachment, begun);
                return Err(error);
            }
        };
        for lease in &leases {
            let (agent, release) = (Agent::at(request.conf.agent()), release_of(lease));
            undo.push(format!("release address {}", lease.lease.ip), move || {
                agent.ask(&release, PATIENCE).map(drop)
            });
        }
        // Not a moment longer than the agent vouches for the addresses.
        pools::die_at(until)?;
        let ips = leases.iter().map(|it| {
            let ip = it.lease.ip;
            let found = plan.ip_config(ip);
            found.ok_or_else(|| anyhow!("the agent gave {ip}, which is in no range"))
        });
        Ok(AddResult {
            interfaces: Vec::new(),
            ips: ips.collect::<Result<_>>()?,
            routes: plan.local.routes.clone(),
            dns,
        })
    }

    /// Without an agent, the release is left for the next one.
    fn del(request: &Del<Conf>) -> Result<()> {
        let owner = Owner::from(&request.attachment);
        if let Err(error) = ask(&request.conf, &Request::Del(owner.clone())) {
            cni::log(format_args!(
                "{owner}: its addresses are released later: {error:#}"
            ));
            pools::leave_release(&request.conf.data_dir(), &owner)?;
        }
        Ok(())
    }

    fn check(request: &Check<Conf>) -> Result<()> {
        let call = &request.call;
        let plan = Plan::new(&request.conf, &call.network, call.version, &call.args)?;
        let owner = Owner::from(&request.attachment);
        let held: Vec<IpAddr> =
            match Agent::at(request.conf.agent()).ask(&Request::Held(owner.clone()), PATIENCE) {
                Ok(Reply::Leases(leases)) => leases.into_iter().map(|it| it.lease.ip).collect(),
                Ok(other) => return Err(odd(&other)),
                // CRI-O restarts pods whose CHECK fails, which would not help.
                Err(_) => {
                    let leases = pools::leases_on_disk(&request.conf.data_dir(), &owner)?;
                    leases.into_iter().map(|it| it.ip).collect()
                }
            };
        if held.is_empty() {
            let id = &owner.container;
            bail!("cluster: Failed to find address added by container {id}");
        }
        let result = call.prev_result()?.unwrap_or_default();
        let ours = result.ips.iter().map(|it| it.address.ip());
        for ip in ours.filter(|ip| plan.ip_config(*ip).is_some()) {
            if !held.contains(&ip) {
                bail!("cluster: {ip} is not an address of {owner}");
            }
        }
        Ok(())
    }

    /// Releases the addresses of attachments that are neither in the list nor have a namespace: one
    /// that still exists may still use its addresses. All of an attachment's, or none.
    fn gc(request: &Gc<Conf>) -> Result<()> {
        let network = &request.call.network;
        let leases = match ask(&request.conf, &Request::Network(network.clone()))? {
            Reply::Leases(leases) => leases,
            other => return Err(odd(&other)),
        };
        let valid: HashSet<(&str, &str)> = request
            .valid
            .iter()
            .map(|it| (it.container_id.as_str(), it.ifname.as_str()))
            .collect();
        let mut stale: BTreeMap<Owner, Vec<PoolLease>> = BTreeMap::new();
        for lease in leases {
            let owner = lease.lease.owner.clone();
            if !valid.contains(&(owner.container.as_str(), owner.ifname.as_str())) {
                stale.entry(owner).or_default().push(lease);
            }
        }
        let mut all = cni::BestEffort::new();
        for (owner, leases) in stale {
            let mut namespaces = leases.iter().filter_map(|it| it.lease.namespace.as_ref());
            if namespaces.any(Namespace::exists) {
                cni::log(format_args!(
                    "{owner}: its namespace exists, and keeps its addresses"
                ));
                continue;
            }
            for lease in leases {
                all.step("release address", || {
                    ask(&request.conf, &release_of(&lease))
                });
            }
        }
        all.finish()
    }

    /// An exhausted pool is no reason to fail: runtimes take the node out of service then.
    fn status(request: &Status<Conf>) -> Result<()> {
        let call = &request.call;
        let plan = Plan::new(&request.conf, &call.network, call.version, "")?;
        if let Some(path) = plan::resolv_conf(&plan) {
            host_local::resolv_conf::read(path).code(Code::NotAvailable)?;
        }
        let ready = Agent::at(request.conf.agent()).ask(&Request::Ready {}, PATIENCE);
        ready.code(Code::NotAvailable).map(drop)
    }
}

/// Releases what the agent has handed out since `begun`, where its answer was lost on the way. If that
/// fails, too, it is left to DEL.
fn take_back(conf: &Conf, attachment: &cni::Attachment, begun: Time) {
    let agent = Agent::at(conf.agent());
    let held = agent.ask(&Request::Held(attachment.into()), MOMENT);
    let Ok(Reply::Leases(leases)) = held else {
        return;
    };
    // An earlier ADD may have got the others.
    for lease in leases.iter().filter(|it| it.lease.at >= begun) {
        if let Err(error) = agent.ask(&release_of(lease), MOMENT) {
            cni::log(format_args!(
                "release address {}: {error:#}",
                lease.lease.ip
            ));
        }
    }
}

/// Asks the agent; one that is away may be back soon.
fn ask(conf: &Conf, request: &Request) -> Result<Reply> {
    match Agent::at(conf.agent()).ask(request, PATIENCE) {
        // It has its code.
        Err(error) if error.is::<cni::Error>() => Err(error),
        answer => answer.code(Code::TryAgain),
    }
}

fn release_of(lease: &PoolLease) -> Request {
    Request::Release(Release {
        pool: lease.pool.clone(),
        ip: lease.lease.ip,
        sequence: lease.lease.sequence,
    })
}

fn odd(reply: &Reply) -> anyhow::Error {
    anyhow!("the agent answered something else: {reply:?}")
}
