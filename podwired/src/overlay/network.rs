//! One network of this node, from the store to the kernel.
//!
//! A session begins with a list of everything and a lease, and goes on with events. It ends when
//! something fails that it cannot repair, and begins anew; the kernel keeps what it has meanwhile.

mod session;

use std::cell::RefCell;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::rc::Rc;

use anyhow::{Context, Result, bail};
use cni::env::IfName;
use flannel::{BackendType, Config, Subnet};
use netlink::Family;
use overlay::{Mode, Network};
use store::{Listing, Store};
use tokio::sync::Notify;

use super::conf::Membership;
use super::feed::Pause;
use super::files;
use super::kernel::{Kernel, device_name};
use super::lease::{self, Held, LeaseSpec, Node};
use super::status::Status;
use crate::log;

/// Attempts to get a lease before the list of networks is read anew with a pause.
const ATTEMPTS: usize = 50;

/// A network, and what it needs to run.
pub struct Runner<S> {
    /// Its place among the networks.
    pub index: usize,
    /// Its keys.
    pub network: Membership,
    /// The store.
    pub store: Rc<S>,
    /// The kernel.
    pub kernel: Kernel,
    /// How it is.
    pub status: Rc<RefCell<Status>>,
    /// Notified after each change of `status`.
    pub noted: Rc<Notify>,
}

impl<S: Store + 'static> Runner<S> {
    /// Runs for ever.
    pub async fn run(self) {
        let mut pause = Pause::new();
        loop {
            let before = self.status.borrow().passes;
            let name = &self.network.name;
            let error = match self.session().await {
                Ok(end) => {
                    log::info(format_args!("network {name}: {end}"));
                    continue;
                }
                Err(error) => format!("{error:#}"),
            };
            log::warn(format_args!("network {name}: {error}"));
            self.note(|status| {
                if status.waits.is_some() || status.subnet.is_none() {
                    status.waits = Some(error.clone());
                }
            });
            if self.status.borrow().passes > before {
                pause = Pause::new();
            }
            pause.wait().await;
        }
    }

    fn note(&self, change: impl FnOnce(&mut Status)) {
        change(&mut self.status.borrow_mut());
        self.noted.notify_one();
    }

    /// Returns why it has ended.
    async fn session(&self) -> Result<String> {
        let prefix = format!("{}/", self.network.prefix);
        let listing = self.list(&prefix).await?;
        let config = self.config(&listing)?;
        if !config.backend.kind.has_subnets() && self.network.ipam.is_none() {
            bail!(
                "addresses of a network {}: podwired lacks the role ipam, or the network the key ipam",
                config.backend.kind.name()
            );
        }
        let node = self.node(&config).await?;
        let before = files::own_subnet(&self.network, &config);
        let before = self.status.borrow().subnet.or(before);
        let (held, listing) = self.hold(&config, &node, before, listing).await?;
        session::follow(self, config, node, held, &listing).await
    }

    async fn list(&self, prefix: &str) -> Result<Listing> {
        let listing = self.store.list(prefix).await;
        self.note(|status| status.store = listing.as_ref().err().map(ToString::to_string));
        Ok(listing?)
    }

    fn config(&self, listing: &Listing) -> Result<Config> {
        let key = flannel::config_key(&self.network.prefix);
        let entry = listing.entries.iter().find(|it| it.key == key);
        let Some(entry) = entry else {
            bail!("{key} is missing in the store: the network has no configuration yet");
        };
        let config = self.parse(&entry.value);
        config.map_err(|fault| anyhow::anyhow!("{key}: {fault}"))
    }

    fn parse(&self, config: &[u8]) -> Result<Config, String> {
        if self.network.assigned {
            Config::parse_assigned(config)
        } else {
            Config::parse(config)
        }
    }

    /// What this node is: its addresses in the underlay.
    async fn node(&self, config: &Config) -> Result<Node> {
        let v4 = self
            .kernel
            .find(self.device(config, Family::V4, None)?)
            .await?;
        let is_routed = config.backend.kind == BackendType::HostGw;
        if (is_routed || v4.owned == Some(false))
            && let Some(pid) = flanneld()
        {
            bail!("flanneld runs on this node (process {pid})");
        }
        let IpAddr::V4(local) = v4.local else {
            bail!("the underlay has no IPv4 address");
        };
        let mut local6 = None;
        if config.v6.is_some() && config.backend.kind.has_subnets() {
            let found = self
                .kernel
                .find(self.device(config, Family::V6, None)?)
                .await?;
            local6 = match found.local {
                IpAddr::V6(local) => Some(local),
                IpAddr::V4(_) => None,
            };
        }
        Ok(self.node_at(local, local6))
    }

    fn node_at(&self, local: Ipv4Addr, local6: Option<Ipv6Addr>) -> Node {
        Node {
            public_ip: self.network.public_ip.unwrap_or(local),
            public_ipv6: local6.map(|local| self.network.public_ipv6.unwrap_or(local)),
            owner: lease::owner(),
        }
    }

    /// Gets a subnet, and the list that has its key's neighbours.
    async fn hold(
        &self,
        config: &Config,
        node: &Node,
        before: Option<Subnet>,
        mut listing: Listing,
    ) -> Result<(Held, Listing)> {
        let spec = LeaseSpec {
            store: &*self.store,
            prefix: &self.network.prefix,
            config,
            node,
            ttl: self.network.ttl,
            before,
        };
        for _ in 0..ATTEMPTS {
            if let Some(held) = spec.take(&listing).await? {
                return Ok((held, listing));
            }
            listing = self.list(&format!("{}/", self.network.prefix)).await?;
        }
        bail!("other nodes are faster: no subnet after {ATTEMPTS} attempts")
    }

    /// The VXLAN device of a family.
    fn device(&self, config: &Config, family: Family, held: Option<&Held>) -> Result<Network> {
        let backend = &config.backend;
        let vni = backend.vni;
        let (mode, name) = if backend.kind.has_subnets() {
            (Mode::L3, device_name(family, vni))
        } else {
            // That of the plugin vxlan, which attaches the pods.
            (Mode::L2, format!("vxlan.{vni}"))
        };
        let overhead = if family == Family::V4 { 50 } else { 70 };
        let name = IfName::parse(&name).with_context(|| format!("device {name}"))?;
        let backing = held.and_then(|it| match family {
            Family::V4 => it.value.v4,
            Family::V6 => it.value.v6,
        });
        Ok(Network {
            name: self.network.name.clone(),
            mode,
            vni,
            port: backend.port,
            dev: self.network.dev.clone(),
            local: None,
            family: Some(family),
            group: None,
            ttl: 0,
            learning: mode == Mode::L2,
            mtu: backend.mtu.map(|outer| outer.saturating_sub(overhead)),
            gbp: backend.gbp,
            udp_checksum: true,
            mac: backing.map(|it| it.mac),
            bridge: self.network.bridge.clone(),
            peers: Vec::new(),
            kept_as: Some(name),
        })
    }
}

/// A flanneld in this network namespace.
fn flanneld() -> Option<i32> {
    let own = std::fs::read_link("/proc/self/ns/net").ok()?;
    let processes = std::fs::read_dir("/proc").ok()?.flatten();
    processes
        .filter_map(|it| it.file_name().to_str()?.parse().ok())
        .find(|pid: &i32| {
            let comm = std::fs::read_to_string(format!("/proc/{pid}/comm"));
            let netns = std::fs::read_link(format!("/proc/{pid}/ns/net"));
            comm.is_ok_and(|it| it.trim() == "flanneld") && netns.is_ok_and(|it| it == own)
        })
}
