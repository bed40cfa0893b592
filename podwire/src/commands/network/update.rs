//! `podwire network update`

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use networks::named::Store;
use serde_json::json;

use crate::commands::{Verdict, sweep};
use crate::network::{Changes, POOL_FILE, Places, Words, complete, update};
use crate::options::{CacheDir, ConfDir};
use crate::output::{Output, print};

/// Change a network under running containers.
///
/// Labels, masquerade, whether containers reach each other, whether the network is internal, its
/// gateway modes, the name servers for names that no container has, and the MTU (of the bridge, of
/// the ports and in the containers) change at once.
/// Containers that are attached later get addresses of further subnets, too: of a second one of IPv4
/// when the first is full.
///
/// What containers were given when they were attached stays: their addresses, so a subnet cannot be
/// removed nor its gateway changed; the driver and its parent, whose interfaces they have; the name,
/// under which runtimes detach them. A gateway mode cannot become routed while containers publish
/// ports.
#[derive(Debug, Args)]
pub struct Update {
    /// The network
    network: String,
    /// Add or change a label
    #[arg(long, visible_alias = "label-add", value_name = "KEY=VALUE")]
    label: Vec<String>,
    /// Remove a label
    #[arg(long, value_name = "KEY")]
    label_rm: Vec<String>,
    /// Whether packets that leave the network get the node's address
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    ip_masq: Option<bool>,
    /// Whether containers of the network reach each other
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    icc: Option<bool>,
    /// The largest packet in bytes
    #[arg(long)]
    mtu: Option<u32>,
    /// Containers have no way out, and none leads to them
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    internal: Option<bool>,
    /// An option of create, as com.docker.network.bridge.gateway_mode_ipv4=nat-unprotected
    #[arg(short, long = "opt", value_name = "KEY=VALUE")]
    opt: Vec<String>,
    /// Add a name server for names that no container has
    #[arg(long, value_name = "ADDRESS", value_delimiter = ',')]
    dns_add: Vec<String>,
    /// Remove a name server
    #[arg(long, value_name = "ADDRESS", value_delimiter = ',')]
    dns_drop: Vec<String>,
    /// A further subnet in CIDR form
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    subnet: Vec<String>,
    /// A part of a further subnet: CIDR, or FIRST-LAST
    #[arg(long, value_name = "RANGE", value_delimiter = ',')]
    ip_range: Vec<String>,
    /// The gateway of a further subnet
    #[arg(long, value_name = "IP", value_delimiter = ',')]
    gateway: Vec<String>,
    /// An address of a further subnet that no container gets
    #[arg(long, value_name = "NAME=IP")]
    aux_address: Vec<String>,
    /// Change nothing; print what would be done
    #[arg(long)]
    dry_run: bool,
    /// The pools
    #[arg(long, value_name = "FILE", env = "PODWIRE_POOLS", hide_env_values = true, default_value = POOL_FILE)]
    pools: PathBuf,
    #[command(flatten)]
    conf: ConfDir,
    #[command(flatten)]
    cache: CacheDir,
}

impl Update {
    pub fn run(&self, output: &Output) -> Result<Verdict> {
        sweep(&self.cache);
        let changes = Changes {
            labels: &self.label,
            remove_labels: &self.label_rm,
            masquerade: self.ip_masq,
            icc: self.icc,
            mtu: self.mtu,
            internal: self.internal,
            modes: [None, None],
            options: &self.opt,
            servers: &self.dns_add,
            remove_servers: &self.dns_drop,
            words: Words {
                subnets: &self.subnet,
                ranges: &self.ip_range,
                gateways: &self.gateway,
                aux: &self.aux_address,
                ipv4: None,
                ipv6: None,
            },
            pools: &self.pools,
        };
        let store = Store::open(&self.conf.conf_dir)?;
        complete(&store)?;
        let catalogue = store.catalogue()?;
        let network = catalogue.find(&self.network)?;
        let places = Places {
            store: &store,
            conf_dir: &self.conf.conf_dir,
            cache: &self.cache.open(),
            cache_dir: self.cache.dir(),
        };
        let done = update(network, &changes, &places, self.dry_run)?;
        if output.is_json() {
            output.print_json(&json!({"done": done, "dryRun": self.dry_run}))?;
            return Ok(Verdict::Good);
        }
        let would = if self.dry_run { "would be " } else { "" };
        for line in &done {
            print(&format!("{would}changed: {line}"))?;
        }
        Ok(Verdict::Good)
    }
}
