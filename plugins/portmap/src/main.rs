//! portmap: ports of the node that lead to ports of a pod.
//!
//! A chained plugin: it comes after the one that gave the pod its addresses,
//! and passes that one's result on unchanged.

use std::net::IpAddr;
use std::process::ExitCode;

use anyhow::{Context, Result};
use cni::faults::Faults;
use cni::request::{Add, Check, Del, Gc, Status};
use cni::{AddResult, Code, Error, Plugin, Undo};
use netlink::{Netlink, sysctl};
use packet_filter::{HostPorts, Kind, Leftovers};
use portmap::conf::Conf;
use portmap::plan::Plan;

fn main() -> ExitCode {
    cni::run::<Portmap>()
}

struct Portmap;

impl Plugin for Portmap {
    const NAME: &'static str = "portmap";
    type Conf = Conf;

    fn add(request: &Add<Conf>, undo: &mut Undo) -> Result<AddResult> {
        let plan = Plan::new(&request.conf).map_err(as_go_says)?;
        plan.admit()?;
        let missing = "must be called as chained plugin";
        let previous = request.call.required_prev_result(missing)?;
        if plan.mappings.is_empty() {
            return Ok(previous);
        }
        let wanted = plan.host_ports(&request.attachment, &previous);
        let owner = request.attachment.clone();
        undo.push("remove published ports", move || {
            Leftovers::unpublish(&owner, None)
        });
        let published = packet_filter::publish(&wanted, plan.backend)?;
        for packet_filter::Notice { mapping, from } in published.taken {
            cni::log(format_args!(
                "host port {}/{} was {from}'s and is {}'s now",
                mapping.host_port, mapping.protocol, request.attachment
            ));
        }
        if plan.opens_to_localhost() {
            open_to_localhost(&wanted, published.by)?;
        }
        Ok(previous)
    }

    fn del(request: &Del<Conf>) -> Result<()> {
        // By owner alone: the runtime may have forgotten the mappings, or call
        // with a configuration that has others.
        let plan = Plan::new(&request.conf).ok();
        let previous = request.call.prev_result_hint();
        let known = plan.zip(previous);
        let known = known.map(|(plan, previous)| plan.host_ports(&request.attachment, &previous));
        Leftovers::unpublish(&request.attachment, known.as_ref())
    }

    fn check(request: &Check<Conf>) -> Result<()> {
        let plan = Plan::new(&request.conf)?;
        let previous = request.prev_result()?;
        if plan.mappings.is_empty() {
            return Ok(());
        }
        let wanted = plan.host_ports(&request.attachment, &previous);
        packet_filter::check_published(&wanted, plan.backend)
    }

    fn gc(request: &Gc<Conf>) -> Result<()> {
        Leftovers::collect_published(&request.call.network, &request.valid)
    }

    fn status(request: &Status<Conf>) -> Result<()> {
        let plan = Plan::new(&request.conf)?;
        packet_filter::open(plan.backend)
            .map_err(|error| Code::NotAvailable.err(format!("publish ports: {error:#}")))?;
        Ok(())
    }
}

/// The Go plugin says this on ADD, and not on CHECK.
fn as_go_says(faults: Faults) -> Error {
    let mut error = Error::from(faults);
    error.msg.insert_str(0, "failed to parse config: ");
    error
}

/// Lets packets from 127.0.0.1 leave for the pod: the kernel drops them unless
/// the interface that they leave by allows it (`route_localnet` in
/// Documentation/networking/ip-sysctl.rst). That also lets in what neighbours send
/// to 127.0.0.0/8 of the node, so somebody has to stand at the door.
fn open_to_localhost(wanted: &HostPorts, published_by: Kind) -> Result<()> {
    let Some(pod) = wanted.pod_v4 else {
        return Ok(());
    };
    if published_by == Kind::Iptables
        && let Err(error) = packet_filter::close_localhost()
    {
        // All other ways to the pod work.
        cni::log(format_args!(
            "127.0.0.1 is not let through to the pod: {error:#}"
        ));
        return Ok(());
    }
    let way = match Netlink::open()?.route_link(IpAddr::V4(pod.ip())) {
        // Nobody on the node reaches the pod, now: the Go plugin does not mind, either.
        Err(error) if error.is_unreachable() => {
            cni::log(format_args!(
                "127.0.0.1 is not let through to the pod: {error}"
            ));
            return Ok(());
        }
        way => way?,
    };
    let key = sysctl::interface_key("ipv4", &way.name, "route_localnet");
    match sysctl::write_if_different(&key, "1") {
        // A rootless runtime may have mounted /proc/sys read-only.
        Err(error) if error.is_forbidden() => {
            cni::log(format_args!(
                "127.0.0.1 is not let through to the pod: {error}"
            ));
            Ok(())
        }
        done => done
            .map(drop)
            .context("let connections from 127.0.0.1 reach the pod"),
    }
}
