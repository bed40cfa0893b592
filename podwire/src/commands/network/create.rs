//! `podwire network create`

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use serde_json::json;

use crate::commands::Verdict;
use crate::network::{POOL_FILE, Request, Words, create};
use crate::options::ConfDir;
use crate::output::{Output, print};

/// Create a network, and print its id.
///
/// Without --subnet, a network gets a free subnet of the pools: one that no other network, no
/// route of the node and no name server in /etc/resolv.conf is in. --subnet 0.0.0.0/26 asks for a
/// subnet of that size. All faults are reported at once.
///
/// The pools are 4096 networks of 10.208.0.0/12 and a private IPv6 prefix of this machine, unless
/// a file in the form of Docker's default-address-pools says otherwise.
///
/// On a node without another configuration, a container runtime takes the first network for all
/// of its pods.
#[derive(Debug, Args)]
pub struct Create {
    /// Name of the network [default: podwire and a number]
    name: Option<String>,
    /// bridge, macvlan, ipvlan or vxlan
    #[arg(short, long, default_value = "bridge")]
    driver: String,
    /// A subnet in CIDR form; several are possible
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    subnet: Vec<String>,
    /// Containers get addresses from this part of a subnet: CIDR, or FIRST-LAST
    #[arg(long, value_name = "RANGE", value_delimiter = ',')]
    ip_range: Vec<String>,
    /// The gateway of a subnet [default: the first address]
    #[arg(long, value_name = "IP", value_delimiter = ',')]
    gateway: Vec<String>,
    /// An address that no container gets, and what it is for
    #[arg(long, value_name = "NAME=IP")]
    aux_address: Vec<String>,
    /// Whether containers get IPv4 addresses
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    ipv4: Option<bool>,
    /// Whether containers get IPv6 addresses
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    ipv6: Option<bool>,
    /// Containers have no way out, and none leads to them
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    internal: Option<bool>,
    /// Accepted as in docker: containers of every network may come and go
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    attachable: Option<bool>,
    /// Whether containers of the network reach each other
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    icc: Option<bool>,
    /// Whether containers of other networks reach published ports only
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    isolate: Option<String>,
    /// The largest packet in bytes
    #[arg(long)]
    mtu: Option<u32>,
    /// The node's interface of macvlan, ipvlan and vxlan
    #[arg(long, value_name = "INTERFACE")]
    parent: Option<String>,
    /// The VXLAN network identifier
    #[arg(long)]
    vni: Option<u32>,
    /// An option of the driver, as com.docker.network.driver.mtu
    #[arg(short, long = "opt", value_name = "KEY=VALUE")]
    opt: Vec<String>,
    /// A label
    #[arg(long, value_name = "KEY=VALUE")]
    label: Vec<String>,
    /// A further route of the containers
    #[arg(long, value_name = "CIDR,GATEWAY[,METRIC]")]
    route: Vec<String>,
    /// Where addresses come from: default, dhcp or none
    #[arg(long, value_name = "DRIVER", default_value = "default")]
    ipam_driver: String,
    /// Containers do not find each other by name
    #[arg(long, visible_alias = "disable-dns")]
    no_dns: bool,
    /// A name server for names that no container has [default: those of the node]
    #[arg(long, value_name = "ADDRESS", value_delimiter = ',')]
    dns: Vec<String>,
    /// Succeed if there is a network of that name
    #[arg(long)]
    ignore: bool,
    /// The pools
    #[arg(long, value_name = "FILE", env = "PODWIRE_POOLS", hide_env_values = true, default_value = POOL_FILE)]
    pools: PathBuf,
    #[command(flatten)]
    conf: ConfDir,
}

impl Create {
    pub fn run(&self, output: &Output) -> Result<Verdict> {
        let request = Request {
            name: self.name.as_deref(),
            driver: &self.driver,
            words: Words {
                subnets: &self.subnet,
                ranges: &self.ip_range,
                gateways: &self.gateway,
                aux: &self.aux_address,
                ipv4: self.ipv4,
                ipv6: self.ipv6,
            },
            options: self.options(),
            labels: &self.label,
            routes: &self.route,
            internal: self.internal == Some(true),
            attachable: self.attachable == Some(true),
            has_names: !self.no_dns,
            servers: &self.dns,
            vni: self.vni,
            ipam: &self.ipam_driver,
            pools: &self.pools,
        };
        let created = create(&request, &self.conf.conf_dir, self.ignore)?;
        let network = &created.network;
        if output.is_json() {
            let (id, name, is_new) = (&network.id, &network.name, created.is_new);
            output.print_json(&json!({"id": id, "name": name, "created": is_new}))?;
        } else {
            print(&network.id)?;
        }
        Ok(Verdict::Good)
    }

    /// The options of the driver. Some have a short form, which comes first: `-o` may repeat it.
    fn options(&self) -> Vec<String> {
        let short = [
            (
                "com.docker.network.bridge.enable_icc",
                self.icc.map(|it| it.to_string()),
            ),
            ("isolate", self.isolate.clone()),
            (
                "com.docker.network.driver.mtu",
                self.mtu.map(|it| it.to_string()),
            ),
            ("parent", self.parent.clone()),
        ];
        let short = short
            .into_iter()
            .filter_map(|(key, value)| Some(format!("{key}={}", value?)));
        short.chain(self.opt.iter().cloned()).collect()
    }
}
