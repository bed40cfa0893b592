//! A DHCP server on the network's segment, and our daemon on the node.

use std::cell::RefCell;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sandbox::{Netns, Running, Sandbox, Suite};

const SOCKET: &str = "/run/cni/dhcp.sock";
const STATE: &str = "/var/lib/cni/dhcp/run-cni-dhcp.sock";

/// The node's end of the segment.
pub const UPLINK: &str = "uplink";

/// The server and the daemon; both end with this.
pub struct Dhcp {
    host: Netns,
    _server: Running,
    daemon: RefCell<Option<Running>>,
}

impl Dhcp {
    /// Makes the segment and starts both.
    ///
    /// # Errors
    /// When one of them does not begin to serve.
    pub fn start(sandbox: &Sandbox) -> Result<Self> {
        let (host, server) = (sandbox.host(), sandbox.pod("server"));
        host.sh(&format!(
            "sysctl -qw net.ipv6.conf.default.disable_ipv6=1
             ip link add {UPLINK} type veth peer name eth0 netns server
             sysctl -qw net.ipv6.conf.default.disable_ipv6=0
             ip link set {UPLINK} up"
        ));
        server.sh("sysctl -qw net.ipv6.conf.all.disable_ipv6=1
             ip link set lo up
             ip addr add 10.77.0.1/16 dev eth0
             ip link set eth0 up");
        // Leases last longer than any sweep: what is renewed meanwhile would differ on disk.
        let serving = server.dnsmasq("10.77.0.10,10.77.3.250,255.255.0.0,24h", &[]);
        wait_for("dnsmasq serves", || serving.output().contains("IP range"))?;
        let dhcp = Self {
            host,
            _server: serving,
            daemon: RefCell::new(None),
        };
        dhcp.restart()?;
        Ok(dhcp)
    }

    /// Starts another daemon; the previous one may have ended or been killed.
    ///
    /// # Errors
    /// When it does not begin to listen.
    pub fn restart(&self) -> Result<()> {
        self.stop()?;
        let daemon = self.host.start(&[&program(), "daemon"]);
        wait_for("the daemon listens", || self.listens())
            .with_context(|| daemon.output().clone())?;
        self.daemon.replace(Some(daemon));
        Ok(())
    }

    /// Another daemon, under `tracer` (`faults trace …`), which writes `report` when it has ended.
    ///
    /// # Errors
    /// When it neither listens nor ends.
    pub fn restart_under(&self, tracer: &[&str], report: &Path) -> Result<()> {
        self.stop()?;
        let program = program();
        let daemon = self
            .host
            .start(&[tracer, &[program.as_str(), "daemon"]].concat());
        wait_for("the traced daemon listens", || {
            report.exists() || self.listens()
        })
        .with_context(|| daemon.output().clone())?;
        self.daemon.replace(Some(daemon));
        Ok(())
    }

    /// Ends a daemon that [`Self::restart_under`] has started, if nothing else has, so that there is a report.
    ///
    /// # Errors
    /// When it does not end.
    pub fn end_traced(&self, report: &Path) -> Result<()> {
        let Some(tracer) = self.daemon.take() else {
            bail!("no daemon is traced");
        };
        let id = tracer.id();
        let children = std::fs::read_to_string(format!("/proc/{id}/task/{id}/children"));
        for child in children.unwrap_or_default().split_whitespace() {
            // Its parent, the tracer, is ours and has not been waited for.
            let _ = kill(Pid::from_raw(child.parse()?), Signal::SIGTERM);
        }
        wait_for("the traced daemon ends", || {
            std::fs::read_to_string(report).is_ok_and(|text| text.ends_with('}'))
        })
    }

    /// Ends the daemon as a service manager does.
    fn stop(&self) -> Result<()> {
        let Some(daemon) = self.daemon.take() else {
            return Ok(());
        };
        let _ = kill(Pid::from_raw(daemon.id().try_into()?), Signal::SIGTERM);
        wait_for("the daemon ends", || !self.listens())
    }

    /// Whether a daemon answers, or would.
    pub fn listens(&self) -> bool {
        self.host.sh("ss -Hlx").contains(SOCKET)
    }

    /// The files of the leases that are held now.
    pub fn leases(sandbox: &Sandbox) -> Vec<String> {
        let names = sandbox.list(STATE);
        names.iter().map(|it| format!("{STATE}/{it}")).collect()
    }
}

fn program() -> String {
    Suite::Ours.dir().join("dhcp").display().to_string()
}

fn wait_for(what: &str, condition: impl Fn() -> bool) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        if Instant::now() > deadline {
            bail!("never came true: {what}");
        }
        sleep(Duration::from_millis(10));
    }
    Ok(())
}
