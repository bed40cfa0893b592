//! Connections from 127.0.0.1 of the node to a pod's published ports.

use std::fmt;
use std::net::IpAddr;

use anyhow::{Context, Result};
use netlink::{Netlink, sysctl};
use packet_filter::{HostPorts, Kind};

/// ADD: lets packets from 127.0.0.1 leave for the pod, if its published ports need that.
///
/// The kernel drops such packets unless the interface that they leave by has `route_localnet`
/// (Documentation/networking/ip-sysctl.rst). That also accepts packets of neighbours to 127.0.0.0/8
/// of the node, so the back end drops these first. If that rule, the route or the setting is not
/// possible, the reason is logged: all other ways to the pod work.
///
/// # Errors
/// What the kernel refuses otherwise.
pub fn let_through(published: &HostPorts, by: Kind) -> Result<()> {
    let Some(pod) = published.pod_v4.filter(|_| published.opens_localhost()) else {
        return Ok(());
    };
    if by == Kind::Iptables
        && let Err(error) = packet_filter::close_localhost()
    {
        return log_skipped(format_args!("{error:#}"));
    }
    let link = match Netlink::open()?.route_link(IpAddr::V4(pod.ip())) {
        // The node has no route to the pod. The Go plugin ignores this, too.
        Err(error) if error.is_unreachable() => return log_skipped(format_args!("{error}")),
        link => link?,
    };
    let key = sysctl::interface_key("ipv4", &link.name, "route_localnet");
    match sysctl::write_if_different(&key, "1") {
        // A rootless runtime may have mounted /proc/sys read-only.
        Err(error) if error.is_forbidden() => log_skipped(format_args!("{error}")),
        done => done
            .map(drop)
            .context("let connections from 127.0.0.1 reach the pod"),
    }
}

fn log_skipped(why: fmt::Arguments<'_>) -> Result<()> {
    cni::log(format_args!(
        "connections from 127.0.0.1 do not reach the pod: {why}"
    ));
    Ok(())
}
